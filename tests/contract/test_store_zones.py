"""What every store promises of queues at places: one place a driver, written under the lease, read in one snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from geo.model import DriverId, MarketId
from matcher.errors import LeaseLost
from matcher.model import Code, DriverStatus, Move, TripId, TripState
from matcher.zones import Change, Kind, Place, Standing
from tests.stores import HOUR_MS, MARKET, StoreCase

ROME = MarketId("rome")
A, B = DriverId("ann"), DriverId("bö")


def enter(driver_id: str, at_ms: int, zone: str = "jfk") -> Change:
    return Change(Kind.ENTER, Place(DriverId(driver_id), zone, at_ms))


def change(kind: Kind, driver_id: str, at_ms: int, **rest: Any) -> Change:
    return Change(kind, Place(DriverId(driver_id), "jfk", at_ms, **rest))


async def put(case: StoreCase, *changes: Change) -> None:
    await case.store.put_zone_changes(MARKET, await case.lease(), changes)


async def standing(case: StoreCase, *seen: str, since_ms: int | None = None, market: MarketId = MARKET) -> Standing:
    return await case.store.zone_standing(market, seen=[DriverId(each) for each in seen], since_ms=since_ms)


async def places(case: StoreCase, market: MarketId = MARKET) -> Sequence[Place]:
    return (await standing(case, market=market)).places


class TestPlaces:
    async def test_they_stand_in_turn_by_zone_ties_by_driver(self, case: StoreCase) -> None:
        await put(case, enter("c", 7), enter("b", 7), enter("a", 9), enter("z", 1, "lga"))
        assert [place.driver_id for place in await places(case)] == ["b", "c", "a", "z"]
        assert await case.store.zone_queues(MARKET) == {"jfk": ["b", "c", "a"], "lga": ["z"]}
        assert await case.store.zone_queues(ROME) == {}

    async def test_every_change_takes_effect_on_its_driver_alone(self, case: StoreCase) -> None:
        await put(case, *(enter(name, 5) for name in "abcdefg"))
        held = TripId("t_1")
        await put(
            case,
            change(Kind.LEAVE, "a", 5),
            change(Kind.AWAY, "b", 5, away_since_ms=8),
            change(Kind.HOLD, "c", 5, trip_id=held),
            change(Kind.TO_THE_END, "d", 9),
            change(Kind.AWAY, "e", 5, away_since_ms=8),
            change(Kind.HOLD, "f", 5, trip_id=held),
        )
        await put(
            case, change(Kind.BACK, "e", 5), change(Kind.RESTORE, "f", 5, away_since_ms=11), change(Kind.LEAVE, "x", 5)
        )
        assert await places(case) == [
            Place(DriverId("b"), "jfk", 5, away_since_ms=8),
            Place(DriverId("c"), "jfk", 5, trip_id=held),
            Place(DriverId("e"), "jfk", 5),
            Place(DriverId("f"), "jfk", 5, away_since_ms=11),
            Place(DriverId("g"), "jfk", 5),
            Place(DriverId("d"), "jfk", 9),
        ]
        assert await case.store.zone_queues(MARKET) == {"jfk": ["b", "e", "f", "g", "d"]}

    async def test_writing_changes_again_leaves_the_same_places(self, case: StoreCase) -> None:
        changes = [enter(A, 5), enter(B, 6)]
        await put(case, *changes)
        await put(case, *changes)
        assert len(await places(case)) == 2
        for _ in range(2):
            await put(case, change(Kind.TO_THE_END, A, 9), change(Kind.LEAVE, B, 6))
        assert await places(case) == [Place(A, "jfk", 9)]

    async def test_more_changes_than_fit_one_statement_are_written_together(self, case: StoreCase) -> None:
        names = [f"driver-{number:04d}" for number in range(1203)]
        await put(case, *(enter(name, 5) for name in names))
        await put(case, *(change(Kind.AWAY, name, 5, away_since_ms=8) for name in names))
        await put(case, *(change(Kind.TO_THE_END, name, 9) for name in names[:250]))
        found = await places(case)
        assert [place.driver_id for place in found] == names[250:] + names[:250]
        assert {place.away_since_ms for place in found[:-250]} == {8}
        await put(case, *(change(Kind.LEAVE, name, 5) for name in names))
        assert await places(case) == []

    async def test_an_old_matcher_writes_nothing(self, case: StoreCase) -> None:
        """P7"""
        token = await case.lease()
        with pytest.raises(LeaseLost):
            await case.store.put_zone_changes(MARKET, token + 1, [enter(A, 5)])
        assert await places(case) == []

    async def test_who_enters_in_another_market_has_left_this_one(self, case: StoreCase) -> None:
        await put(case, enter(A, 5), enter(B, 5))
        token = await case.store.acquire_lease(ROME, "m", HOUR_MS)
        assert token is not None
        await case.store.put_zone_changes(ROME, token, [enter(A, 7, "fco")])
        assert [place.driver_id for place in await places(case)] == [B]
        await put(case, change(Kind.AWAY, A, 5, away_since_ms=9), change(Kind.LEAVE, A, 5), change(Kind.HOLD, A, 5))
        assert await places(case, ROME) == [Place(A, "fco", 7)]

    async def test_two_markets_that_let_a_driver_enter_at_once_leave_it_one_place(self, case: StoreCase) -> None:
        token = await case.store.acquire_lease(ROME, "m", HOUR_MS)
        assert token is not None
        for _ in range(5):
            jobs = [put(case, enter(A, 5)), case.store.put_zone_changes(ROME, token, [enter(A, 7, "fco")])]
            await asyncio.gather(*jobs)
            assert len([*await places(case), *await places(case, ROME)]) == 1


class TestStanding:
    async def test_who_is_online_in_this_market_is_told_of_places_and_of_those_seen(self, case: StoreCase) -> None:
        names = [f"s{number:04d}" for number in range(600)]
        for name in ("on", "break", "elsewhere", "new", "s0550"):
            await case.driver(name, market=ROME if name == "elsewhere" else MARKET)
        await case.store.set_status(DriverId("break"), DriverStatus.ON_BREAK, epoch=None)
        await put(case, *(enter(name, 5) for name in ("on", "break", "elsewhere", "unknown")))
        found = await standing(case, "new", "on", *names)
        assert found.online == {"on", "new", "s0550"}
        assert len(found.places) == 4
        assert found.now_ms > 0
        assert found.trips == {}

    async def test_live_trips_of_places_and_of_those_seen_are_told(self, case: StoreCase) -> None:
        await put(case, enter(await case.driver(A), 5))
        _, on_trip = await case.matched(A)
        _, passing = await case.matched(ben := await case.driver("ben"))
        await case.matched(await case.driver("elsewhere"))
        await case.move(passing, Move.ARRIVE, Move.START)
        found = await standing(case, ben)
        assert set(found.trips) == {A, ben}
        (held,), (moving,) = found.trips[A], found.trips[ben]
        assert (held.trip_id, held.state, held.was_started) == (on_trip.trip_id, TripState.ACCEPTED, False)
        assert (moving.state, moving.was_started, moving.ended_at_ms) == (TripState.IN_PROGRESS, True, None)

    async def test_the_end_of_a_trip_that_a_place_is_held_for_is_told_however_old(self, case: StoreCase) -> None:
        ride, trip = await case.matched(await case.driver(A))
        await put(case, enter(A, 5))
        await put(case, change(Kind.HOLD, A, 5, trip_id=trip.trip_id))
        await case.store.cancel_ride(ride.ride_id, client_id=None, reason="rain")
        case.sql("UPDATE trips SET matched_at_ms = matched_at_ms - ?", HOUR_MS)
        (ended,) = (await standing(case, since_ms=await case.store.now_ms())).trips[A]
        assert (ended.state, ended.end_code, ended.was_started) == (
            TripState.WITHDRAWN,
            Code.RIDER_CANCELLED.value,
            False,
        )
        assert ended.ended_at_ms is not None

    async def test_a_trip_that_came_and_went_since_the_look_before_is_told(self, case: StoreCase) -> None:
        before_ms = await case.store.now_ms()
        await put(case, enter(await case.driver(A), 5))
        _, trip = await case.matched(A, offer_ttl_ms=60_000)
        await case.move(trip, Move.DECLINE)
        for since_ms in (before_ms, None):
            (ended,) = (await standing(case, since_ms=since_ms)).trips[A]
            assert (ended.trip_id, ended.end_code) == (trip.trip_id, Code.DECLINED.value)
        case.sql("UPDATE trips SET matched_at_ms = matched_at_ms - ?", HOUR_MS)
        assert (await standing(case, since_ms=before_ms)).trips == {}

    async def test_a_trip_that_an_operator_completed_counts_as_served(self, case: StoreCase) -> None:
        await put(case, enter(await case.driver(A), 5))
        ride, _ = await case.matched(A)
        await case.store.complete_ride(ride.ride_id, reason=None)
        (served,) = (await standing(case)).trips[A]
        assert (served.state, served.was_started) == (TripState.COMPLETED, True)

    async def test_trips_come_in_the_order_in_which_they_were_matched(self, case: StoreCase) -> None:
        await put(case, enter(await case.driver(A), 5))
        trips = []
        for _ in range(3):
            _, trip = await case.matched(A, offer_ttl_ms=60_000)
            trips.append(trip.trip_id)
            await case.move(trip, Move.DECLINE)
        _, last = await case.matched(A)
        assert [each.trip_id for each in (await standing(case)).trips[A]] == [*trips, last.trip_id]
