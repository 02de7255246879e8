"""Parts of trips' paths reach the store in the background, and wait within their bound while it is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.path_writer import WAITING_MAX, WRITE_MAX, PathWriter
from api.telemetry import Metrics
from matcher.model import TripId
from matcher.store import Store
from matcher.store_paths import PathPart
from tests.stores import sqlite_url

TRIP = TripId("t_1")
HOUR_S = 3600.0


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store without its tables: not available until they are made."""
    store = await Store.open(sqlite_url(tmp_path))
    yield store
    await store.close()


def writer_of(store: Store, *, every_s: float = 0.01) -> PathWriter:
    return PathWriter(store.put_path_parts, Metrics(), every_s=every_s)


def part(number: int) -> PathPart:
    return PathPart(TRIP, 1, number, 1.0, [(40.0, round(number / 1000, 5))])


def counts(writer: PathWriter) -> dict[str, int]:
    return {outcome: n for (outcome,), n in writer.parts.counts.items()}


@contextlib.asynccontextmanager
async def running(writer: PathWriter) -> AsyncIterator[None]:
    task = asyncio.create_task(writer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()


async def until_empty(writer: PathWriter) -> None:
    async with asyncio.timeout(20):
        while len(writer):
            await asyncio.sleep(0.01)


async def rows(store: Store) -> int:
    path = await store.trip_path(TRIP)
    return 0 if path is None else len(path.points)


async def test_what_is_kept_is_written_without_being_asked_for(store: Store) -> None:
    await store.migrate()
    writer = writer_of(store)
    async with running(writer):
        for number in range(3):
            writer.keep(part(number))
        await until_empty(writer)
        writer.keep(part(3))
        await until_empty(writer)
    await writer.drain()
    assert await rows(store) == 4
    assert counts(writer) == {"written": 4}


async def test_a_whole_transaction_does_not_wait_for_the_interval(store: Store) -> None:
    await store.migrate()
    writer = writer_of(store, every_s=HOUR_S)
    async with running(writer):
        for number in range(WRITE_MAX):
            writer.keep(part(number))
        await until_empty(writer)
        await writer.drain()  # which waits until it is written
    assert counts(writer) == {"written": WRITE_MAX}


async def test_parts_wait_for_a_store_that_is_away_and_are_written_when_it_is_back(store: Store) -> None:
    writer = writer_of(store)
    writer.keep(part(0))
    assert not await writer.flush()
    async with running(writer):
        writer.keep(part(1))
        await store.migrate()
        await until_empty(writer)
    await writer.drain()
    assert await rows(store) == 2
    assert counts(writer) == {"written": 2}


async def test_the_oldest_of_too_many_are_dropped_and_counted(store: Store) -> None:
    """P10"""
    writer = writer_of(store)
    for number in range(WAITING_MAX + 3):
        writer.keep(part(number))
    assert len(writer) == WAITING_MAX
    assert not await writer.flush()
    assert len(writer) == WAITING_MAX
    await store.migrate()
    assert await writer.flush()
    assert counts(writer) == {"dropped": 3, "written": WAITING_MAX}
    path = await store.trip_path(TRIP)
    assert path is not None
    assert path.points[0] == part(3).points[0]


async def test_what_was_being_written_when_it_was_stopped_is_written_by_the_drain(store: Store) -> None:
    await store.migrate()
    writer = writer_of(store)
    for number in range(100):
        writer.keep(part(number))
    flush = asyncio.create_task(writer.flush())
    await asyncio.sleep(0)
    assert len(writer) == 0
    flush.cancel()
    await asyncio.wait([flush])
    await writer.drain()
    assert await rows(store) == 100
