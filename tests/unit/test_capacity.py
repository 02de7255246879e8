"""Capacity follows from what was measured, says what was not, and the document tells the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import capacity
from benchmarks.capacity import (
    COSTS,
    Assumptions,
    Known,
    cell_of,
    costs_of,
    fleet_rows,
    limits,
    markdown,
    measured_on,
    missing,
    newest_of,
)

GIVEN = Assumptions()
COSTED = Known(
    position_us=20.0,
    replica_us=1.0,
    redis_us=4.0,
    request_us=500.0,
    database_us=300.0,
    searches_a_s=20_000.0,
    matcher_s=0.001,
    writer_s=0.002,
    index_bytes=300.0,
    redis_bytes=300.0,
    socket_bytes=30_000.0,
    process_bytes=1e8,
)


def record(subject: str, ours: Mapping[str, Any], **more: Any) -> str:
    return json.dumps({"subject": subject, "ours": ours} | more)


def test_the_document_stands_as_the_code_computes_it_from_the_results() -> None:
    text = capacity.DOCUMENT.read_text(encoding="utf-8")
    newest = newest_of(capacity.recorded())
    block = markdown(costs_of(newest), GIVEN, measured_on(newest))
    assert text == capacity.with_block(text, block), "run python -m benchmarks.capacity --write"


def test_a_cost_is_the_newest_record_of_its_subject_that_was_no_quick_look() -> None:
    lines = [
        record("memory", {"index_bytes_a_driver": 300.0}),
        record("memory", {"index_bytes_a_driver": 200.0, "socket_bytes": 9e3}),
        record("memory", {"index_bytes_a_driver": 1.0}, quick=True),
        "",
    ]
    assert costs_of(newest_of(lines)) == {"index_bytes": 200.0, "socket_bytes": 9e3}


def test_where_it_was_measured_is_told_and_that_machines_differ() -> None:
    here, there = ({"processor": name, "cores": 2, "python": "3.11.7"} for name in ("this", "that"))
    lines = [
        record("memory", {}, commit="old", machine=there),
        record("memory", {}, commit="new", machine=here),
        record("ingest", {}, commit="new", machine=here),
        record("assignment", {}, commit="new", machine=there),  # no cost is taken from it
    ]
    assert measured_on(newest_of(lines)) == [
        "`memory` at new on this, 2 cores, Python 3.11.7",
        "`ingest` at new on this, 2 cores, Python 3.11.7",
    ]
    several = newest_of([*lines, record("city", {}, commit="new", machine=there, noisy=["load_factor"])])
    assert "different machines" in measured_on(several)[-2]
    assert measured_on(several)[-1] == "too noisy to repeat: city"
    assert "different machines" in markdown(Known(), GIVEN, measured_on(several))


def test_no_results_are_no_fault_and_unreadable_ones_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "RESULTS", tmp_path / "results.jsonl")
    assert capacity.main([]) == 0
    assert "missing: hexhail bench ingest --record" in capsys.readouterr().out
    capacity.RESULTS.write_text("{half a rec", encoding="utf-8")
    assert capacity.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_was_not_measured_is_named_with_its_command_and_shown_as_unknown() -> None:
    none = Known()
    assert {line.split()[2] for line in missing(none)} == {cost.subject for cost in COSTS.values()}
    assert any("?" in row for row in fleet_rows(none, GIVEN))
    assert "hexhail bench ingest --record" in markdown(none, GIVEN)
    assert not missing(COSTED)
    assert "?" not in markdown(COSTED, GIVEN)


def test_a_cell_has_cores_for_its_positions_and_each_process_follows_all_of_them() -> None:
    cell = cell_of(40_000, COSTED, GIVEN)
    rides_per_s = 40_000 * 60 / 86_400
    own = 0.2 + rides_per_s * (500 + 5 * 50) / 1e6
    assert cell.api_processes == 3, "the sockets decide"
    assert cell.api_cores == pytest.approx(own + 3 * 0.01)
    assert cell.redis_cores == pytest.approx(0.04)
    assert cell.matcher_cores == pytest.approx(rides_per_s * 0.001 + 0.01), "it follows all positions, too"
    assert cell.api_process_bytes == pytest.approx(1e8 + 40_000 * 300 + 13_334 * 30_000)


def test_no_number_of_processes_is_given_where_following_takes_all_of_each() -> None:
    assert cell_of(10_000_000, COSTED, GIVEN).api_processes is None


def test_ten_times_the_cells_are_ten_times_everything() -> None:
    rows = {name: values for name, *values in fleet_rows(COSTED, GIVEN)}
    for name in ("API processes", "Redis servers", "database primaries of 8 cores"):
        million, ten_million = (int(value.replace(",", "")) for value in rows[name][1:])
        assert ten_million == 10 * million, name


def test_what_is_full_first_stands_first() -> None:
    found = limits(COSTED, GIVEN)
    assert [each.drivers for each in found] == sorted(each.drivers or 0.0 for each in found)
    assert found[0].what == "an API process's sockets"


def test_a_document_without_its_markers_is_not_written() -> None:
    with pytest.raises(ValueError, match="capacity: begin"):
        capacity.with_block("nothing here", "block")
