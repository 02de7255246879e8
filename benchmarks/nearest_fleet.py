"""Fleets to look for the nearest in: hot spots of a square city, in columns, and the index that holds them.

The city of 100,000 drivers is a square of 30 km with 20 hot spots at uniform places, drivers normal around them
(sigma 1.5 km each way). Other sizes keep the density: the area and the number of spots grow with the drivers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geo.cells import cell_of
from geo.index import DriverIndex
from geo.model import DriverId, LatLng, Where
from geo.records import FLAG_AVAILABLE, RECORD, PositionBatch

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

DRIVERS, SIDE_M, SPOTS, SIGMA_M = 100_000, 30_000.0, 20, 1_500.0
CENTER_LAT, CENTER_LON = 40.75, -73.98
RESOLUTION = 8
NOW_MS, STALE_AFTER_MS = 1_000_000, 30_000
#: A hundredth of the vehicles is of this kind.
RARE_SEATS, RARE_TAG = 8, 1
_METRES_A_DEGREE = 111_195.0


@dataclass(frozen=True, slots=True)
class City:
    """Spots of a city, in metres east and north of its centre."""

    spots: Floats
    sigma_m: float = SIGMA_M

    @classmethod
    def of(cls, drivers: int, seed: int) -> City:
        """As large as so many drivers need at the density of DRIVERS in SIDE_M."""
        share = drivers / DRIVERS
        side_m = SIDE_M * math.sqrt(share)
        rng = np.random.default_rng((seed, drivers))
        return cls(rng.uniform(-side_m / 2.0, side_m / 2.0, (max(1, round(SPOTS * share)), 2)))

    def draw(self, count: int, seed: int) -> tuple[Floats, Floats]:
        """Latitudes and longitudes of so many, drivers or riders: both are where the city is busy."""
        rng = np.random.default_rng(seed)
        at = self.spots[rng.integers(len(self.spots), size=count)] + rng.normal(0.0, self.sigma_m, (count, 2))
        return degrees_of(at[:, 0], at[:, 1])


def degrees_of(east_m: Floats, north_m: Floats) -> tuple[Floats, Floats]:
    lon_m = _METRES_A_DEGREE * math.cos(math.radians(CENTER_LAT))
    return CENTER_LAT + north_m / _METRES_A_DEGREE, CENTER_LON + east_m / lon_m


@dataclass(frozen=True, slots=True)
class Fleet:
    """Drivers in columns; every hundredth has RARE_SEATS and RARE_TAG."""

    ids: list[DriverId]
    lat: Floats
    lon: Floats

    @classmethod
    def at(cls, lat: Floats, lon: Floats) -> Fleet:
        return cls([DriverId(f"driver-{number:07d}") for number in range(len(lat))], lat, lon)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rare(self) -> Bools:
        rare: Bools = np.arange(len(self)) % 100 == 0
        return rare

    def batch(self) -> PositionBatch:
        records = np.zeros(len(self), dtype=RECORD)
        records["fix_ms"] = NOW_MS
        records["lat"], records["lon"] = self.lat, self.lon
        places = zip(self.lat.tolist(), self.lon.tolist(), strict=True)
        records["cell"] = [cell_of(lat, lon, RESOLUTION) for lat, lon in places]
        records["epoch"] = records["instance"] = records["seq"] = 1.0
        records["seats"] = np.where(self.rare, RARE_SEATS, 4)
        records["flags"], records["vehicle_class"] = FLAG_AVAILABLE, b"standard"
        records["tags"] = np.where(self.rare, RARE_TAG, 0)
        return PositionBatch(self.ids, records)

    def index(self) -> DriverIndex:
        index = DriverIndex(resolution=RESOLUTION, stale_after_ms=STALE_AFTER_MS, capacity=len(self))
        index.reset(self.batch())
        return index


@dataclass(frozen=True, slots=True)
class Queries:
    """Places to look around; both forms hold the same."""

    lat: Floats
    lon: Floats
    points: list[LatLng]

    @classmethod
    def at(cls, lat: Floats, lon: Floats) -> Queries:
        return cls(lat, lon, [LatLng(*place) for place in zip(lat.tolist(), lon.tolist(), strict=True)])

    def __len__(self) -> int:
        return len(self.points)

    def first(self, count: int) -> Queries:
        return Queries(self.lat[:count], self.lon[:count], self.points[:count])


@dataclass(frozen=True, slots=True)
class Scene:
    """A fleet, where one looks for whom, and which drivers may be found."""

    name: str
    fleet: Fleet
    queries: Queries
    where: Where
    may: Bools

    @classmethod
    def plain(cls, name: str, fleet: Fleet, queries: Queries) -> Scene:
        return cls(name, fleet, queries, Where(), np.ones(len(fleet), dtype=np.bool_))


def growth_scene(drivers: int, queries: int, seed: int) -> Scene:
    city = City.of(drivers, seed)
    fleet = Fleet.at(*city.draw(drivers, seed + 1))
    return Scene.plain(f"{drivers} drivers", fleet, Queries.at(*city.draw(queries, seed + 2)))


def worst_scenes(base: Scene, engaged: int, seed: int) -> list[Scene]:
    """What an index is slow at: a crowd in one cell, nobody for 30 km, and rare kinds among many."""
    drivers, queries, rng = len(base.fleet), len(base.queries), np.random.default_rng(seed)
    crowd = Fleet.at(*City(np.zeros((1, 2)), 100.0).draw(drivers, seed))
    far = Fleet.at(*City(np.array([[30_000.0, 0.0]]), 500.0).draw(drivers, seed))
    middle = Queries.at(*City(np.zeros((1, 2)), 200.0).draw(queries, seed + 1))
    away = np.zeros(drivers, dtype=np.bool_)
    away[rng.choice(drivers, engaged, replace=False)] = True
    busy = frozenset(base.fleet.ids[number] for number in np.flatnonzero(away).tolist())
    fleet, asked = base.fleet, base.queries
    return [
        Scene.plain("all in one cell", crowd, middle),
        Scene.plain("the nearest 30 km off", far, middle),
        Scene("seats that 1% have", fleet, asked, Where(seats_min=RARE_SEATS), fleet.rare),
        Scene("a tag that 1% have", fleet, asked, Where(tags=RARE_TAG), fleet.rare),
        Scene(f"idle only, {engaged} engaged", fleet, asked, Where(exclude=busy), ~away),
    ]


def facts() -> dict[str, Any]:
    return {"side_m": SIDE_M, "spots": SPOTS, "sigma_m": SIGMA_M, "drivers": DRIVERS, "resolution": RESOLUTION}
