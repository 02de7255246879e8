"""Where a measured city's rides begin and end, and where its drivers stand at first.

Drawn around hot spots, or taken in turn from a recorded hour's file; when rides are asked is not the city's
business here, but the rate's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cities import SyntheticCity, Wish, metres_between, moved
from benchmarks.recorded import RecordsError, Rejects, read_rides
from geo.model import LatLng

#: A recorded hour may hold a ride from the airport of the next town.
RADIUS_M_MAX = 60_000.0
_SPREAD_M = 300.0
#: Drawn once and taken in turn, so that drawing costs nothing while it is measured.
_WISHES = 20_000


@dataclass(frozen=True, slots=True)
class Places:
    """`center` and `radius_m` hold all of it; `wishes` are taken in turn, without end."""

    center: LatLng
    radius_m: float
    wishes: Sequence[Wish]
    starts: Sequence[LatLng]


def places_of(seed: int, drivers: int, rides_file: str | None) -> Places:
    """Raises RecordsError where the file has no ride that can be used."""
    return _synthetic(seed, drivers) if rides_file is None else _recorded(seed, drivers, Path(rides_file))


def _synthetic(seed: int, drivers: int) -> Places:
    city = SyntheticCity.draw(seed, spots=12, radius_m=5_000.0)
    drawn = city.wishes(60.0)
    wishes = [next(drawn) for _ in range(_WISHES)]
    return Places(city.center, RADIUS_M_MAX, wishes, [start.at for start in city.drivers(drivers)])


def _recorded(seed: int, drivers: int, path: Path) -> Places:
    """Drivers start where rides of the same hour ended: that is where taxis are."""
    wishes = read_rides(path, Rejects())
    if not wishes:
        raise RecordsError(f"{path} has no ride that can be used")
    middle = wishes[len(wishes) // 2].pickup
    near = [
        wish
        for wish in wishes
        if max(metres_between(middle, wish.pickup), metres_between(middle, wish.dropoff)) < RADIUS_M_MAX
    ]
    rng = random.Random(f"{seed}/places")
    rng.shuffle(near)
    ends = [rng.choice(near).dropoff for _ in range(drivers)]
    starts = [moved(end, rng.gauss(0.0, _SPREAD_M), rng.gauss(0.0, _SPREAD_M)) for end in ends]
    return Places(middle, RADIUS_M_MAX * 1.1, near, starts)


def in_turn(wishes: Sequence[Wish]) -> Iterator[Wish]:
    while True:
        yield from wishes
