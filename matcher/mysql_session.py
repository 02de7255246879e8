"""A transaction on MySQL or MariaDB: steps become one query's text, values in it as literals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pymysql

from matcher.mysql_wire import Wire
from matcher.sessions import MYSQL_ERRORS, Reply, mysql_fault
from matcher.statement import Compiled, Params, Statement, Step

#: What a query of several rows may be long; a server takes 16 MiB unless told otherwise.
INSERT_BYTES_MAX = 1_000_000


def literal(value: Any) -> bytes:
    """The value in SQL, in UTF-8. Inside quotes a backslash and the quote itself are all that must be escaped."""
    if value is None:
        return b"NULL"
    if isinstance(value, str):
        if "'" in value or "\\" in value:
            value = value.replace("\\", "\\\\").replace("'", "\\'")
        return b"'%s'" % value.encode()
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise pymysql.err.DataError(f"{value} is no number in SQL")
        return repr(float(value)).encode() + (b"" if "e" in repr(float(value)) else b"e0")
    if isinstance(value, bytes):
        return b"_binary'%s'" % value.replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    raise TypeError(f"{type(value).__name__} is nothing that is stored")


def text_of_step(step: Step) -> bytes:
    compiled = step.statement.compiled("mysql")
    if step.rows is not None:
        head, row_text, tail = compiled.insert_parts
        rows = b",".join(_row_text(compiled, row_text, row) for row in step.rows)
        return b"%s%s%s" % (head, rows, tail)
    text, values = compiled.render(step.params)
    return text.encode() % tuple([literal(value) for value in values])


def _row_text(compiled: Compiled, row_text: bytes, row: Params) -> bytes:
    return row_text % tuple([literal(value) for value in compiled.render(row)[1]])


def _in_queries(statement: Statement, rows: Sequence[Params]) -> Iterator[bytes]:
    """As few queries as their length allows."""
    compiled = statement.compiled("mysql")
    head, row_text, tail = compiled.insert_parts
    some: list[bytes] = []
    size = 0
    for row in rows:
        text = _row_text(compiled, row_text, row)
        if some and size + len(text) > INSERT_BYTES_MAX:
            yield head + b",".join(some) + tail
            some, size = [], 0
        some.append(text)
        size += len(text) + 1
    if some:
        yield head + b",".join(some) + tail


class MySqlSession:
    """Several statements of a transaction travel as one query where the store sends them together."""

    __slots__ = ("_wire", "refused", "settling")

    def __init__(self, wire: Wire, settling: bool) -> None:
        self._wire = wire
        self.settling = settling
        self.refused = False

    async def run(self, *steps: Step) -> list[Reply]:
        try:
            text = b";\n".join([text_of_step(step) for step in steps])
            if len(text) > INSERT_BYTES_MAX and any(step.rows is not None for step in steps):
                return await self._one_by_one(steps)
            return await self._wire.query(text, [step.statement for step in steps])
        except MYSQL_ERRORS as error:
            raise mysql_fault(error) from error

    async def _one_by_one(self, steps: Sequence[Step]) -> list[Reply]:
        """What would be too long together."""
        replies: list[Reply] = []
        for step in steps:
            if step.rows is None:
                replies += await self._wire.query(text_of_step(step), [step.statement])
            else:
                await self.insert(step.statement, step.rows)
                replies.append(Reply((), len(step.rows)))
        return replies

    async def insert(self, statement: Statement, rows: Sequence[Params]) -> None:
        try:
            for text in _in_queries(statement, rows):
                await self._wire.query(text)
        except MYSQL_ERRORS as error:
            raise mysql_fault(error) from error

    async def begin(self) -> None:
        """Nothing to send: the writers' connections are not in autocommit."""

    async def begin_snapshot(self) -> None:
        await self._send(
            b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
        )

    async def commit(self) -> None:
        await self._send(b"COMMIT")

    async def rollback(self) -> None:
        await self._send(b"ROLLBACK")

    async def _send(self, text: bytes) -> None:
        try:
            await self._wire.query(text)
        except MYSQL_ERRORS as error:
            raise mysql_fault(error) from error
