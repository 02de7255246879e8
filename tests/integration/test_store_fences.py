"""Old sessions, old matchers and frozen processes write nothing, whatever they have in hand (P7)."""

from __future__ import annotations

import asyncio

import pytest

from matcher.errors import LeaseLost, StoreUnavailable
from matcher.model import DriverStatus, Move, RideState
from matcher.outcomes import Superseded
from matcher.sessions import rows_of
from matcher.store_changes import LOCK_DRIVERS_OF
from matcher.store_sign_on import sign_on
from tests.stores import HOUR_MS, MARKET, StoreCase, pairing
from tests.transactions import (
    Work,
    halted,
    lock_waits,
    moving,
    planning,
    setting,
    standing,
    sweeping,
    until_available,
    until_waiting,
)


class TestTwoMatchers:
    @pytest.mark.parametrize("what", ["plan", "sweep"])
    async def test_an_old_token_in_hand_writes_nothing(self, case: StoreCase, what: str) -> None:
        """P7"""
        ride, driver, late = await case.ride(), await case.driver(), await case.ride()
        case.past_deadline(late.ride_id)
        old = await case.lease()
        work: Work[object] = (
            sweeping(old) if what == "sweep" else planning(old, pairing(ride, driver), offer_ttl_ms=60_000)
        )
        async with halted(case.url, work, before_call=1) as old_matcher:
            case.sql("UPDATE market_leases SET expires_at_ms = 1")
            assert await case.store.acquire_lease(MARKET, "matcher-2", HOUR_MS) == old + 1
            with pytest.raises(LeaseLost):
                await old_matcher.finish()
        assert [(await case.now(each.ride_id)).version for each in (ride, late)] == [1, 1]

    async def test_of_two_sweeps_each_change_is_made_once(self, case: StoreCase) -> None:
        """P7: the second waits for the first, which holds the lease's row."""
        for _ in range(5):
            case.past_deadline((await case.ride()).ride_id)
        token = await case.lease()
        async with standing(case.url, sweeping(token)):
            waits = lock_waits(case)
            sweeps = [asyncio.create_task(case.store.sweep(MARKET, token)) for _ in range(2)]
            await until_waiting(case, waits)
        assert await asyncio.gather(*sweeps) == [[], []]
        assert (await case.store.audit()).holds


class TestSessions:
    """P7: a command of an old session against the sign-on of a new one."""

    @pytest.mark.parametrize("move", [Move.ARRIVE, Move.DRIVER_CANCEL])
    async def test_a_sign_on_after_the_read_supersedes_the_command(self, case: StoreCase, move: Move) -> None:
        ride, trip = await case.matched()
        async with halted(case.url, moving(trip, move)) as old:
            await case.store.sign_on(trip.driver_id, MARKET)
            assert await old.finish() == Superseded()
        assert await case.now(ride.ride_id) == ride

    async def test_a_command_waits_for_the_sign_on_that_supersedes_it(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        async with standing(case.url, lambda session: sign_on(session, trip.driver_id, MARKET, True)):
            waits = lock_waits(case)
            old = asyncio.create_task(
                case.store.move_trip(trip.trip_id, Move.ARRIVE, driver_id=trip.driver_id, epoch=1)
            )
            await until_waiting(case, waits)
        assert await old == Superseded()
        assert await case.now(ride.ride_id) == ride

    async def test_a_sign_on_waits_for_the_command_and_shows_what_it_did(self, case: StoreCase) -> None:
        _, trip = await case.matched()
        async with standing(case.url, moving(trip, Move.ARRIVE)):
            waits = lock_waits(case)
            new = asyncio.create_task(case.store.sign_on(trip.driver_id, MARKET))
            await until_waiting(case, waits)
        signed_on = await new
        assert signed_on is not None
        assert [ride.state for ride in signed_on.rides] == [RideState.ARRIVED]

    async def test_a_status_of_an_old_session_gives_nothing_back(self, case: StoreCase) -> None:
        ride, trip = await case.offered()
        async with halted(case.url, setting(trip.driver_id, DriverStatus.OFFLINE)) as old:
            await case.store.sign_on(trip.driver_id, MARKET)
            assert await old.finish() is None
        assert await case.now(ride.ride_id) == ride
        driver = await case.store.driver(trip.driver_id)
        assert driver is not None
        assert driver.status is DriverStatus.ONLINE


class TestFrozen:
    """P7: a process that froze in a transaction holds a ride's and a driver's row until the server ends its session."""

    async def test_a_command_on_what_it_holds_goes_through_within_the_lease(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        async with standing(case.url, moving(trip, Move.ARRIVE), lease_s=1.0) as frozen:
            outcome = await until_available(
                lambda: case.store.cancel_ride(ride.ride_id, client_id=None, reason="no car came")
            )
            ride = await case.done(outcome)
            assert ride.state is RideState.CANCELLED
        assert isinstance(frozen.exception(), (AssertionError, StoreUnavailable))
        assert await case.events(ride.ride_id) == ["requested", "assigned", "cancelled"]
        assert (await case.store.audit()).holds

    async def test_its_driver_signs_on_again_within_the_lease(self, case: StoreCase) -> None:
        driver = await case.driver()
        async with standing(
            case.url, lambda session: rows_of(session, LOCK_DRIVERS_OF(driver_ids=[driver])), lease_s=1.0
        ):
            signed_on = await until_available(lambda: case.store.sign_on(driver, MARKET))
            assert signed_on is not None
            assert signed_on.driver.epoch == 2

    async def test_a_sweep_is_not_held_up_and_sees_to_it_afterwards(self, case: StoreCase) -> None:
        """P4"""
        ride, trip = await case.offered()
        case.past_deadline(ride.ride_id)
        async with standing(case.url, moving(trip, Move.DECLINE), lease_s=1.0):
            assert await case.sweep() == []
            async with asyncio.timeout(10):
                while not await case.sweep():
                    await asyncio.sleep(0.1)
        assert (await case.now(ride.ride_id)).state is RideState.EXPIRED
        assert (await case.store.audit()).holds
