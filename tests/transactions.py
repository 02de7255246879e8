"""Real transactions that stand still in the middle, for tests of what others may do meanwhile.

A transaction that stands is a unit of work of a second `Database`, waiting for
an event: a real transaction on a real connection. `Stepwise` is one that is
let through call by call, so that a test decides what happens between a
command's read and its writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from geo.model import DriverId
from matcher.database import Database
from matcher.errors import StoreUnavailable
from matcher.model import DriverStatus, Hint, Move, Trip
from matcher.outcomes import CommandOutcome, Committed, Pairing, StatusSet
from matcher.sessions import Reply, Session
from matcher.statement import Params, Statement, Step
from matcher.store_batch import commit_plan
from matcher.store_drivers import set_status
from matcher.store_sweep import sweep
from matcher.store_trips import TripMove, move_trip
from tests.stores import MARKET, StoreCase

T = TypeVar("T")
Work = Callable[[Session], Awaitable[T]]


@asynccontextmanager
async def standing(url: str, work: Work[object], *, lease_s: float = 30.0) -> AsyncIterator[asyncio.Task[None]]:
    """A transaction that has done `work` and neither commits nor ends until the block is left; then it commits."""
    database = Database(url, pool_size=2, call_timeout_s=30.0, lease_s=lease_s)
    done, leave = asyncio.Event(), asyncio.Event()

    async def stand(session: Session) -> None:
        assert not done.is_set(), "the standing transaction was begun again"
        await work(session)
        done.set()
        await leave.wait()

    task = asyncio.create_task(database.write(stand))
    waiter = asyncio.create_task(done.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert done.is_set(), task
        yield task
    finally:
        waiter.cancel()
        leave.set()
        await asyncio.gather(task, return_exceptions=True)
        await database.close()


class Stepwise:
    """A session whose `run` waits before its call of number `stop_at` (from 1 on) until it is let go on."""

    def __init__(self, session: Session, stop_at: int, reached: asyncio.Event, go_on: asyncio.Event) -> None:
        self._session = session
        self._stop_at = stop_at
        self._reached = reached
        self._go_on = go_on
        self._calls = 0

    @property
    def settling(self) -> bool:
        return self._session.settling

    @settling.setter
    def settling(self, value: bool) -> None:
        self._session.settling = value

    @property
    def refused(self) -> bool:
        return self._session.refused

    @refused.setter
    def refused(self, value: bool) -> None:
        self._session.refused = value

    async def run(self, *steps: Step) -> list[Reply]:
        self._calls += 1
        if self._calls == self._stop_at:
            self._reached.set()
            await self._go_on.wait()
        return await self._session.run(*steps)

    async def insert(self, statement: Statement, rows: Sequence[Params]) -> None:
        await self._session.insert(statement, rows)

    async def begin(self) -> None:
        await self._session.begin()

    async def begin_snapshot(self) -> None:
        await self._session.begin_snapshot()

    async def commit(self) -> None:
        await self._session.commit()

    async def rollback(self) -> None:
        await self._session.rollback()


class Halted(Generic[T]):
    """A command that stands before one of its calls; `tries` counts how often it was begun."""

    def __init__(self, database: Database, work: Work[T], stop_at: int) -> None:
        self.tries = 0
        self._work = work
        self._stop_at = stop_at
        self._reached, self._go_on = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(database.write(self._try))

    async def _try(self, session: Session) -> T:
        self.tries += 1
        return await self._work(Stepwise(session, self._stop_at, self._reached, self._go_on))

    async def reached(self) -> None:
        async with asyncio.timeout(10):
            await self._reached.wait()

    async def finish(self) -> T:
        """Lets it go on, and returns what it came to."""
        self._go_on.set()
        async with asyncio.timeout(30):
            return await self._task

    async def give_up(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def halted(url: str, work: Work[T], *, before_call: int = 2) -> AsyncIterator[Halted[T]]:
    """The command `work` of another process, once it stands before its `before_call`-th call (2: it has only read).

    A try that it begins anew is not stopped again.
    """
    database = Database(url, pool_size=2, call_timeout_s=30.0)
    command = Halted(database, work, before_call)
    try:
        await command.reached()
        yield command
    finally:
        await command.give_up()
        await database.close()


def moving(trip: Trip, move: Move, *, epoch: int | None = 1) -> Work[CommandOutcome]:
    """The driver's command as one transaction."""
    return lambda session: move_trip(session, TripMove(trip.trip_id, move, trip.driver_id, epoch), {})


def setting(driver_id: DriverId, status: DriverStatus, *, epoch: int = 1) -> Work[StatusSet | None]:
    """A driver's own change of its status."""
    return lambda session: set_status(session, driver_id, status, epoch, {})


def planning(token: int, *plan: Pairing, offer_ttl_ms: int | None = None) -> Work[Committed]:
    """A plan's commit."""
    return lambda session: commit_plan(session, MARKET, token, plan, offer_ttl_ms)


def sweeping(token: int) -> Work[list[Hint]]:
    return lambda session: sweep(session, MARKET, token, 500)


async def until_available(call: Callable[[], Awaitable[T]]) -> T:
    """Asks again while the store is unavailable, for ten seconds at most."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(0.1)


def lock_waits(case: StoreCase) -> int:
    """How often the server has made anybody wait for a row's lock."""
    return int(case.sql("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_waits'")[0][1])


async def until_waiting(case: StoreCase, waits: int) -> None:
    """Returns once somebody waits for a row's lock who did not when `waits` was counted."""
    async with asyncio.timeout(10):
        while lock_waits(case) <= waits:
            await asyncio.sleep(0.01)
