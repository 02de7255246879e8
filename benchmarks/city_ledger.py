"""What the clients of a measured city saw, as little of it as an audit needs; and its way from process to process.

The load generator keeps it in plain lists; `benchmarks.city_audit` makes of it the ledger that the audit knows.
Times are milliseconds of the system's clock, which the database on this machine has as well.
"""

from __future__ import annotations

import msgspec


class Asked(msgspec.Struct, array_like=True):
    """One request. `ride_id` None: refused, with the reason in `refusal`, or, where that is empty, never answered."""

    key: str
    due_ms: float
    step: int
    ride_id: str | None = None
    refusal: str = ""


class Told(msgspec.Struct, array_like=True):
    """One trip that a driver's socket spoke of; `confirmed` has a bit for each verb (city_driver.BIT)."""

    trip_id: str
    ride_id: str
    driver_id: str
    told_ms: float
    is_offer: bool
    confirmed: int = 0
    was_withdrawn: bool = False


class Seen(msgspec.Struct):
    """All of it. `followed`: events of rides that were followed, as JSON, and whether the stream came to its end."""

    asked: list[Asked] = msgspec.field(default_factory=list)
    told: list[Told] = msgspec.field(default_factory=list)
    followed: dict[str, tuple[list[bytes], bool]] = msgspec.field(default_factory=dict)
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    lost_sockets: int = 0


def packed(seen: Seen) -> bytes:
    return msgspec.msgpack.encode(seen)


def unpacked(data: bytes) -> Seen:
    """Raises msgspec.DecodeError."""
    return msgspec.msgpack.decode(data, type=Seen)
