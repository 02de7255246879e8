"""A kept batch read back, solved again without a limit of time, and each ride's candidates laid open. Pure.

What was kept is what `matcher.recording.input_of` wrote. The compiled solver is imported where it is used: reading
a batch and looking at it does not wait for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from matcher.certificate import STEP_S, Priced, cost_of, priced, prove
from matcher.graph import NoCertificate
from matcher.packing import RecordFrame, floats_of, ints_of, problem_of, unpack_record
from matcher.plan import NEAR, why_not
from matcher.problem import UNMATCHED, BadProblem, Ints, Problem, Solution, WaysOf, check
from matcher.recording import RecordedWays

#: Candidates of a ride that are told, the cheapest first, beside the chosen one.
CANDIDATES_TOLD = 12
#: Beside the words of matcher.plan, why a candidate was chosen, or not for a ride that is left.
CHOSEN, DEARER_THAN_LEAVING = "chosen", "dearer_than_leaving"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A kept batch: its problem, who was who, and what was decided."""

    record: RecordFrame
    problem: Problem
    driver_of: Ints
    ways: WaysOf | None

    @property
    def certified(self) -> bool:
        return self.record.bound_s >= self.record.cost_s

    @property
    def gap_s(self) -> float:
        return max(0.0, self.record.cost_s - self.record.bound_s)


@dataclass(frozen=True, slots=True)
class Replay:
    """A batch solved again. `fault` says what an independent check found wrong with the new solution, and
    `recorded_fault` with the plan that was kept; None: nothing."""

    recorded: Recorded
    solution: Solution
    fault: str | None
    recorded_fault: str | None

    @property
    def same_plan(self) -> bool:
        return bool(np.array_equal(self.solution.driver_of, self.recorded.driver_of))

    @property
    def agrees(self) -> bool:
        """The same plan, or one no worse than a plan that was not certified; and the proof holds."""
        allowed_s = STEP_S * self.recorded.problem.n_rides  # a plain greedy measures ways by another formula
        no_worse = not self.recorded.certified and self.solution.cost_s <= self.recorded.record.cost_s + allowed_s
        return self.fault is None and self.recorded_fault is None and (self.same_plan or no_worse)


def read_recorded(data: bytes) -> Recorded:
    """Raises BadProblem for what is no kept batch, or contradicts itself."""
    record = unpack_record(data)
    problem = problem_of(record.problem)
    check(problem)
    try:
        driver_of, way_ride, way_driver = (
            ints_of(each) for each in (record.driver_of, record.way_ride, record.way_driver)
        )
        way_s = floats_of(record.way_s)
    except ValueError as error:
        raise BadProblem(f"a column is cut: {error}") from error
    counts = {"ride_ids": len(record.ride_ids), "driver_of": len(driver_of)}
    for name, count in counts.items():
        if count != problem.n_rides:
            raise BadProblem(f"{name} has {count} entries for {problem.n_rides} rides")
    if len(record.driver_ids) != problem.n_drivers:
        raise BadProblem(f"driver_ids has {len(record.driver_ids)} entries for {problem.n_drivers} drivers")
    if np.any(driver_of < UNMATCHED) or np.any(driver_of >= problem.n_drivers):
        raise BadProblem(f"driver_of names a driver that is none of the {problem.n_drivers}")
    ways = RecordedWays(problem, way_ride, way_driver, way_s) if problem.has_ways else None
    return Recorded(record, problem, driver_of, ways)


def solve_again(recorded: Recorded) -> Solution:
    """As the dispatcher would, for as long as it takes. Raises BadProblem."""
    from matcher import optimum  # compiled

    return optimum.solve(recorded.problem, recorded.ways, near=NEAR, compare=True)


def checked(recorded: Recorded, solution: Solution) -> Replay:
    """The replay with what an independent check says of it and of the plan that was kept."""
    return Replay(recorded, solution, _fault_of_solution(recorded, solution), _fault_of_record(recorded))


def _fault_of_solution(recorded: Recorded, solution: Solution) -> str | None:
    try:
        prove(recorded.problem, solution, recorded.ways)
    except NoCertificate as wrong:
        return str(wrong)
    return None


def _fault_of_record(recorded: Recorded) -> str | None:
    try:
        cost_s = cost_of(recorded.problem, recorded.driver_of, recorded.ways)
    except NoCertificate as wrong:
        return str(wrong)
    if abs(cost_s - recorded.record.cost_s) > STEP_S * (recorded.problem.n_rides + 1):
        return f"the recorded plan costs {cost_s:.3f} s, not the recorded {recorded.record.cost_s:.3f}"
    return None


# One ride


def explain(replay: Replay, ride: int) -> dict[str, Any]:
    """The ride's candidates, the cheapest first, each with its cost by term and why it was chosen or not. Seconds."""
    recorded, driver = replay.recorded, int(replay.solution.driver_of[ride])
    problem, record = recorded.problem, recorded.record
    part = priced(problem, np.array([ride], np.int32), recorded.ways)
    price_s, cost_s = float(problem.price_s[ride]), part.cost_s[0]
    paid_s = price_s if driver == UNMATCHED else float(cost_s[driver])
    allowed = np.flatnonzero(np.isfinite(cost_s))
    told = allowed[np.argsort(cost_s[allowed], kind="stable")][:CANDIDATES_TOLD].tolist()
    told += [] if driver == UNMATCHED or driver in told else [driver]
    return {
        "ride_id": record.ride_ids[ride],
        "driver_id": _name(record, driver),
        "recorded_driver_id": _name(record, int(recorded.driver_of[ride])),
        "cost_s": round(paid_s, 3),
        "price_of_leaving_s": round(price_s, 3),
        "refused": int(np.count_nonzero(problem.barred_ride == ride)),
        "allowed": len(allowed),
        "candidates": [_candidate(replay, part, each, paid_s) for each in told],
    }


def _name(record: RecordFrame, driver: int) -> str | None:
    return None if driver == UNMATCHED else record.driver_ids[driver]


def _candidate(replay: Replay, part: Priced, driver: int, paid_s: float) -> dict[str, Any]:
    """`driver` is what the driver brings of itself: risk of refusal, rest of its trip, less the bonus of its idleness.

    `reduced_s` is by how much the whole plan would cost more with this pair, at least.
    """
    recorded, solution = replay.recorded, replay.solution
    problem, ride, cost_s = recorded.problem, int(part.rides[0]), float(part.cost_s[0, driver])
    more_s, reduced_s = cost_s - paid_s, cost_s - float(solution.u[ride]) - float(solution.v[driver])
    known_s = _city_more_s(solution, ride, driver)
    city_more_s = reduced_s if known_s is None else known_s
    rivals = np.flatnonzero(solution.driver_of == driver).tolist()
    terms = {
        "way": float(part.way_s[0, driver]),
        "class_downgrade": float(problem.extra_s[problem.ride_kind[ride], problem.driver_kind[driver]]),
        "driver": float(problem.driver_s[driver]),
    }
    told: dict[str, Any] = {
        "driver_id": recorded.record.driver_ids[driver],
        "cost_s": round(cost_s, 3),
        "terms": {name: round(value, 3) for name, value in terms.items() if value or name == "way"},
        "why": _why(int(solution.driver_of[ride]), driver, more_s, city_more_s, at_least=known_s is None),
        "more_s": round(more_s, 3),
        "reduced_s": round(reduced_s, 3),
        "others_more_s": round(city_more_s - more_s, 3) if more_s < 0.0 else None,
        "at_least": known_s is None if more_s < 0.0 else None,
        "rival_ride_id": None,
    }
    if rivals and rivals[0] != ride:
        told["rival_ride_id"] = recorded.record.ride_ids[rivals[0]]
    return told


def _city_more_s(solution: Solution, ride: int, driver: int) -> float | None:
    """By how much the whole plan costs more with this pair in it; None where that was not worked out."""
    if solution.cheapest is None or solution.city_more_s is None:
        return None
    for place, city_more_s in zip(solution.cheapest[ride].tolist(), solution.city_more_s[ride].tolist(), strict=True):
        if place >= 0 and solution.pairs.driver[place] == driver:
            return None if math.isnan(city_more_s) else city_more_s
    return None


def _why(chosen: int, driver: int, more_s: float, city_more_s: float, *, at_least: bool) -> str:
    if driver == chosen:
        return CHOSEN
    if chosen == UNMATCHED and more_s >= 0.0:
        return DEARER_THAN_LEAVING
    return why_not(more_s, city_more_s, at_least=at_least)
