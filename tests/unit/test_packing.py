"""What goes over the solver's pipe and into a record comes back as it was, or is refused with a reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matcher import assignment, optimum
from matcher.graph import CandidateGraph
from matcher.packing import (
    ANSWERS,
    OLDEST_READ,
    TASKS,
    VERSION,
    Assigned,
    AssignTask,
    Bad,
    Question,
    RecordFrame,
    Solved,
    SolveTask,
    WaysAnswer,
    assignment_frame_of,
    assignment_of,
    floats_of,
    frame_of,
    graph_frame_of,
    graph_of,
    ints_of,
    pack_record,
    packed,
    problem_of,
    solution_frame_of,
    solution_of,
    unpack_record,
)
from matcher.problem import BadProblem, Problem, check
from tests.problems import drawn

seeds = st.integers(0, 2**32 - 1)
encode = msgspec.msgpack.encode


def fields_of(value: Any) -> dict[str, Any]:
    """Every field with its columns as lists and their types, so that two values compare."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        each = getattr(value, field.name)
        if isinstance(each, np.ndarray):
            plain[field.name] = (each.dtype, each.shape, each.tobytes())
        else:
            plain[field.name] = fields_of(each) if dataclasses.is_dataclass(each) else each
    return plain


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(0, 12), st.integers(0, 12))
def test_a_problem_comes_back_as_it_was(seed: int, n: int, m: int) -> None:
    given_problem = drawn(seed, n, m)
    frame = TASKS.decode(encode(SolveTask(frame_of(given_problem), 1.5, 4, True, 0, "")))
    assert isinstance(frame, SolveTask)
    assert fields_of(problem_of(frame.problem)) == fields_of(given_problem)


@pytest.mark.parametrize("kinds", [(1, 0), (3, 0), (0, 2), (0, 0)])
def test_a_table_of_kinds_that_one_side_has_none_of_comes_back_too(kinds: tuple[int, int]) -> None:
    """A market before its first driver."""
    ride_kinds, driver_kinds = kinds
    empty = drawn(1, ride_kinds, driver_kinds)
    given_problem = dataclasses.replace(
        empty,
        extra_s=np.zeros(kinds),
        reach_m=np.full(ride_kinds, 3000.0),
        reach_s=np.full(ride_kinds, np.inf),
        ride_kind=np.arange(ride_kinds, dtype=np.int32),
        driver_kind=np.arange(driver_kinds, dtype=np.int32),
    )
    assert fields_of(problem_of(frame_of(given_problem))) == fields_of(given_problem)
    assert optimum.solve(problem_of(frame_of(given_problem))).certified


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 12), st.integers(0, 12), st.sampled_from([0, 3]), st.booleans())
def test_a_solution_comes_back_as_it_was(seed: int, n: int, m: int, near: int, compare: bool) -> None:
    solution = optimum.solve(drawn(seed, n, m), near=near, compare=compare)
    answer = ANSWERS.decode(encode(Solved(solution_frame_of(solution))))
    assert isinstance(answer, Solved)
    assert fields_of(solution_of(answer.solution)) == fields_of(solution)


def test_a_graph_and_its_assignment_come_back_as_they_were() -> None:
    rng = np.random.default_rng(3)
    ride, driver = (side.astype(np.int32) for side in np.nonzero(rng.random((9, 7)) < 0.6))
    graph = CandidateGraph(9, 7, ride, driver, rng.random(ride.size) * 100.0, rng.random(9) * 100.0)
    task = TASKS.decode(encode(AssignTask(graph_frame_of(graph))))
    assert isinstance(task, AssignTask)
    assert fields_of(graph_of(task.graph)) == fields_of(graph)
    assigned = assignment.solve(graph)
    answer = ANSWERS.decode(encode(Assigned(assignment_frame_of(assigned))))
    assert isinstance(answer, Assigned)
    assert fields_of(assignment_of(answer.assignment)) == fields_of(assigned)


def test_questions_ways_and_reasons_are_told_apart() -> None:
    pairs, seconds = np.array([0, 7], np.int32), np.array([1.5, np.inf])
    question = ANSWERS.decode(encode(Question(packed(pairs), packed(pairs[::-1]))))
    assert isinstance(question, Question)
    assert [ints_of(question.ride).tolist(), ints_of(question.driver).tolist()] == [[0, 7], [7, 0]]
    ways = TASKS.decode(encode(WaysAnswer(packed(seconds))))
    assert isinstance(ways, WaysAnswer)
    assert floats_of(ways.seconds).tolist() == [1.5, np.inf]
    assert ANSWERS.decode(encode(Bad("no"))) == Bad("no", is_fault=False)


def test_columns_that_come_back_can_be_written() -> None:
    """Compiled code would be compiled a second time for those that cannot."""
    given_problem = problem_of(frame_of(drawn(1, 3, 3)))
    assert all(column.flags.writeable for column in vars_of(given_problem))


def vars_of(given_problem: Problem) -> list[np.ndarray[Any, Any]]:
    values = [getattr(given_problem, field.name) for field in dataclasses.fields(given_problem)]
    return [value for value in values if isinstance(value, np.ndarray)]


class TestRecord:
    def record(self, **fields: Any) -> RecordFrame:
        given_problem = drawn(2, 3, 4)
        whole = RecordFrame(
            version=VERSION,
            batch_id="b_1",
            market="nyc",
            problem=frame_of(given_problem),
            ride_ids=["r1", "r2", "r3"],
            driver_ids=["a", "b", "c", "d"],
            driver_of=packed(np.array([2, -1, 0], np.int32)),
            cost_s=120.5,
            bound_s=120.5,
            facts={"certified": True},
        )
        return msgspec.structs.replace(whole, **fields)

    def test_a_record_comes_back_as_it_was(self) -> None:
        assert unpack_record(pack_record(self.record())) == self.record()

    @pytest.mark.parametrize("data", [b"", b"\xc1", b"nonsense", b"\x80", b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff"])
    def test_what_is_no_record_is_refused(self, data: bytes) -> None:
        with pytest.raises(BadProblem, match="no recorded batch"):
            unpack_record(data)

    def test_a_record_that_breaks_off_is_refused_wherever_it_does(self) -> None:
        data = pack_record(self.record())
        for length in range(0, len(data), 17):
            with pytest.raises(BadProblem, match="no recorded batch"):
                unpack_record(data[:length])

    def test_a_record_of_another_form_is_refused_naming_both(self) -> None:
        for version in (OLDEST_READ - 1, VERSION + 1):
            with pytest.raises(BadProblem, match=f"in form {version}, this version reads {OLDEST_READ} to {VERSION}"):
                unpack_record(pack_record(self.record(version=version)))

    @pytest.mark.parametrize("drivers", [0, 4])
    def test_a_record_in_the_first_form_whose_rides_had_one_reach_is_read(self, drivers: int) -> None:
        given_problem = drawn(2, 3, drivers)
        kinds = len(given_problem.extra_s) if drivers else int(given_problem.ride_kind.max()) + 1
        frame = msgspec.structs.replace(frame_of(given_problem), reach_m=3000.0, reach_s=np.inf)
        record = unpack_record(pack_record(self.record(version=1, problem=frame)))
        found = problem_of(record.problem)
        check(found)
        assert (found.reach_m.tolist(), found.reach_s.tolist()) == ([3000.0] * kinds, [np.inf] * kinds)
        assert found.extra_s.tolist() == given_problem.extra_s[:kinds].tolist()

    @pytest.mark.parametrize(
        "broken",
        [
            {"ride_lat": b"1234567"},
            {"driver_kind": b"123"},
            {"extra_s": bytes(20)},
            {"reach_m": bytes(20)},
            {"reach_m": bytes(8 * 99)},
            {"reach_s": bytes(20)},
            {"extra_columns": 7},
            {"extra_columns": 2**62},
            {"extra_columns": 2**64 - 1},
        ],
        ids=str,
    )
    def test_a_problem_whose_columns_are_cut_is_refused(self, broken: dict[str, Any]) -> None:
        frame = msgspec.structs.replace(self.record().problem, **broken)
        record = unpack_record(pack_record(self.record(problem=frame)))
        with pytest.raises(BadProblem, match="a column is cut"):
            problem_of(record.problem)
