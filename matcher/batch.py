"""One batch: from waiting rides and an index of drivers to a problem, and from its solution to a plan.

Pure: the index is asked, never changed; the clock and the solver are the dispatcher's. The problem holds
every fresh and idle driver of the market, so that its optimum is the optimum over all of them (P8).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from geo.index import DriverIndex
from geo.model import DriverId
from geo.supply import Kind, Supply
from matcher.chains import chained
from matcher.model import Ride, RideId
from matcher.outcomes import Carrying, DriverHistory, Waiting
from matcher.policy import UNMATCHED_S_MAX, Market
from matcher.problem import Bools, Floats, Ints, Problem


@dataclass(frozen=True, slots=True)
class Demand:
    """The rides of a batch, ordered by id: position i below is `rides[i]`. `price_s[i]` leaves it unmatched."""

    market: Market
    now_ms: int
    rides: Sequence[Ride]
    price_s: Floats
    engaged: frozenset[DriverId]
    refused: Mapping[RideId, frozenset[DriverId]]


@dataclass(frozen=True, slots=True)
class Batch:
    """A problem and who is who in it.

    A driver's `remaining_s` until it is free and its `refusal_s`, less its bonus `idle_s`, make up its `driver_s`.
    Where `is_chained`, it has a trip to finish before, and stands where that will end.
    """

    demand: Demand
    supply: Supply
    problem: Problem
    idle_s: Floats
    refusal_s: Floats
    remaining_s: Floats
    is_chained: Bools


def demand_of(waiting: Waiting, market: Market) -> Demand:
    """What the snapshot asks for, at the snapshot's own time."""
    rides = sorted(waiting.rides, key=lambda ride: ride.ride_id)
    price_s = market.unmatched_s(_waited_s(rides, waiting.now_ms))
    price_s[[_is_guaranteed(ride, market, waiting.now_ms) for ride in rides]] = UNMATCHED_S_MAX
    return Demand(market, waiting.now_ms, rides, price_s, waiting.engaged, waiting.refused)


def _is_guaranteed(ride: Ride, market: Market, now_ms: int) -> bool:
    """Whether the time that was asked for is so near that the ride goes before all that named none."""
    return ride.pickup_at_ms is not None and now_ms >= ride.pickup_at_ms - market.guarantee_s * 1000.0


def _waited_s(rides: Sequence[Ride], now_ms: int) -> Floats:
    """How long each has waited, (rides,); 0 where it is dated after the snapshot."""
    waited_ms = now_ms - np.array([ride.queued_at_ms for ride in rides], dtype=np.float64)
    return np.maximum(waited_ms, 0.0) / 1000.0


def build(
    demand: Demand,
    index: DriverIndex,
    now_ms: int,
    *,
    histories: Mapping[DriverId, DriverHistory] | None = None,
    idle_since_ms: Mapping[DriverId, int] | None = None,
    tag_bits: Mapping[str, int] | None = None,
) -> Batch:
    """The problem of this demand with every idle driver of the index. `now_ms` is the feed's clock."""
    supply = index.supply(now_ms, demand.engaged)
    return build_with(demand, supply, histories=histories, idle_since_ms=idle_since_ms, tag_bits=tag_bits)


def build_with(
    demand: Demand,
    supply: Supply,
    *,
    histories: Mapping[DriverId, DriverHistory] | None = None,
    idle_since_ms: Mapping[DriverId, int] | None = None,
    tag_bits: Mapping[str, int] | None = None,
    carrying: Sequence[Carrying] = (),
) -> Batch:
    """The problem of this demand and these drivers. `idle_since_ms` is by the demand's clock.

    Those of the supply who are `carrying` a passenger may be given their next ride.

    A driver without a history counts as one who has neither refused nor waited.
    """
    market = demand.market
    ahead = chained(supply, carrying, market)
    supply = ahead.supply
    idle_s, refusal_s = np.zeros(len(supply.driver_ids)), np.zeros(len(supply.driver_ids))
    if market.idle_bonus and idle_since_ms:
        since = np.array([idle_since_ms.get(each, demand.now_ms) for each in supply.driver_ids], dtype=np.float64)
        idle_s = market.idle_s((demand.now_ms - since) / 1000.0)
    if market.refusal_s and histories:
        shares = [_refusal_share(histories.get(each)) for each in supply.driver_ids]
        refusal_s = market.refusal_risk_s(np.array(shares, dtype=np.float64))
    made = assemble(
        demand, supply, idle_s=idle_s, refusal_s=refusal_s, remaining_s=ahead.remaining_s, tag_bits=tag_bits
    )
    return replace(made, is_chained=ahead.is_chained)


def assemble(
    demand: Demand,
    supply: Supply,
    *,
    idle_s: Floats,
    refusal_s: Floats | None = None,
    remaining_s: Floats | None = None,
    tag_bits: Mapping[str, int] | None = None,
) -> Batch:
    """The problem of this demand and supply, wherever they come from; seconds a driver, (drivers,), on the grid."""
    market, nothing_s = demand.market, np.zeros(len(supply.driver_ids))
    refusal_s = nothing_s if refusal_s is None else refusal_s
    remaining_s = nothing_s if remaining_s is None else remaining_s
    kinds = _kinds(demand, supply, tag_bits or {})
    barred_ride, barred_driver = _barred(demand, supply)
    problem = Problem(
        ride_lat=np.array([ride.pickup.lat for ride in demand.rides], dtype=np.float64),
        ride_lon=np.array([ride.pickup.lon for ride in demand.rides], dtype=np.float64),
        price_s=demand.price_s,
        ride_kind=kinds.ride_kind,
        driver_lat=supply.lat,
        driver_lon=supply.lon,
        driver_s=remaining_s + refusal_s - idle_s,
        driver_kind=kinds.driver_kind,
        extra_s=kinds.extra_s,
        barred_ride=barred_ride,
        barred_driver=barred_driver,
        s_per_m=market.s_per_m,
        reach_m=kinds.reach_m,
        reach_s=kinds.reach_s,
        has_ways=market.has_ways,
    )
    return Batch(demand, supply, problem, idle_s, refusal_s, remaining_s, np.zeros(len(supply.driver_ids), np.bool_))


def _refusal_share(history: DriverHistory | None) -> float:
    """Laplace's rule of succession; who never refused, or is unknown, counts as no risk."""
    if history is None or not history.refused:
        return 0.0
    return (history.refused + 1.0) / (history.trips + 2.0)


class _Kinds(NamedTuple):
    """The prices of kinds for kinds, the limits of each kind of rides, and who is of which kind."""

    extra_s: Floats
    reach_m: Floats
    reach_s: Floats
    ride_kind: Ints
    driver_kind: Ints


#: What tells rides apart: class, seats, tags, and how many times the market's limits of a pickup hold.
_Want = tuple[str, int, tuple[str, ...], float]


def _kinds(demand: Demand, supply: Supply, tag_bits: Mapping[str, int]) -> _Kinds:
    """As few kinds as differ in any price or limit: a search looks at each.

    Kinds that no driver of the supply is of are left out, so that they do not tell rides apart either.
    """
    used, place = np.unique(supply.kind, return_inverse=True)
    kinds = [supply.kinds[number] for number in used.tolist()]
    wants: dict[_Want, int] = {}
    ride_want = np.array([wants.setdefault(want, len(wants)) for want in _wants(demand)], dtype=np.int32)
    table = np.array(
        [[want[-1], *(_extra_s(demand.market, want, kind, tag_bits) for kind in kinds)] for want in wants],
        dtype=np.float64,
    ).reshape(len(wants), 1 + len(kinds))
    rows, row_of = np.unique(table, axis=0, return_inverse=True) if len(wants) else (table, np.empty(0, np.int64))
    extra_s, driver_kind = rows[:, 1:], supply.kind
    if kinds:
        extra_s, column_of = np.unique(extra_s, axis=1, return_inverse=True)
        driver_kind = column_of.reshape(-1)[place].astype(np.int32)
    return _Kinds(
        np.ascontiguousarray(extra_s),
        demand.market.max_pickup_m * rows[:, 0],
        demand.market.max_pickup_s * rows[:, 0],
        row_of.reshape(-1)[ride_want].astype(np.int32),
        driver_kind,
    )


def _wants(demand: Demand) -> Iterator[_Want]:
    market, factors = demand.market, [1.0] * len(demand.rides)
    if market.pickup_growth:
        factors = market.pickup_factor(_waited_s(demand.rides, demand.now_ms)).tolist()
    for ride, factor in zip(demand.rides, factors, strict=True):
        yield ride.vehicle_class, ride.seats, ride.tags, factor


def _extra_s(market: Market, want: _Want, kind: Kind, tag_bits: Mapping[str, int]) -> float:
    """Infinite where a driver of this kind may not serve a ride that wants this."""
    vehicle_class, seats, tags, _ = want
    if kind.seats < seats or any(not kind.tags & tag_bits.get(tag, 0) for tag in tags):
        return float("inf")
    return market.extra_s(vehicle_class, kind.vehicle_class)


def _barred(demand: Demand, supply: Supply) -> tuple[Ints, Ints]:
    """Pairs of rides and the drivers that refused them."""
    if not demand.refused:
        return np.empty(0, np.int32), np.empty(0, np.int32)
    place = {driver_id: position for position, driver_id in enumerate(supply.driver_ids)}
    pairs = [
        (position, place[driver_id])
        for position, ride in enumerate(demand.rides)
        for driver_id in demand.refused.get(ride.ride_id, ())
        if driver_id in place
    ]
    columns = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    return columns[:, 0].copy(), columns[:, 1].copy()
