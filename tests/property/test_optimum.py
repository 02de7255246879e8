"""The optimum of a problem against the dense solver, with its certificate checked over all pairs (P8)."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matcher import certificate, plain
from matcher.optimum import solve
from matcher.problem import UNMATCHED, Floats, Ints, Problem, Solution, on_grid
from tests.certificate import STEP_S, NoProof, cost_matrix, dense_optimum_s, prove
from tests.problems import around, drawn, problem

seeds = st.integers(0, 2**32 - 1)


def check_all(given_problem: Problem, solution: Solution) -> None:
    prove(given_problem, solution)
    cost = cost_matrix(given_problem)
    matched = int((solution.driver_of != UNMATCHED).sum())
    assert abs(dense_optimum_s(cost, given_problem.price_s) - solution.cost_s) <= STEP_S * (matched + 1)


@settings(max_examples=150, deadline=None)
@given(seeds, st.integers(0, 40), st.integers(0, 40))
def test_small_problems_of_every_kind_are_solved_to_the_proven_optimum(seed: int, n: int, m: int) -> None:
    given_problem = drawn(seed, n, m)
    solution = solve(given_problem, near=3, compare=True)
    check_all(given_problem, solution)
    assert solution.greedy_s is not None
    assert solution.greedy_s >= solution.cost_s


def reaching(seed: int, n: int, m: int, kinds: int) -> Problem:
    """Rides of so many kinds in one place, which differ in how far they reach, and in little else."""
    rng = np.random.default_rng(seed)
    rides, drivers = (around(rng, count, lat=40.7, lon=-74.0, spread=0.02, spots=3) for count in (n, m))
    return problem(
        rides,
        drivers,
        price_s=2000.0 + rng.random(n) * 100.0,
        extra_s=on_grid(rng.choice([0.0, 60.0], (kinds, 2))),
        ride_kind=rng.integers(0, kinds, n).astype(np.int32),
        driver_kind=rng.integers(0, 2, m).astype(np.int32),
        reach_m=rng.uniform(100.0, 6000.0, kinds),
        reach_s=rng.uniform(20.0, 1200.0, kinds),
    )


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(2, 9))
def test_rides_that_reach_further_than_others_are_solved_to_the_proven_optimum(
    seed: int, n: int, m: int, kinds: int
) -> None:
    given_problem = reaching(seed, n, m, kinds)
    solution = solve(given_problem, near=3, compare=True)
    check_all(given_problem, solution)
    certificate.prove(given_problem, solution)
    assert solution.greedy_s is not None
    assert solution.greedy_s >= solution.cost_s
    stood_in = plain.greedy(given_problem, given_problem.s_per_m, is_over=lambda: False)
    assert certificate.cost_of(given_problem, stood_in.driver_of) >= solution.cost_s - STEP_S * (n + 1)


@settings(max_examples=6, deadline=None)
@given(seeds, st.sampled_from([(700, 900), (1200, 600), (150, 1500), (1500, 150)]))
def test_rides_that_reach_further_are_too_where_a_sample_is_solved_first(seed: int, shape: tuple[int, int]) -> None:
    given_problem = reaching(seed, *shape, kinds=9)
    check_all(given_problem, solve(given_problem))


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([(700, 900), (1200, 600), (600, 600), (150, 1500), (1500, 150)]))
def test_problems_that_are_sampled_first_are_too(seed: int, shape: tuple[int, int]) -> None:
    given_problem = drawn(seed, *shape)
    check_all(given_problem, solve(given_problem))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 25), st.integers(1, 25))
def test_greedy_is_the_plain_loop_over_all_pairs(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    places = [around(rng, count, lat=40.7, lon=-74.0, spread=0.02, spots=3) for count in (n, m)]
    given_problem = problem(places[0], places[1], price_s=400.0 + rng.random(n) * 50.0)
    solution = solve(given_problem, compare=True)
    cost = cost_matrix(given_problem)
    served: dict[int, int] = {}
    for _, ride, driver in sorted((cost[i, j], i, j) for i in range(n) for j in range(m)):
        if cost[ride, driver] < given_problem.price_s[ride] and ride not in served and driver not in served.values():
            served[ride] = driver
    expected_s = sum(cost[i, served[i]] if i in served else given_problem.price_s[i] for i in range(n))
    assert solution.greedy_s is not None
    assert abs(solution.greedy_s - expected_s) <= STEP_S * n


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 12), st.integers(1, 12))
def test_what_an_alternative_would_cost_the_city_is_the_optimum_with_it_forced(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    places = [around(rng, count, lat=40.7, lon=-74.0, spread=0.02, spots=3) for count in (n, m)]
    given_problem = problem(places[0], places[1], price_s=300.0 + rng.random(n) * 100.0)
    solution = solve(given_problem, near=12)
    pairs, price_s = solution.pairs, given_problem.price_s
    assert solution.cheapest is not None
    assert solution.city_more_s is not None
    cost = np.full((n, m), np.inf)
    cost[pairs.ride, pairs.driver] = pairs.cost_s
    for ride, column in zip(*np.nonzero(np.isfinite(solution.city_more_s)), strict=True):
        pair = solution.cheapest[ride, column]
        driver = pairs.driver[pair]
        others, free = np.delete(np.arange(n), ride), np.delete(np.arange(m), driver)
        rest_s = dense_optimum_s(cost[np.ix_(others, free)], price_s[others]) if len(others) else 0.0
        assert cost[ride, driver] + rest_s - solution.cost_s == solution.city_more_s[ride, column]


def crooked(given_problem: Problem, seed: int) -> tuple[Floats, Problem]:
    """Road times from 1 to 3 times the straight line, some without a way."""
    rng = np.random.default_rng(seed)
    metres = np.where(np.isfinite(cost := cost_matrix(dataclasses.replace(given_problem, has_ways=False))), cost, 0.0)
    times: Floats = (metres + 30.0) * rng.uniform(1.0, 3.0, metres.shape)
    times[rng.random(times.shape) < 0.05] = np.inf
    return times, dataclasses.replace(given_problem, has_ways=True)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 60), st.integers(1, 60))
def test_road_times_are_priced_until_no_pair_could_be_better(seed: int, n: int, m: int) -> None:
    times, given_problem = crooked(drawn(seed, n, m), seed)
    asked: list[int] = []

    def ways(ride: Ints, driver: Ints) -> Floats:
        asked.append(len(ride))
        return times[ride, driver]

    solution = solve(given_problem, ways)
    prove(given_problem, solution, ways)
    assert sum(asked[:-1]) <= n * m or len(asked) == 1
    cost = cost_matrix(given_problem, ways)
    assert abs(dense_optimum_s(cost, given_problem.price_s) - solution.cost_s) <= STEP_S * (n + 1)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 60), st.integers(1, 60))
def test_a_search_cut_short_is_feasible_and_its_bound_holds(seed: int, n: int, m: int) -> None:
    given_problem = drawn(seed, n, m)
    cut, whole = solve(given_problem, is_over=lambda: True), solve(given_problem)
    assert cut.bound_s <= whole.cost_s <= cut.cost_s
    assert cut.certified == (cut.gap_s == 0.0)


@settings(max_examples=80, deadline=None)
@given(seeds, st.integers(1, 100), st.integers(1, 100), st.integers(1, 4), st.sampled_from([50, 500, 10**6]))
def test_its_bound_holds_after_however_many_rounds_and_road_times(
    seed: int, n: int, m: int, rounds: int, ways_max: int
) -> None:
    times, by_road = crooked(drawn(seed, n, m), seed)

    def ways(ride: Ints, driver: Ints) -> Floats:
        return times[ride, driver]

    for given_problem in (by_road, dataclasses.replace(by_road, has_ways=False)):
        looks = itertools.count(1)
        cut = solve(given_problem, ways, is_over=lambda looks=looks: next(looks) >= rounds, ways_max=ways_max)  # type: ignore[misc]
        whole = solve(given_problem, ways)
        assert cut.bound_s <= whole.cost_s <= cut.cost_s
        assert not cut.certified or cut.cost_s == whole.cost_s


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 80), st.integers(1, 80))
def test_the_same_problem_gives_the_same_plan(seed: int, n: int, m: int) -> None:
    first, second = solve(drawn(seed, n, m)), solve(drawn(seed, n, m))
    assert first.driver_of.tolist() == second.driver_of.tolist()


def test_everybody_on_one_spot_is_no_special_case() -> None:
    spot = (np.full(300, 40.75), np.full(300, -73.98))
    given_problem = problem(spot, (spot[0][:200], spot[1][:200]), price_s=on_grid(np.linspace(10.0, 20.0, 300)))
    solution = solve(given_problem)
    check_all(given_problem, solution)
    assert set(np.flatnonzero(solution.driver_of == UNMATCHED)) == set(range(100))  # the cheapest to leave


def test_a_wrong_plan_is_refused_by_the_certificate() -> None:
    rng = np.random.default_rng(5)
    rides, drivers = (around(rng, count, lat=40.7, lon=-74.0, spread=0.03, spots=3) for count in (30, 20))
    given_problem = problem(rides, drivers)
    good = solve(given_problem)
    prove(given_problem, good)
    matched = np.flatnonzero(good.driver_of != UNMATCHED)
    swapped, doubled, left = good.driver_of.copy(), good.driver_of.copy(), good.driver_of.copy()
    swapped[matched[:2]] = swapped[matched[1::-1]]
    doubled[matched[0]] = doubled[matched[1]]
    left[matched[0]] = UNMATCHED
    for wrong in (swapped, doubled, left):
        with pytest.raises(NoProof):
            prove(given_problem, dataclasses.replace(good, driver_of=wrong))
    with pytest.raises(NoProof, match="could improve"):
        prove(given_problem, dataclasses.replace(good, u=good.u + 1.0))


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 60), st.integers(1, 60), st.integers(0, 6))
def test_a_plan_that_is_cut_short_is_no_dearer_than_greedy(seed: int, n: int, m: int, looks: int) -> None:
    left = iter(range(looks))
    cut = solve(drawn(seed, n, m), is_over=lambda: next(left, None) is None, near=3)
    assert cut.greedy_s is None or cut.cost_s <= cut.greedy_s
    assert cut.bound_s <= cut.cost_s
    paid_s = drawn(seed, n, m).price_s.copy()
    taken = cut.pairs.driver == cut.driver_of[cut.pairs.ride]
    paid_s[cut.pairs.ride[taken]] = cut.pairs.cost_s[taken]
    assert paid_s.sum() == cut.cost_s


@pytest.mark.parametrize("shape", [(1500, 4000), (4000, 1500)])
def test_a_stadium_that_empties_is_solved_in_a_few_rounds(shape: tuple[int, int]) -> None:
    n, m = shape
    rng = np.random.default_rng(9)
    rides, drivers = (around(rng, count, lat=40.7, lon=-74.0, spread=0.03, spots=4) for count in shape)
    for places in (rides, drivers) if n < m else (drivers, rides):
        places[0][: n // 2], places[1][: n // 2] = 40.7, -74.0
        break
    given_problem = problem(rides, drivers, price_s=3600.0 + rng.random(n) * 60.0)
    solution = solve(given_problem)
    check_all(given_problem, solution)
    assert solution.numbers["rounds"] <= 40


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 40), st.integers(2, 40), st.integers(1, 300))
def test_a_limit_of_road_times_is_kept_and_bounds_nothing_away(seed: int, n: int, m: int, most: int) -> None:
    times, given_problem = crooked(drawn(seed, n, m), seed)
    asked: list[int] = []

    def ways(ride: Ints, driver: Ints) -> Floats:
        asked.append(len(ride))
        return times[ride, driver]

    limited = solve(given_problem, ways, ways_max=most)
    assert sum(asked) <= most
    whole = solve(given_problem, ways)
    assert limited.bound_s <= whole.cost_s <= limited.cost_s
    assert not limited.certified or limited.cost_s == whole.cost_s
