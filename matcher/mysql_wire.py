"""MySQL's protocol behind the handshake: a query's text out, all of its results in, read in one pass.

aiomysql connects and signs in; from then on its connection is only kept to be
closed. Why not its cursors: they await each packet and parse, for each column of
each result, a description of some sixty bytes; of a ride's row that took ten
times as long as the row itself. Here a statement's descriptions are compared
with those it had before, and parsed where they differ.

Packets: three bytes of length, one of sequence, the payload; a result is its
number of columns, as many descriptions, an end, the rows, an end (the client/server
protocol as documented by MySQL, "Text Resultset", without DEPRECATE_EOF).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn, TypeAlias

import pymysql
from aiomysql import Connection
from pymysql.constants import CR, FIELD_TYPE, SERVER_STATUS
from pymysql.protocol import FieldDescriptorPacket

from matcher.sessions import Reply
from matcher.statement import Row

Converter: TypeAlias = Callable[[bytes], Any] | None

#: A payload of this length goes on in the next packet.
PAYLOAD_MAX = 0xFFFFFF
#: Statements by their place in a query; the descriptions of one are a few kilobytes.
LAYOUTS_MAX = 2000
_QUERY, _QUIT = b"\x03", b"\x01\x00\x00\x00\x01"
_OK, _ERROR, _END, _LOCAL_FILE, _NULL = 0x00, 0xFF, 0xFE, 0xFB, 0xFB
_HEAD = 4
_BINARY_CHARSET = 63
_INTEGERS = frozenset(
    {FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG, FIELD_TYPE.YEAR}
)
_FLOATS = frozenset({FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE})
_DECIMALS = frozenset({FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL})


class Layout(NamedTuple):
    """The packets that describe a result's columns, and what makes Python values of those."""

    packets: bytes
    converters: tuple[Converter, ...]


class Layouts:
    """What statements answered before, by the statement and the sequence number of its first packet."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Layout] = {}

    def get(self, key: Hashable) -> Layout | None:
        return self._known.get(key)

    def keep(self, key: Hashable, layout: Layout) -> None:
        if len(self._known) >= LAYOUTS_MAX:
            self._known.clear()
        self._known[key] = layout


class ReplyReader:
    """Puts a query's results together from bytes as they arrive; knows no socket.

    `statements` are what the query consists of, in order, or none where nothing is to be remembered.
    """

    def __init__(self, statements: Sequence[Hashable], layouts: Layouts) -> None:
        self.replies: list[Reply] = []
        self._statements = statements
        self._layouts = layouts
        self._parts: list[bytes] = []
        self._size = 0
        self._wanted = _HEAD
        self._stage = self._first
        self._is_whole = False
        self._key: Hashable = None
        self._columns: list[bytes] = []
        self._n_columns = 0
        self._converters: tuple[Converter, ...] = ()
        self._rows: list[Row] = []

    def feed(self, data: bytes) -> bool:
        """Whether all has arrived. Raises what the server answered instead (pymysql.err.Error)."""
        self._parts.append(data)
        self._size += len(data)
        if self._size < self._wanted:
            return False
        buffer = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        try:
            at = self._read(buffer)
        except pymysql.err.Error:
            raise
        except Exception as error:  # what pymysql raises for a description that is none are errors of many kinds
            raise out_of_step(f"a packet that cannot be read ({error})") from error
        if self._is_whole and at < len(buffer):
            raise out_of_step("more than was asked for")
        self._parts = [buffer[at:]]
        self._size = len(buffer) - at
        return self._is_whole

    def _read(self, buffer: bytes) -> int:
        """Takes what has arrived whole; returns where the rest begins."""
        at, end = 0, len(buffer)
        while not self._is_whole and end - at >= _HEAD:
            size = buffer[at] | buffer[at + 1] << 8 | buffer[at + 2] << 16
            stop = at + _HEAD + size
            if stop > end:
                self._wanted = stop - at
                return at
            if size == PAYLOAD_MAX:
                long = _joined(buffer, at)
                if long is None:
                    self._wanted = end - at + 1
                    return at
                packet, at = long
                self._stage(packet, _HEAD, len(packet))
            else:
                at = self._stage(buffer, at + _HEAD, stop)
        self._wanted = _HEAD
        return at

    def _first(self, buffer: bytes, at: int, stop: int) -> int:
        kind = buffer[at]
        if not self.replies and buffer[at - 1] == 0:
            raise _lost("the server ended the connection")  # this is no answer: it had not read the query
        if kind == _ERROR:
            _refuse(buffer[at:stop])
        if kind == _LOCAL_FILE:
            raise out_of_step("the server asks for a file")
        number, behind = _number(buffer, at + (kind == _OK))
        if kind == _OK:
            _, behind = _number(buffer, behind)
            self._ended(Reply((), number), buffer[behind] | buffer[behind + 1] << 8)
            return stop
        return self._begin(number, buffer, at, stop)

    def _begin(self, n_columns: int, buffer: bytes, at: int, stop: int) -> int:
        """A result with rows: its columns are described as the last time, or are described in what follows."""
        self._rows = []
        n = len(self.replies)
        self._key = (self._statements[n], buffer[at - 1]) if n < len(self._statements) else None
        known = None if self._key is None else self._layouts.get(self._key)
        if known is not None and len(known.converters) == n_columns and buffer.startswith(known.packets, stop):
            self._converters = known.converters
            self._stage = self._columns_end
            return stop + len(known.packets)
        self._columns, self._n_columns = [], n_columns
        self._stage = self._column
        return stop

    def _column(self, buffer: bytes, at: int, stop: int) -> int:
        self._columns.append(buffer[at - _HEAD : stop])
        if len(self._columns) == self._n_columns:
            self._converters = tuple(_converter_of(packet[_HEAD:]) for packet in self._columns)
            if self._key is not None:
                self._layouts.keep(self._key, Layout(b"".join(self._columns), self._converters))
            self._stage = self._columns_end
        return stop

    def _columns_end(self, buffer: bytes, at: int, stop: int) -> int:
        if buffer[at] != _END:
            raise out_of_step("more columns than were announced")
        self._stage = self._row
        return stop

    def _row(self, buffer: bytes, at: int, stop: int) -> int:
        kind = buffer[at]
        if kind == _END and stop - at < 9:
            self._ended(Reply(self._rows, len(self._rows)), buffer[at + 3] | buffer[at + 4] << 8)
        elif kind == _ERROR:
            _refuse(buffer[at:stop])
        else:
            self._rows.append(_values(buffer, at, self._converters))
        return stop

    def _ended(self, reply: Reply, status: int) -> None:
        self.replies.append(reply)
        self._stage = self._first
        self._is_whole = not status & SERVER_STATUS.SERVER_MORE_RESULTS_EXISTS


def _joined(buffer: bytes, at: int) -> tuple[bytes, int] | None:
    """A payload of several packets behind one head, and where it ends; None while there is more to come."""
    parts = [buffer[at : at + _HEAD]]
    size = PAYLOAD_MAX
    while size == PAYLOAD_MAX:
        if at + _HEAD > len(buffer):
            return None
        size = int.from_bytes(buffer[at : at + 3], "little")
        if at + _HEAD + size > len(buffer):
            return None
        parts.append(buffer[at + _HEAD : at + _HEAD + size])
        at += _HEAD + size
    return b"".join(parts), at


def _values(buffer: bytes, at: int, converters: tuple[Converter, ...]) -> Row:
    row: list[Any] = []
    for convert in converters:
        size = buffer[at]
        at += 1
        if size == _NULL:
            row.append(None)
            continue
        if size > _NULL:
            size, at = _number(buffer, at - 1)
        stop = at + size
        row.append(buffer[at:stop] if convert is None else convert(buffer[at:stop]))
        at = stop
    return row


def _number(buffer: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer, and where it ends."""
    first = buffer[at]
    at += 1
    if first < _NULL:
        return first, at
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}[first] if first in (0xFC, 0xFD, 0xFE) else 0
    if not width:
        raise ValueError(f"{first:#x} is no length")
    return int.from_bytes(buffer[at : at + width], "little"), at + width


def _converter_of(payload: bytes) -> Converter:
    column: Any = FieldDescriptorPacket(payload, "utf8")
    kind = column.type_code
    if kind in _INTEGERS:
        return int
    if kind in _FLOATS:
        return float
    if kind in _DECIMALS:
        return _decimal
    is_text = kind == FIELD_TYPE.JSON or column.charsetnr != _BINARY_CHARSET
    return _text if is_text else None


def _text(data: bytes) -> str:
    return data.decode()


def _decimal(data: bytes) -> Decimal:
    return Decimal(data.decode())


def _refuse(payload: bytes) -> NoReturn:
    pymysql.err.raise_mysql_exception(payload)
    raise AssertionError("an error packet is raised as an error")


def _lost(reason: str) -> pymysql.err.OperationalError:
    return pymysql.err.OperationalError(CR.CR_SERVER_LOST, reason)


def out_of_step(reason: str) -> pymysql.err.OperationalError:
    """What both sides take the protocol for differs: the connection is of no more use."""
    return pymysql.err.OperationalError(CR.CR_COMMANDS_OUT_OF_SYNC, reason)


def packets_of(text: bytes) -> bytes:
    """The packets that send this query."""
    payload = _QUERY + text
    if len(payload) < PAYLOAD_MAX:
        return len(payload).to_bytes(3, "little") + b"\0" + payload
    parts = []
    for n, start in enumerate(range(0, len(payload) + 1, PAYLOAD_MAX)):
        part = payload[start : start + PAYLOAD_MAX]
        parts.append(len(part).to_bytes(3, "little") + bytes([n % 256]) + part)
    return b"".join(parts)


class Wire(asyncio.Protocol):
    """A connection that has signed in. One query at a time; whoever gives one up has to close it."""

    def __init__(self, connection: Connection, layouts: Layouts) -> None:
        """Takes the connection's transport over, which must have nothing under way."""
        self._connection = connection
        self._layouts = layouts
        self._loop = asyncio.get_running_loop()
        self._transport = connection._writer.transport
        self._reader: ReplyReader | None = None
        self._waiter: asyncio.Future[list[Reply]] | None = None
        self._lost: str | None = None
        self._transport.set_protocol(self)
        if self._transport.is_closing() or connection._reader.eof_received:  # the protocol before heard of it
            self._end("the server closed the connection")

    async def query(self, text: bytes, statements: Sequence[Hashable] = ()) -> list[Reply]:
        """The result of each statement in the text. Raises pymysql.err.Error and OSError; closed when cancelled."""
        if self._lost is not None:
            raise _lost(self._lost)
        if self._waiter is not None:
            raise out_of_step("a query is under way")
        self._reader = ReplyReader(statements, self._layouts)
        waiter: asyncio.Future[list[Reply]] = self._loop.create_future()
        self._waiter = waiter
        try:
            self._transport.write(packets_of(text))
            return await waiter
        except asyncio.CancelledError:
            self.close()
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # an answer came just now, and nobody else will look at it
            raise
        finally:
            self._waiter = self._reader = None

    def data_received(self, data: bytes) -> None:
        reader, waiter = self._reader, self._waiter
        if reader is None or waiter is None or waiter.done():
            self._end("the server spoke without being asked")
            return
        try:
            if reader.feed(data):
                waiter.set_result(reader.replies)
        except pymysql.err.Error as error:
            waiter.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("the connection was lost" if exc is None else f"the connection was lost ({exc})")

    def close(self) -> None:
        """At once: neither what was not sent yet nor TLS' farewell waits for a server that may not answer."""
        self._transport.abort()
        self._end("the connection was closed")

    def say_goodbye(self) -> None:
        """Closes in order: a server logs each client that goes without a word."""
        if self._lost is None:
            self._transport.write(_QUIT)
        self._end("the connection was closed")

    def _end(self, reason: str) -> None:
        if self._lost is None:
            self._lost = reason
        self._connection.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(_lost(self._lost))
