"""The road network: reading links, the nearest node, the fastest way, and what is kept of it."""

from __future__ import annotations

import gzip
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from geo.distance import distance_m
from geo.roads import COLUMNS, Links, RoadNetwork, RoadsError

HEADER = ",".join(COLUMNS) + "\n"
#: A degree of longitude on the equator: places below are named by their kilometres east of (0, 0).
KM = 1000.0 / float(distance_m(0.0, 0.0, 0.0, 1.0))
STREET = [(0, 1, 100.0), (1, 0, 120.0), (1, 2, 100.0), (2, 3, 50.0), (3, 2, 50.0)]


def network(links: list[tuple[int, int, float]], *, access_mps: float = 4.0, cache_bytes: int = 2**20) -> RoadNetwork:
    """A road along the equator: links (from km, to km, seconds)."""
    start, end, travel_s = np.array(links, dtype=np.float64).T
    level = np.zeros(len(links))
    return RoadNetwork(
        Links(level, start * KM, level, end * KM, travel_s), access_mps=access_mps, cache_bytes=cache_bytes
    )


def seconds(roads: RoadNetwork, origin_km: float, target_km: float, *, off_km: float = 0.0) -> float:
    """From a place on the road to a place `off_km` north of it; and `path` says the same."""
    origin, target = (0.0, origin_km * KM), (off_km * KM, target_km * KM)
    first = np.array([0])
    lat, lon = (np.array([[each] for each in axis]) for axis in zip(origin, target, strict=True))
    found = float(roads.seconds(lat[0], lon[0], lat[1], lon[1], first, first)[0])
    way = roads.path(*origin, *target)
    assert (way[-1][0] if way else math.inf) == found
    return found


# The fastest way


def test_links_are_followed_in_their_direction() -> None:
    roads = network(STREET)
    assert len(roads) == 4
    assert seconds(roads, 0, 1) == 100.0
    assert seconds(roads, 1, 0) == 120.0
    assert seconds(roads, 0, 3) == 250.0


def test_where_there_is_no_way_it_takes_for_ever() -> None:
    roads = network(STREET)
    assert seconds(roads, 2, 1) == math.inf
    assert roads.path(0.0, 2 * KM, 0.0, 1 * KM) == []


def test_of_parallel_links_the_fastest_counts() -> None:
    assert seconds(network([(0, 1, 90.0), (0, 1, 60.0), (0, 1, 70.0)]), 0, 1) == 60.0


def test_a_detour_is_taken_where_it_is_faster() -> None:
    assert seconds(network([(0, 2, 500.0), (0, 1, 100.0), (1, 2, 100.0)]), 0, 2) == 200.0


def test_the_ways_to_the_road_and_from_it_are_straight_at_the_access_speed() -> None:
    roads = network(STREET, access_mps=5.0)
    assert seconds(roads, 0.1, 2, off_km=0.3) == pytest.approx(100 / 5.0 + 200.0 + 300 / 5.0, rel=1e-6)


def test_between_places_of_the_same_node_the_car_goes_straight() -> None:
    roads = network(STREET, access_mps=5.0)
    assert seconds(roads, 0.1, -0.2) == pytest.approx(300 / 5.0, rel=1e-6)
    assert seconds(roads, 0, 0) == 0.0


def test_places_nearer_to_each_other_than_to_their_nodes_need_no_road() -> None:
    roads = network(STREET, access_mps=5.0)
    assert seconds(roads, 0.45, 0.55) == pytest.approx(100 / 5.0, rel=1e-6)
    assert seconds(roads, 1.6, 1.4) == pytest.approx(200 / 5.0, rel=1e-6), "against the only link between their nodes"


def test_nobody_is_faster_off_the_road_than_on_it() -> None:
    roads = network([(0, 1, 500.0), (1, 0, 800.0)], access_mps=30.0)
    assert roads.access_mps == pytest.approx(2.0)
    assert roads.top_speed_mps == pytest.approx(2.0, rel=1e-5)
    assert roads.top_speed_mps > roads.access_mps


def test_the_path_names_each_node_with_the_seconds_from_the_start() -> None:
    roads = network(STREET, access_mps=5.0)
    way = roads.path(0.1 * KM, 0.0, 0.0, 2.9 * KM)
    assert [at_s for at_s, _, _ in way] == pytest.approx([0.0, 20.0, 120.0, 220.0, 270.0, 290.0])
    assert [lon / KM for _, _, lon in way] == pytest.approx([0.0, 0.0, 1.0, 2.0, 3.0, 2.9])
    assert [lat / KM for _, lat, _ in way] == pytest.approx([0.1, 0.0, 0.0, 0.0, 0.0, 0.0])


def test_the_nearest_node_is_found_across_the_antimeridian() -> None:
    level = np.zeros(2)
    roads = RoadNetwork(Links(level, np.array([179.99, 0.0]), level, np.array([179.9, 179.99]), np.full(2, 9e6)))
    node, away_m = roads.nearest_node([0.0, 1.0], [-179.99, 0.0])
    assert roads.node_lon[node].tolist() == [179.99, 0.0]
    assert away_m == pytest.approx([float(distance_m(0, 179.99, 0, -179.99)), float(distance_m(0, 0, 1, 0))])


# Many pairs, and what is kept


def grid(side: int, rng: np.random.Generator) -> Links:
    """A square of streets, each way with a time of its own."""
    lat, lon = (axis.reshape(-1) for axis in np.meshgrid(np.arange(float(side)), np.arange(float(side))))
    near = np.abs(lat[:, None] - lat) + np.abs(lon[:, None] - lon) == 1
    start, end = np.nonzero(near)
    travel_s = rng.uniform(60.0, 300.0, len(start))
    return Links(lat[start] * KM, lon[start] * KM, lat[end] * KM, lon[end] * KM, travel_s)


def test_a_small_cache_answers_as_a_large_one_does() -> None:
    rng = np.random.default_rng(3)
    links = grid(7, rng)
    large = RoadNetwork(links)
    small = RoadNetwork(links, cache_bytes=5 * 8 * 49)
    single = RoadNetwork(links, cache_bytes=1)
    for _ in range(6):
        origin_lat, origin_lon = rng.uniform(-1.0, 8.0, (2, 40)) * KM
        target_lat, target_lon = rng.uniform(-1.0, 8.0, (2, 9)) * KM
        origin, target = rng.integers(0, 40, 300), rng.integers(0, 9, 300)
        asked = (origin_lat, origin_lon, target_lat, target_lon, origin, target)
        right = large.seconds(*asked)
        assert np.isfinite(right).all()
        assert small.seconds(*asked).tolist() == right.tolist()
        assert single.seconds(*asked).tolist() == right.tolist()


def test_no_pairs_take_no_time() -> None:
    none, nobody = np.empty(0), np.empty(0, dtype=np.int64)
    assert network(STREET).seconds(none, none, none, none, nobody, nobody).tolist() == []


def test_places_and_pairs_that_are_not_there_are_refused() -> None:
    roads = network(STREET)
    here, first = np.zeros(1), np.array([0])
    with pytest.raises(ValueError):
        roads.nearest_node([91.0], [0.0])
    with pytest.raises(ValueError):
        roads.seconds(here, here, here, np.array([math.nan]), first, first)
    with pytest.raises(ValueError):
        roads.seconds(here, here, here, here, first, np.array([1]))
    with pytest.raises(ValueError):
        roads.seconds(here, here, here, here, first, np.array([0, 0]))
    with pytest.raises(ValueError):
        roads.path(0.0, 181.0, 0.0, 0.0)


@pytest.mark.parametrize(("access_mps", "cache_bytes"), [(0.0, 1), (-4.0, 1), (math.nan, 1), (4.0, 0)])
def test_speeds_and_caches_that_are_not_positive_are_refused(access_mps: float, cache_bytes: int) -> None:
    with pytest.raises(ValueError):
        network(STREET, access_mps=access_mps, cache_bytes=cache_bytes)


def test_links_that_are_none_are_refused() -> None:
    one, none = np.zeros(1), np.empty(0)
    for travel_s in (np.zeros(1), np.array([-1.0]), np.array([math.nan]), np.array([math.inf]), np.ones(2)):
        with pytest.raises(ValueError):
            Links(one, one, one, one, travel_s)
    with pytest.raises(ValueError):
        Links(none, none, none, none, none)


# Reading


def written(path: Path, text: str, *, zipped: bool = False) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_links_are_read_from_csv_gzipped_or_not(tmp_path: Path, zipped: bool) -> None:
    text = "\ufeff" + HEADER + "40.70,-74,40.71,-74.0,1112,100\n40.71,-74.00,40.7,-74,1112,111.2\n"
    roads = RoadNetwork.read(written(tmp_path / "links", text, zipped=zipped), access_mps=3.0)
    assert len(roads) == 2, "the same coordinates are the same node, however they are written"
    assert roads.access_mps == 3.0
    assert roads.top_speed_mps == pytest.approx(11.12, rel=1e-3)
    assert roads.rejected == Counter()


def test_columns_come_in_any_order_among_others(tmp_path: Path) -> None:
    text = "name,travel_s,end_lon,end_lat,start_lon,start_lat,length_m\nBroadway,50,0.01,0,0,0,1112\n"
    roads = RoadNetwork.read(written(tmp_path / "links.csv", text))
    assert roads.path(0.0, 0.0, 0.0, 0.01)[-1] == (50.0, 0.0, 0.01)


def test_rows_that_cannot_be_used_are_counted_with_their_reason(tmp_path: Path) -> None:
    rows = (
        "0,0,0,0.01,1112,100",
        "",
        "0,0,0,0.01,1112,0",
        "0,0,0,0.01,1112,-3",
        "0,0,0,0.01,1112,soon",
        "0,0,0,0.01,1112,nan",
        "0,0,0,0.01,1112",
        "91,0,0,0.01,1112,100",
        "0,0,0,181,1112,100",
        "0,0,0,0.01,-1,100",
        "5,5,5.0,5.00,0,1",
        "0,0,0,0.01,1112,1",
        '0,0,0,0.02,2224,"200',
    )
    roads = RoadNetwork.read(written(tmp_path / "links.csv", HEADER + "\n".join(rows) + "\n"))
    assert len(roads) == 3, "an open quote at the end does no harm"
    assert roads.rejected == {
        "travel_s is not positive": 2,
        "travel_s is not a number": 1,
        "travel_s is not finite": 1,
        "travel_s is empty": 1,
        "start_lat is not within [-90, 90]": 1,
        "end_lon is not within [-180, 180]": 1,
        "length_m is negative": 1,
        "start and end are the same place": 1,
        "passed at more than 70 m/s": 1,
    }


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = "".join(f"0,{lon},0,{lon + 0.01},1112,100\n" for lon in rng.random(2000).tolist())
    path = tmp_path / "links.csv.gz"
    path.write_bytes(gzip.compress((HEADER + rows).encode())[:-2000])
    roads = RoadNetwork.read(path)
    assert 0 < len(roads) < 4000
    assert any(reason.startswith("the file breaks off") for reason in roads.rejected)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no column start_lat"),
        ("start_lat,start_lon,end_lat,end_lon,length_m\n0,0,0,1,1\n", "has no column travel_s; its first line must"),
        (HEADER, "no usable row: it has no row"),
        (HEADER + "0,0,0,1,1,0\n", r"no usable row: travel_s is not positive \(1\)"),
        (HEADER + "0,0,0,1,1,1\n", r"no usable row: passed at more than 70 m/s \(1\)"),
    ],
)
def test_a_file_without_roads_is_refused_with_a_helpful_text(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RoadsError, match=says):
        RoadNetwork.read(written(tmp_path / "links.csv", text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RoadsError, match="cannot read"):
        RoadNetwork.read(tmp_path / "nowhere.csv")
    with pytest.raises(RoadsError, match="cannot read"):
        RoadNetwork.read(tmp_path)


@pytest.mark.recorded
def test_the_recorded_roads_of_manhattan_are_read_whole_and_connected() -> None:
    folder = Path(os.environ.get("HEXHAIL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    file = folder / "nyc_2013_hour" / "links.csv.gz"
    if not file.exists():
        pytest.skip(f"the recorded links are not at {file}; HEXHAIL_TEST_DATA names the folder")
    roads = RoadNetwork.read(file)
    assert (len(roads), roads.rejected.total()) == (3_873, 0)
    assert 40.0 < roads.top_speed_mps < 50.0
    rng = np.random.default_rng(1)
    origin, target = rng.integers(0, len(roads), (2, 20_000))
    places = roads.node_lat, roads.node_lon
    found = roads.seconds(*places, *places, origin, target)
    assert np.isfinite(found).all()
    straight_m = distance_m(places[0][origin], places[1][origin], places[0][target], places[1][target])
    assert (found >= straight_m / roads.top_speed_mps).all()
    a, b = int(origin[0]), int(target[0])
    way = roads.path(places[0][a], places[1][a], places[0][b], places[1][b])
    assert way[-1][0] == found[0]
    assert len(way) > 5
