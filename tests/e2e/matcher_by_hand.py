"""The matcher of a service that runs none, played by the test: it offers, assigns and sweeps when the test says so."""

from __future__ import annotations

import asyncio
from typing import Any

from matcher.model import Hint, RideId, Slot, Trip
from tests.e2e.running import Running
from tests.stores import StoreCase, pairing

OFFER_MS = 60_000


class Matcher(StoreCase):
    """Holds the market's lease, and announces what it does as the service's own would."""

    def __init__(self, run: Running) -> None:
        super().__init__(run.service.store, run.service.settings.store_url)
        self._announcer = run.service.announcer

    async def offer_to(
        self, ride: dict[str, Any], driver: str, *, slot: Slot = Slot.NOW, ttl_ms: int = OFFER_MS
    ) -> Trip:
        return await self._pair(ride, driver, slot, ttl_ms)

    async def assign_to(self, ride: dict[str, Any], driver: str, *, slot: Slot = Slot.NOW) -> Trip:
        return await self._pair(ride, driver, slot, None)

    async def _pair(self, ride: dict[str, Any], driver: str, slot: Slot, ttl_ms: int | None) -> Trip:
        present = await self.now(RideId(ride["id"]))
        committed = await self.commit(pairing(present, driver, slot=slot), offer_ttl_ms=ttl_ms)
        assert not committed.lost, committed.lost
        self._announcer.announce(committed.hints)
        return committed.trips[0]

    async def sweep(self) -> list[Hint]:
        hints = await super().sweep()
        self._announcer.announce(hints)
        return hints

    async def run_out(self, trip: Trip) -> None:
        """The trip's limit passes, which the sweep finds."""
        await self.pass_limit(trip)
        assert await self.sweep()

    # The back door, from a thread: the service goes on meanwhile, and lets go of what it holds.

    async def pass_limit(self, trip: Trip) -> None:
        await asyncio.to_thread(self.past_limit, trip)

    async def was_lost(self, driver: str, ago_ms: int) -> bool:
        """As if the driver's socket had been lost so long ago; False where it is not noted as lost."""
        [(lost_at_ms,)] = await asyncio.to_thread(
            self.sql, "SELECT lost_at_ms FROM drivers WHERE driver_id = ?", driver
        )
        change = "UPDATE drivers SET lost_at_ms = lost_at_ms - ? WHERE driver_id = ?"
        await asyncio.to_thread(self.sql, change, ago_ms, driver)
        return lost_at_ms is not None

    async def arrived(self, trip: Trip, ago_ms: int) -> None:
        """As if the driver had arrived so long ago."""
        change = "UPDATE trips SET arrived_at_ms = arrived_at_ms - ? WHERE trip_id = ?"
        await asyncio.to_thread(self.sql, change, ago_ms, trip.trip_id)
