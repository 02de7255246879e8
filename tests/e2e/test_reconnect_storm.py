"""Every driver of a process comes back at once: few transactions, and whoever is too many is told when to return."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from api import schema
from api.auth import Role
from api.client import Backoff, new_session
from api.client_driver import DriverClient, DriverOptions
from geo.model import DriverId
from matcher.store_sign_on import OnSignOn, SignOn, SignOnOutcome
from tests.e2e.running import MSGPACK, Running, running, settings_for, token, until

OPTIONS = DriverOptions(connect_s=10.0, close_s=0.2, backoff=Backoff(0.01, 0.1))


class Deaf:
    """A driver who only counts how often it was lost."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def on_welcome(self, welcome: schema.WelcomeFrame) -> None: ...
    def on_ride(self, ride: schema.RideOut) -> None: ...
    def on_offer(self, ride: schema.RideOut, expires_in_s: float) -> None: ...
    def on_offer_withdrawn(self, ride: schema.RideOut, code: str) -> None: ...
    def on_status(self, status: str, code: str | None) -> None: ...
    def on_queue(self, queue: schema.QueueFrame) -> None: ...

    def on_lost(self, why: str) -> None:
        self.lost.append(why)


class Counted:
    """Counts the groups that the store signs on."""

    def __init__(self, run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._sign_on_many = run.service.store.sign_on_many
        monkeypatch.setattr(run.service.store, "sign_on_many", self)

    async def __call__(self, asked: Sequence[SignOn], *, on_outcome: OnSignOn | None = None) -> list[SignOnOutcome]:
        self.sizes.append(len(asked))
        await self.gate.wait()
        return await self._sign_on_many(asked, on_outcome=on_outcome)


async def put(run: Running, count: int) -> list[str]:
    names = [f"d{n}" for n in range(count)]
    for name in names:
        await run.service.store.put_driver(DriverId(name), vehicle_class="standard", seats=4)
    return names


async def test_drivers_who_come_back_together_share_transactions(
    tmp_path: Path, mysql_database: str, clean_redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, database_url=mysql_database, redis_url=clean_redis_url)
    async with running(settings, "api") as run:
        await run.service.store.migrate()
        names = await put(run, 90)
        counted = Counted(run, monkeypatch)
        wheels = await asyncio.gather(*[run.drive(name, put=False) for name in names])
        assert {wheel.welcome["driver_id"] for wheel in wheels} == set(names)
        assert sum(counted.sizes) == 90
        assert len(counted.sizes) <= 45


async def test_one_too_many_is_refused_before_any_work_and_told_when_to_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10"""
    async with running(settings_for(tmp_path), "api") as run:
        names = await put(run, 3)
        counted = Counted(run, monkeypatch)
        counted.gate.clear()
        monkeypatch.setattr(run.service.sign_on_desk, "_waiting_max", 2)
        coming = [asyncio.create_task(run.drive(name, put=False)) for name in names[:2]]

        async def are_waiting() -> bool:
            return run.service.sign_on_desk.waiting == 2

        await until(are_waiting, what="two sign-ons wait")
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await run.http.ws_connect(
                f"{run.base_url}/v1/drivers/d2/stream",
                headers={"Authorization": f"Bearer {token(Role.DRIVER, 'd2')}"},
                protocols=(MSGPACK,),
            )
        assert refused.value.status == 503
        assert refused.value.headers is not None
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert sum(counted.sizes) <= 2
        counted.gate.set()
        await asyncio.gather(*coming)


async def test_whoever_was_refused_comes_back_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(settings_for(tmp_path), "api") as run:
        names = await put(run, 30)
        monkeypatch.setattr(run.service.sign_on_desk, "_waiting_max", 12)
        ears = {name: Deaf() for name in names}
        async with new_session() as session:
            apps = [_app(session, run, name, ears[name]) for name in names]
            jobs = [asyncio.create_task(app.run()) for app in apps]

            async def all_are_back() -> bool:
                return all(app.is_connected for app in apps)

            await until(all_are_back, what="everybody is back")
            for app in apps:
                await app.close()
            await asyncio.gather(*jobs)
        refusals = [why for ear in ears.values() for why in ear.lost]
        assert refusals
        assert all(why.startswith("503") for why in refusals)


def _app(session: aiohttp.ClientSession, run: Running, name: str, ear: Any) -> DriverClient:
    return DriverClient(session, run.base_url, name, token(Role.DRIVER, name), ear, options=OPTIONS)
