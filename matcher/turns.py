"""How many groups of commands commit at once: beyond that, what arrives gathers for a larger group."""

from __future__ import annotations

import asyncio

#: A group that takes longer waits for a lock, most likely: with its turn it would keep all others waiting, too.
TURN_S_MAX = 0.5


class Turns:
    """Belongs to one event loop.

    How many groups are under way without a turn is bounded by how long the database may take for one.
    """

    def __init__(self, n: int) -> None:
        self._free = asyncio.Semaphore(n)

    async def take(self) -> Turn:
        await self._free.acquire()
        return Turn(self._free)


class Turn:
    """Given back when its group is done, or after TURN_S_MAX."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self._is_held = True
        self._end = asyncio.get_running_loop().call_later(TURN_S_MAX, self.give_back)

    def give_back(self) -> None:
        """Safe to call again."""
        if self._is_held:
            self._is_held = False
            self._end.cancel()
            self._free.release()
