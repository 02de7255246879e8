"""Messages are handed over as they arrive, in order, and no faster than they are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from aiohttp._websocket.reader import WebSocketReader

from api import prompt_socket
from api.prompt_socket import TURNS, PromptSocket, hands_over
from tests.feeds import until


class Endpoint:
    """One socket's server side: what it was handed, what its reading task received, and how it ended."""

    def __init__(self) -> None:
        self.handed: list[bytes] = []
        self.received: list[aiohttp.WSMessage] = []
        self.seen: list[bytes] = []  # both, in order
        self.socket: PromptSocket | None = None
        self.is_over = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.on_message: Callable[[bytes], None] = lambda data: None

    def take(self, data: bytes) -> None:
        self.handed.append(data)
        self.seen.append(data)
        self.on_message(data)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        ws = self.socket = PromptSocket(WSMsgType.BINARY, self.take, max_msg_size=1024)
        await ws.prepare(request)
        try:
            while True:
                ws.go_on()
                message = await ws.receive()
                self.received.append(message)
                if message.type is WSMsgType.PING:
                    await ws.pong(message.data)
                elif message.type is WSMsgType.BINARY:
                    self.seen.append(message.data)
                elif message.type is not WSMsgType.TEXT:
                    return ws
                await self.reads.wait()
        finally:
            self.is_over.set()


@asynccontextmanager
async def served(endpoint: Endpoint) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    app = web.Application()
    app.router.add_get("/", endpoint.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{port}/") as ws:
            yield ws
    finally:
        await runner.cleanup()


def test_this_aiohttp_hands_messages_over() -> None:
    """Were another version to parse in another way, positions would still be taken, at a higher price: say so here."""
    assert hands_over()


async def test_messages_are_handed_over_without_waking_the_reading_task() -> None:
    endpoint = Endpoint()
    async with served(endpoint) as ws:
        for number in range(TURNS):
            await ws.send_bytes(b"%d" % number)
        await until(lambda: len(endpoint.seen) == TURNS)
        assert endpoint.received == []
        assert endpoint.handed == [b"%d" % number for number in range(TURNS)]


async def test_large_messages_stay_in_order_where_the_parser_had_stalled() -> None:
    seen: list[bytes] = []
    loop = asyncio.get_running_loop()
    queue = prompt_socket.PromptQueue(
        prompt_socket._Unpaused(), loop, WSMsgType.BINARY, lambda data: seen.append(bytes(data[:1]))
    )
    reader = WebSocketReader(queue, 2**20, compress=False, decode_text=False)
    queue.turns = 0
    for name in (b"A", b"B"):
        reader.feed_data(b"\x82\xff" + (65_530).to_bytes(8, "big") + bytes(4) + name * 65_530)
    for name in (b"C", b"D"):
        reader.feed_data(b"\x82\x81" + bytes(4) + name)
    for _ in range(4):
        queue.turns = TURNS
        if len(seen) < 4:
            message = await asyncio.wait_for(queue.read(), 5.0)
            seen.append(bytes(message.data[:1]))
        if len(seen) == 4:
            break
    assert seen == [b"A", b"B", b"C", b"D"]


async def test_all_arrive_in_order_whoever_takes_them() -> None:
    endpoint = Endpoint()
    async with served(endpoint) as ws:
        for number in range(10 * TURNS):
            await ws.send_bytes(b"%d" % number)
            if number % 100 == 50:
                await ws.ping()
        await until(lambda: len(endpoint.seen) == 10 * TURNS)
    assert endpoint.seen == [b"%d" % number for number in range(10 * TURNS)]
    assert any(each.type is WSMsgType.BINARY for each in endpoint.received)


async def test_a_text_a_ping_and_a_close_reach_the_reading_task() -> None:
    endpoint = Endpoint()
    async with served(endpoint) as ws:
        await ws.send_bytes(b"a")
        await ws.send_str("b")
        await ws.ping(b"c")
        await until(lambda: len(endpoint.received) == 2)
        await ws.close(code=4000)
    assert endpoint.handed == [b"a"]
    assert [each.type for each in endpoint.received] == [WSMsgType.TEXT, WSMsgType.PING, WSMsgType.CLOSE]


async def test_a_reading_task_that_does_not_come_back_stops_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """P10: what a flooding client sends waits in its own kernel."""
    monkeypatch.setattr(prompt_socket, "QUEUE_BYTES", 4096)
    endpoint = Endpoint()
    endpoint.reads.clear()
    async with served(endpoint) as ws:
        flood = asyncio.create_task(_flood(ws))
        await until(lambda: _is_paused(endpoint))
        handed = len(endpoint.handed)
        await asyncio.sleep(0.05)
        assert len(endpoint.handed) == handed <= TURNS
        assert len(endpoint.received) == 1
        assert not flood.done()
        endpoint.reads.set()
        await flood
        await until(lambda: len(endpoint.seen) == FLOOD)


FLOOD = 40_000


async def _flood(ws: aiohttp.ClientWebSocketResponse) -> None:
    for _ in range(FLOOD):
        await ws.send_bytes(b"x" * 1000)


def _is_paused(endpoint: Endpoint) -> bool:
    socket: Any = endpoint.socket
    return socket is not None and socket._reader is not None and socket._reader._protocol._reading_paused


async def test_a_message_that_is_too_large_closes_the_socket_with_1009() -> None:
    endpoint = Endpoint()
    async with served(endpoint) as ws:
        await ws.send_bytes(b"x" * 1024)
        assert (await ws.receive()).type is WSMsgType.CLOSE
        assert ws.close_code == 1009
        await endpoint.is_over.wait()
    assert endpoint.seen == []


async def test_what_the_taker_raises_ends_the_reading() -> None:
    endpoint = Endpoint()
    fault = ZeroDivisionError("a defect")

    def fails(data: bytes) -> None:
        raise fault

    endpoint.on_message = fails
    async with served(endpoint) as ws:
        await ws.send_bytes(b"a")
        await endpoint.is_over.wait()
        await ws.send_bytes(b"b")
    assert endpoint.socket is not None
    assert endpoint.socket.fault is fault
    assert endpoint.handed == [b"a"]


async def test_where_nothing_is_handed_over_the_reading_task_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_socket, "hands_over", lambda: False)
    endpoint = Endpoint()
    async with served(endpoint) as ws:
        await ws.send_bytes(b"a")
        await ws.ping()
        await ws.send_bytes(b"b")
        await until(lambda: len(endpoint.received) == 3)
    assert endpoint.handed == []
    assert endpoint.seen == [b"a", b"b"]
