"""What an operator does by hand: assign, reassign, release, complete. Each with a reason that the history keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from geo.model import DriverId, MarketId
from matcher.life import DEFAULT, Lives
from matcher.model import Actor, Code, DriverStatus, Hint, Move, Ride, RideId, RideState, Slot, TripId, transition_of
from matcher.outcomes import (
    LOST_DRIVER_ENGAGED,
    LOST_DRIVER_GONE,
    AssignOutcome,
    CommandOutcome,
    Done,
    NotAllowed,
    NotAssignable,
    NotFound,
    Pairing,
)
from matcher.sessions import Conflict, Raced, Session, row_of
from matcher.statement import Statement
from matcher.store_batch import INSERT_TRIP, LOCK_TRIPS, MATCH_RIDES, READ_SLOTS, Vehicle, matched, trip_row
from matcher.store_changes import Change, apply, decide, hints_of, with_promotions
from matcher.store_leases import hold
from matcher.store_rides import INSERT_EVENT, NOW
from matcher.store_rows import event_row, hint_of, storable_reason, tags_of, text_of
from matcher.store_trips import read_ride_now, read_trip, refused, repeated, written
from matcher.tables import drivers, rides

#: A driver on a break may be assigned by hand; nobody else who is not online.
_ASSIGNABLE = frozenset({DriverStatus.ONLINE.value, DriverStatus.ON_BREAK.value})

LOCK_RIDE = Statement(
    sa.select(rides.c.version, rides.c.deadline_at_ms)
    .where(rides.c.ride_id == sa.bindparam("ride_id"))
    .with_for_update()
)
LOCK_DRIVER_ROW = Statement(
    sa.select(drivers.c.status, drivers.c.market, drivers.c.seats, drivers.c.tags)
    .where(drivers.c.driver_id == sa.bindparam("driver_id"))
    .with_for_update()
)


@dataclass(slots=True)
class Release:
    """Takes the ride's driver from it before the pickup; the ride searches on.

    With `trip_id` only that trip is meant: where the ride has another one by now, that one stays, so that the command
    may be repeated. Without it is one command, whatever tries it takes: where the outcome of one is unknown and the
    ride has another driver by now, it was done.
    """

    ride_id: RideId
    reason: str | None
    lives: Lives
    trip_id: TripId | None = None
    _meant: TripId | None = None

    async def __call__(self, session: Session) -> CommandOutcome:
        """One try; raises Raced."""
        ride, at_ms, next_rides = await read_ride_now(session, self.ride_id)
        if ride is None:
            return refused(session, NotFound())
        trip_id = None if ride.live_trip is None else ride.live_trip.trip_id
        if self.trip_id is not None and trip_id != self.trip_id:
            return refused(session, await self._of_another(session, ride, self.trip_id))
        if session.settling and self._meant is not None and trip_id != self._meant:
            return refused(session, repeated(ride, session.settling))
        self._meant = trip_id
        return await _released(session, ride, at_ms, next_rides, self.reason, self.lives)

    async def _of_another(self, session: Session, ride: Ride, trip_id: TripId) -> CommandOutcome:
        meant = await read_trip(session, trip_id)
        was_done = meant is not None and meant.ride_id == ride.ride_id and meant.end_code == Code.RELEASED
        return repeated(ride, session.settling) if was_done else NotAllowed(ride, ())


async def _released(
    session: Session, ride: Ride, at_ms: int, next_rides: Sequence[Ride], reason: str | None, lives: Lives
) -> CommandOutcome:
    change = decide(
        Move.WITHDRAW,
        ride,
        at_ms,
        actor=Actor.OPERATOR,
        code=Code.RELEASED,
        reason=storable_reason(reason),
        retry_ms=lives.get(ride.market, DEFAULT).retry_ms,
    )
    if change is None:
        was = ride.trip is not None and ride.trip.end_code == Code.RELEASED and ride.state is RideState.SEARCHING
        return refused(session, repeated(ride, session.settling) if was else NotAllowed(ride, ()))
    return await written(session, change, next_rides)


async def complete(session: Session, ride_id: RideId, *, reason: str | None) -> CommandOutcome:
    """Ends a ride as completed whose driver cannot say so. Raises Raced."""
    ride, at_ms, next_rides = await read_ride_now(session, ride_id)
    if ride is None:
        return refused(session, NotFound())
    if ride.state is RideState.COMPLETED:
        return refused(session, repeated(ride, session.settling))
    change = decide(Move.OPERATOR_COMPLETE, ride, at_ms, actor=Actor.OPERATOR, reason=storable_reason(reason))
    if change is None:
        return refused(session, NotAllowed(ride, ()))
    return await written(session, change, next_rides)


@dataclass(frozen=True, slots=True)
class Assignment:
    """This driver for this ride, by hand. `trip_id` is made beforehand; with `offer_ttl_ms` the driver is asked.

    `pickup_s` and `distance_m` are by the straight line from where the driver was seen last, 0 where that is not known.
    """

    ride_id: RideId
    driver_id: DriverId
    trip_id: TripId
    reason: str | None
    by: str
    abandon_after_ms: int
    offer_ttl_ms: int | None = None
    pickup_s: float = 0.0
    distance_m: float = 0.0


async def assign(session: Session, new: Assignment, lives: Lives) -> AssignOutcome:
    """Gives the ride this driver, in place of the one that it has where there is one. Raises Raced.

    The driver takes it as its next trip where it has a present one; P1 holds as for every batch.
    """
    was_done = session.settling and (await row_of(session, LOCK_TRIPS(ids=[new.trip_id]))) is not None
    ride, at_ms, next_rides = await read_ride_now(session, new.ride_id)
    if ride is None:
        return refused(session, NotFound())
    if was_done or (ride.live_trip is not None and ride.live_trip.driver_id == new.driver_id):
        return refused(session, repeated(ride, session.settling))
    before = _opening(ride, at_ms, storable_reason(new.reason), lives)
    if before is None:
        return refused(session, NotAllowed(ride, ()))
    opening = with_promotions(before, next_rides)
    if opening:
        await apply(session, opening, locking=[new.driver_id])
    open_ride = before[0].after if before else ride
    outcome = await _assigned(session, open_ride, ride, new)
    if isinstance(outcome, Done):
        return replace(outcome, hints=(*hints_of(opening), *outcome.hints))
    return outcome


def _opening(ride: Ride, at_ms: int, reason: str | None, lives: Lives) -> list[Change] | None:
    """What makes the ride search, so that it can be given a driver; None where nothing does. Pure."""
    if ride.state is RideState.SEARCHING:
        return []
    move, code = (Move.SEARCH, None) if ride.state is RideState.SCHEDULED else (Move.WITHDRAW, Code.REASSIGNED)
    retry_ms = lives.get(ride.market, DEFAULT).retry_ms
    change = decide(move, ride, at_ms, actor=Actor.OPERATOR, code=code, reason=reason, retry_ms=retry_ms)
    return None if change is None else [change]


async def _assigned(session: Session, ride: Ride, seen: Ride, new: Assignment) -> AssignOutcome:
    locked, held, slots, clock = await session.run(
        LOCK_RIDE(ride_id=ride.ride_id),
        LOCK_DRIVER_ROW(driver_id=new.driver_id),
        READ_SLOTS(ids=[new.driver_id]),
        NOW(),
    )
    at_ms = clock.rows[0][0]
    if not locked.rows or locked.rows[0][0] != ride.version:
        raise Raced(f"ride {ride.ride_id} was changed meanwhile")
    if locked.rows[0][1] <= at_ms:
        return refused(session, NotAllowed(seen, ()))  # past its deadline
    if not held.rows or not _can_take(ride, *held.rows[0]):
        return refused(session, NotAssignable(seen, LOST_DRIVER_GONE))
    slot = _free_slot({slot for _, slot in slots.rows})
    if slot is None:
        return refused(session, NotAssignable(seen, LOST_DRIVER_ENGAGED))
    return await _give(session, ride, slot, new, at_ms)


def _can_take(ride: Ride, status: str, in_market: bytes | str | None, seats: int, tags: bytes | str) -> bool:
    is_here = in_market is not None and text_of(in_market) == ride.market and status in _ASSIGNABLE
    return is_here and Vehicle(seats, frozenset(tags_of(text_of(tags)))).can_serve(ride)


def _free_slot(taken: set[str]) -> Slot | None:
    if not taken:
        return Slot.NOW
    return Slot.NEXT if Slot.NEXT.value not in taken else None


async def _give(session: Session, ride: Ride, slot: Slot, new: Assignment, at_ms: int) -> Done:
    pairing = Pairing(
        trip_id=new.trip_id,
        ride_id=ride.ride_id,
        ride_version=ride.version,
        driver_id=new.driver_id,
        slot=slot,
        pickup_s=new.pickup_s,
        distance_m=new.distance_m,
        abandon_after_ms=new.abandon_after_ms,
        decision={"by_hand": {"by": new.by, "reason": storable_reason(new.reason)}},
    )
    row = transition_of(Move.ASSIGN if new.offer_ttl_ms is None else Move.OFFER, RideState.SEARCHING, None)
    assert row is not None  # the table has both
    after, trip = matched(ride, pairing, row, at_ms, new.offer_ttl_ms)
    try:
        await session.insert(INSERT_TRIP, [trip_row(trip)])
    except Conflict as error:  # the backstop
        raise Raced(str(error)) from error
    event = event_row(
        after,
        row.event,
        at_ms,
        trip,
        actor=Actor.OPERATOR,
        code=Code.OPERATOR_ASSIGNED,
        reason=storable_reason(new.reason),
    )
    await session.run(MATCH_RIDES(ids=[ride.ride_id], to_state=row.ride_to.value), INSERT_EVENT(**event))
    return Done(after, (hint_of(after, trip),))


async def withdraw(
    session: Session, market: MarketId, token: int, ride_id: RideId, trip_id: TripId, code: Code, lives: Lives
) -> list[Hint]:
    """The market's matcher takes a driver from a ride by a rule; nothing where the trip is not its any more.

    Raises LeaseLost, Raced.
    """
    await hold(session, market, token)
    ride, at_ms, next_rides = await read_ride_now(session, ride_id)
    trip = None if ride is None else ride.live_trip
    if ride is None or trip is None or trip.trip_id != trip_id:
        session.refused = True
        return []
    retry_ms = lives.get(market, DEFAULT).retry_ms
    change = decide(Move.WITHDRAW, ride, at_ms, actor=Actor.SERVICE, code=code, retry_ms=retry_ms)
    if change is None:
        session.refused = True
        return []
    changes: Sequence[Change] = with_promotions([change], next_rides)
    await apply(session, changes)
    return hints_of(changes)
