"""/v1/markets: which markets there are, and what an operator has said of each: paused, or open.

While a market is paused nobody is matched there; what becomes of new rides is the pause's `new_rides`. Trips that
are under way go on.
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from api.auth import Role
from api.codec import BodyDecoder, answer
from api.errors import Problem
from api.markets import Markets
from api.rides import read_command, read_reason
from api.schema import ReasonRequest, rfc3339
from api.schema_operator import MarketOut, MarketPage, PauseRequest
from api.security import identity_of
from matcher.outcomes import MarketState
from matcher.policy import Market
from matcher.rides import RideDesk
from matcher.store import Store


class MarketStatesApi:
    def __init__(self, *, desk: RideDesk, store: Store, markets: Markets, max_body_bytes: int) -> None:
        self._desk = desk
        self._store = store
        self._markets = markets
        self._max_body_bytes = max_body_bytes
        self._pause_body = BodyDecoder(PauseRequest)
        self._reason_body = BodyDecoder(ReasonRequest)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/markets", self.list),
            web.post("/v1/markets/{market_id}/pause", self.pause),
            web.post("/v1/markets/{market_id}/resume", self.resume),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """For every role."""
        states = {state.market: state for state in await self._store.market_states()}
        return answer(request, MarketPage([market_out(each, states.get(each.id)) for each in self._markets]))

    async def pause(self, request: web.Request) -> web.Response:
        market = self._market_of_admin(request)
        body = await read_command(request, self._pause_body, self._max_body_bytes)
        return await self._set(request, market, body.new_rides, body.reason)

    async def resume(self, request: web.Request) -> web.Response:
        """Matching goes on. A market that is open stays so."""
        market = self._market_of_admin(request)
        reason = await read_reason(request, self._reason_body, self._max_body_bytes)
        return await self._set(request, market, None, reason)

    async def _set(
        self, request: web.Request, market: Market, new_rides: str | None, reason: str | None
    ) -> web.Response:
        present = {state.market: state for state in await self._store.market_states()}.get(market.id)
        if _says(present) == (new_rides, reason):  # a repetition moves no `since` (P3)
            return answer(request, market_out(market, present))
        changed_by = identity_of(request).subject
        change = partial(
            self._store.set_market_state, market.id, new_rides=new_rides, reason=reason, changed_by=changed_by
        )
        return answer(request, market_out(market, await self._desk.do(change)))

    def _market_of_admin(self, request: web.Request) -> Market:
        """The market in the path. Raises Problem 403 for anybody but an admin, and 404."""
        identity_of(request).need(Role.ADMIN)
        market = self._markets.get(request.match_info["market_id"])
        if market is None:
            raise Problem("market-unknown", "there is no such market")
        return market


def _says(state: MarketState | None) -> tuple[str | None, str | None]:
    return (None, None) if state is None else (state.new_rides, state.reason)


def market_out(market: Market, state: MarketState | None) -> MarketOut:
    return MarketOut(
        id=market.id,
        classes=list(market.classes),
        tags=list(market.tags),
        assign="auto" if market.life.offer_ttl_ms is None else "offer",
        paused=state is not None and state.is_paused,
        new_rides=None if state is None else state.new_rides,
        reason=None if state is None else state.reason,
        since=None if state is None else rfc3339(state.changed_at_ms),
    )
