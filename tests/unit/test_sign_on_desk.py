"""The desk for sign-ons: who shares a transaction, and what is refused before any work is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from geo.model import DriverId, MarketId
from matcher.errors import StoreUnavailable
from matcher.model import NO_RIDE, Driver, DriverStatus, Hint
from matcher.outcomes import SignedOn
from matcher.rides import Overloaded
from matcher.sign_ons import RETRY_AFTER_S_MAX, RETRY_AFTER_S_MIN, SignOnDesk
from matcher.store_sign_on import OnSignOn, SignOn, SignOnOutcome

NYC = MarketId("nyc")


def signed_on(one: SignOn) -> SignedOn:
    driver = Driver(one.driver_id, DriverStatus.ONLINE, "standard", 4, one.market, 1, 0)
    return SignedOn(driver, [], Hint(NO_RIDE, 1, one.market, one.driver_id), 0)


class Ledger:
    """A store in memory; it keeps the groups that it was asked for, and answers once its gate is open."""

    def __init__(self) -> None:
        self.groups: list[list[SignOn]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.held: str | None = None  # this driver's row is held until `let_go`
        self.let_go = asyncio.Event()

    async def sign_on_many(self, asked: Sequence[SignOn], *, on_outcome: OnSignOn | None = None) -> list[SignOnOutcome]:
        assert on_outcome is not None
        self.groups.append(list(asked))
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        for i, one in enumerate(asked):
            if one.driver_id != self.held:
                on_outcome(i, None if one.driver_id == "nobody" else signed_on(one))
        for i, one in enumerate(asked):
            if one.driver_id == self.held:
                await self.let_go.wait()
                on_outcome(i, StoreUnavailable("held"))
        return []


def come(desk: SignOnDesk, *names: str) -> list[asyncio.Task[SignedOn | None]]:
    return [asyncio.create_task(desk.sign_on(DriverId(name), NYC)) for name in names]


async def test_those_who_come_together_share_a_group() -> None:
    ledger = Ledger()
    desk = SignOnDesk(ledger)
    outcomes = await asyncio.gather(*come(desk, "ann", "bob", "nobody"))
    assert [each is None or each.driver.driver_id for each in outcomes] == ["ann", "bob", True]
    assert [[one.driver_id for one in group] for group in ledger.groups] == [["ann", "bob", "nobody"]]
    assert desk.waiting == 0


async def test_who_comes_while_groups_commit_rides_with_the_next_one() -> None:
    ledger = Ledger()
    ledger.gate.clear()
    desk = SignOnDesk(ledger, gather_ms=0, groups_max=1, group_max=3)
    tasks = come(desk, "first")
    while not ledger.groups:
        await asyncio.sleep(0)
    tasks += come(desk, "a", "b", "c", "d")
    await asyncio.sleep(0)
    ledger.gate.set()
    await asyncio.gather(*tasks)
    assert [len(group) for group in ledger.groups] == [1, 3, 1]


async def test_one_too_many_is_refused_before_the_store_is_asked_and_told_when_to_return() -> None:
    """P10"""
    ledger = Ledger()
    ledger.gate.clear()
    desk = SignOnDesk(ledger, waiting_max=2)
    tasks = come(desk, "a", "b")
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await desk.sign_on(DriverId("c"), NYC)
    assert RETRY_AFTER_S_MIN <= refused.value.retry_after_s <= RETRY_AFTER_S_MAX
    ledger.gate.set()
    await asyncio.gather(*tasks)
    assert await desk.sign_on(DriverId("c"), NYC) is not None
    assert {one.driver_id for group in ledger.groups for one in group} == {"a", "b", "c"}


async def test_a_driver_whose_row_is_held_delays_and_fails_nobody_else() -> None:
    ledger = Ledger()
    ledger.held = "held"
    desk = SignOnDesk(ledger)
    held, other = come(desk, "held", "other")
    assert await other is not None
    assert not held.done()
    ledger.let_go.set()
    with pytest.raises(StoreUnavailable, match="held"):
        await held


@pytest.mark.parametrize(
    ("fault", "seen"), [(StoreUnavailable("away"), StoreUnavailable), (ValueError(), RuntimeError)]
)
async def test_a_group_that_fails_leaves_nobody_without_an_answer(fault: Exception, seen: type[Exception]) -> None:
    ledger = Ledger()
    ledger.fault = fault
    desk = SignOnDesk(ledger)
    outcomes = await asyncio.gather(*come(desk, "a", "b"), return_exceptions=True)
    assert [type(each) for each in outcomes] == [seen, seen]
    assert desk.waiting == 0


async def test_closing_lets_what_was_taken_in_end_and_takes_no_more() -> None:
    ledger = Ledger()
    ledger.gate.clear()
    desk = SignOnDesk(ledger)
    (task,) = come(desk, "a")
    await asyncio.sleep(0)
    closing = asyncio.create_task(desk.close())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await desk.sign_on(DriverId("b"), NYC)
    ledger.gate.set()
    await closing
    assert task.done()
    assert await task is not None


async def test_a_caller_that_goes_away_leaves_its_neighbours_alone() -> None:
    ledger = Ledger()
    ledger.gate.clear()
    desk = SignOnDesk(ledger)
    gone, stays = come(desk, "a", "b")
    await asyncio.sleep(0)
    gone.cancel()
    ledger.gate.set()
    assert await stays is not None
    assert gone.cancelled()


async def test_drivers_that_are_held_keep_no_later_group_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matcher.turns.TURN_S_MAX", 0.01)
    ledger = Ledger()
    ledger.held = "ann"
    desk = SignOnDesk(ledger, groups_max=1)
    [held] = come(desk, "ann")
    while not ledger.groups:
        await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*come(desk, "bob"))
    assert not held.done()
    ledger.let_go.set()
    with pytest.raises(StoreUnavailable):
        await held
    await desk.close()
