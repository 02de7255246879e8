"""GET /v1/rides/{id}/events: what happens to a ride, as server-sent events.

An event's id is the ride's version, so a client that comes back says which it
saw last and misses none. While a driver is on its way, its position comes in
between, at most once a second and without an id, since the next one replaces
it. The stream ends with the ride.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from api.auth import Authenticator
from api.errors import invalid
from api.limits import Gauge
from api.markets import Markets
from api.planes import Planes
from api.rides import visible_ride
from api.schema import DriverPositionOut, event_out
from api.security import identity_of
from api.telemetry import Metrics
from geo.distance import between_m
from geo.feed import Feed
from geo.model import DriverId, LatLng, Stamp
from matcher.announcer import Announcer
from matcher.listeners import Closed, RideListener
from matcher.model import Ride, RideEvent, RideState
from matcher.policy import Market
from matcher.store import Store

HEARTBEAT_S = 15.0
POSITION_EVERY_S = 1.0
SEND_S_MAX = 10.0
RECONNECT_MS = 2000
#: The driver is on its way, or waits at the pickup.
TRACKED = (RideState.ASSIGNED, RideState.ARRIVED)
_VERSION = re.compile(r"[0-9]{1,9}", re.ASCII)


class EventsApi:
    def __init__(
        self,
        *,
        store: Store,
        announcer: Announcer,
        feed: Feed,
        planes: Planes,
        markets: Markets,
        authenticator: Authenticator,
        sockets: Gauge,
        metrics: Metrics,
        stale_after_s: float,
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._feed = feed
        self._planes = planes
        self._markets = markets
        self._authenticator = authenticator
        self._sockets = sockets
        self._metrics = metrics
        self._stale_after_ms = round(stale_after_s * 1000)
        self._open: set[RideListener] = set()
        self._is_closing = False

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/rides/{ride_id}/events", self.events)]

    def close_all(self) -> None:
        """Ends every stream, also those that are about to open; the clients come back elsewhere and resume."""
        self._is_closing = True
        for listener in self._open:
            listener.close(Closed.GOING_AWAY)

    async def events(self, request: web.Request) -> web.StreamResponse:
        known = known_version(request)
        ride = await visible_ride(request, self._store)
        if ride.state.is_final and known >= ride.version:
            return web.Response(status=204)  # tells a browser's EventSource not to come back
        with self._sockets.one(), self._announcer.ride_listener(ride.ride_id, min(known, ride.version)) as listener:
            self._open.add(listener)
            if self._is_closing:
                listener.close(Closed.GOING_AWAY)
            try:
                return await self._stream(request, ride, listener)
            finally:
                self._open.discard(listener)

    async def _stream(self, request: web.Request, ride: Ride, listener: RideListener) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        tracker = Tracker(ride, self._markets.named(ride.market), self._position)
        try:
            async with asyncio.timeout(SEND_S_MAX):
                await response.prepare(request)
                await response.write(f"retry: {RECONNECT_MS}\n\n".encode())
            await self._pump(request, response, listener, tracker)
            async with asyncio.timeout(SEND_S_MAX):
                await response.write_eof()
        except TimeoutError:
            self._metrics.aborted.add("events")
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has gone; it resumes when it likes
        return response

    async def _pump(
        self, request: web.Request, response: web.StreamResponse, listener: RideListener, tracker: Tracker
    ) -> None:
        """Sends what there is to send until the ride ends, the service stops or the token expires.

        Raises TimeoutError when the client does not read.
        """
        identity = identity_of(request)
        sent_at_s = time.monotonic()
        while not listener.ended and (left_s := self._authenticator.seconds_left(identity)) > 0:
            quiet_s = HEARTBEAT_S - (time.monotonic() - sent_at_s)
            event = await listener.next(max(0.0, min(quiet_s, tracker.wait_s(time.monotonic()), left_s)))
            if event is not None:
                tracker.follow(event)
                data = _framed(event.type, msgspec.json.encode(event_out(event)), event.version)
            else:
                data = tracker.look(time.monotonic())
                if not data and time.monotonic() - sent_at_s >= HEARTBEAT_S:
                    data = b":\n\n"
            if data:
                async with asyncio.timeout(SEND_S_MAX):
                    await response.write(data)
                sent_at_s = time.monotonic()

    def _position(self, driver_id: DriverId, market: Market) -> tuple[Stamp, LatLng, int] | None:
        """Where the driver is and how old that is (ms); None when it is not known or stale (P5)."""
        index = self._planes[market.id].index
        fix, age_ms = index.held(driver_id), index.age_ms(driver_id, self._feed.now_ms())
        if fix is None or age_ms is None or age_ms > self._stale_after_ms:
            return None
        return fix.stamp, LatLng(fix.lat, fix.lon), age_ms


Locate = Callable[[DriverId, Market], tuple[Stamp, LatLng, int] | None]


class Tracker:
    """Decides when a stream tells where the driver is. Times are seconds of a monotonic clock."""

    def __init__(self, ride: Ride, market: Market, locate: Locate) -> None:
        self._pickup = ride.pickup
        self._market = market
        self._locate = locate
        self._driver_id = ride.trip.driver_id if ride.trip is not None and ride.state in TRACKED else None
        self._due_at_s = 0.0
        self._told: Stamp | None = None

    def follow(self, event: RideEvent) -> None:
        driver_id = event.driver_id if event.state in TRACKED else None
        if driver_id != self._driver_id:
            self._driver_id, self._told = driver_id, None

    def wait_s(self, now_s: float) -> float:
        """How long until it is worth looking."""
        return HEARTBEAT_S if self._driver_id is None else max(0.0, self._due_at_s - now_s)

    def look(self, now_s: float) -> bytes:
        """The event that tells of a new position; empty when there is none, or it is too early."""
        if self._driver_id is None or now_s < self._due_at_s:
            return b""
        self._due_at_s = now_s + POSITION_EVERY_S
        found = self._locate(self._driver_id, self._market)
        if found is None or found[0] == self._told:
            return b""
        self._told, point, age_ms = found
        pickup_s = float(self._market.pickup_s(between_m(point, self._pickup)))
        out = DriverPositionOut(self._driver_id, point.lat, point.lon, round(age_ms / 1000, 1), round(pickup_s, 1))
        return _framed("driver", msgspec.json.encode(out))


def _framed(name: str, data: bytes, version: int | None = None) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2.5). JSON has no line breaks."""
    first = b"" if version is None else f"id: {version}\n".encode()
    return first + f"event: {name}\n".encode() + b"data: " + data + b"\n\n"


def known_version(request: web.BaseRequest) -> int:
    """The last version the client saw, 0 for none. Raises Problem 422."""
    text = request.headers.get("Last-Event-ID") or request.query.get("last_event_id") or "0"
    if not _VERSION.fullmatch(text):
        raise invalid("?last_event_id", "must be the version that an event of this ride carried as its id")
    return int(text)
