"""A batch: one snapshot of what waits, and the plan committed in one transaction.

Order of locks: the market's lease, rides by id, drivers by id, trips. Rides and
drivers are taken with SKIP LOCKED, so that a pairing whose ride or driver is in
a command under way drops out alone and delays nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from geo.model import DriverId, LatLng, MarketId
from matcher.model import (
    REFUSING_CODES,
    REFUSING_TRIP_STATES,
    Actor,
    DriverStatus,
    Hint,
    Move,
    Ride,
    RideId,
    RideState,
    Slot,
    Transition,
    Trip,
    TripId,
    TripState,
    transition_of,
)
from matcher.outcomes import (
    LOST_DRIVER_BUSY,
    LOST_DRIVER_ENGAGED,
    LOST_DRIVER_GONE,
    LOST_DRIVER_NOT_ENGAGED,
    LOST_RIDE_BUSY,
    LOST_RIDE_CHANGED,
    Approach,
    Carrying,
    Committed,
    LostPairing,
    Pairing,
    Waiting,
)
from matcher.sessions import Session, rows_of
from matcher.statement import Params, Statement
from matcher.store_leases import hold
from matcher.store_markets import READ_PAUSED
from matcher.store_rides import INSERT_EVENT, NOW
from matcher.store_rows import (
    RIDE_AND_TRIP,
    RIDE_COLUMNS,
    event_row,
    hint_of,
    json_of,
    ride_of,
    ride_with_trip_of,
    tags_of,
    text_of,
)
from matcher.tables import drivers, now_ms, rides, trips

_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
#: A ride for later that was given a driver early, and lost it, waits for its time all the same.
_IS_TIME = sa.func.coalesce(rides.c.search_at_ms, 0) <= now_ms()
_WAITING = (
    rides.c.market == sa.bindparam("market"),
    rides.c.state == RideState.SEARCHING.value,
    rides.c.deadline_at_ms > now_ms(),
    _IS_TIME,
)
READ_WAITING = Statement(
    sa.select(*RIDE_COLUMNS)
    .where(*_WAITING)
    .order_by(sa.func.coalesce(rides.c.search_at_ms, rides.c.requested_at_ms), rides.c.ride_id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
READ_ENGAGED = Statement(sa.select(trips.c.driver_id).where(trips.c.live == 1))
READ_REFUSED = Statement(
    sa.select(trips.c.ride_id, trips.c.driver_id)
    .select_from(rides.join(trips, trips.c.ride_id == rides.c.ride_id))
    .where(
        *_WAITING,
        sa.or_(
            trips.c.state.in_(sorted(state.value for state in REFUSING_TRIP_STATES)),
            trips.c.end_code.in_(sorted(code.value for code in REFUSING_CODES)),
        ),
    )
)
_later = trips.alias("later")
#: Who carries a passenger and has nothing in `next`: it may be given one near the end.
READ_CARRYING = Statement(
    sa.select(trips.c.driver_id, rides.c.dropoff_lat, rides.c.dropoff_lon)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(
        trips.c.live == 1,
        trips.c.market == sa.bindparam("market"),
        trips.c.live_slot == Slot.NOW.value,
        trips.c.state == TripState.IN_PROGRESS.value,
        rides.c.dropoff_lat.is_not(None),
        ~sa.exists(
            sa.select(_later.c.trip_id).where(
                _later.c.driver_id == trips.c.driver_id, _later.c.live_slot == Slot.NEXT.value
            )
        ),
    )
)
_MATCHED_FOR_LATER = sa.or_(trips.c.now_since_ms > trips.c.matched_at_ms, rides.c.search_at_ms > trips.c.matched_at_ms)
_ACCEPTED_AT = sa.func.coalesce(trips.c.accepted_at_ms, trips.c.matched_at_ms)
_TURN_AT = sa.func.coalesce(trips.c.now_since_ms, trips.c.matched_at_ms)
_SEARCH_AT = sa.func.coalesce(rides.c.search_at_ms, 0)


def _latest(one: sa.ColumnElement[Any], other: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The later of two times: GREATEST and MAX are not the same on all databases."""
    return sa.case((one > other, one), else_=other)


#: Who has accepted and is on its way to the pickup, now or where the ride is for later, once its time has come. Whoever
#: was matched by hand before that was somewhere else then: its distance is not known.
READ_APPROACHING = Statement(
    sa.select(
        rides.c.ride_id,
        trips.c.trip_id,
        trips.c.driver_id,
        rides.c.pickup_lat,
        rides.c.pickup_lon,
        sa.case((sa.and_(trips.c.release_at_ms.is_(None), _MATCHED_FOR_LATER), 0.0), else_=trips.c.distance_m),
        _latest(_ACCEPTED_AT, _latest(_TURN_AT, _SEARCH_AT)),
    )
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(
        trips.c.live == 1,
        trips.c.market == sa.bindparam("market"),
        trips.c.live_slot == Slot.NOW.value,
        trips.c.state == TripState.ACCEPTED.value,
        _IS_TIME,
    )
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
LOCK_RIDES = Statement(
    sa.select(*RIDE_COLUMNS)
    .where(rides.c.ride_id.in_(_IDS), rides.c.deadline_at_ms > now_ms())
    .order_by(rides.c.ride_id)
    .with_hint(rides, "FORCE INDEX (PRIMARY)", "mysql")
    .with_for_update(skip_locked=True)
)
READ_VERSIONS_IN_TIME = Statement(
    sa.select(rides.c.ride_id, rides.c.version).where(rides.c.ride_id.in_(_IDS), rides.c.deadline_at_ms > now_ms())
)
LOCK_DRIVERS = Statement(
    sa.select(drivers.c.driver_id, drivers.c.status, drivers.c.market, drivers.c.seats, drivers.c.tags)
    .where(drivers.c.driver_id.in_(_IDS))
    .order_by(drivers.c.driver_id)
    .with_hint(drivers, "FORCE INDEX (PRIMARY)", "mysql")
    .with_for_update(skip_locked=True)
)
READ_DRIVERS = Statement(
    sa.select(drivers.c.driver_id, drivers.c.status, drivers.c.market).where(drivers.c.driver_id.in_(_IDS))
)
READ_SLOTS = Statement(
    sa.select(trips.c.driver_id, trips.c.live_slot).where(trips.c.driver_id.in_(_IDS), trips.c.live_slot.is_not(None))
)
INSERT_TRIP = Statement(trips.insert())
#: The trips stand already: each ride finds its own by the unique (ride, live).
MATCH_RIDES = Statement(
    rides.update()
    .where(rides.c.ride_id.in_(_IDS))
    .values(
        version=rides.c.version + 1,
        state=sa.bindparam("to_state"),
        current_trip_id=sa.select(trips.c.trip_id)
        .where(trips.c.ride_id == rides.c.ride_id, trips.c.live == 1)
        .scalar_subquery(),
    )
)
#: Waits for an earlier attempt that is still committing.
LOCK_TRIPS = Statement(sa.select(trips.c.trip_id).where(trips.c.trip_id.in_(_IDS)).with_for_update())
READ_TRIPS = Statement(
    sa.select(*RIDE_AND_TRIP)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.trip_id.in_(_IDS))
)


async def engaged(session: Session) -> frozenset[DriverId]:
    return frozenset(DriverId(text_of(row[0])) for row in await rows_of(session, READ_ENGAGED()))


async def waiting(session: Session, market: MarketId, limit: int, carrying: bool) -> Waiting:
    """All of it from one snapshot: a ride shown as waiting has no trip that `engaged` lacks."""
    steps = [
        NOW(),
        READ_WAITING(market=market, limit=limit),
        READ_ENGAGED(),
        READ_REFUSED(market=market),
        READ_PAUSED(markets=[market]),
    ]
    if carrying:
        steps.append(READ_CARRYING(market=market))
    await session.begin_snapshot()
    clock, found, engaged, refused, paused, *under_way = await session.run(*steps)
    await session.commit()
    refusals: dict[RideId, set[DriverId]] = {}
    for ride_id, driver_id in refused.rows:
        refusals.setdefault(RideId(text_of(ride_id)), set()).add(DriverId(text_of(driver_id)))
    return Waiting(
        now_ms=clock.rows[0][0],
        rides=[ride_of(row) for row in found.rows],
        engaged=frozenset(DriverId(text_of(row[0])) for row in engaged.rows),
        refused={ride_id: frozenset(some) for ride_id, some in refusals.items()},
        carrying=[
            Carrying(DriverId(text_of(driver_id)), LatLng(lat, lon))
            for reply in under_way
            for driver_id, lat, lon in reply.rows
        ],
        paused=bool(paused.rows),
    )


async def approaching(session: Session, market: MarketId, limit: int) -> list[Approach]:
    return [
        Approach(
            ride_id=RideId(text_of(ride_id)),
            trip_id=TripId(text_of(trip_id)),
            driver_id=DriverId(text_of(driver_id)),
            pickup=LatLng(lat, lon),
            distance_m=distance_m,
            since_ms=since_ms,
        )
        for ride_id, trip_id, driver_id, lat, lon, distance_m, since_ms in await rows_of(
            session, READ_APPROACHING(market=market, limit=limit)
        )
    ]


@dataclass(frozen=True, slots=True)
class Vehicle:
    """What a driver's row says of its vehicle now; the live index may still have an older word."""

    seats: int
    tags: frozenset[str]

    def can_serve(self, ride: Ride) -> bool:
        return self.seats >= ride.seats and self.tags.issuperset(ride.tags)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the transaction holds or knows of a plan's rides and drivers.

    `at_ms` was read with all locks held: no trip that a driver had before ended later.
    """

    at_ms: int
    rides: Mapping[RideId, Ride]  # locked, in time
    rides_busy: Mapping[RideId, int]  # versions of those that another holds
    drivers: Mapping[DriverId, Vehicle | None]  # locked; None: not to be matched in this market
    drivers_busy: frozenset[DriverId]
    slots: Mapping[DriverId, frozenset[str]]


def choose(market: MarketId, pairings: Sequence[Pairing], seen: _Seen) -> tuple[list[Pairing], list[LostPairing]]:
    """Which pairings survive; pure. A ride or driver that stands twice in a plan is matched once."""
    kept: list[Pairing] = []
    lost: list[LostPairing] = []
    used: set[str] = set()
    for pairing in pairings:
        why = _why_lost(market, pairing, seen)
        if why is None and pairing.ride_id in used:
            why = LOST_RIDE_CHANGED
        if why is None and pairing.driver_id in used:
            why = LOST_DRIVER_ENGAGED
        if why is None:
            used.update((pairing.ride_id, pairing.driver_id))
            kept.append(pairing)
        else:
            lost.append(LostPairing(pairing, why))
    return kept, lost


def _why_lost(market: MarketId, pairing: Pairing, seen: _Seen) -> str | None:
    ride = seen.rides.get(pairing.ride_id)
    if ride is None:
        busy = seen.rides_busy.get(pairing.ride_id) == pairing.ride_version
        return LOST_RIDE_BUSY if busy else LOST_RIDE_CHANGED
    if ride.version != pairing.ride_version or ride.state is not RideState.SEARCHING or ride.market != market:
        return LOST_RIDE_CHANGED
    if pairing.driver_id not in seen.drivers:
        return LOST_DRIVER_BUSY if pairing.driver_id in seen.drivers_busy else LOST_DRIVER_GONE
    vehicle = seen.drivers[pairing.driver_id]
    if vehicle is None or not vehicle.can_serve(ride):
        return LOST_DRIVER_GONE
    slots = seen.slots.get(pairing.driver_id, frozenset())
    if pairing.slot is Slot.NEXT:
        if Slot.NOW.value not in slots:
            return LOST_DRIVER_NOT_ENGAGED
        return LOST_DRIVER_ENGAGED if Slot.NEXT.value in slots else None
    return LOST_DRIVER_ENGAGED if slots else None


async def commit_plan(
    session: Session, market: MarketId, token: int, pairings: Sequence[Pairing], offer_ttl_ms: int | None
) -> Committed:
    """One try; raises LeaseLost, or Conflict where the backstop of unique keys refused a trip."""
    if session.settling and (before := await _committed_before(session, pairings)):
        return before
    await hold(session, market, token)
    seen = await _take(session, market, pairings)
    kept, lost = choose(market, pairings, seen)
    if not kept:
        session.refused = True
        return Committed([], [], lost)
    move = Move.ASSIGN if offer_ttl_ms is None else Move.OFFER
    row = transition_of(move, RideState.SEARCHING, None)
    assert row is not None  # the table has both
    at_ms = seen.at_ms
    made = [matched(seen.rides[pairing.ride_id], pairing, row, at_ms, offer_ttl_ms) for pairing in kept]
    await session.insert(INSERT_TRIP, [trip_row(trip) for _, trip in made])
    await session.run(MATCH_RIDES(ids=sorted(ride.ride_id for ride, _ in made), to_state=row.ride_to.value))
    events = [event_row(ride, row.event, at_ms, trip, actor=Actor.SERVICE) for ride, trip in made]
    await session.insert(INSERT_EVENT, events)
    return Committed([hint_of(ride, trip) for ride, trip in made], [trip for _, trip in made], lost)


async def _committed_before(session: Session, pairings: Sequence[Pairing]) -> Committed | None:
    """The plan as the attempt committed it whose answer was lost, or None when it was not."""
    ids = sorted(pairing.trip_id for pairing in pairings)
    _, found = await session.run(LOCK_TRIPS(ids=ids), READ_TRIPS(ids=ids))
    if not found.rows:
        return None
    session.refused = True
    trips_now = {trip.trip_id: trip for row in found.rows if (trip := ride_with_trip_of(row).trip) is not None}
    kept = [pairing for pairing in pairings if pairing.trip_id in trips_now]
    lost = [LostPairing(one, LOST_RIDE_CHANGED) for one in pairings if one.trip_id not in trips_now]
    hints = [Hint(one.ride_id, one.ride_version + 1, trips_now[one.trip_id].market, one.driver_id) for one in kept]
    return Committed(hints, [trips_now[one.trip_id] for one in kept], lost)


async def _take(session: Session, market: MarketId, pairings: Sequence[Pairing]) -> _Seen:
    ride_ids = sorted({pairing.ride_id for pairing in pairings})
    driver_ids = sorted({pairing.driver_id for pairing in pairings})
    locked = {(ride := ride_of(row)).ride_id: ride for row in await rows_of(session, LOCK_RIDES(ids=ride_ids))}
    lacking = [ride_id for ride_id in ride_ids if ride_id not in locked]
    rides_busy: dict[RideId, int] = {}
    if lacking:
        rows = await rows_of(session, READ_VERSIONS_IN_TIME(ids=lacking))
        rides_busy = {RideId(text_of(ride_id)): version for ride_id, version in rows}
    # One query: slots and time are read after the drivers' locks are held, under READ COMMITTED.
    held, live, clock = await session.run(LOCK_DRIVERS(ids=driver_ids), READ_SLOTS(ids=driver_ids), NOW())
    vehicles = {
        DriverId(text_of(driver_id)): Vehicle(seats, frozenset(tags_of(text_of(tags))))
        if may_be_matched(status, in_market, market)
        else None
        for driver_id, status, in_market, seats, tags in held.rows
    }
    absent = [driver_id for driver_id in driver_ids if driver_id not in vehicles]
    drivers_busy: frozenset[DriverId] = frozenset()
    if absent:
        drivers_busy = frozenset(DriverId(text_of(row[0])) for row in await rows_of(session, READ_DRIVERS(ids=absent)))
    slots: dict[DriverId, set[str]] = {}
    for driver_id, slot in live.rows:
        slots.setdefault(DriverId(text_of(driver_id)), set()).add(slot)
    return _Seen(
        at_ms=clock.rows[0][0],
        rides=locked,
        rides_busy=rides_busy,
        drivers=vehicles,
        drivers_busy=drivers_busy,
        slots={driver_id: frozenset(some) for driver_id, some in slots.items()},
    )


def may_be_matched(status: str, in_market: bytes | str | None, market: MarketId) -> bool:
    return status == DriverStatus.ONLINE.value and in_market is not None and text_of(in_market) == market


def matched(ride: Ride, pairing: Pairing, row: Transition, at_ms: int, offer_ttl_ms: int | None) -> tuple[Ride, Trip]:
    """The ride with its new trip; pure."""
    is_offer = row.trip_to is TripState.OFFERED and offer_ttl_ms is not None
    abandon_at_ms = at_ms + pairing.abandon_after_ms
    release_at_ms = None
    if pairing.slot is Slot.NEXT and pairing.release_after_ms is not None:
        release_at_ms = min(at_ms + pairing.release_after_ms, abandon_at_ms)
    trip = Trip(
        trip_id=pairing.trip_id,
        ride_id=pairing.ride_id,
        driver_id=pairing.driver_id,
        market=ride.market,
        state=row.trip_to or TripState.ACCEPTED,
        slot=pairing.slot,
        pickup_s=pairing.pickup_s,
        distance_m=pairing.distance_m,
        matched_at_ms=at_ms,
        arrived_at_ms=None,
        started_at_ms=None,
        ended_at_ms=None,
        abandon_at_ms=abandon_at_ms,
        end_reason=None,
        decision=pairing.decision,
        due_at_ms=at_ms + (offer_ttl_ms or 0) if is_offer else release_at_ms or abandon_at_ms,
        accepted_at_ms=None if is_offer else at_ms,
        release_at_ms=release_at_ms,
    )
    return replace(ride, state=row.ride_to, version=ride.version + 1, trip=trip), trip


def trip_row(trip: Trip) -> Params:
    slot = trip.slot or Slot.NOW
    return {
        "trip_id": trip.trip_id,
        "ride_id": trip.ride_id,
        "driver_id": trip.driver_id,
        "market": trip.market,
        "state": trip.state.value,
        "live": 1,
        "live_slot": slot.value,
        "pickup_s": trip.pickup_s,
        "distance_m": trip.distance_m,
        "matched_at_ms": trip.matched_at_ms,
        "now_since_ms": trip.matched_at_ms if slot is Slot.NOW else None,
        "arrived_at_ms": None,
        "started_at_ms": None,
        "ended_at_ms": None,
        "abandon_at_ms": trip.abandon_at_ms,
        "due_at_ms": trip.due_at_ms,
        "end_reason": None,
        "decision": json_of(trip.decision),
        "accepted_at_ms": trip.accepted_at_ms,
        "release_at_ms": trip.release_at_ms,
        "end_code": None,
    }
