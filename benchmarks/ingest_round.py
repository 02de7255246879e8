"""One side of a round: positions sent at a rate, the CPU it took, and whether every one of them had its effect."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.failures import NotMeasured
from benchmarks.ingest_stage import MARKET, RESOLUTION, Counted, Stage, Used

APPLIED_S_MAX = 15.0
#: Some ten centimetres: what the feed may round.
PLACE_DEG = 1e-6


class NotApplied(NotMeasured):
    """What was sent is not found as it should be: nothing that was measured counts."""


@dataclass(frozen=True, slots=True)
class Round:
    """`positions` that had their effect, the CPU-seconds meanwhile, and what the load said."""

    positions: int
    sent: int
    used: Used
    wall_s: float
    load: dict[str, Any]

    def cpu_us(self, seconds: float) -> float:
        """Of so many CPU-seconds, microseconds a position."""
        return seconds / self.positions * 1e6


async def ours(
    stage: Stage, side: str, rate_per_s: float, seconds: float, a_frame: int = 1, *, is_judged: bool = True
) -> Round:
    """Sends to the service. In a judged round only what was published by itself counts: two positions of a driver
    may meet when the machine stalls, and then one of them saved work.

    Raises NotApplied unless each driver's newest position is found in the replica, and, of one process, all were taken.
    """
    before = await stage.counted()
    used, began_s = await stage.used(), time.monotonic()
    said = await stage.load.call("send", side=side, rate_per_s=rate_per_s, seconds=seconds, a_frame=a_frame)
    await asyncio.sleep(stage.settle_s)
    used, wall_s = (await stage.used()).since(used), time.monotonic() - began_s
    await check_replica(stage, side)
    positions = sent = int(said["positions"])
    if is_judged:
        counted = (await stage.counted()).since(before)
        check_count(sent, counted)
        positions = counted.published
    return Round(positions, sent, used, wall_s, said)


async def bare(stage: Stage, side: str, rate_per_s: float, seconds: float, a_frame: int = 1) -> Round:
    """The same frames to the bare server. Raises NotApplied unless it has decoded all of them."""
    before = await asyncio.to_thread(stage.peer.counts)
    used, began_s = await stage.used(), time.monotonic()
    said = await stage.load.call("send", side=side, rate_per_s=rate_per_s, seconds=seconds, a_frame=a_frame)
    await asyncio.sleep(stage.settle_s)
    used, wall_s = (await stage.used()).since(used), time.monotonic() - began_s
    after = await asyncio.to_thread(stage.peer.counts)
    if (decoded := after["positions"] - before["positions"]) != said["positions"]:
        raise NotApplied(f"the bare server decoded {decoded} of {said['positions']} positions")
    return Round(decoded, decoded, used, wall_s, said)


def check_count(sent: int, counted: Counted) -> None:
    """Raises NotApplied where a position was not taken, or more were published than were taken."""
    if counted.taken != sent:
        raise NotApplied(f"{counted.taken} of {sent} positions were taken")
    if not 0 < counted.published <= sent:
        raise NotApplied(f"{counted.published} positions were published of {sent} that were sent")


async def check_replica(stage: Stage, side: str) -> None:
    """Waits until the replica holds what was sent last. Raises NotApplied."""
    sent = await stage.load.call("newest", side=side)
    ids = [each[0] for each in sent]
    give_up_s = time.monotonic() + APPLIED_S_MAX
    while wrong := differing(sent, await stage.replica.call("newest", ids=ids)):
        if time.monotonic() > give_up_s:
            raise NotApplied(f"in the replica: {_named(wrong)}")
        await asyncio.sleep(0.1)


async def check_redis(stage: Stage, side: str) -> int:
    """How many drivers stand in Redis' cells just where they said last, all of them. Raises NotApplied."""
    sent = await stage.load.call("newest", side=side)
    ids = [each[0] for each in sent]
    found = await stage.replica.call(
        "read_again", redis_url=stage.redis.url, market=MARKET, resolution=RESOLUTION, ids=ids
    )
    if wrong := differing(sent, found):
        raise NotApplied(f"in Redis: {_named(wrong)}")
    return len(sent)


def differing(sent: Sequence[Any], found: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Of (id, latitude, longitude, count) sent last those that are not found as (latitude, longitude, count)."""
    return [pair for pair in zip(sent, found, strict=True) if not _is_same(*pair)]


def _is_same(sent: Any, found: Any) -> bool:
    if found is None:
        return False
    (_, lat, lon, count), (found_lat, found_lon, found_count) = sent, found
    return abs(lat - found_lat) <= PLACE_DEG and abs(lon - found_lon) <= PLACE_DEG and bool(count == found_count)


def _named(wrong: Sequence[tuple[Any, Any]]) -> str:
    (driver, *last), found = wrong[0]
    return f"{len(wrong)} drivers are not where they said; {driver} is {found} and not {last}"


def problems_told(rounds: Sequence[Round]) -> dict[str, int]:
    """What the service said during these rounds, acknowledgements left out."""
    told: Counter[str] = Counter()
    for each in rounds:
        told.update({text: count for text, count in each.load["told"].items() if text != "ack"})
    return dict(told)
