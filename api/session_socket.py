"""A driver session's socket: one reader, and one writer for as long as something waits to be sent.

Nearly always nothing waits, so there is no writer: a task that only waits would be memory, ten thousand times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import WSMsgType

from api.driver_session import (
    CLOSE_GOING_AWAY,
    CLOSE_S_MAX,
    CLOSE_WRONG_TYPE,
    HEARTBEAT_S,
    PONG_S,
    SEND_S_MAX,
    SETTLE_S_MAX,
    Session,
)
from api.outbox import Wake
from api.prompt_socket import PromptSocket


class SessionSocket:
    """`abort` drops the connection at once."""

    __slots__ = ("_abort", "_heard_at_s", "_is_lost", "_must_ping", "_pinged_at_s", "_session", "_writer", "_ws")

    def __init__(self, session: Session, ws: PromptSocket, abort: Callable[[], None]) -> None:
        self._session = session
        self._ws = ws
        self._abort = abort
        self._is_lost = False  # nothing can be written any more
        self._writer: asyncio.Task[None] | None = None
        self._heard_at_s = session.clock()
        self._pinged_at_s: float | None = None  # since it was heard
        self._must_ping = False

    async def run(self) -> None:
        """Reads and writes until either side ends it."""
        session, wake = self._session, self._session.outbox.wake
        assert isinstance(wake, Wake), "a session with a socket has an outbox of its own"
        session.socket, wake.on_set = self, self._call_writer
        self._call_writer()
        try:
            await self._read()
        finally:
            self._ws.stop()
            session.socket, self._is_lost = None, True
            writer = self._writer
            if writer is not None:
                if session.closing is None:
                    writer.cancel()  # else it is closing the socket, which takes CLOSE_S_MAX at most
                await asyncio.wait([writer])
            if not self._ws.closed:
                self._abort()
        if writer is not None and not writer.cancelled() and (error := writer.exception()) is not None:
            raise error

    async def _read(self) -> None:
        """Most messages are handed to the session as they arrive; see prompt_socket."""
        ws, session, kind = self._ws, self._session, self._session.form.message_type
        while True:
            ws.go_on()
            message = await ws.receive()
            session.is_heard = True
            if message.type is kind:
                session.on_frame(message.data)
            elif message.type is WSMsgType.PING:
                await ws.pong(message.data)
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                session.metrics.bad_frames.add("wrong-type")
                session.close(CLOSE_WRONG_TYPE, "text on a msgpack socket, or binary on a JSON one")
            elif message.type is not WSMsgType.PONG:
                if ws.fault is not None:
                    raise ws.fault
                return

    def beat(self, now_s: float) -> None:
        """Asks a silent client whether it is there, and gives up one that does not answer."""
        session = self._session
        if session.is_heard:
            session.is_heard, self._heard_at_s, self._pinged_at_s = False, now_s, None
        elif self._pinged_at_s is not None:
            if now_s - self._pinged_at_s > PONG_S:
                self._give_up()
        elif now_s - self._heard_at_s > HEARTBEAT_S:
            self._pinged_at_s, self._must_ping = now_s, True
            self._call_writer()

    def _give_up(self) -> None:
        self._is_lost = True
        self._abort()

    def _call_writer(self) -> None:
        """Something waits to be sent, or the socket is to be closed."""
        if not self._is_lost and (self._writer is None or self._writer.done()):
            self._writer = asyncio.create_task(self._write())
            self._writer.add_done_callback(self._look_after)

    def _look_after(self, writer: asyncio.Task[None]) -> None:
        if writer.cancelled():
            return
        if writer.exception() is not None:
            self._give_up()
        elif self._writer is writer:
            self._writer = None

    async def _write(self) -> None:
        """Sends all that waits, and closes the socket where that is asked."""
        session = self._session
        try:
            while session.closing is None and (session.outbox.wake.is_set() or self._must_ping):
                await self._send_waiting()
            if session.closing is not None:
                await self._close(*session.closing)
        except TimeoutError:
            session.metrics.aborted.add("driver")
            self._give_up()
        except ConnectionError:
            self._give_up()  # the client has gone; the reader sees it too

    async def _close(self, code: int, reason: str) -> None:
        if code == CLOSE_GOING_AWAY:
            await self._session.settle(SETTLE_S_MAX)
        await self._send_waiting()
        async with asyncio.timeout(CLOSE_S_MAX):
            await self._ws.close(code=code, message=reason.encode())

    async def _send_waiting(self) -> None:
        """Raises TimeoutError when the client does not read."""
        outbox, must_ping = self._session.outbox, self._must_ping
        self._must_ping = False
        outbox.published(self._session.track.published)
        frames = outbox.take()
        if outbox.overflowed:
            raise TimeoutError
        async with asyncio.timeout(SEND_S_MAX):
            if must_ping:
                await self._ws.ping()
            for data in frames:
                await self._send(data)

    def _send(self, data: bytes) -> Awaitable[None]:
        if self._session.form.is_binary:
            return self._ws.send_bytes(data)
        return self._ws.send_frame(data, WSMsgType.TEXT)
