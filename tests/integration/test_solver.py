"""The solver's child process: answers, deaths, limits, and never an orphan."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from matcher.assignment import BadGraph, CandidateGraph, solve, verify
from matcher.solver import ROOT, SolverChild, SolverFailed, answer_of

WITHIN_S = 40.0


@pytest.fixture
async def child() -> AsyncIterator[SolverChild]:
    solver = SolverChild()
    yield solver
    await solver.close()


def random_graph(n: int, m: int, *, density: float = 1.0, seed: int = 1) -> CandidateGraph:
    rng = np.random.default_rng(seed)
    ride, driver = (side.astype(np.int32) for side in np.nonzero(rng.random((n, m)) < density))
    return CandidateGraph(n, m, ride, driver, rng.random(ride.size) * 1800.0, np.full(n, 3600.0))


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


async def test_the_child_answers_as_the_solver_in_process_does(child: SolverChild) -> None:
    graph = random_graph(60, 90, density=0.2)
    answer, expected = await child.solve(graph, 10.0), solve(graph)
    assert answer.driver_of.tolist() == expected.driver_of.tolist()
    assert (answer.cost, answer.greedy_cost) == (expected.cost, expected.greedy_cost)
    verify(graph, answer)


async def test_one_child_stays_warm_over_batches(child: SolverChild) -> None:
    await child.start()
    first = child.pid
    await asyncio.gather(*(child.solve(random_graph(20, 20, seed=seed), 10.0) for seed in range(4)))
    assert child.pid == first
    assert child.replaced == 0


async def test_an_empty_batch_is_answered(child: SolverChild) -> None:
    answer = await child.solve(random_graph(0, 0), 10.0)
    assert (answer.driver_of.size, answer.cost) == (0, 0.0)


async def test_a_child_killed_mid_solve_is_replaced_and_the_batch_redone(child: SolverChild) -> None:
    await child.start()
    doomed = pid_of(child)
    os.kill(doomed, signal.SIGSTOP)  # so that it certainly holds the batch when it dies
    graph = random_graph(40, 40)
    task = asyncio.create_task(child.solve(graph, 30.0))
    await asyncio.sleep(0.1)
    os.kill(doomed, signal.SIGKILL)
    verify(graph, await task)
    assert child.pid != doomed
    assert child.replaced == 1


async def test_a_child_killed_between_batches_is_replaced(child: SolverChild) -> None:
    await child.start()
    doomed = pid_of(child)
    os.kill(doomed, signal.SIGKILL)
    graph = random_graph(40, 40)
    verify(graph, await child.solve(graph, 30.0))
    assert child.pid != doomed


async def test_a_hung_solve_is_cut_at_its_limit_and_the_next_batch_is_solved(child: SolverChild) -> None:
    await child.start()
    hung = pid_of(child)
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(SolverFailed, match="limit of time"):
        await child.solve(random_graph(10, 10), 0.3)
    assert is_gone(hung)
    graph = random_graph(10, 10)
    verify(graph, await child.solve(graph, 30.0))


async def test_a_solve_that_is_too_slow_is_cut_although_it_holds_the_interpreter_lock(child: SolverChild) -> None:
    await child.start()
    slow = pid_of(child)
    with pytest.raises(SolverFailed, match="limit of time"):
        await child.solve(random_graph(1200, 1200), 0.2)
    assert is_gone(slow)


async def test_a_cancelled_caller_leaves_no_answer_for_the_next(child: SolverChild) -> None:
    await child.start()
    task = asyncio.create_task(child.solve(random_graph(600, 600), 30.0))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    graph = random_graph(30, 30, seed=2)
    verify(graph, await child.solve(graph, 30.0))


async def test_a_child_that_dies_over_every_attempt_fails_the_batch_alone(child: SolverChild) -> None:
    task = asyncio.create_task(child.solve(random_graph(30, 30), 30.0))
    killed: set[int] = set()
    while not task.done():
        if child.pid is not None and child.pid not in killed:
            killed.add(child.pid)
            os.kill(child.pid, signal.SIGKILL)
        await asyncio.sleep(0.005)
    with pytest.raises(SolverFailed, match="died over this batch"):
        await task
    assert len(killed) >= 3
    graph = random_graph(30, 30)
    verify(graph, await child.solve(graph, 30.0))


async def test_a_broken_graph_is_refused_with_its_reason_and_the_child_lives(child: SolverChild) -> None:
    graph = random_graph(3, 3)
    graph.cost[4] = float("nan")
    await child.start()
    pid = child.pid
    with pytest.raises(BadGraph, match="ride 1 and driver 1 costs nan"):
        await child.solve(graph, 10.0)
    assert child.pid == pid


async def test_a_graph_beyond_the_frame_limit_is_refused_before_it_is_sent() -> None:
    solver = SolverChild(frame_bytes_max=1000)
    with pytest.raises(SolverFailed, match="exceed"):
        await solver.solve(random_graph(30, 30), 10.0)
    assert solver.pid is None
    await solver.close()


async def test_a_closed_solver_leaves_no_process_and_says_so(child: SolverChild) -> None:
    await child.start()
    pid = pid_of(child)
    await child.close()
    assert is_gone(pid)
    with pytest.raises(SolverFailed, match="closed"):
        await child.solve(random_graph(3, 3), 10.0)


async def test_ctrl_c_to_the_group_does_not_end_the_child(child: SolverChild) -> None:
    await child.start()
    pid = pid_of(child)
    os.kill(pid, signal.SIGINT)
    graph = random_graph(10, 10)
    verify(graph, await child.solve(graph, 30.0))
    assert child.pid == pid


PARENT = """
import asyncio, sys
import numpy as np
from matcher.assignment import CandidateGraph
from matcher.solver import SolverChild

async def main():
    solver = SolverChild()
    await solver.start()
    print(solver.pid, flush=True)
    if sys.argv[1] == "solving":
        n = 2000
        ride, driver = np.divmod(np.arange(n * n, dtype=np.int32), np.int32(n))
        cost = np.random.default_rng(1).random(n * n)
        await solver.solve(CandidateGraph(n, n, ride, driver, cost, np.full(n, 10.0)), 600.0)
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


def test_a_frame_that_is_no_graph_is_answered_with_the_reason() -> None:
    assert b"failed" in answer_of(b"\xc1nonsense")
