"""Webhooks: where clients want their rides' events sent, and the deliveries on their way.

A delivery is a row `(ride_id, version)`, made in the transaction that marks the event as announced
(store_events) and deleted once it was delivered. `due_at_ms` is its next attempt. Claiming a row moves that into the
future, so that the claim of a sender that died runs out by itself; NULL means given up. `attempts` counts the claims
and tells a late answer of an old claim from the present one. Of a ride only the earliest row still to be delivered is
claimed: so a client gets a ride's events in order, each at least once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import sqlalchemy as sa

from matcher.database import Database
from matcher.model import ClientId, RideEvent, RideId
from matcher.sessions import Conflict, Session, change, row_of, rows_of
from matcher.statement import Row, Statement, Step
from matcher.store_rows import EVENT_COLUMNS, event_of, storable_reason, text_of
from matcher.tables import now_ms, ride_events, webhook_deliveries, webhooks

#: Rows that one transaction changes at most.
CHUNK = 500
#: Transactions that one call makes at most: what is left then, the next call finds.
CHUNKS_MAX = 500
#: Due rows that one claim looks at, so that it finds those of several clients.
CLAIM_WINDOW = 64

Key = tuple[RideId, int]

_D = webhook_deliveries
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_LIMIT = sa.bindparam("limit", type_=sa.Integer)
_OFFSET = sa.bindparam("offset", type_=sa.Integer)
_CLIENT = _D.c.client_id == sa.bindparam("of_client")
_HOOK_CLIENT = webhooks.c.client_id == sa.bindparam("of_client")
_ROW = sa.and_(_D.c.ride_id == sa.bindparam("of_ride"), _D.c.version == sa.bindparam("of_version"))
#: The rows of these rides that have this version: a list of pairs is no range to MariaDB.
_ROWS = sa.and_(_D.c.ride_id.in_(_IDS), _D.c.version == sa.bindparam("of_version"))
_BY_KEY: Any = ("FORCE INDEX (PRIMARY)", None, "mysql")
_OF_CLAIM = _D.c.attempts == sa.bindparam("of_attempts")

INSERT_DELIVERY = Statement(_D.insert())

READ_HOOK = Statement(sa.select(webhooks.c.url, webhooks.c.created_at_ms).where(_HOOK_CLIENT))
LOCK_HOOK = Statement(sa.select(webhooks.c.client_id).where(_HOOK_CLIENT).with_for_update())
UPDATE_HOOK = Statement(
    webhooks.update().where(_HOOK_CLIENT).values(url=sa.bindparam("to_url"), secret=sa.bindparam("to_secret"))
)
INSERT_HOOK = Statement(
    webhooks.insert().from_select(
        ["client_id", "url", "secret", "created_at_ms"],
        sa.select(
            sa.bindparam("of_client", type_=sa.String),
            sa.bindparam("to_url", type_=sa.String),
            sa.bindparam("to_secret", type_=sa.String),
            now_ms(),
        ),
    )
)
DELETE_HOOK = Statement(webhooks.delete().where(_HOOK_CLIENT))

#: How long the row is overdue that is due longest; one look at one end of an index.
READ_OVERDUE = Statement(sa.select(now_ms() - sa.func.min(_D.c.due_at_ms)).where(_D.c.due_at_ms <= now_ms()))
_EARLIER = _D.alias("earlier")
_IS_HEAD = ~sa.exists(
    sa.select(sa.literal_column("1"))
    .select_from(_EARLIER)
    .where(_EARLIER.c.ride_id == _D.c.ride_id, _EARLIER.c.version < _D.c.version, _EARLIER.c.due_at_ms.is_not(None))
)
#: What another sender is claiming is passed over.
LOCK_DUE = Statement(
    sa.select(_D.c.ride_id, _D.c.version, _D.c.client_id)
    .where(_D.c.due_at_ms <= now_ms(), _D.c.client_id.not_in(sa.bindparam("full", expanding=True)), _IS_HEAD)
    .order_by(_D.c.due_at_ms, _D.c.ride_id)
    .limit(_LIMIT)
    .with_hint(_D, "FORCE INDEX (webhook_deliveries_due)", "mysql")
    .with_for_update(skip_locked=True)
)
CLAIM = Statement(
    _D.update()
    .where(_ROWS)
    .values(attempts=_D.c.attempts + 1, due_at_ms=now_ms() + sa.bindparam("claim_ms", type_=sa.BigInteger))
    .with_hint(*_BY_KEY)
)
READ_CLAIMED = Statement(
    sa.select(*EVENT_COLUMNS, _D.c.client_id, _D.c.attempts, webhooks.c.url, webhooks.c.secret)
    .select_from(
        _D.join(
            ride_events, sa.and_(ride_events.c.ride_id == _D.c.ride_id, ride_events.c.version == _D.c.version)
        ).join(webhooks, webhooks.c.client_id == _D.c.client_id)
    )
    .where(_ROWS)
)
#: Row by row: no hint may be given here, and a scan would wait for the rows that others are writing.
DELETE_ROW = Statement(_D.delete().where(_ROW))
#: Unless it was put back meanwhile.
DROP_GIVEN_UP = Statement(_D.delete().where(_ROW, _D.c.due_at_ms.is_(None)))
DELIVERED = Statement(_D.delete().where(_ROW, _OF_CLAIM))
_ERROR = sa.bindparam("error", type_=sa.String)
_AGAIN = now_ms() + sa.bindparam("again_ms", type_=sa.BigInteger)
TRY_AGAIN = Statement(
    _D.update().where(_ROW, _OF_CLAIM, _D.c.due_at_ms.is_not(None)).values(due_at_ms=_AGAIN, last_error=_ERROR)
)
#: Those that wait for it need not be looked at before.
LET_WAIT = Statement(
    _D.update()
    .where(
        _D.c.ride_id == sa.bindparam("of_ride"),
        _D.c.version > sa.bindparam("of_version"),
        _D.c.due_at_ms < _AGAIN,
    )
    .values(due_at_ms=_AGAIN)
    .with_hint(*_BY_KEY)
)
GIVE_UP = Statement(_D.update().where(_ROW, _OF_CLAIM).values(due_at_ms=None, last_error=_ERROR))
GIVE_UP_ROWS = Statement(
    _D.update().where(_ROWS, _D.c.due_at_ms.is_not(None)).values(due_at_ms=None, last_error=_ERROR).with_hint(*_BY_KEY)
)
RETRY_ROWS = Statement(
    _D.update()
    .where(_ROWS, _CLIENT, _D.c.due_at_ms.is_(None))
    .values(due_at_ms=now_ms(), attempts=0)
    .with_hint(*_BY_KEY)
)

#: Else all clients' given-up rows might be looked at.
_BY_CLIENT: Any = (_D, "FORCE INDEX (webhook_deliveries_of_client)", "mysql")
_KEYS = sa.select(_D.c.ride_id, _D.c.version).where(_CLIENT).with_hint(*_BY_CLIENT)
_NEWEST_FIRST = (_D.c.created_at_ms.desc(), _D.c.ride_id.desc(), _D.c.version.desc())
READ_ALL = Statement(_KEYS.limit(_LIMIT))
READ_GIVEN_UP = Statement(_KEYS.where(_D.c.due_at_ms.is_(None)).order_by(_D.c.created_at_ms).limit(_LIMIT))
READ_OLD = Statement(
    _KEYS.where(
        _D.c.due_at_ms.is_(None), _D.c.created_at_ms < now_ms() - sa.bindparam("older_ms", type_=sa.BigInteger)
    ).limit(_LIMIT)
)
READ_GIVEN_UP_BEYOND = Statement(
    _KEYS.where(_D.c.due_at_ms.is_(None)).order_by(*_NEWEST_FIRST).limit(_LIMIT).offset(_OFFSET)
)
READ_WAITING_BEYOND = Statement(
    _KEYS.where(_D.c.due_at_ms.is_not(None)).order_by(*_NEWEST_FIRST).limit(_LIMIT).offset(_OFFSET)
)
READ_COUNTS = Statement(sa.select(_D.c.client_id, sa.func.count()).group_by(_D.c.client_id))


class State(StrEnum):
    WAITING = "waiting"  # for its next attempt, or for the ride's earlier events
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Webhook:
    client_id: ClientId
    url: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event claimed for one attempt to send it, the `attempts`th."""

    event: RideEvent
    client_id: ClientId
    url: str
    secret: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A delivery as it stands: `due_at_ms` is its next attempt, None where it was given up."""

    ride_id: RideId
    version: int
    created_at_ms: int
    due_at_ms: int | None
    attempts: int
    last_error: str | None

    @property
    def state(self) -> State:
        return State.GIVEN_UP if self.due_at_ms is None else State.WAITING


@dataclass(frozen=True, slots=True)
class Place:
    """Where a list of deliveries, newest first, goes on: after this row."""

    created_at_ms: int
    ride_id: RideId
    version: int


def shared_out(
    rows: Sequence[tuple[Key, ClientId]], limit: int, share: int, rooms: Mapping[ClientId, int]
) -> list[Key]:
    """The first `limit` rows in order, of each client no more than `rooms` says, else `share`. Pure."""
    left: dict[ClientId, int] = {}
    chosen: list[Key] = []
    for key, client_id in rows:
        room = left.get(client_id, rooms.get(client_id, share))
        if room > 0 and len(chosen) < limit:
            left[client_id] = room - 1
            chosen.append(key)
    return chosen


def by_version(keys: Sequence[Key]) -> list[tuple[int, list[str]]]:
    """Rows of one version together, in the order of ids within it: what a statement takes at once."""
    groups: dict[int, list[str]] = {}
    for ride_id, version in sorted(keys):
        groups.setdefault(version, []).append(ride_id)
    return sorted(groups.items())


class Webhooks:
    """The store's part that rules over webhooks and deliveries. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # The clients' side

    async def put(self, client_id: ClientId, *, url: str, secret: str) -> Webhook:
        """Makes the client's webhook or changes it; what waits to be delivered goes to the new URL."""
        values = {"of_client": client_id, "to_url": json.dumps(url), "to_secret": secret}

        async def work(session: Session) -> Webhook:
            found = await row_of(session, LOCK_HOOK(of_client=client_id))
            await change(session, INSERT_HOOK(**values) if found is None else UPDATE_HOOK(**values))
            hook = await _read(session, client_id)
            assert hook is not None
            return hook

        try:
            return await self._database.write(work)
        except Conflict:
            return await self._database.write(work)  # another made it just now: this time it is found

    async def get(self, client_id: ClientId) -> Webhook | None:
        return await self._database.read(lambda session: _read(session, client_id))

    async def delete(self, client_id: ClientId) -> None:
        """The webhook first, so that nothing more is sent; then its deliveries. May be done again."""
        await self._database.write(lambda session: session.run(DELETE_HOOK(of_client=client_id)))
        await self._in_chunks(READ_ALL(of_client=client_id, limit=CHUNK), partial(_for_each_row, DELETE_ROW))

    async def undelivered(
        self, client_id: ClientId, *, state: State | None, after: Place | None, limit: int
    ) -> list[Undelivered]:
        """The client's deliveries that are still to be made or were given up, newest first."""
        step = _list_step(client_id, state, after, limit)

        async def work(session: Session) -> list[Undelivered]:
            return [_undelivered_of(row) for row in await rows_of(session, step)]

        return await self._database.read(work)

    async def retry(self, client_id: ClientId, keys: Sequence[Key] | None = None) -> int:
        """Puts these given-up deliveries of the client, or all, back to be tried at once; how many there were."""
        change_rows = partial(_for_each_version, RETRY_ROWS, of_client=client_id)
        if keys is None:
            return await self._in_chunks(READ_GIVEN_UP(of_client=client_id, limit=CHUNK), change_rows)
        put_back = 0
        ordered = sorted(set(keys))
        for i in range(0, len(ordered), CHUNK):
            put_back += await self._run_all(change_rows(ordered[i : i + CHUNK]))
        return put_back

    # The sender's side

    async def overdue_ms(self) -> int | None:
        """Since when the delivery is due that is due longest; None where none is due."""

        async def work(session: Session) -> int | None:
            [(overdue_ms,)] = await rows_of(session, READ_OVERDUE())
            return None if overdue_ms is None else int(overdue_ms)

        return await self._database.read(work)

    async def claim(self, *, limit: int, claim_ms: int, share: int, rooms: Mapping[ClientId, int]) -> list[Delivery]:
        """Deliveries that are due, for the caller to try now; nobody else gets them within `claim_ms`.

        Of a client at most `share`, or what `rooms` says of it. Rows whose webhook is gone are dropped.
        """
        return await self._database.write(partial(_claim, limit=limit, claim_ms=claim_ms, share=share, rooms=rooms))

    async def delivered(self, delivery: Delivery) -> None:
        step = DELIVERED(**_of_claim(delivery))
        await self._database.write(lambda session: session.run(step))

    async def failed(self, delivery: Delivery, error: str, *, again_ms: int | None) -> None:
        """The attempt failed; the next one comes `again_ms` from now, or never (None)."""
        row = _of_claim(delivery)
        said = storable_reason(error)
        if again_ms is None:
            steps = [GIVE_UP(**row, error=said)]
        else:
            steps = [TRY_AGAIN(**row, error=said, again_ms=again_ms), LET_WAIT(**row, again_ms=again_ms)]
        await self._database.write(lambda session: session.run(*steps))

    async def tidy(self, *, backlog_max: int, given_up_max: int, keep_ms: int) -> int:
        """Keeps what is not delivered within bounds, by client (P10); how many rows it changed.

        Beyond `backlog_max` the oldest that wait are given up. Given-up ones are dropped after `keep_ms`, and the
        oldest beyond `given_up_max`.
        """
        changed = 0
        drop = partial(_for_each_row, DROP_GIVEN_UP)
        counts = await self._database.read(lambda session: rows_of(session, READ_COUNTS()))
        for name, count in counts:
            chunk = {"of_client": text_of(name), "limit": CHUNK}
            changed += await self._in_chunks(READ_OLD(**chunk, older_ms=keep_ms), drop)
            if count > backlog_max:
                give_up = partial(_for_each_version, GIVE_UP_ROWS, error=f"more than {backlog_max} waited")
                changed += await self._in_chunks(READ_WAITING_BEYOND(**chunk, offset=backlog_max), give_up)
            if count > given_up_max:
                changed += await self._in_chunks(READ_GIVEN_UP_BEYOND(**chunk, offset=given_up_max), drop)
        return changed

    async def _in_chunks(self, look: Step, steps_for: Callable[[Sequence[Key]], list[Step]]) -> int:
        """Does this to all that `look` finds, which it must not find again; a transaction each time."""
        changed = 0
        for _ in range(CHUNKS_MAX):
            rows = await self._database.read(lambda session: rows_of(session, look))
            changed += await self._run_all(steps_for([_key_of(row) for row in rows]))
            if len(rows) < CHUNK:
                break
        return changed

    async def _run_all(self, steps: Sequence[Step]) -> int:
        """In one transaction; how many rows they changed."""
        if not steps:
            return 0
        return sum(reply.matched for reply in await self._database.write(lambda session: session.run(*steps)))


def _for_each_version(statement: Statement, keys: Sequence[Key], **values: Any) -> list[Step]:
    return [statement(ids=ids, of_version=version, **values) for version, ids in by_version(keys)]


def _for_each_row(statement: Statement, keys: Sequence[Key]) -> list[Step]:
    return [statement(of_ride=ride_id, of_version=version) for ride_id, version in sorted(keys)]


async def _claim(
    session: Session, *, limit: int, claim_ms: int, share: int, rooms: Mapping[ClientId, int]
) -> list[Delivery]:
    full = [client_id for client_id, room in rooms.items() if room <= 0]
    due = await rows_of(session, LOCK_DUE(full=full or [""], limit=max(limit, CLAIM_WINDOW)))
    chosen = shared_out([(_key_of(row), ClientId(text_of(row[2]))) for row in due], limit, share, rooms)
    if not chosen:
        session.refused = True
        return []
    claims = _for_each_version(CLAIM, chosen, claim_ms=claim_ms)
    replies = await session.run(*claims, *_for_each_version(READ_CLAIMED, chosen))
    claimed = {_key_of(row): _delivery_of(row) for reply in replies[len(claims) :] for row in reply.rows}
    orphans = [key for key in chosen if key not in claimed]
    if orphans:
        await session.run(*_for_each_row(DELETE_ROW, orphans))
    return [claimed[key] for key in chosen if key in claimed]


async def _read(session: Session, client_id: ClientId) -> Webhook | None:
    row = await row_of(session, READ_HOOK(of_client=client_id))
    return None if row is None else Webhook(client_id, json.loads(row[0]), row[1])


def _key_of(row: Row) -> Key:
    """Of a row that begins with the ride's id and the version."""
    return RideId(text_of(row[0])), row[1]


def _of_claim(delivery: Delivery) -> dict[str, Any]:
    event = delivery.event
    return {"of_ride": event.ride_id, "of_version": event.version, "of_attempts": delivery.attempts}


def _delivery_of(row: Row) -> Delivery:
    client_id, attempts, url, secret = row[len(EVENT_COLUMNS) :]
    return Delivery(event_of(row), ClientId(text_of(client_id)), json.loads(url), text_of(secret), attempts)


def _undelivered_of(row: Row) -> Undelivered:
    return Undelivered(RideId(text_of(row[0])), *row[1:])


def _list_statement(state: State | None, goes_on: bool) -> Statement:
    core = sa.select(
        _D.c.ride_id, _D.c.version, _D.c.created_at_ms, _D.c.due_at_ms, _D.c.attempts, _D.c.last_error
    ).where(_CLIENT)
    if state is not None:
        core = core.where(_D.c.due_at_ms.is_(None) if state is State.GIVEN_UP else _D.c.due_at_ms.is_not(None))
    if goes_on:
        core = core.where(_D.c.created_at_ms <= sa.bindparam("at_ms", type_=sa.BigInteger), _after_place())
    return Statement(core.order_by(*_NEWEST_FIRST).limit(_LIMIT).with_hint(*_BY_CLIENT))


def _after_place() -> sa.ColumnElement[bool]:
    ride, version = sa.bindparam("after_ride", type_=sa.String), sa.bindparam("after_version", type_=sa.Integer)
    return sa.or_(
        _D.c.created_at_ms < sa.bindparam("at_ms", type_=sa.BigInteger),
        _D.c.ride_id < ride,
        sa.and_(_D.c.ride_id == ride, _D.c.version < version),
    )


_LISTS = {(state, goes_on): _list_statement(state, goes_on) for state in (None, *State) for goes_on in (False, True)}


def _list_step(client_id: ClientId, state: State | None, after: Place | None, limit: int) -> Step:
    place = {} if after is None else {"at_ms": after.created_at_ms, "after_ride": after.ride_id}
    if after is not None:
        place["after_version"] = after.version
    return _LISTS[state, after is not None](of_client=client_id, limit=limit, **place)
