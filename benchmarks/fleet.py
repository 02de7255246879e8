"""All simulated drivers of a run: signing on, one beat for all their positions, signing off.

A driver (benchmarks.drivers) costs its socket's reader task and, while it has a
trip, one more; positions are sent by one loop for everybody.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import Counter
from collections.abc import Callable

import aiohttp

from api import schema
from api.client import ApiError, DispatchClient, GaveUp
from api.client_driver import DriverClient
from benchmarks.choices import FleetOptions
from benchmarks.drivers import Activity, Driver
from benchmarks.ledger import Ledger
from geo.model import DriverId

#: The beat looks for due positions this often.
BEAT_S = 0.02


class Fleet:
    """All drivers of a run, their one beat, and what they write into the ledger."""

    def __init__(
        self,
        base_url: str,
        session: aiohttp.ClientSession,
        *,
        registrar: DispatchClient,
        token_of: Callable[[str], str],
        ledger: Ledger,
        options: FleetOptions,
        rng: random.Random,
    ) -> None:
        """`registrar` may speak for all of the drivers; `token_of` makes the token of one."""
        self.options = options
        self.ledger = ledger
        self.drivers: dict[DriverId, Driver] = {}
        self.busy = 0  # trips driven and offers thought over, by all drivers
        self.closing = False
        self._base_url = base_url
        self._session = session
        self._registrar = registrar
        self._token_of = token_of
        self._rng = rng
        self._due: list[tuple[float, int, Driver]] = []
        self._pushed = 0
        self._runs: dict[DriverId, asyncio.Task[None]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._gate = asyncio.Semaphore(options.signing_on_max)

    def new_client(self, driver: Driver, rng: random.Random) -> DriverClient:
        return DriverClient(
            self._session,
            self._base_url,
            driver.driver_id,
            lambda: self._token_of(driver.driver_id),
            driver,
            market=self.options.market,
            options=self.options.driver,
            rng=rng,
        )

    def http_client(self, driver_id: DriverId) -> DispatchClient:
        return DispatchClient(self._base_url, lambda: self._token_of(driver_id), session=self._session, rng=self._rng)

    async def register(self, driver: Driver) -> None:
        """Makes the driver known to the service, with its seats; a fault is only counted, for sign-on will tell."""
        async with self._gate:
            try:
                await self._registrar.put_driver(driver.driver_id, schema.DriverRequest(seats=driver.start.seats))
            except (ApiError, GaveUp) as error:
                cause = error.cause if isinstance(error, GaveUp) else error
                self.ledger.errors[f"registering a driver: {type(cause).__name__}"] += 1

    async def sign_on(self, driver: Driver) -> bool:
        """Connects the driver and waits for its first welcome; False (and counted) when that takes too long.

        So many at a time as `signing_on_max` says; a driver that was late keeps trying.
        """
        async with self._gate:
            if self.closing:
                return False
            self.drivers[driver.driver_id] = driver
            run = asyncio.create_task(driver.client.run())
            run.add_done_callback(self._run_ended)
            self._runs[driver.driver_id] = run
            try:
                async with asyncio.timeout(self.options.sign_on_s):
                    await driver.welcomed.wait()
            except TimeoutError:
                self.ledger.errors["a driver's first sign-on took too long"] += 1
                return False
        return True

    def _run_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.ledger.errors[f"driver socket refused: {type(error).__name__}: {error}"] += 1

    def hurry(self, driver: Driver) -> None:
        """The driver's next position is due within one position interval, however long it was parked."""
        latest_s = time.monotonic() + self._rng.random() * self.options.position_interval_s
        if driver.due_s == 0.0 or driver.due_s > latest_s:
            self._schedule(driver, latest_s)

    def _schedule(self, driver: Driver, due_s: float) -> None:
        driver.due_s = due_s
        self._pushed += 1
        heapq.heappush(self._due, (due_s, self._pushed, driver))

    async def beat(self) -> None:
        """Sends every driver's positions when they are due, until cancelled."""
        while True:
            now_s = time.monotonic()
            while self._due and self._due[0][0] <= now_s:
                due_s, _, driver = heapq.heappop(self._due)
                if driver.due_s == due_s:  # else it was hurried, and stands in the heap anew
                    self._schedule(driver, await driver.step(now_s))
            await asyncio.sleep(BEAT_S)

    def began(self) -> None:
        self.busy += 1
        self._idle.clear()

    def ended(self) -> None:
        self.busy -= 1
        if not self.busy:
            self._idle.set()

    async def idle(self, within_s: float) -> bool:
        """Waits until no driver serves a trip or thinks of an offer; False when `within_s` was not enough."""
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop_serving(self, within_s: float) -> None:
        """Trips and offers stay where they are; commands under way are answered, or dropped after `within_s`."""
        self.closing = True
        tasks = [task for driver in self.drivers.values() for task in driver.stop_serving()]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=within_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self, within_s: float = 8.0) -> None:
        """Waits for the acknowledgements of the last positions, which come every few seconds (`ack_interval_s`).

        Call it when the beat has ended.
        """
        stop_s = time.monotonic() + within_s
        while time.monotonic() < stop_s:
            sent, acked = self.positions()
            if sent == acked:
                return
            await asyncio.sleep(0.05)

    async def close(self, within_s: float = 10.0) -> None:
        """Signs everybody off and fills in the ledger's counts of positions."""
        self.closing = True
        self._add_up()
        if self._runs:
            await asyncio.gather(*(driver.client.close() for driver in self.drivers.values()), return_exceptions=True)
            _, late = await asyncio.wait(self._runs.values(), timeout=within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _add_up(self) -> None:
        self.ledger.positions_sent, self.ledger.positions_acked = self.positions()
        for driver_id in self.drivers:
            self.ledger.disconnected(driver_id, time.monotonic())
        self.ledger.reconnects = sum(max(0, driver.client.connects - 1) for driver in self.drivers.values())

    def positions(self) -> tuple[int, int]:
        """Sent, and acknowledged, by all drivers until now."""
        counts = [driver.client.positions for driver in self.drivers.values()]
        return sum(count.sent for count in counts), sum(count.acked for count in counts)

    def activities(self) -> Counter[Activity]:
        return Counter(driver.doing for driver in self.drivers.values())
