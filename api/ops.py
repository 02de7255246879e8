"""Outside /v1: whether the process lives, whether it wants traffic, and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.telemetry import Metrics


@dataclass(frozen=True, slots=True)
class Readiness:
    """`state` is starting, ready, degraded or draining; `reasons` say what is missing, for a person."""

    state: str
    reasons: tuple[str, ...] = ()

    @property
    def takes_requests(self) -> bool:
        """A degraded service still does what it can: a load balancer that turned away from
        every process because Redis is down would make a part's fault the whole's."""
        return self.state in ("ready", "degraded")


class OpsApi:
    def __init__(self, *, readiness: Callable[[], Readiness], metrics: Metrics) -> None:
        self._readiness = readiness
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
        ]

    async def healthz(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"}, 200)

    async def readyz(self, request: web.Request) -> web.Response:
        readiness = self._readiness()
        status = 200 if readiness.takes_requests else 503
        return _json({"status": readiness.state, "reasons": list(readiness.reasons)}, status)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _json(body: dict[str, object], status: int) -> web.Response:
    headers = {"Retry-After": "1"} if status == 503 else None
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json", headers=headers)
