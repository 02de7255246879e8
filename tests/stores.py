"""A store under test: made on SQLite and on MySQL or MariaDB alike, with a back door to its rows.

The back door is a plain blocking connection of its own. Tests use it to move a
row's times into the past, which is how the database's clock is made to have
passed a deadline, and to plant what the audit must find.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geo.model import DriverId, LatLng, MarketId
from matcher.ids import new_ride_id, new_trip_id
from matcher.model import ClientId, Hint, Move, NewRide, Ride, RideEvent, RideId, Slot, Trip, TripId
from matcher.outcomes import AssignOutcome, Committed, Done, Pairing, Requested
from matcher.store import Store
from matcher.store_operator import Assignment
from tests.servers import mysql_connection

MARKET = MarketId("new-york")
HOLDER = "matcher-1"
HOUR_MS = 3_600_000
TABLES = (
    "rides",
    "trips",
    "drivers",
    "ride_events",
    "market_leases",
    "batches",
    "ride_waits",
    "matchers",
    "market_states",
    "zone_places",
    "webhooks",
    "webhook_deliveries",
    "trip_paths",
)


def new_ride(
    client: str = "alice",
    *,
    key: str | None = None,
    body: bytes = b"body",
    market: str = MARKET,
    deadline_ms: int = 600_000,
    metadata: Mapping[str, Any] | None = None,
    dropoff: LatLng | None = None,
    tags: tuple[str, ...] = (),
    pickup_at_ms: int | None = None,
    lead_ms: int = 0,
) -> NewRide:
    return NewRide(
        ride_id=new_ride_id(),
        client_id=ClientId(client),
        market=MarketId(market),
        pickup=LatLng(40.1 + 0.2, -73.98765432101234),
        dropoff=dropoff,
        seats=2,
        vehicle_class="standard",
        deadline_ms=deadline_ms,
        metadata=metadata or {},
        idempotency_key=key,
        body_hash=body.ljust(32, b"\0"),
        tags=tags,
        pickup_at_ms=pickup_at_ms,
        lead_ms=lead_ms,
    )


def pairing(
    ride: Ride,
    driver_id: str,
    *,
    slot: Slot = Slot.NOW,
    abandon_after_ms: int = HOUR_MS,
    release_after_ms: int | None = None,
) -> Pairing:
    return Pairing(
        trip_id=new_trip_id(),
        ride_id=ride.ride_id,
        ride_version=ride.version,
        driver_id=DriverId(driver_id),
        slot=slot,
        pickup_s=123.456,
        distance_m=789.01,
        abandon_after_ms=abandon_after_ms,
        decision={"batch": "b-1", "cost": {"pickup_s": 123.456}},
        release_after_ms=release_after_ms,
    )


class StoreCase:
    """A store with a lease of MARKET and a few verbs that shorten the tests."""

    def __init__(self, store: Store, url: str) -> None:
        self.store = store
        self.url = url
        self.token = 0
        self._names = itertools.count(1)

    async def lease(self) -> int:
        if not self.token:
            token = await self.store.acquire_lease(MARKET, HOLDER, HOUR_MS)
            assert token is not None
            self.token = token
        return self.token

    async def ride(self, client: str = "alice", **options: Any) -> Ride:
        [outcome] = await self.store.request_rides([new_ride(client, **options)])
        assert isinstance(outcome, Requested)
        return outcome.ride

    async def driver(self, driver_id: str | None = None, market: str = MARKET) -> DriverId:
        """A driver who has signed on to the market (epoch 1 for a new one)."""
        name = DriverId(driver_id or f"driver-{next(self._names)}")
        await self.store.put_driver(name, vehicle_class="standard", seats=4)
        assert await self.store.sign_on(name, MarketId(market)) is not None
        return name

    async def commit(self, *pairings: Pairing, offer_ttl_ms: int | None = None) -> Committed:
        return await self.store.commit_plan(MARKET, await self.lease(), pairings, offer_ttl_ms=offer_ttl_ms)

    async def match(
        self,
        ride: Ride,
        driver_id: str,
        *,
        slot: Slot = Slot.NOW,
        release_after_ms: int | None = None,
        offer_ttl_ms: int | None = None,
    ) -> Trip:
        plan = pairing(ride, driver_id, slot=slot, release_after_ms=release_after_ms)
        committed = await self.commit(plan, offer_ttl_ms=offer_ttl_ms)
        assert not committed.lost
        return committed.trips[0]

    async def matched(self, driver_id: str | None = None, **options: Any) -> tuple[Ride, Trip]:
        """A new ride that is assigned to a driver (a new one unless named)."""
        ride = await self.ride()
        trip = await self.match(ride, driver_id or await self.driver(), **options)
        return await self.now(ride.ride_id), trip

    async def move(self, trip: Trip, *moves: Move) -> Ride:
        """The trip's driver does these in turn, each of which must take effect."""
        ride = await self.now(trip.ride_id)
        for move in moves:
            ride = await self.done(await self.store.move_trip(trip.trip_id, move, driver_id=trip.driver_id))
        return ride

    async def offered(self, driver_id: str | None = None, **options: Any) -> tuple[Ride, Trip]:
        """A new ride that is offered to a driver (a new one unless named) for a minute."""
        return await self.matched(driver_id, offer_ttl_ms=60_000, **options)

    async def under_way(self, driver_id: str | None = None) -> tuple[Ride, Trip]:
        """A new ride with its passenger aboard."""
        _, trip = await self.matched(driver_id)
        return await self.move(trip, Move.ARRIVE, Move.START), trip

    async def assign(self, ride_id: RideId, driver_id: str, *, offer_ttl_ms: int | None = None) -> AssignOutcome:
        """An operator's assignment."""
        new = Assignment(
            ride_id, DriverId(driver_id), new_trip_id(), "by phone", "ann", HOUR_MS, offer_ttl_ms=offer_ttl_ms
        )
        return await self.store.assign_ride(new)

    async def done(self, outcome: object) -> Ride:
        """The ride of a command that took effect: as its row says it now."""
        assert isinstance(outcome, Done), outcome
        assert await self.now(outcome.ride.ride_id) == outcome.ride
        return outcome.ride

    async def now(self, ride_id: RideId) -> Ride:
        ride = await self.store.ride(ride_id)
        assert ride is not None
        return ride

    async def sweep(self) -> list[Hint]:
        return await self.store.sweep(MARKET, await self.lease())

    async def events(self, ride_id: RideId) -> list[str]:
        return [event.type for event in await self.store.events_after({ride_id: 0}, limit=100)]

    async def newest_event(self, ride_id: RideId) -> RideEvent:
        """The event of the ride's present version."""
        ride = await self.now(ride_id)
        [event] = await self.store.events_after({ride_id: ride.version - 1}, limit=100)
        assert (event.version, event.state) == (ride.version, ride.state)
        return event

    async def slots(self, driver_id: DriverId) -> dict[TripId, Slot | None]:
        """The driver's live trips and the places that they take."""
        live = await self.store.live_trips([driver_id])
        return {ride.trip.trip_id: ride.trip.slot for ride in live if ride.trip is not None}

    async def waiting_ids(self) -> list[RideId]:
        """The rides that a batch would see, in the order of the queue."""
        return [ride.ride_id for ride in (await self.store.waiting(MARKET, limit=100)).rides]

    # the back door

    def sql(self, statement: str, *values: Any) -> Sequence[Sequence[Any]]:
        """Runs it at once and commits; `?` marks the values."""
        with contextlib.closing(self._connection()) as connection:
            cursor = connection.cursor()
            cursor.execute(statement if self.is_sqlite else statement.replace("?", "%s"), values)
            rows: Sequence[Sequence[Any]] = cursor.fetchall()
            return rows

    def past_deadline(self, ride_id: RideId) -> None:
        self.sql("UPDATE rides SET deadline_at_ms = deadline_at_ms - ? WHERE ride_id = ?", 24 * HOUR_MS, ride_id)

    def past_limit(self, trip: Trip) -> None:
        """As if the trip's limit, and the time for its offer, had passed."""
        self.sql(
            "UPDATE trips SET due_at_ms = due_at_ms - ?, abandon_at_ms = abandon_at_ms - ? WHERE trip_id = ?",
            24 * HOUR_MS,
            24 * HOUR_MS,
            trip.trip_id,
        )

    def past_offer(self, trip: Trip) -> None:
        """As if the time for the offer (or of a `next` trip for its turn) had passed, and nothing else."""
        self.sql("UPDATE trips SET due_at_ms = due_at_ms - ? WHERE trip_id = ?", 24 * HOUR_MS, trip.trip_id)

    def lost_since(self, driver_id: DriverId, ms: int) -> None:
        """As if the driver's socket, which is noted as lost, had been so for `ms` more."""
        self.sql("UPDATE drivers SET lost_at_ms = lost_at_ms - ? WHERE driver_id = ?", ms, driver_id)

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    def _connection(self) -> Any:
        if self.is_sqlite:
            return sqlite3.connect(urlsplit(self.url).path[1:], isolation_level=None, timeout=5)
        return mysql_connection(self.url)

    def empty(self) -> None:
        with contextlib.closing(self._connection()) as connection:
            cursor = connection.cursor()
            for table in TABLES:
                cursor.execute(f"DELETE FROM {table}")


def migrated(url: str) -> str:
    """Brings a new database to the newest schema; for fixtures outside any event loop."""

    async def run() -> None:
        store = await Store.open(url)
        try:
            await store.migrate()
        finally:
            await store.close()

    asyncio.run(run())
    return url


def sqlite_url(folder: Path, name: str = "hexhail.db") -> str:
    return f"sqlite+aiosqlite:///{folder / name}"


@contextlib.contextmanager
def copied_sqlite(template_url: str, folder: Path) -> Iterator[str]:
    """A database of one test's own, like the template."""
    url = sqlite_url(folder)
    source = sqlite3.connect(urlsplit(template_url).path[1:])
    copy = sqlite3.connect(urlsplit(url).path[1:])
    with contextlib.closing(source), contextlib.closing(copy):
        source.backup(copy)
    yield url
