"""What a driver takes in Redis: published through the feed as the service does it, and by plain GEOADD.

`used_memory` before and after, on a Redis of our own without anything else in it; the stream of batches, which is
bounded whatever the number of drivers, is taken off by its own `MEMORY USAGE`. Both sides hold the same fleet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import redis

from benchmarks.memory_index import RESOLUTION, fixes
from benchmarks.servers import RedisServer, redis_client
from geo.model import MarketId
from geo.redis_feed import RedisFeed
from geo.redis_scripts import Keys

MARKET = MarketId("bench")


def used_bytes(client: redis.Redis) -> int:
    """Clients' buffers included: these are the same before and after."""
    return int(client.info("memory")["used_memory"])


def grown_by(fill: Callable[[str], None], stream: bytes | None = None) -> int:
    """Bytes by which a fresh Redis grows while this fills it, without the stream of that name."""
    server = RedisServer()
    try:
        server.start()
        with contextlib.closing(redis_client(server.url)) as client:
            before = used_bytes(client)
            fill(server.url)
            grown = used_bytes(client) - before
            return grown - (int(client.memory_usage(stream, samples=0) or 0) if stream else 0)
    finally:
        server.remove()


def feed_bytes_a_driver(drivers: int, seed: int) -> float:
    async def publish(url: str) -> None:
        feed = RedisFeed(url, RESOLUTION)
        try:
            for batch in fixes(drivers, seed):
                await feed.publish(MARKET, batch)
        finally:
            await feed.close()

    return grown_by(lambda url: asyncio.run(publish(url)), Keys.of(MARKET, RESOLUTION).stream) / drivers


def geoadd_bytes_a_driver(drivers: int, seed: int) -> float:
    """Places alone: no stamp, no age, no class, no seats."""

    def add(url: str) -> None:
        with contextlib.closing(redis_client(url)) as client:
            for batch in fixes(drivers, seed):
                members = [part for fix in batch for part in (fix.lon, fix.lat, fix.driver_id)]
                client.geoadd("drivers", members)

    return grown_by(add) / drivers
