"""What a routing client decides before it sends anything: whether to ask, and which tables to ask for."""

from __future__ import annotations

import numpy as np
import pytest

from geo.legs import Floats, Ints, Legs, TableLimits, tables_of
from geo.routing import Bounds, BreakerState, CircuitBreaker, StraightLine

# The circuit breaker


def opened(now_s: float, *, pause_s: float = 2.0, pause_s_max: float = 6.0) -> CircuitBreaker:
    breaker = CircuitBreaker(failures_max=3, pause_s=pause_s, pause_s_max=pause_s_max)
    for _ in range(3):
        fail(breaker, now_s)
    assert breaker.state(now_s) is BreakerState.OPEN
    return breaker


def fail(breaker: CircuitBreaker, now_s: float) -> None:
    round_ = breaker.admit(now_s)
    assert round_ is not None
    breaker.failed(round_, now_s)


def succeed(breaker: CircuitBreaker, now_s: float) -> None:
    round_ = breaker.admit(now_s)
    assert round_ is not None
    breaker.succeeded(round_)


def test_only_failures_in_a_row_open_it() -> None:
    breaker = CircuitBreaker(failures_max=3)
    for _ in range(4):
        fail(breaker, 0.0)
        fail(breaker, 0.0)
        succeed(breaker, 0.0)
    assert breaker.state(0.0) is BreakerState.CLOSED


def test_open_it_admits_nothing_until_its_pause_is_over() -> None:
    breaker = opened(100.0)
    assert breaker.admit(100.0) is None
    assert breaker.admit(101.999) is None
    assert breaker.state(102.0) is BreakerState.HALF_OPEN
    assert breaker.admit(102.0) is not None


def test_half_open_it_admits_one_probe() -> None:
    breaker = opened(0.0)
    assert breaker.admit(2.0) is not None
    assert breaker.admit(2.0) is None
    assert breaker.admit(1000.0) is None


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened(0.0)
    succeed(breaker, 2.0)
    assert breaker.state(2.0) is BreakerState.CLOSED
    fail(breaker, 2.0)
    fail(breaker, 2.0)
    assert breaker.state(2.0) is BreakerState.CLOSED, "it counts from nought again"


def test_the_pause_grows_with_each_probe_that_fails_up_to_its_maximum() -> None:
    breaker, now_s = opened(0.0), 0.0
    for pause_s in (2.0, 4.0, 6.0, 6.0):
        assert breaker.state(now_s + pause_s - 0.001) is BreakerState.OPEN
        now_s += pause_s
        fail(breaker, now_s)
        assert breaker.state(now_s) is BreakerState.OPEN


def test_the_pause_is_short_again_after_healing() -> None:
    breaker = opened(0.0)
    fail(breaker, 2.0)
    succeed(breaker, 6.0)
    for _ in range(3):
        fail(breaker, 10.0)
    assert breaker.state(11.999) is BreakerState.OPEN
    assert breaker.state(12.0) is BreakerState.HALF_OPEN


def test_what_was_asked_before_it_opened_comes_too_late_to_count() -> None:
    breaker = CircuitBreaker(failures_max=1, pause_s=2.0)
    late = [breaker.admit(0.0) for _ in range(3)]
    assert late[0] is not None
    fail(breaker, 0.0)
    breaker.failed(late[0], 1.0)
    assert breaker.state(2.0) is BreakerState.HALF_OPEN, "a late failure does not prolong the pause"
    breaker.succeeded(late[0])
    assert breaker.state(1.0) is BreakerState.OPEN, "a late success does not end it"
    assert breaker.admit(2.0) is not None
    breaker.failed(late[0], 2.0)
    assert breaker.state(2.0) is BreakerState.HALF_OPEN, "nor does a late failure speak for the probe"


def test_a_probe_that_was_given_up_makes_room_for_another() -> None:
    breaker = opened(0.0)
    first = breaker.admit(2.0)
    assert first is not None
    breaker.withdrawn(first)
    second = breaker.admit(2.0)
    assert second is not None
    breaker.failed(first, 2.0)
    breaker.withdrawn(first)
    assert breaker.admit(2.0) is None, "the second is still under way"
    breaker.succeeded(second)
    assert breaker.state(2.0) is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("failures_max", "pause_s", "pause_s_max"), [(0, 1.0, 2.0), (1, 0.0, 2.0), (1, 3.0, 2.0), (1, float("nan"), 2.0)]
)
def test_limits_of_a_breaker_that_make_no_sense_are_refused(
    failures_max: int, pause_s: float, pause_s_max: float
) -> None:
    with pytest.raises(ValueError):
        CircuitBreaker(failures_max=failures_max, pause_s=pause_s, pause_s_max=pause_s_max)


# Which tables cover the pairs


def ints(*numbers: int) -> Ints:
    return np.array(numbers, dtype=np.int64)


def cells(origin: Ints, target: Ints, limits: TableLimits) -> int:
    """Checks that each pair stands in one table, at its own cell, and that limits hold; how many cells there are."""
    seen, total = [], 0
    for table in tables_of(origin, target, limits):
        assert len(table.origins) + len(table.targets) <= limits.places
        assert len(table.origins) * len(table.targets) <= limits.cells
        assert table.origins[table.row].tolist() == origin[table.pair].tolist()
        assert table.targets[table.column].tolist() == target[table.pair].tolist()
        seen += table.pair.tolist()
        total += len(table.origins) * len(table.targets)
    assert sorted(seen) == list(range(len(origin)))
    return total


def test_targets_that_share_their_origins_share_a_table_without_a_surplus_cell() -> None:
    origin, target = np.tile(np.arange(80), 20), np.repeat(np.arange(20), 80)
    assert len(tables_of(origin, target, TableLimits(100, 10_000))) == 1
    assert cells(origin, target, TableLimits(100, 10_000)) == len(origin)


def test_targets_are_taken_in_the_order_given() -> None:
    tables = tables_of(ints(0, 1, 2, 3, 0), ints(5, 5, 3, 4, 5), TableLimits(4, 4))
    assert [table.pair.tolist() for table in tables] == [[0, 1, 4], [2, 3]]


def test_a_target_with_more_origins_than_a_table_holds_is_split() -> None:
    origin, target = np.arange(250), np.zeros(250, dtype=np.int64)
    assert [len(table.pair) for table in tables_of(origin, target, TableLimits(100, 10_000))] == [99, 99, 52]
    assert cells(origin, target, TableLimits(101, 60)) == 250


def test_large_tables_are_not_mostly_surplus() -> None:
    """Where a server takes any size, targets that share nothing stand in tables of at most four cells a pair."""
    origin, target = np.arange(30_000), np.repeat(np.arange(30), 1000)
    assert cells(origin, target, TableLimits(10_000, 10**8)) <= 4 * 30_000


@pytest.mark.parametrize("places", [2, 3, 17, 100])
@pytest.mark.parametrize("most", [1, 40, 2500])
def test_every_pair_stands_at_its_own_cell_within_the_limits(places: int, most: int) -> None:
    rng = np.random.default_rng(places * most)
    for origins, targets, pairs in ((1, 1, 1), (3, 2, 20), (60, 40, 400), (500, 5, 700)):
        cells(rng.integers(0, origins, pairs), rng.integers(0, targets, pairs), TableLimits(places, most))


def test_no_pairs_need_no_table() -> None:
    assert tables_of(ints(), ints(), TableLimits(100, 100)) == []


# What callers may get wrong

ONE = np.array([40.0])
LON = np.array([-74.0])


@pytest.mark.parametrize(
    ("lat", "lon", "origin", "target"),
    [
        (np.array([90.1]), LON, ints(0), ints(0)),
        (np.array([np.nan]), LON, ints(0), ints(0)),
        (ONE, np.array([-180.1]), ints(0), ints(0)),
        (ONE, np.array([np.inf]), ints(0), ints(0)),
        (np.array([1.0, 2.0]), LON, ints(0), ints(0)),
        (np.array([[1.0]]), np.array([[1.0]]), ints(0), ints(0)),
        (ONE, LON, ints(1), ints(0)),
        (ONE, LON, ints(0), ints(-1)),
        (ONE, LON, ints(0, 0), ints(0)),
        (ONE, LON, np.array([0.0]), ints(0)),
        (ONE, LON, np.array([[0]]), np.array([[0]])),
    ],
)
def test_malformed_legs_are_refused(lat: Floats, lon: Floats, origin: Ints, target: Ints) -> None:
    with pytest.raises(ValueError):
        Legs(lat, lon, ONE, LON, origin, target)
    with pytest.raises(ValueError):
        Legs(ONE, LON, lat, lon, target, origin)


def test_legs_without_pairs_or_places_are_legs() -> None:
    none = np.empty(0)
    assert len(Legs(none, none, none, none, ints(), ints())) == 0


@pytest.mark.parametrize("s_per_m", [0.0, -1.0, float("nan"), float("inf")])
def test_a_pace_that_is_not_positive_is_refused(s_per_m: float) -> None:
    with pytest.raises(ValueError):
        StraightLine(s_per_m)


def test_bounds_that_allow_nothing_are_refused() -> None:
    with pytest.raises(ValueError):
        Bounds(timeout_s=0.0)
    with pytest.raises(ValueError):
        Bounds(call_s_max=float("nan"))
    with pytest.raises(ValueError):
        Bounds(concurrency=0)
    with pytest.raises(ValueError):
        Bounds(pairs_max=-1)
    with pytest.raises(ValueError):
        TableLimits(1, 10)
