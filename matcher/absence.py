"""Drivers who were seen and whom the store did not have for a ride: they are left out for a while. Pure.

Whoever signs off without a socket, or is suspended then, is seen for as long as its last position is fresh. Being the
nearest it would be paired with the same ride in every window, and drop out at every commit.
"""

from __future__ import annotations

from collections.abc import Iterable

from geo.model import DriverId
from matcher.outcomes import LOST_DRIVER_GONE, LostPairing

ABSENT_MS = 5_000


class Absences:
    """One market's, in one process; holds as many drivers as dropped out within ABSENT_MS. Times are the feed's."""

    def __init__(self) -> None:
        self._until_ms: dict[DriverId, int] = {}

    def note(self, lost: Iterable[LostPairing], now_ms: int) -> None:
        for each in lost:
            if each.why == LOST_DRIVER_GONE:
                self._until_ms[each.pairing.driver_id] = now_ms + ABSENT_MS

    def at(self, now_ms: int) -> frozenset[DriverId]:
        """Who is left out now."""
        self._until_ms = {driver_id: until_ms for driver_id, until_ms in self._until_ms.items() if until_ms > now_ms}
        return frozenset(self._until_ms)
