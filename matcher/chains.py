"""Drivers near the end of a trip are supply for one ride more, from where the trip ends.

Pure. The rest of the present trip is told by a straight line at the market's pace from where the driver was seen last
to the destination; it is a part of what the next ride costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from geo.distance import distance_m
from geo.model import DriverId
from geo.supply import Supply
from matcher.outcomes import Carrying
from matcher.policy import Market
from matcher.problem import Bools, Floats, on_grid


@dataclass(frozen=True, slots=True)
class Chained:
    """A supply with drivers who are not free yet, shapes (drivers,).

    Where `is_chained`, the driver stands at its drop-off `remaining_s` from now; others are free at once.
    """

    supply: Supply
    remaining_s: Floats
    is_chained: Bools


def still_engaged(engaged: frozenset[DriverId], carrying: Sequence[Carrying]) -> frozenset[DriverId]:
    """Who is no supply in any case."""
    return engaged.difference(each.driver_id for each in carrying)


def chained(supply: Supply, carrying: Sequence[Carrying], market: Market) -> Chained:
    """Moves those who carry a passenger to where they will be free; who will not be soon enough is left out.

    `supply` holds all who are fresh and available, those of `carrying` included.
    """
    count = len(supply.driver_ids)
    remaining_s, is_chained = np.zeros(count), np.zeros(count, np.bool_)
    place = {driver_id: position for position, driver_id in enumerate(supply.driver_ids)} if carrying else {}
    known = [(place[each.driver_id], each) for each in carrying if each.driver_id in place]
    if not known:
        return Chained(supply, remaining_s, is_chained)
    at = np.array([position for position, _ in known], dtype=np.int64)
    lat, lon = supply.lat.copy(), supply.lon.copy()
    to_lat = np.array([each.dropoff.lat for _, each in known], dtype=np.float64)
    to_lon = np.array([each.dropoff.lon for _, each in known], dtype=np.float64)
    remaining_s[at] = market.pickup_s(distance_m(lat[at], lon[at], to_lat, to_lon))
    lat[at], lon[at], is_chained[at] = to_lat, to_lon, True
    soon = remaining_s <= market.chain_within_s
    return _those(Chained(replace(supply, lat=lat, lon=lon), on_grid(remaining_s), is_chained), soon)


def _those(all_of_them: Chained, wanted: npt.NDArray[np.bool_]) -> Chained:
    if wanted.all():
        return all_of_them
    supply = all_of_them.supply
    kept = np.flatnonzero(wanted)
    return Chained(
        replace(
            supply,
            driver_ids=[supply.driver_ids[position] for position in kept.tolist()],
            lat=supply.lat[kept],
            lon=supply.lon[kept],
            kind=supply.kind[kept],
        ),
        all_of_them.remaining_s[kept],
        all_of_them.is_chained[kept],
    )
