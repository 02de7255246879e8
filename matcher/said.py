"""Which faults are worth a line in the log: another than of late, and one that lasts now and then."""

from __future__ import annotations

import time
from collections.abc import Callable

AGAIN_S = 60.0
#: Different texts that are remembered; beyond it the oldest is forgotten, and said again.
TEXTS_MAX = 16


class Said:
    """What one speaker has said of late. Steps that fail each second would fill the log otherwise."""

    def __init__(self, again_s: float = AGAIN_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._again_s = again_s
        self._clock = clock
        self._at_s: dict[str, float] = {}

    def is_news(self, text: str) -> bool:
        """Whether to say this now; it counts as said then."""
        now_s = self._clock()
        if now_s - self._at_s.get(text, -self._again_s) < self._again_s:
            return False
        self._at_s.pop(text, None)
        self._at_s[text] = now_s
        if len(self._at_s) > TEXTS_MAX:
            del self._at_s[next(iter(self._at_s))]
        return True
