"""The search for the highest load that a city still stands: which factor to try next. Pure.

After a load that was met, the next is where the machine would be full if its use grew with the load; once one was
missed, the middle (of the logarithms) between the best that was met and the least that was missed, until they are near.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

FIRST = 0.25
#: What of the machine is taken to be usable before waits grow.
FULL_SHARE = 0.9
GROWTH_MIN, GROWTH_MAX = 1.25, 4.0
#: The best that was met and the least that was missed are near enough.
NEAR = 1.12
#: A guess this near to the whole load becomes the whole load.
SNAP = 1.25
FACTOR_MIN = 0.01
#: What is held for long is a little below what was met for a moment.
HOLD_SHARE = 0.92


@dataclass(slots=True)
class Search:
    met: float = 0.0
    missed: float = math.inf
    _busy: float = field(default=0.0)  # share of the machine in use at the best load

    def note(self, factor: float, *, is_met: bool, busy_share: float) -> None:
        if is_met and factor < self.missed:
            if factor > self.met:
                self.met, self._busy = factor, busy_share
        elif not is_met:
            self.missed = min(self.missed, factor)
            if self.met >= self.missed:  # it was met once and missed another time: it is not stood
                self.met = 0.0

    @property
    def is_over(self) -> bool:
        return self.missed / self.met <= NEAR if self.met else self.missed < FACTOR_MIN

    def next(self) -> float:
        """The factor to try now."""
        if self.met == 0.0:
            return FIRST if math.isinf(self.missed) else self.missed / 2.0
        if math.isinf(self.missed):
            growth = FULL_SHARE / self._busy if self._busy else GROWTH_MAX
            guess = self.met * min(max(growth, GROWTH_MIN), GROWTH_MAX)
        else:
            guess = math.sqrt(self.met * self.missed)
        is_near_one = 1.0 / SNAP <= guess <= SNAP and self.met < 1.0 < self.missed
        return 1.0 if is_near_one else round(guess, 3)

    @property
    def held(self) -> float:
        """What to hold for long: the whole load where it was met, or else a little less than the best."""
        if self.met >= 1.0:
            return 1.0
        return round((self.met or min(self.missed, 1.0) / 2.0) * HOLD_SHARE, 3)
