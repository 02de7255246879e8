"""What every store promises of offers: one answer in time, or the ride goes on without that driver (P3, P4, P7)."""

from __future__ import annotations

import pytest

from geo.model import DriverId, MarketId
from matcher.model import NO_RIDE, Actor, Code, DriverStatus, Hint, Move, RideState, Slot, Trip, TripState
from matcher.outcomes import Done, NotAllowed
from tests.stores import MARKET, StoreCase, pairing

GRACE_MS = 8_000


async def missed(case: StoreCase, driver: DriverId) -> int:
    return int(case.sql("SELECT missed_offers FROM drivers WHERE driver_id = ?", driver)[0][0])


async def run_out(case: StoreCase, driver: DriverId) -> list[Hint]:
    """An offer that this driver leaves unanswered; the ride is cancelled afterwards."""
    ride, trip = await case.offered(driver)
    case.past_offer(trip)
    hints = await case.sweep()
    await case.store.cancel_ride(ride.ride_id, client_id=None, reason=None)
    return hints


class TestAnswers:
    async def test_an_accepted_offer_lives_as_long_as_an_assignment(self, case: StoreCase) -> None:
        _, trip = await case.offered()
        assert (trip.accepted_at_ms, trip.due_at_ms) == (None, trip.matched_at_ms + 60_000)
        ride = await case.move(trip, Move.ACCEPT)
        assert ride.trip is not None
        assert (ride.state, ride.trip.state) == (RideState.ASSIGNED, TripState.ACCEPTED)
        assert ride.trip.accepted_at_ms is not None
        assert ride.trip.due_at_ms == trip.abandon_at_ms
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor) == ("assigned", None, Actor.DRIVER)

    async def test_an_answer_repeated_gets_the_first_one(self, case: StoreCase) -> None:
        """P3"""
        for move in (Move.ACCEPT, Move.DECLINE):
            _, trip = await case.offered()
            first = await case.move(trip, move)
            assert await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id) == Done(first, ())

    async def test_an_acceptance_repeated_after_the_trip_was_taken_away_shows_that(self, case: StoreCase) -> None:
        """P3: it took effect once; what became of it since is the answer, not a refusal."""
        ride, trip = await case.offered()
        await case.move(trip, Move.ACCEPT)
        released = await case.done(await case.store.release_ride(ride.ride_id, reason=None))
        again = await case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id)
        assert again == Done(released, ())

    async def test_what_was_accepted_cannot_be_declined(self, case: StoreCase) -> None:
        _, trip = await case.offered()
        ride = await case.move(trip, Move.ACCEPT)
        outcome = await case.store.move_trip(trip.trip_id, Move.DECLINE, driver_id=trip.driver_id)
        assert outcome == NotAllowed(ride, (Move.ARRIVE, Move.DRIVER_CANCEL))

    async def test_what_was_declined_cannot_be_accepted(self, case: StoreCase) -> None:
        _, trip = await case.offered()
        ride = await case.move(trip, Move.DECLINE)
        outcome = await case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id)
        assert outcome == NotAllowed(ride, ())

    async def test_a_declined_ride_keeps_its_place_and_is_not_offered_to_that_driver_again(
        self, case: StoreCase
    ) -> None:
        before, trip = await case.offered()
        younger = await case.ride()
        outcome = await case.store.move_trip(trip.trip_id, Move.DECLINE, driver_id=trip.driver_id, reason="too far")
        ride = await case.done(outcome)
        assert ride.trip is not None
        assert (ride.state, ride.trip.state, ride.trip.end_code) == (
            RideState.SEARCHING,
            TripState.DECLINED,
            Code.DECLINED,
        )
        assert (ride.queued_at_ms, ride.deadline_at_ms) == (before.queued_at_ms, before.deadline_at_ms)
        assert (ride.ended_at_ms, ride.end_code) == (None, None)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor, event.reason) == (
            "declined",
            Code.DECLINED,
            Actor.DRIVER,
            "too far",
        )
        assert (event.driver_id, event.trip_id) == (trip.driver_id, trip.trip_id)
        assert await case.waiting_ids() == [ride.ride_id, younger.ride_id]
        assert (await case.store.waiting(MARKET, limit=9)).refused == {ride.ride_id: {trip.driver_id}}

    async def test_nothing_is_accepted_after_the_rides_deadline_and_it_may_still_be_declined(
        self, case: StoreCase
    ) -> None:
        """P4"""
        _, trip = await case.offered()
        case.past_deadline(trip.ride_id)
        ride = await case.now(trip.ride_id)
        outcome = await case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id)
        assert outcome == NotAllowed(ride, (Move.DECLINE,))
        await case.move(trip, Move.DECLINE)

    @pytest.mark.parametrize("move", [Move.ACCEPT, Move.DECLINE])
    async def test_nothing_is_answered_after_the_offers_end(self, case: StoreCase, move: Move) -> None:
        """P4: judged by the database's clock, sweep or no sweep."""
        _, trip = await case.offered()
        case.past_offer(trip)
        ride = await case.now(trip.ride_id)
        assert await case.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id) == NotAllowed(ride, ())
        assert await case.now(ride.ride_id) == ride

    async def test_an_offer_of_a_next_trip_is_answered_like_any_other(self, case: StoreCase) -> None:
        _, now = await case.under_way()
        for move, slot in ((Move.DECLINE, None), (Move.ACCEPT, Slot.NEXT)):
            _, trip = await case.offered(now.driver_id, slot=Slot.NEXT, release_after_ms=900_000)
            assert trip.due_at_ms == trip.matched_at_ms + 60_000
            ride = await case.move(trip, move)
            assert ride.trip is not None
            assert ride.trip.slot is slot
        assert ride.trip is not None
        assert ride.trip.due_at_ms == ride.trip.release_at_ms == trip.matched_at_ms + 900_000
        assert (await case.store.audit()).holds


class TestTimeOut:
    async def test_the_ride_goes_back_to_its_place_without_that_driver(self, case: StoreCase) -> None:
        before, trip = await case.offered()
        younger = await case.ride()
        case.past_offer(trip)
        [hint] = await case.sweep()
        ride = await case.now(before.ride_id)
        assert (hint.ride_id, hint.version, hint.driver_id) == (ride.ride_id, ride.version, trip.driver_id)
        assert ride.trip is not None
        assert (ride.state, ride.trip.state, ride.trip.end_code, ride.trip.slot) == (
            RideState.SEARCHING,
            TripState.TIMED_OUT,
            Code.OFFER_EXPIRED,
            None,
        )
        assert (ride.queued_at_ms, ride.deadline_at_ms) == (before.queued_at_ms, before.deadline_at_ms)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor) == ("timed_out", Code.OFFER_EXPIRED, Actor.SERVICE)
        assert await case.waiting_ids() == [ride.ride_id, younger.ride_id]
        assert (await case.store.waiting(MARKET, limit=9)).refused == {ride.ride_id: {trip.driver_id}}
        assert await case.sweep() == []
        assert (await case.store.audit()).holds

    async def test_the_place_in_the_queue_is_a_scheduled_rides_time_of_search(self, case: StoreCase) -> None:
        first = await case.ride()
        now_ms = await case.store.now_ms()
        later = await case.ride(pickup_at_ms=now_ms + 600_000, lead_ms=900_000)
        assert later.state is RideState.SEARCHING
        trip = await case.match(later, await case.driver(), offer_ttl_ms=60_000)
        third = await case.ride()
        case.past_offer(trip)
        await case.sweep()
        assert await case.waiting_ids() == [first.ride_id, later.ride_id, third.ride_id]
        assert (await case.now(later.ride_id)).queued_at_ms == later.search_at_ms

    async def test_an_offer_that_is_over_with_its_ride_ends_as_the_ride_does(self, case: StoreCase) -> None:
        """P4"""
        ride, trip = await case.offered()
        case.past_deadline(ride.ride_id)
        await case.sweep()
        expired = await case.now(ride.ride_id)
        assert expired.trip is not None
        assert (expired.state, expired.end_code) == (RideState.EXPIRED, Code.NO_DRIVER_FOUND)
        assert expired.trip.state is TripState.TIMED_OUT
        assert await missed(case, trip.driver_id) == 0  # there was time left to answer

    async def test_an_offered_next_trip_runs_out_and_leaves_the_present_one(self, case: StoreCase) -> None:
        present, now = await case.under_way()
        _, trip = await case.offered(now.driver_id, slot=Slot.NEXT)
        case.past_offer(trip)
        assert len(await case.sweep()) == 1
        assert await case.now(present.ride_id) == present
        ride = await case.now(trip.ride_id)
        assert ride.state is RideState.SEARCHING
        assert (await case.store.audit()).holds


class TestMissedOffers:
    async def test_three_in_a_row_pause_the_driver_who_is_told(self, case: StoreCase) -> None:
        driver = await case.driver()
        for _ in range(2):
            assert [hint.ride_id == NO_RIDE for hint in await run_out(case, driver)] == [False]
        before = await case.store.driver(driver)
        assert before is not None
        assert before.status is DriverStatus.ONLINE
        _, told = await run_out(case, driver)
        after = await case.store.driver(driver)
        assert after is not None
        assert (after.status, after.status_code) == (DriverStatus.ON_BREAK, Code.MISSED_OFFERS)
        assert after.version == before.version + 1
        assert told == Hint(NO_RIDE, after.version, MARKET, driver)
        assert await missed(case, driver) == 0
        [lost] = (await case.commit(pairing(await case.ride(), driver))).lost
        assert lost.why == "driver_gone"

    async def test_going_online_again_ends_the_pause(self, case: StoreCase) -> None:
        driver = await case.driver()
        for _ in range(3):
            await run_out(case, driver)
        signed_on = await case.store.sign_on(driver, MARKET)
        assert signed_on is not None
        assert signed_on.driver.status is DriverStatus.ON_BREAK  # a new session does not
        outcome = await case.store.set_status(driver, DriverStatus.ONLINE, epoch=2)
        assert outcome is not None
        assert (outcome.driver.status, outcome.driver.status_code) == (DriverStatus.ONLINE, None)
        await case.offered(driver)

    @pytest.mark.parametrize("move", [Move.ACCEPT, Move.DECLINE])
    async def test_an_answer_begins_the_row_anew_whatever_it_says(self, case: StoreCase, move: Move) -> None:
        driver = await case.driver()
        for _ in range(2):
            await run_out(case, driver)
        assert await missed(case, driver) == 2
        _, trip = await case.offered(driver)
        ride = await case.move(trip, move)
        assert await missed(case, driver) == 0
        await case.store.cancel_ride(ride.ride_id, client_id=None, reason=None)
        await run_out(case, driver)
        found = await case.store.driver(driver)
        assert found is not None
        assert found.status is DriverStatus.ONLINE

    async def test_two_drivers_who_miss_together_are_counted_apart(self, case: StoreCase) -> None:
        often, once = await case.driver(), await case.driver()
        for _ in range(2):
            await run_out(case, often)
        trips: list[Trip] = [(await case.offered(driver))[1] for driver in (often, once)]
        for trip in trips:
            case.past_offer(trip)
        hints = await case.sweep()
        assert [hint.driver_id for hint in hints if hint.ride_id == NO_RIDE] == [often]
        assert await missed(case, once) == 1

    async def test_one_who_is_on_a_break_already_stays_as_he_is(self, case: StoreCase) -> None:
        """An operator may have assigned a ride by hand."""
        driver = await case.driver()
        await case.store.set_status(driver, DriverStatus.ON_BREAK, epoch=1)
        case.sql("UPDATE drivers SET missed_offers = 2")
        ride = await case.ride()
        await case.done(await case.assign(ride.ride_id, driver, offer_ttl_ms=60_000))
        trip = (await case.now(ride.ride_id)).trip
        assert trip is not None
        case.past_offer(trip)
        assert [hint.ride_id for hint in await case.sweep()] == [ride.ride_id]
        found = await case.store.driver(driver)
        assert found is not None
        assert (found.status, found.status_code) == (DriverStatus.ON_BREAK, None)


class TestLostSockets:
    async def test_an_offer_is_taken_back_once_the_grace_is_over(self, case: StoreCase) -> None:
        ride, trip = await case.offered()
        await case.store.note_lost(trip.driver_id, epoch=1)
        assert await case.sweep() == []
        case.lost_since(trip.driver_id, GRACE_MS)
        [hint] = await case.sweep()
        assert hint.driver_id == trip.driver_id
        ride = await case.now(ride.ride_id)
        assert ride.trip is not None
        assert (ride.state, ride.trip.state, ride.trip.end_code) == (
            RideState.SEARCHING,
            TripState.TIMED_OUT,
            Code.CONNECTION_LOST,
        )
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor) == ("timed_out", Code.CONNECTION_LOST, Actor.SERVICE)

    async def test_it_is_no_miss_and_no_refusal_of_the_drivers(self, case: StoreCase) -> None:
        driver = await case.driver()
        for is_over in (False, True):  # the offer itself ran out, too
            _, trip = await case.offered(driver)
            await case.store.note_lost(driver, epoch=1)
            case.lost_since(driver, GRACE_MS)
            if is_over:
                case.past_offer(trip)
            await case.sweep()
        assert await missed(case, driver) == 0
        histories = await case.store.driver_histories(MARKET, within_ms=60_000)
        assert (histories[driver].trips, histories[driver].refused) == (2, 0)

    async def test_an_offer_that_runs_out_during_the_grace_is_no_miss(self, case: StoreCase) -> None:
        ride, trip = await case.offered()
        await case.store.note_lost(trip.driver_id, epoch=1)
        case.past_offer(trip)
        await case.sweep()
        assert (await case.now(ride.ride_id)).state is RideState.SEARCHING
        assert await missed(case, trip.driver_id) == 0

    async def test_a_session_that_is_back_in_time_keeps_its_offer(self, case: StoreCase) -> None:
        _, trip = await case.offered()
        await case.store.note_lost(trip.driver_id, epoch=1)
        case.lost_since(trip.driver_id, GRACE_MS)
        signed_on = await case.store.sign_on(trip.driver_id, MARKET)
        assert signed_on is not None
        assert signed_on.trips == [trip]
        assert await case.sweep() == []
        await case.move(trip, Move.ACCEPT)

    async def test_an_old_session_that_ends_late_says_nothing_of_the_new_one(self, case: StoreCase) -> None:
        """P7"""
        _, trip = await case.offered()
        await case.store.sign_on(trip.driver_id, MARKET)
        await case.store.note_lost(trip.driver_id, epoch=1)
        assert case.sql("SELECT lost_at_ms FROM drivers")[0][0] is None

    async def test_it_is_lost_since_the_first_word_of_it(self, case: StoreCase) -> None:
        driver = await case.driver()
        await case.store.note_lost(driver, epoch=1)
        case.lost_since(driver, GRACE_MS)
        [[first]] = case.sql("SELECT lost_at_ms FROM drivers")
        await case.store.note_lost(driver, epoch=1)
        assert case.sql("SELECT lost_at_ms FROM drivers")[0][0] == first

    async def test_a_trip_that_was_accepted_stays(self, case: StoreCase) -> None:
        _, trip = await case.offered()
        ride = await case.move(trip, Move.ACCEPT)
        await case.store.note_lost(trip.driver_id, epoch=1)
        case.lost_since(trip.driver_id, GRACE_MS)
        assert await case.sweep() == []
        assert await case.now(ride.ride_id) == ride

    async def test_it_is_the_rides_markets_matcher_who_takes_it_back(self, case: StoreCase) -> None:
        _, trip = await case.offered()
        await case.store.note_lost(trip.driver_id, epoch=1)
        case.lost_since(trip.driver_id, GRACE_MS)
        rome = MarketId("rome")
        token = await case.store.acquire_lease(rome, "matcher-1", 60_000)
        assert token is not None
        assert await case.store.sweep(rome, token) == []
        assert len(await case.sweep()) == 1
