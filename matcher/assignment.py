"""Sparse min-cost assignment of rides to drivers, with a certificate of its optimality.

Primal: choose pairs so that a ride and a driver stand in one pair at most, at
the least sum of the pairs' costs and the prices of the rides left unmatched.
Dual: a value `u` a ride (free) and `v <= 0` a driver, with `u[i] + v[j] <=
cost[i, j]` and `u[i] <= unmatched[i]`, at the greatest sum. Whatever is
feasible there bounds every assignment from below, hence equal sums prove both
optimal (linear programming duality).

The matching itself is scipy's `min_weight_full_bipartite_matching` (Jonker and
Volgenant's shortest augmenting paths on sparse matrices, LAPJVsp); every ride
gets a column of its own that stands for "unmatched". The duals are the least
driver prices that support it, by Bellman and Ford's relaxation. Ties break by
position: rides and drivers are numbered in the order of their ids, pairs are
brought into one order, so the same pairs in any order give the same plan.
This module knows no ids, no clock and no limits of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

UNMATCHED = -1
#: Beyond this a double has no room left for fractions that matter.
COST_MAX = 1e9


class BadGraph(ValueError):
    """The graph breaks a rule; the message names the pair or ride."""


class NoCertificate(Exception):
    """An assignment is not what it claims to be; the message says where."""


@dataclass(frozen=True, slots=True)
class CandidateGraph:
    """Who may serve whom at what cost: pair `e` is (ride[e], driver[e]) at cost[e].

    `ride`, `driver`: int32, shape (pairs,); `cost`: float64, shape (pairs,), any
    finite seconds, zero and negative ones too; `unmatched`: float64, shape
    (n_rides,), the price of leaving each ride unmatched.
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

    `u` (rides) and `v` (drivers) are the duals; `lower_bound` is their sum, which
    no assignment of the graph undercuts. `greedy_cost` is what always taking the
    cheapest remaining pair would have cost.
    """

    driver_of: Ints
    cost: float
    u: Floats
    v: Floats
    greedy_cost: float

    @property
    def lower_bound(self) -> float:
        return float(self.u.sum() + self.v.sum())


def check(graph: CandidateGraph) -> None:
    """Raises BadGraph for wrong shapes, positions out of range, numbers that are not finite, pairs given twice."""
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
    wrong = np.flatnonzero(~(np.abs(graph.unmatched) <= COST_MAX))
    if wrong.size:
        raise BadGraph(f"leaving ride {wrong[0]} unmatched costs {graph.unmatched[wrong[0]]}")


def _check_distinct(graph: CandidateGraph) -> None:
    key = np.sort(_pair_keys(graph))
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


def solve(graph: CandidateGraph) -> Assignment:
    """The assignment of least cost, with duals that prove it. Raises BadGraph.

    Holds the interpreter's lock while scipy works: run it in a process of its own.
    """
    check(graph)
    graph = canonical(graph)
    worth = graph.cost < graph.unmatched[graph.ride]  # a dearer pair never beats leaving the ride unmatched
    pairs = CandidateGraph(
        graph.n_rides, graph.n_drivers, graph.ride[worth], graph.driver[worth], graph.cost[worth], graph.unmatched
    )
    driver_of = _match(pairs)
    paid = _paid(pairs, driver_of)
    u, v = _duals(pairs, driver_of, paid)
    greedy_cost = math.fsum(_paid(pairs, _greedy_match(pairs)))
    return Assignment(driver_of, math.fsum(paid), u, v, greedy_cost)


def greedy(graph: CandidateGraph) -> Assignment:
    """Always the cheapest remaining pair: feasible, with a valid but loose lower bound. Raises BadGraph."""
    check(graph)
    driver_of = _greedy_match(graph)
    cost = math.fsum(_paid(graph, driver_of))
    u = graph.unmatched.copy()
    np.minimum.at(u, graph.ride, graph.cost)
    return Assignment(driver_of, cost, u, np.zeros(graph.n_drivers), cost)


def _greedy_match(graph: CandidateGraph) -> Ints:
    driver_of = np.full(graph.n_rides, UNMATCHED, dtype=np.int32)
    taken = bytearray(graph.n_drivers)
    served = bytearray(graph.n_rides)
    order = np.lexsort((graph.driver, graph.ride, graph.cost))
    order = order[graph.cost[order] < graph.unmatched[graph.ride[order]]]
    for ride, driver in zip(graph.ride[order].tolist(), graph.driver[order].tolist(), strict=True):
        if not served[ride] and not taken[driver]:
            served[ride] = taken[driver] = 1
            driver_of[ride] = driver
    return driver_of


def _match(graph: CandidateGraph) -> Ints:
    """scipy's full matching of the rides that have a pair, each with its own column for "unmatched"."""
    driver_of = np.full(graph.n_rides, UNMATCHED, dtype=np.int32)
    rides, row = np.unique(graph.ride, return_inverse=True)
    drivers, column = np.unique(graph.driver, return_inverse=True)
    if rides.size == 0:
        return driver_of
    n, m = rides.size, drivers.size
    weight = np.concatenate([graph.cost, graph.unmatched[rides]])
    # A zero would be no edge. Each ride takes exactly one edge, so a constant on all of them changes no choice.
    weight = weight + (1.0 - weight.min())
    rows = np.concatenate([row, np.arange(n)])
    columns = np.concatenate([column, m + np.arange(n)])
    _, chosen = min_weight_full_bipartite_matching(csr_array((weight, (rows, columns)), shape=(n, m + n)))
    matched = chosen < m
    driver_of[rides[matched]] = drivers[chosen[matched]]
    return driver_of


def _paid(graph: CandidateGraph, driver_of: Ints) -> Floats:
    """What each ride costs in this assignment: its pair, or its price of being left."""
    paid = graph.unmatched.copy()
    taken = graph.driver == driver_of[graph.ride]
    paid[graph.ride[taken]] = graph.cost[taken]
    return paid


def _duals(graph: CandidateGraph, driver_of: Ints, paid: Floats) -> tuple[Floats, Floats]:
    """The least driver prices under which every ride is content with what it got.

    price[j] >= (what ride i pays, its own driver's price included) - cost[i, j];
    the least such prices are the longest paths from zero, finite exactly when no
    exchange of drivers improves the assignment. Each round passes on only the
    prices that rose; there are at most as many rounds as rides.
    """
    matched = driver_of >= 0
    price = np.zeros(graph.n_drivers)
    pays = paid.copy()
    ride_of = np.full(graph.n_drivers, UNMATCHED, dtype=np.int32)
    ride_of[driver_of[matched]] = np.flatnonzero(matched)
    first = np.searchsorted(graph.ride, np.arange(graph.n_rides + 1))
    rising: Ints = np.arange(graph.n_rides, dtype=np.int32)
    for _ in range(graph.n_rides + 1):
        pairs = _ranges(first[rising], first[rising + 1])
        bid = pays[graph.ride[pairs]] - graph.cost[pairs]
        higher = bid > price[graph.driver[pairs]] + 1e-9
        drivers = graph.driver[pairs[higher]]
        if drivers.size == 0:
            break
        np.maximum.at(price, drivers, bid[higher])
        rising = ride_of[np.unique(drivers)]
        rising = rising[rising >= 0]
        pays[rising] = paid[rising] + price[driver_of[rising]]
    return pays, -price


def _ranges(start: npt.NDArray[np.intp], stop: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The concatenation of range(start[i], stop[i])."""
    length = stop - start
    ends = np.cumsum(length)
    within: npt.NDArray[np.intp] = np.arange(int(length.sum()))
    shift: npt.NDArray[np.intp] = np.repeat(start - ends + length, length)
    return within + shift


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
    cost = math.fsum(_paid(graph, driver_of))
    allowed = tolerance_s * (graph.n_rides + 1)
    if abs(cost - assignment.cost) > allowed or abs(cost - assignment.lower_bound) > allowed:
        raise NoCertificate(f"cost {cost}, stated as {assignment.cost}, bound {assignment.lower_bound}: not equal")
