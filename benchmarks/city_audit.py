"""Was anything lost or doubled in a measured city? Its clients' account, made into the ledger that the audit knows.

The audit (benchmarks.audit) judges the database by itself and against that ledger: every acknowledged ride stands,
no driver had two trips at a time by the database's own times, what was confirmed is there, events have no gaps.
Beside it: every trip of the database was told to its driver, and every ride that was followed was heard to its end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from api.schema import EventOut
from benchmarks.audit import Findings, audit
from benchmarks.audit_rows import Records, TripRow, read_records
from benchmarks.city_driver import BIT
from benchmarks.city_ledger import Asked, Seen, Told
from benchmarks.city_options import CLIENT
from benchmarks.city_tally import LATENCY_S_MAX, Latency
from benchmarks.ledger import Followed, Ledger, Request, SeenTrip
from matcher.model import TripState

#: A trip so young when the drivers signed off may not have been told yet.
TOLD_MS_MAX = 3000
_event_of = msgspec.json.Decoder(EventOut).decode


@dataclass(frozen=True, slots=True)
class Closed:
    """The books, closed. `match_s` is by stretch: from when a request was due to its first match's commit.

    A ride that was never matched counts with the longest latency that is told apart.
    """

    lost: int
    doubled: int
    findings: Findings
    states: Counter[str]
    expired_offers: int
    match_s: dict[int, Latency]

    def as_json(self) -> dict[str, Any]:
        return {
            "faults": dict(self.findings.faults),
            "examples": self.findings.examples,
            "notes": dict(self.findings.notes),
            "rides_by_state": dict(self.states),
            "expired_offers": self.expired_offers,
        }


def close_books(database_url: str, seen: Seen) -> Closed:
    """Raises sqlalchemy.exc.SQLAlchemyError when the database cannot be read."""
    records = read_records(database_url, [CLIENT])
    findings = audit(records, ledger_of(seen))
    check_told(records, seen, findings)
    check_followed(records, seen, findings)
    doubled = findings.double_assignments
    return Closed(
        lost=findings.faults.total() - doubled,
        doubled=doubled,
        findings=findings,
        states=Counter(ride.state for ride in records.rides.values()),
        expired_offers=sum(trip.state == TripState.TIMED_OUT for trip in records.trips),
        match_s=_match_s(records, seen),
    )


def ledger_of(seen: Seen) -> Ledger:
    """The account as the audit wants it; its times are not looked at."""
    ledger = Ledger()
    for asked in seen.asked:
        ledger.requests[asked.key] = _request(asked)
    for told in seen.told:
        ledger.trips[told.trip_id] = _trip(told)
        if told.confirmed & BIT["complete"]:
            ledger.completions.setdefault(told.ride_id, set()).add(told.trip_id)
    for ride_id, (events, ended) in seen.followed.items():
        ledger.followed[ride_id] = Followed([_event_of(each) for each in events], ended)
    return ledger


def _request(asked: Asked) -> Request:
    unknown = None if asked.ride_id or asked.refusal else "no answer"
    at_s = asked.due_ms / 1000.0
    return Request(asked.key, CLIENT, at_s, at_s, asked.ride_id, asked.refusal or None, unknown)


def _trip(told: Told) -> SeenTrip:
    at_s = told.told_ms / 1000.0
    is_accepted = not told.is_offer or bool(told.confirmed & BIT["accept"])
    return SeenTrip(
        told.trip_id,
        told.ride_id,
        told.driver_id,
        offered_at_s=at_s if told.is_offer else None,
        told_at_s=at_s if is_accepted else None,
        confirmed_at_s={verb: at_s for verb, bit in BIT.items() if told.confirmed & bit and verb != "start"},
        was_offer=told.is_offer,
        was_accepted=is_accepted,
    )


def check_told(records: Records, seen: Seen, findings: Findings) -> None:
    """Every trip was told to the driver that has it, unless it was too young for that; every start stands."""
    told = {each.trip_id: each for each in seen.told}
    for trip in records.trips_of_run():
        known = told.get(trip.trip_id)
        if known is None:
            _untold(trip, records.now_ms, findings)
        elif known.confirmed & BIT["start"] and trip.started_at_ms is None:
            findings.fault("start lost", f"{trip.trip_id} is {trip.state}")


def _untold(trip: TripRow, now_ms: int, findings: Findings) -> None:
    until_ms = now_ms if trip.ended_at_ms is None else trip.ended_at_ms
    if until_ms - trip.matched_at_ms > TOLD_MS_MAX:
        findings.fault("trip its driver was not told of", f"{trip.trip_id} of {trip.driver_id} is {trip.state}")
    else:
        findings.notes["trips too young to be told"] += 1


def check_followed(records: Records, seen: Seen, findings: Findings) -> None:
    """Who followed a ride that is over has heard of all its events."""
    for ride_id, (events, ended) in seen.followed.items():
        ride = records.rides.get(ride_id)
        if ride is not None and ended and len(events) != ride.version:
            findings.fault("events unheard", f"ride {ride_id}: {len(events)} of {ride.version}")
        findings.notes["rides followed"] += 1
        findings.notes["rides followed to their end"] += ended


def _match_s(records: Records, seen: Seen) -> dict[int, Latency]:
    """Both times are of this machine's clock."""
    first_ms: dict[str, int] = {}
    for trip in records.trips:
        first_ms[trip.ride_id] = min(trip.matched_at_ms, first_ms.get(trip.ride_id, trip.matched_at_ms))
    found: dict[int, Latency] = {}
    for asked in seen.asked:
        matched_ms = first_ms.get(asked.ride_id or "")
        after_s = LATENCY_S_MAX if matched_ms is None else (matched_ms - asked.due_ms) / 1000.0
        found.setdefault(asked.step, Latency()).add(after_s)
    return found
