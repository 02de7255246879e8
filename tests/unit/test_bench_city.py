"""A measured city: what its drivers say and when, how its highest load is found, and that a small one runs."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.schema import AcceptFrame, AckFrame, PositionFrame, UpFrame
from benchmarks import bench
from benchmarks.audit import Findings, invariants
from benchmarks.audit_rows import EventRow, Records, RideRow, TripRow
from benchmarks.city_agenda import Agenda
from benchmarks.city_audit import _match_s, check_followed, check_told, ledger_of
from benchmarks.city_driver import (
    ACK_HEAD,
    BIT,
    DownPoint,
    DownRide,
    Driver,
    Job,
    command_frame,
    seq_of,
)
from benchmarks.city_fleet import Fleet
from benchmarks.city_ledger import Asked, Seen, Told, packed, unpacked
from benchmarks.city_measure import Stretch
from benchmarks.city_options import CLIENT, CityOptions, Step
from benchmarks.city_places import in_turn, places_of
from benchmarks.city_profile import lines_of
from benchmarks.city_search import NEAR, Search
from benchmarks.city_tally import LATENCY_S_MAX, Latency, Tally

_up: Any = msgspec.msgpack.Decoder(UpFrame)


def payload(frame: bytes) -> Any:
    """A short masked frame's payload, as the service decodes it."""
    assert frame[0] == 0x82
    assert frame[1] == 0x80 | len(frame) - 6
    assert frame[2:6] == bytes(4)
    return _up.decode(frame[6:])


# What drivers say


def test_a_position_is_the_frame_that_the_service_reads() -> None:
    driver = Driver("d1", 40.5, -73.25, is_timed=False)
    for seq in (1, 2):
        assert payload(driver.position(0.0)) == PositionFrame(seq=seq, lat=40.5, lon=-73.25)


@pytest.mark.parametrize("seq", [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**31])
def test_an_acknowledgement_is_known_by_its_head_and_read_whatever_its_size(seq: int) -> None:
    data = msgspec.msgpack.encode(AckFrame(seq))
    assert data.startswith(ACK_HEAD)
    assert seq_of(data) == seq


def test_a_command_is_the_frame_that_the_service_reads() -> None:
    assert payload(command_frame("accept", "t_1", 7)) == AcceptFrame("t_1", ref=7)


def test_a_driver_is_at_the_pickup_when_it_arrives_and_at_the_destination_when_it_completes() -> None:
    ride = DownRide("r_1", DownPoint(1.0, 2.0), DownPoint(3.0, 4.0))
    job = Job(ride, "t_1", 20.0, 0.0, 0.0)
    assert job.place(50.0) == (0.0, 0.0)  # not accepted yet
    job.began_s = 100.0
    assert job.place(100.0 + 3.0) == pytest.approx((0.5, 1.0))
    assert job.place(job.due_s("arrive")) == job.place(job.due_s("start")) == pytest.approx((1.0, 2.0))
    assert job.place(job.due_s("complete")) == pytest.approx((3.0, 4.0))
    assert job.place(1000.0) == pytest.approx((3.0, 4.0))
    assert job.due_s("complete") == 120.0


def test_what_is_due_is_called_in_its_order_and_once() -> None:
    called: list[float] = []
    agenda = Agenda()
    for due_s in (3.0, 1.0, 2.0):
        agenda.add(due_s, called.append)
    agenda.run(2.0)
    assert called == [1.0, 2.0]
    agenda.run(5.0)
    assert called == [1.0, 2.0, 3.0]
    assert not len(agenda)


def test_places_are_the_same_for_the_same_seed_and_never_end() -> None:
    places = places_of(3, 5, None)
    assert places == places_of(3, 5, None)
    assert places != places_of(4, 5, None)
    turns = in_turn(places.wishes[:2])
    assert [next(turns) for _ in range(3)] == [*places.wishes[:2], places.wishes[0]]


def test_a_recorded_hour_lends_its_places(tmp_path: Path) -> None:
    path = tmp_path / "rides.csv"
    path.write_text(
        "requested_at,pickup_lat,pickup_lon,dropoff_lat,dropoff_lon,seats\n"
        "0,40.75,-73.98,40.76,-73.97,1\n9,40.74,-73.99,40.70,-74.00,2\n9,0,0,40.70,-74.00,2\n"
    )
    places = places_of(1, 4, str(path))
    assert {wish.pickup.lat for wish in places.wishes} == {40.75, 40.74}
    assert len(places.starts) == 4


# How the highest load is found


def found_by(limit: float, most: int = 30) -> Search:
    """A city that stands loads up to `limit`, and whose use of the machine grows with them."""
    search = Search()
    for _ in range(most):
        if search.is_over:
            break
        factor = search.next()
        search.note(factor, is_met=factor <= limit, busy_share=0.9 * factor / max(limit, 1e-9))
    return search


@pytest.mark.parametrize("limit", [0.03, 0.2, 0.26, 0.5, 0.97, 1.0, 2.7])
def test_the_search_ends_just_below_what_is_stood(limit: float) -> None:
    search = found_by(limit)
    assert search.is_over
    assert search.met <= limit
    assert search.missed / search.met <= NEAR


def test_the_search_needs_few_tries_where_use_grows_with_load() -> None:
    assert found_by(0.5, most=5).met > 0.4


def test_the_whole_load_is_tried_where_it_is_near() -> None:
    assert found_by(1.05).held == 1.0


def test_what_is_held_is_below_the_best_try() -> None:
    search = found_by(0.5)
    assert 0.8 * search.met < search.held < search.met


def test_a_city_that_stands_nothing_ends_the_search() -> None:
    search = found_by(0.0)
    assert search.is_over
    assert search.met == 0.0


def test_a_load_missed_below_what_was_met_is_believed() -> None:
    search = Search()
    search.note(0.4, is_met=True, busy_share=0.5)
    search.note(0.3, is_met=False, busy_share=0.5)
    assert search.met == 0.0
    assert search.next() < 0.3


# What it came to


def test_a_ride_never_offered_counts_as_the_latest() -> None:
    tally = Tally(1.0, 100.0, 10.0, rides=2, limit_s=1.25)
    tally.offered(101.0, 101.5)
    assert tally.late == 0
    tally.never_offered(102.0)
    assert tally.latency("request_to_offer").at(99.0) == pytest.approx(LATENCY_S_MAX, rel=0.01)
    tally.offered(101.0, 103.0)
    assert tally.late == 1
    assert json.dumps(tally.as_json())


def test_a_stretch_in_which_no_position_was_seen_applied_is_missed() -> None:
    latencies = {"request_to_offer": {"p99_s": 0.5}, "position_to_applied": {"p99_s": 0.1}}
    figures: dict[str, Any] = {"given_up": False, "counts": {"asked": 1, "acknowledged": 1}, "latencies": latencies}
    assert Stretch(Step(1.0, 1.0, (1.0, 2.0)), figures, {}).misses(1.25) == []
    del latencies["position_to_applied"]
    assert Stretch(Step(1.0, 1.0, (1.0, 2.0)), figures, {}).misses(1.25) == ["no position was seen applied"]


def test_a_position_that_no_socket_carried_does_not_count_as_sent() -> None:
    options = CityOptions(secret="", drivers=2)
    drivers = [Driver(f"d{number}", 40.0, -74.0, is_timed=False) for number in range(2)]
    fleet = Fleet(options, drivers, Agenda(), Seen(), lambda ride_id, now_s: None)
    assert fleet.say_positions(4, lambda number: 0.0, 0, 1.0) == 0
    assert [driver.seq for driver in drivers] == [0, 0]


def test_no_latency_at_all_is_nought() -> None:
    assert Latency().as_json()["p99_s"] == 0.0


def test_a_profile_counts_functions_by_themselves_and_with_what_they_called() -> None:
    lines = lines_of(
        [
            "main (/x/app.py:1);work (/x/y/job.py:7) 3",
            "main (/x/app.py:2);work (/x/y/job.py:9) 1",
            "main (/x/app.py:2) 4",
        ]
    )
    assert sorted(lines) == [("main (x/app.py)", 0.5, 1.0), ("work (y/job.py)", 0.5, 0.5)]


# Whether anything was lost

RIDE = RideRow("r_1", CLIENT, "assigned", 3, "t_1", 1000, 61_000, "k0")
TRIP = TripRow("t_1", "r_1", "d1", "accepted", 1, "now", 1500, 1600, 1500, None, None, None, None)
EVENTS = [
    EventRow("r_1", 1, "requested", "searching", None, None, None, None, None),
    EventRow("r_1", 2, "offered", "offered", "d1", "t_1", None, "service", None),
    EventRow("r_1", 3, "matched", "assigned", "d1", "t_1", None, "driver", None),
]


def records(*, trips: list[TripRow] | None = None) -> Records:
    return Records(20_000, {"r_1": RIDE}, [TRIP] if trips is None else trips, {"r_1": EVENTS})


def seen(**changes: Any) -> Seen:
    usual: dict[str, Any] = {
        "asked": [Asked("k0", 900.0, 1, "r_1")],
        "told": [Told("t_1", "r_1", "d1", 1550.0, True, BIT["accept"])],
    }
    return Seen(**(usual | changes))


def test_what_was_seen_travels_whole() -> None:
    account = seen(followed={"r_1": ([b"{}"], True)}, errors={"x": 2}, lost_sockets=1)
    assert unpacked(packed(account)) == account


def test_the_account_becomes_the_ledger_that_the_audit_knows() -> None:
    ledger = ledger_of(seen())
    assert set(ledger.acknowledged_rides) == {"r_1"}
    assert ledger.trips["t_1"].confirmed_at_s.keys() == {"accept"}
    assert ledger.matched_rides == {"r_1"}


def test_a_trip_that_no_driver_was_told_of_is_lost() -> None:
    findings = Findings()
    check_told(records(), seen(), findings)
    assert findings.holds
    check_told(records(), seen(told=[]), findings)
    assert findings.faults == {"trip its driver was not told of": 1}


def test_a_confirmed_start_that_does_not_stand_is_lost() -> None:
    findings = Findings()
    told = Told("t_1", "r_1", "d1", 1550.0, True, BIT["accept"] | BIT["start"])
    check_told(records(), seen(told=[told]), findings)
    assert findings.faults == {"start lost": 1}


def test_who_followed_a_ride_to_its_end_has_heard_all_of_it() -> None:
    findings = Findings()
    check_followed(records(), seen(followed={"r_1": ([b"1", b"2", b"3"], True)}), findings)
    assert findings.holds
    check_followed(records(), seen(followed={"r_1": ([b"1", b"3"], True)}), findings)
    assert findings.faults == {"events unheard": 1}


def test_a_ride_never_matched_counts_with_the_longest_latency() -> None:
    asked = [Asked("k0", 900.0, 1, "r_1"), Asked("k1", 900.0, 1, "r_2"), Asked("k2", 900.0, 2, None)]
    found = _match_s(records(), seen(asked=asked))
    assert found[1].count == 2
    assert found[1].at(50.0) < 1.0 < found[1].at(99.0)
    assert found[2].at(50.0) == pytest.approx(LATENCY_S_MAX, rel=0.01)


def test_two_trips_of_one_driver_at_a_time_are_a_double() -> None:
    findings = Findings()
    other = TripRow("t_2", "r_2", "d1", "accepted", 1, "now", 1700, 1700, 1700, None, None, None, None)
    invariants(records(trips=[TRIP, other]), findings)
    assert findings.double_assignments > 0


# All of it


def test_a_small_city_runs_and_loses_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    args = parser.parse_args(["city", "--quick", "--json", "--report", str(tmp_path)])
    assert bench.run(args) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["lost"] == result["doubled"] == 0
    ours = result["ours"]
    assert ours["counts"]["acknowledged"] == ours["counts"]["offered"] == ours["counts"]["asked"] > 0
    assert ours["completed"] == ours["counts"]["asked"]
    assert {"accept", "arrive", "start", "complete", "request_to_match", "position_to_applied"} <= set(
        ours["latencies"]
    )
    assert ours["positions_unacked"] == ours["positions_unapplied"] == 0
    assert {"api", "matcher", "solver", "redis", "mariadb", "generator"} <= set(ours["cpu_s_a_ride"])
    assert {"lost", "doubled", "request_to_match_p99_s", "rides_per_s", "positions_per_s"} <= set(result)
    assert math.isfinite(result["ratios"]["load_factor"])
    assert "<svg" in (tmp_path / "index.html").read_text(encoding="utf-8")
