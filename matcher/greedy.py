"""What always taking the cheapest remaining pair would do: the plan that an optimum is compared with. Compiled."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numba import njit

from matcher.problem import UNMATCHED, Floats, Ints, Pairs
from matcher.reach import DEPTH_MAX, remove, search, weigh


@njit(cache=True, nogil=True)
def greedy_over_all(
    forest: Any,
    ways: Any,
    extra_s: Any,
    known: Any,
    place: Any,
    kind: Any,
    price_s: Any,
    driver_s: Any,
    members: Any,
    first: Any,
) -> Any:
    """Over all pairs of rides (`place`, `kind`) and the drivers in the forest; (driver of each ride, its cost).

    A heap holds the nearest remaining driver of each group of rides; one that was taken meanwhile is looked
    for anew. A group are rides that cost the same with everyone, `members[first[g]:first[g + 1]]` in the order
    of their positions: they are served one after another, or a crowd at one door would ask for each driver.
    Ties break by ride, then driver. Takes the drivers out of the forest.
    """
    driver_of, paid_s = np.full(len(place), UNMATCHED, np.int32), price_s.copy()
    found, value = np.full(1, -1, np.int32), np.empty(1)
    stack, hopes = np.empty(DEPTH_MAX, np.int32), np.empty(DEPTH_MAX)
    taken, turn = np.zeros(len(driver_s), np.bool_), first[:-1].copy()
    weigh(forest, -driver_s)
    heap = [(0.0, np.int64(0), np.int64(0), np.int64(0)) for _ in range(0)]  # compiled code wants one type of entry
    for group in range(len(turn)):
        heap.append((-np.inf, np.int64(members[first[group]]), np.int64(-1), np.int64(group)))  # noqa: PERF401
    heapq.heapify(heap)
    while len(heap) > 0:
        popped: Any = heapq.heappop(heap)
        cost_s, ride, driver, group = popped
        if driver >= 0 and not taken[driver]:
            taken[driver] = True
            remove(forest, driver)
            driver_of[ride], paid_s[ride] = driver, cost_s
            turn[group] += 1
        if turn[group] == first[group + 1]:
            continue
        ride = members[turn[group]]
        floor = -np.inf
        for t in range(turn[group], first[group + 1]):
            floor = max(floor, price_s[members[t]])
        if search(forest, ways, extra_s, known, ride, place, kind, -floor, 1, found, value, stack, hopes):
            # Who is not worth so much is worth no later, dearer driver either.
            while price_s[members[turn[group]]] <= -value[0]:
                turn[group] += 1
            heapq.heappush(heap, (-value[0], np.int64(members[turn[group]]), np.int64(found[0]), np.int64(group)))
    return driver_of, paid_s


def greedy_among(pairs: Pairs, price_s: Floats, n_drivers: int) -> tuple[Ints, Floats]:
    """The same over these pairs alone, which are ordered by (ride, driver)."""
    order = np.argsort(pairs.cost_s, kind="stable")
    return _take(pairs.ride[order], pairs.driver[order], pairs.cost_s[order], price_s, n_drivers)


@njit(cache=True, nogil=True)
def _take(ride: Any, driver: Any, cost_s: Any, price_s: Any, n_drivers: int) -> Any:
    driver_of, paid_s = np.full(len(price_s), UNMATCHED, np.int32), price_s.copy()
    taken = np.zeros(n_drivers, np.bool_)
    for e in range(len(ride)):
        i, j = ride[e], driver[e]
        if driver_of[i] == UNMATCHED and not taken[j] and cost_s[e] < price_s[i]:
            taken[j] = True
            driver_of[i], paid_s[i] = j, cost_s[e]
    return driver_of, paid_s
