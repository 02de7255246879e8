"""The desk for sign-ons: drivers that come back together share transactions.

After a deploy, or the death of a process, thousands of drivers sign on within
seconds. They are gathered for a few milliseconds, and while earlier groups
commit, then written together. What waits is bounded (P10): beyond it the answer
is Overloaded at once, before any work of the database, with the time in which
what waits is likely to be done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from geo.model import DriverId, MarketId
from matcher.errors import StoreUnavailable
from matcher.outcomes import SignedOn
from matcher.rides import Overloaded
from matcher.store_sign_on import GROUP_MAX, OnSignOn, SignOn, SignOnOutcome
from matcher.turns import Turn, Turns

log = logging.getLogger(__name__)

#: What a sign-on is thought to take before any was measured, and the bounds of what a caller is told.
FIRST_S = 0.001
RETRY_AFTER_S_MIN, RETRY_AFTER_S_MAX = 1.0, 10.0
#: How much of the newest measurement goes into the mean.
_NEWEST_SHARE = 0.2


class SignOnStore(Protocol):
    """What of the store the desk needs (see matcher.store.Store)."""

    async def sign_on_many(
        self, asked: Sequence[SignOn], *, on_outcome: OnSignOn | None = None
    ) -> list[SignOnOutcome]: ...


class _Entry(NamedTuple):
    asked: SignOn
    settled: asyncio.Future[SignOnOutcome]


class SignOnDesk:
    """Belongs to one event loop.

    `gather_ms` is how long a group gathers, `group_max` its largest size, `groups_max` how many commit at once,
    `waiting_max` how many sign-ons may wait or be under way.
    """

    def __init__(
        self,
        store: SignOnStore,
        *,
        gather_ms: float = 3.0,
        group_max: int = GROUP_MAX,
        groups_max: int = 2,
        waiting_max: int = 5000,
    ) -> None:
        self._store = store
        self._gather_s = gather_ms / 1000.0
        self._group_max = group_max
        self._turns = Turns(groups_max)
        self._waiting_max = waiting_max
        self._queue: deque[_Entry] = deque()
        self._under_way = 0
        self._each_s = FIRST_S  # of a sign-on, by the newest groups
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def waiting(self) -> int:
        """Sign-ons without an outcome, those whose caller has gone included."""
        return len(self._queue) + self._under_way

    async def sign_on(self, driver_id: DriverId, market: MarketId, *, online: bool = True) -> SignedOn | None:
        """A new session of this driver, committed; None for an unknown driver.

        Raises Overloaded, before anything is done, and StoreUnavailable. A caller that is cancelled is forgotten; the
        driver may be signed on all the same, which supersedes its session before.
        """
        outcome = await asyncio.shield(self._enqueue(SignOn(driver_id, market, online)))
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(outcome.reason) from outcome  # one a caller: tracebacks grow on the instance
        return outcome

    def _enqueue(self, asked: SignOn) -> asyncio.Future[SignOnOutcome]:
        if self._closing:
            raise Overloaded("the service is stopping", RETRY_AFTER_S_MIN)
        if self.waiting >= self._waiting_max:
            raise Overloaded(f"{self.waiting} drivers are signing on already", self.retry_after_s)
        entry = _Entry(asked, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        if self._gathering is None:
            self._gathering = self._spawn(self._gather())
        return entry.settled

    @property
    def retry_after_s(self) -> float:
        """When what waits now is likely to be done."""
        return min(RETRY_AFTER_S_MAX, max(RETRY_AFTER_S_MIN, self.waiting * self._each_s))

    async def _gather(self) -> None:
        """Waits for neighbours and for a turn, then commits what is there; ends when nothing is."""
        try:
            await asyncio.sleep(self._gather_s)
            while self._queue:
                turn = await self._turns.take()
                # Taken only now: whoever came while earlier groups commit rides along.
                group = [self._queue.popleft() for _ in range(min(self._group_max, len(self._queue)))]
                self._under_way += len(group)
                self._spawn(self._commit(group, turn))
        finally:
            self._gathering = None

    async def _commit(self, group: Sequence[_Entry], turn: Turn) -> None:
        def settle(position: int, outcome: SignOnOutcome) -> None:
            """Called for each as soon as it stands: a neighbour whose row is held delays nobody."""
            group[position].settled.set_result(outcome)

        started_s = time.monotonic()
        try:
            await self._store.sign_on_many([entry.asked for entry in group], on_outcome=settle)
        except StoreUnavailable as fault:
            _settle_rest(group, fault)
        finally:
            turn.give_back()
            self._under_way -= len(group)
            self._measure((time.monotonic() - started_s) / len(group))
            _fail_rest(group)  # by a defect of ours, or cancelled

    def _measure(self, each_s: float) -> None:
        self._each_s += _NEWEST_SHARE * (each_s - self._each_s)

    async def close(self) -> None:
        """Takes nothing more in and returns when all that was taken in has its outcome."""
        self._closing = True
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("a group of sign-ons failed", exc_info=fault)


def _settle_rest(group: Sequence[_Entry], fault: StoreUnavailable) -> None:
    for entry in group:
        if not entry.settled.done():
            entry.settled.set_result(fault)


def _fail_rest(group: Sequence[_Entry]) -> None:
    for entry in group:
        if not entry.settled.done():
            entry.settled.set_exception(RuntimeError("the sign-on was left without an outcome"))
            entry.settled.exception()  # the caller may have gone: nobody else would retrieve it
