"""Great-circle distances in metres. Compiled.

The earth is taken as a sphere of its mean radius R1 = (2a + b) / 3 of WGS84,
which errs from the ellipsoid's geodesic by up to 0.56%. The formula is the
haversine in its atan2 form (R. W. Sinnott, "Virtues of the Haversine", Sky and
Telescope 68, 1984): it keeps its precision for points that are metres apart and
stays defined at antipodes, where it errs by some centimetres.

`arc_m` is that formula for one pair inside other compiled code. `distance_m` runs
it over arrays, so that a search of the index and a column of distances agree to
the last bit: numpy's own sines differ from the C library's in that.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo.compiled import compiled, read_only
from geo.model import LatLng

EARTH_RADIUS_M: Final = 6_371_008.8

Floats = npt.NDArray[np.float64]


@compiled
def arc_m(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """The great-circle distance of one pair in degrees."""
    phi1, phi2 = math.radians(lat1), math.radians(lat2)
    half_dphi = math.sin(0.5 * (phi2 - phi1))
    half_dlambda = math.sin(math.radians(0.5 * (lon2 - lon1)))
    a = half_dphi * half_dphi + math.cos(phi1) * math.cos(phi2) * half_dlambda * half_dlambda
    a = min(a, 1.0)  # rounding may pass 1 at antipodes
    return 2.0 * EARTH_RADIUS_M * math.atan2(math.sqrt(a), math.sqrt(1.0 - a))


@compiled
def chord_m(arc_m: float) -> float:
    """How long the straight line through the earth is between points that are `arc_m` apart on its surface."""
    return 2.0 * EARTH_RADIUS_M * math.sin(min(max(arc_m, 0.0) / (2.0 * EARTH_RADIUS_M), math.pi / 2.0))


@compiled
def _arcs_m(lat1: Any, lon1: Any, lat2: Any, lon2: Any, pairs: int) -> Any:
    """Of columns with one entry a pair, or one for all pairs."""
    away_m = np.empty(pairs)
    for i in range(pairs):
        a, b = lat1[i if len(lat1) > 1 else 0], lon1[i if len(lon1) > 1 else 0]
        away_m[i] = arc_m(a, b, lat2[i if len(lat2) > 1 else 0], lon2[i if len(lon2) > 1 else 0])
    return away_m


def distance_m(lat1: npt.ArrayLike, lon1: npt.ArrayLike, lat2: npt.ArrayLike, lon2: npt.ArrayLike) -> Floats:
    """Great-circle distances between points in degrees; the arguments broadcast against each other.

    The answer for a pair does not depend on what else is in the arrays.
    """
    columns = [np.asarray(each, dtype=np.float64) for each in (lat1, lon1, lat2, lon2)]
    shape = np.broadcast(*columns).shape
    flat = [
        read_only((each if each.size == 1 or each.shape == shape else np.broadcast_to(each, shape)).ravel())
        for each in columns
    ]
    away_m: Floats = _arcs_m(*flat, math.prod(shape)).reshape(shape)
    return away_m


def between_m(a: LatLng, b: LatLng) -> float:
    """The great-circle distance between two points; the same formula for a single pair."""
    phi1, phi2 = math.radians(a.lat), math.radians(b.lat)
    half_dphi = math.sin(0.5 * (phi2 - phi1))
    half_dlambda = math.sin(math.radians(0.5 * (b.lon - a.lon)))
    h = min(1.0, half_dphi * half_dphi + math.cos(phi1) * math.cos(phi2) * half_dlambda * half_dlambda)
    return 2.0 * EARTH_RADIUS_M * math.atan2(math.sqrt(h), math.sqrt(1.0 - h))


def sphere_points_m(lats: npt.ArrayLike, lons: npt.ArrayLike) -> Floats:
    """Points in degrees as places on the sphere: shape (n, 3), metres from the earth's centre."""
    phi, lam = np.radians(lats), np.radians(lons)
    ring = EARTH_RADIUS_M * np.cos(phi)
    return np.stack((ring * np.cos(lam), ring * np.sin(lam), EARTH_RADIUS_M * np.sin(phi)), axis=-1)
