"""What the clients themselves saw: the one account of a run that owes nothing to the service.

Riders write down what they asked for and what they were answered, drivers which
trips they were told of and which commands were confirmed; at the end every
acknowledged ride's state is read once more. `benchmarks.audit` compares all of
it with the database. Times are seconds of this process's monotonic clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from api import schema
from matcher.model import FINAL_RIDE_STATES, RideState

FINAL = frozenset(state.value for state in FINAL_RIDE_STATES)

#: The version of a ride in this state that was paired at most once; a higher one has more of a history.
_PLAIN_VERSIONS = {
    RideState.SEARCHING: 1,
    RideState.ASSIGNED: 2,
    RideState.ARRIVED: 3,
    RideState.IN_PROGRESS: 4,
    RideState.COMPLETED: 5,
}


@dataclass(slots=True)
class Request:
    """One ride request under one idempotency key; exactly one of the three outcomes is set at the end."""

    key: str
    client_id: str
    sent_at_s: float
    answered_at_s: float | None = None
    ride_id: str | None = None
    refusal: str | None = None  # the problem's code
    unknown: str | None = None  # why no answer ever came: it may or may not have been taken


@dataclass(slots=True)
class SeenTrip:
    """One trip as clients heard of it. `told_at_s`: when the driver's socket said so, None when it never did."""

    trip_id: str
    ride_id: str
    driver_id: str
    told_at_s: float | None = None
    started_at_s: float | None = None  # when the service confirmed the command
    completed_at_s: float | None = None


@dataclass(slots=True)
class Ledger:
    """Everything the clients of one run saw."""

    requests: dict[str, Request] = field(default_factory=dict)
    trips: dict[str, SeenTrip] = field(default_factory=dict)
    matched_at_s: dict[str, float] = field(default_factory=dict)  # by ride: the first anybody heard of a driver
    last_state: dict[str, schema.RideOut] = field(default_factory=dict)  # by ride: as read at the end
    completions: dict[str, set[str]] = field(default_factory=dict)  # by ride: trips confirmed as completed
    expected_pickup_s: list[float] = field(default_factory=list)  # as the service promised, by its own speed
    pickup_s: list[float] = field(default_factory=list)  # from hearing of the trip to having arrived
    unread: str | None = None  # why the rides' last states could not all be read
    positions_sent: int = 0
    positions_acked: int = 0
    reconnects: int = 0
    refused_commands: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    # Riders

    def asked(self, key: str, client_id: str, at_s: float) -> None:
        self.requests[key] = Request(key, client_id, at_s)

    def acknowledged(self, key: str, ride_id: str, at_s: float) -> None:
        request = self.requests[key]
        request.ride_id, request.answered_at_s = ride_id, at_s

    def refused(self, key: str, code: str, at_s: float) -> None:
        request = self.requests[key]
        request.refusal, request.answered_at_s = code, at_s

    def unanswered(self, key: str, why: str) -> None:
        self.requests[key].unknown = why

    def heard_event(self, event: schema.EventOut, at_s: float) -> None:
        """A rider's event stream."""
        if event.trip_id is None or event.driver_id is None:
            return
        self.matched_at_s.setdefault(event.ride_id, at_s)
        self._trip(event.trip_id, event.ride_id, event.driver_id)

    def read_at_end(self, ride: schema.RideOut) -> None:
        self.last_state[ride.id] = ride
        if ride.trip is not None:
            self._trip(ride.trip.id, ride.id, ride.trip.driver_id)

    def read_history(self, events: Iterable[schema.EventOut]) -> None:
        """A ride's events, read afterwards: trips that ended before anybody was told count as seen, not as told."""
        for event in events:
            if event.trip_id is not None and event.driver_id is not None:
                self._trip(event.trip_id, event.ride_id, event.driver_id)

    # Drivers

    def told(self, ride: schema.RideOut, driver_id: str, at_s: float) -> None:
        """A driver's socket spoke of its trip, in a welcome or a `trip` frame."""
        trip = ride.trip
        if trip is None or trip.driver_id != driver_id:
            return
        self.matched_at_s.setdefault(ride.id, at_s)
        seen = self._trip(trip.id, ride.id, driver_id)
        if seen.told_at_s is None:
            seen.told_at_s = at_s
            self.expected_pickup_s.append(trip.pickup_s)

    def confirmed(self, verb: str, ride_id: str, trip_id: str, at_s: float) -> None:
        """The service took (or had taken) a driver's command."""
        seen = self.trips.get(trip_id)
        if seen is None:
            return
        if verb == "arrive" and seen.told_at_s is not None:
            self.pickup_s.append(at_s - seen.told_at_s)
        elif verb == "start":
            seen.started_at_s = at_s
        elif verb == "complete":
            seen.completed_at_s = at_s
            self.completions.setdefault(ride_id, set()).add(trip_id)

    def _trip(self, trip_id: str, ride_id: str, driver_id: str) -> SeenTrip:
        return self.trips.setdefault(trip_id, SeenTrip(trip_id, ride_id, driver_id))

    # What it all comes to

    @property
    def acknowledged_rides(self) -> dict[str, Request]:
        return {request.ride_id: request for request in self.requests.values() if request.ride_id is not None}

    @property
    def client_ids(self) -> frozenset[str]:
        return frozenset(request.client_id for request in self.requests.values())

    @property
    def matched_rides(self) -> set[str]:
        return {trip.ride_id for trip in self.trips.values()}

    def state_counts(self) -> Counter[str]:
        return Counter(ride.state for ride in self.last_state.values())

    def request_to_match_s(self) -> list[float]:
        """From the first sending of a request to the first word of a driver for it, to driver or rider."""
        rides = self.acknowledged_rides
        return [at - rides[ride_id].sent_at_s for ride_id, at in self.matched_at_s.items() if ride_id in rides]

    def request_to_answer_s(self) -> list[float]:
        answered = (r for r in self.requests.values() if r.ride_id is not None and r.answered_at_s is not None)
        return [request.answered_at_s - request.sent_at_s for request in answered if request.answered_at_s is not None]

    def needs_history(self) -> list[str]:
        """Rides whose version says that more happened to them than the clients were told."""
        return [ride.id for ride in self.last_state.values() if not _is_plain(ride)]

    def doubles(self) -> list[str]:
        """P1 as the clients saw it: a ride completed twice, a driver carrying two rides at once."""
        twice = [
            f"ride {ride} was completed as {sorted(ids)}" for ride, ids in self.completions.items() if len(ids) > 1
        ]
        carried: dict[str, list[SeenTrip]] = {}
        for trip in self.trips.values():
            if trip.started_at_s is not None:
                carried.setdefault(trip.driver_id, []).append(trip)
        return twice + [line for driver, trips in carried.items() for line in _carrying_two(driver, trips)]


def _is_plain(ride: schema.RideOut) -> bool:
    state = RideState(ride.state)
    if state in _PLAIN_VERSIONS:
        return ride.version <= _PLAIN_VERSIONS[state]
    if ride.trip is None:
        return ride.version <= 2
    # Cancelled with a driver: assigned, perhaps arrived, then cancelled.
    return ride.version <= (3 if ride.trip.arrived_at is None else 4)


def _carrying_two(driver_id: str, trips: list[SeenTrip]) -> list[str]:
    ordered = sorted(trips, key=lambda trip: trip.started_at_s or 0.0)
    return [
        f"driver {driver_id} started {later.trip_id} while carrying {earlier.trip_id}"
        for earlier, later in pairwise(ordered)
        if earlier.completed_at_s is not None and (later.started_at_s or 0.0) < earlier.completed_at_s
    ]


def percentile(values: Sequence[float], share: float) -> float | None:
    """By nearest rank: the smallest value that `share` of them do not exceed; None of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
