"""What one stretch of load came to: counts, and latencies from the moment at which each thing was due.

Latencies go into histograms of three digits, in microseconds. A ride that was never offered counts with the
longest latency that is told apart, so that what is dropped cannot look quick.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hdrh.histogram import HdrHistogram

LATENCY_S_MAX = 60.0
_US = 1e6
#: Points of the curve in a report.
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9)
#: A later generator would be taken for a later server.
LAG_S_MAX = 0.05


class Latency:
    """One histogram of seconds."""

    __slots__ = ("_histogram",)

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, int(LATENCY_S_MAX * _US), 3)

    def add(self, seconds: float) -> None:
        self._histogram.record_value(max(1, int(min(seconds, LATENCY_S_MAX) * _US)))

    @property
    def count(self) -> int:
        return int(self._histogram.get_total_count())

    def at(self, percent: float) -> float:
        """Seconds; 0 of none."""
        return float(self._histogram.get_value_at_percentile(percent)) / _US if self.count else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "p50_s": self.at(50.0),
            "p99_s": self.at(99.0),
            "max_s": float(self._histogram.get_max_value()) / _US if self.count else 0.0,
            "curve": [[percent, self.at(percent)] for percent in PERCENTILES],
        }


class Tally:
    """One stretch's. `started_s` is when its first ride is due, `seconds` how long rides are asked for."""

    def __init__(self, factor: float, started_s: float, seconds: float, rides: int, limit_s: float) -> None:
        self.factor = factor
        self.started_s = started_s
        self.seconds = seconds
        self.rides = rides  # that will have been asked for
        self.limit_s = limit_s
        self.late = 0  # of the offers made
        self.counts: Counter[str] = Counter()
        self.latencies: dict[str, Latency] = {}
        self.offers: list[tuple[float, float]] = []  # due since the start, latency; for the plot

    def latency(self, name: str) -> Latency:
        found = self.latencies.get(name)
        if found is None:
            found = self.latencies[name] = Latency()
        return found

    def offered(self, due_s: float, now_s: float) -> None:
        self.counts["offered"] += 1
        self.late += now_s - due_s > self.limit_s
        self.latency("request_to_offer").add(now_s - due_s)
        self.offers.append((due_s - self.started_s, now_s - due_s))

    def never_offered(self, due_s: float) -> None:
        self.counts["never_offered"] += 1
        self.latency("request_to_offer").add(LATENCY_S_MAX)
        self.offers.append((due_s - self.started_s, LATENCY_S_MAX))

    def as_json(self) -> dict[str, Any]:
        return {
            "factor": self.factor,
            "seconds": self.seconds,
            "counts": dict(self.counts),
            "latencies": {name: each.as_json() for name, each in sorted(self.latencies.items())},
            "offers": _thinned(self.offers),
        }


def _thinned(points: list[tuple[float, float]], bins: int = 60) -> list[list[float]]:
    """Of each bin of time: its middle, median and 99th percentile; what a plot shows."""
    if not points:
        return []
    points.sort()
    width = max(points[-1][0], 1e-9) / bins
    found, at = [], 0
    for number in range(bins):
        end = at
        while end < len(points) and points[end][0] <= (number + 1) * width:
            end += 1
        some = sorted(each for _, each in points[at:end])
        if some:
            found.append(
                [(number + 0.5) * width, some[len(some) // 2], some[min(len(some) - 1, int(0.99 * len(some)))]]
            )
        at = end
    return found
