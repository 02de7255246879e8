"""What every store promises of the paths of trips: parts written once each, read as one path."""

from __future__ import annotations

import json
import random

import pytest

from geo.distance import between_m
from geo.model import LatLng
from matcher.ids import new_trip_id
from matcher.model import TripId
from matcher.store_paths import CHUNK, POINTS_MAX, PathPart, Point, TripPath
from tests.stores import StoreCase

HOME = (40.75, -73.98)


def east(steps: int) -> Point:
    """Places some 84 m apart on one parallel."""
    return HOME[0], round(HOME[1] + steps / 1000, 5)


def way(first: int, last: int) -> list[Point]:
    return [east(step) for step in range(first, last + 1)]


def part(
    trip_id: TripId, points: list[Point], *, epoch: int = 1, number: int = 0, distance_m: float = 100.0
) -> PathPart:
    return PathPart(trip_id, epoch, number, distance_m, points)


def count(case: StoreCase) -> int:
    return int(case.sql("SELECT COUNT(*) FROM trip_paths")[0][0])


async def test_a_part_is_read_as_it_was_written_at_the_databases_time(case: StoreCase) -> None:
    trip_id = new_trip_id()
    before_ms = await case.store.now_ms()
    assert await case.store.put_path_parts([part(trip_id, way(0, 3), distance_m=252.75)]) == 0
    assert await case.store.trip_path(trip_id) == TripPath(252.75, way(0, 3))
    [[at_ms, text]] = case.sql("SELECT at_ms, points FROM trip_paths")
    assert before_ms <= at_ms <= await case.store.now_ms()
    assert json.loads(text) == [list(point) for point in way(0, 3)]


@pytest.mark.parametrize("trip_id", ["t_unknown", "", "\udc80", "x" * 1000])
async def test_a_trip_of_which_nothing_was_written_has_no_path(case: StoreCase, trip_id: str) -> None:
    await case.store.put_path_parts([part(new_trip_id(), way(0, 1))])
    assert await case.store.trip_path(TripId(trip_id)) is None


async def test_nothing_to_write_is_no_fault(case: StoreCase) -> None:
    assert await case.store.put_path_parts([]) == 0


async def test_parts_are_joined_by_session_and_number_in_whatever_order_they_came(case: StoreCase) -> None:
    trip_id = new_trip_id()
    parts = [part(trip_id, way(3 * n, 3 * n + 3), epoch=1, number=n) for n in range(12)]
    parts += [part(trip_id, way(36 + 3 * n, 36 + 3 * n + 3), epoch=2, number=n) for n in range(3)]
    for each in random.sample(parts, len(parts)):
        await case.store.put_path_parts([each])
    assert await case.store.trip_path(trip_id) == TripPath(1500.0, way(0, 45))


async def test_each_trip_has_its_own_path(case: StoreCase) -> None:
    one, other = new_trip_id(), new_trip_id()
    await case.store.put_path_parts([part(one, way(0, 2)), part(other, way(5, 9), distance_m=7.0)])
    assert await case.store.trip_path(one) == TripPath(100.0, way(0, 2))
    assert await case.store.trip_path(other) == TripPath(7.0, way(5, 9))


async def test_the_way_between_two_sessions_is_a_straight_line_and_none_where_the_driver_stood(case: StoreCase) -> None:
    trip_id = new_trip_id()
    near = (HOME[0] + 0.00005, east(10)[1])  # five metres on
    await case.store.put_path_parts(
        [
            part(trip_id, way(0, 3), epoch=1),
            part(trip_id, way(8, 10), epoch=4),
            part(trip_id, [near, east(11)], epoch=5),
        ]
    )
    found = await case.store.trip_path(trip_id)
    assert found is not None
    assert found.distance_m == pytest.approx(300.0 + between_m(LatLng(*east(3)), LatLng(*east(8))))
    assert found.points == [*way(0, 3), *way(8, 10), near, east(11)]


async def test_writing_again_changes_nothing_and_keeps_nobody_else_from_being_written(case: StoreCase) -> None:
    trip_id, other = new_trip_id(), new_trip_id()
    first = [part(trip_id, way(0, 2)), part(trip_id, way(2, 4), number=1)]
    await case.store.put_path_parts(first)
    changed = part(trip_id, way(7, 9), distance_m=1.0)
    await case.store.put_path_parts([changed, *first, part(trip_id, way(4, 6), number=2), part(other, way(0, 1))])
    assert count(case) == 4
    assert await case.store.trip_path(trip_id) == TripPath(300.0, way(0, 6))
    assert await case.store.trip_path(other) == TripPath(100.0, way(0, 1))


async def test_what_no_column_holds_is_counted_and_the_rest_is_written(case: StoreCase) -> None:
    trip_id = new_trip_id()
    parts = [
        part(TripId("x" * 33), way(0, 1)),
        part(trip_id, way(0, 2)),
        part(trip_id, [(float("nan"), 0.0)], number=1),
    ]
    assert await case.store.put_path_parts(parts) == 2
    assert await case.store.trip_path(trip_id) == TripPath(100.0, way(0, 2))


async def test_more_parts_than_a_transaction_takes_are_all_written(case: StoreCase) -> None:
    trip_id = new_trip_id()
    parts = [part(trip_id, [east(n), east(n + 1)], number=n, distance_m=1.0) for n in range(CHUNK + 20)]
    assert await case.store.put_path_parts(parts) == 0
    assert await case.store.trip_path(trip_id) == TripPath(CHUNK + 20.0, way(0, CHUNK + 20))


async def test_a_longer_path_is_thinned_evenly_and_keeps_its_distance_and_ends(case: StoreCase) -> None:
    trip_id, points = new_trip_id(), 250
    parts = [
        part(trip_id, [(0.0, round(step / 1000, 5)) for step in range(n * points, (n + 1) * points + 1)], number=n)
        for n in range(20)
    ]
    await case.store.put_path_parts(parts)
    found = await case.store.trip_path(trip_id)
    assert found is not None
    assert found.distance_m == 2000.0
    assert len(found.points) == POINTS_MAX
    assert (found.points[0], found.points[-1]) == (parts[0].points[0], parts[-1].points[-1])
    steps = [
        round((after[1] - before[1]) * 1000) for before, after in zip(found.points, found.points[1:], strict=False)
    ]
    assert set(steps) == {2, 3}
