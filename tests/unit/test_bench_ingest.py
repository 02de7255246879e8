"""The measurement of positions counts only what was applied, and tells latencies from when they were due."""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench, ingest_page
from benchmarks.bench_ingest import DRIVERS, RATE_PER_S, result_of, sizes_of
from benchmarks.ingest_load import DriverLoad
from benchmarks.ingest_plan import fix_of, flood_plan, steady_plan
from benchmarks.ingest_round import NotApplied, Round, check_count, differing
from benchmarks.ingest_sides import Gateway, Side, driver_name
from benchmarks.ingest_stage import FLUSH_MS, Counted, Used
from benchmarks.load import OpenLoop
from geo.distance import between_m
from geo.model import LatLng


def a_round(positions: int, *, api_s: float = 0.0, replica_s: float = 0.0, peer_s: float = 0.0) -> Round:
    load = {"lag": {}, "cpu_s": 0.1, "frames": positions, "told": {"ack": 3, "oops": 1}}
    return Round(positions, positions, Used(api_s, 0.02, 0.0, replica_s, peer_s), 2.0, load)


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    return parser.parse_args(["ingest", *words])


@pytest.mark.timeout(120)
def test_a_quick_run_ends_with_one_object_and_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert bench.run(asked("--quick", "--rounds", "1", "--json", "--report", str(tmp_path))) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"vs_bare_aiohttp", "replica_vs_intake"} == set(result["goals"])
    ours = result["ours"]
    assert 0 < ours["applied"] <= ours["sent"]
    assert ours["found_in_redis"] == result["sizes"]["drivers"]
    assert ours["told_otherwise"] == {}
    assert ours["latency"]["applied"]["count"] > 0
    assert ours["latency"]["applied"]["unseen"] == 0
    assert (ours["storm"]["refused"], ours["storm"]["lost_again"]) == ({}, 0)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert not re.search(r"""(src|href)=["']https?:|url\(https?:|@import|<script""", page), "a page fetches nothing"


def test_both_ratios_are_of_cpu_time_and_idling_is_taken_off_a_replica_and_the_intake_beside_it() -> None:
    ours = [a_round(1000, api_s=0.040, replica_s=0.012), a_round(1000, api_s=0.050, replica_s=0.012)]
    bare = [a_round(1000, peer_s=0.030), a_round(1000, peer_s=0.040)]
    result = result_of(ours, bare, {"replica": 0.005, "api": 0.010}, 10)
    assert result["ratios"]["vs_bare_aiohttp"] == pytest.approx((30 / 40 + 40 / 50) / 2, rel=1e-3)
    assert result["ratios"]["replica_vs_intake"] == pytest.approx((2 / 20 + 2 / 30) / 2, rel=1e-3)
    assert result["ours"]["cpu_us_a_position"] == pytest.approx(45.0)
    assert result["ours"]["positions_per_cpu_s"] == pytest.approx(1e6 / 45.0, rel=1e-3)
    assert result["ours"]["told_otherwise"] == {"oops": 2}
    assert all(met for _, _, met in result["goals"].values())


def test_a_position_that_was_not_taken_ends_the_run_and_one_that_was_overtaken_does_not() -> None:
    check_count(1000, Counted(taken=1000, published=1000))
    check_count(1000, Counted(taken=1000, published=960))
    for wrong in (Counted(999, 999), Counted(1000, 1001), Counted(1000, 0)):
        with pytest.raises(NotApplied):
            check_count(1000, wrong)


def test_a_driver_found_elsewhere_or_with_another_count_is_told() -> None:
    sent = [["a", 40.0, -74.0, 7], ["b", 40.0, -74.0, 7], ["c", 40.0, -74.0, 7], ["d", 40.0, -74.0, 7]]
    found = [[40.0, -74.0, 7], [40.0, -74.0, 6], [40.00002, -74.0, 7], None]
    assert [pair[0][0] for pair in differing(sent, found)] == ["b", "c", "d"]


def test_no_driver_is_due_twice_within_a_flush() -> None:
    for words in ([], ["--quick"], ["--rate", "1e6"]):
        sizes = sizes_of(asked(*words))
        plan = steady_plan(sizes.drivers, sizes.rate_per_s, 1.0)
        for due_s in plan.due_s_by_line().values():
            assert all(after - before > FLUSH_MS / 1000 for before, after in itertools.pairwise(due_s))
    assert RATE_PER_S / DRIVERS == 5.0


def test_everybody_sends_as_much_in_turn() -> None:
    plan = steady_plan(3, 30.0, 1.0)
    assert list(plan.lines[:4]) == [0, 1, 2, 0]
    assert set(Counter(plan.lines).values()) == {10}
    assert plan.times[-1] < 1.0
    assert len(steady_plan(7, 5.0, 0.0).lines) == 7, "one each at least"


def test_a_flood_is_of_the_first_drivers_and_of_the_second_second() -> None:
    plan = flood_plan(20, 5.0, 400.0, 0.1)
    due_s = plan.due_s_by_line()
    assert list(plan.times) == sorted(plan.times)
    assert [len(due_s[line]) for line in (0, 1, 2, 19)] == [410, 410, 15, 15]
    assert sum(1.0 <= each < 2.0 for each in due_s[0]) == 400


def test_a_driver_moves_a_little_with_each_position_and_stays_near() -> None:
    for driver in (0, 1, 999):
        fixes = [fix_of(driver, number) for number in range(900)]
        assert [each.seq for each in fixes] == list(range(1, 901))
        steps = [between_m(LatLng(a.lat, a.lon), LatLng(b.lat, b.lon)) for a, b in itertools.pairwise(fixes)]
        assert 1.0 < min(steps) <= max(steps) < 4.0
        assert between_m(LatLng(fixes[0].lat, fixes[0].lon), LatLng(40.75, -73.98)) < 15_000
        assert max(abs(each.lat - fixes[0].lat) for each in fixes) < 0.005


async def test_delays_count_from_when_each_position_was_due_also_those_passed_over() -> None:
    """Of driver 0, due at 0, 0.02 and 0.04 s, the watcher saw the first alone and the others together."""
    load, side = DriverLoad(), Side(0, 2, None)
    side.base = [5, 5]
    run = OpenLoop(0.0, 0.0, lambda number, due_s: None, times=[])
    run.began_s = 100.0
    load._run = (side, steady_plan(2, 100.0, 0.06), run, [7, 7])
    found = await load.delays([(0, 3, 100.1), (0, 5, 100.5)], [0, 1])
    assert found["count"] == 3
    assert found["unseen"] == 3, "those of driver 1"
    assert found["max_ms"] == pytest.approx(480.0, rel=0.01)
    assert found["p50_ms"] == pytest.approx(460.0, rel=0.01)


async def test_the_newest_of_every_driver_is_told_also_of_those_that_share_a_gateway() -> None:
    load, gateway = DriverLoad(), Gateway(0, 150, None)
    gateway.base = [2, 2]
    load._sides, load._sent = {"ours": gateway}, {"ours": [10, 9]}
    newest = await load.newest("ours")
    assert [each[0] for each in newest] == [driver_name(number) for number in range(150)]
    assert {each[3] for each in newest[:100]} == {8}
    assert {each[3] for each in newest[100:]} == {7}
    assert newest[149][1:3] == (fix_of(149, 8).lat, fix_of(149, 8).lon)


def test_a_page_of_all_scenes_has_a_column_for_each_way(tmp_path: Path) -> None:
    result = result_of(
        [a_round(1000, api_s=0.04, replica_s=0.01)], [a_round(1000, peer_s=0.03)], {"replica": 0.0, "api": 0.0}, 9
    )
    pair = {"cpu_us_a_position": 9.0, "bare_cpu_us_a_position": 3.0, "vs_bare_aiohttp": 0.33}
    seen = {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0, "p99.9_ms": 4.0, "max_ms": 5.0, "count": 6}
    result["ours"] |= {
        "json": pair,
        "backlog": pair,
        "fleet": {"not_measured": "none"},
        "flood": {"others_applied": seen},
    }
    path = ingest_page.write(tmp_path, {"commit": "c", "machine": {}} | result)
    text = path.read_text(encoding="utf-8")
    assert "ten a frame" in text
    assert "gateway" not in text
    assert "How soon it is seen" in text
