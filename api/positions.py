"""From a session's position frames to the feed: checks, the newest-per-driver buffer, the flusher.

`Track` decides, synchronously, what a fix is worth; `PositionFlusher` publishes
the newest of each driver every `flush_s`. Times are seconds of a monotonic
clock, which is what ages grow by while a fix waits here (P5). Memory is bounded
by the number of sessions: one fix and at most one removal a driver (P10).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import numpy as np

from api.schema import PositionItem
from api.telemetry import Metrics
from geo.cells import cell_of
from geo.distance import between_m
from geo.feed import PACKED, Feed, FeedUnavailable, pack_heading, pack_kind, pack_speed
from geo.model import DriverId, Fix, LatLng, MarketId, Removal, Stamp
from geo.records import RECORD, PositionBatch

#: What a position may be off without anybody having moved.
JITTER_M = 250.0
#: Metres of a degree of latitude, rounded up: turns degrees into a bound that is never too short.
DEGREE_M = 111_700.0
#: Two fixes this near to a third are less than JITTER_M apart, and a market's rim is no wall.
NEAR_DEG = 0.0007
#: Up to this resolution, whose edges are 530 m, fixes that near to a third also share its cell: a cell is but the name
#: of a bucket, and the index measures how far its drivers reach.
SHARED_CELL_RESOLUTION_MAX = 8
#: Nothing that drives is this close to (0, 0), but many broken apps are.
NULL_ISLAND_DEG = 0.01
BACKOFF_S_MAX = 2.0


class Verdict(Enum):
    """What became of a fix."""

    TAKEN = "taken"
    REPEATED = "repeated"  # not newer than what this session has sent
    QUARANTINED = "quarantined"  # too far from the one before: waits for another to confirm it
    OUTSIDE = "outside-market"
    NULL_ISLAND = "null-island"


class Contains(Protocol):
    """The area of a market."""

    def contains(self, lat: float, lon: float) -> bool: ...


def is_null_island(lat: float, lon: float) -> bool:
    return -NULL_ISLAND_DEG < lat < NULL_ISLAND_DEG and -NULL_ISLAND_DEG < lon < NULL_ISLAND_DEG


class Track:
    """One driver session's way through its market.

    The feed's stamp is (epoch, instance, count): the epoch is this session's
    alone, and the count grows with whatever changes, a break without a new fix
    included, which the phone's own `seq` would not.
    """

    __slots__ = (
        "_available",
        "_kind",
        "_seats",
        "_tags",
        "_vehicle_class",
        "ack_at_s",
        "ack_interval_s",
        "area",
        "before",
        "before_at_s",
        "cell",
        "count",
        "counted",
        "driver_id",
        "epoch",
        "fix",
        "fix_at_s",
        "instance",
        "judged_lat",
        "judged_lon",
        "max_speed_mps",
        "on_dropped",
        "on_outdated",
        "on_published",
        "published",
        "seq",
        "suspect",
        "suspect_at_s",
    )

    def __init__(
        self,
        driver_id: DriverId,
        *,
        epoch: int,
        instance: int,
        vehicle_class: str,
        seats: int,
        area: Contains,
        max_speed_mps: float,
        tags: int = 0,
        available: bool = True,
        on_published: Callable[[int], None] = lambda seq: None,
        on_outdated: Callable[[], None] = lambda: None,
        on_dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self.driver_id = driver_id
        self.epoch = epoch
        self.instance = instance
        self._vehicle_class = vehicle_class
        self._seats = seats
        self._tags = tags
        self._available = available
        self._kind: bytes | None = None  # these four, packed
        self.area = area
        self.max_speed_mps = max_speed_mps
        #: Called with the phone's seq after a flush, at most once in `ack_interval_s`; `published` always tells it.
        self.on_published = on_published
        self.on_outdated = on_outdated
        #: Called when the session is over and what it left will not be published.
        self.on_dropped = on_dropped
        self.published = -1
        self.ack_interval_s = 0.0
        self.ack_at_s = 0.0
        self.count = 0
        self.counted = 0  # how far the metrics have counted
        self.seq = -1
        self.fix: PositionItem | None = None
        self.fix_at_s = 0.0
        self.before: PositionItem | None = None  # where the session before this one was
        self.before_at_s = 0.0
        self.judged_lat = math.inf  # where a fix was last judged good
        self.judged_lon = math.inf
        self.cell = 0  # of that place; 0 while nobody has looked it up
        self.suspect: PositionItem | None = None
        self.suspect_at_s = 0.0

    @property
    def vehicle_class(self) -> str:
        return self._vehicle_class

    @property
    def seats(self) -> int:
        return self._seats

    @property
    def tags(self) -> int:
        """What the vehicle offers, by the bits of geo.model.Fix."""
        return self._tags

    @property
    def available(self) -> bool:
        return self._available

    def drives(self, vehicle_class: str, seats: int, tags: int) -> None:
        """The vehicle is another, or was described anew."""
        self._vehicle_class, self._seats, self._tags = vehicle_class, seats, tags
        self._kind = None

    def follow(self, last: Fix, now_s: float) -> None:
        """This session goes on from where the driver was last seen: a reconnect is no way around the quarantine."""
        self.before = PositionItem(seq=0, lat=last.lat, lon=last.lon)
        self.before_at_s = now_s - last.age_ms * 0.001

    def take(self, item: PositionItem, now_s: float) -> Verdict:
        """Judges a fix that arrived now, and keeps it as the newest where it is good."""
        seq, at_s = item.seq, now_s - item.age_ms * 0.001
        if seq <= self.seq:
            return Verdict.REPEATED
        self.seq = seq
        # Nearly every fix is near one that was judged before, and good for the same reasons.
        if not (
            -NEAR_DEG < item.lat - self.judged_lat < NEAR_DEG and -NEAR_DEG < item.lon - self.judged_lon < NEAR_DEG
        ):
            verdict = self._judge(item, at_s)
            if verdict is not Verdict.TAKEN:
                return verdict
        self.fix = item
        self.fix_at_s = at_s
        self.suspect = None
        self.count += 1
        return Verdict.TAKEN

    def _judge(self, item: PositionItem, at_s: float) -> Verdict:
        if is_null_island(item.lat, item.lon):
            return Verdict.NULL_ISLAND
        if not self.area.contains(item.lat, item.lon):
            return Verdict.OUTSIDE
        if not self._is_plausible(item, at_s):
            self.suspect, self.suspect_at_s = item, at_s
            return Verdict.QUARANTINED
        self.judged_lat, self.judged_lon = item.lat, item.lon
        self.cell = 0
        return Verdict.TAKEN

    def _is_plausible(self, item: PositionItem, at_s: float) -> bool:
        """Within reach of the last good fix, or of a suspect one that it thereby confirms."""
        last, last_at_s = (self.before, self.before_at_s) if self.fix is None else (self.fix, self.fix_at_s)
        if last is None or self._within_reach(last, last_at_s, item, at_s):
            return True
        return self.suspect is not None and self._within_reach(self.suspect, self.suspect_at_s, item, at_s)

    def _within_reach(self, old: PositionItem, old_at_s: float, new: PositionItem, new_at_s: float) -> bool:
        reach_m = JITTER_M + self.max_speed_mps * max(0.0, new_at_s - old_at_s)
        # The sum of both differences in degrees is never shorter than the way itself:
        # almost every pair of fixes is cleared by it, without trigonometry.
        if DEGREE_M * (abs(new.lat - old.lat) + abs(new.lon - old.lon)) <= reach_m:
            return True
        return between_m(LatLng(old.lat, old.lon), LatLng(new.lat, new.lon)) <= reach_m

    def set_available(self, available: bool) -> None:
        """Changes what the feed says of this driver, with a newer stamp."""
        self._available = available
        self._kind = None
        self._bump()

    def removal(self) -> Removal:
        """Takes this session's driver out of the feed, with a stamp newer than its last fix."""
        self.fix = self.before = self.suspect = None
        self._bump()
        return Removal(self.driver_id, Stamp(self.epoch, self.instance, self.count))

    def _bump(self) -> None:
        """A newer stamp without a fix."""
        self.count += 1
        self.counted += 1

    def to_fix(self, now_s: float) -> Fix:
        item = self.fix
        assert item is not None
        heading, speed = item.heading, item.speed
        return Fix(
            driver_id=self.driver_id,
            lat=item.lat,
            lon=item.lon,
            epoch=self.epoch,
            instance=self.instance,
            seq=self.count,
            age_ms=max(0, int((now_s - self.fix_at_s) * 1000.0)),
            vehicle_class=self._vehicle_class,
            seats=self._seats,
            available=self._available,
            heading_deg=heading % 360.0 if heading is not None and 0.0 <= heading <= 360.0 else None,
            speed_mps=speed if speed is not None and 0.0 <= speed <= 300.0 else None,
            tags=self._tags,
        )

    def pack(self, age_s: float, resolution: int) -> bytes:
        """The newest fix as a record, packed for time 0 (`fix_ms` is minus the age), as `to_fix` would become."""
        item = self.fix
        assert item is not None
        if resolution > SHARED_CELL_RESOLUTION_MAX:
            cell = cell_of(item.lat, item.lon, resolution)
        elif not (cell := self.cell):
            cell = self.cell = cell_of(self.judged_lat, self.judged_lon, resolution)
        heading, speed = item.heading, item.speed
        return PACKED.pack(
            -max(0, int(age_s * 1000.0)),
            cell,
            item.lat,
            item.lon,
            self.epoch,
            self.instance,
            self.count,
            pack_heading(heading if heading is not None and 0.0 <= heading <= 360.0 else None),
            pack_speed(speed if speed is not None and 0.0 <= speed <= 300.0 else None),
            self._kind or self._pack_kind(),
        )

    def _pack_kind(self) -> bytes:
        self._kind = pack_kind(self._vehicle_class, self._seats, self._tags, available=self._available)
        return self._kind


class PositionFlusher:
    """One market's buffer: the newest state of each driver, published every `flush_s`.

    A flush that fails keeps everything (newer states replace older ones
    meanwhile) and is tried again with a bounded backoff: publishing the same fix
    twice is harmless by compare-and-set. What outlives `stale_after_s` is dropped.
    """

    def __init__(
        self,
        feed: Feed,
        market: MarketId,
        *,
        flush_s: float,
        stale_after_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed = feed
        self._market = market
        self._flush_s = flush_s
        self._stale_after_s = stale_after_s
        self._metrics = metrics
        self._clock = clock
        self._tracks: dict[DriverId, Track] = {}
        self._dirty: dict[DriverId, Track] = {}
        self._removals: dict[DriverId, tuple[Removal, float]] = {}
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._flushing = asyncio.Lock()
        self.fault: str | None = None

    def join(self, track: Track) -> None:
        """From now on this track is its driver's, unless a newer session's is already.

        Whatever an older session left unpublished is dropped.
        """
        held = self._tracks.get(track.driver_id)
        if held is not None and held.epoch > track.epoch:
            return
        self._tracks[track.driver_id] = track
        dropped = self._dirty.pop(track.driver_id, None)
        self._removals.pop(track.driver_id, None)
        if dropped is not None and dropped is not track:
            dropped.on_dropped()

    def leave(self, track: Track) -> None:
        """The session is over. Its last fix is still published; afterwards the driver goes stale."""
        if self._tracks.get(track.driver_id) is track:
            del self._tracks[track.driver_id]

    def touch(self, track: Track) -> None:
        """The track has something new; it goes out with the next flush."""
        if not self._dirty:
            self._wake.set()
        self._dirty[track.driver_id] = track

    def hurry(self) -> None:
        """Flush at once rather than after the interval."""
        self._wake.set()
        self._hurry.set()

    def remove(self, track: Track) -> None:
        """The driver has signed off: out of the feed at once."""
        if self._tracks.get(track.driver_id) is not track:
            return
        self._dirty.pop(track.driver_id, None)
        self._removals[track.driver_id] = (track.removal(), self._clock())
        self.hurry()

    def republish(self) -> None:
        """Everything again, since the feed has forgotten it (P9)."""
        for track in self._tracks.values():
            if track.fix is not None:
                self._dirty[track.driver_id] = track
        self.hurry()

    def __len__(self) -> int:
        return len(self._dirty) + len(self._removals)

    async def run(self) -> None:
        """Flushes until cancelled; survives an unavailable feed.

        Flushes begin `flush_s` apart, however long each takes, as long as half of that is left for everything else.
        """
        pause_s = self._flush_s
        while True:
            await self._wake.wait()
            await self._pause(pause_s)
            begun_s = time.monotonic()
            if await self.flush():
                pause_s = max(self._flush_s / 2, self._flush_s - (time.monotonic() - begun_s))
            else:
                self._wake.set()
                pause_s = min(BACKOFF_S_MAX, max(pause_s, 0.05) * 2)

    async def _pause(self, pause_s: float) -> None:
        if pause_s <= 0 or self._hurry.is_set():
            return
        try:
            async with asyncio.timeout(pause_s):
                await self._hurry.wait()
        except TimeoutError:
            pass  # nobody hurries: the ordinary case

    async def flush(self) -> bool:
        """Publishes what is pending. False when the feed was not available; it is all kept then."""
        async with self._flushing:
            self._wake.clear()
            self._hurry.clear()
            now_s = self._clock()
            dirty, self._dirty = self._dirty, {}
            removals, self._removals = self._removals, {}
            fresh = self._fresh(dirty, now_s)
            try:
                batch = self._pack(fresh, now_s)
                published = await self._feed.publish(self._market, batch, [each for each, _ in removals.values()])
            except FeedUnavailable as error:
                self._keep(dirty, removals, str(error))
                return False
            self.fault = None
            self._metrics.published.add(n=len(fresh))
            self._report(fresh, frozenset(published.outdated))
            return True

    def _fresh(self, dirty: dict[DriverId, Track], now_s: float) -> list[tuple[Track, int]]:
        """Tracks worth publishing, each with the phone's seq that doing so acknowledges."""
        fresh, taken = [], 0
        oldest_s = now_s - self._stale_after_s
        for track in dirty.values():
            taken += track.count - track.counted
            track.counted = track.count
            item = track.fix
            if item is None:
                continue
            if track.fix_at_s < oldest_s:
                self._metrics.fixes.add("stale")
                track.published = item.seq  # never worth sending again
                track.on_published(item.seq)
            else:
                fresh.append((track, item.seq))
        self._metrics.fixes.add(Verdict.TAKEN.value, n=taken)
        return fresh

    def _pack(self, fresh: list[tuple[Track, int]], now_s: float) -> PositionBatch:
        """Records for time 0, as the feed takes them."""
        resolution = self._feed.resolution
        packed = b"".join([track.pack(now_s - track.fix_at_s, resolution) for track, _ in fresh])
        return PositionBatch([track.driver_id for track, _ in fresh], np.frombuffer(packed, RECORD))

    def _keep(self, dirty: dict[DriverId, Track], removals: dict[DriverId, tuple[Removal, float]], reason: str) -> None:
        self.fault = reason
        self._metrics.flush_failures.add()
        oldest_s = self._clock() - self._stale_after_s
        for driver_id, track in dirty.items():
            held = self._tracks.get(driver_id)
            # A newer session of the driver has its own track: nothing of the old one is worth keeping.
            worth = held is track or (held is None and track.fix_at_s > oldest_s)
            if worth and driver_id not in self._removals:
                self._dirty.setdefault(driver_id, track)
            if self._dirty.get(driver_id) is not track:
                track.on_dropped()
        for driver_id, (removal, since_s) in removals.items():
            held = self._tracks.get(driver_id)
            is_own = held is None or held.epoch == removal.stamp.epoch
            if is_own and since_s > oldest_s and driver_id not in self._dirty:
                self._removals.setdefault(driver_id, (removal, since_s))

    def _report(self, fresh: list[tuple[Track, int]], outdated: frozenset[DriverId]) -> None:
        now_s = self._clock()
        for track, seq in fresh:
            if outdated and track.driver_id in outdated:
                track.on_outdated()
                continue
            track.published = seq
            if track.ack_at_s <= now_s:
                track.ack_at_s = now_s + track.ack_interval_s
                track.on_published(seq)
