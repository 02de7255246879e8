"""Sign-ons in groups on a real MySQL or MariaDB: how few transactions, who waits for whom, and unheard COMMITs (P7)."""

from __future__ import annotations

import asyncio

import pytest

from geo.model import DriverId
from matcher.errors import StoreUnavailable
from matcher.outcomes import SignedOn
from matcher.sessions import rows_of
from matcher.sign_ons import SignOnDesk
from matcher.store_changes import LOCK_DRIVERS_OF
from matcher.store_sign_on import SignOn, SignOnOutcome
from tests.mysql_proxy import MySqlProxy, OnCommit
from tests.stores import MARKET, StoreCase
from tests.transactions import standing


def drivers(case: StoreCase, count: int) -> list[DriverId]:
    """New drivers who never signed on."""
    names = [DriverId(f"d{n:03d}") for n in range(count)]
    case.sql(
        "INSERT INTO drivers (driver_id, status, vehicle_class, seats, epoch, updated_at_ms, tags, version) VALUES "
        + ", ".join(["(?, 'offline', 'standard', 4, 0, 0, '', 1)"] * count),
        *names,
    )
    return names


def commits(case: StoreCase) -> int:
    return int(case.sql("SHOW GLOBAL STATUS LIKE 'Com_commit'")[0][1])


def epochs_of(outcomes: list[SignOnOutcome]) -> list[int]:
    return [each.driver.epoch for each in outcomes if isinstance(each, SignedOn)]


async def test_three_hundred_who_come_at_once_take_few_transactions(case: StoreCase) -> None:
    names = drivers(case, 300)
    desk = SignOnDesk(case.store)
    before = commits(case)
    signed = await asyncio.gather(*[desk.sign_on(name, MARKET) for name in names])
    assert [each.driver.driver_id for each in signed if each is not None] == names
    assert commits(case) - before <= 6
    assert case.sql("SELECT COUNT(*) FROM drivers WHERE epoch = 1 AND status = 'online'")[0][0] == 300


async def test_a_driver_whose_row_is_held_signs_on_after_its_neighbours_and_delays_none(case: StoreCase) -> None:
    names = drivers(case, 5)
    heard: dict[int, SignOnOutcome] = {}
    all_others = asyncio.Event()

    def hear(i: int, outcome: SignOnOutcome) -> None:
        heard[i] = outcome
        if len(heard) == 4:
            all_others.set()

    async with standing(case.url, lambda session: rows_of(session, LOCK_DRIVERS_OF(driver_ids=[names[2]]))):
        signing = asyncio.create_task(
            case.store.sign_on_many([SignOn(name, MARKET) for name in names], on_outcome=hear)
        )
        async with asyncio.timeout(10):
            await all_others.wait()
        assert sorted(heard) == [0, 1, 3, 4]
        assert not signing.done()
    assert epochs_of(await signing) == [1] * 5


async def test_a_driver_whose_row_stays_held_is_the_only_one_who_fails(case: StoreCase, by_proxy: StoreCase) -> None:
    names = drivers(case, 3)
    async with standing(case.url, lambda session: rows_of(session, LOCK_DRIVERS_OF(driver_ids=[names[1]]))):
        first, held, last = await by_proxy.store.sign_on_many([SignOn(name, MARKET) for name in names])
    assert epochs_of([first, last]) == [1, 1]
    assert isinstance(held, StoreUnavailable)


@pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE])
async def test_an_epoch_whose_commit_was_not_heard_is_handed_out_to_nobody_or_once(
    case: StoreCase, by_proxy: StoreCase, proxy: MySqlProxy, how: OnCommit
) -> None:
    """P7"""
    names = drivers(case, 3)
    proxy.fault(how)
    outcomes = await by_proxy.store.sign_on_many([SignOn(name, MARKET) for name in names])
    assert proxy.faulted == 1
    assert epochs_of(outcomes) == ([2] * 3 if how is OnCommit.CUT_AFTER else [1] * 3)
    stand = [case.sql("SELECT epoch FROM drivers WHERE driver_id = ?", name)[0][0] for name in names]
    assert epochs_of(outcomes) == stand


async def test_a_commit_that_is_still_on_its_way_is_waited_for_and_superseded(
    case: StoreCase, by_proxy: StoreCase, proxy: MySqlProxy
) -> None:
    """P7: rows that the first attempt still holds are waited for, not passed over."""
    names = drivers(case, 3)
    proxy.fault(OnCommit.HOLD)
    signing = asyncio.create_task(by_proxy.store.sign_on_many([SignOn(name, MARKET) for name in names]))
    async with asyncio.timeout(10):
        while proxy.faulted == 0:
            await asyncio.sleep(0.01)
    proxy.release.set()
    outcomes = await signing
    stand = [case.sql("SELECT epoch FROM drivers WHERE driver_id = ?", name)[0][0] for name in names]
    assert epochs_of(outcomes) == stand == [2] * 3
