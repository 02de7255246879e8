"""Rides for later, over HTTP: when they may be, when they are searched for, and how they end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from api.client import DispatchClient
from api.schema import Point, RideRequest
from tests.e2e.running import LAT, LON, Answer, Running, market, running, settings_for, until

PLACE = {"lat": LAT, "lon": LON}
WEEK_S = 604_800.0
HOUR = timedelta(hours=1)


def later(seconds: float = 3600.0) -> str:
    return said(datetime.now(UTC) + timedelta(seconds=seconds))


def said(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


async def asked(run: Running, key: str | None = None, who: str = "client:ann", **body: Any) -> Answer:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await run.call("POST", "/v1/rides", who, body={"pickup": PLACE} | body, headers=headers)


@pytest_asyncio.fixture
async def soon(tmp_path: Path) -> AsyncIterator[Running]:
    """A service whose market searches for a ride half a second before its time, and gives it up 0.3 s after it."""
    settings = settings_for(tmp_path, markets=(market(schedule_lead_s=0.5, deadline_s=0.3),))
    async with running(settings) as run:
        yield run


async def test_a_ride_for_later_is_scheduled_and_its_deadline_counts_from_its_time(embedded: Running) -> None:
    at = later()
    answer = await asked(embedded, pickup_at=at)
    assert (answer.status, answer.body["state"], answer.body["pickup_at"]) == (201, "scheduled", at)
    assert (answer.body["trip"], answer.body["version"]) == (None, 1)
    assert seconds_between(at, answer.body["deadline_at"]) == 600.0  # the market's
    mine = await embedded.ride(pickup_at=at, deadline_s=60)
    assert seconds_between(at, mine["deadline_at"]) == 60.0
    assert (await embedded.ride())["pickup_at"] is None


async def test_no_driver_is_given_to_it_before_its_search_begins(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    first = await embedded.ride(pickup_at=later())
    now = await embedded.ride()
    assert (await embedded.ride_in("assigned", now["id"]))["trip"]["driver_id"] == "d1"
    assert (await embedded.call("GET", f"/v1/rides/{first['id']}", "client:ann")).body["state"] == "scheduled"


async def test_a_ride_whose_search_has_begun_is_not_put_off(embedded: Running) -> None:
    at = later(600.0)  # a quarter of an hour before it, it is searched for
    answer = await asked(embedded, pickup_at=at)
    assert (answer.body["state"], answer.body["pickup_at"]) == ("searching", at)
    assert (await asked(embedded, pickup_at=later(-30.0))).body["state"] == "searching"


async def test_it_is_searched_for_in_time_and_matched(soon: Running) -> None:
    wheel = await soon.drive("d1")
    await wheel.stands()
    ride = await soon.ride(pickup_at=later(3.0), deadline_s=30)
    assert ride["state"] == "scheduled"
    assigned = await soon.ride_in("assigned", ride["id"])
    assert (await wheel.next("trip"))["ride"]["pickup_at"] == assigned["pickup_at"] == ride["pickup_at"]
    types = [each["type"] for each in assigned["history"]]
    assert types == ["requested", "searching", "assigned"]
    searched_at = assigned["history"][1]["at"]
    assert searched_at >= said(datetime.fromisoformat(ride["pickup_at"]) - timedelta(seconds=0.5))


async def test_without_a_driver_it_expires_after_its_time(soon: Running) -> None:
    """P4"""
    ride = await soon.ride(pickup_at=later(1.0))
    expired = await soon.ride_in("expired", ride["id"])
    assert expired["ended_at"] >= expired["deadline_at"] > ride["pickup_at"]


async def test_it_is_listed_by_its_state_and_may_be_cancelled(embedded: Running) -> None:
    ride = await embedded.ride(pickup_at=later())
    await embedded.ride()
    listed = (await embedded.call("GET", "/v1/rides?state=scheduled", "client:ann")).body["items"]
    assert [each["id"] for each in listed] == [ride["id"]]
    answer = await embedded.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    assert (answer.status, answer.body["state"], answer.body["end_code"]) == (200, "cancelled", "rider_cancelled")
    explained = (await embedded.call("GET", f"/v1/rides/{ride['id']}/explanation", "client:ann")).body["waiting"]
    assert explained["since"] == answer.body["ended_at"]


async def test_its_explanation_says_from_when_on_it_is_searched_for(embedded: Running) -> None:
    """P12"""
    ride = await embedded.ride(pickup_at=later())
    waiting = (await embedded.call("GET", f"/v1/rides/{ride['id']}/explanation", "client:ann")).body["waiting"]
    assert (waiting["reason"], waiting["batch_id"]) == ("scheduled", None)
    assert seconds_between(waiting["since"], ride["pickup_at"]) == 900.0
    assert waiting["since"] in waiting["text"]


@pytest.mark.parametrize(
    "pickup_at",
    [
        -61.0,
        WEEK_S + 86_400.0,
        "2020-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "1969-12-31T23:00:00-02:00",
        "2031-01-01T00:00:00",
        "2031-02-30T00:00:00Z",
        "tomorrow",
        "",
        1_900_000_000,
        True,
        {},
    ],
)
async def test_a_time_that_cannot_be_is_refused(embedded: Running, pickup_at: Any) -> None:
    if isinstance(pickup_at, float):  # so many seconds from now: no time can be a part of a test's name
        pickup_at = later(pickup_at)
    answer = await asked(embedded, pickup_at=pickup_at)
    assert (answer.status, answer.code) == (422, "invalid")
    assert answer.body["errors"][0]["pointer"] == "/pickup_at"
    assert (await embedded.call("GET", "/v1/rides", "client:ann")).body["items"] == []


async def test_a_deadline_beyond_the_markets_is_refused_for_later_rides_too(embedded: Running) -> None:
    answer = await asked(embedded, pickup_at=later(), deadline_s=3601)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "/deadline_s")


async def test_a_market_may_take_no_rides_for_later(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path, markets=(market(schedule_ahead_s=0),))) as run:
        answer = await asked(run, pickup_at=later(30.0))
        assert (answer.status, answer.body["errors"][0]["detail"]) == (422, "this market takes no rides for later")
        assert (await asked(run, pickup_at=later(-1.0))).status == 201


async def test_a_retry_may_say_the_same_time_in_another_zone_and_form(embedded: Running) -> None:
    """P3"""
    at = datetime.now(UTC).replace(microsecond=250_000) + HOUR
    first = await embedded.ride(key="k1", pickup_at=at.isoformat())
    for form in (at.astimezone(timezone(timedelta(hours=-4))).isoformat(), said(at), said(at).replace("T", "t")):
        assert await embedded.ride(key="k1", pickup_at=form) == first
    data = msgspec.msgpack.encode({"pickup": PLACE, "pickup_at": at})
    headers = {"Content-Type": "application/msgpack", "Idempotency-Key": "k1"}
    again = await embedded.call("POST", "/v1/rides", "client:ann", data=data, headers=headers)
    assert (again.status, again.body) == (201, first)


async def test_the_same_key_with_another_time_or_none_is_refused(embedded: Running) -> None:
    """P3"""
    at = later()
    await embedded.ride(key="k1", pickup_at=at)
    await embedded.ride(key="k2")
    for key, body in (("k1", {"pickup_at": later(7200.0)}), ("k1", {}), ("k2", {"pickup_at": at})):
        answer = await asked(embedded, key, **body)
        assert (answer.status, answer.code) == (422, "idempotency-key-reused")
    assert (await asked(embedded, "k1", pickup_at=None)).code == "idempotency-key-reused"
    assert (await asked(embedded, "k2", pickup_at=None)).status == 201


async def test_a_retry_after_the_rides_time_still_gets_the_first_answer(embedded: Running) -> None:
    """P3: what was right when it was first asked for is not judged by the time of the retry."""
    at = later(-57.0)
    first = await embedded.ride(key="k1", pickup_at=at)

    async def is_too_late() -> bool:
        return bool((await asked(embedded, pickup_at=at)).status == 422)

    await until(is_too_late, what="a minute after the ride's time")
    again = await asked(embedded, "k1", pickup_at=at)
    assert (again.status, again.headers["Idempotency-Replayed"], again.body) == (201, "true", first)
    assert (await asked(embedded, "k1", pickup_at=at, seats=2)).code == "idempotency-key-reused"
    assert (await asked(embedded, "k2", pickup_at=at)).code == "invalid"
    assert (await asked(embedded, "k1", "client:bob", pickup_at=at)).code == "invalid"


async def test_the_retry_of_a_ride_that_was_searched_for_meanwhile_shows_it_scheduled(soon: Running) -> None:
    """P3"""
    at = later(3.0)
    first = await soon.ride(key="k1", pickup_at=at, deadline_s=30)
    await soon.ride_in("searching", first["id"])
    assert await soon.ride(key="k1", pickup_at=at, deadline_s=30) == first
    assert first["state"] == "scheduled"


async def test_the_typed_client_asks_for_a_ride_for_later(embedded: Running) -> None:
    at = datetime.now(UTC).replace(microsecond=0) + HOUR
    async with DispatchClient(embedded.base_url, embedded.token_of("client:ann")) as client:
        taken = (await client.request_ride(RideRequest(Point(LAT, LON), pickup_at=at), key="k1")).ride
        assert (taken.state, taken.pickup_at) == ("scheduled", said(at))
        shown = await client.ride(taken.id)
        assert [each.type for each in shown.history] == ["requested"]
        assert [each.id for each in await client.rides(state="scheduled")] == [taken.id]
