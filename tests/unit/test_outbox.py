"""What waits for a driver's socket: bounded, and the newest state wins (P10)."""

from __future__ import annotations

from typing import Any

import msgspec

from api.outbox import ANSWERS_BYTES_MAX, ERRORS_MAX, TRIPS_MAX, Outbox
from api.schema import DoneFrame, ErrorFrame
from geo.model import LatLng, MarketId
from matcher.model import ClientId, Ride, RideId, RideState


def ride(number: int = 0, version: int = 1) -> Ride:
    return Ride(
        ride_id=RideId(f"r_{number}"),
        client_id=ClientId("ann"),
        market=MarketId("m"),
        state=RideState.SEARCHING,
        version=version,
        pickup=LatLng(1, 2),
        dropoff=None,
        seats=1,
        vehicle_class="standard",
        metadata={},
        requested_at_ms=0,
        deadline_at_ms=1,
        ended_at_ms=None,
        end_reason=None,
        trip=None,
    )


def outbox() -> Outbox:
    return Outbox(msgspec.json.Encoder().encode)


def taken(box: Outbox) -> list[dict[str, Any]]:
    return [msgspec.json.decode(each) for each in box.take()]


def test_acknowledgements_are_cumulative_and_never_go_back() -> None:
    box = outbox()
    for seq in (3, 7, 5):
        box.ack(seq)
    assert taken(box) == [{"type": "ack", "seq": 7}]
    box.ack(7)
    assert taken(box) == []


def test_of_a_ride_only_the_newest_state_is_sent() -> None:
    box = outbox()
    for version in (2, 4, 3):
        box.trip(ride(version=version))
    assert [each["ride"]["version"] for each in taken(box)] == [4]


def test_an_older_state_does_not_follow_an_answer_that_told_a_newer_one() -> None:
    box = outbox()
    box.trip(ride(version=3))
    box.told(ride(version=4))
    assert taken(box) == []


def test_a_newer_state_follows_an_answer() -> None:
    box = outbox()
    box.trip(ride(version=5))
    box.told(ride(version=4))
    assert [each["ride"]["version"] for each in taken(box)] == [5]


def test_complaints_of_one_kind_become_one_and_kinds_are_bounded() -> None:
    box = outbox()
    for number in range(100):
        box.error(ErrorFrame("invalid-frame", str(number)))
    assert [each["detail"] for each in taken(box)] == ["99"]
    for number in range(100):
        box.error(ErrorFrame(f"code-{number}", ""))
    assert len(taken(box)) == ERRORS_MAX


def test_answers_keep_their_order_and_overflow_rather_than_pile_up() -> None:
    box = outbox()
    for ref in range(3):
        box.answer(DoneFrame(status="online", ref=ref))
    assert [each["ref"] for each in taken(box)] == [0, 1, 2]
    assert not box.overflowed
    box.answer(ErrorFrame("x", "y" * ANSWERS_BYTES_MAX))
    assert box.overflowed


def test_more_rides_than_a_driver_can_have_overflow() -> None:
    box = outbox()
    for number in range(TRIPS_MAX + 1):
        box.trip(ride(number))
    assert box.overflowed


def test_the_welcome_goes_out_first() -> None:
    box = outbox()
    box.trip(ride())
    box.answer(DoneFrame(ref=1))
    box.welcome(ErrorFrame("welcome", ""))
    assert [each["type"] for each in taken(box)] == ["error", "done", "trip"]
