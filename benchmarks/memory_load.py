"""Many sockets that do nothing: a process of its own opens them, says so, and holds them until its input ends.

`python -m benchmarks.memory_load` reads a Load as one JSON object from its first line of input. Each socket signs its
driver on, waits for the welcome and sends one position; against a server that says no welcome it sends at once.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import uvloop

from benchmarks.wire import Refused, Wire, frame_of

#: Sign-ons under way at a time.
AT_ONCE = 64
TRIES_MAX = 20
RETRY_S = 0.5
WELCOME_S_MAX = 20.0
LAT, LON = 40.75, -73.98
#: Places differ by this from one driver to the next, over a square of so many.
STEP_DEG, ACROSS = 0.0005, 100


@dataclass(frozen=True, slots=True)
class Load:
    """`path` has a `{driver}`; `tokens` are those of the drivers; each `source` (an own address) has 28,000 ports."""

    port: int
    path: str
    drivers: list[str]
    tokens: list[str]
    source: str
    has_welcome: bool


class Holder:
    """Opens and keeps the sockets."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._wires: list[Wire] = []
        self._permits = asyncio.Semaphore(AT_ONCE)
        self.lost = 0

    async def open_all(self) -> int:
        """How many are open."""
        await asyncio.gather(*(self._open(number) for number in range(len(self._load.drivers))))
        return len(self._wires) - self.lost

    async def _open(self, number: int) -> None:
        async with self._permits:
            for _ in range(TRIES_MAX):
                try:
                    self._wires.append(await self._signed_on(number))
                    return
                except (Refused, OSError, TimeoutError):
                    await asyncio.sleep(RETRY_S)

    async def _signed_on(self, number: int) -> Wire:
        load, welcomed = self._load, asyncio.Event()
        wire = await Wire.connect(
            "127.0.0.1",
            load.port,
            load.path.format(driver=load.drivers[number]),
            token=load.tokens[number],
            on_frame=lambda frame: welcomed.set(),
            on_lost=self._note_lost,
            source=load.source,
        )
        if load.has_welcome:
            async with asyncio.timeout(WELCOME_S_MAX):
                await welcomed.wait()
        wire.write(frame_of(msgspec.msgpack.encode(_position(number))))
        return wire

    def _note_lost(self, reason: str) -> None:
        self.lost += 1


def _position(number: int) -> Mapping[str, Any]:
    north, east = divmod(number % ACROSS**2, ACROSS)
    return {"type": "position", "seq": 1, "lat": LAT + (north - 50) * STEP_DEG, "lon": LON + (east - 50) * STEP_DEG}


async def hold(load: Load) -> None:
    holder = Holder(load)
    print(await holder.open_all(), flush=True)
    await asyncio.to_thread(sys.stdin.read)  # ends when whoever measures closes it, or dies
    print(holder.lost, flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(hold(Load(**json.loads(sys.stdin.readline()))))
