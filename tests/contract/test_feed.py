"""What every feed promises, tried on the feed inside a process and on the one on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geo.feed import Feed, FeedUnavailable, InProcessFeed, newest_of
from geo.model import DriverId, Fix, LatLng, MarketId, Removal, Stamp, Where
from geo.redis_feed import RedisFeed
from tests.feeds import FAR, HERE, RESOLUTION, STALE_AFTER_MS, Bench, drivers_near, fix, index, running, until


class FeedContract:
    """The promises. A subclass says how a feed is made."""

    def make_feed(self, sweep_after_ms: int = 120_000, tombstone_ms: int = 60_000) -> Feed:
        raise NotImplementedError

    @pytest.fixture
    async def bench(self) -> AsyncIterator[Bench]:
        bench = Bench(self.make_feed())
        async with running(bench.follower):
            await bench.follower.ready()
            yield bench
        await bench.feed.close()

    async def test_a_published_driver_is_found_as_it_was_published(self, bench: Bench) -> None:
        one = Fix(DriverId("d-1"), 40.75, -73.98, 3, 1_700_000_000_000, 9, 0, "xl", 6, False, 271.25, 12.5, 2**31 + 5)
        assert await bench.publish(one) == (1, ())
        where = Where(available_only=False, tags=2**31 + 1)
        [found] = bench.index.nearest(HERE, 5, where=where, now_ms=bench.feed.now_ms())
        assert (found.driver_id, found.lat, found.lon) == ("d-1", 40.75, -73.98)
        assert (found.vehicle_class, found.seats, found.available) == ("xl", 6, False)
        assert (found.heading_deg, found.speed_mps, found.tags) == (271.25, 12.5, 2**31 + 5)
        held = bench.index.held(DriverId("d-1"))
        assert held is not None
        assert (held.stamp, held.tags) == (Stamp(3, 1_700_000_000_000, 9), 2**31 + 5)

    async def test_unknown_heading_and_speed_stay_unknown_and_ids_keep_their_characters(self, bench: Bench) -> None:
        await bench.publish(fix("Zoë/ driver:7 {x}\n😀"))
        [found] = bench.index.nearest(HERE, 5, now_ms=bench.feed.now_ms())
        assert found.driver_id == "Zoë/ driver:7 {x}\n😀"
        assert (found.heading_deg, found.speed_mps) == (None, None)

    async def test_a_driver_is_found_by_the_tags_that_its_newest_fix_has(self, bench: Bench) -> None:
        async def tagged(tags: int, seq: int) -> list[str]:
            await bench.publish(replace(fix("d", seq), tags=tags), fix("plain"))
            found = bench.index.nearest(HERE, 5, where=Where(tags=0b110), now_ms=bench.feed.now_ms())
            return [each.driver_id for each in found]

        assert await tagged(0b100, 1) == []
        assert await tagged(0b111, 2) == ["d"]
        assert await tagged(0b010, 3) == []

    async def test_a_driver_that_moves_is_found_at_its_new_place_alone(self, bench: Bench) -> None:
        """P6: one place a driver."""
        await bench.publish(fix("d", 1, at=HERE))
        await bench.publish(fix("d", 2, at=FAR))
        assert bench.near(HERE) == []
        assert bench.near(FAR) == ["d"]
        assert len(bench.index) == 1

    @pytest.mark.parametrize(
        ("older", "newer"),
        [
            (Stamp(1, 1, 1), Stamp(1, 1, 2)),
            (Stamp(1, 1, 9), Stamp(1, 2, 1)),
            (Stamp(1, 9, 9), Stamp(2, 1, 1)),
        ],
    )
    async def test_the_newest_stamp_wins_whatever_the_order_of_arrival(
        self, bench: Bench, older: Stamp, newer: Stamp
    ) -> None:
        """P6, P7: by epoch, then the app's instance, then the sequence."""
        late = fix("d", older.seq, epoch=older.epoch, instance=older.instance, at=HERE)
        early = fix("d", newer.seq, epoch=newer.epoch, instance=newer.instance, at=FAR)
        await bench.publish(early)
        applied, outdated = await bench.publish(late)
        assert applied == 0
        assert outdated == (("d",) if older.epoch < newer.epoch else ())
        assert bench.near(FAR) == ["d"]
        assert bench.near(HERE) == []

    async def test_publishing_the_same_again_changes_nothing_and_is_no_fault(self, bench: Bench) -> None:
        """An unknown outcome is settled by publishing again."""
        assert await bench.publish(fix("d", 1)) == (1, ())
        assert await bench.publish(fix("d", 1, at=FAR, age_ms=500)) == (0, ())
        assert bench.near(HERE) == ["d"]

    async def test_two_fixes_of_one_driver_in_one_call_leave_the_newer(self, bench: Bench) -> None:
        await bench.publish(fix("d", 2, at=FAR), fix("d", 3, at=HERE), fix("d", 1, at=FAR), fix("e", 1))
        assert sorted(bench.near(HERE)) == ["d", "e"]
        assert bench.near(FAR) == []

    async def test_the_age_of_a_fix_travels_with_it(self, bench: Bench) -> None:
        """P5: stamped as the feed's time less the age."""
        before = bench.feed.now_ms()
        await bench.publish(fix("d", age_ms=12_000))
        age = bench.index.age_ms(DriverId("d"), bench.feed.now_ms())
        assert age is not None
        assert 12_000 <= age <= 12_000 + (bench.feed.now_ms() - before) + 1_000

    async def test_a_fix_that_is_already_stale_is_never_found(self, bench: Bench) -> None:
        """P5"""
        await bench.publish(fix("old", age_ms=STALE_AFTER_MS + 1_000), fix("new"))
        assert bench.near(HERE) == ["new"]

    async def test_a_negative_age_makes_no_fix_from_the_future(self, bench: Bench) -> None:
        """P5: a phone whose clock runs ahead does not stay fresh for longer."""
        await bench.publish(fix("d", age_ms=-3_600_000))
        age = bench.index.age_ms(DriverId("d"), bench.feed.now_ms())
        assert age is not None
        assert age >= 0

    async def test_a_removed_driver_is_gone(self, bench: Bench) -> None:
        await bench.publish(fix("d", 4), fix("e", 1))
        assert await bench.publish(removals=(Removal(DriverId("d"), Stamp(1, 1, 4)),)) == (1, ())
        assert bench.near(HERE) == ["e"]

    async def test_a_removal_does_not_reach_a_driver_that_has_moved_on(self, bench: Bench) -> None:
        """P7: the goodbye of an old session does not take the new one's driver away."""
        await bench.publish(fix("d", 1, epoch=2))
        applied, outdated = await bench.publish(removals=(Removal(DriverId("d"), Stamp(1, 1, 99)),))
        assert (applied, outdated) == (0, ("d",))
        assert bench.near(HERE) == ["d"]

    async def test_an_old_session_cannot_resurrect_a_removed_driver(self, bench: Bench) -> None:
        """P6, P7"""
        await bench.publish(fix("d", 5, epoch=2))
        await bench.publish(removals=(Removal(DriverId("d"), Stamp(2, 1, 5)),))
        assert await bench.publish(fix("d", 900, epoch=1)) == (0, ("d",))
        assert await bench.publish(fix("d", 5, epoch=2)) == (0, ())
        assert bench.near(HERE) == []
        assert await bench.publish(fix("d", 6, epoch=2)) == (1, ())
        assert bench.near(HERE) == ["d"]

    async def test_removing_a_driver_twice_takes_effect_once(self, bench: Bench) -> None:
        removal = Removal(DriverId("d"), Stamp(1, 1, 1))
        await bench.publish(fix("d", 1))
        assert (await bench.publish(removals=(removal,)))[0] == 1
        assert (await bench.publish(removals=(removal,)))[0] == 0

    async def test_removing_an_unknown_driver_fences_its_old_session_off(self, bench: Bench) -> None:
        await bench.publish(removals=(Removal(DriverId("d"), Stamp(3, 1, 1)),))
        assert await bench.publish(fix("d", 7, epoch=2)) == (0, ("d",))
        assert len(bench.index) == 0

    async def test_tombstones_are_forgotten_in_the_end(self) -> None:
        """P10: what is remembered of drivers that left is bounded in time."""
        bench = Bench(self.make_feed(tombstone_ms=50))
        async with running(bench.follower):
            await bench.publish(fix("d", 5, epoch=2))
            await bench.publish(removals=(Removal(DriverId("d"), Stamp(2, 1, 5)),))
            await asyncio.sleep(0.1)
            await bench.publish(fix("other"))
            assert await bench.publish(fix("d", 1, epoch=1)) == (1, ())
        await bench.feed.close()

    async def test_a_fix_and_a_removal_in_one_call_are_settled_by_their_stamps(self, bench: Bench) -> None:
        gone, back = Removal(DriverId("gone"), Stamp(1, 1, 2)), Removal(DriverId("back"), Stamp(1, 1, 1))
        await bench.publish(fix("gone", 2), fix("back", 2), removals=(gone, back))
        assert bench.near(HERE) == ["back"]

    async def test_more_than_one_call_s_worth_is_split_and_all_arrives(self, bench: Bench) -> None:
        """P10: at most 500 fixes an atomic call."""
        fleet = [fix(f"d-{i:04d}", 1) for i in range(1_203)]
        assert await bench.publish(*fleet) == (1_203, ())
        assert len(bench.index) == 1_203
        removals = tuple(Removal(one.driver_id, one.stamp) for one in fleet[:1_100])
        assert await bench.publish(removals=removals) == (1_100, ())
        assert len(bench.index) == 103

    async def test_publishing_nothing_is_nothing(self, bench: Bench) -> None:
        assert await bench.publish() == (0, ())

    async def test_a_fix_that_cannot_be_packed_is_refused_by_name(self, bench: Bench) -> None:
        with pytest.raises(ValueError, match="d-long"):
            await bench.publish(replace(fix("d-long"), vehicle_class="a-class-of-too-many-letters"))
        with pytest.raises(ValueError, match="d-seats"):
            await bench.publish(replace(fix("d-seats"), seats=1_000))

    async def test_a_replica_that_starts_late_holds_what_the_others_hold(self, bench: Bench) -> None:
        await bench.publish(*[fix(f"d-{i}", 1) for i in range(50)])
        await bench.publish(fix("d-1", 2, at=FAR), removals=(Removal(DriverId("d-2"), Stamp(1, 1, 1)),))
        late = index()
        follower = bench.feed.follow(bench.market, late)
        async with running(follower):
            await follower.ready()
            await follower.caught_up()
            now = bench.feed.now_ms()
            assert drivers_near(late, HERE, now) == drivers_near(bench.index, HERE, now)
            assert drivers_near(late, FAR, now) == ["d-1"]
            assert len(late) == 49

    async def test_a_replica_that_starts_amid_changes_misses_none(self, bench: Bench) -> None:
        """It notes its place in the stream before it reads the cells (P6)."""
        fleet = [fix(f"d-{i}", 1, at=HERE) for i in range(300)]
        await bench.publish(*fleet)
        late = index()
        follower = bench.feed.follow(bench.market, late)

        async def drive() -> None:
            for seq in range(2, 12):
                at = FAR if seq % 2 else HERE
                moved = [fix(f"d-{i}", seq, at=LatLng(at.lat + i / 10_000, at.lon)) for i in range(10, 300)]
                await bench.feed.publish(bench.market, moved)
                await bench.feed.publish(bench.market, (), [Removal(DriverId(f"d-{seq - 2}"), Stamp(1, 1, 1))])

        async with running(follower):
            await drive()
            await follower.caught_up()
            await bench.follower.caught_up()
            assert len(late) == len(bench.index) == 290
            for i in range(10, 300):
                held = late.held(DriverId(f"d-{i}"))
                assert held is not None
                assert (held.seq, held.lat) == (11, FAR.lat + i / 10_000)

    async def test_markets_are_apart(self, bench: Bench) -> None:
        other = Bench(bench.feed)
        async with running(other.follower):
            await other.follower.ready()
            await bench.publish(fix("here"))
            await other.publish(fix("there"))
            assert bench.near(HERE) == ["here"]
            assert other.near(HERE) == ["there"]

    async def test_silent_drivers_are_swept_from_every_replica(self) -> None:
        bench = Bench(self.make_feed(sweep_after_ms=60_000))
        second = index()
        follower = bench.feed.follow(bench.market, second)
        async with running(bench.follower), running(follower):
            await bench.publish(fix("silent", age_ms=90_000), fix("alive"))
            await until(lambda: "silent" not in bench.index and "silent" not in second)
            assert "alive" in bench.index
            assert await bench.publish(fix("silent", 2)) == (1, ())
            assert sorted(bench.near(HERE)) == ["alive", "silent"]
        await bench.feed.close()

    async def test_a_follower_can_be_ended_and_another_started(self, bench: Bench) -> None:
        await bench.publish(fix("d"))
        for _ in range(2):
            again = index()
            follower = bench.feed.follow(bench.market, again)
            async with running(follower):
                await follower.ready()
                assert len(again) == 1

    async def test_a_healthy_follower_says_so(self, bench: Bench) -> None:
        await bench.publish(fix("d"))
        await until(lambda: bench.follower.fault is None)
        assert bench.follower.silent_ms() < 5_000

    async def test_a_closed_feed_refuses(self, bench: Bench) -> None:
        feed = self.make_feed()
        await feed.close()
        with pytest.raises(FeedUnavailable):
            await feed.publish(bench.market, [fix("d")])

    async def test_the_clock_goes_forward(self, bench: Bench) -> None:
        await bench.publish(fix("d"))
        first = bench.feed.now_ms()
        await until(lambda: bench.feed.now_ms() > first)


class TestInProcessFeed(FeedContract):
    def make_feed(self, sweep_after_ms: int = 120_000, tombstone_ms: int = 60_000) -> Feed:
        return InProcessFeed(RESOLUTION, sweep_after_ms=sweep_after_ms, sweep_every_s=0.05, tombstone_ms=tombstone_ms)

    async def test_time_is_the_clock_that_was_given(self) -> None:
        now = [1_000.0]
        feed = InProcessFeed(RESOLUTION, clock=lambda: now[0])
        held = index()
        follower = feed.follow(MarketId("m"), held)
        async with running(follower):
            await follower.ready()
            await feed.publish(MarketId("m"), [fix("d", age_ms=400)])
            now[0] = 5_000.0
            assert held.age_ms(DriverId("d"), feed.now_ms()) == 4_400


class TestRedisFeed(FeedContract):
    @pytest.fixture(autouse=True)
    def _redis(self, redis_url: str) -> None:
        self.url = redis_url

    def make_feed(self, sweep_after_ms: int = 120_000, tombstone_ms: int = 60_000) -> Feed:
        return RedisFeed(
            self.url, RESOLUTION, sweep_after_ms=sweep_after_ms, sweep_every_s=0.05, tombstone_ms=tombstone_ms
        )


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)), max_size=9))
@settings(max_examples=100, deadline=None)
def test_newest_of_keeps_one_fix_a_driver_the_newest(stamps: list[tuple[str, int, int, int]]) -> None:
    fixes = [fix(driver, seq, epoch=epoch, instance=instance) for driver, epoch, instance, seq in stamps]
    kept = newest_of(fixes)
    assert sorted(one.driver_id for one in kept) == sorted({one.driver_id for one in fixes})
    for one in kept:
        assert one.stamp == max(other.stamp for other in fixes if other.driver_id == one.driver_id)
