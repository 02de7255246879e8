"""Offers, and what else a driver answers and reports, over its socket and over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from api.client import ApiError, DispatchClient
from matcher.model import Slot
from tests.e2e.matcher_by_hand import OFFER_MS, Matcher, events_of, hears_nothing_more, offered, post
from tests.e2e.running import JSON, LAT, LON, MSGPACK, Running, market, running, settings_for, until

DAY_MS = 86_400_000


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Running]:
    """A service on which nobody matches but the test."""
    async with running(settings_for(tmp_path), "api") as run:
        yield run


@pytest.fixture
def matcher(service: Running) -> Matcher:
    return Matcher(service)


# The offer


@pytest.mark.parametrize("protocol", [MSGPACK, JSON])
async def test_an_offer_tells_the_ride_what_the_client_said_of_it_and_how_long_it_stands(
    service: Running, matcher: Matcher, protocol: str
) -> None:
    wheel = await service.drive("d1", protocol=protocol)
    ride = await service.ride(metadata={"note": "the blue door", "fare": {"eur": 12.5}})
    trip = await matcher.offer_to(ride, "d1")
    offer = await wheel.next("offer")
    assert (offer["ride"]["id"], offer["ride"]["state"], offer["ride"]["trip"]["state"]) == (
        ride["id"],
        "offered",
        "offered",
    )
    assert offer["ride"]["metadata"] == {"note": "the blue door", "fare": {"eur": 12.5}}
    assert (offer["slot"], offer["ride"]["trip"]["slot"], offer["ride"]["trip"]["id"]) == ("now", "now", trip.trip_id)
    assert offer["expires_at"] == offer["ride"]["trip"]["expires_at"]
    ends_at_ms = datetime.fromisoformat(offer["expires_at"]).timestamp() * 1000
    assert ends_at_ms == pytest.approx(trip.matched_at_ms + OFFER_MS, abs=1)
    assert 0.0 < offer["expires_in_s"] <= OFFER_MS / 1000


async def test_an_accepted_offer_becomes_the_drivers_trip(service: Running, matcher: Matcher) -> None:
    wheel, trip_id = await offered(service, matcher)
    await wheel.send(type="accept", trip_id=trip_id, ref=1)
    done = await wheel.next("done")
    assert (done["ref"], done["ride"]["state"], done["ride"]["trip"]["state"]) == (1, "assigned", "accepted")
    assert done["ride"]["trip"]["accepted_at"] is not None
    assert done["ride"]["trip"]["expires_at"] is None
    assert await hears_nothing_more(wheel, "offer", "offer_withdrawn")
    for verb, state in (("arrive", "arrived"), ("start", "in_progress"), ("complete", "completed")):
        await wheel.send(type=verb, trip_id=trip_id)
        assert (await wheel.next("done"))["ride"]["state"] == state


async def test_a_declined_offer_leaves_the_ride_searching_for_somebody_else(service: Running, matcher: Matcher) -> None:
    wheel, trip_id = await offered(service, matcher)
    await wheel.send(type="decline", trip_id=trip_id, ref=1, reason="wrong side of the river")
    ride = (await wheel.next("done"))["ride"]
    assert (ride["state"], ride["trip"]["state"], ride["trip"]["end_code"]) == ("searching", "declined", "declined")
    assert ride["trip"]["end_reason"] == "wrong side of the river"
    assert await hears_nothing_more(wheel, "offer", "offer_withdrawn", "trip")
    assert (await events_of(service, ride["id"]))[-1] == ("declined", "declined", "driver")


async def test_an_offer_that_runs_out_is_withdrawn_and_can_be_accepted_no_more(
    service: Running, matcher: Matcher
) -> None:
    """P4"""
    wheel, trip_id = await offered(service, matcher)
    trip = await service.service.store.trip(trip_id)  # type: ignore[arg-type]
    assert trip is not None
    await matcher.run_out(trip)
    gone = await wheel.next("offer_withdrawn")
    assert (gone["code"], gone["ride"]["trip"]["state"], gone["ride"]["state"]) == (
        "offer_expired",
        "timed_out",
        "searching",
    )
    await wheel.send(type="accept", trip_id=trip_id, ref=7)
    error = await wheel.next("error")
    assert (error["code"], error["ref"], error["allowed"]) == ("not-allowed", 7, [])
    assert error["ride"]["trip"]["state"] == "timed_out"
    answer = await post(service, trip_id, "accept")
    assert (answer.status, answer.code, answer.body["state"], answer.body["allowed"]) == (
        409,
        "not-allowed",
        "searching",
        [],
    )


async def test_an_offer_past_its_end_is_not_accepted_even_before_anybody_swept_it(
    service: Running, matcher: Matcher
) -> None:
    """P4"""
    wheel, trip_id = await offered(service, matcher)
    trip = await service.service.store.trip(trip_id)  # type: ignore[arg-type]
    assert trip is not None
    await matcher.pass_limit(trip)
    await wheel.send(type="accept", trip_id=trip_id, ref=1)
    assert (await wheel.next("error"))["code"] == "not-allowed"


async def test_a_rider_who_cancels_withdraws_the_offer(service: Running, matcher: Matcher) -> None:
    wheel = await service.drive("d1")
    ride = await service.ride()
    await matcher.offer_to(ride, "d1")
    await wheel.next("offer")
    await service.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann", body={"reason": "rain is over"})
    gone = await wheel.next("offer_withdrawn")
    assert (gone["code"], gone["ride"]["state"], gone["ride"]["trip"]["state"]) == (
        "rider_cancelled",
        "cancelled",
        "withdrawn",
    )
    assert gone["ride"]["trip"]["end_reason"] == "rain is over"


async def test_an_offer_that_went_to_another_driver_is_seen_by_the_first_as_its_own_end_only(
    service: Running, matcher: Matcher
) -> None:
    """P11"""
    first, trip_id = await offered(service, matcher)
    second = await service.drive("d2")
    ride_id = (await service.service.store.trip(trip_id)).ride_id  # type: ignore[union-attr, arg-type]
    assert (await post(service, trip_id, "decline")).status == 200
    await matcher.offer_to({"id": ride_id}, "d2")
    assert (await second.next("offer"))["ride"]["trip"]["driver_id"] == "d2"
    gone = await first.next("offer_withdrawn")
    assert (gone["code"], gone["ride"]["trip"]["id"], gone["ride"]["trip"]["driver_id"]) == ("declined", trip_id, "d1")
    assert await hears_nothing_more(first, "offer", "offer_withdrawn", "trip")


async def test_what_is_said_over_http_reaches_the_socket(service: Running, matcher: Matcher) -> None:
    wheel, trip_id = await offered(service, matcher)
    answer = await post(service, trip_id, "accept")
    assert (answer.status, answer.body["trip"]["state"]) == (200, "accepted")
    assert (await wheel.next("trip"))["ride"]["trip"]["state"] == "accepted"


@pytest.mark.parametrize("verb", ["accept", "decline"])
async def test_a_repeated_answer_is_answered_with_the_present_state(
    service: Running, matcher: Matcher, verb: str
) -> None:
    """P3"""
    wheel, trip_id = await offered(service, matcher)
    states = []
    for ref in range(2):
        await wheel.send(type=verb, trip_id=trip_id, ref=ref)
        states.append((await wheel.next("done"))["ride"])
    answer = await post(service, trip_id, verb)
    assert answer.status == 200
    assert states == [answer.body, answer.body]


async def test_an_answer_repeated_later_tells_how_far_the_trip_has_come(service: Running, matcher: Matcher) -> None:
    """P3"""
    wheel, trip_id = await offered(service, matcher)
    for verb in ("accept", "arrive", "accept"):
        await wheel.send(type=verb, trip_id=trip_id)
        done = await wheel.next("done")
    assert done["ride"]["state"] == "arrived"


async def test_an_offer_is_declined_or_accepted_but_not_both(service: Running, matcher: Matcher) -> None:
    wheel, trip_id = await offered(service, matcher)
    await wheel.send(type="arrive", trip_id=trip_id)
    assert (await wheel.next("error"))["allowed"] == ["accept", "decline"]
    await wheel.send(type="accept", trip_id=trip_id)
    await wheel.next("done")
    await wheel.send(type="decline", trip_id=trip_id)
    error = await wheel.next("error")
    assert (error["code"], error["allowed"], error["ride"]["state"]) == (
        "not-allowed",
        ["arrive", "cancel"],
        "assigned",
    )


@pytest.mark.parametrize("verb", ["accept", "decline", "no_show"])
async def test_nobody_answers_for_another_driver_or_for_a_trip_that_is_none(
    service: Running, matcher: Matcher, verb: str
) -> None:
    """P11"""
    _, trip_id = await offered(service, matcher)
    other = await service.drive("d2")
    unknown = "t_" + "0" * 26
    for asked, code in ((trip_id, "not-your-trip"), (unknown, "trip-unknown")):
        await other.send(type=verb, trip_id=asked, ref=1)
        assert (await other.next("error"))["code"] == code
    answers = [await post(service, each, verb, "driver:d2") for each in (trip_id, unknown)]
    assert [(each.status, each.code) for each in answers] == [(403, "not-your-trip"), (404, "trip-unknown")]


async def test_a_reconnect_is_welcomed_with_the_offer_and_what_is_left_of_its_time(
    service: Running, matcher: Matcher
) -> None:
    wheel, trip_id = await offered(service, matcher)
    await wheel.ws.close()
    again = await service.drive("d1", put=False)
    (ride,) = again.welcome["rides"]
    assert (ride["trip"]["id"], ride["trip"]["state"]) == (trip_id, "offered")
    now, ends_at = (datetime.fromisoformat(each) for each in (again.welcome["now"], ride["trip"]["expires_at"]))
    assert 0.0 < (ends_at - now).total_seconds() <= OFFER_MS / 1000
    assert await hears_nothing_more(again, "offer")
    await again.send(type="accept", trip_id=trip_id, ref=1)
    assert (await again.next("done"))["ride"]["state"] == "assigned"


# A driver who does not answer


async def test_a_driver_who_misses_too_many_offers_is_paused_and_told_why(service: Running, matcher: Matcher) -> None:
    wheel = await service.drive("d1")
    await wheel.stands()
    for _ in range(3):
        trip = await matcher.offer_to(await service.ride(), "d1")
        await wheel.next("offer")
        await matcher.run_out(trip)
        heard = [await wheel.next("offer_withdrawn", "status")]
    heard.append(await wheel.next("offer_withdrawn", "status"))  # after the last of them: both, in either order
    (status,) = (frame for frame in heard if frame["type"] == "status")
    assert (status["status"], status["code"]) == ("on_break", "missed_offers")
    assert status["reason"]

    async def is_left_out() -> bool:
        answer = await service.call("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}", "client:ann")
        return not answer.body["items"]

    await until(is_left_out, what="the paused driver is left out")
    again = await service.drive("d1", put=False)
    assert (again.welcome["status"], again.welcome["status_code"]) == ("on_break", "missed_offers")
    await again.send(type="status", status="online", ref=1)
    assert (await again.next("done"))["status"] == "online"
    assert (await service.call("GET", "/v1/drivers/d1", "driver:d1")).body["status_code"] is None


async def test_an_offer_on_a_lost_socket_goes_back_after_its_grace(service: Running, matcher: Matcher) -> None:
    wheel, trip_id = await offered(service, matcher)
    await wheel.ws.close()

    async def is_noted() -> bool:
        return await matcher.was_lost("d1", DAY_MS)

    await until(is_noted, what="the lost socket is noted")
    assert await matcher.sweep()
    trip = await service.service.store.trip(trip_id)  # type: ignore[arg-type]
    assert trip is not None
    assert (trip.state.is_live, trip.end_code) == (False, "connection_lost")


async def test_an_offer_made_once_the_socket_is_gone_goes_back_as_soon(tmp_path: Path) -> None:
    """Where drivers are asked: the last position is still fresh, and nobody is there who could see the offer."""
    async with running(settings_for(tmp_path, markets=(market(assign="offer"),)), "api") as run:
        matcher = Matcher(run)
        wheel = await run.drive("d1")
        await wheel.stands()
        await wheel.ws.close()

        async def is_noted() -> bool:
            return await matcher.was_lost("d1", DAY_MS)

        await until(is_noted, what="the lost socket is noted")
        trip = await matcher.offer_to(await run.ride(), "d1")
        assert await matcher.sweep()
        ended = await run.service.store.trip(trip.trip_id)
        assert ended is not None
        assert (ended.state.is_live, ended.end_code) == (False, "connection_lost")
        await run.drive("d1", put=False)
        assert not await matcher.was_lost("d1", 0)


async def test_a_driver_who_comes_back_in_time_keeps_its_offer(service: Running, matcher: Matcher) -> None:
    wheel, trip_id = await offered(service, matcher)
    await wheel.ws.close()

    async def is_noted() -> bool:
        return await matcher.was_lost("d1", 0)

    await until(is_noted, what="the lost socket is noted")
    again = await service.drive("d1", put=False)
    assert not await matcher.was_lost("d1", DAY_MS)
    assert not await matcher.sweep()
    await again.send(type="accept", trip_id=trip_id)
    assert (await again.next("done"))["ride"]["state"] == "assigned"


async def test_a_socket_that_is_sent_elsewhere_has_the_same_grace(service: Running, matcher: Matcher) -> None:
    wheel, _ = await offered(service, matcher)
    stopping = asyncio.create_task(service.service.stop())
    assert await wheel.closed() == 1001
    await stopping
    assert await matcher.was_lost("d1", 0)


async def test_a_lost_socket_without_an_offer_costs_no_write(service: Running, matcher: Matcher) -> None:
    wheel, trip_id = await offered(service, matcher)
    await wheel.send(type="accept", trip_id=trip_id)
    await wheel.next("done")
    await wheel.ws.close()

    async def is_over() -> bool:
        return service.service.sockets.count == 0

    await until(is_over, what="the session is over")
    assert not await matcher.was_lost("d1", 0)


# One ride after another


async def test_the_next_ride_is_offered_while_the_present_one_lasts_and_takes_its_place(
    service: Running, matcher: Matcher
) -> None:
    wheel = await service.drive("d1")
    await wheel.stands()
    present = await matcher.assign_to(await service.ride(), "d1")
    assert (await wheel.next("trip"))["ride"]["trip"]["slot"] == "now"
    following = await matcher.offer_to(await service.ride(), "d1", slot=Slot.NEXT)
    offer = await wheel.next("offer")
    assert (offer["slot"], offer["ride"]["trip"]["slot"]) == ("next", "next")
    await wheel.send(type="accept", trip_id=following.trip_id)
    assert (await wheel.next("done"))["ride"]["trip"]["slot"] == "next"
    await wheel.send(type="arrive", trip_id=following.trip_id)
    assert (await wheel.next("error"))["allowed"] == ["cancel"]
    for verb in ("arrive", "start", "complete"):
        await wheel.send(type=verb, trip_id=present.trip_id)
        await wheel.next("done")
    promoted = (await wheel.next("trip"))["ride"]
    assert (promoted["trip"]["id"], promoted["trip"]["slot"]) == (following.trip_id, "now")
    await wheel.send(type="arrive", trip_id=following.trip_id)
    assert (await wheel.next("done"))["ride"]["state"] == "arrived"


async def test_a_reconnect_is_welcomed_with_both_trips(service: Running, matcher: Matcher) -> None:
    wheel = await service.drive("d1")
    for slot in (Slot.NOW, Slot.NEXT):
        await matcher.assign_to(await service.ride(), "d1", slot=slot)
        await wheel.next("trip")
    await wheel.ws.close()
    again = await service.drive("d1", put=False)
    assert [ride["trip"]["slot"] for ride in again.welcome["rides"]] == ["now", "next"]


@pytest.mark.parametrize("status", ["on_break", "offline"])
async def test_who_takes_no_more_finishes_the_present_trip_and_gives_the_others_back(
    service: Running, matcher: Matcher, status: str
) -> None:
    wheel = await service.drive("d1")
    await wheel.stands()
    present = await matcher.assign_to(await service.ride(), "d1")
    await wheel.next("trip")
    ride = await service.ride()
    await matcher.offer_to(ride, "d1", slot=Slot.NEXT)
    await wheel.next("offer")
    await wheel.send(type="status", status=status, ref=1)
    done = await wheel.next("done")
    assert (done["status"], done["finishing_trip_id"]) == (status, present.trip_id)
    gone = await wheel.next("offer_withdrawn")
    assert (gone["code"], gone["ride"]["id"], gone["ride"]["state"]) == ("driver_break", ride["id"], "searching")
    for verb in ("arrive", "start", "complete"):
        await wheel.send(type=verb, trip_id=present.trip_id)
        assert "ride" in await wheel.next("done")


async def test_a_driver_that_goes_offline_during_a_trip_is_seen_to_its_end(service: Running, matcher: Matcher) -> None:
    index = next(iter(service.service.planes.values())).index
    wheel = await service.drive("d1")
    await wheel.stands()
    trip = await matcher.assign_to(await service.ride(), "d1")
    await wheel.next("trip")
    await wheel.send(type="status", status="offline")
    assert (await wheel.next("done"))["finishing_trip_id"] == trip.trip_id
    for step, verb in enumerate(("arrive", "start", "complete"), start=1):
        await wheel.stands(LAT + step / 10_000)
        held = index.held("d1")  # type: ignore[arg-type]
        assert held is not None
        assert (held.lat, held.available) == (LAT + step / 10_000, False)
        await wheel.send(type=verb, trip_id=trip.trip_id)
        await wheel.next("done")

    async def is_gone() -> bool:
        return len(index) == 0

    await until(is_gone, what="the driver is out of the index")
    await wheel.at()
    assert (await wheel.next("error"))["code"] == "offline"


# A rider who does not come


async def test_a_no_show_is_reported_after_the_driver_has_waited_and_not_before(
    service: Running, matcher: Matcher
) -> None:
    wheel = await service.drive("d1")
    ride = await service.ride()
    trip = await matcher.assign_to(ride, "d1")
    await wheel.next("trip")
    await wheel.send(type="no_show", trip_id=trip.trip_id)
    assert (await wheel.next("error"))["allowed"] == ["arrive", "cancel"]
    await wheel.send(type="arrive", trip_id=trip.trip_id)
    arrived = (await wheel.next("done"))["ride"]["trip"]
    await wheel.send(type="no_show", trip_id=trip.trip_id, ref=1)
    early = await wheel.next("error")
    assert (early["code"], early["allowed"]) == ("not-allowed", ["start", "cancel"])
    waited = datetime.fromisoformat(early["allowed_at"]) - datetime.fromisoformat(arrived["arrived_at"])
    assert waited.total_seconds() == 300.0
    answer = await post(service, trip.trip_id, "no_show")
    assert (answer.status, answer.body["state"], answer.body["allowed_at"]) == (409, "arrived", early["allowed_at"])
    async with DispatchClient(service.base_url, service.token_of("driver:d1")) as app:
        with pytest.raises(ApiError) as refused:
            await app.command_trip(trip.trip_id, "no_show")
    assert refused.value.problem.allowed_at == early["allowed_at"]
    await matcher.arrived(trip, 300_000)
    await wheel.send(type="no_show", trip_id=trip.trip_id, reason="nobody at the door")
    done = (await wheel.next("done"))["ride"]
    assert (done["state"], done["end_code"], done["trip"]["state"]) == ("cancelled", "no_show", "no_show")
    assert (await post(service, trip.trip_id, "no_show")).status == 200
    assert (await events_of(service, ride["id"]))[-1] == ("cancelled", "no_show", "driver")


# What the rider sees of it


async def test_events_say_who_made_the_change_and_why(service: Running, matcher: Matcher) -> None:
    wheel = await service.drive("d1")
    ride = await service.ride()
    trip = await matcher.offer_to(ride, "d1")
    await wheel.next("offer")
    await wheel.send(type="decline", trip_id=trip.trip_id)
    await wheel.next("done")
    await service.call("POST", f"/v1/rides/{ride['id']}/cancel", "client:ann")
    headers = {"Authorization": f"Bearer {service.token_of('client:ann')}"}
    async with service.http.get(f"{service.base_url}/v1/rides/{ride['id']}/events", headers=headers) as stream:
        text = (await stream.read()).decode()
    for expected in ('"code":"declined","actor":"driver"', '"code":"rider_cancelled","actor":"rider"'):
        assert expected in text, text


# With the service's own matcher


async def test_where_drivers_are_asked_a_ride_goes_on_until_one_of_them_accepts(tmp_path: Path) -> None:
    """Declined by the nearest, unanswered by the next, and taken by the third; all within the ride's own time."""
    settings = settings_for(tmp_path, markets=(market(assign="offer", offer_ttl_s=1.0),))
    async with running(settings) as run:
        wheels = []
        for place, name in enumerate(("d1", "d2", "d3")):
            wheels.append(await run.drive(name))
            await wheels[-1].stands(LAT + 0.002 * place)
        ride = await run.ride()
        asked = await wheels[0].next("offer")
        await wheels[0].send(type="decline", trip_id=asked["ride"]["trip"]["id"])
        await wheels[0].next("done")
        await wheels[1].next("offer")
        assert (await wheels[1].next("offer_withdrawn"))["code"] == "offer_expired"
        asked = await wheels[2].next("offer")
        await wheels[2].send(type="accept", trip_id=asked["ride"]["trip"]["id"])
        assert (await wheels[2].next("done"))["ride"]["trip"]["driver_id"] == "d3"
        told = await run.call("GET", f"/v1/rides/{ride['id']}", "client:ann")
        assert (told.body["state"], told.body["trip"]["driver_id"]) == ("assigned", "d3")
        types = [type_ for type_, _, _ in await events_of(run, ride["id"])]
        assert types == ["requested", "offered", "declined", "offered", "timed_out", "offered", "assigned"]
