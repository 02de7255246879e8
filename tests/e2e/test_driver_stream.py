"""The driver's socket, on the embedded default."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import aiohttp
import msgspec
import pytest

from api.auth import Role
from api.schema import ErrorFrame
from tests.e2e.running import JSON, LAT, LON, MSGPACK, Running, market, settings_for, token, until
from tests.e2e.running import running as run_service

HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": MSGPACK,
}


async def nearby(run: Running, **named: object) -> list[dict[str, object]]:
    query = "&".join(f"{name}={value}" for name, value in ({"lat": LAT, "lon": LON} | named).items())
    answer = await run.call("GET", f"/v1/drivers/nearby?{query}", "client:ann")
    assert answer.status == 200, answer.body
    return list(answer.body["items"])


async def ids_nearby(run: Running, **named: object) -> list[object]:
    return [each["driver_id"] for each in await nearby(run, **named)]


@pytest.mark.parametrize("protocol", [MSGPACK, JSON])
async def test_a_driver_that_streams_is_found_where_it_is(embedded: Running, protocol: str) -> None:
    wheel = await embedded.drive("d1", protocol=protocol)
    assert (wheel.welcome["driver_id"], wheel.welcome["status"], wheel.welcome["rides"]) == ("d1", "online", [])
    await wheel.stands(LAT + 0.001, age_ms=2000)
    (found,) = await nearby(embedded)
    assert (found["driver_id"], found["lat"], found["engaged"]) == ("d1", LAT + 0.001, False)
    assert 2.0 <= float(str(found["age_s"])) < 10.0


async def test_a_backlog_counts_by_its_newest_fix(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    items = [{"seq": seq, "lat": LAT + seq / 10_000, "lon": LON} for seq in (3, 1, 2)]
    await wheel.send(type="positions", items=items)
    assert (await wheel.next("ack"))["seq"] == 3
    assert (await nearby(embedded))[0]["lat"] == LAT + 0.0003


async def test_the_trip_comes_over_the_socket_and_is_commanded_there(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    ride = await embedded.ride()
    told = (await wheel.next("trip"))["ride"]
    assert (told["id"], told["state"], told["trip"]["driver_id"]) == (ride["id"], "assigned", "d1")
    for ref, (verb, state) in enumerate((("arrive", "arrived"), ("start", "in_progress"), ("complete", "completed"))):
        await wheel.send(type=verb, trip_id=told["trip"]["id"], ref=ref)
        done = await wheel.next("done")
        assert (done["ref"], done["ride"]["state"]) == (ref, state)


async def test_a_command_out_of_order_is_answered_with_what_is_allowed(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await embedded.ride()
    trip_id = (await wheel.next("trip"))["ride"]["trip"]["id"]
    await wheel.send(type="complete", trip_id=trip_id, ref="x")
    error = await wheel.next("error")
    assert (error["code"], error["ref"], error["allowed"]) == ("not-allowed", "x", ["arrive", "cancel"])
    assert error["ride"]["state"] == "assigned"


async def test_an_unknown_trip_is_an_error_frame(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.send(type="arrive", trip_id="t_nothing", ref=1)
    assert (await wheel.next("error"))["code"] == "trip-unknown"


async def test_another_drivers_trip_cannot_be_commanded(embedded: Running) -> None:
    """P11"""
    wheel, other = await embedded.drive("d1"), await embedded.drive("d2")
    await wheel.stands()
    await embedded.ride()
    trip_id = (await wheel.next("trip"))["ride"]["trip"]["id"]
    await other.send(type="arrive", trip_id=trip_id, ref=1)
    assert (await other.next("error"))["code"] == "not-your-trip"


async def test_the_driver_hears_of_the_riders_cancellation(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    ride = await embedded.ride()
    await wheel.next("trip")
    await embedded.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    told = (await wheel.next("trip"))["ride"]
    assert (told["state"], told["trip"]["state"]) == ("cancelled", "withdrawn")


async def test_a_reconnect_is_welcomed_with_the_live_trip(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    ride = await embedded.ride()
    await wheel.next("trip")
    await wheel.ws.close()
    again = await embedded.drive("d1", put=False)
    assert [each["id"] for each in again.welcome["rides"]] == [ride["id"]]
    assert again.welcome["epoch"] > wheel.welcome["epoch"]


async def test_the_newest_session_of_a_driver_wins_and_the_old_one_writes_no_more(embedded: Running) -> None:
    """P7"""
    old = await embedded.drive("d1")
    await old.stands()
    superseded = asyncio.create_task(old.closed())
    new = await embedded.drive("d1", put=False)
    assert await superseded == 4000
    await new.stands(LAT + 0.002)
    assert (await nearby(embedded))[0]["lat"] == LAT + 0.002


async def test_a_driver_on_a_break_is_not_found_and_comes_back(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await wheel.send(type="status", status="on_break", ref=1)
    assert (await wheel.next("done"))["status"] == "on_break"

    async def gone() -> bool:
        return await ids_nearby(embedded) == []

    await until(gone, what="the driver on a break is not found")
    await wheel.send(type="status", status="online", ref=2)
    await wheel.next("done")

    async def back() -> bool:
        return await ids_nearby(embedded) == ["d1"]

    await until(back, what="the driver is back without a new fix")


async def test_signing_off_takes_the_driver_out_at_once_until_it_is_online_again(embedded: Running) -> None:
    """P6"""
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await wheel.send(type="status", status="offline", ref=1)
    await wheel.next("done")

    async def gone() -> bool:
        return await ids_nearby(embedded) == [] and len(embedded.service.planes["new-york"].index) == 0  # type: ignore[index]

    await until(gone, what="the driver is out of the index")
    await wheel.at()
    assert (await wheel.next("error"))["code"] == "offline"
    await wheel.send(type="status", status="online", ref=2)
    await wheel.next("done")
    await wheel.stands(LAT + 0.001)
    assert await ids_nearby(embedded) == ["d1"]


async def test_a_lost_socket_leaves_the_driver_where_it_was(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await wheel.ws.close()
    assert await ids_nearby(embedded) == ["d1"]


async def test_a_silent_driver_is_found_no_more_once_it_is_stale(tmp_path: Path) -> None:
    """P5"""
    settings = settings_for(tmp_path, stale_after_s=0.5, sweep_after_s=60.0)
    async with run_service(settings) as run:
        wheel = await run.drive("d1")
        await wheel.stands()

        async def stale() -> bool:
            return await ids_nearby(run) == []

        await until(stale, what="the silent driver is stale")


async def test_an_engaged_driver_is_left_out_unless_asked_for(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await embedded.ride()
    await wheel.next("trip")

    async def engaged() -> bool:
        return await ids_nearby(embedded) == []

    await until(engaged, what="the engaged driver is left out")
    assert [(each["driver_id"], each["engaged"]) for each in await nearby(embedded, idle="false")] == [("d1", True)]


@pytest.mark.parametrize("protocol", [MSGPACK, JSON])
async def test_a_message_of_the_wrong_kind_closes_with_1003(embedded: Running, protocol: str) -> None:
    wheel = await embedded.drive("d1", protocol=protocol)
    await (wheel.ws.send_str("{}") if protocol == MSGPACK else wheel.ws.send_bytes(b"\x80"))
    assert await wheel.closed() == 1003


async def test_a_frame_of_a_megabyte_closes_with_1009(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.ws.send_bytes(os.urandom(1 << 20))
    assert await wheel.closed() == 1009


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",
        b"",
        b"\x91" * 5000,
        msgspec.msgpack.encode({"type": "fly"}),
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode({"type": "position", "seq": 1, "lat": 91.0, "lon": 0.0}),
        msgspec.msgpack.encode({"type": "position", "seq": 1, "lat": float("nan"), "lon": 0.0}),
        msgspec.msgpack.encode({"type": "position", "seq": -1, "lat": 1.0, "lon": 0.0}),
        msgspec.msgpack.encode({"type": "position", "seq": 1, "lat": 1.0, "lon": 0.0, "age_ms": -5}),
        msgspec.msgpack.encode({"type": "positions", "items": []}),
        msgspec.msgpack.encode({"type": "status", "status": "suspended"}),
        msgspec.msgpack.encode({"type": "arrive"}),
    ],
)
async def test_a_bad_frame_is_answered_and_the_socket_lives_on(embedded: Running, frame: bytes) -> None:
    wheel = await embedded.drive("d1")
    await wheel.ws.send_bytes(frame)
    assert (await wheel.next("error"))["code"] in ("malformed-frame", "invalid-frame")
    await wheel.stands()
    assert await ids_nearby(embedded) == ["d1"]


async def test_too_many_bad_frames_in_a_row_close_with_1008(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    for _ in range(20):
        await wheel.ws.send_bytes(b"\xc1")
    assert await wheel.closed() == 1008


@pytest.mark.parametrize(("lat", "lon", "code"), [(0.0, 0.0, "null-island"), (48.1, 11.6, "outside-market")])
async def test_an_impossible_place_is_refused_and_the_last_good_one_stands(
    embedded: Running, lat: float, lon: float, code: str
) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await wheel.at(lat, lon)
    assert (await wheel.next("error"))["code"] == code
    assert (await nearby(embedded))[0]["lat"] == LAT


async def test_a_teleport_is_held_back_until_it_is_confirmed(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await wheel.at(LAT + 0.2)
    await wheel.stands(LAT + 0.2001)
    assert (await nearby(embedded, limit_m=50_000))[0]["lat"] == LAT + 0.2001
    assert embedded.service.metrics.fixes.counts[("quarantined",)] == 1


async def test_the_socket_closes_when_the_token_expires(embedded: Running) -> None:
    """The leeway of five seconds included."""
    await embedded.put_driver("d1")
    ws = await embedded.http.ws_connect(
        f"{embedded.base_url}/v1/drivers/d1/stream",
        headers={"Authorization": f"Bearer {token(Role.DRIVER, 'd1', ttl_s=-3.5)}"},
        protocols=(MSGPACK,),
    )
    async with asyncio.timeout(10):
        while not ws.closed:
            await ws.receive()
    assert ws.close_code == 4001


async def test_the_token_may_come_as_a_subprotocol(embedded: Running) -> None:
    await embedded.put_driver("d1")
    ws = await embedded.http.ws_connect(
        f"{embedded.base_url}/v1/drivers/d1/stream",
        protocols=(f"bearer.{token(Role.DRIVER, 'd1')}", JSON),
    )
    assert ws.protocol == JSON
    await ws.close()


@pytest.mark.parametrize(
    ("path", "protocols", "status", "code"),
    [
        ("/v1/drivers/d1/stream", (), 400, "subprotocol-required"),
        ("/v1/drivers/d1/stream", ("graphql",), 400, "subprotocol-required"),
        ("/v1/drivers/d1/stream?market=atlantis", (MSGPACK,), 422, "invalid"),
        ("/v1/drivers/d1/stream?instance=-1", (MSGPACK,), 422, "invalid"),
        ("/v1/drivers/d1/stream?access_token=x", (MSGPACK,), 401, "unauthenticated"),
        ("/v1/drivers/d2/stream", (MSGPACK,), 403, "forbidden"),
    ],
)
async def test_what_is_refused_is_refused_before_the_handshake(
    embedded: Running, path: str, protocols: tuple[str, ...], status: int, code: str
) -> None:
    await embedded.put_driver("d1")
    headers = HANDSHAKE | {"Sec-WebSocket-Protocol": ", ".join(protocols)}
    answer = await embedded.call("GET", path, "driver:d1", headers=headers)
    assert (answer.status, answer.code) == (status, code)


async def test_a_driver_that_was_never_put_is_unknown(embedded: Running) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await embedded.drive("stranger", put=False)
    assert caught.value.status == 404


async def test_an_ordinary_get_is_told_to_upgrade(embedded: Running) -> None:
    answer = await embedded.call("GET", "/v1/drivers/d1/stream", "driver:d1")
    assert (answer.status, answer.code) == (426, "upgrade-required")


async def test_a_suspended_driver_is_signed_off_and_may_not_come_back(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await embedded.put_driver("d1", status="suspended")
    assert await wheel.closed() == 1008
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await embedded.drive("d1", put=False)
    assert caught.value.status == 403
    answer = await embedded.call("PUT", "/v1/drivers/d1", "driver:d1", body={"seats": 4, "status": "online"})
    assert (answer.status, answer.code) == (403, "driver-suspended")


async def test_a_driver_that_changes_its_market_is_found_in_the_new_one_only(tmp_path: Path) -> None:
    """P6"""
    settings = settings_for(tmp_path, markets=(market(), market("boston", 42.36, -71.06)))
    async with run_service(settings) as run:
        first = await run.drive("d1", query="?market=new-york")
        await first.stands()
        assert await ids_nearby(run) == ["d1"]
        superseded = asyncio.create_task(first.closed())
        second = await run.drive("d1", put=False, query="?market=boston")
        await second.stands(42.36, -71.06)
        assert await superseded == 4000
        assert await ids_nearby(run) == []
        assert await ids_nearby(run, lat=42.36, lon=-71.06) == ["d1"]
        refused = await run.call("GET", "/v1/drivers/d1/stream", "driver:d1", headers=HANDSHAKE)
        assert (refused.status, refused.body["errors"][0]["pointer"]) == (422, "?market")


async def test_a_socket_that_does_not_read_is_given_up_with_little_kept_for_it(
    embedded: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10: 64 KiB at most, whatever there is to tell it."""
    monkeypatch.setattr("api.driver_session.SEND_S_MAX", 0.5)
    await embedded.put_driver("d1")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", embedded.port))
    head = (
        "GET /v1/drivers/d1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Sec-WebSocket-Protocol: hexhail.v1.json\r\nAuthorization: Bearer {embedded.token_of('driver:d1')}\r\n\r\n"
    )
    sock.sendall(head.encode())
    await until(lambda: _true(len(embedded.service.sessions) == 1), what="the session")
    (session,) = embedded.service.sessions
    kept = 0
    async with asyncio.timeout(20):
        while len(embedded.service.sessions):
            if not session.outbox.overflowed:
                session.outbox.answer(ErrorFrame("x", "y" * 1000))
            kept = max(kept, session.outbox._answers_bytes + embedded.listener.unsent_bytes())
            await asyncio.sleep(0)
    sock.close()
    assert 16_384 < kept <= 65_536
    assert embedded.service.metrics.aborted.counts[("driver",)] == 1


async def test_more_commands_than_may_wait_are_refused(embedded: Running) -> None:
    """P10"""
    wheel = await embedded.drive("d1")
    for ref in range(200):
        await wheel.send(type="arrive", trip_id="t_nothing", ref=ref)
    codes = {(await wheel.next("error"))["code"] for _ in range(200)}
    assert codes <= {"trip-unknown", "overloaded"}
    assert "trip-unknown" in codes


async def _true(value: bool) -> bool:
    return value
