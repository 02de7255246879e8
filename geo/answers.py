"""How the index' answers are put together: records as objects, pairs as columns.

Pure functions of records and columns; nothing here searches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geo.buckets import runs
from geo.model import DriverId, Fix, Nearby
from geo.records import FLAG_AVAILABLE, UNKNOWN_U16

Array = npt.NDArray[Any]
#: A record as `RECORD.tolist()` gives it.
Row = tuple[float, int, float, float, float, float, float, int, int, int, int, bytes, int]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The nearest drivers of many points, in flat columns ordered by (point, distance, driver id).

    `point[i]` is the position of a point in the question, `driver[i]` a position in `driver_ids` (sorted by
    id), `distance_m[i]` their distance. `beyond_m[p]` bounds from below the distance of every eligible driver
    within the limit that is not listed for point p; it is infinite when all are listed.
    """

    point: npt.NDArray[np.int32]
    driver: npt.NDArray[np.int32]
    distance_m: npt.NDArray[np.float64]
    driver_ids: list[DriverId]
    beyond_m: npt.NDArray[np.float64]


def no_candidates(points: int) -> Candidates:
    none = np.empty(0, dtype=np.int32)
    return Candidates(none, none, np.empty(0), [], np.full(points, np.inf))


def nearest_pairs(point: Array, distances: Array, k: int, limit_m: float) -> Array:
    """Which pairs are among their point's k nearest within the limit, ties with the k-th included; ordered by both."""
    near = np.flatnonzero(distances <= limit_m)
    near = near[np.lexsort((distances[near], point[near]))]
    begins, counts = runs(point[near])
    last = distances[near[begins + np.minimum(counts, k) - 1]]
    return near[distances[near] <= np.repeat(last, counts)]


def candidates_of(
    point: Array, rank: Array, distances: Array, driver_ids: list[DriverId], points: int, k: int
) -> Candidates:
    """The first k pairs of each point as columns.

    Pairs are ordered by (point, distance) and hold the k + 1 nearest of each point; the last of these is the bound.
    `rank` is a driver's place in `driver_ids`: among equal distances the smaller id comes first.
    """
    if ((point[1:] == point[:-1]) & (distances[1:] == distances[:-1])).any():
        order = np.lexsort((rank, distances, point))
        point, rank, distances = point[order], rank[order], distances[order]
    begins, counts = runs(point)
    place = np.arange(len(point)) - np.repeat(begins, counts)
    beyond_m = np.full(points, np.inf)
    first_out = place == k
    beyond_m[point[first_out]] = distances[first_out]
    listed = np.flatnonzero(place < k)
    driver_ids, rank = _only_listed(driver_ids, rank[listed])
    return Candidates(point[listed].astype(np.int32), rank, distances[listed], driver_ids, beyond_m)


def _only_listed(driver_ids: list[DriverId], rank: Array) -> tuple[list[DriverId], npt.NDArray[np.int32]]:
    occurs = np.zeros(len(driver_ids), dtype=np.bool_)
    occurs[rank] = True
    number = np.cumsum(occurs, dtype=np.int32) - 1
    return [driver_ids[position] for position in np.flatnonzero(occurs).tolist()], number[rank].astype(np.int32)


def nearby_of(driver_id: DriverId, row: Row, away_m: float, now_ms: int) -> Nearby:
    fix_ms, _, lat, lon, _, _, _, heading, speed, seats, flags, vehicle_class, tags = row
    return Nearby(
        driver_id,
        lat,
        lon,
        away_m,
        max(now_ms - int(fix_ms), 0),
        vehicle_class.decode(errors="replace"),
        seats,
        bool(flags & FLAG_AVAILABLE),
        hundredths(heading),
        hundredths(speed),
        tags,
    )


def fix_of(driver_id: DriverId, row: Row, age_ms: int) -> Fix:
    _, _, lat, lon, epoch, instance, seq, heading, speed, seats, flags, vehicle_class, tags = row
    return Fix(
        driver_id=driver_id,
        lat=lat,
        lon=lon,
        epoch=int(epoch),
        instance=int(instance),
        seq=int(seq),
        age_ms=age_ms,
        vehicle_class=vehicle_class.decode(errors="replace"),
        seats=seats,
        available=bool(flags & FLAG_AVAILABLE),
        heading_deg=hundredths(heading),
        speed_mps=hundredths(speed),
        tags=tags,
    )


def hundredths(value: int) -> float | None:
    """A record's heading or speed in whole units; None where it is unknown."""
    return None if value == UNKNOWN_U16 else value / 100.0
