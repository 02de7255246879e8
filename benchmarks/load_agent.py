"""The process of a load: python -m benchmarks.load_agent MODULE:CLASS, commanded by benchmarks.load_child.

A load generator in a process of its own neither waits for the measuring one nor makes it wait. The agent makes one
object of the class, and calls its coroutine methods as asked: a line of JSON comes in on standard input
({"call": name, "with": {arguments}}), a line goes out ({"result": ...} or {"failed": text}), one after the other.
What the object prints goes to standard error. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import traceback
from typing import Any

from benchmarks.running import run

LINE_BYTES_MAX = 64 << 20


async def serve(target: Any) -> None:
    """Answers calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    try:
        while line := await reader.readline():
            answers.write(json.dumps(await _answer(target, json.loads(line))).encode() + b"\n")
            answers.flush()
    finally:
        transport.close()
        answers.close()


async def _answer(target: Any, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": await getattr(target, asked["call"])(**asked["with"])}
    except Exception as error:  # noqa: BLE001 - whatever it is, the one who asked hears of it
        return {"failed": f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"}


async def main(name: str) -> None:
    module, _, kind = name.partition(":")
    await serve(getattr(importlib.import_module(module), kind)())


if __name__ == "__main__":
    run(main(sys.argv[1]))
