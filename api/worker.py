"""One process of the service, from its first signal handler to its last: builds it, runs it, drains it.

Runs either by itself (embedded, or one role by hand) or under the supervisor,
which hands over the settings on standard input and keeps it open: when it ends,
the supervisor is gone and this process drains and ends too. The kernel's
PR_SET_PDEATHSIG is not used: it would arrive beside that and count as hurry.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from api import service
from api.heap import bound_the_heap
from api.supervisor import KILL_AFTER_DRAIN_S, STARTED, StopSignals
from api.telemetry import configure_logging
from config.settings import Role, Settings

EXIT_HURRIED = 130
#: Python's 700 allocations between collections suit a script. A service holds some hundred
#: objects a socket for hours, which each full collection looks at again.
GC_THRESHOLDS = (20_000, 20, 20)
Beside = Callable[[], Coroutine[Any, Any, None]]


def run_alone(settings: Settings, role: Role, on_started: Callable[[int], None], beside: Beside | None = None) -> int:
    """Serves in this process until SIGTERM or Ctrl-C; the exit code. Raises what kept the service from starting.

    `on_started` gets the port. `beside` runs along, and is cancelled at the end.
    """
    return _run(_Process(settings, role, supervised=False, on_started=on_started), beside)


def run_supervised(role: Role) -> int:
    """Serves under the supervisor, whose settings arrive on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the supervisor decides
    hello = _first_line(0)
    if not hello:
        return 0  # the supervisor ended before it said anything
    settings = Settings.from_json(hello)
    configure_logging(settings.log_level, settings.log_format)
    return _run(_Process(settings, role, supervised=True, on_started=_say_started))


def _first_line(descriptor: int) -> bytes:
    """Read without a buffer behind it: the descriptor is watched afterwards."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = os.read(descriptor, 65_536)
        if not part:
            return b""
        line += part
    return bytes(line)


def _say_started(_port: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, STARTED + b"\n")


class _Process:
    """The life of one process around one service."""

    def __init__(self, settings: Settings, role: Role, *, supervised: bool, on_started: Callable[[int], None]) -> None:
        self._settings = settings
        self._role = role
        self._supervised = supervised
        self._on_started = on_started
        self._patience_s = settings.drain_s + KILL_AFTER_DRAIN_S
        self._signals = StopSignals()
        self._stop = asyncio.Event()

    async def live(self, beside: Beside | None) -> int:
        self._hear_signals(asyncio.get_running_loop())
        companion = asyncio.create_task(beside()) if beside is not None else None
        try:
            return await service.serve(
                self._settings,
                self._role,
                stopping=self._stop,
                reuse_port=self._supervised,
                on_started=self._on_started,
            )
        finally:
            if companion is not None:
                companion.cancel()
                await asyncio.gather(companion, return_exceptions=True)

    def _hear_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_signal_handler(signal.SIGTERM, self._told_to_stop)
        if self._supervised:
            threading.Thread(target=self._watch_supervisor, args=(loop,), name="supervisor", daemon=True).start()
        else:
            loop.add_signal_handler(signal.SIGINT, self._told_to_stop)

    def _told_to_stop(self) -> None:
        is_new = self._signals.is_new(time.monotonic())
        if self._stop.is_set() and is_new and not self._supervised:
            sys.stderr.write("hexhail: ended without waiting for the drain\n")
            os._exit(EXIT_HURRIED)
        self._stop.set()

    def _watch_supervisor(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own, so that a loop that hangs does not outlive the supervisor."""
        while os.read(0, 4096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending anyway
            loop.call_soon_threadsafe(self._stop.set)
        time.sleep(self._patience_s)
        os._exit(1)


def _run(process: _Process, beside: Beside | None = None) -> int:
    bound_the_heap()
    gc.freeze()  # what the imports made stays for good: no collection needs to look at it again
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(process.live(beside))


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for this platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
