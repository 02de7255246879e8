"""Markets over HTTP: which there are, and how an operator pauses one and opens it again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from api.client import ApiError, DispatchClient
from api.client_http import Retry
from api.schema import Point, RideRequest
from tests.e2e.running import LAT, LON, Answer, Running, market, running, settings_for, until

ADMIN = "admin:root"
PLACE = {"lat": LAT, "lon": LON}
BOSTON = {"lat": 42.36, "lon": -71.06}


@pytest_asyncio.fixture
async def two(tmp_path: Path) -> AsyncIterator[Running]:
    """A service with two markets; Boston's drivers are asked."""
    boston = market("boston", BOSTON["lat"], BOSTON["lon"], assign="offer", tags=("ev",), classes=("standard",))
    settings = settings_for(tmp_path, tags=("pets", "ev"), markets=(market(), boston))
    async with running(settings) as run:
        yield run


async def pause(run: Running, new_rides: str, market_id: str = "new-york", reason: str = "a storm") -> Answer:
    body = {"new_rides": new_rides, "reason": reason}
    answer = await run.call("POST", f"/v1/markets/{market_id}/pause", ADMIN, body=body)
    assert answer.status == 200, answer.body
    return answer


async def markets(run: Running, who: str = "client:ann") -> dict[str, Any]:
    answer = await run.call("GET", "/v1/markets", who)
    assert answer.status == 200
    return {each["id"]: each for each in answer.body["items"]}


@pytest.mark.parametrize("who", ["client:ann", "driver:d1", "fleet:f=d1", ADMIN])
async def test_everyone_sees_the_markets_and_how_drivers_come_to_rides_there(two: Running, who: str) -> None:
    found = await markets(two, who)
    assert list(found) == ["new-york", "boston"]
    open_now = {"paused": False, "new_rides": None, "reason": None, "since": None}
    assert found["boston"] == {"id": "boston", "classes": ["standard"], "tags": ["ev"], "assign": "offer"} | open_now
    assert (found["new-york"]["assign"], found["new-york"]["tags"]) == ("auto", ["pets", "ev"])
    assert found["new-york"]["classes"] == ["standard", "large"]


async def test_a_paused_market_says_why_and_since_when_and_the_others_are_open(two: Running) -> None:
    answer = await pause(two, "refuse")
    found = await markets(two)
    assert answer.body == found["new-york"]
    assert (answer.body["paused"], answer.body["new_rides"], answer.body["reason"]) == (True, "refuse", "a storm")
    assert answer.body["since"].endswith("Z")
    assert not found["boston"]["paused"]
    changed = await pause(two, "queue", reason="still a storm")
    assert (changed.body["new_rides"], changed.body["reason"]) == ("queue", "still a storm")
    opened = await two.call("POST", "/v1/markets/new-york/resume", ADMIN)
    assert (opened.status, opened.body["paused"], opened.body["new_rides"]) == (200, False, None)
    assert opened.body["since"] >= changed.body["since"]
    again = await two.call("POST", "/v1/markets/new-york/resume", ADMIN, body={"reason": "the sun is out"})
    assert (again.status, again.body["paused"], again.body["reason"]) == (200, False, "the sun is out")


async def test_the_same_said_again_changes_nothing(two: Running) -> None:
    """P3: since when it is so stays as it is."""
    open_since = (await two.call("POST", "/v1/markets/new-york/resume", ADMIN)).body["since"]
    assert open_since is None
    first = await pause(two, "refuse")
    assert (await pause(two, "refuse")).body == first.body
    opened = await two.call("POST", "/v1/markets/new-york/resume", ADMIN)
    assert (await two.call("POST", "/v1/markets/new-york/resume", ADMIN)).body == opened.body


async def test_new_rides_of_a_market_that_refuses_them_are_told_why(two: Running) -> None:
    await pause(two, "refuse")
    answer = await two.call("POST", "/v1/rides", "client:ann", body={"pickup": PLACE})
    assert (answer.status, answer.code) == (409, "market-paused")
    assert (answer.body["market"], answer.body["reason"]) == ("new-york", "a storm")
    assert "a storm" in answer.body["detail"]
    assert (await two.call("GET", "/v1/rides", "client:ann")).body["items"] == []
    elsewhere = await two.call("POST", "/v1/rides", "client:ann", body={"pickup": BOSTON})
    assert elsewhere.status == 201
    await two.call("POST", "/v1/markets/new-york/resume", ADMIN)
    assert (await two.ride())["state"] == "searching"


async def test_the_retry_of_a_ride_that_stands_gets_its_first_answer_all_the_same(two: Running) -> None:
    """P3, and a key that was refused is free afterwards."""
    first = await two.ride(key="k1")
    await pause(two, "refuse")
    assert await two.ride(key="k1") == first
    headers = {"Idempotency-Key": "k2"}
    refused = await two.call("POST", "/v1/rides", "client:ann", body={"pickup": PLACE}, headers=headers)
    assert refused.code == "market-paused"
    await two.call("POST", "/v1/markets/new-york/resume", ADMIN)
    assert (await two.ride(key="k2"))["id"] != first["id"]


async def test_rides_of_a_market_that_queues_wait_until_it_opens(two: Running) -> None:
    """P12: they are told that it is paused."""
    await pause(two, "queue")
    wheel = await two.drive("d1", query="?market=new-york")
    await wheel.stands()
    ride = await two.ride()
    waiting = (await two.call("GET", f"/v1/rides/{ride['id']}/explanation", "client:ann")).body["waiting"]
    assert (waiting["reason"], waiting["batch_id"]) == ("market_paused", None)
    assert "a storm" in waiting["text"]
    dispatcher = next(each for each in two.service.dispatchers if each.market.id == "new-york")
    passed = dispatcher.stats.windows_paused

    async def two_more_passed() -> bool:
        return dispatcher.stats.windows_paused >= passed + 2

    await until(two_more_passed, what="windows in which nobody is matched")
    assert (await two.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body["version"] == 1
    await two.call("POST", "/v1/markets/new-york/resume", ADMIN)
    assert (await two.ride_in("assigned", ride["id"]))["trip"]["driver_id"] == "d1"


async def test_trips_under_way_go_on_in_a_paused_market(two: Running) -> None:
    wheel = await two.drive("d1", query="?market=new-york")
    await wheel.stands()
    ride = await two.ride()
    trip = (await two.ride_in("assigned", ride["id"]))["trip"]["id"]
    await pause(two, "refuse")
    for verb in ("arrive", "start", "complete"):
        assert (await two.call("POST", f"/v1/trips/{trip}/{verb}", "driver:d1")).status == 200


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize("name", ["atlantis", "new-york%00", "NEW-YORK", "n" * 300])
async def test_a_market_that_never_was_is_404(two: Running, verb: str, name: str) -> None:
    body = {"new_rides": "queue", "reason": "x"} if verb == "pause" else None
    answer = await two.call("POST", f"/v1/markets/{name}/{verb}", ADMIN, body=body)
    assert (answer.status, answer.code) == (404, "market-unknown")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"new_rides": "drop", "reason": "x"}, "/new_rides"),
        ({"reason": "x"}, "/new_rides"),
        ({"new_rides": "queue"}, "/reason"),
        ({"new_rides": "queue", "reason": ""}, "/reason"),
        ({"new_rides": "queue", "reason": "x", "until": "noon"}, "/until"),
        (None, "/new_rides"),
    ],
)
async def test_a_pause_that_does_not_say_how_and_why_changes_nothing(two: Running, body: Any, pointer: str) -> None:
    answer = await two.call("POST", "/v1/markets/new-york/pause", ADMIN, body=body)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, pointer)
    assert not (await markets(two))["new-york"]["paused"]


async def test_msgpack_is_spoken(two: Running) -> None:
    data = msgspec.msgpack.encode({"new_rides": "queue", "reason": "x"})
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    answer = await two.call("POST", "/v1/markets/boston/pause", ADMIN, data=data, headers=headers)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/msgpack")
    assert answer.body["paused"] is True


async def test_the_typed_client_does_what_an_operator_does(two: Running) -> None:
    await two.drive("d1", query="?market=new-york")
    await two.drive("d2", query="?market=new-york")
    retry = Retry(deadline_s=5.0)
    async with (
        DispatchClient(two.base_url, two.token_of(ADMIN), retry=retry) as admin,
        DispatchClient(two.base_url, two.token_of("client:ann"), retry=retry) as client,
    ):
        ride = (await client.request_ride(RideRequest(Point(LAT, LON)))).ride
        moved = await client.redirect_ride(ride.id, LAT + 0.01, LON)
        assert moved.dropoff is not None
        assert (moved.dropoff.lat, moved.dropoff.lon) == (LAT + 0.01, LON)
        assert (await admin.assign_ride(ride.id, "d1", "by phone", ask=True)).state == "offered"
        assert (await admin.release_ride(ride.id, "wrong one")).state == "searching"
        assert (await admin.assign_ride(ride.id, "d2", "by phone")).state == "assigned"
        assert (await admin.complete_ride(ride.id, "the phone is flat")).state == "completed"
        paused = await admin.pause_market("new-york", "refuse", "a storm")
        assert (paused.paused, paused.new_rides) == (True, "refuse")
        with pytest.raises(ApiError) as refused:
            await client.request_ride(RideRequest(Point(LAT, LON)))
        assert (refused.value.status, refused.value.problem.code) == (409, "market-paused")
        assert not (await admin.resume_market("new-york")).paused
        assert [each.paused for each in await client.markets()] == [False, False]
