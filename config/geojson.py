"""How an operator says where an area is: a circle, or GeoJSON as a file's path or the object itself (RFC 7946)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

#: One closed line of (longitude, latitude), the order of GeoJSON.
Ring = tuple[tuple[float, float], ...]

GEOJSON_BYTES_MAX = 4 * 1024 * 1024

Latitude = Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)]
Longitude = Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)]


def check_one_area(geojson: object, center_lat: float | None, center_lon: float | None, radius_m: float | None) -> None:
    """Raises ValueError where there is no area, or two ways to say it."""
    circle = (center_lat, center_lon, radius_m)
    if geojson is not None and any(part is not None for part in circle):
        raise ValueError("give either geojson or center_lat, center_lon and radius_m, not both")
    if geojson is None and any(part is None for part in circle):
        raise ValueError("the area is missing: give center_lat, center_lon and radius_m, or geojson")


def read_geojson(value: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """The object that was given, or stands in the file of this path. Raises ValueError with what is wrong with it."""
    geometry = read_geojson_file(value) if isinstance(value, str) else value
    if geometry is not None:
        rings_of(geometry)
    return geometry


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
