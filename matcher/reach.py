"""Who is worth most to whom, over all pairs without listing them: exact searches in k-d trees. Compiled.

A forest holds the points of one side (all drivers, or all rides) as places on the sphere in metres, a k-d
tree for each kind (J. L. Bentley, "Multidimensional binary search trees used for associative searching",
Communications of the ACM 18, 1975). A node knows the box of its points and the greatest weight among
them. A search goes for the partners of greatest `weight - extra - way` and leaves out nodes whose box is
too far for what their greatest weight could make up: a chord is never longer than its arc, so that
nobody is excluded who might count (P8).

Seconds are multiples of 2**-10 (see matcher.policy.on_grid), so every sum here is exact.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit

from geo.distance import EARTH_RADIUS_M
from matcher.problem import Floats, Ints

LEAF_POINTS: Final = 8
STEP_S: Final = 1.0 / 1024.0
#: A tree halves at each level, so that no search has more open nodes.
DEPTH_MAX: Final = 64
#: Points on one spot have so many partners told apart.
TWINS_MAX: Final = 2048


class Forest(NamedTuple):
    """Points in the order of trees and leaves: `order` has their positions, `place` and `weight` run beside it.

    Per node: `begin` and `end` (into `order`), `child` (the first of two neighbours, or -1), `parent`,
    `box` (least x y z, greatest x y z) and `top`, the greatest weight within. `root[kind]` is a tree or -1.
    """

    order: Ints
    rank: Ints  # of each point its place in `order`
    place: Floats
    root: Ints
    begin: Ints
    end: Ints
    child: Ints
    parent: Ints
    leaf: Ints  # of each place in `order` its node
    box: Floats
    top: Floats
    weight: Floats


class Ways(NamedTuple):
    """What a pair's way costs and which ways are allowed; see matcher.problem.Problem.

    The limits are tables by the asking point's kind and the partner's, as `extra_s` is.
    """

    s_per_m: float
    reach_m: Floats
    reach_s: Floats


class Known(NamedTuple):
    """Pairs that are not to be found again: compressed rows by asking point, partners ascending."""

    first: Any
    other: Ints


def nothing_known(points: int) -> Known:
    return Known(np.zeros(points + 1, np.int64), np.empty(0, np.int32))


def plant(place: Floats, kind: Ints, kinds: int) -> Forest:
    """The forest of these places, (n, 3) metres, whose kinds are in [0, kinds). Weights are zero at first."""
    order = np.argsort(kind, kind="stable").astype(np.int32)
    counts = np.bincount(kind, minlength=kinds)
    room = int(np.where(counts > 0, 4 * (counts // LEAF_POINTS + 1), 0).sum()) + 1
    begin, end, child, parent = (np.full(room, -1, np.int32) for _ in range(4))
    box, leaf, root = np.zeros((room, 6)), np.zeros(len(order), np.int32), np.full(kinds, -1, np.int32)
    used = _grow(np.ascontiguousarray(place), order, counts, root, begin, end, child, parent, leaf, box)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return Forest(
        order=order,
        rank=rank,
        place=place[order],
        root=root,
        begin=begin[:used],
        end=end[:used],
        child=child[:used],
        parent=parent[:used],
        leaf=leaf,
        box=box[:used],
        top=np.zeros(used),
        weight=np.zeros(len(order)),
    )


@njit(cache=True, nogil=True)
def _grow(place: Any, order: Any, counts: Any, root: Any, begin: Any, end: Any, child: Any, parent: Any,
          leaf: Any, box: Any) -> int:  # fmt: skip
    """Makes each tree's nodes in breadth-first order, cut at the median of their longest side."""
    used, at = 0, 0
    for kind in range(len(counts)):
        if counts[kind] == 0:
            continue
        node = used
        root[kind] = node
        begin[node], end[node] = at, at + counts[kind]
        at += counts[kind]
        used += 1
        while node < used:
            lo, hi = begin[node], end[node]
            axis = _bound(place, order, lo, hi, node, box)
            if hi - lo > LEAF_POINTS:
                mid = (lo + hi) // 2
                _select(place, order, axis, lo, hi - 1, mid)
                child[node] = used
                begin[used], end[used], parent[used] = lo, mid, node
                begin[used + 1], end[used + 1], parent[used + 1] = mid, hi, node
                used += 2
            else:
                leaf[lo:hi] = node
            node += 1
    return used


@njit(cache=True, nogil=True)
def _bound(place: Any, order: Any, lo: int, hi: int, node: int, box: Any) -> int:
    """Measures a node's box; returns its longest side."""
    axis, longest = 0, -1.0
    for a in range(3):
        low, high = np.inf, -np.inf
        for t in range(lo, hi):
            x = place[order[t], a]
            low, high = min(low, x), max(high, x)
        box[node, a], box[node, 3 + a] = low, high
        if high - low > longest:
            axis, longest = a, high - low
    return axis


@njit(cache=True, nogil=True)
def _is_before(place: Any, axis: int, a: int, b: int) -> Any:
    """Ties break by position: the same points always grow the same tree."""
    return place[a, axis] < place[b, axis] or (place[a, axis] == place[b, axis] and a < b)


@njit(cache=True, nogil=True)
def _select(place: Any, order: Any, axis: int, left: int, right: int, k: int) -> None:
    """Hoare's selection (Algorithm 65: Find, 1961): the k-th to its place, smaller ones before it."""
    while right > left:
        pivot = order[(left + right) // 2]
        i, j = left, right
        while i <= j:
            while _is_before(place, axis, order[i], pivot):
                i += 1
            while _is_before(place, axis, pivot, order[j]):
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if k <= j:
            right = j
        elif k >= i:
            left = i
        else:
            return


@njit(cache=True, nogil=True)
def weigh(forest: Any, given: Any) -> None:
    """Takes these weights over, one a point in the order of positions."""
    for t in range(len(forest.order)):
        forest.weight[t] = given[forest.order[t]]
    for node in range(len(forest.begin) - 1, -1, -1):
        forest.top[node] = _top(forest, node)


@njit(cache=True, nogil=True)
def _top(forest: Any, node: int) -> Any:
    first = forest.child[node]
    if first >= 0:
        return max(forest.top[first], forest.top[first + 1])
    most = -np.inf
    for t in range(forest.begin[node], forest.end[node]):
        most = max(most, forest.weight[t])
    return most


@njit(cache=True, nogil=True)
def remove(forest: Any, position: int) -> None:
    """The point is found no more."""
    t = forest.rank[position]
    forest.weight[t] = -np.inf
    node = forest.leaf[t]
    while node >= 0:
        forest.top[node] = _top(forest, node)
        node = forest.parent[node]


@njit(cache=True, nogil=True)
def arc_m(chord2: float) -> Any:
    """The great circle over a squared chord, metres.

    Short ones by the series of the arcsine, which is exact in doubles up to 127 km and, unlike a
    library's arcsine, the same on every machine.
    """
    chord = np.sqrt(chord2)
    half = chord / (2.0 * EARTH_RADIUS_M)
    if half < 0.01:
        t = half * half
        return chord * (1.0 + t * (1.0 / 6.0 + t * (3.0 / 40.0 + t * (15.0 / 336.0))))
    return 2.0 * EARTH_RADIUS_M * np.arcsin(min(half, 1.0))


@njit(cache=True, nogil=True)
def measure(a_place: Any, b_place: Any, a: Any, b: Any) -> Any:
    """Great circles of pairs of points, (pairs,) metres, by the positions of their points."""
    metres = np.empty(len(a))
    for e in range(len(a)):
        i, j = a[e], b[e]
        dx, dy, dz = a_place[i, 0] - b_place[j, 0], a_place[i, 1] - b_place[j, 1], a_place[i, 2] - b_place[j, 2]
        metres[e] = arc_m(dx * dx + dy * dy + dz * dz)
    return metres


@njit(cache=True, nogil=True)
def straight_s(metres: float, s_per_m: float) -> Any:
    return np.rint(metres * s_per_m * 1024.0) / 1024.0


@njit(cache=True, nogil=True)
def best_partners(
    forest: Any, ways: Any, extra_s: Any, known: Any, asking: Any, twin: Any, place: Any, kind: Any, floor: Any, k: int
) -> Any:
    """Of each of `asking` the k partners of greatest `weight - extra - way` above its `floor`.

    `asking` are positions; `place` (n, 3), `kind` (n,) belong to all points of their side, `floor` runs
    beside `asking`; `extra_s[kind, partner's kind]` may be infinite, and the limits of `ways` are as large.
    Where `twin[a]`, asking point a is of the same place and kind as the one before: twins have the same
    partners, so each is given other k of them, the first ones the best, or all would crowd around the same
    few. Returns pairs of positions (found, 2), each point's best first, ties by position; their values; and
    who has perhaps more.
    """
    room = len(asking) * k
    pair, value = np.empty((room, 2), np.int32), np.empty(room)
    full, full_count, count = np.empty(len(asking), np.int32), 0, 0
    stack, hopes = np.empty(DEPTH_MAX, np.int32), np.empty(DEPTH_MAX)
    row, worth = np.empty(k + TWINS_MAX, np.int32), np.empty(k + TWINS_MAX)
    a = 0
    while a < len(asking):
        twins, lowest = 1, floor[a]
        while a + twins < len(asking) and twin[a + twins]:
            lowest = min(lowest, floor[a + twins])
            twins += 1
        wide = k if twins == 1 else k + min(twins, TWINS_MAX)
        got = search(forest, ways, extra_s, known, asking[a], place, kind, lowest, wide, row, worth, stack, hopes)
        for t in range(twins):
            q = asking[a + t]
            start = 0 if got <= k else t * (got - k) // max(twins - 1, 1)
            for s in range(start, min(start + k, got)):
                if worth[s] > floor[a + t]:
                    pair[count, 0], pair[count, 1], value[count] = q, row[s], worth[s]
                    count += 1
            if got >= k:
                full[full_count] = q
                full_count += 1
        a += twins
    return pair[:count].copy(), value[:count].copy(), full[:full_count].copy()


@njit(cache=True, nogil=True)
def search(forest: Any, ways: Any, extra_s: Any, known: Any, q: int, place: Any, kind: Any, floor: float, k: int,
           found: Any, value: Any, stack: Any, hopes: Any) -> int:  # fmt: skip
    """One row of `best_partners`; returns how many were found."""
    x, y, z = place[q, 0], place[q, 1], place[q, 2]
    lowest, count = floor, 0
    for other in range(len(forest.root)):
        extra = extra_s[kind[q], other]
        if forest.root[other] < 0 or extra == np.inf:
            continue
        reach_m, reach_s = ways.reach_m[kind[q], other], ways.reach_s[kind[q], other]
        size = 1
        stack[0] = forest.root[other]
        hopes[0] = _hope(forest, ways.s_per_m, reach_m, stack[0], x, y, z)
        while size > 0:
            size -= 1
            node = stack[size]
            if hopes[size] - extra <= lowest:
                continue
            near = forest.child[node]
            if near < 0:
                count, lowest = _look(forest, ways.s_per_m, reach_m, reach_s, extra, known, q, x, y, z, node, k,
                                      found, value, count, lowest)  # fmt: skip
                continue
            # The more hopeful child is looked at first: it raises what the other has to beat.
            far = near + 1
            hope = _hope(forest, ways.s_per_m, reach_m, near, x, y, z)
            less = _hope(forest, ways.s_per_m, reach_m, far, x, y, z)
            if less > hope:
                near, far, hope, less = far, near, less, hope
            if less - extra > lowest:
                stack[size], hopes[size] = far, less
                size += 1
            if hope - extra > lowest:
                stack[size], hopes[size] = near, hope
                size += 1
    return count


@njit(cache=True, nogil=True)
def _hope(forest: Any, s_per_m: float, reach_m: float, node: int, x: float, y: float, z: float) -> Any:
    """No point of the node is worth more than this, its kind's extra aside.

    Exactly: no chord is longer than its arc, and rounding keeps the order of what it rounds. So what can only
    tie is left out too, which is what ends a search among many points on one spot.
    """
    box = forest.box
    dx = max(max(box[node, 0] - x, x - box[node, 3]), 0.0)
    dy = max(max(box[node, 1] - y, y - box[node, 4]), 0.0)
    dz = max(max(box[node, 2] - z, z - box[node, 5]), 0.0)
    away2 = dx * dx + dy * dy + dz * dz
    if away2 > reach_m * reach_m:
        return -np.inf
    return forest.top[node] - straight_s(np.sqrt(away2), s_per_m)


@njit(cache=True, nogil=True)
def _look(forest: Any, s_per_m: float, reach_m: float, reach_s: float, extra: float, known: Any, q: int,
          x: float, y: float, z: float, node: int, k: int, found: Any, value: Any, count: int,
          lowest: float) -> Any:  # fmt: skip
    """Takes what a leaf has above `lowest` into the row; returns the row's length and what is to be beaten now."""
    for t in range(forest.begin[node], forest.end[node]):
        dx, dy, dz = x - forest.place[t, 0], y - forest.place[t, 1], z - forest.place[t, 2]
        chord2 = dx * dx + dy * dy + dz * dz
        spare = forest.weight[t] - extra - lowest + STEP_S
        if spare <= 0.0 or chord2 * s_per_m * s_per_m > spare * spare:
            continue
        metres = arc_m(chord2)
        way = straight_s(metres, s_per_m)
        worth = forest.weight[t] - extra - way
        if worth <= lowest or metres > reach_m or way > reach_s:
            continue
        partner = forest.order[t]
        if known.first[q + 1] > known.first[q] and _holds(known, q, partner):
            continue
        s = count if count < k else k - 1
        while s > 0 and (value[s - 1] < worth or (value[s - 1] == worth and found[s - 1] > partner)):
            found[s], value[s] = found[s - 1], value[s - 1]
            s -= 1
        found[s], value[s] = partner, worth
        count = min(count + 1, k)
        if count == k:
            lowest = value[k - 1]
    return count, lowest


@njit(cache=True, nogil=True)
def _holds(known: Any, q: int, partner: int) -> Any:
    lo, hi = known.first[q], known.first[q + 1]
    while lo < hi:
        mid = (lo + hi) // 2
        if known.other[mid] < partner:
            lo = mid + 1
        else:
            hi = mid
    return lo < known.first[q + 1] and known.other[lo] == partner
