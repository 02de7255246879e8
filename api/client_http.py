"""What every client call stands on: refusals as exceptions, backoff, and the one loop that repeats a call."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import msgspec

T = TypeVar("T")

RETRIED_STATUSES = frozenset({429, 502, 503, 504})


class ProblemOut(msgspec.Struct, frozen=True):
    """An RFC 9457 problem as a client reads it; `allowed` and `state` come with a 409, `allowed_at` where it was too
    early, `why` where a driver is not available."""

    code: str = "unknown"
    title: str = ""
    detail: str = ""
    errors: list[dict[str, Any]] = msgspec.field(default_factory=list)
    state: str | None = None
    allowed: list[str] | None = None
    allowed_at: str | None = None
    why: str | None = None


class ApiError(Exception):
    """The service refused: `status`, its stable `problem.code`, and which fields are wrong."""

    def __init__(self, status: int, problem: ProblemOut, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{status} {problem.code}: {problem.detail or problem.title}")
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s


class GaveUp(Exception):
    """The deadline passed. `may_have_happened`: an attempt ended without an answer, or with one of 5xx,
    so the outcome is unknown."""

    def __init__(self, what: str, cause: BaseException, *, may_have_happened: bool) -> None:
        super().__init__(f"{what}: gave up after {type(cause).__name__}: {cause}")
        self.cause = cause
        self.may_have_happened = may_have_happened


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter: between 0 and `base_s` doubled `attempt` times, at most `cap_s`."""

    base_s: float = 0.1
    cap_s: float = 10.0

    def wait_s(self, attempt: int, rng: random.Random) -> float:
        return rng.uniform(0.0, min(self.cap_s, self.base_s * 2.0 ** min(attempt, 30)))


@dataclass(frozen=True, slots=True)
class Retry:
    """`deadline_s` bounds a call with all its repetitions, `attempt_s` each of them.

    An attempt is given long: one that is cut off and repeated while the service is
    slow adds to what made it slow.
    """

    deadline_s: float = 30.0
    attempt_s: float = 20.0
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def decode(self, kind: type[T]) -> T:
        return msgspec.json.decode(self.body, type=kind)

    def refusal(self) -> ApiError | None:
        if self.status < 400:
            return None
        return refusal_of(self.status, self.headers, self.body)


def refusal_of(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """An answer of 4xx or 5xx as an exception, also where a proxy in between has written it."""
    try:
        problem = msgspec.json.decode(body, type=ProblemOut)
    except (msgspec.DecodeError, RecursionError):
        problem = ProblemOut(detail=body[:200].decode("utf-8", "replace"))
    return ApiError(status, problem, retry_after_s(headers))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Whole seconds; a date or nonsense counts as none, since the backoff waits anyway."""
    try:
        return min(3600.0, max(0.0, float(headers.get("Retry-After", "0"))))
    except ValueError:
        return 0.0


async def repeated(
    attempt: Callable[[float], Awaitable[Answer]],
    what: str,
    retry: Retry,
    rng: random.Random,
    deadline_s: float | None = None,
) -> Answer:
    """Attempts until there is an answer worth giving, or the deadline; raises ApiError or GaveUp."""
    stop_at = time.monotonic() + (retry.deadline_s if deadline_s is None else deadline_s)
    unanswered = False
    tries = 0
    while True:
        cause: BaseException
        least_s = 0.0
        try:
            answer = await attempt(max(0.001, min(retry.attempt_s, stop_at - time.monotonic())))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            # Only a connection that was never made surely carried nothing.
            unanswered = unanswered or not isinstance(error, aiohttp.ClientConnectorError)
            cause = error
        else:
            refusal = answer.refusal()
            if refusal is None:
                return answer
            if refusal.status not in RETRIED_STATUSES:
                raise refusal
            # A 503 may tell of a commit whose outcome the service itself does not know.
            unanswered = unanswered or refusal.status >= 500
            cause, least_s = refusal, refusal.retry_after_s
        wait_s = least_s + retry.backoff.wait_s(tries, rng)
        if time.monotonic() + wait_s >= stop_at:
            raise GaveUp(what, cause, may_have_happened=unanswered) from cause
        await asyncio.sleep(wait_s)
        tries += 1
