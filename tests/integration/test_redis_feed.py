"""The feed on Redis when Redis, or the way to it, fails (P9): flushed, restarted, rolled back, cut off, frozen."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from geo.feed import FeedUnavailable
from geo.model import DriverId, LatLng, Removal, Stamp
from geo.records import RECORD
from geo.redis_feed import RedisFeed
from tests.feeds import FAR, HERE, RESOLUTION, Bench, fix, running, until
from tests.proxy import Proxy
from tests.servers import RedisServer, redis_client


class Watched(Bench):
    """A bench that counts how often it was told to publish its own drivers again."""

    def __init__(self, url: str, *, timeout_s: float = 1.0, **options: int) -> None:
        self.redis_feed = RedisFeed(url, RESOLUTION, timeout_s=timeout_s, **options)
        super().__init__(self.redis_feed)
        self.told = 0
        self.follower.on_new_generation = self._count

    def _count(self) -> None:
        self.told += 1

    @property
    def prefix(self) -> str:
        return f"hexhail:{{{self.market}}}:v2r{RESOLUTION}:"


@contextlib.asynccontextmanager
async def bench_at(url: str, **options: int) -> AsyncIterator[Watched]:
    bench = Watched(url, **options)
    async with running(bench.follower):
        await bench.follower.ready()
        yield bench
    await bench.feed.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with contextlib.closing(redis_client(redis_server.url)) as client:
        yield client


def keys_of(client: redis.Redis, bench: Watched, name: str) -> list[bytes]:
    pattern = bench.prefix.replace("{", "[{]") + name
    return [key.encode() if isinstance(key, str) else key for key in client.scan_iter(match=pattern)]


def cells_of(client: redis.Redis, bench: Watched) -> dict[str, list[bytes]]:
    """Where each driver stands in Redis, by looking into every cell."""
    places: dict[str, list[bytes]] = {}
    for key in keys_of(client, bench, "cell:*"):
        for driver in client.hgetall(key):
            places.setdefault(_text(driver), []).append(key)
    return places


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


class TestLosses:
    async def test_a_flush_is_noticed_without_traffic_and_healed_by_republishing(
        self, redis_server: RedisServer, client: redis.Redis
    ) -> None:
        async with bench_at(redis_server.url) as bench:
            await bench.publish(fix("mine", 5))
            told = bench.told
            client.flushall()
            await until(lambda: bench.told > told and len(bench.index) == 0 and bench.follower.fault is None)
            assert await bench.publish(fix("mine", 5)) == (1, ())
            assert bench.near(HERE) == ["mine"]

    async def test_a_restart_with_nothing_left_is_healed(self, redis_server: RedisServer) -> None:
        async with bench_at(redis_server.url) as bench:
            await bench.publish(fix("mine", 5))
            told = bench.told
            redis_server.kill()
            with pytest.raises(FeedUnavailable):
                await bench.feed.publish(bench.market, [fix("mine", 6)])
            await until(lambda: bench.follower.fault is not None)
            assert bench.index.held(DriverId("mine")) is not None, "an outage takes nothing away"
            redis_server.start()
            await until(lambda: bench.told > told and bench.follower.fault is None)
            assert await bench.publish(fix("mine", 6)) == (1, ())
            assert bench.near(HERE) == ["mine"]

    async def test_a_fail_over_to_an_older_state_is_noticed_and_healed(
        self, redis_server: RedisServer, client: redis.Redis
    ) -> None:
        async with bench_at(redis_server.url) as bench:
            await bench.publish(fix("d", 1, at=FAR))
            client.save()
            await bench.publish(fix("d", 2, at=HERE), fix("lost", 1))
            told = bench.told
            redis_server.restart()
            await until(lambda: bench.told > told and bench.follower.fault is None)
            assert bench.near(FAR) == ["d"], "the replica holds what Redis holds"
            assert await bench.publish(fix("d", 2, at=HERE), fix("lost", 1)) == (2, ())
            assert bench.near(HERE) == ["d", "lost"]
            assert bench.near(FAR) == []

    @pytest.mark.parametrize("trimmed", [False, True])
    @pytest.mark.parametrize("further", [1, 2, 5])
    async def test_an_older_state_that_went_on_differently_is_not_taken_for_the_same(
        self, redis_server: RedisServer, client: redis.Redis, further: int, trimmed: bool
    ) -> None:
        """The numbers fit by chance; the chain of tokens, or the hole, tells."""
        async with Proxy.before(redis_server.url) as proxy, bench_at(proxy.url) as bench:
            near = RedisFeed(redis_server.url, RESOLUTION)
            await bench.publish(fix("d", 1))
            client.save()
            await bench.publish(fix("lost-1", 1))
            await bench.publish(fix("lost-2", 1))
            told = bench.told
            proxy.cut()
            redis_server.restart()
            for n in range(2 + further - 1):
                await near.publish(bench.market, [fix(f"other-{n}", 1)])
            if trimmed:
                client.xtrim(bench.prefix + "stream", maxlen=1, approximate=False)
            proxy.heal()
            await until(lambda: bench.told > told and bench.follower.fault is None)
            await bench.follower.caught_up()
            assert sorted(bench.near(HERE)) == ["d", *(f"other-{n}" for n in range(2 + further - 1))]
            await near.close()

    async def test_batches_trimmed_while_a_replica_was_away_are_made_up_from_the_cells(
        self, redis_server: RedisServer, client: redis.Redis
    ) -> None:
        async with Proxy.before(redis_server.url) as proxy, bench_at(proxy.url) as bench:
            near = RedisFeed(redis_server.url, RESOLUTION)
            await bench.publish(fix("stays", 1), fix("goes", 1), fix("moves", 1, at=HERE))
            proxy.cut()
            await near.publish(bench.market, [fix("moves", 2, at=FAR)])
            await near.publish(bench.market, [], [Removal(DriverId("goes"), Stamp(1, 1, 1))])
            await near.publish(bench.market, [fix("comes", 1)])
            client.xtrim(bench.prefix + "stream", maxlen=1, approximate=False)
            proxy.heal()
            await until(lambda: bench.follower.fault is None)
            await bench.follower.caught_up()
            assert bench.near(HERE) == ["comes", "stays"]
            assert bench.near(FAR) == ["moves"]
            await near.close()

    async def test_a_short_cut_is_resumed_where_it_broke(self, redis_server: RedisServer) -> None:
        async with Proxy.before(redis_server.url) as proxy, bench_at(proxy.url) as bench:
            near = RedisFeed(redis_server.url, RESOLUTION)
            await bench.publish(fix("d", 1))
            told = bench.told
            proxy.cut()
            await near.publish(bench.market, [fix("e", 1)])
            proxy.heal()
            await until(lambda: "e" in bench.index)
            assert bench.told == told, "nothing was lost, nobody need publish again"
            await near.close()

    async def test_a_deleted_stream_is_a_hole(self, redis_server: RedisServer, client: redis.Redis) -> None:
        async with Proxy.before(redis_server.url) as proxy, bench_at(proxy.url) as bench:
            near = RedisFeed(redis_server.url, RESOLUTION)
            await bench.publish(fix("d", 1))
            proxy.cut()
            await near.publish(bench.market, [fix("e", 1)])
            client.delete(bench.prefix + "stream")
            proxy.heal()
            await until(lambda: "e" in bench.index)
            await near.close()

    @pytest.mark.parametrize("lost", [("meta",), ("meta", "where"), ("meta", "stream", "where")])
    async def test_lost_bookkeeping_begins_a_new_generation_without_ghosts(
        self, redis_server: RedisServer, client: redis.Redis, lost: tuple[str, ...]
    ) -> None:
        """P6: what an evicted `meta` leaves behind is cleared before anything is written."""
        async with bench_at(redis_server.url) as bench:
            await bench.publish(fix("d", 1, at=HERE), fix("e", 1, at=HERE))
            client.delete(*[bench.prefix + name for name in lost])
            await bench.publish(fix("d", 2, at=FAR))
            assert bench.near(HERE) == []
            assert bench.near(FAR) == ["d"]
            assert await bench.publish(fix("e", 1, at=HERE)) == (1, ())
            assert [len(keys) for keys in cells_of(client, bench).values()] == [1, 1]

    async def test_scripts_that_redis_forgot_are_sent_again(
        self, redis_server: RedisServer, client: redis.Redis
    ) -> None:
        async with bench_at(redis_server.url) as bench:
            await bench.publish(fix("d", 1))
            client.script_flush()
            assert await bench.publish(fix("d", 2)) == (1, ())

    async def test_what_a_stranger_writes_into_the_stream_is_skipped(
        self, redis_server: RedisServer, client: redis.Redis
    ) -> None:
        async with bench_at(redis_server.url) as bench:
            await bench.publish(fix("d", 1))
            client.xadd(bench.prefix + "stream", {"what": "?"}, id="1-5")
            await bench.publish(fix("d", 2))
            held = bench.index.held(DriverId("d"))
            assert held is not None
            assert held.seq == 2

    async def test_a_listener_s_fault_does_not_end_the_following(
        self, redis_server: RedisServer, client: redis.Redis
    ) -> None:
        async with bench_at(redis_server.url) as bench:

            def fail() -> None:
                raise RuntimeError("listener's fault")

            bench.follower.on_new_generation = fail
            await bench.publish(fix("d", 1))
            client.flushall()
            await until(lambda: len(bench.index) == 0)
            await bench.publish(fix("d", 1))
            assert bench.near(HERE) == ["d"]


class TestTheWayThere:
    async def test_redis_down_at_the_start_is_waited_for(self, redis_server: RedisServer) -> None:
        redis_server.kill()
        bench = Watched(redis_server.url)
        async with running(bench.follower):
            with pytest.raises(FeedUnavailable):
                await bench.feed.publish(bench.market, [fix("d", 1)])
            assert bench.follower.fault is not None
            redis_server.start()
            await bench.follower.ready()
            await bench.publish(fix("d", 1))
            assert bench.near(HERE) == ["d"]
        await bench.feed.close()

    async def test_a_black_hole_bounds_the_publisher_and_shows_as_a_fault(self, redis_server: RedisServer) -> None:
        """P10"""
        async with Proxy.before(redis_server.url) as proxy, bench_at(proxy.url) as bench:
            await bench.publish(fix("d", 1))
            proxy.stall()
            async with asyncio.timeout(5):
                with pytest.raises(FeedUnavailable):
                    await bench.feed.publish(bench.market, [fix("d", 2)])
            await until(lambda: bench.follower.fault is not None and bench.follower.silent_ms() > 500)
            proxy.heal()
            await until(lambda: bench.follower.fault is None)
            await bench.publish(fix("d", 3))
            assert bench.near(HERE) == ["d"]

    async def test_a_fix_that_the_network_held_back_is_as_old_as_it_is(self, redis_server: RedisServer) -> None:
        """P5: the publisher gave up, the request was carried out later all the same."""
        async with Proxy.before(redis_server.url) as proxy, bench_at(proxy.url) as bench:
            await bench.publish(fix("other", 1))
            proxy.stall()
            published_at_ms = bench.feed.now_ms()
            with pytest.raises(FeedUnavailable):
                await bench.feed.publish(bench.market, [fix("late", 1, age_ms=100)])
            await asyncio.sleep(0.6)
            proxy.heal()
            await until(lambda: "late" in bench.index)
            now = bench.feed.now_ms()
            age = bench.index.age_ms(DriverId("late"), now)
            assert age is not None
            assert age >= 100 + (now - published_at_ms) - 50

    async def test_a_frozen_redis_is_survived(self, redis_server: RedisServer) -> None:
        async with bench_at(redis_server.url) as bench:
            await bench.publish(fix("d", 1))
            redis_server.freeze()
            with pytest.raises(FeedUnavailable):
                await bench.feed.publish(bench.market, [fix("d", 2)])
            await until(lambda: bench.follower.fault is not None)
            redis_server.thaw()
            await until(lambda: bench.follower.fault is None)
            await bench.publish(fix("d", 3))

    async def test_a_lost_reply_never_replays_the_write(self, redis_server: RedisServer, client: redis.Redis) -> None:
        async with Proxy.before(redis_server.url) as proxy:
            feed, bench = RedisFeed(proxy.url, RESOLUTION, timeout_s=0.4), Watched(redis_server.url)
            await feed.publish(bench.market, [fix("d", 1)])
            before = _script_calls(client)
            proxy.drop_replies()
            with pytest.raises(FeedUnavailable):
                await feed.publish(bench.market, [fix("d", 2)])
            assert _script_calls(client) == before + 1
            assert client.hget(bench.prefix + "meta", "n") == b"2"
            proxy.heal()
            published = await feed.publish(bench.market, [fix("d", 2)])
            assert published.applied == 0, "it had been taken; saying it again is harmless"
            await feed.close()
            await bench.feed.close()

    async def test_more_publishers_than_connections_wait_their_turn(self, redis_server: RedisServer) -> None:
        async with bench_at(redis_server.url, connections_max=2) as bench:
            calls = [bench.feed.publish(bench.market, [fix(f"d-{i}", 1)]) for i in range(60)]
            assert sum(published.applied for published in await asyncio.gather(*calls)) == 60

    async def test_a_follower_ends_whenever_it_is_cancelled(self, redis_server: RedisServer) -> None:
        """Python before 3.12 may swallow a cancellation inside redis-py's sending."""
        feed = RedisFeed(redis_server.url, RESOLUTION, timeout_s=0.5)
        bench = Watched(redis_server.url)
        for n in range(15):
            async with running(feed.follow(bench.market, bench.index)):
                await feed.publish(bench.market, [fix("d", n)])
                await asyncio.sleep(n * 0.0007)
        await feed.close()
        await bench.feed.close()


def _script_calls(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


class TestWhatRedisHolds:
    async def test_every_key_of_a_market_is_one_slot_and_a_driver_stands_in_one_cell(
        self, redis_server: RedisServer, client: redis.Redis
    ) -> None:
        """P6, under four publishers that overtake each other."""
        async with bench_at(redis_server.url) as bench:
            rng = random.Random(7)

            async def drive(publisher: int) -> None:
                for _ in range(25):
                    fixes = [
                        fix(
                            f"d-{i}",
                            rng.randrange(1, 500),
                            at=LatLng(40.7 + rng.random() / 10, -74 + rng.random() / 10),
                        )
                        for i in rng.sample(range(80), 20)
                    ]
                    gone = Removal(DriverId(f"d-{rng.randrange(80)}"), Stamp(1, 1, rng.randrange(1, 300)))
                    await bench.feed.publish(bench.market, fixes, [gone])

            await asyncio.gather(*[drive(publisher) for publisher in range(4)])
            await bench.follower.caught_up()
            assert client.dbsize() == len(keys_of(client, bench, "*")), "every key carries the market's tag"
            places = cells_of(client, bench)
            assert all(len(keys) == 1 for keys in places.values())
            named = {key.rpartition(b":")[2] for keys in places.values() for key in keys}
            assert named == client.smembers(bench.prefix + "cells")
            entries = client.hgetall(bench.prefix + "where")
            live = {_text(driver) for driver, entry in entries.items() if len(entry) == 32}
            assert live == set(places)
            assert live == {f"d-{i}" for i in range(80) if f"d-{i}" in bench.index}
            assert len(bench.index) == len(live)

    async def test_the_stream_is_bounded(self, redis_server: RedisServer, client: redis.Redis) -> None:
        """P10: Redis trims whole nodes of up to 100 small entries."""
        async with bench_at(redis_server.url, stream_length_max=50) as bench:
            for n in range(400):
                await bench.feed.publish(bench.market, [fix("d", n)])
            assert client.xlen(bench.prefix + "stream") <= 150
            await bench.follower.caught_up()

    async def test_a_removed_driver_leaves_a_tombstone_that_is_forgotten(
        self, redis_server: RedisServer, client: redis.Redis
    ) -> None:
        async with bench_at(redis_server.url, tombstone_ms=50) as bench:
            await bench.publish(fix("d", 1))
            await bench.publish(removals=(Removal(DriverId("d"), Stamp(1, 1, 1)),))
            assert client.zcard(bench.prefix + "gone") == 1
            assert cells_of(client, bench) == {}
            await asyncio.sleep(0.1)
            await bench.publish(fix("e", 1))
            assert client.zcard(bench.prefix + "gone") == 0
            assert client.hkeys(bench.prefix + "where") == [b"e"]

    async def test_the_clock_never_runs_behind_redis(self, redis_server: RedisServer, client: redis.Redis) -> None:
        async with bench_at(redis_server.url) as bench:
            await bench.publish(fix("d", 1))
            for _ in range(200):
                seconds, micros = client.time()
                assert bench.feed.now_ms() >= seconds * 1000 + micros // 1000
                await asyncio.sleep(0.003)
            seconds, micros = client.time()
            assert bench.feed.now_ms() - (seconds * 1000 + micros // 1000) < 1_000

    async def test_a_large_market_is_read_in_bounded_parts(self, redis_server: RedisServer) -> None:
        async with bench_at(redis_server.url) as bench:
            rng = random.Random(3)
            spots = [LatLng(40.4 + rng.random() / 2, -74.2 + rng.random() / 2) for _ in range(9_000)]
            await bench.publish(*[fix(f"d-{i}", 1, at=spot) for i, spot in enumerate(spots)])
            late = Watched(redis_server.url)
            follower = late.redis_feed.follow(bench.market, late.index)
            async with running(follower):
                await follower.ready()
                assert len(late.index) == 9_000
            await late.feed.close()

    def test_the_scripts_know_the_record_s_layout(self) -> None:
        """publish_positions.lua cuts records by these offsets."""
        fields = RECORD.fields
        assert fields is not None
        assert RECORD.itemsize == 78
        assert [fields[name][1] for name in ("fix_ms", "cell", "epoch", "instance", "seq")] == [0, 8, 32, 40, 48]

    async def test_a_market_that_cannot_be_a_hash_tag_is_refused(self, redis_server: RedisServer) -> None:
        feed = RedisFeed(redis_server.url, RESOLUTION)
        with pytest.raises(ValueError, match="hash tag"):
            await feed.publish(type(Bench(feed).market)("a}b"), [fix("d", 1)])
        await feed.close()
