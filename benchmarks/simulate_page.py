"""The page of `hexhail simulate`: policies side by side as plots, figures as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import page
from benchmarks.simulated import Row

_FIGURES = (
    ("policy", "policy"),
    ("served_share", "served"),
    ("pickup_mean_s", "pickup, s"),
    ("pickup_p95_s", "95th percentile"),
    ("drive_mean_s", "of it driving"),
    ("empty_km", "empty km"),
    ("idle_gini", "idle Gini"),
    ("hindsight_pickup_mean_s", "bound, s"),
    ("gap_closed", "gap closed"),
    ("gap_closed_nearest", "from nearest"),
)


def check() -> None:
    """Raises NoPlots where no page could be made, before the hours are run."""
    page.new_figure("", "", "")


def write(folder: Path, result: Row) -> Path:
    """Raises NoPlots."""
    table: list[Row] = result["table"]
    sections = [
        (
            "Served",
            "Share of rides that got a driver before their patience was over.",
            _plot(table, "served_share", "share of rides served", least=0.0),
        ),
        (
            "Pickup",
            (
                "From the request to the driver's arrival, of rides served: waiting for a window is paid for. "
                "Where fewer are served, a shorter mean may say only that the hard ones were left. Dashed: what "
                "nobody who serves as many can undercut, even in hindsight."
            ),
            _plot(table, "pickup_mean_s", "mean seconds to the pickup", log=True, bound="hindsight_pickup_mean_s"),
        ),
        (
            "Gap closed",
            (
                "The part of the way from greedy's mean pickup down to what nobody can undercut even in hindsight, "
                "at no fewer rides served. 1 would need to know the future; the goal is one half. Below zero is "
                "worse than greedy."
            ),
            _plot(table, "gap_closed", "part of the gap", line=0.5),
        ),
        (
            "Fairness",
            "Gini coefficient of the drivers' idle shares: 0 where all are idle alike.",
            _plot(table, "idle_gini", "Gini coefficient", least=0.0),
        ),
    ]
    for fleet in _fleets(table):
        rows = [[row[name] for name, _ in _FIGURES] for row in table if row["fleet"] == fleet]
        headings = [heading for _, heading in _FIGURES]
        sections.append((f"{fleet} drivers", _hindsight_words(result, fleet), page.table_of(headings, rows)))
    footer = f"commit {result['commit']}; {json.dumps(result['machine'])}; seed {result['seed']}"
    return page.write_page(folder, f"A city of {result['rides']} rides, along {result['ways']}", sections, footer)


def _hindsight_words(result: Row, fleet: int) -> str:
    for bound in result["hindsight"]:
        if bound["fleet"] == fleet:
            return (
                f"Who had known everything beforehand could have served {bound['driven_served']} rides, each "
                f"{bound['driven_pickup_mean_s']} s after its request on average; the bound is below that."
            )
    return ""


def _plot(
    table: Sequence[Row],
    name: str,
    label: str,
    *,
    least: float | None = None,
    log: bool = False,
    line: float | None = None,
    bound: str | None = None,
) -> str:
    """One line a fleet over the policies, in the order in which they were run."""
    figure = page.new_figure("", "", label)
    axes = figure.axes[0]
    policies = list(dict.fromkeys(row["policy"] for row in table))
    for number, fleet in enumerate(_fleets(table)):
        for column, style in ((name, "o-"), *(((bound, "--"),) if bound else ())):
            points = _points(table, fleet, column, policies)
            if points:
                told = f"{fleet} drivers" if column == name else None
                axes.plot(*zip(*points, strict=True), style, color=f"C{number}", label=told)
    axes.set_xticks(range(len(policies)), policies, rotation=30, ha="right")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if least is not None:
        axes.set_ylim(bottom=least)
    if line is not None:
        axes.axhline(line, linestyle="--", color="gray")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return page.svg_of(figure)


def _points(table: Sequence[Row], fleet: int, name: str, policies: Sequence[str]) -> list[tuple[int, float]]:
    values = {row["policy"]: row[name] for row in table if row["fleet"] == fleet}
    return [(place, values[policy]) for place, policy in enumerate(policies) if values.get(policy) is not None]


def _fleets(table: Sequence[Row]) -> list[int]:
    return sorted({row["fleet"] for row in table})
