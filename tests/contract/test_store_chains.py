"""What every store promises of a driver's next trip: its turn comes whatever ends the present one (P1, P3, P4)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from matcher.model import Actor, Code, DriverStatus, Hint, Move, Ride, RideState, Slot, Trip, TripState
from matcher.outcomes import Done, NotAllowed, StatusSet, SuspendTrips
from tests.stores import HOUR_MS, MARKET, StoreCase, pairing

RELEASE_MS = 900_000
NO_SHOW_AFTER_MS = 300_000
#: Every end of a present trip: in which state it is when it ends so, by which code.
ENDS = {
    "completed": ([Move.ARRIVE, Move.START], Code.COMPLETED),
    "cancelled by the driver": ([], Code.DRIVER_CANCELLED),
    "cancelled by the rider": ([Move.ARRIVE], Code.RIDER_CANCELLED),
    "cancelled by an operator": ([Move.ARRIVE, Move.START], Code.OPERATOR_CANCELLED),
    "completed by an operator": ([], Code.OPERATOR_COMPLETED),
    "abandoned before the pickup": ([], Code.ABANDONED),
    "abandoned under way": ([Move.ARRIVE, Move.START], Code.ABANDONED),
    "a no-show": ([Move.ARRIVE], Code.NO_SHOW),
    "released": ([Move.ARRIVE], Code.RELEASED),
    "stalled": ([], Code.STALLED),
    "given to another driver": ([], Code.REASSIGNED),
}


async def ended(case: StoreCase, how: str, trip: Trip) -> Sequence[Hint]:
    """Ends a present trip in one of these ways; the hints of that."""
    store, ride_id = case.store, trip.ride_id
    outcome: object
    if how == "completed":
        outcome = await store.move_trip(trip.trip_id, Move.COMPLETE, driver_id=trip.driver_id, epoch=1)
    elif how == "cancelled by the driver":
        outcome = await store.move_trip(trip.trip_id, Move.DRIVER_CANCEL, driver_id=trip.driver_id)
    elif how == "a no-show":
        case.sql("UPDATE trips SET arrived_at_ms = arrived_at_ms - ?", NO_SHOW_AFTER_MS)
        outcome = await store.move_trip(trip.trip_id, Move.RIDER_NO_SHOW, driver_id=trip.driver_id)
    elif how == "cancelled by the rider":
        outcome = await store.cancel_ride(ride_id, client_id=None, reason=None)
    elif how == "cancelled by an operator":
        outcome = await store.cancel_ride(ride_id, client_id=None, reason=None, actor=Actor.OPERATOR)
    elif how == "completed by an operator":
        outcome = await store.complete_ride(ride_id, reason=None)
    elif how == "released":
        outcome = await store.release_ride(ride_id, reason=None)
    elif how == "given to another driver":
        outcome = await case.assign(ride_id, await case.driver())
    elif how == "stalled":
        return await store.withdraw(MARKET, await case.lease(), ride_id, trip.trip_id, Code.STALLED)
    else:
        case.past_limit(trip)
        return await case.sweep()
    await case.done(outcome)
    assert isinstance(outcome, Done)
    return outcome.hints


async def engaged_twice(case: StoreCase, *moves: Move, **options: int) -> tuple[Trip, Trip]:
    """A driver's present trip, after these moves, and its next."""
    _, now = await case.matched()
    await case.move(now, *moves)
    _, after = await case.matched(now.driver_id, slot=Slot.NEXT, **options)
    return now, after


def trip_of(ride: Ride) -> Trip:
    assert ride.trip is not None
    return ride.trip


class TestPromotion:
    @pytest.mark.parametrize("how", ENDS)
    async def test_every_end_of_the_present_trip_makes_the_next_one_present(self, case: StoreCase, how: str) -> None:
        moves, code = ENDS[how]
        now, after = await engaged_twice(case, *moves, release_after_ms=RELEASE_MS)
        before = await case.now(after.ride_id)
        assert await case.slots(now.driver_id) == {now.trip_id: Slot.NOW, after.trip_id: Slot.NEXT}
        hints = await ended(case, how, now)
        assert await case.slots(now.driver_id) == {after.trip_id: Slot.NOW}
        ride = await case.now(after.ride_id)
        assert (ride.state, ride.version) == (before.state, before.version + 1)
        assert trip_of(ride).due_at_ms == trip_of(ride).abandon_at_ms  # no longer its release
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor) == ("promoted", code, Actor.SERVICE)
        assert (event.driver_id, event.trip_id) == (now.driver_id, after.trip_id)
        assert Hint(ride.ride_id, ride.version, MARKET, now.driver_id) in hints
        old = await case.now(now.ride_id)
        assert now.driver_id in [hint.driver_id for hint in hints if hint.ride_id == old.ride_id]
        assert max(hint.version for hint in hints if hint.ride_id == old.ride_id) == old.version
        audit = await case.store.audit()
        assert audit.holds, audit

    @pytest.mark.parametrize("is_accepted", [True, False])
    async def test_an_offer_that_is_promoted_keeps_its_own_end(self, case: StoreCase, is_accepted: bool) -> None:
        _, now = await case.under_way()
        _, after = await case.offered(now.driver_id, slot=Slot.NEXT, release_after_ms=RELEASE_MS)
        if is_accepted:
            await case.move(after, Move.ACCEPT)
        await case.move(now, Move.COMPLETE)
        trip = trip_of(await case.now(after.ride_id))
        assert (trip.slot, trip.release_at_ms) == (Slot.NOW, after.release_at_ms)
        assert trip.due_at_ms == (trip.abandon_at_ms if is_accepted else after.due_at_ms)
        if not is_accepted:
            await case.move(after, Move.ACCEPT)
        ride = await case.move(after, Move.ARRIVE, Move.START, Move.COMPLETE)
        assert trip_of(ride).due_at_ms == trip_of(ride).abandon_at_ms
        audit = await case.store.audit()
        assert audit.holds
        assert audit.trips == {"completed": 2}

    async def test_an_acceptance_repeated_after_the_promotion_shows_the_present_trip(self, case: StoreCase) -> None:
        """P3"""
        _, now = await case.under_way()
        _, after = await case.offered(now.driver_id, slot=Slot.NEXT)
        await case.move(after, Move.ACCEPT)
        await case.move(now, Move.COMPLETE)
        again = await case.store.move_trip(after.trip_id, Move.ACCEPT, driver_id=now.driver_id)
        assert again == Done(await case.now(after.ride_id), ())

    async def test_a_trip_past_its_limit_is_not_completed_and_its_next_one_waits_for_the_sweep(
        self, case: StoreCase
    ) -> None:
        """P4"""
        now, after = await engaged_twice(case, Move.ARRIVE, Move.START)
        case.past_limit(now)
        ride = await case.now(now.ride_id)
        for move in (Move.COMPLETE, Move.DRIVER_CANCEL):
            outcome = await case.store.move_trip(now.trip_id, move, driver_id=now.driver_id)
            assert outcome == NotAllowed(ride, ())
        await case.sweep()
        assert await case.slots(now.driver_id) == {after.trip_id: Slot.NOW}

    async def test_of_two_that_end_in_one_sweep_none_is_promoted(self, case: StoreCase) -> None:
        now, after = await engaged_twice(case)
        for trip in (now, after):
            case.past_limit(trip)
        assert len(await case.sweep()) == 2
        assert await case.events(after.ride_id) == ["requested", "assigned", "abandoned"]
        assert await case.slots(now.driver_id) == {}
        assert (await case.store.audit()).holds

    async def test_a_sweep_promotes_for_many_drivers_at_once(self, case: StoreCase) -> None:
        pairs = [await engaged_twice(case, *moves) for moves in ([], [Move.ARRIVE], [Move.ARRIVE, Move.START], [])]
        for now, _ in pairs[:3]:
            case.past_limit(now)
        ride, offer = await case.offered()
        case.past_offer(offer)
        hints = await case.sweep()
        assert {hint.ride_id for hint in hints} == {trip.ride_id for pair in pairs[:3] for trip in pair} | {
            ride.ride_id
        }
        assert len(hints) == 7
        for now, after in pairs[:3]:
            assert await case.slots(now.driver_id) == {after.trip_id: Slot.NOW}
        assert (await case.store.audit()).holds


class TestSuspension:
    async def test_ending_the_present_trip_gives_the_next_one_back(self, case: StoreCase) -> None:
        now, after = await engaged_twice(case, Move.ARRIVE, Move.START)
        outcome = await case.store.suspend(now.driver_id, trips=SuspendTrips.END, reason=None)
        assert isinstance(outcome, StatusSet)
        assert await case.slots(now.driver_id) == {}
        assert (await case.now(now.ride_id)).state is RideState.CANCELLED
        assert (await case.now(after.ride_id)).state is RideState.SEARCHING
        assert await case.events(after.ride_id) == ["requested", "assigned", "withdrawn"]
        assert (await case.store.audit()).holds


class TestTheNextTrip:
    async def test_its_own_end_leaves_the_present_one(self, case: StoreCase) -> None:
        now, after = await engaged_twice(case)
        before = await case.now(now.ride_id)
        ride = await case.move(after, Move.DRIVER_CANCEL)
        assert ride.state is RideState.SEARCHING
        assert await case.slots(now.driver_id) == {now.trip_id: Slot.NOW}
        assert await case.now(now.ride_id) == before

    @pytest.mark.parametrize("move", [Move.ARRIVE, Move.START, Move.COMPLETE, Move.RIDER_NO_SHOW])
    async def test_it_makes_no_progress_before_its_turn(self, case: StoreCase, move: Move) -> None:
        now, after = await engaged_twice(case)
        ride = await case.now(after.ride_id)
        outcome = await case.store.move_trip(after.trip_id, move, driver_id=now.driver_id)
        assert outcome == NotAllowed(ride, (Move.DRIVER_CANCEL,))

    async def test_a_driver_with_a_next_trip_carries_but_takes_no_more(self, case: StoreCase) -> None:
        now, _ = await engaged_twice(case, Move.ARRIVE, Move.START)
        case.sql("UPDATE rides SET dropoff_lat = 40, dropoff_lon = -74")
        waiting = await case.store.waiting(MARKET, limit=9, carrying=True)
        assert list(waiting.carrying) == []
        assert waiting.engaged == {now.driver_id}

    @pytest.mark.parametrize("moves", [[], [Move.ARRIVE, Move.START, Move.COMPLETE]])
    async def test_it_needs_a_present_trip(self, case: StoreCase, moves: list[Move]) -> None:
        driver = await case.driver()
        if moves:
            await case.move((await case.matched(driver))[1], *moves)
        [lost] = (await case.commit(pairing(await case.ride(), driver, slot=Slot.NEXT))).lost
        assert lost.why == "driver_not_engaged"


class TestRunningLate:
    async def test_a_ride_whose_turn_does_not_come_is_released(self, case: StoreCase) -> None:
        """P4: it may have another driver, and this one is not to blame."""
        now, after = await engaged_twice(case, Move.ARRIVE, Move.START, release_after_ms=RELEASE_MS)
        assert after.due_at_ms == after.release_at_ms == after.matched_at_ms + RELEASE_MS
        case.past_offer(after)
        [hint] = await case.sweep()
        assert hint.driver_id == now.driver_id
        ride = await case.now(after.ride_id)
        assert (ride.state, trip_of(ride).state) == (RideState.SEARCHING, TripState.WITHDRAWN)
        assert trip_of(ride).end_code == Code.RUNNING_LATE
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor) == ("withdrawn", Code.RUNNING_LATE, Actor.SERVICE)
        assert (await case.store.waiting(MARKET, limit=9)).refused == {}
        assert await case.slots(now.driver_id) == {now.trip_id: Slot.NOW}
        await case.move(now, Move.COMPLETE)
        await case.match(ride, now.driver_id)
        assert (await case.store.audit()).holds

    async def test_without_a_time_of_release_it_waits_for_its_limit(self, case: StoreCase) -> None:
        _, after = await engaged_twice(case)
        assert (after.release_at_ms, after.due_at_ms) == (None, after.abandon_at_ms)
        assert await case.sweep() == []

    async def test_a_time_of_release_beyond_the_limit_is_the_limit(self, case: StoreCase) -> None:
        _, after = await engaged_twice(case, release_after_ms=2 * HOUR_MS)
        assert after.release_at_ms == after.abandon_at_ms

    async def test_once_promoted_it_is_not_released(self, case: StoreCase) -> None:
        now, after = await engaged_twice(case, Move.ARRIVE, Move.START, release_after_ms=1)
        await case.store.now_ms()
        await case.move(now, Move.COMPLETE)
        case.sql("UPDATE trips SET release_at_ms = release_at_ms - 5000")
        assert await case.sweep() == []
        await case.move(after, Move.ARRIVE, Move.START, Move.COMPLETE)

    async def test_a_driver_who_accepted_late_cannot_give_back_what_is_released(self, case: StoreCase) -> None:
        """P4"""
        now, after = await engaged_twice(case, release_after_ms=RELEASE_MS)
        case.past_offer(after)
        outcome = await case.store.move_trip(after.trip_id, Move.DRIVER_CANCEL, driver_id=now.driver_id)
        assert outcome == NotAllowed(await case.now(after.ride_id), ())


class TestBreaks:
    async def test_a_break_gives_the_next_trip_back_and_lets_the_present_one_finish(self, case: StoreCase) -> None:
        now, after = await engaged_twice(case, Move.ARRIVE)
        present = await case.now(now.ride_id)
        outcome = await case.store.set_status(now.driver_id, DriverStatus.ON_BREAK, epoch=1)
        assert outcome is not None
        assert outcome.finishing == now.trip_id
        ride = await case.now(after.ride_id)
        assert Hint(ride.ride_id, ride.version, MARKET, now.driver_id) in outcome.hints
        assert (ride.state, trip_of(ride).end_code) == (RideState.SEARCHING, Code.DRIVER_BREAK)
        assert await case.now(now.ride_id) == present
        await case.move(now, Move.START, Move.COMPLETE)
        assert (await case.store.audit()).holds
