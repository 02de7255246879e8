"""One batch decided: by the solver's child, by whoever prices its ways, and by a plain greedy where these fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import pytest_asyncio

from geo.distance import distance_m
from geo.index import DriverIndex
from geo.legs import Legs, Times
from geo.roads import COLUMNS, RoadNetwork
from matcher import optimum
from matcher.batch import Batch
from matcher.decision import Travel, decide
from matcher.plan import NEAR
from matcher.problem import UNMATCHED, Floats, Ints
from matcher.solver import SolverChild
from tests.batches import batch_of, east, fix_at, index_of, market_with, pairs_of, plan_of, ride_at, waiting_of
from tests.certificate import STEP_S, cost_matrix, dense_optimum_s, prove

# One event loop for the module: the child that the tests share belongs to it.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def child() -> AsyncIterator[SolverChild]:
    solver = SolverChild()
    yield solver
    await solver.close()


@pytest_asyncio.fixture(loop_scope="module")
async def closed() -> SolverChild:
    """A solver that cannot be had."""
    solver = SolverChild()
    await solver.close()
    return solver


def scattered(n: int, m: int, *, seed: int = 5, **policy: object) -> tuple[Batch, DriverIndex]:
    """Demand and supply in different hot spots, with a few refusals."""
    rng = np.random.default_rng(seed)
    rides = [
        ride_at(f"r{i:03}", east(*rng.normal(0.0, 800.0, 2)), waited_s=float(rng.integers(0, 90))) for i in range(n)
    ]
    index = index_of([fix_at(f"d{j:03}", east(*rng.normal([1500.0, 0.0], 800.0))) for j in range(m)])
    refused = {f"r{i:03}": [f"d{j:03}" for j in rng.choice(m, 3, replace=False)] for i in range(0, n, 4)}
    waiting = waiting_of(rides, engaged=["d000"], refused=refused)
    return batch_of(waiting, index, market_with(**{"solve_s_max": 30.0, **policy})), index


@dataclass
class Blocks:
    """Streets along the compass at 8 m/s; north of a line nobody knows them, and straight lines stand in."""

    unknown_north_of: float = 90.0
    asked: list[int] = field(default_factory=list)

    async def times(self, legs: Legs) -> Times:
        self.asked.append(len(legs))
        here = legs.origin_lat[legs.origin], legs.origin_lon[legs.origin]
        there = legs.target_lat[legs.target], legs.target_lon[legs.target]
        seconds = (distance_m(*here, there[0], here[1]) + distance_m(there[0], here[1], *there)) / 8.0
        estimated = there[0] > self.unknown_north_of
        seconds = np.where(estimated, distance_m(*here, *there) * 1.3 / 8.0, seconds)
        return Times(seconds, estimated, "no map of the north" if estimated.any() else None)

    async def close(self) -> None:
        """Nothing is open."""

    def ways(self, batch: Batch, ride: Ints, driver: Ints) -> Floats:
        """What `times` says, for all pairs at once."""
        p = batch.problem
        straight = distance_m(p.driver_lat[driver], p.driver_lon[driver], p.ride_lat[ride], p.ride_lon[ride])
        along = distance_m(p.driver_lat[driver], p.driver_lon[driver], p.ride_lat[ride], p.driver_lon[driver])
        across = distance_m(p.ride_lat[ride], p.driver_lon[driver], p.ride_lat[ride], p.ride_lon[ride])
        return np.where(p.ride_lat[ride] > self.unknown_north_of, straight * 1.3 / 8.0, (along + across) / 8.0)


class TestByTheChild:
    @pytest.mark.parametrize(("n", "m"), [(30, 40), (40, 30), (20, 90)])
    async def test_a_batch_is_decided_at_the_proven_optimum_over_all_drivers(
        self, child: SolverChild, n: int, m: int
    ) -> None:
        """P8"""
        batch, index = scattered(n, m)
        decided = await decide(batch, child, Travel())
        prove(batch.problem, decided.solution)
        best_s = dense_optimum_s(cost_matrix(batch.problem), batch.problem.price_s)
        assert decided.solution.cost_s == pytest.approx(best_s, abs=STEP_S * (n + 1))
        assert (decided.solution.certified, decided.scope) == (True, "all pairs in reach")
        assert (decided.rounds > 0, decided.way, decided.estimated) == (True, "straight line", frozenset())
        assert decided.solution.greedy_s is not None
        records = [pairing.decision for pairing in plan_of(decided, index).pairings]
        assert len(records) == min(n, m - 1)
        assert all(1 <= len(record["alternatives"]) < NEAR for record in records)

    async def test_a_batch_past_its_time_has_a_plan_with_the_gap_that_is_left(self, child: SolverChild) -> None:
        batch, index = scattered(100, 100, solve_s_max=1e-9)
        decided = await decide(batch, child, Travel())
        assert decided.rounds == 1
        assert decided.solution.gap_s > 0.0
        assert decided.scope == f"the {decided.solution.numbers['pairs']} pairs looked at"
        assert len(plan_of(decided, index).pairings) > 50
        best_s = dense_optimum_s(cost_matrix(batch.problem), batch.problem.price_s)
        assert decided.solution.bound_s <= best_s + STEP_S * 100
        assert decided.solution.cost_s >= best_s - STEP_S * 100

    async def test_a_market_before_its_first_driver_is_decided_as_well(self, child: SolverChild) -> None:
        batch = batch_of(waiting_of([ride_at("r1", east(0)), ride_at("r2", east(0), seats=3)]), index_of([]))
        decided = await decide(batch, child, Travel())
        assert (decided.rounds > 0, decided.solution.certified) == (True, True)


class TestByRoadTimes:
    async def test_a_provider_prices_the_ways_until_no_pair_could_be_better(self, child: SolverChild) -> None:
        batch, _ = scattered(25, 40, has_ways=True, top_speed_mps=20.0)
        streets = Blocks()
        decided = await decide(batch, child, Travel("blocks", provider=streets))
        prove(batch.problem, decided.solution, lambda ride, driver: streets.ways(batch, ride, driver))
        assert (decided.way, decided.estimated, decided.because) == ("blocks", frozenset(), None)
        assert sum(streets.asked) < 25 * 40

    async def test_pairs_that_a_straight_line_stood_in_for_are_marked_with_the_reason(self, child: SolverChild) -> None:
        batch, index = scattered(25, 40, has_ways=True, top_speed_mps=20.0)
        streets = Blocks(unknown_north_of=float(np.median(batch.problem.ride_lat)))
        decided = await decide(batch, child, Travel("blocks", provider=streets))
        prove(batch.problem, decided.solution, lambda ride, driver: streets.ways(batch, ride, driver))
        in_the_north = set(np.flatnonzero(batch.problem.ride_lat > streets.unknown_north_of).tolist())
        assert {ride for ride, _ in decided.estimated} == in_the_north
        assert decided.because == "no map of the north"
        north_ids, seen = {f"r{row:03}" for row in in_the_north}, set()
        for pairing in plan_of(decided, index).pairings:
            chosen = pairing.decision["chosen"]
            seen.add(is_estimated := pairing.ride_id in north_ids)
            assert chosen["way"] == ("straight line" if is_estimated else "blocks")
            assert chosen.get("estimated", False) == is_estimated
            assert chosen.get("estimated_because") == ("no map of the north" if is_estimated else None)
        assert seen == {True, False}

    async def test_a_provider_is_asked_for_no_more_than_is_bearable(self, child: SolverChild) -> None:
        """P10; the plan is then the best of what was asked, with its gap."""
        batch, _ = scattered(60, 60, has_ways=True, top_speed_mps=20.0)
        streets = Blocks()
        decided = await decide(batch, child, Travel("blocks", provider=streets, pairs_max=100))
        assert len(streets.asked) == 1
        assert not decided.solution.certified
        assert decided.scope == f"the {decided.solution.numbers['pairs']} pairs looked at"
        best_s = optimum.solve(batch.problem, lambda ride, driver: streets.ways(batch, ride, driver)).cost_s
        assert decided.solution.bound_s <= best_s <= decided.solution.cost_s

    async def test_a_file_of_roads_prices_the_ways_in_the_child(
        self, child: SolverChild, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.mktemp("roads") / "links.csv"
        stops = [east(500.0 * i, 500.0 * j) for i in range(-8, 12) for j in range(-8, 9)]
        rows = [",".join(COLUMNS)]
        for at, stop in enumerate(stops):
            for step in (1, 17):
                if at + step < len(stops) and (step == 17 or (at + 1) % 17):
                    there = stops[at + step]
                    rows.append(f"{stop.lat},{stop.lon},{there.lat},{there.lon},500,45")
                    rows.append(f"{there.lat},{there.lon},{stop.lat},{stop.lon},500,55")
        path.write_text("\n".join(rows) + "\n")
        roads = RoadNetwork.read(path)
        batch, _ = scattered(20, 30, has_ways=True, top_speed_mps=roads.top_speed_mps)
        decided = await decide(batch, child, Travel("roads", roads=str(path)))

        def ways(ride: Ints, driver: Ints) -> Floats:
            p = batch.problem
            places = (p.driver_lat, p.driver_lon, p.ride_lat, p.ride_lon)
            return roads.seconds(*places, driver.astype(np.int64), ride.astype(np.int64))

        prove(batch.problem, decided.solution, ways)
        assert decided.way == "roads"


class TestWithoutASolver:
    async def test_a_solver_that_fails_costs_optimality_not_the_batch(
        self, closed: SolverChild, caplog: pytest.LogCaptureFixture
    ) -> None:
        batch, index = scattered(20, 40)
        decided = await decide(batch, closed, Travel())
        made = plan_of(decided, index)
        assert (len(made.pairings), len(set(pairs_of(made).values()))) == (20, 20)
        assert (decided.rounds, decided.solution.certified) == (0, False)
        assert decided.scope == "none: taken greedily"
        best_s = dense_optimum_s(cost_matrix(batch.problem), batch.problem.price_s)
        assert decided.solution.bound_s <= best_s + STEP_S * 20
        assert decided.solution.cost_s >= best_s - STEP_S * 20
        assert "market nyc: greedy assignment, for the solver is closed" in caplog.text

    async def test_a_greedy_plan_that_is_the_optimum_may_say_so(self, closed: SolverChild) -> None:
        index = index_of([fix_at("a", east(0)), fix_at("b", east(9000))])
        decided = await decide(batch_of(waiting_of([ride_at("r", east(100))]), index), closed, Travel())
        assert pairs_of(plan_of(decided, index)) == {"r": "a"}
        assert decided.solution.certified

    async def test_what_a_greedy_plan_leaves_says_why_and_what_was_chosen(self, closed: SolverChild) -> None:
        index = index_of([fix_at("a", east(0))])
        rides = [ride_at("far", east(25_000)), ride_at("old", east(300), waited_s=50.0), ride_at("new", east(10))]
        made = plan_of(await decide(batch_of(waiting_of(rides), index), closed, Travel()), index)
        assert pairs_of(made) == {"old": "a"}
        assert {each.ride_id: str(each.reason) for each in made.unmatched} == {
            "far": "no_driver_in_reach",
            "new": "outbid",
        }
        decision = made.pairings[0].decision
        assert decision["alternatives"] == []
        assert sum(decision["chosen"]["terms"].values()) == pytest.approx(decision["chosen"]["cost_s"], abs=0.002)

    async def test_a_greedy_plan_that_runs_out_of_time_serves_some_and_claims_nothing(
        self, closed: SolverChild
    ) -> None:
        batch, _ = scattered(20, 40, solve_s_max=1e-9)
        decided = await decide(batch, closed, Travel())
        assert int((decided.solution.driver_of != UNMATCHED).sum()) == 1
        assert not decided.solution.certified

    async def test_without_a_solver_road_times_are_estimated_by_straight_lines_and_nothing_is_claimed(
        self, closed: SolverChild
    ) -> None:
        batch, index = scattered(20, 40, has_ways=True, top_speed_mps=20.0)
        streets = Blocks()
        decided = await decide(batch, closed, Travel("blocks", provider=streets))
        assert (decided.way, decided.solution.certified, streets.asked) == ("straight line", False, [])
        market = batch.demand.market
        for pairing in plan_of(decided, index).pairings:
            assert pairing.pickup_s == pytest.approx(float(market.pickup_s(pairing.distance_m)), abs=0.02)

    async def test_a_market_with_road_times_that_nobody_prices_is_served_all_the_same(self, child: SolverChild) -> None:
        batch, index = scattered(10, 20, has_ways=True)
        decided = await decide(batch, child, Travel())
        assert (decided.rounds, len(plan_of(decided, index).pairings)) == (0, 10)
