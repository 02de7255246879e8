"""Drivers near the end of a trip as supply for one ride more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from geo.model import DriverId
from matcher.batch import build_with, demand_of
from matcher.chains import chained, still_engaged
from matcher.model import Slot
from matcher.outcomes import Carrying, Waiting
from matcher.policy import UNMATCHED_S_MAX
from tests.batches import NOW_MS, decided_of, east, fix_at, index_of, market_with, plan_of, ride_at

SOON = market_with(chain_within_s=300.0, chain_late_s=60.0, speed_mps=10.0, detour_factor=1.0)


def carrying(name: str, to_m: float) -> Carrying:
    return Carrying(DriverId(name), east(to_m))


def test_a_carrying_driver_stands_where_it_will_be_free_and_that_takes_its_time() -> None:
    supply = index_of([fix_at("idle", east(0)), fix_at("riding", east(0))]).supply(NOW_MS)
    ahead = chained(supply, [carrying("riding", 2000)], SOON)
    assert ahead.supply.driver_ids == ["idle", "riding"]
    assert ahead.is_chained.tolist() == [False, True]
    assert ahead.remaining_s.tolist() == pytest.approx([0.0, 200.0], abs=1.0)
    assert ahead.supply.lon.tolist() == pytest.approx([east(0).lon, east(2000).lon])
    assert supply.lon.tolist() == pytest.approx([east(0).lon] * 2)


def test_who_will_not_be_free_soon_enough_is_no_supply() -> None:
    supply = index_of([fix_at("idle", east(0)), fix_at("riding", east(0))]).supply(NOW_MS)
    ahead = chained(supply, [carrying("riding", 3100)], SOON)
    assert ahead.supply.driver_ids == ["idle"]
    assert (len(ahead.supply.lat), len(ahead.supply.kind), len(ahead.remaining_s)) == (1, 1, 1)


def test_a_carrying_driver_that_is_stale_or_on_a_break_is_no_supply() -> None:
    supply = index_of([fix_at("old", east(0), age_ms=60_000), fix_at("off", east(0), available=False)]).supply(NOW_MS)
    assert chained(supply, [carrying("old", 10), carrying("off", 10)], SOON).supply.driver_ids == []


def test_only_those_who_carry_are_not_engaged_for_a_next_ride() -> None:
    engaged = frozenset({DriverId("carrying"), DriverId("approaching")})
    assert still_engaged(engaged, [carrying("carrying", 0)]) == {"approaching"}


def planned(*names: str, **policy: Any) -> dict[str, tuple[str, Slot]]:
    """Of each ride its driver and the slot, of an idle driver 2 km away and one who ends a trip 300 m away."""
    market = market_with(**{"chain_within_s": 300.0, "speed_mps": 10.0, "detour_factor": 1.0, **policy})
    rides = [ride_at(name, east(0)) for name in names]
    riding = carrying("riding", 300)
    waiting = Waiting(NOW_MS, rides, frozenset({riding.driver_id}), {}, [riding])
    index = index_of([fix_at("idle", east(2000)), fix_at("riding", east(900))])
    supply = index.supply(NOW_MS, still_engaged(waiting.engaged, waiting.carrying))
    batch = build_with(demand_of(waiting, market), supply, carrying=waiting.carrying)
    made = plan_of(decided_of(batch), index)
    return {each.ride_id: (each.driver_id, each.slot) for each in made.pairings}


def test_the_rest_of_its_trip_is_a_part_of_what_a_driver_costs() -> None:
    assert planned("r") == {"r": ("riding", Slot.NEXT)}  # 60 s to the end of the trip and 30 s more, against 200 s
    assert planned("r", chain_within_s=50.0) == {"r": ("idle", Slot.NOW)}


def test_both_are_given_where_two_rides_wait() -> None:
    assert set(planned("r", "s").values()) == {("riding", Slot.NEXT), ("idle", Slot.NOW)}


def test_a_chained_pairing_says_how_long_its_turn_may_take_and_tells_the_rest_of_the_trip() -> None:
    riding = carrying("riding", 300)
    waiting = Waiting(NOW_MS, [ride_at("r", east(0))], frozenset({riding.driver_id}), {}, [riding])
    index = index_of([fix_at("riding", east(900))])
    batch = build_with(demand_of(waiting, SOON), index.supply(NOW_MS), carrying=waiting.carrying)
    [pairing] = plan_of(decided_of(batch), index).pairings
    assert pairing.release_after_ms == pytest.approx(120_000, abs=1000)
    assert pairing.pickup_s == pytest.approx(90.0, abs=1.0)
    assert pairing.decision["chosen"]["terms"] == pytest.approx({"way": 30.0, "remaining_trip": 60.0}, abs=1.0)


def test_a_ride_whose_hour_is_near_goes_before_all_that_named_none() -> None:
    later = replace(ride_at("later", east(0)), pickup_at_ms=NOW_MS + 200_000, search_at_ms=NOW_MS)
    waiting = Waiting(NOW_MS, [later, ride_at("now", east(0), waited_s=500.0)], frozenset(), {})
    assert demand_of(waiting, market_with(guarantee_s=300.0)).price_s.tolist()[0] == UNMATCHED_S_MAX
    assert demand_of(waiting, market_with(guarantee_s=100.0)).price_s.tolist()[0] < UNMATCHED_S_MAX
