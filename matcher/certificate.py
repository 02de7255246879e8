"""A problem's plan and its proof, checked by plain means. numpy alone.

Every pair is priced by brute force, some rides at a time, its straight line measured by another formula (geo.distance)
than the search's; nothing of the solver is used. The two formulas may round a way to neighbouring steps of 2**-10 s,
which is all that is allowed to differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from geo.distance import distance_m
from matcher.graph import NoCertificate
from matcher.problem import STEPS_PER_S, UNMATCHED, Floats, Ints, Problem, Solution, WaysOf, on_grid

STEP_S = 1.0 / STEPS_PER_S
#: Pairs that are priced at a time: a few numbers of eight bytes each.
PAIRS_AT_ONCE = 500_000


@dataclass(frozen=True, slots=True)
class Priced:
    """Some rides with all drivers: seconds of the ways and of the pairs, (rides, drivers); infinite: not allowed."""

    rides: Ints
    way_s: Floats
    cost_s: Floats


def priced(problem: Problem, rides: Ints, ways: WaysOf | None = None) -> Priced:
    """What these rides cost with everybody; `ways` prices the pairs where the problem has road times."""
    everybody = np.arange(problem.n_drivers, dtype=np.int32)
    way_s, cost_s = _costs(problem, rides[:, None], everybody[None], ways)
    row_of = np.full(problem.n_rides, -1, np.int64)
    row_of[rides] = np.arange(len(rides))
    barred = row_of[problem.barred_ride]
    cost_s[barred[barred >= 0], problem.barred_driver[barred >= 0]] = np.inf
    return Priced(rides, way_s, cost_s)


def _costs(problem: Problem, ride: Ints, driver: Ints, ways: WaysOf | None) -> tuple[Floats, Floats]:
    """Seconds of the ways and of the pairs of rides and drivers that broadcast; infinite out of reach."""
    metres = distance_m(
        problem.ride_lat[ride], problem.ride_lon[ride], problem.driver_lat[driver], problem.driver_lon[driver]
    )
    way_s: Floats = on_grid(metres * problem.s_per_m)
    if problem.has_ways:
        assert ways is not None
        rides, drivers = np.broadcast_arrays(ride, driver)
        way_s = np.maximum(on_grid(ways(rides.ravel(), drivers.ravel()).reshape(metres.shape)), way_s)
    kind = problem.ride_kind[ride]
    is_near = (metres <= problem.reach_m[kind]) & (way_s <= problem.reach_s[kind])
    extra_s = problem.extra_s[kind, problem.driver_kind[driver]]
    return way_s, np.where(is_near, way_s + extra_s + problem.driver_s[driver], np.inf)


def cost_of(problem: Problem, driver_of: Ints, ways: WaysOf | None = None) -> float:
    """What a plan costs. Raises NoCertificate where it is none: names nobody, a driver twice, a pair not allowed."""
    ride = np.flatnonzero(driver_of != UNMATCHED).astype(np.int32)
    driver = driver_of[ride]
    if driver_of.shape != (problem.n_rides,) or np.any(driver < 0) or np.any(driver >= problem.n_drivers):
        raise NoCertificate("the plan names rides or drivers that the problem has not")
    if np.unique(driver).size != driver.size:
        raise NoCertificate("a driver stands in two pairs")
    paid_s = problem.price_s.copy()
    paid_s[ride] = _costs(problem, ride, driver, ways)[1]
    is_barred = driver_of[problem.barred_ride] == problem.barred_driver
    paid_s[problem.barred_ride[is_barred]] = np.inf
    wrong = np.flatnonzero(~np.isfinite(paid_s))
    if wrong.size:
        raise NoCertificate(f"ride {wrong[0]} has a driver that it is not allowed")
    return math.fsum(paid_s)


def prove(problem: Problem, solution: Solution, ways: WaysOf | None = None) -> None:
    """Feasible, dual feasible over all pairs, equal in value. Raises NoCertificate naming what fails."""
    u, v = solution.u, solution.v
    if u.shape != (problem.n_rides,) or v.shape != (problem.n_drivers,):
        raise NoCertificate("the duals are another problem's")
    cost_s = cost_of(problem, solution.driver_of, ways)
    if abs(cost_s - solution.cost_s) > STEP_S * (problem.n_rides + 1):
        raise NoCertificate(f"the plan costs {cost_s} s, not {solution.cost_s}")
    if np.any(u > problem.price_s) or np.any(v > 0.0):
        raise NoCertificate("a dual exceeds its bound")
    for part in _parts(problem, ways):
        slack_s = part.cost_s - u[part.rides, None] - v[None]
        if slack_s.min(initial=np.inf) < -STEP_S:
            row, driver = np.unravel_index(int(slack_s.argmin()), slack_s.shape)
            raise NoCertificate(
                f"ride {part.rides[row]} and driver {driver} could improve the plan by {-slack_s[row, driver]} s"
            )
    bound_s = math.fsum(u) + math.fsum(v)
    if bound_s != solution.cost_s or solution.bound_s != solution.cost_s:
        raise NoCertificate(f"the duals come to {bound_s} s, the plan to {solution.cost_s}")


def _parts(problem: Problem, ways: WaysOf | None) -> Iterator[Priced]:
    at_once = max(1, PAIRS_AT_ONCE // max(problem.n_drivers, 1))
    for start in range(0, problem.n_rides, at_once):
        yield priced(problem, np.arange(start, min(start + at_once, problem.n_rides), dtype=np.int32), ways)
