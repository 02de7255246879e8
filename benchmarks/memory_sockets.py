"""What an idle driver's socket takes in the process that serves it, and a bare one in the bare server.

The service runs as in a deployment: an API process of its own, with Redis and MariaDB. A few sockets come and go
first, so that what is made once does not count; then thousands are held, and once the process has come to rest, its
resident set (and what of it is its own alone) is compared with that before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import resource
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from api.auth import Role, make_token
from benchmarks.city_load import driver_id_of
from benchmarks.city_service import register
from benchmarks.cpu import children_of, role_of, rss_bytes, uss_bytes
from benchmarks.failures import NotMeasured
from benchmarks.memory_load import LAT, LON, Load
from benchmarks.peer_child import PeerServer
from benchmarks.servers import MariaServer, RedisServer, free_port, fresh_database
from benchmarks.service_child import ServiceChild

SOCKETS = 19_000
#: Files that the server's process needs beside its sockets.
OTHER_FILES = 500
LOADERS = 2
#: As many as one process opens as fast.
ALONE_MAX = 1000
WARM_UP = 200
OPEN_S_MAX = 110.0
TTL_S = 7200.0
#: The process is at rest when so long nothing changes by more than this.
REST_S, REST_SHARE, RESTS_MAX = 1.0, 0.002, 10
STREAM = "/v1/drivers/{driver}/stream?market=bench"


class NotHeld(NotMeasured):
    """Sockets could not be opened or did not stay: nothing was measured."""


def sockets_possible(wanted: int) -> int:
    """As many as this system lets one process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - OTHER_FILES)


async def service_socket_bytes(sockets: int, folder: Path, rest_s: float = REST_S) -> dict[str, float]:
    """Raises ServerMissing, NotStarted, NotHeld."""
    redis, maria, secret, port = RedisServer(), MariaServer(), secrets.token_hex(32), free_port()
    with ExitStack() as stack:
        for server in (redis, maria):
            stack.callback(server.remove)
            server.start()
        database_url = stack.enter_context(fresh_database(maria.url))
        service = ServiceChild(folder, port, secret, _settings(redis.url, database_url), ("--role", "api"))
        try:
            await service.start()
            await asyncio.to_thread(register, database_url, sockets)
            return await _measured(_api_pid(service.pid), port, sockets, secret, STREAM, rest_s, has_welcome=True)
        finally:
            await service.stop()


async def bare_socket_bytes(sockets: int, rest_s: float = REST_S) -> dict[str, float]:
    """Raises NotStarted, NotHeld."""
    with PeerServer() as peer:
        return await _measured(
            peer.pid, peer.port, sockets, secrets.token_hex(32), "/socket", rest_s, has_welcome=False
        )


def _settings(redis_url: str, database_url: str) -> dict[str, str]:
    market = {"id": "bench", "center_lat": LAT, "center_lon": LON, "radius_m": 30_000.0}
    return {
        "HEXHAIL_REDIS_URL": redis_url,
        "HEXHAIL_DATABASE_URL": database_url,
        "HEXHAIL_MARKETS": json.dumps([market]),
        "HEXHAIL_SOCKETS_MAX": "1000000",
    }


def _api_pid(pid: int) -> int:
    """The process that holds the sockets: the service's own, or a worker that it started."""
    workers = [each for each in children_of(pid) if "--role api" in role_of(each)]
    return workers[0] if workers else pid


async def _measured(
    pid: int, port: int, sockets: int, secret: str, path: str, rest_s: float, *, has_welcome: bool
) -> dict[str, float]:
    def load(first: int, count: int, number: int) -> Load:
        drivers = [driver_id_of(each) for each in range(first, first + count)]
        tokens = [make_token(secret.encode(), each, Role.DRIVER, ttl_s=TTL_S) for each in drivers]
        return Load(port, path, drivers, tokens, f"127.0.0.{number + 2}", has_welcome)

    await _hold([load(0, min(WARM_UP, sockets), 0)], pid, rest_s)
    before = await _at_rest(pid, rest_s)
    loaders = min(LOADERS, math.ceil(sockets / ALONE_MAX))
    share = sockets // loaders
    loads = [load(number * share, share, number) for number in range(loaders)]
    after = await _hold(loads, pid, rest_s)
    held = share * loaders
    return {
        "bytes": (after["rss"] - before["rss"]) / held,
        "own_bytes": (after["uss"] - before["uss"]) / held,
        "sockets": held,
        "before_bytes": before["rss"],
    }


async def _hold(loads: list[Load], pid: int, rest_s: float) -> dict[str, int]:
    """The server's memory while these are held. Raises NotHeld."""
    with ExitStack() as stack:
        children = [stack.enter_context(_loader(load)) for load in loads]
        opened = [await _line(child) for child in children]
        if opened != [len(load.drivers) for load in loads]:
            raise NotHeld(f"of {[len(load.drivers) for load in loads]} sockets {opened} were opened")
        memory = await _at_rest(pid, rest_s)
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        lost = sum([await _line(child) for child in children])
        if lost:
            raise NotHeld(f"{lost} sockets were lost while they were held")
        return memory


@contextlib.contextmanager
def _loader(load: Load) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.memory_load"],
        cwd=Path(__file__).resolve().parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(asdict(load)) + "\n")
        child.stdin.flush()
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


async def _line(child: subprocess.Popen[str]) -> int:
    """The number that it says next, 0 where it has ended. Raises NotHeld where it says nothing in time."""
    assert child.stdout is not None
    try:
        async with asyncio.timeout(OPEN_S_MAX):
            return int(await asyncio.to_thread(child.stdout.readline) or 0)
    except TimeoutError:
        raise NotHeld(f"no word within {OPEN_S_MAX:g} s from who opens the sockets") from None


async def _at_rest(pid: int, rest_s: float) -> dict[str, int]:
    """Its memory once that does not change any more."""
    last = rss_bytes(pid)
    for _ in range(RESTS_MAX):
        await asyncio.sleep(rest_s)
        now = rss_bytes(pid)
        if abs(now - last) <= REST_SHARE * last:
            break
        last = now
    return {"rss": rss_bytes(pid), "uss": uss_bytes(pid)}


def in_a_folder(sockets: int, rest_s: float = REST_S) -> dict[str, float]:
    """The service's side, from an event loop and a temporary folder of its own."""
    with tempfile.TemporaryDirectory(prefix="hexhail-memory-") as folder:
        return asyncio.run(service_socket_bytes(sockets, Path(folder), rest_s))


def bare(sockets: int, rest_s: float = REST_S) -> dict[str, float]:
    return asyncio.run(bare_socket_bytes(sockets, rest_s))
