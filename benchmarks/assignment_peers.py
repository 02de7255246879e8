"""What else one would solve a batch with: the dense matrix, OR-Tools' min-cost flow, lapx.

Each gets the problem and returns the least cost that it found, so that answers are compared before times
are. OR-Tools is given the pairs that our search ended with: it is not charged for finding them.
"""

from __future__ import annotations

import importlib.util

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from geo.distance import EARTH_RADIUS_M, sphere_points_m
from matcher.problem import STEPS_PER_S, Floats, Pairs, Problem, on_grid


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def dense_gains(problem: Problem) -> Floats:
    """Cost less price of every pair, (rides, drivers); 0 where a pair is no better than leaving the ride.

    Chords by scipy's compiled `cdist`, which is several times faster than haversines in numpy.
    """
    rides = sphere_points_m(problem.ride_lat, problem.ride_lon)
    drivers = sphere_points_m(problem.driver_lat, problem.driver_lon)
    metres = 2.0 * EARTH_RADIUS_M * np.arcsin(cdist(rides, drivers) / (2.0 * EARTH_RADIUS_M))
    gains: Floats = np.minimum(on_grid(metres * problem.s_per_m) - problem.price_s[:, None], 0.0)
    gains[metres > problem.reach_m[problem.ride_kind][:, None]] = 0.0
    return gains


def dense_cost_s(problem: Problem) -> float:
    """The whole dense pipeline: the matrix, and scipy's linear_sum_assignment."""
    gains = dense_gains(problem)
    return float(problem.price_s.sum() + gains[linear_sum_assignment(gains)].sum())


def ortools_cost_s(problem: Problem, pairs: Pairs) -> float:
    """OR-Tools' min-cost flow over these pairs, in whole steps of the cost's grid."""
    from ortools.graph.python import min_cost_flow

    n, m = problem.n_rides, problem.n_drivers
    source, sink, rides, drivers = 0, n + m + 1, 1 + np.arange(n), 1 + n + np.arange(m)
    tail = np.concatenate([np.full(n, source), 1 + pairs.ride, rides, drivers]).astype(np.int32)
    head = np.concatenate([rides, 1 + n + pairs.driver, np.full(n, sink), np.full(m, sink)]).astype(np.int32)
    steps = np.rint(np.concatenate([np.zeros(n), pairs.cost_s, problem.price_s, np.zeros(m)]) * STEPS_PER_S)
    flow = min_cost_flow.SimpleMinCostFlow()
    flow.add_arcs_with_capacity_and_unit_cost(tail, head, np.ones(len(tail), np.int64), steps.astype(np.int64))
    flow.set_nodes_supplies(np.array([source, sink], np.int32), np.array([n, -n], np.int64))
    if flow.solve() != flow.OPTIMAL:
        raise RuntimeError("OR-Tools found no optimum")
    return float(flow.optimal_cost()) / STEPS_PER_S


def lapx_cost_s(problem: Problem) -> float:
    """lapx' Jonker-Volgenant on the dense matrix, extended to a square one by itself."""
    import lap

    gains = dense_gains(problem)
    return float(problem.price_s.sum() + lap.lapjv(gains, extend_cost=True)[0])
