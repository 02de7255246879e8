"""`hexhail demo` runs a whole city on the embedded default, closes its books, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "positions_sent",
    "positions_applied",
    "rides_requested",
    "rides_acknowledged",
    "rides_matched",
    "rides_completed",
    "trips_in_database",
    "double_assignments",
    "request_to_match_p50_s",
    "request_to_match_p99_s",
}


def started(tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    """The demo with its temporary folder below `tmp_path` and all of its output in one file there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEXHAIL_")}
    with (tmp_path / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.demo", "--drivers", "60", *options],
            cwd=ROOT,
            env=environment | {"TMPDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def said(tmp_path: Path) -> str:
    return (tmp_path / "output").read_text()


def wait_until(condition: Callable[[], bool], tmp_path: Path, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, said(tmp_path)
        time.sleep(0.05)


def last_object(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(tmp_path).splitlines()[-1])
    return found


def left_behind(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=20.0)
    return [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.timeout(150)
def test_a_demo_ends_by_itself_with_books_that_agree(tmp_path: Path) -> None:
    process = started(tmp_path, "--seconds", "8", "--json", "--drain-s", "6", "--rides-per-minute", "300")
    try:
        assert process.wait(timeout=120) == 0, said(tmp_path)
    finally:
        process.kill()
    assert "Traceback" not in said(tmp_path)
    figures = last_object(tmp_path)
    assert figures.keys() >= KEYS
    assert figures["rides_matched"] > 0
    assert figures["rides_completed"] > 0
    assert figures["rides_requested"] == figures["rides_acknowledged"]
    assert 0 < figures["positions_applied"] <= figures["positions_sent"]
    assert figures["trips_in_database"] == figures["trips_in_ledger"] >= figures["rides_matched"]
    assert figures["double_assignments"] == 0
    assert figures["audit"]["holds"], figures["audit"]
    assert 0 < figures["request_to_match_p50_s"] <= figures["request_to_match_p99_s"]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.timeout(150)
def test_ctrl_c_amid_offers_closes_the_books_and_leaves_no_process(tmp_path: Path) -> None:
    process = started(tmp_path, "--json", "--offers")
    try:
        wait_until(lambda: "offered" in said(tmp_path), tmp_path)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family, "the service is a process of its own"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, said(tmp_path)
    finally:
        process.kill()
    assert left_behind(family) == []
    assert "Traceback" not in said(tmp_path)
    figures = last_object(tmp_path)
    assert figures["audit"]["holds"], figures["audit"]
    assert figures["offers"] >= figures["accepted"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux' signal at a parent's death")
@pytest.mark.timeout(150)
def test_a_killed_demo_takes_its_service_along(tmp_path: Path) -> None:
    process = started(tmp_path)
    try:
        wait_until(lambda: "serves at" in said(tmp_path), tmp_path)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait(timeout=20)
    assert left_behind(family) == []


def test_a_value_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    process = started(tmp_path, "--rides-per-minute", "nan")
    assert process.wait(timeout=30) == 2
    assert "must be finite" in said(tmp_path).splitlines()[-1]
