"""What every store promises of what an operator does by hand: assign, reassign, release, complete (P1, P3)."""

from __future__ import annotations

import pytest

from geo.model import DriverId, MarketId
from matcher.model import Actor, Code, DriverStatus, Hint, Move, Ride, RideId, RideState, Slot, Trip, TripId, TripState
from matcher.outcomes import Done, NotAllowed, NotAssignable, NotFound
from tests.stores import HOUR_MS, MARKET, StoreCase

UNKNOWN = [RideId("r_unknown"), RideId("\udc80")]


def trip_of(ride: Ride) -> Trip:
    assert ride.trip is not None
    return ride.trip


class TestAssignment:
    async def test_a_searching_ride_gets_the_driver(self, case: StoreCase) -> None:
        before, driver = await case.ride(), await case.driver()
        outcome = await case.assign(before.ride_id, driver)
        ride = await case.done(outcome)
        trip = trip_of(ride)
        assert (ride.state, ride.version) == (RideState.ASSIGNED, 2)
        assert (trip.driver_id, trip.slot, trip.state) == (driver, Slot.NOW, TripState.ACCEPTED)
        assert trip.abandon_at_ms == trip.due_at_ms == trip.matched_at_ms + HOUR_MS
        assert trip.accepted_at_ms == trip.matched_at_ms
        assert trip.decision == {"by_hand": {"by": "ann", "reason": "by phone"}}
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor, event.reason) == (
            "assigned",
            Code.OPERATOR_ASSIGNED,
            Actor.OPERATOR,
            "by phone",
        )
        assert isinstance(outcome, Done)
        assert outcome.hints == (Hint(ride.ride_id, 2, MARKET, driver),)
        await case.move(trip, Move.ARRIVE, Move.START, Move.COMPLETE)
        assert (await case.store.audit()).holds

    async def test_with_an_offers_time_the_driver_is_asked(self, case: StoreCase) -> None:
        before, driver = await case.ride(), await case.driver()
        ride = await case.done(await case.assign(before.ride_id, driver, offer_ttl_ms=30_000))
        trip = trip_of(ride)
        assert (ride.state, trip.state, trip.accepted_at_ms) == (RideState.OFFERED, TripState.OFFERED, None)
        assert trip.due_at_ms == trip.matched_at_ms + 30_000
        await case.move(trip, Move.ACCEPT)

    async def test_to_the_driver_that_it_has_already_nothing_changes(self, case: StoreCase) -> None:
        """P3"""
        ride, driver = await case.ride(), await case.driver()
        first = await case.done(await case.assign(ride.ride_id, driver))
        assert await case.assign(ride.ride_id, driver) == Done(first, ())
        arrived = await case.move(trip_of(first), Move.ARRIVE)
        assert await case.assign(ride.ride_id, driver) == Done(arrived, ())

    async def test_a_driver_on_a_trip_takes_it_next(self, case: StoreCase) -> None:
        _, now = await case.under_way()
        ride = await case.ride()
        ride = await case.done(await case.assign(ride.ride_id, now.driver_id))
        assert trip_of(ride).slot is Slot.NEXT
        await case.move(now, Move.COMPLETE)
        assert trip_of(await case.now(ride.ride_id)).slot is Slot.NOW
        assert (await case.store.audit()).holds

    async def test_there_is_no_third_place(self, case: StoreCase) -> None:
        """P1"""
        _, now = await case.under_way()
        await case.matched(now.driver_id, slot=Slot.NEXT)
        ride = await case.ride()
        assert await case.assign(ride.ride_id, now.driver_id) == NotAssignable(ride, "driver_engaged")
        assert await case.now(ride.ride_id) == ride

    @pytest.mark.parametrize("why", ["unknown", "offline", "suspended", "elsewhere", "few seats", "no tags"])
    async def test_a_driver_who_cannot_take_it_is_not_assigned(self, case: StoreCase, why: str) -> None:
        driver = DriverId("nobody") if why == "unknown" else await case.driver()
        ride = await case.ride(tags=("wheelchair",) if why == "no tags" else ())
        if why in ("offline", "suspended"):
            await case.store.set_status(driver, DriverStatus(why), epoch=None)
        elif why == "elsewhere":
            await case.store.sign_on(driver, MarketId("rome"))
        elif why == "few seats":
            await case.store.put_driver(driver, vehicle_class="standard", seats=1)
        assert await case.assign(ride.ride_id, driver) == NotAssignable(ride, "driver_gone")
        assert await case.now(ride.ride_id) == ride

    async def test_a_driver_on_a_break_may_be_called_by_hand(self, case: StoreCase) -> None:
        driver = await case.driver()
        await case.store.set_status(driver, DriverStatus.ON_BREAK, epoch=1)
        await case.done(await case.assign((await case.ride()).ride_id, driver))

    async def test_one_who_refused_the_ride_may_be_asked_again_by_hand(self, case: StoreCase) -> None:
        _, trip = await case.matched()
        ride = await case.move(trip, Move.DRIVER_CANCEL)
        await case.done(await case.assign(ride.ride_id, trip.driver_id))

    async def test_a_scheduled_ride_is_assigned_before_its_time(self, case: StoreCase) -> None:
        pickup_at_ms = await case.store.now_ms() + HOUR_MS
        before = await case.ride(pickup_at_ms=pickup_at_ms)
        assert before.state is RideState.SCHEDULED
        ride = await case.done(await case.assign(before.ride_id, await case.driver()))
        assert (ride.state, ride.version) == (RideState.ASSIGNED, 3)
        assert await case.events(ride.ride_id) == ["requested", "searching", "assigned"]
        assert (ride.queued_at_ms, ride.deadline_at_ms) == (before.queued_at_ms, before.deadline_at_ms)
        assert (await case.store.audit()).holds

    async def test_nothing_is_assigned_after_its_deadline(self, case: StoreCase) -> None:
        """P4"""
        ride = await case.ride()
        case.past_deadline(ride.ride_id)
        ride = await case.now(ride.ride_id)
        assert await case.assign(ride.ride_id, await case.driver()) == NotAllowed(ride, ())

    @pytest.mark.parametrize("moves", [[Move.ARRIVE, Move.START], [Move.ARRIVE, Move.START, Move.COMPLETE]])
    async def test_with_its_passenger_aboard_a_ride_changes_hands_no_more(
        self, case: StoreCase, moves: list[Move]
    ) -> None:
        _, trip = await case.matched()
        ride = await case.move(trip, *moves)
        assert await case.assign(ride.ride_id, await case.driver()) == NotAllowed(ride, ())

    async def test_an_unknown_ride_is_not_found(self, case: StoreCase) -> None:
        driver = await case.driver()
        for ride_id in UNKNOWN:
            assert await case.assign(ride_id, driver) == NotFound()


class TestReassignment:
    @pytest.mark.parametrize("moves", [None, [], [Move.ARRIVE]], ids=["offered", "assigned", "arrived"])
    async def test_the_ride_leaves_its_driver_and_has_another(self, case: StoreCase, moves: list[Move] | None) -> None:
        before, trip = await (case.offered() if moves is None else case.matched())
        if moves:
            before = await case.move(trip, *moves)
        other = await case.driver()
        outcome = await case.assign(before.ride_id, other)
        ride = await case.done(outcome)
        assert (ride.state, ride.version) == (RideState.ASSIGNED, before.version + 2)
        assert trip_of(ride).driver_id == other
        withdrawn, assigned = await case.store.events_after({ride.ride_id: before.version}, limit=9)
        assert (withdrawn.type, withdrawn.code, withdrawn.actor) == ("withdrawn", Code.REASSIGNED, Actor.OPERATOR)
        assert (withdrawn.driver_id, withdrawn.state) == (trip.driver_id, RideState.SEARCHING)
        assert (assigned.type, assigned.code, assigned.driver_id) == ("assigned", Code.OPERATOR_ASSIGNED, other)
        assert isinstance(outcome, Done)
        assert set(outcome.hints) == {
            Hint(ride.ride_id, ride.version - 1, MARKET, trip.driver_id),  # who had it is told, too
            Hint(ride.ride_id, ride.version, MARKET, other),
        }
        old = await case.store.trip(trip.trip_id)
        assert old is not None
        assert (old.state, old.end_code) == (TripState.WITHDRAWN, Code.REASSIGNED)
        await case.matched(trip.driver_id)
        assert (await case.store.audit()).holds

    async def test_the_first_driver_is_not_asked_again(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        other = await case.driver()
        ride = await case.done(await case.assign(ride.ride_id, other))
        await case.move(trip_of(ride), Move.DRIVER_CANCEL)
        assert (await case.store.waiting(MARKET, limit=9)).refused == {ride.ride_id: {trip.driver_id, other}}

    async def test_where_the_new_driver_cannot_take_it_the_old_one_keeps_it(self, case: StoreCase) -> None:
        ride, _ = await case.matched()
        _, busy = await case.under_way()
        await case.matched(busy.driver_id, slot=Slot.NEXT)
        assert await case.assign(ride.ride_id, busy.driver_id) == NotAssignable(ride, "driver_engaged")
        assert await case.assign(ride.ride_id, "nobody") == NotAssignable(ride, "driver_gone")
        assert await case.now(ride.ride_id) == ride
        assert (await case.store.audit()).holds

    async def test_past_its_deadline_a_ride_still_changes_hands(self, case: StoreCase) -> None:
        """It had a driver, so it may search on for a while."""
        ride, _ = await case.matched()
        case.past_deadline(ride.ride_id)
        ride = await case.done(await case.assign(ride.ride_id, await case.driver()))
        assert ride.deadline_at_ms > trip_of(ride).matched_at_ms

    async def test_an_offer_past_its_deadline_does_not(self, case: StoreCase) -> None:
        """P4"""
        ride, _ = await case.offered()
        case.past_deadline(ride.ride_id)
        ride = await case.now(ride.ride_id)
        assert await case.assign(ride.ride_id, await case.driver()) == NotAllowed(ride, ())
        assert await case.now(ride.ride_id) == ride

    async def test_between_two_drivers_on_trips_it_moves_from_next_to_next(self, case: StoreCase) -> None:
        (_, one), (_, two) = await case.under_way(), await case.under_way()
        ride, _ = await case.matched(one.driver_id, slot=Slot.NEXT)
        ride = await case.done(await case.assign(ride.ride_id, two.driver_id))
        assert (trip_of(ride).driver_id, trip_of(ride).slot) == (two.driver_id, Slot.NEXT)
        await case.move(one, Move.COMPLETE)
        await case.move(two, Move.COMPLETE)
        assert trip_of(await case.now(ride.ride_id)).slot is Slot.NOW
        assert (await case.store.audit()).holds


class TestRelease:
    @pytest.mark.parametrize("moves", [None, [], [Move.ARRIVE]], ids=["offered", "assigned", "arrived"])
    async def test_the_ride_searches_on_without_that_driver(self, case: StoreCase, moves: list[Move] | None) -> None:
        before, trip = await (case.offered() if moves is None else case.matched())
        if moves:
            before = await case.move(trip, *moves)
        outcome = await case.store.release_ride(before.ride_id, reason="lost its way")
        ride = await case.done(outcome)
        assert (ride.state, ride.version) == (RideState.SEARCHING, before.version + 1)
        assert (trip_of(ride).state, trip_of(ride).end_code) == (TripState.WITHDRAWN, Code.RELEASED)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor, event.reason) == (
            "withdrawn",
            Code.RELEASED,
            Actor.OPERATOR,
            "lost its way",
        )
        assert (await case.store.waiting(MARKET, limit=9)).refused == {ride.ride_id: {trip.driver_id}}
        assert await case.store.release_ride(before.ride_id, reason=None) == Done(ride, ())  # P3
        assert (await case.store.audit()).holds

    async def test_by_its_trip_it_may_be_repeated_when_the_ride_has_another_driver(self, case: StoreCase) -> None:
        """P3: the retry of an answer that was lost takes nobody else from the ride."""
        before, trip = await case.matched()
        await case.done(await case.store.release_ride(before.ride_id, reason=None, trip_id=trip.trip_id))
        await case.match(await case.now(before.ride_id), await case.driver())
        present = await case.now(before.ride_id)
        again = await case.store.release_ride(before.ride_id, reason=None, trip_id=trip.trip_id)
        assert again == Done(present, ())
        for name in ("t_unknown", "\udc80"):
            other = await case.store.release_ride(before.ride_id, reason=None, trip_id=TripId(name))
            assert other == (NotFound() if name == "\udc80" else NotAllowed(present, ()))
        assert await case.now(before.ride_id) == present

    async def test_what_has_no_driver_or_a_passenger_aboard_is_not_released(self, case: StoreCase) -> None:
        for ride in (await case.ride(), (await case.under_way())[0]):
            assert await case.store.release_ride(ride.ride_id, reason=None) == NotAllowed(ride, ())
        for ride_id in UNKNOWN:
            assert await case.store.release_ride(ride_id, reason=None) == NotFound()


class TestCompletion:
    @pytest.mark.parametrize("moves", [[], [Move.ARRIVE], [Move.ARRIVE, Move.START]])
    async def test_a_ride_whose_driver_cannot_say_so_is_completed(self, case: StoreCase, moves: list[Move]) -> None:
        _, trip = await case.matched()
        if moves:
            await case.move(trip, *moves)
        ride = await case.done(await case.store.complete_ride(trip.ride_id, reason="phone broken"))
        assert (ride.state, ride.end_code, ride.end_reason) == (
            RideState.COMPLETED,
            Code.OPERATOR_COMPLETED,
            "phone broken",
        )
        assert (trip_of(ride).state, trip_of(ride).end_code) == (TripState.COMPLETED, Code.OPERATOR_COMPLETED)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor) == ("completed", Code.OPERATOR_COMPLETED, Actor.OPERATOR)
        assert await case.store.complete_ride(trip.ride_id, reason=None) == Done(ride, ())  # P3
        again = await case.store.move_trip(trip.trip_id, Move.COMPLETE, driver_id=trip.driver_id)
        assert again == Done(ride, ())  # the driver's own, late
        await case.matched(trip.driver_id)
        assert (await case.store.audit()).holds

    async def test_past_the_trips_limit_it_may_still_be_completed_by_hand(self, case: StoreCase) -> None:
        _, trip = await case.under_way()
        case.past_limit(trip)
        await case.done(await case.store.complete_ride(trip.ride_id, reason=None))

    async def test_what_never_had_a_driver_is_not_completed(self, case: StoreCase) -> None:
        for ride in (await case.ride(), (await case.offered())[0]):
            assert await case.store.complete_ride(ride.ride_id, reason=None) == NotAllowed(ride, ())
        for ride_id in UNKNOWN:
            assert await case.store.complete_ride(ride_id, reason=None) == NotFound()


class TestByTheMatcher:
    """A rule takes a driver from a ride under the lease's token."""

    async def test_the_ride_searches_on_and_a_driver_who_stalled_is_not_asked_again(self, case: StoreCase) -> None:
        before, trip = await case.matched()
        token = await case.lease()
        [hint] = await case.store.withdraw(MARKET, token, before.ride_id, trip.trip_id, Code.STALLED)
        ride = await case.now(before.ride_id)
        assert hint == Hint(ride.ride_id, ride.version, MARKET, trip.driver_id)
        assert (ride.state, trip_of(ride).end_code) == (RideState.SEARCHING, Code.STALLED)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor) == ("withdrawn", Code.STALLED, Actor.SERVICE)
        assert (await case.store.waiting(MARKET, limit=9)).refused == {ride.ride_id: {trip.driver_id}}
        assert await case.store.withdraw(MARKET, token, ride.ride_id, trip.trip_id, Code.STALLED) == []

    async def test_it_takes_only_the_trip_that_the_rule_saw(self, case: StoreCase) -> None:
        ride, first = await case.matched()
        ride = await case.move(first, Move.DRIVER_CANCEL)
        await case.match(ride, await case.driver())
        ride = await case.now(ride.ride_id)
        token = await case.lease()
        assert await case.store.withdraw(MARKET, token, ride.ride_id, first.trip_id, Code.STALLED) == []
        assert await case.now(ride.ride_id) == ride

    async def test_a_passenger_aboard_is_not_taken_out(self, case: StoreCase) -> None:
        ride, trip = await case.under_way()
        assert await case.store.withdraw(MARKET, await case.lease(), ride.ride_id, trip.trip_id, Code.STALLED) == []
