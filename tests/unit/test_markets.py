"""What an operator says of a market, as the matcher gets it."""

from __future__ import annotations

from typing import Any

import pytest

from api.markets import Markets, build_market
from config.markets import MarketSettings
from matcher.life import Life
from matcher.policy import Market

TAGS = ("wheelchair", "pets", "child_seat")


def built(**said: Any) -> Market:
    return build_market(MarketSettings(id="x", center_lat=1, center_lon=1, radius_m=9, **said), TAGS)


def test_without_a_word_it_is_the_matchers_own_default() -> None:
    market = built()
    # But that a driver who stalls is replaced: the matcher's own tests have drivers who stand still.
    assert market == Market(market.id, market.area, window_s_max=2.0, tags=TAGS, stall_after_s=600.0)


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


def test_the_growth_of_a_pickups_limit_is_passed_on() -> None:
    market = built(pickup_growth=2, pickup_s_most=7200)
    assert (market.pickup_growth, market.pickup_s_most, market.longest_pickup_s) == (2.0, 7200.0, 7200.0)
    assert built(pickup_growth=2).longest_pickup_s == 3600.0


def test_drivers_are_asked_only_where_the_market_says_so() -> None:
    assert built().life == Life(offer_ttl_ms=None)
    assert built(assign="offer").life == Life(offer_ttl_ms=15_000)
    assert built(assign="offer", offer_ttl_s=0.25).life.offer_ttl_ms == 250


def test_the_limits_of_a_rides_life_are_passed_on_in_milliseconds() -> None:
    said = {"lost_grace_s": 4, "missed_offers_max": 5, "no_show_after_s": 120.5, "retry_s": 60}
    life = built(**said).life
    assert life == Life(None, lost_grace_ms=4000, missed_offers_max=5, no_show_after_ms=120_500, retry_ms=60_000)


def test_how_chains_stalls_and_schedules_are_judged_is_passed_on() -> None:
    said = {
        "chain_within_s": 240.0,
        "chain_late_s": 120.0,
        "stall_after_s": 400.0,
        "stall_m": 150.0,
        "schedule_lead_s": 1200.0,
        "schedule_ahead_s": 86_400.0,
        "guarantee_s": 100.0,
    }
    market = built(**said)
    assert {name: getattr(market, name) for name in said} == said


def test_a_market_is_found_by_its_id_or_not_at_all() -> None:
    market = built()
    markets = Markets([market])
    assert markets.get("x") is market
    assert markets.get("y") is None


def test_road_times_need_the_speed_that_no_way_exceeds() -> None:
    market = built(travel="osrm", travel_url="http://127.0.0.1:5000", top_speed_mps=33)
    assert (market.has_ways, market.top_speed_mps) == (True, 33.0)
    assert not built(top_speed_mps=33).has_ways


def test_a_zone_is_a_circle_or_geojson_as_a_market_and_keeps_places_for_a_time() -> None:
    ring = [[[1, 1], [1, 1.1], [1.1, 1.1], [1, 1]]]
    given = [
        {"id": "jfk", "center_lat": 1, "center_lon": 1, "radius_m": 5, "keep_s": 0.5},
        {"id": "lga", "geojson": {"type": "Polygon", "coordinates": ring}},
    ]
    jfk, lga = built(zones=given).zones
    assert (jfk.id, jfk.keep_ms, lga.id, lga.keep_ms) == ("jfk", 500, "lga", 120_000)
    assert jfk.area.contains(1.0, 1.0)
    assert lga.area.contains(1.08, 1.05)
    assert not lga.area.contains(1.05, 1.08)


def test_a_zone_outside_of_its_market_is_refused() -> None:
    with pytest.raises(ValueError, match="market x: zone jfk lies outside"):
        built(zones=[{"id": "jfk", "center_lat": 2, "center_lon": 1, "radius_m": 5}])
