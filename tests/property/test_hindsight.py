"""No policy undercuts the bound in hindsight, and the bound is the exact optimum of the relaxation it states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from benchmarks import hindsight
from benchmarks.hindsight import PRICES_S, Hindsight
from benchmarks.policies import POLICIES
from benchmarks.virtual_city import City, Floats
from matcher.problem import STEPS_PER_S
from tests.virtual import market_of, pickups_s, played, strewn

REACH_S = market_of().max_pickup_s
seeds = st.integers(0, 2**31)
NEVER_S = 1e6


@pytest.fixture(autouse=True)
def _few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even small cities need columns generated."""
    monkeypatch.setattr(hindsight, "FIRST", 3)
    monkeypatch.setattr(hindsight, "MORE", 2)


def soonest_ready_s(city: City, drop_off_s: Floats, rounds: int = 2) -> Floats:
    """The same rounds as the bound's, by loops."""
    ready_s = np.concatenate((city.seen_ms / 1000.0, drop_off_s))
    for _ in range(rounds):
        least_s = costs_s(city, ready_s).min(axis=1)
        ready_s[city.n_drivers :] = drop_off_s + np.where(least_s < NEVER_S, least_s, 0.0)
    return ready_s


def costs_s(city: City, ready_s: Floats) -> Floats:
    """(rides, sources) seconds from the request to the arrival, by the definition."""
    sources = np.concatenate((city.start_lat, city.dropoff_lat)), np.concatenate((city.start_lon, city.dropoff_lon))
    cost_s = np.full((city.n_rides, city.n_drivers + city.n_rides), NEVER_S)
    drive_s = city.ways.table(sources, (city.pickup_lat, city.pickup_lon))
    for ride in range(city.n_rides):
        requested_s = city.requested_ms[ride] / 1000.0
        for source, source_ready_s in enumerate(ready_s.tolist()):
            wait_s = max(0.0, source_ready_s - requested_s)
            if (
                source != city.n_drivers + ride
                and wait_s < city.patience_ms / 1000.0
                and drive_s[ride, source] <= REACH_S
            ):
                cost_s[ride, source] = np.floor((drive_s[ride, source] + wait_s) * STEPS_PER_S) / STEPS_PER_S
    return cost_s


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 30), st.integers(1, 20), st.sampled_from([30.0, 240.0, 960.0]))
def test_the_bound_is_the_optimum_of_the_stated_relaxation(seed: int, rides: int, drivers: int, price_s: float) -> None:
    city = strewn(seed, rides, drivers)
    ready_s = soonest_ready_s(city, (city.requested_ms + city.service_ms) / 1000.0)
    cost_s = costs_s(city, ready_s)
    own = np.arange(rides)
    cost_s[own, drivers + own] = price_s
    row, column = linear_sum_assignment(cost_s)
    bound = Hindsight(city, REACH_S)._bound(price_s)
    assert bound.least_s == pytest.approx(float(cost_s[row, column].sum()), abs=1e-6 * rides)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 40), st.integers(1, 15), st.sampled_from(sorted(POLICIES)))
def test_no_policy_undercuts_it_whatever_it_serves(seed: int, rides: int, drivers: int, name: str) -> None:
    city = strewn(seed, rides, drivers)
    paid_s = np.array(pickups_s(played(city, name)[0]))
    served = int(np.isfinite(paid_s).sum())
    bounds = Hindsight(city, REACH_S)
    if served:
        assert bounds.mean_pickup_s(served) <= np.nanmean(paid_s) + 1e-9
    for price_s in PRICES_S:
        assert bounds._bound(price_s).pickups_s(rides, served) <= np.nansum(paid_s) + 1e-9


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 40), st.integers(1, 15))
def test_prices_solved_in_any_order_say_the_same(seed: int, rides: int, drivers: int) -> None:
    """Each solve starts from the one before."""
    city = strewn(seed, rides, drivers)
    up, down = Hindsight(city, REACH_S), Hindsight(city, REACH_S)
    rising = [up._bound(price_s) for price_s in PRICES_S]
    falling = [down._bound(price_s) for price_s in reversed(PRICES_S)][::-1]
    assert [bound.least_s for bound in rising] == [bound.least_s for bound in falling]
    assert [bound.served for bound in rising] == sorted(bound.served for bound in rising)


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 40), st.integers(1, 15))
def test_who_drives_along_knows_the_future_and_is_bound_all_the_same(seed: int, rides: int, drivers: int) -> None:
    bounds = Hindsight(strewn(seed, rides, drivers), REACH_S)
    bounds.mean_pickup_s(rides)
    driven = bounds.drive_along()
    assert driven.served <= rides
    if driven.served:
        assert bounds.mean_pickup_s(driven.served) <= driven.mean_pickup_s + 1e-6
