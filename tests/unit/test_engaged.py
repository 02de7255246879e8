"""Who is engaged: asked at most once a second, and known while the database is away."""

from __future__ import annotations

import asyncio

import pytest

from api.engaged import Engaged
from api.telemetry import Metrics
from geo.model import DriverId
from matcher.errors import StoreUnavailable


class Source:
    def __init__(self) -> None:
        self.asked = 0
        self.down = False
        self.now_s = 100.0

    async def ask(self) -> frozenset[DriverId]:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("down")
        return frozenset({DriverId(f"d{self.asked}")})

    def clock(self) -> float:
        return self.now_s


def make(source: Source) -> Engaged:
    return Engaged(source.ask, metrics=Metrics(), clock=source.clock)


async def test_many_searches_in_a_second_ask_once() -> None:
    source = Source()
    engaged = make(source)
    answers = await asyncio.gather(*(engaged.read() for _ in range(50)))
    assert {drivers for drivers, _ in answers} == {frozenset({"d1"})}
    source.now_s += 0.9
    await engaged.read()
    assert source.asked == 1


async def test_a_second_later_the_next_answer_is_fetched_without_making_the_search_wait() -> None:
    source = Source()
    engaged = make(source)
    await engaged.read()
    source.now_s += 1.1
    assert (await engaged.read())[0] == {"d1"}
    await engaged.close()
    assert (await engaged.read())[0] == {"d2"}


async def test_after_a_long_silence_a_search_waits_for_the_fresh_answer() -> None:
    source = Source()
    engaged = make(source)
    await engaged.read()
    source.now_s += 60.0
    assert await engaged.read() == (frozenset({"d2"}), 0.0)


async def test_while_the_database_is_away_the_last_answer_stands_and_its_age_is_told() -> None:
    source = Source()
    engaged = make(source)
    await engaged.read()
    source.down = True
    source.now_s += 60.0
    assert await engaged.read() == (frozenset({"d1"}), 60.0)


async def test_what_was_never_known_is_not_made_up() -> None:
    source = Source()
    source.down = True
    with pytest.raises(StoreUnavailable):
        await make(source).read()
