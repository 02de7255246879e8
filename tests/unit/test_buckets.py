"""Buckets: balls that hold their rows, and stay no larger than these need."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from geo.buckets import Buckets, spans
from geo.cells import cell_of, edge_m
from geo.distance import sphere_points_m

RESOLUTION = 8
Array = npt.NDArray[Any]


def put(buckets: Buckets, slots: list[int], lats: Array, lons: Array, cells: Array | None = None) -> None:
    named = [cell_of(lat, lon, RESOLUTION) for lat, lon in zip(lats.tolist(), lons.tolist(), strict=True)]
    points, n = sphere_points_m(lats, lons), len(slots)
    chosen = np.array(named, dtype=np.uint64) if cells is None else cells
    buckets.add(np.array(slots, dtype=np.int32), chosen, points, np.zeros(n), np.zeros(n, dtype=np.int32))


def check_balls(buckets: Buckets, where: dict[int, tuple[float, float]]) -> None:
    """Every slot stands in one row, within its bucket's ball and its group's."""
    used = np.flatnonzero(buckets.count)
    rows = spans(buckets.start[used], buckets.count[used])
    slots = buckets.slot[rows].tolist()
    assert sorted(slots) == sorted(where)
    assert buckets.row_of[slots].tolist() == rows.tolist()
    owner = np.repeat(used, buckets.count[used])
    points = sphere_points_m(*np.array([where[slot] for slot in slots]).reshape(-1, 2).T)
    assert (np.linalg.norm(points - buckets.centre[owner], axis=1) <= buckets.radius[owner] + 1e-6).all()
    groups = buckets.group[owner]
    assert (np.linalg.norm(points - buckets.group_centre[groups], axis=1) <= buckets.group_radius[groups] + 1e-6).all()
    assert buckets.group_count.sum() == len(where)


def test_rows_stay_whole_and_within_their_balls_through_moves_and_removals() -> None:
    rng = np.random.default_rng(11)
    buckets = Buckets(RESOLUTION)
    where: dict[int, tuple[float, float]] = {}
    buckets.reserve_slots(500)
    for _ in range(60):
        out = [slot for slot in where if rng.random() < 0.3]
        buckets.remove(np.array(out, dtype=np.int32))
        for slot in out:
            del where[slot]
        fresh = [slot for slot in range(500) if slot not in where and rng.random() < 0.4]
        lats, lons = 40.75 + rng.normal(0, 0.02, len(fresh)), -73.98 + rng.normal(0, 0.02, len(fresh))
        put(buckets, fresh, lats, lons)
        where |= dict(zip(fresh, zip(lats.tolist(), lons.tolist(), strict=True), strict=True))
        check_balls(buckets, where)


def test_a_driver_far_from_its_cell_stretches_the_ball_only_while_it_is_there() -> None:
    lats, lons = np.array([40.75, 40.7501, 10.0]), np.array([-73.98, -73.98, 100.0])
    cells = np.full(3, cell_of(40.75, -73.98, RESOLUTION), dtype=np.uint64)
    for leave in ("removed", "moved back"):
        buckets = Buckets(RESOLUTION)
        buckets.reserve_slots(3)
        put(buckets, [0, 1, 2], lats, lons, cells)
        bucket = buckets.named(int(cells[0]))
        assert bucket is not None
        assert buckets.radius[bucket] > 1e6
        if leave == "removed":
            buckets.remove(np.array([2], dtype=np.int32))
        else:
            back = sphere_points_m(lats[:1], lons[:1])
            buckets.update(np.array([2], dtype=np.int32), back, np.zeros(1), np.zeros(1, dtype=np.int32))
        assert buckets.radius[bucket] < 2 * edge_m(RESOLUTION)
        assert buckets.group_radius[buckets.group[bucket]] < 20 * edge_m(RESOLUTION)


def test_a_long_walk_does_not_make_the_columns_grow() -> None:
    """P10: what emptied buckets and moved runs leave behind is used again."""
    buckets = Buckets(RESOLUTION)
    buckets.reserve_slots(200)
    sizes = []
    for step in range(120):
        lats, lons = np.full(200, 40.0) + np.arange(200) * 0.01, np.full(200, -120.0 + step * 0.5)
        put(buckets, list(range(200)), lats, lons)
        buckets.remove(np.arange(200, dtype=np.int32))
        sizes.append((len(buckets.slot), len(buckets.start)))
    assert sizes[-1] == sizes[40]
