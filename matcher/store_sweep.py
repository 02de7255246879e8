"""The sweep of a market: what reached a limit of time is moved on, whoever has crashed (P4).

Rides expire at their deadline and scheduled ones begin to search; offers run out,
or are taken back where the driver's socket is gone for too long; a `next` trip
whose turn does not come is released; trips are abandoned at their limit;
idempotency keys are forgotten after a day. Rows that a command holds are left to
the next sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from geo.model import DriverId, MarketId
from matcher.life import DEFAULT, Life
from matcher.model import (
    NO_RIDE,
    Actor,
    Code,
    DriverStatus,
    Hint,
    Move,
    Ride,
    RideId,
    RideState,
    Slot,
    TripState,
)
from matcher.sessions import Session, rows_of
from matcher.statement import Statement, Step
from matcher.store_batch import LOCK_DRIVERS
from matcher.store_changes import PROMOTED, READ_HELD, Change, decide, hints_of, put_off, with_promotions
from matcher.store_leases import hold
from matcher.store_rides import INSERT_EVENT
from matcher.store_rows import RIDE_AND_TRIP, RIDES_WITH_TRIP, ride_with_trip_of, text_of
from matcher.tables import drivers, now_ms, rides, trips

_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_LIMIT = sa.bindparam("limit", type_=sa.Integer)
_MARKET = rides.c.market == sa.bindparam("market")
_OPEN_STATES = (RideState.SCHEDULED, RideState.SEARCHING, RideState.OFFERED)

READ_OVERDUE_RIDES = Statement(
    sa.select(rides.c.ride_id)
    .where(_MARKET, rides.c.state.in_([state.value for state in _OPEN_STATES]), rides.c.deadline_at_ms <= now_ms())
    .limit(_LIMIT)
)
READ_TO_SEARCH = Statement(
    sa.select(rides.c.ride_id)
    .where(_MARKET, rides.c.state == RideState.SCHEDULED.value, rides.c.search_at_ms <= now_ms())
    .limit(_LIMIT)
)
READ_DUE_TRIPS = Statement(
    sa.select(trips.c.ride_id)
    .where(trips.c.live == 1, trips.c.due_at_ms <= now_ms(), trips.c.market == sa.bindparam("market"))
    .limit(_LIMIT)
)
READ_LOST_OFFERS = Statement(
    sa.select(trips.c.ride_id)
    .select_from(trips.join(drivers, drivers.c.driver_id == trips.c.driver_id))
    .where(
        trips.c.live == 1,
        trips.c.market == sa.bindparam("market"),
        trips.c.state == TripState.OFFERED.value,
        drivers.c.lost_at_ms <= now_ms() - sa.bindparam("grace_ms", type_=sa.BigInteger),
    )
    .limit(_LIMIT)
)
_present = trips.alias("present")
#: What the drivers of these rides have in `next` beside them.
READ_NEXT_BESIDE = Statement(
    sa.select(trips.c.ride_id)
    .select_from(_present.join(trips, trips.c.driver_id == _present.c.driver_id))
    .where(
        _present.c.ride_id.in_(_IDS),
        _present.c.live_slot == Slot.NOW.value,
        trips.c.live_slot == Slot.NEXT.value,
    )
)
LOCK_RIDE_IDS = Statement(
    sa.select(rides.c.ride_id)
    .where(rides.c.ride_id.in_(_IDS))
    .order_by(rides.c.ride_id)
    .with_hint(rides, "FORCE INDEX (PRIMARY)", "mysql")
    .with_for_update(skip_locked=True)
)
READ_RIDES = Statement(
    sa.select(*RIDE_AND_TRIP, drivers.c.lost_at_ms)
    .select_from(RIDES_WITH_TRIP.outerjoin(drivers, drivers.c.driver_id == trips.c.driver_id))
    .where(rides.c.ride_id.in_(_IDS))
)
MOVE_RIDES = Statement(
    rides.update()
    .where(rides.c.ride_id.in_(_IDS))
    .ordered_values(
        (rides.c.version, rides.c.version + 1),
        (rides.c.state, sa.bindparam("to_state")),
        (rides.c.ended_at_ms, sa.bindparam("ended_at_ms")),
        (rides.c.end_reason, sa.bindparam("end_reason")),
        (rides.c.end_code, sa.bindparam("end_code")),
        *put_off(),
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
        end_code=sa.bindparam("end_code"),
    )
)
PROMOTE_TRIPS = Statement(trips.update().where(trips.c.trip_id.in_(_IDS)).values(**PROMOTED))
MISSED = Statement(
    drivers.update().where(drivers.c.driver_id.in_(_IDS)).values(missed_offers=drivers.c.missed_offers + 1)
)
PAUSE_DRIVERS = Statement(
    drivers.update()
    .where(
        drivers.c.driver_id.in_(_IDS),
        drivers.c.status == DriverStatus.ONLINE.value,
        drivers.c.missed_offers >= sa.bindparam("most", type_=sa.Integer),
    )
    .values(
        status=DriverStatus.ON_BREAK.value,
        status_code=Code.MISSED_OFFERS.value,
        missed_offers=0,
        version=drivers.c.version + 1,
        updated_at_ms=now_ms(),
    )
)
READ_PAUSED = Statement(
    sa.select(drivers.c.driver_id, drivers.c.version).where(
        drivers.c.driver_id.in_(_IDS),
        drivers.c.status == DriverStatus.ON_BREAK.value,
        drivers.c.status_code == Code.MISSED_OFFERS.value,
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


def due_change(ride: Ride, at_ms: int, life: Life, lost_at_ms: int | None = None) -> Change | None:
    """What time does to this ride now, or None; pure. `lost_at_ms`: since when its driver's socket is lost."""
    move, code = _due_move(ride, at_ms, life, lost_at_ms)
    if move is None:
        return None
    reason = "abandoned" if move is Move.ABANDON else None
    return decide(move, ride, at_ms, actor=Actor.SERVICE, code=code, reason=reason, retry_ms=life.retry_ms)


def _due_move(ride: Ride, at_ms: int, life: Life, lost_at_ms: int | None) -> tuple[Move | None, Code | None]:
    trip = ride.live_trip
    if ride.deadline_at_ms <= at_ms and ride.state in _OPEN_STATES:
        return Move.EXPIRE, None
    if trip is None:
        is_time = ride.state is RideState.SCHEDULED and ride.search_at_ms is not None and ride.search_at_ms <= at_ms
        return (Move.SEARCH if is_time else None), None
    if trip.state is TripState.OFFERED and lost_at_ms is not None and lost_at_ms + life.lost_grace_ms <= at_ms:
        return Move.TIME_OUT, Code.CONNECTION_LOST
    if trip.due_at_ms > at_ms:
        return None, None
    if trip.state is TripState.OFFERED:
        return Move.TIME_OUT, None
    if trip.slot is Slot.NEXT and trip.abandon_at_ms > at_ms:
        return Move.WITHDRAW, Code.RUNNING_LATE
    return Move.ABANDON, None


@dataclass(frozen=True, slots=True)
class _Found:
    """Rides that time has something to do to, their rows locked and their drivers' too."""

    changes: Sequence[Change]
    missing: Sequence[DriverId]  # drivers who let an offer run out


async def sweep(session: Session, market: MarketId, token: int, limit: int, life: Life = DEFAULT) -> list[Hint]:
    """One try; raises LeaseLost."""
    at_ms = await hold(session, market, token)
    found = await _found(session, market, at_ms, limit, life)
    if not found.changes:
        session.refused = True
        return []
    await session.run(*_steps(found.changes))
    await session.insert(INSERT_EVENT, [change.event for change in found.changes])
    paused = await _count_missed(session, market, sorted(found.missing), life)
    return hints_of(found.changes) + paused


async def _found(session: Session, market: MarketId, at_ms: int, limit: int, life: Life) -> _Found:
    of_market = {"market": market, "limit": limit}
    replies = await session.run(
        READ_OVERDUE_RIDES(**of_market),
        READ_DUE_TRIPS(**of_market),
        READ_TO_SEARCH(**of_market),
        READ_LOST_OFFERS(**of_market, grace_ms=life.lost_grace_ms),
    )
    due = sorted({text_of(row[0]) for reply in replies for row in reply.rows})
    if not due:
        return _Found((), ())
    beside = {text_of(row[0]) for row in await rows_of(session, READ_NEXT_BESIDE(ids=due))}
    ids = sorted({*due, *beside})
    locked, found = await session.run(LOCK_RIDE_IDS(ids=ids), READ_RIDES(ids=ids))
    held = {RideId(text_of(row[0])) for row in locked.rows}
    rows = [(ride, row[-1]) for row in found.rows if (ride := ride_with_trip_of(row)).ride_id in held]
    decided = [change for ride, lost_at_ms in rows if (change := due_change(ride, at_ms, life, lost_at_ms)) is not None]
    whole = await _with_their_drivers(session, decided, [ride for ride, _ in rows if _is_next(ride)])
    lost = {ride.ride_id for ride, lost_at_ms in rows if lost_at_ms is not None}
    missing = [
        change.trip.driver_id
        for change in whole
        if change.trip is not None and _was_ignored(change) and change.before.ride_id not in lost
    ]
    return _Found(whole, missing)


def _is_next(ride: Ride) -> bool:
    return ride.live_trip is not None and ride.live_trip.slot is Slot.NEXT


def _was_ignored(change: Change) -> bool:
    """Whether the offer ended although its driver had the whole time to answer."""
    trip = change.trip
    return change.move in (Move.TIME_OUT, Move.EXPIRE) and trip is not None and trip.due_at_ms <= change.at_ms


async def _with_their_drivers(session: Session, decided: Sequence[Change], next_rides: Sequence[Ride]) -> list[Change]:
    """Those whose driver's row nobody else holds and whose `next` is among the locked rides, and the promotions."""
    needed = sorted({change.trip.driver_id for change in decided if change.ends_trip and change.trip})
    if not needed:
        return list(decided)
    locked, held = await session.run(LOCK_DRIVERS(ids=needed), READ_HELD(driver_ids=needed))
    mine = {DriverId(text_of(row[0])) for row in locked.rows}
    known = {ride.trip.trip_id for ride in next_rides if ride.trip is not None}
    ours = {text_of(trip_id) for _, trip_id, slot in held.rows if slot == Slot.NEXT.value}
    strange = {
        DriverId(text_of(driver_id))
        for driver_id, trip_id, slot in held.rows
        if slot == Slot.NEXT.value and text_of(trip_id) not in known
    }
    sound = mine - strange
    kept = [change for change in decided if not (change.ends_trip and change.trip) or change.trip.driver_id in sound]
    still_next = [ride for ride in next_rides if ride.trip is not None and ride.trip.trip_id in ours]
    return with_promotions(kept, still_next)


def _steps(changes: Sequence[Change]) -> list[Step]:
    """One UPDATE of rides and one of trips for each way that things end or go on."""
    rides_steps: list[Step] = []
    trips_steps: list[Step] = []
    for _, same in groupby(sorted(changes, key=_group_of), key=_group_of):
        group = list(same)
        rides_steps.append(MOVE_RIDES(ids=sorted(each.after.ride_id for each in group), **_moving(group[0])))
        ids = sorted(each.trip.trip_id for each in group if each.trip is not None)
        if group[0].ends_trip:
            trips_steps.insert(0, END_TRIPS(ids=ids, **_ending(group[0])))
        elif group[0].move is Move.PROMOTE:
            trips_steps.append(PROMOTE_TRIPS(ids=ids, since_ms=group[0].at_ms))
    return rides_steps + trips_steps


def _group_of(change: Change) -> tuple[str, str, str, str]:
    trip_from = change.row.trip_from.value if change.row.trip_from else ""
    return change.move.value, change.row.ride_from.value, trip_from, change.code or ""


def _moving(change: Change) -> Mapping[str, int | str | None]:
    """All of a group end alike; those that search on are given the same time for it."""
    after = change.after
    return {
        "to_state": after.state.value,
        "ended_at_ms": after.ended_at_ms,
        "end_reason": after.end_reason,
        "end_code": after.end_code,
        "search_until_ms": change.search_until_ms,
    }


def _ending(change: Change) -> Mapping[str, int | str | None]:
    trip = change.after.trip
    assert trip is not None
    return {
        "to_state": trip.state.value,
        "ended_at_ms": trip.ended_at_ms,
        "end_reason": trip.end_reason,
        "end_code": trip.end_code,
    }


async def _count_missed(session: Session, market: MarketId, driver_ids: Sequence[DriverId], life: Life) -> list[Hint]:
    """Counts offers that ran out; who let too many do so in a row is paused, and told by the hints."""
    if not driver_ids:
        return []
    steps = [MISSED(ids=sorted(set(driver_ids)))]
    if both := sorted({driver_id for driver_id in driver_ids if driver_ids.count(driver_id) == 2}):
        steps.append(MISSED(ids=both))  # that of its present place and the next one
    await session.run(*steps, PAUSE_DRIVERS(ids=driver_ids, most=life.missed_offers_max))
    paused = await rows_of(session, READ_PAUSED(ids=driver_ids))
    return [Hint(NO_RIDE, version, market, DriverId(text_of(driver_id))) for driver_id, version in paused]


async def old_keys(session: Session, limit: int) -> list[str]:
    return [text_of(row[0]) for row in await rows_of(session, READ_OLD_KEYS(limit=limit))]


async def forget_keys(session: Session, ride_ids: Sequence[str]) -> None:
    """Keys older than a day protect nothing any more; the ride itself is not changed by it."""
    await session.run(FORGET_KEYS(ids=sorted(ride_ids)))
