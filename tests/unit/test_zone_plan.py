"""From queues to pairings: who of a queue can serve which ride now, and what the record says of it."""

from __future__ import annotations

from typing import Any

import pytest

from geo.area import Circle
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, MarketId
from matcher.ids import new_trip_id
from matcher.model import Ride, RideId, Slot
from matcher.outcomes import Pairing, Waiting
from matcher.policy import Market
from matcher.zone_plan import pinned
from matcher.zones import NOBODY, Queues, Zone
from tests.unit.test_index import STALE_MS, batch, fix
from tests.unit.test_zones import JFK, NOW, ride

NYC = MarketId("nyc")
TAGS = {"pets": 1, "wheelchair": 2}


def market_of(**named: Any) -> Market:
    zones = (Zone("jfk", Circle(JFK, 1500.0)),)
    return Market(NYC, Circle(JFK, 30_000.0), zones=zones, speed_mps=10.0, detour_factor=1.0, **named)


def at_jfk(name: str, **rest: Any) -> Fix:
    return fix(name, JFK.lat, JFK.lon, **rest)


def index_of(*fixes: Fix) -> DriverIndex:
    index = DriverIndex(resolution=8, stale_after_ms=STALE_MS)
    index.apply(batch(*fixes, now_ms=NOW))
    return index


def turns_of(fixes: list[Fix], *rides: Ride, queues: Queues | None = None, **named: Any) -> list[Pairing]:
    names = tuple(each.driver_id for each in fixes)
    engaged = frozenset(map(DriverId, named.pop("engaged", ())))
    refused = named.pop("refused", {})
    return pinned(
        queues or Queues({"jfk": names}),
        Waiting(NOW, list(rides), engaged, refused),
        market_of(**named),
        index_of(*fixes),
        NOW,
        facts={"id": "b_1"},
        new_trip_id=new_trip_id,
        tag_bits=TAGS,
    )


def drivers(pairings: list[Pairing]) -> dict[str, str]:
    return {each.ride_id: each.driver_id for each in pairings}


@pytest.mark.parametrize(
    ("head", "asked"),
    [
        (at_jfk("a", age_ms=STALE_MS + 1), {}),
        (at_jfk("a", available=False), {}),
        (at_jfk("a", vehicle_class="large"), {}),
        (at_jfk("a", seats=3), {"seats": 4}),
        (at_jfk("a", tags=1), {"tags": ("pets", "wheelchair")}),
        (at_jfk("a"), {"tags": ("unheard-of",)}),
    ],
)
def test_who_cannot_serve_the_ride_is_passed_over(head: Fix, asked: dict[str, Any]) -> None:
    able = at_jfk("b", tags=3)
    expected = {} if "unheard-of" in asked.get("tags", ()) else {"r1": "b"}
    assert drivers(turns_of([head, able], ride(1, **asked))) == expected


def test_a_better_class_serves_where_the_market_says_so() -> None:
    better = at_jfk("a", vehicle_class="large")
    named: dict[str, Any] = {"classes": ("standard", "large"), "downgrade_s": {"large": {"standard": 30.0}}}
    assert drivers(turns_of([better], ride(1), **named)) == {"r1": "a"}
    assert drivers(turns_of([better], ride(1))) == {}


def test_who_is_engaged_or_refused_the_ride_is_passed_over() -> None:
    fixes = [at_jfk("a"), at_jfk("b"), at_jfk("c")]
    refused = {RideId("r1"): frozenset({DriverId("b")})}
    assert drivers(turns_of(fixes, ride(1), ride(2), engaged="a", refused=refused)) == {"r1": "c", "r2": "b"}


def test_the_index_may_not_know_a_driver_of_the_queue() -> None:
    queues = Queues({"jfk": (DriverId("gone"), DriverId("a"))})
    assert drivers(turns_of([at_jfk("a")], ride(1), queues=queues)) == {"r1": "a"}


def test_the_record_tells_the_way_by_a_straight_line_and_the_turn() -> None:
    there = LatLng(JFK.lat + 0.009, JFK.lon)
    fixes = [at_jfk("a", seats=1), at_jfk("b", age_ms=1500)]
    (pairing,) = turns_of(fixes, ride(7, there, seats=2, version=3), abandon_after_ms=5)
    assert (pairing.ride_id, pairing.ride_version, pairing.driver_id) == ("r7", 3, "b")
    assert (pairing.slot, pairing.abandon_after_ms) == (Slot.NOW, 5)
    assert pairing.distance_m == pytest.approx(1000.8, abs=0.1)
    assert pairing.pickup_s == pytest.approx(100.08, abs=0.01)
    assert pairing.decision == {
        "batch": {"id": "b_1"},
        "chosen": {
            "driver_id": "b",
            "cost_s": pairing.pickup_s,
            "terms": {"way": pairing.pickup_s},
            "distance_m": pairing.distance_m,
            "way": "straight line",
            "position_age_s": 1.5,
            "queue": {"zone": "jfk", "place": 2, "length": 2},
        },
        "alternatives": [],
    }


def test_without_queues_or_rides_there_is_nothing_to_do() -> None:
    assert turns_of([at_jfk("a")], ride(1), queues=NOBODY) == []
    assert turns_of([at_jfk("a")]) == []
