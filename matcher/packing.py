"""Problems, graphs and solutions as msgpack: on the solver's pipe, and kept for a replay.

Arrays are their bytes, little endian. What comes back from outside (a replayed file) is checked for
shape and meaning by whoever solves it; this module checks that it can be read at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from matcher.graph import Assignment, CandidateGraph
from matcher.problem import BadProblem, Floats, Ints, Pairs, Problem, Solution

#: The form of what is written, and the oldest that is read; others are refused.
VERSION, OLDEST_READ = 2, 1


class ProblemFrame(msgspec.Struct):
    """A problem. In form 1 all kinds of rides had the same reach, one number."""

    ride_lat: bytes
    ride_lon: bytes
    price_s: bytes
    ride_kind: bytes
    driver_lat: bytes
    driver_lon: bytes
    driver_s: bytes
    driver_kind: bytes
    extra_s: bytes
    extra_columns: int
    barred_ride: bytes
    barred_driver: bytes
    s_per_m: float
    reach_m: bytes | float
    reach_s: bytes | float
    has_ways: bool


class GraphFrame(msgspec.Struct):
    n_rides: int
    n_drivers: int
    ride: bytes
    driver: bytes
    cost: bytes
    unmatched: bytes


class SolutionFrame(msgspec.Struct):
    driver_of: bytes
    cost_s: float
    bound_s: float
    u: bytes
    v: bytes
    ride: bytes
    driver: bytes
    way_s: bytes
    pair_cost_s: bytes
    greedy_of: bytes | None
    greedy_s: float | None
    numbers: dict[str, int]
    near: int
    cheapest: bytes
    city_more_s: bytes


class AssignmentFrame(msgspec.Struct):
    driver_of: bytes
    cost: float
    u: bytes
    v: bytes
    greedy_of: bytes
    greedy_cost: float
    numbers: dict[str, int]


class SolveTask(msgspec.Struct, tag="solve"):
    problem: ProblemFrame
    limit_s: float
    near: int
    compare: bool
    ways_max: int
    roads: str


class AssignTask(msgspec.Struct, tag="assign"):
    graph: GraphFrame


class WaysAnswer(msgspec.Struct, tag="ways"):
    seconds: bytes


class Question(msgspec.Struct, tag="question"):
    """The child wants the ways of these pairs before it goes on."""

    ride: bytes
    driver: bytes


class Solved(msgspec.Struct, tag="solved"):
    solution: SolutionFrame


class Assigned(msgspec.Struct, tag="assigned"):
    assignment: AssignmentFrame


class Bad(msgspec.Struct, tag="bad"):
    """The input breaks a rule, which is named; or (`is_fault`) the solver failed over it."""

    reason: str
    is_fault: bool = False


TASKS: Final = msgspec.msgpack.Decoder(SolveTask | AssignTask | WaysAnswer)
ANSWERS: Final = msgspec.msgpack.Decoder(Question | Solved | Assigned | Bad)


class RecordFrame(msgspec.Struct):
    """A decision whole: its input, who was who, what was decided and what ways were said to take."""

    version: int
    batch_id: str
    market: str
    problem: ProblemFrame
    ride_ids: list[str]
    driver_ids: list[str]
    driver_of: bytes
    cost_s: float
    bound_s: float
    way_ride: bytes = b""
    way_driver: bytes = b""
    way_s: bytes = b""
    facts: dict[str, Any] = msgspec.field(default_factory=dict)


def floats_of(packed: bytes) -> Floats:
    # A copy: compiled code would be compiled again for columns that cannot be written.
    return np.frombuffer(packed, dtype="<f8").copy()


def ints_of(packed: bytes) -> Ints:
    return np.frombuffer(packed, dtype="<i4").copy()


def packed(column: npt.NDArray[Any]) -> bytes:
    return column.astype("<f8" if column.dtype.kind == "f" else "<i4").tobytes()


_PROBLEM_FLOATS = ("ride_lat", "ride_lon", "price_s", "driver_lat", "driver_lon", "driver_s")
_PROBLEM_INTS = ("ride_kind", "driver_kind", "barred_ride", "barred_driver")
_PROBLEM_REACH = ("reach_m", "reach_s")
_PROBLEM_PLAIN = ("s_per_m", "has_ways")


def frame_of(problem: Problem) -> ProblemFrame:
    names = (*_PROBLEM_FLOATS, *_PROBLEM_INTS, *_PROBLEM_REACH, "extra_s")
    columns: dict[str, Any] = {name: packed(getattr(problem, name)) for name in names}
    columns |= {name: getattr(problem, name) for name in _PROBLEM_PLAIN}
    return ProblemFrame(**columns, extra_columns=problem.extra_s.shape[1])


def problem_of(frame: ProblemFrame) -> Problem:
    """Raises BadProblem where bytes do not make up whole columns."""
    try:
        columns: dict[str, Any] = {name: floats_of(getattr(frame, name)) for name in _PROBLEM_FLOATS}
        columns |= {name: ints_of(getattr(frame, name)) for name in _PROBLEM_INTS}
        rows = _ride_kinds(frame, columns["ride_kind"])
        columns["extra_s"] = floats_of(frame.extra_s).reshape(rows, max(frame.extra_columns, 0))
        kinds = len(columns["extra_s"])
        columns |= {name: _reach_of(getattr(frame, name), kinds) for name in _PROBLEM_REACH}
    except ValueError as error:
        raise BadProblem(f"a column is cut: {error}") from error
    return Problem(**columns, **{name: getattr(frame, name) for name in _PROBLEM_PLAIN})


def _ride_kinds(frame: ProblemFrame, ride_kind: Ints) -> int:
    """How many rows the table of prices has; -1: as many as it fills."""
    if isinstance(frame.reach_m, bytes):
        return len(frame.reach_m) // 8
    # A table without columns, where there is no driver, says nothing of its rows.
    return -1 if frame.extra_columns else int(ride_kind.max(initial=-1)) + 1


def _reach_of(reach: bytes | float, kinds: int) -> Floats:
    return floats_of(reach) if isinstance(reach, bytes) else np.full(kinds, reach)


def graph_frame_of(graph: CandidateGraph) -> GraphFrame:
    columns = (packed(each) for each in (graph.ride, graph.driver, graph.cost, graph.unmatched))
    return GraphFrame(graph.n_rides, graph.n_drivers, *columns)


def graph_of(frame: GraphFrame) -> CandidateGraph:
    return CandidateGraph(
        frame.n_rides,
        frame.n_drivers,
        ints_of(frame.ride),
        ints_of(frame.driver),
        floats_of(frame.cost),
        floats_of(frame.unmatched),
    )


def solution_frame_of(solution: Solution) -> SolutionFrame:
    pairs = solution.pairs
    return SolutionFrame(
        driver_of=packed(solution.driver_of),
        cost_s=solution.cost_s,
        bound_s=solution.bound_s,
        u=packed(solution.u),
        v=packed(solution.v),
        ride=packed(pairs.ride),
        driver=packed(pairs.driver),
        way_s=packed(pairs.way_s),
        pair_cost_s=packed(pairs.cost_s),
        greedy_of=None if solution.greedy_of is None else packed(solution.greedy_of),
        greedy_s=solution.greedy_s,
        numbers=_whole(solution.numbers),
        near=0 if solution.cheapest is None else solution.cheapest.shape[1],
        cheapest=b"" if solution.cheapest is None else packed(solution.cheapest),
        city_more_s=b"" if solution.city_more_s is None else packed(solution.city_more_s),
    )


def solution_of(frame: SolutionFrame) -> Solution:
    pairs = Pairs(ints_of(frame.ride), ints_of(frame.driver), floats_of(frame.way_s), floats_of(frame.pair_cost_s))
    return Solution(
        ints_of(frame.driver_of),
        frame.cost_s,
        frame.bound_s,
        floats_of(frame.u),
        floats_of(frame.v),
        pairs,
        None if frame.greedy_of is None else ints_of(frame.greedy_of),
        frame.greedy_s,
        frame.numbers,
        ints_of(frame.cheapest).reshape(-1, frame.near) if frame.near else None,
        floats_of(frame.city_more_s).reshape(-1, frame.near) if frame.near else None,
    )


def assignment_frame_of(assignment: Assignment) -> AssignmentFrame:
    return AssignmentFrame(
        packed(assignment.driver_of),
        assignment.cost,
        packed(assignment.u),
        packed(assignment.v),
        packed(assignment.greedy_of),
        assignment.greedy_cost,
        _whole(assignment.numbers),
    )


def assignment_of(frame: AssignmentFrame) -> Assignment:
    return Assignment(
        ints_of(frame.driver_of),
        frame.cost,
        floats_of(frame.u),
        floats_of(frame.v),
        ints_of(frame.greedy_of),
        frame.greedy_cost,
        frame.numbers,
    )


def _whole(numbers: Mapping[str, int]) -> dict[str, int]:
    """numpy's integers are no msgpack."""
    return {name: int(number) for name, number in numbers.items()}


def pack_record(record: RecordFrame) -> bytes:
    return msgspec.msgpack.encode(record)


def unpack_record(data: bytes) -> RecordFrame:
    """Raises BadProblem for what is no record of a form that this version reads."""
    try:
        record = msgspec.msgpack.decode(data, type=RecordFrame)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise BadProblem(f"this is no recorded batch: {error}") from error
    if not OLDEST_READ <= record.version <= VERSION:
        forms = f"{OLDEST_READ} to {VERSION}"
        raise BadProblem(f"the batch was recorded in form {record.version}, this version reads {forms}")
    return record
