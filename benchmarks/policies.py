"""Who decides when, in a city of virtual time.

Every policy decides through the code of the live service: `demand_of`, `build` and `solve`. What the service does
beyond that, writing down reasons and committing, sends nobody elsewhere. Policies differ in when they decide, over
which rides, and in the market's prices. None takes back what it has decided.

- `greedy`: each ride, at the moment of its request, gets the nearest idle driver. While none is idle, rides wait
  first come first served: a driver that becomes idle is sent at once to the ride that has waited longest, however
  far within the market's limits. Rides are decided one at a time.
- `nearest`: greedy from both sides: a ride takes the nearest idle driver, and while rides wait, a driver that
  becomes idle takes the nearest of them. Where rides outnumber drivers this is the far stronger greedy.
- `0`: the optimum over all that wait and all that are idle, at every event; `1`, `2` and so on: every so many
  seconds.
- `adaptive`: the same optimum when matcher.window says so.
- `places`: `adaptive`, and a driver also costs what its place will miss it for (matcher.foresight).
- `foresight`: `places`, and engaged drivers whose trips end within SOON_S are looked at too, at their drop-offs
  and for the seconds until then. Only idle drivers are sent; a ride meant for another waits, and is decided anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.virtual_city import NEVER_MS, Floats, RoadWays, World
from geo.model import DriverId
from matcher.batch import Batch, build, demand_of
from matcher.foresight import Fleet, PastRides, PlaceCosts
from matcher.model import Ride, RideId
from matcher.optimum import solve
from matcher.outcomes import Waiting
from matcher.policy import Market
from matcher.problem import UNMATCHED, Ints, Problem, Solution, WaysOf, on_grid
from matcher.window import AdaptiveWindow

WINDOWS_S: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
#: An engaged driver is looked at when its trip ends within so many seconds.
SOON_S: Final = 20.0
#: How far back the rides are taken for a sample of those to come, and how often.
SPAN_S, SAMPLE_EVERY_S = 600.0, 60.0
#: Rides fewer than this are no sample.
SAMPLE_RIDES_MIN = 10


@dataclass(slots=True)
class Desk:
    """Decides batches as the dispatcher does, and counts what that takes in real time."""

    world: World
    market: Market
    batches: int = 0
    uncertified: int = 0
    solve_s: list[float] = field(default_factory=list)

    def decide(self, rides: Sequence[Ride]) -> Solution:
        """Decides over these rides and sends the drivers off. Returns what was decided."""
        world, limit = self.world, self.market.rides_per_batch_max
        waiting = Waiting(world.now_ms, list(rides[:limit]), self._engaged(), {})
        demand = demand_of(waiting, self.market)
        batch = self._priced(build(demand, world.index, world.now_ms, idle_since_ms=world.idle_since_ms))
        began = time.perf_counter()
        solution = solve(batch.problem, ways_of(world, batch.problem))
        self.solve_s.append(time.perf_counter() - began)
        self.batches += 1
        self.uncertified += not solution.certified
        solution = self._kept(batch, solution)
        matched = np.flatnonzero(solution.driver_of != UNMATCHED).tolist()
        chosen = [batch.supply.driver_ids[driver] for driver in solution.driver_of[matched].tolist()]
        assert all(world.index.fresh(chosen, world.now_ms))
        world.send((demand.rides[ride].ride_id, driver_id) for ride, driver_id in zip(matched, chosen, strict=True))
        return solution

    def _engaged(self) -> frozenset[DriverId]:
        return frozenset(self.world.engaged)

    def _priced(self, batch: Batch) -> Batch:
        return batch

    def _kept(self, batch: Batch, solution: Solution) -> Solution:
        return solution


def ways_of(world: World, problem: Problem) -> WaysOf | None:
    """Who prices a problem's pairs: the roads, or None where straight lines do."""
    ways = world.city.ways
    if not isinstance(ways, RoadWays):
        return None

    def seconds(ride: Ints, driver: Ints) -> Floats:
        drivers, origin = np.unique(driver, return_inverse=True)
        rides, target = np.unique(ride, return_inverse=True)
        return ways.among(
            (problem.driver_lat[drivers], problem.driver_lon[drivers]),
            (problem.ride_lat[rides], problem.ride_lon[rides]),
            origin,
            target,
        )

    return seconds


class Policy(Protocol):
    def due_ms(self, world: World) -> int:
        """When to decide next, at once where that is not after the present. Asked whenever anything happened."""

    def decide(self, desk: Desk) -> None: ...


class Greedy:
    """One ride at a time, the oldest first, whenever anybody is idle.

    Who waits and who is idle stand still, so a ride that found nobody in reach is tried again only when somebody
    else has become idle.
    """

    def __init__(self) -> None:
        self._tried: set[RideId] = set()
        self._known: set[DriverId] = set()

    def due_ms(self, world: World) -> int:
        return world.now_ms if world.waiting and world.idle_since_ms else NEVER_MS

    def decide(self, desk: Desk) -> None:
        world = desk.world
        for ride in list(world.waiting.values()):
            has_news = ride.ride_id not in self._tried or bool(world.idle_since_ms.keys() - self._known)
            if world.idle_since_ms and has_news:
                desk.decide([ride])
        self._tried = {ride.ride_id for ride in world.waiting.values()}
        self._known = set(world.idle_since_ms)


class Windowed:
    """Everybody at once, at whole multiples of a window; 0: whenever anything happened."""

    def __init__(self, window_s: float) -> None:
        self._window_ms = round(window_s * 1000.0)

    def due_ms(self, world: World) -> int:
        if not world.waiting or not world.idle_since_ms:
            return NEVER_MS
        if not self._window_ms:
            return world.now_ms
        return -(-world.now_ms // self._window_ms) * self._window_ms

    def decide(self, desk: Desk) -> None:
        desk.decide(list(desk.world.waiting.values()))


class Adaptive:
    """Everybody at once, when the adaptive window closes."""

    def __init__(self, window_s_max: float) -> None:
        self._window = AdaptiveWindow(0.0, window_s_max)

    def due_ms(self, world: World) -> int:
        due_ms = self._window.close_at_ms(world.now_ms, len(world.waiting), len(world.idle_since_ms))
        return due_ms if world.waiting and world.idle_since_ms else NEVER_MS

    def decide(self, desk: Desk) -> None:
        solution = desk.decide(list(desk.world.waiting.values()))
        pairs, chosen = solution.pairs, solution.driver_of
        way_s = pairs.way_s[pairs.driver == chosen[pairs.ride]]
        self._window.closed(len(way_s), float(way_s.mean()) if len(way_s) else 0.0)


@dataclass(slots=True)
class FarSighted(Desk):
    """A desk that minds what places will miss, and, for `soon_s` seconds ahead, who will be idle."""

    soon_s: float = 0.0
    _places: PlaceCosts = field(default_factory=PlaceCosts)
    _sampled_ms: int = 0
    _soon: set[DriverId] = field(default_factory=set)
    #: Of each driver what its place costs, and for which end of a trip, that is for which place, this is known.
    _cost_s: Floats = field(init=False)
    _known_ms: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self._cost_s = np.zeros(self.world.city.n_drivers)
        self._known_ms = np.full(self.world.city.n_drivers, NEVER_MS)

    def _engaged(self) -> frozenset[DriverId]:
        world = self.world
        until_ms = world.now_ms + round(self.soon_s * 1000.0)
        coming = np.flatnonzero((world.free_ms > world.now_ms) & (world.free_ms <= until_ms)).tolist()
        self._soon = {world.city.driver_ids[place] for place in coming} & world.engaged
        return frozenset(world.engaged - self._soon)

    def _priced(self, batch: Batch) -> Batch:
        """Drivers who will be idle soon stand at their drop-offs, and each costs what its place will miss."""
        world, problem = self.world, batch.problem
        self._sample()
        drivers = np.array([world.place[driver_id] for driver_id in batch.supply.driver_ids], dtype=np.int64)
        wait_s = np.maximum(0.0, (world.free_ms[drivers] - world.now_ms) / 1000.0)
        driver_s = problem.driver_s + on_grid(wait_s) + self._costs_s(drivers)
        return replace(
            batch,
            problem=replace(problem, driver_lat=world.lat[drivers], driver_lon=world.lon[drivers], driver_s=driver_s),
        )

    def _costs_s(self, drivers: npt.NDArray[np.int64]) -> Floats:
        world = self.world
        moved = drivers[self._known_ms[drivers] != world.free_ms[drivers]]
        self._cost_s[moved] = self._places.at(world.lat[moved], world.lon[moved])
        self._known_ms[moved] = world.free_ms[moved]
        return self._cost_s[drivers]

    def _kept(self, batch: Batch, solution: Solution) -> Solution:
        """The solution without those who are not idle yet."""
        if not self._soon:
            return solution
        is_soon = np.array([driver_id in self._soon for driver_id in batch.supply.driver_ids], dtype=np.bool_)
        chosen = solution.driver_of
        waits = (chosen != UNMATCHED) & is_soon[chosen]
        return replace(solution, driver_of=np.where(waits, UNMATCHED, chosen).astype(np.int32))

    def _sample(self) -> None:
        """Learns the places' costs anew where that is due, from nothing but the past and the trips under way."""
        world, now_ms = self.world, self.world.now_ms
        if now_ms - self._sampled_ms < SAMPLE_EVERY_S * 1000.0:
            return
        self._sampled_ms = now_ms
        self._known_ms[:] = NEVER_MS
        city, span_s = world.city, min(SPAN_S, now_ms / 1000.0)
        first, last = np.searchsorted(city.requested_ms, (now_ms - round(span_s * 1000.0), now_ms), side="right")
        some = slice(int(first), int(last))
        if last - first < SAMPLE_RIDES_MIN:
            return
        past = PastRides(
            (now_ms - city.requested_ms[some]) / 1000.0,
            city.pickup_lat[some],
            city.pickup_lon[some],
            city.dropoff_lat[some],
            city.dropoff_lon[some],
            city.service_ms[some] / 1000.0,
        )
        there = np.flatnonzero(city.seen_ms <= now_ms)
        fleet = Fleet(np.maximum(0.0, (world.free_ms[there] - now_ms) / 1000.0), world.lat[there], world.lon[there])
        s_per_m = self.market.detour_factor / self.market.speed_mps
        self._places.learn(past, fleet, span_s, s_per_m)


@dataclass(frozen=True, slots=True)
class Named:
    """A policy by name: how it is made, and what of the market's prices it changes."""

    name: str
    policy: Callable[[Market], Policy]
    desk: Callable[[World, Market], Desk] = Desk
    market: Mapping[str, Any] = field(default_factory=dict)


def _windowed(window_s: float) -> Callable[[Market], Policy]:
    return lambda _: Windowed(window_s)


def _adaptive(market: Market) -> Policy:
    return Adaptive(market.window_s_max)


_ALL: Final = (
    Named("greedy", lambda _: Greedy()),
    Named("nearest", _windowed(0.0), market={"unmatched_growth": 0.0}),
    *(Named(f"{window_s:g}", _windowed(window_s)) for window_s in WINDOWS_S),
    Named("adaptive", _adaptive),
    Named("places", _adaptive, FarSighted),
    Named("foresight", _adaptive, lambda world, market: FarSighted(world, market, soon_s=SOON_S)),
)
POLICIES: Final[Mapping[str, Named]] = {each.name: each for each in _ALL}


def play(world: World, policy: Policy, desk: Desk) -> None:
    """Runs the city to the end of its last ride's patience, or until nobody waits any more."""
    city, wake_ms = world.city, NEVER_MS
    end_ms = int(city.requested_ms.max(initial=0)) + city.patience_ms
    while not world.is_over:
        world.advance(min(world.next_ms, wake_ms, end_ms))
        wake_ms = policy.due_ms(world)
        if wake_ms <= world.now_ms:
            policy.decide(desk)
            wake_ms = NEVER_MS
