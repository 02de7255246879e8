"""What the dispatcher keeps of its batches and reads for them: records, waits, histories (P12)."""

from __future__ import annotations

from pathlib import Path

import pytest

from geo.model import DriverId
from matcher import dispatcher as dispatcher_module
from matcher import optimum, plan
from matcher import recording as recording_module
from matcher.dispatcher import Keeping
from matcher.errors import StoreUnavailable
from matcher.model import Move, RideId, RideState
from matcher.outcomes import RideWait
from matcher.packing import ints_of, problem_of, unpack_record
from matcher.solver import SolverChild
from tests.matchers import HERE, NYC, City, Watched, city_of, north, running, until, until_true

# One event loop for the module: the solver's child that the tests share belongs to it.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/hexhail.db"


async def recorded(city: City, batches: int = 1) -> None:
    """So many batches are over, and the record of the last is written."""

    async def is_kept() -> bool:
        return len(city.reports) >= batches and await city.store.batch(city.reports[-1].batch_id) is not None

    await until_true(is_kept, "the record of the last batch")


async def wait_of(city: City, ride_id: RideId, reason: str, *, beside: str | None = None) -> RideWait:
    """The ride's wait once it is for this reason, by another batch than `beside`."""
    found: list[RideWait] = []

    async def is_kept() -> bool:
        wait = await city.store.ride_wait(ride_id)
        if wait is not None and wait.reason == reason and wait.batch_id != beside:
            found.append(wait)
        return bool(found)

    await until_true(is_kept, f"{ride_id} waits for {reason}")
    return found[0]


async def test_a_plan_is_committed_in_parts_and_recorded_after_the_last(
    url: str, solver: SolverChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "COMMIT_PAIRINGS", 2)
    monkeypatch.setattr(plan, "PART_RIDES", 1)
    async with city_of(url, solver) as city:
        for number in range(5):
            await city.driver(f"d{number}", north(20.0 * number))
        rides = [await city.request(north(20.0 * number)) for number in range(5)]
        store = Watched(city.store)
        async with running(city.dispatcher(store=store).run()):
            for ride_id in rides:
                await city.reaches(ride_id, RideState.ASSIGNED)
            await recorded(city)
        assert store.committed == [2, 2, 1]
        of_batch = [name for name in store.called if name in ("commit_plan", "record_batch")]
        assert of_batch == ["commit_plan"] * 3 + ["record_batch"]
        [report] = city.reports
        [kept] = await city.store.batches(NYC, before=None, limit=10)
        assert (report.matched, kept.batch_id) == (5, report.batch_id)
        assert kept.summary == report.summary()
        assert (await city.store.audit()).holds


async def test_the_kept_input_of_a_batch_solves_to_the_plan_that_was_committed(url: str, solver: SolverChild) -> None:
    async with city_of(url, solver) as city:
        for number in range(6):
            await city.driver(f"d{number}", north(-300.0 * number))
        rides = [await city.request(north(70.0 * number)) for number in range(4)]
        async with running(city.dispatcher().run()):
            await recorded(city)
        [report] = city.reports
        data = await city.store.batch_input(report.batch_id)
        assert data is not None
        record = unpack_record(data)
        again = optimum.solve(problem_of(record.problem))
        assert again.driver_of.tolist() == ints_of(record.driver_of).tolist()
        replayed = {
            record.ride_ids[ride]: record.driver_ids[driver] for ride, driver in enumerate(again.driver_of.tolist())
        }
        trips = {ride_id: (await city.ride(ride_id)).trip for ride_id in rides}
        assert replayed == {ride_id: trip.driver_id for ride_id, trip in trips.items() if trip is not None}
        assert all(trip is not None and trip.decision["batch"]["id"] == report.batch_id for trip in trips.values())


async def test_inputs_are_kept_for_as_many_batches_as_the_service_says(url: str, solver: SolverChild) -> None:
    """P10"""
    for keeping, expected in ((Keeping(inputs=0), [None, None]), (Keeping(batches=2, inputs=1), [True, None])):
        async with city_of(url, solver) as city:
            ride_id = await city.request()
            async with running(city.dispatcher(keeping=keeping).run()):
                await until(lambda: len(city.reports) >= 3, "some batches")
                await city.driver("anna")
                await city.reaches(ride_id, RideState.ASSIGNED)
                await recorded(city)
            kept = await city.store.batches(NYC, before=None, limit=2)
            assert [None if each.input_bytes is None else True for each in kept] == expected
            await city.does(ride_id, Move.ARRIVE, Move.START, Move.COMPLETE)
    assert len(kept) == 2


async def test_why_a_ride_waits_is_written_when_it_is_new_or_changes(url: str, solver: SolverChild) -> None:
    async with city_of(url, solver) as city:
        ride_id = await city.request()
        async with running(city.dispatcher().run()):
            wait = await wait_of(city, ride_id, "no_driver_in_reach")
            assert wait.detail["candidates_told"] == 0
            batches = len(city.reports)
            await until(lambda: len(city.reports) >= batches + 3, "some more batches")
            assert await city.store.ride_wait(ride_id) == wait  # said once
            await city.driver("anna")
            await city.reaches(ride_id, RideState.ASSIGNED)
            await city.does(ride_id, Move.DRIVER_CANCEL)
            wait = await wait_of(city, ride_id, "all_refused")
            assert (wait.detail["candidates_told"], wait.detail["refused"]) == (0, 1)


async def test_a_reason_that_stays_is_written_again_after_a_while(
    url: str, solver: SolverChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording_module, "REPEAT_MS", 300)
    async with city_of(url, solver) as city:
        ride_id = await city.request()
        async with running(city.dispatcher().run()):
            first = await wait_of(city, ride_id, "no_driver_in_reach")
            second = await wait_of(city, ride_id, "no_driver_in_reach", beside=first.batch_id)
        assert (second.detail["candidates_told"], second.at_ms > first.at_ms) == (0, True)


async def test_a_record_that_cannot_be_written_costs_no_match_and_its_waits_come_with_the_next(
    url: str, solver: SolverChild
) -> None:
    async with city_of(url, solver) as city:
        await city.driver("anna")
        rides = [await city.request(), await city.request(north(50))]
        store = Watched(city.store)
        store.faults["record_batch"] = [StoreUnavailable("no room left")]
        dispatcher = city.dispatcher(store=store)
        async with running(dispatcher.run()):
            await until(lambda: len(city.reports) >= 2, "two batches")
            states = {ride_id: (await city.ride(ride_id)).state for ride_id in rides}
            assert sorted(states.values()) == [RideState.ASSIGNED, RideState.SEARCHING]
            [left] = [ride_id for ride_id, state in states.items() if state is RideState.SEARCHING]
            wait = await wait_of(city, left, "no_driver_in_reach")
        assert (dispatcher.stats.unrecorded, dispatcher.stats.faults) == (1, 0)
        assert city.reports[0].batch_id not in {
            each.batch_id for each in await city.store.batches(NYC, before=None, limit=100)
        }
        assert wait.batch_id != city.reports[0].batch_id


async def test_a_wait_whose_record_failed_is_written_with_the_next_batch_though_its_reason_stays(
    url: str, solver: SolverChild
) -> None:
    async with city_of(url, solver) as city:
        ride_id = await city.request()
        store = Watched(city.store)
        store.faults["record_batch"] = [StoreUnavailable("no room left")] * 2
        async with running(city.dispatcher(store=store).run()):
            wait = await wait_of(city, ride_id, "no_driver_in_reach")
        assert wait.batch_id == city.reports[2].batch_id


class TestHistories:
    async def test_who_refused_before_is_dearer_where_the_market_prices_it(self, url: str, solver: SolverChild) -> None:
        async with city_of(url, solver, refusal_s=600.0) as city:
            await city.driver("picky", HERE)
            first = await city.request()
            async with running(city.dispatcher().run()):
                await city.reaches(first, RideState.ASSIGNED)
                await city.does(first, Move.DRIVER_CANCEL)
                await city.reaches(first, RideState.SEARCHING)
            await city.driver("steady", north(300))
            async with running(city.dispatcher().run()):
                await city.reaches(first, RideState.ASSIGNED)
                second = await city.request()
                ride = await city.reaches(second, RideState.ASSIGNED)
            assert ride.trip is not None
            assert ride.trip.driver_id == "picky"
            assert ride.trip.decision["chosen"]["terms"] == {"way": 0.0, "refusal_risk": 400.0}

    async def test_they_are_read_where_the_policy_asks_for_them_alone(self, url: str, solver: SolverChild) -> None:
        for policy, asks in (({}, False), ({"refusal_s": 60.0}, True), ({"idle_bonus": 0.1}, True)):
            async with city_of(url, solver, **policy) as city:
                store = Watched(city.store)
                ride_id = await city.request()
                await city.driver(f"d-{len(policy)}-{'idle_bonus' in policy}")
                async with running(city.dispatcher(store=store).run()):
                    await city.reaches(ride_id, RideState.ASSIGNED)
                await city.does(ride_id, Move.ARRIVE, Move.START, Move.COMPLETE)
                assert ("driver_histories" in store.called) == asks

    async def test_a_fault_of_reading_them_costs_no_match(self, url: str, solver: SolverChild) -> None:
        async with city_of(url, solver, refusal_s=60.0) as city:
            store = Watched(city.store)
            store.faults["driver_histories"] = [StoreUnavailable("away")]
            await city.driver("anna")
            dispatcher = city.dispatcher(store=store)
            async with running(dispatcher.run()):
                await city.reaches(await city.request(), RideState.ASSIGNED)
                await until(lambda: dispatcher.stats.faults == 1, "the fault is counted")

    async def test_of_drivers_equally_near_the_one_who_has_been_idle_for_longer_is_taken(
        self, url: str, solver: SolverChild
    ) -> None:
        async with city_of(url, solver, idle_bonus=1.0) as city:
            await city.driver("z-first", north(100))
            far = await city.request(north(40_000))  # keeps batches going while nobody else waits
            async with running(city.dispatcher().run()):
                await until(lambda: len(city.reports) >= 3, "the first is seen")
                await city.driver("a-second", north(-100))
                ride = await city.reaches(await city.request(), RideState.ASSIGNED)
            assert ride.trip is not None
            assert ride.trip.driver_id == DriverId("z-first")
            assert ride.trip.decision["chosen"]["terms"]["idle_bonus"] < 0.0
            assert (await city.ride(far)).state is RideState.SEARCHING
