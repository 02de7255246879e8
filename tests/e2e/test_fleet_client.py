"""The gateway's client library against a real service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api import schema
from api import schema_fleet as fleet
from api.auth import Role
from api.client import ApiError, Backoff, new_session
from api.client_driver import CommandRefused, DriverOptions
from api.client_fleet import FleetClient
from geo.model import DriverId
from tests.e2e.matcher_by_hand import Matcher
from tests.e2e.running import LAT, LON, Running, running, settings_for, token, until

OPTIONS = DriverOptions(connect_s=5.0, close_s=0.5, command_s=10.0, answer_s=2.0, backoff=Backoff(0.01, 0.05))


class Ear:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.signed_on: dict[str, fleet.SignedOnItem] = {}
        self.signed_off: dict[str, str] = {}
        self.rides: list[tuple[str, schema.RideOut]] = []
        self.offers: list[tuple[str, str]] = []
        self.statuses: dict[str, str] = {}
        self.lost: list[str] = []
        self.refused: list[fleet.FleetError] = []

    def on_signed_on(self, driver: fleet.SignedOnItem) -> None:
        self.signed_on[driver.driver_id] = driver

    def on_signed_off(self, driver_id: str, code: str) -> None:
        self.signed_off[driver_id] = code

    def on_ride(self, driver_id: str, ride: schema.RideOut) -> None:
        self.rides.append((driver_id, ride))

    def on_offer(self, driver_id: str, ride: schema.RideOut, expires_in_s: float) -> None:
        assert ride.trip is not None
        assert expires_in_s > 0
        self.offers.append((driver_id, ride.trip.id))

    def on_offer_withdrawn(self, driver_id: str, ride: schema.RideOut, code: str) -> None:
        self.offers.append((driver_id, code))

    def on_status(self, driver_id: str, status: str, code: str | None) -> None:
        self.statuses[driver_id] = status

    def on_queue(self, driver_id: str, queue: schema.QueueFrame) -> None:
        raise AssertionError(queue)

    def on_refused(self, error: fleet.FleetError) -> None:
        self.refused.append(error)

    def on_lost(self, why: str) -> None:
        self.lost.append(why)


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path), "api") as run:
        yield run


@asynccontextmanager
async def client(run: Running, role: Role = Role.FLEET, **named: Any) -> AsyncIterator[tuple[FleetClient, Ear]]:
    ear = Ear()
    async with new_session() as session:
        tok = token(role, "cabs", drivers=("d*",))
        gateway = FleetClient(session, run.base_url, tok, ear, options=OPTIONS, **named)
        job = asyncio.create_task(gateway.run())
        try:
            yield gateway, ear
        finally:
            await gateway.close()
            await job


async def put(run: Running, *names: str) -> None:
    for name in names:
        await run.service.store.put_driver(DriverId(name), vehicle_class="standard", seats=4)


async def holds(condition: Callable[[], bool], what: str) -> None:
    async def look() -> bool:
        return condition()

    await until(look, what=what)


async def found(run: Running) -> dict[str, float]:
    answer = await run.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}&idle=false", "client:ann")
    return {each["driver_id"]: each["lat"] for each in answer.body["items"]}


def found_at(run: Running, places: dict[str, float]) -> Awaitable[None]:
    async def look() -> bool:
        return await found(run) == places

    return until(look, what=f"found at {places}")


async def test_drivers_are_signed_on_seen_and_command_their_trips(alone: Running) -> None:
    await put(alone, "d1", "d2")
    matcher = Matcher(alone)
    async with client(alone) as (gateway, ear):
        gateway.add("d1", "d2", "d_unknown", "other")
        await gateway.positions([("d1", LAT, LON), ("d2", LAT + 0.001, LON), ("stranger", LAT, LON)])
        await holds(lambda: len(ear.signed_on) == 2 and len(ear.signed_off) == 2, "signed on")
        assert ear.signed_off == {"d_unknown": "driver-unknown", "other": "forbidden"}
        await found_at(alone, {"d1": LAT, "d2": LAT + 0.001})
        trip = await matcher.offer_to(await alone.ride(), "d1")
        await holds(lambda: ear.offers == [("d1", trip.trip_id)], "the offer")
        ride = await gateway.command("accept", "d1", trip.trip_id)
        assert ride is not None
        assert ride.state == "assigned"
        with pytest.raises(CommandRefused, match="not-allowed"):
            await gateway.command("complete", "d1", trip.trip_id)
        await gateway.set_status("d2", "on_break")
        await gateway.remove("d2")
        await holds(lambda: len(alone.service.sessions) == 1, "the driver signed off")
        assert (await alone.call("GET", "/v1/drivers/d2", "admin:root")).body["status"] == "offline"
    assert ear.refused == []


async def test_a_lost_socket_brings_all_drivers_back_as_they_were(alone: Running) -> None:
    await put(alone, "d1", "d2")
    matcher = Matcher(alone)
    async with client(alone) as (gateway, ear):
        gateway.add("d1")
        gateway.add("d2", status="on_break")
        await holds(lambda: len(gateway.signed_on()) == 2, "signed on")
        trip = await matcher.offer_to(await alone.ride(), "d1")
        await holds(lambda: bool(ear.offers), "the offer")
        assert gateway._socket is not None
        gateway._socket.drop()
        await gateway.positions([("d1", LAT + 0.001, LON)])  # kept meanwhile
        ride = await gateway.command("accept", "d1", trip.trip_id)
        assert ride is not None
        await holds(lambda: len(gateway.signed_on()) == 2, "signed on again")
        assert ear.signed_on["d1"].epoch == 2
        assert ear.signed_on["d2"].status == "on_break"
        assert gateway.connects == 2
        await found_at(alone, {"d1": LAT + 0.001})
    assert ear.signed_off == {}


async def test_a_driver_that_another_session_took_over_is_not_signed_on_again(alone: Running) -> None:
    """P7: two who both came back would take it from each other for ever."""
    await put(alone, "d1", "d2")
    async with client(alone) as (gateway, ear):
        gateway.add("d1", "d2")
        await holds(lambda: len(gateway.signed_on()) == 2, "signed on")
        own = await alone.drive("d1", put=False)
        await holds(lambda: ear.signed_off == {"d1": "superseded"}, "superseded")
        assert gateway.signed_on() == ["d2"]
        await own.stands()


async def test_a_sign_on_that_is_overloaded_is_tried_again_until_it_is_taken(
    alone: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P10"""
    names = [f"d{n}" for n in range(20)]
    await put(alone, *names)
    monkeypatch.setattr(alone.service.sign_on_desk, "_waiting_max", 8)
    async with client(alone) as (gateway, ear):
        gateway.add(*names)
        await holds(lambda: len(gateway.signed_on()) == 20, "all are signed on")
    assert ear.signed_off == {}


async def test_a_token_of_another_role_is_refused_for_good(alone: Running) -> None:
    ear = Ear()
    async with new_session() as session:
        gateway = FleetClient(session, alone.base_url, token(Role.DRIVER, "d1"), ear, options=OPTIONS)
        with pytest.raises(ApiError, match="403"):
            await gateway.run()
