"""From waiting rides and an index of drivers to a problem, on a real index (P5, P8)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np
import pytest

from geo.distance import between_m
from geo.feed import pack
from geo.model import DriverId, LatLng
from matcher.batch import Batch, demand_of
from matcher.model import RideId
from matcher.policy import Market
from matcher.problem import check
from tests.batches import (
    CENTRE,
    NOW_MS,
    RESOLUTION,
    STALE_AFTER_MS,
    batch_of,
    decided_of,
    east,
    fix_at,
    history_of,
    index_of,
    made_of,
    market_with,
    pairs_of,
    ride_at,
    waiting_of,
)
from tests.certificate import cost_matrix

WIDE = {"classes": ("standard", "xl"), "downgrade_s": {"xl": {"standard": 120.0}}}


def costs_of(batch: Batch) -> dict[tuple[str, str], float]:
    """What each allowed pair costs, by ids."""
    cost_s = cost_matrix(batch.problem)
    return {
        (batch.demand.rides[ride].ride_id, batch.supply.driver_ids[driver]): float(cost_s[ride, driver])
        for ride, driver in np.argwhere(np.isfinite(cost_s)).tolist()
    }


def served_by(batch: Batch, ride: str = "r") -> set[str]:
    return {driver for each, driver in costs_of(batch) if each == ride}


def extra_of(batch: Batch, driver: str) -> float:
    """The part of a pair's cost that is the driver's alone."""
    return float(batch.problem.driver_s[batch.supply.driver_ids.index(DriverId(driver))])


class TestDemand:
    def test_rides_are_ordered_by_id_whatever_the_order_of_the_snapshot(self) -> None:
        waiting = waiting_of([ride_at("b", east(0)), ride_at("c", east(1)), ride_at("a", east(2))])
        assert [ride.ride_id for ride in demand_of(waiting, market_with()).rides] == ["a", "b", "c"]

    def test_the_price_of_leaving_a_ride_grows_from_its_request_to_the_snapshot(self) -> None:
        market = market_with(unmatched_base_s=2000.0, unmatched_growth=2.0)
        waiting = waiting_of([ride_at("new", east(0)), ride_at("old", east(0), waited_s=90.0)])
        later = dataclasses.replace(waiting, now_ms=NOW_MS + 10_000)
        assert demand_of(waiting, market).price_s.tolist() == [2000.0, 2180.0]
        assert demand_of(later, market).price_s.tolist() == [2020.0, 2200.0]

    def test_a_ride_dated_after_the_snapshot_counts_as_new(self) -> None:
        market = market_with(unmatched_base_s=2000.0)
        assert demand_of(waiting_of([ride_at("r", east(0), waited_s=-5.0)]), market).price_s.tolist() == [2000.0]

    def test_who_is_engaged_and_who_refused_is_taken_over(self) -> None:
        waiting = waiting_of([ride_at("r", east(0))], engaged=["a"], refused={"r": ["b"]})
        demand = demand_of(waiting, market_with())
        assert (demand.engaged, demand.refused) == (waiting.engaged, waiting.refused)


class TestColumns:
    def test_the_problem_says_where_everybody_is(self) -> None:
        rides = [ride_at("r2", east(500)), ride_at("r1", east(0, 700))]
        batch = batch_of(waiting_of(rides), index_of([fix_at("b", east(-100)), fix_at("a", east(900))]))
        check(batch.problem)
        places = [LatLng(*each) for each in zip(batch.problem.ride_lat, batch.problem.ride_lon, strict=True)]
        assert places == [east(0, 700), east(500)]
        assert batch.supply.driver_ids == ["a", "b"]
        places = [LatLng(*each) for each in zip(batch.problem.driver_lat, batch.problem.driver_lon, strict=True)]
        assert places == [east(900), east(-100)]

    def test_a_pair_costs_its_way_at_the_markets_pace(self) -> None:
        market = market_with(speed_mps=10.0, detour_factor=1.5)
        batch = batch_of(waiting_of([ride_at("r", east(0))]), index_of([fix_at("a", east(700))]), market)
        assert costs_of(batch)["r", "a"] == pytest.approx(between_m(east(0), east(700)) * 0.15, abs=0.001)

    def test_road_times_are_preselected_by_the_top_speed(self) -> None:
        market = market_with(has_ways=True, top_speed_mps=40.0)
        problem = batch_of(waiting_of([ride_at("r", east(0))]), index_of([]), market).problem
        assert (problem.has_ways, problem.s_per_m) == (True, 1 / 40.0)

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"max_pickup_m": 1999.0}, set()),
            ({"max_pickup_m": 2001.0}, {"a"}),
            ({"speed_mps": 10.0, "detour_factor": 1.0, "max_pickup_s": 199.0}, set()),
            ({"speed_mps": 10.0, "detour_factor": 1.0, "max_pickup_s": 201.0}, {"a"}),
        ],
    )
    def test_both_limits_of_a_pickup_hold(self, fields: dict[str, float], expected: set[str]) -> None:
        index = index_of([fix_at("a", east(2000))])
        assert served_by(batch_of(waiting_of([ride_at("r", east(0))]), index, market_with(**fields))) == expected

    @pytest.mark.parametrize("rides", [0, 1])
    @pytest.mark.parametrize("drivers", [0, 1])
    def test_nobody_on_either_side_is_no_special_case(self, rides: int, drivers: int) -> None:
        waiting = waiting_of([ride_at("r", east(0))][:rides])
        batch = batch_of(waiting, index_of([fix_at("a", east(0))][:drivers]))
        check(batch.problem)
        solution = decided_of(batch).solution
        assert (len(solution.driver_of), len(solution.v), solution.certified) == (rides, drivers, True)


class TestWhoMayServe:
    def test_a_ride_is_served_by_its_class_and_enough_seats(self) -> None:
        rides = [ride_at("van", east(0), kind="van"), ride_at("six", east(0), seats=6), ride_at("one", east(0))]
        index = index_of(
            [
                fix_at("small", east(20)),
                fix_at("van", east(30), kind="van"),
                fix_at("large", east(4000), seats=6),
            ]
        )
        batch = batch_of(waiting_of(rides), index, market_with(classes=("standard", "van")))
        assert (served_by(batch, "van"), served_by(batch, "six")) == ({"van"}, {"large"})
        assert served_by(batch, "one") == {"small", "large"}

    def test_a_better_class_serves_a_lesser_ride_at_its_price_and_never_the_other_way(self) -> None:
        rides = [ride_at("big", east(0), kind="xl"), ride_at("small", east(0))]
        index = index_of([fix_at("car", east(0)), fix_at("van", east(0), kind="xl")])
        costs = costs_of(batch_of(waiting_of(rides), index, market_with(**WIDE)))
        assert costs == {("big", "van"): 0.0, ("small", "car"): 0.0, ("small", "van"): 120.0}

    @pytest.mark.parametrize(
        ("asked", "expected"),
        [
            ((), {"none", "ramp", "both"}),
            (("ramp",), {"ramp", "both"}),
            (("seat", "ramp"), {"both"}),
            (("boat",), set()),
            (("ramp", "boat"), set()),
        ],
    )
    def test_a_vehicle_has_to_offer_every_tag_that_is_asked_for(
        self, asked: tuple[str, ...], expected: set[str]
    ) -> None:
        index = index_of([fix_at("none", east(0)), fix_at("ramp", east(0), tags=1), fix_at("both", east(0), tags=3)])
        waiting = waiting_of([ride_at("r", east(0), tags=asked)])
        assert served_by(batch_of(waiting, index, tag_bits={"ramp": 1, "seat": 2})) == expected

    def test_who_refused_a_ride_is_barred_from_it_alone(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(0))]
        index = index_of([fix_at(name, east(10.0 * place)) for place, name in enumerate("abc")])
        refused = {"r1": ["b", "gone"], "elsewhere": ["a"]}
        batch = batch_of(waiting_of(rides, refused=refused), index)
        assert (served_by(batch, "r1"), served_by(batch, "r2")) == ({"a", "c"}, {"a", "b", "c"})

    def test_refused_drivers_do_not_shorten_what_is_looked_at(self) -> None:
        index = index_of([fix_at(f"d{number}", east(10.0 * number)) for number in range(1, 9)])
        waiting = waiting_of([ride_at("r", east(0))], refused={"r": ["d1", "d2", "d3"]})
        assert pairs_of(made_of(waiting, index)) == {"r": "d4"}

    def test_the_engaged_and_those_on_a_break_are_no_candidates(self) -> None:
        index = index_of([fix_at("a", east(0)), fix_at("b", east(0), available=False), fix_at("c", east(0))])
        batch = batch_of(waiting_of([ride_at("r", east(0))], engaged=["a", "elsewhere"]), index)
        assert batch.supply.driver_ids == ["c"]

    def test_a_stale_driver_is_no_candidate_and_counted_where_it_would_have_been(self) -> None:
        """P5"""
        index = index_of(
            [
                fix_at("fresh", east(0), age_ms=STALE_AFTER_MS),
                fix_at("stale", east(100), age_ms=STALE_AFTER_MS + 1),
                fix_at("far", east(9000), age_ms=STALE_AFTER_MS + 1),
                fix_at("break", east(0), age_ms=STALE_AFTER_MS + 1, available=False),
                fix_at("busy", east(0), age_ms=STALE_AFTER_MS + 1),
            ]
        )
        supply = batch_of(waiting_of([ride_at("r", east(0))], engaged=["busy"]), index).supply
        assert supply.driver_ids == ["fresh"]
        counts = [supply.stale_within(CENTRE.lat, CENTRE.lon, reach_m) for reach_m in (99.0, 101.0, 20_000.0)]
        assert counts == [0, 1, 2]


class TestKinds:
    def test_only_what_differs_in_a_price_is_a_kind_of_its_own(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(0), seats=2), ride_at("r3", east(0), seats=6)]
        index = index_of([fix_at("a", east(0)), fix_at("b", east(0), seats=5, tags=7), fix_at("c", east(0), seats=6)])
        problem = batch_of(waiting_of(rides), index).problem
        assert problem.extra_s.shape == (2, 2)
        assert (problem.ride_kind.tolist(), problem.driver_kind.tolist()) == ([0, 0, 1], [1, 1, 0])

    def test_kinds_that_nobody_is_of_change_nothing(self) -> None:
        """The same rides and drivers are the same problem, whoever else is known, on a break or long silent."""
        rides = [ride_at(f"r{number}", east(0), seats=1 + number % 4) for number in range(8)]
        fixes = [fix_at(f"d{number}", east(0), kind="xl" if number % 2 else "standard") for number in range(8)]
        others = [
            fix_at(f"x{seats}{kind}", east(0), kind=kind, seats=seats, available=seats > 2, age_ms=age_ms)
            for seats, age_ms in ((1, 0), (2, 0), (3, STALE_AFTER_MS + 1))
            for kind in ("xl", "standard", "van")
        ]
        plain, crowded = (
            batch_of(waiting_of(rides), index_of(each), market_with(**WIDE)).problem
            for each in (fixes, [*others, *fixes])
        )
        for name in ("extra_s", "ride_kind", "driver_kind"):
            assert getattr(plain, name).tolist() == getattr(crowded, name).tolist()
        assert plain.extra_s.tolist() == [[0.0, 120.0]]

    def test_every_pair_of_kinds_has_the_price_that_the_market_says(self) -> None:
        market = market_with(
            classes=("standard", "xl", "lux"),
            downgrade_s={"xl": {"standard": 100.0}, "lux": {"standard": 250.0, "xl": 100.0}},
        )
        wants = [(kind, seats, tags) for kind in market.classes for seats in (1, 5) for tags in ((), ("pet",))]
        offers = [(kind, seats, tags) for kind in market.classes for seats in (4, 6) for tags in (0, 4)]
        rides = [
            ride_at(f"r{number:02}", east(0), kind=kind, seats=seats, tags=tags)
            for number, (kind, seats, tags) in enumerate(wants)
        ]
        fixes = [
            fix_at(f"d{number:02}", east(0), kind=kind, seats=seats, tags=tags)
            for number, (kind, seats, tags) in enumerate(offers)
        ]
        costs = costs_of(batch_of(waiting_of(rides), index_of(fixes), market, tag_bits={"pet": 4}))
        expected = {
            (ride.ride_id, fix.driver_id): extra_s
            for ride in rides
            for fix in fixes
            if math.isfinite(extra_s := market.extra_s(ride.vehicle_class, fix.vehicle_class))
            and fix.seats >= ride.seats
            and (not ride.tags or fix.tags & 4)
        }
        assert costs == expected


class TestGrowingLimits:
    MARKET: ClassVar[dict[str, float]] = {
        "speed_mps": 10.0,
        "detour_factor": 1.0,
        "max_pickup_s": 160.0,
        "max_pickup_m": 1600.0,
        "pickup_growth": 2.0,
    }

    def made(self, waited_s: float, metres: float, **fields: Any) -> dict[str, str]:
        index, market = index_of([fix_at("a", east(metres))]), market_with(**{**self.MARKET, **fields})
        return pairs_of(made_of(waiting_of([ride_at("r", east(0), waited_s=waited_s)]), index, market))

    @pytest.mark.parametrize(
        ("metres", "least_s"), [(1590.0, 0.0), (1610.0, 10.0), (1790.0, 10.0), (1810.0, 20.0), (3190.0, 80.0)]
    )
    def test_a_ride_out_of_reach_is_matched_once_it_has_waited_long_enough(self, metres: float, least_s: float) -> None:
        assert self.made(least_s, metres) == {"r": "a"}
        assert not least_s or self.made(least_s - 0.001, metres) == {}

    def test_the_limit_grows_no_further_than_the_market_says(self) -> None:
        assert self.made(1e6, 3210.0) == {}
        assert self.made(1e6, 3210.0, pickup_s_most=480.0) == {"r": "a"}
        assert self.made(1e6, 1610.0, pickup_growth=0.0) == {}

    def test_metres_and_seconds_grow_alike(self) -> None:
        wide = {"max_pickup_m": 1e5, "speed_mps": 20.0}
        assert (self.made(0.0, 3190.0, **wide), self.made(0.0, 3210.0, **wide)) == ({"r": "a"}, {})
        assert (self.made(80.0, 6390.0, **wide), self.made(80.0, 6410.0, **wide)) == ({"r": "a"}, {})
        assert (self.made(80.0, 3190.0, speed_mps=40.0), self.made(80.0, 3210.0, speed_mps=40.0)) == ({"r": "a"}, {})

    def test_rides_differ_in_kind_only_where_their_limits_do(self) -> None:
        waits_s = [0.0, 9.0, 10.0, 19.0, 79.0, 80.0, 5000.0]
        rides = [ride_at(f"r{place}", east(0), waited_s=waited_s) for place, waited_s in enumerate(waits_s)]
        problem = batch_of(waiting_of(rides), index_of([fix_at("a", east(0))]), market_with(**self.MARKET)).problem
        check(problem)
        assert problem.extra_s.tolist() == [[0.0]] * 4
        assert problem.reach_s[problem.ride_kind].tolist() == [160.0, 160.0, 180.0, 180.0, 300.0, 320.0, 320.0]
        assert problem.reach_m[problem.ride_kind].tolist() == [1600.0, 1600.0, 1800.0, 1800.0, 3000.0, 3200.0, 3200.0]

    def test_classes_and_limits_tell_rides_apart_together(self) -> None:
        rides = [
            ride_at(f"{kind}{waited_s:g}", east(0), kind=kind, waited_s=waited_s)
            for kind in ("standard", "xl")
            for waited_s in (0.0, 40.0)
        ]
        index = index_of([fix_at("car", east(1700)), fix_at("van", east(-1700), kind="xl")])
        costs = costs_of(batch_of(waiting_of(rides), index, market_with(**self.MARKET, **WIDE)))
        assert set(costs) == {("standard40", "car"), ("standard40", "van"), ("xl40", "van")}


class TestWhatADriverCostsMore:
    def batch(self, market: Market, **known: Any) -> Batch:
        index = index_of([fix_at(name, east(0)) for name in ("idle", "new", "unknown")])
        return batch_of(waiting_of([ride_at("r", east(0))]), index, market, **known)

    def test_a_driver_who_has_been_idle_for_longer_is_cheaper_up_to_a_limit(self) -> None:
        since = {DriverId("idle"): NOW_MS - 200_000, DriverId("new"): NOW_MS - 40_000}
        batch = self.batch(market_with(idle_bonus=0.5, idle_bonus_s_max=60.0), idle_since_ms=since)
        assert [extra_of(batch, name) for name in ("idle", "new", "unknown")] == [-60.0, -20.0, 0.0]
        assert batch.idle_s.tolist() == [60.0, 20.0, 0.0]

    def test_a_driver_idle_since_after_the_snapshot_has_no_bonus(self) -> None:
        batch = self.batch(market_with(idle_bonus=0.5), idle_since_ms={DriverId("idle"): NOW_MS + 5_000})
        assert extra_of(batch, "idle") == 0.0

    def test_the_risk_of_a_refusal_is_priced_by_what_the_driver_refused(self) -> None:
        histories = {
            each.driver_id: each
            for each in (history_of("idle", trips=6, refused=2), history_of("new", trips=7, refused=0))
        }
        batch = self.batch(market_with(refusal_s=100.0), histories=histories)
        assert [extra_of(batch, name) for name in ("idle", "new", "unknown")] == [37.5, 0.0, 0.0]
        assert batch.refusal_s.tolist() == [37.5, 0.0, 0.0]

    def test_a_market_without_these_prices_asks_for_neither(self) -> None:
        batch = self.batch(
            market_with(),
            histories={DriverId("idle"): history_of("idle", trips=4, refused=4)},
            idle_since_ms={DriverId("idle"): 0},
        )
        assert batch.problem.driver_s.tolist() == [0.0, 0.0, 0.0]

    def test_bonus_and_risk_decide_between_drivers_that_are_equally_near(self) -> None:
        market = market_with(idle_bonus=1.0, refusal_s=100.0)
        known = {
            "histories": {DriverId("idle"): history_of("idle", trips=1, refused=1)},
            "idle_since_ms": {DriverId("idle"): NOW_MS - 60_000, DriverId("new"): NOW_MS - 1000},
        }
        index = index_of([fix_at("idle", east(0)), fix_at("new", east(0))])
        waiting = waiting_of([ride_at("r", east(0))])
        assert pairs_of(made_of(waiting, index, market, **known)) == {"r": "new"}
        assert pairs_of(made_of(waiting, index, market, idle_since_ms=known["idle_since_ms"])) == {"r": "idle"}


def test_a_driver_that_moved_or_changed_is_taken_as_it_now_is() -> None:
    index = index_of([fix_at("a", east(0), seats=2)])
    index.apply(pack([fix_at("a", east(3000), seats=6, seq=2)], RESOLUTION, NOW_MS))
    batch = batch_of(waiting_of([ride_at("r", east(3000), seats=5)]), index)
    assert costs_of(batch) == {(RideId("r"), DriverId("a")): 0.0}
