"""The whole service, built in one function, started, and drained.

`build_service` wires store, feed, replicas, ride desk, announcer, dispatchers
and the HTTP application by role; nothing else makes these.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from api.app import Gate, HasRoutes, build_app
from api.auth import Authenticator
from api.background import Background, StoreWatch
from api.beat import ROUND_S_MAX, keep_beating
from api.driver_stream import DriverStream, Sessions
from api.drivers import DriversApi
from api.engaged import Engaged
from api.events import EventsApi
from api.explanations import ExplanationsApi
from api.fleet_stream import FleetStream
from api.limits import Gauge, raise_open_files
from api.listener import Listener, Lobby, listen
from api.market_states import MarketStatesApi
from api.markets import Markets, build_market
from api.match import MatchApi
from api.match_items import Bounds
from api.nearby import NearbyApi, NearbySearch
from api.operator import OperatorApi
from api.ops import OpsApi, Readiness
from api.path_writer import PathWriter
from api.planes import Plane
from api.positions import PositionFlusher
from api.queues import QueuesApi, QueueWatch
from api.readings import add_readings
from api.rides import RidesApi
from api.sign_on import SignOns
from api.streams import driver_stream, fleet_stream
from api.tags import Tags
from api.telemetry import Metrics
from api.travel import build_travel
from api.trips import TripsApi
from api.webhook_sender import Limits, WebhookSender
from api.webhooks import WebhooksApi
from config.settings import Role, Settings
from geo.feed import Feed, InProcessFeed
from geo.index import DriverIndex
from geo.model import MarketId
from geo.redis_feed import RedisFeed
from geo.warm import warm
from matcher.announcer import Announcer
from matcher.dispatcher import Dispatcher, Keeping
from matcher.hints import Hints, LocalHints, RedisHints
from matcher.rides import RideDesk
from matcher.share import Share
from matcher.sign_ons import SignOnDesk
from matcher.solver import SolverChild, SolverFailed
from matcher.store import Store

log = structlog.stdlib.get_logger(__name__)

#: Open files that are no client's: databases, the solver, logs.
FILES_BESIDE = 128


class Service:
    """One process's part of the service. Made by `build_service`."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        feed: Feed,
        hints: Hints,
        markets: Markets,
        tags: Tags,
        planes: dict[MarketId, Plane],
        announcer: Announcer,
        desk: RideDesk,
        dispatchers: list[Dispatcher],
        solver: SolverChild | None,
        metrics: Metrics,
        share: Share | None = None,
        webhooks: WebhookSender | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.feed = feed
        self.hints = hints
        self.markets = markets
        self.tags = tags
        self.planes = planes
        self.announcer = announcer
        self.desk = desk
        self.dispatchers = dispatchers
        self.metrics = metrics
        self.sessions = Sessions()
        self.queues = QueueWatch(store, announcer, self.sessions)
        self.sign_on_desk = SignOnDesk(store)
        self.sign_ons = SignOns(
            desk=self.sign_on_desk, feed=feed, planes=planes, tags=tags, max_speed_mps=settings.max_speed_mps
        )
        self.sockets = Gauge(settings.sockets_max, "sockets open")
        self.requests = Gauge(settings.requests_waiting_max, "requests under way")
        self.lobby = Lobby()
        self.watch = StoreWatch(store)
        self.background = Background()
        self.engaged = Engaged(store.engaged, metrics=metrics)
        self.paths = PathWriter(store.put_path_parts, metrics)
        self.draining = asyncio.Event()
        self.solver = solver
        self.share = share
        self.webhooks = webhooks
        self.match_solver = SolverChild()  # of requests for a plan, so that no batch waits for them; not started yet
        self._started = False
        self._stream: DriverStream | None = None
        self._fleets: FleetStream | None = None
        self._events: EventsApi | None = None
        add_readings(self)

    # State

    def readiness(self) -> Readiness:
        if self.draining.is_set():
            return Readiness("draining")
        if not self._started:
            return Readiness("starting")
        reasons = tuple(self._reasons())
        return Readiness("degraded" if reasons else "ready", reasons)

    def refusing(self) -> str | None:
        """Why no request is taken now; asked with each of them, so it costs less than `readiness`."""
        if self.draining.is_set():
            return "draining"
        return None if self._started else "starting"

    def _reasons(self) -> list[str]:
        reasons = [] if self.watch.fault is None else [self.watch.fault]
        for market, plane in self.planes.items():
            reasons += [f"positions of {market}: {each}" for each in plane.faults()]
        return reasons

    # Life

    async def start(self) -> None:
        """Starts everything in the background. Neither Redis nor the database needs to be there yet."""
        await asyncio.to_thread(warm)  # before anything is searched: else the loop would wait for a compiler
        if self.settings.database_url is None:
            await self.store.migrate()
        await self.watch.look()
        run = self.background.run
        run("watch", self.watch.run())
        run("announcer", self.announcer.run())
        run("paths", self.paths.run())
        run("beat", keep_beating(lambda: self.sessions, min(ROUND_S_MAX, max(self.settings.ack_interval_s / 4, 0.02))))
        for market, plane in self.planes.items():
            plane.follower.on_new_generation = plane.flusher.republish
            run(f"follower {market}", plane.follower.run())
            run(f"flusher {market}", plane.flusher.run())
            run(f"bootstrap {market}", self._note_bootstrap(plane), once=True)
        if self.solver is not None:
            run("solver", self._warm_solver(), once=True)
        if self.share is not None:
            run("share", self.share.run())
        for dispatcher in self.dispatchers:
            run("dispatcher", dispatcher.run())
        for market in (each.id for each in self.markets if each.zones):
            run(f"queues {market}", self.queues.follow(market))
        if self.webhooks is not None:
            run("webhooks", self.webhooks.run())
        self._started = True

    async def _warm_solver(self) -> None:
        """So that the first batch does not wait for a process to start; it starts another where this one failed."""
        assert self.solver is not None
        try:
            await self.solver.start()
        except SolverFailed as failed:
            log.warning("the solver is not there yet", reason=failed.reason)

    async def _note_bootstrap(self, plane: Plane) -> None:
        await plane.follower.ready()
        plane.is_bootstrapped = True

    async def stop(self) -> None:
        """Drains within `drain_s`: nothing acknowledged is lost, whatever the order of the rest.

        Readiness goes off and new requests get 503; sockets are closed with 1001;
        what is under way is finished; the last positions are published; the
        lease is given back; then the connections are closed.
        """
        until_s = time.monotonic() + self.settings.drain_s
        self.draining.set()
        if self.webhooks is not None:
            self.webhooks.stop()
        for streams in (self._fleets, self._stream, self._events):
            if streams is not None:
                streams.close_all()
        await self._step("dispatchers", self.background.stop(lambda name: name == "dispatcher"), until_s)
        await self._step("requests", self.requests.idle(), until_s)
        await self._step("sockets", self.sockets.idle(), until_s)
        await self._step("sign-ons", self.sign_on_desk.close(), until_s)
        await self._step("desk", self.desk.close(), until_s)
        await self._step("positions", self._last_flush(), until_s)
        await self._step("announcer", self.announcer.close(), until_s)
        if self.webhooks is not None:
            await self._step("webhooks", self.webhooks.close(), until_s)
        await self._step("paths", self.paths.drain(), until_s)  # the last: it may wait for a database that is away
        await self._step("background", self.background.stop(), until_s + 1.0)
        for name, close in self._closers():
            await self._step(name, close(), until_s + 2.0)
        self._started = False

    def _closers(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        closers: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("engaged", self.engaged.close),
            ("match solver", self.match_solver.close),
        ]
        if self.solver is not None:
            closers.append(("solver", self.solver.close))
        providers = [each.travel.provider for each in self.dispatchers if each.travel.provider is not None]
        closers += [("travel times", provider.close) for provider in providers]
        return [*closers, ("hints", self.hints.close), ("feed", self.feed.close), ("store", self.store.close)]

    async def _last_flush(self) -> None:
        for plane in self.planes.values():
            await plane.flusher.flush()

    async def _step(self, name: str, call: Awaitable[Any], until_s: float) -> None:
        """One step of the drain; one that overruns is named, and the others still get their turn."""
        try:
            async with asyncio.timeout(max(0.05, until_s - time.monotonic())):
                await call
        except TimeoutError:
            log.warning("a step of the drain took too long", step=name)

    # The HTTP side

    async def listen(self, host: str, port: int, *, reuse_port: bool = False) -> Listener:
        """Starts to take requests. Raises OSError when the address is taken."""
        return await listen(self.make_app(), self.lobby, host, port, reuse_port=reuse_port)

    def make_app(self) -> web.Application:
        """The application of this service; it serves once `start` has run."""
        assert self.settings.token_secret is not None, "the settings carry a secret (config.secret)"
        authenticator = Authenticator(self.settings.token_secret.get_secret_value().encode())
        gate = Gate(
            authenticator=authenticator,
            refusing=self.refusing,
            requests=self.requests,
            lobby=self.lobby,
            metrics=self.metrics,
            logs_access=self.settings.access_log,
        )
        ops = OpsApi(readiness=self.readiness, metrics=self.metrics)
        return build_app(gate, [ops, *self._parts(authenticator)])

    def _parts(self, authenticator: Authenticator) -> list[HasRoutes]:
        bytes_max = self.settings.max_body_bytes
        self._stream, self._fleets = driver_stream(self, authenticator), fleet_stream(self, authenticator)
        self._events = self._ride_events(authenticator)
        return [
            *self._of_rides(bytes_max),
            self._events,
            self._nearby(bytes_max),
            self._drivers(bytes_max),
            self._stream,
            self._fleets,
            QueuesApi(store=self.store, markets=self.markets),
            WebhooksApi(
                store=self.store.webhooks,
                max_body_bytes=bytes_max,
                private_hosts=self.settings.webhook_private_hosts,
            ),
            self._match_api(),
        ]

    def _of_rides(self, bytes_max: int) -> list[HasRoutes]:
        desk, store, markets = self.desk, self.store, self.markets
        return [
            RidesApi(
                desk=desk,
                store=store,
                markets=markets,
                max_body_bytes=bytes_max,
                max_metadata_bytes=self.settings.max_metadata_bytes,
            ),
            OperatorApi(desk=desk, store=store, markets=markets, planes=self.planes, max_body_bytes=bytes_max),
            MarketStatesApi(desk=desk, store=store, markets=markets, max_body_bytes=bytes_max),
            TripsApi(desk=desk, store=store, max_body_bytes=bytes_max),
            ExplanationsApi(store=store, markets=markets),
        ]

    def _nearby(self, bytes_max: int) -> NearbyApi:
        search = NearbySearch(
            feed=self.feed,
            planes=self.planes,
            engaged=self.engaged,
            tags=self.tags,
            stale_after_s=self.settings.stale_after_s,
        )
        return NearbyApi(search=search, markets=self.markets, tags=self.tags, max_body_bytes=bytes_max)

    def _drivers(self, bytes_max: int) -> DriversApi:
        return DriversApi(
            store=self.store,
            desk=self.desk,
            markets=self.markets,
            tags=self.tags,
            sessions=self.sessions,
            max_body_bytes=bytes_max,
        )

    def _ride_events(self, authenticator: Authenticator) -> EventsApi:
        return EventsApi(
            store=self.store,
            announcer=self.announcer,
            feed=self.feed,
            planes=self.planes,
            markets=self.markets,
            authenticator=authenticator,
            sockets=self.sockets,
            metrics=self.metrics,
            stale_after_s=self.settings.stale_after_s,
        )

    def _match_api(self) -> MatchApi:
        settings = self.settings
        bounds = Bounds(
            rides_max=settings.match_rides_max,
            drivers_max=settings.match_drivers_max,
            cells_max=settings.match_cells_max,
            body_bytes_max=settings.match_body_bytes_max,
            solve_s_max=settings.match_s_max,
            at_once=settings.match_at_once,
        )
        return MatchApi(solver=self.match_solver, markets=self.markets, tags=self.tags, bounds=bounds)


async def build_service(settings: Settings, role: Role) -> Service:
    """Everything this role needs, wired and not yet started. Raises StoreLocked, ValueError for a senseless market."""
    markets = Markets([build_market(each, settings.tags) for each in settings.markets])
    tags = Tags(settings.tags)
    metrics = Metrics()
    if settings.database_url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = await Store.open(
        settings.store_url,
        pool_size=settings.pool_size,
        call_timeout_s=settings.store_timeout_s,
        lease_s=settings.lease_s,
        lives={market.id: market.life for market in markets},
    )
    feed = _feed(settings)
    hints = _hints(settings, markets)
    planes = {market.id: _plane(settings, feed, market.id, metrics) for market in markets}
    announcer = Announcer(store, hints)
    roads = [each.travel_links for each in settings.markets if each.travel == "roads" and each.travel_links]
    solver = SolverChild(roads=roads) if role in ("all", "matcher") else None
    travels = (
        [build_travel(each, market) for each, market in zip(settings.markets, markets, strict=True)] if solver else []
    )
    holder = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"
    share = Share(store, holder, len(planes), lease_s=settings.lease_s) if solver and settings.is_shared else None
    dispatchers = [
        Dispatcher(
            market,
            store,
            planes[market.id].index,
            planes[market.id].follower,
            feed,
            solver,
            announcer,
            holder,
            lease_s=settings.lease_s,
            stale_after_ms=round(settings.stale_after_s * 1000),
            on_batch=metrics.on_batch,
            tag_bits=tags.bits,
            travel=travel,
            keeping=Keeping(settings.batches_kept, settings.batch_inputs_kept),
            share=share,
        )
        for market, travel in travels
        if solver is not None
    ]
    return Service(
        settings,
        store=store,
        feed=feed,
        hints=hints,
        markets=markets,
        tags=tags,
        planes=planes,
        announcer=announcer,
        desk=RideDesk(store, announcer, waiting_max=settings.requests_waiting_max),
        dispatchers=dispatchers,
        solver=solver,
        metrics=metrics,
        share=share,
        webhooks=None if role == "matcher" else _webhooks(settings, store, announcer, markets, metrics),
    )


def _webhooks(
    settings: Settings, store: Store, announcer: Announcer, markets: Markets, metrics: Metrics
) -> WebhookSender:
    limits = Limits(
        attempts_max=settings.webhook_attempts_max,
        backlog_max=settings.webhook_backlog_max,
        private_hosts=settings.webhook_private_hosts,
    )
    return WebhookSender(store.webhooks, announcer, [each.id for each in markets], metrics, limits)


def _feed(settings: Settings) -> Feed:
    sweep_after_ms = round(settings.sweep_after_s * 1000)
    if settings.redis_url is None:
        return InProcessFeed(settings.cell_resolution, sweep_after_ms=sweep_after_ms)
    return RedisFeed(
        settings.redis_url,
        settings.cell_resolution,
        timeout_s=settings.redis_timeout_s,
        sweep_after_ms=sweep_after_ms,
    )


def _hints(settings: Settings, markets: Markets) -> Hints:
    if settings.redis_url is None:
        return LocalHints()
    return RedisHints(settings.redis_url, [each.id for each in markets], timeout_s=settings.redis_timeout_s)


def _plane(settings: Settings, feed: Feed, market: MarketId, metrics: Metrics) -> Plane:
    index = DriverIndex(resolution=settings.cell_resolution, stale_after_ms=round(settings.stale_after_s * 1000))
    flusher = PositionFlusher(
        feed, market, flush_s=settings.flush_ms / 1000, stale_after_s=settings.stale_after_s, metrics=metrics
    )
    return Plane(index, feed.follow(market, index), flusher)


async def serve(
    settings: Settings,
    role: Role,
    *,
    stopping: asyncio.Event,
    reuse_port: bool = False,
    on_started: Callable[[int], None] = lambda port: None,
) -> int:
    """Runs one process's part until `stopping` is set or it fails; 0 after a clean drain, 1 after a failure.

    `on_started` gets the port once requests are taken (0 for a matcher, which has no HTTP side).
    """
    needed = settings.sockets_max + settings.requests_waiting_max + FILES_BESIDE
    if (allowed := raise_open_files(needed)) < needed:
        log.warning("fewer open files are allowed than sockets_max may need", allowed=allowed, needed=needed)
    service = await build_service(settings, role)
    listener: Listener | None = None
    waiters: list[asyncio.Task[bool]] = []
    try:
        await service.start()
        port = 0
        if role != "matcher":
            listener = await service.listen(settings.host, settings.port, reuse_port=reuse_port)
            port = listener.port
        on_started(port)
        waiters = [asyncio.create_task(each.wait()) for each in (stopping, service.background.failed)]
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()
        await service.stop()
        if listener is not None:
            await listener.close()
    return 1 if service.background.failed.is_set() else 0
