"""Distances: the great circle, against known values and geodesics on the ellipsoid."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from geo.distance import EARTH_RADIUS_M, between_m, chord_m, distance_m, sphere_points_m
from geo.model import LatLng

#: By how much the mean sphere errs from WGS84's geodesics at most.
SPHERE_ERROR = 0.006


def test_the_quarter_and_the_half_of_the_globe_are_what_the_radius_says() -> None:
    quarter = math.pi / 2 * EARTH_RADIUS_M
    found = distance_m(0.0, 0.0, [0.0, 90.0, 0.0, 0.0], [90.0, 0.0, 180.0, -180.0])
    assert found == pytest.approx([quarter, quarter, 2 * quarter, 2 * quarter], rel=1e-12)


def test_a_degree_of_longitude_shrinks_with_the_latitude() -> None:
    degree = math.radians(1.0) * EARTH_RADIUS_M
    assert distance_m(0.0, 0.0, 0.0, 1.0) == pytest.approx(degree, rel=1e-12)
    assert distance_m(60.0, 0.0, 60.0, 1.0) == pytest.approx(0.5 * degree, rel=1e-4)


def test_points_a_millimetre_apart_keep_their_distance() -> None:
    millimetre = math.degrees(0.001 / EARTH_RADIUS_M)
    assert distance_m(40.7, -74.0, 40.7 + millimetre, -74.0) == pytest.approx(0.001, rel=1e-5)


def test_a_point_is_nowhere_but_at_itself() -> None:
    lats, lons = np.array([0.0, 40.7, 90.0, -90.0]), np.array([180.0, -74.0, 0.0, 12.3])
    assert (distance_m(lats, lons, lats, lons) == 0.0).all()


def test_the_antimeridian_separates_nothing() -> None:
    assert distance_m(10.0, 180.0, 10.0, -180.0) == pytest.approx(0.0, abs=1e-6)
    assert distance_m(10.0, 179.99, 10.0, -179.99) == pytest.approx(distance_m(10.0, 0.0, 10.0, 0.02), rel=1e-9)


def test_all_meridians_meet_at_a_pole() -> None:
    assert distance_m(90.0, 0.0, 90.0, 137.0) == pytest.approx(0.0, abs=1e-6)


def test_arguments_broadcast() -> None:
    found = distance_m(np.zeros((3, 1)), np.zeros((3, 1)), np.zeros(4), np.arange(4.0))
    assert found.shape == (3, 4)
    assert (found[0] == found[2]).all()


def test_a_pairs_distance_does_not_depend_on_its_neighbours() -> None:
    """The index relies on it: one driver, one distance, in whichever call."""
    rng = np.random.default_rng(7)
    lats, lons = rng.uniform(-90, 90, 257), rng.uniform(-180, 180, 257)
    together = distance_m(40.0, -74.0, lats, lons)
    alone = [float(distance_m(40.0, -74.0, lat, lon)) for lat, lon in zip(lats, lons, strict=True)]
    assert together.tolist() == alone
    assert together[::3].tolist() == distance_m(np.full(86, 40.0), np.full(86, -74.0), lats[::3], lons[::3]).tolist()


def test_one_pair_and_many_agree() -> None:
    a, b = LatLng(40.7, -74.0), LatLng(-33.9, 151.2)
    assert between_m(a, b) == pytest.approx(float(distance_m(a.lat, a.lon, b.lat, b.lon)), rel=1e-14)
    assert between_m(LatLng(1.0, 2.0), LatLng(-1.0, -178.0)) == pytest.approx(math.pi * EARTH_RADIUS_M, rel=1e-9)


def test_chords_are_those_of_the_points_on_the_sphere() -> None:
    lats, lons = [40.7, -33.9, 90.0], [-74.0, 151.2, 0.0]
    points = sphere_points_m(lats, lons)
    assert np.linalg.norm(points, axis=1) == pytest.approx([EARTH_RADIUS_M] * 3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        arc = between_m(LatLng(lats[i], lons[i]), LatLng(lats[j], lons[j]))
        assert chord_m(arc) == pytest.approx(float(np.linalg.norm(points[i] - points[j])), rel=1e-12)
    assert chord_m(math.inf) == 2.0 * EARTH_RADIUS_M


@pytest.mark.recorded
def test_the_sphere_errs_from_recorded_geodesics_by_less_than_it_may() -> None:
    folder = Path(os.environ.get("HEXHAIL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    file = folder / "geodesics_100.dat"
    if not file.exists():
        pytest.skip(f"the recorded geodesics are not at {file}; HEXHAIL_TEST_DATA names the folder")
    table = np.loadtxt(file)
    assert table.shape == (100, 10)
    lat1, lon1, lat2, lon2, recorded_m = table[:, [0, 1, 3, 4, 6]].T
    found = distance_m(lat1, lon1, lat2, lon2)
    assert np.abs(found / recorded_m - 1.0).max() < SPHERE_ERROR
    assert np.abs(found / recorded_m - 1.0).max() > SPHERE_ERROR / 10, "a sphere cannot be that close: wrong columns?"
