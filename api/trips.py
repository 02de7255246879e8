"""/v1/trips: what a driver reports over HTTP. The same commands go over its socket."""

from __future__ import annotations

import re

from aiohttp import web

from api.auth import Identity, Role
from api.codec import BodyDecoder, answer
from api.errors import Problem
from api.rides import done_or_conflict, read_reason
from api.schema import ReasonRequest, rfc3339, ride_out
from api.security import identity_of
from geo.model import DriverId
from matcher.model import Move, TripId
from matcher.outcomes import NotAllowed, NotFound, NotYours
from matcher.rides import RideDesk
from matcher.store import Store

MOVES = {
    "accept": Move.ACCEPT,
    "decline": Move.DECLINE,
    "arrive": Move.ARRIVE,
    "start": Move.START,
    "complete": Move.COMPLETE,
    "cancel": Move.DRIVER_CANCEL,
    "no_show": Move.RIDER_NO_SHOW,
}
_TRIP_ID = re.compile(r"t_[0-9A-HJKMNP-TV-Z]{26}")


class TripsApi:
    def __init__(self, *, desk: RideDesk, store: Store, max_body_bytes: int) -> None:
        self._desk = desk
        self._store = store
        self._max_body_bytes = max_body_bytes
        self._reason_body = BodyDecoder(ReasonRequest)

    def routes(self) -> list[web.RouteDef]:
        return [web.post(f"/v1/trips/{{trip_id}}/{{verb:{'|'.join(MOVES)}}}", self.move)]

    async def move(self, request: web.Request) -> web.Response:
        identity = identity_of(request)
        identity.need(Role.DRIVER, Role.FLEET)
        text = request.match_info["trip_id"]
        if not _TRIP_ID.fullmatch(text):
            raise _trip_unknown()
        trip_id = TripId(text)
        reason = await read_reason(request, self._reason_body, self._max_body_bytes)
        outcome = await self._desk.move_trip(
            trip_id,
            MOVES[request.match_info["verb"]],
            driver_id=await self._driver_of(identity, trip_id),
            reason=reason,
        )
        if isinstance(outcome, NotFound):
            raise _trip_unknown()
        if isinstance(outcome, NotYours):
            raise _not_yours()
        if isinstance(outcome, NotAllowed) and outcome.allowed_at_ms is not None:
            raise _too_early(outcome, outcome.allowed_at_ms)
        return answer(request, ride_out(done_or_conflict(outcome)))

    async def _driver_of(self, identity: Identity, trip_id: TripId) -> DriverId | None:
        """Whose trip it has to be (P11); None for an admin. A trip never changes its driver, so this cannot race."""
        if identity.role is Role.DRIVER:
            return DriverId(identity.subject)
        if identity.is_admin:
            return None
        trip = await self._store.trip(trip_id)
        if trip is None:
            raise _trip_unknown()
        if not identity.may_drive(trip.driver_id):
            raise _not_yours()
        return trip.driver_id


def _trip_unknown() -> Problem:
    return Problem("trip-unknown", "there is no such trip")


def _not_yours() -> Problem:
    return Problem("not-your-trip", "the trip belongs to another driver")


def _too_early(outcome: NotAllowed, at_ms: int) -> Problem:
    at = rfc3339(at_ms)
    members = {
        "state": outcome.ride.state.value,
        "allowed": [each.value for each in outcome.allowed],
        "allowed_at": at,
    }
    return Problem("not-allowed", f"it is too early: allowed from {at} on", members=members)
