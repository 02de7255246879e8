"""The solver's process: reads tasks from standard input, answers on standard output (see matcher.solver)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np

from geo.roads import RoadNetwork, RoadsError
from matcher import assignment, optimum
from matcher.graph import BadGraph, CandidateGraph
from matcher.packing import (
    TASKS,
    Assigned,
    AssignTask,
    Bad,
    Question,
    Solved,
    SolveTask,
    WaysAnswer,
    assignment_frame_of,
    floats_of,
    frame_of,
    graph_frame_of,
    graph_of,
    packed,
    problem_of,
    solution_frame_of,
)
from matcher.problem import BadProblem, Floats, Ints, Problem, Solution, WaysOf
from matcher.solver import FRAME_BYTES_MAX, LENGTH

PR_SET_PDEATHSIG: Final = 1
#: A little less urgent than the loop that serves sockets on the same cores.
NICENESS: Final = 5
#: So many rides are priced by roads between two looks at the clock.
ROADS_RIDES: Final = 64

#: Sends a question and waits for its answer.
Ask = Callable[[bytes], bytes]


def answer_of(frame: bytes, ask: Ask) -> bytes:
    """The packed answer to a task, or why there is none."""
    try:
        task = TASKS.decode(frame)
        if isinstance(task, AssignTask):
            answer: msgspec.Struct = Assigned(assignment_frame_of(assignment.solve(graph_of(task.graph))))
        elif isinstance(task, SolveTask):
            answer = Solved(solution_frame_of(_solved(task, ask)))
        else:
            answer = Bad("nobody asked for ways", is_fault=True)
    except (BadGraph, BadProblem) as bad:
        answer = Bad(str(bad))
    except (RoadsError, ValueError, OSError, MemoryError) as failed:  # msgspec's errors are ValueErrors
        answer = Bad(f"{type(failed).__name__}: {failed}", is_fault=True)
    return msgspec.msgpack.encode(answer)


def _solved(task: SolveTask, ask: Ask) -> Solution:
    problem = problem_of(task.problem)
    until_s = time.monotonic() + task.limit_s

    def is_over() -> bool:
        return time.monotonic() >= until_s

    solution = optimum.solve(
        problem,
        _ways(problem, task, ask, is_over) if problem.has_ways else None,
        is_over=is_over,
        near=task.near,
        compare=task.compare,
        ways_max=task.ways_max or optimum.WAYS_MAX,
    )
    return solution if problem.has_ways else optimum.only_told(solution)


def _ways(problem: Problem, task: SolveTask, ask: Ask, is_over: Callable[[], bool]) -> WaysOf:
    if task.roads:
        roads = _roads(task.roads, Path(task.roads).stat().st_mtime_ns if Path(task.roads).exists() else 0)

        def priced_by_roads(ride: Ints, driver: Ints) -> Floats:
            return _by_roads(problem, roads, ride, driver, is_over)

        return priced_by_roads

    def priced_by_parent(ride: Ints, driver: Ints) -> Floats:
        answer = TASKS.decode(ask(msgspec.msgpack.encode(Question(packed(ride), packed(driver)))))
        if not isinstance(answer, WaysAnswer):
            raise ValueError("ways were asked for, and something else was answered")
        return floats_of(answer.seconds)

    return priced_by_parent


def _by_roads(problem: Problem, roads: RoadNetwork, ride: Ints, driver: Ints, is_over: Callable[[], bool]) -> Floats:
    """Seconds by road, some rides at a time; what is left when time is over keeps its bound, and proves nothing."""
    seconds = np.zeros(len(ride))
    order = np.argsort(ride, kind="stable")
    rides = ride[order]
    starts = np.flatnonzero(np.diff(rides, prepend=-1))
    drivers, pickups = (problem.driver_lat, problem.driver_lon), (problem.ride_lat, problem.ride_lon)
    for start in range(0, len(starts), ROADS_RIDES):
        if is_over():
            break
        end = starts[start + ROADS_RIDES] if start + ROADS_RIDES < len(starts) else len(order)
        part = order[starts[start] : end]
        seconds[part] = roads.seconds(*drivers, *pickups, driver[part].astype(np.int64), ride[part].astype(np.int64))
    return seconds


@lru_cache(maxsize=8)
def _roads(path: str, changed_ns: int) -> RoadNetwork:
    """Read once, and anew when the file has changed."""
    return RoadNetwork.read(Path(path))


def _no_way_at_all(question: bytes) -> bytes:
    asked = msgspec.msgpack.decode(question, type=Question)
    return msgspec.msgpack.encode(WaysAnswer(packed(np.zeros(len(asked.ride) // 4))))


def warm_up() -> None:
    """Has everything compiled, or loaded from the cache of an earlier compilation, before the first batch waits."""
    one, two = np.zeros(1, np.int32), np.zeros(2)
    straight = Problem(
        ride_lat=two, ride_lon=two, price_s=two + 9.0, ride_kind=np.zeros(2, np.int32), driver_lat=two[:1],
        driver_lon=two[:1], driver_s=two[:1], driver_kind=one, extra_s=np.zeros((1, 1)), barred_ride=one,
        barred_driver=one, s_per_m=1.0, reach_m=two[:1] + 9.0, reach_s=two[:1] + 9.0,
    )  # fmt: skip
    for problem in (straight, replace(straight, has_ways=True)):
        task = SolveTask(frame_of(problem), limit_s=60.0, near=2, compare=True, ways_max=0, roads="")
        answer_of(msgspec.msgpack.encode(task), _no_way_at_all)
    graph = CandidateGraph(1, 1, one, one, two[:1], two[:1] + 1.0)
    answer_of(msgspec.msgpack.encode(AssignTask(graph_frame_of(graph))), lambda question: question)


def _read_into(frames: queue.Queue[bytes], source: BinaryIO) -> None:
    """Hands on whole frames; ends the process at once when the parent's end is closed."""
    while True:
        head = source.read(LENGTH.size)
        if len(head) < LENGTH.size:
            os._exit(0)
        (length,) = LENGTH.unpack(head)
        frame = source.read(length) if length <= FRAME_BYTES_MAX else b""
        if len(frame) < length:
            os._exit(1)
        frames.put(frame)


def _die_with_parent(parent_pid: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(0)


def main(arguments: list[str]) -> None:
    """`warm` compiles and ends; otherwise the first argument is the process id of the parent that is served, and
    the others are files of roads that its problems will name."""
    if arguments == ["warm"]:
        warm_up()
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(int(arguments[0]))
    os.nice(NICENESS)
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints goes to stderr, never between frames
    frames: queue.Queue[bytes] = queue.Queue(maxsize=1)
    threading.Thread(target=_read_into, args=(frames, sys.stdin.buffer), daemon=True).start()

    def tell(frame: bytes) -> None:
        sink.write(LENGTH.pack(len(frame)) + frame)
        sink.flush()

    def ask(frame: bytes) -> bytes:
        tell(frame)
        return frames.get()

    warm_up()
    for path in arguments[1:]:
        with contextlib.suppress(RoadsError, OSError):  # told to whoever asks for it
            _roads(path, Path(path).stat().st_mtime_ns)
    with contextlib.suppress(BrokenPipeError):
        tell(msgspec.msgpack.encode({"hello": os.getpid()}))
        while True:
            tell(answer_of(frames.get(), ask))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
