"""Who accepted and does not come nearer is replaced; who comes nearer, is there, or is seen by nobody is not."""

from __future__ import annotations

from geo.model import DriverId, LatLng
from matcher.model import RideId, TripId
from matcher.outcomes import Approach
from matcher.stalls import StallWatch
from tests.batches import market_with

AFTER_MS = 300_000
PICKUP = LatLng(40.75, -73.98)


def watch() -> StallWatch:
    return StallWatch(market_with(stall_after_s=300.0, stall_m=200.0))


def approach(trip: str = "t", *, away_m: float = 2000.0, since_ms: int = 0) -> Approach:
    return Approach(RideId("r"), TripId(trip), DriverId("d"), PICKUP, away_m, since_ms)


def look(stalls: StallWatch, now_ms: int, one: Approach, away_m: float | None) -> bool:
    return bool(stalls.look(now_ms, [one], lambda driver_id, place: away_m))


def test_a_driver_that_gains_nothing_has_stalled_when_its_time_is_over() -> None:
    stalls, one = watch(), approach()
    assert not look(stalls, 10_000, one, 2000.0)
    assert not look(stalls, AFTER_MS - 1, one, 1801.0)
    assert look(stalls, AFTER_MS, one, 1801.0)


def test_a_driver_that_gains_enough_begins_anew_each_time() -> None:
    stalls, one = watch(), approach()
    for number in range(1, 8):
        assert not look(stalls, number * (AFTER_MS - 1), one, 2000.0 - number * 200.0)
    assert not look(stalls, 8 * AFTER_MS - 10, one, 500.0)
    assert look(stalls, 9 * AFTER_MS, one, 500.0)


def test_driving_away_and_back_again_is_no_gain() -> None:
    stalls, one = watch(), approach()
    assert not look(stalls, 1000, one, 5000.0)
    assert not look(stalls, 2000, one, 1900.0)
    assert look(stalls, AFTER_MS, one, 1900.0)


def test_a_driver_near_the_pickup_waits_there_for_as_long_as_it_likes() -> None:
    stalls, one = watch(), approach()
    for number in range(1, 5):
        assert not look(stalls, number * AFTER_MS, one, 199.0)


def test_a_driver_that_is_not_heard_of_any_more_has_stalled() -> None:
    stalls, one = watch(), approach()
    assert not look(stalls, 1000, one, None)
    assert look(stalls, AFTER_MS, one, None)


def test_while_positions_are_not_live_nobodys_time_runs() -> None:
    stalls, one = watch(), approach()
    assert not look(stalls, 1000, one, 2000.0)
    stalls.blind()
    assert not look(stalls, AFTER_MS + 1000, one, 2000.0)
    assert look(stalls, 2 * AFTER_MS + 1000, one, 2000.0)


def test_a_matcher_that_takes_over_counts_from_the_acceptance() -> None:
    assert look(watch(), AFTER_MS, approach(), 1900.0)
    assert not look(watch(), AFTER_MS, approach(), 1800.0)


def test_what_was_accepted_while_positions_were_not_live_begins_when_they_are_back() -> None:
    stalls, one = watch(), approach(since_ms=1000)
    stalls.look(0, [], lambda driver_id, place: None)
    stalls.blind()
    assert not look(stalls, 2 * AFTER_MS, one, 2000.0)
    assert look(stalls, 3 * AFTER_MS, one, 2000.0)


def test_a_trip_that_is_over_is_forgotten() -> None:
    stalls = watch()
    assert not look(stalls, 0, approach("first"), 2000.0)
    assert not look(stalls, AFTER_MS, approach("second", since_ms=AFTER_MS), 2000.0)
    assert not look(stalls, AFTER_MS + 1, approach("first", since_ms=AFTER_MS), 2000.0)


def test_where_the_driver_set_out_from_is_not_known_it_counts_from_the_first_look() -> None:
    stalls, one = watch(), approach(away_m=0.0)
    assert not look(stalls, 10 * AFTER_MS, one, 3000.0)
    assert not look(stalls, 11 * AFTER_MS - 1, one, 2800.0)
    assert not look(stalls, 11 * AFTER_MS + 1000, one, 2800.0)
    assert look(stalls, 12 * AFTER_MS, one, 2800.0)
