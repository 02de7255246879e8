"""The feed's contract, and the feed inside one process.

Positions go in at one process and reach the replicas of all of them. This
module rules over what a feed promises and how fixes are packed; it knows no
Redis and no socket. The feed on Redis is redis_feed.py; both pass one set of
contract tests.

What a feed promises: the newest fix by (epoch, instance, seq) wins, whatever the
order of arrival (P6, P7); ages travel, and the fix's time is the feed's time
less its age (P5); a removed driver comes back only with a newer stamp; a replica
that follows ends up with what the feed holds, however the feed was cut, flushed
or rolled back in between (P9).
"""

from __future__ import annotations

import asyncio
import logging
import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from geo.cells import cell_of
from geo.index import DriverIndex
from geo.model import DriverId, Fix, MarketId, Removal
from geo.records import CLASS_BYTES_MAX, FLAG_AVAILABLE, RECORD, UNKNOWN_U16, PositionBatch

log = logging.getLogger(__name__)

#: The most fixes that one atomic call takes; more are split (P10).
FIXES_A_CALL_MAX = 500
#: How long a removed driver's stamp is remembered: an older session is fenced off at least so long.
TOMBSTONE_MS = 3_600_000
#: Drivers silent for so long are taken out of the feed, by default.
SWEEP_AFTER_MS = 120_000
#: How often a follower looks for silent drivers, give or take half of it.
SWEEP_EVERY_S = 5.0

#: A record's last fields, which change when the vehicle does: seats, flags, class and tags.
_KIND = struct.Struct(f"<BB{CLASS_BYTES_MAX}sI")
#: A whole record: fix_ms, cell, place, stamp, heading, speed, and the packed kind.
PACKED = struct.Struct(f"<dQdddddHH{_KIND.size}s")


class FeedUnavailable(Exception):
    """The feed could not be reached in time, or refused; its message is for a person.

    Whether the positions were taken is unknown. Publishing them again is
    harmless: what was taken is not newer than itself.
    """


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a publication.

    `applied` counts the fixes and removals that took effect. `outdated` are the
    drivers of which a newer *epoch* stands in the feed: the session that
    publishes them has been superseded. A fix that is merely older than what
    stands is neither.
    """

    applied: int
    outdated: tuple[DriverId, ...]


Fixes: TypeAlias = Sequence[Fix] | PositionBatch


class Follower(Protocol):
    """Keeps one index equal to one market of the feed."""

    #: Why the replica may be behind at the moment; None while all is well.
    fault: str | None
    #: Called when the feed may have lost what it held (another generation, an older state of this
    #: one, or missing batches): publish your own drivers again, read your own rides again.
    on_new_generation: Callable[[], None] | None

    async def run(self) -> None:
        """Bootstraps the index and follows, until cancelled. Heals by itself from every fault of the feed."""

    async def ready(self) -> None:
        """Returns once the index has been bootstrapped for the first time."""

    def silent_ms(self) -> int:
        """How long ago the feed was last heard of, in ms."""

    async def caught_up(self, timeout_s: float = 5.0) -> None:
        """Returns once the index holds everything published before this call. For tests.

        Raises TimeoutError, or FeedUnavailable where the feed cannot be asked.
        """


class Feed(Protocol):
    #: The H3 resolution of the cells in its records.
    resolution: int

    async def publish(self, market: MarketId, fixes: Fixes, removals: Sequence[Removal] = ()) -> Published:
        """Takes positions and removals in, at most FIXES_A_CALL_MAX of each at a time, each such part atomically.

        Whoever packs records itself hands them over as one batch that is packed for time 0 (`fix_ms` is minus the
        age) and in which no driver stands twice. Raises FeedUnavailable in bounded time, ValueError for a fix that
        cannot be packed.
        """

    def follow(self, market: MarketId, index: DriverIndex) -> Follower:
        """A follower that keeps `index`; it does nothing until its `run` runs."""

    def now_ms(self) -> int:
        """The feed's clock in whole ms."""

    async def close(self) -> None: ...


def pack(fixes: Sequence[Fix], resolution: int, now_ms: int) -> PositionBatch:
    """Puts fixes into columns: each is dated `now_ms` less its age (a negative age counts as none).

    Raises ValueError, naming the driver, for a fix that RECORD cannot hold.
    """
    packed = b"".join([_pack_one(fix, resolution, now_ms) for fix in fixes])
    return PositionBatch([fix.driver_id for fix in fixes], np.frombuffer(packed, RECORD))


def _pack_one(fix: Fix, resolution: int, now_ms: int) -> bytes:
    try:
        return PACKED.pack(
            now_ms - max(fix.age_ms, 0),
            cell_of(fix.lat, fix.lon, resolution),
            fix.lat,
            fix.lon,
            fix.epoch,
            fix.instance,
            fix.seq,
            pack_heading(fix.heading_deg),
            pack_speed(fix.speed_mps),
            pack_kind(fix.vehicle_class, fix.seats, fix.tags, available=fix.available),
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise ValueError(f"driver {fix.driver_id!r}: {error}") from error


def pack_heading(heading_deg: float | None) -> int:
    return UNKNOWN_U16 if heading_deg is None else round(heading_deg * 100.0) % 36_000


def pack_speed(speed_mps: float | None) -> int:
    return UNKNOWN_U16 if speed_mps is None else min(round(speed_mps * 100.0), UNKNOWN_U16 - 1)


def pack_kind(vehicle_class: str, seats: int, tags: int, *, available: bool) -> bytes:
    """A record's last bytes. Raises ValueError for what they cannot hold."""
    name = vehicle_class.encode()
    if len(name) > CLASS_BYTES_MAX:
        raise ValueError(f"class {vehicle_class!r} is longer than {CLASS_BYTES_MAX} bytes")
    try:
        return _KIND.pack(seats, FLAG_AVAILABLE if available else 0, name, tags)
    except struct.error as error:
        raise ValueError(f"{seats} seats, tags {tags:#x}: {error}") from error


def newest_of(fixes: Sequence[Fix]) -> Sequence[Fix]:
    """One fix a driver, the newest by its stamp, in the order in which the drivers first occur."""
    newest: dict[DriverId, Fix] = {}
    for fix in fixes:
        held = newest.setdefault(fix.driver_id, fix)
        if held is not fix and fix.stamp > held.stamp:
            newest[fix.driver_id] = fix
    return fixes if len(newest) == len(fixes) else list(newest.values())


def parts_of(fixes: Fixes, removals: Sequence[Removal], resolution: int) -> list[PositionBatch]:
    """What one publication becomes in calls of bounded size, packed for time 0.

    Stamps decide, so the order of the parts does not. Raises ValueError for a fix that cannot be packed.
    """
    batch = fixes if isinstance(fixes, PositionBatch) else pack(newest_of(fixes), resolution, 0)
    size = FIXES_A_CALL_MAX
    starts = range(0, max(len(batch.ids), len(removals)), size)
    return [
        PositionBatch(batch.ids[at : at + size], batch.records[at : at + size], removals[at : at + size])
        for at in starts
    ]


def sweep_wait_s(every_s: float) -> float:
    """Until the next look for silent drivers; jittered, so that processes take turns."""
    return every_s * random.uniform(0.5, 1.5)


def _monotonic_ms() -> float:
    return time.monotonic() * 1000.0


#: A stamp as a record holds it: (epoch, instance, seq).
_Stamp: TypeAlias = tuple[float, float, float]


class Ledger:
    """One market's drivers by their newest stamp, removed ones included. Pure; time is an argument."""

    def __init__(self, tombstone_ms: int) -> None:
        self._tombstone_ms = tombstone_ms
        self._stamps: dict[DriverId, _Stamp] = {}
        self._records: dict[DriverId, bytes] = {}
        self._gone: dict[DriverId, int] = {}  # removed drivers -> when, oldest first

    def take(self, part: PositionBatch, now_ms: int) -> tuple[PositionBatch, tuple[DriverId, ...]]:
        """What changed, dated, and the drivers of which a newer epoch stands. `part` is packed for time 0."""
        stamps: list[_Stamp] = part.records[["epoch", "instance", "seq"]].tolist()
        outdated = [each for each, stamp in zip(part.ids, stamps, strict=True) if self._is_superseded(each, stamp[0])]
        newer = [at for at, each in enumerate(part.ids) if self._is_newer(each, stamps[at])]
        records = part.records[newer]
        records["fix_ms"] += now_ms
        batch = PositionBatch([part.ids[at] for at in newer], records)
        self._keep(batch, [stamps[at] for at in newer])
        outdated += [each.driver_id for each in part.removals if self._is_superseded(each.driver_id, each.stamp.epoch)]
        batch.removals = [removal for removal in part.removals if self._remove(removal, now_ms)]
        self._forget(now_ms)
        return batch, tuple(dict.fromkeys(outdated))

    def _keep(self, batch: PositionBatch, stamps: Sequence[_Stamp]) -> None:
        packed, size = batch.records.tobytes(), RECORD.itemsize
        for at, driver_id in enumerate(batch.ids):
            self._stamps[driver_id] = stamps[at]
            self._records[driver_id] = packed[at * size : (at + 1) * size]
            self._gone.pop(driver_id, None)

    def snapshot(self) -> PositionBatch:
        return PositionBatch(list(self._records), np.frombuffer(b"".join(self._records.values()), RECORD))

    def _is_newer(self, driver_id: DriverId, stamp: _Stamp) -> bool:
        held = self._stamps.get(driver_id)
        return held is None or stamp > held

    def _is_superseded(self, driver_id: DriverId, epoch: float) -> bool:
        held = self._stamps.get(driver_id)
        return held is not None and held[0] > epoch

    def _remove(self, removal: Removal, now_ms: int) -> bool:
        driver_id, stamp = removal.driver_id, (removal.stamp.epoch, removal.stamp.instance, removal.stamp.seq)
        live_at_stamp = driver_id in self._records and self._stamps[driver_id] == stamp
        if not (live_at_stamp or self._is_newer(driver_id, stamp)):
            return False
        self._records.pop(driver_id, None)
        self._stamps[driver_id] = stamp
        self._gone.pop(driver_id, None)
        self._gone[driver_id] = now_ms
        return True

    def _forget(self, now_ms: int) -> None:
        while self._gone:
            driver_id, gone_at_ms = next(iter(self._gone.items()))
            if gone_at_ms > now_ms - self._tombstone_ms:
                return
            del self._gone[driver_id], self._stamps[driver_id]


class InProcessFeed:
    """The embedded service's feed, and the reference for what a feed does; see Feed.

    It holds each driver's stamp and packed record, and hands every batch to the
    followers of the market at once. `clock` gives ms and never goes back.
    """

    def __init__(
        self,
        resolution: int,
        *,
        clock: Callable[[], float] = _monotonic_ms,
        sweep_after_ms: int = SWEEP_AFTER_MS,
        sweep_every_s: float = SWEEP_EVERY_S,
        tombstone_ms: int = TOMBSTONE_MS,
    ) -> None:
        self.resolution = resolution
        self._clock = clock
        self._sweep_after_ms = sweep_after_ms
        self._sweep_every_s = sweep_every_s
        self._tombstone_ms = tombstone_ms
        self._ledgers: dict[MarketId, Ledger] = {}
        self._following: dict[MarketId, list[LocalFollower]] = {}
        self._closed = False

    def now_ms(self) -> int:
        return int(self._clock())

    async def publish(self, market: MarketId, fixes: Fixes, removals: Sequence[Removal] = ()) -> Published:
        if self._closed:
            raise FeedUnavailable("the feed is closed")
        applied, outdated = 0, dict[DriverId, None]()
        handed_over_ms = self.now_ms()  # ages are those of now, whenever a part's turn comes (P5)
        for part in parts_of(fixes, removals, self.resolution):
            batch, superseded = self._ledger(market).take(part, handed_over_ms)
            for follower in self._following.get(market, ()):
                follower.index.apply(batch)
            applied += len(batch.ids) + len(batch.removals)
            outdated.update(dict.fromkeys(superseded))
            await asyncio.sleep(0)  # a fleet's worth of positions must not hold the loop at a stretch
        return Published(applied, tuple(outdated))

    def follow(self, market: MarketId, index: DriverIndex) -> LocalFollower:
        return LocalFollower(
            self, market, index, sweep_after_ms=self._sweep_after_ms, sweep_every_s=self._sweep_every_s
        )

    async def close(self) -> None:
        self._closed = True

    def attach(self, market: MarketId, follower: LocalFollower) -> None:
        """Bootstraps the follower's index; every later batch reaches it."""
        follower.index.reset(self._ledger(market).snapshot())
        self._following.setdefault(market, []).append(follower)

    def detach(self, market: MarketId, follower: LocalFollower) -> None:
        self._following[market].remove(follower)

    def _ledger(self, market: MarketId) -> Ledger:
        ledger = self._ledgers.get(market)
        if ledger is None:
            ledger = self._ledgers[market] = Ledger(self._tombstone_ms)
        return ledger


class LocalFollower:
    """See Follower. Nothing can fail between it and its feed."""

    def __init__(
        self,
        feed: InProcessFeed,
        market: MarketId,
        index: DriverIndex,
        *,
        sweep_after_ms: int = SWEEP_AFTER_MS,
        sweep_every_s: float = SWEEP_EVERY_S,
    ) -> None:
        self.index = index
        self.fault: str | None = None
        self.on_new_generation: Callable[[], None] | None = None
        self._feed = feed
        self._market = market
        self._sweep_after_ms = sweep_after_ms
        self._sweep_every_s = sweep_every_s
        self._ready = asyncio.Event()

    async def run(self) -> None:
        self._feed.attach(self._market, self)
        self._ready.set()
        try:
            while True:
                await asyncio.sleep(sweep_wait_s(self._sweep_every_s))
                await self.sweep()
        finally:
            self._feed.detach(self._market, self)

    async def sweep(self) -> None:
        """Takes drivers out that have been silent for too long."""
        silent = self.index.expire(self._feed.now_ms(), self._sweep_after_ms)
        if silent:
            log.info("silent drivers removed", extra={"market": self._market, "drivers": len(silent)})
            await self._feed.publish(self._market, (), silent)

    async def ready(self) -> None:
        await self._ready.wait()

    def silent_ms(self) -> int:
        return 0

    async def caught_up(self, timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            await self._ready.wait()
