"""Whether what the store says is what the model says: of one answer, and of all rows at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from geo.model import LatLng
from matcher.model import NO_RIDE, Driver, Hint, Ride, RideEvent, RideId
from tests.lifecycle_model import Model
from tests.lifecycle_store import PLACES, Fault, Heard, StoreSide, View
from tests.lifecycle_world import Answer, Event
from tests.lifecycle_world import Ride as ModelRide
from tests.lifecycle_world import Trip as ModelTrip

#: Their answer is told from the ids, however often they had to be tried.
TOLD_BY_IDS = ("request", "commit")


class Checks:
    """One example's: it keeps which events were seen, and the drivers' versions."""

    def __init__(self, model: Model, side: StoreSide) -> None:
        self._model = model
        self._side = side
        self._known: dict[RideId, int] = {}
        self._driver_versions: dict[str, int] = {}
        self._changed_drivers: set[str] = set()

    def note_changed(self) -> None:
        """The last verb has changed these drivers' rows."""
        self._changed_drivers |= self._model.rows_changed

    # an answer

    def answer(self, heard: Heard, expected: Answer, fault: Fault | None) -> None:
        """`fault` has struck while the command was under way."""
        if expected.word == "not_allowed":
            self._is_at(heard.allowed_at_ms, expected.detail)
            expected = expected._replace(detail=None)
        if fault is not None and expected.word == "committed":
            # Why a pairing was lost is not told again.
            lost = {trip for trip, _ in heard.answer.detail}
            assert (heard.answer.word, lost) == ("committed", {trip for trip, _ in expected.detail})
        else:
            assert heard.answer == expected, f"{heard.answer} and not {expected}"
        if heard.ride is not None:
            self._answered_ride(heard.ride, expected)
        if fault is not Fault.CUT_AFTER:
            self._hints(heard, expected)

    def _answered_ride(self, ride: Ride, expected: Answer) -> None:
        model = self._model.rides[ride.ride_id]
        if expected.word in ("requested", "repeated"):
            self._first_answer(ride, model)
        else:
            trip = None if ride.trip is None else self._model.trips[ride.trip.trip_id]
            self._ride(ride, model, trip)

    def _first_answer(self, ride: Ride, model: ModelRide) -> None:
        """The answer of the first time, whatever has become of the ride."""
        assert (ride.state, ride.version, ride.trip, ride.end_code) == (model.first_state, 1, None, None)
        assert (ride.client_id, ride.seats, ride.dropoff) == (model.client, model.seats, PLACES[model.first_dropoff])
        self._is_at(ride.deadline_at_ms, model.first_deadline_ms)
        self._is_at(ride.requested_at_ms, model.requested_ms)

    def _hints(self, heard: Heard, expected: Answer) -> None:
        """Each ride that was changed, and the driver's own row, is to be announced."""
        rides = {hint.ride_id: hint.version for hint in heard.hints if hint.ride_id != NO_RIDE}
        if expected.word in ("requested", "done", "status", "committed", "hints"):
            assert rides == self._model.news
        if expected.word in ("status", "signed_on", "hints"):
            told = {hint.driver_id for hint in heard.hints if hint.ride_id == NO_RIDE}
            changed = self._model.rows_changed
            assert told >= {name for name in changed if self._model.drivers[name].market is not None}

    # all rows

    def look(self) -> None:
        view = self._side.look(self._known_of_all(), list(self._model.drivers))
        assert view.audit.holds, view.audit
        self._rides(view.rides)
        self._new_events(view.events)
        self._drivers(view.drivers)
        self._waiting(view)
        self._unannounced(view.unannounced)

    def _known_of_all(self) -> dict[RideId, int]:
        return {RideId(ride): self._known.get(RideId(ride), 0) for ride in self._model.rides}

    def _rides(self, rides: Iterable[Ride]) -> None:
        found = {ride.ride_id: ride for ride in rides}
        assert found.keys() == self._model.rides.keys()
        for ride_id, ride in found.items():
            model = self._model.rides[ride_id]
            self._ride(ride, model, model.trip)
            self._is_at(ride.requested_at_ms, model.requested_ms)
            self._is_at(ride.search_at_ms, model.search_ms)

    def _ride(self, ride: Ride, model: ModelRide, trip: ModelTrip | None) -> None:
        seen = (ride.state, ride.version, ride.end_code, ride.client_id, ride.seats, ride.dropoff)
        assert seen == (
            *(model.state, model.version, model.code),
            *(model.client, model.seats, PLACES[model.dropoff]),
        ), model
        assert (ride.ended_at_ms is not None) == (model.state in ("completed", "cancelled", "expired"))
        self._is_at(ride.deadline_at_ms, model.deadline_ms)
        if ride.trip is None or trip is None:
            assert (ride.trip, trip) == (None, None), model
            return
        seen_trip = (ride.trip.trip_id, ride.trip.driver_id, ride.trip.state, ride.trip.slot, ride.trip.end_code)
        assert seen_trip == (trip.trip_id, trip.driver, trip.state, trip.slot, trip.code), trip
        if trip.is_live:
            self._is_at(ride.trip.due_at_ms, trip.due_ms)
            self._is_at(ride.trip.abandon_at_ms, trip.abandon_ms)
            self._is_at(ride.trip.release_at_ms, trip.release_ms)

    def _is_at(self, at_ms: int | None, model_ms: int | None) -> None:
        """The same time, but for what has really passed since the example began."""
        if at_ms is None or model_ms is None:
            assert (at_ms, model_ms) == (None, None)
            return
        base_ms = at_ms - (model_ms - self._model.now_ms)
        late_ms = 30_000  # less than any two limits are apart
        assert self._side.started_ms <= base_ms <= self._side.started_ms + late_ms, base_ms - self._side.started_ms

    def _new_events(self, events: Iterable[RideEvent]) -> None:
        seen: dict[RideId, list[Event]] = {}
        for event in events:
            seen.setdefault(event.ride_id, []).append(_event(event))
        for ride_id, known in self._known_of_all().items():
            assert seen.get(ride_id, []) == self._model.rides[ride_id].events[known:]
            self._known[ride_id] = self._model.rides[ride_id].version

    def _drivers(self, drivers: Iterable[Driver]) -> None:
        found = {driver.driver_id: driver for driver in drivers}
        assert found.keys() == self._model.drivers.keys()
        for name, driver in found.items():
            model = self._model.drivers[name]
            row = (driver.status, driver.status_code, driver.market, driver.epoch, driver.seats)
            assert row == (model.status, model.code, model.market, model.epoch, model.seats), name
            before = self._driver_versions.get(name, 0)
            assert (driver.version > before) if name in self._changed_drivers else (driver.version == before), name
            self._driver_versions[name] = driver.version
        self._changed_drivers.clear()

    def _waiting(self, view: View) -> None:
        model, waiting = self._model, view.waiting
        assert [(ride.ride_id, ride.version) for ride in waiting.rides] == [
            (ride.ride_id, ride.version) for ride in model.waiting()
        ]
        assert waiting.engaged == {trip.driver for trip in model.live_trips()}
        assert waiting.refused == model.refused()
        assert {(each.driver_id, each.dropoff) for each in waiting.carrying} == set(self._carrying())
        assert {(each.ride_id, each.trip_id, each.driver_id) for each in view.approaching} == {
            (trip.ride, trip.trip_id, trip.driver)
            for trip in model.live_trips("accepted", slot="now")
            if model.is_time(model.rides[trip.ride])
        }
        assert waiting.paused == (model.new_rides is not None)

    def _carrying(self) -> Iterator[tuple[str, LatLng | None]]:
        """Whose passenger's destination is known, so that the next pickup can be planned from there."""
        for trip in self._model.live_trips("in_progress"):
            dropoff = self._model.rides[trip.ride].dropoff
            if dropoff is not None and "next" not in self._model.slots_of(trip.driver):
                yield trip.driver, PLACES[dropoff]

    def _unannounced(self, hints: Iterable[Hint]) -> None:
        found = sorted((hint.ride_id, hint.version, hint.driver_id) for hint in hints)
        assert found == sorted(self._model.unannounced())

    # at the end

    def histories(self) -> None:
        """All trips of all rides, and all events from the first on."""
        for ride in self._model.rides.values():
            trips = [(trip.trip_id, trip.driver, trip.state, trip.code) for trip in ride.trips]
            assert self._side.trips_of(ride.ride_id) == trips
        events: dict[str, list[Event]] = {}
        for event in self._side.events_of(list(self._model.rides)):
            events.setdefault(event.ride_id, []).append(_event(event))
        assert events == {ride.ride_id: ride.events for ride in self._model.rides.values()}
        for ride in self._model.rides.values():
            assert [event.version for event in ride.events] == list(range(1, ride.version + 1))


def _event(event: RideEvent) -> Event:
    return Event(
        event.version,
        event.type,
        event.state.value,
        event.code,
        event.actor or "",
        event.driver_id,
        event.trip_id,
    )
