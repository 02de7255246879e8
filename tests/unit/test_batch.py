"""A batch from waiting rides to its plan, on a real index (P5, P8, P12)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from geo.area import Circle
from geo.distance import between_m
from geo.feed import pack
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, MarketId
from matcher.assignment import Assignment, CandidateGraph, greedy, solve, verify
from matcher.batch import Graph, Plan, Reason, assemble, build, demand_of, gap_s, look, plan, unproven, widening
from matcher.decision import decide
from matcher.model import ClientId, Ride, RideId, RideState, Slot, TripId
from matcher.outcomes import Waiting
from matcher.policy import Market
from matcher.solver import SolverFailed

NYC, NOW_MS, CENTRE = MarketId("nyc"), 1_000_000, LatLng(40.75, -73.98)
RESOLUTION = 8


def market_with(**fields: Any) -> Market:
    return Market(NYC, Circle(CENTRE, 30_000.0), **fields)


def east(metres: float, north: float = 0.0) -> LatLng:
    return LatLng(CENTRE.lat + north / 111_195.0, CENTRE.lon + metres / (111_195.0 * 0.757566))


def ride_at(name: str, point: LatLng, *, waited_s: float = 0.0, seats: int = 1, kind: str = "standard") -> Ride:
    requested_ms = NOW_MS - round(waited_s * 1000)
    return Ride(
        ride_id=RideId(name),
        client_id=ClientId("c"),
        market=NYC,
        state=RideState.SEARCHING,
        version=1,
        pickup=point,
        dropoff=None,
        seats=seats,
        vehicle_class=kind,
        metadata={},
        requested_at_ms=requested_ms,
        deadline_at_ms=NOW_MS + 600_000,
        ended_at_ms=None,
        end_reason=None,
        trip=None,
    )


def fix_at(name: str, point: LatLng, *, kind: str = "standard", seats: int = 4, age_ms: int = 0) -> Fix:
    return Fix(DriverId(name), point.lat, point.lon, 1, 1, 1, age_ms, kind, seats)


def index_of(fixes: Iterable[Fix], stale_after_ms: int = 30_000) -> DriverIndex:
    index = DriverIndex(resolution=RESOLUTION, stale_after_ms=stale_after_ms)
    index.apply(pack(list(fixes), RESOLUTION, NOW_MS))
    return index


def waiting_of(
    rides: Sequence[Ride], engaged: Iterable[str] = (), refused: Mapping[str, Iterable[str]] | None = None
) -> Waiting:
    refusals = {
        RideId(ride): frozenset(DriverId(driver) for driver in drivers) for ride, drivers in (refused or {}).items()
    }
    return Waiting(NOW_MS, list(rides), frozenset(DriverId(driver) for driver in engaged), refusals)


def plan_of(graph: Graph, index: DriverIndex, now_ms: int = NOW_MS, assignment: Assignment | None = None) -> Plan:
    numbers = count()
    return plan(
        graph,
        assignment or solve(graph.candidates),
        index,
        now_ms,
        batch_id="b_1",
        new_trip_id=lambda: TripId(f"t_{next(numbers)}"),
    )


def pairs_of(made: Plan) -> dict[str, str]:
    return {pairing.ride_id: pairing.driver_id for pairing in made.pairings}


def reasons_of(made: Plan) -> dict[str, str]:
    return {each.ride_id: each.reason for each in made.unmatched}


def decided(waiting: Waiting, index: DriverIndex, market: Market) -> Plan:
    return plan_of(build(waiting, index, market, NOW_MS), index)


def test_the_whole_batch_is_served_best_not_each_ride_in_turn() -> None:
    rides = [ride_at("r1", east(0)), ride_at("r2", east(1000))]
    index = index_of([fix_at("a", east(-1500)), fix_at("b", east(500))])
    made = decided(waiting_of(rides), index, market_with())
    assert pairs_of(made) == {"r1": "a", "r2": "b"}
    assert made.certified
    assert made.cost_s <= made.greedy_cost_s


def test_a_pairing_says_what_it_costs_and_why() -> None:
    rides = [ride_at("r1", east(0)), ride_at("r2", east(900), waited_s=30.0)]
    index = index_of([fix_at("a", east(-700), age_ms=2500), fix_at("b", east(600))])
    market = market_with(speed_mps=10.0, detour_factor=1.5)
    graph = build(waiting_of(rides), index, market, NOW_MS)
    made = plan_of(graph, index)
    first = made.pairings[0]
    assert (first.ride_id, first.driver_id, first.ride_version, first.slot) == ("r1", "a", 1, Slot.NOW)
    assert first.distance_m == pytest.approx(between_m(east(0), east(-700)))
    assert first.pickup_s == pytest.approx(first.distance_m * 0.15, abs=0.001)
    assert first.abandon_after_ms == market.abandon_after_ms
    decision = first.decision
    assert decision["batch_id"] == "b_1"
    assert decision["cost"] == {"pickup_s": round(first.pickup_s, 3)}
    assert (decision["candidates"], decision["cheaper"], decision["refused"]) == (2, 1, 0)
    assert decision["position_age_s"] == 2.5
    assert (decision["certified"], decision["gap_s"], decision["rides"]) == (True, 0.0, 2)
    assert made.pairings[1].decision["unmatched_s"] == 3630.0


def test_class_seats_and_engagement_decide_who_is_a_candidate() -> None:
    rides = [ride_at("van", east(0), kind="van"), ride_at("six", east(0), seats=6), ride_at("one", east(0))]
    index = index_of(
        [
            fix_at("a-engaged", east(10)),
            fix_at("b-small", east(20)),
            fix_at("c-van", east(30), kind="van"),
            fix_at("d-large", east(4000), seats=6),
        ]
    )
    made = decided(waiting_of(rides, engaged=["a-engaged"]), index, market_with())
    assert pairs_of(made) == {"van": "c-van", "six": "d-large", "one": "b-small"}


def test_rides_that_get_nobody_say_why() -> None:
    rides = [
        ride_at("far", east(25_000)),
        ride_at("outbid", east(0)),
        ride_at("refused", east(0, 12_000)),
        ride_at("served", east(0), waited_s=60.0),
    ]
    index = index_of([fix_at("a", east(50)), fix_at("b", east(0, 12_000))])
    market = market_with()
    made = decided(waiting_of(rides, refused={"refused": ["b", "a"]}), index, market)
    assert pairs_of(made) == {"served": "a"}
    assert reasons_of(made) == {
        "far": Reason.NO_DRIVER_IN_REACH,
        "outbid": Reason.OUTBID,
        "refused": Reason.ALL_REFUSED,
    }
    counts = {each.ride_id: (each.candidates, each.refused) for each in made.unmatched}
    assert counts == {"far": (0, 0), "outbid": (1, 0), "refused": (0, 1)}


def test_who_has_waited_longer_is_served_first_where_drivers_are_scarce() -> None:
    rides = [ride_at("new", east(10)), ride_at("old", east(400), waited_s=300.0)]
    made = decided(waiting_of(rides), index_of([fix_at("a", east(0))]), market_with())
    assert pairs_of(made) == {"old": "a"}


def test_both_limits_of_a_pickup_hold() -> None:
    rides, index = [ride_at("r", east(0))], index_of([fix_at("a", east(2000))])
    assert pairs_of(decided(waiting_of(rides), index, market_with(max_pickup_m=1999.0))) == {}
    assert pairs_of(decided(waiting_of(rides), index, market_with(max_pickup_m=2001.0))) == {"r": "a"}
    by_time = market_with(speed_mps=10.0, detour_factor=1.0, max_pickup_s=199.0)
    assert pairs_of(decided(waiting_of(rides), index, by_time)) == {}


def test_refused_drivers_do_not_shorten_the_list() -> None:
    drivers = [fix_at(f"d{number}", east(10.0 * number)) for number in range(1, 9)]
    waiting = waiting_of([ride_at("r", east(0))], refused={"r": ["d1", "d2", "d3"]})
    graph = build(waiting, index_of(drivers), market_with(candidates_per_ride=2), NOW_MS)
    listed = [graph.driver_ids[driver] for driver in graph.candidates.driver.tolist()]
    assert {"d4", "d5"} <= set(listed)
    assert not {"d1", "d2", "d3"} & set(listed)
    assert graph.refused.tolist() == [3]


def test_a_driver_that_went_stale_during_the_solve_is_not_matched() -> None:
    index = index_of([fix_at("a", east(0)), fix_at("b", east(50), age_ms=20_000)])
    graph = build(waiting_of([ride_at("r1", east(0)), ride_at("r2", east(50))]), index, market_with(), NOW_MS)
    made = plan_of(graph, index, NOW_MS + 10_001)
    assert pairs_of(made) == {"r1": "a"}
    assert reasons_of(made) == {"r2": Reason.DRIVER_WENT_STALE}


def test_the_same_input_in_any_order_gives_the_same_plan() -> None:
    rng = random.Random(3)
    spots = [east(100.0 * (number % 4)) for number in range(12)]  # ties everywhere
    rides = [ride_at(f"r{number:02}", spots[number]) for number in range(12)]
    fixes = [fix_at(f"d{number:02}", spots[(5 * number) % 12]) for number in range(12)]
    expected = pairs_of(decided(waiting_of(rides), index_of(fixes), market_with()))
    assert len(expected) == 12
    for _ in range(4):
        rng.shuffle(rides)
        rng.shuffle(fixes)
        assert pairs_of(decided(waiting_of(rides), index_of(fixes), market_with())) == expected


def test_a_batch_without_drivers_or_rides_is_no_special_case() -> None:
    nobody = decided(waiting_of([ride_at("r", east(0))]), index_of([]), market_with())
    assert reasons_of(nobody) == {"r": Reason.NO_DRIVER_IN_REACH}
    assert nobody.certified
    empty = decided(waiting_of([]), index_of([fix_at("a", east(0))]), market_with())
    assert (empty.pairings, empty.unmatched, empty.cost_s) == ([], [], 0.0)


class InProcess:
    """The solver without its child; fails from the n-th solve on, if told so."""

    def __init__(self, fails_from: int | None = None) -> None:
        self.solved: list[CandidateGraph] = []
        self._fails_from = fails_from

    async def solve(self, graph: CandidateGraph, timeout_s: float) -> Assignment:
        if self._fails_from is not None and len(self.solved) >= self._fails_from:
            raise SolverFailed("told to fail")
        assignment = solve(graph)
        verify(graph, assignment, tolerance_s=0.0)
        self.solved.append(graph)
        return assignment


def scattered(seed: int, n: int, m: int) -> tuple[Waiting, DriverIndex]:
    """Demand and supply in different hot spots, so that short lists are not enough."""
    rng = np.random.default_rng(seed)
    rides = [
        ride_at(f"r{i:03}", east(*(rng.normal([0, 0], 800.0))), waited_s=float(rng.integers(0, 90))) for i in range(n)
    ]
    fixes = [fix_at(f"d{j:03}", east(*(rng.normal([2500, 0], 800.0)))) for j in range(m)]
    refused = {f"r{i:03}": [f"d{j:03}" for j in rng.choice(m, 3, replace=False)] for i in range(0, n, 4)}
    return waiting_of(rides, engaged=["d000"], refused=refused), index_of(fixes)


def dense_optimum(waiting: Waiting, index: DriverIndex, market: Market) -> float:
    """Over all drivers of the index, by the dense solver."""
    rides = sorted(waiting.rides, key=lambda ride: ride.ride_id)
    everyone = index.nearest(CENTRE, 10_000, now_ms=NOW_MS)
    matrix = np.full((len(rides), len(everyone) + len(rides)), 1e9)
    for row, ride in enumerate(rides):
        matrix[row, len(everyone) + row] = market.unmatched_s((NOW_MS - ride.requested_at_ms) / 1000.0)
        for column, driver in enumerate(everyone):
            distance = between_m(ride.pickup, LatLng(driver.lat, driver.lon))
            refused = driver.driver_id in waiting.refused.get(ride.ride_id, ())
            if driver.driver_id not in waiting.engaged and not refused and distance <= market.reach_m:
                matrix[row, column] = market.pickup_s(distance)
    return float(matrix[linear_sum_assignment(matrix)].sum())


@pytest.mark.parametrize("completes_at_once", [True, False])
@pytest.mark.parametrize(("n", "m", "seed"), [(30, 40, 1), (40, 30, 2), (35, 35, 3), (20, 90, 4)])
async def test_widening_ends_at_the_optimum_over_all_drivers(
    n: int, m: int, seed: int, completes_at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not completes_at_once:
        monkeypatch.setattr("matcher.batch.COMPLETE_PAIRS_MAX", 0)
    waiting, index = scattered(seed, n, m)
    market = market_with(candidates_per_ride=2, solve_s_max=30.0)
    solver = InProcess()
    answer = await decide(demand_of(waiting, market), index, lambda: NOW_MS, solver)
    assert gap_s(answer.graph, answer.assignment) == 0.0
    assert answer.assignment.cost == pytest.approx(dense_optimum(waiting, index, market), abs=0.01)
    assert answer.rounds == len(solver.solved) > 1


def test_the_stated_gap_bounds_the_optimum_from_below_in_every_round() -> None:
    waiting, index = scattered(7, 30, 40)
    market = market_with(candidates_per_ride=1)
    demand = demand_of(waiting, market)
    optimum = dense_optimum(waiting, index, market)
    graph = build(waiting, index, market, NOW_MS)
    gaps = []
    while True:
        for assignment in (greedy(graph.candidates), solve(graph.candidates)):
            gap = gap_s(graph, assignment)
            assert assignment.cost - gap <= optimum + 0.01
            assert optimum <= assignment.cost + 0.01
        gaps.append(gap)
        rides = unproven(graph, assignment)
        if not rides.size:
            break
        longer = [look(demand, search, index, NOW_MS) for search in widening(graph, rides, 0)]
        graph = assemble(demand, (*graph.founds, *longer))
    assert gaps[0] > 0.0
    assert gaps[-1] == 0.0


async def test_a_solver_that_fails_costs_optimality_not_the_batch() -> None:
    waiting, index = scattered(5, 20, 40)
    market = market_with(candidates_per_ride=2, solve_s_max=30.0)
    demand = demand_of(waiting, market)
    at_once = await decide(demand, index, lambda: NOW_MS, InProcess(fails_from=0))
    later = await decide(demand, index, lambda: NOW_MS, InProcess(fails_from=1))
    assert (at_once.rounds, later.rounds) == (0, 1)
    for answer in (at_once, later):
        made = plan_of(answer.graph, index, assignment=answer.assignment)
        assert len(made.pairings) > 0
        assert not made.certified
        assert made.cost_s - made.gap_s <= dense_optimum(waiting, index, market) + 0.01


async def test_no_round_begins_when_the_time_is_up() -> None:
    waiting, index = scattered(5, 20, 40)
    market = market_with(candidates_per_ride=1, solve_s_max=0.1)

    class Slow(InProcess):
        async def solve(self, graph: CandidateGraph, timeout_s: float) -> Assignment:
            await asyncio.sleep(0.09)
            return await super().solve(graph, timeout_s)

    answer = await decide(demand_of(waiting, market), index, lambda: NOW_MS, Slow())
    assert answer.rounds == 1
    assert gap_s(answer.graph, answer.assignment) > 0.0


def test_later_answers_replace_earlier_ones_ride_by_ride() -> None:
    waiting, index = scattered(6, 10, 40)
    market = market_with(candidates_per_ride=2)
    demand = demand_of(waiting, market)
    graph = build(waiting, index, market, NOW_MS)
    rides = np.array([0, 3], dtype=np.int32)
    longer = [look(demand, search, index, NOW_MS) for search in widening(graph, rides, 0)]
    wider = assemble(demand, (*graph.founds, *longer))
    assert (wider.k[rides] >= 4).all()
    others = np.setdiff1d(np.arange(10), rides)
    assert wider.listed[others].tolist() == graph.listed[others].tolist()
    assert (wider.listed[rides] > graph.listed[rides]).all()
    assert (wider.beyond_s[rides] >= graph.beyond_s[rides]).all()
    verify(wider.candidates, solve(wider.candidates))
