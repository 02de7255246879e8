"""What a process has used: CPU time and memory, read from outside it, and which process it is."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import psutil

#: The words of a command line that name no role.
_INTERPRETER = frozenset({"-m", "-c", "-I", "-E", "-X", "-u"})


def cpu_s(pid: int, *, children: bool = False) -> float:
    """CPU-seconds all threads of a process have used so far; with `children`, its living descendants' too.

    On Linux to the nanosecond, elsewhere in steps of some milliseconds. A process that has ended counts for nothing.
    Raises ProcessLookupError when `pid` itself has.
    """
    own = _cpu_s(pid)
    return own + sum(_cpu_s_or_nothing(each) for each in children_of(pid)) if children else own


def rss_bytes(pid: int) -> int:
    """Resident memory, pages shared with others included."""
    return int(_process(pid).memory_info().rss)


def uss_bytes(pid: int) -> int:
    """Memory that is this process's alone: what ending it would free. Slower than `rss_bytes`."""
    return int(_process(pid).memory_full_info().uss)


def children_of(pid: int) -> list[int]:
    """All living descendants, parents before their children."""
    try:
        return [each.pid for each in _process(pid).children(recursive=True)]
    except (psutil.NoSuchProcess, ProcessLookupError):
        return []


def role_of(pid: int) -> str:
    """Its command line without interpreter and options' dashes: `api.cli serve`, `redis-server`; "" when it ended."""
    try:
        words = psutil.Process(pid).cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""
    if words and Path(words[0]).name.startswith("python"):
        words = [each for each in words[1:] if each not in _INTERPRETER]
    return " ".join([Path(words[0]).name, *words[1:]]) if words else ""


def _process(pid: int) -> psutil.Process:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        raise ProcessLookupError(f"no process {pid}") from None


def _cpu_s(pid: int) -> float:
    """By the process's CPU clock, which others may read (clock_getcpuclockid(3)): its number is made of the pid,
    inverted, and the kind of clock, CPUCLOCK_SCHED.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # it has ended, or others' clocks are not to be read here
            return time.clock_gettime((~pid << 3) | 2)
    return _ticks_s(pid)


def _ticks_s(pid: int) -> float:
    try:
        times = _process(pid).cpu_times()
    except psutil.NoSuchProcess:
        raise ProcessLookupError(f"no process {pid}") from None
    return float(times.user + times.system)


def _cpu_s_or_nothing(pid: int) -> float:
    with contextlib.suppress(ProcessLookupError, psutil.AccessDenied):
        return _cpu_s(pid)
    return 0.0
