"""The certificate of a solution, checked by other means than those that made it.

Every pair within reach is listed by brute force, its way measured by another formula (geo.distance's
haversine), and then: the plan is feasible, the duals are feasible over all of these pairs, and the plan's
cost equals the duals' sum. The two formulas may round a way to neighbouring steps of 2**-10 s, which is
all that is allowed to differ.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geo.distance import distance_m
from matcher.problem import UNMATCHED, Floats, Problem, Solution, WaysOf, on_grid

STEP_S = 1.0 / 1024.0


class NoProof(AssertionError):
    """The solution is not what it claims to be."""


def cost_matrix(problem: Problem, ways: WaysOf | None = None) -> Floats:
    """Costs of all pairs, (rides, drivers); infinite where a pair is not allowed."""
    metres = distance_m(
        problem.ride_lat[:, None], problem.ride_lon[:, None], problem.driver_lat[None], problem.driver_lon[None]
    )
    way_s: Floats = on_grid(metres * problem.s_per_m)
    if problem.has_ways:
        assert ways is not None
        rides, drivers = np.divmod(np.arange(metres.size), max(problem.n_drivers, 1))
        said = ways(rides.astype(np.int32), drivers.astype(np.int32)).reshape(metres.shape)
        way_s = np.maximum(on_grid(said), way_s)
    extra_s = problem.extra_s[problem.ride_kind][:, problem.driver_kind]
    reach_m, reach_s = (each[problem.ride_kind][:, None] for each in (problem.reach_m, problem.reach_s))
    allowed = (metres <= reach_m) & (way_s <= reach_s)
    allowed[problem.barred_ride, problem.barred_driver] = False
    cost: Floats = np.where(allowed, way_s + extra_s + problem.driver_s[None], np.inf)
    return cost


def prove(problem: Problem, solution: Solution, ways: WaysOf | None = None) -> None:
    """Raises NoProof unless the solution is feasible, proven over all pairs, and equal to its bound."""
    cost = cost_matrix(problem, ways)
    price, u, v, driver_of = problem.price_s, solution.u, solution.v, solution.driver_of
    matched = np.flatnonzero(driver_of != UNMATCHED)
    chosen = driver_of[matched]
    if driver_of.shape != price.shape or np.any(chosen < 0) or np.any(chosen >= problem.n_drivers):
        raise NoProof("the plan names nobody")
    if np.unique(chosen).size != chosen.size:
        raise NoProof("a driver stands in two pairs")
    paid = cost[matched, chosen]
    if not np.isfinite(paid).all():
        raise NoProof("a pair was chosen that is not allowed")
    total = paid.sum() + price[driver_of == UNMATCHED].sum()
    if abs(total - solution.cost_s) > STEP_S * (len(matched) + 1):
        raise NoProof(f"the plan costs {total}, not {solution.cost_s}")
    if (slack := cost - u[:, None] - v[None]).min(initial=np.inf) < -STEP_S:
        raise NoProof(f"a pair could improve the plan by {-slack.min()} s")
    if np.any(u > price) or np.any(v > 0.0):
        raise NoProof("a dual exceeds its bound")
    bound = float(u.sum() + v.sum())
    if abs(bound - solution.cost_s) > 1e-6 or solution.bound_s != solution.cost_s:
        raise NoProof(f"the duals come to {bound} and the bound to {solution.bound_s}, the plan to {solution.cost_s}")


def dense_optimum_s(cost: Floats, price: Floats) -> float:
    """The optimum by the dense solver: no pair is dearer than leaving its ride."""
    from scipy.optimize import linear_sum_assignment

    gain: npt.NDArray[np.float64] = np.minimum(cost - price[:, None], 0.0)
    return float(price.sum() + gain[linear_sum_assignment(gain)].sum())
