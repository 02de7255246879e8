"""A client's side of a ride's event stream (server-sent events, WHATWG HTML section 9.2).

Knows how to read the stream, and how to resume it by the last version read;
what an event means is the caller's matter.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import TypeAlias

import aiohttp
import msgspec

from api import schema
from api.client_http import RETRIED_STATUSES, ApiError, GaveUp, Retry, refusal_of
from matcher.model import FINAL_RIDE_STATES

#: Longer than any server is silent on a living stream.
SILENT_S_MAX = 60.0
#: Connections in a row that bring no event, before the stream is given up.
OPENINGS_MAX = 60

Event: TypeAlias = schema.EventOut | schema.DriverPositionOut
OpenStream: TypeAlias = Callable[[int], AbstractAsyncContextManager[aiohttp.ClientResponse]]

_FINAL = frozenset(state.value for state in FINAL_RIDE_STATES)


@dataclass(frozen=True, slots=True)
class RawEvent:
    """One event as sent; `name` is "message" where the server gave none."""

    name: str
    data: bytes


async def read_raw(lines: AsyncIterable[bytes]) -> AsyncGenerator[RawEvent, None]:
    """Events out of a stream's lines; comments are dropped, and so is an event that the end cuts short."""
    name, data = "message", list[bytes]()
    async for line in lines:
        line = line.rstrip(b"\r\n")
        if not line:
            if data:
                yield RawEvent(name, b"\n".join(data))
            name, data = "message", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"data":
            data.append(value)


async def follow(open_stream: OpenStream, after: int, retry: Retry, rng: random.Random) -> AsyncGenerator[Event, None]:
    """Every change after version `after`, in order and each once, until the final one; see DispatchClient.events."""
    patience = _Patience(retry, rng)
    while True:
        cause: BaseException = ConnectionResetError("the stream ended before the ride did")
        least_s = 0.0
        try:
            async with aclosing(_once(open_stream, after, patience)) as events:
                async for event in events:
                    patience.tries = 0
                    if isinstance(event, schema.EventOut):
                        if event.version <= after:
                            continue  # sent again after a reconnect
                        after = event.version
                    yield event
                    if isinstance(event, schema.EventOut) and event.state in _FINAL:
                        return
        except ApiError as error:
            if error.status not in RETRIED_STATUSES:
                raise
            cause, least_s = error, error.retry_after_s
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError) as error:
            cause = error  # ValueError: a line or an event that is none, as a broken proxy sends
        await patience.wait(cause, least_s)


class _Patience:
    """Bounds how long a stream is opened again: by time without one, and by openings without an event."""

    def __init__(self, retry: Retry, rng: random.Random) -> None:
        self._retry = retry
        self._rng = rng
        self._alive_at = time.monotonic()
        self.tries = 0

    def alive(self) -> None:
        self._alive_at = time.monotonic()

    async def wait(self, cause: BaseException, least_s: float) -> None:
        wait_s = least_s + self._retry.backoff.wait_s(self.tries, self._rng)
        silent_s = time.monotonic() + wait_s - self._alive_at
        self.tries += 1
        if silent_s >= self._retry.deadline_s or self.tries > OPENINGS_MAX:
            raise GaveUp("following a ride", cause, may_have_happened=False) from cause
        await asyncio.sleep(wait_s)


async def _once(open_stream: OpenStream, after: int, patience: _Patience) -> AsyncGenerator[Event, None]:
    """One connection's events; ends with the connection. Raises ApiError when refused."""
    async with open_stream(after) as response:
        if response.status >= 400:
            raise refusal_of(response.status, response.headers, await response.read())
        try:
            async for raw in read_raw(response.content):
                if raw.name == "driver":
                    yield msgspec.json.decode(raw.data, type=schema.DriverPositionOut)
                else:
                    yield msgspec.json.decode(raw.data, type=schema.EventOut)
        finally:
            patience.alive()
