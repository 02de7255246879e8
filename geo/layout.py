"""How the columns of the tree of drivers are laid out (geo.tree): names of places in them."""

from __future__ import annotations

from typing import Final

from geo.distance import EARTH_RADIUS_M

#: Entries a node has at most: what a search looks at in one go.
ENTRIES: Final = 32
#: A node with fewer joins a neighbour, where both then have no more than JOINED_MAX.
ENTRIES_MIN: Final = 10
JOINED_MAX: Final = 26
#: How many entries leaves, and inner nodes, are given when the tree is made anew.
LEAF_FILL: Final = 24
INNER_FILL: Final = 20

#: Places are integers in this fraction of a metre: the earth's diameter stays below 2**31 of them.
UNITS: Final = 128.0
RADIUS_UNITS: Final = EARTH_RADIUS_M * UNITS
#: No ball is larger; its radius beside any distance stays below 2**32.
BALL_MAX: Final = 1_640_000_000

#: `node`: entries, height above the leaves, parent (0 of the root; of a free node the next free one), radius, and
#: the three coordinates of the centre.
COUNT, LEVEL, PARENT, RADIUS, CENTRE = 0, 1, 2, 3, 4
NODE_COLUMNS: Final = 7
#: `node[0]` instead: the root, the first free node, how many were ever in use at once, how many of these are free.
ROOT, FREE, USED, LEFT = 0, 1, 2, 3
#: `block`, by entry: a place or a child's centre in three numbers, then the driver's slot and kind, or the child and
#: its radius.
WHO, WHAT = 3, 4
INTEGERS: Final = 5
#: `told`, by entry: a driver's latitude and longitude (degrees) and the date of its fix, minus infinity without one.
LAT, LON, FIX_MS = 0, 1, 2
NUMBERS: Final = 3
#: `where`, by slot: the driver's row, -1 for who is nowhere; and the rank of its id, -1 where it has none yet.
ROW, RANK = 0, 1
