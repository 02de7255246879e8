"""From a solution to what is committed, and to the reasons that are kept with it (P12).

Pure. A plan is made in parts, so that a loop may serve sockets between them; the drivers' ages are judged
once more as each part is made (P5). The names in a decision record are those that clients read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from geo.distance import distance_m
from geo.index import DriverIndex
from matcher.batch import Batch
from matcher.model import RideId, Slot, TripId
from matcher.outcomes import LostPairing, Pairing
from matcher.plain import Barred, order_of
from matcher.problem import UNMATCHED, Ints, Solution, on_grid

#: Rides a part: what is explained at a time, some milliseconds of work.
PART_RIDES = 64
#: Cheapest pairs of each ride that are looked at for explanations; those beside the chosen one are told.
NEAR = 4
#: Drivers left out for their age, and with road times those within a straight line's reach, are counted for so
#: many unmatched rides a batch: that takes microseconds to a few milliseconds each.
STALE_COUNTED_MAX = 200


class Reason(StrEnum):
    """Why a ride of a batch got no driver (P12)."""

    NO_DRIVER_IN_REACH = "no_driver_in_reach"  # no eligible, idle driver within the ride's limits
    ALL_REFUSED = "all_refused"  # there are, and each refused this ride before
    PRICE_ABOVE_LIMIT = "price_above_limit"  # there are, and each costs more than leaving the ride
    OUTBID = "outbid"  # there are, and others were worth more to them
    DRIVER_WENT_STALE = "driver_went_stale"  # the chosen driver fell silent while the batch was solved (P5)
    NO_WAY_WORTH_ITS_PRICE = "no_way_worth_its_price"  # by road times; a straight line may reach somebody
    NOT_LOOKED_AT = "not_looked_at"  # the solver failed, and the time was up before the greedy came to the ride
    LOST_AT_COMMIT = "lost_at_commit"  # the pairing dropped out when the plan was committed


@dataclass(frozen=True, slots=True)
class Decided:
    """A batch and its solution. `way` names who priced the ways; `estimated` are pairs for which straight
    lines stand in, and `because` why. `rounds` solves and `solve_s` seconds; 0 rounds: a plain greedy had to do.
    """

    batch: Batch
    solution: Solution
    solve_s: float = 0.0
    way: str = "straight line"
    estimated: frozenset[tuple[int, int]] = frozenset()
    because: str | None = None

    @property
    def rounds(self) -> int:
        return self.solution.numbers.get("rounds", 0)

    @property
    def pairs(self) -> int:
        """How many pairs were looked at; the solution may hold those alone that are told of."""
        return self.solution.numbers.get("pairs", len(self.solution.pairs))

    @property
    def scope(self) -> str:
        """Over which pairs the plan is proven to be the best."""
        if self.solution.certified:
            return "all pairs in reach"
        return "none: taken greedily" if self.rounds == 0 else f"the {self.pairs} pairs looked at"


@dataclass(frozen=True, slots=True)
class Unmatched:
    ride_id: RideId
    reason: Reason
    detail: Mapping[str, Any]


def lost_of(lost: LostPairing) -> Unmatched:
    """A ride whose pairing dropped out at the commit; `why` in its detail is one of the LOST_ constants."""
    return Unmatched(lost.pairing.ride_id, Reason.LOST_AT_COMMIT, {"why": lost.why})


@dataclass(slots=True)
class Plan:
    """What a batch decided, or a part of it."""

    batch_id: str
    pairings: list[Pairing] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)


def plan(
    decided: Decided, index: DriverIndex, now_ms: int, *, batch_id: str, new_trip_id: Callable[[], TripId]
) -> Plan:
    """The whole plan in one go. `now_ms` is the feed's clock."""
    whole = Plan(batch_id)
    for part in plan_parts(decided, index, lambda: now_ms, batch_id=batch_id, new_trip_id=new_trip_id):
        whole.pairings += part.pairings
        whole.unmatched += part.unmatched
    return whole


def plan_parts(
    decided: Decided,
    index: DriverIndex,
    now_ms: Callable[[], int],
    *,
    batch_id: str,
    new_trip_id: Callable[[], TripId],
) -> Iterator[Plan]:
    """A plan of some rides at a time, in the order of the rides' ids; `now_ms` reads the feed's clock."""
    maker = _Maker(decided, batch_id)
    rides = np.arange(len(decided.batch.demand.rides), dtype=np.int32)
    for start in range(0, len(rides), PART_RIDES):
        yield maker.part(rides[start : start + PART_RIDES], index, now_ms(), new_trip_id)


class _Maker:
    """Makes pairings of what is still fresh, each with its decision record."""

    def __init__(self, decided: Decided, batch_id: str) -> None:
        self._decided, self._batch_id = decided, batch_id
        self._explainer = Explainer(decided)
        self._facts = batch_facts(decided, batch_id)

    def part(self, rides: Ints, index: DriverIndex, now_ms: int, new_trip_id: Callable[[], TripId]) -> Plan:
        made, ids = Plan(self._batch_id), self._decided.batch.supply.driver_ids
        driver_of = self._decided.solution.driver_of[rides].tolist()
        chosen = [ids[driver] for driver in driver_of if driver != UNMATCHED]
        fresh = dict(zip(chosen, index.fresh(chosen, now_ms), strict=True))
        self._explainer.prepare(rides)
        for ride, driver in zip(rides.tolist(), driver_of, strict=True):
            if driver == UNMATCHED or not fresh[ids[driver]]:
                made.unmatched.append(self._explainer.unmatched(ride, went_stale=driver != UNMATCHED))
                continue
            chosen_for, alternatives = self._explainer.matched(ride)
            chosen_for["position_age_s"] = round((index.age_ms(ids[driver], now_ms) or 0) / 1000.0, 3)
            decision = {"batch": self._facts, "chosen": chosen_for, "alternatives": alternatives}
            made.pairings.append(self._pairing(ride, driver, decision, new_trip_id()))
        return made

    def _pairing(self, ride: int, driver: int, decision: Mapping[str, Any], trip_id: TripId) -> Pairing:
        batch, demand = self._decided.batch, self._decided.batch.demand
        remaining_s, is_chained = float(batch.remaining_s[driver]), bool(batch.is_chained[driver])
        return Pairing(
            trip_id=trip_id,
            ride_id=demand.rides[ride].ride_id,
            ride_version=demand.rides[ride].version,
            driver_id=self._decided.batch.supply.driver_ids[driver],
            slot=Slot.NEXT if is_chained else Slot.NOW,
            pickup_s=round(decision["chosen"]["terms"]["way"] + remaining_s, 3),
            distance_m=decision["chosen"]["distance_m"],
            abandon_after_ms=demand.market.abandon_after_ms,
            decision=decision,
            release_after_ms=round((remaining_s + demand.market.chain_late_s) * 1000.0) if is_chained else None,
        )


#: The terms of a cost, by the names that clients read, in the order of a row's last columns.
TERMS = ("way", "remaining_trip", "class_downgrade", "refusal_risk", "idle_bonus")


class _Row(NamedTuple):
    """A pair as it is told of. `reduced_s` is what the whole plan would cost more with it, at least."""

    ride: int
    driver: int
    cost_s: float
    away_m: float
    reduced_s: float
    way_s: float
    remaining_s: float
    extra_s: float
    refusal_s: float
    idle_s: float


class Explainer:
    """Says of each ride of a decided batch why this driver, or why none. Rides and drivers by their positions."""

    def __init__(self, decided: Decided) -> None:
        self._decided, self._batch, self._solution = decided, decided.batch, decided.solution
        pairs = decided.solution.pairs
        rides = len(self._batch.demand.rides)
        self._first = np.searchsorted(pairs.ride, np.arange(rides + 1)).tolist()
        self._pair_of = np.full(rides, -1, np.int64)
        taken = np.flatnonzero(pairs.driver == decided.solution.driver_of[pairs.ride])
        self._pair_of[pairs.ride[taken]] = taken
        self._rows: dict[int, _Row] = {}
        self._ride_of: dict[int, int] = {
            driver: ride for ride, driver in enumerate(decided.solution.driver_of.tolist()) if driver != UNMATCHED
        }
        self._barred = Barred(self._batch.problem)
        looked = decided.solution.numbers.get("looked", rides)
        self._not_looked_at = frozenset(order_of(self._batch.problem)[looked:].tolist() if looked < rides else ())
        self._counted = 0

    def prepare(self, rides: Ints) -> None:
        """Gathers what `matched` will say of these rides, column by column: far quicker than pair by pair."""
        batch, pairs, problem = self._batch, self._solution.pairs, self._batch.problem
        wanted: list[npt.NDArray[np.integer[Any]]] = [self._pair_of[rides]]
        if self._solution.cheapest is not None:
            wanted.append(self._solution.cheapest[rides].ravel())
        pair = np.concatenate(wanted)
        pair = pair[pair >= 0]
        ride, driver = pairs.ride[pair], pairs.driver[pair]
        away_m = distance_m(
            problem.ride_lat[ride], problem.ride_lon[ride], problem.driver_lat[driver], problem.driver_lon[driver]
        )
        columns = (
            ride,
            driver,
            pairs.cost_s[pair],
            np.round(away_m, 1),
            pairs.cost_s[pair] - self._solution.u[ride] - self._solution.v[driver],
            pairs.way_s[pair],
            batch.remaining_s[driver],
            problem.extra_s[problem.ride_kind[ride], problem.driver_kind[driver]],
            batch.refusal_s[driver],
            -batch.idle_s[driver],
        )
        rows = zip(*(column.tolist() for column in columns), strict=True)
        self._rows = dict(zip(pair.tolist(), (_Row(*row) for row in rows), strict=True))

    # Who got a driver

    def matched(self, ride: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What the ride's pair costs, by term, and the cheapest others beside it, each with why it lost."""
        pair = int(self._pair_of[ride])
        if pair not in self._rows:
            self.prepare(np.array([ride], np.int32))
        chosen = self._described(self._rows[pair])
        chosen["unmatched_s"] = round(float(self._batch.demand.price_s[ride]), 3)
        return chosen, self._alternatives(ride, pair)

    def _described(self, row: _Row) -> dict[str, Any]:
        """What a pair costs, by term; terms that are no part of this market's policy are left out."""
        terms = zip(TERMS, row[-len(TERMS) :], strict=True)
        described: dict[str, Any] = {
            "driver_id": self._batch.supply.driver_ids[row.driver],
            "cost_s": round(row.cost_s, 3),
            "terms": {name: round(value, 3) for name, value in terms if value or name == "way"},
            "distance_m": row.away_m,
            "way": self._decided.way,
        }
        if (row.ride, row.driver) in self._decided.estimated:
            described |= {"way": "straight line", "estimated": True, "estimated_because": self._decided.because}
        return described

    def _alternatives(self, ride: int, chosen: int) -> list[dict[str, Any]]:
        cheapest, city = self._solution.cheapest, self._solution.city_more_s
        if cheapest is None or city is None:
            return []
        city_s = city[ride].tolist()
        places = [(column, place) for column, place in enumerate(cheapest[ride].tolist()) if place not in (-1, chosen)]
        return [
            self._compared(self._rows[place], self._rows[chosen], city_s[column])
            for column, place in places[: NEAR - 1]
        ]

    def _compared(self, row: _Row, chosen: _Row, city_more_s: float) -> dict[str, Any]:
        """Why this pair lost: dearer for the ride itself, or cheaper for it and dearer for the others."""
        more_s, at_least = row.cost_s - chosen.cost_s, math.isnan(city_more_s)
        whole_s = row.reduced_s if at_least else city_more_s
        compared = self._described(row) | {
            "more_s": round(more_s, 3),
            "why": why_not(more_s, whole_s, at_least=at_least),
        }
        if more_s < 0.0:
            compared |= {"others_more_s": round(whole_s - more_s, 3), "at_least": at_least}
        rival = self._ride_of.get(row.driver)
        if rival is not None:
            compared["rival_ride_id"] = self._batch.demand.rides[rival].ride_id
        return compared

    # Who got none

    def unmatched(self, ride: int, *, went_stale: bool = False) -> Unmatched:
        batch, pairs = self._batch, self._solution.pairs
        one, (limit_m, limit_s) = batch.demand.rides[ride], self._limits(ride)
        places = slice(self._first[ride], self._first[ride + 1])
        costs, price_s = pairs.cost_s[places], float(batch.demand.price_s[ride])
        refused = self._refusing(ride) if one.ride_id in batch.demand.refused else 0
        detail: dict[str, Any] = {
            "candidates_told": min(len(costs), NEAR),  # of those allowed, the cheapest; how many more is not known
            "refused": refused,
            "price_of_leaving_s": round(price_s, 3),
            "pickup_limit_s": round(limit_s, 3),  # of this ride: a market may let it grow with the wait
            "idle_drivers": len(batch.supply.driver_ids),
        }
        if len(costs):
            detail["cheapest_s"] = round(float(costs.min()), 3)
        if ride in self._not_looked_at:
            return Unmatched(one.ride_id, Reason.NOT_LOOKED_AT, detail)
        reason = reason_of(costs.tolist(), price_s, refused, went_stale=went_stale)
        if not len(costs):
            is_counted, self._counted = self._counted < STALE_COUNTED_MAX, self._counted + 1
            if is_counted:
                detail["stale_drivers_skipped"] = batch.supply.stale_within(
                    one.pickup.lat, one.pickup.lon, min(limit_m, limit_s / batch.problem.s_per_m)
                )
            if batch.problem.has_ways and not (is_counted and self._is_out_of_reach(ride)):
                reason = Reason.NO_WAY_WORTH_ITS_PRICE  # pairs that were never priced by road may be among them
        return Unmatched(one.ride_id, reason, detail)

    def _limits(self, ride: int) -> tuple[float, float]:
        """How far as the crow flies, in metres, and how long, in seconds, a driver may come to this ride."""
        problem, kind = self._batch.problem, self._batch.problem.ride_kind[ride]
        return float(problem.reach_m[kind]), float(problem.reach_s[kind])

    def _is_out_of_reach(self, ride: int) -> bool:
        """Whether nobody who may serve the ride, those who refused it left out, is near even by a straight line."""
        everybody = np.arange(self._batch.problem.n_drivers, dtype=np.int32)
        return self._might_serve(ride, everybody) == self._might_serve(ride, self._barred(ride))

    def _refusing(self, ride: int) -> int:
        """How many drivers refused the ride that are within its reach and might serve it otherwise."""
        return self._might_serve(ride, self._barred(ride))

    def _might_serve(self, ride: int, driver: Ints) -> int:
        """How many of these drivers are within the ride's reach by a straight line, with a vehicle that will do."""
        problem, (limit_m, limit_s) = self._batch.problem, self._limits(ride)
        away_m = distance_m(
            problem.ride_lat[ride], problem.ride_lon[ride], problem.driver_lat[driver], problem.driver_lon[driver]
        )
        might = (away_m <= limit_m) & (on_grid(away_m * problem.s_per_m) <= limit_s)
        might &= np.isfinite(problem.extra_s[problem.ride_kind[ride], problem.driver_kind[driver]])
        return int(np.count_nonzero(might))


def why_not(more_s: float, city_more_s: float, *, at_least: bool) -> str:
    """Why a pair was not chosen that costs its ride so much more than the chosen one, and the whole plan so much.

    `at_least`: the latter is a lower bound, of which 0 leaves open whether the plan would cost the same or more.
    """
    if more_s >= 0.0:
        return "dearer_for_this_ride" if more_s > 0.0 else "equal"
    if city_more_s > 0.0:
        return "dearer_for_the_city"
    return "no_cheaper_for_the_city" if at_least else "equal_for_the_city"


def reason_of(costs: Sequence[float], price_s: float, refused: int = 0, *, went_stale: bool = False) -> Reason:
    """Why a ride that these pairs were open to was left at its price."""
    if went_stale:
        return Reason.DRIVER_WENT_STALE
    if costs:
        return Reason.OUTBID if min(costs) < price_s else Reason.PRICE_ABOVE_LIMIT
    return Reason.ALL_REFUSED if refused else Reason.NO_DRIVER_IN_REACH


def batch_facts(decided: Decided, batch_id: str) -> dict[str, Any]:
    """What a decision record says of the whole batch; it names no ride."""
    solution = decided.solution
    greedy_s = solution.cost_s if solution.greedy_s is None else solution.greedy_s
    return {
        "id": batch_id,
        "rides": len(decided.batch.demand.rides),
        "drivers": len(decided.batch.supply.driver_ids),
        "cost_s": round(solution.cost_s, 3),
        "greedy_cost_s": round(greedy_s, 3),
        "gain_s": round(greedy_s - solution.cost_s, 3),
        "gap_s": round(solution.gap_s, 3),
        "certified": solution.certified,
        "scope": decided.scope,
    }
