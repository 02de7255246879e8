"""A driver's commands on its trip, and a rider's on its ride.

Read, decide by the transition table, write (matcher.store_changes). Limits of
time are judged in the statements that write, by the database's clock (P4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from geo.model import DriverId, LatLng
from matcher.life import DEFAULT, Life, Lives
from matcher.model import (
    Actor,
    ClientId,
    Move,
    Ride,
    RideId,
    RideState,
    Slot,
    Trip,
    TripId,
    moves_allowed,
    took_effect,
)
from matcher.outcomes import CommandOutcome, Done, NotAllowed, NotFound, NotYours, Superseded
from matcher.sessions import Session, row_of, rows_of
from matcher.statement import Row, Statement
from matcher.store_changes import MOVES_IN_NEXT, Change, Fence, apply, decide, hints_of, redirected, with_promotions
from matcher.store_rows import RIDE_AND_TRIP, RIDES_WITH_TRIP, hint_of, ride_with_trip_of, storable_reason, text_of
from matcher.tables import now_ms, rides, trips

T = TypeVar("T")

READ_TRIP = Statement(
    sa.select(*RIDE_AND_TRIP, now_ms())
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.trip_id == sa.bindparam("trip_id"))
)
#: Of one ride, the newest first.
READ_TRIPS_OF = Statement(
    sa.select(*RIDE_AND_TRIP)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.ride_id == sa.bindparam("ride_id"))
    .order_by(trips.c.matched_at_ms.desc(), trips.c.trip_id.desc())
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
#: Waits for an earlier try that is still committing. The inner row is only read: trips are locked after rides.
LOCK_RIDE_OF_TRIP = Statement(
    sa.select(rides.c.ride_id)
    .where(
        rides.c.ride_id
        == sa.select(trips.c.ride_id).where(trips.c.trip_id == sa.bindparam("trip_id")).scalar_subquery()
    )
    .with_for_update()
)
_later = trips.alias("later")
#: What the driver has in `next` where the trip of the row is its present one; mostly nothing.
NEXT_TRIP_ID = (
    sa.select(_later.c.trip_id)
    .where(
        _later.c.driver_id == trips.c.driver_id,
        _later.c.live_slot == Slot.NEXT.value,
        trips.c.live_slot == Slot.NOW.value,
    )
    .correlate(trips)
    .scalar_subquery()
)
READ_TRIP_AND_NEXT = Statement(
    sa.select(*RIDE_AND_TRIP, now_ms(), NEXT_TRIP_ID)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.trip_id == sa.bindparam("trip_id"))
)
READ_RIDE_AND_NEXT = Statement(
    sa.select(*RIDE_AND_TRIP, now_ms(), NEXT_TRIP_ID)
    .select_from(RIDES_WITH_TRIP)
    .where(rides.c.ride_id == sa.bindparam("ride_id"))
)
READ_NEXT = Statement(
    sa.select(*RIDE_AND_TRIP)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.trip_id == sa.bindparam("trip_id"), trips.c.live_slot == Slot.NEXT.value)
)
#: They leave the trip alive, or its driver's place taken.
_PROGRESS = frozenset({Move.ACCEPT, Move.ARRIVE, Move.START})


async def read_trip(session: Session, trip_id: TripId) -> Trip | None:
    row = await row_of(session, READ_TRIP(trip_id=trip_id))
    return None if row is None else ride_with_trip_of(row).trip


async def trips_of(session: Session, ride_id: RideId, limit: int) -> list[Trip]:
    """The newest `limit` trips of the ride, in the order in which they were matched."""
    found = [ride_with_trip_of(row).trip for row in await rows_of(session, READ_TRIPS_OF(ride_id=ride_id, limit=limit))]
    return [trip for trip in reversed(found) if trip is not None]


@dataclass(frozen=True, slots=True)
class TripMove:
    """A driver's command; `driver_id` None speaks for any driver, `epoch` fences an old session."""

    trip_id: TripId
    move: Move
    driver_id: DriverId | None
    epoch: int | None = None
    reason: str | None = None

    @property
    def is_progress(self) -> bool:
        return self.move in _PROGRESS


@dataclass(frozen=True, slots=True)
class Planned:
    """A command that is allowed: what it changes, and the trip in `next` that takes the place which it frees."""

    change: Change
    fence: Fence | None
    next_trip_id: Any


def judge(asked: TripMove, row: Row | None, lives: Lives, *, settling: bool) -> CommandOutcome | Planned:
    """What comes of a command where its row is as it was read; pure."""
    if row is None:
        return NotFound()
    ride, at_ms = ride_with_trip_of(row), row[len(RIDE_AND_TRIP)]
    trip, move = ride.trip, asked.move
    assert trip is not None  # the statement joins it
    if asked.driver_id is not None and trip.driver_id != asked.driver_id:
        return NotYours()
    if took_effect(move, trip):
        return repeated(ride, settling)
    life = lives.get(ride.market, DEFAULT)
    change = decide(move, ride, at_ms, actor=Actor.DRIVER, reason=storable_reason(asked.reason), retry_ms=life.retry_ms)
    is_before_its_turn = trip.slot is Slot.NEXT and move not in MOVES_IN_NEXT
    if change is None or is_before_its_turn or is_too_late(move, ride, at_ms):
        return NotAllowed(ride, allowed_now(ride, at_ms, life))
    if move is Move.RIDER_NO_SHOW and at_ms < (from_ms := no_show_from_ms(ride, trip, life)):
        return NotAllowed(ride, allowed_now(ride, at_ms, life), from_ms)
    fence = None if asked.epoch is None else Fence(trip.driver_id, asked.epoch)
    return Planned(change, fence, None if asked.is_progress else row[-1])


async def move_trip(session: Session, asked: TripMove, lives: Lives) -> CommandOutcome:
    """One try of a driver's command; raises Raced where another change came between."""
    if session.settling:
        await session.run(LOCK_RIDE_OF_TRIP(trip_id=asked.trip_id))
    row = await row_of(session, (READ_TRIP if asked.is_progress else READ_TRIP_AND_NEXT)(trip_id=asked.trip_id))
    judged = judge(asked, row, lives, settling=session.settling)
    if not isinstance(judged, Planned):
        return refused(session, judged)
    return await written(session, judged.change, await _read_next(session, judged.next_trip_id), judged.fence)


async def written(
    session: Session, change: Change, next_rides: Sequence[Ride], fence: Fence | None = None
) -> CommandOutcome:
    """Writes one decided change and what it brings about; raises Raced."""
    changes = with_promotions([change], next_rides)
    applied = await apply(session, changes, fences=() if fence is None else (fence,))
    if applied.superseded:
        return refused(session, Superseded())
    if applied.too_late:
        return refused(session, NotAllowed(change.before, ()))
    return Done(change.after, tuple(hints_of(changes)))


async def cancel_ride(
    session: Session, ride_id: RideId, *, client_id: ClientId | None, reason: str | None, actor: Actor = Actor.RIDER
) -> CommandOutcome:
    """One try of a rider's cancellation, or an operator's; raises Raced where another change came between."""
    ride, at_ms, next_rides = await read_ride_now(session, ride_id)
    if ride is None:
        return refused(session, NotFound())
    if client_id is not None and ride.client_id != client_id:
        return refused(session, NotYours())
    if ride.state is RideState.CANCELLED:
        return refused(session, repeated(ride, session.settling))
    move = Move.OPERATOR_CANCEL if actor is Actor.OPERATOR else Move.RIDER_CANCEL
    change = decide(move, ride, at_ms, actor=actor, reason=storable_reason(reason))
    if change is None:
        return refused(session, NotAllowed(ride, ()))
    return await written(session, change, next_rides)


async def redirect_ride(
    session: Session, ride_id: RideId, dropoff: LatLng, *, client_id: ClientId | None, actor: Actor
) -> CommandOutcome:
    """One try of another destination; the same one again changes nothing. Raises Raced."""
    ride, at_ms, _ = await read_ride_now(session, ride_id)
    if ride is None:
        return refused(session, NotFound())
    if client_id is not None and ride.client_id != client_id:
        return refused(session, NotYours())
    if ride.dropoff == dropoff:
        return refused(session, repeated(ride, session.settling))
    change = redirected(ride, dropoff, at_ms, actor=actor, reason=None)
    if change is None:
        return refused(session, NotAllowed(ride, ()))
    return await written(session, change, ())


async def read_ride_now(session: Session, ride_id: RideId) -> tuple[Ride | None, int, list[Ride]]:
    """The ride, the database's time, and what its driver has in `next` beside it."""
    row = await row_of(session, READ_RIDE_AND_NEXT(ride_id=ride_id))
    if row is None:
        return None, 0, []
    return ride_with_trip_of(row), row[len(RIDE_AND_TRIP)], await _read_next(session, row[-1])


async def _read_next(session: Session, trip_id: Any) -> list[Ride]:
    """The ride of this `next` trip, if there is one and it still is."""
    if trip_id is None:
        return []
    return [ride_with_trip_of(row) for row in await rows_of(session, READ_NEXT(trip_id=text_of(trip_id)))]


def is_too_late(move: Move, ride: Ride, at_ms: int) -> bool:
    """Whether the live trip's time, or the ride's for an answer, is over. The statements that write judge it again."""
    trip = ride.live_trip
    return trip is not None and (trip.due_at_ms <= at_ms or (move is Move.ACCEPT and ride.deadline_at_ms <= at_ms))


def no_show_from_ms(ride: Ride, trip: Trip, life: Life) -> int:
    """From when on the driver may report that the rider did not come: never before the time that was asked for."""
    return max(trip.arrived_at_ms or 0, ride.pickup_at_ms or 0) + life.no_show_after_ms


def allowed_now(ride: Ride, at_ms: int, life: Life) -> tuple[Move, ...]:
    """What the driver of the ride's live trip may command now."""
    trip = ride.live_trip
    if trip is None:
        return ()
    moves = tuple(move for move in moves_allowed(ride.state, trip.state) if not is_too_late(move, ride, at_ms))
    if trip.slot is Slot.NEXT:
        return tuple(move for move in moves if move in MOVES_IN_NEXT)
    return tuple(move for move in moves if move is not Move.RIDER_NO_SHOW or at_ms >= no_show_from_ms(ride, trip, life))


def refused(session: Session, outcome: T) -> T:
    session.refused = True
    return outcome


def repeated(ride: Ride, settling: bool) -> Done:
    # While settling it may have been this very command that took effect unheard: announce it.
    return Done(ride, (hint_of(ride, ride.trip),) if settling else ())
