"""P8, P6, P5: the index against brute force and a plain dictionary, anywhere on the globe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from h3.api import basic_int as h3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geo.cells import cell_of
from geo.distance import distance_m
from geo.index import DriverIndex
from geo.model import DriverId, LatLng, Removal, Stamp, Where
from geo.records import RECORD, PositionBatch

STALE_MS = 30_000
NOW_MS = 1_000_000
CLASSES = ("standard", "xl")
PENTAGONS = tuple(h3.cell_to_latlng(cell) for cell in h3.get_pentagons(8))
#: Masks of few bits, the last of a record's 32 among them.
TAGS = st.sampled_from([0, 0, 1, 2, 3, 2**31, 2**31 + 1])
CORNERS = ((90.0, 0.0), (-90.0, 12.0), (0.0, 180.0), (0.0, -180.0), (65.0, 179.999), (0.0, 0.0), (40.75, -73.98))
Placed = tuple[float, float]


def bounded(lat: float, lon: float) -> Placed:
    return min(max(lat, -90.0), 90.0), lon if -180.0 <= lon <= 180.0 else math.remainder(lon, 360.0)


@st.composite
def places(draw: st.DrawFn) -> list[Placed]:
    """Up to 60 places: a few centres, near and exactly on which many lie, and anything else on the globe."""
    anywhere = st.tuples(st.floats(-90, 90), st.floats(-180, 180))
    centres = draw(
        st.lists(st.one_of(st.sampled_from(PENTAGONS), st.sampled_from(CORNERS), anywhere), min_size=1, max_size=3)
    )
    reach = draw(st.sampled_from([0.0, 1e-9, 1e-5, 0.003, 0.05, 1.0, 30.0]))
    near = st.builds(
        lambda centre, dlat, dlon: bounded(centre[0] + dlat, centre[1] + dlon),
        st.sampled_from(centres),
        st.floats(-reach, reach),
        st.floats(-reach, reach),
    )
    return draw(st.lists(st.one_of(near, st.sampled_from(centres), anywhere if reach >= 1.0 else near), max_size=60))


def batch_of(held: dict[str, tuple[tuple[int, int, int], np.void]]) -> PositionBatch:
    records = np.array([record for _, record in held.values()], dtype=RECORD).reshape(len(held))
    return PositionBatch([DriverId(name) for name in held], records)


def record(
    place: Placed, resolution: int, stamp: tuple[int, int, int], age_ms: int, seats: int, kind: int, tags: int
) -> np.void:
    row = (NOW_MS - age_ms, cell_of(*place, resolution), *place, *map(float, stamp), 65535, 65535)
    made = np.array([(*row, seats, kind % 2, CLASSES[kind // 2].encode(), tags)], dtype=RECORD)
    return made[0]  # type: ignore[no-any-return]


def brute(
    held: PositionBatch, point: LatLng, where: Where, limit_m: float, now_ms: int = NOW_MS
) -> list[tuple[float, str]]:
    """Every eligible driver as (distance, id), in order."""
    records = held.records
    away_m = distance_m(point.lat, point.lon, records["lat"], records["lon"])
    fits = (now_ms - records["fix_ms"] <= STALE_MS) & (records["seats"] >= where.seats_min) & (away_m <= limit_m)
    fits &= records["tags"] & where.tags == where.tags
    if where.available_only:
        fits &= records["flags"] == 1
    if where.vehicle_classes is not None:
        fits &= np.isin(records["vehicle_class"], [each.encode() for each in where.vehicle_classes])
    found = [(float(away_m[n]), str(held.ids[n])) for n in np.flatnonzero(fits).tolist()]
    return sorted(each for each in found if each[1] not in where.exclude)


def check(index: DriverIndex, held: PositionBatch, points: list[LatLng], k: int, where: Where, limit_m: float) -> None:
    """`nearest` and `candidates` answer as brute force does, the bound of what lies beyond included."""
    found = index.candidates(
        [p.lat for p in points], [p.lon for p in points], k, limit_m=limit_m, where=where, now_ms=NOW_MS
    )
    listed = [found.driver_ids[driver] for driver in found.driver.tolist()]
    pairs = list(zip(found.point.tolist(), found.distance_m.tolist(), listed, strict=True))
    expected = [brute(held, point, where, limit_m) for point in points]
    assert pairs == [(n, *pair) for n, all_of_it in enumerate(expected) for pair in all_of_it[:k]]
    assert found.beyond_m.tolist() == [each[k][0] if len(each) > k else math.inf for each in expected]
    assert found.driver_ids == sorted(set(listed))
    for point, all_of_it in zip(points, expected, strict=True):
        answer = index.nearest(point, k, limit_m=limit_m, where=where, now_ms=NOW_MS)
        assert [(each.distance_m, each.driver_id) for each in answer] == all_of_it[:k]


@st.composite
def wheres(draw: st.DrawFn, names: list[str]) -> Where:
    return Where(
        vehicle_classes=draw(st.none() | st.frozensets(st.sampled_from(CLASSES))),
        seats_min=draw(st.integers(0, 3)),
        available_only=draw(st.booleans()),
        tags=draw(TAGS),
        exclude=frozenset(map(DriverId, draw(st.sets(st.sampled_from(names))))) if names else frozenset(),
    )


def antipode(place: Placed) -> Placed:
    return bounded(-place[0], place[1] + 180.0)


LIMITS = st.sampled_from([math.inf, math.inf, 0.0, 1.0, 800.0, 2e4, 1e6, 2.0015e7])
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(data=st.data())
def test_nearest_and_candidates_equal_brute_force_anywhere(data: st.DataObject) -> None:
    where_drivers_are = data.draw(places())
    resolution = data.draw(st.sampled_from([0, 3, 8, 8, 9, 15]))
    kinds = st.tuples(st.integers(0, 40_000), st.integers(0, 3), st.integers(0, 3), TAGS)
    n = len(where_drivers_are)
    details = data.draw(st.lists(kinds, min_size=n, max_size=n))
    names = [f"d{position * 37 % 101:03d}" for position in range(n)]
    rows = zip(names, where_drivers_are, details, strict=True)
    held = {name: ((1, 1, 1), record(place, resolution, (1, 1, 1), *detail)) for name, place, detail in rows}
    whole = batch_of(held)
    index = DriverIndex(resolution=resolution, stale_after_ms=STALE_MS, capacity=1)
    cut = data.draw(st.integers(0, n))
    for part in (slice(0, cut), slice(cut, n)):
        index.apply(PositionBatch(whole.ids[part], whole.records[part]))
    choices = [*where_drivers_are, *map(antipode, where_drivers_are), *PENTAGONS[:2], *CORNERS]
    points = data.draw(st.lists(st.sampled_from(choices), min_size=1, max_size=5))
    k = data.draw(st.sampled_from([0, 1, 3, 10, 80]))
    check(index, whole, [LatLng(*p) for p in points], k, data.draw(wheres(names)), data.draw(LIMITS))


@QUICK
@given(data=st.data())
def test_supply_equals_brute_force(data: st.DataObject) -> None:
    where_drivers_are = data.draw(places())
    kinds = st.tuples(st.integers(0, 40_000), st.integers(0, 3), st.integers(0, 3), TAGS)
    n = len(where_drivers_are)
    details = data.draw(st.lists(kinds, min_size=n, max_size=n))
    names = [f"d{position * 37 % 101:03d}" for position in range(n)]
    rows = zip(names, where_drivers_are, details, strict=True)
    held = batch_of({name: ((1, 1, 1), record(place, 8, (1, 1, 1), *detail)) for name, place, detail in rows})
    index = DriverIndex(resolution=8, stale_after_ms=STALE_MS, capacity=1)
    index.apply(held)
    exclude = set(map(DriverId, data.draw(st.sets(st.sampled_from(names))))) if names else set()
    now_ms = NOW_MS + data.draw(st.sampled_from([0, 0, 10_000, STALE_MS]))
    by_id = {driver_id: held.records[place] for place, driver_id in enumerate(held.ids)}
    wanted = {name: row for name, row in sorted(by_id.items()) if row["flags"] == 1 and name not in exclude}
    is_fresh = {name: now_ms - float(row["fix_ms"]) <= STALE_MS for name, row in wanted.items()}
    supply = index.supply(now_ms, exclude)
    found = [supply.kinds[kind] for kind in supply.kind.tolist()]
    expected = [row for name, row in wanted.items() if is_fresh[name]]
    assert supply.driver_ids == [name for name in wanted if is_fresh[name]]
    assert list(zip(supply.lat, supply.lon, strict=True)) == [(row["lat"], row["lon"]) for row in expected]
    assert [(kind.vehicle_class, kind.seats, kind.tags) for kind in found] == [
        (row["vehicle_class"].decode(), row["seats"], row["tags"]) for row in expected
    ]
    stale = [(row["lat"], row["lon"]) for name, row in wanted.items() if not is_fresh[name]]
    assert sorted(zip(supply.stale_lat, supply.stale_lon, strict=True)) == sorted(stale)
    limit_m, (lat, lon) = data.draw(LIMITS), data.draw(st.sampled_from([*CORNERS, *where_drivers_are]))
    within = sum(float(distance_m(lat, lon, *place)) <= limit_m for place in stale)
    assert supply.stale_within(lat, lon, limit_m) == within


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    centre=st.sampled_from([*PENTAGONS, *CORNERS]),
    spread=st.sampled_from([0.0, 1e-5, 0.002, 0.02, 0.3, 20.0]),
    k=st.sampled_from([1, 10, 40]),
)
def test_crowds_of_thousands_equal_brute_force(seed: int, centre: Placed, spread: float, k: int) -> None:
    """Sizes at which searches take blocks, samples and parts, as they do in a real city."""
    rng = np.random.default_rng(seed)
    n = 4000
    records = np.zeros(n, dtype=RECORD)
    placed = [
        bounded(*each)
        for each in (np.array(centre) + rng.normal(0, spread, (n, 2)) * (rng.random((n, 1)) < 0.9)).tolist()
    ]
    records["lat"], records["lon"] = np.array(placed).T
    named = {(lat, lon): cell_of(lat, lon, 8) for lat, lon in set(placed)}
    records["cell"] = [named[place] for place in placed]
    records["seats"], records["flags"], records["seq"] = rng.integers(1, 5, n), rng.integers(0, 2, n), 1
    records["fix_ms"], records["vehicle_class"] = NOW_MS - rng.integers(0, 40_000, n), b"standard"
    whole = PositionBatch([DriverId(f"d{number}") for number in rng.permutation(n)], records)
    index = DriverIndex(resolution=8, stale_after_ms=STALE_MS)
    index.apply(whole)
    chosen = [placed[position] for position in rng.integers(0, n, 20)] + [centre, antipode(centre)]
    exclude = frozenset(whole.ids[position] for position in rng.integers(0, n, n // 4))
    check(index, whole, [LatLng(*p) for p in chosen], k, Where(seats_min=2, exclude=exclude), math.inf)


@dataclass
class Model:
    """What the index should hold: the newest record of each driver, by plain comparison."""

    held: dict[str, tuple[tuple[int, int, int], np.void]] = field(default_factory=dict)

    def apply(self, fixes: list[tuple[str, tuple[int, int, int], np.void]]) -> int:
        moved = 0
        for name, stamp, made in fixes:
            if name not in self.held or stamp > self.held[name][0]:
                self.held[name] = (stamp, made)
                moved += 1
        return moved

    def remove(self, removals: list[Removal]) -> None:
        for each in removals:
            name, stamp = str(each.driver_id), (each.stamp.epoch, each.stamp.instance, each.stamp.seq)
            if name in self.held and self.held[name][0] <= stamp:
                del self.held[name]


STAMPS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6))
NAMES = st.sampled_from([f"d{number:02d}" for number in range(40)])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_updates_and_removals_in_any_order_leave_what_a_dictionary_holds(data: st.DataObject) -> None:
    """P6: newest stamp wins, a driver stands in one place, slots and runs are used again without a trace."""
    spots = [*data.draw(places()), (40.75, -73.98), (40.751, -73.99)]
    index, model = DriverIndex(resolution=8, stale_after_ms=STALE_MS, capacity=1), Model()
    fixes = st.tuples(NAMES, STAMPS, st.sampled_from(spots), st.integers(0, 40_000), TAGS)
    removals = st.builds(lambda name, stamp: Removal(DriverId(name), Stamp(*stamp)), NAMES, STAMPS)
    for _ in range(data.draw(st.integers(1, 8))):
        changes = data.draw(st.lists(fixes, max_size=30, unique_by=lambda change: change[0]))
        made = [
            (name, stamp, record(spot, 8, stamp, age_ms, 4, 1, tags)) for name, stamp, spot, age_ms, tags in changes
        ]
        gone = data.draw(st.lists(removals, max_size=15))
        batch = batch_of({name: (stamp, row) for name, stamp, row in made})
        batch.removals = gone
        if data.draw(st.integers(0, 9)) == 0:
            index.reset(batch)
            model.held.clear()
            model.apply(made)
        else:
            assert index.apply(batch) == model.apply(made)
        model.remove(gone)
        assert len(index) == len(model.held)
        whole = batch_of(model.held)
        points = [LatLng(*spot) for spot in data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=3))]
        check(index, whole, points, data.draw(st.sampled_from([1, 5, 50])), Where(tags=data.draw(TAGS)), math.inf)
    for name, (stamp, _) in model.held.items():
        fix = index.held(DriverId(name))
        assert fix is not None
        assert fix.stamp == Stamp(*stamp)
    silent = {str(each.driver_id) for each in index.expire(NOW_MS, STALE_MS)}
    assert silent == {name for name, (_, row) in model.held.items() if row["fix_ms"] < NOW_MS - STALE_MS}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), step=st.sampled_from([1e-6, 1e-4, 0.003, 0.05, 5.0]))
def test_thousands_that_drive_leave_and_return_are_found_exactly(seed: int, step: float) -> None:
    """The tree is cut, its nodes join, shrink and are packed, and every answer stays the one of brute force."""
    rng = np.random.default_rng(seed)
    n = 3000
    index = DriverIndex(resolution=8, stale_after_ms=STALE_MS, capacity=1)
    records = np.zeros(n, dtype=RECORD)
    records["fix_ms"], records["flags"], records["vehicle_class"] = NOW_MS, 1, b"standard"
    ids = [DriverId(f"d{number}") for number in rng.permutation(n)]
    place, held = np.array([65.0, 179.99]) + rng.normal(0, 0.02, (n, 2)), np.zeros(n, dtype=np.bool_)
    for turn in range(1, 9):
        moving = rng.choice(n, rng.integers(1, n), replace=False)
        place[moving] += rng.normal(0, step, (len(moving), 2))
        records["lat"], records["lon"] = np.clip(place[:, 0], -90, 90), (place[:, 1] + 180) % 360 - 180
        records["seq"][moving], records["seats"][moving] = turn, rng.integers(1, 5, len(moving))
        leaving = rng.choice(n, n // 2 if turn == 5 else n // 10, replace=False)
        removals = [Removal(ids[number], Stamp(9, 9, 9)) for number in leaving.tolist()]
        index.apply(PositionBatch([ids[number] for number in moving.tolist()], records[moving], removals))
        held[moving], held[leaving] = True, False
        if turn % 2 == 0:
            present = np.flatnonzero(held)
            whole = PositionBatch([ids[number] for number in present.tolist()], records[present])
            chosen = rng.integers(0, n, 6)
            points = [LatLng(*each) for each in zip(records["lat"][chosen], records["lon"][chosen], strict=True)]
            check(index, whole, points, int(rng.choice([1, 10, 60])), Where(seats_min=2), math.inf)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_fleet_that_drives_around_for_long_stays_exact(seed: int) -> None:
    """Buckets come and go, runs are packed anew, and what a walk left behind is in nobody's way."""
    rng = np.random.default_rng(seed)
    n = 400
    index = DriverIndex(resolution=9, stale_after_ms=STALE_MS, capacity=1)
    records = np.zeros(n, dtype=RECORD)
    records["seats"], records["flags"], records["fix_ms"], records["vehicle_class"] = 4, 1, NOW_MS, b"standard"
    ids = [DriverId(f"d{number:03d}") for number in rng.permutation(n)]
    place = np.array([40.75, -73.98]) + rng.normal(0, 0.02, (n, 2))
    for turn in range(1, 25):
        moving = rng.choice(n, rng.integers(1, n), replace=False)
        place[moving] += rng.normal(0, 0.01, (len(moving), 2))
        records["lat"], records["lon"] = place.T
        records["seq"][moving] = turn
        records["cell"][moving] = [cell_of(lat, lon, 9) for lat, lon in place[moving].tolist()]
        batch = PositionBatch([ids[number] for number in moving.tolist()], records[moving])
        assert index.apply(batch) == len(moving)
        leaving = rng.choice(n, 30, replace=False).tolist()
        index.apply(PositionBatch([], records[:0], [Removal(ids[number], Stamp(9, 9, 9)) for number in leaving]))
    present = [number for number in range(n) if ids[number] in index]
    whole = PositionBatch([ids[number] for number in present], records[present])
    points = [LatLng(*place[number].tolist()) for number in rng.integers(0, n, 15)]
    check(index, whole, points, 10, Where(), math.inf)
