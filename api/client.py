"""A typed asynchronous client: DispatchClient for HTTP and ride events.

Every call is bounded by an overall deadline. Within it a call is repeated, with
exponential backoff and full jitter, on connection errors and on 429, 502, 503
and 504, waiting at least as long as `Retry-After` says. Repeating is safe: a
ride request carries one idempotency key throughout (P3), and every other command
answers a repetition as it answered the first time. The socket of one driver is
api.client_driver.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import aiohttp
import msgspec

from api import schema
from api.client_driver import DriverClient, DriverSocket
from api.client_events import SILENT_S_MAX, Event, follow
from api.client_http import Answer, ApiError, Backoff, GaveUp, ProblemOut, Retry, repeated

__all__ = [
    "Acknowledged",
    "ApiError",
    "Backoff",
    "DispatchClient",
    "DriverClient",
    "GaveUp",
    "ProblemOut",
    "Retry",
    "new_session",
]

READY_EVERY_S = 0.1
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A ride answered 201. `replayed`: this is the first answer again, to a repeated request (P3)."""

    ride: schema.RideOut
    replayed: bool


def new_session(*, connections_max: int = 0) -> aiohttp.ClientSession:
    """A session for clients to share; 0 connections: without limit, as thousands of sockets need."""
    connector = aiohttp.TCPConnector(limit=connections_max, keepalive_timeout=15.0)
    return aiohttp.ClientSession(connector=connector, ws_response_class=DriverSocket)


class DispatchClient:
    """One client identity over HTTP. Made with a session, it shares it; else it opens and closes its own."""

    def __init__(
        self,
        base_url: str,
        token: str | Callable[[], str],
        *,
        session: aiohttp.ClientSession | None = None,
        retry: Retry | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._token = token if callable(token) else lambda: token
        self._session = session
        self._owns_session = session is None
        self._retry = retry or Retry()
        self._rng = rng or random.Random()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._owns_session and self._session is not None:
            await self._session.close()
            self._session = None

    # Rides

    async def request_ride(
        self, request: schema.RideRequest, *, key: str | None = None, deadline_s: float | None = None
    ) -> Acknowledged:
        """Asks for a ride; without a `key` one is made, so that repetitions make one ride only (P3)."""
        headers = {"Idempotency-Key": key or secrets.token_urlsafe(16)}
        answer = await self._call("POST", "/v1/rides", body=request, headers=headers, deadline_s=deadline_s)
        return Acknowledged(answer.decode(schema.RideOut), "Idempotency-Replayed" in answer.headers)

    async def ride(self, ride_id: str) -> schema.RideOut:
        return (await self._call("GET", f"/v1/rides/{ride_id}")).decode(schema.RideOut)

    async def ride_page(
        self, *, state: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> schema.RidePage:
        """Some of this client's rides, newest first, and the cursor of the next page where there is one."""
        params = {"limit": str(limit)}
        if state is not None:
            params["state"] = state
        if cursor is not None:
            params["cursor"] = cursor
        return (await self._call("GET", "/v1/rides", params=params)).decode(schema.RidePage)

    async def rides(self, *, state: str | None = None, page_size: int = 100) -> list[schema.RideOut]:
        """All of them: as many as the client ever made, so know how many that is."""
        page = await self.ride_page(state=state, limit=page_size)
        found = list(page.items)
        while page.next is not None:
            page = await self.ride_page(state=state, limit=page_size, cursor=page.next)
            found += page.items
        return found

    async def cancel_ride(self, ride_id: str, *, reason: str | None = None) -> schema.RideOut:
        body = schema.ReasonRequest(reason)
        return (await self._call("POST", f"/v1/rides/{ride_id}/cancel", body=body)).decode(schema.RideOut)

    def events(self, ride_id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """The ride's events after version `after`, in order and each once, until its final one.

        A stream that breaks is opened again and resumes by Last-Event-ID. Raises GaveUp
        when none could be opened for the whole of the deadline, ApiError when refused.
        Who stops early closes it (contextlib.aclosing).
        """
        return follow(partial(self._open_events, ride_id), after, self._retry, self._rng)

    # Drivers and trips

    async def nearby(
        self, lat: float, lon: float, *, k: int = 10, limit_m: float | None = None
    ) -> list[schema.NearbyOut]:
        params = {"lat": repr(lat), "lon": repr(lon), "k": str(k)}
        if limit_m is not None:
            params["limit_m"] = repr(limit_m)
        return (await self._call("GET", "/v1/drivers/nearby", params=params)).decode(schema.NearbyPage).items

    async def put_driver(self, driver_id: str, driver: schema.DriverRequest) -> schema.DriverOut:
        return (await self._call("PUT", f"/v1/drivers/{driver_id}", body=driver)).decode(schema.DriverOut)

    async def driver(self, driver_id: str) -> schema.DriverOut:
        return (await self._call("GET", f"/v1/drivers/{driver_id}")).decode(schema.DriverOut)

    async def command_trip(self, trip_id: str, verb: str, *, reason: str | None = None) -> schema.RideOut:
        """`verb`: arrive, start, complete or cancel. ApiError 409 says what is allowed now."""
        body = schema.ReasonRequest(reason)
        return (await self._call("POST", f"/v1/trips/{trip_id}/{verb}", body=body)).decode(schema.RideOut)

    async def is_ready(self) -> bool:
        """One question, not repeated: whether the service takes requests now."""
        try:
            async with asyncio.timeout(self._retry.attempt_s), self.session.get(f"{self._base_url}/readyz") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def wait_ready(self, within_s: float) -> bool:
        """Asks until the service takes requests; False when it did not `within_s`."""
        stop_at = time.monotonic() + within_s
        while time.monotonic() < stop_at:
            if await self.is_ready():
                return True
            await asyncio.sleep(READY_EVERY_S)
        return False

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = new_session(connections_max=64)
        return self._session

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token()}"}

    def _open_events(self, ride_id: str, after: int) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)} | self._authorization()
        # A quiet stream is kept alive by comments: silence beyond that is a dead connection.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._retry.attempt_s, sock_read=SILENT_S_MAX)
        return self.session.get(f"{self._base_url}/v1/rides/{ride_id}/events", headers=headers, timeout=timeout)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: msgspec.Struct | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
    ) -> Answer:
        data = None if body is None else msgspec.json.encode(body)
        sent = (_JSON if data is not None else {}) | dict(headers or {})

        async def attempt(timeout_s: float) -> Answer:
            async with (
                asyncio.timeout(timeout_s),
                self.session.request(
                    method, self._base_url + path, params=params, data=data, headers=sent | self._authorization()
                ) as response,
            ):
                return Answer(response.status, response.headers, await response.read())

        return await repeated(attempt, f"{method} {path}", self._retry, self._rng, deadline_s)
