"""Where drivers are: a tree of balls, each measured from the drivers within.

A node has up to `ENTRIES` entries: a leaf drivers, an inner node other nodes. Every
node is a ball: a centre and a radius that no place under it exceeds (D. A. White,
R. Jain, "Similarity indexing with the SS-tree", ICDE 1996). All leaves are equally
deep. Balls are measured from places on the sphere, so nothing that is said of one
depends on cells, poles, the antimeridian or on how the tree came to be; how it came
to be decides the speed alone. geo.branches changes the tree, geo.pack makes it anew, geo.search reads it.

Places are whole `UNITS` of a metre (8 mm) in the earth's three dimensions: exact
integers, off by less than one unit, beside the coordinates as they were told.

A driver's *row* is its leaf times ENTRIES plus its entry. Node 0 is none: in its
place stand ROOT, FREE, USED and LEFT. Columns grow between calls of compiled code,
which asks for it (`branches.has_room`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from geo.branches import MARGIN, plant
from geo.layout import ENTRIES, FIX_MS, INTEGERS, LEAF_FILL, NODE_COLUMNS, NUMBERS, USED, WHAT, WHO
from geo.pack import pack

Array = npt.NDArray[Any]


class Tree:
    """The columns, by node. Pure: no time, no ids."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everyone."""
        self._make(2 * MARGIN)
        plant(self.node, self.told)

    def _make(self, nodes: int) -> None:
        self.node = np.zeros((nodes, NODE_COLUMNS), dtype=np.int32)
        self.block = np.zeros((nodes, ENTRIES, INTEGERS), dtype=np.int32)
        self.told = np.zeros((nodes, ENTRIES, NUMBERS), dtype=np.float64)
        self.ahead = np.zeros((nodes, 2), dtype=np.float64)  # what a search has still to look at

    def grow(self) -> None:
        """Room for a quarter more nodes, and some at least."""
        old: tuple[Array, ...] = (self.node, self.block, self.told)
        self._make(len(self.node) + len(self.node) // 4 + MARGIN)
        larger: tuple[Array, ...] = (self.node, self.block, self.told)
        for column, into in zip(old, larger, strict=True):
            into[: len(column)] = column

    def pack(self, where: Array, drivers: int) -> None:
        """Makes the tree anew, in columns that just hold it: as small and as quick as it gets."""
        old = self.node, self.block, self.told
        # Where it does not come out even, a node above the leaves has ten of them, not all full.
        leaves = drivers // LEAF_FILL
        self._make(leaves + leaves // 4 + 2 * MARGIN)
        pack(*old, where, drivers, self.node, self.block, self.told)

    @property
    def nodes(self) -> int:
        """How many nodes were ever in use at once, node 0 included."""
        return int(self.node[0, USED])

    @property
    def dates_ms(self) -> Array:
        """The date of each row; minus infinity where no driver is."""
        return self.told[: self.nodes].reshape(-1, NUMBERS)[:, FIX_MS]

    @property
    def kinds(self) -> Array:
        """The kind of each row."""
        return self.block[: self.nodes].reshape(-1, INTEGERS)[:, WHAT]

    @property
    def slots(self) -> Array:
        """The slot of each row."""
        return self.block[: self.nodes].reshape(-1, INTEGERS)[:, WHO]

    @property
    def points(self) -> Array:
        """Latitude and longitude of each row, degrees."""
        return self.told[: self.nodes].reshape(-1, NUMBERS)[:, :FIX_MS]
