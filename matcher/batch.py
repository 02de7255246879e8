"""One batch: from waiting rides and an index of drivers to a graph, and from its assignment to a plan.

Pure: the index is asked, never changed; the clock and the solver are the
dispatcher's. A graph lists only the nearest drivers of each ride. What lies
beyond a list is bounded from below by the index, so that the duals of an
assignment tell which rides need a longer list before the assignment is the
optimum over *all* drivers (P8): those whose dual exceeds the bound, and no
others, because driver duals are never positive. Without any longer list, the
excess of the duals over the bounds is a proven limit of what could be gained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from geo.index import Candidates, DriverIndex
from geo.model import DriverId, Where
from matcher.assignment import UNMATCHED, Assignment, CandidateGraph, Floats, Ints
from matcher.model import Ride, RideId, Slot, TripId
from matcher.outcomes import Pairing, Waiting
from matcher.policy import Market

#: Rides a search: what is asked of the index at a time, so that a loop may breathe in between.
SEARCH_RIDES_MAX = 256

#: Lists are completed at once where that makes them at most so many times as long, and so many pairs in all:
#: one larger solve is cheaper then than doubling time and again.
COMPLETE_FACTOR = 16
COMPLETE_PAIRS_MAX = 300_000


class Reason(StrEnum):
    """Why a ride of a batch got no driver (P12)."""

    NO_DRIVER_IN_REACH = "no_driver_in_reach"  # no eligible, idle driver within the market's limits
    ALL_REFUSED = "all_refused"  # there are, and each refused this ride before
    OUTBID = "outbid"  # there are, and others were worth more to them
    DRIVER_WENT_STALE = "driver_went_stale"  # the chosen driver fell silent while the batch was solved (P5)


@dataclass(frozen=True, slots=True)
class Demand:
    """The rides of a batch, ordered by id: position i below is `rides[i]`. `price_s[i]` leaves it unmatched."""

    market: Market
    rides: Sequence[Ride]
    price_s: Floats
    engaged: frozenset[DriverId]
    refused: Mapping[RideId, frozenset[DriverId]]


@dataclass(frozen=True, slots=True)
class Search:
    """A question to the index: the k nearest of each of these rides, which require the same."""

    rides: Ints
    where: Where
    k: int


@dataclass(frozen=True, slots=True)
class Found:
    """The answer: pairs without refused ones, and per ride of the search its counts and bound.

    `ride` holds positions in the demand, `driver` positions in `driver_ids`.
    """

    search: Search
    ride: Ints
    driver: Ints
    distance_m: Floats
    driver_ids: Sequence[DriverId]
    beyond_m: Floats
    refused: Ints


@dataclass(frozen=True, slots=True)
class Graph:
    """Candidates of a demand, ready for the solver; `distance_m` runs beside the pairs.

    Per ride: `beyond_s`, no driver outside its list costs less (inf: the list is
    complete); `listed` and `refused`, how many drivers were considered and how
    many of the searched had refused the ride; `k`, what was asked for.
    """

    demand: Demand
    founds: tuple[Found, ...]
    candidates: CandidateGraph
    driver_ids: Sequence[DriverId]
    distance_m: Floats
    beyond_s: Floats
    listed: Ints
    refused: Ints
    k: Ints


@dataclass(frozen=True, slots=True)
class _Choice:
    """The pair that a matched ride got, and how many of its candidates would have been cheaper for it."""

    cost_s: float
    distance_m: float
    cheaper: int


@dataclass(frozen=True, slots=True)
class Unmatched:
    ride_id: RideId
    reason: Reason
    candidates: int
    refused: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch decided. `gap_s` bounds how much better any plan over all drivers could be."""

    batch_id: str
    pairings: list[Pairing]
    unmatched: list[Unmatched]
    cost_s: float
    greedy_cost_s: float
    gap_s: float

    @property
    def certified(self) -> bool:
        return self.gap_s == 0.0


def demand_of(waiting: Waiting, market: Market) -> Demand:
    """What the snapshot asks for, at the snapshot's own time."""
    rides = sorted(waiting.rides, key=lambda ride: ride.ride_id)
    waited_ms = np.array([waiting.now_ms - ride.requested_at_ms for ride in rides], dtype=np.float64)
    price_s = market.unmatched_s(np.maximum(waited_ms, 0.0) / 1000.0)
    return Demand(market, rides, price_s, waiting.engaged, waiting.refused)


def searches(demand: Demand, k: Ints | None = None, only: Ints | None = None) -> Iterator[Search]:
    """Rides with the same requirement and length of list, a few hundred at a time.

    `k` is how many candidates each ride of the demand wants (default: the
    market's); those who refused a ride are asked for on top. `only` limits it to
    some rides.
    """
    positions = np.arange(len(demand.rides), dtype=np.int32) if only is None else only
    groups: dict[tuple[frozenset[str], int, int], list[int]] = {}
    for position in positions.tolist():
        ride = demand.rides[position]
        wanted = demand.market.candidates_per_ride if k is None else int(k[position])
        refused = len(demand.refused.get(ride.ride_id, ()))
        # Rounded up to a power of two: few groups, none much dearer than needed.
        extra = 1 << (refused - 1).bit_length() if refused else 0
        requirement = (demand.market.classes_for(ride.vehicle_class), ride.seats, wanted + extra)
        groups.setdefault(requirement, []).append(position)
    for (classes, seats, asked), members in groups.items():
        where = Where(vehicle_classes=classes, seats_min=seats, exclude=demand.engaged)
        for start in range(0, len(members), SEARCH_RIDES_MAX):
            yield Search(np.array(members[start : start + SEARCH_RIDES_MAX], dtype=np.int32), where, asked)


def look(demand: Demand, search: Search, index: DriverIndex, now_ms: int) -> Found:
    """Asks the index. `now_ms` is the feed's clock."""
    rides = [demand.rides[position] for position in search.rides.tolist()]
    lats = np.array([ride.pickup.lat for ride in rides])
    lons = np.array([ride.pickup.lon for ride in rides])
    limit_m = demand.market.reach_m
    near = index.candidates(lats, lons, search.k, limit_m=limit_m, where=search.where, now_ms=now_ms)
    keep, refused = _unrefused(demand, rides, near)
    return Found(
        search,
        search.rides[near.point[keep]],
        near.driver[keep],
        near.distance_m[keep],
        near.driver_ids,
        near.beyond_m,
        refused,
    )


def _unrefused(demand: Demand, rides: Sequence[Ride], near: Candidates) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Which pairs stay, and per ride how many go because that driver refused it."""
    keep = np.ones(near.point.shape, dtype=np.bool_)
    for position, ride in enumerate(rides):
        refusing = demand.refused.get(ride.ride_id)
        if refusing:
            for pair in np.flatnonzero(near.point == position).tolist():
                keep[pair] = near.driver_ids[near.driver[pair]] not in refusing
    refused = np.bincount(near.point[~keep], minlength=len(rides)).astype(np.int32)
    return keep, refused


def assemble(demand: Demand, founds: Iterable[Found]) -> Graph:
    """One graph of all answers; where a ride was searched for twice, the later answer counts."""
    founds = tuple(founds)
    n = len(demand.rides)
    latest = np.zeros(n, dtype=np.int32)
    beyond_m, refused, k = np.full(n, np.inf), np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)
    for number, found in enumerate(founds):
        rides = found.search.rides
        latest[rides] = number
        beyond_m[rides], refused[rides], k[rides] = found.beyond_m, found.refused, found.search.k
    driver_ids = sorted({driver_id for found in founds for driver_id in found.driver_ids})
    place = {driver_id: position for position, driver_id in enumerate(driver_ids)}
    parts = [_pairs_of(found, latest == number, place) for number, found in enumerate(founds)]
    ride, driver, distance_m = (
        np.concatenate(column) if parts else np.empty(0, dtype=kind)
        for column, kind in zip(
            zip(*parts, strict=True) if parts else ((), (), ()), (np.int32, np.int32, np.float64), strict=True
        )
    )
    order = np.lexsort((driver, ride))
    ride, driver, distance_m = ride[order], driver[order], distance_m[order]
    cost = demand.market.pickup_s(distance_m)
    return Graph(
        demand=demand,
        founds=founds,
        candidates=CandidateGraph(n, len(driver_ids), ride, driver, cost, demand.price_s),
        driver_ids=driver_ids,
        distance_m=distance_m,
        beyond_s=demand.market.pickup_s(beyond_m),
        listed=np.bincount(ride, minlength=n).astype(np.int32),
        refused=refused,
        k=k,
    )


def _pairs_of(found: Found, current: npt.NDArray[np.bool_], place: Mapping[DriverId, int]) -> tuple[Ints, Ints, Floats]:
    renumber = np.array([place[driver_id] for driver_id in found.driver_ids], dtype=np.int32)
    keep = current[found.ride]
    return found.ride[keep], renumber[found.driver[keep]], found.distance_m[keep]


def build(waiting: Waiting, index: DriverIndex, market: Market, now_ms: int) -> Graph:
    """The graph of a snapshot in one go; the dispatcher takes the same steps with pauses between them."""
    demand = demand_of(waiting, market)
    return assemble(demand, [look(demand, search, index, now_ms) for search in searches(demand)])


def unproven(graph: Graph, assignment: Assignment) -> Ints:
    """The rides that a driver outside their lists might still serve better."""
    return np.flatnonzero(assignment.u > graph.beyond_s).astype(np.int32)


def gap_s(graph: Graph, assignment: Assignment) -> float:
    """By how much a plan over all drivers could undercut this assignment at most; 0 proves it optimal.

    Lowering a ride's dual to the bound of what is not listed keeps the duals
    feasible for every driver there is, so what they then sum up to bounds every plan.
    """
    u = np.minimum(assignment.u, graph.beyond_s)
    bound = math.fsum(u) + math.fsum(assignment.v)
    return max(0.0, assignment.cost - bound)


def widening(graph: Graph, rides: Ints, idle: int) -> Iterator[Search]:
    """Searches for longer lists for these rides; `idle` is about how many drivers there are to list.

    Twice as long, or complete at once where that is cheaper than asking again and again.
    """
    longest = int(graph.k[rides].max(initial=0))
    complete = idle <= COMPLETE_FACTOR * longest and rides.size * idle <= COMPLETE_PAIRS_MAX
    return searches(graph.demand, k=np.maximum(graph.k * 2, idle if complete else 0), only=rides)


def plan(
    graph: Graph,
    assignment: Assignment,
    index: DriverIndex,
    now_ms: int,
    *,
    batch_id: str,
    new_trip_id: Callable[[], TripId],
) -> Plan:
    """What to commit, and why each of the others waits.

    The drivers' ages are judged once more at `now_ms`, the feed's clock now (P5).
    """
    gap = gap_s(graph, assignment)
    matched = np.flatnonzero(assignment.driver_of != UNMATCHED)
    chosen = [graph.driver_ids[driver] for driver in assignment.driver_of[matched].tolist()]
    fresh = dict(zip(matched.tolist(), index.fresh(chosen, now_ms), strict=True))
    common = {
        "batch_id": batch_id,
        "rides": len(graph.demand.rides),
        "batch_cost_s": round(assignment.cost, 3),
        "greedy_cost_s": round(assignment.greedy_cost, 3),
        "gap_s": round(gap, 3),
        "certified": gap == 0.0,
    }
    made = Plan(batch_id, [], [], assignment.cost, assignment.greedy_cost, gap)
    choices = _choices(graph.candidates, graph.distance_m, assignment.driver_of)
    for position in range(len(graph.demand.rides)):
        if fresh.get(position):
            driver_id = graph.driver_ids[assignment.driver_of[position]]
            decision = {**common, **_reasons(graph, position, choices[position])}
            decision["position_age_s"] = round((index.age_ms(driver_id, now_ms) or 0) / 1000.0, 3)
            made.pairings.append(_pairing(graph, position, choices[position], driver_id, decision, new_trip_id()))
        else:
            made.unmatched.append(_unmatched(graph, position, went_stale=position in fresh))
    return made


def _choices(candidates: CandidateGraph, distance_m: Floats, driver_of: Ints) -> dict[int, _Choice]:
    """Per matched ride its pair: cost, distance, and how many cheaper candidates were left to other rides."""
    pairs = np.flatnonzero(candidates.driver == driver_of[candidates.ride])
    rides = candidates.ride[pairs]
    paid = np.full(candidates.n_rides, -np.inf)
    paid[rides] = candidates.cost[pairs]
    is_cheaper = candidates.cost < paid[candidates.ride]
    cheaper = np.bincount(candidates.ride[is_cheaper], minlength=candidates.n_rides)[rides]
    columns = (candidates.cost[pairs].tolist(), distance_m[pairs].tolist(), cheaper.tolist())
    return {ride: _Choice(*choice) for ride, *choice in zip(rides.tolist(), *columns, strict=True)}


def _reasons(graph: Graph, position: int, choice: _Choice) -> dict[str, Any]:
    """The cost by terms, and what else there was."""
    return {
        "cost": {"pickup_s": round(choice.cost_s, 3)},
        "unmatched_s": round(float(graph.demand.price_s[position]), 3),
        "distance_m": round(choice.distance_m, 1),
        "candidates": int(graph.listed[position]),
        "cheaper": choice.cheaper,
        "refused": int(graph.refused[position]),
    }


def _pairing(
    graph: Graph, position: int, choice: _Choice, driver_id: DriverId, decision: Mapping[str, Any], trip_id: TripId
) -> Pairing:
    ride = graph.demand.rides[position]
    return Pairing(
        trip_id=trip_id,
        ride_id=ride.ride_id,
        ride_version=ride.version,
        driver_id=driver_id,
        slot=Slot.NOW,
        pickup_s=choice.cost_s,
        distance_m=choice.distance_m,
        abandon_after_ms=graph.demand.market.abandon_after_ms,
        decision=decision,
    )


def _unmatched(graph: Graph, position: int, *, went_stale: bool) -> Unmatched:
    listed, refused = int(graph.listed[position]), int(graph.refused[position])
    if went_stale:
        reason = Reason.DRIVER_WENT_STALE
    elif listed:
        reason = Reason.OUTBID
    else:
        reason = Reason.ALL_REFUSED if refused else Reason.NO_DRIVER_IN_REACH
    return Unmatched(graph.demand.rides[position].ride_id, reason, listed, refused)
