"""Keeps the processes of one service running: restarts what died, and ends them all together.

A child is told its settings over its standard input, which stays open: its end
tells the child that the supervisor is gone, however that came about, on every
platform. A child answers with one line, `started`, when it serves. This module
knows processes and signals; what a child does is not its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import signal
import socket
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

log = logging.getLogger("hexhail.supervisor")

#: A child that ends so before it ever served cannot be helped by starting another.
EXIT_UNUSABLE = 2
STARTED = b"started"
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 5.0
#: A child that lived so long had started well: the next restart is quick again.
STEADY_S = 30.0
KILL_AFTER_DRAIN_S = 2.0
#: One stop may be signalled twice, to a process and to its group (`timeout` does so): no sign of impatience yet.
ECHO_S = 0.5


@dataclass(slots=True)
class StopSignals:
    """Tells a second Ctrl-C from the echo of the first."""

    _last_s: float = -math.inf

    def is_new(self, now_s: float) -> bool:
        """Whether the signal that arrived now, by a monotonic clock, was meant as one of its own."""
        is_new = now_s - self._last_s >= ECHO_S
        self._last_s = now_s
        return is_new


@dataclass(slots=True)
class Backoff:
    """How long to wait before a restart: quick at first, doubling while children die young."""

    _next_s: float = BACKOFF_S_MIN

    def after(self, lived_s: float) -> float:
        """Seconds to wait, given how long the last child lived."""
        delay_s = BACKOFF_S_MIN if lived_s >= STEADY_S else self._next_s
        self._next_s = min(delay_s * 2, BACKOFF_S_MAX)
        return delay_s


@dataclass(slots=True)
class Child:
    """One place to be filled with a process, again and again."""

    name: str
    command: Sequence[str]
    process: Process | None = None
    served: bool = False
    backoff: Backoff = field(default_factory=Backoff)

    def send(self, how: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(how)


class Supervisor:
    """Runs `children` until told to stop. `settings_json` is what each reads first.

    `on_started` is called once, when every child serves. `drain_s` is how long
    the children may take to end after SIGTERM; two seconds later they are killed.
    """

    def __init__(
        self, children: Sequence[Child], settings_json: str, *, drain_s: float, on_started: Callable[[], None]
    ) -> None:
        self._children = children
        self._hello = settings_json.encode() + b"\n"
        self._patience_s = drain_s + KILL_AFTER_DRAIN_S
        self._on_started = on_started
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._killing = False
        self._announced = False
        self.exit_code = 0
        self.restarts = 0

    def stop(self) -> None:
        """Ends everything: the first call lets the children drain, the second kills them."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(self) -> int:
        """Returns the exit code once every child has ended."""
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        told = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([told, *keepers], return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            await self._drain(keepers)
        finally:
            told.cancel()
            self._kill()
        await asyncio.gather(*keepers)
        return self.exit_code

    async def _drain(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Asks every child to end and gives it time, unless hurried."""
        for child in self._children:
            child.send(signal.SIGTERM)
        hurried = asyncio.create_task(self._hurry.wait())
        ended = asyncio.create_task(asyncio.wait(keepers))
        done, _ = await asyncio.wait([hurried, ended], timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not done:
            log.warning("not all processes ended within %.0f s: they are killed", self._patience_s)

    def _kill(self) -> None:
        self._killing = True
        for child in self._children:
            child.send(signal.SIGKILL)

    async def _keep(self, child: Child) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stopping.is_set():
            began = clock()
            code = await self._live(child)
            if self._stopping.is_set():
                return
            if code == EXIT_UNUSABLE and not child.served:
                self.exit_code = EXIT_UNUSABLE  # it has said why
                self._stopping.set()
                return
            delay_s = child.backoff.after(clock() - began)
            self.restarts += 1
            log.warning("%s %s; another starts in %.1f s", child.name, how_it_ended(code), delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _live(self, child: Child) -> int:
        """One process from start to end; its exit code."""
        try:
            process = await asyncio.create_subprocess_exec(*child.command, stdin=PIPE, stdout=PIPE)
        except OSError as error:  # no memory or no process left, for now
            log.error("%s cannot be started: %s", child.name, error)
            return 1
        child.process = process
        if self._stopping.is_set():  # it was being started when the others were told
            child.send(signal.SIGKILL if self._killing else signal.SIGTERM)
        listening = asyncio.create_task(self._listen(child, process))
        try:
            await self._tell(process)
            return await process.wait()
        finally:
            listening.cancel()

    async def _tell(self, process: Process) -> None:
        if process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(self._hello)
                await process.stdin.drain()

    async def _listen(self, child: Child, process: Process) -> None:
        """Reads what the child says until its output ends."""
        if process.stdout is None:
            return
        while said := await process.stdout.read(1024):
            if STARTED in said:
                child.served = True
                log.info("%s serves (pid %d)", child.name, process.pid)
                self._announce()

    def _announce(self) -> None:
        if not self._announced and all(child.served for child in self._children):
            self._announced = True
            self._on_started()


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def reserve(host: str, port: int) -> tuple[list[socket.socket], int]:
    """Holds the address for processes that will share it, and finds the port where it is 0.

    The sockets are bound but never listen, so that they take no connection.
    Raises OSError (EADDRINUSE) when another program listens there.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    held: list[socket.socket] = []
    try:
        for family, address in addresses:
            where = (address[0], port, *address[2:])
            with _bound(family, where, shared=False) as probe:  # fails where anybody listens, sharing or not
                port = probe.getsockname()[1]
            held.append(_bound(family, (address[0], port, *address[2:]), shared=True))
    except BaseException:
        for each in held:
            each.close()
        raise
    return held, port


def _bound(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def is_in_use(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE
