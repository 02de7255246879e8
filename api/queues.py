"""Queues at places, as drivers and operators see them: a driver's place on its socket, and /v1/markets/{market}/zones.

The market's matcher keeps the queues; here they are read. One read a market serves all the sessions of a process: soon
after something of the market has changed, and every few seconds in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol
from weakref import WeakKeyDictionary

import structlog
from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from api.auth import Role
from api.codec import answer
from api.driver_session import Session
from api.driver_stream import Sessions
from api.errors import Problem
from api.markets import Markets
from api.schema import QueueFrame
from api.security import identity_of
from geo.model import DriverId, MarketId
from matcher.errors import StoreUnavailable
from matcher.said import Said

#: Reads of one market are at least so far apart, and at most so far.
READ_S_MIN = 1.0
READ_S_MAX = 5.0
NO_PLACE = QueueFrame()

log = structlog.stdlib.get_logger(__name__)


class QueueStore(Protocol):
    """What of the store is needed here (see matcher.store.Store)."""

    async def zone_queues(self, market: MarketId) -> dict[str, list[DriverId]]: ...


class MarketListeners(Protocol):
    def market_listener(self, market: MarketId, callback: Callable[[], None]) -> AbstractContextManager[None]: ...


class QueueWatch:
    """Tells the sessions of this process their places; `follow` runs for each market that has zones."""

    def __init__(
        self, store: QueueStore, announcer: MarketListeners, sessions: Sessions, *, read_s_min: float = READ_S_MIN
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._sessions = sessions
        self._read_s_min = read_s_min
        self._said = Said()
        self._changed: dict[MarketId, asyncio.Event] = {}
        self._places: dict[MarketId, Mapping[DriverId, QueueFrame]] = {}  # as last read
        self._told: dict[MarketId, WeakKeyDictionary[Session, QueueFrame]] = {}  # those who stand in a queue

    def greet(self, session: Session, market: MarketId) -> QueueFrame | None:
        """What the welcome of a session in this market says of its driver's place, as far as is known yet."""
        changed = self._changed.get(market)
        if changed is None:
            return None
        changed.set()
        frame = self._places.get(market, {}).get(session.driver_id)
        if frame is not None:
            self._told[market][session] = frame
        return frame

    async def follow(self, market: MarketId) -> None:
        """Reads and tells, until cancelled. A read that fails leaves all as it was told."""
        changed = self._changed[market] = asyncio.Event()
        self._told[market] = WeakKeyDictionary()
        with self._announcer.market_listener(market, changed.set):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(READ_S_MAX):
                        await changed.wait()
                changed.clear()
                if len(self._sessions):
                    await self._read(market)
                else:
                    self._places.pop(market, None)  # old by the time that somebody comes
                await asyncio.sleep(self._read_s_min)

    async def _read(self, market: MarketId) -> None:
        try:
            queues = await self._store.zone_queues(market)
        except StoreUnavailable as fault:
            if self._said.is_news(f"{market} {fault.reason}"):
                log.info("queues could not be read", market=market, reason=fault.reason)
            return
        places = self._places[market] = places_of(queues)
        self._tell(self._told[market], places)

    def _tell(self, told: WeakKeyDictionary[Session, QueueFrame], places: Mapping[DriverId, QueueFrame]) -> None:
        for driver_id, frame in places.items():
            session = self._sessions.of(driver_id)
            if session is not None and told.get(session) != frame:
                told[session] = frame
                session.outbox.queue(frame)
        for session in [each for each in told if each.driver_id not in places]:
            del told[session]
            session.outbox.queue(NO_PLACE)


def places_of(queues: Mapping[str, Sequence[DriverId]]) -> dict[DriverId, QueueFrame]:
    """What each driver of these queues is told."""
    return {
        driver_id: QueueFrame(zone, position, len(waiting))
        for zone, waiting in queues.items()
        for position, driver_id in enumerate(waiting, 1)
    }


class QueuedOut(Struct, frozen=True, gc=False):
    driver_id: str
    position: int


class ZoneOut(Struct, frozen=True):
    """A zone and how many drivers wait there; `drivers` are those that a fleet speaks for, and all for an admin."""

    id: str
    length: int
    keep_s: float
    drivers: list[QueuedOut] | UnsetType = UNSET


class ZonesOut(Struct, frozen=True):
    items: list[ZoneOut]


class QueuesApi:
    def __init__(self, *, store: QueueStore, markets: Markets) -> None:
        self._store = store
        self._markets = markets

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/markets/{market}/zones", self.zones)]

    async def zones(self, request: web.Request) -> web.Response:
        market = self._markets.get(request.match_info["market"])
        if market is None:
            raise Problem("market-unknown", "there is no such market")
        identity = identity_of(request)
        queues = await self._store.zone_queues(market.id) if market.zones else {}
        items = []
        for zone in market.zones:
            waiting = queues.get(zone.id, [])
            own = [QueuedOut(each, place) for place, each in enumerate(waiting, 1) if identity.may_drive(each)]
            names_drivers = identity.role in (Role.ADMIN, Role.FLEET)
            items.append(ZoneOut(zone.id, len(waiting), zone.keep_ms / 1000.0, own if names_drivers else UNSET))
        return answer(request, ZonesOut(items))
