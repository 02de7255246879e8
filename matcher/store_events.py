"""The events of rides: read by those who listen, marked once announced (the outbox).

An event is `(ride_id, version)`. Lists are asked for in chunks, those with the
same known version together, so that the statements stay few and bounded.

Marking an event as announced also makes the delivery that its client's webhook
is owed, in the same transaction: each event gets its row once, whoever marks it
and whenever a process dies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import sqlalchemy as sa

from geo.model import DriverId, MarketId
from matcher.model import Hint, RideEvent, RideId
from matcher.sessions import Raced, Session, rows_of
from matcher.statement import Params, Row, Statement, Step
from matcher.store_rows import EVENT_COLUMNS, event_of, text_of
from matcher.store_webhooks import INSERT_DELIVERY
from matcher.tables import now_ms, ride_events, rides, webhook_deliveries, webhooks

CHUNK = 500

_LIMIT = sa.bindparam("limit", type_=sa.Integer)
READ_AFTER = Statement(
    sa.select(*EVENT_COLUMNS)
    .where(
        ride_events.c.ride_id.in_(sa.bindparam("ids", expanding=True)),
        ride_events.c.version > sa.bindparam("known"),
    )
    .order_by(ride_events.c.ride_id, ride_events.c.version)
    .limit(_LIMIT)
)
READ_VERSIONS = Statement(
    sa.select(rides.c.ride_id, rides.c.version).where(rides.c.ride_id.in_(sa.bindparam("ids", expanding=True)))
)
_UNANNOUNCED = (
    sa.select(ride_events.c.ride_id, ride_events.c.version, ride_events.c.market, ride_events.c.driver_id)
    .where(ride_events.c.pending == 1, ride_events.c.at_ms <= now_ms() - sa.bindparam("older_ms", type_=sa.BigInteger))
    .order_by(ride_events.c.at_ms)
    .limit(_LIMIT)
)
READ_UNANNOUNCED = Statement(_UNANNOUNCED)
READ_UNANNOUNCED_OF = Statement(_UNANNOUNCED.where(ride_events.c.market == sa.bindparam("of_market")))
_TO_MARK = sa.and_(
    ride_events.c.ride_id.in_(sa.bindparam("ids", expanding=True)),
    ride_events.c.version <= sa.bindparam("upto"),
    ride_events.c.pending == 1,
)
COUNT_PENDING = Statement(
    sa.select(sa.func.count())
    .select_from(ride_events)
    .where(_TO_MARK)
    .with_hint(ride_events, "FORCE INDEX (PRIMARY)", "mysql")
)
#: Of those the ones whose client has a webhook, unless their delivery stands already (an event that was set to pending
#: again by hand).
READ_OWED = Statement(
    sa.select(ride_events.c.ride_id, ride_events.c.version, webhooks.c.client_id, now_ms())
    .select_from(
        ride_events.join(rides, rides.c.ride_id == ride_events.c.ride_id)
        .join(webhooks, webhooks.c.client_id == rides.c.client_id)
        .outerjoin(
            webhook_deliveries,
            sa.and_(
                webhook_deliveries.c.ride_id == ride_events.c.ride_id,
                webhook_deliveries.c.version == ride_events.c.version,
            ),
        )
    )
    .where(_TO_MARK, webhook_deliveries.c.ride_id.is_(None))
    .with_hint(ride_events, "FORCE INDEX (PRIMARY)", "mysql")
)
#: "Ride R is at version V" announces every version up to V.
MARK_ANNOUNCED = Statement(
    ride_events.update().where(_TO_MARK).values(pending=None).with_hint("FORCE INDEX (PRIMARY)", dialect_name="mysql")
)


def _by_version(pairs: Mapping[RideId, int]) -> list[tuple[int, list[str]]]:
    """Rides of one version together, at most CHUNK in a group, in the order of ids within it."""
    groups: dict[int, list[str]] = {}
    for ride_id in sorted(pairs):
        groups.setdefault(pairs[ride_id], []).append(ride_id)
    return [(version, ids[i : i + CHUNK]) for version, ids in sorted(groups.items()) for i in range(0, len(ids), CHUNK)]


async def events_after(session: Session, known: Mapping[RideId, int], limit: int) -> list[RideEvent]:
    """Ordered by ride and version; of a ride never a later event without those before it."""
    steps = [READ_AFTER(ids=ids, known=version, limit=limit) for version, ids in _by_version(known)]
    replies = await session.run(*steps) if steps else []
    events = [event_of(row) for reply in replies for row in reply.rows]
    events.sort(key=lambda event: (event.ride_id, event.version))
    return events[:limit]


async def versions(session: Session, ride_ids: Sequence[RideId]) -> dict[RideId, int]:
    ids = sorted(set(ride_ids))
    steps: list[Step] = [READ_VERSIONS(ids=ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK)]
    replies = await session.run(*steps) if steps else []
    return {RideId(text_of(row[0])): row[1] for reply in replies for row in reply.rows}


async def unannounced(session: Session, market: MarketId | None, older_than_ms: int, limit: int) -> list[Hint]:
    if market is None:
        step = READ_UNANNOUNCED(older_ms=older_than_ms, limit=limit)
    else:
        step = READ_UNANNOUNCED_OF(older_ms=older_than_ms, limit=limit, of_market=market)
    return [
        Hint(
            RideId(text_of(ride_id)),
            version,
            MarketId(text_of(of_market)),
            None if driver_id is None else DriverId(text_of(driver_id)),
        )
        for ride_id, version, of_market, driver_id in await rows_of(session, step)
    ]


def newest(hints: Sequence[Hint]) -> dict[RideId, int]:
    """The highest version of each ride."""
    found: dict[RideId, int] = {}
    for hint in hints:
        found[hint.ride_id] = max(hint.version, found.get(hint.ride_id, 0))
    return found


async def mark_announced(session: Session, upto: Mapping[RideId, int]) -> None:
    """One try. Raises Raced where another marked some of them meanwhile: done again, it finds the rest.

    They are counted, then read, then marked. Marking takes their locks and waits for whoever has them. So if as many
    were marked as were counted, nobody else has marked any in between, and what was read is owed by this transaction
    alone; and a ride's later delivery never stands before its earlier one does.
    """
    groups = _by_version(upto)
    statements = (COUNT_PENDING, READ_OWED, MARK_ANNOUNCED)
    steps = [statement(ids=ids, upto=version) for statement in statements for version, ids in groups]
    replies = await session.run(*steps)
    counted, read, marked = (replies[i * len(groups) : (i + 1) * len(groups)] for i in range(len(statements)))
    if sum(reply.rows[0][0] for reply in counted) != sum(reply.matched for reply in marked):
        raise Raced("another process marks the same events")
    owed = [_delivery_row(row) for reply in read for row in reply.rows]
    if owed:
        await session.insert(INSERT_DELIVERY, owed)


def _delivery_row(row: Row) -> Params:
    ride_id, version, client_id, at_ms = row
    return {
        "ride_id": text_of(ride_id),
        "version": version,
        "client_id": text_of(client_id),
        "created_at_ms": at_ms,
        "due_at_ms": at_ms,
        "attempts": 0,
        "last_error": None,
    }


def chunks(pairs: Mapping[RideId, int], size: int) -> list[dict[RideId, int]]:
    """The same pairs in pieces, in the order of ids."""
    ordered = iter(sorted(pairs.items()))
    return [dict(piece) for piece in iter(lambda: list(islice(ordered, size)), [])]
