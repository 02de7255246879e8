"""`hexhail serve` as processes: what dies is replaced, what is stopped leaves nothing, and faults are said plainly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from api import schema
from api.auth import Role
from api.client import DispatchClient, DriverClient, new_session
from api.supervisor import ECHO_S
from api.worker import EXIT_HURRIED
from tests.servers import MariaServer, fresh_database, mysql_connection, wait_until
from tests.service_process import SECRET, ServiceProcess, running

#: Four processes import everything, on a machine that may be busy.
pytestmark = pytest.mark.timeout(150)
WITHIN_S = 30.0
PICKUP = schema.Point(40.75, -73.98)


@pytest.fixture
def service(redis_url: str, mysql_database: str, tmp_path: Path) -> Iterator[ServiceProcess]:
    """One matcher and two API workers on real servers, ready."""
    environment = {"HEXHAIL_REDIS_URL": redis_url, "HEXHAIL_DATABASE_URL": mysql_database, "HEXHAIL_LEASE_S": "2"}
    with running(ServiceProcess(tmp_path, "--workers", "2", environment=environment)) as service:
        service.wait_ready()
        yield service


class _Quiet:
    """A driver that looks at nothing it is told."""

    def on_welcome(self, welcome: schema.WelcomeFrame) -> None: ...
    def on_ride(self, ride: schema.RideOut) -> None: ...
    def on_lost(self, why: str) -> None: ...
    def on_offer(self, ride: schema.RideOut, expires_in_s: float) -> None: ...
    def on_offer_withdrawn(self, ride: schema.RideOut, code: str) -> None: ...
    def on_status(self, status: str, code: str | None) -> None: ...
    def on_queue(self, queue: schema.QueueFrame) -> None: ...


async def _one_ride_is_matched(service: ServiceProcess, driver_id: str = "d1") -> None:
    """The driver signs on near a rider, who asks and gets that driver."""
    async with new_session() as session, asyncio.timeout(WITHIN_S):
        admin = DispatchClient(service.url, service.token(Role.ADMIN, "boss"), session=session)
        await admin.put_driver(driver_id, schema.DriverRequest(seats=4, status="online"))
        token = service.token(Role.DRIVER, driver_id)
        driver = DriverClient(session, service.url, driver_id, token, _Quiet(), market="new-york")
        running = asyncio.create_task(driver.run())
        try:
            rider = DispatchClient(service.url, service.token(Role.CLIENT, f"rider-of-{driver_id}"), session=session)
            asked = await rider.request_ride(schema.RideRequest(pickup=PICKUP))
            ride = asked.ride
            while ride.trip is None:
                await driver.position(PICKUP.lat, PICKUP.lon)
                await asyncio.sleep(0.1)
                ride = await rider.ride(ride.id)
            assert ride.trip.driver_id == driver_id
            await rider.cancel_ride(ride.id)
        finally:
            await driver.close()
            await running


@contextlib.contextmanager
def _unfinished_request(service: ServiceProcess) -> Iterator[None]:
    """A ride request whose body has been announced and does not come."""
    where = urlsplit(service.url)
    head = f"POST /v1/rides HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {service.token(Role.CLIENT, 'c')}\r\n"
    with socket.create_connection((where.hostname, where.port), timeout=5) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 10\r\n\r\n".encode())
        wait_until(lambda: "hexhail_requests 1.0" in service.metrics(), within_s=WITHIN_S, what="it is under way")
        yield


def _kill_one(service: ServiceProcess, role: str) -> int:
    before = service.workers(role)
    before[0].kill()
    killed = before[0].pid
    wait_until(
        lambda: (
            len(service.workers(role)) == len(before) and killed not in {each.pid for each in service.workers(role)}
        ),
        within_s=WITHIN_S,
        what=f"the {role} is replaced",
    )
    return killed


@pytest.mark.chaos
async def test_a_killed_matcher_and_a_killed_worker_are_replaced_and_rides_go_on(service: ServiceProcess) -> None:
    assert len(service.workers("matcher")) == 1
    assert len(service.workers("api")) == 2
    await _one_ride_is_matched(service)
    for role in ("matcher", "api"):
        await asyncio.to_thread(_kill_one, service, role)
        await asyncio.to_thread(service.wait_ready)
        await _one_ride_is_matched(service)
    assert "was ended by SIGKILL" in service.output()


@pytest.mark.chaos
def test_a_killed_supervisor_leaves_no_process_behind(service: ServiceProcess) -> None:
    assert len(service.family()) >= 3
    service.signal(signal.SIGKILL)
    service.wait_ended()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_everything_and_what_was_said_held_no_secret(
    service: ServiceProcess, how: signal.Signals
) -> None:
    assert len(service.family()) >= 3
    service.signal(how)
    assert service.wait_ended() == 0
    said = service.output()
    assert "1 matcher, 2 API workers" in said
    assert "hexhail token" in said
    assert "hexhail:hexhail@" not in said
    assert SECRET not in said
    assert "Traceback" not in said


def test_an_embedded_service_drains_on_a_signal_and_starts_again_on_its_data(tmp_path: Path) -> None:
    for how in (signal.SIGINT, signal.SIGTERM):
        with running(ServiceProcess(tmp_path)) as service:
            service.wait_ready()
            service.signal(how)
            assert service.wait_ended() == 0
            assert "Traceback" not in service.output()
        (tmp_path / "output").unlink()
    assert (tmp_path / "data" / "hexhail.db").exists()


def test_a_second_signal_ends_an_embedded_service_at_once_and_an_echo_does_not(tmp_path: Path) -> None:
    """The drain waits for a request whose body never comes, so that it is still going on."""
    with running(ServiceProcess(tmp_path, environment={"HEXHAIL_DRAIN_S": "600"})) as service:
        service.wait_ready()
        service.family()
        with _unfinished_request(service):
            service.signal(signal.SIGINT)
            service.signal(signal.SIGINT)
            wait_until(lambda: "draining" in service.readiness()[1], within_s=WITHIN_S, what="it drains")
            time.sleep(2 * ECHO_S)
            assert service.exit_code is None
            service.signal(signal.SIGINT)
            assert service.wait_ended() == EXIT_HURRIED


def test_a_second_embedded_service_on_the_same_data_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with running(ServiceProcess(tmp_path)) as first:
        second = ServiceProcess(other, environment={"HEXHAIL_DATA_DIR": str(tmp_path / "data")})
        try:
            second.spawn()
            assert second.wait_ended() == 2
        finally:
            second.remove()
        assert "in use by another hexhail process" in second.output()
        assert "Traceback" not in second.output()
        first.wait_ready()


@pytest.mark.chaos
def test_a_database_that_is_down_at_start_is_waited_for(redis_url: str, tmp_path: Path) -> None:
    server = MariaServer()
    try:
        server.start()
        with contextlib.closing(mysql_connection(server.url)) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE late CHARACTER SET utf8mb4")
        server.stop()
        environment = {"HEXHAIL_REDIS_URL": redis_url, "HEXHAIL_DATABASE_URL": f"{server.url}late"}
        with running(ServiceProcess(tmp_path, environment={**environment, "HEXHAIL_STORE_TIMEOUT_S": "1"})) as service:
            wait_until(lambda: "degraded" in service.readiness()[1], within_s=WITHIN_S, what="readiness says degraded")
            server.start()
            service.wait_ready()
            service.signal(signal.SIGTERM)
            assert service.wait_ended() == 0
            assert "Traceback" not in service.output()
    finally:
        server.remove()


def test_a_schema_of_another_version_is_not_served(redis_url: str, mysql_url: str, tmp_path: Path) -> None:
    with fresh_database(mysql_url) as database:
        with contextlib.closing(mysql_connection(database)) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
            cursor.execute("INSERT INTO alembic_version VALUES ('from_the_future')")
        service = ServiceProcess(
            tmp_path, environment={"HEXHAIL_REDIS_URL": redis_url, "HEXHAIL_DATABASE_URL": database}
        )
        try:
            service.spawn()
            assert service.wait_ended() == 2
        finally:
            service.remove()
        assert "hexhail migrate" in service.output()
        assert "Traceback" not in service.output()
        command = [sys.executable, "-m", "api.cli", "migrate"]
        done = subprocess.run(
            command, env=service.environment, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
        assert done.returncode == 2
        assert "from_the_future" in done.stderr
        assert "Traceback" not in done.stderr
