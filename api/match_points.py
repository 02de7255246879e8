"""A request for a plan as points: from its items to a batch of the matcher's, and from what was decided to the answer.

The market's policy prices the pairs by straight lines, whatever its own ways are. Rides and drivers are put in the
order of their ids, so that the same items in any order get the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from msgspec import UNSET, Raw

from api.codec import BodyDecoder
from api.errors import Problem, invalid
from api.markets import Markets, check_plausible
from api.match_items import Bounds, Refusals
from api.schema_explanations import OTHER_TEXT, TEXTS
from api.schema_match import (
    DualsOut,
    ItemErrorOut,
    LeftOut,
    MatchDriver,
    MatchLimits,
    MatchOut,
    MatchRequest,
    MatchRide,
    PairOut,
    PlanNumbersOut,
    PolicyOut,
    alternative_out,
)
from api.tags import Tags, known_tags
from geo.model import DriverId
from geo.supply import Kind, Supply
from matcher.batch import Batch, Demand, assemble
from matcher.model import ClientId, Ride, RideId, RideState
from matcher.plan import Decided, Explainer, batch_facts
from matcher.policy import Market
from matcher.problem import UNMATCHED, Floats, on_grid

_RIDE: Final = BodyDecoder(MatchRide)
_DRIVER: Final = BodyDecoder(MatchDriver)

Item = TypeVar("Item", MatchRide, MatchDriver)


@dataclass(frozen=True, slots=True)
class Points:
    """A request's sound items, by id, and the market whose policy prices them."""

    market: Market
    rides: list[MatchRide]
    drivers: list[MatchDriver]
    refusals: Refusals


def read_points(request: MatchRequest, markets: Markets, tags: Tags, bounds: Bounds, *, is_msgpack: bool) -> Points:
    """Raises Problem 422 where the whole request is wrong."""
    assert request.rides is not UNSET
    assert request.drivers is not UNSET
    bounds.check_rides(len(request.rides), "/rides")
    bounds.check_drivers(len(request.drivers), "/drivers")
    market = _market(markets.named(request.market, "/market"), request.limits or MatchLimits(), bounds.solve_s_max)
    refusals = Refusals()
    rides = _sound(
        request.rides, _RIDE, lambda ride: _check_ride(ride, market), "/rides", refusals, is_msgpack=is_msgpack
    )
    drivers = _sound(
        request.drivers,
        _DRIVER,
        lambda driver: _check_driver(driver, market, tags),
        "/drivers",
        refusals,
        is_msgpack=is_msgpack,
    )
    return Points(market, rides, drivers, refusals)


def _market(market: Market, limits: MatchLimits, solve_s_max: float) -> Market:
    """The market by straight lines, within the request's limits."""
    max_pickup_s = limits.max_pickup_s or market.max_pickup_s
    if market.unmatched_base_s is not None and max_pickup_s >= market.unmatched_base_s:
        least = f"the price of leaving a ride, which begins at {market.unmatched_base_s:g} s in this market"
        raise invalid("/limits/max_pickup_s", f"must be below {least}")
    max_pickup_m = limits.max_pickup_m or market.max_pickup_m
    return replace(
        market, has_ways=False, solve_s_max=solve_s_max, max_pickup_s=max_pickup_s, max_pickup_m=max_pickup_m
    )


def _sound(
    raws: Sequence[Raw],
    decoder: BodyDecoder[Item],
    check: Callable[[Item], None],
    pointer: str,
    refusals: Refusals,
    *,
    is_msgpack: bool,
) -> list[Item]:
    """The items that can be used, by id; of several with one id the first that can."""
    found: dict[str, Item] = {}
    for place, raw in enumerate(raws):
        try:
            item = decoder.decode(bytes(raw), is_msgpack=is_msgpack)
            check(item)
            if item.id in found:
                raise invalid("/id", "stands before in the request", code="duplicate-id")
        except Problem as problem:
            refusals.add(f"{pointer}/{place}", problem)
        else:
            found[item.id] = item
    return [found[name] for name in sorted(found)]


def _check_ride(ride: MatchRide, market: Market) -> None:
    """Raises Problem 422."""
    check_plausible(ride.pickup.to_model(), "/pickup")
    if ride.seats > market.seats_max:
        raise invalid("/seats", f"at most {market.seats_max} seats in this market")
    _check_class(ride.vehicle_class, market)
    known_tags(ride.tags, market.tags, "/tags")


def _check_driver(driver: MatchDriver, market: Market, tags: Tags) -> None:
    """Raises Problem 422."""
    check_plausible(driver.at.to_model(), "/at")
    _check_class(driver.vehicle_class, market)
    known_tags(driver.tags, tags.names, "/tags")


def _check_class(vehicle_class: str, market: Market) -> None:
    if vehicle_class not in market.classes:
        raise invalid("/class", f"this market has the classes {', '.join(market.classes)}")


# To a batch


def batch_of(points: Points, tags: Tags, client_id: ClientId) -> Batch:
    """The batch of these points. Its clock stands at 0: nothing of it is kept, and waits are said in seconds."""
    market, rides = points.market, points.rides
    prices = [market.unmatched_s(each.waited_s) if each.price_s is None else on_grid(each.price_s) for each in rides]
    demand = Demand(
        market=market,
        now_ms=0,
        rides=[_ride(each, market, client_id) for each in rides],
        price_s=np.array(prices, dtype=np.float64),
        engaged=frozenset(),
        refused={RideId(ride.id): frozenset(map(DriverId, ride.refused)) for ride in rides if ride.refused},
    )
    return assemble(
        demand,
        _supply(points.drivers, market, tags),
        idle_s=market.idle_s(_column([each.idle_s for each in points.drivers])),
        remaining_s=on_grid(_column([each.remaining_s for each in points.drivers])),
        tag_bits=tags.bits,
    )


def _column(values: list[float]) -> Floats:
    return np.array(values, dtype=np.float64)


def _ride(asked: MatchRide, market: Market, client_id: ClientId) -> Ride:
    return Ride(
        ride_id=RideId(asked.id),
        client_id=client_id,
        market=market.id,
        state=RideState.SEARCHING,
        version=1,
        pickup=asked.pickup.to_model(),
        dropoff=None,
        seats=asked.seats,
        vehicle_class=asked.vehicle_class,
        metadata={},
        requested_at_ms=-round(asked.waited_s * 1000.0),
        deadline_at_ms=market.deadline_default_ms,
        ended_at_ms=None,
        end_reason=None,
        trip=None,
        tags=tuple(sorted(set(asked.tags))),
    )


def _supply(drivers: list[MatchDriver], market: Market, tags: Tags) -> Supply:
    kinds: dict[Kind, int] = {}
    kind = [
        kinds.setdefault(
            Kind(each.vehicle_class, market.seats_max if each.seats is None else each.seats, tags.mask(each.tags)),
            len(kinds),
        )
        for each in drivers
    ]
    return Supply(
        driver_ids=[DriverId(each.id) for each in drivers],
        lat=_column([each.at.lat for each in drivers]),
        lon=_column([each.at.lon for each in drivers]),
        kind=np.array(kind, dtype=np.int32),
        kinds=list(kinds),
        stale_lat=np.empty(0),
        stale_lon=np.empty(0),
    )


# To the answer


def points_out(decided: Decided, errors: list[ItemErrorOut], *, with_duals: bool) -> MatchOut:
    market, explainer = decided.batch.demand.market, Explainer(decided)
    rides, plan, unmatched = decided.batch.demand.rides, [], []
    explainer.prepare(np.arange(len(rides), dtype=np.int32))
    for ride, driver in enumerate(decided.solution.driver_of.tolist()):
        if driver == UNMATCHED:
            unmatched.append(_left(explainer, ride))
        else:
            plan.append(_pair(explainer, rides[ride].ride_id, ride))
    return MatchOut(
        market=market.id,
        way=decided.way,
        policy=PolicyOut(market.s_per_m, market.max_pickup_s, market.max_pickup_m),
        plan=plan,
        unmatched=unmatched,
        errors=errors,
        batch=_numbers(decided, len(plan)),
        duals=_duals(decided) if with_duals else UNSET,
    )


def _pair(explainer: Explainer, ride_id: RideId, ride: int) -> PairOut:
    chosen, alternatives = explainer.matched(ride)
    return PairOut(
        ride_id=ride_id,
        driver_id=chosen["driver_id"],
        cost_s=chosen["cost_s"],
        terms=chosen["terms"],
        distance_m=chosen["distance_m"],
        unmatched_s=chosen["unmatched_s"],
        alternatives=[alternative_out(each) for each in alternatives],
    )


def _left(explainer: Explainer, ride: int) -> LeftOut:
    told = explainer.unmatched(ride)
    counts = {name: value for name, value in told.detail.items() if name != "stale_drivers_skipped"}  # nobody is stale
    return LeftOut(told.ride_id, str(told.reason), TEXTS.get(told.reason, OTHER_TEXT), counts)


def _numbers(decided: Decided, matched: int) -> PlanNumbersOut:
    facts, numbers = batch_facts(decided, ""), decided.solution.numbers
    del facts["id"]  # nothing is kept that it could name
    return PlanNumbersOut(
        **facts,
        matched=matched,
        pairs=decided.pairs,
        components=numbers.get("components", 0),
        rounds=decided.rounds,
        solve_s=round(decided.solve_s, 4),
    )


def _duals(decided: Decided) -> DualsOut | None:
    """To the last digit: whoever checks them adds them up. None where they prove nothing."""
    if not decided.solution.certified:
        return None
    rides, drivers = decided.batch.demand.rides, decided.batch.supply.driver_ids
    return DualsOut(
        rides=dict(zip((ride.ride_id for ride in rides), decided.solution.u.tolist(), strict=True)),
        drivers=dict(zip(drivers, (decided.solution.v + 0.0).tolist(), strict=True)),  # no -0.0
    )
