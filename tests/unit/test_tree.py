"""The tree of drivers: balls that hold who is under them, stay no larger than these need, and take no more room."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from geo.index import DriverIndex
from geo.layout import CENTRE, COUNT, ENTRIES, LEFT, LEVEL, PARENT, RADIUS, ROOT, ROW, UNITS, WHAT, WHO
from geo.model import DriverId, Removal, Stamp
from geo.records import RECORD, PositionBatch
from geo.tree import Tree

Array = npt.NDArray[Any]
Place = tuple[float, float]
LAST = Stamp(9, 9, 9)


class Grove:
    """An index, and where its drivers are in a plain dictionary."""

    def __init__(self) -> None:
        self.index = DriverIndex(resolution=8, stale_after_ms=1, capacity=1)
        self.places: dict[str, Place] = {}
        self._seq = 0

    @property
    def tree(self) -> Tree:
        return self.index._tree

    def put(self, places: dict[str, Place], *, anew: bool = False) -> None:
        self._seq += 1
        records = np.zeros(len(places), dtype=RECORD)
        records["seq"], records["seats"] = self._seq, [len(name) for name in places]
        records["lat"], records["lon"] = np.array(list(places.values())).reshape(-1, 2).T
        batch = PositionBatch([DriverId(name) for name in places], records)
        if anew:
            self.index.reset(batch)
            self.places = dict(places)
        else:
            assert self.index.apply(batch) == len(places)
            self.places |= places

    def take_out(self, names: list[str]) -> None:
        removals = [Removal(DriverId(name), LAST) for name in names]
        self.index.apply(PositionBatch([], np.zeros(0, dtype=RECORD), removals))
        for name in names:
            del self.places[name]

    def check(self) -> None:
        """Everyone stands in one row, under balls that hold it; whatever is not in use says so."""
        tree, table = self.tree, self.index._table
        slots = table.slots_of([DriverId(name) for name in self.places])
        rows = table.where[slots, ROW]
        assert tree.slots[rows].tolist() == slots.tolist()
        assert [tuple(each) for each in tree.points[rows].tolist()] == list(self.places.values())
        seats = [self.index._kinds.told[kind][1] for kind in tree.kinds[rows].tolist()]
        assert seats == [len(name) for name in self.places]
        assert np.flatnonzero(tree.dates_ms > -np.inf).tolist() == sorted(rows.tolist())
        root = int(tree.node[0, ROOT])
        assert tree.node[root, PARENT] == 0
        used, _ = self._check_under(root)
        assert used == tree.nodes - 1 - tree.node[0, LEFT]
        assert tree.nodes <= len(tree.node)

    def _check_under(self, n: int) -> tuple[int, Array]:
        """How many nodes there are from this one down, and everyone's place."""
        tree, used, below = self.tree, 1, [np.empty((0, 3))]
        count, level = int(tree.node[n, COUNT]), int(tree.node[n, LEVEL])
        assert count <= ENTRIES
        assert count > 0 or not self.places
        if level == 0:
            below.append(tree.block[n, :count, :WHO].astype(np.float64))
        for entry in tree.block[n, :count].tolist() if level else ():
            child = entry[WHO]
            ball = [*tree.node[child, CENTRE : CENTRE + 3].tolist(), int(tree.node[child, RADIUS])]
            assert [*entry[:WHO], entry[WHAT]] == ball
            assert tree.node[child, [LEVEL, PARENT]].tolist() == [level - 1, n]
            under, places = self._check_under(child)
            used += under
            below.append(places)
        held = np.concatenate(below)
        assert (np.linalg.norm(held - tree.node[n, CENTRE : CENTRE + 3], axis=1) <= tree.node[n, RADIUS]).all()
        return used, held

    def widest_m(self) -> float:
        return float(self.tree.node[1:][self.tree.node[1:, COUNT] > 0, RADIUS].max() / UNITS)


def around(rng: np.random.Generator, names: list[str], spread: float, at: Place = (40.75, -73.98)) -> dict[str, Place]:
    return dict(zip(names, map(tuple, (at + rng.normal(0, spread, (len(names), 2))).tolist()), strict=True))


@pytest.mark.parametrize("step", [1e-5, 0.003, 0.02])
def test_balls_hold_everyone_through_moves_and_removals(step: float) -> None:
    rng = np.random.default_rng(11)
    grove, names = Grove(), [f"d{number}" for number in range(3000)]
    grove.put(around(rng, names, 0.02), anew=step > 0.01)
    for _ in range(8):
        grove.take_out([name for name in grove.places if rng.random() < 0.2])
        moving = [name for name in grove.places if rng.random() < 0.5]
        steps = rng.normal(0, step, (len(moving), 2)).tolist()
        old = grove.places
        grove.put({n: (old[n][0] + dlat, old[n][1] + dlon) for n, (dlat, dlon) in zip(moving, steps, strict=True)})
        grove.put(around(rng, [name for name in names if name not in grove.places and rng.random() < 0.5], 0.02))
        grove.check()


@pytest.mark.parametrize("spread", [0.0, 1e-7, 20.0])
def test_any_number_of_drivers_makes_a_tree_that_can_change(spread: float) -> None:
    """On one spot, on a few that share a unit, and all over the globe."""
    rng = np.random.default_rng(5)
    for drivers in (0, 1, 24, 25, 32, 33, 240, 481, 1000, 2881):
        grove, names = Grove(), [f"d{number}" for number in range(drivers)]
        grove.put(around(rng, names, spread, (0.0, 0.0)), anew=True)
        grove.check()
        grove.put({"late": (1.0, 1.0), **around(rng, names[::3], spread, (0.0, 0.0))})
        grove.check()


@pytest.mark.parametrize("leave", ["removed", "moved back"])
def test_a_driver_far_from_all_others_stretches_balls_only_while_it_is_there(leave: str) -> None:
    grove, rng = Grove(), np.random.default_rng(3)
    grove.put(around(rng, [f"d{number}" for number in range(1000)], 0.01))
    assert grove.widest_m() < 20_000
    grove.put({"far": (10.0, 100.0)})
    assert grove.widest_m() > 1e6
    if leave == "removed":
        grove.take_out(["far"])
    else:
        grove.put({"far": (40.75, -73.98)})
    grove.check()
    assert grove.widest_m() < 20_000


def test_nodes_that_drivers_left_behind_are_used_again() -> None:
    """P10: neither a long walk makes the columns grow, nor do drivers that end up far from each other."""
    grove, rng = Grove(), np.random.default_rng(7)
    names, sizes = [f"d{number}" for number in range(600)], []
    for step in range(80):
        grove.put(around(rng, names, 0.01 + 0.05 * (step % 5), (40.0, -120.0 + step * 0.5)))
        sizes.append(len(grove.tree.node))
    grove.check()
    assert sizes[-1] == sizes[10]
    grove.take_out(names[10:])
    grove.check()
    assert grove.tree.nodes - grove.tree.node[0, LEFT] <= 5
