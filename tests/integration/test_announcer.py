"""Committed events reach listeners: on real stores, within a process and across Redis (P9)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from geo.model import DriverId, LatLng, MarketId
from matcher.announcer import Announcer
from matcher.hints import Hints, LocalHints, RedisHints
from matcher.ids import new_ride_id, new_trip_id
from matcher.model import ClientId, Move, NewRide, Ride, RideId, Slot, TripId
from matcher.outcomes import Done, Pairing, Requested
from matcher.rides import RideDesk
from matcher.store import Store
from tests.servers import RedisServer, redis_client

NYC, ANNA, BEN = MarketId("nyc"), DriverId("anna"), DriverId("ben")
WITHIN_S = 20.0


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s: {what}"
        await asyncio.sleep(0.01)


@dataclass
class Process:
    """What one process has: its own store, hints, announcer and desk."""

    store: Store
    announcer: Announcer
    desk: RideDesk

    async def request(self) -> RideId:
        point = LatLng(40.75, -73.98)
        new = NewRide(new_ride_id(), ClientId("c"), NYC, point, None, 1, "standard", 600_000, {}, None, os.urandom(32))
        outcome = await self.desk.request(new)
        assert isinstance(outcome, Requested)
        return outcome.ride.ride_id

    async def sign_on(self, driver_id: DriverId) -> None:
        await self.store.put_driver(driver_id, vehicle_class="standard", seats=4)
        assert await self.store.sign_on(driver_id, NYC) is not None

    async def match(self, ride_id: RideId, version: int, driver_id: DriverId) -> TripId:
        token = await self.store.acquire_lease(NYC, "test", 60_000)
        assert token is not None
        pairing = Pairing(new_trip_id(), ride_id, version, driver_id, Slot.NOW, 60.0, 400.0, 600_000, {})
        committed = await self.store.commit_plan(NYC, token, [pairing])
        assert len(committed.trips) == 1
        self.announcer.announce(committed.hints)
        return pairing.trip_id

    async def move(self, trip_id: TripId, move: Move, driver_id: DriverId) -> None:
        assert isinstance(await self.desk.move_trip(trip_id, move, driver_id=driver_id), Done)


@contextlib.asynccontextmanager
async def process(url: str, hints: Hints, **options: Any) -> AsyncIterator[Process]:
    store = await Store.open(url)
    announcer = Announcer(store, hints, **{"backstop_s": 3600.0, "relay_s": 3600.0, **options})
    task = asyncio.create_task(announcer.run())
    try:
        await store.migrate()
        yield Process(store, announcer, RideDesk(store, announcer))
    finally:
        await announcer.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await hints.close()
        await store.close()


@pytest.fixture(params=["sqlite", "mysql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/hexhail.db"
    url: str = request.getfixturevalue("mysql_database")
    return url


def states(told: list[Ride]) -> list[str]:
    return [str(ride.trip.state) for ride in told if ride.trip is not None]


async def lived(here: Process, ride_id: RideId, told: list[Ride]) -> None:
    """A ride's whole life with Anna, each step once she has heard of the one before."""
    trip_id = await here.match(ride_id, 1, ANNA)
    for number, move in enumerate((Move.ARRIVE, Move.START, Move.COMPLETE), start=1):
        await until(lambda number=number: len(told) == number, f"told of step {number}")  # type: ignore[misc]
        await here.move(trip_id, move, ANNA)
    await until(lambda: len(told) == 4, "told of the end")


async def test_a_rides_life_reaches_its_client_and_its_driver_in_order(database_url: str) -> None:
    async with process(database_url, LocalHints()) as here:
        await here.sign_on(ANNA)
        ride_id = await here.request()
        told: list[Ride] = []
        with here.announcer.ride_listener(ride_id, 0) as events, here.announcer.driver_listener(ANNA, told.append):
            await lived(here, ride_id, told)
            heard = [(event.version, event.type) async for event in events]
        assert heard == [(1, "requested"), (2, "assigned"), (3, "arrived"), (4, "started"), (5, "completed")]
        assert states(told) == ["accepted", "arrived", "in_progress", "completed"]


async def test_another_process_hears_of_it_over_redis(mysql_database: str, clean_redis_url: str) -> None:
    def hints() -> RedisHints:
        return RedisHints(clean_redis_url, [NYC])

    async with process(mysql_database, hints()) as here, process(mysql_database, hints()) as there:
        await here.sign_on(ANNA)
        ride_id = await here.request()
        told: list[Ride] = []
        with there.announcer.ride_listener(ride_id, 1) as events, there.announcer.driver_listener(ANNA, told.append):
            await until(lambda: there.announcer.stats.resyncs >= 1, "it listens")
            await lived(here, ride_id, told)
            assert [event.version async for event in events] == [2, 3, 4, 5]
        assert states(told) == ["accepted", "arrived", "in_progress", "completed"]


async def test_a_rider_who_cancels_is_told_to_the_driver(database_url: str) -> None:
    async with process(database_url, LocalHints()) as here:
        await here.sign_on(ANNA)
        ride_id = await here.request()
        told: list[Ride] = []
        with here.announcer.driver_listener(ANNA, told.append):
            await here.match(ride_id, 1, ANNA)
            await until(lambda: len(told) == 1, "told of the trip")
            outcome = await here.desk.cancel(ride_id, client_id=ClientId("c"), reason="changed mind")
            assert isinstance(outcome, Done)
            await until(lambda: len(told) == 2, "told of its end")
        assert states(told) == ["accepted", "withdrawn"]


async def test_a_driver_hears_of_its_cancelled_trips_end_and_nothing_of_its_successor(database_url: str) -> None:
    async with process(database_url, LocalHints()) as here:
        for driver_id in (ANNA, BEN):
            await here.sign_on(driver_id)
        ride_id = await here.request()
        anna: list[Ride] = []
        ben: list[Ride] = []
        with here.announcer.driver_listener(ANNA, anna.append), here.announcer.driver_listener(BEN, ben.append):
            trip_id = await here.match(ride_id, 1, ANNA)
            await until(lambda: len(anna) == 1, "anna is told")
            # Not announced by the desk: the ride has gone on before anybody looks at it.
            done = await here.store.move_trip(trip_id, Move.DRIVER_CANCEL, driver_id=ANNA, reason="flat tyre")
            assert isinstance(done, Done)
            await here.match(ride_id, 3, BEN)
            here.announcer.announce(done.hints)
            await until(lambda: len(anna) == 2 and len(ben) == 1, "both are told")
        assert states(anna) == ["accepted", "cancelled"]
        assert {ride.trip.driver_id for ride in anna if ride.trip} == {ANNA}
        assert anna[1].trip is not None
        assert anna[1].trip.end_reason == "flat tyre"
        assert states(ben) == ["accepted"]


async def test_rows_of_a_process_that_died_are_relayed(database_url: str) -> None:
    async with process(database_url, LocalHints(), relay_s=0.1, relay_after_ms=0) as here:
        ride_id = await here.request()
        with here.announcer.ride_listener(ride_id, 1) as events:
            # Committed, and the process died before it announced.
            assert isinstance(await here.store.cancel_ride(ride_id, client_id=None, reason="late"), Done)
            assert [event.type async for event in events] == ["cancelled"]
        await until(lambda: here.announcer.stats.relayed >= 1, "the relay counts it")


def flush(server: RedisServer) -> None:
    with contextlib.closing(redis_client(server.url)) as client:
        client.flushall()


@pytest.mark.chaos
async def test_a_flush_and_a_crash_of_redis_lose_no_announcement(
    mysql_database: str, redis_server: RedisServer
) -> None:
    def hints() -> RedisHints:
        return RedisHints(redis_server.url, [NYC])

    options = {"backstop_s": 0.5, "relay_s": 0.3, "relay_after_ms": 300}
    async with (
        process(mysql_database, hints(), **options) as here,
        process(mysql_database, hints(), **options) as there,
    ):
        await here.sign_on(ANNA)
        for fault in (flush, RedisServer.kill):
            ride_id = await here.request()
            with there.announcer.ride_listener(ride_id, 1) as events:
                trip_id = await here.match(ride_id, 1, ANNA)
                fault(redis_server)
                for move in (Move.ARRIVE, Move.START, Move.COMPLETE):
                    await here.move(trip_id, move, ANNA)
                # Also while Redis is away: the backstop needs none.
                assert [event.version async for event in events] == [2, 3, 4, 5]
        redis_server.start()

        async def none_left() -> bool:
            return not await here.store.unannounced(NYC, older_than_ms=0, limit=10)

        await until_true(none_left)


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not await condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S} s"
        await asyncio.sleep(0.05)
