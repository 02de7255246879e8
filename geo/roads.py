"""RoadNetwork: travel times along directed links, exact and from memory.

A car drives from where it is straight to the nearest node (at `access_mps`),
along the fastest links to the node nearest to its target, and straight to the
target. Fastest ways are Dijkstra's, from the target's node against the links'
direction, a row of seconds from every node at once (`scipy.sparse.csgraph`);
rows are kept, so that the next question about the same node is a look-up.

Only shapes of the network count here: no traffic, no turns, no clock, no loop.
Not safe for several threads at once.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from geo.distance import distance_m, sphere_points_m
from geo.legs import Floats, Ints, check_pairs, check_places

#: A place on the way: seconds from the start, latitude, longitude.
Waypoint = tuple[float, float, float]

COLUMNS: Final = ("start_lat", "start_lon", "end_lat", "end_lon", "length_m", "travel_s")
ACCESS_MPS: Final = 4.0
CACHE_BYTES: Final = 256 * 2**20
#: A link that would be passed faster than this (252 km/h) is an error of measurement, not a road.
LINK_MPS_MAX: Final = 70.0

#: What rounding may take from a distance, generously: relative (antipodes err by 1e-9) and in metres
#: (a degree's last binary digit is a nanometre).
_ROUNDING: Final = 1e-6
_ROUNDING_M: Final = 1e-6
#: Rows are computed so many bytes at a time: scipy makes a copy of its own.
_BLOCK_BYTES: Final = 16 * 2**20


class RoadsError(Exception):
    """The file holds no road network; the text says why and what it should look like."""


@dataclass(frozen=True, slots=True)
class Links:
    """Directed links in columns (links,): degrees at both ends, and seconds from start to end.

    Raises ValueError for no link at all, columns of different lengths, places that are not on earth, and
    travel times that are not positive numbers.
    """

    start_lat: Floats
    start_lon: Floats
    end_lat: Floats
    end_lon: Floats
    travel_s: Floats

    def __post_init__(self) -> None:
        check_places(self.start_lat, self.start_lon)
        check_places(self.end_lat, self.end_lon)
        if not self.start_lat.shape == self.end_lat.shape == self.travel_s.shape or not len(self.travel_s):
            raise ValueError("links are columns of equal length, and at least one")
        if not (np.isfinite(self.travel_s) & (self.travel_s > 0.0)).all():
            raise ValueError("the travel_s of a link is a positive number of seconds")

    @property
    def straight_m(self) -> Floats:
        return distance_m(self.start_lat, self.start_lon, self.end_lat, self.end_lon)


class RoadNetwork:
    """The roads of a city; places with the same coordinates are one node, of parallel links the fastest counts.

    `access_mps` is how fast a car goes off the network, in a straight line: at most as fast as the fastest link.
    `cache_bytes` bounds the memory for kept rows, 8 bytes a node and row; one row is always kept.
    `rejected` counts the rows of the file that were left out, by reason. Raises ValueError for a speed or a
    cache that is not positive.

    `top_speed_mps` bounds every answer: `seconds` is never less than the great circle's metres over it. Proof:
    it is at least `access_mps`, and at least the straight line between the ends of any link over its travel
    time. So each part of a way (to the node, a link, from the node) takes at least its own straight line over
    it, and by the triangle inequality on the sphere the parts' straight lines are together no shorter than the
    whole's. It is raised by a millionth, and a micrometre a link, which is more than rounding takes away.
    """

    def __init__(
        self,
        links: Links,
        *,
        access_mps: float = ACCESS_MPS,
        cache_bytes: int = CACHE_BYTES,
        rejected: Counter[str] | None = None,
    ) -> None:
        if not (math.isfinite(access_mps) and access_mps > 0.0 and cache_bytes > 0):
            raise ValueError(f"access_mps {access_mps!r} and cache_bytes {cache_bytes!r} are positive numbers")
        fastest_mps = float(((links.straight_m + _ROUNDING_M) / links.travel_s).max())
        self.top_speed_mps = fastest_mps * (1.0 + _ROUNDING)
        self.access_mps = min(access_mps, fastest_mps)
        self.rejected: Counter[str] = Counter() if rejected is None else rejected
        self.node_lat, self.node_lon, start, end = _nodes(links)
        self._tree = cKDTree(sphere_points_m(self.node_lat, self.node_lon))
        self._against = _fastest(end, start, links.travel_s, len(self.node_lat))
        self._rows = _Rows(self._against, cache_bytes)

    @classmethod
    def read(cls, path: Path, *, access_mps: float = ACCESS_MPS, cache_bytes: int = CACHE_BYTES) -> Self:
        """The network of a CSV file, gzipped or not, that has the columns `COLUMNS` (degrees, metres, seconds).

        Rows that cannot be used are counted in `rejected` with their reason. Raises RoadsError for a file that
        cannot be read, lacks a column or has no usable row.
        """
        rejected: Counter[str] = Counter()
        links = _read_links(path, rejected)
        return cls(links, access_mps=access_mps, cache_bytes=cache_bytes, rejected=rejected)

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self.node_lat)

    def nearest_node(self, lat: npt.ArrayLike, lon: npt.ArrayLike) -> tuple[Ints, Floats]:
        """The nearest node of each place in degrees, and the metres to it; both (places,).

        Raises ValueError for places that are not on earth.
        """
        lat, lon = np.asarray(lat, dtype=np.float64), np.asarray(lon, dtype=np.float64)
        check_places(lat, lon)
        node = np.asarray(self._tree.query(sphere_points_m(lat, lon))[1], dtype=np.int64)
        return node, distance_m(lat, lon, self.node_lat[node], self.node_lon[node])

    def seconds(
        self, origin_lat: Floats, origin_lon: Floats, target_lat: Floats, target_lon: Floats, origin: Ints, target: Ints
    ) -> Floats:
        """Seconds from place `origin[e]` to place `target[e]` for each pair e; inf where there is no way. (pairs,)

        Two places that are no farther from each other than from their nodes together, or whose node is the same,
        have no road between them that would be of use: the car goes straight, at `access_mps`. Rows of nodes that
        were not asked for lately cost a run of Dijkstra each. Raises ValueError for places that are not on earth
        and for pairs of places that are not there.
        """
        from_node, from_m = self.nearest_node(origin_lat, origin_lon)
        to_node, to_m = self.nearest_node(target_lat, target_lon)
        check_pairs(origin, len(from_node), target, len(to_node))
        from_node, from_m, to_node, to_m = from_node[origin], from_m[origin], to_node[target], to_m[target]
        straight_m = distance_m(origin_lat[origin], origin_lon[origin], target_lat[target], target_lon[target])
        by_road_s = from_m / self.access_mps + self._between_nodes_s(from_node, to_node) + to_m / self.access_mps
        goes_straight = (from_node == to_node) | (straight_m <= from_m + to_m)
        return np.where(goes_straight, straight_m / self.access_mps, by_road_s)

    def _between_nodes_s(self, from_node: Ints, to_node: Ints) -> Floats:
        """Seconds along links from node to node, both (pairs,)."""
        rank = np.zeros(len(self), dtype=np.int64)
        rank[to_node] = 1
        nodes = np.flatnonzero(rank)
        rank[nodes] = np.arange(len(nodes))
        rank = rank[to_node]
        found = np.empty(len(to_node))
        for first in range(0, len(nodes), self._rows.capacity):
            slots = self._rows.hold(nodes[first : first + self._rows.capacity])
            mine: Any = slice(None)
            if len(slots) < len(nodes):
                mine = np.flatnonzero((rank >= first) & (rank < first + len(slots)))
            found[mine] = self._rows.seconds[slots[rank[mine] - first], from_node[mine]]
        return found

    def path(self, origin_lat: float, origin_lon: float, target_lat: float, target_lon: float) -> list[Waypoint]:
        """The way of one car as `seconds` times it: both places, and the nodes between; [] where there is no way.

        Seconds never fall along it. Runs Dijkstra each time. Raises ValueError for places that are not on earth.
        """
        (from_node, to_node), (from_m, to_m) = self.nearest_node([origin_lat, target_lat], [origin_lon, target_lon])
        straight_m = float(distance_m(origin_lat, origin_lon, target_lat, target_lon))
        start = (0.0, origin_lat, origin_lon)
        if from_node == to_node or straight_m <= from_m + to_m:
            return [start, (straight_m / self.access_mps, target_lat, target_lon)]
        left_s, onward = dijkstra(self._against, indices=np.array([to_node]), return_predecessors=True)
        if math.isinf(left_s[0, from_node]):
            return []
        nodes = [int(from_node)]
        while nodes[-1] != to_node:
            nodes.append(int(onward[0, nodes[-1]]))
        access_s, whole_s = float(from_m) / self.access_mps, float(left_s[0, from_node])
        between = [
            (access_s + (whole_s - float(left_s[0, node])), float(self.node_lat[node]), float(self.node_lon[node]))
            for node in nodes
        ]
        return [start, *between, (access_s + whole_s + float(to_m) / self.access_mps, target_lat, target_lon)]


class _Rows:
    """Seconds from every node to some nodes: a row each in `seconds`, the least recently asked for give way."""

    def __init__(self, against: csr_array, cache_bytes: int) -> None:
        nodes = int(against.shape[0])
        self._against = against
        self.capacity = min(nodes, max(1, cache_bytes // (8 * nodes)))
        self.seconds = np.empty((self.capacity, nodes))  # the system hands out its pages as rows are written
        self._slot_of = np.full(nodes, -1, dtype=np.int64)
        self._node_in = np.full(self.capacity, -1, dtype=np.int64)
        self._used_at = np.zeros(self.capacity, dtype=np.int64)
        self._calls = 0

    def hold(self, nodes: Ints) -> Ints:
        """The slots of these nodes' rows, computed where missing; different nodes, and at most `capacity` of them."""
        self._calls += 1
        slots = self._slot_of[nodes]
        self._used_at[slots[slots >= 0]] = self._calls
        missing = nodes[slots < 0]
        if len(missing):
            self._compute(missing, np.argsort(self._used_at, kind="stable")[: len(missing)])
        return self._slot_of[nodes]

    def _compute(self, nodes: Ints, slots: Ints) -> None:
        gone = self._node_in[slots]
        self._slot_of[gone[gone >= 0]] = -1
        self._node_in[slots] = -1
        step = max(1, _BLOCK_BYTES // self.seconds[0].nbytes)
        for first in range(0, len(nodes), step):
            part = slice(first, first + step)
            self.seconds[slots[part]] = dijkstra(self._against, indices=nodes[part])
        self._slot_of[nodes] = slots
        self._node_in[slots] = nodes
        self._used_at[slots] = self._calls


def _nodes(links: Links) -> tuple[Floats, Floats, Ints, Ints]:
    """Latitudes and longitudes of the different places, and each link's start and end among them."""
    lat = np.concatenate((links.start_lat, links.end_lat))
    lon = np.concatenate((links.start_lon, links.end_lon))
    places, node = np.unique(np.stack((lat, lon), axis=1) + 0.0, axis=0, return_inverse=True)  # + 0.0: no -0.0
    node = node.reshape(-1).astype(np.int64)
    start, end = np.split(node, 2)
    return places[:, 0].copy(), places[:, 1].copy(), start, end


def _fastest(row: Ints, column: Ints, travel_s: Floats, nodes: int) -> csr_array:
    """The matrix of the least time of each (row, column); scipy would add up what stands there twice."""
    order = np.lexsort((travel_s, column, row))
    row, column = row[order], column[order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (row[1:] != row[:-1]) | (column[1:] != column[:-1])
    return csr_array((travel_s[order][is_first], (row[is_first], column[is_first])), shape=(nodes, nodes))


# Reading


class _BadRow(Exception):
    """This row cannot be used; the text is the reason, the same for rows of the same kind."""


def _read_links(path: Path, rejected: Counter[str]) -> Links:
    rows = []
    with _open(path) as file:
        reader = csv.reader(file)
        header = _header(path, reader)
        for row in _csv_rows(reader, rejected):
            try:
                rows.append(_numbers(dict(zip(header, row, strict=False))))
            except _BadRow as bad:
                rejected[str(bad)] += 1
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(COLUMNS)).T
    start_lat, start_lon, end_lat, end_lon, _, travel_s = columns
    is_road = distance_m(start_lat, start_lon, end_lat, end_lon) <= LINK_MPS_MAX * travel_s
    if len(rows) > (roads := int(is_road.sum())):
        rejected[f"passed at more than {LINK_MPS_MAX:g} m/s"] += len(rows) - roads
    if not roads:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in rejected.most_common(3)) or "it has no row"
        raise RoadsError(f"{path} has no usable row: {reasons}")
    return Links(*(column[is_road] for column in (start_lat, start_lon, end_lat, end_lon, travel_s)))


def _open(path: Path) -> IO[str]:
    """Told apart by gzip's first two bytes, not by name."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        if zipped:
            return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
        return path.open("r", encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise RoadsError(f"cannot read {path}: {error.strerror}") from error


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip().lower() for name in next(reader, [])]
    except (csv.Error, EOFError, OSError, zlib.error) as error:
        raise RoadsError(f"cannot read {path}: {error}") from error
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise RoadsError(f"{path} has no column {', '.join(missing)}; its first line must name {', '.join(COLUMNS)}")
    return header


def _csv_rows(reader: Iterator[list[str]], rejected: Counter[str]) -> Iterator[list[str]]:
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            rejected[f"no CSV row: {error}"] += 1
            continue
        except (EOFError, OSError, zlib.error) as error:
            rejected[f"the file breaks off: {error}"] += 1
            return
        if row:
            yield row


def _numbers(row: Mapping[str, str]) -> list[float]:
    """The values of `COLUMNS`, in that order."""
    numbers = [_number(row, name) for name in COLUMNS]
    start_lat, start_lon, end_lat, end_lon, length_m, travel_s = numbers
    for name, value, most in zip(COLUMNS, numbers[:4], (90.0, 180.0, 90.0, 180.0), strict=False):
        if abs(value) > most:
            raise _BadRow(f"{name} is not within [-{most:g}, {most:g}]")
    if (start_lat, start_lon) == (end_lat, end_lon):
        raise _BadRow("start and end are the same place")
    if length_m < 0.0:
        raise _BadRow("length_m is negative")
    if travel_s <= 0.0:
        raise _BadRow("travel_s is not positive")
    return numbers


def _number(row: Mapping[str, str], name: str) -> float:
    text = row.get(name, "").strip()
    if not text:
        raise _BadRow(f"{name} is empty")
    try:
        value = float(text)
    except ValueError:
        raise _BadRow(f"{name} is not a number") from None
    if not math.isfinite(value):
        raise _BadRow(f"{name} is not finite")
    return value
