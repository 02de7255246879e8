"""Real Redis and MariaDB servers for measurements and tests: in temporary folders, on free loopback ports.

Nothing here is a mock. A server is a child of the process that started it, listens on
127.0.0.1 alone, keeps its data in its own temporary folder, and is ended by its
pid. Should that process be killed, the kernel ends the server (Linux); Ctrl-C
reaches only that process, which then stops its servers itself.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pymysql
import redis

from benchmarks.failures import NotMeasured
from benchmarks.service_child import NotStarted, free_port

__all__ = [
    "MariaServer",
    "RedisServer",
    "Server",
    "ServerMissing",
    "die_with_session",
    "find_program",
    "free_port",
    "fresh_database",
    "mysql_connection",
    "redis_client",
    "wait_until",
]

START_S_MAX = 45.0
STOP_S_MAX = 20.0
_PR_SET_PDEATHSIG = 1


class ServerMissing(NotMeasured):
    """A server's program is not installed; the text says what installs it."""


def wait_until(condition: Callable[[], bool], *, within_s: float, what: str) -> None:
    """Polls `condition` until it holds; raises TimeoutError naming `what` after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s:g} s")
        time.sleep(0.02)


def find_program(*names: str) -> str:
    """The path of the first of these programs that is installed (sbin folders included)."""
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"])
    for name in names:
        if found := shutil.which(name, path=search):
            return found
    raise ServerMissing(f"none of {', '.join(names)} is installed: run `make servers`, which installs what is missing")


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_session() -> Callable[[], None] | None:
    """For Popen's `preexec_fn`: the kernel ends the child when this process dies, even by SIGKILL."""
    libc = _libc()  # loaded before the fork
    # The kernel's signal follows the thread that forked: a pool's thread ends before the process does.
    if libc is None or threading.current_thread() is not threading.main_thread():
        return None

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask_the_kernel


class Server(ABC):
    """One server process and its temporary folder; the port stays the same over restarts."""

    name: str

    def __init__(self, *options: str) -> None:
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix=f"hexhail-{self.name}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def _command(self) -> Sequence[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises NotStarted, with its log, when it ends or does not."""
        if self.running:
            return
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                preexec_fn=die_with_session(),
            )
        try:
            wait_until(self._answers_or_ended, within_s=START_S_MAX, what=f"{self.name} answers")
        except TimeoutError as late:
            raise NotStarted(f"{late}:\n{self.log()[-4000:]}") from None
        if not self.running:
            raise NotStarted(f"{self.name} ended at its start:\n{self.log()[-4000:]}")

    def log(self) -> str:
        """What the server has written so far."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Asks the server to end in order, and waits for it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server at once, as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """A crash and a new start on the same port and folder."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stops the process where it stands: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Ends the server and deletes its folder; may be called again."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.remove)

    def _answers_or_ended(self) -> bool:
        return not self.running or self._answers()

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)  # a frozen process would not hear SIGTERM
        process.send_signal(how)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S_MAX)


class RedisServer(Server):
    """A Redis (or Valkey) without persistence; more of its command line as `options`."""

    name = "redis"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> Sequence[str]:
        program = find_program("redis-server", "valkey-server")
        base = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return [*base, "--save", "", "--appendonly", "no", *self.options]

    def _answers(self) -> bool:
        with contextlib.closing(redis_client(self.url)) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class MariaServer(Server):
    """A MariaDB whose commits are durable (`innodb_flush_log_at_trx_commit=1`) unless `options` say otherwise."""

    name = "mariadb"
    user = "hexhail"
    password = "hexhail"

    @property
    def url(self) -> str:
        return f"mysql+aiomysql://{self.user}:{self.password}@127.0.0.1:{self.port}/"

    def start(self) -> None:
        if not (self.folder / "data").exists():
            shutil.copytree(_maria_template(), self.folder / "data")
            (self.folder / "init.sql").write_text(
                f"CREATE USER IF NOT EXISTS '{self.user}'@'%' IDENTIFIED BY '{self.password}';\n"
                f"GRANT ALL PRIVILEGES ON *.* TO '{self.user}'@'%' WITH GRANT OPTION;\n"
            )
        super().start()

    def _command(self) -> Sequence[str]:
        return [
            find_program("mariadbd", "mysqld"),
            "--no-defaults",
            *_as_root(),
            f"--datadir={self.folder / 'data'}",
            f"--tmpdir={self.folder}",  # a server that starts clears what others keep in a shared one
            f"--socket={self.folder / 'sock'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--init-file={self.folder / 'init.sql'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-networking=0",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--max-connections=200",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=1",
            *self.options,
        ]

    def _answers(self) -> bool:
        try:
            mysql_connection(self.url).close()
        except pymysql.MySQLError:
            return False
        return True


def _as_root() -> list[str]:
    """MariaDB refuses to run as root unless told to."""
    return ["--user=root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


@functools.cache
def _maria_template() -> Path:
    """A freshly made data folder, made once a process and copied by each server."""
    folder = Path(tempfile.mkdtemp(prefix="hexhail-mariadb-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    install = find_program("mariadb-install-db", "mysql_install_db")
    command = [
        install,
        "--no-defaults",
        *_as_root(),
        f"--datadir={folder}",
        f"--tmpdir={folder}",
        "--auth-root-authentication-method=normal",
    ]
    _install([*command, "--skip-test-db"])
    return folder


def _install(command: Sequence[str]) -> None:
    """Runs it in a process group of its own, so that Ctrl-C does not spoil it; ends all of it when it is given up."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=die_with_session(),
    )
    try:
        said, _ = process.communicate(timeout=START_S_MAX)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise NotStarted(f"{command[0]} did not end within {START_S_MAX:g} s") from None
        raise
    if process.returncode != 0:
        raise NotStarted(f"{command[0]} failed:\n{said[-4000:]}")


def redis_client(url: str) -> redis.Redis:
    """A plain blocking client to look at, change or flush a Redis."""
    return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)


def mysql_connection(url: str) -> pymysql.Connection[pymysql.cursors.Cursor]:
    """A plain blocking connection (autocommit) to look at or change a database."""
    parts = urlsplit(url)
    return pymysql.connect(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 3306,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=parts.path.strip("/") or None,
        connect_timeout=5,
        read_timeout=30,
        write_timeout=30,
        autocommit=True,
    )


@contextlib.contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """The URL of a new, empty database on that server; dropped afterwards if the server still runs."""
    name = f"hexhail_{uuid.uuid4().hex[:12]}"
    parts = urlsplit(server_url)
    _execute(server_url, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        with contextlib.suppress(pymysql.MySQLError):
            _execute(server_url, f"DROP DATABASE IF EXISTS {name}")


def _execute(url: str, statement: str) -> None:
    with contextlib.closing(mysql_connection(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET lock_wait_timeout = 5")  # a leaked transaction must not hang whoever comes next
        cursor.execute(statement)
