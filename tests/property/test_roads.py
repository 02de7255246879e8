"""The road network against an oracle that tries every node between, and its top speed against everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from geo.distance import distance_m
from geo.legs import Floats
from geo.roads import Links, RoadNetwork

Place = tuple[float, float]


@st.composite
def places(draw: st.DrawFn, *, least: int, most: int) -> list[Place]:
    """Places that may coincide, differ by a last digit, lie in one town, or anywhere on the globe."""
    centre = draw(st.sampled_from([(0.0, 0.0), (40.75, -73.98), (65.0, 179.9999), (-89.9999, 20.0), (90.0, 0.0)]))
    reach = draw(st.sampled_from([1e-14, 1e-9, 1e-4, 0.01, 1.0, 400.0]))
    offsets = st.floats(-reach, reach)
    near = st.builds(
        lambda dlat, dlon: (
            min(max(centre[0] + dlat, -90.0), 90.0),
            min(max(math.remainder(centre[1] + dlon, 360.0), -180.0), 180.0),
        ),
        offsets,
        offsets,
    )
    some = draw(st.lists(near, min_size=1, max_size=most))
    return draw(st.lists(st.one_of(st.sampled_from(some), near), min_size=least, max_size=most))


def columns_of(some: list[Place]) -> tuple[Floats, Floats]:
    table = np.array(some, dtype=np.float64).reshape(len(some), 2)
    return table[:, 0], table[:, 1]


def links_of(nodes: list[Place], rows: list[tuple[int, int, float]]) -> Links:
    start, end = columns_of([nodes[row[0]] for row in rows]), columns_of([nodes[row[1]] for row in rows])
    return Links(*start, *end, np.array([row[2] for row in rows]))


@st.composite
def networks(draw: st.DrawFn) -> RoadNetwork:
    nodes = draw(places(least=2, most=7))
    ends = st.integers(0, len(nodes) - 1)
    rows = draw(st.lists(st.tuples(ends, ends, st.floats(1e-3, 1e5)), min_size=1, max_size=16))
    links = links_of(nodes, rows)
    access_mps = draw(st.sampled_from([0.5, 4.0, 1000.0]))
    return RoadNetwork(links, access_mps=access_mps, cache_bytes=draw(st.sampled_from([1, 100, 2**20])))


def links_between(links: Links, node_of: dict[Place, int], nodes: int) -> list[list[float]]:
    """Floyd and Warshall: the least time between any two nodes."""
    best = [[0.0 if a == b else math.inf for b in range(nodes)] for a in range(nodes)]
    columns = (links.start_lat, links.start_lon, links.end_lat, links.end_lon, links.travel_s)
    for lat1, lon1, lat2, lon2, travel_s in zip(*(column.tolist() for column in columns), strict=True):
        a, b = node_of[lat1, lon1], node_of[lat2, lon2]
        best[a][b] = min(best[a][b], travel_s)
    for via, a, b in itertools.product(range(nodes), repeat=3):
        best[a][b] = min(best[a][b], best[a][via] + best[via][b])
    return best


QUICK = settings(max_examples=150, deadline=None)


@QUICK
@given(data=st.data())
def test_seconds_are_those_of_trying_every_node_between(data: st.DataObject) -> None:
    nodes = data.draw(places(least=2, most=6))
    ends = st.integers(0, len(nodes) - 1)
    rows = data.draw(st.lists(st.tuples(ends, ends, st.floats(0.1, 1e4)), min_size=1, max_size=14))
    links = links_of(nodes, rows)
    roads = RoadNetwork(links, cache_bytes=data.draw(st.sampled_from([1, 2**20])))
    node_of = {place: n for n, place in enumerate(zip(roads.node_lat.tolist(), roads.node_lon.tolist(), strict=True))}
    assert set(node_of) == {nodes[end] for row in rows for end in row[:2]}

    between_s = links_between(links, node_of, len(node_of))
    asked = data.draw(places(least=1, most=5))
    node, away_m = roads.nearest_node(*columns_of(asked))
    pairs = list(itertools.product(range(len(asked)), repeat=2))
    origin, target = np.array(pairs).T
    lat, lon = columns_of(asked)
    straight_m = distance_m(lat[origin], lon[origin], lat[target], lon[target])
    found = roads.seconds(lat, lon, lat, lon, origin, target)
    for (a, b), direct_m, found_s in zip(pairs, straight_m.tolist(), found.tolist(), strict=True):
        off_road_m = float(away_m[a] + away_m[b])
        if node[a] == node[b] or direct_m <= off_road_m:
            expected_s = direct_m / roads.access_mps
        else:
            expected_s = off_road_m / roads.access_mps + between_s[node[a]][node[b]]
        assert found_s == expected_s or math.isclose(found_s, expected_s, rel_tol=1e-9)


@QUICK
@given(roads=networks(), asked=places(least=1, most=6))
def test_no_node_is_nearer_than_the_nearest(roads: RoadNetwork, asked: list[Place]) -> None:
    lat, lon = columns_of(asked)
    node, away_m = roads.nearest_node(lat, lon)
    all_m = distance_m(lat[:, None], lon[:, None], roads.node_lat, roads.node_lon)
    assert away_m.tolist() == all_m[np.arange(len(asked)), node].tolist()
    # Chords decide, whose squares lose what is shorter than a micrometre, and near the antipode what is some metres.
    assert (away_m <= all_m.min(axis=1) * (1.0 + 1e-6) + 1e-6).all()


@QUICK
@given(roads=networks(), origins=places(least=1, most=6), targets=places(least=1, most=6))
def test_nothing_beats_the_top_speed(roads: RoadNetwork, origins: list[Place], targets: list[Place]) -> None:
    (lat1, lon1), (lat2, lon2) = columns_of(origins), columns_of(targets)
    origin, target = np.array(list(itertools.product(range(len(origins)), range(len(targets))))).T
    found = roads.seconds(lat1, lon1, lat2, lon2, origin, target)
    straight_m = distance_m(lat1[origin], lon1[origin], lat2[target], lon2[target])
    assert (found >= straight_m / roads.top_speed_mps).all()
    assert roads.access_mps <= roads.top_speed_mps


@QUICK
@given(roads=networks(), ends=places(least=2, most=2))
def test_a_path_takes_the_seconds_that_were_said_and_never_goes_back_in_time(
    roads: RoadNetwork, ends: list[Place]
) -> None:
    (lat1, lon1), (lat2, lon2) = ends
    first = np.array([0])
    found = roads.seconds(*columns_of(ends[:1]), *columns_of(ends[1:]), first, first)[0]
    way = roads.path(lat1, lon1, lat2, lon2)
    if math.isinf(found):
        assert way == []
        return
    assert way[0] == (0.0, lat1, lon1)
    assert way[-1] == (found, lat2, lon2)
    at_s = [each[0] for each in way]
    assert at_s == sorted(at_s)
    nodes = set(zip(roads.node_lat.tolist(), roads.node_lon.tolist(), strict=True))
    assert {(lat, lon) for _, lat, lon in way[1:-1]} <= nodes
