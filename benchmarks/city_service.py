"""A whole city's servers on this machine: Redis, MariaDB, and `hexhail serve` with its processes; what each uses."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from benchmarks.audit_rows import reading_url
from benchmarks.city_load import driver_id_of
from benchmarks.city_options import CityOptions, market_settings, service_settings
from benchmarks.city_places import Places
from benchmarks.cpu import children_of, cpu_s, role_of
from benchmarks.servers import MariaServer, RedisServer, free_port, fresh_database
from benchmarks.service_child import ServiceChild
from matcher import tables
from matcher.model import DriverStatus

#: The database's memory, as one gives it on a machine that it shares: the 128 MB that it has by default.
MARIADB_OPTIONS = ("--innodb-buffer-pool-size=128M",)
SEATS = 4
ROWS_AT_ONCE = 2000
ROLES = ("api", "matcher", "solver", "supervisor", "redis", "mariadb", "generator")


def new_secret() -> str:
    return secrets.token_hex(32)


@dataclass(slots=True)
class Servers:
    """What runs: `pids` by role, and where the audit reads."""

    port: int
    redis_url: str
    database_url: str
    service: ServiceChild
    pids: dict[str, list[int]] = field(default_factory=dict)

    def look(self) -> None:
        """Finds the service's processes by what they were started for."""
        found: dict[str, list[int]] = {}
        for pid in (self.service.pid, *children_of(self.service.pid)):
            found.setdefault(_role(role_of(pid), is_root=pid == self.service.pid), []).append(pid)
        self.pids |= found

    def cpu_s(self) -> Counter[str]:
        """CPU-seconds used so far, by role."""
        used: Counter[str] = Counter()
        for role, pids in self.pids.items():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    used[role] += cpu_s(pid)  # type: ignore[assignment]
        return used


def _role(words: str, *, is_root: bool) -> str:
    if is_root:
        return "supervisor"
    for role in ("matcher", "api"):
        if f"--role {role}" in words:
            return role
    return "solver"


@contextlib.asynccontextmanager
async def city_servers(
    options: CityOptions, places: Places, workers: int, folder: Path, extra: Mapping[str, str]
) -> AsyncIterator[Servers]:
    """All of it up, the drivers' rows made; ended and removed afterwards. Raises ServerMissing, NotStarted."""
    redis, maria = RedisServer(), MariaServer(*MARIADB_OPTIONS)
    try:
        redis.start()
        maria.start()
        with fresh_database(maria.url) as database_url:
            market = market_settings(options, places.center.lat, places.center.lon, places.radius_m)
            settings = service_settings(options, market, redis.url, database_url) | dict(extra)
            port = free_port()  # only now: what is free when servers start may not be when they have
            service = ServiceChild(folder, port, options.secret, settings, ("--workers", str(workers)))
            try:
                await service.start()
                await asyncio.to_thread(register, database_url, options.drivers)
                servers = Servers(port, redis.url, database_url, service)
                servers.pids = {"redis": [redis.pid], "mariadb": [maria.pid]}
                servers.look()
                yield servers
            finally:
                await service.stop()
    finally:
        redis.remove()
        maria.remove()


def register(database_url: str, drivers: int) -> None:
    """The drivers' rows, as `PUT /v1/drivers/{id}` would leave them."""
    engine = sa.create_engine(reading_url(database_url), poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            now_ms = connection.scalar(sa.select(tables.now_ms()))
            rows = [_row(number, int(now_ms or 0)) for number in range(drivers)]
            for start in range(0, len(rows), ROWS_AT_ONCE):
                connection.execute(tables.drivers.insert(), rows[start : start + ROWS_AT_ONCE])
    finally:
        engine.dispose()


def _row(number: int, now_ms: int) -> dict[str, object]:
    return {
        "driver_id": driver_id_of(number).encode(),  # exact names are VARBINARY: their driver wants bytes
        "status": DriverStatus.OFFLINE.value,
        "vehicle_class": b"standard",
        "seats": SEATS,
        "epoch": 0,
        "updated_at_ms": now_ms,
        "tags": "",
        "version": 1,
    }
