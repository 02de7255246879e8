"""What waits to be sent to a fleet's gateway: the newest state of each driver, and answers (P10).

One writer task takes from here, a slice at a time, so that no more is encoded
than is being sent. States (offers, trips, a driver's status) wait in one box a
driver, where the newest wins. Answers are encoded when given; while many of
them wait nothing more is read from the gateway, and beyond a limit it is given
up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice

from api.outbox import Outbox, Wake
from api.schema import AckFrame, DownFrame, ErrorFrame
from api.schema_fleet import NAMED_MAX, FleetDownFrame, FleetError, SignedOffFrame, SignedOffItem, of_driver

#: Bytes of answers that wait: from here on nothing more is read, and from here on the gateway is given up.
ANSWERS_BYTES_HIGH = 65_536
ANSWERS_BYTES_MAX = 1_048_576
#: Bytes encoded at a time, or one frame where that is larger.
SLICE_BYTES = 32_768
#: Drivers a `signed_off` frame names.
SIGNED_OFF_MAX = 256
COMPLAINTS_MAX = 16


class _Complaint:
    """Positions that were not taken for one reason."""

    __slots__ = ("count", "detail", "drivers")

    def __init__(self, detail: str) -> None:
        self.detail = detail
        self.count = 0
        self.drivers: dict[str, None] = {}

    def add(self, driver_id: str | None) -> None:
        self.count += 1
        if driver_id is not None and len(self.drivers) < NAMED_MAX:
            self.drivers[driver_id] = None


class FleetOutbox:
    """Frames for one gateway, encoded by `encode`."""

    def __init__(self, encode: Callable[[FleetDownFrame], bytes]) -> None:
        self.encode = encode
        self.wake = asyncio.Event()
        self.overflowed = False
        self._answers: deque[bytes] = deque()
        self._answers_bytes = 0
        self._complaints: dict[str, _Complaint] = {}
        self._ended: dict[str, SignedOffItem] = {}
        self._changed: dict[DriverOutbox, None] = {}  # in the order in which they changed
        self._ack = -1
        self._acked = -1
        self._room = asyncio.Event()
        self._room.set()

    def answer(self, frame: FleetDownFrame) -> None:
        """An answer that must arrive; sets `overflowed` when too many wait."""
        data = self.encode(frame)
        self._answers.append(data)
        self._answers_bytes += len(data)
        if self._answers_bytes > ANSWERS_BYTES_HIGH:
            self._room.clear()
        self.overflowed = self.overflowed or self._answers_bytes > ANSWERS_BYTES_MAX
        self.wake.set()

    async def room(self) -> None:
        """Returns when there is room for the answers to another frame."""
        await self._room.wait()

    def complain(self, code: str, detail: str, driver_id: str | None) -> None:
        """A position was not taken; those of one code are told of together."""
        complaint = self._complaints.get(code)
        if complaint is None:
            if len(self._complaints) >= COMPLAINTS_MAX:
                return
            complaint = self._complaints[code] = _Complaint(detail)
        complaint.add(driver_id)
        self.wake.set()

    def ended(self, item: SignedOffItem) -> None:
        """The driver is signed on here no more, and not by the gateway's own word."""
        self._ended[item.driver_id] = item
        self.wake.set()

    def begun(self, driver_id: str) -> None:
        """The driver is signed on anew, which is told by an answer: an end before it must not follow that."""
        self._ended.pop(driver_id, None)

    def changed(self, box: DriverOutbox) -> None:
        """The box has something new."""
        self._changed[box] = None
        self.overflowed = self.overflowed or box.overflowed
        self.wake.set()

    def forget(self, box: DriverOutbox) -> None:
        """Nothing more is told of its driver."""
        self._changed.pop(box, None)

    def ack(self, seq: int) -> None:
        """All positions of the frames up to `seq` have been published."""
        if seq > self._ack:
            self._ack = seq
            self.wake.set()

    def take(self) -> list[bytes]:
        """What waits, answers first, about SLICE_BYTES of it; `wake` stays set while more is left."""
        frames: list[bytes] = []
        size = 0
        while self._answers and size < SLICE_BYTES:
            frames.append(self._answers.popleft())
            size += len(frames[-1])
        self._answers_bytes -= size
        if self._answers_bytes <= ANSWERS_BYTES_HIGH:
            self._room.set()
        if not self._answers:
            for data in self._told_shortly():
                frames.append(data)
                size += len(data)
            while self._changed and size < SLICE_BYTES:
                box = next(iter(self._changed))
                del self._changed[box]
                frames += box.take()
                size = sum(map(len, frames))
        if not (self._answers or self._ended or self._changed):
            self.wake.clear()
        return frames

    def _told_shortly(self) -> list[bytes]:
        """Complaints, one frame of ends, and the acknowledgement."""
        frames: list[FleetDownFrame] = [
            FleetError(code, one.detail, driver_ids=list(one.drivers) or None, count=one.count)
            for code, one in self._complaints.items()
        ]
        self._complaints.clear()
        if self._ended:
            ends = list(islice(self._ended.values(), SIGNED_OFF_MAX))
            for item in ends:
                del self._ended[item.driver_id]
            frames.append(SignedOffFrame(ends))
        if self._ack > self._acked:
            self._acked = self._ack
            frames.append(AckFrame(self._ack))
        return [self.encode(frame) for frame in frames]


class DriverOutbox(Outbox):
    """One driver's part of a gateway's outbox: its states, told once its sign-on has been answered.

    `on_published` hears up to which of its positions the driver stands in the feed.
    """

    def __init__(
        self, driver_id: str, fleet: FleetOutbox, now_ms: Callable[[], int], on_published: Callable[[int], None]
    ) -> None:
        super().__init__(lambda frame: fleet.encode(of_driver(driver_id, frame)), now_ms)
        self._driver_id = driver_id
        self._fleet = fleet
        self._on_published = on_published
        self._is_held = True
        wake = Wake()
        wake.on_set = self._changed
        self.wake = wake

    def _changed(self) -> None:
        if not self._is_held:
            self._fleet.changed(self)

    def release(self) -> None:
        """The sign-on has been answered: what has changed since may follow."""
        self._is_held = False
        self._fleet.changed(self)

    def welcome(self, frame: DownFrame) -> None:
        """The answer to the sign-on tells it."""

    def answer(self, frame: DownFrame) -> None:
        self._fleet.answer(of_driver(self._driver_id, frame))

    def error(self, frame: ErrorFrame) -> None:
        self._fleet.complain(frame.code, frame.detail, self._driver_id)

    def ack(self, seq: int) -> None:
        self._on_published(seq)
