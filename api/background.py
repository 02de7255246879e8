"""What runs beside the requests for as long as the service does.

A background task that ends by itself is a defect, and ends the process: a
supervisor starts another, and nothing limps on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from matcher.errors import StoreUnavailable
from matcher.store import Store

#: How often the database is asked whether it is there.
WATCH_EVERY_S = 2.0

log = structlog.stdlib.get_logger(__name__)


class Background:
    """Tasks that run as long as the service. One that ends by itself sets `failed`."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self.failed = asyncio.Event()

    def run(self, name: str, call: Coroutine[Any, Any, None], *, once: bool = False) -> None:
        """`once`: the task may end, unless by an exception."""
        task = asyncio.create_task(call, name=name)
        task.add_done_callback(lambda ended: self._ended(ended, once))
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None], once: bool) -> None:
        if task.cancelled() or (once and task.exception() is None):
            return
        log.critical("a background task ended by itself", task=task.get_name(), exc_info=task.exception())
        self.failed.set()

    async def stop(self, names: Callable[[str], bool] = lambda name: True) -> None:
        """Cancels the tasks of these names and waits for their end."""
        chosen = [task for task in self._tasks if names(task.get_name())]
        for task in chosen:
            task.cancel()
        if chosen:
            await asyncio.wait(chosen)


class StoreWatch:
    """Asks now and then whether the database is there and has our tables; knows the reason when not."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fault: str | None = "the database has not answered yet"

    async def look(self) -> None:
        try:
            current = self.fault is None or await self._store.schema_is_current()
            await self._store.now_ms()
        except StoreUnavailable as error:
            self.fault = f"the database is not available: {error.reason}"
        else:
            self.fault = None if current else "the database's tables are missing or old: run hexhail migrate"

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(WATCH_EVERY_S)
