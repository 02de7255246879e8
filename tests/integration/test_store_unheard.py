"""COMMITs whose answers never came: what the commands on trips and rides make of it (P3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from matcher.database import Database
from matcher.ids import new_trip_id
from matcher.model import Actor, DriverStatus, Move, RideState, Slot
from matcher.outcomes import Done, Superseded
from matcher.sessions import Session
from matcher.store_moves import MoveOutcome, move_trips
from matcher.store_operator import Assignment, Release, assign
from matcher.store_trips import TripMove
from tests.mysql_proxy import MySqlProxy, OnCommit
from tests.stores import HOUR_MS, MARKET, StoreCase
from tests.transactions import Work


def settling(work: Work[object]) -> Work[object]:
    """The same once more, as after a COMMIT whose answer never came."""

    async def again(session: Session) -> object:
        session.settling = True
        return await work(session)

    return again


class TestUnheard:
    """P3: the COMMIT was sent and no answer came; meanwhile the world may have gone on."""

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE])
    async def test_a_completion_is_made_once_and_its_promotion_with_it(
        self, case: StoreCase, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit
    ) -> None:
        _, now = await case.under_way()
        _, after = await case.matched(now.driver_id, slot=Slot.NEXT)
        proxy.fault(how)
        outcome = await by_proxy.store.move_trip(now.trip_id, Move.COMPLETE, driver_id=now.driver_id, epoch=1)
        assert proxy.faulted == 1
        await case.done(outcome)
        assert isinstance(outcome, Done)
        assert outcome.hints[0].ride_id == now.ride_id
        assert await case.events(after.ride_id) == ["requested", "assigned", "promoted"]
        assert (await case.store.audit()).holds

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE, OnCommit.HOLD])
    async def test_commands_written_together_take_effect_once_and_each_is_announced(
        self, case: StoreCase, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit
    ) -> None:
        _, one = await case.matched()
        _, now = await case.under_way()
        next_ride, _ = await case.matched(now.driver_id, slot=Slot.NEXT)
        asked = [
            TripMove(one.trip_id, Move.ARRIVE, one.driver_id, 1),
            TripMove(now.trip_id, Move.COMPLETE, now.driver_id, 1),
        ]
        settled: dict[int, MoveOutcome] = {}
        proxy.fault(how)
        asyncio.get_running_loop().call_later(0.3, proxy.release.set)
        await by_proxy.store.move_trips(asked, settled.__setitem__)
        assert proxy.faulted == 1
        for position, ride_id in enumerate((one.ride_id, now.ride_id)):
            outcome = settled[position]
            assert isinstance(outcome, Done)
            assert outcome.hints[0].ride_id == ride_id
        assert await case.events(one.ride_id) == ["requested", "assigned", "arrived"]
        assert await case.events(now.ride_id) == ["requested", "assigned", "arrived", "started", "completed"]
        assert await case.events(next_ride.ride_id) == ["requested", "assigned", "promoted"]
        assert (await case.store.audit()).holds

    async def test_a_session_superseded_after_an_unheard_commit_fails_no_neighbour(
        self, case: StoreCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """P7: its refusal is final, however often the group is tried again."""
        _, good = await case.matched()
        _, old = await case.matched()
        await case.store.sign_on(old.driver_id, MARKET)
        database = Database(case.url)
        write = database.write
        monkeypatch.setattr(database, "write", lambda work: write(settling(work)))
        settled: dict[int, MoveOutcome] = {}
        asked = [TripMove(trip.trip_id, Move.ARRIVE, trip.driver_id, 1) for trip in (good, old)]
        await move_trips(database, asked, {}, settled.__setitem__)
        assert (await case.done(settled[0])).state is RideState.ARRIVED
        assert settled[1] == Superseded()
        await database.close()

    async def test_an_acceptance_still_on_its_way_is_waited_for_even_past_the_offers_end(
        self, case: StoreCase, by_proxy: StoreCase, proxy: MySqlProxy
    ) -> None:
        """It was in time when it was written: to answer that it came too late would be untrue."""
        _, trip = await case.offered()
        await by_proxy.store.now_ms()
        case.sql("UPDATE trips SET due_at_ms = ?", await case.store.now_ms() + 1200)
        proxy.fault(OnCommit.HOLD)
        accepting = asyncio.create_task(by_proxy.store.move_trip(trip.trip_id, Move.ACCEPT, driver_id=trip.driver_id))
        [[due_at_ms]] = case.sql("SELECT due_at_ms FROM trips")
        while await case.store.now_ms() <= due_at_ms:
            await asyncio.sleep(0.05)
        assert proxy.faulted == 1
        proxy.release.set()
        ride = await case.done(await accepting)
        assert ride.state is RideState.ASSIGNED

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE])
    async def test_operators_commands_take_effect_once_and_are_announced(
        self, case: StoreCase, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit
    ) -> None:
        ride, _ = await case.matched()
        driver = await case.driver()
        commands: list[Callable[[], Awaitable[object]]] = [
            lambda: by_proxy.assign(ride.ride_id, driver),
            lambda: by_proxy.store.release_ride(ride.ride_id, reason=None),
            lambda: by_proxy.store.cancel_ride(ride.ride_id, client_id=None, reason=None, actor=Actor.OPERATOR),
        ]
        for step, command in enumerate(commands, start=1):
            proxy.fault(how)
            outcome = await command()
            assert proxy.faulted == step
            after = await case.done(outcome)
            assert isinstance(outcome, Done)
            assert (after.ride_id, after.version) in [(hint.ride_id, hint.version) for hint in outcome.hints]
        assert await case.events(ride.ride_id) == [
            "requested",
            "assigned",
            "withdrawn",
            "assigned",
            "withdrawn",
            "cancelled",
        ]

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE])
    async def test_a_sweep_and_a_break_are_made_once(
        self, case: StoreCase, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit
    ) -> None:
        _, offered = await case.offered()
        case.past_offer(offered)
        token = await case.lease()
        proxy.fault(how)
        await by_proxy.store.sweep(MARKET, token)
        assert await case.events(offered.ride_id) == ["requested", "offered", "timed_out"]
        assert case.sql("SELECT missed_offers FROM drivers")[0][0] == 1
        _, trip = await case.offered()
        proxy.fault(how)
        outcome = await by_proxy.store.set_status(trip.driver_id, DriverStatus.ON_BREAK, epoch=1)
        assert outcome is not None
        assert outcome.driver.status is DriverStatus.ON_BREAK
        assert await case.events(trip.ride_id) == ["requested", "offered", "withdrawn"]
        assert proxy.faulted == 2

    async def test_a_release_whose_ride_has_another_driver_by_now_leaves_that_one(self, case: StoreCase) -> None:
        ride, _ = await case.matched()
        release = Release(ride.ride_id, None, {})
        database = Database(case.url)
        ride = await case.done(await database.write(release))
        second = await case.match(ride, await case.driver())
        outcome = await database.write(settling(release))
        assert isinstance(outcome, Done)
        assert len(outcome.hints) == 1
        assert (await case.now(ride.ride_id)).trip == second
        ride = await case.done(await database.write(Release(ride.ride_id, None, {})))  # a new one is another command
        assert ride.state is RideState.SEARCHING
        await database.close()

    async def test_an_assignment_whose_driver_has_left_the_ride_since_is_not_made_again(self, case: StoreCase) -> None:
        ride, driver = await case.ride(), await case.driver()
        new = Assignment(ride.ride_id, driver, new_trip_id(), None, "ann", HOUR_MS)
        database = Database(case.url)
        ride = await case.done(await database.write(lambda session: assign(session, new, {})))
        assert ride.trip is not None
        await case.move(ride.trip, Move.DRIVER_CANCEL)
        await case.done(await database.write(settling(lambda session: assign(session, new, {}))))
        assert (await case.now(ride.ride_id)).state is RideState.SEARCHING
        await database.close()
