"""What goes over the wire about decisions: why this driver, why not yet, and what the batch came to (P12).

Records are kept as mappings that the matcher wrote, and rides outlive the
version that matched them: what a record does not say is null here, and a record
in an older form is read for what it does say. Only the fields named below go
out, so that no other ride or client is ever named to a client (P11); an admin
sees which ride a driver was left to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from api.schema import rfc3339
from matcher.model import Trip
from matcher.outcomes import BatchRecord, MarketState, RideWait

#: A ride that no batch has decided over since it began to search.
NOT_YET_DECIDED = "not_yet_decided"
#: A ride for later that is not searched for yet.
SCHEDULED = "scheduled"
MARKET_PAUSED = "market_paused"
STRAIGHT_LINE = "straight line"

#: A sentence for a person for each reason for which a batch leaves a ride without a driver.
TEXTS: Mapping[str, str] = {
    "no_driver_in_reach": "No idle driver with the right vehicle was within reach of the pickup.",
    "all_refused": "Every driver within reach has refused this ride before.",
    "price_above_limit": "Drivers were within reach, but each would have cost more than leaving the ride waiting.",
    "outbid": "Drivers were within reach, and each was worth more to another ride of the same batch.",
    "driver_went_stale": "A driver was chosen, whose position became too old before the match could be committed.",
    "no_way_worth_its_price": "No driver was found whose way by road is within the limits and worth its price.",
    "not_looked_at": "The time to decide was up before the ride's turn came.",
    "lost_at_commit": "Its driver was taken or left while the plan was committed; it is in the next batch.",
}
OTHER_TEXT = "The last batch left the ride without a driver."


class BatchRefOut(Struct, frozen=True):
    """The batch that decided; costs in seconds, `gain_s` what it saved against greedy."""

    id: str
    rides: int | None
    drivers: int | None
    cost_s: float | None
    greedy_cost_s: float | None
    gain_s: float | None
    gap_s: float | None
    certified: bool | None
    scope: str | None


class TurnOut(Struct, frozen=True):
    """The driver's turn in the queue of a zone: its `place`, counted from 1, among `length` who waited."""

    zone: str
    place: int | None
    length: int | None


class ByHandOut(Struct, frozen=True):
    """No batch decided, but this operator, and why."""

    by: str | None
    reason: str | None


class ChosenOut(Struct, frozen=True):
    """The driver and what the pairing cost: `terms` are seconds and add up to `cost_s`.

    `way` names what priced the way; `estimated`: a straight line had to stand in for it, and why. `queue` is
    there where no cost decided, but the driver's turn at the place where the ride begins.
    """

    driver_id: str
    trip_id: str
    cost_s: float | None
    terms: dict[str, float]
    way: str | None
    estimated: bool | None
    estimated_because: str | None
    distance_m: float | None  # null, as all of these, of a driver who was assigned by hand
    position_age_s: float | None
    unmatched_s: float | None
    queue: TurnOut | UnsetType = UNSET


class AlternativeOut(Struct, frozen=True):
    """Another driver that could have served the ride, and why it did not.

    `more_s` is what the ride would have cost more with it, `others_more_s` what the other rides would have; `at_least`:
    that is a lower bound. `way` names what priced the way; `estimated`: a straight line had to stand in for it.
    """

    driver_id: str
    cost_s: float | None
    terms: dict[str, float]
    distance_m: float | None
    why: str | None
    more_s: float | None
    others_more_s: float | None
    at_least: bool | None
    way: str | None
    estimated: bool | None
    rival_ride_id: str | UnsetType | None = UNSET  # for admins alone


class WaitingOut(Struct, frozen=True):
    """Why the ride has no driver: since when it searches, and when and by which batch it was left so.

    Of a ride for later, `since` is when the search begins.
    """

    reason: str
    text: str
    since: str
    at: str | None
    batch_id: str | None
    window_s: float | None
    counts: dict[str, float]


class EarlierTripOut(Struct, frozen=True):
    """A trip of the ride that ended without serving it."""

    id: str
    driver_id: str
    state: str
    end_reason: str | None
    matched_at: str
    ended_at: str | None


class ExplanationOut(Struct, frozen=True):
    ride_id: str
    state: str
    market: str
    batch: BatchRefOut | None
    by_hand: ByHandOut | None
    chosen: ChosenOut | None
    alternatives: list[AlternativeOut]
    waiting: WaitingOut | None
    trips: list[EarlierTripOut]


class BatchOut(Struct, frozen=True):
    """One decision in numbers; `unmatched` and `lost` count rides and pairings by reason, `estimated` pairs for
    which a straight line stood in for the `way`."""

    id: str
    market: str
    decided_at: str
    rides: int | None
    drivers: int | None
    matched: int | None
    pairs: int | None
    rounds: int | None
    components: int | None
    solve_s: float | None
    batch_s: float | None
    cost_s: float | None
    greedy_cost_s: float | None
    gain_s: float | None
    gap_s: float | None
    certified: bool | None
    scope: str | None
    way: str | None
    estimated: int | None
    unmatched: dict[str, int]
    lost: dict[str, int]
    has_input: bool


class BatchPage(Struct, frozen=True):
    items: list[BatchOut]
    next: str | None


def batch_out(record: BatchRecord) -> BatchOut:
    summary = record.summary
    return BatchOut(
        id=record.batch_id,
        market=record.market,
        decided_at=rfc3339(record.decided_at_ms),
        rides=_count(summary, "rides"),
        drivers=_count(summary, "drivers"),
        matched=_count(summary, "matched"),
        pairs=_count(summary, "pairs"),
        rounds=_count(summary, "rounds"),
        components=_count(summary, "components"),
        solve_s=_number(summary, "solve_s"),
        batch_s=_number(summary, "batch_s"),
        cost_s=_number(summary, "cost_s"),
        greedy_cost_s=_number(summary, "greedy_cost_s"),
        gain_s=_number(summary, "gain_s"),
        gap_s=_number(summary, "gap_s"),
        certified=_flag(summary, "certified"),
        scope=_text(summary, "scope"),
        way=_text(summary, "way"),
        estimated=_count(summary, "estimated"),
        unmatched=_counts(summary, "unmatched"),
        lost=_counts(summary, "lost"),
        has_input=record.input_bytes is not None,
    )


def batch_ref_of_record(record: BatchRecord) -> BatchRefOut:
    return _batch_ref(record.batch_id, record.summary)


def batch_ref_of_trip(trip: Trip) -> BatchRefOut | None:
    """The batch that the trip's decision names."""
    stored = trip.decision.get("batch")
    if isinstance(stored, Mapping):
        batch_id = _text(stored, "id")
        return None if batch_id is None else _batch_ref(batch_id, stored)
    batch_id = _text(trip.decision, "batch_id")
    return None if batch_id is None else _batch_ref(batch_id, _first_form(trip.decision))


def _batch_ref(batch_id: str, numbers: Mapping[str, Any]) -> BatchRefOut:
    return BatchRefOut(
        id=batch_id,
        rides=_count(numbers, "rides"),
        drivers=_count(numbers, "drivers"),
        cost_s=_number(numbers, "cost_s"),
        greedy_cost_s=_number(numbers, "greedy_cost_s"),
        gain_s=_number(numbers, "gain_s"),
        gap_s=_number(numbers, "gap_s"),
        certified=_flag(numbers, "certified"),
        scope=_text(numbers, "scope"),
    )


def _first_form(decision: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch's numbers as the first version wrote them: beside the pairing's own."""
    cost_s, greedy_cost_s = _number(decision, "batch_cost_s"), _number(decision, "greedy_cost_s")
    gain_s = None if cost_s is None or greedy_cost_s is None else round(greedy_cost_s - cost_s, 3)
    return {**decision, "cost_s": cost_s, "gain_s": gain_s}


def by_hand_out(trip: Trip) -> ByHandOut | None:
    """Who assigned the driver by hand, where somebody did."""
    if not _is_by_hand(trip):
        return None
    stored = _mapping(trip.decision, "by_hand")
    return ByHandOut(_text(stored, "by"), _text(stored, "reason"))


def _is_by_hand(trip: Trip) -> bool:
    return isinstance(trip.decision.get("by_hand"), Mapping)


def chosen_out(trip: Trip) -> ChosenOut:
    stored = trip.decision.get("chosen")
    chosen = stored if isinstance(stored, Mapping) else _chosen_in_first_form(trip.decision)
    distance_m, way = _number(chosen, "distance_m"), _text(chosen, "way")
    if distance_m is None and not _is_by_hand(trip):
        distance_m = round(trip.distance_m, 1)
    return ChosenOut(
        driver_id=trip.driver_id,
        trip_id=trip.trip_id,
        cost_s=_number(chosen, "cost_s"),
        terms=_numbers(chosen, "terms"),
        way=way,
        # A record says so only where it was: one that names its way and nothing else has no estimate.
        estimated=None if way is None else bool(_flag(chosen, "estimated")),
        estimated_because=_text(chosen, "estimated_because"),
        distance_m=distance_m,
        position_age_s=_number(chosen, "position_age_s"),
        unmatched_s=_number(chosen, "unmatched_s"),
        queue=_turn(_mapping(chosen, "queue")),
    )


def _turn(stored: Mapping[str, Any]) -> TurnOut | UnsetType:
    zone = _text(stored, "zone")
    return UNSET if zone is None else TurnOut(zone, _count(stored, "place"), _count(stored, "length"))


def _chosen_in_first_form(decision: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first version knew one term, the way, and only straight lines to price it."""
    way_s = _number(_mapping(decision, "cost"), "pickup_s")
    if way_s is None:
        return decision
    return {**decision, "cost_s": way_s, "terms": {"way": way_s}, "way": STRAIGHT_LINE}


def alternatives_out(trip: Trip, *, names_rivals: bool) -> list[AlternativeOut]:
    """The drivers that the trip's decision weighed; `names_rivals` is for an admin's eyes."""
    stored = trip.decision.get("alternatives")
    found = stored if isinstance(stored, list) else []
    return [
        _alternative(driver_id, each, names_rivals)
        for each in found
        if isinstance(each, Mapping) and (driver_id := _text(each, "driver_id"))
    ]


def _alternative(driver_id: str, stored: Mapping[str, Any], names_rivals: bool) -> AlternativeOut:
    way = _text(stored, "way")
    return AlternativeOut(
        driver_id=driver_id,
        cost_s=_number(stored, "cost_s"),
        terms=_numbers(stored, "terms"),
        distance_m=_number(stored, "distance_m"),
        why=_text(stored, "why"),
        more_s=_number(stored, "more_s"),
        others_more_s=_number(stored, "others_more_s"),
        at_least=_flag(stored, "at_least"),
        way=way,
        estimated=None if way is None else bool(_flag(stored, "estimated")),
        rival_ride_id=_text(stored, "rival_ride_id") if names_rivals else UNSET,
    )


def waiting_out(wait: RideWait, since_ms: int) -> WaitingOut:
    """Of the detail only its numbers go out: they name nobody."""
    return WaitingOut(
        reason=wait.reason,
        text=TEXTS.get(wait.reason, OTHER_TEXT),
        since=rfc3339(since_ms),
        at=rfc3339(wait.at_ms),
        batch_id=wait.batch_id,
        window_s=None,
        counts=_finite(wait.detail),
    )


def scheduled_out(search_at_ms: int) -> WaitingOut:
    """The ride is for later, and a driver is searched for from then on."""
    at = rfc3339(search_at_ms)
    text = f"The ride is for later; a driver is searched for from {at} on."
    return WaitingOut(SCHEDULED, text, at, None, None, None, {})


def paused_out(state: MarketState, since_ms: int) -> WaitingOut:
    """Nobody is matched for now, whatever batches said before."""
    because = "" if state.reason is None else f": {state.reason}"
    text = f"An operator has paused the market{because}. The ride keeps its place."
    return WaitingOut(MARKET_PAUSED, text, rfc3339(since_ms), rfc3339(state.changed_at_ms), None, None, {})


def undecided_out(since_ms: int, *, window_s: float | None, ended: bool) -> WaitingOut:
    """No batch has looked at the ride yet, or none did before it ended; `window_s` is the market's, 0 on arrival."""
    if ended:
        text = "The ride ended before a batch decided over it."
    elif window_s is None:
        text = "No batch has decided over the ride yet."
    elif window_s > 0:
        text = f"No batch has decided over the ride yet; one is due every {window_s:g} s at the latest."
    else:
        text = "No batch has decided over the ride yet; this market decides on arrival."
    return WaitingOut(NOT_YET_DECIDED, text, rfc3339(since_ms), None, None, None if ended else window_s, {})


def earlier_trip_out(trip: Trip) -> EarlierTripOut:
    return EarlierTripOut(
        id=trip.trip_id,
        driver_id=trip.driver_id,
        state=trip.state.value,
        end_reason=trip.end_reason,
        matched_at=rfc3339(trip.matched_at_ms),
        ended_at=None if trip.ended_at_ms is None else rfc3339(trip.ended_at_ms),
    )


# What a stored mapping says under a name; None or nothing where it says something of another kind.


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(stored: Mapping[str, Any], name: str) -> float | None:
    value = stored.get(name)
    return value if _is_number(value) else None


def _count(stored: Mapping[str, Any], name: str) -> int | None:
    value = stored.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(stored: Mapping[str, Any], name: str) -> bool | None:
    value = stored.get(name)
    return value if isinstance(value, bool) else None


def _text(stored: Mapping[str, Any], name: str) -> str | None:
    value = stored.get(name)
    return value if isinstance(value, str) else None


def _mapping(stored: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = stored.get(name)
    return value if isinstance(value, Mapping) else {}


def _finite(stored: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in stored.items() if _is_number(value)}


def _numbers(stored: Mapping[str, Any], name: str) -> dict[str, float]:
    return _finite(_mapping(stored, name))


def _counts(stored: Mapping[str, Any], name: str) -> dict[str, int]:
    counted = _mapping(stored, name)
    return {reason: count for reason in counted if (count := _count(counted, reason)) is not None}
