"""Since when drivers have been idle, by what was seen and what the store remembers."""

from __future__ import annotations

from geo.model import DriverId
from matcher.idleness import FORGET_MS, Idleness
from matcher.outcomes import DriverHistory
from tests.batches import history_of

A, B, C = DriverId("a"), DriverId("b"), DriverId("c")
NOBODY: frozenset[DriverId] = frozenset()


def remembered(**ended_at_ms: int | None) -> dict[DriverId, DriverHistory]:
    return {DriverId(name): history_of(name, ended_at_ms=each) for name, each in ended_at_ms.items()}


def test_a_driver_is_idle_from_the_first_look_at_which_it_is_there() -> None:
    idleness = Idleness()
    assert idleness.look(1000, [A], NOBODY, {}) == {A: 1000}
    assert idleness.look(2000, [A, B], NOBODY, {}) == {A: 1000, B: 2000}
    assert idleness.look(3000, [A, B], NOBODY, {}) == {A: 1000, B: 2000}


def test_an_engaged_driver_starts_anew_after_its_trip() -> None:
    idleness = Idleness()
    idleness.look(1000, [A, B], NOBODY, {})
    assert idleness.look(2000, [B], frozenset({A}), {}) == {B: 1000}
    assert idleness.look(9000, [A, B], NOBODY, {}) == {A: 9000, B: 1000}


def test_a_matcher_that_takes_over_knows_when_trips_ended() -> None:
    histories = remembered(a=400, b=None)
    assert Idleness().look(1000, [A, B, C], NOBODY, histories) == {A: 400, B: 1000, C: 1000}


def test_what_the_store_remembers_counts_at_the_first_look_alone() -> None:
    """Later a history may be older than the trip that the driver comes from."""
    idleness = Idleness()
    idleness.look(1000, [A], NOBODY, remembered(a=400))
    idleness.look(2000, [], frozenset({A}), remembered(a=400))
    assert idleness.look(3000, [A, B], NOBODY, remembered(a=400, b=100)) == {A: 3000, B: 3000}


def test_a_driver_who_is_away_for_a_while_keeps_its_time() -> None:
    idleness = Idleness()
    idleness.look(1000, [A], NOBODY, {})
    idleness.look(1000 + FORGET_MS, [], NOBODY, {})
    assert idleness.look(1001 + FORGET_MS, [A], NOBODY, {}) == {A: 1000}


def test_a_driver_not_seen_for_long_is_forgotten() -> None:
    """P10: who never comes back takes no memory."""
    idleness = Idleness()
    idleness.look(1000, [A, B], NOBODY, {})
    assert idleness.look(1001 + FORGET_MS, [B], NOBODY, {}) == {B: 1000}
    assert idleness.look(1002 + FORGET_MS, [A, B], NOBODY, {}) == {A: 1002 + FORGET_MS, B: 1000}
