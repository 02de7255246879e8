"""What is kept of a batch: its numbers, an input that can be solved again, and why rides wait (P12)."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from matcher import optimum, plain
from matcher import recording as recording_module
from matcher.model import RideId
from matcher.packing import floats_of, ints_of, problem_of, unpack_record
from matcher.plan import NEAR, Decided, Reason, Unmatched
from matcher.problem import BadProblem, Floats, Ints, Solution
from matcher.recording import REPEAT_MS, RecordedWays, Waits, input_of, report_of
from tests.batches import batch_of, decided_of, east, fix_at, index_of, market_with, ride_at, waiting_of
from tests.certificate import prove
from tests.problems import drawn


def city(rides: int = 40, drivers: int = 30, *, has_ways: bool = False) -> Decided:
    """A solved batch of people and cars in different places; its roads are crooked where it has any."""
    rng = np.random.default_rng(rides)
    waiting = waiting_of(
        [ride_at(f"r{i:03}", east(*rng.normal(0.0, 700.0, 2)), waited_s=float(i)) for i in range(rides)],
        refused={"r003": ["d001"], "r004": ["d002", "d003"]},
    )
    index = index_of([fix_at(f"d{j:03}", east(*rng.normal(900.0, 700.0, 2))) for j in range(drivers)])
    market = market_with(has_ways=has_ways, top_speed_mps=30.0)
    batch = batch_of(waiting, index, market)
    times = rng.uniform(60.0, 2500.0, (rides, drivers))

    def ways(ride: Ints, driver: Ints) -> Floats:
        return np.where(times[ride, driver] > 2000.0, np.inf, times[ride, driver])

    return decided_of(batch, ways if has_ways else None)


class TestReport:
    def test_the_summary_says_what_was_decided_and_what_became_of_it(self) -> None:
        decided = dataclasses.replace(city(), solve_s=0.123456, way="osrm", estimated=frozenset({(0, 1), (2, 3)}))
        report = report_of(
            decided, "b_7", matched=27, lost={"ride_changed": 3}, unmatched={"outbid": 10}, batch_s=0.23456
        )
        solution, summary = decided.solution, report.summary()
        assert solution.greedy_s is not None
        assert (report.batch_id, report.market) == ("b_7", "nyc")
        assert summary == {
            "rides": 40,
            "drivers": 30,
            "matched": 27,
            "pairs": solution.numbers["pairs"],
            "rounds": solution.numbers["rounds"],
            "components": solution.numbers["components"],
            "solve_s": 0.1235,
            "batch_s": 0.2346,
            "cost_s": round(solution.cost_s, 3),
            "greedy_cost_s": pytest.approx(solution.greedy_s, abs=0.001),
            "gain_s": pytest.approx(solution.greedy_s - solution.cost_s, abs=0.001),
            "gap_s": 0.0,
            "certified": True,
            "scope": "all pairs in reach",
            "way": "osrm",
            "estimated": 2,
            "unmatched": {"outbid": 10},
            "lost": {"ride_changed": 3},
        }
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary

    def test_pairs_that_were_looked_at_count_also_where_only_some_are_told_of(self) -> None:
        decided = city()
        told = dataclasses.replace(decided, solution=optimum.only_told(decided.solution))
        reports = [
            report_of(each, "b", matched=0, lost={}, unmatched={}, batch_s=0.0).pairs for each in (decided, told)
        ]
        assert reports == [decided.solution.numbers["pairs"]] * 2

    def test_a_greedy_plan_reports_no_rounds_and_its_gap(self) -> None:
        batch = city().batch
        solution = plain.greedy(batch.problem, batch.problem.s_per_m, is_over=lambda: False)
        report = report_of(Decided(batch, solution), "b", matched=30, lost={}, unmatched={}, batch_s=0.0)
        assert (report.rounds, report.certified, report.scope) == (0, False, "none: taken greedily")
        assert report.gap_s == solution.cost_s - solution.bound_s > 0.0
        assert report.greedy_cost_s == report.cost_s


def solved_again(data: bytes) -> Solution:
    """As a replay does it: from what was kept alone."""
    record = unpack_record(data)
    problem = problem_of(record.problem)
    columns = ints_of(record.way_ride), ints_of(record.way_driver), floats_of(record.way_s)
    ways = RecordedWays(problem, *columns) if problem.has_ways else None
    solution = optimum.solve(problem, ways, near=NEAR, compare=True)
    prove(problem, solution, ways)
    return solution


class TestInput:
    @pytest.mark.parametrize("has_ways", [False, True])
    def test_a_kept_batch_solved_again_gives_the_same_plan(self, has_ways: bool) -> None:
        decided = city(has_ways=has_ways)
        data = input_of(decided, "b_7")
        assert data is not None
        again = solved_again(data)
        assert again.driver_of.tolist() == decided.solution.driver_of.tolist()
        assert (again.cost_s, again.bound_s) == (decided.solution.cost_s, decided.solution.bound_s)
        assert again.greedy_s == decided.solution.greedy_s

    def test_a_record_says_who_was_who_and_what_was_decided(self) -> None:
        decided = city()
        data = input_of(decided, "b_7")
        assert data is not None
        record = unpack_record(data)
        assert (record.batch_id, record.market) == ("b_7", "nyc")
        assert record.ride_ids == [f"r{i:03}" for i in range(40)]
        assert record.driver_ids == [f"d{j:03}" for j in range(30)]
        assert ints_of(record.driver_of).tolist() == decided.solution.driver_of.tolist()
        assert (record.cost_s, record.bound_s) == (decided.solution.cost_s, decided.solution.bound_s)
        assert record.facts["certified"] is True
        assert (record.way_ride, record.way_s) == (b"", b"")  # straight lines are measured again

    def test_an_input_too_large_to_keep_is_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """P10"""
        decided = city()
        data = input_of(decided, "b_7")
        assert data is not None
        monkeypatch.setattr(recording_module, "INPUT_BYTES_MAX", len(data))
        assert input_of(decided, "b_7") == data
        monkeypatch.setattr(recording_module, "INPUT_BYTES_MAX", len(data) - 1)
        assert input_of(decided, "b_7") is None

    def test_a_batch_without_anybody_is_kept_as_well(self) -> None:
        decided = decided_of(batch_of(waiting_of([ride_at("r", east(0))]), index_of([])))
        data = input_of(decided, "b_7")
        assert data is not None
        assert solved_again(data).driver_of.tolist() == [-1]


class TestRecordedWays:
    def test_a_recorded_pair_takes_what_it_took_and_any_other_has_no_way(self) -> None:
        columns = np.array([2, 0, 2], np.int32), np.array([1, 3, 0], np.int32), np.array([30.0, 10.0, 20.0])
        ways = RecordedWays(drawn(1, 3, 4), *columns)
        asked = np.array([0, 0, 2, 2, 1, 2], np.int32), np.array([3, 1, 0, 1, 3, 3], np.int32)
        assert ways(*asked).tolist() == [10.0, np.inf, 20.0, 30.0, np.inf, np.inf]

    def test_where_nothing_was_recorded_there_is_no_way(self) -> None:
        nothing = np.empty(0, np.int32)
        ways = RecordedWays(drawn(1, 3, 4), nothing, nothing, np.empty(0))
        assert ways(np.array([0, 2], np.int32), np.array([0, 3], np.int32)).tolist() == [np.inf, np.inf]
        assert RecordedWays(drawn(1, 0, 0), nothing, nothing, np.empty(0))(nothing, nothing).tolist() == []

    def test_columns_of_different_length_are_refused(self) -> None:
        two, three = np.zeros(2, np.int32), np.zeros(3, np.int32)
        for columns in ((three, two, np.zeros(2)), (two, three, np.zeros(2)), (two, two, np.zeros(3))):
            with pytest.raises(BadProblem, match="different length"):
                RecordedWays(drawn(1, 3, 4), *columns)


def left(ride: str, reason: Reason = Reason.OUTBID, candidates: int = 1) -> Unmatched:
    return Unmatched(RideId(ride), reason, {"candidates_told": candidates})


class TestWaits:
    def due(self, waits: Waits, now_ms: int, *unmatched: Unmatched) -> list[tuple[str, str]]:
        return [(ride_id, reason) for ride_id, reason, _ in waits.due(unmatched, now_ms)]

    def test_a_reason_is_due_when_it_is_new_or_has_changed(self) -> None:
        waits = Waits()
        assert self.due(waits, 0, left("a"), left("b")) == [("a", "outbid"), ("b", "outbid")]
        assert self.due(waits, 1000, left("a"), left("b")) == []
        assert self.due(waits, 2000, left("a", Reason.ALL_REFUSED), left("b")) == [("a", "all_refused")]
        assert self.due(waits, 3000, left("a", Reason.ALL_REFUSED), left("c")) == [("c", "outbid")]

    def test_a_reason_that_stays_is_due_again_after_a_while_with_its_present_counts(self) -> None:
        waits = Waits()
        self.due(waits, 0, left("a"))
        assert self.due(waits, REPEAT_MS - 1, left("a")) == []
        assert waits.due([left("a", candidates=5)], REPEAT_MS) == [("a", "outbid", {"candidates_told": 5})]
        assert self.due(waits, 2 * REPEAT_MS - 1, left("a")) == []
        assert self.due(waits, 2 * REPEAT_MS, left("a")) == [("a", "outbid")]

    def test_a_ride_that_is_left_again_after_a_match_is_new(self) -> None:
        """P10: rides that are gone are forgotten."""
        waits = Waits()
        self.due(waits, 0, left("a"))
        self.due(waits, 1000)
        assert self.due(waits, 2000, left("a")) == [("a", "outbid")]

    def test_the_reason_is_plain_text(self) -> None:
        [(_, reason, _)] = Waits().due([left("a")], 0)
        assert type(reason) is str
