"""What the tests of the feeds share: fixes, an index, a running follower, and waiting for a condition."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable

from geo.feed import Feed, Follower
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, MarketId, Removal, Where

RESOLUTION = 8
STALE_AFTER_MS = 30_000
HERE = LatLng(40.75, -73.98)
FAR = LatLng(40.60, -73.80)


def fix(driver: str, seq: int = 1, *, epoch: int = 1, instance: int = 1, at: LatLng = HERE, age_ms: int = 0) -> Fix:
    return Fix(DriverId(driver), at.lat, at.lon, epoch, instance, seq, age_ms, "standard", 4)


def index() -> DriverIndex:
    return DriverIndex(resolution=RESOLUTION, stale_after_ms=STALE_AFTER_MS)


def drivers_near(drivers: DriverIndex, point: LatLng, now_ms: int) -> list[str]:
    return [
        str(found.driver_id) for found in drivers.nearest(point, 1000, limit_m=1000.0, where=Where(), now_ms=now_ms)
    ]


@contextlib.asynccontextmanager
async def running(follower: Follower) -> AsyncIterator[None]:
    """Runs a follower, and ends it as the service does: by cancelling it once. It must end within seconds."""
    task = asyncio.create_task(follower.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=5)
    assert task.done(), "the follower goes on after it was cancelled"
    if not task.cancelled():
        task.result()


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


class Bench:
    """A feed, one market of it, and one replica that follows."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.market = MarketId(f"market-{uuid.uuid4().hex[:8]}")
        self.index = index()
        self.follower = feed.follow(self.market, self.index)

    async def publish(self, *fixes: Fix, removals: tuple[Removal, ...] = ()) -> tuple[int, tuple[str, ...]]:
        """Publishes, and waits until the replica has it."""
        published = await self.feed.publish(self.market, fixes, removals)
        await self.follower.caught_up()
        return published.applied, published.outdated

    def near(self, point: LatLng) -> list[str]:
        return drivers_near(self.index, point, self.feed.now_ms())
