"""Drivers' commands written together: one transaction, and one flush of the log, for all of a group.

Each is answered as it would be alone. What is not allowed is answered from what was read; the
others are written together, and where one of those meets anything unexpected, all are done again
one by one, so that none fails or delays its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import sqlalchemy as sa

from matcher.database import Database
from matcher.errors import StoreUnavailable
from matcher.life import Lives
from matcher.model import Ride, Slot, TripId
from matcher.outcomes import CommandOutcome, Done, NotFound
from matcher.sessions import Conflict, Contended, Raced, Session, Unstorable, rows_of
from matcher.statement import Row, Statement
from matcher.store_changes import Change, apply, hints_of, with_promotions
from matcher.store_rows import RIDE_AND_TRIP, can_be_id, ride_with_trip_of, text_of
from matcher.store_trips import NEXT_TRIP_ID, Planned, TripMove, judge, move_trip
from matcher.tables import now_ms, rides, trips

#: Commands of a group that was refused and are done at once.
ALONE_AT_ONCE = 4

MoveOutcome = CommandOutcome | StoreUnavailable
OnMove = Callable[[int, MoveOutcome], None]

_TRIPS_AND_RIDES = trips.join(rides, rides.c.ride_id == trips.c.ride_id)
_IDS: sa.BindParameter[str] = sa.bindparam("ids", expanding=True)
READ_TRIPS = Statement(
    sa.select(*RIDE_AND_TRIP, now_ms()).select_from(_TRIPS_AND_RIDES).where(trips.c.trip_id.in_(_IDS))
)
READ_TRIPS_AND_NEXT = Statement(
    sa.select(*RIDE_AND_TRIP, now_ms(), NEXT_TRIP_ID).select_from(_TRIPS_AND_RIDES).where(trips.c.trip_id.in_(_IDS))
)
READ_RIDE_IDS = Statement(sa.select(trips.c.ride_id).where(trips.c.trip_id.in_(_IDS)))
#: Waits for an earlier try that is still committing.
LOCK_RIDES = Statement(
    sa.select(rides.c.ride_id).where(rides.c.ride_id.in_(_IDS)).order_by(rides.c.ride_id).with_for_update()
)
READ_NEXTS = Statement(
    sa.select(*RIDE_AND_TRIP)
    .select_from(_TRIPS_AND_RIDES)
    .where(trips.c.trip_id.in_(_IDS), trips.c.live_slot == Slot.NEXT.value)
)
_TRIP_ID_AT = RIDE_AND_TRIP.index(trips.c.trip_id)


async def move_trips(database: Database, asked: Sequence[TripMove], lives: Lives, on_outcome: OnMove) -> None:
    """`on_outcome(i, outcome)` hears of each command as soon as it is settled. Each is of another driver.

    Raises StoreUnavailable where the database could not do the group at all.
    """
    if len(asked) > 1 and all(can_be_id(each.trip_id) for each in asked):
        try:
            outcomes = await database.write(lambda session: _together(session, asked, lives))
        except (Conflict, Unstorable):
            pass
        else:
            for i, outcome in enumerate(outcomes):
                on_outcome(i, outcome)
            return
    turns = asyncio.Semaphore(max(1, min(ALONE_AT_ONCE, database.writers)))

    async def alone(i: int) -> None:
        async with turns:
            on_outcome(i, await _alone(database, asked[i], lives))

    await asyncio.gather(*[alone(i) for i in range(len(asked))])


async def move_alone(database: Database, asked: TripMove, lives: Lives) -> CommandOutcome:
    if not can_be_id(asked.trip_id):
        return NotFound()
    return await database.write(lambda session: move_trip(session, asked, lives))


async def _alone(database: Database, asked: TripMove, lives: Lives) -> MoveOutcome:
    try:
        return await move_alone(database, asked, lives)
    except StoreUnavailable as fault:
        return fault


async def _together(session: Session, asked: Sequence[TripMove], lives: Lives) -> list[CommandOutcome]:
    """Raises Conflict where the group has to be taken apart."""
    if session.settling:
        return await _try(session, asked, lives)
    try:
        return await _try(session, asked, lives)
    except (Contended, Raced) as error:
        # Not to be repeated as it is: what holds one of them up is no concern of its neighbours.
        raise Conflict(str(error)) from error


async def _try(session: Session, asked: Sequence[TripMove], lives: Lives) -> list[CommandOutcome]:
    rows = await _read(session, asked)
    judged = [judge(each, rows.get(each.trip_id), lives, settling=session.settling) for each in asked]
    planned = [each for each in judged if isinstance(each, Planned)]
    if not planned:
        session.refused = True  # nothing to commit
        return [each for each in judged if not isinstance(each, Planned)]
    waiting = await _read_next(session, planned)
    whole = [with_promotions([each.change], waiting.get(_next_of(each), ())) for each in planned]
    await _write(session, [change for some in whole for change in some], planned)
    done = iter([Done(some[0].after, tuple(hints_of(some))) for some in whole])
    return [next(done) if isinstance(each, Planned) else each for each in judged]


async def _write(session: Session, changes: Sequence[Change], planned: Sequence[Planned]) -> None:
    """Raises Raced, and Conflict for a refusal: that is final, so that the whole would only be refused again."""
    applied = await apply(session, changes, fences=[each.fence for each in planned if each.fence is not None])
    if applied.superseded or applied.too_late:
        raise Conflict("a command of the group was refused")


async def _read(session: Session, asked: Sequence[TripMove]) -> Mapping[TripId, Row]:
    ids = sorted({each.trip_id for each in asked})
    if session.settling and (found := await rows_of(session, READ_RIDE_IDS(ids=ids))):
        await session.run(LOCK_RIDES(ids=sorted({text_of(row[0]) for row in found})))
    read = READ_TRIPS if all(each.is_progress for each in asked) else READ_TRIPS_AND_NEXT
    return {TripId(text_of(row[_TRIP_ID_AT])): row for row in await rows_of(session, read(ids=ids))}


def _next_of(planned: Planned) -> TripId | None:
    return None if planned.next_trip_id is None else TripId(text_of(planned.next_trip_id))


async def _read_next(session: Session, planned: Sequence[Planned]) -> Mapping[TripId | None, Sequence[Ride]]:
    """The rides of these drivers' trips in `next`, by the trip, as far as they still are; mostly none."""
    ids = sorted({trip_id for each in planned if (trip_id := _next_of(each)) is not None})
    if not ids:
        return {}
    found = [ride_with_trip_of(row) for row in await rows_of(session, READ_NEXTS(ids=ids))]
    return {ride.trip.trip_id: [ride] for ride in found if ride.trip is not None}
