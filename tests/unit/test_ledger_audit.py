"""The audit passes a sound run and names every fault that is planted in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from api import schema
from benchmarks.audit import DOUBLES, Findings, audit, audit_without_database, read_records
from benchmarks.ledger import Ledger, percentile
from matcher import tables

T0 = 1_700_000_000_000
CLIENT = "run-00"
EVENTS = ["searching", "assigned", "arrived", "in_progress", "completed"]


class World:
    """A finished run: what the database says, as rows that a test may spoil, and what the clients saw.

    Ride r1 was completed by driver d1, ride r2 by d1 afterwards, ride r3 expired,
    ride r4 is in progress with d2.
    """

    def __init__(self) -> None:
        self.rides: list[dict[str, Any]] = []
        self.trips: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.ledger = Ledger()
        self._completed("r1", "t1", "d1", T0 + 1_000)
        self._completed("r2", "t2", "d1", T0 + 40_000)
        self._add_ride("r3", "expired", 2, None)
        self._add_events("r3", ["searching", "expired"], None, None)
        self._add_ride("r4", "in_progress", 4, "t4")
        self._add_trip("t4", "r4", "d2", "in_progress", T0 + 2_000, None)
        self._add_events("r4", EVENTS[:4], "t4", "d2")
        for number, ride in enumerate(self.rides):
            self._seen(number, ride)

    def ride(self, ride_id: str) -> dict[str, Any]:
        return next(row for row in self.rides if row["ride_id"] == ride_id)

    def trip(self, trip_id: str) -> dict[str, Any]:
        return next(row for row in self.trips if row["trip_id"] == trip_id)

    def _completed(self, ride_id: str, trip_id: str, driver_id: str, at_ms: int) -> None:
        self._add_ride(ride_id, "completed", 5, trip_id)
        self._add_trip(trip_id, ride_id, driver_id, "completed", at_ms, at_ms + 30_000)
        self._add_events(ride_id, EVENTS, trip_id, driver_id)

    def _add_ride(self, ride_id: str, state: str, version: int, trip_id: str | None) -> None:
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

    def _add_trip(
        self, trip_id: str, ride_id: str, driver_id: str, state: str, at_ms: int, ended_at_ms: int | None
    ) -> None:
        live = ended_at_ms is None
        row = {column.name: None for column in tables.trips.columns} | {
            "trip_id": trip_id,
            "ride_id": ride_id,
            "driver_id": driver_id,
            "state": state,
            "live": 1 if live else None,
            "live_slot": "now" if live else None,
            "matched_at_ms": at_ms,
            "now_since_ms": at_ms,
            "ended_at_ms": ended_at_ms,
        }
        self.trips.append(row)

    def _add_events(self, ride_id: str, states: list[str], trip_id: str | None, driver_id: str | None) -> None:
        for version, state in enumerate(states, start=1):
            row = {column.name: None for column in tables.ride_events.columns} | {
                "ride_id": ride_id,
                "version": version,
                "state": state,
                "type": state,
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
        shown = schema.TripOut(
            trip["trip_id"], trip["driver_id"], trip["state"], 60.0, 400.0, "", None, None, None, None
        )
    point = schema.PointOut(40.7, -73.9)
    return schema.RideOut(
        row["ride_id"], row["state"], row["version"], "m", point, point, 1, "standard", {}, "", "", None, None, shown
    )


def test_a_sound_run_has_no_faults(tmp_path: Path) -> None:
    world = World()
    findings = world.audited(tmp_path)
    assert findings.faults == {}
    assert findings.holds
    assert findings.double_assignments == 0
    assert world.ledger.needs_history() == []


def lose_ride(world: World) -> None:
    world.rides.remove(world.ride("r3"))


def lose_trip(world: World) -> None:
    world.trips.remove(world.trip("t2"))


def hide_trip(world: World) -> None:
    del world.ledger.trips["t2"]


def double_driver(world: World) -> None:
    world._add_trip("t9", "r2", "d2", "accepted", T0 + 90_000, None)


def double_ride(world: World) -> None:
    world._add_trip("t9", "r4", "d3", "accepted", T0 + 90_000, None)


def overlap_trips(world: World) -> None:
    world.trip("t2")["now_since_ms"] = world.trip("t1")["ended_at_ms"] - 1


def two_rides_for_a_key(world: World) -> None:
    world._add_ride("r9", "searching", 1, None)
    world.rides[-1]["idempotency_key"] = "key-r1"
    world._add_events("r9", ["searching"], None, None)


def ride_nobody_wanted(world: World) -> None:
    world._add_ride("r9", "cancelled", 1, None)
    world._add_events("r9", ["cancelled"], None, None)


def refused_and_taken(world: World) -> None:
    request = world.ledger.requests["key-r3"]
    request.ride_id, request.refusal = None, "overloaded"


def state_rolled_back(world: World) -> None:
    world.ride("r1").update(state="in_progress", version=4)


def completion_undone(world: World) -> None:
    world.trip("t1")["state"] = "cancelled"


def trip_given_to_another(world: World) -> None:
    world.trip("t1")["driver_id"] = "d7"


def event_lost(world: World) -> None:
    world.events.remove(next(event for event in world.events if (event["ride_id"], event["version"]) == ("r1", 3)))


def event_of_another_state(world: World) -> None:
    next(event for event in world.events if (event["ride_id"], event["version"]) == ("r1", 5))["state"] = "cancelled"


def trip_outlives_its_ride(world: World) -> None:
    world.trip("t2").update(live=1, live_slot="now", ended_at_ms=None)


def ride_without_trip(world: World) -> None:
    world.ride("r4")["current_trip_id"] = "t1"


def matched_too_late(world: World) -> None:
    world.ride("r1")["deadline_at_ms"] = world.trip("t1")["matched_at_ms"] - 5_000


def never_expired(world: World) -> None:
    world.ride("r3").update(state="searching", version=1)
    world.events.remove(next(event for event in world.events if (event["ride_id"], event["version"]) == ("r3", 2)))
    world.ledger.last_state.pop("r3")


def completed_twice(world: World) -> None:
    world.ledger.completions["r1"].add("t2")


def carried_two(world: World) -> None:
    world.ledger.trips["t2"].started_at_s = 15.0


PLANTED: list[tuple[Callable[[World], None], str]] = [
    (lose_ride, "ride lost"),
    (lose_trip, "trip lost"),
    (hide_trip, "trip nobody heard of"),
    (double_driver, "driver doubled"),
    (double_ride, "ride doubled"),
    (overlap_trips, "trips overlap"),
    (two_rides_for_a_key, "two rides for one key"),
    (ride_nobody_wanted, "ride nobody asked for"),
    (refused_and_taken, "refused and yet taken"),
    (state_rolled_back, "state differs"),
    (completion_undone, "completion lost"),
    (trip_given_to_another, "trip differs"),
    (event_lost, "events missing"),
    (event_of_another_state, "last event differs"),
    (trip_outlives_its_ride, "live trip of a ride that has none"),
    (ride_without_trip, "ride without its trip"),
    (matched_too_late, "matched after its deadline"),
    (never_expired, "overdue"),
    (completed_twice, "doubled in the clients' eyes"),
    (carried_two, "doubled in the clients' eyes"),
]


@pytest.mark.parametrize(("plant", "name"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_fault_is_found(tmp_path: Path, plant: Callable[[World], None], name: str) -> None:
    world = World()
    plant(world)
    findings = world.audited(tmp_path)
    assert findings.faults[name] >= 1, findings.examples
    assert not findings.holds
    assert (findings.double_assignments > 0) == any(findings.faults[each] for each in DOUBLES)


def test_what_a_request_without_an_answer_made_is_no_fault(tmp_path: Path) -> None:
    world = World()
    world.ledger.last_state.pop("r3")
    request = world.ledger.requests["key-r3"]
    request.ride_id, request.unknown = None, "TimeoutError"
    findings = world.audited(tmp_path)
    assert findings.holds
    assert findings.notes["rides taken without an answer"] == 1


def test_other_clients_rides_are_not_ours_to_judge(tmp_path: Path) -> None:
    world = World()
    world._add_ride("r9", "searching", 7, None)
    world.rides[-1]["client_id"] = "another"
    assert world.audited(tmp_path).holds


def test_a_driver_doubled_with_a_trip_of_another_client_is_found(tmp_path: Path) -> None:
    world = World()
    world._add_ride("r9", "assigned", 2, "t9")
    world.rides[-1]["client_id"] = "another"
    world._add_trip("t9", "r9", "d2", "accepted", T0 + 50_000, None)
    assert world.audited(tmp_path).faults["driver doubled"] == 1


def test_the_audit_opens_a_database_file_for_reading_only(tmp_path: Path) -> None:
    with pytest.raises(sa.exc.OperationalError):
        read_records(f"sqlite+aiosqlite:///{tmp_path / 'absent.db'}", ["run-00"])
    assert list(tmp_path.iterdir()) == []


def test_without_a_database_a_ride_that_is_not_listed_is_lost() -> None:
    world = World()
    assert audit_without_database(world.ledger).holds
    world.ledger.last_state.pop("r3")
    assert audit_without_database(world.ledger).faults == {"ride lost": 1}


def test_a_ride_with_more_versions_than_one_pairing_makes_needs_its_history() -> None:
    world = World()
    row = world.ride("r1") | {"version": 7}
    world.ledger.read_at_end(shown_ride(row, world.trip("t1")))
    assert world.ledger.needs_history() == ["r1"]


def test_request_to_match_runs_from_the_first_sending_to_the_first_word_of_a_driver() -> None:
    ledger = World().ledger
    assert ledger.request_to_match_s() == pytest.approx([2.0, 2.0, 2.0])
    assert ledger.request_to_answer_s() == pytest.approx([0.1] * 4)


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.01) == 7.0
    assert percentile([], 0.5) is None
