"""The feed on Redis does what the plain one in a process does, whatever is published (P6, P7)."""

from __future__ import annotations

import asyncio
import uuid

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geo.feed import InProcessFeed
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, MarketId, Removal, Stamp
from geo.redis_feed import RedisFeed
from tests.feeds import RESOLUTION, fix, index, running

drivers = st.sampled_from(["a", "b", "c", "d"])
stamps = st.builds(Stamp, st.integers(1, 3), st.integers(1, 2), st.integers(1, 4))
places = st.builds(LatLng, st.sampled_from([40.60, 40.75, 40.76]), st.sampled_from([-73.98, -73.80]))


def fix_of(driver: str, stamp: Stamp, at: LatLng) -> Fix:
    return fix(driver, stamp.seq, epoch=stamp.epoch, instance=stamp.instance, at=at)


fixes = st.lists(st.builds(fix_of, drivers, stamps, places), max_size=5)
removals = st.lists(st.builds(Removal, drivers.map(DriverId), stamps), max_size=2, unique_by=lambda r: r.driver_id)
publications = st.lists(st.tuples(fixes, removals), min_size=1, max_size=30)


def held(drivers_held: DriverIndex) -> dict[str, tuple[Stamp, float, float] | None]:
    seen = {name: drivers_held.held(DriverId(name)) for name in "abcd"}
    return {name: None if one is None else (one.stamp, one.lat, one.lon) for name, one in seen.items()}


@given(publications)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_feeds_answer_the_same_and_hold_the_same(
    redis_url: str, script: list[tuple[list[Fix], list[Removal]]]
) -> None:
    asyncio.run(_compare(redis_url, script))


async def _compare(url: str, script: list[tuple[list[Fix], list[Removal]]]) -> None:
    market = MarketId(f"market-{uuid.uuid4().hex[:8]}")
    local, remote = InProcessFeed(RESOLUTION), RedisFeed(url, RESOLUTION)
    near, far, late = index(), index(), index()
    follower = remote.follow(market, far)
    async with running(local.follow(market, near)), running(follower):
        await asyncio.sleep(0)
        for some_fixes, some_removals in script:
            expected = await local.publish(market, some_fixes, some_removals)
            answered = await remote.publish(market, some_fixes, some_removals)
            assert answered.applied == expected.applied
            assert sorted(answered.outdated) == sorted(expected.outdated)
        await follower.caught_up()
        assert held(far) == held(near)
    starter = remote.follow(market, late)
    async with running(starter):
        await starter.ready()
        await starter.caught_up()
        assert held(late) == held(near)
    await remote.close()
