"""What a run came to: one JSON object from the clients' ledger and the database, and the same for a person.

How each figure is counted:
- positions_sent: frames written by drivers; positions_applied: those of which an
  `ack` said, on the socket that carried them, that they or a newer one of the
  same driver stand in the feed. Both from the drivers' own books.
- rides_acknowledged: requests answered 201; rides_matched: rides for which any
  client heard of a driver who has them, or found one in the ride's history at
  the end; rides_completed: rides that stood completed when read at the end.
- trips_in_database: rows of trips of this run's rides, offers included;
  trips_in_ledger: trips that drivers or riders heard of.
- request_to_match: from a rider's first sending of the request until the first
  client (the driver's socket or the rider's event stream) heard of the match;
  both are in this process and on its monotonic clock. request_to_offer: the
  same until the first driver was shown the ride as an offer.
- offers: trips that began as one, as anybody heard, and what became of each:
  accepted; declined; ran_out, with nobody's answer; withdrawn, by rider,
  operator or service, or because the driver's connection was lost; open_offers
  stand still.
- offer_to_accept: from when the driver's socket showed the offer until the
  driver knew that its acceptance was taken, its own time to think included.
- lost_connections: how often drivers lost their network on purpose;
  paused_drivers: how many were set on a break for missed offers.
- double_assignments: drivers or rides with two live trips, trips of one driver
  that overlap in time, and the same as the clients saw it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.audit import Findings, audit, audit_without_database
from benchmarks.audit_rows import read_records
from benchmarks.ledger import Ledger, percentile
from benchmarks.play import Play
from matcher.model import RideState


class AuditFailed(Exception):
    """The database could not be read; the text says why."""


def close_books(play: Play, database_url: str | None) -> tuple[dict[str, Any], Findings]:
    """The run's figures, audited against the database where its URL is known; blocks.

    Raises AuditFailed.
    """
    ledger = play.ledger
    if database_url is None:
        findings, trips = audit_without_database(ledger), None
    else:
        try:
            records = read_records(database_url, ledger.client_ids)
        except (SQLAlchemyError, sa.exc.ArgumentError) as error:
            raise AuditFailed(f"the audit cannot read the database: {error}") from error
        findings, trips = audit(records, ledger), len(records.trips_of_run())
    figures = _figures(play) | {
        "trips_in_database": trips,
        "trips_in_ledger": len(ledger.trips),
        "double_assignments": findings.double_assignments,
        "audit": {
            "source": "clients and API only" if database_url is None else "clients and database",
            "holds": findings.holds,
            "faults": dict(findings.faults),
            "examples": findings.examples,
            "notes": {name: count for name, count in findings.notes.items() if count},
        },
    }
    return figures, findings


def _figures(play: Play) -> dict[str, Any]:
    ledger = play.ledger
    requests = ledger.requests.values()
    states = ledger.state_counts()
    matched_s, answered_s = ledger.request_to_match_s(), ledger.request_to_answer_s()
    return {
        "run": play.run_id,
        "speed": play.options.speed,
        "drivers": len(play.fleet.drivers),
        "positions_sent": ledger.positions_sent,
        "positions_applied": ledger.positions_acked,
        "rides_requested": len(ledger.requests),
        "rides_acknowledged": len(ledger.acknowledged_rides),
        "rides_refused": _counted(request.refusal for request in requests if request.refusal is not None),
        "rides_unanswered": sum(request.unknown is not None for request in requests),
        "rides_matched": len(ledger.matched_rides),
        "rides_completed": states[RideState.COMPLETED.value],
        "rides_by_state": dict(sorted(states.items())),
        "request_to_match_p50_s": _rounded(percentile(matched_s, 0.50)),
        "request_to_match_p99_s": _rounded(percentile(matched_s, 0.99)),
        "request_to_answer_p50_s": _rounded(percentile(answered_s, 0.50)),
        "request_to_answer_p99_s": _rounded(percentile(answered_s, 0.99)),
        **_offer_figures(ledger),
        "pickup_p50_s": _rounded(percentile(ledger.pickup_s, 0.50)),
        "requests_late_p99_s": _rounded(percentile(play.riders.lateness_s, 0.99)),
        "reconnects": ledger.reconnects,
        "lost_connections": ledger.lost_connections,
        "paused_drivers": len(ledger.paused),
        "breaks": ledger.breaks,
        "refused_commands": dict(ledger.refused_commands),
        "errors": dict(ledger.errors.most_common(20)),
    }


def _offer_figures(ledger: Ledger) -> dict[str, Any]:
    counts, offered_s, accepted_s = ledger.offer_counts(), ledger.request_to_offer_s(), ledger.offer_to_accept_s()
    return {
        "offers": counts.total(),
        "accepted": counts["accepted"],
        "declined": counts["declined"],
        "ran_out": counts["ran_out"],
        "withdrawn": counts["withdrawn"],
        "open_offers": counts["open"],
        "request_to_offer_p50_s": _rounded(percentile(offered_s, 0.50)),
        "request_to_offer_p99_s": _rounded(percentile(offered_s, 0.99)),
        "offer_to_accept_p50_s": _rounded(percentile(accepted_s, 0.50)),
        "offer_to_accept_p99_s": _rounded(percentile(accepted_s, 0.99)),
    }


def _counted(names: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def lines(figures: dict[str, Any]) -> list[str]:
    """The same for a person."""

    def seconds(name: str) -> str:
        value = figures[name]
        return "-" if value is None else f"{value:.2f} s"

    books = figures["audit"]
    said = [
        (
            f"rides      {figures['rides_requested']} requested, {figures['rides_acknowledged']} acknowledged, "
            f"{figures['rides_matched']} matched, {figures['rides_completed']} completed"
        ),
        (
            f"positions  {figures['positions_sent']} sent, {figures['positions_applied']} applied "
            f"by {figures['drivers']} drivers ({figures['reconnects']} reconnects)"
        ),
        (
            f"to match   p50 {seconds('request_to_match_p50_s')}, p99 {seconds('request_to_match_p99_s')}   "
            f"to 201  p50 {seconds('request_to_answer_p50_s')}, p99 {seconds('request_to_answer_p99_s')}"
        ),
        *([_offers_line(figures)] if figures["offers"] else []),
        (
            f"trips      {_or_dash(figures['trips_in_database'])} in the database, "
            f"{figures['trips_in_ledger']} heard of by clients, {figures['double_assignments']} double assignments"
        ),
        f"audit      {'holds' if books['holds'] else 'FAILS: ' + str(books['faults'])} ({books['source']})",
    ]
    said += [f"           {example}" for example in books["examples"]]
    said += [f"errors     {count} x {what}" for what, count in figures["errors"].items()]
    return said


def _offers_line(figures: dict[str, Any]) -> str:
    ends = ", ".join(f"{figures[name]} {name.replace('_', ' ')}" for name in ("accepted", "declined", "ran_out"))
    answered_s = figures["offer_to_accept_p50_s"]
    accepted = "" if answered_s is None else f" (accepted after {answered_s:.2f} s, p50)"
    gone = f"{figures['withdrawn']} withdrawn; {figures['lost_connections']} connections lost"
    return f"offers     {figures['offers']}: {ends}, {gone}, {figures['paused_drivers']} drivers paused{accepted}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def report(figures: dict[str, Any], *, as_json: bool) -> None:
    """The last of a command's output."""
    sys.stderr.flush()
    print(json.dumps(figures) if as_json else "\n".join(lines(figures)), flush=True)
