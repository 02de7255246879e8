"""What every store promises of rides that are asked for ahead of their time (P3, P4)."""

from __future__ import annotations

from typing import Any

from matcher.model import Actor, Code, Move, Ride, RideState, Slot
from matcher.outcomes import Approach, Requested
from matcher.store import Store
from tests.stores import HOUR_MS, MARKET, StoreCase, new_ride, pairing

LEAD_MS = 900_000


async def ahead(case: StoreCase, by_ms: int = HOUR_MS, **options: Any) -> Ride:
    """A ride that wants to be picked up `by_ms` from now."""
    pickup_at_ms = await case.store.now_ms() + by_ms
    return await case.ride(pickup_at_ms=pickup_at_ms, lead_ms=LEAD_MS, **options)


def its_time_comes(case: StoreCase, ride: Ride, late_ms: int = 0) -> None:
    """As if the time of its search had come, `late_ms` ago."""
    assert ride.search_at_ms is not None
    case.sql("UPDATE rides SET search_at_ms = ? WHERE ride_id = ?", ride.requested_at_ms - late_ms, ride.ride_id)


class TestRequests:
    async def test_it_waits_outside_the_batches_until_its_lead(self, case: StoreCase) -> None:
        ride = await ahead(case)
        assert ride.pickup_at_ms is not None
        assert (ride.state, ride.version) == (RideState.SCHEDULED, 1)
        assert ride.search_at_ms == ride.queued_at_ms == ride.pickup_at_ms - LEAD_MS
        assert ride.deadline_at_ms == ride.pickup_at_ms + 600_000
        assert await case.now(ride.ride_id) == ride
        assert (await case.newest_event(ride.ride_id)).state is RideState.SCHEDULED
        assert await case.waiting_ids() == []
        assert await case.sweep() == []

    async def test_one_whose_lead_has_begun_searches_at_once(self, case: StoreCase) -> None:
        ride = await ahead(case, LEAD_MS // 2)
        assert ride.state is RideState.SEARCHING
        assert ride.search_at_ms == ride.requested_at_ms
        assert await case.waiting_ids() == [ride.ride_id]

    async def test_a_time_that_has_passed_is_now(self, case: StoreCase) -> None:
        ride = await ahead(case, -HOUR_MS)
        assert ride.state is RideState.SEARCHING
        assert ride.deadline_at_ms == ride.requested_at_ms + 600_000

    async def test_the_key_gets_the_first_answer_whatever_became_of_it(self, case: StoreCase) -> None:
        """P3"""
        first = await ahead(case, key="k")
        its_time_comes(case, first)
        await case.sweep()
        [again] = await case.store.request_rides([new_ride(key="k")])
        assert isinstance(again, Requested)
        case.sql("UPDATE rides SET search_at_ms = ?", first.search_at_ms)
        [again] = await case.store.request_rides([new_ride(key="k")])
        assert again == Requested(first, None, repeated=True)

    async def test_a_plan_of_old_knowledge_does_not_match_it(self, case: StoreCase) -> None:
        ride = await ahead(case)
        [lost] = (await case.commit(pairing(ride, await case.driver()))).lost
        assert lost.why == "ride_changed"
        assert await case.now(ride.ride_id) == ride


class TestItsTime:
    async def test_the_sweep_lets_it_search(self, case: StoreCase) -> None:
        ride, other = await ahead(case), await ahead(case)
        its_time_comes(case, ride)
        [hint] = await case.sweep()
        assert (hint.ride_id, hint.version, hint.driver_id) == (ride.ride_id, 2, None)
        now = await case.now(ride.ride_id)
        assert (now.state, now.version) == (RideState.SEARCHING, 2)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor, event.driver_id) == ("searching", None, Actor.SERVICE, None)
        assert await case.sweep() == []
        assert await case.now(other.ride_id) == other
        assert (await case.store.audit()).holds

    async def test_the_queue_is_in_the_order_of_when_each_began_to_search(self, case: StoreCase) -> None:
        scheduled, at_once = await ahead(case), await case.ride()
        later = await ahead(case)
        case.sql("UPDATE rides SET requested_at_ms = requested_at_ms - 5000")
        its_time_comes(case, scheduled, late_ms=5002)
        its_time_comes(case, later, late_ms=4000)
        assert len(await case.sweep()) == 2
        assert await case.waiting_ids() == [scheduled.ride_id, at_once.ride_id, later.ride_id]

    async def test_it_is_matched_like_any_other_then(self, case: StoreCase) -> None:
        ride = await ahead(case)
        its_time_comes(case, ride)
        await case.sweep()
        await case.match(await case.now(ride.ride_id), await case.driver())

    async def test_another_markets_are_left_alone(self, case: StoreCase) -> None:
        ride = await ahead(case, market="rome")
        its_time_comes(case, ride)
        assert await case.sweep() == []
        assert (await case.now(ride.ride_id)).state is RideState.SCHEDULED


class TestItsEnd:
    async def test_it_expires_at_its_deadline_even_if_it_was_never_let_search(self, case: StoreCase) -> None:
        """P4: all matchers may have been away."""
        ride = await ahead(case)
        case.past_deadline(ride.ride_id)
        assert len(await case.sweep()) == 1
        expired = await case.now(ride.ride_id)
        assert (expired.state, expired.end_code) == (RideState.EXPIRED, Code.NO_DRIVER_FOUND)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.actor) == ("expired", Actor.SERVICE)

    async def test_one_that_is_due_to_search_and_past_its_deadline_only_expires(self, case: StoreCase) -> None:
        ride = await ahead(case)
        its_time_comes(case, ride)
        case.past_deadline(ride.ride_id)
        await case.sweep()
        assert await case.events(ride.ride_id) == ["requested", "expired"]

    async def test_a_cancelled_one_never_searches(self, case: StoreCase) -> None:
        ride = await ahead(case)
        await case.done(await case.store.cancel_ride(ride.ride_id, client_id=None, reason="ill"))
        its_time_comes(case, ride)
        assert await case.sweep() == []
        assert await case.events(ride.ride_id) == ["requested", "cancelled"]

    async def test_many_are_let_search_within_the_limit_of_each_sweep(self, case: StoreCase) -> None:
        for ride in [await ahead(case) for _ in range(7)]:
            its_time_comes(case, ride)
        token = await case.lease()
        counts = [len(await case.store.sweep(MARKET, token, limit=3)) for _ in range(4)]
        assert counts == [3, 3, 1, 0]


async def test_a_scheduled_ride_survives_every_process(case: StoreCase) -> None:
    """P2: nothing but the row knows of it."""
    ride = await ahead(case)
    await case.store.close()
    case.store = await Store.open(case.url)
    assert await case.now(ride.ride_id) == ride
    its_time_comes(case, ride)
    assert len(await case.sweep()) == 1
    assert await case.waiting_ids() == [ride.ride_id]


class TestAssignedEarly:
    """An operator gave a ride for later its driver, long before its time."""

    async def test_its_driver_need_not_approach_before_its_time(self, case: StoreCase) -> None:
        ride, driver = await ahead(case), await case.driver()
        trip = (await case.done(await case.assign(ride.ride_id, driver))).trip
        assert trip is not None
        assert await case.store.approaching(MARKET, limit=10) == []
        its_time_comes(case, ride)
        [found] = await case.store.approaching(MARKET, limit=10)
        assert found == Approach(ride.ride_id, trip.trip_id, driver, ride.pickup, 0.0, trip.matched_at_ms)

    async def test_without_its_driver_it_waits_for_its_time_all_the_same(self, case: StoreCase) -> None:
        ride = await ahead(case)
        await case.assign(ride.ride_id, await case.driver())
        released = await case.done(await case.store.release_ride(ride.ride_id, reason=None))
        assert released.state is RideState.SEARCHING
        assert await case.waiting_ids() == []
        its_time_comes(case, ride)
        assert await case.waiting_ids() == [ride.ride_id]

    async def test_whoever_was_somewhere_else_when_it_was_matched_has_no_distance(self, case: StoreCase) -> None:
        """By hand as a next one, or for later: what it had to drive then says nothing."""
        _, present = await case.under_way()
        following, later = await case.ride(), await ahead(case)
        other = await case.driver()
        await case.assign(following.ride_id, present.driver_id)
        await case.assign(later.ride_id, other)
        case.sql("UPDATE trips SET distance_m = 500")
        await case.move(present, Move.COMPLETE)
        case.sql("UPDATE trips SET matched_at_ms = matched_at_ms - 1000, accepted_at_ms = accepted_at_ms - 1000")
        case.sql("UPDATE trips SET now_since_ms = now_since_ms - 1000 WHERE ride_id = ?", later.ride_id)
        its_time_comes(case, later)
        found = {each.ride_id: each for each in await case.store.approaching(MARKET, limit=10)}
        assert [found[ride.ride_id].distance_m for ride in (following, later)] == [0.0, 0.0]
        assert found[later.ride_id].since_ms == later.requested_at_ms
        chained = await case.store.live_trips([present.driver_id])
        assert chained[0].trip is not None
        assert chained[0].trip.slot is Slot.NOW
        assert found[following.ride_id].since_ms > chained[0].trip.matched_at_ms
