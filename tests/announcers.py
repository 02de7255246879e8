"""What tests of the announcer share: a book of rides and hints, whose faults are at the test's command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from geo.model import DriverId, LatLng, MarketId
from matcher.announcer import Announcer
from matcher.errors import StoreUnavailable
from matcher.hints import HintsUnavailable, LocalHints, Resync
from matcher.model import (
    NO_RIDE,
    ClientId,
    Driver,
    DriverStatus,
    Hint,
    Ride,
    RideEvent,
    RideId,
    RideState,
    Slot,
    Trip,
    TripId,
    TripState,
)

NYC, ANNA, BEN = MarketId("nyc"), DriverId("anna"), DriverId("ben")
R1, R2 = RideId("r_1"), RideId("r_2")


class Book:
    """Rides and their events in memory; `down` makes every read and write fail. It counts its reads."""

    def __init__(self) -> None:
        self.events: list[RideEvent] = []
        self.rides: dict[RideId, Ride] = {}
        self.rows: dict[DriverId, Driver] = {}
        self.pending: dict[tuple[RideId, int], Hint] = {}
        self.down = False
        self.pending_ms = 10_000  # for how long those that are pending have been so
        self.reads: list[str] = []

    def happen(self, ride_id: RideId, type_: str = "assigned", driver: DriverId | None = None) -> Hint:
        """Commits the next event of this ride, and says the hint."""
        version = max((e.version for e in self.events if e.ride_id == ride_id), default=0) + 1
        state = RideState.COMPLETED if type_ == "completed" else RideState.ASSIGNED
        self.events.append(RideEvent(ride_id, version, NYC, type_, state, driver, TripId("t_1"), None, version))
        hint = Hint(ride_id, version, NYC, driver)
        self.pending[(ride_id, version)] = hint
        return hint

    def put(self, ride_id: RideId, version: int, driver: DriverId, trip_state: TripState, trip: str = "t_1") -> None:
        slot = Slot.NOW if trip_state.is_live else None
        trip_ = Trip(
            TripId(trip), ride_id, driver, NYC, trip_state, slot, 60.0, 400.0, 1, None, None, None, 9, None, {}
        )
        state = RideState.ASSIGNED if trip_state.is_live else RideState.COMPLETED
        here, client = LatLng(40.7, -74.0), ClientId("c")
        self.rides[ride_id] = Ride(
            ride_id, client, NYC, state, version, here, None, 1, "standard", {}, 0, 9, None, None, trip_
        )

    def write_row(self, driver_id: DriverId, status: DriverStatus = DriverStatus.ONLINE, epoch: int = 1) -> Hint:
        """Commits a change of this driver's row, and says the hint."""
        version = self.rows[driver_id].version + 1 if driver_id in self.rows else 1
        self.rows[driver_id] = Driver(driver_id, status, "standard", 4, NYC, epoch, version, version=version)
        return Hint(NO_RIDE, version, NYC, driver_id)

    def _read(self, what: str) -> None:
        self.reads.append(what)
        if self.down:
            raise StoreUnavailable("down")

    async def rides_of(self, ride_ids: Sequence[RideId]) -> dict[RideId, Ride]:
        self._read("rides_of")
        return {ride_id: self.rides[ride_id] for ride_id in ride_ids if ride_id in self.rides}

    async def live_trips(self, driver_ids: Sequence[DriverId]) -> list[Ride]:
        self._read("live_trips")
        return [
            ride
            for ride in self.rides.values()
            if ride.trip is not None and ride.trip.state.is_live and ride.trip.driver_id in driver_ids
        ]

    async def live_versions(self, driver_ids: Sequence[DriverId]) -> dict[DriverId, dict[TripId, int]]:
        self._read("live_versions")
        found: dict[DriverId, dict[TripId, int]] = {}
        for ride in await self.live_trips(driver_ids):
            assert ride.trip is not None
            found.setdefault(ride.trip.driver_id, {})[ride.trip.trip_id] = ride.version
        return found

    async def drivers(self, driver_ids: Sequence[DriverId]) -> list[Driver]:
        self._read("drivers")
        return [self.rows[driver_id] for driver_id in driver_ids if driver_id in self.rows]

    async def driver_versions(self, driver_ids: Sequence[DriverId]) -> dict[DriverId, int]:
        self._read("driver_versions")
        return {driver_id: self.rows[driver_id].version for driver_id in driver_ids if driver_id in self.rows}

    async def events_after(self, known: Mapping[RideId, int], *, limit: int) -> list[RideEvent]:
        self._read("events_after")
        found = [e for e in self.events if e.ride_id in known and e.version > known[e.ride_id]]
        return sorted(found, key=lambda e: (e.ride_id, e.version))[:limit]

    async def versions(self, ride_ids: Sequence[RideId]) -> dict[RideId, int]:
        self._read("versions")
        newest: dict[RideId, int] = {}
        for e in self.events:
            if e.ride_id in ride_ids:
                newest[e.ride_id] = max(e.version, newest.get(e.ride_id, 0))
        return newest

    async def unannounced(self, market: MarketId | None, *, older_than_ms: int, limit: int) -> list[Hint]:
        self._read("unannounced")
        return list(self.pending.values())[:limit] if self.pending_ms >= older_than_ms else []

    async def mark_announced(self, hints: Sequence[Hint]) -> None:
        self._read("mark_announced")
        for hint in hints:
            self.pending.pop((hint.ride_id, hint.version), None)


class LossyHints(LocalHints):
    """Hints that fail, or vanish after they were accepted, at the test's command."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.loses = False
        self.published: list[Hint] = []

    async def publish(self, hints: Sequence[Hint]) -> None:
        if self.fails:
            raise HintsUnavailable("down")
        self.published.extend(hints)
        if not self.loses:
            await super().publish(hints)

    async def resync(self) -> None:
        for queue in self._listeners:
            queue.put_nowait(Resync())


@asynccontextmanager
async def running(book: Book, hints: LossyHints, **options: Any) -> AsyncIterator[Announcer]:
    """An announcer that runs, by default without backstop and relay, so that only hints can help."""
    announcer = Announcer(book, hints, **{"backstop_s": 3600.0, "relay_s": 3600.0, **options})
    task = asyncio.create_task(announcer.run())
    try:
        yield announcer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
