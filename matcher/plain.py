"""What is decided when the solver fails: each ride in turn takes the cheapest driver left. numpy alone.

Slow and plain on purpose: it stands in when the compiled solver's process cannot be had, so it shares no
code with it. The rides that have the dearest price of being left go first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from geo.distance import distance_m
from matcher.problem import COST_MAX, UNMATCHED, Floats, Ints, Pairs, Problem, Solution, on_grid


def greedy(problem: Problem, s_per_m: float, *, is_over: Callable[[], bool]) -> Solution:
    """A feasible plan with a valid but loose bound; ways take `s_per_m` seconds a metre of straight line.

    Rides that `is_over` cuts off are left. `pairs` are the chosen ones and each ride's cheapest.
    """
    n, m = problem.n_rides, problem.n_drivers
    driver_of, paid_s = np.full(n, UNMATCHED, np.int32), problem.price_s.copy()
    free, rows, least_s = np.ones(m, np.bool_), [], _least_s(problem)
    for ride in np.argsort(-problem.price_s, kind="stable").tolist() if m else ():
        cost_s, way_s = _costs(problem, ride, s_per_m)
        cheapest = int(cost_s.argmin())
        left_s = np.where(free, cost_s, np.inf)
        driver = int(left_s.argmin())
        least_s[ride] = min(problem.price_s[ride], float(cost_s[cheapest]))
        if left_s[driver] < problem.price_s[ride]:
            driver_of[ride], paid_s[ride], free[driver] = driver, left_s[driver], False
            rows.append((ride, driver, way_s[driver], cost_s[driver]))
        if np.isfinite(cost_s[cheapest]) and driver_of[ride] != cheapest:
            rows.append((ride, cheapest, way_s[cheapest], cost_s[cheapest]))
        if is_over():
            break
    return _solution(problem, driver_of, paid_s, rows, least_s)


def _least_s(problem: Problem) -> Floats:
    """What each ride costs at least, wherever the drivers are: all that is known of rides not looked at."""
    driver_s = np.full(problem.extra_s.shape[1], np.inf)
    np.minimum.at(driver_s, problem.driver_kind, problem.driver_s)
    kind_s = (problem.extra_s + driver_s).min(axis=1, initial=np.inf)
    least_s: Floats = np.minimum(problem.price_s, kind_s[problem.ride_kind])
    return least_s


def _costs(problem: Problem, ride: int, s_per_m: float) -> tuple[Floats, Floats]:
    """Costs and ways of one ride with every driver; infinite where the pair is not allowed."""
    metres = distance_m(problem.ride_lat[ride], problem.ride_lon[ride], problem.driver_lat, problem.driver_lon)
    way_s = on_grid(metres * s_per_m)
    allowed = (metres <= problem.reach_m) & (way_s <= problem.reach_s)
    allowed[problem.barred_driver[problem.barred_ride == ride]] = False
    extra_s = problem.extra_s[problem.ride_kind[ride]][problem.driver_kind]
    return np.where(allowed, way_s + extra_s + problem.driver_s, np.inf), way_s


def _solution(
    problem: Problem, driver_of: Ints, paid_s: Floats, rows: list[tuple[int, int, float, float]], least_s: Floats
) -> Solution:
    rows.sort()
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4)
    pairs = Pairs(columns[:, 0].astype(np.int32), columns[:, 1].astype(np.int32), columns[:, 2], columns[:, 3])
    cost_s = math.fsum(paid_s)
    # Road times may be shorter than these ways: where they count, nothing is claimed.
    bound_s = -COST_MAX if problem.has_ways else min(math.fsum(least_s), cost_s)
    return Solution(driver_of, cost_s, bound_s, problem.price_s, np.zeros(problem.n_drivers), pairs, driver_of, cost_s)
