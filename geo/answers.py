"""How the index' answers are put together: columns as objects, pairs as columns.

Pure functions of records and columns; nothing here searches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geo.kinds import Told
from geo.model import DriverId, Nearby
from geo.records import UNKNOWN_U16

Array = npt.NDArray[Any]


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


def listed(rank: Array, order: Array, ids: Sequence[DriverId]) -> tuple[list[DriverId], npt.NDArray[np.int32]]:
    """The ids of drivers given by their ranks, sorted and once each; and the place of each among them."""
    if not len(rank):
        return [], np.empty(0, dtype=np.int32)
    ascending = np.argsort(rank)
    ranks = rank[ascending]
    is_next = np.concatenate([[True], ranks[1:] != ranks[:-1]])
    place = np.empty(len(rank), dtype=np.int32)
    place[ascending] = np.cumsum(is_next) - 1
    return list(map(ids.__getitem__, order[ranks[is_next]].tolist())), place


@dataclass(slots=True)
class Found:
    """One point's nearest in the columns of geo.search.nearest, ordered by (distance, driver id).

    A row of `floats` is distance (m), latitude, longitude, heading, speed; one of `whole` is a place in `ids`, a place
    in `kinds` and the age (ms). `ids` and `kinds` are the index' own: to be read at once, and not to be changed.
    """

    floats: npt.NDArray[np.float64]
    whole: npt.NDArray[np.int64]
    ids: Sequence[DriverId]
    kinds: Sequence[Told]

    def __len__(self) -> int:
        return len(self.whole)


def nobody_found() -> Found:
    return Found(np.empty((0, 5)), np.empty((0, 3), dtype=np.int64), (), ())


def nearby(columns: Found) -> list[Nearby]:
    """The same as objects."""
    found, ids = [], columns.ids
    rows = zip(columns.floats.tolist(), columns.whole.tolist(), strict=True)
    for (away_m, lat, lon, heading, speed), (slot, kind, age_ms) in rows:
        vehicle_class, seats, available, tags = columns.kinds[kind]
        heading_deg, speed_mps = heading if heading >= 0.0 else None, speed if speed >= 0.0 else None
        found.append(
            Nearby(ids[slot], lat, lon, away_m, age_ms, vehicle_class, seats, available, heading_deg, speed_mps, tags)
        )
    return found


def hundredths(value: int) -> float | None:
    """A record's heading or speed in whole units; None where it is unknown."""
    return None if value == UNKNOWN_U16 else value / 100.0
