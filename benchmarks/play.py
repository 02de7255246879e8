"""One run of a city against a service: drivers sign on, riders ask, trips run out, and the books are closed.

What `hexhail demo` and `hexhail replay` share. The city's clock starts when the
first drivers have signed on, and runs `speed` times faster than this process's.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import aiohttp

from api import schema
from api.auth import Role, make_token
from api.client import ApiError, DispatchClient, GaveUp, Retry
from benchmarks.choices import FleetOptions
from benchmarks.cities import Start, Track, Wish
from benchmarks.drivers import Driver
from benchmarks.fleet import Fleet
from benchmarks.ledger import Ledger
from benchmarks.riders import Identity, RiderOptions, Riders
from benchmarks.track_driver import TrackDriver
from matcher.model import RideState

TOKEN_TTL_S = 86_400.0
PAGE_SIZE = 200
HISTORIES_AT_ONCE = 16
#: After the last request: so often it is asked whether any ride still waits for a driver.
WAITING_EVERY_S = 1.0
COMMANDS_END_S = 10.0
#: A call with its repetitions, other than a ride request, which has a limit of its own.
CALL_S_MAX = 20.0
#: Of rides that still want a driver, in this order: what goes to and fro meanwhile is hardly missed.
WAITING_STATES = (RideState.OFFERED.value, RideState.SEARCHING.value, RideState.OFFERED.value)


@dataclass(frozen=True, slots=True)
class City:
    """What is played: drivers by their first appearance, with tracks where they were recorded, and the wishes."""

    starts: Sequence[Start]
    wishes: Iterator[Wish]
    tracks: Sequence[Track] = ()
    rides_total: int | None = None


@dataclass(frozen=True, slots=True)
class PlayOptions:
    """`seconds` None: until the wishes end. `drain_s` bounds how long trips may run out afterwards."""

    speed: float
    fleet: FleetOptions
    riders: RiderOptions
    seed: int
    seconds: float | None = None
    drain_s: float = 60.0
    clients: int = 4
    name: str = "play"


class Play:
    """Wires a run together; `run` plays it, `stop` ends it early. The ledger stands throughout."""

    def __init__(
        self, base_url: str, secret: bytes, city: City, options: PlayOptions, session: aiohttp.ClientSession
    ) -> None:
        self.run_id = f"{options.name}-{secrets.token_hex(4)}"
        self.city = city
        self.options = options
        self.ledger = Ledger()
        self.phase = "registering"
        self.zero_s: float | None = None
        self._late: list[Driver] = []
        self._secret = secret
        self._stop = asyncio.Event()
        rng = random.Random(f"{options.seed}/play")
        self._rng = rng
        self._session = session
        self.identities = [self._identity(base_url, number) for number in range(options.clients)]
        riders_rng = random.Random(f"{options.seed}/riders")
        self.riders = Riders(self.identities, self.ledger, options.riders, riders_rng, self.run_id)
        self.fleet = Fleet(
            base_url,
            session,
            registrar=self._client(base_url, self._token(f"{self.run_id}-fleet", Role.FLEET, ["*"])),
            token_of=lambda driver_id: self._token(driver_id, Role.DRIVER),
            ledger=self.ledger,
            options=options.fleet,
            rng=rng,
        )

    def stop(self) -> None:
        self._stop.set()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    async def run(self) -> None:
        """Plays the city to its end, reads every ride's state and signs everybody off."""
        beat = asyncio.create_task(self.fleet.beat())
        later: list[asyncio.Task[Any]] = []
        try:
            await self._sign_on_early()
            self.zero_s = time.monotonic()
            later.append(asyncio.create_task(self._sign_on_later()))
            self.phase = "riding"
            await self._ride(later)
            self.phase = "running out"
            await self._run_out()
            self.phase = "closing the books"
            await self._give_up_waiting()
            await self.fleet.stop_serving(COMMANDS_END_S)
            await self._give_up_waiting()  # those whose drivers have refused or given them back meanwhile
            await self._read_states()
            for task in (beat, *later):
                if task.done() and not task.cancelled():
                    task.result()  # what ended before its time has ended with a fault
        finally:
            for task in (beat, *later):
                task.cancel()
            await asyncio.gather(beat, *later, return_exceptions=True)
            await self.riders.close()
            await self.fleet.settle()
            await self.fleet.close()
            self.phase = "over"

    # Drivers

    def _drivers(self) -> list[Driver]:
        tracks = {track.driver_id: track for track in self.city.tracks}
        drivers = []
        for start in self.city.starts:
            rng = random.Random(f"{self.options.seed}/{start.driver_id}")
            track = tracks.get(start.driver_id)
            drivers.append(
                Driver(self.fleet, start, rng)
                if track is None
                else TrackDriver(self.fleet, start, rng, track, self.city_s)
            )
        return drivers

    def city_s(self, now_s: float) -> float:
        """This process's seconds as the city's; 0 until the clock has started."""
        return 0.0 if self.zero_s is None else (now_s - self.zero_s) * self.options.speed

    async def _sign_on_early(self) -> None:
        """All drivers are made known before the clock starts; those there from the start sign on."""
        drivers = self._drivers()
        self._late = [driver for driver in drivers if driver.start.at_s > 0.0]
        await self._unless_stopped([self.fleet.register(driver) for driver in drivers])
        self.phase = "signing on"
        await self._unless_stopped([self.fleet.sign_on(driver) for driver in drivers if driver.start.at_s <= 0.0])

    async def _unless_stopped(self, works: list[Coroutine[Any, Any, Any]]) -> None:
        doing = asyncio.gather(*works)
        stopped = asyncio.create_task(self._stop.wait())
        either: list[asyncio.Future[Any]] = [doing, stopped]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            doing.cancel()
            await asyncio.gather(*either, return_exceptions=True)

    async def _sign_on_later(self) -> None:
        async with asyncio.TaskGroup() as group:
            for driver in self._late:
                wait_s = (self.zero_s or 0.0) + driver.start.at_s / self.options.speed - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self.fleet.sign_on(driver))

    # Riders

    async def _ride(self, later: list[asyncio.Task[Any]]) -> None:
        riding = asyncio.create_task(self.riders.run(self.city.wishes, self.zero_s or 0.0, self.options.speed))
        stopped = asyncio.create_task(self._stop.wait())
        later += [riding, stopped]
        await asyncio.wait([riding, stopped], timeout=self.options.seconds, return_when=asyncio.FIRST_COMPLETED)
        if riding.done():
            riding.result()
            return
        riding.cancel()  # the next wish is not asked for; what is being asked is answered
        within_s = COMMANDS_END_S if self.is_stopping else self.options.riders.answer_s
        await self.riders.answered(within_s)

    async def _run_out(self) -> None:
        """Until no ride wants a driver and no driver is busy with one, at most `drain_s`; at once when stopped."""
        stop_at = time.monotonic() + self.options.drain_s
        while not self.is_stopping and (left_s := stop_at - time.monotonic()) > 0:
            is_idle = await self.fleet.idle(min(left_s, WAITING_EVERY_S))
            if is_idle and not await self._any_waiting() and not self.fleet.busy:
                return

    async def _any_waiting(self) -> bool:
        try:
            for who in self.identities:
                for state in WAITING_STATES:
                    if (await who.client.ride_page(state=state, limit=1)).items:
                        return True
        except (ApiError, GaveUp) as error:
            self._note("listing rides", error)
            return True
        return False

    async def _give_up_waiting(self) -> None:
        """Riders still without a driver go home, so that nothing changes while states are read."""
        for state in WAITING_STATES:
            for who, ride in await self._all_rides(state):
                await self.riders.cancel(who.client, ride.id)

    async def _all_rides(self, state: str | None = None) -> list[tuple[Identity, schema.RideOut]]:
        """Where the service cannot be asked any more, the rest is not asked either: the ledger says so."""
        found: list[tuple[Identity, schema.RideOut]] = []
        try:
            for who in self.identities:
                found += [(who, ride) for ride in await who.client.rides(state=state, page_size=PAGE_SIZE)]
        except (ApiError, GaveUp) as error:
            self._note("listing rides", error)
            self.ledger.unread = str(error)
        return found

    def _note(self, what: str, error: Exception) -> None:
        self.ledger.errors[f"{what}: {error}"] += 1

    async def _read_states(self) -> None:
        """Every ride once more, and the history of those to which more happened than the clients heard."""
        owners = {}
        for who, ride in await self._all_rides():
            self.ledger.read_at_end(ride)
            owners[ride.id] = who.client
        gate = asyncio.Semaphore(HISTORIES_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for ride_id in self.ledger.needs_history():
                group.create_task(self._read_history(gate, owners[ride_id], self.ledger.last_state[ride_id]))

    async def _read_history(self, gate: asyncio.Semaphore, client: DispatchClient, ride: schema.RideOut) -> None:
        events: list[schema.EventOut] = []
        async with gate:
            try:
                async with asyncio.timeout(COMMANDS_END_S), aclosing(client.events(ride.id)) as stream:
                    async for event in stream:
                        if isinstance(event, schema.EventOut):
                            events.append(event)
                            if event.version >= ride.version:
                                break
            except (ApiError, GaveUp, TimeoutError) as error:
                self._note("reading a history", error)
                self.ledger.unread_histories.add(ride.id)
        self.ledger.read_history(events)

    # Who they are

    def _identity(self, base_url: str, number: int) -> Identity:
        client_id = f"{self.run_id}-{number:02d}"
        return Identity(client_id, self._client(base_url, self._token(client_id, Role.CLIENT)))

    def _client(self, base_url: str, token: str) -> DispatchClient:
        return DispatchClient(base_url, token, session=self._session, retry=Retry(deadline_s=CALL_S_MAX), rng=self._rng)

    def _token(self, subject: str, role: Role, drivers: Sequence[str] = ()) -> str:
        return make_token(self._secret, subject, role, ttl_s=TOKEN_TTL_S, drivers=drivers)
