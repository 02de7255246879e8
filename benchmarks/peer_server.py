"""The bare aiohttp application that the service is measured against: python -m benchmarks.peer_server PORT

Each handler does what a sensible developer would write who wants nothing but speed: it decodes what comes with the
same msgspec structs, and answers with as many bytes as the service does. It checks no identity, keeps nothing,
publishes nothing, asks nobody and sends no pings (aiohttp's heartbeat costs some work a message). Loop, server settings
and the collector's thresholds are the service's own.
`GET /counts` says what was decoded, so that a run can check that nothing was lost.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from api import schema, schema_fleet
from api.listener import BACKLOG, KEEPALIVE_S, LINGERING_S
from benchmarks.running import run

SUBPROTOCOLS = ("hexhail.v1.msgpack", "hexhail.v1.json")
MSGPACK = "application/msgpack"
FRAME_BYTES_MAX = 1 << 20
BYTES_MAX = 1 << 20
NOT_YET = "2026-01-01T00:00:00.000Z"

_PositionFrames = schema.PositionFrame | schema.PositionsFrame


class Peer:
    """The handlers, and what they counted."""

    def __init__(self) -> None:
        self.frames = 0
        self.positions = 0
        self.sockets = 0
        self._answers: dict[int, bytes] = {}
        self._from_msgpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder(_PositionFrames).decode
        self._from_json: Callable[[bytes], Any] = msgspec.json.Decoder(_PositionFrames).decode
        self._from_fleet: Callable[[bytes], Any] = msgspec.msgpack.Decoder(schema_fleet.FleetPositions).decode
        self._json = msgspec.json.Encoder().encode
        self._as_json = msgspec.json.Decoder(schema.RideRequest).decode, self._json
        self._as_msgpack = msgspec.msgpack.Decoder(schema.RideRequest).decode, msgspec.msgpack.Encoder().encode

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/socket", self.socket),
            web.get("/nearby", self.nearby),
            web.post("/rides", self.rides),
            web.get("/counts", self.counts),
        ]

    async def socket(self, request: web.Request) -> web.StreamResponse:
        """Decodes the frames of the driver's socket and counts them; with `?frames=fleet` those of a gateway's."""
        ws = web.WebSocketResponse(
            protocols=SUBPROTOCOLS,
            compress=False,
            max_msg_size=FRAME_BYTES_MAX,
            decode_text=False,
        )
        await ws.prepare(request)
        is_json = ws.ws_protocol == SUBPROTOCOLS[1]
        decode, kind = (self._from_json, WSMsgType.TEXT) if is_json else (self._from_msgpack, WSMsgType.BINARY)
        if request.query.get("frames") == "fleet":
            decode = self._from_fleet
        self.sockets += 1
        try:
            async for message in ws:
                if message.type is kind:
                    self._count(decode(message.data))
        finally:
            self.sockets -= 1
        return ws

    def _count(self, frame: Any) -> None:
        self.frames += 1
        self.positions += 1 if type(frame) is schema.PositionFrame else len(frame.items)

    async def nearby(self, request: web.Request) -> web.Response:
        """So many bytes as JSON, or as msgpack where that is accepted."""
        size = int(request.query["bytes"])
        if not 2 <= size <= BYTES_MAX:
            raise web.HTTPUnprocessableEntity
        body = self._answers.get(size)
        if body is None:
            body = self._answers[size] = b'"' + b"x" * (size - 2) + b'"'
        is_msgpack = "msgpack" in request.headers.get("Accept", "")
        return web.Response(body=body, content_type="application/msgpack" if is_msgpack else "application/json")

    async def rides(self, request: web.Request) -> web.Response:
        """Takes a ride request apart and answers 201 with a ride as the service would, in the request's format."""
        data, media = await request.read(), request.content_type
        decode, encode = self._as_msgpack if media == MSGPACK else self._as_json
        return web.Response(status=201, body=encode(_ride(decode(data))), content_type=media)

    async def counts(self, request: web.Request) -> web.Response:
        counts = {"frames": self.frames, "positions": self.positions, "sockets": self.sockets}
        return web.Response(body=self._json(counts), content_type="application/json")


def _ride(asked: schema.RideRequest) -> schema.RideOut:
    dropoff = asked.dropoff
    return schema.RideOut(
        id="0190f5fe-7c00-7a00-8000-000000000000",
        state="requested",
        version=1,
        market="new-york",
        pickup=schema.PointOut(asked.pickup.lat, asked.pickup.lon),
        dropoff=None if dropoff is None else schema.PointOut(dropoff.lat, dropoff.lon),
        seats=asked.seats,
        vehicle_class=asked.vehicle_class,
        metadata=asked.metadata,
        requested_at=NOT_YET,
        deadline_at=NOT_YET,
        ended_at=None,
        end_reason=None,
        trip=None,
        tags=asked.tags,
    )


async def serve(port: int) -> None:
    """Serves on the loopback until SIGTERM or Ctrl-C; says its port on standard output."""
    stopping = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopping.set)
    app = web.Application()
    app.add_routes(Peer().routes())
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGERING_S,
        auto_decompress=False,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG)
    await site.start()
    print(f"listening on {runner.addresses[0][1]}", flush=True)
    await stopping.wait()
    await runner.cleanup()


if __name__ == "__main__":
    run(serve(int(sys.argv[1])))
