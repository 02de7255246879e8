"""What every store promises of events, of the outbox, and of the audit that looks for broken promises."""

from __future__ import annotations

import pytest

from matcher.model import Hint, Move, RideId, RideState
from tests.stores import HOUR_MS, MARKET, StoreCase


class TestEvents:
    async def test_they_come_in_the_order_of_versions_after_the_known_one(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        other = await case.ride()
        await case.move(trip, Move.ARRIVE)
        events = await case.store.events_after({ride.ride_id: 1, other.ride_id: 0}, limit=100)
        mine = [event for event in events if event.ride_id == ride.ride_id]
        assert [(event.version, event.type, event.state) for event in mine] == [
            (2, "assigned", RideState.ASSIGNED),
            (3, "arrived", RideState.ARRIVED),
        ]
        assert mine[0].driver_id == trip.driver_id
        assert (mine[0].trip_id, mine[0].market) == (trip.trip_id, MARKET)
        assert [event.version for event in events if event.ride_id == other.ride_id] == [1]
        assert events == sorted(events, key=lambda event: (event.ride_id, event.version))

    async def test_a_limit_never_shows_a_later_event_without_the_earlier(self, case: StoreCase) -> None:
        rides = [(await case.matched())[0] for _ in range(3)]
        known = {rides[0].ride_id: 0, rides[1].ride_id: 1, rides[2].ride_id: 0}
        for limit in range(6):
            shown: dict[RideId, int] = dict(known)
            for event in await case.store.events_after(known, limit=limit):
                assert event.version == shown[event.ride_id] + 1
                shown[event.ride_id] = event.version
        assert await case.store.events_after({}, limit=10) == []

    async def test_a_cancellation_names_its_reason_and_driver(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        await case.store.move_trip(trip.trip_id, Move.DRIVER_CANCEL, driver_id=None, reason="tired")
        [event] = await case.store.events_after({ride.ride_id: 2}, limit=9)
        assert (event.type, event.reason, event.driver_id) == ("driver_cancelled", "tired", trip.driver_id)

    async def test_versions_are_those_of_the_rides(self, case: StoreCase) -> None:
        ride, other = (await case.matched())[0], await case.ride()
        asked = [ride.ride_id, other.ride_id, RideId("r_unknown")]
        assert await case.store.versions(asked) == {ride.ride_id: 2, other.ride_id: 1}
        assert await case.store.versions([]) == {}

    async def test_hundreds_are_asked_for_at_once(self, case: StoreCase) -> None:
        rides = [await case.ride() for _ in range(20)]
        many = {RideId(f"r_{n:05d}"): n % 5 for n in range(1200)} | {ride.ride_id: 0 for ride in rides}
        assert len(await case.store.events_after(many, limit=5000)) == 20
        assert len(await case.store.versions(list(many))) == 20


class TestOutbox:
    async def test_what_was_not_announced_is_found_until_it_is(self, case: StoreCase) -> None:
        """P9: a hint that was lost with Redis, or with the process that owed it, is picked up by another."""
        ride, trip = await case.matched()
        await case.ride(market="rome")
        hints = await case.store.unannounced(MARKET, older_than_ms=0, limit=10)
        assert [(hint.ride_id, hint.version) for hint in hints] == [(ride.ride_id, 1), (ride.ride_id, 2)]
        assert hints[1] == Hint(ride.ride_id, 2, MARKET, trip.driver_id)
        await case.store.mark_announced(hints[:1])
        assert await case.store.unannounced(MARKET, older_than_ms=0, limit=10) == hints[1:]
        await case.store.mark_announced(hints)
        assert await case.store.unannounced(MARKET, older_than_ms=0, limit=10) == []
        assert len(await case.store.unannounced(None, older_than_ms=0, limit=10)) == 1

    async def test_a_hint_announces_every_version_up_to_its_own_and_none_after(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        await case.move(trip, Move.ARRIVE)
        await case.store.mark_announced([Hint(ride.ride_id, 2, MARKET, None)])
        left = await case.store.unannounced(None, older_than_ms=0, limit=10)
        assert [hint.version for hint in left] == [3]
        await case.store.mark_announced([])

    async def test_what_is_young_is_left_to_its_own_process(self, case: StoreCase) -> None:
        old, _ = await case.ride(), await case.ride()
        case.sql("UPDATE ride_events SET at_ms = at_ms - 60000 WHERE ride_id = ?", old.ride_id)
        left = await case.store.unannounced(None, older_than_ms=30_000, limit=10)
        assert [hint.ride_id for hint in left] == [old.ride_id]

    async def test_many_are_marked_at_once(self, case: StoreCase) -> None:
        for _ in range(5):
            await case.matched()
        hints = await case.store.unannounced(None, older_than_ms=0, limit=100)
        assert len(hints) == 10
        ghosts = [Hint(RideId(f"r_{n}"), 1 + n % 3, MARKET, None) for n in range(1200)]
        await case.store.mark_announced(hints + ghosts)
        assert await case.store.unannounced(None, older_than_ms=0, limit=100) == []


class TestAudit:
    async def test_it_counts_by_state(self, case: StoreCase) -> None:
        await case.ride()
        await case.matched()
        _, done = await case.matched()
        await case.move(done, Move.ARRIVE, Move.START, Move.COMPLETE)
        audit = await case.store.audit()
        assert audit.rides == {"searching": 1, "assigned": 1, "completed": 1}
        assert audit.trips == {"accepted": 1, "completed": 1}
        assert audit.rides_of_events == 3
        assert audit.holds

    @pytest.mark.parametrize(
        ("damage", "found"),
        [
            ("UPDATE rides SET version = version + 1", "versions_without_event"),
            ("DELETE FROM ride_events WHERE version = 1", "versions_without_event"),
            ("UPDATE rides SET current_trip_id = NULL", "rides_without_trip"),
            ("UPDATE rides SET state = 'searching'", "trips_without_ride"),
            ("UPDATE trips SET state = 'completed'", "rides_without_trip"),
            ("UPDATE trips SET live_slot = 'next'", "next_without_now"),
        ],
    )
    async def test_it_finds_a_broken_row(self, case: StoreCase, damage: str, found: str) -> None:
        await case.matched()
        assert (await case.store.audit()).holds
        case.sql(damage)
        audit = await case.store.audit()
        assert getattr(audit, found) == 1
        assert not audit.holds

    async def test_it_finds_a_doubled_driver_that_no_key_caught(self, case: StoreCase) -> None:
        """P1: planted with the keys' columns emptied, as if the keys were missing."""
        _, one = await case.matched()
        _, two = await case.matched()
        case.sql("UPDATE trips SET live_slot = NULL")
        case.sql("UPDATE trips SET driver_id = ?", one.driver_id)
        audit = await case.store.audit()
        assert (audit.drivers_doubled, audit.trips_overlapping, audit.double_assignments) == (1, 1, 2)
        case.sql("UPDATE trips SET live = NULL")
        case.sql("UPDATE trips SET ride_id = ?", two.ride_id)
        assert (await case.store.audit()).rides_doubled == 1

    async def test_it_tells_what_is_overdue(self, case: StoreCase) -> None:
        """P4"""
        case.past_deadline((await case.ride()).ride_id)
        _, trip = await case.matched()
        case.sql("UPDATE trips SET abandon_at_ms = abandon_at_ms - ?", 5 * HOUR_MS)
        assert trip.abandon_at_ms > 0
        assert (await case.store.audit()).overdue == 2
