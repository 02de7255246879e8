"""What a measured city is: its drivers, its load, how long trips take, and how the service is set for it.

Frozen and made of plain values, so that it travels to the load generator's process as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

#: Beyond the window, within which an offer must be at its driver's socket (p99).
OFFER_GRACE_S = 0.25
#: Positions have to be applied within this (p99), or the service falls behind them.
APPLIED_S_MAX = 1.0
#: Trips are timed, not driven at real speed: whole city crossings in seconds must be plausible.
MAX_SPEED_MPS = 5000.0
MARKET = "bench-city"
CLIENT = "bench-rider"


@dataclass(frozen=True, slots=True)
class CityOptions:
    """`rides_per_s` and `positions_per_s` are the load at factor 1; times are seconds."""

    secret: str
    rides_per_s: float = 200.0
    positions_per_s: float = 20_000.0
    drivers: int = 10_000
    window_s: float = 1.0
    assign: str = "offer"
    trip_s: tuple[float, float] = (20.0, 40.0)
    think_s: tuple[float, float] = (0.2, 1.0)
    deadline_s: float = 10.0  # what was too late is gone before the next stretch
    follow_share: float = 0.02
    seed: int = 1
    rides_file: str | None = None
    port: int = 0  # these two are the running city's
    redis_url: str = ""

    @property
    def limit_s(self) -> float:
        """An offer that comes later than this after its request is late."""
        return self.window_s + OFFER_GRACE_S


@dataclass(frozen=True, slots=True)
class Step:
    """One stretch of load: `factor` of the whole, after `warm_s` of positions alone."""

    factor: float
    seconds: float
    trip_s: tuple[float, float]
    warm_s: float = 1.0
    gives_up: bool = False  # as soon as it is certain that too many offers are late


def market_settings(options: CityOptions, lat: float, lon: float, radius_m: float) -> dict[str, object]:
    """The one market. Nobody is replaced for not coming nearer, for trips are timed and not driven."""
    settings: dict[str, object] = {
        "id": MARKET,
        "center_lat": lat,
        "center_lon": lon,
        "radius_m": radius_m,
        "window_s": options.window_s,
        "assign": options.assign,
        "stall_after_s": 0.0,
        "deadline_s": options.deadline_s,
    }
    if options.assign == "offer":
        settings |= {"offer_ttl_s": 15.0}
    return settings


def service_settings(
    options: CityOptions, market: Mapping[str, object], redis_url: str, database_url: str
) -> dict[str, str]:
    """By their names in the environment."""
    return {
        "HEXHAIL_REDIS_URL": redis_url,
        "HEXHAIL_DATABASE_URL": database_url,
        "HEXHAIL_MARKETS": json.dumps([market]),
        "HEXHAIL_MAX_SPEED_MPS": f"{MAX_SPEED_MPS:g}",
    }
