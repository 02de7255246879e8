"""Which frames of positions have been published: cumulative acknowledgements for many drivers on one socket.

The newest position of a driver wins, so a frame is done once each of its
drivers has that position, or a newer one, in the feed. Of each driver no more
is remembered than the oldest frame of which something waits, and the oldest of
those that came since; so memory does not grow while the feed is away (P10).
Synchronous; it knows no socket.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

#: Frames that are told apart; beyond them the newer ones are acknowledged together.
FRAMES_MAX = 1024


class Frame:
    """One frame, or several that are acknowledged together; `waiting` counts the drivers that have it as oldest."""

    __slots__ = ("seq", "waiting")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.waiting = 0


class Owed:
    """What one driver has sent that is not in the feed yet.

    `first_seq` is the driver's own number of a position that a flush may have in hand, `last_seq` that of the newest.
    """

    __slots__ = ("first", "first_seq", "last_seq", "second")

    def __init__(self) -> None:
        self.first: Frame | None = None
        self.first_seq = 0
        self.second: Frame | None = None
        self.last_seq = 0


class Acks:
    """`on_ack` is called with the number of the newest frame up to which all are done, whenever that grows."""

    def __init__(self, on_ack: Callable[[int], None]) -> None:
        self._on_ack = on_ack
        self._frames: deque[Frame] = deque()
        self._told = -1

    def open(self, seq: int | None) -> Frame:
        """A frame has come; to be closed once all its positions have been looked at."""
        frames = self._frames
        number = frames[-1].seq if seq is None and frames else self._told if seq is None else seq
        if len(frames) >= FRAMES_MAX:
            frame = frames[-1]
            frame.seq = max(frame.seq, number)
        else:
            frame = Frame(max(number, frames[-1].seq) if frames else number)
            frames.append(frame)
        frame.waiting += 1
        return frame

    def close(self, frame: Frame) -> None:
        self._done(frame)

    def owe(self, owed: Owed, seq: int, frame: Frame) -> None:
        """This driver's position of number `seq` was taken from the frame."""
        if owed.first is None:
            owed.first, owed.first_seq = frame, seq
            frame.waiting += 1
        elif owed.second is None:
            owed.second = frame
        owed.last_seq = seq

    def published(self, owed: Owed, seq: int) -> None:
        """All that this driver has sent up to its number `seq` stands in the feed, or is not worth it any more."""
        first = owed.first
        if first is None or seq < owed.first_seq:
            return
        if owed.second is not None and seq < owed.last_seq:
            owed.first, owed.first_seq = owed.second, owed.last_seq
            owed.second = None
            owed.first.waiting += 1
        else:
            owed.first = owed.second = None
        self._done(first)

    def forget(self, owed: Owed) -> None:
        """Nothing of this driver will be published any more."""
        first, owed.first, owed.second = owed.first, None, None
        if first is not None:
            self._done(first)

    def _done(self, frame: Frame) -> None:
        frame.waiting -= 1
        frames = self._frames
        newest = self._told
        while frames and frames[0].waiting == 0:
            newest = max(newest, frames.popleft().seq)
        if newest > self._told:
            self._told = newest
            self._on_ack(newest)
