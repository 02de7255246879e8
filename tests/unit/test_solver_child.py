"""What the solver's process answers to a frame, what it has compiled by then, and where that is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from matcher import solver
from matcher.optimum import WAYS_MAX
from matcher.packing import ANSWERS, Bad, Question, Solved, SolveTask, WaysAnswer, frame_of, packed, solution_of
from matcher.problem import Problem
from matcher.solver_child import answer_of
from tests.certificate import prove
from tests.problems import drawn

ROOT = Path(__file__).parents[2]


def nobody(question: bytes) -> bytes:
    raise AssertionError("nothing is asked")


def task_of(given_problem: Problem, **fields: Any) -> bytes:
    whole: dict[str, Any] = {"limit_s": 60.0, "near": 0, "compare": False, "ways_max": 0, "roads": ""}
    return msgspec.msgpack.encode(SolveTask(frame_of(given_problem), **(whole | fields)))


def answered(frame: bytes, ask: Any = nobody) -> Any:
    return ANSWERS.decode(answer_of(frame, ask))


class TestAnswer:
    def test_a_task_is_answered_with_its_solution(self) -> None:
        given_problem = drawn(3, 12, 12)
        answer = answered(task_of(given_problem))
        assert isinstance(answer, Solved)
        prove(given_problem, solution_of(answer.solution))

    @pytest.mark.parametrize("frame", [b"", b"\xc1nonsense", b"\x81\xa4type\xa5other", b"\x90"])
    def test_a_frame_that_is_no_task_is_a_fault_and_says_so(self, frame: bytes) -> None:
        answer = answered(frame)
        assert isinstance(answer, Bad)
        assert answer.is_fault
        assert "Error" in answer.reason

    def test_ways_that_nobody_asked_for_are_a_fault(self) -> None:
        frame = msgspec.msgpack.encode(WaysAnswer(packed(drawn(1, 2, 2).price_s)))
        assert answered(frame) == Bad("nobody asked for ways", is_fault=True)

    def test_a_problem_whose_columns_are_cut_is_bad_and_no_fault(self) -> None:
        frame = msgspec.structs.replace(frame_of(drawn(1, 2, 2)), price_s=b"1234567")
        answer = answered(msgspec.msgpack.encode(SolveTask(frame, 1.0, 0, False, 0, "")))
        assert isinstance(answer, Bad)
        assert not answer.is_fault
        assert "a column is cut" in answer.reason

    def test_another_answer_than_ways_to_a_question_is_a_fault(self) -> None:
        frame = msgspec.structs.replace(frame_of(drawn(4, 5, 5)), has_ways=True)
        task = msgspec.msgpack.encode(SolveTask(frame, 1.0, 4, False, WAYS_MAX, ""))

        def ask(question: bytes) -> bytes:
            assert isinstance(ANSWERS.decode(question), Question)
            return task

        answer = answered(task, ask)
        assert isinstance(answer, Bad)
        assert answer.is_fault


COMPILED = """
import msgspec, numpy as np
from matcher import augment, greedy, reach
from matcher.graph import CandidateGraph
from matcher.packing import AssignTask, Question, SolveTask, WaysAnswer, frame_of, graph_frame_of, packed
from matcher.solver_child import answer_of, warm_up
from tests.problems import drawn

def signatures():
    return {
        f"{module.__name__}.{name}": len(each.signatures)
        for module in (augment, greedy, reach)
        for name, each in vars(module).items()
        if hasattr(each, "signatures")
    }

def ask(question):
    asked = msgspec.msgpack.decode(question, type=Question)
    return msgspec.msgpack.encode(WaysAnswer(packed(np.arange(len(asked.ride) // 4) * 7.0)))

warm_up()
warm = signatures()
assert sum(warm.values()) > 10
for seed in range(12):
    for shape in ((0, 0), (0, 5), (5, 0), (30, 20), (20, 30), (600, 700)):
        for has_ways in (False, True):
            frame = msgspec.structs.replace(frame_of(drawn(seed, *shape)), has_ways=has_ways)
            answer_of(msgspec.msgpack.encode(SolveTask(frame, 60.0, seed % 5, seed % 2 == 0, 0, "")), ask)
    n, m = 3 + seed, 9
    ride, driver = (side.astype(np.int32) for side in np.nonzero(np.random.default_rng(seed).random((n, m)) < 0.5))
    graph = CandidateGraph(n, m, ride, driver, ride * 1.0, np.full(n, 50.0))
    answer_of(msgspec.msgpack.encode(AssignTask(graph_frame_of(graph))), ask)
print({name: (warm[name], count) for name, count in signatures().items() if count != warm[name]})
"""


def test_a_warm_child_has_compiled_all_that_any_batch_needs() -> None:
    """Compiling takes seconds, which no batch has."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("{}", 0), done.stderr


class TestWhereCompiledCodeIsKept:
    """The package's own folder or the user's cache, where either can be written: the compiler finds these itself."""

    @pytest.fixture(autouse=True)
    def nowhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Neither can be written, for neither is there."""
        monkeypatch.setattr(solver, "ROOT", str(tmp_path / "package"))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
        monkeypatch.setattr(solver, "_cache_of_its_own", solver._cache_of_its_own.__wrapped__)

    def test_where_neither_can_be_written_the_child_gets_a_folder_of_its_parents_own(self) -> None:
        first, second = solver._cache_of_its_own(), solver._cache_of_its_own()
        folder = Path(first["NUMBA_CACHE_DIR"])
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o077 == 0
        assert first != second, "a known name in a shared place could be somebody else's"

    @pytest.mark.parametrize("place", ["package/matcher", "home"])
    def test_where_one_of_them_can_be_written_it_gets_none(self, tmp_path: Path, place: str) -> None:
        (tmp_path / place).mkdir(parents=True)
        assert solver._cache_of_its_own() == {}

    def test_a_folder_that_was_named_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
        assert solver._cache_of_its_own() == {}

    def test_a_user_without_a_home_is_one_who_cannot_write_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a container under a number that no file names."""
        monkeypatch.setenv("HOME", "~")
        assert Path(solver._cache_of_its_own()["NUMBA_CACHE_DIR"]).is_dir()
