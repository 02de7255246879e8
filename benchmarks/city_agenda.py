"""What is due when: one heap for all drivers of a load generator, instead of a timer each."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Agenda:
    """Calls by their time, seconds of a monotonic clock. Each call gets the time at which it was due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due_s: float, call: Callable[[float], None]) -> None:
        heapq.heappush(self._heap, (due_s, next(self._number), call))

    def run(self, now_s: float) -> None:
        """Calls all that is due, in the order of its time."""
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            due_s, _, call = heapq.heappop(heap)
            call(due_s)
