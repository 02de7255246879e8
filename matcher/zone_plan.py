"""From queues at places to pairings: whose turn it is with which ride, and the record of why (P12).

Pure. A pairing of a queue is no matter of cost: it is the oldest ride's with the first driver that can serve it. Its
record tells the way all the same, by the straight line, and the driver's place. `now_ms` is the feed's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from geo.distance import between_m
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng
from matcher.model import Ride, Slot, TripId
from matcher.outcomes import Pairing, Waiting
from matcher.policy import Market
from matcher.zones import Pin, Queues, pin

WAY = "straight line"


class Servers:
    """Which of the waiting drivers can serve which ride, by what the index holds of them now.

    A driver that is stale, on a break or engaged serves nobody (P5). `tag_bits` are the bits of tags in the index.
    """

    def __init__(
        self,
        queues: Queues,
        market: Market,
        index: DriverIndex,
        now_ms: int,
        *,
        engaged: frozenset[DriverId] = frozenset(),
        tag_bits: Mapping[str, int] | None = None,
    ) -> None:
        self._market = market
        self._tag_bits = tag_bits or {}
        idle = [each for waiting in queues.waiting.values() for each in waiting if each not in engaged]
        fresh = zip(idle, index.fresh(idle, now_ms), strict=True)
        fixes = (index.held(driver_id, now_ms) for driver_id, is_fresh in fresh if is_fresh)
        self._fixes = {fix.driver_id: fix for fix in fixes if fix is not None and fix.available}

    def can_serve(self, ride: Ride, driver_id: DriverId) -> bool:
        fix = self._fixes.get(driver_id)
        return (
            fix is not None
            and fix.seats >= ride.seats
            and fix.vehicle_class in self._market.classes_for(ride.vehicle_class)
            and all(fix.tags & self._tag_bits.get(tag, 0) for tag in ride.tags)
        )

    def fix_of(self, driver_id: DriverId) -> Fix:
        """Raises KeyError for a driver that can serve nobody."""
        return self._fixes[driver_id]


def pinned(
    queues: Queues,
    waiting: Waiting,
    market: Market,
    index: DriverIndex,
    now_ms: int,
    *,
    facts: Mapping[str, Any],
    new_trip_id: Callable[[], TripId],
    tag_bits: Mapping[str, int] | None = None,
) -> list[Pairing]:
    """The pairings of the market's queues, the oldest ride first; `facts` is what their records say of the batch.

    What is left to the ordinary batch are the other rides, and the drivers that are not in `queues.queued`.
    """
    if not queues.waiting or not waiting.rides:
        return []
    servers = Servers(queues, market, index, now_ms, engaged=waiting.engaged, tag_bits=tag_bits)
    rides = {ride.ride_id: ride for ride in waiting.rides}
    pins = pin(queues, waiting.rides, market.zones, servers.can_serve, waiting.refused)
    return [
        _pairing(each, rides[each.ride_id], servers.fix_of(each.driver_id), market, facts, new_trip_id())
        for each in pins
    ]


def _pairing(turn: Pin, ride: Ride, fix: Fix, market: Market, facts: Mapping[str, Any], trip_id: TripId) -> Pairing:
    distance_m = round(between_m(LatLng(fix.lat, fix.lon), ride.pickup), 1)
    way_s = round(float(market.pickup_s(distance_m)), 3)
    chosen = {
        "driver_id": fix.driver_id,
        "cost_s": way_s,
        "terms": {"way": way_s},
        "distance_m": distance_m,
        "way": WAY,
        "position_age_s": round(fix.age_ms / 1000.0, 3),
        "queue": {"zone": turn.zone, "place": turn.place, "length": turn.length},
    }
    return Pairing(
        trip_id=trip_id,
        ride_id=ride.ride_id,
        ride_version=ride.version,
        driver_id=fix.driver_id,
        slot=Slot.NOW,
        pickup_s=way_s,
        distance_m=distance_m,
        abandon_after_ms=market.abandon_after_ms,
        decision={"batch": dict(facts), "chosen": chosen, "alternatives": []},
    )
