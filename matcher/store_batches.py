"""What batches came to: a bounded ring of records a market, some with their whole input, and why rides wait (P12).

One transaction a batch, under the lease's token (P7). Order of locks: the
market's lease, the batch, the waits; rides and trips are not touched.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from geo.model import MarketId
from matcher.model import RideId
from matcher.outcomes import BatchRecord, RideWait
from matcher.sessions import Session, row_of
from matcher.statement import Row, Statement, Step
from matcher.store_leases import hold
from matcher.store_rows import can_be_id, json_of, text_of
from matcher.tables import batches, ride_waits

#: A larger input is not kept: as an SQL literal it has to fit into one packet (16 MiB by default on MariaDB).
INPUT_BYTES_MAX = 8 * 1024 * 1024
SUMMARY_BYTES_MAX = 16 * 1024
DETAIL_BYTES_MAX = 4 * 1024
#: Rows in one statement.
WAITS_CHUNK = 500
#: Records, and inputs, that one call drops at most; what is left is dropped by the next ones.
DROP_MAX = 100
_ID_BYTES_MAX = 32

Wait = tuple[RideId, str, Mapping[str, Any]]

_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_MARKET = batches.c.market == sa.bindparam("of_market")
_COLUMNS = (
    batches.c.batch_id,
    batches.c.market,
    batches.c.decided_at_ms,
    batches.c.summary,
    batches.c.input_bytes,
)

INSERT_BATCH = Statement(batches.insert())
#: Waits for an earlier attempt that is still committing.
LOCK_BATCH = Statement(
    sa.select(batches.c.batch_id).where(_MARKET, batches.c.batch_id == sa.bindparam("batch_id")).with_for_update()
)
#: Deleted and inserted again: an upsert that MySQL, MariaDB and SQLite all take, none of them deprecated.
DELETE_WAITS = Statement(ride_waits.delete().where(ride_waits.c.ride_id.in_(_IDS)))
INSERT_WAIT = Statement(ride_waits.insert())


def _beyond_newest(*where: sa.ColumnElement[bool]) -> Statement:
    """The ids of a market's batches, the newest `kept` left out; ids are ordered by time."""
    core = sa.select(batches.c.batch_id).where(_MARKET, *where).order_by(batches.c.batch_id.desc())
    return Statement(core.limit(DROP_MAX).offset(sa.bindparam("kept", type_=sa.Integer)))


READ_OLD = _beyond_newest()
READ_OLD_INPUTS = _beyond_newest(batches.c.input_bytes.is_not(None))
DELETE_BATCHES = Statement(batches.delete().where(_MARKET, batches.c.batch_id.in_(_IDS)))
FORGET_INPUTS = Statement(
    batches.update().where(_MARKET, batches.c.batch_id.in_(_IDS)).values(input=None, input_bytes=None)
)
READ_BATCH = Statement(sa.select(*_COLUMNS).where(batches.c.batch_id == sa.bindparam("batch_id")))
READ_INPUT = Statement(sa.select(batches.c.input).where(batches.c.batch_id == sa.bindparam("batch_id")))
READ_WAIT = Statement(
    sa.select(
        ride_waits.c.ride_id, ride_waits.c.reason, ride_waits.c.detail, ride_waits.c.batch_id, ride_waits.c.at_ms
    ).where(ride_waits.c.ride_id == sa.bindparam("ride_id"))
)


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A record ready to be written: checked, and encoded as its columns are.

    `input` is deflated, `input_bytes` its size before that; `waits` are
    (ride_id, reason, detail as JSON), one a ride, ordered by it.
    """

    market: MarketId
    batch_id: str
    summary: str
    input: bytes | None
    input_bytes: int | None
    waits: Sequence[tuple[RideId, str, str]]


async def encoded(
    market: MarketId, batch_id: str, summary: Mapping[str, Any], data: bytes | None, waits: Sequence[Wait]
) -> NewBatch:
    """Deflates `data`, the input: so it stays within a packet even where each byte of it would be escaped.

    All of it in a thread, for the details of thousands of waits take long too. Raises ValueError for what is larger
    than its bound or no JSON; of two waits of one ride the last counts.
    """
    return await asyncio.to_thread(_encoded, market, batch_id, summary, data, waits)


def _encoded(
    market: MarketId, batch_id: str, summary: Mapping[str, Any], data: bytes | None, waits: Sequence[Wait]
) -> NewBatch:
    if not can_be_id(batch_id, _ID_BYTES_MAX):
        raise ValueError(f"{batch_id[:20]!r} is no batch's id")
    if data is not None and len(data) > INPUT_BYTES_MAX:
        raise ValueError(f"an input of {len(data)} bytes is not kept, at most {INPUT_BYTES_MAX} are")
    details = {ride_id: (reason, _json(detail, DETAIL_BYTES_MAX, "detail")) for ride_id, reason, detail in waits}
    return NewBatch(
        market=market,
        batch_id=batch_id,
        summary=_json(summary, SUMMARY_BYTES_MAX, "summary"),
        input=None if data is None else zlib.compress(data, 1),
        input_bytes=None if data is None else len(data),
        waits=[(ride_id, *details[ride_id]) for ride_id in sorted(details)],
    )


def _json(value: Mapping[str, Any], bytes_max: int, name: str) -> str:
    text = json_of(value)
    if len(text) > bytes_max:
        raise ValueError(f"a {name} of {len(text)} bytes is too large, at most {bytes_max} are kept")
    return text


async def record(session: Session, token: int, new: NewBatch, keep_batches: int, keep_inputs: int) -> None:
    """One try; raises LeaseLost, or Conflict where this very batch stands already."""
    of_batch = {"of_market": new.market, "batch_id": new.batch_id}
    if session.settling and await row_of(session, LOCK_BATCH(**of_batch)) is not None:
        session.refused = True  # the attempt whose answer was lost had been committed
        return
    at_ms = await hold(session, new.market, token)
    await session.run(
        INSERT_BATCH(
            market=new.market,
            batch_id=new.batch_id,
            decided_at_ms=at_ms,
            summary=new.summary,
            input=new.input,
            input_bytes=new.input_bytes,
        )
    )
    await _put_waits(session, new, at_ms)
    await _drop_old(session, new.market, keep_batches, keep_inputs)


async def _put_waits(session: Session, new: NewBatch, at_ms: int) -> None:
    common = {"market": new.market, "batch_id": new.batch_id, "at_ms": at_ms}
    for start in range(0, len(new.waits), WAITS_CHUNK):
        chunk = new.waits[start : start + WAITS_CHUNK]
        await session.run(DELETE_WAITS(ids=[ride_id for ride_id, _, _ in chunk]))
        rows = [{**common, "ride_id": ride_id, "reason": why, "detail": detail} for ride_id, why, detail in chunk]
        await session.insert(INSERT_WAIT, rows)


async def _drop_old(session: Session, market: MarketId, keep_batches: int, keep_inputs: int) -> None:
    old, old_inputs = await session.run(
        READ_OLD(of_market=market, kept=keep_batches), READ_OLD_INPUTS(of_market=market, kept=keep_inputs)
    )
    steps = [
        statement(of_market=market, ids=[text_of(row[0]) for row in reply.rows])
        for statement, reply in ((FORGET_INPUTS, old_inputs), (DELETE_BATCHES, old))
        if reply.rows
    ]
    if steps:
        await session.run(*steps)


async def read_batch(session: Session, batch_id: str) -> BatchRecord | None:
    row = await row_of(session, READ_BATCH(batch_id=batch_id))
    return None if row is None else batch_of(row)


async def read_input(session: Session, batch_id: str) -> bytes | None:
    """Still deflated; None where there is no such batch or its input is not kept."""
    row = await row_of(session, READ_INPUT(batch_id=batch_id))
    return None if row is None else row[0]


async def read_wait(session: Session, ride_id: RideId) -> RideWait | None:
    row = await row_of(session, READ_WAIT(ride_id=ride_id))
    if row is None:
        return None
    return RideWait(
        ride_id=RideId(text_of(row[0])),
        reason=row[1],
        detail=json.loads(row[2]),
        batch_id=text_of(row[3]),
        at_ms=row[4],
    )


def batch_of(row: Row) -> BatchRecord:
    return BatchRecord(
        batch_id=text_of(row[0]),
        market=MarketId(text_of(row[1])),
        decided_at_ms=row[2],
        summary=json.loads(row[3]),
        input_bytes=row[4],
    )


def _list_statement(of_market: bool, after: bool) -> Statement:
    core = sa.select(*_COLUMNS)
    if of_market:
        core = core.where(_MARKET)
    if after:
        core = core.where(batches.c.batch_id < sa.bindparam("before"))
    return Statement(core.order_by(batches.c.batch_id.desc()).limit(sa.bindparam("limit", type_=sa.Integer)))


_LISTS = {(market, before): _list_statement(market, before) for market in (False, True) for before in (False, True)}


def list_step(market: MarketId | None, before: str | None, limit: int) -> Step:
    """The newest first: ids are ordered by time, so that an id is the cursor."""
    return _LISTS[market is not None, before is not None](of_market=market, before=before, limit=limit)
