"""The listening socket, and connections that never ask for anything.

aiohttp gives a connection no time limit before its first request; one that
sends half a header, or nothing, would stay for ever (P10). Such connections
wait in a `Lobby`, which drops them.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

#: How long a connection may take to send its first request's header.
FIRST_REQUEST_S = 15.0
#: A client that stays without asking, or whose next header never ends, is dropped after so long.
KEEPALIVE_S = 75.0
#: How long what is left of a refused body is read and thrown away, so that the client hears why.
LINGERING_S = 3.0
CLEANUP_S_MAX = 2.0
BACKLOG = 1024


class Lobby:
    """Connections that have not asked for anything yet."""

    def __init__(self, first_request_s: float = FIRST_REQUEST_S) -> None:
        self._first_request_s = first_request_s
        self._waiting: set[object] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, protocol: web.RequestHandler) -> None:
        self._waiting.add(protocol)
        asyncio.get_running_loop().call_later(self._first_request_s, self._drop, protocol)

    def leave(self, protocol: object) -> None:
        """It has asked: from now on the ordinary limits hold."""
        self._waiting.discard(protocol)

    def _drop(self, protocol: web.RequestHandler) -> None:
        if protocol in self._waiting:
            self._waiting.discard(protocol)
            protocol.force_close()


class Listener:
    """An application that takes requests on a port."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server) -> None:
        self._runner = runner
        self._server = server

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    def unsent_bytes(self) -> int:
        """What all connections together have not sent yet."""
        handlers = self._runner.server.connections if self._runner.server is not None else []
        return sum(each.transport.get_write_buffer_size() for each in handlers if each.transport is not None)

    async def close(self) -> None:
        """Stops to listen and drops what connections are left."""
        self._server.close()
        try:
            async with asyncio.timeout(CLEANUP_S_MAX):
                await self._runner.cleanup()
        except TimeoutError:
            pass  # the process ends, and its connections with it


async def listen(app: web.Application, lobby: Lobby, host: str, port: int, *, reuse_port: bool = False) -> Listener:
    """Starts to take requests. Raises OSError when the address is taken."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGERING_S,
        auto_decompress=False,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    serve = runner.server
    assert serve is not None, "setup makes it"

    def connected() -> web.RequestHandler:
        protocol = serve()
        lobby.enter(protocol)
        return protocol

    loop = asyncio.get_running_loop()
    server = await loop.create_server(connected, host, port, backlog=BACKLOG, reuse_port=reuse_port or None)
    return Listener(runner, server)
