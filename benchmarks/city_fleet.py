"""All drivers of a measured city in one process: what they hear, what they answer, and when.

Everything here is called from the event loop's readers or from one clock's tick; nothing waits. What is timed
counts from the moment at which it was due, not from when this process got round to it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial

from benchmarks.city_agenda import Agenda
from benchmarks.city_driver import ACK_HEAD, BIT, NEXT, Down, DownRide, Driver, Job, command_frame, decode_down
from benchmarks.city_ledger import Seen, Told
from benchmarks.city_options import MARKET, CityOptions
from benchmarks.city_tally import Tally
from benchmarks.wire import Refused, Wire

SIGNING_ON_MAX = 200
SIGN_ON_TRIES = 20
RETRY_S = 0.5
#: The positions of one driver in so many are timed until they are applied.
TIMED_EVERY = 64
_WITH_DRIVER = frozenset({"accepted", "arrived", "in_progress"})
#: A sign-on that is refused so is refused again.
_NEVER = frozenset({400, 401, 403, 404, 422})
_RETRIED = frozenset({"overloaded", "store-unavailable"})
#: Who hears that a ride was offered or given to a driver: its id, and when.
OnOffer = Callable[[str, float], None]


class Fleet:
    def __init__(
        self, options: CityOptions, drivers: list[Driver], agenda: Agenda, seen: Seen, on_offer: OnOffer
    ) -> None:
        self.drivers = drivers
        self.trip_s = options.trip_s
        self.tally: Tally | None = None  # of the stretch under way
        self.busy = 0
        self.signed_on = 0
        self._options = options
        self._agenda = agenda
        self._seen = seen
        self._told: dict[str, Told] = {}
        self._on_offer = on_offer
        self._rng = random.Random(f"{options.seed}/fleet")
        self._ahead_ms = (time.time() - time.monotonic()) * 1000.0
        self._refs: dict[int, tuple[Driver, Job, str, float]] = {}
        self._ref = 0
        self._next = 0  # whose position is due next

    # Signing on

    async def sign_on(self, token_of: Callable[[str], str]) -> None:
        """Raises the last refusal of a driver that could not sign on."""
        ahead = iter(self.drivers)

        async def some() -> None:
            for driver in ahead:
                await self._sign_on(driver, token_of(driver.driver_id))

        async with asyncio.TaskGroup() as group:
            for _ in range(SIGNING_ON_MAX):
                group.create_task(some())

    async def _sign_on(self, driver: Driver, token: str) -> None:
        path = f"/v1/drivers/{driver.driver_id}/stream?market={MARKET}"
        for left in range(SIGN_ON_TRIES, 0, -1):
            try:
                driver.wire = await Wire.connect(
                    "127.0.0.1",
                    self._options.port,
                    path,
                    token=token,
                    on_frame=partial(self.on_frame, driver),
                    on_lost=partial(self._on_lost, driver),
                )
                driver.signed_on_s = time.monotonic()
                self.signed_on += 1
                return
            except (TimeoutError, OSError) as error:
                wait_s = max(error.retry_after_s, RETRY_S) if isinstance(error, Refused) else RETRY_S
                if left == 1 or (isinstance(error, Refused) and error.status in _NEVER):
                    raise
                await asyncio.sleep(wait_s * self._rng.uniform(0.5, 1.5))

    def _on_lost(self, driver: Driver, why: str) -> None:
        driver.wire = None
        self._seen.lost_sockets += 1
        self._note(f"socket lost: {why}")

    def _note(self, what: str) -> None:
        self._seen.errors[what] = self._seen.errors.get(what, 0) + 1

    # Positions: in turn, so many a second

    def say_positions(self, due: int, due_s: Callable[[int], float], first: int, now_s: float) -> int:
        """The next `due - first` positions, one a driver in turn; `due_s` is when the n-th of them was due.

        Returns how many were sent: who has no socket any more sends none.
        """
        drivers, at, sent = self.drivers, self._next, 0
        for number in range(first, due):
            driver = drivers[at]
            at = at + 1 if at + 1 < len(drivers) else 0
            if driver.wire is None:
                continue
            driver.wire.write(driver.position(now_s))
            sent += 1
            if driver.awaited is not None:
                driver.awaited.append((driver.seq, due_s(number)))
        self._next = at
        return sent

    def applied(self, after_s: float) -> None:
        """A timed position has come through, so long after it was due."""
        if self.tally is not None:
            self.tally.latency("position_to_applied").add(after_s)

    @property
    def unacked(self) -> int:
        """Positions sent and not acknowledged, by those who are signed on."""
        return sum(each.seq - each.acked for each in self.drivers if each.wire is not None)

    # What drivers hear

    def on_frame(self, driver: Driver, data: bytes) -> None:
        if data.startswith(ACK_HEAD):
            driver.ack = data
            return
        down, now_s = decode_down(data), time.monotonic()
        match down.type:
            case "offer" | "trip" if down.ride is not None and down.ride.trip is not None:
                self._on_trip(driver, down.ride, now_s)
            case "offer_withdrawn" if down.ride is not None and down.ride.trip is not None:
                self._on_withdrawn(driver, down.ride.trip.id)
            case "done" | "error" if down.ref in self._refs:
                self._on_answer(down, now_s)
            case "error":
                self._note(f"told of an error: {down.code}")

    def _on_trip(self, driver: Driver, ride: DownRide, now_s: float) -> None:
        trip = ride.trip
        assert trip is not None
        is_offer = trip.state == "offered"
        if trip.id in self._told or not (is_offer or trip.state in _WITH_DRIVER):
            return
        told = Told(trip.id, ride.id, driver.driver_id, now_s * 1000.0 + self._ahead_ms, is_offer)
        self._told[trip.id] = told
        self._seen.told.append(told)
        self._on_offer(ride.id, now_s)
        if driver.job is not None:
            driver.later = ride
        else:
            self._take(driver, ride, trip.id, now_s, is_offer=is_offer)

    def _take(self, driver: Driver, ride: DownRide, trip_id: str, now_s: float, *, is_offer: bool) -> None:
        job = driver.job = Job(ride, trip_id, self._rng.uniform(*self.trip_s), driver.lat, driver.lon)
        self.busy += 1
        if is_offer:
            self._plan(driver, job, "accept", now_s + self._rng.uniform(*self._options.think_s))
        else:
            job.began_s = now_s
            self._plan(driver, job, "arrive", job.due_s("arrive"))

    def _on_withdrawn(self, driver: Driver, trip_id: str) -> None:
        self._note("an offer ended without an answer")
        if (told := self._told.get(trip_id)) is not None:
            told.was_withdrawn = True
        if driver.job is not None and driver.job.trip_id == trip_id:
            self._drop(driver)

    def _drop(self, driver: Driver) -> None:
        """The job is over; what was told of meanwhile comes next."""
        driver.job = None
        self.busy -= 1
        later, driver.later = driver.later, None
        if later is not None and later.trip is not None:
            self._take(driver, later, later.trip.id, time.monotonic(), is_offer=later.trip.state == "offered")

    # What drivers say

    def _plan(self, driver: Driver, job: Job, verb: str, due_s: float) -> None:
        job.verb = verb
        self._agenda.add(due_s, lambda due_s: self._say(driver, job, verb, due_s))

    def _say(self, driver: Driver, job: Job, verb: str, due_s: float) -> None:
        """The command that was planned, unless the job is over or it was said already."""
        if driver.job is not job or job.verb != verb or driver.wire is None:
            return
        job.verb = ""
        self._ref += 1
        self._refs[self._ref] = (driver, job, verb, due_s)
        driver.wire.write(command_frame(verb, job.trip_id, self._ref))

    def _on_answer(self, down: Down, now_s: float) -> None:
        assert down.ref is not None
        driver, job, verb, due_s = self._refs.pop(down.ref)
        if driver.job is not job:
            return
        if down.type == "done":
            self._confirmed(driver, job, verb, due_s, now_s)
        elif down.code in _RETRIED:
            self._note(f"{verb}: {down.code}")
            job.verb = verb
            self._agenda.add(now_s + RETRY_S, lambda _: self._say(driver, job, verb, due_s))
        else:
            self._note(f"{verb}: {down.code}")
            self._drop(driver)

    def _confirmed(self, driver: Driver, job: Job, verb: str, due_s: float, now_s: float) -> None:
        if self.tally is not None:
            self.tally.latency(verb).add(now_s - due_s)
        self._told[job.trip_id].confirmed |= BIT[verb]
        if verb == "accept":
            job.began_s = now_s
        if following := NEXT[verb]:
            self._plan(driver, job, following, max(now_s, job.due_s(following)))
        else:
            self._drop(driver)

    def hurry(self, within_s: float) -> None:
        """All trips under way end soon, evenly spread, each with all its commands."""
        now_s = time.monotonic()
        self.trip_s = (0.0, 0.001)
        for driver in self.drivers:
            job = driver.job
            if job is None:
                continue
            job.length_s = 0.001
            if job.verb and job.verb != "accept":
                self._plan(driver, job, job.verb, now_s + self._rng.uniform(0.0, within_s))
