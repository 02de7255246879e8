"""All that a measurement of positions needs, running: Redis, MariaDB, one API process, the bare peer, load, replica."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.cpu import children_of, cpu_s
from benchmarks.load_child import LoadChild
from benchmarks.peer_child import PeerServer
from benchmarks.servers import MariaServer, RedisServer, free_port, fresh_database
from benchmarks.service_child import ServiceChild
from config.settings import Settings

#: The market of a service without settings, and what a replica of it must know.
MARKET = "new-york"
RESOLUTION: int = Settings.model_fields["cell_resolution"].default
STALE_AFTER_MS = round(Settings.model_fields["stale_after_s"].default * 1000)
FLUSH_MS: int = Settings.model_fields["flush_ms"].default


@dataclass(frozen=True, slots=True)
class Used:
    """CPU-seconds used so far, by whom: `api` is the service with all that it started."""

    api_s: float
    redis_s: float
    maria_s: float
    replica_s: float
    peer_s: float

    def since(self, before: Used) -> Used:
        return Used(
            self.api_s - before.api_s,
            self.redis_s - before.redis_s,
            self.maria_s - before.maria_s,
            self.replica_s - before.replica_s,
            self.peer_s - before.peer_s,
        )


@dataclass(frozen=True, slots=True)
class Counted:
    """Positions `taken` by sessions as good, and `published`: where two of one driver met, the newer alone was."""

    taken: int
    published: int

    def since(self, before: Counted) -> Counted:
        return Counted(self.taken - before.taken, self.published - before.published)


@dataclass(slots=True)
class Stage:
    """What runs; the API process may be replaced by another."""

    folder: Path
    redis: RedisServer
    maria: MariaServer
    database_url: str
    peer: PeerServer
    load: LoadChild
    replica: LoadChild
    secret: str = field(default_factory=lambda: secrets.token_hex(32))
    settle_s: float = 0.8  # from the last position sent until its flush, and the replica's read, must be over
    port: int = 0
    service: ServiceChild | None = None

    async def serve(self, workers: int = 1) -> None:
        """Starts the service, in place of the one that runs. Raises NotStarted."""
        await self.end_service()
        self.port = free_port()
        urls = {"HEXHAIL_REDIS_URL": self.redis.url, "HEXHAIL_DATABASE_URL": self.database_url}
        options = ("--role", "api", "--workers", str(workers))
        self.service = ServiceChild(self.folder, self.port, self.secret, urls, options)
        await self.service.start()

    async def follow(self) -> None:
        """The replica begins to follow; best once there is something to follow, so that it need not start over."""
        await self.replica.call(
            "follow", redis_url=self.redis.url, market=MARKET, resolution=RESOLUTION, stale_after_ms=STALE_AFTER_MS
        )

    async def end_service(self) -> None:
        if self.service is not None:
            await self.service.stop()
            self.service = None

    def _service_pid(self) -> int:
        if self.service is None:
            raise RuntimeError("the service does not run")
        return self.service.pid

    async def used(self) -> Used:
        replica_s = await self.replica.call("cpu_s")
        return Used(
            api_s=cpu_s(self._service_pid(), children=True),
            redis_s=cpu_s(self.redis.pid),
            maria_s=cpu_s(self.maria.pid),
            replica_s=replica_s,
            peer_s=cpu_s(self.peer.pid),
        )

    async def counted(self) -> Counted:
        """What the API process has counted so far. Costs that process the answer to a scrape."""
        text = await asyncio.to_thread(_read, f"http://127.0.0.1:{self.port}/metrics")
        return Counted(
            taken=_counter(text, 'hexhail_fixes_total{verdict="taken"}'),
            published=_counter(text, "hexhail_positions_published_total"),
        )

    def sockets_by_process(self) -> list[int]:
        """How many connections each of the service's processes holds, those that serve none left out."""
        pids = children_of(self._service_pid()) or [self._service_pid()]
        return sorted(count for count in map(self._connections, pids) if count)

    def _connections(self, pid: int) -> int:
        found = psutil.Process(pid).net_connections(kind="tcp")
        return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == self.port for each in found)


def _counter(text: str, name: str) -> int:
    """0 where it was not counted yet."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return round(float(found[1])) if found else 0


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10.0) as answer:
        return bytes(answer.read()).decode()


@contextlib.asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """All of it up; ended and removed afterwards. Raises ServerMissing, NotStarted."""
    redis, maria, peer = RedisServer(), MariaServer(), PeerServer()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(peer.stop)
        peer.spawn()
        load = await stack.enter_async_context(LoadChild("benchmarks.ingest_load:DriverLoad"))
        replica = await stack.enter_async_context(LoadChild("benchmarks.ingest_replica:Replica"))
        for server in (redis, maria):
            stack.callback(server.remove)
            server.start()
        database_url = stack.enter_context(fresh_database(maria.url))
        peer.wait_ready()
        made = Stage(folder, redis, maria, database_url, peer, load, replica)
        stack.push_async_callback(made.end_service)
        await made.serve()
        stack.push_async_callback(replica.stop)  # before Redis
        yield made
