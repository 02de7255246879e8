"""Changes of rides and their trips: decided by the transition table, written in one order, all or nothing.

The order of locks is rides by id, drivers by id, trips. A command reads without
locks and decides; it takes each ride's row by the version that it saw, so that
what was changed in between is found out there, and the command begins again.

Every end of a trip in slot `now` promotes the driver's `next`, whose ride is a
change of its own. Which trip that is was read before any lock; once the driver's
row is locked it is read again, and where another one stands the whole begins anew
(a batch gives a driver its `next` under that lock). So both are seen to, or neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from geo.model import DriverId, LatLng
from matcher.model import (
    CODES,
    Actor,
    Hint,
    Move,
    Ride,
    RideState,
    Slot,
    Transition,
    Trip,
    TripId,
    TripState,
    transition_of,
)
from matcher.sessions import Conflict, Raced, Reply, Session, row_of
from matcher.statement import Params, Statement, Step
from matcher.store_rides import INSERT_EVENT, READ_RIDE
from matcher.store_rows import event_row, hint_of, ride_with_trip_of, text_of
from matcher.tables import drivers, now_ms, rides, trips

#: Moves that a trip in slot `next` may make: an answer or a goodbye, but no progress.
MOVES_IN_NEXT = frozenset({Move.ACCEPT, Move.DECLINE, Move.DRIVER_CANCEL})
#: What a driver commands in time or not at all; anybody else may end a trip whose time is over.
_DRIVERS_ENDS = frozenset({Move.DECLINE, Move.COMPLETE, Move.DRIVER_CANCEL, Move.RIDER_NO_SHOW})
_ANSWERS = frozenset({Move.ACCEPT, Move.DECLINE})
_BOTH_SLOTS = [Slot.NOW.value, Slot.NEXT.value]

_UNTIL = sa.bindparam("search_until_ms", type_=sa.BigInteger)
_IS_PUT_OFF = rides.c.deadline_at_ms < _UNTIL


def put_off() -> list[tuple[sa.Column[int], sa.ColumnElement[int]]]:
    """The deadline moved to `search_until_ms` where that is later; what was answered first is kept.

    In this order: MySQL assigns one after the other.
    """
    first = sa.func.coalesce(rides.c.first_deadline_at_ms, rides.c.deadline_at_ms)
    return [
        (rides.c.first_deadline_at_ms, sa.case((_IS_PUT_OFF, first), else_=rides.c.first_deadline_at_ms)),
        (rides.c.deadline_at_ms, sa.case((_IS_PUT_OFF, _UNTIL), else_=rides.c.deadline_at_ms)),
    ]


_SEEN_RIDE = (rides.c.ride_id == sa.bindparam("of_ride"), rides.c.version == sa.bindparam("seen_version"))
_ENDING = [
    (rides.c.version, rides.c.version + 1),
    (rides.c.state, sa.bindparam("to_state")),
    (rides.c.ended_at_ms, sa.bindparam("ended_at_ms")),
    (rides.c.end_reason, sa.bindparam("end_reason")),
    (rides.c.end_code, sa.bindparam("end_code")),
]
_TAKE_RIDE = rides.update().where(*_SEEN_RIDE).ordered_values(*_ENDING, *put_off())
TAKE_RIDE = Statement(_TAKE_RIDE)
TAKE_RIDE_IN_TIME = Statement(_TAKE_RIDE.where(rides.c.deadline_at_ms > now_ms()))
REDIRECT_RIDE = Statement(
    rides.update()
    .where(*_SEEN_RIDE)
    .ordered_values(
        (rides.c.version, rides.c.version + 1),
        (rides.c.first_dropoff, sa.func.coalesce(rides.c.first_dropoff, sa.bindparam("first_dropoff"))),
        (rides.c.dropoff_lat, sa.bindparam("to_lat")),
        (rides.c.dropoff_lon, sa.bindparam("to_lon")),
    )
)
_DRIVER_IDS: sa.BindParameter[str] = sa.bindparam("driver_ids", expanding=True)
LOCK_DRIVERS_OF = Statement(
    sa.select(drivers.c.driver_id, drivers.c.epoch)
    .where(drivers.c.driver_id.in_(_DRIVER_IDS))
    .order_by(drivers.c.driver_id)
    .with_hint(drivers, "FORCE INDEX (PRIMARY)", "mysql")
    .with_for_update()
)
#: Read with the drivers locked: nobody adds or ends a trip of theirs any more.
READ_HELD = Statement(
    sa.select(trips.c.driver_id, trips.c.trip_id, trips.c.live_slot).where(
        trips.c.driver_id.in_(_DRIVER_IDS), trips.c.live_slot.is_not(None)
    )
)
ANSWERED = Statement(
    drivers.update().where(drivers.c.driver_id.in_(_DRIVER_IDS), drivers.c.missed_offers > 0).values(missed_offers=0)
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
        accepted_at_ms=sa.bindparam("accepted_at_ms"),
        arrived_at_ms=sa.bindparam("arrived_at_ms"),
        started_at_ms=sa.bindparam("started_at_ms"),
        due_at_ms=sa.case(
            (trips.c.live_slot == Slot.NEXT.value, sa.func.coalesce(trips.c.release_at_ms, trips.c.abandon_at_ms)),
            else_=trips.c.abandon_at_ms,
        ),
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
        end_code=sa.bindparam("end_code"),
    )
)
END_TRIP = Statement(_END_TRIP)
END_TRIP_IN_TIME = Statement(_END_TRIP.where(trips.c.due_at_ms > now_ms()))
#: An offer keeps its own end; what was accepted lives from here on like any present trip.
PROMOTED = {
    "live_slot": Slot.NOW.value,
    "now_since_ms": sa.bindparam("since_ms", type_=sa.BigInteger),
    "due_at_ms": sa.case((trips.c.state == TripState.OFFERED.value, trips.c.due_at_ms), else_=trips.c.abandon_at_ms),
}
PROMOTE_TRIP = Statement(
    trips.update()
    .where(trips.c.trip_id == sa.bindparam("of_trip"), trips.c.live_slot == Slot.NEXT.value)
    .values(**PROMOTED)
)
_TRIP_WRITES = frozenset({PROGRESS_TRIP, END_TRIP, END_TRIP_IN_TIME, PROMOTE_TRIP})
_IN_TIME = frozenset({PROGRESS_TRIP, END_TRIP_IN_TIME})
_TAKES = frozenset({TAKE_RIDE, TAKE_RIDE_IN_TIME, REDIRECT_RIDE})


@dataclass(frozen=True, slots=True)
class Change:
    """What a move makes of a ride and its trip, decided before anything is written."""

    move: Move
    row: Transition
    before: Ride
    after: Ride
    at_ms: int
    actor: Actor
    code: str | None
    reason: str | None
    search_until_ms: int = 0  # how long at least the ride may search on; 0: as long as before

    @property
    def trip(self) -> Trip | None:
        """The live trip that it concerns, as it was."""
        return self.before.live_trip

    @property
    def ends_trip(self) -> bool:
        return self.trip is not None and self.row.trip_to is not None and not self.row.trip_to.is_live

    @property
    def ends_now(self) -> bool:
        """Whether it frees its driver's present place."""
        return self.ends_trip and self.trip is not None and self.trip.slot is Slot.NOW

    @property
    def hint(self) -> Hint:
        return hint_of(self.after, self.after.trip if self.row.trip_to else None)

    @property
    def event(self) -> Params:
        """The row of its event."""
        trip = self.after.trip if self.trip is not None else None
        return event_row(
            self.after, self.row.event, self.at_ms, trip, actor=self.actor, code=self.code, reason=self.reason
        )


def decide(
    move: Move,
    ride: Ride,
    at_ms: int,
    *,
    actor: Actor,
    code: str | None = None,
    reason: str | None = None,
    retry_ms: int = 0,
) -> Change | None:
    """What the move makes of this ride, or None where it is not allowed; pure.

    A ride whose driver had accepted and is taken from it may search for `retry_ms` at least.
    """
    trip = ride.live_trip
    row = transition_of(move, ride.state, None if trip is None else trip.state)
    if row is None:
        return None
    code = code or CODES.get(move)
    had_driver = row.ride_from in (RideState.ASSIGNED, RideState.ARRIVED)
    search_until_ms = at_ms + retry_ms if had_driver and row.ride_to is RideState.SEARCHING else 0
    after = changed(ride, row, at_ms, code=code, reason=reason, search_until_ms=search_until_ms)
    return Change(move, row, ride, after, at_ms, actor, code, reason, search_until_ms)


def changed(
    ride: Ride, row: Transition, at_ms: int, *, code: str | None, reason: str | None, search_until_ms: int = 0
) -> Ride:
    """The ride after `row`: pure, the same for a driver's command, a rider's and the sweep's."""
    ends = row.ride_to.is_final
    trip = ride.live_trip
    return replace(
        ride,
        state=row.ride_to,
        version=ride.version + 1,
        deadline_at_ms=max(ride.deadline_at_ms, search_until_ms),
        ended_at_ms=at_ms if ends else None,
        end_reason=(reason or row.event) if ends else None,
        end_code=code if ends else None,
        trip=ride.trip if trip is None or row.trip_to is None else _moved(trip, row.trip_to, at_ms, code, reason),
    )


def _moved(trip: Trip, to: TripState, at_ms: int, code: str | None, reason: str | None) -> Trip:
    if not to.is_live:
        return replace(trip, state=to, slot=None, ended_at_ms=at_ms, end_reason=reason or to.value, end_code=code)
    if to is trip.state:
        return trip
    due_at_ms = trip.abandon_at_ms
    if trip.slot is Slot.NEXT and trip.release_at_ms is not None:
        due_at_ms = trip.release_at_ms
    return replace(
        trip,
        state=to,
        due_at_ms=due_at_ms,
        accepted_at_ms=at_ms if to is TripState.ACCEPTED else trip.accepted_at_ms,
        arrived_at_ms=at_ms if to is TripState.ARRIVED else trip.arrived_at_ms,
        started_at_ms=at_ms if to is TripState.IN_PROGRESS else trip.started_at_ms,
    )


def redirected(ride: Ride, dropoff: LatLng, at_ms: int, *, actor: Actor, reason: str | None) -> Change | None:
    """Another destination, or None where the ride has ended."""
    made = decide(Move.REDIRECT, ride, at_ms, actor=actor, reason=reason)
    return None if made is None else replace(made, after=replace(made.after, dropoff=dropoff))


def promotion(ride: Ride, at_ms: int, code: str | None = None) -> Change:
    """The driver's next trip becomes its present one."""
    made = decide(Move.PROMOTE, ride, at_ms, actor=Actor.SERVICE, code=code)
    assert made is not None  # a trip in `next` is offered or accepted
    assert made.after.trip is not None
    trip = made.after.trip
    due_at_ms = trip.due_at_ms if trip.state is TripState.OFFERED else trip.abandon_at_ms
    return replace(made, after=replace(made.after, trip=replace(trip, slot=Slot.NOW, due_at_ms=due_at_ms)))


def with_promotions(changes: Sequence[Change], next_rides: Sequence[Ride]) -> list[Change]:
    """The changes and the promotions that they bring about; `next_rides` have the trips in `next` of the drivers."""
    waiting = {ride.trip.driver_id: ride for ride in next_rides if ride.trip is not None}
    going = {change.before.ride_id for change in changes}
    promoted = [
        promotion(waiting[change.trip.driver_id], change.at_ms, change.code)
        for change in changes
        if change.ends_now
        and change.trip is not None
        and change.trip.driver_id in waiting
        and waiting[change.trip.driver_id].ride_id not in going
    ]
    return [*changes, *promoted]


@dataclass(frozen=True, slots=True)
class Fence:
    """The driver's session on whose behalf a command is written: of this epoch, or not at all (P7)."""

    driver_id: DriverId
    epoch: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of changes: `superseded` and `too_late` were not written (the work is refused)."""

    superseded: bool = False
    too_late: bool = False


async def apply(
    session: Session,
    changes: Sequence[Change],
    *,
    fences: Sequence[Fence] = (),
    drivers_too: Sequence[Step] = (),
    of_drivers: Sequence[DriverId] = (),
    beside: Sequence[Ride] = (),
    locking: Sequence[DriverId] = (),
) -> Applied:
    """Writes the changes. All steps travel together; what did not match rolls all of them back.

    `drivers_too` are written once the drivers are locked, `of_drivers` among them; of these every live trip must be
    known, from the changes or from the rides `beside` them. `locking` are drivers that the caller will write of later
    in the transaction. Raises Raced where another change came between.
    """
    steps = _steps(changes, fences, drivers_too, of_drivers, locking)
    try:
        replies = await session.run(*steps)
    except Conflict as error:  # the event of this version stands already
        raise Raced(str(error)) from error
    found = list(zip(steps, replies, strict=True))
    if not all(reply.matched == 1 for step, reply in found if step.statement in _TAKES):
        if any(change.move is Move.ACCEPT for change in changes) and await _is_unchanged(session, changes[0].before):
            return Applied(too_late=True)  # past the ride's deadline
        raise Raced(f"ride {changes[0].before.ride_id} was changed meanwhile")
    for step, reply in found:
        if step.statement is LOCK_DRIVERS_OF and not all(_is_epoch(reply, fence) for fence in fences):
            return Applied(superseded=True)
        if step.statement is READ_HELD:
            _check_held(reply, changes, of_drivers, beside)
    lacking = {step.statement for step, reply in found if step.statement in _TRIP_WRITES and reply.matched != 1}
    if not lacking <= _IN_TIME:
        raise Raced(f"the trip of ride {changes[0].before.ride_id} is not as it was read")
    return Applied(too_late=bool(lacking))


async def _is_unchanged(session: Session, ride: Ride) -> bool:
    row = await row_of(session, READ_RIDE(ride_id=ride.ride_id))
    return row is not None and ride_with_trip_of(row).version == ride.version


def _is_epoch(reply: Reply, fence: Fence) -> bool:
    return any(text_of(driver_id) == fence.driver_id and epoch == fence.epoch for driver_id, epoch in reply.rows)


def _check_held(
    reply: Reply, changes: Sequence[Change], of_drivers: Sequence[DriverId], beside: Sequence[Ride]
) -> None:
    """Raises Raced where a driver whose place becomes free has another `next` than was thought."""
    known = {change.trip.trip_id for change in changes if change.trip is not None}
    known |= {ride.trip.trip_id for ride in beside if ride.trip is not None}
    freed = {change.trip.driver_id for change in changes if change.ends_now and change.trip is not None}
    for driver_id, trip_id, slot in reply.rows:
        concerns = text_of(driver_id) in of_drivers or (slot == Slot.NEXT.value and text_of(driver_id) in freed)
        if concerns and TripId(text_of(trip_id)) not in known:
            raise Raced(f"driver {text_of(driver_id)} was given another trip meanwhile")


def _steps(
    changes: Sequence[Change],
    fences: Sequence[Fence],
    drivers_too: Sequence[Step],
    of_drivers: Sequence[DriverId],
    locking: Sequence[DriverId],
) -> list[Step]:
    ordered = sorted(changes, key=lambda change: change.before.ride_id)
    steps = [_take(change) for change in ordered]
    ending = {change.trip.driver_id for change in ordered if change.ends_trip and change.trip is not None}
    locked = sorted({*ending, *of_drivers, *locking, *(fence.driver_id for fence in fences)})
    if locked:
        steps.append(LOCK_DRIVERS_OF(driver_ids=locked))
    if of_drivers or any(change.ends_now for change in ordered):
        steps.append(READ_HELD(driver_ids=locked))
    steps += drivers_too
    answering = sorted(each.trip.driver_id for each in ordered if each.move in _ANSWERS and each.trip)
    steps += [ANSWERED(driver_ids=answering)] if answering else []
    # Places are freed before they are taken.
    steps += [step for change in sorted(ordered, key=_frees_last) for step in _trip_steps(change)]
    if ordered:
        steps.append(INSERT_EVENT.many([change.event for change in ordered]))
    return steps


def _frees_last(change: Change) -> tuple[bool, str]:
    return (not change.ends_trip, change.before.ride_id)


def _take(change: Change) -> Step:
    """Takes the ride's row at the version that was seen, and increments it."""
    before, after = change.before, change.after
    seen = {"of_ride": before.ride_id, "seen_version": before.version}
    if change.move is Move.REDIRECT:
        assert after.dropoff is not None
        first = None if before.dropoff is None else [before.dropoff.lat, before.dropoff.lon]
        to = {"to_lat": after.dropoff.lat, "to_lon": after.dropoff.lon}
        return REDIRECT_RIDE(**seen, first_dropoff=json.dumps(first), **to)
    statement = TAKE_RIDE_IN_TIME if change.move is Move.ACCEPT else TAKE_RIDE
    return statement(
        **seen,
        to_state=after.state.value,
        ended_at_ms=after.ended_at_ms,
        end_reason=after.end_reason,
        end_code=after.end_code,
        search_until_ms=change.search_until_ms,
    )


def _trip_steps(change: Change) -> Iterator[Step]:
    before, after = change.trip, change.after.trip
    if before is None or after is None or change.move is Move.REDIRECT:
        return
    if change.move is Move.PROMOTE:
        yield PROMOTE_TRIP(of_trip=before.trip_id, since_ms=change.at_ms)
        return
    seen = {"of_trip": before.trip_id, "seen_state": before.state.value, "to_state": after.state.value}
    if change.ends_trip:
        yield (END_TRIP_IN_TIME if change.move in _DRIVERS_ENDS else END_TRIP)(
            **seen,
            slots=_BOTH_SLOTS if change.move is not Move.COMPLETE else _BOTH_SLOTS[:1],
            ended_at_ms=after.ended_at_ms,
            end_reason=after.end_reason,
            end_code=after.end_code,
        )
    else:
        yield PROGRESS_TRIP(
            **seen,
            slots=_BOTH_SLOTS if change.move in MOVES_IN_NEXT else _BOTH_SLOTS[:1],
            accepted_at_ms=after.accepted_at_ms,
            arrived_at_ms=after.arrived_at_ms,
            started_at_ms=after.started_at_ms,
        )


def hints_of(changes: Sequence[Change]) -> list[Hint]:
    return [change.hint for change in changes]
