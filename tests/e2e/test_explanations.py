"""Why this driver, why not yet, and what batches came to, over HTTP (P12).

No matcher runs but in the last class: the tests hold the market's lease and
write what a matcher would, through the store.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from api.schema_explanations import OTHER_TEXT
from geo.model import DriverId, MarketId
from matcher.ids import new_trip_id, time_ordered
from matcher.model import Move, RideId, Slot, Trip
from matcher.outcomes import Done, Pairing
from matcher.plan import Reason
from tests.e2e.running import Running, running, settings_for

MARKET = MarketId("new-york")
HOUR_MS = 3_600_000
BATCH = "b_" + time_ordered(1_700_000_000_000)
BATCH_NUMBERS = {
    "rides": 12,
    "drivers": 40,
    "cost_s": 3000.5,
    "greedy_cost_s": 3333.0,
    "gain_s": 332.5,
    "gap_s": 0.0,
    "certified": True,
    "scope": "all pairs in reach",
}
#: What the matcher writes beside a trip.
DECISION: dict[str, Any] = {
    "batch": {"id": BATCH, **BATCH_NUMBERS},
    "chosen": {
        "cost_s": 250.0,
        "terms": {"way": 200.0, "class_downgrade": 60.0, "refusal_risk": 5.0, "idle_bonus": -15.0},
        "way": "osrm",
        "estimated": True,
        "estimated_because": "osrm: no answer within 0.5 s (1 pairs)",
        "distance_m": 1201.5,
        "position_age_s": 1.25,
        "unmatched_s": 3600.0,
    },
    "alternatives": [
        {
            "driver_id": "d8",
            "cost_s": 190.0,
            "terms": {"way": 190.0},
            "distance_m": 900.0,
            "why": "dearer_for_the_city",
            "more_s": -60.0,
            "others_more_s": 300.0,
            "at_least": True,
            "way": "straight line",
            "estimated": True,
            "rival_ride_id": "r_OF_ANOTHER_CLIENT",
        },
        {
            "driver_id": "d9",
            "cost_s": 400.0,
            "terms": {"way": 400.0},
            "distance_m": 2000.0,
            "why": "dearer_for_this_ride",
            "more_s": 150.0,
            "others_more_s": 0.0,
            "at_least": False,
            "way": "osrm",
            "estimated": False,
            "rival_ride_id": None,
        },
    ],
}
#: The same in the first version's form.
FIRST_FORM = {
    "batch_id": BATCH,
    "rides": 12,
    "batch_cost_s": 3000.5,
    "greedy_cost_s": 3333.0,
    "gap_s": 0.0,
    "certified": True,
    "cost": {"pickup_s": 250.0},
    "unmatched_s": 3600.0,
    "distance_m": 1201.5,
    "candidates": 16,
    "cheaper": 2,
    "refused": 0,
    "position_age_s": 1.25,
}


@dataclass(slots=True)
class Scene:
    """A service without a matcher, and the market's lease in our hands."""

    run: Running
    token: int

    async def match(
        self, ride_id: str, driver: str = "d1", *, decision: Mapping[str, Any] = DECISION, asks: bool = False
    ) -> Trip:
        store = self.run.service.store
        ride, driver_id = await store.ride(RideId(ride_id)), DriverId(driver)
        assert ride is not None
        await store.put_driver(driver_id, vehicle_class="standard", seats=4)
        await store.sign_on(driver_id, MARKET)
        pairing = Pairing(
            new_trip_id(), ride.ride_id, ride.version, driver_id, Slot.NOW, 200.0, 1201.52, HOUR_MS, decision
        )
        done = await store.commit_plan(MARKET, self.token, [pairing], offer_ttl_ms=60_000 if asks else None)
        assert not done.lost
        return done.trips[0]

    async def move(self, trip: Trip, *moves: Move, reason: str | None = None) -> None:
        for move in moves:
            outcome = await self.run.service.store.move_trip(trip.trip_id, move, driver_id=None, reason=reason)
            assert isinstance(outcome, Done), outcome

    async def record(
        self,
        batch_id: str,
        *,
        summary: Mapping[str, Any] = BATCH_NUMBERS,
        data: bytes | None = None,
        waits: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
        keep_inputs: int = 8,
    ) -> None:
        await self.run.service.store.record_batch(
            MARKET,
            self.token,
            batch_id,
            summary=summary,
            input=data,
            waits=[(RideId(ride_id), *wait) for ride_id, wait in (waits or {}).items()],
            keep_inputs=keep_inputs,
        )

    async def explained(self, ride_id: str, who: str = "client:ann") -> dict[str, Any]:
        answer = await self.run.call("GET", f"/v1/rides/{ride_id}/explanation", who)
        assert answer.status == 200, answer.body
        return dict(answer.body)


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with running(settings_for(tmp_path), role="api") as run:
        token = await run.service.store.acquire_lease(MARKET, "the test", HOUR_MS)
        assert token is not None
        yield Scene(run, token)


def without_rivals(alternatives: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "rival_ride_id"} for each in alternatives]


class TestWhyThisDriver:
    async def test_a_matched_ride_is_explained_by_what_stands_on_its_trip(self, scene: Scene) -> None:
        ride = await scene.run.ride()
        trip = await scene.match(ride["id"])
        assert await scene.explained(ride["id"]) == {
            "ride_id": ride["id"],
            "state": "assigned",
            "market": MARKET,
            "batch": DECISION["batch"],
            "by_hand": None,
            "chosen": DECISION["chosen"] | {"driver_id": "d1", "trip_id": trip.trip_id},
            "alternatives": without_rivals(DECISION["alternatives"]),
            "waiting": None,
            "trips": [],
        }

    async def test_a_way_that_was_not_estimated_needs_no_word_of_it(self, scene: Scene) -> None:
        ride = await scene.run.ride()
        await scene.match(ride["id"], decision={"chosen": {"cost_s": 1.0, "terms": {"way": 1.0}, "way": "roads"}})
        chosen = (await scene.explained(ride["id"]))["chosen"]
        assert (chosen["way"], chosen["estimated"], chosen["estimated_because"]) == ("roads", False, None)

    async def test_only_an_admin_learns_which_ride_a_driver_was_left_to(self, scene: Scene) -> None:
        """P11"""
        ride = await scene.run.ride()
        decision = copy.deepcopy(DECISION)
        decision["alternatives"][0]["rival_client_id"] = "bob"
        decision["chosen"]["rivals"] = decision["batch"]["ride_ids"] = ["r_OF_ANOTHER_CLIENT"]
        await scene.match(ride["id"], decision=decision)
        seen = await scene.run.call("GET", f"/v1/rides/{ride['id']}/explanation", "client:ann")
        assert b"OF_ANOTHER_CLIENT" not in msgspec.json.encode(seen.body)
        assert b"bob" not in msgspec.json.encode(seen.body)
        assert (await scene.explained(ride["id"], "admin:root"))["alternatives"] == DECISION["alternatives"]

    @pytest.mark.parametrize("end", ["completed", "cancelled by the rider", "an offer that died with its ride"])
    async def test_a_ride_that_ended_with_its_trip_stays_explained(self, scene: Scene, end: str) -> None:
        ride = await scene.run.ride(deadline_s=0.05 if end.startswith("an offer") else 60.0)
        trip = await scene.match(ride["id"], asks=end.startswith("an offer"))
        if end == "completed":
            await scene.move(trip, Move.ARRIVE, Move.START, Move.COMPLETE)
        elif end == "cancelled by the rider":
            await scene.run.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
        else:
            await self.expire(scene, ride["id"])
        out = await scene.explained(ride["id"])
        assert out["chosen"]["trip_id"] == trip.trip_id
        assert (out["waiting"], out["trips"]) == (None, [])

    async def expire(self, scene: Scene, ride_id: str) -> None:
        while not await scene.run.service.store.sweep(MARKET, scene.token):
            pass
        await scene.run.ride_in("expired", ride_id)

    async def test_a_decision_in_the_first_versions_form_still_tells_what_it_knows(self, scene: Scene) -> None:
        ride = await scene.run.ride()
        await scene.match(ride["id"], decision=FIRST_FORM)
        out = await scene.explained(ride["id"])
        assert out["batch"] == DECISION["batch"] | {"drivers": None, "scope": None}
        assert out["chosen"] | {"trip_id": ""} == {
            "driver_id": "d1",
            "trip_id": "",
            "cost_s": 250.0,
            "terms": {"way": 250.0},
            "way": "straight line",
            "estimated": False,
            "estimated_because": None,
            "distance_m": 1201.5,
            "position_age_s": 1.25,
            "unmatched_s": 3600.0,
        }
        assert out["alternatives"] == []

    @pytest.mark.parametrize(
        "decision",
        [
            {},
            {"batch": "b-1", "chosen": [], "alternatives": {"driver_id": "d2"}, "cost": 3},
            {"batch": {"rides": "many"}, "chosen": {"cost_s": "?", "terms": [1]}, "alternatives": [1, {}, None]},
        ],
    )
    async def test_a_decision_in_no_known_form_names_the_driver_and_nothing_false(
        self, scene: Scene, decision: dict[str, Any]
    ) -> None:
        ride = await scene.run.ride()
        trip = await scene.match(ride["id"], decision=decision)
        out = await scene.explained(ride["id"])
        known = {name: value for name, value in out["chosen"].items() if value is not None}
        assert known == {"driver_id": "d1", "trip_id": trip.trip_id, "terms": {}, "distance_m": 1201.5}
        assert (out["batch"], out["alternatives"]) == (None, [])


class TestWhyNotYet:
    async def test_before_any_batch_it_says_how_often_there_is_one(self, scene: Scene) -> None:
        ride = await scene.run.ride()
        out = await scene.explained(ride["id"])
        assert (out["chosen"], out["batch"], out["alternatives"], out["trips"]) == (None, None, [], [])
        waiting = out["waiting"]
        assert (waiting["reason"], waiting["since"]) == ("not_yet_decided", ride["requested_at"])
        assert (waiting["at"], waiting["batch_id"], waiting["window_s"]) == (None, None, 0.05)
        assert "every 0.05 s" in waiting["text"]

    @pytest.mark.parametrize("reason", [*map(str, Reason), "novel"])
    async def test_a_ride_that_waits_is_told_why_by_which_batch_and_in_words(self, scene: Scene, reason: str) -> None:
        ride = await scene.run.ride()
        detail = {
            "candidates_told": 4,
            "refused": 1,
            "cheapest_s": 99.5,
            "rival_ride_id": "r_OF_ANOTHER_CLIENT",
            "rides": [],
        }
        await scene.record(BATCH, waits={ride["id"]: (reason, detail)})
        out = await scene.explained(ride["id"])
        waiting = out["waiting"]
        assert (waiting["reason"], waiting["batch_id"]) == (reason, BATCH)
        assert waiting["counts"] == {"candidates_told": 4, "refused": 1, "cheapest_s": 99.5}
        assert waiting["since"] == ride["requested_at"] <= waiting["at"]
        assert waiting["text"].endswith(".")
        assert (waiting["text"] == OTHER_TEXT) == (reason == "novel")
        assert out["batch"] == DECISION["batch"]
        assert out["chosen"] is None

    async def test_a_ride_that_came_back_is_not_told_the_reason_of_its_search_before(self, scene: Scene) -> None:
        ride = await scene.run.ride()
        await scene.record("b_" + "0" * 26, waits={ride["id"]: ("no_driver_in_reach", {})})
        first = await scene.match(ride["id"], "d1", asks=True)
        await scene.move(first, Move.DECLINE, reason="too far")
        out = await scene.explained(ride["id"])
        assert (out["state"], out["chosen"], out["waiting"]["reason"]) == ("searching", None, "not_yet_decided")
        declined = out["trips"][0]
        assert out["waiting"]["since"] == declined["ended_at"]
        assert declined == {
            "id": first.trip_id,
            "driver_id": "d1",
            "state": "declined",
            "end_reason": "too far",
            "matched_at": declined["matched_at"],
            "ended_at": declined["ended_at"],
        }
        await scene.record(BATCH, waits={ride["id"]: ("all_refused", {"refused": 1})})
        assert (await scene.explained(ride["id"]))["waiting"]["reason"] == "all_refused"
        second = await scene.match(ride["id"], "d2")
        await scene.move(second, Move.DRIVER_CANCEL)
        third = await scene.match(ride["id"], "d3")
        out = await scene.explained(ride["id"])
        assert (out["chosen"]["trip_id"], out["waiting"]) == (third.trip_id, None)
        assert [(each["driver_id"], each["state"]) for each in out["trips"]] == [
            ("d1", "declined"),
            ("d2", "cancelled"),
        ]

    async def test_a_ride_that_expired_keeps_the_last_reason(self, scene: Scene) -> None:
        ride = await scene.run.ride(deadline_s=0.05)
        await scene.record(BATCH, waits={ride["id"]: ("outbid", {"candidates_told": 3})})
        while not await scene.run.service.store.sweep(MARKET, scene.token):
            pass
        out = await scene.explained(ride["id"])
        assert (out["state"], out["chosen"], out["waiting"]["reason"]) == ("expired", None, "outbid")

    async def test_a_ride_that_ended_before_any_batch_says_so(self, scene: Scene) -> None:
        ride = await scene.run.ride()
        await scene.run.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
        waiting = (await scene.explained(ride["id"]))["waiting"]
        assert (waiting["reason"], waiting["window_s"]) == ("not_yet_decided", None)
        assert "ended before" in waiting["text"]

    async def test_the_reason_outlives_the_batchs_record(self, scene: Scene) -> None:
        ride = await scene.run.ride()
        await scene.record(BATCH, waits={ride["id"]: ("outbid", {})})
        store, later = scene.run.service.store, "b_" + time_ordered(1_700_000_000_009)
        await store.record_batch(MARKET, scene.token, later, summary={}, input=None, waits=[], keep_batches=1)
        out = await scene.explained(ride["id"])
        assert (out["batch"], out["waiting"]["batch_id"]) == (None, BATCH)


class TestBatches:
    async def test_pages_hold_every_record_once_newest_first(self, scene: Scene) -> None:
        ids = ["b_" + time_ordered(1_700_000_000_000 + n) for n in range(5)]
        for batch_id in ids:
            await scene.record(batch_id)
        seen, cursor = [], ""
        for _ in range(3):
            page = (await scene.run.call("GET", f"/v1/batches?market={MARKET}&limit=2{cursor}", "client:ann")).body
            seen += [each["id"] for each in page["items"]]
            cursor = f"&cursor={page['next']}"
        assert (seen, page["next"]) == (ids[::-1], None)

    async def test_a_record_shows_the_batch_in_numbers_and_what_it_does_not_say_is_null(self, scene: Scene) -> None:
        whole = BATCH_NUMBERS | {
            "matched": 10,
            "pairs": 140,
            "rounds": 2,
            "components": 3,
            "solve_s": 0.04,
            "batch_s": 0.07,
            "way": "osrm",
            "estimated": 3,
            "unmatched": {"outbid": 1, "no_driver_in_reach": 1},
            "lost": {"ride_changed": 1},
        }
        later = "b_" + time_ordered(1_700_000_000_001)
        await scene.record(BATCH, summary=whole, data=b"\x80")
        await scene.record(later, summary={"rides": 3, "lost": None, "ride_ids": ["r_1"], "certified": "yes"})
        newest, first = (await scene.run.call("GET", "/v1/batches", "client:ann")).body["items"]
        assert first["decided_at"].endswith("Z")
        expected = whole | {"id": BATCH, "market": MARKET, "decided_at": first["decided_at"], "has_input": True}
        assert first == expected
        nothing: dict[str, Any] = dict.fromkeys(first)
        assert newest == nothing | {
            "id": later,
            "market": MARKET,
            "decided_at": newest["decided_at"],
            "rides": 3,
            "unmatched": {},
            "lost": {},
            "has_input": False,
        }

    @pytest.mark.parametrize(
        "query", ["limit=0", "limit=201", "limit=x", "market=atlantis", "market=", "cursor=1", "cursor=r_" + "0" * 26]
    )
    async def test_a_page_that_cannot_be_is_refused(self, scene: Scene, query: str) -> None:
        answer = await scene.run.call("GET", f"/v1/batches?{query}", "client:ann")
        assert (answer.status, answer.code) == (422, "invalid")
        assert answer.body["errors"][0]["pointer"] == "?" + query.partition("=")[0]

    async def test_an_input_comes_as_it_was_kept_under_a_name(self, scene: Scene) -> None:
        data = msgspec.msgpack.encode({"ride_lat": [40.75], "s_per_m": 0.2})
        await scene.record(BATCH, data=data)
        answer = await scene.run.call("GET", f"/v1/batches/{BATCH}/input", "admin:root")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/msgpack")
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{BATCH}.msgpack"'
        assert answer.body == msgspec.msgpack.decode(data)

    async def test_what_is_not_there_says_whether_the_batch_or_its_input_is_missing(self, scene: Scene) -> None:
        await scene.record(BATCH)
        for batch_id, code in [(BATCH, "input-not-kept"), ("b_" + "0" * 26, "batch-unknown"), ("b_1", "batch-unknown")]:
            answer = await scene.run.call("GET", f"/v1/batches/{batch_id}/input", "admin:root")
            assert (answer.status, answer.code) == (404, code)

    async def test_msgpack_is_spoken(self, scene: Scene) -> None:
        await scene.record(BATCH)
        ride = await scene.run.ride()
        for path in ("/v1/batches", f"/v1/rides/{ride['id']}/explanation"):
            plain = await scene.run.call("GET", path, "client:ann")
            packed = await scene.run.call("GET", path, "client:ann", headers={"Accept": "application/msgpack"})
            assert packed.headers["Content-Type"] == "application/msgpack"
            assert packed.body == plain.body


class TestWrittenByTheMatcher:
    """The same with a real matcher, whatever form it writes: it has to be told by name."""

    async def test_a_match_is_explained_with_its_batch_and_cost(self, embedded: Running) -> None:
        wheel = await embedded.drive("d1")
        await wheel.stands()
        ride = await embedded.ride()
        trip = (await embedded.ride_in("assigned", ride["id"]))["trip"]
        out = (await embedded.call("GET", f"/v1/rides/{ride['id']}/explanation", "client:ann")).body
        chosen = out["chosen"]
        assert (chosen["driver_id"], chosen["trip_id"]) == ("d1", trip["id"])
        assert chosen["cost_s"] == pytest.approx(sum(chosen["terms"].values()))
        assert (chosen["way"], chosen["estimated"]) == ("straight line", False)
        assert (out["batch"]["rides"], out["batch"]["certified"], out["waiting"]) == (1, True, None)
        assert out["batch"]["id"].startswith("b_")
