"""What a measurement must show, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """`name` is a key of the ratios; met at `value` or more, or, with `at_most`, at `value` or less."""

    name: str
    value: float
    at_most: bool = False

    def is_met_by(self, measured: float) -> bool:
        return measured <= self.value if self.at_most else measured >= self.value


def judged(ratios: Mapping[str, float], goals: Iterable[Goal]) -> dict[str, list[Any]]:
    """Name: [measured, goal, met] of every goal whose ratio was measured."""
    return {
        goal.name: [ratios[goal.name], goal.value, goal.is_met_by(ratios[goal.name])]
        for goal in goals
        if _is_measured(ratios, goal)
    }


def not_measured(ratios: Mapping[str, float], goals: Iterable[Goal]) -> list[str]:
    """The goals that this run says nothing about."""
    return [goal.name for goal in goals if not _is_measured(ratios, goal)]


def _is_measured(ratios: Mapping[str, float], goal: Goal) -> bool:
    return not math.isnan(ratios.get(goal.name, math.nan))


def how_far(measured: float, goal: float, met: bool) -> str:
    """From the goal, in words."""
    if not goal or not measured:
        return "reached" if met else f"off by {abs(measured - goal):g}"
    times = max(measured / goal, goal / measured)
    far = f"{times:.1f} times" if times >= 2 else f"{times - 1:.0%}"
    return f"{far} {'better' if met else 'short'}"
