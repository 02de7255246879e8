"""The page of `hexhail bench requests`: CPU a request and latencies as plots, figures as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import page, subject_page

_PERCENTILES = ("p50_ms", "p90_ms", "p99_ms", "p99.9_ms")


def write(folder: Path, result: dict[str, Any]) -> Path:
    """Raises NoPlots."""
    words = (
        f"{result['rate_per_s']} ride requests/s from {result['connections']} connections, each with a key of its own; "
        "every 201 was found in the database, and no other ride."
    )
    plots = [
        ("CPU", "CPU time a request, by process; the bars show the rounds' least and most.", _cpu(result)),
        ("Latency", "From the moment at which a request was due to its answer, all rounds.", _latency(result)),
    ]
    return subject_page.write(folder, result, "Ride requests", plots, words)


def _sides(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    ours, peers = result["ours"], result["peers"]
    mine = [("JSON", ours["ours"]), ("msgpack", ours["msgpack"])]
    return [*mine, ("bare, JSON", peers["bare"]), ("bare, msgpack", peers["bare_msgpack"])]


def _cpu(result: dict[str, Any]) -> str:
    figure = page.new_figure("CPU a request", "", "microseconds")
    axes = figure.axes[0]
    names = [name for name, _ in _sides(result)]
    cpu = [of["cpu_us_a_request"] for _, of in _sides(result)]
    medians = [each["median"] for each in cpu]
    errors = [[each["median"] - each["low"] for each in cpu], [each["high"] - each["median"] for each in cpu]]
    database = [of.get("database_cpu_us_a_request", {}).get("median", 0.0) for _, of in _sides(result)]
    axes.bar(names, medians, yerr=errors, capsize=4, label="the server's process")
    axes.bar(names, database, bottom=medians, label="MariaDB", alpha=0.5)
    axes.legend()
    return page.svg_of(figure)


def _latency(result: dict[str, Any]) -> str:
    figure = page.new_figure("Latency", "percentile", "milliseconds")
    axes = figure.axes[0]
    labels = [name.removesuffix("_ms") for name in _PERCENTILES]
    for name, of in _sides(result):
        axes.semilogy(labels, [of["latency"][each] for each in _PERCENTILES], "o-", label=name)
    axes.legend()
    return page.svg_of(figure)
