"""The bench of nearest drivers compares before it times, reports what it measured, and reads its peers' replies."""

from __future__ import annotations

import argparse
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench, bench_nearest
from benchmarks.bench_nearest import EXACT_M, Disagreement, check_exact, disagree
from benchmarks.nearest_fleet import RARE_SEATS, City, Fleet, growth_scene, worst_scenes
from benchmarks.nearest_peers import (
    IN_FLIGHT,
    BruteForce,
    Incomplete,
    Tree,
    Wire,
    command,
    marked_groups,
    redis_questions,
    reply_at,
    tile38_ids,
    tile38_load,
    tile38_questions,
)


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    return bench.run(parser.parse_args(["nearest", *words]))


def test_the_last_line_is_one_object_with_ratios_and_goals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_nearest, "QUICK_SHARE", 0.005)
    monkeypatch.setattr(bench_nearest, "COMPARED", 20)
    assert run("--quick", "--rounds", "1", "--json", "--report", str(tmp_path)) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    named = {"bulk_vs_redis_geosearch", "one_vs_redis_geosearch", "http_vs_bare_aiohttp", "growth_1m_vs_100k"}
    assert named <= set(result["ratios"])
    assert named | set(result["not_measured"]) >= {goal.name for goal in bench_nearest.GOALS}
    assert {"subject", "commit", "machine", "rounds", "ours", "peers", "versions", "noise"} <= set(result)
    assert result["peers"]["redis_geosearch"]["exact"] is False
    assert len(result["ours"]["growth"]) == len(bench_nearest.GROWTH)
    assert len(result["ours"]["worst"]) == 5
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert not re.search(r"""(src|href)=["']https?:|url\(https?:|@import|<script""", page), "a page fetches nothing"


def test_a_peer_that_finds_other_drivers_ends_the_run() -> None:
    scene = growth_scene(500, 10, 3)
    index = scene.fleet.index()
    found = BruteForce(scene.fleet).numbers(scene.queries, 10)
    disagree("peer", scene, index, found, EXACT_M, 1e9)
    found[3] = [*found[3][:-1], int(np.setdiff1d(np.arange(500), found[3])[0])]
    with pytest.raises(Disagreement, match="peer"):
        disagree("peer", scene, index, found, EXACT_M, 1e9)


def test_a_peer_that_looks_less_far_may_find_fewer_but_not_within_its_reach() -> None:
    scene = growth_scene(500, 5, 3)
    index = scene.fleet.index()
    found = [row[:4] for row in BruteForce(scene.fleet).numbers(scene.queries, 10)]
    disagree("peer", scene, index, found, EXACT_M, 0.0)
    with pytest.raises(Disagreement):
        disagree("peer", scene, index, found, EXACT_M, 1e9)


def test_every_scene_is_answered_as_by_brute_force() -> None:
    """P8"""
    base = growth_scene(1000, 10, 5)
    for scene in (base, *worst_scenes(base, 100, 5)):
        check_exact(scene, scene.fleet.index(), 10)
    rare = worst_scenes(base, 100, 5)[2]
    assert rare.where.seats_min == RARE_SEATS
    assert rare.may.mean() == pytest.approx(0.01)


def test_scipys_tree_finds_the_same() -> None:
    scene = growth_scene(500, 10, 7)
    assert Tree(scene.fleet).numbers(scene.queries, 10) == BruteForce(scene.fleet).numbers(scene.queries, 10)


def test_the_same_seed_draws_the_same_city_at_the_same_density() -> None:
    city, larger = City.of(100_000, 1), City.of(1_000_000, 1)
    assert city.draw(50, 2)[0].tolist() == City.of(100_000, 1).draw(50, 2)[0].tolist()
    assert (len(city.spots), len(larger.spots)) == (20, 200)
    assert np.ptp(larger.spots) / np.ptp(city.spots) == pytest.approx(10**0.5, rel=0.1)


def test_a_command_is_encoded_as_an_array_of_strings() -> None:
    assert command("SET", "fleet", "d") == b"*3\r\n$3\r\nSET\r\n$5\r\nfleet\r\n$1\r\nd\r\n"


def test_questions_name_longitude_and_latitude_in_their_peers_order() -> None:
    scene = growth_scene(100, 1, 1)
    point, fleet = scene.queries.points[0], Fleet(scene.fleet.ids[:1], scene.fleet.lat[:1], scene.fleet.lon[:1])
    words = b" ".join(redis_questions(scene.queries, 10)[0].split(b"\r\n")[2::2]).decode()
    assert words == f"GEOSEARCH fleet FROMLONLAT {point.lon!r} {point.lat!r} BYRADIUS 3 km ASC COUNT 10"
    words = b" ".join(tile38_questions(scene.queries, 10)[0].split(b"\r\n")[2::2]).decode()
    assert words == f"NEARBY fleet LIMIT 10 IDS POINT {point.lat!r} {point.lon!r}"
    words = b" ".join(tile38_load(fleet)[0].split(b"\r\n")[2::2]).decode()
    assert words == f"SET fleet {fleet.ids[0]} POINT {float(fleet.lat[0])!r} {float(fleet.lon[0])!r}"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"+OK\r\n", "OK"),
        (b":7\r\n", 7),
        (b"$2\r\nab\r\n", "ab"),
        (b"$-1\r\n", None),
        (b"*2\r\n:0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n", [0, ["a", "b"]]),
    ],
)
def test_a_reply_is_read_once_it_is_complete(data: bytes, expected: Any) -> None:
    assert reply_at(data + b"+", 0) == (expected, len(data))
    for size in range(len(data)):
        with pytest.raises(Incomplete):
            reply_at(data[:size], 0)


def test_the_next_group_is_asked_before_the_one_ahead_is_answered_and_all_are_waited_for() -> None:
    """A server that answers a group only once it has two, the mark in pieces, as a network may cut it."""
    commands = [command("PING")] * (3 * IN_FLIGHT)
    groups = marked_groups(commands)
    heard: list[int] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            data = b""
            for needed in (2, 1):  # groups that must be there before the next are answered
                while data.count(b"the-end") < needed:
                    data += connection.recv(1 << 16)
                heard.append(data.count(b"the-end"))
                for _ in range(needed):
                    connection.sendall(b"+PONG\r\n" * IN_FLIGHT + b"$7\r\nthe")
                    connection.sendall(b"-end\r\n")
                data = b""

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        wire = Wire("127.0.0.1", listener.getsockname()[1])
        assert wire.wall_s(groups) > 0
        wire.close()
        server.join()
    assert heard[0] == 2


def test_an_error_as_a_reply_is_raised() -> None:
    with pytest.raises(ValueError, match="ERR no such command"):
        reply_at(b"-ERR no such command\r\n", 0)


def test_ids_are_taken_from_behind_tile38s_cursor() -> None:
    assert tile38_ids([0, ["driver-2", "driver-1"]]) == ["driver-2", "driver-1"]
    for other in ([], [0], [0, "driver"], "OK"):
        with pytest.raises(ValueError, match="NEARBY"):
            tile38_ids(other)
