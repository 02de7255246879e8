"""Has what the index and distances are made of compiled, or loaded from an earlier compilation, before anybody waits.

`python -m geo.warm` does so when hexhail is installed, a service process when it starts. The first time ever takes
some ten seconds, later ones a fraction of one.
"""

from __future__ import annotations

import numpy as np

from geo.distance import distance_m
from geo.index import DriverIndex
from geo.model import DriverId, LatLng, Removal, Stamp, Where
from geo.records import RECORD, PositionBatch
from geo.search import in_tenths


def warm() -> None:
    """Calls everything compiled once, as the service will. It may run in a thread of its own."""
    index = DriverIndex(resolution=0, stale_after_ms=1)
    driver_id = DriverId("warm")
    anyone = Where(seats_min=0, available_only=False)
    index.reset(PositionBatch([driver_id], np.zeros(1, dtype=RECORD)))
    found = index.nearest_columns(LatLng(0.0, 0.0), 1, where=anyone, now_ms=0)
    in_tenths(found.floats, found.whole, 1.0, 1.0)
    index.candidates([0.0], [0.0], 1, where=anyone, now_ms=0)
    index.apply(PositionBatch([], np.zeros(0, dtype=RECORD), [Removal(driver_id, Stamp(0, 0, 0))]))
    distance_m(0.0, 0.0, [0.0], [0.0])


if __name__ == "__main__":
    warm()
