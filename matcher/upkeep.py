"""What whoever leads a market sees to beside its batches: limits of time, drivers who stall, queues at places.

All of it under the lease's token. What it decides stands in `store_sweep`, `stalls` and `zones`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from geo.distance import between_m
from geo.index import DriverIndex
from geo.model import DriverId, LatLng, MarketId
from matcher.model import Code, Hint, RideId, TripId
from matcher.outcomes import Approach, DriverHistory
from matcher.policy import Market
from matcher.stalls import StallWatch
from matcher.steps import Steps
from matcher.zone_keeper import ZoneKeeper, ZoneStore

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 1.0
SWEEP_MAX = 500
STALLS_EVERY_S = 5.0
APPROACHES_MAX = 20_000
ZONES_EVERY_S = 1.0
#: Drivers' histories count for so long, and are read again so often, where the market's policy asks for them.
HISTORY_MS = 86_400_000
HISTORY_EVERY_S = 30.0


class UpkeepStore(ZoneStore, Protocol):
    """What of the store the upkeep needs (see matcher.store.Store)."""

    async def now_ms(self) -> int: ...

    async def sweep(self, market: MarketId, token: int, *, limit: int = 500) -> list[Hint]: ...

    async def approaching(self, market: MarketId, *, limit: int) -> list[Approach]: ...

    async def withdraw(
        self, market: MarketId, token: int, ride_id: RideId, trip_id: TripId, code: Code
    ) -> list[Hint]: ...

    async def driver_histories(
        self, market: MarketId, *, within_ms: int, limit: int = 100_000
    ) -> dict[DriverId, DriverHistory]: ...


class Clock(Protocol):
    def now_ms(self) -> int:
        """The feed's clock."""


class Announces(Protocol):
    def announce(self, hints: Sequence[Hint]) -> None: ...


class Upkeep:
    """One market's, in one process. `positions_are_live` says whether the index can be trusted now."""

    def __init__(
        self,
        market: Market,
        store: UpkeepStore,
        index: DriverIndex,
        feed: Clock,
        announcer: Announces,
        steps: Steps,
        positions_are_live: Callable[[], bool],
        zones: ZoneKeeper,
    ) -> None:
        self._market = market
        self._store = store
        self._index = index
        self._feed = feed
        self._announcer = announcer
        self._steps = steps
        self._positions_are_live = positions_are_live
        self._zones = zones
        self._stalls = StallWatch(market)
        self.histories: Mapping[DriverId, DriverHistory] = {}
        self.swept = 0
        self.stalled = 0

    @property
    def loops(self) -> tuple[Callable[[int], Coroutine[Any, Any, None]], ...]:
        """Each is run with the lease's token until the lease is gone; one that has nothing to do ends at once."""
        return (self._sweeps, self._looks_for_stalls, self._looks_at_zones, self._readings)

    async def _sweeps(self, token: int) -> None:
        async def sweep() -> None:
            full = True
            while full:
                full = await self._steps.uncut(self._sweep(token)) >= SWEEP_MAX

        while True:
            await self._steps.guarded(sweep)
            await asyncio.sleep(SWEEP_EVERY_S)

    async def _sweep(self, token: int) -> int:
        hints = await self._store.sweep(self._market.id, token, limit=SWEEP_MAX)
        self._announcer.announce(hints)
        self.swept += len(hints)
        return len(hints)

    async def _looks_for_stalls(self, token: int) -> None:
        while self._market.stall_after_s:
            await self._steps.guarded(lambda: self._replace_stalled(token))
            await asyncio.sleep(STALLS_EVERY_S)

    async def _replace_stalled(self, token: int) -> None:
        if not self._positions_are_live():
            self._stalls.blind()
            return
        approaches = await self._store.approaching(self._market.id, limit=APPROACHES_MAX)
        for each in self._stalls.look(await self._store.now_ms(), approaches, self._away):
            await self._steps.uncut(self._replace(token, each))

    async def _replace(self, token: int, stalled: Approach) -> None:
        hints = await self._store.withdraw(self._market.id, token, stalled.ride_id, stalled.trip_id, Code.STALLED)
        if hints:
            self.stalled += 1
            log.info("market %s: a driver who had stalled was replaced", self._market.id)
        self._announcer.announce(hints)

    def _away(self, driver_id: DriverId, place: LatLng) -> float | None:
        [is_fresh] = self._index.fresh([driver_id], self._feed.now_ms())
        fix = self._index.held(driver_id) if is_fresh else None
        return None if fix is None else between_m(LatLng(fix.lat, fix.lon), place)

    async def _looks_at_zones(self, token: int) -> None:
        async def look() -> None:
            await self._zones.look(token, self._feed.now_ms(), self._positions_are_live())

        while self._market.zones:
            await self._steps.guarded(look)
            await asyncio.sleep(ZONES_EVERY_S)

    async def _readings(self, token: int) -> None:
        """Drivers' histories, where the policy of the market asks for them."""

        async def read() -> None:
            self.histories = await self._store.driver_histories(self._market.id, within_ms=HISTORY_MS)

        while self._market.idle_bonus or self._market.refusal_s:
            await self._steps.guarded(read)
            await asyncio.sleep(HISTORY_EVERY_S)
