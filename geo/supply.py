"""A market's drivers as a batch wants them: who is fresh and available, in columns ordered by id."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geo.distance import distance_m
from geo.model import DriverId

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Kind:
    """What several drivers have in common. `tags` are bits."""

    vehicle_class: str
    seats: int
    tags: int


@dataclass(frozen=True, slots=True)
class Supply:
    """Fresh, available drivers that were not excluded, shapes (drivers,); degrees.

    `kind` are positions in `kinds`. `stale_lat`, `stale_lon` are the places of those who would be here if
    their last fix were not too old (P5).
    """

    driver_ids: list[DriverId]
    lat: Floats
    lon: Floats
    kind: Ints
    kinds: list[Kind]
    stale_lat: Floats
    stale_lon: Floats

    def stale_within(self, lat: float, lon: float, reach_m: float) -> int:
        """How many were left out for their age alone, of any kind, within this distance of a point."""
        return int(np.count_nonzero(distance_m(lat, lon, self.stale_lat, self.stale_lon) <= reach_m))
