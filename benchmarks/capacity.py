"""How much is needed for how many drivers, from what was measured: python -m benchmarks.capacity [--markdown|--write]

Each cost is a figure of the newest record of its subject in results.jsonl (`hexhail bench SUBJECT --record`), whose
machine and commit are named; what is assumed beside them stands in `Assumptions`. Where a cost is missing, what
follows from it is shown as `?`, and the command that measures it is named. The same table stands in docs/capacity.md,
between two markers.

A *cell* is a deployment for some markets: its API processes each hold all of its drivers, so that everything they
answer comes from memory, and its size is bounded by what that costs each of them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.jsonl"
DOCUMENT = ROOT / "docs" / "capacity.md"
BEGIN, END = "<!-- capacity: begin -->", "<!-- capacity: end -->"
FLEETS = (10_000, 1_000_000, 10_000_000)
DAY_S = 86_400.0
GB = 1e9


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is not measured. A process is planned to use `share` of its core, so that a burst finds room."""

    position_every_s: float = 4.0
    rides_a_driver_day: float = 20.0
    peak_factor: float = 3.0
    searches_a_ride: float = 5.0
    share: float = 0.6
    drivers_a_cell: int = 100_000
    drivers_a_market: int = 50_000
    sockets_a_process: int = 15_000
    cores_a_writer: float = 8.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Where a cost stands in a result, and what it means."""

    subject: str
    key: str
    what: str
    unit: str

    @property
    def source(self) -> str:
        return f"`{self.subject}`: `{self.key}`"


#: By the names that the formulas know.
COSTS: Mapping[str, Cost] = {
    "position_us": Cost("ingest", "ours.cpu_us_a_position", "a position, in the API process that takes it in", "µs"),
    "replica_us": Cost("ingest", "ours.replica_cpu_us_a_position", "the same, in each further process", "µs"),
    "redis_us": Cost("ingest", "ours.redis_cpu_us_a_position", "the same, in Redis", "µs"),
    "request_us": Cost("requests", "ours.cpu_us_a_request", "a ride request, in the API process", "µs"),
    "database_us": Cost(
        "requests",
        "ours.database_cpu_us_a_request",
        "a ride request, in the database (a part of its whole life there)",
        "µs",
    ),
    "searches_a_s": Cost(
        "nearest", "ours.http.json.ours.median", "searches over HTTP by an API process", "a CPU-second"
    ),
    "matcher_s": Cost("city", "ours.cpu_s_a_ride.matcher", "a ride's whole life, in the matcher", "s"),
    "writer_s": Cost("city", "ours.cpu_s_a_ride.mariadb", "a ride's whole life, in the database", "s"),
    "index_bytes": Cost("memory", "ours.index_bytes_a_driver", "a driver, in each API process and matcher", "bytes"),
    "redis_bytes": Cost("memory", "ours.redis_bytes_a_driver", "a driver, in Redis", "bytes"),
    "socket_bytes": Cost("memory", "ours.socket_bytes", "a driver's socket, in its API process", "bytes"),
    "process_bytes": Cost("memory", "ours.api_process_bytes", "an API process without a driver", "bytes"),
}
Costs = Mapping[str, float]


class _Missing(Exception):
    """A formula asks for a cost that was not measured."""


class Known(dict[str, float]):
    """The costs that were measured."""

    def __missing__(self, name: str) -> float:
        raise _Missing(name)


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell's load at its peak, and what carries it; None where a cost for it is missing."""

    drivers: int
    api_processes: int | None
    api_cores: float | None
    redis_cores: float | None
    matcher_cores: float | None
    writer_cores: float | None
    api_process_bytes: float | None
    redis_bytes: float | None


@dataclass(frozen=True, slots=True)
class Limit:
    """What is full at how many drivers, and what to do then. `of` is what the drivers are counted of."""

    what: str
    of: str
    drivers: float | None
    then: str
    source: str


Records = Mapping[str, Mapping[str, Any]]


def newest_of(lines: Iterable[str]) -> Records:
    """Of each subject that has a cost its newest record that was no quick look. Raises ValueError for another text."""
    newest, subjects = {}, {cost.subject for cost in COSTS.values()}
    for line in lines:
        if line.strip():
            result = json.loads(line)
            if not result.get("quick") and result["subject"] in subjects:
                newest[result["subject"]] = result
    return newest


def costs_of(newest: Records) -> Known:
    found = ((name, _value(newest.get(cost.subject), cost.key)) for name, cost in COSTS.items())
    return Known({name: value for name, value in found if value is not None})


def measured_on(newest: Records) -> list[str]:
    """Where each subject was measured; what was measured on several machines is not one machine's capacity."""
    on = {subject: _machine_of(result) for subject, result in newest.items()}
    lines = [f"`{subject}` at {newest[subject].get('commit', '?')} on {machine}" for subject, machine in on.items()]
    if len(set(on.values())) > 1:
        lines.append("**these are different machines: the figures do not belong together**")
    noisy = [subject for subject, result in newest.items() if result.get("noisy")]
    return [*lines, f"too noisy to repeat: {', '.join(noisy)}"] if noisy else lines


def _machine_of(result: Mapping[str, Any]) -> str:
    machine = result.get("machine", {})
    return f"{machine.get('processor', '?')}, {machine.get('cores', '?')} cores, Python {machine.get('python', '?')}"


def _value(result: Any, key: str) -> float | None:
    for part in key.split("."):
        result = result.get(part) if isinstance(result, Mapping) else None
    return float(result) if isinstance(result, int | float) and math.isfinite(result) else None


def positions_per_s(drivers: float, given: Assumptions) -> float:
    return drivers / given.position_every_s


def rides_per_s(drivers: float, given: Assumptions) -> float:
    """At the peak."""
    return drivers * given.rides_a_driver_day * given.peak_factor / DAY_S


def cell_of(drivers: int, costs: Costs, given: Assumptions) -> Cell:
    """What carries so many drivers in one cell."""
    positions, rides = positions_per_s(drivers, given), rides_per_s(drivers, given)

    def own_cores() -> float:
        """What the API processes do together, each piece of it once."""
        searches = rides * given.searches_a_ride / costs["searches_a_s"]
        return (positions * costs["position_us"] + rides * costs["request_us"]) / 1e6 + searches

    def processes() -> int:
        """The replica's cost is each process's own, so it leaves less of every core."""
        left = given.share - positions * costs["replica_us"] / 1e6
        if left <= 0:
            raise _Missing("no number of processes is enough")
        return max(math.ceil(own_cores() / left), math.ceil(drivers / given.sockets_a_process))

    def process_bytes() -> float:
        sockets = math.ceil(drivers / processes())
        return costs["process_bytes"] + drivers * costs["index_bytes"] + sockets * costs["socket_bytes"]

    return Cell(
        drivers=drivers,
        api_processes=_known(processes),
        api_cores=_known(lambda: own_cores() + processes() * positions * costs["replica_us"] / 1e6),
        redis_cores=_known(lambda: positions * costs["redis_us"] / 1e6),
        matcher_cores=_known(lambda: rides * costs["matcher_s"] + positions * costs["replica_us"] / 1e6),
        writer_cores=_known(lambda: rides * costs["writer_s"]),
        api_process_bytes=_known(process_bytes),
        redis_bytes=_known(lambda: drivers * costs["redis_bytes"]),
    )


def _known(formula: Callable[[], T]) -> T | None:
    try:
        return formula()
    except _Missing:
        return None


def limits(costs: Costs, given: Assumptions) -> list[Limit]:
    """What is full first, and first of all; unknown ones last."""
    every_s, share = given.position_every_s, given.share
    found = [
        Limit(
            "an API process's sockets",
            "its own",
            float(given.sockets_a_process),
            "one more process (`--workers`); raise `sockets_max` only with the limit of open files (`ulimit -n`)",
            "the setting `sockets_max`",
        ),
        Limit(
            "an API process's core, taking positions in",
            "its own",
            _known(lambda: share * every_s * 1e6 / costs["position_us"]),
            "one more process",
            COSTS["position_us"].source,
        ),
        Limit(
            "half of every API process's share, following the others",
            "a cell",
            _known(lambda: share / 2 * every_s * 1e6 / costs["replica_us"]),
            "split the cell: other markets, with API processes, Redis and database of their own",
            COSTS["replica_us"].source,
        ),
        Limit(
            "one Redis core",
            "a market",
            _known(lambda: share * every_s * 1e6 / costs["redis_us"]),
            "a cell's markets go to several Redis (a market is one slot); one larger market must be split in two",
            COSTS["redis_us"].source,
        ),
        Limit(
            "the matcher's core",
            "a market",
            _known(
                lambda: share / (rides_per_s(1.0, given) * costs["matcher_s"] + costs["replica_us"] / every_s / 1e6)
            ),
            "one matcher a market: a matcher process that leads fewer markets; then split the market",
            COSTS["matcher_s"].source,
        ),
        Limit(
            f"a database primary of {given.cores_a_writer:g} cores",
            "a cell",
            _known(lambda: given.cores_a_writer * share / (rides_per_s(1.0, given) * costs["writer_s"])),
            "a database for each cell; a faster disk for its log first, where commits wait for it",
            COSTS["writer_s"].source,
        ),
    ]
    return sorted(found, key=lambda limit: math.inf if limit.drivers is None else limit.drivers)


def missing(costs: Costs) -> list[str]:
    """A line for each subject whose costs are not known."""
    wanted: dict[str, list[str]] = {}
    for name, cost in COSTS.items():
        if name not in costs:
            wanted.setdefault(cost.subject, []).append(cost.key)
    return [f"hexhail bench {subject} --record (for {', '.join(keys)})" for subject, keys in wanted.items()]


def cells_of(drivers: int, given: Assumptions) -> int:
    return math.ceil(drivers / given.drivers_a_cell)


def fleet_rows(costs: Costs, given: Assumptions) -> list[tuple[str, ...]]:
    """A row for each thing, a column for each fleet."""
    many = [cells_of(drivers, given) for drivers in FLEETS]
    cells = [cell_of(math.ceil(drivers / count), costs, given) for drivers, count in zip(FLEETS, many, strict=True)]

    def row(name: str, value: Callable[[Cell], float | None], *, whole: bool = False) -> tuple[str, ...]:
        return (name, *(_times(value(cell), count, whole=whole) for cell, count in zip(cells, many, strict=True)))

    def writers(cell: Cell) -> float | None:
        cores = cell.writer_cores
        return None if cores is None else math.ceil(cores / (given.cores_a_writer * given.share))

    return [
        ("positions/s", *(_number(positions_per_s(each, given)) for each in FLEETS)),
        ("rides/s at the peak", *(_number(rides_per_s(each, given)) for each in FLEETS)),
        ("cells", *map(str, many)),
        row("API processes", lambda cell: cell.api_processes, whole=True),
        row("cores busy in them", lambda cell: cell.api_cores),
        row("Redis cores busy", lambda cell: cell.redis_cores),
        row("Redis servers", lambda cell: _ceil(cell.redis_cores, given.share), whole=True),
        row("matchers' cores busy", lambda cell: cell.matcher_cores),
        row("matcher processes", lambda cell: _matchers(cell, given), whole=True),
        row("database cores busy", lambda cell: cell.writer_cores),
        row(f"database primaries of {given.cores_a_writer:g} cores", writers, whole=True),
        ("memory of an API process, GB", *(_number(_share(cell.api_process_bytes, GB)) for cell in cells)),
        row("Redis memory, GB", lambda cell: _share(cell.redis_bytes, GB)),
    ]


def _matchers(cell: Cell, given: Assumptions) -> int | None:
    """One core each, and a market each at least."""
    needed = _ceil(cell.matcher_cores, given.share)
    return None if needed is None else max(needed, math.ceil(cell.drivers / given.drivers_a_market))


def _ceil(cores: float | None, share: float) -> int | None:
    return None if cores is None else math.ceil(cores / share)


def _share(value: float | None, by: float) -> float | None:
    return None if value is None else value / by


def _times(value: float | None, count: int, *, whole: bool) -> str:
    if value is None:
        return "?"
    return f"{round(value * count):,}" if whole else _number(value * count)


def _number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "?"
    digits = float(f"{value:.3g}")
    return f"{digits:,.0f}" if abs(digits) >= 100 else f"{digits:g}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def markdown(costs: Costs, given: Assumptions, measured: Sequence[str] = ()) -> str:
    """The block of docs/capacity.md."""
    priced = [(cost.what, _number(costs.get(name)), cost.unit, cost.source) for name, cost in COSTS.items()]
    full = [(each.what, each.of, _number(each.drivers), each.then, each.source) for each in limits(costs, given)]
    lines = [
        "**What a thing costs**",
        "",
        *_table(("", "measured", "unit", "from"), priced),
        "",
        f"**What is needed**, with {_said(given)}:",
        "",
        *_table(("", *(f"{each:,} drivers" for each in FLEETS)), fleet_rows(costs, given)),
        "",
        "**What is full first, and what to do then**",
        "",
        *_table(("full", "drivers of", "at so many", "then", "from"), full),
    ]
    if measured:
        lines += ["", "Measured, the newest record of each:", "", *(f"- {each}" for each in measured)]
    if lacking := missing(costs):
        lines += ["", "Not measured yet (`?`):", "", *(f"- {each}" for each in lacking)]
    return "\n".join(lines)


def _said(given: Assumptions) -> str:
    """Every assumption with its name, so that none is hidden."""
    return ", ".join(f"`{each.name}` {getattr(given, each.name):g}" for each in fields(given))


def with_block(text: str, block: str) -> str:
    """The document with this between its markers. Raises ValueError where it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help=f"print the block of {DOCUMENT.name}")
    parser.add_argument("--write", action="store_true", help=f"write it into docs/{DOCUMENT.name}")
    args = parser.parse_args(argv)
    try:
        newest = newest_of(recorded())
    except ValueError as error:
        print(f"{RESULTS}: {error}", file=sys.stderr)
        return 2
    given, costs, measured = Assumptions(), costs_of(newest), measured_on(newest)
    block = markdown(costs, given, measured)
    if args.write:
        DOCUMENT.write_text(with_block(DOCUMENT.read_text(encoding="utf-8"), block), encoding="utf-8")
    elif args.markdown:
        print(block)
    else:
        _show(costs, given, measured)
    return 0


def recorded() -> list[str]:
    """The lines of the file of results; none where it does not exist."""
    return RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []


def _show(costs: Costs, given: Assumptions, measured: Sequence[str]) -> None:
    from benchmarks.tell import Teller

    tell = Teller()
    tell.table("what is needed", ("", *(f"{each:,} drivers" for each in FLEETS)), fleet_rows(costs, given))
    full = [(each.what, _number(each.drivers), f"of {each.of}") for each in limits(costs, given)]
    tell.table("what is full first", ("", "drivers", ""), full)
    for line in measured:
        tell.console.print(f"measured: {line}", markup=False)
    for line in missing(costs):
        tell.console.print(f"missing: {line}", markup=False)


if __name__ == "__main__":
    raise SystemExit(main())
