"""Rides, trips and drivers: their states, and the one table of how they move.

Everything here is pure. Times are whole milliseconds of the database's clock
(UTC), because deadlines are judged there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NewType

from geo.model import DriverId, LatLng, MarketId

RideId = NewType("RideId", str)
TripId = NewType("TripId", str)
ClientId = NewType("ClientId", str)


class RideState(StrEnum):
    SCHEDULED = "scheduled"
    SEARCHING = "searching"
    OFFERED = "offered"
    ASSIGNED = "assigned"
    ARRIVED = "arrived"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        return self in FINAL_RIDE_STATES


class TripState(StrEnum):
    OFFERED = "offered"
    ACCEPTED = "accepted"
    ARRIVED = "arrived"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    DECLINED = "declined"
    TIMED_OUT = "timed_out"
    WITHDRAWN = "withdrawn"
    CANCELLED = "cancelled"
    NO_SHOW = "no_show"
    ABANDONED = "abandoned"

    @property
    def is_live(self) -> bool:
        return self in LIVE_TRIP_STATES


class DriverStatus(StrEnum):
    OFFLINE = "offline"
    ONLINE = "online"
    ON_BREAK = "on_break"
    SUSPENDED = "suspended"


class Slot(StrEnum):
    """Which of a driver's two places a live trip takes."""

    NOW = "now"
    NEXT = "next"


class Actor(StrEnum):
    """Who made a change."""

    RIDER = "rider"  # the client that asked for the ride
    DRIVER = "driver"
    OPERATOR = "operator"
    SERVICE = "service"  # a batch, a limit of time, a rule


class Code(StrEnum):
    """Why something ended, or was changed, in one word that clients may rely on; a free text may stand beside it."""

    RIDER_CANCELLED = "rider_cancelled"
    DRIVER_CANCELLED = "driver_cancelled"
    OPERATOR_CANCELLED = "operator_cancelled"
    NO_SHOW = "no_show"  # the rider did not come
    DECLINED = "declined"
    OFFER_EXPIRED = "offer_expired"
    CONNECTION_LOST = "connection_lost"  # the driver's socket, while an offer stood, and for longer than its grace
    STALLED = "stalled"  # the driver accepted and did not come nearer
    RUNNING_LATE = "running_late"  # the driver's present trip took too long for the next one to wait
    DRIVER_BREAK = "driver_break"
    DRIVER_SUSPENDED = "driver_suspended"
    RELEASED = "released"  # by an operator
    REASSIGNED = "reassigned"  # by an operator, to another driver
    ABANDONED = "abandoned"  # the trip reached the limit of its life
    NO_DRIVER_FOUND = "no_driver_found"
    COMPLETED = "completed"
    OPERATOR_COMPLETED = "operator_completed"
    OPERATOR_ASSIGNED = "operator_assigned"
    MISSED_OFFERS = "missed_offers"  # a driver's status: too many offers in a row ran out unanswered


FINAL_RIDE_STATES = frozenset({RideState.COMPLETED, RideState.CANCELLED, RideState.EXPIRED})
LIVE_TRIP_STATES = frozenset({TripState.OFFERED, TripState.ACCEPTED, TripState.ARRIVED, TripState.IN_PROGRESS})
#: A driver whose trip for a ride ended so is not paired with that ride again.
REFUSING_TRIP_STATES = frozenset(
    {TripState.DECLINED, TripState.TIMED_OUT, TripState.CANCELLED, TripState.NO_SHOW, TripState.ABANDONED}
)

#: The same where a trip ended so, whatever its state: its driver is not asked again.
REFUSING_CODES = frozenset({Code.STALLED, Code.RELEASED, Code.REASSIGNED})


class Move(StrEnum):
    """What can happen to a ride and its trip. Values are the commands' and reasons' names."""

    ASSIGN = "assign"
    OFFER = "offer"
    ACCEPT = "accept"
    DECLINE = "decline"
    TIME_OUT = "time_out"
    ARRIVE = "arrive"
    START = "start"
    COMPLETE = "complete"
    DRIVER_CANCEL = "cancel"
    RIDER_CANCEL = "rider_cancel"
    RIDER_NO_SHOW = "no_show"
    EXPIRE = "expire"
    ABANDON = "abandon"
    WITHDRAW = "withdraw"  # the ride searches on without this driver: by a rule, or an operator
    PROMOTE = "promote"  # the driver's next trip is its present one now
    SEARCH = "search"  # a scheduled ride's time has come
    REDIRECT = "redirect"  # another destination
    OPERATOR_CANCEL = "operator_cancel"
    OPERATOR_COMPLETE = "operator_complete"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table: from these states, to those, and what the event is called.

    `trip_from` and `trip_to` are None where the ride has no live trip.
    """

    ride_from: RideState
    trip_from: TripState | None
    ride_to: RideState
    trip_to: TripState | None
    event: str


def _row(
    ride_from: RideState, trip_from: TripState | None, ride_to: RideState, trip_to: TripState | None, event: str
) -> Transition:
    return Transition(ride_from, trip_from, ride_to, trip_to, event)


_R, _T = RideState, TripState

#: Cancelled while nobody sits in the car yet.
_BEFORE_THE_RIDE = (
    _row(_R.SCHEDULED, None, _R.CANCELLED, None, "cancelled"),
    _row(_R.SEARCHING, None, _R.CANCELLED, None, "cancelled"),
    _row(_R.OFFERED, _T.OFFERED, _R.CANCELLED, _T.WITHDRAWN, "cancelled"),
    _row(_R.ASSIGNED, _T.ACCEPTED, _R.CANCELLED, _T.WITHDRAWN, "cancelled"),
    _row(_R.ARRIVED, _T.ARRIVED, _R.CANCELLED, _T.WITHDRAWN, "cancelled"),
)

#: The one transition table (design: states are an Enum and one table).
TRANSITIONS: Mapping[Move, tuple[Transition, ...]] = {
    Move.ASSIGN: (_row(_R.SEARCHING, None, _R.ASSIGNED, _T.ACCEPTED, "assigned"),),
    Move.OFFER: (_row(_R.SEARCHING, None, _R.OFFERED, _T.OFFERED, "offered"),),
    Move.ACCEPT: (_row(_R.OFFERED, _T.OFFERED, _R.ASSIGNED, _T.ACCEPTED, "assigned"),),
    Move.DECLINE: (_row(_R.OFFERED, _T.OFFERED, _R.SEARCHING, _T.DECLINED, "declined"),),
    Move.TIME_OUT: (_row(_R.OFFERED, _T.OFFERED, _R.SEARCHING, _T.TIMED_OUT, "timed_out"),),
    Move.ARRIVE: (_row(_R.ASSIGNED, _T.ACCEPTED, _R.ARRIVED, _T.ARRIVED, "arrived"),),
    Move.START: (_row(_R.ARRIVED, _T.ARRIVED, _R.IN_PROGRESS, _T.IN_PROGRESS, "started"),),
    Move.COMPLETE: (_row(_R.IN_PROGRESS, _T.IN_PROGRESS, _R.COMPLETED, _T.COMPLETED, "completed"),),
    Move.DRIVER_CANCEL: (
        _row(_R.ASSIGNED, _T.ACCEPTED, _R.SEARCHING, _T.CANCELLED, "driver_cancelled"),
        _row(_R.ARRIVED, _T.ARRIVED, _R.SEARCHING, _T.CANCELLED, "driver_cancelled"),
    ),
    Move.RIDER_CANCEL: _BEFORE_THE_RIDE,
    Move.RIDER_NO_SHOW: (_row(_R.ARRIVED, _T.ARRIVED, _R.CANCELLED, _T.NO_SHOW, "cancelled"),),
    Move.EXPIRE: (
        _row(_R.SCHEDULED, None, _R.EXPIRED, None, "expired"),
        _row(_R.SEARCHING, None, _R.EXPIRED, None, "expired"),
        _row(_R.OFFERED, _T.OFFERED, _R.EXPIRED, _T.TIMED_OUT, "expired"),
    ),
    Move.ABANDON: (
        _row(_R.ASSIGNED, _T.ACCEPTED, _R.SEARCHING, _T.ABANDONED, "abandoned"),
        _row(_R.ARRIVED, _T.ARRIVED, _R.SEARCHING, _T.ABANDONED, "abandoned"),
        _row(_R.IN_PROGRESS, _T.IN_PROGRESS, _R.CANCELLED, _T.ABANDONED, "cancelled"),
    ),
    Move.WITHDRAW: (
        _row(_R.OFFERED, _T.OFFERED, _R.SEARCHING, _T.WITHDRAWN, "withdrawn"),
        _row(_R.ASSIGNED, _T.ACCEPTED, _R.SEARCHING, _T.WITHDRAWN, "withdrawn"),
        _row(_R.ARRIVED, _T.ARRIVED, _R.SEARCHING, _T.WITHDRAWN, "withdrawn"),
    ),
    Move.PROMOTE: (
        _row(_R.OFFERED, _T.OFFERED, _R.OFFERED, _T.OFFERED, "promoted"),
        _row(_R.ASSIGNED, _T.ACCEPTED, _R.ASSIGNED, _T.ACCEPTED, "promoted"),
    ),
    Move.SEARCH: (_row(_R.SCHEDULED, None, _R.SEARCHING, None, "searching"),),
    Move.REDIRECT: tuple(
        _row(ride, trip, ride, trip, "destination_changed")
        for ride, trip in (
            (_R.SCHEDULED, None),
            (_R.SEARCHING, None),
            (_R.OFFERED, _T.OFFERED),
            (_R.ASSIGNED, _T.ACCEPTED),
            (_R.ARRIVED, _T.ARRIVED),
            (_R.IN_PROGRESS, _T.IN_PROGRESS),
        )
    ),
    Move.OPERATOR_CANCEL: (
        *_BEFORE_THE_RIDE,
        _row(_R.IN_PROGRESS, _T.IN_PROGRESS, _R.CANCELLED, _T.WITHDRAWN, "cancelled"),
    ),
    Move.OPERATOR_COMPLETE: (
        _row(_R.ASSIGNED, _T.ACCEPTED, _R.COMPLETED, _T.COMPLETED, "completed"),
        _row(_R.ARRIVED, _T.ARRIVED, _R.COMPLETED, _T.COMPLETED, "completed"),
        _row(_R.IN_PROGRESS, _T.IN_PROGRESS, _R.COMPLETED, _T.COMPLETED, "completed"),
    ),
}

#: The code of an ending that says nothing more special.
CODES: Mapping[Move, Code] = {
    Move.DECLINE: Code.DECLINED,
    Move.TIME_OUT: Code.OFFER_EXPIRED,
    Move.COMPLETE: Code.COMPLETED,
    Move.DRIVER_CANCEL: Code.DRIVER_CANCELLED,
    Move.RIDER_CANCEL: Code.RIDER_CANCELLED,
    Move.RIDER_NO_SHOW: Code.NO_SHOW,
    Move.EXPIRE: Code.NO_DRIVER_FOUND,
    Move.ABANDON: Code.ABANDONED,
    Move.OPERATOR_CANCEL: Code.OPERATOR_CANCELLED,
    Move.OPERATOR_COMPLETE: Code.OPERATOR_COMPLETED,
}

#: What a driver may command, and so what an answer of 409 may list as allowed.
DRIVER_MOVES = (
    Move.ACCEPT,
    Move.DECLINE,
    Move.ARRIVE,
    Move.START,
    Move.COMPLETE,
    Move.DRIVER_CANCEL,
    Move.RIDER_NO_SHOW,
)


def transition_of(move: Move, ride: RideState, trip: TripState | None) -> Transition | None:
    """The row that `move` takes from these states, or None where it is not allowed."""
    for row in TRANSITIONS[move]:
        if row.ride_from is ride and row.trip_from is trip:
            return row
    return None


def moves_allowed(ride: RideState, trip: TripState) -> tuple[Move, ...]:
    """The driver's commands that would be taken now."""
    return tuple(move for move in DRIVER_MOVES if transition_of(move, ride, trip) is not None)


@dataclass(frozen=True, slots=True)
class NewRide:
    """A checked ride request, with the id and the body's hash made before the transaction.

    `deadline_ms` is how long the ride may search: from the commit's statement on, or, where it is scheduled, from
    `pickup_at_ms` on. A scheduled ride enters the batches `lead_ms` before that.
    `idempotency_key` None: the client asked for no protection from repetition.
    `tags` are what the vehicle has to offer, sorted.
    """

    ride_id: RideId
    client_id: ClientId
    market: MarketId
    pickup: LatLng
    dropoff: LatLng | None
    seats: int
    vehicle_class: str
    deadline_ms: int
    metadata: Mapping[str, Any]
    idempotency_key: str | None
    body_hash: bytes  # 32 bytes, SHA-256 of the canonical body
    tags: tuple[str, ...] = ()
    pickup_at_ms: int | None = None
    lead_ms: int = 0


@dataclass(frozen=True, slots=True)
class Trip:
    """One driver paired with one ride.

    `pickup_s` is the time to the pickup that was expected when matched (the rest of the driver's trip of then
    included), `distance_m` the straight line then. `due_at_ms` is when it ends by itself: an offer's end, a
    `next` trip's release, else `abandon_at_ms`. `end_reason` says what ended it, `end_code` by a known word.
    """

    trip_id: TripId
    ride_id: RideId
    driver_id: DriverId
    market: MarketId
    state: TripState
    slot: Slot | None
    pickup_s: float
    distance_m: float
    matched_at_ms: int
    arrived_at_ms: int | None
    started_at_ms: int | None
    ended_at_ms: int | None
    abandon_at_ms: int
    end_reason: str | None
    decision: Mapping[str, Any]  # why this driver: batch id, cost by term (P12)
    due_at_ms: int = 0
    accepted_at_ms: int | None = None
    release_at_ms: int | None = None
    end_code: str | None = None


def took_effect(move: Move, trip: Trip) -> bool:
    """Whether the driver's command was taken already, so that a repetition answers with the present state (P3)."""
    if move is Move.ACCEPT:  # rows of the version before have no time of it
        is_under_way = trip.state.is_live and trip.state is not TripState.OFFERED
        return is_under_way or trip.accepted_at_ms is not None
    if move is Move.ARRIVE:
        return trip.arrived_at_ms is not None
    if move is Move.START:
        return trip.started_at_ms is not None
    return any(row.trip_to is trip.state for row in TRANSITIONS[move])


@dataclass(frozen=True, slots=True)
class Ride:
    """A ride as its row says, with its current (or last) trip where there is one; `tags` are sorted.

    `pickup_at_ms` and `search_at_ms` are a scheduled ride's: when it wants to be picked up, and when it enters the
    batches.
    """

    ride_id: RideId
    client_id: ClientId
    market: MarketId
    state: RideState
    version: int
    pickup: LatLng
    dropoff: LatLng | None
    seats: int
    vehicle_class: str
    metadata: Mapping[str, Any]
    requested_at_ms: int
    deadline_at_ms: int
    ended_at_ms: int | None
    end_reason: str | None
    trip: Trip | None
    tags: tuple[str, ...] = ()
    pickup_at_ms: int | None = None
    search_at_ms: int | None = None
    end_code: str | None = None

    @property
    def queued_at_ms(self) -> int:
        """Its place in the queue, which it keeps whatever happens to it."""
        return self.requested_at_ms if self.search_at_ms is None else max(self.search_at_ms, self.requested_at_ms)

    @property
    def live_trip(self) -> Trip | None:
        return self.trip if self.trip is not None and self.trip.state.is_live else None


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver as its row says; `tags` are what its vehicle offers, sorted.

    `version` grows with every change of the row; `status_code` says why the service changed the status itself.
    """

    driver_id: DriverId
    status: DriverStatus
    vehicle_class: str
    seats: int
    market: MarketId | None
    epoch: int
    updated_at_ms: int
    tags: tuple[str, ...] = ()
    version: int = 0
    status_code: str | None = None


@dataclass(frozen=True, slots=True)
class RideEvent:
    """One committed change of a ride; `(ride_id, version)` is its identity and its order."""

    ride_id: RideId
    version: int
    market: MarketId
    type: str
    state: RideState
    driver_id: DriverId | None
    trip_id: TripId | None
    reason: str | None
    at_ms: int
    code: str | None = None
    actor: str | None = None


#: In a hint, in place of a ride: the driver's own row is at this version.
NO_RIDE = RideId("")


@dataclass(frozen=True, slots=True)
class Hint:
    """Ride R is at version V: all that an announcement says; the rest is read from the store.

    With NO_RIDE it is the row of the driver that is at version V; with neither, the market's queues at places
    have changed.
    """

    ride_id: RideId
    version: int
    market: MarketId
    driver_id: DriverId | None
