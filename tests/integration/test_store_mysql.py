"""What one writer on SQLite cannot show: two connections interleaved, locks, and answers that never came."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from geo.model import DriverId
from matcher.database import Database
from matcher.errors import LeaseLost, StoreUnavailable
from matcher.ids import new_ride_id
from matcher.model import ClientId, Move, RideState
from matcher.outcomes import Committed, Done, LostPairing, Requested, RequestOutcome
from matcher.sessions import Session, rows_of
from matcher.store import Store
from matcher.store_batch import LOCK_DRIVERS, commit_plan
from matcher.store_changes import LOCK_DRIVERS_OF
from matcher.store_leases import hold
from matcher.store_rides import INSERT_RIDE, first_answer, ride_row
from matcher.store_sweep import LOCK_RIDE_IDS
from matcher.store_trips import TripMove, cancel_ride, move_trip
from tests.mysql_proxy import MySqlProxy, OnCommit
from tests.servers import MariaServer, fresh_database
from tests.stores import HOLDER, HOUR_MS, MARKET, StoreCase, migrated, new_ride, pairing
from tests.transactions import lock_waits, standing, until_available


class TestTwoMatchers:
    async def test_a_plan_in_hand_when_the_lease_changes_is_not_written(self, case: StoreCase) -> None:
        """P7: the old matcher had read everything before the new one took over."""
        ride, driver, old = await case.ride(), await case.driver(), await case.lease()
        other = await Store.open(case.url)
        case.sql("UPDATE market_leases SET expires_at_ms = 1")
        new = await other.acquire_lease(MARKET, "matcher-2", HOUR_MS)
        assert new == old + 1
        plans = [
            case.store.commit_plan(MARKET, old, [pairing(ride, driver)]),
            other.commit_plan(MARKET, new, [pairing(ride, driver)]),
        ]
        refused, committed = await asyncio.gather(*plans, return_exceptions=True)
        assert isinstance(refused, LeaseLost)
        assert isinstance(committed, Committed)
        assert len(committed.trips) == 1
        await other.close()

    async def test_nobody_takes_the_lease_while_a_plan_is_being_written(self, case: StoreCase) -> None:
        """P7: the token's row is locked from the check to the commit."""
        ride, driver, token = await case.ride(), await case.driver(), await case.lease()
        plan = [pairing(ride, driver)]
        taking: asyncio.Task[int | None]
        async with standing(case.url, lambda session: commit_plan(session, MARKET, token, plan, None)):
            assert (await case.now(ride.ride_id)).state is RideState.SEARCHING
            taking = asyncio.create_task(self.take_over(case))
            await asyncio.sleep(0.3)
            assert not taking.done()
        assert await taking is None  # the holder's lease had not run out after all
        assert (await case.now(ride.ride_id)).state is RideState.ASSIGNED

    async def take_over(self, case: StoreCase) -> int | None:
        return await case.store.acquire_lease(MARKET, "matcher-2", HOUR_MS)

    async def test_a_frozen_holder_loses_its_locks_within_the_lease_and_writes_nothing(self, case: StoreCase) -> None:
        """P7: its session falls silent in the middle of the transaction; the server ends it."""
        ride, driver, token = await case.ride(), await case.driver(), await case.lease()
        plan = [pairing(ride, driver)]

        async def work(session: Session) -> None:
            await commit_plan(session, MARKET, token, plan, None)

        async with standing(case.url, work, lease_s=1.0) as frozen:
            taken = await until_available(lambda: case.store.acquire_lease(MARKET, HOLDER, HOUR_MS))
            assert taken == token + 1
            assert (await case.now(ride.ride_id)).state is RideState.SEARCHING
            assert len((await case.store.commit_plan(MARKET, taken, plan)).trips) == 1
        assert isinstance(frozen.exception(), (AssertionError, StoreUnavailable))
        assert (await case.store.audit()).holds


class TestBatchAgainstCommands:
    async def test_a_ride_in_a_cancellation_drops_out_alone(self, case: StoreCase) -> None:
        rides = [await case.ride() for _ in range(3)]
        plan = [pairing(ride, await case.driver()) for ride in rides]

        async def work(session: Session) -> object:
            return await cancel_ride(session, rides[1].ride_id, client_id=ClientId("alice"), reason="x")

        async with standing(case.url, work):
            committed = await case.commit(*plan)
            assert committed.lost == [LostPairing(plan[1], "ride_busy")]
            assert len(committed.trips) == 2
        assert (await case.now(rides[1].ride_id)).state is RideState.CANCELLED
        assert (await case.commit(plan[1])).lost == [LostPairing(plan[1], "ride_changed")]

    async def test_a_driver_in_a_command_drops_out_alone(self, case: StoreCase) -> None:
        rides = [await case.ride() for _ in range(3)]
        plan = [pairing(ride, await case.driver()) for ride in rides]

        async def work(session: Session) -> object:
            return await rows_of(session, LOCK_DRIVERS_OF(driver_ids=[plan[1].driver_id]))

        async with standing(case.url, work):
            committed = await case.commit(*plan)
        assert committed.lost == [LostPairing(plan[1], "driver_busy")]
        assert len(committed.trips) == 2

    async def test_a_cancellation_waits_for_the_plan_and_then_withdraws_its_trip(self, case: StoreCase) -> None:
        ride, driver, token = await case.ride(), await case.driver(), await case.lease()
        plan = [pairing(ride, driver)]
        async with standing(case.url, lambda session: commit_plan(session, MARKET, token, plan, None)):
            cancelling = asyncio.create_task(case.store.cancel_ride(ride.ride_id, client_id=None, reason="x"))
            await asyncio.sleep(0.2)
            assert not cancelling.done()
        outcome = await cancelling
        assert isinstance(outcome, Done)
        assert outcome.ride.version == 3
        assert await case.events(ride.ride_id) == ["requested", "assigned", "cancelled"]
        assert (await case.store.audit()).holds

    async def test_the_sweep_leaves_what_a_command_holds_to_the_next(self, case: StoreCase) -> None:
        """P4: and is not held up by it."""
        held, free = await case.ride(), await case.ride()
        for ride in (held, free):
            case.past_deadline(ride.ride_id)
        async with standing(case.url, lambda session: rows_of(session, LOCK_RIDE_IDS(ids=[held.ride_id]))):
            assert [hint.ride_id for hint in await case.sweep()] == [free.ride_id]
        assert [hint.ride_id for hint in await case.sweep()] == [held.ride_id]

    async def test_a_driver_is_free_for_the_batch_only_when_the_end_of_the_trip_is_committed(
        self, case: StoreCase
    ) -> None:
        """P1"""
        driver = await case.driver()
        _, trip = await case.matched(driver)
        await case.move(trip, Move.ARRIVE, Move.START)
        ride = await case.ride()

        async def work(session: Session) -> object:
            return await move_trip(session, TripMove(trip.trip_id, Move.COMPLETE, driver, 1), {})

        async with standing(case.url, work):
            assert [lost.why for lost in (await case.commit(pairing(ride, driver))).lost] == ["driver_busy"]
        await case.match(ride, driver)
        assert (await case.store.audit()).trips_overlapping == 0


class TestGroups:
    async def test_a_contested_key_delays_none_of_its_neighbours(self, case: StoreCase) -> None:
        """P3: another process is writing the same key and is in no hurry."""
        rival = new_ride(key="k")
        group = [new_ride(f"c-{n}", key="own") for n in range(5)] + [new_ride(key="k")]
        heard: dict[int, RequestOutcome] = {}
        standing_row = ride_row(rival, first_answer(rival, await case.store.now_ms()))

        async with standing(case.url, lambda session: session.insert(INSERT_RIDE, [standing_row])):
            waits = lock_waits(case)
            outcomes = await case.store.request_rides(group, on_outcome=heard.__setitem__)
            assert all(isinstance(outcome, Requested) for outcome in outcomes[:5])
            assert isinstance(outcomes[5], StoreUnavailable)
            assert list(heard)[-1] == 5
            assert lock_waits(case) == waits
        [again] = await case.store.request_rides([group[5]])
        assert isinstance(again, Requested)
        assert again.repeated
        assert again.ride.ride_id == rival.ride_id

    async def test_the_same_keys_from_many_processes_at_once_make_one_ride_each(self, case: StoreCase) -> None:
        """P3: groups in opposite orders neither deadlock nor double."""
        others = [await Store.open(case.url) for _ in range(3)]
        groups = [[new_ride(f"c-{n}", key="k") for n in range(20)] for _ in range(4)]
        for group in groups[::2]:
            group.reverse()
        answers = await asyncio.gather(
            *[store.request_rides(group) for store, group in zip([case.store, *others], groups, strict=True)]
        )
        by_client: dict[str, set[str]] = {}
        for outcome in (outcome for answer in answers for outcome in answer):
            if isinstance(outcome, Requested):
                by_client.setdefault(outcome.ride.client_id, set()).add(outcome.ride.ride_id)
        assert len(by_client) == 20
        assert all(len(ids) == 1 for ids in by_client.values())
        assert len(await case.store.rides(None, state=None, before=None, limit=100)) == 20
        for store in others:
            await store.close()


class TestUnheardCommits:
    """P2, P3: the COMMIT was sent and no answer came; what happened is read, never assumed."""

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE, OnCommit.MUTE])
    async def test_rides_are_there_once(self, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit) -> None:
        await by_proxy.store.now_ms()
        proxy.fault(how)
        group = [new_ride(f"c-{n}", key="k" if n % 2 else None) for n in range(4)]
        outcomes = await by_proxy.store.request_rides(group)
        assert proxy.faulted == 1
        for new, outcome in zip(group, outcomes, strict=True):
            assert isinstance(outcome, Requested)
            assert not outcome.repeated
            assert outcome.ride.ride_id == new.ride_id
            assert await by_proxy.store.ride(new.ride_id) == outcome.ride
        assert len(await by_proxy.store.rides(None, state=None, before=None, limit=100)) == 4
        assert (await by_proxy.store.audit()).holds

    async def test_a_commit_still_on_its_way_is_waited_for(self, by_proxy: StoreCase, proxy: MySqlProxy) -> None:
        """The read that settles it takes locks: a plain read would find nothing and write twice."""
        proxy.fault(OnCommit.HOLD)
        asyncio.get_running_loop().call_later(0.5, proxy.release.set)
        new = new_ride()
        [outcome] = await by_proxy.store.request_rides([new])
        assert isinstance(outcome, Requested)
        assert await by_proxy.events(new.ride_id) == ["requested"]

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE])
    async def test_a_command_takes_effect_once_and_is_announced(
        self, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit
    ) -> None:
        ride, trip = await by_proxy.matched()
        proxy.fault(how)
        outcome = await by_proxy.store.move_trip(trip.trip_id, Move.ARRIVE, driver_id=trip.driver_id, epoch=1)
        assert isinstance(outcome, Done)
        assert [hint.version for hint in outcome.hints] == [ride.version + 1]
        assert proxy.faulted == 1
        assert await by_proxy.events(ride.ride_id) == ["requested", "assigned", "arrived"]

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE])
    async def test_a_plan_is_committed_once_and_reported_whole(
        self, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit
    ) -> None:
        rides = [await by_proxy.ride() for _ in range(3)]
        plan = [pairing(ride, await by_proxy.driver()) for ride in rides]
        token = await by_proxy.lease()
        await by_proxy.store.cancel_ride(rides[2].ride_id, client_id=None, reason="x")
        proxy.fault(how)
        committed = await by_proxy.store.commit_plan(MARKET, token, plan)
        assert proxy.faulted == 1
        assert [trip.trip_id for trip in committed.trips] == [one.trip_id for one in plan[:2]]
        assert [(hint.ride_id, hint.version) for hint in committed.hints] == [(r.ride_id, 2) for r in rides[:2]]
        assert [lost.pairing for lost in committed.lost] == [plan[2]]
        assert (await by_proxy.store.audit()).holds

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE])
    async def test_a_batch_is_recorded_once(self, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit) -> None:
        token, ride_id = await by_proxy.lease(), new_ride_id()
        keep = {"summary": {"rides": 1}, "input": b"input", "waits": [(ride_id, "outbid", {})]}
        proxy.fault(how)
        await by_proxy.store.record_batch(MARKET, token, "b_1", **keep)  # type: ignore[arg-type]
        assert proxy.faulted == 1
        assert [each.summary for each in await by_proxy.store.batches(MARKET, before=None, limit=9)] == [{"rides": 1}]
        assert await by_proxy.store.ride_wait(ride_id) is not None

    async def test_when_it_cannot_be_settled_the_answer_says_so(self, by_proxy: StoreCase, proxy: MySqlProxy) -> None:
        proxy.fault(OnCommit.CUT_AFTER, times=100)
        with pytest.raises(StoreUnavailable, match="not known"):
            await by_proxy.store.put_driver(named(0), vehicle_class="standard", seats=4)


class TestLocks:
    async def test_of_two_that_deadlock_both_are_done_in_the_end(self, case: StoreCase) -> None:
        drivers = [await case.driver(), await case.driver()]
        database = Database(case.url)
        together = asyncio.Barrier(2)
        begun: list[int] = []

        async def crossing(session: Session, order: tuple[int, int]) -> str:
            begun.append(order[0])
            await rows_of(session, LOCK_DRIVERS_OF(driver_ids=[drivers[order[0]]]))
            if len(begun) <= 2:
                await together.wait()
            await rows_of(session, LOCK_DRIVERS_OF(driver_ids=[drivers[order[1]]]))
            return "done"

        jobs = [database.write(partial(crossing, order=order)) for order in ((0, 1), (1, 0))]
        assert await asyncio.gather(*jobs) == ["done", "done"]
        assert len(begun) == 3  # one of them was the victim and was done again
        await database.close()

    async def test_a_lock_held_for_long_is_not_waited_for_without_end(self, case: StoreCase) -> None:
        """P10"""
        ride, trip = await case.matched()
        impatient = await Store.open(case.url, call_timeout_s=1.5)
        async with standing(case.url, lambda session: rows_of(session, LOCK_RIDE_IDS(ids=[ride.ride_id]))):
            with pytest.raises(StoreUnavailable):
                await impatient.move_trip(trip.trip_id, Move.ARRIVE, driver_id=trip.driver_id)
        assert isinstance(await impatient.move_trip(trip.trip_id, Move.ARRIVE, driver_id=trip.driver_id), Done)
        await impatient.close()

    async def test_more_callers_than_connections_wait_their_turn_and_no_longer_than_their_time(
        self, case: StoreCase
    ) -> None:
        """P10"""
        small = await Store.open(case.url, pool_size=2, call_timeout_s=1.0)
        await asyncio.gather(*[small.put_driver(named(n), vehicle_class="s", seats=1) for n in range(40)])
        held = [named(n) for n in range(40)]
        async with standing(case.url, lambda session: rows_of(session, LOCK_DRIVERS(ids=held))):
            jobs = [small.put_driver(name, vehicle_class="s", seats=2) for name in held[:6]]
            outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        assert any("free connection" in str(outcome) for outcome in outcomes)
        await small.put_driver(held[0], vehicle_class="s", seats=2)
        await small.close()


class TestServerGoesAway:
    @pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
    def test_connections_that_died_in_the_pool_are_replaced_unnoticed(
        self, maria_server: MariaServer, loop: str
    ) -> None:
        """The two loops raise different errors for a write to a connection that is gone."""

        async def scenario(url: str) -> None:
            case = StoreCase(await Store.open(url), url)
            await asyncio.gather(*[case.driver() for _ in range(12)])
            ride = await case.ride()
            await asyncio.to_thread(maria_server.restart)
            assert await case.now(ride.ride_id) == ride
            assert len({(await case.ride()).ride_id for _ in range(3)}) == 3
            await asyncio.gather(*[case.now(ride.ride_id) for _ in range(4)])
            await asyncio.to_thread(maria_server.restart)
            await asyncio.sleep(0.05)
            await case.store.close()

        with fresh_database(maria_server.url) as url:
            migrated(url)
            run = asyncio.run if loop == "asyncio" else pytest.importorskip("uvloop").run
            run(scenario(url))

    async def test_a_frozen_server_is_unavailable_within_the_time_and_served_again_after(
        self, maria_server: MariaServer
    ) -> None:
        """P10"""
        with fresh_database(maria_server.url) as url:
            await asyncio.to_thread(migrated, url)
            case = StoreCase(await Store.open(url, call_timeout_s=0.5), url)
            ride = await case.ride()
            maria_server.freeze()
            calls = [case.store.request_rides([new_ride()]), case.store.now_ms(), case.ride()]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            maria_server.thaw()
            assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
            assert await case.now(ride.ride_id) == ride
            assert (await case.store.audit()).holds
            await case.store.close()

    async def test_sessions_that_the_server_ended_for_their_silence_are_replaced_unnoticed(
        self, case: StoreCase
    ) -> None:
        store = await Store.open(case.url, lease_s=1.0)
        ride = await case.ride()
        for pause_s in (0.0, 0.5, 1.2):
            await asyncio.sleep(pause_s)
            assert await store.renew_lease(MARKET, "nobody", 1, 1000) is False
        await store.close()
        assert await case.now(ride.ride_id) == ride

    async def test_a_frozen_transactions_hold_is_the_leases(self, case: StoreCase) -> None:
        """P7: what `hold` locks is free again once the server has ended the silent session."""
        token = await case.lease()
        async with standing(case.url, lambda session: hold(session, MARKET, token), lease_s=1.0):
            assert await until_available(lambda: case.store.sweep(MARKET, token)) == []


def named(n: int) -> DriverId:
    return DriverId(f"d-{n:03d}")
