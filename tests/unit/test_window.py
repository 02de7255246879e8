"""The adaptive window closes when waiting longer costs more than it brings, and never outside its limits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matcher.window import AdaptiveWindow, ArrivalRate, thick_enough

SECOND_MS = 1000


def accustomed(
    *, rides_per_s: int, drivers_per_s: int, way_s: float, thick: int, window_s: float = 0.0, window_s_max: float = 30.0
) -> tuple[AdaptiveWindow, int]:
    """A window that has long seen these arrivals, and ways of `way_s` with so many on the thicker side."""
    window, now_ms = AdaptiveWindow(window_s, window_s_max), 0
    rides, drivers = thick - rides_per_s, thick - drivers_per_s
    for now_ms in range(0, 900 * SECOND_MS, SECOND_MS):
        window.close_at_ms(now_ms, rides + rides_per_s, drivers + drivers_per_s)
        window.closed(min(rides_per_s, drivers_per_s), way_s)
        rides = rides + rides_per_s - min(rides_per_s, drivers_per_s)
        drivers = drivers + drivers_per_s - min(rides_per_s, drivers_per_s)
        rides, drivers = min(rides, thick - rides_per_s), min(drivers, thick - drivers_per_s)
    return window, now_ms


def test_a_steady_stream_is_measured_as_it_is() -> None:
    rate = ArrivalRate(0)
    assert rate.per_s(500) == 0.0
    for now_ms in range(250, 300_001, 250):
        rate.add(now_ms, 1)
        if now_ms in (5_000, 60_000, 300_000):
            assert rate.per_s(now_ms) == pytest.approx(4.0, rel=0.06)
    assert rate.per_s(360_000) == pytest.approx(4.0 / math.e, rel=0.06)


def test_nothing_is_known_at_first_and_the_batch_closes_as_soon_as_it_may() -> None:
    assert AdaptiveWindow(0.0, 30.0).close_at_ms(5_000, 1, 1) == 5_000
    assert AdaptiveWindow(2.0, 30.0).close_at_ms(5_000, 1, 1) == 7_000


def test_a_side_that_is_empty_has_nothing_to_close() -> None:
    window = AdaptiveWindow(0.0, 30.0)
    assert window.close_at_ms(1_000, 7, 0) == 31_000
    assert window.close_at_ms(2_000, 0, 7) == 32_000
    # It opens only now: the seconds before count for nothing.
    assert window.close_at_ms(9_000, 1, 7) == 9_000


def test_a_thick_market_is_served_at_once() -> None:
    window, now_ms = accustomed(rides_per_s=4, drivers_per_s=4, way_s=40.0, thick=600)
    assert window.close_at_ms(now_ms + 250, 1, 600) == now_ms + 250


def test_a_thin_market_waits_until_it_is_thick_enough() -> None:
    """Ways of 57.7 s among 300 drivers make a = 1000; four of each a second make n = (1000 * 6) ** (2/3) = 330."""
    window, now_ms = accustomed(rides_per_s=4, drivers_per_s=4, way_s=1000.0 / math.sqrt(300.0), thick=300)
    assert thick_enough(1000.0, 4.0, 4.0) == pytest.approx(330.2, abs=0.1)
    due_ms = window.close_at_ms(now_ms + 1_000, 1, 300)
    assert due_ms - now_ms - 1_000 == pytest.approx(1000.0 * 30.2 / 4.0, rel=0.1)
    assert window.close_at_ms(now_ms + 9_000, 30, 335) <= now_ms + 9_000


def test_no_ride_waits_longer_than_the_longest_window() -> None:
    window, now_ms = accustomed(rides_per_s=4, drivers_per_s=4, way_s=600.0, thick=100, window_s_max=10.0)
    opened_ms = now_ms + 1_000
    assert window.close_at_ms(opened_ms, 1, 5) == opened_ms + 10_000
    assert window.close_at_ms(opened_ms + 9_000, 30, 40) == opened_ms + 10_000


def test_no_batch_closes_before_the_shortest_window() -> None:
    window, now_ms = accustomed(rides_per_s=4, drivers_per_s=4, way_s=1.0, thick=500, window_s=2.0)
    opened_ms = now_ms + 250
    assert window.close_at_ms(opened_ms, 1, 500) == opened_ms + 2_000
    assert window.close_at_ms(opened_ms + 1_500, 9, 500) == opened_ms + 2_000


def test_those_whom_a_batch_left_are_not_tried_again_until_somebody_joins_them() -> None:
    window = AdaptiveWindow(0.0, 30.0)
    assert window.close_at_ms(1_000, 3, 2) == 1_000
    window.closed(1, 50.0)
    assert window.close_at_ms(1_500, 2, 1) == 31_500
    assert window.close_at_ms(2_000, 3, 1) < 31_500


@given(
    st.floats(1.0, 1e5),
    st.floats(0.01, 100.0),
    st.floats(0.0, 100.0),
    st.floats(1.01, 4.0),
)
def test_at_the_threshold_a_second_of_waiting_brings_a_second(a: float, r: float, s: float, more: float) -> None:
    def saved_s(n: float) -> float:
        return a / math.sqrt(n) * (0.5 * r + s) / n

    n = thick_enough(a, r, s)
    assert saved_s(n) == pytest.approx(1.0)
    assert saved_s(n * more) < 1.0 < saved_s(n / more)


@given(st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_whatever_comes_the_answer_lies_between_the_limits(steps: list[tuple[int, int, int]]) -> None:
    window, now_ms, opened_ms = AdaptiveWindow(1.0, 20.0), 0, None
    for pause_ms, rides, drivers in steps:
        now_ms += pause_ms
        due_ms = window.close_at_ms(now_ms, rides, drivers)
        if not rides or not drivers:
            opened_ms = None
            continue
        opened_ms = now_ms if opened_ms is None else opened_ms
        assert opened_ms + 1_000 <= due_ms <= opened_ms + 20_000
        if due_ms <= now_ms:
            window.closed(min(rides, drivers), 30.0)
            opened_ms = None
