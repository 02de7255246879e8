"""The background sender of webhooks: claims deliveries that are due, and sends each until it is taken or given up.

One a process that serves HTTP. It looks once a second; while there is something to send also when it has sent, and
soon after rides were heard to change. At most AT_ONCE are on their way, of one client SHARE. A client that let one run
out of time gets one at a time for a while, and all such clients together SLOW_SHARE: so whoever is slow delays nobody
else. What a process had on its way when it died comes back by itself (matcher.store_webhooks).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import aiohttp
import msgspec
import structlog
from yarl import URL

from api.client_http import Backoff
from api.schema_webhooks import delivery_id, notice
from api.telemetry import Metrics
from api.webhook_hosts import Lookups, new_session
from api.webhook_signature import HEADER, signature
from geo.model import MarketId
from matcher.announcer import Announcer
from matcher.errors import StoreUnavailable
from matcher.model import ClientId
from matcher.said import Said
from matcher.store_webhooks import Delivery, Webhooks

log = structlog.stdlib.get_logger(__name__)

#: Deliveries on their way at once, and of one client.
AT_ONCE = 16
SHARE = 4
#: Of all clients together that were slow within SLOW_S; so many of these are remembered.
SLOW_SHARE = 8
SLOW_S = 60.0
SLOW_MAX = 1000
#: Of one delivery, from the look-up of the host to the answer.
DELIVERY_S_MAX = 10.0
#: A claim outlives its attempt with the time to write down how that ended.
CLAIM_MS = 30_000
ANSWER_BYTES_MAX = 1024
LOOK_EVERY_S = 1.0
#: An event that is heard of is owed a moment later.
HEARD_S = 0.05
#: For so long after something was sent what is heard of rides is a reason to look.
HURRY_S = 60.0
#: A look that took long (a backlog stands in the way) is followed by so many times its time without one.
REST = 4.0
TIDY_EVERY_S = 60.0
#: What is kept of deliveries that were given up, by client.
GIVEN_UP_MAX = 10_000
KEEP_MS = 7 * 86_400_000
PAUSES = Backoff(base_s=1.0, cap_s=600.0)


@dataclass(frozen=True, slots=True)
class Limits:
    attempts_max: int = 12
    backlog_max: int = 20_000
    private_hosts: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt ended. `error` None: it was taken. `is_final`: there is no use in another."""

    error: str | None = None
    is_final: bool = False
    is_slow: bool = False


def judged(status: int) -> Attempt:
    """What the answer's status says. A redirection is not followed: it could lead anywhere."""
    if 200 <= status < 300:
        return Attempt()
    return Attempt(f"answered {status}", is_final=status == 410)


def pause_ms(attempts: int, rng: random.Random) -> int:
    """Until the attempt after the `attempts`th: any time up to 1 s, doubled each time, 10 min at most."""
    return round(PAUSES.wait_s(attempts - 1, rng) * 1000)


def rooms_of(on_their_way: Iterable[ClientId], slow: Collection[ClientId], rng: random.Random) -> dict[ClientId, int]:
    """How many more each of these clients may have on their way; which of the slow ones, is drawn by lot."""
    taken = Counter(on_their_way)
    rooms = {client_id: SHARE - count for client_id, count in taken.items()} | dict.fromkeys(slow, 0)
    idle = [client_id for client_id in slow if not taken[client_id]]
    room = max(0, SLOW_SHARE - sum(taken[client_id] for client_id in slow))
    return rooms | dict.fromkeys(rng.sample(idle, min(room, len(idle))), 1)


class WebhookSender:
    """Belongs to one event loop. Sends while `run` runs; `close` lets what is on its way arrive."""

    def __init__(
        self,
        store: Webhooks,
        announcer: Announcer,
        markets: Iterable[MarketId],
        metrics: Metrics,
        limits: Limits,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._announcer = announcer
        self._markets = list(markets)
        self._metrics = metrics
        self._limits = limits
        self._rng = rng or random.Random()
        self._lookups: Lookups | None = None
        self._http: aiohttp.ClientSession | None = None
        self._sending: dict[asyncio.Task[None], ClientId] = {}
        self._slow: dict[ClientId, float] = {}  # until when, by the loop's clock
        self._claiming = asyncio.Lock()
        self._wake = asyncio.Event()
        self._hurries_until_s = 0.0
        self._heard: asyncio.TimerHandle | None = None
        self._stopping = False
        self._said = Said()
        self.overdue_s = 0.0

    @property
    def sending(self) -> int:
        """Deliveries on their way now."""
        return len(self._sending)

    # Life

    async def run(self) -> None:
        """Until it is cancelled; outlives every fault of the store and of receivers."""
        self._lookups = Lookups()
        self._http = new_session(self._lookups, private_hosts=self._limits.private_hosts, connections_max=AT_ONCE)
        with ExitStack() as listening:
            for market in self._markets:
                listening.enter_context(self._announcer.market_listener(market, self._hear))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forever(self._look))
                group.create_task(self._forever(self._tidy))

    def stop(self) -> None:
        """Begins nothing more."""
        self._stopping = True

    async def close(self) -> None:
        """Waits for what is on its way. Cancelled, it gives that up: its claims run out, and it is sent again."""
        self.stop()
        try:
            async with self._claiming:
                sending = list(self._sending)
            if sending:
                await asyncio.wait(sending)
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)
            if self._heard is not None:
                self._heard.cancel()
            if self._http is not None:
                await self._http.close()
            if self._lookups is not None:
                await self._lookups.close()

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except StoreUnavailable as fault:
                if self._said.is_news(fault.reason):
                    log.info("webhooks wait", reason=fault.reason)
                await asyncio.sleep(self._rng.uniform(0.5, 1.5) * LOOK_EVERY_S)
            except Exception:  # logged; the loop goes on, or nobody is told anything any more
                log.exception("the sender of webhooks stumbled")
                await asyncio.sleep(LOOK_EVERY_S)

    # Looking

    def _hear(self) -> None:
        """Some ride may have changed. Where nothing was to be sent lately, the next look is soon enough."""
        loop = asyncio.get_running_loop()
        if self._heard is None and loop.time() < self._hurries_until_s:
            self._heard = loop.call_later(HEARD_S, self._look_now)

    def _look_now(self) -> None:
        self._heard = None
        self._wake.set()

    async def _look(self) -> None:
        self._wake.clear()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with self._claiming:
            claimed = await self._claim()
        await asyncio.sleep(min(LOOK_EVERY_S, REST * (loop.time() - began_s)))
        if claimed:
            self._hurries_until_s = loop.time() + HURRY_S
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S * self._rng.uniform(0.75, 1.0)):
                await self._wake.wait()

    async def _claim(self) -> int:
        """Begins to send what is due and has room; how many those were."""
        free = AT_ONCE - len(self._sending)
        if self._stopping or free <= 0:
            return 0
        overdue_ms = await self._store.overdue_ms()
        self.overdue_s = (overdue_ms or 0) / 1000.0
        if overdue_ms is None:
            return 0
        rooms = rooms_of(self._sending.values(), self._slow_now(), self._rng)
        claimed = await self._store.claim(limit=free, claim_ms=CLAIM_MS, share=SHARE, rooms=rooms)
        for delivery in claimed:
            self._begin(delivery)
        return len(claimed)

    async def _tidy(self) -> None:
        await asyncio.sleep(TIDY_EVERY_S * self._rng.uniform(0.75, 1.25))
        await self._store.tidy(backlog_max=self._limits.backlog_max, given_up_max=GIVEN_UP_MAX, keep_ms=KEEP_MS)

    # Sending

    def _begin(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._deliver(delivery))
        self._sending[task] = delivery.client_id
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._sending[task]
        self._wake.set()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            attempt = await self._try(delivery)
            self._note_pace(delivery.client_id, attempt)
            await self._write_down(delivery, attempt)
        except StoreUnavailable as fault:
            log.info("a webhook's delivery is not written down and will be repeated", reason=fault.reason)
        except Exception:  # logged; the claim runs out, and it is tried again
            log.exception("a webhook's delivery stumbled")

    async def _try(self, delivery: Delivery) -> Attempt:
        assert self._http is not None
        attempt: Attempt | None = None
        body = msgspec.json.encode(notice(delivery.event))
        try:
            async with (
                asyncio.timeout(DELIVERY_S_MAX),
                self._http.post(
                    URL(delivery.url), data=body, headers=_headers(delivery, body, time.time()), allow_redirects=False
                ) as response,
            ):
                attempt = judged(response.status)
                await response.content.read(ANSWER_BYTES_MAX)  # a short answer leaves the connection fit for the next
                return attempt
        except TimeoutError:
            return replace(attempt or Attempt(f"no answer within {DELIVERY_S_MAX:g} s"), is_slow=True)
        except Exception as error:  # noqa: BLE001 - whatever it was, the attempt failed, and its client reads why
            return attempt or Attempt(f"{type(error).__name__}: {error}")

    def _note_pace(self, client_id: ClientId, attempt: Attempt) -> None:
        self._slow.pop(client_id, None)
        if attempt.is_slow and len(self._slow) < SLOW_MAX:
            self._slow[client_id] = asyncio.get_running_loop().time() + SLOW_S

    def _slow_now(self) -> Collection[ClientId]:
        now_s = asyncio.get_running_loop().time()
        self._slow = {client_id: until_s for client_id, until_s in self._slow.items() if until_s > now_s}
        return self._slow.keys()

    async def _write_down(self, delivery: Delivery, attempt: Attempt) -> None:
        if attempt.error is None:
            self._metrics.webhooks.add("delivered")
            await self._store.delivered(delivery)
            return
        gives_up = attempt.is_final or delivery.attempts >= self._limits.attempts_max
        self._metrics.webhooks.add("given_up" if gives_up else "failed")
        again_ms = None if gives_up else pause_ms(delivery.attempts, self._rng)
        await self._store.failed(delivery, attempt.error, again_ms=again_ms)


def _headers(delivery: Delivery, body: bytes, now_s: float) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "User-Agent": "hexhail",
        "Hexhail-Delivery": delivery_id(delivery.event.ride_id, delivery.event.version),
        "Hexhail-Attempt": str(delivery.attempts),
        HEADER: signature(delivery.secret, body, int(now_s)),
    }
