"""What is decided when the solver fails: each ride in turn takes the cheapest driver left. numpy alone.

Plain on purpose: it stands in when the compiled solver's process cannot be had, so it shares no code with it. The
rides that have the dearest price of being left go first. Of a ride only drivers about as far north are looked at,
further and further away, until nobody beyond them can matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from geo.distance import EARTH_RADIUS_M, distance_m
from matcher.problem import STEPS_PER_S, UNMATCHED, Floats, Ints, Pairs, Problem, Solution, on_grid

#: How far north and south of a ride drivers are looked at first, and how much further each time after it.
BAND_M, BAND_GROWTH = 100.0, 4.0
#: Added to a band, so that no rounding of a distance leaves anybody out: metres.
BAND_SLACK_M = 0.01


def greedy(problem: Problem, s_per_m: float, *, is_over: Callable[[], bool]) -> Solution:
    """A feasible plan with a valid but loose bound; ways take `s_per_m` seconds a metre of straight line.

    Rides that `is_over` cuts off are left: `numbers` say how many were `looked` at, in the order of `order_of`.
    `pairs` are the chosen ones and each ride's cheapest. With v = 0 the duals u hold over all pairs.
    """
    n, order = problem.n_rides, order_of(problem)
    driver_of, paid_s = np.full(n, UNMATCHED, np.int32), problem.price_s.copy()
    looked, rows, least_s, bands = 0, [], _least_s(problem), _Bands(problem, s_per_m)
    for ride in order.tolist() if problem.n_drivers else ():
        looked += 1
        free, cheapest = bands.look(ride)
        if not problem.has_ways:  # by road it may be nearer than by this way
            least_s[ride] = min(problem.price_s[ride], cheapest.cost_s)
        if free.cost_s < problem.price_s[ride]:
            driver_of[ride], paid_s[ride] = free.driver, free.cost_s
            bands.take(free)
            rows.append((ride, free.driver, free.way_s, free.cost_s))
        if math.isfinite(cheapest.cost_s) and driver_of[ride] != cheapest.driver:
            rows.append((ride, cheapest.driver, cheapest.way_s, cheapest.cost_s))
        if is_over():
            break
    return _solution(problem, driver_of, paid_s, rows, least_s, looked if problem.n_drivers else n)


def order_of(problem: Problem) -> Ints:
    """The rides in the order in which they are looked at: the dearest to leave first."""
    return np.argsort(-problem.price_s, kind="stable").astype(np.int32)


class Barred:
    """Of each ride the drivers that it is not to get, grouped once."""

    def __init__(self, problem: Problem) -> None:
        order = np.argsort(problem.barred_ride, kind="stable")
        self._driver = problem.barred_driver[order]
        self._first = np.searchsorted(problem.barred_ride[order], np.arange(problem.n_rides + 1)).tolist()

    def __call__(self, ride: int) -> Ints:
        return self._driver[self._first[ride] : self._first[ride + 1]]


class _Found(NamedTuple):
    """A driver for a ride, by its place in the bands' order too; its cost is infinite where there is none."""

    driver: int
    place: int
    way_s: float
    cost_s: float


_NOBODY = _Found(UNMATCHED, -1, math.inf, math.inf)


class _Bands:
    """The drivers from south to north, and who of them is still free."""

    def __init__(self, problem: Problem, s_per_m: float) -> None:
        self._problem, self._s_per_m, self._barred = problem, s_per_m, Barred(problem)
        self._order = np.argsort(problem.driver_lat, kind="stable").astype(np.int32)
        self._lat, self._lon = problem.driver_lat[self._order], problem.driver_lon[self._order]
        self._kind, self._driver_s = problem.driver_kind[self._order], problem.driver_s[self._order]
        self._free = np.ones(problem.n_drivers, np.bool_)
        self._is_barred = np.zeros(problem.n_drivers, np.bool_)  # by driver, for the ride that is looked at
        self._floor_s = _floor_s(problem)
        by_time_m = (problem.reach_s + 1.0 / STEPS_PER_S) / s_per_m
        self._reach_m = np.minimum(np.minimum(problem.reach_m, by_time_m), math.pi * EARTH_RADIUS_M)  # of each kind

    def take(self, found: _Found) -> None:
        self._free[found.place] = False

    def look(self, ride: int) -> tuple[_Found, _Found]:
        """The cheapest driver left that is worth its price, if there is one, and the cheapest whoever has it.

        Of those that cost the same the first.
        """
        kind, price_s = self._problem.ride_kind[ride], self._problem.price_s[ride]
        floor_s, reach_m = self._floor_s[kind], self._reach_m[kind]
        if not math.isfinite(floor_s):
            return _NOBODY, _NOBODY
        self._is_barred[barred := self._barred(ride)] = True
        band_m, is_whole = BAND_M, False
        while True:
            is_whole = band_m >= reach_m
            free, cheapest = self._within(ride, min(band_m, reach_m))
            beyond_s = floor_s + on_grid(band_m * self._s_per_m)  # nobody outside the band costs less
            if is_whole or (cheapest.cost_s < beyond_s and min(free.cost_s, price_s) < beyond_s):
                break
            band_m *= BAND_GROWTH
        self._is_barred[barred] = False
        return free, cheapest

    def _within(self, ride: int, band_m: float) -> tuple[_Found, _Found]:
        problem, degrees = self._problem, math.degrees((band_m + BAND_SLACK_M) / EARTH_RADIUS_M)
        lat, kind = problem.ride_lat[ride], problem.ride_kind[ride]
        band = slice(*np.searchsorted(self._lat, (lat - degrees, lat + degrees)).tolist())
        metres = distance_m(lat, problem.ride_lon[ride], self._lat[band], self._lon[band])
        way_s = on_grid(metres * self._s_per_m)
        allowed = (metres <= problem.reach_m[kind]) & (way_s <= problem.reach_s[kind])
        allowed &= ~self._is_barred[self._order[band]]
        extra_s = problem.extra_s[kind][self._kind[band]]
        cost_s = np.where(allowed, way_s + extra_s + self._driver_s[band], np.inf)
        cheapest = self._first(cost_s, way_s, band.start)
        if cheapest.place < 0 or self._free[cheapest.place]:
            return cheapest, cheapest
        return self._first(np.where(self._free[band], cost_s, np.inf), way_s, band.start), cheapest

    def _first(self, cost_s: Floats, way_s: Floats, start: int) -> _Found:
        least_s = cost_s.min(initial=np.inf)
        if not math.isfinite(least_s):
            return _NOBODY
        places = np.flatnonzero(cost_s == least_s)
        place = int(places[self._order[start + places].argmin()])
        return _Found(int(self._order[start + place]), start + place, float(way_s[place]), float(least_s))


def _floor_s(problem: Problem) -> Floats:
    """What a driver costs at least beside its way, of each kind of ride."""
    driver_s = np.full(problem.extra_s.shape[1], np.inf)
    np.minimum.at(driver_s, problem.driver_kind, problem.driver_s)
    floor_s: Floats = (problem.extra_s + driver_s).min(axis=1, initial=np.inf)
    return floor_s


def _least_s(problem: Problem) -> Floats:
    """What each ride costs at least, wherever the drivers are: all that is known of rides not looked at."""
    least_s: Floats = np.minimum(problem.price_s, _floor_s(problem)[problem.ride_kind])
    return least_s


def _solution(
    problem: Problem,
    driver_of: Ints,
    paid_s: Floats,
    rows: list[tuple[int, int, float, float]],
    least_s: Floats,
    looked: int,
) -> Solution:
    rows.sort()
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4)
    pairs = Pairs(columns[:, 0].astype(np.int32), columns[:, 1].astype(np.int32), columns[:, 2], columns[:, 3])
    cost_s, bound_s = math.fsum(paid_s), math.fsum(least_s)
    if problem.has_ways and len(pairs):
        bound_s = min(bound_s, cost_s - 1.0 / STEPS_PER_S)  # these are not the ways that count: nothing is proven
    return Solution(
        driver_of=driver_of,
        cost_s=cost_s,
        bound_s=bound_s,
        u=least_s,
        v=np.zeros(problem.n_drivers),
        pairs=pairs,
        greedy_of=driver_of,
        greedy_s=cost_s,
        numbers={"rides": problem.n_rides, "drivers": problem.n_drivers, "rounds": 0, "looked": looked},
    )
