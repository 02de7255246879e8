"""GET /v1/fleet/stream: the WebSocket of a fleet's gateway, from the handshake to its end.

The handshake costs the database nothing: drivers sign on by frames. A gateway
that does not read is first read from no more, and then given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from aiohttp import WSMsgType, web

from api.auth import Authenticator, Identity, Role
from api.codec import query_int
from api.driver_session import (
    CLOSE_GOING_AWAY,
    CLOSE_S_MAX,
    CLOSE_WRONG_TYPE,
    HEARTBEAT_S,
    SEND_S_MAX,
    SETTLE_S_MAX,
)
from api.driver_stream import (
    POSITION_INTERVAL_S,
    RECONNECT_JITTER_S,
    SUBPROTOCOLS,
    WRITE_BUFFER_BYTES,
    Expiry,
    QueueOf,
    Sessions,
    abort,
    abort_if_unsent,
    check_handshake,
)
from api.fleet_driver import COMMANDS_MAX, FleetFormat, Surroundings
from api.fleet_session import Gateway
from api.limits import Gauge
from api.markets import Markets
from api.path_writer import PathWriter
from api.planes import Planes
from api.schema_fleet import POSITIONS_MAX, SIGN_ON_MAX, FleetWelcome, LimitsOut
from api.security import identity_of
from api.sign_on import SignOns
from api.tags import Tags
from api.telemetry import Metrics
from geo.model import MAX_EXACT_INT, DriverId
from matcher.announcer import Announcer
from matcher.model import DriverStatus
from matcher.outcomes import StatusSet
from matcher.policy import Market
from matcher.rides import RideDesk
from matcher.store import Store

#: Of one gateway, and of a process with all its gateways' and own drivers' sockets.
DRIVERS_MAX = 10_000
SESSIONS_MAX = 50_000
FRAME_BYTES_MAX = 524_288
FINISH_S_MAX = 10.0


class FleetStream:
    """The sockets' handler, with what it needs of the service."""

    def __init__(
        self,
        *,
        store: Store,
        desk: RideDesk,
        announcer: Announcer,
        sign_ons: SignOns,
        planes: Planes,
        paths: PathWriter,
        markets: Markets,
        tags: Tags,
        authenticator: Authenticator,
        sockets: Gauge,
        sessions: Sessions,
        metrics: Metrics,
        queue_of: QueueOf,
        drivers_max: int = DRIVERS_MAX,
    ) -> None:
        self._store = store
        self._desk = desk
        self._announcer = announcer
        self._sign_ons = sign_ons
        self._planes = planes
        self._paths = paths
        self._markets = markets
        self._tags = tags
        self._authenticator = authenticator
        self._sockets = sockets
        self._sessions = sessions
        self._metrics = metrics
        self._queue_of = queue_of
        self._drivers_max = drivers_max
        self._formats = {each: FleetFormat(each) for each in SUBPROTOCOLS}
        self._gateways: set[Gateway] = set()

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/fleet/stream", self.stream)]

    def __iter__(self) -> Iterator[Gateway]:
        return iter(list(self._gateways))

    async def stream(self, request: web.Request) -> web.StreamResponse:
        identity = identity_of(request)
        identity.need(Role.FLEET)
        form = self._formats[check_handshake(request)]
        market = self._markets.named(request.query.get("market"))
        instance = query_int(request, "instance", time.time_ns() // 1_000_000, least=0, most=MAX_EXACT_INT)
        with self._sockets.one():
            gateway = Gateway(form, self._surroundings(market, instance), identity.may_drive)
            gateway.outbox.answer(self._welcome(market))
            self._gateways.add(gateway)
            try:
                return await self._serve(request, gateway, identity)
            finally:
                self._gateways.discard(gateway)

    def _surroundings(self, market: Market, instance: int) -> Surroundings:
        return Surroundings(
            market=market,
            sign_on=lambda driver_id, online: self._sign_ons.sign_on(driver_id, market, instance, online=online),
            track=lambda signed: self._sign_ons.track(signed, market, instance),
            listen=self._announcer.driver_listener,
            announce=self._announcer.announce,
            move_trip=self._desk.move_trip,
            set_status=self._set_status,
            note_lost=self._store.note_lost_of,
            queue_of=lambda session: self._queue_of(session, market.id),
            flusher=self._planes[market.id].flusher,
            keep_path=self._paths.keep,
            sessions=self._sessions,
            tags=self._tags,
            metrics=self._metrics,
            clock=time.monotonic,
            drivers_max=self._drivers_max,
            has_room=lambda: len(self._sessions) < SESSIONS_MAX,
        )

    async def _set_status(self, driver_id: DriverId, status: DriverStatus, *, epoch: int) -> StatusSet | None:
        return await self._desk.do(partial(self._store.set_status, driver_id, status, epoch=epoch))

    def _welcome(self, market: Market) -> FleetWelcome:
        limits = LimitsOut(self._drivers_max, POSITIONS_MAX, SIGN_ON_MAX, COMMANDS_MAX, FRAME_BYTES_MAX)
        return FleetWelcome(market.id, limits, POSITION_INTERVAL_S, RECONNECT_JITTER_S)

    async def _serve(self, request: web.Request, gateway: Gateway, identity: Identity) -> web.StreamResponse:
        ws = web.WebSocketResponse(
            protocols=SUBPROTOCOLS,
            compress=False,
            max_msg_size=FRAME_BYTES_MAX,
            heartbeat=HEARTBEAT_S,
            timeout=CLOSE_S_MAX / 2,  # for the gateway's own close frame
            writer_limit=0,  # every send waits while the socket does not read
            decode_text=False,
        )
        expiry = Expiry(self._authenticator, identity, gateway)
        try:
            await ws.prepare(request)
            if request.transport is not None:
                request.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
            await GatewaySocket(ws, gateway, lambda: abort(request), self._metrics).run()
        finally:
            expiry.cancel()
            abort_if_unsent(request)
            await gateway.finish(FINISH_S_MAX)
        return ws

    def close_all(self) -> None:
        """Tells every gateway to come back elsewhere."""
        for gateway in self:
            gateway.close(CLOSE_GOING_AWAY, "the service is going away")


class GatewaySocket:
    """Reads and writes until either side ends it. `abort` drops the connection at once."""

    def __init__(
        self, ws: web.WebSocketResponse[Any], gateway: Gateway, abort: Callable[[], None], metrics: Metrics
    ) -> None:
        self._ws = ws
        self._gateway = gateway
        self._abort = abort
        self._metrics = metrics
        self._send_one = ws.send_bytes if gateway.form.is_binary else self._send_text

    async def run(self) -> None:
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await asyncio.wait([reader, writer], return_when=asyncio.FIRST_COMPLETED)
            if self._gateway.closing is None:
                writer.cancel()  # else it is closing the socket, within its limits
            await asyncio.wait([writer])
        finally:
            reader.cancel()  # it may be waiting for room
            writer.cancel()
            await asyncio.wait([reader, writer])
            if not self._ws.closed:
                self._abort()
        for each in (reader, writer):
            if not each.cancelled() and (error := each.exception()) is not None:
                raise error

    async def _read(self) -> None:
        gateway, kind = self._gateway, self._gateway.form.message_type
        while True:
            message = await self._ws.receive()
            if message.type is kind:
                gateway.on_frame(message.data)
                await gateway.outbox.room()
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                self._metrics.bad_frames.add("wrong-type")
                gateway.close(CLOSE_WRONG_TYPE, "text on a msgpack socket, or binary on a JSON one")
            else:
                return

    async def _write(self) -> None:
        gateway = self._gateway
        try:
            while gateway.closing is None:
                await gateway.outbox.wake.wait()
                await self._send(gateway.outbox.take())
            code, reason = gateway.closing
            if code == CLOSE_GOING_AWAY:
                await gateway.settle(SETTLE_S_MAX)
            while rest := gateway.outbox.take():
                await self._send(rest)
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._ws.close(code=code, message=reason.encode())
        except TimeoutError:
            self._metrics.aborted.add("fleet")
            self._abort()
        except ConnectionError:
            self._abort()  # the gateway has gone; the reader sees it too

    async def _send(self, frames: list[bytes]) -> None:
        """Raises TimeoutError when the gateway does not read."""
        if self._gateway.outbox.overflowed:
            raise TimeoutError
        if frames:
            async with asyncio.timeout(SEND_S_MAX):
                for data in frames:
                    await self._send_one(data)

    def _send_text(self, data: bytes) -> Awaitable[None]:
        return self._ws.send_frame(data, WSMsgType.TEXT)
