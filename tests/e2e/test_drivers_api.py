"""Drivers over HTTP, on the embedded default."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.running import LAT, LON, Running, market, running, settings_for, until


async def test_a_driver_is_put_and_read(embedded: Running) -> None:
    put = await embedded.call("PUT", "/v1/drivers/d1", "driver:d1", body={"seats": 6, "class": "large"})
    assert (put.status, put.body["id"], put.body["seats"], put.body["class"]) == (200, "d1", 6, "large")
    assert (put.body["status"], put.body["tags"]) == ("offline", [])
    assert (await embedded.call("GET", "/v1/drivers/d1", "driver:d1")).body == put.body


async def test_a_drivers_tags_are_those_of_the_last_put(embedded: Running) -> None:
    body = {"seats": 4, "tags": ["wheelchair", "pets", "wheelchair"]}
    put = await embedded.call("PUT", "/v1/drivers/d1", "driver:d1", body=body)
    assert (put.status, put.body["tags"]) == (200, ["pets", "wheelchair"])
    assert (await embedded.call("GET", "/v1/drivers/d1", "driver:d1")).body == put.body
    put = await embedded.call("PUT", "/v1/drivers/d1", "driver:d1", body={"seats": 4})
    assert put.body["tags"] == []


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
        ({"seats": 4, "tags": ["pets", "helipad"]}, "/tags/1"),
        ({"seats": 4, "tags": ["pets"] * 33}, "/tags"),
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


async def test_the_same_question_is_answered_the_same_however_it_is_written(embedded: Running) -> None:
    """In another order, with escapes, or with a parameter twice, of which the first counts; and again."""
    for place in range(3):
        await (await embedded.drive(f"d{place}")).stands(LAT + 0.001 * place)
    plain = f"lat={LAT}&lon={LON}&k=2&seats=1"
    written = [plain, f"k=2&lat={LAT}&seats=1&lon={LON}", plain.replace("k=2", "%6b=%32"), plain + "&k=1&lat=0&lon=0"]
    for query in [*written, *written]:
        answer = await embedded.call("GET", f"/v1/drivers/nearby?{query}", "client:ann")
        assert [each["driver_id"] for each in answer.body["items"]] == ["d0", "d1"], query


@pytest.mark.parametrize("name", ["access_token", "access%5Ftoken", "%61ccess_token"])
async def test_a_token_in_the_address_is_refused_however_its_name_is_written(embedded: Running, name: str) -> None:
    """P11"""
    answer = await embedded.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}&{name}=x", "client:ann")
    assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_drivers_are_found_by_what_their_vehicles_offer(embedded: Running) -> None:
    await embedded.put_driver("both", tags=["wheelchair", "child_seat"])
    await embedded.put_driver("one", tags=["wheelchair"])
    for north, name in enumerate(("both", "one")):
        await (await embedded.drive(name, put=False)).stands(LAT + 0.001 * north)
    await (await embedded.drive("plain")).stands(LAT + 0.003)

    async def found(query: str = "") -> dict[str, list[str]]:
        answer = await embedded.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}{query}", "client:ann")
        assert answer.status == 200, answer.body
        return {each["driver_id"]: each["tags"] for each in answer.body["items"]}

    assert await found() == {"both": ["child_seat", "wheelchair"], "one": ["wheelchair"], "plain": []}
    assert list(await found("&tags=wheelchair")) == ["both", "one"]
    assert list(await found("&tags=wheelchair,child_seat")) == ["both"]
    assert list(await found("&tags=wheelchair&tags=child_seat")) == ["both"]
    assert await found("&tags=pets") == {}


async def test_new_tags_of_a_driver_take_effect_on_its_open_session(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    await embedded.put_driver("d1", tags=["pets"])

    async def is_found() -> bool:
        answer = await embedded.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}&tags=pets", "client:ann")
        return bool(answer.body["items"])

    await until(is_found, what="the driver by its new tag")  # without a new fix


async def test_a_better_class_is_near_too_where_it_may_be_downgraded(tmp_path: Path) -> None:
    classes = ("standard", "premium")
    downgrades = {"premium": {"standard": 120.0}}
    settings = settings_for(tmp_path, markets=(market(classes=classes, downgrades=downgrades),))
    async with running(settings) as run:
        for north, name in enumerate(classes):
            await run.put_driver(name, **{"class": name})
            await (await run.drive(name, put=False)).stands(LAT + 0.001 * north)
        for asked, expected in (("standard", ["standard", "premium"]), ("premium", ["premium"])):
            answer = await run.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}&class={asked}", "client:ann")
            assert [each["driver_id"] for each in answer.body["items"]] == expected


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
        (f"lat={LAT}&lon={LON}&tags=helipad", 422, "invalid"),
        (f"lat={LAT}&lon={LON}&tags=", 422, "invalid"),
        (f"lat={LAT}&lon={LON}&tags=pets,", 422, "invalid"),
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
