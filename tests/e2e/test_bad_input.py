"""Input that is broken, too large, too slow or not ours: a clear answer, never a 5xx, and nothing lost."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.listener import Lobby
from api.service import build_service
from tests.e2e.running import LAT, LON, Running, settings_for

PLACE = {"lat": LAT, "lon": LON}
RIDE = msgspec.json.encode({"pickup": PLACE})


async def post(run: Running, data: Any, kind: str = "application/json", **headers: str) -> Any:
    sent = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await run.call("POST", "/v1/rides", "client:ann", data=data, headers=sent)


@pytest.mark.parametrize(
    ("data", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed-body"),
        (b"", "application/json", 400, "malformed-body"),
        (b"\xc1", "application/msgpack", 400, "malformed-body"),
        (RIDE, "application/msgpack", 422, "invalid"),
        (b"\x91" * 30_000, "application/msgpack", 422, "invalid"),
        (b'{"pickup":{"lat":1,"lon":1},"metadata":{"a":' + b"[" * 30_000, "application/json", 400, "malformed-body"),
        (b'{"pickup":{"lat":NaN,"lon":1}}', "application/json", 400, "malformed-body"),
        (b'{"pickup":{"lat":1e400,"lon":1}}', "application/json", 422, "invalid"),
        (
            msgspec.msgpack.encode({"pickup": {"lat": float("nan"), "lon": 1}}),
            "application/msgpack",
            422,
            "invalid",
        ),
        (RIDE, "text/plain", 415, "unsupported-media-type"),
        (RIDE, "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
    ],
)
async def test_a_body_that_cannot_be_used_is_refused(
    embedded: Running, data: bytes, kind: str, status: int, code: str
) -> None:
    answer = await post(embedded, data, kind)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_a_compressed_body_is_refused_rather_than_inflated(embedded: Running) -> None:
    answer = await post(embedded, RIDE, Content_Encoding="gzip")
    assert (answer.status, answer.code) == (415, "unsupported-media-type")


async def test_a_body_of_ten_megabytes_is_refused_by_its_announced_length(embedded: Running) -> None:
    answer = await post(embedded, io.BytesIO(b" " * 10_000_000))
    assert (answer.status, answer.code) == (413, "body-too-large")


async def test_a_body_without_announced_length_is_refused_once_it_is_too_large(embedded: Running) -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield b" " * 10_000

    answer = await post(embedded, pieces())
    assert (answer.status, answer.code) == (413, "body-too-large")


async def test_a_body_that_does_not_come_is_given_up(embedded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.rides.BODY_S_MAX", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", embedded.port)
    head = (
        f"POST /v1/rides HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {embedded.token_of('client:ann')}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    writer.write(head.encode())
    async with asyncio.timeout(10):
        assert b" 408 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_an_idempotency_key_that_cannot_be_kept_is_refused(embedded: Running, key: str) -> None:
    answer = await post(embedded, RIDE, Idempotency_Key=key)
    assert (answer.status, answer.code) == (422, "invalid")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v2/rides", 404, "not-found"),
        ("GET", "/v1/rides/x", 404, "ride-unknown"),
        ("GET", "/v1/rides/r_" + "U" * 26, 404, "ride-unknown"),
        ("GET", "/v1/rides/" + "%00" * 20, 404, "ride-unknown"),
        ("DELETE", "/v1/rides", 405, "method-not-allowed"),
        ("PATCH", "/v1/rides", 405, "method-not-allowed"),
        ("POST", "/v1/trips/x/fly", 404, "not-found"),
        ("DELETE", "/v1/drivers/nearby", 405, "method-not-allowed"),
    ],
)
async def test_what_is_not_there_is_a_problem_too(
    embedded: Running, method: str, path: str, status: int, code: str
) -> None:
    answer = await embedded.call(method, path, "client:ann")
    assert (answer.status, answer.code) == (status, code)
    if status == 405:
        assert "GET" in answer.headers["Allow"] or "POST" in answer.headers["Allow"] or "PUT" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"POST /v1/rides HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/rides HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_the_service_lives_on(embedded: Running, raw: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", embedded.port)
    writer.write(raw)
    async with asyncio.timeout(10):
        first = await reader.readline()
    assert first.split(b" ")[1].startswith(b"4")
    writer.close()
    assert (await embedded.call("GET", "/healthz")).status == 200


@pytest.mark.parametrize("sent", [b"", b"GET /v1/rides HTT"])
async def test_a_connection_that_never_asks_is_dropped(tmp_path: Path, sent: bytes) -> None:
    """P10"""
    service = await build_service(settings_for(tmp_path), "all")
    service.lobby = Lobby(first_request_s=0.2)
    listener = await service.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(sent)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    assert len(service.lobby) == 0
    writer.close()
    await service.stop()
    await listener.close()


async def test_a_request_id_is_given_back_or_made(embedded: Running) -> None:
    given = await embedded.call("GET", "/healthz", headers={"X-Request-Id": "abc-1"})
    assert given.headers["X-Request-Id"] == "abc-1"
    made = await embedded.call("GET", "/v1/rides", headers={"X-Request-Id": "a b"})
    assert made.status == 401
    assert len(made.headers["X-Request-Id"]) == 16


async def test_beyond_the_limit_of_requests_the_answer_is_503_with_retry_after(embedded: Running) -> None:
    """P10"""
    embedded.service.requests.limit = 0
    answer = await embedded.call("GET", "/v1/rides", "client:ann")
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "overloaded", "1")
    assert (await embedded.call("GET", "/readyz")).status == 200


async def test_beyond_the_limit_of_sockets_the_answer_is_503(embedded: Running) -> None:
    """P10"""
    ride = await embedded.ride()
    embedded.service.sockets.limit = 0
    answer = await embedded.call("GET", f"/v1/rides/{ride['id']}/events", "client:ann")
    assert (answer.status, answer.code) == (503, "overloaded")


async def test_metrics_and_probes_need_no_token(embedded: Running) -> None:
    await embedded.ride()
    metrics = (await embedded.call("GET", "/metrics")).body.decode()
    assert 'hexhail_request_seconds_count{method="POST",route="/v1/rides",status="201"} 1.0' in metrics
    assert 'hexhail_leading{market="new-york"}' in metrics
    ready = await embedded.call("GET", "/readyz")
    assert (ready.status, ready.body) == (200, {"status": "ready", "reasons": []})
