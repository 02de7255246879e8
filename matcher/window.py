"""When to close a batch: as soon as waiting longer is expected to cost more than it brings. Pure.

The rule. Suppose n stand on the thicker side (rides that wait, or idle drivers, whichever are more) and k on
the thinner one, so that k pairs could be made now. By the distance to the nearest of n points strewn over an
area (P. J. Clark and F. C. Evans, "Distance to nearest neighbor as a measure of spatial relationships in
populations", Ecology 35, 1954: it falls with the root of their density), a pair's way takes about a / sqrt(n)
seconds, and whoever has to step back for another of the k pays about k / n of a way for it, unless they are
assigned together. Where the thicker side grows by r a second and the thinner one by s, a second of waiting
shortens the way of each of the k pairs by

    a / sqrt(n) * (r / 2 + s) / n   seconds,

and costs each of them one second. So the batch is held while that is more than one, that is until

    n >= (a * (r / 2 + s)) ** (2 / 3).

That a longer interval thickens both sides and shortens the way, and what it costs, is the trade studied by
H. Yang, X. Qin, J. Ke and J. Ye, "Optimizing matching time interval and matching radius in on-demand
ride-sourcing markets", Transportation Research Part B 131, 2020, who set one interval for a state of the
market; that waiting pays where a market is thin and is wasted where it is thick, by M. Akbarpour, S. Li and
S. Oveis Gharan, "Thickness and information in dynamic matching markets", Journal of Political Economy 128,
2020. The marginal rule above, and its being asked anew whenever somebody arrives, are our own; `hexhail
simulate` measures what they are worth.

Nothing is set by hand: a follows from the ways of the batches made, r and s from who came of late, so that a
slow road network, a sparse town and a rush hour each have their own windows. This module knows no clock and
no market; times are whole milliseconds and given by the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

#: Arrivals of so long ago weigh 1/e of those of now.
RATE_SPAN_S: Final = 60.0
#: What the newest batch weighs in the scale of ways.
WAY_WEIGHT: Final = 0.1


def thick_enough(way_scale_s: float, thick_per_s: float, thin_per_s: float) -> float:
    """How many of the thicker side make waiting no longer worth while. `way_scale_s` is a above."""
    return math.pow(way_scale_s * (0.5 * thick_per_s + thin_per_s), 2.0 / 3.0)


@dataclass(slots=True)
class ArrivalRate:
    """Arrivals a second, the older ones forgotten exponentially; unbiased from the first second on."""

    began_ms: int
    _weight: float = 0.0
    _at_ms: int = 0

    def __post_init__(self) -> None:
        self._at_ms = self.began_ms

    def add(self, now_ms: int, count: int) -> None:
        self._weight = self._weight * math.exp((self._at_ms - now_ms) / (1000.0 * RATE_SPAN_S)) + count
        self._at_ms = now_ms

    def per_s(self, now_ms: int) -> float:
        """0 until a second has been seen."""
        seen_s = (now_ms - self.began_ms) / 1000.0
        if seen_s < 1.0:
            return 0.0
        weight = self._weight * math.exp((self._at_ms - now_ms) / (1000.0 * RATE_SPAN_S))
        return weight / (RATE_SPAN_S * -math.expm1(-seen_s / RATE_SPAN_S))


class AdaptiveWindow:
    """One market's window: told who stands on either side, it says when to close the batch.

    A batch is open from the moment at which a pair could be made. It closes no sooner than `window_s` and no
    later than `window_s_max` after that. Those whom a batch left on both sides are not asked about again until
    somebody joins them, or for `window_s_max`. Not for several threads at once.
    """

    def __init__(self, window_s: float, window_s_max: float) -> None:
        self._window_ms, self._window_ms_max = round(window_s * 1000.0), round(window_s_max * 1000.0)
        self._rides = self._drivers = 0
        self._rates: tuple[ArrivalRate, ArrivalRate] | None = None
        self._open_since_ms: int | None = None
        self._has_news = True
        self._way_scale_s: float | None = None

    def close_at_ms(self, now_ms: int, rides: int, drivers: int) -> int:
        """When to close, given who waits and who is idle: at once where that is not after `now_ms`.

        Ask again then, and whenever anybody arrives or leaves: the answer holds for these sides. Where one of
        them is empty there is nothing to close, and the latest time is named.
        """
        rides_per_s, drivers_per_s = self._look(now_ms, rides, drivers)
        if not rides or not drivers:
            self._open_since_ms = None
            return now_ms + self._window_ms_max
        if self._open_since_ms is None:
            self._open_since_ms = now_ms
        earliest, latest = self._open_since_ms + self._window_ms, self._open_since_ms + self._window_ms_max
        if not self._has_news:
            return latest
        if self._way_scale_s is None:
            return earliest
        thick, thick_per_s, thin_per_s = (
            (rides, rides_per_s, drivers_per_s) if rides >= drivers else (drivers, drivers_per_s, rides_per_s)
        )
        missing = thick_enough(self._way_scale_s, thick_per_s, thin_per_s) - thick
        if missing <= 0.0:
            return earliest
        due = now_ms + math.ceil(1000.0 * missing / thick_per_s) if thick_per_s * 3600.0 > missing else latest
        return min(max(earliest, due), latest)

    def closed(self, pairs: int, way_s: float) -> None:
        """The batch was decided: so many pairs of the sides last looked at, whose ways take `way_s` on average."""
        thick = max(self._rides, self._drivers)
        self._rides, self._drivers = self._rides - pairs, self._drivers - pairs
        self._open_since_ms, self._has_news = None, False
        if pairs:
            scale_s = way_s * math.sqrt(thick)
            known_s = scale_s if self._way_scale_s is None else self._way_scale_s
            self._way_scale_s = known_s + WAY_WEIGHT * (scale_s - known_s)

    def _look(self, now_ms: int, rides: int, drivers: int) -> tuple[float, float]:
        """Takes note of who has come since the last look; returns both sides' arrivals a second.

        Who left without a pair hides as many arrivals: a rate is a little low where many give up.
        """
        if self._rates is None:
            self._rates = ArrivalRate(now_ms), ArrivalRate(now_ms)
        else:
            came = max(0, rides - self._rides), max(0, drivers - self._drivers)
            self._rates[0].add(now_ms, came[0])
            self._rates[1].add(now_ms, came[1])
            self._has_news = self._has_news or any(came)
        self._rides, self._drivers = rides, drivers
        return self._rates[0].per_s(now_ms), self._rates[1].per_s(now_ms)
