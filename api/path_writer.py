"""Writes the parts of trips' paths in the background, many in one transaction.

Paths are telemetry: the buffer is bounded, and what does not fit is dropped, the oldest first, and counted (P10).
While the database is away everything is kept within that bound and tried again; writing a part twice is harmless,
for its key is its session's own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from api.telemetry import Metrics, Tally
from matcher.errors import StoreUnavailable
from matcher.store_paths import PathPart

#: Parts that wait at most.
WAITING_MAX = 10_000
#: Parts in one transaction; as many do not wait for the interval.
WRITE_MAX = 500
EVERY_S = 1.0
BACKOFF_S_MAX = 30.0

log = structlog.stdlib.get_logger(__name__)

#: How many of them no database could hold (see matcher.store.Store.put_path_parts).
Put = Callable[[Sequence[PathPart]], Awaitable[int]]


class PathWriter:
    """One a process. `keep` never waits; `run` writes until it is cancelled, `drain` what is left."""

    def __init__(self, put: Put, metrics: Metrics, *, every_s: float = EVERY_S) -> None:
        self._put = put
        self._every_s = every_s
        self._waiting: deque[PathPart] = deque()
        self._wake = asyncio.Event()
        self._full = asyncio.Event()
        self._writing = asyncio.Lock()
        self.parts = Tally(
            metrics.registry, "hexhail_path_parts", "Parts of trips' paths, by what became of them.", ("outcome",)
        )
        metrics.reading(
            "hexhail_path_parts_waiting", "Parts of trips' paths not written yet.", lambda: [((), len(self))]
        )

    def __len__(self) -> int:
        return len(self._waiting)

    def keep(self, part: PathPart) -> None:
        """The part is written within the interval, or as soon as the database is there."""
        self._waiting.append(part)
        self._drop_oldest()
        self._wake.set()
        if len(self._waiting) >= WRITE_MAX:
            self._full.set()

    def _drop_oldest(self) -> None:
        while len(self._waiting) > WAITING_MAX:
            self._waiting.popleft()
            self.parts.add("dropped")

    async def run(self) -> None:
        """Writes until cancelled; survives an unavailable store."""
        while True:
            await self._wake.wait()
            await self._until_full()
            await self.drain()

    async def _until_full(self) -> None:
        try:
            async with asyncio.timeout(self._every_s):
                await self._full.wait()
        except TimeoutError:
            pass  # fewer than a whole transaction's: the ordinary case

    async def drain(self) -> None:
        """Writes all that waits, trying again for as long as the store is away or its caller lets it."""
        pause_s = self._every_s
        while not await self.flush():
            await asyncio.sleep(pause_s)
            pause_s = min(BACKOFF_S_MAX, pause_s * 2)

    async def flush(self) -> bool:
        """Writes what waits. False when the store was not available; what was not written waits on."""
        async with self._writing:
            while self._waiting:
                parts = [self._waiting.popleft() for _ in range(min(WRITE_MAX, len(self._waiting)))]
                if not await self._write(parts):
                    return False
            self._wake.clear()
            self._full.clear()
            return True

    async def _write(self, parts: list[PathPart]) -> bool:
        is_written = False
        try:
            refused = await self._put(parts)
            is_written = True
        except StoreUnavailable as fault:
            log.info("paths of trips wait for the store", reason=fault.reason, waiting=len(self) + len(parts))
            return False
        finally:
            if not is_written:  # nor when cancelled: what may have been written may be written again
                self._waiting.extendleft(reversed(parts))
                self._drop_oldest()
        self.parts.add("written", n=len(parts) - refused)
        if refused:
            self.parts.add("refused", n=refused)
        return True
