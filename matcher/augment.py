"""Maximum-weight bipartite matching by shortest augmenting paths, from any start. Compiled.

The same problem from either side: nodes a and b (rides and drivers, or drivers and rides), an edge's
gain, and duals `y >= 0` of both sides with `y_a + y_b >= gain` on every edge. A matching in which matched
edges are tight and every free node has `y = 0` is the best there is, and the duals prove it (linear
programming duality). A free node with `y > 0` is *active*: it is either matched along a path of tight
edges, or its dual falls to zero, at the cost that Dijkstra's algorithm finds.

Sources: H. W. Kuhn, "The Hungarian method for the assignment problem", 1955; N. Tomizawa, 1971, and J. Edmonds and
R. M. Karp, 1972 (shortest paths over reduced costs). Ties break by position: the same edges give the same plan.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from matcher.problem import Floats, Ints
from matcher.reach import Known


class Rows(NamedTuple):
    """Edges by their node of one side: those of node r are first[r] to first[r + 1]."""

    first: Any  # int64, (nodes + 1,)
    other: Ints
    gain: Floats


@njit(cache=True, nogil=True)
def rows_of(row: Any, column: Any, gain: Any, rows: int) -> Any:
    """Edges by row. Within a row they keep their order."""
    first = _starts(row, rows)
    at = first.copy()
    other, worth = np.empty(len(row), np.int32), np.empty(len(row))
    for e in range(len(row)):
        slot = at[row[e]]
        at[row[e]] += 1
        other[slot], worth[slot] = column[e], gain[e]
    return Rows(first, other, worth)


@njit(cache=True, nogil=True)
def ordered(row: Any, column: Any, rows: int, columns: int) -> Any:
    """The positions of the pairs in the order of (row, column), each pair once (the first given)."""
    by_column, at = np.empty(len(row), np.int64), _starts(column, columns)
    for e in range(len(row)):
        by_column[at[column[e]]] = e
        at[column[e]] += 1
    order, at = np.empty(len(row), np.int64), _starts(row, rows)
    for t in range(len(row)):
        e = by_column[t]
        order[at[row[e]]] = e
        at[row[e]] += 1
    count = 0
    for t in range(len(row)):
        e = order[t]
        if count == 0 or row[e] != row[order[count - 1]] or column[e] != column[order[count - 1]]:
            order[count] = e
            count += 1
    return order[:count].copy()


@njit(cache=True, nogil=True)
def _starts(row: Any, rows: int) -> Any:
    start = np.zeros(rows + 1, np.int64)
    for r in row:
        start[r + 1] += 1
    return np.cumsum(start)


def known_rows(row: Ints, column: Ints, rows: int, columns: int) -> Known:
    """The pairs as rows whose partners ascend."""
    order = ordered(row, column, rows, columns)
    first = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row[order], minlength=rows), out=first[1:])
    return Known(first, column[order].astype(np.int32))


@njit(cache=True, nogil=True)
def components(a: Any, b: Any, count_a: int, count_b: int) -> int:
    """How many connected components with an edge there are (union by path halving, R. E. Tarjan, 1975)."""
    parent = np.arange(count_a + count_b)
    united = 0
    for e in range(len(a)):
        x, y = a[e], count_a + b[e]
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        while parent[y] != y:
            parent[y] = parent[parent[y]]
            y = parent[y]
        if x != y:
            parent[max(x, y)] = min(x, y)
            united += 1
    touched = np.zeros(count_a + count_b, np.bool_)
    for e in range(len(a)):
        touched[a[e]] = touched[count_a + b[e]] = True
    return int(touched.sum() - united)


@njit(cache=True, nogil=True)
def _raise(rows: Any, y_a: Any, y_b: Any, mate_a: Any, mate_b: Any) -> int:
    """Makes the duals feasible by raising those of side a; pairs that are no longer tight are parted."""
    first, other, gain = rows
    raised = 0
    for a in range(len(y_a)):
        need = y_a[a]
        for e in range(first[a], first[a + 1]):
            need = max(need, gain[e] - y_b[other[e]])
        if need > y_a[a]:
            y_a[a] = need
            raised += 1
            if mate_a[a] >= 0:
                mate_b[mate_a[a]] = -1
                mate_a[a] = -1
    return raised


@njit(cache=True, nogil=True)
def _relax(rows: Any, y_a: Any, y_b: Any, mate_a: Any) -> None:
    """Lowers the dual of each free node of side a to the least that is feasible."""
    first, other, gain = rows
    for a in range(len(y_a)):
        if mate_a[a] < 0 and y_a[a] > 0.0:
            need = 0.0
            for e in range(first[a], first[a + 1]):
                need = max(need, gain[e] - y_b[other[e]])
            y_a[a] = min(need, y_a[a])


@njit(cache=True, nogil=True)
def _put(key: Any, node: Any, slot: Any, size: int, k: float, v: int) -> int:
    """Puts v into a binary heap at key k, or moves it up to there; returns the size. Order is by (key, node)."""
    i = slot[v]
    if i < 0:
        i = size
        size += 1
    while i > 0:
        up = (i - 1) >> 1
        if key[up] < k or (key[up] == k and node[up] < v):
            break
        key[i], node[i] = key[up], node[up]
        slot[node[i]] = i
        i = up
    key[i], node[i], slot[v] = k, v, i
    return size


@njit(cache=True, nogil=True)
def _take(key: Any, node: Any, slot: Any, size: int) -> int:
    """Takes the least out, which is at 0 until then; returns the size."""
    slot[node[0]] = -1
    size -= 1
    if size == 0:
        return 0
    k, v = key[size], node[size]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (key[right] < key[child] or (key[right] == key[child] and node[right] < node[child])):
            child = right
        if k < key[child] or (k == key[child] and v < node[child]):
            break
        key[i], node[i] = key[child], node[child]
        slot[node[i]] = i
        i = child
    key[i], node[i], slot[v] = k, v, i
    return size


@njit(cache=True, nogil=True)
def _augment(rows: Any, y_a: Any, y_b: Any, mate_a: Any, mate_b: Any) -> int:
    """Settles every active node of side a. Returns how many nodes were scanned on the way."""
    first, other, gain = rows
    n, m = len(y_a), len(y_b)
    away, via = np.full(m, np.inf), np.empty(m, np.int32)
    done = np.zeros(m, np.bool_)
    reached, scanned, scanned_at = np.empty(m, np.int32), np.empty(n, np.int32), np.empty(n)
    key, node, slot = np.empty(m), np.empty(m, np.int32), np.full(m, -1, np.int32)
    total = 0
    for start in range(n):
        if mate_a[start] >= 0 or y_a[start] <= 0.0:
            continue
        touched, size, count = 0, 0, 0
        a, at = start, 0.0
        # The cheapest end so far: node `end` of side a stays free (its dual falls to zero), or of side b is taken.
        best, end, takes = y_a[start], start, False
        while True:
            scanned[count], scanned_at[count] = a, at
            count += 1
            base = at + y_a[a]
            if base < best:
                best, end, takes = base, a, False
            # Free partners first: the nearest of them bounds what is worth remembering of the others.
            for e in range(first[a], first[a + 1]):
                b = other[e]
                if mate_b[b] < 0:
                    to = base + y_b[b] - gain[e]
                    if to < best:
                        best, end, takes, via[b] = to, b, True, a
            for e in range(first[a], first[a + 1]):
                b = other[e]
                to = base + y_b[b] - gain[e]
                if to < best and to < away[b] and mate_b[b] >= 0:
                    if away[b] == np.inf:
                        reached[touched] = b
                        touched += 1
                    away[b], via[b] = to, a
                    size = _put(key, node, slot, size, to, b)
            if size == 0 or key[0] >= best:
                break
            at, b = key[0], node[0]
            size = _take(key, node, slot, size)
            done[b] = True
            a = mate_b[b]
        total += count
        for s in range(count):
            y_a[scanned[s]] -= best - scanned_at[s]
        for t in range(touched):
            b = reached[t]
            if done[b]:
                y_b[b] += best - away[b]
            away[b], done[b], slot[b] = np.inf, False, -1
        if not takes:
            y_a[end] = 0.0
            b = mate_a[end]
            mate_a[end] = -1
        else:
            b = end
        while b >= 0:
            a = via[b]
            following = mate_a[a]
            mate_a[a], mate_b[b] = b, a
            b = following if a != start else -1
    return total


@njit(cache=True, nogil=True)
def settle(a_rows: Any, b_rows: Any, y_a: Any, y_b: Any, mate_a: Any, mate_b: Any) -> Any:
    """From any duals `y >= 0` and any matching of tight edges to the optimum; changes all four in place.

    `a_rows` and `b_rows` hold the same edges by their nodes of either side. Fastest where a is the scarcer
    side. Returns how many nodes of side a had to be raised, and how many were scanned.
    """
    raised = _raise(a_rows, y_a, y_b, mate_a, mate_b)
    _relax(a_rows, y_a, y_b, mate_a)
    _relax(b_rows, y_b, y_a, mate_b)
    scanned = _augment(a_rows, y_a, y_b, mate_a, mate_b) + _augment(b_rows, y_b, y_a, mate_b, mate_a)
    return raised, scanned


@njit(cache=True, nogil=True)
def cheapest_of(ride: Any, cost_s: Any, rides: int, k: int) -> Any:
    """Of each ride the places of its k cheapest pairs, ascending, ties by place; -1 where there are fewer.

    `ride` ascends.
    """
    found = np.full((rides, k), -1, np.int32)
    for e in range(len(ride)):
        row = found[ride[e]]
        s = k
        while s > 0 and (row[s - 1] < 0 or cost_s[row[s - 1]] > cost_s[e]):
            if s < k:
                row[s] = row[s - 1]
            s -= 1
        if s < k:
            row[s] = e
    return found


@njit(cache=True, nogil=True)
def forced(rides: Any, drivers: Any, y_r: Any, y_d: Any, mate_r: Any, mate_d: Any, pair_ride: Any, pair_driver: Any,
           pair_gain: Any) -> Any:  # fmt: skip
    """By how much the greatest gain falls when each of these pairs has to be in the matching.

    The pair's nodes leave the graph; whom they leave behind is settled anew, from the optimum's duals. The
    pair's reduced cost is what that costs at least.
    """
    more = np.empty(len(pair_ride))
    for e in range(len(pair_ride)):
        i, j = pair_ride[e], pair_driver[e]
        yr, yd, mr, md = y_r.copy(), y_d.copy(), mate_r.copy(), mate_d.copy()
        if mr[i] >= 0:
            md[mr[i]] = -1
        if md[j] >= 0:
            mr[md[j]] = -1
        # Out of reach for everyone, and never active: an infinite dual, and a partner in name.
        yr[i], yd[j], mr[i], md[j] = np.inf, np.inf, 0, 0
        left = _finite_sum(yr) + _finite_sum(yd)
        _augment(rides, yr, yd, mr, md)
        _augment(drivers, yd, yr, md, mr)
        spent = left - _finite_sum(yr) - _finite_sum(yd)
        more[e] = y_r[i] + y_d[j] - pair_gain[e] + spent
    return more


@njit(cache=True, nogil=True)
def _finite_sum(y: Any) -> float:
    total = 0.0
    for x in y:
        if x < np.inf:
            total += x
    return total
