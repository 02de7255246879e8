"""The two sides of a problem, and exact searches over the pairs between them.

Side `a` is the scarcer one, rides or drivers. In the symmetric form of matcher.augment a pair of ride i and
driver j gains `price_s[i] - cost[i, j]`, which is what both bring (`base_s`) less what lies between them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geo.distance import sphere_points_m
from matcher import augment, reach
from matcher.problem import UNMATCHED, Bools, Floats, Ints, Problem

#: Pairs that join a graph: positions of side a and of side b, gains in seconds.
Fresh = tuple[Ints, Ints, Floats]


@dataclass(slots=True)
class Side:
    """Rides or drivers: where, of which kind, what they bring (`base_s`), their duals and partners."""

    place: Floats
    kind: Ints
    base_s: Floats
    forest: reach.Forest
    y: Floats
    mate: Ints
    twins: Ints | None  # of each point a number that points of the same place and kind share; None: no two do

    def __len__(self) -> int:
        return len(self.kind)

    def in_turn(self, asked: Ints) -> tuple[Ints, Bools]:
        """Those asked, twins one after another, and who is a twin of the one before."""
        is_twin = np.zeros(len(asked), np.bool_)
        if self.twins is not None:
            asked = asked[np.argsort(self.twins[asked], kind="stable")]
            is_twin[1:] = self.twins[asked[1:]] == self.twins[asked[:-1]]
        return asked, is_twin

    def groups(self, *, apart: bool) -> tuple[Ints, Ints]:
        """Positions group by group of twins, ascending within, and where each group begins (and the last ends)."""
        count = len(self)
        if apart or self.twins is None:
            return np.arange(count, dtype=np.int32), np.arange(count + 1, dtype=np.int32)
        members = np.argsort(self.twins, kind="stable").astype(np.int32)
        begins = np.flatnonzero(np.diff(self.twins[members], prepend=-1))
        return members, np.append(begins, count).astype(np.int32)

    def sample(self, step: int, kinds: int) -> Side:
        chosen = self.forest.order[step // 2 :: step]
        return side_of(self.place[chosen], self.kind[chosen], kinds, self.base_s[chosen])


def side_of(place: Floats, kind: Ints, kinds: int, base_s: Floats) -> Side:
    count = len(kind)
    forest = reach.plant(place, kind, kinds)
    return Side(place, kind, base_s, forest, np.zeros(count), np.full(count, UNMATCHED, np.int32), _twins(place, kind))


def _twins(place: Floats, kind: Ints) -> Ints | None:
    order = np.lexsort((place[:, 2], place[:, 1], place[:, 0], kind))
    differs = (np.diff(place[order], axis=0) != 0.0).any(axis=1) | (np.diff(kind[order]) != 0)
    if differs.all():
        return None
    twins = np.zeros(len(order), np.int32)
    twins[order[1:]] = np.cumsum(differs)
    return twins


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """Pairs of the asked points: position, partner, gain by the straight line, and what of it the partner's
    dual leaves (`net_s`); who has perhaps more."""

    asked: Ints
    partner: Ints
    gain_s: Floats
    net_s: Floats
    full: Ints


class Search:
    """One problem's pairs, looked at from both sides: `a` is the scarcer one."""

    def __init__(self, problem: Problem, a: Side, b: Side, *, rides_are_a: bool, is_whole: bool = False) -> None:
        self.problem, self.a, self.b, self.rides_are_a, self.is_whole = problem, a, b, rides_are_a, is_whole
        self.has_ways = problem.has_ways and is_whole  # a sample is solved by straight lines
        extra_s = problem.extra_s if rides_are_a else problem.extra_s.T
        self.extra_s = (np.ascontiguousarray(extra_s), np.ascontiguousarray(extra_s.T))
        self.ways = _ways(problem) if rides_are_a else _ways(problem)[::-1]
        self.barred = self._known(np.empty(0, np.int32), np.empty(0, np.int32))

    def known(self, graph: Graph) -> tuple[reach.Known, reach.Known]:
        """The pairs that a search is not to find again, for either side asking.

        Where straight lines price them, duals that satisfy a pair keep it from being found.
        """
        return self._known(graph.a, graph.b) if self.has_ways else self.barred

    def _known(self, a: Ints, b: Ints) -> tuple[reach.Known, reach.Known]:
        if self.is_whole:
            barred = (self.problem.barred_ride, self.problem.barred_driver)
            barred_a, barred_b = barred if self.rides_are_a else barred[::-1]
            a, b = np.concatenate([a, barred_a]), np.concatenate([b, barred_b])
        return augment.known_rows(a, b, len(self.a), len(self.b)), augment.known_rows(b, a, len(self.b), len(self.a))

    def distinct(self, columns: list[Fresh]) -> Fresh:
        """All of these, ordered by position, each pair once."""
        a, b, gain_s = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = augment.ordered(a, b, len(self.a), len(self.b))
        return a[order], b[order], gain_s[order]

    def best(
        self,
        asked: Ints,
        floor: Floats,
        k: int,
        *,
        of_a: bool = True,
        known: reach.Known | None = None,
        spread: bool = False,
    ) -> FoundPairs:
        """The k partners of each that gain most beside the partners' duals, above its `floor` (by position).

        `spread`: points of the same place and kind are given different partners of theirs.
        """
        mine, others = (self.a, self.b) if of_a else (self.b, self.a)
        reach.weigh(others.forest, others.base_s - others.y)
        extra_s = self.extra_s[0] if of_a else self.extra_s[1]
        known = reach.nothing_known(len(mine)) if known is None else known
        is_twin = np.zeros(len(asked), np.bool_)
        if spread and not len(known.other):  # else each has pairs of its own that are not to be found again
            asked, is_twin = mine.in_turn(asked)
        pair, net_s, full = reach.best_partners(
            others.forest,
            self.ways[0 if of_a else 1],
            extra_s,
            known,
            asked,
            is_twin,
            mine.place,
            mine.kind,
            floor[asked] - mine.base_s[asked],
            k,
        )
        position, partner = pair[:, 0], pair[:, 1]
        net_s += mine.base_s[position]
        return FoundPairs(position, partner, net_s + others.y[partner], net_s, full)


def _ways(problem: Problem) -> tuple[reach.Ways, reach.Ways]:
    """For rides that ask, and for drivers that do; the limits are those of the ride's kind in both."""
    driver_kinds = problem.extra_s.shape[1]
    reach_m, reach_s = (np.repeat(each[:, None], driver_kinds, axis=1) for each in (problem.reach_m, problem.reach_s))
    asked_by_drivers = reach.Ways(problem.s_per_m, np.ascontiguousarray(reach_m.T), np.ascontiguousarray(reach_s.T))
    return reach.Ways(problem.s_per_m, reach_m, reach_s), asked_by_drivers


def start(problem: Problem) -> Search:
    ride_kinds, driver_kinds = problem.extra_s.shape
    rides = side_of(sphere_points_m(problem.ride_lat, problem.ride_lon), problem.ride_kind, ride_kinds, problem.price_s)
    drivers = side_of(
        sphere_points_m(problem.driver_lat, problem.driver_lon), problem.driver_kind, driver_kinds, -problem.driver_s
    )
    rides_are_a = len(rides) <= len(drivers)
    a, b = (rides, drivers) if rides_are_a else (drivers, rides)
    return Search(problem, a, b, rides_are_a=rides_are_a, is_whole=True)


def everyone(side: Side) -> Ints:
    """Everyone, neighbours one after the other: what one search touched is still in the cache for the next."""
    return side.forest.order


@dataclass(slots=True)
class Graph:
    """The pairs looked at, each once. A pair without a way gains minus infinity, which no solve takes."""

    a: Ints
    b: Ints
    gain_s: Floats

    def __len__(self) -> int:
        return len(self.a)

    def join(self, a: Ints, b: Ints, gain_s: Floats) -> None:
        self.a, self.b = np.concatenate([self.a, a]), np.concatenate([self.b, b])
        self.gain_s = np.concatenate([self.gain_s, gain_s])
