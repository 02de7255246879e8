"""How fixes are put into columns."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from geo.cells import cell_of
from geo.feed import FIXES_A_CALL_MAX, InProcessFeed, LocalFollower, pack, parts_of
from geo.model import DriverId, MarketId, Removal, Stamp
from geo.records import UNKNOWN_U16
from tests.feeds import RESOLUTION, fix, index

NOW = 1_700_000_000_000


def test_every_field_survives() -> None:
    one = replace(fix("d", 7, epoch=2, instance=NOW, age_ms=250), heading_deg=90.5, speed_mps=13.37, available=False)
    one = replace(one, tags=2**32 - 1)
    batch = pack([one, fix("e")], RESOLUTION, NOW)
    assert batch.ids == ["d", "e"]
    record = batch.records[0]
    assert record["fix_ms"] == NOW - 250
    assert record["cell"] == cell_of(one.lat, one.lon, RESOLUTION)
    assert (record["lat"], record["lon"]) == (one.lat, one.lon)
    assert (record["epoch"], record["instance"], record["seq"]) == (2, NOW, 7)
    assert (record["heading"], record["speed"], record["seats"], record["flags"]) == (9050, 1337, 4, 0)
    assert record["vehicle_class"] == b"standard"
    assert batch.records["tags"].tolist() == [2**32 - 1, 0]


@pytest.mark.parametrize(
    ("heading", "packed"), [(None, UNKNOWN_U16), (0.0, 0), (359.994, 35_999), (359.999, 0), (360.0, 0)]
)
def test_a_heading_rounds_within_the_circle(heading: float | None, packed: int) -> None:
    assert pack([replace(fix("d"), heading_deg=heading)], RESOLUTION, NOW).records["heading"][0] == packed


@pytest.mark.parametrize(("speed", "packed"), [(None, UNKNOWN_U16), (0.0, 0), (655.34, 65_534), (9_999.0, 65_534)])
def test_a_speed_beyond_the_field_is_the_fastest_known(speed: float | None, packed: int) -> None:
    assert pack([replace(fix("d"), speed_mps=speed)], RESOLUTION, NOW).records["speed"][0] == packed


@pytest.mark.parametrize(
    "wrong",
    [
        {"seats": 256},
        {"seats": -1},
        {"speed_mps": -1.0},
        {"vehicle_class": "1234567890abc"},
        {"tags": 2**32},
        {"tags": -1},
    ],
)
def test_what_a_record_cannot_hold_is_refused_by_the_driver_s_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="d-1"):
        pack([replace(fix("d-1"), **wrong)], RESOLUTION, NOW)  # type: ignore[arg-type]


async def test_a_part_that_waits_for_its_turn_is_no_younger_for_it() -> None:
    """P5: ages are those at the hand-over."""
    seconds = itertools.count()
    feed = InProcessFeed(RESOLUTION, clock=lambda: next(seconds) * 1000.0)
    market = MarketId("m")
    await feed.publish(market, [fix(f"d-{i}", age_ms=250) for i in range(2 * FIXES_A_CALL_MAX + 1)])
    drivers = index()
    feed.attach(market, LocalFollower(feed, market, drivers))
    assert len(drivers) == 2 * FIXES_A_CALL_MAX + 1
    assert len({drivers.age_ms(DriverId(f"d-{i}"), 10_000_000) for i in range(2 * FIXES_A_CALL_MAX + 1)}) == 1


def test_nothing_packs_to_nothing() -> None:
    assert len(pack([], RESOLUTION, NOW).records) == 0


@pytest.mark.parametrize(
    ("fixes", "removals", "parts"), [(0, 0, 0), (1, 0, 1), (500, 500, 1), (501, 0, 2), (3, 1_001, 3)]
)
def test_a_publication_is_cut_into_parts_of_bounded_size(fixes: int, removals: int, parts: int) -> None:
    """P10"""
    given = [fix(f"d-{i}") for i in range(fixes)]
    gone = [Removal(DriverId(f"r-{i}"), Stamp(1, 1, 1)) for i in range(removals)]
    for handed_over in (given, pack(given, RESOLUTION, 0)):
        cut = parts_of(handed_over, gone, RESOLUTION)
        assert len(cut) == parts
        assert all(len(each.ids) <= FIXES_A_CALL_MAX and len(each.removals) <= FIXES_A_CALL_MAX for each in cut)
        assert [driver_id for each in cut for driver_id in each.ids] == [each.driver_id for each in given]
        assert all(len(each.records) == len(each.ids) for each in cut)
        assert sum(len(each.removals) for each in cut) == removals
