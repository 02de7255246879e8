"""What the clients themselves saw: the one account of a run that owes nothing to the service.

Riders write down what they asked for and what they were answered, and their rides' events; drivers when they were
connected, which offers and trips they were told of and which commands were confirmed; at the end every acknowledged
ride's state is read once more. `benchmarks.audit` compares all of it with the database. Times are seconds of this
process's monotonic clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from api import schema
from matcher.model import FINAL_RIDE_STATES, LIVE_TRIP_STATES, Code, DriverStatus, RideState, Slot, TripState

FINAL = frozenset(state.value for state in FINAL_RIDE_STATES)
_LIVE = frozenset(state.value for state in LIVE_TRIP_STATES)
#: A trip comes here by its driver's acceptance, or an assignment, alone.
_ACCEPTED = frozenset(LIVE_TRIP_STATES - {TripState.OFFERED}) | {
    TripState.COMPLETED,
    TripState.CANCELLED,
    TripState.NO_SHOW,
    TripState.ABANDONED,
}
_WITH_DRIVER = frozenset({RideState.ASSIGNED, RideState.ARRIVED, RideState.IN_PROGRESS, RideState.COMPLETED})
_RAN_OUT = frozenset({Code.OFFER_EXPIRED, Code.NO_DRIVER_FOUND})


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
    """One trip as clients heard of it.

    `offered_at_s` is when the driver's socket showed it as an offer, `told_at_s` when the driver learnt that the trip
    is its own: by its socket, or as the answer to its acceptance. None where it never did.
    """

    trip_id: str
    ride_id: str
    driver_id: str
    offered_at_s: float | None = None
    told_at_s: float | None = None
    told_end: str | None = None  # the trip's state, as its driver was told of its end
    confirmed_at_s: dict[str, float] = field(default_factory=dict)  # by command: when the service took it
    was_offer: bool = False  # as anybody heard
    was_accepted: bool = False
    end_code: str | None = None

    @property
    def started_at_s(self) -> float | None:
        return self.confirmed_at_s.get("start")

    @property
    def completed_at_s(self) -> float | None:
        return self.confirmed_at_s.get("complete")


@dataclass(slots=True)
class Followed:
    """A ride's events as one rider read them; `ended`: the stream came to its end by itself."""

    events: list[schema.EventOut] = field(default_factory=list)
    ended: bool = False


@dataclass(slots=True)
class Connection:
    """A driver's socket, from its welcome to its loss; `from_ms` is the service's time of the welcome."""

    from_ms: int
    from_s: float
    to_s: float | None = None

    def common_ms(self, from_ms: int, to_ms: int) -> int:
        """How much of that time, in the service's milliseconds, it stood; below 0: none of it."""
        lost_ms = math.inf if self.to_s is None else self.from_ms + (self.to_s - self.from_s) * 1000
        return round(min(to_ms, lost_ms)) - max(from_ms, self.from_ms)


@dataclass(slots=True)
class Ledger:
    """Everything the clients of one run saw."""

    requests: dict[str, Request] = field(default_factory=dict)
    trips: dict[str, SeenTrip] = field(default_factory=dict)
    matched_at_s: dict[str, float] = field(default_factory=dict)  # by ride: the first anybody heard of a driver
    offered_at_s: dict[str, float] = field(default_factory=dict)  # by ride: the first that a driver heard of an offer
    last_state: dict[str, schema.RideOut] = field(default_factory=dict)  # by ride: as read at the end
    completions: dict[str, set[str]] = field(default_factory=dict)  # by ride: trips confirmed as completed
    followed: dict[str, Followed] = field(default_factory=dict)  # by ride
    connections: dict[str, list[Connection]] = field(default_factory=dict)  # by driver
    paused: set[str] = field(default_factory=set)  # drivers, for missed offers
    welcomed_with_two: list[str] = field(default_factory=list)
    told_again: list[str] = field(default_factory=list)  # of a trip that had ended, as its driver had been told
    unread_histories: set[str] = field(default_factory=set)  # rides whose events could not be read at the end
    expected_pickup_s: list[float] = field(default_factory=list)  # as the service promised, by its own speed
    pickup_s: list[float] = field(default_factory=list)  # from hearing of the trip to having arrived
    unread: str | None = None  # why the rides' last states could not all be read
    positions_sent: int = 0
    positions_acked: int = 0
    reconnects: int = 0
    lost_connections: int = 0  # on purpose
    breaks: int = 0
    refused_commands: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _present: dict[str, list[str]] = field(default_factory=dict)  # by driver: its present trips as told, in order

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
        self.followed.setdefault(event.ride_id, Followed()).events.append(event)
        if event.trip_id is not None and event.state in _WITH_DRIVER:
            self.matched_at_s.setdefault(event.ride_id, at_s)
        self._learn(event)

    def follow_ended(self, ride_id: str) -> None:
        self.followed.setdefault(ride_id, Followed()).ended = True

    def read_at_end(self, ride: schema.RideOut) -> None:
        self.last_state[ride.id] = ride
        if ride.trip is not None:
            self._see(ride.trip, ride.id)

    def read_history(self, events: Iterable[schema.EventOut]) -> None:
        """A ride's events, read afterwards: trips that ended before anybody was told count as seen, not as told."""
        for event in events:
            self._learn(event)

    # Drivers

    def connected(self, driver_id: str, welcome: schema.WelcomeFrame, at_s: float) -> None:
        """A driver was welcomed; what it says of the driver's trips is told beside this."""
        self.disconnected(driver_id, at_s)
        if welcome.now is not None:
            now_ms = round(datetime.fromisoformat(welcome.now).timestamp() * 1000)
            self.connections.setdefault(driver_id, []).append(Connection(now_ms, at_s))
        present = [ride.trip.id for ride in welcome.rides if ride.trip is not None and ride.trip.slot == Slot.NOW]
        if len(present) > 1:
            self.welcomed_with_two.append(f"driver {driver_id} was welcomed with the present trips {present}")
        if welcome.status == DriverStatus.ON_BREAK and welcome.status_code == Code.MISSED_OFFERS:
            self.paused.add(driver_id)

    def disconnected(self, driver_id: str, at_s: float) -> None:
        last = self.connections.get(driver_id)
        if last and last[-1].to_s is None:
            last[-1].to_s = at_s

    def connected_ms(self, driver_id: str, from_ms: int, to_ms: int) -> int:
        """The longest that one socket of this driver stood within that time of the service's."""
        return max((each.common_ms(from_ms, to_ms) for each in self.connections.get(driver_id, ())), default=0)

    def told(self, ride: schema.RideOut, driver_id: str, at_s: float) -> None:
        """A driver's socket spoke of its trip, in a welcome or a frame."""
        trip = ride.trip
        if trip is None or trip.driver_id != driver_id:
            return
        seen = self._see(trip, ride.id)
        if trip.state not in _LIVE:
            seen.told_end = trip.state
        self._note_present(trip)
        if not seen.was_accepted:
            return
        self.matched_at_s.setdefault(ride.id, at_s)
        if seen.told_at_s is None:
            seen.told_at_s = at_s
            self.expected_pickup_s.append(trip.pickup_s)

    def offered(self, ride: schema.RideOut, driver_id: str, at_s: float) -> None:
        """A driver's socket showed an offer; the same one may be shown again."""
        if ride.trip is None or ride.trip.driver_id != driver_id:
            return
        self.offered_at_s.setdefault(ride.id, at_s)
        seen = self._see(ride.trip, ride.id)
        if seen.offered_at_s is None:
            seen.offered_at_s = at_s

    def confirmed(self, verb: str, ride_id: str, trip_id: str, at_s: float) -> None:
        """The service took (or had taken) a driver's command."""
        seen = self.trips.get(trip_id)
        if seen is None:
            return
        seen.confirmed_at_s[verb] = at_s
        if verb == "accept":
            seen.was_accepted = True
            seen.told_at_s = at_s if seen.told_at_s is None else seen.told_at_s
            self.matched_at_s.setdefault(ride_id, at_s)
        elif verb == "arrive" and seen.told_at_s is not None:
            self.pickup_s.append(at_s - seen.told_at_s)
        elif verb == "complete":
            self.completions.setdefault(ride_id, set()).add(trip_id)

    def _note_present(self, trip: schema.TripOut) -> None:
        """A driver's present trips follow one another: none lives again after it was told of another."""
        if trip.state not in _LIVE or trip.state == TripState.OFFERED or trip.slot == Slot.NEXT:
            return
        told = self._present.setdefault(trip.driver_id, [])
        if trip.id in told[:-1]:
            self.told_again.append(f"driver {trip.driver_id} was told of {trip.id} again after {told[-1]}")
        elif trip.id not in told:
            told.append(trip.id)

    def _see(self, trip: schema.TripOut, ride_id: str) -> SeenTrip:
        """What a client was shown of a trip."""
        seen = self._trip(trip.id, ride_id, trip.driver_id)
        seen.was_offer = seen.was_offer or trip.state == TripState.OFFERED
        seen.was_accepted = seen.was_accepted or trip.accepted_at is not None or trip.state in _ACCEPTED
        if trip.state not in _LIVE:
            seen.end_code = seen.end_code or trip.end_code
        return seen

    def _learn(self, event: schema.EventOut) -> None:
        """What an event says of its trip."""
        if event.trip_id is None or event.driver_id is None:
            return
        seen = self._trip(event.trip_id, event.ride_id, event.driver_id)
        seen.was_offer = seen.was_offer or event.state == RideState.OFFERED
        seen.was_accepted = seen.was_accepted or event.state in _WITH_DRIVER
        if event.state in FINAL or event.state == RideState.SEARCHING:
            seen.end_code = seen.end_code or event.code

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
        return {trip.ride_id for trip in self.trips.values() if trip.was_accepted}

    def state_counts(self) -> Counter[str]:
        return Counter(ride.state for ride in self.last_state.values())

    def request_to_match_s(self) -> list[float]:
        """From the first sending of a request to the first word of a driver for it, to driver or rider."""
        return self._since_request_s(self.matched_at_s)

    def request_to_offer_s(self) -> list[float]:
        """From the first sending of a request to the first driver who was shown it as an offer."""
        return self._since_request_s(self.offered_at_s)

    def _since_request_s(self, heard_at_s: Mapping[str, float]) -> list[float]:
        rides = self.acknowledged_rides
        return [at_s - rides[ride_id].sent_at_s for ride_id, at_s in heard_at_s.items() if ride_id in rides]

    def offer_to_accept_s(self) -> list[float]:
        """From when a driver was shown an offer until it knew that the trip is its own, its time to think included."""
        answered = ((trip.offered_at_s, trip.confirmed_at_s.get("accept")) for trip in self.trips.values())
        return [to_s - from_s for from_s, to_s in answered if from_s is not None and to_s is not None]

    def offer_counts(self) -> Counter[str]:
        """What became of the offers that anybody heard of."""
        return Counter(_outcome(trip) for trip in self.trips.values() if trip.was_offer)

    def request_to_answer_s(self) -> list[float]:
        answered = (r for r in self.requests.values() if r.ride_id is not None and r.answered_at_s is not None)
        return [request.answered_at_s - request.sent_at_s for request in answered if request.answered_at_s is not None]

    def needs_history(self) -> list[str]:
        """Rides whose version says that they may have had more trips than the one they stand with."""
        return [ride.id for ride in self.last_state.values() if ride.version > _versions_shown(ride)]

    def doubles(self) -> list[str]:
        """P1 as the clients saw it: a ride completed twice, a driver carrying two or having two present trips."""
        twice = [
            f"ride {ride} was completed as {sorted(ids)}" for ride, ids in self.completions.items() if len(ids) > 1
        ]
        carried: dict[str, list[SeenTrip]] = {}
        for trip in self.trips.values():
            if trip.started_at_s is not None:
                carried.setdefault(trip.driver_id, []).append(trip)
        twice += self.welcomed_with_two
        return twice + [line for driver, trips in carried.items() for line in _carrying_two(driver, trips)]


def _versions_shown(ride: schema.RideOut) -> int:
    """How many versions, at least, what is shown of the ride took; another trip would have taken two more."""
    trip = ride.trip
    if trip is None:
        return 2 if ride.state in FINAL else 1
    at_once = trip.accepted_at == trip.matched_at  # else it was an offer first
    steps = [True, trip.accepted_at is not None and not at_once, trip.arrived_at is not None]
    steps += [trip.started_at is not None, trip.ended_at is not None or ride.state in FINAL]
    return 1 + sum(steps)


def _outcome(trip: SeenTrip) -> str:
    if trip.was_accepted:
        return "accepted"
    if trip.end_code is None:
        return "open"
    if trip.end_code == Code.DECLINED:
        return "declined"
    return "ran_out" if trip.end_code in _RAN_OUT else "withdrawn"


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
