"""Since when each driver has been idle, as far as this process has seen or the store remembers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from geo.model import DriverId
from matcher.outcomes import DriverHistory

#: A driver not seen for so long starts anew.
FORGET_MS = 3_600_000


class Idleness:
    """Follows who is engaged and who is there, batch by batch. Times are the database's, in whole ms.

    A bonus for idle drivers is a matter of fairness, not a promise: a matcher that takes over knows what
    the store remembers of trips, and counts everybody else from its first look on.
    """

    def __init__(self) -> None:
        self._since: dict[DriverId, int] = {}
        self._seen: dict[DriverId, int] = {}
        self._has_looked = False

    def look(
        self,
        now_ms: int,
        idle: Collection[DriverId],
        engaged: Collection[DriverId],
        histories: Mapping[DriverId, DriverHistory],
    ) -> Mapping[DriverId, int]:
        """Takes note of who is there now; returns since when each of them has been idle."""
        for driver_id in engaged:
            self._since.pop(driver_id, None)
            self._seen.pop(driver_id, None)
        for driver_id in idle:
            if driver_id not in self._since:
                history = histories.get(driver_id)
                ended_ms = None if history is None else history.ended_at_ms
                # Later on a history may not know yet of the trip that the driver comes from.
                self._since[driver_id] = now_ms if self._has_looked or ended_ms is None else ended_ms
        for driver_id in idle:
            self._seen[driver_id] = now_ms
        self._has_looked = True
        self._forget(now_ms)
        return self._since

    def _forget(self, now_ms: int) -> None:
        gone = [driver_id for driver_id, seen_ms in self._seen.items() if now_ms - seen_ms > FORGET_MS]
        for driver_id in gone:
            self._since.pop(driver_id, None)
            del self._seen[driver_id]
