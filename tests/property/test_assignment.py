"""The assignment against oracles too slow to ship: all permutations, and the dense solver."""

from __future__ import annotations

from itertools import permutations
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from matcher.assignment import CandidateGraph, greedy, solve, verify

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
    unmatched = draw(st.lists(costs, min_size=n, max_size=n))
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


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_permutation_of_six_by_six_is_cheaper(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 4, (6, 6)).astype(np.float64) if tied else rng.integers(0, 10**6, (6, 6)) / 1024.0
    there = rng.random((6, 6)) < 0.7
    ride, driver = (side.astype(np.int32) for side in np.nonzero(there))
    graph = CandidateGraph(6, 6, ride, driver, cost[there], np.full(6, 2000.0))
    assignment = solve(graph)
    verify(graph, assignment, tolerance_s=0.0)
    # A ride that is left pays 2000 s wherever it stands, so six columns and "left" for what is no pair suffice.
    filled = np.where(there, np.minimum(cost, 2000.0), 2000.0)
    best = min(float(filled[np.arange(6), list(order)].sum()) for order in permutations(range(6)))
    assert assignment.cost == best


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
def test_greedy_is_feasible_never_better_and_bounded_from_below(graph: CandidateGraph) -> None:
    best, quick = solve(graph), greedy(graph)
    assert quick.cost >= best.cost
    assert quick.lower_bound <= best.cost
    assert best.greedy_cost == quick.cost
