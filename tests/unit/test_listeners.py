"""What a listener of a ride or a driver is told, and what not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from geo.model import DriverId, LatLng, MarketId
from matcher.listeners import Closed, DriverListener, RideListener, ended_view
from matcher.model import (
    ClientId,
    Code,
    Driver,
    DriverStatus,
    Ride,
    RideEvent,
    RideId,
    RideState,
    Slot,
    Trip,
    TripId,
    TripState,
)

RIDE, NYC = RideId("r_1"), MarketId("nyc")
ANNA, BEN = DriverId("anna"), DriverId("ben")


def event(version: int, type_: str = "arrived", state: RideState = RideState.ARRIVED, trip: str = "t_1") -> RideEvent:
    return RideEvent(RIDE, version, NYC, type_, state, ANNA, TripId(trip), "because", 1000 + version)


def trip_of(driver: DriverId, name: str = "t_1", state: TripState = TripState.ACCEPTED) -> Trip:
    slot = Slot.NOW if state.is_live else None
    return Trip(TripId(name), RIDE, driver, NYC, state, slot, 60.0, 400.0, 1, None, None, None, 9, None, {})


def ride_with(trip: Trip | None, version: int = 2, state: RideState = RideState.ASSIGNED) -> Ride:
    point = LatLng(40.7, -74.0)
    client = ClientId("c")
    return Ride(RIDE, client, NYC, state, version, point, None, 1, "standard", {}, 0, 9, None, None, trip)


async def drained(listener: RideListener) -> list[int]:
    versions = []
    while (taken := await listener.next(0.0)) is not None:
        versions.append(taken.version)
    return versions


async def test_events_come_once_and_in_order_after_the_known_version() -> None:
    listener = RideListener(RIDE, 1)
    listener.take_in([event(1), event(2)])
    listener.take_in([event(2), event(3)])
    assert await drained(listener) == [2, 3]
    assert not listener.ended


async def test_no_event_is_taken_over_a_gap() -> None:
    listener = RideListener(RIDE, 1)
    listener.take_in([event(3)])
    assert (await drained(listener), listener.version) == ([], 1)
    listener.take_in([event(2), event(3)])
    assert await drained(listener) == [2, 3]


async def test_the_listener_ends_after_the_final_event() -> None:
    listener = RideListener(RIDE, 0)
    listener.take_in([event(1), event(2, "completed", RideState.COMPLETED), event(3)])
    assert [taken.version async for taken in listener] == [1, 2]
    assert (listener.ended, listener.closed) == (True, Closed.FINAL)


async def test_a_listener_that_does_not_keep_up_is_dropped_with_a_marker_and_may_resume() -> None:
    listener = RideListener(RIDE, 0, events_max=3)
    listener.take_in([event(version) for version in range(1, 9)])
    assert listener.closed is Closed.OVERFLOW
    assert [taken.version async for taken in listener] == [1, 2, 3]


async def test_a_wait_ends_with_the_event_and_with_the_closing() -> None:
    listener = RideListener(RIDE, 0)
    waiting = asyncio.create_task(listener.next())
    await asyncio.sleep(0)
    listener.take_in([event(1)])
    taken = await waiting
    assert taken is not None
    assert taken.version == 1
    waiting = asyncio.create_task(listener.next())
    await asyncio.sleep(0)
    listener.close(Closed.GOING_AWAY)
    assert await waiting is None
    assert listener.ended


async def test_a_cancelled_wait_loses_no_event() -> None:
    listener = RideListener(RIDE, 0)
    waiting = asyncio.create_task(listener.next())
    await asyncio.sleep(0)
    listener.take_in([event(1)])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await drained(listener) == [1]


def test_a_driver_is_told_of_each_version_once() -> None:
    told: list[Ride] = []
    listener = DriverListener(ANNA, told.append)
    ride = ride_with(trip_of(ANNA))
    listener.compare([ride])
    listener.compare([ride])
    newer = replace(ride, version=3)
    listener.compare([newer])
    listener.compare([ride])  # a read that was overtaken
    assert told == [ride, newer]


def test_a_trip_that_is_live_no_more_is_asked_about_until_its_end_is_told() -> None:
    told: list[Ride] = []
    listener = DriverListener(ANNA, told.append)
    ride = ride_with(trip_of(ANNA))
    listener.compare([ride])
    assert listener.gone([ride]) == []
    assert listener.gone([]) == [ride]
    listener.tell(ride_with(trip_of(ANNA, state=TripState.COMPLETED), 5, RideState.COMPLETED))
    assert listener.gone([]) == []
    assert not listener.has(TripId("t_1"))
    assert len(told) == 2


def test_a_state_that_was_overtaken_is_not_told() -> None:
    told: list[Ride] = []
    listener = DriverListener(ANNA, told.append)
    assert listener.told(ride_with(trip_of(ANNA), 5))
    assert not listener.told(ride_with(trip_of(ANNA), 4))
    listener.tell(ride_with(trip_of(ANNA), 4))
    assert told == []


def test_the_end_of_a_trip_counts_also_where_the_ride_has_come_back_to_its_driver() -> None:
    """Else that end would be looked for, and told, again and again."""
    listener = DriverListener(ANNA, lambda ride: None)
    first = ride_with(trip_of(ANNA, "t_1", TripState.OFFERED), 2, RideState.OFFERED)
    second = ride_with(trip_of(ANNA, "t_2", TripState.OFFERED), 4, RideState.OFFERED)
    listener.compare([first])
    listener.compare([second])
    listener.tell(ride_with(trip_of(ANNA, "t_1", TripState.WITHDRAWN), 3, RideState.SEARCHING))
    assert listener.gone([second]) == []
    assert listener.is_current({TripId("t_2"): 4})


def test_what_a_driver_knows_from_its_own_command_is_not_told_again() -> None:
    told: list[Ride] = []
    listener = DriverListener(ANNA, told.append)
    ride = ride_with(trip_of(ANNA), 3)
    listener.told(ride)
    listener.compare([ride])
    assert told == []
    assert listener.knows(RIDE, 3)
    assert not listener.knows(RIDE, 4)


def test_another_drivers_trip_is_never_remembered_as_told() -> None:
    listener = DriverListener(ANNA, lambda ride: None)
    listener.told(ride_with(trip_of(BEN)))
    assert listener.gone([]) == []


def test_a_callback_that_fails_does_not_stop_the_announcer(caplog: pytest.LogCaptureFixture) -> None:
    def fail(ride: Ride) -> None:
        raise RuntimeError("socket gone")

    DriverListener(ANNA, fail).compare([ride_with(trip_of(ANNA))])
    assert "anna" in caplog.text


def test_the_end_of_a_trip_is_shown_as_the_store_has_it() -> None:
    told = ride_with(trip_of(ANNA))
    now = ride_with(trip_of(ANNA, state=TripState.COMPLETED), 5, RideState.COMPLETED)
    assert ended_view(told, now, []) is now
    assert ended_view(told, ride_with(trip_of(ANNA), 3), []) is None


def test_a_driver_whose_ride_went_to_another_sees_only_its_own_trips_end() -> None:
    told = ride_with(trip_of(ANNA))
    now = ride_with(trip_of(BEN, "t_2"), 4)
    happened = [event(3, "driver_cancelled", RideState.SEARCHING), event(4, "assigned", RideState.ASSIGNED, "t_2")]
    view = ended_view(told, now, happened)
    assert view is not None
    assert view.trip is not None
    assert (view.version, view.state) == (3, RideState.SEARCHING)
    assert (view.trip.driver_id, view.trip.state, view.trip.slot) == (ANNA, TripState.CANCELLED, None)
    assert (view.trip.ended_at_ms, view.trip.end_reason) == (1003, "because")


@pytest.mark.parametrize(
    ("type_", "code", "state"),
    [
        ("declined", Code.DECLINED, TripState.DECLINED),
        ("timed_out", Code.OFFER_EXPIRED, TripState.TIMED_OUT),
        ("withdrawn", Code.CONNECTION_LOST, TripState.WITHDRAWN),
        ("withdrawn", Code.STALLED, TripState.WITHDRAWN),
        ("abandoned", Code.ABANDONED, TripState.ABANDONED),
    ],
)
def test_how_a_trip_ended_is_told_from_its_event_where_the_ride_has_gone_on(
    type_: str, code: Code, state: TripState
) -> None:
    told = ride_with(trip_of(ANNA))
    ended = replace(event(3, type_, RideState.SEARCHING), code=code.value)
    view = ended_view(told, ride_with(trip_of(BEN, "t_2"), 4), [ended])
    assert view is not None
    assert view.trip is not None
    assert (view.trip.state, view.trip.end_code) == (state, code)


def row(version: int, status: DriverStatus = DriverStatus.ONLINE) -> Driver:
    return Driver(ANNA, status, "standard", 4, NYC, 1, 0, version=version)


def test_a_drivers_row_is_told_once_and_only_what_is_newer() -> None:
    rows: list[Driver] = []
    listener = DriverListener(ANNA, lambda ride: None, rows.append)
    listener.told_row(row(3))
    for version in (2, 3, 5, 4, 5):
        listener.tell_row(row(version))
    assert [each.version for each in rows] == [5]
    listener.told_row(row(1))  # late: nothing is forgotten
    assert listener.row_version == 5


def test_a_row_that_a_session_fails_over_does_not_stop_the_announcer(caplog: pytest.LogCaptureFixture) -> None:
    def fail(driver: Driver) -> None:
        raise RuntimeError("socket gone")

    DriverListener(ANNA, lambda ride: None, fail).tell_row(row(1))
    assert "anna" in caplog.text


def test_an_offer_is_no_trip_of_the_drivers_until_it_is_accepted() -> None:
    listener = DriverListener(ANNA, lambda ride: None)
    listener.told(ride_with(trip_of(ANNA, state=TripState.OFFERED), 2, RideState.OFFERED))
    assert (listener.has_offer, listener.has_trip) == (True, False)
    listener.told(ride_with(trip_of(ANNA), 3))
    assert (listener.has_offer, listener.has_trip) == (False, True)
    listener.told(ride_with(trip_of(ANNA, state=TripState.COMPLETED), 4, RideState.COMPLETED))
    assert (listener.has_offer, listener.has_trip) == (False, False)
