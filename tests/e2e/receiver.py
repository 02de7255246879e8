"""A client's own server, on a real socket: it takes what webhooks send, and answers as a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from tests.e2e.running import until


@dataclass
class Got:
    """One attempt as it arrived."""

    request: web.Request
    raw: bytes
    id: str = field(init=False)
    body: dict[str, Any] = field(init=False)
    was_taken: bool = False

    def __post_init__(self) -> None:
        self.body = msgspec.json.decode(self.raw)
        self.id = self.body["id"]

    @property
    def headers(self) -> Any:
        return self.request.headers

    @property
    def attempt(self) -> int:
        return int(self.headers["Hexhail-Attempt"])


async def ok(_got: Got) -> web.Response:
    return web.Response(status=204)


class Receiver:
    """A client's server. `answer` decides what it says to each attempt."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[Got] = []
        self.answer: Callable[[Got], Awaitable[web.StreamResponse]] = ok

    @property
    def taken(self) -> list[Got]:
        return [each for each in self.got if each.was_taken]

    async def take(self, request: web.Request) -> web.StreamResponse:
        got = Got(request, await request.read())
        self.got.append(got)
        response = await self.answer(got)
        got.was_taken = response.status < 300
        return response

    async def has_taken(self, count: int, *, within_s: float = 15.0) -> None:
        async def look() -> bool:
            return len(self.taken) >= count

        await until(look, what=f"{count} deliveries, not {[each.id for each in self.taken]}", within_s=within_s)


def says(status: int, **headers: str) -> Callable[[Got], Awaitable[web.StreamResponse]]:
    async def answer(_got: Got) -> web.Response:
        return web.Response(status=status, headers=headers)

    return answer


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.add_routes([web.post("/hook", receiver.take)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receiver
    finally:
        await runner.cleanup()
