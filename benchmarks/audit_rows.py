"""The rows that the audit judges, read from the database with statements of its own.

Never through the store, whose faults the audit is to find. Times are whole milliseconds of the database's clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from matcher import tables


@dataclass(frozen=True, slots=True)
class RideRow:
    ride_id: str
    client_id: str
    state: str
    version: int
    current_trip_id: str | None
    requested_at_ms: int
    deadline_at_ms: int
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class TripRow:
    trip_id: str
    ride_id: str
    driver_id: str
    state: str
    live: int | None
    live_slot: str | None
    matched_at_ms: int
    accepted_at_ms: int | None
    now_since_ms: int | None
    arrived_at_ms: int | None
    started_at_ms: int | None
    ended_at_ms: int | None
    end_code: str | None


@dataclass(frozen=True, slots=True)
class EventRow:
    ride_id: str
    version: int
    type: str
    state: str
    driver_id: str | None
    trip_id: str | None
    code: str | None
    actor: str | None
    pending: int | None


@dataclass(frozen=True, slots=True)
class Records:
    """The run's rides and their events, and every trip that lives or was matched since the first of them."""

    now_ms: int
    rides: Mapping[str, RideRow]
    trips: Sequence[TripRow]
    events: Mapping[str, Sequence[EventRow]]

    def trips_of_run(self) -> list[TripRow]:
        return [trip for trip in self.trips if trip.ride_id in self.rides]


def read_records(url: str, client_ids: Iterable[str]) -> Records:
    """The rides of these clients, with all that belongs to them, in one read-only snapshot.

    Takes the service's own URL (its asynchronous driver is replaced); blocks.
    Raises sqlalchemy.exc.SQLAlchemyError when the database cannot be read.
    """
    engine = sa.create_engine(reading_url(url), poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            if engine.dialect.name != "sqlite":  # SQLite's read transaction is a snapshot anyway
                connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                connection.rollback()
                connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
            return _read(connection, sorted(client_ids))
    finally:
        engine.dispose()


def reading_url(url: str) -> sa.URL:
    """The service's database URL with a blocking driver, and a SQLite file opened read-only."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = Path(parsed.database or "").resolve()
        return sa.URL.create("sqlite+pysqlite", database=f"file:{path}", query={"mode": "ro", "uri": "true"})
    return parsed.set(drivername="mysql+pymysql")


def _read(connection: sa.Connection, client_ids: list[str]) -> Records:
    rides, trips, events = tables.rides, tables.trips, tables.ride_events
    is_mysql = connection.dialect.name != "sqlite"
    # Exact names are VARBINARY there, and its driver wants bytes for them.
    ours = rides.c.client_id.in_([each.encode() if is_mysql else each for each in client_ids])
    now_ms = connection.scalar(sa.select(tables.now_ms()))
    ride_rows = [RideRow(*row) for row in _select(connection, RideRow, rides, ours)]
    since_ms = min((ride.requested_at_ms for ride in ride_rows), default=0)
    recent = sa.or_(trips.c.matched_at_ms >= since_ms, trips.c.live == 1)
    trip_rows = [TripRow(*row) for row in _select(connection, TripRow, trips, recent)]
    of_ours = events.c.ride_id.in_(sa.select(rides.c.ride_id).where(ours))
    by_ride: dict[str, list[EventRow]] = defaultdict(list)
    for row in _select(connection, EventRow, events, of_ours):
        event = EventRow(*row)
        by_ride[event.ride_id].append(event)
    return Records(int(now_ms or 0), {ride.ride_id: ride for ride in ride_rows}, trip_rows, by_ride)


def _select(
    connection: sa.Connection, kind: type[Any], table: sa.Table, where: sa.ColumnElement[bool]
) -> Iterable[list[Any]]:
    """The columns that `kind` names, in its order; MySQL gives exact names as bytes."""
    columns = [table.c[name] for name in kind.__dataclass_fields__]
    for row in connection.execute(sa.select(*columns).where(where)):
        yield [value.decode() if isinstance(value, bytes) else value for value in row]
