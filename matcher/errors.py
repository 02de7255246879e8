"""The store's faults. What is merely expected is a return value (matcher.outcomes)."""

from __future__ import annotations


class StoreUnavailable(Exception):
    """The database could not do it now: down, too slow, or all connections taken.

    `reason` is a sentence for a person. Nothing was committed, except where the
    method says that an unknown outcome remains possible; asking again is safe,
    for every command answers a repetition as it answered the first time (P3).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StoreLocked(Exception):
    """Another process holds the embedded database's file; `reason` says what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LeaseLost(Exception):
    """The market's lease has another token now, or ran out: nothing was written (P7)."""

    def __init__(self, market: str, token: int) -> None:
        super().__init__(f"the lease of market {market!r} with token {token} is lost")
        self.market = market
        self.token = token
