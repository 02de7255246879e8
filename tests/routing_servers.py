"""Routing servers on loopback that speak OSRM's and Valhalla's documented formats.

Their answers were written after these pages, not recorded from a running server:
OSRM: https://project-osrm.org/docs/v5.24.0/api/ (table service, responses),
in the repository Project-OSRM/osrm-backend docs/http.md.
Valhalla: https://valhalla.github.io/valhalla/api/matrix/api-reference/ (`verbose`
true and false), error codes in its turn-by-turn API reference, limits in
scripts/valhalla_build_config.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import web

Degrees = tuple[float, float]
Answer = Callable[["Asked"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Asked:
    """A question as it came over the wire, and the places it names as (latitude, longitude)."""

    request: web.Request
    line: str
    body: bytes
    origins: list[Degrees]
    targets: list[Degrees]

    def seconds(self) -> list[list[float]]:
        return [[way_s(origin, target) for target in self.targets] for origin in self.origins]


def way_s(origin: Degrees, target: Degrees) -> float:
    """The server's world: north takes longer than south, so that a swapped table is found out."""
    north, east = target[0] - origin[0], target[1] - origin[1]
    return round(1e4 * abs(north) + 2e4 * abs(east) + (50.0 if north > 0.0 else 0.0), 1)


class Server:
    """A routing server on loopback; `answer` is what it does with each question, `asked` what came."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.under_way = 0
        self.under_way_max = 0
        self.gate = asyncio.Event()
        self.gate.set()
        app = web.Application()
        app.router.add_get("/table/v1/{rest:.*}", self._handle)
        app.router.add_post("/sources_to_targets", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        self.url = ""

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        self.gate.set()
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        line = f"{request.method} {request.raw_path}"
        asked = Asked(request, line, body, *(places_of_osrm(line) if request.method == "GET" else places_of_json(body)))
        self.asked.append(asked)
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            await self.gate.wait()
            return await self.answer(asked)
        finally:
            self.under_way -= 1


def places_of_osrm(line: str) -> tuple[list[Degrees], list[Degrees]]:
    path, _, query = unquote(line).partition("?")
    places = []
    for text in path.rpartition("/")[2].split(";"):
        lon, lat = text.split(",")
        places.append((float(lat), float(lon)))
    options = dict(option.split("=") for option in query.split("&"))
    sources, destinations = ([places[int(n)] for n in options[key].split(";")] for key in ("sources", "destinations"))
    return sources, destinations


def places_of_json(body: bytes) -> tuple[list[Degrees], list[Degrees]]:
    asked = json.loads(body)
    sources, targets = ([(each["lat"], each["lon"]) for each in asked[key]] for key in ("sources", "targets"))
    return sources, targets


def waypoints(places: list[Degrees]) -> list[dict[str, object]]:
    return [{"hint": "KSoK", "distance": 4.15, "name": "Torstraße", "location": [lon, lat]} for lat, lon in places]


def osrm_ok(asked: Asked, durations: object) -> web.Response:
    answer = {"code": "Ok", "durations": durations}
    return web.json_response(
        answer | {"sources": waypoints(asked.origins), "destinations": waypoints(asked.targets)},
    )


async def osrm(asked: Asked) -> web.StreamResponse:
    if len(asked.origins) + len(asked.targets) > 100:
        return web.json_response({"code": "TooBig", "message": "Too many table coordinates"}, status=400)
    return osrm_ok(asked, asked.seconds())


async def valhalla_verbose(asked: Asked) -> web.StreamResponse:
    table = [
        [{"from_index": i, "to_index": j, "time": time_s, "distance": 1.234} for j, time_s in enumerate(row)]
        for i, row in enumerate(asked.seconds())
    ]
    return web.json_response({"sources_to_targets": table, "units": "kilometers", "algorithm": "costmatrix"})


async def valhalla_concise(asked: Asked) -> web.StreamResponse:
    table = {"durations": asked.seconds(), "distances": [[0.1] * len(asked.targets)] * len(asked.origins)}
    return web.json_response({"sources_to_targets": table, "units": "kilometers", "algorithm": "timedistancematrix"})


def always(status: int, body: str, content_type: str = "application/json") -> Answer:
    async def answer(_: Asked) -> web.StreamResponse:
        return web.Response(status=status, text=body, content_type=content_type)

    return answer
