"""What hints promise, tried within a process and on a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from geo.model import DriverId, MarketId
from matcher.hints import Hints, HintsUnavailable, LocalHints, RedisHints, Resync
from matcher.model import NO_RIDE, Hint, RideId
from tests.proxy import Proxy
from tests.servers import RedisServer, redis_client


class Ear:
    """Listens in a task of its own and keeps what it heard."""

    def __init__(self, hints: Hints) -> None:
        self.heard: list[Hint | Resync] = []
        self._task = asyncio.create_task(self._listen(hints))

    async def _listen(self, hints: Hints) -> None:
        async for item in hints.listen():
            self.heard.append(item)

    @property
    def hints(self) -> list[Hint]:
        return [item for item in self.heard if isinstance(item, Hint)]

    @property
    def resyncs(self) -> int:
        return sum(isinstance(item, Resync) for item in self.heard)

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def until(self, condition: Callable[[Ear], bool], within_s: float = 10.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition(self):
                if self.ended:
                    await self._task
                    raise AssertionError("the listener ended")
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=5)
        assert self.ended, "the listener goes on after it was cancelled"
        if not self._task.cancelled():
            self._task.result()


@contextlib.asynccontextmanager
async def listening(hints: Hints) -> AsyncIterator[Ear]:
    ear = Ear(hints)
    try:
        await ear.until(lambda ear: ear.resyncs == 1)
        yield ear
    finally:
        await ear.stop()


class HintsContract:
    """The promises. A subclass says how hints are made; two made by it reach each other."""

    def make(self) -> Hints:
        raise NotImplementedError

    @pytest.fixture
    def markets(self) -> list[MarketId]:
        self.market_ids = [MarketId(f"market-{uuid.uuid4().hex[:8]}") for _ in range(2)]
        return self.market_ids

    @pytest.fixture
    async def hints(self, markets: list[MarketId]) -> AsyncIterator[Hints]:
        hints = self.make()
        yield hints
        await hints.close()

    @pytest.fixture
    async def other(self, hints: Hints) -> AsyncIterator[Hints]:
        """Another process's hints."""
        other = self.make_other(hints)
        yield other
        await other.close()

    def make_other(self, hints: Hints) -> Hints:
        return self.make()

    def hint(self, n: int, *, market: int = 0, driver: str | None = "d-1") -> Hint:
        return Hint(RideId(f"r_{n}"), n, self.market_ids[market], None if driver is None else DriverId(driver))

    async def test_the_first_item_is_a_resync(self, hints: Hints) -> None:
        async with listening(hints) as ear:
            assert isinstance(ear.heard[0], Resync)

    async def test_a_hint_reaches_every_listener_as_it_was_sent_its_own_process_included(
        self, hints: Hints, other: Hints
    ) -> None:
        async with listening(hints) as near, listening(other) as far:
            sent = [self.hint(1), self.hint(2, market=1, driver=None), self.hint(3, driver="Zoë {7}")]
            await hints.publish(sent)
            for ear in (near, far):
                await ear.until(lambda ear: len(ear.hints) >= 3)
                assert sorted(ear.hints, key=lambda hint: hint.version) == sent

    async def test_hints_of_a_drivers_row_and_of_a_markets_queues_are_passed_on_as_they_are(
        self, hints: Hints, other: Hints
    ) -> None:
        async with listening(other) as far:
            ride = self.hint(1)
            sent = [ride, Hint(NO_RIDE, 2, ride.market, DriverId("anna")), Hint(NO_RIDE, 3, ride.market, None)]
            await hints.publish(sent)
            await far.until(lambda ear: len(ear.hints) >= 3)
            assert far.hints == sent

    async def test_hints_of_one_market_keep_their_order(self, hints: Hints) -> None:
        async with listening(hints) as ear:
            for n in range(1, 60, 3):
                await hints.publish([self.hint(n), self.hint(n + 1), self.hint(n + 2)])
            await ear.until(lambda ear: len(ear.hints) >= 60)
            assert [hint.version for hint in ear.hints] == list(range(1, 61))

    async def test_many_hints_at_once_all_arrive(self, hints: Hints) -> None:
        async with listening(hints) as ear:
            await hints.publish([self.hint(n) for n in range(1_701)])
            await ear.until(lambda ear: len(ear.hints) >= 1_701)
            assert [hint.version for hint in ear.hints] == list(range(1_701))

    async def test_hints_from_before_are_covered_by_the_resync(self, hints: Hints) -> None:
        await hints.publish([self.hint(1)])
        async with listening(hints) as ear:
            await hints.publish([self.hint(2)])
            await ear.until(lambda ear: bool(ear.hints))
            assert ear.hints[-1].version == 2

    async def test_publishing_nothing_is_nothing(self, hints: Hints) -> None:
        await hints.publish([])

    async def test_closing_ends_the_listeners(self, markets: list[MarketId]) -> None:
        hints = self.make()
        ear = Ear(hints)
        await ear.until(lambda ear: ear.resyncs == 1)
        await hints.close()
        async with asyncio.timeout(5):
            while not ear.ended:
                await asyncio.sleep(0.01)
        await ear.stop()

    async def test_closed_hints_refuse(self, markets: list[MarketId]) -> None:
        hints = self.make()
        await hints.close()
        with pytest.raises(HintsUnavailable):
            await hints.publish([self.hint(1)])

    async def test_a_listener_can_be_ended_at_any_moment(self, hints: Hints) -> None:
        for pause in range(12):
            ear = Ear(hints)
            await asyncio.sleep(pause * 0.002)
            await hints.publish([self.hint(pause)])
            await ear.stop()


class TestLocalHints(HintsContract):
    def make(self) -> Hints:
        return LocalHints()

    def make_other(self, hints: Hints) -> Hints:
        return hints

    async def test_a_listener_that_falls_behind_gets_a_resync_in_place_of_its_backlog(
        self, markets: list[MarketId]
    ) -> None:
        """P10: no unbounded buffer."""
        hints = LocalHints(backlog_max=10)
        listener = hints.listen()
        assert isinstance(await anext(listener), Resync)
        await hints.publish([self.hint(n) for n in range(25)])
        heard = [await anext(listener) for _ in range(5)]
        assert isinstance(heard[0], Resync)
        await hints.close()
        rest = [item async for item in listener]
        assert len(heard) + len(rest) <= 12


class TestRedisHints(HintsContract):
    @pytest.fixture(autouse=True)
    def _redis(self, redis_url: str) -> None:
        self.url = redis_url

    def make(self) -> Hints:
        return RedisHints(self.url, self.market_ids)


class TestRedisFaults:
    """P9: whatever happens to Redis, a listener that may have missed something is told to read again."""

    MARKET = MarketId("m")

    def hint(self, n: int) -> Hint:
        return Hint(RideId(f"r_{n}"), n, self.MARKET, None)

    async def test_a_flush_is_noticed_without_any_hint(self, redis_server: RedisServer) -> None:
        hints = RedisHints(redis_server.url, [self.MARKET])
        await hints.publish([self.hint(1)])
        async with listening(hints) as ear:
            with contextlib.closing(redis_client(redis_server.url)) as client:
                client.flushall()
            await ear.until(lambda ear: ear.resyncs == 2)
            await hints.publish([self.hint(2)])
            await ear.until(lambda ear: ear.resyncs == 3 or bool(ear.hints))
        await hints.close()

    async def test_a_restart_is_survived(self, redis_server: RedisServer) -> None:
        hints = RedisHints(redis_server.url, [self.MARKET], timeout_s=0.5)
        async with listening(hints) as ear:
            redis_server.kill()
            with pytest.raises(HintsUnavailable):
                await hints.publish([self.hint(1)])
            await ear.until(lambda _: hints.fault is not None)
            redis_server.start()
            await ear.until(lambda ear: ear.resyncs >= 2)
            assert hints.fault is None
            before = ear.resyncs
            await hints.publish([self.hint(2)])
            await ear.until(lambda ear: ear.resyncs > before or bool(ear.hints))
        await hints.close()

    async def test_a_trimmed_stream_is_a_resync(self, redis_server: RedisServer) -> None:
        async with Proxy.before(redis_server.url) as proxy:
            near, far = RedisHints(redis_server.url, [self.MARKET]), RedisHints(proxy.url, [self.MARKET])
            await near.publish([self.hint(1)])
            async with listening(far) as ear:
                proxy.stall()
                for n in range(2, 9):
                    await near.publish([self.hint(n)])
                with contextlib.closing(redis_client(redis_server.url)) as client:
                    client.xtrim("hexhail:{m}:hints:v1:stream", maxlen=1, approximate=False)
                proxy.heal()
                # What passed before the trimming is no matter; what did not must be owned up to.
                await ear.until(lambda ear: ear.resyncs >= 2 or len(ear.hints) == 7)
                await near.publish([self.hint(9)])
                await ear.until(lambda ear: ear.hints[-1:] == [self.hint(9)])
            await near.close()
            await far.close()

    async def test_a_stream_that_was_deleted_is_a_resync(self, redis_server: RedisServer) -> None:
        async with Proxy.before(redis_server.url) as proxy:
            near, far = RedisHints(redis_server.url, [self.MARKET]), RedisHints(proxy.url, [self.MARKET])
            await near.publish([self.hint(1)])
            async with listening(far) as ear:
                proxy.cut()
                await near.publish([self.hint(2)])
                with contextlib.closing(redis_client(redis_server.url)) as client:
                    client.delete("hexhail:{m}:hints:v1:stream")
                proxy.heal()
                await ear.until(lambda ear: ear.resyncs >= 2)
            await near.close()
            await far.close()

    async def test_a_black_hole_bounds_the_publisher_and_resyncs_the_listener(self, redis_server: RedisServer) -> None:
        """P10"""
        async with Proxy.before(redis_server.url) as proxy:
            hints = RedisHints(proxy.url, [self.MARKET], timeout_s=0.3)
            async with listening(hints) as ear:
                proxy.stall()
                async with asyncio.timeout(5):
                    with pytest.raises(HintsUnavailable):
                        await hints.publish([self.hint(1)])
                await ear.until(lambda _: hints.fault is not None)
                proxy.heal()
                await ear.until(lambda ear: ear.resyncs >= 2)
            await hints.close()

    async def test_a_lost_reply_does_not_repeat_the_hint(self, redis_server: RedisServer) -> None:
        async with Proxy.before(redis_server.url) as proxy:
            hints = RedisHints(proxy.url, [self.MARKET], timeout_s=0.3)
            await hints.publish([self.hint(1)])
            proxy.drop_replies()
            with pytest.raises(HintsUnavailable):
                await hints.publish([self.hint(2)])
            with contextlib.closing(redis_client(redis_server.url)) as client:
                assert client.xlen("hexhail:{m}:hints:v1:stream") == 2
            proxy.heal()
            await hints.close()

    async def test_what_a_stranger_writes_is_a_resync(self, redis_server: RedisServer) -> None:
        hints = RedisHints(redis_server.url, [self.MARKET])
        await hints.publish([self.hint(1)])
        async with listening(hints) as ear:
            with contextlib.closing(redis_client(redis_server.url)) as client:
                client.xadd("hexhail:{m}:hints:v1:stream", {"what": "?"}, id="9-1")
            await ear.until(lambda ear: ear.resyncs >= 2)
        await hints.close()

    async def test_hints_need_a_market(self) -> None:
        with pytest.raises(ValueError):
            RedisHints("redis://127.0.0.1:1/0", [])
