"""The greedy that stands in for the solver: feasible, in its order, and never claiming more than is proven."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matcher import optimum
from matcher.plain import greedy, order_of
from matcher.problem import UNMATCHED, Problem, Solution, on_grid
from tests.certificate import STEP_S, cost_matrix
from tests.problems import drawn, problem

seeds = st.integers(0, 2**32 - 1)


def never() -> bool:
    return False


def on_a_line(rides: list[float], drivers: list[float], **fields: object) -> Problem:
    """Places by their metres east of one on the equator, where a metre takes a second."""
    sides = [(np.zeros(len(each)), np.array(each) / 111_195.08) for each in (rides, drivers)]
    return problem(sides[0], sides[1], s_per_m=1.0, **fields)  # type: ignore[arg-type]


def check_feasible(
    given_problem: Problem, solution: Solution, cost: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
) -> None:
    matched = np.flatnonzero(solution.driver_of != UNMATCHED)
    chosen = solution.driver_of[matched]
    assert np.unique(chosen).size == chosen.size
    paid = given_problem.price_s.copy()
    paid[matched] = cost[matched, chosen]
    assert paid.sum() == solution.cost_s
    pairs = solution.pairs
    assert list(zip(pairs.ride, pairs.driver, strict=True)) == sorted(set(zip(pairs.ride, pairs.driver, strict=True)))
    assert cost[pairs.ride, pairs.driver].tolist() == pairs.cost_s.tolist()
    assert set(zip(matched.tolist(), chosen.tolist(), strict=True)) <= set(
        zip(pairs.ride.tolist(), pairs.driver.tolist(), strict=True)
    )


@settings(max_examples=80, deadline=None)
@given(seeds, st.integers(0, 25), st.integers(0, 25))
def test_each_ride_in_turn_takes_the_cheapest_driver_left(seed: int, n: int, m: int) -> None:
    given_problem = drawn(seed, n, m)
    cost = cost_matrix(given_problem)
    solution = greedy(given_problem, given_problem.s_per_m, is_over=never)
    check_feasible(given_problem, solution, cost)
    free, expected = set(range(m)), np.full(n, UNMATCHED)
    for ride in sorted(range(n), key=lambda ride: (-given_problem.price_s[ride], ride)):
        best = min(free, key=lambda driver: (cost[ride, driver], driver), default=None)
        if best is not None and cost[ride, best] < given_problem.price_s[ride]:
            expected[ride] = best
            free.remove(best)
    assert solution.driver_of.tolist() == expected.tolist()


@settings(max_examples=80, deadline=None)
@given(seeds, st.integers(0, 25), st.integers(0, 25), st.integers(0, 25))
def test_its_bound_holds_wherever_it_is_cut_off(seed: int, n: int, m: int, looks: int) -> None:
    """P8: it is never called certified unless it is the optimum."""
    given_problem, looked = drawn(seed, n, m), itertools.count(1)
    solution = greedy(given_problem, given_problem.s_per_m, is_over=lambda: next(looked) >= looks)
    check_feasible(given_problem, solution, cost_matrix(given_problem))
    best_s = optimum.solve(given_problem).cost_s
    assert solution.bound_s <= best_s + STEP_S * (n + 1)
    assert solution.cost_s >= best_s - STEP_S * (n + 1)
    assert not solution.certified or solution.cost_s <= best_s + STEP_S * (n + 1)
    assert np.all(solution.u[:, None] + solution.v[None] <= cost_matrix(given_problem))
    assert np.all(solution.u <= given_problem.price_s)


def test_rides_that_are_cut_off_are_left_and_not_taken_for_hopeless() -> None:
    given_problem = on_a_line([0.0, 500.0], [0.0, 500.0])
    solution = greedy(given_problem, 1.0, is_over=lambda: True)
    assert solution.driver_of.tolist() == [0, UNMATCHED]
    assert (solution.certified, solution.bound_s) == (False, 0.0)
    assert solution.numbers["looked"] == 1


def test_a_ride_that_is_dearer_to_leave_goes_first() -> None:
    given_problem = on_a_line([0.0, 100.0], [10.0], price_s=np.array([1000.0, 1100.0]))
    assert greedy(given_problem, 1.0, is_over=never).driver_of.tolist() == [UNMATCHED, 0]


def test_everyone_near_is_called_certified_for_it_is() -> None:
    given_problem = on_a_line([0.0, 900.0], [0.0, 900.0])
    solution = greedy(given_problem, 1.0, is_over=never)
    assert (solution.driver_of.tolist(), solution.certified) == ([0, 1], True)


def test_the_rival_cheapest_pair_of_a_ride_is_told_beside_the_chosen_one() -> None:
    given_problem = on_a_line([0.0, 1.0], [0.0, 400.0], price_s=np.array([1000.0, 900.0]))
    solution = greedy(given_problem, 1.0, is_over=never)
    assert solution.driver_of.tolist() == [0, 1]
    assert list(zip(solution.pairs.ride, solution.pairs.driver, strict=True)) == [(0, 0), (1, 0), (1, 1)]


@pytest.mark.parametrize("n", [0, 3])
def test_where_nobody_is_idle_everything_is_left_and_that_is_proven(n: int) -> None:
    solution = greedy(on_a_line([0.0] * n, []), 1.0, is_over=never)
    assert solution.driver_of.tolist() == [UNMATCHED] * n
    assert (solution.certified, len(solution.pairs)) == (True, 0)


def test_where_road_times_count_nothing_is_claimed() -> None:
    given_problem = dataclasses.replace(on_a_line([0.0], [200.0]), has_ways=True, s_per_m=1 / 40.0)
    solution = greedy(given_problem, 0.5, is_over=never)
    assert solution.pairs.way_s.tolist() == [on_grid(100.0)]
    assert (solution.driver_of.tolist(), solution.certified) == ([0], False)
    assert solution.bound_s == 0.0  # what is claimed is true by any road


def test_where_road_times_count_a_driver_at_the_very_place_proves_nothing_either() -> None:
    given_problem = dataclasses.replace(on_a_line([0.0], [0.0]), has_ways=True, s_per_m=1 / 40.0)
    solution = greedy(given_problem, 0.5, is_over=never)
    assert (solution.driver_of.tolist(), solution.cost_s, solution.certified) == ([0], 0.0, False)


@pytest.mark.parametrize("seed", range(4))
def test_a_crowd_of_drivers_is_searched_as_if_each_were_looked_at(seed: int) -> None:
    given_problem = drawn(seed, 40, 900)
    cost, free = cost_matrix(given_problem), np.ones(900, np.bool_)
    solution = greedy(given_problem, given_problem.s_per_m, is_over=never)
    for ride in order_of(given_problem).tolist():
        left_s = np.where(free, cost[ride], np.inf)
        best = int(left_s.argmin())
        expected = best if left_s[best] < given_problem.price_s[ride] else UNMATCHED
        assert solution.driver_of[ride] == expected
        free[best] &= expected == UNMATCHED
