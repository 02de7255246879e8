"""How a connection is opened, set up and thrown away; one kind for MySQL, one for SQLite.

Throwing away awaits nothing, so that it is safe in the middle of a cancellation.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import ssl
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import aiomysql
import aiosqlite
import pymysql
from pymysql.constants import CLIENT, CR
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from matcher.mysql_session import MySqlSession
from matcher.mysql_wire import Layouts, Wire
from matcher.sessions import MYSQL_ERRORS, Disconnected, Session, SqliteSession, mysql_fault, sqlite_fault

#: A lock that another holds for longer is not waited for (InnoDB counts whole seconds).
LOCK_WAIT_S = 1
#: A server that takes our connection and then says nothing.
CONNECT_S_MAX = 5.0


class Opener(Protocol):
    """`idle_s_max`: a connection unused for longer is replaced rather than tried.

    `discard` ends one that may be out of step, `retire` one that is sound, in the
    background; `close` waits.
    """

    idle_s_max: float

    async def open(self) -> Any: ...
    def session(self, connection: Any, settling: bool) -> Session: ...
    def discard(self, connection: Any) -> None: ...
    def retire(self, connection: Any) -> None: ...
    async def close(self, connection: Any) -> None: ...
    async def finish(self) -> None:
        """Waits until what was discarded or retired has ended."""


def parse_url(url: str) -> URL:
    """Raises ValueError with a sentence for a person. The password is in no message."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("the database's URL is not like mysql+aiomysql://user:password@host:3306/name") from None
    if parsed.drivername not in ("mysql+aiomysql", "sqlite+aiosqlite"):
        raise ValueError(f"the database's URL begins with mysql+aiomysql or sqlite+aiosqlite, not {parsed.drivername}")
    if not parsed.database or ":memory:" in parsed.database:
        raise ValueError("the database's URL names no database (MySQL) or no file (SQLite)")
    return parsed


class _Connection(aiomysql.Connection):  # type: ignore[misc]
    """One that was to be encrypted signs in to no server that cannot; aiomysql would go on in plain text."""

    async def _get_server_information(self) -> None:
        await super()._get_server_information()
        if self._ssl_context and not self.server_capabilities & CLIENT.SSL:
            raise pymysql.err.OperationalError(CR.CR_SSL_CONNECTION_ERROR, "the server offers no TLS")


class MySqlOpener:
    """`wait_timeout_s`: after so long in silence the server ends the session, and with it the
    locks of a process that froze in the middle of a transaction (P7)."""

    def __init__(self, url: URL, *, wait_timeout_s: float, autocommit: bool) -> None:
        wait_s = max(1, math.ceil(wait_timeout_s))
        self.idle_s_max = wait_s * 0.6
        self._options = _mysql_options(url) | {"autocommit": autocommit}
        self._layouts = Layouts()
        # `mysql_session.literal` relies on both: that the server reads UTF-8, whatever it makes of the charset in the
        # handshake (`skip_character_set_client_handshake`), and a mode that leaves a backslash its meaning in quotes.
        self._settings = (
            "SET NAMES utf8mb4 COLLATE utf8mb4_general_ci, time_zone = '+00:00'"
            ", sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'"
            f", innodb_lock_wait_timeout = {LOCK_WAIT_S}, lock_wait_timeout = 5, wait_timeout = {wait_s}"
        )

    async def open(self) -> Wire:
        """As aiomysql.connect, except that a cancelled or failed handshake leaves no socket behind."""
        connection = _Connection(**self._options)
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                await connection._connect()
                await connection.query(self._settings)
                await connection.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                raise Disconnected(f"the server did not greet within {CONNECT_S_MAX:g} s") from error
            if isinstance(error, MYSQL_ERRORS):
                raise mysql_fault(error) from error
            raise
        return Wire(connection, self._layouts)

    def session(self, connection: Wire, settling: bool) -> Session:
        return MySqlSession(connection, settling)

    def discard(self, connection: Wire) -> None:
        connection.close()

    def retire(self, connection: Wire) -> None:
        connection.say_goodbye()

    async def close(self, connection: Wire) -> None:
        connection.say_goodbye()

    async def finish(self) -> None:
        await asyncio.sleep(0)  # the loop closes sockets in its next turn


def _mysql_options(url: URL) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": url.host or "localhost",
        "port": url.port or 3306,
        "user": url.username or "",
        "password": url.password or "",
        "db": url.database,
        "charset": "utf8mb4",
        # With one, aiomysql connects inside `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that
        # comes just then: a loop that was told to end would go on for ever. `open` has a limit of its own.
        "connect_timeout": None,
    }
    query = dict(url.query)
    if socket := query.pop("unix_socket", None):
        options["unix_socket"] = socket
    authority = query.pop("ssl_ca", None)
    if authority or query.pop("ssl", "") in ("true", "1"):
        options["ssl"] = ssl.create_default_context(cafile=str(authority) if authority else None)
    query.pop("charset", None)
    if query:
        raise ValueError(f"the database's URL has an option that is not known: {', '.join(sorted(query))}")
    return options


class SqliteOpener:
    """Driver autocommit throughout: the session says BEGIN IMMEDIATE itself."""

    idle_s_max = float("inf")

    def __init__(self, url: URL) -> None:
        self._path = Path(url.database or "").absolute()
        self._ending: list[Thread] = []

    async def open(self) -> aiosqlite.Connection:
        connection = aiosqlite.connect(self._path, isolation_level=None, timeout=LOCK_WAIT_S)
        connection._thread.daemon = True  # a store that was not closed must not keep the process alive
        try:
            await connection
        except BaseException as error:
            self._note_ending(connection)  # it has stopped itself
            if isinstance(error, sqlite3.Error):
                raise sqlite_fault(error) from error
            raise
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                await connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            self.discard(connection)
            raise sqlite_fault(error) from error
        except BaseException:
            self.discard(connection)
            raise
        return connection

    def session(self, connection: aiosqlite.Connection, settling: bool) -> Session:
        return SqliteSession(connection, settling)

    def discard(self, connection: aiosqlite.Connection) -> None:
        """Ends in the connection's thread, after what that is doing; an open transaction rolls back."""
        connection.stop()
        self._note_ending(connection)

    def _note_ending(self, connection: aiosqlite.Connection) -> None:
        self._ending = [thread for thread in (*self._ending, connection._thread) if thread.is_alive()]

    retire = discard

    async def close(self, connection: aiosqlite.Connection) -> None:
        await connection.close()

    async def finish(self) -> None:
        """The threads report to the event loop, which must not be closed before."""
        for thread in self._ending:
            await asyncio.to_thread(thread.join, CONNECT_S_MAX)
