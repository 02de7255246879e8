"""What waits for a driver's socket: bounded, and the newest state wins (P10)."""

from __future__ import annotations

from typing import Any

import msgspec

from api.outbox import ANSWERS_BYTES_MAX, ERRORS_MAX, TRIPS_MAX, Outbox, Wake
from api.schema import DoneFrame, ErrorFrame, QueueFrame, StatusChangedFrame
from geo.model import DriverId, LatLng, MarketId
from matcher.model import ClientId, Code, Ride, RideId, RideState, Slot, Trip, TripId, TripState

NOW_MS = 1_000_000


def trip(state: TripState, name: str = "t_1", slot: Slot = Slot.NOW, code: Code | None = None) -> Trip:
    return Trip(
        TripId(name),
        RideId("r_0"),
        DriverId("d"),
        MarketId("m"),
        state,
        slot if state.is_live else None,
        60.0,
        400.0,
        matched_at_ms=NOW_MS - 500,
        arrived_at_ms=None,
        started_at_ms=None,
        ended_at_ms=None,
        abandon_at_ms=NOW_MS + 600_000,
        end_reason=None,
        decision={},
        due_at_ms=NOW_MS + 12_340,
        end_code=code,
    )


def ride(number: int = 0, version: int = 1, trip: Trip | None = None) -> Ride:
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
        metadata={"note": "the blue door"},
        requested_at_ms=0,
        deadline_at_ms=1,
        ended_at_ms=None,
        end_reason=None,
        trip=trip,
    )


def outbox() -> Outbox:
    return Outbox(msgspec.json.Encoder().encode, lambda: NOW_MS)


def taken(box: Outbox) -> list[dict[str, Any]]:
    return [msgspec.json.decode(each) for each in box.take()]


def test_acknowledgements_are_cumulative_and_never_go_back() -> None:
    box = outbox()
    for seq in (3, 7, 5):
        box.ack(seq)
    assert taken(box) == [{"type": "ack", "seq": 7}]
    box.ack(7)
    assert taken(box) == []


def test_what_is_published_is_acknowledged_with_whatever_leaves_next() -> None:
    box, called = outbox(), list[str]()
    assert isinstance(box.wake, Wake)
    box.wake.on_set = lambda: called.append("writer")
    box.published(4)
    assert called == []
    box.error(ErrorFrame("offline", "the driver is offline"))
    assert called == ["writer"]
    assert [each["type"] for each in taken(box)] == ["error", "ack"]
    box.ack(4)  # has been told
    assert called == ["writer"]


def test_a_writer_is_called_once_for_all_that_waits() -> None:
    box, called = outbox(), list[str]()
    assert isinstance(box.wake, Wake)
    box.wake.on_set = lambda: called.append("writer")
    for seq in (1, 2, 3):
        box.ack(seq)
    assert called == ["writer"]
    taken(box)
    box.ack(4)
    assert called == ["writer"] * 2


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


def test_an_offer_says_when_it_ends_and_what_is_left_of_its_time() -> None:
    box = outbox()
    box.trip(ride(trip=trip(TripState.OFFERED, slot=Slot.NEXT)))
    (frame,) = taken(box)
    assert (frame["type"], frame["expires_at"], frame["slot"]) == ("offer", "1970-01-01T00:16:52.340Z", "next")
    assert frame["expires_in_s"] == 12.3
    assert frame["ride"]["trip"]["expires_at"] == frame["expires_at"]
    assert frame["ride"]["metadata"] == {"note": "the blue door"}


def test_what_is_left_of_an_offers_time_is_reckoned_when_it_leaves_and_never_negative() -> None:
    now_ms = [NOW_MS]
    box = Outbox(msgspec.json.Encoder().encode, lambda: now_ms[0])
    box.trip(ride(trip=trip(TripState.OFFERED)))
    now_ms[0] += 60_000
    assert [each["expires_in_s"] for each in taken(box)] == [0.0]


def test_an_offer_that_ended_before_it_left_is_not_sent_as_an_offer() -> None:
    box = outbox()
    box.trip(ride(version=2, trip=trip(TripState.OFFERED)))
    box.trip(ride(version=3, trip=trip(TripState.WITHDRAWN, code=Code.RIDER_CANCELLED)))
    assert [(each["type"], each["code"]) for each in taken(box)] == [("offer_withdrawn", "rider_cancelled")]


def test_the_end_of_an_offer_that_was_shown_is_its_withdrawal_and_of_an_accepted_trip_a_trip() -> None:
    box = outbox()
    box.trip(ride(0, 2, trip(TripState.OFFERED)))
    box.trip(ride(1, 2, trip(TripState.OFFERED, "t_2")))
    taken(box)
    box.trip(ride(1, 3, trip(TripState.ACCEPTED, "t_2")))
    taken(box)
    box.trip(ride(0, 3, trip(TripState.WITHDRAWN, code=Code.CONNECTION_LOST)))
    box.trip(ride(1, 4, trip(TripState.WITHDRAWN, "t_2", code=Code.STALLED)))
    assert [each["type"] for each in taken(box)] == ["offer_withdrawn", "trip"]


def test_an_offer_known_from_the_welcome_or_an_answer_is_withdrawn_like_one_that_was_sent() -> None:
    box = outbox()
    box.told(ride(version=2, trip=trip(TripState.OFFERED)))
    box.trip(ride(version=3, trip=trip(TripState.WITHDRAWN, code=Code.RELEASED)))
    assert [each["code"] for each in taken(box)] == ["released"]


def test_an_offer_that_ran_out_unseen_is_told_as_such() -> None:
    box = outbox()
    box.trip(ride(version=3, trip=trip(TripState.TIMED_OUT, code=Code.OFFER_EXPIRED)))
    assert [(each["type"], each["code"]) for each in taken(box)] == [("offer_withdrawn", "offer_expired")]


def test_an_answer_to_an_offer_is_not_followed_by_the_offer() -> None:
    box = outbox()
    box.trip(ride(version=2, trip=trip(TripState.OFFERED)))
    box.told(ride(version=3, trip=trip(TripState.ACCEPTED)))
    assert taken(box) == []
    box.trip(ride(version=4, trip=trip(TripState.WITHDRAWN, code=Code.RIDER_CANCELLED)))
    assert [each["type"] for each in taken(box)] == ["trip"]


def test_the_same_ride_offered_again_is_a_new_offer_after_the_end_of_the_one_before() -> None:
    box = outbox()
    box.trip(ride(version=2, trip=trip(TripState.OFFERED)))
    taken(box)
    box.trip(ride(version=3, trip=trip(TripState.WITHDRAWN)))
    box.trip(ride(version=4, trip=trip(TripState.OFFERED, "t_2")))
    assert [(each["type"], each["ride"]["trip"]["id"]) for each in taken(box)] == [
        ("offer_withdrawn", "t_1"),
        ("offer", "t_2"),
    ]
    box.trip(ride(version=5, trip=trip(TripState.WITHDRAWN, "t_2")))
    assert [each["type"] for each in taken(box)] == ["offer_withdrawn"]


def test_of_the_place_in_a_queue_only_the_newest_is_sent() -> None:
    box = outbox()
    for position in (5, 4, 3):
        box.queue(QueueFrame("airport", position, 9))
    assert [each["position"] for each in taken(box)] == [3]
    assert taken(box) == []


def test_of_the_status_only_the_newest_is_sent_and_none_after_an_answer_that_told_it() -> None:
    box = outbox()
    box.status(StatusChangedFrame("on_break", "missed_offers"))
    box.status(StatusChangedFrame("online"))
    assert taken(box) == [{"type": "status", "status": "online", "code": None, "reason": None}]
    box.status(StatusChangedFrame("on_break"))
    box.told_status()
    assert taken(box) == []
