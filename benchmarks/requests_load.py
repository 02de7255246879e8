"""Ride requests over HTTP/1.1 at a fixed rate, from a process of its own (see benchmarks.load_agent).

Kept-alive connections, one request under way on each; bodies are made before the clock starts, each with an
Idempotency-Key of its own. A latency counts from the moment at which the request was due, also where it had to wait
for a connection.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import msgspec

from benchmarks.load import OpenLoop

ANSWERS_S_MAX = 30.0
MEDIA = {"json": "application/json", "msgpack": "application/msgpack"}
#: Within some kilometres of this place.
CENTER = (40.75, -73.98)
SPREAD_DEG = 0.05
_LENGTH, _REPLAYED = b"content-length: ", b"idempotency-replayed: true"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    replayed: bool


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request under way."""

    def __init__(self, on_free: Callable[[Connection], None], on_lost: Callable[[str], None]) -> None:
        self._on_free = on_free
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._on_answer: Callable[[Answer], None] | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by their class

    def ask(self, request: bytes, on_answer: Callable[[Answer], None]) -> None:
        assert self._transport is not None
        self._on_answer = on_answer
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        answer = answer_of(data)
        self._rest = b"" if answer else data
        if answer is not None and self._on_answer is not None:
            on_answer, self._on_answer = self._on_answer, None
            on_answer(answer)
            self._on_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(f"a connection was lost: {exc}")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def answer_of(data: bytes) -> Answer | None:
    """The one answer that these bytes are; None while it is not all there."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    lower = head.lower()
    at = lower.index(_LENGTH) + len(_LENGTH)
    if len(body) < int(lower[at:].partition(b"\r\n")[0]):
        return None
    return Answer(int(head[9:12]), body, _REPLAYED in lower)


def bodies(count: int, seed: int) -> list[dict[str, Any]]:
    """What is asked for: as a client's app would say it."""
    draw = random.Random(seed)

    def point() -> dict[str, float]:
        lat, lon = CENTER
        return {
            "lat": round(lat + draw.uniform(-SPREAD_DEG, SPREAD_DEG), 6),
            "lon": round(lon + draw.uniform(-SPREAD_DEG, SPREAD_DEG), 6),
        }

    return [
        {"pickup": point(), "dropoff": point(), "seats": draw.randint(1, 2), "metadata": {"order": f"o-{number}"}}
        for number in range(count)
    ]


def requests_of(said: Sequence[Mapping[str, Any]], path: str, media: str, token: str, keys: str) -> list[bytes]:
    """Whole requests, ready to be written; key number n is `keys` and n."""
    encode = json.dumps if media == "json" else None
    made = []
    for number, each in enumerate(said):
        body = encode(each).encode() if encode else msgspec.msgpack.encode(each)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {MEDIA[media]}\r\nContent-Type: {MEDIA[media]}\r\n"
            f"Authorization: Bearer {token}\r\nIdempotency-Key: {keys}-{number}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


class RequestsLoad:
    """Open a server, load it, repeat some of it; the newest run's answers are kept for that."""

    def __init__(self) -> None:
        self._free: deque[Connection] = deque()
        self._all: list[Connection] = []
        self._due: deque[tuple[int, float]] = deque()
        self._requests: list[bytes] = []
        self._answers: dict[int, Answer] = {}
        self._loop: OpenLoop | None = None
        self._idle = asyncio.Event()
        self._lost: list[str] = []

    async def load(
        self,
        port: int,
        connections: int,
        path: str,
        media: str,
        token: str,
        keys: str,
        rate: float,
        seconds: float,
        seed: int,
    ) -> dict[str, Any]:
        """`rate` requests a second for so long; how many answers of each status, latencies, lag."""
        await self._open(port, connections)
        self._loop = OpenLoop(rate, seconds, self._act)
        count = len(self._loop.pace.times)
        self._requests = requests_of(bodies(count, seed), path, media, token, keys)
        self._answers.clear()
        self._idle.clear()
        await self._loop.run()
        async with asyncio.timeout(ANSWERS_S_MAX):
            while len(self._answers) < count and not self._lost:
                self._idle.clear()
                await self._idle.wait()
        statuses = Counter(str(answer.status) for answer in self._answers.values())
        said = Counter(
            answer.body[:300].decode(errors="replace") for answer in self._answers.values() if answer.status != 201
        )
        return {
            "asked": count, "statuses": statuses, "lost": self._lost[:3], "refusals": said.most_common(3),
            "answer_bytes": sum(len(each.body) for each in self._answers.values()),
            "latency": self._loop.latency.encoded(), "lag": self._loop.lag.encoded(),
        }  # fmt: skip

    async def repeat(self, share: float) -> dict[str, int]:
        """Sends this share of the last run's requests again, one after the other, and compares the answers."""
        again = [n for n, answer in self._answers.items() if answer.status == 201][:: max(1, round(1 / share))]
        same = 0
        for number in again:
            first, answered = self._answers[number], asyncio.get_running_loop().create_future()
            self._free.popleft().ask(self._requests[number], answered.set_result)
            async with asyncio.timeout(ANSWERS_S_MAX):
                answer = await answered
            same += answer.status == 201 and answer.replayed and answer.body == first.body
            await asyncio.sleep(0)  # until its connection is free again
        return {"repeated": len(again), "answered_the_same": same}

    async def close(self) -> None:
        for each in self._all:
            each.close()
        self._all, self._free = [], deque()
        await asyncio.sleep(0)

    async def _open(self, port: int, connections: int) -> None:
        await self.close()
        self._lost = []
        loop = asyncio.get_running_loop()
        lost: list[str] = self._lost
        for _ in range(connections):
            _, made = await loop.create_connection(
                lambda: Connection(self._freed, lambda text: self._broken(lost, text)), "127.0.0.1", port
            )
            self._all.append(made)
        self._free.extend(self._all)

    def _broken(self, lost: list[str], text: str) -> None:
        lost.append(text)
        self._idle.set()

    def _act(self, number: int, due_s: float) -> None:
        self._due.append((number, due_s))
        self._send()

    def _freed(self, connection: Connection) -> None:
        self._free.append(connection)
        self._send()

    def _send(self) -> None:
        while self._due and self._free:
            number, due_s = self._due.popleft()
            self._free.popleft().ask(self._requests[number], partial(self._take, number, due_s))

    def _take(self, number: int, due_s: float, answer: Answer) -> None:
        assert self._loop is not None
        self._loop.answered(due_s)
        self._answers[number] = answer
        self._idle.set()
