"""The frame of every measured subject: one object, honest verdicts, a gate, and one line where something is missing."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from benchmarks import bench, subject_page
from benchmarks.failures import NotMeasured
from benchmarks.memory_sockets import NotHeld
from benchmarks.quiet import Quiet, Watch
from benchmarks.rounds import NOISE_MAX
from benchmarks.tell import figure

QUIET = Quiet(0.0, 0.0, 2, 1.0, 1.0, 0.0)
PART = {
    "versions": {},
    "ours": {"cpu_us": 3.0, "latencies": {"p99_s": 0.5, "all": list(range(50))}},
    "peers": {"bare": {"cpu_us": 2.0}},
    "ratios": {"fast": 3.0, "small": 4.0},
    "noise": {"fast": 0.01, "small": float("nan")},
    "goals": {"fast": [3.0, 2.0, True], "small": [4.0, 1.0, False]},
}


class Still(Watch):
    """A machine on which nothing else happens."""

    found: Quiet | None = QUIET

    def start(self) -> None:
        pass

    def stop(self) -> Quiet | None:
        return self.found


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A subject whose measurement is known beforehand."""
    module = ModuleType("benchmarks.bench_assignment")
    module.part = PART  # type: ignore[attr-defined]
    module.configure = lambda parser: parser.add_argument("--quick", action="store_true")  # type: ignore[attr-defined]
    module.run = lambda args: dict(module.part)  # type: ignore[attr-defined]
    module.write_report = lambda folder, result: subject_page.write(folder, result, "Known")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("benchmarks.quiet.Watch", Still)
    return module


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    return bench.run(parser.parse_args(["assignment", *words]))


@pytest.mark.usefixtures("subject")
def test_the_last_line_is_one_object_and_all_else_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", "--rounds", "2") == 0
    out, err = capsys.readouterr()
    result = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (result["subject"], result["rounds"], result["goals_missed"]) == ("assignment", 2, 1)
    assert {"commit", "machine", "ours", "peers", "ratios", "quiet", "not_measured"} <= set(result)
    assert result["noise"] == {"fast": 0.01, "small": None}
    assert "met        fast: 3, goal 2 (50% better)" in err
    assert "MISSED     small: 4, goal 1 (4.0 times short)" in err


@pytest.mark.usefixtures("subject")
def test_the_gate_fails_where_a_goal_is_missed_and_only_then() -> None:
    assert run() == 0
    assert run("--gate") == bench.EXIT_GOAL_MISSED


def test_the_gate_opens_where_all_are_met(subject: Any) -> None:
    subject.part = PART | {"goals": {"fast": [3.0, 2.0, True]}}
    assert run("--gate") == 0


@pytest.mark.usefixtures("subject")
def test_a_record_is_appended_as_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.jsonl")
    run("--record")
    run("--record")
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["assignment", "assignment"]


@pytest.mark.usefixtures("subject")
def test_a_page_shows_goals_and_every_figure(tmp_path: Path) -> None:
    run("--report", str(tmp_path))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for words in ("latencies.p99_s", "50 values", "bare.cpu_us", "missed", "Nothing else kept it busy"):
        assert words in page, words


def test_a_ratio_whose_rounds_differ_is_too_noisy_to_be_judged(
    subject: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    subject.part = PART | {"noise": {"fast": 2 * NOISE_MAX}}
    run()
    said = capsys.readouterr().out
    assert "too noisy  met        fast" in said
    assert "Ask for more --rounds" in said


@pytest.mark.parametrize(
    "found",
    [
        Quiet(0.5, 0.0, 2, 1.0, 1.0, 0.0),
        Quiet(0.0, 0.3, 2, 1.0, 1.0, 0.0),
        Quiet(0.0, 0.0, 2, 1.0, 0.5, 0.0),
        Quiet(0.0, 0.0, 2, 1.0, 1.0, 0.5),
    ],
    ids=["others", "stolen", "in line", "another speed"],
)
def test_on_a_machine_that_was_busy_elsewhere_every_ratio_is_noisy(found: Quiet) -> None:
    result = bench.framed(dict(PART), found.as_json(), found.complaints())
    assert result["noisy"] == ["fast", "small"]
    assert any("The machine was too noisy" in line for line in bench.verdicts(result))


def test_a_busy_machine_does_not_spoil_what_is_not_timed() -> None:
    result = bench.framed(PART | {"is_timed": False}, {}, ["others used 1 of 2 cores"])
    assert result["noisy"] == []
    assert "is_timed" not in result


def test_a_goal_without_a_figure_is_named() -> None:
    result = bench.framed(PART | {"not_measured": ["other"]}, {}, [])
    assert any("other: not measured" in line for line in bench.verdicts(result))


def test_what_others_use_is_told_apart_from_what_is_measured() -> None:
    watch = Watch()
    watch.start()
    found = watch.stop()
    assert found is not None
    assert 0 < found.spin_share <= 1.1
    assert 0 <= found.elsewhere_cores <= (psutil.cpu_count() or 1)
    assert found.seconds > 0


def test_a_measurement_that_does_not_count_is_one_line_and_no_traceback(
    subject: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_in_vain(args: argparse.Namespace) -> dict[str, Any]:
        raise NotHeld("3 sockets were lost while they were held")

    subject.run = run_in_vain
    assert run("--gate") == bench.EXIT_UNUSABLE
    assert capsys.readouterr().err == "3 sockets were lost while they were held\n"


@pytest.mark.parametrize("module", list(bench.SUBJECTS.values()))
def test_every_fault_that_a_subject_may_end_with_is_told_in_words(module: str) -> None:
    """Its modules raise exceptions of their own only as kinds of NotMeasured, but for what is caught where it is."""
    caught = {"Incomplete", "Refused", "NoPlots", "RecordsError"}
    own = {
        name: kind
        for name, kind in vars(importlib.import_module(module)).items()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__.startswith("benchmarks.")
    }
    assert {name for name, kind in own.items() if not issubclass(kind, NotMeasured)} <= caught


def test_sigterm_ends_it_in_order_as_ctrl_c_does(subject: Any) -> None:
    ended = []

    def run_until_told(args: argparse.Namespace) -> dict[str, Any]:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            ended.append("servers")
        return dict(PART)

    subject.run = run_until_told
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert ended == ["servers"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subject.run = lambda args: pytest.fail("it was measured")
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run("--report", str(tmp_path / "file" / "page")) == bench.EXIT_UNUSABLE
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "nowhere" / "results.jsonl")
    assert run("--record") == bench.EXIT_UNUSABLE
    assert capsys.readouterr().err.count("cannot write there") == 2


def test_a_gate_does_not_open_where_nothing_was_judged(subject: Any) -> None:
    subject.part = PART | {"goals": {}, "not_measured": ["fast", "small"]}
    assert run("--gate") == bench.EXIT_GOAL_MISSED


@pytest.mark.usefixtures("subject")
def test_a_quick_look_says_that_it_is_one(capsys: pytest.CaptureFixture[str], subject: Any) -> None:
    subject.part = PART | {"quick": True}
    run()
    assert "its figures say nothing" in capsys.readouterr().out


def test_a_ratio_of_nothing_is_none_in_the_object() -> None:
    assert bench.framed(PART | {"ratios": {"fast": float("nan")}}, {}, [])["ratios"] == {"fast": None}


def test_a_machine_that_could_not_be_watched_is_not_called_quiet(
    monkeypatch: pytest.MonkeyPatch, subject: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Still, "found", None)
    run("--json")
    result = json.loads(capsys.readouterr().out)
    assert result["quiet"]["complaints"] == [bench.UNWATCHED]
    assert result["noisy"] == ["fast", "small"]


def test_the_help_says_each_subjects_own_rounds_and_none_where_there_are_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {}
    for name in ("ingest", "memory", "city"):
        parser = argparse.ArgumentParser()
        bench.configure(parser)
        with pytest.raises(SystemExit):
            parser.parse_args([name, "--help"])
        said[name] = " ".join(capsys.readouterr().out.split())
    assert "interleaved (5)" in said["ingest"]
    assert "interleaved (1)" in said["memory"]
    assert "--rounds" not in said["city"]


def test_a_missing_package_is_one_line_that_says_how_to_get_it(
    subject: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_without(args: argparse.Namespace) -> dict[str, Any]:
        raise ModuleNotFoundError("No module named 'ortools.graph'", name="ortools.graph")

    subject.run = run_without
    assert run() == bench.EXIT_UNUSABLE
    line = "this needs the package ortools: run `make bench`, or pip install 'hexhail[bench]'\n"
    assert capsys.readouterr().err == line


def test_a_subject_that_cannot_be_loaded_is_in_no_others_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.bench_assignment", None)
    monkeypatch.setitem(sys.modules, "hdrh", None)
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    assert all(name in parser.format_help() for name in bench.SUBJECTS)


def test_our_own_missing_module_is_a_fault_and_no_advice() -> None:
    assert bench.missing_package(ModuleNotFoundError(name="benchmarks.gone")) is None
    assert "psutil" in (bench.missing_package(ModuleNotFoundError(name="psutil")) or "")


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (12345.6, "12,346"), (0.123456, "0.1235"), (12345, "12,345"), (True, "True")]
)
def test_a_figure_has_as_many_digits_as_it_deserves(value: object, shown: str) -> None:
    assert figure(value) == shown
