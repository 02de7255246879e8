"""How far a trip's driver drove, and which way: from its fixes to parts of a thinned path.

Pure: no clock, no store. `TripMeter.add` is on the way of every position of an engaged driver, so that it costs a
few multiplications and makes nothing but the points it keeps.

Distances are great circles, short ones as seen in the plane around the last kept point, which errs by less than a
thousandth below 70 degrees of latitude. The path is thinned by cone intersection (C. M. Williams, "An efficient
algorithm for the piecewise linear approximation of planar curves", Computer Graphics and Image Processing 8, 1978;
J. Sklansky and V. Gonzalez, "Fast polygonal approximation of digitized curves", Pattern Recognition 12, 1980): it
keeps the directions from the last kept point that pass within the tolerance of every fix since, and keeps the fix
before the one that leaves them. A way that turns back keeps its turning point too, which the cone alone would not.
So no counted fix is farther than TOLERANCE_M from the path, and no other farther than JITTER_M from a counted one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from geo.distance import EARTH_RADIUS_M, between_m
from geo.model import DriverId, LatLng
from matcher.model import Ride, Slot, Trip, TripId, TripState

#: A move shorter than this is gathered, not counted: a parked phone drives nowhere.
JITTER_M = 10.0
#: How far a counted fix may be from the path.
TOLERANCE_M = 15.0
#: A point is kept at the latest after this way.
STRETCH_M = 500.0
#: Points of one part, its first and last among them.
POINTS_MAX = 256
#: How long a part is gathered.
PART_S_MAX = 60.0
#: Longer hops are measured on the sphere.
PLANE_M_MAX = 1000.0
#: Of a coordinate as it is kept: about a metre.
DECIMALS = 5

_DEGREE_M = math.radians(1.0) * EARTH_RADIUS_M
_JITTER2 = JITTER_M * JITTER_M
_TOLERANCE2 = TOLERANCE_M * TOLERANCE_M

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Part:
    """What was driven since the part before: `points` are (lat, lon) in order, the first is the last one of before."""

    number: int
    distance_m: float
    points: list[Point]


class TripMeter:
    """One trip, as far as one session of its driver drives it.

    In the plane, metres east and north of the last kept point: `_x`, `_y` is the last counted fix, the cone lies
    between the directions `_right` and `_left`, and `_far2` is the square of the farthest fix's distance; up to
    TOLERANCE_M every direction is free.
    """

    __slots__ = (
        "_distance_m",
        "_east_m",
        "_far2",
        "_is_gathering",
        "_kept_lat",
        "_kept_lon",
        "_lat",
        "_left_x",
        "_left_y",
        "_lon",
        "_number",
        "_points",
        "_right_x",
        "_right_y",
        "_since_s",
        "_way_m",
        "_x",
        "_y",
        "trip_id",
    )

    def __init__(self, trip_id: TripId) -> None:
        self.trip_id = trip_id
        self._number = 0
        self._distance_m = 0.0  # of this part
        self._points: list[Point] = []  # of this part, as far as kept
        self._is_gathering = False  # whether anything was counted since the last part
        self._since_s = 0.0
        self._lat = self._lon = 0.0  # the last counted fix
        self._x = self._y = 0.0
        self._kept_lat = self._kept_lon = 0.0
        self._east_m = 0.0  # of a degree of longitude
        self._way_m = 0.0  # since the last kept point
        self._far2 = 0.0
        self._right_x = self._right_y = self._left_x = self._left_y = 0.0

    def add(self, lat: float, lon: float, at_s: float) -> bool:
        """A fix that came at `at_s`, of any clock that does not run back; whether it is time to `take`."""
        if not self._points:
            self._is_gathering, self._since_s = True, at_s
            self._lat, self._lon = lat, lon
            self._keep()
            return False
        x, y = self._in_plane(lat, lon)
        dx, dy = x - self._x, y - self._y
        hop2 = dx * dx + dy * dy
        if hop2 >= _JITTER2:
            if not self._is_gathering:
                self._is_gathering, self._since_s = True, at_s
            self._count(lat, lon, x, y, math.sqrt(hop2))
        return self._is_gathering and (at_s - self._since_s >= PART_S_MAX or len(self._points) >= POINTS_MAX - 1)

    def take(self) -> Part | None:
        """What was gathered since the last one, if anything; the next part begins at its last point."""
        if not self._is_gathering:
            return None
        last = self._last_point()
        points = self._points if self._points[-1] == last else [*self._points, last]
        part = Part(self._number, self._distance_m, points)
        self._number += 1
        self._distance_m, self._points, self._is_gathering = 0.0, [], False
        self._keep()
        return part

    def _in_plane(self, lat: float, lon: float) -> tuple[float, float]:
        dlon = lon - self._kept_lon
        if not -180.0 <= dlon <= 180.0:
            dlon = math.remainder(dlon, 360.0)
        return dlon * self._east_m, (lat - self._kept_lat) * _DEGREE_M

    def _count(self, lat: float, lon: float, x: float, y: float, hop_m: float) -> None:
        if hop_m > PLANE_M_MAX:
            hop_m = between_m(LatLng(self._lat, self._lon), LatLng(lat, lon))
        self._distance_m += hop_m
        if not self._fits(x, y):
            self._keep()
            x, y = self._in_plane(lat, lon)
            self._fits(x, y)  # as anything does after a kept point
        self._lat, self._lon, self._x, self._y = lat, lon, x, y
        self._way_m += hop_m
        if self._way_m >= STRETCH_M:
            self._keep()

    def _fits(self, x: float, y: float) -> bool:
        """Whether a line from the last kept point to here passes near everything between; narrows the cone if so."""
        away2 = x * x + y * y
        is_bound = self._far2 > _TOLERANCE2
        if is_bound and (
            away2 < self._far2  # turned back
            or self._right_x * y - self._right_y * x < 0.0
            or x * self._left_y - y * self._left_x < 0.0
        ):
            return False
        if away2 > _TOLERANCE2:
            self._narrow(x, y, away2, is_bound)
        self._far2 = max(self._far2, away2)
        return True

    def _narrow(self, x: float, y: float, away2: float, is_bound: bool) -> None:
        """Leaves of the cone what passes within TOLERANCE_M of this place, to the right and to the left of it."""
        sin = TOLERANCE_M / math.sqrt(away2)
        cos = math.sqrt(1.0 - sin * sin)
        right_x, right_y = x * cos + y * sin, y * cos - x * sin
        left_x, left_y = x * cos - y * sin, y * cos + x * sin
        if not is_bound or self._right_x * right_y - self._right_y * right_x > 0.0:
            self._right_x, self._right_y = right_x, right_y
        if not is_bound or left_x * self._left_y - left_y * self._left_x > 0.0:
            self._left_x, self._left_y = left_x, left_y

    def _keep(self) -> None:
        """The last counted fix becomes a point of the path, and the origin of the plane."""
        self._kept_lat, self._kept_lon = self._lat, self._lon
        self._east_m = _DEGREE_M * math.cos(math.radians(self._lat))
        self._x = self._y = self._far2 = self._way_m = 0.0
        if len(self._points) < POINTS_MAX - 1:  # a part that nobody takes grows no more
            self._points.append(self._last_point())

    def _last_point(self) -> Point:
        return round(self._lat, DECIMALS), round(self._lon, DECIMALS)


def meter_after(meter: TripMeter | None, ride: Ride, driver_id: DriverId) -> TripMeter | None:
    """The meter that runs once the driver has learnt of this state of a ride; `meter` where that changes nothing."""
    trip = ride.trip
    if trip is None or trip.driver_id != driver_id:
        return meter
    is_running = meter is not None and meter.trip_id == trip.trip_id
    if _is_present(trip):
        return meter if is_running else TripMeter(trip.trip_id)
    return None if is_running else meter


def _is_present(trip: Trip) -> bool:
    """Whether the driver is on this trip now: a live one, accepted, and no next one."""
    return trip.slot is Slot.NOW and trip.state.is_live and trip.state is not TripState.OFFERED
