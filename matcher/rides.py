"""The ride desk: commands on rides and trips, in front of the store.

It rules over two things that the store does not know: which ride requests share
a transaction, and that a committed change is announced. Requests that arrive
within a few milliseconds of each other, or while earlier ones commit, are
written together; so are drivers' commands (`moves`). Every queue is bounded (P10).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, TypeVar

from geo.model import DriverId
from matcher.errors import StoreUnavailable
from matcher.model import ClientId, Hint, Move, NewRide, RideId, TripId
from matcher.moves import MoveGroups
from matcher.outcomes import CommandOutcome, KeyReused, MarketPaused, Requested, RequestOutcome
from matcher.store_moves import OnMove
from matcher.store_trips import TripMove

log = logging.getLogger(__name__)
Outcome = TypeVar("Outcome")
#: One client's idempotency key.
Key: TypeAlias = tuple[ClientId, str]


class Overloaded(Exception):
    """Too much is waiting already, or the desk is closing: nothing was written, come back later (P10)."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class RideStore(Protocol):
    """What of the store the desk needs (see matcher.store.Store)."""

    async def request_rides(
        self, new: Sequence[NewRide], *, on_outcome: Callable[[int, RequestOutcome], None] | None = None
    ) -> list[RequestOutcome]: ...

    async def cancel_ride(self, ride_id: RideId, *, client_id: ClientId | None, reason: str) -> CommandOutcome: ...

    async def move_trip(
        self,
        trip_id: TripId,
        move: Move,
        *,
        driver_id: DriverId | None,
        epoch: int | None = None,
        reason: str | None = None,
    ) -> CommandOutcome: ...

    async def move_trips(self, asked: Sequence[TripMove], on_outcome: OnMove) -> None: ...


class Announces(Protocol):
    def announce(self, hints: Sequence[Hint]) -> None:
        """Tells the listeners of committed changes; never blocks, never raises."""


@dataclass(slots=True)
class _Entry:
    """A request on its way to the store, and everybody who waits for its answer."""

    new: NewRide
    settled: asyncio.Future[RequestOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def key(self) -> Key | None:
        return None if self.new.idempotency_key is None else (self.new.client_id, self.new.idempotency_key)

    @property
    def order(self) -> tuple[str, str, str]:
        """Locks are taken in one order by every process: by client, key, then id."""
        return (self.new.client_id, self.new.idempotency_key or "", self.new.ride_id)


class RideDesk:
    """Belongs to one event loop.

    `gather_ms` is how long a group gathers, `group_max` its largest size,
    `groups_max` how many commit at once, `waiting_max` how many callers may wait.
    """

    def __init__(
        self,
        store: RideStore,
        announcer: Announces,
        *,
        gather_ms: float = 6.0,
        group_max: int = 200,
        groups_max: int = 2,
        waiting_max: int = 2000,
        retry_after_s: float = 1.0,
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._gather_s = gather_ms / 1000.0
        self._group_max = group_max
        self._commits = asyncio.Semaphore(groups_max)
        self._waiting_max = waiting_max
        self._retry_after_s = retry_after_s
        self._moves = MoveGroups(store, self._spawn, self._announcer.announce, gather_ms=gather_ms)
        self._queue: list[_Entry] = []
        self._by_key: dict[Key, _Entry] = {}  # queued or committing
        self._tasks: set[asyncio.Task[Any]] = set()
        self._gathering: asyncio.Task[None] | None = None
        self._closing = False
        self.waiting = 0  # callers inside the desk at this moment

    async def request(self, new: NewRide) -> Requested | KeyReused | MarketPaused:
        """The ride stands when this returns Requested (P2). The same key again gets the first answer (P3).

        Raises Overloaded (nothing was written) and StoreUnavailable. A caller that is
        cancelled is forgotten; its ride may be written all the same.
        """
        with self._admitted():
            outcome = await self._outcome_of(new)
        if isinstance(outcome, StoreUnavailable):
            raise StoreUnavailable(outcome.reason) from outcome  # one a caller: tracebacks grow on the instance
        return outcome

    async def _outcome_of(self, new: NewRide) -> RequestOutcome:
        entry = _Entry(new)
        while entry.key is not None and (first := self._by_key.get(entry.key)) is not None:
            outcome = await asyncio.shield(first.settled)
            if first.new.body_hash == new.body_hash:
                return _as_repeated(outcome)
            # Another body under the same key: the store alone judges, once the first has settled.
        self._enqueue(entry)
        return await asyncio.shield(entry.settled)

    def _enqueue(self, entry: _Entry) -> None:
        self._queue.append(entry)
        if entry.key is not None:
            self._by_key[entry.key] = entry
        if self._gathering is None:
            self._gathering = self._spawn(self._gather())

    async def _gather(self) -> None:
        """Waits for neighbours and for a turn, then commits what is there; ends when nothing is."""
        try:
            await asyncio.sleep(self._gather_s)
            while self._queue:
                await self._commits.acquire()
                # Taken only now: whatever arrived while earlier groups commit rides along.
                group = sorted(self._queue[: self._group_max], key=lambda entry: entry.order)
                del self._queue[: self._group_max]
                self._spawn(self._commit(group))
        finally:
            self._gathering = None

    async def _commit(self, group: list[_Entry]) -> None:
        def settle(position: int, outcome: RequestOutcome) -> None:
            """Called for each as soon as it stands: a neighbour that has to be redone delays nobody."""
            group[position].settled.set_result(outcome)
            if isinstance(outcome, Requested) and outcome.hint is not None:
                self._announcer.announce([outcome.hint])

        try:
            await self._store.request_rides([entry.new for entry in group], on_outcome=settle)
        except StoreUnavailable as fault:
            for entry in group:
                if not entry.settled.done():
                    entry.settled.set_result(fault)
        except BaseException as fault:
            _give_up(group, fault)
            raise
        finally:
            self._commits.release()
            for entry in group:
                if entry.key is not None:
                    del self._by_key[entry.key]
        _give_up(group, RuntimeError("the store left this request without an outcome"))

    async def cancel(self, ride_id: RideId, *, client_id: ClientId | None, reason: str) -> CommandOutcome:
        """Cancels a ride for its client (None: for whoever may cancel any). Raises Overloaded, StoreUnavailable."""
        return await self._command(lambda: self._store.cancel_ride(ride_id, client_id=client_id, reason=reason))

    async def move_trip(
        self,
        trip_id: TripId,
        move: Move,
        *,
        driver_id: DriverId | None,
        epoch: int | None = None,
        reason: str | None = None,
    ) -> CommandOutcome:
        """A driver's command on its trip. Raises Overloaded, StoreUnavailable."""
        if driver_id is not None:
            with self._admitted():
                return await self._moves.move(TripMove(trip_id, move, driver_id, epoch, reason))
        return await self._command(
            lambda: self._store.move_trip(trip_id, move, driver_id=driver_id, epoch=epoch, reason=reason)
        )

    async def do(self, call: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Any other command of the store: bounded, and announced. Raises Overloaded, StoreUnavailable."""
        return await self._command(call)

    async def _command(self, call: Callable[[], Awaitable[Outcome]]) -> Outcome:
        with self._admitted():
            # In a task of its own: a caller that goes away does not cut a commit short of its announcement.
            return await asyncio.shield(self._spawn(self._announced(call)))

    async def _announced(self, call: Callable[[], Awaitable[Outcome]]) -> Outcome:
        outcome = await call()
        if hints := getattr(outcome, "hints", ()):
            self._announcer.announce(hints)
        return outcome

    async def close(self) -> None:
        """Takes nothing more in and returns when all that was taken in is committed and answered."""
        self._closing = True
        while self._tasks or self.waiting:
            await asyncio.wait(self._tasks) if self._tasks else await asyncio.sleep(0)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        # Work whose caller has gone still counts: it is there until it is done.
        waiting = max(self.waiting, len(self._queue), len(self._moves), len(self._tasks))
        if self._closing:
            raise Overloaded("the service is stopping", self._retry_after_s)
        if waiting >= self._waiting_max:
            raise Overloaded(f"{waiting} commands are waiting already", self._retry_after_s)
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def _spawn(self, call: Coroutine[Any, Any, Outcome]) -> asyncio.Task[Outcome]:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None and not isinstance(fault, StoreUnavailable):
            log.error("a command failed", exc_info=fault)


def _as_repeated(outcome: RequestOutcome) -> RequestOutcome:
    """The first answer once more, for a request that was folded into the one under way (P3)."""
    return replace(outcome, hint=None, repeated=True) if isinstance(outcome, Requested) else outcome


def _give_up(group: Sequence[_Entry], fault: BaseException) -> None:
    """Answers everybody who still waits, when the group's task ends by a fault of ours or by cancellation."""
    for entry in group:
        if not entry.settled.done():
            answer = fault if isinstance(fault, Exception) else StoreUnavailable("the service is stopping")
            entry.settled.set_exception(answer)
            entry.settled.exception()  # the caller may have gone: nobody else would retrieve it
