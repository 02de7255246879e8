"""Who matches a market: one lease a market, with a fencing token that only grows (P7)."""

from __future__ import annotations

import sqlalchemy as sa

from geo.model import MarketId
from matcher.errors import LeaseLost
from matcher.sessions import Conflict, Session, change, row_of
from matcher.statement import Statement
from matcher.tables import market_leases as leases
from matcher.tables import now_ms

_MARKET = leases.c.market == sa.bindparam("of_market")
_TOKEN = leases.c.token == sa.bindparam("of_token")
_UNTIL = now_ms() + sa.bindparam("ttl_ms", type_=sa.BigInteger)

TAKE_LEASE = Statement(
    leases.update()
    .where(_MARKET, sa.or_(leases.c.expires_at_ms <= now_ms(), leases.c.holder == sa.bindparam("new_holder")))
    .values(holder=sa.bindparam("new_holder"), token=leases.c.token + 1, expires_at_ms=_UNTIL)
)
READ_LEASE = Statement(sa.select(leases.c.token).where(_MARKET))
INSERT_LEASE = Statement(
    leases.insert().from_select(
        ["market", "holder", "token", "expires_at_ms"],
        sa.select(
            sa.bindparam("of_market", type_=sa.String),
            sa.bindparam("new_holder", type_=sa.String),
            sa.literal_column("1"),
            _UNTIL,
        ),
    )
)
RENEW_LEASE = Statement(
    leases.update().where(_MARKET, _TOKEN, leases.c.holder == sa.bindparam("of_holder")).values(expires_at_ms=_UNTIL)
)
RELEASE_LEASE = Statement(leases.update().where(_MARKET, _TOKEN).values(expires_at_ms=0))
#: First lock of every transaction that a matcher writes; held to its end.
HOLD_LEASE = Statement(
    sa.select(now_ms()).select_from(leases).where(_MARKET, _TOKEN, leases.c.expires_at_ms > now_ms()).with_for_update()
)


async def acquire(session: Session, market: MarketId, holder: str, ttl_ms: int) -> int | None:
    """The new token, or None while another holder's lease runs. Its own lease a holder may take anew."""
    if not await change(session, TAKE_LEASE(of_market=market, new_holder=holder, ttl_ms=ttl_ms)):
        if await row_of(session, READ_LEASE(of_market=market)) is not None:
            session.refused = True
            return None
        try:
            await change(session, INSERT_LEASE(of_market=market, new_holder=holder, ttl_ms=ttl_ms))
        except Conflict:
            session.refused = True  # another came first to a market that nobody had held
            return None
    row = await row_of(session, READ_LEASE(of_market=market))
    return None if row is None else int(row[0])


async def hold(session: Session, market: MarketId, token: int) -> int:
    """Locks the lease to the end of the transaction and returns the database's time. Raises LeaseLost."""
    row = await row_of(session, HOLD_LEASE(of_market=market, of_token=token))
    if row is None:
        raise LeaseLost(market, token)
    return int(row[0])
