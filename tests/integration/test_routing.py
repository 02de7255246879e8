"""OSRM and Valhalla over real HTTP: what is asked, what is read, and what stands in when they fail (P10).

The servers are those of tests.routing_servers.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest
from aiohttp import web

from geo.routing import Bounds, CircuitBreaker, Legs, Osrm, StraightLine, Times, TravelTimes, Valhalla
from tests.routing_servers import (
    Answer,
    Asked,
    Degrees,
    Server,
    always,
    osrm,
    osrm_ok,
    valhalla_concise,
    valhalla_verbose,
    way_s,
)

STRAIGHT = StraightLine(0.1)
QUICK = Bounds(timeout_s=0.2, connect_timeout_s=0.2)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(osrm)
    await server.start()
    yield server
    await server.stop()


def legs_of(origins: list[Degrees], targets: list[Degrees], pairs: list[tuple[int, int]]) -> Legs:
    (origin_lat, origin_lon), (target_lat, target_lon) = (
        np.array(places).reshape(len(places), 2).T for places in (origins, targets)
    )
    origin, target = np.array(pairs, dtype=np.int64).reshape(len(pairs), 2).T
    return Legs(origin_lat, origin_lon, target_lat, target_lon, origin, target)


def scattered(rng: np.random.Generator, origins: int, targets: int, pairs: int) -> Legs:
    def places(count: int) -> list[Degrees]:
        return [(round(40.7 + lat, 6), round(-74.0 + lon, 6)) for lat, lon in rng.random((count, 2)) / 10.0]

    ends = zip(rng.integers(0, origins, pairs).tolist(), rng.integers(0, targets, pairs).tolist(), strict=True)
    return legs_of(places(origins), places(targets), list(ends))


def expected_s(legs: Legs) -> list[float]:
    origins = list(zip(legs.origin_lat.tolist(), legs.origin_lon.tolist(), strict=True))
    targets = list(zip(legs.target_lat.tolist(), legs.target_lon.tolist(), strict=True))
    return [way_s(origins[o], targets[t]) for o, t in zip(legs.origin.tolist(), legs.target.tolist(), strict=True)]


SMALL = legs_of([(40.75, -73.99), (40.7601234567, -73.9), (40.75, -73.99)], [(40.7, -74.0)], [(0, 0), (1, 0), (2, 0)])
#: Four targets with sixty origins each: four tables of at most a hundred coordinates.
LARGE = scattered(np.random.default_rng(7), 240, 4, 0)
LARGE = Legs(
    LARGE.origin_lat, LARGE.origin_lon, LARGE.target_lat, LARGE.target_lon, np.arange(240), np.repeat(np.arange(4), 60)
)


async def times_of(client: TravelTimes, legs: Legs) -> Times:
    try:
        return await client.times(legs)
    finally:
        await client.close()


def is_straight(times: Times, legs: Legs) -> bool:
    return bool(times.estimated.all()) and times.seconds.tolist() == STRAIGHT.seconds(legs).tolist()


# What is asked and read


async def test_osrm_is_asked_in_its_documented_form_longitude_first(server: Server) -> None:
    legs = legs_of([(52.51703712, 13.38886), (52.529407, 13.397634)], [(52.523219, 13.428555)], [(0, 0), (1, 0)])
    await times_of(Osrm(server.url + "/", straight=STRAIGHT), legs)
    places = "13.388860,52.517037;13.397634,52.529407;13.428555,52.523219"
    query = "sources=0;1&destinations=2&annotations=duration"
    assert [asked.line for asked in server.asked] == [f"GET /table/v1/driving/{places}?{query}"]


async def test_valhalla_is_asked_in_its_documented_form(server: Server) -> None:
    server.answer = valhalla_concise
    await times_of(Valhalla(server.url, "taxi", straight=STRAIGHT), SMALL)
    assert [asked.line for asked in server.asked] == ["POST /sources_to_targets"]
    assert server.asked[0].request.content_type == "application/json"
    assert json.loads(server.asked[0].body) == {
        "sources": [{"lat": 40.75, "lon": -73.99}, {"lat": 40.760123, "lon": -73.9}, {"lat": 40.75, "lon": -73.99}],
        "targets": [{"lat": 40.7, "lon": -74.0}],
        "costing": "taxi",
        "verbose": False,
    }


async def test_each_pair_gets_its_own_cell_from_tables_within_osrms_limit(server: Server) -> None:
    legs = scattered(np.random.default_rng(1), 300, 90, 1500)
    client = Osrm(server.url, straight=STRAIGHT)
    times = await times_of(client, legs)
    assert times.seconds.tolist() == expected_s(legs)
    assert not times.estimated.any()
    assert times.fallback is None
    assert len(server.asked) > 1
    assert all(len(asked.origins) + len(asked.targets) <= 100 for asked in server.asked)
    assert (client.asked_pairs, client.answered_pairs, client.estimated_pairs) == (1500, 1500, 0)
    assert not client.failures


@pytest.mark.parametrize("answer", [valhalla_concise, valhalla_verbose])
async def test_each_pair_gets_its_own_cell_from_tables_within_valhallas_limit(server: Server, answer: Answer) -> None:
    server.answer = answer
    legs = scattered(np.random.default_rng(2), 300, 90, 1500)
    times = await times_of(Valhalla(server.url, straight=STRAIGHT), legs)
    assert times.seconds.tolist() == expected_s(legs)
    assert times.fallback is None
    assert len(server.asked) > 1
    assert all(len(asked.origins) * len(asked.targets) <= 2500 for asked in server.asked)


async def test_a_smaller_limit_is_kept(server: Server) -> None:
    legs = scattered(np.random.default_rng(3), 50, 9, 200)
    times = await times_of(Osrm(server.url, "car/fast", straight=STRAIGHT, coordinates_max=7), legs)
    assert times.seconds.tolist() == expected_s(legs)
    assert all(len(asked.origins) + len(asked.targets) <= 7 for asked in server.asked)
    assert all(asked.line.startswith("GET /table/v1/car%2Ffast/") for asked in server.asked)


async def test_no_pairs_ask_nothing(server: Server) -> None:
    times = await times_of(Osrm(server.url, straight=STRAIGHT), legs_of([(1.0, 2.0)], [], []))
    assert (times.seconds.tolist(), times.estimated.tolist(), times.fallback) == ([], [], None)
    assert not server.asked


async def test_where_osrm_knows_no_way_there_is_none(server: Server) -> None:
    async def answer(asked: Asked) -> web.StreamResponse:
        return osrm_ok(asked, [[12], [None], [0.5]])

    server.answer = answer
    times = await times_of(Osrm(server.url, straight=STRAIGHT), SMALL)
    assert times.seconds.tolist() == [12.0, np.inf, 0.5]
    assert not times.estimated.any()
    assert times.fallback is None


@pytest.mark.parametrize(
    "table",
    [
        {"durations": [[12], [None], [7]], "distances": [[0.1], [None], [0.2]]},
        [[{"time": 12, "distance": 0.1}], [{"time": None, "distance": None}], [{"time": 7, "distance": 0.2}]],
    ],
)
async def test_where_valhalla_knows_no_way_there_is_none(server: Server, table: object) -> None:
    server.answer = always(200, json.dumps({"sources_to_targets": table, "units": "kilometers"}))
    times = await times_of(Valhalla(server.url, straight=STRAIGHT), SMALL)
    assert times.seconds.tolist() == [12.0, np.inf, 7.0]
    assert not times.estimated.any()


def valhalla_error(code: int, text: str) -> Answer:
    error = {"error_code": code, "error": text, "status_code": 400, "status": "Bad Request"}
    return always(400, json.dumps(error))


async def test_valhallas_error_for_a_table_without_any_way_is_an_answer(server: Server) -> None:
    server.answer = valhalla_error(442, "No path could be found for input")
    client = Valhalla(server.url, straight=STRAIGHT)
    times = await times_of(client, SMALL)
    assert times.seconds.tolist() == [np.inf] * 3
    assert not times.estimated.any()
    assert not client.failures


# What stands in when they fail


DEEP = "[" * 30_000 + "]" * 30_000
OSRM_FAULTS = {
    "too big": (always(400, '{"code": "TooBig", "message": "Too many table coordinates"}'), "refused", "TooBig"),
    "no segment": (always(400, '{"code": "NoSegment"}'), "refused", "NoSegment"),
    "not its own 400": (always(400, "<html>Bad Request</html>", "text/html"), "http", "HTTP 400"),
    "not found": (always(404, '{"code": "InvalidService"}'), "http", "HTTP 404"),
    "too many": (always(429, "slow down"), "http", "HTTP 429"),
    "broken": (always(500, ""), "http", "HTTP 500"),
    "gateway": (always(503, "<html>Service Unavailable</html>", "text/html"), "http", "HTTP 503"),
    "moved": (always(302, ""), "http", "HTTP 302"),
    "no JSON": (always(200, "<html>welcome</html>", "text/html"), "malformed", "not OSRM's"),
    "empty": (always(200, ""), "malformed", "not OSRM's"),
    "deep": (always(200, DEEP), "malformed", "not OSRM's"),
    "no object": (always(200, "[1, 2, 3]"), "malformed", "not OSRM's"),
    "not ok": (always(200, '{"code": "InvalidQuery"}'), "malformed", "not OSRM's"),
    "no table": (always(200, '{"code": "Ok"}'), "malformed", "3 x 1"),
    "few rows": (always(200, '{"code": "Ok", "durations": [[1], [2]]}'), "malformed", "3 x 1"),
    "long row": (always(200, '{"code": "Ok", "durations": [[1], [2, 2], [3]]}'), "malformed", "3 x 1"),
    "no rows": (always(200, '{"code": "Ok", "durations": [1, 2, 3]}'), "malformed", "3 x 1"),
    "negative": (always(200, '{"code": "Ok", "durations": [[1], [-0.1], [3]]}'), "malformed", "3 x 1"),
    "NaN": (always(200, '{"code": "Ok", "durations": [[1], [NaN], [3]]}'), "malformed", "not OSRM's"),
    "infinite": (always(200, '{"code": "Ok", "durations": [[1], [1e999], [3]]}'), "malformed", "3 x 1"),
    "huge": (always(200, '{"code": "Ok", "durations": [[1], [1' + "0" * 400 + "], [3]]}"), "malformed", "3 x 1"),
    "text": (always(200, '{"code": "Ok", "durations": [["1"], [2], [3]]}'), "malformed", "3 x 1"),
    "boolean": (always(200, '{"code": "Ok", "durations": [[true], [2], [3]]}'), "malformed", "3 x 1"),
    "oversize": (always(200, '{"code": "Ok"}' + " " * 70_000), "oversize", "65536 bytes"),
}


@pytest.mark.parametrize(("answer", "kind", "reason"), OSRM_FAULTS.values(), ids=OSRM_FAULTS.keys())
async def test_a_failing_osrm_leaves_straight_lines_and_a_reason(
    server: Server, answer: Answer, kind: str, reason: str
) -> None:
    server.answer = answer
    client = Osrm(server.url, straight=STRAIGHT, bounds=Bounds(answer_bytes_max=65_536))
    times = await times_of(client, SMALL)
    assert is_straight(times, SMALL)
    assert times.fallback is not None
    assert times.fallback.startswith("osrm: ")
    assert reason in times.fallback
    assert "(3 pairs)" in times.fallback
    assert client.failures == {kind: 1}
    assert (client.asked_pairs, client.answered_pairs, client.estimated_pairs) == (3, 0, 3)


VALHALLA_FAULTS = {
    "unconnected": (valhalla_error(170, "Locations are in unconnected regions"), "refused", "170"),
    "too many": (valhalla_error(150, "Exceeded max locations:2500"), "refused", "150"),
    "not its own 400": (always(400, '{"error_code": "many"}'), "http", "HTTP 400"),
    "no table": (always(200, "{}"), "malformed", "not Valhalla's"),
    "no durations": (always(200, '{"sources_to_targets": {"distances": [[1], [2], [3]]}}'), "malformed", "Valhalla's"),
    "no times": (always(200, '{"sources_to_targets": [[{"distance": 1}], [{}], [{}]]}'), "malformed", "without times"),
    "no cells": (always(200, '{"sources_to_targets": [["time"], [2], [3]]}'), "malformed", "without times"),
    "few rows": (always(200, '{"sources_to_targets": [[{"time": 1}]]}'), "malformed", "3 x 1"),
    "negative": (always(200, '{"sources_to_targets": {"durations": [[1], [-2], [3]]}}'), "malformed", "3 x 1"),
}


@pytest.mark.parametrize(("answer", "kind", "reason"), VALHALLA_FAULTS.values(), ids=VALHALLA_FAULTS.keys())
async def test_a_failing_valhalla_leaves_straight_lines_and_a_reason(
    server: Server, answer: Answer, kind: str, reason: str
) -> None:
    server.answer = answer
    client = Valhalla(server.url, straight=STRAIGHT)
    times = await times_of(client, SMALL)
    assert is_straight(times, SMALL)
    assert reason in str(times.fallback)
    assert client.failures == {kind: 1}


async def test_a_server_that_does_not_answer_in_time_is_not_waited_for(server: Server) -> None:
    server.gate.clear()
    client = Osrm(server.url, straight=STRAIGHT, bounds=QUICK)
    times = await times_of(client, SMALL)
    assert is_straight(times, SMALL)
    assert times.fallback == "osrm: no answer within 0.2 s (3 pairs)"
    assert client.failures == {"timeout": 1}


async def test_the_time_out_holds_for_the_answers_last_byte(server: Server) -> None:
    never = asyncio.Event()

    async def dribble(asked: Asked) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(asked.request)
        await response.write(b'{"code": "Ok", ')
        await never.wait()
        return response

    server.answer = dribble
    client = Osrm(server.url, straight=STRAIGHT, bounds=QUICK)
    times = await times_of(client, SMALL)
    never.set()
    assert is_straight(times, SMALL)
    assert client.failures == {"timeout": 1}


async def test_a_connection_cut_before_or_within_the_answer_leaves_straight_lines(server: Server) -> None:
    async def cut(asked: Asked) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        if len(server.asked) % 2:
            await response.prepare(asked.request)
            await response.write(b'{"code": "Ok", ')
        assert asked.request.transport is not None
        asked.request.transport.abort()
        return response

    server.answer = cut
    client = Valhalla(server.url, straight=STRAIGHT)
    for _ in range(2):
        times = await client.times(SMALL)
        assert is_straight(times, SMALL)
        assert "the connection broke" in str(times.fallback)
    assert client.failures == {"cut": 2}
    await client.close()


async def test_a_server_that_is_not_there_leaves_straight_lines() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refuses, and nobody else takes the port
        client = Osrm(f"http://user:secret@127.0.0.1:{held.getsockname()[1]}", straight=STRAIGHT)
        times = await times_of(client, SMALL)
    assert is_straight(times, SMALL)
    assert times.fallback == "osrm: cannot connect: Connection refused (3 pairs)"
    assert client.failures == {"connect": 1}


async def test_a_server_of_another_protocol_leaves_straight_lines() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as other:
        host, port = other.sockets[0].getsockname()
        client = Osrm(f"http://{host}:{port}", straight=STRAIGHT)
        times = await times_of(client, SMALL)
    assert is_straight(times, SMALL)
    assert client.failures == {"malformed": 1}
    assert times.fallback == "osrm: an answer that is not HTTP (3 pairs)"


async def test_only_the_pairs_of_the_table_that_failed_are_estimated(server: Server) -> None:
    async def sometimes(asked: Asked) -> web.StreamResponse:
        if asked.targets[0] == (LARGE.target_lat[1], LARGE.target_lon[1]):
            return web.Response(status=502)
        return await osrm(asked)

    server.answer = sometimes
    client = Osrm(server.url, straight=STRAIGHT)
    times = await times_of(client, LARGE)
    assert np.flatnonzero(times.estimated).tolist() == list(range(60, 120))
    right = np.where(times.estimated, STRAIGHT.seconds(LARGE), expected_s(LARGE))
    assert times.seconds.tolist() == right.tolist()
    assert times.fallback == "osrm: HTTP 502 (60 pairs)"
    assert (client.asked_pairs, client.answered_pairs, client.estimated_pairs) == (240, 180, 60)


# What is bounded


async def test_pairs_beyond_the_bound_of_a_call_are_estimated(server: Server) -> None:
    client = Osrm(server.url, straight=STRAIGHT, bounds=Bounds(pairs_max=100))
    times = await times_of(client, LARGE)
    assert np.flatnonzero(times.estimated).tolist() == list(range(100, 240))
    assert times.seconds[:100].tolist() == expected_s(LARGE)[:100]
    assert times.seconds[100:].tolist() == STRAIGHT.seconds(LARGE)[100:].tolist()
    assert times.fallback == "osrm: a call asks for at most 100 pairs (140 pairs)"


async def test_so_many_tables_are_under_way_at_once_and_no_more(server: Server) -> None:
    server.gate.clear()
    client = Osrm(server.url, straight=STRAIGHT, bounds=Bounds(concurrency=2))
    calls = [asyncio.create_task(client.times(LARGE)) for _ in range(2)]
    while server.under_way < 2:
        await asyncio.sleep(0.001)
    server.gate.set()
    for times in await asyncio.gather(*calls):
        assert not times.estimated.any()
    await client.close()
    assert len(server.asked) == 8
    assert server.under_way_max == 2


async def test_a_call_that_takes_too_long_sends_no_more(server: Server) -> None:
    began_s = asyncio.get_running_loop().time()

    async def slow(asked: Asked) -> web.StreamResponse:
        while asyncio.get_running_loop().time() <= began_s + 0.1:
            await asyncio.sleep(0.01)
        return await osrm(asked)

    server.answer = slow
    client = Osrm(server.url, straight=STRAIGHT, bounds=Bounds(concurrency=1, call_s_max=0.1))
    began_s = asyncio.get_running_loop().time()
    times = await times_of(client, LARGE)
    assert len(server.asked) == 1
    assert int(times.estimated.sum()) == 180
    assert times.fallback == "osrm: not asked: the call took longer than 0.1 s (180 pairs)"
    assert not client.failures


# When a provider is left alone


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def breakable(server: Server, clock: Clock) -> Osrm:
    breaker = CircuitBreaker(failures_max=3, pause_s=10.0, pause_s_max=15.0)
    return Osrm(server.url, straight=STRAIGHT, breaker=breaker, now_s=clock)


def state_of(client: Osrm) -> str:
    return client.state.value


async def test_a_provider_that_fails_again_and_again_is_left_alone_and_asked_again_after_a_pause(
    server: Server,
) -> None:
    server.answer = always(503, "")
    clock = Clock()
    client = breakable(server, clock)
    for _ in range(3):
        assert state_of(client) == "closed"
        await client.times(SMALL)
    assert state_of(client) == "open"

    times = await client.times(LARGE)
    assert is_straight(times, LARGE)
    assert times.fallback == "osrm: not asked after several failures, the last: HTTP 503 (240 pairs)"
    assert len(server.asked) == 3

    clock.now_s += 10.0
    assert state_of(client) == "half_open"
    assert is_straight(await client.times(LARGE), LARGE)
    assert state_of(client) == "open"
    assert len(server.asked) == 4, "one probe"

    server.answer = osrm
    clock.now_s += 14.9
    assert is_straight(await client.times(LARGE), LARGE)
    assert len(server.asked) == 4
    clock.now_s += 0.1
    times = await client.times(LARGE)
    assert times.seconds.tolist() == expected_s(LARGE), "the probe goes ahead, the others follow in the same call"
    assert times.fallback is None
    assert state_of(client) == "closed"
    assert client.failures == {"http": 4}
    assert client.asked_pairs == client.answered_pairs + client.estimated_pairs
    await client.close()


async def test_a_provider_that_refuses_questions_is_well(server: Server) -> None:
    server.answer = always(400, '{"code": "NoSegment"}')
    client = breakable(server, Clock())
    for _ in range(5):
        await client.times(SMALL)
    assert state_of(client) == "closed"
    assert len(server.asked) == 5
    await client.close()


async def test_a_call_that_is_cancelled_gives_its_probe_back(server: Server) -> None:
    server.answer = always(503, "")
    clock = Clock()
    client = breakable(server, clock)
    for _ in range(3):
        await client.times(SMALL)
    clock.now_s += 10.0
    server.answer = osrm
    server.gate.clear()
    call = asyncio.create_task(client.times(SMALL))
    while server.under_way < 1:
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    server.gate.set()
    assert not (await client.times(SMALL)).estimated.any()
    await client.close()


async def test_a_closed_client_answers_with_straight_lines(server: Server) -> None:
    client = Osrm(server.url, straight=STRAIGHT)
    assert not (await client.times(SMALL)).estimated.any()
    await client.close()
    await client.close()
    times = await client.times(SMALL)
    assert is_straight(times, SMALL)
    assert times.fallback == "osrm: not asked: closed (3 pairs)"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "url", ["127.0.0.1:5000", "ftp://localhost", "http://", "http://localhost:x", "http://localhost?key=1", ""]
)
async def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    for client in (Osrm, Valhalla):
        with pytest.raises(ValueError):
            client(url, straight=STRAIGHT)


async def test_straight_lines_need_no_provider() -> None:
    times = await times_of(STRAIGHT, SMALL)
    assert times.seconds.tolist() == STRAIGHT.seconds(SMALL).tolist()
    assert times.seconds[0] == pytest.approx(0.1 * 5624, rel=1e-3)
    assert not times.estimated.any()
    assert times.fallback is None
