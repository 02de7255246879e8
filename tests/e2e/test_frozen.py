"""A process that is frozen beyond its lease and comes back has nothing to say any more (P7): real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from api.auth import Role
from tests.e2e.running import JSON, LAT, SECRET, Running, running, settings_for, token, until
from tests.servers import mysql_connection
from tests.service_process import ServiceProcess

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

LEASE_S = 2.0


@pytest.fixture
def shared(clean_redis_url: str, mysql_database: str) -> dict[str, Any]:
    return {"redis_url": clean_redis_url, "database_url": mysql_database, "lease_s": LEASE_S, "pool_size": 4}


@pytest.fixture
async def api(tmp_path: Path, shared: dict[str, Any]) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path / "api", **shared), "api") as run:
        await run.service.store.migrate()
        yield run


def processes(tmp_path: Path, shared: dict[str, Any], role: str, count: int) -> Iterator[ServiceProcess]:
    for number in range(count):
        folder = tmp_path / f"{role}-{number}"
        folder.mkdir()
        names = {f"HEXHAIL_{name.upper()}": str(value) for name, value in shared.items()}
        markets = '[{"id": "new-york", "center_lat": 40.75, "center_lon": -73.98, "radius_m": 30000, "window_s": 0.1}]'
        more = {"HEXHAIL_TOKEN_SECRET": SECRET, "HEXHAIL_MARKETS": markets, "HEXHAIL_DRAIN_S": "1"}
        yield ServiceProcess(folder, "--role", role, environment={**names, **more})


def lease(url: str) -> tuple[int, int]:
    """The process that holds the lease, by its id, and the token."""
    connection = mysql_connection(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT holder, token FROM market_leases WHERE expires_at_ms > 0")
            rows = cursor.fetchall()
    finally:
        connection.close()
    if not rows:
        return 0, 0
    return int(bytes(rows[0][0]).decode().split("-")[-2]), rows[0][1]


async def test_a_frozen_matcher_is_succeeded_within_the_lease_and_writes_nothing_when_it_wakes(
    tmp_path: Path, api: Running, shared: dict[str, Any]
) -> None:
    url, matchers = shared["database_url"], list(processes(tmp_path, shared, "matcher", 2))
    try:
        for each in matchers:
            each.spawn()
        drivers = [await api.drive(f"d{number}") for number in range(3)]
        for number, wheel in enumerate(drivers):
            await wheel.stands(LAT + 0.001 * number)
        first = await api.ride()
        await until(lambda: has_state(api, first["id"], "assigned"), what="a matcher leads", within_s=45)
        frozen, old_token = lease(url)
        os.kill(frozen, signal.SIGSTOP)
        try:
            waiting = await api.ride()
            await until(lambda: has_state(api, waiting["id"], "assigned"), what="a successor leads", within_s=20)
            successor, new_token = lease(url)
            assert successor != frozen
            assert new_token > old_token
        finally:
            os.kill(frozen, signal.SIGCONT)
        await asyncio.sleep(LEASE_S)
        assert lease(url) == (successor, new_token)
        last = await api.ride()
        await until(lambda: has_state(api, last["id"], "assigned"), what="the successor goes on")
        audit = await api.service.store.audit()
        assert audit.holds
        assert audit.rides == {"assigned": 3}
        assert audit.trips == {"accepted": 3}
    finally:
        for each in matchers:
            each.remove()


async def has_state(run: Running, ride_id: str, state: str) -> bool:
    return bool((await run.call("GET", f"/v1/rides/{ride_id}", "client:ann")).body["state"] == state)


async def test_what_a_frozen_process_had_in_its_sockets_is_not_written_when_it_wakes(
    tmp_path: Path, api: Running, shared: dict[str, Any]
) -> None:
    """P7: the driver has a newer session elsewhere by then, and the old one learns that it is over."""
    [other] = processes(tmp_path, shared, "api", 1)
    [matcher] = processes(tmp_path, shared, "matcher", 1)
    try:
        other.start()
        matcher.spawn()
        await api.put_driver("d1")
        headers = {"Authorization": f"Bearer {token(Role.DRIVER, 'd1')}"}
        async with api.http.ws_connect(f"{other.url}/v1/drivers/d1/stream", headers=headers, protocols=(JSON,)) as old:
            await old.send_str(msgspec.json.encode({"type": "position", "seq": 1, "lat": LAT, "lon": -73.98}).decode())
            ride = await api.ride()
            await until(lambda: has_state(api, ride["id"], "assigned"), what="it is matched", within_s=45)
            trip_id = (await api.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body["trip"]["id"]
            pid = next((worker.pid for worker in other.workers("api")), other.pid)
            os.kill(pid, signal.SIGSTOP)
            try:
                await old.send_str(msgspec.json.encode({"type": "arrive", "trip_id": trip_id, "ref": 1}).decode())
                new = await api.drive("d1", put=False)
                assert [each["id"] for each in new.welcome["rides"]] == [ride["id"]]
                await asyncio.sleep(LEASE_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            async with asyncio.timeout(15):
                while (message := await old.receive()).type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.PING):
                    assert b'"type":"done"' not in message.data.encode()
            assert old.close_code == 4000
        seen = (await api.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body
        assert (seen["state"], seen["version"]) == ("assigned", 2)
    finally:
        other.remove()
        matcher.remove()
