"""A process that only follows: a replica of one market's drivers, as each further process of the service keeps one.

Runs under benchmarks.load_child. It costs what following costs and nothing else, and tells its own CPU time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from geo.index import DriverIndex
from geo.model import DriverId, MarketId
from geo.redis_feed import RedisFeed

#: How often a watched driver is looked at: a latency is told up to this much too long.
LOOK_EVERY_S = 0.002
READY_S_MAX = 20.0

Newest = tuple[float, float, int] | None


class Replica:
    """What a load child is asked to do; all that is returned is plain JSON."""

    def __init__(self) -> None:
        self._index: DriverIndex | None = None
        self._feed: RedisFeed | None = None
        self._following: asyncio.Task[None] | None = None

    async def follow(self, redis_url: str, market: str, resolution: int, stale_after_ms: int) -> None:
        """Returns when all drivers are read."""
        self._feed = RedisFeed(redis_url, resolution)
        self._index = DriverIndex(resolution=resolution, stale_after_ms=stale_after_ms)
        follower = self._feed.follow(MarketId(market), self._index)
        self._following = asyncio.create_task(follower.run())
        async with asyncio.timeout(READY_S_MAX):
            await follower.ready()

    async def cpu_s(self) -> float:
        """CPU-seconds this process has used so far."""
        return time.process_time()

    async def newest(self, ids: Sequence[str]) -> list[Newest]:
        """What the replica holds of these: latitude, longitude and count."""
        return _newest(self._held(), ids)

    async def read_again(self, redis_url: str, market: str, resolution: int, ids: Sequence[str]) -> list[Newest]:
        """What Redis' cells hold of these, read anew by a replica that starts now."""
        other = Replica()
        try:
            await other.follow(redis_url, market, resolution, 1_000_000)
            return _newest(other._held(), ids)
        finally:
            await other.stop()

    async def watch(self, ids: Sequence[str], seconds: float) -> list[tuple[str, int, float]]:
        """Looks at these drivers for so long: whose count changed to what, and when (monotonic seconds)."""
        index, seen = self._held(), []
        names = [DriverId(each) for each in ids]
        counts = {name: fix.seq if (fix := index.held(name)) is not None else 0 for name in names}
        stop_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < stop_s:
            for name in names:
                fix = index.held(name)
                if fix is not None and fix.seq != counts[name]:
                    counts[name] = fix.seq
                    seen.append((str(name), fix.seq, now_s))
            await asyncio.sleep(LOOK_EVERY_S)
        return seen

    def _held(self) -> DriverIndex:
        if self._index is None:
            raise RuntimeError("it does not follow yet")
        return self._index

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._feed is not None:
            await self._feed.close()


def _newest(index: DriverIndex, ids: Sequence[str]) -> list[Newest]:
    fixes = [index.held(DriverId(each)) for each in ids]
    return [None if each is None else (each.lat, each.lon, each.seq) for each in fixes]
