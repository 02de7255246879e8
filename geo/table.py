"""What is known of each driver: its id, its newest record and what kind of driver it is.

A driver has a slot, a small integer that stays its own until it is removed;
then another may take it. A *kind* is a small integer for one combination of
vehicle class, seats, availability and tags: few exist at a time, so that a search
tests a driver against a `Where` with one look-up. The number of a kind that no
driver is of any more goes to the next new one: however often drivers change, the
drivers there are bound the kinds (P10).
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo.model import DriverId, Where
from geo.records import CLASS_BYTES_MAX, FLAG_AVAILABLE, RECORD, Records
from geo.supply import Kind

Slots = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

#: A record's last bytes: seats, flags, class and tags, which decide its kind.
_KIND_AT: Final[int] = RECORD.fields["seats"][1]  # type: ignore[index]
_KIND: Final = struct.Struct(f"<BB{CLASS_BYTES_MAX}sI")
_WHERES_KEPT: Final = 64


class DriverTable:
    """Drivers by slot. A free slot's record is dated minus infinity, so that it never counts as fresh."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.clear(0)

    def clear(self, drivers: int) -> None:
        """Forgets everyone and makes room for so many."""
        self.held: Records = np.zeros(max(drivers, self._capacity), dtype=RECORD)
        self.held["fix_ms"] = -np.inf
        self.kind = np.full(len(self.held), -1, dtype=np.int32)
        self._slot_of: dict[DriverId, int] = {}
        self._ids: list[DriverId | None] = []
        self._free: list[int] = []
        self._kinds: dict[bytes, int] = {}
        self._descriptions: list[bytes] = []  # by kind
        self._drivers_of: list[int] = []  # how many are of a kind
        self._unused_kinds: list[int] = []
        self._suitable: dict[tuple[frozenset[str] | None, int, bool, int], Bools] = {}

    def __len__(self) -> int:
        return len(self._slot_of)

    def slot_of(self, driver_id: DriverId) -> int | None:
        return self._slot_of.get(driver_id)

    def slots_of(self, driver_ids: Sequence[DriverId]) -> Slots:
        """Slots in the order of the ids, -1 for who is unknown."""
        get = self._slot_of.get
        return np.array([get(driver_id, -1) for driver_id in driver_ids], dtype=np.int32)

    def known_slots(self, driver_ids: Iterable[DriverId]) -> Slots:
        """Slots of those that are held, in any order."""
        held = self._slot_of
        return np.array([held[driver_id] for driver_id in driver_ids if driver_id in held], dtype=np.int32)

    def id_at(self, slot: int) -> DriverId:
        driver_id = self._ids[slot]
        assert driver_id is not None, "a slot in use has a driver"
        return driver_id

    def ids_at(self, slots: Sequence[int]) -> list[DriverId]:
        ids = self._ids
        return [ids[slot] for slot in slots]  # type: ignore[misc]

    def enter(self, driver_ids: Sequence[DriverId]) -> Slots:
        """Gives a slot to each of these; none of them has one."""
        slots = [self._enter(driver_id) for driver_id in driver_ids]
        if len(self._ids) > len(self.held):
            self._grow()
        return np.array(slots, dtype=np.int32)

    def _enter(self, driver_id: DriverId) -> int:
        if self._free:
            slot = self._free.pop()
            self._ids[slot] = driver_id
        else:
            slot = len(self._ids)
            self._ids.append(driver_id)
        self._slot_of[driver_id] = slot
        return slot

    def _grow(self) -> None:
        used = len(self.held)
        size = max(len(self._ids), 2 * used)
        larger = np.zeros(size, dtype=RECORD)
        larger[:used], larger["fix_ms"][used:] = self.held, -np.inf
        kind = np.full(size, -1, dtype=np.int32)
        kind[:used] = self.kind
        self.held, self.kind = larger, kind

    def leave(self, driver_ids: Sequence[DriverId]) -> Slots:
        """Takes the slots of these away; all of them have one."""
        left = [self._slot_of.pop(driver_id) for driver_id in driver_ids]
        for slot in left:
            self._ids[slot] = None
        self._free.extend(left)
        slots = np.array(left, dtype=np.int32)
        self.held["fix_ms"][slots] = -np.inf
        kinds = self.kind[slots].tolist()
        self.kind[slots] = -1
        self._release(kinds)
        return slots

    def write(self, slots: Slots, records: Records) -> Slots:
        """Keeps these records. Returns the drivers' kinds."""
        old, new = _kind_bytes(self.held.take(slots)), _kind_bytes(records)
        changed = np.flatnonzero((old != new).any(axis=1) | (self.kind.take(slots) < 0))
        self.held[slots] = records
        if len(changed):
            before = self.kind[slots[changed]].tolist()
            self.kind[slots[changed]] = [self._join(each.tobytes()) for each in new[changed]]
            self._release(before)
        return self.kind.take(slots)

    def _join(self, description: bytes) -> int:
        """The kind of this description, with one driver more."""
        kind = self._kinds.get(description)
        if kind is None:
            kind = self._kinds[description] = self._new_kind()
            self._descriptions[kind] = description
            self._suitable.clear()
        self._drivers_of[kind] += 1
        return kind

    def _new_kind(self) -> int:
        if self._unused_kinds:
            return self._unused_kinds.pop()
        self._descriptions.append(b"")
        self._drivers_of.append(0)
        return len(self._descriptions) - 1

    def _release(self, kinds: Sequence[int]) -> None:
        """One driver less of each of these; those without any become free."""
        for kind in kinds:
            if kind >= 0:
                self._drivers_of[kind] -= 1
                if not self._drivers_of[kind]:
                    del self._kinds[self._descriptions[kind]]
                    self._unused_kinds.append(kind)

    def kinds(self) -> list[tuple[Kind, bool]]:
        """By number, what each kind is and whether its drivers are available; unused numbers have some kind too."""
        return [_kind_of(description) if description else (Kind("", 0, 0), False) for description in self._descriptions]

    def suitable(self, where: Where) -> Bools:
        """Per kind, whether its drivers meet the condition (leaving `exclude` aside)."""
        key = (where.vehicle_classes, where.seats_min, where.available_only, where.tags)
        found = self._suitable.get(key)
        if found is None:
            if len(self._suitable) >= _WHERES_KEPT:
                self._suitable.clear()
            found = np.array([_meets(description, where) for description in self._descriptions], dtype=np.bool_)
            self._suitable[key] = found
        return found

    def thin(self, slots: Slots, k: int) -> Bools:
        """Which of these to keep so that of each crowd on exactly one spot the `k` smallest ids remain.

        From any point all of a crowd are equally far, so nobody else of it can be among the k nearest.
        """
        records = self.held.take(slots)
        order = np.lexsort((records["lon"], records["lat"]))
        lat, lon = records["lat"][order], records["lon"][order]
        breaks = np.flatnonzero((lat[1:] != lat[:-1]) | (lon[1:] != lon[:-1])) + 1
        keep = np.ones(len(slots), dtype=np.bool_)
        bounds = [0, *breaks.tolist(), len(slots)]
        for begin, end in itertools.pairwise(bounds):
            if end - begin > k:
                crowd = order[begin:end]
                names = self.ids_at(slots[crowd].tolist())
                last = heapq.nsmallest(k, names)[-1]
                keep[crowd] = [name <= last for name in names]
        return keep


def _kind_bytes(records: Records) -> npt.NDArray[np.uint8]:
    raw: npt.NDArray[Any] = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), RECORD.itemsize)
    return raw[:, _KIND_AT:]


def _kind_of(description: bytes) -> tuple[Kind, bool]:
    seats, flags, vehicle_class, tags = _KIND.unpack(description)
    return Kind(vehicle_class.rstrip(b"\0").decode(errors="replace"), seats, tags), bool(flags & FLAG_AVAILABLE)


def _meets(description: bytes, where: Where) -> bool:
    seats, flags, vehicle_class, tags = _KIND.unpack(description)
    return (
        seats >= where.seats_min
        and tags & where.tags == where.tags
        and (not where.available_only or bool(flags & FLAG_AVAILABLE))
        and (
            where.vehicle_classes is None
            or vehicle_class.rstrip(b"\0").decode(errors="replace") in where.vehicle_classes
        )
    )
