"""What every store promises of batches, sweeps and leases (P1, P4, P7)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from geo.model import DriverId, MarketId
from matcher.errors import LeaseLost
from matcher.model import ClientId, DriverStatus, Move, RideState, TripState
from matcher.outcomes import Committed, Done
from tests.stores import HOLDER, HOUR_MS, MARKET, StoreCase, pairing


def whys(committed: Committed) -> Sequence[str]:
    return [lost.why for lost in committed.lost]


class TestPlans:
    async def test_a_plan_assigns_each_of_its_pairings(self, case: StoreCase) -> None:
        rides = [await case.ride() for _ in range(7)]
        drivers = [await case.driver() for _ in range(7)]
        committed = await case.commit(*map(pairing, rides, drivers))
        assert not committed.lost
        assert [hint.ride_id for hint in committed.hints] == [ride.ride_id for ride in rides]
        assert [(hint.version, hint.driver_id) for hint in committed.hints] == [(2, driver) for driver in drivers]
        for ride, trip in zip(rides, committed.trips, strict=True):
            now = await case.now(ride.ride_id)
            assert (now.state, now.version, now.trip) == (RideState.ASSIGNED, 2, trip)
        waiting = await case.store.waiting(MARKET, limit=10)
        assert waiting.rides == []
        assert waiting.engaged == frozenset(drivers)
        assert (await case.store.audit()).holds

    async def test_what_changed_meanwhile_drops_out_alone(self, case: StoreCase) -> None:
        kept, cancelled, late, elsewhere = [await case.ride() for _ in range(3)] + [await case.ride(market="rome")]
        await case.store.cancel_ride(cancelled.ride_id, client_id=None, reason="x")
        case.past_deadline(late.ride_id)  # P4: nothing is matched after its deadline
        plan = [pairing(ride, await case.driver()) for ride in (cancelled, kept, late, elsewhere)]
        plan.append(replace(plan[1], ride_id=type(kept.ride_id)("r_unknown")))
        committed = await case.commit(*plan)
        assert [trip.ride_id for trip in committed.trips] == [kept.ride_id]
        assert [lost.pairing for lost in committed.lost] == [plan[0], *plan[2:]]
        assert set(whys(committed)) == {"ride_changed"}

    async def test_a_vehicle_that_lost_what_the_ride_needs_is_not_matched_on_old_knowledge(
        self, case: StoreCase
    ) -> None:
        ride, plain = await case.ride(tags=("wheelchair",)), await case.ride()
        driver = await case.driver()  # no tags any more
        assert whys(await case.commit(pairing(ride, driver))) == ["driver_gone"]
        await case.store.put_driver(driver, vehicle_class="standard", seats=1, tags=("wheelchair",))
        assert whys(await case.commit(pairing(plain, driver))) == ["driver_gone"]  # it takes two
        await case.store.put_driver(driver, vehicle_class="standard", seats=4, tags=("pets", "wheelchair"))
        assert not (await case.commit(pairing(ride, driver))).lost

    async def test_a_ride_that_changed_and_came_back_is_not_matched_on_old_knowledge(self, case: StoreCase) -> None:
        ride = await case.ride()
        trip = await case.match(ride, await case.driver())
        await case.move(trip, Move.DRIVER_CANCEL)
        committed = await case.commit(pairing(ride, trip.driver_id))  # who refused it since
        assert whys(committed) == ["ride_changed"]

    async def test_a_driver_is_matched_only_online_in_the_market_and_free(self, case: StoreCase) -> None:
        away, busy, resting = [await case.driver() for _ in range(3)]
        await case.store.sign_on(away, MarketId("rome"))
        await case.matched(busy)
        await case.store.set_status(resting, DriverStatus.ON_BREAK, epoch=1)
        names = [away, busy, resting, DriverId("nobody")]
        committed = await case.commit(*[pairing(await case.ride(), name) for name in names])
        assert whys(committed) == ["driver_gone", "driver_engaged", "driver_gone", "driver_gone"]
        assert committed.trips == []

    async def test_a_plan_that_names_one_twice_matches_it_once(self, case: StoreCase) -> None:
        """P1"""
        one, two, driver, other = await case.ride(), await case.ride(), await case.driver(), await case.driver()
        committed = await case.commit(pairing(one, driver), pairing(two, driver), pairing(one, other))
        assert len(committed.trips) == 1
        assert whys(committed) == ["driver_engaged", "ride_changed"]

    async def test_a_trip_id_that_stands_already_spoils_only_its_own_pairing(self, case: StoreCase) -> None:
        """The unique keys are the backstop: what they refuse is redone without its neighbours."""
        _, old = await case.matched()
        plan = [pairing(await case.ride(), await case.driver()) for _ in range(5)]
        plan[2] = replace(plan[2], trip_id=old.trip_id)
        committed = await case.commit(*plan)
        assert [lost.pairing for lost in committed.lost] == [plan[2]]
        assert len(committed.trips) == 4
        assert (await case.store.audit()).holds

    async def test_the_oldest_wait_first_and_others_markets_are_not_shown(self, case: StoreCase) -> None:
        rides = [await case.ride() for _ in range(3)]
        case.sql("UPDATE rides SET requested_at_ms = requested_at_ms - 5000 WHERE ride_id = ?", rides[2].ride_id)
        await case.ride(market="rome")
        waiting = await case.store.waiting(MARKET, limit=2)
        assert waiting.rides[0].ride_id == rides[2].ride_id
        assert len(waiting.rides) == 2
        assert waiting.now_ms >= rides[2].requested_at_ms
        case.past_deadline(rides[2].ride_id)
        assert rides[2].ride_id not in [ride.ride_id for ride in (await case.store.waiting(MARKET, limit=9)).rides]


class TestSweep:
    async def test_a_ride_expires_at_its_deadline(self, case: StoreCase) -> None:
        """P4"""
        ride, other = await case.ride(), await case.ride()
        case.past_deadline(ride.ride_id)
        [hint] = await case.sweep()
        assert (hint.ride_id, hint.version, hint.driver_id) == (ride.ride_id, 2, None)
        expired = await case.now(ride.ride_id)
        assert (expired.state, expired.end_reason) == (RideState.EXPIRED, "expired")
        assert expired.ended_at_ms is not None
        assert await case.events(ride.ride_id) == ["requested", "expired"]
        assert (await case.now(other.ride_id)).state is RideState.SEARCHING
        assert await case.sweep() == []

    async def test_an_offer_dies_with_its_ride(self, case: StoreCase) -> None:
        ride, trip = await case.matched(offer_ttl_ms=60_000)
        case.past_deadline(ride.ride_id)
        [hint] = await case.sweep()
        assert hint.driver_id == trip.driver_id
        expired = await case.now(ride.ride_id)
        assert expired.trip is not None
        assert (expired.state, expired.trip.state) == (RideState.EXPIRED, TripState.TIMED_OUT)
        await case.matched(trip.driver_id)

    @pytest.mark.parametrize(
        ("moves", "state"),
        [
            ([], RideState.SEARCHING),
            ([Move.ARRIVE], RideState.SEARCHING),
            ([Move.ARRIVE, Move.START], RideState.CANCELLED),
        ],
    )
    async def test_a_trip_is_abandoned_at_its_limit(self, case: StoreCase, moves: list[Move], state: RideState) -> None:
        """P4"""
        ride, trip = await case.matched()
        if moves:
            await case.move(trip, *moves)
        case.past_limit(trip)
        [hint] = await case.sweep()
        ride = await case.now(ride.ride_id)
        assert hint.version == ride.version
        assert ride.trip is not None
        assert (ride.state, ride.trip.state, ride.trip.end_reason) == (state, TripState.ABANDONED, "abandoned")
        assert (ride.end_reason, ride.ended_at_ms is None) == (
            ("abandoned", False) if state is RideState.CANCELLED else (None, True)
        )
        await case.matched(trip.driver_id)
        assert (await case.store.audit()).holds

    async def test_it_ends_many_of_every_kind_at_once_within_its_limit(self, case: StoreCase) -> None:
        for _ in range(5):
            case.past_deadline((await case.ride()).ride_id)
        for moves in ([], [Move.ARRIVE], [Move.ARRIVE, Move.START]):
            _, trip = await case.matched()
            if moves:
                await case.move(trip, *moves)
            case.past_limit(trip)
        token = await case.lease()
        first = await case.store.sweep(MARKET, token, limit=3)
        rest = await case.store.sweep(MARKET, token, limit=100)
        assert len({hint.ride_id for hint in first + rest}) == len(first) + len(rest) == 8
        assert (await case.store.audit()).holds

    async def test_it_leaves_other_markets_to_their_matchers(self, case: StoreCase) -> None:
        case.past_deadline((await case.ride(market="rome")).ride_id)
        assert await case.sweep() == []


class TestLeases:
    async def test_one_holds_it_and_the_others_wait(self, case: StoreCase) -> None:
        token = await case.lease()
        assert await case.store.acquire_lease(MARKET, "matcher-2", HOUR_MS) is None
        assert await case.store.renew_lease(MARKET, HOLDER, token, HOUR_MS)
        assert not await case.store.renew_lease(MARKET, "matcher-2", token, HOUR_MS)
        assert await case.store.acquire_lease(MarketId("rome"), "matcher-2", HOUR_MS) == 1

    @pytest.mark.parametrize("how", ["released", "ran out", "taken anew"])
    async def test_the_next_token_is_larger_and_the_old_one_writes_no_more(self, case: StoreCase, how: str) -> None:
        """P7"""
        ride, driver = await case.ride(), await case.driver()
        late = await case.ride()
        case.past_deadline(late.ride_id)
        token = await case.lease()
        holder = HOLDER if how == "taken anew" else "matcher-2"
        if how == "released":
            await case.store.release_lease(MARKET, token)
        elif how == "ran out":
            case.sql("UPDATE market_leases SET expires_at_ms = 1")
        newer = await case.store.acquire_lease(MARKET, holder, HOUR_MS)
        assert newer == token + 1
        with pytest.raises(LeaseLost):
            await case.store.commit_plan(MARKET, token, [pairing(ride, driver)])
        with pytest.raises(LeaseLost):
            await case.store.sweep(MARKET, token)
        assert not await case.store.renew_lease(MARKET, HOLDER, token, HOUR_MS)
        assert [(await case.now(one.ride_id)).version for one in (ride, late)] == [1, 1]
        assert len((await case.store.commit_plan(MARKET, newer, [pairing(ride, driver)])).trips) == 1

    async def test_a_lease_that_ran_out_writes_nothing_although_nobody_took_it(self, case: StoreCase) -> None:
        """P7"""
        ride, driver, token = await case.ride(), await case.driver(), await case.lease()
        case.sql("UPDATE market_leases SET expires_at_ms = 1")
        with pytest.raises(LeaseLost):
            await case.store.commit_plan(MARKET, token, [pairing(ride, driver)])
        assert await case.store.renew_lease(MARKET, HOLDER, token, HOUR_MS)
        assert len((await case.store.commit_plan(MARKET, token, [pairing(ride, driver)])).trips) == 1

    async def test_of_many_that_ask_at_once_one_gets_it(self, case: StoreCase) -> None:
        asked = [case.store.acquire_lease(MARKET, f"m-{i}", HOUR_MS) for i in range(8)]
        tokens = await asyncio.gather(*asked)
        assert [token for token in tokens if token is not None] == [1]


class TestEverythingAtOnce:
    async def test_commands_and_plans_that_race_keep_every_promise(self, case: StoreCase) -> None:
        """P1, P3: whatever interleaving, each command has one outcome and the audit holds."""
        drivers = [await case.driver() for _ in range(4)]
        token = await case.lease()

        async def client(number: int) -> None:
            ride = await case.ride(f"c-{number}", key="k")
            await asyncio.sleep(0.01 * (number % 5))
            if number % 3 == 0:
                await case.store.cancel_ride(ride.ride_id, client_id=ClientId(f"c-{number}"), reason="x")

        async def matcher() -> None:
            waiting = await case.store.waiting(MARKET, limit=50)
            plan = [pairing(ride, drivers[i % 4]) for i, ride in enumerate(waiting.rides)]
            await case.store.commit_plan(MARKET, token, plan)
            await case.store.sweep(MARKET, token)

        async def driver(name: DriverId) -> None:
            for ride in await case.store.live_trips([name]):
                assert ride.trip is not None
                moves = [Move.ARRIVE, Move.ARRIVE, Move.START, Move.COMPLETE, Move.DRIVER_CANCEL]
                jobs = [case.store.move_trip(ride.trip.trip_id, move, driver_id=name) for move in moves]
                await asyncio.gather(*jobs)

        for round_ in range(4):
            clients = [client(round_ * 10 + i) for i in range(10)]
            await asyncio.gather(*clients, matcher(), matcher(), *map(driver, drivers))
            await asyncio.gather(matcher(), *map(driver, drivers))
        audit = await case.store.audit()
        assert audit.holds, audit
        assert sum(audit.rides.values()) == audit.rides_of_events == 40
        assert audit.trips

    async def test_one_command_sent_many_times_takes_effect_once(self, case: StoreCase) -> None:
        """P3"""
        ride, trip = await case.matched()
        jobs = [case.store.move_trip(trip.trip_id, Move.ARRIVE, driver_id=trip.driver_id) for _ in range(12)]
        outcomes = await asyncio.gather(*jobs)
        assert all(isinstance(outcome, Done) for outcome in outcomes)
        assert sum(isinstance(outcome, Done) and len(outcome.hints) == 1 for outcome in outcomes) == 1
        assert (await case.now(ride.ride_id)).version == ride.version + 1
