"""What goes over the wire, as msgspec structs: requests, answers and socket frames.

This module rules over field names, ranges and formats, the same in JSON and in
msgpack. It knows no store and no socket. Latitudes and longitudes are degrees;
times are RFC 3339 in UTC with milliseconds. A range given to msgspec also
refuses NaN and the infinities, which msgpack would let through.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from geo.model import MAX_EXACT_INT, LatLng
from matcher.model import Driver, Ride, RideEvent, Slot, Trip, TripState

Latitude = Annotated[float, Meta(ge=-90.0, le=90.0)]
Longitude = Annotated[float, Meta(ge=-180.0, le=180.0)]
Count = Annotated[int, Meta(ge=0, le=MAX_EXACT_INT)]
#: A day: an older fix is no fix.
AgeMs = Annotated[int, Meta(ge=0, le=86_400_000)]
VehicleClass = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,11}$")]
Seats = Annotated[int, Meta(ge=1, le=64)]
Reason = Annotated[str, Meta(min_length=1, max_length=200)]
Ref = Annotated[str, Meta(max_length=64)] | Annotated[int, Meta(ge=-MAX_EXACT_INT, le=MAX_EXACT_INT)]
WireId = Annotated[str, Meta(min_length=1, max_length=64)]

ITEMS_MAX = 256

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def rfc3339(ms: int) -> str:
    """Whole milliseconds since 1970 as an RFC 3339 time in UTC."""
    return (_EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def rfc3339_or_none(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


# Requests: an unknown field is refused, since a mistyped optional one would otherwise be lost silently.


class Point(Struct, frozen=True, forbid_unknown_fields=True):
    lat: Latitude
    lon: Longitude

    def to_model(self) -> LatLng:
        return LatLng(self.lat, self.lon)


class RideRequest(Struct, frozen=True, forbid_unknown_fields=True):
    pickup: Point
    dropoff: Point | None = None
    seats: Seats = 1
    vehicle_class: VehicleClass = field(default="standard", name="class")
    deadline_s: Annotated[float, Meta(gt=0.0, le=31_536_000.0)] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    tags: Annotated[list[str], Meta(max_length=16)] = field(default_factory=list)
    pickup_at: Annotated[datetime, Meta(tz=True)] | None = None  # of a ride for later; deadline_s counts from it


class ReasonRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a cancellation and, for symmetry, of every trip command; it may be absent."""

    reason: Reason | None = None


class DriverRequest(Struct, frozen=True, forbid_unknown_fields=True):
    seats: Seats
    vehicle_class: VehicleClass = field(default="standard", name="class")
    status: Literal["offline", "online", "on_break", "suspended"] | None = None
    tags: Annotated[list[str], Meta(max_length=32)] = field(default_factory=list)


class SuspendRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Why, and what becomes of the driver's trips (see matcher.outcomes.SuspendTrips)."""

    reason: Reason
    trips: Literal["keep", "release", "end"] = "release"


# Answers


class PointOut(Struct, frozen=True, gc=False):
    lat: float
    lon: float


class TripOut(Struct, frozen=True):
    id: str
    driver_id: str
    state: str
    pickup_s: float
    distance_m: float
    matched_at: str
    arrived_at: str | None
    started_at: str | None
    ended_at: str | None
    end_reason: str | None
    slot: str | None = None
    end_code: str | None = None
    accepted_at: str | None = None
    expires_at: str | None = None  # of an offer: when it ends by itself


class RideOut(Struct, frozen=True):
    id: str
    state: str
    version: int
    market: str
    pickup: PointOut
    dropoff: PointOut | None
    seats: int
    vehicle_class: str = field(name="class")
    metadata: Any
    requested_at: str
    deadline_at: str
    ended_at: str | None
    end_reason: str | None
    trip: TripOut | None
    tags: list[str] = field(default_factory=list)
    pickup_at: str | None = None
    end_code: str | None = None


class RidePage(Struct, frozen=True):
    items: list[RideOut]
    next: str | None


class DriverOut(Struct, frozen=True):
    id: str
    status: str
    vehicle_class: str = field(name="class")
    seats: int
    market: str | None
    epoch: int
    updated_at: str
    tags: list[str] = field(default_factory=list)
    status_code: str | None = None


class SuspendedOut(Struct, frozen=True):
    """A suspended driver, and the trip that it still has to finish."""

    driver: DriverOut
    finishing_trip_id: str | None


class NearbyOut(Struct, frozen=True, gc=False):
    driver_id: str
    lat: float
    lon: float
    distance_m: float
    pickup_s: float
    age_s: float
    vehicle_class: str = field(name="class")
    seats: int
    engaged: bool
    tags: list[str] = field(default_factory=list)


class NearbyPage(Struct, frozen=True):
    items: list[NearbyOut]


class EventOut(Struct, frozen=True):
    ride_id: str
    version: int
    type: str
    state: str
    driver_id: str | None
    trip_id: str | None
    reason: str | None
    at: str
    code: str | None = None
    actor: str | None = None


class DriverPositionOut(Struct, frozen=True):
    """Where the assigned driver is, in a ride's event stream."""

    driver_id: str
    lat: float
    lon: float
    age_s: float
    pickup_s: float


def trip_out(trip: Trip) -> TripOut:
    return TripOut(
        id=trip.trip_id,
        driver_id=trip.driver_id,
        state=trip.state.value,
        pickup_s=round(trip.pickup_s, 1),
        distance_m=round(trip.distance_m, 1),
        matched_at=rfc3339(trip.matched_at_ms),
        arrived_at=rfc3339_or_none(trip.arrived_at_ms),
        started_at=rfc3339_or_none(trip.started_at_ms),
        ended_at=rfc3339_or_none(trip.ended_at_ms),
        end_reason=trip.end_reason,
        slot=None if trip.slot is None else trip.slot.value,
        end_code=trip.end_code,
        accepted_at=rfc3339_or_none(trip.accepted_at_ms),
        expires_at=rfc3339(trip.due_at_ms) if trip.state is TripState.OFFERED else None,
    )


def ride_out(ride: Ride) -> RideOut:
    return RideOut(
        id=ride.ride_id,
        state=ride.state.value,
        version=ride.version,
        market=ride.market,
        pickup=PointOut(ride.pickup.lat, ride.pickup.lon),
        dropoff=None if ride.dropoff is None else PointOut(ride.dropoff.lat, ride.dropoff.lon),
        seats=ride.seats,
        vehicle_class=ride.vehicle_class,
        metadata=ride.metadata,
        requested_at=rfc3339(ride.requested_at_ms),
        deadline_at=rfc3339(ride.deadline_at_ms),
        ended_at=rfc3339_or_none(ride.ended_at_ms),
        end_reason=ride.end_reason,
        trip=None if ride.trip is None else trip_out(ride.trip),
        tags=list(ride.tags),
        pickup_at=rfc3339_or_none(ride.pickup_at_ms),
        end_code=ride.end_code,
    )


def driver_out(driver: Driver) -> DriverOut:
    return DriverOut(
        id=driver.driver_id,
        status=driver.status.value,
        vehicle_class=driver.vehicle_class,
        seats=driver.seats,
        market=driver.market,
        epoch=driver.epoch,
        updated_at=rfc3339(driver.updated_at_ms),
        tags=list(driver.tags),
        status_code=driver.status_code,
    )


def event_out(event: RideEvent) -> EventOut:
    return EventOut(
        ride_id=event.ride_id,
        version=event.version,
        type=event.type,
        state=event.state.value,
        driver_id=event.driver_id,
        trip_id=event.trip_id,
        reason=event.reason,
        at=rfc3339(event.at_ms),
        code=event.code,
        actor=event.actor,
    )


# Frames of the driver socket. Unknown fields are let through here: apps in the
# field are older and newer than the service. They hold no containers, or none
# that could form a cycle, so the garbage collector need not look at them.


class PositionItem(Struct, gc=False):
    """A fix. Heading (degrees) and speed (m/s) out of range mean unknown: phones send -1."""

    seq: Count
    lat: Latitude
    lon: Longitude
    age_ms: AgeMs = 0
    heading: float | None = None
    speed: float | None = None


class PositionFrame(PositionItem, tag="position", tag_field="type", gc=False):
    pass


class PositionsFrame(Struct, tag="positions", tag_field="type"):
    """A backlog; the newest wins."""

    items: Annotated[list[PositionItem], Meta(min_length=1, max_length=ITEMS_MAX)]


class StatusFrame(Struct, tag="status", tag_field="type"):
    status: Literal["offline", "online", "on_break"]
    ref: Ref | None = None


class TripFrame(Struct):
    """A trip command; its tag is the move's name."""

    trip_id: WireId
    reason: Reason | None = None
    ref: Ref | None = None


class AcceptFrame(TripFrame, tag="accept", tag_field="type"):
    pass


class DeclineFrame(TripFrame, tag="decline", tag_field="type"):
    pass


class ArriveFrame(TripFrame, tag="arrive", tag_field="type"):
    pass


class StartFrame(TripFrame, tag="start", tag_field="type"):
    pass


class CompleteFrame(TripFrame, tag="complete", tag_field="type"):
    pass


class CancelFrame(TripFrame, tag="cancel", tag_field="type"):
    pass


class NoShowFrame(TripFrame, tag="no_show", tag_field="type"):
    """The driver has arrived, and waited, and the rider did not come."""


UpFrame = (
    PositionFrame
    | PositionsFrame
    | StatusFrame
    | AcceptFrame
    | DeclineFrame
    | ArriveFrame
    | StartFrame
    | CompleteFrame
    | CancelFrame
    | NoShowFrame
)


class QueueFrame(Struct, tag="queue", tag_field="type"):
    """The driver's place in the queue of a zone, counted from 1; without a zone it stands in none."""

    zone: str | None = None
    position: int | None = None
    length: int | None = None


class WelcomeFrame(Struct, tag="welcome", tag_field="type"):
    """The present state: `rides` are the driver's trips and offers, `now` the service's time.

    What an app knew before and does not find here has ended meanwhile.
    """

    driver_id: str
    market: str
    epoch: int
    status: str
    rides: list[RideOut]
    position_interval_s: float
    reconnect_jitter_s: float
    status_code: str | None = None
    now: str | None = None
    queue: QueueFrame | None = None
    ack_interval_s: float | None = None  # positions are acknowledged once in so long at most, each of them by then


class AckFrame(Struct, tag="ack", tag_field="type", gc=False):
    seq: int


class TripChangedFrame(Struct, tag="trip", tag_field="type"):
    ride: RideOut


class OfferFrame(Struct, tag="offer", tag_field="type"):
    """The ride waits for the driver's `accept` or `decline`.

    `expires_in_s` is what is left of its time when it is sent, for clocks that are wrong. `slot` is `now`, or `next`
    for a ride after the present one.
    """

    ride: RideOut
    expires_at: str
    expires_in_s: float
    slot: str


class OfferWithdrawnFrame(Struct, tag="offer_withdrawn", tag_field="type"):
    """The offer has ended without the driver's answer on this socket. `code` says why (see matcher.model.Code)."""

    ride: RideOut
    code: str


class StatusChangedFrame(Struct, tag="status", tag_field="type"):
    """The driver's status was changed, and not by a command of this socket."""

    status: str
    code: str | None = None
    reason: str | None = None


class DoneFrame(Struct, tag="done", tag_field="type", omit_defaults=True):
    """A command took effect. `finishing_trip_id`: the trip that a driver who takes no more still has to finish."""

    ride: RideOut | None = None
    status: str | None = None
    ref: str | int | None = None
    finishing_trip_id: str | None = None


class ErrorFrame(Struct, tag="error", tag_field="type", omit_defaults=True):
    code: str
    detail: str
    ref: str | int | None = None
    ride: RideOut | None = None
    allowed: list[str] | None = None
    allowed_at: str | None = None  # it came too early: from when on it will be taken


DownFrame = (
    WelcomeFrame
    | AckFrame
    | TripChangedFrame
    | OfferFrame
    | OfferWithdrawnFrame
    | StatusChangedFrame
    | QueueFrame
    | DoneFrame
    | ErrorFrame
)


def told_frame(ride: Ride, now_ms: int, *, was_offered: bool = False) -> DownFrame:
    """What a driver is told of a ride with a trip of its own; `was_offered`: it last knew the trip as an offer."""
    trip = ride.trip
    if trip is not None and trip.state is TripState.OFFERED:
        return _offer_frame(ride, trip, now_ms)
    if trip is not None and not trip.state.is_live and (was_offered or trip.state in _OFFER_ENDS):
        return OfferWithdrawnFrame(ride_out(ride), trip.end_code or trip.state.value)
    return TripChangedFrame(ride_out(ride))


#: Nothing but an offer ends so.
_OFFER_ENDS = frozenset({TripState.DECLINED, TripState.TIMED_OUT})


def _offer_frame(ride: Ride, trip: Trip, now_ms: int) -> OfferFrame:
    return OfferFrame(
        ride_out(ride),
        expires_at=rfc3339(trip.due_at_ms),
        expires_in_s=max(0.0, round((trip.due_at_ms - now_ms) / 1000.0, 1)),
        slot=trip.slot.value if trip.slot is not None else Slot.NOW.value,
    )
