"""A service as a child process, for whoever needs one for a while.

It gets a process group of its own, so that Ctrl-C reaches only its parent,
which ends it in order; should the parent be killed, the kernel ends it (Linux).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from api.client import DispatchClient
from benchmarks.failures import NotMeasured

START_S_MAX = 30.0
DRAIN_S = 5.0
#: Beyond the service's own drain.
STOP_S_MAX = 15.0
READY_EVERY_S = 0.5
_PR_SET_PDEATHSIG = 1
LOG_NAME = "service.log"


class NotStarted(NotMeasured):
    """The service did not come up; the text holds what it said."""


def free_port() -> int:
    """A loopback TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServiceChild:
    """`hexhail serve`, with its log in `data_dir` and, on the embedded default, all its data."""

    def __init__(
        self, data_dir: Path, port: int, secret: str, settings: Mapping[str, str], options: Sequence[str] = ()
    ) -> None:
        """`settings` are further settings by their environment names, `options` of `hexhail serve`."""
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{port}"
        self.database_url = f"sqlite+aiosqlite:///{data_dir.absolute() / 'hexhail.db'}"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HEXHAIL_")}
        self._environment |= {
            "HEXHAIL_HOST": "127.0.0.1",
            "HEXHAIL_PORT": str(port),
            "HEXHAIL_DATA_DIR": str(data_dir),
            "HEXHAIL_TOKEN_SECRET": secret,
            "HEXHAIL_DRAIN_S": f"{DRAIN_S:g}",
            "HEXHAIL_LOG_LEVEL": "warning",
        }
        self._environment |= settings
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.data_dir / LOG_NAME

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    async def start(self) -> None:
        """Returns when it takes requests. Raises NotStarted."""
        self._spawn()
        stop_at = time.monotonic() + START_S_MAX
        async with DispatchClient(self.url, "") as client:
            while not await client.wait_ready(READY_EVERY_S):
                if self.has_ended:
                    raise NotStarted(f"the service ended at once:\n{self.said()}")
                if time.monotonic() > stop_at:
                    raise NotStarted(f"the service was not ready within {START_S_MAX:g} s:\n{self.said()}")

    def _spawn(self) -> None:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "api.cli", "serve", *self._options],
                cwd=Path(__file__).resolve().parent.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )

    @property
    def pid(self) -> int:
        """Of `hexhail serve` itself. Raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("the service was not started")
        return self._process.pid

    async def stop(self) -> int | None:
        """Lets it drain, then ends it and whatever it started; its exit code."""
        process = self._process
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, DRAIN_S + STOP_S_MAX)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()
        return process.returncode

    def kill(self) -> None:
        """At once, with its whole process group; harmless when it has ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def said(self, lines_max: int = 30) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines_max:])
        except OSError:
            return ""


def die_with_parent() -> Callable[[], None] | None:
    """To be called in a child between fork and exec: the kernel ends it when its parent dies (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: the child only calls it

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask_kernel
