"""One batch decided: searched with pauses, solved in the child, widened until proven or out of time.

The steps themselves are pure (matcher.batch, matcher.assignment); this module
rules over their order and over the limit of time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from geo.index import DriverIndex
from matcher.assignment import Assignment, CandidateGraph, greedy
from matcher.batch import Demand, Found, Graph, Search, assemble, look, searches, unproven, widening
from matcher.solver import SolverFailed

log = logging.getLogger(__name__)

#: A graph is not widened beyond this many pairs: assembling them would hold up the event loop.
PAIRS_MAX = 500_000
#: How much longer than in proportion to its pairs a solve may take.
SOLVE_MARGIN = 1.5


class Solver(Protocol):
    async def solve(self, graph: CandidateGraph, timeout_s: float) -> Assignment:
        """The optimal assignment of this graph. Raises SolverFailed."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The last graph and its assignment. `rounds` solves took `solve_s` in all; 0 rounds: greedy had to do."""

    graph: Graph
    assignment: Assignment
    rounds: int
    solve_s: float


async def decide(demand: Demand, index: DriverIndex, now_ms: Callable[[], int], solver: Solver) -> Decided:
    """The best plan within the market's `solve_s_max`; its gap tells how much better one could be.

    `now_ms` reads the feed's clock. A solver that fails costs optimality, never
    the batch: drivers are then assigned greedily.
    """
    loop = asyncio.get_running_loop()
    graph = assemble(demand, await _search(demand, searches(demand), index, now_ms))
    began = loop.time()
    deadline = began + demand.market.solve_s_max
    try:
        assignment = await solver.solve(graph.candidates, demand.market.solve_s_max)
    except SolverFailed as failed:
        log.warning("market %s: greedy assignment, for %s", demand.market.id, failed)
        assignment = await asyncio.to_thread(greedy, graph.candidates)
        return Decided(graph, assignment, 0, loop.time() - began)
    rounds, round_s = 1, loop.time() - began
    idle = max(0, len(index) - len(demand.engaged))
    while (rides := unproven(graph, assignment)).size:
        asked = tuple(widening(graph, rides, idle))
        growth = _growth(graph, asked, idle)
        # A solve takes about as much longer as there are more pairs: none is begun that cannot end in time.
        if loop.time() + SOLVE_MARGIN * growth * round_s > deadline or growth * graph.candidates.ride.size > PAIRS_MAX:
            break
        round_began = loop.time()
        wider = assemble(demand, (*graph.founds, *await _search(demand, asked, index, now_ms)))
        try:
            assignment = await solver.solve(wider.candidates, max(0.0, deadline - loop.time()))
        except SolverFailed as failed:
            log.warning("market %s: a plan that is not proven, for %s", demand.market.id, failed)
            break
        graph, rounds, round_s = wider, rounds + 1, loop.time() - round_began
    return Decided(graph, assignment, rounds, loop.time() - began)


def _growth(graph: Graph, asked: Iterable[Search], idle: int) -> float:
    """How many times as many pairs there will be, at most."""
    more = sum(int((min(search.k, idle) - graph.listed[search.rides]).clip(min=0).sum()) for search in asked)
    pairs = max(1, graph.candidates.ride.size)
    return (pairs + more) / pairs


async def _search(
    demand: Demand, asked: Iterable[Search], index: DriverIndex, now_ms: Callable[[], int]
) -> list[Found]:
    """A few hundred rides at a time, so that sockets are served in between. The index may move on meanwhile:
    each list is true of its own moment, and its bound with it."""
    founds = []
    for search in asked:
        founds.append(look(demand, search, index, now_ms()))
        await asyncio.sleep(0)
    return founds
