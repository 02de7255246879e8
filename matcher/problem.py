"""One decision's whole input in columns, and what came out of it.

Rides and drivers are positions 0..n-1 and 0..m-1; who they are is the caller's
matter, and so are clocks and stores. The same columns travel to the solver's
process, are kept for a replay, and come in by HTTP: whatever is decided, is
decided from these alone.

Seconds are on a grid (see `on_grid`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

UNMATCHED = -1
#: Beyond this a double has no room left for fractions that matter.
COST_MAX = 1e8

#: Seconds of the way from each pair's driver to its ride, (pairs,); inf where there is none.
#: Takes the positions of the pairs' rides and drivers. Never below the straight line's bound.
WaysOf = Callable[[Ints, Ints], Floats]

#: Costs are whole multiples of 2**-10 s (about a millisecond). Sums of such numbers are exact in doubles, so
#: that an optimum and its certificate are compared without any tolerance for rounding.
STEPS_PER_S = 1024.0

Seconds = TypeVar("Seconds", float, Floats)


class BadProblem(ValueError):
    """The input breaks a rule; the message names the field, pair, ride or driver."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Who waits, who could serve, and what a pairing of them costs.

    The pair of ride i and driver j costs `way + extra_s[ride_kind[i], driver_kind[j]] + driver_s[j]`
    seconds, where the way takes `s_per_m` seconds a metre of great circle, or, where `has_ways`, what
    its provider says, of which the straight line is then a lower bound. A pair is allowed unless
    `extra_s` is infinite for its kinds, it is barred, or its way is longer than `reach_m[ride_kind[i]]`
    (straight line) or takes longer than `reach_s[ride_kind[i]]`. Leaving ride i unmatched costs `price_s[i]`.

    Shapes: rides (n,), drivers (m,), `extra_s` (ride kinds, driver kinds), `reach_m` and `reach_s`
    (ride kinds,), barred pairs (b,).
    Degrees, metres, seconds; `driver_s` and `extra_s` may be negative, `price_s` may not.
    """

    ride_lat: Floats
    ride_lon: Floats
    price_s: Floats
    ride_kind: Ints
    driver_lat: Floats
    driver_lon: Floats
    driver_s: Floats
    driver_kind: Ints
    extra_s: Floats
    barred_ride: Ints
    barred_driver: Ints
    s_per_m: float
    reach_m: Floats
    reach_s: Floats
    has_ways: bool = False

    @property
    def n_rides(self) -> int:
        return len(self.ride_lat)

    @property
    def n_drivers(self) -> int:
        return len(self.driver_lat)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Allowed pairs in columns, ordered by (ride, driver), each once: the way in seconds, and the whole cost."""

    ride: Ints
    driver: Ints
    way_s: Floats
    cost_s: Floats

    def __len__(self) -> int:
        return len(self.ride)


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan with its proof.

    `driver_of[i]` is ride i's driver or UNMATCHED; `cost_s` is what was minimised, the sum of the chosen
    pairs' costs and of the prices of the rides left. `u` (rides) and `v <= 0` (drivers) are the duals.
    `bound_s` limits from below what any plan over *all* allowed pairs costs: equal to `cost_s`, it proves
    the plan optimal. `pairs` are the candidates that were looked at, all of which the duals satisfy; the plan
    is optimal among them in any case. `greedy_of` and `greedy_s` are what always taking the cheapest
    remaining pair would do, None where that was not asked for. `numbers`: rides, drivers, pairs, rounds,
    levels, components, scanned.

    Where asked for, `cheapest[i]` are the places in `pairs` of ride i's cheapest pairs, ascending, -1 where
    there are fewer; and `city_more_s` beside it, by how much the whole plan would cost more with that pair
    in it (at most: the others make up for it by pairs that were looked at), NaN where that was not asked
    (rides that were left, the chosen pairs, those no cheaper than the chosen, too many).
    """

    driver_of: Ints
    cost_s: float
    bound_s: float
    u: Floats
    v: Floats
    pairs: Pairs
    greedy_of: Ints | None
    greedy_s: float | None
    numbers: Mapping[str, int] = field(default_factory=dict)
    cheapest: Ints | None = None
    city_more_s: Floats | None = None

    @property
    def gap_s(self) -> float:
        """By how much any plan could undercut this one at most; 0 proves it optimal."""
        return max(0.0, self.cost_s - self.bound_s)

    @property
    def mean_way_s(self) -> float:
        """Of the chosen pairs; 0 where there are none."""
        ways_s = self.pairs.way_s[self.pairs.driver == self.driver_of[self.pairs.ride]]
        return float(ways_s.mean()) if len(ways_s) else 0.0

    @property
    def certified(self) -> bool:
        """Whether the bound proves the plan; a bound above its cost would prove that something is wrong."""
        return self.bound_s == self.cost_s


def on_grid(seconds: Seconds) -> Seconds:
    """The nearest multiple of 2**-10 s; infinity stays."""
    rounded: Seconds = np.rint(seconds * STEPS_PER_S) / STEPS_PER_S
    return rounded


def check(problem: Problem) -> None:
    """Raises BadProblem naming the first field and position that breaks a rule."""
    n, m = problem.n_rides, problem.n_drivers
    kinds, driver_kinds = problem.extra_s.shape if problem.extra_s.ndim == 2 else (-1, -1)
    if kinds < 0:
        raise BadProblem("extra_s is not a table of ride kinds by driver kinds")
    _check_column("ride_lat", problem.ride_lat, n, -90.0, 90.0)
    _check_column("ride_lon", problem.ride_lon, n, -180.0, 180.0)
    _check_column("driver_lat", problem.driver_lat, m, -90.0, 90.0)
    _check_column("driver_lon", problem.driver_lon, m, -180.0, 180.0)
    _check_column("price_s", problem.price_s, n, 0.0, COST_MAX)
    _check_column("driver_s", problem.driver_s, m, -COST_MAX, COST_MAX)
    _check_grid("price_s", problem.price_s)
    _check_grid("driver_s", problem.driver_s)
    _check_column("ride_kind", problem.ride_kind, n, 0, kinds - 1)
    _check_column("driver_kind", problem.driver_kind, m, 0, driver_kinds - 1)
    barred = len(problem.barred_ride)
    _check_column("barred_ride", problem.barred_ride, barred, 0, n - 1)
    _check_column("barred_driver", problem.barred_driver, barred, 0, m - 1)
    wrong = np.argwhere(~((np.abs(problem.extra_s) <= COST_MAX) | np.isposinf(problem.extra_s)))
    if len(wrong):
        raise BadProblem(f"extra_s of ride kind {wrong[0, 0]} and driver kind {wrong[0, 1]} is no price")
    _check_grid("extra_s", problem.extra_s)
    if not 0.0 < problem.s_per_m <= COST_MAX:
        raise BadProblem(f"s_per_m is {problem.s_per_m}, which must be above 0")
    _check_reach("reach_m", problem.reach_m, kinds)
    _check_reach("reach_s", problem.reach_s, kinds)


def _check_reach(name: str, reach: Floats, kinds: int) -> None:
    """Infinity is a reach too."""
    if reach.shape != (kinds,):
        raise BadProblem(f"{name} has the shape {reach.shape}, not ({kinds},)")
    wrong = np.flatnonzero(~(reach > 0.0))
    if len(wrong):
        raise BadProblem(f"{name} of {wrong[0]} is {reach[wrong[0]]}, which must be above 0")


def _check_grid(name: str, seconds: Floats) -> None:
    """Off the grid sums are rounded, and a search that waits for two of them to be equal may wait for ever."""
    wrong = np.argwhere(on_grid(seconds) != seconds)
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise BadProblem(f"{name} of {', '.join(map(str, place))} is {seconds[place]}, no multiple of 2**-10 s")


def _check_column(name: str, column: npt.NDArray[Any], length: int, least: float, most: float) -> None:
    if column.shape != (length,):
        raise BadProblem(f"{name} has the shape {column.shape}, not ({length},)")
    wrong = np.flatnonzero(~((column >= least) & (column <= most)))  # a comparison with NaN is false
    if len(wrong):
        raise BadProblem(f"{name} of {wrong[0]} is {column[wrong[0]]}, which must be from {least:g} to {most:g}")
