"""The keeper of a market's queues at places: looks who is there, and writes what becomes of the places.

Belongs to whoever holds the market's lease. What becomes of a place is decided in `zones`; the rows are the store's,
so that a keeper that takes over, or whose live positions are lost, carries on with everybody's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Protocol

from geo.index import DriverIndex
from geo.model import DriverId, MarketId
from matcher.model import NO_RIDE, Hint
from matcher.policy import Market
from matcher.zones import NOBODY, Change, Queues, Sight, Standing, after, queues_of, step

#: Who came and went while nobody looked for so long is not known: nobody's time away counts before the next look.
GAP_MS = 10_000


class ZoneStore(Protocol):
    """What of the store the keeper needs (see matcher.store.Store)."""

    async def zone_standing(
        self, market: MarketId, *, seen: Collection[DriverId], since_ms: int | None = None
    ) -> Standing: ...

    async def put_zone_changes(self, market: MarketId, token: int, changes: Sequence[Change]) -> None: ...


class HintAnnouncer(Protocol):
    def announce(self, hints: Sequence[Hint]) -> None: ...


class ZoneKeeper:
    """One market's queues in one process; belongs to one event loop. A market without zones costs nothing."""

    def __init__(self, market: Market, store: ZoneStore, index: DriverIndex, announcer: HintAnnouncer) -> None:
        self._market = market
        self._store = store
        self._index = index
        self._announcer = announcer
        self._boxes = [(zone, zone.area.bbox) for zone in market.zones]
        self._looked_at_ms: int | None = None  # by the database's clock
        self._live_since_ms: int | None = None
        self._one_at_a_time = asyncio.Lock()

    async def look(self, token: int, now_ms: int, positions_live: bool) -> Queues:
        """The queues as they are now, written and announced where they have changed.

        `now_ms` is the feed's clock. While positions are not live, nobody who is not seen loses anything by it. Raises
        LeaseLost and StoreUnavailable; the next look makes up for one that failed.
        """
        if not self._market.zones:
            return NOBODY
        async with self._one_at_a_time:
            return await self._look(token, now_ms, positions_live)

    async def _look(self, token: int, now_ms: int, positions_live: bool) -> Queues:
        inside = self._inside(now_ms) if positions_live else {}
        seen = frozenset[DriverId]().union(*inside.values())
        standing = await self._store.zone_standing(self._market.id, seen=seen, since_ms=self._looked_at_ms)
        self._note_live(standing.now_ms, positions_live)
        changes = step(self._market.zones, standing, Sight(inside, self._live_since_ms))
        places = after(standing.places, changes)
        if changes:
            await self._store.put_zone_changes(self._market.id, token, changes)
        self._looked_at_ms = standing.now_ms
        queues = queues_of(places)
        if queues.waiting != queues_of(standing.places).waiting:
            self._announcer.announce([Hint(NO_RIDE, 0, self._market.id, None)])
        return queues

    def _inside(self, now_ms: int) -> dict[str, frozenset[DriverId]]:
        """By zone, who is inside: fresh, and available."""
        inside = {}
        for zone, box in self._boxes:
            ids, lats, lons = self._index.available_in(box, now_ms)
            is_inside = zone.area.contains_each(lats, lons).tolist()
            inside[zone.id] = frozenset(driver_id for driver_id, there in zip(ids, is_inside, strict=True) if there)
        return inside

    def _note_live(self, now_ms: int, positions_live: bool) -> None:
        """Since when nobody was away unseen: a look that comes late, or after a blind one, begins anew."""
        was_seen = self._looked_at_ms is not None and 0 <= now_ms - self._looked_at_ms <= GAP_MS
        if not positions_live:
            self._live_since_ms = None
        elif self._live_since_ms is None or not was_seen:
            self._live_since_ms = now_ms
