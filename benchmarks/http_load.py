"""A lean HTTP/1.1 load generator: kept-alive connections, requests made beforehand, answers read by their length.

It shares the machine with the server that it loads, so it does as little as it can. Two ways to load: closed, where
each connection asks again as soon as it is answered, which finds what a CPU-second of the server is worth; and open,
at a rate, where a latency counts from the moment at which the request was due, so that a stalled server cannot hide.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from hdrh.histogram import HdrHistogram

from benchmarks.failures import NotMeasured

#: Longest latency that is told apart, in microseconds.
LATENCY_US_MAX = 60_000_000
_ANSWER_S_MAX = 30.0
_CLOSED_S_MAX = 120.0
_LENGTH = b"content-length: "


class LoadFailed(NotMeasured):
    """An answer other than 200, or a connection that broke: nothing that was measured counts."""


def get_request(path: str, *, token: str = "", accept: str = "application/json") -> bytes:
    """A whole GET request, ready to be written."""
    who = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n{who}\r\n".encode()


def post_request(path: str, body: bytes, *, token: str = "", media: str = "application/json") -> bytes:
    """A whole POST request whose body and answer are of one media type, ready to be written."""
    who = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {media}\r\nContent-Type: {media}\r\n{who}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """One kept-alive connection; answers come in the order of the requests."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._rest = b""

    @classmethod
    async def open(cls, port: int, host: str = "127.0.0.1") -> Self:
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """The body of the answer, once it is there; the future raises LoadFailed."""
        assert self._transport is not None
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(answered)
        self._transport.write(request)
        return answered

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        while data and (end := data.find(b"\r\n\r\n")) >= 0:
            whole = end + 4 + _length_of(data[:end])
            if len(data) < whole:
                break
            self._settle(data[:end], data[end + 4 : whole])
            data = data[whole:]
        self._rest = data

    def _settle(self, head: bytes, body: bytes) -> None:
        answered = self._waiting.popleft()
        if answered.done():
            return
        if head.startswith(b"HTTP/1.1 200"):
            answered.set_result(body)
        else:
            said = (head[: head.find(b"\r\n")] + b" " + body[:300]).decode(errors="replace")
            answered.set_exception(LoadFailed(said))

    def connection_lost(self, error: Exception | None) -> None:
        while self._waiting:
            answered = self._waiting.popleft()
            if not answered.done():
                answered.set_exception(LoadFailed(f"the connection broke: {error!r}"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _length_of(head: bytes) -> int:
    at = head.lower().find(_LENGTH)
    if at < 0:
        raise LoadFailed("an answer without a length")
    begin = at + len(_LENGTH)
    end = head.find(b"\r\n", begin)
    return int(head[begin : end if end >= 0 else len(head)])


@dataclass(slots=True)
class Loaded:
    """What a run took: answers and their bytes; latencies in microseconds where they were wanted."""

    answers: int
    body_bytes: int
    wall_s: float
    latency_us: HdrHistogram | None = field(default=None)

    def percentile_ms(self, percent: float) -> float:
        assert self.latency_us is not None
        return float(self.latency_us.get_value_at_percentile(percent)) / 1000.0


class Load:
    """Some connections to one server, which take their requests from one list in turn."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = connections

    @classmethod
    async def open(cls, port: int, connections: int) -> Self:
        return cls([await Connection.open(port) for _ in range(connections)])

    def close(self) -> None:
        for each in self._connections:
            each.close()

    async def one(self, request: bytes) -> bytes:
        """The body of one answer. Raises LoadFailed."""
        return await self._connections[0].ask(request)

    async def closed(self, requests: Sequence[bytes], *, times: int = 1) -> Loaded:
        """All the requests so many times over, one at a time on each connection. Raises LoadFailed."""
        began_s = time.perf_counter()
        ahead = iter(list(requests) * times)
        try:
            async with asyncio.timeout(_CLOSED_S_MAX):
                counts = await asyncio.gather(*(_one_by_one(each, ahead) for each in self._connections))
        except TimeoutError:
            raise LoadFailed(f"not all was answered within {_CLOSED_S_MAX:g} s") from None
        answers, size = sum(count for count, _ in counts), sum(size for _, size in counts)
        return Loaded(answers, size, time.perf_counter() - began_s)

    async def open_loop(self, requests: Sequence[bytes], *, rate: float, seconds: float) -> Loaded:
        """`rate` requests a second, whatever the answers do. Raises LoadFailed."""
        latency = HdrHistogram(1, LATENCY_US_MAX, 3)
        loop = asyncio.get_running_loop()
        began_s, asked, size = loop.time(), 0, 0
        under_way: set[asyncio.Future[bytes]] = set()

        def answered(due_s: float, future: asyncio.Future[bytes]) -> None:
            nonlocal size
            if future.exception() is None:
                under_way.discard(future)
                size += len(future.result())
                latency.record_value(max(1, int((loop.time() - due_s) * 1e6)))

        total = int(rate * seconds)
        while asked < total:
            due = min(total, int((loop.time() - began_s) * rate) + 1)
            for number in range(asked, due):
                future = self._connections[number % len(self._connections)].ask(requests[number % len(requests)])
                under_way.add(future)
                due_s = began_s + number / rate
                future.add_done_callback(partial(answered, due_s))
            asked = due
            await asyncio.sleep(max(0.0, began_s + asked / rate - loop.time()))
        try:
            async with asyncio.timeout(_ANSWER_S_MAX):
                await asyncio.gather(*under_way)
        except TimeoutError:
            raise LoadFailed(f"{len(under_way)} answers were not there after {_ANSWER_S_MAX:g} s") from None
        return Loaded(asked, size, loop.time() - began_s, latency)


async def _one_by_one(connection: Connection, requests: Iterator[bytes]) -> tuple[int, int]:
    count = size = 0
    for request in requests:
        size += len(await connection.ask(request))
        count += 1
    return count, size
