"""The world of the lifecycle's model: rides, trips and drivers, and the few ways in which they change.

Nothing here reads the product's tables of states. Words are plain strings; times are milliseconds of the
model's own clock `now_ms`, which stands still unless it is moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
# What passes in tests is hours and a few minutes: no limit is ever near enough to be met by what really passes.
RETRY_MS = 90 * MINUTE_MS + 30_000
LEAD_MS = 20 * MINUTE_MS + 15_000
NO_SHOW_AFTER_MS = HOUR_MS
LOST_GRACE_MS = HOUR_MS // 2
MISSED_OFFERS_MAX = 2
KEY_KEPT_MS = 24 * HOUR_MS
OFFER_TTL_MS = HOUR_MS
RELEASE_AFTER_MS = 3 * HOUR_MS
ABANDON_AFTER_MS = 6 * HOUR_MS
HERE = "new-york"

OPEN = ("scheduled", "searching", "offered")
FINAL = ("completed", "cancelled", "expired")
LIVE = ("offered", "accepted", "arrived", "in_progress")
#: Of a trip that ended so, the driver is not asked again for this ride.
REFUSING = ("declined", "timed_out", "cancelled", "no_show", "abandoned")
REFUSING_CODES = ("stalled", "released", "reassigned")


class Answer(NamedTuple):
    """What a verb must be answered with; `detail` is what else the word tells."""

    word: str
    allowed: frozenset[str] = frozenset()
    detail: Any = None


NOT_FOUND, NOT_YOURS, SUPERSEDED = Answer("not_found"), Answer("not_yours"), Answer("superseded")
DONE, REFUSED, LEASE_LOST, NONE = Answer("done"), Answer("not_allowed"), Answer("lease_lost"), Answer("none")


class Event(NamedTuple):
    version: int
    type: str
    state: str
    code: str | None
    actor: str
    driver: str | None
    trip: str | None


class Pair(NamedTuple):
    """One line of a plan."""

    ride: str
    version: int
    driver: str
    slot: str
    trip: str


@dataclass(slots=True)
class Trip:
    trip_id: str
    ride: str
    driver: str
    state: str
    slot: str | None
    due_ms: int
    abandon_ms: int
    release_ms: int | None
    was_accepted: bool
    arrived_ms: int | None = None
    was_started: bool = False
    code: str | None = None

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def refuses(self) -> bool:
        return self.state in REFUSING or self.code in REFUSING_CODES


@dataclass(slots=True)
class Ride:
    ride_id: str
    client: str
    key: str | None
    body: str
    seats: int
    state: str
    first_state: str
    requested_ms: int
    search_ms: int | None
    pickup_ms: int | None
    deadline_ms: int
    first_deadline_ms: int
    key_until_ms: int | None
    dropoff: str | None
    first_dropoff: str | None
    version: int = 1
    code: str | None = None
    trips: list[Trip] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    announced: set[int] = field(default_factory=set)

    @property
    def trip(self) -> Trip | None:
        """The live one, else the last."""
        return self.trips[-1] if self.trips else None

    @property
    def live(self) -> Trip | None:
        return self.trip if self.trip is not None and self.trip.is_live else None

    @property
    def queued(self) -> tuple[int, str]:
        return (self.requested_ms if self.search_ms is None else self.search_ms, self.ride_id)


@dataclass(slots=True)
class Driver:
    driver_id: str
    seats: int
    status: str = "offline"
    code: str | None = None
    market: str | None = None
    epoch: int = 0
    lost_ms: int | None = None
    missed: int = 0


class World:
    """`taken` collects each move with the states of ride and trip that it began from."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.rides: dict[str, Ride] = {}
        self.trips: dict[str, Trip] = {}
        self.drivers: dict[str, Driver] = {}
        self.new_rides: str | None = None
        self.token, self.holder, self.lease_runs = 0, "", False
        self.news: dict[str, int] = {}  # the rides that the last verb changed, with their versions
        self.rows_changed: set[str] = set()  # the drivers whose row it changed
        self.taken: set[tuple[str, str, str | None]] = set()

    # what is the case

    def trip_of(self, driver: str, slot: str) -> Trip | None:
        return next((trip for trip in self.trips.values() if trip.driver == driver and trip.slot == slot), None)

    def slots_of(self, driver: str) -> set[str]:
        return {slot for slot in ("now", "next") if self.trip_of(driver, slot) is not None}

    def live_trips(self, *states: str, slot: str | None = None) -> list[Trip]:
        return [t for t in self.trips.values() if t.state in (states or LIVE) and slot in (None, t.slot)]

    def in_states(self, *states: str) -> list[Ride]:
        return [ride for ride in self.rides.values() if ride.state in states]

    def waiting(self) -> list[Ride]:
        """In the order of the queue."""
        in_time = [
            ride for ride in self.in_states("searching") if ride.deadline_ms > self.now_ms and self.is_time(ride)
        ]
        return sorted(in_time, key=lambda ride: ride.queued)

    def is_time(self, ride: Ride) -> bool:
        """A ride for later may have been given a driver before that, by hand."""
        return ride.search_ms is None or ride.search_ms <= self.now_ms

    def refused(self) -> dict[str, set[str]]:
        found = {ride.ride_id: {trip.driver for trip in ride.trips if trip.refuses} for ride in self.waiting()}
        return {ride: drivers for ride, drivers in found.items() if drivers}

    def no_show_from_ms(self, trip: Trip) -> int:
        """An hour after the driver came, but not before an hour past the time that was asked for."""
        assert trip.arrived_ms is not None
        pickup_ms = self.rides[trip.ride].pickup_ms
        return (trip.arrived_ms if pickup_ms is None else max(trip.arrived_ms, pickup_ms)) + NO_SHOW_AFTER_MS

    def in_order(self, trip: Trip) -> set[str]:
        """The commands that the trip's driver may give in this state, the time not looked at."""
        of_state = {
            "offered": {"accept", "decline"},
            "accepted": {"arrive", "cancel"},
            "arrived": {"start", "cancel", "no_show"},
            "in_progress": {"complete"},
        }
        moves = of_state.get(trip.state, set())
        return moves & {"accept", "decline", "cancel"} if trip.slot == "next" else moves

    def allowed(self, trip: Trip) -> frozenset[str]:
        """Those that would be taken now."""
        if trip.due_ms <= self.now_ms:
            return frozenset()
        moves = self.in_order(trip)
        if self.rides[trip.ride].deadline_ms <= self.now_ms:
            moves = moves - {"accept"}
        if "no_show" in moves and self.now_ms < self.no_show_from_ms(trip):
            moves = moves - {"no_show"}
        return frozenset(moves)

    def unannounced(self) -> Iterator[tuple[str, int, str | None]]:
        for ride in self.rides.values():
            for event in ride.events:
                if event.version not in ride.announced:
                    yield ride.ride_id, event.version, event.driver

    # time

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms

    def age_ride(self, ride: str, ms: int) -> None:
        """As if this ride alone had been asked for so much earlier."""
        found = self.rides[ride]
        for name in ("requested_ms", "search_ms", "pickup_ms", "deadline_ms", "first_deadline_ms", "key_until_ms"):
            if (at_ms := getattr(found, name)) is not None:
                setattr(found, name, at_ms - ms)

    def age_trip(self, trip: str, ms: int) -> None:
        found = self.trips[trip]
        for name in ("due_ms", "abandon_ms", "release_ms", "arrived_ms"):
            if (at_ms := getattr(found, name)) is not None:
                setattr(found, name, at_ms - ms)

    def age_loss(self, driver: str, ms: int) -> None:
        found = self.drivers[driver]
        assert found.lost_ms is not None
        found.lost_ms -= ms

    # how things change

    def _happens(self, move: str, ride: Ride, to: str, event: str, actor: str, code: str | None = None) -> None:
        """One new version of the ride with its event; its trip is moved beside it."""
        trip = ride.live
        self.taken.add((move, ride.state, None if trip is None else trip.state))
        ride.state = to
        ride.code = code if to in FINAL else None
        self._told(ride, event, actor, code, trip)

    def _told(self, ride: Ride, event: str, actor: str, code: str | None, trip: Trip | None) -> None:
        ride.version += 1
        about = (None, None) if trip is None else (trip.driver, trip.trip_id)
        ride.events.append(Event(ride.version, event, ride.state, code, actor, *about))
        self.news[ride.ride_id] = ride.version

    def _ends(self, move: str, ride: Ride, to: str, trip_to: str, event: str, actor: str, code: str) -> None:
        """The ride's live trip ends, where there is one; what its driver has in `next` is promoted."""
        trip = ride.live
        had_driver = ride.state in ("assigned", "arrived")
        self._happens(move, ride, to, event, actor, code)
        if had_driver and to == "searching":
            ride.deadline_ms = max(ride.deadline_ms, self.now_ms + RETRY_MS)
        if trip is None:
            return
        was, trip.state, trip.slot, trip.code = trip.slot, trip_to, None, code
        following = self.trip_of(trip.driver, "next")
        if was == "now" and following is not None:
            self._promoted(following, code)

    def _promoted(self, trip: Trip, code: str) -> None:
        ride = self.rides[trip.ride]
        self._happens("promote", ride, ride.state, "promoted", "service", code)
        trip.slot = "now"
        if trip.state != "offered":
            trip.due_ms = trip.abandon_ms

    def _withdrawn(self, ride: Ride, actor: str, code: str) -> None:
        self._ends("withdraw", ride, "searching", "withdrawn", "withdrawn", actor, code)

    def _matched(self, ride: Ride, pair: Pair, ttl_ms: int | None, release: bool, actor: str, code: str | None) -> None:
        asked = ttl_ms is not None
        abandon_ms = self.now_ms + ABANDON_AFTER_MS
        release_ms = self.now_ms + RELEASE_AFTER_MS if release and pair.slot == "next" else None
        due_ms = self.now_ms + ttl_ms if ttl_ms is not None else release_ms or abandon_ms
        state = "offered" if asked else "accepted"
        trip = Trip(pair.trip, ride.ride_id, pair.driver, state, pair.slot, due_ms, abandon_ms, release_ms, not asked)
        self.taken.add(("offer" if asked else "assign", ride.state, None))
        ride.state = "offered" if asked else "assigned"
        ride.trips.append(trip)
        self.trips[trip.trip_id] = trip
        self._told(ride, ride.state, actor, code, trip)
