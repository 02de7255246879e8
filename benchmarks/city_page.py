"""What a measured city shows people: tables in the terminal, and a page with plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.page import new_figure, svg_of, table_of, write_page
from benchmarks.subject_page import goals_table
from benchmarks.tell import Teller

#: In the order in which they come about; those that were not measured are left out.
STEPS = {
    "request_to_acknowledged": "request -> acknowledged",
    "request_to_match": "request -> matched (committed)",
    "request_to_offer": "request -> at the driver's socket",
    "request_to_event": "request -> event at the rider's stream",
    "accept": "accept, there and back",
    "arrive": "arrive",
    "start": "start",
    "complete": "complete",
    "position_to_applied": "position -> applied",
    "generator_lag": "the generator's own lag",
}


def _latency_rows(result: dict[str, Any]) -> list[list[Any]]:
    latencies = result["ours"]["latencies"]
    return [
        [words, each["p50_s"] * 1000.0, each["p99_s"] * 1000.0, each["max_s"] * 1000.0, each["count"]]
        for name, words in STEPS.items()
        if (each := latencies.get(name)) is not None
    ]


def _cpu_rows(result: dict[str, Any]) -> list[list[Any]]:
    ours = result["ours"]
    roles = sorted(ours["cpu_share"], key=lambda role: -ours["cpu_share"][role])
    rows = [[role, ours["cpu_share"][role], ours["cpu_ms_a_ride"][role]] for role in roles]
    return [*rows, ["together", sum(ours["cpu_share"].values()), sum(ours["cpu_ms_a_ride"].values())]]


def _search_rows(result: dict[str, Any]) -> list[list[Any]]:
    return [
        [
            f"{each['factor']:g}",
            each["rides_per_s"],
            each["positions_per_s"],
            each["request_to_offer_p99_s"],
            each["busy_share"],
            "; ".join(each["missed"]) or "met",
        ]
        for each in result["ours"]["search"]
    ]


LATENCY_HEADER = ("ms", "median", "p99", "longest", "count")
CPU_HEADER = ("process", "cores", "ms of CPU a ride")
SEARCH_HEADER = ("factor", "rides/s", "positions/s", "offer p99, s", "of the machine", "")


def show(tell: Teller, result: dict[str, Any]) -> None:
    ours = result["ours"]
    if ours["search"]:
        tell.table("the search", SEARCH_HEADER, _search_rows(result))
    tell.table(_title(result), LATENCY_HEADER, _latency_rows(result))
    tell.table("where the time went", CPU_HEADER, _cpu_rows(result))
    for role, lines in ours["profile"].items():
        rows = [[name, own, within] for name, own, within in lines]
        tell.table(f"{role}, by py-spy", ("function", "own share", "with what it called"), rows)
    counts = ", ".join(f"{count} {name}" for name, count in ours["counts"].items())
    tell(f"rides: {counts}; by state at the end: {ours['audit']['rides_by_state']}")
    tell(f"lost {result['lost']}, doubled {result['doubled']}")
    for example in ours["audit"]["examples"]:
        tell(f"  {example}")
    highest = ours["highest_load"]
    tell(
        f"highest load that was met: {highest['rides_per_s']:.0f} rides/s and {highest['positions_per_s']:.0f} "
        f"positions/s, for {highest['held_s']:g} s"
    )


def _title(result: dict[str, Any]) -> str:
    ours = result["ours"]
    load = f"{result['rides_per_s']:.0f} rides/s and {result['positions_per_s']:.0f} positions/s"
    return f"{load} of {ours['drivers']} drivers for {ours['seconds']:g} s, a window of {result['window_s']:g} s"


def write(folder: Path, result: dict[str, Any]) -> Path:
    ours = result["ours"]
    sections = [
        ("Goals", "Of the load that was held.", goals_table(result)),
        ("Offers", _title(result), svg_of(_offers(result))),
        (
            "Latencies",
            "From when each thing was due; milliseconds.",
            table_of(LATENCY_HEADER, _rounded(_latency_rows(result))),
        ),
        ("Where the time went", "CPU-seconds a second, by process.", table_of(CPU_HEADER, _rounded(_cpu_rows(result)))),
    ]
    if ours["search"]:
        words = "Each line is one try of some seconds, with trips of a few seconds."
        sections.append(("The search", words, table_of(SEARCH_HEADER, _rounded(_search_rows(result)))))
    for role, lines in ours["profile"].items():
        rows = [[name, f"{own:.1%}", f"{within:.1%}"] for name, own, within in lines]
        sections.append((f"Profile of {role}", "", table_of(("function", "own", "with callees"), rows)))
    machine = result.get("machine", {})
    footer = f"{result.get('commit', '')}, {machine.get('processor', '')}, {machine.get('cores', '')} cores"
    return write_page(folder, "A whole city on one machine", sections, footer)


def _offers(result: dict[str, Any]) -> Any:
    points = result["ours"]["offers"]
    figure = new_figure("from the request to the driver's socket", "seconds since the first request", "seconds")
    axes = figure.axes[0]
    at_s = [at for at, _, _ in points]
    axes.plot(at_s, [median for _, median, _ in points], label="median")
    axes.plot(at_s, [late for _, _, late in points], label="p99 of the second")
    axes.axhline(result["ours"]["limit_s"], linestyle="--", color="grey", label="window + 0.25 s")
    axes.set_ylim(bottom=0.0)
    axes.legend()
    return figure


def _rounded(rows: list[list[Any]]) -> list[list[Any]]:
    return [[f"{each:.4g}" if isinstance(each, float) else each for each in row] for row in rows]
