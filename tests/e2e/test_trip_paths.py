"""A trip's distance and path, from the driver's socket to the ride's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geo.distance import between_m
from geo.model import LatLng
from tests.e2e.running import LAT, LON, Running, Wheel, settings_for, until
from tests.e2e.running import running as run_service

#: About 56 m of latitude: within what is never too far from the fix before.
STEP_DEG = 0.0005
WHO = "client:ann"


def north(steps: int) -> tuple[float, float]:
    return round(LAT + steps * STEP_DEG, 5), LON


def way_m(first: int, last: int) -> float:
    return between_m(LatLng(*north(first)), LatLng(*north(last)))


async def drive_north(wheel: Wheel, first: int, last: int) -> None:
    """Along these steps; returns once the last fix was taken."""
    for step in range(first, last):
        await wheel.at(*north(step))
    await wheel.stands(*north(last))


async def command(wheel: Wheel, verb: str, trip_id: str) -> None:
    await wheel.send(type=verb, trip_id=trip_id)
    await wheel.next("done")


async def assigned(run: Running, wheel: Wheel) -> tuple[str, str]:
    """A new ride of this driver's: its id and the trip's."""
    await wheel.stands(*north(0))
    ride = await run.ride()
    trip = (await wheel.next("trip"))["ride"]["trip"]
    return ride["id"], trip["id"]


async def look(run: Running, ride_id: str) -> dict[str, Any]:
    answer = await run.call("GET", f"/v1/rides/{ride_id}", WHO)
    assert answer.status == 200, answer.body
    return dict(answer.body)


async def driven(run: Running, ride_id: str, distance_m: float) -> dict[str, Any]:
    """The ride once its trip is known to have gone this far; a session that was cut may have counted a jitter less."""
    last: dict[str, Any] = {}

    async def looks() -> bool:
        nonlocal last
        last = await look(run, ride_id)
        return bool((last["travelled_m"] or 0.0) > distance_m - 15.0)

    await until(looks, what=f"{distance_m:.0f} m driven of ride {ride_id}")
    assert last["travelled_m"] == pytest.approx(distance_m, abs=15.0)
    return last


async def test_a_ride_shows_how_far_its_trip_went_and_which_way(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    ride_id, trip_id = await assigned(embedded, wheel)
    ride = await look(embedded, ride_id)
    assert (ride["travelled_m"], ride["path"]) == (None, [])
    await drive_north(wheel, 0, 10)
    await command(wheel, "arrive", trip_id)
    assert (await driven(embedded, ride_id, way_m(0, 10)))["trip"]["state"] == "arrived"
    await command(wheel, "start", trip_id)
    await drive_north(wheel, 11, 40)
    await command(wheel, "complete", trip_id)
    ride = await driven(embedded, ride_id, way_m(0, 40))
    assert ride["trip"]["state"] == "completed"
    assert (ride["path"][0], ride["path"][-1]) == (list(north(0)), list(north(40)))
    assert len(ride["path"]) < 12  # of forty fixes on a straight line, in three parts
    assert all(lon == LON and LAT <= lat <= north(40)[0] for lat, lon in ride["path"])


async def test_a_ride_without_a_trip_has_no_path(embedded: Running) -> None:
    ride = await look(embedded, (await embedded.ride())["id"])
    assert (ride["travelled_m"], ride["path"]) == (None, [])


async def test_only_the_ride_looked_at_alone_shows_its_path(embedded: Running) -> None:
    await embedded.ride()
    [listed] = (await embedded.call("GET", "/v1/rides", WHO)).body["items"]
    assert not {"travelled_m", "path"} & listed.keys()


async def test_what_is_driven_without_a_trip_or_after_it_counts_for_none(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await drive_north(wheel, -10, 0)
    ride_id, trip_id = await assigned(embedded, wheel)
    await drive_north(wheel, 0, 4)
    for verb in ("arrive", "start", "complete"):
        await command(wheel, verb, trip_id)
    await drive_north(wheel, 5, 20)
    await wheel.ws.close()
    ride = await driven(embedded, ride_id, way_m(0, 4))
    assert ride["path"][-1] == list(north(4))


async def test_the_parts_of_two_sessions_add_up_to_one_path(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    ride_id, trip_id = await assigned(embedded, wheel)
    await drive_north(wheel, 0, 12)
    await wheel.ws.close()
    again = await embedded.drive("d1", put=False)
    assert again.welcome["epoch"] > wheel.welcome["epoch"]
    await driven(embedded, ride_id, way_m(0, 12))
    await drive_north(again, 12, 30)
    for verb in ("arrive", "start", "complete"):
        await command(again, verb, trip_id)
    ride = await driven(embedded, ride_id, way_m(0, 30))
    assert (ride["path"][0], ride["path"][-1]) == (list(north(0)), list(north(30)))
    assert [lat for lat, _ in ride["path"]] == sorted(lat for lat, _ in ride["path"])


async def test_a_trip_that_the_rider_cancels_keeps_what_was_driven_for_it(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    ride_id, _ = await assigned(embedded, wheel)
    await drive_north(wheel, 0, 8)
    assert (await embedded.call("POST", f"/v1/rides/{ride_id}/cancel", WHO)).status == 200
    await wheel.next("trip")
    await drive_north(wheel, 9, 14)
    assert (await driven(embedded, ride_id, way_m(0, 8)))["trip"]["state"] == "withdrawn"


async def test_what_was_driven_before_a_drain_is_there_after_it(tmp_path: Path) -> None:
    async with run_service(settings_for(tmp_path)) as run:
        wheel = await run.drive("d1")
        ride_id, _ = await assigned(run, wheel)
        await drive_north(wheel, 0, 9)
    async with run_service(settings_for(tmp_path)) as run:
        await driven(run, ride_id, way_m(0, 9))
