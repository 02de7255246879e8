"""A ride's event stream, on the embedded default."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.e2e.running import LAT, Running


@dataclass
class Sent:
    id: str | None
    event: str
    data: dict[str, Any]


class Stream:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self, *kinds: str, within_s: float = 10.0) -> Sent | None:
        """The next event of one of these kinds (or any), None at the stream's end."""
        async with asyncio.timeout(within_s):
            while True:
                fields: dict[str, str] = {}
                while (line := (await self.response.content.readline()).decode()) not in ("\n", ""):
                    name, _, value = line.rstrip("\n").partition(":")
                    fields[name] = value.removeprefix(" ")
                if "data" in fields and (not kinds or fields["event"] in kinds):
                    return Sent(fields.get("id"), fields["event"], msgspec.json.decode(fields["data"]))
                if line == "":
                    return None

    async def rest(self) -> list[Sent]:
        found = []
        while (sent := await self.next()) is not None:
            found.append(sent)
        return found


@asynccontextmanager
async def events(run: Running, ride_id: str, *, last: int | None = None, query: str = "") -> AsyncIterator[Stream]:
    headers = {"Authorization": f"Bearer {run.token_of('client:ann')}"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    async with run.http.get(f"{run.base_url}/v1/rides/{ride_id}/events{query}", headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        yield Stream(response)


async def test_a_stream_tells_every_change_in_order_and_ends_with_the_ride(embedded: Running) -> None:
    ride = await embedded.ride()
    async with events(embedded, ride["id"]) as stream:
        await (wheel := await embedded.drive("d1")).stands()
        trip = (await wheel.next("trip"))["ride"]["trip"]["id"]
        for verb in ("arrive", "start", "complete"):
            await wheel.send(type=verb, trip_id=trip)
            await wheel.next("done")
        sent = [each for each in await stream.rest() if each.event != "driver"]
    assert [(each.id, each.event) for each in sent] == [
        ("1", "requested"),
        ("2", "assigned"),
        ("3", "arrived"),
        ("4", "started"),
        ("5", "completed"),
    ]
    assert sent[1].data["driver_id"] == "d1"
    assert sent[-1].data["state"] == "completed"
    assert [each.data["version"] for each in sent] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("by_query", [False, True])
async def test_a_stream_resumes_after_the_version_last_seen(embedded: Running, by_query: bool) -> None:
    ride = await embedded.ride()
    await embedded.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    query, last = ("?last_event_id=1", None) if by_query else ("", 1)
    async with events(embedded, ride["id"], last=last, query=query) as stream:
        assert [(each.id, each.event) for each in await stream.rest()] == [("2", "cancelled")]


async def test_a_stream_of_a_ride_that_has_ended_and_was_seen_to_the_end_is_204(embedded: Running) -> None:
    ride = await embedded.ride()
    await embedded.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    answer = await embedded.call("GET", f"/v1/rides/{ride['id']}/events?last_event_id=2", "client:ann")
    assert answer.status == 204


async def test_the_assigned_drivers_position_comes_in_between_and_stops_at_the_pickup(embedded: Running) -> None:
    wheel = await embedded.drive("d1")
    await wheel.stands(LAT + 0.01)
    ride = await embedded.ride()
    async with events(embedded, ride["id"]) as stream:
        first = await stream.next("driver")
        assert first is not None
        assert (first.id, first.data["driver_id"], first.data["lat"]) == (None, "d1", LAT + 0.01)
        assert first.data["pickup_s"] == pytest.approx(1112 * 1.3 / 7, abs=2)
        await wheel.at(LAT + 0.009)
        second = await stream.next("driver")
        assert second is not None
        assert second.data["lat"] == LAT + 0.009
        trip = (await wheel.next("trip"))["ride"]["trip"]["id"]
        for verb in ("arrive", "start"):
            await wheel.send(type=verb, trip_id=trip)
            await wheel.next("done")
        assert await stream.next("started") is not None
        await wheel.stands(LAT + 0.0089)
        await wheel.send(type="complete", trip_id=trip)
        assert [each.event for each in await stream.rest()] == ["completed"]


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "9" * 20])
async def test_an_event_id_that_never_was_is_refused(embedded: Running, text: str) -> None:
    ride = await embedded.ride()
    answer = await embedded.call("GET", f"/v1/rides/{ride['id']}/events?last_event_id={text}", "client:ann")
    assert (answer.status, answer.code) == (422, "invalid")


async def test_a_reader_that_claims_to_have_seen_the_future_still_hears_what_comes(embedded: Running) -> None:
    ride = await embedded.ride()
    async with events(embedded, ride["id"], last=500) as stream:
        await embedded.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
        assert [each.event for each in await stream.rest()] == ["cancelled"]


async def test_a_reader_that_goes_away_leaves_nothing_behind(embedded: Running) -> None:
    """P10"""
    ride = await embedded.ride(deadline_s=2)
    async with events(embedded, ride["id"]) as stream:
        await stream.next()
        assert embedded.service.sockets.count == 1
    async with asyncio.timeout(20):
        while embedded.service.sockets.count:
            await asyncio.sleep(0.05)
