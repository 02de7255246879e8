"""Rows to records and back: which columns are read, in which order, and what they become."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from geo.model import DriverId, LatLng, MarketId
from matcher.model import (
    NO_RIDE,
    Actor,
    ClientId,
    Driver,
    DriverStatus,
    Hint,
    Ride,
    RideEvent,
    RideId,
    RideState,
    Slot,
    Trip,
    TripId,
    TripState,
)
from matcher.sessions import Unstorable
from matcher.statement import Params, Row
from matcher.tables import NAME_BYTES_MAX, REASON_CHARS_MAX, TAGS_CHARS_MAX, drivers, ride_events, rides, trips

Columns = tuple[sa.Column[Any], ...]

RIDE_COLUMNS: Columns = (
    rides.c.ride_id,
    rides.c.client_id,
    rides.c.market,
    rides.c.state,
    rides.c.version,
    rides.c.pickup_lat,
    rides.c.pickup_lon,
    rides.c.dropoff_lat,
    rides.c.dropoff_lon,
    rides.c.seats,
    rides.c.vehicle_class,
    rides.c.metadata,
    rides.c.requested_at_ms,
    rides.c.deadline_at_ms,
    rides.c.ended_at_ms,
    rides.c.end_reason,
    rides.c.tags,
    rides.c.pickup_at_ms,
    rides.c.search_at_ms,
    rides.c.end_code,
)
TRIP_COLUMNS: Columns = (
    trips.c.trip_id,
    trips.c.driver_id,
    trips.c.state,
    trips.c.live_slot,
    trips.c.pickup_s,
    trips.c.distance_m,
    trips.c.matched_at_ms,
    trips.c.arrived_at_ms,
    trips.c.started_at_ms,
    trips.c.ended_at_ms,
    trips.c.abandon_at_ms,
    trips.c.end_reason,
    trips.c.decision,
    trips.c.due_at_ms,
    trips.c.accepted_at_ms,
    trips.c.release_at_ms,
    trips.c.end_code,
)
RIDE_AND_TRIP: Columns = RIDE_COLUMNS + TRIP_COLUMNS
_TRIP_AT = len(RIDE_COLUMNS)
DRIVER_COLUMNS: Columns = tuple(drivers.c)
EVENT_COLUMNS: Columns = tuple(c for c in ride_events.c if c.name != "pending")

RIDES_WITH_TRIP = rides.outerjoin(trips, trips.c.trip_id == rides.c.current_trip_id)


def text_of(value: Any) -> str:
    """An id or name: bytes from MySQL's VARBINARY, text from SQLite."""
    return value.decode() if isinstance(value, bytes) else value


def _text_or_none(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def can_be_id(value: str, bytes_max: int = NAME_BYTES_MAX) -> bool:
    """Whether any row could have it: text that is too long, or cannot be UTF-8, is nobody's id."""
    try:
        return len(value.encode()) <= bytes_max
    except UnicodeEncodeError:
        return False


def json_of(value: Mapping[str, Any]) -> str:
    """JSON in ASCII; a NaN, which no JSON reader takes, is a ValueError here."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def storable_reason(reason: str | None) -> str | None:
    """A reason as it is kept: cut to its column, without lone surrogates."""
    if reason is None:
        return None
    return reason.encode("utf-8", "replace").decode()[:REASON_CHARS_MAX]


def storable_tags(tags: Collection[str]) -> str:
    """Names as their column holds them: sorted, each once. Raises Unstorable for what would not be read back alike."""
    names = tuple(sorted(set(tags)))
    text = ",".join(names)
    if tags_of(text) != names or not text.isascii() or len(text) > TAGS_CHARS_MAX:
        raise Unstorable(f"tags: {text[:40]!r} is no list of ASCII names of at most {TAGS_CHARS_MAX} characters")
    return text


def tags_of(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def ride_of(row: Row, trip: Trip | None = None) -> Ride:
    """A row that begins with RIDE_COLUMNS."""
    dropoff = None if row[7] is None else LatLng(row[7], row[8])
    return Ride(
        ride_id=RideId(text_of(row[0])),
        client_id=ClientId(text_of(row[1])),
        market=MarketId(text_of(row[2])),
        state=RideState(row[3]),
        version=row[4],
        pickup=LatLng(row[5], row[6]),
        dropoff=dropoff,
        seats=row[9],
        vehicle_class=text_of(row[10]),
        metadata=json.loads(row[11]),
        requested_at_ms=row[12],
        deadline_at_ms=row[13],
        ended_at_ms=row[14],
        end_reason=row[15],
        trip=trip,
        tags=tags_of(row[16]),
        pickup_at_ms=row[17],
        search_at_ms=row[18],
        end_code=row[19],
    )


def ride_with_trip_of(row: Row) -> Ride:
    """A row that begins with RIDE_AND_TRIP, where the trip's part may be NULL throughout."""
    return ride_of(row, None if row[_TRIP_AT] is None else _trip_of(row))


def _trip_of(row: Row) -> Trip:
    at = _TRIP_AT
    return Trip(
        trip_id=TripId(text_of(row[at])),
        ride_id=RideId(text_of(row[0])),
        driver_id=DriverId(text_of(row[at + 1])),
        market=MarketId(text_of(row[2])),
        state=TripState(row[at + 2]),
        slot=None if row[at + 3] is None else Slot(row[at + 3]),
        pickup_s=row[at + 4],
        distance_m=row[at + 5],
        matched_at_ms=row[at + 6],
        arrived_at_ms=row[at + 7],
        started_at_ms=row[at + 8],
        ended_at_ms=row[at + 9],
        abandon_at_ms=row[at + 10],
        end_reason=row[at + 11],
        decision=json.loads(row[at + 12]),
        due_at_ms=row[at + 13],
        accepted_at_ms=row[at + 14],
        release_at_ms=row[at + 15],
        end_code=row[at + 16],
    )


def driver_of(row: Row) -> Driver:
    market = _text_or_none(row[4])
    return Driver(
        driver_id=DriverId(text_of(row[0])),
        status=DriverStatus(row[1]),
        vehicle_class=text_of(row[2]),
        seats=row[3],
        market=None if market is None else MarketId(market),
        epoch=row[5],
        updated_at_ms=row[6],
        tags=tags_of(row[7]),
        version=row[8],
        status_code=row[9],
    )


def event_of(row: Row) -> RideEvent:
    driver_id, trip_id = _text_or_none(row[5]), _text_or_none(row[6])
    return RideEvent(
        ride_id=RideId(text_of(row[0])),
        version=row[1],
        market=MarketId(text_of(row[2])),
        type=row[3],
        state=RideState(row[4]),
        driver_id=None if driver_id is None else DriverId(driver_id),
        trip_id=None if trip_id is None else TripId(trip_id),
        reason=row[7],
        at_ms=row[8],
        code=row[9],
        actor=row[10],
    )


def event_row(
    ride: Ride,
    event: str,
    at_ms: int,
    trip: Trip | None = None,
    *,
    actor: Actor,
    code: str | None = None,
    reason: str | None = None,
) -> Params:
    """The event of the change that made `ride` what it is; not announced yet."""
    return {
        "ride_id": ride.ride_id,
        "version": ride.version,
        "market": ride.market,
        "type": event,
        "state": ride.state.value,
        "driver_id": None if trip is None else trip.driver_id,
        "trip_id": None if trip is None else trip.trip_id,
        "reason": reason,
        "at_ms": at_ms,
        "pending": 1,
        "code": code,
        "actor": actor.value,
    }


def hint_of(ride: Ride, trip: Trip | None = None) -> Hint:
    return Hint(ride.ride_id, ride.version, ride.market, None if trip is None else trip.driver_id)


def driver_hint(driver: Driver) -> Hint | None:
    """What tells a driver's sessions that its row has changed; None where it never signed on, so that it has none."""
    return None if driver.market is None else Hint(NO_RIDE, driver.version, driver.market, driver.driver_id)
