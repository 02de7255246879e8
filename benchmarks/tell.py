"""What a measurement says to the person who waits for it: a line a phase, and its tables at the end.

All of it goes to standard error when standard output is for JSON. Nothing is drawn while something is measured:
a line is written when a phase begins, with the time since the start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


class Teller:
    """Call it with a phase's name when the phase begins."""

    def __init__(self, *, json: bool = False) -> None:
        self.console = Console(stderr=json, highlight=False, soft_wrap=True)
        self._began_s = time.monotonic()

    def __call__(self, text: str) -> None:
        self.console.print(f"{time.monotonic() - self._began_s:5.0f} s  {text}", markup=False)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """The first column is of names, the others of figures."""
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*map(figure, row))
        self.console.print(table)


def figure(value: object) -> str:
    """Four digits of a float; a dash where there is nothing."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
