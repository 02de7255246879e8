"""What an explicit graph's assignment says for itself: its proof, and why each ride got whom or nobody.

The counterpart of matcher.plan for costs that somebody else has worked out, in whatever unit. Pure, and
numpy alone: it also holds the plain greedy that stands in where the compiled solver cannot be had in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from matcher.graph import Assignment, CandidateGraph, paid_of
from matcher.plan import NEAR, Reason, reason_of, why_not
from matcher.problem import UNMATCHED, Floats

#: The solver rounds the gain of a pair to this share of the largest, at the worst (see matcher.assignment).
ROUNDING = 2.0**-44
#: How many pairs the plain greedy looks at between two looks at the clock.
LOOK_EVERY = 4096


@dataclass(frozen=True, slots=True)
class DecidedGraph:
    """A graph, its pairs ordered by (ride, driver), and its assignment; `is_greedy`: the solver failed."""

    graph: CandidateGraph
    assignment: Assignment
    solve_s: float
    is_greedy: bool

    @property
    def gap(self) -> float:
        """By how much any plan could undercut this one at most; 0 proves it optimal."""
        gap = self.assignment.cost - self.assignment.lower_bound
        gains = np.abs(self.graph.unmatched[self.graph.ride] - self.graph.cost)
        return gap if gap > ROUNDING * float(gains.max(initial=0.0)) * self.graph.n_rides else 0.0

    @property
    def certified(self) -> bool:
        return self.gap == 0.0

    @property
    def scope(self) -> str:
        """Over which pairs the plan is proven to be the best."""
        return "all pairs that are allowed" if self.certified else "none: taken greedily"


@dataclass(frozen=True, slots=True)
class Other:
    """A pair that its ride did not get. `more` is what the ride would pay more with it, `others_more` what all
    other rides would at least, where that is why: it goes by the duals; `rival` the ride that has the driver."""

    driver: int
    cost: float
    more: float
    why: str
    others_more: float | None
    rival: int | None


class GraphExplainer:
    """Says of each ride of an assigned graph why this driver, or why none. By positions."""

    def __init__(self, decided: DecidedGraph) -> None:
        self._graph, self._assignment = decided.graph, decided.assignment
        self._first = np.searchsorted(decided.graph.ride, np.arange(decided.graph.n_rides + 1)).tolist()
        driver_of = decided.assignment.driver_of.tolist()
        self._ride_of = {driver: ride for ride, driver in enumerate(driver_of) if driver != UNMATCHED}

    def matched(self, ride: int, driver: int) -> tuple[float, list[Other]]:
        """The cost of the ride's pair, and the cheapest others beside it."""
        places = slice(self._first[ride], self._first[ride + 1])
        drivers, costs = self._graph.driver[places], self._graph.cost[places]
        chosen = float(costs[np.searchsorted(drivers, driver)])
        cheapest = _cheapest(costs, NEAR)
        others = [(int(drivers[place]), float(costs[place])) for place in cheapest if drivers[place] != driver]
        return chosen, [self._compared(ride, other, cost, chosen) for other, cost in others[: NEAR - 1]]

    def _compared(self, ride: int, driver: int, cost: float, chosen: float) -> Other:
        more = cost - chosen
        reduced = cost - float(self._assignment.u[ride]) - float(self._assignment.v[driver])
        city_more = max(reduced, 0.0)  # rounded duals may be a trifle below it
        why = why_not(more, city_more, at_least=True)
        return Other(driver, cost, more, why, city_more - more if more < 0.0 else None, self._ride_of.get(driver))

    def unmatched(self, ride: int) -> tuple[Reason, dict[str, float]]:
        """Why the ride was left, and the counts behind it."""
        places = slice(self._first[ride], self._first[ride + 1])
        costs, drivers = self._graph.cost[places].tolist(), self._graph.driver[places].tolist()
        price = float(self._graph.unmatched[ride])
        counts = {"candidates": len(costs), "price_of_leaving": price}
        reason = reason_of(costs, price)
        if any(cost < price and driver not in self._ride_of for driver, cost in zip(drivers, costs, strict=True)):
            reason = Reason.NOT_LOOKED_AT  # only a greedy that was cut off leaves such a pair
        return reason, counts | ({"cheapest": min(costs)} if costs else {})


def _cheapest(costs: Floats, k: int) -> list[int]:
    """The places of the k least costs, ascending, ties by place."""
    near = np.flatnonzero(costs <= np.partition(costs, k - 1)[k - 1]) if len(costs) > k else np.arange(len(costs))
    found: list[int] = near[np.argsort(costs[near], kind="stable")[:k]].tolist()
    return found


def greedily(graph: CandidateGraph, *, is_over: Callable[[], bool]) -> Assignment:
    """Always the cheapest remaining pair; a feasible plan with a valid but loose bound.

    What `is_over` cuts off is left unmatched.
    """
    driver_of = np.full(graph.n_rides, UNMATCHED, np.int32)
    worth = np.flatnonzero(graph.cost < graph.unmatched[graph.ride])
    order = worth[np.argsort(graph.cost[worth], kind="stable")]
    taken: set[int] = set()
    for start in range(0, len(order), LOOK_EVERY):
        if is_over():
            break
        part = order[start : start + LOOK_EVERY]
        for ride, driver in zip(graph.ride[part].tolist(), graph.driver[part].tolist(), strict=True):
            if driver not in taken and driver_of[ride] == UNMATCHED:
                driver_of[ride] = driver
                taken.add(driver)
    least = graph.unmatched.copy()
    np.minimum.at(least, graph.ride, graph.cost)
    cost = math.fsum(paid_of(graph, driver_of))
    numbers = {"pairs": len(graph.ride)}
    return Assignment(driver_of, cost, least, np.zeros(graph.n_drivers), driver_of, cost, numbers)
