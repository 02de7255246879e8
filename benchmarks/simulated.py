"""One policy on one fleet: the run in virtual time, and what it came to.

How each figure is counted, over the rides of a run:
- served: matched before their patience was over (their drive may end after it); expired: the rest.
- pickup_*: from the request to the driver's arrival, of served rides, so that waiting for a window is paid for;
  drive_mean_s: its part from the match on.
- empty_km: great circles of all drives to pickups.
- idle_gini: Gini coefficient of the drivers' idle shares (idle time by the time since the driver appeared, up to
  the last request); 0: all drivers are idle alike.
- hindsight_pickup_mean_s: no plan that serves as many rides, or as many as `greedy` if those are more, has a lower
  mean (benchmarks.hindsight).
- gap_closed: the part of the way from greedy's mean pickup down to that bound that the policy has gone;
  gap_closed_nearest: the same from that of `nearest`. no_fewer_served: compared with greedy.
- solve_*, run_s: real time, of the solver and of the whole run.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.cities import Start, Wish
from benchmarks.hindsight import Hindsight
from benchmarks.policies import POLICIES, play
from benchmarks.virtual_city import MARKET, City, Floats, Outcome, RoadWays, Ways, World, lay_out
from geo.area import Circle
from geo.distance import distance_m
from geo.model import LatLng
from matcher.policy import Market

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What does not change between the policies: records, ways, patience, limits and the seed of the fleets."""

    wishes: Sequence[Wish]
    starts: Sequence[Start]
    ways: Ways
    speed_mps: float
    patience_s: float
    boarding_s: float
    max_pickup_s: float
    seed: int

    def city(self, fleet: int) -> City:
        """The city with so many of its drivers: the same seed's smaller fleets are parts of its larger ones."""
        shuffled = random.Random(f"{self.seed}/fleet").sample(self.starts, len(self.starts))
        return lay_out(self.wishes, shuffled[:fleet], self.ways, patience_s=self.patience_s, boarding_s=self.boarding_s)

    def market(self, city: City) -> Market:
        """Its straight lines take as long as the city's cars do: exactly, or on average where there are roads."""
        center = LatLng(float(city.pickup_lat.mean()), float(city.pickup_lon.mean()))
        whole = Market(
            MARKET,
            Circle(center, 100_000.0),
            window_s=0.0,
            speed_mps=self.speed_mps,
            detour_factor=1.0,
            max_pickup_s=self.max_pickup_s,
        )
        if not isinstance(self.ways, RoadWays):
            return whole
        return replace(
            whole,
            has_ways=True,
            speed_mps=_straight_mps(city, self.boarding_s) or self.speed_mps,
            top_speed_mps=self.ways.roads.top_speed_mps,
        )


def _straight_mps(city: City, boarding_s: float) -> float:
    """How fast the city's trips are as the crow flies, all of them together; 0 where they lead nowhere."""
    trips_m = distance_m(city.pickup_lat, city.pickup_lon, city.dropoff_lat, city.dropoff_lon)
    trips_s = city.service_ms / 1000.0 - boarding_s
    return float(trips_m.sum() / max(1.0, trips_s.sum()))


@dataclass(frozen=True, slots=True)
class Task:
    """A policy for a fleet, with changes of the market's prices beside the policy's own; `label` names the row."""

    fleet: int
    policy: str
    label: str
    market: tuple[tuple[str, Any], ...] = ()


def run(scenario: Scenario, task: Task) -> Row:
    """The row of this task, without what comes from comparing rows."""
    began = time.perf_counter()
    city, named = scenario.city(task.fleet), POLICIES[task.policy]
    market = replace(scenario.market(city), **{**named.market, **dict(task.market)})
    world = World(city)
    desk = named.desk(world, market)
    play(world, named.policy(market), desk)
    solve_s = desk.solve_s or [0.0]
    return {
        "fleet": city.n_drivers,
        "policy": task.label,
        **measured(city, world.outcome),
        "batches": desk.batches,
        "batches_uncertified": desk.uncertified,
        "solve_mean_ms": round(1000.0 * float(np.mean(solve_s)), 3),
        "solve_max_ms": round(1000.0 * max(solve_s), 3),
        "solve_total_s": round(sum(solve_s), 3),
        "run_s": round(time.perf_counter() - began, 1),
    }


def measured(city: City, outcome: Outcome) -> Row:
    """What an outcome came to; the same for the same outcome."""
    served = outcome.served
    pickup_s = (outcome.arrived_ms - city.requested_ms)[served] / 1000.0
    drive_s = (outcome.arrived_ms - outcome.matched_ms)[served] / 1000.0
    count = int(np.count_nonzero(served))
    return {
        "rides": city.n_rides,
        "served": count,
        "served_share": round(count / city.n_rides, 4),
        "expired": city.n_rides - count,
        "pickup_mean_s": _mean(pickup_s),
        "pickup_p50_s": round(float(np.percentile(pickup_s, 50)), 3) if count else None,
        "pickup_p95_s": round(float(np.percentile(pickup_s, 95)), 3) if count else None,
        "drive_mean_s": _mean(drive_s),
        "empty_km": round(float(outcome.drive_m[served].sum()) / 1000.0, 1),
        "idle_gini": round(gini(_idle_shares(city, outcome)), 4),
    }


def _mean(values: Floats) -> float | None:
    return round(float(values.mean()), 3) if len(values) else None


def _idle_shares(city: City, outcome: Outcome) -> Floats:
    end_ms = int(city.requested_ms.max(initial=0))
    engaged_ms = np.zeros(city.n_drivers)
    served = np.flatnonzero(outcome.served)
    spans_ms = np.minimum(outcome.done_ms[served], end_ms) - np.minimum(outcome.matched_ms[served], end_ms)
    np.add.at(engaged_ms, outcome.driver[served], spans_ms)
    present_ms = (end_ms - city.seen_ms).astype(np.float64)
    there = present_ms > 0.0
    return np.asarray(1.0 - engaged_ms[there] / present_ms[there])


def gini(shares: Floats) -> float:
    """The Gini coefficient of values that are not negative: 0 where all are equal, 1 where one has all."""
    if not len(shares) or not shares.sum() > 0.0:
        return 0.0
    ranks = np.arange(1, len(shares) + 1)
    return float((2.0 * ranks - len(shares) - 1.0) @ np.sort(shares) / (len(shares) * shares.sum()))


def look_back(scenario: Scenario, fleet: int, served: Sequence[int]) -> Row:
    """The bound's row for a fleet: the least mean pickup at each of these numbers of rides served, and what a
    driver of the same assignment comes to, who knew all beforehand."""
    began = time.perf_counter()
    city = scenario.city(fleet)
    hindsight = Hindsight(city, scenario.max_pickup_s)
    bounds_s = {count: round(hindsight.mean_pickup_s(count), 3) for count in sorted(set(served)) if count}
    driven = hindsight.drive_along()
    return {
        "fleet": city.n_drivers,
        "mean_pickup_s_at": bounds_s,
        "driven_served": driven.served,
        "driven_pickup_mean_s": round(driven.mean_pickup_s, 3),
        "run_s": round(time.perf_counter() - began, 1),
    }


def bounds_wanted(rows: Iterable[Row]) -> list[int]:
    """At how many rides served a fleet's rows want to be compared with the bound."""
    rows = list(rows)
    greedy = next((row["served"] for row in rows if row["policy"] == "greedy"), 0)
    return sorted({max(greedy, row["served"]) for row in rows})


def compared(rows: Sequence[Row], bounds_s: Mapping[int, float]) -> list[Row]:
    """A fleet's rows with what their comparison says, where greedy is among them and the bound is known."""
    by_name = {row["policy"]: row for row in rows}
    greedy, nearest = by_name.get("greedy"), by_name.get("nearest")
    told = []
    for row in rows:
        bound_s = bounds_s.get(max(row["served"], greedy["served"] if greedy else 0))
        told.append(
            {
                **row,
                "hindsight_pickup_mean_s": bound_s,
                "gap_closed": _closed(greedy, row, bound_s),
                "gap_closed_nearest": _closed(nearest, row, bound_s),
                "no_fewer_served": greedy is not None and row["served"] >= greedy["served"],
            }
        )
    return told


def _closed(base: Row | None, row: Row, bound_s: float | None) -> float | None:
    """None where nothing was left to close."""
    if base is None or bound_s is None or not base["served"] or not row["served"]:
        return None
    gap_s = base["pickup_mean_s"] - bound_s
    return round((base["pickup_mean_s"] - row["pickup_mean_s"]) / gap_s, 4) if gap_s > 0.0 else None
