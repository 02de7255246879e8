"""A query's results are put together from its packets, however they arrive."""

from __future__ import annotations

import pymysql
import pytest

from matcher import mysql_wire
from matcher.mysql_wire import Layouts, ReplyReader, packets_of
from matcher.sessions import Reply

MORE = 0x0008
LONGLONG, DOUBLE, VAR_STRING, NEWDECIMAL = 8, 5, 253, 246
UTF8, BINARY = 45, 63


class Server:
    """Writes packets as a server does, numbered from 1 on."""

    def __init__(self) -> None:
        self.sent = b""
        self._number = 0

    def packet(self, payload: bytes) -> Server:
        while True:
            part, payload = payload[: mysql_wire.PAYLOAD_MAX], payload[mysql_wire.PAYLOAD_MAX :]
            self._number += 1
            self.sent += len(part).to_bytes(3, "little") + bytes([self._number % 256]) + part
            if len(part) < mysql_wire.PAYLOAD_MAX:
                return self

    def ok(self, changed: int, status: int = 2) -> Server:
        return self.packet(b"\x00" + number(changed) + b"\x00" + status.to_bytes(2, "little") + b"\x00\x00")

    def rows(self, columns: list[tuple[int, int]], *rows: tuple[bytes | None, ...], status: int = 2) -> Server:
        self.packet(number(len(columns)))
        for kind, charset in columns:
            self.packet(described(kind, charset))
        self.end(0x0022)
        for row in rows:
            self.packet(b"".join(b"\xfb" if value is None else number(len(value)) + value for value in row))
        return self.end(status)

    def end(self, status: int) -> Server:
        return self.packet(b"\xfe\x00\x00" + status.to_bytes(2, "little"))

    def error(self, code: int, text: str) -> Server:
        return self.packet(b"\xff" + code.to_bytes(2, "little") + b"#HY000" + text.encode())


def number(value: int) -> bytes:
    """Length-encoded."""
    if value < 251:
        return bytes([value])
    for first, width in ((0xFC, 2), (0xFD, 3), (0xFE, 8)):
        if value < 1 << 8 * width:
            return bytes([first]) + value.to_bytes(width, "little")
    raise AssertionError(value)


def described(kind: int, charset: int) -> bytes:
    names = b"".join(number(len(name)) + name for name in (b"def", b"db", b"t", b"t", b"c", b"c"))
    return names + b"\x0c" + charset.to_bytes(2, "little") + bytes(4) + bytes([kind]) + bytes(5)


COLUMNS = [(LONGLONG, BINARY), (DOUBLE, BINARY), (VAR_STRING, UTF8), (VAR_STRING, BINARY), (VAR_STRING, UTF8)]
ROW = (b"-7", b"1.5e3", "Zürich".encode(), b"\x00\xff", None)
VALUES = [-7, 1500.0, "Zürich", b"\x00\xff", None]


def read(sent: bytes, size: int = 1 << 30, layouts: Layouts | None = None, n: int = 4) -> list[Reply]:
    reader = ReplyReader([f"statement {each}" for each in range(n)], layouts or Layouts())
    parts = [sent[at : at + size] for at in range(0, len(sent), size)]
    done = [reader.feed(part) for part in parts]
    assert done == [False] * (len(parts) - 1) + [True]
    return reader.replies


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1 << 30])
def test_several_results_are_read_alike_in_pieces_of_any_size(size: int) -> None:
    server = Server().ok(3, MORE).rows(COLUMNS, ROW, ROW, status=MORE).rows(COLUMNS, status=MORE).ok(70_000)
    layouts = Layouts()
    for _ in range(2):  # the second time the columns are known
        replies = read(server.sent, size, layouts)
        assert [(list(map(list, reply.rows)), reply.matched) for reply in replies] == [
            ([], 3),
            ([VALUES, VALUES], 2),
            ([], 0),
            ([], 70_000),
        ]


def test_columns_that_changed_since_are_read_anew() -> None:
    """As after a migration: what was a number is text now."""
    layouts = Layouts()
    assert read(Server().rows([(LONGLONG, BINARY)], (b"12",)).sent, layouts=layouts)[0].rows == [[12]]
    assert read(Server().rows([(VAR_STRING, UTF8)], (b"12",)).sent, layouts=layouts)[0].rows == [["12"]]
    more = Server().rows([(LONGLONG, BINARY), (DOUBLE, BINARY)], (b"12", b"1"))
    assert read(more.sent, layouts=layouts)[0].rows == [[12, 1.0]]


def test_long_values_and_values_longer_than_a_packet_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_wire, "PAYLOAD_MAX", 1000)
    for length in (250, 251, 997, 998, 70_000):
        value = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
        sent = Server().rows([(VAR_STRING, BINARY)], (value,), (b"",)).sent
        assert [list(row) for row in read(sent, 777)[0].rows] == [[value], [b""]]


@pytest.mark.parametrize("length", [0, 998, 999, 1000, 1998, 1999, 5000])
def test_a_query_longer_than_a_packet_is_sent_in_several(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(mysql_wire, "PAYLOAD_MAX", 1000)
    sent, payload, numbers, size = packets_of(b"x" * length), b"", [], 1000
    while size == 1000:
        size, found = int.from_bytes(sent[:3], "little"), sent[3]
        payload, sent = payload + sent[4 : 4 + size], sent[4 + size :]
        numbers.append(found)
    assert sent == b""
    assert payload == b"\x03" + b"x" * length
    assert numbers == list(range(len(numbers)))


def test_an_error_is_raised_wherever_it_stands() -> None:
    for server in (Server(), Server().ok(1, MORE), Server().packet(b"\x01").packet(described(LONGLONG, 63)).end(2)):
        with pytest.raises(pymysql.err.OperationalError, match="deadlock") as caught:
            read(server.error(1213, "deadlock").sent)
        assert caught.value.args[0] == 1213


@pytest.mark.parametrize(
    "sent",
    [
        Server().ok(1).ok(1).sent,
        Server().packet(b"\xfb/etc/passwd").sent,
        Server().packet(b"\x01").packet(described(LONGLONG, 63)).packet(described(LONGLONG, 63)).sent,
        Server().packet(b"\x01").packet(b"no description").end(2).sent,
        Server().rows([(LONGLONG, 63)], (b"no number",)).sent,
        Server().rows([(NEWDECIMAL, 63)], (b"no number",)).sent,
        Server().packet(b"\xff").sent,
        Server().packet(b"").sent,
        b"\x07\x00\x00\x00\xff\xbf\x0f#1234gone",
    ],
)
def test_what_no_server_in_step_would_say_ends_the_connection(sent: bytes) -> None:
    """Nothing after it could be trusted: such errors count as a lost connection."""
    with pytest.raises(pymysql.err.OperationalError) as caught:
        read(sent)
    assert caught.value.args[0] in (2013, 2014)


def test_what_is_remembered_of_statements_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """P10"""
    monkeypatch.setattr(mysql_wire, "LAYOUTS_MAX", 3)
    layouts = Layouts()
    for each in range(10):
        layouts.keep(each, mysql_wire.Layout(b"", ()))
        assert sum(layouts.get(key) is not None for key in range(10)) <= 3
