"""A market, and what a pairing costs in it: seconds, and nothing but arithmetic.

This module rules over prices and limits. It knows no driver, no index and no
clock; who is near whom is the batch's matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from geo.area import Area
from geo.model import MarketId

Seconds = TypeVar("Seconds", float, npt.NDArray[np.float64])

#: Costs are whole multiples of 2**-10 s (about a millisecond). Sums of such
#: numbers are exact in doubles, so that an optimum and its certificate are
#: compared without any tolerance for rounding.
STEPS_PER_S = 1024.0


@dataclass(frozen=True, slots=True)
class Market:
    """The area whose rides and drivers are matched together, with its limits and prices.

    `window_s` is how long rides gather for a batch, 0 for "on arrival".
    `max_pickup_s` and `max_pickup_m` (straight line) both limit a pairing.
    `unmatched_base_s` None means twice `max_pickup_s`. It has to exceed
    `max_pickup_s`, so that a ride is never left out while a driver in reach
    stays free; at twice it, serving a ride is worth the price even where
    another ride has to take a second-best driver for it. `unmatched_growth` is
    by how many seconds that price grows a second of waiting: at 1, a second
    waited weighs as much as a second of the driver's way.
    `abandon_after_ms` is how long a trip may live; `deadline_*_ms` how long a
    ride may search. `rides_per_batch_max` bounds one decision (P10): the oldest.

    Raises ValueError naming the field that makes no sense.
    """

    id: MarketId
    area: Area
    window_s: float = 2.0
    max_pickup_s: float = 1800.0
    max_pickup_m: float = 15_000.0
    speed_mps: float = 7.0
    detour_factor: float = 1.3
    classes: tuple[str, ...] = ("standard",)
    unmatched_base_s: float | None = None
    unmatched_growth: float = 1.0
    candidates_per_ride: int = 16
    deadline_default_ms: int = 600_000
    deadline_max_ms: int = 3_600_000
    abandon_after_ms: int = 14_400_000
    solve_s_max: float = 1.5
    seats_max: int = 8
    rides_per_batch_max: int = 5000

    def __post_init__(self) -> None:
        for name in ("max_pickup_s", "max_pickup_m", "speed_mps", "solve_s_max"):
            _check(self.id, name, getattr(self, name), least=0.0, open_below=True)
        _check(self.id, "window_s", self.window_s, least=0.0)
        _check(self.id, "unmatched_growth", self.unmatched_growth, least=0.0)
        _check(self.id, "detour_factor", self.detour_factor, least=1.0)
        for name in ("candidates_per_ride", "deadline_default_ms", "abandon_after_ms", "seats_max"):
            _check(self.id, name, getattr(self, name), least=1)
        _check(self.id, "rides_per_batch_max", self.rides_per_batch_max, least=1)
        _check(self.id, "deadline_max_ms", self.deadline_max_ms, least=self.deadline_default_ms)
        if self.unmatched_base_s is not None:
            _check(self.id, "unmatched_base_s", self.unmatched_base_s, least=self.max_pickup_s, open_below=True)
        if not self.classes:
            raise ValueError(f"market {self.id}: classes must name one class at least")

    @property
    def reach_m(self) -> float:
        """The straight-line distance beyond which no pairing is allowed."""
        return min(self.max_pickup_m, self.max_pickup_s * self.speed_mps / self.detour_factor)

    def classes_for(self, vehicle_class: str) -> frozenset[str]:
        """The driver classes that may serve a ride of this class."""
        return frozenset((vehicle_class,))

    def pickup_s(self, distance_m: Seconds) -> Seconds:
        """Expected travel time over a straight-line distance in metres, on the grid of costs.

        Monotone, hence a lower bound of a distance gives a lower bound of the cost (P8).
        """
        return on_grid(distance_m * (self.detour_factor / self.speed_mps))

    def unmatched_s(self, waited_s: Seconds) -> Seconds:
        """The price of leaving a ride unmatched that has waited so long."""
        base_s = 2.0 * self.max_pickup_s if self.unmatched_base_s is None else self.unmatched_base_s
        return on_grid(base_s + self.unmatched_growth * waited_s)


def on_grid(seconds: Seconds) -> Seconds:
    """The nearest multiple of 2**-10 s; infinity stays."""
    rounded: Seconds = np.rint(seconds * STEPS_PER_S) / STEPS_PER_S
    return rounded


def _check(market: MarketId, name: str, value: float, *, least: float, open_below: bool = False) -> None:
    if not math.isfinite(value) or value < least or (open_below and value == least):
        relation = "more than" if open_below else "at least"
        raise ValueError(f"market {market}: {name} is {value!r}; it must be a number of {relation} {least:g}")
