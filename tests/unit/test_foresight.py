"""What a place costs: what the rides of the next span would lose with the driver who stands there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from matcher.foresight import LEFT_S, NEIGHBOURS, SAMPLES, WAIT_S_MAX, Fleet, PastRides, PlaceCosts, opportunity_costs
from matcher.problem import Floats

METRES_A_DEGREE = 111_195.0
SPAN_S, S_PER_M = 300.0, 0.1


def past_of(ago_s: list[float], pickup_m: list[float], dropoff_m: list[float], service_s: float = 100.0) -> PastRides:
    """Rides along the equator, where a degree of longitude is as long as one of latitude."""
    zero = np.zeros(len(ago_s))
    pickup, dropoff = (np.array(each) / METRES_A_DEGREE for each in (pickup_m, dropoff_m))
    return PastRides(np.array(ago_s), zero, pickup, zero, dropoff, np.full(len(ago_s), service_s))


def fleet_of(at_m: list[float], idle_in_s: list[float] | None = None) -> Fleet:
    idle = np.zeros(len(at_m)) if idle_in_s is None else np.array(idle_in_s)
    return Fleet(idle, np.zeros(len(at_m)), np.array(at_m) / METRES_A_DEGREE)


def test_one_more_driver_near_two_rides_would_spare_one_of_them_the_far_one() -> None:
    """One driver is 100 m from both rides, the other 600 m: a second one at the first place would save 50 s."""
    costs = opportunity_costs(past_of([100.0, 90.0], [0.0, 0.0], [0.0, 0.0]), fleet_of([100.0, 600.0]), SPAN_S, S_PER_M)
    assert costs.tolist() == pytest.approx([50.0, 0.0], abs=0.1)


def test_one_more_driver_where_a_ride_is_left_is_worth_what_leaving_it_costs() -> None:
    rides = past_of([100.0, 90.0], [0.0, 0.0], [0.0, 0.0], service_s=200.0)
    assert opportunity_costs(rides, fleet_of([100.0]), SPAN_S, S_PER_M).tolist() == pytest.approx(
        [LEFT_S - 10.0], abs=0.1
    )


def test_where_no_rides_come_nobody_is_missed() -> None:
    costs = opportunity_costs(
        past_of([100.0, 99.0], [0.0, 10.0], [0.0, 0.0]), fleet_of([0.0, 90_000.0]), SPAN_S, S_PER_M
    )
    assert costs[1] == 0.0
    assert costs[0] > 0.0


def test_without_rides_or_drivers_there_is_nothing_to_say() -> None:
    assert opportunity_costs(past_of([], [], []), fleet_of([1.0, 2.0]), SPAN_S, S_PER_M).tolist() == [0.0, 0.0]
    assert opportunity_costs(past_of([9.0], [0.0], [0.0]), fleet_of([]), SPAN_S, S_PER_M).tolist() == []


def optimum_s(past: PastRides, fleet: Fleet) -> float:
    """The least cost of the sampled rides by the dense solver, as the module's docstring states it."""
    n, m = len(past), len(fleet)
    asked_s = SPAN_S - past.ago_s
    ready_s = np.concatenate((fleet.idle_in_s, asked_s + past.service_s))
    lon = np.concatenate((fleet.lon, past.dropoff_lon))
    away_m = np.abs(past.pickup_lon[:, None] - lon[None, :]) * METRES_A_DEGREE
    cost_s = away_m * S_PER_M + np.maximum(0.0, ready_s[None, :] - asked_s[:, None])
    cost_s[cost_s > WAIT_S_MAX] = 1e6
    own = np.arange(n)
    cost_s[own, m + own] = LEFT_S
    row, column = linear_sum_assignment(cost_s)
    return float(cost_s[row, column].sum())


def without(fleet: Fleet, driver: int) -> Fleet:
    return Fleet(*(np.delete(column, driver) for column in (fleet.idle_in_s, fleet.lat, fleet.lon)))


def doubled(fleet: Fleet, driver: int) -> Fleet:
    return Fleet(*(np.append(column, column[driver]) for column in (fleet.idle_in_s, fleet.lat, fleet.lon)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 12))
def test_a_cost_lies_between_what_one_more_would_save_and_what_one_less_would_cost(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)

    def some(count: int, most: float) -> list[float]:
        return [float(each) for each in rng.uniform(0.0, most, count)]

    past, fleet = past_of(some(n, SPAN_S), some(n, 1500.0), some(n, 1500.0)), fleet_of(some(m, 1500.0), some(m, 200.0))
    costs: Floats = opportunity_costs(past, fleet, SPAN_S, S_PER_M)
    now_s, slack_s = optimum_s(past, fleet), 0.01 * n
    for driver in range(m):
        assert now_s - optimum_s(past, doubled(fleet, driver)) <= costs[driver] + slack_s
        assert costs[driver] <= optimum_s(past, without(fleet, driver)) - now_s + slack_s


def test_a_place_costs_what_its_neighbours_do_and_nothing_before_anything_is_known() -> None:
    places = PlaceCosts()
    at = np.array([0.0, 50_000.0]) / METRES_A_DEGREE
    assert places.at(np.zeros(2), at).tolist() == [0.0, 0.0]
    crowd = [float(metre) for metre in range(2 * NEIGHBOURS)]
    desert = [50_000.0 + metre for metre in crowd]
    places.learn(past_of([100.0] * 80, [30.0] * 80, [30.0] * 80), fleet_of([*crowd, *desert]), SPAN_S, S_PER_M)
    near, far = places.at(np.zeros(2), at).tolist()
    assert near > 1.0
    assert far == 0.0


def test_old_samples_are_forgotten() -> None:
    places, here = PlaceCosts(), np.zeros(1)
    crowd = fleet_of([float(metre) for metre in range(2 * NEIGHBOURS)])
    places.learn(past_of([100.0] * 80, [30.0] * 80, [30.0] * 80), crowd, SPAN_S, S_PER_M)
    assert places.at(here, here)[0] > 0.0
    for _ in range(SAMPLES):
        places.learn(past_of([100.0], [9_000.0], [9_000.0]), crowd, SPAN_S, S_PER_M)
    assert places.at(here, here)[0] == 0.0


def test_drivers_who_are_idle_late_in_the_span_tell_nothing_of_their_place() -> None:
    places, here = PlaceCosts(), np.zeros(1)
    late = [SPAN_S * 0.9] * NEIGHBOURS
    fleet = fleet_of([*range(NEIGHBOURS), 5_000.0], [*late, 0.0])
    places.learn(past_of([SPAN_S - 5.0], [0.0], [0.0]), fleet, SPAN_S, S_PER_M)
    assert places.at(here, here)[0] == 0.0
