"""The lifecycle's verbs on a real store, with a process that may end, or a connection that is cut, at a COMMIT.

The verbs have the names and arguments of tests.lifecycle_model.Model, and say what the store answered in its words.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from geo.model import DriverId, LatLng, MarketId
from matcher.connections import Opener
from matcher.database import Database
from matcher.errors import LeaseLost
from matcher.life import Life
from matcher.model import (
    Actor,
    ClientId,
    Code,
    Driver,
    DriverStatus,
    Hint,
    Move,
    NewRide,
    Ride,
    RideEvent,
    RideId,
    Slot,
    TripId,
)
from matcher.outcomes import (
    Approach,
    Audit,
    Done,
    KeyReused,
    MarketPaused,
    NotAllowed,
    NotAssignable,
    NotFound,
    NotYours,
    Pairing,
    Requested,
    StatusSet,
    Superseded,
    SuspendTrips,
    Waiting,
)
from matcher.sessions import Disconnected, Reply, Session
from matcher.statement import Params, Statement, Step
from matcher.store import Store
from matcher.store_operator import Assignment
from tests.lifecycle_world import (
    ABANDON_AFTER_MS,
    DONE,
    HERE,
    LEAD_MS,
    LEASE_LOST,
    LOST_GRACE_MS,
    MISSED_OFFERS_MAX,
    NO_SHOW_AFTER_MS,
    NONE,
    NOT_FOUND,
    NOT_YOURS,
    RELEASE_AFTER_MS,
    RETRY_MS,
    SUPERSEDED,
    Answer,
    Pair,
)
from tests.stores import StoreCase

T = TypeVar("T")
MARKET = MarketId(HERE)
LIFE = Life(
    lost_grace_ms=LOST_GRACE_MS,
    missed_offers_max=MISSED_OFFERS_MAX,
    no_show_after_ms=NO_SHOW_AFTER_MS,
    retry_ms=RETRY_MS,
)
PLACES: Mapping[str | None, LatLng | None] = {
    None: None,
    "museum": LatLng(40.7794, -73.9632),
    "station": LatLng(40.7527, -73.9772),
}
LEASE_MS = 365 * 24 * 3_600_000
#: All times of the rows, for a clock that is put forward.
TIMES: Mapping[str, Sequence[str]] = {
    "rides": ("requested_at", "deadline_at", "ended_at", "key_until", "pickup_at", "search_at", "first_deadline_at"),
    "trips": (
        *("matched_at", "now_since", "arrived_at", "started_at", "ended_at"),
        *("abandon_at", "due_at", "accepted_at", "release_at"),
    ),
    "drivers": ("updated_at", "lost_at"),
    "ride_events": ("at",),
}
AGES_OF_RIDE = ("requested_at", "deadline_at", "key_until", "pickup_at", "search_at", "first_deadline_at")
AGES_OF_TRIP = ("arrived_at", "abandon_at", "due_at", "release_at")


class Fault(StrEnum):
    """What happens at the next COMMIT that is sent."""

    CRASH_BEFORE = "the process ends before it: the transaction rolls back"
    CRASH_AFTER = "the process ends after it, and nobody hears the answer"
    CUT_BEFORE = "the connection is cut before it reaches the server"
    CUT_AFTER = "the connection is cut after it, before the answer"

    @property
    def is_before(self) -> bool:
        return self in (Fault.CRASH_BEFORE, Fault.CUT_BEFORE)

    @property
    def is_crash(self) -> bool:
        return self in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)


class Crash(Exception):
    """The process that ran the command is gone."""


class Faults:
    """`next` strikes once; `struck` says that it has."""

    def __init__(self) -> None:
        self.next: Fault | None = None
        self.struck = False

    async def commit(self, session: Session) -> None:
        fault, self.next = self.next, None
        if fault is None:
            await session.commit()
            return
        self.struck = True
        # Rolled back here and now: a server notices a closed connection only a little later.
        await (session.rollback() if fault.is_before else session.commit())
        raise Crash if fault.is_crash else Disconnected("cut")


class _Session:
    """Another session whose COMMIT may not go well."""

    def __init__(self, inner: Session, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self.settling = inner.settling
        self.refused = False

    async def run(self, *steps: Step) -> list[Reply]:
        return await self._inner.run(*steps)

    async def insert(self, statement: Statement, rows: Sequence[Params]) -> None:
        await self._inner.insert(statement, rows)

    async def begin(self) -> None:
        await self._inner.begin()

    async def begin_snapshot(self) -> None:
        await self._inner.begin_snapshot()

    async def commit(self) -> None:
        await self._faults.commit(self._inner)

    async def rollback(self) -> None:
        await self._inner.rollback()


class _Opener:
    """Another opener whose sessions may not commit well."""

    def __init__(self, inner: Opener, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self.idle_s_max = inner.idle_s_max
        self.open, self.discard, self.retire = inner.open, inner.discard, inner.retire
        self.close, self.finish = inner.close, inner.finish

    def session(self, connection: Any, settling: bool) -> Session:
        return _Session(self._inner.session(connection, settling), self._faults)


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """What the store said: in the model's words, the hints, and the ride or driver that it showed."""

    answer: Answer
    hints: Sequence[Hint] = ()
    ride: Ride | None = None
    driver: Driver | None = None
    allowed_at_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What the rows say, as the store reads them."""

    waiting: Waiting
    rides: Sequence[Ride]
    approaching: Sequence[Approach]
    events: Sequence[RideEvent]  # those after the known versions
    drivers: Sequence[Driver]
    unannounced: Sequence[Hint]
    audit: Audit


class StoreSide:
    """One store for a whole test, emptied before each example. Plain methods, for a machine that knows no loop."""

    def __init__(self, url: str, runner: asyncio.Runner) -> None:
        self.faults = Faults()
        self._run = runner.get_loop().run_until_complete
        database = Database(url, pool_size=4, call_timeout_s=30.0, lease_s=60.0)
        database._writers._opener = _Opener(database._writers._opener, self.faults)
        self.store = Store(database, {MARKET: LIFE})
        self._case = StoreCase(self.store, url)
        self.started_ms = self.now_ms = 0  # the database's, at the example's start and at the last look

    def close(self) -> None:
        self._run(self.store.close())

    def begin(self) -> None:
        self._case.empty()
        self.faults.next = None
        self.started_ms = self.now_ms = self._run(self.store.now_ms())

    def do(self, verb: str, args: Mapping[str, Any], fault: Fault | None) -> Heard | None:
        """None: the process ended meanwhile. Whether the fault struck at all is in `faults.struck`."""
        self.faults.next, self.faults.struck = fault, False
        call: Callable[..., Coroutine[Any, Any, Heard]] = getattr(_Verbs(self.store, self.now_ms), verb)
        try:
            return self._run(call(**args))
        except Crash:
            return None
        except LeaseLost:
            return Heard(LEASE_LOST)
        finally:
            self.faults.next = None

    def look(self, known: Mapping[RideId, int], drivers: Sequence[str]) -> View:
        view = self._run(_look(self.store, known, [DriverId(driver) for driver in drivers]))
        self.now_ms = view.waiting.now_ms
        return view

    def trips_of(self, ride: str) -> list[tuple[str, str, str, str | None]]:
        trips = self._run(self.store.trips_of(RideId(ride)))
        return [(trip.trip_id, trip.driver_id, trip.state.value, trip.end_code) for trip in trips]

    def events_of(self, rides: Sequence[str]) -> list[RideEvent]:
        return self._run(self.store.events_after({RideId(ride): 0 for ride in rides}, limit=10_000))

    # time, by the back door

    def pass_time(self, ms: int) -> None:
        for table, names in TIMES.items():
            self._earlier(table, names, ms)

    def age_ride(self, ride: str, ms: int) -> None:
        self._earlier("rides", AGES_OF_RIDE, ms, "ride_id", ride)

    def age_trip(self, trip: str, ms: int) -> None:
        self._earlier("trips", AGES_OF_TRIP, ms, "trip_id", trip)

    def age_loss(self, driver: str, ms: int) -> None:
        self._earlier("drivers", ("lost_at",), ms, "driver_id", driver)

    def end_lease(self) -> None:
        self._case.sql("UPDATE market_leases SET expires_at_ms = 0")

    def _earlier(self, table: str, names: Sequence[str], ms: int, key: str = "1", value: str | int = 1) -> None:
        shifts = ", ".join(f"{name}_ms = {name}_ms - {ms}" for name in names)
        self._case.sql(f"UPDATE {table} SET {shifts} WHERE {key} = ?", value)


async def _look(store: Store, known: Mapping[RideId, int], drivers: Sequence[DriverId]) -> View:
    return View(
        waiting=await store.waiting(MARKET, limit=500, carrying=True),
        rides=await store.rides(None, state=None, before=None, limit=500),
        approaching=await store.approaching(MARKET, limit=500),
        events=await store.events_after(known, limit=10_000),
        drivers=await store.drivers(drivers),
        unannounced=await store.unannounced(MARKET, older_than_ms=0, limit=10_000),
        audit=await store.audit(),
    )


class _Verbs:
    def __init__(self, store: Store, now_ms: int) -> None:
        self._store = store
        self._now_ms = now_ms

    async def request(
        self,
        ride: str,
        client: str,
        key: str | None,
        body: str,
        seats: int,
        dropoff: str | None,
        wait_ms: int,
        pickup_in_ms: int | None,
    ) -> Heard:
        new = NewRide(
            ride_id=RideId(ride),
            client_id=ClientId(client),
            market=MARKET,
            pickup=LatLng(40.75, -73.98),
            dropoff=PLACES[dropoff],
            seats=seats,
            vehicle_class="standard",
            deadline_ms=wait_ms,
            metadata={},
            idempotency_key=key,
            body_hash=body.encode().ljust(32, b"\0"),
            pickup_at_ms=None if pickup_in_ms is None else self._now_ms + pickup_in_ms,
            lead_ms=LEAD_MS,
        )
        [outcome] = await self._store.request_rides([new])
        match outcome:
            case Requested(first, hint, repeated):
                word = "repeated" if repeated else "requested"
                return Heard(Answer(word, detail=first.ride_id), [hint] if hint else [], first)
            case KeyReused():
                return Heard(Answer("key_reused"))
            case MarketPaused():
                return Heard(Answer("paused"))
        raise outcome

    async def cancel(self, ride: str, client: str | None, actor: str) -> Heard:
        of_client = None if client is None else ClientId(client)
        return _heard(await self._store.cancel_ride(RideId(ride), client_id=of_client, reason=None, actor=Actor(actor)))

    async def redirect(self, ride: str, dropoff: str, client: str | None, actor: str) -> Heard:
        to, of_client = PLACES[dropoff], None if client is None else ClientId(client)
        assert to is not None
        return _heard(await self._store.redirect_ride(RideId(ride), to, client_id=of_client, actor=Actor(actor)))

    async def move(self, trip: str, move: str, driver: str | None, epoch: int | None) -> Heard:
        by = None if driver is None else DriverId(driver)
        return _heard(await self._store.move_trip(TripId(trip), Move(move), driver_id=by, epoch=epoch))

    async def release(self, ride: str) -> Heard:
        return _heard(await self._store.release_ride(RideId(ride), reason="by hand"))

    async def complete(self, ride: str) -> Heard:
        return _heard(await self._store.complete_ride(RideId(ride), reason="by hand"))

    async def assign(self, ride: str, driver: str, trip: str, ttl_ms: int | None) -> Heard:
        new = Assignment(
            ride_id=RideId(ride),
            driver_id=DriverId(driver),
            trip_id=TripId(trip),
            reason="by hand",
            by="ann",
            abandon_after_ms=ABANDON_AFTER_MS,
            offer_ttl_ms=ttl_ms,
        )
        return _heard(await self._store.assign_ride(new))

    async def put_driver(self, driver: str, seats: int, status: str | None) -> Heard:
        to = None if status is None else DriverStatus(status)
        return _heard(await self._store.put_driver(DriverId(driver), vehicle_class="standard", seats=seats, status=to))

    async def set_status(self, driver: str, status: str, epoch: int | None) -> Heard:
        return _heard(await self._store.set_status(DriverId(driver), DriverStatus(status), epoch=epoch))

    async def suspend(self, driver: str, trips: str) -> Heard:
        return _heard(await self._store.suspend(DriverId(driver), trips=SuspendTrips(trips), reason="by hand"))

    async def sign_on(self, driver: str, market: str, online: bool) -> Heard:
        found = await self._store.sign_on(DriverId(driver), MarketId(market), online=online)
        if found is None:
            return Heard(NONE)
        held = tuple(str(trip.trip_id) for trip in found.trips)
        return Heard(Answer("signed_on", detail=(found.driver.epoch, held)), [found.hint], driver=found.driver)

    async def note_lost(self, driver: str, epoch: int) -> Heard:
        await self._store.note_lost(DriverId(driver), epoch=epoch)
        return Heard(NONE)

    async def pause(self, new_rides: str | None) -> Heard:
        state = await self._store.set_market_state(MARKET, new_rides=new_rides, reason="snow", changed_by="ann")
        return Heard(Answer("market", detail=state.new_rides))

    async def take_lease(self, holder: str) -> Heard:
        token = await self._store.acquire_lease(MARKET, holder, LEASE_MS)
        return Heard(NONE if token is None else Answer("lease", detail=token))

    async def commit(self, token: int, pairs: Sequence[Pair], ttl_ms: int | None) -> Heard:
        pairings = [_pairing(pair) for pair in pairs]
        committed = await self._store.commit_plan(MARKET, token, pairings, offer_ttl_ms=ttl_ms)
        lost = tuple((str(one.pairing.trip_id), one.why) for one in committed.lost)
        return Heard(Answer("committed", detail=lost), committed.hints)

    async def stall(self, token: int, ride: str, trip: str) -> Heard:
        hints = await self._store.withdraw(MARKET, token, RideId(ride), TripId(trip), Code.STALLED)
        return Heard(Answer("hints"), hints)

    async def sweep(self, token: int) -> Heard:
        return Heard(Answer("hints"), await self._store.sweep(MARKET, token))

    async def announce(self, ride: str, version: int) -> Heard:
        await self._store.mark_announced([Hint(RideId(ride), version, MARKET, None)])
        return Heard(NONE)


def _pairing(pair: Pair) -> Pairing:
    return Pairing(
        trip_id=TripId(pair.trip),
        ride_id=RideId(pair.ride),
        ride_version=pair.version,
        driver_id=DriverId(pair.driver),
        slot=Slot(pair.slot),
        pickup_s=60.0,
        distance_m=500.0,
        abandon_after_ms=ABANDON_AFTER_MS,
        decision={},
        release_after_ms=RELEASE_AFTER_MS,
    )


def _heard(outcome: object) -> Heard:
    match outcome:
        case Done(ride, hints):
            return Heard(DONE, hints, ride)
        case NotAllowed(ride, allowed, at_ms):
            moves = frozenset(str(move.value) for move in allowed)
            return Heard(Answer("not_allowed", moves), (), ride, allowed_at_ms=at_ms)
        case NotAssignable(ride, why):
            return Heard(Answer("not_assignable", detail=why), (), ride)
        case StatusSet(driver, hints, finishing):
            return Heard(Answer("status", detail=(driver.status.value, finishing)), hints, driver=driver)
        case NotFound():
            return Heard(NOT_FOUND)
        case NotYours():
            return Heard(NOT_YOURS)
        case Superseded():
            return Heard(SUPERSEDED)
        case None:
            return Heard(NONE)
    raise AssertionError(outcome)
