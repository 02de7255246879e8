"""One example of the lifecycle: commands given to a store and to the model alike, an ordinary working day first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine

from tests.lifecycle_checks import TOLD_BY_IDS, Checks
from tests.lifecycle_model import Model
from tests.lifecycle_store import Fault, StoreSide
from tests.lifecycle_world import (
    FINAL,
    HERE,
    HOUR_MS,
    LOST_GRACE_MS,
    MINUTE_MS,
    OFFER_TTL_MS,
    Answer,
    Pair,
    Ride,
    Trip,
)

T = TypeVar("T")
#: A move, and the states of the ride and of its trip that it began from.
Row = tuple[str, str, str | None]
RIDES_MAX = 12
DRIVERS = ("d1", "d2", "d3", "d4")
#: They work from the beginning; nobody knows the fourth.
AT_WORK = DRIVERS[:3]
FAR = ("in_progress", "arrived", "assigned", "offered", "scheduled", "searching")
#: An example that really takes longer ends: limits are not to pass by themselves.
EXAMPLE_MS_MAX = 15_000


def picked(pick: int, among: Sequence[T]) -> T:
    """One of them, counted round."""
    return among[pick % len(among)]


@dataclass(frozen=True, slots=True)
class Reached:
    """How deep the examples of a run have gone."""

    rows: set[Row] = field(default_factory=set)
    codes: set[str] = field(default_factory=set)  # of rides' events and of drivers' rows
    answers: set[str] = field(default_factory=set)
    faults: set[str] = field(default_factory=set)


class Machine(RuleBasedStateMachine):
    """Gives each command to both sides, and looks at all rows after it."""

    def __init__(self, side: StoreSide, reached: Reached) -> None:
        super().__init__()
        side.begin()
        self.side = side
        self.model = Model()
        self.checks = Checks(self.model, side)
        self.reached = reached
        self.fault: Fault | None = None  # at the next COMMIT
        self.repeats = False  # whether a command that ended with its process is given again at once
        self.looks = True
        self.is_sound = True
        self.last: tuple[str, dict[str, Any]] | None = None
        self.names = 0
        self.matchers = 1

    def teardown(self) -> None:
        if self.is_sound:  # else a step has said already what is wrong
            self.fault, self.looks = None, False
            for pick in range(len(self.model.rides)):
                self.asks_again(pick)
            self.checks.look()
            self.checks.histories()
        self.reached.rows.update(self.model.taken)
        self.reached.codes.update(
            event.code for ride in self.model.rides.values() for event in ride.events if event.code
        )

    def play(self, verb: str, **args: Any) -> None:
        """The command, the comparison of its answer, and a look at all rows."""
        if self.side.now_ms - self.side.started_ms > EXAMPLE_MS_MAX:
            return
        self.is_sound = False
        self.last = (verb, args)
        fault, self.fault = self.fault, None
        heard = self.side.do(verb, args, fault)
        struck = fault if self.side.faults.struck else None
        if struck is not None:
            self.reached.faults.add(struck.name)
        note(f"{verb}({', '.join(f'{name}={value!r}' for name, value in args.items())}) {struck or ''}")
        if heard is not None:
            expected = self._model_does(verb, args)
            if struck is Fault.CUT_AFTER and verb not in TOLD_BY_IDS:
                expected = self._model_does(verb, args)  # done once more, to settle what became of it
            self.checks.answer(heard, expected, struck)
        elif struck is Fault.CRASH_AFTER:
            self._model_does(verb, args, comes_to_keys=not self.model.would_sweep(verb))
        self.reached.codes.update(driver.code for driver in self.model.drivers.values() if driver.code)
        if self.looks:
            self.checks.look()
        self.is_sound = True
        if heard is None and self.repeats:
            self.play_again()

    def _model_does(self, verb: str, args: dict[str, Any], *, comes_to_keys: bool = True) -> Answer:
        expected = self.model.do(verb, args)
        self.reached.answers.add(expected.word)
        self.checks.note_changed()
        # A transaction of its own: a process that ends with the first one does not come to it.
        if expected.word == "hints" and verb == "sweep" and comes_to_keys:
            self.model.forget_keys()
        return expected

    def play_again(self) -> None:
        assert self.last is not None
        verb, args = self.last
        if verb == "request":
            args = args | {"ride": self.name("r")}  # as the service does: each try has an id of its own
        self.play(verb, **args)

    def name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names:03}"

    # time

    def pass_time(self, ms: int) -> None:
        note(f"{ms} ms pass")
        self.side.pass_time(ms)
        self.model.pass_time(ms)

    def age_ride(self, ride: str, ms: int) -> None:
        note(f"{ride} has waited {ms} ms longer")
        self.side.age_ride(ride, ms)
        self.model.age_ride(ride, ms)

    def age_trip(self, trip: str, ms: int) -> None:
        note(f"{trip} has taken {ms} ms longer")
        self.side.age_trip(trip, ms)
        self.model.age_trip(trip, ms)

    def age_loss(self, driver: str, ms: int) -> None:
        note(f"{driver} has been lost {ms} ms longer")
        self.side.age_loss(driver, ms)
        self.model.age_loss(driver, ms)

    def sweeps(self, *, now: bool = True) -> None:
        """Time alone changes no row; whoever sweeps then sees it."""
        if now:
            self.play("sweep", token=self.model.token)
        else:
            self.checks.look()

    # commands that make sense

    def opens(self, seats: Sequence[int]) -> None:
        self.looks = False
        self.play("take_lease", holder="matcher-1")
        for driver, number in zip(AT_WORK, seats, strict=True):
            self.play("put_driver", driver=driver, seats=number, status=None)
            self.play("sign_on", driver=driver, market=HERE, online=True)
        self.looks = True

    def ask(self, **options: Any) -> str:
        usual = {"client": "ann", "key": None, "body": "b", "seats": 2, "dropoff": "museum", "wait_ms": 5 * HOUR_MS}
        ride = self.name("r")
        self.play("request", **{"ride": ride, "pickup_in_ms": None} | usual | options)
        return ride

    def match(self, ride: str, driver: str, ttl_ms: int | None) -> None:
        slot = "next" if self.model.slots_of(driver) else "now"
        pair = Pair(ride, self.model.rides[ride].version, driver, slot, self.name("t"))
        self.play("commit", token=self.model.token, pairs=(pair,), ttl_ms=ttl_ms)

    def command(self, move: str, trip: Trip) -> None:
        """By the trip's driver, from its present session."""
        epoch = self.model.drivers[trip.driver].epoch
        self.play("move", trip=trip.trip_id, move=move, driver=trip.driver, epoch=epoch)

    def some_ride(self, pick: int) -> Ride | None:
        """One that has got far, mostly."""
        of_state = {state: self.model.in_states(state) for state in (*FAR, *FINAL)}
        some = [ride for state in FAR for ride in of_state[state][: 3 if state != "searching" else 1]]
        ended = [ride for state in FINAL for ride in of_state[state][-1:]]
        among = some + ended[:1]
        return picked(pick, among) if among else None

    def whose(self, ride: Ride, by_hand: bool) -> dict[str, Any]:
        return {"client": None, "actor": "operator"} if by_hand else {"client": ride.client, "actor": "rider"}

    # steps of an ordinary day; one that finds nothing to do does nothing

    def asks(self, pick: int) -> None:
        if len(self.model.rides) < RIDES_MAX:
            self.ask(key=self.name("k"))

    def asks_for_later(self, pick: int) -> None:
        if len(self.model.rides) < RIDES_MAX:
            self.ask(pickup_in_ms=3 * HOUR_MS, key=self.name("k"))

    def matches(self, pick: int, ttl_ms: int | None = None) -> None:
        waiting = self.model.waiting() or self._new_one()
        free = self._at_work(set())
        if waiting and free:
            self.match(picked(pick, waiting).ride_id, picked(pick, free), ttl_ms)

    def chains(self, pick: int, ttl_ms: int | None = None) -> None:
        waiting = self.model.waiting() or self._new_one()
        busy = self._at_work({"now"})
        if waiting and busy:
            self.match(picked(pick, waiting).ride_id, picked(pick, busy), ttl_ms)

    def _at_work(self, slots: set[str]) -> list[str]:
        online = [driver for driver in AT_WORK if self.model.drivers[driver].status == "online"]
        return [driver for driver in online if self.model.slots_of(driver) == slots]

    def _new_one(self) -> list[Ride]:
        self.asks(0)
        return self.model.waiting()

    def commands(self, pick: int, move: str, *states: str, slot: str | None = None) -> None:
        trips = self.model.live_trips(*states, slot=slot)
        if trips:
            self.command(move, picked(pick, trips))

    def waits_in_vain(self, pick: int) -> None:
        trips = self.model.live_trips("arrived")
        if trips:
            trip = picked(pick, trips)
            self.age_trip(trip.trip_id, 4 * HOUR_MS + MINUTE_MS)
            self.command("no_show", trip)

    def runs_out(self, pick: int, hours: int, *states: str, slot: str | None = None) -> None:
        """A trip's limit, and the sweep that sees it."""
        trips = self.model.live_trips(*states, slot=slot)
        if trips:
            self.age_trip(picked(pick, trips).trip_id, hours * HOUR_MS + MINUTE_MS)
            self.sweeps()

    def grows_old(self, pick: int, hours: int, *states: str) -> None:
        """A ride's limit, and the sweep that sees it."""
        rides = self.model.in_states(*states)
        if rides:
            self.age_ride(picked(pick, rides).ride_id, hours * HOUR_MS + MINUTE_MS)
            self.sweeps()

    def ends(self, pick: int, verb: str, **by_hand: bool) -> None:
        ride = self.some_ride(pick)
        if ride is not None:
            self.play(verb, ride=ride.ride_id, **(self.whose(ride, **by_hand) if by_hand else {}))

    def goes_elsewhere(self, pick: int) -> None:
        ride = self.some_ride(pick)
        if ride is not None:
            to = "museum" if ride.dropoff == "station" else "station"
            self.play("redirect", ride=ride.ride_id, dropoff=to, **self.whose(ride, by_hand=pick > 8))

    def reassigns(self, pick: int) -> None:
        ride = self.some_ride(pick)
        if ride is not None:
            ttl_ms = OFFER_TTL_MS if pick > 8 else None
            self.play("assign", ride=ride.ride_id, driver=picked(pick, AT_WORK), trip=self.name("t"), ttl_ms=ttl_ms)

    def takes_a_break(self, pick: int) -> None:
        driver = picked(pick, AT_WORK)
        self.play("set_status", driver=driver, status="on_break", epoch=self.model.drivers[driver].epoch)

    def all_work(self) -> None:
        for driver in list(self.model.drivers.values()):
            if driver.status != "online":
                self.play("set_status", driver=driver.driver_id, status="online", epoch=None)
            if driver.market != HERE:
                self.play("sign_on", driver=driver.driver_id, market=HERE, online=True)

    def speaks_from_an_old_session(self, pick: int) -> None:
        """The driver signs on anew, and what its old session still says is not heard."""
        trips = self.model.live_trips()
        if trips:
            trip = picked(pick, trips)
            old = self.model.drivers[trip.driver].epoch
            self.play("sign_on", driver=trip.driver, market=HERE, online=True)
            for move in sorted(self.model.allowed(trip)):
                self.play("move", trip=trip.trip_id, move=move, driver=trip.driver, epoch=old)
            self.play("set_status", driver=trip.driver, status="on_break", epoch=old)
            self.play("note_lost", driver=trip.driver, epoch=old)

    def loses_its_socket(self, pick: int) -> None:
        """While an offer stands: for good, or it comes back in time, or the offer runs out meanwhile."""
        trips = self.model.live_trips("offered")
        if not trips:
            return
        trip = picked(pick, trips)
        self.play("note_lost", driver=trip.driver, epoch=self.model.drivers[trip.driver].epoch)
        match pick % 3:
            case 0:
                self.pass_time(LOST_GRACE_MS + 3 * MINUTE_MS)
            case 1:
                self.play("sign_on", driver=trip.driver, market=HERE, online=True)
                self.pass_time(LOST_GRACE_MS + 3 * MINUTE_MS)
            case _:
                self.age_trip(trip.trip_id, HOUR_MS + MINUTE_MS)
        self.sweeps()

    def comes_too_late(self, pick: int) -> None:
        """The trip's time is over, although nobody has swept yet."""
        trips = self.model.live_trips()
        if trips:
            trip = picked(pick, trips)
            self.age_trip(trip.trip_id, 7 * HOUR_MS + MINUTE_MS)
            for move in ("arrive", *sorted(self.model.in_order(trip))):
                self.command(move, trip)
            self.sweeps()

    def an_hour_passes(self, pick: int) -> None:
        self.pass_time(HOUR_MS + MINUTE_MS)
        self.sweeps()

    def ignores_offers(self, pick: int) -> None:
        """One after the other, until the driver is taken for absent; or it answers one in between."""
        answer = "decline" if pick % 2 else "accept"
        driver = next(iter(self._at_work(set())), None)
        for move in (None, None) if pick < 6 else (None, answer, None):
            waiting = self.model.waiting() or self._new_one()
            if driver is None or driver not in self._at_work(set()) or not waiting:
                return
            self.match(waiting[0].ride_id, driver, OFFER_TTL_MS)
            self._answers(driver, move)

    def ignores_two_offers(self, pick: int) -> None:
        """That of its present place and that of the next one, at once."""
        for driver in self._at_work(set())[:1]:
            for _ in range(2):
                for ride in (self.model.waiting() or self._new_one())[:1]:
                    self.match(ride.ride_id, driver, OFFER_TTL_MS)
            self.an_hour_passes(pick)

    def _answers(self, driver: str, move: str | None) -> None:
        for trip in [trip for trip in self.model.live_trips("offered") if trip.driver == driver]:
            if move is None:
                self.age_trip(trip.trip_id, HOUR_MS + MINUTE_MS)
                self.sweeps()
            else:
                self.command(move, trip)
                self.play("complete", ride=trip.ride)

    def asks_again(self, pick: int) -> None:
        """As a client does that has not heard the answer."""
        keyed = [ride for ride in self.model.rides.values() if ride.key is not None]
        if keyed:
            ride = picked(pick, keyed)
            self.ask(client=ride.client, key=ride.key, body=ride.body)

    def fails_at_the_next_commit(self, pick: int) -> None:
        self.fault, self.repeats = picked(pick, list(Fault)), pick > 5

    def stands_still(self, pick: int) -> None:
        trips = self.model.live_trips("accepted", "arrived", "offered")
        if trips:
            trip = picked(pick, trips)
            self.play("stall", token=self.model.token, ride=trip.ride, trip=trip.trip_id)


Step = Callable[[Machine, int], None]
#: An ordinary day's steps, each with how often it comes: what leads on more often than what ends.
STEPS: Sequence[tuple[int, str, Step]] = (
    (1, "rest", lambda it, pick: None),  # what the others shrink to
    (3, "ask", Machine.asks),
    (1, "ask for later", Machine.asks_for_later),
    (1, "ask again", Machine.asks_again),
    (5, "match", Machine.matches),
    (3, "offer", lambda it, pick: it.matches(pick, OFFER_TTL_MS)),
    (3, "chain", Machine.chains),
    (3, "offer as the next", lambda it, pick: it.chains(pick, OFFER_TTL_MS)),
    (4, "accept", lambda it, pick: it.commands(pick, "accept", "offered")),
    (1, "decline", lambda it, pick: it.commands(pick, "decline", "offered")),
    (6, "arrive", lambda it, pick: it.commands(pick, "arrive", "accepted", slot="now")),
    (5, "start", lambda it, pick: it.commands(pick, "start", "arrived")),
    (2, "complete", lambda it, pick: it.commands(pick, "complete", "in_progress")),
    (1, "cancel the trip", lambda it, pick: it.commands(pick, "cancel", "accepted", "arrived")),
    (1, "report a no-show", Machine.waits_in_vain),
    (2, "cancel", lambda it, pick: it.ends(pick, "cancel", by_hand=False)),
    (2, "redirect", Machine.goes_elsewhere),
    (1, "cancel by hand", lambda it, pick: it.ends(pick, "cancel", by_hand=True)),
    (2, "complete by hand", lambda it, pick: it.ends(pick, "complete")),
    (1, "release", lambda it, pick: it.ends(pick, "release")),
    (2, "reassign", Machine.reassigns),
    (1, "take a break", Machine.takes_a_break),
    (2, "go back to work", lambda it, pick: it.all_work()),
    (1, "speak from an old session", Machine.speaks_from_an_old_session),
    (1, "lose the socket", Machine.loses_its_socket),
    (4, "fail at the next commit", Machine.fails_at_the_next_commit),
    (1, "stall", Machine.stands_still),
    (1, "let an offer run out", lambda it, pick: it.runs_out(pick, 1, "offered")),
    (1, "come too late", Machine.comes_too_late),
    (1, "let an hour pass", Machine.an_hour_passes),
    (1, "ignore offers", Machine.ignores_offers),
    (1, "ignore two offers", Machine.ignores_two_offers),
    (1, "let the next wait", lambda it, pick: it.runs_out(pick, 4, "accepted", slot="next")),
    (1, "let a trip be abandoned", lambda it, pick: it.runs_out(pick, 7, "accepted", "arrived", "in_progress")),
    (1, "let a ride expire", lambda it, pick: it.grows_old(pick, 25, "scheduled", "searching", "offered")),
    (1, "let a search begin", lambda it, pick: it.grows_old(pick, 4, "scheduled")),
)
ORDINARY: Mapping[str, Step] = {name: step for _, name, step in STEPS}
#: Each name as often as it is to come.
OFTEN: Sequence[str] = [name for often, name, _ in STEPS for _ in range(often)]
