"""Two commands of which one stops in the middle: whichever wins, both answers are true and nothing is lost.

Every promise of one trip a place, one answer a command and one matcher a market (P1, P3, P4, P7) is decided here by
real locks of two connections, in both orders.
"""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from geo.model import DriverId, LatLng
from matcher.ids import new_trip_id
from matcher.model import NO_RIDE, Actor, Code, DriverStatus, Move, Ride, RideState, Slot, TripState
from matcher.outcomes import Committed, Done, NotAllowed
from matcher.sessions import rows_of
from matcher.store_operator import Assignment, assign, complete
from matcher.store_sweep import LOCK_RIDE_IDS
from matcher.store_trips import cancel_ride, redirect_ride
from tests.stores import HOUR_MS, StoreCase, pairing
from tests.transactions import (
    Work,
    halted,
    lock_waits,
    moving,
    planning,
    setting,
    standing,
    sweeping,
    until_waiting,
)

GRACE_MS = 8_000


def assigning(ride: Ride, driver: DriverId) -> Work[object]:
    new = Assignment(ride.ride_id, driver, new_trip_id(), None, "ann", HOUR_MS)
    return lambda session: assign(session, new, {})


async def chain(case: StoreCase, ride: Ride, driver: DriverId) -> Work[Committed]:
    """A plan that gives the driver this ride as its next."""
    return planning(await case.lease(), pairing(ride, driver, slot=Slot.NEXT))


async def offer(case: StoreCase, ride: Ride, driver: DriverId) -> Work[Committed]:
    return planning(await case.lease(), pairing(ride, driver), offer_ttl_ms=60_000)


async def holds(case: StoreCase) -> bool:
    return (await case.store.audit()).holds


class TestAnAnswerAgainstItsTime:
    async def test_an_offer_that_ran_out_while_the_driver_accepted_is_not_accepted(self, case: StoreCase) -> None:
        """P4: the sweep came between the command's read and its writes."""
        ride, trip = await case.offered()
        async with halted(case.url, moving(trip, Move.ACCEPT)) as accepting:
            case.past_offer(trip)
            await case.sweep()
            outcome = await accepting.finish()
        assert accepting.tries == 2
        assert outcome == NotAllowed(await case.now(ride.ride_id), ())
        assert await case.events(ride.ride_id) == ["requested", "offered", "timed_out"]

    @pytest.mark.parametrize("move", [Move.ACCEPT, Move.DECLINE])
    async def test_the_writes_themselves_judge_the_offers_time(self, case: StoreCase, move: Move) -> None:
        """P4: and no sweep is needed for it."""
        ride, trip = await case.offered()
        async with halted(case.url, moving(trip, move)) as answering:
            case.past_offer(trip)
            outcome = await answering.finish()
        assert answering.tries == 1
        assert outcome == NotAllowed(ride, ())
        assert (await case.now(ride.ride_id)).version == ride.version

    async def test_the_writes_themselves_judge_the_rides_deadline(self, case: StoreCase) -> None:
        """P4"""
        ride, trip = await case.offered()
        async with halted(case.url, moving(trip, Move.ACCEPT)) as accepting:
            case.past_deadline(ride.ride_id)
            assert await accepting.finish() == NotAllowed(ride, ())
        assert (await case.now(ride.ride_id)).state is RideState.OFFERED

    async def test_a_sweep_leaves_an_offer_that_is_being_accepted(self, case: StoreCase) -> None:
        _, trip = await case.offered()
        await case.store.note_lost(trip.driver_id, epoch=1)
        case.lost_since(trip.driver_id, GRACE_MS)
        async with standing(case.url, moving(trip, Move.ACCEPT, epoch=None)):
            assert await case.sweep() == []
        assert await case.sweep() == []
        assert (await case.now(trip.ride_id)).state is RideState.ASSIGNED

    async def test_an_acceptance_waits_for_the_sweep_that_takes_the_offer_back(self, case: StoreCase) -> None:
        _, trip = await case.offered()
        await case.store.note_lost(trip.driver_id, epoch=1)
        case.lost_since(trip.driver_id, GRACE_MS)
        async with standing(case.url, sweeping(await case.lease())):
            waits = lock_waits(case)
            accepting = asyncio.create_task(case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id))
            await until_waiting(case, waits)
        assert await accepting == NotAllowed(await case.now(trip.ride_id), ())
        assert await case.events(trip.ride_id) == ["requested", "offered", "timed_out"]

    async def test_a_cancellation_waits_for_the_sweep_and_ends_what_searches_on(self, case: StoreCase) -> None:
        ride, trip = await case.offered()
        case.past_offer(trip)
        async with standing(case.url, sweeping(await case.lease())):
            waits = lock_waits(case)
            cancelling = asyncio.create_task(case.store.cancel_ride(ride.ride_id, client_id=None, reason=None))
            await until_waiting(case, waits)
        await case.done(await cancelling)
        assert await case.events(ride.ride_id) == ["requested", "offered", "timed_out", "cancelled"]
        assert await holds(case)

    async def test_a_completion_past_the_trips_limit_takes_no_next_trip_along(self, case: StoreCase) -> None:
        """P4: the limit passed between the read and the writes, and the place is not free."""
        _, now = await case.under_way()
        _, after = await case.matched(now.driver_id, slot=Slot.NEXT)
        async with halted(case.url, moving(now, Move.COMPLETE), before_call=3) as completing:
            case.past_limit(now)
            assert await completing.finish() == NotAllowed(await case.now(now.ride_id), ())
        assert await case.slots(now.driver_id) == {now.trip_id: Slot.NOW, after.trip_id: Slot.NEXT}


class TestCompletionAgainstChaining:
    """A driver gets its next trip at the very moment in which the present one ends."""

    async def test_a_next_trip_that_came_after_the_read_is_promoted(self, case: StoreCase) -> None:
        """P1: the completion is done again, and sees it."""
        _, now = await case.under_way()
        ride = await case.ride()
        async with halted(case.url, moving(now, Move.COMPLETE)) as completing:
            after = await case.match(ride, now.driver_id, slot=Slot.NEXT)
            outcome = await completing.finish()
        assert completing.tries == 2
        assert isinstance(outcome, Done)
        assert [(hint.ride_id, hint.version) for hint in outcome.hints] == [(now.ride_id, 5), (ride.ride_id, 3)]
        assert await case.slots(now.driver_id) == {after.trip_id: Slot.NOW}
        assert await case.events(ride.ride_id) == ["requested", "assigned", "promoted"]
        assert await holds(case)

    async def test_a_completion_waits_for_the_chaining_that_holds_the_driver(self, case: StoreCase) -> None:
        _, now = await case.under_way()
        ride = await case.ride()
        async with standing(case.url, await chain(case, ride, now.driver_id)):
            waits = lock_waits(case)
            completing = asyncio.create_task(case.store.move_trip(now.trip_id, Move.COMPLETE, driver_id=now.driver_id))
            await until_waiting(case, waits)
        await case.done(await completing)
        assert list((await case.slots(now.driver_id)).values()) == [Slot.NOW]
        assert await case.events(ride.ride_id) == ["requested", "assigned", "promoted"]
        assert await holds(case)

    async def test_nothing_is_chained_to_a_trip_that_is_being_completed(self, case: StoreCase) -> None:
        _, now = await case.under_way()
        ride = await case.ride()
        plan = pairing(ride, now.driver_id, slot=Slot.NEXT)
        async with standing(case.url, moving(now, Move.COMPLETE)):
            assert [lost.why for lost in (await case.commit(plan)).lost] == ["driver_busy"]
        assert [lost.why for lost in (await case.commit(plan)).lost] == ["driver_not_engaged"]
        assert await holds(case)

    async def test_a_plan_in_hand_when_the_trip_ends_chains_nothing(self, case: StoreCase) -> None:
        """P1"""
        _, now = await case.under_way()
        ride = await case.ride()
        async with halted(case.url, await chain(case, ride, now.driver_id)) as planning:
            await case.move(now, Move.COMPLETE)
            committed = await planning.finish()
        assert [lost.why for lost in committed.lost] == ["driver_not_engaged"]
        assert (await case.now(ride.ride_id)).state is RideState.SEARCHING

    @pytest.mark.parametrize(("before_call", "tries"), [(2, 1), (3, 2)], ids=["between the reads", "after them"])
    async def test_a_next_trip_that_went_after_the_read_is_not_promoted(
        self, case: StoreCase, before_call: int, tries: int
    ) -> None:
        _, now = await case.under_way()
        _, after = await case.matched(now.driver_id, slot=Slot.NEXT)
        async with halted(case.url, moving(now, Move.COMPLETE), before_call=before_call) as completing:
            await case.move(after, Move.DRIVER_CANCEL)
            outcome = await completing.finish()
        assert completing.tries == tries
        assert isinstance(outcome, Done)
        assert [hint.ride_id for hint in outcome.hints] == [now.ride_id]
        assert await case.slots(now.driver_id) == {}
        assert await holds(case)

    @pytest.mark.parametrize("before_call", [2, 3], ids=["between the reads", "after them"])
    async def test_a_next_trip_that_was_accepted_after_the_read_is_promoted_as_accepted(
        self, case: StoreCase, before_call: int
    ) -> None:
        _, now = await case.under_way()
        _, after = await case.offered(now.driver_id, slot=Slot.NEXT)
        async with halted(case.url, moving(now, Move.COMPLETE), before_call=before_call) as completing:
            await case.move(after, Move.ACCEPT)
            assert isinstance(await completing.finish(), Done)
        ride = await case.now(after.ride_id)
        assert ride.trip is not None
        assert (ride.trip.state, ride.trip.slot, ride.trip.due_at_ms) == (
            TripState.ACCEPTED,
            Slot.NOW,
            after.abandon_at_ms,
        )

    async def test_a_sweep_leaves_a_driver_whose_next_trip_it_could_not_lock(self, case: StoreCase) -> None:
        """P4: both are seen to by the next one."""
        _, now = await case.matched()
        _, after = await case.matched(now.driver_id, slot=Slot.NEXT)
        case.past_limit(now)
        async with standing(case.url, lambda session: rows_of(session, LOCK_RIDE_IDS(ids=[after.ride_id]))):
            assert await case.sweep() == []
        assert len(await case.sweep()) == 2
        assert await case.slots(now.driver_id) == {after.trip_id: Slot.NOW}
        assert await holds(case)

    async def test_a_next_trip_that_came_while_the_sweep_looked_is_not_overlooked(self, case: StoreCase) -> None:
        """P1: an operator's, which needs no lease; the present trip is left to the next sweep."""
        _, now = await case.matched()
        case.past_limit(now)
        ride = await case.ride()
        async with halted(
            case.url, sweeping(await case.lease()), before_call=5
        ) as looking:  # before the drivers' locks
            await case.done(await case.assign(ride.ride_id, now.driver_id))
            assert await looking.finish() == []
        assert len(await case.sweep()) == 2
        assert list((await case.slots(now.driver_id)).values()) == [Slot.NOW]
        assert await holds(case)


class TestTwoOfOneKind:
    async def test_of_two_completions_one_takes_effect_and_both_are_answered(self, case: StoreCase) -> None:
        """P3"""
        _, now = await case.under_way()
        _, after = await case.matched(now.driver_id, slot=Slot.NEXT)
        async with halted(case.url, moving(now, Move.COMPLETE), before_call=3) as second:
            first = await case.move(now, Move.COMPLETE)
            assert await second.finish() == Done(first, ())
        assert await case.events(now.ride_id) == ["requested", "assigned", "arrived", "started", "completed"]
        assert await case.events(after.ride_id) == ["requested", "assigned", "promoted"]

    async def test_the_drivers_completion_meets_the_operators(self, case: StoreCase) -> None:
        """P3"""
        ride, now = await case.under_way()
        async with halted(case.url, lambda session: complete(session, ride.ride_id, reason=None)) as by_hand:
            done = await case.move(now, Move.COMPLETE)
            assert await by_hand.finish() == Done(done, ())
        assert done.end_code == Code.COMPLETED

    async def test_two_cancellations_of_two_actors_are_one(self, case: StoreCase) -> None:
        ride, _ = await case.matched()
        work = partial(cancel_ride, ride_id=ride.ride_id, client_id=None, reason="late", actor=Actor.RIDER)
        async with halted(case.url, work) as by_rider:
            done = await case.done(
                await case.store.cancel_ride(ride.ride_id, client_id=None, reason="no car", actor=Actor.OPERATOR)
            )
            assert await by_rider.finish() == Done(done, ())
        assert (await case.newest_event(ride.ride_id)).code == Code.OPERATOR_CANCELLED

    async def test_a_ride_that_was_picked_up_meanwhile_is_not_cancelled(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        await case.move(trip, Move.ARRIVE)
        work = partial(cancel_ride, ride_id=ride.ride_id, client_id=None, reason="late", actor=Actor.RIDER)
        async with halted(case.url, work) as cancelling:
            ride = await case.move(trip, Move.START)
            assert await cancelling.finish() == NotAllowed(ride, ())

    async def test_a_ride_that_ended_meanwhile_goes_nowhere_else(self, case: StoreCase) -> None:
        ride, trip = await case.under_way()
        work = partial(
            redirect_ride, ride_id=ride.ride_id, dropoff=LatLng(41.0, -73.0), client_id=None, actor=Actor.RIDER
        )
        async with halted(case.url, work) as redirecting:
            ride = await case.move(trip, Move.COMPLETE)
            assert await redirecting.finish() == NotAllowed(ride, ())


class TestBatchAgainstCommands:
    async def test_a_ride_cancelled_after_the_plan_took_the_lease_drops_out(self, case: StoreCase) -> None:
        ride, driver = await case.ride(), await case.driver()
        async with halted(case.url, await offer(case, ride, driver)) as planning:
            await case.done(await case.store.cancel_ride(ride.ride_id, client_id=None, reason=None))
            committed = await planning.finish()
        assert [lost.why for lost in committed.lost] == ["ride_changed"]

    async def test_a_ride_past_its_deadline_when_the_plan_takes_it_drops_out(self, case: StoreCase) -> None:
        """P4"""
        ride, driver = await case.ride(), await case.driver()
        async with halted(case.url, await offer(case, ride, driver)) as planning:
            case.past_deadline(ride.ride_id)
            committed = await planning.finish()
        assert [lost.why for lost in committed.lost] == ["ride_changed"]

    async def test_a_driver_who_was_given_another_trip_drops_out(self, case: StoreCase) -> None:
        """P1: by an operator, after the plan had locked its rides."""
        ride, other, driver = await case.ride(), await case.ride(), await case.driver()
        async with halted(case.url, await offer(case, ride, driver), before_call=3) as planning:
            await case.done(await case.assign(other.ride_id, driver))
            committed = await planning.finish()
        assert [lost.why for lost in committed.lost] == ["driver_engaged"]
        assert await holds(case)

    async def test_an_operator_waits_for_the_plan_and_gives_the_driver_the_ride_next(self, case: StoreCase) -> None:
        """P1"""
        ride, other, driver = await case.ride(), await case.ride(), await case.driver()
        async with standing(case.url, await offer(case, ride, driver)):
            waits = lock_waits(case)
            assigning = asyncio.create_task(case.assign(other.ride_id, driver))
            await until_waiting(case, waits)
        given = await case.done(await assigning)
        assert given.trip is not None
        assert given.trip.slot is Slot.NEXT
        assert await holds(case)


class TestBreakAgainstOffer:
    async def test_an_offer_that_came_after_the_read_is_given_back(self, case: StoreCase) -> None:
        """A driver on a break is never left with an offer: the break is done again, and sees it."""
        ride, driver = await case.ride(), await case.driver()
        async with halted(case.url, setting(driver, DriverStatus.ON_BREAK)) as breaking:
            await case.match(ride, driver, offer_ttl_ms=60_000)
            outcome = await breaking.finish()
        assert breaking.tries == 2
        assert outcome is not None
        assert [hint.ride_id for hint in outcome.hints] == [ride.ride_id, NO_RIDE]
        assert await case.events(ride.ride_id) == ["requested", "offered", "withdrawn"]
        assert await case.slots(driver) == {}

    async def test_a_break_waits_for_the_offer_and_gives_it_back(self, case: StoreCase) -> None:
        ride, driver = await case.ride(), await case.driver()
        async with standing(case.url, await offer(case, ride, driver)):
            waits = lock_waits(case)
            breaking = asyncio.create_task(case.store.set_status(driver, DriverStatus.ON_BREAK, epoch=1))
            await until_waiting(case, waits)
        outcome = await breaking
        assert outcome is not None
        assert outcome.driver.version == 3
        assert (await case.now(ride.ride_id)).state is RideState.SEARCHING
        assert await holds(case)

    async def test_a_driver_who_is_going_on_a_break_is_offered_nothing(self, case: StoreCase) -> None:
        ride, driver = await case.ride(), await case.driver()
        async with standing(case.url, setting(driver, DriverStatus.ON_BREAK)):
            assert [lost.why for lost in (await case.commit(pairing(ride, driver))).lost] == ["driver_busy"]
        assert [lost.why for lost in (await case.commit(pairing(ride, driver))).lost] == ["driver_gone"]

    async def test_a_next_trip_accepted_after_the_read_is_given_back_as_accepted(self, case: StoreCase) -> None:
        _, now = await case.under_way()
        ride, after = await case.offered(now.driver_id, slot=Slot.NEXT)
        async with halted(case.url, setting(now.driver_id, DriverStatus.ON_BREAK)) as breaking:
            await case.move(after, Move.ACCEPT)
            outcome = await breaking.finish()
        assert outcome is not None
        assert outcome.finishing == now.trip_id
        assert await case.events(ride.ride_id) == ["requested", "offered", "assigned", "withdrawn"]
        assert await holds(case)

    async def test_a_trip_that_ended_after_the_read_is_not_still_to_be_finished(self, case: StoreCase) -> None:
        """Its next one was to be given back, and is."""
        _, now = await case.under_way()
        _, after = await case.matched(now.driver_id, slot=Slot.NEXT)
        async with halted(case.url, setting(now.driver_id, DriverStatus.ON_BREAK)) as breaking:
            await case.move(now, Move.COMPLETE)
            outcome = await breaking.finish()
        assert outcome is not None
        # Promoted and accepted, it has begun: the break lets it be finished.
        assert outcome.finishing == after.trip_id
        assert await case.slots(now.driver_id) == {after.trip_id: Slot.NOW}
        assert await holds(case)


class TestReassignmentAgainstTheDriver:
    async def test_a_ride_accepted_after_the_operators_read_is_reassigned_as_accepted(self, case: StoreCase) -> None:
        ride, trip = await case.offered()
        other = await case.driver()
        async with halted(case.url, assigning(ride, other)) as by_hand:
            await case.move(trip, Move.ACCEPT)
            assert isinstance(await by_hand.finish(), Done)
        assert by_hand.tries == 2
        assert await case.events(ride.ride_id) == ["requested", "offered", "assigned", "withdrawn", "assigned"]
        assert list(await case.slots(trip.driver_id)) == []
        assert await holds(case)

    async def test_an_acceptance_after_the_reassignment_comes_too_late(self, case: StoreCase) -> None:
        """P11: and what it shows is the driver's own trip, not who has the ride now."""
        ride, trip = await case.offered()
        other = await case.driver()
        async with halted(case.url, moving(trip, Move.ACCEPT)) as accepting:
            await case.done(await case.assign(ride.ride_id, other))
            outcome = await accepting.finish()
        assert isinstance(outcome, NotAllowed)
        assert outcome.allowed == ()
        assert outcome.ride.trip is not None
        assert (outcome.ride.trip.trip_id, outcome.ride.trip.end_code) == (trip.trip_id, Code.REASSIGNED)
        assert list((await case.slots(other)).values()) == [Slot.NOW]

    async def test_an_acceptance_waits_for_the_reassignment_and_comes_too_late(self, case: StoreCase) -> None:
        ride, trip = await case.offered()
        async with standing(case.url, assigning(ride, await case.driver())):
            waits = lock_waits(case)
            accepting = asyncio.create_task(case.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id))
            await until_waiting(case, waits)
        assert isinstance(await accepting, NotAllowed)
        assert await holds(case)

    async def test_two_operators_who_swap_drivers_both_succeed_without_a_deadlock(self, case: StoreCase) -> None:
        """Rides first, then drivers, each by id: whatever the two want of each other."""
        deadlocks = deadlocks_of(case)
        for _ in range(10):
            (one, by_one), (two, by_two) = await case.matched(), await case.matched()
            outcomes = await asyncio.gather(
                case.assign(one.ride_id, by_two.driver_id), case.assign(two.ride_id, by_one.driver_id)
            )
            assert all(isinstance(outcome, Done) for outcome in outcomes)
        assert deadlocks_of(case) == deadlocks
        assert await holds(case)


def deadlocks_of(case: StoreCase) -> int:
    """How many the server has resolved since it began."""
    rows = case.sql("SHOW GLOBAL STATUS LIKE 'Innodb_deadlocks'")
    return int(rows[0][1]) if rows else 0
