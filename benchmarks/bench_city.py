"""A whole city on this one machine: rides, positions, all verbs, and the highest load at which offers are in time.

Redis, MariaDB (durable commits), the matcher, the API workers and the load share the machine. Every driver has its
own socket and sends one position a frame; riders post over kept-alive connections, and a share of them follows its
ride's events. The load is open: everything is due at a time of its own, whatever the answers do, and latencies count
from there. Trips are timed, not driven at real speed: each takes 20 to 40 s from its acceptance to its completion, so
that drivers go as fast as that makes them (HEXHAIL_MAX_SPEED_MPS allows it, and nobody is replaced as stalled). In
the search trips are shorter, so that some seconds of it have all commands at their full rate.

The goal: an offer is at its driver's socket within the window and 0.25 s of its request (p99; a ride that is never
offered counts as late), positions are applied within a second (p99), every request is acknowledged, nothing is lost
and nothing doubled. The highest load is found by trying: where the machine would be full, then halfway between what
was met and what was missed. That load, or the whole one where it can be met, is then held for `--seconds`; all that
is reported is of that stretch. Its trips that still run at its end are hurried before the books are closed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

from benchmarks import city_page
from benchmarks.arguments import not_negative, positive, positive_int
from benchmarks.city_child import LoadEnded
from benchmarks.city_measure import Course, Measured, Stretch, measured
from benchmarks.city_options import OFFER_GRACE_S, CityOptions
from benchmarks.city_places import places_of
from benchmarks.city_service import new_secret
from benchmarks.goals import Goal, judged
from benchmarks.machine import versions
from benchmarks.recorded import RecordsError
from benchmarks.rounds import rounded
from benchmarks.service_child import NotStarted
from benchmarks.tell import Teller

RIDES_PER_S, POSITIONS_PER_S, DRIVERS = 200.0, 20_000.0, 10_000
#: A stretch ends with a tick of the clock, some milliseconds late: of its mean rates so much must be reached.
HELD_SHARE = 0.999
#: One stretch is held, once.
HAS_ROUNDS = False
SEARCH_S = 10.0
BUDGET_S = 160.0
PROFILE_S = 15.0
#: What `--quick` makes of it: a look at whether everything runs.
QUICK = {"rides_per_s": 10.0, "positions_per_s": 200.0, "drivers": 100, "seconds": 1.5, "window_s": 0.3}
TRIP_S = (20.0, 40.0)
QUICK_TRIP_S = (0.5, 1.0)
QUICK_SETTINGS = {"HEXHAIL_ACK_INTERVAL_S": "0.1", "HEXHAIL_DRAIN_S": "1"}


def configure(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("the load")
    load.add_argument("--rides-per-s", type=positive, metavar="N", help=f"of the whole load ({RIDES_PER_S:g})")
    load.add_argument("--positions-per-s", type=positive, metavar="N", help=f"the same ({POSITIONS_PER_S:g})")
    load.add_argument("--drivers", type=positive_int, metavar="N", help=f"each with a socket of its own ({DRIVERS})")
    load.add_argument("--seconds", type=positive, metavar="S", help="that the load is held (60)")
    load.add_argument("--trip-s", type=positive, nargs=2, metavar="S", help="least and greatest of a trip (20 40)")
    load.add_argument("--no-search", action="store_true", help="hold the whole load, whether or not it can be met")
    load.add_argument("--search-s", type=positive, default=SEARCH_S, metavar="S", help=f"of each try ({SEARCH_S:g})")
    load.add_argument("--rides", metavar="FILE", help="places of rides from a file of records, as of hexhail replay")
    service = parser.add_argument_group("the service")
    service.add_argument("--workers", type=positive_int, default=1, metavar="N", help="API processes (1)")
    service.add_argument("--assign", choices=("offer", "assign"), default="offer", help="ask drivers, or not (offer)")
    service.add_argument("--window-s", type=positive, metavar="S", help="the market's window, fixed (1)")
    service.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a HEXHAIL_ setting")
    parser.add_argument("--profile", action="store_true", help="sample worker and matcher with py-spy meanwhile")
    parser.add_argument("--profile-s", type=not_negative, default=PROFILE_S, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a small city for some seconds: for a look, not figures")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Raises ServerMissing, and NotStarted where anything else is missing or has ended."""
    tell = Teller(json=args.json)
    options, course = _options(args), _course(args)
    try:
        places = places_of(options.seed, options.drivers, options.rides_file)
        found = asyncio.run(measured(options, places, course, tell))
    except (LoadEnded, RecordsError) as error:
        raise NotStarted(str(error)) from error
    result = _result(found, course) | {"quick": args.quick}
    city_page.show(tell, result)
    return result


def _options(args: argparse.Namespace) -> CityOptions:
    def said(name: str, usual: float) -> float:
        value = getattr(args, name)
        return float(value if value is not None else QUICK[name] if args.quick else usual)

    return CityOptions(
        secret=new_secret(),
        rides_per_s=said("rides_per_s", RIDES_PER_S),
        positions_per_s=said("positions_per_s", POSITIONS_PER_S),
        drivers=int(said("drivers", DRIVERS)),
        window_s=said("window_s", 1.0),
        assign="auto" if args.assign == "assign" else "offer",
        trip_s=tuple(args.trip_s) if args.trip_s else QUICK_TRIP_S if args.quick else TRIP_S,
        think_s=(0.05, 0.1) if args.quick else (0.2, 1.0),
        follow_share=0.2 if args.quick else 0.02,
        seed=args.seed,
        rides_file=args.rides,
    )


def _course(args: argparse.Namespace) -> Course:
    seconds = args.seconds if args.seconds is not None else QUICK["seconds"] if args.quick else 60.0
    return Course(
        workers=args.workers,
        hold_s=seconds,
        search_s=0.0 if args.no_search or args.quick else args.search_s,
        budget_s=BUDGET_S,
        profile_s=min(args.profile_s, seconds) if args.profile else 0.0,
        settings=(QUICK_SETTINGS if args.quick else {}) | dict(each.partition("=")[::2] for each in args.set),
    )


def _result(found: Measured, course: Course) -> dict[str, Any]:
    options, held = found.options, found.held
    figures = held.figures
    match = found.closed.match_s.get(len(found.search) + 1)
    latencies = figures["latencies"] | ({"request_to_match": match.as_json()} if match is not None else {})
    offer = held.p99_s("request_to_offer")
    acknowledged_per_s = figures["counts"].get("acknowledged", 0) / figures["wall_s"]
    top = {
        "lost": found.closed.lost,
        "doubled": found.closed.doubled,
        "request_to_match_p99_s": 0.0 if match is None else match.at(99.0),
        "rides_per_s": acknowledged_per_s,
        "positions_per_s": figures["positions_per_s"],
    }
    highest = _highest(found)
    judgeable = top | {"request_to_offer_p99_s": offer, "load_factor": highest["rides_per_s"] / RIDES_PER_S}
    return {
        "versions": versions("aiohttp", "uvloop", "msgspec", "redis", "aiomysql", "numpy", "numba", "hdrhistogram"),
        **{name: rounded(value) for name, value in top.items()},
        "window_s": options.window_s,
        "ours": {
            "assign": "offer" if options.assign == "offer" else "assign",
            "workers": course.workers,
            "drivers": options.drivers,
            "rides": options.rides_file and Path(options.rides_file).name,
            "seconds": held.step.seconds,
            "factor": held.step.factor,
            "limit_s": options.limit_s,
            "highest_load": highest,
            "missed": held.misses(options.limit_s),
            "counts": figures["counts"],
            "completed": found.closed.states.get("completed", 0),
            "latencies": latencies,
            "generator": {"cpu_share": figures["cpu_share"], "is_late": held.is_late},
            "positions_unacked": found.end["unacked"],
            "positions_unapplied": found.end["unapplied"],  # of those that were timed
            "cpu_share": held.cpu_share,
            "cpu_s_a_ride": _cpu_a_ride(held, 1.0),
            "cpu_ms_a_ride": _cpu_a_ride(held, 1000.0),
            "signed_on": found.signed_on,
            "search": [_tried(each, options) for each in found.search],
            "audit": found.closed.as_json() | {"clients": found.end},
            "profile": found.profile,
            "offers": figures["offers"],
        },
        "peers": {},
        "ratios": {"load_factor": rounded(judgeable["load_factor"])},
        "goals": judged(judgeable, _goals(options)),
    }


def _highest(found: Measured) -> dict[str, float]:
    """The highest load that met the goal, and for how long it did; all 0 where none did."""
    stretch, options = found.highest, found.options
    factor = 0.0 if stretch is None else stretch.step.factor
    return {
        "factor": factor,
        "rides_per_s": options.rides_per_s * factor,
        "positions_per_s": options.positions_per_s * factor,
        "held_s": 0.0 if stretch is None else stretch.step.seconds,
    }


def _goals(options: CityOptions) -> list[Goal]:
    return [
        Goal("request_to_offer_p99_s", options.window_s + OFFER_GRACE_S, at_most=True),
        Goal("lost", 0, at_most=True),
        Goal("doubled", 0, at_most=True),
        Goal("rides_per_s", RIDES_PER_S * HELD_SHARE),
        Goal("positions_per_s", POSITIONS_PER_S * HELD_SHARE),
        Goal("load_factor", 1.0),
    ]


def _cpu_a_ride(stretch: Stretch, unit: float) -> dict[str, float | None]:
    """All CPU of the stretch, positions included, by its rides."""
    rides_per_s = max(stretch.figures["rides_per_s"], 1e-9)
    return {role: rounded(share * unit / rides_per_s) for role, share in stretch.cpu_share.items()}


def _tried(stretch: Stretch, options: CityOptions) -> dict[str, Any]:
    return {
        "factor": stretch.step.factor,
        "rides_per_s": options.rides_per_s * stretch.step.factor,
        "positions_per_s": options.positions_per_s * stretch.step.factor,
        "seconds": stretch.figures["wall_s"],
        "request_to_offer_p99_s": stretch.p99_s("request_to_offer"),
        "position_to_applied_p99_s": stretch.p99_s("position_to_applied"),
        "busy_share": rounded(stretch.busy_share),
        "cores": os.cpu_count(),
        "missed": stretch.misses(options.limit_s),
        "generator_is_late": stretch.is_late,
    }


def write_report(folder: Path, result: dict[str, Any]) -> Path:
    return city_page.write(folder, result)
