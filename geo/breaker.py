"""CircuitBreaker: when a provider that keeps failing may be asked again.

Pure: the time is an argument, and what is asked is somebody else's business.
"""

from __future__ import annotations

from enum import Enum


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Whether a provider may be asked: not for a pause after so many failures in a row.

    Closed, it admits everything. `failures_max` failures in a row open it for `pause_s`; then it admits one
    probe. The probe's success closes it, its failure opens it for twice the last pause, up to `pause_s_max`.
    Times are the caller's, in seconds of a clock that does not run back. Raises ValueError for limits that are
    not positive.
    """

    def __init__(self, *, failures_max: int = 5, pause_s: float = 1.0, pause_s_max: float = 60.0) -> None:
        if failures_max < 1 or not 0.0 < pause_s <= pause_s_max:
            raise ValueError("failures_max is at least 1, and 0 < pause_s <= pause_s_max")
        self._failures_max = failures_max
        self._pause_s_first = self._pause_s_next = pause_s
        self._pause_s_max = pause_s_max
        self._failures = 0
        self._open_until_s: float | None = None
        self._is_probing = False
        # Each opening and each probe begins another round; what is told of an earlier one comes too late to count.
        self._round = 0

    def state(self, now_s: float) -> BreakerState:
        if self._open_until_s is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._open_until_s else BreakerState.HALF_OPEN

    def admit(self, now_s: float) -> int | None:
        """The round to tell the outcome of (`succeeded`, `failed` or `withdrawn`), or None: don't ask."""
        state = self.state(now_s)
        if state is BreakerState.CLOSED:
            return self._round
        if state is BreakerState.OPEN or self._is_probing:
            return None
        self._is_probing = True
        self._round += 1
        return self._round

    def succeeded(self, round_: int) -> None:
        if round_ == self._round:
            self._failures = 0
            self._open_until_s = None
            self._is_probing = False
            self._pause_s_next = self._pause_s_first

    def failed(self, round_: int, now_s: float) -> None:
        if round_ != self._round:
            return
        self._failures += 1
        if self._is_probing or self._failures >= self._failures_max:
            self._open_until_s = now_s + self._pause_s_next
            self._pause_s_next = min(2.0 * self._pause_s_next, self._pause_s_max)
            self._is_probing = False
            self._round += 1

    def withdrawn(self, round_: int) -> None:
        """The question was given up before it told anything: another may be the probe."""
        if round_ == self._round:
            self._is_probing = False
