"""Redis' clock as we estimate it, and the waits between attempts."""

from __future__ import annotations

import time

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from geo.redis_link import BACKOFF_S_MAX, RedisClock, backoff_s, connect, reason_of


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Our own clock in ms, to be set by the test."""
    now = [1_000.0]
    monkeypatch.setattr(RedisClock, "monotonic_ms", staticmethod(lambda: now[0]))
    return now


def ask(clock: RedisClock, monotonic: list[float], redis_ms: float, *, there_ms: float = 0, back_ms: float = 0) -> None:
    """Asks Redis, whose clock shows `redis_ms` when the question arrives."""
    before = monotonic[0]
    monotonic[0] += there_ms + back_ms
    clock.measured(redis_ms, before, monotonic[0])


class TestClock:
    def test_before_any_contact_it_is_this_machine_s_wall_clock(self) -> None:
        assert abs(RedisClock().now_ms() - time.time() * 1000) < 5_000

    def test_it_goes_on_without_contact(self, monotonic: list[float]) -> None:
        clock = RedisClock()
        ask(clock, monotonic, 50_000)
        monotonic[0] += 10_000
        assert 60_000 <= clock.now_ms() <= 60_020

    def test_however_slow_the_question_it_is_not_behind(self, monotonic: list[float]) -> None:
        clock, offset = RedisClock(), 49_000.0
        for there_ms, back_ms in ((300, 0), (0, 400), (5, 5), (900, 900), (0, 0), (250, 30)):
            ask(clock, monotonic, monotonic[0] + there_ms + offset, there_ms=there_ms, back_ms=back_ms)
            assert clock.now_ms() >= int(monotonic[0] + offset)
            monotonic[0] += 500

    def test_a_quick_answer_makes_it_exact_and_a_slow_one_does_not_spoil_it(self, monotonic: list[float]) -> None:
        clock, offset = RedisClock(), 49_000.0
        ask(clock, monotonic, monotonic[0] + 800 + offset, there_ms=800)
        assert clock.now_ms() - (monotonic[0] + offset) > 700
        ask(clock, monotonic, monotonic[0] + offset)
        assert clock.now_ms() - (monotonic[0] + offset) <= 2
        ask(clock, monotonic, monotonic[0] + 800 + offset, there_ms=800)
        assert clock.now_ms() - (monotonic[0] + offset) <= 4

    def test_a_clock_that_runs_a_little_fast_is_not_outrun(self, monotonic: list[float]) -> None:
        clock, redis_ms = RedisClock(), 50_000.0
        for _ in range(200):
            ask(clock, monotonic, redis_ms, back_ms=2)
            redis_ms += 2 * 1.0005
            for _ in range(5):
                assert clock.now_ms() >= int(redis_ms)
                monotonic[0] += 100
                redis_ms += 100 * 1.0005

    def test_a_clock_set_forward_is_followed(self, monotonic: list[float]) -> None:
        clock = RedisClock()
        ask(clock, monotonic, 50_000)
        ask(clock, monotonic, 3_650_000)
        assert clock.now_ms() >= 3_650_000
        assert clock.steps_back == 0

    def test_a_clock_set_back_is_followed_and_counted(self, monotonic: list[float]) -> None:
        clock = RedisClock()
        ask(clock, monotonic, 3_650_000)
        ask(clock, monotonic, 50_000)
        assert 50_000 <= clock.now_ms() <= 50_010
        assert clock.steps_back == 1


def test_waits_grow_and_stay_within_the_limit() -> None:
    """P10"""
    longest = [max(backoff_s(failures) for _ in range(200)) for failures in range(12)]
    assert longest[0] < 0.1
    assert max(longest) <= BACKOFF_S_MAX
    assert longest[6] > longest[0]
    assert all(backoff_s(failures) > 0 for failures in (0, 5, 10_000))


def test_a_reason_names_the_cause() -> None:
    assert "refused" in reason_of(RedisConnectionError("refused"))
    assert "TimeoutError" in reason_of(TimeoutError())


async def test_a_connection_never_retries_and_waits_for_nothing_without_a_limit() -> None:
    client = connect("redis://127.0.0.1:1/0", timeout_s=1.5, connections_max=3)
    connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    assert connection.retry.get_retries() == 0
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (1.5, 1.5)
    assert client.connection_pool.timeout == 1.5  # type: ignore[attr-defined]
    await client.aclose()
