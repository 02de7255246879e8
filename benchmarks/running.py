"""The frame around a run's event loop: Ctrl-C and SIGTERM end it in order, a second one at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from api.worker import GC_THRESHOLDS

T = TypeVar("T")

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. Raises KeyboardInterrupt when a second signal ended it."""
    raise_file_limit()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


@contextlib.contextmanager
def signals(on_first: Callable[[], None]) -> Iterator[None]:
    """Within a running loop: the first signal calls `on_first`, a second cancels the task that stands here."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    asked = False

    def heard() -> None:
        nonlocal asked
        if asked and task is not None:
            task.cancel()
        asked = True
        on_first()

    for each in SIGNALS:
        loop.add_signal_handler(each, heard)
    try:
        yield
    finally:
        for each in SIGNALS:
            loop.remove_signal_handler(each)


def raise_file_limit() -> None:
    """As many open files as the system lets us have: every driver is a socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # where it does not run
        return None
    return uvloop.new_event_loop
