"""The assignment against oracles too slow to ship: all permutations, and the dense solver."""

from __future__ import annotations

from itertools import permutations
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from matcher.assignment import solve
from matcher.graph import CandidateGraph, verify

# Few distinct values: ties and zeros are the rule, not the exception. A multiple of 1/1024, as costs are.
tied_costs = st.integers(min_value=0, max_value=4).map(float)
any_costs = st.integers(min_value=-(10**6), max_value=4 * 10**6).map(lambda steps: steps / 1024.0)


@st.composite
def graphs(draw: st.DrawFn, most: int) -> CandidateGraph:
    n, m = draw(st.integers(0, most)), draw(st.integers(0, most))
    costs = draw(st.sampled_from([tied_costs, any_costs]))
    cells = [(ride, driver) for ride in range(n) for driver in range(m)]
    chosen = draw(st.permutations(cells)) if cells else []
    chosen = chosen[: draw(st.integers(0, len(chosen)))]
    cost = draw(st.lists(costs, min_size=len(chosen), max_size=len(chosen)))
    unmatched = draw(st.lists(costs.map(abs), min_size=n, max_size=n))
    ride, driver = (np.array([pair[side] for pair in chosen], dtype=np.int32) for side in (0, 1))
    return CandidateGraph(n, m, ride, driver, np.array(cost, dtype=np.float64), np.array(unmatched, dtype=np.float64))


def dense(graph: CandidateGraph) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Drivers, then one column a ride for leaving it; what is no pair costs more than everything else."""
    n, m = graph.n_rides, graph.n_drivers
    matrix = np.full((n, m + n), 1e12)
    matrix[graph.ride, graph.driver] = graph.cost
    matrix[np.arange(n), m + np.arange(n)] = graph.unmatched
    return matrix


def least_of_all(graph: CandidateGraph) -> float:
    matrix, n = dense(graph), graph.n_rides
    return min(
        sum(float(matrix[ride, column]) for ride, column in enumerate(row))
        for row in permutations(range(matrix.shape[1]), n)
    )


@settings(max_examples=60, deadline=None)
@given(graphs(most=4))
def test_no_permutation_is_cheaper(graph: CandidateGraph) -> None:
    assignment = solve(graph)
    verify(graph, assignment, tolerance_s=0.0)
    assert assignment.cost == least_of_all(graph)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_permutation_of_seven_by_seven_is_cheaper(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 4, (7, 7)).astype(np.float64) if tied else rng.integers(0, 10**6, (7, 7)) / 1024.0
    there = rng.random((7, 7)) < 0.7
    ride, driver = (side.astype(np.int32) for side in np.nonzero(there))
    price = 3.0 if tied else 700.0
    graph = CandidateGraph(7, 7, ride, driver, cost[there], np.full(7, price))
    assignment = solve(graph)
    verify(graph, assignment, tolerance_s=0.0)
    # A ride that is left pays the same wherever it stands, so seven columns and "left" for what is no pair suffice.
    filled = np.where(there, np.minimum(cost, price), price)
    orders = np.array(list(permutations(range(7))))
    assert assignment.cost == filled[np.arange(7), orders].sum(axis=1).min()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 86_400.0, 1e8]))
def test_costs_may_be_in_any_unit(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 12)), int(rng.integers(1, 12))
    there = rng.random((n, m)) < 0.6
    ride, driver = (side.astype(np.int32) for side in np.nonzero(there))
    graph = CandidateGraph(n, m, ride, driver, rng.normal(1.0, 1.0, ride.size) * unit, rng.random(n) * 3.0 * unit)
    assignment = solve(graph)
    verify(graph, assignment, tolerance_s=1e-12 * unit)
    matrix = dense(graph)
    matrix[matrix == 1e12] = 1e3 * unit
    assert abs(assignment.cost - matrix[linear_sum_assignment(matrix)].sum()) <= 1e-9 * unit * n


@settings(max_examples=60, deadline=None)
@given(graphs(most=14))
def test_it_agrees_with_the_dense_solver(graph: CandidateGraph) -> None:
    assignment = solve(graph)
    verify(graph, assignment, tolerance_s=0.0)
    matrix = dense(graph)
    assert assignment.cost == matrix[linear_sum_assignment(matrix)].sum()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(40, 90), (90, 40), (60, 60)]), st.integers(1, 20))
def test_it_agrees_with_the_dense_solver_on_larger_sparse_graphs(seed: int, shape: tuple[int, int], k: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = shape
    there = rng.random((n, m)) < k / m
    ride, driver = (side.astype(np.int32) for side in np.nonzero(there))
    graph = CandidateGraph(n, m, ride, driver, rng.random(ride.size) * 1800.0, 1900.0 + rng.random(n) * 600.0)
    assignment = solve(graph)
    verify(graph, assignment)
    matrix = dense(graph)
    assert abs(assignment.cost - matrix[linear_sum_assignment(matrix)].sum()) < 1e-6


@settings(max_examples=30, deadline=None)
@given(graphs(most=10), st.randoms(use_true_random=False))
def test_the_same_pairs_in_any_order_give_the_same_plan(graph: CandidateGraph, random: Random) -> None:
    order = list(range(graph.ride.size))
    random.shuffle(order)
    shuffled = CandidateGraph(
        graph.n_rides, graph.n_drivers, graph.ride[order], graph.driver[order], graph.cost[order], graph.unmatched
    )
    assert solve(shuffled).driver_of.tolist() == solve(graph).driver_of.tolist()


@settings(max_examples=40, deadline=None)
@given(graphs(most=10))
def test_greedy_is_what_a_plain_loop_over_sorted_pairs_gives_and_never_better(graph: CandidateGraph) -> None:
    best = solve(graph)
    served: dict[int, int] = {}
    for cost, ride, driver in sorted(zip(graph.cost.tolist(), graph.ride.tolist(), graph.driver.tolist(), strict=True)):
        if ride not in served and driver not in served.values() and cost < graph.unmatched[ride]:
            served[ride] = driver
    assert best.greedy_of.tolist() == [served.get(ride, -1) for ride in range(graph.n_rides)]
    assert best.greedy_cost >= best.cost
