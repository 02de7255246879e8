"""A TCP proxy between a client and a server, to do to a connection what networks do.

It runs in the test's event loop and forwards bytes until told otherwise; the
faults hold for the connections that stand and for new ones, until `heal()`.
It knows no protocol, so it serves Redis and MariaDB alike.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_READ_BYTES = 65_536


class Proxy:
    """Use as `async with Proxy.before(url) as proxy: ... proxy.url`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._template = ""
        self._server: asyncio.Server | None = None
        self._port = 0
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._dropping_replies = False
        self._delay_s = 0.0
        self.accepted = 0  # connections taken so far
        self.replies_dropped = 0  # chunks of replies thrown away so far

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy before the server of that URL; `.url` is the same URL by way of the proxy."""
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise ValueError(f"{url} names no host and port")
        proxy = cls(parts.hostname, parts.port)
        proxy._template = url
        return proxy

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        parts = urlsplit(self._template)
        userinfo, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{userinfo}{at}127.0.0.1:{self._port}").geturl()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._abort_connections()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # The faults.

    def cut(self) -> None:
        """Resets every connection and every new one, as when the server is gone."""
        self._refusing = True
        self._abort_connections()

    def reset_connections(self) -> None:
        """Resets every connection once; new ones are served."""
        self._abort_connections()

    def stall(self) -> None:
        """A black hole: connections open and stay open, and nothing passes. What was held back passes on `heal`."""
        self._flowing.clear()

    def drop_replies(self) -> None:
        """Requests reach the server and are carried out; nothing comes back, not even later."""
        self._dropping_replies = True

    def delay(self, seconds: float) -> None:
        """Holds each chunk back for so long, either way."""
        self._delay_s = seconds

    def heal(self) -> None:
        """Ends every fault."""
        self._refusing = self._dropping_replies = False
        self._delay_s = 0.0
        self._flowing.set()

    # The forwarding.

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        self._pump(reader, server_writer, is_reply=False)
        self._pump(server_reader, writer, is_reply=True)

    def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool) -> None:
        task = asyncio.create_task(self._forward(reader, writer, is_reply=is_reply))
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool) -> None:
        try:
            async for chunk in _chunks(reader):
                await self._flowing.wait()
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if is_reply and self._dropping_replies:
                    self.replies_dropped += 1
                    continue
                writer.write(chunk)
                await writer.drain()
            await self._flowing.wait()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _abort_connections(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await reader.read(_READ_BYTES):
        yield chunk
