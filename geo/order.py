"""Drivers in the order of their ids: newcomers are put among those who are in order already."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from geo.model import DriverId

Slots = npt.NDArray[np.int32]
#: Newcomers are put in their places one by one while they are no more than this part of all; else all are sorted,
#: which is quick where most are in order.
_FEW: Final = 64


def with_newcomers(order: Slots, newcomers: Slots, ids: Sequence[DriverId | None]) -> Slots:
    """The slots in order, among which these, too, have their places."""
    name_of: Callable[[int], str] = ids.__getitem__  # type: ignore[assignment]  # slots in use have drivers
    if len(newcomers) * _FEW > len(order):
        return np.array(sorted([*order.tolist(), *newcomers.tolist()], key=name_of), dtype=np.int32)
    newcomers = np.array(sorted(newcomers.tolist(), key=name_of), dtype=np.int32)
    places = [bisect.bisect_left(order, name_of(slot), key=name_of) for slot in newcomers.tolist()]
    return np.insert(order, places, newcomers)
