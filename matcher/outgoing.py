"""Hints of this process's commits on their way out: published at once, their rows marked soon after.

Whoever listens waits for the hint alone. What hangs on the mark (that nobody relays the event, that
a webhook owes it) can wait for some milliseconds, in which a busy process saves most of the transactions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from matcher.errors import StoreUnavailable
from matcher.hints import Hints, HintsUnavailable
from matcher.model import NO_RIDE, Hint

#: Hints a call.
HINTS_MAX = 500
#: How long rows to be marked gather.
MARK_GATHER_S = 0.05


class MarkStore(Protocol):
    """What of the store is needed (see matcher.store.Store)."""

    async def mark_announced(self, hints: Sequence[Hint]) -> None: ...


@dataclass(slots=True)
class AnnouncerStats:
    """Counters since the start, for metrics."""

    announced: int = 0
    relayed: int = 0
    left_to_relay: int = 0  # there was no room, or the hints could not be published
    resyncs: int = 0
    overflowed: int = 0  # listeners that did not keep up
    faults: int = 0


class Outgoing:
    """Belongs to one event loop, in which `publish` and `mark` run. Both queues hold `waiting_max` hints.

    What finds no room, or cannot be published or marked, stays unannounced in the store, and is relayed.
    """

    def __init__(self, store: MarkStore, hints: Hints, stats: AnnouncerStats, *, waiting_max: int) -> None:
        self._store = store
        self._hints = hints
        self._stats = stats
        self._waiting_max = waiting_max
        self._unsent: deque[Hint] = deque()  # being published or not yet
        self._send = asyncio.Event()
        self._unmarked: deque[Hint] = deque()  # published; being marked or not yet
        self._mark = asyncio.Event()
        self.all_sent = asyncio.Event()
        self.all_sent.set()

    @property
    def waiting(self) -> int:
        """Hints that were not published yet."""
        return len(self._unsent)

    def add(self, hints: Sequence[Hint]) -> None:
        self._keep(self._unsent, hints)
        if self._unsent:
            self._send.set()
            self.all_sent.clear()

    def _keep(self, queue: deque[Hint], hints: Sequence[Hint]) -> None:
        room = max(0, self._waiting_max - len(queue))
        queue.extend(hints[:room])
        self._stats.left_to_relay += len(hints[room:])

    async def publish(self) -> None:
        """Raises HintsUnavailable."""
        while True:
            await self._send.wait()
            hints = list(islice(self._unsent, HINTS_MAX))
            try:
                await self._hints.publish(hints)
                self._note_published(hints)
            except HintsUnavailable:
                self._stats.left_to_relay += len(hints)
                raise
            finally:
                for _ in hints:
                    self._unsent.popleft()
                if not self._unsent:
                    self._send.clear()
                self._note_done()

    def _note_published(self, hints: Sequence[Hint]) -> None:
        of_rides = _of_rides(hints)
        self._stats.announced += len(hints) - len(of_rides)
        self._keep(self._unmarked, of_rides)
        if self._unmarked:
            self._mark.set()

    def _note_done(self) -> None:
        if not self._unsent and not self._unmarked:
            self.all_sent.set()

    async def mark(self) -> None:
        """Raises StoreUnavailable."""
        while True:
            await self._mark.wait()
            await asyncio.sleep(MARK_GATHER_S)
            hints = list(islice(self._unmarked, HINTS_MAX))
            try:
                await self._store.mark_announced(hints)
                self._stats.announced += len(hints)
            except StoreUnavailable:
                self._stats.left_to_relay += len(hints)
                raise
            finally:
                for _ in hints:
                    self._unmarked.popleft()
                if not self._unmarked:
                    self._mark.clear()
                self._note_done()

    async def tell(self, hints: Sequence[Hint]) -> None:
        """Publishes and marks these now. Raises HintsUnavailable and StoreUnavailable."""
        await self._hints.publish(hints)
        if of_rides := _of_rides(hints):
            await self._store.mark_announced(of_rides)


def _of_rides(hints: Sequence[Hint]) -> list[Hint]:
    """Those of which there is an event to mark."""
    return [hint for hint in hints if hint.ride_id != NO_RIDE]
