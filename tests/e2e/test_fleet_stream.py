"""A fleet gateway's socket: many drivers on one, on the embedded default."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from api.auth import Role
from api.schema_fleet import NAMED_MAX, POSITIONS_MAX, SIGN_ON_MAX
from geo.model import DriverId
from tests.e2e.fleet_gateway import Rig, gateway
from tests.e2e.matcher_by_hand import Matcher
from tests.e2e.running import JSON, LAT, LON, MSGPACK, Running, running, settings_for, token, until

NEARBY = f"/v1/drivers/nearby?lat={LAT}&lon={LON}&limit_m=50000&idle=false"


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Running]:
    """One embedded service, on which nobody matches but the test."""
    async with running(settings_for(tmp_path), "api") as run:
        yield run


async def put(run: Running, *names: str) -> None:
    for name in names:
        await run.service.store.put_driver(DriverId(name), vehicle_class="standard", seats=4)


async def found(run: Running, count: int = 50) -> dict[str, float]:
    """Where drivers are found, by id."""
    answer = await run.call("GET", f"{NEARBY}&k={count}", "client:ann")
    assert answer.status == 200, answer.body
    return {each["driver_id"]: each["lat"] for each in answer.body["items"]}


# Positions


async def test_positions_of_500_drivers_in_one_frame_are_found(alone: Running) -> None:
    names = [f"d{n:03d}" for n in range(500)]
    await asyncio.gather(*[put(alone, name) for name in names])
    rig = await gateway(alone)
    assert rig.welcome["market"] == "new-york"
    assert rig.welcome["limits"]["positions_max"] == POSITIONS_MAX
    told = await rig.sign_on(*names)
    assert {name for name, each in told.items() if each["status"] == "online" and each["epoch"] == 1} == set(names)
    await rig.stand(*names)
    index = alone.service.planes["new-york"].index  # type: ignore[index]

    async def all_are_there() -> bool:
        return len(index) == 500

    await until(all_are_there, what="500 drivers in the index")
    assert len(await found(alone)) == 50


@pytest.mark.parametrize("protocol", [MSGPACK, JSON])
async def test_either_subprotocol_signs_on_and_stands(alone: Running, protocol: str) -> None:
    await put(alone, "d1")
    rig = await gateway(alone, protocol=protocol)
    await rig.sign_on("d1")
    await rig.stand("d1", lat=LAT + 0.001)
    assert await found(alone) == {"d1": LAT + 0.001}


async def test_positions_of_whoever_is_not_signed_on_are_reported_and_the_others_taken(alone: Running) -> None:
    """P11: nothing is refused silently, and a foreign driver is told apart."""
    await put(alone, "d1", "other")
    rig = await gateway(alone)
    await rig.sign_on("d1")
    strangers = [f"d_unknown{n}" for n in range(NAMED_MAX + 8)]
    await rig.stand("d1", "other", *strangers)
    errors = {frame["code"]: frame for frame in rig.passed if frame["type"] == "error"}
    assert errors["forbidden"]["driver_ids"] == ["other"]
    assert errors["not-signed-on"]["count"] == len(strangers)
    assert errors["not-signed-on"]["driver_ids"] == strangers[:NAMED_MAX]
    assert await found(alone) == {"d1": LAT}


async def test_one_bad_position_keeps_no_other_back(alone: Running) -> None:
    await put(alone, "d1", "d2")
    rig = await gateway(alone)
    await rig.sign_on("d1", "d2")
    items: list[dict[str, Any]] = [
        {"driver_id": "d1", "seq": 1, "lat": 91.0, "lon": LON},
        {"driver_id": "d2", "seq": 1, "lat": LAT, "lon": LON},
        {"driver_id": "d1", "seq": 2, "lat": 0.0, "lon": 0.0},
        {"driver_id": "d1", "seq": 3, "lat": -LAT, "lon": LON},
    ]
    await rig.send(type="positions", seq=5, items=items)
    assert (await rig.next("ack"))["seq"] == 5
    errors = {frame["code"]: frame for frame in rig.passed}
    assert set(errors) == {"invalid-position", "null-island", "outside-market"}
    assert errors["outside-market"]["driver_ids"] == ["d1"]
    assert await found(alone) == {"d2": LAT}


async def test_a_frame_without_a_number_is_not_acknowledged(alone: Running) -> None:
    await put(alone, "d1")
    rig = await gateway(alone)
    await rig.sign_on("d1")
    await rig.send(type="positions", items=[{"driver_id": "d1", "seq": 1, "lat": LAT, "lon": LON}])
    await rig.stand("d1", seq=9)
    assert [frame for frame in rig.passed if frame["type"] == "ack"] == []


async def test_a_closed_gateway_leaves_its_drivers_where_they_were(alone: Running) -> None:
    await put(alone, "d1", "d2")
    rig = await gateway(alone)
    await rig.sign_on("d1", "d2")
    await rig.stand("d1", "d2")
    await rig.ws.close()

    async def is_forgotten() -> bool:
        return len(alone.service.sessions) == 0

    await until(is_forgotten, what="no session is left")
    assert set(await found(alone)) == {"d1", "d2"}


# Offers, trips and commands


async def test_offers_and_trips_reach_the_gateway_and_its_commands_take_effect(alone: Running) -> None:
    await put(alone, "d1", "d2")
    matcher = Matcher(alone)
    rig = await gateway(alone)
    await rig.sign_on("d1", "d2")
    trip = await matcher.offer_to(await alone.ride(), "d2")
    offer = await rig.next("offer")
    assert (offer["driver_id"], offer["ride"]["trip"]["id"], offer["slot"]) == ("d2", trip.trip_id, "now")
    for verb, state in (
        ("accept", "assigned"),
        ("arrive", "arrived"),
        ("start", "in_progress"),
        ("complete", "completed"),
    ):
        done = await rig.command(verb, "d2", trip_id=trip.trip_id)
        assert (done["type"], done["driver_id"], done["ride"]["state"]) == ("done", "d2", state)
    refused = await rig.command("complete", "d1", trip_id=trip.trip_id)
    assert (refused["code"], refused["driver_id"]) == ("not-your-trip", "d1")


@pytest.mark.parametrize(("verb", "state"), [("decline", "searching"), ("cancel", "searching")])
async def test_a_trip_can_be_given_back(alone: Running, verb: str, state: str) -> None:
    await put(alone, "d1")
    matcher = Matcher(alone)
    rig = await gateway(alone)
    await rig.sign_on("d1")
    trip = await matcher.offer_to(await alone.ride(), "d1")
    await rig.next("offer")
    if verb == "cancel":
        await rig.command("accept", "d1", trip_id=trip.trip_id)
    assert (await rig.command(verb, "d1", trip_id=trip.trip_id))["ride"]["state"] == state


async def test_an_offer_that_ends_is_withdrawn_and_a_cancellation_is_told(alone: Running) -> None:
    await put(alone, "d1")
    matcher = Matcher(alone)
    rig = await gateway(alone)
    await rig.sign_on("d1")
    offered = await alone.ride()
    await matcher.offer_to(offered, "d1")
    await rig.next("offer")
    await alone.call("POST", f"/v1/rides/{offered['id']}/cancel", "client:ann")
    withdrawn = await rig.next("offer_withdrawn")
    assert (withdrawn["driver_id"], withdrawn["ride"]["id"]) == ("d1", offered["id"])
    given = await alone.ride()
    await matcher.assign_to(given, "d1")
    told = await rig.next("trip")
    assert (told["driver_id"], told["ride"]["id"], told["ride"]["state"]) == ("d1", given["id"], "assigned")


async def test_a_driver_signed_on_again_is_told_its_rides(alone: Running) -> None:
    await put(alone, "d1")
    matcher = Matcher(alone)
    rig = await gateway(alone)
    await rig.sign_on("d1")
    ride = await alone.ride()
    await matcher.assign_to(ride, "d1")
    await rig.next("trip")
    await rig.ws.close()
    again = await gateway(alone)
    told = (await again.sign_on("d1"))["d1"]
    assert [each["id"] for each in told["rides"]] == [ride["id"]]
    assert told["epoch"] == 2
    told = (await again.sign_on("d1"))["d1"]  # on the same socket: a new session there, and no word of the old one
    assert told["epoch"] == 3
    await again.stand("d1")
    assert [frame["type"] for frame in again.passed] == []


async def test_a_drivers_status_is_set_and_told(alone: Running) -> None:
    await put(alone, "d1", "d2")
    rig = await gateway(alone)
    await rig.sign_on("d1", "d2")
    await rig.stand("d1", "d2")
    done = await rig.command("status", "d1", status="on_break")
    assert (done["status"], done["driver_id"]) == ("on_break", "d1")

    async def is_left_out() -> bool:
        return set(await found(alone)) == {"d2"}

    await until(is_left_out, what="the driver on a break is not found")
    await alone.put_driver("d2", status="on_break")
    told = await rig.next("status")
    assert (told["driver_id"], told["status"]) == ("d2", "on_break")


async def test_a_command_of_a_driver_that_is_not_there_is_answered(alone: Running) -> None:
    rig = await gateway(alone)
    for driver, code in (("d1", "not-signed-on"), ("other", "forbidden")):
        answer = await rig.command("arrive", driver, trip_id="t_x")
        assert (answer["code"], answer["driver_id"]) == (code, driver)


# Signing on and off


async def test_each_sign_on_has_its_own_answer(alone: Running) -> None:
    """P11"""
    await put(alone, "d1", "d2", "d3", "d_suspended", "other")
    await alone.call("POST", "/v1/drivers/d_suspended/suspend", "admin:root", body={"reason": "x"})
    rig = await gateway(alone)
    asked = [
        {"driver_id": "d1"},
        {"driver_id": "d2", "status": "on_break"},
        {"driver_id": "d3", "status": "offline"},
        {"driver_id": "d_suspended"},
        {"driver_id": "d_unknown"},
        {"driver_id": "other"},
    ]
    await rig.send(type="sign_on", drivers=asked, ref=1)
    told: dict[str, Any] = {}
    while len(told) < len(asked):
        frame = await rig.next("signed_on")
        assert frame["ref"] == 1
        told |= {each["driver_id"]: each.get("code") or each["status"] for each in frame["drivers"]}
    assert told == {
        "d1": "online",
        "d2": "on_break",
        "d3": "offline",
        "d_suspended": "driver-suspended",
        "d_unknown": "driver-unknown",
        "other": "forbidden",
    }
    assert len(alone.service.sessions) == 3


async def test_a_driver_that_signs_off_is_offline_and_gone(alone: Running) -> None:
    await put(alone, "d1", "d2")
    rig = await gateway(alone)
    await rig.sign_on("d1", "d2")
    await rig.stand("d1", "d2")
    told = await rig.sign_off("d1", "d_unknown", "other")
    assert {name: each["code"] for name, each in told.items()} == {
        "d1": "signed-off",
        "d_unknown": "not-signed-on",
        "other": "forbidden",
    }

    async def is_gone() -> bool:
        return set(await found(alone)) == {"d2"}

    await until(is_gone, what="the driver is out of the feed")
    assert (await alone.call("GET", "/v1/drivers/d1", "admin:root")).body["status"] == "offline"
    assert len(alone.service.sessions) == 1
    told = await rig.sign_off("d2", offline=False)  # as if its socket were lost: it stands until it is stale
    assert told["d2"]["code"] == "signed-off"
    assert set(await found(alone)) == {"d2"}
    assert (await alone.call("GET", "/v1/drivers/d2", "admin:root")).body["status"] == "online"


async def test_no_more_drivers_than_the_limit_are_signed_on(alone: Running) -> None:
    """P10"""
    await put(alone, "d1", "d2", "d3")
    fleets = alone.service._fleets
    assert fleets is not None
    fleets._drivers_max = 2
    rig = await gateway(alone)
    told = await rig.sign_on("d1", "d2", "d3")
    assert sorted(each.get("code", "") for each in told.values()) == ["", "", "overloaded"]


# The newest session wins (P7)


async def test_a_drivers_own_socket_supersedes_it_on_the_gateway_which_goes_on(alone: Running) -> None:
    await put(alone, "d1", "d2")
    rig = await gateway(alone)
    await rig.sign_on("d1", "d2")
    own = await alone.drive("d1", put=False)
    told = await rig.next("signed_off")
    assert told["drivers"] == [{"driver_id": "d1", "code": "superseded"}]
    await own.stands(LAT + 0.001)
    await rig.stand("d1", "d2", lat=LAT + 0.002)
    assert [(frame["code"], frame["driver_ids"]) for frame in rig.passed if frame["type"] == "error"] == [
        ("not-signed-on", ["d1"])
    ]
    assert await found(alone) == {"d1": LAT + 0.001, "d2": LAT + 0.002}


async def test_a_gateway_supersedes_a_drivers_own_socket_and_another_gateway(alone: Running) -> None:
    await put(alone, "d1")
    own = await alone.drive("d1", put=False)
    closed = asyncio.create_task(own.closed())
    first = await gateway(alone)
    assert (await first.sign_on("d1"))["d1"]["epoch"] == 2
    assert await closed == 4000
    second = await gateway(alone)
    await second.sign_on("d1")
    assert (await first.next("signed_off"))["drivers"][0]["code"] == "superseded"
    await second.stand("d1", lat=LAT + 0.001)
    assert await found(alone) == {"d1": LAT + 0.001}
    assert len(alone.service.sessions) == 1


async def test_a_suspended_driver_leaves_the_gateway_alone(alone: Running) -> None:
    await put(alone, "d1", "d2")
    rig = await gateway(alone)
    await rig.sign_on("d1", "d2")
    await rig.stand("d1", "d2")
    await alone.call("POST", "/v1/drivers/d1/suspend", "admin:root", body={"reason": "x"})
    assert (await rig.next("signed_off"))["drivers"] == [{"driver_id": "d1", "code": "driver-suspended"}]
    await rig.stand("d2", lat=LAT + 0.001)

    async def is_so() -> bool:
        return await found(alone) == {"d2": LAT + 0.001}

    await until(is_so, what="the suspended driver is out of the feed")


# Handshake, broken frames, limits


@pytest.mark.parametrize("who", ["driver:d1", "client:ann"])
async def test_only_a_fleet_may_connect(alone: Running, who: str) -> None:
    """P11"""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await alone.http.ws_connect(
            f"{alone.base_url}/v1/fleet/stream",
            headers={"Authorization": f"Bearer {alone.token_of(who)}"},
            protocols=(MSGPACK,),
        )
    assert refused.value.status == 403


async def test_a_gateway_is_closed_when_its_token_expires(alone: Running) -> None:
    alone.service._fleets._authenticator._leeway_s = 0.0  # type: ignore[union-attr]
    rig = await gateway(alone, ttl_s=1.5)
    assert await rig.closed() == 4001


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",
        b"\x91" * 2000,
        msgspec.msgpack.encode({"type": "sing_on"}),
        msgspec.msgpack.encode({"type": "sign_on", "drivers": []}),
        msgspec.msgpack.encode(
            {"type": "sign_on", "drivers": [{"driver_id": f"d{n}"} for n in range(SIGN_ON_MAX + 1)]}
        ),
        msgspec.msgpack.encode({"type": "positions", "items": [{"driver_id": "d1"}] * (POSITIONS_MAX + 1)}),
        msgspec.msgpack.encode({"type": "positions", "seq": -1, "items": [{}]}),
        msgspec.msgpack.encode({"type": "status", "driver_id": "d1", "status": "suspended"}),
        msgspec.msgpack.encode({"type": "accept", "trip_id": "t_x"}),
        msgspec.msgpack.encode({"type": "positions", "items": [1, None, "x", {"driver_id": "d1", "seq": 1}]}),
        msgspec.msgpack.encode({"type": "positions", "items": [1, {"driver_id": "????"}]}).replace(b"??", b"\xff\xfe"),
    ],
    ids=str,
)
async def test_a_broken_frame_is_answered_and_many_end_the_socket(alone: Running, frame: bytes) -> None:
    rig = await gateway(alone)
    await rig.ws.send_bytes(frame)
    assert (await rig.next("error"))["code"] in ("malformed-frame", "invalid-frame", "invalid-position")
    for _ in range(10):
        await rig.ws.send_bytes(frame)
    assert await rig.closed() == 1008


async def test_a_message_of_the_wrong_kind_closes_with_1003(alone: Running) -> None:
    rig = await gateway(alone)
    await rig.ws.send_str("{}")
    assert await rig.closed() == 1003


async def test_a_drained_service_sends_the_gateway_away(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path), "api") as run:
        await put(run, "d1")
        rig = await gateway(run)
        await rig.sign_on("d1")
        stopping = asyncio.create_task(run.service.stop())
        assert await rig.closed() == 1001
        await stopping


async def test_a_gateway_that_does_not_read_is_read_no_more_and_given_up(
    alone: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10"""
    monkeypatch.setattr("api.fleet_stream.SEND_S_MAX", 0.5)
    stream = socket.create_connection(("127.0.0.1", alone.port))
    stream.setblocking(False)
    loop = asyncio.get_running_loop()
    head = (
        "GET /v1/fleet/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Sec-WebSocket-Protocol: {MSGPACK}\r\n"
        f"Authorization: Bearer {token(Role.FLEET, 'cabs', drivers=('d*',))}\r\n\r\n"
    )
    await loop.sock_sendall(stream, head.encode())
    command = msgspec.msgpack.encode({"type": "arrive", "driver_id": "other", "trip_id": "t_x", "ref": "x" * 60})
    frame = bytes([0x82, 0x80 | len(command)]) + bytes(4) + command
    flood = asyncio.create_task(_flood(stream, frame * 500))

    async def is_given_up() -> bool:
        return alone.service.metrics.aborted.counts[("fleet",)] == 1

    await until(is_given_up, what="the gateway is given up")
    await flood
    stream.close()

    async def is_over() -> bool:
        return alone.service.sockets.count == 0

    await until(is_over, what="its place is free")


async def _flood(stream: socket.socket, data: bytes) -> None:
    """Sends until the other side has had enough."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            await loop.sock_sendall(stream, data)
        except OSError:
            return


async def test_lost_drivers_with_an_offer_are_noted_and_superseded_ones_are_not(alone: Running) -> None:
    await put(alone, "d1", "d2", "d3")
    matcher = Matcher(alone)
    rig = await gateway(alone)
    await rig.sign_on("d1", "d2", "d3")
    for name in ("d1", "d2"):
        await matcher.offer_to(await alone.ride(), name)
        await rig.next("offer")
    await alone.drive("d2", put=False)
    await rig.next("signed_off")
    noted: list[dict[str, int]] = []
    note = alone.service.store.note_lost_of

    async def watched(epochs: Any) -> None:
        noted.append(dict(epochs))
        await note(epochs)

    gateways = list(alone.service._fleets or ())
    object.__setattr__(gateways[0].around, "note_lost", watched)
    await rig.ws.close()

    async def is_noted() -> bool:
        return bool(noted)

    await until(is_noted, what="the lost drivers are noted")
    assert noted == [{"d1": 1}]


async def test_of_a_thousand_sign_ons_none_is_silent(alone: Running) -> None:
    """Frames that follow each other at once are answered in their order."""
    rig: Rig = await gateway(alone)
    for ref in range(3):
        drivers = [{"driver_id": f"d{n}"} for n in range(300)]
        await rig.send(type="sign_on", drivers=drivers, ref=ref)
    told: list[tuple[int, str]] = []
    while len(told) < 900:
        frame = await rig.next("signed_on")
        told += [(frame["ref"], each["code"]) for each in frame["drivers"]]
    assert told == [(ref, "driver-unknown") for ref in range(3) for _ in range(300)]
