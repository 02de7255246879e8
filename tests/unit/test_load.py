"""A latency counts from when its act was due, so that neither a stalled server nor a slow generator hides."""

from __future__ import annotations

import asyncio
import itertools
import os

import pytest

from benchmarks.load import ACTS_A_TURN_MAX, Latency, OpenLoop, Pace, even_times, merged, poisson_times
from benchmarks.load_child import LoadChild, LoadFailed

SERVICE_S = 0.001


class Server:
    """Answers one at a time, each in a millisecond, but stands still from second 4 to second 5."""

    def __init__(self) -> None:
        self._free_at_s = 0.0

    def answer_at(self, asked_at_s: float) -> float:
        begin_s = max(asked_at_s, self._free_at_s)
        if 4.0 <= begin_s < 5.0:
            begin_s = 5.0
        self._free_at_s = begin_s + SERVICE_S
        return self._free_at_s


def closed_loop(seconds: float, pause_s: float) -> Latency:
    """Asks, waits for the answer, pauses, asks again: as many load generators do."""
    server, latency, now_s = Server(), Latency(), 0.0
    while now_s < seconds:
        done_s = server.answer_at(now_s)
        latency.record(done_s - now_s)
        now_s = done_s + pause_s
    return latency


def open_loop(seconds: float, rate_per_s: float, *, generator_stands_from_s: float | None = None) -> OpenLoop:
    """The same server in virtual time. A generator that stands still does so for a second."""
    server, now_s = Server(), 0.0
    answers: list[tuple[float, float]] = []
    load = OpenLoop(rate_per_s, seconds, lambda number, due_s: answers.append((due_s, server.answer_at(now_s))))
    while not load.pace.is_over:
        if generator_stands_from_s is not None and generator_stands_from_s <= now_s < generator_stands_from_s + 1.0:
            now_s = generator_stands_from_s + 1.0
        now_s += max(load.step(now_s), 1e-6)
    for due_s, done_s in answers:
        load.latency.record(done_s - due_s)
    return load


def test_a_stalled_server_is_seen_in_the_percentiles_which_a_closed_loop_would_hide() -> None:
    closed, opened = closed_loop(10.0, 0.009), open_loop(10.0, 100.0)
    assert closed.count == pytest.approx(opened.latency.count, rel=0.15)
    assert closed.percentile_s(99.0) == pytest.approx(SERVICE_S, rel=0.01)
    assert opened.latency.percentile_s(99.0) > 0.85
    assert opened.latency.percentile_s(50.0) == pytest.approx(SERVICE_S, rel=0.1)
    assert opened.lag.max_s() < 0.001


def test_a_generator_that_stands_still_says_so_and_its_delay_is_counted() -> None:
    load = open_loop(10.0, 100.0, generator_stands_from_s=7.0)
    assert load.lag.max_s() == pytest.approx(1.0, rel=0.02)
    assert load.pace.done == 1000, "what was due meanwhile is still sent"
    assert load.latency.percentile_s(90.0) > 0.5, "seconds 4 and 7 both count"


def test_due_times_are_spread_evenly_or_drawn_by_a_seed() -> None:
    assert even_times(4.0, 1.0) == [0.0, 0.25, 0.5, 0.75]
    drawn = poisson_times(1000.0, 2.0, seed=7)
    assert drawn == poisson_times(1000.0, 2.0, seed=7) != poisson_times(1000.0, 2.0, seed=8)
    assert drawn == sorted(drawn)
    assert 1800 < len(drawn) < 2200
    gaps = [after - before for before, after in itertools.pairwise(drawn)]
    assert max(gaps) > 4 * 0.001, "bunches and gaps"


def test_what_is_due_is_taken_once_and_a_few_at_a_time() -> None:
    pace = Pace([0.0, 0.1, 0.1, 0.3], acts_a_turn_max=2)
    assert pace.take(0.2) == range(2)
    assert pace.wait_s(0.2) == 0.0
    assert pace.take(0.2) == range(2, 3)
    assert pace.take(0.2) == range(3, 3)
    assert pace.wait_s(0.2) == pytest.approx(0.1)
    assert pace.take(9.9) == range(3, 4)
    assert pace.is_over
    assert pace.wait_s(9.9) == 0.0
    assert len(Pace([0.0] * 1000).take(1.0)) == ACTS_A_TURN_MAX


def test_latencies_of_several_processes_are_merged_as_if_one_had_taken_them() -> None:
    parts, whole = [Latency(), Latency()], Latency()
    for each in range(1, 1001):
        parts[each % 2].record(each / 1000)
        whole.record(each / 1000)
    found = merged(Latency.decoded(each.encoded()) for each in parts)
    assert found.as_json() == whole.as_json()
    assert found.as_json()["count"] == 1000
    assert found.as_json()["p50_ms"] == pytest.approx(500, rel=0.01)
    assert found.as_json()["max_ms"] == pytest.approx(1000, rel=0.01)
    assert Latency().as_json()["p99_ms"] == 0.0
    assert Latency.decoded(Latency().encoded()).count == 0


def test_what_is_out_of_range_is_kept_at_its_end() -> None:
    latency = Latency()
    latency.record(-1.0)
    latency.record(1e6)
    assert latency.percentile_s(50.0) == pytest.approx(1e-6)
    assert latency.max_s() == pytest.approx(60.0, rel=0.01)


async def test_a_load_on_a_loop_does_everything_in_order_and_never_early() -> None:
    seen: list[tuple[int, float]] = []
    clock = asyncio.get_running_loop().time
    load = OpenLoop(500.0, 0.1, lambda number, due_s: seen.append((number, clock() - due_s)), clock=clock)
    await load.run()
    assert [number for number, _ in seen] == list(range(50))
    assert all(late_s >= 0.0 for _, late_s in seen)
    load.answered(clock() - 0.5)
    assert load.as_json()["latency"]["p50_ms"] == pytest.approx(500, rel=0.2)


class Sums:
    """What a load child runs in this test."""

    def __init__(self) -> None:
        self._sum = 0

    async def add(self, number: int) -> int:
        os.write(1, b"not an answer")
        self._sum += number
        return self._sum

    async def fail(self) -> None:
        raise ValueError("so it is")


async def test_a_load_in_a_process_of_its_own_answers_and_says_what_failed() -> None:
    async with LoadChild(f"{__name__}:Sums") as child:
        assert [await child.call("add", number=each) for each in (1, 2)] == [1, 3]
        with pytest.raises(LoadFailed, match="ValueError: so it is"):
            await child.call("fail")
        assert await child.call("add", number=3) == 6
        await child.stop()
        with pytest.raises(LoadFailed, match="has ended"):
            await child.call("add", number=1)
