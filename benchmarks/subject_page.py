"""The page of a measured subject: its goals, its plots, every figure, and where it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import page
from benchmarks.tell import figure

#: Longer lists are for plots.
LIST_MAX = 12


def write(
    folder: Path, result: Mapping[str, Any], title: str, plots: Sequence[tuple[str, str, str]] = (), words: str = ""
) -> Path:
    """`plots` are headings, words and pieces of HTML, as `page.svg_of` or `page.table_of` make them."""
    sections = [
        ("Goals", words or "Each a ratio of two sides measured in one run.", goals_table(result)),
        *plots,
        ("Ratios", "Ours by the peer's; the error is the median's, from the rounds.", _ratios_table(result)),
        ("Ours", "Every figure of this side.", _figures_table(result["ours"])),
        ("Peers", "Every figure of what it is compared with.", _figures_table(result["peers"])),
        ("The machine meanwhile", _quietness(result), _figures_table(result.get("quiet", {}))),
    ]
    return page.write_page(folder, title, sections, footer_of(result))


def goals_table(result: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{measured:g}", f"{goal:g}", _verdict(result, name, met))
        for name, measured, goal, met in _goals(result)
    ]
    rows += [(name, "-", "-", "not measured") for name in result.get("not_measured", ())]
    return page.table_of(("ratio", "measured", "goal", ""), rows)


def footer_of(result: Mapping[str, Any]) -> str:
    return f"commit {result['commit']}; {json.dumps(result['machine'])}; {json.dumps(result.get('versions', {}))}"


def _goals(result: Mapping[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    for name, (measured, goal, met) in result["goals"].items():
        yield name, measured, goal, met


def _verdict(result: Mapping[str, Any], name: str, met: bool) -> str:
    return ("met" if met else "missed") + (" (too noisy)" if name in result.get("noisy", ()) else "")


def _ratios_table(result: Mapping[str, Any]) -> str:
    noise = result.get("noise", {})
    rows = [
        (name, figure(value), "-" if noise.get(name) is None else f"{noise[name]:.1%}")
        for name, value in result["ratios"].items()
    ]
    return page.table_of(("ratio", "measured", "error"), rows)


def _figures_table(figures: Mapping[str, Any]) -> str:
    return page.table_of(("figure", "value"), [(name, figure(value)) for name, value in flat(figures)])


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested figures as dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and len(value) <= LIST_MAX:
        for number, inner in enumerate(value):
            yield from flat(inner, f"{name}.{number}")
    else:
        yield name, f"{len(value)} values" if isinstance(value, list) else value


def _quietness(result: Mapping[str, Any]) -> str:
    complaints = result.get("quiet", {}).get("complaints", [])
    return "; ".join(complaints) if complaints else "Nothing else kept it busy."
