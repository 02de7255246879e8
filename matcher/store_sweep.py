"""The sweep of a market: what reached a limit of time is ended, whoever has crashed (P4).

Rides expire at their deadline, offers time out, trips are abandoned at their
limit, idempotency keys are forgotten after a day. Rows that a command holds are
left to the next sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from geo.model import DriverId, MarketId
from matcher.model import Hint, Move, Ride, RideId, RideState, Transition, TripState, transition_of
from matcher.sessions import Session, rows_of
from matcher.statement import Row, Statement, Step
from matcher.store_batch import LOCK_DRIVERS
from matcher.store_leases import hold
from matcher.store_rides import INSERT_EVENT
from matcher.store_rows import RIDE_AND_TRIP, RIDES_WITH_TRIP, event_row, hint_of, ride_with_trip_of, text_of
from matcher.store_trips import PROMOTE_NEXT, changed, live_trip
from matcher.tables import now_ms, rides, trips

_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_LIMIT = sa.bindparam("limit", type_=sa.Integer)
_OPEN_STATES = (RideState.SCHEDULED, RideState.SEARCHING, RideState.OFFERED)

READ_OVERDUE_RIDES = Statement(
    sa.select(rides.c.ride_id)
    .where(
        rides.c.market == sa.bindparam("market"),
        rides.c.state.in_([state.value for state in _OPEN_STATES]),
        rides.c.deadline_at_ms <= now_ms(),
    )
    .limit(_LIMIT)
)
READ_DUE_TRIPS = Statement(
    sa.select(trips.c.ride_id)
    .where(trips.c.live == 1, trips.c.due_at_ms <= now_ms(), trips.c.market == sa.bindparam("market"))
    .limit(_LIMIT)
)
LOCK_RIDE_IDS = Statement(
    sa.select(rides.c.ride_id)
    .where(rides.c.ride_id.in_(_IDS))
    .order_by(rides.c.ride_id)
    .with_hint(rides, "FORCE INDEX (PRIMARY)", "mysql")
    .with_for_update(skip_locked=True)
)
READ_RIDES = Statement(
    sa.select(*RIDE_AND_TRIP, trips.c.due_at_ms).select_from(RIDES_WITH_TRIP).where(rides.c.ride_id.in_(_IDS))
)
END_RIDES = Statement(
    rides.update()
    .where(rides.c.ride_id.in_(_IDS))
    .values(
        version=rides.c.version + 1,
        state=sa.bindparam("to_state"),
        ended_at_ms=sa.bindparam("ended_at_ms"),
        end_reason=sa.bindparam("end_reason"),
    )
)
END_TRIPS = Statement(
    trips.update()
    .where(trips.c.trip_id.in_(_IDS))
    .values(
        state=sa.bindparam("to_state"),
        live=None,
        live_slot=None,
        ended_at_ms=sa.bindparam("ended_at_ms"),
        end_reason=sa.bindparam("end_reason"),
    )
)
READ_OLD_KEYS = Statement(
    sa.select(rides.c.ride_id).where(rides.c.key_until_ms <= now_ms()).order_by(rides.c.key_until_ms).limit(_LIMIT)
)
FORGET_KEYS = Statement(
    rides.update()
    .where(rides.c.ride_id.in_(_IDS), rides.c.key_until_ms <= now_ms())
    .values(idempotency_key=None, key_until_ms=None)
)


def due_move(ride: Ride, trip_due_at_ms: int | None, at_ms: int) -> tuple[Move, Transition] | None:
    """What time does to this ride now, or None; pure."""
    trip = live_trip(ride)
    trip_state = None if trip is None else trip.state
    if ride.deadline_at_ms <= at_ms and (row := transition_of(Move.EXPIRE, ride.state, trip_state)):
        return Move.EXPIRE, row
    if trip is None or trip_due_at_ms is None or trip_due_at_ms > at_ms:
        return None
    move = Move.TIME_OUT if trip.state is TripState.OFFERED else Move.ABANDON
    row = transition_of(move, ride.state, trip_state)
    return None if row is None else (move, row)


async def sweep(session: Session, market: MarketId, token: int, limit: int) -> list[Hint]:
    """One try; raises LeaseLost."""
    at_ms = await hold(session, market, token)
    ended = await _ended(session, market, at_ms, limit)
    if not ended:
        session.refused = True
        return []
    await session.run(*_steps(ended, at_ms))
    events = [event_row(after, row.event, at_ms, after.trip if row.trip_to else None) for _, row, after in ended]
    await session.insert(INSERT_EVENT, events)
    return [hint_of(after, after.trip if row.trip_to else None) for _, row, after in ended]


_Ended = tuple[Move, Transition, Ride]


async def _ended(session: Session, market: MarketId, at_ms: int, limit: int) -> list[_Ended]:
    overdue, due = await session.run(
        READ_OVERDUE_RIDES(market=market, limit=limit), READ_DUE_TRIPS(market=market, limit=limit)
    )
    ids = sorted({text_of(row[0]) for row in (*overdue.rows, *due.rows)})
    if not ids:
        return []
    locked, found = await session.run(LOCK_RIDE_IDS(ids=ids), READ_RIDES(ids=ids))
    held = {RideId(text_of(row[0])) for row in locked.rows}
    decided = [one for row in found.rows if (one := _decided(row, at_ms)) is not None and one[2].ride_id in held]
    return await _with_their_drivers(session, decided)


def _decided(row: Row, at_ms: int) -> _Ended | None:
    ride = ride_with_trip_of(row)
    due = due_move(ride, row[-1], at_ms)
    if due is None:
        return None
    move, transition = due
    reason = "abandoned" if move is Move.ABANDON else None
    return move, transition, changed(ride, transition, at_ms, reason)


async def _with_their_drivers(session: Session, decided: Sequence[_Ended]) -> list[_Ended]:
    """Those whose driver's row, needed for the promotion, nobody else holds."""
    needed = sorted({after.trip.driver_id for _, row, after in decided if row.trip_to and after.trip})
    if not needed:
        return list(decided)
    held = {DriverId(text_of(row[0])) for row in await rows_of(session, LOCK_DRIVERS(ids=needed))}
    return [one for one in decided if not one[1].trip_to or (one[2].trip and one[2].trip.driver_id in held)]


def _steps(ended: Sequence[_Ended], at_ms: int) -> list[Step]:
    """One UPDATE of rides and one of trips for each row of the transition table that is taken."""
    rides_steps: list[Step] = []
    trips_steps: list[Step] = []
    freed: set[str] = set()
    for _, same in groupby(sorted(ended, key=_row_key), key=_row_key):
        group = list(same)
        _, row, first = group[0]
        rides_steps.append(END_RIDES(ids=sorted(after.ride_id for *_, after in group), **_ending(first)))
        if row.trip_to is not None and first.trip is not None:
            ids = sorted(after.trip.trip_id for *_, after in group if after.trip is not None)
            values = {"ended_at_ms": at_ms, "end_reason": first.trip.end_reason, "to_state": row.trip_to.value}
            trips_steps.append(END_TRIPS(ids=ids, **values))
            freed.update(after.trip.driver_id for *_, after in group if after.trip is not None)
    if freed:
        trips_steps.append(PROMOTE_NEXT(driver_ids=sorted(freed), since_ms=at_ms))
    return rides_steps + trips_steps


def _row_key(one: _Ended) -> tuple[str, str, str]:
    move, row, _ = one
    return move.value, row.ride_from.value, row.trip_from.value if row.trip_from else ""


def _ending(after: Ride) -> Mapping[str, int | str | None]:
    return {"to_state": after.state.value, "ended_at_ms": after.ended_at_ms, "end_reason": after.end_reason}


async def old_keys(session: Session, limit: int) -> list[str]:
    return [text_of(row[0]) for row in await rows_of(session, READ_OLD_KEYS(limit=limit))]


async def forget_keys(session: Session, ride_ids: Sequence[str]) -> None:
    """Keys older than a day protect nothing any more; the ride itself is not changed by it."""
    await session.run(FORGET_KEYS(ids=sorted(ride_ids)))
