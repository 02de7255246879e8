"""Areas on the map: a circle around a point, or polygons, and whether they hold a point.

Polygons follow GeoJSON (RFC 7946): edges are straight in latitude and
longitude, and inside is what lies within an odd number of rings, so that holes
are rings as well. An edge takes the shorter way around the globe: a ring may
cross the antimeridian, in either of the usual spellings (180 to -180, or past
180 as in 179, 181). Rings around a pole are refused: cut them at a meridian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo.distance import EARTH_RADIUS_M, between_m, distance_m
from geo.model import LatLng

#: South, west, north, east in degrees; west is above east where the antimeridian lies between (RFC 7946, 5.2).
Bbox = tuple[float, float, float, float]
Ring = Sequence[LatLng]
#: A ring as (longitude, latitude), made continuous: its longitudes may pass 180.
_Line = tuple[tuple[float, float], ...]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

GEOJSON_DEPTH_MAX: Final = 8
_GLOBE: Final = (-90.0, -180.0, 90.0, 180.0)


@dataclass(frozen=True, slots=True)
class Circle:
    """Everything within `radius_m` of the centre along the great circle, the rim included.

    Raises ValueError for a radius that is not a positive number.
    """

    center: LatLng
    radius_m: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.radius_m) and self.radius_m > 0.0):
            raise ValueError(f"radius_m is {self.radius_m!r}, not a positive number of metres")

    def contains(self, lat: float, lon: float) -> bool:
        return between_m(self.center, LatLng(lat, lon)) <= self.radius_m

    def contains_each(self, lats: Floats, lons: Floats) -> Bools:
        """The same of many points on earth at once, shape (points,)."""
        return distance_m(self.center.lat, self.center.lon, lats, lons) <= self.radius_m

    @property
    def bbox(self) -> Bbox:
        reach = self.radius_m / EARTH_RADIUS_M
        dlat, lat, lon = math.degrees(reach), self.center.lat, self.center.lon
        if lat + dlat >= 90.0 or lat - dlat <= -90.0:
            return max(lat - dlat, -90.0), -180.0, min(lat + dlat, 90.0), 180.0
        dlon = math.degrees(math.asin(min(math.sin(reach) / math.cos(math.radians(lat)), 1.0)))
        return lat - dlat, _wrapped(lon - dlon), lat + dlat, _wrapped(lon + dlon)


@dataclass(frozen=True, slots=True)
class Polygon:
    """What lies within an odd number of the rings, or in one of the `others`.

    A ring is at least three points, closed or not. A point on an edge is inside of exactly one of two
    polygons that share the edge. Raises ValueError, naming the ring, where one encloses no area.
    """

    rings: Sequence[Ring]
    others: Sequence[Polygon] = ()
    _lines: tuple[_Line, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.rings:
            raise ValueError("a polygon has at least one ring")
        object.__setattr__(self, "rings", tuple(tuple(ring) for ring in self.rings))
        object.__setattr__(self, "others", tuple(self.others))
        lines = (_continuous([(p.lon, p.lat) for p in ring], f"ring {n}") for n, ring in enumerate(self.rings))
        object.__setattr__(self, "_lines", tuple(lines))

    def contains(self, lat: float, lon: float) -> bool:
        point = LatLng(lat, lon)
        is_inside = sum(_crossings(line, point.lat, point.lon) for line in self._lines) % 2 == 1
        return is_inside or any(other.contains(lat, lon) for other in self.others)

    def contains_each(self, lats: Floats, lons: Floats) -> Bools:
        """The same of many points on earth at once, shape (points,)."""
        crossings = np.zeros(len(lats), dtype=np.int64)
        for line in self._lines:
            crossings += _crossings_each(line, lats, lons)
        is_inside: Bools = crossings % 2 == 1
        for other in self.others:
            is_inside |= other.contains_each(lats, lons)
        return is_inside

    @property
    def bbox(self) -> Bbox:
        """The box around all rings, the others' included; the narrowest one around the globe."""
        lines = [line for polygon in (self, *self.others) for line in polygon._lines]
        lats = [lat for line in lines for _, lat in line]
        spans = sorted((min(lon for lon, _ in line) % 360.0, _width(line)) for line in lines)
        west, east = _narrowest(spans)
        return (min(lats), west, max(lats), east)


Area = Circle | Polygon


def area_from_geojson(geojson: Mapping[str, Any]) -> Polygon:
    """The area of a GeoJSON Polygon, MultiPolygon, Feature or FeatureCollection of these.

    Raises ValueError saying where in the object what is wrong.
    """
    polygons = list(_polygons(geojson, "geojson", GEOJSON_DEPTH_MAX))
    if not polygons:
        raise ValueError("geojson: holds no polygon")
    return Polygon(polygons[0].rings, polygons[1:])


def _polygons(node: Any, at: str, depth: int) -> Iterator[Polygon]:
    if not isinstance(node, Mapping) or depth == 0:
        raise ValueError(f"{at}: not a GeoJSON object")
    match node.get("type"):
        case "FeatureCollection":
            for n, feature in enumerate(_items(node.get("features"), f"{at}.features")):
                yield from _polygons(feature, f"{at}.features[{n}]", depth - 1)
        case "Feature":
            yield from _polygons(node.get("geometry"), f"{at}.geometry", depth - 1)
        case "Polygon":
            yield _polygon(node.get("coordinates"), f"{at}.coordinates")
        case "MultiPolygon":
            for n, rings in enumerate(_items(node.get("coordinates"), f"{at}.coordinates")):
                yield _polygon(rings, f"{at}.coordinates[{n}]")
        case other:
            raise ValueError(f"{at}: type {other!r} is no Polygon, MultiPolygon, Feature or FeatureCollection")


def _polygon(rings: Any, at: str) -> Polygon:
    try:
        return Polygon([_ring(ring, f"{at}[{n}]") for n, ring in enumerate(_items(rings, at))])
    except _RingError as error:
        raise ValueError(f"{at}: {error}") from None


def _ring(positions: Any, at: str) -> list[LatLng]:
    ring = [_position(position, f"{at}[{n}]") for n, position in enumerate(_items(positions, at))]
    if len(ring) < 4 or ring[0] != ring[-1]:
        raise ValueError(f"{at}: a ring has four positions or more, and its last is its first")
    return ring


def _position(position: Any, at: str) -> LatLng:
    numbers = list(_items(position, at))[:2]
    if len(numbers) < 2 or not all(type(each) in (int, float) for each in numbers):
        raise ValueError(f"{at}: not a position [longitude, latitude]")
    lon, lat = (float(each) for each in numbers)
    try:
        return LatLng(lat, _wrapped(lon) if 180.0 < abs(lon) <= 360.0 else lon)
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from None


def _items(value: Any, at: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{at}: not a list, or an empty one")
    return value


class _RingError(ValueError):
    """A ring that encloses no area."""


def _continuous(ring: Sequence[tuple[float, float]], name: str) -> _Line:
    """The ring with its longitudes made continuous, each edge the shorter way, open at its end."""
    if len(ring) > 1 and ring[0] == ring[-1]:
        ring = ring[:-1]
    if len(set(ring)) < 3:
        raise _RingError(f"{name} has fewer than three different points")
    line = [ring[0]]
    for lon, lat in (*ring[1:], ring[0]):
        before = line[-1][0]
        line.append((before + math.remainder(lon - before, 360.0), lat))
    if abs(line[-1][0] - line[0][0]) > 180.0:
        raise _RingError(f"{name} goes around a pole: cut it at a meridian")
    return tuple(line[:-1])


def _crossings(line: _Line, lat: float, lon: float) -> int:
    """How many edges lie east of the point."""
    west = min(each for each, _ in line)
    while lon < west:  # the ring is narrower than a turn around the globe, so one turn is the only one
        lon += 360.0
    while lon >= west + 360.0:
        lon -= 360.0
    crossings = 0
    for (lon1, lat1), (lon2, lat2) in zip(line, (*line[1:], line[0]), strict=True):
        if (lat1 > lat) != (lat2 > lat) and lon < lon1 + (lat - lat1) / (lat2 - lat1) * (lon2 - lon1):
            crossings += 1
    return crossings


def _crossings_each(line: _Line, lats: Floats, lons: Floats) -> npt.NDArray[np.int64]:
    """The same of many points, edge by edge."""
    west = min(each for each, _ in line)
    while (before := lons < west).any():
        lons = np.where(before, lons + 360.0, lons)
    while (beyond := lons >= west + 360.0).any():
        lons = np.where(beyond, lons - 360.0, lons)
    crossings = np.zeros(len(lats), dtype=np.int64)
    for (lon1, lat1), (lon2, lat2) in zip(line, (*line[1:], line[0]), strict=True):
        if lat1 != lat2:
            spans = (lat1 > lats) != (lat2 > lats)
            crossings += spans & (lons < lon1 + (lats - lat1) / (lat2 - lat1) * (lon2 - lon1))
    return crossings


def in_box(box: Bbox, lats: Floats, lons: Floats) -> Bools:
    """Which points lie within the box, its rim included; shape (points,)."""
    south, west, north, east = box
    beside = (lons >= west) & (lons <= east) if west <= east else (lons >= west) | (lons <= east)
    return beside & (lats >= south) & (lats <= north)


def boxes_meet(one: Bbox, other: Bbox) -> bool:
    """Whether two boxes have a point in common."""
    if one[0] > other[2] or other[0] > one[2]:
        return False
    return (other[1] - one[1]) % 360.0 <= _span(one) or (one[1] - other[1]) % 360.0 <= _span(other)


def _span(box: Bbox) -> float:
    """How many degrees of longitude it spans."""
    return box[3] - box[1] if box[3] >= box[1] else box[3] - box[1] + 360.0


def _width(line: _Line) -> float:
    return max(lon for lon, _ in line) - min(lon for lon, _ in line)


def _narrowest(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """West and east of the narrowest stretch that holds all of these (west in [0, 360), width)."""
    best = (_GLOBE[1], 360.0)
    for first, _ in spans:
        width = max((west - first) % 360.0 + width for west, width in spans)
        if width < best[1]:
            best = (first, width)
    return (best[0], best[0] + best[1]) if best[1] >= 360.0 else (_wrapped(best[0]), _wrapped(sum(best)))


def _wrapped(lon: float) -> float:
    """A longitude in [-180, 180]."""
    return lon if -180.0 <= lon <= 180.0 else math.remainder(lon, 360.0)
