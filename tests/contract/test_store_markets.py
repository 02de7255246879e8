"""What every store promises of markets that an operator pauses, and of the matchers that share the markets."""

from __future__ import annotations

import asyncio

import pytest

from geo.model import MarketId
from matcher.model import Actor, Move
from matcher.outcomes import KeyReused, MarketPaused, Requested
from tests.stores import MARKET, StoreCase, new_ride

ROME = MarketId("rome")


async def pause(case: StoreCase, new_rides: str | None, reason: str | None = "storm") -> None:
    await case.store.set_market_state(MARKET, new_rides=new_rides, reason=reason, changed_by="ann")


class TestPauses:
    async def test_a_market_that_refuses_takes_no_new_ride(self, case: StoreCase) -> None:
        await pause(case, "refuse")
        assert await case.store.request_rides([new_ride()]) == [MarketPaused(MARKET, "storm")]
        assert await case.store.rides(None, state=None, before=None, limit=9) == []

    async def test_other_markets_rides_in_the_same_group_are_taken(self, case: StoreCase) -> None:
        await pause(case, "refuse", None)
        outcomes = await case.store.request_rides([new_ride(market="rome"), new_ride("bob"), new_ride("c", key="k")])
        assert isinstance(outcomes[0], Requested)
        assert outcomes[1:] == [MarketPaused(MARKET, None)] * 2

    async def test_a_key_that_was_answered_before_gets_that_answer(self, case: StoreCase) -> None:
        """P3"""
        first = await case.ride(key="k")
        await pause(case, "refuse")
        again, other = await case.store.request_rides([new_ride(key="k"), new_ride(key="k", body=b"other")])
        assert again == Requested(first, None, repeated=True)
        assert other == KeyReused("k")

    async def test_a_key_that_was_refused_is_free(self, case: StoreCase) -> None:
        await pause(case, "refuse")
        await case.store.request_rides([new_ride(key="k")])
        await pause(case, None)
        [outcome] = await case.store.request_rides([new_ride(key="k", body=b"other")])
        assert isinstance(outcome, Requested)
        assert not outcome.repeated

    async def test_a_market_that_queues_takes_rides_and_matches_none(self, case: StoreCase) -> None:
        await pause(case, "queue")
        ride = await case.ride()
        waiting = await case.store.waiting(MARKET, limit=9)
        assert waiting.paused
        assert [one.ride_id for one in waiting.rides] == [ride.ride_id]
        assert not (await case.store.waiting(ROME, limit=9)).paused

    @pytest.mark.parametrize("new_rides", ["refuse", "queue"])
    async def test_what_is_under_way_goes_on_and_limits_hold(self, case: StoreCase, new_rides: str) -> None:
        """P4"""
        _, trip = await case.matched()
        waits = await case.ride()
        await pause(case, new_rides)
        assert (await case.store.waiting(MARKET, limit=9)).paused
        await case.move(trip, Move.ARRIVE, Move.START, Move.COMPLETE)
        case.past_deadline(waits.ride_id)
        assert len(await case.sweep()) == 1

    async def test_once_resumed_it_is_as_before(self, case: StoreCase) -> None:
        await pause(case, "refuse")
        await pause(case, None, "the storm is over")
        ride = await case.ride()
        waiting = await case.store.waiting(MARKET, limit=9)
        assert not waiting.paused
        assert [one.ride_id for one in waiting.rides] == [ride.ride_id]

    async def test_what_was_said_last_is_shown_with_who_said_it(self, case: StoreCase) -> None:
        assert await case.store.market_states() == []
        before_ms = await case.store.now_ms()
        state = await case.store.set_market_state(MARKET, new_rides="queue", reason="é" * 300, changed_by="ann")
        assert (state.market, state.new_rides, state.reason, state.changed_by) == (MARKET, "queue", "é" * 255, "ann")
        assert state.is_paused
        assert before_ms <= state.changed_at_ms <= await case.store.now_ms()
        other = await case.store.set_market_state(ROME, new_rides=None, reason=None, changed_by="bob")
        assert not other.is_paused
        assert await case.store.market_states() == [state, other]
        state = await case.store.set_market_state(MARKET, new_rides=None, reason=None, changed_by="bob")
        assert await case.store.market_states() == [state, other]

    async def test_many_who_say_it_first_at_once_all_succeed(self, case: StoreCase) -> None:
        said = [
            case.store.set_market_state(MARKET, new_rides="queue", reason=None, changed_by=f"ann-{n}") for n in range(8)
        ]
        await asyncio.gather(*said)
        assert len(await case.store.market_states()) == 1

    async def test_operators_commands_are_taken_while_paused(self, case: StoreCase) -> None:
        ride, driver = await case.ride(), await case.driver()
        await pause(case, "refuse")
        await case.done(await case.assign(ride.ride_id, driver))
        await case.done(await case.store.cancel_ride(ride.ride_id, client_id=None, reason=None, actor=Actor.OPERATOR))


class TestMatchers:
    async def test_each_knows_how_many_live(self, case: StoreCase) -> None:
        seen = [await case.store.matcher_seen(f"m-{n}", unseen_ms=60_000) for n in (1, 2, 1, 3)]
        assert seen == [1, 2, 2, 3]
        await case.store.matcher_gone("m-2")
        await case.store.matcher_gone("m-2")
        assert await case.store.matcher_seen("m-1", unseen_ms=60_000) == 2

    async def test_one_unseen_for_long_is_forgotten_and_counts_again_when_it_is_back(self, case: StoreCase) -> None:
        for name in ("m-1", "m-2"):
            await case.store.matcher_seen(name, unseen_ms=60_000)
        case.sql("UPDATE matchers SET seen_at_ms = seen_at_ms - 70000")
        assert await case.store.matcher_seen("m-1", unseen_ms=60_000) == 1
        assert len(case.sql("SELECT holder FROM matchers")) == 1
        assert await case.store.matcher_seen("m-2", unseen_ms=60_000) == 2

    async def test_many_that_say_so_at_once_are_all_counted(self, case: StoreCase) -> None:
        for _ in range(3):
            await asyncio.gather(*[case.store.matcher_seen(f"m-{n % 6}", unseen_ms=60_000) for n in range(12)])
        assert await case.store.matcher_seen("m-0", unseen_ms=60_000) == 6
