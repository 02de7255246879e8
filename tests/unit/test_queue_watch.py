"""The watch of queues: one read for all sessions, each told once what has changed for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest_asyncio

from api.driver_stream import Sessions
from api.outbox import Outbox
from api.queues import QueueWatch, places_of
from api.schema import DownFrame, QueueFrame
from geo.model import DriverId, MarketId
from matcher.errors import StoreUnavailable
from tests.feeds import until

NYC, ROME = MarketId("nyc"), MarketId("rome")


class Ear:
    """A session as far as the watch sees it: whose it is, and its outbox."""

    def __init__(self, name: str, epoch: int = 1) -> None:
        self.driver_id, self.epoch = DriverId(name), epoch
        self.heard: list[DownFrame] = []
        self.outbox = Outbox(self._encode)

    def _encode(self, frame: DownFrame) -> bytes:
        self.heard.append(frame)
        return b""

    def supersede(self) -> None: ...

    def hears(self) -> list[DownFrame]:
        """What came since it was asked last."""
        self.outbox.take()
        heard, self.heard = self.heard, []
        return heard


class Source:
    """Queues as the test says they are, and who wants to hear of the market."""

    def __init__(self) -> None:
        self.queues: dict[str, list[str]] = {}
        self.reads = 0
        self.is_down = False
        self.callbacks: list[Callable[[], None]] = []

    async def zone_queues(self, market: MarketId) -> dict[str, list[DriverId]]:
        self.reads += 1
        if self.is_down:
            raise StoreUnavailable("down")
        return {zone: [DriverId(name) for name in names] for zone, names in self.queues.items()}

    @contextmanager
    def market_listener(self, market: MarketId, callback: Callable[[], None]) -> Iterator[None]:
        self.callbacks.append(callback)
        yield


class Room:
    def __init__(self) -> None:
        self.source, self.sessions = Source(), Sessions()
        self.watch = QueueWatch(self.source, self.source, self.sessions, read_s_min=0.0)

    def enters(self, name: str, epoch: int = 1) -> Ear:
        ear: Any = Ear(name, epoch)
        self.sessions.add(ear)
        return ear  # type: ignore[no-any-return]

    async def changes(self, **queues: str) -> None:
        """The queues are these now; returns when they have been read."""
        self.source.queues = {zone: names.split() for zone, names in queues.items()}
        before = self.source.reads
        for callback in self.source.callbacks:
            callback()
        await until(lambda: self.source.reads > before)
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def room() -> AsyncIterator[Room]:
    room = Room()
    task = asyncio.create_task(room.watch.follow(NYC))
    await asyncio.sleep(0)
    yield room
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_each_session_is_told_its_place_when_it_changes_and_only_then(room: Room) -> None:
    ann, ben, eve = room.enters("ann"), room.enters("ben"), room.enters("eve")
    await room.changes(jfk="ann elsewhere ben")
    assert ann.hears() == [QueueFrame("jfk", 1, 3)]
    assert ben.hears() == [QueueFrame("jfk", 3, 3)]
    await room.changes(jfk="ann elsewhere ben")
    assert (ann.hears(), ben.hears()) == ([], [])
    await room.changes(jfk="ben", lga="ann")
    assert ann.hears() == [QueueFrame("lga", 1, 1)]
    assert ben.hears() == [QueueFrame("jfk", 1, 1)]
    await room.changes()
    assert (ann.hears(), ben.hears(), eve.hears()) == ([QueueFrame()], [QueueFrame()], [])
    await room.changes()
    assert ann.hears() == []


async def test_one_read_serves_all_sessions_and_without_any_nothing_is_read(room: Room) -> None:
    for callback in room.source.callbacks:
        callback()
    await asyncio.sleep(0.01)
    assert room.source.reads == 0
    ears = [room.enters(f"d{number}") for number in range(20)]
    await room.changes(jfk=" ".join(ear.driver_id for ear in ears))
    assert room.source.reads == 1
    assert all(len(ear.hears()) == 1 for ear in ears)


async def test_a_new_session_learns_its_place_from_the_welcome_and_its_end_by_a_frame(room: Room) -> None:
    room.enters("ann")
    await room.changes(jfk="ann")
    again: Any = Ear("ann", 2)
    assert room.watch.greet(again, NYC) == QueueFrame("jfk", 1, 1)
    room.sessions.add(again)
    await room.changes(jfk="ann")
    assert again.hears() == []
    await room.changes()
    assert again.hears() == [QueueFrame()]


async def test_a_session_that_comes_before_any_read_is_told_soon(room: Room) -> None:
    room.source.queues = {"jfk": ["ann"]}
    ann: Any = Ear("ann")
    assert room.watch.greet(ann, NYC) is None
    room.sessions.add(ann)
    await until(lambda: room.source.reads > 0)
    await asyncio.sleep(0)
    assert ann.hears() == [QueueFrame("jfk", 1, 1)]
    assert room.watch.greet(ann, ROME) is None


async def test_while_the_database_is_away_nobody_is_told_anything(room: Room) -> None:
    ann = room.enters("ann")
    await room.changes(jfk="ann")
    ann.hears()
    room.source.is_down = True
    await room.changes()
    assert ann.hears() == []
    room.source.is_down = False
    await room.changes()
    assert ann.hears() == [QueueFrame()]


def test_places_are_counted_from_one_in_each_queue() -> None:
    a, b, c = DriverId("a"), DriverId("b"), DriverId("c")
    assert places_of({"jfk": [b, a], "lga": [c]}) == {
        b: QueueFrame("jfk", 1, 2),
        a: QueueFrame("jfk", 2, 2),
        c: QueueFrame("lga", 1, 1),
    }
