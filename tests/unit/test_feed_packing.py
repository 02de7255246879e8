"""How fixes are put into columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from geo.cells import cell_of
from geo.feed import FIXES_A_CALL_MAX, pack, parts_of
from geo.model import DriverId, Removal, Stamp
from geo.records import UNKNOWN_U16
from tests.feeds import RESOLUTION, fix

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


def test_nothing_packs_to_nothing() -> None:
    assert len(pack([], RESOLUTION, NOW).records) == 0


@pytest.mark.parametrize(
    ("fixes", "removals", "parts"), [(0, 0, 0), (1, 0, 1), (500, 500, 1), (501, 0, 2), (3, 1_001, 3)]
)
def test_a_publication_is_cut_into_parts_of_bounded_size(fixes: int, removals: int, parts: int) -> None:
    """P10"""
    cut = parts_of(
        [fix(f"d-{i}") for i in range(fixes)], [Removal(DriverId(f"r-{i}"), Stamp(1, 1, 1)) for i in range(removals)]
    )
    assert len(cut) == parts
    assert all(len(some) <= FIXES_A_CALL_MAX and len(gone) <= FIXES_A_CALL_MAX for some, gone in cut)
    assert sum(len(some) for some, _ in cut) == fixes
    assert sum(len(gone) for _, gone in cut) == removals
