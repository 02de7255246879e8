"""Ids that sort by the time they were made: 48 bits of milliseconds, 80 random bits.

They are made before the transaction that writes them, so that an unknown
outcome can be read back (P2). Text is Crockford's base 32 in ascending order of
its characters, hence the order of ids as bytes is the order of their times.
"""

from __future__ import annotations

import secrets
import time

from matcher.model import RideId, TripId

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
#: Characters of an id, its prefix of two included.
ID_LENGTH = 28


def encode(value: int) -> str:
    """128 bits as 26 characters, the most significant first."""
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(120, -1, -10)])


def time_ordered(now_ms: int) -> str:
    """26 characters that sort after those made a millisecond earlier."""
    return encode((now_ms & (2**48 - 1)) << 80 | secrets.randbits(80))


def new_ride_id() -> RideId:
    return RideId("r_" + time_ordered(time.time_ns() // 1_000_000))


def new_trip_id() -> TripId:
    return TripId("t_" + time_ordered(time.time_ns() // 1_000_000))
