"""A page of plots for people: one HTML file, its plots inside as SVG, nothing fetched from anywhere.

matplotlib is imported where a page is made and nowhere else.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } p { max-width: 46rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #dde3e9; }
th:first-child, td:first-child { text-align: left; } svg { max-width: 100%; height: auto; }
footer { margin-top: 3rem; color: #5a6875; font-size: .85rem; }
"""


class NoPlots(Exception):
    """matplotlib is not installed; the text says how to get it."""


def new_figure(title: str, x_label: str, y_label: str) -> Figure:
    """An empty figure with one set of axes. Raises NoPlots."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoPlots("a page needs matplotlib: pip install matplotlib, or hexhail[bench]") from None
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(visible=True, alpha=0.3)
    return figure


def svg_of(figure: Figure) -> str:
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "hexhail", "svg.fonttype": "none"}):  # the same plot is the same text
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]


def table_of(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{html.escape(each)}</th>" for each in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(each))}</td>" for each in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def write_page(folder: Path, title: str, sections: Sequence[tuple[str, str, str]], footer: str) -> Path:
    """Writes `index.html`; a section is a heading, words, and a piece of HTML (a plot or a table)."""
    parts = [
        f"<section><h2>{html.escape(heading)}</h2><p>{html.escape(words)}</p>{piece}</section>"
        for heading, words, piece in sections
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}"
        f"<footer>{html.escape(footer)}</footer></html>\n",
        encoding="utf-8",
    )
    return path
