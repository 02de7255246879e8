"""The keeper of queues on a real store, a real feed and its replica: who stands where, look by look."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from geo.area import Circle
from geo.feed import Feed, InProcessFeed
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, Removal, Stamp
from geo.redis_feed import RedisFeed
from matcher.announcer import Announcer
from matcher.errors import LeaseLost
from matcher.hints import LocalHints
from matcher.model import ClientId, DriverStatus, Move, NewRide, Ride, Trip
from matcher.outcomes import Requested
from matcher.policy import Market
from matcher.store import Store
from matcher.zone_keeper import ZoneKeeper
from matcher.zone_plan import pinned
from matcher.zones import NOBODY, Queues, Zone
from tests.feeds import running, until
from tests.servers import redis_client
from tests.stores import HOUR_MS, MARKET, StoreCase, new_ride, sqlite_url

JFK = LatLng(40.644, -73.782)
OUTSIDE = LatLng(JFK.lat + 0.02, JFK.lon)
STALE_MS = 30_000


def market_of(**named: Any) -> Market:
    zones = named.pop("zones", (Zone("jfk", Circle(JFK, 1500.0)),))
    return Market(MARKET, Circle(JFK, 30_000.0), zones=zones, **named)


class Airport:
    """A market with a zone, its store and feed; the test looks and moves the drivers."""

    def __init__(self, case: StoreCase, feed: Feed, **named: Any) -> None:
        self.case, self.feed, self.market = case, feed, market_of(**named)
        self.index = DriverIndex(resolution=8, stale_after_ms=STALE_MS)
        self.follower = feed.follow(MARKET, self.index)
        self.announcer = Announcer(case.store, LocalHints())
        self.keeper = self.new_keeper()
        self.epochs: dict[str, int] = {}
        self.seq = 0

    def new_keeper(self) -> ZoneKeeper:
        return ZoneKeeper(self.market, self.case.store, self.index, self.announcer)

    async def arrives(self, *names: str, at: LatLng = JFK) -> None:
        """They sign on and are there, in this order."""
        for name in names:
            await self.case.driver(name)
            driver = await self.case.store.driver(DriverId(name))
            assert driver is not None
            self.epochs[name] = driver.epoch
            await self.stands(name, at=at)
            await self.look()

    async def stands(self, *names: str, at: LatLng = JFK, vehicle_class: str = "standard") -> None:
        fixes = []
        for name in names:
            self.seq += 1
            epoch = self.epochs[name]
            fixes.append(Fix(DriverId(name), at.lat, at.lon, epoch, 1, self.seq, 0, vehicle_class, 4))
        await self.feed.publish(MARKET, fixes)
        await self.follower.caught_up()

    async def vanishes(self, name: str) -> None:
        await self.feed.publish(MARKET, [], [Removal(DriverId(name), Stamp(self.epochs[name], 1, self.seq))])
        await self.follower.caught_up()

    async def look(self, keeper: ZoneKeeper | None = None, *, live: bool = True) -> Queues:
        return await (keeper or self.keeper).look(await self.case.lease(), self.feed.now_ms(), live)

    async def queue(self, **named: Any) -> list[str]:
        return list((await self.look(**named)).waiting.get("jfk", ()))

    async def ride(self, at: LatLng = JFK, **named: Any) -> Ride:
        new = new_ride(**named)
        values = {name: getattr(new, name) for name in NewRide.__dataclass_fields__} | {"pickup": at}
        [outcome] = await self.case.store.request_rides([NewRide(**values)])
        assert isinstance(outcome, Requested)
        return outcome.ride

    async def dispatch(self, *, offer_ttl_ms: int | None = None) -> list[Trip]:
        """One batch of the queues' pairings, as a dispatcher commits it."""
        queues = await self.look()
        waiting = await self.case.store.waiting(MARKET, limit=100)
        ids = iter(f"t_{number:026d}" for number in range(self.seq, self.seq + 100))
        pairings = pinned(
            queues,
            waiting,
            self.market,
            self.index,
            self.feed.now_ms(),
            facts={"id": "b_1"},
            new_trip_id=lambda: next(ids),  # type: ignore[arg-type, return-value]
        )
        self.seq += 100
        committed = await self.case.commit(*pairings, offer_ttl_ms=offer_ttl_ms)
        assert not committed.lost
        return committed.trips


@contextlib.asynccontextmanager
async def airport(url: str, feed: Feed | None = None, **named: Any) -> AsyncIterator[Airport]:
    case = StoreCase(await Store.open(url, pool_size=4), url)
    await case.store.migrate()
    place = Airport(case, feed or InProcessFeed(8), **named)
    try:
        async with running(place.follower):
            await place.follower.ready()
            yield place
    finally:
        await place.feed.close()
        await case.store.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path)


@pytest.fixture(params=["sqlite", "mysql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return sqlite_url(tmp_path) if request.param == "sqlite" else str(request.getfixturevalue("mysql_database"))


async def test_drivers_queue_in_the_order_in_which_they_came_and_rides_go_to_the_head(any_url: str) -> None:
    async with airport(any_url) as place:
        await place.arrives("zoe", "ann", "ben")
        await place.arrives("out", at=OUTSIDE)
        assert await place.queue() == ["zoe", "ann", "ben"]
        first, second, elsewhere = await place.ride(), await place.ride(), await place.ride(OUTSIDE)
        trips = await place.dispatch()
        assert [(trip.ride_id, trip.driver_id) for trip in trips] == [(first.ride_id, "zoe"), (second.ride_id, "ann")]
        assert trips[1].decision["chosen"]["queue"] == {"zone": "jfk", "place": 2, "length": 3}
        assert (await place.case.now(elsewhere.ride_id)).trip is None
        queues = await place.look()
        assert queues.waiting == {"jfk": ("ben",)}
        assert queues.queued == {"zoe", "ann", "ben"}
        await place.case.move(trips[0], Move.ARRIVE, Move.START)
        assert (await place.look()).queued == {"ann", "ben"}


async def test_a_rider_who_cancels_costs_no_place_and_a_refusal_does(any_url: str) -> None:
    async with airport(any_url) as place:
        await place.arrives("ann", "ben", "cat")
        ride = await place.ride()
        await place.dispatch()
        assert await place.queue() == ["ben", "cat"]
        await place.case.store.cancel_ride(ride.ride_id, client_id=ClientId("alice"), reason=None)
        assert await place.queue() == ["ann", "ben", "cat"]
        ride = await place.ride()
        (offered,) = await place.dispatch(offer_ttl_ms=60_000)
        assert offered.driver_id == "ann"
        await place.case.move(offered, Move.DECLINE)  # before anybody has looked
        assert await place.queue() == ["ben", "cat", "ann"]
        (offered,) = await place.dispatch(offer_ttl_ms=60_000)
        assert (offered.ride_id, offered.driver_id) == (ride.ride_id, "ben")
        assert await place.queue() == ["cat", "ann"]
        await place.stands("ben", at=OUTSIDE)
        await place.case.move(offered, Move.DECLINE)
        assert (await place.look()).queued == {"cat", "ann"}


async def test_who_refused_a_ride_from_the_zone_is_not_given_it_again(url: str) -> None:
    async with airport(url) as place:
        await place.arrives("ann")
        await place.ride()
        (offered,) = await place.dispatch(offer_ttl_ms=60_000)
        await place.case.move(offered, Move.DECLINE)
        assert await place.dispatch() == []
        await place.ride()
        assert [trip.driver_id for trip in await place.dispatch()] == ["ann"]


async def test_who_steps_out_keeps_its_place_and_is_passed_over_until_it_is_back(url: str) -> None:
    async with airport(url) as place:
        await place.arrives("ann", "ben")
        await place.stands("ann", at=OUTSIDE)
        queues = await place.look()
        assert queues.waiting == {"jfk": ("ann", "ben")}
        assert queues.away == {"ann"}
        await place.ride()
        assert [trip.driver_id for trip in await place.dispatch()] == ["ben"]
        await place.stands("ann")
        assert (await place.look()).away == frozenset()
        await place.ride()
        assert [trip.driver_id for trip in await place.dispatch()] == ["ann"]


async def test_who_is_away_for_too_long_loses_its_place(url: str) -> None:
    async with airport(url, zones=(Zone("jfk", Circle(JFK, 1500.0), 0),)) as place:
        await place.arrives("ann", "ben")
        await place.vanishes("ann")
        assert await place.queue() == ["ann", "ben"]
        assert await place.queue() == ["ben"]
        await place.stands("ann")
        assert await place.queue() == ["ben", "ann"]


async def test_a_break_costs_the_place_at_once(url: str) -> None:
    async with airport(url) as place:
        await place.arrives("ann", "ben")
        await place.case.store.set_status(DriverId("ann"), DriverStatus.ON_BREAK, epoch=None)
        assert await place.queue() == ["ben"]
        await place.case.store.set_status(DriverId("ann"), DriverStatus.ONLINE, epoch=None)
        assert await place.queue() == ["ben", "ann"]


async def test_while_positions_are_not_live_nobody_loses_a_place_even_where_none_is_kept(url: str) -> None:
    async with airport(url, zones=(Zone("jfk", Circle(JFK, 1500.0), 0),)) as place:
        await place.arrives("ann", "ben")
        await place.vanishes("ann")
        for _ in range(3):
            assert await place.queue(live=False) == ["ann", "ben"]
        await place.stands("ann")
        assert (await place.look()).away == frozenset()
        assert await place.queue() == ["ann", "ben"]


async def test_a_flush_of_redis_costs_nobody_a_place(tmp_path: Path, clean_redis_url: str) -> None:
    """P9"""
    async with airport(sqlite_url(tmp_path), RedisFeed(clean_redis_url, 8)) as place:
        await place.arrives("zoe", "ann", "ben")
        with contextlib.closing(redis_client(clean_redis_url)) as redis:
            redis.flushdb()
        await until(lambda: len(place.index) == 0)
        queues = await place.look()
        assert queues.waiting == {"jfk": ("zoe", "ann", "ben")}
        assert queues.away == {"zoe", "ann", "ben"}
        await place.stands("ben", "ann", "zoe")
        queues = await place.look()
        assert queues.waiting == {"jfk": ("zoe", "ann", "ben")}
        assert queues.away == frozenset()


async def test_a_keeper_that_takes_over_carries_on_with_everybodys_place(url: str) -> None:
    async with airport(url) as place:
        await place.arrives("zoe", "ann")
        await place.ride()
        (offered,) = await place.dispatch(offer_ttl_ms=60_000)
        await place.case.move(offered, Move.DECLINE)  # which the first keeper never sees
        successor = place.new_keeper()
        assert await place.queue(keeper=successor) == ["ann", "zoe"]
        place.case.sql("UPDATE zone_places SET away_since_ms = 1 WHERE driver_id = ?", "ann")
        await place.vanishes("ann")
        assert await place.queue(keeper=place.new_keeper()) == ["ann", "zoe"]  # nobody knows what was before


async def test_the_market_is_told_of_another_order_and_of_nothing_else(url: str) -> None:
    async with airport(url) as place:
        told: list[int] = []
        with place.announcer.market_listener(MARKET, lambda: told.append(1)):
            await place.arrives("ann", "ben")
            assert len(told) == 2
            await place.look()
            await place.vanishes("ann")
            await place.look()
            await place.stands("ann")
            await place.look()
            assert len(told) == 2
            await place.case.store.set_status(DriverId("ann"), DriverStatus.OFFLINE, epoch=None)
            await place.look()
            assert len(told) == 3


async def test_an_old_matcher_writes_no_place(url: str) -> None:
    """P7"""
    async with airport(url) as place:
        await place.arrives("ann", at=OUTSIDE)
        await place.stands("ann")
        token = await place.case.lease()
        await place.case.store.release_lease(MARKET, token)
        assert await place.case.store.acquire_lease(MARKET, "another", HOUR_MS) == token + 1
        with pytest.raises(LeaseLost):
            await place.keeper.look(token, place.feed.now_ms(), True)
        assert await place.case.store.zone_queues(MARKET) == {}
        assert (await place.keeper.look(token + 1, place.feed.now_ms(), True)).waiting == {"jfk": ("ann",)}


async def test_a_market_without_zones_asks_nothing() -> None:
    """Neither a store nor an index is there to be asked."""
    nothing: Any = None
    keeper = ZoneKeeper(market_of(zones=()), nothing, nothing, nothing)
    assert await keeper.look(1, 0, True) is NOBODY


async def test_a_better_vehicle_serves_a_lesser_ride_where_the_market_says_so(url: str) -> None:
    classes = ("standard", "large")
    for downgrades, served in ({"large": {"standard": 30.0}}, ["ann"]), ({}, []):
        async with airport(url, classes=classes, downgrade_s=downgrades) as place:
            place.case.empty()
            place.case.token = 0
            await place.arrives("ann")
            await place.case.store.put_driver(DriverId("ann"), vehicle_class="large", seats=4)
            await place.stands("ann", vehicle_class="large")
            await place.ride()
            assert [trip.driver_id for trip in await place.dispatch()] == served
