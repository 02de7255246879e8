"""Run a recorded city in virtual time through the decisions of the live service, and compare policies.

Hours of a city take minutes, on one core, without a server or a socket. Times on a full minute are spread over
it. Every policy decides through the same code as the service; what differs is when it is called.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import hindsight, policies, recorded, replay, simulate_page, simulated
from benchmarks.arguments import not_negative, positive, positive_int
from benchmarks.machine import commit, machine
from benchmarks.page import NoPlots
from benchmarks.policies import POLICIES
from benchmarks.recorded import RecordsError, Rejects
from benchmarks.simulated import Row, Scenario, Task
from benchmarks.virtual_city import RoadWays, StraightWays, Ways
from geo.roads import RoadNetwork, RoadsError

FLEETS = (1500, 2500, 4000, 6874)
HINDSIGHT = "hindsight"
MAX_PICKUP_S = 1800.0
#: What the gap to hindsight should be closed by, at least.
GAP_CLOSED_GOAL = 0.5
#: The policy whose prices the series change.
SERIES_POLICY = "adaptive"
EXIT_UNUSABLE = 2
#: Where nobody looks at a terminal, its table is as wide as it needs to be.
FILE_COLUMNS = 150


def configure(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(module.__doc__ or "" for module in (policies, hindsight, simulated))
    _configure_city(parser)
    _configure_runs(parser)


def _configure_city(parser: argparse.ArgumentParser) -> None:
    city = parser.add_argument_group("the city (CSV, gzipped or not)")
    rides, drivers = ", ".join(recorded.RIDE_COLUMNS), ", ".join(recorded.DRIVER_COLUMNS)
    city.add_argument("--rides", type=Path, required=True, metavar="FILE", help=f"columns {rides}")
    city.add_argument("--drivers", type=Path, required=True, metavar="FILE", help=f"columns {drivers}")
    city.add_argument("--links", type=Path, metavar="FILE", help="road links: cars drive along them, not straight")
    city.add_argument("--limit", type=positive_int, metavar="N", help="only the first N rides")
    city.add_argument("--spread", action=argparse.BooleanOptionalAction, default=True, help="full minutes (yes)")
    city.add_argument("--seed", type=int, default=1, metavar="N", help="of the spread and of the fleets (1)")
    city.add_argument(
        "--speed-mps", type=positive, default=replay.DRIVER_SPEED_MPS, metavar="V", help="in straight lines (4.0)"
    )
    city.add_argument(
        "--boarding-s", type=not_negative, default=replay.BOARDING_S, metavar="S", help="from arriving to starting (20)"
    )
    city.add_argument(
        "--deadline-s", type=positive, default=replay.DEADLINE_S, metavar="S", help="how long a ride waits (600)"
    )
    city.add_argument(
        "--max-pickup-s", type=positive, default=MAX_PICKUP_S, metavar="S", help="longest way to a pickup (1800)"
    )


def _configure_runs(parser: argparse.ArgumentParser) -> None:
    runs = parser.add_argument_group("what is run")
    runs.add_argument("--fleet", type=_counts, default=FLEETS, metavar="N,N", help="drivers, drawn from the recorded")
    names = (*POLICIES, HINDSIGHT)
    runs.add_argument(
        "--policies", type=_names, default=names, metavar="NAME,NAME", help=f"default: all of {', '.join(names)}"
    )
    runs.add_argument(
        "--idle-bonus", type=_numbers, default=(), metavar="X,X", help=f"rows of {SERIES_POLICY} with these bonuses"
    )
    runs.add_argument(
        "--growth", type=_numbers, default=(), metavar="X,X", help=f"rows of {SERIES_POLICY}: price of a second waited"
    )
    runs.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (1)")
    runs.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    runs.add_argument("--report", type=Path, metavar="DIR", help="write a page with plots there")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(positive_int(each) for each in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(not_negative(each) for each in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in POLICIES and name != HINDSIGHT]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(unknown)}; there are {', '.join((*POLICIES, HINDSIGHT))}"
        )
    return names


def run(args: argparse.Namespace) -> int:
    console, rejects = Console(stderr=args.json), Rejects()
    if not console.is_terminal:
        console = Console(stderr=args.json, width=FILE_COLUMNS)
    try:
        if args.report is not None:
            simulate_page.check()
        scenario = read(args, rejects)
    except (RecordsError, RoadsError, NoPlots) as error:
        print(f"hexhail: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    _introduce(scenario, rejects, console)
    table, bounds = simulate(scenario, args, console)
    result: Row = {
        "subject": "simulate",
        "commit": commit(),
        "machine": machine(),
        "rides": len(scenario.wishes),
        "seed": args.seed,
        "ways": "roads" if args.links else "straight lines",
        "rejected_rows": dict(rejects.reasons),
        "table": table,
        "hindsight": bounds,
        "goals": goals_of(table),
    }
    for part in _tables(table, bounds):
        console.print(part)
    for name, (measured, goal, met) in result["goals"].items():
        console.print(f"{'met   ' if met else 'MISSED'}  {name}: {measured:g}, goal {goal:g}", highlight=False)
    if args.report is not None:
        console.print(f"written: {simulate_page.write(args.report, result)}", soft_wrap=True, highlight=False)
    if args.json:
        print(json.dumps(result))
    return 0


def read(args: argparse.Namespace, rejects: Rejects) -> Scenario:
    """The records as a scenario. Raises RecordsError or RoadsError."""
    args.positions = None  # the replay's other way to know drivers
    city = replay.read_city(args, rejects)
    ways: Ways = StraightWays(args.speed_mps)
    if args.links is not None:
        roads = RoadNetwork.read(args.links)
        rejects.reasons.update(roads.rejected)
        ways = RoadWays(roads)
    return Scenario(
        wishes=list(city.wishes),
        starts=city.starts,
        ways=ways,
        speed_mps=args.speed_mps,
        patience_s=args.deadline_s,
        boarding_s=args.boarding_s,
        max_pickup_s=args.max_pickup_s,
        seed=args.seed,
    )


def _introduce(scenario: Scenario, rejects: Rejects, console: Console) -> None:
    said = f"{len(scenario.wishes)} rides, {len(scenario.starts)} drivers recorded"
    if rejects.total:
        said += f"; {rejects.total} rows rejected: " + ", ".join(f"{n} x {why}" for why, n in rejects.reasons.items())
    console.print(said, soft_wrap=True, highlight=False, markup=False)


# The runs


def simulate(scenario: Scenario, args: argparse.Namespace, console: Console) -> tuple[list[Row], list[Row]]:
    """Rows of all fleets and policies, and what hindsight says of each fleet."""
    fleets = sorted({min(fleet, len(scenario.starts)) for fleet in args.fleet})
    tasks = [task for fleet in fleets for task in _tasks(fleet, args)]
    rows: dict[Task, Row] = {}
    bounds: list[Row] = []
    with _mapping(scenario, args.workers) as each:
        for task, row in zip(tasks, each(_run, tasks), strict=True):
            rows[task] = row
            said = f"{row['fleet']} drivers, {row['policy']}: {row['served']} served, {row['pickup_mean_s']} s"
            console.print(f"{said} ({row['run_s']} s)", highlight=False)
        by_fleet = {fleet: [rows[task] for task in tasks if task.fleet == fleet] for fleet in fleets}
        if HINDSIGHT in args.policies:
            bounds = list(each(_look_back, [(fleet, simulated.bounds_wanted(by_fleet[fleet])) for fleet in fleets]))
    known = {bound["fleet"]: bound["mean_pickup_s_at"] for bound in bounds}
    table = [row for fleet in fleets for row in simulated.compared(by_fleet[fleet], known.get(fleet, {}))]
    return table, bounds


def _tasks(fleet: int, args: argparse.Namespace) -> Iterator[Task]:
    for name in args.policies:
        if name != HINDSIGHT:
            yield Task(fleet, name, name)
    for label, key, values in (
        ("idle bonus", "idle_bonus", args.idle_bonus),
        ("growth", "unmatched_growth", args.growth),
    ):
        for value in values:
            yield Task(fleet, SERIES_POLICY, f"{SERIES_POLICY}, {label} {value:g}", ((key, value),))


_scenario: list[Scenario] = []


@contextmanager
def _mapping(scenario: Scenario, count: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` over so many processes that know the scenario; for one, in this process."""
    if count == 1:
        _take(scenario)
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, initializer=_take, initargs=(scenario,)) as pool:
        yield pool.map


def _take(scenario: Scenario) -> None:
    _scenario[:] = [scenario]


def _run(task: Task) -> Row:
    return simulated.run(_scenario[0], task)


def _look_back(wanted: tuple[int, Sequence[int]]) -> Row:
    return simulated.look_back(_scenario[0], *wanted)


# What is told


def goals_of(table: Iterable[Row]) -> dict[str, tuple[float, float, bool]]:
    """Per fleet the greatest part of the gap that any policy closes which serves no fewer rides than greedy."""
    goals: dict[str, tuple[float, float, bool]] = {}
    for row in table:
        name, closed = f"gap closed, {row['fleet']} drivers", row["gap_closed"]
        if closed is not None and row["no_fewer_served"] and closed > goals.get(name, (-1.0,))[0]:
            goals[name] = (closed, GAP_CLOSED_GOAL, closed >= GAP_CLOSED_GOAL)
    return goals


_COLUMNS = (
    ("policy", "policy"),
    ("served_share", "served"),
    ("expired", "expired"),
    ("pickup_mean_s", "pickup s"),
    ("pickup_p95_s", "p95"),
    ("drive_mean_s", "drive s"),
    ("empty_km", "empty km"),
    ("idle_gini", "idle gini"),
    ("hindsight_pickup_mean_s", "bound s"),
    ("gap_closed", "closed"),
    ("gap_closed_nearest", "of nearest's"),
    ("batches", "batches"),
    ("solve_mean_ms", "solve ms"),
    ("run_s", "run s"),
)


def _tables(table: Sequence[Row], bounds: Sequence[Row]) -> Iterator[Table | str]:
    """One a fleet."""
    driven = {bound["fleet"]: bound for bound in bounds}
    for fleet in sorted({row["fleet"] for row in table}):
        shown = Table(title=f"{fleet} drivers", title_justify="left")
        for _, heading in _COLUMNS:
            shown.add_column(heading, justify="left" if heading == "policy" else "right")
        for row in table:
            if row["fleet"] == fleet:
                shown.add_row(*("-" if row[name] is None else str(row[name]) for name, _ in _COLUMNS))
        yield shown
        if fleet in driven:
            bound = driven[fleet]
            yield (
                f"driven with hindsight: {bound['driven_served']} served, "
                f"{bound['driven_pickup_mean_s']} s on average\n"
            )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="hexhail simulate", description=__doc__)
    configure(made)
    return made


def main() -> int:
    return run(parser().parse_args())


if __name__ == "__main__":
    sys.exit(main())
