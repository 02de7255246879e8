"""What every store promises of rides: kept once, found again, cancelled once (P2, P3, P11)."""

from __future__ import annotations

import math

import pytest

from geo.model import LatLng
from matcher.errors import StoreUnavailable
from matcher.ids import new_ride_id
from matcher.model import ClientId, Move, RideId, RideState, TripState
from matcher.outcomes import Done, KeyReused, NotAllowed, NotFound, NotYours, Requested, RequestOutcome
from tests.stores import HOUR_MS, StoreCase, new_ride


class TestRequests:
    async def test_a_ride_is_read_back_as_it_was_answered(self, case: StoreCase) -> None:
        asked = new_ride("ålice", metadata={"note": "é \U0001f600 %s ' \\", "deep": [1, 2.5, None]})
        [outcome] = await case.store.request_rides([asked])
        assert isinstance(outcome, Requested)
        assert not outcome.repeated
        assert outcome.hint is not None
        assert outcome.hint.version == 1
        assert await case.store.ride(asked.ride_id) == outcome.ride
        assert outcome.ride.pickup == asked.pickup  # to the last bit
        assert outcome.ride.metadata == asked.metadata
        assert outcome.ride.deadline_at_ms == outcome.ride.requested_at_ms + asked.deadline_ms
        assert await case.events(asked.ride_id) == ["requested"]

    async def test_destinations_are_kept(self, case: StoreCase) -> None:
        ride = await case.ride(dropoff=LatLng(-0.0000001, 179.9999999))
        assert (await case.now(ride.ride_id)).dropoff == LatLng(-0.0000001, 179.9999999)

    async def test_what_a_ride_asks_of_the_vehicle_is_kept_wherever_the_ride_is_shown(self, case: StoreCase) -> None:
        tags = ("child_seat", "wheelchair")
        first = await case.ride(key="k", tags=tags)
        assert first.tags == tags
        [waiting] = (await case.store.waiting(first.market, limit=10)).rides
        driver = await case.driver()
        await case.store.put_driver(driver, vehicle_class="standard", seats=4, tags=tags)
        await case.match(first, driver)
        [again] = await case.store.request_rides([new_ride(key="k")])
        shown = [await case.now(first.ride_id), waiting, *await case.store.live_trips([driver])]
        shown += await case.store.rides(None, state=None, before=None, limit=10)
        assert [ride.tags for ride in shown] == [tags] * 4
        assert again == Requested(first, None, repeated=True)

    async def test_a_repeated_key_gets_the_first_answer_whatever_became_of_the_ride(self, case: StoreCase) -> None:
        """P3"""
        first = await case.ride(key="k")
        await case.match(first, await case.driver())
        [again] = await case.store.request_rides([new_ride(key="k")])
        assert again == Requested(first, None, repeated=True)

    async def test_what_a_key_was_answered_is_found_without_asking_again(self, case: StoreCase) -> None:
        """P3: for a request that would be refused by now."""
        first = await case.ride(key="k", body=b"one")
        await case.match(first, await case.driver())
        assert await case.store.answered_before(new_ride(key="k", body=b"one")) == Requested(first, None, repeated=True)
        assert await case.store.answered_before(new_ride(key="k", body=b"two")) == KeyReused("k")
        for other in (new_ride(key="K"), new_ride("bob", key="k"), new_ride(), new_ride(key="k" * 300)):
            assert await case.store.answered_before(other) is None
        assert len(await case.store.rides(None, state=None, before=None, limit=10)) == 1

    async def test_a_key_with_another_body_is_refused(self, case: StoreCase) -> None:
        """P3"""
        await case.ride(key="k", body=b"one")
        assert await case.store.request_rides([new_ride(key="k", body=b"two")]) == [KeyReused("k")]

    @pytest.mark.parametrize(
        ("client", "key"), [("bob", "k"), ("Alice", "k"), ("alice ", "k"), ("alice", "K"), ("alice", "k ")]
    )
    async def test_keys_and_clients_compare_byte_for_byte(self, case: StoreCase, client: str, key: str) -> None:
        await case.ride("alice", key="k", body=b"one")
        [outcome] = await case.store.request_rides([new_ride(client, key=key, body=b"two")])
        assert isinstance(outcome, Requested)
        assert not outcome.repeated

    async def test_one_key_twice_in_a_group_makes_one_ride(self, case: StoreCase) -> None:
        outcomes = await case.store.request_rides([new_ride(key="k"), new_ride("bob"), new_ride(key="k")])
        rides = {outcome.ride.ride_id for outcome in requested(outcomes)}
        assert len(rides) == 2
        assert sorted(outcome.repeated for outcome in requested(outcomes)) == [False, False, True]

    async def test_a_group_answers_in_its_order(self, case: StoreCase) -> None:
        await case.ride("m", key="old", body=b"one")
        group = [new_ride("z"), new_ride("m", key="old", body=b"two"), new_ride("a", key="k"), new_ride("b")]
        outcomes = await case.store.request_rides(group)
        assert outcomes[1] == KeyReused("old")
        assert [o.ride.ride_id for o in requested([outcomes[0], *outcomes[2:]])] == [
            group[i].ride_id for i in (0, 2, 3)
        ]
        assert await case.store.request_rides([]) == []

    @pytest.mark.parametrize(
        "bad",
        [
            new_ride("x" * 256),
            new_ride("bob", key="k" * 256),
            new_ride("bob", market="m" * 65),
            new_ride("\ud800"),
            new_ride("bob", metadata={"x": math.nan}),
            new_ride("bob", tags=("child,seat",)),
            new_ride("bob", tags=("",)),
            new_ride("bob", tags=("é",)),
            new_ride("bob", tags=("x" * 801,)),
        ],
        ids=["client", "key", "market", "surrogate", "nan", "comma", "no tag", "not ascii", "long tags"],
    )
    async def test_a_row_that_cannot_be_stored_fails_alone(self, case: StoreCase, bad: object) -> None:
        group = [new_ride("a"), bad, new_ride("c", key="k")]
        heard: dict[int, RequestOutcome] = {}
        outcomes = await case.store.request_rides(group, on_outcome=heard.__setitem__)  # type: ignore[arg-type]
        assert [type(outcome) for outcome in outcomes if isinstance(outcome, Requested)] == [Requested] * 2
        assert isinstance(outcomes[1], StoreUnavailable)
        assert "stored" in outcomes[1].reason
        assert heard == dict(enumerate(outcomes))
        assert len(await case.store.rides(None, state=None, before=None, limit=10)) == 2

    async def test_a_key_is_forgotten_after_a_day_and_not_before(self, case: StoreCase) -> None:
        ride = await case.ride(key="k")
        await case.sweep()
        assert requested(await case.store.request_rides([new_ride(key="k")]))[0].repeated
        case.sql("UPDATE rides SET key_until_ms = key_until_ms - ?", 24 * HOUR_MS)
        await case.sweep()
        [again] = requested(await case.store.request_rides([new_ride(key="k", body=b"other")]))
        assert not again.repeated
        assert (await case.now(ride.ride_id)).version == 1


class TestReading:
    async def test_pages_go_from_the_newest_to_the_oldest_and_meet_no_other_client(self, case: StoreCase) -> None:
        mine = [await case.ride("alice") for _ in range(5)]
        await case.ride("bob")
        alice = ClientId("alice")
        first = await case.store.rides(alice, state=None, before=None, limit=3)
        rest = await case.store.rides(alice, state=None, before=first[-1].ride_id, limit=3)
        expected = sorted((ride.ride_id for ride in mine), reverse=True)
        assert [ride.ride_id for ride in first + rest] == expected
        assert len(await case.store.rides(None, state=None, before=None, limit=10)) == 6

    async def test_a_state_narrows_the_list(self, case: StoreCase) -> None:
        cancelled, _ = await case.ride(), await case.ride()
        await case.store.cancel_ride(cancelled.ride_id, client_id=None, reason="no")
        found = await case.store.rides(ClientId("alice"), state=RideState.CANCELLED, before=None, limit=10)
        assert [ride.ride_id for ride in found] == [cancelled.ride_id]

    @pytest.mark.parametrize("ride_id", ["r_unknown", "", "é", "\udc80", "x" * 3000, "' OR '1'='1"])
    async def test_an_id_that_nobody_has_is_no_ride(self, case: StoreCase, ride_id: str) -> None:
        await case.ride()
        assert await case.store.ride(RideId(ride_id)) is None
        assert await case.store.cancel_ride(RideId(ride_id), client_id=None, reason="x") == NotFound()

    async def test_an_id_is_matched_exactly(self, case: StoreCase) -> None:
        ride = await case.ride()
        assert await case.store.ride(RideId(ride.ride_id + " ")) is None
        assert await case.store.ride(RideId(ride.ride_id.lower())) is None


class TestCancellation:
    async def test_a_cancelled_ride_is_out_of_the_batch(self, case: StoreCase) -> None:
        ride = await case.ride()
        outcome = await case.store.cancel_ride(ride.ride_id, client_id=ClientId("alice"), reason="changed my mind")
        assert isinstance(outcome, Done)
        assert [hint.version for hint in outcome.hints] == [2]
        assert (outcome.ride.state, outcome.ride.end_reason) == (RideState.CANCELLED, "changed my mind")
        assert await case.now(ride.ride_id) == outcome.ride
        assert (await case.store.waiting(ride.market, limit=10)).rides == []

    async def test_repeating_it_answers_as_the_first_did(self, case: StoreCase) -> None:
        """P3"""
        ride = await case.ride()
        first = await case.store.cancel_ride(ride.ride_id, client_id=None, reason="one")
        again = await case.store.cancel_ride(ride.ride_id, client_id=None, reason="two")
        assert isinstance(first, Done)
        assert again == Done(first.ride, ())
        assert await case.events(ride.ride_id) == ["requested", "cancelled"]

    async def test_it_withdraws_the_trip_and_frees_the_driver(self, case: StoreCase) -> None:
        driver = await case.driver()
        ride, _ = await case.matched(driver)
        outcome = await case.store.cancel_ride(ride.ride_id, client_id=None, reason="late")
        assert isinstance(outcome, Done)
        assert [hint.driver_id for hint in outcome.hints] == [driver]
        assert outcome.ride.trip is not None
        assert outcome.ride.trip.state is TripState.WITHDRAWN
        assert await case.now(ride.ride_id) == outcome.ride
        await case.matched(driver)

    async def test_another_client_may_not_and_is_told_nothing(self, case: StoreCase) -> None:
        """P11"""
        ride = await case.ride("alice")
        outcome = await case.store.cancel_ride(ride.ride_id, client_id=ClientId("mallory"), reason="x")
        assert outcome == NotYours()
        assert await case.now(ride.ride_id) == ride

    async def test_a_ride_under_way_is_not_cancelled(self, case: StoreCase) -> None:
        ride, trip = await case.matched()
        ride = await case.move(trip, Move.ARRIVE, Move.START)
        assert await case.store.cancel_ride(ride.ride_id, client_id=None, reason="x") == NotAllowed(ride, ())

    async def test_a_long_or_broken_reason_is_cut_not_refused(self, case: StoreCase) -> None:
        ride = await case.ride()
        outcome = await case.store.cancel_ride(ride.ride_id, client_id=None, reason="\ud800é" + "x" * 5000)
        assert isinstance(outcome, Done)
        assert (await case.now(ride.ride_id)).end_reason == "?é" + "x" * 253


def requested(outcomes: list[RequestOutcome]) -> list[Requested]:
    assert all(isinstance(outcome, Requested) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Requested)]


def test_ids_are_distinct_and_sort_by_time() -> None:
    ids = [new_ride_id() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert sorted(ids, key=lambda one: one[:12]) == ids
