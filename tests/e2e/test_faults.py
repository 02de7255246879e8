"""Redis or the database down, from the start or in between; and two processes on the same of both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import LAT, LON, Answer, Running, running, settings_for, until
from tests.servers import MariaServer, RedisServer, fresh_database, redis_client

NEARBY = f"/v1/drivers/nearby?lat={LAT}&lon={LON}"


async def ids_nearby(run: Running) -> list[str]:
    answer = await run.call("GET", NEARBY, "client:ann")
    return [each["driver_id"] for each in answer.body["items"]] if answer.status == 200 else [answer.code]


async def eventually(run: Running, expected: list[str], within_s: float = 20.0) -> None:
    async def found() -> bool:
        return await ids_nearby(run) == expected

    await until(found, what=f"nearby says {expected}", within_s=within_s)


async def readiness(run: Running, status: str, within_s: float = 20.0) -> Answer:
    last: list[Answer] = []

    async def says() -> bool:
        last[:] = [await run.call("GET", "/readyz")]
        return bool(last[0].body["status"] == status)

    await until(says, what=f"readiness is {status}", within_s=within_s)
    return last[0]


async def test_redis_down_at_start_costs_positions_and_nothing_else(tmp_path: Path, redis_server: RedisServer) -> None:
    """P9"""
    redis_server.stop()
    async with running(settings_for(tmp_path, redis_url=redis_server.url, redis_timeout_s=0.5)) as run:
        ready = await readiness(run, "degraded")
        assert ready.status == 200
        assert ready.body["reasons"]
        nearby = await run.call("GET", NEARBY, "client:ann")
        assert (nearby.status, nearby.code) == (503, "positions-unavailable")
        assert "Retry-After" in nearby.headers
        ride = await run.ride()
        wheel = await run.drive("d1")
        await wheel.at()
        redis_server.start()
        assert (await wheel.next("ack", within_s=20))["seq"] == 1
        await eventually(run, ["d1"])
        await readiness(run, "ready")
        assert (await run.ride_in("assigned", ride["id"]))["trip"]["driver_id"] == "d1"


async def test_redis_killed_and_empty_again_is_filled_by_the_drivers_processes(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """P9: without a new fix from anybody."""
    settings = settings_for(tmp_path, redis_url=redis_server.url, redis_timeout_s=0.5)
    async with running(settings) as run:
        wheel = await run.drive("d1")
        await wheel.stands()
        await eventually(run, ["d1"])
        redis_server.kill()
        await readiness(run, "degraded")
        await run.ride("client:bob")
        redis_server.start()
        await eventually(run, ["d1"])
        await readiness(run, "ready")


async def test_nearby_says_503_once_redis_has_been_silent_for_too_long(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """P5"""
    settings = settings_for(tmp_path, redis_url=redis_server.url, redis_timeout_s=0.5, stale_after_s=1.5)
    async with running(settings) as run:
        await eventually(run, [])
        redis_server.kill()
        await eventually(run, ["positions-unavailable"])
        await run.ride()


async def test_a_flushed_redis_is_filled_again(tmp_path: Path, redis_server: RedisServer) -> None:
    """P9"""
    async with running(settings_for(tmp_path, redis_url=redis_server.url)) as run:
        wheel = await run.drive("d1")
        await wheel.stands()
        await eventually(run, ["d1"])
        with contextlib.closing(redis_client(redis_server.url)) as client:
            client.flushall()

        async def back() -> bool:
            with contextlib.closing(redis_client(redis_server.url)) as client:
                return client.dbsize() > 1 and await ids_nearby(run) == ["d1"]

        await until(back, what="the driver stands in Redis again")


@pytest.fixture
def database(maria_server: MariaServer) -> Any:
    with fresh_database(maria_server.url) as url:
        yield url


def on_maria(tmp_path: Path, url: str, **named: Any) -> Any:
    return settings_for(tmp_path, database_url=url, store_timeout_s=1.0, pool_size=4, **named)


async def test_a_database_down_at_start_is_answered_with_503_until_it_comes_back(
    tmp_path: Path, maria_server: MariaServer, database: str
) -> None:
    async with running(on_maria(tmp_path, database)) as run:
        await run.service.store.migrate()
    maria_server.stop()
    async with running(on_maria(tmp_path, database)) as run:
        ready = await readiness(run, "degraded")
        assert "database" in ready.body["reasons"][0]
        body = {"pickup": {"lat": LAT, "lon": LON}}
        answer = await run.call("POST", "/v1/rides", "client:ann", body=body)
        assert (answer.status, answer.code) == (503, "store-unavailable")
        assert "Retry-After" in answer.headers
        maria_server.start()
        await readiness(run, "ready")
        await run.ride()


async def test_a_database_killed_in_between_loses_no_acknowledged_ride_and_no_open_socket(
    tmp_path: Path, maria_server: MariaServer, database: str
) -> None:
    """P2, P9"""
    async with running(on_maria(tmp_path, database)) as run:
        await run.service.store.migrate()
        await readiness(run, "ready")
        wheel = await run.drive("d1")
        await wheel.stands()
        await eventually(run, ["d1"])
        ride = await run.ride(deadline_s=600, **{"class": "large"})
        maria_server.kill()
        await readiness(run, "degraded")
        await wheel.send(type="status", status="on_break", ref=1)
        assert (await wheel.next("error"))["code"] == "store-unavailable"
        await wheel.stands(LAT + 0.0005)
        nearby = await run.call("GET", NEARBY, "client:ann")
        assert [each["driver_id"] for each in nearby.body["items"]] == ["d1"]
        maria_server.start()
        await readiness(run, "ready")
        assert (await run.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body["state"] == "searching"
        await wheel.send(type="status", status="on_break", ref=2)
        assert (await wheel.next("done"))["ref"] == 2


@pytest.fixture
async def pair(tmp_path: Path, clean_redis_url: str, mysql_database: str) -> AsyncIterator[tuple[Running, Running]]:
    """Two services of one deployment, as two processes would be."""

    def settings(name: str) -> Any:
        return settings_for(tmp_path / name, redis_url=clean_redis_url, database_url=mysql_database, pool_size=4)

    async with running(settings("one"), "all") as one:
        await one.service.store.migrate()
        async with running(settings("two"), "api") as two:
            await readiness(one, "ready")
            await readiness(two, "ready")
            yield one, two


async def test_the_newest_session_wins_across_processes(pair: tuple[Running, Running]) -> None:
    """P7: the old socket is told at once, without having to write."""
    one, two = pair
    old = await one.drive("d1")
    await old.stands()
    ended = asyncio.create_task(old.closed())
    new = await two.drive("d1", put=False)
    await new.stands(LAT + 0.001)
    assert await ended == 4000
    await eventually(two, ["d1"])
    await eventually(one, ["d1"])
    held = next(iter(one.service.planes.values())).index.held("d1")  # type: ignore[arg-type]
    assert held is not None
    assert held.lat == LAT + 0.001


async def test_an_old_session_can_command_nothing(pair: tuple[Running, Running]) -> None:
    """P7: it is fenced by its epoch in the transaction."""
    one, two = pair
    old = await one.drive("d1")
    await old.stands()
    await one.ride()
    trip = (await old.next("trip"))["ride"]["trip"]["id"]
    await two.drive("d1", put=False)
    await old.send(type="arrive", trip_id=trip, ref=1)
    assert await old.closed() == 4000


async def test_a_whole_ride_across_two_processes(pair: tuple[Running, Running]) -> None:
    one, two = pair
    wheel = await two.drive("d1")
    await wheel.stands()
    await eventually(one, ["d1"])
    ride = await two.ride()
    told = (await wheel.next("trip"))["ride"]
    assert told["id"] == ride["id"]
    for verb in ("arrive", "start", "complete"):
        answer = await one.call("POST", f"/v1/trips/{told['trip']['id']}/{verb}", "driver:d1")
        assert answer.status == 200

    async def hears(state: str) -> None:
        while (await wheel.next("trip"))["ride"]["state"] != state:
            pass

    async with asyncio.timeout(10):
        await hears("completed")
    audit = await one.service.store.audit()
    assert audit.holds
    assert audit.double_assignments == 0
