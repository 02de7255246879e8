"""How quiet the machine was while something was measured: what others used of it, and whether one had a core at will.

A child process looks once a second, so that nothing of it happens in the process that measures: CPU time of the
whole machine less that of the measuring tree (whoever measures and all that it started) is what others used. A
spin before and after compares CPU time with wall time: less than all of it, and others stood in line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.rounds import rounded

LOOK_EVERY_S = 1.0
SPIN_S = 0.3
SPINS = 6
#: Beyond these the machine was busy elsewhere.
ELSEWHERE_SHARE_MAX = 0.05
SPIN_SHARE_MIN = 0.9
END_S_MAX = 10.0
#: How much the core's own speed may have changed from the start to the end.
SPEED_CHANGE_MAX = 0.25


@dataclass(frozen=True, slots=True)
class Quiet:
    """`elsewhere_cores`: mean CPU that others used; `spin_share`: CPU time a wall second of the worse spin;
    `speed_change`: how many more turns a CPU-second the faster spin made."""

    elsewhere_cores: float
    stolen_cores: float
    cores: int
    seconds: float
    spin_share: float
    speed_change: float

    def complaints(self) -> list[str]:
        found = []
        if self.elsewhere_cores + self.stolen_cores > ELSEWHERE_SHARE_MAX * self.cores:
            others = f"others used {self.elsewhere_cores:.2f} of {self.cores} cores"
            found.append(others + (f", {self.stolen_cores:.2f} were stolen" if self.stolen_cores else ""))
        if self.spin_share < SPIN_SHARE_MIN:
            found.append(f"a spin got {self.spin_share:.0%} of a core")
        if self.speed_change > SPEED_CHANGE_MAX:
            found.append(f"a core's speed changed by {self.speed_change:.0%}")
        return found

    def as_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {name: rounded(value) for name, value in asdict(self).items()}
        return figures | {"busy_elsewhere": bool(self.complaints())}


@dataclass(frozen=True, slots=True)
class Spin:
    """`turns_a_cpu_s` is how fast a core is, `share` the CPU time a wall second."""

    share: float
    turns_a_cpu_s: float


def spin(seconds: float = SPIN_S) -> Spin:
    """Works as fast as one core lets it, for `seconds` of wall time; the fastest of its parts says how fast that is."""
    parts = [_spin(seconds / SPINS) for _ in range(SPINS)]
    return Spin(sum(each.share for each in parts) / SPINS, max(each.turns_a_cpu_s for each in parts))


def _spin(seconds: float) -> Spin:
    turns, wall_s, cpu_s = 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() - wall_s < seconds:
        sum(range(1000))
        turns += 1
    wall_s, cpu_s = time.perf_counter() - wall_s, time.thread_time() - cpu_s
    return Spin(cpu_s / wall_s, turns / cpu_s)


class Watch:
    """From `start` to `stop`."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._before = Spin(1.0, 1.0)

    def start(self) -> None:
        self._before = spin()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.quiet", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def stop(self) -> Quiet | None:
        """None when nothing could be counted."""
        child, self._child = self._child, None
        if child is None:
            return None
        counted = _last_word(child)
        if counted is None:
            return None
        after = spin()
        speeds = sorted((self._before.turns_a_cpu_s, after.turns_a_cpu_s))
        return Quiet(
            **counted,
            cores=os.cpu_count() or 1,
            spin_share=min(self._before.share, after.share),
            speed_change=speeds[1] / speeds[0] - 1.0,
        )


def _last_word(child: subprocess.Popen[str]) -> dict[str, float] | None:
    try:
        said, _ = child.communicate("", timeout=END_S_MAX)  # the end of its input is the end of the watch
        counted: dict[str, float] = json.loads(said)
        return counted
    except (subprocess.TimeoutExpired, ValueError):
        return None
    finally:
        child.kill()
        child.wait()


class _Tree:
    """CPU-seconds of a process and everything it started, what has ended meanwhile included as last seen."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[tuple[int, float], float] = {}

    def cpu_s(self) -> float:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in (self._root, *self._root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    times = each.cpu_times()
                    self._seen[each.pid, each.create_time()] = times.user + times.system
        return sum(self._seen.values())


def _machine_cpu_s() -> tuple[float, float]:
    """Used by processes, and stolen by the host. Interrupts are nobody's, and so are left out."""
    times = psutil.cpu_times()
    return times.user + getattr(times, "nice", 0.0) + times.system, getattr(times, "steal", 0.0)


def watch(pid: int, ended: threading.Event) -> dict[str, float]:
    """Counts until `ended`."""
    tree = _Tree(pid)
    began_s, tree_s, (used_s, stolen_s) = time.monotonic(), tree.cpu_s(), _machine_cpu_s()
    while not ended.wait(LOOK_EVERY_S):
        tree.cpu_s()
    wall_s = time.monotonic() - began_s
    own_s, (used_now_s, stolen_now_s) = tree.cpu_s() - tree_s, _machine_cpu_s()
    cores = os.cpu_count() or 1  # the kernel counts in ticks: over a moment they could be more than all there is
    return {
        "elsewhere_cores": min(cores, max(0.0, used_now_s - used_s - own_s) / wall_s),
        "stolen_cores": min(cores, max(0.0, stolen_now_s - stolen_s) / wall_s),
        "seconds": wall_s,
    }


def _main(pid: int) -> None:
    """Until standard input ends, as it also does when whoever measures dies."""
    ended = threading.Event()

    def await_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=await_the_end, daemon=True).start()
    print(json.dumps(watch(pid, ended)))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
