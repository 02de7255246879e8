"""A simulated driver who moves as recorded, and serves trips as if it drove to them."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.cities import Start, Track
from benchmarks.drivers import Activity, Driver
from geo.model import LatLng

if TYPE_CHECKING:
    from benchmarks.fleet import Fleet


class TrackDriver(Driver):
    """A driver whose positions were recorded: it is where its track says, whatever trip it has.

    Its points are sent as recorded when their time has come, the newest at most once a
    position interval. While the record says `occupied` it is on a break, unless it serves
    a trip of this run; that trip's stages take the time of straight ways, as if driven.
    """

    def __init__(self, fleet: Fleet, start: Start, rng: random.Random, track: Track, clock: Callable[[float], float]):
        """`clock` turns this process's seconds into the track's."""
        super().__init__(fleet, start, rng)
        self._track = track
        self._clock = clock
        self._sent = -1

    def here(self, now_s: float) -> LatLng:
        index = self._index(now_s)
        return LatLng(self._track.lat[index], self._track.lon[index])

    async def step(self, now_s: float) -> float:
        await super().step(now_s)
        return now_s + self._fleet.options.position_interval_s

    async def send_position(self, now_s: float) -> None:
        index = self._index(now_s)
        if index != self._sent:
            here = self.here(now_s)
            await self.client.position(here.lat, here.lon)
            self._sent = index

    def wants_break(self, now_s: float) -> bool:
        is_busy = self._track.occupied[self._index(now_s)] and self.activity is Activity.IDLE
        return is_busy or super().wants_break(now_s)

    def _index(self, now_s: float) -> int:
        return max(0, bisect_right(self._track.at_s, self._clock(now_s)) - 1)
