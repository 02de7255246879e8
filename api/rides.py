"""/v1/rides: asking for a ride, now or for later, looking at it, giving it another destination, cancelling it.

Handlers decode, call one verb, encode. A client sees its own rides; another's
answers 404 like one that does not exist, so that ids don't leak (P11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

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
from api.schema import Point, ReasonRequest, RidePage, RideRequest, ride_out
from api.schema_rides import ride_detail_out
from api.security import identity_of
from api.tags import known_tags
from matcher.ids import new_ride_id
from matcher.model import Actor, Move, NewRide, Ride, RideId, RideState, transition_of
from matcher.outcomes import (
    LOST_DRIVER_GONE,
    AssignOutcome,
    CommandOutcome,
    Done,
    KeyReused,
    MarketPaused,
    NotAllowed,
    NotAssignable,
    Requested,
    RequestOutcome,
    Superseded,
)
from matcher.policy import Market
from matcher.rides import RideDesk
from matcher.store import Store

PAGE_MAX = 200
PAGE_DEFAULT = 50
BODY_S_MAX = 10.0
#: A pickup this long ago is as good as now: clocks differ, and requests take their time.
PAST_MS_MAX = 60_000
#: Of a ride's changes, as many are shown as the newest.
HISTORY_MAX = 200
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
#: Fields that rides of earlier versions did not have (see body_hash).
YOUNGER_FIELDS = ("tags", "pickup_at")
_RIDE_ID = re.compile(r"r_[0-9A-HJKMNP-TV-Z]{26}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
T = TypeVar("T", bound=msgspec.Struct)


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
        self._point_body = BodyDecoder(Point)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/rides", self.request),
            web.get("/v1/rides", self.list),
            web.get("/v1/rides/{ride_id}", self.get),
            web.post("/v1/rides/{ride_id}/destination", self.redirect),
            web.post("/v1/rides/{ride_id}/cancel", self.cancel),
        ]

    async def request(self, request: web.Request) -> web.Response:
        identity = identity_of(request)
        identity.need(Role.CLIENT)
        key = idempotency_key(request)
        is_msgpack = speaks_msgpack(request)
        data = await read_body(request, bytes_max=self._max_body_bytes, timeout_s=BODY_S_MAX)
        body = self._ride_body.decode(data, is_msgpack=is_msgpack)
        outcome = requested(await self._outcome_of(*self._new_ride(identity, body, key)))
        headers = {"Location": f"/v1/rides/{outcome.ride.ride_id}"}
        if outcome.repeated:
            headers["Idempotency-Replayed"] = "true"
        return answer(request, ride_out(outcome.ride), status=201, headers=headers)

    async def _outcome_of(self, new: NewRide, market: Market) -> RequestOutcome:
        if new.pickup_at_ms is None:
            return await self._desk.request(new)
        now_ms = await self._store.now_ms()
        if new.pickup_at_ms - now_ms > market.schedule_ahead_s * 1000:
            refused = invalid("/pickup_at", _too_far_ahead(market))
        elif now_ms - new.pickup_at_ms > PAST_MS_MAX:
            refused = invalid("/pickup_at", "is in the past")
        else:
            return await self._desk.request(new)
        # What was right when it was first asked for gets its first answer, however late the retry (P3).
        first = await self._store.answered_before(new)
        if first is None:
            raise refused
        return first

    def _new_ride(self, identity: Identity, body: RideRequest, key: str | None) -> tuple[NewRide, Market]:
        """Checks what the market has a say in, all but when the ride is to be. Raises Problem 422."""
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
        pickup_at = None if body.pickup_at is None else whole_ms(body.pickup_at)
        # However it was said, it is the same request (P3): tags are a set, and a time is one in every zone.
        same = msgspec.structs.replace(body, tags=list(tags), pickup_at=pickup_at)
        new = NewRide(
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
            body_hash=body_hash(same, younger=YOUNGER_FIELDS),
            tags=tags,
            pickup_at_ms=None if pickup_at is None else (pickup_at - _EPOCH) // timedelta(milliseconds=1),
            lead_ms=round(market.schedule_lead_s * 1000),
        )
        return new, market

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
        ride = await visible_ride(request, self._store)
        path = None if ride.trip is None else await self._store.trip_path(ride.trip.trip_id)
        known = max(0, ride.version - HISTORY_MAX)
        events = await self._store.events_after({ride.ride_id: known}, limit=HISTORY_MAX)
        return answer(request, ride_detail_out(ride, path, events, is_cut=known > 0))

    async def redirect(self, request: web.Request) -> web.Response:
        """Another destination; the same one again changes nothing."""
        identity = identity_of(request)
        identity.need(Role.CLIENT)
        ride_id = ride_id_of(request)
        dropoff = (await read_command(request, self._point_body, self._max_body_bytes)).to_model()
        check_plausible(dropoff, "/lat")
        client_id, actor = (None, Actor.OPERATOR) if identity.is_admin else (identity.client_id, Actor.RIDER)
        redirect = partial(self._store.redirect_ride, ride_id, dropoff, client_id=client_id, actor=actor)
        return answer(request, ride_out(of_ride(await self._desk.do(redirect))))

    async def cancel(self, request: web.Request) -> web.Response:
        """By its client before the ride has begun; by an operator, who says why, as long as it has not ended."""
        identity = identity_of(request)
        identity.need(Role.CLIENT)
        ride_id = ride_id_of(request)
        reason = await read_reason(request, self._reason_body, self._max_body_bytes)
        if not identity.is_admin:
            reason = reason or "cancelled_by_client"
            outcome = await self._desk.cancel(ride_id, client_id=identity.client_id, reason=reason)
            return answer(request, ride_out(of_ride(outcome)))
        if reason is None:
            raise invalid("/reason", "is needed: an operator says why")
        cancel = partial(self._store.cancel_ride, ride_id, client_id=None, reason=reason, actor=Actor.OPERATOR)
        return answer(request, ride_out(of_operator(await self._desk.do(cancel), "cancel")))


def requested(outcome: RequestOutcome) -> Requested:
    """The ride that stands. Raises Problem 409 or 422 where none was made."""
    if isinstance(outcome, Requested):
        return outcome
    if isinstance(outcome, KeyReused):
        detail = "this Idempotency-Key was sent with another body within the last day"
        raise Problem("idempotency-key-reused", detail)
    assert isinstance(outcome, MarketPaused)  # what is not available was raised
    because = "" if outcome.reason is None else f": {outcome.reason}"
    detail = f"the market {outcome.market} takes no rides for now{because}"
    raise Problem("market-paused", detail, members={"market": outcome.market, "reason": outcome.reason})


def whole_ms(at: datetime) -> datetime:
    """The same time in UTC, to the millisecond. Raises Problem 422 for one in no century of ours."""
    if not _EPOCH.year <= at.year < 9999:
        raise invalid("/pickup_at", "is no time at which a ride can be")
    at = at.astimezone(UTC)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _too_far_ahead(market: Market) -> str:
    if market.schedule_ahead_s <= 0.0:
        return "this market takes no rides for later"
    return f"at most {market.schedule_ahead_s:g} s from now in this market"


async def read_command(request: web.Request, decoder: BodyDecoder[T], bytes_max: int) -> T:
    """The body of a command; none at all says as much as an empty object. Raises Problem 400, 413, 415 or 422."""
    is_msgpack = request.body_exists and speaks_msgpack(request)
    data = await read_body(request, bytes_max=bytes_max, timeout_s=BODY_S_MAX)
    return decoder.decode(data, is_msgpack=is_msgpack) if data else decoder.decode(b"{}", is_msgpack=False)


async def read_reason(request: web.Request, decoder: BodyDecoder[ReasonRequest], bytes_max: int) -> str | None:
    """The reason in the body of a command, which may be empty."""
    return (await read_command(request, decoder, bytes_max)).reason


def of_ride(outcome: CommandOutcome) -> Ride:
    """The ride as a client's command left it. Raises Problem 404, another's included (P11), and 409."""
    if isinstance(outcome, Done | NotAllowed):
        return done_or_conflict(outcome)
    raise ride_unknown()


#: What an operator may command of a ride, where the table of transitions has one of these moves.
OPERATOR_COMMANDS: Mapping[str, tuple[Move, ...]] = {
    "assign": (Move.ASSIGN, Move.SEARCH, Move.WITHDRAW),
    "release": (Move.WITHDRAW,),
    "complete": (Move.OPERATOR_COMPLETE,),
    "cancel": (Move.OPERATOR_CANCEL,),
}


def commands_allowed(ride: Ride) -> list[str]:
    """What an operator may do about the ride as it is now."""
    trip = None if ride.live_trip is None else ride.live_trip.state
    return [
        command
        for command, moves in OPERATOR_COMMANDS.items()
        if any(transition_of(move, ride.state, trip) for move in moves)
    ]


def of_operator(outcome: AssignOutcome | CommandOutcome, command: str) -> Ride:
    """The ride as an operator's command left it. Raises Problem 404, and 409 with what is allowed instead."""
    if isinstance(outcome, Done):
        return outcome.ride
    if isinstance(outcome, NotAllowed | NotAssignable):
        state = outcome.ride.state.value
        if isinstance(outcome, NotAssignable):
            detail = "the driver is not there for it" if outcome.why == LOST_DRIVER_GONE else "the driver has no place"
            raise Problem("driver-unavailable", detail, members={"why": outcome.why, "state": state})
        allowed = [each for each in commands_allowed(outcome.ride) if each != command]
        raise Problem("not-allowed", f"it is {state} now", members={"state": state, "allowed": allowed})
    raise ride_unknown()


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
