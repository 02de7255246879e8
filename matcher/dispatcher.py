"""The dispatcher: the loop of one market, for as long as this process holds its lease.

Acquire the lease, then every window: read what waits, decide (matcher.decision),
commit the plan under the lease's token, announce. Beside it the lease is renewed
and overdue rides and trips are swept. It decides nothing itself and never dies: a
database, a feed or a solver that fails costs windows, and the next one that works
carries on from the store, where everything stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from geo.feed import Follower
from geo.index import DriverIndex
from geo.model import MarketId
from matcher.batch import Demand, Plan, demand_of, plan
from matcher.decision import Decided, Solver, decide
from matcher.errors import LeaseLost, StoreUnavailable
from matcher.ids import new_trip_id, time_ordered
from matcher.model import Hint
from matcher.outcomes import Committed, Pairing, Waiting
from matcher.policy import Market
from matcher.solver import SolverFailed

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 1.0
SWEEP_MAX = 500
#: A market without a window is decided at most so often, and looked at without a hint so seldom.
WINDOWLESS_S_MIN = 0.05
WINDOWLESS_S_MAX = 1.0
#: Pairings a transaction; a larger plan is committed in parts, each under the token.
COMMIT_MAX = 1000
BACKOFF_S_MAX = 1.0
RELEASE_S_MAX = 2.0


class BatchStore(Protocol):
    """What of the store the dispatcher needs (see matcher.store.Store)."""

    async def waiting(self, market: MarketId, *, limit: int) -> Waiting: ...

    async def commit_plan(
        self, market: MarketId, token: int, pairings: Sequence[Pairing], *, offer_ttl_ms: int | None = None
    ) -> Committed: ...

    async def sweep(self, market: MarketId, token: int, *, limit: int = 500) -> list[Hint]: ...

    async def acquire_lease(self, market: MarketId, holder: str, ttl_ms: int) -> int | None: ...

    async def renew_lease(self, market: MarketId, holder: str, token: int, ttl_ms: int) -> bool: ...

    async def release_lease(self, market: MarketId, token: int) -> None: ...


class Clock(Protocol):
    def now_ms(self) -> int:
        """The feed's clock."""


class MarketAnnouncer(Protocol):
    def announce(self, hints: Sequence[Hint]) -> None: ...

    def market_listener(self, market: MarketId, callback: Callable[[], None]) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch came to. `lost` and `unmatched` count by reason; `rounds` 0: greedy had to do."""

    market: MarketId
    batch_id: str
    rides: int
    matched: int
    lost: Mapping[str, int]
    unmatched: Mapping[str, int]
    pairs: int
    rounds: int
    solve_s: float
    batch_s: float
    certified: bool
    gap_s: float
    cost_s: float
    greedy_cost_s: float


@dataclass(slots=True)
class DispatcherStats:
    """For metrics: the present state, counters since the start, and the last batch."""

    leading: bool = False
    positions_live: bool = True
    windows: int = 0
    windows_skipped: int = 0  # the batch before took longer than its window
    windows_blind: int = 0  # nothing decided, for the positions were not live
    batches: int = 0
    batches_uncertified: int = 0
    matched: int = 0
    swept: int = 0
    leases_lost: int = 0
    faults: int = 0
    last: BatchReport | None = None
    lost: Counter[str] = field(default_factory=Counter)


class Dispatcher:
    """One market's loop in one process; belongs to one event loop.

    `holder` names this process in the lease. While the follower has a fault, or
    has been silent for longer than `stale_after_ms`, nothing is matched (P5).
    `on_batch` is called after each batch, in the event loop.
    """

    def __init__(
        self,
        market: Market,
        store: BatchStore,
        index: DriverIndex,
        follower: Follower,
        feed: Clock,
        solver: Solver,
        announcer: MarketAnnouncer,
        holder: str,
        *,
        lease_s: float = 5.0,
        stale_after_ms: int = 30_000,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.market = market
        self._store = store
        self._index = index
        self._follower = follower
        self._feed = feed
        self._solver = solver
        self._announcer = announcer
        self._holder = holder
        self._lease_s = lease_s
        self._stale_after_ms = stale_after_ms
        self._on_batch = on_batch
        self._wake = asyncio.Event()
        self.stats = DispatcherStats()

    async def run(self) -> None:
        """Runs the market whenever the lease is ours, until cancelled; then the lease is given back."""
        with self._announcer.market_listener(self.market.id, self.wake):
            while True:
                held: list[int] = []
                try:
                    await self._acquire(held)
                    await self._lead(held[0])
                finally:
                    if held:
                        await self._release(held[0])

    def wake(self) -> None:
        """Something of this market changed: a market without a window decides soon."""
        self._wake.set()

    async def _acquire(self, held: list[int]) -> None:
        """Puts the token into `held`, even when we are cancelled while it is being granted."""

        async def attempt() -> None:
            token = await self._store.acquire_lease(self.market.id, self._holder, self._lease_ms)
            held.extend([] if token is None else [token])

        while not held:
            await self._guarded(lambda: self._uncut(attempt()))
            if not held:
                await asyncio.sleep(self._lease_s / 3.0 * random.uniform(0.8, 1.2))
        log.info("market %s: leading with token %d", self.market.id, held[0])

    async def _lead(self, token: int) -> None:
        """Returns when the lease is lost."""
        self.stats.leading = True
        try:
            async with asyncio.TaskGroup() as group:
                for loop in (self._renewals, self._windows, self._sweeps):
                    group.create_task(loop(token))
        except* LeaseLost as lost:
            self.stats.leases_lost += 1
            log.warning("market %s: %s", self.market.id, lost.exceptions[0])
        finally:
            self.stats.leading = False

    async def _release(self, token: int) -> None:
        """So that a successor starts at once; otherwise it starts when the lease runs out."""
        try:
            async with asyncio.timeout(RELEASE_S_MAX):
                await self._store.release_lease(self.market.id, token)
        except (StoreUnavailable, TimeoutError) as fault:
            log.info("market %s: the lease runs out by itself: %s", self.market.id, fault)

    async def _renewals(self, token: int) -> None:
        async def renew() -> None:
            if not await self._store.renew_lease(self.market.id, self._holder, token, self._lease_ms):
                raise LeaseLost(self.market.id, token)

        while True:
            await asyncio.sleep(self._lease_s / 3.0)
            await self._guarded(renew)

    async def _sweeps(self, token: int) -> None:
        async def sweep() -> None:
            full = True
            while full:
                hints = await self._uncut(self._sweep(token))
                full = len(hints) >= SWEEP_MAX

        while True:
            await self._guarded(sweep)
            await asyncio.sleep(SWEEP_EVERY_S)

    async def _sweep(self, token: int) -> list[Hint]:
        hints = await self._store.sweep(self.market.id, token, limit=SWEEP_MAX)
        self._announcer.announce(hints)
        self.stats.swept += len(hints)
        return hints

    async def _windows(self, token: int) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = await self._next_window(due)
            self.stats.windows += 1
            await self._guarded(lambda: self._window(token))

    async def _next_window(self, due: float) -> float:
        """Waits for the next window, `due` being the last one's start; returns this one's."""
        loop = asyncio.get_running_loop()
        window_s = self.market.window_s
        if window_s > 0.0:
            skipped = max(0, int((loop.time() - due) / window_s))
            self.stats.windows_skipped += skipped
            due += (skipped + 1) * window_s
            await asyncio.sleep(due - loop.time())
            return due
        await asyncio.sleep(due + WINDOWLESS_S_MIN - loop.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WINDOWLESS_S_MAX):
                await self._wake.wait()
        self._wake.clear()
        return loop.time()

    async def _guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        """One step; a fault is said, counted and waited out, except the loss of the lease."""
        try:
            await step()
        except LeaseLost:
            raise
        except (StoreUnavailable, SolverFailed) as fault:
            log.warning("market %s: %s", self.market.id, fault)
        except Exception:  # logged and counted; a market whose loop has died would wait for ever
            log.exception("market %s: a step failed", self.market.id)
        else:
            return
        self.stats.faults += 1
        await asyncio.sleep(random.uniform(0.1, BACKOFF_S_MAX))

    async def _window(self, token: int) -> None:
        began = asyncio.get_running_loop().time()
        self.stats.positions_live = self._positions_are_live()
        if not self.stats.positions_live:
            self.stats.windows_blind += 1
            return
        waiting = await self._store.waiting(self.market.id, limit=self.market.rides_per_batch_max)
        if not waiting.rides:
            return
        demand = demand_of(waiting, self.market)
        decided = await decide(demand, self._index, self._feed.now_ms, self._solver)
        if not self._positions_are_live():  # went down while the batch was solved (P5)
            self.stats.windows_blind += 1
            return
        batch_id = "b_" + time_ordered(waiting.now_ms)
        made = plan(
            decided.graph,
            decided.assignment,
            self._index,
            self._feed.now_ms(),
            batch_id=batch_id,
            new_trip_id=new_trip_id,
        )
        lost = await self._uncut(self._commit(token, made))
        self._report(demand, decided, made, lost, asyncio.get_running_loop().time() - began)

    def _positions_are_live(self) -> bool:
        return self._follower.fault is None and self._follower.silent_ms() <= self._stale_after_ms

    async def _commit(self, token: int, made: Plan) -> Counter[str]:
        """Commits and announces; returns how many pairings dropped out, by reason."""
        lost: Counter[str] = Counter()
        for start in range(0, len(made.pairings), COMMIT_MAX):
            part = made.pairings[start : start + COMMIT_MAX]
            committed = await self._store.commit_plan(self.market.id, token, part)
            self._announcer.announce(committed.hints)
            lost.update(each.why for each in committed.lost)
        return lost

    async def _uncut(self, call: Coroutine[Any, Any, Any]) -> Any:
        """A commit and its announcement are finished even when we are cancelled in between; the store bounds them."""
        task = asyncio.create_task(call)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled() and (fault := task.exception()) is not None:
                log.warning("market %s: while stopping: %s", self.market.id, fault)
            raise

    def _report(self, demand: Demand, decided: Decided, made: Plan, lost: Counter[str], batch_s: float) -> None:
        report = BatchReport(
            market=self.market.id,
            batch_id=made.batch_id,
            rides=len(demand.rides),
            matched=len(made.pairings) - lost.total(),
            lost=lost,
            unmatched=Counter(str(each.reason) for each in made.unmatched),
            pairs=int(decided.graph.candidates.ride.size),
            rounds=decided.rounds,
            solve_s=decided.solve_s,
            batch_s=batch_s,
            certified=made.certified,
            gap_s=made.gap_s,
            cost_s=made.cost_s,
            greedy_cost_s=made.greedy_cost_s,
        )
        self.stats.last = report
        self.stats.batches += 1
        self.stats.batches_uncertified += not report.certified
        self.stats.matched += report.matched
        self.stats.lost.update(lost)
        if self._on_batch is not None:
            self._on_batch(report)

    @property
    def _lease_ms(self) -> int:
        return round(self._lease_s * 1000)
