"""Synthetic cities are drawn from their seed; recorded ones are read row by row, bad rows named."""

from __future__ import annotations

import gzip
import itertools
import os
import random
from pathlib import Path

import pytest

from benchmarks import recorded
from benchmarks.cities import SyntheticCity, between, metres_between, moved
from benchmarks.recorded import RecordsError, Rejects
from geo.distance import between_m
from geo.model import LatLng

RIDES_HEADER = "requested_at,pickup_lat,pickup_lon,dropoff_lat,dropoff_lon,seats\n"
DRIVERS_HEADER = "seen_at,lat,lon,driver_id,seats\n"
GOOD_RIDE = "2013-11-18 16:00:30,40.75,-73.99,40.76,-73.98,2\n"


def written(path: Path, text: str, *, zipped: bool = False) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


def test_the_same_seed_draws_the_same_city() -> None:
    first, again = SyntheticCity.draw(7), SyntheticCity.draw(7)
    assert first.drivers(50) == again.drivers(50)
    wishes = [list(itertools.islice(city.wishes(60), 100)) for city in (first, again)]
    assert wishes[0] == wishes[1]
    assert SyntheticCity.draw(8).drivers(50) != first.drivers(50)


def test_more_drivers_do_not_change_who_wants_to_ride() -> None:
    city = SyntheticCity.draw(7)
    before = list(itertools.islice(city.wishes(60), 20))
    city.drivers(500)
    assert list(itertools.islice(city.wishes(60), 20)) == before


def test_wishes_come_in_order_at_about_the_rate_asked_for() -> None:
    times = [wish.at_s for wish in itertools.islice(SyntheticCity.draw(3).wishes(120), 4000)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(4000 / 2.0, rel=0.1)


def test_trips_stay_within_their_limit_and_near_their_mean() -> None:
    city = SyntheticCity.draw(5, trip_mean_m=1400)
    lengths = [metres_between(wish.pickup, wish.dropoff) for wish in itertools.islice(city.wishes(60), 3000)]
    assert max(lengths) <= city.trip_max_m * 1.01
    assert sum(lengths) / len(lengths) == pytest.approx(1400, rel=0.1)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rides per minute"):
        next(SyntheticCity.draw(1).wishes(rate))


def test_plane_distances_agree_with_the_sphere_within_a_city() -> None:
    rng = random.Random(4)
    here = LatLng(40.75, -73.98)
    for _ in range(200):
        there = moved(here, rng.uniform(-15e3, 15e3), rng.uniform(-15e3, 15e3))
        assert metres_between(here, there) == pytest.approx(between_m(here, there), rel=1e-3)
    assert between(here, there, 0.0) == here
    assert metres_between(here, between(here, there, 0.25)) == pytest.approx(metres_between(here, there) / 4, rel=1e-3)


@pytest.mark.parametrize("zipped", [False, True])
def test_rides_are_read_zipped_or_not_in_the_order_of_their_times(tmp_path: Path, zipped: bool) -> None:
    text = RIDES_HEADER + "2013-11-18 16:00:40,40.75,-73.99,40.76,-73.98,2\n" + GOOD_RIDE
    rejects = Rejects()
    rides = recorded.read_rides(written(tmp_path / "rides", text, zipped=zipped), rejects)
    assert [ride.at_s for ride in rides] == [1384790430.0, 1384790440.0]
    assert rides[0].pickup == LatLng(40.75, -73.99)
    assert rides[0].seats == 2
    assert rejects.total == 0


@pytest.mark.parametrize(
    "text",
    ["1384790430", "1384790430.0", "2013-11-18 16:00:30", "2013-11-18T16:00:30Z", "2013-11-18T11:00:30-05:00"],
)
def test_one_moment_in_every_form_of_time(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "rides.csv", RIDES_HEADER + f"{text},40.75,-73.99,40.76,-73.98,1\n")
    assert recorded.read_rides(path, Rejects())[0].at_s == 1384790430.0


BAD_RIDES = {
    "yesterday,40.75,-73.99,40.76,-73.98,1": "requested_at is neither",
    "1384790430000,40.75,-73.99,40.76,-73.98,1": "requested_at is neither",
    "nan,40.75,-73.99,40.76,-73.98,1": "requested_at is neither",
    ",40.75,-73.99,40.76,-73.98,1": "requested_at is empty",
    "1,91,-73.99,40.76,-73.98,1": "pickup_lat is not within [-90, 90]",
    "1,28028,-73.99,40.76,-73.98,1": "pickup_lat is not within [-90, 90]",
    "1,40.75,-181,40.76,-73.98,1": "pickup_lon is not within [-180, 180]",
    "1,nan,-73.99,40.76,-73.98,1": "pickup_lat is not finite",
    "1,forty,-73.99,40.76,-73.98,1": "pickup_lat is not a number",
    "1,0,0,40.76,-73.98,1": "pickup_lat, pickup_lon are 0, 0",
    "1,40.75,-73.99,0.0,0.0,1": "dropoff_lat, dropoff_lon are 0, 0",
    "1,40.75,-73.99,40.76,-73.98,0": "seats is not a whole number",
    "1,40.75,-73.99,40.76,-73.98,1.5": "seats is not a whole number",
    "1,40.75,-73.99,40.76,-73.98,1000": "seats is not a whole number",
    "1,40.75,-73.99": "dropoff_lat is empty",
}


@pytest.mark.parametrize("row", BAD_RIDES)
def test_a_bad_row_is_counted_and_named_and_its_neighbours_are_read(tmp_path: Path, row: str) -> None:
    rejects = Rejects()
    rides = recorded.read_rides(
        written(tmp_path / "rides.csv", RIDES_HEADER + GOOD_RIDE + row + "\n" + GOOD_RIDE), rejects
    )
    assert len(rides) == 2
    assert rejects.total == 1
    assert rejects.examples[0].startswith("rides.csv:3: " + BAD_RIDES[row])


def test_bytes_that_are_no_text_cost_their_row_only(tmp_path: Path) -> None:
    path = tmp_path / "rides.csv"
    path.write_bytes((RIDES_HEADER + GOOD_RIDE).encode() + b"\xff\xfe\x00,\x00,1,1,1,1\n" + GOOD_RIDE.encode())
    rejects = Rejects()
    assert len(recorded.read_rides(path, rejects)) == 2
    assert rejects.total == 1


def test_a_gzip_file_that_breaks_off_gives_what_came_before(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = "".join(f"{n},40.{rng.randrange(10**9)},-73.99,40.76,-73.98,1\n" for n in range(20_000))
    whole = gzip.compress((RIDES_HEADER + rows).encode())
    path = tmp_path / "rides.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    rejects = Rejects()
    rides = recorded.read_rides(path, rejects)
    assert 0 < len(rides) < 20_000
    assert any("breaks off" in reason for reason in rejects.reasons)


def test_a_missing_column_is_fatal_and_named(tmp_path: Path) -> None:
    path = written(tmp_path / "rides.csv", "requested_at,pickup_lat,pickup_lon,dropoff_lat\n")
    with pytest.raises(RecordsError, match=r"no column dropoff_lon, seats"):
        recorded.read_rides(path, Rejects())


def test_a_missing_file_is_fatal_and_named(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"cannot read .*nowhere"):
        recorded.read_rides(tmp_path / "nowhere", Rejects())


def test_a_driver_s_second_row_is_rejected(tmp_path: Path) -> None:
    rows = "1,40.75,-73.99,cab 1,4\n2,40.75,-73.99,cab-2,4\n3,40.75,-73.99,cab-2,4\n"
    rejects = Rejects()
    drivers = recorded.read_drivers(written(tmp_path / "drivers.csv", DRIVERS_HEADER + rows), rejects)
    assert [driver.driver_id for driver in drivers] == ["cab-2"]
    assert drivers[0].at_s == 2.0
    assert set(rejects.examples) == {
        "drivers.csv:2: driver_id is not of at most 48 letters, digits, '-', '_' and '.'",
        "drivers.csv:4: driver_id stands in an earlier row",
    }


def test_tracks_are_gathered_by_driver_in_the_order_of_time(tmp_path: Path) -> None:
    text = (
        "at,driver_id,lat,lon,occupied\n"
        "20,b,40.2,-73.2,0\n10,a,40.1,-73.1,1\n10,b,40.3,-73.3,true\n20,b,40.9,-73.9,0\n30,a,40.4,-73.4,maybe\n"
    )
    rejects = Rejects()
    tracks = recorded.read_positions(written(tmp_path / "positions.csv", text), rejects)
    assert [(track.driver_id, list(track.at_s), list(track.occupied)) for track in tracks] == [
        ("a", [10.0], [True]),
        ("b", [10.0, 20.0], [True, False]),
    ]
    assert rejects.total == 2


def test_spreading_moves_full_minutes_only_and_within_their_minute() -> None:
    times = [0.0, 60.0, 61.5, 120.0]
    spread = recorded.spread_minutes(times, random.Random(1))
    assert spread[2] == 61.5
    for before, after in zip(times, spread, strict=True):
        assert before <= after < before + 60.0
    assert spread == recorded.spread_minutes(times, random.Random(1))
    assert spread[0] != 0.0


def recorded_folder() -> Path:
    named = os.environ.get("HEXHAIL_TEST_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.mark.recorded
def test_the_recorded_hour_of_new_york_is_read_whole() -> None:
    folder = recorded_folder() / "nyc_2013_hour"
    if not folder.is_dir():
        pytest.skip(f"the recorded hour is not at {folder}: HEXHAIL_TEST_DATA names the folder of recorded data")
    rejects = Rejects()
    rides = recorded.read_rides(folder / "rides.csv.gz", rejects)
    drivers = recorded.read_drivers(folder / "drivers.csv.gz", rejects)
    assert (len(rides), len(drivers), rejects.total) == (16_010, 6_874, 0)
    on_the_minute = sum(ride.at_s % 60 == 0 for ride in rides)
    spread = recorded.spread_wishes(rides, random.Random(1))
    assert on_the_minute > 0.4 * len(rides)
    assert sum(ride.at_s % 60 == 0 for ride in spread) == 0
