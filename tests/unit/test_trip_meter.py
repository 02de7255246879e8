"""How far a trip's driver drove and by which way, from its fixes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.trip_meter import JITTER_M, PART_S_MAX, POINTS_MAX, TOLERANCE_M, Part, Point, TripMeter, meter_after
from geo.distance import EARTH_RADIUS_M, between_m
from geo.model import DriverId, LatLng, MarketId
from matcher.model import ClientId, Ride, RideId, RideState, Slot, Trip, TripId, TripState

TRIP = TripId("t_1")
DRIVER = DriverId("d1")
HOME = (40.75, -73.98)
DEGREE_M = math.radians(1.0) * EARTH_RADIUS_M
#: A kept coordinate is rounded to five decimals.
ROUNDED_M = 1.0


def moved(start: Point, east_m: float, north_m: float) -> Point:
    lat = start[0] + north_m / DEGREE_M
    lon = start[1] + east_m / (DEGREE_M * math.cos(math.radians(start[0])))
    return lat, math.remainder(lon, 360.0)


def driven(moves: Iterable[tuple[float, float]], start: Point = HOME) -> list[Point]:
    """The fixes of these moves, each (metres east, metres north) from the one before."""
    fixes = [start]
    for east_m, north_m in moves:
        fixes.append(moved(fixes[-1], east_m, north_m))
    return fixes


def length_m(way: Sequence[Point]) -> float:
    return math.fsum(between_m(LatLng(*a), LatLng(*b)) for a, b in itertools.pairwise(way))


def parts_of(fixes: Iterable[Point], *, every_s: float = 1.0, meter: TripMeter | None = None) -> list[Part]:
    """What a meter makes of them, whose parts are taken when it is time to, and at the end."""
    meter = meter or TripMeter(TRIP)
    parts = []
    for number, (lat, lon) in enumerate(fixes):
        if meter.add(lat, lon, number * every_s):
            parts.append(meter.take())
    parts.append(meter.take())
    return [part for part in parts if part is not None]


def path_of(parts: Sequence[Part]) -> list[Point]:
    return [*parts[0].points, *(point for part in parts[1:] for point in part.points[1:])]


def distance_m(parts: Sequence[Part]) -> float:
    return math.fsum(part.distance_m for part in parts)


def off_m(fix: Point, path: Sequence[Point]) -> float:
    """How far a fix is from the nearest place of a path, in the plane around the fix."""
    places = [
        (
            math.remainder(lon - fix[1], 360.0) * DEGREE_M * math.cos(math.radians(fix[0])),
            (lat - fix[0]) * DEGREE_M,
        )
        for lat, lon in path
    ]
    if len(places) == 1:
        return math.hypot(*places[0])
    return min(_to_segment_m(a, b) for a, b in itertools.pairwise(places))


def _to_segment_m(a: Point, b: Point) -> float:
    (ax, ay), (bx, by) = a, b
    dx, dy = bx - ax, by - ay
    square = dx * dx + dy * dy
    along = 0.0 if square == 0.0 else min(1.0, max(0.0, -(ax * dx + ay * dy) / square))
    return math.hypot(ax + along * dx, ay + along * dy)


def turned(step_m: float, angle: float) -> tuple[float, float]:
    return step_m * math.sin(angle), step_m * math.cos(angle)


#: Moves that are all counted, by steps and directions of any kind.
COUNTED = st.lists(st.builds(turned, st.floats(JITTER_M + 1.0, 120.0), st.floats(-math.pi, math.pi)), max_size=80)
#: Moves like those of a drive: directions change little.
CURVES = st.lists(st.tuples(st.floats(JITTER_M + 1.0, 60.0), st.floats(-0.5, 0.5)), max_size=150).map(
    lambda steps: [
        turned(step, angle)
        for (step, _), angle in zip(steps, itertools.accumulate(turn for _, turn in steps), strict=True)
    ]
)
ANY = st.lists(st.builds(turned, st.floats(0.0, 40.0), st.floats(-math.pi, math.pi)), max_size=120)
STARTS = st.sampled_from([HOME, (0.0, 0.0), (59.3, 179.9995), (-69.0, -179.9995)])


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2, 2.0, math.pi, -1.0])
@pytest.mark.parametrize("step_m", [3.0, 9.9, 14.0, 200.0])
def test_a_straight_drive_is_measured_within_a_hundredth_and_needs_few_points(angle: float, step_m: float) -> None:
    fixes = driven([turned(step_m, angle)] * round(20_000 / step_m))
    parts = parts_of(fixes)
    assert distance_m(parts) == pytest.approx(length_m(fixes), rel=0.01)
    assert len(path_of(parts)) <= 20_000 / 500 + len(parts) + 2


@given(moves=st.one_of(COUNTED, CURVES), start=STARTS)
def test_moves_beyond_the_jitter_add_up_as_great_circles(moves: list[tuple[float, float]], start: Point) -> None:
    fixes = driven(moves, start)
    assert distance_m(parts_of(fixes)) == pytest.approx(length_m(fixes), rel=1e-3)


@given(st.lists(st.builds(turned, st.floats(0.0, JITTER_M / 2 - 0.01), st.floats(-math.pi, math.pi)), max_size=300))
def test_a_parked_phone_drives_nowhere(around: list[tuple[float, float]]) -> None:
    """Its fixes lie within a circle of the jitter's diameter, the first of them too."""
    parts = parts_of([moved(HOME, *place) for place in [*around, (0.0, 0.0)]], every_s=5.0)
    assert distance_m(parts) == 0.0
    assert [len(part.points) for part in parts] == [1]


def test_a_crawl_below_the_jitter_is_gathered_until_it_counts() -> None:
    fixes = driven([(1.0, 0.0)] * 500)
    assert distance_m(parts_of(fixes)) == pytest.approx(500.0, rel=0.03)


@given(moves=st.one_of(COUNTED, CURVES), start=STARTS)
def test_every_counted_fix_is_within_the_tolerance_of_the_path(moves: list[tuple[float, float]], start: Point) -> None:
    fixes = driven(moves, start)
    path = path_of(parts_of(fixes))
    assert max(off_m(fix, path) for fix in fixes) <= TOLERANCE_M + ROUNDED_M


@given(moves=ANY, start=STARTS)
def test_every_other_fix_is_within_the_jitter_of_one_that_is_counted(
    moves: list[tuple[float, float]], start: Point
) -> None:
    fixes = driven(moves, start)
    path = path_of(parts_of(fixes))
    assert max(off_m(fix, path) for fix in fixes) <= TOLERANCE_M + JITTER_M + ROUNDED_M


@given(moves=st.one_of(COUNTED, CURVES))
def test_a_path_begins_and_ends_where_the_drive_does_and_never_rests_for_long(moves: list[tuple[float, float]]) -> None:
    fixes = driven(moves)
    path = path_of(parts_of(fixes))
    assert off_m(fixes[0], path[:1]) <= ROUNDED_M
    assert off_m(fixes[-1], path[-1:]) <= ROUNDED_M
    assert all(length_m(pair) <= 500.0 + 120.0 + ROUNDED_M for pair in itertools.pairwise(path))


@given(moves=st.one_of(COUNTED, CURVES, ANY), every_s=st.sampled_from([0.1, 1.0, 30.0, 100.0]))
def test_parts_are_numbered_bounded_and_each_begins_where_the_one_before_ended(
    moves: list[tuple[float, float]], every_s: float
) -> None:
    parts = parts_of(driven(moves), every_s=every_s)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert all(1 <= len(part.points) <= POINTS_MAX for part in parts)
    assert all(before.points[-1] == after.points[0] for before, after in itertools.pairwise(parts))


@given(moves=CURVES, cuts=st.lists(st.booleans(), min_size=1, max_size=20))
def test_taking_parts_more_often_changes_no_distance(moves: list[tuple[float, float]], cuts: list[bool]) -> None:
    fixes = driven(moves)
    often, meter = [], TripMeter(TRIP)
    for (lat, lon), cut in zip(fixes, itertools.cycle(cuts), strict=False):
        meter.add(lat, lon, 0.0)
        often += [meter.take()] if cut else []
    often.append(meter.take())
    taken = [part for part in often if part is not None]
    assert distance_m(taken) == pytest.approx(distance_m(parts_of(fixes)), rel=1e-3, abs=1e-6)


def test_the_place_where_a_drive_turns_back_is_kept() -> None:
    path = path_of(parts_of(driven([(40.0, 0.0)] * 5 + [(-40.0, 0.0)] * 3)))
    assert len(path) == 3
    assert off_m(moved(HOME, 200.0, 0.0), path[1:2]) <= ROUNDED_M


def test_a_corner_is_kept() -> None:
    path = path_of(parts_of(driven([(0.0, 20.0)] * 10 + [(20.0, 0.0)] * 10)))
    assert len(path) <= 4
    assert off_m(moved(HOME, 0.0, 200.0), path) <= TOLERANCE_M + ROUNDED_M


def test_a_jump_is_measured_on_the_sphere() -> None:
    far = (41.9, -70.1)
    assert distance_m(parts_of([HOME, far, HOME])) == pytest.approx(2 * length_m([HOME, far]), rel=1e-9)


def test_a_part_is_due_after_its_time_and_a_parked_driver_owes_none() -> None:
    meter = TripMeter(TRIP)
    assert not meter.add(*HOME, 1000.0)
    assert not meter.add(*HOME, 1000.0 + PART_S_MAX - 0.1)
    assert meter.add(*HOME, 1000.0 + PART_S_MAX)
    assert meter.take() == Part(0, 0.0, [HOME])
    assert not meter.add(*HOME, 1e6)
    assert meter.take() is None
    assert not meter.add(*moved(HOME, 50.0, 0.0), 1e6 + 1.0)
    assert meter.add(*HOME, 1e6 + 1.0 + PART_S_MAX)


def test_a_full_part_is_due_and_one_that_nobody_takes_grows_no_more() -> None:
    zigzag = driven(itertools.islice(itertools.cycle([(60.0, 0.0), (0.0, 60.0)]), 3000))
    meter = TripMeter(TRIP)
    due = [meter.add(lat, lon, 0.0) for lat, lon in zigzag]
    assert due == sorted(due)
    assert due.index(True) == POINTS_MAX - 1
    part = meter.take()
    assert part is not None
    assert len(part.points) == POINTS_MAX
    assert part.distance_m == pytest.approx(length_m(zigzag), rel=1e-3)
    assert off_m(zigzag[-1], part.points[-1:]) <= ROUNDED_M


def test_a_trip_without_a_fix_has_no_part() -> None:
    assert TripMeter(TRIP).take() is None


def trip(
    state: TripState = TripState.ACCEPTED, slot: Slot | None = Slot.NOW, *, name: str = TRIP, driver: str = DRIVER
) -> Trip:
    return Trip(
        trip_id=TripId(name),
        ride_id=RideId(f"r_{name}"),
        driver_id=DriverId(driver),
        market=MarketId("m"),
        state=state,
        slot=slot if state.is_live else None,
        pickup_s=1.0,
        distance_m=1.0,
        matched_at_ms=0,
        arrived_at_ms=None,
        started_at_ms=None,
        ended_at_ms=None,
        abandon_at_ms=0,
        end_reason=None,
        decision={},
    )


def ride(of: Trip | None) -> Ride:
    return Ride(
        ride_id=RideId("r_1") if of is None else of.ride_id,
        client_id=ClientId("ann"),
        market=MarketId("m"),
        state=RideState.ASSIGNED,
        version=1,
        pickup=LatLng(*HOME),
        dropoff=None,
        seats=1,
        vehicle_class="standard",
        metadata={},
        requested_at_ms=0,
        deadline_at_ms=0,
        ended_at_ms=None,
        end_reason=None,
        trip=of,
    )


@pytest.mark.parametrize("state", list(TripState))
@pytest.mark.parametrize("slot", list(Slot))
def test_a_meter_runs_for_a_present_trip_that_was_accepted(state: TripState, slot: Slot) -> None:
    meter = meter_after(None, ride(trip(state, slot)), DRIVER)
    runs = slot is Slot.NOW and state in (TripState.ACCEPTED, TripState.ARRIVED, TripState.IN_PROGRESS)
    assert (meter is not None) == runs
    assert meter is None or meter.trip_id == TRIP


def test_a_meter_runs_on_while_its_trip_goes_on_and_stops_with_it() -> None:
    meter = meter_after(None, ride(trip()), DRIVER)
    assert meter is not None
    assert meter_after(meter, ride(trip(TripState.IN_PROGRESS)), DRIVER) is meter
    assert meter_after(meter, ride(trip(TripState.COMPLETED)), DRIVER) is None


def test_what_is_no_present_trip_of_this_driver_leaves_the_meter_alone() -> None:
    meter = TripMeter(TRIP)
    others = [
        None,
        trip(name="t_2", driver="d2"),
        trip(name="t_2", slot=Slot.NEXT),
        trip(TripState.OFFERED, name="t_2"),
        trip(TripState.COMPLETED, name="t_2"),
    ]
    assert all(meter_after(meter, ride(other), DRIVER) is meter for other in others)


def test_a_next_trip_has_a_meter_of_its_own_once_it_is_the_present_one() -> None:
    after = trip(name="t_2", slot=Slot.NEXT)
    meter = meter_after(TripMeter(TRIP), ride(replace(after, slot=Slot.NOW)), DRIVER)
    assert meter is not None
    assert meter.trip_id == after.trip_id
