"""The announcer against a store and hints whose faults are at the test's command (P9, P10)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import pytest

from geo.model import DriverId, MarketId
from matcher.announcer import Announcer
from matcher.listeners import Closed
from matcher.model import (
    NO_RIDE,
    Driver,
    DriverStatus,
    Hint,
    Ride,
    RideId,
    Slot,
    TripId,
    TripState,
)
from tests.announcers import ANNA, BEN, NYC, R1, R2, Book, LossyHints, running, until


class SlowHints(LossyHints):
    """Hints that are published while the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def publish(self, hints: Sequence[Hint]) -> None:
        await self.gate.wait()
        await super().publish(hints)


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def hints() -> LossyHints:
    return LossyHints()


async def test_a_listener_gets_what_happened_before_and_what_happens_then(book: Book, hints: LossyHints) -> None:
    book.happen(R1, "requested")
    book.happen(R1, "assigned")
    async with running(book, hints) as announcer:
        with announcer.ride_listener(R1, 1) as listener:
            first = await listener.next(5.0)
            announcer.announce([book.happen(R1, "completed")])
            rest = [event.type async for event in listener]
    assert first is not None
    assert (first.type, rest) == ("assigned", ["completed"])


async def test_another_process_hears_of_it_by_the_hint(book: Book, hints: LossyHints) -> None:
    async with running(book, hints) as here, running(book, hints) as there:
        with there.ride_listener(R1, 0) as listener:
            await until(lambda: "events_after" in book.reads)
            here.announce([book.happen(R1)])
            event = await listener.next(5.0)
            await until(lambda: not book.pending)
    assert event is not None


async def test_a_hint_for_a_ride_that_nobody_listens_to_costs_no_read(book: Book, hints: LossyHints) -> None:
    async with running(book, hints) as announcer:
        announcer.announce([book.happen(R2, driver=BEN)])
        await until(lambda: not book.pending)
    assert set(book.reads) == {"mark_announced"}


async def test_a_burst_of_hints_is_one_query_for_all_listeners(book: Book, hints: LossyHints) -> None:
    rides = [RideId(f"r_{number:03}") for number in range(200)]
    async with running(book, hints) as announcer:
        with ExitStack() as contexts:
            listeners = [contexts.enter_context(announcer.ride_listener(ride_id, 0)) for ride_id in rides]
            await until(lambda: "events_after" in book.reads)
            book.reads.clear()
            announcer.announce([book.happen(ride_id) for ride_id in rides])
            await until(lambda: all(listener.version == 1 for listener in listeners))
            assert book.reads.count("events_after") == 1


async def test_after_a_resync_everything_listened_for_is_read_again(book: Book, hints: LossyHints) -> None:
    hints.loses = True
    async with running(book, hints) as here, running(book, hints) as there:
        told: list[Ride] = []
        with there.ride_listener(R1, 0) as listener, there.driver_listener(ANNA, told.append):
            await until(lambda: {"events_after", "live_trips"} <= set(book.reads))
            here.announce([book.happen(R1, driver=ANNA)])
            book.put(R1, 2, ANNA, TripState.ACCEPTED)
            await until(lambda: not book.pending)
            assert await listener.next(0.05) is None
            await hints.resync()
            assert await listener.next(5.0) is not None
            await until(lambda: len(told) == 1)


async def test_without_any_hint_the_backstop_brings_it(book: Book, hints: LossyHints) -> None:
    async with running(book, hints, backstop_s=0.05) as announcer:
        told: list[Ride] = []
        with announcer.ride_listener(R1, 0) as listener, announcer.driver_listener(ANNA, told.append):
            await until(lambda: {"events_after", "live_trips"} <= set(book.reads))
            book.happen(R1)
            book.put(R1, 1, ANNA, TripState.ACCEPTED)
            assert await listener.next(5.0) is not None
            await until(lambda: len(told) == 1)


async def test_what_could_not_be_announced_is_relayed(book: Book, hints: LossyHints) -> None:
    hints.fails = True
    async with running(book, hints, relay_s=0.05) as here, running(book, hints) as there:
        with there.ride_listener(R1, 0) as listener:
            here.announce([book.happen(R1)])
            await until(lambda: here.stats.left_to_relay == 1)
            hints.fails = False
            assert await listener.next(5.0) is not None
            await until(lambda: here.stats.relayed == 1)
    assert not book.pending


async def test_while_nothing_can_be_hinted_at_old_events_are_marked_all_the_same(book: Book, hints: LossyHints) -> None:
    """P9: whoever listens compares versions; and what is owed once an event is marked does not wait for Redis."""
    hints.fails = True
    async with running(book, hints, relay_s=0.02, backstop_s=1.0) as announcer:
        with announcer.ride_listener(R1, 0) as listener:
            announcer.announce([book.happen(R1)])
            book.pending_ms = 3999
            looks = book.reads.count("unannounced")
            await until(lambda: book.reads.count("unannounced") >= looks + 4)
            assert book.pending
            book.pending_ms = 4000
            await until(lambda: not book.pending)
            assert await listener.next(5.0) is not None
    assert (hints.published, announcer.stats.relayed) == ([], 0)


async def test_a_hint_without_room_is_left_to_the_relay(book: Book, hints: LossyHints) -> None:
    announcer = Announcer(book, hints, outgoing_max=2)
    announcer.announce([book.happen(R1) for _ in range(5)])
    assert announcer.stats.left_to_relay == 3
    assert len(book.pending) == 5


async def test_a_store_that_was_down_is_read_again_when_it_is_back(book: Book, hints: LossyHints) -> None:
    async with running(book, hints) as announcer:
        with announcer.ride_listener(R1, 0) as listener:
            await until(lambda: "events_after" in book.reads)
            book.down = True
            announcer.announce([book.happen(R1)])
            await until(lambda: announcer.stats.faults >= 1)
            book.down = False
            assert await listener.next(5.0) is not None


async def test_two_listeners_of_one_ride_get_each_event_once(book: Book, hints: LossyHints) -> None:
    async with running(book, hints) as announcer:
        with announcer.ride_listener(R1, 0) as early, announcer.ride_listener(R1, 2) as late:
            announcer.announce([book.happen(R1), book.happen(R1), book.happen(R1, "completed")])
            assert [event.version async for event in early] == [1, 2, 3]
            assert [event.version async for event in late] == [3]


async def test_a_driver_hears_of_its_trip_its_change_and_its_end(book: Book, hints: LossyHints) -> None:
    async with running(book, hints) as announcer:
        told: list[Ride] = []
        with announcer.driver_listener(ANNA, told.append):
            book.put(R1, 2, ANNA, TripState.ACCEPTED)
            announcer.announce([book.happen(R1, driver=ANNA)])
            await until(lambda: len(told) == 1)
            book.put(R1, 3, ANNA, TripState.ARRIVED)
            announcer.announce([replace(book.happen(R1, driver=ANNA), version=3)])
            await until(lambda: len(told) == 2)
            book.put(R1, 4, ANNA, TripState.COMPLETED)
            announcer.announce([replace(book.happen(R1, driver=ANNA), version=4)])
            await until(lambda: len(told) == 3)
    assert [ride.trip.state for ride in told if ride.trip] == ["accepted", "arrived", "completed"]


async def test_a_trip_that_ended_before_its_driver_was_told_of_it_is_told_as_ended(
    book: Book, hints: LossyHints
) -> None:
    async with running(book, hints) as announcer:
        told: list[Ride] = []
        with announcer.driver_listener(ANNA, told.append):
            await until(lambda: "live_trips" in book.reads)
            book.put(R1, 3, ANNA, TripState.COMPLETED)
            announcer.announce([Hint(R1, 3, NYC, ANNA)])
            await until(lambda: len(told) == 1)
    assert [ride.trip.state for ride in told if ride.trip] == ["completed"]


async def test_trips_of_many_drivers_that_end_at_once_are_one_query_and_keep_nobody_waiting(
    book: Book, hints: LossyHints
) -> None:
    """Offers that run out by the hundred must not hold back the next ones, which live for seconds."""
    drivers = [DriverId(f"d{number:03}") for number in range(200)]
    told: list[Ride] = []
    async with running(book, hints) as announcer:
        with ExitStack() as contexts:
            for driver_id in drivers:
                contexts.enter_context(announcer.driver_listener(driver_id, told.append))
            await until(lambda: announcer.stats.resyncs == 1 and "live_trips" in book.reads)
            for state, version in ((TripState.ACCEPTED, 2), (TripState.COMPLETED, 3)):
                told.clear()
                book.reads.clear()
                for number, driver_id in enumerate(drivers):
                    book.put(RideId(f"r_{number:03}"), version, driver_id, state, f"t_{number}")
                announcer.announce([Hint(RideId(f"r_{n:03}"), version, NYC, each) for n, each in enumerate(drivers)])
                await until(lambda: len(told) == len(drivers))
            assert [read for read in book.reads if read != "mark_announced"] == ["live_trips", "rides_of"]


async def test_a_driver_is_never_told_of_another_drivers_trip(book: Book, hints: LossyHints) -> None:
    async with running(book, hints) as announcer:
        told: list[Ride] = []
        with announcer.driver_listener(ANNA, told.append):
            book.put(R1, 2, ANNA, TripState.ACCEPTED)
            announcer.announce([replace(book.happen(R1, "assigned", ANNA), version=2)])
            await until(lambda: len(told) == 1)
            book.happen(R1)
            book.happen(R1, "driver_cancelled", ANNA)
            book.put(R1, 4, BEN, TripState.ACCEPTED, "t_2")
            announcer.announce([Hint(R1, 3, NYC, ANNA), Hint(R1, 4, NYC, BEN)])
            await until(lambda: len(told) == 2)
    assert [(ride.trip.driver_id, ride.trip.state) for ride in told if ride.trip] == [
        (ANNA, TripState.ACCEPTED),
        (ANNA, TripState.CANCELLED),
    ]


async def test_a_ride_that_comes_back_to_its_driver_is_told_after_its_end_and_that_only_once(
    book: Book, hints: LossyHints
) -> None:
    """Taken from the driver and given to it anew between two looks: the first trip has ended, and is told no more."""
    async with running(book, hints, backstop_s=0.02) as announcer:
        told: list[Ride] = []
        with announcer.driver_listener(ANNA, told.append) as listener:
            book.happen(R1, "requested")
            book.happen(R1)
            book.put(R1, 2, ANNA, TripState.ACCEPTED)
            await until(lambda: len(told) == 1)
            book.happen(R1, "withdrawn", ANNA)
            book.happen(R1)
            book.put(R1, 4, ANNA, TripState.ACCEPTED, "t_2")
            await until(lambda: len(told) == 3)
            looks = book.reads.count("live_versions")
            await until(lambda: book.reads.count("live_versions") >= looks + 3)
            assert listener.is_current({TripId("t_2"): 4})
    assert [(ride.version, ride.trip.trip_id, ride.trip.state) for ride in told if ride.trip] == [
        (2, "t_1", TripState.ACCEPTED),
        (3, "t_1", TripState.WITHDRAWN),
        (4, "t_2", TripState.ACCEPTED),
    ]


async def test_a_market_is_woken_by_its_own_hints(book: Book, hints: LossyHints) -> None:
    woken: list[str] = []
    async with running(book, hints) as announcer:
        with (
            announcer.market_listener(NYC, lambda: woken.append("nyc")),
            announcer.market_listener(MarketId("sfo"), lambda: woken.append("sfo")),
        ):
            announcer.announce([book.happen(R1)])
            await until(lambda: bool(woken))
    assert set(woken) == {"nyc"}


async def test_closing_sends_what_waits_and_ends_the_listeners(book: Book, hints: LossyHints) -> None:
    async with running(book, hints) as announcer:
        with announcer.ride_listener(R1, 0) as listener:
            announcer.announce([book.happen(R2)])
            await announcer.close()
            assert len(hints.published) == 1
            assert (listener.ended, listener.closed) == (True, Closed.GOING_AWAY)
            with announcer.ride_listener(R2, 0) as late:
                assert late.ended


async def test_closing_waits_for_hints_that_are_being_published_while_others_are_marked(book: Book) -> None:
    hints = SlowHints()
    async with running(book, hints) as announcer:
        announcer.announce([book.happen(R1)])
        await until(lambda: R1 in {hint.ride_id for hint in hints.published})
        hints.gate.clear()
        announcer.announce([book.happen(R2)])
        await until(lambda: (R1, 1) not in book.pending)  # marked while the second is on its way
        closing = asyncio.create_task(announcer.close(5.0))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        hints.gate.set()
        await closing
    assert not book.pending


async def test_a_session_hears_that_its_drivers_row_was_written_elsewhere(book: Book, hints: LossyHints) -> None:
    """P7: so does one learn at once that a newer session has signed on, wherever it is held."""
    rows: list[Driver] = []
    async with running(book, hints) as here, running(book, hints) as there:
        with there.driver_listener(ANNA, lambda ride: None, rows.append) as listener:
            book.write_row(ANNA)
            listener.told_row(book.rows[ANNA])
            await until(lambda: there.stats.resyncs == 1)
            here.announce([book.write_row(ANNA, epoch=2)])
            await until(lambda: bool(rows))
    assert [(row.epoch, row.version) for row in rows] == [(2, 2)]


async def test_a_row_that_its_session_wrote_itself_costs_no_read(book: Book, hints: LossyHints) -> None:
    async with running(book, hints) as announcer:
        with announcer.driver_listener(ANNA, lambda ride: None) as listener:
            await until(lambda: announcer.stats.resyncs == 1 and "drivers" in book.reads)
            book.reads.clear()
            hint = book.write_row(ANNA)
            listener.told_row(book.rows[ANNA])
            announcer.announce([hint])
            await until(lambda: announcer.stats.announced == 1)
            assert "drivers" not in book.reads


async def test_rows_of_many_drivers_are_one_query(book: Book, hints: LossyHints) -> None:
    drivers = [DriverId(f"d{number:03}") for number in range(200)]
    told: list[Driver] = []
    async with running(book, hints) as announcer:
        with ExitStack() as contexts:
            for driver_id in drivers:
                contexts.enter_context(announcer.driver_listener(driver_id, lambda ride: None, told.append))
            await until(lambda: announcer.stats.resyncs == 1 and "drivers" in book.reads)
            book.reads.clear()
            announcer.announce([book.write_row(driver_id) for driver_id in drivers])
            await until(lambda: len(told) == len(drivers))
            assert book.reads.count("drivers") == 1


async def test_without_any_hint_the_backstop_brings_a_drivers_row(book: Book, hints: LossyHints) -> None:
    rows: list[Driver] = []
    async with running(book, hints, backstop_s=0.05) as announcer:
        with announcer.driver_listener(ANNA, lambda ride: None, rows.append):
            book.write_row(ANNA, DriverStatus.SUSPENDED)
            await until(lambda: bool(rows))
            versions = book.reads.count("driver_versions")
            await until(lambda: book.reads.count("driver_versions") >= versions + 2)
    assert [row.status for row in rows] == [DriverStatus.SUSPENDED]


async def test_hints_of_no_ride_are_never_marked_as_announced(book: Book, hints: LossyHints) -> None:
    """There is no event to mark; what they say stands in the driver's row."""
    async with running(book, hints) as announcer:
        announcer.announce([book.write_row(ANNA), Hint(NO_RIDE, 1, NYC, None)])
        await until(lambda: announcer.stats.announced == 2)
    assert "mark_announced" not in book.reads
    assert len(hints.published) == 2


async def test_a_hint_of_neither_ride_nor_driver_wakes_its_market_and_reads_nothing(
    book: Book, hints: LossyHints
) -> None:
    woken: list[str] = []
    async with running(book, hints) as announcer:
        with (
            announcer.market_listener(NYC, lambda: woken.append("nyc")),
            announcer.driver_listener(ANNA, lambda ride: None),
        ):
            await until(lambda: announcer.stats.resyncs == 1 and {"drivers", "live_trips"} <= set(book.reads))
            book.reads.clear()
            announcer.announce([Hint(NO_RIDE, 7, NYC, None)])
            await until(lambda: announcer.stats.announced == 1)
            assert book.reads == []
    assert set(woken) == {"nyc"}


async def test_a_chained_trip_that_becomes_the_present_one_is_told_again(book: Book, hints: LossyHints) -> None:
    told: list[Ride] = []
    async with running(book, hints) as announcer:
        with announcer.driver_listener(ANNA, told.append):
            book.put(R2, 2, ANNA, TripState.ACCEPTED, "t_2")
            trip = book.rides[R2].trip
            assert trip is not None
            book.rides[R2] = replace(book.rides[R2], trip=replace(trip, slot=Slot.NEXT))
            announcer.announce([Hint(R2, 2, NYC, ANNA)])
            await until(lambda: len(told) == 1)
            book.put(R2, 3, ANNA, TripState.ACCEPTED, "t_2")
            announcer.announce([Hint(R2, 3, NYC, ANNA)])
            await until(lambda: len(told) == 2)
    assert [ride.trip.slot for ride in told if ride.trip] == [Slot.NEXT, Slot.NOW]
