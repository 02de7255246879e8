"""Ride requests: CPU of the API process a request answered 201 after a flushed commit, against a bare handler.

Both sides get the same bodies at the same fixed rate, below what either can do, over kept-alive connections from a
process of its own; a latency counts from the moment at which its request was due. Ours is `hexhail serve --role api`
with a Redis and a MariaDB of its own that flushes its log at every commit. The peer is an aiohttp handler that decodes
the same body, answers 201 with as much in the same format, and keeps nothing. Afterwards the database must
hold exactly the rides that were answered 201, and a share of the requests, sent again with their keys, must get the
first answer. vs_bare_aiohttp is the bare handler's CPU time a request by ours: both answered as many a second, so it
is also ours by the handler's requests a CPU-second.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from api.auth import Role, make_token
from benchmarks import requests_page
from benchmarks.arguments import positive_int
from benchmarks.cpu import cpu_s
from benchmarks.failures import NotMeasured
from benchmarks.goals import Goal, judged, not_measured
from benchmarks.load import Latency, merged
from benchmarks.load_child import LoadChild
from benchmarks.machine import versions
from benchmarks.peer_child import PeerServer
from benchmarks.rounds import interleaved_async, ratio_of, rounded, spread_of
from benchmarks.running import run as run_loop
from benchmarks.servers import MariaServer, RedisServer, free_port, fresh_database, mysql_connection
from benchmarks.service_child import ServiceChild
from benchmarks.tell import Teller

#: Below saturation of both sides on one core of any machine of today.
RATE_PER_S = 800
SECONDS = 8.0
QUICK_RATE_PER_S, QUICK_SECONDS = 200, 0.5
WARM_SECONDS = 1.5
CONNECTIONS = 64
#: Of the requests of each of our rounds, so many are sent again with their keys.
REPEATED_SHARE = 0.05
TOKEN_S = 3600.0
GOALS = (Goal("vs_bare_aiohttp", 0.3),)
_COUNTERS = ("Com_commit", "Com_insert", "Innodb_data_fsyncs", "Queries")


class Untrue(NotMeasured):
    """What was answered is not what stands: nothing that was measured counts."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a second at a low rate: for a look, not for figures")
    parser.add_argument("--rate", type=positive_int, default=RATE_PER_S, metavar="N", help=f"requests/s ({RATE_PER_S})")


@dataclass(slots=True)
class Round:
    """One side's run."""

    rides: int
    cpu_us: float  # of the API process, a request
    database_cpu_us: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)
    latency: Latency = field(default_factory=Latency)
    lag: Latency = field(default_factory=Latency)
    answer_bytes: float = 0.0
    repeated: int = 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises ServerMissing, NotStarted, LoadFailed, Untrue."""
    return run_loop(_run(args))


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    tell = Teller(json=args.json)
    rate, seconds = (QUICK_RATE_PER_S, QUICK_SECONDS) if args.quick else (args.rate, SECONDS)
    tell("starting MariaDB, Redis, the service and the bare server")
    async with _stage(args.seed) as stage:
        sides = {
            "ours": partial(stage.ours, "json", rate, seconds),
            "msgpack": partial(stage.ours, "msgpack", rate, seconds),
            "bare": partial(stage.bare, "json", rate, seconds),
            "bare_msgpack": partial(stage.bare, "msgpack", rate, seconds),
        }
        tell(f"warming up, then {rate} requests/s for {seconds:g} s a round")
        for media in () if args.quick else ("json", "msgpack"):
            await stage.ours(media, rate, WARM_SECONDS)
            await stage.bare(media, rate, WARM_SECONDS)
        rounds = await interleaved_async(sides, args.rounds, tell)
    result = _result(rounds, rate, seconds, args.quick)
    _show(tell, result)
    return result


@contextlib.asynccontextmanager
async def _stage(seed: int) -> AsyncIterator[_Stage]:
    """All servers up; ended and removed afterwards."""
    redis, maria, peer = RedisServer(), MariaServer(), PeerServer()
    secret, port = secrets.token_hex(32), free_port()
    try:
        for server in (redis, maria, peer):
            server.start()
        with fresh_database(maria.url) as url, tempfile.TemporaryDirectory(prefix="hexhail-bench-") as folder:
            settings = {"HEXHAIL_REDIS_URL": redis.url, "HEXHAIL_DATABASE_URL": url}
            service = ServiceChild(Path(folder), port, secret, settings, ("--role", "api"))
            try:
                async with LoadChild("benchmarks.requests_load:RequestsLoad") as load:
                    await service.start()
                    yield _Stage(service, maria, peer, load, url, secret, seed)
            finally:
                await service.stop()
    finally:
        peer.stop()
        redis.remove()
        maria.remove()


class _Stage:
    """The servers, and one round of each side on them."""

    def __init__(
        self, service: ServiceChild, maria: MariaServer, peer: PeerServer, load: LoadChild, url: str, secret: str,
        seed: int,
    ) -> None:  # fmt: skip
        self._service, self._maria, self._peer, self._load = service, maria, peer, load
        self._url, self._seed = url, seed
        self._token = make_token(secret.encode(), "bench", Role.CLIENT, ttl_s=TOKEN_S)
        self._round = 0
        self._rides = 0

    async def ours(self, media: str, rate: float, seconds: float) -> Round:
        """Raises Untrue where the database holds anything but what was answered."""
        self._round += 1
        port = int(self._service.url.rpartition(":")[2])
        counters, api_s, database_s = self._counters(), self._api_s(), cpu_s(self._maria.pid)
        said = await self._run(port, "/v1/rides", media, rate, seconds)
        made = said["asked"]
        found = Round(
            made,
            (self._api_s() - api_s) * 1e6 / made,
            (cpu_s(self._maria.pid) - database_s) * 1e6 / made,
            {name: value - counters[name] for name, value in self._counters().items()},
            Latency.decoded(said["latency"]),
            Latency.decoded(said["lag"]),
            said["answer_bytes"] / made,
        )
        self._rides += made
        found.repeated = await self._repeat()
        self._check_rides()
        return found

    def _api_s(self) -> float:
        return cpu_s(self._service.pid, children=True)

    async def bare(self, media: str, rate: float, seconds: float) -> Round:
        self._round += 1
        used_s = cpu_s(self._peer.pid)
        said = await self._run(self._peer.port, "/rides", media, rate, seconds)
        made = said["asked"]
        cpu_us = (cpu_s(self._peer.pid) - used_s) * 1e6 / made
        latency, lag = Latency.decoded(said["latency"]), Latency.decoded(said["lag"])
        return Round(made, cpu_us, latency=latency, lag=lag, answer_bytes=said["answer_bytes"] / made)

    async def _run(self, port: int, path: str, media: str, rate: float, seconds: float) -> dict[str, Any]:
        """The same requests to either, the token of a client included."""
        said: dict[str, Any] = await self._load.call(
            "load",
            port=port, connections=CONNECTIONS, path=path, media=media, token=self._token, keys=f"round-{self._round}",
            rate=rate, seconds=seconds, seed=self._seed,
        )  # fmt: skip
        if said["statuses"] != {"201": said["asked"]}:
            raise Untrue(f"not every request was answered 201: {said}")
        return said

    async def _repeat(self) -> int:
        again = await self._load.call("repeat", share=REPEATED_SHARE)
        if again["repeated"] != again["answered_the_same"]:
            raise Untrue(f"a key sent again did not get its first answer: {again}")
        return int(again["repeated"])

    def _check_rides(self) -> None:
        rows, keys, events = self._row(
            "SELECT COUNT(*), COUNT(DISTINCT idempotency_key), (SELECT COUNT(*) FROM ride_events) FROM rides"
        )
        if not rows == keys == events == self._rides:
            raise Untrue(f"{self._rides} rides were answered 201; {rows} rows, {keys} keys, {events} events stand")

    def _counters(self) -> dict[str, int]:
        with contextlib.closing(mysql_connection(self._url)) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS")
            found = dict(cursor.fetchall())
        return {name: int(found.get(name, 0)) for name in _COUNTERS}

    def _row(self, statement: str) -> Sequence[int]:
        with contextlib.closing(mysql_connection(self._url)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            row: Sequence[int] = cursor.fetchone() or ()
            return row


def _result(rounds: Mapping[str, Sequence[Round]], rate: float, seconds: float, quick: bool) -> dict[str, Any]:
    cpu = {name: [each.cpu_us for each in some] for name, some in rounds.items()}
    measured = {
        "vs_bare_aiohttp": ratio_of(cpu["bare"], cpu["ours"]),
        "msgpack_vs_bare_aiohttp": ratio_of(cpu["bare_msgpack"], cpu["msgpack"]),
    }
    ratios = {name: rounded(ratio.median) or math.nan for name, ratio in measured.items()}
    return {
        "versions": versions("aiohttp", "uvloop", "msgspec", "aiomysql", "pymysql"),
        "quick": quick,
        "rate_per_s": rate,
        "seconds": seconds,
        "connections": CONNECTIONS,
        "ours": {name: _figures(rounds[name]) | _database(rounds[name]) for name in ("ours", "msgpack")}
        | _flat(rounds["ours"]),
        "peers": {name: _figures(rounds[name]) for name in ("bare", "bare_msgpack")},
        "ratios": ratios,
        "noise": {name: ratio.noise for name, ratio in measured.items()},
        "goals": judged(ratios, GOALS),
        "not_measured": not_measured(ratios, GOALS),
    }


def _median(rounds: Sequence[Round], of: Callable[[Round], float]) -> float | None:
    return rounded(spread_of([of(each) for each in rounds]).median)


def _flat(rounds: Sequence[Round]) -> dict[str, Any]:
    """The figures that are looked for most."""
    return {
        "cpu_us_a_request": _median(rounds, lambda each: each.cpu_us),
        "database_cpu_us_a_request": _median(rounds, lambda each: each.database_cpu_us),
        "rides_a_commit": _median(rounds, _rides_a_group),
        "commits_a_request": _median(rounds, lambda each: each.counters["Com_commit"] / each.rides),
    }


def _rides_a_group(each: Round) -> float:
    """A group of requests is two INSERTs: the rides, and their events."""
    return each.rides / max(1.0, each.counters["Com_insert"] / 2.0)


def _figures(rounds: Sequence[Round]) -> dict[str, Any]:
    cpu = spread_of([each.cpu_us for each in rounds])
    latency, lag = (merged([getattr(each, name) for each in rounds]) for name in ("latency", "lag"))
    return {
        "cpu_us_a_request": cpu.as_json(),
        "requests_a_cpu_s": rounded(1e6 / cpu.median),
        "requests": sum(each.rides for each in rounds),
        "latency": latency.as_json(),
        "generator_lag": lag.as_json(),
        "answer_bytes": _median(rounds, lambda each: each.answer_bytes),
    }


def _database(rounds: Sequence[Round]) -> dict[str, Any]:
    return {
        "database_cpu_us_a_request": spread_of([each.database_cpu_us for each in rounds]).as_json(),
        "rides_a_commit": _median(rounds, _rides_a_group),
        "queries_a_request": _median(rounds, lambda each: each.counters["Queries"] / each.rides),
        "fsyncs_a_request": _median(rounds, lambda each: each.counters["Innodb_data_fsyncs"] / each.rides),
        "repeated_the_same": sum(each.repeated for each in rounds),
    }


def _show(tell: Teller, result: dict[str, Any]) -> None:
    ours, peers, rows = result["ours"], result["peers"], []
    sides = (
        ("hexhail, JSON", ours["ours"]),
        ("bare aiohttp, JSON", peers["bare"]),
        ("hexhail, msgpack", ours["msgpack"]),
        ("bare aiohttp, msgpack", peers["bare_msgpack"]),
    )
    for name, of in sides:
        cpu, latency = of["cpu_us_a_request"], of["latency"]
        database = of.get("database_cpu_us_a_request", {}).get("median")
        commit = of.get("rides_a_commit")
        rows.append((name, cpu["median"], database, commit, *_percentiles(latency)))
    header = ("", "CPU us", "MariaDB us", "rides/commit", "p50 ms", "p99 ms", "p99.9 ms")
    tell.table(f"a ride request at {result['rate_per_s']}/s", header, rows)


def _percentiles(latency: Mapping[str, Any]) -> tuple[float, float, float]:
    return latency["p50_ms"], latency["p99_ms"], latency["p99.9_ms"]


def write_report(folder: Path, result: dict[str, Any]) -> Path:
    return requests_page.write(folder, result)
