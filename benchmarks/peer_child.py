"""The bare aiohttp server (benchmarks.peer_server) as a child process."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.servers import die_with_session
from benchmarks.service_child import NotStarted

START_S_MAX = 30.0
STOP_S_MAX = 5.0
_LISTENING = b"listening on "


class PeerServer:
    """Serves from `start` to `stop`; its port is found by the system."""

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("the peer was not started")
        return self._process.pid

    def start(self) -> Self:
        """Returns when it takes requests. Raises NotStarted."""
        self.spawn()
        self.wait_ready()
        return self

    def spawn(self) -> None:
        """Begins to start it, and does not wait."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peer_server", "0"],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with_session(),
        )

    def wait_ready(self) -> None:
        """Returns when it takes requests. Raises NotStarted."""
        line = self._first_line(time.monotonic() + START_S_MAX)
        if not line.startswith(_LISTENING):
            self.stop()
            raise NotStarted(f"the bare server did not say where it listens but {line!r}")
        self.port = int(line.removeprefix(_LISTENING))

    def _first_line(self, stop_at_s: float) -> bytes:
        """What it says first; empty when it ended, or said nothing in time."""
        assert self._process is not None
        output = self._process.stdout
        assert output is not None
        ready, _, _ = select.select([output], [], [], max(0.0, stop_at_s - time.monotonic()))
        return output.readline() if ready else b""

    def counts(self) -> dict[str, int]:
        """What it has decoded so far: frames, positions; and the sockets that are open."""
        with urllib.request.urlopen(f"{self.url}/counts", timeout=10.0) as answer:
            counts: dict[str, int] = json.load(answer)
        return counts

    def stop(self) -> None:
        """Ends it, by its pid; harmless when it has ended."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(OSError):
            if process.stdout is not None:
                process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
