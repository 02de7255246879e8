"""The feed on Redis: publishing by one atomic script, following by a stream of numbered batches.

Keys, scripts and layouts are redis_scripts.py's; what a replica makes of what it
reads is replica.py's. This module does the talking, and survives whatever
happens to Redis: it may be flushed, restarted, frozen, cut off or replaced by an
older copy at any time, and the followers are whole again within seconds (P9).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from geo.feed import (
    SWEEP_AFTER_MS,
    SWEEP_EVERY_S,
    TOMBSTONE_MS,
    FeedUnavailable,
    Fixes,
    Published,
    parts_of,
    sweep_wait_s,
)
from geo.index import DriverIndex
from geo.model import DriverId, MarketId, Removal
from geo.records import PositionBatch
from geo.redis_link import RedisClock, RedisFaults, backoff_s, call, call_all, connect, reason_of
from geo.redis_scripts import (
    Keys,
    PublishReply,
    Scripts,
    publish_call,
    read_entry,
    read_head,
    read_publish_reply,
    unpack_ids,
)
from geo.replica import Head, Replica, Snapshot, Verdict

log = logging.getLogger(__name__)

#: How often a follower looks at the feed's head and clock.
HEARTBEAT_S = 0.5
#: How long to let batches gather in the stream between two reads. Each costs a third of a millisecond whatever it
#: brings, so reading many small batches at once keeps a further replica cheap, for this much delay.
READ_EVERY_S = 0.05
#: How many batches one read of the stream brings at most.
_BATCHES_A_READ_MAX = 16
#: How many drivers, and cells, one read of the cells brings about at most.
_DRIVERS_A_READ_MAX = 2_000
_CELLS_A_READ_MAX = 500


class RedisFeed:
    """See geo.feed.Feed.

    `timeout_s` bounds a connect, a reply and the wait for a connection each;
    a call of publish takes three times that at most for each 500 fixes.
    `stream_length_max` is how many batches the stream keeps: a replica that
    falls further behind reads the cells again.

    Before Redis was ever reached, `now_ms` is this machine's wall clock.
    """

    def __init__(
        self,
        url: str,
        resolution: int,
        *,
        timeout_s: float = 2.0,
        connections_max: int = 8,
        stream_length_max: int = 1_000,
        sweep_after_ms: int = SWEEP_AFTER_MS,
        sweep_every_s: float = SWEEP_EVERY_S,
        tombstone_ms: int = TOMBSTONE_MS,
    ) -> None:
        self.resolution = resolution
        self.timeout_s = timeout_s
        self.sweep_after_ms = sweep_after_ms
        self.sweep_every_s = sweep_every_s
        self.clock = RedisClock()
        self.scripts = Scripts.load()
        self._closed = False
        self._url = url
        self._stream_length_max = stream_length_max
        self._tombstone_ms = tombstone_ms
        self._client = connect(url, timeout_s=timeout_s, connections_max=connections_max)

    def now_ms(self) -> int:
        return self.clock.now_ms()

    async def publish(self, market: MarketId, fixes: Fixes, removals: Sequence[Removal] = ()) -> Published:
        if self._closed:
            raise FeedUnavailable("the feed is closed")
        keys = Keys.of(market, self.resolution)
        applied, outdated = 0, dict[DriverId, None]()
        sent_ms = self.now_ms() if self.clock.is_set else None  # ages are those of now, whenever a part's turn comes
        for part in parts_of(fixes, removals, self.resolution):
            reply = await self._publish_part(keys, part, sent_ms)
            applied += reply.applied
            outdated.update(dict.fromkeys(reply.outdated))
        return Published(applied, tuple(outdated))

    async def _publish_part(self, keys: Keys, part: PositionBatch, sent_ms: int | None) -> PublishReply:
        script_keys, args = publish_call(
            keys,
            part,
            new_generation=secrets.token_hex(8),
            token=secrets.token_hex(8),
            sent_ms=sent_ms,
            stream_length_max=self._stream_length_max,
            tombstone_ms=self._tombstone_ms,
        )
        before_ms = self.clock.monotonic_ms()
        try:
            async with asyncio.timeout(3 * self.timeout_s):
                answer = await self.scripts.publish.run(self._client, script_keys, args)
        except RedisFaults as fault:
            raise FeedUnavailable(reason_of(fault)) from fault
        reply = read_publish_reply(answer, part)
        self.clock.measured(reply.now_ms + 1, before_ms, self.clock.monotonic_ms())
        return reply

    def follow(self, market: MarketId, index: DriverIndex) -> RedisFollower:
        return RedisFollower(self, market, index)

    async def head(self, market: MarketId) -> Head:
        """The market's present head. Raises FeedUnavailable."""
        try:
            async with asyncio.timeout(3 * self.timeout_s):
                return await read_head_of(self._client, Keys.of(market, self.resolution))
        except RedisFaults as fault:
            raise FeedUnavailable(reason_of(fault)) from fault

    def connect_follower(self) -> Redis:
        """A client with one connection, as a read that waits for batches occupies it."""
        return connect(self._url, timeout_s=self.timeout_s, connections_max=1)

    async def close(self) -> None:
        self._closed = True
        await self._client.aclose()


async def read_head_of(client: Redis, keys: Keys) -> Head:
    return read_head(await call(client, "HMGET", keys.meta, "generation", "n", "token"))


class RedisFollower:
    """See geo.feed.Follower. One connection, one loop: read batches, look at the head, sweep."""

    def __init__(self, feed: RedisFeed, market: MarketId, index: DriverIndex) -> None:
        self.fault: str | None = "has not read the drivers yet"
        self.on_new_generation: Callable[[], None] | None = None
        self._feed = feed
        self._market = market
        self._keys = Keys.of(market, feed.resolution)
        self._replica = Replica(index)
        self._must_bootstrap = True
        self._generation: str | None = None  # the last one seen, None before the first
        self._failures = 0
        self._ready = asyncio.Event()
        self._progress = asyncio.Event()
        self._heard_at_s = time.monotonic()
        self._look_at_s = 0.0
        self._sweep_at_s = 0.0
        self._steps_back = 0
        # A read that waits must come back well before it would be taken for a dead connection.
        self._wait_ms = int(min(HEARTBEAT_S, feed.timeout_s / 2) * 1000)

    # What others ask.

    async def ready(self) -> None:
        await self._ready.wait()

    def silent_ms(self) -> int:
        return int((time.monotonic() - self._heard_at_s) * 1000)

    async def caught_up(self, timeout_s: float = 5.0) -> None:
        target = await self._feed.head(self._market)
        async with asyncio.timeout(timeout_s):
            while not self._has_reached(target):
                self._progress.clear()
                await self._progress.wait()

    def _has_reached(self, target: Head) -> bool:
        held = self._replica.head
        return self._ready.is_set() and held.generation == target.generation and held.n >= target.n

    # The loop.

    async def run(self) -> None:
        client = self._feed.connect_follower()
        self._sweep_at_s = time.monotonic() + sweep_wait_s(self._feed.sweep_every_s)
        try:
            while True:
                try:
                    await self._follow(client)
                except RedisFaults as fault:
                    self._trouble(reason_of(fault))
                await asyncio.sleep(backoff_s(self._failures))
                self._failures += 1
        finally:
            await client.aclose()

    async def _follow(self, client: Redis) -> None:
        """Follows until something turns out to be missing. A cut connection is resumed where it broke."""
        self._look_at_s = 0.0
        verdict = await self._bootstrap(client) if self._must_bootstrap else Verdict.KNOWN
        while verdict.is_well:
            verdict = await self._step(client)
        self._must_bootstrap = True
        self._trouble(verdict.value)
        # What is missing may have been lost in a fail-over, which nothing else need show: redis-py reconnects in
        # silence. Publishing again what was not lost costs little, as it is not newer and so makes no batch.
        if verdict in (Verdict.FORKED, Verdict.HOLE):
            self._announce_new_generation()

    async def _step(self, client: Redis) -> Verdict:
        if time.monotonic() >= self._look_at_s:
            verdict = self._judge(await self._look(client))
            if not verdict.is_well:
                return verdict
            self._well()
        await self._sweep()
        verdict = await self._read(client)
        if verdict.is_well:
            self._failures = 0
        return verdict

    async def _look(self, client: Redis) -> Head:
        """The feed's head; measures its clock by the way."""
        clock, before_ms = self._feed.clock, self._feed.clock.monotonic_ms()
        commands = (("TIME",), ("HMGET", self._keys.meta, "generation", "n", "token"))
        (seconds, micros), fields = await call_all(client, commands)
        clock.measured(seconds * 1000 + micros / 1000, before_ms, clock.monotonic_ms())
        self._heard()
        self._look_at_s = self._heard_at_s + HEARTBEAT_S
        head = read_head(fields)
        known, self._generation = self._generation, head.generation
        if known not in (None, head.generation):
            self._announce_new_generation()
        return head

    def _judge(self, head: Head) -> Verdict:
        verdict = self._replica.check(head)
        if verdict.is_well and self._feed.clock.steps_back != self._steps_back:
            return Verdict.CLOCK_SET_BACK
        return verdict

    async def _read(self, client: Redis) -> Verdict:
        """Applies the batches that stand in the stream, or come within the wait."""
        place = f"{self._replica.head.n}-1"
        command = ("XREAD", "COUNT", _BATCHES_A_READ_MAX, "BLOCK", self._wait_ms, "STREAMS", self._keys.stream, place)
        answer = await call(client, *command)
        self._heard()
        if not answer:
            return self._replica.at_end()
        entries = answer[0][1]
        verdict = self._take(entries)
        if verdict.is_well and len(entries) < _BATCHES_A_READ_MAX:
            await asyncio.sleep(READ_EVERY_S)
        return verdict

    def _take(self, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> Verdict:
        try:
            sequenced = [read_entry(entry_id, fields) for entry_id, fields in entries]
        except (KeyError, ValueError) as error:  # somebody else wrote to our stream
            log.warning("unreadable batch", extra={"market": self._market, "reason": repr(error)})
            return Verdict.HOLE
        verdict = self._replica.take(sequenced)
        self._progress.set()
        return verdict

    async def _bootstrap(self, client: Redis) -> Verdict:
        """Reads all cells. The place in the stream is noted before: what changes meanwhile comes again from there."""
        head = await self._look(client)
        self._steps_back = self._feed.clock.steps_back
        snapshot = await self._read_cells(client)
        after = await self._look(client)
        if after.generation != head.generation:
            return Verdict.NEW_GENERATION
        if after.n < head.n:
            return Verdict.FORKED
        self._replica.start(head, snapshot.batch(), self._feed.now_ms())
        self._must_bootstrap = False
        self._well()
        self._ready.set()
        self._progress.set()
        log.info("drivers read", extra={"market": self._market, "drivers": len(snapshot), "batch": head.n})
        return Verdict.TAKEN

    async def _read_cells(self, client: Redis) -> Snapshot:
        snapshot, cursor = Snapshot(), 0
        while True:
            cursor, names = await call(client, "SSCAN", self._keys.cells, cursor, "COUNT", _CELLS_A_READ_MAX)
            while names:
                args = [self._keys.cell_prefix, _DRIVERS_A_READ_MAX, *names]
                read, ids, records = await self._feed.scripts.read_cells.run(client, [self._keys.meta], args)
                self._heard()
                snapshot.add(unpack_ids(ids), records)
                names = names[read:]
            if cursor == 0:
                return snapshot

    async def _sweep(self) -> None:
        """Takes drivers out that have been silent for too long; harmless when every process does it."""
        if time.monotonic() < self._sweep_at_s:
            return
        self._sweep_at_s = time.monotonic() + sweep_wait_s(self._feed.sweep_every_s)
        silent = self._replica.index.expire(self._feed.now_ms(), self._feed.sweep_after_ms)
        if not silent:
            return
        try:
            await self._feed.publish(self._market, (), silent)
            log.info("silent drivers removed", extra={"market": self._market, "drivers": len(silent)})
        except FeedUnavailable as fault:
            log.warning("silent drivers not removed", extra={"market": self._market, "reason": str(fault)})

    # State.

    def _heard(self) -> None:
        self._heard_at_s = time.monotonic()

    def _well(self) -> None:
        if self.fault is not None:
            log.info("feed followed", extra={"market": self._market, "after": self.fault})
            self.fault = None

    def _trouble(self, why: str) -> None:
        if self.fault != why:
            log.warning("feed not followed", extra={"market": self._market, "reason": why})
            self.fault = why

    def _announce_new_generation(self) -> None:
        if self.on_new_generation is None:
            return
        try:
            self.on_new_generation()
        except Exception:  # a listener's fault must not end the following of the feed
            log.exception("on_new_generation failed", extra={"market": self._market})
