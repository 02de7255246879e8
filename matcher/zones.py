"""Queues at places, first in first out: who enters, keeps or loses a place, and whose turn it is.

A zone (an airport, a station) is an area of a market. Drivers who wait inside form a queue by (entered_at_ms,
driver_id); a ride whose pickup lies inside goes to the first of them that can serve it. A place is *waiting*, or *held*
for a trip that its driver got, until it is known how that ended. The places themselves are rows of the store, so that
no loss of live positions costs anybody a place; here is decided what becomes of them.

Pure. Times are whole milliseconds of the database's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from geo.area import Area
from geo.model import DriverId
from matcher.model import Code, Ride, RideId, TripId, TripState

KEEP_MS = 120_000


@dataclass(frozen=True, slots=True)
class Zone:
    """`keep_ms` is how long a driver that is not seen inside keeps its place. Raises ValueError for a negative one."""

    id: str
    area: Area
    keep_ms: int = KEEP_MS

    def __post_init__(self) -> None:
        if self.keep_ms < 0:
            raise ValueError(f"zone {self.id}: keep_ms is {self.keep_ms}; it must not be negative")


@dataclass(frozen=True, slots=True)
class Place:
    """A driver's place in the queue of a zone.

    `away_since_ms` None: it is there. `trip_id` is the trip for which the place is held; None: it waits for one.
    """

    driver_id: DriverId
    zone: str
    entered_at_ms: int
    away_since_ms: int | None = None
    trip_id: TripId | None = None


@dataclass(frozen=True, slots=True)
class TripSeen:
    """What of a driver's trip decides about its place; `ended_at_ms` None while it lives.

    `was_started`: the passenger was aboard, or the trip was completed in another way.
    """

    trip_id: TripId
    state: TripState
    was_started: bool
    ended_at_ms: int | None
    end_code: str | None

    @property
    def ended_by_driver(self) -> bool:
        """Whether it ended by its driver's own doing, or failing to do."""
        if self.end_code is not None:
            return self.end_code in _BY_DRIVER
        return self.state in _STATES_BY_DRIVER


_BY_DRIVER = frozenset(
    {
        Code.DECLINED,
        Code.OFFER_EXPIRED,
        Code.DRIVER_CANCELLED,
        Code.CONNECTION_LOST,
        Code.STALLED,
        Code.DRIVER_BREAK,
        Code.DRIVER_SUSPENDED,
        Code.ABANDONED,
    }
)
#: Of a row without a code, as the version before wrote them.
_STATES_BY_DRIVER = frozenset({TripState.DECLINED, TripState.TIMED_OUT, TripState.CANCELLED, TripState.ABANDONED})


@dataclass(frozen=True, slots=True)
class Standing:
    """One snapshot of the store at its time `now_ms`: the places of a market, and of their drivers and of those
    seen inside, who is `online` in this market, and which trips they have.

    `trips` are by driver in the order in which they were matched: those that live, those that a place is held for, and
    those of late that have ended.
    """

    now_ms: int
    places: Sequence[Place]
    online: frozenset[DriverId]
    trips: Mapping[DriverId, Sequence[TripSeen]]


@dataclass(frozen=True, slots=True)
class Sight:
    """Who was seen `inside` each zone: fresh and available. `live_since_ms` is since when positions have been live
    without a break; None: they are not, so that not being seen means nothing.
    """

    inside: Mapping[str, frozenset[DriverId]]
    live_since_ms: int | None

    @property
    def is_live(self) -> bool:
        return self.live_since_ms is not None


class Kind(StrEnum):
    """What a change does to a place."""

    ENTER = "enter"
    LEAVE = "leave"
    AWAY = "away"  # it is not seen inside any more
    BACK = "back"
    HOLD = "hold"  # for a trip
    RESTORE = "restore"  # the trip came to nothing by no fault of the driver's: as before
    TO_THE_END = "to_the_end"  # it came to nothing by the driver's doing


@dataclass(frozen=True, slots=True)
class Change:
    """`place` is as it is afterwards; of one who leaves, as it was."""

    kind: Kind
    place: Place


def step(zones: Sequence[Zone], standing: Standing, sight: Sight) -> list[Change]:
    """What becomes of the places now, one change a driver at most, ordered by driver.

    Where zones overlap, a driver enters the one that stands first.
    """
    tails = _tails(standing)
    known = {zone.id: zone for zone in zones}
    changes = [_of_place(each, known.get(each.zone), standing, sight, tails) for each in standing.places]
    made = [each for each in changes if each is not None]
    made += _entering(zones, standing, sight, tails)
    return sorted(made, key=lambda change: change.place.driver_id)


def after(places: Sequence[Place], changes: Sequence[Change]) -> list[Place]:
    """The places once these changes took effect, by zone and in turn."""
    of_driver = {place.driver_id: place for place in places}
    for change in changes:
        if change.kind is Kind.LEAVE:
            of_driver.pop(change.place.driver_id, None)
        else:
            of_driver[change.place.driver_id] = change.place
    return sorted(of_driver.values(), key=lambda place: (place.zone, place.entered_at_ms, place.driver_id))


class _Tails:
    """When one who comes now has entered: after everybody of the zone, even where the clock was set back."""

    def __init__(self, now_ms: int, last_ms: Mapping[str, int]) -> None:
        self._now_ms = now_ms
        self._last_ms = last_ms

    def of(self, zone: str) -> int:
        return max(self._now_ms, self._last_ms.get(zone, -1) + 1)


def _tails(standing: Standing) -> _Tails:
    last_ms: dict[str, int] = {}
    for place in standing.places:
        last_ms[place.zone] = max(place.entered_at_ms, last_ms.get(place.zone, -1))
    return _Tails(standing.now_ms, last_ms)


def _of_place(place: Place, zone: Zone | None, standing: Standing, sight: Sight, tails: _Tails) -> Change | None:
    if zone is None or place.driver_id not in standing.online:
        return Change(Kind.LEAVE, place)
    trips = [trip for trip in standing.trips.get(place.driver_id, ()) if _concerns(trip, place)]
    if any(trip.was_started for trip in trips):
        return Change(Kind.LEAVE, place)
    live = [trip for trip in trips if trip.ended_at_ms is None]
    is_inside = place.driver_id in sight.inside.get(zone.id, ())
    at_fault_ms = [trip.ended_at_ms for trip in trips if trip.ended_at_ms is not None and trip.ended_by_driver]
    if at_fault_ms and not live:
        return _after_fault(place, is_inside, sight, max(tails.of(zone.id), max(at_fault_ms) + 1))
    if live:
        return _while_on_trip(place, live[0].trip_id, max(at_fault_ms, default=None), tails.of(zone.id))
    if place.trip_id is not None:
        away_since_ms = None if is_inside else standing.now_ms
        return Change(Kind.RESTORE, replace(place, trip_id=None, away_since_ms=away_since_ms))
    return _while_waiting(place, zone, is_inside, standing.now_ms, sight.live_since_ms)


def _concerns(trip: TripSeen, place: Place) -> bool:
    """Whether the trip came while the driver had this place. One that is accounted for is older than the entry."""
    return trip.ended_at_ms is None or trip.trip_id == place.trip_id or trip.ended_at_ms > place.entered_at_ms


def _after_fault(place: Place, is_inside: bool, sight: Sight, tail_ms: int) -> Change | None:
    if not sight.is_live:
        return None  # whether it is still there, is seen when positions are back
    if not is_inside:
        return Change(Kind.LEAVE, place)
    return Change(Kind.TO_THE_END, replace(place, entered_at_ms=tail_ms, away_since_ms=None, trip_id=None))


def _while_on_trip(place: Place, trip_id: TripId, at_fault_ms: int | None, tail_ms: int) -> Change | None:
    """Held for this trip; who was at fault with one before it is held at the end."""
    held = replace(place, trip_id=trip_id, away_since_ms=None)
    if at_fault_ms is not None:
        return Change(Kind.TO_THE_END, replace(held, entered_at_ms=max(tail_ms, at_fault_ms + 1)))
    return None if place.trip_id == trip_id else Change(Kind.HOLD, held)


def _while_waiting(place: Place, zone: Zone, is_inside: bool, now_ms: int, live_since_ms: int | None) -> Change | None:
    if is_inside:
        return None if place.away_since_ms is None else Change(Kind.BACK, replace(place, away_since_ms=None))
    if live_since_ms is None:
        return None
    if place.away_since_ms is None:
        return Change(Kind.AWAY, replace(place, away_since_ms=now_ms))
    if now_ms - max(place.away_since_ms, live_since_ms) >= zone.keep_ms:
        return Change(Kind.LEAVE, place)
    return None


def _entering(zones: Sequence[Zone], standing: Standing, sight: Sight, tails: _Tails) -> list[Change]:
    if not sight.is_live:
        return []
    placed = {place.driver_id for place in standing.places}
    entering: dict[DriverId, Change] = {}
    for zone in zones:
        for driver_id in sight.inside.get(zone.id, ()):
            if driver_id not in placed and driver_id not in entering and _is_idle(driver_id, standing):
                entering[driver_id] = Change(Kind.ENTER, Place(driver_id, zone.id, tails.of(zone.id)))
    return list(entering.values())


def _is_idle(driver_id: DriverId, standing: Standing) -> bool:
    trips = standing.trips.get(driver_id, ())
    return driver_id in standing.online and all(trip.ended_at_ms is not None for trip in trips)


@dataclass(frozen=True, slots=True)
class Queues:
    """The queues of a market: `waiting` drivers by zone in their order, held places left out.

    `away` are those of them that are not there at the moment: they keep their place and are passed over. `queued` are
    the drivers in any queue, held places included.
    """

    waiting: Mapping[str, tuple[DriverId, ...]]
    away: frozenset[DriverId] = frozenset()
    queued: frozenset[DriverId] = frozenset()


NOBODY = Queues({})


def queues_of(places: Sequence[Place]) -> Queues:
    waiting: dict[str, list[DriverId]] = {}
    for place in sorted(places, key=lambda place: (place.entered_at_ms, place.driver_id)):
        if place.trip_id is None:
            waiting.setdefault(place.zone, []).append(place.driver_id)
    return Queues(
        {zone: tuple(waiting[zone]) for zone in sorted(waiting)},
        frozenset(place.driver_id for place in places if place.trip_id is None and place.away_since_ms is not None),
        frozenset(place.driver_id for place in places),
    )


@dataclass(frozen=True, slots=True)
class Pin:
    """This ride is the driver's: its turn in the zone, at this `place` (from 1) of `length` who waited."""

    ride_id: RideId
    driver_id: DriverId
    zone: str
    place: int
    length: int


def pin(
    queues: Queues,
    rides: Sequence[Ride],
    zones: Sequence[Zone],
    can_serve: Callable[[Ride, DriverId], bool],
    refused: Mapping[RideId, frozenset[DriverId]],
) -> list[Pin]:
    """Rides from a zone, the oldest first, each with the first driver of its queue that can serve it and is there.

    Where zones overlap, the queue of the first of them is asked first: who waits in another is kept from all other
    rides, so that this one must not pass it by. `can_serve` depends on the ride's class, seats and tags alone; who
    refused the ride is not paired with it again.
    """
    heads = {zone: _Head(zone, waiting, queues.away) for zone, waiting in queues.waiting.items()}
    pins: list[Pin] = []
    for ride, names in sorted(_rides_in(rides, zones), key=lambda pair: (pair[0].queued_at_ms, pair[0].ride_id)):
        barred = refused.get(ride.ride_id, frozenset())
        for head in (heads[name] for name in names if name in heads):
            if (turn := head.next(ride, can_serve, barred)) is not None:
                pins.append(turn)
                break
    return pins


def _rides_in(rides: Sequence[Ride], zones: Sequence[Zone]) -> list[tuple[Ride, list[str]]]:
    """Those whose pickup lies in a zone, each with the zones that hold it, the first one first."""
    if not rides:
        return []
    lats = np.array([ride.pickup.lat for ride in rides], dtype=np.float64)
    lons = np.array([ride.pickup.lon for ride in rides], dtype=np.float64)
    zones_of: dict[int, list[str]] = {}
    for zone in zones:
        for number in np.flatnonzero(zone.area.contains_each(lats, lons)).tolist():
            zones_of.setdefault(number, []).append(zone.id)
    return [(rides[number], names) for number, names in zones_of.items()]


class _Head:
    """One queue while rides are given out. What suits a kind of ride is looked for once, from the head on."""

    def __init__(self, zone: str, waiting: Sequence[DriverId], away: frozenset[DriverId]) -> None:
        self._zone = zone
        self._waiting = waiting
        self._taken = [driver_id in away for driver_id in waiting]
        self._suiting: dict[tuple[str, int, tuple[str, ...]], list[int]] = {}

    def next(self, ride: Ride, can_serve: Callable[[Ride, DriverId], bool], refused: frozenset[DriverId]) -> Pin | None:
        """Whose turn it is with this ride; who was given one is not asked again."""
        wants = (ride.vehicle_class, ride.seats, ride.tags)
        suiting = [
            number
            for number in self._suiting.get(wants, range(len(self._waiting)))
            if not self._taken[number] and (wants in self._suiting or can_serve(ride, self._waiting[number]))
        ]
        self._suiting[wants] = suiting
        turn = next((number for number in suiting if self._waiting[number] not in refused), None)
        if turn is None:
            return None
        self._taken[turn] = True
        return Pin(ride.ride_id, self._waiting[turn], self._zone, turn + 1, len(self._waiting))
