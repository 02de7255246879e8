"""POST /v1/match on a whole service, and `hexhail batch` on a batch that it kept.

One service serves the module: a start costs seconds. Its limits are small, so that they can be passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio

from api.cli import main
from geo.distance import distance_m
from matcher.problem import STEPS_PER_S
from tests.certificate import dense_optimum_s
from tests.e2e.running import SECRET, Answer, Running, market, running, settings_for, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEP_S = 1.0 / STEPS_PER_S
RIDES_MAX, DRIVERS_MAX, CELLS_MAX = 40, 50, 900


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    one = market(downgrades={"large": {"standard": 60.0}}, idle_bonus=0.1, speed_mps=8.0)
    settings = settings_for(
        tmp_path_factory.mktemp("match"),
        markets=(one,),
        match_rides_max=RIDES_MAX,
        match_drivers_max=DRIVERS_MAX,
        match_cells_max=CELLS_MAX,
        match_body_bytes_max=65_536,
        match_at_once=2,
    )
    async with running(settings) as running_service:
        yield running_service


async def match(run: Running, body: Any, *, query: str = "", who: str = "client:ann") -> Answer:
    return await run.call("POST", f"/v1/match{query}", who, body=body)


async def planned(run: Running, body: Any, *, query: str = "") -> dict[str, Any]:
    answer = await match(run, body, query=query)
    assert answer.status == 200, answer.body
    return dict(answer.body)


def drawn_points(seed: int) -> dict[str, Any]:
    """Rides and drivers in a crowd or spread out, of two classes, with waits, refusals and tags."""
    rng = random.Random(seed)
    spread = rng.choice([0.004, 0.03, 0.2])

    def place() -> dict[str, float]:
        return {"lat": 40.75 + rng.uniform(-spread, spread), "lon": -73.98 + rng.uniform(-spread, spread)}

    drivers = [
        {
            "id": f"d{n}",
            "at": place(),
            "class": rng.choice(["standard", "large"]),
            "seats": rng.choice([1, 4]),
            "tags": rng.sample(["pets", "wheelchair"], rng.randrange(3)),
            "idle_s": rng.choice([0.0, 500.0]),
            "remaining_s": rng.choice([0.0, 0.0, 300.0]),
        }
        for n in range(rng.randrange(12))
    ]
    rides = [
        {
            "id": f"r{n}",
            "pickup": place(),
            "class": rng.choice(["standard", "standard", "large"]),
            "seats": rng.choice([1, 1, 2]),
            "tags": rng.choice([[], [], ["pets"]]),
            "waited_s": rng.choice([0.0, 90.0]),
            "refused": rng.sample([each["id"] for each in drivers], min(len(drivers), rng.randrange(3))),
        }
        for n in range(rng.randrange(12))
    ]
    return {"rides": rides, "drivers": drivers, "limits": {"max_pickup_s": rng.choice([300.0, 1800.0])}}


def dense_costs(body: dict[str, Any], answer: dict[str, Any]) -> tuple[Any, Any]:
    """Costs of all pairs and prices of all rides, by id, worked out from what the request and the policy say."""
    rides, drivers = (sorted(body[name], key=lambda each: str(each["id"])) for name in ("rides", "drivers"))
    policy = answer["policy"]
    costs = np.full((len(rides), len(drivers)), np.inf)
    for row, ride in enumerate(rides):
        for column, driver in enumerate(drivers):
            here, there = ride["pickup"], driver["at"]
            metres = float(distance_m(here["lat"], here["lon"], there["lat"], there["lon"]))
            way_s = round(metres * policy["s_per_m"] * STEPS_PER_S) / STEPS_PER_S
            kinds = (ride["class"], driver["class"])
            if (
                metres > policy["max_pickup_m"]
                or way_s > policy["max_pickup_s"]
                or driver["seats"] < ride["seats"]
                or not set(ride["tags"]) <= set(driver["tags"])
                or driver["id"] in ride["refused"]
                or kinds == ("large", "standard")
            ):
                continue
            extra_s = 60.0 if kinds == ("standard", "large") else 0.0
            costs[row, column] = way_s + extra_s + driver["remaining_s"] - 0.1 * driver["idle_s"]
    prices = np.array([2.0 * policy["max_pickup_s"] + each["waited_s"] for each in rides])
    return costs, prices


class TestPoints:
    @pytest.mark.parametrize("seed", range(25))
    async def test_the_plan_is_the_optimum_and_its_duals_prove_it(self, run: Running, seed: int) -> None:
        body = drawn_points(seed)
        out = await planned(run, body, query="?duals=true")
        costs, prices = dense_costs(body, out)
        batch, allowed_s = out["batch"], 0.001 + STEP_S * len(prices)
        assert batch["certified"]
        assert batch["cost_s"] == pytest.approx(dense_optimum_s(costs, prices), abs=allowed_s)
        assert len(out["plan"]) + len(out["unmatched"]) == len(prices)
        rides, drivers = sorted(out["duals"]["rides"]), sorted(out["duals"]["drivers"])
        u = np.array([out["duals"]["rides"][name] for name in rides])
        v = np.array([out["duals"]["drivers"][name] for name in drivers])
        assert np.all(u <= prices)
        assert np.all(v <= 0.0)
        assert np.all(u[:, None] + v[None] <= costs + STEP_S)
        assert u.sum() + v.sum() == pytest.approx(batch["cost_s"], abs=0.001)
        for pair in out["plan"]:
            row, column = rides.index(pair["ride_id"]), drivers.index(pair["driver_id"])
            assert pair["cost_s"] == pytest.approx(costs[row, column], abs=2 * STEP_S)
            assert sum(pair["terms"].values()) == pytest.approx(pair["cost_s"], abs=0.003)

    @pytest.mark.parametrize("seed", [3, 11, 19])
    async def test_the_same_items_in_any_order_get_the_same_plan(self, run: Running, seed: int) -> None:
        body = drawn_points(seed)
        first = await planned(run, body, query="?duals=true")
        for order in range(3):
            for items in (body["rides"], body["drivers"]):
                random.Random(order).shuffle(items)
            again = await planned(run, body, query="?duals=true")
            assert {**again, "batch": None} == {**first, "batch": None}

    async def test_what_is_wrong_is_told_of_and_the_rest_is_solved(self, run: Running) -> None:
        place = {"lat": 40.75, "lon": -73.98}
        rides = [
            {"id": "good", "pickup": place},
            {"id": "pole", "pickup": {"lat": 91.0, "lon": 0.0}},
            {"id": "nowhere", "pickup": {"lat": 0.0, "lon": 0.0}},
            {"id": "none", "pickup": {"lat": float("nan"), "lon": 0.0}},
            {"id": "good", "pickup": place},
            {"id": "bus", "pickup": place, "class": "bus"},
        ]
        drivers = [{"id": "d", "at": place}, {"id": "e", "at": place, "tags": ["moon"]}]
        sent = json.dumps({"rides": rides, "drivers": drivers})  # with a NaN, as Python writes it
        headers = {"Content-Type": "application/json"}
        answer = await run.call("POST", "/v1/match", "client:ann", data=sent, headers=headers)
        assert answer.status == 200, answer.body
        assert [pair["ride_id"] for pair in answer.body["plan"]] == ["good"]
        assert [(each["pointer"], each["code"]) for each in answer.body["errors"]] == [
            ("/rides/1/pickup/lat", "invalid"),
            ("/rides/2/pickup", "null-island"),
            ("/rides/3/pickup/lat", "invalid"),
            ("/rides/4/id", "duplicate-id"),
            ("/rides/5/class", "invalid"),
            ("/drivers/1/tags/0", "invalid"),
        ]
        assert all(each["detail"] for each in answer.body["errors"])

    async def test_without_drivers_every_ride_is_left_and_that_is_proven(self, run: Running) -> None:
        out = await planned(run, {"rides": [{"id": "r", "pickup": {"lat": 48.0, "lon": 2.0}}], "drivers": []})
        assert (out["batch"]["certified"], out["batch"]["rounds"], out["batch"]["matched"]) == (True, 1, 0)
        assert out["unmatched"][0]["reason"] == "no_driver_in_reach"
        assert (out["market"], out["way"]) == ("new-york", "straight line")
        assert "duals" not in out

    async def test_msgpack_says_the_same_as_json(self, run: Running) -> None:
        body = drawn_points(5)
        headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
        answer = await run.call("POST", "/v1/match", "client:ann", data=msgspec.msgpack.encode(body), headers=headers)
        plain = await planned(run, body)
        assert answer.headers["Content-Type"] == "application/msgpack"
        assert {**answer.body, "batch": None} == {**plain, "batch": None}


class TestMatrix:
    @pytest.mark.parametrize("seed", range(25))
    async def test_the_plan_is_the_optimum_and_its_duals_prove_it(self, run: Running, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n, m = (int(each) for each in rng.integers(0, 13, 2))
        costs = np.where(rng.random((n, m)) < 0.75, rng.normal(20.0, 15.0, (n, m)), np.inf)
        prices = rng.uniform(0.0, 60.0, n)
        cells = [[None if np.isinf(each) else float(each) for each in row] for row in costs]
        out = await planned(run, {"costs": cells, "unmatched": prices.tolist()}, query="?duals=true")
        best = dense_optimum_s(costs, prices)
        assert out["batch"]["certified"]
        assert out["batch"]["cost"] == pytest.approx(best, abs=1e-6)
        assert out["batch"]["greedy_cost"] >= best - 1e-6
        u = np.array([out["duals"]["rides"][str(row)] for row in range(n)])
        v = np.array([out["duals"]["drivers"][str(column)] for column in range(len(out["duals"]["drivers"]))])
        if n:
            assert np.all(u <= prices + 1e-9)
            assert np.all(u[:, None] + v[None] <= costs + 1e-9)
        assert u.sum() + v.sum() == pytest.approx(best, abs=1e-6)
        used = [pair["driver_id"] for pair in out["plan"]]
        assert len(set(used)) == len(used)
        assert all(pair["cost"] == costs[int(pair["ride_id"]), int(pair["driver_id"])] for pair in out["plan"])

    async def test_rows_and_columns_with_ids_get_the_same_plan_in_any_order(self, run: Running) -> None:
        rng = np.random.default_rng(1)
        costs, prices = rng.integers(0, 4, (9, 7)), rng.integers(2, 6, 9)  # many ties
        ride_ids, driver_ids = np.array([f"r{n}" for n in range(9)]), np.array([f"d{n}" for n in range(7)])
        plans = []
        for _ in range(4):
            rows, columns = rng.permutation(9), rng.permutation(7)
            body = {
                "costs": costs[rows][:, columns].tolist(),
                "unmatched": prices[rows].tolist(),
                "ride_ids": ride_ids[rows].tolist(),
                "driver_ids": driver_ids[columns].tolist(),
            }
            plans.append((await planned(run, body))["plan"])
        assert all(plan == plans[0] for plan in plans)

    async def test_a_cell_that_is_no_number_costs_its_ride_alone(self, run: Running) -> None:
        out = await planned(run, {"costs": [[1, 2], ["x", 1], [2, 1]], "unmatched": 10})
        assert [(pair["ride_id"], pair["driver_id"]) for pair in out["plan"]] == [("0", "0"), ("2", "1")]
        assert [each["pointer"] for each in out["errors"]] == ["/costs/1/0"]


class TestLimits:
    @pytest.mark.parametrize(
        ("body", "setting"),
        [
            ({"rides": [{}] * (RIDES_MAX + 1), "drivers": []}, "match_rides_max"),
            ({"rides": [], "drivers": [{}] * (DRIVERS_MAX + 1)}, "match_drivers_max"),
            ({"costs": [[1.0] * 31] * 30, "unmatched": 1.0}, "match_cells_max"),
        ],
    )
    async def test_beyond_one_the_refusal_names_it(self, run: Running, body: dict[str, Any], setting: str) -> None:
        answer = await match(run, body)
        assert (answer.status, answer.code) == (422, "invalid")
        assert setting in answer.body["detail"]

    async def test_a_body_that_is_too_large_is_refused(self, run: Running) -> None:
        answer = await match(run, {"rides": [], "drivers": [], "market": "x" * 70_000})
        assert (answer.status, answer.code) == (413, "body-too-large")

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"{", 400),
            (b"[]", 422),
            (b"{}", 422),
            (b'{"rides": [], "drivers": [], "speed": 3}', 422),
            (b'{"costs": [[1, 2], [3]], "unmatched": 1}', 422),
            (b'{"costs": [], "unmatched": 1, "rides": []}', 422),
        ],
    )
    async def test_a_body_that_is_wrong_as_a_whole_is_refused(self, run: Running, body: bytes, status: int) -> None:
        headers = {"Content-Type": "application/json"}
        answer = await run.call("POST", "/v1/match", "client:ann", data=body, headers=headers)
        assert answer.status == status

    async def test_beyond_as_many_as_may_be_under_way_the_answer_is_503_with_retry_after(self, run: Running) -> None:
        whole = b'{"costs": [[1]], "unmatched": 2}'
        let_go = asyncio.Event()
        entered = [asyncio.Event(), asyncio.Event()]

        async def slowly(begun: asyncio.Event) -> AsyncIterator[bytes]:
            yield whole[:5]
            begun.set()
            await let_go.wait()
            yield whole[5:]

        headers = {"Content-Type": "application/json"}
        slow = [
            asyncio.create_task(run.call("POST", "/v1/match", "client:ann", data=slowly(each), headers=headers))
            for each in entered
        ]
        refused: list[Answer] = []

        async def is_refused() -> bool:
            refused.append(await match(run, {"costs": [[1]], "unmatched": 2}))
            return refused[-1].status == 503

        try:
            for each in entered:
                await each.wait()
            await until(is_refused, what="a refusal")
        finally:
            let_go.set()
        assert refused[-1].code == "overloaded"
        assert int(refused[-1].headers["Retry-After"]) >= 1
        assert [answer.status for answer in await asyncio.gather(*slow)] == [200, 200]
        assert (await match(run, {"costs": [[1]], "unmatched": 2})).status == 200

    @pytest.mark.parametrize(
        ("who", "status"), [("client:ann", 200), ("admin:root", 200), ("driver:d1", 403), ("fleet:f=d1", 403)]
    )
    async def test_clients_and_admins_may_ask(self, run: Running, who: str, status: int) -> None:
        assert (await match(run, {"costs": [[1]], "unmatched": 2}, who=who)).status == status

    async def test_nobody_asks_without_a_token(self, run: Running) -> None:
        answer = await run.call("POST", "/v1/match", body={"costs": [[1]], "unmatched": 2})
        assert (answer.status, answer.code) == (401, "unauthenticated")


class TestNothingElseIsTouched:
    async def test_no_row_is_written(self, run: Running) -> None:
        before = rows_of(run)
        for seed in (1, 2):
            await planned(run, drawn_points(seed))
        assert rows_of(run) == before
        assert (await run.call("GET", "/v1/rides", "admin:root")).body["items"] == []

    async def test_the_solver_is_another_than_the_markets_and_is_replaced_when_it_dies(self, run: Running) -> None:
        await planned(run, {"costs": [[1]], "unmatched": 2})
        mine, theirs = run.service.match_solver.pid, run.service.solver
        assert theirs is not None
        assert mine not in (None, theirs.pid)
        os.kill(mine, signal.SIGKILL)
        assert (await planned(run, {"costs": [[1]], "unmatched": 2}))["batch"]["rounds"] == 1
        assert run.service.match_solver.pid != mine


def rows_of(run: Running) -> dict[str, int]:
    """How many rows every table holds."""
    with contextlib.closing(sqlite3.connect(run.service.settings.data_dir / "hexhail.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: database.execute(f'SELECT COUNT(*) FROM "{name}"').fetchone()[0] for name in names}


class TestKeptBatch:
    """Last in the module: it makes a driver and a ride."""

    async def test_one_is_fetched_and_solved_again_to_the_same_plan(
        self, run: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in [name for name in os.environ if name.startswith("HEXHAIL_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HEXHAIL_TOKEN_SECRET", SECRET)
        await (await run.drive("d1")).stands()
        ride = await run.ride()
        await run.ride_in("assigned", ride["id"])
        batch_id = await kept(run)
        path = tmp_path / "batch.msgpack"
        fetched = ["batch", "fetch", batch_id, "--url", run.base_url, "-o", str(path)]
        assert await asyncio.to_thread(main, fetched) == 0
        assert str(path) in capsys.readouterr().out
        again = ["batch", "replay", str(path), "--json", "--explain", ride["id"]]
        assert await asyncio.to_thread(main, again) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["batch_id"], told["same_plan"], told["checked"]) == (batch_id, True, True)
        assert told["explanation"]["driver_id"] == "d1"

    async def test_what_cannot_be_fetched_says_why(
        self, run: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        unknown = "b_" + "0" * 26
        output = ["-o", str(tmp_path / "x")]
        for url, token, word in (
            (run.base_url, run.token_of("admin:root"), "batch-unknown"),
            (run.base_url, run.token_of("client:ann"), "forbidden"),
            ("http://127.0.0.1:1", "x", "no answer"),
            ("nonsense", "x", "no answer"),
        ):
            call = ["batch", "fetch", unknown, "--url", url, "--token", token, *output]
            assert await asyncio.to_thread(main, call) == 2
            assert word in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


async def kept(run: Running) -> str:
    """The newest batch whose input is kept."""
    found: list[str] = []

    async def is_there() -> bool:
        items = (await run.call("GET", "/v1/batches", "admin:root")).body["items"]
        found.extend(each["id"] for each in items if each["has_input"])
        return bool(found)

    await until(is_there, what="a kept batch")
    return found[0]
