"""One driver of a measured city: where it is, which trip it has, what it says next. No task, no timer, no socket.

A trip is timed: it is accepted, its driver arrives, the ride starts and completes at fixed shares of a length that
was drawn for it, and meanwhile the driver is wherever that makes it. Each command is said when it is due and the one
before has been confirmed, as an app does.
"""

from __future__ import annotations

import struct
from collections import deque

import msgspec

from benchmarks.wire import Wire, frame_of
from geo.model import DriverId

#: When each command is due, as a share of the trip's length; the acceptance has its own time to think.
SHARES = {"arrive": 0.3, "start": 0.4, "complete": 1.0}
VERBS = ("accept", "arrive", "start", "complete")
NEXT = dict(zip(VERBS, (*VERBS[1:], ""), strict=True))
BIT = {verb: 1 << number for number, verb in enumerate(VERBS)}
#: What an acknowledgement begins with; the sequence follows.
ACK_HEAD = b"\x82" + msgspec.msgpack.encode("type") + msgspec.msgpack.encode("ack") + msgspec.msgpack.encode("seq")

_HEAD = b"\x84" + b"".join(msgspec.msgpack.encode(each) for each in ("type", "position", "seq")) + b"\xce"
_LAT = msgspec.msgpack.encode("lat") + b"\xcb"
_LON = msgspec.msgpack.encode("lon") + b"\xcb"
_POSITION = struct.Struct(f">{len(_HEAD)}sI{len(_LAT)}sd{len(_LON)}sd")
_FRAME = struct.Struct(f">6s{_POSITION.size}s")
_FRAME_HEAD = frame_of(bytes(_POSITION.size))[:6]


class DownTrip(msgspec.Struct, gc=False):
    id: str
    driver_id: str
    state: str


class DownPoint(msgspec.Struct, gc=False):
    lat: float
    lon: float


class DownRide(msgspec.Struct, gc=False):
    """What of a ride a driver of ours heeds; the rest is not decoded."""

    id: str
    pickup: DownPoint
    dropoff: DownPoint | None = None
    trip: DownTrip | None = None


class Down(msgspec.Struct, gc=False):
    """Any frame from the service."""

    type: str
    ride: DownRide | None = None
    ref: int | None = None
    code: str = ""
    seq: int = 0


decode_down = msgspec.msgpack.Decoder(Down).decode


class Job:
    """The trip that a driver has: its length once it is accepted, and what was confirmed of it."""

    __slots__ = ("began_s", "confirmed", "from_lat", "from_lon", "length_s", "ride", "trip_id", "verb")

    def __init__(self, ride: DownRide, trip_id: str, length_s: float, lat: float, lon: float) -> None:
        self.ride = ride
        self.trip_id = trip_id
        self.length_s = length_s
        self.began_s = 0.0  # when it was accepted; 0: not yet
        self.confirmed = 0
        self.verb = ""  # the command that is due or on its way
        self.from_lat, self.from_lon = lat, lon

    def due_s(self, verb: str) -> float:
        return self.began_s + SHARES[verb] * self.length_s

    def place(self, now_s: float) -> tuple[float, float]:
        """Where the driver is: on its way to the pickup, there, or on its way to the destination."""
        share = (now_s - self.began_s) / self.length_s if self.began_s else 0.0
        pickup, end = self.ride.pickup, self.ride.dropoff or self.ride.pickup
        if share <= SHARES["arrive"]:
            return _between(self.from_lat, self.from_lon, pickup.lat, pickup.lon, share / SHARES["arrive"])
        if share <= SHARES["start"]:
            return pickup.lat, pickup.lon
        way = (share - SHARES["start"]) / (SHARES["complete"] - SHARES["start"])
        return _between(pickup.lat, pickup.lon, end.lat, end.lon, min(1.0, way))


def _between(lat: float, lon: float, to_lat: float, to_lon: float, share: float) -> tuple[float, float]:
    return lat + (to_lat - lat) * share, lon + (to_lon - lon) * share


class Driver:
    """Its place, its count of positions, its socket and its job. `awaited`: timed positions on their way; else None."""

    __slots__ = ("ack", "awaited", "driver_id", "feed_id", "job", "lat", "later", "lon", "seq", "signed_on_s", "wire")

    def __init__(self, driver_id: str, lat: float, lon: float, *, is_timed: bool) -> None:
        self.driver_id = driver_id
        self.feed_id = DriverId(driver_id)
        self.lat, self.lon = lat, lon
        self.seq = 0
        self.ack = ACK_HEAD + b"\x00"  # the last one, as it came
        self.job: Job | None = None
        self.later: DownRide | None = None  # told of before the present one's completion was confirmed
        self.wire: Wire | None = None
        self.signed_on_s = 0.0
        self.awaited: deque[tuple[int, float]] | None = deque() if is_timed else None

    def position(self, now_s: float) -> bytes:
        """The next position, as it goes over the wire."""
        if self.job is not None:
            self.lat, self.lon = self.job.place(now_s)
        self.seq += 1
        return _FRAME.pack(_FRAME_HEAD, _POSITION.pack(_HEAD, self.seq, _LAT, self.lat, _LON, self.lon))

    @property
    def acked(self) -> int:
        return seq_of(self.ack)


def seq_of(ack: bytes) -> int:
    """The sequence of an acknowledgement, a msgpack integer from 0 on."""
    rest = ack[len(ACK_HEAD) :]
    return rest[0] if len(rest) == 1 else int.from_bytes(rest[1:], "big")


def command_frame(verb: str, trip_id: str, ref: int) -> bytes:
    return frame_of(msgspec.msgpack.encode({"type": verb, "trip_id": trip_id, "ref": ref}))
