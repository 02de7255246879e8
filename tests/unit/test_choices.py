"""What a simulated driver does is drawn from its seed, at the rates asked for."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from benchmarks.choices import Answer, Choices, FleetOptions

OPTIONS = FleetOptions(
    speed_mps=10.0,
    position_interval_s=1.0,
    parked_interval_s=1.0,
    answer_s=4.0,
    decline_share=0.2,
    ignore_share=0.1,
    lose_share=0.3,
    lost_s=20.0,
    cancel_share=0.1,
    no_show_share=0.05,
    break_share=0.5,
    online_s=100.0,
    rest_s=30.0,
)


def choices(seed: str = "1/d1", options: FleetOptions = OPTIONS) -> Choices:
    return Choices(options, random.Random(seed))


def test_the_same_seed_makes_the_same_choices_in_whatever_order_they_come() -> None:
    one, other = choices(), choices()
    offers, trips = [one.offer() for _ in range(50)], [one.trip() for _ in range(50)]
    assert [other.trip() for _ in range(50)] == trips
    assert [other.rest_s() for _ in range(5)] == [one.rest_s() for _ in range(5)]
    assert [other.offer() for _ in range(50)] == offers
    assert [choices("2/d1").offer() for _ in range(50)] != offers


def test_another_share_changes_only_what_it_is_a_share_of() -> None:
    before, after = choices(), choices(options=replace(OPTIONS, lose_share=0.0))
    for _ in range(200):
        one, other = before.offer(), after.offer()
        assert (one.answer, one.after_s, 0.0) == (other.answer, other.after_s, other.lost_s)
        trip = before.trip()
        assert replace(trip, lost_s=0.0) == after.trip()


def test_choices_come_at_the_rates_asked_for() -> None:
    drawn = choices()
    offers, trips = [drawn.offer() for _ in range(5_000)], [drawn.trip() for _ in range(5_000)]
    shares = {answer: sum(each.answer is answer for each in offers) / 5_000 for answer in Answer}
    assert shares == pytest.approx({Answer.ACCEPT: 0.7, Answer.DECLINE: 0.2, Answer.IGNORE: 0.1}, abs=0.03)
    assert sum(each.after_s for each in offers) / 5_000 == pytest.approx(4.0, rel=0.1)
    for some in (offers, trips):
        lost_s = [each.lost_s for each in some if each.lost_s]
        assert len(lost_s) / 5_000 == pytest.approx(0.3, abs=0.03)
        assert 10.0 <= min(lost_s) <= max(lost_s) <= 30.0
    assert sum(each.gives_back for each in trips) / 5_000 == pytest.approx(0.1, abs=0.03)
    assert sum(not each.rider_comes for each in trips) / 5_000 == pytest.approx(0.05, abs=0.03)


def test_some_drivers_take_breaks_and_the_others_never_do() -> None:
    drawn = [choices(f"1/d{n}").online_s() for n in range(1_000)]
    taking = [each for each in drawn if each < math.inf]
    assert len(taking) / 1_000 == pytest.approx(0.5, abs=0.06)
    assert sum(taking) / len(taking) == pytest.approx(100.0, rel=0.2)


def test_without_shares_a_driver_accepts_serves_and_stays() -> None:
    plain = choices(options=FleetOptions(10.0, 1.0, 1.0, answer_s=0.0))
    for _ in range(100):
        offer, trip = plain.offer(), plain.trip()
        assert (offer.answer, offer.after_s, offer.lost_s) == (Answer.ACCEPT, 0.0, 0.0)
        assert (trip.gives_back, trip.rider_comes, trip.lost_s) == (False, True, 0.0)
    assert plain.online_s() == math.inf
