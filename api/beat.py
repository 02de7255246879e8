"""One round over all drivers' sockets a second: acknowledgements that are due, and sockets that have fallen silent.

Timers of each socket's own would cost a callback or two a position. Nothing here waits for a socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

#: How long a round takes at most.
ROUND_S_MAX = 1.0
#: How many sockets are looked at in one go.
AT_ONCE = 250


class HasBeat(Protocol):
    def beat(self, now_s: float) -> None:
        """A look at one socket, `now_s` by the monotonic clock."""


async def keep_beating(
    sockets: Callable[[], Iterable[HasBeat]], round_s: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Looks at each socket every `round_s` until cancelled, a few at a time, evenly over the round."""
    while True:
        now = list(sockets())
        parts = [now[at : at + AT_ONCE] for at in range(0, len(now), AT_ONCE)] or [[]]
        for part in parts:
            now_s = clock()
            for each in part:
                each.beat(now_s)
            await asyncio.sleep(round_s / len(parts))
