"""A tree of all drivers at once (geo.tree). Compiled.

Drivers are cut into parts of equal number, again and again, across the longest side of
what they fill (after J. L. Bentley's k-d trees, CACM 18, 1975): first into as many as
the root shall have children, each of these in the same way, down to leaves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from geo.branches import adopt, measure, new_node, own
from geo.compiled import compiled
from geo.layout import COUNT, ENTRIES, FIX_MS, INNER_FILL, INTEGERS, LEAF_FILL, LEVEL, NUMBERS, ROOT, USED


@compiled
def pack(
    old_node: Any, old_block: Any, old_told: Any, where: Any, drivers: int, node: Any, block: Any, told: Any
) -> None:
    """Makes a tree of another's drivers, in columns of zeros that have room for it."""
    rows = _rows(old_node, old_block, drivers)
    level, share = 0, LEAF_FILL  # the drivers under a node of the level below
    while share < drivers:
        level, share = level + 1, share * INNER_FILL
    node[0, USED] = 1
    told[0, :, FIX_MS] = -np.inf
    node[0, ROOT] = new_node(node, told, level, 0)
    parts = [
        (0, drivers, np.int64(node[0, ROOT]), level, 0)
    ]  # of each: whose drivers, and into how many to cut; 0: fill
    while len(parts) > 0:
        begin, end, n, height, pieces = parts.pop()
        if pieces == 0 and height == 0:
            for i in range(begin, end):
                _copy_from(block, told, n, i - begin, old_block, old_told, rows[i, 3])
            node[n, COUNT] = end - begin
            own(node, block, where, n, 0)
        elif pieces == 0:
            below = LEAF_FILL * INNER_FILL ** (height - 1)
            parts.append((begin, end, n, height, (end - begin + below - 1) // below))
        elif pieces == 1:
            child = new_node(node, told, height - 1, n)
            adopt(node, block, n, child)
            parts.append((begin, end, np.int64(child), height - 1, 0))
        else:
            half = pieces // 2
            mid = begin + (end - begin) * half // pieces
            _select(rows, begin, end - 1, mid, _longest(rows, begin, end))
            parts.append((begin, mid, n, height, half))
            parts.append((mid, end, n, height, pieces - half))
    for height in range(level + 1):
        for each in range(1, node[0, USED]):
            if node[each, LEVEL] == height and node[each, COUNT] > 0:
                measure(node, block, each, True)


@compiled
def _rows(node: Any, block: Any, drivers: int) -> Any:
    """The place and the row of every driver."""
    rows = np.empty((drivers, 4), np.int32)
    at = 0
    for n in range(1, node[0, USED]):
        if node[n, LEVEL] == 0:
            for j in range(node[n, COUNT]):
                rows[at, 0], rows[at, 1], rows[at, 2] = block[n, j, 0], block[n, j, 1], block[n, j, 2]
                rows[at, 3] = n * ENTRIES + j
                at += 1
    return rows


@compiled
def _copy_from(block: Any, told: Any, to: int, j: int, old_block: Any, old_told: Any, row: int) -> None:
    n, i = row // ENTRIES, row % ENTRIES
    for c in range(INTEGERS):
        block[to, j, c] = old_block[n, i, c]
    for c in range(NUMBERS):
        told[to, j, c] = old_told[n, i, c]


@compiled
def _longest(rows: Any, begin: int, end: int) -> int:
    """The axis along which these rows reach farthest."""
    best, longest = 0, -1
    for axis in range(3):
        least, most = rows[begin, axis], rows[begin, axis]
        for i in range(begin + 1, end):
            least, most = min(least, rows[i, axis]), max(most, rows[i, axis])
        if most - least > longest:
            best, longest = axis, most - least
    return best


@compiled
def _select(rows: Any, lo: int, hi: int, k: int, axis: int) -> None:
    """Puts the row that belongs at k there, none greater before it (C. A. R. Hoare's "Find", CACM 4, 1961)."""
    while lo < hi:
        pivot = rows[(lo + hi) >> 1, axis]
        i, j = lo, hi
        while i <= j:
            while rows[i, axis] < pivot:
                i += 1
            while rows[j, axis] > pivot:
                j -= 1
            if i <= j:
                for c in range(4):
                    rows[i, c], rows[j, c] = rows[j, c], rows[i, c]
                i, j = i + 1, j - 1
        if k <= j:
            hi = j
        elif k >= i:
            lo = i
        else:
            return
