"""One measured city from its first server to its closed books: set up, search, hold, audit."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.city_audit import Closed, close_books
from benchmarks.city_child import LoadChild
from benchmarks.city_ledger import unpacked
from benchmarks.city_options import APPLIED_S_MAX, CityOptions, Step
from benchmarks.city_places import Places
from benchmarks.city_profile import Line, Profile
from benchmarks.city_search import Search
from benchmarks.city_service import Servers, city_servers
from benchmarks.city_tally import LAG_S_MAX

#: Trips of the search are short, so that a stretch of some seconds has all commands at their full rate.
SEARCH_TRIP_S = (3.0, 6.0)
#: What running out and closing the books take.
CLOSING_S = 25.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Course:
    """How it is measured: `search_s` a stretch of the search (0: none), `hold_s` the load that counts."""

    workers: int
    hold_s: float
    search_s: float
    budget_s: float  # for everything, as far as the search can see to it
    profile_s: float = 0.0
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Stretch:
    """What one stretch of load came to, with the CPU that it took by role (seconds of CPU a second)."""

    step: Step
    figures: dict[str, Any]
    cpu_share: dict[str, float]

    def p99_s(self, name: str) -> float:
        return float(self.figures["latencies"].get(name, {}).get("p99_s", 0.0))

    @property
    def busy_share(self) -> float:
        """Of the whole machine, as far as the city used it."""
        return sum(self.cpu_share.values()) / (os.cpu_count() or 1)

    def misses(self, limit_s: float) -> list[str]:
        """What of the goal was missed; empty where it was met."""
        counts, found = self.figures["counts"], []
        if self.figures["given_up"] or self.p99_s("request_to_offer") > limit_s:
            found.append(f"offers at {self.p99_s('request_to_offer'):.2f} s (p99)")
        if counts.get("acknowledged", 0) < counts.get("asked", 0):
            found.append(f"{counts['asked'] - counts.get('acknowledged', 0)} requests not acknowledged")
        if "position_to_applied" not in self.figures["latencies"]:
            found.append("no position was seen applied")
        elif self.p99_s("position_to_applied") > APPLIED_S_MAX:
            found.append(f"positions applied after {self.p99_s('position_to_applied'):.2f} s (p99)")
        return found

    @property
    def is_late(self) -> bool:
        """The generator itself was too late for its latencies to be the service's."""
        return self.p99_s("generator_lag") > LAG_S_MAX


@dataclass(slots=True)
class Measured:
    options: CityOptions
    signed_on: dict[str, Any]
    search: list[Stretch]
    held: Stretch
    closed: Closed
    end: dict[str, Any]
    profile: dict[str, list[Line]]

    @property
    def highest(self) -> Stretch | None:
        """What was held, where it was met; else the highest that was met for the seconds of a try; else None."""
        limit_s = self.options.limit_s
        if not self.held.misses(limit_s):
            return self.held
        met = [each for each in self.search if not each.misses(limit_s)]
        return max(met, key=lambda each: each.step.factor, default=None)


async def measured(options: CityOptions, places: Places, course: Course, tell: Tell) -> Measured:
    """Raises ServerMissing, NotStarted, LoadEnded."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hexhail-city-") as name:
        folder = Path(name)
        tell("Redis, MariaDB, the service")
        async with city_servers(options, places, course.workers, folder, course.settings) as servers:
            load = LoadChild(replace(options, port=servers.port, redis_url=servers.redis_url), folder / "load.log")
            try:
                await load.start()
                servers.pids["generator"] = [load.pid]
                tell(f"{options.drivers} drivers sign on")
                signed_on = await load.sign_on()
                city = _City(options, servers, load, tell)
                search_until_s = began_s + course.budget_s - course.hold_s - CLOSING_S
                search = await city.search(course.search_s, search_until_s) if course.search_s else Search(met=1.0)
                held = await city.hold(search.held, course)
                tell("trips run out, the books are closed")
                seen_at = folder / "seen"
                end = await load.finish(seen_at)
                seen = unpacked(await asyncio.to_thread(seen_at.read_bytes))
                closed = await asyncio.to_thread(close_books, servers.database_url, seen)
            finally:
                await load.stop()
    return Measured(options, signed_on, city.stretches, held, closed, end, city.profile)


class _City:
    def __init__(self, options: CityOptions, servers: Servers, load: LoadChild, tell: Tell) -> None:
        self.stretches: list[Stretch] = []
        self.profile: dict[str, list[Line]] = {}
        self._options = options
        self._servers = servers
        self._load = load
        self._tell = tell

    async def search(self, seconds: float, until_s: float) -> Search:
        """As many stretches as there is time for."""
        search = Search()
        took_s = seconds * 1.5 + self._options.limit_s
        while not search.is_over and time.monotonic() + took_s < until_s:
            began_s = time.monotonic()
            stretch = await self.run(Step(search.next(), seconds, SEARCH_TRIP_S, gives_up=True))
            took_s = max(took_s, time.monotonic() - began_s)
            self.stretches.append(stretch)
            search.note(
                stretch.step.factor,
                is_met=not stretch.misses(self._options.limit_s),
                busy_share=stretch.busy_share,
            )
        return search

    async def hold(self, factor: float, course: Course) -> Stretch:
        profile = Profile(self._servers.pids, course.profile_s)
        stretch = await self.run(Step(factor, course.hold_s, self._options.trip_s, warm_s=2.0), profile.start)
        self.profile = await profile.result()
        return stretch

    async def run(self, step: Step, beside: Callable[[], None] = lambda: None) -> Stretch:
        options = self._options
        said = (
            f"{options.rides_per_s * step.factor:.0f} rides/s, {options.positions_per_s * step.factor:.0f} positions/s"
        )
        self._tell(f"{said} for {step.seconds:g} s")
        self._servers.look()
        cpu: list[tuple[float, Counter[str]]] = []

        def look() -> None:
            cpu.append((time.monotonic(), self._servers.cpu_s()))

        def began() -> None:
            look()
            beside()

        figures = await self._load.run(step, began=began, over=look)
        stretch = Stretch(step, figures, cpu_share(*cpu))
        self._tell("  " + _said(stretch, options.limit_s))
        return stretch


def cpu_share(before: tuple[float, Counter[str]], after: tuple[float, Counter[str]]) -> dict[str, float]:
    """CPU-seconds a second between two looks, by role."""
    seconds = max(after[0] - before[0], 1e-9)
    return {role: (after[1][role] - before[1][role]) / seconds for role in after[1]}


def _said(stretch: Stretch, limit_s: float) -> str:
    missed = stretch.misses(limit_s)
    offers = f"offers p99 {stretch.p99_s('request_to_offer'):.2f} s of {limit_s:.2f} s"
    busy = f"{stretch.busy_share:.0%} of the machine"
    late = ", the generator was late" if stretch.is_late else ""
    return f"{'missed: ' + '; '.join(missed) if missed else 'met: ' + offers}, {busy}{late}"
