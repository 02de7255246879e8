"""Small cities of virtual time, along a line or strewn, and what must be true of any run of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cities import Start, Wish, moved
from benchmarks.policies import POLICIES, Desk, play
from benchmarks.virtual_city import MARKET, NOBODY, City, StraightWays, World, lay_out
from geo.area import Circle
from geo.model import DriverId, LatLng
from matcher.policy import Market

CENTRE = LatLng(40.75, -73.98)
SPEED_MPS = 10.0
BOARDING_S = 20.0


def east(metres: float, north_m: float = 0.0) -> LatLng:
    return moved(CENTRE, north_m, metres)


def wish(at_s: float, pickup_m: float, dropoff_m: float) -> Wish:
    return Wish(at_s, east(pickup_m), east(dropoff_m), 1)


def start(name: str, at_m: float, at_s: float = 0.0) -> Start:
    return Start(at_s, DriverId(name), east(at_m), 4)


def city_of(wishes: Sequence[Wish], starts: Sequence[Start], *, patience_s: float = 600.0) -> City:
    return lay_out(wishes, starts, StraightWays(SPEED_MPS), patience_s=patience_s, boarding_s=BOARDING_S)


def strewn(seed: int, rides: int, drivers: int, *, span_s: float = 300.0, patience_s: float = 300.0) -> City:
    """A few square kilometres, trips of some hundred metres, drivers who appear now and then."""
    rng = random.Random(seed)

    def place() -> LatLng:
        return east(rng.gauss(0.0, 1_500.0), rng.gauss(0.0, 1_500.0))

    wishes = [Wish(rng.uniform(0.0, span_s), place(), place(), rng.randint(1, 4)) for _ in range(rides)]
    starts = [Start(max(0.0, rng.uniform(-span_s, span_s)), DriverId(f"d{n:03d}"), place(), 4) for n in range(drivers)]
    return city_of(wishes, starts, patience_s=patience_s)


def market_of(**fields: Any) -> Market:
    return Market(MARKET, Circle(CENTRE, 100_000.0), window_s=0.0, speed_mps=SPEED_MPS, detour_factor=1.0, **fields)


def played(city: City, name: str, **fields: Any) -> tuple[World, Desk]:
    """The city under this policy, with these changes of the market; every promise of a run is checked."""
    named = POLICIES[name]
    market = market_of(**{**named.market, **fields})
    world = World(city)
    desk = named.desk(world, market)
    play(world, named.policy(market), desk)
    assert_sound(world)
    return world, desk


def pickups_s(world: World) -> list[float]:
    """From each ride's request to its driver's arrival; NaN where none came."""
    out, city = world.outcome, world.city
    seconds = (out.arrived_ms - city.requested_ms) / 1000.0
    return [float(each) for each in np.where(out.served, seconds, math.nan)]


def drivers_of(world: World) -> list[str | None]:
    return [None if driver == NOBODY else world.city.driver_ids[driver] for driver in world.outcome.driver.tolist()]


def assert_sound(world: World) -> None:
    """From the log alone: nobody on two rides at once, nobody before its time or from another place."""
    city, out = world.city, world.outcome
    where: dict[int, tuple[float, float]] = {}
    free_ms: dict[int, int] = dict(enumerate(city.seen_ms.tolist()))
    for ride in sorted(np.flatnonzero(out.served).tolist(), key=lambda ride: int(out.matched_ms[ride])):
        driver, matched_ms = int(out.driver[ride]), int(out.matched_ms[ride])
        assert matched_ms >= free_ms[driver]
        assert city.requested_ms[ride] <= matched_ms < city.requested_ms[ride] + city.patience_ms
        lat, lon = where.get(driver, (float(city.start_lat[driver]), float(city.start_lon[driver])))
        drive_s = StraightWays(SPEED_MPS).among(
            (np.array([lat]), np.array([lon])),
            (city.pickup_lat[ride : ride + 1], city.pickup_lon[ride : ride + 1]),
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
        )
        assert out.arrived_ms[ride] == matched_ms + math.ceil(float(drive_s[0]) * 1000.0)
        assert out.done_ms[ride] == out.arrived_ms[ride] + city.service_ms[ride]
        free_ms[driver] = int(out.done_ms[ride])
        where[driver] = (float(city.dropoff_lat[ride]), float(city.dropoff_lon[ride]))
    assert not world.waiting
