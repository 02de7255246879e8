"""The bench compares before it times, reports what it measured, and draws a page that stands alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import assignment_peers as peers
from benchmarks import bench, bench_assignment
from benchmarks.batches import even, scarce
from benchmarks.bench_assignment import Disagreement
from benchmarks.goals import Goal
from matcher import optimum
from matcher.problem import STEPS_PER_S


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of dozens; what is measured of them means nothing."""
    monkeypatch.setattr(bench_assignment, "QUICK_SHARE", 0.004)
    monkeypatch.setattr(bench_assignment, "GROWTH", (5000, 10_000, 20_000))
    monkeypatch.setattr(bench_assignment, "LOOP_S", 0.3)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    return bench.run(parser.parse_args(["assignment", *words]))


def result_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.usefixtures("small")
def test_the_last_line_is_one_object_with_ratios_and_goals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("--quick", "--rounds", "1", "--json", "--report", str(tmp_path)) == 0
    result = result_of(capsys)
    named = {"even_vs_dense", "scarce_vs_dense", "scarce_vs_ortools", "growth_10x", "loop_stall_ms"}
    assert named <= set(result["ratios"])
    assert set(result["goals"]) == named
    assert result["goals_missed"] == sum(not met for _, _, met in result["goals"].values())
    assert {"subject", "commit", "machine", "rounds", "ours", "peers", "versions"} <= set(result)
    assert all(row["certified"] for row in result["ours"]["growth"] + result["ours"]["scarcity"])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert not re.search(r"""(src|href)=["']https?:|url\(https?:|@import|<script""", page), "a page fetches nothing"


@pytest.mark.usefixtures("small")
def test_a_missed_goal_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_assignment, "GOALS", (Goal("even_vs_dense", 1e9),))
    assert run("--quick", "--rounds", "1", "--gate") == bench.EXIT_GOAL_MISSED


@pytest.mark.parametrize("problem", [even(60, 120, 3), scarce(120, 60, 3)], ids=["even", "scarce"])
def test_every_peer_finds_the_same_optimum(problem: Any) -> None:
    solution = optimum.solve(problem)
    allowed_s = 61 / STEPS_PER_S
    for cost_s in (
        peers.dense_cost_s(problem),
        peers.ortools_cost_s(problem, solution.pairs),
        peers.lapx_cost_s(problem),
    ):
        assert abs(cost_s - solution.cost_s) <= allowed_s


def test_a_peer_that_finds_something_else_ends_the_run() -> None:
    problem = even(40, 80, 2)
    solution = optimum.solve(problem)
    with pytest.raises(Disagreement, match="lapx"):
        bench_assignment.agree(solution, solution.cost_s - 1.0, problem, "lapx")
    unproven = dataclasses.replace(solution, bound_s=solution.cost_s - 1.0)
    with pytest.raises(Disagreement, match="no certificate"):
        bench_assignment.agree(unproven, solution.cost_s, problem, "dense")


def test_the_same_seed_draws_the_same_batch() -> None:
    assert scarce(30, 20, 7).ride_lat.tolist() == scarce(30, 20, 7).ride_lat.tolist()
    assert scarce(30, 20, 7).ride_lat.tolist() != scarce(30, 20, 8).ride_lat.tolist()
