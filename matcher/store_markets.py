"""What an operator says of a market, and which matcher processes share the markets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from geo.model import MarketId
from matcher.outcomes import MarketState
from matcher.sessions import Conflict, Raced, Session, change, rows_of
from matcher.statement import Row, Statement
from matcher.store_rows import text_of
from matcher.tables import market_states, matchers, now_ms

_MARKETS: sa.BindParameter[Any] = sa.bindparam("markets", expanding=True)
_HOLDER = matchers.c.holder == sa.bindparam("of_holder")

READ_PAUSED = Statement(
    sa.select(market_states.c.market, market_states.c.new_rides, market_states.c.reason).where(
        market_states.c.market.in_(_MARKETS), market_states.c.new_rides.is_not(None)
    )
)
READ_STATES = Statement(sa.select(*market_states.c).order_by(market_states.c.market))
SET_STATE = Statement(
    market_states.update()
    .where(market_states.c.market == sa.bindparam("of_market"))
    .values(
        new_rides=sa.bindparam("to_new_rides"),
        reason=sa.bindparam("to_reason"),
        changed_by=sa.bindparam("by"),
        changed_at_ms=now_ms(),
    )
)
INSERT_STATE = Statement(
    market_states.insert().from_select(
        ["market", "new_rides", "reason", "changed_by", "changed_at_ms"],
        sa.select(
            sa.bindparam("of_market", type_=sa.String),
            sa.bindparam("to_new_rides", type_=sa.String),
            sa.bindparam("to_reason", type_=sa.String),
            sa.bindparam("by", type_=sa.String),
            now_ms(),
        ),
    )
)
SEEN = Statement(matchers.update().where(_HOLDER).values(seen_at_ms=now_ms()))
INSERT_SEEN = Statement(
    matchers.insert().from_select(
        ["holder", "seen_at_ms"], sa.select(sa.bindparam("of_holder", type_=sa.String), now_ms())
    )
)
GONE = Statement(matchers.delete().where(_HOLDER))
_IS_UNSEEN = matchers.c.seen_at_ms < now_ms() - sa.bindparam("unseen_ms", type_=sa.BigInteger)
READ_SEEN = Statement(sa.select(matchers.c.holder, sa.case((_IS_UNSEEN, 1), else_=0)).order_by(matchers.c.holder))
#: One by name, so that no row is waited for that another matcher is just writing.
FORGET_UNSEEN = Statement(matchers.delete().where(_HOLDER, _IS_UNSEEN))


async def states(session: Session) -> list[MarketState]:
    return [_state_of(row) for row in await rows_of(session, READ_STATES())]


async def set_state(
    session: Session, market: MarketId, new_rides: str | None, reason: str | None, changed_by: str
) -> MarketState:
    values = {"of_market": market, "to_new_rides": new_rides, "to_reason": reason, "by": changed_by}
    if not await change(session, SET_STATE(**values)):
        try:
            await change(session, INSERT_STATE(**values))
        except Conflict as error:
            raise Raced(str(error)) from error
    found = [state for state in await states(session) if state.market == market]
    return found[0]


def _state_of(row: Row) -> MarketState:
    market, new_rides, reason, changed_by, changed_at_ms = row
    return MarketState(
        MarketId(text_of(market)), new_rides, reason, None if changed_by is None else text_of(changed_by), changed_at_ms
    )


async def matcher_seen(session: Session, holder: str, unseen_ms: int) -> int:
    """Says that this matcher lives; returns how many do.

    Those unseen for so long are forgotten: a process that died, or one that is frozen and comes back by itself.
    """
    if not await change(session, SEEN(of_holder=holder)):
        try:
            await change(session, INSERT_SEEN(of_holder=holder))
        except Conflict as error:
            raise Raced(str(error)) from error
    known = await rows_of(session, READ_SEEN(unseen_ms=unseen_ms))
    unseen = [FORGET_UNSEEN(of_holder=text_of(each), unseen_ms=unseen_ms) for each, is_unseen in known if is_unseen]
    if unseen:
        await session.run(*unseen)
    return len(known) - len(unseen)


async def matcher_gone(session: Session, holder: str) -> None:
    await change(session, GONE(of_holder=holder))


def paused_of(rows: Sequence[Row]) -> dict[MarketId, tuple[str, str | None]]:
    """By market, what becomes of new rides, and why."""
    return {MarketId(text_of(market)): (new_rides, reason) for market, new_rides, reason in rows}
