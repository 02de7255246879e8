"""Who listens to rides and drivers, and what each of them has been told.

Plain bookkeeping: what is delivered when is decided here, reading the store and
the hints is the announcer's. A ride's listener gets every event once, in order
of version; a driver's listener gets states, of which only the newest counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from geo.model import DriverId
from matcher.model import Driver, Ride, RideEvent, RideId, TripId, TripState

log = logging.getLogger(__name__)

#: How many rides a driver's listener remembers the versions of.
VERSIONS_MAX = 32
#: How a trip ended, by the name of the event, where its ride has gone on to another driver since.
_ENDED_BY = {
    "driver_cancelled": TripState.CANCELLED,
    "abandoned": TripState.ABANDONED,
    "declined": TripState.DECLINED,
    "timed_out": TripState.TIMED_OUT,
    "withdrawn": TripState.WITHDRAWN,
}


class Closed(StrEnum):
    """Why a ride's listener gets no more events after those that it holds."""

    FINAL = "final"  # the ride has ended
    OVERFLOW = "overflow"  # the listener did not keep up; it may resume after what it got
    GOING_AWAY = "going_away"  # the service stops


class RideListener:
    """One listener's events of one ride: each once, in order, without gaps, from `version` + 1 on.

    A ride has few events; a listener that lets `events_max` of them pile up is
    dropped with a marker (P10).
    """

    def __init__(self, ride_id: RideId, version: int, *, events_max: int = 100) -> None:
        self.ride_id = ride_id
        self.version = version  # of the newest event that was taken in
        self.closed: Closed | None = None
        self._events_max = events_max
        self._events: deque[RideEvent] = deque()
        self._wake = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether `next` will never again return an event."""
        return self.closed is not None and not self._events

    def take_in(self, events: Iterable[RideEvent]) -> None:
        """Takes what follows the newest one known; `events` are of this ride, in order of version."""
        for event in events:
            if self.closed is not None or event.version > self.version + 1:
                return
            if event.version <= self.version:
                continue
            if len(self._events) >= self._events_max:
                self.close(Closed.OVERFLOW)
                return
            self._events.append(event)
            self.version = event.version
            self._wake.set()
            if event.state.is_final:
                self.close(Closed.FINAL)

    def close(self, why: Closed) -> None:
        if self.closed is None:
            self.closed = why
            self._wake.set()

    async def next(self, timeout_s: float | None = None) -> RideEvent | None:
        """The next event, or None when there was none in time, or when the listener has `ended`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return None
        event = self._events.popleft() if self._events else None
        if not self._events and self.closed is None:
            self._wake.clear()
        return event

    async def __aiter__(self) -> AsyncIterator[RideEvent]:
        while not self.ended:
            if (event := await self.next()) is not None:
                yield event


class DriverListener:
    """What one driver's session has been told of its live trips, offers among them, and of its row.

    `callback` gets a ride with this driver's trip whenever either changed, the
    trip's end included; `on_row` the driver's row when somebody wrote it. They
    are called in the event loop and may not block.
    """

    def __init__(
        self,
        driver_id: DriverId,
        callback: Callable[[Ride], None],
        on_row: Callable[[Driver], None] = lambda driver: None,
    ) -> None:
        self.driver_id = driver_id
        self.row_version = 0  # of the driver's row, as last told
        self._callback = callback
        self._on_row = on_row
        self._live: dict[TripId, Ride] = {}  # as last told
        self._versions: dict[RideId, int] = {}  # of the rides last told of, ended ones too

    def told(self, ride: Ride) -> bool:
        """The driver knows this already, for example as the answer to its own command. False: it knows better."""
        if ride.trip is None or ride.trip.driver_id != self.driver_id:
            return False
        if not ride.trip.state.is_live:  # for good, also where the ride has come back to this driver since
            self._live.pop(ride.trip.trip_id, None)
        if self.knows(ride.ride_id, ride.version + 1):
            return False
        if ride.trip.state.is_live:
            self._live[ride.trip.trip_id] = ride
        self._versions.pop(ride.ride_id, None)  # so that the newest stand last
        self._versions[ride.ride_id] = ride.version
        if len(self._versions) > VERSIONS_MAX:
            del self._versions[next(iter(self._versions))]
        return True

    def knows(self, ride_id: RideId, version: int) -> bool:
        return self._versions.get(ride_id, 0) >= version

    def is_current(self, live: Mapping[TripId, int]) -> bool:
        """Whether this driver was told of just these live trips, each at this version of its ride or later."""
        return live.keys() == self._live.keys() and all(
            self._live[trip_id].version >= version for trip_id, version in live.items()
        )

    def gone(self, live: Sequence[Ride]) -> list[Ride]:
        """What was told of and is not among the driver's live trips: ended, or newer than these."""
        present = {ride.trip.trip_id for ride in live if ride.trip is not None}
        return [ride for trip_id, ride in self._live.items() if trip_id not in present]

    def has(self, trip_id: TripId) -> bool:
        """Whether the trip lives, as far as was told."""
        return trip_id in self._live

    def compare(self, live: Sequence[Ride]) -> None:
        """Tells what is new among the driver's live trips."""
        for ride in live:
            if not self.knows(ride.ride_id, ride.version):
                self.tell(ride)

    def tell(self, ride: Ride) -> None:
        """Unless the driver knows better."""
        if self.told(ride):
            self._call(lambda: self._callback(ride))

    def told_row(self, driver: Driver) -> None:
        """The session knows this row already, for example from its sign-on."""
        self.row_version = max(self.row_version, driver.version)

    def tell_row(self, driver: Driver) -> None:
        """Tells of the row where it is newer than the one that was told."""
        if driver.version > self.row_version:
            self.told_row(driver)
            self._call(lambda: self._on_row(driver))

    @property
    def has_offer(self) -> bool:
        """Whether an offer stands, as far as was told."""
        return any(ride.trip is not None and ride.trip.state is TripState.OFFERED for ride in self._live.values())

    @property
    def has_trip(self) -> bool:
        """Whether the driver has a trip that it accepted, as far as was told."""
        return any(ride.trip is not None and ride.trip.state is not TripState.OFFERED for ride in self._live.values())

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # one session's defect is not the others'
            log.exception("the listener of driver %s failed", self.driver_id)


def has_moved_on(told: Ride, now: Ride) -> bool:
    """Whether the ride has another trip by now than the one that was told of."""
    return told.trip is not None and now.trip is not None and now.trip.trip_id != told.trip.trip_id


def ended_view(told: Ride, now: Ride, events: Sequence[RideEvent]) -> Ride | None:
    """The ride as the driver of `told` may see it after that trip's end; None while it has not ended.

    `now` is the ride at present, `events` what happened to it since `told`. Where
    the ride has another trip by now, that one is none of this driver's business.
    """
    if told.trip is None or now.trip is None:
        return None
    if not has_moved_on(told, now):
        return None if now.trip.state.is_live else now
    for event in events:
        if event.trip_id == told.trip.trip_id and event.type in _ENDED_BY:
            trip = replace(
                told.trip,
                state=_ENDED_BY[event.type],
                slot=None,
                ended_at_ms=event.at_ms,
                end_reason=event.reason,
                end_code=event.code,
            )
            return replace(told, state=event.state, version=event.version, trip=trip)
    return None
