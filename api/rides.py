"""/v1/rides: asking for a ride, looking at it, cancelling it.

Handlers decode, call one verb, encode. A client sees its own rides; another's
answers 404 like one that does not exist, so that ids don't leak (P11).
"""

from __future__ import annotations

import re

import msgspec
from aiohttp import web

from api.auth import Identity, Role
from api.codec import (
    BodyDecoder,
    answer,
    body_hash,
    check_metadata,
    query_choice,
    query_int,
    speaks_msgpack,
)
from api.errors import Problem, invalid
from api.limits import read_body
from api.markets import Markets, check_plausible
from api.schema import ReasonRequest, RidePage, RideRequest, ride_out
from api.security import identity_of
from api.tags import known_tags
from matcher.ids import new_ride_id
from matcher.model import NewRide, Ride, RideId, RideState
from matcher.outcomes import CommandOutcome, Done, KeyReused, NotAllowed, Superseded
from matcher.policy import Market
from matcher.rides import RideDesk
from matcher.store import Store

PAGE_MAX = 200
PAGE_DEFAULT = 50
BODY_S_MAX = 10.0
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_RIDE_ID = re.compile(r"r_[0-9A-HJKMNP-TV-Z]{26}")


class RidesApi:
    def __init__(
        self, *, desk: RideDesk, store: Store, markets: Markets, max_body_bytes: int, max_metadata_bytes: int
    ) -> None:
        self._desk = desk
        self._store = store
        self._markets = markets
        self._max_body_bytes = max_body_bytes
        self._max_metadata_bytes = max_metadata_bytes
        self._ride_body = BodyDecoder(RideRequest)
        self._reason_body = BodyDecoder(ReasonRequest)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/rides", self.request),
            web.get("/v1/rides", self.list),
            web.get("/v1/rides/{ride_id}", self.get),
            web.post("/v1/rides/{ride_id}/cancel", self.cancel),
        ]

    async def request(self, request: web.Request) -> web.Response:
        identity = identity_of(request)
        identity.need(Role.CLIENT)
        key = idempotency_key(request)
        is_msgpack = speaks_msgpack(request)
        data = await read_body(request, bytes_max=self._max_body_bytes, timeout_s=BODY_S_MAX)
        body = self._ride_body.decode(data, is_msgpack=is_msgpack)
        outcome = await self._desk.request(self._new_ride(identity, body, key))
        if isinstance(outcome, KeyReused):
            detail = "this Idempotency-Key was sent with another body within the last day"
            raise Problem("idempotency-key-reused", detail)
        headers = {"Location": f"/v1/rides/{outcome.ride.ride_id}"}
        if outcome.repeated:
            headers["Idempotency-Replayed"] = "true"
        return answer(request, ride_out(outcome.ride), status=201, headers=headers)

    def _new_ride(self, identity: Identity, body: RideRequest, key: str | None) -> NewRide:
        """Checks what the market has a say in. Raises Problem 422."""
        check_metadata(body.metadata, bytes_max=self._max_metadata_bytes)
        pickup = body.pickup.to_model()
        dropoff = None if body.dropoff is None else body.dropoff.to_model()
        market = self._markets.at(pickup, "/pickup")
        if dropoff is not None:
            check_plausible(dropoff, "/dropoff")
        if body.seats > market.seats_max:
            raise invalid("/seats", f"at most {market.seats_max} seats in this market")
        if body.vehicle_class not in market.classes:
            raise invalid("/class", f"this market has the classes {', '.join(market.classes)}")
        tags = known_tags(body.tags, market.tags, "/tags")
        return NewRide(
            ride_id=new_ride_id(),
            client_id=identity.client_id,
            market=market.id,
            pickup=pickup,
            dropoff=dropoff,
            seats=body.seats,
            vehicle_class=body.vehicle_class,
            deadline_ms=deadline_ms(body.deadline_s, market),
            metadata=body.metadata,
            idempotency_key=key,
            # In whichever order they were asked for, and however often: it is the same request (P3).
            body_hash=body_hash(msgspec.structs.replace(body, tags=list(tags)), younger=("tags",)),
            tags=tags,
        )

    async def list(self, request: web.Request) -> web.Response:
        identity = identity_of(request)
        identity.need(Role.CLIENT)
        state = query_choice(request, "state", tuple(each.value for each in RideState))
        limit = query_int(request, "limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)
        cursor = request.query.get("cursor")
        if cursor is not None and not _RIDE_ID.fullmatch(cursor):
            raise invalid("?cursor", "is not one that this service gave")
        rides = await self._store.rides(
            None if identity.is_admin else identity.client_id,
            state=None if state is None else RideState(state),
            before=cursor,
            limit=limit + 1,
        )
        following = rides[limit - 1].ride_id if len(rides) > limit else None
        return answer(request, RidePage([ride_out(each) for each in rides[:limit]], following))

    async def get(self, request: web.Request) -> web.Response:
        return answer(request, ride_out(await visible_ride(request, self._store)))

    async def cancel(self, request: web.Request) -> web.Response:
        identity = identity_of(request)
        identity.need(Role.CLIENT)
        ride_id = ride_id_of(request)
        reason = await read_reason(request, self._reason_body, self._max_body_bytes)
        outcome = await self._desk.cancel(
            ride_id, client_id=None if identity.is_admin else identity.client_id, reason=reason or "cancelled_by_client"
        )
        if isinstance(outcome, Done | NotAllowed):
            return answer(request, ride_out(done_or_conflict(outcome)))
        raise ride_unknown()


async def read_reason(request: web.Request, decoder: BodyDecoder[ReasonRequest], bytes_max: int) -> str | None:
    """The reason in the body of a command, which may be empty."""
    is_msgpack = "Content-Type" in request.headers and request.body_exists and speaks_msgpack(request)
    data = await read_body(request, bytes_max=bytes_max, timeout_s=BODY_S_MAX)
    return decoder.decode(data, is_msgpack=is_msgpack).reason if data else None


def done_or_conflict(outcome: CommandOutcome) -> Ride:
    """The ride as the command left it. Raises Problem 409 with the present state and what is allowed now."""
    if isinstance(outcome, Done):
        return outcome.ride
    if isinstance(outcome, NotAllowed):
        state = outcome.ride.trip.state if outcome.ride.trip else outcome.ride.state
        members = {"state": outcome.ride.state.value, "allowed": [each.value for each in outcome.allowed]}
        raise Problem("not-allowed", f"it is {state.value} now", members=members)
    assert isinstance(outcome, Superseded)
    raise Problem("superseded", "a newer session of the driver has taken over")


def deadline_ms(asked_s: float | None, market: Market) -> int:
    """How long the ride may search. Raises Problem 422 beyond what the market allows."""
    if asked_s is None:
        return market.deadline_default_ms
    asked_ms = max(1, round(asked_s * 1000))
    if asked_ms > market.deadline_max_ms:
        raise invalid("/deadline_s", f"at most {market.deadline_max_ms / 1000:g} s in this market")
    return asked_ms


def idempotency_key(request: web.Request) -> str | None:
    """The Idempotency-Key header. Raises Problem 422 when it is not 1 to 255 printable ASCII characters."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise Problem("invalid", "the Idempotency-Key must be 1 to 255 printable ASCII characters")
    return key


def ride_unknown() -> Problem:
    return Problem("ride-unknown", "there is no such ride")


def ride_id_of(request: web.Request) -> RideId:
    """The ride's id in the path. Raises Problem 404 for what cannot be one, without asking the store."""
    text = request.match_info["ride_id"]
    if not _RIDE_ID.fullmatch(text):
        raise ride_unknown()
    return RideId(text)


async def visible_ride(request: web.Request, store: Store) -> Ride:
    """The ride in the path, if this client may see it (P11). Raises Problem 403 or 404."""
    identity = identity_of(request)
    identity.need(Role.CLIENT)
    ride = await store.ride(ride_id_of(request))
    if ride is None or not (identity.is_admin or ride.client_id == identity.client_id):
        raise ride_unknown()
    return ride
