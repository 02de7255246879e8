"""The dispatcher on a real store, a real index and a real solver child."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from geo.area import Circle
from geo.feed import InProcessFeed
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, MarketId
from matcher.announcer import Announcer
from matcher.dispatcher import BatchReport, Dispatcher
from matcher.hints import LocalHints
from matcher.ids import new_ride_id
from matcher.model import ClientId, DriverStatus, Move, NewRide, Ride, RideId, RideState
from matcher.outcomes import Committed, Done, Pairing, Requested
from matcher.policy import Market
from matcher.rides import RideDesk
from matcher.solver import SolverChild
from matcher.store import Store
from tests.servers import MariaServer, fresh_database

NYC, HERE, RESOLUTION = MarketId("nyc"), LatLng(40.75, -73.98), 8
WITHIN_S = 30.0


def north(metres: float) -> LatLng:
    return LatLng(HERE.lat + metres / 111_195.0, HERE.lon)


@dataclass
class City:
    """One market's matcher, everything real and in this process but the solver."""

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

    def dispatcher(self, holder: str = "m1", store: Any = None, lease_s: float = 3.0) -> Dispatcher:
        return Dispatcher(
            self.market,
            store or self.store,
            self.index,
            self.follower,
            self.feed,
            self.solver,
            self.announcer,
            holder,
            lease_s=lease_s,
            on_batch=self.reports.append,
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

    async def request(self, at: LatLng = HERE, *, deadline_ms: int = 600_000) -> RideId:
        new = NewRide(new_ride_id(), ClientId("c"), NYC, at, None, 1, "standard", deadline_ms, {}, None, os.urandom(32))
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


async def until_true(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not await condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}"
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool], what: str = "") -> None:
    async def holds() -> bool:
        return condition()

    await until_true(holds, what)


@contextlib.asynccontextmanager
async def running(*runs: Awaitable[None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(params=["sqlite", "mysql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/hexhail.db"
    url: str = request.getfixturevalue("mysql_database")
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/hexhail.db"


@contextlib.asynccontextmanager
async def city_of(url: str, **policy: Any) -> AsyncIterator[City]:
    """A city whose feed and announcer run; the test runs the dispatcher."""
    store, solver = await Store.open(url, lease_s=3.0), SolverChild()
    market = Market(NYC, Circle(HERE, 30_000.0), **{"window_s": 0.1, **policy})
    try:
        await store.migrate()
        city = City(store, market, solver)
        async with running(city.follower.run(), city.announcer.run()):
            await city.follower.ready()
            yield city
            await city.desk.close()
    finally:
        await solver.close()
        await store.close()


async def test_waiting_rides_are_matched_together_and_everybody_hears_of_it(database_url: str) -> None:
    async with city_of(database_url) as city:
        await city.driver("anna", north(-1500))
        await city.driver("ben", north(500))
        told: list[Ride] = []
        first, second = await city.request(HERE), await city.request(north(1000))
        with (
            city.announcer.ride_listener(first, 1) as events,
            city.announcer.driver_listener(DriverId("ben"), told.append),
        ):
            async with running(city.dispatcher().run()):
                rides = [await city.reaches(ride_id, RideState.ASSIGNED) for ride_id in (first, second)]
                event = await events.next(WITHIN_S)
                await until(lambda: bool(told), "ben hears of it")
        assert [ride.trip.driver_id for ride in rides if ride.trip] == ["anna", "ben"]
        assert event is not None
        assert (event.type, event.version, event.driver_id) == ("assigned", 2, "anna")
        assert told[0].ride_id == second
        assert rides[0].trip is not None
        assert rides[0].trip.decision["certified"] is True
        assert sum(report.matched for report in city.reports) == 2
        audit = await city.store.audit()
        assert audit.holds
        assert await city.store.unannounced(NYC, older_than_ms=0, limit=10) == []


async def test_a_driver_that_cancelled_is_not_given_the_same_ride_again(database_url: str) -> None:
    async with city_of(database_url) as city:
        await city.driver("near", north(100))
        ride_id = await city.request()
        async with running(city.dispatcher().run()):
            ride = await city.reaches(ride_id, RideState.ASSIGNED)
            assert ride.trip is not None
            outcome = await city.desk.move_trip(ride.trip.trip_id, Move.DRIVER_CANCEL, driver_id=DriverId("near"))
            assert isinstance(outcome, Done)
            await until(lambda: city.reports[-1].unmatched == {"all_refused": 1}, "all refused")
            await city.driver("far", north(3000))
            ride = await city.reaches(ride_id, RideState.ASSIGNED)
        assert ride.trip is not None
        assert ride.trip.driver_id == "far"
        assert ride.trip.decision["refused"] == 1


async def test_an_engaged_driver_is_matched_again_after_its_trip(sqlite_url: str) -> None:
    async with city_of(sqlite_url) as city:
        await city.driver("anna")
        first, second = await city.request(), await city.request(north(50))
        async with running(city.dispatcher().run()):
            await until(
                lambda: bool(city.reports) and city.reports[-1].unmatched == {"no_driver_in_reach": 1}, "scarce"
            )
            rides = {ride_id: await city.ride(ride_id) for ride_id in (first, second)}
            ((served, ride),) = [(k, v) for k, v in rides.items() if v.state is RideState.ASSIGNED]
            assert ride.trip is not None
            for move in (Move.ARRIVE, Move.START, Move.COMPLETE):
                assert isinstance(await city.desk.move_trip(ride.trip.trip_id, move, driver_id=DriverId("anna")), Done)
            await city.reaches(second if served == first else first, RideState.ASSIGNED)
        assert (await city.store.audit()).holds


async def test_a_ride_past_its_deadline_expires_and_says_so(database_url: str) -> None:
    async with city_of(database_url) as city:
        ride_id = await city.request(deadline_ms=200)
        with city.announcer.ride_listener(ride_id, 1) as events:
            async with running(city.dispatcher().run()):
                await city.reaches(ride_id, RideState.EXPIRED)
                heard = [event.type async for event in events]
        assert heard == ["expired"]


async def test_a_stale_driver_is_never_matched(sqlite_url: str) -> None:
    async with city_of(sqlite_url) as city:
        await city.driver("silent", age_ms=31_000)
        ride_id = await city.request()
        async with running(city.dispatcher().run()):
            await until(lambda: len(city.reports) >= 3, "three batches")
            assert (await city.ride(ride_id)).state is RideState.SEARCHING
            await city.position("silent", north(10))
            await city.reaches(ride_id, RideState.ASSIGNED)


async def test_nothing_is_matched_while_the_positions_are_not_live(sqlite_url: str) -> None:
    async with city_of(sqlite_url) as city:
        await city.driver("anna")
        ride_id, doomed = await city.request(), await city.request(deadline_ms=200)
        city.follower.fault = "the feed is down"
        dispatcher = city.dispatcher()
        async with running(dispatcher.run()):
            await city.reaches(doomed, RideState.EXPIRED)  # the sweep goes on (P4)
            await until(lambda: dispatcher.stats.windows_blind >= 2, "blind windows")
            assert (await city.ride(ride_id)).state is RideState.SEARCHING
            assert not dispatcher.stats.positions_live
            city.follower.fault = None
            await city.reaches(ride_id, RideState.ASSIGNED)
            assert dispatcher.stats.positions_live


async def test_one_matcher_leads_and_its_successor_starts_when_it_stops(database_url: str) -> None:
    async with city_of(database_url) as city:
        await city.driver("anna")
        first, second = city.dispatcher("m1", lease_s=60.0), city.dispatcher("m2", lease_s=3.0)
        async with running(first.run()) as (task,):
            await until(lambda: first.stats.leading, "the first leads")
            async with running(second.run()):
                await city.reaches(await city.request(), RideState.ASSIGNED)
                assert not second.stats.leading
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await until(lambda: second.stats.leading, "the second leads, long before the lease runs out")


async def test_a_lease_taken_away_sends_the_matcher_back_to_acquiring(sqlite_url: str) -> None:
    async with city_of(sqlite_url) as city:
        dispatcher = city.dispatcher("m1", lease_s=1.0)
        async with running(dispatcher.run()):
            await until(lambda: dispatcher.stats.leading, "leads")
            # The same holder may take its lease anew: the token that the dispatcher holds is void.
            assert await city.store.acquire_lease(NYC, "m1", 1000) is not None
            await until(lambda: dispatcher.stats.leases_lost == 1, "notices")
            await city.driver("anna")
            await city.reaches(await city.request(), RideState.ASSIGNED)


async def test_a_solver_killed_at_any_time_costs_no_ride(sqlite_url: str) -> None:
    async with city_of(sqlite_url) as city:
        async with running(city.dispatcher().run()):
            for number in range(3):
                await city.driver(f"d{number}", north(10.0 * number))
                await city.solver.start()
                assert city.solver.pid is not None
                os.kill(city.solver.pid, signal.SIGKILL)
                await city.reaches(await city.request(), RideState.ASSIGNED)
        assert (await city.store.audit()).holds


async def test_a_market_without_window_decides_on_arrival(sqlite_url: str) -> None:
    async with city_of(sqlite_url, window_s=0.0) as city:
        for number in range(5):
            await city.driver(f"d{number}", north(10.0 * number))
        async with running(city.dispatcher().run()):
            for _ in range(5):
                await city.reaches(await city.request(), RideState.ASSIGNED)
        assert len(city.reports) >= 5


class Gated:
    """A store whose commits wait for a gate, and which breaks once when told to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.gate = asyncio.Event()
        self.committing = asyncio.Event()
        self.breaks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit_plan(
        self, market: MarketId, token: int, pairings: Sequence[Pairing], *, offer_ttl_ms: int | None = None
    ) -> Committed:
        self.committing.set()
        await self.gate.wait()
        if self.breaks:
            self.breaks -= 1
            raise ZeroDivisionError("a defect")
        return await self._store.commit_plan(market, token, pairings, offer_ttl_ms=offer_ttl_ms)


async def test_a_stop_in_the_middle_of_a_commit_finishes_and_announces_it(sqlite_url: str) -> None:
    async with city_of(sqlite_url) as city:
        await city.driver("anna")
        ride_id = await city.request()
        store = Gated(city.store)
        async with running(city.dispatcher(store=store).run()) as (task,):
            await asyncio.wait_for(store.committing.wait(), WITHIN_S)
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
            store.gate.set()
            await asyncio.gather(task, return_exceptions=True)
        assert (await city.ride(ride_id)).state is RideState.ASSIGNED
        assert await city.store.acquire_lease(NYC, "successor", 1000) is not None
        await city.announcer.close()
        assert await city.store.unannounced(NYC, older_than_ms=0, limit=10) == []


async def test_a_defect_in_one_window_does_not_end_the_market(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with city_of(sqlite_url) as city:
        await city.driver("anna")
        ride_id = await city.request()
        store = Gated(city.store)
        store.gate.set()
        store.breaks = 1
        async with running(city.dispatcher(store=store).run()):
            await city.reaches(ride_id, RideState.ASSIGNED)
        assert "a defect" in caplog.text


async def test_a_pairing_that_lost_a_race_drops_out_alone(sqlite_url: str) -> None:
    async with city_of(sqlite_url) as city:
        for name in ("anna", "ben"):
            await city.driver(name, north(10))
        gone, stays = await city.request(), await city.request()
        store = Gated(city.store)
        async with running(city.dispatcher(store=store).run()):
            await asyncio.wait_for(store.committing.wait(), WITHIN_S)
            assert isinstance(await city.desk.cancel(gone, client_id=ClientId("c"), reason="changed mind"), Done)
            store.gate.set()
            await city.reaches(stays, RideState.ASSIGNED)
            await until(lambda: bool(city.reports), "the report")
        assert city.reports[0].matched == 1
        assert city.reports[0].lost == {"ride_changed": 1}
        assert (await city.store.audit()).holds


@pytest.mark.chaos
async def test_the_matcher_outlives_a_database_that_is_killed_and_comes_back(maria_server: MariaServer) -> None:
    with fresh_database(maria_server.url) as url:
        async with city_of(url) as city:
            for name in ("anna", "ben"):
                await city.driver(name, north(10))
            dispatcher = city.dispatcher()
            async with running(dispatcher.run()):
                await city.reaches(await city.request(), RideState.ASSIGNED)
                ride_id = await city.request()
                maria_server.kill()
                faults = dispatcher.stats.faults
                await until(lambda: dispatcher.stats.faults > faults, "the fault is noticed")
                await asyncio.to_thread(maria_server.restart)
                await city.reaches(ride_id, RideState.ASSIGNED)
            assert (await city.store.audit()).holds
