"""A load generator as a child process (see benchmarks.load_agent): start it, call its methods, stop it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from types import TracebackType
from typing import Any, Self

from benchmarks.failures import NotMeasured
from benchmarks.load_agent import LINE_BYTES_MAX
from benchmarks.machine import ROOT
from benchmarks.service_child import die_with_parent

CALL_S_MAX = 120.0
STOP_S_MAX = 5.0


class LoadFailed(NotMeasured):
    """The child could not do what it was asked to; the text is its own."""


class LoadChild:
    """`target` is MODULE:CLASS; the class needs no argument, and its coroutine methods take and return plain JSON.

    Calls of one child are made one after the other.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._process: Process | None = None
        self._calling = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("the load was not started")
        return self._process.pid

    async def start(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.load_agent",
            self._target,
            cwd=ROOT,
            stdin=PIPE,
            stdout=PIPE,
            limit=LINE_BYTES_MAX,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        return self

    async def call(self, name: str, *, answer_s_max: float = CALL_S_MAX, **arguments: Any) -> Any:
        """What the method returned. Raises LoadFailed; where it did not answer in time the child is of no more use."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise LoadFailed(f"{self._target} was not started")
        try:
            async with self._calling, asyncio.timeout(answer_s_max):
                with contextlib.suppress(ConnectionError):  # it has ended: what it said last tells more
                    process.stdin.write(json.dumps({"call": name, "with": arguments}).encode() + b"\n")
                    await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError:
            raise LoadFailed(f"{self._target}.{name}: no answer within {answer_s_max:g} s") from None
        answer = json.loads(line) if line else {"failed": "the process has ended"}
        if "failed" in answer:
            raise LoadFailed(f"{self._target}.{name}: {answer['failed']}")
        return answer["result"]

    async def stop(self) -> None:
        """Ends it; harmless when it has ended."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_S_MAX)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
