"""Positions taken in: the service against a bare aiohttp socket handler, and what each further replica costs.

One API process of the service (`hexhail serve --role api`) with a Redis and a MariaDB of its own has a socket for
each driver, signed on with its token; a bare aiohttp application in a process of its own has as many sockets that
only decode. Both get the very same frames, one msgpack position each, at the same even rate, in turn, from a load
generator in a process of its own; what is compared is the CPU time of the two server processes a position.

Included on our side: identity, plausibility, market, the newest-per-driver buffer, the batch to Redis, the process's
own replica of all drivers, acknowledgements, metrics. Not included: the CPU of Redis, of the database and of other
replicas, which are told beside it; what a further replica costs is compared with the intake, the CPU of an idle process
taken off both. A driver sends no more than one position a flush, so that nothing is saved by coalescing; were two to
meet when the machine stalls, the one that was not published by itself does not count. All must have been taken, and
after each round the newest of every driver stands in another process's replica, at the end in Redis, exactly as sent.
The bare handler checks no identity, keeps nothing and tells nobody.

Latencies count from when a position was due until another process's replica holds it. Beside this, once each and
without a goal: backlogs of ten positions a frame (of which the newest alone is published), a flood, a storm of
reconnects, JSON, all drivers by one gateway's socket, two workers.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ingest_page, ingest_round, running
from benchmarks.arguments import positive, positive_int
from benchmarks.goals import Goal, judged, not_measured
from benchmarks.ingest_round import Round, problems_told
from benchmarks.ingest_scenes import Scenes
from benchmarks.ingest_stage import FLUSH_MS, Stage, stage
from benchmarks.machine import versions
from benchmarks.rounds import interleaved_async, ratio_of, rounded, spread_of
from benchmarks.tell import Teller

GOALS = (Goal("vs_bare_aiohttp", 0.7), Goal("replica_vs_intake", 0.1, at_most=True))
DRIVERS, RATE_PER_S, ROUND_S = 1000, 5000.0, 5.0
SCENE_S = 4.0
#: Before anything counts: caches, connections and the interpreter's own specialising come to rest.
WARM_UP_S = 1.5
IDLE_S = 2.0
SETTLE_S = 0.8
SCENES: Mapping[str, str] = {
    "latency": "from due to found in another process's replica",
    "backlog": "ten positions a frame",
    "flood": "a tenth of the drivers floods for a second",
    "storm": "all sockets cut, back within two seconds",
    "json": "JSON instead of msgpack",
    "fleet": "all drivers by one gateway's socket",
    "workers": "two API processes on one port",
}
QUICK_SCENES = ("latency", "storm")


@dataclass(frozen=True, slots=True)
class Sizes:
    drivers: int
    rate_per_s: float
    round_s: float
    scene_s: float
    warm_up_s: float
    idle_s: float
    settle_s: float


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(rounds=5)
    parser.add_argument("--quick", action="store_true", help="few drivers, short rounds: for a look, not for figures")
    parser.add_argument("--drivers", type=positive_int, default=DRIVERS, metavar="N", help=f"sockets ({DRIVERS})")
    parser.add_argument(
        "--rate", type=positive, default=RATE_PER_S, metavar="N", help=f"positions a second ({RATE_PER_S:g})"
    )
    parser.add_argument(
        "--scenes", nargs="*", choices=list(SCENES), default=None, metavar="SCENE", help=f"of {', '.join(SCENES)} (all)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises ServerMissing, NotStarted, NotApplied, LoadFailed."""
    tell = Teller(json=args.json)
    sizes = sizes_of(args)
    scenes = args.scenes if args.scenes is not None else (QUICK_SCENES if args.quick else tuple(SCENES))
    with tempfile.TemporaryDirectory(prefix="hexhail-ingest-") as folder:
        result = running.run(_measure(Path(folder), sizes, args, scenes, tell))
    result["quick"] = args.quick
    _show(tell, result)
    return result


def sizes_of(args: argparse.Namespace) -> Sizes:
    """A driver sends at most one position a flush: its interval is one and a half of them, and more."""
    if args.quick:
        return Sizes(drivers=50, rate_per_s=250.0, round_s=0.4, scene_s=0.4, warm_up_s=0.2, idle_s=0.2, settle_s=0.3)
    fastest_per_s = args.drivers * 1000.0 / (1.5 * FLUSH_MS)
    return Sizes(args.drivers, min(args.rate, fastest_per_s), ROUND_S, SCENE_S, WARM_UP_S, IDLE_S, SETTLE_S)


async def _measure(
    folder: Path, sizes: Sizes, args: argparse.Namespace, names: Sequence[str], tell: Teller
) -> dict[str, Any]:
    tell("Redis, MariaDB, the service, the bare server, load and replica start ...")
    async with stage(folder) as on:
        on.settle_s = sizes.settle_s
        await on.load.call("register", port=on.port, secret=on.secret, drivers=sizes.drivers)
        scenes = Scenes(on, sizes.drivers, sizes.rate_per_s, sizes.scene_s, args.seed)
        tell(f"{sizes.drivers} drivers sign on ...")
        await scenes.open("msgpack")
        idle = await _warm_up_and_idle(on, sizes)
        found = await _rounds(on, sizes, args.rounds, tell)
        in_redis = await ingest_round.check_redis(on, "ours")
        result = result_of(found["ours"], found["bare"], idle, in_redis)
        result["sizes"] = {"drivers": sizes.drivers, "rate_per_s": sizes.rate_per_s, "round_s": sizes.round_s}
        for name in names:
            tell(f"{name}: {SCENES[name]} ...")
            scene: Callable[[], Awaitable[dict[str, Any]]] = getattr(scenes, name)
            result["ours"][name] = await scene()
    return result


async def _warm_up_and_idle(on: Stage, sizes: Sizes) -> dict[str, float]:
    """CPU share of each process with all sockets open and nothing sent."""
    await on.load.call("send", side="ours", rate_per_s=sizes.rate_per_s, seconds=0.0)  # one a driver
    await asyncio.sleep(on.settle_s)
    await on.follow()
    await ingest_round.ours(on, "ours", sizes.rate_per_s, sizes.warm_up_s, is_judged=False)
    await ingest_round.bare(on, "peer", sizes.rate_per_s, sizes.warm_up_s)
    used = await on.used()
    await asyncio.sleep(sizes.idle_s)
    used = (await on.used()).since(used)
    shares = {"api": used.api_s, "redis": used.redis_s, "replica": used.replica_s, "bare": used.peer_s}
    return {name: seconds / sizes.idle_s for name, seconds in shares.items()}


async def _rounds(on: Stage, sizes: Sizes, rounds: int, tell: Teller) -> dict[str, list[Round]]:
    sides: dict[str, Callable[[], Awaitable[Round]]] = {
        "ours": partial(ingest_round.ours, on, "ours", sizes.rate_per_s, sizes.round_s),
        "bare": partial(ingest_round.bare, on, "peer", sizes.rate_per_s, sizes.round_s),
    }
    return await interleaved_async(sides, rounds, tell)


def result_of(ours: Sequence[Round], bare: Sequence[Round], idle: Mapping[str, float], in_redis: int) -> dict[str, Any]:
    """Figures, ratios and goals. What a process uses when idle is taken off where a replica is compared with intake,
    on both sides; against the bare server nothing is taken off.
    """
    ours_us = [each.cpu_us(each.used.api_s) for each in ours]
    bare_us = [each.cpu_us(each.used.peer_s) for each in bare]
    redis_us = [each.cpu_us(each.used.redis_s) for each in ours]
    replica_us = [each.cpu_us(max(0.0, each.used.replica_s - idle["replica"] * each.wall_s)) for each in ours]
    intake_us = [each.cpu_us(max(0.0, each.used.api_s - idle["api"] * each.wall_s)) for each in ours]
    against = ratio_of([1 / each for each in ours_us], [1 / each for each in bare_us])
    replica = ratio_of(replica_us, intake_us)
    ratios = {"vs_bare_aiohttp": rounded(against.median), "replica_vs_intake": rounded(replica.median)}
    measured = {name: value for name, value in ratios.items() if value is not None}
    return {
        "versions": versions("aiohttp", "msgspec", "uvloop", "redis", "numpy"),
        "ours": {
            "cpu_us_a_position": rounded(statistics.median(ours_us)),
            "positions_per_cpu_s": rounded(1e6 / statistics.median(ours_us)),
            "replica_cpu_us_a_position": rounded(statistics.median(replica_us)),
            "redis_cpu_us_a_position": rounded(statistics.median(redis_us)),
            "spread": spread_of(ours_us).as_json(),
            "sent": sum(each.sent for each in ours),
            "applied": sum(each.positions for each in ours),
            "found_in_redis": in_redis,
            "idle_cpu_share": {name: rounded(share) for name, share in idle.items()},
            "generator_lag": ours[-1].load["lag"],
            "generator_cpu_us_a_frame": rounded(ours[-1].load["cpu_s"] / ours[-1].load["frames"] * 1e6),
            "acks": sum(each.load["told"].get("ack", 0) for each in ours),
            "told_otherwise": problems_told(ours),
        },
        "peers": {
            "bare_aiohttp": {
                "cpu_us_a_position": rounded(statistics.median(bare_us)),
                "positions_per_cpu_s": rounded(1e6 / statistics.median(bare_us)),
                "spread": spread_of(bare_us).as_json(),
                "generator_lag": bare[-1].load["lag"],
            }
        },
        "ratios": ratios,
        "noise": {"vs_bare_aiohttp": against.noise, "replica_vs_intake": replica.noise},
        "goals": judged(measured, GOALS),
        "not_measured": not_measured(measured, GOALS),
    }


def _show(tell: Teller, result: Mapping[str, Any]) -> None:
    ours, bare = result["ours"], result["peers"]["bare_aiohttp"]
    rows: list[tuple[object, ...]] = [
        (
            "one position a frame",
            ours["cpu_us_a_position"],
            bare["cpu_us_a_position"],
            result["ratios"]["vs_bare_aiohttp"],
        )
    ]
    for name in ("backlog", "json", "fleet"):
        if (figures := ours.get(name, {})).get("vs_bare_aiohttp") is not None:
            each = (figures["cpu_us_a_position"], figures["bare_cpu_us_a_position"], figures["vs_bare_aiohttp"])
            rows.append((SCENES[name], *each))
    tell.table("CPU of the server's process, us a position", ("", "ours", "bare aiohttp", "ratio"), rows)
    beside = [(name, ours[f"{name}_cpu_us_a_position"]) for name in ("replica", "redis")]
    tell.table("beside it, us a position", ("", "CPU"), beside)
    for name in ("latency", "flood", "storm", "workers"):
        if name in ours:
            tell.console.print(f"{name}: {ours[name]}", markup=False)


def write_report(folder: Path, result: dict[str, Any]) -> Path:
    return ingest_page.write(folder, result)
