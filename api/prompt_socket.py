"""A WebSocket whose messages are handed over as they arrive, without a task being woken for each.

`receive()` costs a future, a wake-up of the reading task and a turn of the event loop a message, which is more than a
position frame costs otherwise. aiohttp 3.14 parses frames inside `data_received` and feeds them to a queue; the queue
here hands those of one kind to `on_message` at once, and the rest (pings, closes, messages of another kind) to
`receive()`. It stands on what aiohttp does not promise, so all of that is in this module: where the parser does not
feed a queue of ours (`hands_over` tries it), or a response does not ask for one, `receive()` gets every message.

Back-pressure is aiohttp's own (P10). After `TURNS` messages the queue takes one in, which wakes the reading task; what
follows waits behind it in order, and once the queue is full the transport is paused. So no socket keeps the event loop
for longer than before, and none is read faster than it is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any

from aiohttp import WSMsgType, web

try:
    from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
except ImportError:  # another aiohttp: nothing is handed over
    WebSocketDataQueue = WebSocketReader = object  # type: ignore[assignment]

#: Messages in a row that are handed over before the reading task has its turn.
TURNS = 64
#: What aiohttp's own response gives its queue.
QUEUE_BYTES = 65_536

OnMessage = Callable[[bytes], None]


class PromptQueue(WebSocketDataQueue):
    """Hands messages over as long as it is empty; otherwise they wait for `read`, in order."""

    __slots__ = ("_kind", "_on_message", "fault", "turns")

    def __init__(self, protocol: Any, loop: asyncio.AbstractEventLoop, kind: WSMsgType, on_message: OnMessage) -> None:
        super().__init__(protocol, QUEUE_BYTES, loop=loop)
        self.turns = TURNS
        self.fault: Exception | None = None  # what on_message raised
        self._kind = kind
        self._on_message = on_message

    def feed_data(self, data: Any, size: int) -> None:
        if self.turns and data[0] is self._kind and not self._buffer:
            self.turns -= 1
            try:
                self._on_message(data[1])
            except Exception as fault:  # noqa: BLE001 - a defect of ours: the reading task raises it
                self.fault, self.turns = fault, 0
                self.set_exception(fault)
        else:
            super().feed_data(data, size)

    async def read(self) -> Any:
        """The next message. A stalled parser goes on inside: what it then finds comes after this message."""
        if not self._buffer:
            return await super().read()
        turns, self.turns = self.turns, 0
        try:
            return await super().read()
        finally:
            self.turns = 0 if self.fault is not None else turns


class PromptSocket(web.WebSocketResponse[Any]):
    """`on_message` gets the messages of `kind` that arrive while `receive` waits, `receive` all others.

    The caller calls `go_on` before each `receive`. A heartbeat is the caller's, too, as aiohttp's costs a callback a
    message. `fault` is what `on_message` has raised; `receive` then returns an error.
    """

    def __init__(self, kind: WSMsgType, on_message: OnMessage, **options: Any) -> None:
        super().__init__(heartbeat=None, autoping=False, compress=False, decode_text=False, **options)
        self._handing: tuple[WSMsgType, OnMessage] | None = (kind, on_message)  # until the queue has it
        self._prompt: PromptQueue | None = None

    @property
    def fault(self) -> Exception | None:
        return None if self._prompt is None else self._prompt.fault

    def go_on(self) -> None:
        """What has arrived is dealt with: messages may be handed over again."""
        queue = self._prompt
        if queue is not None and queue.fault is None:
            queue.turns = TURNS

    def stop(self) -> None:
        """From now on nothing is handed over."""
        if self._prompt is not None:
            self._prompt.turns = 0

    def _post_start(self, request: Any, protocol: str | None, writer: Any) -> None:
        handing, self._handing = self._handing, None
        if handing is None or not hands_over():
            super()._post_start(request, protocol, writer)
            return
        self._ws_protocol, self._writer = protocol, writer
        loop = asyncio.get_running_loop()
        self._prompt = self._reader = PromptQueue(request._protocol, loop, *handing)
        self._parser = WebSocketReader(self._reader, self._max_msg_size, compress=False, decode_text=False)
        request.protocol.set_parser(self._parser)
        request.protocol.keep_alive(False)


class _Unpaused:
    """The part of a connection that a queue sees."""

    _reading_paused = False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@cache
def hands_over() -> bool:
    """Whether this aiohttp's parser feeds a queue of ours as it should: one binary message, and a ping behind it."""
    seen: list[bytes] = []
    loop = asyncio.new_event_loop()
    try:
        queue = PromptQueue(_Unpaused(), loop, WSMsgType.BINARY, lambda data: seen.append(bytes(data)))
        reader = WebSocketReader(queue, 1024, compress=False, decode_text=False)
        reader.feed_data(b"\x82\x82\x00\x00\x00\x00ab\x89\x80\x00\x00\x00\x00")
        return seen == [b"ab"] and [each[0].type for each in queue._buffer] == [WSMsgType.PING]
    except Exception:  # noqa: BLE001 - whatever is different, receive() works
        return False
    finally:
        loop.close()
