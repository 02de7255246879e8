"""Hints: "ride R is at version V", from the process that committed it to all that may have listeners.

Where no ride is named it is a driver's own row that is at that version; and with
no driver either, the market's queues at places have changed (matcher.model.Hint).

A hint is never the news itself, which stands in the store; it only says where
to look. So hints may be doubled and delayed, and where one may have been lost
the listener gets a `Resync` and reads everything that it listens for (P9).

On Redis, `RedisHints` alone rules over the keys `hexhail:{<market>}:hints:v1:`:
`meta` (hash: `generation`, `n`) and `stream` (entries `<n>-1` with `generation`
and `hints`, a msgpack array of [ride id or "", version, driver id or nil]), of bounded
length. The market is the hash tag.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import msgspec
from redis.asyncio import Redis

from geo.model import DriverId, MarketId
from geo.redis_link import RedisFaults, Script, backoff_s, call, call_all, connect, reason_of
from matcher.model import Hint, RideId

log = logging.getLogger(__name__)

#: How many hints one entry of a stream holds at most (P10).
_HINTS_AN_ENTRY_MAX = 500
#: How many entries a market one read brings at most.
_ENTRIES_A_READ_MAX = 100
#: How long to let entries gather between two reads: each read costs a third of a millisecond, whatever it brings.
_READ_EVERY_S = 0.01
#: How often a listener looks whether the streams are still those that it follows.
_HEARTBEAT_S = 0.5
_Packed = tuple[RideId, int, DriverId | None]


class HintsUnavailable(Exception):
    """Hints could not be passed on in time; whether some were is unknown. The message is for a person."""


@dataclass(frozen=True, slots=True)
class Resync:
    """Something may have been missed: read everything that you listen for."""


class Hints(Protocol):
    async def publish(self, hints: Sequence[Hint]) -> None:
        """Passes hints on, in bounded time, as well as it can. Raises HintsUnavailable."""

    def listen(self) -> AsyncIterator[Hint | Resync]:
        """Everybody's hints from now on, this process's included. The first item is a Resync.

        Ends when the hints are closed, or when the iterator is. Never raises for a fault of Redis.
        """

    async def close(self) -> None: ...


class LocalHints:
    """Hints within one process. A listener that falls `backlog_max` behind gets a Resync in place of them."""

    def __init__(self, *, backlog_max: int = 10_000) -> None:
        self._backlog_max = backlog_max
        self._listeners: set[asyncio.Queue[Hint | Resync | None]] = set()
        self._closed = False

    async def publish(self, hints: Sequence[Hint]) -> None:
        if self._closed:
            raise HintsUnavailable("the hints are closed")
        for queue in self._listeners:
            for hint in hints:
                self._put(queue, hint)

    def _put(self, queue: asyncio.Queue[Hint | Resync | None], item: Hint | Resync | None) -> None:
        if queue.qsize() >= self._backlog_max:
            while not queue.empty():
                queue.get_nowait()
            queue.put_nowait(Resync())
        queue.put_nowait(item)

    async def listen(self) -> AsyncIterator[Hint | Resync]:
        queue: asyncio.Queue[Hint | Resync | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield Resync()
            while not self._closed and (item := await queue.get()) is not None:
                yield item
        finally:
            self._listeners.discard(queue)

    async def close(self) -> None:
        self._closed = True
        for queue in self._listeners:
            queue.put_nowait(None)


@dataclass(slots=True)
class _Place:
    """How far one market's stream has been read. `promised_n`: what a look at its head said stands in it."""

    generation: str
    n: int
    promised_n: int

    def take(self, generation: str, n: int) -> bool:
        """Moves on to the next entry; False where it is not the next."""
        if generation != self.generation or n != self.n + 1:
            return False
        self.n = n
        return True

    def look(self, head: _Place) -> bool:
        """Compares with the stream's present head; False where it is not the one that was followed."""
        if head.generation != self.generation or head.n < self.n:
            return False
        self.promised_n = head.n
        return True


class _StreamReader:
    """Reads the streams of some markets over one connection, and notices what is missing."""

    def __init__(self, client: Redis, markets: Sequence[MarketId], wait_ms: int) -> None:
        self._client = client
        self._markets = markets
        self._wait_ms = wait_ms
        self._market_of = {_key(market, "stream"): market for market in markets}
        self._places: dict[MarketId, _Place] = {}
        self._look_at_s = 0.0

    async def start(self) -> None:
        """Notes where the streams end now. Names a generation where none stands, so that its loss is seen."""
        name = secrets.token_hex(8)
        metas = [_key(market, "meta") for market in self._markets]
        commands = [("HSETNX", meta, *field) for meta in metas for field in (("n", 0), ("generation", name))]
        await call_all(self._client, commands)
        self._places = await self._heads()

    async def next(self) -> list[Hint] | None:
        """The hints that stand in the streams, or come within the wait; None where some may have been missed."""
        options = ("COUNT", _ENTRIES_A_READ_MAX, "BLOCK", self._wait_ms)
        places = [f"{self._places[market].n}-1" for market in self._markets]
        answer = await call(self._client, "XREAD", *options, "STREAMS", *self._market_of, *places)
        hints: list[Hint] = []
        for stream, entries in answer or ():
            market = self._market_of[stream]
            for entry_id, fields in entries:
                if not self._take(market, entry_id, fields, hints):
                    return None
        return hints if await self._still_the_same(at_end=not answer) else None

    def _take(self, market: MarketId, entry_id: bytes, fields: Mapping[bytes, bytes], hints: list[Hint]) -> bool:
        try:
            generation, n = fields[b"generation"].decode(), int(entry_id.partition(b"-")[0])
            packed = msgspec.msgpack.decode(fields[b"hints"], type=list[_Packed])
        except (KeyError, ValueError, msgspec.MsgspecError) as error:  # somebody else wrote to our stream
            log.warning("unreadable hints", extra={"market": market, "reason": repr(error)})
            return False
        if not self._places[market].take(generation, n):
            return False
        hints += [Hint(ride_id, version, market, driver_id) for ride_id, version, driver_id in packed]
        return True

    async def _still_the_same(self, *, at_end: bool) -> bool:
        if at_end and any(place.n < place.promised_n for place in self._places.values()):
            return False
        if time.monotonic() < self._look_at_s:
            return True
        heads = await self._heads()
        return all(place.look(heads[market]) for market, place in self._places.items())

    async def _heads(self) -> dict[MarketId, _Place]:
        commands = [("HMGET", _key(market, "meta"), "generation", "n") for market in self._markets]
        answers = await call_all(self._client, commands)
        self._look_at_s = time.monotonic() + _HEARTBEAT_S
        return {market: _place_of(*answer) for market, answer in zip(self._markets, answers, strict=True)}


def _place_of(generation: bytes | None, n: bytes | None) -> _Place:
    at = int(n or 0)
    return _Place((generation or b"").decode(), at, at)


def _key(market: MarketId, name: str) -> bytes:
    return f"hexhail:{{{market}}}:hints:v1:{name}".encode()


class RedisHints:
    """Hints through one bounded Redis stream a market. `fault` says why a listener is cut off, None while it is not.

    `timeout_s` bounds a connect, a reply and the wait for a connection each, and three times that a publication.
    """

    def __init__(
        self,
        url: str,
        markets: Iterable[MarketId],
        *,
        timeout_s: float = 2.0,
        connections_max: int = 4,
        stream_length_max: int = 10_000,
    ) -> None:
        self.fault: str | None = None
        self._url = url
        self._markets = tuple(markets)
        if not self._markets:
            raise ValueError("hints need a market to listen to")
        self._timeout_s = timeout_s
        self._stream_length_max = stream_length_max
        self._client = connect(url, timeout_s=timeout_s, connections_max=connections_max)
        self._script = Script.load("matcher", "publish_hints.lua")
        self._closed = asyncio.Event()
        self._wait_ms = int(min(_HEARTBEAT_S, timeout_s / 2) * 1000)

    async def publish(self, hints: Sequence[Hint]) -> None:
        if self._closed.is_set():
            raise HintsUnavailable("the hints are closed")
        try:
            async with asyncio.timeout(3 * self._timeout_s):
                for market, some in groupby(sorted(hints, key=lambda hint: hint.market), key=lambda hint: hint.market):
                    await self._publish_to(market, [(hint.ride_id, hint.version, hint.driver_id) for hint in some])
        except RedisFaults as fault:
            raise HintsUnavailable(reason_of(fault)) from fault

    async def _publish_to(self, market: MarketId, packed: Sequence[_Packed]) -> None:
        for at in range(0, len(packed), _HINTS_AN_ENTRY_MAX):
            part = msgspec.msgpack.encode(packed[at : at + _HINTS_AN_ENTRY_MAX])
            keys = [_key(market, "meta"), _key(market, "stream")]
            args: list[bytes | int] = [secrets.token_hex(8).encode(), part, self._stream_length_max]
            await self._script.run(self._client, keys, args)

    async def listen(self) -> AsyncIterator[Hint | Resync]:
        client = connect(self._url, timeout_s=self._timeout_s, connections_max=1)
        reader = _StreamReader(client, self._markets, self._wait_ms)
        failures = 0
        try:
            while not self._closed.is_set():
                # The places are noted before the Resync is given: what happens after it comes as a hint.
                if await self._starts(reader):
                    failures = 0
                    yield Resync()
                    while not self._closed.is_set() and (hints := await self._next(reader)) is not None:
                        for hint in hints:
                            yield hint
                        if hints:
                            await asyncio.sleep(_READ_EVERY_S)
                await asyncio.sleep(backoff_s(failures))
                failures += 1
        finally:
            await client.aclose()

    async def _starts(self, reader: _StreamReader) -> bool:
        try:
            await reader.start()
        except RedisFaults as fault:
            self._trouble(reason_of(fault))
            return False
        self.fault = None
        return True

    async def _next(self, reader: _StreamReader) -> list[Hint] | None:
        try:
            return await reader.next()
        except RedisFaults as fault:
            self._trouble(reason_of(fault))
            return None

    def _trouble(self, why: str) -> None:
        if self.fault != why:
            log.warning("hints not heard", extra={"reason": why})
            self.fault = why

    async def close(self) -> None:
        """Ends the listeners (within half a second) and the connections."""
        self._closed.set()
        await self._client.aclose()
