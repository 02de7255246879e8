"""Who is near each of many places: compared over the wire with all drivers put in, in both formats."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from api.client import DispatchClient
from api.schema_nearby import PAIRS_MAX, POINTS_MAX, NearbyMany
from geo.distance import between_m
from geo.model import DriverId, Fix, LatLng, MarketId
from tests.e2e.running import LAT, LON, Running, market, running, settings_for

MARKET = MarketId("new-york")
MSGPACK = "application/msgpack"
DRIVERS = 600


def drawn(count: int) -> list[Fix]:
    """Drivers around a few spots, some on one spot, of several kinds."""
    rng = random.Random(7)
    spots = [(LAT + rng.uniform(-0.1, 0.1), LON + rng.uniform(-0.1, 0.1)) for _ in range(5)]
    fixes = []
    for number in range(count):
        lat, lon = spots[number % 5]
        spread = 0.0 if number % 10 == 0 else 0.01
        fixes.append(
            Fix(
                DriverId(f"d{number:03d}"),
                lat + rng.gauss(0, spread),
                lon + rng.gauss(0, spread),
                epoch=1,
                instance=1,
                seq=1,
                age_ms=rng.randrange(5000),
                vehicle_class=rng.choice(("standard", "large")),
                seats=rng.choice((2, 4, 6)),
                tags=rng.choice((0, 0, 1, 3)),  # wheelchair, child_seat
            )
        )
    return fixes


FLEET = drawn(DRIVERS)
POINTS = [(LAT + 0.001 * (number % 60 - 30), LON + 0.0017 * (number % 37 - 18)) for number in range(150)]


@pytest_asyncio.fixture
async def full(embedded: Running) -> AsyncIterator[Running]:
    """A service whose feed holds FLEET."""
    plane = embedded.service.planes[MARKET]
    await plane.follower.ready()
    await embedded.service.feed.publish(MARKET, FLEET)
    yield embedded


async def asked(run: Running, body: Any, *, who: str = "client:ann", is_msgpack: bool = False) -> Any:
    if not is_msgpack:
        return await run.call("POST", "/v1/drivers/nearby", who, body=body)
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
    return await run.call("POST", "/v1/drivers/nearby", who, data=msgspec.msgpack.encode(body), headers=headers)


def by_hand(lat: float, lon: float, k: int, limit_m: float, fleet: list[Fix]) -> list[tuple[float, str]]:
    """The k nearest of these drivers, by the distance to each."""
    here = LatLng(lat, lon)
    away = sorted((between_m(here, LatLng(each.lat, each.lon)), str(each.driver_id)) for each in fleet)
    return [(distance_m, name) for distance_m, name in away if distance_m <= limit_m][:k]


def points_of(points: list[tuple[float, float]]) -> list[dict[str, float]]:
    return [{"lat": lat, "lon": lon} for lat, lon in points]


def agrees(found: NearbyMany, k: int, limit_m: float, fleet: list[Fix]) -> None:
    assert found.errors == []
    for number, (lat, lon) in enumerate(POINTS):
        near, expected = found.near(number), by_hand(lat, lon, k, limit_m, fleet)
        assert [each.driver_id for each in near] == [name for _, name in expected]
        assert [each.distance_m for each in near] == pytest.approx([away for away, _ in expected], abs=0.06)


@pytest.mark.parametrize("is_msgpack", [False, True], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    ("wish", "meets"),
    [
        ({}, lambda fix: True),
        ({"k": 3, "limit_m": 900.0}, lambda fix: True),
        ({"class": "large"}, lambda fix: fix.vehicle_class == "large"),
        ({"seats": 5}, lambda fix: fix.seats >= 5),
        ({"tags": ["wheelchair", "child_seat"]}, lambda fix: fix.tags & 3 == 3),
        ({"k": 100, "seats": 6, "tags": ["wheelchair"]}, lambda fix: fix.seats >= 6 and fix.tags & 1),
    ],
)
async def test_each_place_gets_its_nearest_as_if_all_drivers_were_compared(
    full: Running, wish: dict[str, Any], meets: Any, is_msgpack: bool
) -> None:
    """P8"""
    answer = await asked(full, {"points": points_of(POINTS)} | wish, is_msgpack=is_msgpack)
    assert answer.status == 200, answer.body
    found = msgspec.convert(answer.body, NearbyMany)
    agrees(found, wish.get("k", 10), wish.get("limit_m", math.inf), [fix for fix in FLEET if meets(fix)])


async def test_each_driver_is_described_once_as_it_was_put_in(full: Running) -> None:
    drivers = (await asked(full, {"points": points_of(POINTS)})).body["drivers"]
    names = drivers["driver_id"]
    assert len(names) == len(set(names)) > 10
    by_name = {fix.driver_id: fix for fix in FLEET}
    tags = {0: [], 1: ["wheelchair"], 3: ["child_seat", "wheelchair"]}
    for number, name in enumerate(names):
        fix = by_name[name]
        assert (drivers["lat"][number], drivers["lon"][number]) == (fix.lat, fix.lon)
        assert (drivers["class"][number], drivers["seats"][number]) == (fix.vehicle_class, fix.seats)
        assert (drivers["tags"][number], drivers["engaged"][number]) == (tags[fix.tags], False)
        assert fix.age_ms / 1000 - 0.06 <= drivers["age_s"][number] <= fix.age_ms / 1000 + 30


async def test_one_place_of_many_is_answered_like_one_alone(full: Running) -> None:
    lat, lon = POINTS[40]
    alone = (await full.call("GET", f"/v1/drivers/nearby?lat={lat!r}&lon={lon!r}", "client:ann")).body["items"]
    many = msgspec.convert((await asked(full, {"points": points_of(POINTS)})).body, NearbyMany).near(40)
    assert [each | {"age_s": 0} for each in alone] == [msgspec.to_builtins(each) | {"age_s": 0} for each in many]


async def test_who_is_engaged_is_left_out_unless_it_is_asked_for(full: Running) -> None:
    """The nearest driver of a place takes a ride; the next question passes it over."""
    wheel = await full.drive("taker")
    await wheel.stands(LAT + 0.15, LON)
    body = {"points": [{"lat": LAT + 0.15, "lon": LON}], "k": 1}
    await full.ride(pickup={"lat": LAT + 0.15, "lon": LON})
    await wheel.next("trip")
    full.service.engaged._read_at_s = full.service.engaged._tried_at_s = -1e9
    idle = (await asked(full, body)).body["drivers"]
    everyone = (await asked(full, body | {"idle": False})).body["drivers"]
    assert idle["driver_id"] != ["taker"]
    assert (everyone["driver_id"], everyone["engaged"]) == (["taker"], [True])


@pytest.mark.parametrize("is_msgpack", [False, True], ids=["json", "msgpack"])
async def test_a_place_that_is_wrong_is_told_of_and_the_others_are_answered(full: Running, is_msgpack: bool) -> None:
    good = {"lat": LAT, "lon": LON}
    wrong = [{"lat": 91.0, "lon": 0.0}, {"lat": LAT}, {"lat": 0.0, "lon": 0.0}, {"lat": 10.0, "lon": 10.0}, 7]
    answer = await asked(full, {"points": [good, *wrong, good]}, is_msgpack=is_msgpack)
    assert answer.status == 200
    found = msgspec.convert(answer.body, NearbyMany)
    told = [(each.pointer, each.code) for each in found.errors]
    assert told == [
        ("/points/1/lat", "invalid"),
        ("/points/2/lon", "invalid"),
        ("/points/3", "null-island"),
        ("/points/4", "no-market"),
        ("/points/5", "invalid"),
    ]
    assert found.points[1:6] == [None] * 5
    assert len(found.near(0)) == 10
    assert found.near(0) == found.near(6)


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({}, 422, "/points"),
        ({"points": {}}, 422, "/points"),
        ({"points": [], "radius": 3}, 422, "/radius"),
        ({"points": [], "k": 0}, 422, "/k"),
        ({"points": [], "k": 101}, 422, "/k"),
        ({"points": [], "limit_m": -1}, 422, "/limit_m"),
        ({"points": [], "seats": 65}, 422, "/seats"),
        ({"points": [], "tags": ["pets", "helipad"]}, 422, "/tags/1"),
        ({"points": [], "market": "atlantis"}, 422, "/market"),
        ({"points": [{"lat": LAT, "lon": LON}] * (POINTS_MAX + 1)}, 422, "/points"),
        ({"points": [{"lat": LAT, "lon": LON}] * (PAIRS_MAX // 100 + 1), "k": 100}, 422, "/k"),
    ],
)
async def test_a_question_that_cannot_be_is_refused(embedded: Running, body: Any, status: int, pointer: str) -> None:
    answer = await asked(embedded, body)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (status, pointer)


async def test_a_body_beyond_all_bounds_is_not_read(embedded: Running) -> None:
    """P10"""
    answer = await asked(embedded, {"points": [], "market": "x" * 200_000})
    assert (answer.status, answer.code) == (413, "body-too-large")


async def test_no_place_at_all_is_answered_with_nobody(full: Running) -> None:
    body = (await asked(full, {"points": []})).body
    assert (body["points"], body["errors"], body["drivers"]["driver_id"]) == ([], [], [])


async def test_places_of_several_markets_are_answered_from_each(tmp_path: Path) -> None:
    boston = market("boston", 42.36, -71.06)
    async with running(settings_for(tmp_path, markets=(market(), boston))) as run:
        for plane in run.service.planes.values():
            await plane.follower.ready()
        for name, lat, lon in (("new-york", LAT, LON), ("boston", 42.36, -71.06)):
            await run.service.feed.publish(MarketId(name), [Fix(DriverId(name), lat, lon, 1, 1, 1, 0, "standard", 4)])
        points = [{"lat": 42.36, "lon": -71.06}, {"lat": LAT, "lon": LON}]
        found = msgspec.convert((await asked(run, {"points": points})).body, NearbyMany)
        assert [[each.driver_id for each in found.near(number)] for number in (0, 1)] == [["boston"], ["new-york"]]
        found = msgspec.convert((await asked(run, {"points": points, "market": "boston"})).body, NearbyMany)
        assert [each.pointer for each in found.errors] == ["/points/1"]
        assert [each.driver_id for each in found.near(0)] == ["boston"]


async def test_the_client_asks_for_many_places_in_one_call(full: Running) -> None:
    token = full.token_of("client:ann")
    async with DispatchClient(full.base_url, token) as client:
        found = await client.nearby_many(POINTS, k=10, seats=5)
    agrees(found, 10, math.inf, [fix for fix in FLEET if fix.seats >= 5])
