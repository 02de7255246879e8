"""What an operator does by hand, over HTTP: assign, reassign, release, complete and cancel, with a reason."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.e2e.running import LAT, Answer, Running, Wheel, market, running, settings_for

ADMIN = "admin:root"
WHY = {"reason": "the passenger called"}
COMMANDS = ("assign", "release", "complete", "cancel")
UNKNOWN = "r_" + "0" * 26


async def command(run: Running, ride_id: str, verb: str, *, who: str = ADMIN, **body: Any) -> Answer:
    if verb == "assign":
        body = {"driver_id": "d1"} | body
    return await run.call("POST", f"/v1/rides/{ride_id}/{verb}", who, body=WHY | body)


async def look(run: Running, ride_id: str) -> dict[str, Any]:
    return dict((await run.call("GET", f"/v1/rides/{ride_id}", "client:ann")).body)


async def signed_on(run: Running, *names: str) -> list[Wheel]:
    """Drivers who are online and whom no batch can find, for nobody knows where they are."""
    return [await run.drive(name) for name in names]


async def in_state(run: Running, state: str) -> dict[str, Any]:
    """A ride that has come to this state; d1 is its driver where it has one, and d2 is there besides."""
    await signed_on(run, "d1", "d2")
    ride = await run.ride()
    if state == "cancelled":
        await run.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    elif state == "offered":
        await command(run, ride["id"], "assign", ask=True)
    elif state != "searching":
        trip = (await command(run, ride["id"], "assign")).body["trip"]["id"]
        for verb, reached in (("arrive", "arrived"), ("start", "in_progress"), ("complete", "completed")):
            if (await look(run, ride["id"]))["state"] == state:
                break
            answer = await run.call("POST", f"/v1/trips/{trip}/{verb}", "driver:d1")
            assert answer.body["state"] == reached
    shown = await look(run, ride["id"])
    assert shown["state"] == state
    return shown


class TestAssign:
    async def test_a_driver_is_assigned_at_once_and_told(self, embedded: Running) -> None:
        (wheel,) = await signed_on(embedded, "d1")
        ride = await embedded.ride()
        answer = await command(embedded, ride["id"], "assign")
        assert (answer.status, answer.body["state"]) == (200, "assigned")
        assert (answer.body["trip"]["driver_id"], answer.body["trip"]["slot"]) == ("d1", "now")
        told = (await wheel.next("trip"))["ride"]
        assert told["trip"]["id"] == answer.body["trip"]["id"]
        last = (await look(embedded, ride["id"]))["history"][-1]
        assert (last["type"], last["actor"], last["code"]) == ("assigned", "operator", "operator_assigned")
        assert (last["reason"], last["driver_id"]) == (WHY["reason"], "d1")

    async def test_a_driver_who_is_asked_may_decline(self, embedded: Running) -> None:
        (wheel,) = await signed_on(embedded, "d1")
        ride = await embedded.ride()
        answer = await command(embedded, ride["id"], "assign", ask=True)
        assert (answer.body["state"], answer.body["trip"]["state"]) == ("offered", "offered")
        offer = await wheel.next("offer")
        assert offer["expires_in_s"] <= 15.0
        await wheel.send(type="decline", trip_id=offer["ride"]["trip"]["id"])
        assert (await embedded.ride_in("searching", ride["id"]))["trip"]["state"] == "declined"

    async def test_an_offer_by_hand_lasts_as_long_as_any_in_its_market(self, tmp_path: Any) -> None:
        markets = (market(assign="offer", offer_ttl_s=60),)
        async with running(settings_for(tmp_path, markets=markets)) as run:
            (wheel,) = await signed_on(run, "d1")
            await command(run, (await run.ride())["id"], "assign", ask=True)
            assert 15.0 < (await wheel.next("offer"))["expires_in_s"] <= 60.0

    @pytest.mark.parametrize("state", ["offered", "assigned", "arrived"])
    async def test_a_ride_is_given_to_another_driver_before_the_pickup(self, embedded: Running, state: str) -> None:
        ride = await in_state(embedded, state)
        answer = await command(embedded, ride["id"], "assign", driver_id="d2")
        assert (answer.status, answer.body["state"], answer.body["trip"]["driver_id"]) == (200, "assigned", "d2")
        history = (await look(embedded, ride["id"]))["history"][-2:]
        assert [(each["type"], each["code"], each["driver_id"]) for each in history] == [
            ("withdrawn", "reassigned", "d1"),
            ("assigned", "operator_assigned", "d2"),
        ]
        explained = (await embedded.call("GET", f"/v1/rides/{ride['id']}/explanation", ADMIN)).body
        assert [(each["driver_id"], each["state"]) for each in explained["trips"]] == [("d1", "withdrawn")]

    async def test_the_same_driver_again_changes_nothing(self, embedded: Running) -> None:
        """P3"""
        ride = await in_state(embedded, "assigned")
        answer = await command(embedded, ride["id"], "assign")
        assert (answer.status, answer.body["version"]) == (200, ride["version"])

    async def test_a_driver_on_a_trip_takes_the_ride_as_its_next(self, embedded: Running) -> None:
        first = await in_state(embedded, "in_progress")
        second = await embedded.ride()
        answer = await command(embedded, second["id"], "assign")
        assert (answer.body["state"], answer.body["trip"]["slot"]) == ("assigned", "next")
        await command(embedded, first["id"], "complete")
        assert (await look(embedded, second["id"]))["trip"]["slot"] == "now"

    async def test_a_ride_for_later_may_be_given_a_driver_before_its_time(self, embedded: Running) -> None:
        await signed_on(embedded, "d1")
        ride = await embedded.ride(pickup_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
        assert ride["state"] == "scheduled"
        answer = await command(embedded, ride["id"], "assign")
        assert (answer.status, answer.body["state"], answer.body["pickup_at"]) == (200, "assigned", ride["pickup_at"])

    async def test_a_trip_that_was_given_early_is_not_abandoned_before_its_pickup(self, embedded: Running) -> None:
        """P4: its limit counts from the time of the ride."""
        await signed_on(embedded, "d1")
        pickup_at = datetime.now(UTC) + timedelta(hours=8)
        ride = await embedded.ride(pickup_at=pickup_at.isoformat())
        answer = await command(embedded, ride["id"], "assign")
        trip = await embedded.service.store.trip(answer.body["trip"]["id"])
        assert trip is not None
        life_ms = next(iter(embedded.service.markets)).abandon_after_ms
        assert trip.abandon_at_ms >= int(pickup_at.timestamp() * 1000) + life_ms

    @pytest.mark.parametrize(
        ("driver", "why"), [("nobody", "driver_gone"), ("offline", "driver_gone"), ("busy", "driver_engaged")]
    )
    async def test_a_driver_who_cannot_take_it_is_said_to_be_so_and_the_ride_keeps_its_own(
        self, embedded: Running, driver: str, why: str
    ) -> None:
        """P1"""
        await embedded.put_driver("offline")
        await signed_on(embedded, "busy")
        for _ in range(2):
            assert (await command(embedded, (await embedded.ride())["id"], "assign", driver_id="busy")).status == 200
        ride = await in_state(embedded, "assigned")
        answer = await command(embedded, ride["id"], "assign", driver_id=driver)
        assert (answer.status, answer.code) == (409, "driver-unavailable")
        assert (answer.body["why"], answer.body["state"]) == (why, "assigned")
        assert await look(embedded, ride["id"]) == ride

    async def test_the_explanation_says_who_assigned_it_by_hand_and_no_batch(self, embedded: Running) -> None:
        """P12"""
        ride = await in_state(embedded, "assigned")
        path = f"/v1/rides/{ride['id']}/explanation"
        plain = (await embedded.call("GET", path, "client:ann")).body
        assert plain["by_hand"] == {"by": "root", "reason": WHY["reason"]}
        assert (plain["batch"], plain["alternatives"], plain["waiting"]) == (None, [], None)
        chosen = {name: value for name, value in plain["chosen"].items() if value is not None}
        assert chosen == {"driver_id": "d1", "trip_id": ride["trip"]["id"], "terms": {}}

    async def test_two_operators_at_once_leave_one_driver(self, embedded: Running) -> None:
        """P1"""
        names = [f"d{n}" for n in range(4)]
        await signed_on(embedded, *names)
        ride = await embedded.ride()
        calls = [command(embedded, ride["id"], "assign", driver_id=name) for name in names]
        answers = await asyncio.gather(*calls)
        assert {each.status for each in answers} == {200}
        shown = await look(embedded, ride["id"])
        assert shown["trip"]["driver_id"] in names
        audit = await embedded.service.store.audit()
        assert audit.holds
        assert audit.trips["accepted"] == 1


class TestRelease:
    @pytest.mark.parametrize("state", ["offered", "assigned", "arrived"])
    async def test_the_ride_searches_on_without_that_driver(self, embedded: Running, state: str) -> None:
        """P3"""
        ride = await in_state(embedded, state)
        answer = await command(embedded, ride["id"], "release")
        assert (answer.status, answer.body["state"]) == (200, "searching")
        again = await command(embedded, ride["id"], "release")
        assert (again.status, again.body) == (200, answer.body)
        assert (answer.body["trip"]["state"], answer.body["trip"]["end_code"]) == ("withdrawn", "released")
        last = (await look(embedded, ride["id"]))["history"][-1]
        assert (last["actor"], last["code"], last["reason"]) == ("operator", "released", WHY["reason"])

    async def test_the_next_driver_is_another(self, embedded: Running) -> None:
        one, other = await signed_on(embedded, "d1", "d2")
        ride = await embedded.ride()
        await one.stands()
        await embedded.ride_in("assigned", ride["id"])
        await command(embedded, ride["id"], "release")
        await other.stands(LAT + 0.05)
        assert (await embedded.ride_in("assigned", ride["id"]))["trip"]["driver_id"] == "d2"

    async def test_by_its_trip_a_repetition_takes_nobody_else_from_the_ride(self, embedded: Running) -> None:
        """P3: as the typed client asks for it, which repeats what was not answered."""
        ride = await in_state(embedded, "assigned")
        by_trip = {"trip_id": ride["trip"]["id"]}
        assert (await command(embedded, ride["id"], "release", **by_trip)).body["state"] == "searching"
        given = await command(embedded, ride["id"], "assign", driver_id="d2")
        again = await command(embedded, ride["id"], "release", **by_trip)
        assert (again.status, again.body) == (200, given.body)
        never = await command(embedded, ride["id"], "release", trip_id="t_" + "0" * 26)
        assert (never.status, never.code) == (409, "not-allowed")

    async def test_its_driver_is_told(self, embedded: Running) -> None:
        (wheel,) = await signed_on(embedded, "d1")
        ride = await embedded.ride()
        await command(embedded, ride["id"], "assign")
        await wheel.next("trip")
        await command(embedded, ride["id"], "release")
        assert (await wheel.next("trip"))["ride"]["trip"]["state"] == "withdrawn"


class TestComplete:
    @pytest.mark.parametrize("state", ["assigned", "arrived", "in_progress"])
    async def test_a_ride_is_completed_for_its_driver(self, embedded: Running, state: str) -> None:
        """P3"""
        ride = await in_state(embedded, state)
        answer = await command(embedded, ride["id"], "complete")
        assert (answer.status, answer.body["state"], answer.body["end_code"]) == (
            200,
            "completed",
            "operator_completed",
        )
        again = await command(embedded, ride["id"], "complete")
        assert (again.status, again.body) == (200, answer.body)
        assert answer.body["trip"]["state"] == "completed"


class TestCancel:
    @pytest.mark.parametrize("state", ["searching", "offered", "assigned", "arrived", "in_progress"])
    async def test_an_operator_cancels_a_ride_in_any_state(self, embedded: Running, state: str) -> None:
        """P3"""
        ride = await in_state(embedded, state)
        answer = await command(embedded, ride["id"], "cancel")
        assert (answer.status, answer.body["state"]) == (200, "cancelled")
        assert (answer.body["end_code"], answer.body["end_reason"]) == ("operator_cancelled", WHY["reason"])
        assert (await command(embedded, ride["id"], "cancel")).body == answer.body
        last = (await look(embedded, ride["id"]))["history"][-1]
        assert (last["actor"], last["code"]) == ("operator", "operator_cancelled")

    async def test_its_client_does_not_cancel_a_ride_under_way(self, embedded: Running) -> None:
        ride = await in_state(embedded, "in_progress")
        answer = await command(embedded, ride["id"], "cancel", who="client:ann")
        assert (answer.status, answer.code, answer.body["state"]) == (409, "not-allowed", "in_progress")

    async def test_its_client_needs_no_reason(self, embedded: Running) -> None:
        ride = await embedded.ride()
        answer = await embedded.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
        assert (answer.status, answer.body["end_code"]) == (200, "rider_cancelled")


@pytest.mark.parametrize(
    ("state", "allowed"),
    [
        ("searching", {"assign", "cancel"}),
        ("offered", {"assign", "release", "cancel"}),
        ("in_progress", {"complete", "cancel"}),
        ("completed", {"complete"}),
        ("cancelled", {"cancel"}),
    ],
)
async def test_a_command_that_the_state_forbids_says_what_is_allowed_instead(
    embedded: Running, state: str, allowed: set[str]
) -> None:
    """What has ended allows nothing but the repetition of its end."""
    ride = await in_state(embedded, state)
    live = set() if state in ("completed", "cancelled") else allowed
    for verb in set(COMMANDS) - allowed:
        answer = await command(embedded, ride["id"], verb, **({"driver_id": "d2"} if verb == "assign" else {}))
        assert (answer.status, answer.code, answer.body["state"]) == (409, "not-allowed", state), verb
        assert set(answer.body["allowed"]) == live
    assert await look(embedded, ride["id"]) == ride


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize(
    ("change", "status", "pointer"),
    [
        ({"reason": None}, 422, "/reason"),
        ({"reason": ""}, 422, "/reason"),
        ({"reason": "x" * 201}, 422, "/reason"),
        ({"reason": 3}, 422, "/reason"),
        ({"why": "x"}, 422, "/why"),
        (["x"], 422, ""),
        (b"{", 400, None),
    ],
)
async def test_a_command_without_a_reason_or_with_a_senseless_body_changes_nothing(
    embedded: Running, verb: str, change: Any, status: int, pointer: str | None
) -> None:
    ride = await in_state(embedded, "assigned")
    whole = {"driver_id": "d2"} if verb == "assign" else {}
    data = change
    if not isinstance(change, bytes):
        data = msgspec.json.encode(WHY | whole | change if isinstance(change, dict) else change)
    headers = {"Content-Type": "application/json"}
    answer = await embedded.call("POST", f"/v1/rides/{ride['id']}/{verb}", ADMIN, data=data, headers=headers)
    assert answer.status == status, answer.body
    if pointer is not None:
        assert answer.body["errors"][0]["pointer"] == pointer
    assert await look(embedded, ride["id"]) == ride


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("kind", [None, "application/json", "application/msgpack", "text/plain"])
async def test_an_empty_body_says_no_reason(embedded: Running, verb: str, kind: str | None) -> None:
    ride = await in_state(embedded, "assigned")
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await embedded.call("POST", f"/v1/rides/{ride['id']}/{verb}", ADMIN, headers=headers)
    assert (answer.status, answer.code) == (422, "invalid")
    assert answer.body["errors"][0]["pointer"] == ("/driver_id" if verb == "assign" else "/reason")
    assert await look(embedded, ride["id"]) == ride


@pytest.mark.parametrize("driver", ["", "d 1", "d" * 65, "d\u00e9", 1, None])
async def test_a_drivers_id_that_can_be_nobodys_is_refused(embedded: Running, driver: Any) -> None:
    ride = await in_state(embedded, "assigned")
    answer = await command(embedded, ride["id"], "assign", driver_id=driver)
    assert (answer.status, answer.body["errors"][0]["pointer"]) == (422, "/driver_id")
    assert await look(embedded, ride["id"]) == ride


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("ride_id", [UNKNOWN, "r_1", "%00", "r_" + "!" * 26])
async def test_a_command_on_a_ride_that_never_was_is_404(embedded: Running, verb: str, ride_id: str) -> None:
    answer = await command(embedded, ride_id, verb)
    assert (answer.status, answer.code) == (404, "ride-unknown")
