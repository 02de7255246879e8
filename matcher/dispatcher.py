"""The dispatcher: the loop of one market, for as long as this process holds its lease.

Acquire the lease, then every window: read what waits, give the turns of queues at
places, decide the rest (matcher.decision), commit the plan under the lease's token,
announce. Beside it the lease is renewed and the market kept up (matcher.upkeep). It
decides nothing itself and never dies: a database, a feed or a solver that fails costs
windows, and the next one that works carries on from the store, where everything stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

from geo.feed import Follower
from geo.index import DriverIndex
from geo.model import DriverId, MarketId
from matcher.absence import Absences
from matcher.batch import Batch, build_with, demand_of
from matcher.chains import still_engaged
from matcher.decision import Solver, Travel, decide
from matcher.errors import LeaseLost, StoreUnavailable
from matcher.idleness import Idleness
from matcher.ids import new_trip_id, time_ordered
from matcher.model import Hint, RideId, Slot
from matcher.outcomes import Committed, Pairing, Waiting
from matcher.plan import Decided, Reason, Unmatched, lost_of, plan_parts
from matcher.policy import Market
from matcher.recording import BatchReport, Waits, input_of, report_of
from matcher.share import Share
from matcher.steps import Steps
from matcher.upkeep import Upkeep, UpkeepStore
from matcher.window import AdaptiveWindow
from matcher.zone_keeper import ZoneKeeper
from matcher.zone_plan import pinned
from matcher.zones import NOBODY, Queues

log = logging.getLogger(__name__)

#: A market without a window is decided at most so often, and looked at without a hint so seldom.
WINDOWLESS_S_MIN = 0.05
WINDOWLESS_S_MAX = 1.0
#: A plan is committed and announced in parts of about so many pairings, each under the token.
COMMIT_PAIRINGS = 250
RELEASE_S_MAX = 2.0


class BatchStore(UpkeepStore, Protocol):
    """What of the store the dispatcher needs (see matcher.store.Store)."""

    async def waiting(self, market: MarketId, *, limit: int, carrying: bool = False) -> Waiting: ...

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
    windows_paused: int = 0  # nothing decided, for an operator has paused the market
    batches: int = 0
    batches_uncertified: int = 0
    matched: int = 0
    chained: int = 0  # of them, those whose driver has a trip to finish first
    queued: int = 0  # of them, those of a queue at a place
    leases_lost: int = 0
    leases_given: int = 0  # so that another process has its share
    faults: int = 0
    unrecorded: int = 0  # batches whose record could not be written
    last: BatchReport | None = None
    lost: Counter[str] = field(default_factory=Counter)


class _Given(Exception):
    """The lease is given back, so that another process has its share."""


class Dispatcher:
    """One market's loop in one process; belongs to one event loop.

    `holder` names this process in the lease. While the follower has a fault, or
    has been silent for longer than `stale_after_ms`, nothing is matched (P5).
    `on_batch` is called after each batch, in the event loop. `tag_bits` are the bits of tags in the index. With a
    `share`, the process leads no more markets than that allows.
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
        share: Share | None = None,
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
        self._share = share
        self._steps = Steps(market.id, self._fault)
        self._zones = ZoneKeeper(market, store, index, announcer)
        self.upkeep = Upkeep(market, store, index, feed, announcer, self._steps, self._positions_are_live, self._zones)
        self._idleness = Idleness()
        self._absences = Absences()
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
                    if self._share is not None:
                        self._share.gave(self.market.id)

    def wake(self) -> None:
        """Something of this market changed: a market without a window decides soon."""
        self._wake.set()

    async def _acquire(self, held: list[int]) -> None:
        """Puts the token into `held`, even when we are cancelled while it is being granted."""

        async def attempt() -> None:
            token = await self._store.acquire_lease(self.market.id, self._holder, self._lease_ms)
            held.extend([] if token is None else [token])

        if self._share is not None:
            await asyncio.sleep(self._share.wait_s(self.market.id))
        while not held:
            await self._steps.guarded(lambda: self._steps.uncut(attempt()))
            if not held:
                await asyncio.sleep(self._lease_s / 3.0 * random.uniform(0.8, 1.2))
        log.info("market %s: leading with token %d", self.market.id, held[0])

    async def _lead(self, token: int) -> None:
        """Returns when the lease is lost."""
        self.stats.leading = True
        try:
            async with asyncio.TaskGroup() as group:
                for loop in (self._renewals, self._windows, *self.upkeep.loops):
                    group.create_task(loop(token))
                if self._share is not None:
                    group.create_task(self._until_given(self._share.took(self.market.id)))
        except* LeaseLost as lost:
            self.stats.leases_lost += 1
            log.warning("market %s: %s", self.market.id, lost.exceptions[0])
        except* _Given:
            self.stats.leases_given += 1
        finally:
            self.stats.leading = False

    async def _until_given(self, given: asyncio.Event) -> None:
        await given.wait()
        raise _Given

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
            await self._steps.guarded(renew)

    async def _windows(self, token: int) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = await self._next_window(due)
            self.stats.windows += 1
            await self._steps.guarded(lambda: self._window(token))

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

    def _fault(self) -> None:
        self.stats.faults += 1

    async def _window(self, token: int) -> None:
        began = asyncio.get_running_loop().time()
        self.stats.positions_live = self._positions_are_live()
        if not self.stats.positions_live:
            self.stats.windows_blind += 1
            return
        waiting = await self._store.waiting(
            self.market.id, limit=self.market.rides_per_batch_max, carrying=self.market.chain_within_s > 0.0
        )
        if waiting.paused:
            self.stats.windows_paused += 1
            return
        queues = NOBODY
        if waiting.rides:  # else the queues are looked at once a second, and that is enough (matcher.upkeep)
            waiting, queues = await self._turns(token, waiting)
        if not self._is_due(waiting) or not waiting.rides:
            return
        decided = await decide(self._batch(waiting, queues), self._solver, self.travel)
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

    async def _turns(self, token: int, waiting: Waiting) -> tuple[Waiting, Queues]:
        """Gives rides from places to whose turn it is there; returns what is left, and who is reserved for places."""
        queues = await self._zones.look(token, self._feed.now_ms(), positions_live=True)
        turns = pinned(
            queues,
            replace(waiting, engaged=waiting.engaged | self._absences.at(self._feed.now_ms())),
            self.market,
            self._index,
            self._feed.now_ms(),
            facts={},
            new_trip_id=new_trip_id,
            tag_bits=self._tag_bits,
        )
        for start in range(0, len(turns), COMMIT_PAIRINGS):
            committed = await self._steps.uncut(self._commit_part(token, turns[start : start + COMMIT_PAIRINGS]))
            self.stats.matched += len(committed.hints)
            self.stats.queued += len(committed.hints)
        given = {turn.ride_id for turn in turns}
        return replace(waiting, rides=[ride for ride in waiting.rides if ride.ride_id not in given]), queues

    def _is_due(self, waiting: Waiting) -> bool:
        """Whether an adaptive window closes now; a fixed one always does."""
        if self._adaptive is None:
            return True
        idle = max(0, self._index.fresh_count(self._feed.now_ms()) - len(waiting.engaged))
        return self._adaptive.close_at_ms(waiting.now_ms, len(waiting.rides), idle) <= waiting.now_ms

    def _batch(self, waiting: Waiting, queues: Queues) -> Batch:
        away = still_engaged(waiting.engaged, waiting.carrying) | queues.queued
        away |= self._absences.at(self._feed.now_ms())
        supply = self._index.supply(self._feed.now_ms(), away)
        idle_since_ms: Mapping[DriverId, int] = {}
        if self.market.idle_bonus:
            idle_since_ms = self._idleness.look(
                waiting.now_ms, supply.driver_ids, waiting.engaged, self.upkeep.histories
            )
        return build_with(
            demand_of(waiting, self.market),
            supply,
            histories=self.upkeep.histories,
            idle_since_ms=idle_since_ms,
            tag_bits=self._tag_bits,
            carrying=waiting.carrying,
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
                committed = await self._steps.uncut(self._commit_part(token, ready))
                matched += len(committed.hints)
                lost.update(each.why for each in committed.lost)
                unmatched += [lost_of(each) for each in committed.lost]
                ready = []
        return matched, lost, unmatched

    async def _commit_part(self, token: int, pairings: Sequence[Pairing]) -> Committed:
        committed = await self._store.commit_plan(
            self.market.id, token, pairings, offer_ttl_ms=self.market.life.offer_ttl_ms
        )
        self.stats.chained += sum(trip.slot is Slot.NEXT for trip in committed.trips)
        self._announcer.announce(committed.hints)
        self._absences.note(committed.lost, self._feed.now_ms())
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

    @property
    def _lease_ms(self) -> int:
        return round(self._lease_s * 1000)
