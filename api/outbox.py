"""What waits to be sent on one driver socket: bounded, and the newest state wins (P10).

One writer at a time takes from here; `wake` calls for it. Acknowledgements, trips and offers, the
driver's status and its place in a queue are states: a newer one replaces an older
one that has not left yet, so that an offer which ended before it was sent is never
sent as one. Answers to commands are not; when more of them wait than fit, the
client is not reading, and the socket is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from api.schema import AckFrame, DownFrame, ErrorFrame, QueueFrame, StatusChangedFrame, told_frame
from matcher.model import Ride, TripState

ANSWERS_BYTES_MAX = 32_768
TRIPS_MAX = 16
ERRORS_MAX = 8


class Wakes(Protocol):
    """Whether something waits."""

    def set(self) -> None: ...

    def clear(self) -> None: ...

    def is_set(self) -> bool: ...


class Wake:
    """Calls `on_set` when something begins to wait; an asyncio.Event would need a task that waits for it."""

    __slots__ = ("_is_set", "on_set")

    def __init__(self) -> None:
        self._is_set = False
        self.on_set: Callable[[], None] = lambda: None

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self.on_set()

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set


class Outbox:
    """Frames for one socket, encoded by `encode`. `now_ms` is the database's time, in which offers end."""

    # A process holds some ten thousand of these, nearly all of them empty.
    __slots__ = (
        "_ack",
        "_answers",
        "_answers_bytes",
        "_encode",
        "_errors",
        "_now_ms",
        "_offers",
        "_queue",
        "_status",
        "_trips",
        "acked",
        "overflowed",
        "wake",
    )

    def __init__(self, encode: Callable[[DownFrame], bytes], now_ms: Callable[[], int] = lambda: 0) -> None:
        self._encode = encode
        self._now_ms = now_ms
        self._answers: list[bytes] = []
        self._answers_bytes = 0
        self._trips: dict[str, Ride] = {}  # by trip: a ride that is given to the driver anew has two to tell of
        self._offers: dict[str, None] = {}  # that stand, as far as the driver knows or is about to
        self._errors: dict[str, ErrorFrame] = {}
        self._status: StatusChangedFrame | None = None
        self._queue: QueueFrame | None = None
        self._ack = -1
        self.acked = -1  # what the last acknowledgement that left said
        self.overflowed = False
        self.wake: Wakes = Wake()

    def welcome(self, frame: DownFrame) -> None:
        """Goes out before everything else."""
        self._answers.insert(0, self._encode(frame))
        self.wake.set()

    def answer(self, frame: DownFrame) -> None:
        """An answer that must arrive; sets `overflowed` when too many wait."""
        data = self._encode(frame)
        self._answers_bytes += len(data)
        self._answers.append(data)
        self.overflowed = self.overflowed or self._answers_bytes > ANSWERS_BYTES_MAX
        self.wake.set()

    def trip(self, ride: Ride) -> None:
        """A ride of this driver changed, an offer included; an older version never replaces a newer one."""
        known = self._trips.get(_key_of(ride))
        if known is None or known.version <= ride.version:
            self._trips[_key_of(ride)] = ride
            self._note_offer(ride)
        self.overflowed = self.overflowed or len(self._trips) > TRIPS_MAX
        self.wake.set()

    def told(self, ride: Ride) -> None:
        """An answer, or the welcome, tells this state: an older one that still waits must not follow it."""
        waiting = self._trips.get(_key_of(ride))
        if waiting is not None and waiting.version <= ride.version:
            del self._trips[_key_of(ride)]
        self._offers.pop(_key_of(ride), None)
        self._note_offer(ride)

    def status(self, frame: StatusChangedFrame) -> None:
        """The driver's status was changed by somebody else."""
        self._status = frame
        self.wake.set()

    def told_status(self) -> None:
        """An answer tells the driver's status: what still waits is older."""
        self._status = None

    def queue(self, frame: QueueFrame) -> None:
        """The driver's place in a zone's queue has changed."""
        self._queue = frame
        self.wake.set()

    def error(self, frame: ErrorFrame) -> None:
        """A complaint about a frame; one of each code is enough at a time."""
        if frame.code in self._errors or len(self._errors) < ERRORS_MAX:
            self._errors[frame.code] = frame
        self.wake.set()

    def ack(self, seq: int) -> None:
        """Everything up to `seq` has been published, and it is time to say so."""
        if seq > self.acked:
            self.published(seq)
            self.wake.set()

    def published(self, seq: int) -> None:
        """Everything up to `seq` has been published: told with whatever leaves next."""
        self._ack = max(self._ack, seq)

    def take(self) -> list[bytes]:
        """All that waits, encoded, answers first; leaves nothing behind."""
        frames = list(self._answers)
        frames += [self._encode(each) for each in self._errors.values()]
        frames += [self._encode(each) for each in self._states()]
        self._answers.clear()
        self._answers_bytes = 0
        self._errors.clear()
        self.wake.clear()
        return frames

    def _states(self) -> list[DownFrame]:
        """The newest of each that waits, which thereby waits no more."""
        frames: list[DownFrame] = [] if self._status is None else [self._status]
        frames += [self._frame_of(ride) for ride in self._trips.values()]
        if self._queue is not None:
            frames.append(self._queue)
        if self._ack > self.acked:
            frames.append(AckFrame(self._ack))
        self._status, self._queue, self.acked = None, None, self._ack
        self._trips.clear()
        return frames

    def _frame_of(self, ride: Ride) -> DownFrame:
        was_offered = _key_of(ride) in self._offers
        self._offers.pop(_key_of(ride), None)
        self._note_offer(ride)
        return told_frame(ride, self._now_ms(), was_offered=was_offered)

    def _note_offer(self, ride: Ride) -> None:
        if ride.trip is not None and ride.trip.state is TripState.OFFERED:
            self._offers[ride.trip.trip_id] = None


def _key_of(ride: Ride) -> str:
    return ride.ride_id if ride.trip is None else ride.trip.trip_id
