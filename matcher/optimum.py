"""The optimum of a problem over *all* its pairs, with the duals that prove it.

In the symmetric form of matcher.augment: pairing ride i with driver j gains `price_s[i] - cost[i, j]`, and
duals `y >= 0` of rides and drivers cover every gain. The graph starts with the pairs that are worth most
to either side; after each solve the duals tell which pairs outside could still improve it, an exact search
(matcher.reach) finds the worst of them, and only these join (column generation: L. R. Ford and D. R.
Fulkerson, 1958). When none is left the plan is optimal over all pairs.

Where supply is scarce, duals of the nearest pairs alone say little: drivers of a crowded place serve rides
far off. So large problems are first solved on a sample (every 4th, 16th ... point in the trees' order, which
spreads evenly over the map), and each sample's duals, carried over to the next finer one as the best that a
point could get there (a c-transform, as in multi-scale optimal transport: Q. Mérigot, 2011), start it.

Pure: no clock. `negotiate` is a generator that asks for road times where the problem has them, so that
whoever prices them may wait for a network meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np

from matcher import augment, reach
from matcher.greedy import greedy_among, greedy_over_all
from matcher.problem import (
    UNMATCHED,
    BadProblem,
    Bools,
    Floats,
    Ints,
    Pairs,
    Problem,
    Solution,
    WaysOf,
    check,
    on_grid,
)
from matcher.sides import Fresh, Graph, Search, Side, everyone, start

#: Partners that a point starts with: of the scarcer side, of the other, and how many join a round.
FIRST, FIRST_OTHER, MORE = 24, 8, 24
#: How many times more pairs each round asks for where only a bound of the way's price is known.
MORE_GROWTH = 4
#: A sample is not made of fewer points of the scarcer side, and takes every 4th point.
SAMPLE_MIN, SAMPLE_STEP = 128, 4
#: Road times are not asked for more pairs than this (P10), unless told otherwise.
WAYS_MAX: Final = 2_000_000

#: Alternatives whose price for the city is looked at: some 100 microseconds each.
CITY_PRICED_MAX: Final = 500

Result = TypeVar("Result")
Asked = tuple[Ints, Ints]


def never() -> bool:
    return False


def negotiate(
    problem: Problem,
    *,
    is_over: Callable[[], bool] = never,
    near: int = 0,
    compare: bool = False,
    ways_max: int = WAYS_MAX,
) -> Generator[Asked, Floats, Solution]:
    """Solves the problem; where it `has_ways`, yields pairs (rides, drivers) and wants their ways' seconds back.

    `is_over` ends the search for better pairs early: the plan is then optimal among the pairs looked at,
    with a proven gap. `near` pairs of each ride are looked at whatever the duals say, the cheapest ones, for
    explanations. `compare` also finds what greedy would do. Raises BadProblem.
    """
    check(problem)
    whole = start(problem)
    levels = _levels(len(whole.a))
    coarser: Search | None = None
    for level in range(levels, 0, -1):
        sample = _sampled(whole, SAMPLE_STEP**level)
        _carry(coarser, sample)
        _drive(_solve(sample, is_over, 0, 0))
        coarser = sample
    _carry(coarser, whole)
    graph, numbers, is_proven = yield from _solve(whole, is_over, near, ways_max)
    numbers["levels"] = levels + 1
    solution = _solution(whole, graph, numbers, is_proven=is_proven, compare=compare)
    return _with_alternatives(whole, solution, near, is_priced=is_proven and not is_over()) if near else solution


def solve(
    problem: Problem,
    ways: WaysOf | None = None,
    *,
    is_over: Callable[[], bool] = never,
    near: int = 0,
    compare: bool = False,
    ways_max: int = WAYS_MAX,
) -> Solution:
    """`negotiate` in one go, `ways` pricing the pairs where the problem has road times. Raises BadProblem."""
    if problem.has_ways and ways is None:
        raise BadProblem("the problem has ways, and nobody who prices them was given")
    return _drive(negotiate(problem, is_over=is_over, near=near, compare=compare, ways_max=ways_max), ways)


def _drive(steps: Generator[Asked, Floats, Result], ways: WaysOf | None = None) -> Result:
    try:
        asked = next(steps)
        while True:
            assert ways is not None  # only a problem with ways asks
            asked = steps.send(ways(*asked))
    except StopIteration as stop:
        result: Result = stop.value
        return result


def _levels(points: int) -> int:
    levels = 0
    while points // SAMPLE_STEP ** (levels + 1) >= SAMPLE_MIN:
        levels += 1
    return levels


def _sampled(whole: Search, step: int) -> Search:
    kinds_a, kinds_b = whole.extra_s[0].shape
    a, b = whole.a.sample(step, kinds_a), whole.b.sample(step, kinds_b)
    return Search(whole.problem, a, b, rides_are_a=whole.rides_are_a)


def _carry(coarser: Search | None, finer: Search) -> None:
    """Side b starts with what its points could get among the sample's; side a follows from the first graph."""
    if coarser is None:
        return
    between = Search(finer.problem, coarser.a, finer.b, rides_are_a=finer.rides_are_a)
    found = between.best(everyone(finer.b), np.zeros(len(finer.b)), 1, of_a=False)
    finer.b.y[found.asked] = found.net_s


def _solve(
    search: Search, is_over: Callable[[], bool], near: int, ways_max: int
) -> Generator[Asked, Floats, tuple[Graph, dict[str, int], bool]]:
    """Settles the sides over all pairs; the graph, numbers, and whether no pair is left that could improve it."""
    a, b = search.a, search.b
    graph = Graph(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0))
    fresh = _first_pairs(search, near)
    numbers = {"pairs": 0, "rounds": 0, "scanned": 0}
    ask_a, ask_b, more = np.ones(len(a), np.bool_), np.zeros(len(b), np.bool_), MORE
    while True:
        room = ways_max - len(graph) if search.has_ways else len(fresh[0])
        is_cut = room < len(fresh[0])
        graph.join(*(yield from _priced(search, _worthiest(fresh, room) if is_cut else fresh)))
        before_a, before_b = a.y.copy(), b.y.copy()
        rows_a = augment.rows_of(graph.a, graph.b, graph.gain_s, len(a))
        rows_b = augment.rows_of(graph.b, graph.a, graph.gain_s, len(b))
        _, scanned = augment.settle(rows_a, rows_b, a.y, b.y, a.mate, b.mate)
        numbers = {"pairs": len(graph), "rounds": numbers["rounds"] + 1, "scanned": numbers["scanned"] + scanned}
        if is_cut or is_over():
            return graph, numbers, False
        if numbers["rounds"] > 1:
            # A pair that could not improve the plan before can do so now only if one of its duals has fallen.
            ask_a, ask_b = ask_a | (a.y < before_a), ask_b | (b.y < before_b)
        fresh, ask_a, ask_b = _improving(search, ask_a, ask_b, more, search.known(graph))
        if not len(fresh[0]):
            return graph, numbers, True
        more *= MORE_GROWTH if search.has_ways else 1


def _first_pairs(search: Search, near: int) -> Fresh:
    """What is worth most to each point, beside what side b's duals say; and the `near` cheapest of each ride."""
    a, b = search.a, search.b
    barred = search.barred
    found = search.best(everyone(a), np.zeros(len(a)), FIRST, known=barred[0], spread=True)
    a.y[:] = 0.0
    a.y[found.asked[::-1]] = found.net_s[::-1]  # of each its best, which comes first and so is written last
    other = search.best(everyone(b), np.zeros(len(b)), FIRST_OTHER, of_a=False, known=barred[1], spread=True)
    columns = [(found.asked, found.partner, found.gain_s), (other.partner, other.asked, other.gain_s)]
    if near:
        columns.append(_nearest(search, near))
    return search.distinct(columns)


def _nearest(search: Search, near: int) -> Fresh:
    """The cheapest partners of each ride, worth their price or not."""
    drivers = search.b if search.rides_are_a else search.a
    duals, drivers.y = drivers.y, np.zeros(len(drivers))
    rides = search.a if search.rides_are_a else search.b
    known = search.barred[0 if search.rides_are_a else 1]
    found = search.best(everyone(rides), np.full(len(rides), -np.inf), near, of_a=search.rides_are_a, known=known)
    drivers.y = duals
    pair = (found.asked, found.partner) if search.rides_are_a else (found.partner, found.asked)
    return *pair, found.gain_s


def _improving(
    search: Search, ask_a: Bools, ask_b: Bools, k: int, known: tuple[reach.Known, reach.Known]
) -> tuple[Fresh, Bools, Bools]:
    """Pairs outside the graph that could improve the plan, at most k of each asked point; who has perhaps more."""
    columns, full = [], []
    for side, ask, of_a in ((search.a, ask_a, True), (search.b, ask_b, False)):
        asked = np.flatnonzero(ask).astype(np.int32)
        found = search.best(asked, side.y, k, of_a=of_a, known=known[0 if of_a else 1], spread=True)
        pair = (found.asked, found.partner) if of_a else (found.partner, found.asked)
        columns.append((*pair, found.gain_s))
        full.append(np.zeros(len(side), np.bool_))
        full[-1][found.full] = True
    return search.distinct(columns), full[0], full[1]


def _worthiest(fresh: Fresh, room: int) -> Fresh:
    """So many of the pairs, those that gain most."""
    a, b, gain_s = fresh
    chosen = np.sort(np.argsort(-gain_s, kind="stable")[: max(room, 0)])
    return a[chosen], b[chosen], gain_s[chosen]


def _priced(search: Search, fresh: Fresh) -> Generator[Asked, Floats, Fresh]:
    """The same pairs with the ways that their provider names, never shorter than the straight line."""
    problem, (a, b, gain_s) = search.problem, fresh
    if not search.has_ways or not len(a):
        return fresh
    metres = reach.measure(search.a.place, search.b.place, a, b)
    straight_s = on_grid(metres * problem.s_per_m)
    said_s = yield (a, b) if search.rides_are_a else (b, a)
    if said_s.shape != a.shape or np.isnan(said_s).any():
        raise BadProblem(f"{len(a)} ways were asked for, and {said_s.shape} came back, or some that are no number")
    way_s = np.maximum(on_grid(said_s), straight_s)
    reach_s = problem.reach_s[problem.ride_kind[a if search.rides_are_a else b]]
    gain_s = np.where(way_s <= reach_s, gain_s + straight_s - way_s, -np.inf)
    return a, b, gain_s


def _solution(search: Search, graph: Graph, numbers: dict[str, int], *, is_proven: bool, compare: bool) -> Solution:
    problem, a, b = search.problem, search.a, search.b
    rides, drivers = (a, b) if search.rides_are_a else (b, a)
    pairs = _pairs(search, graph)
    driver_of, cost_s = rides.mate.copy(), math.fsum(paid_by(problem, pairs, rides.mate))
    a.y[:] = a.y if is_proven else _covering(search, graph)
    bound_s = math.fsum(problem.price_s) - math.fsum(a.y) - math.fsum(b.y)
    greedy_of = greedy_s = None
    if compare or not is_proven:
        greedy_of, greedy_s = _greedy(problem, rides, drivers, pairs, search)
        if greedy_s < cost_s:  # the search was cut before it came so far
            pairs = _with_pairs(search, graph, greedy_of)
            driver_of, cost_s = greedy_of.copy(), greedy_s
        numbers = {
            **numbers,
            "components": augment.components(pairs.ride, pairs.driver, problem.n_rides, problem.n_drivers),
        }
    return Solution(
        driver_of=driver_of,
        cost_s=cost_s,
        bound_s=bound_s,
        u=problem.price_s - rides.y,
        v=-drivers.y,
        pairs=pairs,
        greedy_of=greedy_of,
        greedy_s=greedy_s,
        numbers={"rides": problem.n_rides, "drivers": problem.n_drivers, **numbers, "pairs": len(pairs)},
    )


def _greedy(problem: Problem, rides: Side, drivers: Side, pairs: Pairs, search: Search) -> tuple[Ints, float]:
    if search.has_ways:
        driver_of, paid_s = greedy_among(pairs, problem.price_s, problem.n_drivers)
    else:
        known = search.barred[0 if search.rides_are_a else 1]
        driver_of, paid_s = greedy_over_all(
            drivers.forest,
            search.ways[0 if search.rides_are_a else 1],
            problem.extra_s,
            known,
            rides.place,
            rides.kind,
            problem.price_s,
            problem.driver_s,
            *rides.groups(apart=len(known.other) > 0),
        )
    return driver_of, math.fsum(paid_s)


def paid_by(problem: Problem, pairs: Pairs, driver_of: Ints) -> Floats:
    """What each ride costs in a plan of these pairs: its pair, or its price of being left."""
    paid_s = problem.price_s.copy()
    taken = pairs.driver == driver_of[pairs.ride]
    paid_s[pairs.ride[taken]] = pairs.cost_s[taken]
    return paid_s


def _with_pairs(search: Search, graph: Graph, driver_of: Ints) -> Pairs:
    """The graph's pairs and those of a plan by straight lines."""
    problem = search.problem
    ride = np.flatnonzero(driver_of != UNMATCHED).astype(np.int32)
    driver = driver_of[ride]
    a, b = (ride, driver) if search.rides_are_a else (driver, ride)
    way_s = on_grid(reach.measure(search.a.place, search.b.place, a, b) * problem.s_per_m)
    extra_s = problem.extra_s[problem.ride_kind[ride], problem.driver_kind[driver]]
    graph.join(a, b, problem.price_s[ride] - way_s - extra_s - problem.driver_s[driver])
    return _pairs(search, graph)


def _covering(search: Search, graph: Graph) -> Floats:
    """Side a's duals raised until they cover every pair outside the graph too: a proof with a gap."""
    a = search.a
    found = search.best(everyone(a), a.y, 1, known=search.known(graph)[0])
    covering = a.y.copy()
    covering[found.asked] = found.net_s
    return covering


def _with_alternatives(search: Search, solution: Solution, near: int, *, is_priced: bool) -> Solution:
    """The solution with each ride's cheapest pairs, and what those that are cheaper for the ride cost the city."""
    problem, pairs = search.problem, solution.pairs
    cheapest = augment.cheapest_of(pairs.ride, pairs.cost_s, problem.n_rides, near)
    chosen_s = paid_by(problem, pairs, solution.driver_of)
    row, column = np.nonzero(cheapest >= 0)
    is_cheaper = pairs.cost_s[cheapest[row, column]] < chosen_s[row]
    is_cheaper &= solution.driver_of[row] != UNMATCHED  # a ride that is left lost no pair to another
    most = CITY_PRICED_MAX if is_priced else 0  # only an optimum tells what leaving it costs
    row, column = row[is_cheaper][:most], column[is_cheaper][:most]
    pair = cheapest[row, column]
    ride, driver = pairs.ride[pair], pairs.driver[pair]
    gain_s = problem.price_s[pairs.ride] - pairs.cost_s
    rides, drivers = (search.a, search.b) if search.rides_are_a else (search.b, search.a)
    city_more_s = np.full(cheapest.shape, np.nan)
    city_more_s[row, column] = augment.forced(
        augment.rows_of(pairs.ride, pairs.driver, gain_s, problem.n_rides),
        augment.rows_of(pairs.driver, pairs.ride, gain_s, problem.n_drivers),
        rides.y, drivers.y, rides.mate, drivers.mate, ride, driver, gain_s[pair],
    )  # fmt: skip
    return replace(solution, cheapest=cheapest, city_more_s=city_more_s)


def only_told(solution: Solution) -> Solution:
    """The solution with the pairs that an explanation needs, the chosen and the cheapest of each ride, alone.

    Its proof stands without the others, and most of what a process has to send to another goes.
    """
    if solution.cheapest is None:
        return solution
    pairs = solution.pairs
    keep = pairs.driver == solution.driver_of[pairs.ride]
    keep[solution.cheapest[solution.cheapest >= 0]] = True
    place = np.append(np.cumsum(keep, dtype=np.int32) - 1, np.int32(-1))  # the last one stands for -1
    return replace(
        solution,
        pairs=Pairs(pairs.ride[keep], pairs.driver[keep], pairs.way_s[keep], pairs.cost_s[keep]),
        cheapest=place[solution.cheapest],
    )


def _pairs(search: Search, graph: Graph) -> Pairs:
    problem = search.problem
    ride, driver = (graph.a, graph.b) if search.rides_are_a else (graph.b, graph.a)
    keep = augment.ordered(ride, driver, problem.n_rides, problem.n_drivers)
    keep = keep[np.isfinite(graph.gain_s[keep])]
    ride, driver = ride[keep], driver[keep]
    cost_s = problem.price_s[ride] - graph.gain_s[keep]
    extra_s = problem.extra_s[problem.ride_kind[ride], problem.driver_kind[driver]]
    return Pairs(ride, driver, cost_s - extra_s - problem.driver_s[driver], cost_s)
