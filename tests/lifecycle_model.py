"""What must become of rides, trips and drivers: the rules written down a second time, without a database.

Each verb changes the world and says what the store must answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.lifecycle_world import (
    DONE,
    FINAL,
    HERE,
    KEY_KEPT_MS,
    LEAD_MS,
    LEASE_LOST,
    LOST_GRACE_MS,
    MISSED_OFFERS_MAX,
    NONE,
    NOT_FOUND,
    NOT_YOURS,
    OPEN,
    REFUSED,
    SUPERSEDED,
    Answer,
    Driver,
    Event,
    Pair,
    Ride,
    Trip,
    World,
)


class Model(World):
    """Verbs have the names and arguments that tests.lifecycle_store has them by."""

    def do(self, verb: str, args: dict[str, Any]) -> Answer:
        self.news, self.rows_changed = {}, set()
        answer: Answer = getattr(self, verb)(**args)
        return answer

    # riders

    def request(
        self,
        ride: str,
        client: str,
        key: str | None,
        body: str,
        seats: int,
        dropoff: str | None,
        wait_ms: int,
        pickup_in_ms: int | None,
    ) -> Answer:
        if key is not None:
            for other in self.rides.values():
                if (other.client, other.key) == (client, key):
                    return Answer("repeated", detail=other.ride_id) if other.body == body else Answer("key_reused")
        if self.new_rides == "refuse":
            return Answer("paused")
        now_ms = self.now_ms
        pickup_ms = None if pickup_in_ms is None else now_ms + pickup_in_ms
        search_ms = None if pickup_ms is None else max(now_ms, pickup_ms - LEAD_MS)
        state = "searching" if search_ms is None or search_ms == now_ms else "scheduled"
        deadline_ms = (now_ms if pickup_ms is None else max(now_ms, pickup_ms)) + wait_ms
        new = Ride(
            ride,
            client,
            key,
            body,
            seats,
            state=state,
            first_state=state,
            requested_ms=now_ms,
            search_ms=search_ms,
            pickup_ms=pickup_ms,
            deadline_ms=deadline_ms,
            first_deadline_ms=deadline_ms,
            key_until_ms=None if key is None else now_ms + KEY_KEPT_MS,
            dropoff=dropoff,
            first_dropoff=dropoff,
        )
        new.events.append(Event(1, "requested", state, None, "rider", None, None))
        self.rides[ride] = new
        self.news[ride] = 1
        return Answer("requested", detail=ride)

    def cancel(self, ride: str, client: str | None, actor: str) -> Answer:
        found = self.rides.get(ride)
        if found is None or client not in (None, found.client):
            return NOT_FOUND if found is None else NOT_YOURS
        if found.state == "cancelled":
            return DONE
        by_hand = actor == "operator"
        if found.state in FINAL or (found.state == "in_progress" and not by_hand):
            return REFUSED
        move, code = ("operator_cancel", "operator_cancelled") if by_hand else ("rider_cancel", "rider_cancelled")
        self._ends(move, found, "cancelled", "withdrawn", "cancelled", actor, code)
        return DONE

    def redirect(self, ride: str, dropoff: str, client: str | None, actor: str) -> Answer:
        found = self.rides.get(ride)
        if found is None or client not in (None, found.client):
            return NOT_FOUND if found is None else NOT_YOURS
        if found.dropoff == dropoff:
            return DONE
        if found.state in FINAL:
            return REFUSED
        found.dropoff = dropoff
        self._happens("redirect", found, found.state, "destination_changed", actor)
        return DONE

    # drivers

    def move(self, trip: str, move: str, driver: str | None, epoch: int | None) -> Answer:
        found = self.trips.get(trip)
        if found is None or driver not in (None, found.driver):
            return NOT_FOUND if found is None else NOT_YOURS
        if _was_taken(move, found):
            return DONE
        ride = self.rides[found.ride]
        allowed = self.allowed(found)
        if move not in allowed:
            is_early = move == "no_show" and move in self.in_order(found) and found.due_ms > self.now_ms
            return Answer("not_allowed", allowed, self.no_show_from_ms(found) if is_early else None)
        if epoch not in (None, self.drivers[found.driver].epoch):
            return SUPERSEDED
        self._commanded(move, ride, found)
        return DONE

    def _commanded(self, move: str, ride: Ride, trip: Trip) -> None:
        if move in ("accept", "decline"):
            self.drivers[trip.driver].missed = 0
        match move:
            case "accept":
                self._happens(move, ride, "assigned", "assigned", "driver")
                late_ms = trip.release_ms if trip.slot == "next" and trip.release_ms is not None else trip.abandon_ms
                trip.state, trip.was_accepted, trip.due_ms = "accepted", True, late_ms
            case "arrive":
                self._happens(move, ride, "arrived", "arrived", "driver")
                trip.state, trip.arrived_ms = "arrived", self.now_ms
            case "start":
                self._happens(move, ride, "in_progress", "started", "driver")
                trip.state, trip.was_started = "in_progress", True
            case "decline":
                self._ends(move, ride, "searching", "declined", "declined", "driver", "declined")
            case "complete":
                self._ends(move, ride, "completed", "completed", "completed", "driver", "completed")
            case "cancel":
                self._ends(move, ride, "searching", "cancelled", "driver_cancelled", "driver", "driver_cancelled")
            case "no_show":
                self._ends(move, ride, "cancelled", "no_show", "cancelled", "driver", "no_show")

    def put_driver(self, driver: str, seats: int, status: str | None) -> Answer:
        found = self.drivers.get(driver)
        self.rows_changed.add(driver)
        if found is None:
            self.drivers[driver] = Driver(driver, seats, status or "offline")
            return Answer("status", detail=(status or "offline", None))
        found.seats = seats
        if status is None:
            return Answer("status", detail=(found.status, None))
        return self._set(found, status, "keep")

    def set_status(self, driver: str, status: str, epoch: int | None) -> Answer:
        found = self.drivers.get(driver)
        if found is None or epoch not in (None, found.epoch):
            return NONE
        if epoch is not None and found.status == "suspended":
            return Answer("status", detail=("suspended", self._finishing(found, status)))
        return self._set(found, status, "keep")

    def suspend(self, driver: str, trips: str) -> Answer:
        found = self.drivers.get(driver)
        return NONE if found is None else self._set(found, "suspended", trips)

    def _set(self, driver: Driver, status: str, trips: str) -> Answer:
        """Who takes no more trips gives back what was not begun; a suspension may take more."""
        self.rows_changed.add(driver.driver_id)
        driver.status, driver.code = status, None
        if status != "online":
            self._gives_back(driver.driver_id, suspended=status == "suspended", trips=trips)
        return Answer("status", detail=(status, self._finishing(driver, status)))

    def _gives_back(self, driver: str, *, suspended: bool, trips: str) -> None:
        why = ("operator", "driver_suspended") if suspended else ("driver", "driver_break")
        following = self.trip_of(driver, "next")
        if following is not None:
            self._withdrawn(self.rides[following.ride], *why)
        present = self.trip_of(driver, "now")
        if present is None:
            return
        ride = self.rides[present.ride]
        if present.state == "in_progress":
            if trips == "end":
                self._ends("operator_cancel", ride, "cancelled", "withdrawn", "cancelled", *why)
        elif present.state == "offered" or trips != "keep":
            self._withdrawn(ride, *why)

    def _finishing(self, driver: Driver, status: str) -> str | None:
        present = self.trip_of(driver.driver_id, "now")
        return None if status == "online" or present is None else present.trip_id

    def sign_on(self, driver: str, market: str, online: bool) -> Answer:
        found = self.drivers.get(driver)
        if found is None:
            return NONE
        self.rows_changed.add(driver)
        found.epoch += 1
        found.market, found.lost_ms = market, None
        if online and found.status == "offline":
            found.status = "online"
        held = [trip for slot in ("now", "next") if (trip := self.trip_of(driver, slot)) is not None]
        return Answer("signed_on", detail=(found.epoch, tuple(trip.trip_id for trip in held)))

    def note_lost(self, driver: str, epoch: int) -> Answer:
        found = self.drivers.get(driver)
        if found is not None and found.epoch == epoch and found.lost_ms is None:
            found.lost_ms = self.now_ms
        return NONE

    # operators

    def release(self, ride: str) -> Answer:
        found = self.rides.get(ride)
        if found is None:
            return NOT_FOUND
        if found.state in ("offered", "assigned", "arrived"):
            self._withdrawn(found, "operator", "released")
            return DONE
        was = found.state == "searching" and found.trip is not None and found.trip.code == "released"
        return DONE if was else REFUSED

    def complete(self, ride: str) -> Answer:
        found = self.rides.get(ride)
        if found is None:
            return NOT_FOUND
        if found.state == "completed":
            return DONE
        if found.state not in ("assigned", "arrived", "in_progress"):
            return REFUSED
        how = ("completed", "completed", "completed", "operator", "operator_completed")
        self._ends("operator_complete", found, *how)
        return DONE

    def assign(self, ride: str, driver: str, trip: str, ttl_ms: int | None) -> Answer:
        found = self.rides.get(ride)
        if found is None:
            return NOT_FOUND
        if found.live is not None and found.live.driver == driver:
            return DONE
        if found.state in (*FINAL, "in_progress"):
            return REFUSED
        is_kept = found.state in ("assigned", "arrived")  # it may search on, and so is in time
        if found.deadline_ms <= self.now_ms and not is_kept:
            return REFUSED
        if not self._can_serve(driver, found, ("online", "on_break")):
            return Answer("not_assignable", detail="driver_gone")
        slots = self.slots_of(driver)
        if "next" in slots:
            return Answer("not_assignable", detail="driver_engaged")
        if found.state == "scheduled":
            self._happens("search", found, "searching", "searching", "operator")
        elif found.live is not None:
            self._withdrawn(found, "operator", "reassigned")
        pair = Pair(ride, found.version, driver, "next" if slots else "now", trip)
        self._matched(found, pair, ttl_ms, False, "operator", "operator_assigned")
        return DONE

    def _can_serve(self, driver: str, ride: Ride, statuses: Sequence[str]) -> bool:
        found = self.drivers.get(driver)
        return found is not None and found.status in statuses and found.market == HERE and found.seats >= ride.seats

    def pause(self, new_rides: str | None) -> Answer:
        self.new_rides = new_rides
        return Answer("market", detail=new_rides)

    # matchers

    def take_lease(self, holder: str) -> Answer:
        if self.lease_runs and self.holder != holder:
            return NONE
        self.token, self.holder, self.lease_runs = self.token + 1, holder, True
        return Answer("lease", detail=self.token)

    def _holds(self, token: int) -> bool:
        return self.lease_runs and token == self.token

    def commit(self, token: int, pairs: Sequence[Pair], ttl_ms: int | None) -> Answer:
        if not self._holds(token):
            return LEASE_LOST
        kept: list[Pair] = []
        lost: list[tuple[str, str]] = []
        for pair in pairs:
            why = self._why_lost(pair)
            if why is None and pair.ride in {other.ride for other in kept}:
                why = "ride_changed"
            if why is None and pair.driver in {other.driver for other in kept}:
                why = "driver_engaged"
            if why is None:
                kept.append(pair)
            else:
                lost.append((pair.trip, why))
        for pair in kept:
            self._matched(self.rides[pair.ride], pair, ttl_ms, True, "service", None)
        return Answer("committed", detail=tuple(lost))

    def _why_lost(self, pair: Pair) -> str | None:
        slots = self.slots_of(pair.driver)
        ride = self.rides.get(pair.ride)
        if ride is None or ride.state != "searching" or ride.version != pair.version:
            return "ride_changed"
        if ride.deadline_ms <= self.now_ms:
            return "ride_changed"
        if not self._can_serve(pair.driver, ride, ("online",)):
            return "driver_gone"
        if pair.slot == "next" and "now" not in slots:
            return "driver_not_engaged"
        is_taken = "next" in slots if pair.slot == "next" else bool(slots)
        return "driver_engaged" if is_taken else None

    def stall(self, token: int, ride: str, trip: str) -> Answer:
        """The matcher takes a driver who does not come nearer from the ride."""
        if not self._holds(token):
            return LEASE_LOST
        found = self.rides[ride]
        if found.state in ("offered", "assigned", "arrived") and found.trip is self.trips[trip]:
            self._withdrawn(found, "service", "stalled")
        return Answer("hints")

    def sweep(self, token: int) -> Answer:
        """What reached a limit of time is moved on; keys older than a day are forgotten."""
        if not self._holds(token):
            return LEASE_LOST
        due = [(ride, how) for ride in self.rides.values() if (how := self._due(ride)) is not None]
        # A `next` that ends itself is not promoted by the end of its driver's present trip.
        due.sort(key=lambda one: one[0].live is None or one[0].live.slot != "next")
        missed = [trip.driver for ride, how in due if (trip := ride.live) is not None and self._missed(trip, how)]
        for ride, how in due:
            self._swept(ride, how)
        for driver in missed:
            self.drivers[driver].missed += 1
        for driver in set(missed):
            self._may_be_paused(self.drivers[driver])
        return Answer("hints")

    def would_sweep(self, verb: str) -> bool:
        """Whether this command is a sweep that finds something to do."""
        return verb == "sweep" and any(self._due(ride) is not None for ride in self.rides.values())

    def forget_keys(self) -> None:
        for ride in self.rides.values():
            if ride.key_until_ms is not None and ride.key_until_ms <= self.now_ms:
                ride.key = ride.key_until_ms = None

    def _due(self, ride: Ride) -> str | None:
        now_ms, trip = self.now_ms, ride.live
        if ride.state in OPEN and ride.deadline_ms <= now_ms:
            return "expire"
        if ride.state == "scheduled" and ride.search_ms is not None and ride.search_ms <= now_ms:
            return "search"
        if trip is None:
            return None
        lost_ms = self.drivers[trip.driver].lost_ms
        if trip.state == "offered" and lost_ms is not None and lost_ms + LOST_GRACE_MS <= now_ms:
            return "lost"
        if trip.due_ms > now_ms:
            return None
        if trip.state == "offered":
            return "time_out"
        return "late" if trip.slot == "next" and trip.abandon_ms > now_ms else "abandon"

    def _missed(self, trip: Trip, how: str) -> bool:
        """Whether its driver had the whole time to answer, and a socket to do it on."""
        is_over = how in ("expire", "time_out") and trip.due_ms <= self.now_ms
        return trip.state == "offered" and is_over and self.drivers[trip.driver].lost_ms is None

    def _swept(self, ride: Ride, how: str) -> None:
        match how:
            case "search":
                self._happens("search", ride, "searching", "searching", "service")
            case "expire":
                self._ends("expire", ride, "expired", "timed_out", "expired", "service", "no_driver_found")
            case "lost" | "time_out":
                code = "connection_lost" if how == "lost" else "offer_expired"
                self._ends("time_out", ride, "searching", "timed_out", "timed_out", "service", code)
            case "late":
                self._withdrawn(ride, "service", "running_late")
            case "abandon" if ride.state == "in_progress":
                self._ends("abandon", ride, "cancelled", "abandoned", "cancelled", "service", "abandoned")
            case _:
                self._ends("abandon", ride, "searching", "abandoned", "abandoned", "service", "abandoned")

    def _may_be_paused(self, driver: Driver) -> None:
        if driver.status == "online" and driver.missed >= MISSED_OFFERS_MAX:
            driver.status, driver.code, driver.missed = "on_break", "missed_offers", 0
            self.rows_changed.add(driver.driver_id)

    def announce(self, ride: str, version: int) -> Answer:
        """This version stands for all before it."""
        self.rides[ride].announced |= set(range(1, version + 1))
        return NONE


def _was_taken(move: str, trip: Trip) -> bool:
    """Whether the command took effect before, so that it is answered once more as then."""
    reached = {"decline": "declined", "complete": "completed", "cancel": "cancelled", "no_show": "no_show"}
    if move in reached:
        return trip.state == reached[move]
    return {"accept": trip.was_accepted, "arrive": trip.arrived_ms is not None, "start": trip.was_started}[move]
