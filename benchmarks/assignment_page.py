"""The page of `hexhail bench assignment`: growth and scarcity as plots, figures as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.subject_page import footer_of, goals_table


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Raises NoPlots."""
    ours = result["ours"]
    sections = [
        ("Goals", "Each a ratio of two sides measured in one run.", goals_table(result)),
        ("Growth", "Even batches of constant density, twice as many drivers as rides.", _growth(ours["growth"])),
        (
            "Scarcity",
            f"{ours['scarcity'][0]['drivers']} drivers around other centres than the rides that wait.",
            _scarcity(ours["scarcity"]),
        ),
    ]
    return page.write_page(folder, "Batches assigned", sections, footer_of(result))


def _growth(rows: list[dict[str, Any]]) -> str:
    figure = page.new_figure("Time to the certified plan", "rides", "seconds")
    axes = figure.axes[0]
    sizes, seconds = [row["rides"] for row in rows], [row["median_s"] for row in rows]
    axes.loglog(sizes, seconds, "o-", label="ours")
    axes.loglog(sizes, [seconds[0] * size / sizes[0] for size in sizes], "--", color="gray", label="in proportion")
    axes.legend()
    return page.svg_of(figure)


def _scarcity(rows: list[dict[str, Any]]) -> str:
    figure = page.new_figure("The same by rides a driver", "rides waiting a driver", "seconds")
    axes = figure.axes[0]
    for name, label in (("ours", "ours"), ("dense", "dense scipy"), ("ortools", "OR-Tools, given our pairs")):
        known = [(row["rides_a_driver"], row[name]["median_s"]) for row in rows if name in row]
        if known:
            axes.loglog(*zip(*known, strict=True), "o-", label=label)
    axes.legend()
    return page.svg_of(figure)
