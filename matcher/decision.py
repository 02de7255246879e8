"""One batch decided: solved in the child within its limit of time, and by a plain greedy where that fails.

The problem, its solution and the plan are pure (matcher.batch, matcher.optimum, matcher.plan); this module
rules over who solves, who prices the ways, and for how long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from geo.distance import distance_m
from geo.legs import Legs, Times
from matcher import plain
from matcher.batch import Batch
from matcher.explicit import DecidedGraph, greedily
from matcher.graph import Assignment, CandidateGraph, canonical
from matcher.plan import NEAR, Decided
from matcher.problem import BadProblem, Floats, Ints, Problem, Solution
from matcher.solver import SolverFailed, WaysAsked

log = logging.getLogger(__name__)

STRAIGHT = "straight line"


class Solver(Protocol):
    async def solve(
        self,
        problem: Problem,
        limit_s: float,
        *,
        near: int = 0,
        compare: bool = False,
        ways: WaysAsked | None = None,
        ways_max: int = 0,
        roads: str | None = None,
    ) -> Solution:
        """The certified solution, or the best known within the limit. Raises SolverFailed."""


class GraphSolver(Protocol):
    async def assign(self, graph: CandidateGraph, limit_s: float) -> Assignment:
        """The certified assignment. Raises SolverFailed."""


class TravelTimes(Protocol):
    async def times(self, legs: Legs) -> Times:
        """Seconds of each leg; never raises for a provider that fails, but estimates and says so."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Travel:
    """Who prices a market's ways: nobody (straight lines), a file of road links, or a provider.

    `pairs_max` bounds what a provider is asked in one decision (P10).
    """

    name: str = STRAIGHT
    roads: str | None = None
    provider: TravelTimes | None = None
    pairs_max: int = 50_000


class _Asked:
    """Prices pairs by a provider, and notes for which of them a straight line had to stand in."""

    def __init__(self, batch: Batch, provider: TravelTimes, until_s: float) -> None:
        self._problem, self._provider, self._until_s = batch.problem, provider, until_s
        self._s_per_m = batch.demand.market.detour_factor / batch.demand.market.speed_mps
        self.estimated: set[tuple[int, int]] = set()
        self.because: str | None = None

    async def ways(self, ride: Ints, driver: Ints) -> Floats:
        problem = self._problem
        drivers, origin = np.unique(driver, return_inverse=True)
        rides, target = np.unique(ride, return_inverse=True)
        legs = Legs(
            problem.driver_lat[drivers],
            problem.driver_lon[drivers],
            problem.ride_lat[rides],
            problem.ride_lon[rides],
            origin.astype(np.int32),
            target.astype(np.int32),
        )
        try:
            async with asyncio.timeout_at(self._until_s):
                times = await self._provider.times(legs)
        except TimeoutError:
            times = self._straight(legs)
        if times.fallback is not None:
            self.because = times.fallback
            estimated = np.flatnonzero(times.estimated)
            self.estimated.update(zip(ride[estimated].tolist(), driver[estimated].tolist(), strict=True))
        return times.seconds

    def _straight(self, legs: Legs) -> Times:
        """The batch's time is over: straight lines, so that it ends."""
        metres = distance_m(
            legs.origin_lat[legs.origin],
            legs.origin_lon[legs.origin],
            legs.target_lat[legs.target],
            legs.target_lon[legs.target],
        )
        return Times(metres * self._s_per_m, np.ones(len(metres), np.bool_), "not answered within the batch's limit")


async def decide(batch: Batch, solver: Solver, travel: Travel) -> Decided:
    """The best plan within the market's `solve_s_max`; its gap tells how much better one could be.

    A solver that fails costs optimality, never the batch: drivers are then assigned greedily.
    """
    loop = asyncio.get_running_loop()
    began, market, problem = loop.time(), batch.demand.market, batch.problem
    asked = None if travel.provider is None else _Asked(batch, travel.provider, began + market.solve_s_max)
    try:
        solution = await solver.solve(
            problem,
            market.solve_s_max,
            near=NEAR,
            compare=True,
            ways=None if asked is None else asked.ways,
            ways_max=travel.pairs_max if asked else 0,
            roads=travel.roads,
        )
    except (SolverFailed, BadProblem) as failed:
        log.warning("market %s: greedy assignment, for %s", market.id, failed)
        solution = await asyncio.to_thread(_plainly, batch)
        return Decided(batch, solution, loop.time() - began)
    estimated, because = (frozenset(asked.estimated), asked.because) if asked else (frozenset(), None)
    return Decided(batch, solution, loop.time() - began, travel.name, estimated, because)


def _plainly(batch: Batch) -> Solution:
    market = batch.demand.market
    until_s = time.monotonic() + market.solve_s_max
    return plain.greedy(
        batch.problem, market.detour_factor / market.speed_mps, is_over=lambda: time.monotonic() >= until_s
    )


async def decide_graph(graph: CandidateGraph, solver: GraphSolver, limit_s: float) -> DecidedGraph:
    """The best plan for costs that were given, or a greedy one where that takes longer than `limit_s`.

    Raises BadGraph.
    """
    loop = asyncio.get_running_loop()
    began, graph, is_greedy = loop.time(), await asyncio.to_thread(canonical, graph), False
    try:
        assignment = await solver.assign(graph, limit_s)
    except SolverFailed as failed:
        log.warning("a graph of %d pairs: greedy assignment, for %s", len(graph.ride), failed)
        until_s, is_greedy = time.monotonic() + limit_s, True
        assignment = await asyncio.to_thread(greedily, graph, is_over=lambda: time.monotonic() >= until_s)
    return DecidedGraph(graph, assignment, loop.time() - began, is_greedy)
