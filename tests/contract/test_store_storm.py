"""All commands at once, in random order: whatever the interleaving, the promises hold (P1, P3, P4, P7)."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable

import pytest

from geo.model import DriverId, LatLng
from matcher.model import (
    DRIVER_MOVES,
    TRANSITIONS,
    Actor,
    Code,
    DriverStatus,
    Hint,
    RideId,
    RideState,
    Slot,
)
from matcher.outcomes import Done, StatusSet, SuspendTrips
from tests.stores import MARKET, StoreCase, pairing

DRIVERS, CLIENTS, ROUNDS, COMMANDS = 5, 4, 6, 14
#: By an event's name, from which state of a ride to which.
STEPS = {(row.event, row.ride_from.value, row.ride_to.value) for rows in TRANSITIONS.values() for row in rows}


class Storm:
    """Random commands of clients, drivers, operators and a matcher."""

    def __init__(self, case: StoreCase, seed: int) -> None:
        self._case = case
        self._random = random.Random(seed)
        self.drivers: list[DriverId] = []
        self.rides: list[RideId] = []
        self.hinted: set[tuple[RideId, int, DriverId | None]] = set()

    async def begin(self) -> None:
        self.drivers = [await self._case.driver() for _ in range(DRIVERS)]
        await self._case.lease()

    async def round(self) -> None:
        kinds: list[Callable[[], Awaitable[object]]] = [
            self._request,
            self._plan,
            self._sweep,
            self._drive,
            self._drive,
            self._drive,
            self._cancel,
            self._by_hand,
            self._status,
            self._time_passes,
        ]
        await self._request()
        await self._plan()
        await asyncio.gather(*[self._random.choice(kinds)() for _ in range(COMMANDS)])

    async def _request(self) -> None:
        is_later = self._random.random() < 0.2
        pickup_at_ms = await self._case.store.now_ms() + 3_600_000 if is_later else None
        ride = await self._case.ride(f"c-{self._random.randrange(CLIENTS)}", pickup_at_ms=pickup_at_ms)
        self.rides.append(ride.ride_id)

    async def _plan(self) -> None:
        """One that believes each driver to be in another place than it may be in by the commit."""
        waiting = await self._case.store.waiting(MARKET, limit=DRIVERS)
        ttl_ms = self._random.choice([None, 60_000])
        plan = [
            pairing(ride, driver, slot=Slot.NEXT if driver in waiting.engaged else Slot.NOW, release_after_ms=900_000)
            for ride, driver in zip(waiting.rides, self._random.sample(self.drivers, DRIVERS), strict=False)
        ]
        self._heard((await self._case.commit(*plan, offer_ttl_ms=ttl_ms)).hints)

    async def _sweep(self) -> None:
        self._heard(await self._case.sweep())

    async def _drive(self) -> None:
        driver = self._random.choice(self.drivers)
        for ride in await self._case.store.live_trips([driver]):
            assert ride.trip is not None
            move = self._random.choice(DRIVER_MOVES[:5] * 3 + DRIVER_MOVES)
            outcome = await self._case.store.move_trip(ride.trip.trip_id, move, driver_id=driver)
            self._heard(getattr(outcome, "hints", ()))

    async def _cancel(self) -> None:
        ride_id, actor = self._random.choice(self.rides), self._random.choice([Actor.RIDER, Actor.OPERATOR])
        self._heard_of(await self._case.store.cancel_ride(ride_id, client_id=None, reason=None, actor=actor))

    async def _by_hand(self) -> None:
        store, ride_id = self._case.store, self._random.choice(self.rides)
        what = self._random.choice(["assign", "assign", "release", "complete", "redirect", "withdraw"])
        if what == "assign":
            ttl_ms = self._random.choice([None, 60_000])
            driver = self._random.choice(self.drivers)
            self._heard_of(await self._case.assign(ride_id, driver, offer_ttl_ms=ttl_ms))
        elif what == "release":
            self._heard_of(await store.release_ride(ride_id, reason=None))
        elif what == "complete":
            self._heard_of(await store.complete_ride(ride_id, reason=None))
        elif what == "redirect":
            self._heard_of(await store.redirect_ride(ride_id, LatLng(40.0, self._random.random()), client_id=None))
        elif (trip := (await self._case.now(ride_id)).live_trip) is not None:
            self._heard(await store.withdraw(MARKET, self._case.token, ride_id, trip.trip_id, Code.STALLED))

    async def _status(self) -> None:
        driver = self._random.choice(self.drivers)
        status = self._random.choice([*DriverStatus, DriverStatus.ONLINE, DriverStatus.ONLINE])
        outcome: StatusSet | None
        if status is DriverStatus.SUSPENDED:
            which = self._random.choice(list(SuspendTrips))
            outcome = await self._case.store.suspend(driver, trips=which, reason=None)
        else:
            outcome = await self._case.store.set_status(driver, status, epoch=None)
        assert outcome is not None
        self._heard(outcome.hints)

    async def _time_passes(self) -> None:
        """Beyond the limits of some trip or ride."""
        ride_id = self._random.choice(self.rides)
        which = self._random.choice(["deadline", "offer", "limit", "lost"])
        trip = (await self._case.now(ride_id)).live_trip
        if which == "deadline":
            await asyncio.to_thread(self._case.past_deadline, ride_id)
        elif trip is not None and which == "offer":
            await asyncio.to_thread(self._case.past_offer, trip)
        elif trip is not None and which == "limit":
            await asyncio.to_thread(self._case.past_limit, trip)
        elif trip is not None:
            await self._case.store.note_lost(trip.driver_id, epoch=1)
            await asyncio.to_thread(self._case.lost_since, trip.driver_id, 60_000)

    def _heard_of(self, outcome: object) -> None:
        if isinstance(outcome, Done):
            self._heard(outcome.hints)

    def _heard(self, hints: Iterable[Hint]) -> None:
        self.hinted.update((hint.ride_id, hint.version, hint.driver_id) for hint in hints)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_at_once_the_promises_hold(case: StoreCase, seed: int) -> None:
    storm = Storm(case, seed)
    await storm.begin()
    for _ in range(ROUNDS):
        await storm.round()
        audit = await case.store.audit()
        assert audit.holds, audit
    events = await case.store.events_after(dict.fromkeys(storm.rides, 0), limit=5000)
    for ride_id in storm.rides:
        ride = await case.now(ride_id)
        told = [event for event in events if event.ride_id == ride_id]
        assert [event.version for event in told] == list(range(1, ride.version + 1))
        assert told[-1].state is ride.state
        assert told[0].state in (RideState.SEARCHING, RideState.SCHEDULED)
        for before, after in itertools.pairwise(told):
            assert (after.type, before.state.value, after.state.value) in STEPS
            assert after.actor is not None
            # Whoever made the change told of it, and whose trip it was.
            assert (ride_id, after.version, after.driver_id) in storm.hinted
    for driver in await case.store.drivers(storm.drivers):
        if driver.status in (DriverStatus.OFFLINE, DriverStatus.SUSPENDED):
            assert all(ride.state is not RideState.OFFERED for ride in await case.store.live_trips([driver.driver_id]))
