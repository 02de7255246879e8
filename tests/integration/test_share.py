"""Any number of matcher processes share the markets: evenly, at once when one is gone, and never two in one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from geo.model import MarketId
from matcher.share import Share
from matcher.store import Store
from tests.matchers import running, until

LEASE_S = 1.0


class Now:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Alone:
    """A store that says how many matchers there are."""

    def __init__(self, matchers: int) -> None:
        self.matchers = matchers

    async def matcher_seen(self, holder: str, *, unseen_ms: int) -> int:
        return self.matchers

    async def matcher_gone(self, holder: str) -> None:
        pass


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = await Store.open(url)
    await store.migrate()
    try:
        yield store
    finally:
        await store.close()


async def test_who_leads_more_than_its_share_gives_back_one_at_a_time_and_leaves_it_to_the_others() -> None:
    now, others = Now(), Alone(2)
    share = Share(others, "m1", 4, lease_s=0.06, clock=now)
    given = {name: share.took(MarketId(name)) for name in "abcd"}
    async with running(share.run()):
        await until(lambda: given["c"].is_set() and given["d"].is_set(), "two of four are given back")
        assert not given["a"].is_set()
        share.gave(MarketId("d"))
        assert share.wait_s(MarketId("d")) == pytest.approx(0.12)
        now.s = 1.0
        assert share.wait_s(MarketId("d")) == 0.0
        await asyncio.sleep(0.1)
        assert not given["b"].is_set()


async def test_a_lease_that_was_lost_is_not_left_to_others() -> None:
    share = Share(Alone(1), "m1", 2, lease_s=1.0)
    share.took(MarketId("a"))
    share.gave(MarketId("a"))
    assert share.wait_s(MarketId("a")) == 0.0


async def test_shares_follow_how_many_there_are(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path}/hexhail.db") as store:
        first, second = (Share(store, name, 5, lease_s=LEASE_S) for name in ("m1", "m2"))
        async with running(first.run()):
            await until(lambda: first.matchers == 1)
            async with running(second.run()):
                await until(lambda: (first.fair, second.fair) == (3, 3), "each knows of the other")
            await until(lambda: first.fair == 5, "one that stops says so")
