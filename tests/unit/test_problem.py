"""What a problem has to keep to, each rule broken once and named."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from matcher.optimum import solve
from matcher.problem import BadProblem, Problem, check, on_grid
from tests.problems import problem

NAN, INF = float("nan"), float("inf")


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, dtype=np.int32)


def floats(*values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


def sound() -> Problem:
    """Two rides of two kinds, three drivers of two kinds, one pair barred."""
    return problem(
        (floats(40.75, 40.76), floats(-73.98, -73.97)),
        (floats(40.75, 40.76, 40.77), floats(-73.98, -73.97, -73.99)),
        price_s=floats(3600.0, 3700.0),
        driver_s=floats(0.0, -30.0, 45.5),
        extra_s=np.array([[0.0, INF], [120.0, 0.0]]),
        ride_kind=ints(0, 1),
        driver_kind=ints(0, 1, 0),
        barred=(ints(1), ints(2)),
    )


def test_a_sound_problem_passes_and_so_do_infinite_reaches() -> None:
    check(sound())
    check(dataclasses.replace(sound(), reach_m=floats(INF, INF), reach_s=floats(INF, 60.0)))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("ride_lat", floats(40.75, 90.5), "ride_lat of 1 is 90.5"),
        ("ride_lat", floats(NAN, 40.75), "ride_lat of 0 is nan"),
        ("ride_lon", floats(-73.98, -180.5), "ride_lon of 1 is -180.5"),
        ("driver_lat", floats(40.75, 40.75, INF), "driver_lat of 2 is inf"),
        ("driver_lon", floats(0.0, 180.5, 0.0), "driver_lon of 1 is 180.5"),
        ("price_s", floats(3600.0, -1.0), "price_s of 1 is -1.0"),
        ("price_s", floats(NAN, 1.0), "price_s of 0 is nan"),
        ("price_s", floats(INF, 1.0), "price_s of 0 is inf"),
        ("price_s", floats(1.0, 2e9), "price_s of 1 is 2000000000.0"),
        ("driver_s", floats(0.0, NAN, 0.0), "driver_s of 1 is nan"),
        ("driver_s", floats(0.0, 0.0, -INF), "driver_s of 2 is -inf"),
        ("ride_kind", ints(0, 2), "ride_kind of 1 is 2"),
        ("ride_kind", ints(-1, 0), "ride_kind of 0 is -1"),
        ("driver_kind", ints(0, 0, 2), "driver_kind of 2 is 2"),
        ("driver_kind", ints(0, -1, 0), "driver_kind of 1 is -1"),
        ("barred_ride", ints(2), "barred_ride of 0 is 2"),
        ("barred_ride", ints(-1), "barred_ride of 0 is -1"),
        ("barred_driver", ints(3), "barred_driver of 0 is 3"),
        ("extra_s", np.array([[0.0, NAN], [0.0, 0.0]]), "extra_s of ride kind 0 and driver kind 1"),
        ("extra_s", np.array([[0.0, 0.0], [-INF, 0.0]]), "extra_s of ride kind 1 and driver kind 0"),
        ("extra_s", floats(0.0, 0.0), "extra_s is not a table"),
        ("s_per_m", 0.0, "s_per_m is 0.0"),
        ("s_per_m", NAN, "s_per_m is nan"),
        ("s_per_m", INF, "s_per_m is inf"),
        ("reach_m", floats(500.0, -1.0), "reach_m of 1 is -1.0"),
        ("reach_m", floats(NAN, 500.0), "reach_m of 0 is nan"),
        ("reach_s", floats(60.0, 0.0), "reach_s of 1 is 0.0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_naming_the_field_and_its_place(
    field: str, value: Any, words: str
) -> None:
    with pytest.raises(BadProblem, match=words):
        check(dataclasses.replace(sound(), **{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ride_lon", floats(0.0)),
        ("price_s", floats(1.0, 1.0, 1.0)),
        ("ride_kind", ints(0)),
        ("driver_lon", floats(0.0, 0.0)),
        ("driver_s", floats()),
        ("driver_kind", ints(0, 0, 0, 0)),
        ("barred_driver", ints()),
        ("reach_m", floats(500.0)),
        ("reach_s", floats(60.0, 60.0, 60.0)),
        ("reach_s", np.float64(60.0)),
        ("price_s", floats(1.0, 1.0).reshape(2, 1)),
    ],
)
def test_columns_of_the_wrong_shape_are_refused_naming_them(field: str, value: Any) -> None:
    with pytest.raises(BadProblem, match=f"{field} has the shape"):
        check(dataclasses.replace(sound(), **{field: value}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("price_s", floats(0.5, 0.1), "price_s of 1 is 0.1, no multiple"),
        ("driver_s", floats(1 / 3, 0.0, 0.0), "driver_s of 0 is 0.333"),
        ("extra_s", np.array([[0.0, INF], [1e-9, 0.0]]), "extra_s of 1, 0 is 1e-09"),
    ],
)
def test_seconds_off_the_grid_are_refused_for_sums_of_them_are_not_exact(field: str, value: Any, words: str) -> None:
    with pytest.raises(BadProblem, match=words):
        check(dataclasses.replace(sound(), **{field: value}))


def test_seconds_brought_onto_the_grid_are_taken() -> None:
    rng = np.random.default_rng(1)
    check(dataclasses.replace(sound(), price_s=on_grid(rng.random(2) * 1e6), driver_s=on_grid(rng.normal(0, 99.0, 3))))
    assert on_grid(INF) == INF
    assert on_grid(0.0005) == 1 / 1024


def test_a_broken_problem_is_refused_before_anything_is_solved() -> None:
    with pytest.raises(BadProblem, match="driver_kind of 0 is 9"):
        solve(dataclasses.replace(sound(), driver_kind=ints(9, 0, 0)))
    with pytest.raises(BadProblem, match="nobody who prices them"):
        solve(dataclasses.replace(sound(), has_ways=True))
