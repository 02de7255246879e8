"""One market's matcher for tests, everything real: store, feed, index, announcer, and the solver's child."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from geo.area import Circle
from geo.feed import InProcessFeed
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, MarketId
from matcher.announcer import Announcer
from matcher.dispatcher import Dispatcher
from matcher.hints import LocalHints
from matcher.ids import new_ride_id
from matcher.model import ClientId, DriverStatus, Move, NewRide, Ride, RideId, RideState
from matcher.outcomes import Committed, Done, Pairing, Requested
from matcher.policy import Market
from matcher.recording import BatchReport
from matcher.rides import RideDesk
from matcher.solver import SolverChild
from matcher.store import Store

NYC, HERE, RESOLUTION = MarketId("nyc"), LatLng(40.75, -73.98), 8
WITHIN_S = 30.0
#: What dispatchers run with unless a test says otherwise.
LEASE_S = 3.0


def north(metres: float) -> LatLng:
    return LatLng(HERE.lat + metres / 111_195.0, HERE.lon)


@dataclass
class City:
    """One market's matcher, everything in this process but the solver."""

    store: Store
    market: Market
    solver: SolverChild
    index: DriverIndex = field(default_factory=lambda: DriverIndex(resolution=RESOLUTION, stale_after_ms=30_000))
    feed: InProcessFeed = field(default_factory=lambda: InProcessFeed(RESOLUTION))
    hints: LocalHints = field(default_factory=LocalHints)
    reports: list[BatchReport] = field(default_factory=list)
    seq: int = 0

    def __post_init__(self) -> None:
        self.follower = self.feed.follow(NYC, self.index)
        self.announcer = Announcer(self.store, self.hints, backstop_s=0.5, relay_s=0.5)
        self.desk = RideDesk(self.store, self.announcer)

    def dispatcher(self, holder: str = "m1", store: Any = None, **fields: Any) -> Dispatcher:
        """`store` stands before the city's own; `fields` are the dispatcher's options."""
        return Dispatcher(
            self.market,
            store or self.store,
            self.index,
            self.follower,
            self.feed,
            self.solver,
            self.announcer,
            holder,
            on_batch=self.reports.append,
            **{"lease_s": LEASE_S, **fields},
        )

    async def driver(self, name: str, at: LatLng = HERE, *, age_ms: int = 0) -> None:
        """Puts a driver, signs it on and publishes where it is."""
        driver_id = DriverId(name)
        await self.store.put_driver(driver_id, vehicle_class="standard", seats=4, status=DriverStatus.OFFLINE)
        signed = await self.store.sign_on(driver_id, NYC)
        assert signed is not None
        await self.position(name, at, age_ms=age_ms, epoch=signed.driver.epoch)

    async def position(self, name: str, at: LatLng, *, age_ms: int = 0, epoch: int = 1) -> None:
        self.seq += 1
        fix = Fix(DriverId(name), at.lat, at.lon, epoch, 1, self.seq, age_ms, "standard", 4)
        await self.feed.publish(NYC, [fix])

    async def request(
        self,
        at: LatLng = HERE,
        *,
        deadline_ms: int = 600_000,
        dropoff: LatLng | None = None,
        pickup_at_ms: int | None = None,
        lead_ms: int = 0,
    ) -> RideId:
        new = NewRide(
            new_ride_id(),
            ClientId("c"),
            NYC,
            at,
            dropoff,
            1,
            "standard",
            deadline_ms,
            {},
            None,
            os.urandom(32),
            pickup_at_ms=pickup_at_ms,
            lead_ms=lead_ms,
        )
        outcome = await self.desk.request(new)
        assert isinstance(outcome, Requested)
        return outcome.ride.ride_id

    async def ride(self, ride_id: RideId) -> Ride:
        ride = await self.store.ride(ride_id)
        assert ride is not None
        return ride

    async def reaches(self, ride_id: RideId, state: RideState) -> Ride:
        async def there() -> bool:
            return (await self.ride(ride_id)).state is state

        await until_true(there, f"{ride_id} {state}")
        return await self.ride(ride_id)

    async def offered_to(self, ride_id: RideId, name: str) -> Ride:
        return await self._with(ride_id, RideState.OFFERED, name)

    async def assigned_to(self, ride_id: RideId, name: str) -> Ride:
        return await self._with(ride_id, RideState.ASSIGNED, name)

    async def _with(self, ride_id: RideId, state: RideState, name: str) -> Ride:
        async def there() -> bool:
            ride = await self.ride(ride_id)
            return ride.state is state and ride.trip is not None and ride.trip.driver_id == name

        await until_true(there, f"{ride_id} {state} to {name}")
        return await self.ride(ride_id)

    async def queued(self, *names: str) -> None:
        """Waits until these stand in the queues of the market's places, in this order."""

        async def there() -> bool:
            queues = await self.store.zone_queues(NYC)
            return [driver for waiting in queues.values() for driver in waiting] == list(names)

        await until_true(there, f"queued: {names}")

    async def does(self, ride_id: RideId, *moves: Move) -> None:
        """The ride's driver does these in turn."""
        trip = (await self.ride(ride_id)).trip
        assert trip is not None
        for move in moves:
            assert isinstance(await self.desk.move_trip(trip.trip_id, move, driver_id=trip.driver_id), Done)


@contextlib.asynccontextmanager
async def city_of(url: str, solver: SolverChild, **policy: Any) -> AsyncIterator[City]:
    """A city whose feed and announcer run; the test runs the dispatcher."""
    market = Market(NYC, Circle(HERE, 30_000.0), **{"window_s": 0.1, **policy})
    store = await Store.open(url, lease_s=LEASE_S, lives={NYC: market.life})
    try:
        await store.migrate()
        city = City(store, market, solver)
        async with running(city.follower.run(), city.announcer.run()):
            await city.follower.ready()
            yield city
            await city.desk.close()
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def running(*runs: Awaitable[None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_true(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not await condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}"
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], what: str = "") -> None:
    async def holds() -> bool:
        return condition()

    await until_true(holds, what)


class Watched:
    """A store whose calls are noted. Those named in `faults` raise these instead, one after the other, as long as
    there are any; commits wait for the gate, which is open unless a test closes it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.called: list[str] = []
        self.committed: list[int] = []  # pairings in each commit
        self.faults: dict[str, list[Exception]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.committing = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def watched(*args: Any, **options: Any) -> Any:
            self._note(name)
            return await method(*args, **options)

        return watched

    def _note(self, name: str) -> None:
        self.called.append(name)
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    async def commit_plan(
        self, market: MarketId, token: int, pairings: Sequence[Pairing], *, offer_ttl_ms: int | None = None
    ) -> Committed:
        self.committing.set()
        await self.gate.wait()
        self._note("commit_plan")
        self.committed.append(len(pairings))
        return await self._store.commit_plan(market, token, pairings, offer_ttl_ms=offer_ttl_ms)
