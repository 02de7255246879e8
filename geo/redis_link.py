"""The shared way to reach Redis: connections, scripts, its clock, and how long to wait between attempts.

This module knows no key and no position. Its rules: a connection never retries
by itself (redis-py's default replays writes whose reply was lost), every wait
has a limit (P10), RESP2 on purpose (nothing here needs RESP3's types or push
messages), and bytes stay bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Sequence
from importlib import resources
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

_T = TypeVar("_T")

#: What a call to Redis raises when Redis, the network or its state is at fault.
RedisFaults = (RedisError, OSError, TimeoutError)

#: The longest wait before the next attempt, so that service is whole again within seconds (P9).
BACKOFF_S_MAX = 1.0
_BACKOFF_S_MIN = 0.05

#: How much faster than ours Redis' clock may run between two measurements: a thousandth.
_DRIFT = 0.001
#: A fall of the upper bound by more than this is a clock set back, not a better measurement:
#: a first measurement over a slow network is that imprecise at most.
_STEP_MS = 1000.0


def connect(url: str, *, timeout_s: float, connections_max: int) -> Redis:
    """A client of its own pool; it connects at the first call.

    `timeout_s` bounds, each by itself, a connect, a reply and the wait for a free connection.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=False,
    )
    return Redis.from_pool(pool)


async def call(client: Redis, *command: bytes | str | int) -> Any:
    """One command and its reply."""
    return await _heed_cancelling(client.execute_command(*command))  # type: ignore[no-untyped-call]


async def call_all(client: Redis, commands: Sequence[Sequence[bytes | str | int]]) -> list[Any]:
    """Several commands in one round trip, and their replies; they are no transaction."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return await _heed_cancelling(pipeline.execute())


async def _heed_cancelling(reply: Awaitable[_T]) -> _T:
    """Awaits a reply, and ends the task that was told to end meanwhile.

    redis-py sends inside `asyncio.wait_for`, which before Python 3.12 swallows a
    cancellation that comes just when the sending is done: a loop would go on for ever.
    """
    task = asyncio.current_task()
    told_before = task.cancelling() if task is not None else 0
    try:
        return await reply
    finally:
        if task is not None and task.cancelling() > told_before:
            raise asyncio.CancelledError


def reason_of(fault: BaseException) -> str:
    """Why Redis could not be used, in words for a person; names no credentials."""
    return f"Redis is unavailable: {str(fault).strip() or type(fault).__name__}"


def backoff_s(failures: int) -> float:
    """How long to wait after so many failures in a row: exponential, full jitter, at most BACKOFF_S_MAX."""
    longest = min(BACKOFF_S_MAX, _BACKOFF_S_MIN * 2 ** min(failures, 10))
    return random.uniform(_BACKOFF_S_MIN / 2, longest)


class Script:
    """A Lua script run by its hash, and by its text where Redis does not know it.

    Redis forgets scripts at a restart and by SCRIPT FLUSH. NOSCRIPT says that
    nothing ran, so sending the text then is no replay of a write.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    def load(cls, package: str, name: str) -> Script:
        """Reads the script from a file of the package."""
        return cls(resources.files(package).joinpath(name).read_text(encoding="utf-8"))

    async def run(self, client: Redis, keys: Sequence[bytes], args: Sequence[bytes | int]) -> Any:
        """The script's reply. Raises what redis-py raises; the outcome of a time-out is unknown."""
        rest = (len(keys), *keys, *args)
        try:
            return await call(client, "EVALSHA", self._sha, *rest)
        except NoScriptError:
            return await call(client, "EVAL", self._text, *rest)


class RedisClock:
    """An estimate, in ms, of Redis' TIME that does not run behind it.

    A reply that was read at `after` to a question sent at `before` bounds the
    offset between Redis' clock and our monotonic one: the truth lies between
    `TIME - after` and `TIME - before`. We hold the smallest upper bound that
    the measurements allow, raised by what the clocks may drift apart; where a
    measurement contradicts it, Redis' clock has been set (or another machine's
    clock answers) and the new measurement counts. Between a step of Redis'
    clock and the next measurement the estimate is wrong by that step.

    Never measured: the wall clock of this machine, for want of better. Nothing
    is judged by it then, as no position has been received either.
    """

    def __init__(self) -> None:
        self._offset_ms: float | None = None
        self._measured_at_ms = 0.0
        self.steps_back = 0  # how often Redis' clock was found set back: ages computed before mean nothing

    @staticmethod
    def monotonic_ms() -> float:
        return time.monotonic() * 1000.0

    @property
    def is_set(self) -> bool:
        return self._offset_ms is not None

    def now_ms(self) -> int:
        if self._offset_ms is None:
            return int(time.time() * 1000)
        now = self.monotonic_ms()
        return int(now + self._offset_ms + _DRIFT * (now - self._measured_at_ms)) + 1

    def measured(self, redis_ms: float, before_ms: float, after_ms: float) -> None:
        """Takes in Redis' time and our monotonic times around asking for it (ms)."""
        lower, upper = redis_ms - after_ms, redis_ms - before_ms
        held = self._offset_ms
        if held is not None:
            held += _DRIFT * (after_ms - self._measured_at_ms)
            if held - upper > _STEP_MS:
                self.steps_back += 1
        self._offset_ms = upper if held is None or held < lower else min(held, upper)
        self._measured_at_ms = after_ms
