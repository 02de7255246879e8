"""What drivers have in common: class, seats, availability and tags, as small numbers.

Few *kinds* exist at a time, so that a search tests a driver against a `Where` with one look-up. How many drivers
are of each is counted where they are written (geo.forward); kinds of which nobody is are forgotten before the next
batch once they are as many as the others: however often drivers change, the drivers there are bound them (P10).
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo.model import Where
from geo.records import CLASS_BYTES_MAX, FLAG_AVAILABLE, RECORD

#: A record's last bytes say its kind.
KIND_AT: Final[int] = RECORD.fields["seats"][1]  # type: ignore[index]
_KIND: Final = struct.Struct(f"<BB{CLASS_BYTES_MAX}sI")
#: The same as compiled code compares it: the class in two numbers.
DESCRIBED: Final = np.dtype([("seats", "u1"), ("flags", "u1"), ("class_a", "<u8"), ("class_b", "<u4"), ("tags", "<u4")])
_WHERES_KEPT: Final = 64
_SPARE: Final = 16

Bools = npt.NDArray[np.bool_]
#: Class, seats, whether available, tags.
Told = tuple[str, int, bool, int]


class Kinds:
    """Kinds by number."""

    def __init__(self) -> None:
        self.described: npt.NDArray[Any] = np.zeros(_SPARE, dtype=DESCRIBED)
        self.drivers = np.zeros(_SPARE, dtype=np.int64)  # how many are of each kind
        self.told: list[Told] = []  # by number; of one that is not in use what it was
        self._named: dict[bytes, int] = {}
        self._unused: list[int] = []
        self._suits: dict[tuple[frozenset[str] | None, int, bool, int], Bools] = {}

    def __len__(self) -> int:
        return len(self._named)

    def number(self, description: bytes) -> int:
        """The kind of this description, which may be new."""
        kind = self._named.get(description)
        return self._new(description) if kind is None else kind

    def _new(self, description: bytes) -> int:
        if self._unused:
            kind = self._unused.pop()
            self.told[kind] = told_of(description)
        else:
            kind = len(self.told)
            self.told.append(told_of(description))
        if kind == len(self.described):
            self.described = np.concatenate([self.described, np.zeros_like(self.described)])
            self.drivers = np.concatenate([self.drivers, np.zeros_like(self.drivers)])
        self.described[kind] = np.frombuffer(description, DESCRIBED)[0]
        self._named[description] = kind
        self._suits.clear()
        return kind

    def tidy(self) -> None:
        """Forgets kinds of which nobody is, when they are many. Not while a batch holds numbers not yet written."""
        if len(self._named) <= _SPARE:
            return
        in_use = int(np.count_nonzero(self.drivers))
        if len(self._named) <= 2 * in_use + _SPARE:
            return
        for description, kind in list(self._named.items()):
            if not self.drivers[kind]:
                del self._named[description]
                self._unused.append(kind)

    def suits(self, where: Where) -> Bools:
        """Per kind, whether its drivers meet the condition (leaving `exclude` aside); empty where no kind's do."""
        key = (where.vehicle_classes, where.seats_min, where.available_only, where.tags)
        found = self._suits.get(key)
        if found is None:
            if len(self._suits) >= _WHERES_KEPT:
                self._suits.clear()
            met = [_meets(told, where) for told in self.told]
            found = self._suits[key] = np.array(met if any(met) else [], dtype=np.bool_)
        return found


def told_of(description: bytes) -> Told:
    seats, flags, vehicle_class, tags = _KIND.unpack(description)
    return vehicle_class.rstrip(b"\0").decode(errors="replace"), seats, bool(flags & FLAG_AVAILABLE), tags


def _meets(told: Told, where: Where) -> bool:
    vehicle_class, seats, available, tags = told
    return (
        seats >= where.seats_min
        and tags & where.tags == where.tags
        and (available or not where.available_only)
        and (where.vehicle_classes is None or vehicle_class in where.vehicle_classes)
    )
