"""Drivers in the order of their ids."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geo.layout import RANK, ROW
from geo.model import DriverId
from geo.order import with_newcomers
from geo.table import DriverTable

NAMES = st.lists(st.text(max_size=4), unique=True, max_size=300)


@given(names=NAMES, few=st.integers(0, 4))
def test_few_and_many_newcomers_take_the_places_that_sorting_gives_them(names: list[str], few: int) -> None:
    ids = [DriverId(name) for name in names]
    first = np.arange(max(len(ids) - few, 0), dtype=np.int32)
    order = with_newcomers(np.empty(0, dtype=np.int32), first, ids)
    assert [ids[slot] for slot in order.tolist()] == sorted(ids[: len(first)])
    order = with_newcomers(order, np.arange(len(first), len(ids), dtype=np.int32), ids)
    assert [ids[slot] for slot in order.tolist()] == sorted(ids)
    assert order.dtype == np.int32


def test_a_slot_that_another_driver_took_stands_where_that_ones_id_belongs() -> None:
    table = DriverTable(1)

    def enter(*names: str) -> None:
        for name in names:
            slot = table.enter(DriverId(name))
            table.where[slot, ROW] = 0  # it stands somewhere

    enter("b", "d", "a", "c")
    assert [table.ids[slot] for slot in table.ordered().tolist()] == ["a", "b", "c", "d"]
    table.leave([DriverId("a"), DriverId("c")])
    enter("e")
    assert [table.ids[slot] for slot in table.ordered().tolist()] == ["b", "d", "e"]
    assert table.where[table.ordered(), RANK].tolist() == [0, 1, 2]


def test_who_is_barred_is_told_for_those_who_come_later_too() -> None:
    table = DriverTable(1)
    out = frozenset({DriverId("late"), DriverId("a")})
    a = table.enter(DriverId("a"))
    assert table.barred(out)[a]
    others = [table.enter(DriverId(f"d{number}")) for number in range(40)]
    late = table.enter(DriverId("late"))
    assert table.barred(out)[late]
    assert not table.barred(out)[others].any()
    table.leave([DriverId("late")])
    assert not table.barred(out)[table.enter(DriverId("b"))]
    assert not table.barred(frozenset({DriverId("b")}))[a]
    assert len(table.barred(frozenset())) == 0
