"""Two API workers on one port: one that is killed takes only its sockets along, and they come back by themselves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import pytest

from api import schema
from api.auth import Role
from api.client import DispatchClient, DriverClient, new_session
from tests.e2e.running import until
from tests.service_process import ServiceProcess, running

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(150)]
WITHIN_S = 30.0
PICKUP = schema.Point(40.75, -73.98)
#: So many drivers on each worker at least; the kernel deals the sockets out.
EACH_MIN, ALL_MAX = 2, 40
RIDES_BEFORE, RIDES_MEANWHILE = 2, 2
BEAT_S = 0.2
#: New connections that a question goes out on: all but surely to both workers.
CONNECTIONS = 8


@dataclass
class Driver:
    """A driver's app that reports where it stands, and notes whenever it lost its socket."""

    name: str
    lon: float
    worker: int = 0
    lost: list[str] = field(default_factory=list)
    welcomes: int = 0
    trips: set[str] = field(default_factory=set)  # of the last welcome
    client: DriverClient = field(init=False)

    def on_welcome(self, welcome: schema.WelcomeFrame) -> None:
        self.welcomes += 1
        self.trips = {ride.id for ride in welcome.rides}

    def on_lost(self, why: str) -> None:
        self.lost.append(why)

    def on_ride(self, ride: schema.RideOut) -> None: ...
    def on_offer(self, ride: schema.RideOut, expires_in_s: float) -> None: ...
    def on_offer_withdrawn(self, ride: schema.RideOut, code: str) -> None: ...
    def on_status(self, status: str, code: str | None) -> None: ...
    def on_queue(self, queue: schema.QueueFrame) -> None: ...


class Crew:
    """The drivers, each known to sit on one of the workers."""

    def __init__(self, service: ServiceProcess, session: aiohttp.ClientSession, admin: DispatchClient) -> None:
        """The session is for the sockets alone: a connection that had another use would show no new port."""
        self.drivers: list[Driver] = []
        self._service = service
        self._session = session
        self._tasks: list[asyncio.Task[None]] = []
        self._admin = admin

    def of(self, worker: int) -> list[Driver]:
        return [each for each in self.drivers if each.worker == worker]

    async def sign_on(self, name: str) -> None:
        """Puts the driver online and finds out which worker holds its socket."""
        driver = Driver(name, PICKUP.lon + 0.0005 * len(self.drivers))
        await self._admin.put_driver(name, schema.DriverRequest(seats=4, status="online"))
        before = _peers(self._service)
        token = self._service.token(Role.DRIVER, name)
        driver.client = DriverClient(
            self._session, self._service.url, name, token, driver, market="new-york", rng=random.Random(name)
        )
        self.drivers.append(driver)
        self._tasks += [asyncio.create_task(driver.client.run()), asyncio.create_task(_beat(driver))]
        await _holds(lambda: driver.welcomes > 0, f"{name} is welcomed")
        after = _peers(self._service)
        (driver.worker,) = (pid for pid in after if after[pid] - before.get(pid, set()))

    async def close(self) -> None:
        for driver in self.drivers:
            await driver.client.close()
        for beat in self._tasks[1::2]:
            beat.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _beat(driver: Driver) -> None:
    while True:
        await driver.client.position(PICKUP.lat, driver.lon)
        await asyncio.sleep(BEAT_S)


def _peers(service: ServiceProcess) -> dict[int, set[int]]:
    """Of each API worker the ports at the other end of its sockets."""
    port = int(service.url.rpartition(":")[2])
    return {worker.pid: set(_peers_of(worker, port)) for worker in service.workers("api")}


def _peers_of(worker: psutil.Process, port: int) -> Iterator[int]:
    for each in worker.net_connections(kind="tcp"):
        if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port:
            yield each.raddr.port


async def _holds(condition: Callable[[], bool], what: str) -> None:
    async def looks() -> bool:
        return condition()

    await until(looks, what=what, within_s=WITHIN_S)


async def _all_back(drivers: list[Driver]) -> None:
    """Says who is not, and why it was lost."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while not all(each.welcomes >= 2 for each in drivers):
                await asyncio.sleep(0.02)
    except TimeoutError:
        told = [(each.name, each.welcomes, each.lost, each.client.is_connected) for each in drivers]
        raise AssertionError(f"not all are back: {told}") from None


async def _found_everywhere(service: ServiceProcess, names: set[str]) -> bool:
    """Whether all of them are found over each of some new connections."""
    for _ in range(CONNECTIONS):
        async with DispatchClient(service.url, service.token(Role.CLIENT, "looker")) as looker:
            found = await looker.nearby_many([(PICKUP.lat, PICKUP.lon)], k=len(names), idle=False)
        if {each.driver_id for each in found.near(0)} != names:
            return False
    return True


@pytest.fixture
def service(redis_url: str, mysql_database: str, tmp_path: Path) -> Iterator[ServiceProcess]:
    environment = {"HEXHAIL_REDIS_URL": redis_url, "HEXHAIL_DATABASE_URL": mysql_database}
    with running(ServiceProcess(tmp_path, "--workers", "2", environment=environment)) as service:
        service.wait_ready()
        yield service


@asynccontextmanager
async def crew_on(service: ServiceProcess) -> AsyncIterator[Crew]:
    """Drivers on both workers, all of them found by both."""
    admin = DispatchClient(service.url, service.token(Role.ADMIN, "boss"))
    async with new_session() as session, admin:
        crew = Crew(service, session, admin)
        try:
            pids = [each.pid for each in service.workers("api")]
            while (
                min(len(crew.of(pid)) for pid in pids) < EACH_MIN or len(crew.drivers) < RIDES_BEFORE + RIDES_MEANWHILE
            ):
                assert len(crew.drivers) < ALL_MAX, "the kernel deals sockets to one worker only"
                await crew.sign_on(f"d{len(crew.drivers)}")
            names = {each.name for each in crew.drivers}
            await until(lambda: _found_everywhere(service, names), what="all are found", within_s=WITHIN_S)
            yield crew
        finally:
            await crew.close()


async def _matched(rider: DispatchClient, count: int) -> dict[str, str]:
    """So many rides, once each has a driver: ride -> driver."""
    found: dict[str, str] = {}

    async def looks() -> bool:
        found.clear()
        found.update({each.id: each.trip.driver_id for each in await rider.rides() if each.trip is not None})
        return len(found) >= count

    await until(looks, what=f"{count} rides are matched", within_s=WITHIN_S)
    return dict(found)


async def test_a_killed_worker_loses_its_sockets_and_nothing_else(service: ServiceProcess) -> None:
    """Its drivers come back with what they had; the other worker's notice nothing; every ride is kept and matched."""
    async with crew_on(service) as crew, new_session() as session:
        rider = DispatchClient(service.url, service.token(Role.CLIENT, "ann"), session=session)
        before = [(await rider.request_ride(schema.RideRequest(pickup=PICKUP))).ride.id for _ in range(RIDES_BEFORE)]
        driven = await _matched(rider, RIDES_BEFORE)
        killed = next((each.worker for each in crew.drivers if each.name in driven.values()), 0)
        others = [each for each in crew.drivers if each.worker != killed]

        psutil.Process(killed).kill()
        asked = [rider.request_ride(schema.RideRequest(pickup=PICKUP)) for _ in range(RIDES_MEANWHILE)]
        meanwhile = [each.ride.id for each in await asyncio.gather(*asked)]
        await _all_back(crew.of(killed))

        after = await _matched(rider, RIDES_BEFORE + RIDES_MEANWHILE)
        assert set(after) == {*before, *meanwhile}
        assert {ride: after[ride] for ride in before} == driven, "a match outlives the worker of its driver's socket"
        assert len(set(after.values())) == len(after), "nobody has two"
        for driver in crew.of(killed):
            assert {ride for ride, name in driven.items() if name == driver.name} <= driver.trips
        assert [(each.welcomes, each.lost) for each in others] == [(1, [])] * len(others)

        await _holds(lambda: len(service.workers("api")) == 2, "the worker is replaced")
        await asyncio.to_thread(service.wait_ready)
        names = {each.name for each in crew.drivers}
        await until(lambda: _found_everywhere(service, names), what="all are found again", within_s=WITHIN_S)
        assert [(each.welcomes, each.lost) for each in others] == [(1, [])] * len(others)
