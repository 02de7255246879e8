"""A proxy before a MySQL server that understands just enough of the protocol to act on a COMMIT.

A client's packet is three bytes of length, one of sequence, and a payload whose
first byte 3 means a query. Replies are passed on as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_QUERY = 3


class OnCommit(Enum):
    """What happens to a client that sends COMMIT."""

    PASS = "it is passed on"
    CUT_AFTER = "it reaches the server, which carries it out; the connection is cut before the answer"
    CUT_BEFORE = "the connection is cut before it reaches the server"
    HOLD = "it reaches the server only when released; meanwhile the client's side is cut"
    MUTE = "it reaches the server, whose answer is never passed on; the connection stays open"


class MySqlProxy:
    """Use as `async with MySqlProxy(url) as proxy`; `faults` commits are treated by `on_commit`, then all pass."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_commit = OnCommit.PASS
        self.faults = 0
        self.faulted = 0  # commits treated so far
        self.release = asyncio.Event()

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        userinfo = self._parts.netloc.rpartition("@")[0]
        return self._parts._replace(netloc=f"{userinfo}@127.0.0.1:{port}").geturl()

    def fault(self, on_commit: OnCommit, times: int = 1) -> None:
        self.on_commit, self.faults = on_commit, times

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        up_reader, up_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        replies = asyncio.create_task(_pass_on(up_reader, writer))
        try:
            await self._requests(reader, writer, up_writer, replies)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side went away
        finally:
            replies.cancel()
            for each in (writer, up_writer):
                each.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await replies

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_writer: asyncio.StreamWriter,
        replies: asyncio.Task[None],
    ) -> None:
        while True:
            head = await reader.readexactly(4)
            payload = await reader.readexactly(int.from_bytes(head[:3], "little"))
            if payload[:1] == bytes([_QUERY]) and payload[1:].strip().upper() == b"COMMIT" and self.faults > 0:
                self.faults -= 1
                self.faulted += 1
                await self._faulty_commit(head + payload, writer, up_writer, replies)
                return
            up_writer.write(head + payload)
            await up_writer.drain()

    async def _faulty_commit(
        self, packet: bytes, writer: asyncio.StreamWriter, up_writer: asyncio.StreamWriter, replies: asyncio.Task[None]
    ) -> None:
        how = self.on_commit
        replies.cancel()
        if how in (OnCommit.CUT_BEFORE, OnCommit.HOLD):
            writer.transport.abort()
        if how is OnCommit.HOLD:
            await self.release.wait()
        if how is not OnCommit.CUT_BEFORE:
            up_writer.write(packet)
            await up_writer.drain()
            await asyncio.sleep(0.3)  # until the server has carried it out: nobody reads its answer
        if how is OnCommit.MUTE:
            await self.release.wait()
        writer.transport.abort()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65_536):
            writer.write(chunk)
            await writer.drain()
        writer.close()
