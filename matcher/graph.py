"""An explicit candidate graph, an assignment of it, and what makes either valid. Nothing is solved here.

Primal: choose pairs so that a ride and a driver stand in one pair at most, at the least sum of the pairs'
costs and the prices of the rides left unmatched. Dual: a value `u` a ride and `v <= 0` a driver, with
`u[i] + v[j] <= cost[i, j]` and `u[i] <= unmatched[i]`, at the greatest sum. Whatever is feasible there
bounds every assignment from below, hence equal sums prove both optimal (linear programming duality).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from matcher.problem import UNMATCHED, Floats, Ints

#: Of any unit; beyond this a double has no room left for fractions that matter.
COST_MAX = 1e9


class BadGraph(ValueError):
    """The graph breaks a rule; the message names the pair or ride."""


class NoCertificate(Exception):
    """An assignment is not what it claims to be; the message says where."""


@dataclass(frozen=True, slots=True)
class CandidateGraph:
    """Who may serve whom at what cost: pair `e` is (ride[e], driver[e]) at cost[e].

    `ride`, `driver`: int32, shape (pairs,); `cost`: float64, shape (pairs,), any finite number, zero and
    negative ones too; `unmatched`: float64, shape (n_rides,), the price of leaving each ride unmatched,
    not negative.
    """

    n_rides: int
    n_drivers: int
    ride: Ints
    driver: Ints
    cost: Floats
    unmatched: Floats


@dataclass(frozen=True, slots=True)
class Assignment:
    """`driver_of[i]` is ride i's driver or UNMATCHED; `cost` the sum that was minimised.

    `u` (rides) and `v` (drivers) are the duals; `lower_bound` is their sum, which no assignment of the
    graph undercuts. `greedy_of` and `greedy_cost` are what always taking the cheapest remaining pair comes
    to. `numbers`: pairs, components, scanned.
    """

    driver_of: Ints
    cost: float
    u: Floats
    v: Floats
    greedy_of: Ints
    greedy_cost: float
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def lower_bound(self) -> float:
        return math.fsum(self.u) + math.fsum(self.v)


def check(graph: CandidateGraph) -> None:
    """Raises BadGraph for wrong shapes, positions out of range, numbers that are not finite,
    negative prices of leaving a ride, pairs given twice."""
    pairs = graph.ride.shape
    if len(pairs) != 1 or graph.driver.shape != pairs or graph.cost.shape != pairs:
        raise BadGraph(f"ride {pairs}, driver {graph.driver.shape} and cost {graph.cost.shape} differ in shape")
    if graph.unmatched.shape != (graph.n_rides,):
        raise BadGraph(f"unmatched has the shape {graph.unmatched.shape} for {graph.n_rides} rides")
    for name, position, count in (("ride", graph.ride, graph.n_rides), ("driver", graph.driver, graph.n_drivers)):
        wrong = np.flatnonzero((position < 0) | (position >= count))
        if wrong.size:
            raise BadGraph(f"pair {wrong[0]} names {name} {position[wrong[0]]} of {count}")
    _check_finite(graph)
    _check_distinct(graph)


def _check_finite(graph: CandidateGraph) -> None:
    wrong = np.flatnonzero(~(np.abs(graph.cost) <= COST_MAX))  # a comparison with NaN is false
    if wrong.size:
        e = wrong[0]
        raise BadGraph(f"the pair of ride {graph.ride[e]} and driver {graph.driver[e]} costs {graph.cost[e]}")
    wrong = np.flatnonzero(~((graph.unmatched >= 0.0) & (graph.unmatched <= COST_MAX)))
    if wrong.size:
        raise BadGraph(f"leaving ride {wrong[0]} unmatched costs {graph.unmatched[wrong[0]]}")


def _check_distinct(graph: CandidateGraph) -> None:
    key = _pair_keys(graph)
    if bool(np.all(key[1:] > key[:-1])):
        return
    key = np.sort(key)
    twice = np.flatnonzero(key[1:] == key[:-1])
    if twice.size:
        ride, driver = divmod(int(key[twice[0]]), max(graph.n_drivers, 1))
        raise BadGraph(f"the pair of ride {ride} and driver {driver} is given twice")


def _pair_keys(graph: CandidateGraph) -> npt.NDArray[np.int64]:
    return graph.ride.astype(np.int64) * max(graph.n_drivers, 1) + graph.driver


def canonical(graph: CandidateGraph) -> CandidateGraph:
    """The same graph with its pairs ordered by (ride, driver)."""
    key = _pair_keys(graph)
    if bool(np.all(key[1:] > key[:-1])):
        return graph
    order = np.argsort(key, kind="stable")
    return CandidateGraph(
        graph.n_rides, graph.n_drivers, graph.ride[order], graph.driver[order], graph.cost[order], graph.unmatched
    )


def paid_of(graph: CandidateGraph, driver_of: Ints) -> Floats:
    """What each ride costs in this assignment: its pair, or its price of being left."""
    paid = graph.unmatched.copy()
    taken = graph.driver == driver_of[graph.ride]
    paid[graph.ride[taken]] = graph.cost[taken]
    return paid


def verify(graph: CandidateGraph, assignment: Assignment, *, tolerance_s: float = 1e-6) -> None:
    """Checks the certificate: feasible, dual feasible over every pair, equal in value.

    `tolerance_s` is allowed for each ride. Raises NoCertificate naming what fails.
    """
    driver_of, u, v = assignment.driver_of, assignment.u, assignment.v
    used = driver_of[driver_of >= 0]
    if driver_of.shape != (graph.n_rides,) or np.any(driver_of < UNMATCHED) or np.any(used >= graph.n_drivers):
        raise NoCertificate("the assignment names rides or drivers that the graph has not")
    if np.unique(used).size != used.size:
        raise NoCertificate("a driver stands in two pairs")
    if int((graph.driver == driver_of[graph.ride]).sum()) != used.size:
        raise NoCertificate("a pair was chosen that the graph has not")
    slack = graph.cost - u[graph.ride] - v[graph.driver]
    if slack.size and slack.min() < -tolerance_s:
        e = int(slack.argmin())
        raise NoCertificate(f"ride {graph.ride[e]} and driver {graph.driver[e]} are dual infeasible by {-slack[e]} s")
    if np.any(u > graph.unmatched + tolerance_s) or np.any(v > tolerance_s):
        raise NoCertificate("a dual exceeds its bound")
    cost = math.fsum(paid_of(graph, driver_of))
    allowed = tolerance_s * (graph.n_rides + 1)
    if abs(cost - assignment.cost) > allowed or abs(cost - assignment.lower_bound) > allowed:
        raise NoCertificate(f"cost {cost}, stated as {assignment.cost}, bound {assignment.lower_bound}: not equal")
