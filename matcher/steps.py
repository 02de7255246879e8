"""One market's steps: a fault is said, counted and waited out, and what is being committed is finished."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from geo.model import MarketId
from matcher.errors import LeaseLost, StoreUnavailable
from matcher.said import Said
from matcher.solver import SolverFailed

log = logging.getLogger(__name__)

Result = TypeVar("Result")

BACKOFF_S_MAX = 1.0


class Steps:
    """`on_fault` is called for each fault but the loss of the lease, which is the caller's to see to."""

    def __init__(self, market: MarketId, on_fault: Callable[[], None]) -> None:
        self._market = market
        self._on_fault = on_fault
        self._said = Said()

    async def guarded(self, step: Callable[[], Awaitable[None]]) -> None:
        """One step. Raises LeaseLost."""
        try:
            await step()
        except LeaseLost:
            raise
        except (StoreUnavailable, SolverFailed) as fault:
            if self._said.is_news(str(fault)):
                log.warning("market %s: %s", self._market, fault)
        except Exception:  # logged and counted; a market whose loop has died would wait for ever
            log.exception("market %s: a step failed", self._market)
        else:
            return
        self._on_fault()
        await asyncio.sleep(random.uniform(0.1, BACKOFF_S_MAX))

    async def uncut(self, call: Coroutine[Any, Any, Result]) -> Result:
        """A commit and its announcement are finished even when we are cancelled in between; the store bounds them."""
        task = asyncio.create_task(call)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled() and (fault := task.exception()) is not None:
                log.warning("market %s: while stopping: %s", self._market, fault)
            raise
