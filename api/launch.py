"""What `hexhail serve` and `hexhail migrate` do: which processes run, the schema they need, what is said at start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from api.markets import build_market
from api.supervisor import Child, StopSignals, Supervisor, is_in_use, reserve
from api.telemetry import configure_logging
from config.settings import Role, Settings, without_password
from matcher.errors import StoreLocked, StoreUnavailable
from matcher.store import Store

SCHEMA_RETRY_S = 1.0
#: Where the packages are, for children of a source tree that was never installed.
ROOT = str(Path(__file__).resolve().parent.parent)
OUTDATED = "the database's schema is not this version's: run `hexhail migrate`, or serve with --migrate"

#: What runs beside the service and is cancelled with it.
Companion = Callable[[], Coroutine[Any, Any, None]]

log = logging.getLogger("hexhail.launch")


class Unusable(Exception):
    """The service cannot run as it is set up; the message says what to do."""


class Schema(Enum):
    CURRENT = "current"
    EMPTY = "empty"
    OUTDATED = "outdated"


def serve(settings: Settings, *, migrate: bool, version: str) -> int:
    """Runs until told to stop; returns the exit code. Raises Unusable."""
    _check_markets(settings)
    configure_logging(settings.log_level, settings.log_format)
    with explained(settings):
        beside = _schema_at_start(settings, migrate=migrate)
        if settings.is_shared and (settings.role == "all" or settings.workers > 1):
            return _serve_many(settings, version, beside)
        from api.worker import run_alone  # the whole service: a supervisor has no use for it

        announce = partial(_announce, settings, version)
        return run_alone(settings, settings.role, announce, beside)


def _serve_many(settings: Settings, version: str, beside: Companion | None) -> int:
    held, port = reserve(settings.host, settings.port)
    settings = settings.model_copy(update={"port": port})
    try:
        return asyncio.run(_supervise(settings, version, beside))
    finally:
        for each in held:
            each.close()


async def _supervise(settings: Settings, version: str, beside: Companion | None) -> int:
    supervisor = Supervisor(
        children_of(settings),
        settings.to_json(),
        drain_s=settings.drain_s,
        on_started=partial(_announce, settings, version, settings.port),
    )
    loop, signals = asyncio.get_running_loop(), StopSignals()

    def told_to_stop() -> None:
        if signals.is_new(loop.time()):
            supervisor.stop()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, told_to_stop)
    companion = asyncio.create_task(beside()) if beside is not None else None
    try:
        return await supervisor.run()
    finally:
        if companion is not None:
            companion.cancel()
            await asyncio.gather(companion, return_exceptions=True)


def children_of(settings: Settings) -> list[Child]:
    """The processes of this role, each with its command."""
    workers: list[tuple[str, Role, int]] = []
    if settings.role in ("all", "matcher"):
        workers.append(("matcher", "matcher", 0))
    if settings.role in ("all", "api"):
        workers += [(f"api worker {index}", "api", index) for index in range(settings.workers)]
    # Not `-m api.cli`: that would look into the current folder first, where anybody's `api` may lie.
    start = f"import sys; sys.path.append({ROOT!r}); from api.cli import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", start, "worker", "--role"]
    return [Child(name, [*command, role, "--index", str(index)]) for name, role, index in workers]


# ---- faults of the setup ----


def _check_markets(settings: Settings) -> None:
    try:
        for market in settings.markets:
            build_market(market)
    except ValueError as error:
        raise Unusable(f"markets: {error}") from error


@contextlib.contextmanager
def explained(settings: Settings | None = None) -> Iterator[None]:
    """Turns what keeps a service from starting into Unusable, in words that help."""
    try:
        yield
    except StoreLocked as error:
        raise Unusable(error.reason) from error
    except socket.gaierror as error:
        raise Unusable(f"host {settings.host if settings else ''} is no address: {error.strerror}") from error
    except OSError as error:
        raise Unusable(_os_fault(error, settings)) from error


def _os_fault(error: OSError, settings: Settings | None) -> str:
    where = f"port {settings.port} on {settings.host}" if settings else "the port"
    if is_in_use(error):
        return f"{where} is in use by another program: choose another with --port, or 0 for any free one"
    if error.filename:
        return f"{error.filename} cannot be used: {error.strerror}"
    if isinstance(error, PermissionError):
        return f"{where} may not be opened: {error.strerror}; ports below 1024 need rights"
    return f"{where}: {error.strerror or error}"


# ---- the schema ----


def _schema_at_start(settings: Settings, *, migrate: bool) -> Companion | None:
    """Makes the schema usable, or says why not. Where the database is down, what to run beside the service."""
    if settings.database_url is None:
        return None  # the embedded store brings its own file up to date
    try:
        state = asyncio.run(_settle_schema(settings, migrate=migrate))
    except StoreUnavailable as error:
        log.warning("the database is not available, the service starts degraded: %s", error.reason)
        return partial(_settle_later, settings, migrate=migrate)
    if state is Schema.OUTDATED:
        raise Unusable(OUTDATED)
    return None


async def _settle_later(settings: Settings, *, migrate: bool) -> None:
    """Waits for the database to come up. Readiness says degraded meanwhile, and goes on saying so if it is outdated."""
    while True:
        await asyncio.sleep(SCHEMA_RETRY_S)
        with contextlib.suppress(StoreUnavailable):
            if await _settle_schema(settings, migrate=migrate) is Schema.OUTDATED:
                log.error(OUTDATED)
            return


async def _settle_schema(settings: Settings, *, migrate: bool) -> Schema:
    """The schema's state, after migrating where that was asked for or nothing stands there yet."""
    async with _store(settings) as store:
        state = await _state(store)
        if state is Schema.EMPTY or (migrate and state is Schema.OUTDATED):
            await store.migrate()
            log.info("the database's schema was brought up to date")
            return Schema.CURRENT
        return state


async def _state(store: Store) -> Schema:
    if await store.schema_is_current():
        return Schema.CURRENT
    return Schema.EMPTY if await store.schema_is_empty() else Schema.OUTDATED


@contextlib.asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    store = await Store.open(settings.store_url, pool_size=2, call_timeout_s=settings.store_timeout_s)
    try:
        yield store
    finally:
        await store.close()


async def migrate(settings: Settings) -> str:
    """Brings the schema up to date; a sentence about it. Raises Unusable."""
    where = _where_rides_are(settings)
    with explained(settings):
        if settings.database_url is None:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
        try:
            async with _store(settings) as store:
                if await store.schema_is_current():
                    return f"{where}: the schema is current"
                await store.migrate()
        except StoreUnavailable as error:
            raise Unusable(f"{where}: {error.reason}") from error
    return f"{where}: the schema was brought up to date"


# ---- what is said at start ----


def _announce(settings: Settings, version: str, port: int) -> None:
    lines = [f"hexhail {version}", *_about(settings, port)]
    with contextlib.suppress(OSError):  # nobody reads it: no reason not to serve
        print("\n  ".join(lines), flush=True)


def _about(settings: Settings, port: int) -> list[str]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{port}" if settings.role != "matcher" else "none: a matcher takes no requests"
    names = ", ".join(market.id for market in settings.markets[:8]) + (" ..." if len(settings.markets) > 8 else "")
    folder = "" if settings.database_url else f" --data-dir {settings.data_dir}"
    return [
        f"address    {address}",
        f"runs       {_processes(settings)} (pid {os.getpid()})",
        f"rides      {_where_rides_are(settings)}",
        f"positions  {without_password(settings.redis_url) if settings.redis_url else 'in this process'}",
        f"markets    {names}",
        f"a token    hexhail token --role client --sub me{folder}",
    ]


def _processes(settings: Settings) -> str:
    if not settings.is_shared:
        return "everything in one process"
    matcher = ["1 matcher"] if settings.role in ("all", "matcher") else []
    workers = [f"{settings.workers} API worker{'s' * (settings.workers > 1)}"] if settings.role != "matcher" else []
    return ", ".join(matcher + workers)


def _where_rides_are(settings: Settings) -> str:
    if settings.database_url is not None:
        return without_password(settings.database_url)
    return str(settings.data_dir / "hexhail.db")
