"""A transaction in progress on one connection, and what its database's errors mean.

Two sessions, one for MySQL and MariaDB (`mysql_session`) and one for SQLite over
aiosqlite, used alike by every store module. Driver errors are mapped here and
nowhere else.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import aiosqlite
import pymysql

from matcher.errors import StoreUnavailable
from matcher.statement import Params, Row, Statement, Step


class Conflict(StoreUnavailable):
    """A unique key refused a row. The connection is sound, the transaction must be rolled back."""


class Unstorable(StoreUnavailable):
    """A value does not fit its column: asking again will not help. The connection is sound."""


class SchemaMissing(StoreUnavailable):
    """A table or column is not there."""

    def __init__(self, text: str) -> None:
        super().__init__(f"the database's schema is missing or old, run `hexhail migrate` ({text})")


class Contended(Exception):
    """A deadlock, or a lock that was not to be had in time: worth doing again."""


class Raced(Exception):
    """What the transaction had read was changed by another before it could be taken: do it again."""


class Disconnected(Exception):
    """The connection is of no more use."""


#: After these the connection is in step with the server and only needs a rollback.
CLEAN = (Conflict, Unstorable, Contended, Raced)


class Reply(NamedTuple):
    rows: Sequence[Row]
    matched: int  # rows that a change found


class Session(Protocol):
    """What store modules may do inside a transaction.

    `settling`: an earlier attempt sent its COMMIT and never heard the answer, so
    that what is to be done may be done already. `refuse()` ends in a rollback
    although the work returns a value.
    """

    settling: bool
    refused: bool

    async def run(self, *steps: Step) -> list[Reply]: ...
    async def insert(self, statement: Statement, rows: Sequence[Params]) -> None: ...
    async def begin(self) -> None: ...
    async def begin_snapshot(self) -> None: ...
    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...


async def rows_of(session: Session, step: Step) -> Sequence[Row]:
    return (await session.run(step))[0].rows


async def row_of(session: Session, step: Step) -> Row | None:
    rows = (await session.run(step))[0].rows
    return rows[0] if rows else None


async def change(session: Session, step: Step) -> int:
    return (await session.run(step))[0].matched


#: RuntimeError: what uvloop raises for a write to a connection that the other side has closed.
MYSQL_ERRORS = (pymysql.err.Error, OSError, asyncio.IncompleteReadError, UnicodeEncodeError, RuntimeError)
_CONTENDED = frozenset({1020, 1205, 1213, 3058, 3572})  # changed since read, lock wait, deadlock, user lock, NOWAIT
_UNSTORABLE = frozenset({1048, 1264, 1265, 1292, 1366, 1406, 1690, 3140, 4025})
_SCHEMA = frozenset({1054, 1146})
#: Server shuts down, killed, aborted, idle too long (MySQL 8.0.24 and later); the driver's own are 2000 to 2999.
_DISCONNECTED = frozenset({0, 1053, 1077, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 1317, 1927, 3168, 3169, 4031})


def mysql_fault(error: BaseException) -> Exception:
    """What a driver's error means to the store."""
    if isinstance(error, UnicodeEncodeError):
        return Unstorable(str(error))
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = str(error.args[1]) if len(error.args) > 1 else str(error)
    if code == 1062:
        return Conflict(text)
    if code in _CONTENDED:
        return Contended(text)
    if code in _UNSTORABLE or isinstance(error, pymysql.err.DataError):
        return Unstorable(text)
    if code in _SCHEMA:
        return SchemaMissing(text)
    if code in _DISCONNECTED or 2000 <= code < 3000 or not isinstance(error, pymysql.err.Error):
        return Disconnected(text or type(error).__name__)
    return StoreUnavailable(f"the database refuses: {text} ({code})")


class SqliteSession:
    """One statement a hop to the connection's thread; FOR UPDATE is not needed with one writer."""

    __slots__ = ("_connection", "refused", "settling")

    def __init__(self, connection: aiosqlite.Connection, settling: bool) -> None:
        self._connection = connection
        self.settling = settling
        self.refused = False

    async def run(self, *steps: Step) -> list[Reply]:
        replies = []
        for statement, params, rows in steps:
            if rows is not None:
                await self.insert(statement, rows)
                replies.append(Reply((), len(rows)))
                continue
            text, values = statement.compiled("sqlite").render(params)
            replies.append(await self._one(text, values))
        return replies

    async def insert(self, statement: Statement, rows: Sequence[Params]) -> None:
        compiled = statement.compiled("sqlite")
        try:
            await self._connection.executemany(compiled.text, [compiled.render(row)[1] for row in rows])
        except SQLITE_ERRORS as error:
            raise sqlite_fault(error) from error

    async def begin(self) -> None:
        await self._one("BEGIN IMMEDIATE", ())

    async def begin_snapshot(self) -> None:
        await self._one("BEGIN", ())

    async def commit(self) -> None:
        await self._one("COMMIT", ())

    async def rollback(self) -> None:
        try:
            await self._connection.rollback()  # does nothing where the error itself rolled back
        except SQLITE_ERRORS as error:
            raise sqlite_fault(error) from error

    async def _one(self, text: str, values: tuple[Any, ...]) -> Reply:
        try:
            if text.startswith("SELECT"):
                return Reply(list(await self._connection.execute_fetchall(text, values)), -1)
            cursor = await self._connection.execute(text, values)
        except SQLITE_ERRORS as error:
            raise sqlite_fault(error) from error
        return Reply((), cursor.rowcount)


SQLITE_ERRORS = (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeEncodeError, ValueError)


def sqlite_fault(error: BaseException) -> Exception:
    text = str(error)
    if isinstance(error, sqlite3.IntegrityError):
        return Conflict(text) if "UNIQUE" in text or "PRIMARY" in text else Unstorable(text)
    if isinstance(error, (OverflowError, UnicodeEncodeError, sqlite3.DataError, sqlite3.InterfaceError)):
        return Unstorable(text)
    if "locked" in text or "busy" in text:
        return Contended(text)
    if "no such table" in text or "no such column" in text:
        return SchemaMissing(text)
    if isinstance(error, ValueError):  # aiosqlite: "Connection closed", "no active connection"
        return Disconnected(text)
    return StoreUnavailable(f"the database file refuses: {text}")
