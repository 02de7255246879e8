"""Bounds on what a client may take of us (P10): bodies, requests in flight, open sockets.

Counters are plain integers: one process, one event loop, no locks.
"""

from __future__ import annotations

import asyncio
import resource
from types import TracebackType

from aiohttp import web

from api.errors import Problem, retry_later


async def read_body(request: web.BaseRequest, *, bytes_max: int, timeout_s: float) -> bytes:
    """The whole body. Raises Problem 413 as soon as it is too large, 408 when it takes too long."""
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)
    if not request.body_exists:
        return b""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while part := await request.content.readany():
                size += len(part)
                if size > bytes_max:
                    raise _too_large(bytes_max)
                parts.append(part)
    except TimeoutError as error:
        detail = f"the body did not arrive within {timeout_s:g} s"
        raise Problem("body-timeout", detail, headers={"Connection": "close"}) from error
    except web.RequestPayloadError as error:
        raise Problem("malformed-request", "the body's framing is broken", headers={"Connection": "close"}) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(bytes_max: int) -> Problem:
    return Problem("body-too-large", f"at most {bytes_max} bytes are read", headers={"Connection": "close"})


class Gauge:
    """Counts what is under way, up to `limit`; one more is refused with 503 and Retry-After."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.what = what
        self.count = 0
        self._place = Place(self)
        self._idle = asyncio.Event()
        self._idle.set()

    def one(self) -> Place:
        """A place for as long as its block lasts. Entering it raises Problem 503 when none is free."""
        return self._place

    def take(self) -> None:
        """Raises Problem 503 when no place is free."""
        if self.count >= self.limit:
            raise retry_later("overloaded", f"there are already {self.limit} {self.what}")
        self.count += 1
        self._idle.clear()

    def give_back(self) -> None:
        self.count -= 1
        if self.count == 0:
            self._idle.set()

    async def idle(self) -> None:
        """Returns once none is under way."""
        await self._idle.wait()


class Place:
    """One of a gauge's places. A class, as a generator would cost each request several times as much."""

    __slots__ = ("_gauge",)

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    def __enter__(self) -> None:
        self._gauge.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gauge.give_back()


def raise_open_files(wanted: int) -> int:
    """Lets this process hold as many sockets as the settings promise, as far as the system allows.

    Returns the limit of open files that holds now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
