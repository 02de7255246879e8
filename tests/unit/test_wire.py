"""The load's WebSocket client reads what a real server sends, and ends what it does not understand with a reason."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import WSMsgType, web

from api import schema
from benchmarks import wire as wire_module
from benchmarks.peer_child import PeerServer
from benchmarks.wire import Refused, Wire, frame_of, text_frame_of

WITHIN_S = 10.0
SIZES = (0, 1, 125, 126, 65_535, 65_536, 200_000)


class Heard:
    """What a wire heard, in order."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.lost: asyncio.Queue[str] = asyncio.Queue()

    async def frame(self) -> bytes:
        return await asyncio.wait_for(self.frames.get(), WITHIN_S)

    async def end(self) -> str:
        return await asyncio.wait_for(self.lost.get(), WITHIN_S)

    async def connect(self, port: int, path: str = "/socket", **named: str) -> Wire:
        heard = {"on_frame": self.frames.put_nowait, "on_lost": self.lost.put_nowait}
        return await Wire.connect("127.0.0.1", port, path, **heard, **named)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[int]:
    """A port on which aiohttp answers /socket."""
    app = web.Application()
    app.router.add_get("/socket", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def saying(raw: bytes) -> AsyncIterator[int]:
    """A port on which each connection gets these bytes, one at a time; all have ended afterwards."""
    ended: list[asyncio.Task[None]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in raw:
            writer.write(bytes((byte,)))
            await writer.drain()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    def took(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(asyncio.create_task(talk(reader, writer)))

    server = await asyncio.start_server(took, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.wait_for(asyncio.gather(*ended, return_exceptions=True), WITHIN_S)


HELLO = f"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {wire_module._ACCEPT}\r\n\r\n".encode()


async def echo(request: web.Request) -> web.StreamResponse:
    """Says who came, and then what it hears; a ping is asked for by the text `ping`."""
    ws = web.WebSocketResponse(protocols=("hexhail.v1.msgpack", "hexhail.v1.json"), max_msg_size=1 << 20)
    await ws.prepare(request)
    await ws.send_str(f"{ws.ws_protocol} {request.headers.get('Authorization')} {request.remote}")
    async for message in ws:
        if message.type is WSMsgType.BINARY:
            await ws.send_bytes(message.data)
        elif message.data == "bye":
            await ws.close(code=4000, message=b"go")
        else:
            await ws.ping(message.data.encode())
            await ws.send_str("pinged")
    return ws


@pytest.mark.parametrize("size", SIZES)
async def test_a_message_of_any_length_comes_back_as_it_was_sent(size: int) -> None:
    async with serving(echo) as port:
        heard = Heard()
        wire = await heard.connect(port)
        await heard.frame()
        payload = bytes(each % 251 for each in range(size))
        wire.send(payload)
        wire.write(frame_of(payload) * 2)
        assert [await heard.frame() for _ in range(3)] == [payload] * 3
        wire.close()
        await heard.end()


async def test_the_handshake_carries_token_subprotocol_and_source_address() -> None:
    async with serving(echo) as port:
        heard = Heard()
        wire = await heard.connect(port, token="t0ken", subprotocol="hexhail.v1.json", source="127.0.0.3")
        assert await heard.frame() == b"hexhail.v1.json Bearer t0ken 127.0.0.3"
        wire.close()


async def test_pings_are_answered_and_a_goodbye_is_told_with_its_code() -> None:
    async with serving(echo) as port:
        heard = Heard()
        wire = await heard.connect(port)
        await heard.frame()
        wire.send_text(b"are you there")
        assert await heard.frame() == b"pinged"
        wire.write(text_frame_of(b"bye"))
        assert await heard.end() == "closed with 4000"
        assert wire.close_code == 4000
        assert not wire.is_open
        wire.send(b"into the void")


async def test_a_refused_handshake_tells_status_and_when_to_come_back() -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, text="full", headers={"Retry-After": "7"})

    async with serving(refuse) as port:
        heard = Heard()
        with pytest.raises(Refused, match="refused with 503: full") as refused:
            await heard.connect(port)
        assert (refused.value.status, refused.value.retry_after_s) == (503, 7.0)
        assert heard.lost.empty()


async def test_a_server_that_never_answers_is_given_up() -> None:
    async with saying(b"") as port:
        with pytest.raises(TimeoutError):
            await Wire.connect("127.0.0.1", port, "/socket", on_frame=print, on_lost=print, connect_s=0.1)


async def test_frames_are_put_together_however_the_bytes_arrive() -> None:
    raw = b"\x82\x03one" + b"\x82\x7e\x00\x80" + b"x" * 128 + b"\x81\x03two" + b"\x88\x02" + struct.pack("!H", 1001)
    async with saying(HELLO + raw) as port:
        heard = Heard()
        await heard.connect(port)
        assert [await heard.frame() for _ in range(3)] == [b"one", b"x" * 128, b"two"]
        assert await heard.end() == "closed with 1001"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x02\x03one", "fragments"),
        (b"\x80\x03one", "fragments"),
        (b"\xc2\x03one", "extensions"),
        (b"\x82\x83\x00\x00\x00\x00one", "mask"),
        (b"\x82\x7f\x00\x00\x00\x01\x00\x00\x00\x00", "bytes"),
    ],
)
async def test_what_is_not_understood_ends_the_socket_with_a_reason(raw: bytes, why: str) -> None:
    async with saying(HELLO + raw) as port:
        heard = Heard()
        await heard.connect(port)
        assert why in await heard.end()
        assert heard.frames.empty()


async def test_the_bare_server_counts_what_it_decodes_and_ends_with_its_owner() -> None:
    peer = PeerServer()
    await asyncio.to_thread(peer.start)
    try:
        heard = Heard()
        wire = await heard.connect(peer.port)
        position = schema.PositionFrame(seq=1, lat=40.7, lon=-74.0)
        wire.send(msgspec.msgpack.encode(position))
        wire.send(msgspec.msgpack.encode(schema.PositionsFrame([schema.PositionItem(2, 40.7, -74.0)] * 3)))
        while (counts := await asyncio.to_thread(peer.counts))["frames"] < 2:
            await asyncio.sleep(0.01)
        assert counts == {"frames": 2, "positions": 4, "sockets": 1}
        wire.close()
    finally:
        await asyncio.to_thread(peer.stop)
