"""Events announced, and deliveries claimed, by several processes at once: what one writer on SQLite cannot show."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from matcher import store_events
from matcher.model import ClientId, Hint, Ride, RideId, RideState
from matcher.outcomes import Done
from matcher.sessions import Session, rows_of
from matcher.store import Store
from matcher.store_sweep import LOCK_RIDE_IDS
from matcher.store_webhooks import LOCK_DUE, Delivery, Key
from tests.mysql_proxy import MySqlProxy, OnCommit
from tests.stores import MARKET, StoreCase
from tests.transactions import standing

ANN = ClientId("ann")
CLAIM_MS = 30_000


@pytest.fixture
async def case(case: StoreCase) -> StoreCase:
    """Events of ann's rides are owed to a webhook."""
    await case.store.webhooks.put(ANN, url="http://127.0.0.1:9/hook", secret="s" * 16)
    return case


async def matched(case: StoreCase) -> Ride:
    """A ride of two events, neither of them announced."""
    ride = await case.ride(ANN)
    await case.match(ride, await case.driver())
    return ride


def hint(ride: Ride, version: int) -> Hint:
    return Hint(ride.ride_id, version, MARKET, None)


def owed(case: StoreCase) -> list[Key]:
    rows = case.sql("SELECT ride_id, version FROM webhook_deliveries ORDER BY ride_id, version")
    return [(RideId(ride_id.decode()), version) for ride_id, version in rows]


async def claim(store: Store, limit: int = 16) -> list[Delivery]:
    return await store.webhooks.claim(limit=limit, claim_ms=CLAIM_MS, share=limit, rooms={})


def marking(*hints: Hint, fails: bool = False) -> Callable[[Session], Awaitable[object]]:
    """The transaction of a process that announces these; `fails`: it never commits."""

    async def work(session: Session) -> None:
        await store_events.mark_announced(session, store_events.newest(hints))
        session.refused = fails

    return work


class TestMarking:
    async def test_two_that_mark_the_same_events_at_once_owe_each_once_and_in_order(self, case: StoreCase) -> None:
        """The announcer has marked the first and not yet committed when the relay comes with both."""
        ride = await matched(case)
        async with standing(case.url, marking(hint(ride, 1))):
            relay = asyncio.create_task(case.store.mark_announced([hint(ride, 2)]))
            await asyncio.sleep(0.3)
            assert not relay.done()
            assert await claim(case.store) == []  # the second must not be sent before the first
        await relay
        assert owed(case) == [(ride.ride_id, 1), (ride.ride_id, 2)]
        assert await case.store.unannounced(None, older_than_ms=0, limit=9) == []

    async def test_what_a_process_marked_that_died_before_its_commit_is_owed_by_the_next(self, case: StoreCase) -> None:
        ride = await matched(case)
        async with standing(case.url, marking(hint(ride, 2), fails=True)):
            relay = asyncio.create_task(case.store.mark_announced([hint(ride, 2)]))
            await asyncio.sleep(0.3)
            assert not relay.done()
        await relay
        assert owed(case) == [(ride.ride_id, 1), (ride.ride_id, 2)]

    async def test_many_at_once_in_any_order_owe_each_event_once_and_none_fails(self, case: StoreCase) -> None:
        """Hints of the same rides at different versions take locks crosswise: whoever is the victim does it again."""
        rides = [await matched(case) for _ in range(25)]
        others = [await Store.open(case.url) for _ in range(3)]
        rng = random.Random(5)
        jobs = []
        for store in (case.store, *others) * 6:
            some = rng.sample(rides, 15)
            jobs.append(store.mark_announced([hint(ride, rng.choice((1, 2))) for ride in some]))
        await asyncio.gather(*jobs)
        await case.store.mark_announced([hint(ride, 2) for ride in rides])
        assert owed(case) == sorted((ride.ride_id, version) for ride in rides for version in (1, 2))
        for store in others:
            await store.close()

    async def test_marking_neither_waits_for_a_ride_that_is_being_changed_nor_holds_up_its_next_change(
        self, case: StoreCase
    ) -> None:
        impatient = await Store.open(case.url, call_timeout_s=0.9)  # less than a lock is waited for
        held, other = await matched(case), await matched(case)
        async with standing(case.url, lambda session: rows_of(session, LOCK_RIDE_IDS(ids=[held.ride_id]))):
            await impatient.mark_announced([hint(held, 2)])
        async with standing(case.url, marking(hint(other, 2))):
            outcome = await impatient.cancel_ride(other.ride_id, client_id=None, reason="x")
        assert isinstance(outcome, Done)
        assert outcome.ride.state is RideState.CANCELLED
        assert len(owed(case)) == 4
        await impatient.close()

    @pytest.mark.parametrize("how", [OnCommit.CUT_AFTER, OnCommit.CUT_BEFORE, OnCommit.MUTE])
    async def test_an_unheard_commit_owes_each_event_once(self, case: StoreCase, how: OnCommit) -> None:
        ride = await matched(case)
        async with MySqlProxy(case.url) as proxy:
            store = await Store.open(proxy.url, call_timeout_s=2.0)
            await store.now_ms()
            proxy.fault(how)
            await store.mark_announced([hint(ride, 2)])
            assert proxy.faulted == 1
            await store.close()
        assert owed(case) == [(ride.ride_id, 1), (ride.ride_id, 2)]
        assert await case.store.unannounced(None, older_than_ms=0, limit=9) == []


class TestClaiming:
    async def test_two_that_claim_at_once_get_different_rides_and_neither_waits(self, case: StoreCase) -> None:
        rides = [await matched(case) for _ in range(4)]
        await case.store.mark_announced([hint(ride, 2) for ride in rides])
        impatient = await Store.open(case.url, call_timeout_s=0.9)
        async with standing(case.url, lambda session: rows_of(session, LOCK_DUE(full=[""], limit=2))):
            second = await claim(impatient)
        first = await claim(case.store)
        assert [each.event.version for each in (*first, *second)] == [1, 1, 1, 1]
        assert sorted(each.event.ride_id for each in (*first, *second)) == sorted(ride.ride_id for ride in rides)
        assert len(second) == 2
        await impatient.close()

    async def test_many_senders_deliver_every_event_once_and_each_rides_in_order(self, case: StoreCase) -> None:
        rides = [await matched(case) for _ in range(20)]
        await case.store.mark_announced([hint(ride, 2) for ride in rides])
        stores = [await Store.open(case.url) for _ in range(4)]
        sent: list[Key] = []

        async def send(store: Store, rng: random.Random) -> None:
            while owed(case):
                for delivery in await claim(store, limit=3):
                    if rng.random() < 0.3:
                        await store.webhooks.failed(delivery, "answered 500", again_ms=rng.randrange(5))
                    else:
                        sent.append((delivery.event.ride_id, delivery.event.version))
                        await store.webhooks.delivered(delivery)

        await asyncio.gather(*[send(store, random.Random(n)) for n, store in enumerate(stores)])
        assert sorted(sent) == sorted((ride.ride_id, version) for ride in rides for version in (1, 2))
        assert all(sent.index((ride.ride_id, 1)) < sent.index((ride.ride_id, 2)) for ride in rides)
        for store in stores:
            await store.close()

    async def test_deleting_a_webhook_while_its_events_are_announced_and_claimed_leaves_nothing_to_send(
        self, case: StoreCase
    ) -> None:
        rides = [await matched(case) for _ in range(10)]
        await case.store.mark_announced([hint(ride, 1) for ride in rides])
        async with standing(case.url, marking(*[hint(ride, 2) for ride in rides])):
            claimed, _ = await asyncio.gather(claim(case.store, limit=4), case.store.webhooks.delete(ANN))
        for delivery in claimed:
            await case.store.webhooks.failed(delivery, "answered 500", again_ms=0)
        assert await claim(case.store, limit=64) == []
        assert owed(case) == []
