"""`hexhail serve` as a child of the test session, as an operator would run it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from api.auth import Role, make_token
from tests.servers import die_with_session, wait_until

SECRET = "a secret that only the tests know, of 32 bytes and more"
READY_S_MAX = 40.0
END_S_MAX = 25.0


class ServiceProcess:
    """One `hexhail serve` with all that it starts, its output kept in `folder`."""

    def __init__(self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.arguments = arguments
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEXHAIL_")}
        self.environment = {
            **kept,
            "HEXHAIL_PORT": "0",
            "HEXHAIL_DATA_DIR": str(folder / "data"),
            "HEXHAIL_TOKEN_SECRET": SECRET,
            "HEXHAIL_DRAIN_S": "3",
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._family: dict[int, psutil.Process] = {}

    def start(self) -> None:
        """Starts it and waits until it says its address. Raises RuntimeError with its output when it ends instead."""
        self.spawn()
        wait_until(
            lambda: self.exit_code is not None or self._address is not None, within_s=READY_S_MAX, what="it listens"
        )
        if self._address is None:
            raise RuntimeError(f"the service ended with exit code {self.exit_code}:\n{self.output()}")

    def spawn(self) -> None:
        """Starts it and does not wait."""
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "api.cli", "serve", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
                preexec_fn=die_with_session(),
            )

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    @property
    def _address(self) -> str | None:
        found = re.search(r"address +(\S+)", self.output())
        return found[1] if found else None

    @property
    def url(self) -> str:
        address = self._address
        assert address is not None, "it has not said its address"
        return address

    def output(self) -> str:
        """Everything that it wrote, logs included."""
        return (self.folder / "output").read_text(errors="replace")

    def token(self, role: Role, subject: str) -> str:
        return make_token(SECRET.encode(), subject, role, ttl_s=600)

    def readiness(self) -> tuple[int, str]:
        """Status and body of /readyz; (0, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metrics(self) -> str:
        """What /metrics says."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    def wait_ready(self) -> None:
        """Until /readyz says ready, not merely degraded."""
        wait_until(lambda: '"ready"' in self.readiness()[1], within_s=READY_S_MAX, what="the service is ready")

    def family(self) -> list[psutil.Process]:
        """All processes that descend from it now; what was ever seen is remembered for `survivors`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                self._family[process.pid] = process
        return [process for process in self._family.values() if _lives(process)]

    def workers(self, role: str) -> list[psutil.Process]:
        """The supervisor's children of this role that live now."""
        return [process for process in self.family() if _role_of(process) == role]

    def survivors(self) -> list[int]:
        return [process.pid for process in self._family.values() if _lives(process)]

    def signal(self, how: signal.Signals) -> None:
        os.kill(self.pid, how)

    def wait_ended(self) -> int:
        """Its exit code, once it and all it started are gone."""
        assert self._process is not None, "not started"
        code = self._process.wait(END_S_MAX)
        wait_until(lambda: not self.survivors(), within_s=END_S_MAX, what="nothing of the service is left")
        return code

    def remove(self) -> None:
        """Kills whatever is left of it."""
        if self._process is None:
            return
        left = self.family()
        self._process.kill()
        self._process.wait()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _role_of(process: psutil.Process) -> str | None:
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    return command[command.index("--role") + 1] if "worker" in command and "--role" in command else None


@contextlib.contextmanager
def running(service: ServiceProcess) -> Iterator[ServiceProcess]:
    """Started, and removed whatever happens."""
    try:
        service.start()
        yield service
    finally:
        service.remove()
