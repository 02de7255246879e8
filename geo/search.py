"""The k nearest drivers of a point, exactly (P8): best first through the tree of balls. Compiled.

Why nothing nearer is missed:

1. Order by great-circle distance is order by chord, the straight line through the
   earth, and chords obey the triangle inequality: a ball with centre c and radius r
   lies at least |q - c| - r from a point q (geo.tree: balls are measured).
2. Nodes are looked at in the order of that bound (G. R. Hjaltason, H. Samet,
   "Distance browsing in spatial databases", ACM TODS 24, 1999). The search ends when
   the nearest node left is farther than the k-th nearest driver found, or the limit.
3. Chords to rounded places, off by less than one unit each, tell who may be among the
   nearest: whoever is no more than PAD units beyond the k-th. Of these few the
   distance is computed in full by `arc_m`. PAD covers the rounding of two places, of
   chords in double precision (some 1e-9 m) and of distances: where these err by more,
   near antipodes, chords hardly change.

Where more than SPARE share the k-th's place, a crowd on one spot, or many are wanted,
the full distance of each that comes within the bound is computed (`_nearest_in_full`).

Drivers come in the order of (distance, id), ids compared by their ranks (geo.order).
Where a tie meets an id that has no rank yet, the search says so.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from geo.branches import entry_for, place_of
from geo.compiled import compiled
from geo.distance import arc_m, chord_m
from geo.layout import COUNT, ENTRIES, FIX_MS, LAT, LEVEL, LON, RANK, ROOT, ROW, UNITS, WHAT, WHO
from geo.records import UNKNOWN_U16

PAD: Final = 2.0
#: As many beyond k are remembered, for those that are about as far as the k-th.
SPARE: Final = 16
#: Up to so many the nearest are kept in order; beyond, putting each in its place takes too long.
SORTED_MAX: Final = 512
#: What a search says instead of a number of drivers.
UNDECIDED: Final = -1
_CROWDED: Final = -2


@compiled
def nearest(
    node: Any, block: Any, told: Any, ahead: Any, motion: Any, where: Any, lat: float, lon: float, k: int,
    limit_m: float, oldest_ms: float, now_ms: float, suits: Any, barred: Any,
) -> Any:  # fmt: skip
    """(count or UNDECIDED, floats, whole numbers) of one point's k nearest.

    Floats are distance (m), latitude, longitude (degrees), heading (degrees) and speed (m/s), negative where
    unknown; whole numbers are slot, kind and age (ms).
    """
    away_m, slots = np.empty(k), np.empty(k, np.int32)
    close2, rows = np.empty(k + SPARE), np.empty(k + SPARE, np.int32)
    tied = np.zeros(1, np.bool_)
    found = _search(node, block, told, ahead, where, lat, lon, limit_m, oldest_ms, suits, barred, close2, rows,
                    away_m, slots, tied)  # fmt: skip
    floats, whole = np.empty((found, 5)), np.empty((found, 3), np.int64)
    for i in range(found):
        slot = slots[i]
        n, j = where[slot, ROW] // ENTRIES, where[slot, ROW] % ENTRIES
        floats[i, 0], floats[i, 1], floats[i, 2] = away_m[i], told[n, j, LAT], told[n, j, LON]
        floats[i, 3], floats[i, 4] = _hundredths(motion[slot, 0]), _hundredths(motion[slot, 1])
        whole[i, 0], whole[i, 1] = slot, block[n, j, WHAT]
        whole[i, 2] = max(now_ms - told[n, j, FIX_MS], 0.0)
    return UNDECIDED if tied[0] else found, floats, whole


@compiled
def _hundredths(value: int) -> float:
    return -1.0 if value == UNKNOWN_U16 else value / 100.0


@compiled
def in_tenths(floats: Any, whole: Any, s_per_m: float, steps_per_s: float) -> Any:
    """Of what `nearest` found: latitude, longitude, distance (m), time to drive it (s) and age (s).

    The last three are rounded to tenths, halves to even; the time first to a multiple of the grid's step.
    """
    told = np.empty((len(floats), 5))
    for i in range(len(floats)):
        away_m = floats[i, 0]
        drive_s = np.rint(away_m * s_per_m * steps_per_s) / steps_per_s
        told[i, 0], told[i, 1] = floats[i, 1], floats[i, 2]
        told[i, 2], told[i, 3] = np.rint(away_m * 10.0) / 10.0, np.rint(drive_s * 10.0) / 10.0
        told[i, 4] = np.rint(whole[i, 2] / 1000.0 * 10.0) / 10.0
    return told


@compiled
def nearest_of_each(
    node: Any, block: Any, told: Any, ahead: Any, where: Any, lats: Any, lons: Any, wanted: int, k: int,
    limit_m: float, oldest_ms: float, suits: Any, barred: Any,
) -> Any:  # fmt: skip
    """(point, rank of the id, distance) of the nearest of each of many points, at most `k` and fewer than `wanted`;
    and of each point the distance of the one of number `wanted`, inf where there is none. All ids have ranks.
    """
    points = len(lats)
    point, slots, away_m = np.empty(points * k, np.int32), np.empty(points * k, np.int32), np.empty(points * k)
    close2, rows = np.empty(k + SPARE), np.empty(k + SPARE, np.int32)
    beyond_m, tied = np.full(points, np.inf), np.zeros(1, np.bool_)
    at = 0
    for p in range(points):
        found = _search(node, block, told, ahead, where, lats[p], lons[p], limit_m, oldest_ms, suits, barred, close2,
                        rows, away_m[at : at + k], slots[at : at + k], tied)  # fmt: skip
        if found == wanted:
            found -= 1
            beyond_m[p] = away_m[at + found]
        point[at : at + found] = p
        at += found
    for i in range(at):
        slots[i] = where[slots[i], RANK]
    return point[:at], slots[:at], away_m[:at], beyond_m


@compiled
def _search(
    node: Any, block: Any, told: Any, ahead: Any, where: Any, lat: float, lon: float, limit_m: float,
    oldest_ms: float, suits: Any, barred: Any, close2: Any, rows: Any, away_m: Any, slots: Any, tied: Any,
) -> int:  # fmt: skip
    """Fills the last columns with the nearest, in order, and returns how many there are."""
    x, y, z = place_of(lat, lon)
    first = node[0, ROOT]
    while node[first, LEVEL] > 0:
        first = block[first, entry_for(node, block, first, x, y, z), WHO]
    found = _CROWDED
    if len(away_m) <= SORTED_MAX:
        count, bound2 = _close(node, block, told, ahead, x, y, z, first, _reach(limit_m), oldest_ms, suits, barred,
                               close2, rows, len(away_m))  # fmt: skip
        if count != _CROWDED:
            found = _told_apart(block, told, where, lat, lon, limit_m, count, bound2, close2, rows, away_m, slots, tied)
    if found == _CROWDED:
        found = _nearest_in_full(node, block, told, ahead, where, lat, lon, x, y, z, first, limit_m, oldest_ms, suits,
                                 barred, away_m, slots, tied)  # fmt: skip
    return found


@compiled
def _reach(distance_m: float) -> float:
    """Beyond how many units nobody is that is within this distance."""
    return chord_m(distance_m) * UNITS + PAD


@compiled
def _close(
    node: Any, block: Any, told: Any, ahead: Any, x: float, y: float, z: float, first: int, bound: float,
    oldest_ms: float, suits: Any, barred: Any, close2: Any, rows: Any, k: int,
) -> Any:  # fmt: skip
    """(count, bound²) of those who may be among the k nearest, by the chords to their rounded places, in order.

    The count is _CROWDED where more are as close as that than the columns hold.
    """
    count, lost2, bound2 = 0, np.inf, bound * bound
    # A leaf nearby comes first, so that most others are beyond what it bounds.
    count, lost2, bound2 = _look(block, told, x, y, z, first, node[first, COUNT], oldest_ms, suits, barred, close2,
                                 rows, k, count, lost2, bound2)  # fmt: skip
    bound = math.sqrt(bound2)
    left = _put(ahead, 0, 0.0, node[0, ROOT])
    while left > 0 and ahead[0, 0] <= bound:
        n = int(ahead[0, 1])
        left = _take(ahead, left)
        if node[n, LEVEL] > 0:
            left = _open(block, n, node[n, COUNT], x, y, z, bound, ahead, left)
        elif n != first:
            count, lost2, bound2 = _look(block, told, x, y, z, n, node[n, COUNT], oldest_ms, suits, barred, close2,
                                         rows, k, count, lost2, bound2)  # fmt: skip
            bound = math.sqrt(bound2)
    return _CROWDED if lost2 <= bound2 else count, bound2


@compiled
def _look(
    block: Any, told: Any, x: float, y: float, z: float, n: int, entries: int, oldest_ms: float, suits: Any,
    barred: Any, close2: Any, rows: Any, k: int, count: int, lost2: float, bound2: float,
) -> Any:  # fmt: skip
    """Puts those of a leaf's drivers among the closest that are. Returns count, the closest lost, and bound²."""
    for j in range(entries):
        dx, dy, dz = block[n, j, 0] - x, block[n, j, 1] - y, block[n, j, 2] - z
        this2 = dx * dx + dy * dy + dz * dz
        if this2 > bound2 or told[n, j, FIX_MS] < oldest_ms or not suits[block[n, j, WHAT]]:
            continue
        if len(barred) > 0 and barred[block[n, j, WHO]]:
            continue
        if count == len(close2):
            lost2 = min(lost2, max(close2[count - 1], this2))
            if this2 >= close2[count - 1]:
                continue
            count -= 1
        at = count
        while at > 0 and close2[at - 1] > this2:
            close2[at], rows[at] = close2[at - 1], rows[at - 1]
            at -= 1
        close2[at], rows[at] = this2, n * ENTRIES + j
        count += 1
        if count >= k:
            bound2 = min(bound2, (math.sqrt(close2[k - 1]) + PAD) ** 2)
    return count, lost2, bound2


@compiled
def _told_apart(
    block: Any, told: Any, where: Any, lat: float, lon: float, limit_m: float, count: int, bound2: float, close2: Any,
    rows: Any, away_m: Any, slots: Any, tied: Any,
) -> int:  # fmt: skip
    """The nearest in order, of those that may be. Returns how many."""
    found = 0
    for i in range(count):
        if close2[i] > bound2:
            break
        n, j = rows[i] // ENTRIES, rows[i] % ENTRIES
        this_m, slot = arc_m(lat, lon, told[n, j, LAT], told[n, j, LON]), block[n, j, WHO]
        if this_m > limit_m:
            continue
        at = found
        while at > 0 and _before(this_m, slot, away_m[at - 1], slots[at - 1], where, tied):
            if at < len(away_m):
                away_m[at], slots[at] = away_m[at - 1], slots[at - 1]
            at -= 1
        if at < len(away_m):
            away_m[at], slots[at] = this_m, slot
            found = min(found + 1, len(away_m))
    return found


@compiled
def _before(one_m: float, one: int, other_m: float, other: int, where: Any, tied: Any) -> bool:
    """Whether one driver comes before another, by (distance, id)."""
    if one_m != other_m:
        return one_m < other_m
    if where[one, RANK] < 0 or where[other, RANK] < 0:
        tied[0] = True
    return where[one, RANK] < where[other, RANK]


# The nodes to look at: a heap, the nearest first


@compiled
def _open(block: Any, n: int, entries: int, x: float, y: float, z: float, bound: float, ahead: Any, left: int) -> int:
    """Puts those children among the nodes to look at that come within the bound."""
    for j in range(entries):
        dx, dy, dz = block[n, j, 0] - x, block[n, j, 1] - y, block[n, j, 2] - z
        gap = math.sqrt(dx * dx + dy * dy + dz * dz) - block[n, j, WHAT]
        if gap <= bound:
            left = _put(ahead, left, gap, block[n, j, WHO])
    return left


@compiled
def _put(ahead: Any, left: int, gap: float, n: int) -> int:
    at = left
    while at > 0:
        above = (at - 1) >> 1
        if ahead[above, 0] <= gap:
            break
        ahead[at, 0], ahead[at, 1] = ahead[above, 0], ahead[above, 1]
        at = above
    ahead[at, 0], ahead[at, 1] = gap, n
    return left + 1


@compiled
def _take(ahead: Any, left: int) -> int:
    """Takes the first away."""
    left -= 1
    gap, n = ahead[left, 0], ahead[left, 1]
    at = 0
    while 2 * at + 1 < left:
        below = 2 * at + 1
        if below + 1 < left and ahead[below + 1, 0] < ahead[below, 0]:
            below += 1
        if ahead[below, 0] >= gap:
            break
        ahead[at, 0], ahead[at, 1] = ahead[below, 0], ahead[below, 1]
        at = below
    ahead[at, 0], ahead[at, 1] = gap, n
    return left


# All distances in full: the nearest found are a heap, the farthest first


@compiled
def _nearest_in_full(
    node: Any, block: Any, told: Any, ahead: Any, where: Any, lat: float, lon: float, x: float, y: float, z: float,
    first: int, limit_m: float, oldest_ms: float, suits: Any, barred: Any, away_m: Any, slots: Any, tied: Any,
) -> int:  # fmt: skip
    """Fills the columns with the nearest, in order, and returns how many there are."""
    found, bound = _look_in_full(block, told, where, lat, lon, x, y, z, limit_m, oldest_ms, suits, barred, first,
                                 node[first, COUNT], away_m, slots, tied, 0, _reach(limit_m))  # fmt: skip
    left = _put(ahead, 0, 0.0, node[0, ROOT])
    while left > 0 and ahead[0, 0] <= bound:
        n = int(ahead[0, 1])
        left = _take(ahead, left)
        if node[n, LEVEL] > 0:
            left = _open(block, n, node[n, COUNT], x, y, z, bound, ahead, left)
        elif n != first:
            found, bound = _look_in_full(block, told, where, lat, lon, x, y, z, limit_m, oldest_ms, suits, barred, n,
                                         node[n, COUNT], away_m, slots, tied, found, bound)  # fmt: skip
    for last in range(found - 1, 0, -1):
        this_m, slot = away_m[last], slots[last]
        farthest_m, farthest = away_m[0], slots[0]
        _sink(away_m, slots, where, tied, last, this_m, slot)
        away_m[last], slots[last] = farthest_m, farthest
    return found


@compiled
def _look_in_full(
    block: Any, told: Any, where: Any, lat: float, lon: float, x: float, y: float, z: float, limit_m: float,
    oldest_ms: float, suits: Any, barred: Any, n: int, entries: int, away_m: Any, slots: Any, tied: Any, found: int,
    bound: float,
) -> Any:  # fmt: skip
    """Puts those of a leaf's drivers among the nearest that are. Returns how many there are now, and their bound."""
    last, this_m = -1, 0.0
    for j in range(entries):
        dx, dy, dz = block[n, j, 0] - x, block[n, j, 1] - y, block[n, j, 2] - z
        if dx * dx + dy * dy + dz * dz > bound * bound:
            continue
        if told[n, j, FIX_MS] < oldest_ms or not suits[block[n, j, WHAT]]:
            continue
        slot = block[n, j, WHO]
        if len(barred) > 0 and barred[slot]:
            continue
        # A crowd on one spot is equally far.
        if last < 0 or told[n, j, LAT] != told[n, last, LAT] or told[n, j, LON] != told[n, last, LON]:
            this_m = arc_m(lat, lon, told[n, j, LAT], told[n, j, LON])
        last = j
        if this_m > limit_m:
            continue
        if found < len(away_m):
            found = _join(away_m, slots, where, tied, found, this_m, slot)
        elif _before(this_m, slot, away_m[0], slots[0], where, tied):
            _sink(away_m, slots, where, tied, found, this_m, slot)
        if found == len(away_m):
            bound = min(bound, _reach(away_m[0]))
    return found, bound


@compiled
def _join(away_m: Any, slots: Any, where: Any, tied: Any, found: int, this_m: float, slot: int) -> int:
    at = found
    while at > 0:
        above = (at - 1) >> 1
        if not _before(away_m[above], slots[above], this_m, slot, where, tied):
            break
        away_m[at], slots[at] = away_m[above], slots[above]
        at = above
    away_m[at], slots[at] = this_m, slot
    return found + 1


@compiled
def _sink(away_m: Any, slots: Any, where: Any, tied: Any, found: int, this_m: float, slot: int) -> None:
    """Puts a driver in place of the first, of so many."""
    at = 0
    while 2 * at + 1 < found:
        below = 2 * at + 1
        if below + 1 < found and _before(away_m[below], slots[below], away_m[below + 1], slots[below + 1], where, tied):
            below += 1
        if not _before(this_m, slot, away_m[below], slots[below], where, tied):
            break
        away_m[at], slots[at] = away_m[below], slots[below]
        at = below
    away_m[at], slots[at] = this_m, slot
