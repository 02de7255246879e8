"""The solver: a child process, so that solving never holds up the event loop that serves sockets.

`SolverChild` is the parent's side, `python -m matcher.solver_child PARENT_PID` the other. Frames on the
child's stdin and stdout are a length (4 bytes, big endian) and a msgpack struct (matcher.packing). A
problem may be answered by a question first, for the ways of some pairs, which the parent has priced.
The child never outlives its parent: Linux kills it when the parent's thread ends (PR_SET_PDEATHSIG), and
everywhere the end of its stdin ends it, at the latest when a solve is through. It ignores SIGINT, which
Ctrl-C sends to the whole group: the parent decides. It is a little less urgent than its parent.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import struct
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec

from matcher.graph import Assignment, BadGraph, CandidateGraph
from matcher.packing import (
    ANSWERS,
    Assigned,
    AssignTask,
    Bad,
    Question,
    Solved,
    SolveTask,
    WaysAnswer,
    assignment_of,
    frame_of,
    graph_frame_of,
    ints_of,
    packed,
    solution_of,
)
from matcher.problem import BadProblem, Floats, Ints, Problem, Solution

log = logging.getLogger(__name__)

LENGTH = struct.Struct(">I")
FRAME_BYTES_MAX = 128 * 2**20
#: What goes into the pipe at a time: a large frame in one go is copied several times before anybody else has a turn.
PIECE_BYTES = 2**20
#: A fresh child imports and warms up before it says hello; the first one ever compiles for some ten seconds.
START_S_MAX = 180.0
#: How often one batch is given to a new child after a child died over it.
ATTEMPTS_MAX = 3
CLOSE_S_MAX = 1.0
#: What a solve may take beyond its limit, which the child keeps between two rounds.
GRACE_S = 2.0
#: Where the packages are: the child finds them without the current folder on its path.
ROOT = str(Path(__file__).resolve().parent.parent)

Answer = Question | Solved | Assigned | Bad
Result = TypeVar("Result")
Found = TypeVar("Found", Solution, Assignment)
#: Prices pairs (rides, drivers) of a problem: seconds of their ways, inf where there is none.
WaysAsked = Callable[[Ints, Ints], Awaitable[Floats]]


class SolverFailed(Exception):
    """No assignment: too large, out of time, or the child keeps dying. `reason` is for a person."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _ChildDied(Exception):
    """The child ended or broke the protocol; another one may do better."""


class SolverChild:
    """One warm child, started when first needed and replaced when it dies. One task at a time.

    It reads the road networks in `roads` before it takes any. Belongs to one event loop, which has to run in
    a thread that lives as long as the child is needed (see PR_SET_PDEATHSIG).
    """

    def __init__(
        self,
        *,
        roads: Sequence[str] = (),
        frame_bytes_max: int = FRAME_BYTES_MAX,
        start_s_max: float = START_S_MAX,
    ) -> None:
        self._roads = tuple(roads)
        self._frame_bytes_max = frame_bytes_max
        self._start_s_max = start_s_max
        self._process: Process | None = None
        self._starting: asyncio.Task[Process] | None = None
        self._reaping: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._closed = False
        self.replaced = 0  # children that died or were cut, for metrics

    @property
    def pid(self) -> int | None:
        """The present child's, or None before the first start."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    async def start(self) -> None:
        """Makes sure that a child is warm. Raises SolverFailed."""
        async with self._turn:
            try:
                await self._warm(self._start_s_max + CLOSE_S_MAX)
            except _ChildDied as died:
                raise SolverFailed(f"the solver did not start: {died}") from died

    async def solve(
        self,
        problem: Problem,
        limit_s: float,
        *,
        near: int = 0,
        compare: bool = False,
        ways: WaysAsked | None = None,
        ways_max: int = 0,
        roads: str | None = None,
    ) -> Solution:
        """The certified solution of this problem, or what is known of it after `limit_s` (see matcher.optimum).

        A problem with ways is priced by `ways`, at most `ways_max` pairs, or by the road network in the file
        `roads`, which the child reads itself. Raises BadProblem for a problem that breaks a rule, SolverFailed
        for the rest. A caller that is cancelled takes the child with it; the next call starts another.
        """
        task = self._packed(SolveTask(frame_of(problem), limit_s, near, compare, ways_max, roads or ""))

        async def exchange(process: Process) -> Solution | Bad:
            answer = await _roundtrip(process, task, self._frame_bytes_max)
            while isinstance(answer, Question):
                if ways is None:
                    raise SolverFailed("the solver asked for ways that nobody prices")
                seconds = await ways(ints_of(answer.ride), ints_of(answer.driver))
                answer = await _roundtrip(process, self._packed(WaysAnswer(packed(seconds))), self._frame_bytes_max)
            if isinstance(answer, Bad):
                return answer
            return _fitting(solution_of(_expected(answer, Solved).solution), problem.n_rides, problem.n_drivers)

        found = await self._attempts(exchange, limit_s + GRACE_S)
        if isinstance(found, Bad):
            raise SolverFailed(found.reason) if found.is_fault else BadProblem(found.reason)
        return found

    async def assign(self, graph: CandidateGraph, limit_s: float) -> Assignment:
        """The certified assignment of an explicit graph. Raises BadGraph, SolverFailed."""
        task = self._packed(AssignTask(graph_frame_of(graph)))

        async def exchange(process: Process) -> Assignment | Bad:
            answer = await _roundtrip(process, task, self._frame_bytes_max)
            if isinstance(answer, Bad):
                return answer
            return _fitting(assignment_of(_expected(answer, Assigned).assignment), graph.n_rides, graph.n_drivers)

        found = await self._attempts(exchange, limit_s)
        if isinstance(found, Bad):
            raise SolverFailed(found.reason) if found.is_fault else BadGraph(found.reason)
        return found

    def _packed(self, task: SolveTask | AssignTask | WaysAnswer) -> bytes:
        """Refused before it is sent: the child stays as it is."""
        frame = msgspec.msgpack.encode(task)
        if len(frame) > self._frame_bytes_max:
            raise SolverFailed(f"{len(frame)} bytes exceed the solver's limit of {self._frame_bytes_max}")
        return frame

    async def _attempts(self, exchange: Callable[[Process], Awaitable[Result]], limit_s: float) -> Result:
        """One exchange with a warm child, again with a new one where it died; all of it within `limit_s`.

        Whoever waits for a turn, or for a child that is still starting, waits no longer than that either.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limit_s
        try:
            async with asyncio.timeout_at(until_s):
                await self._turn.acquire()
        except TimeoutError:
            raise SolverFailed(f"the solver was busy for {limit_s:.1f} s") from None
        try:
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    process = await self._warm(until_s - loop.time())
                    return await self._bounded(process, exchange, until_s - loop.time())
                except _ChildDied as died:
                    log.warning("solver child died (attempt %d of %d): %s", attempt, ATTEMPTS_MAX, died)
            raise SolverFailed(f"{ATTEMPTS_MAX} solver children died over this batch")
        finally:
            self._turn.release()

    async def _bounded(
        self, process: Process, exchange: Callable[[Process], Awaitable[Result]], left_s: float
    ) -> Result:
        try:
            async with asyncio.timeout(left_s):
                return await exchange(process)
        except TimeoutError:
            self._discard("overran")
            raise SolverFailed(f"no solution within {left_s:.1f} s") from None
        except BaseException:  # died, cancelled or out of step: nobody may read what this child still answers
            self._discard("was given up")
            raise

    async def _warm(self, within_s: float) -> Process:
        """A child that has said hello. One that takes longer goes on starting, for the next call."""
        if self._closed:
            raise SolverFailed("the solver is closed")
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._discard("ended")
        if self._starting is None:
            self._starting = asyncio.create_task(_started(self._roads, self._start_s_max, self._frame_bytes_max))
            self._starting.add_done_callback(_heard)
        try:
            async with asyncio.timeout(within_s):
                process = await asyncio.shield(self._starting)
        except TimeoutError:
            raise SolverFailed("the solver is still starting") from None
        except (_ChildDied, SolverFailed):
            self._starting = None
            raise
        self._starting, self._process = None, process
        return process

    def _discard(self, why: str) -> None:
        """Lets go of the present child at once, so that nobody else reads its answers; it is reaped beside."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        self.replaced += 1
        log.warning("solver child %d %s", process.pid, why)
        reaping = asyncio.create_task(_reap(process))
        self._reaping.add(reaping)
        reaping.add_done_callback(self._reaping.discard)

    async def close(self) -> None:
        """Ends the child; later calls raise SolverFailed."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(CLOSE_S_MAX):
                    await process.wait()
            except TimeoutError:
                process.kill()
            await _reap(process)
        if self._reaping:
            await asyncio.wait(set(self._reaping))


def _heard(starting: asyncio.Task[Process]) -> None:
    """A start that failed while nobody waited for it is told to the next who does."""
    if not starting.cancelled():
        starting.exception()


async def _started(roads: Sequence[str], start_s_max: float, bytes_max: int) -> Process:
    process = await _spawn(roads)
    try:
        async with asyncio.timeout(start_s_max):
            await _read_frame(process, bytes_max)  # its hello: imports are done
    except BaseException as error:
        if process.returncode is None:
            process.kill()
        await _reap(process)
        if isinstance(error, TimeoutError):
            raise _ChildDied(f"no hello within {start_s_max} s") from None
        raise
    return process


async def _spawn(roads: Sequence[str]) -> Process:
    path = os.pathsep.join(part for part in (ROOT, os.environ.get("PYTHONPATH", "")) if part)
    command = (sys.executable, "-P", "-m", "matcher.solver_child", str(os.getpid()), *roads)
    environment = {**os.environ, "PYTHONPATH": path, **_cache_of_its_own()}
    try:
        return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment)
    except OSError as error:
        raise SolverFailed(f"the solver cannot be started: {error}") from error


@cache
def _cache_of_its_own() -> dict[str, str]:
    """Where compiled code is kept when neither the package's folder nor the user's cache can be written.

    A fresh folder of this process: one with a known name in a shared place could be somebody else's.
    """
    places = [Path(ROOT) / "matcher"]
    with contextlib.suppress(RuntimeError):  # a user of whom only the number is known, as in a container
        places.append(Path("~").expanduser())
    if "NUMBA_CACHE_DIR" in os.environ or any(os.access(place, os.W_OK) for place in places):
        return {}
    folder = tempfile.TemporaryDirectory(prefix="hexhail-")
    atexit.register(folder.cleanup)
    return {"NUMBA_CACHE_DIR": folder.name}


async def _reap(process: Process) -> None:
    """Waits for the end and lets go of the pipes, so that no transport is left open."""
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()
    if process.stdout is not None:
        while await process.stdout.read(65536):
            pass  # an answer that nobody waits for


async def _roundtrip(process: Process, frame: bytes, bytes_max: int) -> Answer:
    assert process.stdin is not None
    try:
        process.stdin.write(LENGTH.pack(len(frame)))
        for start in range(0, len(frame), PIECE_BYTES):
            process.stdin.write(frame[start : start + PIECE_BYTES])
            await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _ChildDied("its input is closed") from error
    try:
        answer: Answer = ANSWERS.decode(await _read_frame(process, bytes_max))
    except msgspec.MsgspecError as error:
        raise _ChildDied(f"its answer cannot be read: {error}") from error
    return answer


def _expected(answer: Answer, kind: type[Result]) -> Result:
    if isinstance(answer, kind):
        return answer
    raise SolverFailed("the solver answered something else")


def _fitting(found: Found, n_rides: int, n_drivers: int) -> Found:
    if found.driver_of.shape != (n_rides,) or found.v.shape != (n_drivers,):
        raise SolverFailed("the solver answered another problem than it was given")
    return found


async def _read_frame(process: Process, bytes_max: int) -> bytes:
    assert process.stdout is not None
    try:
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        if length > bytes_max:
            raise _ChildDied(f"it announced a frame of {length} bytes")
        return await process.stdout.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError) as error:
        raise _ChildDied("its output ended") from error
