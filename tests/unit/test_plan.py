"""From a solution to what is committed and kept with it, on a real index (P1, P5, P8, P12)."""

from __future__ import annotations

import dataclasses
import json
import random
from itertools import count
from typing import Any

import numpy as np
import pytest

from geo.distance import between_m
from geo.feed import pack
from geo.index import DriverIndex
from geo.model import DriverId
from matcher import optimum, plain
from matcher.batch import Batch
from matcher.model import Slot, TripId
from matcher.outcomes import LOST_DRIVER_GONE, LostPairing
from matcher.plan import NEAR, PART_RIDES, STALE_COUNTED_MAX, Decided, Reason, Unmatched, lost_of, plan_parts
from tests.batches import (
    NOW_MS,
    RESOLUTION,
    STALE_AFTER_MS,
    batch_of,
    decided_of,
    east,
    fix_at,
    history_of,
    index_of,
    made_of,
    market_with,
    pairs_of,
    plan_of,
    reasons_of,
    ride_at,
    waiting_of,
)
from tests.certificate import cost_matrix, dense_optimum_s


def trip_ids() -> Any:
    numbers = count()
    return lambda: TripId(f"t_{next(numbers)}")


def scattered(seed: int, n: int, m: int) -> tuple[Batch, DriverIndex]:
    """Demand and supply in different hot spots, some refusals, so that many cannot have their nearest."""
    rng = np.random.default_rng(seed)
    rides = [
        ride_at(f"r{i:03}", east(*rng.normal(0.0, 800.0, 2)), waited_s=float(rng.integers(0, 90))) for i in range(n)
    ]
    fixes = [fix_at(f"d{j:03}", east(*rng.normal([1500.0, 0.0], 800.0))) for j in range(m)]
    refused = {f"r{i:03}": [f"d{j:03}" for j in rng.choice(m, 2, replace=False)] for i in range(0, n, 4)}
    index = index_of(fixes)
    return batch_of(waiting_of(rides, engaged=["d000"], refused=refused), index), index


class TestPairings:
    def test_the_whole_batch_is_served_best_not_each_ride_in_turn(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(1000))]
        index = index_of([fix_at("a", east(-1500)), fix_at("b", east(500))])
        assert pairs_of(made_of(waiting_of(rides), index)) == {"r1": "a", "r2": "b"}

    def test_who_has_waited_longer_is_served_first_where_drivers_are_scarce(self) -> None:
        rides = [ride_at("new", east(10)), ride_at("old", east(400), waited_s=300.0)]
        assert pairs_of(made_of(waiting_of(rides), index_of([fix_at("a", east(0))]))) == {"old": "a"}

    def test_a_pairing_is_what_the_store_commits(self) -> None:
        ride = dataclasses.replace(ride_at("r", east(0)), version=7)
        market = market_with(speed_mps=10.0, detour_factor=1.5, abandon_after_ms=77_000)
        [pairing] = made_of(waiting_of([ride]), index_of([fix_at("a", east(-700))]), market).pairings
        assert (pairing.trip_id, pairing.ride_id, pairing.ride_version) == ("t_0", "r", 7)
        assert (pairing.driver_id, pairing.slot, pairing.abandon_after_ms) == ("a", Slot.NOW, 77_000)
        assert pairing.distance_m == pytest.approx(between_m(east(0), east(-700)), abs=0.1)
        assert pairing.pickup_s == pytest.approx(pairing.distance_m * 0.15, abs=0.02)

    def test_no_driver_is_given_to_two_rides(self) -> None:
        """P1"""
        batch, index = scattered(2, 60, 40)
        made = plan_of(decided_of(batch), index)
        drivers = [pairing.driver_id for pairing in made.pairings]
        assert len(set(drivers)) == len(drivers) == 39
        assert len({pairing.trip_id for pairing in made.pairings}) == 39

    def test_a_driver_that_went_stale_during_the_solve_is_not_matched(self) -> None:
        """P5"""
        index = index_of([fix_at("a", east(0)), fix_at("b", east(50), age_ms=20_000)])
        decided = decided_of(batch_of(waiting_of([ride_at("r1", east(0)), ride_at("r2", east(50))]), index))
        made = plan_of(decided, index, NOW_MS + 10_001)
        assert pairs_of(made) == {"r1": "a"}
        assert reasons_of(made) == {"r2": Reason.DRIVER_WENT_STALE}

    def test_a_driver_that_was_removed_during_the_solve_is_not_matched(self) -> None:
        index = index_of([fix_at("a", east(0))])
        decided = decided_of(batch_of(waiting_of([ride_at("r", east(0))]), index))
        index.reset(pack([], RESOLUTION, NOW_MS))
        assert reasons_of(plan_of(decided, index)) == {"r": Reason.DRIVER_WENT_STALE}

    def test_the_same_input_in_any_order_gives_the_same_plan(self) -> None:
        rng = random.Random(3)
        spots = [east(100.0 * (number % 4)) for number in range(12)]  # ties everywhere
        rides = [ride_at(f"r{number:02}", spots[number]) for number in range(12)]
        fixes = [fix_at(f"d{number:02}", spots[(5 * number) % 12]) for number in range(12)]
        expected = made_of(waiting_of(rides), index_of(fixes))
        assert len(expected.pairings) == 12
        for _ in range(4):
            rng.shuffle(rides)
            rng.shuffle(fixes)
            assert made_of(waiting_of(rides), index_of(fixes)) == expected

    def test_of_drivers_that_cost_the_same_the_first_by_id_is_taken(self) -> None:
        for names in (["b", "a", "c"], ["c", "b", "a"]):
            index = index_of([fix_at(name, east(300)) for name in names])
            assert pairs_of(made_of(waiting_of([ride_at("r", east(0))]), index)) == {"r": "a"}

    def test_whoever_else_the_index_has_known_changes_no_tie(self) -> None:
        """The same fresh drivers give the same plan, also where the index holds other kinds beside them."""
        rides = [ride_at(f"r{n:03}", east(50.0 * (n % 2)), seats=1 + n % 4, waited_s=n % 3) for n in range(80)]
        fixes = [fix_at(f"d{n:03}", east(50.0 * (n % 3)), kind="xl" if n % 2 else "standard") for n in range(60)]
        others = [fix_at(f"x{n}", east(9), kind="xl", seats=1 + n % 3, tags=n, available=False) for n in range(9)]
        market = market_with(classes=("standard", "xl"), downgrade_s={"xl": {"standard": 10.0}})
        alone, among_others = (made_of(waiting_of(rides), index_of(each), market) for each in (fixes, others + fixes))
        assert pairs_of(alone) == pairs_of(among_others)

    def test_a_batch_without_drivers_or_rides_is_no_special_case(self) -> None:
        nobody = made_of(waiting_of([ride_at("r", east(0))]), index_of([]))
        assert reasons_of(nobody) == {"r": Reason.NO_DRIVER_IN_REACH}
        empty = made_of(waiting_of([]), index_of([fix_at("a", east(0))]))
        assert (empty.pairings, empty.unmatched) == ([], [])


class TestParts:
    def batch(self, rides: int) -> tuple[Decided, DriverIndex]:
        index = index_of([fix_at(f"d{n:03}", east(10.0 * n)) for n in range(0, rides, 2)])
        waiting = waiting_of([ride_at(f"r{n:03}", east(10.0 * n)) for n in range(rides)])
        return decided_of(batch_of(waiting, index)), index

    def test_the_parts_hold_every_ride_once_in_the_order_of_ids(self) -> None:
        rides = 2 * PART_RIDES + 3
        decided, index = self.batch(rides)
        parts = list(plan_parts(decided, index, lambda: NOW_MS, batch_id="b_1", new_trip_id=trip_ids()))
        named = [
            sorted([*(each.ride_id for each in part.pairings), *(each.ride_id for each in part.unmatched)])
            for part in parts
        ]
        assert [len(part) for part in named] == [PART_RIDES, PART_RIDES, 3]
        assert [name for part in named for name in part] == [f"r{n:03}" for n in range(rides)]
        whole = plan_of(decided, index)
        assert [each for part in parts for each in part.pairings] == whole.pairings
        assert [each for part in parts for each in part.unmatched] == whole.unmatched

    def test_each_part_is_judged_when_it_is_made(self) -> None:
        """P5: who falls silent while earlier parts are committed is not matched."""
        decided, index = self.batch(PART_RIDES + 20)
        clock = iter([NOW_MS, NOW_MS + STALE_AFTER_MS + 1])
        first, second = plan_parts(decided, index, lambda: next(clock), batch_id="b_1", new_trip_id=trip_ids())
        assert len(first.pairings) > 0
        assert second.pairings == []
        assert Reason.DRIVER_WENT_STALE in reasons_of(second).values()


class TestRecord:
    def test_the_record_names_the_batch_and_what_it_came_to(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(900))]
        index = index_of([fix_at("a", east(-700)), fix_at("b", east(600)), fix_at("c", east(9000))])
        decided = decided_of(batch_of(waiting_of(rides), index, market_with(speed_mps=10.0, detour_factor=1.0)))
        records = [pairing.decision["batch"] for pairing in plan_of(decided, index).pairings]
        assert records[0] == records[1]
        assert records[0] == {
            "id": "b_1",
            "rides": 2,
            "drivers": 3,
            "cost_s": pytest.approx(100.0, abs=0.1),
            "greedy_cost_s": pytest.approx(100.0, abs=0.1),
            "gain_s": 0.0,
            "gap_s": 0.0,
            "certified": True,
            "scope": "all pairs in reach",
        }

    def test_the_record_says_what_was_gained_on_greedy(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(1000))]
        index = index_of([fix_at("a", east(-4000)), fix_at("b", east(400))])
        batch = batch_of(waiting_of(rides), index, market_with(speed_mps=10.0, detour_factor=1.0))
        facts = plan_of(decided_of(batch), index).pairings[0].decision["batch"]
        assert facts["greedy_cost_s"] == pytest.approx(540.0, abs=0.5)
        assert facts["cost_s"] == pytest.approx(460.0, abs=0.5)
        assert facts["gain_s"] == pytest.approx(80.0, abs=0.5)

    def test_the_terms_of_the_chosen_pair_add_up_to_its_cost(self) -> None:
        market = market_with(
            classes=("standard", "xl"), downgrade_s={"xl": {"standard": 120.0}}, idle_bonus=0.5, refusal_s=90.0
        )
        index = index_of([fix_at("a", east(-700), kind="xl", age_ms=2500)])
        waiting = waiting_of([ride_at("r", east(0), waited_s=30.0)])
        histories = {DriverId("a"): history_of("a", trips=4, refused=2)}
        since = {DriverId("a"): NOW_MS - 60_000}
        [pairing] = made_of(waiting, index, market, histories=histories, idle_since_ms=since).pairings
        chosen = pairing.decision["chosen"]
        assert chosen["terms"] == {
            "way": pytest.approx(700.0 * 1.3 / 7.0, abs=0.1),
            "class_downgrade": 120.0,
            "refusal_risk": 45.0,
            "idle_bonus": -30.0,
        }
        assert sum(chosen["terms"].values()) == pytest.approx(chosen["cost_s"], abs=0.003)
        assert (chosen["driver_id"], chosen["unmatched_s"], chosen["position_age_s"]) == ("a", 3630.0, 2.5)
        assert (chosen["way"], chosen["distance_m"]) == ("straight line", pairing.distance_m)

    def test_terms_that_are_no_part_of_the_price_are_left_out(self) -> None:
        [pairing] = made_of(waiting_of([ride_at("r", east(0))]), index_of([fix_at("a", east(0))])).pairings
        assert pairing.decision["chosen"]["terms"] == {"way": 0.0}

    def test_a_batch_that_is_proven_for_some_pairs_alone_says_for_how_many(self) -> None:
        batch, index = scattered(5, 100, 100)
        solution = optimum.solve(batch.problem, near=NEAR, compare=True, is_over=lambda: True)
        told = optimum.only_told(solution)
        assert len(told.pairs) < len(solution.pairs)
        for each in (solution, told):
            facts = plan_of(Decided(batch, each), index).pairings[0].decision["batch"]
            assert (facts["certified"], facts["gap_s"] > 0.0) == (False, True)
            assert facts["scope"] == f"the {len(solution.pairs)} pairs looked at"

    def test_a_way_that_a_straight_line_stood_in_for_says_so(self) -> None:
        index = index_of([fix_at("a", east(0)), fix_at("b", east(500))])
        decided = decided_of(batch_of(waiting_of([ride_at("r", east(0))]), index))
        decided = dataclasses.replace(decided, way="osrm", estimated=frozenset({(0, 0)}), because="no answer")
        [pairing] = plan_of(decided, index).pairings
        chosen, [other] = pairing.decision["chosen"], pairing.decision["alternatives"]
        assert (chosen["way"], chosen["estimated"], chosen["estimated_because"]) == ("straight line", True, "no answer")
        assert (other["way"], "estimated" in other) == ("osrm", False)

    def test_everything_that_is_kept_is_json(self) -> None:
        batch, index = scattered(6, 60, 30)
        cut = optimum.solve(batch.problem, near=NEAR, is_over=lambda: True)
        for made in (plan_of(decided_of(batch), index), plan_of(Decided(batch, cut), index)):
            assert made.pairings
            assert made.unmatched
            for kept in [pairing.decision for pairing in made.pairings] + [each.detail for each in made.unmatched]:
                assert json.loads(json.dumps(kept, allow_nan=False)) == kept


class TestAlternatives:
    def test_a_pair_that_is_dearer_for_the_ride_says_by_how_much(self) -> None:
        index = index_of([fix_at("a", east(100)), fix_at("b", east(400))])
        market = market_with(speed_mps=10.0, detour_factor=1.0)
        [pairing] = made_of(waiting_of([ride_at("r", east(0))]), index, market).pairings
        [other] = pairing.decision["alternatives"]
        assert (other["driver_id"], other["why"], "rival_ride_id" in other) == ("b", "dearer_for_this_ride", False)
        assert other["more_s"] == pytest.approx(30.0, abs=0.1)
        assert other["cost_s"] == pytest.approx(other["more_s"] + pairing.decision["chosen"]["cost_s"], abs=0.002)
        assert "others_more_s" not in other

    def test_a_pair_that_costs_the_same_is_called_equal(self) -> None:
        index = index_of([fix_at("a", east(300)), fix_at("b", east(300))])
        [pairing] = made_of(waiting_of([ride_at("r", east(0))]), index).pairings
        [other] = pairing.decision["alternatives"]
        assert (other["driver_id"], other["why"], other["more_s"]) == ("b", "equal", 0.0)

    def test_a_cheaper_pair_says_what_the_others_would_pay_and_who_has_the_driver(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(1000))]
        index = index_of([fix_at("a", east(-4000)), fix_at("b", east(400))])
        market = market_with(speed_mps=10.0, detour_factor=1.0)
        made = made_of(waiting_of(rides), index, market)
        assert pairs_of(made) == {"r1": "a", "r2": "b"}
        [other] = made.pairings[0].decision["alternatives"]
        assert (other["driver_id"], other["why"], other["rival_ride_id"]) == ("b", "dearer_for_the_city", "r2")
        assert other["more_s"] == pytest.approx(-360.0, abs=0.5)
        assert other["others_more_s"] == pytest.approx(440.0, abs=0.5)  # r2 would have to take a, 5 km away
        assert other["at_least"] is False

    def test_a_cheaper_pair_that_would_cost_the_city_the_same_is_called_that(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(0))]
        index = index_of([fix_at("a", east(-4000)), fix_at("b", east(400))])
        made = made_of(waiting_of(rides), index, market_with(speed_mps=10.0, detour_factor=1.0))
        [other] = next(each.decision["alternatives"] for each in made.pairings if each.driver_id == "a")
        assert (other["driver_id"], other["why"], other["at_least"]) == ("b", "equal_for_the_city", False)
        assert other["others_more_s"] == -other["more_s"]

    def test_what_the_city_would_pay_is_marked_where_a_lower_bound_alone_is_known(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(1000))]
        index = index_of([fix_at("a", east(-4000)), fix_at("b", east(400))])
        decided = decided_of(batch_of(waiting_of(rides), index, market_with(speed_mps=10.0, detour_factor=1.0)))
        solution = decided.solution
        assert solution.city_more_s is not None
        unknown = dataclasses.replace(solution, city_more_s=np.full_like(solution.city_more_s, np.nan))
        [other] = plan_of(Decided(decided.batch, unknown), index).pairings[0].decision["alternatives"]
        assert (other["driver_id"], other["at_least"]) == ("b", True)
        assert other["why"] in ("dearer_for_the_city", "no_cheaper_for_the_city")
        assert 360.0 - 0.5 <= other["others_more_s"] <= 440.0 + 0.5

    def test_the_cheapest_others_are_told_in_order_and_no_more_than_asked_for(self) -> None:
        index = index_of([fix_at(f"d{n}", east(100.0 * n)) for n in range(9)])
        [pairing] = made_of(waiting_of([ride_at("r", east(0))]), index).pairings
        assert [each["driver_id"] for each in pairing.decision["alternatives"]] == ["d1", "d2", "d3"]

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("shape", [(12, 12), (20, 9), (9, 20)])
    def test_what_the_others_would_pay_is_the_optimum_with_the_pair_forced(
        self, seed: int, shape: tuple[int, int]
    ) -> None:
        batch, index = scattered(seed, *shape)
        cost, price_s = cost_matrix(batch.problem), batch.problem.price_s
        best_s, looked_at = dense_optimum_s(cost, price_s), 0
        row_of = {ride.ride_id: row for row, ride in enumerate(batch.demand.rides)}
        column_of = {name: column for column, name in enumerate(batch.supply.driver_ids)}
        for pairing in plan_of(decided_of(batch), index).pairings:
            ride, chosen = row_of[pairing.ride_id], column_of[pairing.driver_id]
            for other in pairing.decision["alternatives"]:
                driver = column_of[other["driver_id"]]
                more_s = cost[ride, driver] - cost[ride, chosen]
                assert other["more_s"] == pytest.approx(more_s, abs=0.003)
                if other["why"] == "dearer_for_the_city":
                    looked_at += 1
                    rest = np.delete(np.delete(cost, ride, axis=0), driver, axis=1)
                    whole_s = cost[ride, driver] + dense_optimum_s(rest, np.delete(price_s, ride)) - best_s
                    assert other["others_more_s"] == pytest.approx(whole_s - more_s, abs=0.01 * len(row_of))
                    assert other["others_more_s"] >= -more_s
        assert looked_at > 0


class TestReasons:
    def test_rides_that_get_nobody_say_why(self) -> None:
        rides = [
            ride_at("far", east(25_000)),
            ride_at("outbid", east(0)),
            ride_at("refused", east(0, 12_000)),
            ride_at("served", east(0), waited_s=60.0),
        ]
        index = index_of([fix_at("a", east(50)), fix_at("b", east(0, 12_000))])
        made = made_of(waiting_of(rides, refused={"refused": ["b", "a"]}), index)
        assert pairs_of(made) == {"served": "a"}
        assert reasons_of(made) == {
            "far": Reason.NO_DRIVER_IN_REACH,
            "outbid": Reason.OUTBID,
            "refused": Reason.ALL_REFUSED,
        }
        counts = {each.ride_id: (each.detail["candidates_told"], each.detail["refused"]) for each in made.unmatched}
        assert counts == {"far": (0, 0), "outbid": (1, 0), "refused": (0, 1)}

    @pytest.mark.parametrize("price_s", [3610.0, 9000.0])
    def test_a_ride_whose_every_driver_costs_no_less_than_leaving_it_says_so(self, price_s: float) -> None:
        market = market_with(classes=("standard", "xl"), downgrade_s={"xl": {"standard": price_s}})
        index = index_of([fix_at("a", east(0), kind="xl")])
        [left] = made_of(waiting_of([ride_at("r", east(0), waited_s=10.0)]), index, market).unmatched
        assert left.reason == Reason.PRICE_ABOVE_LIMIT
        assert (left.detail["cheapest_s"], left.detail["price_of_leaving_s"]) == (price_s, 3610.0)

    @pytest.mark.parametrize(
        "refuser",
        [
            fix_at("a", east(25_000)),
            fix_at("a", east(0), seats=1),
            fix_at("a", east(0), kind="xl"),
            fix_at("a", east(0), age_ms=STALE_AFTER_MS + 1),
            fix_at("a", east(0), available=False),
        ],
        ids=["far", "seats", "class", "stale", "break"],
    )
    def test_who_could_not_serve_the_ride_anyway_is_no_refusal(self, refuser: Any) -> None:
        waiting = waiting_of([ride_at("r", east(0), seats=2)], refused={"r": ["a"]})
        [left] = made_of(waiting, index_of([refuser]), market_with(classes=("standard", "xl"))).unmatched
        assert (left.reason, left.detail["refused"]) == (Reason.NO_DRIVER_IN_REACH, 0)

    def test_a_ride_without_anybody_in_reach_counts_who_was_left_out_for_age(self) -> None:
        """P5"""
        index = index_of(
            [
                fix_at("a", east(500), age_ms=STALE_AFTER_MS + 1),
                fix_at("b", east(12_000), age_ms=STALE_AFTER_MS + 1),
                fix_at("c", east(25_000)),
            ]
        )
        [left] = made_of(waiting_of([ride_at("r", east(0))]), index).unmatched
        assert left.reason == Reason.NO_DRIVER_IN_REACH
        assert (left.detail["stale_drivers_skipped"], left.detail["idle_drivers"]) == (1, 1)

    @pytest.mark.parametrize(
        ("waited_s", "limit_s", "counts"), [(0.0, 1800.0, (0, 0)), (900.0, 2700.0, (1, 1)), (9000.0, 3600.0, (1, 1))]
    )
    def test_a_ride_without_anybody_in_reach_tells_its_own_limit_and_counts_within_it(
        self, waited_s: float, limit_s: float, counts: tuple[int, int]
    ) -> None:
        """The first limit is 9.7 km of the market's straight lines, the second 14.5 km."""
        index = index_of([fix_at("stale", east(12_000), age_ms=STALE_AFTER_MS + 1), fix_at("refused", east(0, 12_000))])
        waiting = waiting_of([ride_at("r", east(0), waited_s=waited_s)], refused={"r": ["refused"]})
        [left] = made_of(waiting, index, market_with(pickup_growth=1.0)).unmatched
        assert left.reason == (Reason.ALL_REFUSED if counts[1] else Reason.NO_DRIVER_IN_REACH)
        assert left.detail["pickup_limit_s"] == limit_s
        assert (left.detail["stale_drivers_skipped"], left.detail["refused"]) == counts

    def test_a_ride_whose_grown_limit_still_reaches_nobody_says_that(self) -> None:
        waiting, index = waiting_of([ride_at("r", east(0), waited_s=900.0)]), index_of([fix_at("a", east(25_000))])
        [left] = made_of(waiting, index, market_with(pickup_growth=1.0)).unmatched
        assert (left.reason, left.detail["pickup_limit_s"]) == (Reason.NO_DRIVER_IN_REACH, 2700.0)

    def test_a_ride_that_the_greedys_time_did_not_suffice_for_says_so(self) -> None:
        rides = [ride_at("a", east(0)), ride_at("b", east(0), waited_s=9.0), ride_at("c", east(25_000))]
        index = index_of([fix_at("d", east(0)), fix_at("e", east(10))])
        batch = batch_of(waiting_of(rides), index)
        cut = plain.greedy(batch.problem, batch.problem.s_per_m, is_over=lambda: True)
        made = plan_of(Decided(batch, cut), index)
        assert pairs_of(made) == {"b": "d"}
        assert reasons_of(made) == {"a": Reason.NOT_LOOKED_AT, "c": Reason.NOT_LOOKED_AT}

    def test_a_ride_tells_of_as_many_candidates_as_travel_with_a_solution(self) -> None:
        rides = [ride_at(f"r{n}", east(0), waited_s=n) for n in range(7)]
        index = index_of([fix_at(f"d{n}", east(100.0 * n)) for n in range(6)])
        decided = decided_of(batch_of(waiting_of(rides), index))
        told = dataclasses.replace(decided, solution=optimum.only_told(decided.solution))
        for each in (decided, told):
            [left] = plan_of(each, index).unmatched
            assert (left.reason, left.detail["candidates_told"]) == (Reason.OUTBID, NEAR)

    @pytest.mark.parametrize(
        ("driver_m", "seats", "refused", "reason"),
        [
            (3000.0, 4, [], Reason.NO_WAY_WORTH_ITS_PRICE),
            (3000.0, 4, ["b"], Reason.NO_WAY_WORTH_ITS_PRICE),
            (25_000.0, 4, ["b"], Reason.ALL_REFUSED),
            (25_000.0, 4, [], Reason.NO_DRIVER_IN_REACH),
            (3000.0, 1, [], Reason.NO_DRIVER_IN_REACH),
        ],
        ids=["by a straight line", "beside a refusal", "refused alone", "far", "seats"],
    )
    def test_by_road_nobody_in_reach_is_said_only_where_a_straight_line_reaches_nobody_either(
        self, driver_m: float, seats: int, refused: list[str], reason: Reason
    ) -> None:
        index = index_of(
            [fix_at("a", east(driver_m), seats=seats), fix_at("b", east(100) if refused else east(25_000))]
        )
        waiting = waiting_of([ride_at("r", east(0), seats=2)], refused={"r": refused})
        batch = batch_of(waiting, index, market_with(has_ways=True))
        [left] = plan_of(decided_of(batch, lambda ride, driver: np.full(len(ride), np.inf)), index).unmatched
        assert left.reason == reason

    def test_by_road_a_driver_that_was_looked_at_and_too_dear_says_so(self) -> None:
        index, waiting = index_of([fix_at("a", east(3000))]), waiting_of([ride_at("r", east(0))])
        market = market_with(has_ways=True, max_pickup_s=1800.0, unmatched_base_s=1900.0, refusal_s=300.0)
        histories = {DriverId("a"): history_of("a", trips=4, refused=4)}
        batch = batch_of(waiting, index, market, histories=histories)
        [left] = plan_of(decided_of(batch, lambda ride, driver: np.full(len(ride), 1750.0)), index).unmatched
        assert left.reason == Reason.PRICE_ABOVE_LIMIT

    def test_a_pairing_that_is_lost_at_the_commit_is_a_ride_left_again(self) -> None:
        [pairing] = made_of(waiting_of([ride_at("r", east(0))]), index_of([fix_at("a", east(0))])).pairings
        left = lost_of(LostPairing(pairing, LOST_DRIVER_GONE))
        assert left == Unmatched(pairing.ride_id, Reason.LOST_AT_COMMIT, {"why": "driver_gone"})

    def test_stale_drivers_are_counted_for_so_many_rides_alone(self) -> None:
        """P10"""
        rides = [ride_at(f"r{n:03}", east(0)) for n in range(STALE_COUNTED_MAX + 5)]
        made = made_of(waiting_of(rides), index_of([fix_at("a", east(0), age_ms=STALE_AFTER_MS + 1)]))
        counted = [each.detail.get("stale_drivers_skipped") for each in made.unmatched]
        assert counted == [1] * STALE_COUNTED_MAX + [None] * 5

    def test_a_ride_in_reach_of_drivers_does_not_count_the_stale(self) -> None:
        rides = [ride_at("r1", east(0)), ride_at("r2", east(0))]
        [left] = made_of(waiting_of(rides), index_of([fix_at("a", east(0))])).unmatched
        assert "stale_drivers_skipped" not in left.detail
