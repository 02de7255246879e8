"""What is known of each driver beside its place in the tree: its id, stamp, coordinates and motion, by slot.

A driver has a slot, a small integer that stays its own until it is removed; then another may take it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo.layout import RANK, ROW
from geo.model import DriverId
from geo.order import Slots, with_newcomers

NOWHERE: Final = -1

Bools = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]


class DriverTable:
    """Drivers by slot. Columns: `stamp`, `motion` (hundredths), `where` (see geo.layout).

    A driver is in the table before it is in the tree, and leaves the tree before the table.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.clear(0)

    def clear(self, drivers: int) -> None:
        """Forgets everyone and makes room for so many."""
        size = max(drivers, self._capacity)
        self.stamp = np.zeros((size, 3), dtype=np.float64)
        self.motion = np.zeros((size, 2), dtype=np.uint16)
        self.where = np.full((size, 2), NOWHERE, dtype=np.int32)
        self._slot_of: dict[DriverId, int] = {}
        self._ids: list[DriverId | None] = []
        self._free: list[int] = []
        self._order = np.empty(0, dtype=np.int32)
        self._is_ordered = True
        self._bars: Collection[DriverId] = ()
        self._barred: Bools | None = None

    def __len__(self) -> int:
        return len(self._slot_of)

    def slot_of(self, driver_id: DriverId) -> int | None:
        return self._slot_of.get(driver_id)

    def slots_of(self, driver_ids: Sequence[DriverId]) -> Slots:
        """Slots in the order of the ids, NOWHERE for who is unknown."""
        return np.fromiter(map(self._slot_of.get, driver_ids, repeat(NOWHERE)), np.int32, len(driver_ids))

    def known_slots(self, driver_ids: Iterable[DriverId]) -> Slots:
        """Slots of those that are held, in any order."""
        held = self._slot_of
        return np.array([held[driver_id] for driver_id in driver_ids if driver_id in held], dtype=np.int32)

    def id_at(self, slot: int) -> DriverId:
        driver_id = self._ids[slot]
        assert driver_id is not None, "a slot in use has a driver"
        return driver_id

    @property
    def ids(self) -> Sequence[DriverId]:
        """Ids by slot; those of free slots are none."""
        return self._ids  # type: ignore[return-value]

    # Coming and leaving

    def enter(self, driver_id: DriverId) -> int:
        """The driver's slot, which may be new."""
        slot = self._slot_of.get(driver_id)
        if slot is not None:
            return slot
        if self._free:
            slot = self._free.pop()
            self._ids[slot] = driver_id
        else:
            slot = len(self._ids)
            self._ids.append(driver_id)
            if slot == len(self.where):
                self._grow()
        self._slot_of[driver_id] = slot
        self._is_ordered = False
        if self._barred is not None:
            self._barred[slot] = driver_id in self._bars
        return slot

    def _grow(self) -> None:
        """A quarter more slots."""
        size = len(self.where) + len(self.where) // 4 + 16
        for name in ("stamp", "motion", "where"):
            old: Array = getattr(self, name)
            larger = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
            larger[: len(old)] = old
            setattr(self, name, larger)
        self.where[len(self._ids) - 1 :] = NOWHERE
        if self._barred is not None:
            self._barred = np.concatenate([self._barred, np.zeros(size - len(self._barred), dtype=np.bool_)])

    def leave(self, driver_ids: Iterable[DriverId]) -> None:
        """Takes the slots of these away; all of them have one."""
        for driver_id in driver_ids:
            slot = self._slot_of.pop(driver_id)
            self._ids[slot] = None
            self._free.append(slot)
            self.where[slot] = NOWHERE
        self._is_ordered = False

    # Order and exclusion

    def ordered(self) -> Slots:
        """All slots in use, in the order of their ids; each driver's rank is its place there."""
        if not self._is_ordered:
            rank = self.where[:, RANK]
            kept = self._order[rank[self._order] == np.arange(len(self._order))]
            newcomers = np.flatnonzero((rank < 0) & (self.where[:, ROW] >= 0)).astype(np.int32)
            self._order = with_newcomers(kept, newcomers, self._ids)
            rank[self._order] = np.arange(len(self._order))
            self._is_ordered = True
        return self._order

    def barred(self, driver_ids: Collection[DriverId]) -> Bools:
        """Per slot, whether its driver is one of these; empty for nobody.

        Kept for as long as the same collection is asked for, which must not change: who are engaged is read
        once for many searches.
        """
        if not driver_ids:
            return _NOBODY
        if self._barred is None or self._bars is not driver_ids:
            self._barred = np.zeros(len(self.where), dtype=np.bool_)
            self._barred[self.known_slots(driver_ids)] = True
            self._bars = driver_ids
        return self._barred


_NOBODY: Final = np.zeros(0, dtype=np.bool_)
