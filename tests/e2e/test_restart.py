"""A restart of everything: what stood stands, what was told is not told again, what was not told is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from tests.e2e.running import Running, market, running, settings_for
from tests.e2e.test_events import events


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    offers = market(assign="offer", offer_ttl_s=30.0, lost_grace_s=20.0, schedule_lead_s=2.0)
    return settings_for(tmp_path, markets=(offers,))


async def test_a_ride_is_followed_from_any_version_across_a_restart(settings: Settings) -> None:
    async with running(settings) as run:
        wheel = await run.drive("d1")
        await wheel.stands()
        ride = await run.ride()
        offer = await wheel.next("offer")
        async with events(run, ride["id"]) as stream:
            first = [await stream.next() for _ in range(2)]
    assert [each.event for each in first if each] == ["requested", "offered"]
    async with running(settings) as run:
        wheel = await run.drive("d1", put=False)
        [shown] = wheel.welcome["rides"]
        assert (shown["id"], shown["trip"]["state"]) == (ride["id"], "offered")
        await wheel.send(type="accept", trip_id=offer["ride"]["trip"]["id"], ref=1)
        assert (await wheel.next("done"))["ride"]["state"] == "assigned"
        async with events(run, ride["id"], last=2) as stream:
            third = await stream.next("assigned")
        async with events(run, ride["id"], last=1) as stream:
            again = [await stream.next("offered"), await stream.next("assigned")]
    assert third is not None
    assert third.id == "3"
    assert [each.id for each in again if each] == ["2", "3"]


async def test_a_ride_for_later_is_searched_for_although_nobody_was_there_in_between(settings: Settings) -> None:
    at = datetime.now(UTC) + timedelta(seconds=6)
    async with running(settings) as run:
        ride = await run.ride(pickup_at=at.isoformat())
        assert ride["state"] == "scheduled"
        other = await run.ride(pickup_at=(at + timedelta(hours=1)).isoformat())
    await asyncio.sleep(0.5)
    async with running(settings) as run:
        seen = await run.ride_in("searching", ride["id"])
        assert seen["pickup_at"] == ride["pickup_at"]
        cancelled = await run.call("POST", f"/v1/rides/{other['id']}/cancel", "client:ann")
        assert cancelled.body["state"] == "cancelled"
        wheel = await run.drive("d1")
        await wheel.stands()
        assert (await wheel.next("offer"))["ride"]["id"] == ride["id"]


async def test_an_event_that_was_committed_and_not_announced_is_announced_after_the_restart(settings: Settings) -> None:
    """As if the process had died between the commit and the announcement."""
    async with running(settings) as run:
        ride = await run.ride()
        store: Any = run.service.store
        await run.ride_in("searching", ride["id"])
        outcome = await store.cancel_ride(ride["id"], client_id=None, reason="storm")
        assert outcome.hints
    async with running(settings) as run:
        unannounced = await _until_announced(run)
    assert unannounced == []


async def _until_announced(run: Running) -> list[Any]:
    for _ in range(100):
        left = await run.service.store.unannounced(None, older_than_ms=0, limit=10)
        if not left:
            return []
        await asyncio.sleep(0.1)
    return list(left)
