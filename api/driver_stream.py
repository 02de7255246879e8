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
from typing import Any, Protocol

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
from api.prompt_socket import PromptSocket
from api.schema import QueueFrame, WelcomeFrame, rfc3339, ride_out
from api.security import identity_of
from api.session_socket import SessionSocket
from api.sign_on import SignOns
from api.tags import Tags
from api.telemetry import Metrics
from geo.model import MAX_EXACT_INT, DriverId, MarketId
from matcher.announcer import Announcer
from matcher.errors import StoreUnavailable
from matcher.listeners import DriverListener
from matcher.model import DriverStatus
from matcher.outcomes import SignedOn, StatusSet
from matcher.policy import Market
from matcher.rides import RideDesk
from matcher.store import Store

SUBPROTOCOLS = ("hexhail.v1.msgpack", "hexhail.v1.json")
POSITION_INTERVAL_S = 4.0
RECONNECT_JITTER_S = 5.0
GOING_AWAY = "the service is going away"
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
        max_frame_bytes: int,
        ack_interval_s: float,
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
        self._max_frame_bytes = max_frame_bytes
        self._ack_interval_s = ack_interval_s
        self._formats = {each: Format(each) for each in SUBPROTOCOLS}
        self._is_closing = False

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
            ack_interval_s=self._ack_interval_s,
        )
        online = query_choice(request, "online", ("true", "false")) != "false"
        listening = self._announcer.driver_listener(driver_id, session.on_ride, session.on_row)
        with self._sockets.one(), listening as listener:
            signed = await self._sign_ons.sign_on(driver_id, market, instance, online=online)
            welcome = _welcome(signed, market, self._queue_of(session, market.id), self._ack_interval_s)
            session.signed_on(self._sign_ons.track(signed, market, instance), signed, welcome, listener)
            self._announcer.announce([signed.hint])  # so that an older session hears of its end, wherever it is
            del signed, welcome  # else they would be kept for as long as the socket lasts
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

    async def _serve(self, request: web.Request, session: Session, identity: Identity) -> web.StreamResponse:
        self._sessions.add(session)
        if self._is_closing:
            session.close(CLOSE_GOING_AWAY, GOING_AWAY)
        ws = PromptSocket(
            session.form.message_type,
            session.on_frame,
            protocols=SUBPROTOCOLS,
            max_msg_size=self._max_frame_bytes,
            timeout=CLOSE_S_MAX / 2,  # for the client's own close frame
            writer_limit=0,  # every send waits while the socket does not read
        )
        expiry = Expiry(self._authenticator, identity, session)
        try:
            await ws.prepare(request)
            if request.transport is not None:
                request.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
            await SessionSocket(session, ws, lambda: abort(request)).run()
        finally:
            expiry.cancel()
            self._sessions.discard(session)
            abort_if_unsent(request)
            await session.finish(within_s=10.0)
        return ws

    def close_all(self) -> None:
        """Tells every driver to come back elsewhere, also those whose sign-on is still under way."""
        self._is_closing = True
        for session in self._sessions:
            session.close(CLOSE_GOING_AWAY, GOING_AWAY)


class Closes(Protocol):
    """A driver's session, or a gateway's."""

    def close(self, code: int, reason: str) -> None: ...


class Expiry:
    """Closes a session when its token expires."""

    def __init__(self, authenticator: Authenticator, identity: Identity, session: Closes) -> None:
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


def _welcome(signed: SignedOn, market: Market, queue: QueueFrame | None, ack_interval_s: float) -> WelcomeFrame:
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
        ack_interval_s=ack_interval_s,
    )


def abort(request: web.Request) -> None:
    """Drops the connection at once."""
    transport: Any = request.transport
    if transport is not None:
        transport.abort()


def abort_if_unsent(request: web.Request) -> None:
    """A closed transport waits for its client to read what is left, however long that takes."""
    transport: Any = request.transport
    if transport is not None and transport.get_write_buffer_size() > 0:
        transport.abort()
