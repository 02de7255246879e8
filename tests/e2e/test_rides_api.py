"""Rides over HTTP, on the embedded default."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.rides import HISTORY_MAX
from tests.e2e.running import LAT, LON, Running, market, running, settings_for

PLACE = {"lat": LAT, "lon": LON}


async def test_a_ride_is_answered_after_its_commit_with_everything_that_was_asked(embedded: Running) -> None:
    """P2"""
    asked = {
        "pickup": PLACE,
        "dropoff": {"lat": 40.8, "lon": -73.95},
        "seats": 2,
        "class": "large",
        "deadline_s": 60,
        "metadata": {"note": "é", "n": [1, 2.5, None]},
        "tags": ["child_seat", "wheelchair"],
    }
    answer = await embedded.call("POST", "/v1/rides", "client:ann", body=asked)
    ride = answer.body
    assert (answer.status, answer.headers["Location"]) == (201, f"/v1/rides/{ride['id']}")
    assert "Idempotency-Replayed" not in answer.headers
    assert {name: ride[name] for name in asked if name != "deadline_s"} == {
        name: value for name, value in asked.items() if name != "deadline_s"
    }
    assert (ride["state"], ride["version"], ride["trip"], ride["market"]) == ("searching", 1, None, "new-york")
    assert ride["requested_at"].endswith("Z")
    read = await embedded.call("GET", answer.headers["Location"], "client:ann")
    assert read.body | ride == read.body


async def test_msgpack_is_spoken_both_ways(embedded: Running) -> None:
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    data = msgspec.msgpack.encode({"pickup": PLACE})
    answer = await embedded.call("POST", "/v1/rides", "client:ann", data=data, headers=headers)
    assert (answer.status, answer.headers["Content-Type"]) == (201, "application/msgpack")
    assert answer.body["state"] == "searching"


async def test_a_retry_with_the_same_key_gets_the_first_answer(embedded: Running) -> None:
    """P3: in whichever format and order of keys it comes."""
    first = await embedded.ride(key="k1", seats=2, metadata={"a": 1, "b": 2})
    data = msgspec.msgpack.encode({"metadata": {"b": 2, "a": 1.0}, "seats": 2, "pickup": {"lon": LON, "lat": LAT}})
    headers = {"Content-Type": "application/msgpack", "Idempotency-Key": "k1"}
    again = await embedded.call("POST", "/v1/rides", "client:ann", data=data, headers=headers)
    assert (again.status, again.headers["Idempotency-Replayed"], again.body) == (201, "true", first)


async def test_a_retry_may_name_its_tags_in_another_order(embedded: Running) -> None:
    """P3: they are a set; none at all is as good as an empty one."""
    first = await embedded.ride(key="k1", tags=["wheelchair", "child_seat"])
    again = await embedded.ride(key="k1", tags=["child_seat", "wheelchair", "child_seat"])
    assert again == first
    assert first["tags"] == ["child_seat", "wheelchair"]
    plain = await embedded.ride(key="k2")
    assert await embedded.ride(key="k2", tags=[]) == plain
    body = {"pickup": PLACE, "tags": ["pets"]}
    answer = await embedded.call("POST", "/v1/rides", "client:ann", body=body, headers={"Idempotency-Key": "k2"})
    assert (answer.status, answer.code) == (422, "idempotency-key-reused")


async def test_a_market_that_names_its_tags_takes_no_others(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tags=("pets", "ev"), markets=(market(tags=("ev",)),))
    async with running(settings) as run:
        assert (await run.ride(tags=["ev"]))["tags"] == ["ev"]
        answer = await run.call("POST", "/v1/rides", "client:ann", body={"pickup": PLACE, "tags": ["ev", "pets"]})
        assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "/tags/1")
        assert "there are: ev" in answer.body["detail"]
        await run.put_driver("d1", tags=["pets"])  # a driver belongs to no market before it signs on


async def test_the_same_key_at_the_same_moment_makes_one_ride(embedded: Running) -> None:
    """P3"""
    rides = await asyncio.gather(*(embedded.ride(key="k1") for _ in range(20)))
    assert len({ride["id"] for ride in rides}) == 1


async def test_the_same_key_with_another_body_is_refused(embedded: Running) -> None:
    """P3"""
    await embedded.ride(key="k1")
    body = {"pickup": PLACE, "seats": 3}
    answer = await embedded.call("POST", "/v1/rides", "client:ann", body=body, headers={"Idempotency-Key": "k1"})
    assert (answer.status, answer.code) == (422, "idempotency-key-reused")


async def test_another_client_may_use_the_same_key(embedded: Running) -> None:
    mine, theirs = await embedded.ride(key="k1"), await embedded.ride("client:bob", key="k1")
    assert mine["id"] != theirs["id"]


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"pickup": {"lat": 91, "lon": LON}}, "invalid", "/pickup/lat"),
        ({"pickup": {"lat": 0, "lon": 0}}, "null-island", "/pickup"),
        ({"pickup": {"lat": 40.0, "lon": -60.0}}, "no-market", "/pickup"),
        ({"dropoff": {"lat": 0, "lon": 0}}, "null-island", "/dropoff"),
        ({"seats": 0}, "invalid", "/seats"),
        ({"seats": 9}, "invalid", "/seats"),
        ({"seats": 1000}, "invalid", "/seats"),
        ({"class": "helicopter"}, "invalid", "/class"),
        ({"deadline_s": 3601}, "invalid", "/deadline_s"),
        ({"metadata": {"a": "x" * 5000}}, "invalid", "/metadata"),
        ({"metadata": {"a": [[[[[[[[[[]]]]]]]]]]}}, "invalid", "/metadata/a/0/0/0/0/0/0/0"),
        ({"client": "bob"}, "invalid", "/client"),
        ({"tags": ["helipad"]}, "invalid", "/tags/0"),
        ({"tags": ["pets", ""]}, "invalid", "/tags/1"),
        ({"tags": ["pets"] * 17}, "invalid", "/tags"),
    ],
)
async def test_a_ride_that_cannot_be_is_refused_with_a_pointer(
    embedded: Running, change: dict[str, Any], code: str, pointer: str
) -> None:
    answer = await embedded.call("POST", "/v1/rides", "client:ann", body={"pickup": PLACE} | change)
    assert (answer.status, answer.code) == (422, code)
    assert answer.body["errors"][0]["pointer"] == pointer
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= answer.body.keys()


async def test_pages_hold_every_ride_of_the_client_once_newest_first(embedded: Running) -> None:
    made = [(await embedded.ride())["id"] for _ in range(5)]
    await embedded.ride("client:bob")
    seen, cursor = [], ""
    for _ in range(3):
        page = (await embedded.call("GET", f"/v1/rides?limit=2{cursor}", "client:ann")).body
        seen += [ride["id"] for ride in page["items"]]
        cursor = f"&cursor={page['next']}"
    assert seen == sorted(made, reverse=True)
    assert page["next"] is None


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "state=lost", "cursor=1", "cursor=r_" + "!" * 26])
async def test_a_page_that_cannot_be_is_refused(embedded: Running, query: str) -> None:
    answer = await embedded.call("GET", f"/v1/rides?{query}", "client:ann")
    assert (answer.status, answer.code) == (422, "invalid")
    assert answer.body["errors"][0]["pointer"] == "?" + query.partition("=")[0]


async def test_cancelling_ends_the_ride_and_may_be_repeated(embedded: Running) -> None:
    """P3"""
    ride = await embedded.ride()
    path = f"/v1/rides/{ride['id']}/cancel"
    first = await embedded.call("POST", path, "client:ann", body={"reason": "changed my mind"})
    again = await embedded.call("POST", path, "client:ann")
    assert (first.status, again.status) == (200, 200)
    assert (first.body["state"], first.body["end_reason"]) == ("cancelled", "changed my mind")
    assert again.body == first.body


async def test_cancelling_too_late_says_what_state_the_ride_is_in(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    ride = await embedded.ride()
    trip = (await embedded.ride_in("assigned", ride["id"]))["trip"]["id"]
    for verb in ("arrive", "start"):
        assert (await embedded.call("POST", f"/v1/trips/{trip}/{verb}", "driver:d1")).status == 200
    answer = await embedded.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    assert (answer.status, answer.code, answer.body["state"]) == (409, "not-allowed", "in_progress")


async def test_a_ride_ends_expired_at_its_deadline(embedded: Running) -> None:
    """P4"""
    ride = await embedded.ride(deadline_s=0.2)
    assert (await embedded.ride_in("expired", ride["id"]))["end_reason"] is not None


async def test_a_whole_ride_over_http(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands(LAT + 0.01)
    ride = await embedded.ride()
    assigned = await embedded.ride_in("assigned", ride["id"])
    trip = assigned["trip"]
    assert (trip["driver_id"], trip["state"]) == ("d1", "accepted")
    assert 1000 < trip["distance_m"] < 1200
    for verb, state in (("arrive", "arrived"), ("start", "in_progress"), ("complete", "completed")):
        answer = await embedded.call("POST", f"/v1/trips/{trip['id']}/{verb}", "driver:d1")
        again = await embedded.call("POST", f"/v1/trips/{trip['id']}/{verb}", "driver:d1")
        assert (answer.status, answer.body["state"]) == (200, state)
        assert again.status == 200, again.body
    assert (await embedded.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body["state"] == "completed"


async def test_a_ride_with_tags_waits_for_a_driver_who_has_them_all(embedded: Running) -> None:
    await embedded.put_driver("half", tags=["wheelchair"])
    await embedded.put_driver("whole", tags=["wheelchair", "child_seat"])
    await (await embedded.drive("half", put=False)).stands()
    ride = await embedded.ride(tags=["wheelchair", "child_seat"])
    plain = await embedded.ride()
    assert (await embedded.ride_in("assigned", plain["id"]))["trip"]["driver_id"] == "half"
    await (await embedded.drive("whole", put=False)).stands(LAT + 0.02)
    assigned = await embedded.ride_in("assigned", ride["id"])
    assert (assigned["trip"]["driver_id"], assigned["tags"]) == ("whole", ["child_seat", "wheelchair"])


async def test_a_trip_command_out_of_order_says_what_is_allowed(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    ride = await embedded.ride()
    trip = (await embedded.ride_in("assigned", ride["id"]))["trip"]["id"]
    answer = await embedded.call("POST", f"/v1/trips/{trip}/complete", "driver:d1")
    assert (answer.status, answer.body["state"]) == (409, "assigned")
    assert answer.body["allowed"] == ["arrive", "cancel"]


async def driven(run: Running, *verbs: str) -> dict[str, Any]:
    """A ride whose driver d1 has done these things."""
    wheel = await run.drive("d1")
    await wheel.stands()
    ride = await run.ride()
    trip = (await run.ride_in("assigned", ride["id"]))["trip"]["id"]
    for verb in verbs:
        answer = await run.call("POST", f"/v1/trips/{trip}/{verb}", "driver:d1")
        assert answer.status == 200, answer.body
    return dict((await run.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body)


async def test_a_ride_shows_who_changed_it_into_what_and_why_and_only_when_looked_at_alone(embedded: Running) -> None:
    ride = await driven(embedded, "arrive")
    path = f"/v1/rides/{ride['id']}"
    await embedded.call("POST", f"{path}/cancel", "client:ann", body={"reason": "changed my mind"})
    shown = (await embedded.call("GET", path, "client:ann")).body
    history = shown["history"]
    assert [(each["type"], each["state"], each["code"], each["actor"], each["reason"]) for each in history] == [
        ("requested", "searching", None, "rider", None),
        ("assigned", "assigned", None, "service", None),
        ("arrived", "arrived", None, "driver", None),
        ("cancelled", "cancelled", "rider_cancelled", "rider", "changed my mind"),
    ]
    assert [each["version"] for each in history] == [1, 2, 3, 4]
    assert history[1].keys() == {
        "version",
        "type",
        "state",
        "code",
        "actor",
        "reason",
        "driver_id",
        "trip_id",
        "at",
    }
    assert [each["driver_id"] for each in history] == [None, "d1", "d1", "d1"]
    assert {each["trip_id"] for each in history[1:]} == {shown["trip"]["id"]}
    assert [each["at"] for each in history] == sorted(each["at"] for each in history)
    assert (history[0]["at"], shown["history_cut"]) == (shown["requested_at"], False)
    (listed,) = (await embedded.call("GET", "/v1/rides", "client:ann")).body["items"]
    assert "history" not in listed


async def test_of_a_long_history_the_newest_changes_are_shown(embedded: Running) -> None:
    ride = await embedded.ride()
    path = f"/v1/rides/{ride['id']}"
    for n in range(HISTORY_MAX):
        place = {"lat": LAT, "lon": LON + n / 10_000}
        assert (await embedded.call("POST", f"{path}/destination", "client:ann", body=place)).status == 200
    shown = (await embedded.call("GET", path, "client:ann")).body
    assert [each["version"] for each in shown["history"]] == list(range(2, HISTORY_MAX + 2))
    assert shown["history_cut"] is True


@pytest.mark.parametrize("verbs", [(), ("arrive", "start")])
async def test_a_destination_may_be_changed_until_the_ride_has_ended(embedded: Running, verbs: tuple[str, ...]) -> None:
    """P3: the same one again changes nothing."""
    ride = await driven(embedded, *verbs)
    path, there = f"/v1/rides/{ride['id']}/destination", {"lat": LAT + 0.01, "lon": LON}
    first = await embedded.call("POST", path, "client:ann", body=there)
    assert (first.status, first.body["dropoff"], first.body["state"]) == (200, there, ride["state"])
    assert first.body["version"] == ride["version"] + 1
    again = await embedded.call("POST", path, "client:ann", body=there)
    assert (again.status, again.body) == (200, first.body)
    elsewhere = {"lat": LAT + 0.02, "lon": LON}
    by_admin = await embedded.call("POST", path, "admin:root", body=elsewhere)
    assert by_admin.body["dropoff"] == elsewhere
    shown = (await embedded.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body
    changes = [(each["type"], each["actor"]) for each in shown["history"][-2:]]
    assert changes == [("destination_changed", "rider"), ("destination_changed", "operator")]


async def test_the_driver_is_told_of_another_destination(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    ride = await embedded.ride()
    await embedded.ride_in("assigned", ride["id"])
    there = {"lat": LAT + 0.01, "lon": LON}
    await embedded.call("POST", f"/v1/rides/{ride['id']}/destination", "client:ann", body=there)
    while (await wheel.next("trip"))["ride"]["dropoff"] != there:
        pass


async def test_a_ride_that_has_ended_gets_no_other_destination(embedded: Running) -> None:
    ride = await embedded.ride()
    await embedded.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    answer = await embedded.call("POST", f"/v1/rides/{ride['id']}/destination", "client:ann", body=PLACE)
    assert (answer.status, answer.code, answer.body["state"]) == (409, "not-allowed", "cancelled")


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({"lat": 91, "lon": 0}, 422, "invalid", "/lat"),
        ({"lat": 0, "lon": 0}, 422, "null-island", "/lat"),
        ({"lat": LAT}, 422, "invalid", "/lon"),
        ({"lat": LAT, "lon": LON, "reason": "x"}, 422, "invalid", "/reason"),
        ([LAT, LON], 422, "invalid", ""),
        (None, 422, "invalid", "/lat"),
    ],
)
async def test_a_destination_that_cannot_be_changes_nothing(
    embedded: Running, body: Any, status: int, code: str, pointer: str
) -> None:
    ride = await embedded.ride()
    answer = await embedded.call("POST", f"/v1/rides/{ride['id']}/destination", "client:ann", body=body)
    assert (answer.status, answer.code) == (status, code)
    assert answer.body["errors"][0]["pointer"] == pointer
    shown = (await embedded.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body
    assert (shown["version"], shown["dropoff"]) == (1, None)


async def test_a_retry_gets_the_first_destination_whatever_it_is_now(embedded: Running) -> None:
    """P3"""
    first = await embedded.ride(key="k1", dropoff=PLACE)
    path = f"/v1/rides/{first['id']}/destination"
    await embedded.call("POST", path, "client:ann", body={"lat": LAT + 0.01, "lon": LON})
    assert await embedded.ride(key="k1", dropoff=PLACE) == first


async def test_a_drivers_cancellation_sends_the_ride_back_without_that_driver(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands()
    ride = await embedded.ride()
    trip = (await embedded.ride_in("assigned", ride["id"]))["trip"]["id"]
    answer = await embedded.call("POST", f"/v1/trips/{trip}/cancel", "driver:d1", body={"reason": "flat tyre"})
    assert answer.status == 200
    other = await embedded.drive("d2")
    await other.stands()
    assert (await embedded.ride_in("assigned", ride["id"]))["trip"]["driver_id"] == "d2"
