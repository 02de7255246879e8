"""Simulated riders: an open loop of ride requests over HTTP, at the times the city says.

Open loop: a rider comes when its time has come, however slow the service is;
how late the requests really went out is measured. Some riders follow their
ride's event stream, some cancel; who does is drawn in the order in which they come.
All of it goes into the ledger.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from api import schema
from api.client import ApiError, DispatchClient, GaveUp
from benchmarks.cities import Wish
from benchmarks.ledger import Ledger


@dataclass(frozen=True, slots=True)
class RiderOptions:
    """`deadline_s` and `cancel_after_s` are seconds as the service will count them.

    `follow_share` of riders read their ride's events until it ends; `cancel_share` cancel
    some time within `cancel_after_s` of the answer. `answer_s` bounds a request with its
    retries, `at_once_max` the requests under way.
    """

    deadline_s: float
    follow_share: float = 1.0
    cancel_share: float = 0.0
    cancel_after_s: float = 10.0
    answer_s: float = 60.0
    at_once_max: int = 5_000


@dataclass(frozen=True, slots=True)
class Identity:
    """One client's token at the service, as its DispatchClient."""

    client_id: str
    client: DispatchClient


@dataclass(frozen=True, slots=True)
class RiderChoice:
    """`cancels_after_s` None: not at all."""

    follows: bool
    cancels_after_s: float | None


class Riders:
    """All riders of a run. `run` ends when the wishes do; those who follow or cancel go on until `close`."""

    def __init__(
        self, identities: Sequence[Identity], ledger: Ledger, options: RiderOptions, rng: random.Random, run_id: str
    ) -> None:
        self.identities = identities
        self.options = options
        self.lateness_s: list[float] = []
        self.finished = False
        self._ledger = ledger
        self._rng = rng
        self._run_id = run_id
        self._places = asyncio.Semaphore(options.at_once_max)
        self._asking: set[asyncio.Task[None]] = set()
        self._following: set[asyncio.Task[None]] = set()

    async def run(self, wishes: Iterator[Wish], zero_s: float, speed: float) -> None:
        """Sends each wish when its time has come: `zero_s` of this process's clock is the city's second 0."""
        for number, wish in enumerate(wishes):
            due_s = zero_s + wish.at_s / speed
            if (wait_s := due_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            await self._places.acquire()  # given back when the request has ended
            self.lateness_s.append(max(0.0, time.monotonic() - due_s))
            asking = self._spawn(self._asking, self._ask(number, wish, self._choose()))
            asking.add_done_callback(lambda _: self._places.release())
        if self._asking:
            await asyncio.wait(self._asking)
        self.finished = True

    def _spawn(self, tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    def _choose(self) -> RiderChoice:
        rng, options = self._rng, self.options
        follows, cancels = rng.random() < options.follow_share, rng.random() < options.cancel_share
        after_s = rng.uniform(0.0, options.cancel_after_s)
        return RiderChoice(follows, after_s if cancels else None)

    async def _ask(self, number: int, wish: Wish, choice: RiderChoice) -> None:
        key = f"{self._run_id}-{number:06d}"
        who = self.identities[number % len(self.identities)]
        request = schema.RideRequest(
            pickup=schema.Point(wish.pickup.lat, wish.pickup.lon),
            dropoff=schema.Point(wish.dropoff.lat, wish.dropoff.lon),
            seats=wish.seats,
            deadline_s=self.options.deadline_s,
            metadata={"run": self._run_id, "n": number},
        )
        self._ledger.asked(key, who.client_id, time.monotonic())
        try:
            answer = await who.client.request_ride(request, key=key, deadline_s=self.options.answer_s)
        except ApiError as refusal:
            self._ledger.refused(key, refusal.problem.code, time.monotonic())
        except GaveUp as error:
            if error.may_have_happened:
                self._ledger.unanswered(key, str(error))
            else:
                self._ledger.refused(key, "gave up", time.monotonic())
        else:
            self._ledger.acknowledged(key, answer.ride.id, time.monotonic())
            self._go_on(who.client, answer.ride.id, choice)

    def _go_on(self, client: DispatchClient, ride_id: str, choice: RiderChoice) -> None:
        if choice.follows:
            self._spawn(self._following, self._follow(client, ride_id))
        if choice.cancels_after_s is not None:
            self._spawn(self._following, self._cancel_later(client, ride_id, choice.cancels_after_s))

    async def _follow(self, client: DispatchClient, ride_id: str) -> None:
        try:
            async with aclosing(client.events(ride_id)) as events:
                async for event in events:
                    if isinstance(event, schema.EventOut):
                        self._ledger.heard_event(event, time.monotonic())
            self._ledger.follow_ended(ride_id)
        except (ApiError, GaveUp) as error:
            self._ledger.errors[f"following a ride: {type(error).__name__}"] += 1

    async def _cancel_later(self, client: DispatchClient, ride_id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self.cancel(client, ride_id)

    async def cancel(self, client: DispatchClient, ride_id: str) -> None:
        try:
            await client.cancel_ride(ride_id, reason="rider changed plans")
        except ApiError as refusal:  # too late, as often with real riders
            self._ledger.refused_commands[f"rider's cancel: {refusal.problem.code}"] += 1
        except GaveUp as error:
            self._ledger.errors[f"rider's cancel: {type(error.cause).__name__}"] += 1

    async def answered(self, within_s: float) -> None:
        """Waits until every request under way has its answer, or has been given up."""
        if self._asking:
            await asyncio.wait(self._asking, timeout=within_s)

    async def close(self) -> None:
        """Nobody follows or asks any more. A request under way is left without an answer in the ledger."""
        tasks = self._asking | self._following
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for request in self._ledger.requests.values():
            if request.ride_id is None and request.refusal is None and request.unknown is None:
                request.unknown = "the run ended"
