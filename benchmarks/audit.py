"""Does the database agree with what the clients saw, and with itself?

Judges rows (benchmarks.audit_rows) in plain functions: `invariants` from the database alone, `compare` against the
clients' ledger. Times are whole milliseconds of the database's clock. What a run's end cuts short, or left unread, is
noted and no fault.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.audit_rows import EventRow, Records, RideRow, TripRow
from benchmarks.ledger import Followed, Ledger, SeenTrip
from matcher.model import (
    FINAL_RIDE_STATES,
    REFUSING_CODES,
    REFUSING_TRIP_STATES,
    TRANSITIONS,
    Code,
    RideState,
    Slot,
    TripState,
)

EXAMPLES_MAX = 20
#: Between the statement that checks a deadline and the one that writes the trip's time.
STATEMENT_GRACE_MS = 1_000
#: P4: so long after its deadline a ride may still be waiting for a driver.
OVERDUE_GRACE_MS = 60_000
#: Longer than any driver takes to notice that its socket is dead (api.client_driver.DriverOptions.silent_s).
TOLD_GRACE_MS = 60_000

_FINAL = frozenset(state.value for state in FINAL_RIDE_STATES)
_WAITING = frozenset({RideState.SCHEDULED, RideState.SEARCHING, RideState.OFFERED})
_WITH_TRIP = frozenset({RideState.OFFERED, RideState.ASSIGNED, RideState.ARRIVED, RideState.IN_PROGRESS})
_UNACCEPTED_ENDS = frozenset({TripState.DECLINED, TripState.TIMED_OUT})
_STEPS = frozenset((row.ride_from, row.event, row.ride_to) for rows in TRANSITIONS.values() for row in rows)

#: What stands in the database of a command that the service confirmed, and what it is called where it does not.
_CONFIRMED: Mapping[str, tuple[str, Callable[[TripRow], bool]]] = {
    "accept": ("acceptance lost", lambda trip: trip.accepted_at_ms is not None),
    "decline": ("refusal lost", lambda trip: trip.state == TripState.DECLINED),
    "arrive": ("arrival lost", lambda trip: trip.arrived_at_ms is not None),
    "start": ("start lost", lambda trip: trip.started_at_ms is not None),
    "complete": ("completion lost", lambda trip: trip.state == TripState.COMPLETED),
    "cancel": ("cancellation lost", lambda trip: trip.state == TripState.CANCELLED),
    "no_show": ("no-show lost", lambda trip: trip.state == TripState.NO_SHOW),
}

#: Faults that mean a driver or a ride was given away twice (P1).
DOUBLES = ("driver doubled", "ride doubled", "trips overlap", "doubled in the clients' eyes")


@dataclass(slots=True)
class Findings:
    """Faults by name, with the first few spelled out, and counts that are no faults by themselves."""

    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def fault(self, name: str, what: str) -> None:
        self.faults[name] += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{name}: {what}")

    @property
    def holds(self) -> bool:
        return not self.faults

    @property
    def double_assignments(self) -> int:
        return sum(self.faults[name] for name in DOUBLES)


def audit(records: Records, ledger: Ledger) -> Findings:
    """Everything: the database by itself, then against the ledger."""
    findings = Findings()
    invariants(records, findings)
    compare(records, ledger, findings)
    return findings


def audit_without_database(ledger: Ledger) -> Findings:
    """What can be said from the clients alone: whether each acknowledged ride still answered at the end."""
    findings = Findings()
    for ride_id, request in ledger.acknowledged_rides.items():
        if ride_id not in ledger.last_state:
            findings.fault("ride lost", f"ride {ride_id} was acknowledged to {request.client_id} and is not listed")
    _check_clients(ledger, findings)
    return findings


def _check_clients(ledger: Ledger, findings: Findings) -> None:
    for line in ledger.doubles():
        findings.fault("doubled in the clients' eyes", line)
    for line in ledger.told_again:
        findings.fault("told of a past trip", line)
    for ride_id, followed in ledger.followed.items():
        _check_followed(ride_id, followed, findings)
    if ledger.unread is not None:
        findings.fault("books not closed", f"the rides' last states could not be read: {ledger.unread}")


def _check_followed(ride_id: str, followed: Followed, findings: Findings) -> None:
    """A rider reads its ride's events from the first on, in order; a stream may be cut, not end before the ride."""
    versions = [event.version for event in followed.events]
    if versions != list(range(1, len(versions) + 1)):
        findings.fault("events out of order", f"ride {ride_id} was followed through versions {versions}")
    if followed.ended and (not followed.events or followed.events[-1].state not in _FINAL):
        findings.fault("final event unheard", f"ride {ride_id} was followed through versions {versions}")


# The database by itself


def invariants(records: Records, findings: Findings) -> None:
    _check_doubles(records.trips, findings)
    _check_overlaps(records.trips, findings)
    live = {trip.ride_id: trip for trip in records.trips if trip.live}
    for ride in records.rides.values():
        _check_ride(ride, live.get(ride.ride_id), records.now_ms, findings)
        _check_events(ride, records.events.get(ride.ride_id, ()), findings)
    trips = records.trips_of_run()
    for trip in trips:
        _check_in_time(trip, records.rides[trip.ride_id].deadline_at_ms, findings)
    _check_refusals(trips, records, findings)


def _check_doubles(trips: Sequence[TripRow], findings: Findings) -> None:
    alive = [trip for trip in trips if trip.live]
    for slot, count in Counter((trip.driver_id, trip.live_slot) for trip in alive).items():
        if count > 1:
            findings.fault("driver doubled", f"driver {slot[0]} has {count} live trips in slot {slot[1]}")
    for ride_id, count in Counter(trip.ride_id for trip in alive).items():
        if count > 1:
            findings.fault("ride doubled", f"ride {ride_id} has {count} live trips")
    engaged = {trip.driver_id for trip in alive if trip.live_slot == Slot.NOW}
    for trip in alive:
        if trip.live_slot == Slot.NEXT and trip.driver_id not in engaged:
            findings.fault("next without a present trip", f"driver {trip.driver_id} has {trip.trip_id} in next")


def _check_overlaps(trips: Sequence[TripRow], findings: Findings) -> None:
    """A driver's trips in the slot `now`, each from when it took it to its end, must follow one another."""
    by_driver: dict[str, list[TripRow]] = defaultdict(list)
    for trip in trips:
        if trip.now_since_ms is not None:
            by_driver[trip.driver_id].append(trip)
    for driver_id, taken in by_driver.items():
        taken.sort(key=lambda trip: (trip.now_since_ms or 0, trip.trip_id))
        for earlier, later in pairwise(taken):
            if earlier.ended_at_ms is None or earlier.ended_at_ms > (later.now_since_ms or 0):
                findings.fault("trips overlap", f"driver {driver_id}: {earlier.trip_id} and {later.trip_id}")


def _check_ride(ride: RideRow, live: TripRow | None, now_ms: int, findings: Findings) -> None:
    if ride.state in _WITH_TRIP and (live is None or live.trip_id != ride.current_trip_id):
        findings.fault("ride without its trip", f"ride {ride.ride_id} is {ride.state}")
    if ride.state not in _WITH_TRIP and live is not None:
        findings.fault(
            "live trip of a ride that has none", f"ride {ride.ride_id} is {ride.state}, {live.trip_id} lives"
        )
    if ride.state in _WAITING and ride.deadline_at_ms + OVERDUE_GRACE_MS < now_ms:
        late_ms = now_ms - ride.deadline_at_ms
        findings.fault("overdue", f"ride {ride.ride_id} is {ride.state} {late_ms} ms past its deadline")


def _check_events(ride: RideRow, events: Sequence[EventRow], findings: Findings) -> None:
    """One event a version, from 1 to the ride's, the last with the ride's state."""
    versions = sorted(event.version for event in events)
    if versions != list(range(1, ride.version + 1)):
        findings.fault("events missing", f"ride {ride.ride_id} at version {ride.version} has events {versions}")
    elif max(events, key=lambda event: event.version).state != ride.state:
        findings.fault("last event differs", f"ride {ride.ride_id} is {ride.state}")
    else:
        _check_turns(ride, sorted(events, key=lambda event: event.version), findings)
    findings.notes["events not yet announced"] += sum(1 for event in events if event.pending)


def _check_turns(ride: RideRow, events: Sequence[EventRow], findings: Findings) -> None:
    """Each event is one of the table's and continues the one before it, with the same trip while that lives."""
    state: str | None = None
    trip_id: str | None = None
    for event in events:
        if not _follows(state, trip_id, event):
            what = f"{event.type} of trip {event.trip_id} after {state} with trip {trip_id}"
            findings.fault("event out of turn", f"ride {ride.ride_id}, version {event.version}: {what}")
            return
        state, trip_id = event.state, event.trip_id if event.state in _WITH_TRIP else None


def _follows(state: str | None, trip_id: str | None, event: EventRow) -> bool:
    if state is None:
        return event.state in (RideState.SCHEDULED, RideState.SEARCHING) and event.trip_id is None
    if (state, event.type, event.state) not in _STEPS:
        return False
    if trip_id is not None:
        return event.trip_id == trip_id
    return (event.trip_id is not None) == (event.state in _WITH_TRIP)


def _check_in_time(trip: TripRow, deadline_ms: int, findings: Findings) -> None:
    what = f"ride {trip.ride_id}, trip {trip.trip_id}"
    if trip.matched_at_ms > deadline_ms + STATEMENT_GRACE_MS:
        findings.fault("matched after its deadline", what)
    if trip.accepted_at_ms is None:
        return
    if trip.accepted_at_ms > deadline_ms + STATEMENT_GRACE_MS:
        findings.fault("accepted after its deadline", what)
    is_over = trip.ended_at_ms is not None and trip.ended_at_ms < trip.accepted_at_ms
    if is_over or trip.state in _UNACCEPTED_ENDS:
        findings.fault("accepted after its end", f"{what} is {trip.state}")


def _check_refusals(trips: Sequence[TripRow], records: Records, findings: Findings) -> None:
    """Who refused a ride is not given it again; but an operator may do so by hand."""
    refused: dict[str, set[str]] = defaultdict(set)
    for trip in sorted(trips, key=lambda trip: (trip.matched_at_ms, trip.trip_id)):
        if trip.driver_id in refused[trip.ride_id] and not _is_by_hand(trip, records.events.get(trip.ride_id, ())):
            findings.fault("given to who refused it", f"ride {trip.ride_id}, trip {trip.trip_id}, {trip.driver_id}")
        if trip.state in REFUSING_TRIP_STATES or trip.end_code in REFUSING_CODES:
            refused[trip.ride_id].add(trip.driver_id)


def _is_by_hand(trip: TripRow, events: Iterable[EventRow]) -> bool:
    return any(event.trip_id == trip.trip_id and event.code == Code.OPERATOR_ASSIGNED for event in events)


# The database against the clients


def compare(records: Records, ledger: Ledger, findings: Findings) -> None:
    for ride_id, request in ledger.acknowledged_rides.items():  # P2
        if ride_id not in records.rides:
            findings.fault("ride lost", f"ride {ride_id} was acknowledged to {request.client_id} and does not stand")
    for ride in records.rides.values():
        _check_request(ride, ledger, findings)
        _check_last_state(ride, ledger, findings)
    for ride_id, followed in ledger.followed.items():
        _check_heard(ride_id, followed, records.events.get(ride_id, ()), findings)
    _check_trips(records, ledger, findings)
    _check_clients(ledger, findings)


def _check_request(ride: RideRow, ledger: Ledger, findings: Findings) -> None:
    """P3: every ride goes back to one request, and that request to this ride."""
    request = ledger.requests.get(ride.idempotency_key or "")
    if request is None:
        findings.fault("ride nobody asked for", f"ride {ride.ride_id} with key {ride.idempotency_key!r}")
    elif request.ride_id is not None and request.ride_id != ride.ride_id:
        findings.fault("two rides for one key", f"{ride.ride_id} and {request.ride_id} for key {request.key}")
    elif request.refusal is not None:
        findings.fault("refused and yet taken", f"ride {ride.ride_id}, refused with {request.refusal}")
    elif request.unknown is not None:
        findings.notes["rides taken without an answer"] += 1


def _check_last_state(ride: RideRow, ledger: Ledger, findings: Findings) -> None:
    seen = ledger.last_state.get(ride.ride_id)
    if seen is None:
        return
    if seen.version > ride.version or (seen.version == ride.version and seen.state != ride.state):
        told = f"{seen.state} at version {seen.version}"
        findings.fault("state differs", f"ride {ride.ride_id} is {ride.state} at {ride.version}, clients read {told}")
    elif seen.version < ride.version:
        findings.notes["rides changed after they were read"] += 1


def _check_heard(ride_id: str, followed: Followed, events: Sequence[EventRow], findings: Findings) -> None:
    """What a rider was told happened is what happened."""
    standing = {event.version: event for event in events}
    for heard in followed.events:
        event = standing.get(heard.version)
        if event is None:
            findings.fault("event lost", f"ride {ride_id}, version {heard.version}: {heard.type} was told")
            continue
        told = (heard.type, heard.state, heard.driver_id, heard.trip_id, heard.code, heard.actor)
        if told != (event.type, event.state, event.driver_id, event.trip_id, event.code, event.actor):
            findings.fault("event differs", f"ride {ride_id}, version {heard.version}: {heard.type} was told")


def _check_trips(records: Records, ledger: Ledger, findings: Findings) -> None:
    trips = records.trips_of_run()
    standing = {trip.trip_id: trip for trip in trips}
    for trip_id, seen in ledger.trips.items():
        trip = standing.get(trip_id)
        if trip is not None:
            _check_seen(trip, seen, findings)
        elif seen.ride_id in ledger.acknowledged_rides:
            findings.fault("trip lost", f"{trip_id} of ride {seen.ride_id} was told and does not stand")
    for trip in trips:
        known = ledger.trips.get(trip.trip_id)
        if known is not None:
            _check_told(trip, known, records.now_ms, ledger, findings)
        elif _is_read(records.rides[trip.ride_id], ledger):
            findings.fault("trip nobody heard of", f"{trip.trip_id} of ride {trip.ride_id}")
        else:
            findings.notes["trips of rides not read to the end"] += 1


def _is_read(ride: RideRow, ledger: Ledger) -> bool:
    """Whether the clients have read all that ever happened to this ride."""
    seen = ledger.last_state.get(ride.ride_id)
    return seen is not None and seen.version >= ride.version and ride.ride_id not in ledger.unread_histories


def _check_seen(trip: TripRow, seen: SeenTrip, findings: Findings) -> None:
    if (trip.ride_id, trip.driver_id) != (seen.ride_id, seen.driver_id):
        findings.fault("trip differs", f"{trip.trip_id} was told for {seen.ride_id} with {seen.driver_id}")
    for verb in seen.confirmed_at_s:
        name, stands = _CONFIRMED[verb]
        if not stands(trip):
            findings.fault(name, f"{trip.trip_id} is {trip.state}")
    if seen.told_end in _UNACCEPTED_ENDS and trip.accepted_at_ms is not None:
        findings.fault("accepted after its end", f"{trip.trip_id} was told to be {seen.told_end} and is {trip.state}")


def _check_told(trip: TripRow, seen: SeenTrip, now_ms: int, ledger: Ledger, findings: Findings) -> None:
    """A driver is told of the trip that it has, as long as it is connected and the trip lives."""
    if trip.accepted_at_ms is None or seen.told_at_s is not None:
        return
    until_ms = now_ms if trip.ended_at_ms is None else trip.ended_at_ms
    if ledger.connected_ms(trip.driver_id, trip.accepted_at_ms, until_ms) > TOLD_GRACE_MS:
        findings.fault("trip its driver was not told of", f"{trip.trip_id} of {trip.driver_id}")
    else:
        findings.notes["trips their driver was not told of"] += 1
