"""POST /v1/match: a batch of rides and drivers in, the plan out. Nothing is stored, and nobody is matched by it.

The solver is a child process of its own, started at the first request, so that the market's batches never wait for
it. What takes long with many items runs beside the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiohttp import web

from api.auth import Identity, Role
from api.codec import answer, query_choice, speaks_msgpack
from api.limits import Gauge, read_body
from api.markets import Markets
from api.match_items import Bounds, read_request
from api.match_matrix import Matrix, matrix_out, read_matrix
from api.match_points import Points, batch_of, points_out, read_points
from api.security import identity_of
from api.tags import Tags
from matcher.batch import Batch
from matcher.decision import GraphSolver, Solver, Travel, decide, decide_graph
from matcher.explicit import DecidedGraph
from matcher.plan import Decided

BODY_S_MAX = 10.0


class MatchSolver(Solver, GraphSolver, Protocol):
    """Solves problems and explicit graphs (see matcher.solver.SolverChild)."""


class MatchApi:
    def __init__(self, *, solver: MatchSolver, markets: Markets, tags: Tags, bounds: Bounds) -> None:
        self._solver = solver
        self._markets = markets
        self._tags = tags
        self._bounds = bounds
        self._places = Gauge(bounds.at_once, "requests for a plan under way (match_at_once)")

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/match", self.match)]

    async def match(self, request: web.Request) -> web.Response:
        identity = identity_of(request)
        identity.need(Role.CLIENT)
        with_duals = query_choice(request, "duals", ("true", "false")) == "true"
        is_msgpack = speaks_msgpack(request)
        with self._places.one():
            data = await read_body(request, bytes_max=self._bounds.body_bytes_max, timeout_s=BODY_S_MAX)
            asked = await asyncio.to_thread(self._read, data, identity, is_msgpack)
            if isinstance(asked, Matrix):
                found = await decide_graph(asked.graph, self._solver, self._bounds.solve_s_max)
                return await asyncio.to_thread(_matrix_answer, request, asked, found, with_duals)
            points, batch = asked
            decided = await decide(batch, self._solver, Travel())
            return await asyncio.to_thread(_points_answer, request, points, decided, with_duals)

    def _read(self, data: bytes, identity: Identity, is_msgpack: bool) -> Matrix | tuple[Points, Batch]:
        """Raises Problem 400 or 422."""
        asked = read_request(data, is_msgpack=is_msgpack)
        if asked.is_matrix:
            return read_matrix(asked, self._bounds, is_msgpack=is_msgpack)
        points = read_points(asked, self._markets, self._tags, self._bounds, is_msgpack=is_msgpack)
        return points, batch_of(points, self._tags, identity.client_id)


def _points_answer(request: web.Request, points: Points, decided: Decided, with_duals: bool) -> web.Response:
    return answer(request, points_out(decided, points.refusals.found, with_duals=with_duals))


def _matrix_answer(request: web.Request, matrix: Matrix, decided: DecidedGraph, with_duals: bool) -> web.Response:
    return answer(request, matrix_out(matrix, decided, matrix.refusals.found, with_duals=with_duals))
