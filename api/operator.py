"""/v1/rides/{id}/assign, /release and /complete: what an operator does by hand, with a reason that the history keeps.

An operator's cancellation goes the way of a client's (api.rides). Each command answers a repetition as it answered
the first time.
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from api.auth import Role, is_name
from api.codec import BodyDecoder, answer
from api.errors import Problem, invalid
from api.markets import Markets
from api.planes import Planes
from api.rides import of_operator, read_command, ride_id_of, ride_unknown
from api.schema import ride_out
from api.schema_operator import AssignRequest, BecauseRequest, ReleaseRequest
from api.security import identity_of
from geo.distance import between_m
from geo.model import DriverId, LatLng
from matcher.ids import new_trip_id
from matcher.model import Ride, RideId, TripId
from matcher.policy import Market
from matcher.rides import RideDesk
from matcher.store import Store
from matcher.store_operator import Assignment

#: How long a driver may think who is asked in a market that asks nobody.
OFFER_TTL_MS = 15_000


class OperatorApi:
    def __init__(self, *, desk: RideDesk, store: Store, markets: Markets, planes: Planes, max_body_bytes: int) -> None:
        self._planes = planes
        self._desk = desk
        self._store = store
        self._markets = markets
        self._max_body_bytes = max_body_bytes
        self._assign_body = BodyDecoder(AssignRequest)
        self._release_body = BodyDecoder(ReleaseRequest)
        self._because_body = BodyDecoder(BecauseRequest)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/rides/{ride_id}/assign", self.assign),
            web.post("/v1/rides/{ride_id}/release", self.release),
            web.post("/v1/rides/{ride_id}/complete", self.complete),
        ]

    async def assign(self, request: web.Request) -> web.Response:
        """Gives the ride this driver, in place of the one that it has; one that has a trip takes it as its next."""
        ride_id = _ride_of_admin(request)
        body = await read_command(request, self._assign_body, self._max_body_bytes)
        if not is_name(body.driver_id):
            raise invalid("/driver_id", "a driver's id has 1 to 64 letters, digits and ._:@+-")
        ride, market = await self._ride_and_market(ride_id)
        distance_m = self._away_m(market, DriverId(body.driver_id), ride.pickup)
        new = Assignment(
            ride_id=ride_id,
            driver_id=DriverId(body.driver_id),
            trip_id=new_trip_id(),
            reason=body.reason,
            by=identity_of(request).subject,
            abandon_after_ms=market.abandon_after_ms + await self._ahead_ms(ride),
            offer_ttl_ms=_ttl_ms(market) if body.ask else None,
            pickup_s=float(market.pickup_s(distance_m)),
            distance_m=distance_m,
        )
        outcome = await self._desk.do(partial(self._store.assign_ride, new))
        return answer(request, ride_out(of_operator(outcome, "assign")))

    async def release(self, request: web.Request) -> web.Response:
        """Takes the ride's driver from it; the ride searches on without that one."""
        ride_id = _ride_of_admin(request)
        body = await read_command(request, self._release_body, self._max_body_bytes)
        trip_id = None if body.trip_id is None else TripId(body.trip_id)
        release = partial(self._store.release_ride, ride_id, reason=body.reason, trip_id=trip_id)
        outcome = await self._desk.do(release)
        return answer(request, ride_out(of_operator(outcome, "release")))

    async def complete(self, request: web.Request) -> web.Response:
        """Says for the driver that the ride is completed."""
        ride_id = _ride_of_admin(request)
        reason = (await read_command(request, self._because_body, self._max_body_bytes)).reason
        outcome = await self._desk.do(partial(self._store.complete_ride, ride_id, reason=reason))
        return answer(request, ride_out(of_operator(outcome, "complete")))

    async def _ride_and_market(self, ride_id: RideId) -> tuple[Ride, Market]:
        """Neither place nor market of a ride ever changes, so this cannot race. Raises Problem 404 and 422."""
        ride = await self._store.ride(ride_id)
        if ride is None:
            raise ride_unknown()
        market = self._markets.get(ride.market)
        if market is None:
            raise Problem("no-market", f"this deployment has no market {ride.market} any more")
        return ride, market

    async def _ahead_ms(self, ride: Ride) -> int:
        """How long it is until the pickup of a ride for later: its trip's life counts from then on."""
        return 0 if ride.pickup_at_ms is None else max(0, ride.pickup_at_ms - await self._store.now_ms())

    def _away_m(self, market: Market, driver_id: DriverId, place: LatLng) -> float:
        """How far the driver is from there, as it was seen last; 0 where it was not."""
        fix = self._planes[market.id].index.held(driver_id)
        return 0.0 if fix is None else round(between_m(LatLng(fix.lat, fix.lon), place), 1)


def _ttl_ms(market: Market) -> int:
    return OFFER_TTL_MS if market.life.offer_ttl_ms is None else market.life.offer_ttl_ms


def _ride_of_admin(request: web.Request) -> RideId:
    """The ride's id in the path. Raises Problem 403 for anybody but an admin, and 404 for what cannot be one."""
    identity_of(request).need(Role.ADMIN)
    return ride_id_of(request)
