"""The measurement of ride requests believes nothing that it cannot find in the database."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from benchmarks import bench, requests_load
from benchmarks.requests_load import Answer, answer_of, bodies, requests_of


def test_a_look_at_it_measures_both_sides_and_draws_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It starts the servers that it needs."""
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    words = ["requests", "--quick", "--rounds", "1", "--json", "--report", str(tmp_path)]
    assert bench.run(parser.parse_args(words)) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["subject"] == "requests"
    assert set(result["goals"]) == {"vs_bare_aiohttp"}
    assert result["ours"]["cpu_us_a_request"] > 0
    assert result["ours"]["ours"]["requests"] == result["peers"]["bare"]["requests"] == 100
    for mine, peer in (("ours", "bare"), ("msgpack", "bare_msgpack")):
        answered = result["ours"][mine]["answer_bytes"]
        assert result["peers"][peer]["answer_bytes"] == pytest.approx(answered, rel=0.05), "as much in the same format"
    assert result["ours"]["ours"]["repeated_the_same"] == 5
    assert result["ours"]["rides_a_commit"] >= 1
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert not re.search(r"""(src|href)=["']https?:|url\(https?:|@import|<script""", page), "a page fetches nothing"


def test_an_answer_is_taken_when_it_is_whole() -> None:
    whole = b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\nIdempotency-Replayed: true\r\n\r\n{ab}"
    assert all(answer_of(whole[:size]) is None for size in range(len(whole)))
    assert answer_of(whole) == Answer(201, b"{ab}", replayed=True)


def test_the_same_seed_asks_for_the_same_rides_each_with_a_key_of_its_own() -> None:
    assert bodies(5, 1) == bodies(5, 1) != bodies(5, 2)
    for media in requests_load.MEDIA:
        requests = requests_of(bodies(5, 1), "/v1/rides", media, "token", "k")
        assert [re.findall(rb"Idempotency-Key: (k-\d)\r\n", each) for each in requests] == [
            [b"k-%d" % number] for number in range(5)
        ]
