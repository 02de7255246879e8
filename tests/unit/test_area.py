"""Areas: which points lie inside, and which descriptions are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geo.area import Area, Bbox, Circle, Polygon, area_from_geojson, boxes_meet, in_box
from geo.distance import EARTH_RADIUS_M
from geo.model import LatLng

DEGREE_M = math.radians(1.0) * EARTH_RADIUS_M


def box(south: float, west: float, north: float, east: float) -> list[LatLng]:
    return [LatLng(south, west), LatLng(south, east), LatLng(north, east), LatLng(north, west)]


def ring(south: float, west: float, north: float, east: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


class TestCircle:
    def test_it_reaches_as_far_as_its_radius(self) -> None:
        circle = Circle(LatLng(40.75, -73.98), 30_000.0)
        assert circle.contains(40.75, -73.98)
        assert circle.contains(40.75 + 29_999 / DEGREE_M, -73.98)
        assert not circle.contains(40.75 + 30_001 / DEGREE_M, -73.98)

    def test_it_crosses_the_antimeridian_and_the_poles(self) -> None:
        fiji = Circle(LatLng(-17.0, 179.9), 50_000.0)
        assert fiji.contains(-17.0, -179.9)
        assert Circle(LatLng(89.9, 0.0), 50_000.0).contains(89.9, 180.0)

    def test_its_box_holds_it(self) -> None:
        south, west, north, east = Circle(LatLng(60.0, 10.0), 10 * DEGREE_M).bbox
        assert (south, north) == pytest.approx((50.0, 70.0))
        assert (west, east) == pytest.approx((10 - 20.32, 10 + 20.32), abs=0.01)  # wider than at its own latitude

    def test_its_box_at_a_pole_goes_all_around(self) -> None:
        assert Circle(LatLng(85.0, 10.0), 10 * DEGREE_M).bbox == pytest.approx((75.0, -180.0, 90.0, 180.0))

    def test_its_box_has_its_west_above_its_east_across_the_antimeridian(self) -> None:
        _, west, _, east = Circle(LatLng(0.0, 179.5), DEGREE_M).bbox
        assert (west, east) == pytest.approx((178.5, -179.5))

    @pytest.mark.parametrize("radius_m", [0.0, -1.0, math.nan, math.inf])
    def test_a_radius_that_is_no_positive_number_is_refused(self, radius_m: float) -> None:
        with pytest.raises(ValueError, match="radius_m"):
            Circle(LatLng(0.0, 0.0), radius_m)

    def test_a_point_off_the_globe_is_refused(self) -> None:
        with pytest.raises(ValueError, match="latitude"):
            Circle(LatLng(0.0, 0.0), 1.0).contains(91.0, 0.0)


class TestPolygon:
    def test_a_hole_is_outside(self) -> None:
        area = Polygon([box(0, 0, 10, 10), box(4, 4, 6, 6)])
        assert area.contains(1.0, 1.0)
        assert not area.contains(5.0, 5.0)
        assert not area.contains(-1.0, 5.0)
        assert area.bbox == (0, 0, 10, 10)

    def test_a_concave_corner_is_outside(self) -> None:
        notch = Polygon([[LatLng(0, 0), LatLng(0, 10), LatLng(10, 10), LatLng(5, 5), LatLng(10, 0)]])
        assert notch.contains(4.0, 5.0)
        assert not notch.contains(8.0, 5.0)

    def test_a_closed_ring_is_the_same_as_an_open_one(self) -> None:
        corners = box(0, 0, 10, 10)
        open_one, closed_one = Polygon([corners]), Polygon([[*corners, corners[0]]])
        for lat in (-1.0, 0.0, 5.0, 10.0, 11.0):
            assert open_one.contains(lat, 5.0) == closed_one.contains(lat, 5.0)

    def test_a_point_on_a_shared_edge_is_in_one_of_two_neighbours(self) -> None:
        west, east, north = Polygon([box(0, 0, 10, 10)]), Polygon([box(0, 10, 10, 20)]), Polygon([box(10, 0, 20, 10)])
        assert west.contains(5.0, 10.0) + east.contains(5.0, 10.0) == 1
        assert west.contains(10.0, 5.0) + north.contains(10.0, 5.0) == 1

    @pytest.mark.parametrize(
        "corners", [box(-20, 175, -10, -175), [LatLng(*p) for p in ((-20, 175), (-20, -175), (-10, 180))]]
    )
    def test_a_ring_may_cross_the_antimeridian(self, corners: list[LatLng]) -> None:
        area = Polygon([corners])
        for lon in (179.0, 180.0, -180.0, -179.0):
            assert area.contains(-17.0, lon), lon
        for lon in (0.0, 170.0, -170.0):
            assert not area.contains(-17.0, lon), lon
        assert area.bbox[1::2] == (175, -175)

    def test_a_hole_across_the_antimeridian_counts_whichever_side_it_is_written_from(self) -> None:
        area = Polygon(
            [box(-20, 170, 0, -170), [LatLng(-12, -178), LatLng(-8, -178), LatLng(-8, 178), LatLng(-12, 178)]]
        )
        assert not area.contains(-10.0, 179.0)
        assert not area.contains(-10.0, -179.0)
        assert area.contains(-10.0, 175.0)
        assert area.contains(-10.0, -175.0)

    def test_a_ring_around_a_pole_is_refused(self) -> None:
        with pytest.raises(ValueError, match="pole"):
            Polygon([[LatLng(80, lon) for lon in (-120.0, 0.0, 120.0)]])

    @pytest.mark.parametrize("corners", [[], [LatLng(0, 0)], [LatLng(0, 0), LatLng(1, 1), LatLng(0, 0)]])
    def test_a_ring_without_area_is_refused(self, corners: list[LatLng]) -> None:
        with pytest.raises(ValueError, match="fewer than three"):
            Polygon([corners])

    def test_no_ring_at_all_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one ring"):
            Polygon([])


class TestGeojson:
    def test_coordinates_are_longitude_first(self) -> None:
        area = area_from_geojson({"type": "Polygon", "coordinates": [ring(40, -75, 41, -73)]})
        assert area.contains(40.5, -74.0)
        assert not area.contains(-74.0, 40.5)

    def test_overlapping_parts_of_a_collection_do_not_cancel_each_other(self) -> None:
        one = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring(0, 0, 10, 10)]}}
        two = {
            "type": "Feature",
            "geometry": {"type": "MultiPolygon", "coordinates": [[ring(5, 5, 15, 15)], [ring(30, 30, 31, 31)]]},
        }
        area = area_from_geojson({"type": "FeatureCollection", "features": [one, two]})
        for lat, lon in ((1, 1), (7, 7), (14, 14), (30.5, 30.5)):
            assert area.contains(lat, lon), (lat, lon)
        assert not area.contains(20.0, 20.0)
        assert area.bbox == (0, 0, 31, 31)

    def test_longitudes_past_the_antimeridian_are_read_as_such(self) -> None:
        area = area_from_geojson({"type": "Polygon", "coordinates": [ring(-20, 175, -10, 185)]})
        assert area.contains(-15.0, -179.0)
        assert area.contains(-15.0, 179.0)
        assert not area.contains(-15.0, 0.0)

    def test_heights_are_ignored(self) -> None:
        corners = [[*position, 12.0] for position in ring(0, 0, 1, 1)]
        assert area_from_geojson({"type": "Polygon", "coordinates": [corners]}).contains(0.5, 0.5)

    @pytest.mark.parametrize(
        ("geojson", "reason"),
        [
            ([], "not a GeoJSON object"),
            ({}, "type None"),
            ({"type": "Point", "coordinates": [0, 0]}, "type 'Point'"),
            ({"type": "Feature", "geometry": None}, r"geojson\.geometry: not a GeoJSON object"),
            ({"type": "FeatureCollection", "features": []}, r"geojson\.features: not a list, or an empty one"),
            ({"type": "Polygon"}, r"geojson\.coordinates: not a list"),
            ({"type": "Polygon", "coordinates": [ring(0, 0, 1, 1)[:-1]]}, r"coordinates\[0\]: a ring has four"),
            ({"type": "Polygon", "coordinates": [[[0, 0]] * 4]}, r"coordinates: ring 0 has fewer than three"),
            (
                {"type": "Polygon", "coordinates": [[[0, 0], [0, 91], [1, 1], [0, 0]]]},
                r"coordinates\[0\]\[1\]: latitude 91",
            ),
            ({"type": "Polygon", "coordinates": [[[0, 0], ["0", 1], [1, 1], [0, 0]]]}, r"\[0\]\[1\]: not a position"),
            ({"type": "Polygon", "coordinates": [[[0, 0], [True, 1], [1, 1], [0, 0]]]}, r"\[0\]\[1\]: not a position"),
            (
                {"type": "Polygon", "coordinates": [[[0, 0], [math.nan, 1], [1, 1], [0, 0]]]},
                r"\[0\]\[1\]: longitude nan",
            ),
            ({"type": "Polygon", "coordinates": [[[0, 0], [1e300, 1], [1, 1], [0, 0]]]}, r"\[0\]\[1\]: longitude"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_place(self, geojson: Any, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            area_from_geojson(geojson)

    def test_endless_nesting_is_refused(self) -> None:
        nested: dict[str, Any] = {"type": "Feature"}
        nested["geometry"] = nested
        with pytest.raises(ValueError, match="not a GeoJSON object"):
            area_from_geojson(nested)


PLAIN = Polygon([box(0, 0, 10, 10), box(4, 4, 6, 6)])
FIJI = Polygon([box(-20, 175, -10, -175)], [PLAIN])
AREAS: list[Area] = [PLAIN, FIJI, Circle(LatLng(-17.0, 179.9), 50_000.0), Circle(LatLng(5.0, 5.0), 300_000.0)]


class TestManyPoints:
    @pytest.mark.parametrize("area", AREAS)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([-20.0, -10.0, 0.0, 4.0, 10.0]) | st.floats(-21, 11),
                st.sampled_from([-180.0, -175.0, 0.0, 6.0, 10.0, 175.0, 180.0]) | st.floats(-180, 180),
            )
        )
    )
    def test_each_is_inside_just_as_it_is_alone(self, area: Area, points: list[tuple[float, float]]) -> None:
        lats, lons = np.array([lat for lat, _ in points]), np.array([lon for _, lon in points])
        assert area.contains_each(lats, lons).tolist() == [area.contains(lat, lon) for lat, lon in points]

    @pytest.mark.parametrize("area", AREAS)
    @given(st.floats(-21, 11), st.floats(-180, 180))
    def test_what_an_area_holds_is_in_its_box(self, area: Area, lat: float, lon: float) -> None:
        lat, lon = round(lat, 6), round(lon, 6)
        if area.contains(lat, lon):
            assert in_box(area.bbox, np.array([lat]), np.array([lon])).all()


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ((0, 0, 10, 10), (10, 10, 20, 20), True),
        ((0, 0, 10, 10), (11, 0, 20, 10), False),
        ((0, 0, 10, 10), (0, 11, 10, 20), False),
        ((0, 170, 10, -170), (0, -175, 10, -160), True),
        ((0, 170, 10, -170), (0, 0, 10, 160), False),
        ((-90, -180, 90, 180), (0, 170, 10, -170), True),
    ],
)
def test_boxes_meet_where_they_share_a_point(one: Bbox, other: Bbox, meet: bool) -> None:
    assert boxes_meet(one, other) is meet
    assert boxes_meet(other, one) is meet
