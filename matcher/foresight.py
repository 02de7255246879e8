"""What it costs the rides to come to take a driver away from where it is: opportunity costs of places. Pure.

Of two drivers about as near, the one to send is the one whose place will miss it less. How much it will be
missed is read from the recent past: the rides of the last span are taken for a sample of those of the next,
asked for once more, each a span later, and assigned to the drivers there are: idle ones where they stand, and
engaged ones where and when their trips end, and whom the sampled rides free again. The duals of that assignment
say by how much all those pickups would have been shorter with one more driver in that driver's place. One sample
says little of one driver, so a place costs what its nearest neighbours do on average, over the last samples.

Sources: duals as marginal values of resources in dispatch are common in approximate dynamic programming (W. B.
Powell, H. P. Simão and B. Bouzaiene-Ayari, "Approximate dynamic programming in transportation and logistics:
a unified framework", EURO Journal on Transportation and Logistics 1, 2012); the past of the same day as sample
of its future is historical sampling (P. Van Hentenryck and R. Bent, "Online Stochastic Combinatorial
Optimization", MIT Press, 2006); a value of places learnt for the dispatch of a ride-hailing service (Z. Xu and
others, "Large-scale order dispatch in on-demand ride-hailing platforms: a learning and planning approach",
KDD 2018).

Nothing here is needed for a valid plan: costs of zero are the plain optimum. The plan stays proven, of its cost.
This module knows no clock, no index and no market; places are degrees, times seconds and given by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from geo.distance import sphere_points_m
from matcher import augment, reach
from matcher.problem import UNMATCHED, Floats, Ints, on_grid

#: A sampled ride that finds no driver within this long after being asked for ...
WAIT_S_MAX: Final = 150.0
#: ... is left at this price, and frees no driver.
LEFT_S: Final = 600.0
#: So many neighbours share a cost, and so many samples are kept.
NEIGHBOURS: Final = 30
SAMPLES: Final = 3
#: Who is idle only later in the span than this part of it is missed by fewer of its rides, and tells nothing.
EARLY: Final = 0.25
#: Far above any price: each sampled ride is paired, if only with nobody.
_ENOUGH_S: Final = 2.0**20
_RIDES_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class PastRides:
    """The rides of the last span, (rides,): how long ago they were asked for, from where to where, and for how
    long each keeps its driver from the arrival at the pickup on."""

    ago_s: Floats
    pickup_lat: Floats
    pickup_lon: Floats
    dropoff_lat: Floats
    dropoff_lon: Floats
    service_s: Floats

    def __len__(self) -> int:
        return len(self.ago_s)


@dataclass(frozen=True, slots=True)
class Fleet:
    """All drivers at work, (drivers,): when each is idle, 0 for now, and where it is then."""

    idle_in_s: Floats
    lat: Floats
    lon: Floats

    def __len__(self) -> int:
        return len(self.idle_in_s)


def opportunity_costs(past: PastRides, fleet: Fleet, span_s: float, s_per_m: float) -> Floats:
    """By how many seconds one more driver in each driver's place would shorten the pickups of the next span.

    Shape (drivers,), never negative. Ways take `s_per_m` seconds a metre of straight line.
    """
    n, m = len(past), len(fleet)
    if not n or not m:
        return np.zeros(m)
    ride, source, cost_s = _pairs(past, fleet, span_s, s_per_m)
    # Paired with its own drop-off, a ride is left: it frees nobody there.
    own = np.arange(n, dtype=np.int32)
    ride, source = np.concatenate((ride, own)), np.concatenate((source, m + own))
    gain_s = _ENOUGH_S - np.concatenate((on_grid(cost_s), np.full(n, LEFT_S)))
    rides, sources = augment.rows_of(ride, source, gain_s, n), augment.rows_of(source, ride, gain_s, m + n)
    y_rides, y_sources = np.zeros(n), np.zeros(m + n)
    mates = np.full(n, UNMATCHED, np.int32), np.full(m + n, UNMATCHED, np.int32)
    augment.settle(rides, sources, y_rides, y_sources, *mates)
    return y_sources[:m].copy()


def _pairs(past: PastRides, fleet: Fleet, span_s: float, s_per_m: float) -> tuple[Ints, Ints, Floats]:
    """Sampled rides, the drivers and drop-offs that reach them in time, and the seconds from request to arrival."""
    asked_s = span_s - past.ago_s
    ready_s = np.concatenate((fleet.idle_in_s, asked_s + past.service_s))
    place = sphere_points_m(
        np.concatenate((fleet.lat, past.dropoff_lat)), np.concatenate((fleet.lon, past.dropoff_lon))
    )
    pickup = sphere_points_m(past.pickup_lat, past.pickup_lon)
    parts = []
    for first in range(0, len(past), _RIDES_AT_ONCE):
        some = slice(first, first + _RIDES_AT_ONCE)
        # Chords for arcs: they differ by a metre in a hundred kilometres.
        away_m = np.sqrt(sum((pickup[some, axis, None] - place[None, :, axis]) ** 2 for axis in range(3)))
        cost_s = away_m * s_per_m + np.maximum(0.0, ready_s[None, :] - asked_s[some, None])
        ride, source = np.nonzero(cost_s <= WAIT_S_MAX)
        foreign = source != len(fleet) + first + ride
        ride, source = ride[foreign], source[foreign]
        parts.append(((ride + first).astype(np.int32), source.astype(np.int32), cost_s[ride, source]))
    rides, sources, costs_s = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rides, sources, costs_s


@dataclass(slots=True)
class PlaceCosts:
    """What is known of the costs of places; zero everywhere until something is."""

    _samples: list[tuple[Floats, Floats]] = field(default_factory=list)
    _forest: reach.Forest | None = None
    _cost_s: Floats = field(default_factory=lambda: np.zeros(0))

    def learn(self, past: PastRides, fleet: Fleet, span_s: float, s_per_m: float) -> None:
        """Takes in for what the fleet's drivers would be missed, were the last span to come again."""
        cost_s, early = opportunity_costs(past, fleet, span_s, s_per_m), fleet.idle_in_s <= EARLY * span_s
        place = sphere_points_m(fleet.lat[early], fleet.lon[early])
        self._samples = [*self._samples[1 - SAMPLES :], (place, cost_s[early])]
        places, costs_s = zip(*self._samples, strict=True)
        self._cost_s = np.concatenate(costs_s)
        self._forest = reach.plant(np.concatenate(places), np.zeros(len(self._cost_s), np.int32), 1)

    def at(self, lat: Floats, lon: Floats) -> Floats:
        """The costs of these places in seconds, on the grid of costs."""
        if self._forest is None or not len(self._cost_s) or not len(lat):
            return np.zeros(len(lat))
        k, asked = min(NEIGHBOURS, len(self._cost_s)), np.arange(len(lat), dtype=np.int32)
        endless = np.full((1, 1), np.inf)
        near, _, _ = reach.best_partners(
            self._forest,
            reach.Ways(1.0, endless, endless),
            np.zeros((1, 1)),
            reach.nothing_known(len(lat)),
            asked,
            np.zeros(len(lat), np.bool_),
            sphere_points_m(lat, lon),
            np.zeros(len(lat), np.int32),
            np.full(len(lat), -np.inf),
            k,
        )
        return on_grid(self._cost_s[near[:, 1]].reshape(len(lat), k).mean(axis=1))
