"""Cities to run the service against: who wants to ride when, and where drivers start.

Pure: a city is data, either drawn here from a seed or read from recorded files
(benchmarks.recorded). Times are seconds from the start of the city's clock, at
the city's own pace; whoever drives it decides how much faster than that it runs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from geo.model import DriverId, LatLng

#: Metres of one degree of latitude on a sphere of 6,371,008.8 m.
METRES_PER_DEGREE = 111_195.08


@dataclass(frozen=True, slots=True)
class Wish:
    """One ride that somebody wants: when (city's seconds), from where to where."""

    at_s: float
    pickup: LatLng
    dropoff: LatLng
    seats: int


@dataclass(frozen=True, slots=True)
class Start:
    """One driver's first appearance."""

    at_s: float
    driver_id: DriverId
    at: LatLng
    seats: int


@dataclass(frozen=True, slots=True)
class Track:
    """A recorded driver: parallel arrays of city's seconds (ascending), degrees and `occupied`."""

    driver_id: DriverId
    at_s: Sequence[float]
    lat: Sequence[float]
    lon: Sequence[float]
    occupied: Sequence[bool]


def metres_between(a: LatLng, b: LatLng) -> float:
    """On the plane through both: right within 0.1% for the tens of kilometres of a city."""
    north = (b.lat - a.lat) * METRES_PER_DEGREE
    east = (b.lon - a.lon) * METRES_PER_DEGREE * math.cos(math.radians((a.lat + b.lat) / 2))
    return math.hypot(north, east)


def moved(a: LatLng, north_m: float, east_m: float) -> LatLng:
    """The point so many metres north and east of `a`; not for use near the poles or the antimeridian."""
    lat = a.lat + north_m / METRES_PER_DEGREE
    return LatLng(lat, a.lon + east_m / (METRES_PER_DEGREE * math.cos(math.radians(lat))))


def between(a: LatLng, b: LatLng, share: float) -> LatLng:
    """The point after `share` (0 to 1) of the straight way from `a` to `b`."""
    return LatLng(a.lat + (b.lat - a.lat) * share, a.lon + (b.lon - a.lon) * share)


#: Riders of one seat, two, and so on, as often as in New York's records of 2013.
_PARTY_WEIGHTS = (72, 13, 4, 11)


@dataclass(frozen=True, slots=True)
class SyntheticCity:
    """A city drawn from a seed: hot spots around a centre, drivers and riders around them.

    Same seed, same city: drivers and wishes come from generators of their own,
    so that asking for more drivers does not change who wants to ride.
    """

    seed: int
    center: LatLng
    spots: tuple[LatLng, ...]
    spot_sigma_m: float
    trip_mean_m: float
    trip_max_m: float

    @classmethod
    def draw(
        cls,
        seed: int,
        *,
        center: LatLng = LatLng(40.7549, -73.9840),  # noqa: B008 (frozen)
        spots: int = 8,
        radius_m: float = 2_500.0,
        trip_mean_m: float = 1_400.0,
    ) -> SyntheticCity:
        """`spots` hot spots within `radius_m` of the centre; trips of `trip_mean_m` on average."""
        rng = random.Random(f"{seed}/spots")
        drawn = tuple(
            moved(center, r * math.cos(angle), r * math.sin(angle))
            for r, angle in ((radius_m * math.sqrt(rng.random()), rng.uniform(0, math.tau)) for _ in range(spots))
        )
        return cls(seed, center, drawn, radius_m / 4, trip_mean_m, trip_mean_m * 4)

    def drivers(self, count: int, *, prefix: str = "driver-") -> list[Start]:
        """`count` drivers, all there from the start; four in five with four seats, the rest with six."""
        rng = random.Random(f"{self.seed}/drivers")
        return [
            Start(0.0, DriverId(f"{prefix}{n:04d}"), self._near(rng), 4 if rng.random() < 0.8 else 6)
            for n in range(count)
        ]

    def wishes(self, per_minute: float) -> Iterator[Wish]:
        """Riders without end, arriving as a Poisson process of that rate."""
        if not (math.isfinite(per_minute) and per_minute > 0):
            raise ValueError(f"rides per minute must be above 0, not {per_minute!r}")
        rng = random.Random(f"{self.seed}/wishes")
        at_s = 0.0
        while True:
            at_s += rng.expovariate(per_minute / 60.0)
            pickup = self._near(rng)
            seats = rng.choices((1, 2, 3, 4), _PARTY_WEIGHTS)[0]
            yield Wish(at_s, pickup, self._destination(rng, pickup), seats)

    def _near(self, rng: random.Random) -> LatLng:
        spot = rng.choice(self.spots)
        return moved(spot, rng.gauss(0, self.spot_sigma_m), rng.gauss(0, self.spot_sigma_m))

    def _destination(self, rng: random.Random, pickup: LatLng) -> LatLng:
        """Gamma-distributed distance (many short trips, few long) in any direction."""
        distance = min(self.trip_max_m, rng.gammavariate(2.0, self.trip_mean_m / 2.0))
        angle = rng.uniform(0, math.tau)
        return moved(pickup, distance * math.cos(angle), distance * math.sin(angle))
