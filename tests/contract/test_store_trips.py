"""What every store promises of a driver's commands: the table, the fence, the slots (P1, P3, P4, P7, P11)."""

from __future__ import annotations

import pytest

from geo.model import DriverId
from matcher.model import (
    DRIVER_MOVES,
    Move,
    RideState,
    Slot,
    TripId,
    TripState,
)
from matcher.outcomes import Done, NotAllowed, NotFound, NotYours, Superseded
from tests.stores import MARKET, StoreCase, pairing


class TestProgress:
    async def test_a_trip_runs_its_course_one_version_and_one_event_a_step(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        for move, state in [
            (Move.ARRIVE, RideState.ARRIVED),
            (Move.START, RideState.IN_PROGRESS),
            (Move.COMPLETE, RideState.COMPLETED),
        ]:
            before = ride
            outcome = await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id, epoch=1)
            assert isinstance(outcome, Done)
            ride = outcome.ride
            assert (ride.state, ride.version) == (state, before.version + 1)
            [hint] = outcome.hints
            assert (hint.version, hint.driver_id) == (ride.version, trip.driver_id)
            assert await case.now(ride.ride_id) == ride
        assert ride.trip is not None
        assert ride.trip.arrived_at_ms is not None
        assert ride.ended_at_ms == ride.trip.ended_at_ms
        assert ride.trip.decision == {"batch": "b-1", "cost": {"pickup_s": 123.456}}
        assert await case.events(ride.ride_id) == ["requested", "assigned", "arrived", "started", "completed"]
        assert (await case.store.audit()).holds

    @pytest.mark.parametrize("move", [Move.ARRIVE, Move.START, Move.COMPLETE, Move.DRIVER_CANCEL])
    async def test_a_repeated_command_answers_as_the_first_did(self, case: StoreCase, move: Move) -> None:
        """P3"""
        _, trip = await case.matched()
        course = {Move.START: [Move.ARRIVE], Move.COMPLETE: [Move.ARRIVE, Move.START]}
        first = await case.move(trip, *course.get(move, []), move)
        again = await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id)
        assert again == Done(first, ())

    async def test_a_command_out_of_turn_changes_nothing_and_says_what_is_allowed(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        outcome = await case.store.move_trip(trip.trip_id, Move.COMPLETE, driver_id=trip.driver_id)
        assert outcome == NotAllowed(ride, (Move.ARRIVE, Move.DRIVER_CANCEL))
        assert await case.now(ride.ride_id) == ride

    @pytest.mark.parametrize("move", [Move.DRIVER_CANCEL, Move.DECLINE, Move.RIDER_NO_SHOW])
    async def test_a_completed_trip_allows_nothing_more(self, case: StoreCase, move: Move) -> None:
        _, trip = await case.matched()
        done = await case.move(trip, Move.ARRIVE, Move.START, Move.COMPLETE)
        outcome = await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id)
        assert outcome == NotAllowed(done, ())

    @pytest.mark.parametrize("move", [Move.ACCEPT, Move.ARRIVE, Move.START])
    async def test_a_command_repeated_after_later_ones_answers_with_the_present_state(
        self, case: StoreCase, move: Move
    ) -> None:
        """P3: whoever hears no answer asks again, however long that takes."""
        _, trip = await case.matched()
        done = await case.move(trip, Move.ARRIVE, Move.START, Move.COMPLETE)
        assert await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id) == Done(done, ())
        assert await case.now(done.ride_id) == done

    async def test_an_acceptance_repeated_on_a_row_of_the_version_before_is_known_by_its_state(
        self, case: StoreCase
    ) -> None:
        """P3: that version wrote no time of it."""
        ride, trip = await case.matched()
        case.sql("UPDATE trips SET accepted_at_ms = NULL")
        outcome = await case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id)
        assert outcome == Done(await case.now(ride.ride_id), ())

    async def test_another_drivers_trip_is_not_moved(self, case: StoreCase) -> None:
        """P11"""
        ride, trip = await case.matched()
        outcome = await case.store.move_trip(trip.trip_id, Move.ARRIVE, driver_id=DriverId("mallory"))
        assert outcome == NotYours()
        assert await case.now(ride.ride_id) == ride

    @pytest.mark.parametrize("trip_id", ["t_unknown", "", "\udc80"])
    async def test_an_unknown_trip_is_not_found(self, case: StoreCase, trip_id: str) -> None:
        assert await case.store.move_trip(TripId(trip_id), Move.ARRIVE, driver_id=None) == NotFound()

    @pytest.mark.parametrize("move", [Move.ARRIVE, Move.DRIVER_CANCEL])
    async def test_an_old_session_writes_nothing(self, case: StoreCase, move: Move) -> None:
        """P7"""
        ride, trip = await case.matched()
        await case.store.sign_on(trip.driver_id, MARKET)
        assert await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id, epoch=1) == Superseded()
        assert await case.now(ride.ride_id) == ride
        assert isinstance(await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id, epoch=2), Done)

    @pytest.mark.parametrize("move", [Move.ARRIVE, Move.DRIVER_CANCEL])
    async def test_nothing_moves_past_the_trips_limit(self, case: StoreCase, move: Move) -> None:
        """P4: judged by the database's clock in the command itself, sweep or no sweep."""
        ride, trip = await case.matched()
        case.past_limit(trip)
        outcome = await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id)
        assert isinstance(outcome, NotAllowed)
        assert outcome.allowed == ()
        assert (await case.now(ride.ride_id)).version == ride.version


class TestCancelledByTheDriver:
    async def test_the_ride_searches_on_in_its_place_without_that_driver(self, case: StoreCase) -> None:
        before, trip = await case.matched()
        younger = await case.ride()
        outcome = await case.store.move_trip(
            trip.trip_id, Move.DRIVER_CANCEL, driver_id=trip.driver_id, reason="flat tyre"
        )
        assert isinstance(outcome, Done)
        ride = outcome.ride
        assert ride.trip is not None
        assert (ride.trip.state, ride.trip.end_reason, ride.trip.slot) == (TripState.CANCELLED, "flat tyre", None)
        assert (ride.state, ride.ended_at_ms, ride.deadline_at_ms) == (RideState.SEARCHING, None, before.deadline_at_ms)
        waiting = await case.store.waiting(MARKET, limit=10)
        assert [one.ride_id for one in waiting.rides] == [ride.ride_id, younger.ride_id]
        assert waiting.refused == {ride.ride_id: {trip.driver_id}}
        assert waiting.engaged == frozenset()

    async def test_the_ride_can_be_matched_again_and_the_first_driver_sees_only_the_own_trip(
        self, case: StoreCase
    ) -> None:
        """P11"""
        _, first = await case.matched()
        ride = await case.move(first, Move.DRIVER_CANCEL)
        second = await case.match(ride, await case.driver())
        outcome = await case.store.move_trip(first.trip_id, Move.DRIVER_CANCEL, driver_id=first.driver_id)
        assert isinstance(outcome, Done)
        assert outcome.ride.trip is not None
        assert outcome.ride.trip.trip_id == first.trip_id
        await case.move(second, Move.ARRIVE, Move.START, Move.COMPLETE)
        assert (await case.store.audit()).holds


class TestOffers:
    async def test_an_accepted_offer_is_an_assignment(self, case: StoreCase) -> None:
        ride, trip = await case.matched(offer_ttl_ms=60_000)
        assert (ride.state, trip.state) == (RideState.OFFERED, TripState.OFFERED)
        ride = await case.move(trip, Move.ACCEPT)
        assert ride.state is RideState.ASSIGNED
        await case.move(trip, Move.ARRIVE, Move.START, Move.COMPLETE)
        assert await case.events(ride.ride_id) == [
            "requested",
            "offered",
            "assigned",
            "arrived",
            "started",
            "completed",
        ]

    async def test_a_declined_offer_sends_the_ride_back_and_refuses_the_driver(self, case: StoreCase) -> None:
        _, trip = await case.matched(offer_ttl_ms=60_000)
        ride = await case.move(trip, Move.DECLINE)
        assert ride.state is RideState.SEARCHING
        assert (await case.store.waiting(MARKET, limit=9)).refused == {ride.ride_id: {trip.driver_id}}

    async def test_nothing_is_accepted_after_the_rides_deadline(self, case: StoreCase) -> None:
        """P4"""
        ride, trip = await case.matched(offer_ttl_ms=60_000)
        case.past_deadline(ride.ride_id)
        outcome = await case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id)
        assert isinstance(outcome, NotAllowed)
        assert (await case.now(ride.ride_id)).state is RideState.OFFERED

    async def test_nothing_is_accepted_after_the_offers_time(self, case: StoreCase) -> None:
        """P4"""
        ride, trip = await case.matched(offer_ttl_ms=60_000)
        case.sql("UPDATE trips SET due_at_ms = due_at_ms - 90000")
        outcome = await case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id)
        assert isinstance(outcome, NotAllowed)
        [hint] = await case.sweep()
        assert hint.ride_id == ride.ride_id
        assert (await case.now(ride.ride_id)).state is RideState.SEARCHING


class TestSlots:
    """A driver has two places: `now`, and `next` while `now` stands (P1)."""

    async def engaged_twice(self, case: StoreCase) -> tuple[DriverId, TripId, TripId]:
        driver = await case.driver()
        _, now = await case.matched(driver)
        _, after = await case.matched(driver, slot=Slot.NEXT)
        return driver, now.trip_id, after.trip_id

    async def test_the_end_of_next_leaves_now(self, case: StoreCase) -> None:
        driver, now, after = await self.engaged_twice(case)
        await case.store.move_trip(after, Move.DRIVER_CANCEL, driver_id=driver)
        assert await case.slots(driver) == {now: Slot.NOW}

    async def test_a_promoted_trip_goes_on_to_its_end(self, case: StoreCase) -> None:
        driver, now, after = await self.engaged_twice(case)
        for trip_id in (now, after):
            for move in (Move.ARRIVE, Move.START, Move.COMPLETE):
                assert isinstance(await case.store.move_trip(trip_id, move, driver_id=driver), Done)
        audit = await case.store.audit()
        assert audit.holds
        assert audit.trips == {"completed": 2}

    @pytest.mark.parametrize("move", DRIVER_MOVES)
    async def test_next_makes_no_progress_before_its_turn(self, case: StoreCase, move: Move) -> None:
        driver, _, after = await self.engaged_twice(case)
        outcome = await case.store.move_trip(after, move, driver_id=driver)
        if move is Move.DRIVER_CANCEL or move is Move.ACCEPT:  # it is accepted already
            assert isinstance(outcome, Done)
        else:
            assert isinstance(outcome, NotAllowed)
            assert outcome.allowed == (Move.DRIVER_CANCEL,)

    async def test_next_needs_a_live_now(self, case: StoreCase) -> None:
        committed = await case.commit(pairing(await case.ride(), await case.driver(), slot=Slot.NEXT))
        assert [lost.why for lost in committed.lost] == ["driver_not_engaged"]

    async def test_there_is_no_third_place(self, case: StoreCase) -> None:
        driver, _, _ = await self.engaged_twice(case)
        for slot in Slot:
            committed = await case.commit(pairing(await case.ride(), driver, slot=slot))
            assert [lost.why for lost in committed.lost] == ["driver_engaged"]
