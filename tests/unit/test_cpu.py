"""CPU time is read from outside a process as exactly as from within, all threads and living children included."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.cpu import children_of, cpu_s

WORK = "sum(range(3_000_000))"


def test_the_cpu_clock_of_a_process_is_the_one_that_it_reads_itself() -> None:
    before_s = time.process_time()
    read_s = cpu_s(os.getpid())
    slack_s = 0.0 if sys.platform == "linux" else 0.02
    assert before_s - slack_s <= read_s <= time.process_time() + slack_s


def test_the_work_of_a_thread_counts_also_when_that_has_ended() -> None:
    used_s: list[float] = []

    def work() -> None:
        sum(range(3_000_000))
        used_s.append(time.thread_time())

    before_s = cpu_s(os.getpid())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert cpu_s(os.getpid()) - before_s >= used_s[0] * 0.9


def test_children_count_where_they_are_asked_for_and_who_has_ended_is_not_there() -> None:
    before_s = cpu_s(os.getpid())
    script = f"import sys, time; {WORK}; print(time.process_time(), flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    own_s = float(child.stdout.readline())
    assert child.pid in children_of(os.getpid())
    assert cpu_s(child.pid) >= own_s * 0.9
    assert cpu_s(os.getpid(), children=True) >= before_s + own_s * 0.9
    child.communicate("")
    with pytest.raises(ProcessLookupError):
        cpu_s(child.pid)
