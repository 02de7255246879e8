"""What an operator says about a market: where it is, and how its rides are matched.

A market's area is a circle (`center_lat`, `center_lon`, `radius_m`) or a GeoJSON
polygon (`geojson`: a file's path or the object itself). This module checks what
was said and knows nothing of how it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

#: One closed line of (longitude, latitude), the order of GeoJSON.
Ring = tuple[tuple[float, float], ...]

GEOJSON_BYTES_MAX = 4 * 1024 * 1024

MarketName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?$")]
ClassName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,12}$")]
Latitude = Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)]
Longitude = Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MarketSettings(BaseModel):
    """One market. Where areas overlap, the market that stands first in the list takes the ride."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: MarketName
    center_lat: Latitude | None = None
    center_lon: Longitude | None = None
    radius_m: Annotated[float, Field(gt=0, le=2_000_000, allow_inf_nan=False)] | None = None
    geojson: str | dict[str, Any] | None = Field(default=None, repr=False)

    window_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 2.0  # 0: a batch on arrival
    max_pickup_s: Positive = 1800.0
    max_pickup_m: Positive = 15_000.0  # straight line
    speed_mps: Positive = 7.0
    detour_factor: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False)] = 1.3
    classes: Annotated[tuple[ClassName, ...], Field(max_length=32)] = ("standard",)
    seats_max: Annotated[int, Field(ge=1, le=200)] = 8
    deadline_s: Positive = 600.0  # of a ride that names none
    deadline_max_s: Positive = 3600.0
    abandon_after_s: Positive = 14_400.0
    candidates_per_ride: Annotated[int, Field(ge=1, le=1000)] = 16
    unmatched_base_s: Positive | None = None  # price of leaving a ride unmatched; unset: twice max_pickup_s
    unmatched_growth: NotNegative = 1.0  # seconds by which that price grows for each second of waiting
    solve_s_max: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 1.5
    rides_per_batch_max: Annotated[int, Field(ge=1, le=100_000)] = 5000

    @field_validator("geojson", mode="after")
    @classmethod
    def _read_geojson(cls, value: str | dict[str, Any] | None) -> dict[str, Any] | None:
        geometry = read_geojson_file(value) if isinstance(value, str) else value
        if geometry is not None:
            rings_of(geometry)
        return geometry

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        circle = (self.center_lat, self.center_lon, self.radius_m)
        if self.geojson is not None and any(part is not None for part in circle):
            raise ValueError("give either geojson or center_lat, center_lon and radius_m, not both")
        if self.geojson is None and any(part is None for part in circle):
            raise ValueError("the area is missing: give center_lat, center_lon and radius_m, or geojson")
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
        return self

    @property
    def geometry(self) -> dict[str, Any] | None:
        """The GeoJSON object, read and checked; None for a circle."""
        return self.geojson if isinstance(self.geojson, dict) else None


def read_geojson_file(path: str) -> dict[str, Any]:
    """The GeoJSON object in a file. Raises ValueError with what is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"cannot read {path}: {reason}") from None
    if len(text) > GEOJSON_BYTES_MAX:
        raise ValueError(f"{path} is larger than {GEOJSON_BYTES_MAX // 1024 // 1024} MiB")
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a GeoJSON object")
    return value


def rings_of(geojson: Mapping[str, Any]) -> tuple[Ring, ...]:
    """All rings of a Polygon, MultiPolygon, Feature or FeatureCollection (RFC 7946). Raises ValueError."""
    kind = geojson.get("type")
    if kind == "FeatureCollection":
        features = geojson.get("features")
        if not isinstance(features, list) or not features:
            raise ValueError("the FeatureCollection has no features")
        return tuple(ring for feature in features for ring in rings_of(_object(feature)))
    if kind == "Feature":
        return rings_of(_object(geojson.get("geometry")))
    if kind == "Polygon":
        return _polygon(geojson.get("coordinates"))
    if kind == "MultiPolygon":
        return tuple(ring for polygon in _list(geojson.get("coordinates")) for ring in _polygon(polygon))
    raise ValueError(f"an area is a Polygon or a MultiPolygon, not {kind!r}")


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a GeoJSON object is missing")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError("coordinates are missing or empty")
    return value


def _polygon(coordinates: object) -> tuple[Ring, ...]:
    return tuple(_ring(ring) for ring in _list(coordinates))


def _ring(points: object) -> Ring:
    ring = tuple(_point(point) for point in _list(points))
    if len(ring) < 4 or ring[0] != ring[-1]:
        raise ValueError("a ring needs at least four points and ends where it starts")
    return ring


def _point(point: object) -> tuple[float, float]:
    if not isinstance(point, list) or len(point) < 2:
        raise ValueError(f"{point!r} is no [longitude, latitude]")
    lon, lat = point[:2]
    for value, limit, name in ((lon, 360.0, "longitude"), (lat, 90.0, "latitude")):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or abs(value) > limit:
            raise ValueError(f"{value!r} is no {name}: GeoJSON writes [longitude, latitude]")
    return float(lon), float(lat)
