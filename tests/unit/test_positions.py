"""What a position frame is worth, and how the newest of each driver reaches the feed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from api.positions import PositionFlusher, Track, Verdict
from api.schema import PositionItem
from api.telemetry import Metrics
from geo.cells import cell_of
from geo.feed import FeedUnavailable, Fixes, Follower, Published
from geo.index import DriverIndex
from geo.model import DriverId, Fix, MarketId, Removal
from geo.records import PositionBatch

MARKET = MarketId("m")


class Everywhere:
    def contains(self, lat: float, lon: float) -> bool:
        return lat < 80


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class RecordingFeed:
    """A feed that keeps what it was given, and can be switched off."""

    def __init__(self) -> None:
        self.resolution = 8
        self.down = False
        self.outdated: tuple[DriverId, ...] = ()
        self.fixes: list[Fix] = []
        self.cells: list[int] = []
        self.removals: list[Removal] = []

    async def publish(self, market: MarketId, fixes: Fixes, removals: Sequence[Removal] = ()) -> Published:
        await asyncio.sleep(0)
        if self.down:
            raise FeedUnavailable("switched off")
        assert isinstance(fixes, PositionBatch)
        rows = fixes.records.tolist()
        self.cells += [int(row[1]) for row in rows]
        taken = DriverIndex(resolution=0, stale_after_ms=1)
        taken.apply(fixes)
        self.fixes += [fix for each in fixes.ids if (fix := taken.held(each, 0)) is not None]
        self.removals += removals
        return Published(len(rows), self.outdated)

    def follow(self, market: MarketId, index: DriverIndex) -> Follower:
        raise NotImplementedError

    def now_ms(self) -> int:
        return 0

    async def close(self) -> None:
        pass


def track(name: str = "d", *, epoch: int = 1, acks: list[int] | None = None) -> Track:
    published = (lambda seq: None) if acks is None else acks.append
    return Track(
        DriverId(name),
        epoch=epoch,
        instance=7,
        vehicle_class="standard",
        seats=4,
        area=Everywhere(),
        max_speed_mps=70.0,
        tags=5,
        on_published=published,
    )


def item(seq: int, lat: float = 40.7, lon: float = -74.0, age_ms: int = 0) -> PositionItem:
    return PositionItem(seq, lat, lon, age_ms)


class Bench:
    """A flusher over a recording feed, with a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.feed = RecordingFeed()
        self.metrics = Metrics()
        self.flusher = PositionFlusher(
            self.feed, MARKET, flush_s=0.01, stale_after_s=30.0, metrics=self.metrics, clock=self.clock
        )

    def take(self, of: Track, given: PositionItem) -> Verdict:
        verdict = of.take(given, self.clock())
        if verdict is Verdict.TAKEN:
            self.flusher.touch(of)
        return verdict


def test_a_sequence_number_that_does_not_grow_is_a_repetition() -> None:
    one = track()
    verdicts = [one.take(item(seq), 0.0) for seq in (5, 5, 4, 6)]
    assert verdicts == [Verdict.TAKEN, Verdict.REPEATED, Verdict.REPEATED, Verdict.TAKEN]


def test_null_island_and_places_outside_the_market_are_refused_and_change_nothing() -> None:
    one = track()
    one.take(item(1), 0.0)
    assert one.take(item(2, 0.0, 0.0), 1.0) is Verdict.NULL_ISLAND
    assert one.take(item(3, 85.0, 0.0), 1.0) is Verdict.OUTSIDE
    assert one.to_fix(1.0).lat == 40.7


def test_a_fix_says_what_the_vehicle_offers_now() -> None:
    one = track()
    one.take(item(1), 0.0)
    assert one.to_fix(0.0).tags == 5
    one.drives("standard", 4, 1)
    assert one.to_fix(0.0).tags == 1


def test_a_jump_waits_until_a_second_fix_confirms_it() -> None:
    one = track()
    one.take(item(1), 0.0)
    assert one.take(item(2, 41.7), 1.0) is Verdict.QUARANTINED
    assert one.to_fix(1.0).lat == 40.7
    assert one.take(item(3, 41.7001), 2.0) is Verdict.TAKEN
    assert one.to_fix(2.0).lat == 41.7001


def test_a_single_jump_back_and_forth_never_shows() -> None:
    one = track()
    one.take(item(1), 0.0)
    verdicts = [one.take(item(2, 41.7), 1.0), one.take(item(3, 40.7001), 2.0), one.take(item(4, 41.7), 3.0)]
    assert verdicts == [Verdict.QUARANTINED, Verdict.TAKEN, Verdict.QUARANTINED]


def test_a_long_way_in_a_long_time_is_no_jump() -> None:
    one = track()
    one.take(item(1), 0.0)
    assert one.take(item(2, 40.9), 3600.0) is Verdict.TAKEN


def test_a_way_that_is_within_reach_only_by_the_exact_distance_is_taken() -> None:
    one = track()
    one.take(item(1, 60.0, 10.0), 0.0)
    # 0.01 degrees north and 0.02 east at 60 degrees: 1.57 km, reachable in 20 s at 70 m/s; the sum of degrees is not.
    assert one.take(item(2, 60.01, 10.02), 20.0) is Verdict.TAKEN


def last_seen(lat: float, age_ms: int) -> Fix:
    return Fix(DriverId("d"), lat, -74.0, 1, 6, 9, age_ms, "standard", 4)


def test_a_new_session_is_no_way_around_the_quarantine() -> None:
    """Its first fix is judged by where the driver was last seen, and has to be confirmed like any other."""
    one = track(epoch=2)
    one.follow(last_seen(40.7, age_ms=2000), 100.0)
    assert one.take(item(1, 41.7), 100.0) is Verdict.QUARANTINED
    assert one.take(item(2, 41.7001), 101.0) is Verdict.TAKEN


def test_a_new_session_goes_on_from_what_its_driver_can_have_reached() -> None:
    near, far = track(epoch=2), track(epoch=2)
    near.follow(last_seen(40.7, age_ms=20_000), 100.0)  # 250 m and 20 s at 70 m/s: 1650 m
    far.follow(last_seen(40.7, age_ms=20_000), 100.0)
    assert near.take(item(1, 40.714), 100.0) is Verdict.TAKEN
    assert far.take(item(1, 40.716), 100.0) is Verdict.QUARANTINED


def test_a_driver_that_signed_off_may_come_back_anywhere() -> None:
    one = track(epoch=2)
    one.follow(last_seen(40.7, age_ms=0), 100.0)
    one.removal()
    assert one.take(item(1, 41.7), 101.0) is Verdict.TAKEN


async def test_a_fix_that_is_delivered_three_times_counts_once() -> None:
    """It is published once, and acknowledged once: acknowledgements are cumulative."""
    bench, acks = Bench(), list[int]()
    one = track(acks=acks)
    bench.flusher.join(one)
    verdicts = []
    for seq in (1, 1, 1, 2, 2, 1, 2):
        verdicts.append(bench.take(one, item(seq, 40.7 + seq / 8192)))
        await bench.flusher.flush()
    assert [each for each in verdicts if each is not Verdict.REPEATED] == [Verdict.TAKEN] * 2
    assert [each.lat for each in bench.feed.fixes] == [40.7 + 1 / 8192, 40.7 + 2 / 8192]
    assert acks == [1, 2]
    assert bench.metrics.fixes.counts[("taken",)] == 2


def test_an_unknown_heading_or_speed_does_not_cost_the_position() -> None:
    one = track()
    one.take(PositionItem(1, 40.7, -74.0, 0, -1.0, float("nan")), 0.0)
    fix = one.to_fix(0.0)
    assert (fix.heading_deg, fix.speed_mps) == (None, None)


async def test_only_the_newest_of_a_driver_is_published_and_it_acknowledges_all() -> None:
    bench, acks = Bench(), list[int]()
    one = track(acks=acks)
    bench.flusher.join(one)
    for seq in (1, 2, 3):
        bench.take(one, item(seq, 40.7 + seq / 8192))
    assert await bench.flusher.flush()
    assert [(each.driver_id, each.lat) for each in bench.feed.fixes] == [("d", 40.7 + 3 / 8192)]
    assert acks == [3]


async def test_a_flush_publishes_exactly_what_a_fix_says() -> None:
    bench = Bench()
    one = track()
    for seq, (heading, speed) in enumerate([(271.5, 8.25), (360.0, 0.0), (-1.0, 301.0), (None, None)], 1):
        bench.take(one, PositionItem(seq, 40.7 + seq / 8192, -74.0, 250, heading, speed))
        await bench.flusher.flush()
        assert bench.feed.fixes[-1] == replace(one.to_fix(bench.clock()), driver_id=DriverId("d"))


async def test_a_driver_s_cell_follows_it_within_a_tenth_of_its_edges() -> None:
    """A cell names a bucket: it may be some 80 m late, never more."""
    bench = Bench()
    one = track()
    for step in range(200):
        lat = 40.7 + step * 0.0002
        bench.take(one, item(step, lat))
        await bench.flusher.flush()
        cells = {cell_of(lat + shift, -74.0, 8) for shift in (-0.0007, 0.0, 0.0007)}
        assert bench.feed.cells[-1] in cells
    bench.feed.resolution = 12  # a cell is smaller than that here
    bench.take(one, item(1000, 40.7398001))
    await bench.flusher.flush()
    assert bench.feed.cells[-1] == cell_of(40.7398001, -74.0, 12)


async def test_a_flood_of_one_driver_costs_one_position_a_flush() -> None:
    """P10: 400 positions in a second, where the mean is 5, are the newest one and no more memory."""
    bench, acks = Bench(), list[int]()
    one = track(acks=acks)
    bench.flusher.join(one)
    for seq in range(400):
        bench.take(one, item(seq, 40.7 + seq * 1e-6))
        assert len(bench.flusher) == 1
    await bench.flusher.flush()
    assert [each.lat for each in bench.feed.fixes] == [40.7 + 399 * 1e-6]
    assert acks == [399]
    assert bench.metrics.fixes.counts[("taken",)] == 400
    assert bench.metrics.published.total() == 1


async def test_acknowledgements_come_at_once_and_then_once_in_their_interval() -> None:
    bench, acks = Bench(), list[int]()
    one = track(acks=acks)
    one.ack_interval_s = 5.0
    for seq in range(1, 13):
        bench.take(one, item(seq, 40.7 + seq * 1e-6))
        await bench.flusher.flush()
        assert one.published == seq
        bench.clock.now_s += 1.0
    assert acks == [1, 6, 11]


async def test_a_fix_ages_by_the_monotonic_clock_while_it_waits() -> None:
    """P5: the phone's age plus the time in our buffer."""
    bench = Bench()
    one = track()
    bench.take(one, item(1, age_ms=1500))
    bench.clock.now_s += 2.0
    await bench.flusher.flush()
    assert bench.feed.fixes[0].age_ms == 3500


async def test_an_unavailable_feed_loses_nothing_newer_and_acknowledges_nothing() -> None:
    bench, acks = Bench(), list[int]()
    one = track(acks=acks)
    bench.flusher.join(one)
    bench.take(one, item(1))
    bench.feed.down = True
    assert not await bench.flusher.flush()
    assert (acks, bench.flusher.fault) == ([], "switched off")
    bench.take(one, item(2, 40.7001))
    bench.feed.down = False
    assert await bench.flusher.flush()
    assert ([each.lat for each in bench.feed.fixes], acks, bench.flusher.fault) == ([40.7001], [2], None)


async def test_what_outlives_staleness_is_dropped_rather_than_published() -> None:
    bench, acks = Bench(), list[int]()
    one = track(acks=acks)
    bench.flusher.join(one)
    bench.take(one, item(1))
    bench.clock.now_s += 31.0
    await bench.flusher.flush()
    assert (bench.feed.fixes, acks) == ([], [1])


async def test_positions_of_sessions_that_ended_do_not_pile_up_while_the_feed_is_down() -> None:
    """P10: a socket that left leaves at most one fix, and that only until it is stale."""
    bench = Bench()
    bench.feed.down = True
    for number in range(50):
        one = track(f"d{number}")
        bench.flusher.join(one)
        bench.take(one, item(1))
        bench.flusher.leave(one)
    await bench.flusher.flush()
    assert len(bench.flusher) == 50
    bench.clock.now_s += 31.0
    await bench.flusher.flush()
    assert len(bench.flusher) == 0


async def test_a_session_of_which_a_newer_epoch_stands_in_the_feed_is_told() -> None:
    bench = Bench()
    one = track()
    told: list[str] = []
    one.on_outdated = lambda: told.append("outdated")
    bench.feed.outdated = (DriverId("d"),)
    bench.take(one, item(1))
    await bench.flusher.flush()
    assert told == ["outdated"]


async def test_a_break_is_published_with_a_newer_stamp_without_a_new_fix() -> None:
    bench = Bench()
    one = track()
    bench.take(one, item(1))
    await bench.flusher.flush()
    one.set_available(False)
    bench.flusher.touch(one)
    await bench.flusher.flush()
    first, second = bench.feed.fixes
    assert second.stamp > first.stamp
    assert (first.available, second.available) == (True, False)


async def test_signing_off_removes_the_driver_with_a_newer_stamp() -> None:
    bench = Bench()
    one = track()
    bench.flusher.join(one)
    bench.take(one, item(1))
    await bench.flusher.flush()
    bench.flusher.remove(one)
    await bench.flusher.flush()
    assert bench.feed.removals[0].stamp > bench.feed.fixes[0].stamp


async def test_an_old_session_neither_publishes_nor_removes_once_a_newer_has_joined() -> None:
    """P7 within one process."""
    bench = Bench()
    old, new = track(epoch=1), track(epoch=2)
    bench.flusher.join(old)
    bench.take(old, item(1))
    bench.flusher.join(new)
    bench.flusher.remove(old)
    await bench.flusher.flush()
    assert (bench.feed.fixes, bench.feed.removals) == ([], [])


async def test_a_sign_off_that_could_not_be_published_is_forgotten_once_a_newer_session_has_joined() -> None:
    """P7: as it is outdated by then, the newer session would be taken for it, and ended."""
    bench, old, new = Bench(), track(epoch=1), track(epoch=2)
    bench.flusher.join(old)
    bench.flusher.remove(old)
    bench.feed.down = True
    flushing = asyncio.create_task(bench.flusher.flush())
    await asyncio.sleep(0)
    bench.flusher.join(new)
    assert not await flushing
    bench.feed.down = False
    bench.take(new, item(1))
    assert await bench.flusher.flush()
    assert [fix.epoch for fix in bench.feed.fixes] == [2]
    assert bench.feed.removals == []


async def test_a_session_that_is_over_hears_that_its_last_fix_was_dropped() -> None:
    bench, dropped = Bench(), list[str]()
    for name in ("back", "late"):
        one = track(name)
        one.on_dropped = lambda name=name: dropped.append(name)  # type: ignore[misc]
        bench.flusher.join(one)
        bench.take(one, item(1))
        bench.flusher.leave(one)
    bench.feed.down = True
    assert not await bench.flusher.flush()
    assert dropped == []
    bench.flusher.join(track("back", epoch=2))
    assert dropped == ["back"]
    flushing = asyncio.create_task(bench.flusher.flush())
    await asyncio.sleep(0)
    bench.clock.now_s += 31.0
    assert not await flushing
    assert dropped == ["back", "late"]


async def test_an_older_session_that_joins_late_takes_nothing_from_the_newer_one() -> None:
    """P7: two that sign on at once may be answered in either order."""
    bench = Bench()
    old, new = track(epoch=1), track(epoch=2)
    bench.flusher.join(new)
    bench.take(new, item(1))
    bench.flusher.join(old)
    bench.flusher.leave(old)
    await bench.flusher.flush()
    assert [each.epoch for each in bench.feed.fixes] == [2]
    bench.flusher.remove(new)
    await bench.flusher.flush()
    assert [each.stamp.epoch for each in bench.feed.removals] == [2]


async def test_a_new_generation_of_the_feed_gets_every_drivers_last_fix_again() -> None:
    bench = Bench()
    tracks = [track(name) for name in ("a", "b")]
    for each in tracks:
        bench.flusher.join(each)
        bench.take(each, item(1))
    await bench.flusher.flush()
    bench.feed.fixes.clear()
    bench.flusher.republish()
    await bench.flusher.flush()
    assert sorted(each.driver_id for each in bench.feed.fixes) == ["a", "b"]


async def test_the_flusher_recovers_by_itself_when_the_feed_comes_back() -> None:
    bench, acks = Bench(), list[int]()
    one = track(acks=acks)
    bench.flusher.join(one)
    bench.feed.down = True
    running = asyncio.create_task(bench.flusher.run())
    bench.take(one, item(1))
    async with asyncio.timeout(5):
        while bench.flusher.fault is None:
            await asyncio.sleep(0.01)
        bench.feed.down = False
        while not acks:
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert acks == [1]
