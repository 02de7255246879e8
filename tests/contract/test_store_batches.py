"""What every store promises of the records of batches, of why rides wait, and of drivers' histories (P7, P10, P12)."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from geo.model import DriverId, MarketId
from matcher import store_batches
from matcher.errors import LeaseLost
from matcher.ids import new_ride_id, time_ordered
from matcher.model import Move, Ride, RideId, Trip
from matcher.outcomes import BatchRecord, DriverHistory, RideWait
from matcher.store_batches import DROP_MAX, INPUT_BYTES_MAX, encoded
from tests.stores import HOLDER, HOUR_MS, MARKET, StoreCase, pairing

ROME = MarketId("rome")
SUMMARY = {"rides": 3, "cost_s": 12.5, "certified": True, "unmatched": {"outbid": 1}, "scope": "all pairs in reach"}


def batch_ids(count: int, *, since_ms: int = 1_700_000_000_000) -> list[str]:
    """In order of time, a millisecond apart."""
    return ["b_" + time_ordered(since_ms + number) for number in range(count)]


async def record(
    case: StoreCase,
    batch_id: str,
    *,
    token: int | None = None,
    summary: Mapping[str, Any] = SUMMARY,
    data: bytes | None = None,
    waits: Sequence[tuple[RideId, str, Mapping[str, Any]]] = (),
    **keep: int,
) -> None:
    token = token or await case.lease()
    await case.store.record_batch(MARKET, token, batch_id, summary=summary, input=data, waits=waits, **keep)


async def ids_of(case: StoreCase, market: MarketId | None = MARKET, before: str | None = None) -> list[str]:
    return [each.batch_id for each in await case.store.batches(market, before=before, limit=1000)]


class TestRecords:
    async def test_a_record_is_read_as_it_was_given_at_the_databases_time(self, case: StoreCase) -> None:
        [batch_id] = batch_ids(1)
        before_ms = await case.store.now_ms()
        await record(case, batch_id, data=b"input")
        found = await case.store.batch(batch_id)
        assert found is not None
        assert before_ms <= found.decided_at_ms <= await case.store.now_ms()
        assert found == BatchRecord(batch_id, MARKET, found.decided_at_ms, SUMMARY, len(b"input"))
        assert await case.store.batches(None, before=None, limit=10) == [found]
        assert await case.store.batch_input(batch_id) == b"input"

    @pytest.mark.parametrize("batch_id", ["b_unknown", "", "\udc80", "x" * 1000])
    async def test_what_was_never_recorded_is_not_found(self, case: StoreCase, batch_id: str) -> None:
        assert await case.store.batch(batch_id) is None
        assert await case.store.batch_input(batch_id) is None
        assert await case.store.ride_wait(RideId(batch_id)) is None
        assert await case.store.trips_of(RideId(batch_id)) == []

    async def test_pages_hold_every_record_once_newest_first_in_one_market_or_all(self, case: StoreCase) -> None:
        ids = batch_ids(5)
        for batch_id in random.sample(ids, len(ids)):
            await record(case, batch_id)
        [elsewhere] = batch_ids(1, since_ms=1_700_000_000_002)
        token = await case.store.acquire_lease(ROME, HOLDER, HOUR_MS)
        assert token is not None
        await case.store.record_batch(ROME, token, elsewhere, summary={}, input=None, waits=[])
        for market, expected in [(MARKET, ids), (ROME, [elsewhere]), (None, sorted([*ids, elsewhere]))]:
            seen: list[str] = []
            while page := await case.store.batches(market, before=seen[-1] if seen else None, limit=2):
                seen += [each.batch_id for each in page]
            assert seen == expected[::-1]

    async def test_recording_a_batch_again_changes_nothing(self, case: StoreCase) -> None:
        """P3"""
        [batch_id], ride_id = batch_ids(1), new_ride_id()
        await record(case, batch_id, data=b"first", waits=[(ride_id, "outbid", {"n": 1})])
        first = await case.store.batch(batch_id), await case.store.ride_wait(ride_id)
        await record(case, batch_id, summary={}, data=b"second", waits=[(ride_id, "all_refused", {})])
        assert (await case.store.batch(batch_id), await case.store.ride_wait(ride_id)) == first
        assert await case.store.batch_input(batch_id) == b"first"

    @pytest.mark.parametrize(
        ("summary", "detail", "batch_id"),
        [
            ({"cost_s": float("nan")}, {}, "b_1"),
            ({"note": "x" * 20_000}, {}, "b_1"),
            ({}, {"cost_s": float("inf")}, "b_1"),
            ({}, {"note": "é" * 1000}, "b_1"),
            ({}, {}, "b" * 33),
        ],
    )
    async def test_what_cannot_be_kept_is_refused_before_anything_is_written(
        self, case: StoreCase, summary: Mapping[str, Any], detail: Mapping[str, Any], batch_id: str
    ) -> None:
        with pytest.raises(ValueError):
            await record(case, batch_id, summary=summary, waits=[(new_ride_id(), "outbid", detail)])
        assert await ids_of(case) == []


async def test_a_record_is_encoded_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of details take tens of milliseconds."""
    threads, [batch_id] = set[int](), batch_ids(1)

    def json_of(value: Mapping[str, Any]) -> str:
        threads.add(threading.get_ident())
        return "{}"

    monkeypatch.setattr(store_batches, "json_of", json_of)
    await encoded(MARKET, batch_id, {}, None, [(new_ride_id(), "outbid", {})])
    assert threads.isdisjoint({threading.get_ident()})
    assert threads


class TestInputs:
    @pytest.mark.parametrize("data", [b"", b"\0'\"\\\n\x1a%s;\xff" * 99, bytes(range(256)) * 4, "ä€".encode()])
    async def test_any_bytes_come_back_as_they_went(self, case: StoreCase, data: bytes) -> None:
        [batch_id] = batch_ids(1)
        await record(case, batch_id, data=data)
        assert await case.store.batch_input(batch_id) == data
        assert (await case.store.batches(MARKET, before=None, limit=1))[0].input_bytes == len(data)

    @pytest.mark.parametrize("alike", [True, False])
    async def test_the_largest_input_is_kept_however_badly_it_packs(self, case: StoreCase, alike: bool) -> None:
        """As an SQL literal each zero takes two bytes: plain, the first would not fit into one packet."""
        data = bytes(INPUT_BYTES_MAX) if alike else random.Random(7).randbytes(INPUT_BYTES_MAX)
        [batch_id] = batch_ids(1)
        await record(case, batch_id, data=data)
        assert await case.store.batch_input(batch_id) == data

    async def test_a_larger_input_is_refused_and_nothing_is_written(self, case: StoreCase) -> None:
        """P10"""
        with pytest.raises(ValueError, match="at most"):
            await record(case, batch_ids(1)[0], data=bytes(INPUT_BYTES_MAX + 1))
        assert await ids_of(case) == []


class TestRing:
    """P10: what is kept of a market has a limit."""

    async def test_only_the_newest_records_are_kept(self, case: StoreCase) -> None:
        ids = batch_ids(6)
        for batch_id in ids:
            await record(case, batch_id, keep_batches=3)
        assert await ids_of(case) == ids[:2:-1]

    async def test_only_the_newest_inputs_are_kept_and_records_without_one_do_not_count(self, case: StoreCase) -> None:
        ids = batch_ids(8)
        for number, batch_id in enumerate(ids):
            await record(case, batch_id, data=b"%d" % number if number % 2 else None, keep_inputs=2)
        assert await ids_of(case) == ids[::-1]
        kept = [await case.store.batch_input(batch_id) for batch_id in ids]
        assert kept == [None] * 5 + [b"5", None, b"7"]
        sizes = [each.input_bytes for each in await case.store.batches(MARKET, before=None, limit=9)]
        assert sizes == [1, None, 1] + [None] * 5

    async def test_a_smaller_ring_is_reached_in_bounded_steps(self, case: StoreCase) -> None:
        old = batch_ids(DROP_MAX + 5, since_ms=1_600_000_000_000)
        rows = ",".join(f"('{MARKET}', '{batch_id}', 1, '{{}}', 'x', 1)" for batch_id in old)
        case.sql(f"INSERT INTO batches (market, batch_id, decided_at_ms, summary, input, input_bytes) VALUES {rows}")
        first, second = batch_ids(2)
        await record(case, first, keep_batches=2, keep_inputs=0)
        assert len(await ids_of(case)) == len(old) + 1 - DROP_MAX
        await record(case, second, keep_batches=2, keep_inputs=0)
        assert await ids_of(case) == [second, first]

    async def test_another_markets_records_stay(self, case: StoreCase) -> None:
        token = await case.store.acquire_lease(ROME, HOLDER, HOUR_MS)
        assert token is not None
        [old, *new] = batch_ids(4)
        await case.store.record_batch(ROME, token, old, summary={}, input=b"rome", waits=[])
        for batch_id in new:
            await record(case, batch_id, data=b"x", keep_batches=1, keep_inputs=1)
        assert await ids_of(case, None) == [new[-1], old]
        assert await case.store.batch_input(old) == b"rome"


class TestFence:
    """P7"""

    @pytest.mark.parametrize("how", ["another token", "ran out", "no lease at all"])
    async def test_whoever_lost_the_lease_writes_nothing(self, case: StoreCase, how: str) -> None:
        token, [kept, late], ride_id = await case.lease(), batch_ids(2), new_ride_id()
        await record(case, kept, data=b"kept", waits=[(ride_id, "outbid", {})])
        if how == "another token":
            await case.store.acquire_lease(MARKET, HOLDER, HOUR_MS)
        elif how == "ran out":
            case.sql("UPDATE market_leases SET expires_at_ms = 1")
        else:
            case.sql("DELETE FROM market_leases")
        for batch_id in (late, kept):
            with pytest.raises(LeaseLost):
                await record(
                    case,
                    batch_id,
                    token=token,
                    data=b"late",
                    waits=[(ride_id, "all_refused", {}), (new_ride_id(), "outbid", {})],
                    keep_batches=1,
                    keep_inputs=0,
                )
        assert await ids_of(case) == [kept]
        assert await case.store.batch_input(kept) == b"kept"
        wait = await case.store.ride_wait(ride_id)
        assert wait is not None
        assert wait.reason == "outbid"
        assert case.sql("SELECT COUNT(*) FROM ride_waits")[0][0] == 1


class TestWaits:
    async def test_the_last_reason_counts(self, case: StoreCase) -> None:
        first, second = batch_ids(2)
        one, two, three = (new_ride_id() for _ in range(3))
        await record(case, first, waits=[(one, "outbid", {"candidates": 4}), (two, "no_driver_in_reach", {})])
        await record(case, second, waits=[(three, "outbid", {}), (one, "all_refused", {"refused": 2})])
        at_ms = {each.batch_id: each.decided_at_ms for each in await case.store.batches(MARKET, before=None, limit=9)}
        expected = [
            RideWait(one, "all_refused", {"refused": 2}, second, at_ms[second]),
            RideWait(two, "no_driver_in_reach", {}, first, at_ms[first]),
            RideWait(three, "outbid", {}, second, at_ms[second]),
        ]
        assert [await case.store.ride_wait(ride_id) for ride_id in (one, two, three)] == expected

    async def test_a_detail_keeps_any_text(self, case: StoreCase) -> None:
        [batch_id], ride_id = batch_ids(1), new_ride_id()
        detail = {"näme €": "Ω 🚕 '\"\\ %s \0 \ud800", "n": [1, 2.5, None, {"deep": True}]}
        await record(case, batch_id, summary={"scope": "Zürich 🚕"}, waits=[(ride_id, "outbid", detail)])
        wait = await case.store.ride_wait(ride_id)
        assert wait is not None
        assert wait.detail == detail
        found = await case.store.batch(batch_id)
        assert found is not None
        assert found.summary == {"scope": "Zürich 🚕"}

    async def test_thousands_of_rides_wait_and_one_named_twice_has_its_last_reason(self, case: StoreCase) -> None:
        rides = [new_ride_id() for _ in range(1201)]
        for batch_id in batch_ids(2):
            waits = [(ride_id, "outbid", {"batch": batch_id}) for ride_id in rides]
            await record(case, batch_id, waits=[(rides[5], "all_refused", {}), *waits])
        assert case.sql("SELECT COUNT(*), MIN(reason) FROM ride_waits")[0] == (len(rides), "outbid")
        wait = await case.store.ride_wait(rides[-1])
        assert wait is not None
        assert wait.detail == {"batch": wait.batch_id}


class TestTripsOfARide:
    async def test_all_trips_come_in_the_order_matched_with_their_decisions(self, case: StoreCase) -> None:
        ride, first = await case.matched(offer_ttl_ms=60_000)
        ride = await case.move(first, Move.DECLINE)
        second = await case.match(ride, await case.driver())
        ride = await case.move(second, Move.DRIVER_CANCEL)
        third = await case.match(ride, await case.driver())
        await case.matched()
        found = await case.store.trips_of(ride.ride_id)
        assert [trip.trip_id for trip in found] == [first.trip_id, second.trip_id, third.trip_id]
        assert [trip.state for trip in found] == ["declined", "cancelled", "accepted"]
        assert found[2] == third
        assert {trip.decision["batch"] for trip in found} == {"b-1"}
        assert [trip.trip_id for trip in await case.store.trips_of(ride.ride_id, limit=2)] == [
            second.trip_id,
            third.trip_id,
        ]


class TestHistories:
    async def ended(self, case: StoreCase, driver: DriverId, *moves: Move, offer: bool = False) -> Trip:
        ride = await case.ride()
        trip = await case.match(ride, driver, offer_ttl_ms=60_000 if offer else None)
        return self.trip_of(await case.move(trip, *moves))

    @staticmethod
    def trip_of(ride: Ride) -> Trip:
        assert ride.trip is not None
        return ride.trip

    async def test_trips_and_refusals_are_counted_a_driver_with_the_newest_end(self, case: StoreCase) -> None:
        one, two, idle = [await case.driver() for _ in range(3)]
        await self.ended(case, one, Move.DECLINE, offer=True)
        await self.ended(case, one, Move.DRIVER_CANCEL)
        last = await self.ended(case, one, Move.ARRIVE, Move.START, Move.COMPLETE)
        await case.matched(two)
        found = await case.store.driver_histories(MARKET, within_ms=HOUR_MS)
        assert found == {
            one: DriverHistory(one, last.ended_at_ms, trips=3, refused=2),
            two: DriverHistory(two, None, trips=1, refused=0),
        }
        assert idle not in found

    async def test_an_offer_that_timed_out_is_a_refusal_and_what_a_rider_or_a_lost_phone_ended_is_none(
        self, case: StoreCase
    ) -> None:
        silent, left, lost = [await case.driver() for _ in range(3)]
        _, offered = await case.matched(silent, offer_ttl_ms=60_000)
        case.past_limit(offered)
        ride, _ = await case.matched(left)
        await case.store.cancel_ride(ride.ride_id, client_id=None, reason="x")
        _, trip = await case.matched(lost)
        case.past_limit(trip)
        assert len(await case.sweep()) == 2
        found = await case.store.driver_histories(MARKET, within_ms=HOUR_MS)
        assert {driver: each.refused for driver, each in found.items()} == {silent: 1, left: 0, lost: 0}
        assert all(each.ended_at_ms is not None for each in found.values())

    async def test_older_trips_and_other_markets_do_not_count_and_the_answer_is_bounded(self, case: StoreCase) -> None:
        drivers = sorted([await case.driver() for _ in range(3)])
        for driver in drivers:
            await case.matched(driver)
        old = await self.ended(case, await case.driver(), Move.DRIVER_CANCEL)
        case.sql("UPDATE trips SET matched_at_ms = matched_at_ms - ? WHERE trip_id = ?", 2 * HOUR_MS, old.trip_id)
        assert list(await case.store.driver_histories(MARKET, within_ms=HOUR_MS)) == drivers
        assert list(await case.store.driver_histories(MARKET, within_ms=HOUR_MS, limit=2)) == drivers[:2]
        assert old.driver_id in await case.store.driver_histories(MARKET, within_ms=3 * HOUR_MS)
        assert await case.store.driver_histories(ROME, within_ms=HOUR_MS) == {}

    async def test_a_lost_pairing_leaves_no_history(self, case: StoreCase) -> None:
        driver = await case.driver()
        ride, _ = await case.matched()
        assert (await case.commit(pairing(ride, driver))).lost
        assert driver not in await case.store.driver_histories(MARKET, within_ms=HOUR_MS)
