"""Great-circle distances in metres.

The earth is taken as a sphere of its mean radius R1 = (2a + b) / 3 of WGS84,
which errs from the ellipsoid's geodesic by up to 0.56%. The formula is the
haversine in its atan2 form (R. W. Sinnott, "Virtues of the Haversine", Sky and
Telescope 68, 1984): it keeps its precision for points that are metres apart and
stays defined at antipodes, where it errs by some centimetres.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from geo.model import LatLng

EARTH_RADIUS_M: Final = 6_371_008.8

Floats = npt.NDArray[np.float64]


def distance_m(lat1: npt.ArrayLike, lon1: npt.ArrayLike, lat2: npt.ArrayLike, lon2: npt.ArrayLike) -> Floats:
    """Great-circle distances between points in degrees; the arguments broadcast against each other.

    The answer for a pair does not depend on what else is in the arrays.
    """
    phi1, phi2 = np.radians(lat1), np.radians(lat2)
    half_dphi = np.sin(0.5 * np.subtract(phi2, phi1))
    half_dlambda = np.sin(np.radians(0.5 * np.subtract(lon2, lon1)))
    a = half_dphi * half_dphi + np.cos(phi1) * np.cos(phi2) * half_dlambda * half_dlambda
    a = np.minimum(a, 1.0)  # rounding may pass 1 at antipodes
    return np.asarray(2.0 * EARTH_RADIUS_M * np.arctan2(np.sqrt(a), np.sqrt(1.0 - a)))


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


def sphere_point_m(point: LatLng) -> Floats:
    """One point as a place on the sphere: shape (3,)."""
    phi, lam = math.radians(point.lat), math.radians(point.lon)
    ring = EARTH_RADIUS_M * math.cos(phi)
    return np.array((ring * math.cos(lam), ring * math.sin(lam), EARTH_RADIUS_M * math.sin(phi)))


def chord_m(arc_m: float) -> float:
    """How long the straight line through the earth is between points that are `arc_m` apart on its surface."""
    return 2.0 * EARTH_RADIUS_M * math.sin(min(max(arc_m, 0.0) / (2.0 * EARTH_RADIUS_M), math.pi / 2.0))
