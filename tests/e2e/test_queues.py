"""Queues at places through real sockets: drivers learn their place, and a ride from there goes to the head."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio

from geo.model import MarketId
from tests.e2e.running import LAT, LON, Running, Wheel, market, running, settings_for, until

ZONE = {"id": "station", "center_lat": LAT, "center_lon": LON, "radius_m": 500.0}
OUTSIDE = {"lat": LAT + 0.01, "lon": LON}


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Running]:
    settings = settings_for(tmp_path, markets=(market(assign="offer", zones=[ZONE]),))
    async with running(settings) as run:
        yield run


async def has_place(wheel: Wheel, position: int | None, length: int | None) -> None:
    """Until the driver is told this place; None: that it has none."""
    zone = None if position is None else "station"
    while (frame := await wheel.next("queue")) != {
        "type": "queue",
        "zone": zone,
        "position": position,
        "length": length,
    }:
        assert frame["zone"] in (None, "station")


async def queue_of(service: Running, *names: str, lat: float = LAT) -> list[Wheel]:
    """Drivers who came in this order and know their places."""
    wheels = []
    for place, name in enumerate(names, 1):
        wheels.append(await service.drive(name))
        await wheels[-1].stands(lat, LON)
        await has_place(wheels[-1], place, place)
    return wheels


async def zones(service: Running, who: str) -> Any:
    answer = await service.call("GET", "/v1/markets/new-york/zones", who)
    assert answer.status == 200
    return answer.body["items"]


async def test_a_ride_from_the_zone_goes_to_the_head_whoever_is_nearer(service: Running) -> None:
    first, second = await queue_of(service, "zoe", "ann")
    await second.stands(LAT + 0.001, LON)
    ride = await service.ride(pickup={"lat": LAT + 0.001, "lon": LON})
    offer = await first.next("offer")
    assert offer["ride"]["id"] == ride["id"]
    await has_place(first, None, None)
    await has_place(second, 1, 1)
    await first.send(type="accept", trip_id=offer["ride"]["trip"]["id"])
    await service.ride_in("assigned", ride["id"])
    told = await service.call("GET", f"/v1/rides/{ride['id']}/explanation", "client:ann")
    chosen = told.body["chosen"]
    assert chosen["driver_id"] == "zoe"
    assert chosen["queue"] == {"zone": "station", "place": 1, "length": 2}
    assert chosen["cost_s"] == chosen["terms"]["way"] > 0


async def test_a_rider_who_cancels_costs_the_driver_no_place(service: Running) -> None:
    first, second = await queue_of(service, "d1", "d2")
    ride = await service.ride()
    await first.next("offer")
    await has_place(second, 1, 1)
    answer = await service.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    assert answer.status == 200
    await has_place(first, 1, 2)
    await has_place(second, 2, 2)
    again = await service.ride()
    assert (await first.next("offer"))["ride"]["id"] == again["id"]


async def test_who_declines_goes_to_the_tail_and_the_ride_to_the_next(service: Running) -> None:
    first, second, third = await queue_of(service, "d1", "d2", "d3")
    ride = await service.ride()
    offer = await first.next("offer")
    await first.send(type="decline", trip_id=offer["ride"]["trip"]["id"])
    assert (await second.next("offer"))["ride"]["id"] == ride["id"]
    await has_place(third, 1, 2)
    await has_place(first, 2, 2)


async def test_a_driver_of_the_queue_is_kept_for_rides_from_the_zone(service: Running) -> None:
    (waiting,) = await queue_of(service, "d1", lat=LAT + 0.004)
    passing = await service.drive("d2")
    await passing.stands(LAT + 0.05, LON)
    ride = await service.ride(pickup=OUTSIDE)
    assert (await passing.next("offer"))["ride"]["id"] == ride["id"]
    assert not [frame for frame in waiting.passed if frame["type"] == "offer"]


async def test_a_break_ends_the_wait_and_a_lost_socket_does_not(service: Running) -> None:
    first, second = await queue_of(service, "d1", "d2")
    await second.ws.close()
    again = await service.drive("d2", put=False)
    assert again.welcome["queue"] == {"type": "queue", "zone": "station", "position": 2, "length": 2}
    await first.send(type="status", status="on_break")
    await has_place(first, None, None)
    await has_place(again, 1, 1)


async def test_who_asks_learns_how_long_the_queues_are_and_a_fleet_where_its_own_drivers_stand(
    service: Running,
) -> None:
    """P11"""
    await queue_of(service, "zoe", "ann")
    summary = {"id": "station", "length": 2, "keep_s": 120.0}
    for who in ("client:ann", "driver:zoe"):
        assert await zones(service, who) == [summary]
    places = [{"driver_id": "zoe", "position": 1}, {"driver_id": "ann", "position": 2}]
    assert await zones(service, "admin:root") == [summary | {"drivers": places}]
    assert await zones(service, "fleet:f=ann") == [summary | {"drivers": places[1:]}]
    answer = await service.call("GET", "/v1/markets/atlantis/zones", "admin:root")
    assert (answer.status, answer.code) == (404, "market-unknown")


async def test_a_market_without_zones_has_none(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path)) as service:
        assert await zones(service, "client:ann") == []
        wheel = await service.drive("d1")
        assert wheel.welcome["queue"] is None


async def test_places_outlive_the_service(tmp_path: Path) -> None:
    """P9: embedded, nothing of live positions is left after a restart."""
    settings = settings_for(tmp_path, markets=(market(zones=[ZONE]),))
    async with running(settings) as service:
        await queue_of(service, "zoe", "ann", "ben")
    async with running(settings) as service:
        waiting = (await zones(service, "admin:root"))[0]["drivers"]
        assert [each["driver_id"] for each in waiting] == ["zoe", "ann", "ben"]
        for name in ("ben", "ann", "zoe"):
            wheel = await service.drive(name, put=False)
            await wheel.stands()
        await service.service.planes[MarketId("new-york")].follower.caught_up()
        ride = await service.ride()

        async def is_served() -> bool:
            answer = await service.call("GET", f"/v1/rides/{ride['id']}", "client:ann")
            return answer.body["trip"] is not None

        await until(is_served, what="a driver for the ride")
        assert (await service.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body["trip"]["driver_id"] == "zoe"
