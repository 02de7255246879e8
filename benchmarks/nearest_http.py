"""GET /v1/drivers/nearby of a real service process beside a bare aiohttp handler that returns as many bytes.

The service keeps positions in a Redis of its own; the fleet goes in through the feed, as positions of another process
do. Both servers get the same connections, one question in flight on each, and the same headers; the answers are
compared with brute force first. CPU-seconds are those of the server with all that it has started, which on our side is
the whole service, its matcher included.

What is judged is a request's CPU at one rate for both (open loop), as every other subject compares. Saturated, one
question in flight on each connection, the two differ in who waits for whom: beside a fast server the load generator
never sleeps, while each answer of a slower one has to wake it, which the server pays for. What a CPU-second is worth
then is told beside it.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from hdrh.histogram import HdrHistogram

from api.auth import Role, make_token
from benchmarks.cpu import cpu_s
from benchmarks.failures import NotMeasured
from benchmarks.http_load import LATENCY_US_MAX, Load, LoadFailed, get_request, post_request
from benchmarks.nearest_fleet import CENTER_LAT, CENTER_LON, RESOLUTION, Fleet, Queries
from benchmarks.nearest_peers import BruteForce
from benchmarks.peer_child import PeerServer
from benchmarks.rounds import interleaved_async, ratio_of, spread_of
from benchmarks.servers import RedisServer
from benchmarks.service_child import ServiceChild, free_port
from benchmarks.tell import Teller
from geo.model import Fix, MarketId
from geo.redis_feed import RedisFeed

CONNECTIONS = 16
MARKET = MarketId("new-york")
COMPARED = 100
MANY_POINTS = 1000
MEDIA = {"json": "application/json", "msgpack": "application/msgpack"}
READ_S_MAX = 60.0
STALE_S = 3600


class WrongAnswer(NotMeasured):
    """The service's answer is not that of brute force: nothing that was measured counts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Of each round and side: `rate` and `seconds` of what is judged, `questions` where it is saturated."""

    rounds: int
    questions: int
    rate: float
    seconds: float
    k: int


@dataclass(frozen=True, slots=True)
class AtRate:
    """One side's round at a rate: requests a CPU-second, requests a second in fact, and latencies."""

    a_cpu_s: float
    a_s: float
    latency_us: HdrHistogram


async def measure(fleet: Fleet, queries: Queries, plan: Plan, tell: Teller) -> dict[str, Any]:
    """Per media type, requests a CPU-second of both sides by rounds; latencies; and the call for many places."""
    async with _service(fleet, tell) as (service, token):
        port = int(service.url.rpartition(":")[2])
        ours = await Load.open(port, CONNECTIONS)
        with PeerServer() as peer:
            theirs = await Load.open(peer.port, CONNECTIONS)
            try:
                await _ready(ours, token)
                await _compare(ours, token, fleet, queries, plan.k)
                return await _Sides(ours, theirs, service.pid, peer.pid, token, plan).measure(queries, tell)
            finally:
                ours.close()
                theirs.close()


@asynccontextmanager
async def _service(fleet: Fleet, tell: Teller) -> AsyncIterator[tuple[ServiceChild, str]]:
    """A running service whose Redis holds the fleet, and a client's token."""
    tell(f"a service whose feed holds {len(fleet)} drivers")
    secret = secrets.token_hex(32)
    redis = RedisServer()
    try:
        redis.start()
        await _publish(redis.url, fleet)
        with tempfile.TemporaryDirectory(prefix="hexhail-nearest-") as folder:
            settings = {
                "HEXHAIL_REDIS_URL": redis.url,
                "HEXHAIL_STALE_AFTER_S": str(STALE_S),
                "HEXHAIL_SWEEP_AFTER_S": str(2 * STALE_S),
            }
            service = ServiceChild(Path(folder), free_port(), secret, settings)
            try:
                await service.start()
                yield service, make_token(secret.encode(), "bench", Role.CLIENT, ttl_s=STALE_S)
            finally:
                await service.stop()
    finally:
        redis.remove()


async def _publish(url: str, fleet: Fleet) -> None:
    feed = RedisFeed(url, RESOLUTION)
    places = zip(fleet.ids, fleet.lat.tolist(), fleet.lon.tolist(), strict=True)
    await feed.publish(MARKET, [Fix(name, lat, lon, 1, 1, 1, 0, "standard", 4) for name, lat, lon in places])
    await feed.close()


def question(queries: Queries, number: int, k: int, token: str, media: str) -> bytes:
    point = queries.points[number]
    return get_request(f"/v1/drivers/nearby?lat={point.lat!r}&lon={point.lon!r}&k={k}", token=token, accept=media)


async def _ready(load: Load, token: str) -> None:
    """Until the service has read the drivers."""
    ask = get_request(f"/v1/drivers/nearby?lat={CENTER_LAT}&lon={CENTER_LON}", token=token)
    stop_at_s = time.monotonic() + READ_S_MAX
    while True:
        try:
            await load.closed([ask])
            return
        except LoadFailed:
            if time.monotonic() > stop_at_s:
                raise
            await asyncio.sleep(0.1)


async def _compare(load: Load, token: str, fleet: Fleet, queries: Queries, k: int) -> None:
    some = queries.first(COMPARED)
    expected = [[fleet.ids[each] for each in row] for row in BruteForce(fleet).numbers(some, k)]
    decoders: Mapping[str, Any] = {"json": msgspec.json.decode, "msgpack": msgspec.msgpack.decode}
    for name, media in MEDIA.items():
        for number, row in enumerate(expected):
            items = decoders[name](await load.one(question(some, number, k, token, media)))["items"]
            if [each["driver_id"] for each in items] != row:
                raise WrongAnswer(f"around {some.points[number]} the service finds others than brute force ({name})")


class _Sides:
    def __init__(self, ours: Load, theirs: Load, our_pid: int, their_pid: int, token: str, plan: Plan) -> None:
        self._ours, self._theirs, self._our_pid, self._their_pid = ours, theirs, our_pid, their_pid
        self._token, self._plan = token, plan

    async def measure(self, queries: Queries, tell: Teller) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, media in MEDIA.items():
            found[name] = await self._by_media(name, media, queries, tell)
        found["latency"] = {"requests_a_s": self._plan.rate} | found["json"]["latency"]
        found["many"] = await self._many(queries, tell)
        return found

    async def _by_media(self, name: str, media: str, queries: Queries, tell: Teller) -> dict[str, Any]:
        plan, numbers = self._plan, range(len(queries))
        asked = [question(queries, number, plan.k, self._token, media) for number in numbers]
        first = await self._ours.closed(asked)  # nothing is cold any more, and the size of an answer is known
        size = first.body_bytes // first.answers
        bare = [get_request(f"/nearby?bytes={size}", token=self._token, accept=media)] * len(asked)
        await self._theirs.closed(bare)
        rate, seconds, times = plan.rate, plan.seconds, max(1, plan.questions // len(asked))
        judged = await interleaved_async(
            {
                "ours": lambda: _at_rate(self._ours, self._our_pid, asked, rate, seconds),
                "bare": lambda: _at_rate(self._theirs, self._their_pid, bare, rate, seconds),
            },
            plan.rounds,
            lambda text: tell(f"http {name} at {rate:g} requests/s, {text}"),
        )
        saturated = await interleaved_async(
            {
                "ours": lambda: _a_cpu_s(self._ours, self._our_pid, asked, times),
                "bare": lambda: _a_cpu_s(self._theirs, self._their_pid, bare, times),
            },
            plan.rounds,
            lambda text: tell(f"http {name}, saturated, {text}"),
        )
        return {"bytes": size, "rate": rate} | _told(judged) | {"saturated": _told_saturated(saturated)}

    async def _many(self, queries: Queries, tell: Teller) -> dict[str, Any]:
        """Places a CPU-second where one call asks for a thousand."""
        tell("http, many places a call")
        some = queries.first(MANY_POINTS)
        body = {"points": [{"lat": each.lat, "lon": each.lon} for each in some.points], "k": self._plan.k}
        found: dict[str, Any] = {"places_a_call": len(some)}
        encoders: Mapping[str, Any] = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode}
        for name, media in MEDIA.items():
            ask = post_request("/v1/drivers/nearby", encoders[name](body), token=self._token, media=media)
            await self._ours.closed([ask])
            rates = [
                await _a_cpu_s(self._ours, self._our_pid, [ask] * max(1, self._plan.questions // len(some)), 1)
                for _ in range(self._plan.rounds)
            ]
            found[f"{name}_places_a_cpu_s"] = spread_of([rate * len(some) for rate in rates]).as_json()
        return found


def _told(rounds: Mapping[str, Sequence[AtRate]]) -> dict[str, Any]:
    """Of both sides at one rate. `reached` is the rate that each side got in its slowest round."""
    ours, bare = ([each.a_cpu_s for each in rounds[side]] for side in ("ours", "bare"))
    latency = HdrHistogram(1, LATENCY_US_MAX, 3)
    for each in rounds["ours"]:
        latency.add(each.latency_us)
    return {
        "reached": {side: round(min(each.a_s for each in rounds[side]), 1) for side in ("ours", "bare")},
        "ours_a_cpu_s": ours,
        "bare_a_cpu_s": bare,
        "ours": spread_of(ours).as_json(),
        "bare": spread_of(bare).as_json(),
        "latency": {
            f"p{percent}_ms": latency.get_value_at_percentile(float(percent)) / 1000.0
            for percent in ("50", "99", "99.9")
        },
    }


def _told_saturated(rounds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {
        "ours": spread_of(rounds["ours"]).as_json(),
        "bare": spread_of(rounds["bare"]).as_json(),
        "vs_bare_aiohttp": ratio_of(rounds["ours"], rounds["bare"]).as_json(),
    }


async def _at_rate(load: Load, pid: int, requests: Sequence[bytes], rate: float, seconds: float) -> AtRate:
    before_s = cpu_s(pid, children=True)
    loaded = await load.open_loop(requests, rate=rate, seconds=seconds)
    used_s = cpu_s(pid, children=True) - before_s
    assert loaded.latency_us is not None, "an open loop takes latencies"
    return AtRate(loaded.answers / used_s, loaded.answers / loaded.wall_s, loaded.latency_us)


async def _a_cpu_s(load: Load, pid: int, requests: Sequence[bytes], times: int) -> float:
    """Requests answered a CPU-second of that process and what it has started."""
    before_s = cpu_s(pid, children=True)
    loaded = await load.closed(requests, times=times)
    return loaded.answers / (cpu_s(pid, children=True) - before_s)
