"""What every store promises of drivers and their sessions (P7)."""

from __future__ import annotations

import asyncio

import pytest

from geo.model import DriverId, MarketId
from matcher.errors import StoreUnavailable
from matcher.model import DriverStatus, Slot
from matcher.outcomes import SignedOn, SuspendTrips
from matcher.store_rows import text_of
from matcher.store_sign_on import GROUP_MAX, SignOn, SignOnOutcome
from tests.stores import MARKET, StoreCase

D = DriverId("dörte 1")


class TestDrivers:
    async def test_a_new_driver_is_offline_in_no_market(self, case: StoreCase) -> None:
        put = await case.store.put_driver(D, vehicle_class="xl", seats=6)
        driver = put.driver
        assert put.hints == ()  # nobody can have been told of it
        assert (driver.status, driver.vehicle_class, driver.seats) == (DriverStatus.OFFLINE, "xl", 6)
        assert (driver.market, driver.epoch) == (None, 0)
        assert await case.store.driver(D) == driver
        assert await case.store.driver(DriverId("dörte 1 ")) is None
        assert await case.store.driver(DriverId("\ud800")) is None

    async def test_putting_again_changes_what_is_given_and_keeps_the_session(self, case: StoreCase) -> None:
        await case.driver(D)
        driver = (await case.store.put_driver(D, vehicle_class="xl", seats=7)).driver
        assert (driver.vehicle_class, driver.seats, driver.epoch) == ("xl", 7, 1)
        assert (driver.status, driver.market) == (DriverStatus.ONLINE, MARKET)
        put = await case.store.put_driver(D, vehicle_class="xl", seats=7, status=DriverStatus.SUSPENDED)
        assert put.driver.status is DriverStatus.SUSPENDED

    async def test_putting_lifts_a_suspension_only_where_it_is_said_to(self, case: StoreCase) -> None:
        """P11: a driver may ask to be online while an operator suspends it."""
        await case.driver(D)
        await case.store.suspend(D, trips=SuspendTrips.KEEP, reason=None)
        for may_lift, status in ((False, DriverStatus.SUSPENDED), (True, DriverStatus.ONLINE)):
            put = await case.store.put_driver(
                D, vehicle_class="xl", seats=7, status=DriverStatus.ONLINE, lifts_suspension=may_lift
            )
            assert put.driver.status is status

    async def test_a_driver_has_the_tags_that_were_put_last(self, case: StoreCase) -> None:
        tags = ["pets", "child_seat", "pets"]
        driver = (await case.store.put_driver(D, vehicle_class="xl", seats=6, tags=tags)).driver
        assert driver.tags == ("child_seat", "pets")
        assert await case.store.driver(D) == driver
        signed_on = await case.store.sign_on(D, MARKET)
        assert signed_on is not None
        assert signed_on.driver.tags == ("child_seat", "pets")
        whole = [f"{n:02d}" + "x" * 22 for n in range(32)]
        assert (await case.store.put_driver(D, vehicle_class="xl", seats=6, tags=whole)).driver.tags == tuple(whole)
        assert (await case.store.put_driver(D, vehicle_class="xl", seats=6)).driver.tags == ()

    async def test_tags_that_cannot_be_stored_are_refused(self, case: StoreCase) -> None:
        with pytest.raises(StoreUnavailable, match="tags"):
            await case.store.put_driver(D, vehicle_class="xl", seats=6, tags=["pets,child_seat"])
        assert await case.store.driver(D) is None

    async def test_many_who_put_the_same_driver_at_once_all_succeed(self, case: StoreCase) -> None:
        jobs = [case.store.put_driver(D, vehicle_class="standard", seats=n) for n in range(1, 9)]
        assert {put.driver.driver_id for put in await asyncio.gather(*jobs)} == {D}


class TestSessions:
    async def test_each_sign_on_is_a_new_epoch(self, case: StoreCase) -> None:
        """P6, P7"""
        await case.store.put_driver(D, vehicle_class="standard", seats=4)
        first = await case.store.sign_on(D, MARKET)
        second = await case.store.sign_on(D, MarketId("rome"))
        assert first is not None
        assert second is not None
        assert (first.driver.epoch, first.driver.market) == (1, MARKET)
        assert (second.driver.epoch, second.driver.market) == (2, "rome")
        assert await case.store.sign_on(DriverId("nobody"), MARKET) is None

    async def test_it_shows_the_rides_that_the_driver_is_on_now_first(self, case: StoreCase) -> None:
        driver = await case.driver()
        ride, trip = await case.matched(driver)
        after, _ = await case.matched(driver, slot=Slot.NEXT)
        signed_on = await case.store.sign_on(driver, MARKET)
        assert signed_on is not None
        assert signed_on.rides == [ride, after]
        assert signed_on.trips[0] == trip
        assert await case.store.live_trips([driver, DriverId("nobody")]) == [ride, after]
        assert await case.store.live_trips([]) == []

    async def test_it_tells_the_versions_of_live_trips_alone(self, case: StoreCase) -> None:
        driver, idle = await case.driver(), await case.driver()
        ride, trip = await case.matched(driver)
        versions = await case.store.live_versions([driver, idle, DriverId("nobody")])
        assert versions == {driver: {trip.trip_id: ride.version}}
        assert await case.store.live_versions([]) == {}

    @pytest.mark.parametrize(
        ("before", "online", "after"),
        [
            (DriverStatus.OFFLINE, True, DriverStatus.ONLINE),
            (DriverStatus.OFFLINE, False, DriverStatus.OFFLINE),
            (DriverStatus.ON_BREAK, True, DriverStatus.ON_BREAK),
            (DriverStatus.SUSPENDED, True, DriverStatus.SUSPENDED),
        ],
    )
    async def test_signing_on_ends_offline_and_nothing_else(
        self, case: StoreCase, before: DriverStatus, online: bool, after: DriverStatus
    ) -> None:
        await case.store.put_driver(D, vehicle_class="standard", seats=4, status=before)
        signed_on = await case.store.sign_on(D, MARKET, online=online)
        assert signed_on is not None
        assert signed_on.driver.status is after

    async def test_an_old_session_sets_no_status(self, case: StoreCase) -> None:
        """P7"""
        await case.driver(D)
        await case.driver(D)
        assert await case.store.set_status(D, DriverStatus.ON_BREAK, epoch=1) is None
        outcome = await case.store.set_status(D, DriverStatus.ON_BREAK, epoch=2)
        assert outcome is not None
        assert outcome.driver.status is DriverStatus.ON_BREAK
        assert await case.store.set_status(DriverId("nobody"), DriverStatus.ONLINE, epoch=None) is None

    async def test_a_session_does_not_lift_a_suspension(self, case: StoreCase) -> None:
        await case.driver(D)
        await case.store.set_status(D, DriverStatus.SUSPENDED, epoch=None)
        outcome = await case.store.set_status(D, DriverStatus.ONLINE, epoch=1)
        assert outcome is not None
        assert outcome.driver.status is DriverStatus.SUSPENDED


class TestManySignOns:
    """A group is answered as each of it alone would be."""

    async def test_each_of_a_group_has_its_own_outcome(self, case: StoreCase) -> None:
        engaged, suspended, resting = await case.driver(), await case.driver(), await case.driver()
        ride, _ = await case.matched(engaged)
        after, _ = await case.matched(engaged, slot=Slot.NEXT)
        await case.store.suspend(suspended, trips=SuspendTrips.KEEP, reason=None)
        await case.store.set_status(resting, DriverStatus.ON_BREAK, epoch=None)
        await case.store.put_driver(D, vehicle_class="xl", seats=6, tags=["pets"])
        rome = MarketId("rome")
        asked = [
            SignOn(suspended, MARKET),
            SignOn(DriverId("nobody"), MARKET),
            SignOn(D, MARKET, online=False),
            SignOn(engaged, MARKET),
            SignOn(DriverId("\ud800"), MARKET),
            SignOn(resting, rome),
            SignOn(D, rome),
        ]
        heard: dict[int, SignOnOutcome] = {}
        outcomes = await case.store.sign_on_many(asked, on_outcome=heard.__setitem__)
        assert [heard[i] for i in range(len(asked))] == outcomes
        one, nobody, offline, busy, impossible, moved, online = outcomes
        assert (nobody, impossible) == (None, None)
        for outcome, driver_id, status, epoch, market, left in (
            (one, suspended, DriverStatus.SUSPENDED, 2, MARKET, None),
            (offline, D, DriverStatus.OFFLINE, 1, MARKET, None),
            (busy, engaged, DriverStatus.ONLINE, 2, MARKET, None),
            (moved, resting, DriverStatus.ON_BREAK, 2, rome, MARKET),
            (online, D, DriverStatus.ONLINE, 2, rome, MARKET),
        ):
            assert isinstance(outcome, SignedOn)
            driver = outcome.driver
            assert (driver.driver_id, driver.status, driver.epoch) == (driver_id, status, epoch)
            assert (driver.market, outcome.left) == (market, left)
            hint = outcome.hint
            assert (hint.driver_id, hint.version, hint.market) == (driver_id, driver.version, market)
            assert outcome.rides == ([ride, after] if driver_id == engaged else [])
            assert outcome.now_ms >= ride.requested_at_ms
        assert isinstance(online, SignedOn)
        assert await case.store.driver(D) == online.driver
        assert await case.store.sign_on_many([]) == []

    async def test_a_driver_that_comes_many_times_gets_an_epoch_each_time(self, case: StoreCase) -> None:
        """P7"""
        await case.store.put_driver(D, vehicle_class="standard", seats=4)
        group = [SignOn(D, MARKET)] * 3
        found = await asyncio.gather(case.store.sign_on_many(group), case.store.sign_on_many(group))
        epochs = [each.driver.epoch for some in found for each in some if isinstance(each, SignedOn)]
        assert sorted(epochs) == [1, 2, 3, 4, 5, 6]
        assert all(some == sorted(some) for some in (epochs[:3], epochs[3:]))

    async def test_more_than_a_transaction_holds_are_signed_on_all_the_same(self, case: StoreCase) -> None:
        names = [DriverId(f"d{n:03d}") for n in range(GROUP_MAX + 20)]
        case.sql(
            "INSERT INTO drivers (driver_id, status, vehicle_class, seats, epoch, updated_at_ms, tags, version) VALUES "
            + ", ".join(["(?, 'offline', 'standard', 4, 0, 0, '', 1)"] * len(names)),
            *names,
        )
        outcomes = await case.store.sign_on_many([SignOn(name, MARKET) for name in reversed(names)])
        found = [each.driver.driver_id for each in outcomes if isinstance(each, SignedOn)]
        assert found == names[::-1]

    async def test_many_lost_sockets_are_noted_each_for_its_own_session(self, case: StoreCase) -> None:
        """P7: a driver that has signed on again meanwhile is not lost."""
        lost, back = await case.driver(), await case.driver()
        await case.store.sign_on(back, MARKET)
        await case.store.note_lost_of({lost: 1, back: 1, DriverId("nobody"): 1})
        rows = case.sql("SELECT driver_id FROM drivers WHERE lost_at_ms IS NOT NULL")
        assert [text_of(row[0]) for row in rows] == [lost]
        await case.store.note_lost_of({})
