"""The HTTP application: routes, and the middleware that every request passes.

The middleware names the request, checks its token, counts it, bounds how many
are under way, and turns every exception into a problem. Handlers only ever see
requests with an identity.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from multidict import istr

from api.auth import Authenticator
from api.errors import Problem, problem_of, retry_later
from api.limits import Gauge
from api.listener import Lobby
from api.security import authenticate
from api.telemetry import REQUEST_ID, Metrics

log = structlog.stdlib.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
API_PREFIX = "/v1/"
#: These last as long as their client likes; they are bounded as sockets, not as requests.
LONG_LIVED = ("/stream", "/events")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ID_HEADER = istr("X-Request-Id")
_NUMBER_MAX = 2**64 - 1
#: Of requests that bring no id. They only have to differ, between processes too: counted from a number that was drawn.
_NUMBERS = itertools.count(secrets.randbits(64))


class HasRoutes(Protocol):
    def routes(self) -> list[web.RouteDef]: ...


class Gate:
    """The middleware. `refusing` says why no request is taken, a problem's code; None while they are."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        refusing: Callable[[], str | None],
        requests: Gauge,
        lobby: Lobby,
        metrics: Metrics,
        logs_access: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._authenticator = authenticator
        self._refusing = refusing
        self._requests = requests
        self._lobby = lobby
        self._metrics = metrics
        self._logs_access = logs_access
        self._clock = clock

    def middleware(self) -> Middleware:
        @web.middleware
        def gate(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
            return self.pass_through(request, handler)

        return gate

    async def pass_through(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started_s = self._clock()
        self._lobby.leave(request.protocol)
        request_id = _request_id(request)
        REQUEST_ID.set(request_id)
        try:
            response = await self._answer(request, handler)
        except Exception as error:  # noqa: BLE001 - the one place where every exception becomes an answer
            if _has_left(request):
                log.info("a client left before its answer", route=route_of(request), reason=type(error).__name__)
                return web.Response(status=CLIENT_LEFT)
            response = self._problem(request, error).to_response()
            if response.headers.get("Connection") == "close":
                response.force_close()
        if not response.prepared:
            response.headers[_ID_HEADER] = request_id
        self._observe(request, response, self._clock() - started_s)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith(API_PREFIX):
            return await handler(request)
        if request.match_info.http_exception is not None:
            return await handler(request)  # an unknown route or a wrong method, whoever asks
        self._check_ready()
        authenticate(request, self._authenticator)
        if request.path.endswith(LONG_LIVED):
            return await handler(request)
        with self._requests.one():
            return await handler(request)

    def _check_ready(self) -> None:
        state = self._refusing()
        if state is not None:
            problem = retry_later(state, "another process answers, or this one in a moment")
            if state == "draining":
                problem.headers["Connection"] = "close"
            raise problem

    def _problem(self, request: web.Request, error: Exception) -> Problem:
        problem = problem_of(error)
        if problem is None:
            log.error("a request failed", method=request.method, route=route_of(request), exc_info=error)
            problem = Problem("internal-error", "the service has failed; its log says more under the request's id")
        self._metrics.problems.add(problem.code)
        return problem

    def _observe(self, request: web.Request, response: web.StreamResponse, taken_s: float) -> None:
        if not request.path.endswith(LONG_LIVED):
            self._metrics.requests.add(_method(request), route_of(request), str(response.status), seconds=taken_s)
        if self._logs_access:
            # The route, not the path: a query may hold a place, and a place is nobody's business.
            log.info("request", method=request.method, route=route_of(request), status=response.status, s=taken_s)


#: Sent to nobody; aiohttp wants a response to drop.
CLIENT_LEFT = 400
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


def _method(request: web.BaseRequest) -> str:
    """A label of few values, whatever a client sends."""
    return request.method if request.method in _METHODS else "other"


def route_of(request: web.Request) -> str:
    """The route's pattern, never the path itself: ids would make a metric of each."""
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical


def _has_left(request: web.BaseRequest) -> bool:
    """Whatever failed then failed for want of somebody to answer: nothing of ours is at fault."""
    return request.transport is None or request.transport.is_closing()


def _request_id(request: web.BaseRequest) -> str:
    given = request.headers.get(_ID_HEADER, "")
    return given if given and _REQUEST_ID.fullmatch(given) else f"{next(_NUMBERS) & _NUMBER_MAX:016x}"


def build_app(gate: Gate, parts: Sequence[HasRoutes]) -> web.Application:
    """An application of these parts' routes."""
    app = web.Application(middlewares=[gate.middleware()])
    for part in parts:
        app.add_routes(part.routes())
    return app
