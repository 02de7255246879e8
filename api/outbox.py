"""What waits to be sent on one driver socket: bounded, and the newest state wins (P10).

One writer task a socket takes from here. Acknowledgements and trips are states:
a newer one replaces an older one that has not left yet. Answers to commands are
not; when more of them wait than fit, the client is not reading, and the socket
is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from api.schema import AckFrame, DownFrame, ErrorFrame, TripChangedFrame, ride_out
from matcher.model import Ride, RideId

ANSWERS_BYTES_MAX = 32_768
TRIPS_MAX = 16
ERRORS_MAX = 8


class Outbox:
    """Frames for one socket, encoded by `encode`."""

    def __init__(self, encode: Callable[[DownFrame], bytes]) -> None:
        self._encode = encode
        self._answers: deque[bytes] = deque()
        self._answers_bytes = 0
        self._trips: dict[RideId, Ride] = {}
        self._errors: dict[str, ErrorFrame] = {}
        self._ack = -1
        self._acked = -1
        self.overflowed = False
        self.wake = asyncio.Event()

    def welcome(self, frame: DownFrame) -> None:
        """Goes out before everything else."""
        self._answers.appendleft(self._encode(frame))
        self.wake.set()

    def answer(self, frame: DownFrame) -> None:
        """An answer that must arrive; sets `overflowed` when too many wait."""
        data = self._encode(frame)
        self._answers_bytes += len(data)
        self._answers.append(data)
        self.overflowed = self.overflowed or self._answers_bytes > ANSWERS_BYTES_MAX
        self.wake.set()

    def trip(self, ride: Ride) -> None:
        """A ride of this driver changed; an older version never replaces a newer one."""
        known = self._trips.get(ride.ride_id)
        if known is None or known.version <= ride.version:
            self._trips[ride.ride_id] = ride
        self.overflowed = self.overflowed or len(self._trips) > TRIPS_MAX
        self.wake.set()

    def told(self, ride: Ride) -> None:
        """An answer tells this state: an older one that still waits must not follow it."""
        waiting = self._trips.get(ride.ride_id)
        if waiting is not None and waiting.version <= ride.version:
            del self._trips[ride.ride_id]

    def error(self, frame: ErrorFrame) -> None:
        """A complaint about a frame; one of each code is enough at a time."""
        if frame.code in self._errors or len(self._errors) < ERRORS_MAX:
            self._errors[frame.code] = frame
        self.wake.set()

    def ack(self, seq: int) -> None:
        """Everything up to `seq` has been published."""
        if seq > self._ack:
            self._ack = seq
            self.wake.set()

    def take(self) -> list[bytes]:
        """All that waits, encoded, answers first; leaves nothing behind."""
        frames = list(self._answers)
        frames += [self._encode(each) for each in self._errors.values()]
        frames += [self._encode(TripChangedFrame(ride_out(each))) for each in self._trips.values()]
        if self._ack > self._acked:
            self._acked = self._ack
            frames.append(self._encode(AckFrame(self._ack)))
        self._answers.clear()
        self._answers_bytes = 0
        self._errors.clear()
        self._trips.clear()
        self.wake.clear()
        return frames
