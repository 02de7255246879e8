"""What tests of batches share: a market, rides and drivers around one point, a real index, and plans made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from geo.area import Circle
from geo.feed import pack
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, MarketId
from matcher import optimum
from matcher.batch import Batch, build, demand_of
from matcher.model import ClientId, Ride, RideId, RideState, TripId
from matcher.outcomes import DriverHistory, Waiting
from matcher.plan import NEAR, Decided, Plan, plan
from matcher.policy import Market
from matcher.problem import WaysOf

NYC, NOW_MS, CENTRE = MarketId("nyc"), 1_000_000, LatLng(40.75, -73.98)
RESOLUTION, STALE_AFTER_MS = 8, 30_000


def market_with(**fields: Any) -> Market:
    return Market(NYC, Circle(CENTRE, 30_000.0), **fields)


def east(metres: float, north: float = 0.0) -> LatLng:
    return LatLng(CENTRE.lat + north / 111_195.0, CENTRE.lon + metres / (111_195.0 * 0.757566))


def ride_at(
    name: str,
    point: LatLng,
    *,
    waited_s: float = 0.0,
    seats: int = 1,
    kind: str = "standard",
    tags: Sequence[str] = (),
) -> Ride:
    return Ride(
        ride_id=RideId(name),
        client_id=ClientId("c"),
        market=NYC,
        state=RideState.SEARCHING,
        version=1,
        pickup=point,
        dropoff=None,
        seats=seats,
        vehicle_class=kind,
        metadata={},
        requested_at_ms=NOW_MS - round(waited_s * 1000),
        deadline_at_ms=NOW_MS + 600_000,
        ended_at_ms=None,
        end_reason=None,
        trip=None,
        tags=tuple(sorted(tags)),
    )


def fix_at(
    name: str,
    point: LatLng,
    *,
    kind: str = "standard",
    seats: int = 4,
    age_ms: int = 0,
    tags: int = 0,
    available: bool = True,
    seq: int = 1,
) -> Fix:
    return Fix(DriverId(name), point.lat, point.lon, 1, 1, seq, age_ms, kind, seats, available, tags=tags)


def index_of(fixes: Iterable[Fix]) -> DriverIndex:
    index = DriverIndex(resolution=RESOLUTION, stale_after_ms=STALE_AFTER_MS)
    index.apply(pack(list(fixes), RESOLUTION, NOW_MS))
    return index


def history_of(name: str, *, trips: int = 0, refused: int = 0, ended_at_ms: int | None = None) -> DriverHistory:
    return DriverHistory(DriverId(name), ended_at_ms, trips, refused)


def waiting_of(
    rides: Sequence[Ride], engaged: Iterable[str] = (), refused: Mapping[str, Iterable[str]] | None = None
) -> Waiting:
    refusals = {
        RideId(ride): frozenset(DriverId(driver) for driver in drivers) for ride, drivers in (refused or {}).items()
    }
    return Waiting(NOW_MS, list(rides), frozenset(DriverId(driver) for driver in engaged), refusals)


def batch_of(waiting: Waiting, index: DriverIndex, market: Market | None = None, **known: Any) -> Batch:
    return build(demand_of(waiting, market or market_with()), index, NOW_MS, **known)


def decided_of(batch: Batch, ways: WaysOf | None = None) -> Decided:
    """Solved in this process, as the dispatcher has it solved."""
    return Decided(batch, optimum.solve(batch.problem, ways, near=NEAR, compare=True))


def plan_of(decided: Decided, index: DriverIndex, now_ms: int = NOW_MS) -> Plan:
    numbers = count()
    return plan(decided, index, now_ms, batch_id="b_1", new_trip_id=lambda: TripId(f"t_{next(numbers)}"))


def made_of(waiting: Waiting, index: DriverIndex, market: Market | None = None, **known: Any) -> Plan:
    """The plan of this batch."""
    return plan_of(decided_of(batch_of(waiting, index, market, **known)), index)


def pairs_of(made: Plan) -> dict[str, str]:
    return {pairing.ride_id: pairing.driver_id for pairing in made.pairings}


def reasons_of(made: Plan) -> dict[str, str]:
    return {each.ride_id: each.reason for each in made.unmatched}
