"""A city in virtual time: rides that appear, drivers that drive, and a clock that jumps from event to event.

Rules over what happens in the world, and over nothing that is decided: a ride appears at its time and leaves
at its deadline unless it was matched; a driver appears at its time and place, stands where it is while idle,
drives to the pickup of the ride it was given, lets the rider board, drives to the drop-off and is idle there.
Positions go into the same index as a live service's, engaged drivers' included.

All times are whole milliseconds of the city's clock; every travel time is rounded up to one. Nothing sleeps,
nothing is drawn here: the same city and the same decisions are the same run.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.cities import Start, Wish
from geo.cells import cell_of
from geo.distance import distance_m, sphere_points_m
from geo.index import DriverIndex
from geo.model import DriverId, LatLng, MarketId
from geo.records import FLAG_AVAILABLE, RECORD, UNKNOWN_U16, PositionBatch
from geo.roads import RoadNetwork
from matcher.model import ClientId, Ride, RideId, RideState

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MARKET = MarketId("simulated")
VEHICLE_CLASS = "standard"
RESOLUTION = 8
STALE_AFTER_MS = 60_000
#: Every driver's position is told anew so often, so that nobody is stale who is there.
REFRESH_MS = 30_000
NOBODY = -1
#: Stands for "never" where a time is wanted.
NEVER_MS = 2**62
_ONE = np.zeros(1, dtype=np.int64)


#: Latitudes and longitudes, two columns of one length, in degrees.
Places = tuple[Floats, Floats]


class Ways(Protocol):
    """How long cars take."""

    def among(self, origins: Places, targets: Places, origin: Ints, target: Ints) -> Floats:
        """Seconds from `origins[origin[e]]` to `targets[target[e]]` for each pair e; inf: no way."""

    def table(self, origins: Places, targets: Places) -> Floats:
        """Seconds from every origin to every target, (targets, origins); never more than `among` says."""


@dataclass(frozen=True, slots=True)
class StraightWays:
    """Along the great circle at an even pace."""

    speed_mps: float

    def among(self, origins: Places, targets: Places, origin: Ints, target: Ints) -> Floats:
        (from_lat, from_lon), (to_lat, to_lon) = origins, targets
        return distance_m(from_lat[origin], from_lon[origin], to_lat[target], to_lon[target]) / self.speed_mps

    def table(self, origins: Places, targets: Places) -> Floats:
        """By chords, which are shorter than arcs by a hair (a millimetre in ten kilometres)."""
        origin, target = sphere_points_m(*origins), sphere_points_m(*targets)
        away2 = np.zeros((len(target), len(origin)))
        for axis in range(3):
            away2 += (target[:, axis, None] - origin[None, :, axis]) ** 2
        return np.asarray(np.sqrt(away2, out=away2) / self.speed_mps)


@dataclass(frozen=True, slots=True)
class RoadWays:
    """Along the fastest links of a network of roads."""

    roads: RoadNetwork

    def among(self, origins: Places, targets: Places, origin: Ints, target: Ints) -> Floats:
        return self.roads.seconds(*origins, *targets, origin, target)

    def table(self, origins: Places, targets: Places) -> Floats:
        rows, columns = len(targets[0]), len(origins[0])
        origin, target = np.tile(np.arange(columns), rows), np.repeat(np.arange(rows), columns)
        return self.among(origins, targets, origin, target).reshape(rows, columns)


@dataclass(frozen=True, slots=True)
class City:
    """Who wants to ride and who drives, in columns: rides (n,), drivers (m,), each in the order of their times.

    Milliseconds and degrees. `service_ms[i]` is how long ride i keeps its driver from the arrival at the pickup on:
    boarding and the trip. A ride may be matched before `requested_ms + patience_ms`, not at it.
    """

    requested_ms: Ints
    pickup_lat: Floats
    pickup_lon: Floats
    dropoff_lat: Floats
    dropoff_lon: Floats
    seats: Ints
    service_ms: Ints
    seen_ms: Ints
    start_lat: Floats
    start_lon: Floats
    driver_seats: Ints
    driver_ids: Sequence[DriverId]
    ways: Ways
    patience_ms: int

    @property
    def n_rides(self) -> int:
        return len(self.requested_ms)

    @property
    def n_drivers(self) -> int:
        return len(self.seen_ms)


def lay_out(
    wishes: Sequence[Wish], starts: Sequence[Start], ways: Ways, *, patience_s: float, boarding_s: float
) -> City:
    """The city of these records, without rides that have no way from pickup to drop-off."""
    wishes = sorted(wishes, key=lambda wish: wish.at_s)
    starts = sorted(starts, key=lambda start: (start.at_s, start.driver_id))
    trip_s = _trips_s(wishes, ways)
    wishes = [wish for wish, is_way in zip(wishes, np.isfinite(trip_s).tolist(), strict=True) if is_way]
    pickup, dropoff = _columns([wish.pickup for wish in wishes]), _columns([wish.dropoff for wish in wishes])
    return City(
        requested_ms=_ms([wish.at_s for wish in wishes]),
        pickup_lat=pickup[0],
        pickup_lon=pickup[1],
        dropoff_lat=dropoff[0],
        dropoff_lon=dropoff[1],
        seats=np.array([wish.seats for wish in wishes], dtype=np.int64),
        service_ms=_ms(trip_s[np.isfinite(trip_s)] + boarding_s),
        seen_ms=_ms([start.at_s for start in starts]),
        start_lat=_columns([start.at for start in starts])[0],
        start_lon=_columns([start.at for start in starts])[1],
        driver_seats=np.array([start.seats for start in starts], dtype=np.int64),
        driver_ids=[start.driver_id for start in starts],
        ways=ways,
        patience_ms=round(patience_s * 1000.0),
    )


def _trips_s(wishes: Sequence[Wish], ways: Ways) -> Floats:
    each = np.arange(len(wishes))
    return ways.among(
        _columns([wish.pickup for wish in wishes]), _columns([wish.dropoff for wish in wishes]), each, each
    )


def _columns(places: Sequence[LatLng]) -> tuple[Floats, Floats]:
    lat = np.array([place.lat for place in places], dtype=np.float64)
    return lat, np.array([place.lon for place in places], dtype=np.float64)


def _ms(seconds: npt.ArrayLike) -> Ints:
    return np.ceil(np.asarray(seconds, dtype=np.float64) * 1000.0).astype(np.int64)


@dataclass(slots=True)
class Outcome:
    """What became of each ride: shapes (rides,). `driver` is NOBODY for a ride that left unserved.

    `matched_ms`, `arrived_ms` and `done_ms` are when its driver was chosen, reached the pickup and was idle again.
    """

    driver: Ints
    matched_ms: Ints
    arrived_ms: Ints
    done_ms: Ints
    drive_m: Floats  # great circle to the pickup

    @property
    def served(self) -> npt.NDArray[np.bool_]:
        return np.not_equal(self.driver, NOBODY)


_APPEARS, _REQUESTS, _FREE = range(3)


@dataclass(slots=True)
class World:
    """The city as of `now_ms`: who waits, who is idle, who is engaged. Rides are dated by their position's id.

    `waiting` are rides by position, the oldest first.
    """

    city: City
    index: DriverIndex = field(init=False)
    now_ms: int = field(init=False, default=-1)
    waiting: dict[int, Ride] = field(init=False, default_factory=dict)
    idle_since_ms: dict[DriverId, int] = field(init=False, default_factory=dict)
    engaged: set[DriverId] = field(init=False, default_factory=set)
    outcome: Outcome = field(init=False)
    free_ms: Ints = field(init=False)  # of each driver: when its present trip ends, or ended
    lat: Floats = field(init=False)  # where each driver is, or where its present trip ends
    lon: Floats = field(init=False)
    place: dict[DriverId, int] = field(init=False)  # of each driver its position in the city's columns
    _events: list[tuple[int, int, int]] = field(init=False)
    _fixes: _Fixes = field(init=False)

    def __post_init__(self) -> None:
        city, n = self.city, self.city.n_rides
        self.index = DriverIndex(resolution=RESOLUTION, stale_after_ms=STALE_AFTER_MS, capacity=city.n_drivers)
        matched_ms, arrived_ms, done_ms = np.zeros((3, n), dtype=np.int64)
        self.outcome = Outcome(np.full(n, NOBODY, np.int64), matched_ms, arrived_ms, done_ms, np.zeros(n))
        self.lat, self.lon = city.start_lat.copy(), city.start_lon.copy()
        self.free_ms = city.seen_ms.copy()
        self._events = [(at, _APPEARS, driver) for driver, at in enumerate(city.seen_ms.tolist())]
        self._events += [(at, _REQUESTS, ride) for ride, at in enumerate(city.requested_ms.tolist())]
        heapq.heapify(self._events)
        self._fixes = _Fixes(city)
        self.place = {driver_id: place for place, driver_id in enumerate(city.driver_ids)}

    @property
    def next_ms(self) -> int:
        """When something happens next; NEVER_MS where nothing does any more."""
        return self._events[0][0] if self._events else NEVER_MS

    @property
    def is_over(self) -> bool:
        """No ride waits, and none will."""
        return not self.waiting and self.now_ms >= int(self.city.requested_ms.max(initial=0))

    def advance(self, now_ms: int) -> None:
        """Lets everything happen up to and at this time, which must not lie before the present."""
        assert now_ms >= self.now_ms
        self.now_ms = now_ms
        while self._events and self._events[0][0] <= now_ms:
            _, kind, who = heapq.heappop(self._events)
            if kind == _REQUESTS:
                self.waiting[who] = self._ride(who)
            else:
                self._becomes_idle(who)
        for ride in self._given_up():
            del self.waiting[ride]
        self._fixes.tell(self)

    def send(self, pairs: Iterable[tuple[RideId, DriverId]]) -> None:
        """Idle drivers drive off to rides that wait."""
        for ride_id, driver_id in pairs:
            self._send(int(ride_id), self.place[driver_id])

    def _send(self, ride: int, driver: int) -> None:
        city, out = self.city, self.outcome
        driver_id = city.driver_ids[driver]
        assert ride in self.waiting
        assert driver_id in self.idle_since_ms
        here = (self.lat[driver : driver + 1], self.lon[driver : driver + 1])
        there = (city.pickup_lat[ride : ride + 1], city.pickup_lon[ride : ride + 1])
        drive_s = float(city.ways.among(here, there, _ONE, _ONE)[0])
        arrived_ms = self.now_ms + math.ceil(drive_s * 1000.0)
        done_ms = arrived_ms + int(city.service_ms[ride])
        out.driver[ride], out.matched_ms[ride] = driver, self.now_ms
        out.arrived_ms[ride], out.done_ms[ride] = arrived_ms, done_ms
        out.drive_m[ride] = distance_m(*here, *there)[0]
        del self.waiting[ride]
        del self.idle_since_ms[driver_id]
        self.engaged.add(driver_id)
        self._fixes.starts(self, driver, done_ms, float(city.dropoff_lat[ride]), float(city.dropoff_lon[ride]))
        self.lat[driver], self.lon[driver] = city.dropoff_lat[ride], city.dropoff_lon[ride]
        self.free_ms[driver] = done_ms
        heapq.heappush(self._events, (done_ms, _FREE, driver))

    def _becomes_idle(self, driver: int) -> None:
        driver_id = self.city.driver_ids[driver]
        self.engaged.discard(driver_id)
        self.idle_since_ms[driver_id] = int(self.free_ms[driver])
        self._fixes.stands(self, driver)

    def _given_up(self) -> list[int]:
        gone = []
        for position, ride in self.waiting.items():
            if ride.deadline_at_ms > self.now_ms:
                break
            gone.append(position)
        return gone

    def _ride(self, position: int) -> Ride:
        city = self.city
        requested_ms = int(city.requested_ms[position])
        return Ride(
            ride_id=RideId(f"{position:07d}"),
            client_id=ClientId("simulated"),
            market=MARKET,
            state=RideState.SEARCHING,
            version=1,
            pickup=LatLng(float(city.pickup_lat[position]), float(city.pickup_lon[position])),
            dropoff=LatLng(float(city.dropoff_lat[position]), float(city.dropoff_lon[position])),
            seats=int(city.seats[position]),
            vehicle_class=VEHICLE_CLASS,
            metadata={},
            requested_at_ms=requested_ms,
            deadline_at_ms=requested_ms + city.patience_ms,
            ended_at_ms=None,
            end_reason=None,
            trip=None,
        )


class _Fixes:
    """What the drivers' phones send: at every change of state, and all of them every REFRESH_MS.

    An engaged driver's fixes run evenly from where it was matched to its drop-off. Nobody decides by
    these, for who is engaged is left out; they are there so that the index holds what a live one would.
    """

    def __init__(self, city: City) -> None:
        self._records = np.zeros(city.n_drivers, RECORD)
        self._records["lat"], self._records["lon"] = city.start_lat, city.start_lon
        self._records["epoch"] = self._records["instance"] = 1
        self._records["heading"] = self._records["speed"] = UNKNOWN_U16
        self._records["seats"], self._records["flags"] = city.driver_seats, FLAG_AVAILABLE
        self._records["vehicle_class"] = VEHICLE_CLASS.encode()
        self._ids, self._seen_ms = city.driver_ids, city.seen_ms
        self._trips: dict[int, tuple[int, int, float, float, float, float]] = {}
        self._changed: dict[int, None] = {}
        self._refreshed_ms = -REFRESH_MS

    def starts(self, world: World, driver: int, done_ms: int, lat: float, lon: float) -> None:
        record = self._records[driver]
        self._trips[driver] = (world.now_ms, done_ms, float(record["lat"]), float(record["lon"]), lat, lon)

    def stands(self, world: World, driver: int) -> None:
        self._trips.pop(driver, None)
        self._put(driver, float(world.lat[driver]), float(world.lon[driver]))
        self._changed[driver] = None

    def tell(self, world: World) -> None:
        """Applies to the index what has changed, or everything where that is due."""
        now_ms = world.now_ms
        if now_ms - self._refreshed_ms >= REFRESH_MS:
            self._refreshed_ms = now_ms
            for driver, (began_ms, done_ms, lat, lon, to_lat, to_lon) in self._trips.items():
                share = (now_ms - began_ms) / max(1, done_ms - began_ms)
                self._put(driver, lat + share * (to_lat - lat), lon + share * (to_lon - lon))
            told = np.flatnonzero(self._seen_ms <= now_ms)
        else:
            told = np.array(list(self._changed), dtype=np.int64)
        self._changed.clear()
        if len(told):
            self._records["fix_ms"][told] = now_ms
            self._records["seq"][told] += 1
            world.index.apply(PositionBatch([self._ids[driver] for driver in told.tolist()], self._records[told]))

    def _put(self, driver: int, lat: float, lon: float) -> None:
        record = self._records[driver]
        record["lat"], record["lon"], record["cell"] = lat, lon, cell_of(lat, lon, RESOLUTION)
