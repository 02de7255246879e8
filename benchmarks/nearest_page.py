"""The page of `hexhail bench nearest`: growth and comparison as plots, and every figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import page, subject_page

NAMES = {
    "redis_geosearch": "Redis GEOSEARCH",
    "tile38": "Tile38 NEARBY",
    "postgis": "PostGIS",
    "numpy_brute_force": "numpy, brute force",
    "scipy_tree_one": "scipy k-d tree, one a call",
    "scipy_tree_bulk": "scipy k-d tree, all at once",
}


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Raises NoPlots."""
    plots = [
        ("Growth", "Drivers at one density: the area grows with them.", _growth(result["ours"]["growth"])),
        ("Comparison", "Time for the ten nearest of one place; Redis is approximate.", _comparison(result)),
        ("Worst cases", "Microseconds a place.", _worst(result["ours"]["worst"])),
    ]
    return subject_page.write(folder, result, "The nearest drivers", plots)


def _growth(rows: list[dict[str, Any]]) -> str:
    figure = page.new_figure("Time for the ten nearest", "drivers", "microseconds a place")
    axes = figure.axes[0]
    sizes = [row["drivers"] for row in rows]
    for side, label in (("one", "one place a call"), ("bulk", "1,000 places a call")):
        axes.loglog(sizes, [row[side]["median_us"] for row in rows], "o-", label=label)
    axes.set_ylim(bottom=1.0)
    axes.legend()
    return page.svg_of(figure)


def _comparison(result: dict[str, Any]) -> str:
    figure = page.new_figure("The ten nearest of one place", "microseconds", "")
    axes = figure.axes[0]
    times = {f"ours, {name}": result["ours"][key]["median_us"] for key, name in _OURS}
    times |= {NAMES.get(name, name): each["median_us"] for name, each in result["peers"].items()}
    names = list(times)[::-1]
    axes.barh(names, [times[name] for name in names], color=["#c44" if "ours" in name else "#89a" for name in names])
    axes.set_xscale("log")
    return page.svg_of(figure)


_OURS = (("bulk", "1,000 a call"), ("one", "one a call"))


def _worst(rows: dict[str, Any]) -> str:
    lines = [(name, f"{each['one']['median_us']:g}", f"{each['bulk']['median_us']:g}") for name, each in rows.items()]
    return page.table_of(("case", "one a call", "1,000 a call"), lines)
