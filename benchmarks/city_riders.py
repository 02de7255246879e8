"""The riders of a measured city: requests over a few kept-alive connections, and event streams of some of them.

Requests are built beforehand but for their key; each is sent when it is due, on a connection that is not waiting for
an answer, or else as soon as one is free: the wait counts, for the time runs from when it was due.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec

from benchmarks.cities import Wish
from benchmarks.city_ledger import Asked, Seen
from benchmarks.city_options import CityOptions
from benchmarks.city_tally import Tally

CONNECTIONS = 48
_MATCHED = (b'"state":"offered"', b'"state":"assigned"')
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_DATA = re.compile(rb"\nevent: (?!driver\b)[^\n]*\ndata: ([^\n]*)\n")


class _Id(msgspec.Struct, gc=False):
    id: str = ""
    code: str = ""


_decode = msgspec.json.Decoder(_Id).decode


class Ask:
    """One request under way: what of it is known so far."""

    __slots__ = ("asked", "due_s", "follows", "is_offered", "raw", "tally")

    def __init__(self, asked: Asked, raw: bytes, due_s: float, tally: Tally, *, follows: bool) -> None:
        self.asked = asked
        self.raw = raw
        self.due_s = due_s
        self.tally = tally
        self.follows = follows
        self.is_offered = False


class Line(asyncio.Protocol):
    """One kept-alive connection with at most one request under way."""

    __slots__ = ("_on_free", "_rest", "_transport", "ask")

    def __init__(self, on_free: Callable[[Line, int, bytes], None]) -> None:
        self._on_free = on_free
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self.ask: Ask | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def send(self, ask: Ask) -> None:
        assert self._transport is not None
        self.ask = ask
        self._transport.write(ask.raw)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data) if end >= 0 else None
        if length is None or len(data) < end + 4 + int(length[1]):
            self._rest = data
            return
        self._rest = b""
        self._on_free(self, int(data[9:12]), data[end + 4 :])

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_free(self, 0, b"")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Follow(asyncio.Protocol):
    """One ride's event stream, from its first event on. `on_matched` is called once."""

    def __init__(self, request: bytes, on_matched: Callable[[], None]) -> None:
        self._request = request
        self._on_matched: Callable[[], None] | None = on_matched
        self._text = b""
        self.ended = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        assert self._transport is not None
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._text += data
        if self._on_matched is not None and any(each in self._text for each in _MATCHED):
            self._on_matched()
            self._on_matched = None
        if data.endswith(b"0\r\n\r\n"):
            self.ended = True

    def events(self) -> list[bytes]:
        return _DATA.findall(self._text)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Riders:
    """`open` first; then `ask` as often as a request is due. `outstanding` are without an offer, oldest first."""

    def __init__(self, options: CityOptions, token: str, wishes: Iterator[Wish], seen: Seen) -> None:
        self.outstanding: deque[Ask] = deque()
        self.unanswered = 0
        self._options = options
        self._token = token
        self._wishes = wishes
        self._seen = seen
        self._rng = random.Random(f"{options.seed}/riders")
        self._free: list[Line] = []
        self._lines: list[Line] = []
        self._queue: deque[Ask] = deque()
        self._by_ride: dict[str, Ask] = {}
        self._early: dict[str, float] = {}  # offers that came before their request's answer
        self._follows: dict[str, Follow] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._head = (
            "POST /v1/rides HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token}\r\nIdempotency-Key: "
        ).encode()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, line = await loop.create_connection(lambda: Line(self._on_free), "127.0.0.1", self._options.port)
            self._lines.append(line)
        self._free = list(self._lines)

    def ask(self, due_s: float, due_ms: float, step: int, tally: Tally) -> None:
        key = f"k{len(self._seen.asked)}"
        asked = Asked(key, due_ms, step)
        self._seen.asked.append(asked)
        body = self._body(next(self._wishes))
        raw = b"%s%s\r\nContent-Length: %d\r\n\r\n%s" % (self._head, key.encode(), len(body), body)
        ask = Ask(asked, raw, due_s, tally, follows=self._rng.random() < self._options.follow_share)
        tally.counts["asked"] += 1
        self.outstanding.append(ask)
        self.unanswered += 1
        if self._free:
            self._free.pop().send(ask)
        else:
            self._queue.append(ask)

    def _body(self, wish: Wish) -> bytes:
        pickup, dropoff = wish.pickup, wish.dropoff
        return (
            b'{"pickup":{"lat":%.6f,"lon":%.6f},"dropoff":{"lat":%.6f,"lon":%.6f},"seats":%d,"metadata":{"note":"bench"}}'
            % (pickup.lat, pickup.lon, dropoff.lat, dropoff.lon, min(wish.seats, 4))
        )

    def _on_free(self, line: Line, status: int, body: bytes) -> None:
        ask, line.ask = line.ask, None
        if ask is not None:
            self.unanswered -= 1
            self._answered(ask, status, body, time.monotonic())
        if not line.is_open:
            self._lost(line)
        elif self._queue:
            line.send(self._queue.popleft())
        else:
            self._free.append(line)

    def _answered(self, ask: Ask, status: int, body: bytes, now_s: float) -> None:
        answer = _decode(body) if body.startswith(b"{") else _Id()
        if status != 201:
            ask.asked.refusal = f"{status} {answer.code}".strip() if status else ""
            ask.tally.counts["refused" if status else "unanswered"] += 1
            return
        ask.asked.ride_id = answer.id
        ask.tally.counts["acknowledged"] += 1
        ask.tally.latency("request_to_acknowledged").add(now_s - ask.due_s)
        early_s = self._early.pop(answer.id, None)
        if early_s is not None:
            self._offered(ask, early_s)
        else:
            self._by_ride[answer.id] = ask
        if ask.follows:
            self._spawn(self._follow(ask, answer.id))

    def on_offer(self, ride_id: str, now_s: float) -> None:
        """A driver was told of this ride."""
        ask = self._by_ride.pop(ride_id, None)
        if ask is None:
            self._early[ride_id] = now_s
        else:
            self._offered(ask, now_s)

    def _offered(self, ask: Ask, now_s: float) -> None:
        if not ask.is_offered:
            ask.is_offered = True
            ask.tally.offered(ask.due_s, now_s)

    def waiting(self) -> deque[Ask]:
        """Those without an offer, oldest first, as far as the oldest are concerned."""
        while self.outstanding and self.outstanding[0].is_offered:
            self.outstanding.popleft()
        return self.outstanding

    # Event streams

    async def _follow(self, ask: Ask, ride_id: str) -> None:
        request = (
            f"GET /v1/rides/{ride_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\n\r\n"
        )

        def matched() -> None:
            ask.tally.latency("request_to_event").add(time.monotonic() - ask.due_s)

        follow = self._follows[ride_id] = Follow(request.encode(), matched)
        await asyncio.get_running_loop().create_connection(lambda: follow, "127.0.0.1", self._options.port)

    def _lost(self, line: Line) -> None:
        """It broke, or the service has closed it for having been idle: another in its place."""
        if line in self._free:
            self._free.remove(line)
        if self._is_closed:
            return

        async def reopen() -> None:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: line, "127.0.0.1", self._options.port)
            self._on_free(line, 0, b"")

        self._spawn(reopen())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            name = f"a connection: {type(task.exception()).__name__}"
            self._seen.errors[name] = self._seen.errors.get(name, 0) + 1

    def close(self) -> None:
        """Closes all connections, and keeps what the event streams said."""
        self._is_closed = True
        for ride_id, follow in self._follows.items():
            self._seen.followed[ride_id] = (follow.events(), follow.ended)
            follow.close()
        for line in self._lines:
            line.close()
