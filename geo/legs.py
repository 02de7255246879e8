"""Legs: pairs of places whose travel time is asked for, what comes back, and which tables ask for them all.

A provider answers tables, all of some origins by all of some targets, while
what is wanted are pairs; here they are covered by tables within what a server
takes. Pure: knows no server, clock or loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

#: A table of up to so many cells is cheaper to answer than a second question ...
_CELLS_FREE: Final = 2_500
#: ... and a larger one has at most so many cells for each pair that was asked for.
_CELLS_A_PAIR_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Legs:
    """Pairs asked for: pair e goes from place `origin[e]` (a driver) to place `target[e]` (a pickup).

    Places are degrees in columns (origins,) and (targets,), pairs positions in these, (pairs,). Places may be
    the same. Raises ValueError for columns of unequal length, places not on earth and pairs of no such place.
    """

    origin_lat: Floats
    origin_lon: Floats
    target_lat: Floats
    target_lon: Floats
    origin: Ints
    target: Ints

    def __post_init__(self) -> None:
        check_places(self.origin_lat, self.origin_lon)
        check_places(self.target_lat, self.target_lon)
        check_pairs(self.origin, len(self.origin_lat), self.target, len(self.target_lat))

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.origin)


def check_places(lat: Floats, lon: Floats) -> None:
    """Raises ValueError unless these are two columns of equal length that hold places on earth, in degrees."""
    # A comparison with NaN is false, so that NaN is no place either.
    if lat.ndim != 1 or lat.shape != lon.shape or not ((np.abs(lat) <= 90.0) & (np.abs(lon) <= 180.0)).all():
        raise ValueError("places are two columns of equal length, in [-90, 90] and [-180, 180]")


def check_pairs(origin: Ints, origins: int, target: Ints, targets: int) -> None:
    """Raises ValueError unless these are two columns of equal length that hold positions among so many places."""
    if (
        origin.ndim != 1
        or origin.shape != target.shape
        or origin.dtype.kind not in "iu"
        or target.dtype.kind not in "iu"
    ):
        raise ValueError("pairs are two columns of whole numbers, of equal length")
    for place, places in ((origin, origins), (target, targets)):
        if len(place) and not (place.min() >= 0 and place.max() < places):
            raise ValueError(f"a pair names a place that is not among the {places}")


@dataclass(frozen=True, slots=True)
class Times:
    """Travel times in seconds for each pair, (pairs,); inf where the provider knows no way.

    `estimated[e]`: a straight line stands in for the provider's answer. `fallback` says why; None when none does.
    """

    seconds: Floats
    estimated: Bools
    fallback: str | None


@dataclass(frozen=True, slots=True)
class TableLimits:
    """What a server takes in one question: `places` are origins and targets together, `cells` their product."""

    places: int
    cells: int

    def __post_init__(self) -> None:
        if self.places < 2 or self.cells < 1:
            raise ValueError("a table has two places or more, and at least one cell")

    def admit(self, origins: int, targets: int, pairs: int) -> bool:
        cells = origins * targets
        return (
            origins + targets <= self.places
            and cells <= self.cells
            and cells <= max(_CELLS_FREE, _CELLS_A_PAIR_MAX * pairs)
        )


@dataclass(frozen=True, slots=True)
class Table:
    """One question: all of `origins` by all of `targets` (positions in the legs' columns).

    The cell (`row[e]`, `column[e]`) answers the legs' pair `pair[e]`.
    """

    origins: Ints
    targets: Ints
    pair: Ints
    row: Ints
    column: Ints


def tables_of(origin: Ints, target: Ints, limits: TableLimits) -> list[Table]:
    """Tables within the limits that hold each pair once.

    The pairs of one target stay together, targets come in the order given, and each table takes as many as it
    can: what a server does grows with the places it is told, so that neighbours in this order that share their
    origins make it cheap.
    """
    tables: list[Table] = []
    held: list[Ints] = []
    origins: set[int] = set()
    targets: set[int] = set()
    for pairs in _by_target(target, min(limits.places - 1, limits.cells)):
        more, one = set(origin[pairs].tolist()), {int(target[pairs[0]])}
        count = sum(map(len, held)) + len(pairs)
        if held and not limits.admit(len(origins) + len(more - origins), len(targets | one), count):
            tables.append(_table(origin, target, held))
            held, origins, targets = [], set(), set()
        held.append(pairs)
        origins |= more
        targets |= one
    return [*tables, _table(origin, target, held)] if held else []


def _by_target(target: Ints, most: int) -> Iterator[Ints]:
    """Positions of pairs that share a target, at most so many at once; targets in order of first appearance."""
    _, first, group = np.unique(target, return_index=True, return_inverse=True)
    rank = first[group]
    order = np.argsort(rank, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(rank[order])) + 1):
        for begin in range(0, len(pairs), most):
            yield pairs[begin : begin + most]


def _table(origin: Ints, target: Ints, held: list[Ints]) -> Table:
    pair = np.concatenate(held)
    origins, row = np.unique(origin[pair], return_inverse=True)
    targets, column = np.unique(target[pair], return_inverse=True)
    return Table(origins, targets, pair, row, column)
