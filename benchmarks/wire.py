"""A lean WebSocket client for load: thousands of sockets a process, one write a frame, no task of its own.

It knows just enough of RFC 6455 to speak to a server that it trusts: text, binary, ping, pong and close. Its
frames carry a mask of zeros, which the protocol allows and which leaves the payload as it is, so that a frame may
be built once and written many times, to any socket. What it does not know (fragments, extensions) ends the
connection with a reason, rather than being read wrongly.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct
from collections.abc import Callable
from typing import Any, cast

MSGPACK = "hexhail.v1.msgpack"
JSON = "hexhail.v1.json"
CONNECT_S_MAX = 10.0
#: What a server may send at once: an answer to the handshake, or a frame.
HEAD_BYTES_MAX = 16_384
FRAME_BYTES_MAX = 1 << 20
CLOSE_NORMAL = 1000
CLOSE_PROTOCOL_ERROR = 1002
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MASKED = 0x80
_FIN = 0x80
_TEXT, _BINARY, _CLOSE, _PONG = 0x1, 0x2, 0x8, 0xA
_NO_MASK = bytes(4)
#: One key for all: the server proves by it that it speaks WebSocket, and nothing else.
_KEY = base64.b64encode(os.urandom(16))
_ACCEPT = base64.b64encode(hashlib.sha1(_KEY + _GUID, usedforsecurity=False).digest()).decode()

OnFrame = Callable[[bytes], None]
OnLost = Callable[[str], None]


class Refused(ConnectionError):
    """The server answered the handshake otherwise than with a WebSocket."""

    def __init__(self, status: int, detail: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"refused with {status}: {detail}")
        self.status = status
        self.retry_after_s = retry_after_s


def frame_of(payload: bytes) -> bytes:
    """A binary message as it goes over the wire."""
    return _frame(_BINARY, payload)


def text_frame_of(payload: bytes) -> bytes:
    """A text message as it goes over the wire; the payload is UTF-8."""
    return _frame(_TEXT, payload)


def _frame(kind: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((_FIN | kind, _MASKED | size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", _FIN | kind, _MASKED | 126, size)
    else:
        head = struct.pack("!BBQ", _FIN | kind, _MASKED | 127, size)
    return head + _NO_MASK + payload


class Wire(asyncio.Protocol):
    """One socket. `on_frame` gets each message's payload, `on_lost` the reason, once, when it is over (by whomever).

    Both are called from the event loop's reader, so they decide and do not wait; `on_frame` may be called before
    `connect` has returned. `close_code` is what the server closed with, None while it did not.
    """

    __slots__ = ("_on_frame", "_on_lost", "_opened", "_rest", "_transport", "close_code", "is_open", "paused")

    def __init__(self, on_frame: OnFrame, on_lost: OnLost, opened: asyncio.Future[None]) -> None:
        self.close_code: int | None = None
        self.is_open = False
        self.paused = False  # the server does not read: what is written now is kept in memory
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._opened = opened
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        path: str,
        *,
        token: str | None = None,
        on_frame: OnFrame,
        on_lost: OnLost,
        subprotocol: str = MSGPACK,
        source: str | None = None,
        connect_s: float = CONNECT_S_MAX,
    ) -> Wire:
        """A socket that is open. `source` is the own address: each has some 28,000 ports.

        Raises Refused, TimeoutError after `connect_s`, or OSError; `on_lost` is not called then.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        local = None if source is None else (source, 0)
        async with asyncio.timeout(connect_s):
            _, wire = await loop.create_connection(lambda: cls(on_frame, on_lost, opened), host, port, local_addr=local)
            try:
                wire.write(_request(host, port, path, token, subprotocol))
                await opened
            except BaseException:
                wire.abort()
                raise
        return wire

    # What a user does.

    def send(self, payload: bytes) -> None:
        """One binary message, written now."""
        self.write(_frame(_BINARY, payload))

    def send_text(self, payload: bytes) -> None:
        """One text message, written now."""
        self.write(_frame(_TEXT, payload))

    def write(self, raw: bytes) -> None:
        """Frames that `frame_of` has made, written now; nothing happens on a socket that is over."""
        if self._transport is not None:
            self._transport.write(raw)

    def close(self, code: int = CLOSE_NORMAL) -> None:
        """Says goodbye and ends the connection, without waiting for the server's goodbye."""
        if self._transport is not None:
            self.write(_frame(_CLOSE, struct.pack("!H", code)))
            self._transport.close()

    def abort(self) -> None:
        """Ends the connection at once, as a phone without a signal does."""
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        why = f"closed with {self.close_code}" if self.close_code is not None else repr(error or "connection ended")
        if self.is_open:
            self.is_open = False
            self._on_lost(why)
        elif not self._opened.done():
            self._opened.set_exception(ConnectionResetError(why))

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        if not self.is_open:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                if len(data) > HEAD_BYTES_MAX:
                    self._refuse(Refused(0, "an endless answer"))
                return
            if not self._open(data[:end], data[end + 4 :]):
                return
            data = data[end + 4 :]
        try:
            self._rest = self._read(data)
        except ValueError as error:
            self._fail(str(error))

    def _open(self, head: bytes, body: bytes) -> bool:
        status, headers = _answer(head)
        if status != 101 or headers.get("sec-websocket-accept") != _ACCEPT:
            retry_after = headers.get("retry-after", "")
            detail = body[:200].decode(errors="replace")
            self._refuse(Refused(status, detail, float(retry_after) if retry_after.isdigit() else 0.0))
            return False
        if self._opened.done():  # nobody waits for it any more
            self.abort()
            return False
        self.is_open = True
        self._opened.set_result(None)
        return True

    def _refuse(self, refused: Refused) -> None:
        if not self._opened.done():
            self._opened.set_exception(refused)
        self.abort()

    def _fail(self, why: str) -> None:
        """The server said what we do not understand."""
        self.close(CLOSE_PROTOCOL_ERROR)
        self._rest = b""
        if self.is_open:
            self.is_open = False
            self._on_lost(why)

    def _read(self, data: bytes) -> bytes:
        """Takes all whole frames; returns what is left. Raises ValueError for what this client does not know."""
        at, end = 0, len(data)
        while end - at >= 2 and self.is_open:
            kind, size = data[at], data[at + 1]
            start = at + 2
            if size >= 126:
                start += 2 if size == 126 else 8 if size == 127 else 0
                if start > end:
                    break
                size = _long_size(size, data[at + 2 : start])
            if start + size > end:
                break
            at = start + size
            if kind == _FIN | _BINARY:
                self._on_frame(data[start:at])
            else:
                self._take(kind, data[start:at])
        return data[at:]

    def _take(self, kind: int, payload: bytes) -> None:
        """What is not a plain binary message."""
        match kind ^ _FIN:
            case 0x1:
                self._on_frame(payload)
            case 0x9:
                self.write(_frame(_PONG, payload))
            case 0xA:
                pass
            case 0x8:
                self.close_code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
                self.close(CLOSE_NORMAL)
            case _:
                raise ValueError(f"a frame that starts with {kind:#04x}: fragments and extensions are not understood")


def _long_size(size: int, data: bytes) -> int:
    if size > 127:
        raise ValueError("a server's frame with a mask")
    found = int.from_bytes(data, "big")
    if found > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {found} bytes")
    return found


def _request(host: str, port: int, path: str, token: str | None, subprotocol: str) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {_KEY.decode()}",
        f"Sec-WebSocket-Protocol: {subprotocol}",
    ]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode()


def _answer(head: bytes) -> tuple[int, dict[str, Any]]:
    """The status and headers of an answer; 0 when it is no HTTP."""
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    headers = (line.partition(":") for line in lines)
    return status, {name.strip().lower(): value.strip() for name, _, value in headers}
