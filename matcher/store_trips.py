"""Commands on a trip and on its ride: read, decide, take the ride's row, then the trip.

The order of locks is ride, driver, trip. A command reads without locks, decides
by the transition table, and takes the ride's row by its version; what was
changed in between is found out there, and the command begins again. Limits of
time are judged in the statement that takes the row, by the database's clock (P4).

Every end of a trip in slot `now` promotes the driver's `next`, under the lock of
the driver's row and in the same transaction. Ending and promoting are two
statements; the second finds nothing where it was `next` that ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from geo.model import DriverId
from matcher.model import (
    ClientId,
    Move,
    Ride,
    RideId,
    RideState,
    Slot,
    Transition,
    Trip,
    TripId,
    TripState,
    already_done,
    moves_allowed,
    transition_of,
)
from matcher.outcomes import CommandOutcome, Done, NotAllowed, NotFound, NotYours, Superseded
from matcher.sessions import Conflict, Raced, Reply, Session, row_of, rows_of
from matcher.statement import Statement, Step
from matcher.store_rides import INSERT_EVENT, READ_RIDE
from matcher.store_rows import RIDE_AND_TRIP, event_row, hint_of, ride_with_trip_of, storable_reason
from matcher.tables import drivers, now_ms, rides, trips

#: Moves that a trip in slot `next` may make: an answer or a goodbye, but no progress.
_MOVES_IN_NEXT = frozenset({Move.ACCEPT, Move.DECLINE, Move.DRIVER_CANCEL})

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
READ_RIDE_NOW = Statement(
    sa.select(*RIDE_AND_TRIP, now_ms())
    .select_from(rides.outerjoin(trips, trips.c.trip_id == rides.c.current_trip_id))
    .where(rides.c.ride_id == sa.bindparam("ride_id"))
)
_TAKE_RIDE = (
    rides.update()
    .where(rides.c.ride_id == sa.bindparam("of_ride"), rides.c.version == sa.bindparam("seen_version"))
    .values(
        version=rides.c.version + 1,
        state=sa.bindparam("to_state"),
        ended_at_ms=sa.bindparam("ended_at_ms"),
        end_reason=sa.bindparam("end_reason"),
    )
)
TAKE_RIDE = Statement(_TAKE_RIDE)
TAKE_RIDE_IN_TIME = Statement(_TAKE_RIDE.where(rides.c.deadline_at_ms > now_ms()))
LOCK_DRIVER = Statement(
    sa.select(drivers.c.epoch).where(drivers.c.driver_id == sa.bindparam("driver_id")).with_for_update()
)
_TRIP_AS_SEEN = (
    trips.c.trip_id == sa.bindparam("of_trip"),
    trips.c.state == sa.bindparam("seen_state"),
    trips.c.live_slot.in_(sa.bindparam("slots", expanding=True)),
)
PROGRESS_TRIP = Statement(
    trips.update()
    .where(*_TRIP_AS_SEEN, trips.c.due_at_ms > now_ms())
    .values(
        state=sa.bindparam("to_state"),
        arrived_at_ms=sa.bindparam("arrived_at_ms"),
        started_at_ms=sa.bindparam("started_at_ms"),
        due_at_ms=trips.c.abandon_at_ms,
    )
)
_END_TRIP = (
    trips.update()
    .where(*_TRIP_AS_SEEN)
    .values(
        state=sa.bindparam("to_state"),
        live=None,
        live_slot=None,
        ended_at_ms=sa.bindparam("ended_at_ms"),
        end_reason=sa.bindparam("end_reason"),
    )
)
END_TRIP = Statement(_END_TRIP)
END_TRIP_IN_TIME = Statement(_END_TRIP.where(trips.c.due_at_ms > now_ms()))
PROMOTE_NEXT = Statement(
    trips.update()
    .where(trips.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True)), trips.c.live_slot == Slot.NEXT.value)
    .values(live_slot=Slot.NOW.value, now_since_ms=sa.bindparam("since_ms"))
)


@dataclass(frozen=True, slots=True)
class _Change:
    """What a move makes of a ride and its trip, decided before anything is written."""

    move: Move
    row: Transition
    before: Ride
    after: Ride
    at_ms: int
    reason: str | None

    @property
    def trip_ends(self) -> bool:
        return self.row.trip_to is not None and not self.row.trip_to.is_live


def changed(ride: Ride, row: Transition, at_ms: int, reason: str | None) -> Ride:
    """The ride after `row`: pure, the same for a driver's command, a rider's and the sweep's."""
    ends = row.ride_to.is_final
    return replace(
        ride,
        state=row.ride_to,
        version=ride.version + 1,
        ended_at_ms=at_ms if ends else None,
        end_reason=(reason or row.event) if ends else None,
        trip=ride.trip if ride.trip is None or row.trip_to is None else _moved(ride.trip, row.trip_to, at_ms, reason),
    )


def _moved(trip: Trip, to: TripState, at_ms: int, reason: str | None) -> Trip:
    if not to.is_live:
        return replace(trip, state=to, slot=None, ended_at_ms=at_ms, end_reason=reason or to.value)
    return replace(
        trip,
        state=to,
        arrived_at_ms=at_ms if to is TripState.ARRIVED else trip.arrived_at_ms,
        started_at_ms=at_ms if to is TripState.IN_PROGRESS else trip.started_at_ms,
    )


async def read_trip(session: Session, trip_id: TripId) -> Trip | None:
    row = await row_of(session, READ_TRIP(trip_id=trip_id))
    return None if row is None else ride_with_trip_of(row).trip


async def trips_of(session: Session, ride_id: RideId, limit: int) -> list[Trip]:
    """The newest `limit` trips of the ride, in the order in which they were matched."""
    found = [ride_with_trip_of(row).trip for row in await rows_of(session, READ_TRIPS_OF(ride_id=ride_id, limit=limit))]
    return [trip for trip in reversed(found) if trip is not None]


async def move_trip(
    session: Session,
    trip_id: TripId,
    move: Move,
    *,
    driver_id: DriverId | None,
    epoch: int | None,
    reason: str | None,
) -> CommandOutcome:
    """One try of a driver's command; raises Raced where another change came between."""
    row = await row_of(session, READ_TRIP(trip_id=trip_id))
    if row is None:
        return _refused(session, NotFound())
    ride, at_ms = ride_with_trip_of(row), row[-1]
    trip = ride.trip
    assert trip is not None  # the statement joins it
    if driver_id is not None and trip.driver_id != driver_id:
        return _refused(session, NotYours())
    transition = transition_of(move, ride.state, trip.state) if trip.state.is_live else None
    if transition is None and already_done(move, trip.state):
        return _refused(session, _repeated(session, ride))
    if transition is None or (trip.slot is Slot.NEXT and move not in _MOVES_IN_NEXT):
        return _refused(session, NotAllowed(ride, _allowed(ride)))
    reason = storable_reason(reason)
    change = _Change(move, transition, ride, changed(ride, transition, at_ms, reason), at_ms, reason)
    return await _apply(session, change, epoch=epoch)


async def cancel_ride(
    session: Session, ride_id: RideId, *, client_id: ClientId | None, reason: str | None
) -> CommandOutcome:
    """One try of a rider's cancellation; raises Raced where another change came between."""
    row = await row_of(session, READ_RIDE_NOW(ride_id=ride_id))
    if row is None:
        return _refused(session, NotFound())
    ride, at_ms = ride_with_trip_of(row), row[-1]
    if client_id is not None and ride.client_id != client_id:
        return _refused(session, NotYours())
    if ride.state is RideState.CANCELLED:
        return _refused(session, _repeated(session, ride))
    live = live_trip(ride)
    transition = transition_of(Move.RIDER_CANCEL, ride.state, None if live is None else live.state)
    if transition is None:
        return _refused(session, NotAllowed(ride, ()))
    reason = storable_reason(reason)
    after = changed(ride, transition, at_ms, reason)
    return await _apply(session, _Change(Move.RIDER_CANCEL, transition, ride, after, at_ms, reason), epoch=None)


def live_trip(ride: Ride) -> Trip | None:
    return ride.trip if ride.trip is not None and ride.trip.state.is_live else None


def _refused(session: Session, outcome: CommandOutcome) -> CommandOutcome:
    session.refused = True
    return outcome


def _repeated(session: Session, ride: Ride) -> Done:
    # While settling it may have been this very command that took effect unheard: announce it.
    return Done(ride, hint_of(ride, ride.trip) if session.settling else None)


def _allowed(ride: Ride) -> tuple[Move, ...]:
    trip = live_trip(ride)
    if trip is None:
        return ()
    moves = moves_allowed(ride.state, trip.state)
    return moves if trip.slot is Slot.NOW else tuple(move for move in moves if move in _MOVES_IN_NEXT)


async def _apply(session: Session, change: _Change, *, epoch: int | None) -> CommandOutcome:
    """Writes the change. All steps travel together; what did not match rolls all of them back."""
    steps = _steps(change, lock_driver=change.trip_ends or epoch is not None)
    try:
        replies = await session.run(*steps)
    except Conflict as error:  # the event of this version stands already
        raise Raced(str(error)) from error
    by_statement = {step.statement: reply for step, reply in zip(steps, replies, strict=True)}
    if not replies[0].matched:
        if change.move is Move.ACCEPT and await _still_at(session, change.before):
            return _refused(session, NotAllowed(change.before, ()))  # past the ride's deadline
        raise Raced(f"ride {change.before.ride_id} was changed meanwhile")
    if epoch is not None and not _is_epoch(by_statement[LOCK_DRIVER], epoch):
        return _refused(session, Superseded())
    if not _trip_was_taken(change, by_statement):
        return _refused(session, NotAllowed(change.before, ()))  # past the trip's limit
    return Done(change.after, hint_of(change.after, change.after.trip if change.row.trip_to else None))


def _is_epoch(reply: Reply, epoch: int) -> bool:
    return bool(reply.rows) and reply.rows[0][0] == epoch


def _trip_was_taken(change: _Change, replies: dict[Statement, Reply]) -> bool:
    if change.row.trip_to is None:
        return True
    return any(
        replies[statement].matched == 1
        for statement in (PROGRESS_TRIP, END_TRIP, END_TRIP_IN_TIME)
        if statement in replies
    )


async def _still_at(session: Session, ride: Ride) -> bool:
    row = await row_of(session, READ_RIDE(ride_id=ride.ride_id))
    return row is not None and ride_with_trip_of(row).version == ride.version


def _steps(change: _Change, *, lock_driver: bool) -> list[Step]:
    after, trip = change.after, live_trip(change.before)
    take = TAKE_RIDE_IN_TIME if change.move is Move.ACCEPT else TAKE_RIDE
    steps = [take_ride(take, change.before, after)]
    if trip is not None and lock_driver:
        steps.append(LOCK_DRIVER(driver_id=trip.driver_id))
    if trip is not None:
        steps.extend(_trip_steps(change, trip))
    event = event_row(after, change.row.event, change.at_ms, after.trip if trip is not None else None, change.reason)
    steps.append(INSERT_EVENT(**event))
    return steps


def take_ride(statement: Statement, before: Ride, after: Ride) -> Step:
    """Takes the ride's row at the version that was seen, and increments it."""
    return statement(
        of_ride=before.ride_id,
        seen_version=before.version,
        to_state=after.state.value,
        ended_at_ms=after.ended_at_ms,
        end_reason=after.end_reason,
    )


def _trip_steps(change: _Change, trip: Trip) -> Sequence[Step]:
    after = change.after.trip
    assert after is not None
    slots = [Slot.NOW.value, Slot.NEXT.value]
    if not change.trip_ends:
        return [
            PROGRESS_TRIP(
                of_trip=trip.trip_id,
                seen_state=trip.state.value,
                slots=slots if change.move in _MOVES_IN_NEXT else slots[:1],
                to_state=after.state.value,
                arrived_at_ms=after.arrived_at_ms,
                started_at_ms=after.started_at_ms,
            )
        ]
    in_time = change.move is not Move.RIDER_CANCEL  # a rider may cancel what nobody may progress any more
    end = (END_TRIP_IN_TIME if in_time else END_TRIP)(
        of_trip=trip.trip_id,
        seen_state=trip.state.value,
        slots=slots[:1] if change.move is Move.COMPLETE else slots,
        to_state=after.state.value,
        ended_at_ms=after.ended_at_ms,
        end_reason=after.end_reason,
    )
    return [end, PROMOTE_NEXT(driver_ids=[trip.driver_id], since_ms=change.at_ms)]
