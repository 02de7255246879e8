"""When a position is applied: a replica of the market's feed, as every process of the service holds one.

A few drivers' records are looked at every few milliseconds. A record's count is that of the positions its driver
has sent in this session, so that it says which of them has come through.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from benchmarks.city_driver import Driver
from benchmarks.city_options import MARKET
from geo.index import DriverIndex
from geo.model import MarketId
from geo.redis_feed import RedisFeed

LOOK_EVERY_S = 0.02
#: The service's own, by default.
CELL_RESOLUTION = 8
STALE_AFTER_MS = 30_000


class FeedWatch:
    """Watches the `timed` drivers; `applied` hears how long after it was due each of their positions was there."""

    def __init__(self, redis_url: str, timed: Sequence[Driver], applied: Callable[[float], None]) -> None:
        self._feed = RedisFeed(redis_url, CELL_RESOLUTION)
        self._index = DriverIndex(resolution=CELL_RESOLUTION, stale_after_ms=STALE_AFTER_MS)
        self._follower = self._feed.follow(MarketId(MARKET), self._index)
        self._timed = timed
        self._applied = applied
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._follower.run()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._feed.close()

    @property
    def unapplied(self) -> int:
        """Positions of the watched drivers that have not come through."""
        return sum(len(each.awaited) for each in self._timed if each.awaited is not None)

    async def _watch(self) -> None:
        held: list[Driver] = []
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if len(held) < len(self._timed):
                held = [each for each in self._timed if each.feed_id in self._index]
            if held:
                self._look(held)

    def _look(self, held: Sequence[Driver]) -> None:
        counts = self._index.records_of([each.feed_id for each in held])["seq"].tolist()
        now_s = time.monotonic()
        for driver, count in zip(held, counts, strict=True):
            awaited = driver.awaited
            while awaited and awaited[0][0] <= count:
                self._applied(now_s - awaited.popleft()[1])
