"""What every store promises when a driver stops taking trips: what was begun is finished, the rest is given back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from geo.model import DriverId
from matcher.model import NO_RIDE, Actor, Code, DriverStatus, Hint, Move, Ride, RideState, Slot, Trip, TripState
from matcher.outcomes import StatusSet, SuspendTrips
from tests.stores import MARKET, StoreCase, pairing

SetOff = Callable[[StoreCase, DriverId], Awaitable[StatusSet | None]]
OFF = [DriverStatus.ON_BREAK, DriverStatus.OFFLINE]


async def by_session(case: StoreCase, driver: DriverId) -> StatusSet | None:
    return await case.store.set_status(driver, DriverStatus.ON_BREAK, epoch=1)


async def by_http(case: StoreCase, driver: DriverId) -> StatusSet | None:
    return await case.store.set_status(driver, DriverStatus.OFFLINE, epoch=None)


async def by_put(case: StoreCase, driver: DriverId) -> StatusSet | None:
    return await case.store.put_driver(driver, vehicle_class="xl", seats=6, status=DriverStatus.OFFLINE)


async def by_suspension(case: StoreCase, driver: DriverId) -> StatusSet | None:
    return await case.store.suspend(driver, trips=SuspendTrips.KEEP, reason=None)


async def by_put_suspended(case: StoreCase, driver: DriverId) -> StatusSet | None:
    return await case.store.put_driver(driver, vehicle_class="xl", seats=6, status=DriverStatus.SUSPENDED)


EVERY_WAY: list[SetOff] = [by_session, by_http, by_put, by_suspension, by_put_suspended]


def trip_of(ride: Ride) -> Trip:
    assert ride.trip is not None
    return ride.trip


def own_hint(outcome: StatusSet) -> Hint:
    driver = outcome.driver
    assert driver.market is not None
    return Hint(NO_RIDE, driver.version, driver.market, driver.driver_id)


class TestGivingBack:
    @pytest.mark.parametrize("set_off", EVERY_WAY)
    async def test_an_unanswered_offer_goes_back_and_the_driver_may_have_it_again(
        self, case: StoreCase, set_off: SetOff
    ) -> None:
        before, trip = await case.offered()
        outcome = await set_off(case, trip.driver_id)
        assert outcome is not None
        assert outcome.finishing is None
        ride = await case.now(before.ride_id)
        assert (ride.state, trip_of(ride).state) == (RideState.SEARCHING, TripState.WITHDRAWN)
        assert (ride.queued_at_ms, ride.deadline_at_ms) == (before.queued_at_ms, before.deadline_at_ms)
        assert outcome.hints == (Hint(ride.ride_id, ride.version, MARKET, trip.driver_id), own_hint(outcome))
        suspended = outcome.driver.status is DriverStatus.SUSPENDED
        code = Code.DRIVER_SUSPENDED if suspended else Code.DRIVER_BREAK
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code) == ("withdrawn", code)
        assert event.actor == (Actor.OPERATOR if suspended else Actor.DRIVER)
        assert trip_of(ride).end_code == code
        assert (await case.store.waiting(MARKET, limit=9)).refused == {}
        assert case.sql("SELECT missed_offers FROM drivers")[0][0] == 0
        assert (await case.store.audit()).holds

    @pytest.mark.parametrize("set_off", EVERY_WAY)
    async def test_the_next_trip_goes_back_and_the_present_one_is_finished(
        self, case: StoreCase, set_off: SetOff
    ) -> None:
        present, now = await case.under_way()
        _, after = await case.matched(now.driver_id, slot=Slot.NEXT)
        outcome = await set_off(case, now.driver_id)
        assert outcome is not None
        assert outcome.finishing == now.trip_id
        assert await case.now(present.ride_id) == present
        assert (await case.now(after.ride_id)).state is RideState.SEARCHING
        assert [hint.ride_id for hint in outcome.hints] == [after.ride_id, NO_RIDE]
        await case.move(now, Move.COMPLETE)
        assert (await case.store.audit()).holds

    @pytest.mark.parametrize("set_off", [by_session, by_http, by_put])
    async def test_both_an_offer_and_the_next_trip_go_back_together(self, case: StoreCase, set_off: SetOff) -> None:
        """An operator may have given an offered driver the ride after it."""
        _, offer = await case.offered()
        ride = await case.ride()
        await case.done(await case.assign(ride.ride_id, offer.driver_id))
        assert trip_of(await case.now(ride.ride_id)).slot is Slot.NEXT
        outcome = await set_off(case, offer.driver_id)
        assert outcome is not None
        assert len(outcome.hints) == 3
        assert await case.store.live_trips([offer.driver_id]) == []
        assert await case.events(ride.ride_id) == ["requested", "assigned", "withdrawn"]  # and was not promoted
        assert (await case.store.audit()).holds

    async def test_an_accepted_next_trip_near_its_deadline_is_given_time(self, case: StoreCase) -> None:
        _, now = await case.under_way()
        _, after = await case.matched(now.driver_id, slot=Slot.NEXT)
        case.sql("UPDATE rides SET deadline_at_ms = deadline_at_ms - 590000 WHERE ride_id = ?", after.ride_id)
        await case.store.set_status(now.driver_id, DriverStatus.ON_BREAK, epoch=1)
        ride = await case.now(after.ride_id)
        assert ride.deadline_at_ms >= (trip_of(ride).ended_at_ms or 0) + 180_000


class TestStatus:
    async def test_every_write_of_the_row_is_a_version_that_is_told(self, case: StoreCase) -> None:
        driver = await case.driver()
        first = await case.store.driver(driver)
        assert first is not None
        for step, status in enumerate([DriverStatus.ON_BREAK, DriverStatus.ONLINE, DriverStatus.OFFLINE], start=1):
            outcome = await case.store.set_status(driver, status, epoch=1)
            assert outcome is not None
            assert (outcome.driver.status, outcome.driver.version) == (status, first.version + step)
            assert outcome.hints == (own_hint(outcome),)
            assert await case.store.driver(driver) == outcome.driver
            assert await case.store.driver_versions([driver]) == {driver: outcome.driver.version}
            assert await case.store.drivers([driver, DriverId("nobody")]) == [outcome.driver]

    async def test_putting_a_driver_changes_its_vehicle_and_keeps_its_trips(self, case: StoreCase) -> None:
        present, offer = await case.offered()
        put = await case.store.put_driver(offer.driver_id, vehicle_class="xl", seats=7)
        assert (put.driver.vehicle_class, put.driver.status, put.finishing) == ("xl", DriverStatus.ONLINE, None)
        assert put.hints == (own_hint(put),)
        assert await case.now(present.ride_id) == present

    @pytest.mark.parametrize("status", DriverStatus)
    async def test_a_new_driver_has_the_status_that_it_is_put_with(self, case: StoreCase, status: DriverStatus) -> None:
        put = await case.store.put_driver(DriverId("d"), vehicle_class="xl", seats=7, status=status)
        assert (put.driver.status, put.driver.version, put.hints, put.finishing) == (status, 1, (), None)
        assert await case.store.driver(DriverId("d")) == put.driver

    async def test_signing_on_is_a_version_of_the_row_and_is_told(self, case: StoreCase) -> None:
        driver = await case.driver()
        before = await case.store.driver(driver)
        assert before is not None
        signed_on = await case.store.sign_on(driver, MARKET)
        assert signed_on is not None
        assert signed_on.driver.version == before.version + 1
        assert signed_on.hint == Hint(NO_RIDE, signed_on.driver.version, MARKET, driver)
        assert signed_on.now_ms <= await case.store.now_ms()

    @pytest.mark.parametrize("status", OFF)
    async def test_an_old_session_gives_nothing_back(self, case: StoreCase, status: DriverStatus) -> None:
        """P7"""
        ride, trip = await case.offered()
        await case.store.sign_on(trip.driver_id, MARKET)
        assert await case.store.set_status(trip.driver_id, status, epoch=1) is None
        assert await case.now(ride.ride_id) == ride
        found = await case.store.driver(trip.driver_id)
        assert found is not None
        assert found.status is DriverStatus.ONLINE

    async def test_back_from_a_break_the_driver_is_matched_again(self, case: StoreCase) -> None:
        driver = await case.driver()
        await case.store.set_status(driver, DriverStatus.ON_BREAK, epoch=1)
        ride = await case.ride()
        assert [lost.why for lost in (await case.commit(pairing(ride, driver))).lost] == ["driver_gone"]
        await case.store.set_status(driver, DriverStatus.ONLINE, epoch=1)
        await case.match(ride, driver)


class TestSuspension:
    @pytest.mark.parametrize("moves", [[], [Move.ARRIVE], [Move.ARRIVE, Move.START]])
    async def test_kept_trips_are_the_drivers_to_finish(self, case: StoreCase, moves: list[Move]) -> None:
        ride, trip = await case.matched()
        ride = await case.move(trip, *moves) if moves else ride
        outcome = await case.store.suspend(trip.driver_id, trips=SuspendTrips.KEEP, reason="papers")
        assert outcome is not None
        assert (outcome.driver.status, outcome.finishing) == (DriverStatus.SUSPENDED, trip.trip_id)
        assert await case.now(ride.ride_id) == ride
        rest = [Move.ARRIVE, Move.START, Move.COMPLETE][len(moves) :]
        await case.move(trip, *rest)

    @pytest.mark.parametrize("which", [SuspendTrips.RELEASE, SuspendTrips.END])
    @pytest.mark.parametrize("moves", [[], [Move.ARRIVE]])
    async def test_before_the_pickup_the_ride_searches_on(
        self, case: StoreCase, which: SuspendTrips, moves: list[Move]
    ) -> None:
        before, trip = await case.matched()
        if moves:
            await case.move(trip, *moves)
        outcome = await case.store.suspend(trip.driver_id, trips=which, reason="papers")
        assert outcome is not None
        assert outcome.finishing is None
        ride = await case.now(before.ride_id)
        assert (ride.state, trip_of(ride).state) == (RideState.SEARCHING, TripState.WITHDRAWN)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor, event.reason) == (
            "withdrawn",
            Code.DRIVER_SUSPENDED,
            Actor.OPERATOR,
            "papers",
        )
        assert outcome.hints == (Hint(ride.ride_id, ride.version, MARKET, trip.driver_id), own_hint(outcome))

    async def test_a_passenger_aboard_is_brought_to_the_destination(self, case: StoreCase) -> None:
        ride, trip = await case.under_way()
        outcome = await case.store.suspend(trip.driver_id, trips=SuspendTrips.RELEASE, reason=None)
        assert outcome is not None
        assert outcome.finishing == trip.trip_id
        assert await case.now(ride.ride_id) == ride
        await case.move(trip, Move.COMPLETE)

    async def test_where_everything_is_to_end_that_ride_is_cancelled(self, case: StoreCase) -> None:
        before, trip = await case.under_way()
        outcome = await case.store.suspend(trip.driver_id, trips=SuspendTrips.END, reason="police")
        assert outcome is not None
        assert outcome.finishing is None
        ride = await case.now(before.ride_id)
        assert (ride.state, ride.end_code, ride.end_reason) == (RideState.CANCELLED, Code.DRIVER_SUSPENDED, "police")
        assert (trip_of(ride).state, trip_of(ride).end_code) == (TripState.WITHDRAWN, Code.DRIVER_SUSPENDED)
        event = await case.newest_event(ride.ride_id)
        assert (event.type, event.code, event.actor) == ("cancelled", Code.DRIVER_SUSPENDED, Actor.OPERATOR)
        assert await case.store.live_trips([trip.driver_id]) == []
        assert (await case.store.audit()).holds

    async def test_what_was_kept_first_can_be_released_later(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        for which in (SuspendTrips.KEEP, SuspendTrips.RELEASE):
            assert await case.store.suspend(trip.driver_id, trips=which, reason=None) is not None
        assert (await case.now(ride.ride_id)).state is RideState.SEARCHING

    async def test_only_an_operator_ends_it(self, case: StoreCase) -> None:
        driver = await case.driver()
        await case.store.suspend(driver, trips=SuspendTrips.KEEP, reason=None)
        for status in (DriverStatus.ONLINE, DriverStatus.ON_BREAK, DriverStatus.OFFLINE):
            outcome = await case.store.set_status(driver, status, epoch=1)
            assert outcome is not None
            assert outcome.driver.status is DriverStatus.SUSPENDED
        outcome = await case.store.set_status(driver, DriverStatus.ONLINE, epoch=None)
        assert outcome is not None
        assert outcome.driver.status is DriverStatus.ONLINE

    async def test_an_unknown_driver_is_not_suspended(self, case: StoreCase) -> None:
        for name in ("nobody", "\udc80"):
            assert await case.store.suspend(DriverId(name), trips=SuspendTrips.KEEP, reason=None) is None
