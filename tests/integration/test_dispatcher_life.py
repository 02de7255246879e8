"""The dispatcher and the life of a ride: offers, next trips, stalled drivers, pauses, places, and shares of markets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from geo.area import Circle
from geo.model import DriverId, LatLng
from matcher.life import Life
from matcher.model import Code, DriverStatus, Move, RideState, Slot, TripState
from matcher.share import Share
from matcher.solver import SolverChild
from matcher.zones import Zone
from tests.matchers import HERE, NYC, City, city_of, north, running, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def codes(city: City, ride_id: Any) -> list[tuple[str, str | None]]:
    return [(event.type, event.code) for event in await city.store.events_after({ride_id: 0}, limit=50)]


async def test_a_ride_that_nobody_answers_goes_from_driver_to_driver_until_one_says_yes(
    database_url: str, solver: SolverChild
) -> None:
    async with city_of(database_url, solver, life=Life(offer_ttl_ms=1_500)) as city:
        for number in range(3):
            await city.driver(f"d{number}", north(100.0 * (number + 1)))
        ride_id = await city.request()
        async with running(city.dispatcher().run()):
            ride = await city.reaches(ride_id, RideState.OFFERED)
            assert ride.trip is not None
            assert (ride.trip.driver_id, ride.trip.state) == ("d0", TripState.OFFERED)
            await city.does(ride_id, Move.DECLINE)
            second = await city.offered_to(ride_id, "d1")
            assert second.trip is not None
            third = await city.offered_to(ride_id, "d2")
            await city.does(ride_id, Move.ACCEPT)
        assert third.queued_at_ms == ride.queued_at_ms
        assert await codes(city, ride_id) == [
            ("requested", None),
            ("offered", None),
            ("declined", "declined"),
            ("offered", None),
            ("timed_out", "offer_expired"),
            ("offered", None),
            ("assigned", None),
        ]
        assert (await city.store.audit()).holds


async def test_a_driver_that_signed_off_and_is_still_seen_keeps_no_ride_from_the_others(
    sqlite_url: str, solver: SolverChild
) -> None:
    """Being the nearest, it would be paired with it in every window for as long as its position is fresh."""
    async with city_of(sqlite_url, solver) as city:
        await city.driver("gone", HERE)
        await city.driver("there", north(2000.0))
        await city.store.set_status(DriverId("gone"), DriverStatus.OFFLINE, epoch=None)
        dispatcher = city.dispatcher()
        ride_id = await city.request()
        async with running(dispatcher.run()):
            await city.assigned_to(ride_id, "there")
            assert dispatcher.stats.lost == {"driver_gone": 1}


async def test_a_driver_near_the_end_of_its_trip_gets_its_next_ride_and_goes_on_with_it(
    database_url: str, solver: SolverChild
) -> None:
    async with city_of(database_url, solver, chain_within_s=600.0) as city:
        await city.driver("d", HERE)
        async with running(city.dispatcher().run()):
            first = await city.request(HERE, dropoff=north(1000))
            await city.reaches(first, RideState.ASSIGNED)
            second = await city.request(north(1100))
            await city.does(first, Move.ARRIVE)
            await asyncio.sleep(0.3)
            assert (await city.ride(second)).state is RideState.SEARCHING  # the driver carries nobody yet
            await city.does(first, Move.START)
            waiting = await city.reaches(second, RideState.ASSIGNED)
            assert waiting.trip is not None
            assert (waiting.trip.driver_id, waiting.trip.slot) == ("d", Slot.NEXT)
            assert waiting.trip.decision["chosen"]["terms"]["remaining_trip"] > 100.0
            await city.does(first, Move.COMPLETE)
            promoted = await city.ride(second)
            assert promoted.trip is not None
            assert promoted.trip.slot is Slot.NOW
            await city.does(second, Move.ARRIVE, Move.START, Move.COMPLETE)
        assert [event for event, _ in await codes(city, second)] == [
            "requested",
            "assigned",
            "promoted",
            "arrived",
            "started",
            "completed",
        ]
        assert (await city.store.audit()).holds


async def test_a_driver_who_does_not_approach_is_replaced_and_the_history_says_why(
    sqlite_url: str, solver: SolverChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matcher.upkeep.STALLS_EVERY_S", 0.1)
    async with city_of(sqlite_url, solver, stall_after_s=1.0, stall_m=50.0) as city:
        await city.driver("near", north(300))
        await city.driver("far", north(900))
        ride_id = await city.request()
        dispatcher = city.dispatcher()
        async with running(dispatcher.run()):
            ride = await city.reaches(ride_id, RideState.ASSIGNED)
            assert ride.trip is not None
            assert ride.trip.driver_id == "near"
            replaced = await city.assigned_to(ride_id, "far")
        assert replaced.trip is not None
        assert ("withdrawn", Code.STALLED) in await codes(city, ride_id)
        [first, _] = await city.store.trips_of(ride_id, limit=5)
        assert (first.driver_id, first.state, first.end_code) == ("near", TripState.WITHDRAWN, Code.STALLED)
        assert dispatcher.upkeep.stalled >= 1


async def test_a_paused_market_matches_nobody_and_goes_on_when_it_is_resumed(
    database_url: str, solver: SolverChild
) -> None:
    async with city_of(database_url, solver) as city:
        await city.driver("d", HERE)
        await city.store.set_market_state(NYC, new_rides="queue", reason="storm", changed_by="ops")
        ride_id = await city.request()
        dispatcher = city.dispatcher()
        async with running(dispatcher.run()):
            await until(lambda: dispatcher.stats.windows_paused >= 3)
            assert (await city.ride(ride_id)).state is RideState.SEARCHING
            await city.store.set_market_state(NYC, new_rides=None, reason=None, changed_by="ops")
            await city.reaches(ride_id, RideState.ASSIGNED)


async def test_a_ride_for_later_is_searched_for_when_its_time_has_come(database_url: str, solver: SolverChild) -> None:
    async with city_of(database_url, solver) as city:
        await city.driver("d", HERE)
        at_ms = await city.store.now_ms() + 3_000
        ride_id = await city.request(pickup_at_ms=at_ms, lead_ms=1_500)
        async with running(city.dispatcher().run()):
            assert (await city.ride(ride_id)).state is RideState.SCHEDULED
            ride = await city.reaches(ride_id, RideState.ASSIGNED)
        assert ride.trip is not None
        assert at_ms - 1_500 <= ride.trip.matched_at_ms
        assert [event for event, _ in await codes(city, ride_id)] == ["requested", "searching", "assigned"]


async def test_rides_from_a_place_go_to_the_head_of_its_queue(database_url: str, solver: SolverChild) -> None:
    station = Zone("station", Circle(HERE, 300.0))
    async with city_of(database_url, solver, zones=(station,)) as city:
        await city.driver("first", north(200))
        async with running(city.dispatcher().run()):
            await city.queued("first")
            await city.driver("second", HERE)
            await city.driver("outside", north(400))
            await city.queued("first", "second")
            ride = await city.reaches(await city.request(), RideState.ASSIGNED)
            beside = await city.reaches(await city.request(north(350)), RideState.ASSIGNED)
        assert ride.trip is not None
        assert ride.trip.driver_id == "first"  # though the second one is nearer
        assert ride.trip.decision["chosen"]["queue"] == {"zone": "station", "place": 1, "length": 2}
        assert beside.trip is not None
        assert beside.trip.driver_id == "outside"  # who queues serves the place alone


async def test_a_process_that_leads_too_much_leaves_a_market_to_another_and_no_ride_waits_for_long(
    sqlite_url: str, solver: SolverChild
) -> None:
    async with city_of(sqlite_url, solver) as city:
        shares = [Share(city.store, name, 1, lease_s=1.0) for name in ("m1", "m2")]
        first, second = (city.dispatcher(name, share=share) for name, share in zip(("m1", "m2"), shares, strict=True))
        async with running(first.run(), second.run()):
            await until(lambda: first.stats.leading or second.stats.leading)
            leader, share = (first, shares[0]) if first.stats.leading else (second, shares[1])
            share.took(NYC).set()
            other = second if leader is first else first
            await until(lambda: other.stats.leading, "the other takes over")
            assert leader.stats.leases_given == 1
            await city.driver("d", LatLng(HERE.lat, HERE.lon))
            await city.reaches(await city.request(), RideState.ASSIGNED)
        assert DriverId("d") in await city.store.engaged()
