"""Queues at places: who waits where, and what a look at them needs to know of their drivers and trips.

The market's matcher alone writes places, under its lease's token (P7). A driver has one place at most: the row's key
is its id, and whoever enters leaves what it may still have in another market.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from geo.model import DriverId, MarketId
from matcher.model import DriverStatus, Slot, TripId, TripState
from matcher.sessions import Conflict, Raced, Reply, Session, rows_of
from matcher.statement import Row, Statement, Step
from matcher.store_leases import hold
from matcher.store_rides import NOW
from matcher.store_rows import text_of
from matcher.tables import drivers, trips, zone_places
from matcher.zones import Change, Kind, Place, Standing, TripSeen

#: Drivers in one statement, and statements in one query.
DRIVERS_CHUNK = 500
STEPS_CHUNK = 100
#: Trips that ended are read as far back as they were matched since the look before, or for a first look, so long ago.
FIRST_LOOK_MS = 600_000
#: A trip is dated before its commit, which may take so long.
COMMIT_MS = 10_000

_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_MARKET = zone_places.c.market == sa.bindparam("of_market")
_PLACE_COLUMNS = (
    zone_places.c.driver_id,
    zone_places.c.zone,
    zone_places.c.entered_at_ms,
    zone_places.c.away_since_ms,
    zone_places.c.trip_id,
)
_TRIP_COLUMNS = (
    trips.c.driver_id,
    trips.c.trip_id,
    trips.c.state,
    trips.c.started_at_ms,
    trips.c.ended_at_ms,
    trips.c.end_code,
    trips.c.matched_at_ms,
)

READ_PLACES = Statement(
    sa.select(*_PLACE_COLUMNS, drivers.c.status, drivers.c.market)
    .select_from(zone_places.outerjoin(drivers, drivers.c.driver_id == zone_places.c.driver_id))
    .where(_MARKET)
    .order_by(zone_places.c.zone, zone_places.c.entered_at_ms, zone_places.c.driver_id)
)
#: Whoever has a live trip has one in `now`; by the unique key, it is found without a look at the driver's past.
_IS_NOW = trips.c.live_slot == Slot.NOW.value
READ_HELD = Statement(
    sa.select(*_TRIP_COLUMNS)
    .select_from(zone_places.join(trips, trips.c.trip_id == zone_places.c.trip_id))
    .where(_MARKET)
)
READ_LIVE = Statement(
    sa.select(*_TRIP_COLUMNS)
    .select_from(zone_places.join(trips, trips.c.driver_id == zone_places.c.driver_id))
    .where(_MARKET, _IS_NOW)
)
READ_LIVE_OF = Statement(sa.select(*_TRIP_COLUMNS).where(trips.c.driver_id.in_(_IDS), _IS_NOW))
#: What was matched and has ended between two looks.
READ_ENDED = Statement(
    sa.select(*_TRIP_COLUMNS)
    .where(
        trips.c.market == sa.bindparam("of_market"),
        trips.c.matched_at_ms > sa.bindparam("after_ms", type_=sa.BigInteger),
        trips.c.live.is_(None),
    )
    .with_hint(trips, "FORCE INDEX (trips_matched)", "mysql")
)
READ_DRIVERS = Statement(
    sa.select(drivers.c.driver_id, drivers.c.status, drivers.c.market).where(drivers.c.driver_id.in_(_IDS))
)
READ_WAITING = Statement(
    sa.select(zone_places.c.zone, zone_places.c.driver_id)
    .where(_MARKET, zone_places.c.trip_id.is_(None))
    .order_by(zone_places.c.zone, zone_places.c.entered_at_ms, zone_places.c.driver_id)
)

LEAVE = Statement(zone_places.delete().where(_MARKET, zone_places.c.driver_id.in_(_IDS)))
#: Of one who enters: a place of another market's, which it has left, or this very one where it was written before.
FORGET = Statement(zone_places.delete().where(zone_places.c.driver_id.in_(_IDS)))
ENTER = Statement(zone_places.insert())
SET_AWAY = Statement(
    zone_places.update()
    .where(_MARKET, zone_places.c.driver_id.in_(_IDS))
    .values(away_since_ms=sa.bindparam("to_away_since_ms", type_=sa.BigInteger))
)
MOVE = Statement(
    zone_places.update()
    .where(_MARKET, zone_places.c.driver_id == sa.bindparam("of_driver"))
    .values(
        entered_at_ms=sa.bindparam("to_entered_at_ms", type_=sa.BigInteger),
        away_since_ms=sa.bindparam("to_away_since_ms", type_=sa.BigInteger),
        trip_id=sa.bindparam("to_trip_id", type_=sa.String),
    )
)


async def standing(session: Session, market: MarketId, seen: Collection[DriverId], since_ms: int | None) -> Standing:
    """One snapshot. `since_ms` is the time of the look before; None for a first one."""
    await session.begin_snapshot()
    clock, found = await session.run(NOW(), READ_PLACES(of_market=market))
    now_ms = int(clock.rows[0][0])
    after_ms = (now_ms - FIRST_LOOK_MS if since_ms is None else since_ms) - COMMIT_MS
    of_trips = [READ_HELD(of_market=market), READ_LIVE(of_market=market)]
    of_trips.append(READ_ENDED(of_market=market, after_ms=after_ms))
    replies = await session.run(*of_trips) if found.rows else []
    placed = {DriverId(text_of(row[0])) for row in found.rows}
    drivers_seen, trips_seen = await _newcomers(session, sorted(set(seen) - placed))
    await session.commit()
    rows = [(row[0], row[-2], row[-1]) for row in found.rows] + drivers_seen
    return Standing(
        now_ms=now_ms,
        places=[_place_of(row) for row in found.rows],
        online=frozenset(DriverId(text_of(each)) for each, status, where in rows if _is_online(status, where, market)),
        trips=_by_driver([*_rows_of(replies), *trips_seen], {*placed, *seen}),
    )


async def _newcomers(session: Session, ids: Sequence[DriverId]) -> tuple[list[tuple[Any, ...]], list[Row]]:
    """Of those seen who have no place here: status and market, and their live trips."""
    found: list[tuple[Any, ...]] = []
    live: list[Row] = []
    for some in _chunks(ids):
        rows, on_trip = await session.run(READ_DRIVERS(ids=some), READ_LIVE_OF(ids=some))
        found += [tuple(row) for row in rows.rows]
        live += on_trip.rows
    return found, live


def _rows_of(replies: Sequence[Reply]) -> Iterator[Row]:
    return (row for reply in replies for row in reply.rows)


def _is_online(status: str | None, in_market: bytes | str | None, market: MarketId) -> bool:
    return status == DriverStatus.ONLINE.value and in_market is not None and text_of(in_market) == market


def _place_of(row: Row) -> Place:
    return Place(
        driver_id=DriverId(text_of(row[0])),
        zone=text_of(row[1]),
        entered_at_ms=row[2],
        away_since_ms=row[3],
        trip_id=None if row[4] is None else TripId(text_of(row[4])),
    )


def _by_driver(rows: Sequence[Row], of: Collection[DriverId]) -> dict[DriverId, list[TripSeen]]:
    """Each trip once, in the order in which they were matched; those of other drivers are left out."""
    found: dict[DriverId, dict[str, TripSeen]] = {}
    for row in sorted(rows, key=lambda row: (row[-1], text_of(row[1]))):
        if (driver_id := DriverId(text_of(row[0]))) in of:
            found.setdefault(driver_id, {})[text_of(row[1])] = _trip_of(row)
    return {driver_id: list(some.values()) for driver_id, some in found.items()}


def _trip_of(row: Row) -> TripSeen:
    state = TripState(row[2])
    return TripSeen(
        trip_id=TripId(text_of(row[1])),
        state=state,
        was_started=row[3] is not None or state is TripState.COMPLETED,
        ended_at_ms=row[4],
        end_code=row[5],
    )


async def put(session: Session, market: MarketId, token: int, changes: Sequence[Change]) -> None:
    """One try; writing the same changes again leaves the same places. Raises LeaseLost, or Raced where another market
    let one of the drivers enter at the same moment.
    """
    await hold(session, market, token)
    of_kind: dict[Kind, list[Change]] = {}
    for change in changes:
        of_kind.setdefault(change.kind, []).append(change)
    for some in _chunks(_ids(of_kind.pop(Kind.LEAVE, ()))):
        await session.run(LEAVE(of_market=market, ids=some))
    await _enter(session, market, of_kind.pop(Kind.ENTER, ()))
    steps = [*_away_steps(market, of_kind.pop(Kind.AWAY, ())), *_away_steps(market, of_kind.pop(Kind.BACK, ()))]
    steps += [_move_step(market, change.place) for some in of_kind.values() for change in some]
    for start in range(0, len(steps), STEPS_CHUNK):
        await session.run(*steps[start : start + STEPS_CHUNK])


async def _enter(session: Session, market: MarketId, changes: Sequence[Change]) -> None:
    places = {change.place.driver_id: change.place for change in changes}
    for some in _chunks(sorted(places)):
        await session.run(FORGET(ids=some))
        try:
            await session.insert(ENTER, [_row_of(market, places[driver_id]) for driver_id in some])
        except Conflict as error:
            raise Raced(str(error)) from error


def _row_of(market: MarketId, place: Place) -> dict[str, Any]:
    return {
        "driver_id": place.driver_id,
        "market": market,
        "zone": place.zone,
        "entered_at_ms": place.entered_at_ms,
        "away_since_ms": place.away_since_ms,
        "trip_id": place.trip_id,
    }


def _away_steps(market: MarketId, changes: Sequence[Change]) -> Iterator[Step]:
    """All of a city may be away at once: few statements."""
    by_time: dict[int | None, list[Change]] = {}
    for change in changes:
        by_time.setdefault(change.place.away_since_ms, []).append(change)
    for since_ms, some in by_time.items():
        for ids in _chunks(_ids(some)):
            yield SET_AWAY(of_market=market, ids=ids, to_away_since_ms=since_ms)


def _move_step(market: MarketId, place: Place) -> Step:
    return MOVE(
        of_market=market,
        of_driver=place.driver_id,
        to_entered_at_ms=place.entered_at_ms,
        to_away_since_ms=place.away_since_ms,
        to_trip_id=place.trip_id,
    )


def _ids(changes: Sequence[Change]) -> list[DriverId]:
    return sorted(change.place.driver_id for change in changes)


def _chunks(ids: Sequence[DriverId]) -> Iterator[Sequence[DriverId]]:
    return (ids[start : start + DRIVERS_CHUNK] for start in range(0, len(ids), DRIVERS_CHUNK))


async def waiting(session: Session, market: MarketId) -> dict[str, list[DriverId]]:
    """By zone, who waits, in turn; held places are left out."""
    found: dict[str, list[DriverId]] = {}
    for zone, driver_id in await rows_of(session, READ_WAITING(of_market=market)):
        found.setdefault(text_of(zone), []).append(DriverId(text_of(driver_id)))
    return found
