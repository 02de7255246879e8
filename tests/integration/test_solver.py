"""The solver's child process: answers, questions, deaths, limits, and never an orphan."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio

from geo.roads import COLUMNS, RoadNetwork
from matcher import assignment, optimum
from matcher import solver as solver_module
from matcher.graph import BadGraph, CandidateGraph, verify
from matcher.problem import BadProblem, Floats, Ints, Problem
from matcher.solver import ROOT, SolverChild, SolverFailed
from tests.certificate import prove
from tests.problems import around, drawn, problem

# One event loop for the module: the child that most tests share belongs to it.
pytestmark = pytest.mark.asyncio(loop_scope="module")

WITHIN_S = 40.0
LIMIT_S = 30.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[SolverChild]:
    solver = SolverChild()
    yield solver
    await solver.close()


@pytest_asyncio.fixture(loop_scope="module")
async def warm(shared: SolverChild) -> AsyncIterator[SolverChild]:
    """The module's child, which has to outlive the test."""
    await shared.start()
    pid = shared.pid
    yield shared
    assert shared.pid == pid


@pytest_asyncio.fixture(loop_scope="module")
async def child(shared: SolverChild) -> SolverChild:
    """The same, to be ill-treated: its next caller gets another."""
    await shared.start()
    return shared


def crowd(n: int, m: int, *, seed: int = 1, **fields: Any) -> Problem:
    """Rides and drivers around different spots: what is near is not enough."""
    rng = np.random.default_rng(seed)
    rides = around(rng, n, lat=40.75, lon=-73.98, spread=0.01, spots=3)
    return problem(rides, around(rng, m, lat=40.76, lon=-73.96, spread=0.01, spots=3), **fields)


def random_graph(n: int, m: int, *, density: float = 1.0, seed: int = 1) -> CandidateGraph:
    rng = np.random.default_rng(seed)
    ride, driver = (side.astype(np.int32) for side in np.nonzero(rng.random((n, m)) < density))
    return CandidateGraph(n, m, ride, driver, rng.random(ride.size) * 1800.0, np.full(n, 3600.0))


def crooked(n: int, m: int, seed: int = 1) -> tuple[Problem, Floats]:
    """A problem with road times of 1 to 3 times the straight line, some without a way."""
    rng = np.random.default_rng(seed)
    given_problem = crowd(n, m, seed=seed, s_per_m=1 / 30.0, has_ways=True)
    times: Floats = rng.uniform(60.0, 1500.0, (n, m))
    times[rng.random((n, m)) < 0.1] = np.inf
    return given_problem, times


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(int(WITHIN_S / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what}: not within {WITHIN_S} s")


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def pid_of(solver: SolverChild) -> int:
    assert solver.pid is not None
    return solver.pid


async def still_works(solver: SolverChild) -> None:
    given_problem = crowd(8, 8, seed=99)
    prove(given_problem, await solver.solve(given_problem, LIMIT_S))


class TestAnswers:
    async def test_a_problem_is_solved_as_it_is_in_process(self, warm: SolverChild) -> None:
        given_problem = drawn(7, 40, 50)
        answer = await warm.solve(given_problem, LIMIT_S, near=4, compare=True)
        expected = optimum.only_told(optimum.solve(given_problem, near=4, compare=True))
        prove(given_problem, answer)
        assert answer.driver_of.tolist() == expected.driver_of.tolist()
        assert (answer.cost_s, answer.bound_s, answer.greedy_s) == (
            expected.cost_s,
            expected.bound_s,
            expected.greedy_s,
        )
        assert answer.numbers == expected.numbers
        for name in ("cheapest", "city_more_s", "greedy_of"):
            np.testing.assert_array_equal(getattr(answer, name), getattr(expected, name))
        for name in ("ride", "driver", "way_s", "cost_s"):
            np.testing.assert_array_equal(getattr(answer.pairs, name), getattr(expected.pairs, name))

    async def test_a_graph_is_assigned_as_it_is_in_process(self, warm: SolverChild) -> None:
        graph = random_graph(60, 90, density=0.2)
        answer, expected = await warm.assign(graph, LIMIT_S), assignment.solve(graph)
        assert answer.driver_of.tolist() == expected.driver_of.tolist()
        assert (answer.cost, answer.greedy_cost, answer.numbers) == (
            expected.cost,
            expected.greedy_cost,
            expected.numbers,
        )
        verify(graph, answer)

    async def test_one_child_serves_callers_one_after_the_other(self, warm: SolverChild) -> None:
        problems = [crowd(20, 20, seed=seed) for seed in range(4)]
        graph = random_graph(20, 20)
        tasks = [asyncio.create_task(warm.solve(each, LIMIT_S)) for each in problems]
        assigned = await warm.assign(graph, LIMIT_S)
        solutions = await asyncio.gather(*tasks)
        for each, solution in zip(problems, solutions, strict=True):
            prove(each, solution)
        verify(graph, assigned)

    @pytest.mark.parametrize(("n", "m"), [(0, 0), (3, 0), (0, 3)])
    async def test_nobody_on_either_side_is_answered(self, warm: SolverChild, n: int, m: int) -> None:
        given_problem = crowd(n, m)
        if not m:  # a market before its first driver knows no kind of driver either
            given_problem = dataclasses.replace(given_problem, extra_s=np.zeros((1, 0)))
        solution = await warm.solve(given_problem, LIMIT_S, near=4, compare=True)
        assert (solution.cost_s, solution.certified) == (3600.0 * n, True)
        assert (await warm.assign(random_graph(n, m), LIMIT_S)).cost == 3600.0 * n

    async def test_a_solve_past_its_limit_is_a_plan_with_a_gap_and_no_failure(self, warm: SolverChild) -> None:
        given_problem = crowd(120, 120, seed=3)
        hurried, whole = await warm.solve(given_problem, 0.0), await warm.solve(given_problem, LIMIT_S)
        assert (hurried.numbers["rounds"], hurried.certified) == (1, False)
        assert hurried.bound_s <= whole.cost_s <= hurried.cost_s
        prove(given_problem, whole)


class TestWays:
    async def test_pairs_are_priced_by_the_parent_when_it_is_asked(self, warm: SolverChild) -> None:
        given_problem, times = crooked(40, 50)
        asked: list[tuple[int, int]] = []

        async def ways(ride: Ints, driver: Ints) -> Floats:
            await asyncio.sleep(0)  # as a network would be waited for
            asked.extend(zip(ride.tolist(), driver.tolist(), strict=True))
            return times[ride, driver]

        solution = await warm.solve(given_problem, LIMIT_S, ways=ways, near=4, compare=True)
        prove(given_problem, solution, lambda ride, driver: times[ride, driver])
        assert len(asked) == len(set(asked)) < times.size
        whole = optimum.solve(given_problem, lambda ride, driver: times[ride, driver], near=4, compare=True)
        assert solution.driver_of.tolist() == whole.driver_of.tolist()

    async def test_no_more_pairs_are_asked_for_once_their_limit_is_reached(self, warm: SolverChild) -> None:
        """P10"""
        given_problem, times = crooked(60, 60)
        asked = []

        async def ways(ride: Ints, driver: Ints) -> Floats:
            asked.append(len(ride))
            return times[ride, driver]

        bounded = await warm.solve(given_problem, LIMIT_S, ways=ways, ways_max=100)
        assert len(asked) == 1
        assert not bounded.certified
        best_s = optimum.solve(given_problem, lambda ride, driver: times[ride, driver]).cost_s
        assert bounded.bound_s <= best_s <= bounded.cost_s

    @pytest.mark.parametrize("wrong", [np.zeros(1), np.full(10_000, np.nan)])
    async def test_ways_that_answer_another_question_are_refused_and_the_child_lives(
        self, warm: SolverChild, wrong: Floats
    ) -> None:
        given_problem, _ = crooked(10, 10)

        async def ways(ride: Ints, driver: Ints) -> Floats:
            return wrong[: len(ride)]

        with pytest.raises(BadProblem, match="ways were asked for"):
            await warm.solve(given_problem, LIMIT_S, ways=ways)

    async def test_a_problem_with_ways_that_nobody_prices_fails_and_the_next_is_solved(
        self, child: SolverChild
    ) -> None:
        given_problem, _ = crooked(10, 10)
        with pytest.raises(SolverFailed, match="nobody prices"):
            await child.solve(given_problem, LIMIT_S)
        await still_works(child)

    async def test_a_fault_of_whoever_prices_is_theirs_and_the_next_problem_is_solved(self, child: SolverChild) -> None:
        given_problem, _ = crooked(10, 10)

        async def ways(ride: Ints, driver: Ints) -> Floats:
            raise BadProblem("the provider's own")

        with pytest.raises(BadProblem, match="the provider's own"):
            await child.solve(given_problem, LIMIT_S, ways=ways)
        await still_works(child)


def write_roads(path: Path, seconds_a_link: float) -> None:
    """A grid of streets over the crowd, 400 m a link, both ways."""
    rows = [",".join(COLUMNS)]
    places = [(40.70 + 0.004 * i, -74.04 + 0.005 * j) for i in range(31) for j in range(31)]
    for at, (lat, lon) in enumerate(places):
        for to in ([at + 1] if (at + 1) % 31 else []) + ([at + 31] if at + 31 < len(places) else []):
            ends = ((lat, lon), places[to])
            for (a, b), (c, d) in (ends, ends[::-1]):
                rows.append(f"{a},{b},{c},{d},444,{seconds_a_link}")
    path.write_text("\n".join(rows) + "\n")


class TestRoads:
    def by_roads(self, path: Path, given_problem: Problem) -> Callable[[Ints, Ints], Floats]:
        roads, p = RoadNetwork.read(path), given_problem

        def ways(ride: Ints, driver: Ints) -> Floats:
            places = (p.driver_lat, p.driver_lon, p.ride_lat, p.ride_lon)
            return roads.seconds(*places, driver.astype(np.int64), ride.astype(np.int64))

        return ways

    async def test_the_child_prices_by_a_file_of_roads_and_reads_it_anew_when_it_changes(
        self, warm: SolverChild, tmp_path: Path
    ) -> None:
        path, costs = tmp_path / "roads.csv", []
        for seconds_a_link in (30.0, 60.0):
            write_roads(path, seconds_a_link)
            os.utime(path, ns=(0, round(seconds_a_link * 1e9)))
            given_problem = crowd(25, 30, s_per_m=1 / RoadNetwork.read(path).top_speed_mps, has_ways=True)
            solution = await warm.solve(given_problem, LIMIT_S, roads=str(path))
            prove(given_problem, solution, self.by_roads(path, given_problem))
            costs.append(solution.cost_s)
        assert costs[1] > 1.2 * costs[0]

    @pytest.mark.parametrize(
        ("name", "words"),
        [("none.csv", "cannot read .*none.csv"), (".", "cannot read"), ("x" * 300, "too long"), ("\0", "null")],
        ids=["missing", "folder", "too long", "null"],
    )
    async def test_roads_that_cannot_be_read_fail_the_batch_naming_them_and_the_child_lives(
        self, warm: SolverChild, tmp_path: Path, name: str, words: str
    ) -> None:
        with pytest.raises(SolverFailed, match=words):
            await warm.solve(crowd(3, 3, has_ways=True), LIMIT_S, roads=str(tmp_path / name))

    async def test_a_file_that_holds_no_roads_is_named_with_what_it_lacks(
        self, warm: SolverChild, tmp_path: Path
    ) -> None:
        path = tmp_path / "rides.csv"
        path.write_text("a,b\n1,2\n")
        with pytest.raises(SolverFailed, match="has no column"):
            await warm.solve(crowd(3, 3, has_ways=True), LIMIT_S, roads=str(path))


class TestBadInput:
    async def test_a_broken_problem_is_refused_with_its_reason_and_the_child_lives(self, warm: SolverChild) -> None:
        given_problem = crowd(3, 3)
        given_problem.price_s[1] = float("nan")
        with pytest.raises(BadProblem, match="price_s of 1 is nan"):
            await warm.solve(given_problem, LIMIT_S)

    async def test_a_broken_graph_is_refused_with_its_reason_and_the_child_lives(self, warm: SolverChild) -> None:
        graph = random_graph(3, 3)
        graph.cost[4] = float("nan")
        with pytest.raises(BadGraph, match="ride 1 and driver 1 costs nan"):
            await warm.assign(graph, LIMIT_S)

    async def test_what_is_larger_than_a_frame_is_refused_before_it_is_sent(
        self, warm: SolverChild, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """P10; the child is none the worse for it."""
        monkeypatch.setattr(warm, "_frame_bytes_max", 1000)
        with pytest.raises(SolverFailed, match="exceed"):
            await warm.solve(crowd(30, 30), LIMIT_S)
        with pytest.raises(SolverFailed, match="exceed"):
            await warm.assign(random_graph(30, 30), LIMIT_S)

    async def test_nothing_is_started_for_what_is_larger_than_a_frame(self) -> None:
        solver = SolverChild(frame_bytes_max=1000)
        with pytest.raises(SolverFailed, match="exceed"):
            await solver.assign(random_graph(30, 30), LIMIT_S)
        assert solver.pid is None
        await solver.close()


class TestDeaths:
    async def test_a_child_killed_mid_solve_is_replaced_and_the_batch_redone(self, child: SolverChild) -> None:
        doomed, replaced = pid_of(child), child.replaced
        os.kill(doomed, signal.SIGSTOP)  # so that it certainly holds the batch when it dies
        given_problem = crowd(40, 40)
        task = asyncio.create_task(child.solve(given_problem, LIMIT_S))
        await asyncio.sleep(0.1)
        os.kill(doomed, signal.SIGKILL)
        prove(given_problem, await task)
        assert (child.pid != doomed, child.replaced) == (True, replaced + 1)

    async def test_a_child_killed_between_batches_is_replaced(self, child: SolverChild) -> None:
        doomed = pid_of(child)
        os.kill(doomed, signal.SIGKILL)
        await still_works(child)
        assert child.pid != doomed

    async def test_a_hung_child_is_cut_at_the_limit_and_the_next_batch_is_solved(
        self, child: SolverChild, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hung = pid_of(child)
        os.kill(hung, signal.SIGSTOP)
        monkeypatch.setattr(solver_module, "GRACE_S", 0.2)
        with pytest.raises(SolverFailed, match="no solution within 0.3 s"):
            await child.solve(crowd(10, 10), 0.1)
        await until(lambda: is_gone(hung), "the hung child is gone")
        await still_works(child)

    async def test_an_assignment_that_is_too_slow_is_cut_although_it_looks_at_no_clock(
        self, child: SolverChild
    ) -> None:
        slow = pid_of(child)
        with pytest.raises(SolverFailed, match="no solution within"):
            await child.assign(random_graph(1500, 1500), 0.02)
        await until(lambda: is_gone(slow), "the slow child is gone")

    async def test_a_cancelled_caller_leaves_no_answer_for_the_next(self, child: SolverChild) -> None:
        os.kill(pid_of(child), signal.SIGSTOP)  # so that it has certainly not answered yet
        task = asyncio.create_task(child.assign(random_graph(20, 20), LIMIT_S))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await still_works(child)

    async def test_an_answer_that_nobody_waits_for_any_more_reaches_nobody_else(self, child: SolverChild) -> None:
        first, second = crowd(40, 40, seed=1), crowd(40, 40, seed=2)
        given_up = asyncio.create_task(child.solve(first, LIMIT_S))
        waiting = asyncio.create_task(child.solve(second, LIMIT_S))
        await asyncio.sleep(0.02)  # the first is sent
        time.sleep(0.5)  # its answer is in the pipe before the loop can read it
        given_up.cancel()
        assert (await waiting).cost_s == optimum.solve(second).cost_s

    async def test_whoever_waits_for_a_turn_waits_no_longer_than_its_own_limit(
        self, child: SolverChild, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(solver_module, "GRACE_S", 0.2)
        os.kill(pid_of(child), signal.SIGSTOP)
        patient = asyncio.create_task(child.solve(crowd(10, 10), 2.0))
        await asyncio.sleep(0)
        with pytest.raises(SolverFailed, match="busy"):
            await child.solve(crowd(10, 10), 0.1)
        with pytest.raises(SolverFailed, match="no solution within"):
            await patient

    async def test_a_batch_does_not_wait_for_a_child_that_is_slow_to_start(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(solver_module, "GRACE_S", 0.05)
        solver = SolverChild()
        with pytest.raises(SolverFailed, match="still starting"):
            await solver.solve(crowd(10, 10), 0.01)
        await solver.start()  # the same child, which went on starting
        await still_works(solver)
        assert solver.replaced == 0
        await solver.close()

    async def test_a_batch_over_which_every_child_dies_fails_alone(
        self, child: SolverChild, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(solver_module, "ATTEMPTS_MAX", 2)
        task = asyncio.create_task(child.solve(crowd(4000, 4000), LIMIT_S))
        killed: set[int] = set()
        while not task.done():
            if child.pid is not None and child.pid not in killed:
                killed.add(child.pid)
                os.kill(child.pid, signal.SIGKILL)
            await asyncio.sleep(0.005)
        with pytest.raises(SolverFailed, match="2 solver children died over this batch"):
            await task
        assert len(killed) >= 2
        await still_works(child)

    async def test_a_defect_in_the_child_ends_it_with_its_traceback_and_fails_the_batch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A fault that nobody foresaw is not answered as if it were the batch's."""
        (tmp_path / "sitecustomize.py").write_text(
            "from matcher import assignment\n"
            "sound = assignment.solve\n"
            "assignment.solve = lambda graph: sound(graph) if graph.n_rides != 13 else 1 / 0\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(solver_module, "ATTEMPTS_MAX", 1)
        solver = SolverChild()
        with pytest.raises(SolverFailed, match="died over this batch"):
            await solver.assign(random_graph(13, 13), LIMIT_S)
        await solver.close()
        assert "ZeroDivisionError" in capfd.readouterr().err


class TestStartAndEnd:
    async def test_a_child_that_says_no_hello_in_time_is_a_failure(self) -> None:
        solver = SolverChild(start_s_max=0.01)
        with pytest.raises(SolverFailed, match="did not start: no hello within 0.01 s"):
            await solver.start()
        assert solver.pid is None
        await solver.close()

    async def test_a_python_that_is_not_there_is_a_failure(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        solver = SolverChild()
        with pytest.raises(SolverFailed, match="cannot be started"):
            await solver.solve(crowd(3, 3), LIMIT_S)
        await solver.close()

    async def test_a_closed_solver_leaves_no_process_and_says_so(self) -> None:
        solver = SolverChild()
        await solver.start()
        pid = pid_of(solver)
        await solver.close()
        assert is_gone(pid)
        with pytest.raises(SolverFailed, match="closed"):
            await solver.solve(crowd(3, 3), LIMIT_S)
        with pytest.raises(SolverFailed, match="closed"):
            await solver.assign(random_graph(3, 3), LIMIT_S)

    async def test_closing_what_was_never_started_is_nothing(self) -> None:
        await SolverChild().close()

    async def test_ctrl_c_to_the_group_does_not_end_the_child(self, warm: SolverChild) -> None:
        os.kill(pid_of(warm), signal.SIGINT)
        await still_works(warm)

    async def test_the_child_is_less_urgent_than_its_parent(self, warm: SolverChild) -> None:
        assert psutil.Process(pid_of(warm)).nice() > psutil.Process().nice()


PARENT = """
import asyncio, sys
import numpy as np
from matcher.graph import CandidateGraph
from matcher.solver import SolverChild

async def main():
    solver = SolverChild()
    await solver.start()
    print(solver.pid, flush=True)
    if sys.argv[1] == "solving":
        n = 2500
        ride, driver = np.divmod(np.arange(n * n, dtype=np.int32), np.int32(n))
        cost = np.random.default_rng(1).random(n * n)
        await solver.assign(CandidateGraph(n, n, ride, driver, cost, np.full(n, 10.0)), 600.0)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["idle", "solving"])
async def test_a_parent_killed_with_sigkill_leaves_no_child(state: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), state, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert parent.stdout is not None
    child_pid = int(await asyncio.wait_for(parent.stdout.readline(), WITHIN_S))
    if state == "solving":
        process = psutil.Process(child_pid)
        began = process.cpu_times().user
        await until(lambda: process.cpu_times().user > began + 0.2, "the child works")
    parent.kill()
    await parent.wait()
    await until(lambda: is_gone(child_pid), "the child ends with its parent")
    await parent.stdout.read()
