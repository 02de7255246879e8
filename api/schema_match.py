"""What goes over the wire of `POST /v1/match`: a batch of rides and drivers in, the plan out.

A request has one of two forms: points, which a market's policy prices, or a matrix of costs in whatever
unit. Its items stay raw here, for each is decoded by itself: one that is wrong is told of and left out, and
the others are solved. What comes out in the first form is in seconds; in the second the same names stand
without their unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from api.schema import ITEMS_MAX, Point, Seats, VehicleClass, WireId
from api.schema_explanations import AlternativeOut
from matcher.graph import COST_MAX
from matcher.plan import Reason
from matcher.policy import SECONDS_MAX

Seconds = Annotated[float, Meta(ge=0.0, le=SECONDS_MAX)]
LimitSeconds = Annotated[float, Meta(gt=0.0, le=SECONDS_MAX)]
LimitMetres = Annotated[float, Meta(gt=0.0, le=COST_MAX)]
#: What leaving a ride may cost, in the matrix' unit.
Price = Annotated[float, Meta(ge=0.0, le=COST_MAX)]

# Requests


class MatchLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """In place of the market's own."""

    max_pickup_s: LimitSeconds | None = None
    max_pickup_m: LimitMetres | None = None


class MatchRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Either form; which fields go together is checked where it is read."""

    market: str | None = None
    rides: list[Raw] | UnsetType = UNSET
    drivers: list[Raw] | UnsetType = UNSET
    limits: MatchLimits | None = None
    costs: list[Raw] | UnsetType = UNSET
    unmatched: Raw | UnsetType = UNSET
    ride_ids: list[Any] | UnsetType = UNSET
    driver_ids: list[Any] | UnsetType = UNSET

    @property
    def is_matrix(self) -> bool:
        return self.costs is not UNSET


class MatchRide(Struct, frozen=True, forbid_unknown_fields=True):
    """`price_s` is that of leaving it, unset: the market's for its wait; `refused` are drivers it is not to get."""

    id: WireId
    pickup: Point
    vehicle_class: VehicleClass = field(default="standard", name="class")
    seats: Seats = 1
    tags: Annotated[list[str], Meta(max_length=16)] = field(default_factory=list)
    waited_s: Seconds = 0.0
    price_s: Seconds | None = None
    refused: Annotated[list[WireId], Meta(max_length=ITEMS_MAX)] = field(default_factory=list)


class MatchDriver(Struct, frozen=True, forbid_unknown_fields=True):
    """`seats` unset: enough for any ride of the market; `remaining_s` until it is free, where `at` is then."""

    id: WireId
    at: Point
    vehicle_class: VehicleClass = field(default="standard", name="class")
    seats: Seats | None = None
    tags: Annotated[list[str], Meta(max_length=32)] = field(default_factory=list)
    idle_s: Seconds = 0.0
    remaining_s: Seconds = 0.0


# Answers


class ItemErrorOut(Struct, frozen=True):
    """An item that was left out: where in the request, and why. `code` is one of the problems' codes."""

    pointer: str
    code: str
    detail: str


class LeftOut(Struct, frozen=True):
    """A ride that got nobody: a stable reason, a sentence, and the counts behind it."""

    ride_id: str
    reason: str
    text: str
    counts: dict[str, float]


class DualsOut(Struct, frozen=True):
    """The certificate of a plan that is certified, by id: `rides` (u), `drivers` (v, at most 0).

    Of every allowed pair u + v is at most its cost, u at most the price of leaving the ride, and their sum is the
    plan's cost, so that no other plan can cost less. A plan that is not certified has none: `duals` is null, and
    its `scope` says how the plan was found.
    """

    rides: dict[str, float]
    drivers: dict[str, float]


class PolicyOut(Struct, frozen=True):
    """What the ways were priced and limited by."""

    s_per_m: float
    max_pickup_s: float
    max_pickup_m: float


class PairOut(Struct, frozen=True):
    """Seconds by term, which add up to `cost_s`; `unmatched_s` is what leaving the ride would have cost."""

    ride_id: str
    driver_id: str
    cost_s: float
    terms: dict[str, float]
    distance_m: float
    unmatched_s: float
    alternatives: list[AlternativeOut]


class PlanNumbersOut(Struct, frozen=True):
    """`gap_s` bounds by how much any plan over the pairs in `scope` could undercut this one; 0: `certified`."""

    rides: int
    drivers: int
    matched: int
    cost_s: float
    greedy_cost_s: float
    gain_s: float
    gap_s: float
    certified: bool
    scope: str
    pairs: int
    components: int
    rounds: int
    solve_s: float


class MatchOut(Struct, frozen=True):
    market: str
    way: str
    policy: PolicyOut
    plan: list[PairOut]
    unmatched: list[LeftOut]
    errors: list[ItemErrorOut]
    batch: PlanNumbersOut
    duals: DualsOut | UnsetType | None = UNSET  # null: not certified


class MatrixAlternativeOut(Struct, frozen=True):
    """`others_more` is what the other rides would pay more, `at_least`: by the duals, and maybe more than that."""

    driver_id: str
    cost: float
    why: str
    more: float
    others_more: float | None
    at_least: bool | None
    rival_ride_id: str | None


class MatrixPairOut(Struct, frozen=True):
    ride_id: str
    driver_id: str
    cost: float
    unmatched: float
    alternatives: list[MatrixAlternativeOut]


class MatrixNumbersOut(Struct, frozen=True):
    rides: int
    drivers: int
    matched: int
    cost: float
    greedy_cost: float
    gain: float
    gap: float
    certified: bool
    scope: str
    pairs: int
    components: int
    rounds: int
    solve_s: float


class MatrixOut(Struct, frozen=True):
    plan: list[MatrixPairOut]
    unmatched: list[LeftOut]
    errors: list[ItemErrorOut]
    batch: MatrixNumbersOut
    duals: DualsOut | UnsetType | None = UNSET  # null: not certified


#: A sentence for a person for each reason for which a matrix leaves a ride without a driver.
MATRIX_TEXTS: Mapping[str, str] = {
    Reason.NO_DRIVER_IN_REACH: "No driver is allowed for the ride.",
    Reason.PRICE_ABOVE_LIMIT: "Drivers are allowed, but each would cost no less than leaving the ride.",
    Reason.OUTBID: "Drivers are allowed, and each was worth more to another ride.",
    Reason.NOT_LOOKED_AT: "The time to decide was up before the ride's turn came.",
}


def alternative_out(compared: Mapping[str, Any]) -> AlternativeOut:
    """A pair that a ride did not get, as matcher.plan tells of it; all rides are the asker's own."""
    return AlternativeOut(
        driver_id=compared["driver_id"],
        cost_s=compared["cost_s"],
        terms=compared["terms"],
        distance_m=compared["distance_m"],
        why=compared["why"],
        more_s=compared["more_s"],
        others_more_s=compared.get("others_more_s"),
        at_least=compared.get("at_least"),
        way=compared["way"],
        estimated="estimated" in compared,
        rival_ride_id=compared.get("rival_ride_id"),
    )
