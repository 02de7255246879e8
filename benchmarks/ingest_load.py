"""The drivers of a measurement of positions: thousands of sockets, frames made beforehand, sent when they are due.

Runs in a process of its own (benchmarks.load_child). A side is a server with its sockets: ours, or the bare peer,
which gets the very same frames. Driver number d drives to and fro along a way of its own; its position number n is
the same on every side and in every run, so that what was sent last is known to everybody.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from api import schema
from api.auth import Role, make_token
from api.client import DispatchClient, new_session
from benchmarks.ingest_plan import Plan, fix_of, flood_plan, steady_plan
from benchmarks.ingest_sides import HOST, TOKEN_S, Gateway, Side, driver_name
from benchmarks.load import Latency, OpenLoop
from benchmarks.wire import MSGPACK, Refused

REGISTERING_MAX = 16
TRIES_MAX = 20
#: Frames built in one go before the loop gets a turn, so that pings are answered meanwhile.
BUILT_A_TURN = 2_000


class DriverLoad:
    """What a load child is asked to do; sides go by their names. All that is returned is plain JSON."""

    def __init__(self) -> None:
        self._sides: dict[str, Side] = {}
        self._sent: dict[str, list[int]] = {}  # side -> how many positions each driver has sent
        self._run: tuple[Side, Plan, OpenLoop, list[int]] | None = None

    async def register(self, port: int, secret: str, drivers: int) -> None:
        """Makes the drivers known to the service. Raises ApiError or GaveUp."""
        gate = asyncio.Semaphore(REGISTERING_MAX)
        async with new_session() as session:
            token = make_token(secret.encode(), "boss", Role.ADMIN, ttl_s=TOKEN_S)
            boss = DispatchClient(f"http://{HOST}:{port}", token, session=session)

            async def put(number: int) -> None:
                async with gate:
                    await boss.put_driver(driver_name(number), schema.DriverRequest(seats=4, status="online"))

            await asyncio.gather(*(put(number) for number in range(drivers)))

    async def open(
        self,
        side: str,
        port: int,
        drivers: int,
        secret: str | None = None,
        subprotocol: str = MSGPACK,
        is_fleet: bool = False,
    ) -> dict[str, Any]:
        """Opens all sockets of a side. Raises OSError, TimeoutError."""
        opened = Gateway(port, drivers, secret) if is_fleet else Side(port, drivers, secret, subprotocol)
        counts = self._sent.setdefault(side, [0] * opened.lines)
        opened.base = list(counts)
        self._sides[side] = opened
        began_s = time.monotonic()
        await opened.open()
        return {"seconds": time.monotonic() - began_s}

    async def send(self, side: str, rate_per_s: float, seconds: float, a_frame: int = 1) -> dict[str, Any]:
        """Positions at an even rate, `a_frame` of each driver in each frame."""
        to = self._sides[side]
        return await self._play(
            side, to, steady_plan(to.lines, rate_per_s / a_frame / len(to.members(0)), seconds, a_frame)
        )

    async def flood(self, side: str, mean_per_s: float, flood_per_s: float, share: float) -> dict[str, Any]:
        """Three seconds of which a share of the drivers sends a flood in the second one."""
        to = self._sides[side]
        return await self._play(side, to, flood_plan(to.drivers, mean_per_s, flood_per_s, share))

    async def _play(self, side: str, to: Side, plan: Plan) -> dict[str, Any]:
        counts = self._sent[side]
        before = list(counts)
        frames = await self._frames(to, plan, counts)
        wires, lines = to.wires, plan.lines
        told_before = Counter(to.told)

        def act(number: int, due_s: float) -> None:
            wire = wires[lines[number]]
            if wire is not None:
                wire.write(frames[number])

        load = OpenLoop(0.0, 0.0, act, times=plan.times)
        self._run = (to, plan, load, before)
        cpu_s = time.process_time()
        await load.run()
        return {
            "positions": sum(len(to.members(line)) for line in plan.lines) * plan.a_frame,
            "frames": len(frames),
            "frame_bytes": round(sum(map(len, frames)) / max(len(frames), 1), 1),
            "seconds": time.monotonic() - load.began_s,
            "cpu_s": time.process_time() - cpu_s,
            "lag": load.lag.as_json(),
            "told": dict(to.told - told_before),
        }

    async def _frames(self, to: Side, plan: Plan, counts: list[int]) -> list[bytes]:
        """Everything that will be sent, and the counts as if it had been."""
        frames = []
        for line in plan.lines:
            frames.append(to.frame(line, counts[line], plan.a_frame))
            counts[line] += plan.a_frame
            if len(frames) % BUILT_A_TURN == 0:
                await asyncio.sleep(0)
        return frames

    async def delays(self, seen: Sequence[tuple[int, int, float]], watched: Sequence[int]) -> dict[str, Any]:
        """How long after they were due the last run's positions were seen: (line, count in its session, when).

        A count that was passed over was seen with the next. Returns the percentiles, how many were seen, and how many
        of those `watched` were not while it was looked.
        """
        if self._run is None:
            raise RuntimeError("nothing was sent")
        to, plan, load, before = self._run
        due_s = plan.due_s_by_line()
        known = {driver: before[driver] - to.base[driver] for driver, _, _ in seen}
        latency = Latency()
        for driver, count, seen_s in seen:
            first = before[driver] - to.base[driver]
            for number in range(known[driver], count):
                latency.record(seen_s - load.began_s - due_s[driver][(number - first) // plan.a_frame])
            known[driver] = max(known[driver], count)
        sent = sum(len(due_s[driver]) for driver in watched) * plan.a_frame
        return latency.as_json() | {"unseen": sent - latency.count}

    async def newest(self, side: str) -> list[tuple[str, float, float, int]]:
        """Of each driver what it has sent last, and how many of its session: name, latitude, longitude, count."""
        to, counts = self._sides[side], self._sent[side]
        return [
            (driver_name(driver), (fix := fix_of(driver, counts[line] - 1)).lat, fix.lon, counts[line] - to.base[line])
            for line in range(to.lines)
            for driver in to.members(line)
        ]

    async def storm(self, side: str, within_s: float, seed: int) -> dict[str, Any]:
        """Cuts all sockets at once; every driver comes back at a moment of its own within so many seconds."""
        to, draw = self._sides[side], random.Random(seed)
        refused: Counter[str] = Counter()
        latency = Latency()
        for wire in to.wires:
            if wire is not None:
                wire.abort()
        to.base = list(self._sent[side])
        began_s = time.monotonic()

        async def come_back(number: int, after_s: float, draw: random.Random) -> None:
            await asyncio.sleep(after_s)
            asked_s = time.monotonic()
            for attempt in range(TRIES_MAX):
                try:
                    await to.connect(number)
                except (OSError, TimeoutError) as error:
                    refused[str(error)[:80] or type(error).__name__] += 1
                    wait_s = error.retry_after_s if isinstance(error, Refused) else 0.0
                    await asyncio.sleep(wait_s + draw.uniform(0.0, min(2.0, 0.1 * 2.0**attempt)))
                else:
                    latency.record(time.monotonic() - asked_s)
                    return
            refused["gave up"] += 1

        moments = [(draw.uniform(0.0, within_s), random.Random(draw.random())) for _ in to.wires]
        await asyncio.gather(*(come_back(number, *each) for number, each in enumerate(moments)))
        return {
            "all_back_s": time.monotonic() - began_s,
            "sign_on": latency.as_json(),
            "refused": dict(refused),
            "lost_again": sum(wire is None or not wire.is_open for wire in to.wires),
        }

    async def close(self, side: str) -> None:
        self._sides.pop(side).close()
        await asyncio.sleep(0)
