"""Rides: requested in groups, read, cancelled.

A group of requests is one transaction; where any of its rows is refused, each
row is done again alone, so that one row never fails or delays another.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from geo.model import LatLng, MarketId
from matcher.database import Database
from matcher.errors import StoreUnavailable
from matcher.model import Actor, ClientId, NewRide, Ride, RideId, RideState
from matcher.outcomes import KeyReused, MarketPaused, Requested, RequestOutcome
from matcher.sessions import Conflict, Contended, Session, Unstorable, row_of, rows_of
from matcher.statement import Params, Row, Statement, Step
from matcher.store_markets import READ_PAUSED, paused_of
from matcher.store_rows import (
    RIDE_AND_TRIP,
    RIDE_COLUMNS,
    RIDES_WITH_TRIP,
    can_be_id,
    event_row,
    hint_of,
    json_of,
    ride_of,
    ride_with_trip_of,
    storable_tags,
    text_of,
)
from matcher.tables import now_ms, ride_events, rides

KEY_KEPT_MS = 24 * 3600 * 1000
#: Rows of a refused group that are done at once.
ALONE_AT_ONCE = 4
#: How long a row alone waits, again and again, for a key that somebody else is just writing.
KEY_PAUSES_S = (0.02, 0.05, 0.1, 0.2)

OnOutcome = Callable[[int, RequestOutcome], None]

#: Columns of the first answer that may have been changed since, as they were.
_FIRST = (rides.c.first_deadline_at_ms, rides.c.first_dropoff)

NOW = Statement(sa.select(now_ms()))
#: NOWAIT: a key that another transaction is writing refuses the group at once instead of delaying it.
READ_KEYED = Statement(
    sa.select(*RIDE_COLUMNS, *_FIRST, rides.c.idempotency_key, rides.c.body_hash)
    .where(sa.tuple_(rides.c.client_id, rides.c.idempotency_key).in_(sa.bindparam("keys", expanding=True)))
    .with_hint(rides, "FORCE INDEX (rides_key)", "mysql")
    .with_for_update(nowait=True)
)
#: The same of one key, without a lock: nothing is to be written.
READ_ANSWERED = Statement(
    sa.select(*RIDE_COLUMNS, *_FIRST, rides.c.idempotency_key, rides.c.body_hash).where(
        rides.c.client_id == sa.bindparam("of_client"), rides.c.idempotency_key == sa.bindparam("key")
    )
)
READ_WRITTEN = Statement(
    sa.select(*RIDE_COLUMNS, *_FIRST).where(rides.c.ride_id.in_(sa.bindparam("ids", expanding=True))).with_for_update()
)
INSERT_RIDE = Statement(rides.insert())
INSERT_EVENT = Statement(ride_events.insert())

READ_RIDE = Statement(
    sa.select(*RIDE_AND_TRIP).select_from(RIDES_WITH_TRIP).where(rides.c.ride_id == sa.bindparam("ride_id"))
)
READ_RIDES_OF = Statement(
    sa.select(*RIDE_AND_TRIP)
    .select_from(RIDES_WITH_TRIP)
    .where(rides.c.ride_id.in_(sa.bindparam("ids", expanding=True)))
)


@dataclass(frozen=True, slots=True)
class _Keyed:
    """A ride that stands under an idempotency key."""

    ride: Ride
    body_hash: bytes


async def request_rides(
    database: Database, new: Sequence[NewRide], on_outcome: OnOutcome | None = None
) -> list[RequestOutcome]:
    """Outcomes in the order of `new`; `on_outcome(i, outcome)` hears of each as soon as it is settled.

    Raises StoreUnavailable where the database could not do the group at all.
    """
    if not new:
        return []
    try:
        outcomes = await database.write(lambda session: _insert_or_conflict(session, new))
    except (Conflict, Unstorable):
        return await _each_alone(database, new, on_outcome)
    if on_outcome is not None:
        for i, outcome in enumerate(outcomes):
            on_outcome(i, outcome)
    return outcomes


async def _each_alone(database: Database, new: Sequence[NewRide], on_outcome: OnOutcome | None) -> list[RequestOutcome]:
    turns = asyncio.Semaphore(max(1, min(ALONE_AT_ONCE, database.writers)))

    async def one(i: int) -> RequestOutcome:
        async with turns:
            outcome = await _alone(database, new[i])
        if on_outcome is not None:
            on_outcome(i, outcome)
        return outcome

    return list(await asyncio.gather(*[one(i) for i in range(len(new))]))


async def _alone(database: Database, new: NewRide) -> RequestOutcome:
    for pause_s in (*KEY_PAUSES_S, None):
        try:
            return (await database.write(lambda session: _insert_or_conflict(session, [new])))[0]
        except Conflict as error:
            reason = f"another request with this idempotency key is under way: {error}"
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        except Unstorable as error:
            return StoreUnavailable(f"this request cannot be stored: {error}")
        except StoreUnavailable as error:
            return error
    return StoreUnavailable(reason)


async def _insert_or_conflict(session: Session, new: Sequence[NewRide]) -> list[RequestOutcome]:
    try:
        return await _insert(session, new)
    except Contended as error:
        # Not to be repeated as it is: somebody holds a key, and its neighbours need not wait for that.
        raise Conflict(str(error)) from error


async def _insert(session: Session, new: Sequence[NewRide]) -> list[RequestOutcome]:
    written = await _written_before(session, new) if session.settling else {}
    at_ms, keyed, refusing = await _look(session, [one for one in new if one.ride_id not in written])
    outcomes: list[RequestOutcome] = []
    fresh: list[tuple[NewRide, Ride]] = []
    for one in new:
        if ride := written.get(one.ride_id):
            outcomes.append(Requested(ride, hint_of(ride), repeated=False))
        elif (stands := keyed.get((one.client_id, one.idempotency_key or ""))) and one.idempotency_key is not None:
            outcomes.append(_repetition(one, stands))
        elif one.market in refusing:
            outcomes.append(MarketPaused(one.market, refusing[one.market]))
        else:
            ride = first_answer(one, at_ms)
            fresh.append((one, ride))
            outcomes.append(Requested(ride, hint_of(ride), repeated=False))
    if fresh:
        # In the order of their keys, so that two groups with the same keys cannot deadlock.
        fresh.sort(key=lambda pair: (pair[0].client_id, pair[0].idempotency_key or "", pair[0].ride_id))
        made = [ride_row(one, ride) for one, ride in fresh]
        await session.run(INSERT_RIDE.many(made), INSERT_EVENT.many(_requested_events(fresh, at_ms)))
    else:
        session.refused = True  # nothing to commit
    return outcomes


def _requested_events(fresh: Sequence[tuple[NewRide, Ride]], at_ms: int) -> list[Params]:
    return [event_row(ride, "requested", at_ms, actor=Actor.RIDER) for _, ride in fresh]


_Look = tuple[int, dict[tuple[str, str], _Keyed], dict[MarketId, str | None]]


async def _look(session: Session, new: Sequence[NewRide]) -> _Look:
    """The database's time, which rides stand already under the keys of these, and which markets take none, and why."""
    if not new:
        return (await rows_of(session, NOW()))[0][0], {}, {}
    steps = [NOW(), READ_PAUSED(markets=sorted({one.market for one in new}))]
    keys = sorted({(str(one.client_id), one.idempotency_key) for one in new if one.idempotency_key is not None})
    if keys:
        steps.append(READ_KEYED(keys=keys))
    clock, paused, *found = await session.run(*steps)
    keyed = dict(_keyed_of(row) for reply in found for row in reply.rows)
    refusing = {market: reason for market, (kind, reason) in paused_of(paused.rows).items() if kind == "refuse"}
    return clock.rows[0][0], keyed, refusing


def _keyed_of(row: Row) -> tuple[tuple[str, str], _Keyed]:
    ride = _as_first_answered(row)
    key, body_hash = row[len(RIDE_COLUMNS) + len(_FIRST) :][:2]
    return (ride.client_id, text_of(key)), _Keyed(ride, bytes(body_hash))


async def _written_before(session: Session, new: Sequence[NewRide]) -> dict[RideId, Ride]:
    """Those that the attempt committed whose answer was lost; waits for one still committing (P2)."""
    rows = await rows_of(session, READ_WRITTEN(ids=sorted(one.ride_id for one in new)))
    return {(ride := _as_first_answered(row)).ride_id: ride for row in rows}


async def answered_before(session: Session, new: NewRide) -> RequestOutcome | None:
    """What a repetition of an earlier request is answered (P3); None where no ride stands under its key."""
    key = new.idempotency_key
    if key is None or not can_be_id(key) or not can_be_id(new.client_id):
        return None
    row = await row_of(session, READ_ANSWERED(of_client=new.client_id, key=key))
    return None if row is None else _repetition(new, _keyed_of(row)[1])


def _repetition(new: NewRide, stands: _Keyed) -> RequestOutcome:
    if stands.body_hash != new.body_hash:
        return KeyReused(new.idempotency_key or "")
    return Requested(stands.ride, None, repeated=True)


def _as_first_answered(row: Row) -> Ride:
    """The ride as its 201 showed it, at version 1 (P3): from RIDE_COLUMNS, most of which never change, and _FIRST."""
    ride, (deadline_at_ms, dropoff) = ride_of(row), row[len(RIDE_COLUMNS) :][: len(_FIRST)]
    first = None if dropoff is None else json.loads(dropoff)
    return replace(
        ride,
        state=_first_state(ride),
        version=1,
        dropoff=ride.dropoff if dropoff is None else None if first is None else LatLng(*first),
        deadline_at_ms=ride.deadline_at_ms if deadline_at_ms is None else deadline_at_ms,
        ended_at_ms=None,
        end_reason=None,
        end_code=None,
        trip=None,
    )


def _first_state(ride: Ride) -> RideState:
    is_later = ride.search_at_ms is not None and ride.search_at_ms > ride.requested_at_ms
    return RideState.SCHEDULED if is_later else RideState.SEARCHING


def first_answer(new: NewRide, at_ms: int) -> Ride:
    ride = _requested(new, at_ms)
    return replace(ride, state=_first_state(ride))


def _requested(new: NewRide, at_ms: int) -> Ride:
    pickup_at_ms = new.pickup_at_ms
    return Ride(
        ride_id=new.ride_id,
        client_id=new.client_id,
        market=new.market,
        state=RideState.SEARCHING,
        version=1,
        pickup=new.pickup,
        dropoff=new.dropoff,
        seats=new.seats,
        vehicle_class=new.vehicle_class,
        metadata=new.metadata,
        requested_at_ms=at_ms,
        deadline_at_ms=max(at_ms, pickup_at_ms or 0) + new.deadline_ms,
        ended_at_ms=None,
        end_reason=None,
        trip=None,
        tags=new.tags,
        pickup_at_ms=pickup_at_ms,
        search_at_ms=None if pickup_at_ms is None else max(at_ms, pickup_at_ms - new.lead_ms),
    )


def _check_sizes(new: NewRide) -> None:
    """As MySQL's columns do, so that SQLite, which knows no lengths, refuses the same."""
    sizes = ((new.client_id, 255), (new.idempotency_key or "", 255), (new.market, 64), (new.vehicle_class, 32))
    for text, bytes_max in sizes:
        if not can_be_id(text, bytes_max):
            raise Unstorable(f"{text[:20]!r} is no UTF-8 of at most {bytes_max} bytes")


def ride_row(new: NewRide, ride: Ride) -> Params:
    _check_sizes(new)
    return {
        "ride_id": ride.ride_id,
        "client_id": ride.client_id,
        "market": ride.market,
        "state": ride.state.value,
        "version": ride.version,
        "current_trip_id": None,
        "pickup_lat": ride.pickup.lat,
        "pickup_lon": ride.pickup.lon,
        "dropoff_lat": None if ride.dropoff is None else ride.dropoff.lat,
        "dropoff_lon": None if ride.dropoff is None else ride.dropoff.lon,
        "seats": ride.seats,
        "vehicle_class": ride.vehicle_class,
        "metadata": _storable_metadata(ride),
        "requested_at_ms": ride.requested_at_ms,
        "deadline_at_ms": ride.deadline_at_ms,
        "ended_at_ms": None,
        "end_reason": None,
        "idempotency_key": new.idempotency_key,
        "key_until_ms": None if new.idempotency_key is None else ride.requested_at_ms + KEY_KEPT_MS,
        "body_hash": new.body_hash,
        "tags": storable_tags(ride.tags),
        "pickup_at_ms": ride.pickup_at_ms,
        "search_at_ms": ride.search_at_ms,
        "first_deadline_at_ms": None,
        "first_dropoff": None,
        "end_code": None,
    }


def _storable_metadata(ride: Ride) -> str:
    try:
        return json_of(ride.metadata)
    except (ValueError, TypeError, RecursionError) as error:  # NaN, no JSON at all, or too deep
        raise Unstorable(f"metadata: {error}") from error


async def read_rides(session: Session, ride_ids: Sequence[RideId]) -> list[Ride]:
    return [ride_with_trip_of(row) for row in await rows_of(session, READ_RIDES_OF(ids=sorted(ride_ids)))]


async def read_ride(session: Session, ride_id: str) -> Ride | None:
    row = await row_of(session, READ_RIDE(ride_id=ride_id))
    return None if row is None else ride_with_trip_of(row)


def _list_statement(of_client: bool, in_state: bool, after: bool) -> Statement:
    core = sa.select(*RIDE_AND_TRIP).select_from(RIDES_WITH_TRIP)
    if of_client:
        core = core.where(rides.c.client_id == sa.bindparam("client_id"))
    if in_state:
        core = core.where(rides.c.state == sa.bindparam("state"))
    if after:
        core = core.where(rides.c.ride_id < sa.bindparam("before"))
    return Statement(core.order_by(rides.c.ride_id.desc()).limit(sa.bindparam("limit", type_=sa.Integer)))


_LISTS = {
    (client, state, before): _list_statement(client, state, before)
    for client in (False, True)
    for state in (False, True)
    for before in (False, True)
}


def list_step(client_id: ClientId | None, state: RideState | None, before: str | None, limit: int) -> Step:
    """The newest rides first: ids are ordered by time, so that an id is the cursor."""
    statement = _LISTS[client_id is not None, state is not None, before is not None]
    return statement(client_id=client_id, state=None if state is None else state.value, before=before, limit=limit)
