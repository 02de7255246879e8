"""The dispatcher on a real store, a real index and a real solver child."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest

from geo.model import DriverId
from matcher.model import ClientId, Move, Ride, RideState
from matcher.outcomes import Done
from matcher.solver import SolverChild
from matcher.store import Store
from tests.matchers import HERE, NYC, WITHIN_S, Watched, city_of, north, running, until, until_true
from tests.servers import MariaServer, fresh_database

# One event loop for the module: the solver's child that the tests share belongs to it.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def all_announced(store: Store) -> bool:
    return await store.unannounced(NYC, older_than_ms=0, limit=10) == []


async def test_waiting_rides_are_matched_together_and_everybody_hears_of_it(
    database_url: str, solver: SolverChild
) -> None:
    async with city_of(database_url, solver) as city:
        await city.driver("anna", north(-1500))
        await city.driver("ben", north(500))
        told: list[Ride] = []
        first, second = await city.request(HERE), await city.request(north(1000))
        with (
            city.announcer.ride_listener(first, 1) as events,
            city.announcer.driver_listener(DriverId("ben"), told.append),
        ):
            async with running(city.dispatcher().run()):
                rides = [await city.reaches(ride_id, RideState.ASSIGNED) for ride_id in (first, second)]
                event = await events.next(WITHIN_S)
                await until(lambda: bool(told), "ben hears of it")
        assert [ride.trip.driver_id for ride in rides if ride.trip] == ["anna", "ben"]
        assert event is not None
        assert (event.type, event.version, event.driver_id) == ("assigned", 2, "anna")
        assert told[0].ride_id == second
        assert rides[0].trip is not None
        assert rides[0].trip.decision["batch"]["certified"] is True
        assert sum(report.matched for report in city.reports) == 2
        audit = await city.store.audit()
        assert audit.holds
        await until_true(partial(all_announced, city.store), "every event is marked as announced")


async def test_a_driver_that_cancelled_is_not_given_the_same_ride_again(database_url: str, solver: SolverChild) -> None:
    async with city_of(database_url, solver) as city:
        await city.driver("near", north(100))
        ride_id = await city.request()
        async with running(city.dispatcher().run()):
            ride = await city.reaches(ride_id, RideState.ASSIGNED)
            assert ride.trip is not None
            outcome = await city.desk.move_trip(ride.trip.trip_id, Move.DRIVER_CANCEL, driver_id=DriverId("near"))
            assert isinstance(outcome, Done)
            await until(lambda: city.reports[-1].unmatched == {"all_refused": 1}, "all refused")
            await city.driver("far", north(3000))
            ride = await city.reaches(ride_id, RideState.ASSIGNED)
        assert ride.trip is not None
        assert ride.trip.driver_id == "far"
        assert [each["driver_id"] for each in ride.trip.decision["alternatives"]] == []  # nobody else may serve it


async def test_an_engaged_driver_is_matched_again_after_its_trip(sqlite_url: str, solver: SolverChild) -> None:
    async with city_of(sqlite_url, solver) as city:
        await city.driver("anna")
        first, second = await city.request(), await city.request(north(50))
        async with running(city.dispatcher().run()):
            await until(
                lambda: bool(city.reports) and city.reports[-1].unmatched == {"no_driver_in_reach": 1}, "scarce"
            )
            rides = {ride_id: await city.ride(ride_id) for ride_id in (first, second)}
            ((served, ride),) = [(k, v) for k, v in rides.items() if v.state is RideState.ASSIGNED]
            assert ride.trip is not None
            for move in (Move.ARRIVE, Move.START, Move.COMPLETE):
                assert isinstance(await city.desk.move_trip(ride.trip.trip_id, move, driver_id=DriverId("anna")), Done)
            await city.reaches(second if served == first else first, RideState.ASSIGNED)
        assert (await city.store.audit()).holds


async def test_a_ride_past_its_deadline_expires_and_says_so(database_url: str, solver: SolverChild) -> None:
    async with city_of(database_url, solver) as city:
        ride_id = await city.request(deadline_ms=200)
        with city.announcer.ride_listener(ride_id, 1) as events:
            async with running(city.dispatcher().run()):
                await city.reaches(ride_id, RideState.EXPIRED)
                heard = [event.type async for event in events]
        assert heard == ["expired"]


async def test_a_stale_driver_is_never_matched(sqlite_url: str, solver: SolverChild) -> None:
    async with city_of(sqlite_url, solver) as city:
        await city.driver("silent", age_ms=31_000)
        ride_id = await city.request()
        async with running(city.dispatcher().run()):
            await until(lambda: len(city.reports) >= 3, "three batches")
            assert (await city.ride(ride_id)).state is RideState.SEARCHING
            await city.position("silent", north(10))
            await city.reaches(ride_id, RideState.ASSIGNED)


async def test_nothing_is_matched_while_the_positions_are_not_live(sqlite_url: str, solver: SolverChild) -> None:
    async with city_of(sqlite_url, solver) as city:
        await city.driver("anna")
        ride_id, doomed = await city.request(), await city.request(deadline_ms=200)
        city.follower.fault = "the feed is down"
        dispatcher = city.dispatcher()
        async with running(dispatcher.run()):
            await city.reaches(doomed, RideState.EXPIRED)  # the sweep goes on (P4)
            await until(lambda: dispatcher.stats.windows_blind >= 2, "blind windows")
            assert (await city.ride(ride_id)).state is RideState.SEARCHING
            assert not dispatcher.stats.positions_live
            city.follower.fault = None
            await city.reaches(ride_id, RideState.ASSIGNED)
            assert dispatcher.stats.positions_live


async def test_one_matcher_leads_and_its_successor_starts_when_it_stops(database_url: str, solver: SolverChild) -> None:
    async with city_of(database_url, solver) as city:
        await city.driver("anna")
        first, second = city.dispatcher("m1", lease_s=60.0), city.dispatcher("m2", lease_s=3.0)
        async with running(first.run()) as (task,):
            await until(lambda: first.stats.leading, "the first leads")
            async with running(second.run()):
                await city.reaches(await city.request(), RideState.ASSIGNED)
                assert not second.stats.leading
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await until(lambda: second.stats.leading, "the second leads, long before the lease runs out")


async def test_a_lease_taken_away_sends_the_matcher_back_to_acquiring(sqlite_url: str, solver: SolverChild) -> None:
    async with city_of(sqlite_url, solver) as city:
        dispatcher = city.dispatcher("m1", lease_s=1.0)
        async with running(dispatcher.run()):
            await until(lambda: dispatcher.stats.leading, "leads")
            # The same holder may take its lease anew: the token that the dispatcher holds is void.
            assert await city.store.acquire_lease(NYC, "m1", 1000) is not None
            await until(lambda: dispatcher.stats.leases_lost == 1, "notices")
            await city.driver("anna")
            await city.reaches(await city.request(), RideState.ASSIGNED)


async def test_a_solver_killed_at_any_time_costs_no_ride(sqlite_url: str, solver: SolverChild) -> None:
    async with city_of(sqlite_url, solver) as city:
        async with running(city.dispatcher().run()):
            for number in range(3):
                await city.driver(f"d{number}", north(10.0 * number))
                await city.solver.start()
                assert city.solver.pid is not None
                os.kill(city.solver.pid, signal.SIGKILL)
                await city.reaches(await city.request(), RideState.ASSIGNED)
        assert (await city.store.audit()).holds


async def test_a_market_without_window_decides_on_arrival(sqlite_url: str, solver: SolverChild) -> None:
    async with city_of(sqlite_url, solver, window_s=0.0) as city:
        for number in range(5):
            await city.driver(f"d{number}", north(10.0 * number))
        async with running(city.dispatcher().run()):
            for _ in range(5):
                await city.reaches(await city.request(), RideState.ASSIGNED)
        assert len(city.reports) >= 5


async def test_a_stop_in_the_middle_of_a_commit_finishes_and_announces_it(sqlite_url: str, solver: SolverChild) -> None:
    async with city_of(sqlite_url, solver) as city:
        await city.driver("anna")
        ride_id = await city.request()
        store = Watched(city.store)
        store.gate.clear()
        async with running(city.dispatcher(store=store).run()) as (task,):
            await asyncio.wait_for(store.committing.wait(), WITHIN_S)
            task.cancel()
            await asyncio.sleep(0.05)
            assert not task.done()
            store.gate.set()
            await asyncio.gather(task, return_exceptions=True)
        assert (await city.ride(ride_id)).state is RideState.ASSIGNED
        assert await city.store.acquire_lease(NYC, "successor", 1000) is not None
        await city.announcer.close()
        assert await all_announced(city.store)


async def test_a_defect_in_one_window_does_not_end_the_market(
    sqlite_url: str, solver: SolverChild, caplog: pytest.LogCaptureFixture
) -> None:
    async with city_of(sqlite_url, solver) as city:
        await city.driver("anna")
        ride_id = await city.request()
        store = Watched(city.store)
        store.faults["commit_plan"] = [ZeroDivisionError("a defect")]
        async with running(city.dispatcher(store=store).run()):
            await city.reaches(ride_id, RideState.ASSIGNED)
        assert "a defect" in caplog.text


async def test_a_pairing_that_lost_a_race_drops_out_alone(sqlite_url: str, solver: SolverChild) -> None:
    async with city_of(sqlite_url, solver) as city:
        for name in ("anna", "ben"):
            await city.driver(name, north(10))
        gone, stays = await city.request(), await city.request()
        store = Watched(city.store)
        store.gate.clear()
        async with running(city.dispatcher(store=store).run()):
            await asyncio.wait_for(store.committing.wait(), WITHIN_S)
            assert isinstance(await city.desk.cancel(gone, client_id=ClientId("c"), reason="changed mind"), Done)
            store.gate.set()
            await city.reaches(stays, RideState.ASSIGNED)
            await until(lambda: bool(city.reports), "the report")
        assert city.reports[0].matched == 1
        assert city.reports[0].lost == {"ride_changed": 1}
        assert (await city.store.audit()).holds


@pytest.mark.chaos
async def test_the_matcher_outlives_a_database_that_is_killed_and_comes_back(
    maria_server: MariaServer, solver: SolverChild
) -> None:
    with fresh_database(maria_server.url) as url:
        async with city_of(url, solver) as city:
            for name in ("anna", "ben"):
                await city.driver(name, north(10))
            dispatcher = city.dispatcher()
            async with running(dispatcher.run()):
                await city.reaches(await city.request(), RideState.ASSIGNED)
                ride_id = await city.request()
                maria_server.kill()
                faults = dispatcher.stats.faults
                await until(lambda: dispatcher.stats.faults > faults, "the fault is noticed")
                await asyncio.to_thread(maria_server.restart)
                await city.reaches(ride_id, RideState.ASSIGNED)
            assert (await city.store.audit()).holds
