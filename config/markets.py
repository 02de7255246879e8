"""What an operator says about a market: where it is, and how its rides are matched.

A market's area is a circle (`center_lat`, `center_lon`, `radius_m`) or a GeoJSON
polygon (`geojson`: a file's path or the object itself). What the way to a rider
takes is a straight line at an even pace, a network of roads in memory, or the
answer of an OSRM or Valhalla server (`travel`). This module checks what was said
and knows nothing of how it is used.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from config.geojson import Latitude, Longitude, check_one_area, read_geojson
from config.zones import ZoneSettings, check_ids_differ

ADAPTIVE: Final = "adaptive"
WINDOW_S_MAX: Final = 60.0
#: A limit of pickups that grows does so by eighths of itself, and to four times itself at most.
PICKUP_FIRST_STEP: Final = 1.125
PICKUP_FACTOR_MAX: Final = 4.0
#: What the servers call a car, where no profile is given.
_PROFILES: Final = {"osrm": "driving", "valhalla": "auto"}

MarketName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?$")]
ClassName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,12}$")]
TagName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,23}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: Some 115 days; dearer, and the sums of costs were no longer exact.
COST_S_MAX: Final = 1e7
CostSeconds = Annotated[float, Field(ge=0, le=COST_S_MAX, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=COST_S_MAX, allow_inf_nan=False)]


class MarketSettings(BaseModel):
    """One market. Where areas overlap, the market that stands first in the list takes the ride."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: MarketName
    center_lat: Latitude | None = None
    center_lon: Longitude | None = None
    radius_m: Annotated[float, Field(gt=0, le=2_000_000, allow_inf_nan=False)] | None = None
    geojson: str | dict[str, Any] | None = Field(default=None, repr=False)

    window_s: float | Literal["adaptive"] = 2.0  # 0: a batch on arrival
    window_s_min: Annotated[float, Field(ge=0, le=WINDOW_S_MAX, allow_inf_nan=False)] = 1.0  # of an adaptive window
    window_s_max: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 30.0
    max_pickup_s: PositiveSeconds = 1800.0
    max_pickup_m: Positive = 15_000.0  # straight line
    pickup_growth: NotNegative = 0.0  # seconds by which max_pickup_s grows for each second of waiting
    pickup_s_most: PositiveSeconds | None = None  # what it grows to at most; unset: twice max_pickup_s
    speed_mps: Positive = 7.0
    detour_factor: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False)] = 1.3
    classes: Annotated[tuple[ClassName, ...], Field(max_length=32)] = ("standard",)
    seats_max: Annotated[int, Field(ge=1, le=200)] = 8
    deadline_s: Positive = 600.0  # of a ride that names none
    deadline_max_s: Positive = 3600.0
    abandon_after_s: Positive = 14_400.0
    candidates_per_ride: Annotated[int, Field(ge=1, le=1000)] = 16
    unmatched_base_s: PositiveSeconds | None = None  # price of leaving a ride unmatched; unset: twice max_pickup_s
    unmatched_growth: NotNegative = 1.0  # seconds by which that price grows for each second of waiting
    solve_s_max: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 1.5
    rides_per_batch_max: Annotated[int, Field(ge=1, le=100_000)] = 5000

    # What a pairing costs beside its way
    downgrades: dict[ClassName, dict[ClassName, CostSeconds]] = Field(default_factory=dict)  # driver's -> ride's -> s
    tags: tuple[TagName, ...] = ()  # what its rides may ask of a vehicle; empty: all tags of the settings
    idle_bonus: NotNegative = 0.0
    idle_bonus_s_max: CostSeconds = 300.0
    refusal_s: CostSeconds = 0.0

    # Whether drivers are asked, and what becomes of their trips
    assign: Literal["auto", "offer"] = "auto"
    offer_ttl_s: Annotated[float, Field(ge=0.1, le=600, allow_inf_nan=False)] = 15.0
    lost_grace_s: CostSeconds = 8.0  # of a lost socket on which an offer was shown
    missed_offers_max: Annotated[int, Field(ge=1, le=1000)] = 3  # in a row; then the driver is paused
    no_show_after_s: CostSeconds = 300.0
    retry_s: CostSeconds = 180.0  # that a ride may search on at least whose driver is taken from it
    chain_within_s: CostSeconds = 0.0  # 0: nobody gets a next ride before the present one has ended
    chain_late_s: CostSeconds = 300.0
    stall_after_s: CostSeconds = 600.0  # 0: nobody is replaced for not coming nearer
    stall_m: NotNegative = 200.0

    # Rides for later
    schedule_lead_s: CostSeconds = 900.0
    schedule_ahead_s: CostSeconds = 604_800.0  # a week; 0: none is taken
    guarantee_s: CostSeconds = 300.0

    # Places where drivers queue
    zones: Annotated[tuple[ZoneSettings, ...], Field(max_length=64)] = ()

    # What the way takes
    travel: Literal["straight", "roads", "osrm", "valhalla"] = "straight"
    travel_url: Annotated[str | None, Field(repr=False)] = None
    travel_links: str | None = None
    travel_timeout_s: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 1.0
    travel_profile: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")] | None = None
    top_speed_mps: Positive = 40.0  # nobody gets ahead faster, as the crow flies

    @field_validator("window_s", mode="before")
    @classmethod
    def _known_window(cls, value: object) -> object:
        if value == ADAPTIVE:
            return value
        number = _number(value)
        if number is None or not 0 <= number <= WINDOW_S_MAX:
            raise ValueError(f'must be a number of seconds from 0 to {WINDOW_S_MAX:g}, or "{ADAPTIVE}"')
        return number

    @field_validator("travel_url", mode="after")
    @classmethod
    def _http_url(cls, url: str | None) -> str | None:
        if url is not None and not _is_http_url(url):
            raise ValueError("must look like http://host:5000 or https://host/path, without a query")
        return url

    @field_validator("travel_links", mode="after")
    @classmethod
    def _readable(cls, path: str | None) -> str | None:
        if path is None:
            return None
        check_readable(path)
        return str(Path(path).absolute())  # a child process may stand elsewhere

    @field_validator("geojson", mode="after")
    @classmethod
    def _read_geojson(cls, value: str | dict[str, Any] | None) -> dict[str, Any] | None:
        return read_geojson(value)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        check_one_area(self.geojson, self.center_lat, self.center_lon, self.radius_m)
        if self.deadline_s > self.deadline_max_s:
            raise ValueError(f"deadline_s ({self.deadline_s:g}) is above deadline_max_s ({self.deadline_max_s:g})")
        if self.unmatched_base_s is not None and self.unmatched_base_s <= self.max_pickup_s:
            raise ValueError(
                f"unmatched_base_s is not above max_pickup_s ({self.max_pickup_s:g}): rides would be left out"
            )
        if not self.classes:
            raise ValueError("classes: at least one is needed")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class is named twice in classes")
        if len(set(self.tags)) != len(self.tags):
            raise ValueError("a tag is named twice in tags")
        check_ids_differ(self.zones)
        self._check_pickup()
        self._check_downgrades()
        self._check_life()
        self._check_window()
        self._check_travel()
        return self

    def _check_pickup(self) -> None:
        self._refuse_unused(self.pickup_growth > 0.0, "pickup_growth", "pickup_s_most")
        if self.pickup_s_most is None:
            return
        most = f"pickup_s_most ({self.pickup_s_most:g})"
        first_s, last_s = self.max_pickup_s * PICKUP_FIRST_STEP, self.max_pickup_s * PICKUP_FACTOR_MAX
        if self.pickup_s_most < first_s:
            raise ValueError(
                f"{most} is below {first_s:g}: max_pickup_s ({self.max_pickup_s:g}) grows by eighths of itself"
            )
        if self.pickup_s_most > last_s:
            raise ValueError(f"{most} is above {last_s:g}, {PICKUP_FACTOR_MAX:g} times max_pickup_s")

    def _check_downgrades(self) -> None:
        for better, lesser in self.downgrades.items():
            for name in (better, *lesser):
                if name not in self.classes:
                    raise ValueError(f"downgrades: {name!r} is none of the classes {', '.join(self.classes)}")
            if better in lesser:
                raise ValueError(f"downgrades: {better} to {better} is no downgrade, a class serves its own anyway")

    def _check_life(self) -> None:
        self._refuse_unused(self.asks_drivers, 'assign = "offer"', "offer_ttl_s")
        self._refuse_unused(self.chain_within_s > 0.0, "chain_within_s", "chain_late_s")
        self._refuse_unused(self.stall_after_s > 0.0, "stall_after_s", "stall_m")

    def _check_window(self) -> None:
        self._refuse_unused(self.is_adaptive, f'window_s = "{ADAPTIVE}"', "window_s_min", "window_s_max")
        if self.is_adaptive and self.window_s_min > self.window_s_max:
            raise ValueError(f"window_s_min ({self.window_s_min:g}) is above window_s_max ({self.window_s_max:g})")

    def _check_travel(self) -> None:
        asks = self.travel in _PROFILES
        if asks and self.travel_url is None:
            raise ValueError(f'travel = "{self.travel}" needs travel_url, the address of that server')
        if self.travel == "roads" and self.travel_links is None:
            raise ValueError('travel = "roads" needs travel_links, the file of the road network')
        server = 'travel = "osrm" or "valhalla"'
        self._refuse_unused(asks, server, "travel_url", "travel_timeout_s", "travel_profile")
        self._refuse_unused(self.travel == "roads", 'travel = "roads"', "travel_links")
        if self.has_ways and self.top_speed_mps < self.speed_mps:
            speeds = f"top_speed_mps ({self.top_speed_mps:g}) is below speed_mps ({self.speed_mps:g})"
            raise ValueError(f"{speeds}: it is the speed that no way exceeds")

    def _refuse_unused(self, is_used: bool, needed: str, *names: str) -> None:
        """Raises ValueError for what was said and takes no effect."""
        # Whether it was said at all is lost on the way to a child process, which is told everything.
        for name in names:
            if not is_used and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} takes no effect without {needed}: set that, or leave {name} out")

    @property
    def is_adaptive(self) -> bool:
        """Whether the window's length follows supply and demand, from `window_s_min` to `window_s_max`."""
        return self.window_s == ADAPTIVE

    @property
    def asks_drivers(self) -> bool:
        """Whether a driver is offered a ride and answers, rather than assigned at once."""
        return self.assign == "offer"

    @property
    def has_ways(self) -> bool:
        """Whether the way costs what roads say rather than the straight line."""
        return self.travel != "straight"

    @property
    def profile(self) -> str:
        """What the travel times' server calls the vehicles; empty where no server is asked."""
        return self.travel_profile or _PROFILES.get(self.travel, "")

    @property
    def geometry(self) -> dict[str, Any] | None:
        """The GeoJSON object, read and checked; None for a circle."""
        return self.geojson if isinstance(self.geojson, dict) else None


def _number(value: object) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_port = parts.port is None or parts.port > 0  # reading it raises ValueError where it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_port and not parts.query + parts.fragment


def check_readable(path: str) -> None:
    """Raises ValueError, saying why, for what is no file that can be opened for reading."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
