"""A small service that speaks the wire and fails on command, for what a sound service cannot be made to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from api import schema

AT = "2026-01-01T00:00:00.000Z"


#: When the offers of this service end: half a minute after AT, its time at every welcome.
OFFER_ENDS_AT = "2026-01-01T00:00:30.000Z"


def ride(
    ride_id: str = "r_1", *, state: str = "searching", version: int = 1, driver: str | None = None
) -> schema.RideOut:
    trip = None
    if driver is not None:
        trip_state, ends_at = ("offered", OFFER_ENDS_AT) if state == "offered" else ("accepted", None)
        trip = schema.TripOut(
            "t_1", driver, trip_state, 60.0, 400.0, AT, None, None, None, None, "now", expires_at=ends_at
        )
    point = schema.PointOut(40.7, -73.9)
    return schema.RideOut(ride_id, state, version, "m", point, point, 1, "standard", {}, AT, AT, None, None, trip)


def event(version: int, state: str) -> bytes:
    data = msgspec.json.encode(schema.EventOut("r_1", version, state, state, None, None, None, AT))
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (version, state.encode(), data)


class WireService:
    """`faults` are taken one a request: a status to answer with, "drop" to answer nothing, "late" to do
    the work and then drop the connection."""

    def __init__(self) -> None:
        self.url = ""
        self.faults: list[Any] = []
        self.requests: list[web.Request] = []
        self.rides_by_key: dict[str, schema.RideOut] = {}
        self.streams: list[list[bytes]] = []
        self.last_event_ids: list[str] = []
        self.frames: list[schema.UpFrame] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.welcome_rides: list[schema.RideOut] = []
        self.welcome_queue: schema.QueueFrame | None = None
        self.welcome_after_s: list[float] = []
        self.refuse_sockets: int | None = None
        self.on_frame: Callable[[web.WebSocketResponse, schema.UpFrame], Any] = self.acknowledge
        self.pings = 0

    async def fault(self, request: web.Request) -> web.StreamResponse | None:
        self.requests.append(request)
        if not self.faults:
            return None
        fault = self.faults.pop(0)
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "late":
            return None
        body = json.dumps({"code": "overloaded", "title": "t", "detail": "come again", "status": fault})
        return web.Response(
            status=fault, text=body, content_type="application/problem+json", headers={"Retry-After": "0"}
        )

    async def post_ride(self, request: web.Request) -> web.StreamResponse:
        late = self.faults[:1] == ["late"]
        if (answer := await self.fault(request)) is not None:
            return answer
        key = request.headers["Idempotency-Key"]
        replayed = key in self.rides_by_key
        made = self.rides_by_key.setdefault(key, ride(f"r_{len(self.rides_by_key) + 1}"))
        if late:
            assert request.transport is not None
            request.transport.abort()
        headers = {"Idempotency-Replayed": "true"} if replayed else {}
        return web.Response(
            body=msgspec.json.encode(made), status=201, content_type="application/json", headers=headers
        )

    async def list_rides(self, request: web.Request) -> web.StreamResponse:
        start = int(request.query.get("cursor", "0"))
        limit = int(request.query["limit"])
        items = [ride(f"r_{number}") for number in range(start, min(start + limit, 5))]
        following = str(start + limit) if start + limit < 5 else None
        return web.Response(
            body=msgspec.json.encode(schema.RidePage(items, following)), content_type="application/json"
        )

    async def events(self, request: web.Request) -> web.StreamResponse:
        if (answer := await self.fault(request)) is not None:
            return answer
        self.last_event_ids.append(request.headers["Last-Event-ID"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in self.streams.pop(0):
            await response.write(part)
        if not self.streams:
            return response
        assert request.transport is not None
        request.transport.abort()
        return response

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.refuse_sockets is not None:
            return web.Response(status=self.refuse_sockets, headers={"Retry-After": "0"})
        socket = web.WebSocketResponse(protocols=("hexhail.v1.msgpack",), compress=False, autoping=False)
        await socket.prepare(request)
        self.sockets.append(socket)
        if self.welcome_after_s:
            await asyncio.sleep(self.welcome_after_s.pop(0))
        welcome = schema.WelcomeFrame(
            "d1",
            "m",
            len(self.sockets),
            "online",
            self.welcome_rides,
            1.0,
            0.05,
            now=AT,
            queue=self.welcome_queue,
        )
        await self.send(socket, welcome)
        async for message in socket:
            if message.type is WSMsgType.PONG:
                self.pings += 1
            if message.type is WSMsgType.BINARY:
                frame = msgspec.msgpack.decode(message.data, type=schema.UpFrame)
                self.frames.append(frame)
                await self.on_frame(socket, frame)
        return socket

    async def send(self, socket: web.WebSocketResponse, frame: schema.DownFrame) -> None:
        await socket.send_bytes(msgspec.msgpack.encode(frame))

    async def acknowledge(self, socket: web.WebSocketResponse, frame: schema.UpFrame) -> None:
        if isinstance(frame, schema.PositionFrame):
            await self.send(socket, schema.AckFrame(frame.seq))
        elif isinstance(frame, schema.TripFrame):
            await self.send(socket, schema.DoneFrame(ride=ride(), ref=frame.ref))


@asynccontextmanager
async def running() -> AsyncIterator[WireService]:
    service = WireService()
    app = web.Application()
    app.add_routes(
        [
            web.post("/v1/rides", service.post_ride),
            web.get("/v1/rides", service.list_rides),
            web.get("/v1/rides/{id}/events", service.events),
            web.get("/v1/drivers/{id}/stream", service.stream),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = runner.addresses[0]
    service.url = f"http://127.0.0.1:{address[1]}"
    try:
        yield service
    finally:
        for socket in service.sockets:
            await asyncio.wait_for(socket.close(), 2.0)
        await runner.cleanup()
