"""The k nearest rows of one point or many, exactly (P8).

Why nothing nearer is missed:

1. Order by great-circle distance is order by chord (the straight line through
   the earth), and chords obey the triangle inequality. A ball with centre c and
   radius r, which holds all rows of a bucket, lies at least |q - c| - r from a
   point q. Balls are measured from the rows (buckets.py), so the bound holds at
   poles, on the antimeridian, near pentagons and for misnamed cells alike.
2. A search first *probes*: it finds k eligible rows in some nearby buckets; the
   farthest of these bounds the k-th nearest of all from above. The k-th smallest
   of block-wise minima serves as well (scan.py).
3. It then *collects* every eligible row within that bound from every bucket whose
   ball comes within it. No row elsewhere can be among the k nearest. Where fewer
   than k rows exist within the limit, the limit is the bound.
4. Computed distances err, by bounded amounts; every comparison is widened by these
   (scan.py). What a search returns is thus a superset of the k nearest, which
   `distance_m` then orders. Near antipodes that errs by some centimetres while
   chords hardly change over kilometres: far below ROUNDING of such lengths.

One point guesses how far it must look, from how crowded its cell is, and widens
that until k eligible rows lie within (`near_one`). Many points probe a sample of
their group's rows and compare with many rows at once (`near_all`).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from geo.buckets import Floats, Ints, runs
from geo.scan import PAIRS_MAX, Array, Lens, Pairs, Scan, Singles, gaps, joined, kth, touched

#: More pairs a point than this many times k are taken for a crowd on one spot.
CROWD_FACTOR: Final = 16
#: Rows a probe looks at, for each that is wanted.
PROBE_FACTOR: Final = 64
#: Points compared at once with the rows in reach of any of them.
POINTS_AT_ONCE: Final = 16


def near_one(scan: Scan, point: Floats, guess_m: float) -> Array:
    """Slots of the nearest of one point, (3,) metres. The guess of how far they are decides the speed alone."""
    bound, limit_m, reach_m = scan.limit_m2, math.sqrt(scan.limit_m2), guess_m
    while True:
        reach_m = min(reach_m, limit_m)
        members = _in_reach(scan, point, reach_m)
        held = int(scan.buckets.count.take(members).sum())
        is_final, widening = reach_m == limit_m or bound <= reach_m * reach_m, 2.0
        if held > scan.k * CROWD_FACTOR * CROWD_FACTOR and not is_final:
            # Too far out: the nearest of these buckets will tell how far is enough, or that few are eligible.
            bound, _ = _best_of(scan, point, _nearest_first(scan, point, members), bound)
            widening = 16.0
        elif held >= scan.k or is_final:
            bound, slots = _best_of(scan, point, _gathered(scan, members, _origin(scan, members)), bound)
            if is_final or bound <= reach_m * reach_m:
                is_crowd = len(slots) > CROWD_FACTOR * (scan.k + 1)
                return slots.compress(scan.thin(slots, scan.k)) if is_crowd else slots
        # Everything within the bound is looked at next; while there is none, what is several times as far.
        reach_m = math.sqrt(bound) * (1.0 + 1e-9) if bound < scan.limit_m2 else widening * reach_m


def _nearest_first(scan: Scan, point: Floats, members: Ints) -> _Rows:
    """The eligible rows of those of the buckets that are nearest, a few for each that is wanted."""
    buckets = scan.buckets
    away = gaps(point[None], buckets.centre.take(members, 0), buckets.radius.take(members))[0]
    members = members[np.argsort(away)]
    members = members[: _enough(buckets.count.take(members), scan.k * PROBE_FACTOR)]
    return _gathered(scan, members, _origin(scan, members))


def _best_of(scan: Scan, point: Floats, rows: _Rows, bound: float) -> tuple[float, Array]:
    """A bound on the k-th nearest of these rows and of what gave the bound before, and who lies within it."""
    lens = Lens(point[None], rows.origin, rows.reach_m)
    squared, slack = lens.squared(rows.places), float(lens.slack[0, 0])
    if len(rows) >= scan.k:
        bound = min(float(kth(squared, scan.k)[0]) + slack, bound)
    return bound, rows.slots.compress(squared[0] <= bound + slack)


def _in_reach(scan: Scan, point: Floats, reach_m: float) -> Ints:
    """The buckets that come so near, and some more."""
    buckets = scan.buckets
    groups = touched(point, reach_m, buckets.group_centre, buckets.group_radius).tolist()
    if not groups:
        return np.empty(0, dtype=np.int64)
    members = buckets.members[groups[0]] if len(groups) == 1 else np.concatenate([buckets.members[g] for g in groups])
    return members.take(touched(point, reach_m, buckets.centre.take(members, 0), buckets.radius.take(members)))


def _origin(scan: Scan, members: Ints) -> Floats:
    """The centre of the first one's group."""
    buckets = scan.buckets
    centre: Floats = buckets.group_centre[buckets.group[members[0]] if len(members) else 0]
    return centre


class _Rows:
    """Eligible rows: their slots, their places relative to one origin, and the position of the bucket of each."""

    __slots__ = ("origin", "owner", "places", "reach_m", "slots")

    def __init__(self, slots: Array, places: Singles, owner: Ints, origin: Floats, reach_m: float) -> None:
        self.slots, self.places, self.owner = slots, places, owner
        self.origin, self.reach_m = origin, reach_m

    def __len__(self) -> int:
        return len(self.slots)

    def only(self, chosen: Array) -> _Rows:
        """Some of the rows, by a mask."""
        if chosen.all():
            return self
        slots, places = self.slots.compress(chosen), self.places.compress(chosen, 0)
        return _Rows(slots, places, self.owner.compress(chosen), self.origin, self.reach_m)


def _gathered(scan: Scan, members: Ints, origin: Floats, *, owned: bool = False) -> _Rows:
    """The eligible rows of these buckets, moved to a common origin; with their owners where asked."""
    buckets = scan.buckets
    groups = buckets.group.take(members)
    rows, passed = scan.rows(members)
    places, slots = buckets.place.take(rows, 0), buckets.slot.take(rows)
    shifts = buckets.group_centre.take(groups, 0) - origin
    reach_m = float(buckets.group_radius.take(groups).max(initial=0.0))
    is_shifted = bool(shifts.any())
    owner = np.empty(0, dtype=np.int64)
    if owned or is_shifted:
        owner = np.repeat(np.arange(len(members)), buckets.count.take(members)).compress(passed)
    if is_shifted:
        places[:, :3] -= (2.0 * shifts).astype(np.float32).take(owner, 0)
        places[:, 3] = 0.25 * np.einsum("ij,ij->i", places[:, :3], places[:, :3])
        reach_m += math.sqrt(np.einsum("ij,ij->i", shifts, shifts).max())
    return _Rows(slots, places, owner, origin, reach_m)


def near_all(scan: Scan, points: Floats) -> Pairs:
    """The nearest of points anywhere, (m, 3) metres; those of one group go together."""
    found = []
    for group, numbers in _by(_home_groups(scan, points)):
        members = scan.buckets.members[group]
        numbers = numbers[_neighbours_together(scan, points[numbers], members)]
        view = _View(scan, points[numbers])
        point, slot = view.collect(view.probe(members))
        found.append((numbers[point], slot))
    return joined(found)


def _home_groups(scan: Scan, points: Floats) -> Ints:
    """The nearest group of each point."""
    buckets = scan.buckets
    step = max(PAIRS_MAX // len(buckets.group_radius), 1)
    parts = [points[at : at + step] for at in range(0, len(points), step)]
    return np.concatenate([gaps(each, buckets.group_centre, buckets.group_radius).argmin(axis=1) for each in parts])


def _neighbours_together(scan: Scan, points: Floats, members: Ints) -> Ints:
    """The order of the points by the name of their nearest cell: H3 names neighbours alike."""
    buckets = scan.buckets
    nearest = gaps(points, buckets.centre.take(members, 0), buckets.radius.take(members)).argmin(axis=1)
    return np.argsort(buckets.cell.take(members.take(nearest)), kind="stable")


class _View:
    """The world from a few points close together."""

    def __init__(self, scan: Scan, points: Floats) -> None:
        self._scan = scan
        self._buckets = scan.buckets
        self._points = points
        #: Lower bounds on the distance of each group, (m, groups).
        self._group_gaps = gaps(points, self._buckets.group_centre, self._buckets.group_radius)
        self._origin = self._buckets.group_centre[self._group_gaps[0].argmin()]

    def _gathered(self, members: Ints) -> _Rows:
        return _gathered(self._scan, members, self._origin, owned=True)

    # Probing: an upper bound on the squared distance of each point's k-th nearest

    def probe(self, home: Ints) -> Floats:
        """Starts from these buckets; looks farther until k eligible rows are found or there are no more."""
        k = self._scan.k
        rows, is_all, wanted = self._gathered(home), False, k
        while len(rows) < k:
            if is_all:
                return np.full(len(self._points), self._scan.limit_m2)
            wanted *= 8
            buckets, is_all = self._nearest_holding(wanted)
            rows = self._gathered(buckets)
        lens = Lens(self._points, self._origin, rows.reach_m)
        squared = lens.squared(rows.places[:: max(len(rows) // (k * PROBE_FACTOR), 1)])
        return np.minimum(kth(squared, k) + lens.slack[:, 0], self._scan.limit_m2)

    def _nearest_holding(self, wanted: int) -> tuple[Ints, bool]:
        """The nearest buckets that hold so many rows, and whether these are all within the limit."""
        nearest = self._group_gaps.min(axis=0)
        order = np.argsort(nearest)
        order = order[: np.searchsorted(nearest[order], math.sqrt(self._scan.limit_m2), side="right")]
        order = order[np.isfinite(nearest[order])]
        groups = order[: _enough(self._buckets.group_count[order], wanted)]
        members, bucket_gaps = self._members(groups)
        closest = np.argsort(bucket_gaps.min(axis=0))
        taken = np.sort(closest[: _enough(self._buckets.count[members[closest]], wanted)])
        return members[taken], len(taken) == len(members) and len(groups) == len(order)

    # Collecting: everything within the bound

    def collect(self, bound: Floats) -> Pairs:
        """Every eligible row within the points' bounds, and some beyond."""
        reach = np.sqrt(bound)[:, None]
        members, bucket_gaps = self._members(np.flatnonzero((self._group_gaps <= reach).any(axis=0)))
        touches = bucket_gaps <= reach
        needed = touches.any(axis=0)
        touches, rows = touches[:, needed], self._gathered(members[needed])
        found: list[Pairs] = []
        at, crowd = 0, CROWD_FACTOR * (self._scan.k + 1)
        while at < len(bound):
            in_reach = rows.only(touches[at : at + POINTS_AT_ONCE].any(axis=0).take(rows.owner))
            part = slice(at, at + min(max(PAIRS_MAX // max(len(in_reach), 1), 1), POINTS_AT_ONCE))
            within = self._within(part, bound[part], in_reach, crowd)
            if within is None:
                rows, crowd = rows.only(self._scan.thin(rows.slots, self._scan.k)), PAIRS_MAX
                continue
            found.append((within[0] + at, within[1]))
            at = part.stop
        return joined(found)

    def _within(self, part: slice, bound: Floats, rows: _Rows, crowd: int) -> Pairs | None:
        """Pairs within the bounds of a part of the points; None when there are more than `crowd` a point."""
        lens = Lens(self._points[part], self._origin, rows.reach_m)
        squared = lens.squared(rows.places)
        if len(rows) >= self._scan.k:
            bound = np.minimum(bound, kth(squared, self._scan.k) + lens.slack[:, 0])
        near = (squared <= (bound[:, None] + lens.slack).astype(np.float32)).ravel().nonzero()[0]
        if len(near) > crowd * len(bound):
            return None
        point, column = np.divmod(near, max(len(rows), 1))
        return point, rows.slots.take(column)

    def _members(self, groups: Ints) -> tuple[Ints, Floats]:
        """The buckets of these groups, and lower bounds on their distances, (m, buckets)."""
        if not len(groups):
            return np.empty(0, dtype=np.int64), np.empty((len(self._points), 0))
        buckets = self._buckets
        members = np.concatenate([buckets.members[group] for group in groups.tolist()])
        return members, gaps(self._points, buckets.centre.take(members, 0), buckets.radius.take(members))


def _enough(counts: Ints, wanted: int) -> int:
    """How many of the counts, from the first on, add up to what is wanted."""
    return int(np.searchsorted(np.cumsum(counts), wanted)) + 1


def _by(labels: Ints) -> list[tuple[int, Ints]]:
    """The positions of each label."""
    order = np.argsort(labels, kind="stable")
    begins, _ = runs(labels[order])
    return list(zip(labels[order[begins]].tolist(), np.split(order, begins[1:]), strict=True))
