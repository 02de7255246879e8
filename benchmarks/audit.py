"""Does the database agree with what the clients saw, and with itself?

Reads rides, trips and events with statements of its own (never through the
store, whose faults it is to find), in one read-only snapshot, and judges them
in plain functions: `invariants` from the database alone, `compare` against the
clients' ledger. Times are whole milliseconds of the database's clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.ledger import Ledger
from matcher import tables
from matcher.model import FINAL_RIDE_STATES, RideState, TripState

EXAMPLES_MAX = 20
#: Between the statement that checks a deadline and the one that writes the trip's time.
STATEMENT_GRACE_MS = 1_000
#: P4: so long after its deadline a ride may still be searching.
OVERDUE_GRACE_MS = 60_000

_FINAL = frozenset(state.value for state in FINAL_RIDE_STATES)
_WITH_TRIP = frozenset({RideState.OFFERED, RideState.ASSIGNED, RideState.ARRIVED, RideState.IN_PROGRESS})
_CARRIED = frozenset({TripState.IN_PROGRESS, TripState.COMPLETED, TripState.ABANDONED})

#: Faults that mean a driver or a ride was given away twice (P1).
DOUBLES = ("driver doubled", "ride doubled", "trips overlap", "doubled in the clients' eyes")


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
    now_since_ms: int | None
    ended_at_ms: int | None


@dataclass(frozen=True, slots=True)
class EventRow:
    ride_id: str
    version: int
    state: str
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


@dataclass(slots=True)
class Findings:
    """Faults by name, with the first few spelled out, and counts that are no faults by themselves."""

    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def fault(self, name: str, what: str) -> None:
        self.faults[name] += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{name}: {what}")

    @property
    def holds(self) -> bool:
        return not self.faults

    @property
    def double_assignments(self) -> int:
        return sum(self.faults[name] for name in DOUBLES)


def audit(records: Records, ledger: Ledger) -> Findings:
    """Everything: the database by itself, then against the ledger."""
    findings = Findings()
    invariants(records, findings)
    compare(records, ledger, findings)
    return findings


def audit_without_database(ledger: Ledger) -> Findings:
    """What can be said from the clients alone: whether each acknowledged ride still answered at the end."""
    findings = Findings()
    for ride_id, request in ledger.acknowledged_rides.items():
        if ride_id not in ledger.last_state:
            findings.fault("ride lost", f"ride {ride_id} was acknowledged to {request.client_id} and is not listed")
    _check_clients(ledger, findings)
    return findings


def _check_clients(ledger: Ledger, findings: Findings) -> None:
    for line in ledger.doubles():
        findings.fault("doubled in the clients' eyes", line)
    if ledger.unread is not None:
        findings.fault("books not closed", f"the rides' last states could not be read: {ledger.unread}")


# The database by itself


def invariants(records: Records, findings: Findings) -> None:
    _check_doubles(records.trips, findings)
    _check_overlaps(records.trips, findings)
    live = {trip.ride_id: trip for trip in records.trips if trip.live}
    deadlines = {ride.ride_id: ride.deadline_at_ms for ride in records.rides.values()}
    for ride in records.rides.values():
        _check_ride(ride, live.get(ride.ride_id), records.now_ms, findings)
        _check_events(ride, records.events.get(ride.ride_id, ()), findings)
    for trip in records.trips_of_run():
        if trip.matched_at_ms > deadlines[trip.ride_id] + STATEMENT_GRACE_MS:
            findings.fault("matched after its deadline", f"ride {trip.ride_id}, trip {trip.trip_id}")


def _check_doubles(trips: Sequence[TripRow], findings: Findings) -> None:
    alive = [trip for trip in trips if trip.live]
    for slot, count in Counter((trip.driver_id, trip.live_slot) for trip in alive).items():
        if count > 1:
            findings.fault("driver doubled", f"driver {slot[0]} has {count} live trips in slot {slot[1]}")
    for ride_id, count in Counter(trip.ride_id for trip in alive).items():
        if count > 1:
            findings.fault("ride doubled", f"ride {ride_id} has {count} live trips")


def _check_overlaps(trips: Sequence[TripRow], findings: Findings) -> None:
    """A driver's trips in the slot `now`, each from when it took it to its end, must follow one another."""
    by_driver: dict[str, list[TripRow]] = defaultdict(list)
    for trip in trips:
        if trip.now_since_ms is not None:
            by_driver[trip.driver_id].append(trip)
    for driver_id, taken in by_driver.items():
        taken.sort(key=lambda trip: (trip.now_since_ms or 0, trip.trip_id))
        for earlier, later in pairwise(taken):
            if earlier.ended_at_ms is None or earlier.ended_at_ms > (later.now_since_ms or 0):
                findings.fault("trips overlap", f"driver {driver_id}: {earlier.trip_id} and {later.trip_id}")


def _check_ride(ride: RideRow, live: TripRow | None, now_ms: int, findings: Findings) -> None:
    if ride.state in _WITH_TRIP and (live is None or live.trip_id != ride.current_trip_id):
        findings.fault("ride without its trip", f"ride {ride.ride_id} is {ride.state}")
    if ride.state not in _WITH_TRIP and live is not None:
        findings.fault(
            "live trip of a ride that has none", f"ride {ride.ride_id} is {ride.state}, {live.trip_id} lives"
        )
    if ride.state == RideState.SEARCHING and ride.deadline_at_ms + OVERDUE_GRACE_MS < now_ms:
        findings.fault("overdue", f"ride {ride.ride_id} searches {now_ms - ride.deadline_at_ms} ms past its deadline")


def _check_events(ride: RideRow, events: Sequence[EventRow], findings: Findings) -> None:
    """One event a version, from 1 to the ride's, the last with the ride's state."""
    versions = sorted(event.version for event in events)
    if versions != list(range(1, ride.version + 1)):
        findings.fault("events missing", f"ride {ride.ride_id} at version {ride.version} has events {versions}")
    elif max(events, key=lambda event: event.version).state != ride.state:
        findings.fault("last event differs", f"ride {ride.ride_id} is {ride.state}")
    findings.notes["events not yet announced"] += sum(1 for event in events if event.pending)


# The database against the clients


def compare(records: Records, ledger: Ledger, findings: Findings) -> None:
    for ride_id, request in ledger.acknowledged_rides.items():  # P2
        if ride_id not in records.rides:
            findings.fault("ride lost", f"ride {ride_id} was acknowledged to {request.client_id} and does not stand")
    for ride in records.rides.values():
        _check_request(ride, ledger, findings)
        _check_last_state(ride, ledger, findings)
    _check_trips(records.trips_of_run(), ledger, findings)
    _check_clients(ledger, findings)


def _check_request(ride: RideRow, ledger: Ledger, findings: Findings) -> None:
    """P3: every ride goes back to one request, and that request to this ride."""
    request = ledger.requests.get(ride.idempotency_key or "")
    if request is None:
        findings.fault("ride nobody asked for", f"ride {ride.ride_id} with key {ride.idempotency_key!r}")
    elif request.ride_id is not None and request.ride_id != ride.ride_id:
        findings.fault("two rides for one key", f"{ride.ride_id} and {request.ride_id} for key {request.key}")
    elif request.refusal is not None:
        findings.fault("refused and yet taken", f"ride {ride.ride_id}, refused with {request.refusal}")
    elif request.unknown is not None:
        findings.notes["rides taken without an answer"] += 1


def _check_last_state(ride: RideRow, ledger: Ledger, findings: Findings) -> None:
    seen = ledger.last_state.get(ride.ride_id)
    if seen is None:
        return
    if seen.version > ride.version or (seen.version == ride.version and seen.state != ride.state):
        told = f"{seen.state} at version {seen.version}"
        findings.fault("state differs", f"ride {ride.ride_id} is {ride.state} at {ride.version}, clients read {told}")
    elif seen.version < ride.version:
        findings.notes["rides changed after they were read"] += 1


def _check_trips(trips: Sequence[TripRow], ledger: Ledger, findings: Findings) -> None:
    standing = {trip.trip_id: trip for trip in trips}
    for trip_id, seen in ledger.trips.items():
        trip = standing.get(trip_id)
        if trip is None:
            if seen.ride_id in ledger.acknowledged_rides:
                findings.fault("trip lost", f"{trip_id} of ride {seen.ride_id} was told and does not stand")
            continue
        if (trip.ride_id, trip.driver_id) != (seen.ride_id, seen.driver_id):
            findings.fault("trip differs", f"{trip_id} was told for {seen.ride_id} with {seen.driver_id}")
        if seen.completed_at_s is not None and trip.state != TripState.COMPLETED:
            findings.fault("completion lost", f"{trip_id} is {trip.state}")
        if seen.started_at_s is not None and trip.state not in _CARRIED:
            findings.fault("start lost", f"{trip_id} is {trip.state}")
    for trip in trips:
        if trip.trip_id not in ledger.trips:
            findings.fault("trip nobody heard of", f"{trip.trip_id} of ride {trip.ride_id}")
    findings.notes["trips their driver was not told of"] += sum(
        1 for trip in trips if trip.trip_id in ledger.trips and ledger.trips[trip.trip_id].told_at_s is None
    )


# Reading it


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
