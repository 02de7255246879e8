"""What an answer tells of the drivers near a place is rounded as numpy rounds, however it is computed."""

from __future__ import annotations

import numpy as np

from api.nearby import nearby_out
from api.tags import Tags
from geo.area import Circle
from geo.index import Found
from geo.model import DriverId, LatLng, MarketId
from matcher.policy import Market

MARKET = Market(MarketId("here"), Circle(LatLng(40.0, -74.0), 50_000.0), speed_mps=6.3, detour_factor=1.37)


def found_of(away_m: np.ndarray, age_ms: np.ndarray) -> Found:
    count = len(away_m)
    floats = np.column_stack([away_m, np.full(count, 40.5), np.full(count, -74.5), np.full((count, 2), -1.0)])
    whole = np.column_stack([np.arange(count), np.zeros(count, dtype=np.int64), age_ms])
    return Found(floats, whole, [DriverId(f"d{each}") for each in range(count)], [("standard", 4, True, 0b10)])


def test_distances_ages_and_times_to_the_pickup_are_in_tenths_and_halves_go_to_even() -> None:
    draw = np.random.default_rng(1)
    away_m = np.sort(np.concatenate([[0.0, 0.25, 0.35, 0.75], draw.uniform(0.0, 1e5, 2000)]))
    age_ms = draw.integers(0, 10**6, len(away_m))
    items = nearby_out(found_of(away_m, age_ms), MARKET, frozenset(), Tags([]))
    assert [each.distance_m for each in items] == (np.rint(away_m * 10.0) / 10.0).tolist()
    assert [each.pickup_s for each in items] == (np.rint(MARKET.pickup_s(away_m) * 10.0) / 10.0).tolist()
    assert [each.age_s for each in items] == np.round(age_ms / 1000.0, 1).tolist()


def test_each_driver_is_described_with_its_own_columns() -> None:
    found = found_of(np.array([1.0, 2.0]), np.array([100, 200]))
    first, second = nearby_out(found, MARKET, frozenset({DriverId("d1")}), Tags(["pets", "child-seat"]))
    assert (first.driver_id, first.engaged, second.driver_id, second.engaged) == ("d0", False, "d1", True)
    assert (first.lat, first.lon, first.vehicle_class, first.seats) == (40.5, -74.5, "standard", 4)
    assert first.tags == ["child-seat"]


def test_of_nobody_nothing_is_told() -> None:
    assert nearby_out(found_of(np.empty(0), np.empty(0, dtype=np.int64)), MARKET, frozenset(), Tags([])) == []
