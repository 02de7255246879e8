"""The nouns of the position plane: points, stamps, fixes and answers.

This module rules over what a position *is*. It knows no cell, no clock and no
wire format. Times are whole milliseconds of the feed's clock (Redis' clock, or
the process's own when embedded); a fix's age is what converts a phone's time
into it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NewType

DriverId = NewType("DriverId", str)
MarketId = NewType("MarketId", str)

#: The largest integer that survives a Lua number and a JSON double unchanged.
MAX_EXACT_INT = 2**53 - 1


@dataclass(frozen=True, slots=True)
class LatLng:
    """A point in degrees on WGS84, latitude in [-90, 90], longitude in [-180, 180].

    Raises ValueError when a coordinate is not finite or out of range.
    """

    lat: float
    lon: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lat) and -90.0 <= self.lat <= 90.0):
            raise ValueError(f"latitude {self.lat!r} is not within [-90, 90]")
        if not (math.isfinite(self.lon) and -180.0 <= self.lon <= 180.0):
            raise ValueError(f"longitude {self.lon!r} is not within [-180, 180]")


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """Orders one driver's writes: the larger stamp is the newer position (P6, P7).

    `epoch` is handed out by the store at each sign-on, `instance` names one run
    of the driver's app and grows with each, `seq` counts the fixes of that run.
    """

    epoch: int
    instance: int
    seq: int


@dataclass(slots=True)
class Fix:
    """One driver's newest position on its way into a feed.

    `age_ms` is how old the fix is at the moment it is handed over: the phone's
    own `age_ms` plus the time it spent in our buffers by a monotonic clock.
    `heading_deg` in [0, 360) and `speed_mps` may be unknown (None).
    `available` is whether the driver wants work: online, not on a break.
    `tags` has a bit for each thing that the vehicle offers, at most 32.
    Not frozen: a quarter of the cost on the hottest path; nobody changes one.
    """

    driver_id: DriverId
    lat: float
    lon: float
    epoch: int
    instance: int
    seq: int
    age_ms: int
    vehicle_class: str
    seats: int
    available: bool = True
    heading_deg: float | None = None
    speed_mps: float | None = None
    tags: int = 0

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.epoch, self.instance, self.seq)


@dataclass(frozen=True, slots=True)
class Removal:
    """Takes a driver out of the feed, unless it has moved on to a newer stamp."""

    driver_id: DriverId
    stamp: Stamp


@dataclass(slots=True)
class Nearby:
    """A driver found near a point, with what the index knows of it. Not frozen, as a Fix is not and for its reason."""

    driver_id: DriverId
    lat: float
    lon: float
    distance_m: float
    age_ms: int
    vehicle_class: str
    seats: int
    available: bool
    heading_deg: float | None
    speed_mps: float | None
    tags: int = 0


@dataclass(frozen=True, slots=True)
class Where:
    """Which drivers a search may return; the default is everyone available.

    `vehicle_classes` None means any class. `exclude` are drivers to leave out,
    for example those engaged on a trip. `tags` are bits of which a driver needs all.
    """

    vehicle_classes: frozenset[str] | None = None
    seats_min: int = 1
    available_only: bool = True
    exclude: frozenset[DriverId] = frozenset()
    tags: int = 0
