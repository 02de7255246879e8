"""The whole way from positions and waiting rides to a plan, in small cities of every kind (P1, P5, P8, P12).

The oracle prices every pair from rides, fixes and the market alone; it knows nothing of problems or duals.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geo.distance import between_m
from geo.feed import pack
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng
from matcher import plain
from matcher.batch import Batch
from matcher.model import Ride
from matcher.outcomes import DriverHistory, Waiting
from matcher.plan import Decided, Plan, Reason
from matcher.policy import Market
from matcher.problem import Floats
from tests.batches import (
    NOW_MS,
    RESOLUTION,
    STALE_AFTER_MS,
    batch_of,
    decided_of,
    east,
    fix_at,
    history_of,
    index_of,
    market_with,
    pairs_of,
    plan_of,
    reasons_of,
    ride_at,
    waiting_of,
)
from tests.certificate import STEP_S, cost_matrix, dense_optimum_s, prove

CLASSES = ("standard", "xl", "lux")
TAG_BITS = {"pet": 1, "ramp": 4}
#: Few spots, so that ties are the rule; the last one is beyond everybody's reach.
SPOTS = (east(0), east(0), east(400), east(0, 900), east(-1500, 200), east(3000), east(0, 26_000))


@dataclass(frozen=True)
class City:
    market: Market
    waiting: Waiting
    fixes: list[Fix]
    known: dict[str, Any]

    def index(self) -> DriverIndex:
        return index_of(self.fixes)

    def batch(self, index: DriverIndex) -> Batch:
        return batch_of(self.waiting, index, self.market, **self.known)

    def shuffled(self, random: Random) -> City:
        rides, fixes = list(self.waiting.rides), list(self.fixes)
        random.shuffle(rides)
        random.shuffle(fixes)
        return dataclasses.replace(self, waiting=dataclasses.replace(self.waiting, rides=rides), fixes=fixes)


MARKETS = st.builds(
    market_with,
    classes=st.just(CLASSES),
    downgrade_s=st.sampled_from(
        [{}, {"xl": {"standard": 60.0}}, {"xl": {"standard": 0.0}, "lux": {"standard": 9000.0, "xl": 30.0}}]
    ),
    idle_bonus=st.sampled_from([0.0, 0.5]),
    refusal_s=st.sampled_from([0.0, 100.0]),
    max_pickup_m=st.sampled_from([500.0, 5000.0, 15_000.0]),
    max_pickup_s=st.sampled_from([120.0, 1800.0]),
    pickup_growth=st.sampled_from([0.0, 0.0, 1.0, 4.0]),
    pickup_s_most=st.sampled_from([None, 200.0, 480.0]),
    unmatched_growth=st.sampled_from([0.0, 1.0]),
)
PLACES = st.sampled_from(SPOTS) | st.builds(east, st.floats(-4000.0, 4000.0), st.floats(-4000.0, 4000.0))


Fields = st.SearchStrategy[dict[str, Any]]


@st.composite
def ride_lists(draw: st.DrawFn) -> list[Ride]:
    wish: Fields = st.fixed_dictionaries(
        {
            "waited_s": st.sampled_from([0.0, 30.0, 600.0]),
            "seats": st.sampled_from([1, 1, 4, 6]),
            "kind": st.sampled_from([*CLASSES[:1], *CLASSES]),
            "tags": st.sampled_from([(), (), ("pet",), ("pet", "ramp"), ("boat",)]),
        }
    )
    wishes = draw(st.lists(st.tuples(PLACES, wish), max_size=14))
    return [ride_at(f"r{number * 37 % 101:03}", place, **fields) for number, (place, fields) in enumerate(wishes)]


@st.composite
def fix_lists(draw: st.DrawFn) -> list[Fix]:
    offer: Fields = st.fixed_dictionaries(
        {
            "kind": st.sampled_from([*CLASSES[:1], *CLASSES]),
            "seats": st.sampled_from([2, 4, 6]),
            "tags": st.sampled_from([0, 1, 5]),
            "age_ms": st.sampled_from([0, 20_000, STALE_AFTER_MS, STALE_AFTER_MS + 1]),
            "available": st.sampled_from([True, True, True, False]),
        }
    )
    offers = draw(st.lists(st.tuples(PLACES, offer), max_size=14))
    return [fix_at(f"d{number * 37 % 101:03}", place, **fields) for number, (place, fields) in enumerate(offers)]


@st.composite
def cities(draw: st.DrawFn) -> City:
    rides, fixes = draw(ride_lists()), draw(fix_lists())
    drivers = [fix.driver_id for fix in fixes]
    some = st.sets(st.sampled_from([*drivers, DriverId("elsewhere")]), max_size=4)
    picky = draw(st.sets(st.sampled_from([ride.ride_id for ride in rides]))) if rides else set()
    refused: dict[str, set[DriverId]] = {ride_id: draw(some) for ride_id in sorted(picky)}
    histories = {
        name: history_of(name, trips=trips, refused=refusals)
        for name in sorted(draw(some))
        for trips, refusals in [draw(st.sampled_from([(0, 0), (4, 2), (3, 3)]))]
    }
    since = {name: NOW_MS - draw(st.sampled_from([0, 10_000, 4_000_000])) for name in sorted(draw(some))}
    waiting = waiting_of(rides, engaged=draw(some), refused=refused)
    known = {"histories": histories, "idle_since_ms": since, "tag_bits": TAG_BITS}
    return City(draw(MARKETS), waiting, fixes, known)


class Oracle:
    """Prices every pair of a city from what rides want, drivers offer and the market says, as of `now_ms`."""

    def __init__(self, city: City, now_ms: int = NOW_MS) -> None:
        self._city, self._now_ms = city, now_ms
        self.rides = sorted(city.waiting.rides, key=lambda ride: ride.ride_id)
        self.fixes = sorted(city.fixes, key=lambda fix: fix.driver_id)
        self.price_s = [city.market.unmatched_s((NOW_MS - ride.requested_at_ms) / 1000.0) for ride in self.rides]

    def is_there(self, fix: Fix) -> bool:
        return fix.available and self.is_fresh(fix) and fix.driver_id not in self._city.waiting.engaged

    def is_fresh(self, fix: Fix) -> bool:
        return fix.age_ms + (self._now_ms - NOW_MS) <= STALE_AFTER_MS

    def has_refused(self, ride: Ride, fix: Fix) -> bool:
        return fix.driver_id in self._city.waiting.refused.get(ride.ride_id, ())

    def cost_s(self, ride: Ride, fix: Fix) -> float:
        """Infinite where the driver may not serve the ride; a refusal left aside."""
        market = self._city.market
        metres = between_m(ride.pickup, LatLng(fix.lat, fix.lon))
        way_s = market.pickup_s(metres)
        limit_s = self.limit_s(ride)
        limit_m = market.max_pickup_m * limit_s / market.max_pickup_s
        offers = fix.seats >= ride.seats and all(fix.tags & TAG_BITS.get(tag, 0) for tag in ride.tags)
        if not offers or metres > limit_m or way_s > limit_s:
            return math.inf
        history: DriverHistory | None = self._city.known["histories"].get(fix.driver_id)
        since_ms = self._city.known["idle_since_ms"].get(fix.driver_id, NOW_MS)
        share = 0.0 if history is None or not history.refused else (history.refused + 1) / (history.trips + 2)
        extra_s = market.extra_s(ride.vehicle_class, fix.vehicle_class)
        idle_s = market.idle_s((NOW_MS - since_ms) / 1000.0)
        return float(way_s + extra_s + market.refusal_risk_s(share) - idle_s)

    def limit_s(self, ride: Ride) -> float:
        """The longest pickup of a ride that has waited as long as this one, stepped up from the shortest."""
        market, waited_s = self._city.market, (NOW_MS - ride.requested_at_ms) / 1000.0
        limit_s, step_s = market.max_pickup_s, market.max_pickup_s / 8.0
        most_s = min(market.pickup_s_most or 2.0 * limit_s, 4.0 * limit_s)
        while limit_s + step_s <= min(most_s, market.max_pickup_s + market.pickup_growth * waited_s):
            limit_s += step_s
        return limit_s

    def matrix(self) -> Floats:
        """Of the rides by all drivers that are there, both by id; infinite where a pair is not allowed."""
        there = [fix for fix in self.fixes if self.is_there(fix)]
        rows = [
            [math.inf if self.has_refused(ride, fix) else self.cost_s(ride, fix) for fix in there]
            for ride in self.rides
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(there))

    def reason(self, ride: Ride) -> Reason:
        """Why a ride got nobody, whose driver did not fall silent."""
        there = [fix for fix in self.fixes if self.is_there(fix) and math.isfinite(self.cost_s(ride, fix))]
        open_s = [self.cost_s(ride, fix) for fix in there if not self.has_refused(ride, fix)]
        if open_s:
            return Reason.OUTBID if min(open_s) < self.price_s[self.rides.index(ride)] else Reason.PRICE_ABOVE_LIMIT
        return Reason.ALL_REFUSED if there else Reason.NO_DRIVER_IN_REACH


CITIES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@CITIES
@given(cities())
def test_a_batch_is_the_proven_optimum_of_what_the_city_says(city: City) -> None:
    """P8"""
    batch, oracle = city.batch(city.index()), Oracle(city)
    solution = decided_of(batch).solution
    prove(batch.problem, solution)
    assert batch.problem.price_s.tolist() == oracle.price_s
    expected, found = oracle.matrix(), cost_matrix(batch.problem)
    assert found.shape == expected.shape
    assert np.isfinite(found).tolist() == np.isfinite(expected).tolist()
    np.testing.assert_allclose(found, expected, atol=STEP_S)
    allowed_s = STEP_S * (len(oracle.rides) + 1)
    assert abs(solution.cost_s - dense_optimum_s(expected, np.array(oracle.price_s))) <= allowed_s


def check_plan(city: City, made: Plan, now_ms: int) -> None:
    fixes = {fix.driver_id: fix for fix in city.fixes}
    rides = {ride.ride_id: ride for ride in city.waiting.rides}
    later = Oracle(city, now_ms)
    named = [*(each.ride_id for each in made.pairings), *(each.ride_id for each in made.unmatched)]
    assert sorted(named) == sorted(rides)
    drivers = [each.driver_id for each in made.pairings]
    assert len(set(drivers)) == len(drivers)
    for pairing in made.pairings:
        ride, fix = rides[pairing.ride_id], fixes[pairing.driver_id]
        assert later.is_there(fix)
        assert not later.has_refused(ride, fix)
        assert math.isfinite(cost_s := later.cost_s(ride, fix))
        chosen = pairing.decision["chosen"]
        assert abs(chosen["cost_s"] - cost_s) <= 0.002
        assert abs(sum(chosen["terms"].values()) - chosen["cost_s"]) <= 0.004
        assert abs(chosen["position_age_s"] - (fix.age_ms + now_ms - NOW_MS) / 1000.0) < 0.001
        for other in pairing.decision["alternatives"]:
            rival = fixes[other["driver_id"]]
            assert Oracle(city).is_there(rival)
            assert not later.has_refused(ride, rival)
            assert abs(other["more_s"] - (later.cost_s(ride, rival) - cost_s)) <= 0.003
        assert json.loads(json.dumps(pairing.decision, allow_nan=False)) == pairing.decision


@CITIES
@given(cities(), st.sampled_from([0, 0, 10_000, 15_000, STALE_AFTER_MS + 1]))
def test_a_plan_pairs_nobody_whom_it_may_not(city: City, later_ms: int) -> None:
    """P1, P5: no driver twice, none that refused, is engaged, on a break, stale by then, or does not fit."""
    index = city.index()
    decided = decided_of(city.batch(index))
    made = plan_of(decided, index, NOW_MS + later_ms)
    check_plan(city, made, NOW_MS + later_ms)
    chosen, oracle = pairs_of(plan_of(decided, index)), Oracle(city)
    rides = {ride.ride_id: ride for ride in oracle.rides}
    for each in made.unmatched:
        went_stale = each.ride_id in chosen
        assert each.reason == (Reason.DRIVER_WENT_STALE if went_stale else oracle.reason(rides[each.ride_id]))
        json.dumps(each.detail, allow_nan=False)


@CITIES
@given(cities(), st.randoms(use_true_random=False))
def test_the_same_city_in_any_order_gets_the_same_plan_to_the_last_word(city: City, random: Random) -> None:
    again = city.shuffled(random)
    plans = [plan_of(decided_of(each.batch(index)), index) for each in (city, again) for index in [each.index()]]
    assert plans[0] == plans[1]


@CITIES
@given(cities(), fix_lists(), st.randoms(use_true_random=False))
def test_what_the_index_went_through_before_does_not_change_the_plan(
    city: City, others: list[Fix], random: Random
) -> None:
    """P6: only the newest position of a driver counts, and drivers on a break are as good as gone."""
    index = city.index()
    expected = plan_of(decided_of(city.batch(index)), index)
    lived = DriverIndex(resolution=RESOLUTION, stale_after_ms=STALE_AFTER_MS, capacity=1)
    older = [dataclasses.replace(fix, seq=0) for fix in others]
    breaks = [dataclasses.replace(fix, driver_id=DriverId("x" + fix.driver_id), available=False) for fix in others]
    for fixes in (older, breaks, city.fixes):
        lived.apply(pack(random.sample(fixes, len(fixes)), RESOLUTION, NOW_MS))
    present = {fix.driver_id for fix in city.fixes}
    gone = [dataclasses.replace(fix, seq=1, available=False) for fix in older if fix.driver_id not in present]
    lived.apply(pack(gone, RESOLUTION, NOW_MS))
    assert plan_of(decided_of(city.batch(lived)), lived).pairings == expected.pairings
    assert reasons_of(plan_of(decided_of(city.batch(lived)), lived)) == reasons_of(expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cities(), st.sampled_from([0, 15_000]))
def test_a_plan_by_the_plain_greedy_keeps_the_same_rules(city: City, later_ms: int) -> None:
    index = city.index()
    batch = city.batch(index)
    solution = plain.greedy(batch.problem, batch.problem.s_per_m, is_over=lambda: False)
    best_s = decided_of(batch).solution.cost_s
    assert solution.bound_s <= best_s + STEP_S * (len(city.waiting.rides) + 1)
    check_plan(city, plan_of(Decided(batch, solution), index, NOW_MS + later_ms), NOW_MS + later_ms)
