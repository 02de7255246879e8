"""Memory is measured in processes of its own, with real servers, and reported by name."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import bench, bench_memory, memory_index
from benchmarks.memory_sockets import SOCKETS, sockets_possible


def test_a_quick_look_measures_every_goal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What it measures of so few means nothing."""
    monkeypatch.setattr(bench_memory, "QUICK", {"index": 4000, "redis": 1000, "sockets": 60})
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    assert bench.run(parser.parse_args(["memory", "--quick", "--json", "--report", str(tmp_path)])) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["goals"]) | set(result["not_measured"]) == {
        "index_bytes_a_driver",
        "redis_bytes_a_driver",
        "socket_bytes",
    }
    assert {"index_vs_dict_of_objects", "redis_vs_geoadd", "socket_bytes_vs_bare_aiohttp"} <= set(result["ratios"])
    assert result["ours"]["redis_bytes_a_driver"] > 0
    assert "<svg" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_what_took_less_than_nothing_was_not_measured() -> None:
    one = {"bytes": 100.0, "reachable_bytes": 90.0, "own_bytes": 1.0, "before_bytes": 1e8}
    measured = {side: [one] for pair in bench_memory.PAIRS for side in pair[:2]} | {"socket": [one | {"bytes": -5.0}]}
    result = bench_memory.result_of(measured)
    assert "socket_bytes" in result["not_measured"]
    assert "socket_bytes" not in result["goals"]
    assert result["goals"]["index_bytes_a_driver"] == [100.0, 300.0, True]


@pytest.mark.parametrize("kind", memory_index.FILLS)
def test_what_can_be_reached_from_an_index_grows_with_its_drivers(kind: str) -> None:
    few, many = (memory_index.reachable_bytes(memory_index.FILLS[kind](drivers, 1)) for drivers in (500, 5000))
    assert many > few > 500 * 8


def test_the_same_seed_draws_the_same_fleet_at_the_same_density() -> None:
    lats, _ = memory_index.places(1000, 3)
    assert lats.tolist() == memory_index.places(1000, 3)[0].tolist()
    crowded, spread = (memory_index.places(drivers, 3)[0] for drivers in (100_000, 400_000))
    assert spread.max() - spread.min() > 1.5 * (crowded.max() - crowded.min())


def test_no_more_sockets_are_asked_for_than_one_process_may_have() -> None:
    assert sockets_possible(10) == 10
    assert sockets_possible(SOCKETS) <= SOCKETS
