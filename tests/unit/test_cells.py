"""Cells: names of places, from h3."""

from __future__ import annotations

import pytest

from geo.cells import cell_of, centre_of, edge_m, is_cell, parent_of, resolution_of
from geo.distance import between_m
from geo.model import LatLng

TIMES_SQUARE = LatLng(40.758, -73.9855)


@pytest.mark.parametrize("resolution", [0, 5, 8, 9, 15])
def test_a_point_lies_near_the_centre_of_its_cell(resolution: int) -> None:
    cell = cell_of(TIMES_SQUARE.lat, TIMES_SQUARE.lon, resolution)
    assert is_cell(cell)
    assert resolution_of(cell) == resolution
    assert between_m(TIMES_SQUARE, centre_of(cell)) < 1.5 * edge_m(resolution)


def test_cells_fit_the_records_64_bits_and_lua_never_sees_them_as_numbers() -> None:
    cell = cell_of(TIMES_SQUARE.lat, TIMES_SQUARE.lon, 8)
    assert 2**53 < cell < 2**63


def test_a_parent_is_the_cell_of_its_childs_centre() -> None:
    cell = cell_of(TIMES_SQUARE.lat, TIMES_SQUARE.lon, 9)
    centre = centre_of(parent_of(cell, 6))
    assert cell_of(centre.lat, centre.lon, 6) == parent_of(cell, 6)
    assert parent_of(cell, 9) == cell


@pytest.mark.parametrize("lat", [-90.0, 90.0])
@pytest.mark.parametrize("lon", [-180.0, 0.0, 180.0])
def test_poles_and_the_antimeridian_have_cells(lat: float, lon: float) -> None:
    assert is_cell(cell_of(lat, lon, 8))
    assert cell_of(lat, 180.0, 8) == cell_of(lat, -180.0, 8)


@pytest.mark.parametrize("resolution", [-1, 16])
def test_a_resolution_that_does_not_exist_is_refused(resolution: int) -> None:
    with pytest.raises(ValueError):
        cell_of(0.0, 0.0, resolution)


@pytest.mark.parametrize("name", [0, 7, 2**60, 2**63])
def test_a_number_that_names_no_cell_has_no_centre(name: int) -> None:
    assert not is_cell(name)
    with pytest.raises(ValueError, match="not an H3 cell"):
        centre_of(name)
