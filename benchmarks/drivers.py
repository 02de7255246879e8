"""One simulated driver: a real socket to the service, moving in straight lines, answering offers, serving its trips.

Its decisions are synchronous and follow from what the socket says and from its own
choices (benchmarks.choices); an offer is answered by one task, and a trip driven by
another from its stage to its end. Times are seconds of the process's monotonic clock
and speeds are metres a second of it: whoever runs a city faster than life scales them
before.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from api import schema
from api.client import ApiError, GaveUp, ProblemOut
from api.client_driver import CommandRefused, seconds_between
from benchmarks.choices import Answer, Choices, Leg, OfferChoice, TripChoice
from benchmarks.cities import Start, between, metres_between, moved
from geo.model import DriverId, LatLng
from matcher.model import LIVE_TRIP_STATES, Code, DriverStatus, Slot, TripState

if TYPE_CHECKING:
    from benchmarks.fleet import Fleet

#: A command is tried anew so often after the client has given it up.
COMMAND_ROUNDS_MAX = 5
#: A command that came too early is given again so long after it will be allowed: clocks are not that exact.
EARLY_S = 0.05
_LIVE = frozenset(state.value for state in LIVE_TRIP_STATES)


class Activity(StrEnum):
    OFFLINE = "offline"
    ON_BREAK = "on break"
    IDLE = "idle"
    ASKED = "asked"
    TO_PICKUP = "to pickup"
    BOARDING = "boarding"
    ON_TRIP = "on trip"


@dataclass(frozen=True, slots=True)
class Way:
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
    def drive(cls, origin: LatLng, target: LatLng, speed_mps: float, now_s: float) -> Way:
        return cls(origin, target, now_s, now_s + metres_between(origin, target) / speed_mps)


@dataclass(slots=True)
class Offer:
    """An offer that was shown to the driver. `is_asking`: its answer is under way to the service."""

    task: asyncio.Task[None]
    is_asking: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """What may be commanded instead; None: not known, as no answer came. `allowed_at`: it came too early."""

    allowed: frozenset[str] | None
    allowed_at: str | None = None


class Driver:
    """One driver: where it is, which trip it serves, and what it does next. Hears its socket (DriverListener)."""

    def __init__(self, fleet: Fleet, start: Start, rng: random.Random) -> None:
        self.driver_id: DriverId = start.driver_id
        self.start = start
        self.activity = Activity.OFFLINE
        self.due_s = 0.0
        self.welcomed = asyncio.Event()
        self.choices = Choices(fleet.options, rng)
        self.commands_by_http = rng.random() < fleet.options.http_share
        self.client = fleet.new_client(self, rng)
        self._fleet = fleet
        self._rng = rng
        self._way = Way(start.at, start.at, 0.0, 0.0)
        self._trip_id: str | None = None
        self._serving: asyncio.Task[None] | None = None
        self._asking = False
        self._next: schema.RideOut | None = None
        self._offers: dict[str, Offer] = {}  # by trip
        self._over: deque[str] = deque(maxlen=8)  # trips known to be over: late news of them is none
        self._status: str | None = None  # as the service has it; None: not yet welcomed
        self._break_at_s = math.inf
        self._rest_until_s = 0.0
        self._service_now: tuple[str | None, float] = (None, 0.0)  # its time, and when that was said

    @property
    def doing(self) -> Activity:
        """What is to be seen of it."""
        if not self.client.is_connected:
            return Activity.OFFLINE
        if self.activity is not Activity.IDLE:
            return self.activity
        if self._status == DriverStatus.ON_BREAK:
            return Activity.ON_BREAK
        return Activity.ASKED if self._offers else Activity.IDLE

    # What the socket says

    def on_welcome(self, welcome: schema.WelcomeFrame) -> None:
        now_s = time.monotonic()
        self._fleet.ledger.connected(self.driver_id, welcome, now_s)
        self._service_now = (welcome.now, now_s)
        self._take_status(welcome.status)
        self._start_work(now_s)
        self._forget_what_ended({trip_id for ride in welcome.rides if (trip_id := _trip_id(ride)) is not None})
        for ride in welcome.rides:
            if ride.trip is None or ride.trip.state != TripState.OFFERED:  # offers are told by on_offer
                self.on_ride(ride)
        self._fleet.hurry(self)

    def on_ride(self, ride: schema.RideOut) -> None:
        self._fleet.ledger.told(ride, self.driver_id, time.monotonic())
        self._take(ride)

    def on_offer(self, ride: schema.RideOut, expires_in_s: float) -> None:
        self._fleet.ledger.offered(ride, self.driver_id, time.monotonic())
        trip_id = _trip_id(ride)
        if trip_id is None or trip_id in self._offers or trip_id in self._over or self._fleet.closing:
            return
        offer = Offer(asyncio.create_task(self._consider(ride, self.choices.offer())))
        offer.task.add_done_callback(self._considered)
        self._offers[trip_id] = offer
        self._fleet.began()

    def on_offer_withdrawn(self, ride: schema.RideOut, code: str) -> None:
        self.on_ride(ride)

    def on_status(self, status: str, code: str | None) -> None:
        if status == DriverStatus.ON_BREAK and code == Code.MISSED_OFFERS:
            self._fleet.ledger.paused.add(self.driver_id)
        self._take_status(status)

    def on_queue(self, queue: schema.QueueFrame) -> None:
        """Places in a queue change nothing for this driver."""

    def on_lost(self, why: str) -> None:
        self._fleet.ledger.disconnected(self.driver_id, time.monotonic())
        if not self.client.away_s:  # else it was on purpose
            self._fleet.ledger.errors["driver socket: " + why.partition(":")[0]] += 1

    def _start_work(self, now_s: float) -> None:
        if self.welcomed.is_set():
            return
        self.welcomed.set()
        self.activity = Activity.IDLE
        self._break_at_s = now_s + self.choices.online_s()

    def _take_status(self, status: str) -> None:
        """Whoever is set on a break, by the service or an operator, rests a while and comes back."""
        if status != DriverStatus.ONLINE and self._status != status:
            self._rest_until_s = max(self._rest_until_s, time.monotonic() + self.choices.rest_s())
        self._status = status

    def _forget_what_ended(self, live: set[str]) -> None:
        """What the welcome does not tell has ended meanwhile."""
        if self._trip_id is not None and self._trip_id not in live:
            self._ended_elsewhere()
        if self._next is not None and _trip_id(self._next) not in live:
            self._next = None
        for trip_id in [each for each in self._offers if each not in live]:
            self._drop_offer(trip_id)

    def _take(self, ride: schema.RideOut) -> None:
        """What is known now of one of its trips."""
        trip = ride.trip
        if trip is None or trip.driver_id != self.driver_id or trip.state not in _LIVE:
            self._heard_end(ride)
            return
        if trip.state == TripState.OFFERED:
            return
        self._drop_offer(trip.id)
        if trip.id == self._trip_id or trip.id in self._over or self._fleet.closing:
            return
        if trip.slot == Slot.NEXT:
            self._next = ride  # begun when it is promoted, or the present one is over
        elif self._serving is not None:
            self._next = ride
            self._ended_elsewhere()  # there is one present trip, and it is this
        else:
            self._begin(ride)

    def _heard_end(self, ride: schema.RideOut) -> None:
        if self._next is not None and ride.id == self._next.id:
            self._next = None
        if ride.trip is None:
            return
        self._drop_offer(ride.trip.id)
        if ride.trip.id == self._trip_id:
            self._ended_elsewhere()

    def _ended_elsewhere(self) -> None:
        """Taken away by rider or service; a command under way will be told so itself."""
        if self._serving is not None and not self._asking:
            self._over.append(self._trip_id or "")
            self._serving.cancel()

    def stop_serving(self) -> list[asyncio.Task[None]]:
        """Ends what it does, at once where no command is under way; the tasks that are still to be waited for."""
        self._next = None
        if self._serving is not None and not self._asking:
            self._serving.cancel()
        for trip_id in list(self._offers):
            self._drop_offer(trip_id)
        return [each for each in (self._serving, *(offer.task for offer in self._offers.values())) if each is not None]

    def _note_fault(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fleet.ledger.errors[f"driver: {type(error).__name__}: {error}"] += 1

    # Offers

    async def _consider(self, ride: schema.RideOut, choice: OfferChoice) -> None:
        """Thinks it over and answers, unless it has ended before."""
        await asyncio.sleep(choice.after_s / 2)
        self._lose_network(choice.lost_s)
        await asyncio.sleep(choice.after_s / 2)
        if choice.answer is not Answer.IGNORE:
            await self._answer(choice.answer, ride)

    def _considered(self, task: asyncio.Task[None]) -> None:
        self._fleet.ended()
        self._note_fault(task)

    async def _answer(self, answer: Answer, ride: schema.RideOut) -> None:
        trip_id = _trip_id(ride) or ""
        offer = self._offers[trip_id]
        offer.is_asking = True
        try:
            answered, refusal = await self._ask(answer.value, ride)
        finally:
            offer.is_asking = False
        self._offers.pop(trip_id, None)
        if refusal is not None:
            return  # too late; or not known, then the socket tells what came of it
        if answer is Answer.DECLINE:
            self._over.append(trip_id)
        elif answered is not None:
            self._take(answered)

    def _drop_offer(self, trip_id: str) -> None:
        """It was answered, or it has ended; an answer under way will be told so itself."""
        offer = self._offers.get(trip_id)
        if offer is not None and not offer.is_asking:
            del self._offers[trip_id]
            offer.task.cancel()

    # Serving a trip

    def _begin(self, ride: schema.RideOut) -> None:
        self._trip_id = _trip_id(ride)
        self._serving = asyncio.create_task(self._serve(ride, self.choices.trip()))
        self._serving.add_done_callback(self._served)
        self._fleet.began()

    def _served(self, task: asyncio.Task[None]) -> None:
        self._fleet.ended()
        self._note_fault(task)
        is_over = self._trip_id in self._over
        self._trip_id, self._serving, self._asking = None, None, False
        now_s = time.monotonic()
        here = self._way.at(now_s)
        self._way = Way(here, here, now_s, now_s)
        if self.activity is not Activity.OFFLINE:
            self.activity = Activity.IDLE
        following = self._next
        if following is None or self._fleet.closing:
            return
        if is_over or (following.trip is not None and following.trip.slot != Slot.NEXT):
            self._next = None
            self._begin(following)

    async def _serve(self, ride: schema.RideOut, choice: TripChoice) -> None:
        """Drives the trip to its end, from whatever stage it stands at."""
        for _ in range(COMMAND_ROUNDS_MAX):
            refusal = await self._drive_trip(ride, choice)
            standing = None if refusal is None else _as_allowed(ride, refusal)
            if standing is None:
                self._over.append(_trip_id(ride) or "")
                return
            ride = standing  # elsewhere than thought: go on from there
            await asyncio.sleep(self._rng.uniform(0.1, 1.0))

    async def _drive_trip(self, ride: schema.RideOut, choice: TripChoice) -> Refusal | None:
        """None when the trip is over; else why a command was not taken."""
        trip = ride.trip
        if trip is None:
            return None
        if trip.state == TripState.ACCEPTED:
            self.activity = Activity.TO_PICKUP
            await self._drive_to(ride.pickup, Leg.TO_PICKUP, choice, share=0.5 if choice.gives_back else 1.0)
            if choice.gives_back:
                return await self._say("cancel", ride, reason="driver changed plans")
            if (refusal := await self._say("arrive", ride)) is not None:
                return refusal
        if trip.state in (TripState.ACCEPTED, TripState.ARRIVED):
            self.activity = Activity.BOARDING
            await asyncio.sleep(self._fleet.options.boarding_s)
            if not choice.rider_comes:
                return await self._wait_in_vain(ride)
            if (refusal := await self._say("start", ride)) is not None:
                return refusal
        self.activity = Activity.ON_TRIP
        await self._drive_to(ride.dropoff or ride.pickup, Leg.TO_DROPOFF, choice)
        return await self._say("complete", ride)

    async def _wait_in_vain(self, ride: schema.RideOut) -> Refusal | None:
        """The rider does not come: waits until that may be reported, and does."""
        for _ in range(COMMAND_ROUNDS_MAX):
            refusal = await self._say("no_show", ride)
            if refusal is None or refusal.allowed_at is None:
                return refusal
            said_now, said_s = self._service_now
            wait_s = seconds_between(said_now, refusal.allowed_at) - (time.monotonic() - said_s)
            await asyncio.sleep(max(0.0, wait_s) + EARLY_S)
        return refusal

    async def _drive_to(self, target: schema.PointOut, leg: Leg, choice: TripChoice, *, share: float = 1.0) -> None:
        now_s = time.monotonic()
        here = self._way.at(now_s)
        there = between(here, LatLng(target.lat, target.lon), share)
        self._way = Way.drive(here, there, self._fleet.options.speed_mps, now_s)
        self._fleet.hurry(self)
        takes_s = self._way.end_s - now_s
        if leg is choice.lost_on:
            await asyncio.sleep(takes_s * choice.lost_at)
            self._lose_network(choice.lost_s)
        await asyncio.sleep(now_s + takes_s - time.monotonic())
        await self.send_position(time.monotonic())  # so that it is seen to be there before it says so

    def _lose_network(self, lost_s: float) -> None:
        if lost_s > 0.0 and not self._fleet.closing:
            self._fleet.ledger.lost_connections += 1
            self.client.lose_network(lost_s)

    # Commands

    async def _say(self, verb: str, ride: schema.RideOut, *, reason: str | None = None) -> Refusal | None:
        """Gives a command until it is answered; None: it was taken."""
        return (await self._ask(verb, ride, reason=reason))[1]

    async def _ask(
        self, verb: str, ride: schema.RideOut, *, reason: str | None = None
    ) -> tuple[schema.RideOut | None, Refusal | None]:
        """The ride as a command has left it; or why the command was not taken."""
        trip_id = _trip_id(ride) or ""
        is_present = trip_id == self._trip_id
        self._asking = self._asking or is_present
        try:
            answered = await self._command(verb, trip_id, reason)
        except (CommandRefused, ApiError) as error:
            return None, self._refused(verb, error)
        except GaveUp as error:
            self._fleet.ledger.errors[f"{verb}: {type(error.cause).__name__}"] += 1
            return None, Refusal(frozenset() if self._fleet.closing else None)
        finally:
            self._asking = self._asking and not is_present
        self._fleet.ledger.confirmed(verb, ride.id, trip_id, time.monotonic())
        return answered, None

    def _refused(self, verb: str, error: CommandRefused | ApiError) -> Refusal:
        said: schema.ErrorFrame | ProblemOut = error.error if isinstance(error, CommandRefused) else error.problem
        refusal = Refusal(frozenset(said.allowed or ()), said.allowed_at)
        if refusal.allowed_at is None:
            self._fleet.ledger.refused_commands[f"{verb}: {said.code}"] += 1
        return refusal

    async def _command(self, verb: str, trip_id: str, reason: str | None) -> schema.RideOut | None:
        if not self.commands_by_http:
            return await self.client.command(verb, trip_id, reason=reason)
        if away_s := self.client.away_s:
            await asyncio.sleep(away_s)
        return await self._fleet.http_client(self.driver_id).command_trip(trip_id, verb, reason=reason)

    # Moving and resting

    def here(self, now_s: float) -> LatLng:
        return self._way.at(now_s)

    async def step(self, now_s: float) -> float:
        """Sends the position of this moment, and the status where it changes; returns when to do so next."""
        options = self._fleet.options
        await self._keep_status(now_s)
        if self.activity is Activity.IDLE and options.wander_m and now_s >= self._way.end_s:
            self._wander(now_s)
        await self.send_position(now_s)
        due_s = now_s + (options.position_interval_s if now_s < self._way.end_s else options.parked_interval_s)
        return min([due_s, *(at_s for at_s in (self._break_at_s, self._rest_until_s) if at_s > now_s)])

    async def send_position(self, now_s: float) -> None:
        here = self.here(now_s)
        speed_mps = self._fleet.options.speed_mps if now_s < self._way.end_s else 0.0
        await self.client.position(here.lat, here.lon, speed_mps=speed_mps)

    def wants_break(self, now_s: float) -> bool:
        return now_s < self._rest_until_s

    async def _keep_status(self, now_s: float) -> None:
        if self._status is None or self._fleet.closing:
            return
        if self._break_at_s <= now_s:
            self._rest_until_s = now_s + self.choices.rest_s()
            self._break_at_s = self._rest_until_s + self.choices.online_s()
            self._fleet.ledger.breaks += 1
        wanted = DriverStatus.ON_BREAK if self.wants_break(now_s) else DriverStatus.ONLINE
        if wanted != self._status and await self.client.set_status(wanted.value):
            self._status = wanted.value  # were it lost, the next welcome would tell

    def _wander(self, now_s: float) -> None:
        reach_m = self._fleet.options.wander_m
        target = moved(self.start.at, self._rng.gauss(0, reach_m), self._rng.gauss(0, reach_m))
        self._way = Way.drive(self.here(now_s), target, self._fleet.options.speed_mps / 2, now_s)


def _trip_id(ride: schema.RideOut) -> str | None:
    return None if ride.trip is None else ride.trip.id


_STAGES = (("complete", TripState.IN_PROGRESS), ("start", TripState.ARRIVED), ("arrive", TripState.ACCEPTED))


def _as_allowed(ride: schema.RideOut, refusal: Refusal) -> schema.RideOut | None:
    """The ride at the stage where these commands are allowed; None when none is: the trip is over."""
    if refusal.allowed is None:
        return ride
    for verb, state in _STAGES:
        if verb in refusal.allowed and ride.trip is not None:
            return msgspec.structs.replace(ride, trip=msgspec.structs.replace(ride.trip, state=state.value))
    return ride if "cancel" in refusal.allowed else None  # it is the next trip still
