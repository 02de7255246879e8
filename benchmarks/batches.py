"""Batches to be assigned, drawn from a seed: even ones, and ones whose supply is scarce and elsewhere."""

from __future__ import annotations

import numpy as np

from matcher.problem import Floats, Problem, on_grid

#: Metres of one degree on a sphere of 6,371,008.8 m.
METRES_PER_DEGREE = 111_195.08
CENTRE_LAT, CENTRE_LON = 40.75, -73.98
REACH_M = 10_000.0
SIDE_M = 30_000.0
#: 1.3 of a straight line at 7 m/s, as markets have it by default.
S_PER_M = 1.3 / 7.0
#: Leaving a ride costs twice the longest pickup, and a second more a second that it has waited, a minute at most.
PRICE_S, WAITED_S_MAX = 3600.0, 60.0
CENTRES, SIGMA_M = 15, 2000.0


def even(rides: int, drivers: int, seed: int) -> Problem:
    """Everybody anywhere in a square; its side grows with the rides, so that the density is that of 5,000 in 30 km."""
    rng = np.random.default_rng(seed)
    half_m = SIDE_M / 2.0 * float(np.sqrt(rides / 5000.0))
    places_m = rng.uniform(-half_m, half_m, (2, rides)), rng.uniform(-half_m, half_m, (2, drivers))
    return problem(*places_m, rng)


def scarce(rides: int, drivers: int, seed: int) -> Problem:
    """Rides around 15 uniform centres in a 30 km square, drivers around 15 others, 2 km standard deviation."""
    rng = np.random.default_rng(seed)
    return problem(_around_centres(rng, rides), _around_centres(rng, drivers), rng)


def _around_centres(rng: np.random.Generator, count: int) -> Floats:
    centres = rng.uniform(-SIDE_M / 2.0, SIDE_M / 2.0, (2, CENTRES))
    places: Floats = centres[:, rng.integers(0, CENTRES, count)] + rng.normal(0.0, SIGMA_M, (2, count))
    return places


def problem(rides_m: Floats, drivers_m: Floats, rng: np.random.Generator) -> Problem:
    """Places are metres east and north of the centre, shape (2, points)."""
    ride_lat, ride_lon = _degrees(rides_m)
    driver_lat, driver_lon = _degrees(drivers_m)
    n, m = len(ride_lat), len(driver_lat)
    return Problem(
        ride_lat=ride_lat,
        ride_lon=ride_lon,
        price_s=on_grid(PRICE_S + rng.uniform(0.0, WAITED_S_MAX, n)),
        ride_kind=np.zeros(n, np.int32),
        driver_lat=driver_lat,
        driver_lon=driver_lon,
        driver_s=np.zeros(m),
        driver_kind=np.zeros(m, np.int32),
        extra_s=np.zeros((1, 1)),
        barred_ride=np.empty(0, np.int32),
        barred_driver=np.empty(0, np.int32),
        s_per_m=S_PER_M,
        reach_m=np.full(1, REACH_M),
        reach_s=np.full(1, PRICE_S),
    )


def _degrees(places_m: Floats) -> tuple[Floats, Floats]:
    east_m, north_m = places_m
    lat = CENTRE_LAT + north_m / METRES_PER_DEGREE
    lon = CENTRE_LON + east_m / (METRES_PER_DEGREE * np.cos(np.radians(CENTRE_LAT)))
    return lat, lon
