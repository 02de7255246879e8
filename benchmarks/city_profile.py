"""Where a running city's processes spend their time, by py-spy, where that is installed and allowed to look.

Looking costs some CPU itself, which is why it has to be asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROLES = ("api", "matcher")
RATE_PER_S = 100
TOP = 25
#: Writing down what was seen takes its time on a busy machine.
BESIDE_S_MAX = 30.0
#: (function, its own share, its share with all that it called)
Line = tuple[str, float, float]


class Profile:
    """Of the first process of each role, for `seconds` from `start` on; nothing at all of 0 seconds."""

    def __init__(self, pids: Mapping[str, Sequence[int]], seconds: float) -> None:
        self._pids = {role: pids[role][0] for role in ROLES if pids.get(role)}
        self._seconds = seconds
        self._tasks: dict[str, asyncio.Task[list[Line]]] = {}

    def start(self) -> None:
        program = _py_spy()
        if self._seconds > 0 and program is not None:
            for role, pid in self._pids.items():
                self._tasks[role] = asyncio.create_task(_sampled(program, pid, self._seconds))

    async def result(self) -> dict[str, list[Line]]:
        """By role; empty where nobody was allowed to look."""
        return {role: await task for role, task in self._tasks.items()}


def _py_spy() -> str | None:
    return shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))


async def _sampled(program: str, pid: int, seconds: float) -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="hexhail-profile-") as name:
        path = Path(name) / "stacks"
        words = ["record", "-p", str(pid), "-d", f"{max(1, round(seconds))}", "-r", str(RATE_PER_S)]
        words += ["--format", "raw", "--gil"]  # else a thread that waits in a call counts as one that works
        process = await asyncio.create_subprocess_exec(
            program, *words, "-o", str(path), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds + BESIDE_S_MAX):
                    await process.wait()
        finally:
            if process.returncode is None:
                await _end(process)
        return lines_of(path.read_text(encoding="utf-8").splitlines()) if path.exists() else []


async def _end(process: Process) -> None:
    process.kill()
    await process.wait()


def lines_of(stacks: Iterable[str]) -> list[Line]:
    """From py-spy's raw format, `outermost;...;innermost count` a line: the functions that cost most by themselves."""
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = [_name(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    total = own.total() or 1
    return [(name, count / total, within[name] / total) for name, count in own.most_common(TOP)]


def _name(frame: str) -> str:
    """`take (/somewhere/api/positions.py:171)` as `take (api/positions.py)`: lines of one function are one."""
    function, _, place = frame.partition(" (")
    path = place.rstrip(")").rpartition(":")[0] or place.rstrip(")")
    return f"{function} ({'/'.join(path.split('/')[-2:])})" if path else function
