"""The nearest drivers: the index in process and over HTTP against Redis, Tile38, PostGIS and a bare aiohttp handler.

The fleet is 100,000 drivers in 20 hot spots of a square of 30 km (normal, sigma 1.5 km), asked for the 10 nearest of
places drawn like the drivers. Ours answers one point a call, with all that is known of each driver, or 1,000 points a
call, in columns. Redis answers GEOSEARCH ... BYRADIUS 3 km ASC COUNT 10 and Tile38 NEARBY ... LIMIT 10, ids alone,
at least sixteen in flight over one connection, timed until the last answer is there; Redis, which takes milliseconds
each, gets a part of the places that the others get (`places`). Redis is approximate: it rounds places
to 52 bits, on another earth radius, and within 3 km there may be fewer than 10. numpy's brute force and scipy's k-d
tree, which is static, knows no ids, kinds or freshness, stand beside for orientation. Answers are compared first.
Growth is 1,000 to 1,000,000 drivers at one density. Tile38 is started when tile38-server is on the PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import nearest_http, nearest_page
from benchmarks.cpu import cpu_s
from benchmarks.failures import NotMeasured
from benchmarks.goals import Goal, judged, not_measured
from benchmarks.machine import versions
from benchmarks.nearest_fleet import DRIVERS, NOW_MS, Queries, Scene, facts, growth_scene, worst_scenes
from benchmarks.nearest_peers import (
    IN_FLIGHT,
    BruteForce,
    PostGis,
    Tile38,
    Tree,
    Wire,
    marked_groups,
    redis_load,
    redis_questions,
    tile38_ids,
    tile38_load,
    tile38_questions,
)
from benchmarks.rounds import Ratio, interleaved, ratio_of, rounded, spread_of
from benchmarks.servers import RedisServer, ServerMissing
from benchmarks.tell import Teller
from geo.distance import distance_m, sphere_points_m
from geo.index import DriverIndex

K = 10
AT_ONCE = 1000
GROWTH = (1_000, 10_000, 100_000, 1_000_000)
COMPARED = 300
ENGAGED = 2_000
#: How much two distances to the same driver may differ.
EXACT_M, REDIS_M, TILE38_M = 0.01, 2.0, 2.0
POSTGIS_SHARE = 0.01
GOALS = (
    Goal("bulk_vs_redis_geosearch", 300.0),
    Goal("one_vs_redis_geosearch", 100.0),
    Goal("bulk_vs_tile38", 10.0),
    Goal("one_vs_tile38", 4.0),
    Goal("http_vs_bare_aiohttp", 0.5),
    Goal("growth_1m_vs_100k", 1.5, at_most=True),
)
QUICK_SHARE = 0.02


class Disagreement(NotMeasured):
    """Two sides find different drivers: nothing that was measured counts."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=5)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of every size: for a look, not for figures")
    parser.add_argument("--tile38", metavar="HOST:PORT", help="a Tile38 that runs already; its key `fleet` is replaced")
    parser.add_argument("--postgis", metavar="DSN", help="a PostgreSQL with PostGIS; needs psycopg")
    parser.add_argument("--no-http", action="store_true", help="leave the service process out")


def run(args: argparse.Namespace) -> dict[str, Any]:
    tell = Teller(json=args.json)
    bench = _Bench(args, tell)
    bench.compare_and_time_peers()
    bench.growth()
    bench.worst()
    http = {} if args.no_http else bench.http()
    measured = bench.ratios(http)
    ratios = {name: rounded(ratio.median) or math.nan for name, ratio in measured.items()}
    result = {
        "versions": versions("numpy", "scipy", "numba", "aiohttp", "uvloop", "redis"),
        "quick": args.quick,
        "city": facts() | {"drivers": bench.size(DRIVERS), "k": K, "in_flight": IN_FLIGHT},
        "ours": bench.ours | {"http": http},
        "peers": bench.peers,
        "ratios": ratios,
        "noise": {name: ratio.noise for name, ratio in measured.items()},
        "goals": judged(ratios, GOALS),
        "not_measured": not_measured(ratios, GOALS),
    }
    _show(tell, result)
    return result


class _Bench:
    def __init__(self, args: argparse.Namespace, tell: Teller) -> None:
        self._args, self._tell = args, tell
        self._share = QUICK_SHARE if args.quick else 1.0
        self.ours: dict[str, Any] = {}
        self.peers: dict[str, Any] = {}
        #: Seconds an answer, a figure a round.
        self._rounds: dict[str, list[float]] = {}
        self._growth: dict[str, list[float]] = {}
        self._tell(f"a fleet of {self.size(DRIVERS)} drivers")
        self._base = growth_scene(self.size(DRIVERS), self.size(5 * AT_ONCE), args.seed)
        self._index = self._base.fleet.index()

    def size(self, count: int) -> int:
        return max(100, round(count * self._share))

    # Peers

    def compare_and_time_peers(self) -> None:
        scene, few = self._base, self._base.queries.first(self.size(400))
        check_exact(scene, self._index, COMPARED)
        with ExitStack() as stack:
            sides: dict[str, Callable[[], float]] = {
                "one": partial(_one_by_one, self._index, scene),
                "bulk": partial(_all_at_once, self._index, scene),
                "redis_geosearch": self._redis(stack, few),
                **self._tile38(stack, scene.queries),
                **self._postgis(stack, few),
                **self._in_process(few),
            }
            self._tell("the same answers everywhere; now timed")
            self._rounds = interleaved(sides, self._args.rounds, self._tell)
        for name, seconds in self._rounds.items():
            (self.ours if name in ("one", "bulk") else self.peers).setdefault(name, {}).update(_micros(seconds))

    def _expect(self, name: str, found: Sequence[Sequence[int]], tolerance_m: float, within_m: float) -> None:
        """Raises Disagreement unless these drivers are as near as ours, as far as `within_m` goes."""
        disagree(name, self._base, self._index, found, tolerance_m, within_m)

    def _redis(self, stack: ExitStack, queries: Queries) -> Callable[[], float]:
        self._tell("redis: the fleet goes in, and its answers are compared")
        server = RedisServer()
        stack.callback(server.remove)
        server.start()
        wire = Wire("127.0.0.1", server.port)
        stack.callback(wire.close)
        wire.replies(redis_load(self._base.fleet))
        questions = redis_questions(queries, K)
        found = [_numbers(reply) for reply in wire.replies(redis_questions(self._base.queries.first(COMPARED), K))]
        self._expect("redis", found, REDIS_M, 3_000.0)
        self.peers["redis_geosearch"] = {
            "exact": False,
            "places": len(queries),
            "fewer_than_k": sum(len(each) < K for each in found) / len(found),
            "server_cpu_us": [],
        }
        return self._timed_wire(wire, marked_groups(questions), len(questions), "redis_geosearch", server.pid)

    def _timed_wire(
        self, wire: Wire, groups: list[bytes], questions: int, name: str, pid: int | None
    ) -> Callable[[], float]:
        def side() -> float:
            before_s = 0.0 if pid is None else cpu_s(pid)
            wall_s = wire.wall_s(groups)
            if pid is not None:
                self.peers[name]["server_cpu_us"].append(round((cpu_s(pid) - before_s) / questions * 1e6, 2))
            return wall_s / questions

        return side

    def _tile38(self, stack: ExitStack, queries: Queries) -> dict[str, Callable[[], float]]:
        try:
            server = Tile38(self._args.tile38)
        except ServerMissing as missing:
            self._tell(f"{missing}: left out")
            return {}
        stack.callback(server.stop)
        wire = Wire(server.host, server.port)
        stack.callback(wire.close)
        self._tell("tile38: the fleet goes in, and its answers are compared")
        wire.replies(tile38_load(self._base.fleet))
        replies = wire.replies(tile38_questions(queries.first(COMPARED), K))
        self._expect("tile38", [_numbers(tile38_ids(reply)) for reply in replies], TILE38_M, math.inf)
        self.peers["tile38"] = {"places": len(queries), "server_cpu_us": []}
        questions = tile38_questions(queries, K)
        return {"tile38": self._timed_wire(wire, marked_groups(questions), len(questions), "tile38", server.pid)}

    def _postgis(self, stack: ExitStack, queries: Queries) -> dict[str, Callable[[], float]]:
        if self._args.postgis is None:
            return {}
        self._tell("postgis: the fleet goes in, and its answers are compared")
        table = PostGis(self._args.postgis, self._base.fleet)
        stack.callback(table.close)
        found = [_numbers(ids) for ids in table.ids(self._base.queries.first(COMPARED), K)]
        farthest_m = float(max(_distances(self._base, number, row).max() for number, row in enumerate(found)))
        self._expect("postgis", found, POSTGIS_SHARE * farthest_m, math.inf)
        self.peers["postgis"] = {"exact": False, "in_flight": 1, "places": len(queries)}
        return {"postgis": lambda: _wall_s(lambda: table.ids(queries, K)) / len(queries)}

    def _in_process(self, few: Queries) -> dict[str, Callable[[], float]]:
        """For orientation: brute force, and a tree that knows places alone."""
        brute, tree = BruteForce(self._base.fleet), Tree(self._base.fleet)
        some = self._base.queries.first(COMPARED)
        self._expect("numpy", brute.numbers(some, K), EXACT_M, math.inf)
        self._expect("scipy", tree.numbers(some, K), EXACT_M, math.inf)
        places = sphere_points_m(self._base.queries.lat, self._base.queries.lon)
        brute_few = few.first(max(20, len(few) // 4))
        return {
            "numpy_brute_force": lambda: _wall_s(lambda: brute.numbers(brute_few, K)) / len(brute_few),
            "scipy_tree_one": lambda: _wall_s(lambda: tree.ask_each(places[:AT_ONCE], K)) / min(len(places), AT_ONCE),
            "scipy_tree_bulk": lambda: _wall_s(lambda: tree.ask_all(places, K)) / len(places),
        }

    # Growth and worst cases

    def growth(self) -> None:
        indexes: dict[int, tuple[DriverIndex, Scene]] = {}
        self.ours["growth"] = []
        for drivers in map(self.size, GROWTH):
            self._tell(f"growth: an index of {drivers} drivers")
            scene = growth_scene(drivers, self.size(2 * AT_ONCE), self._args.seed)
            began_s = time.process_time()
            index = scene.fleet.index()
            indexes[drivers] = (index, scene)
            self.ours["growth"].append({"drivers": drivers, "build_cpu_s": rounded(time.process_time() - began_s)})
            check_exact(scene, index, 20)
        sides: dict[str, Callable[[], float]] = {}
        for drivers, (index, scene) in indexes.items():
            sides[f"one_{drivers}"] = partial(_one_by_one, index, scene)
            sides[f"bulk_{drivers}"] = partial(_all_at_once, index, scene)
        self._growth = interleaved(sides, max(self._args.rounds, 1), lambda text: None)
        for row in self.ours["growth"]:
            row["one"] = _micros(self._growth[f"one_{row['drivers']}"])
            row["bulk"] = _micros(self._growth[f"bulk_{row['drivers']}"])

    def worst(self) -> None:
        self.ours["worst"] = {}
        for scene in worst_scenes(self._base, self.size(ENGAGED), self._args.seed):
            self._tell(f"worst cases: {scene.name}")
            index = self._index if scene.fleet is self._base.fleet else scene.fleet.index()
            check_exact(scene, index, 20)
            some = Scene(scene.name, scene.fleet, scene.queries.first(AT_ONCE), scene.where, scene.may)
            sides = {"one": partial(_one_by_one, index, some), "bulk": partial(_all_at_once, index, some)}
            found = interleaved(sides, self._args.rounds, lambda text: None)
            self.ours["worst"][scene.name] = {name: _micros(seconds) for name, seconds in found.items()}

    # HTTP

    def http(self) -> dict[str, Any]:
        plan = nearest_http.Plan(
            rounds=self._args.rounds,
            questions=self.size(6_000),
            rate=2000.0 if not self._args.quick else 200.0,
            seconds=3.0 if not self._args.quick else 0.3,
            k=K,
        )
        queries = self._base.queries.first(self.size(2_000))
        return asyncio.run(nearest_http.measure(self._base.fleet, queries, plan, self._tell))

    def ratios(self, http: dict[str, Any]) -> dict[str, Ratio]:
        rounds, found = self._rounds, {}
        for peer in ("redis_geosearch", "tile38", "postgis"):
            if peer in rounds:
                found[f"bulk_vs_{peer}"] = ratio_of(rounds[peer], rounds["bulk"])
                found[f"one_vs_{peer}"] = ratio_of(rounds[peer], rounds["one"])
        found["one_vs_scipy_tree"] = ratio_of(rounds["scipy_tree_one"], rounds["one"])
        found["bulk_vs_scipy_tree"] = ratio_of(rounds["scipy_tree_bulk"], rounds["bulk"])
        million, tenth = self.size(GROWTH[-1]), self.size(GROWTH[-2])
        found["growth_1m_vs_100k"] = ratio_of(self._growth[f"one_{million}"], self._growth[f"one_{tenth}"])
        found["growth_bulk_1m_vs_100k"] = ratio_of(self._growth[f"bulk_{million}"], self._growth[f"bulk_{tenth}"])
        if http:
            for name, key in (("json", "http_vs_bare_aiohttp"), ("msgpack", "http_msgpack_vs_bare_aiohttp")):
                found[key] = ratio_of(http[name]["ours_a_cpu_s"], http[name]["bare_a_cpu_s"])
        return found


def _one_by_one(index: DriverIndex, scene: Scene) -> float:
    """Seconds a point."""
    points, where, nearest = scene.queries.points, scene.where, index.nearest
    began_s = time.perf_counter()
    for point in points:
        nearest(point, K, where=where, now_ms=NOW_MS)
    return (time.perf_counter() - began_s) / len(points)


def _all_at_once(index: DriverIndex, scene: Scene) -> float:
    """Seconds a point, AT_ONCE of them a call."""
    lats, lons, where = scene.queries.lat, scene.queries.lon, scene.where
    began_s = time.perf_counter()
    for at in range(0, len(lats), AT_ONCE):
        index.candidates(lats[at : at + AT_ONCE], lons[at : at + AT_ONCE], K, where=where, now_ms=NOW_MS)
    return (time.perf_counter() - began_s) / len(lats)


def _wall_s(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def _micros(seconds: Sequence[float]) -> dict[str, Any]:
    return {f"{name}_us" if name != "rounds" else name: value for name, value in _spread(seconds).items()}


def _spread(seconds: Sequence[float]) -> dict[str, Any]:
    return spread_of([each * 1e6 for each in seconds]).as_json()


# Answers compared


def _numbers(ids: Sequence[str]) -> list[int]:
    """Of drivers, from their ids (see Fleet.at)."""
    return [int(name.rpartition("-")[2]) for name in ids]


def _distances(scene: Scene, number: int, drivers: Sequence[int]) -> Any:
    fleet, point = scene.fleet, scene.queries.points[number]
    return np.sort(distance_m(point.lat, point.lon, fleet.lat[drivers], fleet.lon[drivers]))


def disagree(
    name: str, scene: Scene, index: DriverIndex, found: Sequence[Sequence[int]], tolerance_m: float, within_m: float
) -> None:
    """Raises Disagreement unless the drivers found around the scene's first places are as near as ours.

    Distances are compared, which by our formula and the drivers' true places are the same for the same drivers.
    """
    for number, drivers in enumerate(found):
        near = index.nearest(scene.queries.points[number], K, where=scene.where, now_ms=NOW_MS)
        ours = np.array([each.distance_m for each in near])
        theirs = _distances(scene, number, drivers)
        surely = int(np.count_nonzero(ours <= within_m - tolerance_m))
        if len(theirs) < surely or np.abs(theirs[: len(ours)] - ours[: len(theirs)]).max(initial=0.0) > tolerance_m:
            raise Disagreement(f"{name} finds others around {scene.queries.points[number]}: {theirs} m, ours {ours} m")


def check_exact(scene: Scene, index: DriverIndex, count: int) -> None:
    """Raises Disagreement unless both our calls find what brute force does."""
    some = scene.queries.first(count)
    expected = BruteForce(scene.fleet, scene.may).numbers(some, K)
    disagree("brute force", scene, index, expected, EXACT_M, math.inf)
    found = index.candidates(some.lat, some.lon, K, where=scene.where, now_ms=NOW_MS)
    for number, row in enumerate(expected):
        bulk = np.sort(found.distance_m[found.point == number])
        if len(bulk) != len(row) or np.abs(bulk - _distances(scene, number, row)).max(initial=0.0) > EXACT_M:
            raise Disagreement(f"{scene.name}: many points at once find others around {some.points[number]}")


def _show(tell: Teller, result: dict[str, Any]) -> None:
    ours, peers = result["ours"], result["peers"]
    rows = [
        (f"ours, {name}", ours[name]["median_us"], ours[name]["low_us"], ours[name]["high_us"])
        for name in ("one", "bulk")
    ]
    rows += [(name, each["median_us"], each["low_us"], each["high_us"]) for name, each in peers.items()]
    tell.table("the ten nearest, microseconds a place", ("side", "median", "least", "most"), rows)
    grown = [(f"{row['drivers']:,}", row["one"]["median_us"], row["bulk"]["median_us"]) for row in ours["growth"]]
    worst = [(name, each["one"]["median_us"], each["bulk"]["median_us"]) for name, each in ours["worst"].items()]
    tell.table(
        "growth and worst cases, microseconds a place", ("drivers", "one a call", "1,000 a call"), [*grown, *worst]
    )
    if ours["http"]:
        http = ours["http"]
        sides = [
            (name, http[name]["ours"]["median"], http[name]["bare"]["median"], http[name]["bytes"])
            for name in ("json", "msgpack")
        ]
        sides += [
            (
                f"{name}, saturated",
                http[name]["saturated"]["ours"]["median"],
                http[name]["saturated"]["bare"]["median"],
                "",
            )
            for name in ("json", "msgpack")
        ]
        title = f"GET nearby, requests a CPU-second at {http['json']['rate']:g} requests/s"
        tell.table(title, ("format", "ours", "bare aiohttp", "bytes"), sides)
        tell.table("latency", tuple(http["latency"]), [tuple(http["latency"].values())])
        many = {name: each["median"] for name, each in http["many"].items() if isinstance(each, dict)}
        tell.table("POST nearby", tuple(many), [tuple(many.values())])


def write_report(folder: Path, result: dict[str, Any]) -> Path:
    return nearest_page.write(folder, result)
