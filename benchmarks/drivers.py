"""One simulated driver: a real socket to the service, moving in straight lines, serving its trips.

Its decisions are synchronous and follow from what the socket says; a trip is
driven by one task from its stage to its end. Times are seconds of the process's
monotonic clock and speeds are metres a second of it: whoever runs a city faster
than life scales them before.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from api import schema
from api.client import ApiError, GaveUp
from api.client_driver import CommandRefused, DriverOptions
from benchmarks.cities import Start, Track, between, metres_between, moved
from geo.model import DriverId, LatLng
from matcher.model import LIVE_TRIP_STATES, DriverStatus, TripState

if TYPE_CHECKING:
    from benchmarks.fleet import Fleet

#: A command is tried anew so often after the client has given it up.
COMMAND_ROUNDS_MAX = 5
_LIVE = frozenset(state.value for state in LIVE_TRIP_STATES)
_ENDED_BY_ITSELF = frozenset({TripState.COMPLETED.value, TripState.CANCELLED.value})


class Activity(StrEnum):
    OFFLINE = "offline"
    IDLE = "idle"
    TO_PICKUP = "to pickup"
    BOARDING = "boarding"
    ON_TRIP = "on trip"


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """How the drivers behave. `cancel_share` of trips is given back by the driver on the way to the pickup,
    `http_share` of drivers send their commands over HTTP, `wander_m` is how far an idle driver roams (0: not)."""

    speed_mps: float
    position_interval_s: float
    parked_interval_s: float
    boarding_s: float = 1.0
    cancel_share: float = 0.0
    http_share: float = 0.0
    wander_m: float = 0.0
    signing_on_max: int = 48
    sign_on_s: float = 60.0
    market: str | None = None
    driver: DriverOptions = field(default_factory=DriverOptions)


@dataclass(frozen=True, slots=True)
class Leg:
    """A straight way, driven evenly from `start_s` to `end_s`."""

    origin: LatLng
    target: LatLng
    start_s: float
    end_s: float

    def at(self, now_s: float) -> LatLng:
        if now_s >= self.end_s:
            return self.target
        return between(self.origin, self.target, max(0.0, (now_s - self.start_s) / (self.end_s - self.start_s)))

    @classmethod
    def drive(cls, origin: LatLng, target: LatLng, speed_mps: float, now_s: float) -> Leg:
        return cls(origin, target, now_s, now_s + metres_between(origin, target) / speed_mps)


class Driver:
    """One driver: where it is, which trip it serves, and what it does next. Hears its socket (DriverListener)."""

    def __init__(self, fleet: Fleet, start: Start, rng: random.Random) -> None:
        self.driver_id: DriverId = start.driver_id
        self.start = start
        self.activity = Activity.OFFLINE
        self.due_s = 0.0
        self.welcomed = asyncio.Event()
        self.client = fleet.new_client(self, rng)
        self.commands_by_http = rng.random() < fleet.options.http_share
        self._fleet = fleet
        self._rng = rng
        self._leg = Leg(start.at, start.at, 0.0, 0.0)
        self._trip_id: str | None = None
        self._serving: asyncio.Task[None] | None = None
        self._asking = False
        self._next: schema.RideOut | None = None
        self._over: deque[str] = deque(maxlen=8)  # trips known to be over: late news of them is none

    # What the socket says

    def on_welcome(self, welcome: schema.WelcomeFrame) -> None:
        self.welcomed.set()
        if self.activity is Activity.OFFLINE:
            self.activity = Activity.IDLE
        if self._trip_id is not None and all(_trip_id(ride) != self._trip_id for ride in welcome.rides):
            self._ended_elsewhere()
        for ride in welcome.rides:
            self.on_ride(ride)
        self._fleet.hurry(self)

    def on_ride(self, ride: schema.RideOut) -> None:
        self._fleet.ledger.told(ride, self.driver_id, time.monotonic())
        trip = ride.trip
        if trip is None or trip.driver_id != self.driver_id or trip.state not in _LIVE:
            self._heard_end(ride)
        elif trip.id == self._trip_id or trip.id in self._over or self._fleet.closing:
            return
        elif self._serving is not None:
            self._next = ride  # chained: begun when the present trip is over
        else:
            self._begin(ride)

    def on_lost(self, why: str) -> None:
        self._fleet.ledger.errors["driver socket: " + why.partition(":")[0]] += 1

    def _heard_end(self, ride: schema.RideOut) -> None:
        if self._next is not None and ride.id == self._next.id:
            self._next = None
        if self._trip_id is None or ride.trip is None or ride.trip.id != self._trip_id:
            return
        if ride.trip.state not in _ENDED_BY_ITSELF:
            self._over.append(self._trip_id)
            self._ended_elsewhere()

    def _ended_elsewhere(self) -> None:
        """Taken away by rider or service; a command under way will be told so itself."""
        if self._serving is not None and not self._asking:
            self._serving.cancel()

    def stop_serving(self) -> asyncio.Task[None] | None:
        """Ends the trip's script, at once where no command is under way; else the task still to be waited for."""
        self._next = None
        if self._serving is not None and not self._asking:
            self._serving.cancel()
        return self._serving

    # Serving a trip

    def _begin(self, ride: schema.RideOut) -> None:
        self._trip_id = _trip_id(ride)
        self._serving = asyncio.create_task(self._serve(ride))
        self._serving.add_done_callback(self._served)
        self._fleet.began()

    def _served(self, task: asyncio.Task[None]) -> None:
        self._fleet.ended()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fleet.ledger.errors[f"driver: {type(error).__name__}: {error}"] += 1
        self._trip_id, self._serving, self._asking = None, None, False
        now_s = time.monotonic()
        here = self._leg.at(now_s)
        self._leg = Leg(here, here, now_s, now_s)
        if self.activity is not Activity.OFFLINE:
            self.activity = Activity.IDLE
        following, self._next = self._next, None
        if following is not None and not self._fleet.closing:
            self._begin(following)

    async def _serve(self, ride: schema.RideOut) -> None:
        """Drives the trip to its end, from whatever stage it stands at."""
        for _ in range(COMMAND_ROUNDS_MAX):
            refused_in = await self._drive_trip(ride)
            if refused_in is None:
                self._over.append(_trip_id(ride) or "")
                return
            ride = refused_in  # it stands elsewhere than thought: go on from there
            await asyncio.sleep(self._rng.uniform(0.1, 1.0))

    async def _drive_trip(self, ride: schema.RideOut) -> schema.RideOut | None:
        """None when the trip is over; else the ride as it stands, after a command was refused."""
        trip = ride.trip
        if trip is None:
            return None
        if trip.state == TripState.ACCEPTED:
            self.activity = Activity.TO_PICKUP
            gives_back = self._rng.random() < self._fleet.options.cancel_share
            await self._drive_to(ride.pickup, share=0.5 if gives_back else 1.0)
            if gives_back:
                return await self._say("cancel", ride, reason="driver changed plans")
            if (refused := await self._say("arrive", ride)) is not None:
                return refused
        if trip.state in (TripState.ACCEPTED, TripState.ARRIVED):
            self.activity = Activity.BOARDING
            await asyncio.sleep(self._fleet.options.boarding_s)
            if (refused := await self._say("start", ride)) is not None:
                return refused
        self.activity = Activity.ON_TRIP
        await self._drive_to(ride.dropoff or ride.pickup)
        return await self._say("complete", ride)

    async def _drive_to(self, target: schema.PointOut, *, share: float = 1.0) -> None:
        now_s = time.monotonic()
        here = self._leg.at(now_s)
        there = between(here, LatLng(target.lat, target.lon), share)
        self._leg = Leg.drive(here, there, self._fleet.options.speed_mps, now_s)
        self._fleet.hurry(self)
        await asyncio.sleep(self._leg.end_s - now_s)
        await self.send_position(time.monotonic())  # so that it is seen to be there before it says so

    async def _say(self, verb: str, ride: schema.RideOut, *, reason: str | None = None) -> schema.RideOut | None:
        """Gives a command until it is answered. None: it was taken, or nothing is left to command;
        else the ride as it stands."""
        trip_id = _trip_id(ride) or ""
        self._asking = True
        try:
            await self._command(verb, trip_id, reason)
        except CommandRefused as refusal:
            self._fleet.ledger.refused_commands[f"{verb}: {refusal.error.code}"] += 1
            return _as_allowed(ride, refusal.error.allowed or ())
        except ApiError as refusal:
            self._fleet.ledger.refused_commands[f"{verb}: {refusal.problem.code}"] += 1
            return _as_allowed(ride, refusal.problem.allowed or ())
        except GaveUp as error:
            self._fleet.ledger.errors[f"{verb}: {type(error.cause).__name__}"] += 1
            return None if self._fleet.closing else ride
        finally:
            self._asking = False
        self._fleet.ledger.confirmed(verb, ride.id, trip_id, time.monotonic())
        return None

    async def _command(self, verb: str, trip_id: str, reason: str | None) -> None:
        if self.commands_by_http:
            await self._fleet.http_client(self.driver_id).command_trip(trip_id, verb, reason=reason)
        else:
            await self.client.command(verb, trip_id, reason=reason)

    # Moving

    def here(self, now_s: float) -> LatLng:
        return self._leg.at(now_s)

    async def step(self, now_s: float) -> float:
        """Sends the position of this moment; returns when the next is due."""
        options = self._fleet.options
        if self.activity is Activity.IDLE and options.wander_m and now_s >= self._leg.end_s:
            self._wander(now_s)
        await self.send_position(now_s)
        return now_s + (options.position_interval_s if now_s < self._leg.end_s else options.parked_interval_s)

    async def send_position(self, now_s: float) -> None:
        here = self.here(now_s)
        speed_mps = self._fleet.options.speed_mps if now_s < self._leg.end_s else 0.0
        await self.client.position(here.lat, here.lon, speed_mps=speed_mps)

    def _wander(self, now_s: float) -> None:
        reach_m = self._fleet.options.wander_m
        target = moved(self.start.at, self._rng.gauss(0, reach_m), self._rng.gauss(0, reach_m))
        self._leg = Leg.drive(self.here(now_s), target, self._fleet.options.speed_mps / 2, now_s)


class TrackDriver(Driver):
    """A driver whose positions were recorded: it is where its track says, whatever trip it has.

    Its points are sent as recorded when their time has come, the newest at most once a
    position interval. While the record says `occupied` it is on a break, unless it serves
    a trip of this run; that trip's stages take the time of straight ways, as if driven.
    """

    def __init__(self, fleet: Fleet, start: Start, rng: random.Random, track: Track, clock: Callable[[float], float]):
        """`clock` turns this process's seconds into the track's."""
        super().__init__(fleet, start, rng)
        self._track = track
        self._clock = clock
        self._sent = -1
        self._on_break = False

    def here(self, now_s: float) -> LatLng:
        index = self._index(now_s)
        return LatLng(self._track.lat[index], self._track.lon[index])

    async def step(self, now_s: float) -> float:
        await self._set_break(self._track.occupied[self._index(now_s)] and self.activity is Activity.IDLE)
        await self.send_position(now_s)
        return now_s + self._fleet.options.position_interval_s

    async def send_position(self, now_s: float) -> None:
        index = self._index(now_s)
        if index != self._sent:
            here = self.here(now_s)
            await self.client.position(here.lat, here.lon)
            self._sent = index

    def on_welcome(self, welcome: schema.WelcomeFrame) -> None:
        self._on_break = welcome.status == DriverStatus.ON_BREAK
        super().on_welcome(welcome)

    async def _set_break(self, wanted: bool) -> None:
        if wanted != self._on_break and await self.client.set_status("on_break" if wanted else "online"):
            self._on_break = wanted

    def _index(self, now_s: float) -> int:
        return max(0, bisect_right(self._track.at_s, self._clock(now_s)) - 1)


def _trip_id(ride: schema.RideOut) -> str | None:
    return None if ride.trip is None else ride.trip.id


_STAGES = (("complete", TripState.IN_PROGRESS), ("start", TripState.ARRIVED), ("arrive", TripState.ACCEPTED))


def _as_allowed(ride: schema.RideOut, allowed: Iterable[str]) -> schema.RideOut | None:
    """The ride at the stage where these commands are allowed; None when none of them is: the trip is over."""
    moves = frozenset(allowed)
    for verb, state in _STAGES:
        if verb in moves and ride.trip is not None:
            return msgspec.structs.replace(ride, trip=msgspec.structs.replace(ride.trip, state=state.value))
    return None
