"""Problems drawn from a seed: crowds, deserts, poles, kinds, barred pairs, bonuses, duplicate points."""

from __future__ import annotations

import numpy as np

from matcher.problem import Floats, Ints, Problem, on_grid

NOBODY = np.empty(0, dtype=np.int32)


def problem(
    rides: tuple[Floats, Floats],
    drivers: tuple[Floats, Floats],
    *,
    price_s: Floats | float = 3600.0,
    driver_s: Floats | float = 0.0,
    extra_s: Floats | None = None,
    ride_kind: Ints | None = None,
    driver_kind: Ints | None = None,
    barred: tuple[Ints, Ints] = (NOBODY, NOBODY),
    s_per_m: float = 1.3 / 7.0,
    reach_m: Floats | float = 10_000.0,
    reach_s: Floats | float = 1800.0,
    has_ways: bool = False,
) -> Problem:
    n, m = len(rides[0]), len(drivers[0])
    extra_s = np.zeros((1, 1)) if extra_s is None else extra_s
    kinds = len(extra_s)
    return Problem(
        *rides,
        np.broadcast_to(on_grid(np.asarray(price_s, dtype=np.float64)), (n,)).copy(),
        np.zeros(n, np.int32) if ride_kind is None else ride_kind,
        *drivers,
        np.broadcast_to(on_grid(np.asarray(driver_s, dtype=np.float64)), (m,)).copy(),
        np.zeros(m, np.int32) if driver_kind is None else driver_kind,
        extra_s,
        *barred,
        s_per_m,
        np.broadcast_to(np.asarray(reach_m, dtype=np.float64), (kinds,)).copy(),
        np.broadcast_to(np.asarray(reach_s, dtype=np.float64), (kinds,)).copy(),
        has_ways,
    )


def around(
    rng: np.random.Generator, count: int, *, lat: float, lon: float, spread: float, spots: int
) -> tuple[Floats, Floats]:
    """Points around so many spots, some of them on exactly the same place."""
    centre = rng.normal(0.0, spread, (2, max(spots, 1)))
    which = rng.integers(0, max(spots, 1), count)
    lats = lat + centre[0, which] + rng.normal(0.0, spread / 4.0, count)
    lons = lon + centre[1, which] + rng.normal(0.0, spread / 4.0, count)
    if count > 3 and rng.random() < 0.5:
        lats[: count // 3], lons[: count // 3] = lats[0], lons[0]
    return np.clip(lats, -90.0, 90.0), (lons + 180.0) % 360.0 - 180.0


def drawn(seed: int, n: int, m: int) -> Problem:
    """Anything that a market may look like."""
    rng = np.random.default_rng(seed)
    lat, lon = [(40.75, -73.98), (0.0, 179.999), (89.99, 10.0), (-33.9, 18.4)][rng.integers(0, 4)]
    spread, spots = float(rng.choice([0.0, 0.003, 0.03, 0.3])), int(rng.integers(1, 6))
    kinds, driver_kinds = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    extra_s = on_grid(rng.choice([0.0, 0.0, 60.0, 300.0, np.inf], (kinds, driver_kinds)))
    barred = int(rng.integers(0, 1 + min(n * m, 20))) if n and m else 0
    tied = rng.random() < 0.3
    return problem(
        around(rng, n, lat=lat, lon=lon, spread=spread, spots=spots),
        around(rng, m, lat=lat, lon=lon, spread=spread, spots=spots),
        price_s=600.0 if tied else 200.0 + rng.random(n) * float(rng.choice([0.0, 100.0, 4000.0])),
        driver_s=0.0 if tied else rng.normal(0.0, float(rng.choice([0.0, 50.0])), m),
        extra_s=extra_s,
        ride_kind=rng.integers(0, kinds, n).astype(np.int32),
        driver_kind=rng.integers(0, driver_kinds, m).astype(np.int32),
        barred=(
            rng.integers(0, max(n, 1), barred).astype(np.int32),
            rng.integers(0, max(m, 1), barred).astype(np.int32),
        ),
        reach_m=rng.choice([500.0, 3000.0, 10_000.0, np.inf], kinds),
        reach_s=rng.choice([120.0, 1800.0, np.inf], kinds),
    )
