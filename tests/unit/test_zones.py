"""Queues at places: who enters, keeps, gets back or loses a place, and whose turn it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geo.area import Circle, Polygon
from geo.model import DriverId, LatLng, MarketId
from matcher.model import ClientId, Code, Ride, RideId, RideState, TripId, TripState
from matcher.zones import (
    NOBODY,
    Change,
    Kind,
    Pin,
    Place,
    Queues,
    Sight,
    Standing,
    TripSeen,
    Zone,
    after,
    pin,
    queues_of,
    step,
)

JFK, LGA = LatLng(40.644, -73.782), LatLng(40.777, -73.873)
KEEP_MS = 60_000
ZONES = (Zone("jfk", Circle(JFK, 1500.0), KEEP_MS), Zone("lga", Circle(LGA, 1000.0), KEEP_MS))
NOW = 1_000_000


def place(name: str, entered_at_ms: int = 0, zone: str = "jfk", **rest: Any) -> Place:
    return Place(DriverId(name), zone, entered_at_ms, **rest)


def trip(
    number: int = 1,
    state: TripState = TripState.OFFERED,
    code: str | None = None,
    *,
    started: bool = False,
    ended_at_ms: int | None = None,
) -> TripSeen:
    if not state.is_live and ended_at_ms is None:
        ended_at_ms = NOW - 1
    return TripSeen(TripId(f"t{number}"), state, started, ended_at_ms, code)


def standing(
    *places: Place,
    trips: Mapping[str, Sequence[TripSeen]] | None = None,
    offline: Iterable[str] = (),
    others: Iterable[str] = (),
    now_ms: int = NOW,
) -> Standing:
    online = {each.driver_id for each in places} | {DriverId(name) for name in others}
    of_driver = {DriverId(name): some for name, some in (trips or {}).items()}
    return Standing(now_ms, places, frozenset(online - set(offline)), of_driver)


def seen(*, live_since_ms: int | None = 0, **inside: str) -> Sight:
    """`jfk="a b"`: these are inside."""
    return Sight({zone: frozenset(map(DriverId, names.split())) for zone, names in inside.items()}, live_since_ms)


BLIND = seen(live_since_ms=None)


def kinds(changes: Sequence[Change]) -> dict[str, str]:
    return {change.place.driver_id: change.kind.value for change in changes}


def only(changes: Sequence[Change]) -> Change:
    (change,) = changes
    return change


class TestEntering:
    def test_an_idle_driver_seen_inside_enters_at_the_tail(self) -> None:
        before = [place("a", 10)]
        change = only(step(ZONES, standing(*before, others="b"), seen(jfk="a b")))
        assert change == Change(Kind.ENTER, place("b", NOW))

    def test_those_who_come_together_stand_in_the_order_of_their_ids(self) -> None:
        changes = step(ZONES, standing(others="cab"), seen(jfk="c a b"))
        assert queues_of(after([], changes)).waiting == {"jfk": ("a", "b", "c")}

    @pytest.mark.parametrize(
        "how",
        [
            {"offline": "b"},
            {"trips": {"b": [trip()]}},
            {"trips": {"b": [trip(state=TripState.IN_PROGRESS, started=True)]}},
        ],
    )
    def test_who_is_not_online_or_has_a_trip_does_not_enter(self, how: dict[str, Any]) -> None:
        assert step(ZONES, standing(others="b", **how), seen(jfk="b")) == []

    def test_nobody_enters_by_positions_that_are_not_live(self) -> None:
        assert step(ZONES, standing(others="b"), seen(jfk="b", live_since_ms=None)) == []

    def test_where_zones_overlap_the_first_one_is_entered(self) -> None:
        changes = step(ZONES, standing(others="b"), seen(jfk="b", lga="b"))
        assert [change.place.zone for change in changes] == ["jfk"]
        stays = standing(place("b", zone="lga"))
        assert step(ZONES, stays, seen(jfk="b", lga="b")) == []

    def test_the_tail_is_behind_everybody_even_when_the_clock_was_set_back(self) -> None:
        before = [place("z", NOW + 5000)]
        changes = step(ZONES, standing(*before, others="a"), seen(jfk="a z"))
        assert queues_of(after(before, changes)).waiting == {"jfk": ("z", "a")}


class TestBeingAway:
    def test_who_is_not_seen_is_away_and_keeps_its_place(self) -> None:
        change = only(step(ZONES, standing(place("a", 10), place("b", 20)), seen(jfk="b")))
        assert change == Change(Kind.AWAY, place("a", 10, away_since_ms=NOW))

    def test_who_comes_back_in_time_has_the_same_place(self) -> None:
        before = [place("a", 10, away_since_ms=NOW - KEEP_MS + 1), place("b", 20)]
        assert kinds(step(ZONES, standing(*before), seen(jfk="b"))) == {}
        changes = step(ZONES, standing(*before), seen(jfk="a b"))
        assert kinds(changes) == {"a": "back"}
        assert queues_of(after(before, changes)).waiting == {"jfk": ("a", "b")}

    def test_who_stays_away_for_too_long_leaves(self) -> None:
        gone = place("a", 10, away_since_ms=NOW - KEEP_MS)
        assert step(ZONES, standing(gone), seen()) == [Change(Kind.LEAVE, gone)]

    def test_while_positions_are_not_live_nobody_is_away(self) -> None:
        assert step(ZONES, standing(place("a"), place("b", away_since_ms=0)), BLIND) == []

    def test_time_away_counts_only_since_positions_are_live(self) -> None:
        gone = place("a", away_since_ms=0)
        assert step(ZONES, standing(gone), seen(live_since_ms=NOW - KEEP_MS + 1)) == []
        assert kinds(step(ZONES, standing(gone), seen(live_since_ms=NOW - KEEP_MS))) == {"a": "leave"}

    def test_who_waits_in_another_zone_leaves_this_one_first(self) -> None:
        gone = place("a", away_since_ms=0)
        assert kinds(step(ZONES, standing(gone), seen(lga="a"))) == {"a": "leave"}
        assert kinds(step(ZONES, standing(others="a"), seen(lga="a"))) == {"a": "enter"}

    def test_a_place_is_lost_at_once_off_duty_or_where_the_zone_is_gone(self) -> None:
        before = [place("off"), place("old", zone="ewr"), place("trip", trip_id=TripId("t1"))]
        found = standing(*before, offline=["off", "trip"], trips={"trip": [trip()]})
        assert kinds(step(ZONES, found, BLIND)) == {"off": "leave", "old": "leave", "trip": "leave"}


RIDERS = [
    (TripState.WITHDRAWN, Code.RIDER_CANCELLED),
    (TripState.NO_SHOW, Code.NO_SHOW),
    (TripState.WITHDRAWN, Code.OPERATOR_CANCELLED),
    (TripState.TIMED_OUT, Code.NO_DRIVER_FOUND),
    (TripState.WITHDRAWN, Code.RELEASED),
    (TripState.WITHDRAWN, Code.RUNNING_LATE),
    (TripState.WITHDRAWN, None),
    (TripState.NO_SHOW, None),
]
DRIVERS = [
    (TripState.DECLINED, Code.DECLINED),
    (TripState.TIMED_OUT, Code.OFFER_EXPIRED),
    (TripState.CANCELLED, Code.DRIVER_CANCELLED),
    (TripState.WITHDRAWN, Code.CONNECTION_LOST),
    (TripState.WITHDRAWN, Code.STALLED),
    (TripState.DECLINED, None),
    (TripState.TIMED_OUT, None),
    (TripState.CANCELLED, None),
]
HELD = place("a", 10, trip_id=TripId("t1"))


class TestTrips:
    @pytest.mark.parametrize("state", [TripState.OFFERED, TripState.ACCEPTED, TripState.ARRIVED])
    def test_a_place_is_held_while_its_drivers_trip_has_not_started(self, state: TripState) -> None:
        """It is not served meanwhile, and where its driver is does not matter."""
        before = [place("a", 10, away_since_ms=5), place("b", 20)]
        found = {"a": [trip(state=state)]}
        changes = step(ZONES, standing(*before, trips=found), seen(jfk="b"))
        assert only(changes) == Change(Kind.HOLD, HELD)
        assert queues_of(after(before, changes)).waiting == {"jfk": ("b",)}
        assert queues_of(after(before, changes)).queued == {"a", "b"}
        assert step(ZONES, standing(HELD, trips=found), seen()) == []

    @pytest.mark.parametrize(
        "ended",
        [
            trip(state=TripState.IN_PROGRESS, started=True),
            trip(state=TripState.COMPLETED, started=True, code=Code.COMPLETED),
            trip(state=TripState.WITHDRAWN, started=True, code=Code.OPERATOR_CANCELLED),
        ],
    )
    @pytest.mark.parametrize("before", [HELD, place("a", 10)])
    def test_once_the_trip_has_started_the_place_is_gone(self, ended: TripSeen, before: Place) -> None:
        assert kinds(step(ZONES, standing(before, trips={"a": [ended]}), seen(jfk="a"))) == {"a": "leave"}

    @pytest.mark.parametrize(("state", "code"), RIDERS)
    def test_a_trip_that_fails_without_the_driver_gives_the_old_place_back(
        self, state: TripState, code: Code | None
    ) -> None:
        found = standing(HELD, place("b", 20), trips={"a": [trip(state=state, code=code)]})
        back = only(step(ZONES, found, seen(jfk="a b")))
        assert back == Change(Kind.RESTORE, place("a", 10))
        on_its_way = only(step(ZONES, found, seen(jfk="b")))
        assert on_its_way == Change(Kind.RESTORE, place("a", 10, away_since_ms=NOW))

    @pytest.mark.parametrize(("state", "code"), DRIVERS)
    @pytest.mark.parametrize("before", [HELD, place("a", 10)])
    def test_a_trip_that_fails_by_the_driver_sends_it_to_the_tail(
        self, state: TripState, code: Code | None, before: Place
    ) -> None:
        """Also one that came and went between two looks."""
        places = [before, place("b", 20)]
        found = standing(*places, trips={"a": [trip(state=state, code=code)]})
        changes = step(ZONES, found, seen(jfk="a b"))
        assert kinds(changes) == {"a": "to_the_end"}
        assert queues_of(after(places, changes)).waiting == {"jfk": ("b", "a")}
        assert step(ZONES, replace(found, places=after(places, changes)), seen(jfk="a b")) == []
        assert kinds(step(ZONES, found, seen(jfk="b"))) == {"a": "leave"}

    def test_whether_one_at_fault_is_still_there_is_seen_when_positions_are_back(self) -> None:
        found = standing(HELD, trips={"a": [trip(state=TripState.DECLINED, code=Code.DECLINED)]})
        assert step(ZONES, found, BLIND) == []

    def test_a_trip_that_ended_before_the_driver_entered_does_not_concern_the_place(self) -> None:
        before = place("a", NOW - 100)
        old = trip(state=TripState.COMPLETED, started=True, ended_at_ms=NOW - 100)
        assert step(ZONES, standing(before, trips={"a": [old]}), seen(jfk="a")) == []

    def test_a_lost_rider_between_two_looks_changes_nothing(self) -> None:
        found = {"a": [trip(state=TripState.WITHDRAWN, code=Code.RIDER_CANCELLED)]}
        assert step(ZONES, standing(place("a", 10), trips=found), seen(jfk="a")) == []

    def test_a_new_trip_after_one_at_fault_is_held_at_the_tail(self) -> None:
        found = {"a": [trip(1, TripState.DECLINED, Code.DECLINED), trip(2)]}
        places = [HELD, place("b", 20)]
        changes = step(ZONES, standing(*places, trips=found), BLIND)
        assert only(changes) == Change(Kind.TO_THE_END, place("a", NOW, trip_id=TripId("t2")))

    def test_the_tail_is_behind_the_end_of_the_trip_at_fault(self) -> None:
        found = {"a": [trip(state=TripState.DECLINED, code=Code.DECLINED, ended_at_ms=NOW + 50)]}
        change = only(step(ZONES, standing(HELD, trips=found), seen(jfk="a")))
        assert change.place.entered_at_ms == NOW + 51


# A city at random: drivers come, go, fall silent, and get trips that end in every way.

NAMES = tuple(DriverId(name) for name in "abcdef")
#: Such as make for long queues are likelier.
EVENTS = st.sampled_from(
    ["in jfk"] * 5
    + ["offer", "rider", "driver", "live", "on"] * 2
    + ["in lga", "out", "start", "complete", "off", "flush", "blind"]
)


@dataclass
class City:
    """What a keeper would find, and what it makes of the places look by look."""

    now_ms: int = NOW
    live_since_ms: int | None = NOW
    where: dict[DriverId, str] = field(default_factory=dict)
    off: set[DriverId] = field(default_factory=set)
    trips: dict[DriverId, list[TripSeen]] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    numbers: Iterable[int] = field(default_factory=itertools.count)

    def does(self, name: DriverId, event: str) -> None:
        if event.startswith("in "):
            self.where[name] = event[3:]
        elif event == "out":
            self.where.pop(name, None)
        elif event == "flush":
            self.where.clear()
        elif event in ("blind", "live"):
            is_live = event == "live"
            self.live_since_ms = (self.live_since_ms or self.now_ms) if is_live else None
        elif event in ("off", "on"):
            (self.off.add if event == "off" else self.off.discard)(name)
        else:
            self._trip(name, event)

    def _trip(self, name: DriverId, event: str) -> None:
        some = self.trips.setdefault(name, [])
        is_live = bool(some) and some[-1].ended_at_ms is None
        if event == "offer":
            if not is_live:
                some.append(TripSeen(TripId(f"t{next(iter(self.numbers))}"), TripState.OFFERED, False, None, None))
        elif is_live:
            some[-1] = self._moved(some[-1], event)

    def _moved(self, last: TripSeen, event: str) -> TripSeen:
        if event == "start":
            return replace(last, state=TripState.IN_PROGRESS, was_started=True)
        state, code = {
            "complete": (TripState.COMPLETED, Code.COMPLETED),
            "rider": (TripState.WITHDRAWN, Code.RIDER_CANCELLED),
            "driver": (TripState.DECLINED, Code.DECLINED),
        }[event]
        started = last.was_started or event == "complete"
        return replace(last, state=state, end_code=code, was_started=started, ended_at_ms=self.now_ms)

    def looks(self) -> list[Change]:
        online = frozenset(NAMES) - self.off
        found = Standing(self.now_ms, self.places, online, {name: tuple(some) for name, some in self.trips.items()})
        inside = {zone.id: frozenset(n for n, at in self.where.items() if at == zone.id) for zone in ZONES}
        changes = step(ZONES, found, Sight(inside if self.live_since_ms is not None else {}, self.live_since_ms))
        self.places = after(self.places, changes)
        return changes


MOMENTS = st.lists(
    st.tuples(st.integers(1, KEEP_MS // 2), st.lists(st.tuples(st.sampled_from(NAMES[:4]), EVENTS), max_size=8)),
    min_size=2,
    max_size=16,
)


def order(places: Sequence[Place], of: set[DriverId], zone: str) -> list[DriverId]:
    return [each.driver_id for each in places if each.zone == zone and each.driver_id in of]


@settings(max_examples=400, deadline=None)
@given(MOMENTS)
def test_whoever_stays_keeps_its_turn_and_newcomers_stand_behind(moments: list[Any]) -> None:
    city = City()
    for wait_ms, events in moments:
        city.now_ms += wait_ms
        for name, event in events:
            city.does(name, event)
        before = list(city.places)
        moved = {each.place.driver_id for each in city.looks() if each.kind in (Kind.ENTER, Kind.TO_THE_END)}
        assert len({each.driver_id for each in city.places}) == len(city.places)
        stayed = {each.driver_id for each in before} & {each.driver_id for each in city.places} - moved
        for zone in ZONES:
            assert order(before, stayed, zone.id) == order(city.places, stayed, zone.id)
            everybody = order(city.places, stayed | moved, zone.id)
            assert everybody[: len(order(city.places, stayed, zone.id))] == order(city.places, stayed, zone.id)


@settings(max_examples=200, deadline=None)
@given(MOMENTS, st.lists(st.tuples(st.integers(1, KEEP_MS // 8), st.booleans()), min_size=1, max_size=7))
def test_the_loss_of_all_positions_costs_nobody_a_place(moments: list[Any], waits: list[tuple[int, bool]]) -> None:
    """P9: seen again within the time that places are kept for, everybody stands as before; what is blind is no time."""
    city = City()
    for wait_ms, events in moments:
        city.now_ms += wait_ms
        for name, event in events:
            city.does(name, event)
        city.looks()
    city.does(NAMES[0], "live")
    for each in city.places:
        city.where[each.driver_id] = each.zone
    city.looks()
    before, where = queues_of(city.places), dict(city.where)
    city.does(NAMES[0], "flush")
    for wait_ms, blind in waits:
        city.does(NAMES[0], "blind" if blind else "live")
        city.now_ms += 10 * wait_ms if blind else wait_ms
        assert not [each for each in city.looks() if each.kind is Kind.LEAVE]
    city.now_ms += KEEP_MS // 8
    city.where = where
    city.does(NAMES[0], "live")
    city.looks()
    after_all = queues_of(city.places)
    assert after_all.waiting == before.waiting
    assert after_all.queued == before.queued
    assert not after_all.away


# Whose turn it is


def ride(number: int, at: LatLng = JFK, *, queued_at_ms: int | None = None, **rest: Any) -> Ride:
    given_: dict[str, Any] = {
        "ride_id": RideId(f"r{number}"),
        "client_id": ClientId("c"),
        "market": MarketId("nyc"),
        "state": RideState.SEARCHING,
        "version": 1,
        "pickup": at,
        "dropoff": None,
        "seats": 1,
        "vehicle_class": "standard",
        "metadata": {},
        "requested_at_ms": number if queued_at_ms is None else queued_at_ms,
        "deadline_at_ms": NOW,
        "ended_at_ms": None,
        "end_reason": None,
        "trip": None,
    }
    return Ride(**(given_ | rest))


def queue(names: str, *, away: str = "", zone: str = "jfk") -> Queues:
    waiting = tuple(map(DriverId, names.split()))
    return Queues({zone: waiting}, frozenset(map(DriverId, away.split())), frozenset(waiting))


def turns(
    queues: Queues, *rides: Ride, cannot: Iterable[tuple[str, str]] = (), refused: Mapping[str, str] | None = None
) -> dict[str, str]:
    """`cannot` are pairs of a class and a driver; `refused` are drivers by ride."""
    barred = {RideId(name): frozenset(map(DriverId, some.split())) for name, some in (refused or {}).items()}
    excluded = set(cannot)
    pins = pin(queues, rides, ZONES, lambda one, name: (one.vehicle_class, name) not in excluded, barred)
    return {each.ride_id: each.driver_id for each in pins}


class TestTurns:
    def test_the_oldest_ride_goes_to_the_head(self) -> None:
        pins = pin(queue("a b c"), [ride(2), ride(1)], ZONES, lambda *_: True, {})
        assert pins == [
            Pin(RideId("r1"), DriverId("a"), "jfk", 1, 3),
            Pin(RideId("r2"), DriverId("b"), "jfk", 2, 3),
        ]

    def test_a_ride_keeps_its_place_in_time_and_ties_go_by_id(self) -> None:
        assert turns(queue("a b"), ride(3, queued_at_ms=5), ride(2, queued_at_ms=5), ride(1)) == {"r1": "a", "r2": "b"}
        scheduled = ride(1, requested_at_ms=1, search_at_ms=9)
        assert turns(queue("a"), scheduled, ride(2)) == {"r2": "a"}

    def test_who_cannot_serve_it_is_passed_over_and_keeps_its_turn_for_another(self) -> None:
        large = ride(1, vehicle_class="large")
        assert turns(queue("a b"), large, ride(2), cannot=[("large", "a")]) == {"r1": "b", "r2": "a"}

    def test_who_refused_the_ride_is_passed_over_for_that_one_alone(self) -> None:
        assert turns(queue("a b"), ride(1), ride(2), refused={"r1": "a"}) == {"r1": "b", "r2": "a"}

    def test_who_is_away_is_passed_over(self) -> None:
        assert turns(queue("a b", away="a"), ride(1), ride(2)) == {"r1": "b"}

    def test_a_ride_that_nobody_of_the_queue_can_serve_and_one_from_elsewhere_are_left(self) -> None:
        elsewhere = ride(2, LatLng(JFK.lat + 0.02, JFK.lon))
        assert turns(queue("a"), ride(1, vehicle_class="large"), elsewhere, cannot=[("large", "a")]) == {}
        assert turns(queue("a"), ride(1, LGA)) == {}
        assert turns(NOBODY, ride(1)) == {}
        assert turns(queue("a")) == {}

    def test_each_zone_serves_its_own(self) -> None:
        queues = Queues({"jfk": (DriverId("a"),), "lga": (DriverId("b"),)})
        assert turns(queues, ride(1, LGA), ride(2, JFK)) == {"r1": "b", "r2": "a"}

    def test_where_zones_overlap_the_queue_of_the_first_is_asked_first_and_then_the_others(self) -> None:
        """Who waits in the second one is kept for its rides alone: else nobody there would serve this one."""
        zones = (Zone("terminal", Circle(JFK, 300.0)), Zone("airport", Circle(JFK, 2000.0)))
        queues = Queues({"terminal": (DriverId("a"),), "airport": (DriverId("b"), DriverId("c"))})
        large = ride(3, vehicle_class="large")

        def can_serve(one: Ride, driver: DriverId) -> bool:
            return one.vehicle_class == "standard" or driver == "c"

        pins = pin(queues, [ride(1), ride(2), large], zones, can_serve, {})
        assert [(each.ride_id, each.driver_id, each.zone, each.place) for each in pins] == [
            ("r1", "a", "terminal", 1),
            ("r2", "b", "airport", 1),
            ("r3", "c", "airport", 2),
        ]

    @given(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["standard", "large"])), max_size=8),
        st.sets(st.tuples(st.sampled_from(["standard", "large"]), st.sampled_from(NAMES))),
        st.dictionaries(st.integers(0, 7), st.sets(st.sampled_from(NAMES)), max_size=8),
        st.sets(st.sampled_from(NAMES)),
    )
    def test_it_is_as_if_each_ride_in_turn_asked_down_the_whole_queue(
        self, asked: list[Any], cannot: set[Any], refused: dict[int, set[DriverId]], away: set[DriverId]
    ) -> None:
        rides = [ride(n, queued_at_ms=at, vehicle_class=kind) for n, (at, kind) in enumerate(asked)]
        free, expected = [name for name in NAMES if name not in away], {}
        for each in sorted(rides, key=lambda one: (one.queued_at_ms, one.ride_id)):
            no = refused.get(int(each.ride_id[1:]), set())
            able = [name for name in free if (each.vehicle_class, name) not in cannot and name not in no]
            if able:
                expected[each.ride_id] = able[0]
                free.remove(able[0])
        names = queue(" ".join(NAMES), away=" ".join(away))
        barred = {f"r{number}": " ".join(some) for number, some in refused.items()}
        assert turns(names, *rides, cannot=cannot, refused=barred) == expected


def test_a_zone_with_a_negative_time_is_refused() -> None:
    with pytest.raises(ValueError, match="zone jfk: keep_ms"):
        Zone("jfk", Polygon([[LatLng(0, 0), LatLng(0, 1), LatLng(1, 1)]]), -1)
