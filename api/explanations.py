"""/v1/rides/{id}/explanation and /v1/batches: why this driver, why not yet, what a batch cost against greedy (P12).

Everything was written beside the decision; nothing is decided or worked out
anew here. A client sees its own rides' explanations and the numbers of all
batches; a batch's whole input, which names rides and drivers of everybody, is
for admins (P11).
"""

from __future__ import annotations

import re

from aiohttp import web

from api.auth import Role
from api.codec import MSGPACK, answer, query_int
from api.errors import Problem, invalid
from api.markets import Markets
from api.rides import PAGE_DEFAULT, PAGE_MAX, visible_ride
from api.schema_explanations import (
    BatchPage,
    BatchRefOut,
    ExplanationOut,
    WaitingOut,
    alternatives_out,
    batch_out,
    batch_ref_of_record,
    batch_ref_of_trip,
    by_hand_out,
    chosen_out,
    earlier_trip_out,
    paused_out,
    scheduled_out,
    undecided_out,
    waiting_out,
)
from api.security import identity_of
from geo.model import MarketId
from matcher.model import Ride, RideState, Trip
from matcher.outcomes import MarketState, RideWait
from matcher.store import Store

#: Of a ride that was declined more often than this, the newest trips are shown.
TRIPS_MAX = 100
_BATCH_ID = re.compile(r"b_[0-9A-HJKMNP-TV-Z]{26}")


class ExplanationsApi:
    def __init__(self, *, store: Store, markets: Markets) -> None:
        self._store = store
        self._markets = markets

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/rides/{ride_id}/explanation", self.explain),
            web.get("/v1/batches", self.batches),
            web.get("/v1/batches/{batch_id}/input", self.batch_input),
        ]

    async def explain(self, request: web.Request) -> web.Response:
        ride = await visible_ride(request, self._store)
        chosen = chosen_trip(ride)
        trips = await self._store.trips_of(ride.ride_id, limit=TRIPS_MAX)
        batch, waiting = (batch_ref_of_trip(chosen), None) if chosen else await self._waiting(ride)
        is_admin = identity_of(request).is_admin
        out = ExplanationOut(
            ride_id=ride.ride_id,
            state=ride.state.value,
            market=ride.market,
            batch=batch,
            by_hand=None if chosen is None else by_hand_out(chosen),
            chosen=None if chosen is None else chosen_out(chosen),
            alternatives=[] if chosen is None else alternatives_out(chosen, names_rivals=is_admin),
            waiting=waiting,
            trips=[earlier_trip_out(each) for each in earlier_trips(trips, chosen)],
        )
        return answer(request, out)

    async def _waiting(self, ride: Ride) -> tuple[BatchRefOut | None, WaitingOut | None]:
        """Why the ride has no driver, and the batch that left it so where its record is still kept."""
        if ride.state is RideState.SCHEDULED:
            return None, scheduled_out(ride.queued_at_ms)
        since_ms = searching_since_ms(ride)
        if ride.state is RideState.SEARCHING and (paused := await self._paused(ride.market)):
            return None, paused_out(paused, since_ms)
        wait = of_this_search(await self._store.ride_wait(ride.ride_id), since_ms)
        if wait is None:
            window_s = self._window_s(ride.market)
            return None, undecided_out(since_ms, window_s=window_s, ended=ride.state.is_final)
        record = await self._store.batch(wait.batch_id)
        return None if record is None else batch_ref_of_record(record), waiting_out(wait, since_ms)

    async def _paused(self, name: MarketId) -> MarketState | None:
        """The pause of the market, where it is paused now."""
        states = await self._store.market_states()
        return next((each for each in states if each.market == name and each.is_paused), None)

    def _window_s(self, name: MarketId) -> float | None:
        """The longest time to the next batch; None for a market that this deployment has no more."""
        market = self._markets.get(name)
        if market is None:
            return None
        return market.window_s_max if market.adaptive_window else market.window_s

    async def batches(self, request: web.Request) -> web.Response:
        identity_of(request).need(Role.CLIENT)
        market = None if (name := request.query.get("market")) is None else self._markets.named(name).id
        limit = query_int(request, "limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)
        cursor = request.query.get("cursor")
        if cursor is not None and not _BATCH_ID.fullmatch(cursor):
            raise invalid("?cursor", "is not one that this service gave")
        found = await self._store.batches(market, before=cursor, limit=limit + 1)
        following = found[limit - 1].batch_id if len(found) > limit else None
        return answer(request, BatchPage([batch_out(each) for each in found[:limit]], following))

    async def batch_input(self, request: web.Request) -> web.Response:
        identity_of(request).need(Role.ADMIN)
        batch_id = request.match_info["batch_id"]
        if not _BATCH_ID.fullmatch(batch_id) or await self._store.batch(batch_id) is None:
            raise Problem("batch-unknown", "there is no such batch, or it is no longer kept")
        data = await self._store.batch_input(batch_id)
        if data is None:
            raise Problem("input-not-kept", "only the newest batches' inputs are kept, and only while not too large")
        headers = {"Content-Disposition": f'attachment; filename="{batch_id}.msgpack"'}
        return web.Response(body=data, content_type=MSGPACK, headers=headers)


def chosen_trip(ride: Ride) -> Trip | None:
    """The trip that serves the ride, or that it ended with; None where it searches, or ended searching."""
    trip = ride.trip
    if trip is None or trip.state.is_live:
        return trip
    # One transaction ends both at one time; a trip that sent its ride back to search ended before the ride did.
    return trip if trip.ended_at_ms == ride.ended_at_ms else None


def earlier_trips(trips: list[Trip], chosen: Trip | None) -> list[Trip]:
    """Those that ended without serving the ride, oldest first. One matched since the ride was read is left out."""
    chosen_id = None if chosen is None else chosen.trip_id
    return [trip for trip in trips if trip.trip_id != chosen_id and not trip.state.is_live]


def searching_since_ms(ride: Ride) -> int:
    """Since when the ride has searched: its request, its time, or the end of the trip that sent it back."""
    if ride.trip is not None and ride.trip.ended_at_ms is not None:
        return ride.trip.ended_at_ms
    # One that was cancelled before its time never searched.
    return ride.queued_at_ms if ride.ended_at_ms is None else min(ride.queued_at_ms, ride.ended_at_ms)


def of_this_search(wait: RideWait | None, since_ms: int) -> RideWait | None:
    """A ride that was matched and is back has the row of its search before: that explains nothing now."""
    return wait if wait is not None and wait.at_ms >= since_ms else None
