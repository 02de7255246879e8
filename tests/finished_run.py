"""A finished run for the audit: rows as the database has them, and the ledger of those who took part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from api import schema
from benchmarks.audit import Findings, audit
from benchmarks.audit_rows import read_records
from benchmarks.ledger import Ledger
from matcher import tables

T0 = 1_700_000_000_000
CLIENT = "run-00"
#: The types of events, and the states that they lead to.
STATES = {
    "requested": "searching",
    "offered": "offered",
    "declined": "searching",
    "assigned": "assigned",
    "arrived": "arrived",
    "started": "in_progress",
    "completed": "completed",
    "expired": "expired",
}
EVENTS = ["requested", "assigned", "arrived", "started", "completed"]


class World:
    """A finished run: what the database says, as rows that a test may spoil, and what the clients saw.

    Ride r1 was completed by driver d1, ride r2 by d1 afterwards, ride r3 expired,
    ride r4 is in progress with d2. Ride r5 was declined by d3 and completed by d4,
    and its rider followed it.
    """

    def __init__(self) -> None:
        self.rides: list[dict[str, Any]] = []
        self.trips: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.ledger = Ledger()
        self._completed("r1", "t1", "d1", T0 + 1_000)
        self._completed("r2", "t2", "d1", T0 + 40_000)
        self.add_ride("r3", "expired", 2, None)
        self.add_events("r3", ["requested", "expired"], None, None)
        self.add_ride("r4", "in_progress", 4, "t4")
        self.add_trip("t4", "r4", "d2", "in_progress", T0 + 2_000, None)
        self.add_events("r4", EVENTS[:4], "t4", "d2")
        for number, ride in enumerate(self.rides):
            self._seen(number, ride)
        self._offer_twice()
        self._follow("r5")

    def ride(self, ride_id: str) -> dict[str, Any]:
        return next(row for row in self.rides if row["ride_id"] == ride_id)

    def trip(self, trip_id: str) -> dict[str, Any]:
        return next(row for row in self.trips if row["trip_id"] == trip_id)

    def event(self, ride_id: str, version: int) -> dict[str, Any]:
        return next(row for row in self.events if (row["ride_id"], row["version"]) == (ride_id, version))

    def _completed(self, ride_id: str, trip_id: str, driver_id: str, at_ms: int) -> None:
        self.add_ride(ride_id, "completed", 5, trip_id)
        self.add_trip(trip_id, ride_id, driver_id, "completed", at_ms, at_ms + 30_000)
        self.add_events(ride_id, EVENTS, trip_id, driver_id)

    def _offer_twice(self) -> None:
        self.add_ride("r5", "completed", 8, "t6")
        self.add_trip("t5", "r5", "d3", "declined", T0 + 3_000, T0 + 5_000, end_code="declined")
        self.add_trip("t6", "r5", "d4", "completed", T0 + 6_000, T0 + 50_000, accepted_after_ms=2_000)
        self.add_events("r5", ["requested", "offered", "declined"], "t5", "d3")
        self.add_events("r5", ["offered", "assigned", "arrived", "started", "completed"], "t6", "d4", after=3)
        ride, ledger = self.ride("r5"), self.ledger
        ledger.asked(ride["idempotency_key"], CLIENT, 500.0)
        ledger.acknowledged(ride["idempotency_key"], "r5", 500.1)
        for trip_id, offered_at_s in (("t5", 503.0), ("t6", 506.0)):
            trip = self.trip(trip_id) | {"state": "offered", "accepted_at_ms": None, "ended_at_ms": None}
            ledger.offered(shown_ride(ride, trip), trip["driver_id"], offered_at_s)
        for verb, trip_id, at_s in (
            ("decline", "t5", 505.0),
            ("accept", "t6", 508.0),
            ("arrive", "t6", 510.0),
            ("start", "t6", 511.0),
            ("complete", "t6", 550.0),
        ):
            ledger.confirmed(verb, "r5", trip_id, at_s)
        ledger.read_at_end(shown_ride(ride, self.trip("t6")))

    def _follow(self, ride_id: str) -> None:
        """What the rider of this ride read, and what its history told at the end."""
        events = [shown_event(row) for row in self.events if row["ride_id"] == ride_id]
        for event in events:
            self.ledger.heard_event(event, 500.0 + event.version)
        self.ledger.follow_ended(ride_id)
        self.ledger.read_history(events)

    def add_ride(self, ride_id: str, state: str, version: int, trip_id: str | None) -> None:
        row = {column.name: None for column in tables.rides.columns} | {
            "ride_id": ride_id,
            "client_id": CLIENT,
            "market": "m",
            "state": state,
            "version": version,
            "current_trip_id": trip_id,
            "requested_at_ms": T0,
            "deadline_at_ms": T0 + 600_000,
            "idempotency_key": f"key-{ride_id}",
        }
        self.rides.append(row)

    def add_trip(
        self,
        trip_id: str,
        ride_id: str,
        driver_id: str,
        state: str,
        at_ms: int,
        ended_at_ms: int | None,
        *,
        accepted_after_ms: int = 0,
        end_code: str | None = None,
    ) -> None:
        live = ended_at_ms is None
        accepted_at_ms = None if state in ("offered", "declined", "timed_out") else at_ms + accepted_after_ms
        under_way = state in ("in_progress", "completed")
        row = {column.name: None for column in tables.trips.columns} | {
            "trip_id": trip_id,
            "ride_id": ride_id,
            "driver_id": driver_id,
            "state": state,
            "live": 1 if live else None,
            "live_slot": "now" if live else None,
            "matched_at_ms": at_ms,
            "now_since_ms": at_ms,
            "accepted_at_ms": accepted_at_ms,
            "arrived_at_ms": at_ms + 3_000 if under_way else None,
            "started_at_ms": at_ms + 4_000 if under_way else None,
            "ended_at_ms": ended_at_ms,
            "end_code": end_code,
        }
        self.trips.append(row)

    def add_events(
        self, ride_id: str, types: list[str], trip_id: str | None, driver_id: str | None, *, after: int = 0
    ) -> None:
        for version, kind in enumerate(types, start=after + 1):
            row = {column.name: None for column in tables.ride_events.columns} | {
                "ride_id": ride_id,
                "version": version,
                "type": kind,
                "state": STATES[kind],
                "code": kind if kind in ("declined", "completed") else None,
                "trip_id": trip_id if version > 1 else None,
                "driver_id": driver_id if version > 1 else None,
            }
            self.events.append(row)

    def _seen(self, number: int, row: dict[str, Any]) -> None:
        """What the clients wrote down while this ride came about."""
        at_s = float(number * 100)
        key = row["idempotency_key"]
        self.ledger.asked(key, CLIENT, at_s)
        self.ledger.acknowledged(key, row["ride_id"], at_s + 0.1)
        trip = next((each for each in self.trips if each["ride_id"] == row["ride_id"]), None)
        shown = shown_ride(row, trip)
        if trip is not None:
            self.ledger.told(shown, trip["driver_id"], at_s + 2.0)
            self.ledger.confirmed("start", row["ride_id"], trip["trip_id"], at_s + 10.0)
            if trip["state"] == "completed":
                self.ledger.confirmed("complete", row["ride_id"], trip["trip_id"], at_s + 20.0)
        self.ledger.read_at_end(shown)

    def audited(self, folder: Path) -> Findings:
        """Writes the rows into a database of our columns, without the keys that would refuse the faults."""
        path = folder / "spoiled.db"
        path.unlink(missing_ok=True)
        engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
        bare = sa.MetaData()
        with engine.begin() as connection:
            for table, rows in (
                (tables.rides, self.rides),
                (tables.trips, self.trips),
                (tables.ride_events, self.events),
            ):
                copy = sa.Table(table.name, bare, *(sa.Column(each.name, each.type) for each in table.columns))
                copy.create(connection)
                connection.execute(copy.insert(), rows)
        engine.dispose()
        return audit(read_records(f"sqlite+aiosqlite:///{path}", self.ledger.client_ids), self.ledger)


def shown_ride(row: dict[str, Any], trip: dict[str, Any] | None) -> schema.RideOut:
    """The ride as the API would show it."""
    shown = None
    if trip is not None:
        at = {name: schema.rfc3339_or_none(trip[f"{name}_ms"]) for name in ("accepted_at", "arrived_at", "started_at")}
        shown = schema.TripOut(
            trip["trip_id"], trip["driver_id"], trip["state"], 60.0, 400.0, schema.rfc3339(trip["matched_at_ms"]),
            at["arrived_at"], at["started_at"], schema.rfc3339_or_none(trip["ended_at_ms"]), None,
            slot=trip["live_slot"], end_code=trip["end_code"], accepted_at=at["accepted_at"],
        )  # fmt: skip
    point = schema.PointOut(40.7, -73.9)
    return schema.RideOut(
        row["ride_id"], row["state"], row["version"], "m", point, point, 1, "standard", {}, "", "", None, None, shown
    )


def shown_event(row: dict[str, Any]) -> schema.EventOut:
    return schema.EventOut(
        row["ride_id"], row["version"], row["type"], row["state"], row["driver_id"], row["trip_id"], row["reason"],
        at="", code=row["code"], actor=row["actor"],
    )  # fmt: skip


def welcome(driver_id: str, at_ms: int, *rides: schema.RideOut) -> schema.WelcomeFrame:
    return schema.WelcomeFrame(driver_id, "m", 1, "online", list(rides), 4.0, 5.0, now=schema.rfc3339(at_ms))
