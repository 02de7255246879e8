"""Which drivers' commands share a transaction: part of the ride desk, which bounds and closes it.

Commands that arrive within a few milliseconds of each other, or while earlier ones commit, are
written together, at most one a driver: of two commands of one driver the second waits until the first is settled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from geo.model import DriverId
from matcher.errors import StoreUnavailable
from matcher.model import Hint
from matcher.outcomes import CommandOutcome, Done
from matcher.store_moves import MoveOutcome, OnMove
from matcher.store_trips import TripMove
from matcher.turns import Turn, Turns


class MoveStore(Protocol):
    """What of the store the groups need (see matcher.store.Store)."""

    async def move_trips(self, asked: Sequence[TripMove], on_outcome: OnMove) -> None: ...


class _Entry(NamedTuple):
    asked: TripMove
    settled: asyncio.Future[MoveOutcome]


class MoveGroups:
    """`spawn` runs a task that its owner knows of until it ends; `announce` gets what was committed."""

    def __init__(
        self,
        store: MoveStore,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        announce: Callable[[Sequence[Hint]], None],
        *,
        gather_ms: float,
        group_max: int = 100,
        groups_max: int = 2,
    ) -> None:
        self._store = store
        self._spawn = spawn
        self._announce = announce
        self._gather_s = gather_ms / 1000.0
        self._group_max = group_max
        self._turns = Turns(groups_max)
        self._queue: list[_Entry] = []
        self._moving: set[DriverId | None] = set()  # whose command is being written
        self._gathering: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Commands that wait for their group."""
        return len(self._queue)

    async def move(self, asked: TripMove) -> CommandOutcome:
        """Raises StoreUnavailable. A caller that is cancelled is forgotten; its command may still take effect."""
        entry = _Entry(asked, asyncio.get_running_loop().create_future())
        self._queue.append(entry)
        self._gather_soon()
        outcome = await asyncio.shield(entry.settled)
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(outcome.reason) from outcome  # one a caller: tracebacks grow on the instance
        return outcome

    def _gather_soon(self) -> None:
        if self._queue and self._gathering is None:
            self._gathering = self._spawn(self._gather())

    async def _gather(self) -> None:
        """Waits for neighbours and for a turn, then commits what is there; ends when nothing can be."""
        try:
            await asyncio.sleep(self._gather_s)
            while self._queue:
                turn = await self._turns.take()
                # Taken only now: whatever arrived while earlier groups commit rides along.
                group = self._take()
                if not group:  # each waits for its driver's command before it, whose end gathers again
                    turn.give_back()
                    break
                self._spawn(self._commit(group, turn))
        finally:
            self._gathering = None

    def _take(self) -> list[_Entry]:
        """The first of the queue, one a driver at most, and none of whose command is being written."""
        group: dict[DriverId | None, _Entry] = {}
        left: list[_Entry] = []
        for entry in self._queue:
            driver_id = entry.asked.driver_id
            if len(group) < self._group_max and driver_id not in group and driver_id not in self._moving:
                group[driver_id] = entry
            else:
                left.append(entry)
        self._queue = left
        for driver_id, entry in group.items():
            self._moving.add(driver_id)
            entry.settled.add_done_callback(partial(self._free, driver_id))
        return list(group.values())

    def _free(self, driver_id: DriverId | None, _: asyncio.Future[MoveOutcome]) -> None:
        self._moving.discard(driver_id)
        self._gather_soon()

    async def _commit(self, group: Sequence[_Entry], turn: Turn) -> None:
        def settle(position: int, outcome: MoveOutcome) -> None:
            group[position].settled.set_result(outcome)
            if isinstance(outcome, Done) and outcome.hints:
                self._announce(outcome.hints)

        try:
            await self._store.move_trips([entry.asked for entry in group], settle)
        except StoreUnavailable as fault:
            _settle_rest(group, fault)
        except BaseException as fault:
            _fail_rest(group, fault if isinstance(fault, Exception) else StoreUnavailable("the service is stopping"))
            raise
        finally:
            turn.give_back()
        _fail_rest(group, RuntimeError("the store left this command without an outcome"))


def _settle_rest(group: Sequence[_Entry], fault: StoreUnavailable) -> None:
    for entry in group:
        if not entry.settled.done():
            entry.settled.set_result(fault)


def _fail_rest(group: Sequence[_Entry], fault: Exception) -> None:
    for entry in group:
        if not entry.settled.done():
            entry.settled.set_exception(fault)
            entry.settled.exception()  # the caller may have gone: nobody else would retrieve it
