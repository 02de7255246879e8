"""The audit: whether the promises hold, from the rows alone.

It looks at states and times, not at the columns that the unique keys use, so
that it would find what a missing key let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from matcher.model import LIVE_TRIP_STATES, RideState, Slot
from matcher.outcomes import Audit
from matcher.sessions import Session
from matcher.statement import Statement
from matcher.tables import now_ms, ride_events, rides, trips

OVERDUE_AFTER_MS = 60_000
_LIVE = sorted(state.value for state in LIVE_TRIP_STATES)
_ENGAGED_RIDE = [s.value for s in (RideState.OFFERED, RideState.ASSIGNED, RideState.ARRIVED, RideState.IN_PROGRESS)]
_FOREVER_MS = 2**62


def _count(of: sa.Select[Any]) -> Statement:
    return Statement(sa.select(sa.func.count()).select_from(of.subquery()))


def _live_trips_of(*group: sa.ColumnElement[Any]) -> sa.Select[Any]:
    counted = sa.select(*group).where(trips.c.state.in_(_LIVE)).group_by(*group)
    return counted.having(sa.func.count() > 1)


def _next_without_now() -> sa.Select[Any]:
    other = trips.alias()
    now = sa.select(other.c.trip_id).where(
        other.c.driver_id == trips.c.driver_id, other.c.live_slot == Slot.NOW.value, other.c.state.in_(_LIVE)
    )
    return sa.select(trips.c.trip_id).where(
        trips.c.state.in_(_LIVE), trips.c.live_slot == Slot.NEXT.value, ~sa.exists(now.correlate(trips))
    )


def _rides_without_trip() -> sa.Select[Any]:
    current = sa.select(trips.c.trip_id).where(
        trips.c.trip_id == rides.c.current_trip_id, trips.c.ride_id == rides.c.ride_id, trips.c.state.in_(_LIVE)
    )
    return sa.select(rides.c.ride_id).where(rides.c.state.in_(_ENGAGED_RIDE), ~sa.exists(current.correlate(rides)))


def _trips_without_ride() -> sa.Select[Any]:
    own = sa.select(rides.c.ride_id).where(
        rides.c.ride_id == trips.c.ride_id,
        rides.c.current_trip_id == trips.c.trip_id,
        rides.c.state.in_(_ENGAGED_RIDE),
    )
    return sa.select(trips.c.trip_id).where(trips.c.state.in_(_LIVE), ~sa.exists(own.correlate(trips)))


def _versions_without_event() -> sa.Select[Any]:
    told = (
        sa.select(
            ride_events.c.ride_id, sa.func.count().label("events"), sa.func.max(ride_events.c.version).label("newest")
        )
        .group_by(ride_events.c.ride_id)
        .subquery()
    )
    return (
        sa.select(rides.c.ride_id)
        .select_from(rides.outerjoin(told, told.c.ride_id == rides.c.ride_id))
        .where(
            sa.or_(told.c.events.is_(None), told.c.events != rides.c.version, told.c.newest != rides.c.version),
        )
    )


def _overlapping() -> sa.Select[Any]:
    one, two = trips.alias("one"), trips.alias("two")
    return (
        sa.select(one.c.trip_id)
        .select_from(one.join(two, sa.and_(two.c.driver_id == one.c.driver_id, two.c.trip_id > one.c.trip_id)))
        .where(
            one.c.now_since_ms < sa.func.coalesce(two.c.ended_at_ms, _FOREVER_MS),
            two.c.now_since_ms < sa.func.coalesce(one.c.ended_at_ms, _FOREVER_MS),
        )
    )


def _overdue_rides() -> sa.Select[Any]:
    waiting = rides.c.state.in_([RideState.SCHEDULED.value, RideState.SEARCHING.value, RideState.OFFERED.value])
    return sa.select(rides.c.ride_id).where(waiting, rides.c.deadline_at_ms < now_ms() - OVERDUE_AFTER_MS)


def _overdue_trips() -> sa.Select[Any]:
    return sa.select(trips.c.trip_id).where(
        trips.c.state.in_(_LIVE), trips.c.abandon_at_ms < now_ms() - OVERDUE_AFTER_MS
    )


RIDES_BY_STATE = Statement(sa.select(rides.c.state, sa.func.count()).group_by(rides.c.state))
TRIPS_BY_STATE = Statement(sa.select(trips.c.state, sa.func.count()).group_by(trips.c.state))
COUNTS: Mapping[str, Statement] = {
    "rides_of_events": Statement(sa.select(sa.func.count(sa.distinct(ride_events.c.ride_id)))),
    "drivers_doubled": _count(_live_trips_of(trips.c.driver_id, trips.c.live_slot)),
    "rides_doubled": _count(_live_trips_of(trips.c.ride_id)),
    "next_without_now": _count(_next_without_now()),
    "rides_without_trip": _count(_rides_without_trip()),
    "trips_without_ride": _count(_trips_without_ride()),
    "versions_without_event": _count(_versions_without_event()),
    "trips_overlapping": _count(_overlapping()),
    "overdue_rides": _count(_overdue_rides()),
    "overdue_trips": _count(_overdue_trips()),
}


async def audit(session: Session) -> Audit:
    """All counts from one snapshot."""
    await session.begin_snapshot()
    by_state, trips_by_state, *counted = await session.run(
        RIDES_BY_STATE(), TRIPS_BY_STATE(), *(statement() for statement in COUNTS.values())
    )
    await session.commit()
    counts = {name: int(reply.rows[0][0]) for name, reply in zip(COUNTS, counted, strict=True)}
    overdue = counts.pop("overdue_rides") + counts.pop("overdue_trips")
    rides_by = {state: int(number) for state, number in by_state.rows}
    trips_by = {state: int(number) for state, number in trips_by_state.rows}
    return Audit(rides=rides_by, trips=trips_by, overdue=overdue, **counts)
