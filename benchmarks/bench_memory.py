"""Memory: bytes a driver in the index and in Redis, and bytes an idle driver's socket on the server's side.

The index is filled in a process of its own, beside a dict of objects of the same drivers. Redis is filled through
the feed, as the service does it; the stream of batches, of bounded length, does not count. Beside it stands GEOADD,
which keeps places alone. The sockets are held by one API process of the service with Redis and MariaDB, every driver
signed on and one position sent, and by a bare aiohttp server (half as many); what the kernel keeps for a socket counts
on neither side. Memory hardly differs from run to run, so one round
is the default, and a busy machine spoils nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import page, subject_page
from benchmarks.arguments import positive_int
from benchmarks.goals import Goal, judged, not_measured
from benchmarks.machine import versions
from benchmarks.memory_redis import feed_bytes_a_driver, geoadd_bytes_a_driver
from benchmarks.memory_sockets import REST_S, SOCKETS, bare, in_a_folder, sockets_possible
from benchmarks.rounds import interleaved, noise_of, ratio_of, rounded, spread_of
from benchmarks.tell import Teller

#: As many as a large market and a half have; the dict of objects is measured with a fourth of them.
INDEX_DRIVERS = 1_000_000
REDIS_DRIVERS = 120_000
QUICK = {"index": 20_000, "redis": 4000, "sockets": 200}
QUICK_REST_S = 0.1
CHILD_S_MAX = 170.0
GOALS = (
    Goal("index_bytes_a_driver", 300.0, at_most=True),
    Goal("redis_bytes_a_driver", 400.0, at_most=True),
    Goal("socket_bytes", 30 * 1024.0, at_most=True),
)
#: What is measured: ours, the peer's, the name of ours among the ratios, and of ours by the peer's.
PAIRS = (
    ("index", "objects", "index_bytes_a_driver", "index_vs_dict_of_objects"),
    ("redis", "geoadd", "redis_bytes_a_driver", "redis_vs_geoadd"),
    ("socket", "bare_socket", "socket_bytes", "socket_bytes_vs_bare_aiohttp"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=1)
    parser.add_argument("--quick", action="store_true", help="a few of each: for a look, not for figures")
    parser.add_argument("--sockets", type=positive_int, default=SOCKETS, metavar="N", help=f"to hold ({SOCKETS})")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises ServerMissing, NotStarted, NotHeld."""
    tell = Teller(json=args.json)
    index = QUICK["index"] if args.quick else INDEX_DRIVERS
    drivers = QUICK["redis"] if args.quick else REDIS_DRIVERS
    sockets = QUICK["sockets"] if args.quick else sockets_possible(args.sockets)
    bare_sockets = max(1, sockets // 2)
    rest_s = QUICK_REST_S if args.quick else REST_S
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "index": partial(_index, "ours", index, args.seed),
        "objects": partial(_index, "objects", index // 4, args.seed),
        "redis": lambda: {"bytes": feed_bytes_a_driver(drivers, args.seed)},
        "geoadd": lambda: {"bytes": geoadd_bytes_a_driver(drivers, args.seed)},
        "socket": partial(in_a_folder, sockets, rest_s),
        "bare_socket": partial(bare, bare_sockets, rest_s),
    }
    result = result_of(interleaved(sides, args.rounds, tell))
    result["quick"] = args.quick
    result["sizes"] = {
        "index_drivers": index,
        "redis_drivers": drivers,
        "sockets": sockets,
        "bare_sockets": bare_sockets,
    }
    _show(tell, result)
    return result


def _index(kind: str, drivers: int, seed: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory_index", kind, str(drivers), str(seed)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=CHILD_S_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    return {"bytes": found["bytes_a_driver"], "reachable_bytes": found["reachable_bytes_a_driver"]}


def result_of(measured: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """The rounds of every side as one result."""
    values = {side: [each["bytes"] for each in found] for side, found in measured.items()}
    ours: dict[str, Any] = {}
    others: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    noise: dict[str, float] = {}
    for mine, peer, name, against in PAIRS:
        ours[name], others[f"{peer}_bytes"] = spread_of(values[mine]).median, spread_of(values[peer]).median
        ours[f"{mine}_rounds"] = spread_of(values[mine]).as_json()
        ratios[name], noise[name] = ours[name], noise_of(values[mine])
        ratio = ratio_of(values[mine], values[peer])
        ratios[against], noise[against] = ratio.median, ratio.noise
    ours["index_reachable_bytes_a_driver"] = measured["index"][0]["reachable_bytes"]
    others["objects_reachable_bytes"] = measured["objects"][0]["reachable_bytes"]
    ours["socket_own_bytes"] = measured["socket"][0]["own_bytes"]
    ours["api_process_bytes"] = measured["socket"][0]["before_bytes"]
    # Less than nothing is freed memory used again: too few were measured to say anything.
    ratios = {name: value if (value := rounded(given) or 0.0) > 0 else math.nan for name, given in ratios.items()}
    return {
        "versions": versions("numpy", "aiohttp", "uvloop", "redis"),
        "ours": {name: rounded(value) if isinstance(value, float) else value for name, value in ours.items()},
        "peers": {name: rounded(value) for name, value in others.items()},
        "ratios": ratios,
        "noise": noise,
        "is_timed": False,
        "goals": judged(ratios, GOALS),
        "not_measured": not_measured(ratios, GOALS),
    }


def _rows(result: Mapping[str, Any]) -> list[tuple[str, float, str, float, float]]:
    labels = (
        ("a driver in the index", "in a dict of objects"),
        ("a driver in Redis, the stream aside", "by GEOADD, its place alone"),
        ("an idle driver's socket", "a bare aiohttp socket"),
    )
    return [
        (label, result["ours"][name], other, result["peers"][f"{peer}_bytes"], result["ratios"][against])
        for (label, other), (_, peer, name, against) in zip(labels, PAIRS, strict=True)
    ]


def _show(tell: Teller, result: Mapping[str, Any]) -> None:
    rows = [(f"{label} / {other}", mine, theirs, ratio) for label, mine, other, theirs, ratio in _rows(result)]
    tell.table("memory, bytes", ("of what / beside", "ours", "peer", "ratio"), rows)


def write_report(folder: Path, result: dict[str, Any]) -> Path:
    """Raises NoPlots."""
    rows = _rows(result)
    figure = page.new_figure("Bytes of each", "", "bytes")
    axes = figure.axes[0]
    axes.bar([each - 0.2 for each in range(len(rows))], [row[1] for row in rows], 0.4, label="ours")
    axes.bar([each + 0.2 for each in range(len(rows))], [row[3] for row in rows], 0.4, label="beside it")
    axes.set_xticks(range(len(rows)), [f"{row[0]}\nbeside {row[2]}" for row in rows], fontsize="small")
    axes.set_yscale("log")
    axes.legend()
    plots = [("Ours and the peers", "A logarithmic scale.", page.svg_of(figure))]
    return subject_page.write(folder, result, "Memory", plots, "Each in bytes, at most.")
