"""The solver: a child process, because scipy's matching holds the interpreter's lock throughout.

`SolverChild` is the parent's side, `python -m matcher.solver PARENT_PID` the
child's. Frames on the child's stdin and stdout are a length (4 bytes, big
endian) and a msgpack map with arrays as bytes. The child never outlives its
parent: Linux kills it when the parent's thread ends (PR_SET_PDEATHSIG), and
everywhere the end of its stdin ends it, at the latest when a solve is through.
It ignores SIGINT, which Ctrl-C sends to the whole group: the parent decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import queue
import signal
import struct
import sys
import threading
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from matcher.assignment import Assignment, BadGraph, CandidateGraph, solve

log = logging.getLogger(__name__)

LENGTH = struct.Struct(">I")
FRAME_BYTES_MAX = 128 * 2**20
#: A fresh child imports numpy and scipy before it says hello; on a busy machine that takes its time.
START_S_MAX = 30.0
#: How often one batch is given to a new child after a child died over it.
ATTEMPTS_MAX = 3
CLOSE_S_MAX = 1.0
PR_SET_PDEATHSIG = 1
#: Where the packages are: the child finds them without the current folder on its path.
ROOT = str(Path(__file__).resolve().parent.parent)


class SolverFailed(Exception):
    """No assignment: too large, out of time, or the child keeps dying. `reason` is for a person."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _ChildDied(Exception):
    """The child ended or broke the protocol; another one may do better."""


class SolverChild:
    """One warm child, started when first needed and replaced when it dies. One graph at a time.

    Belongs to one event loop, which has to run in a thread that lives as long
    as the child is needed (see PR_SET_PDEATHSIG).
    """

    def __init__(self, *, frame_bytes_max: int = FRAME_BYTES_MAX, start_s_max: float = START_S_MAX) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._start_s_max = start_s_max
        self._process: Process | None = None
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
                await self._warm()
            except _ChildDied as died:
                raise SolverFailed(f"the solver did not start: {died}") from died

    async def solve(self, graph: CandidateGraph, timeout_s: float) -> Assignment:
        """The certified assignment of this graph within `timeout_s`, all attempts included, starts not.

        Raises BadGraph for a graph that breaks a rule, SolverFailed for the rest.
        A caller that is cancelled takes the child with it; the next call starts another.
        """
        frame = _pack_graph(graph)
        if len(frame) > self._frame_bytes_max:
            raise SolverFailed(f"{len(graph.cost)} pairs exceed the solver's limit of {self._frame_bytes_max} bytes")
        loop = asyncio.get_running_loop()
        async with self._turn:
            left_s = timeout_s
            for attempt in range(1, ATTEMPTS_MAX + 1):
                try:
                    process = await self._warm()
                    began = loop.time()
                    try:
                        return await self._exchange(process, frame, graph, left_s)
                    finally:
                        left_s -= loop.time() - began
                except _ChildDied as died:
                    await self._end("died")
                    log.warning("solver child died (attempt %d of %d): %s", attempt, ATTEMPTS_MAX, died)
            raise SolverFailed(f"{ATTEMPTS_MAX} solver children died over this batch")

    async def _exchange(self, process: Process, frame: bytes, graph: CandidateGraph, left_s: float) -> Assignment:
        try:
            async with asyncio.timeout(left_s):
                answer = await _roundtrip(process, frame, self._frame_bytes_max)
        except TimeoutError:
            await self._end("overran")
            raise SolverFailed(f"no assignment of {len(graph.cost)} pairs within its limit of time") from None
        except BaseException:  # cancelled or out of step: nobody will read this child's answer
            self._kill()
            raise
        return _unpack_assignment(answer, graph)

    async def _warm(self) -> Process:
        if self._closed:
            raise SolverFailed("the solver is closed")
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self._end("ended")
        self._process = await _spawn()
        try:
            async with asyncio.timeout(self._start_s_max):
                await _read_frame(self._process, self._frame_bytes_max)  # its hello: imports are done
        except TimeoutError:
            await self._end("was slow to start")
            raise _ChildDied(f"no hello within {self._start_s_max} s") from None
        except BaseException:
            self._kill()
            raise
        return self._process

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _end(self, why: str) -> None:
        """Kills and reaps the present child, if there is one."""
        process = self._process
        if process is None:
            return
        self._kill()
        await _reap(process)
        self._process = None
        self.replaced += 1
        log.warning("solver child %d %s (status %s)", process.pid, why, process.returncode)

    async def close(self) -> None:
        """Ends the child; later calls raise SolverFailed."""
        self._closed = True
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await process.wait()
        except TimeoutError:
            process.kill()
        await _reap(process)


async def _spawn() -> Process:
    path = os.pathsep.join(part for part in (ROOT, os.environ.get("PYTHONPATH", "")) if part)
    command = (sys.executable, "-P", "-m", "matcher.solver", str(os.getpid()))
    try:
        return await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, env={**os.environ, "PYTHONPATH": path}
        )
    except OSError as error:
        raise SolverFailed(f"the solver cannot be started: {error}") from error


async def _reap(process: Process) -> None:
    """Waits for the end and lets go of the pipes, so that no transport is left open."""
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()
    if process.stdout is not None:
        while await process.stdout.read(65536):
            pass  # an answer that nobody waits for


async def _roundtrip(process: Process, frame: bytes, bytes_max: int) -> bytes:
    assert process.stdin is not None
    try:
        process.stdin.write(LENGTH.pack(len(frame)) + frame)
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _ChildDied("its input is closed") from error
    return await _read_frame(process, bytes_max)


async def _read_frame(process: Process, bytes_max: int) -> bytes:
    assert process.stdout is not None
    try:
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        if length > bytes_max:
            raise _ChildDied(f"it announced a frame of {length} bytes")
        return await process.stdout.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError) as error:
        raise _ChildDied("its output ended") from error


class _GraphFrame(msgspec.Struct):
    """A graph on the pipe; arrays are their bytes, little endian."""

    n_rides: int
    n_drivers: int
    ride: bytes
    driver: bytes
    cost: bytes
    unmatched: bytes


class _AnswerFrame(msgspec.Struct, omit_defaults=True):
    """An assignment, or the reason why there is none: a broken graph, or a failure."""

    driver_of: bytes = b""
    cost: float = 0.0
    u: bytes = b""
    v: bytes = b""
    greedy_cost: float = 0.0
    broken_graph: str = ""
    failed: str = ""


def _pack_graph(graph: CandidateGraph) -> bytes:
    frame = _GraphFrame(
        n_rides=graph.n_rides,
        n_drivers=graph.n_drivers,
        ride=graph.ride.astype("<i4").tobytes(),
        driver=graph.driver.astype("<i4").tobytes(),
        cost=graph.cost.astype("<f8").tobytes(),
        unmatched=graph.unmatched.astype("<f8").tobytes(),
    )
    return msgspec.msgpack.encode(frame)


def _unpack_graph(packed: bytes) -> CandidateGraph:
    frame = msgspec.msgpack.decode(packed, type=_GraphFrame)
    return CandidateGraph(
        frame.n_rides,
        frame.n_drivers,
        np.frombuffer(frame.ride, dtype="<i4"),
        np.frombuffer(frame.driver, dtype="<i4"),
        np.frombuffer(frame.cost, dtype="<f8"),
        np.frombuffer(frame.unmatched, dtype="<f8"),
    )


def _pack_assignment(assignment: Assignment) -> bytes:
    frame = _AnswerFrame(
        driver_of=assignment.driver_of.astype("<i4").tobytes(),
        cost=assignment.cost,
        u=assignment.u.astype("<f8").tobytes(),
        v=assignment.v.astype("<f8").tobytes(),
        greedy_cost=assignment.greedy_cost,
    )
    return msgspec.msgpack.encode(frame)


def _unpack_assignment(packed: bytes, graph: CandidateGraph) -> Assignment:
    frame = msgspec.msgpack.decode(packed, type=_AnswerFrame)
    if frame.broken_graph:
        raise BadGraph(frame.broken_graph)
    if frame.failed:
        raise SolverFailed(frame.failed)
    assignment = Assignment(
        np.frombuffer(frame.driver_of, dtype="<i4"),
        frame.cost,
        np.frombuffer(frame.u, dtype="<f8"),
        np.frombuffer(frame.v, dtype="<f8"),
        frame.greedy_cost,
    )
    if assignment.driver_of.shape != (graph.n_rides,) or assignment.v.shape != (graph.n_drivers,):
        raise SolverFailed("the solver answered another graph than it was given")
    return assignment


# The child's side.


def answer_of(frame: bytes) -> bytes:
    """The packed assignment of a packed graph, or why there is none."""
    try:
        return _pack_assignment(solve(_unpack_graph(frame)))
    except BadGraph as broken:
        return msgspec.msgpack.encode(_AnswerFrame(broken_graph=str(broken)))
    except (ValueError, MemoryError) as failed:  # msgspec's DecodeError is a ValueError
        return msgspec.msgpack.encode(_AnswerFrame(failed=f"{type(failed).__name__}: {failed}"))


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(int(arguments[0]))
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints goes to stderr, never between frames
    frames: queue.Queue[bytes] = queue.Queue(maxsize=1)
    threading.Thread(target=_read_into, args=(frames, sys.stdin.buffer), daemon=True).start()
    frame = msgspec.msgpack.encode({"hello": os.getpid()})
    with contextlib.suppress(BrokenPipeError):
        while True:
            sink.write(LENGTH.pack(len(frame)) + frame)
            sink.flush()
            frame = answer_of(frames.get())
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
