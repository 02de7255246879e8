"""Drivers over HTTP, on the embedded default."""

from __future__ import annotations

import pytest

from tests.e2e.running import LAT, LON, Running


async def test_a_driver_is_put_and_read(embedded: Running) -> None:
    put = await embedded.call("PUT", "/v1/drivers/d1", "driver:d1", body={"seats": 6, "class": "large"})
    assert (put.status, put.body["id"], put.body["seats"], put.body["class"]) == (200, "d1", 6, "large")
    assert put.body["status"] == "offline"
    assert (await embedded.call("GET", "/v1/drivers/d1", "driver:d1")).body == put.body


async def test_a_driver_that_does_not_exist_is_404(embedded: Running) -> None:
    answer = await embedded.call("GET", "/v1/drivers/d1", "driver:d1")
    assert (answer.status, answer.code) == (404, "driver-unknown")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/seats"),
        ({"seats": 0}, "/seats"),
        ({"seats": 65}, "/seats"),
        ({"seats": 4, "class": "boat"}, "/class"),
        ({"seats": 4, "status": "asleep"}, "/status"),
        ({"seats": 4, "lat": 1}, "/lat"),
    ],
)
async def test_a_driver_that_cannot_be_is_refused(embedded: Running, body: object, pointer: str) -> None:
    answer = await embedded.call("PUT", "/v1/drivers/d1", "driver:d1", body=body)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, pointer)


@pytest.mark.parametrize("name", ["nearby", "a%20b", "x" * 65, "d%2Fe"])
async def test_a_name_that_no_driver_may_have_is_refused(embedded: Running, name: str) -> None:
    answer = await embedded.call("PUT", f"/v1/drivers/{name}", "admin:root", body={"seats": 4})
    assert answer.status == 422


async def test_the_nearest_come_first_with_distance_time_and_age(embedded: Running) -> None:
    """P8"""
    for name, north in (("far", 0.02), ("near", 0.005), ("middle", 0.01)):
        await (await embedded.drive(name)).stands(LAT + north)
    answer = await embedded.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}", "client:ann")
    items = answer.body["items"]
    assert [each["driver_id"] for each in items] == ["near", "middle", "far"]
    assert [round(each["distance_m"], -1) for each in items] == [560, 1110, 2220]
    assert all(each["pickup_s"] == pytest.approx(each["distance_m"] * 1.3 / 7.0, abs=0.2) for each in items)
    assert all(0 <= each["age_s"] < 10 for each in items)
    assert float(answer.headers["Hexhail-Engaged-Age"]) < 10


async def test_k_limit_class_and_seats_narrow_the_search(embedded: Running) -> None:
    await embedded.put_driver("big", seats=6, **{"class": "large"})
    await (await embedded.drive("big", put=False)).stands(LAT + 0.01)
    await (await embedded.drive("small")).stands(LAT + 0.005)

    async def found(query: str) -> list[str]:
        answer = await embedded.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}&{query}", "client:ann")
        assert answer.status == 200, answer.body
        return [each["driver_id"] for each in answer.body["items"]]

    assert await found("k=1") == ["small"]
    assert await found("limit_m=600") == ["small"]
    assert await found("limit_m=0") == []
    assert await found("class=large") == ["big"]
    assert await found("seats=5") == ["big"]
    assert await found("class=boat") == []


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("lat=91&lon=0", 422, "invalid"),
        ("lat=nan&lon=0", 422, "invalid"),
        ("lon=0", 422, "invalid"),
        ("lat=40.75", 422, "invalid"),
        ("lat=0&lon=0", 422, "null-island"),
        ("lat=10&lon=10", 422, "no-market"),
        (f"lat={LAT}&lon={LON}&k=0", 422, "invalid"),
        (f"lat={LAT}&lon={LON}&k=101", 422, "invalid"),
        (f"lat={LAT}&lon={LON}&limit_m=-1", 422, "invalid"),
        (f"lat={LAT}&lon={LON}&seats=x", 422, "invalid"),
        (f"lat={LAT}&lon={LON}&idle=maybe", 422, "invalid"),
    ],
)
async def test_a_search_that_cannot_be_is_refused(embedded: Running, query: str, status: int, code: str) -> None:
    answer = await embedded.call("GET", f"/v1/drivers/nearby?{query}", "client:ann")
    assert (answer.status, answer.code) == (status, code)


async def test_new_seats_of_a_driver_take_effect_on_its_open_session(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await embedded.put_driver("d1", seats=2)
    await wheel.stands(LAT + 0.0001)
    answer = await embedded.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}", "client:ann")
    assert answer.body["items"][0]["seats"] == 2
