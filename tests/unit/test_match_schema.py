"""What a request for a plan may say, and what of it is left out: the body as a whole, and item by item (P10)."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import msgspec
import numpy as np
import pytest

from api.errors import CODES, Problem
from api.markets import Markets
from api.match_items import Bounds, read_request
from api.match_matrix import Matrix, matrix_out, read_matrix
from api.match_points import Points, batch_of, points_out, read_points
from api.tags import Tags
from geo.area import Circle
from geo.distance import between_m
from geo.model import LatLng, MarketId
from matcher import assignment, optimum
from matcher.decision import decide_graph
from matcher.explicit import DecidedGraph, greedily
from matcher.graph import Assignment, CandidateGraph
from matcher.model import ClientId
from matcher.plan import NEAR, Decided
from matcher.policy import Market
from matcher.problem import UNMATCHED
from matcher.solver import SolverFailed

BOUNDS = Bounds(rides_max=6, drivers_max=8, cells_max=30, body_bytes_max=65_536, solve_s_max=5.0, at_once=2)
TAGS = Tags(["wheelchair", "pets", "gold"])
NYC = Market(
    MarketId("nyc"),
    Circle(LatLng(40.75, -73.98), 30_000.0),
    speed_mps=10.0,
    detour_factor=1.5,
    classes=("standard", "large"),
    downgrade_s={"large": {"standard": 60.0}},
    tags=("wheelchair", "pets"),
    idle_bonus=0.5,
    has_ways=True,
)
PLACE = {"lat": 40.75, "lon": -73.98}
ANN = ClientId("ann")


def ride(name: str = "r", **named: Any) -> dict[str, Any]:
    return {"id": name, "pickup": PLACE} | named


def driver(name: str = "d", **named: Any) -> dict[str, Any]:
    return {"id": name, "at": PLACE} | named


def points(body: dict[str, Any], *, markets: tuple[Market, ...] = (NYC,), is_msgpack: bool = False) -> Points:
    data = msgspec.msgpack.encode(body) if is_msgpack else json.dumps(body).encode()
    request = read_request(data, is_msgpack=is_msgpack)
    return read_points(request, Markets(markets), TAGS, BOUNDS, is_msgpack=is_msgpack)


def matrix(body: dict[str, Any], *, is_msgpack: bool = False) -> Matrix:
    data = msgspec.msgpack.encode(body) if is_msgpack else json.dumps(body).encode()
    return read_matrix(read_request(data, is_msgpack=is_msgpack), BOUNDS, is_msgpack=is_msgpack)


def refused(read: Points | Matrix) -> list[tuple[str, str]]:
    return [(each.pointer, each.code) for each in read.refusals.found]


def pointers_of(problem: Problem) -> list[str]:
    return [each.pointer for each in problem.errors]


class TestItemsOfPoints:
    @pytest.mark.parametrize(
        ("wrong", "pointer", "code"),
        [
            (ride(pickup={"lat": 91.0, "lon": 0.0}), "/pickup/lat", "invalid"),
            (ride(pickup={"lat": math.nan, "lon": 0.0}), "/pickup/lat", "invalid"),
            (ride(pickup={"lat": 1.0, "lon": -math.inf}), "/pickup/lon", "invalid"),
            (ride(pickup={"lat": 0.0, "lon": 0.0}), "/pickup", "null-island"),
            (ride(pickup={"lat": "40", "lon": 0.0}), "/pickup/lat", "invalid"),
            (ride(pickup={"lat": 40.0}), "/pickup/lon", "invalid"),
            ({"id": "r"}, "/pickup", "invalid"),
            ({"pickup": PLACE}, "/id", "invalid"),
            (ride(name=""), "/id", "invalid"),
            (ride(seats=0), "/seats", "invalid"),
            (ride(seats=9), "/seats", "invalid"),
            (ride(**{"class": "bus"}), "/class", "invalid"),
            (ride(tags=["pets", "moon"]), "/tags/1", "invalid"),
            (ride(tags=["gold"]), "/tags/0", "invalid"),
            (ride(waited_s=-1), "/waited_s", "invalid"),
            (ride(price_s=math.inf), "/price_s", "invalid"),
            (ride(refused="d"), "/refused", "invalid"),
            (ride(waited_s=1.1e7), "/waited_s", "invalid"),
            (ride(price_s=1.1e7), "/price_s", "invalid"),
            (ride(color="red"), "/color", "invalid"),
            (7, "", "invalid"),
            (None, "", "invalid"),
        ],
    )
    @pytest.mark.parametrize("is_msgpack", [False, True])
    def test_a_ride_that_is_wrong_is_told_of_and_left_out(
        self, wrong: Any, pointer: str, code: str, is_msgpack: bool
    ) -> None:
        read = points({"rides": [ride("a"), wrong, ride("b")], "drivers": []}, is_msgpack=is_msgpack)
        assert refused(read) == [("/rides/1" + pointer, code)]
        assert [each.id for each in read.rides] == ["a", "b"]

    @pytest.mark.parametrize(
        ("wrong", "pointer"),
        [
            (driver(at={"lat": 1.0, "lon": 181.0}), "/at/lon"),
            (driver(**{"class": "bus"}), "/class"),
            (driver(tags=["moon"]), "/tags/0"),
            (driver(seats=65), "/seats"),
            (driver(idle_s=-1.0), "/idle_s"),
            (driver(remaining_s=math.nan), "/remaining_s"),
            (driver(remaining_s=1.1e7), "/remaining_s"),
            (driver(pickup=PLACE), "/pickup"),
        ],
    )
    def test_a_driver_that_is_wrong_is_told_of_and_left_out(self, wrong: Any, pointer: str) -> None:
        read = points({"rides": [], "drivers": [wrong, driver("a")]})
        assert refused(read) == [("/drivers/0" + pointer, "invalid")]
        assert [each.id for each in read.drivers] == ["a"]

    def test_of_several_with_one_id_the_first_that_is_sound_stays(self) -> None:
        rides = [ride("a", seats=99), ride("a", seats=2), ride("a", seats=3)]
        read = points({"rides": rides, "drivers": [driver("a"), driver("a")]})
        assert refused(read) == [
            ("/rides/0/seats", "invalid"),
            ("/rides/2/id", "duplicate-id"),
            ("/drivers/1/id", "duplicate-id"),
        ]
        assert [each.seats for each in read.rides] == [2]

    def test_every_code_of_an_item_is_one_of_the_problems(self) -> None:
        rides = [ride("a"), ride("a"), ride(pickup={"lat": 0, "lon": 0}), 1]
        assert {code for _, code in refused(points({"rides": rides, "drivers": []}))} <= CODES.keys()

    def test_what_looks_like_no_number_within_a_string_stays_as_it_is(self) -> None:
        odd = 'NaN, "Infinity" \\ NaN'
        read = points({"rides": [ride(odd), ride("b", waited_s=math.nan)], "drivers": []})
        assert [each.id for each in read.rides] == [odd]
        assert refused(read) == [("/rides/1/waited_s", "invalid")]


class TestWholeBodies:
    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({}, "/rides"),
            ({"rides": []}, "/drivers"),
            ({"drivers": []}, "/rides"),
            ({"rides": {}, "drivers": []}, "/rides"),
            ({"rides": [], "drivers": [], "riders": []}, "/riders"),
            ({"rides": [], "drivers": [], "market": "mars"}, "/market"),
            ({"rides": [], "drivers": [], "limits": {"max_pickup_s": 0}}, "/limits/max_pickup_s"),
            ({"rides": [], "drivers": [], "limits": {"max_pickup_s": 1.1e7}}, "/limits/max_pickup_s"),
            ({"rides": [], "drivers": [], "limits": {"max": 1}}, "/limits/max"),
            ({"rides": [], "drivers": [], "costs": [], "unmatched": 1}, "/rides"),
            ({"rides": [], "drivers": [], "unmatched": 1}, "/unmatched"),
            ({"costs": [], "unmatched": 1, "market": "nyc"}, "/market"),
            ({"costs": []}, "/unmatched"),
            ([], ""),
        ],
    )
    def test_one_that_is_wrong_as_a_whole_is_refused(self, body: Any, pointer: str) -> None:
        with pytest.raises(Problem) as raised:
            points(body)
        assert (raised.value.status, pointers_of(raised.value)) == (422, [pointer])

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{",
            b"\xff",
            b'{"rides": [NaN',
            b'{"market": "NaN\\',
            b'{"rides": [nan]}',
            b'{"rides":' + b"[" * 100_000,
        ],
    )
    def test_what_is_no_json_is_refused(self, data: bytes) -> None:
        with pytest.raises(Problem) as raised:
            read_request(data, is_msgpack=False)
        assert raised.value.code == "malformed-body"

    @pytest.mark.parametrize(
        ("body", "setting"),
        [
            ({"rides": [ride(str(n)) for n in range(7)], "drivers": []}, "match_rides_max"),
            ({"rides": [], "drivers": [driver(str(n)) for n in range(9)]}, "match_drivers_max"),
        ],
    )
    def test_beyond_a_limit_the_refusal_names_it(self, body: dict[str, Any], setting: str) -> None:
        with pytest.raises(Problem, match=setting) as raised:
            points(body)
        assert raised.value.status == 422

    def test_of_several_markets_one_has_to_be_named(self) -> None:
        markets = (NYC, replace(NYC, id=MarketId("paris"), speed_mps=5.0))
        with pytest.raises(Problem, match="nyc, paris"):
            points({"rides": [], "drivers": []}, markets=markets)
        read = points({"rides": [], "drivers": [], "market": "paris"}, markets=markets)
        assert (read.market.id, read.market.speed_mps) == ("paris", 5.0)

    def test_a_limit_that_the_price_of_leaving_a_ride_cannot_exceed_is_refused(self) -> None:
        body = {"rides": [], "drivers": [], "limits": {"max_pickup_s": 2000.0}}
        with pytest.raises(Problem, match="2000 s"):
            points(body, markets=(replace(NYC, unmatched_base_s=2000.0),))
        assert points(body).market.max_pickup_s == 2000.0


class TestPointsToPlan:
    @staticmethod
    def planned(body: dict[str, Any], market: Market = NYC) -> Any:
        read = points(body, markets=(market,))
        batch = batch_of(read, TAGS, ANN)
        assert not batch.problem.has_ways
        solution = optimum.solve(batch.problem, near=NEAR, compare=True)
        return points_out(Decided(batch, solution), read.refusals.found, with_duals=True)

    def test_a_pairing_costs_its_way_and_all_terms_of_the_policy(self) -> None:
        away = LatLng(40.76, -73.98)
        one = driver(at={"lat": 40.76, "lon": -73.98}, idle_s=40.0, remaining_s=100.0) | {"class": "large"}
        made = self.planned({"rides": [ride(waited_s=30.0)], "drivers": [one]})
        pair = made.plan[0]
        way_s = between_m(LatLng(40.75, -73.98), away) * 0.15
        assert pair.terms == {
            "way": pytest.approx(way_s, abs=0.001),
            "remaining_trip": 100.0,
            "class_downgrade": 60.0,
            "idle_bonus": -20.0,
        }
        assert pair.cost_s == pytest.approx(sum(pair.terms.values()), abs=0.002)
        assert pair.unmatched_s == 3630.0
        assert (made.way, made.policy.s_per_m) == ("straight line", pytest.approx(0.15))

    def test_a_driver_without_seats_has_room_for_any_ride_and_one_with_seats_only_for_so_many(self) -> None:
        body = {"rides": [ride(seats=8)], "drivers": [driver("small", seats=7), driver("any")]}
        assert [pair.driver_id for pair in self.planned(body).plan] == ["any"]

    def test_refused_drivers_missing_tags_and_limits_leave_a_ride_with_a_reason(self) -> None:
        far = {"lat": 40.78, "lon": -73.98}  # some 3.3 km
        made = self.planned(
            {
                "rides": [
                    ride("a", refused=["d", "nobody"]),
                    ride("b", tags=["wheelchair"]),
                    ride("c", pickup=far, price_s=5.0),
                ],
                "drivers": [driver("d", tags=["pets"])],
                "limits": {"max_pickup_m": 4000.0},
            }
        )
        told = {each.ride_id: (each.reason, each.counts["refused"]) for each in made.unmatched}
        assert told == {
            "a": ("all_refused", 1),
            "b": ("no_driver_in_reach", 0),
            "c": ("price_above_limit", 0),
        }
        assert all(each.text and "stale_drivers_skipped" not in each.counts for each in made.unmatched)

    def test_a_ride_that_another_outbid_says_so_and_alternatives_name_their_rival(self) -> None:
        made = self.planned(
            {
                "rides": [ride("a", price_s=900.0), ride("b", price_s=500.0), ride("c", price_s=901.0)],
                "drivers": [driver("x"), driver("y", at={"lat": 40.751, "lon": -73.98})],
            }
        )
        assert [(each.ride_id, each.reason) for each in made.unmatched] == [("b", "outbid")]
        assert {each.rival_ride_id for pair in made.plan for each in pair.alternatives} == {"a", "c"}
        assert math.fsum(made.duals.rides.values()) + math.fsum(made.duals.drivers.values()) == pytest.approx(
            made.batch.cost_s, abs=0.001
        )
        assert {each.way for pair in made.plan for each in pair.alternatives} == {"straight line"}

    def test_the_longest_limits_wait_and_price_still_make_a_problem(self) -> None:
        body = {
            "rides": [ride("a", waited_s=1e7), ride("b", price_s=1e7)],
            "drivers": [driver(idle_s=1e7, remaining_s=1e7)],
            "limits": {"max_pickup_s": 1e7},
        }
        made = self.planned(body, replace(NYC, unmatched_growth=1e6))
        assert (made.errors, made.batch.certified) == ([], True)

    def test_a_plan_without_a_proof_has_no_duals_and_counts_all_pairs_looked_at(self) -> None:
        there = [{"lat": 40.75 + 0.001 * n, "lon": -73.98} for n in range(6)]
        read = points(
            {
                "rides": [ride(f"r{n}", pickup=place) for n, place in enumerate(there)],
                "drivers": [driver(f"d{n}", at=place) for n, place in enumerate(there)],
            }
        )
        batch = batch_of(read, TAGS, ANN)
        solution = optimum.solve(batch.problem, near=1, compare=True, is_over=lambda: True)
        unproven = replace(optimum.only_told(solution), bound_s=solution.cost_s - 1.0)
        made = points_out(Decided(batch, unproven), [], with_duals=True)
        assert len(unproven.pairs) < solution.numbers["pairs"]
        assert (made.duals, made.batch.certified, made.batch.pairs) == (None, False, solution.numbers["pairs"])
        assert made.batch.scope == f"the {made.batch.pairs} pairs looked at"


class TestMatrix:
    def test_null_is_no_pair_and_numbers_may_be_whole_or_negative(self) -> None:
        read = matrix({"costs": [[1, None, -2.5], [None, None, None]], "unmatched": 3})
        graph = read.graph
        assert list(zip(graph.ride.tolist(), graph.driver.tolist(), graph.cost.tolist(), strict=True)) == [
            (0, 0, 1.0),
            (0, 2, -2.5),
        ]
        assert (graph.unmatched.tolist(), read.ride_ids, read.driver_ids) == ([3.0, 3.0], ["0", "1"], ["0", "1", "2"])

    @pytest.mark.parametrize("cell", [math.nan, math.inf, -math.inf, 2e9, "1", True, {}, []])
    @pytest.mark.parametrize("is_msgpack", [False, True])
    def test_a_cell_that_is_no_cost_is_told_of_and_its_ride_left_out(self, cell: Any, is_msgpack: bool) -> None:
        costs = [[cell, 1.0, 2.0], [1.0, None, 2.0], [1.0, 2.0, cell]]
        read = matrix({"costs": costs, "unmatched": 3}, is_msgpack=is_msgpack)
        assert refused(read) == [("/costs/0/0", "invalid"), ("/costs/2/2", "invalid")]
        assert read.ride_ids == ["1"]

    @pytest.mark.parametrize("price", [-1, math.nan, math.inf, "3", None, 2e9])
    def test_a_price_that_is_none_is_told_of_and_its_ride_left_out(self, price: Any) -> None:
        read = matrix({"costs": [[1], [2]], "unmatched": [price, 3]})
        assert refused(read) == [("/unmatched/0", "invalid")]
        assert (read.ride_ids, read.graph.unmatched.tolist()) == (["1"], [3.0])

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({"costs": [[1, 2], [1]], "unmatched": 1}, "/costs/1"),
            ({"costs": [[1], 2], "unmatched": 1}, "/costs/1"),
            ({"costs": [None], "unmatched": 1}, "/costs/0"),
            ({"costs": [[1]], "unmatched": -1}, "/unmatched"),
            ({"costs": [[1]], "unmatched": math.nan}, "/unmatched"),
            ({"costs": [[1]], "unmatched": "1"}, "/unmatched"),
            ({"costs": [[1]], "unmatched": [1, 2]}, "/unmatched"),
            ({"costs": [[1]], "unmatched": 1, "ride_ids": ["a", "b"]}, "/ride_ids"),
            ({"costs": [[1]], "unmatched": 1, "driver_ids": []}, "/driver_ids"),
            ({"costs": [[1]] * 7, "unmatched": 1}, "/costs"),
            ({"costs": [[1] * 9], "unmatched": 1}, "/costs/0"),
            ({"costs": [[1] * 8] * 4, "unmatched": 1}, "/costs"),
        ],
    )
    def test_one_that_is_no_matrix_or_too_large_is_refused(self, body: dict[str, Any], pointer: str) -> None:
        with pytest.raises(Problem) as raised:
            matrix(body)
        assert (raised.value.status, pointers_of(raised.value)) == (422, [pointer])

    def test_ids_name_rows_and_columns_and_one_that_cannot_be_used_takes_its_row_or_column_along(self) -> None:
        read = matrix(
            {
                "costs": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
                "unmatched": [10, 11, 12],
                "ride_ids": ["b", "b", "a"],
                "driver_ids": ["y", 5, "x"],
            }
        )
        assert refused(read) == [("/ride_ids/1", "duplicate-id"), ("/driver_ids/1", "invalid")]
        assert (read.ride_ids, read.driver_ids) == (["a", "b"], ["x", "y"])
        assert (read.graph.cost.tolist(), read.graph.unmatched.tolist()) == ([9.0, 7.0, 3.0, 1.0], [12.0, 10.0])

    def test_nothing_at_all_is_a_matrix_too(self) -> None:
        read = matrix({"costs": [], "unmatched": [], "ride_ids": [], "driver_ids": ["x"]})
        assert (read.graph.n_rides, read.graph.n_drivers, read.driver_ids) == (0, 1, ["x"])

    def test_the_answer_says_why_in_the_matrix_own_unit(self) -> None:
        read = matrix({"costs": [[1, 2], [1, 5], [None, None], [20, 30], [9.5, 9.5]], "unmatched": 10})
        solved = assignment.solve(read.graph)
        out = matrix_out(read, DecidedGraph(read.graph, solved, 0.0, is_greedy=False), [], with_duals=True)
        assert [(each.ride_id, each.driver_id, each.cost) for each in out.plan] == [("0", "1", 2.0), ("1", "0", 1.0)]
        other = out.plan[0].alternatives[0]
        assert (other.driver_id, other.why, other.more, other.rival_ride_id) == (
            "0",
            "no_cheaper_for_the_city",
            -1.0,
            "1",
        )
        assert other.others_more is not None
        assert (other.others_more >= 1.0, other.at_least) == (True, True)
        assert out.plan[1].alternatives[0].why == "dearer_for_this_ride"
        assert [(each.ride_id, each.reason) for each in out.unmatched] == [
            ("2", "no_driver_in_reach"),
            ("3", "price_above_limit"),
            ("4", "outbid"),
        ]
        assert (out.batch.cost, out.batch.gap, out.batch.certified) == (33.0, 0.0, True)
        assert out.batch.gain == out.batch.greedy_cost - out.batch.cost


class NoSolver:
    async def assign(self, graph: CandidateGraph, limit_s: float) -> Assignment:
        raise SolverFailed("none")


class TestGreedyStandIn:
    @pytest.mark.parametrize("seed", range(20))
    async def test_its_plan_is_feasible_and_its_bound_holds(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n, m = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        costs = np.where(rng.random((n, m)) < 0.7, np.rint(rng.random((n, m)) * 20.0) - 5.0, np.nan)
        ride_of, driver_of = np.nonzero(~np.isnan(costs))
        graph = CandidateGraph(
            n,
            m,
            ride_of.astype(np.int32),
            driver_of.astype(np.int32),
            costs[ride_of, driver_of],
            rng.integers(0, 15, n).astype(np.float64),
        )
        decided = await decide_graph(graph, NoSolver(), 5.0)
        found, best = decided.assignment, cheapest_by_trying(costs, graph.unmatched)
        assert decided.is_greedy
        assert found.lower_bound <= best <= found.cost
        assert decided.certified == (found.cost == found.lower_bound)
        assert np.all(graph.cost >= found.u[graph.ride] + found.v[graph.driver])

    def test_what_the_clock_cuts_off_is_left(self) -> None:
        one = np.zeros(1, np.int32)
        graph = CandidateGraph(1, 1, one, one, np.array([1.0]), np.array([5.0]))
        assert greedily(graph, is_over=lambda: True).driver_of.tolist() == [UNMATCHED]
        assert greedily(graph, is_over=lambda: False).driver_of.tolist() == [0]

    def test_a_ride_that_is_cut_off_says_so_and_a_plan_without_a_proof_has_no_duals(self) -> None:
        read = matrix({"costs": [[1]], "unmatched": 5})
        cut = greedily(read.graph, is_over=lambda: True)
        out = matrix_out(read, DecidedGraph(read.graph, cut, 0.0, is_greedy=True), [], with_duals=True)
        assert [each.reason for each in out.unmatched] == ["not_looked_at"]
        assert (out.batch.certified, out.duals) == (False, None)


def cheapest_by_trying(costs: Any, prices: Any) -> float:
    """Every way to give the rides different columns, or none."""
    n, m = costs.shape
    wide = np.hstack([np.nan_to_num(costs, nan=1e6), np.full((n, n), 1e6)])
    for ride_at in range(n):
        wide[ride_at, m + ride_at] = prices[ride_at]
    return min(
        float(sum(wide[row, column] for row, column in enumerate(each))) for each in permutations(range(m + n), n)
    )
