"""What no policy can undercut: the optimum in hindsight, bounded from below by one assignment.

The relaxation. Whatever a policy decides, each ride it serves is served by a driver who comes from somewhere:
from the place where that driver first appeared, or from the drop-off of the ride it served before; and each
such *source* is left for one ride at most. So a plan is an assignment of rides to sources, and serving ride j
from source i takes, from the request to the driver's arrival, at least

    drive(i, j) + max(0, ready(i) - requested(j))   seconds:

nobody drives off before the request is there (no anticipation), nor before the source is ready. A driver is
ready when it appears; ride i's drop-off is ready at requested(i) + soonest(i) + boarding and trip, where
soonest(i) is the least that ride i's own pickup can take from any source (two rounds of this, each a bound
by the one before). Pairs whose driver is ready only after the ride's patience is over are no pairs, nor are
those beyond the market's longest pickup. A ride left unserved costs the price P and its drop-off serves nobody:
it is assigned to its own drop-off at that price. Let L(P) be the least cost of such an assignment of N rides.
A policy that serves K of them pays at least L(P) for its pickups and P for each ride left, so that its pickups
are at least L(P) - P (N - K) seconds in all, whatever P is (Lagrange); the greatest of these over a few P is
stated. Seats are left aside, which only lowers it.

What makes it loose: a drop-off counts as ready as if its ride had been served at its soonest, several rides in
a circle may serve one another, and it knows the whole hour beforehand. How loose, `drive_along` shows: it has
drivers follow that very assignment in true time, which is a plan somebody who knew the future could have made.

The assignment is solved by matcher.augment with columns generated (the pairs of least cost first, then those
that the duals say could matter, until there are none), so that each L(P) is an optimum over all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks.virtual_city import City, Floats, Ints
from matcher import augment
from matcher.problem import STEPS_PER_S, UNMATCHED
from matcher.problem import Ints as Positions

#: Prices of a ride left, in seconds, that are tried.
PRICES_S: Final = (30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3840.0)
#: Of each ride so many cheapest sources are looked at first, and so many more each round.
FIRST: Final = 96
MORE: Final = 32
#: How often the interval between two of the prices is halved.
REFINED: Final = 2
_ENOUGH_S: Final = 2.0**20
_RIDES_AT_ONCE: Final = 64

#: Pairs in columns: ride, source, seconds from the request to the arrival.
_Columns = tuple[Positions, Positions, Floats]


@dataclass(frozen=True, slots=True)
class Bound:
    """L(P) and the assignment behind it: `source_of[j]` is ride j's source, m + j where it is left."""

    price_s: float
    least_s: float
    served: int
    source_of: Positions

    def pickups_s(self, rides: int, served: int) -> float:
        """What the pickups of any plan that serves so many of the rides take in all, at least."""
        return self.least_s - self.price_s * (rides - served)


@dataclass(frozen=True, slots=True)
class Driven:
    """The assignment driven in true time: how many rides are reached before their patience is over, and how soon."""

    served: int
    mean_pickup_s: float


@dataclass(slots=True)
class Hindsight:
    """Bounds for one city, solved when first asked for. Sources are drivers (0 to m - 1), then drop-offs."""

    city: City
    reach_s: float
    _ready_s: Floats = field(init=False)
    _order: Ints = field(init=False)  # sources by the time at which they are ready
    _pairs: _Pairs = field(init=False)
    _bounds: dict[float, Bound] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        drop_off_s = (self.city.requested_ms + self.city.service_ms) / 1000.0
        self._ready_s = np.concatenate((self.city.seen_ms / 1000.0, drop_off_s))
        for _ in range(2):
            self._order = np.argsort(self._ready_s, kind="stable")
            soonest_s = self._soonest_s()
            self._ready_s[self.city.n_drivers :] = drop_off_s + soonest_s
        self._order = np.argsort(self._ready_s, kind="stable")
        self._pairs = _Pairs(self.city.n_rides, self.city.n_drivers + self.city.n_rides)

    def mean_pickup_s(self, served: int) -> float:
        """No plan that serves so many rides has a lower mean pickup than this."""
        return max(0.0, max(bound.pickups_s(self.city.n_rides, served) for bound in self._around(served)) / served)

    def drive_along(self) -> Driven:
        """The assignment of the greatest price solved so far, driven."""
        return _driven(self.city, self._bounds[max(self._bounds)].source_of, self.reach_s)

    def _around(self, served: int) -> Iterator[Bound]:
        """Bounds whose prices close in on the one at which so many rides are served: the best lies there."""
        low, high = 0, len(PRICES_S) - 1
        while low < high:
            middle = (low + high) // 2
            bound = self._bound(PRICES_S[middle])
            yield bound
            low, high = (low, middle) if bound.served >= served else (middle + 1, high)
        bound = self._bound(PRICES_S[low])
        yield bound
        below, above = PRICES_S[max(0, low - 1)], PRICES_S[low]
        for _ in range(REFINED if bound.served > served else 0):
            price_s = round(math.sqrt(below * above))
            bound = self._bound(price_s)
            yield bound
            below, above = (below, price_s) if bound.served >= served else (price_s, above)

    def _bound(self, price_s: float) -> Bound:
        if price_s not in self._bounds:
            self._bounds[price_s] = self._solve(price_s)
        return self._bounds[price_s]

    def _solve(self, price_s: float) -> Bound:
        n, m, pairs = self.city.n_rides, self.city.n_drivers, self._pairs
        if not len(pairs.ride):
            pairs.join(*self._cheapest())
        pairs.leave_at(price_s, m)
        while True:
            pairs.settle()
            fresh = self._improving()
            if not len(fresh[0]):
                break
            pairs.join(*fresh)
        source_of = pairs.source_of.copy()
        least_s = n * _ENOUGH_S - float(pairs.y_ride.sum() + pairs.y_source.sum())
        return Bound(price_s, least_s, int(np.count_nonzero(source_of != m + np.arange(n))), source_of)

    # All pairs, some rides at a time

    def _blocks(self, rides: Ints, most_s: Floats) -> Iterator[tuple[Ints, Ints, Floats]]:
        """Of a few rides at a time the sources that may serve any of them and their costs, (rides, sources).

        Pairs that cost more than `most_s` of their ride (which runs beside `rides`) may be left out.
        """
        city = self.city
        places = (
            np.concatenate((city.start_lat, city.dropoff_lat)),
            np.concatenate((city.start_lon, city.dropoff_lon)),
        )
        requested_s, patience_s = city.requested_ms / 1000.0, city.patience_ms / 1000.0
        ready_s = self._ready_s[self._order]
        for first in range(0, len(rides), _RIDES_AT_ONCE):
            some = rides[first : first + _RIDES_AT_ONCE]
            # The wait alone must not cost more.
            last_s = float((requested_s[some] + np.minimum(patience_s, most_s[first : first + _RIDES_AT_ONCE])).max())
            sources = self._order[: np.searchsorted(ready_s, last_s, side="right")]
            pickups = (city.pickup_lat[some], city.pickup_lon[some])
            drive_s = city.ways.table((places[0][sources], places[1][sources]), pickups)
            wait_s = np.maximum(0.0, self._ready_s[sources][None, :] - requested_s[some][:, None])
            allowed = (drive_s <= self.reach_s + 1.0 / STEPS_PER_S) & (wait_s < patience_s)
            allowed &= sources[None, :] != city.n_drivers + some[:, None]
            # Rounded down to the grid of costs: a bound stays one.
            yield some, sources, np.where(allowed, np.floor((drive_s + wait_s) * STEPS_PER_S) / STEPS_PER_S, np.inf)

    def _all(self) -> Iterator[tuple[Ints, Ints, Floats]]:
        return self._blocks(np.arange(self.city.n_rides), np.full(self.city.n_rides, np.inf))

    def _soonest_s(self) -> Floats:
        """0 for a ride that nobody can serve: it is never a source then, and a lower bound is wanted."""
        soonest_s = np.zeros(self.city.n_rides)
        for rides, _, cost_s in self._all():
            soonest_s[rides] = cost_s.min(axis=1, initial=np.inf)
        return np.where(np.isfinite(soonest_s), soonest_s, 0.0)

    def _cheapest(self) -> _Columns:
        parts = []
        for rides, sources, cost_s in self._all():
            k = min(FIRST, cost_s.shape[1])
            column = np.argpartition(cost_s, k - 1, axis=1)[:, :k] if k else np.empty((len(rides), 0), np.intp)
            row = np.broadcast_to(np.arange(len(rides))[:, None], column.shape)
            finite = np.isfinite(cost_s[row, column])
            parts.append(_columns(rides, sources, cost_s, row[finite], column[finite]))
        return _joined(parts)

    def _improving(self) -> _Columns:
        """Pairs outside that could lower the cost: those cheaper than the duals of their ride and source say."""
        u, y = _ENOUGH_S - self._pairs.y_ride, self._pairs.y_source
        # What is known of a ride is complete up to the dearest of its cheapest pairs.
        asked = np.flatnonzero(u > self._pairs.complete_s)
        parts = []
        for rides, sources, cost_s in self._blocks(asked, u[asked]):
            short_s = u[rides][:, None] - y[sources][None, :] - cost_s
            row, column = np.nonzero(short_s > 0.0)
            chosen = _greatest(row, short_s[row, column], MORE)
            parts.append(_columns(rides, sources, cost_s, row[chosen], column[chosen]))
        return _joined(parts)


def _greatest(row: Ints, value: Floats, k: int) -> Ints:
    """Positions of the k greatest values of each row; rows ascend."""
    order = np.lexsort((-value, row))
    starts = np.searchsorted(row[order], row[order], side="left")
    return order[np.arange(len(order)) - starts < k]


def _columns(rides: Ints, sources: Ints, cost_s: Floats, row: Ints, column: Ints) -> _Columns:
    return rides[row].astype(np.int32), sources[column].astype(np.int32), cost_s[row, column]


def _joined(parts: list[_Columns]) -> _Columns:
    if not parts:
        return np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0)
    ride, source, cost_s = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ride, source, cost_s


@dataclass(slots=True)
class _Pairs:
    """The pairs looked at, and the assignment among them with its duals, kept from one solve to the next."""

    n: int
    sources: int
    ride: Positions = field(default_factory=lambda: np.empty(0, np.int32))
    source: Positions = field(default_factory=lambda: np.empty(0, np.int32))
    cost_s: Floats = field(default_factory=lambda: np.empty(0))
    left_s: float = 0.0
    first_drop_off: int = 0
    complete_s: Floats = field(init=False)
    y_ride: Floats = field(init=False)
    y_source: Floats = field(init=False)
    source_of: Positions = field(init=False)
    ride_of: Positions = field(init=False)

    def __post_init__(self) -> None:
        self.y_ride, self.y_source = np.zeros(self.n), np.zeros(self.sources)
        self.source_of = np.full(self.n, UNMATCHED, np.int32)
        self.ride_of = np.full(self.sources, UNMATCHED, np.int32)
        self.complete_s = np.zeros(self.n)

    def join(self, ride: Positions, source: Positions, cost_s: Floats) -> None:
        if not len(self.ride):
            counts = np.bincount(ride, minlength=self.n)
            np.maximum.at(self.complete_s, ride, cost_s)
            self.complete_s[counts < FIRST] = np.inf
        self.ride, self.source = np.concatenate((self.ride, ride)), np.concatenate((self.source, source))
        self.cost_s = np.concatenate((self.cost_s, cost_s))

    def leave_at(self, price_s: float, first_drop_off: int) -> None:
        """From now on a ride left costs so much; those that were left before are to be decided anew."""
        own = first_drop_off + np.arange(self.n)
        left = np.flatnonzero(self.source_of == own)
        self.ride_of[own[left]] = UNMATCHED
        self.source_of[left] = UNMATCHED
        self.y_ride[left] = 0.0
        self.left_s, self.first_drop_off = price_s, first_drop_off

    def settle(self) -> None:
        """Everything optimal among the pairs."""
        own = np.arange(self.n, dtype=np.int32)
        ride = np.concatenate((self.ride, own))
        source = np.concatenate((self.source, (self.first_drop_off + own).astype(np.int32)))
        gain_s = _ENOUGH_S - np.concatenate((self.cost_s, np.full(self.n, self.left_s)))
        rides = augment.rows_of(ride, source, gain_s, self.n)
        sources = augment.rows_of(source, ride, gain_s, self.sources)
        augment.settle(rides, sources, self.y_ride, self.y_source, self.source_of, self.ride_of)


def _driven(city: City, source_of: Positions, reach_s: float) -> Driven:
    n, m = city.n_rides, city.n_drivers
    follower = np.full(m + n, UNMATCHED, np.int64)
    served = np.flatnonzero(source_of != m + np.arange(n))
    follower[source_of[served]] = served
    pickups_s: list[float] = []
    for driver in range(m):
        lat, lon, idle_ms, ride = city.start_lat[driver], city.start_lon[driver], city.seen_ms[driver], follower[driver]
        while ride != UNMATCHED:
            here, there = (lat[None], lon[None]), (city.pickup_lat[ride, None], city.pickup_lon[ride, None])
            leaves_ms = max(idle_ms, city.requested_ms[ride])
            drive_s = float(city.ways.table(here, there)[0, 0])
            if leaves_ms < city.requested_ms[ride] + city.patience_ms and drive_s <= reach_s:
                pickups_s.append((leaves_ms - city.requested_ms[ride]) / 1000.0 + drive_s)
                idle_ms = leaves_ms + round(drive_s * 1000.0) + city.service_ms[ride]
                lat, lon = city.dropoff_lat[ride], city.dropoff_lon[ride]
            ride = follower[m + ride]
    return Driven(len(pickups_s), float(np.mean(pickups_s)) if pickups_s else 0.0)
