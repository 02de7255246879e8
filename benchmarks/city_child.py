"""The load generator (benchmarks.city_load) as a child process: told what to do, asked what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.city_options import CityOptions, Step
from benchmarks.failures import NotMeasured
from benchmarks.service_child import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
SIGN_ON_S_MAX = 120.0
#: Beyond the stretch itself.
ANSWER_S_MAX = 60.0
END_S_MAX = 10.0


class LoadEnded(NotMeasured):
    """The load generator ended, or did not answer in time; the text has what it said last."""


class LoadChild:
    """Started by `start`, ended by `stop`."""

    def __init__(self, options: CityOptions, log: Path) -> None:
        self._options = options
        self._log = log
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Raises RuntimeError before the start."""
        if self._process is None:
            raise RuntimeError("the load generator was not started")
        return self._process.pid

    async def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "benchmarks.city_load",
                cwd=ROOT,
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                limit=1 << 24,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        await self._say(asdict(self._options))

    async def sign_on(self) -> dict[str, Any]:
        """All drivers. Raises LoadEnded."""
        await self._say({"do": "sign_on"})
        return await self._hear(SIGN_ON_S_MAX)

    async def run(self, step: Step, *, began: Callable[[], None], over: Callable[[], None]) -> dict[str, Any]:
        """One stretch; `began` is called with its first ride, `over` after its last. Raises LoadEnded."""
        await self._say({"do": "run", **asdict(step)})
        for call in (began, over):
            await self._hear(step.warm_s + step.seconds + ANSWER_S_MAX)
            call()
        return await self._hear(step.seconds + ANSWER_S_MAX)

    async def finish(self, path: Path) -> dict[str, Any]:
        """Runs out and writes to `path` what was seen. Raises LoadEnded."""
        await self._say({"do": "finish", "path": str(path)})
        return await self._hear(ANSWER_S_MAX)

    async def _say(self, what: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            raise LoadEnded(self._said()) from None

    async def _hear(self, within_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise LoadEnded(f"the load generator did not answer within {within_s:g} s: {self._said()}") from None
        if not line:
            raise LoadEnded(f"the load generator ended: {self._said()}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    async def stop(self) -> None:
        """Ends it, by its pid; harmless when it has ended."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(END_S_MAX):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
