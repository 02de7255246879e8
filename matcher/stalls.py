"""Drivers who accepted and do not come nearer: told from how the distance to the pickup shrinks. Pure.

A driver has to gain `stall_m` metres within any `stall_after_s` seconds since it accepted, unless it is that near
already. One that is not heard of any more gains nothing. A trip that was a next one counts from when its turn has
come, and one for later from when its search would have begun. A matcher that takes over counts from then too where
nothing was gained since, else from its first look on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from geo.model import DriverId, LatLng
from matcher.model import TripId
from matcher.outcomes import Approach
from matcher.policy import Market

#: Metres from the driver to a place, None where the driver is not known to be anywhere now.
Away = Callable[[DriverId, LatLng], float | None]


@dataclass(slots=True)
class _Progress:
    """The distance that is to be undercut by `stall_m`, and since when."""

    away_m: float
    since_ms: int


class StallWatch:
    """Follows one market's drivers on their way to a pickup. Times are the database's, in whole ms."""

    def __init__(self, market: Market) -> None:
        self._after_ms = round(market.stall_after_s * 1000)
        self._gain_m = market.stall_m
        self._progress: dict[TripId, _Progress] = {}
        self._was_blind = False

    def blind(self) -> None:
        """Positions are not live: nobody can be seen to gain anything, so that all begin anew afterwards."""
        self._was_blind = True
        for progress in self._progress.values():
            progress.since_ms = -1

    def look(self, now_ms: int, approaches: Sequence[Approach], away: Away) -> list[Approach]:
        """Those who have stalled. `approaches` are all of the market's; who is not among them is forgotten."""
        before, self._progress = self._progress, {}
        stalled = [each for each in approaches if self._has_stalled(each, before.get(each.trip_id), now_ms, away)]
        self._was_blind = False
        return stalled

    def _has_stalled(self, one: Approach, known: _Progress | None, now_ms: int, away: Away) -> bool:
        away_m = away(one.driver_id, one.pickup)
        progress = known or self._first(one, now_ms, away_m)
        self._progress[one.trip_id] = progress
        if progress.since_ms < 0:
            progress.since_ms = now_ms
        if away_m is not None and (away_m <= self._gain_m or progress.away_m - away_m >= self._gain_m):
            progress.away_m, progress.since_ms = away_m, now_ms
        return now_ms - progress.since_ms >= self._after_ms

    def _first(self, one: Approach, now_ms: int, away_m: float | None) -> _Progress:
        """Where the driver was when it set out is not always known: then it counts from here and now."""
        if one.distance_m:
            return _Progress(one.distance_m, now_ms if self._was_blind else one.since_ms)
        return _Progress(math.inf if away_m is None else away_m, now_ms)
