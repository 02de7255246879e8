"""The round over all drivers' sockets."""

from __future__ import annotations

import asyncio

import pytest

from api.beat import AT_ONCE, keep_beating
from tests.feeds import until


class Socket:
    def __init__(self) -> None:
        self.beats = 0

    def beat(self, now_s: float) -> None:
        self.beats += 1


async def test_every_socket_has_its_turn_in_every_round_and_nobody_waits_for_all() -> None:
    sockets = [Socket() for _ in range(AT_ONCE + 1)]
    beating = asyncio.create_task(keep_beating(lambda: sockets, 0.02))
    await asyncio.sleep(0)
    assert [sockets[0].beats, sockets[-1].beats] == [1, 0]
    await until(lambda: sockets[-1].beats >= 3)
    assert {each.beats for each in sockets} <= {sockets[-1].beats, sockets[-1].beats + 1}
    beating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beating


async def test_a_socket_that_comes_later_is_looked_at_too() -> None:
    sockets: list[Socket] = []
    beating = asyncio.create_task(keep_beating(lambda: sockets, 0.01))
    await asyncio.sleep(0)
    sockets.append(Socket())
    await until(lambda: sockets[0].beats > 1)
    beating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beating
