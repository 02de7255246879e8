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
from itertools import chain
from typing import Any, Protocol, TypeVar

from geo.feed import Follower
from geo.index import DriverIndex
from geo.model import DriverId, MarketId
from matcher.batch import Batch, build_with, demand_of
from matcher.decision import Solver, Travel, decide
from matcher.errors import LeaseLost, StoreUnavailable
from matcher.idleness import Idleness
from matcher.ids import new_trip_id, time_ordered
from matcher.model import Hint, RideId
from matcher.outcomes import Committed, DriverHistory, Pairing, Waiting
from matcher.plan import Decided, Reason, Unmatched, lost_of, plan_parts
from matcher.policy import Market
from matcher.recording import BatchReport, Waits, input_of, report_of
from matcher.solver import SolverFailed
from matcher.window import AdaptiveWindow

log = logging.getLogger(__name__)

Result = TypeVar("Result")

SWEEP_EVERY_S = 1.0
SWEEP_MAX = 500
#: A market without a window is decided at most so often, and looked at without a hint so seldom.
WINDOWLESS_S_MIN = 0.05
WINDOWLESS_S_MAX = 1.0
#: A plan is committed and announced in parts of about so many pairings, each under the token.
COMMIT_PAIRINGS = 250
#: Drivers' histories count for so long, and are read again so often, where the market's policy asks for them.
HISTORY_MS = 86_400_000
HISTORY_EVERY_S = 30.0
BACKOFF_S_MAX = 1.0
RELEASE_S_MAX = 2.0


class BatchStore(Protocol):
    """What of the store the dispatcher needs (see matcher.store.Store)."""

    async def waiting(self, market: MarketId, *, limit: int) -> Waiting: ...

    async def commit_plan(
        self, market: MarketId, token: int, pairings: Sequence[Pairing], *, offer_ttl_ms: int | None = None
    ) -> Committed: ...

    async def record_batch(
        self,
        market: MarketId,
        token: int,
        batch_id: str,
        *,
        summary: Mapping[str, Any],
        input: bytes | None,  # noqa: A002 - the store's word
        waits: Sequence[tuple[RideId, str, Mapping[str, Any]]],
        keep_batches: int = 500,
        keep_inputs: int = 8,
    ) -> None: ...

    async def driver_histories(
        self, market: MarketId, *, within_ms: int, limit: int = 100_000
    ) -> dict[DriverId, DriverHistory]: ...

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
class Keeping:
    """How many records of a market's batches are kept, and how many of them with their whole input."""

    batches: int = 500
    inputs: int = 8


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
    unrecorded: int = 0  # batches whose record could not be written
    last: BatchReport | None = None
    lost: Counter[str] = field(default_factory=Counter)


class Dispatcher:
    """One market's loop in one process; belongs to one event loop.

    `holder` names this process in the lease. While the follower has a fault, or
    has been silent for longer than `stale_after_ms`, nothing is matched (P5).
    `on_batch` is called after each batch, in the event loop. `tag_bits` are the bits of tags in the index.
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
        travel: Travel | None = None,
        tag_bits: Mapping[str, int] | None = None,
        keeping: Keeping | None = None,
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
        self.travel = travel or Travel()
        self._tag_bits = tag_bits or {}
        self._keeping = keeping or Keeping()
        self._histories: Mapping[DriverId, DriverHistory] = {}
        self._idleness = Idleness()
        self._waits = Waits()
        self._adaptive = AdaptiveWindow(market.window_s, market.window_s_max) if market.adaptive_window else None
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
                for loop in (self._renewals, self._windows, self._sweeps, self._readings):
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

    async def _readings(self, token: int) -> None:
        """Drivers' histories, where the policy of the market asks for them."""

        async def read() -> None:
            self._histories = await self._store.driver_histories(self.market.id, within_ms=HISTORY_MS)

        while self.market.idle_bonus or self.market.refusal_s:
            await self._guarded(read)
            await asyncio.sleep(HISTORY_EVERY_S)

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
        if not self._is_due(waiting) or not waiting.rides:
            return
        decided = await decide(self._batch(waiting), self._solver, self.travel)
        if not self._positions_are_live():  # went down while the batch was solved (P5)
            self.stats.windows_blind += 1
            return
        batch_id = "b_" + time_ordered(waiting.now_ms)
        matched, lost, unmatched = await self._commit(token, decided, batch_id)
        report = report_of(
            decided,
            batch_id,
            matched=matched,
            lost=lost,
            unmatched=Counter(str(each.reason) for each in unmatched if each.reason is not Reason.LOST_AT_COMMIT),
            batch_s=asyncio.get_running_loop().time() - began,
        )
        if self._adaptive is not None:
            self._adaptive.closed(matched, decided.solution.mean_way_s)
        self._count(report)
        await self._record(token, decided, report, self._waits.due(unmatched, waiting.now_ms))

    def _is_due(self, waiting: Waiting) -> bool:
        """Whether an adaptive window closes now; a fixed one always does."""
        if self._adaptive is None:
            return True
        idle = max(0, self._index.fresh_count(self._feed.now_ms()) - len(waiting.engaged))
        return self._adaptive.close_at_ms(waiting.now_ms, len(waiting.rides), idle) <= waiting.now_ms

    def _batch(self, waiting: Waiting) -> Batch:
        supply = self._index.supply(self._feed.now_ms(), waiting.engaged)
        idle_since_ms: Mapping[DriverId, int] = {}
        if self.market.idle_bonus:
            idle_since_ms = self._idleness.look(waiting.now_ms, supply.driver_ids, waiting.engaged, self._histories)
        return build_with(
            demand_of(waiting, self.market),
            supply,
            histories=self._histories,
            idle_since_ms=idle_since_ms,
            tag_bits=self._tag_bits,
        )

    def _positions_are_live(self) -> bool:
        return self._follower.fault is None and self._follower.silent_ms() <= self._stale_after_ms

    async def _commit(self, token: int, decided: Decided, batch_id: str) -> tuple[int, Counter[str], list[Unmatched]]:
        """Commits and announces part by part; how many were matched, which dropped out by reason, who got nobody."""
        matched, lost, unmatched = 0, Counter[str](), list[Unmatched]()
        parts = plan_parts(decided, self._index, self._feed.now_ms, batch_id=batch_id, new_trip_id=new_trip_id)
        ready: list[Pairing] = []
        for part in chain(parts, (None,)):
            if part is not None:
                unmatched += part.unmatched
                ready += part.pairings
                await asyncio.sleep(0)  # sockets are served between the parts
            if ready and (part is None or len(ready) >= COMMIT_PAIRINGS):
                committed = await self._uncut(self._commit_part(token, ready))
                matched += len(committed.hints)
                lost.update(each.why for each in committed.lost)
                unmatched += [lost_of(each) for each in committed.lost]
                ready = []
        return matched, lost, unmatched

    async def _commit_part(self, token: int, pairings: Sequence[Pairing]) -> Committed:
        committed = await self._store.commit_plan(self.market.id, token, pairings)
        self._announcer.announce(committed.hints)
        return committed

    async def _record(
        self,
        token: int,
        decided: Decided,
        report: BatchReport,
        waits: Sequence[tuple[RideId, str, Mapping[str, Any]]],
    ) -> None:
        """Keeps what the batch came to. A record that cannot be written costs an explanation, never a match."""
        data = input_of(decided, report.batch_id) if self._keeping.inputs else None
        try:
            await self._store.record_batch(
                self.market.id,
                token,
                report.batch_id,
                summary=report.summary(),
                input=data,
                waits=waits,
                keep_batches=self._keeping.batches,
                keep_inputs=self._keeping.inputs,
            )
        except StoreUnavailable as fault:
            self.stats.unrecorded += 1
            self._waits = Waits()  # what was due is due again
            log.warning("market %s: a batch was not recorded: %s", self.market.id, fault)

    def _count(self, report: BatchReport) -> None:
        self.stats.last = report
        self.stats.batches += 1
        self.stats.batches_uncertified += not report.certified
        self.stats.matched += report.matched
        self.stats.lost.update(report.lost)
        if self._on_batch is not None:
            self._on_batch(report)

    async def _uncut(self, call: Coroutine[Any, Any, Result]) -> Result:
        """A commit and its announcement are finished even when we are cancelled in between; the store bounds them."""
        task = asyncio.create_task(call)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled() and (fault := task.exception()) is not None:
                log.warning("market %s: while stopping: %s", self.market.id, fault)
            raise

    @property
    def _lease_ms(self) -> int:
        return round(self._lease_s * 1000)
