"""How the tree of drivers changes (geo.tree). Compiled.

A driver that moves stays in its leaf while it stays in the leaf's ball. Else it goes
down from the root to the nearest centres; a full node on its way is cut in two along
its longest side. When one leaves that reached the edge of a ball, the ball shrinks. A
node that is nearly empty joins a neighbour that has room, so that drivers bound the
memory (P10).

A *driver* here is (x, y, z, slot, kind, latitude, longitude, date).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from geo.compiled import compiled
from geo.layout import (
    BALL_MAX,
    CENTRE,
    COUNT,
    ENTRIES,
    ENTRIES_MIN,
    FIX_MS,
    FREE,
    INTEGERS,
    JOINED_MAX,
    LAT,
    LEFT,
    LEVEL,
    LON,
    NUMBERS,
    PARENT,
    RADIUS,
    RADIUS_UNITS,
    ROOT,
    ROW,
    UNITS,
    USED,
    WHAT,
    WHO,
)

#: On each level a node may be cut while a driver goes down, and a root put above; no tree has more levels.
MARGIN: Final = 32


@compiled
def place_of(lat: float, lon: float) -> Any:
    """A point in degrees as a place on the sphere in units, not rounded."""
    phi, lam = math.radians(lat), math.radians(lon)
    ring = RADIUS_UNITS * math.cos(phi)
    return ring * math.cos(lam), ring * math.sin(lam), RADIUS_UNITS * math.sin(phi)


@compiled
def driver_at(slot: int, kind: int, lat: float, lon: float, fix_ms: float) -> Any:
    """A driver as the tree takes it."""
    x, y, z = place_of(lat, lon)
    return round(x), round(y), round(z), slot, kind, lat, lon, fix_ms


@compiled
def _away(node: Any, n: int, x: int, y: int, z: int) -> float:
    """How far a place is from a node's centre."""
    dx, dy, dz = float(x - node[n, CENTRE]), float(y - node[n, CENTRE + 1]), float(z - node[n, CENTRE + 2])
    return math.sqrt(dx * dx + dy * dy + dz * dz)


# Nodes


@compiled
def plant(node: Any, told: Any) -> None:
    """Makes a tree, an empty leaf, out of columns of zeros."""
    node[0, USED] = 1
    told[0, :, FIX_MS] = -np.inf
    node[0, ROOT] = new_node(node, told, 0, 0)


@compiled
def new_node(node: Any, told: Any, level: int, parent: int) -> int:
    n = node[0, FREE]
    if n != 0:
        node[0, FREE] = node[n, PARENT]
        node[0, LEFT] -= 1
    else:
        n = node[0, USED]
        node[0, USED] += 1
    node[n, COUNT], node[n, LEVEL], node[n, PARENT], node[n, RADIUS] = 0, level, parent, 0
    told[n, :, FIX_MS] = -np.inf
    return n


@compiled
def _release(node: Any, n: int) -> None:
    node[n, COUNT], node[n, PARENT] = 0, node[0, FREE]
    node[0, FREE] = n
    node[0, LEFT] += 1


@compiled
def has_room(node: Any) -> bool:
    """Whether one more driver can be put in, however many nodes are cut on its way."""
    return len(node) - node[0, USED] + node[0, LEFT] >= MARGIN


@compiled
def _entry_of(node: Any, block: Any, child: int) -> int:
    """A child's entry in its parent, or -1."""
    parent = node[child, PARENT]
    for j in range(node[parent, COUNT]):
        if block[parent, j, WHO] == child:
            return j
    return -1


@compiled
def _copy(block: Any, told: Any, to: int, j: int, n: int, i: int) -> None:
    """Entry i of node n becomes entry j of node `to`."""
    for c in range(INTEGERS):
        block[to, j, c] = block[n, i, c]
    for c in range(NUMBERS):
        told[to, j, c] = told[n, i, c]


@compiled
def own(node: Any, block: Any, where: Any, n: int, begin: int) -> None:
    """The entries from `begin` on belong to this node now."""
    for j in range(begin, node[n, COUNT]):
        if node[n, LEVEL] == 0:
            where[block[n, j, WHO], ROW] = n * ENTRIES + j
        else:
            node[block[n, j, WHO], PARENT] = n


@compiled
def adopt(node: Any, block: Any, n: int, child: int) -> None:
    """A child becomes the node's last entry."""
    j = node[n, COUNT]
    node[n, COUNT] = j + 1
    block[n, j, WHO] = child
    _note(node, block, n, j)


@compiled
def _note(node: Any, block: Any, n: int, j: int) -> None:
    """Notes the ball of the child that entry j of node n is."""
    child = block[n, j, WHO]
    for axis in range(3):
        block[n, j, axis] = node[child, CENTRE + axis]
    block[n, j, WHAT] = node[child, RADIUS]


@compiled
def measure(node: Any, block: Any, n: int, always: bool) -> bool:
    """Measures the ball of a node that is not empty; takes it where it is smaller, or `always`. Whether it took it."""
    count = node[n, COUNT]
    x, y, z = _middle(block, n, count, 0), _middle(block, n, count, 1), _middle(block, n, count, 2)
    reach = 0.0
    for j in range(count):
        dx, dy, dz = float(block[n, j, 0] - x), float(block[n, j, 1] - y), float(block[n, j, 2] - z)
        away = math.sqrt(dx * dx + dy * dy + dz * dz)
        if node[n, LEVEL] > 0:
            away += block[n, j, WHAT]
        reach = max(reach, away)
    radius = min(math.ceil(reach), BALL_MAX)
    if not always and radius >= node[n, RADIUS]:
        return False
    node[n, RADIUS], node[n, CENTRE], node[n, CENTRE + 1], node[n, CENTRE + 2] = radius, x, y, z
    if node[n, PARENT] != 0:
        j = _entry_of(node, block, n)
        if j >= 0:
            _note(node, block, node[n, PARENT], j)
    return True


@compiled
def _middle(block: Any, n: int, count: int, axis: int) -> int:
    least, most = _range(block, n, count, axis)
    return (least + most) >> 1


@compiled
def _range(block: Any, n: int, count: int, axis: int) -> Any:
    least = most = np.int64(block[n, 0, axis])
    for j in range(1, count):
        least, most = min(least, block[n, j, axis]), max(most, block[n, j, axis])
    return least, most


# Putting in


@compiled
def insert(node: Any, block: Any, told: Any, where: Any, driver: Any) -> None:
    """Puts in a driver that is nowhere. `has_room` is true."""
    x, y, z = driver[0], driver[1], driver[2]
    n = node[0, ROOT]
    if node[n, COUNT] == ENTRIES:
        n = _raise(node, block, told, where)
    elif node[n, COUNT] == 0:  # the root alone may be empty
        node[n, RADIUS], node[n, CENTRE], node[n, CENTRE + 1], node[n, CENTRE + 2] = 0, x, y, z
    node[n, RADIUS] = max(node[n, RADIUS], math.ceil(_away(node, n, x, y, z)))
    while node[n, LEVEL] > 0:
        j = entry_for(node, block, n, float(x), float(y), float(z))
        child = block[n, j, WHO]
        if node[child, COUNT] == ENTRIES:
            other = _cut(node, block, told, where, child)
            if _away(node, other, x, y, z) < _away(node, child, x, y, z):
                j, child = node[n, COUNT] - 1, other
        reach = math.ceil(_away(node, child, x, y, z))
        if reach > node[child, RADIUS]:
            node[child, RADIUS] = block[n, j, WHAT] = reach
        n = child
    j = node[n, COUNT]
    node[n, COUNT] = j + 1
    where[driver[3], ROW] = n * ENTRIES + j
    _write(block, told, n, j, driver)


@compiled
def _write(block: Any, told: Any, n: int, j: int, driver: Any) -> None:
    block[n, j, 0], block[n, j, 1], block[n, j, 2] = driver[0], driver[1], driver[2]
    block[n, j, WHO], block[n, j, WHAT] = driver[3], driver[4]
    told[n, j, LAT], told[n, j, LON], told[n, j, FIX_MS] = driver[5], driver[6], driver[7]


@compiled
def entry_for(node: Any, block: Any, n: int, x: float, y: float, z: float) -> int:
    """The child whose centre is nearest, for its size: nearness alone stretches small balls among large ones."""
    best, least, size = 0, np.inf, 1.0
    for j in range(node[n, COUNT]):
        dx, dy, dz = block[n, j, 0] - x, block[n, j, 1] - y, block[n, j, 2] - z
        away2, this_size = dx * dx + dy * dy + dz * dz, block[n, j, WHAT] + UNITS
        if away2 * size < least * this_size:  # away2 / this_size < least / size
            best, least, size = j, away2, this_size
    return best


@compiled
def _raise(node: Any, block: Any, told: Any, where: Any) -> int:
    """Puts a new root above the full one, which is cut in two."""
    old = node[0, ROOT]
    root = new_node(node, told, node[old, LEVEL] + 1, 0)
    node[0, ROOT] = root
    node[old, PARENT] = root
    adopt(node, block, root, old)
    _cut(node, block, told, where, old)
    measure(node, block, root, True)
    return root


@compiled
def _cut(node: Any, block: Any, told: Any, where: Any, n: int) -> int:
    """Moves the upper half of a full node, along its longest side, to a new one beside it, for which there is room."""
    axis, longest = 0, -1
    for each in range(3):
        least, most = _range(block, n, ENTRIES, each)
        if most - least > longest:
            axis, longest = each, most - least
    _sort(block, told, n, axis)
    other = new_node(node, told, node[n, LEVEL], node[n, PARENT])
    half = ENTRIES // 2
    for j in range(half, ENTRIES):
        _copy(block, told, other, j - half, n, j)
        told[n, j, FIX_MS] = -np.inf
    node[n, COUNT], node[other, COUNT] = half, ENTRIES - half
    own(node, block, where, n, 0)
    own(node, block, where, other, 0)
    adopt(node, block, node[n, PARENT], other)
    measure(node, block, n, True)
    measure(node, block, other, True)
    return other


@compiled
def _sort(block: Any, told: Any, n: int, axis: int) -> None:
    """Sorts the entries of a full node along an axis, by insertion; the order of equals stays."""
    whole, numbers = np.empty(INTEGERS, np.int32), np.empty(NUMBERS)
    for i in range(1, ENTRIES):
        whole[:], numbers[:] = block[n, i], told[n, i]
        j = i
        while j > 0 and block[n, j - 1, axis] > whole[axis]:
            _copy(block, told, n, j, n, j - 1)
            j -= 1
        block[n, j], told[n, j] = whole, numbers


@compiled
def lay(node: Any, block: Any, told: Any, where: Any, driver: Any) -> None:
    """Puts a driver that is nowhere into any leaf, for a tree that is about to be made anew (geo.pack)."""
    n = node[0, USED] - 1
    if node[n, COUNT] == ENTRIES:
        n = new_node(node, told, 0, 0)
    node[n, RADIUS] = BALL_MAX
    j = node[n, COUNT]
    node[n, COUNT] = j + 1
    where[driver[3], ROW] = n * ENTRIES + j
    _write(block, told, n, j, driver)


# Taking out


@compiled
def remove(node: Any, block: Any, told: Any, where: Any, slot: int) -> None:
    """Takes out a driver that is somewhere."""
    n, j = where[slot, ROW] // ENTRIES, where[slot, ROW] % ENTRIES
    x, y, z = block[n, j, 0], block[n, j, 1], block[n, j, 2]
    where[slot, ROW] = -1
    _drop(node, block, told, where, n, j)
    _settle(node, block, told, where, n, x, y, z)


@compiled
def move(node: Any, block: Any, told: Any, where: Any, driver: Any) -> None:
    """Puts a driver that is somewhere elsewhere. `has_room` is true."""
    x, y, z, slot = driver[0], driver[1], driver[2], driver[3]
    n, j = where[slot, ROW] // ENTRIES, where[slot, ROW] % ENTRIES
    if _away(node, n, x, y, z) > node[n, RADIUS]:
        remove(node, block, told, where, slot)
        insert(node, block, told, where, driver)
        return
    before_x, before_y, before_z = block[n, j, 0], block[n, j, 1], block[n, j, 2]
    _write(block, told, n, j, driver)
    _cover(node, block, n, x, y, z)
    if _away(node, n, before_x, before_y, before_z) >= node[n, RADIUS] - 1:
        _settle(node, block, told, where, n, before_x, before_y, before_z)


@compiled
def _cover(node: Any, block: Any, n: int, x: int, y: int, z: int) -> None:
    """Extends the balls above a node to a place that is in its own: they may be narrower, as they hold drivers, not
    balls.
    """
    n = node[n, PARENT]
    while n != 0:
        reach = math.ceil(_away(node, n, x, y, z))
        if reach > node[n, RADIUS]:
            node[n, RADIUS] = reach
            if node[n, PARENT] != 0:
                block[node[n, PARENT], _entry_of(node, block, n), WHAT] = reach
        n = node[n, PARENT]


@compiled
def _drop(node: Any, block: Any, told: Any, where: Any, n: int, j: int) -> None:
    """Takes an entry out of a node; the last one takes its place."""
    last = node[n, COUNT] - 1
    if j < last:
        _copy(block, told, n, j, n, last)
        if node[n, LEVEL] == 0:
            where[block[n, j, WHO], ROW] = n * ENTRIES + j
    told[n, last, FIX_MS] = -np.inf
    node[n, COUNT] = last


@compiled
def _settle(node: Any, block: Any, told: Any, where: Any, n: int, x: int, y: int, z: int) -> None:
    """Makes good, from a leaf up, what it means that nobody is at this place any more."""
    shrunk = False
    while True:
        parent = node[n, PARENT]
        if parent != 0 and node[n, COUNT] < ENTRIES_MIN and _leave(node, block, told, where, n):
            shrunk = True
        elif node[n, COUNT] > 0 and (shrunk or _away(node, n, x, y, z) >= node[n, RADIUS] - 1):
            shrunk = measure(node, block, n, False)
        if parent == 0:
            break
        n = parent
    while node[n, LEVEL] > 0 and node[n, COUNT] == 1:
        child = block[n, 0, WHO]
        _release(node, n)
        node[0, ROOT], node[child, PARENT] = child, 0
        n = child


@compiled
def _leave(node: Any, block: Any, told: Any, where: Any, n: int) -> bool:
    """Frees a node that is nearly empty, whose entries go to the nearest neighbour with room. False if none has any."""
    parent, mine, count = node[n, PARENT], _entry_of(node, block, n), node[n, COUNT]
    best, least = -1, np.inf
    for j in range(node[parent, COUNT]):
        if j != mine and node[block[parent, j, WHO], COUNT] + count <= JOINED_MAX:
            away = _away(node, n, block[parent, j, 0], block[parent, j, 1], block[parent, j, 2])
            if away < least:
                best, least = block[parent, j, WHO], away
    if best < 0 and count > 0:
        return False
    _drop(node, block, told, where, parent, mine)
    if count > 0:
        begin = node[best, COUNT]
        for j in range(count):
            _copy(block, told, best, begin + j, n, j)
            told[n, j, FIX_MS] = -np.inf
        node[best, COUNT] = begin + count
        own(node, block, where, best, begin)
        measure(node, block, best, True)
    _release(node, n)
    return True
