"""Rounds take turns, and their ratio says how far it may be trusted."""

from __future__ import annotations

import math
from functools import partial

import pytest

from benchmarks.goals import Goal, how_far, judged, not_measured
from benchmarks.rounds import NOISE_MAX, interleaved, interleaved_async, noise_of, ratio_of, rounded, spread_of


def test_sides_take_turns_and_the_order_changes_from_round_to_round() -> None:
    called: list[str] = []
    found = interleaved({name: partial(_note, called, name) for name in "abc"}, 3)
    assert called == [*"abc", *"cba", *"abc"]
    assert found == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def _note(called: list[str], name: str) -> int:
    called.append(name)
    return len(called)


async def test_coroutines_take_turns_in_the_same_way() -> None:
    called: list[str] = []
    said: list[str] = []

    async def side(name: str) -> int:
        return _note(called, name)

    found = await interleaved_async({name: partial(side, name) for name in "ab"}, 2, said.append)
    assert called == ["a", "b", "b", "a"]
    assert found == {"a": [1, 4], "b": [2, 3]}
    assert said[0] == "round 1 of 2: a"


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """A machine that is half as fast in one round is so for both sides."""
    ratio = ratio_of([10.0, 20.0, 10.0], [5.0, 10.0, 5.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.noise) == (2.0, 2.0, 2.0, 0.0)
    assert not ratio.is_too_noisy


def test_rounds_that_differ_widely_are_too_noisy() -> None:
    ratio = ratio_of([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert ratio.noise > NOISE_MAX
    assert ratio.is_too_noisy


def test_one_outlier_does_not_make_many_rounds_noisy() -> None:
    assert noise_of([1.0, 1.01, 0.99, 1.0, 9.0]) < NOISE_MAX


def test_of_a_single_round_nothing_is_known_about_the_noise() -> None:
    ratio = ratio_of([3.0], [2.0])
    assert math.isnan(ratio.noise)
    assert not ratio.is_too_noisy
    assert ratio.as_json()["noise"] is None


@pytest.mark.parametrize(("ours", "peers"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_without_a_pair_are_refused(ours: list[float], peers: list[float]) -> None:
    with pytest.raises(ValueError, match="rounds"):
        ratio_of(ours, peers)


def test_figures_have_five_digits() -> None:
    assert spread_of([3.0, 1.0, 2.123456789]).as_json() == {"median": 2.1235, "low": 1.0, "high": 3.0, "rounds": 3}
    assert rounded(math.inf) is None


def test_goals_are_judged_by_what_was_measured_and_the_rest_is_named() -> None:
    goals = (Goal("fast", 2.0), Goal("small", 10.0, at_most=True), Goal("unknown", 1.0), Goal("nothing", 1.0))
    ratios = {"fast": 3.0, "small": 11.0, "nothing": math.nan, "beside": 5.0}
    assert judged(ratios, goals) == {"fast": [3.0, 2.0, True], "small": [11.0, 10.0, False]}
    assert not_measured(ratios, goals) == ["unknown", "nothing"]


@pytest.mark.parametrize(
    ("measured", "goal", "met", "words"),
    [(3.0, 2.0, True, "50% better"), (0.5, 2.0, False, "4.0 times short"), (0.0, 0.0, True, "reached")],
)
def test_how_far_a_goal_is_is_said_in_words(measured: float, goal: float, met: bool, words: str) -> None:
    assert how_far(measured, goal, met) == words
