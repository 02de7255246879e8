"""What an index of so many drivers takes: a process of its own that fills one and says its memory.

`python -m benchmarks.memory_index ours|objects DRIVERS SEED` prints one JSON object. Memory is what the process's
resident set has grown by, garbage collected, from before the first driver to after the last; beside it stands the
sum of the sizes of all objects that can be reached from the index, which knows nothing of what an allocator holds.
Ids are strings of their own, as they come out of a decoder. `objects` is what one would write first: a dict of
dataclasses.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from api.heap import bound_the_heap
from benchmarks.cpu import rss_bytes
from geo.feed import pack
from geo.index import DriverIndex
from geo.model import DriverId, Fix

Floats = npt.NDArray[np.float64]

RESOLUTION = 8
NOW_MS = 1_760_000_000_000
#: So many come at a time, as batches of the feed do.
BATCH = 2000
#: A fleet stands around so many spots in a square of so many km; more drivers have more of both.
SPOTS, SIDE_KM, SPOTTED_DRIVERS, SIGMA_KM = 20, 30.0, 100_000, 2.0
KM_A_DEGREE = 111.2
LAT, LON = 40.75, -73.98
ID_DIGITS = 8


@dataclass(slots=True)
class Driver:
    """One driver of the dict of objects: what a record of the index holds."""

    lat: float
    lon: float
    fix_ms: float
    epoch: float
    instance: float
    seq: float
    heading_deg: float
    speed_mps: float
    vehicle_class: str
    seats: int
    is_available: bool
    tags: int


def places(drivers: int, seed: int) -> tuple[Floats, Floats]:
    """Latitudes and longitudes around hot spots; the density does not depend on how many they are."""
    rng = np.random.default_rng(seed)
    scale = max(1.0, drivers / SPOTTED_DRIVERS)
    side_km, spots = SIDE_KM * math.sqrt(scale), round(SPOTS * scale)
    centres = rng.uniform(-side_km / 2, side_km / 2, (spots, 2))
    away_km = centres[rng.integers(0, spots, drivers)] + rng.normal(0.0, SIGMA_KM, (drivers, 2))
    lats = LAT + away_km[:, 0] / KM_A_DEGREE
    lons = LON + away_km[:, 1] / (KM_A_DEGREE * math.cos(math.radians(LAT)))
    return lats, lons


def fixes(drivers: int, seed: int) -> Iterator[list[Fix]]:
    """The fleet, a batch at a time."""
    lats, lons = places(drivers, seed)
    for start in range(0, drivers, BATCH):
        some = zip(lats[start : start + BATCH].tolist(), lons[start : start + BATCH].tolist(), strict=True)
        yield [_fix(number, lat, lon) for number, (lat, lon) in enumerate(some, start)]


def _fix(number: int, lat: float, lon: float) -> Fix:
    return Fix(DriverId(f"d-{number:0{ID_DIGITS}}"), lat, lon, 1, NOW_MS, 7, 0, "standard", 4)


def fill_ours(drivers: int, seed: int) -> DriverIndex:
    index = DriverIndex(resolution=RESOLUTION, stale_after_ms=30_000)
    for batch in fixes(drivers, seed):
        index.apply(pack(batch, RESOLUTION, NOW_MS))
    assert len(index) == drivers
    return index


def fill_objects(drivers: int, seed: int) -> dict[str, Driver]:
    found: dict[str, Driver] = {}
    for batch in fixes(drivers, seed):
        for fix in batch:
            stamp = float(NOW_MS), float(fix.epoch), float(fix.instance), float(fix.seq)
            found[fix.driver_id] = Driver(
                fix.lat, fix.lon, *stamp, math.nan, math.nan, fix.vehicle_class, fix.seats, fix.available, fix.tags
            )
    return found


FILLS: dict[str, Callable[[int, int], Any]] = {"ours": fill_ours, "objects": fill_objects}


def reachable_bytes(root: object) -> int:
    """The sizes of all objects that can be reached, each once; classes, modules and functions left out."""
    seen: set[int] = set()
    ahead, total = [root], 0
    while ahead:
        each = ahead.pop()
        if id(each) in seen or isinstance(each, type | type(sys) | type(reachable_bytes)):
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        ahead.extend(gc.get_referents(each))
        base = getattr(each, "base", None) if isinstance(each, np.ndarray) else None
        if base is not None:
            ahead.append(base)
    return total


def measured(kind: str, drivers: int, seed: int) -> dict[str, float]:
    bound_the_heap()  # as the service's processes do
    fill = FILLS[kind]
    fill(BATCH, seed)  # so that what is loaded or compiled once does not count
    next(fixes(drivers, seed), None)
    places(drivers, seed)
    gc.collect()
    before = rss_bytes(os.getpid())
    held = fill(drivers, seed)
    gc.collect()
    grown = rss_bytes(os.getpid()) - before
    return {"bytes_a_driver": grown / drivers, "reachable_bytes_a_driver": reachable_bytes(held) / drivers}


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
