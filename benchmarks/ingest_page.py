"""The page of `hexhail bench ingest`: what a position costs, by whom and by which way, and how soon it is seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import page, subject_page

WAYS = {"backlog": "ten a frame", "json": "JSON", "fleet": "gateway"}


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Raises NoPlots."""
    plots = [
        (
            "By the way it is sent",
            "CPU of the process that takes it in; both sides got the same frames.",
            _ways(result),
        ),
        (
            "By who works for it",
            "One msgpack position a frame; each further process is one more replica.",
            _who(result),
        ),
    ]
    seen = {name: found for name in ("latency", "flood") if (found := _applied(result["ours"].get(name, {})))}
    if seen:
        words = "From when a position was due until another process's replica holds it; in a flood, those not flooding."
        plots.append(("How soon it is seen", words, _percentiles(seen)))
    return subject_page.write(folder, result, "Positions taken in", plots)


def _ways(result: Mapping[str, Any]) -> str:
    ours, bare = result["ours"], result["peers"]["bare_aiohttp"]
    rows = [("msgpack", ours["cpu_us_a_position"], bare["cpu_us_a_position"])]
    for name, label in WAYS.items():
        if (found := ours.get(name, {})).get("vs_bare_aiohttp") is not None:
            rows.append((label, found["cpu_us_a_position"], found["bare_cpu_us_a_position"]))
    figure = page.new_figure("CPU a position", "", "microseconds")
    axes = figure.axes[0]
    for shift, column, label in ((-0.2, 1, "ours"), (0.2, 2, "bare aiohttp")):
        axes.bar([place + shift for place in range(len(rows))], [row[column] for row in rows], 0.4, label=label)
    axes.set_xticks(range(len(rows)), [row[0] for row in rows])
    axes.legend()
    return page.svg_of(figure)


def _who(result: Mapping[str, Any]) -> str:
    ours = result["ours"]
    names = {"the process that takes it in": "cpu", "Redis": "redis_cpu", "each further replica": "replica_cpu"}
    figure = page.new_figure("CPU a position", "microseconds", "")
    figure.axes[0].barh(list(names), [ours[f"{name}_us_a_position"] for name in names.values()])
    return page.svg_of(figure)


def _applied(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    applied: Mapping[str, Any] | None = found.get("applied", found.get("others_applied"))
    return applied


def _percentiles(seen: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms", "max_ms", "count")
    return page.table_of(("", *columns), [(name, *(found[each] for each in columns)) for name, found in seen.items()])
