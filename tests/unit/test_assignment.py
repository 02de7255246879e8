"""The assignment's rules, one small case each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from matcher.assignment import solve
from matcher.graph import BadGraph, CandidateGraph, NoCertificate, verify
from matcher.problem import UNMATCHED


def graph_of(
    pairs: Sequence[tuple[int, int, float]], unmatched: Sequence[float], n_drivers: int | None = None
) -> CandidateGraph:
    drivers = n_drivers if n_drivers is not None else 1 + max((driver for _, driver, _ in pairs), default=-1)
    return CandidateGraph(
        len(unmatched),
        drivers,
        np.array([ride for ride, _, _ in pairs], dtype=np.int32),
        np.array([driver for _, driver, _ in pairs], dtype=np.int32),
        np.array([cost for _, _, cost in pairs], dtype=np.float64),
        np.array(unmatched, dtype=np.float64),
    )


def test_the_batch_beats_always_taking_the_nearest() -> None:
    graph = graph_of([(0, 0, 1.0), (0, 1, 2.0), (1, 0, 2.0), (1, 1, 100.0)], [1000.0, 1000.0])
    assignment = solve(graph)
    assert assignment.driver_of.tolist() == [1, 0]
    assert assignment.cost == 4.0
    assert assignment.greedy_cost == 101.0
    verify(graph, assignment)


def test_a_zero_cost_is_a_pair_like_any_other() -> None:
    graph = graph_of([(0, 0, 0.0), (1, 0, 0.0), (1, 1, 0.0)], [5.0, 5.0])
    assignment = solve(graph)
    assert assignment.driver_of.tolist() == [0, 1]
    assert assignment.cost == 0.0
    verify(graph, assignment)


def test_negative_costs_are_allowed() -> None:
    graph = graph_of([(0, 0, -3.0), (0, 1, -4.0)], [1.0])
    assignment = solve(graph)
    assert (assignment.driver_of.tolist(), assignment.cost) == ([1], -4.0)
    verify(graph, assignment)


def test_scarcity_favours_the_dearer_to_leave() -> None:
    graph = graph_of([(0, 0, 10.0), (1, 0, 60.0)], [3600.0, 3700.0])
    assert solve(graph).driver_of.tolist() == [UNMATCHED, 0]


def test_a_pair_dearer_than_leaving_the_ride_is_not_taken() -> None:
    graph = graph_of([(0, 0, 10.0)], [9.0])
    assignment = solve(graph)
    assert (assignment.driver_of.tolist(), assignment.cost) == ([UNMATCHED], 9.0)
    verify(graph, assignment)


def test_no_candidates_and_no_rides_are_no_special_cases() -> None:
    nobody = graph_of([], [7.0, 8.0], n_drivers=0)
    assignment = solve(nobody)
    assert (assignment.driver_of.tolist(), assignment.cost) == ([UNMATCHED, UNMATCHED], 15.0)
    verify(nobody, assignment)
    empty = graph_of([], [], n_drivers=3)
    verify(empty, solve(empty))


def test_the_order_of_pairs_does_not_change_the_plan() -> None:
    rng = np.random.default_rng(5)
    pairs = [(ride, driver, float(rng.integers(0, 3))) for ride in range(12) for driver in range(12)]
    expected = solve(graph_of(pairs, [50.0] * 12)).driver_of.tolist()
    for _ in range(5):
        rng.shuffle(pairs)
        shuffled = [(int(ride), int(driver), float(cost)) for ride, driver, cost in pairs]
        assert solve(graph_of(shuffled, [50.0] * 12)).driver_of.tolist() == expected


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_cost_that_is_no_sane_number_is_refused_naming_the_pair(cost: float) -> None:
    with pytest.raises(BadGraph, match="ride 1 and driver 2"):
        solve(graph_of([(0, 0, 1.0), (1, 2, cost)], [5.0, 5.0]))


def test_a_price_that_is_no_number_is_refused_naming_the_ride() -> None:
    with pytest.raises(BadGraph, match="ride 1 unmatched"):
        solve(graph_of([(0, 0, 1.0)], [5.0, float("nan")]))


def test_a_pair_given_twice_is_refused_naming_it() -> None:
    with pytest.raises(BadGraph, match="ride 1 and driver 0 is given twice"):
        solve(graph_of([(1, 0, 1.0), (0, 0, 1.0), (1, 0, 2.0)], [5.0, 5.0]))


@pytest.mark.parametrize("pair", [(2, 0, 1.0), (-1, 0, 1.0), (0, 3, 1.0), (0, -1, 1.0)])
def test_a_position_out_of_range_is_refused(pair: tuple[int, int, float]) -> None:
    with pytest.raises(BadGraph, match=r"of [23]"):
        solve(graph_of([pair], [5.0, 5.0], n_drivers=3))


def test_columns_of_different_length_are_refused() -> None:
    graph = graph_of([(0, 0, 1.0), (1, 1, 1.0)], [5.0, 5.0])
    with pytest.raises(BadGraph, match="differ in shape"):
        solve(dataclasses.replace(graph, cost=graph.cost[:1]))
    with pytest.raises(BadGraph, match="for 2 rides"):
        solve(dataclasses.replace(graph, unmatched=graph.unmatched[:1]))


def test_greedy_takes_the_cheapest_remaining_pair() -> None:
    graph = graph_of([(0, 0, 1.0), (0, 1, 2.0), (1, 0, 2.0), (1, 1, 100.0)], [1000.0, 1000.0])
    both = solve(graph)
    assert (both.greedy_of.tolist(), both.greedy_cost) == ([0, 1], 101.0)
    assert (both.driver_of.tolist(), both.cost) == ([1, 0], 4.0)


def test_a_negative_price_of_leaving_a_ride_is_refused_naming_it() -> None:
    with pytest.raises(BadGraph, match="ride 1 unmatched"):
        solve(graph_of([(0, 0, 1.0)], [5.0, -1.0]))


def test_components_are_counted() -> None:
    graph = graph_of([(0, 0, 1.0), (1, 0, 2.0), (2, 2, 3.0)], [9.0, 9.0, 9.0, 9.0], n_drivers=4)
    assert solve(graph).numbers["components"] == 2


def test_the_certificate_refuses_what_is_not_optimal() -> None:
    graph = graph_of([(0, 0, 1.0), (0, 1, 2.0), (1, 0, 2.0), (1, 1, 100.0)], [1000.0, 1000.0])
    good = solve(graph)
    swapped = np.array([0, 1], dtype=np.int32)
    forgeries = {
        "two pairs": dataclasses.replace(good, driver_of=np.array([0, 0], dtype=np.int32)),
        "names rides or drivers": dataclasses.replace(good, driver_of=np.array([0, 2], dtype=np.int32)),
        "not equal": dataclasses.replace(good, driver_of=swapped, cost=101.0),
        "dual infeasible": dataclasses.replace(good, driver_of=swapped, cost=101.0, u=good.u + 48.5),
        "exceeds its bound": dataclasses.replace(good, v=good.v + 1.0, u=good.u - 1000.0),
    }
    for words, forged in forgeries.items():
        with pytest.raises(NoCertificate, match=words):
            verify(graph, forged)


def test_the_certificate_refuses_a_pair_that_was_no_candidate() -> None:
    graph = graph_of([(0, 0, 1.0), (1, 1, 1.0)], [5.0, 5.0])
    forged = dataclasses.replace(solve(graph), driver_of=np.array([1, UNMATCHED], dtype=np.int32))
    with pytest.raises(NoCertificate, match="has not"):
        verify(graph, forged)
