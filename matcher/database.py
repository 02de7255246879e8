"""Connections and attempts: pools, time-outs, retries, and outcomes that nobody heard.

A unit of work is an async function of a `Session`. `write` runs it in a
transaction, `read` on a connection in autocommit; both do it again where that
is safe. This module knows no table.

Rules it keeps:
- A connection whose protocol may be out of step (time-out, cancellation, any
  fault) is thrown away at once and never lent again.
- A call has one budget of time. When a COMMIT was sent and no answer came, the
  work is done once more with `session.settling` set and a budget of its own:
  the store then looks, with locks, for what it may have written already (P2).
- No ping before use: a connection that was idle for long is replaced, and one
  found dead before its COMMIT is replaced and the work done again.

The pool is a queue of idle connections behind as many turns. SQLAlchemy's would
need a greenlet a checkout and cannot throw away a half-open connection.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.engine import URL

from matcher.connections import MySqlOpener, Opener, SqliteOpener, parse_url
from matcher.errors import StoreLocked, StoreUnavailable
from matcher.filelock import FileLock
from matcher.sessions import CLEAN, Conflict, Contended, Disconnected, Raced, Session, Unstorable

T = TypeVar("T")
Work = Callable[[Session], Awaitable[T]]

#: Deadlocks, races and dead connections in one call, before it is called unavailable.
ATTEMPTS_MAX = 8
#: Readers hold no locks: they need not die within the lease.
READER_WAIT_TIMEOUT_S = 60.0
SQLITE_READERS = 3


@dataclass(slots=True)
class _Attempt:
    """How far one try has come, for the reason in an error and for settling."""

    settling: bool
    stage: str = "waiting for a free connection"

    @property
    def outcome_unknown(self) -> bool:
        return self.stage == "committing"

    @property
    def cannot_connect(self) -> bool:
        return self.stage == "connecting"


class _Lane:
    """Like connections and as many turns: whoever has a turn finds or opens a connection."""

    def __init__(self, opener: Opener, size: int) -> None:
        self.size = size
        self._opener = opener
        self._turns = asyncio.Semaphore(size)
        self._idle: deque[tuple[Any, float]] = deque()  # with the monotonic time of its return, newest last
        self._closed = False

    @asynccontextmanager
    async def session(self, attempt: _Attempt) -> AsyncIterator[Session]:
        async with self._turns:
            attempt.stage = "connecting"
            connection = self._longest_idle() or await self._opener.open()
            attempt.stage = "working"
            try:
                yield self._opener.session(connection, attempt.settling)
            except CLEAN:
                self._give_back(connection)
                raise
            except BaseException as error:
                self._opener.discard(connection)
                if isinstance(error, Disconnected):
                    self._discard_idle()  # the server went away: the others are as dead
                raise
            self._give_back(connection)

    def _longest_idle(self) -> Any | None:
        """In turn, so that under any load worth the name none is idle until the server closes it."""
        while self._idle:
            connection, since_s = self._idle.popleft()
            if time.monotonic() - since_s <= self._opener.idle_s_max:
                return connection
            self._opener.retire(connection)
        return None

    def _give_back(self, connection: Any) -> None:
        if self._closed:
            self._opener.discard(connection)
        else:
            self._idle.append((connection, time.monotonic()))

    def _discard_idle(self) -> None:
        for connection, _ in self._idle:
            self._opener.discard(connection)
        self._idle.clear()

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, deque()
        for connection, _ in idle:
            await self._opener.close(connection)
        await self._opener.finish()


class Database:
    """Writers and readers of one database. Connects when first used.

    Raises ValueError for a URL that cannot be used and StoreLocked where the
    file of an embedded database is another process's.
    """

    def __init__(self, url: str, *, pool_size: int = 16, call_timeout_s: float = 5.0, lease_s: float = 5.0) -> None:
        self.url = parse_url(url)
        self.is_mysql = self.url.get_backend_name() == "mysql"
        self._call_timeout_s = call_timeout_s
        self._lock: FileLock | None = None
        if self.is_mysql:
            readers = max(1, pool_size // 4)
            writers = max(1, pool_size - readers)
            self._writers = _Lane(MySqlOpener(self.url, wait_timeout_s=lease_s, autocommit=False), writers)
            reading = MySqlOpener(self.url, wait_timeout_s=READER_WAIT_TIMEOUT_S, autocommit=True)
            self._readers = _Lane(reading, readers)
        else:
            self._lock = _locked_file(self.url)
            self._writers = _Lane(SqliteOpener(self.url), 1)
            self._readers = _Lane(SqliteOpener(self.url), SQLITE_READERS)

    @property
    def writers(self) -> int:
        """Transactions that can be under way at once."""
        return self._writers.size

    async def close(self) -> None:
        """Closes what is idle now and what is in use when it comes back."""
        await self._writers.close()
        await self._readers.close()
        if self._lock is not None:
            self._lock.release()

    async def write(self, work: Work[T]) -> T:
        """Runs `work` in a transaction and commits it. Raises StoreUnavailable, Conflict or Unstorable."""
        return await self._until_done(self._write_once, work, self._call_timeout_s)

    async def read(self, work: Work[T], *, timeout_s: float | None = None) -> T:
        """Runs `work` outside any transaction but those it opens by `begin_snapshot`."""
        return await self._until_done(self._read_once, work, timeout_s or self._call_timeout_s)

    async def _write_once(self, work: Work[T], attempt: _Attempt) -> T:
        async with self._writers.session(attempt) as session:
            try:
                await session.begin()
                value = await work(session)
                if session.refused:
                    await session.rollback()
                    return value
                attempt.stage = "committing"
                await session.commit()
                return value
            except CLEAN:
                attempt.stage = "rolling back"
                await session.rollback()
                raise

    async def _read_once(self, work: Work[T], attempt: _Attempt) -> T:
        async with self._readers.session(attempt) as session:
            try:
                return await work(session)
            except CLEAN:
                await session.rollback()  # a snapshot may be open
                raise

    async def _until_done(self, once: Callable[[Work[T], _Attempt], Awaitable[T]], work: Work[T], budget_s: float) -> T:
        ends_at_s = _loop_s() + budget_s
        attempt = _Attempt(settling=False)
        for number in range(1, ATTEMPTS_MAX + 1):
            try:
                async with asyncio.timeout_at(ends_at_s):
                    return await once(work, attempt)
            except (Conflict, Unstorable):
                raise
            except (TimeoutError, Disconnected, Contended, Raced, StoreUnavailable) as error:
                first_unknown = attempt.outcome_unknown and not attempt.settling
                if first_unknown:
                    ends_at_s = _loop_s() + budget_s
                elif number == ATTEMPTS_MAX or not _worth_repeating(error, attempt, number):
                    raise _unavailable(error, attempt, budget_s) from error
                pause_s = _pause_s(number, attempt)
                attempt = _Attempt(settling=attempt.settling or first_unknown)
            await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")


def _unavailable(error: Exception, attempt: _Attempt, budget_s: float) -> StoreUnavailable:
    if isinstance(error, StoreUnavailable):
        if not attempt.settling:
            return error
        reason = error.reason
    elif isinstance(error, TimeoutError):
        reason = f"no answer from the database within {budget_s:g} s while {attempt.stage}"
    elif isinstance(error, Disconnected):
        reason = f"the database cannot be reached: {error}"
    else:
        reason = f"others keep changing or locking what this needs: {error}"
    if attempt.settling:
        reason += "; whether an earlier attempt was committed is not known"
    return StoreUnavailable(reason)


def _worth_repeating(error: Exception, attempt: _Attempt, number: int) -> bool:
    if isinstance(error, (TimeoutError, StoreUnavailable)):
        return False
    if isinstance(error, Disconnected) and not attempt.settling:
        return not attempt.cannot_connect and number <= 3
    return True  # while settling also a server that cannot be reached: it may be coming back


def _pause_s(number: int, attempt: _Attempt) -> float:
    """At once the first time, then apart from the others; slower while a server may be coming back."""
    if attempt.cannot_connect:
        return 0.5
    return 0.0 if number == 1 else random.uniform(0.0, 0.005 * 2**number)


def _loop_s() -> float:
    return asyncio.get_running_loop().time()


def _locked_file(url: URL) -> FileLock:
    path = Path(url.database or "").absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{path}.lock")
    except OSError as error:
        raise StoreLocked(f"the database file {path} cannot be opened for writing: {error.strerror}") from error
