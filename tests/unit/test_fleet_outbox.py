"""What a gateway is sent, in which order, and how little of it is kept."""

from __future__ import annotations

import asyncio

from api.fleet_outbox import (
    ANSWERS_BYTES_HIGH,
    ANSWERS_BYTES_MAX,
    SIGNED_OFF_MAX,
    SLICE_BYTES,
    DriverOutbox,
    FleetOutbox,
)
from api.schema import AckFrame, ErrorFrame, QueueFrame, StatusChangedFrame
from api.schema_fleet import (
    NAMED_MAX,
    FleetDone,
    FleetDownFrame,
    FleetError,
    FleetStatusChanged,
    SignedOffFrame,
    SignedOffItem,
)


class Case:
    """An outbox whose frames are kept as they are, each said to be `bytes_each` long."""

    def __init__(self, bytes_each: int = 100) -> None:
        self.frames: list[FleetDownFrame] = []
        self._bytes_each = bytes_each
        self.outbox = FleetOutbox(self._encode)
        self.published: list[int] = []

    def _encode(self, frame: FleetDownFrame) -> bytes:
        self.frames.append(frame)
        return bytes(self._bytes_each)

    def box(self, driver_id: str = "ann", *, is_told: bool = True) -> DriverOutbox:
        box = DriverOutbox(driver_id, self.outbox, lambda: 0, self.published.append)
        if is_told:
            box.release()
        return box

    def take(self) -> list[FleetDownFrame]:
        self.frames.clear()
        self.outbox.take()
        return list(self.frames)


def test_the_newest_status_of_a_driver_wins_and_each_is_named() -> None:
    case = Case()
    ann, bob = case.box("ann"), case.box("bob")
    case.take()
    ann.status(StatusChangedFrame("on_break"))
    bob.status(StatusChangedFrame("online"))
    ann.status(StatusChangedFrame("offline"))
    assert case.take() == [
        FleetStatusChanged("offline", driver_id="ann"),
        FleetStatusChanged("online", driver_id="bob"),
    ]
    assert not case.outbox.wake.is_set()
    ann.status(StatusChangedFrame("online"))
    assert case.outbox.wake.is_set()


def test_nothing_of_a_driver_is_told_before_its_sign_on_is_answered() -> None:
    case = Case()
    box = case.box(is_told=False)
    box.status(StatusChangedFrame("on_break"))
    assert case.take() == []
    box.release()
    assert case.take() == [FleetStatusChanged("on_break", driver_id="ann")]


def test_nothing_is_told_of_a_driver_that_is_gone() -> None:
    case = Case()
    box = case.box()
    box.queue(QueueFrame("airport", 1, 2))
    case.outbox.forget(box)
    assert case.take() == []


def test_positions_that_were_not_taken_are_told_of_together_and_some_are_named() -> None:
    """P10"""
    case = Case()
    for n in range(NAMED_MAX + 5):
        case.box(f"d{n}").error(ErrorFrame("offline", "why"))
    case.box("d0").error(ErrorFrame("offline", "why"))
    names = [f"d{n}" for n in range(NAMED_MAX)]
    told = case.take()
    assert told == [FleetError("offline", "why", driver_ids=names, count=NAMED_MAX + 6)]


def test_a_drivers_own_acknowledgement_is_the_gateways_business() -> None:
    case = Case()
    case.box().ack(5)
    assert case.published == [5]
    case.take()
    for seq in (3, 2, 9):
        case.outbox.ack(seq)
    assert case.take() == [AckFrame(9)]
    case.outbox.ack(9)
    assert case.take() == []


def test_many_who_are_ended_at_once_are_told_of_in_frames_that_can_be_read() -> None:
    case = Case()
    for n in range(SIGNED_OFF_MAX + 1):
        case.outbox.ended(SignedOffItem(f"d{n}", "superseded"))
    sizes = []
    while case.outbox.wake.is_set():
        (frame,) = case.take()
        assert isinstance(frame, SignedOffFrame)
        sizes.append(len(frame.drivers))
    assert sizes == [SIGNED_OFF_MAX, 1]


def test_no_more_is_encoded_at_a_time_than_is_being_sent() -> None:
    """P10"""
    case = Case(bytes_each=SLICE_BYTES // 4)
    boxes = [case.box(f"d{n}") for n in range(10)]
    case.take()
    for box in boxes:
        box.status(StatusChangedFrame("online"))
    sizes = []
    while case.outbox.wake.is_set():
        sizes.append(len(case.take()))
    assert sizes == [4, 4, 2]


def test_many_answers_stop_the_reading_and_too_many_end_the_socket() -> None:
    """P10"""
    case = Case(bytes_each=ANSWERS_BYTES_HIGH)
    case.outbox.answer(FleetDone(driver_id="ann"))
    assert case.outbox._room.is_set()
    case.outbox.answer(FleetDone(driver_id="ann"))
    assert not case.outbox._room.is_set()
    assert not case.outbox.overflowed
    case.take()
    assert case.outbox._room.is_set()
    for _ in range(ANSWERS_BYTES_MAX // ANSWERS_BYTES_HIGH + 1):
        case.outbox.answer(FleetDone(driver_id="ann"))
    assert case.outbox.overflowed


async def test_a_reader_waits_for_room() -> None:
    case = Case(bytes_each=ANSWERS_BYTES_HIGH)
    await case.outbox.room()
    for _ in range(2):
        case.outbox.answer(FleetDone(driver_id="ann"))
    waiting = asyncio.create_task(case.outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    case.take()
    await waiting


def test_an_end_that_has_not_been_told_does_not_follow_the_answer_to_a_newer_sign_on() -> None:
    case = Case()
    case.outbox.ended(SignedOffItem("ann", "superseded"))
    case.outbox.ended(SignedOffItem("bob", "superseded"))
    case.outbox.begun("ann")
    assert case.take() == [SignedOffFrame([SignedOffItem("bob", "superseded")])]
