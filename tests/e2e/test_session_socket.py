"""A driver's socket over time: when positions are acknowledged, and what becomes of a client that falls silent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest

from api import session_socket
from api.auth import Role
from api.schema import ITEMS_MAX
from tests.e2e.running import LAT, LON, MSGPACK, Running, running, settings_for, token, until


async def test_positions_are_acknowledged_at_once_and_then_together(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path, ack_interval_s=2.0), "api") as run:
        wheel = await run.drive("d1")
        assert wheel.welcome["ack_interval_s"] == 2.0
        await wheel.at()
        assert (await wheel.next("ack"))["seq"] == 1
        published = run.service.metrics.published
        for count in (2, 3, 4):
            await wheel.at(LAT + count / 10_000)
            await until(lambda count=count: _is(published.total(), count), what="published")  # type: ignore[misc]
        assert (await wheel.next("ack"))["seq"] == 4  # though nothing else was sent


async def test_an_answer_brings_the_acknowledgement_along(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path, ack_interval_s=60.0), "api") as run:
        wheel = await run.drive("d1")
        await wheel.stands()
        await wheel.at(LAT + 0.0001)
        await until(lambda: _is(run.service.metrics.published.total(), 2), what="published")
        await wheel.send(type="status", status="on_break", ref=1)
        await wheel.next("done")
        assert (await wheel.next("ack"))["seq"] == 2


async def _is(value: int, wanted: int) -> bool:
    return value == wanted


async def test_a_flood_of_frames_leaves_one_position_a_flush_and_the_newest_stands(tmp_path: Path) -> None:
    """P10"""
    async with running(settings_for(tmp_path, flush_ms=200), "api") as run:
        wheel = await run.drive("d1")
        for seq in range(1, 2001):
            frame = {"type": "position", "seq": seq, "lat": LAT + seq * 1e-7, "lon": LON}
            await wheel.ws.send_bytes(msgspec.msgpack.encode(frame))
        while (await wheel.next("ack"))["seq"] < 2000:
            pass
        metrics = run.service.metrics
        assert metrics.fixes.counts[("taken",)] == 2000
        assert metrics.published.total() < 200
        (flusher,) = (plane.flusher for plane in run.service.planes.values())
        assert len(flusher) == 0


async def test_a_backlog_longer_than_is_taken_is_refused_whole(embedded: Running) -> None:
    """P10"""
    wheel = await embedded.drive("d1")
    items = [{"seq": seq, "lat": LAT, "lon": LON} for seq in range(ITEMS_MAX + 1)]
    await wheel.send(type="positions", items=items)
    assert (await wheel.next("error"))["code"] == "invalid-frame"
    await wheel.send(type="positions", items=items[:-1])
    assert (await wheel.next("ack"))["seq"] == ITEMS_MAX - 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence counts after a tenth of a second."""
    monkeypatch.setattr(session_socket, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(session_socket, "PONG_S", 0.2)


async def _socket(run: Running, *, autoping: bool) -> aiohttp.ClientWebSocketResponse:
    await run.put_driver("d1")
    ws = await run.http.ws_connect(
        f"{run.base_url}/v1/drivers/d1/stream",
        headers={"Authorization": f"Bearer {token(Role.DRIVER, 'd1')}"},
        protocols=(MSGPACK,),
        autoping=autoping,
    )
    assert msgspec.msgpack.decode((await ws.receive()).data)["type"] == "welcome"
    return ws


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_falls_silent_is_asked_and_then_dropped(embedded: Running) -> None:
    ws = await _socket(embedded, autoping=False)
    assert (await ws.receive(timeout=5)).type is aiohttp.WSMsgType.PING
    assert (await ws.receive(timeout=5)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
    await until(lambda: _is(len(embedded.service.sessions), 0), what="the session's end")


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_answers_the_question_stays(embedded: Running) -> None:
    ws = await _socket(embedded, autoping=False)
    for _ in range(5):
        message = await ws.receive(timeout=5)
        assert message.type is aiohttp.WSMsgType.PING
        await ws.pong(message.data)
    assert len(embedded.service.sessions) == 1
    await ws.ping(b"and you?")
    answer = await ws.receive(timeout=5)
    while answer.type is aiohttp.WSMsgType.PING:
        await ws.pong(answer.data)
        answer = await ws.receive(timeout=5)
    assert (answer.type, answer.data) == (aiohttp.WSMsgType.PONG, b"and you?")


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_sends_positions_is_not_asked(embedded: Running) -> None:
    ws = await _socket(embedded, autoping=False)
    kinds = set()

    async def listen() -> None:
        while True:
            kinds.add((await ws.receive()).type)

    listening = asyncio.create_task(listen())
    for seq in range(40):
        await ws.send_bytes(msgspec.msgpack.encode({"type": "position", "seq": seq, "lat": LAT, "lon": LON}))
        await asyncio.sleep(0.02)
    listening.cancel()
    assert kinds == {aiohttp.WSMsgType.BINARY}


async def test_no_task_waits_to_write_to_an_idle_socket(embedded: Running) -> None:
    """Ten thousand sockets are ten thousand tasks, not twice as many."""
    for number in range(3):
        await (await embedded.drive(f"d{number}")).stands()

    async def is_idle() -> bool:
        return not any("SessionSocket._write" in repr(each.get_coro()) for each in asyncio.all_tasks())

    await until(is_idle, what="idle sockets")
    assert len(embedded.service.sessions) == 3
