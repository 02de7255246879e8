"""What an operator says of a market, as the matcher gets it."""

from __future__ import annotations

from typing import Any

import pytest

from api.markets import build_market
from config.markets import MarketSettings
from matcher.policy import Market

TAGS = ("wheelchair", "pets", "child_seat")


def built(**said: Any) -> Market:
    return build_market(MarketSettings(id="x", center_lat=1, center_lon=1, radius_m=9, **said), TAGS)


def test_without_a_word_it_is_the_matchers_own_default() -> None:
    market = built()
    assert market == Market(market.id, market.area, window_s_max=2.0, tags=TAGS)


@pytest.mark.parametrize("window_s", [0, 2.5, 60])
def test_a_window_of_one_length_is_never_longer(window_s: float) -> None:
    market = built(window_s=window_s)
    assert (market.adaptive_window, market.window_s, market.window_s_max) == (False, window_s, window_s)


def test_an_adaptive_window_has_a_least_and_a_greatest_length() -> None:
    market = built(window_s="adaptive", window_s_min=0.5, window_s_max=12)
    assert (market.adaptive_window, market.window_s, market.window_s_max) == (True, 0.5, 12.0)
    market = built(window_s="adaptive")
    assert (market.adaptive_window, market.window_s, market.window_s_max) == (True, 1.0, 30.0)


def test_a_market_takes_its_own_tags_or_all_of_them() -> None:
    assert built(tags=["pets"]).tags == ("pets",)
    assert built().tags == TAGS


def test_a_downgrade_lets_drivers_of_the_better_class_serve_the_lesser_at_its_price() -> None:
    market = built(classes=["standard", "premium"], downgrades={"premium": {"standard": 120}})
    assert market.classes_for("standard") == {"standard", "premium"}
    assert market.classes_for("premium") == {"premium"}
    assert (market.extra_s("standard", "premium"), market.extra_s("standard", "standard")) == (120.0, 0.0)


def test_what_a_pairing_costs_beside_its_way_is_passed_on() -> None:
    market = built(idle_bonus=0.1, idle_bonus_s_max=90, refusal_s=60)
    assert (market.idle_bonus, market.idle_bonus_s_max, market.refusal_s) == (0.1, 90.0, 60.0)


def test_road_times_need_the_speed_that_no_way_exceeds() -> None:
    market = built(travel="osrm", travel_url="http://127.0.0.1:5000", top_speed_mps=33)
    assert (market.has_ways, market.top_speed_mps) == (True, 33.0)
    assert not built(top_speed_mps=33).has_ways
