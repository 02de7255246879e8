"""Simulated drivers answer offers, serve their trips, and cope with what the service and the network do to them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from api import schema
from api.client import Backoff, DispatchClient, new_session
from api.client_driver import DriverOptions
from benchmarks.choices import FleetOptions
from benchmarks.cities import Start
from benchmarks.drivers import Activity, Driver
from benchmarks.fleet import Fleet
from benchmarks.ledger import Ledger
from geo.model import DriverId, LatLng
from tests.e2e import wire_service
from tests.e2e.wire_service import AT, WireService, ride

APP = DriverOptions(connect_s=2.0, close_s=0.5, command_s=5.0, answer_s=1.0, backoff=Backoff(0.01, 0.05))
FAR = schema.PointOut(41.7, -73.9)
STATES = {
    "accept": ("assigned", "accepted"),
    "decline": ("searching", "declined"),
    "arrive": ("arrived", "arrived"),
    "start": ("in_progress", "in_progress"),
    "complete": ("completed", "completed"),
    "cancel": ("searching", "cancelled"),
    "no_show": ("cancelled", "no_show"),
}


def trip_of(trip_id: str, state: str, trip_state: str, *, slot: str | None = "now", **named: Any) -> schema.RideOut:
    """The ride r<trip's id> with this trip of d1."""
    shown = ride(f"r_{trip_id}", state=state, version=named.pop("version", 2), driver="d1")
    assert shown.trip is not None
    trip = msgspec.structs.replace(shown.trip, id=trip_id, state=trip_state, slot=slot, **named)
    return msgspec.structs.replace(shown, trip=trip)


def far(shown: schema.RideOut) -> schema.RideOut:
    return msgspec.structs.replace(shown, pickup=FAR)


def offer_of(trip_id: str, *, slot: str = "now") -> schema.OfferFrame:
    return schema.OfferFrame(trip_of(trip_id, "offered", "offered", slot=slot), AT, 15.0, slot)


class City:
    """One driver of a fleet at a service that takes every command, unless a test says otherwise."""

    def __init__(self, service: WireService, fleet: Fleet, driver: Driver) -> None:
        self.service, self.fleet, self.driver, self.ledger = service, fleet, driver, fleet.ledger
        service.on_frame = self.answer
        self.refusals: list[schema.ErrorFrame] = []

    async def answer(self, socket: web.WebSocketResponse, frame: schema.UpFrame) -> None:
        if not isinstance(frame, schema.TripFrame):
            return
        if self.refusals:
            await self.service.send(socket, msgspec.structs.replace(self.refusals.pop(0), ref=frame.ref))
            return
        done = trip_of(frame.trip_id, *STATES[verb_of(frame)])
        await self.service.send(socket, schema.DoneFrame(done, ref=frame.ref))

    async def tell(self, frame: schema.DownFrame) -> None:
        await self.service.send(self.service.sockets[-1], frame)

    @property
    def said(self) -> list[tuple[str, str]]:
        """The commands given, each once however often it was sent."""
        frames = [each for each in self.service.frames if isinstance(each, schema.TripFrame)]
        return list(dict.fromkeys((verb_of(each), each.trip_id) for each in frames))

    @property
    def statuses(self) -> list[str]:
        return [each.status for each in self.service.frames if isinstance(each, schema.StatusFrame)]


def verb_of(frame: schema.TripFrame) -> str:
    return str(frame.__struct_config__.tag)


@asynccontextmanager
async def city(**named: Any) -> AsyncIterator[City]:
    options = FleetOptions(10_000.0, 0.05, 0.05, boarding_s=0.01, answer_s=0.0, driver=APP)
    options = FleetOptions(**{name: getattr(options, name) for name in options.__slots__} | named)
    async with wire_service.running() as service, new_session() as session:
        fleet = Fleet(
            service.url,
            session,
            registrar=DispatchClient(service.url, "token", session=session),
            token_of=lambda driver_id: "token",
            ledger=Ledger(),
            options=options,
            rng=random.Random(1),
        )
        driver = Driver(fleet, Start(0.0, DriverId("d1"), LatLng(40.7, -73.9), 4), random.Random(1))
        one = City(service, fleet, driver)
        beat = asyncio.create_task(fleet.beat())
        try:
            assert await fleet.sign_on(driver)
            yield one
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
            await fleet.stop_serving(1.0)
            await fleet.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():
            await asyncio.sleep(0.005)


async def hears(one: City, frame: schema.DownFrame) -> None:
    """Sends the frame and waits until the driver has taken it in, by a frame that only counts."""
    await one.tell(frame)
    mark = one.ledger.paused
    mark.clear()
    await one.tell(schema.StatusChangedFrame("on_break", "missed_offers"))
    await until(lambda: bool(mark))
    await one.tell(schema.StatusChangedFrame("online"))


async def test_an_offer_is_accepted_and_driven_to_its_end() -> None:
    async with city() as one:
        await one.tell(offer_of("t1"))
        await until(lambda: len(one.said) == 4)
        assert one.said == [(verb, "t1") for verb in ("accept", "arrive", "start", "complete")]
        await until(lambda: one.driver.doing is Activity.IDLE)
        assert one.ledger.offer_counts() == {"accepted": 1}
        assert one.ledger.errors == {}


async def test_an_offer_is_declined_and_never_thought_of_again() -> None:
    async with city(decline_share=1.0) as one:
        await one.tell(offer_of("t1"))
        await until(lambda: "decline" in one.ledger.trips["t1"].confirmed_at_s if one.ledger.trips else False)
        await hears(one, offer_of("t1"))
        assert one.said == [("decline", "t1")]


async def test_an_ignored_offer_is_left_to_run_out() -> None:
    async with city(ignore_share=1.0) as one:
        await one.tell(offer_of("t1"))
        await until(lambda: one.driver.doing is Activity.ASKED)
        gone = trip_of("t1", "searching", "timed_out", slot=None, end_code="offer_expired")
        await one.tell(schema.OfferWithdrawnFrame(gone, "offer_expired"))
        await until(lambda: one.driver.doing is Activity.IDLE)
        assert one.said == []
        assert one.ledger.offer_counts() == {"ran_out": 1}


async def test_an_offer_that_is_withdrawn_meanwhile_is_not_answered() -> None:
    async with city(answer_s=1e6) as one:
        await one.tell(offer_of("t1"))
        await until(lambda: one.driver.doing is Activity.ASKED)
        gone = trip_of("t1", "cancelled", "withdrawn", slot=None, end_code="rider_cancelled")
        await one.tell(schema.OfferWithdrawnFrame(gone, "rider_cancelled"))
        await until(lambda: one.driver.doing is Activity.IDLE)
        assert one.fleet.busy == 0
        assert one.ledger.offer_counts() == {"withdrawn": 1}


async def test_whose_acceptance_comes_too_late_stays_idle() -> None:
    async with city() as one:
        one.refusals = [schema.ErrorFrame("not-allowed", "the trip is timed_out", allowed=[])]
        await one.tell(offer_of("t1"))
        await until(lambda: one.ledger.refused_commands["accept: not-allowed"] == 1)
        await until(lambda: one.fleet.busy == 0)
        assert one.driver.doing is Activity.IDLE
        assert one.said == [("accept", "t1")]


@pytest.mark.parametrize("code", ["stalled", "released", "reassigned", "rider_cancelled"])
async def test_a_trip_that_is_taken_away_ends_at_once(code: str) -> None:
    async with city() as one:
        await one.tell(schema.TripChangedFrame(far(trip_of("t1", "assigned", "accepted"))))
        await until(lambda: one.driver.doing is Activity.TO_PICKUP)
        gone = trip_of("t1", "searching", "withdrawn", slot=None, end_code=code)
        await one.tell(schema.TripChangedFrame(gone))
        await until(lambda: one.driver.doing is Activity.IDLE)
        assert one.said == []


async def test_what_a_welcome_does_not_tell_has_ended() -> None:
    async with city(answer_s=1e6) as one:
        await one.tell(schema.TripChangedFrame(far(trip_of("t1", "assigned", "accepted"))))
        await one.tell(offer_of("t2", slot="next"))
        await until(lambda: one.fleet.busy == 2)
        await one.service.sockets[0].close(code=1011)
        await until(lambda: one.fleet.busy == 0)
        assert one.said == []


async def test_a_command_that_is_refused_as_over_is_the_scripts_last() -> None:
    async with city() as one:
        one.refusals = [schema.ErrorFrame("not-allowed", "the trip is withdrawn", allowed=[])]
        await one.tell(schema.TripChangedFrame(trip_of("t1", "assigned", "accepted")))
        await until(lambda: one.ledger.refused_commands.total() == 1 and one.fleet.busy == 0)
        assert one.said == [("arrive", "t1")]


async def test_the_next_trip_is_begun_when_the_present_one_is_over() -> None:
    async with city() as one:
        await one.tell(schema.TripChangedFrame(trip_of("t1", "assigned", "accepted")))
        await one.tell(schema.TripChangedFrame(trip_of("t2", "assigned", "accepted", slot="next")))
        await until(lambda: len(one.said) == 6)
        assert one.said == [(verb, trip) for trip in ("t1", "t2") for verb in ("arrive", "start", "complete")]


async def test_the_next_trip_is_begun_when_it_is_promoted_and_not_before() -> None:
    async with city() as one:
        await hears(one, schema.TripChangedFrame(trip_of("t2", "assigned", "accepted", slot="next")))
        assert one.said == []
        await one.tell(schema.TripChangedFrame(trip_of("t2", "assigned", "accepted", slot="now")))
        await until(lambda: len(one.said) == 3)
        assert one.said[0] == ("arrive", "t2")


async def test_who_lost_its_network_tries_no_socket_until_it_is_back_and_answers_then() -> None:
    async def ignore(_: web.WebSocketResponse, __: schema.UpFrame) -> None:
        return None

    async with city(answer_s=0.01, lose_share=1.0, lost_s=0.4) as one:
        one.service.on_frame = ignore
        one.service.welcome_rides = [trip_of("t1", "offered", "offered", expires_at=AT)]
        await one.tell(offer_of("t1"))
        await until(lambda: one.driver.doing is Activity.OFFLINE)
        assert one.driver.client.away_s > 0.0
        await until(lambda: len(one.service.sockets) == 2)
        assert one.driver.client.away_s == 0.0
        await until(lambda: one.said == [("accept", "t1")])
        assert one.ledger.lost_connections == 1
        assert one.ledger.errors == {}


async def test_a_driver_paused_for_missed_offers_rests_and_comes_back() -> None:
    async with city(rest_s=0.1) as one:
        await one.tell(schema.StatusChangedFrame("on_break", "missed_offers"))
        await until(lambda: one.driver.doing is Activity.ON_BREAK)
        await until(lambda: one.statuses == ["online"])
        assert one.ledger.paused == {"d1"}


async def test_a_driver_goes_on_breaks_and_comes_back() -> None:
    async with city(break_share=1.0, online_s=0.1, rest_s=0.1) as one:
        await until(lambda: len(one.statuses) >= 4)
        assert one.statuses[:4] == ["on_break", "online", "on_break", "online"]
        assert one.ledger.breaks >= 2


async def test_a_rider_who_does_not_come_is_reported_as_soon_as_that_is_allowed() -> None:
    too_early = schema.ErrorFrame("not-allowed", "wait", allowed=["start", "cancel"], allowed_at=AT)
    async with city(no_show_share=1.0) as one:
        await one.tell(schema.TripChangedFrame(trip_of("t1", "arrived", "arrived")))
        one.refusals = [too_early]
        await until(lambda: "no_show" in one.ledger.trips["t1"].confirmed_at_s if one.ledger.trips else False)
        assert one.said == [("no_show", "t1")]
        assert one.ledger.refused_commands == {}
