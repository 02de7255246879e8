"""A fleet's gateway on one process and the same drivers on another: the newest session wins, wherever it is (P7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from geo.model import DriverId
from matcher.model import Hint
from tests.e2e.fleet_gateway import gateway
from tests.e2e.running import LAT, LON, Running, running, settings_for, until

Pair = tuple[Running, Running]


@pytest.fixture
async def pair(tmp_path: Path, clean_redis_url: str, mysql_database: str) -> AsyncIterator[Pair]:
    """Two services of one deployment, as two processes would be, on which nobody matches."""

    def settings(name: str) -> Any:
        return settings_for(tmp_path / name, redis_url=clean_redis_url, database_url=mysql_database, pool_size=4)

    async with running(settings("one"), "api") as one:
        await one.service.store.migrate()
        for name in ("d1", "d2", "d3"):
            await one.service.store.put_driver(DriverId(name), vehicle_class="standard", seats=4)
        async with running(settings("two"), "api") as two:
            for each in (one, two):
                await until(lambda each=each: is_ready(each), what="ready")  # type: ignore[misc]
            yield one, two


async def is_ready(run: Running) -> bool:
    return bool((await run.call("GET", "/readyz")).body["status"] == "ready")


async def found_at(run: Running, places: dict[str, float]) -> None:
    async def look() -> bool:
        answer = await run.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}", "client:ann")
        return {each["driver_id"]: each["lat"] for each in answer.body["items"]} == places

    await until(look, what=f"found at {places}")


def say_nothing(hints: Sequence[Hint]) -> None:
    """In place of an announcement: a process that dies between its commit and its announcement."""


async def test_a_driver_moves_between_gateways_and_its_own_socket_on_either_process(pair: Pair) -> None:
    one, two = pair
    here = await gateway(one)
    await here.sign_on("d1", "d2", "d3")
    await here.stand("d1", "d2", "d3")
    own = await two.drive("d1", put=False)
    assert (await here.next("signed_off"))["drivers"] == [{"driver_id": "d1", "code": "superseded"}]
    there = await gateway(two)
    await there.sign_on("d2")
    assert (await here.next("signed_off"))["drivers"] == [{"driver_id": "d2", "code": "superseded"}]
    await there.stand("d2", lat=LAT + 0.002)
    await own.stands(LAT + 0.001)
    places = {"d1": LAT + 0.001, "d2": LAT + 0.002, "d3": LAT}
    for each in pair:
        await found_at(each, places)
    closed = asyncio.create_task(own.closed())
    await here.sign_on("d1")
    assert await closed == 4000


async def test_an_old_session_on_a_gateway_that_has_not_heard_yet_writes_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7: what it sends shows that it is an old one."""
    one, two = pair
    old = await gateway(one)
    await old.sign_on("d1", "d2", "d3")
    await old.stand("d1", "d2", "d3")
    for run in pair:
        monkeypatch.setattr(run.service.announcer, "_check_rows", check_nothing)
    monkeypatch.setattr(two.service.announcer, "announce", say_nothing)
    new = await gateway(two)
    await new.sign_on("d1", "d2")
    await new.stand("d1", "d2", lat=LAT + 0.001)
    await old.stand("d1", "d3", lat=LAT + 0.002)
    refused = await old.command("status", "d2", status="on_break")
    assert refused["driver_id"] == "d2"
    assert refused["code"] in ("superseded", "not-signed-on")  # this told it, or an older position published again
    assert (await two.call("GET", "/v1/drivers/d2", "admin:root")).body["status"] == "online"
    ended: set[str] = set()
    for frame in old.passed:
        ended |= {each["driver_id"] for each in frame.get("drivers", ()) if frame["type"] == "signed_off"}
    while ended != {"d1", "d2"}:
        ended |= {each["driver_id"] for each in (await old.next("signed_off"))["drivers"]}
    await found_at(two, {"d1": LAT + 0.001, "d2": LAT + 0.001, "d3": LAT + 0.002})


async def check_nothing(drivers: Sequence[str]) -> None:
    """In place of the comparison of versions, whose turn has not come yet."""
