"""The store: every command and question of the service as one method each.

A facade: which transaction each one is, stands in the store_* module of its
noun; how transactions are run, repeated and given up, in `database`. Times are
whole milliseconds of the database's clock. Every method may raise
StoreUnavailable; what is merely expected is an outcome.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from geo.model import DriverId, MarketId
from matcher import (
    store_audit,
    store_batch,
    store_batches,
    store_drivers,
    store_events,
    store_leases,
    store_rides,
    store_sweep,
    store_trips,
)
from matcher.database import Database
from matcher.migrate import migrate, schema_is_current, schema_is_empty
from matcher.model import (
    ClientId,
    Driver,
    DriverStatus,
    Hint,
    Move,
    NewRide,
    Ride,
    RideEvent,
    RideId,
    RideState,
    Trip,
    TripId,
)
from matcher.outcomes import (
    LOST_DRIVER_ENGAGED,
    Audit,
    BatchRecord,
    CommandOutcome,
    Committed,
    DriverHistory,
    LostPairing,
    NotFound,
    Pairing,
    RequestOutcome,
    RideWait,
    SignedOn,
    Waiting,
)
from matcher.sessions import Conflict, Session, Unstorable, rows_of
from matcher.store_rides import OnOutcome
from matcher.store_rows import can_be_id, ride_with_trip_of

#: Pairings in one transaction; a longer plan is several, each with the lease checked.
PLAN_CHUNK = 1000
DRIVERS_CHUNK = 500
HISTORIES_MAX = 100_000
AUDIT_S_MAX = 120.0


class Store:
    """MySQL, MariaDB or a SQLite file, by its URL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 16, call_timeout_s: float = 5.0, lease_s: float = 5.0) -> Store:
        """Opens nothing yet: a server that is down shows in the first call, as StoreUnavailable.

        Raises StoreLocked where another process uses the file, ValueError for a
        URL that cannot be used. `lease_s` is how long a frozen process may keep
        its locks.
        """
        return cls(Database(url, pool_size=pool_size, call_timeout_s=call_timeout_s, lease_s=lease_s))

    async def close(self) -> None:
        await self._database.close()

    async def migrate(self) -> None:
        """Brings the schema to the newest revision; two processes may do it at once."""
        await migrate(self._database.url)

    async def schema_is_current(self) -> bool:
        return await schema_is_current(self._database)

    async def schema_is_empty(self) -> bool:
        """Whether nothing was ever migrated here, so that migrating can change nothing of anybody's."""
        return await schema_is_empty(self._database)

    async def now_ms(self) -> int:
        async def work(session: Session) -> int:
            return int((await rows_of(session, store_rides.NOW()))[0][0])

        return await self._database.read(work)

    # rides

    async def request_rides(
        self, new: Sequence[NewRide], *, on_outcome: OnOutcome | None = None
    ) -> list[RequestOutcome]:
        """Outcomes in the same order, after the commit (P2). One transaction for all; where it is
        refused each row alone, and `on_outcome(i, outcome)` hears of each as soon as it is settled.
        """
        return await store_rides.request_rides(self._database, new, on_outcome)

    async def ride(self, ride_id: RideId) -> Ride | None:
        if not can_be_id(ride_id):
            return None
        return await self._database.read(lambda session: store_rides.read_ride(session, ride_id))

    async def rides(
        self, client_id: ClientId | None, *, state: RideState | None, before: str | None, limit: int
    ) -> list[Ride]:
        """Newest first; `before` is the id of the last ride of the page before."""
        step = store_rides.list_step(client_id, state, before, limit)

        async def work(session: Session) -> list[Ride]:
            return [ride_with_trip_of(row) for row in await rows_of(session, step)]

        return await self._database.read(work)

    async def cancel_ride(self, ride_id: RideId, *, client_id: ClientId | None, reason: str) -> CommandOutcome:
        if not can_be_id(ride_id):
            return NotFound()
        return await self._database.write(
            lambda session: store_trips.cancel_ride(session, ride_id, client_id=client_id, reason=reason)
        )

    # drivers

    async def put_driver(
        self,
        driver_id: DriverId,
        *,
        vehicle_class: str,
        seats: int,
        status: DriverStatus | None = None,
        tags: Collection[str] = (),
    ) -> Driver:
        """Makes the driver or changes it; `status` None keeps it, a new one is offline. `tags` replace the old ones."""

        async def work(session: Session) -> Driver:
            return await store_drivers.put(
                session, driver_id, vehicle_class=vehicle_class, seats=seats, status=status, tags=tags
            )

        try:
            return await self._database.write(work)
        except Conflict:
            return await self._database.write(work)  # another made it just now: this time it is found

    async def driver(self, driver_id: DriverId) -> Driver | None:
        if not can_be_id(driver_id):
            return None
        return await self._database.read(lambda session: store_drivers.read(session, driver_id))

    async def sign_on(self, driver_id: DriverId, market: MarketId, *, online: bool = True) -> SignedOn | None:
        """A new epoch in this market, or None for an unknown driver. `online` turns offline into online."""
        return await self._database.write(lambda session: store_drivers.sign_on(session, driver_id, market, online))

    async def set_status(self, driver_id: DriverId, status: DriverStatus, *, epoch: int | None) -> Driver | None:
        """None when unknown or of an older epoch. With an epoch a suspension stands, as the answer shows."""
        return await self._database.write(lambda session: store_drivers.set_status(session, driver_id, status, epoch))

    async def live_trips(self, driver_ids: Sequence[DriverId]) -> list[Ride]:
        """The rides with a live trip of these drivers, each with that trip."""
        found: list[Ride] = []
        ordered = sorted(set(driver_ids))
        for i in range(0, len(ordered), DRIVERS_CHUNK):
            read = partial(store_drivers.live_trips, driver_ids=ordered[i : i + DRIVERS_CHUNK])
            found += await self._database.read(read)
        return found

    async def live_versions(self, driver_ids: Sequence[DriverId]) -> dict[DriverId, dict[TripId, int]]:
        """Of those of these drivers that have live trips, the trips and the versions of their rides."""
        found: dict[DriverId, dict[TripId, int]] = {}
        ordered = sorted(set(driver_ids))
        for i in range(0, len(ordered), DRIVERS_CHUNK):
            read = partial(store_drivers.live_versions, driver_ids=ordered[i : i + DRIVERS_CHUNK])
            for driver_id, trip_id, version in await self._database.read(read):
                found.setdefault(driver_id, {})[trip_id] = version
        return found

    async def engaged(self) -> frozenset[DriverId]:
        """The drivers with a live trip, in any market."""
        return await self._database.read(store_batch.engaged)

    async def driver_histories(
        self, market: MarketId, *, within_ms: int, limit: int = HISTORIES_MAX
    ) -> dict[DriverId, DriverHistory]:
        """Of each driver with a trip of this market that was matched within the last `within_ms`; first by id."""
        found = await self._database.read(lambda session: store_drivers.histories(session, market, within_ms, limit))
        return {each.driver_id: each for each in found}

    # trips

    async def trip(self, trip_id: TripId) -> Trip | None:
        return await self._database.read(lambda session: store_trips.read_trip(session, trip_id))

    async def trips_of(self, ride_id: RideId, *, limit: int = 100) -> list[Trip]:
        """The newest `limit` trips of the ride, in the order in which they were matched."""
        if not can_be_id(ride_id):
            return []
        return await self._database.read(lambda session: store_trips.trips_of(session, ride_id, limit))

    async def move_trip(
        self,
        trip_id: TripId,
        move: Move,
        *,
        driver_id: DriverId | None,
        epoch: int | None = None,
        reason: str | None = None,
    ) -> CommandOutcome:
        """A driver's command; `driver_id` None speaks for any driver, `epoch` fences an old session."""
        if not can_be_id(trip_id):
            return NotFound()
        return await self._database.write(
            lambda session: store_trips.move_trip(
                session, trip_id, move, driver_id=driver_id, epoch=epoch, reason=reason
            )
        )

    # batch

    async def waiting(self, market: MarketId, *, limit: int) -> Waiting:
        return await self._database.read(lambda session: store_batch.waiting(session, market, limit))

    async def commit_plan(
        self, market: MarketId, token: int, pairings: Sequence[Pairing], *, offer_ttl_ms: int | None = None
    ) -> Committed:
        """Raises LeaseLost. With `offer_ttl_ms` the drivers are asked, without it they are assigned."""
        whole = Committed([], [], [])
        for i in range(0, len(pairings), PLAN_CHUNK):
            part = await self._commit_part(market, token, pairings[i : i + PLAN_CHUNK], offer_ttl_ms)
            whole.hints.extend(part.hints)
            whole.trips.extend(part.trips)
            whole.lost.extend(part.lost)
        return whole

    async def _commit_part(
        self, market: MarketId, token: int, pairings: Sequence[Pairing], offer_ttl_ms: int | None
    ) -> Committed:
        try:
            return await self._database.write(
                lambda session: store_batch.commit_plan(session, market, token, pairings, offer_ttl_ms)
            )
        except (Conflict, Unstorable):
            if len(pairings) == 1:  # the backstop: a unique key refused this one
                return Committed([], [], [LostPairing(pairings[0], LOST_DRIVER_ENGAGED)])
        middle = len(pairings) // 2
        first = await self._commit_part(market, token, pairings[:middle], offer_ttl_ms)
        second = await self._commit_part(market, token, pairings[middle:], offer_ttl_ms)
        return Committed(first.hints + second.hints, first.trips + second.trips, first.lost + second.lost)

    async def record_batch(
        self,
        market: MarketId,
        token: int,
        batch_id: str,
        *,
        summary: Mapping[str, Any],
        input: bytes | None,  # noqa: A002 - the word that the column and the address have for it
        waits: Sequence[store_batches.Wait],
        keep_batches: int = 500,
        keep_inputs: int = 8,
    ) -> None:
        """Keeps what a batch came to, and why each of `waits` (ride, reason, detail) got no driver (P12).

        Of the market only the newest `keep_batches` are kept, and the inputs of the newest `keep_inputs` among
        those that had one. Recording a batch again changes nothing. Raises LeaseLost, and ValueError for an input
        beyond INPUT_BYTES_MAX, a summary or detail that is too large, and what is no JSON (NaN).
        """
        new = await store_batches.encoded(market, batch_id, summary, input, waits)
        with contextlib.suppress(Conflict):  # only this very batch can be in the way of itself
            await self._database.write(
                lambda session: store_batches.record(session, token, new, keep_batches, keep_inputs)
            )

    async def batches(self, market: MarketId | None, *, before: str | None, limit: int) -> list[BatchRecord]:
        """Newest first, of all markets where none is named; `before` is the last id of the page before."""
        step = store_batches.list_step(market, before, limit)

        async def work(session: Session) -> list[BatchRecord]:
            return [store_batches.batch_of(row) for row in await rows_of(session, step)]

        return await self._database.read(work)

    async def batch(self, batch_id: str) -> BatchRecord | None:
        if not can_be_id(batch_id):
            return None
        return await self._database.read(lambda session: store_batches.read_batch(session, batch_id))

    async def batch_input(self, batch_id: str) -> bytes | None:
        """The input as it was given; None for an unknown batch, and where it is not kept or not any more."""
        if not can_be_id(batch_id):
            return None
        data = await self._database.read(lambda session: store_batches.read_input(session, batch_id))
        return None if data is None else await asyncio.to_thread(zlib.decompress, data)

    async def ride_wait(self, ride_id: RideId) -> RideWait | None:
        """Why the ride was last left without a driver; it stands even when the ride was matched since."""
        if not can_be_id(ride_id):
            return None
        return await self._database.read(lambda session: store_batches.read_wait(session, ride_id))

    async def sweep(self, market: MarketId, token: int, *, limit: int = 500) -> list[Hint]:
        """Ends what reached its limit of time; raises LeaseLost. `limit` bounds each kind."""
        hints = await self._database.write(lambda session: store_sweep.sweep(session, market, token, limit))
        old = await self._database.read(lambda session: store_sweep.old_keys(session, limit))
        if old:
            await self._database.write(lambda session: store_sweep.forget_keys(session, old))
        return hints

    # leases

    async def acquire_lease(self, market: MarketId, holder: str, ttl_ms: int) -> int | None:
        """The fencing token, or None while another holds it."""
        return await self._database.write(lambda session: store_leases.acquire(session, market, holder, ttl_ms))

    async def renew_lease(self, market: MarketId, holder: str, token: int, ttl_ms: int) -> bool:
        step = store_leases.RENEW_LEASE(of_market=market, of_holder=holder, of_token=token, ttl_ms=ttl_ms)

        async def work(session: Session) -> bool:
            return (await session.run(step))[0].matched == 1

        return await self._database.write(work)

    async def release_lease(self, market: MarketId, token: int) -> None:
        step = store_leases.RELEASE_LEASE(of_market=market, of_token=token)
        await self._database.write(lambda session: session.run(step))

    # events

    async def events_after(self, known: Mapping[RideId, int], *, limit: int) -> list[RideEvent]:
        """Those newer than the version known of each ride, ordered by (ride_id, version)."""
        return await self._database.read(lambda session: store_events.events_after(session, known, limit))

    async def versions(self, ride_ids: Sequence[RideId]) -> dict[RideId, int]:
        return await self._database.read(lambda session: store_events.versions(session, ride_ids))

    async def unannounced(self, market: MarketId | None, *, older_than_ms: int, limit: int) -> list[Hint]:
        """The oldest first."""
        return await self._database.read(
            lambda session: store_events.unannounced(session, market, older_than_ms, limit)
        )

    async def mark_announced(self, hints: Sequence[Hint]) -> None:
        """Every version up to the hint's counts as announced by it."""
        for some in store_events.chunks(store_events.newest(hints), store_events.CHUNK):
            await self._database.write(partial(store_events.mark_announced, upto=some))

    async def audit(self) -> Audit:
        return await self._database.read(store_audit.audit, timeout_s=AUDIT_S_MAX)
