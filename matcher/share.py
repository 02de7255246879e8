"""How many markets one matcher process leads, so that any number of processes share them evenly.

Each process says every third of a lease that it lives, and learns how many do. Any of them takes a market that
nobody leads, at once; one that leads more than its fair share gives the last of them back, a market at a time,
and leaves it to the others for a while.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from geo.model import MarketId
from matcher.errors import StoreUnavailable
from matcher.said import Said

log = logging.getLogger(__name__)

#: For so many leases a market that was given back is left to the others.
LEAVE_LEASES = 2.0


class SharingStore(Protocol):
    async def matcher_seen(self, holder: str, *, unseen_ms: int) -> int: ...

    async def matcher_gone(self, holder: str) -> None: ...


class Share:
    """The markets of one process, in its event loop."""

    def __init__(
        self,
        store: SharingStore,
        holder: str,
        markets: int,
        *,
        lease_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._holder = holder
        self._markets = markets
        self._lease_s = lease_s
        self._clock = clock
        self._held: dict[MarketId, asyncio.Event] = {}
        self._not_before_s: dict[MarketId, float] = {}
        self._said = Said()
        self.matchers = 1

    @property
    def fair(self) -> int:
        """How many markets a process leads where all lead as many, rounded up."""
        return -(-self._markets // max(1, self.matchers))

    @property
    def held(self) -> frozenset[MarketId]:
        return frozenset(self._held)

    def wait_s(self, market: MarketId) -> float:
        """How long this market is left to the others."""
        return max(0.0, self._not_before_s.get(market, 0.0) - self._clock())

    def took(self, market: MarketId) -> asyncio.Event:
        """This process leads the market now; the event is set once it is to be given back."""
        return self._held.setdefault(market, asyncio.Event())

    def gave(self, market: MarketId) -> None:
        """The lease is given back, or lost."""
        given = self._held.pop(market, None)
        if given is not None and given.is_set():
            self._not_before_s[market] = self._clock() + LEAVE_LEASES * self._lease_s

    async def run(self) -> None:
        """Until cancelled; then the others are told at once, where the database can be reached."""
        try:
            while True:
                try:
                    self.matchers = await self._store.matcher_seen(self._holder, unseen_ms=round(self._lease_s * 1000))
                    self._give_one()
                except StoreUnavailable as fault:
                    if self._said.is_news(str(fault)):
                        log.info("how many matchers there are is not known: %s", fault)
                await asyncio.sleep(self._lease_s / 3.0 * random.uniform(0.8, 1.2))
        finally:
            await self._leave()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self._store.matcher_gone(self._holder)
        except (StoreUnavailable, TimeoutError):
            pass  # unseen for a lease, it is forgotten

    def _give_one(self) -> None:
        leading = sorted(market for market, given in self._held.items() if not given.is_set())
        if len(leading) > self.fair:
            log.info("market %s: left to one of %d matchers", leading[-1], self.matchers)
            self._held[leading[-1]].set()
