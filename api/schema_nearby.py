"""What goes over the wire of `/v1/drivers/nearby`: who is near one place, or near each of many.

The answer for many places holds each driver once, in columns, and of each place the numbers of its drivers in them:
a driver near fifty places is described once. Both are plain lists in JSON and in msgpack.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct, field

from api.schema import NearbyOut, Seats, VehicleClass
from api.schema_match import ItemErrorOut

K_MAX = 100
K_DEFAULT = 10
METRES_MAX = 100_000.0
SEATS_MAX = 64
POINTS_MAX = 1000
#: Of all points of one question together: points times k.
PAIRS_MAX = 20_000


class NearbyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Its points stay raw, for each is decoded by itself: one that is wrong is told of, the others are answered."""

    points: list[Raw]
    k: Annotated[int, Meta(ge=1, le=K_MAX)] = K_DEFAULT
    limit_m: Annotated[float, Meta(ge=0.0, le=METRES_MAX)] = METRES_MAX
    vehicle_class: VehicleClass | None = field(default=None, name="class")
    seats: Seats = 1
    tags: Annotated[list[str], Meta(max_length=32)] = field(default_factory=list)
    idle: bool = True
    market: str | None = None


class DriverColumns(Struct, frozen=True):
    """Drivers by their numbers from 0: `lat[3]` is the latitude of `driver_id[3]`."""

    driver_id: list[str] = field(default_factory=list)
    lat: list[float] = field(default_factory=list)
    lon: list[float] = field(default_factory=list)
    age_s: list[float] = field(default_factory=list)
    vehicle_class: list[str] = field(default_factory=list, name="class")
    seats: list[int] = field(default_factory=list)
    engaged: list[bool] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)


class NearPoint(Struct, frozen=True, gc=False):
    """The drivers near one place, nearest first: their numbers, how far each is, and how long it would take."""

    driver: list[int]
    distance_m: list[float]
    pickup_s: list[float]


class NearbyMany(Struct, frozen=True):
    """`points` are in the order of the question; null stands for one that `errors` tell of."""

    points: list[NearPoint | None]
    drivers: DriverColumns
    errors: list[ItemErrorOut]

    def near(self, number: int) -> list[NearbyOut]:
        """The drivers near that point, as a question for it alone would list them."""
        point, drivers = self.points[number], self.drivers
        if point is None:
            return []
        return [
            NearbyOut(
                driver_id=drivers.driver_id[each],
                lat=drivers.lat[each],
                lon=drivers.lon[each],
                distance_m=distance_m,
                pickup_s=pickup_s,
                age_s=drivers.age_s[each],
                vehicle_class=drivers.vehicle_class[each],
                seats=drivers.seats[each],
                engaged=drivers.engaged[each],
                tags=drivers.tags[each],
            )
            for each, distance_m, pickup_s in zip(point.driver, point.distance_m, point.pickup_s, strict=True)
        ]
