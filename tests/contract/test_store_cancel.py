"""What every store promises of rides and trips that end before their time: by whom, why, and what becomes of the ride.

P3, P4 and P11; the drivers' chained trips are in test_store_chains.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from geo.model import LatLng
from matcher.model import Actor, ClientId, Code, Move, Ride, RideEvent, RideState, Trip, TripState
from matcher.outcomes import Done, NotAllowed, NotYours, Requested
from tests.stores import HOUR_MS, MARKET, StoreCase, new_ride

RETRY_MS = 180_000
NO_SHOW_AFTER_MS = 300_000
ALICE = ClientId("alice")

Make = Callable[[StoreCase], Awaitable[Ride]]


async def scheduled(case: StoreCase) -> Ride:
    return await case.ride(pickup_at_ms=await case.store.now_ms() + HOUR_MS)


async def searching(case: StoreCase) -> Ride:
    return await case.ride()


async def offered(case: StoreCase) -> Ride:
    return (await case.offered())[0]


async def assigned(case: StoreCase) -> Ride:
    return (await case.matched())[0]


async def arrived(case: StoreCase) -> Ride:
    return await case.move((await case.matched())[1], Move.ARRIVE)


async def in_progress(case: StoreCase) -> Ride:
    return (await case.under_way())[0]


BEFORE_PICKUP: list[Make] = [scheduled, searching, offered, assigned, arrived]


def said(event: RideEvent) -> tuple[str, str | None, str | None, str | None]:
    return event.type, event.code, event.actor, event.reason


def trip_of(ride: Ride) -> Trip:
    assert ride.trip is not None
    return ride.trip


class TestByTheRider:
    @pytest.mark.parametrize("make", BEFORE_PICKUP)
    async def test_until_the_pickup_the_rider_may_go(self, case: StoreCase, make: Make) -> None:
        before = await make(case)
        ride = await case.done(await case.store.cancel_ride(before.ride_id, client_id=ALICE, reason="plans changed"))
        assert (ride.state, ride.version) == (RideState.CANCELLED, before.version + 1)
        assert (ride.end_reason, ride.end_code) == ("plans changed", Code.RIDER_CANCELLED)
        event = await case.newest_event(ride.ride_id)
        assert said(event) == ("cancelled", Code.RIDER_CANCELLED, Actor.RIDER, "plans changed")
        if before.trip is not None:
            assert event.driver_id == before.trip.driver_id
            assert (trip_of(ride).state, trip_of(ride).end_code) == (TripState.WITHDRAWN, Code.RIDER_CANCELLED)
            await case.matched(before.trip.driver_id)  # free again
        assert (await case.store.audit()).holds

    async def test_a_ride_under_way_is_not_the_riders_to_cancel(self, case: StoreCase) -> None:
        ride = await in_progress(case)
        assert await case.store.cancel_ride(ride.ride_id, client_id=ALICE, reason=None) == NotAllowed(ride, ())
        assert await case.now(ride.ride_id) == ride

    async def test_without_a_reason_the_ride_says_what_happened(self, case: StoreCase) -> None:
        ride = await searching(case)
        ride = await case.done(await case.store.cancel_ride(ride.ride_id, client_id=ALICE, reason=None))
        assert ride.end_reason == "cancelled"
        assert (await case.newest_event(ride.ride_id)).reason is None

    async def test_a_trip_past_its_limit_is_still_the_riders_to_leave(self, case: StoreCase) -> None:
        """P4: the sweep may be late."""
        ride = await assigned(case)
        case.past_limit(trip_of(ride))
        assert isinstance(await case.store.cancel_ride(ride.ride_id, client_id=ALICE, reason=None), Done)


class TestByAnOperator:
    @pytest.mark.parametrize("make", [*BEFORE_PICKUP, in_progress])
    async def test_a_ride_can_be_cancelled_in_every_state_until_it_has_ended(self, case: StoreCase, make: Make) -> None:
        before = await make(case)
        cancel = {"client_id": None, "reason": "road closed", "actor": Actor.OPERATOR}
        ride = await case.done(await case.store.cancel_ride(before.ride_id, **cancel))  # type: ignore[arg-type]
        assert (ride.state, ride.end_code) == (RideState.CANCELLED, Code.OPERATOR_CANCELLED)
        assert said(await case.newest_event(ride.ride_id)) == (
            "cancelled",
            Code.OPERATOR_CANCELLED,
            Actor.OPERATOR,
            "road closed",
        )
        if before.trip is not None:
            assert (trip_of(ride).state, trip_of(ride).end_code) == (TripState.WITHDRAWN, Code.OPERATOR_CANCELLED)
        again = await case.store.cancel_ride(before.ride_id, **cancel)  # type: ignore[arg-type]
        assert again == Done(ride, ())
        assert (await case.store.audit()).holds

    async def test_what_was_completed_stays_so(self, case: StoreCase) -> None:
        ride, trip = await case.under_way()
        ride = await case.move(trip, Move.COMPLETE)
        outcome = await case.store.cancel_ride(ride.ride_id, client_id=None, reason=None, actor=Actor.OPERATOR)
        assert outcome == NotAllowed(ride, ())


class TestByTheDriver:
    @pytest.mark.parametrize("make", [assigned, arrived])
    async def test_the_ride_searches_on(self, case: StoreCase, make: Make) -> None:
        before = await make(case)
        trip = trip_of(before)
        outcome = await case.store.move_trip(
            trip.trip_id, Move.DRIVER_CANCEL, driver_id=trip.driver_id, reason="flat tyre"
        )
        ride = await case.done(outcome)
        assert (ride.state, ride.end_code, ride.end_reason) == (RideState.SEARCHING, None, None)
        assert (trip_of(ride).state, trip_of(ride).end_code) == (TripState.CANCELLED, Code.DRIVER_CANCELLED)
        assert said(await case.newest_event(ride.ride_id)) == (
            "driver_cancelled",
            Code.DRIVER_CANCELLED,
            Actor.DRIVER,
            "flat tyre",
        )

    async def test_a_passenger_aboard_is_brought_to_the_destination(self, case: StoreCase) -> None:
        ride = await in_progress(case)
        outcome = await case.store.move_trip(
            trip_of(ride).trip_id, Move.DRIVER_CANCEL, driver_id=trip_of(ride).driver_id
        )
        assert outcome == NotAllowed(ride, (Move.COMPLETE,))


class TestNoShow:
    """A driver who waits long enough at the pickup may go; never before the time that was asked for."""

    async def report(self, case: StoreCase, trip: Trip) -> object:
        return await case.store.move_trip(trip.trip_id, Move.RIDER_NO_SHOW, driver_id=trip.driver_id, reason="alone")

    async def test_too_early_the_answer_says_from_when_on(self, case: StoreCase) -> None:
        ride = await arrived(case)
        trip = trip_of(ride)
        assert trip.arrived_at_ms is not None
        assert await self.report(case, trip) == NotAllowed(
            ride, (Move.START, Move.DRIVER_CANCEL), trip.arrived_at_ms + NO_SHOW_AFTER_MS
        )
        assert await case.now(ride.ride_id) == ride

    async def test_in_time_it_ends_the_ride_and_frees_the_driver(self, case: StoreCase) -> None:
        ride = await arrived(case)
        trip = trip_of(ride)
        case.sql("UPDATE trips SET arrived_at_ms = arrived_at_ms - ?", NO_SHOW_AFTER_MS)
        outcome = await case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id)
        assert isinstance(outcome, Done)  # nothing stands in the way of the other commands
        ended = await case.done(await self.report(case, trip))
        assert (ended.state, ended.end_code, ended.end_reason) == (RideState.CANCELLED, Code.NO_SHOW, "alone")
        assert (trip_of(ended).state, trip_of(ended).end_code) == (TripState.NO_SHOW, Code.NO_SHOW)
        assert said(await case.newest_event(ended.ride_id)) == ("cancelled", Code.NO_SHOW, Actor.DRIVER, "alone")
        assert await self.report(case, trip) == Done(ended, ())
        await case.matched(trip.driver_id)
        assert (await case.store.audit()).holds

    async def test_what_is_allowed_names_it_when_it_is(self, case: StoreCase) -> None:
        ride = await arrived(case)
        case.sql("UPDATE trips SET arrived_at_ms = arrived_at_ms - ?", NO_SHOW_AFTER_MS)
        outcome = await case.store.move_trip(trip_of(ride).trip_id, Move.COMPLETE, driver_id=None)
        assert isinstance(outcome, NotAllowed)
        assert outcome.allowed == (Move.START, Move.DRIVER_CANCEL, Move.RIDER_NO_SHOW)

    async def test_a_scheduled_rider_has_until_the_time_that_was_asked_for(self, case: StoreCase) -> None:
        pickup_at_ms = await case.store.now_ms() + 600_000
        ride = await case.ride(pickup_at_ms=pickup_at_ms, lead_ms=900_000)
        trip = await case.match(ride, await case.driver())
        await case.move(trip, Move.ARRIVE)
        case.sql("UPDATE trips SET arrived_at_ms = arrived_at_ms - ?", NO_SHOW_AFTER_MS)
        outcome = await self.report(case, trip)
        assert isinstance(outcome, NotAllowed)
        assert outcome.allowed_at_ms == pickup_at_ms + NO_SHOW_AFTER_MS

    async def test_nobody_is_missed_before_the_driver_is_there(self, case: StoreCase) -> None:
        ride = await assigned(case)
        outcome = await self.report(case, trip_of(ride))
        assert outcome == NotAllowed(ride, (Move.ARRIVE, Move.DRIVER_CANCEL))


class TestSearchingOn:
    """A ride whose driver is taken from it late is given time for another one."""

    def near_deadline(self, case: StoreCase, ride: Ride, ahead_ms: int) -> None:
        case.sql(
            "UPDATE rides SET deadline_at_ms = ? WHERE ride_id = ?",
            ride.requested_at_ms + ahead_ms,
            ride.ride_id,
        )

    @pytest.mark.parametrize("ahead_ms", [30_000, -30_000], ids=["near its deadline", "after it"])
    async def test_it_may_search_for_a_while_whatever_its_deadline_was(self, case: StoreCase, ahead_ms: int) -> None:
        ride, trip = await case.matched()
        self.near_deadline(case, ride, ahead_ms)
        before_ms = await case.store.now_ms()
        ride = await case.move(trip, Move.DRIVER_CANCEL)
        assert before_ms + RETRY_MS <= ride.deadline_at_ms <= await case.store.now_ms() + RETRY_MS
        assert await case.waiting_ids() == [ride.ride_id]
        assert await case.sweep() == []
        await case.match(ride, await case.driver())

    async def test_a_deadline_that_is_far_enough_stays(self, case: StoreCase) -> None:
        before, trip = await case.matched()
        assert (await case.move(trip, Move.DRIVER_CANCEL)).deadline_at_ms == before.deadline_at_ms
        assert case.sql("SELECT first_deadline_at_ms FROM rides")[0][0] is None

    async def test_the_sweep_gives_the_same_time_to_those_it_abandons(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        self.near_deadline(case, ride, -30_000)
        case.past_limit(trip)
        await case.sweep()
        ride = await case.now(ride.ride_id)
        assert trip_of(ride).ended_at_ms is not None
        assert ride.deadline_at_ms == (trip_of(ride).ended_at_ms or 0) + RETRY_MS
        assert said(await case.newest_event(ride.ride_id)) == (
            "abandoned",
            Code.ABANDONED,
            Actor.SERVICE,
            "abandoned",
        )

    async def test_an_offer_that_nobody_took_gets_no_such_time(self, case: StoreCase) -> None:
        """P4: else drivers who only look would keep a ride alive for ever."""
        ride, trip = await case.offered()
        self.near_deadline(case, ride, 30_000)
        before = await case.now(ride.ride_id)
        assert (await case.move(trip, Move.DECLINE)).deadline_at_ms == before.deadline_at_ms

    async def test_it_ends_at_the_later_deadline(self, case: StoreCase) -> None:
        """P4"""
        ride, trip = await case.matched()
        self.near_deadline(case, ride, -30_000)
        await case.move(trip, Move.DRIVER_CANCEL)
        case.past_deadline(ride.ride_id)
        assert len(await case.sweep()) == 1
        expired = await case.now(ride.ride_id)
        assert (expired.state, expired.end_code) == (RideState.EXPIRED, Code.NO_DRIVER_FOUND)

    async def test_the_key_gets_the_first_answer_all_the_same(self, case: StoreCase) -> None:
        """P3: with the deadline and the destination of then, however often either has changed."""
        first = await case.ride(key="k", deadline_ms=1000, dropoff=LatLng(40.0, -74.0))
        for east in (-73.9, -73.8):
            ride = await case.now(first.ride_id)
            trip = await case.match(ride, await case.driver())
            case.sql("UPDATE rides SET deadline_at_ms = deadline_at_ms - 100000 WHERE first_deadline_at_ms IS NOT NULL")
            await case.store.redirect_ride(first.ride_id, LatLng(40.0, east), client_id=ALICE)
            await case.move(trip, Move.DRIVER_CANCEL)
        now = await case.now(first.ride_id)
        assert now.deadline_at_ms > first.deadline_at_ms
        assert now.dropoff == LatLng(40.0, -73.8)
        [again] = await case.store.request_rides([new_ride(key="k")])
        assert again == Requested(first, None, repeated=True)


class TestRedirection:
    @pytest.mark.parametrize("make", [*BEFORE_PICKUP, in_progress])
    async def test_until_the_end_a_ride_may_go_elsewhere(self, case: StoreCase, make: Make) -> None:
        before = await make(case)
        outcome = await case.store.redirect_ride(before.ride_id, LatLng(41.0, -73.0), client_id=ALICE)
        ride = await case.done(outcome)
        assert (ride.dropoff, ride.state, ride.version) == (LatLng(41.0, -73.0), before.state, before.version + 1)
        assert ride.trip == before.trip
        event = await case.newest_event(ride.ride_id)
        assert said(event) == ("destination_changed", None, Actor.RIDER, None)
        assert isinstance(outcome, Done)
        [hint] = outcome.hints
        assert hint.driver_id == event.driver_id == (None if before.trip is None else before.trip.driver_id)
        again = await case.store.redirect_ride(before.ride_id, LatLng(41.0, -73.0), client_id=ALICE)
        assert again == Done(ride, ())

    async def test_a_ride_that_has_ended_goes_nowhere(self, case: StoreCase) -> None:
        ride, trip = await case.under_way()
        ride = await case.move(trip, Move.COMPLETE)
        outcome = await case.store.redirect_ride(ride.ride_id, LatLng(41.0, -73.0), client_id=ALICE)
        assert outcome == NotAllowed(ride, ())

    async def test_anothers_ride_is_not_redirected(self, case: StoreCase) -> None:
        """P11"""
        ride = await searching(case)
        outcome = await case.store.redirect_ride(ride.ride_id, LatLng(41.0, -73.0), client_id=ClientId("bob"))
        assert outcome == NotYours()

    async def test_a_first_answer_without_a_destination_stays_without(self, case: StoreCase) -> None:
        """P3"""
        first = await case.ride(key="k")
        await case.store.redirect_ride(first.ride_id, LatLng(41.0, -73.0), client_id=None, actor=Actor.OPERATOR)
        [again] = await case.store.request_rides([new_ride(key="k")])
        assert again == Requested(first, None, repeated=True)
        assert (await case.newest_event(first.ride_id)).actor == Actor.OPERATOR

    async def test_drivers_near_the_new_destination_are_shown_as_carrying_to_it(self, case: StoreCase) -> None:
        ride, trip = await case.under_way()
        assert (await case.store.waiting(MARKET, limit=1, carrying=True)).carrying == []
        await case.store.redirect_ride(ride.ride_id, LatLng(41.0, -73.0), client_id=None)
        [carrying] = (await case.store.waiting(MARKET, limit=1, carrying=True)).carrying
        assert (carrying.driver_id, carrying.dropoff) == (trip.driver_id, LatLng(41.0, -73.0))
