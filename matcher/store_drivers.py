"""Drivers: their row, what they are on now, and what they were. Their sessions (epochs) begin in store_sign_on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa

from geo.model import DriverId, MarketId
from matcher.life import DEFAULT, Lives
from matcher.model import (
    Actor,
    Code,
    Driver,
    DriverStatus,
    Move,
    Ride,
    Slot,
    TripId,
    TripState,
)
from matcher.outcomes import DriverHistory, StatusSet, SuspendTrips
from matcher.sessions import Session, change, row_of, rows_of
from matcher.statement import Statement, Step
from matcher.store_changes import LOCK_DRIVERS_OF, Change, Fence, apply, decide, hints_of, with_promotions
from matcher.store_rows import (
    DRIVER_COLUMNS,
    RIDE_AND_TRIP,
    driver_hint,
    driver_of,
    ride_with_trip_of,
    storable_reason,
    storable_tags,
    text_of,
)
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
        version=drivers.c.version + 1,
        updated_at_ms=now_ms(),
    )
)
INSERT_DRIVER = Statement(
    drivers.insert().from_select(
        ["driver_id", "status", "vehicle_class", "seats", "market", "epoch", "updated_at_ms", "tags", "version"],
        sa.select(
            sa.bindparam("of_driver", type_=sa.String),
            sa.bindparam("to_status", type_=sa.String),
            sa.bindparam("to_class", type_=sa.String),
            sa.bindparam("to_seats", type_=sa.Integer),
            sa.null(),
            sa.literal_column("0"),
            now_ms(),
            sa.bindparam("to_tags", type_=sa.String),
            sa.literal_column("1"),
        ),
    )
)
_SET_STATUS = (
    drivers.update()
    .where(_DRIVER)
    .values(
        status=sa.bindparam("to_status"),
        status_code=sa.bindparam("to_code"),
        version=drivers.c.version + 1,
        updated_at_ms=now_ms(),
    )
)
SET_STATUS = Statement(_SET_STATUS)
#: Never out of a suspension.
SET_STATUS_UNLESS_SUSPENDED = Statement(_SET_STATUS.where(drivers.c.status != DriverStatus.SUSPENDED.value))
#: By a driver's own session: of the newest epoch alone, and never out of a suspension.
SET_STATUS_OF_EPOCH = Statement(
    _SET_STATUS.where(drivers.c.epoch == sa.bindparam("of_epoch"), drivers.c.status != DriverStatus.SUSPENDED.value)
)
_LIVE = (
    sa.select(*RIDE_AND_TRIP)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True)), trips.c.live_slot.is_not(None))
    .order_by(trips.c.driver_id, trips.c.live_slot.desc())  # `now` first
)
READ_LIVE = Statement(_LIVE)
READ_LIVE_NOW = Statement(_LIVE.add_columns(now_ms()))
NOTE_LOST = Statement(
    drivers.update()
    .where(_DRIVER, drivers.c.epoch == sa.bindparam("of_epoch"), drivers.c.lost_at_ms.is_(None))
    .values(lost_at_ms=now_ms())
)
NOTE_LOST_OF = Statement(
    drivers.update()
    .where(drivers.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True)), drivers.c.lost_at_ms.is_(None))
    .values(lost_at_ms=now_ms())
    .with_hint("FORCE INDEX (PRIMARY)", dialect_name="mysql")
)
READ_DRIVERS_OF = Statement(
    sa.select(*DRIVER_COLUMNS).where(drivers.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True)))
)
READ_DRIVER_VERSIONS = Statement(
    sa.select(drivers.c.driver_id, drivers.c.version).where(
        drivers.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True))
    )
)
#: What a check for news costs per driver: three short columns, where READ_LIVE has near thirty.
READ_LIVE_VERSIONS = Statement(
    sa.select(trips.c.driver_id, trips.c.trip_id, rides.c.version)
    .select_from(trips.join(rides, rides.c.ride_id == trips.c.ride_id))
    .where(trips.c.driver_id.in_(sa.bindparam("driver_ids", expanding=True)), trips.c.live_slot.is_not(None))
)
#: A trip that ended so was refused by its driver. A rider's no-show is not the driver's doing, and an abandoned trip
#: may as well be a lost phone's, as is an offer on a lost socket.
_REFUSED = sorted(state.value for state in (TripState.DECLINED, TripState.TIMED_OUT, TripState.CANCELLED))
_IS_REFUSED = sa.and_(trips.c.state.in_(_REFUSED), sa.func.coalesce(trips.c.end_code, "") != Code.CONNECTION_LOST.value)
READ_HISTORIES = Statement(
    sa.select(
        trips.c.driver_id,
        sa.func.max(trips.c.ended_at_ms),
        sa.func.count(),
        sa.func.sum(sa.case((_IS_REFUSED, 1), else_=0)),
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
    lives: Lives,
    lifts_suspension: bool,
) -> StatusSet:
    """Raises Conflict where another made the driver meanwhile: done again, it finds the row. Raises Raced."""
    values = {
        "of_driver": driver_id,
        "to_class": vehicle_class,
        "to_seats": seats,
        "to_tags": storable_tags(tags),
    }
    steps = [UPDATE_DRIVER(**values)]
    if status is not None:
        statement = SET_STATUS if lifts_suspension else SET_STATUS_UNLESS_SUSPENDED
        steps.append(statement(of_driver=driver_id, to_status=status.value, to_code=None))
    changed = await _set(session, driver_id, status, steps, lives)
    if changed is not None:
        return changed
    session.refused = False
    await change(session, INSERT_DRIVER(**values, to_status=(status or DriverStatus.OFFLINE).value))
    row = await row_of(session, READ_DRIVER(of_driver=driver_id))
    assert row is not None
    return StatusSet(driver_of(row), ())


async def read(session: Session, driver_id: DriverId) -> Driver | None:
    row = await row_of(session, READ_DRIVER(of_driver=driver_id))
    return None if row is None else driver_of(row)


async def set_status(
    session: Session, driver_id: DriverId, status: DriverStatus, epoch: int | None, lives: Lives
) -> StatusSet | None:
    """None for an unknown driver, and for an older session. With an epoch a suspension stands, as the answer shows.

    Who takes no more trips gives back what was not begun: an unanswered offer, and the trip in `next`. Raises Raced.
    """
    if epoch is None:
        step = SET_STATUS(of_driver=driver_id, to_status=status.value, to_code=None)
    else:
        step = SET_STATUS_OF_EPOCH(of_driver=driver_id, to_status=status.value, to_code=None, of_epoch=epoch)
    fence = None if epoch is None else Fence(driver_id, epoch)
    return await _set(session, driver_id, status, [step], lives, fence=fence)


async def suspend(
    session: Session, driver_id: DriverId, which: SuspendTrips, reason: str | None, lives: Lives
) -> StatusSet | None:
    """The operator takes the driver off the road; `which` says what becomes of its trips. Raises Raced."""
    step = SET_STATUS(of_driver=driver_id, to_status=DriverStatus.SUSPENDED.value, to_code=None)
    return await _set(
        session, driver_id, DriverStatus.SUSPENDED, [step], lives, which=which, reason=storable_reason(reason)
    )


async def _set(
    session: Session,
    driver_id: DriverId,
    status: DriverStatus | None,
    steps: Sequence[Step],
    lives: Lives,
    *,
    fence: Fence | None = None,
    which: SuspendTrips = SuspendTrips.KEEP,
    reason: str | None = None,
) -> StatusSet | None:
    """Writes the driver's row and what that makes of its trips; None where there is no such row, or another epoch."""
    live = await rows_of(session, READ_LIVE_NOW(driver_ids=[driver_id]))
    rides = [ride_with_trip_of(row) for row in live]
    changes: list[Change] = []
    if status is not None and status is not DriverStatus.ONLINE:
        at_ms = live[0][-1] if live else 0
        actor = Actor.OPERATOR if status is DriverStatus.SUSPENDED else Actor.DRIVER
        given_back = [_given_back(ride, status, which, at_ms, actor, reason, lives) for ride in rides]
        changes = [change for change in given_back if change is not None]
    kept = [ride for ride in rides if ride.ride_id not in {each.before.ride_id for each in changes}]
    whole = with_promotions(changes, kept)
    fences = () if fence is None else (fence,)
    applied = await apply(session, whole, fences=fences, drivers_too=steps, of_drivers=[driver_id], beside=kept)
    row = await row_of(session, READ_DRIVER(of_driver=driver_id))
    session.refused = row is None or applied.superseded
    if row is None or applied.superseded:
        return None
    driver = driver_of(row)
    own = driver_hint(driver)
    finishing = next((ride.trip.trip_id for ride in kept if ride.trip is not None), None)
    is_off = status is not None and status is not DriverStatus.ONLINE
    return StatusSet(driver, (*hints_of(whole), *([own] if own else [])), finishing if is_off else None)


def _given_back(
    ride: Ride,
    status: DriverStatus,
    which: SuspendTrips,
    at_ms: int,
    actor: Actor,
    reason: str | None,
    lives: Lives,
) -> Change | None:
    """What becomes of one live trip of a driver that takes no more; pure."""
    trip = ride.live_trip
    assert trip is not None
    suspended = status is DriverStatus.SUSPENDED
    code = Code.DRIVER_SUSPENDED if suspended else Code.DRIVER_BREAK
    retry_ms = lives.get(ride.market, DEFAULT).retry_ms
    is_begun = trip.slot is Slot.NOW and trip.state is not TripState.OFFERED
    if is_begun and (not suspended or which is SuspendTrips.KEEP):
        return None
    move = Move.WITHDRAW
    if trip.state is TripState.IN_PROGRESS:
        if which is not SuspendTrips.END:
            return None
        move = Move.OPERATOR_CANCEL
    return decide(move, ride, at_ms, actor=actor, code=code, reason=reason, retry_ms=retry_ms)


async def note_lost(session: Session, driver_id: DriverId, epoch: int) -> None:
    """The socket of this session is gone: an offer shown on it may be taken back after its grace."""
    await change(session, NOTE_LOST(of_driver=driver_id, of_epoch=epoch))


async def note_lost_of(session: Session, epochs: Mapping[DriverId, int]) -> None:
    """The same of many sessions, by driver, that had one socket. Drivers are locked in the order of their ids."""
    rows = await rows_of(session, LOCK_DRIVERS_OF(driver_ids=sorted(epochs)))
    lost = [DriverId(text_of(driver_id)) for driver_id, epoch in rows if epochs[DriverId(text_of(driver_id))] == epoch]
    if lost:
        await change(session, NOTE_LOST_OF(driver_ids=lost))
    else:
        session.refused = True


async def read_all(session: Session, driver_ids: Sequence[DriverId]) -> list[Driver]:
    return [driver_of(row) for row in await rows_of(session, READ_DRIVERS_OF(driver_ids=sorted(driver_ids)))]


async def versions(session: Session, driver_ids: Sequence[DriverId]) -> list[tuple[DriverId, int]]:
    rows = await rows_of(session, READ_DRIVER_VERSIONS(driver_ids=sorted(driver_ids)))
    return [(DriverId(text_of(driver_id)), int(version)) for driver_id, version in rows]


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
