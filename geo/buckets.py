"""Drivers' places by H3 cell, in columns that a search reads in long runs.

Three levels. A *row* is one driver's place. A *bucket* is a run of rows that
share a cell; a *group* is the buckets whose cells share a coarser parent cell.
Every bucket and group is a ball: a fixed centre and a radius that no row of it
exceeds, measured from the rows themselves. H3 only names buckets and proposes
centres, so nothing that is said of a ball depends on the shape of cells, on
pentagons, or on a driver truly being inside the cell that its record names.

Rows hold the place u relative to the group's centre in single precision, as
(-2x, -2y, -2z, x²+y²+z²) in metres in the earth's three dimensions, which makes
the squared distances of many points to many rows one matrix product, good to
`ROUNDING` of the lengths involved (scan.py). A driver is known by its slot; what else is
known of it, its owner keeps.

Buckets grow by moving to the end of the columns; when these are full, live
runs are packed anew (`_repack`), which costs a constant a driver over time.
Distances here are chords: straight lines through the earth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo import cells
from geo.distance import sphere_points_m

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

#: Levels of H3 between a cell and its group: 7² = 49 cells a group.
GROUP_LEVELS: Final = 2
#: Bound on the relative error of a squared distance computed from rows (scan.py proves it).
ROUNDING: Final = 2.0**-19
#: Added to lengths before ROUNDING is applied and to bounds: covers double precision on the earth's scale.
PAD_M: Final = 1.0


def spans(starts: Array, counts: Array) -> Ints:
    """The concatenation of `range(start, start + count)` over all pairs."""
    ends = np.cumsum(counts, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - ends + counts, counts) + np.arange(total, dtype=np.int64)


def runs(sorted_values: Array) -> tuple[Ints, Ints]:
    """Where each run of equal values begins, and how long it is."""
    edges = np.ones(len(sorted_values) + 1, dtype=np.bool_)
    np.not_equal(sorted_values[1:], sorted_values[:-1], out=edges[1:-1])
    if not len(sorted_values):
        edges = edges[:0]
    bounds = edges.nonzero()[0]
    return bounds[:-1], bounds[1:] - bounds[:-1]


def grown(array: Array, size: int) -> Array:
    """The array with at least `size` entries along its first axis: doubled, the new part zero."""
    if size <= len(array):
        return array
    larger = np.zeros((max(size, 2 * len(array)), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


class Buckets:
    """Places of drivers by slot and cell. Pure: no time, no ids."""

    def __init__(self, resolution: int) -> None:
        self._group_resolution = max(resolution - GROUP_LEVELS, 0)
        #: A bucket that reaches farther holds a driver that is not where its cell is.
        self._edge_m = cells.edge_m(resolution)
        self._loose_m = 2.0 * self._edge_m
        self.clear(0, 0)

    def clear(self, slots: int, rows: int) -> None:
        """Forgets everything and makes room for so many."""
        self.place = np.zeros((rows, 4), dtype=np.float32)
        self.fix_ms = np.zeros(rows, dtype=np.float64)
        self.kind = np.zeros(rows, dtype=np.int32)
        self.slot = np.zeros(rows, dtype=np.int32)
        self._rows_used = 0
        self.row_of = np.full(slots, -1, dtype=np.int32)
        self._bucket_of = np.full(slots, -1, dtype=np.int32)
        self.start = np.zeros(64, dtype=np.int64)
        self.count = np.zeros(64, dtype=np.int64)
        self._room = np.zeros(64, dtype=np.int64)
        self.centre = np.zeros((64, 3))
        self.radius = np.full(64, -np.inf)
        self.group = np.zeros(64, dtype=np.int32)
        self._offset = np.zeros(64)  # from the group's centre to the bucket's
        self.cell = np.zeros(64, dtype=np.uint64)
        self._named: dict[int, int] = {}
        self._unused = list(range(63, -1, -1))
        self.group_centre = np.zeros((16, 3))
        self.group_radius = np.full(16, -np.inf)
        self.group_count = np.zeros(16, dtype=np.int64)
        self.members: list[Ints] = []
        self._group_named: dict[int, int] = {}

    def named(self, cell: int) -> int | None:
        """The bucket of a cell; None where no driver has been for a while."""
        return self._named.get(cell)

    def guess_m(self, cell: int, k: int) -> float:
        """About how far from a point in this cell its k-th nearest row is, were all around as crowded."""
        bucket = self._named.get(cell)
        count = 0 if bucket is None else int(self.count[bucket])
        return 1.2 * self._edge_m * math.sqrt(k / count) if count else 2.0 * self._edge_m

    def reserve_slots(self, slots: int) -> None:
        self.row_of, self._bucket_of = grown(self.row_of, slots), grown(self._bucket_of, slots)

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        columns = (self.place, self.fix_ms, self.kind, self.slot, self.row_of, self._bucket_of, self.start, self.count)
        tables = (self._room, self.centre, self.radius, self.group, self._offset, self.cell, *self.members)
        every: list[Array] = [*columns, *tables, self.group_centre, self.group_radius, self.group_count]
        return sum(each.nbytes for each in every)

    # Writing

    def add(self, slots: Array, named: Array, points: Floats, fix_ms: Array, kind: Array) -> None:
        """Puts slots that are nowhere into the buckets of their cells. `points` is (n, 3) metres."""
        if not len(slots):
            return
        buckets = self._buckets_for(named, points)
        order = np.argsort(buckets, kind="stable")
        begins, counts = runs(buckets[order])
        into = buckets[order][begins]
        self._make_room(into, counts)
        rows = np.empty(len(slots), dtype=np.int64)
        rows[order] = spans(self.start[into] + self.count[into], counts)
        self.count[into] += counts
        np.add.at(self.group_count, self.group[into], counts)
        self.slot[rows] = slots
        self.row_of[slots] = rows
        self._bucket_of[slots] = buckets
        self._write(rows, buckets, points, fix_ms, kind)

    def update(self, slots: Array, points: Floats, fix_ms: Array, kind: Array) -> None:
        """Moves slots within their buckets."""
        self._write(self.row_of[slots], self._bucket_of[slots], points, fix_ms, kind)

    def _write(self, rows: Array, buckets: Array, points: Floats, fix_ms: Array, kind: Array) -> None:
        groups = self.group[buckets]
        offset = points - self.group_centre[groups]
        place = np.empty((len(rows), 4), dtype=np.float32)
        place[:, :3] = -2.0 * offset
        place[:, 3] = np.einsum("ij,ij->i", offset, offset)
        self.place[rows], self.fix_ms[rows], self.kind[rows] = place, fix_ms, kind
        reach = np.linalg.norm(points - self.centre[buckets], axis=1)
        np.maximum.at(self.radius, buckets, reach)
        np.maximum.at(self.group_radius, groups, self._offset[buckets] + self.radius[buckets])
        self._tighten_loose(buckets)

    def remove(self, slots: Array) -> None:
        """Takes slots out; the last rows of a run fill the holes."""
        if not len(slots):
            return
        rows = np.sort(self.row_of[slots])
        buckets = self._bucket_of[self.slot[rows]].astype(np.int64)
        self.row_of[slots] = self._bucket_of[slots] = -1
        begins, counts = runs(buckets)
        touched = buckets[begins]
        self.count[touched] -= counts
        groups = self.group[touched]
        np.subtract.at(self.group_count, groups, counts)
        self.group_radius[groups[self.group_count[groups] == 0]] = -np.inf
        ends = self.start[touched] + self.count[touched]
        self.slot[rows] = -1
        tails = spans(ends, counts)
        fillers = tails[self.slot[tails] >= 0]
        holes = rows[rows < np.repeat(ends, counts)]  # as many as fillers, bucket by bucket
        for column in (self.place, self.fix_ms, self.kind, self.slot):
            column[holes] = column[fillers]
        self.row_of[self.slot[holes]] = holes
        self.radius[touched[self.count[touched] == 0]] = -np.inf
        self._tighten_loose(touched)

    # Buckets and groups

    def _buckets_for(self, named: Array, points: Floats) -> Ints:
        names, first, inverse = np.unique(named, return_index=True, return_inverse=True)
        known = [self._named.get(name, -1) for name in names.tolist()]
        for position, bucket in enumerate(known):
            if bucket < 0:
                known[position] = self._new_bucket(int(names[position]), points[first[position]], known)
        return np.array(known, dtype=np.int64)[inverse]

    def _new_bucket(self, cell: int, point: Floats, in_use: Sequence[int]) -> int:
        if not self._unused:
            self._forget_empty(frozenset(in_use))
        bucket = self._unused.pop()
        centre = _centre_m(cell, point)
        group = self._group_for(cell, centre)
        self._named[cell] = bucket
        self.cell[bucket], self.group[bucket], self.centre[bucket] = cell, group, centre
        self.start[bucket] = self.count[bucket] = self._room[bucket] = 0
        self.radius[bucket] = -np.inf
        self._offset[bucket] = np.linalg.norm(centre - self.group_centre[group])
        self.members[group] = np.append(self.members[group], bucket)
        return bucket

    def _group_for(self, cell: int, centre: Floats) -> int:
        name = _parent(cell, self._group_resolution)
        group = self._group_named.get(name)
        if group is None:
            group = self._group_named[name] = len(self.members)
            self.members.append(np.empty(0, dtype=np.int64))
            for table in ("group_centre", "group_radius", "group_count"):
                setattr(self, table, grown(getattr(self, table), group + 1))
            self.group_centre[group], self.group_radius[group:] = _centre_m(name, centre), -np.inf
        return group

    def _forget_empty(self, in_use: frozenset[int]) -> None:
        """Frees the numbers of empty buckets (in sparse places drivers leave many behind), or adds numbers."""
        size = len(self.start)
        for bucket in np.flatnonzero(self.count == 0).tolist():
            if bucket not in in_use:
                group = self.group[bucket]
                self.members[group] = self.members[group][self.members[group] != bucket]
                del self._named[int(self.cell[bucket])]
                self._room[bucket] = 0
                self._unused.append(bucket)
        if len(self._unused) < size // 4:
            for name in ("start", "count", "_room", "centre", "radius", "group", "_offset", "cell"):
                setattr(self, name, grown(getattr(self, name), size + 1))
            self.radius[size:] = -np.inf
            self._unused.extend(range(len(self.start) - 1, size - 1, -1))

    def _tighten_loose(self, buckets: Array) -> None:
        """Measures anew the buckets among these that hold, or held, a driver far from its cell."""
        loose = self.radius[buckets] > self._loose_m
        if loose.any():
            self._tighten(np.unique(buckets[loose]))

    def _tighten(self, buckets: Array) -> None:
        """Shrinks the balls of non-empty buckets, and of their groups, to what their rows need."""
        counts = self.count[buckets]
        places = -0.5 * self.place.take(spans(self.start[buckets], counts), 0)[:, :3].astype(np.float64)
        offsets = self.centre[buckets] - self.group_centre[self.group[buckets]]
        reach = np.linalg.norm(places - np.repeat(offsets, counts, axis=0), axis=1)
        reach += np.linalg.norm(places, axis=1) * ROUNDING + PAD_M
        farthest = np.maximum.reduceat(reach, np.cumsum(counts) - counts)
        self.radius[buckets] = np.minimum(self.radius[buckets], farthest)
        for group in np.unique(self.group[buckets]).tolist():
            members = self.members[group]
            self.group_radius[group] = (self._offset[members] + self.radius[members]).max()

    # Room

    def _make_room(self, buckets: Ints, more: Ints) -> None:
        """Sees to it that these buckets have room for `more` rows each; moves those that lack it to the end."""
        needed = self.count[buckets] + more
        lacking = np.flatnonzero(needed > self._room[buckets])
        if not len(lacking):
            return
        room = needed[lacking] + needed[lacking] // 4 + 1
        if self._rows_used + int(room.sum()) > len(self.slot):
            self._repack(buckets, needed)
            return
        buckets = buckets[lacking]
        counts, starts = self.count[buckets], self._rows_used + np.cumsum(room) - room
        source, target = spans(self.start[buckets], counts), spans(starts, counts)
        for column in (self.place, self.fix_ms, self.kind, self.slot):
            column[target] = column[source]
        self.row_of[self.slot[target]] = target
        self.start[buckets], self._room[buckets] = starts, room
        self._rows_used += int(room.sum())

    def _repack(self, growing: Ints, needed: Ints) -> None:
        """Packs all runs anew, groups together, with room for what the growing need, and a fifth more at the end."""
        room = self.count + self.count // 8 + (self.count > 0)
        room[growing] = np.maximum(room[growing], needed)
        live = np.flatnonzero(room)
        live = live[np.argsort(self.group[live], kind="stable")]
        counts, total = self.count[live], int(room.sum())
        source, starts = spans(self.start[live], counts), np.cumsum(room[live]) - room[live]
        target = spans(starts, counts)
        for name in ("place", "fix_ms", "kind", "slot"):
            column = getattr(self, name)
            packed = np.zeros((total * 6 // 5 + 64, *column.shape[1:]), dtype=column.dtype)
            packed[target] = column.take(source, 0)
            setattr(self, name, packed)
        self.row_of[self.slot[target]] = target
        self._room = room
        self.start[live], self._rows_used = starts, total


def _centre_m(name: int, otherwise: Floats) -> Floats:
    """The centre of a cell, or the given place where the name is no cell's."""
    if not cells.is_cell(name):
        return otherwise
    centre = cells.centre_of(name)
    return sphere_points_m(centre.lat, centre.lon)


def _parent(cell: int, resolution: int) -> int:
    """The name of a cell's group; 0 for what is not a cell of at least that resolution."""
    if not cells.is_cell(cell) or cells.resolution_of(cell) < resolution:
        return 0
    return cells.parent_of(cell, resolution)
