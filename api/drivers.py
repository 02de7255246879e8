"""/v1/drivers: a driver's row and its suspension."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec
from aiohttp import web

from api.auth import Identity, is_name
from api.codec import BodyDecoder, answer, speaks_msgpack
from api.driver_stream import Sessions
from api.errors import Problem, invalid
from api.limits import read_body
from api.markets import Markets
from api.rides import BODY_S_MAX
from api.schema import DriverRequest, SuspendedOut, SuspendRequest, driver_out
from api.security import identity_of
from api.tags import Tags, known_tags
from geo.model import DriverId
from matcher.model import Driver, DriverStatus
from matcher.outcomes import StatusSet, SuspendTrips
from matcher.rides import RideDesk
from matcher.store import Store

T = TypeVar("T", bound=msgspec.Struct)

#: Paths under /v1/drivers that are no driver's.
RESERVED = frozenset({"nearby"})


class DriversApi:
    def __init__(
        self,
        *,
        store: Store,
        desk: RideDesk,
        markets: Markets,
        tags: Tags,
        sessions: Sessions,
        max_body_bytes: int,
    ) -> None:
        self._store = store
        self._desk = desk
        self._markets = markets
        self._tags = tags
        self._sessions = sessions
        self._max_body_bytes = max_body_bytes
        self._driver_body = BodyDecoder(DriverRequest)
        self._suspend_body = BodyDecoder(SuspendRequest)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/drivers/{driver_id}", self.get),
            web.put("/v1/drivers/{driver_id}", self.put),
            web.post("/v1/drivers/{driver_id}/suspend", self.suspend),
            web.post("/v1/drivers/{driver_id}/unsuspend", self.unsuspend),
        ]

    async def get(self, request: web.Request) -> web.Response:
        driver_id = identity_of(request).need_driver(request.match_info["driver_id"])
        driver = await self._store.driver(driver_id)
        if driver is None:
            raise _driver_unknown()
        return answer(request, driver_out(driver))

    async def put(self, request: web.Request) -> web.Response:
        identity = identity_of(request)
        driver_id = identity.need_driver(request.match_info["driver_id"])
        if not is_name(driver_id) or driver_id in RESERVED:
            raise Problem("invalid", "a driver's id has 1 to 64 letters, digits and ._:@+-")
        body = await self._read(request, self._driver_body)
        put = partial(
            self._store.put_driver,
            driver_id,
            vehicle_class=self._known_class(body.vehicle_class),
            seats=body.seats,
            tags=known_tags(body.tags, self._tags.names, "/tags"),
            status=await self._status(identity, driver_id, body.status),
            lifts_suspension=identity.is_admin,
        )
        outcome = await self._desk.do(put)
        self._tell_session(outcome.driver)
        if outcome.driver.status is DriverStatus.SUSPENDED and body.status is not None and not identity.is_admin:
            raise _still_suspended()  # since we looked
        return answer(request, driver_out(outcome.driver))

    async def suspend(self, request: web.Request) -> web.Response:
        """Takes the driver off the road, whichever process holds its socket."""
        driver_id = self._by_admin(request)
        body = await self._read(request, self._suspend_body)
        suspend = partial(self._store.suspend, driver_id, trips=SuspendTrips(body.trips), reason=body.reason)
        outcome = await self._changed(suspend)
        return answer(request, SuspendedOut(driver_out(outcome.driver), outcome.finishing))

    async def unsuspend(self, request: web.Request) -> web.Response:
        """The driver may sign on again; it is offline until it does. One that is not suspended stays as it is."""
        driver_id = self._by_admin(request)
        driver = await self._store.driver(driver_id)
        if driver is None:
            raise _driver_unknown()
        if driver.status is DriverStatus.SUSPENDED:
            sign_off = partial(self._store.set_status, driver_id, DriverStatus.OFFLINE, epoch=None)
            driver = (await self._changed(sign_off)).driver
        return answer(request, driver_out(driver))

    def _by_admin(self, request: web.Request) -> DriverId:
        """The driver in the path. Raises Problem 403 for anybody but an admin."""
        if not identity_of(request).is_admin:
            raise Problem("forbidden", "only an admin may suspend a driver, or lift that")
        return DriverId(request.match_info["driver_id"])

    async def _read(self, request: web.Request, decoder: BodyDecoder[T]) -> T:
        is_msgpack = speaks_msgpack(request)
        data = await read_body(request, bytes_max=self._max_body_bytes, timeout_s=BODY_S_MAX)
        return decoder.decode(data, is_msgpack=is_msgpack)

    async def _changed(self, call: Callable[[], Awaitable[StatusSet | None]]) -> StatusSet:
        """Raises Problem 404 for an unknown driver."""
        outcome = await self._desk.do(call)
        if outcome is None:
            raise _driver_unknown()
        self._tell_session(outcome.driver)
        return outcome

    def _known_class(self, vehicle_class: str) -> str:
        """A class that no market serves would never be matched. Raises Problem 422."""
        known = sorted({each for market in self._markets for each in market.classes})
        if vehicle_class not in known:
            raise invalid("/class", f"the markets have the classes {', '.join(known)}")
        return vehicle_class

    async def _status(self, identity: Identity, driver_id: DriverId, asked: str | None) -> DriverStatus | None:
        """Only an admin suspends a driver, or lifts a suspension. Raises Problem 403."""
        if asked is None or identity.is_admin:
            return None if asked is None else DriverStatus(asked)
        if asked == DriverStatus.SUSPENDED:
            raise Problem("forbidden", "only an admin may suspend a driver")
        present = await self._store.driver(driver_id)
        if present is not None and present.status is DriverStatus.SUSPENDED:
            raise _still_suspended()
        return DriverStatus(asked)

    def _tell_session(self, driver: Driver) -> None:
        """The driver's socket, if it is one of this process, takes the new row over at once; others by the hint."""
        session = self._sessions.of(driver.driver_id)
        if session is not None:
            session.on_row(driver)


def _still_suspended() -> Problem:
    return Problem("driver-suspended", "the driver is suspended; only an admin may lift that")


def _driver_unknown() -> Problem:
    return Problem("driver-unknown", "there is no such driver")
