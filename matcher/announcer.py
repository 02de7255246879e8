"""The announcer: committed events reach their listeners, at least once, in order of version.

What happened stands in the store; a hint only says where to look. Each process
reads what its own listeners miss: one query for all of them, after a hint, after
a `Resync` (hints may have been lost), and every few seconds in any case. Rows
whose announcement was lost with the process that committed them are relayed by
whoever finds them. A driver's session hears of its driver's own row the same way,
without the relay: its version is compared with the others. So nothing depends on
a hint arriving (P9), and no queue is unbounded (P10): a hint for which there is no
room is relayed later. `outgoing` sends the hints of this process's own commits.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from geo.model import DriverId, MarketId
from matcher.errors import StoreUnavailable
from matcher.hints import Hints, HintsUnavailable, Resync
from matcher.listeners import Closed, DriverListener, RideListener, ended_view, has_moved_on
from matcher.model import NO_RIDE, Driver, Hint, Ride, RideEvent, RideId, TripId
from matcher.outgoing import HINTS_MAX, AnnouncerStats, Outgoing
from matcher.said import Said

log = logging.getLogger(__name__)
Key = TypeVar("Key")

#: Keys a query, events an answer.
READ_MAX = 500
EVENTS_MAX = 2000


class EventStore(Protocol):
    """What of the store the announcer needs (see matcher.store.Store)."""

    async def rides_of(self, ride_ids: Sequence[RideId]) -> dict[RideId, Ride]: ...

    async def live_trips(self, driver_ids: Sequence[DriverId]) -> list[Ride]: ...

    async def live_versions(self, driver_ids: Sequence[DriverId]) -> dict[DriverId, dict[TripId, int]]: ...

    async def drivers(self, driver_ids: Sequence[DriverId]) -> list[Driver]: ...

    async def driver_versions(self, driver_ids: Sequence[DriverId]) -> dict[DriverId, int]: ...

    async def events_after(self, known: Mapping[RideId, int], *, limit: int) -> list[RideEvent]: ...

    async def versions(self, ride_ids: Sequence[RideId]) -> dict[RideId, int]: ...

    async def unannounced(self, market: MarketId | None, *, older_than_ms: int, limit: int) -> list[Hint]: ...

    async def mark_announced(self, hints: Sequence[Hint]) -> None: ...


@dataclass(frozen=True, slots=True)
class _News:
    """Rides as they stand, and by ride the events since a driver was told of it, where another has it now.

    `is_cut`: there were more events than one answer holds.
    """

    rides: Mapping[RideId, Ride]
    events: Mapping[RideId, Sequence[RideEvent]]
    is_cut: bool = False


_NOTHING = _News({}, {})


class _Due(Generic[Key]):
    """A set of keys that somebody has to read; each stands in it once however often it is added."""

    def __init__(self) -> None:
        self._keys: set[Key] = set()
        self._wake = asyncio.Event()

    def add(self, keys: Collection[Key]) -> None:
        if keys:
            self._keys.update(keys)
            self._wake.set()

    async def take(self) -> list[Key]:
        await self._wake.wait()
        taken = [self._keys.pop() for _ in range(min(READ_MAX, len(self._keys)))]
        if not self._keys:
            self._wake.clear()
        return taken


class Announcer:
    """Belongs to one event loop; nothing is delivered unless `run` runs.

    `backstop_s` is how often everything listened for is read again, `relay_s`
    how often unannounced rows older than `relay_after_ms` are looked for.
    """

    def __init__(
        self,
        store: EventStore,
        hints: Hints,
        *,
        backstop_s: float = 5.0,
        relay_s: float = 1.0,
        relay_after_ms: int = 2000,
        outgoing_max: int = 10_000,
    ) -> None:
        self._store = store
        self._hints = hints
        self._backstop_s = backstop_s
        self._relay_s = relay_s
        self._relay_after_ms = relay_after_ms
        self._rides: dict[RideId, set[RideListener]] = {}
        self._drivers: dict[DriverId, set[DriverListener]] = {}
        self._markets: dict[MarketId, set[Callable[[], None]]] = {}
        self._hinted: dict[DriverId, dict[RideId, int]] = {}  # versions that drivers here may have to be told of
        self._due_rides: _Due[RideId] = _Due()
        self._due_drivers: _Due[DriverId] = _Due()
        self._due_rows: _Due[DriverId] = _Due()
        self._closed = False
        self._said = Said()
        self.stats = AnnouncerStats()
        self._outgoing = Outgoing(store, hints, self.stats, waiting_max=outgoing_max)

    def announce(self, hints: Sequence[Hint]) -> None:
        """After a commit: tells the listeners here at once and everybody else soon. Never blocks or raises."""
        for hint in hints:
            self._note(hint)
        self._outgoing.add(hints)

    @contextmanager
    def ride_listener(self, ride_id: RideId, known_version: int) -> Iterator[RideListener]:
        """A listener of this ride's events after `known_version`, for as long as the context lasts."""
        listener = RideListener(ride_id, known_version)
        if self._closed:
            listener.close(Closed.GOING_AWAY)
        listeners = self._rides.setdefault(ride_id, set())
        listeners.add(listener)
        self._due_rides.add((ride_id,))
        try:
            yield listener
        finally:
            self.stats.overflowed += listener.closed is Closed.OVERFLOW
            listeners.discard(listener)
            if not listeners and self._rides.get(ride_id) is listeners:
                del self._rides[ride_id]

    @contextmanager
    def driver_listener(
        self,
        driver_id: DriverId,
        callback: Callable[[Ride], None],
        on_row: Callable[[Driver], None] = lambda driver: None,
    ) -> Iterator[DriverListener]:
        """Calls back with every live trip of this driver, now and whenever it changes, its end included.

        `on_row` gets the driver's row when it is newer than what the listener was told of it.
        """
        listener = DriverListener(driver_id, callback, on_row)
        listeners = self._drivers.setdefault(driver_id, set())
        listeners.add(listener)
        self._due_drivers.add((driver_id,))
        try:
            yield listener
        finally:
            listeners.discard(listener)
            if not listeners and self._drivers.get(driver_id) is listeners:
                del self._drivers[driver_id]
                self._hinted.pop(driver_id, None)

    @contextmanager
    def market_listener(self, market: MarketId, callback: Callable[[], None]) -> Iterator[None]:
        """Calls back when some ride of this market may have changed."""
        self._markets.setdefault(market, set()).add(callback)
        try:
            yield
        finally:
            self._markets[market].discard(callback)

    async def run(self) -> None:
        """Delivers until cancelled, and outlives every fault of the store and the hints."""
        loops = (
            self._listen,
            self._outgoing.publish,
            self._outgoing.mark,
            lambda: self._read_due(self._due_rides, self._read_rides),
            lambda: self._read_due(self._due_drivers, self._read_drivers),
            lambda: self._read_due(self._due_rows, self._read_rows),
            self._backstop,
            self._relay,
        )
        async with asyncio.TaskGroup() as group:
            for loop in loops:
                group.create_task(self._forever(loop))

    async def close(self, within_s: float = 2.0) -> None:
        """Sends what is still to be sent, if `run` runs and it can, and ends the ride listeners."""
        self._closed = True
        try:
            async with asyncio.timeout(within_s):
                await self._outgoing.all_sent.wait()
        except TimeoutError:
            log.warning("some hints are left to be relayed, %d of them not yet sent", self._outgoing.waiting)
        for listeners in self._rides.values():
            for listener in listeners:
                listener.close(Closed.GOING_AWAY)

    async def _forever(self, loop: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await loop()
            except (StoreUnavailable, HintsUnavailable) as fault:
                self.stats.faults += 1
                if self._said.is_news(str(fault)):
                    log.info("the announcer waits: %s", fault)
            except Exception:  # logged and counted; the loop goes on, or listeners starve
                self.stats.faults += 1
                log.exception("the announcer stumbled")
            await asyncio.sleep(random.uniform(0.2, 1.0))

    def _note(self, hint: Hint) -> None:
        """Marks what this hint makes worth reading; cheap when nobody here listens."""
        if hint.ride_id == NO_RIDE and hint.driver_id is not None:
            self._note_row(hint.driver_id, hint.version)
            return
        if any(listener.version < hint.version for listener in self._rides.get(hint.ride_id, ())):
            self._due_rides.add((hint.ride_id,))
        if hint.driver_id is not None:
            self._note_for_driver(hint.driver_id, hint)
        for callback in tuple(self._markets.get(hint.market, ())):
            callback()

    def _note_row(self, driver_id: DriverId, version: int) -> None:
        if any(listener.row_version < version for listener in self._drivers.get(driver_id, ())):
            self._due_rows.add((driver_id,))

    def _note_for_driver(self, driver_id: DriverId, hint: Hint) -> None:
        if all(listener.knows(hint.ride_id, hint.version) for listener in self._drivers.get(driver_id, ())):
            return
        hinted = self._hinted.setdefault(driver_id, {})
        hinted[hint.ride_id] = max(hint.version, hinted.get(hint.ride_id, 0))
        self._due_drivers.add((driver_id,))

    async def _listen(self) -> None:
        async for item in self._hints.listen():
            if isinstance(item, Resync):
                self.stats.resyncs += 1
                self._due_rides.add(self._rides.keys())
                self._due_drivers.add(self._drivers.keys())
                self._due_rows.add(self._drivers.keys())
            else:
                self._note(item)

    async def _relay(self) -> None:
        while True:
            await asyncio.sleep(self._relay_s * random.uniform(0.75, 1.25))
            try:
                await self._for_unannounced(self._relay_after_ms, self._tell_again)
            except HintsUnavailable:
                # Every listener has compared versions by then. What hangs on the mark, webhooks, waits for no hint.
                unheard_ms = self._relay_after_ms + round(2000 * self._backstop_s)
                await self._for_unannounced(unheard_ms, self._store.mark_announced)
                raise

    async def _for_unannounced(self, older_than_ms: int, do: Callable[[Sequence[Hint]], Awaitable[None]]) -> None:
        full = True
        while full:
            hints = await self._store.unannounced(None, older_than_ms=older_than_ms, limit=HINTS_MAX)
            if hints:
                await do(hints)
            full = len(hints) == HINTS_MAX

    async def _tell_again(self, hints: Sequence[Hint]) -> None:
        await self._outgoing.tell(hints)
        self.stats.relayed += len(hints)

    async def _backstop(self) -> None:
        """Compares versions of everything listened for once a round, a slice at a time, and reads what differs."""
        while True:
            rides, drivers = list(self._rides), list(self._drivers)
            slices = max(1, -(-len(rides) // READ_MAX), -(-len(drivers) // READ_MAX))
            for number in range(slices):
                await asyncio.sleep(max(self._backstop_s / slices, 0.05))
                part = slice(number * READ_MAX, (number + 1) * READ_MAX)
                await self._check_drivers(drivers[part])
                await self._check_rows(drivers[part])
                await self._check_versions(rides[part])

    async def _check_drivers(self, drivers: Sequence[DriverId]) -> None:
        if not drivers:
            return
        live = await self._store.live_versions(drivers)
        for driver_id in drivers:
            versions = live.get(driver_id, {})
            if not all(listener.is_current(versions) for listener in self._drivers.get(driver_id, ())):
                self._due_drivers.add((driver_id,))

    async def _check_rows(self, drivers: Sequence[DriverId]) -> None:
        if not drivers:
            return
        for driver_id, version in (await self._store.driver_versions(drivers)).items():
            self._note_row(driver_id, version)

    async def _check_versions(self, rides: Sequence[RideId]) -> None:
        if not rides:
            return
        for ride_id, version in (await self._store.versions(rides)).items():
            if any(listener.version < version for listener in self._rides.get(ride_id, ())):
                self._due_rides.add((ride_id,))

    async def _read_due(self, due: _Due[Key], read: Callable[[Sequence[Key]], Awaitable[None]]) -> None:
        while True:
            keys = await due.take()
            try:
                await read(keys)
            except BaseException:
                due.add(keys)
                raise

    async def _read_rides(self, ride_ids: Sequence[RideId]) -> None:
        known = {}
        for ride_id in ride_ids:
            open_ones = [each.version for each in self._rides.get(ride_id, ()) if each.closed is None]
            if open_ones:
                known[ride_id] = min(open_ones)
        if not known:
            return
        events = await self._store.events_after(known, limit=EVENTS_MAX)
        for ride_id, of_ride in groupby(events, key=lambda event: event.ride_id):
            in_order = list(of_ride)
            for listener in tuple(self._rides.get(ride_id, ())):
                listener.take_in(in_order)
        if len(events) >= EVENTS_MAX:  # the rest of them is cut off
            self._due_rides.add(known)

    async def _read_drivers(self, driver_ids: Sequence[DriverId]) -> None:
        present = [driver_id for driver_id in driver_ids if driver_id in self._drivers]
        if not present:
            return
        hinted = {driver_id: dict(self._hinted.get(driver_id, ())) for driver_id in present}
        live: dict[DriverId, list[Ride]] = {driver_id: [] for driver_id in present}
        for ride in await self._store.live_trips(present):
            if ride.trip is not None:
                live[ride.trip.driver_id].append(ride)
        over = {driver_id: self._over(driver_id, rides, hinted[driver_id]) for driver_id, rides in live.items()}
        # Who has only something new is not kept waiting by what ended for others: an offer lives for seconds.
        for driver_id in [driver_id for driver_id, rides in over.items() if not rides]:
            self._tell_driver(driver_id, live[driver_id], hinted[driver_id], _NOTHING)
        ended = [driver_id for driver_id, rides in over.items() if rides]
        if ended:
            news = await self._news_of([told for driver_id in ended for told in over[driver_id].items()])
            for driver_id in ended:
                self._tell_driver(driver_id, live[driver_id], hinted[driver_id], news)
            if news.is_cut:
                self._due_drivers.add(ended)

    def _over(
        self, driver_id: DriverId, live: Sequence[Ride], hinted: Mapping[RideId, int]
    ) -> dict[RideId, Ride | None]:
        """Rides to be read, for they are not live with this driver any more, each as it was told last."""
        over: dict[RideId, Ride | None] = {}
        present = {ride.ride_id for ride in live}
        for listener in self._drivers.get(driver_id, ()):
            over |= {told.ride_id: told for told in listener.gone(live)}
            for ride_id, version in hinted.items():
                if ride_id not in present and not listener.knows(ride_id, version):
                    over.setdefault(ride_id, None)
        return over

    async def _news_of(self, over: Sequence[tuple[RideId, Ride | None]]) -> _News:
        """How these rides stand, and what happened to those that have another trip since; two queries for all."""
        rides = await self._store.rides_of([ride_id for ride_id, _ in over])
        moved: dict[RideId, int] = {}
        for ride_id, told in over:
            if told is not None and ride_id in rides and has_moved_on(told, rides[ride_id]):
                moved[ride_id] = min(told.version, moved.get(ride_id, told.version))
        events = await self._store.events_after(moved, limit=EVENTS_MAX) if moved else []
        of_ride = {ride_id: list(some) for ride_id, some in groupby(events, key=lambda event: event.ride_id)}
        return _News(rides, of_ride, is_cut=len(events) >= EVENTS_MAX)

    def _tell_driver(
        self, driver_id: DriverId, live: Sequence[Ride], hinted: Mapping[RideId, int], news: _News
    ) -> None:
        for listener in tuple(self._drivers.get(driver_id, ())):
            # Ends first: a ride that ended for this driver may be its own again by now.
            self._tell_ends(listener, listener.gone(live), news)
            listener.compare(live)
            self._tell_unseen(listener, hinted, news)
        self._forget_hinted(driver_id, hinted)

    async def _read_rows(self, driver_ids: Sequence[DriverId]) -> None:
        present = [driver_id for driver_id in driver_ids if driver_id in self._drivers]
        if not present:
            return
        for driver in await self._store.drivers(present):
            for listener in tuple(self._drivers.get(driver.driver_id, ())):
                listener.tell_row(driver)

    def _forget_hinted(self, driver_id: DriverId, told: Mapping[RideId, int]) -> None:
        """Drops what has been seen to, and keeps what was hinted at meanwhile."""
        left = {ride: v for ride, v in self._hinted.pop(driver_id, {}).items() if v > told.get(ride, 0)}
        if left:
            self._hinted[driver_id] = left

    def _tell_ends(self, listener: DriverListener, gone: Sequence[Ride], news: _News) -> None:
        """Tells of trips that are not live any more."""
        for told in gone:
            now = news.rides.get(told.ride_id)
            if now is None or told.trip is None:
                continue
            events = [each for each in news.events.get(told.ride_id, ()) if each.version > told.version]
            view = ended_view(told, now, events)
            if view is not None and listener.has(told.trip.trip_id):  # else its own command has ended it meanwhile
                listener.tell(view)

    def _tell_unseen(self, listener: DriverListener, hinted: Mapping[RideId, int], news: _News) -> None:
        """Tells of trips that were hinted at and ended before the driver was told of them."""
        for ride_id, version in hinted.items():
            now = news.rides.get(ride_id)
            if now is None or listener.knows(ride_id, version):
                continue
            if now.trip is not None and now.trip.driver_id == listener.driver_id:
                listener.tell(now)
