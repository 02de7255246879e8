"""Compiled code is compiled once: for one kind of columns each, whoever brings them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numba.core.caching import CacheImpl

from geo import branches, distance, forward, pack, search
from geo.compiled import compiled
from geo.index import DriverIndex
from geo.model import DriverId, LatLng, Removal, Stamp, Where
from geo.records import RECORD, PositionBatch, Records
from geo.warm import warm

#: What is called from outside of compiled code in the service's work.
ENTRANCES: tuple[Any, ...] = (
    branches.plant,
    pack.pack,
    forward.forward,
    forward.take_out,
    search.nearest,
    search.nearest_of_each,
    distance._arcs_m,
)


def signatures() -> list[int]:
    return [len(each.signatures) for each in ENTRANCES]


def records(n: int) -> Records:
    made = np.zeros(n, dtype=RECORD)
    made["lat"], made["lon"], made["seq"] = np.linspace(40.0, 41.0, n), -74.0, np.arange(1, n + 1)
    return made


@pytest.mark.parametrize("bring", ["writable", "read-only", "every other", "backwards"])
def test_after_warming_nothing_is_compiled_whatever_arrays_come(bring: str) -> None:
    warm()
    assert signatures() == [1] * len(ENTRANCES)
    made, lats = records(600), np.linspace(40.0, 41.0, 9)
    if bring == "read-only":
        made, lats = np.frombuffer(made.tobytes(), RECORD), np.frombuffer(lats.tobytes(), np.float64)
    elif bring == "every other":
        made, lats = made[::2], lats[::2]
    elif bring == "backwards":
        made, lats = made[::-1], lats[::-1]
    ids = [DriverId(f"d{number}") for number in range(len(made))]
    index = DriverIndex(resolution=8, stale_after_ms=30_000, capacity=1)
    index.apply(PositionBatch(ids, made))
    index.reset(PositionBatch(ids, made))
    out = Where(seats_min=0, available_only=False, exclude=frozenset(ids[:5]))
    assert len(index.nearest(LatLng(40, -74), 600, limit_m=10**9, where=out, now_ms=0)) == len(ids) - 5
    assert len(index.candidates(lats, lats - 114.0, 3, where=out, now_ms=0).point) == 3 * len(lats)
    index.apply(PositionBatch([], made[:0], [Removal(ids[0], Stamp(0, 0, 10**6))]))
    distance.distance_m(40, -74.0, lats, lats[:, None])
    distance.distance_m(np.float32(1.0), made["lon"], made["lat"], 3)
    assert signatures() == [1] * len(ENTRANCES)


def test_distances_of_broadcast_and_strided_columns_are_those_of_single_pairs() -> None:
    table = np.arange(40.0, 52.0).reshape(4, 3)
    found = distance.distance_m(table[:, :1], -74.0, table[::2, ::-1][0], np.arange(3) - 74)
    for row in range(4):
        for column in range(3):
            one = distance.distance_m(table[row, 0], -74.0, table[0, 2 - column], column - 74)
            assert found[row, column] == float(one)
    assert distance.distance_m([], [], 1.0, 2.0).shape == (0,)
    assert math.isnan(distance.distance_m(math.nan, 0.0, 0.0, 0.0))


def test_where_nothing_can_be_kept_a_process_compiles_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only package and a user without a home, as in a locked-down container."""
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    def twice(number: int) -> int:
        return 2 * number

    assert compiled(twice)(21) == 42
