"""A driver's sessions over time: the newest wins on whichever process, old ones write nothing, and positions go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from api.client import DispatchClient
from matcher.model import Hint, Slot
from tests.e2e.matcher_by_hand import Matcher
from tests.e2e.running import LAT, LON, Answer, Running, Wheel, running, settings_for, until

NEARBY = f"/v1/drivers/nearby?lat={LAT}&lon={LON}&limit_m=50000&idle=false"
Pair = tuple[Running, Running]


@pytest.fixture
async def pair(tmp_path: Path, clean_redis_url: str, mysql_database: str) -> AsyncIterator[Pair]:
    """Two services of one deployment, as two processes would be, on which nobody matches but the test."""

    def settings(name: str) -> Any:
        return settings_for(tmp_path / name, redis_url=clean_redis_url, database_url=mysql_database, pool_size=4)

    async with running(settings("one"), "api") as one:
        await one.service.store.migrate()
        async with running(settings("two"), "api") as two:
            for each in (one, two):
                await until(lambda each=each: is_ready(each), what="ready")  # type: ignore[misc]
            yield one, two


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Running]:
    """One embedded service, on which nobody matches but the test."""
    async with running(settings_for(tmp_path), "api") as run:
        yield run


async def is_ready(run: Running) -> bool:
    return bool((await run.call("GET", "/readyz")).body["status"] == "ready")


async def nearby(run: Running) -> list[dict[str, Any]]:
    answer = await run.call("GET", NEARBY, "client:ann")
    assert answer.status == 200, answer.body
    return list(answer.body["items"])


async def found_at(run: Running, lat: float | None) -> None:
    """Until the only driver is found there, or (None) nobody is."""

    async def is_so() -> bool:
        return [each["lat"] for each in await nearby(run)] == ([] if lat is None else [lat])

    await until(is_so, what=f"found at {lat}")


async def suspend(run: Running, driver: str = "d1", **named: Any) -> Answer:
    body = {"reason": "a complaint"} | named
    return await run.call("POST", f"/v1/drivers/{driver}/suspend", "admin:root", body=body)


async def status_of(run: Running, driver: str = "d1") -> str:
    return str((await run.call("GET", f"/v1/drivers/{driver}", "admin:root")).body["status"])


def say_nothing(hints: Sequence[Hint]) -> None:
    """In place of an announcement: a process that dies between its commit and its announcement."""


# The newest session wins


async def test_a_newer_session_elsewhere_ends_the_old_one_though_it_writes_nothing(pair: Pair) -> None:
    """P7"""
    one, two = pair
    old = await one.drive("d1")
    await old.stands()
    ended = asyncio.create_task(old.closed())
    new = await two.drive("d1", put=False)
    assert new.welcome["epoch"] > old.welcome["epoch"]
    assert await ended == 4000
    await new.stands(LAT + 0.001)
    await found_at(one, LAT + 0.001)


async def test_a_newer_session_whose_announcement_was_lost_ends_the_old_one_all_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7, P9: within the few seconds after which versions are compared."""
    one, two = pair
    old = await one.drive("d1")
    monkeypatch.setattr(two.service.announcer, "announce", say_nothing)
    await two.drive("d1", put=False)
    assert await old.closed(within_s=30.0) == 4000


@pytest.mark.parametrize("frame", ["position", "status", "trip"])
async def test_a_frame_of_an_old_session_writes_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, frame: str
) -> None:
    """P7: also where the old session has not heard yet that it is one."""
    one, two = pair
    matcher = Matcher(one)
    old = await one.drive("d1")
    await old.stands()
    trip = await matcher.offer_to(await one.ride(), "d1")
    await old.next("offer")
    monkeypatch.setattr(two.service.announcer, "announce", say_nothing)
    monkeypatch.setattr(one.service.announcer, "_check_rows", _check_nothing)
    new = await two.drive("d1", put=False)
    await new.stands(LAT + 0.001)
    sent: dict[str, dict[str, Any]] = {
        "position": {"type": "position", "seq": 99, "lat": LAT + 0.0005, "lon": LON},
        "status": {"type": "status", "status": "on_break"},
        "trip": {"type": "accept", "trip_id": trip.trip_id},
    }
    await old.send(**sent[frame])
    assert await old.closed() == 4000
    await found_at(two, LAT + 0.001)
    assert await status_of(two) == "online"
    stands = await one.service.store.trip(trip.trip_id)
    assert stands is not None
    assert stands.state == "offered"
    await new.send(type="accept", trip_id=trip.trip_id)
    assert (await new.next("done"))["ride"]["state"] == "assigned"


async def _check_nothing(drivers: Sequence[str]) -> None:
    """In place of the comparison of versions, whose turn has not come yet."""


async def test_many_sessions_of_one_driver_leave_the_newest_alone(pair: Pair) -> None:
    """P7"""
    one, two = pair
    await one.put_driver("d1")
    ends: dict[int, asyncio.Task[int | None]] = {}
    wheels: dict[int, Wheel] = {}

    async def sign_on(run: Running) -> None:
        wheel = await run.drive("d1", put=False)
        wheels[wheel.welcome["epoch"]] = wheel
        ends[wheel.welcome["epoch"]] = asyncio.create_task(wheel.closed(within_s=60.0))

    await asyncio.gather(*(sign_on((one, two)[number % 2]) for number in range(8)))
    newest = max(wheels)
    assert {await ends[epoch] for epoch in wheels if epoch != newest} == {4000}
    ends[newest].cancel()
    await asyncio.wait([ends[newest]])
    await wheels[newest].stands()
    await found_at(two, LAT)
    assert len(one.service.sessions) + len(two.service.sessions) == 1


async def test_a_driver_that_comes_back_to_another_process_resumes_its_ride_there(pair: Pair) -> None:
    one, two = pair
    matcher = Matcher(one)
    wheel = await one.drive("d1")
    present = await matcher.assign_to(await one.ride(), "d1")
    await wheel.next("trip")
    await wheel.ws.close()
    again = await two.drive("d1", put=False)
    assert [ride["trip"]["id"] for ride in again.welcome["rides"]] == [present.trip_id]
    following = await matcher.offer_to(await one.ride(), "d1", slot=Slot.NEXT)
    assert (await again.next("offer"))["ride"]["trip"]["id"] == following.trip_id
    for verb in ("arrive", "start", "complete"):
        answer = await one.call("POST", f"/v1/trips/{present.trip_id}/{verb}", "driver:d1")
        assert answer.status == 200
    promoted = await again.next("offer")  # not answered yet, and for now already
    assert (promoted["slot"], promoted["ride"]["trip"]["id"]) == ("now", following.trip_id)


# The driver's row, written by somebody else


async def test_a_driver_suspended_elsewhere_is_taken_off_the_map_and_its_socket_is_closed(pair: Pair) -> None:
    one, two = pair
    wheel = await one.drive("d1")
    await wheel.stands()
    await found_at(two, LAT)
    answer = await suspend(two)
    assert (answer.status, answer.body["driver"]["status"], answer.body["finishing_trip_id"]) == (
        200,
        "suspended",
        None,
    )
    assert await wheel.closed() == 1008
    for each in pair:
        await found_at(each, None)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await one.drive("d1", put=False)
    assert refused.value.status == 403
    lifted = await two.call("POST", "/v1/drivers/d1/unsuspend", "admin:root")
    assert (lifted.status, lifted.body["status"]) == (200, "offline")
    again = await one.drive("d1", put=False)
    assert again.welcome["status"] == "online"


async def test_a_status_set_elsewhere_is_told_and_takes_effect(pair: Pair) -> None:
    one, two = pair
    wheel = await one.drive("d1")
    await wheel.stands()
    await two.put_driver("d1", status="on_break")
    status = await wheel.next("status")
    assert (status["status"], status["code"]) == ("on_break", None)
    await found_at(two, None)
    await two.put_driver("d1", status="online")
    assert (await wheel.next("status"))["status"] == "online"
    await found_at(two, LAT)


async def test_another_vehicle_takes_effect_without_a_word(pair: Pair) -> None:
    one, two = pair
    wheel = await one.drive("d1")
    await wheel.stands()
    await two.put_driver("d1", seats=2, **{"class": "large"})

    async def is_another() -> bool:
        return [(each["seats"], each["class"]) for each in await nearby(two)] == [(2, "large")]

    await until(is_another, what="the other vehicle")
    wheel.passed.clear()
    await wheel.stands(LAT + 0.0001)
    assert [frame["type"] for frame in wheel.passed if frame["type"] != "ack"] == []


async def test_a_drivers_own_change_of_status_is_answered_and_not_told_again(alone: Running) -> None:
    wheel = await alone.drive("d1")
    for ref, status in enumerate(("on_break", "online", "offline", "online")):
        await wheel.send(type="status", status=status, ref=ref)
        assert (await wheel.next("done"))["status"] == status
    await wheel.stands()
    assert [frame for frame in wheel.passed if frame["type"] == "status"] == []


async def test_an_answer_that_was_overtaken_tells_the_present_status(
    alone: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the app would go by a status that was changed again before the answer came."""
    wheel = await alone.drive("d1")
    set_status = alone.service.store.set_status

    async def overtaken(*given: Any, **named: Any) -> Any:
        outcome = await set_status(*given, **named)
        await alone.put_driver("d1", status="on_break")
        return outcome

    monkeypatch.setattr(alone.service.store, "set_status", overtaken)
    await wheel.send(type="status", status="online", ref=1)
    assert (await wheel.next("done"))["status"] == "on_break"
    assert await status_of(alone) == "on_break"


async def test_a_driver_may_sign_on_without_going_online(alone: Running) -> None:
    wheel = await alone.drive("d1", query="?online=false")
    assert wheel.welcome["status"] == "offline"
    await wheel.at()
    assert (await wheel.next("error"))["code"] == "offline"
    await wheel.send(type="status", status="online")
    await wheel.next("done")
    await wheel.stands()
    await found_at(alone, LAT)


# Suspension over HTTP


@pytest.mark.parametrize(
    ("who", "path", "body", "status", "code"),
    [
        ("driver:d1", "/v1/drivers/d1/suspend", {"reason": "x"}, 403, "forbidden"),
        ("client:ann", "/v1/drivers/d1/suspend", {"reason": "x"}, 403, "forbidden"),
        ("fleet:f=d1", "/v1/drivers/d1/unsuspend", None, 403, "forbidden"),
        ("admin:root", "/v1/drivers/nobody/suspend", {"reason": "x"}, 404, "driver-unknown"),
        ("admin:root", "/v1/drivers/nobody/unsuspend", None, 404, "driver-unknown"),
        ("admin:root", "/v1/drivers/d1/suspend", {}, 422, "invalid"),
        ("admin:root", "/v1/drivers/d1/suspend", {"reason": ""}, 422, "invalid"),
        ("admin:root", "/v1/drivers/d1/suspend", {"reason": "x", "trips": "burn"}, 422, "invalid"),
        ("admin:root", "/v1/drivers/d1/suspend", {"reason": "x", "until": 1}, 422, "invalid"),
    ],
)
async def test_only_an_admin_suspends_and_says_why(
    alone: Running, who: str, path: str, body: object, status: int, code: str
) -> None:
    await alone.put_driver("d1")
    answer = await alone.call("POST", path, who, body=body)
    assert (answer.status, answer.code) == (status, code)
    assert await status_of(alone) == "offline"


async def test_lifting_a_suspension_that_is_none_changes_nothing(alone: Running) -> None:
    await alone.drive("d1")
    answer = await alone.call("POST", "/v1/drivers/d1/unsuspend", "admin:root")
    assert (answer.status, answer.body["status"]) == (200, "online")


async def test_a_suspension_is_repeated_with_the_same_answer(alone: Running) -> None:
    """P3"""
    await alone.put_driver("d1")
    first, second = await suspend(alone), await suspend(alone)
    assert (first.status, second.status) == (200, 200)
    assert [each.body["driver"]["status"] for each in (first, second)] == ["suspended"] * 2


@pytest.mark.parametrize(
    ("trips", "stage", "state"),
    [
        ("keep", "accepted", "assigned"),
        ("release", "accepted", "searching"),
        ("end", "accepted", "searching"),
        ("release", "in_progress", "in_progress"),
        ("end", "in_progress", "cancelled"),
    ],
)
async def test_an_operator_says_what_becomes_of_a_suspended_drivers_trip(
    alone: Running, trips: str, stage: str, state: str
) -> None:
    matcher = Matcher(alone)
    wheel = await alone.drive("d1")
    ride = await alone.ride()
    trip = await matcher.assign_to(ride, "d1")
    await wheel.next("trip")
    for verb in ("arrive", "start") if stage == "in_progress" else ():
        await wheel.send(type=verb, trip_id=trip.trip_id)
        await wheel.next("done")
    answer = await suspend(alone, trips=trips)
    kept = state in ("assigned", "in_progress")
    assert answer.body["finishing_trip_id"] == (trip.trip_id if kept else None)
    assert await wheel.closed() == 1008
    assert (await alone.ride_in(state, ride["id"]))["trip"]["end_code"] == (None if kept else "driver_suspended")
    if kept:
        answer = await alone.call("POST", f"/v1/trips/{trip.trip_id}/arrive", "driver:d1")
        assert answer.status == 200  # over HTTP it is finished all the same


async def test_the_client_library_suspends_and_reads_what_became_of_it(alone: Running) -> None:
    await alone.put_driver("d1")
    async with DispatchClient(alone.base_url, alone.token_of("admin:root")) as admin:
        suspended = await admin.suspend_driver("d1", "a complaint", trips="end")
        assert (suspended.driver.status, suspended.finishing_trip_id) == ("suspended", None)
        assert (await admin.unsuspend_driver("d1")).status == "offline"


async def test_suspended_by_a_put_a_driver_keeps_its_trip(alone: Running) -> None:
    matcher = Matcher(alone)
    wheel = await alone.drive("d1")
    ride = await alone.ride()
    await matcher.assign_to(ride, "d1")
    await wheel.next("trip")
    await alone.put_driver("d1", status="suspended")
    assert await wheel.closed() == 1008
    assert (await alone.ride_in("assigned", ride["id"]))["trip"]["driver_id"] == "d1"


# Positions over several sessions


async def test_a_reconnect_is_no_way_around_the_quarantine(alone: Running) -> None:
    await (await alone.drive("d1")).stands()
    again = await alone.drive("d1", put=False)
    await again.at(LAT + 0.2)

    async def is_held_back() -> bool:
        return alone.service.metrics.fixes.counts[("quarantined",)] == 1

    await until(is_held_back, what="the jump is held back")
    await found_at(alone, LAT)
    await again.stands(LAT + 0.2001)
    await found_at(alone, LAT + 0.2001)


async def test_a_reconnect_to_another_process_is_no_way_around_it_either(pair: Pair) -> None:
    one, two = pair
    await (await one.drive("d1")).stands()
    await found_at(two, LAT)
    again = await two.drive("d1", put=False)
    await again.at(LAT + 0.2)
    await again.stands(LAT + 0.0002)
    assert two.service.metrics.fixes.counts[("quarantined",)] == 1
    await found_at(one, LAT + 0.0002)


async def test_a_driver_that_signed_off_starts_anew_wherever_it_is(alone: Running) -> None:
    wheel = await alone.drive("d1")
    await wheel.stands()
    await wheel.send(type="status", status="offline")
    await wheel.next("done")
    await found_at(alone, None)
    again = await alone.drive("d1", put=False)
    await again.stands(LAT + 0.2)
    await found_at(alone, LAT + 0.2)


async def test_a_fix_that_comes_three_times_counts_once_and_acknowledgements_are_cumulative(alone: Running) -> None:
    wheel = await alone.drive("d1")
    for seq in (1, 2, 3):
        for _ in range(3):
            await wheel.send(type="position", seq=seq, lat=LAT + seq / 10_000, lon=LON)
    acked = [(await wheel.next("ack"))["seq"]]
    while acked[-1] < 3:
        acked.append((await wheel.next("ack"))["seq"])
    assert acked == sorted(set(acked))
    await found_at(alone, LAT + 0.0003)
    counts = alone.service.metrics.fixes.counts
    assert (counts[("taken",)], counts[("repeated",)]) == (3, 6)


async def test_the_old_sockets_late_fix_never_moves_the_driver_back(pair: Pair) -> None:
    """P6"""
    one, two = pair
    old = await one.drive("d1")
    ended = asyncio.create_task(old.closed())
    new = await two.drive("d1", put=False)
    await new.stands(LAT + 0.001)
    with contextlib.suppress(ConnectionError):
        await old.at(LAT)
    assert await ended == 4000
    await still_there(two, LAT + 0.001)


async def still_there(run: Running, lat: float) -> None:
    other = await run.drive("other")
    await other.stands(LAT + 0.05)
    found: dict[str, float] = {}

    async def is_seen() -> bool:
        found.update({each["driver_id"]: each["lat"] for each in await nearby(run)})
        return "other" in found

    await until(is_seen, what="the other driver")  # and so whatever was published before
    assert found["d1"] == lat
