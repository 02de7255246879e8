"""Drivers: their row, their sessions (epochs), and what they are on now."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa

from geo.model import DriverId, MarketId
from matcher.model import Driver, DriverStatus, Ride, TripId, TripState
from matcher.outcomes import DriverHistory, SignedOn
from matcher.sessions import Session, change, row_of, rows_of
from matcher.statement import Statement
from matcher.store_rows import DRIVER_COLUMNS, RIDE_AND_TRIP, driver_of, ride_with_trip_of, storable_tags, text_of
from matcher.tables import drivers, now_ms, rides, trips

_DRIVER = drivers.c.driver_id == sa.bindparam("of_driver")

READ_DRIVER = Statement(sa.select(*DRIVER_COLUMNS).where(_DRIVER))
UPDATE_DRIVER = Statement(
    drivers.update()
    .where(_DRIVER)
    .values(
        vehicle_class=sa.bindparam("to_class"),
        seats=sa.bindparam("to_seats"),
        tags=sa.bindparam("to_tags"),
        status=sa.func.coalesce(sa.bindparam("to_status", type_=sa.String), drivers.c.status),
        updated_at_ms=now_ms(),
    )
)
INSERT_DRIVER = Statement(
    drivers.insert().from_select(
        ["driver_id", "status", "vehicle_class", "seats", "market", "epoch", "updated_at_ms", "tags"],
        sa.select(
            sa.bindparam("of_driver", type_=sa.String),
            sa.bindparam("to_status", type_=sa.String),
            sa.bindparam("to_class", type_=sa.String),
            sa.bindparam("to_seats", type_=sa.Integer),
            sa.null(),
            sa.literal_column("0"),
            now_ms(),
            sa.bindparam("to_tags", type_=sa.String),
        ),
    )
)
SIGN_ON = Statement(
    drivers.update()
    .where(_DRIVER)
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
        updated_at_ms=now_ms(),
    )
)
_SET_STATUS = drivers.update().where(_DRIVER).values(status=sa.bindparam("to_status"), updated_at_ms=now_ms())
SET_STATUS = Statement(_SET_STATUS)
#: By a driver's own session: of the newest epoch alone, and never out of a suspension.
SET_STATUS_OF_EPOCH = Statement(
    _SET_STATUS.where(drivers.c.epoch == sa.bindparam("of_epoch"), drivers.c.status != DriverStatus.SUSPENDED.value)
)
READ_LIVE = Statement(
    sa.select(*RIDE_AND_TRIP)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True)), trips.c.live_slot.is_not(None))
    .order_by(trips.c.driver_id, trips.c.live_slot.desc())  # `now` first
)
#: What a check for news costs per driver: three short columns, where READ_LIVE has near thirty.
READ_LIVE_VERSIONS = Statement(
    sa.select(trips.c.driver_id, trips.c.trip_id, rides.c.version)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True)), trips.c.live_slot.is_not(None))
)
#: A trip that ended so was refused by its driver. A rider's no-show is not the driver's doing, and an abandoned trip
#: may as well be a lost phone's.
_REFUSED = sorted(state.value for state in (TripState.DECLINED, TripState.TIMED_OUT, TripState.CANCELLED))
READ_HISTORIES = Statement(
    sa.select(
        trips.c.driver_id,
        sa.func.max(trips.c.ended_at_ms),
        sa.func.count(),
        sa.func.sum(sa.case((trips.c.state.in_(_REFUSED), 1), else_=0)),
    )
    .where(
        trips.c.market == sa.bindparam("market"),
        trips.c.matched_at_ms > now_ms() - sa.bindparam("within_ms", type_=sa.BigInteger),
    )
    .group_by(trips.c.driver_id)
    .order_by(trips.c.driver_id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)


async def put(
    session: Session,
    driver_id: DriverId,
    *,
    vehicle_class: str,
    seats: int,
    status: DriverStatus | None,
    tags: Collection[str],
) -> Driver:
    """Raises Conflict where another made the driver meanwhile: done again, it finds the row."""
    to_status = None if status is None else status.value
    values = {
        "of_driver": driver_id,
        "to_class": vehicle_class,
        "to_seats": seats,
        "to_tags": storable_tags(tags),
    }
    if not await change(session, UPDATE_DRIVER(**values, to_status=to_status)):
        await change(session, INSERT_DRIVER(**values, to_status=to_status or DriverStatus.OFFLINE.value))
    row = await row_of(session, READ_DRIVER(of_driver=driver_id))
    assert row is not None
    return driver_of(row)


async def read(session: Session, driver_id: DriverId) -> Driver | None:
    row = await row_of(session, READ_DRIVER(of_driver=driver_id))
    return None if row is None else driver_of(row)


async def sign_on(session: Session, driver_id: DriverId, market: MarketId, online: bool) -> SignedOn | None:
    """A new session: from here on the sessions before it can write no more (P7)."""
    if not await change(session, SIGN_ON(of_driver=driver_id, to_market=market, set_online=int(online))):
        session.refused = True
        return None
    found, live = await session.run(READ_DRIVER(of_driver=driver_id), READ_LIVE(driver_ids=[driver_id]))
    return SignedOn(driver_of(found.rows[0]), [ride_with_trip_of(row) for row in live.rows])


async def set_status(session: Session, driver_id: DriverId, status: DriverStatus, epoch: int | None) -> Driver | None:
    if epoch is None:
        await change(session, SET_STATUS(of_driver=driver_id, to_status=status.value))
    else:
        await change(session, SET_STATUS_OF_EPOCH(of_driver=driver_id, to_status=status.value, of_epoch=epoch))
    driver = await read(session, driver_id)
    return driver if driver is not None and epoch in (None, driver.epoch) else None


async def live_trips(session: Session, driver_ids: Sequence[DriverId]) -> list[Ride]:
    return [ride_with_trip_of(row) for row in await rows_of(session, READ_LIVE(driver_ids=sorted(driver_ids)))]


async def live_versions(session: Session, driver_ids: Sequence[DriverId]) -> list[tuple[DriverId, TripId, int]]:
    rows = await rows_of(session, READ_LIVE_VERSIONS(driver_ids=sorted(driver_ids)))
    return [(DriverId(text_of(driver)), TripId(text_of(trip)), int(version)) for driver, trip, version in rows]


async def histories(session: Session, market: MarketId, within_ms: int, limit: int) -> list[DriverHistory]:
    rows = await rows_of(session, READ_HISTORIES(market=market, within_ms=within_ms, limit=limit))
    return [
        DriverHistory(DriverId(text_of(driver)), None if ended is None else int(ended), int(count), int(refused))
        for driver, ended, count, refused in rows
    ]
