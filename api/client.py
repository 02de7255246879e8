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
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import msgspec

from api import schema, schema_webhooks
from api.client_driver import DriverClient, DriverSocket
from api.client_events import SILENT_S_MAX, Event, follow
from api.client_http import Answer, ApiError, Backoff, GaveUp, ProblemOut, Retry, repeated
from api.schema_nearby import NearbyMany
from api.schema_operator import AssignRequest, BecauseRequest, MarketOut, MarketPage, PauseRequest, ReleaseRequest
from api.schema_rides import RideDetailOut
from api.webhook_signature import verify_signature

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
    "verify_signature",
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

    async def ride(self, ride_id: str) -> RideDetailOut:
        """The ride with its history."""
        return (await self._call("GET", f"/v1/rides/{ride_id}")).decode(RideDetailOut)

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
        """Before the ride has begun; as an admin until it has ended, and with a reason."""
        return await self._command_ride(ride_id, "cancel", schema.ReasonRequest(reason))

    async def redirect_ride(self, ride_id: str, lat: float, lon: float) -> schema.RideOut:
        """Another destination, until the ride has ended."""
        return await self._command_ride(ride_id, "destination", schema.Point(lat, lon))

    async def _command_ride(self, ride_id: str, verb: str, body: msgspec.Struct) -> schema.RideOut:
        return (await self._call("POST", f"/v1/rides/{ride_id}/{verb}", body=body)).decode(schema.RideOut)

    def events(self, ride_id: str, *, after: int = 0) -> AsyncGenerator[Event, None]:
        """The ride's events after version `after`, in order and each once, until its final one.

        A stream that breaks is opened again and resumes by Last-Event-ID. Raises GaveUp
        when none could be opened for the whole of the deadline, ApiError when refused.
        Who stops early closes it (contextlib.aclosing).
        """
        return follow(partial(self._open_events, ride_id), after, self._retry, self._rng)

    # By hand, as an admin

    async def assign_ride(self, ride_id: str, driver_id: str, reason: str, *, ask: bool = False) -> schema.RideOut:
        """This driver, in place of the one that the ride has; `ask`: the driver is offered it, and may decline.

        ApiError 409 `driver-unavailable` says why the driver cannot take it.
        """
        return await self._command_ride(ride_id, "assign", AssignRequest(driver_id, reason, ask))

    async def release_ride(self, ride_id: str, reason: str, *, trip_id: str | None = None) -> schema.RideOut:
        """Takes the driver of this trip, else of the ride's present one, from the ride, which searches on.

        It is asked for by the trip, so that a repetition takes nobody else from it.
        """
        if trip_id is None and (present := (await self.ride(ride_id)).trip) is not None:
            trip_id = present.id
        return await self._command_ride(ride_id, "release", ReleaseRequest(reason, trip_id))

    async def complete_ride(self, ride_id: str, reason: str) -> schema.RideOut:
        """For a driver who cannot say that the ride is completed."""
        return await self._command_ride(ride_id, "complete", BecauseRequest(reason))

    # Markets

    async def markets(self) -> list[MarketOut]:
        return (await self._call("GET", "/v1/markets")).decode(MarketPage).items

    async def pause_market(self, market: str, new_rides: Literal["refuse", "queue"], reason: str) -> MarketOut:
        """As an admin: nobody is matched there, and new rides are refused (409) or wait."""
        body = PauseRequest(new_rides, reason)
        return (await self._call("POST", f"/v1/markets/{market}/pause", body=body)).decode(MarketOut)

    async def resume_market(self, market: str, *, reason: str | None = None) -> MarketOut:
        """As an admin: matching goes on."""
        body = schema.ReasonRequest(reason)
        return (await self._call("POST", f"/v1/markets/{market}/resume", body=body)).decode(MarketOut)

    # Drivers and trips

    async def nearby(
        self, lat: float, lon: float, *, k: int = 10, limit_m: float | None = None
    ) -> list[schema.NearbyOut]:
        params = {"lat": repr(lat), "lon": repr(lon), "k": str(k)}
        if limit_m is not None:
            params["limit_m"] = repr(limit_m)
        return (await self._call("GET", "/v1/drivers/nearby", params=params)).decode(schema.NearbyPage).items

    async def nearby_many(
        self,
        points: Sequence[tuple[float, float]],
        *,
        k: int = 10,
        limit_m: float | None = None,
        vehicle_class: str | None = None,
        seats: int = 1,
        tags: Sequence[str] = (),
        idle: bool = True,
        market: str | None = None,
    ) -> NearbyMany:
        """The drivers near each of these places (latitude, longitude) in one call; `near(i)` lists those of the i-th.

        A place that cannot be asked for has no drivers, and `errors` say why.
        """
        wish: dict[str, Any] = {"k": k, "seats": seats, "tags": list(tags), "idle": idle}
        given = {"limit_m": limit_m, "class": vehicle_class, "market": market}
        wish |= {name: value for name, value in given.items() if value is not None}
        wish["points"] = [{"lat": lat, "lon": lon} for lat, lon in points]
        return (await self._call("POST", "/v1/drivers/nearby", body=wish)).decode(NearbyMany)

    async def put_driver(self, driver_id: str, driver: schema.DriverRequest) -> schema.DriverOut:
        return (await self._call("PUT", f"/v1/drivers/{driver_id}", body=driver)).decode(schema.DriverOut)

    async def driver(self, driver_id: str) -> schema.DriverOut:
        return (await self._call("GET", f"/v1/drivers/{driver_id}")).decode(schema.DriverOut)

    async def suspend_driver(
        self, driver_id: str, reason: str, *, trips: Literal["keep", "release", "end"] = "release"
    ) -> schema.SuspendedOut:
        """As an admin; `trips` says what becomes of those that the driver has."""
        body = schema.SuspendRequest(reason, trips)
        answer = await self._call("POST", f"/v1/drivers/{driver_id}/suspend", body=body)
        return answer.decode(schema.SuspendedOut)

    async def unsuspend_driver(self, driver_id: str) -> schema.DriverOut:
        """As an admin; the driver is offline until it signs on."""
        return (await self._call("POST", f"/v1/drivers/{driver_id}/unsuspend")).decode(schema.DriverOut)

    async def command_trip(self, trip_id: str, verb: str, *, reason: str | None = None) -> schema.RideOut:
        """`verb`: accept, decline, arrive, start, complete, cancel or no_show.

        ApiError 409 says what is allowed now, and of a no-show that came too early, from when on.
        """
        body = schema.ReasonRequest(reason)
        return (await self._call("POST", f"/v1/trips/{trip_id}/{verb}", body=body)).decode(schema.RideOut)

    # Webhooks

    async def put_webhook(self, url: str, *, secret: str | None = None) -> schema_webhooks.WebhookSetOut:
        """Where this client's events are sent. Without a `secret` one is made here, so that repetitions set the same.

        A receiver checks what it gets with `verify_signature`.
        """
        body = schema_webhooks.WebhookRequest(url, secret or secrets.token_urlsafe(32))
        return (await self._call("PUT", "/v1/webhook", body=body)).decode(schema_webhooks.WebhookSetOut)

    async def webhook(self) -> schema_webhooks.WebhookOut:
        """ApiError 404 where there is none."""
        return (await self._call("GET", "/v1/webhook")).decode(schema_webhooks.WebhookOut)

    async def delete_webhook(self) -> None:
        """Also drops what was still to be delivered."""
        await self._call("DELETE", "/v1/webhook")

    async def deliveries(
        self, *, state: Literal["waiting", "given_up"] | None = None, limit: int = 100, cursor: str | None = None
    ) -> schema_webhooks.DeliveryPage:
        """Events that were not delivered (yet), newest first, and the cursor of the next page where there is one."""
        params = {"limit": str(limit)}
        if state is not None:
            params["state"] = state
        if cursor is not None:
            params["cursor"] = cursor
        answer = await self._call("GET", "/v1/webhook/deliveries", params=params)
        return answer.decode(schema_webhooks.DeliveryPage)

    async def retry_deliveries(self, ids: Sequence[str] | None = None) -> int:
        """Tries these given-up deliveries again, or all of them; how many there were."""
        body = schema_webhooks.RetryRequest(None if ids is None else list(ids))
        answer = await self._call("POST", "/v1/webhook/deliveries/retry", body=body)
        return answer.decode(schema_webhooks.RetriedOut).retried

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
        body: msgspec.Struct | Mapping[str, Any] | None = None,
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
