"""The supervisor and small real processes: restarts, the drain, hurry, and its own death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from api.supervisor import (
    BACKOFF_S_MAX,
    EXIT_UNUSABLE,
    STEADY_S,
    Backoff,
    Child,
    StopSignals,
    Supervisor,
    how_it_ended,
    reserve,
)
from tests.servers import wait_until

WITHIN_S = 15.0
#: Says that it serves, then does as its argument says.
CHILD = """
import os, signal, sys, time
settings = sys.stdin.readline()
how, folder = sys.argv[1:]
if how == "unusable":
    sys.exit(2)
def told(number, frame):
    open(os.path.join(folder, f"told-{os.getpid()}"), "w").write(settings)
    if how != "deaf":
        sys.exit(0)
signal.signal(signal.SIGTERM, told)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("started", flush=True)
if how == "dying":
    sys.exit(3)
while True:
    time.sleep(0.05)
"""


def _child(how: str, folder: Path, name: str = "child") -> Child:
    return Child(name, [sys.executable, "-c", CHILD, how, str(folder)])


class Running:
    """A supervisor in this loop, stopped at the end of the test whatever happens."""

    def __init__(self, children: list[Child], drain_s: float = 5.0) -> None:
        self.children = children
        self.started = asyncio.Event()
        self.supervisor = Supervisor(children, '{"x": 1}', drain_s=drain_s, on_started=self.started.set)
        self.task = asyncio.create_task(self.supervisor.run())

    @property
    def pids(self) -> list[int]:
        return [child.process.pid for child in self.children if child.process is not None]


@contextlib.asynccontextmanager
async def _running(*children: Child, drain_s: float = 5.0) -> AsyncIterator[Running]:
    running = Running(list(children), drain_s)
    try:
        async with asyncio.timeout(WITHIN_S):
            yield running
    finally:
        running.supervisor.stop()
        running.supervisor.stop()
        await running.task
    assert not [pid for pid in running.pids if psutil.pid_exists(pid)]


async def test_children_are_told_their_settings_and_end_on_one_signal(tmp_path: Path) -> None:
    async with _running(_child("ok", tmp_path, "a"), _child("ok", tmp_path, "b")) as running:
        await running.started.wait()
        pids = running.pids
        running.supervisor.stop()
        assert await running.task == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"told-{pid}" for pid in pids)
    assert {path.read_text() for path in tmp_path.iterdir()} == {'{"x": 1}\n'}


async def test_a_killed_child_is_replaced_and_its_neighbour_left_alone(tmp_path: Path) -> None:
    first, second = _child("ok", tmp_path, "a"), _child("ok", tmp_path, "b")
    async with _running(first, second) as running:
        await running.started.wait()
        killed, other = running.pids
        os.kill(killed, signal.SIGKILL)
        while running.pids[0] == killed or not psutil.pid_exists(running.pids[0]):
            await asyncio.sleep(0.02)
        assert running.pids[1] == other
        assert running.supervisor.restarts == 1


async def test_a_child_that_cannot_run_at_all_ends_the_service(tmp_path: Path) -> None:
    async with _running(_child("unusable", tmp_path), _child("ok", tmp_path)) as running:
        assert await running.task == EXIT_UNUSABLE


async def test_a_child_that_keeps_dying_is_restarted_ever_more_slowly(tmp_path: Path) -> None:
    async with _running(_child("dying", tmp_path)) as running:
        while running.supervisor.restarts < 3:
            await asyncio.sleep(0.02)
        assert not running.task.done()


async def test_a_child_that_does_not_drain_is_killed(tmp_path: Path) -> None:
    async with _running(_child("deaf", tmp_path), drain_s=0.0) as running:
        await running.started.wait()
        running.supervisor.stop()
        assert await running.task == 0


async def test_a_second_signal_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    async with _running(_child("deaf", tmp_path), drain_s=600.0) as running:
        await running.started.wait()
        running.supervisor.stop()
        await asyncio.sleep(0.1)
        assert not running.task.done()
        running.supervisor.stop()
        assert await running.task == 0


async def test_a_stop_while_children_are_starting_leaves_none(tmp_path: Path) -> None:
    async with _running(_child("ok", tmp_path), _child("ok", tmp_path)) as running:
        await asyncio.sleep(0)
        running.supervisor.stop()
        assert await running.task == 0


def test_backoff_doubles_to_its_limit_and_starts_again_after_a_steady_life() -> None:
    backoff = Backoff()
    waits = [backoff.after(0.0) for _ in range(10)]
    assert waits[:3] == [0.1, 0.2, 0.4]
    assert waits[-1] == BACKOFF_S_MAX
    assert backoff.after(STEADY_S) == 0.1


def test_a_signal_that_arrives_twice_at_once_counts_once() -> None:
    signals = StopSignals()
    assert [signals.is_new(now_s) for now_s in (10.0, 10.01, 11.0, 11.2)] == [True, False, True, False]


def test_an_end_is_named_in_words() -> None:
    assert how_it_ended(-9) == "was ended by SIGKILL"
    assert how_it_ended(3) == "ended with exit code 3"


def test_a_reserved_port_can_be_shared_but_not_taken() -> None:
    held, port = reserve("127.0.0.1", 0)
    try:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                worker.accept()[0].close()
    finally:
        for each in held:
            each.close()


def test_a_port_where_somebody_listens_cannot_be_reserved() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(OSError, match="in use"):
            reserve("127.0.0.1", listener.getsockname()[1])


#: Ends when its standard input ends, as api.worker does.
ORPHAN = """
import os, sys
sys.stdin.readline()
print("started", flush=True)
while os.read(0, 1):
    pass
"""
SUPERVISOR = """
import asyncio, sys
from api.supervisor import Child, Supervisor
def ready():
    print(*(child.process.pid for child in children), flush=True)
children = [Child(name, [sys.executable, "-c", sys.argv[1]]) for name in "ab"]
async def main():
    await Supervisor(children, "{}", drain_s=1, on_started=ready).run()
asyncio.run(main())
"""


@pytest.mark.chaos
def test_children_learn_of_the_supervisors_death() -> None:
    with subprocess.Popen([sys.executable, "-c", SUPERVISOR, ORPHAN], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(pid) for pid in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        supervisor.kill()
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), within_s=WITHIN_S, what="no child is left")
