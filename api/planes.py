"""One market's live picture in this process, and whether it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from api.errors import retry_later
from api.positions import PositionFlusher
from geo.feed import Follower
from geo.index import DriverIndex
from geo.model import MarketId


@dataclass(slots=True)
class Plane:
    """The replica's index, what keeps it, and what publishes this process's own drivers."""

    index: DriverIndex
    follower: Follower
    flusher: PositionFlusher
    is_bootstrapped: bool = False

    def distrust(self, stale_after_s: float) -> str | None:
        """Why an answer from this replica would be a lie (P5); None while it may be trusted."""
        if not self.is_bootstrapped:
            return self.follower.fault or "the drivers have not been read yet"
        silent_s = self.follower.silent_ms() / 1000.0
        if silent_s > stale_after_s:
            return f"{self.follower.fault or 'the feed of positions is silent'} (silent for {silent_s:.0f} s)"
        return None

    def faults(self) -> list[str]:
        """What does not work at the moment, in words for a person."""
        found = [] if self.follower.fault is None else [f"not followed: {self.follower.fault}"]
        if self.flusher.fault is not None:
            found.append(f"not published: {self.flusher.fault}")
        return found


Planes = Mapping[MarketId, Plane]


def trusted(planes: Planes, market: MarketId, stale_after_s: float) -> DriverIndex:
    """The market's index. Raises Problem 503 when it cannot be trusted: an empty answer would be a lie."""
    plane = planes[market]
    reason = plane.distrust(stale_after_s)
    if reason is not None:
        raise retry_later("positions-unavailable", reason)
    return plane.index
