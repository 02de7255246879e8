"""Open-loop load: what is to happen when is fixed beforehand, and a latency counts from that moment.

A load that waits for each answer before it asks again (a closed loop) sends nothing while the server stalls, and so
measures one slow answer where its users would have met thousands: coordinated omission (Gil Tene, "How NOT to
Measure Latency"). Here each act has its due time. It happens then or as soon after as the generator can, and its
latency is the time from when it was due. How late the generator itself was is measured, too: what it causes is
not to be read as the server's.

Schedules and pace are plain functions of time; only `OpenLoop.run` knows a loop and a clock. Times are seconds.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram

US_MIN, US_MAX, DIGITS = 1, 60_000_000, 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
#: After so many acts in one go the event loop gets a turn, so that answers are read meanwhile.
ACTS_A_TURN_MAX = 256


def even_times(rate_per_s: float, seconds: float) -> list[float]:
    """Due times spread evenly, the first at 0."""
    return [number / rate_per_s for number in range(round(rate_per_s * seconds))]


def poisson_times(rate_per_s: float, seconds: float, seed: int) -> list[float]:
    """Due times of a Poisson process within `seconds`: as many independent people would come, bunches included."""
    draw = np.random.default_rng(seed)
    count = draw.poisson(rate_per_s * seconds)
    return [float(each) for each in np.sort(draw.uniform(0.0, seconds, count))]


class Latency:
    """Latencies from 1 us to 60 s, to three digits; what is longer counts as 60 s."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(US_MIN, US_MAX, DIGITS)

    def record(self, seconds: float, count: int = 1) -> None:
        self._histogram.record_value(min(max(int(seconds * 1e6), US_MIN), US_MAX), count)

    @property
    def count(self) -> int:
        return int(self._histogram.get_total_count())

    def percentile_s(self, percent: float) -> float:
        """0 where nothing was recorded."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1e6 if self.count else 0.0

    def max_s(self) -> float:
        return float(self._histogram.get_max_value()) / 1e6 if self.count else 0.0

    def add(self, other: Latency) -> None:
        """Takes over what another has recorded."""
        self._histogram.add(other._histogram)

    def encoded(self) -> str:
        """For another process; `decoded` reads it."""
        return str(self._histogram.encode().decode("ascii"))

    @classmethod
    def decoded(cls, text: str) -> Latency:
        found = cls()
        if text:
            found._histogram.decode_and_add(text.encode("ascii"))
        return found

    def as_json(self) -> dict[str, Any]:
        """`count`, `p50_ms` and the like, `max_ms`."""
        shares = {f"p{percent:g}_ms": round(self.percentile_s(percent) * 1e3, 3) for percent in PERCENTILES}
        return {"count": self.count, **shares, "max_ms": round(self.max_s() * 1e3, 3)}


def merged(parts: Iterable[Latency]) -> Latency:
    """One of all, as of several processes."""
    whole = Latency()
    for part in parts:
        whole.add(part)
    return whole


class Pace:
    """Which acts of a schedule are due; `times` are ascending seconds from the start."""

    def __init__(self, times: Sequence[float], *, acts_a_turn_max: int = ACTS_A_TURN_MAX) -> None:
        self.times = times
        self.done = 0
        self._acts_a_turn_max = acts_a_turn_max

    @property
    def is_over(self) -> bool:
        return self.done == len(self.times)

    def take(self, at_s: float) -> range:
        """The numbers of the acts to be done now; they count as done."""
        first = self.done
        last = min(bisect_right(self.times, at_s, lo=first), first + self._acts_a_turn_max)
        self.done = last
        return range(first, last)

    def wait_s(self, at_s: float) -> float:
        """How long until the next is due; 0 where one is, or none is left."""
        return 0.0 if self.is_over else max(0.0, self.times[self.done] - at_s)


class OpenLoop:
    """Calls `act(number, due_s)` for each number when it is due, whatever became of the ones before.

    `act` only sends: it must not wait. `due_s` is a time of `clock`; when the answer comes, whoever gets it calls
    `answered(due_s)`, or records into `latency` itself. `lag` is how late the acts were begun: were it large, the
    load would be less, and its latencies longer, than was meant.
    """

    def __init__(
        self,
        rate_per_s: float,
        seconds: float,
        act: Callable[[int, float], None],
        *,
        poisson_seed: int | None = None,
        times: Sequence[float] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Evenly spread, or a Poisson process where there is a seed, or just as `times` say."""
        if times is None and poisson_seed is None:
            times = even_times(rate_per_s, seconds)
        elif times is None:
            times = poisson_times(rate_per_s, seconds, poisson_seed or 0)
        self.pace = Pace(times)
        self.latency = Latency()
        self.lag = Latency()
        self.began_s = 0.0
        self._act = act
        self._clock = clock

    def step(self, now_s: float) -> float:
        """Does what is due at this time; returns how long to wait until more is. Set `began_s` before the first."""
        at_s = now_s - self.began_s
        times, act, began_s = self.pace.times, self._act, self.began_s
        numbers = self.pace.take(at_s)
        for number in numbers:
            act(number, began_s + times[number])
        if numbers:  # all of a turn count as late as its first: no act was later than told
            self.lag.record(at_s - times[numbers[0]], len(numbers))
        return self.pace.wait_s(at_s)

    def answered(self, due_s: float) -> None:
        """The act that was due then has had its effect now."""
        self.latency.record(self._clock() - due_s)

    async def run(self, *, begin_s: float | None = None) -> None:
        """Returns when the last act is done. `begin_s`: a time of the clock to start at, now where there is none."""
        self.began_s = self._clock() if begin_s is None else begin_s
        if self.began_s > self._clock():
            await asyncio.sleep(self.began_s - self._clock())
        while not self.pace.is_over:
            wait_s = self.step(self._clock())
            await asyncio.sleep(wait_s)

    def as_json(self) -> dict[str, Any]:
        return {"acts": self.pace.done, "latency": self.latency.as_json(), "lag": self.lag.as_json()}
