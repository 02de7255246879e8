"""`hexhail batch`: a kept batch is shown, solved again, proven by independent means, and each ride explained."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from api.cli import EXIT_UNUSABLE, main
from geo.distance import distance_m
from matcher import optimum
from matcher.certificate import cost_of, prove
from matcher.graph import NoCertificate
from matcher.packing import VERSION, RecordFrame, frame_of, pack_record, packed
from matcher.plan import NEAR
from matcher.problem import UNMATCHED, Floats, Ints, Problem, Solution, WaysOf
from tests.problems import around, drawn, problem

BATCH_ID = "b_" + "0" * 26


def record_of(given: Problem, solution: Solution, **changed: Any) -> RecordFrame:
    """As the dispatcher keeps it."""
    pairs, has_ways = solution.pairs, given.has_ways
    fields: dict[str, Any] = {
        "version": VERSION,
        "batch_id": BATCH_ID,
        "market": "nyc",
        "problem": frame_of(given),
        "ride_ids": [f"r{n}" for n in range(given.n_rides)],
        "driver_ids": [f"d{n}" for n in range(given.n_drivers)],
        "driver_of": packed(solution.driver_of),
        "cost_s": solution.cost_s,
        "bound_s": solution.bound_s,
        "way_ride": packed(pairs.ride) if has_ways else b"",
        "way_driver": packed(pairs.driver) if has_ways else b"",
        "way_s": packed(pairs.way_s) if has_ways else b"",
        "facts": {"greedy_cost_s": 12.5, "scope": "all pairs in reach"},
    }
    return RecordFrame(**(fields | changed))


def solved(given: Problem, ways: WaysOf | None = None) -> Solution:
    return optimum.solve(given, ways, near=NEAR, compare=True)


def scarce() -> Problem:
    """More rides than drivers, all close together: most rides have cheaper drivers than they got."""
    rng = np.random.default_rng(4)
    rides = around(rng, 30, lat=40.75, lon=-73.98, spread=0.01, spots=3)
    drivers = around(rng, 20, lat=40.75, lon=-73.98, spread=0.01, spots=2)
    return problem(rides, drivers, price_s=500.0 + rng.random(30) * 500.0, driver_s=rng.normal(0.0, 20.0, 20))


def kept(folder: Path, record: RecordFrame) -> str:
    path = folder / "batch.msgpack"
    path.write_bytes(pack_record(record))
    return str(path)


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


class TestReplay:
    @pytest.mark.parametrize("seed", range(6))
    def test_a_certified_batch_is_solved_to_the_same_plan_again(
        self, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = drawn(seed, 25, 30)
        solution = solved(given)
        assert main(["batch", "replay", kept(tmp_path, record_of(given, solution)), "--json"]) == 0
        out = told(capsys)
        assert (out["batch_id"], out["market"], out["rides"], out["drivers"]) == (BATCH_ID, "nyc", 25, 30)
        assert (out["same_plan"], out["rides_that_differ"], out["certified"], out["checked"]) == (True, 0, True, True)
        assert out["recorded_cost_s"] == out["cost_s"] == round(solution.cost_s, 3)
        assert out["greedy_cost_s"] >= out["cost_s"]
        assert out["fault"] is None
        assert out["seconds"] >= 0.0

    def test_a_batch_kept_by_the_version_before_whose_rides_had_one_reach_is_solved_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = scarce()
        first_form = msgspec.structs.replace(frame_of(given), reach_m=10_000.0, reach_s=1800.0)
        path = kept(tmp_path, record_of(given, solved(given), version=1, problem=first_form))
        assert main(["batch", "replay", path, "--json"]) == 0
        out = told(capsys)
        assert (out["same_plan"], out["checked"]) == (True, True)

    def test_road_times_are_taken_from_the_record(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = replace(scarce(), has_ways=True)

        def ways(ride: Ints, driver: Ints) -> Floats:
            metres = distance_m(
                given.ride_lat[ride], given.ride_lon[ride], given.driver_lat[driver], given.driver_lon[driver]
            )
            longer = 1.0 + (ride * 7 + driver * 13) % 10 / 5.0
            return np.where((ride + driver) % 9 == 0, np.inf, metres * given.s_per_m * longer)

        path = kept(tmp_path, record_of(given, solved(given, ways)))
        assert main(["batch", "replay", path, "--json"]) == 0
        assert told(capsys)["checked"]

    def test_a_plan_that_was_not_certified_may_be_bettered(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = scarce()
        nobody = np.full(given.n_rides, UNMATCHED, np.int32)
        changed = {"driver_of": packed(nobody), "cost_s": float(given.price_s.sum()), "bound_s": 0.0}
        assert main(["batch", "replay", kept(tmp_path, record_of(given, solved(given), **changed)), "--json"]) == 0
        out = told(capsys)
        assert (out["same_plan"], out["recorded_certified"], out["certified"]) == (False, False, True)
        assert out["cost_s"] < out["recorded_cost_s"]

    def test_another_plan_than_the_certified_one_is_told_by_the_exit_code(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = scarce()
        nobody = np.full(given.n_rides, UNMATCHED, np.int32)
        left_s = float(given.price_s.sum())
        changed = {"driver_of": packed(nobody), "cost_s": left_s, "bound_s": left_s}
        assert main(["batch", "replay", kept(tmp_path, record_of(given, solved(given), **changed)), "--json"]) == 1
        assert told(capsys)["same_plan"] is False

    def test_a_record_whose_plan_does_not_cost_what_it_says_is_found_out(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = scarce()
        solution = solved(given)
        changed = {"cost_s": solution.cost_s - 10.0, "bound_s": solution.cost_s - 10.0}
        assert main(["batch", "replay", kept(tmp_path, record_of(given, solution, **changed)), "--json"]) == 1
        out = told(capsys)
        assert (out["same_plan"], out["checked"]) == (True, False)
        assert "not the recorded" in out["fault"]

    def test_a_person_gets_a_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = scarce()
        assert main(["batch", "replay", kept(tmp_path, record_of(given, solved(given)))]) == 0
        lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
        assert lines["batch id"].strip() == BATCH_ID
        assert lines["same plan"].strip() == "yes"


class TestExplain:
    def explained(self, folder: Path, capsys: pytest.CaptureFixture[str], given: Problem, ride: int) -> dict[str, Any]:
        path = kept(folder, record_of(given, solved(given)))
        assert main(["batch", "replay", path, "--json", "--explain", f"r{ride}"]) == 0
        explanation: dict[str, Any] = told(capsys)["explanation"]
        return explanation

    def test_each_candidate_says_what_it_costs_and_why_it_lost(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = scarce()
        for ride, driver in enumerate(solved(given).driver_of.tolist()):
            out = self.explained(tmp_path, capsys, given, ride)
            assert out["driver_id"] == out["recorded_driver_id"] == (None if driver == UNMATCHED else f"d{driver}")
            words = {each["why"] for each in out["candidates"]}
            assert ("chosen" in words) == (driver != UNMATCHED)
            for each in out["candidates"]:
                assert sum(each["terms"].values()) == pytest.approx(each["cost_s"], abs=0.002)
                assert each["more_s"] == pytest.approx(each["cost_s"] - out["cost_s"], abs=0.002)
                if each["why"] == "dearer_for_the_city":
                    assert each["rival_ride_id"] is not None
                    assert each["others_more_s"] >= -each["more_s"] - 0.002

    def test_a_ride_that_is_left_says_who_would_have_been_too_dear(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        here, there = (np.array([40.75]), np.array([-73.98])), (np.array([40.76]), np.array([-73.98]))
        out = self.explained(tmp_path, capsys, problem(here, there, price_s=10.0), 0)
        assert out["driver_id"] is None
        assert [each["why"] for each in out["candidates"]] == ["dearer_than_leaving"]

    def test_a_person_reads_a_line_for_each(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = scarce()
        path = kept(tmp_path, record_of(given, solved(given)))
        assert main(["batch", "replay", path, "--explain", "r0"]) == 0
        text = capsys.readouterr().out
        assert "ride r0: " in text
        assert "20 drivers are allowed" in text
        assert "dearer for" in text

    def test_a_ride_that_is_not_there_is_one_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = scarce()
        path = kept(tmp_path, record_of(given, solved(given)))
        assert main(["batch", "replay", path, "--explain", "r99"]) == EXIT_UNUSABLE
        said = capsys.readouterr()
        assert said.out == ""
        assert "no ride r99; its 30 rides begin with r0, r1, r2" in said.err


class TestFiles:
    @pytest.mark.parametrize("command", ["replay", "show"])
    @pytest.mark.parametrize(
        ("data", "word"),
        [
            (None, "No such file"),
            (b"", "no recorded batch"),
            (b'{"code": "forbidden"}', "no recorded batch"),
            ({"version": 99}, "form 99"),
            ({"ride_ids": ["r0"]}, "1 entries for 30 rides"),
            ({"driver_ids": []}, "0 entries for 20 drivers"),
            ({"driver_of": b"\x00\x00"}, "cut"),
            ({"driver_of": packed(np.full(30, 20, np.int32))}, "none of the 20"),
        ],
    )
    def test_one_that_cannot_be_used_is_one_line(
        self, command: str, data: Any, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "batch.msgpack"
        if isinstance(data, dict):
            given = scarce()
            path.write_bytes(pack_record(record_of(given, solved(given), **data)))
        elif data is not None:
            path.write_bytes(data)
        assert main(["batch", command, str(path)]) == EXIT_UNUSABLE
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("hexhail: ")
        assert word in said.err
        assert said.err.count("\n") == 1

    def test_one_that_is_cut_or_makes_no_sense_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = scarce()
        record = record_of(given, solved(given))
        priceless = frame_of(replace(given, price_s=given.price_s * np.nan))
        nowhere = frame_of(replace(given, driver_lat=given.driver_lat[:3]))
        path = tmp_path / "batch.msgpack"
        for data in (
            pack_record(record)[:-40],
            pack_record(msgspec.structs.replace(record, problem=priceless)),
            pack_record(msgspec.structs.replace(record, problem=nowhere)),
        ):
            path.write_bytes(data)
            assert main(["batch", "replay", str(path)]) == EXIT_UNUSABLE
            assert capsys.readouterr().err.startswith("hexhail: ")

    def test_the_reaches_of_its_rides_are_shown(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = problem(
            (np.full(2, 40.75), np.full(2, -73.98)), (np.full(1, 40.75), np.full(1, -73.98)), extra_s=np.zeros((2, 1))
        )
        given = replace(given, ride_kind=np.array([0, 1], np.int32), reach_m=np.array([900.0, 500.0]))
        assert main(["batch", "show", kept(tmp_path, record_of(given, solved(given))), "--json"]) == 0
        out = told(capsys)
        assert [out[name] for name in ("reach_m", "reach_m_most", "reach_s", "reach_s_most")] == [500, 900, 1800, 1800]

    def test_a_folder_is_no_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["batch", "show", str(tmp_path)]) == EXIT_UNUSABLE
        assert "cannot be read" in capsys.readouterr().err

    def test_what_is_no_batch_id_is_not_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["batch", "fetch", "../secret", "--url", "http://127.0.0.1:1", "--token", "x"]) == EXIT_UNUSABLE
        assert "no batch's id" in capsys.readouterr().err

    def test_looking_at_one_does_not_wait_for_the_compiled_solver(self, tmp_path: Path) -> None:
        given = scarce()
        path = kept(tmp_path, record_of(given, solved(given)))
        show = f"main(['batch', 'show', {path!r}, '--json'])"
        code = f"import sys; from api.cli import main; {show}; print('matcher.reach' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=45, check=True)
        shown, has_solver = done.stdout.splitlines()
        assert has_solver == "False"
        held = json.loads(shown)
        assert (held["rides"], held["drivers"], held["recorded_greedy_cost_s"]) == (30, 20, 12.5)
        assert held["recorded_certified"] is True


class TestCertificate:
    """The check is not taken in by a plan or a proof that is wrong."""

    @pytest.mark.parametrize("seed", range(20))
    def test_an_optimum_passes(self, seed: int) -> None:
        given = drawn(seed, 15, 12)
        prove(given, solved(given))

    def test_a_dual_that_is_too_high_is_found(self) -> None:
        given = scarce()
        solution = solved(given)
        ride = int(np.flatnonzero(solution.driver_of != UNMATCHED)[0])
        u = solution.u.copy()
        u[ride] += 1.0
        with pytest.raises(NoCertificate):
            prove(given, replace(solution, u=u))

    def test_a_proof_that_falls_short_is_found(self) -> None:
        given = scarce()
        solution = solved(given)
        with pytest.raises(NoCertificate, match="the duals come to"):
            prove(given, replace(solution, u=solution.u - 1.0))

    def test_a_plan_that_is_none_is_found(self) -> None:
        given = scarce()
        driver_of = solved(given).driver_of
        first, second = np.flatnonzero(driver_of != UNMATCHED)[:2]
        doubled = driver_of.copy()
        doubled[first] = doubled[second]
        barred = replace(
            given, barred_ride=np.array([first], np.int32), barred_driver=np.array([driver_of[first]], np.int32)
        )
        for wrong_in, plan, word in (
            (given, doubled, "two pairs"),
            (given, driver_of[:-1], "has not"),
            (given, np.full_like(driver_of, 99), "has not"),
            (barred, driver_of, "not allowed"),
            (replace(given, reach_m=np.ones(1)), driver_of, "not allowed"),
        ):
            with pytest.raises(NoCertificate, match=word):
                cost_of(wrong_in, plan)
