"""The index: which position counts, who is found, and in what order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from geo.cells import cell_of, centre_of
from geo.distance import distance_m
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, Removal, Stamp, Where
from geo.records import RECORD, PositionBatch
from geo.supply import Kind

RESOLUTION = 8
STALE_MS = 30_000
NOW_MS = 1_000_000
HERE = LatLng(40.75, -73.98)
ANYONE = Where(seats_min=0, available_only=False)
TOP_TAG = 1 << 31


def fix(
    name: str, lat: float = HERE.lat, lon: float = HERE.lon, *, seq: int = 1, epoch: int = 1, **rest: object
) -> Fix:
    values: dict[str, object] = {"instance": 1, "age_ms": 0, "vehicle_class": "standard", "seats": 4} | rest
    return Fix(DriverId(name), lat, lon, epoch=epoch, seq=seq, **values)  # type: ignore[arg-type]


def row(each: Fix, now_ms: int) -> tuple[object, ...]:
    heading = 65535 if each.heading_deg is None else round(each.heading_deg * 100)
    speed = 65535 if each.speed_mps is None else round(each.speed_mps * 100)
    where = (now_ms - each.age_ms, cell_of(each.lat, each.lon, RESOLUTION), each.lat, each.lon)
    what = (heading, speed, each.seats, each.available, each.vehicle_class.encode(), each.tags)
    return (*where, each.epoch, each.instance, each.seq, *what)


def batch(*fixes: Fix, now_ms: int = NOW_MS, removals: Sequence[Removal] = ()) -> PositionBatch:
    records = np.array([row(each, now_ms) for each in fixes], dtype=RECORD)
    return PositionBatch([each.driver_id for each in fixes], records, removals)


def index_of(*fixes: Fix) -> DriverIndex:
    index = DriverIndex(resolution=RESOLUTION, stale_after_ms=STALE_MS)
    assert index.apply(batch(*fixes)) == len(fixes)
    return index


def names(index: DriverIndex, k: int = 10, where: Where = ANYONE, now_ms: int = NOW_MS, **rest: float) -> list[str]:
    return [each.driver_id for each in index.nearest(HERE, k, where=where, now_ms=now_ms, **rest)]


def removal(name: str, epoch: int = 1, instance: int = 1, seq: int = 1) -> Removal:
    return Removal(DriverId(name), Stamp(epoch, instance, seq))


class TestNewestWins:
    def test_a_newer_position_replaces_the_older_one(self) -> None:
        index = index_of(fix("d", seq=1))
        assert index.apply(batch(fix("d", 41.0, -74.0, seq=2))) == 1
        assert len(index) == 1
        [found] = index.nearest(HERE, 5, now_ms=NOW_MS)
        assert (found.lat, found.lon) == (41.0, -74.0)

    @pytest.mark.parametrize("older", [(1, 5, 5), (2, 4, 9), (2, 5, 4), (2, 5, 5)])
    def test_an_older_or_equal_stamp_changes_nothing(self, older: tuple[int, int, int]) -> None:
        """P6, P7: epoch before instance before sequence."""
        index = index_of(fix("d", epoch=2, instance=5, seq=5))
        epoch, instance, seq = older
        assert index.apply(batch(fix("d", 0.0, 0.0, epoch=epoch, instance=instance, seq=seq))) == 0
        held = index.held(DriverId("d"))
        assert held is not None
        assert (held.lat, held.stamp) == (HERE.lat, Stamp(2, 5, 5))

    @pytest.mark.parametrize("newer", [(3, 1, 1), (2, 6, 1), (2, 5, 6)])
    def test_a_greater_stamp_wins_whichever_part_is_greater(self, newer: tuple[int, int, int]) -> None:
        index = index_of(fix("d", epoch=2, instance=5, seq=5))
        epoch, instance, seq = newer
        assert index.apply(batch(fix("d", 0.0, 0.0, epoch=epoch, instance=instance, seq=seq))) == 1

    def test_of_several_positions_of_a_driver_in_one_batch_the_newest_stays(self) -> None:
        """P6, even where a publisher errs."""
        index = index_of(fix("d", seq=2), fix("e"))
        changed = batch(fix("f", 1.0, 1.0, seq=5), fix("f", 2.0, 2.0, seq=4), fix("d", 3.0, 3.0, seq=1))
        assert index.apply(changed) == 1
        found = index.nearest(LatLng(0.0, 0.0), 5, now_ms=NOW_MS)
        assert [(each.driver_id, each.lat) for each in found] == [("f", 1.0), ("d", HERE.lat), ("e", HERE.lat)]

    def test_stamps_keep_all_their_53_bits(self) -> None:
        index = index_of(fix("d", epoch=2**53 - 2))
        assert index.apply(batch(fix("d", epoch=2**53 - 1))) == 1
        assert index.apply(batch(fix("d", epoch=2**53 - 2, seq=9))) == 0


class TestRemoval:
    def test_a_removal_takes_out_what_it_knew(self) -> None:
        index = index_of(fix("d"), fix("e"))
        index.apply(batch(removals=[removal("d")]))
        assert "d" not in index
        assert names(index) == ["e"]

    def test_a_removal_spares_a_driver_that_moved_on(self) -> None:
        index = index_of(fix("d", seq=2))
        index.apply(batch(removals=[removal("d", seq=1), removal("unknown")]))
        assert names(index) == ["d"]

    def test_removals_come_after_the_records_of_their_batch(self) -> None:
        index = index_of(fix("d", seq=1))
        assert index.apply(batch(fix("d", seq=2), fix("e"), removals=[removal("d", seq=2), removal("d", seq=2)])) == 2
        assert names(index) == ["e"]

    def test_a_removed_drivers_place_is_used_again(self) -> None:
        index = index_of(*(fix(f"d{n}") for n in range(100)))
        for turn in range(20):
            index.apply(batch(removals=[removal(f"d{n}", seq=turn + 1) for n in range(100)]))
            assert len(index) == 0
            assert names(index) == []
            index.apply(batch(*(fix(f"d{n}", seq=turn + 2) for n in range(100))))
        assert len(names(index, k=200)) == 100

    def test_a_snapshot_replaces_everything(self) -> None:
        index = index_of(fix("old", seq=9), fix("both", seq=9))
        index.reset(batch(fix("both", 41.0, seq=1), fix("new")))
        assert names(index) == ["new", "both"]
        index.reset(batch())
        assert len(index) == 0
        assert names(index) == []

    def test_places_that_everyone_left_are_in_nobodys_way(self) -> None:
        """Buckets are forgotten and their numbers used again, and what is left is found from where they were."""
        index = index_of(fix("stays", 10.0, 10.0))
        for turn in range(1, 6):
            away = [fix(f"d{n}", 40.0 + n * 0.02, -74.0 + turn * 0.5, seq=2 * turn) for n in range(150)]
            assert index.apply(batch(*away)) == 150
            assert names(index, 1) != ["stays"]
            index.apply(batch(removals=[removal(f"d{n}", seq=2 * turn + 1) for n in range(150)]))
            assert names(index) == ["stays"]
            assert index.candidates([40.0, 41.0], [-73.5, -74.0], 2, now_ms=NOW_MS).driver_ids == ["stays"]


class TestFreshness:
    """P5."""

    def test_a_stale_driver_is_not_returned(self) -> None:
        index = index_of(fix("d", age_ms=0), fix("e", age_ms=10_000))
        assert names(index, now_ms=NOW_MS + STALE_MS - 10_000) == ["d", "e"]
        assert names(index, now_ms=NOW_MS + STALE_MS - 9_999) == ["d"]
        assert names(index, now_ms=NOW_MS + STALE_MS + 1) == []

    def test_a_stale_driver_is_no_candidate_and_does_not_bound_the_others(self) -> None:
        index = index_of(fix("stale", age_ms=STALE_MS + 1), fix("d", 40.76))
        found = index.candidates([HERE.lat], [HERE.lon], 1, now_ms=NOW_MS)
        assert found.driver_ids == ["d"]
        assert found.beyond_m.tolist() == [math.inf]

    def test_a_fix_from_the_future_counts_as_new(self) -> None:
        index = index_of(fix("d", age_ms=-5_000))
        [found] = index.nearest(HERE, 1, now_ms=NOW_MS)
        assert found.age_ms == 0
        assert index.age_ms(DriverId("d"), NOW_MS) == 0
        assert index.age_ms(DriverId("d"), NOW_MS + 6_000) == 1_000

    def test_freshness_is_told_driver_by_driver(self) -> None:
        index = index_of(fix("d"), fix("e", age_ms=20_000))
        asked = [DriverId("e"), DriverId("unknown"), DriverId("d")]
        assert index.fresh(asked, NOW_MS) == [True, False, True]
        assert index.fresh(asked, NOW_MS + 10_001) == [False, False, True]
        assert (index.fresh_count(NOW_MS), index.fresh_count(NOW_MS + 10_001)) == (2, 1)
        assert index.age_ms(DriverId("unknown"), NOW_MS) is None

    def test_a_removed_driver_is_neither_fresh_nor_held(self) -> None:
        index = index_of(fix("d"))
        index.apply(batch(removals=[removal("d")]))
        assert index.fresh([DriverId("d")], NOW_MS) == [False]
        assert index.fresh_count(NOW_MS) == 0
        assert index.held(DriverId("d")) is None

    def test_silent_drivers_are_named_for_removal_the_oldest_first(self) -> None:
        index = index_of(fix("a", age_ms=500), fix("b", age_ms=900, seq=7), fix("c", age_ms=100))
        assert index.expire(NOW_MS, 200) == [removal("b", seq=7), removal("a")]
        assert index.expire(NOW_MS, 200, limit=1) == [removal("b", seq=7)]
        assert len(index) == 3, "the feed removes, not the index"
        index.apply(batch(removals=index.expire(NOW_MS, 200)))
        assert index.expire(NOW_MS, 200) == []


class TestWhere:
    @pytest.fixture
    def index(self) -> DriverIndex:
        return index_of(
            fix("van", 40.751, vehicle_class="xl", seats=8, tags=0b101),
            fix("break", 40.752, available=False, tags=0b001),
            fix("small", 40.753, seats=2, tags=TOP_TAG),
            fix("sedan", 40.754, tags=0b111),
        )

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (Where(), ["van", "small", "sedan"]),
            (ANYONE, ["van", "break", "small", "sedan"]),
            (Where(seats_min=4), ["van", "sedan"]),
            (Where(seats_min=9), []),
            (Where(vehicle_classes=frozenset({"standard"})), ["small", "sedan"]),
            (Where(vehicle_classes=frozenset({"standard", "xl", "absent"}), seats_min=8), ["van"]),
            (Where(vehicle_classes=frozenset()), []),
            (Where(exclude=frozenset({DriverId("van"), DriverId("unknown")})), ["small", "sedan"]),
            (Where(tags=0b001), ["van", "sedan"]),
            (Where(tags=0b101), ["van", "sedan"]),
            (Where(tags=0b010), ["sedan"]),
            (Where(tags=TOP_TAG), ["small"]),
            (Where(tags=TOP_TAG | 0b001), []),
            (Where(tags=1 << 32), []),
            (Where(tags=0b001, vehicle_classes=frozenset({"standard"}), seats_min=4), ["sedan"]),
        ],
    )
    def test_conditions_apply_before_k(self, index: DriverIndex, where: Where, expected: list[str]) -> None:
        assert names(index, 10, where) == expected
        assert names(index, 1, where) == expected[:1]
        found = index.candidates([HERE.lat], [HERE.lon], 2, where=where, now_ms=NOW_MS)
        assert [found.driver_ids[driver] for driver in found.driver.tolist()] == expected[:2]
        assert math.isinf(found.beyond_m[0]) == (len(expected) <= 2)

    def test_a_driver_that_changes_is_found_as_it_now_is(self, index: DriverIndex) -> None:
        index.apply(batch(fix("break", 40.752, seq=2), fix("van", 40.751, seq=2, vehicle_class="standard", seats=1)))
        assert names(index, 10, Where(vehicle_classes=frozenset({"standard"}))) == ["van", "break", "small", "sedan"]
        assert names(index, 10, Where(vehicle_classes=frozenset({"xl"}))) == []

    def test_new_tags_of_a_driver_count_at_once(self, index: DriverIndex) -> None:
        assert names(index, 10, Where(tags=0b010)) == ["sedan"]
        index.apply(batch(fix("small", 40.753, seq=2, seats=2, tags=0b010), fix("sedan", 40.754, seq=2)))
        assert names(index, 10, Where(tags=0b010)) == ["small"]
        assert names(index, 10, Where(tags=TOP_TAG)) == []
        held = index.held(DriverId("small"))
        assert held is not None
        assert held.tags == 0b010

    def test_drivers_that_change_again_and_again_fill_no_memory(self) -> None:
        """P10: the number of a kind that nobody is of any more goes to a new one."""
        index = index_of(fix("first"), fix("other"))
        for turn in range(600):
            index.apply(batch(fix("first", tags=turn, seq=turn + 2), fix("other", tags=turn // 100, seq=turn + 2)))
            assert "first" in names(index, 10, Where(tags=turn))
            assert len(names(index)) == 2
            assert names(index, 10, Where(tags=1 << 20)) == []
        assert len(index._kinds.told) <= 40
        index.apply(batch(removals=[removal("other", seq=999)]))
        assert [kind.tags for kind in index.supply(NOW_MS).kinds] == [599]

    def test_who_is_left_out_may_change_from_search_to_search(self) -> None:
        index = index_of(fix("a"), fix("b", 40.751), fix("c", 40.752))
        some, others = frozenset({DriverId("a"), DriverId("d")}), frozenset({DriverId("b")})
        for _ in range(2):
            assert names(index, 5, Where(exclude=some)) == ["b", "c"]
            assert names(index, 5, Where(exclude=others)) == ["a", "c"]
            assert names(index, 5) == ["a", "b", "c"]
        assert names(index, 5, Where(exclude=some)) == ["b", "c"]
        index.apply(batch(fix("d"), *(fix(f"e{n}", 40.76) for n in range(3000)), removals=[removal("a")]))
        assert names(index, 3, Where(exclude=some)) == ["b", "c", "e0"]
        index.reset(batch(fix("a"), fix("d"), fix("f")))
        assert names(index, 5, Where(exclude=some)) == ["f"]

    def test_many_excluded_neighbours_do_not_hide_the_next(self) -> None:
        index = index_of(*(fix(f"d{n:04d}", 40.75 + n * 1e-6) for n in range(2000)))
        where = Where(exclude=frozenset(DriverId(f"d{n:04d}") for n in range(1990)))
        assert names(index, 3, where) == ["d1990", "d1991", "d1992"]
        assert len(names(index, 30, where)) == 10

    def test_a_driver_without_seats_or_class_is_found_where_nothing_is_asked(self) -> None:
        """A record of zeros is one like any other."""
        index = index_of(fix("bare", seats=0, vehicle_class="", available=False), fix("d"))
        assert names(index, 5, ANYONE) == ["bare", "d"]
        assert names(index, 5) == ["bare", "d"]
        assert names(index, 5, Where()) == ["d"]


class TestSupply:
    def test_everyone_fresh_and_available_is_there_by_id(self) -> None:
        index = index_of(
            fix("d", 40.76), fix("break", available=False), fix("a", lon=-73.97), fix("old", age_ms=STALE_MS + 1)
        )
        supply = index.supply(NOW_MS)
        assert supply.driver_ids == ["a", "d"]
        assert (supply.lat.tolist(), supply.lon.tolist()) == ([40.75, 40.76], [-73.97, -73.98])
        assert index.supply(NOW_MS + STALE_MS + 1).driver_ids == []

    def test_the_excluded_are_neither_there_nor_counted_as_stale(self) -> None:
        index = index_of(fix("a"), fix("b"), fix("old", age_ms=STALE_MS + 1), fix("c", age_ms=STALE_MS + 1))
        supply = index.supply(NOW_MS, [DriverId("b"), DriverId("c"), DriverId("unknown")])
        assert supply.driver_ids == ["a"]
        assert supply.stale_within(HERE.lat, HERE.lon, 1.0) == 1

    def test_the_stale_are_counted_within_a_distance_of_any_kind_but_not_on_a_break(self) -> None:
        old = STALE_MS + 1
        index = index_of(
            fix("here", age_ms=old, seats=1),
            fix("near", 40.76, age_ms=old, vehicle_class="xl"),
            fix("break", age_ms=old, available=False),
            fix("fresh"),
        )
        away_m = float(distance_m(HERE.lat, HERE.lon, 40.76, HERE.lon))
        counts = [index.supply(NOW_MS).stale_within(HERE.lat, HERE.lon, reach_m) for reach_m in (0.0, away_m)]
        assert counts == [1, 2]

    def test_a_driver_is_of_the_kind_that_it_is_now(self) -> None:
        index = index_of(fix("a", vehicle_class="xl", seats=6, tags=5), fix("b"))
        index.apply(batch(fix("b", seq=2, seats=2, tags=TOP_TAG)))
        supply = index.supply(NOW_MS)
        kinds = [supply.kinds[kind] for kind in supply.kind.tolist()]
        assert kinds == [Kind("xl", 6, 5), Kind("standard", 2, TOP_TAG)]

    def test_what_was_handed_out_does_not_change_with_the_index(self) -> None:
        """A batch is decided over one moment, while positions go on arriving."""
        index = index_of(fix("a"), fix("old", age_ms=STALE_MS + 1))
        supply = index.supply(NOW_MS)
        index.apply(batch(fix("a", 41.0, seq=2, seats=1), fix("old", 41.0, seq=2)))
        assert (supply.driver_ids, supply.lat.tolist(), supply.stale_lat.tolist()) == (["a"], [40.75], [40.75])
        assert supply.kinds[int(supply.kind[0])] == Kind("standard", 4, 0)

    def test_within_a_box_are_the_same_drivers_without_those_outside(self) -> None:
        on_break = fix("on-break", available=False)
        index = index_of(fix("b"), fix("a", seats=0), fix("far", lat=41.0), fix("old", age_ms=STALE_MS + 1), on_break)
        box = (HERE.lat, HERE.lon, HERE.lat + 0.1, HERE.lon + 0.1)
        ids, lats, lons = index.available_in(box, NOW_MS)
        assert sorted(ids) == ["a", "b"]
        assert (lats.tolist(), lons.tolist()) == ([HERE.lat] * 2, [HERE.lon] * 2)
        assert index.available_in((0, 0, 1, 1), NOW_MS)[0] == []
        assert index_of().available_in(box, NOW_MS)[0] == []

    def test_nobody_is_a_supply_as_well(self) -> None:
        supply = index_of().supply(NOW_MS, [DriverId("a")])
        assert (supply.driver_ids, supply.kind.tolist()) == ([], [])
        assert supply.stale_within(HERE.lat, HERE.lon, 1e9) == 0


class TestOrder:
    def test_ties_are_broken_by_id_and_not_by_arrival(self) -> None:
        for arrival in (("c", "a", "b"), ("b", "c", "a")):
            index = index_of(*(fix(name) for name in arrival))
            assert names(index, 2) == ["a", "b"]

    def test_k_beyond_the_fleet_returns_the_fleet(self) -> None:
        assert names(index_of(fix("d"), fix("e", 41.0)), k=1000) == ["d", "e"]

    def test_no_driver_and_no_k_are_no_answer(self) -> None:
        assert names(index_of()) == []
        assert names(index_of(fix("d")), k=0) == []
        assert index_of().candidates([0.0], [0.0], 3, now_ms=NOW_MS).beyond_m.tolist() == [math.inf]

    def test_the_limit_is_inclusive(self) -> None:
        index = index_of(fix("d", 40.76))
        away_m = float(distance_m(HERE.lat, HERE.lon, 40.76, HERE.lon))
        assert names(index, limit_m=away_m) == ["d"]
        assert names(index, limit_m=math.nextafter(away_m, 0.0)) == []
        assert names(index, limit_m=0.0) == []
        assert names(index, limit_m=-1.0) == []

    @pytest.mark.parametrize("at", [HERE, LatLng(64.7, 10.5361991), LatLng(0.0, 180.0), LatLng(89.999, 10.0)])
    def test_a_lone_driver_just_inside_a_neighbouring_cell_is_not_missed(self, at: LatLng) -> None:
        """P8, at the very edge of the bound: its ball comes no nearer than the driver itself."""
        home = centre_of(cell_of(at.lat, at.lon, RESOLUTION))
        for turn in range(24):
            angle = math.radians(15 * turn)
            step = math.sin(angle) * 0.0083, math.cos(angle) * 0.0083 / math.cos(math.radians(home.lat))

            def along(share: float, step: tuple[float, float] = step) -> tuple[float, float]:
                lat, lon = home.lat + share * step[0], home.lon + share * step[1]
                return lat, math.remainder(lon, 360.0)

            other = centre_of(cell_of(*along(1.0), RESOLUTION))
            step = other.lat - home.lat, math.remainder(other.lon - home.lon, 360.0)
            places = {"lone": along(0.62, step), "near": along(0.45 - 0.1734, step), "far": along(0.45 - 0.1768, step)}
            index = index_of(*(fix(name, *place) for name, place in places.items()))
            point = LatLng(*along(0.45, step))
            expected = sorted(
                (float(distance_m(point.lat, point.lon, *place)), name) for name, place in places.items()
            )[:2]
            found = index.nearest(point, 2, now_ms=NOW_MS)
            assert [(each.distance_m, each.driver_id) for each in found] == expected
            listed = index.candidates([point.lat], [point.lon], 2, now_ms=NOW_MS)
            assert listed.distance_m.tolist() == [away_m for away_m, _ in expected]

    def test_a_crowd_on_one_spot_yields_its_smallest_ids(self) -> None:
        index = index_of(*(fix(f"d{n * 7 % 5000:04d}") for n in range(5000)), fix("near", 40.7501))
        assert names(index, 12) == [f"d{n:04d}" for n in range(12)]
        found = index.candidates([HERE.lat, 40.76] * 20, [HERE.lon] * 40, 12, now_ms=NOW_MS)
        listed = [found.driver_ids[driver] for driver in found.driver.tolist()]
        assert listed[:12] == [f"d{n:04d}" for n in range(12)]
        assert listed[12:24] == ["near", *(f"d{n:04d}" for n in range(11))]
        assert (found.beyond_m[:2] == found.distance_m[[11, 23]]).all()

    def test_newcomers_on_a_crowded_spot_are_told_in_the_order_of_their_ids(self) -> None:
        index = index_of(*(fix(f"d{n}") for n in (5, 3, 8)))
        for late in ("d4", "a", "d9"):
            index.apply(batch(fix(late)))
            assert names(index, 2) == sorted([each for each in ("d3", "d4", "a", "d5") if each in index])[:2]
        index.apply(batch(removals=[removal("d3")]))
        assert names(index) == ["a", "d4", "d5", "d8", "d9"]

    @pytest.mark.parametrize("k", [11, 400, 700])
    def test_those_about_as_far_as_the_last_are_told_apart_by_their_full_distances(self, k: int) -> None:
        """P8: hundreds within a few millimetres, closer than the tree's own places tell them apart."""
        places = {f"d{n * 7 % 900:03d}": (40.75 + (n // 2) * 1e-9, -73.98) for n in range(900)}
        index = index_of(*(fix(name, *place) for name, place in places.items()))
        expected = sorted((float(distance_m(40.7499, -73.98, *place)), name) for name, place in places.items())
        found = index.nearest(LatLng(40.7499, -73.98), k, now_ms=NOW_MS)
        assert [(each.distance_m, each.driver_id) for each in found] == expected[:k]

    def test_records_can_be_had_again_but_for_their_cells(self) -> None:
        made = [fix("b", heading_deg=1.5, tags=TOP_TAG, seq=4), fix("a", 40.76, age_ms=70, vehicle_class="a" * 12)]
        asked = batch(*reversed(made))
        found = index_of(*made).records_of(asked.ids)
        asked.records["cell"] = 0
        assert found.tobytes() == asked.records.tobytes()
        with pytest.raises(KeyError, match="unknown"):
            index_of(*made).records_of([DriverId("a"), DriverId("unknown")])

    def test_an_answer_tells_all_that_is_known(self) -> None:
        told = fix("d", 40.751, -73.981, heading_deg=271.25, speed_mps=12.5, age_ms=3_000, vehicle_class="xl", seats=6)
        [found] = index_of(told).nearest(HERE, 1, now_ms=NOW_MS)
        assert (found.lat, found.lon, found.heading_deg, found.speed_mps) == (40.751, -73.981, 271.25, 12.5)
        assert (found.age_ms, found.vehicle_class, found.seats, found.available) == (3_000, "xl", 6, True)
        assert found.distance_m == float(distance_m(HERE.lat, HERE.lon, 40.751, -73.981))
        assert index_of(told).held(DriverId("d"), NOW_MS) == told

    def test_a_negative_k_and_a_limit_that_is_no_number_are_refused(self) -> None:
        with pytest.raises(ValueError, match="k is -1"):
            names(index_of(fix("d")), k=-1)
        with pytest.raises(ValueError, match="limit_m"):
            names(index_of(fix("d")), limit_m=math.nan)


class TestCandidates:
    def test_pairs_are_ordered_by_point_distance_and_id(self) -> None:
        index = index_of(fix("b", 40.76), fix("a", 40.76), fix("c", 40.75), fix("z", 10.0))
        found = index.candidates([40.76, 40.75], [HERE.lon] * 2, 3, limit_m=10_000.0, now_ms=NOW_MS)
        assert found.point.tolist() == [0, 0, 0, 1, 1, 1]
        assert found.driver_ids == ["a", "b", "c"]
        assert found.driver.tolist() == [0, 1, 2, 2, 0, 1]
        assert found.beyond_m.tolist() == [math.inf, math.inf]
        columns = (found.point, found.driver, found.distance_m)
        assert [column.dtype.name for column in columns] == ["int32", "int32", "float64"]

    def test_what_lies_beyond_is_the_next_drivers_distance(self) -> None:
        index = index_of(fix("a", 40.76), fix("b", 40.77), fix("c", 40.78))
        found = index.candidates([HERE.lat], [HERE.lon], 2, now_ms=NOW_MS)
        assert found.beyond_m.tolist() == [float(distance_m(HERE.lat, HERE.lon, 40.78, HERE.lon))]
        assert found.driver_ids == ["a", "b"]

    def test_k_of_zero_tells_the_nearest_distance_alone(self) -> None:
        found = index_of(fix("a", 40.76)).candidates([HERE.lat], [HERE.lon], 0, now_ms=NOW_MS)
        assert (len(found.point), found.driver_ids) == (0, [])
        assert found.beyond_m.tolist() == [float(distance_m(HERE.lat, HERE.lon, 40.76, HERE.lon))]

    @pytest.mark.parametrize(("lat", "lon"), [(91.0, 0.0), (0.0, 181.0), (math.nan, 0.0), (0.0, math.inf)])
    def test_points_that_are_nowhere_are_refused(self, lat: float, lon: float) -> None:
        with pytest.raises(ValueError, match="points"):
            index_of(fix("d")).candidates([0.0, lat], [0.0, lon], 3, now_ms=NOW_MS)

    def test_no_point_is_no_pair(self) -> None:
        found = index_of(fix("d")).candidates([], [], 3, now_ms=NOW_MS)
        assert (len(found.point), len(found.beyond_m)) == (0, 0)


class TestUnsoundRecords:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("lat", math.nan),
            ("lat", 90.1),
            ("lon", -180.1),
            ("fix_ms", math.inf),
            ("seq", math.nan),
            ("epoch", 2.0**60),
        ],
    )
    def test_one_bad_record_is_left_out_and_harms_no_other(self, field: str, value: float) -> None:
        index = index_of(fix("d"))
        changed = batch(fix("d", 41.0, seq=2), fix("bad", seq=2), fix("e", 42.0))
        changed.records[field][1] = value
        assert index.apply(changed) == 2
        assert names(index) == ["d", "e"]

    def test_a_cell_that_is_not_the_drivers_own_changes_no_answer(self) -> None:
        moved = batch(*(fix(f"d{n}", 40.75 + n * 0.01, seq=n + 1) for n in range(30)))
        moved.records["cell"] = cell_of(-40.0, 100.0, RESOLUTION)
        moved.records["cell"][::3] = 0
        moved.records["cell"][1::3] = 2**63
        index = index_of()
        assert index.apply(moved) == 30
        assert names(index, 5) == ["d0", "d1", "d2", "d3", "d4"]

    def test_as_many_ids_as_records(self) -> None:
        with pytest.raises(ValueError, match="2 ids for 1 records"):
            index_of().apply(PositionBatch([DriverId("a"), DriverId("b")], np.zeros(1, dtype=RECORD)))

    def test_records_that_cannot_be_written_to_are_fine(self) -> None:
        made = batch(fix("d"))
        made.records = np.frombuffer(made.records.tobytes(), RECORD)
        index = index_of()
        assert index.apply(made) == 1
        assert names(index) == ["d"]
