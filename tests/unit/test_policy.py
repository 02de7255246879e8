"""A market's prices and limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from geo.area import Circle
from geo.model import LatLng, MarketId
from matcher.policy import Market
from matcher.problem import COST_MAX, on_grid

NYC = MarketId("nyc")


def market_with(**fields: Any) -> Market:
    return Market(NYC, Circle(LatLng(40.75, -73.98), 30_000.0), **fields)


def test_the_pickup_takes_the_detour_at_the_markets_speed() -> None:
    market = market_with(speed_mps=10.0, detour_factor=1.5)
    assert market.pickup_s(2000.0) == 300.0
    assert market.pickup_s(np.array([0.0, 2000.0])).tolist() == [0.0, 300.0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"unmatched_base_s": 1801.0, "unmatched_growth": 0.0},
        {"pickup_growth": 2.0, "unmatched_growth": 0.0},
        {"pickup_growth": 5.0, "pickup_s_most": 7200.0, "unmatched_base_s": 1801.0, "unmatched_growth": 0.0},
        {"pickup_growth": 1.0, "max_pickup_s": 1e7, "unmatched_growth": 0.0},
    ],
)
def test_nobody_in_reach_is_left_out_at_will(fields: dict[str, Any]) -> None:
    market, waited_s = market_with(**fields), np.append(np.linspace(0.0, 9000.0, 1001), 1e9)
    assert np.all(market.unmatched_s(waited_s) > market.max_pickup_s * market.pickup_factor(waited_s))


def test_the_limits_of_a_pickup_grow_with_the_wait_by_eighths_and_never_too_soon() -> None:
    market = market_with(max_pickup_s=800.0, pickup_growth=2.0)
    waits_s = np.array([-5.0, 0.0, 49.9, 50.0, 99.9, 100.0, 399.9, 400.0, 1e9])
    assert (8.0 * market.pickup_factor(waits_s)).tolist() == [8, 8, 8, 9, 9, 10, 15, 16, 16]
    assert market_with().pickup_factor(1e9) == 1.0


@pytest.mark.parametrize(
    ("most_s", "factor"), [(None, 2.0), (800.0, 1.0), (899.9, 1.0), (900.0, 1.125), (1999.9, 2.375), (3200.0, 4.0)]
)
def test_the_limits_of_a_pickup_grow_up_to_what_the_market_says(most_s: float | None, factor: float) -> None:
    assert market_with(max_pickup_s=800.0, pickup_growth=1.0, pickup_s_most=most_s).pickup_factor(1e9) == factor


@pytest.mark.parametrize(("most_s", "factor"), [(100.0, 1.0), (9000.0, 4.0)])
def test_a_market_whose_limit_was_replaced_keeps_within_one_to_four_times_of_it(most_s: float, factor: float) -> None:
    """P10: a request for a plan may name a limit that the market's greatest does not fit."""
    assert market_with(max_pickup_s=800.0, pickup_growth=1.0, pickup_s_most=most_s).pickup_factor(1e9) == factor


def test_the_price_of_leaving_a_ride_grows_with_the_limit_of_its_pickup() -> None:
    fields: dict[str, Any] = {"max_pickup_s": 800.0, "pickup_growth": 2.0, "unmatched_growth": 1.0}
    waits_s = np.array([0.0, 100.0, 400.0])
    assert market_with(**fields).unmatched_s(waits_s).tolist() == [1600.0, 2100.0, 3600.0]
    based = market_with(unmatched_base_s=1000.0, **fields)
    assert based.unmatched_s(waits_s).tolist() == [1000.0, 1300.0, 2200.0]


def test_the_price_of_leaving_a_ride_grows_with_its_wait() -> None:
    market = market_with(unmatched_base_s=2000.0, unmatched_growth=2.0)
    assert market.unmatched_s(np.array([0.0, 60.0])).tolist() == [2000.0, 2120.0]


def test_the_price_of_leaving_a_ride_stays_one_that_a_problem_may_hold() -> None:
    market = market_with(max_pickup_s=1e7, unmatched_growth=1e6)
    prices_s = market.unmatched_s(np.array([0.0, 60.0, 1e9]))
    assert prices_s.tolist() == [2e7, 25e6, 25e6]
    assert on_grid(prices_s).max() <= COST_MAX


def test_sums_of_costs_are_exact() -> None:
    costs = market_with().pickup_s(np.random.default_rng(1).random(1000) * 15_000.0)
    forth, back = 0.0, 0.0
    for cost in costs:
        forth += cost
    for cost in costs[::-1]:
        back += cost
    assert forth == back


def test_costs_keep_the_order_of_distances() -> None:
    distances = np.sort(np.random.default_rng(2).random(1000) * 15_000.0)
    assert np.all(np.diff(market_with().pickup_s(distances)) >= 0.0)
    assert on_grid(float("inf")) == float("inf")


def test_a_class_is_served_by_its_own_drivers() -> None:
    assert market_with().classes_for("van") == {"van"}
    assert market_with().extra_s("van", "van") == 0.0
    assert market_with().extra_s("van", "standard") == math.inf


def test_a_better_class_serves_a_lesser_ride_at_its_price_on_the_grid() -> None:
    market = market_with(downgrade_s={"xl": {"standard": 120.0001}, "lux": {"standard": 300.0, "xl": 0.0}})
    assert market.classes_for("standard") == {"standard", "xl", "lux"}
    assert (market.extra_s("standard", "xl"), market.extra_s("standard", "lux")) == (120.0, 300.0)
    assert market.extra_s("xl", "lux") == 0.0
    assert market.extra_s("xl", "standard") == math.inf
    assert market.extra_s("lux", "xl") == math.inf


def test_the_bonus_of_an_idle_driver_grows_up_to_its_limit() -> None:
    market = market_with(idle_bonus=0.1, idle_bonus_s_max=30.0)
    assert market.idle_s(np.array([-5.0, 0.0, 100.0, 300.0, 9000.0])).tolist() == [0.0, 0.0, 10.0, 30.0, 30.0]
    assert market_with().idle_s(9000.0) == 0.0


def test_the_risk_of_a_refusal_is_the_share_of_its_price() -> None:
    assert market_with(refusal_s=200.0).refusal_risk_s(np.array([0.0, 0.25, 1.0])).tolist() == [0.0, 50.0, 200.0]
    assert market_with().refusal_risk_s(1.0) == 0.0


def test_bonus_and_risk_are_on_the_grid_of_costs() -> None:
    market, shares = market_with(idle_bonus=1 / 3, refusal_s=100.0), np.random.default_rng(3).random(50)
    for seconds in (market.idle_s(shares * 100.0), market.refusal_risk_s(shares), market.unmatched_s(shares * 100.0)):
        assert on_grid(seconds).tolist() == seconds.tolist()


def test_road_times_are_bounded_by_the_top_speed_and_straight_lines_by_the_pace() -> None:
    fields: dict[str, Any] = {"speed_mps": 10.0, "detour_factor": 1.25, "top_speed_mps": 40.0, "max_pickup_s": 100.0}
    straight, by_road = market_with(**fields), market_with(has_ways=True, **fields)
    assert (straight.s_per_m, by_road.s_per_m) == (0.125, 0.025)
    assert by_road.pickup_s(800.0) == 100.0  # what a straight line is expected to take stays what it was


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("speed_mps", 0.0),
        ("speed_mps", float("nan")),
        ("detour_factor", 0.9),
        ("window_s", -1.0),
        ("max_pickup_s", float("inf")),
        ("max_pickup_m", -5.0),
        ("unmatched_growth", -0.1),
        ("pickup_growth", -0.1),
        ("pickup_growth", float("inf")),
        ("pickup_s_most", 0.0),
        ("pickup_s_most", float("nan")),
        ("pickup_s_most", 1.1e7),
        ("unmatched_base_s", 1800.0),
        ("candidates_per_ride", 0),
        ("deadline_max_ms", 1),
        ("solve_s_max", 0.0),
        ("rides_per_batch_max", 0),
        ("classes", ()),
        ("idle_bonus", -0.1),
        ("idle_bonus_s_max", -1.0),
        ("idle_bonus_s_max", float("inf")),
        ("refusal_s", float("nan")),
        ("top_speed_mps", 0.0),
        ("window_s_max", 1.9),
        ("max_pickup_s", 1.1e7),
        ("unmatched_base_s", 1.1e7),
        ("idle_bonus_s_max", 1.1e7),
        ("refusal_s", 1.1e7),
        ("downgrade_s.xl.standard", {"xl": {"standard": 1.1e7}}),
        ("downgrade_s.xl.standard", {"xl": {"standard": -1.0}}),
        ("downgrade_s.xl.standard", {"xl": {"standard": float("nan")}}),
        ("downgrade_s.lux.xl", {"xl": {}, "lux": {"standard": 1.0, "xl": float("inf")}}),
    ],
)
def test_what_makes_no_sense_is_refused_naming_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"market nyc: {field}"):
        market_with(**{field.partition(".")[0]: value})
