"""What the store answers: every expected outcome of a command is a value, never an exception.

Times are whole milliseconds of the database's clock (UTC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from geo.model import DriverId, LatLng, MarketId
from matcher.errors import StoreUnavailable
from matcher.model import Driver, Hint, Move, Ride, RideId, Slot, Trip, TripId


@dataclass(frozen=True, slots=True)
class Requested:
    """The ride stands (P2). `repeated`: this is the first answer again (P3), so the
    ride is shown as it was first answered: searching, version 1, without a trip."""

    ride: Ride
    hint: Hint | None  # None for a repetition
    repeated: bool


@dataclass(frozen=True, slots=True)
class KeyReused:
    """The client used this idempotency key within a day for a request with another body (P3)."""

    key: str


@dataclass(frozen=True, slots=True)
class MarketPaused:
    """An operator has paused the market and wants new rides refused; nothing was written."""

    market: MarketId
    reason: str | None


RequestOutcome: TypeAlias = Requested | KeyReused | MarketPaused | StoreUnavailable


@dataclass(frozen=True, slots=True)
class Done:
    """The command took effect, now or (without hints) when it was first sent.

    `hints` are of all rides that it changed: the end of a trip promotes the driver's next one.
    """

    ride: Ride
    hints: Sequence[Hint] = ()


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """The command came too late, too early or past a limit; `ride` is the present state.

    `allowed_at_ms`: too early, and from when on it is allowed.
    """

    ride: Ride
    allowed: tuple[Move, ...]
    allowed_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class NotFound:
    """No such ride or trip."""


@dataclass(frozen=True, slots=True)
class NotYours:
    """It belongs to another client or driver (P11)."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer session of this driver has signed on; this one may write no more (P7)."""


CommandOutcome: TypeAlias = Done | NotAllowed | NotFound | NotYours | Superseded


@dataclass(frozen=True, slots=True)
class NotAssignable:
    """The driver cannot take the ride; `why` is one of the LOST_ constants, `ride` the present state."""

    ride: Ride
    why: str


AssignOutcome: TypeAlias = Done | NotAllowed | NotAssignable | NotFound


@dataclass(frozen=True, slots=True)
class SignedOn:
    """A driver's new session: `driver.epoch` is its fencing number, `rides` those with a live trip of it.

    `hint` tells the driver's sessions on other processes; `now_ms` is the database's time. `left` is the market that
    the driver was in before, where that is another.
    """

    driver: Driver
    rides: list[Ride]
    hint: Hint
    now_ms: int
    left: MarketId | None = None

    @property
    def trips(self) -> list[Trip]:
        return [ride.trip for ride in self.rides if ride.trip is not None]


class SuspendTrips(StrEnum):
    """What becomes of the live trips of a driver that is suspended; an unanswered offer is withdrawn in any case."""

    KEEP = "keep"  # for an operator to see to, or the driver to finish over HTTP
    RELEASE = "release"  # before the pickup the ride searches on; a passenger aboard is brought to the destination
    END = "end"  # that one is cancelled too


@dataclass(frozen=True, slots=True)
class StatusSet:
    """A driver's new row; `finishing` is the trip that it still has to finish where it may take no more."""

    driver: Driver
    hints: Sequence[Hint]
    finishing: TripId | None = None


@dataclass(frozen=True, slots=True)
class MarketState:
    """What an operator said of a market. `new_rides` is None while it is open, else "refuse" or "queue"."""

    market: MarketId
    new_rides: str | None
    reason: str | None
    changed_by: str | None
    changed_at_ms: int

    @property
    def is_paused(self) -> bool:
        return self.new_rides is not None


@dataclass(frozen=True, slots=True)
class Carrying:
    """A driver with a passenger aboard, nothing in `next`, and where the passenger goes."""

    driver_id: DriverId
    dropoff: LatLng


@dataclass(frozen=True, slots=True)
class Approach:
    """A driver who accepted and is on its way since then.

    `distance_m` is from where it was when matched, or was to be free; 0 where that is not known.
    """

    ride_id: RideId
    trip_id: TripId
    driver_id: DriverId
    pickup: LatLng
    distance_m: float
    since_ms: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """One snapshot of what a batch decides over, at the database's time `now_ms`.

    `rides` are searching with their deadline ahead, oldest first; `engaged` the
    drivers with a live trip in any market; `refused` the drivers that a ride is
    not to be paired with again. `carrying` are the market's drivers who may be given a
    next ride, where they were asked for. `paused`: nobody is to be matched now.
    """

    now_ms: int
    rides: list[Ride]
    engaged: frozenset[DriverId]
    refused: Mapping[RideId, frozenset[DriverId]]
    carrying: Sequence[Carrying] = ()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Pairing:
    """One line of a plan: this driver for this ride, as it stood at `ride_version`."""

    trip_id: TripId
    ride_id: RideId
    ride_version: int
    driver_id: DriverId
    slot: Slot
    pickup_s: float
    distance_m: float
    abandon_after_ms: int
    decision: Mapping[str, Any]
    release_after_ms: int | None = None  # of a `next` trip: how long it may wait for its turn


@dataclass(frozen=True, slots=True)
class LostPairing:
    """A pairing that dropped out alone; `why` is one of the LOST_ constants."""

    pairing: Pairing
    why: str


LOST_RIDE_CHANGED = "ride_changed"  # not searching any more, at another version, or past its deadline
LOST_RIDE_BUSY = "ride_busy"  # its row is locked by a command under way
LOST_DRIVER_BUSY = "driver_busy"  # the same of the driver's row
LOST_DRIVER_ENGAGED = "driver_engaged"  # the slot is taken
LOST_DRIVER_NOT_ENGAGED = "driver_not_engaged"  # `next` without a live `now`
LOST_DRIVER_GONE = "driver_gone"  # unknown, not online, in another market, or with a vehicle that cannot serve the ride


@dataclass(frozen=True, slots=True)
class Committed:
    """What of a plan was committed; `hints` go out after it, one a trip, in the same order."""

    hints: list[Hint]
    trips: list[Trip]
    lost: list[LostPairing]


@dataclass(frozen=True, slots=True)
class RideWait:
    """Why the ride was left without a driver by the last batch that left it so (P12).

    `reason` is one of the batch's words; `detail` holds its counts.
    """

    ride_id: RideId
    reason: str
    detail: Mapping[str, Any]
    batch_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """What a batch came to; `input_bytes` is the size of its input where that is still kept."""

    batch_id: str
    market: MarketId
    decided_at_ms: int
    summary: Mapping[str, Any]
    input_bytes: int | None


@dataclass(frozen=True, slots=True)
class DriverHistory:
    """What became of a driver's trips of some past time.

    `ended_at_ms` is the newest end of any of them, None where none has ended; `refused` counts those
    that the driver declined, let time out or cancelled.
    """

    driver_id: DriverId
    ended_at_ms: int | None
    trips: int
    refused: int


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts from the database alone. Every field but the first three is to be 0 for `holds`."""

    rides: Mapping[str, int]  # by state
    trips: Mapping[str, int]  # by state
    rides_of_events: int  # rides that have any event
    drivers_doubled: int  # drivers with two live trips in one slot (P1)
    rides_doubled: int  # rides with two live trips (P1)
    next_without_now: int  # drivers with a live `next` and no live `now`
    rides_without_trip: int  # rides offered to in_progress without their live trip
    trips_without_ride: int  # live trips whose ride does not name them as its current trip
    versions_without_event: int  # rides with fewer events than versions, or without that of their version
    trips_overlapping: int  # pairs of `now` trips of one driver that overlap in time
    overdue: int  # rides searching past their deadline, trips live past their limit (P4), by over a minute

    @property
    def double_assignments(self) -> int:
        return self.drivers_doubled + self.rides_doubled + self.trips_overlapping

    @property
    def holds(self) -> bool:
        return not (
            self.double_assignments
            or self.next_without_now
            or self.rides_without_trip
            or self.trips_without_ride
            or self.versions_without_event
        )
