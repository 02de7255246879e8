"""What ends a measurement in words for a person, rather than in a traceback."""

from __future__ import annotations


class NotMeasured(Exception):
    """Nothing was measured, or what was measured does not count; the text says why."""
