"""A market, and what a pairing costs in it: seconds, and nothing but arithmetic.

This module rules over prices and limits. It knows no driver, no index and no
clock; who is near whom is the batch's matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from geo.area import Area
from geo.model import MarketId
from matcher.life import DEFAULT as LIFE
from matcher.life import Life
from matcher.problem import COST_MAX, Seconds, on_grid
from matcher.zones import Zone

#: The longest time that a limit or a price may name, some 115 days.
SECONDS_MAX = 1e7
#: The dearest price of leaving a ride, above twice the longest pickup; it leaves room for the rest of a cost.
UNMATCHED_S_MAX = COST_MAX / 4.0
#: A limit of pickups grows by eighths of itself, up to four times itself: few kinds of rides arise (P10).
PICKUP_STEPS, PICKUP_FACTOR_MAX = 8, 4.0


@dataclass(frozen=True, slots=True)
class Market:
    """The area whose rides and drivers are matched together, with its limits and prices.

    `window_s` is how long rides gather for a batch, 0 for "on arrival".
    `max_pickup_s` and `max_pickup_m` (straight line) both limit a pairing.
    `pickup_growth` is by how many seconds `max_pickup_s` grows for each second
    that a ride has waited, in whole eighths of itself and up to `pickup_s_most`
    (None: twice `max_pickup_s`; never beyond four times); `max_pickup_m` and
    the base of the price of leaving the ride grow with it.
    `unmatched_base_s` None means twice `max_pickup_s`. It has to exceed
    `max_pickup_s`, so that a ride is never left out while a driver in reach
    stays free; at twice it, serving a ride is worth the price even where
    another ride has to take a second-best driver for it. `unmatched_growth` is
    by how many seconds that price grows a second of waiting: at 1, a second
    waited weighs as much as a second of the driver's way.
    `abandon_after_ms` is how long a trip may live; `deadline_*_ms` how long a
    ride may search. `rides_per_batch_max` bounds one decision (P10): the oldest.

    What a pairing costs beside its way (design: cost of a pairing), each term in seconds:
    `downgrade_s[driver's class][ride's class]` lets a driver of a better class serve a lesser ride at that
    price; `idle_bonus` is by how many seconds a second of idleness makes a driver cheaper, up to
    `idle_bonus_s_max` in all; `refusal_s` is the price of a certain refusal, of which each driver's estimated
    share counts. `has_ways`: road times price the way, and nobody drives a straight line faster than
    `top_speed_mps`, which is how candidates are preselected without excluding a better one.
    `tags` are what a ride may ask of a vehicle. `adaptive_window`: the batch closes when waiting longer is
    expected to cost more than it brings, after `window_s` at the earliest and `window_s_max` at the latest.
    `zones` are places where drivers queue, each of another id.

    `life` are the limits of offers and trips. A driver who is to be free within `chain_within_s` (0: nobody) may be
    given its next ride, which is taken from it where its turn comes `chain_late_s` later than expected. Who accepted
    and came less than `stall_m` nearer to the pickup in `stall_after_s` (0: for ever) is replaced. A ride for later,
    at most `schedule_ahead_s` from now, is searched for from `schedule_lead_s` before its time on; in the last
    `guarantee_s` before it, it goes before every ride without such a time.

    Raises ValueError naming the field that makes no sense.
    """

    id: MarketId
    area: Area
    window_s: float = 2.0
    max_pickup_s: float = 1800.0
    max_pickup_m: float = 15_000.0
    pickup_growth: float = 0.0
    pickup_s_most: float | None = None
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
    downgrade_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    idle_bonus: float = 0.0
    idle_bonus_s_max: float = 300.0
    refusal_s: float = 0.0
    has_ways: bool = False
    top_speed_mps: float = 40.0
    adaptive_window: bool = False
    window_s_max: float = 30.0
    zones: tuple[Zone, ...] = ()
    life: Life = LIFE
    chain_within_s: float = 0.0
    chain_late_s: float = 300.0
    stall_after_s: float = 600.0
    stall_m: float = 200.0
    schedule_lead_s: float = 900.0
    schedule_ahead_s: float = 604_800.0
    guarantee_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_pickup_s", "max_pickup_m", "speed_mps", "solve_s_max", "top_speed_mps"):
            _check(self.id, name, getattr(self, name), least=0.0, open_below=True)
        _check(self.id, "window_s", self.window_s, least=0.0)
        for name in ("max_pickup_s", "pickup_s_most", "unmatched_base_s", "idle_bonus_s_max", "refusal_s"):
            _check_most(self.id, name, getattr(self, name))
        for name in ("pickup_growth", "unmatched_growth", "idle_bonus", "idle_bonus_s_max", "refusal_s"):
            _check(self.id, name, getattr(self, name), least=0.0)
        _check(self.id, "window_s_max", self.window_s_max, least=self.window_s)
        for better, lesser in self.downgrade_s.items():
            for worse, seconds in lesser.items():
                _check(self.id, f"downgrade_s.{better}.{worse}", seconds, least=0.0)
                _check_most(self.id, f"downgrade_s.{better}.{worse}", seconds)
        _check(self.id, "detour_factor", self.detour_factor, least=1.0)
        for name in ("candidates_per_ride", "deadline_default_ms", "abandon_after_ms", "seats_max"):
            _check(self.id, name, getattr(self, name), least=1)
        _check(self.id, "rides_per_batch_max", self.rides_per_batch_max, least=1)
        _check(self.id, "deadline_max_ms", self.deadline_max_ms, least=self.deadline_default_ms)
        if self.unmatched_base_s is not None:
            _check(self.id, "unmatched_base_s", self.unmatched_base_s, least=self.max_pickup_s, open_below=True)
        if self.pickup_s_most is not None:
            _check(self.id, "pickup_s_most", self.pickup_s_most, least=0.0, open_below=True)
        for name in ("chain_within_s", "chain_late_s", "stall_after_s", "stall_m"):
            _check(self.id, name, getattr(self, name), least=0.0)
        for name in ("schedule_lead_s", "schedule_ahead_s", "guarantee_s"):
            _check(self.id, name, getattr(self, name), least=0.0)
        if not self.classes:
            raise ValueError(f"market {self.id}: classes must name one class at least")
        if len({zone.id for zone in self.zones}) != len(self.zones):
            raise ValueError(f"market {self.id}: two zones have the same id")

    @property
    def s_per_m(self) -> float:
        """Seconds a metre of straight line: what the way costs, or with road times the least it can cost."""
        return 1.0 / self.top_speed_mps if self.has_ways else self.detour_factor / self.speed_mps

    def classes_for(self, vehicle_class: str) -> frozenset[str]:
        """The driver classes that may serve a ride of this class."""
        better = {each for each, lesser in self.downgrade_s.items() if vehicle_class in lesser}
        return frozenset((vehicle_class, *better))

    def extra_s(self, ride_class: str, driver_class: str) -> float:
        """The price of this driver's class for this ride's; infinite where it may not serve it."""
        if ride_class == driver_class:
            return 0.0
        return float(on_grid(self.downgrade_s.get(driver_class, {}).get(ride_class, math.inf)))

    def pickup_s(self, distance_m: Seconds) -> Seconds:
        """Expected travel time over a straight-line distance in metres, on the grid of costs.

        Monotone, hence a lower bound of a distance gives a lower bound of the cost (P8).
        """
        return on_grid(distance_m * (self.detour_factor / self.speed_mps))

    @property
    def longest_pickup_s(self) -> float:
        """What `max_pickup_s` may grow to, were it not for the steps."""
        most_s = 2.0 * self.max_pickup_s if self.pickup_s_most is None else self.pickup_s_most
        return max(self.max_pickup_s, min(most_s, PICKUP_FACTOR_MAX * self.max_pickup_s, SECONDS_MAX))

    def pickup_factor(self, waited_s: Seconds) -> Seconds:
        """How many times the limits of a pickup hold for a ride that has waited so long: 1, 9/8, 10/8 ..."""
        grown_s = np.clip(self.pickup_growth * waited_s, 0.0, self.longest_pickup_s - self.max_pickup_s)
        factor: Seconds = 1.0 + np.floor(PICKUP_STEPS * grown_s / self.max_pickup_s) / PICKUP_STEPS
        return factor

    def idle_s(self, idle_s: Seconds) -> Seconds:
        """The bonus of a driver that has been idle for so long."""
        bonus_s: Seconds = np.clip(self.idle_bonus * idle_s, 0.0, self.idle_bonus_s_max)
        return on_grid(bonus_s)

    def refusal_risk_s(self, share: Seconds) -> Seconds:
        """The price of the risk that a driver who refuses this share of rides refuses this one."""
        return on_grid(self.refusal_s * share)

    def unmatched_s(self, waited_s: Seconds) -> Seconds:
        """The price of leaving a ride unmatched that has waited so long; it stops growing at UNMATCHED_S_MAX."""
        limit_s = self.max_pickup_s * self.pickup_factor(waited_s)
        base_s = 2.0 * limit_s
        if self.unmatched_base_s is not None:
            base_s = self.unmatched_base_s + (limit_s - self.max_pickup_s)
        price_s: Seconds = np.minimum(base_s + self.unmatched_growth * waited_s, UNMATCHED_S_MAX)
        return on_grid(price_s)


def _check(market: MarketId, name: str, value: float, *, least: float, open_below: bool = False) -> None:
    if not math.isfinite(value) or value < least or (open_below and value == least):
        relation = "more than" if open_below else "at least"
        raise ValueError(f"market {market}: {name} is {value!r}; it must be a number of {relation} {least:g}")


def _check_most(market: MarketId, name: str, seconds: float | None) -> None:
    if seconds is not None and seconds > SECONDS_MAX:
        raise ValueError(f"market {market}: {name} is {seconds!r}; it must be at most {SECONDS_MAX:.0f} seconds")
