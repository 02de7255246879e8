"""One driver's app: a WebSocket that comes back by itself, positions, offers, and trip commands.

Made to be cheap by the thousand: one task a driver (`run`, its reader), no
timer of its own, and positions that are written at once or not at all. While
the socket is away, or does not take more bytes, only the newest position is
kept (P10); commands wait for the next socket and are sent again under the same
`ref` until they are answered, which is safe because a repeated command answers
as the first did (P3).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import aiohttp
import msgspec

from api import schema
from api.client_http import RETRIED_STATUSES, ApiError, Backoff, GaveUp, refusal_of

MSGPACK = "hexhail.v1.msgpack"
#: Below asyncio's low-water mark of 16 KiB a transport is never paused, so that a write never waits.
UNSENT_BYTES_MAX = 8192
FRAME_BYTES_MAX = 1 << 20
#: A command refused with one of these is sent again after a while.
RETRIED_CODES = frozenset(
    {"store-unavailable", "positions-unavailable", "overloaded", "draining", "starting", "too-many-requests"}
)
CLOSE_GOING_AWAY = 1001
CLOSE_SUPERSEDED = 4000
CLOSE_SIGNED_OUT = 4002

_decoder = msgspec.msgpack.Decoder(schema.DownFrame)
_encoder = msgspec.msgpack.Encoder()
_COMMANDS: dict[str, type[schema.TripFrame]] = {
    "accept": schema.AcceptFrame,
    "decline": schema.DeclineFrame,
    "arrive": schema.ArriveFrame,
    "start": schema.StartFrame,
    "complete": schema.CompleteFrame,
    "cancel": schema.CancelFrame,
    "no_show": schema.NoShowFrame,
}


_STATUSES = {
    "online": _encoder.encode(schema.StatusFrame("online")),
    "on_break": _encoder.encode(schema.StatusFrame("on_break")),
    "offline": _encoder.encode(schema.StatusFrame("offline")),
}


class DriverSocket(aiohttp.ClientWebSocketResponse):
    """A WebSocket that knows its transport: how much it has not sent yet, and how to drop it at once."""

    def __init__(
        self, reader: Any, writer: Any, protocol: str | None, response: aiohttp.ClientResponse, *rest: Any, **named: Any
    ) -> None:
        super().__init__(reader, writer, protocol, response, *rest, **named)
        connection = response.connection
        self._transport = None if connection is None else connection.transport

    @property
    def takes_more(self) -> bool:
        """Whether a small frame would be written now, without waiting for the other side."""
        transport = self._transport
        if self.closed or transport is None or transport.is_closing():
            return False
        return transport.get_write_buffer_size() <= UNSENT_BYTES_MAX

    def drop(self) -> None:
        """Ends the connection without a goodbye; whoever reads from it hears at once."""
        if self._transport is not None:
            self._transport.abort()


class DriverListener(Protocol):
    """Who wants to hear from the socket; called from its reader, so it decides and does not wait."""

    def on_welcome(self, welcome: schema.WelcomeFrame) -> None:
        """A new socket, with the present state: what is not among its rides has ended. Its offers and its
        place in a queue are told by the other calls too, right after this one."""

    def on_ride(self, ride: schema.RideOut) -> None:
        """One of the driver's trips has changed, or ended."""

    def on_offer(self, ride: schema.RideOut, expires_in_s: float) -> None:
        """The ride waits for `accept` or `decline`. The same offer may come again, changed."""

    def on_offer_withdrawn(self, ride: schema.RideOut, code: str) -> None:
        """The offer has ended otherwise than by a command on this socket."""

    def on_status(self, status: str, code: str | None) -> None:
        """The driver's status is this now, and not by a command of its own."""

    def on_queue(self, queue: schema.QueueFrame) -> None:
        """The driver's place in a zone's queue has changed."""

    def on_lost(self, why: str) -> None: ...


class CommandRefused(Exception):
    """The service answered a trip command with an error; `error.ride` is the present state where it is told."""

    def __init__(self, error: schema.ErrorFrame) -> None:
        super().__init__(f"{error.code}: {error.detail}")
        self.error = error


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """Limits in seconds. `silent_s`: a socket on which positions went out and nothing, not even a ping,
    came in for so long counts as dead; it must exceed the time between the service's pings."""

    connect_s: float = 20.0
    close_s: float = 2.0
    silent_s: float = 45.0
    command_s: float = 90.0
    answer_s: float = 20.0
    backoff: Backoff = field(default_factory=lambda: Backoff(0.2, 10.0))


@dataclass(slots=True)
class Positions:
    """A driver's own count. `acked` counts those of which an `ack` said, on the socket that carried
    them, that they or a newer one of this driver stand in the feed; unanswered ones of a lost socket do not count."""

    sent: int = 0
    acked: int = 0


class DriverClient:
    """One run of one driver's app; `seq` and `instance` go on over reconnects, the epoch comes anew with each (P7)."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        driver_id: str,
        token: str | Callable[[], str],
        listener: DriverListener,
        *,
        market: str | None = None,
        options: DriverOptions | None = None,
        instance: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """The session comes from `client.new_session`; `token` may be a function, asked at each connect."""
        self.driver_id = driver_id
        self.positions = Positions()
        self.connects = 0
        self.superseded = False
        self._session = session
        self._url = f"{base_url.rstrip('/')}/v1/drivers/{driver_id}/stream"
        self._token = token if callable(token) else lambda: token
        self._listener = listener
        self._options = options or DriverOptions()
        self._rng = rng or random.Random()
        self._params = {"instance": str(instance or time.time_ns() // 1_000_000)} | (
            {"market": market} if market else {}
        )
        self._offline = False  # as the driver said last: a reconnect does not put it online again
        self._socket: DriverSocket | None = None
        self._welcomed = False
        self._closing = False
        self._signed_out = False
        self._abandoned = False  # since the last time the service threw us out
        self._seq = 0
        self._counted_seq = 0
        self._heard_at = 0.0
        self._away_until_s = 0.0
        self._latest: tuple[float, schema.PositionFrame] | None = None
        self._commands: dict[int, tuple[bytes, asyncio.Future[schema.DoneFrame | schema.ErrorFrame]]] = {}
        self._ref = 0
        self._paused: asyncio.Future[None] | None = None
        self._jitter_s = 1.0

    @property
    def is_connected(self) -> bool:
        return self._welcomed

    @property
    def away_s(self) -> float:
        """How long the network will still be away; 0: it is there."""
        return max(0.0, self._away_until_s - time.monotonic())

    def lose_network(self, seconds: float) -> None:
        """As a phone without a signal: the socket is dropped without a goodbye, and none is tried for so long."""
        self._away_until_s = time.monotonic() + seconds
        if self._socket is not None:
            self._socket.drop()

    @property
    def _is_over(self) -> bool:
        return self._closing or self.superseded or self._signed_out

    async def run(self) -> None:
        """Connects, reads and reconnects until `close`, or until the driver is signed out or a newer session took over.

        Raises ApiError when the service refuses the driver for good (401, 403, 404).
        """
        tries = 0
        while not self._is_over:
            if (away_s := self.away_s) > 0.0:
                await self._pause(away_s)
                continue
            wait_s = self._options.backoff.wait_s(tries, self._rng)
            tries += 1
            try:
                async with asyncio.timeout(self._options.connect_s):
                    socket, welcome = await self._connect()
            except ApiError as refusal:
                if refusal.status not in RETRIED_STATUSES:
                    raise
                self._listener.on_lost(str(refusal))
                # Everybody who was refused with us was told the same time: do not come back with all of them.
                wait_s += self._rng.uniform(1.0, 2.0) * refusal.retry_after_s
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self._abandoned = True
                self._listener.on_lost(f"{type(error).__name__}: {error}")
            else:
                tries = 0
                wait_s = await self._session_of(socket, welcome)
            if not self._is_over:
                await self._pause(wait_s)

    async def close(self) -> None:
        """Says goodbye within `close_s`; `run` ends. Commands without an answer raise GaveUp."""
        self._closing = True
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)
        for _, answer in self._commands.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("the driver's app was closed"))
        if self._socket is not None:
            await self._socket.close()

    async def _pause(self, wait_s: float) -> None:
        """A sleep that `close` ends."""
        self._paused = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._paused], timeout=wait_s)
        self._paused = None

    async def position(
        self, lat: float, lon: float, *, heading_deg: float | None = None, speed_mps: float | None = None
    ) -> bool:
        """Writes a position now, or keeps it as the newest for the next socket (False)."""
        frame = schema.PositionFrame(seq=0, lat=lat, lon=lon, heading=heading_deg, speed=speed_mps)
        self._latest = (time.monotonic(), frame)
        socket = self._socket
        if socket is None or not self._welcomed:
            return False
        if self._seq > self._counted_seq and time.monotonic() - self._heard_at > self._options.silent_s:
            socket.drop()  # no answer for so long: the other side is gone, whatever TCP thinks
            return False
        return socket.takes_more and await self._send_latest(socket)

    async def set_status(self, status: str) -> bool:
        """`online`, `on_break` or `offline`; False when it could not be said now."""
        frame = _STATUSES[status]
        self._offline = status == "offline"
        socket = self._socket
        if socket is None or not self._welcomed or not socket.takes_more:
            return False
        return await self._write(socket, frame)

    async def command(self, verb: str, trip_id: str, *, reason: str | None = None) -> schema.RideOut | None:
        """`verb`: accept, decline, arrive, start, complete, cancel or no_show; answers with the ride after it.

        Sent again after every reconnect, and when no answer comes, for `command_s` at most.
        Raises CommandRefused, or GaveUp when the outcome stayed unknown.
        """
        self._ref += 1
        ref, tries = self._ref, 0
        frame = _encoder.encode(_COMMANDS[verb](trip_id=trip_id, reason=reason, ref=ref))
        try:
            async with asyncio.timeout(self._options.command_s):
                while True:
                    answer = await self._asked(ref, frame)
                    if isinstance(answer, schema.DoneFrame):
                        return answer.ride
                    if answer is not None and answer.code not in RETRIED_CODES:
                        raise CommandRefused(answer)
                    await asyncio.sleep(self._options.backoff.wait_s(tries, self._rng))
                    tries += 1
        except (TimeoutError, ConnectionResetError) as error:
            raise GaveUp(f"{verb} of {trip_id}", error, may_have_happened=True) from error
        finally:
            self._commands.pop(ref, None)

    async def _asked(self, ref: int, frame: bytes) -> schema.DoneFrame | schema.ErrorFrame | None:
        """The answer to one sending (and its repetitions after reconnects); None when none came in `answer_s`."""
        if self._closing:
            raise ConnectionResetError("the driver's app was closed")
        answer = asyncio.get_running_loop().create_future()
        self._commands[ref] = (frame, answer)
        if self._socket is not None and self._welcomed:
            await self._write(self._socket, frame)
        done, _ = await asyncio.wait([answer], timeout=self._options.answer_s)
        return answer.result() if done else None

    async def _connect(self) -> tuple[DriverSocket, schema.WelcomeFrame]:
        """A socket and its first frame. Raises ApiError when refused, ValueError when it is no welcome."""
        headers = {"Authorization": f"Bearer {self._token()}"}
        try:
            socket = await self._session.ws_connect(
                self._url,
                params=self._params | ({"online": "false"} if self._offline else {}),
                protocols=(MSGPACK,),
                headers=headers,
                timeout=aiohttp.ClientWSTimeout(ws_close=self._options.close_s),
                max_msg_size=FRAME_BYTES_MAX,
                compress=0,
                autoping=False,  # a ping is a sign of life that the reader is to see
            )
        except aiohttp.WSServerHandshakeError as error:
            raise refusal_of(error.status, error.headers or {}, error.message.encode()) from error
        if not isinstance(socket, DriverSocket):
            raise TypeError("the session must come from client.new_session")
        self._socket = socket
        message = await socket.receive()
        welcome = _decoder.decode(message.data) if message.type is aiohttp.WSMsgType.BINARY else None
        if not isinstance(welcome, schema.WelcomeFrame):
            self._note_close(socket)
            socket.drop()
            raise ValueError(f"no welcome but {message.type.name} {message.data!r:.100}")
        return socket, welcome

    async def _session_of(self, socket: DriverSocket, welcome: schema.WelcomeFrame) -> float:
        """From the welcome to the end of the socket; returns how long to wait before the next."""
        if self.away_s > 0.0:  # lost while it was being made
            socket.drop()
        if self._closing or self.away_s > 0.0:
            await socket.close()
            return 0.0
        self.connects += 1
        self._counted_seq = self._seq
        self._heard_at = time.monotonic()
        self._jitter_s = welcome.reconnect_jitter_s
        self._welcomed = True
        try:
            self._tell_welcome(welcome)
            if self._latest is not None:
                await self._send_latest(socket)
            for frame, _ in list(self._commands.values()):
                await self._write(socket, frame)
            await self._read(socket)
        except (aiohttp.ClientError, OSError, ValueError):
            socket.drop()  # ValueError: a frame that is none of ours
        finally:
            self._welcomed = False
            self._socket = None
        self._note_close(socket)
        await socket.close()
        if not self._closing:
            self._listener.on_lost(f"closed with {socket.close_code}")
        if socket.close_code == CLOSE_GOING_AWAY:  # everybody was sent away at once: do not come back at once
            return self._rng.uniform(0.0, self._jitter_s)
        return self._options.backoff.wait_s(0, self._rng)

    def _note_close(self, socket: DriverSocket) -> None:
        if socket.close_code == CLOSE_SUPERSEDED:
            # An attempt that we gave up may have signed on late: then it was our own ghost, and we come back.
            self.superseded, self._abandoned = not self._abandoned, False
        self._signed_out = self._signed_out or socket.close_code == CLOSE_SIGNED_OUT

    def _tell_welcome(self, welcome: schema.WelcomeFrame) -> None:
        self._listener.on_welcome(welcome)
        for ride in welcome.rides:
            if ride.trip is not None and ride.trip.expires_at is not None:
                self._listener.on_offer(ride, seconds_between(welcome.now, ride.trip.expires_at))
        if welcome.queue is not None:
            self._listener.on_queue(welcome.queue)

    async def _read(self, socket: DriverSocket) -> None:
        while True:
            message = await socket.receive()
            self._heard_at = time.monotonic()
            if message.type is aiohttp.WSMsgType.BINARY:
                self._take_data(message.data)
            elif message.type is aiohttp.WSMsgType.PING:
                await socket.pong(message.data)
            elif message.type is not aiohttp.WSMsgType.PONG:
                return  # closed, closing or broken; the service sends nothing else

    def _take_data(self, data: bytes) -> None:
        """Raises ValueError for what is no frame; one that only a newer service knows is passed over."""
        try:
            frame = _decoder.decode(data)
        except msgspec.ValidationError:
            return
        self._take(frame)

    def _take(self, frame: schema.DownFrame) -> None:
        if isinstance(frame, schema.AckFrame):
            if frame.seq > self._counted_seq:
                self.positions.acked += frame.seq - self._counted_seq
                self._counted_seq = frame.seq
        elif isinstance(frame, schema.TripChangedFrame):
            self._listener.on_ride(frame.ride)
        elif isinstance(frame, schema.OfferFrame):
            self._listener.on_offer(frame.ride, frame.expires_in_s)
        elif isinstance(frame, schema.OfferWithdrawnFrame):
            self._listener.on_offer_withdrawn(frame.ride, frame.code)
        elif isinstance(frame, schema.StatusChangedFrame):
            self._listener.on_status(frame.status, frame.code)
        elif isinstance(frame, schema.QueueFrame):
            self._listener.on_queue(frame)
        elif isinstance(frame, schema.DoneFrame | schema.ErrorFrame) and isinstance(frame.ref, int):
            _, answer = self._commands.get(frame.ref, (b"", None))
            if answer is not None and not answer.done():
                answer.set_result(frame)

    async def _send_latest(self, socket: DriverSocket) -> bool:
        """A number is used up by writing only, so that what an ack counts was really sent."""
        if self._latest is None:
            return False
        taken_at, frame = self._latest
        frame.seq = self._seq + 1
        frame.age_ms = int((time.monotonic() - taken_at) * 1000)
        if not await self._write(socket, _encoder.encode(frame)):
            return False
        self._seq += 1
        self.positions.sent += 1
        return True

    async def _write(self, socket: DriverSocket, frame: bytes) -> bool:
        try:
            await socket.send_bytes(frame)
        except (aiohttp.ClientError, ConnectionResetError):
            return False  # the reader finds the same and reconnects
        return True


def seconds_between(start: str | None, end: str) -> float:
    """Seconds from one RFC 3339 time of the service to another, never negative; without a start, 0."""
    if start is None:
        return 0.0
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
