"""The audit passes a sound run and names every fault that is planted in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.audit import DOUBLES, TOLD_GRACE_MS, audit_without_database
from benchmarks.audit_rows import read_records
from benchmarks.ledger import percentile
from tests.finished_run import T0, World, shown_ride, welcome


def test_a_sound_run_has_no_faults(tmp_path: Path) -> None:
    world = World()
    findings = world.audited(tmp_path)
    assert findings.faults == {}
    assert findings.holds
    assert findings.double_assignments == 0
    assert world.ledger.needs_history() == ["r5"]


def lose_ride(world: World) -> None:
    world.rides.remove(world.ride("r3"))


def lose_trip(world: World) -> None:
    world.trips.remove(world.trip("t2"))


def hide_trip(world: World) -> None:
    del world.ledger.trips["t2"]


def double_driver(world: World) -> None:
    world.add_trip("t9", "r2", "d2", "accepted", T0 + 90_000, None)


def double_ride(world: World) -> None:
    world.add_trip("t9", "r4", "d3", "accepted", T0 + 90_000, None)


def overlap_trips(world: World) -> None:
    world.trip("t2")["now_since_ms"] = world.trip("t1")["ended_at_ms"] - 1


def two_rides_for_a_key(world: World) -> None:
    world.add_ride("r9", "searching", 1, None)
    world.rides[-1]["idempotency_key"] = "key-r1"
    world.add_events("r9", ["requested"], None, None)


def ride_nobody_wanted(world: World) -> None:
    world.add_ride("r9", "searching", 1, None)
    world.add_events("r9", ["requested"], None, None)


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
    world.events.remove(world.event("r1", 3))


def event_of_another_state(world: World) -> None:
    world.event("r1", 5)["state"] = "cancelled"


def trip_outlives_its_ride(world: World) -> None:
    world.trip("t2").update(live=1, live_slot="now", ended_at_ms=None)


def ride_without_trip(world: World) -> None:
    world.ride("r4")["current_trip_id"] = "t1"


def matched_too_late(world: World) -> None:
    world.ride("r1")["deadline_at_ms"] = world.trip("t1")["matched_at_ms"] - 5_000


def never_expired(world: World) -> None:
    world.ride("r3").update(state="searching", version=1)
    world.events.remove(world.event("r3", 2))
    world.ledger.last_state.pop("r3")


def completed_twice(world: World) -> None:
    world.ledger.completions["r1"].add("t2")


def carried_two(world: World) -> None:
    world.ledger.trips["t2"].confirmed_at_s["start"] = 15.0


def welcomed_with_two(world: World) -> None:
    rides = [shown_ride(world.ride("r4"), world.trip("t4") | {"trip_id": each}) for each in ("t4", "t9")]
    world.ledger.connected("d2", welcome("d2", T0, *rides), 0.0)


def told_of_a_past_trip(world: World) -> None:
    for trip_id in ("t4", "t9", "t4"):
        world.ledger.told(shown_ride(world.ride("r4"), world.trip("t4") | {"trip_id": trip_id}), "d2", 1.0)
    del world.ledger.trips["t9"]


def next_without_now(world: World) -> None:
    world.add_ride("r9", "offered", 2, "t9")
    world.rides[-1]["client_id"] = "another"
    world.add_trip("t9", "r9", "d5", "offered", T0 + 50_000, None)
    world.trips[-1]["live_slot"] = "next"


def given_to_who_refused(world: World) -> None:
    world.trip("t6")["driver_id"] = "d3"


def accepted_though_it_ended(world: World) -> None:
    world.trip("t5")["accepted_at_ms"] = T0 + 4_000


def accepted_after_its_end_was_told(world: World) -> None:
    world.ledger.trips["t6"].told_end = "timed_out"


def accepted_after_its_deadline(world: World) -> None:
    world.trip("t6")["accepted_at_ms"] = T0 + 602_000
    world.trip("t6")["ended_at_ms"] = T0 + 603_000


def acceptance_undone(world: World) -> None:
    world.trip("t6")["accepted_at_ms"] = None


def refusal_undone(world: World) -> None:
    world.trip("t5")["state"] = "timed_out"


def start_undone(world: World) -> None:
    world.trip("t4")["started_at_ms"] = None


def event_out_of_turn(world: World) -> None:
    world.event("r5", 5)["type"] = "promoted"


def event_of_another_trip(world: World) -> None:
    world.event("r5", 5)["trip_id"] = "t5"


def event_skipped(world: World) -> None:
    del world.ledger.followed["r5"].events[2]


def event_swapped(world: World) -> None:
    events = world.ledger.followed["r5"].events
    events[2], events[3] = events[3], events[2]


def stream_ended_early(world: World) -> None:
    world.ledger.followed["r5"].events.pop()


def told_of_another_driver(world: World) -> None:
    world.event("r5", 8)["driver_id"] = "d9"


def told_what_does_not_stand(world: World) -> None:
    world.event("r5", 8)["ride_id"] = "r9"


def never_told(world: World) -> None:
    """Its driver was connected all along."""
    world.ledger.trips["t4"].told_at_s = None
    world.ledger.connected("d2", welcome("d2", T0), 0.0)
    world.ledger.disconnected("d2", 10 * TOLD_GRACE_MS / 1000)


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
    (welcomed_with_two, "doubled in the clients' eyes"),
    (told_of_a_past_trip, "told of a past trip"),
    (next_without_now, "next without a present trip"),
    (given_to_who_refused, "given to who refused it"),
    (accepted_though_it_ended, "accepted after its end"),
    (accepted_after_its_end_was_told, "accepted after its end"),
    (accepted_after_its_deadline, "accepted after its deadline"),
    (acceptance_undone, "acceptance lost"),
    (refusal_undone, "refusal lost"),
    (start_undone, "start lost"),
    (event_out_of_turn, "event out of turn"),
    (event_of_another_trip, "event out of turn"),
    (event_skipped, "events out of order"),
    (event_swapped, "events out of order"),
    (stream_ended_early, "final event unheard"),
    (told_of_another_driver, "event differs"),
    (told_what_does_not_stand, "event lost"),
    (never_told, "trip its driver was not told of"),
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


def test_a_trip_that_an_operator_gave_to_who_had_refused_it_is_no_fault(tmp_path: Path) -> None:
    world = World()
    world.trip("t6")["driver_id"] = "d3"
    world.ledger.trips["t6"].driver_id = "d3"
    for row in world.events:
        if row["trip_id"] == "t6":
            row["driver_id"] = "d3"
    world.event("r5", 4)["code"] = "operator_assigned"
    world.ledger.followed.clear()
    assert world.audited(tmp_path).holds


@pytest.mark.parametrize("stood_s", [None, 0.9 * TOLD_GRACE_MS / 1000])
def test_a_driver_who_was_hardly_connected_need_not_have_been_told(tmp_path: Path, stood_s: float | None) -> None:
    world = World()
    world.ledger.trips["t4"].told_at_s = None
    if stood_s is not None:
        for at_s in (0.0, 1_000.0):  # twice, but never for long
            world.ledger.connected("d2", welcome("d2", T0 + round(at_s * 1000)), at_s)
            world.ledger.disconnected("d2", at_s + stood_s)
    findings = world.audited(tmp_path)
    assert findings.holds, findings.examples
    assert findings.notes["trips their driver was not told of"] == 1


def test_a_stream_that_the_runs_end_cut_is_no_fault(tmp_path: Path) -> None:
    world = World()
    followed = world.ledger.followed["r5"]
    followed.ended = False
    del followed.events[4:]
    assert world.audited(tmp_path).holds


@pytest.mark.parametrize("unread", ["the history", "the last change"])
def test_a_trip_that_nobody_could_have_read_of_is_no_fault(tmp_path: Path, unread: str) -> None:
    world = World()
    del world.ledger.trips["t5"]
    if unread == "the history":
        world.ledger.unread_histories.add("r5")
    else:
        row = world.ride("r5") | {"state": "searching", "version": 3}
        world.ledger.read_at_end(shown_ride(row, None))
    findings = world.audited(tmp_path)
    assert findings.holds, findings.examples
    assert findings.notes["trips of rides not read to the end"] == 1


def test_other_clients_rides_are_not_ours_to_judge(tmp_path: Path) -> None:
    world = World()
    world.add_ride("r9", "searching", 7, None)
    world.rides[-1]["client_id"] = "another"
    assert world.audited(tmp_path).holds


def test_a_driver_doubled_with_a_trip_of_another_client_is_found(tmp_path: Path) -> None:
    world = World()
    world.add_ride("r9", "assigned", 2, "t9")
    world.rides[-1]["client_id"] = "another"
    world.add_trip("t9", "r9", "d2", "accepted", T0 + 50_000, None)
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


@pytest.mark.parametrize(("more", "needs"), [(0, False), (1, True), (2, True)])
@pytest.mark.parametrize("ride_id", ["r1", "r3", "r4"])
def test_a_ride_with_more_versions_than_its_trip_explains_needs_its_history(
    ride_id: str, more: int, needs: bool
) -> None:
    world = World()
    world.ledger.last_state.clear()
    row = world.ride(ride_id)
    trip = next((each for each in world.trips if each["ride_id"] == ride_id), None)
    world.ledger.read_at_end(shown_ride(row | {"version": row["version"] + more}, trip))
    assert world.ledger.needs_history() == ([ride_id] if needs else [])


def test_a_ride_that_was_offered_once_is_explained_by_its_trip() -> None:
    world = World()
    world.ledger.last_state.clear()
    world.ledger.read_at_end(shown_ride(world.ride("r5") | {"version": 6}, world.trip("t6")))
    assert world.ledger.needs_history() == []
    world.ledger.read_at_end(shown_ride(world.ride("r5"), world.trip("t6")))
    assert world.ledger.needs_history() == ["r5"]


def test_offers_are_counted_by_what_became_of_them() -> None:
    ledger = World().ledger
    assert ledger.offer_counts() == {"accepted": 1, "declined": 1}
    ledger.trips["t5"].end_code = "offer_expired"
    assert ledger.offer_counts() == {"accepted": 1, "ran_out": 1}
    ledger.trips["t5"].end_code = "rider_cancelled"
    assert ledger.offer_counts() == {"accepted": 1, "withdrawn": 1}
    assert ledger.offer_to_accept_s() == [2.0]
    assert ledger.request_to_offer_s() == [3.0]
    assert ledger.matched_rides == {"r1", "r2", "r4", "r5"}


def test_request_to_match_runs_from_the_first_sending_to_the_first_word_of_a_driver_who_has_it() -> None:
    ledger = World().ledger
    assert sorted(ledger.request_to_match_s()) == pytest.approx([2.0, 2.0, 2.0, 8.0])
    assert ledger.request_to_answer_s() == pytest.approx([0.1] * 5)


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.01) == 7.0
    assert percentile([], 0.5) is None
