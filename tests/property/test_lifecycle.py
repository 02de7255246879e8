"""In whatever order it is asked, the store does to rides, trips and drivers what the rules say (P1 to P4, P7).

A machine of Hypothesis gives commands to a store and to a model of the rules (tests.lifecycle_model), lets time
pass, ends processes and cuts connections at a COMMIT, and compares answers and rows after every step.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from matcher.model import TRANSITIONS, Code
from tests.lifecycle_machine import AT_WORK, DRIVERS, OFTEN, ORDINARY, RIDES_MAX, Machine, Reached, Row, picked
from tests.lifecycle_store import Fault, StoreSide
from tests.lifecycle_world import HERE, HOUR_MS, MINUTE_MS, OFFER_TTL_MS, Pair
from tests.servers import fresh_database
from tests.stores import migrated, sqlite_url

#: The commands, limits and rules of the one table, each with the states that it begins from.
ROWS: frozenset[Row] = frozenset(
    (str(move), str(row.ride_from), None if row.trip_from is None else str(row.trip_from))
    for move, rows in TRANSITIONS.items()
    for row in rows
)
ANSWERS = {
    *("requested", "repeated", "key_reused", "paused"),
    *("done", "not_allowed", "not_assignable", "not_found", "not_yours", "superseded"),
    *("status", "signed_on", "market", "committed", "hints", "lease", "lease_lost", "none"),
}
LONG = bool(os.environ.get("HEXHAIL_TEST_LONG"))

picks = st.integers(0, 11)  # which of those there are, counted round
drivers = st.sampled_from(DRIVERS)
ttls = st.sampled_from([None, OFFER_TTL_MS])
#: A minute more than hours, so that no limit is met exactly.
spans_ms = st.sampled_from([1, 2, 4, 7, 25]).map(lambda hours: hours * HOUR_MS + MINUTE_MS)
moves = st.sampled_from(["accept", "decline", "arrive", "start", "complete", "cancel", "no_show"])
steps = st.tuples(st.sampled_from(OFTEN), picks)
seats = st.sampled_from([4, 2])
kinds_of_write = st.sampled_from(["sweep", "commit", "stall"])


def has_rides(self: Machine) -> bool:
    return bool(self.model.rides)


def may_ask(self: Machine) -> bool:
    return len(self.model.rides) < RIDES_MAX


def has_waiting(self: Machine) -> bool:
    return bool(self.model.waiting())


def has_trips(*states: str) -> Any:
    return lambda self: bool(self.model.live_trips(*states))


class Lifecycle(Machine):
    """Rules choose among what there is in the model, so that most of what they say makes sense; some say anything."""

    @initialize(
        day=st.lists(steps, min_size=30, max_size=30),
        numbers=st.lists(seats, min_size=len(AT_WORK), max_size=len(AT_WORK)),
    )
    def a_working_day(self, day: list[tuple[str, int]], numbers: tuple[int, int, int]) -> None:
        self.opens(numbers)
        self.go_on(day)

    @rule(day=st.lists(steps, min_size=10, max_size=10))
    def go_on(self, day: list[tuple[str, int]]) -> None:
        for step, pick in day:
            ORDINARY[step](self, pick)

    # riders

    @precondition(may_ask)
    @rule(
        client=st.sampled_from(["ann", "bob"]),
        key=st.sampled_from([None, "k1", "k2"]),
        seats=seats,
        wait_h=st.sampled_from([5, 2]),
        dropoff=st.sampled_from(["museum", None]),
    )
    def request(self, client: str, key: str | None, seats: int, wait_h: int, dropoff: str | None) -> None:
        self.ask(client=client, key=key, seats=seats, wait_ms=wait_h * HOUR_MS, dropoff=dropoff)

    @precondition(may_ask)
    @rule(pickup_in_h=st.sampled_from([3, 0, 6]), key=st.sampled_from([None, "k3"]))
    def request_for_later(self, pickup_in_h: int, key: str | None) -> None:
        self.ask(pickup_in_ms=pickup_in_h * HOUR_MS + MINUTE_MS // 2, key=key)

    @precondition(lambda self: any(ride.key for ride in self.model.rides.values()))
    @rule(pick=picks, same=st.booleans())
    def request_under_a_used_key(self, pick: int, same: bool) -> None:
        first = picked(pick, [ride for ride in self.model.rides.values() if ride.key])
        self.ask(client=first.client, key=first.key, body=first.body if same else "other")

    @precondition(has_rides)
    @rule(pick=picks, by_hand=st.booleans())
    def cancel_ride(self, pick: int, by_hand: bool) -> None:
        self.ends(pick, "cancel", by_hand=by_hand)

    @precondition(has_rides)
    @rule(pick=picks, to=st.sampled_from(["museum", "station"]), by_hand=st.booleans())
    def redirect_ride(self, pick: int, to: str, by_hand: bool) -> None:
        ride = picked(pick, list(self.model.rides.values()))
        self.play("redirect", ride=ride.ride_id, dropoff=to, **self.whose(ride, by_hand))

    # matchers

    @precondition(has_waiting)
    @rule(pick=picks, driver=drivers, ttl_ms=ttls)
    def match_a_ride(self, pick: int, driver: str, ttl_ms: int | None) -> None:
        self.match(picked(pick, self.model.waiting()).ride_id, driver, ttl_ms)

    @precondition(has_rides)
    @rule(
        lines=st.lists(st.tuples(picks, drivers, st.sampled_from(["now", "next"]), st.integers(0, 1)), max_size=3),
        ttl_ms=ttls,
    )
    def commit_any_plan(self, lines: list[tuple[int, str, str, int]], ttl_ms: int | None) -> None:
        """Rides in any state, versions seen too early, drivers twice."""
        rides = [*self.model.waiting(), *self.model.rides.values()]
        pairs = [
            Pair((ride := picked(pick, rides)).ride_id, ride.version - stale, driver, slot, self.name("t"))
            for pick, driver, slot, stale in lines
        ]
        self.play("commit", token=self.model.token, pairs=tuple(pairs), ttl_ms=ttl_ms)

    @precondition(has_trips())
    @rule(pick=picks)
    def withdraw_a_stalled_driver(self, pick: int) -> None:
        trip = picked(pick, list(self.model.trips.values()))
        self.play("stall", token=self.model.token, ride=trip.ride, trip=trip.trip_id)

    @rule()
    def sweep(self) -> None:
        self.sweeps()

    @rule(runs_out=st.booleans(), verb=kinds_of_write, pick=picks)
    def another_matcher_comes(self, runs_out: bool, verb: str, pick: int) -> None:
        """Once the lease has run out it is given to it, and whoever had it writes no more."""
        self.matchers += 1
        old = self.model.token
        if runs_out:
            self.side.end_lease()
            self.model.lease_runs = False
            self.write_as(old, verb, pick)  # too late, although nobody else has come yet
        self.play("take_lease", holder=f"matcher-{self.matchers}")
        if runs_out:
            self.write_as(old, verb, pick)

    def write_as(self, token: int, verb: str, pick: int) -> None:
        trips, waiting = self.model.live_trips(), self.model.waiting()
        if verb == "stall" and trips:
            trip = picked(pick, trips)
            self.play("stall", token=token, ride=trip.ride, trip=trip.trip_id)
        elif verb == "commit" and waiting:
            ride = picked(pick, waiting)
            pair = Pair(ride.ride_id, ride.version, picked(pick, DRIVERS), "now", self.name("t"))
            self.play("commit", token=token, pairs=(pair,), ttl_ms=None)
        else:
            self.play("sweep", token=token)

    @precondition(lambda self: any(self.model.unannounced()))
    @rule(pick=picks)
    def announce(self, pick: int) -> None:
        ride, version, _ = picked(pick, list(self.model.unannounced()))
        self.play("announce", ride=ride, version=version)

    # drivers

    @precondition(has_trips("offered"))
    @rule(pick=picks, move=st.sampled_from(["accept", "decline"]))
    def answer_an_offer(self, pick: int, move: str) -> None:
        self.commands(pick, move, "offered")

    @precondition(has_trips("accepted", "arrived", "in_progress"))
    @rule(pick=picks)
    def drive_on(self, pick: int) -> None:
        trip = picked(pick, self.model.live_trips("accepted", "arrived", "in_progress"))
        self.command({"accepted": "arrive", "arrived": "start"}.get(trip.state, "complete"), trip)

    @precondition(has_trips("accepted", "arrived"))
    @rule(pick=picks)
    def cancel_trip(self, pick: int) -> None:
        self.commands(pick, "cancel", "accepted", "arrived")

    @precondition(has_trips("arrived"))
    @rule(pick=picks)
    def report_a_no_show(self, pick: int) -> None:
        self.commands(pick, "no_show", "arrived")

    @precondition(lambda self: self.model.trips)
    @rule(pick=picks, move=moves, by=st.sampled_from(["own", "any", *DRIVERS]), epochs_back=st.integers(0, 1))
    def command_anything(self, pick: int, move: str, by: str, epochs_back: int) -> None:
        """Out of order, twice, for another driver, of an older session."""
        trip = picked(pick, list(reversed(self.model.trips.values())))
        driver = {"own": trip.driver, "any": None}.get(by, by)
        epoch = self.model.drivers[trip.driver].epoch - epochs_back
        self.play("move", trip=trip.trip_id, move=move, driver=driver, epoch=None if driver is None else epoch)

    @rule(driver=drivers, status=st.sampled_from(["online", "on_break", "offline"]), back=st.sampled_from([0, None, 1]))
    def set_status(self, driver: str, status: str, back: int | None) -> None:
        """From its session, from an older one, or for it."""
        known = self.model.drivers.get(driver)
        epoch = None if back is None or known is None else known.epoch - back
        self.play("set_status", driver=driver, status=status, epoch=epoch)

    @rule(driver=drivers, online=st.booleans(), market=st.sampled_from([HERE, HERE, "boston"]))
    def sign_on(self, driver: str, online: bool, market: str) -> None:
        self.play("sign_on", driver=driver, market=market, online=online)

    @precondition(lambda self: any(driver.status != "online" for driver in self.model.drivers.values()))
    @rule()
    def go_back_to_work(self) -> None:
        self.all_work()

    @rule(driver=drivers, back=st.sampled_from([0, 0, 1]))
    def lose_a_socket(self, driver: str, back: int) -> None:
        known = self.model.drivers.get(driver)
        self.play("note_lost", driver=driver, epoch=(known.epoch if known else 1) - back)

    # operators

    @rule(driver=drivers, seats=seats, status=st.sampled_from([None, "on_break", "suspended"]))
    def put_driver(self, driver: str, seats: int, status: str | None) -> None:
        self.play("put_driver", driver=driver, seats=seats, status=status)

    @rule(driver=drivers, trips=st.sampled_from(["keep", "release", "end"]))
    def suspend(self, driver: str, trips: str) -> None:
        self.play("suspend", driver=driver, trips=trips)

    @precondition(has_rides)
    @rule(pick=picks, verb=st.sampled_from(["release", "complete"]))
    def end_by_hand(self, pick: int, verb: str) -> None:
        self.ends(pick, verb)

    @precondition(has_rides)
    @rule(pick=picks, driver=drivers, ttl_ms=ttls)
    def assign_by_hand(self, pick: int, driver: str, ttl_ms: int | None) -> None:
        """Also in place of another driver."""
        ride = picked(pick, list(self.model.rides))
        self.play("assign", ride=ride, driver=driver, trip=self.name("t"), ttl_ms=ttl_ms)

    @rule(new_rides=st.sampled_from(["refuse", "queue", None]))
    def pause_the_market(self, new_rides: str | None) -> None:
        self.play("pause", new_rides=new_rides)

    # strangers

    @rule(pick=picks, verb=st.sampled_from(["cancel", "redirect", "move", "release", "complete", "assign"]))
    def meddle(self, pick: int, verb: str) -> None:
        """With a ride of another client, and with rides and trips that there are not."""
        rides = list(self.model.rides) if verb in ("cancel", "redirect") else []
        args: dict[str, Any] = {"ride": picked(pick, [*rides, "r999"])}
        match verb:
            case "cancel":
                args |= {"client": "eve", "actor": "rider"}
            case "redirect":
                args |= {"client": "eve", "actor": "rider", "dropoff": "museum"}
            case "move":
                args = {"trip": "t999", "move": "accept", "driver": "d1", "epoch": None}
            case "assign":
                args |= {"driver": "d1", "trip": "t999", "ttl_ms": None}
        self.play(verb, **args)

    # time

    @rule(ms=spans_ms, swept=st.booleans())
    def time_passes(self, ms: int, swept: bool) -> None:
        self.pass_time(ms)
        self.sweeps(now=swept)

    @precondition(has_rides)
    @rule(pick=picks, ms=spans_ms, swept=st.booleans())
    def a_ride_waits(self, pick: int, ms: int, swept: bool) -> None:
        self.age_ride(picked(pick, list(self.model.rides)), ms)
        self.sweeps(now=swept)

    @precondition(has_trips())
    @rule(pick=picks, ms=spans_ms, swept=st.booleans())
    def a_trip_takes_long(self, pick: int, ms: int, swept: bool) -> None:
        self.age_trip(picked(pick, self.model.live_trips()).trip_id, ms)
        self.sweeps(now=swept)

    @precondition(lambda self: any(driver.lost_ms is not None for driver in self.model.drivers.values()))
    @rule(pick=picks, ms=spans_ms)
    def a_socket_stays_away(self, pick: int, ms: int) -> None:
        lost = [driver.driver_id for driver in self.model.drivers.values() if driver.lost_ms is not None]
        self.age_loss(picked(pick, lost), ms)
        self.sweeps()

    # faults

    @rule(fault=st.sampled_from(list(Fault)), again=st.booleans())
    def the_next_commit_fails(self, fault: Fault, again: bool) -> None:
        self.fault, self.repeats = fault, again

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat_the_last_command(self) -> None:
        self.play_again()


#: After ten examples Hypothesis goes over to variants of what it has, which all do much the same here.
EXAMPLES_AT_ONCE = 9
#: So many times that: the seconds of a usual run.
ROUNDS = 3


def run(url: str, rounds: int) -> Reached:
    """Raises where the store and the model do not agree."""
    reached = Reached()
    with asyncio.Runner() as runner:
        side = StoreSide(url, runner)
        try:
            for _ in range(rounds):
                run_state_machine_as_test(
                    partial(Lifecycle, side, reached),  # type: ignore[arg-type]  # whatever makes a machine
                    settings=settings(
                        max_examples=EXAMPLES_AT_ONCE,
                        stateful_step_count=30,
                        deadline=None,
                        database=None,
                        print_blob=True,
                        report_multiple_bugs=False,
                        suppress_health_check=list(HealthCheck),
                    ),
                )
        finally:
            side.close()
    lacking = sorted(ROWS - reached.rows, key=str)
    sys.stdout.write(f"{len(ROWS) - len(lacking)} of {len(ROWS)} rows of the table were taken, without {lacking}\n")
    assert reached.rows <= ROWS
    return reached


@pytest.fixture(params=["sqlite", "mysql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the newest schema; each example empties it."""
    if request.param == "sqlite":
        yield migrated(sqlite_url(tmp_path))
        return
    with fresh_database(request.getfixturevalue("mysql_url")) as url:
        yield migrated(url)


@pytest.mark.timeout(600)
def test_rides_trips_and_drivers_live_as_the_rules_say(database_url: str) -> None:
    """Not all of the table each time, but never a shallow part of it alone."""
    reached = run(database_url, ROUNDS)
    assert len(reached.rows) > len(ROWS) // 2


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="takes many minutes: HEXHAIL_TEST_LONG=1 runs it")
@pytest.mark.timeout(7200)
def test_every_row_and_every_answer_is_reached_and_all_live_as_the_rules_say(database_url: str) -> None:
    reached = run(database_url, 20 * ROUNDS)
    assert reached.rows == ROWS
    assert reached.codes == {code.value for code in Code}
    assert reached.answers == ANSWERS
    assert reached.faults == {fault.name for fault in Fault}
