"""Sign-ons: a new session of a driver is a new epoch, handed out once (P7).

Alone or in groups: when all drivers of a process come back at once, up to a
hundred share a transaction. A group takes only rows that nobody holds, in the
order of their ids; who is held by another's command signs on alone and waits
for that alone, so that one driver never fails or delays another.

An attempt whose COMMIT was sent and not answered is done again: should it have
taken effect, its epochs were told to nobody and are superseded by the new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import sqlalchemy as sa

from geo.model import DriverId, MarketId
from matcher.database import Database
from matcher.errors import StoreUnavailable
from matcher.model import NO_RIDE, Driver, DriverStatus, Hint, Ride
from matcher.outcomes import SignedOn
from matcher.sessions import Reply, Session
from matcher.statement import Statement, Step
from matcher.store_drivers import READ_DRIVERS_OF, READ_LIVE
from matcher.store_rides import NOW
from matcher.store_rows import can_be_id, driver_of, ride_with_trip_of, text_of
from matcher.tables import drivers, now_ms

#: Sign-ons of a transaction.
GROUP_MAX = 100
#: Drivers of a group that somebody held, signed on at once.
ALONE_AT_ONCE = 4

_THESE = drivers.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True))
_SEEN = (
    sa.select(drivers.c.driver_id, drivers.c.market)
    .where(_THESE)
    .order_by(drivers.c.driver_id)
    .with_hint(drivers, "FORCE INDEX (PRIMARY)", "mysql")
)
LOCK = Statement(_SEEN.with_for_update())
LOCK_FREE = Statement(_SEEN.with_for_update(skip_locked=True))
READ_KNOWN = Statement(sa.select(drivers.c.driver_id).where(_THESE))
SIGN_ON = Statement(
    drivers.update()
    .where(_THESE)
    .values(
        epoch=drivers.c.epoch + 1,
        market=sa.bindparam("to_market"),
        status=sa.case(
            (
                sa.and_(
                    drivers.c.status == DriverStatus.OFFLINE.value,
                    sa.bindparam("set_online", type_=sa.Integer) == 1,
                ),
                DriverStatus.ONLINE.value,
            ),
            else_=drivers.c.status,
        ),
        version=drivers.c.version + 1,
        lost_at_ms=None,
        updated_at_ms=now_ms(),
    )
    .with_hint("FORCE INDEX (PRIMARY)", dialect_name="mysql")
)


@dataclass(frozen=True, slots=True)
class SignOn:
    """A driver's new session in this market; `online` turns offline into online, and nothing else."""

    driver_id: DriverId
    market: MarketId
    online: bool = True


#: None: there is no such driver.
SignOnOutcome: TypeAlias = SignedOn | StoreUnavailable | None
OnSignOn = Callable[[int, SignOnOutcome], None]


class _Group:
    """The work of one transaction; after it, `busy` are those that were left for being held by another."""

    def __init__(self, asked: Sequence[SignOn], *, takes_held: bool = False) -> None:
        self._asked = {one.driver_id: one for one in sorted(asked, key=lambda one: one.driver_id)}
        self._takes_held = takes_held
        self._before: dict[DriverId, MarketId] = {}  # markets left, by this attempt or by one before it
        self.busy: list[DriverId] = []

    async def __call__(self, session: Session) -> dict[DriverId, SignedOn]:
        held = await self._take(session)
        if not held:
            session.refused = True
            return {}
        *_, found, live, clock = await session.run(
            *_updates([self._asked[driver_id] for driver_id in held]),
            READ_DRIVERS_OF(driver_ids=held),
            READ_LIVE(driver_ids=held),
            NOW(),
        )
        rides = _rides_of(live)
        now = int(clock.rows[0][0])
        return {
            driver.driver_id: self._signed_on(driver, rides.get(driver.driver_id, []), now)
            for driver in map(driver_of, found.rows)
        }

    async def _take(self, session: Session) -> list[DriverId]:
        """Locks the rows, those that another holds left aside; an earlier attempt of ours may hold all of them."""
        ids = list(self._asked)
        lock = LOCK if self._takes_held or session.settling else LOCK_FREE
        [locked] = await session.run(lock(driver_ids=ids))
        held: list[DriverId] = []
        for driver_id, market in locked.rows:
            name = DriverId(text_of(driver_id))
            held.append(name)
            if market is not None and text_of(market) != self._asked[name].market:
                self._before[name] = MarketId(text_of(market))
        missing = sorted(self._asked.keys() - set(held))
        self.busy = []
        if missing and lock is LOCK_FREE:
            [known] = await session.run(READ_KNOWN(driver_ids=missing))
            self.busy = [DriverId(text_of(row[0])) for row in known.rows]
        return held

    def _signed_on(self, driver: Driver, rides: list[Ride], now: int) -> SignedOn:
        market = self._asked[driver.driver_id].market
        hint = Hint(NO_RIDE, driver.version, market, driver.driver_id)
        return SignedOn(driver, rides, hint, now, self._before.get(driver.driver_id))


def _updates(asked: Sequence[SignOn]) -> list[Step]:
    """One statement for all that come to the same market in the same way."""
    alike: dict[tuple[MarketId, bool], list[DriverId]] = {}
    for one in asked:
        alike.setdefault((one.market, one.online), []).append(one.driver_id)
    return [
        SIGN_ON(driver_ids=ids, to_market=market, set_online=int(online)) for (market, online), ids in alike.items()
    ]


def _rides_of(live: Reply) -> dict[DriverId, list[Ride]]:
    """By driver, in the order read: what is `now` first."""
    found: dict[DriverId, list[Ride]] = {}
    for row in live.rows:
        ride = ride_with_trip_of(row)
        if ride.trip is not None:
            found.setdefault(ride.trip.driver_id, []).append(ride)
    return found


async def sign_on(session: Session, driver_id: DriverId, market: MarketId, online: bool) -> SignedOn | None:
    """A new session: from here on the sessions before it can write no more (P7). Waits for who holds the driver."""
    return (await _Group([SignOn(driver_id, market, online)], takes_held=True)(session)).get(driver_id)


async def sign_on_many(
    database: Database, asked: Sequence[SignOn], on_outcome: OnSignOn | None = None
) -> list[SignOnOutcome]:
    """Outcomes in the order of `asked`; `on_outcome(i, outcome)` hears of each as soon as it stands.

    A driver that stands there twice has two sessions, the later of which supersedes the earlier. Raises
    StoreUnavailable where the database could not do a group at all; of those without an outcome until then nothing is
    known.
    """
    outcomes: list[SignOnOutcome] = [None] * len(asked)

    def settle(i: int, outcome: SignOnOutcome) -> None:
        outcomes[i] = outcome
        if on_outcome is not None:
            on_outcome(i, outcome)

    for positions in _groups(asked, settle):
        await _sign_on_group(database, {asked[i].driver_id: i for i in positions}, asked, settle)
    return outcomes


def _groups(asked: Sequence[SignOn], settle: OnSignOn) -> list[list[int]]:
    """Positions, each driver once a group; whose id is nobody's has its outcome at once."""
    groups: list[list[int]] = []
    sizes: dict[DriverId, int] = {}  # the group after the last one in which the driver stands
    for i, one in enumerate(asked):
        if not can_be_id(one.driver_id):
            settle(i, None)
            continue
        number = sizes.get(one.driver_id, 0)
        while number < len(groups) and len(groups[number]) >= GROUP_MAX:
            number += 1
        if number == len(groups):
            groups.append([])
        groups[number].append(i)
        sizes[one.driver_id] = number + 1
    return groups


async def _sign_on_group(
    database: Database, places: dict[DriverId, int], asked: Sequence[SignOn], settle: OnSignOn
) -> None:
    group = _Group([asked[i] for i in places.values()])
    signed = await database.write(group)
    busy = set(group.busy)
    for driver_id, i in places.items():
        if driver_id not in busy:
            settle(i, signed.get(driver_id))
    if busy:
        await _each_alone(database, [places[driver_id] for driver_id in group.busy], asked, settle)


async def _each_alone(database: Database, positions: Sequence[int], asked: Sequence[SignOn], settle: OnSignOn) -> None:
    turns = asyncio.Semaphore(max(1, min(ALONE_AT_ONCE, database.writers)))

    async def one(i: int) -> None:
        async with turns:
            try:
                signed = await database.write(_Group([asked[i]], takes_held=True))
            except StoreUnavailable as fault:
                settle(i, fault)
            else:
                settle(i, signed.get(asked[i].driver_id))

    await asyncio.gather(*[one(i) for i in positions])
