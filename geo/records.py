"""The columnar form in which positions travel from a feed to its replicas.

One batch is a list of driver ids and, beside it, one fixed-size record a
driver, so that a replica decodes thousands of drivers with one
`numpy.frombuffer` and no Python loop over fields. The feed packs them, the
index reads them; neither knows how the other works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from geo.model import DriverId, Removal

UNKNOWN_U16 = 65535
CLASS_BYTES_MAX = 12

#: Of one driver's record. `fix_ms` is first and alone depends on the feed's clock
#: (it is the feed's time less the fix's age), so that a script inside Redis can
#: put it in front of the bytes that the publisher packed (see PACKED).
_FIELDS = [
    ("fix_ms", "<f8"),  # feed's clock, whole milliseconds; a double because Lua packs it
    ("cell", "<u8"),  # H3 cell at the market's index resolution
    ("lat", "<f8"),  # degrees
    ("lon", "<f8"),
    ("epoch", "<f8"),  # stamp: exact integers below 2**53, as doubles for Lua
    ("instance", "<f8"),
    ("seq", "<f8"),
    ("heading", "<u2"),  # hundredths of a degree, UNKNOWN_U16 when unknown
    ("speed", "<u2"),  # centimetres a second (at most 655.34 m/s), UNKNOWN_U16 when unknown
    ("seats", "u1"),
    ("flags", "u1"),  # bit 0: available
    ("vehicle_class", f"S{CLASS_BYTES_MAX}"),
    ("tags", "<u4"),  # a bit for each tag of the vehicle
]
#: One driver's record.
RECORD = np.dtype(_FIELDS)
FLAG_AVAILABLE = 1
#: The same bytes as compiled code reads them: the class as two numbers.
AS_NUMBERS = np.dtype(
    [
        part
        for name, form in _FIELDS
        for part in ([("class_a", "<u8"), ("class_b", "<u4")] if name == "vehicle_class" else [(name, form)])
    ]
)

Records = npt.NDArray[np.void]


@dataclass(slots=True)
class PositionBatch:
    """Changed positions and removals, in the order in which they took effect.

    `ids[i]` belongs to `records[i]`; a driver stands in a batch once at most.
    Removals are applied after the records. A *snapshot* is a batch that holds
    every driver of the market and replaces what the replica knew.
    """

    ids: Sequence[DriverId]
    records: Records
    removals: Sequence[Removal] = field(default_factory=tuple)
