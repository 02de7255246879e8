"""The matcher of a service that runs none, played by the test: it offers, assigns and sweeps when the test says so."""

from __future__ import annotations

import asyncio
from typing import Any

from matcher.model import Hint, RideId, Slot, Trip
from tests.e2e.running import LAT, Answer, Running, Wheel
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


async def offered(run: Running, matcher: Matcher, driver: str = "d1", **named: Any) -> tuple[Wheel, str]:
    """A driver that was shown an offer, and the trip's id."""
    wheel = await run.drive(driver)
    await wheel.stands()
    trip = await matcher.offer_to(await run.ride(**named), driver)
    assert (await wheel.next("offer"))["ride"]["trip"]["id"] == trip.trip_id
    return wheel, trip.trip_id


async def post(run: Running, trip_id: str, verb: str, who: str = "driver:d1") -> Answer:
    return await run.call("POST", f"/v1/trips/{trip_id}/{verb}", who)


async def events_of(run: Running, ride_id: str) -> list[tuple[str, str | None, str | None]]:
    events = await run.service.store.events_after({RideId(ride_id): 0}, limit=100)
    return [(each.type, each.code, each.actor) for each in events]


async def hears_nothing_more(wheel: Wheel, *kinds: str) -> bool:
    """Whether no frame of these types was sent before the acknowledgement of a position."""
    wheel.passed.clear()
    await wheel.stands(LAT + 0.0001)
    return not [frame for frame in wheel.passed if frame["type"] in kinds]
