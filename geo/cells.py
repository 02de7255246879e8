"""H3 cells: the only module that imports h3.

Cells are 64-bit integers. h3 itself takes latitude 91 and longitude 1000
without a word, so points come from `LatLng`, which checks ranges. Nothing here
is needed for the exactness of a search: the index treats a cell as a name for
a bucket and measures how far the bucket's drivers reach by itself.
"""

from __future__ import annotations

from typing import Final

from h3.api import basic_int as h3

from geo.model import LatLng

RESOLUTION_MAX: Final = 15


def cell_of(lat: float, lon: float, resolution: int) -> int:
    """The cell of a point in degrees. `resolution` is 0 (1,100 km edges) to 15 (0.6 m); 8 has 530 m edges.

    Raises ValueError for a resolution outside of that. Ranges of the point are LatLng's matter.
    """
    return int(h3.latlng_to_cell(lat, lon, resolution))


def is_cell(cell: int) -> bool:
    """Whether the integer names a cell of any resolution."""
    return bool(h3.is_valid_cell(cell))


def resolution_of(cell: int) -> int:
    return int(h3.get_resolution(cell))


def parent_of(cell: int, resolution: int) -> int:
    """The cell of a coarser (or the same) resolution whose descendant this one is.

    Raises ValueError where the resolution is finer than the cell's own.
    """
    return int(h3.cell_to_parent(cell, resolution))


def centre_of(cell: int) -> LatLng:
    """The cell's centre. Raises ValueError where the integer names no cell."""
    if not is_cell(cell):
        raise ValueError(f"{cell:#x} is not an H3 cell")
    lat, lon = h3.cell_to_latlng(cell)
    return LatLng(lat, lon)


def edge_m(resolution: int) -> float:
    """The average edge of a resolution's hexagons, metres; single cells differ by up to a half from it."""
    return float(h3.average_hexagon_edge_length(resolution, unit="m"))
