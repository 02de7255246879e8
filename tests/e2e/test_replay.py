"""`hexhail replay` plays a recorded city through a running service and audits what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.cities import SyntheticCity, moved
from benchmarks.service_child import ServiceChild, free_port
from tests.servers import fresh_database, redis_client

ROOT = Path(__file__).resolve().parents[2]
SECRET = "replay-secret-of-forty-characters-in-all"
ZERO_S = 1_384_790_400  # a full minute
DRIVERS = 40
SETTINGS = {
    "HEXHAIL_MAX_SPEED_MPS": "5000",
    "HEXHAIL_LEASE_S": "2",
    "HEXHAIL_LOG_FORMAT": "json",
    "HEXHAIL_ACK_INTERVAL_S": "0.5",  # a run ends once its last positions have been acknowledged
}
#: 40 times life: the city's 240 recorded seconds of rides take 6, deadlines of 600 s are 15.
PLAY = ("--speed", "40", "--driver-speed-mps", "12", "--json", "--drain-s", "60", "--boarding-s", "5")
CITY_S = 240
#: Drivers are asked, and given a next ride before the present one has ended; every limit is near.
ASKING = {
    "id": "new-york",
    "center_lat": 40.75,
    "center_lon": -73.98,
    "radius_m": 30_000,
    "window_s": 0.5,
    "speed_mps": 1200.0,
    "detour_factor": 1.0,
    "assign": "offer",
    "offer_ttl_s": 1.2,
    "lost_grace_s": 0.4,
    "missed_offers_max": 1,
    "no_show_after_s": 0.5,
    "retry_s": 4.0,
    "chain_within_s": 2.0,
}
#: Recorded seconds: an answer takes a fifth of a second on the wall, a lost network a whole one.
ANSWERS = (
    "--accept-s", "8", "--decline", "0.15", "--ignore", "0.1", "--lose", "0.1", "--lost-s", "40",
    "--cancel-drivers", "0.1", "--cancel-riders", "0.1", "--cancel-after-s", "120", "--no-show", "0.1",
    "--break", "0.2", "--online-s", "120", "--rest-s", "40", "--follow", "1", "--deadline-s", "240",
    "--driver-speed-mps", "30", "--parked-interval", "1", "--position-interval", "0.5",
)  # fmt: skip


def iso(at_s: float) -> str:
    minutes, seconds = divmod(int(at_s) - ZERO_S, 60)
    return f"2013-11-18 {16 + minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


def write_city(folder: Path, rides: int, drivers: int = DRIVERS) -> tuple[Path, Path]:
    """Rides as gzipped CSV with ISO times, drivers as plain CSV with unix times, some rows of each spoiled."""
    city = SyntheticCity.draw(11, trip_mean_m=700.0)
    rows = ["requested_at,pickup_lat,pickup_lon,dropoff_lat,dropoff_lon,seats"]
    for wish, _ in zip(city.wishes(rides * 60 / CITY_S), range(rides), strict=False):
        ends = (wish.pickup.lat, wish.pickup.lon, wish.dropoff.lat, wish.dropoff.lon)
        rows.append(",".join([iso(ZERO_S + wish.at_s), *(f"{end:.6f}" for end in ends), str(wish.seats)]))
    rows.insert(3, "2013-11-18 16:00:10,91,-73.98,40.75,-73.98,1")
    rows.insert(5, "2013-11-18 16:00:10,0,0,40.75,-73.98,1")
    rows.append("noon,40.75,-73.98,40.75,-73.98,1")
    rides_file = folder / "rides.csv.gz"
    rides_file.write_bytes(gzip.compress("\n".join(rows).encode()))
    lines = ["seen_at,lat,lon,driver_id,seats"]
    for number, start in enumerate(city.drivers(drivers)):
        seen_at = ZERO_S - 60 if number < drivers // 2 else ZERO_S + 4 * number
        lines.append(f"{seen_at},{start.at.lat:.6f},{start.at.lon:.6f},{start.driver_id},{start.seats}")
    lines += [lines[-1], f"{ZERO_S},40.75,-73.98,cab-x,none"]
    drivers_file = folder / "drivers.csv"
    drivers_file.write_text("\n".join(lines))
    return rides_file, drivers_file


def write_tracks(folder: Path, drivers: int = 30, seconds: int = 1200) -> Path:
    """Drivers who stand about, a point every 20 recorded seconds; one in ten is always occupied."""
    rng = random.Random(3)
    lines = ["at,driver_id,lat,lon,occupied"]
    for start in SyntheticCity.draw(11).drivers(drivers):
        occupied = int(start.driver_id[-1] == "7")
        for at_s in range(-40, seconds, 20):
            here = moved(start.at, rng.gauss(0, 30), rng.gauss(0, 30))
            lines.append(f"{ZERO_S + at_s},{start.driver_id},{here.lat:.6f},{here.lon:.6f},{occupied}")
    path = folder / "positions.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


class Replay:
    """`hexhail replay` as a process; its output is read when it ends."""

    def __init__(self, environment: dict[str, str], *options: str) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HEXHAIL_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.replay", *options],
            cwd=ROOT,
            env=plain | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def ended(self, within_s: float = 150.0) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        try:
            out, err = await asyncio.to_thread(self.process.communicate, timeout=within_s)
        finally:
            self.process.kill()
        return self.process.returncode, out, err


async def figures_of(replay: Replay) -> dict[str, Any]:
    code, out, err = await replay.ended()
    assert code == 0, out + err
    assert "Traceback" not in out + err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found["audit"]["holds"], found["audit"]
    assert found["double_assignments"] == 0
    assert found["trips_in_database"] == found["trips_in_ledger"]
    return found


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceChild]:
    service = ServiceChild(tmp_path_factory.mktemp("embedded"), free_port(), SECRET, SETTINGS)
    with started(service):
        yield service


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceChild]:
    """An embedded service whose drivers are asked."""
    settings = SETTINGS | {"HEXHAIL_MARKETS": json.dumps([ASKING])}
    service = ServiceChild(tmp_path_factory.mktemp("asking"), free_port(), SECRET, settings)
    with started(service):
        yield service


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_url: str, mysql_url: str) -> Iterator[ServiceChild]:
    """One matcher and two API processes on real Redis and real MySQL or MariaDB."""
    with fresh_database(mysql_url) as database_url:
        settings = SETTINGS | {
            "HEXHAIL_REDIS_URL": redis_url,
            "HEXHAIL_DATABASE_URL": database_url,
            "HEXHAIL_WORKERS": "2",
        }
        service = ServiceChild(tmp_path_factory.mktemp("shared"), free_port(), SECRET, settings, ["--migrate"])
        service.database_url = database_url
        with started(service):
            yield service


@contextlib.contextmanager
def started(service: ServiceChild) -> Iterator[None]:
    try:
        asyncio.run(service.start())
        yield
        asyncio.run(service.stop())
    finally:
        service.kill()


def asked(service: ServiceChild) -> dict[str, str]:
    """The environment of a replay: a shared service's database is named there, an embedded one's is a file."""
    shared_url = {"HEXHAIL_DATABASE_URL": service.database_url} if service.database_url.startswith("mysql") else {}
    return {"HEXHAIL_TOKEN_SECRET": SECRET} | shared_url


def check_rejects(figures: dict[str, Any]) -> None:
    rejected = figures["rejected_rows"]
    assert rejected["total"] == 5
    assert set(rejected["examples"]) >= {
        "rides.csv.gz:4: pickup_lat is not within [-90, 90]",
        "rides.csv.gz:6: pickup_lat, pickup_lon are 0, 0: a device without a fix",
        f"drivers.csv:{DRIVERS + 2}: driver_id stands in an earlier row",
        f"drivers.csv:{DRIVERS + 3}: seats is not a number",
    }


@pytest.mark.timeout(200)
async def test_a_recorded_city_plays_through_an_embedded_service(tmp_path: Path, embedded: ServiceChild) -> None:
    rides, drivers = write_city(tmp_path, 60)
    replay = Replay(
        asked(embedded), "--rides", str(rides), "--drivers", str(drivers), "--url", embedded.url,
        "--data-dir", str(embedded.data_dir), "--spread", *PLAY,
    )  # fmt: skip
    figures = await figures_of(replay)
    check_rejects(figures)
    assert figures["rides_acknowledged"] == 60
    assert figures["rides_matched"] >= 0.95 * 60
    assert figures["rides_completed"] >= 0.9 * 60
    assert figures["audit"]["source"] == "clients and database"


@pytest.mark.timeout(200)
async def test_drivers_who_are_asked_may_refuse_vanish_and_come_back(tmp_path: Path, asking: ServiceChild) -> None:
    """P1, P2, P4: whatever drivers and riders do, all rides end and the books agree."""
    rides, drivers = write_city(tmp_path, 100, drivers=16)
    replay = Replay(
        asked(asking), "--rides", str(rides), "--drivers", str(drivers), "--url", asking.url,
        "--data-dir", str(asking.data_dir), "--limit", "60", *PLAY, *ANSWERS,
    )  # fmt: skip
    figures = await figures_of(replay)
    assert figures["rides_acknowledged"] == 60
    assert figures["rides_by_state"].keys() <= {"completed", "cancelled", "expired"}
    assert figures["rides_completed"] >= 0.4 * 60
    happened = ("accepted", "declined", "ran_out", "withdrawn", "lost_connections", "paused_drivers", "breaks")
    assert not [name for name in happened if not figures[name]], figures
    assert figures["offers"] == figures["trips_in_database"]
    assert figures["reconnects"] >= figures["lost_connections"] > 0
    assert 0 < figures["offer_to_accept_p50_s"] <= figures["offer_to_accept_p99_s"]


@pytest.mark.timeout(200)
async def test_recorded_tracks_stand_in_for_simulated_movement(tmp_path: Path, embedded: ServiceChild) -> None:
    """Drivers that are occupied all along are never matched."""
    rides, _ = write_city(tmp_path, 30)
    replay = Replay(
        asked(embedded), "--rides", str(rides), "--positions", str(write_tracks(tmp_path)), "--url", embedded.url,
        "--data-dir", str(embedded.data_dir), "--limit", "20", *PLAY,
    )  # fmt: skip
    figures = await figures_of(replay)
    assert figures["rides_requested"] == 20
    assert figures["rides_matched"] > 0
    assert figures["drivers"] == 30


@pytest.mark.timeout(200)
async def test_without_a_database_the_audit_says_what_it_rests_on(tmp_path: Path, embedded: ServiceChild) -> None:
    rides, drivers = write_city(tmp_path, 10)
    replay = Replay(
        asked(embedded), "--rides", str(rides), "--drivers", str(drivers), "--url", embedded.url,
        "--speed", "100", "--driver-speed-mps", "12", "--json",
    )  # fmt: skip
    code, out, err = await replay.ended()
    assert code == 0, out + err
    figures = json.loads(out.splitlines()[-1])
    assert figures["audit"]["source"] == "clients and API only"
    assert figures["trips_in_database"] is None
    assert "clients and the API only" in err


@pytest.mark.timeout(200)
async def test_a_recorded_city_plays_through_two_api_processes_and_a_matcher(
    tmp_path: Path, shared: ServiceChild
) -> None:
    rides, drivers = write_city(tmp_path, 40)
    replay = Replay(
        asked(shared), "--rides", str(rides), "--drivers", str(drivers),
        "--url", shared.url, *PLAY,
    )  # fmt: skip
    figures = await figures_of(replay)
    check_rejects(figures)
    assert figures["rides_acknowledged"] == 40
    assert figures["rides_matched"] >= 0.95 * 40
    assert figures["rides_completed"] >= 0.9 * 40


def role_of(process: psutil.Process) -> str:
    """Empty for what is no worker, or has ended."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    return words[words.index("--role") + 1] if "worker" in words else ""


async def busy_child(pid: int, role: str) -> psutil.Process:
    """The process of that role with most connections, once drivers' sockets are open to API processes."""
    async with asyncio.timeout(60.0):
        while True:
            children = psutil.Process(pid).children(recursive=True)
            if any(role_of(child) == "api" and sockets_of(child) >= DRIVERS // 4 for child in children):
                return max((child for child in children if role_of(child) == role), key=sockets_of)
            await asyncio.sleep(0.1)


def sockets_of(process: psutil.Process) -> int:
    try:
        return sum(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))
    except psutil.Error:  # it has ended just now
        return 0


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_the_books_agree_though_processes_are_killed_and_redis_is_flushed(
    tmp_path: Path, shared: ServiceChild, redis_url: str
) -> None:
    """P1, P2, P9: the clients come back by themselves, and nothing acknowledged is lost."""
    rides, drivers = write_city(tmp_path, 60)
    replay = Replay(
        asked(shared), "--rides", str(rides), "--drivers", str(drivers),
        "--url", shared.url, *PLAY,
    )  # fmt: skip
    for role in ("matcher", "api"):
        victim = await busy_child(shared.pid, role)
        await asyncio.sleep(2.0)
        victim.send_signal(signal.SIGKILL)
    await asyncio.sleep(2.0)
    with redis_client(redis_url) as client:
        client.flushdb()
    figures = await figures_of(replay)
    assert figures["rides_acknowledged"] == 60
    assert figures["rides_matched"] >= 0.9 * 60
    assert figures["reconnects"] > 0


async def test_nobody_to_play_to_is_one_line(tmp_path: Path) -> None:
    rides, drivers = write_city(tmp_path, 5)
    environment = {"HEXHAIL_TOKEN_SECRET": SECRET}
    missing = Replay(environment, "--rides", str(rides), "--drivers", str(tmp_path / "nowhere"), "--url", "http://x")
    code, out, err = await missing.ended()
    assert (code, out) == (2, "")
    assert err.startswith("hexhail: cannot read ")
    assert len(err.splitlines()) == 1
    secretless = Replay({}, "--rides", str(rides), "--drivers", str(drivers), "--data-dir", str(tmp_path / "none"))
    code, _, err = await secretless.ended()
    assert code == 2
    assert "secret that signs tokens is needed" in err


async def test_shares_of_the_same_offers_that_exceed_them_are_refused_in_one_line(tmp_path: Path) -> None:
    rides, drivers = write_city(tmp_path, 5)
    replay = Replay({}, "--rides", str(rides), "--drivers", str(drivers), "--decline", "0.6", "--ignore", "0.5")
    code, out, err = await replay.ended()
    assert (code, out) == (2, "")
    assert "--decline and --ignore" in err
    assert len(err.splitlines()) == 1
