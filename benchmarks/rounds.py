"""Rounds of several sides in turn, and what their figures say: median, spread, ratio, and how noisy it is.

Both sides of a ratio are measured within seconds of each other, so that what slows the machine for a minute
slows both. The order turns from round to round: none is always the first after a pause.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

T = TypeVar("T")

#: Two runs are to agree within this.
AGREEMENT = 0.15
#: A ratio's relative error beyond which they may not: their difference has 2 ** 0.5 times it, and 95 in 100 differ by
#: less than twice that.
NOISE_MAX = AGREEMENT / (2.0 * math.sqrt(2.0))
#: Standard deviations a median absolute deviation, for a normal distribution.
_SIGMAS_A_DEVIATION = 1.4826
#: The standard error of a median by that of a mean, for a normal distribution.
_MEDIAN_BY_MEAN = 1.2533


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of some rounds, in whatever unit they have."""

    median: float
    low: float
    high: float
    rounds: int

    def as_json(self) -> dict[str, float | None]:
        return {name: rounded(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median, least and greatest of the rounds' ratios; `noise` is the median's relative standard error."""

    median: float
    low: float
    high: float
    noise: float

    @property
    def is_too_noisy(self) -> bool:
        return self.noise > NOISE_MAX

    def as_json(self) -> dict[str, float | None]:
        return {name: rounded(value) for name, value in asdict(self).items()}


def interleaved(
    sides: Mapping[str, Callable[[], T]], rounds: int, tell: Callable[[str], None] = lambda text: None
) -> dict[str, list[T]]:
    """What each side returned, a round after the other, the order turned every time."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in _order(sides, number):
            tell(f"round {number + 1} of {rounds}: {name}")
            found[name].append(sides[name]())
    return found


async def interleaved_async(
    sides: Mapping[str, Callable[[], Awaitable[T]]], rounds: int, tell: Callable[[str], None] = lambda text: None
) -> dict[str, list[T]]:
    """The same of coroutines, one at a time."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in _order(sides, number):
            tell(f"round {number + 1} of {rounds}: {name}")
            found[name].append(await sides[name]())
    return found


def _order(sides: Mapping[str, object], number: int) -> list[str]:
    names = list(sides)
    return names[::-1] if number % 2 else names


def spread_of(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio_of(ours: Sequence[float], peers: Sequence[float]) -> Ratio:
    """Ours by the peer's, pair by pair of each round. Of one round nothing is known about the noise: it is nan.

    Where a peer took nothing the ratio is nan. Raises ValueError where the sides have not as many rounds each, or none.
    """
    if len(ours) != len(peers) or not ours:
        raise ValueError(f"{len(ours)} rounds of ours and {len(peers)} of the peer's")
    ratios = [mine / other if other else math.nan for mine, other in zip(ours, peers, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), noise_of(ratios))


def noise_of(values: Sequence[float]) -> float:
    """The relative standard error of the median of these, from their median absolute deviation; nan of one."""
    if len(values) < 2:
        return math.nan
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values) * _SIGMAS_A_DEVIATION
    return abs(_MEDIAN_BY_MEAN * deviation / math.sqrt(len(values)) / median) if median else math.inf


def rounded(value: float | None) -> float | None:
    """To five digits: a figure of a measurement has no more. What is not finite is None: JSON has no word for it."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.5g}")
