"""What is kept of a batch: its numbers, its whole input for a replay, and why each ride waits (P12). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from geo.model import MarketId
from matcher.model import RideId
from matcher.packing import VERSION, RecordFrame, frame_of, pack_record, packed
from matcher.plan import Decided, Unmatched, batch_facts
from matcher.problem import BadProblem, Floats, Ints, Problem

#: A wait whose reason stays the same is written again after so long, with its present counts.
REPEAT_MS = 10_000
INPUT_BYTES_MAX = 8 * 2**20


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch came to. `lost` and `unmatched` count by reason; `rounds` 0: greedy had to do."""

    market: MarketId
    batch_id: str
    rides: int
    drivers: int
    matched: int
    lost: Mapping[str, int]
    unmatched: Mapping[str, int]
    pairs: int
    rounds: int
    components: int
    solve_s: float
    batch_s: float
    certified: bool
    gap_s: float
    cost_s: float
    greedy_cost_s: float
    scope: str
    way: str
    estimated: int  # pairs for which a straight line stood in

    def summary(self) -> dict[str, Any]:
        """As clients read it."""
        return {
            "rides": self.rides,
            "drivers": self.drivers,
            "matched": self.matched,
            "pairs": self.pairs,
            "rounds": self.rounds,
            "components": self.components,
            "solve_s": round(self.solve_s, 4),
            "batch_s": round(self.batch_s, 4),
            "cost_s": round(self.cost_s, 3),
            "greedy_cost_s": round(self.greedy_cost_s, 3),
            "gain_s": round(self.greedy_cost_s - self.cost_s, 3),
            "gap_s": round(self.gap_s, 3),
            "certified": self.certified,
            "scope": self.scope,
            "way": self.way,
            "estimated": self.estimated,
            "unmatched": dict(self.unmatched),
            "lost": dict(self.lost),
        }


def report_of(
    decided: Decided,
    batch_id: str,
    *,
    matched: int,
    lost: Mapping[str, int],
    unmatched: Mapping[str, int],
    batch_s: float,
) -> BatchReport:
    solution, facts = decided.solution, batch_facts(decided, batch_id)
    return BatchReport(
        market=decided.batch.demand.market.id,
        batch_id=batch_id,
        rides=facts["rides"],
        drivers=facts["drivers"],
        matched=matched,
        lost=lost,
        unmatched=unmatched,
        pairs=decided.pairs,
        rounds=decided.rounds,
        components=solution.numbers.get("components", 0),
        solve_s=decided.solve_s,
        batch_s=batch_s,
        certified=solution.certified,
        gap_s=solution.gap_s,
        cost_s=solution.cost_s,
        greedy_cost_s=solution.cost_s + facts["gain_s"],
        scope=decided.scope,
        way=decided.way,
        estimated=len(decided.estimated),
    )


def input_of(decided: Decided, batch_id: str) -> bytes | None:
    """The whole input and what was decided, as msgpack; None where that is too large to keep."""
    batch, solution = decided.batch, decided.solution
    has_ways = batch.problem.has_ways
    record = RecordFrame(
        version=VERSION,
        batch_id=batch_id,
        market=batch.demand.market.id,
        problem=frame_of(batch.problem),
        ride_ids=[ride.ride_id for ride in batch.demand.rides],
        driver_ids=list(batch.supply.driver_ids),
        driver_of=packed(solution.driver_of),
        cost_s=solution.cost_s,
        bound_s=solution.bound_s,
        way_ride=packed(solution.pairs.ride) if has_ways else b"",
        way_driver=packed(solution.pairs.driver) if has_ways else b"",
        way_s=packed(solution.pairs.way_s) if has_ways else b"",
        facts=batch_facts(decided, batch_id),
    )
    data = pack_record(record)
    return data if len(data) <= INPUT_BYTES_MAX else None


class RecordedWays:
    """The ways of a recorded batch by their pairs. One that was never priced had none: inf."""

    def __init__(self, problem: Problem, ride: Ints, driver: Ints, way_s: Floats) -> None:
        if not (len(ride) == len(driver) == len(way_s)):
            raise BadProblem("the recorded ways are columns of different length")
        self._drivers = problem.n_drivers
        key = self._keys(ride, driver)
        order = np.argsort(key, kind="stable")
        self._key, self._way_s = key[order], way_s[order]

    def _keys(self, ride: Ints, driver: Ints) -> Any:
        return ride.astype(np.int64) * max(self._drivers, 1) + driver

    def __call__(self, ride: Ints, driver: Ints) -> Floats:
        key = self._keys(ride, driver)
        found: Floats = np.full(len(key), np.inf)
        if len(self._key):
            place = np.minimum(np.searchsorted(self._key, key), len(self._key) - 1)
            known = self._key[place] == key
            found[known] = self._way_s[place[known]]
        return found


class Waits:
    """Which reasons have to be written: those of rides that are new here, changed, or written long ago."""

    def __init__(self) -> None:
        self._written: dict[RideId, tuple[str, int]] = {}

    def due(self, unmatched: Iterable[Unmatched], now_ms: int) -> list[tuple[RideId, str, Mapping[str, Any]]]:
        """Of the rides that got no driver in this batch, all of which are named. Times by any one clock, ms."""
        due, written = [], {}
        for each in unmatched:
            reason, at_ms = self._written.get(each.ride_id, ("", 0))
            if reason != each.reason or now_ms - at_ms >= REPEAT_MS:
                due.append((each.ride_id, str(each.reason), each.detail))
                reason, at_ms = str(each.reason), now_ms
            written[each.ride_id] = (reason, at_ms)
        self._written = written
        return due
