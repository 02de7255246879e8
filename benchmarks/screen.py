"""Shows a run while it goes: a live table on a terminal, a plain line now and then elsewhere.

Everything shown comes from the clients' own books; the service is not asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.drivers import Activity
from benchmarks.ledger import percentile
from benchmarks.play import Play

LIVE_EVERY_S = 0.5
LINE_EVERY_S = 5.0
#: Recent matches whose times are shown.
RECENT = 500


@dataclass(frozen=True, slots=True)
class Figures:
    """One moment of a run. `waiting`: acknowledged, before their deadline, and nobody has heard of a driver."""

    phase: str
    elapsed_s: float
    requested: int
    acknowledged: int
    waiting: int
    offered: int
    matched: int
    to_match_p50_s: float | None
    pickup_p50_s: float | None
    positions_per_s: float
    drivers: Counter[Activity]
    errors: int


class Watcher:
    """Takes figures off a run; keeps what it needs for rates."""

    def __init__(self, play: Play) -> None:
        self._play = play
        self._counts: deque[tuple[float, int]] = deque(maxlen=8)

    def take(self, now_s: float) -> Figures:
        play, ledger = self._play, self._play.ledger
        sent, _ = play.fleet.positions()
        self._counts.append((now_s, sent))
        (then_s, before), elapsed_s = self._counts[0], now_s - (play.zero_s or now_s)
        acknowledged, waiting = self._rides(now_s)
        return Figures(
            phase=play.phase,
            elapsed_s=elapsed_s,
            requested=len(ledger.requests),
            acknowledged=acknowledged,
            waiting=waiting,
            offered=len(ledger.offered_at_s),
            matched=len(ledger.matched_at_s),
            to_match_p50_s=percentile(ledger.request_to_match_s()[-RECENT:], 0.5),
            pickup_p50_s=percentile(ledger.pickup_s[-RECENT:], 0.5),
            positions_per_s=(sent - before) / (now_s - then_s) if now_s > then_s else 0.0,
            drivers=play.fleet.activities(),
            errors=ledger.errors.total(),
        )

    def _rides(self, now_s: float) -> tuple[int, int]:
        ledger, patience_s = self._play.ledger, self._play.options.riders.deadline_s
        acknowledged = waiting = 0
        for request in ledger.requests.values():
            if request.ride_id is not None:
                acknowledged += 1
                waiting += request.ride_id not in ledger.matched_at_s and request.sent_at_s + patience_s > now_s
        return acknowledged, waiting


async def shown(play: Play, console: Console, *, title: str) -> None:
    """Runs the play while it is shown."""
    showing = asyncio.create_task(show(play, console, title=title))
    try:
        await play.run()
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def show(play: Play, console: Console, *, title: str) -> None:
    """Until cancelled; the last state stays on the screen."""
    watcher = Watcher(play)
    if not console.is_terminal:
        while True:
            await asyncio.sleep(LINE_EVERY_S)
            console.print(line(watcher.take(time.monotonic())), highlight=False, soft_wrap=True)
    progress = _progress(play)
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(_picture(title, watcher.take(time.monotonic()), progress), refresh=True)
                await asyncio.sleep(LIVE_EVERY_S)
        finally:
            live.update(_picture(title, watcher.take(time.monotonic()), progress), refresh=True)


def line(figures: Figures) -> str:
    drivers = ", ".join(f"{figures.drivers[each]} {each.value}" for each in Activity)
    offered = f"{figures.offered} offered, " if figures.offered else ""
    return (
        f"{figures.elapsed_s:6.0f} s  {figures.phase}: {figures.requested} requested, {figures.waiting} waiting, "
        f"{offered}{figures.matched} matched (p50 {_seconds(figures.to_match_p50_s)}), "
        f"{figures.positions_per_s:.0f} positions/s; drivers: {drivers}"
    )


def _progress(play: Play) -> Progress | None:
    if play.city.rides_total is None:
        return None
    columns = (TextColumn("rides"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, expand=True)
    progress.add_task("rides", total=play.city.rides_total)
    return progress


def _picture(title: str, figures: Figures, progress: Progress | None) -> RenderableType:
    table = Table(title=f"{title} - {figures.phase}", expand=False, min_width=64)
    table.add_column("rides")
    table.add_column("", justify="right")
    table.add_column("drivers")
    table.add_column("", justify="right")
    left = [
        ("waiting", str(figures.waiting)),
        ("requested", str(figures.requested)),
        ("acknowledged", str(figures.acknowledged)),
        ("offered to drivers", str(figures.offered)),
        ("matched", str(figures.matched)),
        ("request to match, p50", _seconds(figures.to_match_p50_s)),
        ("match to pickup, p50", _seconds(figures.pickup_p50_s)),
        ("errors", str(figures.errors)),
    ]
    right = [(each.value, str(figures.drivers[each])) for each in Activity]
    right.append(("positions/s", f"{figures.positions_per_s:.0f}"))
    for (name, value), (other, count) in zip(left, right, strict=True):
        table.add_row(name, value, other, count)
    if progress is None:
        return table
    progress.update(progress.task_ids[0], completed=figures.requested)
    return Group(table, progress)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
