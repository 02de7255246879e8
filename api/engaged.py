"""Who is engaged on a trip, known to this process and at most about a second old.

Whether a driver is engaged follows from its live trips in the database and is
stored nowhere else. One read a second answers for all searches of the process,
however many there are; while the database is down the last answer stands, and
its age is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from api.telemetry import Metrics
from geo.model import DriverId
from matcher.errors import StoreUnavailable

FRESH_S = 1.0
WAIT_S_MAX = 0.25
#: Beyond this the answer is called stale in the metrics.
STALE_S = 5.0


class Engaged:
    """A cache over `ask`, which returns the drivers with a live trip."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[frozenset[DriverId]]],
        *,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._metrics = metrics
        self._clock = clock
        self._drivers: frozenset[DriverId] | None = None
        self._read_at_s = 0.0
        self._tried_at_s = -FRESH_S
        self._reading: asyncio.Task[None] | None = None

    async def read(self) -> tuple[frozenset[DriverId], float]:
        """The drivers, and how old that is in seconds. Raises StoreUnavailable if it was never known."""
        if self._clock() - self._tried_at_s >= FRESH_S and (self._reading is None or self._reading.done()):
            self._tried_at_s = self._clock()
            self._reading = asyncio.create_task(self._refresh())
        age_s = self._clock() - self._read_at_s
        if self._reading is not None and (self._drivers is None or age_s > 2 * FRESH_S):
            # A recent answer is good enough, the search does not wait for the next one; an old one is worth a moment.
            await asyncio.wait([self._reading], timeout=None if self._drivers is None else WAIT_S_MAX)
            age_s = self._clock() - self._read_at_s
        if self._drivers is None:
            raise StoreUnavailable("which drivers are engaged is not known yet")
        if age_s > STALE_S:
            self._metrics.engaged_stale.add()
        return self._drivers, age_s

    async def _refresh(self) -> None:
        asked_at_s = self._clock()
        try:
            self._drivers = await self._ask()
        except StoreUnavailable:
            return  # the last answer stands, and its age is told with every answer
        self._read_at_s = asked_at_s

    async def close(self) -> None:
        if self._reading is not None:
            await asyncio.wait([self._reading])
