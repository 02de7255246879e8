"""GET /v1/drivers/{id}/stream: a driver's WebSocket, from the handshake to its end.

Everything that can be refused is refused before the handshake, as an ordinary
problem. One driver has one session: the newest wins, within this process at
once, across processes by the hint of its sign-on, and in any case by the epoch
that the store hands out there (P7).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import structlog
from aiohttp import web

from api.auth import Authenticator, Identity
from api.codec import query_choice, query_int
from api.driver_session import (
    CLOSE_GOING_AWAY,
    CLOSE_S_MAX,
    CLOSE_SUPERSEDED,
    CLOSE_TOKEN_EXPIRED,
    Format,
    Session,
)
from api.errors import Problem
from api.limits import Gauge
from api.markets import Markets
from api.path_writer import PathWriter
from api.planes import Planes
from api.positions import Track
from api.schema import QueueFrame, WelcomeFrame, rfc3339, ride_out
from api.security import identity_of
from api.tags import Tags
from api.telemetry import Metrics
from geo.feed import Feed, FeedUnavailable
from geo.model import MAX_EXACT_INT, DriverId, MarketId, Removal, Stamp
from matcher.announcer import Announcer
from matcher.errors import StoreUnavailable
from matcher.listeners import DriverListener
from matcher.model import DriverStatus
from matcher.outcomes import SignedOn, StatusSet
from matcher.policy import Market
from matcher.rides import RideDesk
from matcher.store import Store

SUBPROTOCOLS = ("hexhail.v1.msgpack", "hexhail.v1.json")
HEARTBEAT_S = 20.0
POSITION_INTERVAL_S = 4.0
RECONNECT_JITTER_S = 5.0
WRITE_BUFFER_BYTES = 16_384
#: The event loop's timers don't reach as far as a token may.
TIMER_S_MAX = 86_400.0

log = structlog.stdlib.get_logger(__name__)

#: The place in a queue that a session's welcome tells of.
QueueOf = Callable[[Session, MarketId], QueueFrame | None]


class Sessions:
    """The sessions of this process, one a driver at most."""

    def __init__(self) -> None:
        self._by_driver: dict[DriverId, Session] = {}

    def __len__(self) -> int:
        return len(self._by_driver)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_driver.values()))

    def of(self, driver_id: DriverId) -> Session | None:
        return self._by_driver.get(driver_id)

    def add(self, session: Session) -> None:
        """The session of the larger epoch stays; the other is told that it was superseded."""
        held = self._by_driver.get(session.driver_id)
        if held is not None and held.epoch > session.epoch:
            session.supersede()
            return
        if held is not None:
            held.supersede()
        self._by_driver[session.driver_id] = session

    def discard(self, session: Session) -> None:
        if self._by_driver.get(session.driver_id) is session:
            del self._by_driver[session.driver_id]


class DriverStream:
    """The socket's handler, with what it needs of the service."""

    def __init__(
        self,
        *,
        store: Store,
        desk: RideDesk,
        announcer: Announcer,
        feed: Feed,
        planes: Planes,
        paths: PathWriter,
        markets: Markets,
        tags: Tags,
        authenticator: Authenticator,
        sockets: Gauge,
        sessions: Sessions,
        metrics: Metrics,
        queue_of: QueueOf,
        max_frame_bytes: int,
        max_speed_mps: float,
    ) -> None:
        self._store = store
        self._desk = desk
        self._announcer = announcer
        self._feed = feed
        self._planes = planes
        self._paths = paths
        self._markets = markets
        self._tags = tags
        self._authenticator = authenticator
        self._sockets = sockets
        self._sessions = sessions
        self._metrics = metrics
        self._queue_of = queue_of
        self._max_frame_bytes = max_frame_bytes
        self._max_speed_mps = max_speed_mps
        self._formats = {each: Format(each) for each in SUBPROTOCOLS}

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/drivers/{driver_id}/stream", self.stream)]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        identity = identity_of(request)
        driver_id = identity.need_driver(request.match_info["driver_id"])
        form = self._formats[check_handshake(request)]
        market = self._markets.named(request.query.get("market"))
        instance = query_int(request, "instance", time.time_ns() // 1_000_000, least=0, most=MAX_EXACT_INT)
        session = Session(
            driver_id,
            form,
            move_trip=self._desk.move_trip,
            set_status=self._set_status,
            flusher=self._planes[market.id].flusher,
            keep_path=self._paths.keep,
            tags=self._tags,
            metrics=self._metrics,
            clock=time.monotonic,
        )
        online = query_choice(request, "online", ("true", "false")) != "false"
        listening = self._announcer.driver_listener(driver_id, session.on_ride, session.on_row)
        with self._sockets.one(), listening as listener:
            signed = await self._sign_on(driver_id, market, instance, online=online)
            welcome = _welcome(signed, market, self._queue_of(session, market.id))
            session.signed_on(self._track(signed, market, instance), signed, welcome, listener)
            self._announcer.announce([signed.hint])  # so that an older session hears of its end, wherever it is
            try:
                return await self._serve(request, session, identity)
            finally:
                await self._note_lost(session, listener, market)

    async def _set_status(self, driver_id: DriverId, status: DriverStatus, *, epoch: int) -> StatusSet | None:
        return await self._desk.do(partial(self._store.set_status, driver_id, status, epoch=epoch))

    async def _note_lost(self, session: Session, listener: DriverListener, market: Market) -> None:
        """An offer that nobody can answer here goes back after a grace, unless the driver signs on again.

        Where drivers are asked, also one that is on its way here, or still to be made to the driver's last position.
        """
        is_superseded = session.closing is not None and session.closing[0] == CLOSE_SUPERSEDED
        is_gone = session.closing is None and session.track.available
        may_be_asked = is_gone and market.life.offer_ttl_ms is not None
        if is_superseded or not (listener.has_offer or may_be_asked):
            return
        try:
            await self._store.note_lost(session.driver_id, epoch=session.epoch)
        except StoreUnavailable as fault:
            log.info("a lost socket could not be noted: its offer ends at its own time", reason=fault.reason)

    async def _sign_on(self, driver_id: DriverId, market: Market, instance: int, *, online: bool) -> SignedOn:
        """A new epoch for this driver (P7). Raises Problem 403 or 404."""
        # Only where there are several markets does it matter where the driver was.
        before = await self._store.driver(driver_id) if len(self._planes) > 1 else None
        signed = await self._store.sign_on(driver_id, market.id, online=online)
        if signed is None:
            raise Problem("driver-unknown", f"put the driver first: PUT /v1/drivers/{driver_id}")
        if signed.driver.status is DriverStatus.SUSPENDED:
            raise Problem("driver-suspended", "the driver is suspended")
        left = None if before is None or before.market == market.id else before.market
        if left is not None and left in self._planes:
            await self._leave_market(left, Stamp(signed.driver.epoch, instance, 0), driver_id)
        return signed

    async def _leave_market(self, market: MarketId, stamp: Stamp, driver_id: DriverId) -> None:
        """A driver is found in one market only (P6); were this to fail, the old position goes stale by itself."""
        try:
            await self._feed.publish(market, (), [Removal(driver_id, stamp)])
        except FeedUnavailable as error:
            log.info("a position stays behind in the market that its driver left", reason=str(error))

    async def _serve(self, request: web.Request, session: Session, identity: Identity) -> web.StreamResponse:
        self._sessions.add(session)
        ws = web.WebSocketResponse(
            protocols=SUBPROTOCOLS,
            compress=False,
            max_msg_size=self._max_frame_bytes,
            heartbeat=HEARTBEAT_S,
            timeout=CLOSE_S_MAX / 2,  # for the client's own close frame
            writer_limit=0,  # every send waits while the socket does not read
            decode_text=False,
        )
        expiry = Expiry(self._authenticator, identity, session)
        try:
            await ws.prepare(request)
            if request.transport is not None:
                request.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
            await session.run(ws, lambda: _abort(request))
        finally:
            expiry.cancel()
            self._sessions.discard(session)
            _abort_if_unsent(request)
            await session.finish(within_s=10.0)
        return ws

    def _track(self, signed: SignedOn, market: Market, instance: int) -> Track:
        driver = signed.driver
        track = Track(
            driver.driver_id,
            epoch=driver.epoch,
            instance=instance,
            vehicle_class=driver.vehicle_class,
            seats=driver.seats,
            area=market.area,
            max_speed_mps=self._max_speed_mps,
            tags=self._tags.mask(driver.tags),
            available=driver.status is DriverStatus.ONLINE,
        )
        index, now_ms = self._planes[market.id].index, self._feed.now_ms()
        last = index.held(driver.driver_id, now_ms)
        if last is not None and index.fresh([driver.driver_id], now_ms)[0]:
            track.follow(last, time.monotonic())
        return track

    def close_all(self) -> None:
        """Tells every driver to come back elsewhere."""
        for session in self._sessions:
            session.close(CLOSE_GOING_AWAY, "the service is going away")


class Expiry:
    """Closes a session when its token expires."""

    def __init__(self, authenticator: Authenticator, identity: Identity, session: Session) -> None:
        self._authenticator = authenticator
        self._identity = identity
        self._session = session
        self._timer = self._arm()

    def _arm(self) -> asyncio.TimerHandle:
        left_s = self._authenticator.seconds_left(self._identity)
        return asyncio.get_running_loop().call_later(min(max(left_s, 0.0), TIMER_S_MAX), self._check)

    def _check(self) -> None:
        if self._authenticator.seconds_left(self._identity) <= 0:
            self._session.close(CLOSE_TOKEN_EXPIRED, "the token has expired")
        else:
            self._timer = self._arm()

    def cancel(self) -> None:
        self._timer.cancel()


def check_handshake(request: web.Request) -> str:
    """The subprotocol that the client would rather have. Raises Problem 400 or 426."""
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise Problem("upgrade-required", "open a WebSocket here", headers={"Upgrade": "websocket"})
    for header in request.headers.getall("Sec-WebSocket-Protocol", []):
        for name in header.split(","):
            if name.strip() in SUBPROTOCOLS:
                return name.strip()
    raise Problem("subprotocol-required", f"offer one of {' or '.join(SUBPROTOCOLS)}")


def _welcome(signed: SignedOn, market: Market, queue: QueueFrame | None) -> WelcomeFrame:
    return WelcomeFrame(
        driver_id=signed.driver.driver_id,
        market=market.id,
        epoch=signed.driver.epoch,
        status=signed.driver.status.value,
        rides=[ride_out(each) for each in signed.rides],
        position_interval_s=POSITION_INTERVAL_S,
        reconnect_jitter_s=RECONNECT_JITTER_S,
        status_code=signed.driver.status_code,
        now=rfc3339(signed.now_ms),
        queue=queue,
    )


def _abort(request: web.Request) -> None:
    transport: Any = request.transport
    if transport is not None:
        transport.abort()


def _abort_if_unsent(request: web.Request) -> None:
    """A closed transport waits for its client to read what is left, however long that takes."""
    transport: Any = request.transport
    if transport is not None and transport.get_write_buffer_size() > 0:
        transport.abort()
