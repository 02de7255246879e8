"""An explicit candidate graph in, its assignment of least cost out, with a certificate (see matcher.graph).

The matching is `matcher.augment`'s. Costs may be in any unit: they are rounded to a 2**-45th of the
largest, which makes every sum of the search exact. Ties break by position: rides and drivers are numbered
in the order of their ids, pairs are brought into one order, so the same pairs in any order give the same
plan. This module knows no ids, no places, no clock and no limits of time.
"""

from __future__ import annotations

import math

import numpy as np

from matcher import augment
from matcher.graph import Assignment, CandidateGraph, canonical, check, paid_of
from matcher.greedy import greedy_among
from matcher.problem import UNMATCHED, Floats, Pairs

#: Gains are whole multiples of the largest price over this.
STEPS = 2.0**45


def solve(graph: CandidateGraph) -> Assignment:
    """The assignment of least cost, with duals that prove it. Raises BadGraph."""
    check(graph)
    graph = canonical(graph)
    n, m = graph.n_rides, graph.n_drivers
    gain = _exact(graph.unmatched[graph.ride] - graph.cost)
    worth = gain > 0.0  # a dearer pair never beats leaving the ride unmatched
    ride, driver, gain = graph.ride[worth], graph.driver[worth], gain[worth]
    y_rides, y_drivers = np.zeros(n), np.zeros(m)
    driver_of, ride_of = np.full(n, UNMATCHED, np.int32), np.full(m, UNMATCHED, np.int32)
    rides, drivers = augment.rows_of(ride, driver, gain, n), augment.rows_of(driver, ride, gain, m)
    if n <= m:
        _, scanned = augment.settle(rides, drivers, y_rides, y_drivers, driver_of, ride_of)
    else:
        _, scanned = augment.settle(drivers, rides, y_drivers, y_rides, ride_of, driver_of)
    paid = paid_of(graph, driver_of)
    greedy_of, greedy_paid = greedy_among(
        Pairs(graph.ride, graph.driver, graph.cost, graph.cost), graph.unmatched, graph.n_drivers
    )
    numbers = {"pairs": len(graph.ride), "components": augment.components(ride, driver, n, m), "scanned": scanned}
    return Assignment(
        driver_of, math.fsum(paid), graph.unmatched - y_rides, -y_drivers, greedy_of, math.fsum(greedy_paid), numbers
    )


def _exact(gain: Floats) -> Floats:
    """Rounded so coarsely that sums of them are exact in doubles, and finely enough that nobody can tell."""
    largest = float(np.abs(gain).max(initial=0.0))
    if largest == 0.0:
        return gain
    step = 2.0 ** math.ceil(math.log2(largest)) / STEPS
    exact: Floats = np.rint(gain / step) * step
    return exact
