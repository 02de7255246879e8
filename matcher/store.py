"""The store: every command and question of the service as one method each.

A facade, of which a matcher's part is `store_matching`: which transaction each
method is, stands in the store_* module of its noun; how transactions are run,
repeated and given up, in `database`. Times are whole milliseconds of the
database's clock. Every method may raise StoreUnavailable; what is merely
expected is an outcome.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from geo.model import DriverId, LatLng, MarketId
from matcher import (
    store_audit,
    store_batch,
    store_drivers,
    store_events,
    store_markets,
    store_moves,
    store_operator,
    store_paths,
    store_rides,
    store_sign_on,
    store_trips,
)
from matcher.database import Database
from matcher.life import Lives
from matcher.migrate import migrate, schema_is_current, schema_is_empty
from matcher.model import (
    Actor,
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
    AssignOutcome,
    Audit,
    CommandOutcome,
    DriverHistory,
    MarketState,
    NotFound,
    RequestOutcome,
    SignedOn,
    StatusSet,
    SuspendTrips,
)
from matcher.sessions import Conflict, Session, rows_of
from matcher.store_matching import MatchingStore
from matcher.store_moves import OnMove
from matcher.store_operator import Assignment
from matcher.store_paths import PathPart, TripPath
from matcher.store_rides import OnOutcome
from matcher.store_rows import can_be_id, ride_with_trip_of, storable_reason
from matcher.store_sign_on import OnSignOn, SignOn, SignOnOutcome
from matcher.store_trips import TripMove
from matcher.store_webhooks import Webhooks

Id = TypeVar("Id", RideId, DriverId)

#: Ids that one query asks for.
IDS_CHUNK = 500
HISTORIES_MAX = 100_000
AUDIT_S_MAX = 120.0


def _in_chunks(ids: Sequence[Id]) -> Iterator[list[Id]]:
    ordered = sorted(set(ids))
    for i in range(0, len(ordered), IDS_CHUNK):
        yield ordered[i : i + IDS_CHUNK]


class Store(MatchingStore):
    """MySQL, MariaDB or a SQLite file, by its URL."""

    def __init__(self, database: Database, lives: Lives | None = None) -> None:
        super().__init__(database, lives)
        self.webhooks = Webhooks(database)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        pool_size: int = 16,
        call_timeout_s: float = 5.0,
        lease_s: float = 5.0,
        lives: Lives | None = None,
    ) -> Store:
        """Opens nothing yet: a server that is down shows in the first call, as StoreUnavailable.

        Raises StoreLocked where another process uses the file, ValueError for a
        URL that cannot be used. `lease_s` is how long a frozen process may keep
        its locks; `lives` are the markets' limits, the usual ones where a market has none.
        """
        return cls(Database(url, pool_size=pool_size, call_timeout_s=call_timeout_s, lease_s=lease_s), lives)

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

    async def answered_before(self, new: NewRide) -> RequestOutcome | None:
        """What the first request with this key was answered (P3), None without one. Nothing is written."""
        return await self._database.read(lambda session: store_rides.answered_before(session, new))

    async def ride(self, ride_id: RideId) -> Ride | None:
        if not can_be_id(ride_id):
            return None
        return await self._database.read(lambda session: store_rides.read_ride(session, ride_id))

    async def rides_of(self, ride_ids: Sequence[RideId]) -> dict[RideId, Ride]:
        """Those of these that there are."""
        found: dict[RideId, Ride] = {}
        for some in _in_chunks(ride_ids):
            read = await self._database.read(partial(store_rides.read_rides, ride_ids=some))
            found |= {ride.ride_id: ride for ride in read}
        return found

    async def rides(
        self, client_id: ClientId | None, *, state: RideState | None, before: str | None, limit: int
    ) -> list[Ride]:
        """Newest first; `before` is the id of the last ride of the page before."""
        step = store_rides.list_step(client_id, state, before, limit)

        async def work(session: Session) -> list[Ride]:
            return [ride_with_trip_of(row) for row in await rows_of(session, step)]

        return await self._database.read(work)

    async def cancel_ride(
        self, ride_id: RideId, *, client_id: ClientId | None, reason: str | None, actor: Actor = Actor.RIDER
    ) -> CommandOutcome:
        """For its client (None: any client's). An operator may cancel a ride under way, too."""
        if not can_be_id(ride_id):
            return NotFound()
        cancel = partial(store_trips.cancel_ride, client_id=client_id, reason=reason, actor=actor)
        return await self._database.write(lambda session: cancel(session, ride_id))

    async def redirect_ride(
        self, ride_id: RideId, dropoff: LatLng, *, client_id: ClientId | None, actor: Actor = Actor.RIDER
    ) -> CommandOutcome:
        """Another destination, until the ride has ended."""
        if not can_be_id(ride_id):
            return NotFound()
        redirect = partial(store_trips.redirect_ride, client_id=client_id, actor=actor)
        return await self._database.write(lambda session: redirect(session, ride_id, dropoff))

    async def release_ride(
        self, ride_id: RideId, *, reason: str | None, trip_id: TripId | None = None
    ) -> CommandOutcome:
        """An operator takes the driver from the ride, which searches on; with `trip_id` only that trip's."""
        if not can_be_id(ride_id) or not can_be_id(trip_id or ""):
            return NotFound()
        return await self._database.write(store_operator.Release(ride_id, reason, self._lives, trip_id))

    async def complete_ride(self, ride_id: RideId, *, reason: str | None) -> CommandOutcome:
        """An operator says for the driver that the ride is completed."""
        if not can_be_id(ride_id):
            return NotFound()
        return await self._database.write(lambda session: store_operator.complete(session, ride_id, reason=reason))

    async def assign_ride(self, new: Assignment) -> AssignOutcome:
        """An operator gives the ride a driver, in place of the one that it has where there is one."""
        if not can_be_id(new.ride_id) or not can_be_id(new.driver_id):
            return NotFound()
        return await self._database.write(lambda session: store_operator.assign(session, new, self._lives))

    # drivers

    async def put_driver(
        self,
        driver_id: DriverId,
        *,
        vehicle_class: str,
        seats: int,
        status: DriverStatus | None = None,
        tags: Collection[str] = (),
        lifts_suspension: bool = True,
    ) -> StatusSet:
        """Makes the driver or changes it; `status` None keeps it, a new one is offline. `tags` replace the old ones.

        Unless it `lifts_suspension`, a suspended driver stays so, as the answer shows.
        """

        async def work(session: Session) -> StatusSet:
            return await store_drivers.put(
                session,
                driver_id,
                vehicle_class=vehicle_class,
                seats=seats,
                status=status,
                tags=tags,
                lives=self._lives,
                lifts_suspension=lifts_suspension,
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
        return await self._database.write(lambda session: store_sign_on.sign_on(session, driver_id, market, online))

    async def sign_on_many(self, asked: Sequence[SignOn], *, on_outcome: OnSignOn | None = None) -> list[SignOnOutcome]:
        """As many single ones would be answered, in few transactions; `on_outcome(i, outcome)` hears of each as soon
        as it stands. Where a row is held by another its driver alone waits, and alone may be StoreUnavailable.
        """
        return await store_sign_on.sign_on_many(self._database, asked, on_outcome)

    async def set_status(self, driver_id: DriverId, status: DriverStatus, *, epoch: int | None) -> StatusSet | None:
        """None when unknown or of an older epoch. With an epoch a suspension stands, as the answer shows.

        Who takes no more trips gives an unanswered offer and the trip in `next` back, and finishes the present one.
        """
        return await self._database.write(
            lambda session: store_drivers.set_status(session, driver_id, status, epoch, self._lives)
        )

    async def suspend(self, driver_id: DriverId, *, trips: SuspendTrips, reason: str | None) -> StatusSet | None:
        """None when unknown. An unanswered offer and the trip in `next` are given back in any case."""
        if not can_be_id(driver_id):
            return None
        return await self._database.write(
            lambda session: store_drivers.suspend(session, driver_id, trips, reason, self._lives)
        )

    async def note_lost(self, driver_id: DriverId, *, epoch: int) -> None:
        """The socket of this session is gone: what it was offered is taken back unless it returns in time."""
        await self._database.write(lambda session: store_drivers.note_lost(session, driver_id, epoch))

    async def note_lost_of(self, epochs: Mapping[DriverId, int]) -> None:
        """The same of many drivers' sessions, each given by its epoch."""
        for some in _in_chunks(list(epochs)):
            epochs_of = {driver_id: epochs[driver_id] for driver_id in some}
            await self._database.write(partial(store_drivers.note_lost_of, epochs=epochs_of))

    async def drivers(self, driver_ids: Sequence[DriverId]) -> list[Driver]:
        """Those of these that there are, in any order."""
        found: list[Driver] = []
        for some in _in_chunks(driver_ids):
            found += await self._database.read(partial(store_drivers.read_all, driver_ids=some))
        return found

    async def driver_versions(self, driver_ids: Sequence[DriverId]) -> dict[DriverId, int]:
        """The versions of these drivers' own rows."""
        found: dict[DriverId, int] = {}
        for some in _in_chunks(driver_ids):
            found.update(await self._database.read(partial(store_drivers.versions, driver_ids=some)))
        return found

    async def live_trips(self, driver_ids: Sequence[DriverId]) -> list[Ride]:
        """The rides with a live trip of these drivers, each with that trip."""
        found: list[Ride] = []
        for some in _in_chunks(driver_ids):
            found += await self._database.read(partial(store_drivers.live_trips, driver_ids=some))
        return found

    async def live_versions(self, driver_ids: Sequence[DriverId]) -> dict[DriverId, dict[TripId, int]]:
        """Of those of these drivers that have live trips, the trips and the versions of their rides."""
        found: dict[DriverId, dict[TripId, int]] = {}
        for some in _in_chunks(driver_ids):
            read = partial(store_drivers.live_versions, driver_ids=some)
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
        return await store_moves.move_alone(
            self._database, TripMove(trip_id, move, driver_id, epoch, reason), self._lives
        )

    async def move_trips(self, asked: Sequence[TripMove], on_outcome: OnMove) -> None:
        """Commands of different drivers, together where that goes, each answered as if alone.

        `on_outcome(i, outcome)` hears of each as soon as it is settled.
        """
        await store_moves.move_trips(self._database, asked, self._lives, on_outcome)

    async def put_path_parts(self, parts: Sequence[PathPart]) -> int:
        """Those that stand already stay as they are; how many could never be stored. To be put again when it raises."""
        return await store_paths.put(self._database, parts)

    async def trip_path(self, trip_id: TripId) -> TripPath | None:
        """How far the trip's driver drove and by which way; None while nothing is known of it."""
        return await store_paths.read(self._database, trip_id)

    # markets

    async def market_states(self) -> list[MarketState]:
        """Of the markets that an operator has said something of."""
        return await self._database.read(store_markets.states)

    async def set_market_state(
        self, market: MarketId, *, new_rides: str | None, reason: str | None, changed_by: str
    ) -> MarketState:
        """Pauses the market ("refuse" new rides, or "queue" them), or opens it again (None)."""
        return await self._database.write(
            lambda session: store_markets.set_state(session, market, new_rides, storable_reason(reason), changed_by)
        )

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
