"""The client repeats what is safe to repeat, resumes what broke off, and never waits without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import web

from api import schema
from api.client import ApiError, Backoff, DispatchClient, DriverClient, GaveUp, Retry, new_session
from api.client_driver import CommandRefused, DriverOptions
from tests.e2e.wire_service import OFFER_ENDS_AT, WireService, event, ride, running

QUICK = Retry(deadline_s=5.0, attempt_s=2.0, backoff=Backoff(0.01, 0.05))
DRIVER_AT = b'event: driver\ndata: {"driver_id":"d","lat":1,"lon":2,"age_s":0.5,"pickup_s":9}\n\n'
REQUEST = schema.RideRequest(pickup=schema.Point(40.7, -73.9))


@pytest.fixture
async def service() -> AsyncIterator[WireService]:
    async with running() as started:
        yield started


@pytest.fixture
async def client(service: WireService) -> AsyncIterator[DispatchClient]:
    async with DispatchClient(service.url, "token", retry=QUICK) as made:
        yield made


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


# Rides over HTTP


@pytest.mark.parametrize("faults", [[503, 429, 502], ["drop", "drop"], ["late"]], ids=str)
async def test_a_request_is_repeated_with_the_same_key_until_it_is_answered(
    service: WireService, client: DispatchClient, faults: list[object]
) -> None:
    """P3: whatever went wrong on the way, one ride comes of it."""
    service.faults = list(faults)
    answer = await client.request_ride(REQUEST)
    keys = [request.headers["Idempotency-Key"] for request in service.requests]
    assert len(keys) >= len(faults) + 1
    assert len(set(keys)) == 1
    assert len(service.rides_by_key) == 1
    assert answer.replayed == (faults == ["late"])


async def test_two_requests_have_two_keys(service: WireService, client: DispatchClient) -> None:
    first, second = await client.request_ride(REQUEST), await client.request_ride(REQUEST)
    assert first.ride.id != second.ride.id


async def test_a_refusal_is_not_repeated_and_tells_its_code(service: WireService, client: DispatchClient) -> None:
    service.faults = [422]
    with pytest.raises(ApiError) as refused:
        await client.request_ride(REQUEST)
    assert (refused.value.status, refused.value.problem.code) == (422, "overloaded")
    assert len(service.requests) == 1


async def test_a_call_gives_up_at_its_deadline_and_says_whether_it_may_have_happened(
    service: WireService, client: DispatchClient
) -> None:
    """A 503 may tell of a commit whose outcome the service does not know itself; a 429 is a plain refusal."""
    for fault, may_have_happened in ((429, False), (503, True), ("drop", True)):
        service.faults = [fault] * 1000
        with pytest.raises(GaveUp) as given_up:
            await client.request_ride(REQUEST, deadline_s=0.3)
        assert given_up.value.may_have_happened == may_have_happened


async def test_nobody_listening_is_given_up_as_surely_not_happened() -> None:
    async with DispatchClient("http://127.0.0.1:1", "token", retry=QUICK) as client:
        with pytest.raises(GaveUp) as nobody:
            await client.request_ride(REQUEST, deadline_s=0.2)
        assert not nobody.value.may_have_happened
        assert not await client.is_ready()


async def test_retry_after_is_honoured(client: DispatchClient) -> None:
    """A wait that would not end before the deadline is not begun."""

    async def unavailable(_: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "3600"})

    app = web.Application()
    app.add_routes([web.get("/v1/rides/x", unavailable)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with DispatchClient(f"http://127.0.0.1:{runner.addresses[0][1]}", "t", retry=QUICK) as patient:
            async with asyncio.timeout(2.0):  # well below the deadline of 5 s
                with pytest.raises(GaveUp):
                    await patient.ride("x")
    finally:
        await runner.cleanup()


async def test_all_pages_of_rides_are_read(client: DispatchClient) -> None:
    assert [each.id for each in await client.rides(page_size=2)] == [f"r_{n}" for n in range(5)]


# Events of a ride


async def test_events_resume_by_version_and_come_once_each(service: WireService, client: DispatchClient) -> None:
    service.streams = [
        [event(1, "searching"), b": alive\n\n", event(2, "assigned")[:20]],  # cut within an event
        [event(1, "searching"), event(2, "assigned"), DRIVER_AT, event(3, "arrived")],
        [event(4, "in_progress"), event(5, "completed"), event(6, "never read")],
    ]
    async with aclosing(client.events("r_1")) as events:
        seen = [each async for each in events]
    assert [each.version for each in seen if isinstance(each, schema.EventOut)] == [1, 2, 3, 4, 5]
    assert sum(isinstance(each, schema.DriverPositionOut) for each in seen) == 1
    assert service.last_event_ids == ["0", "1", "3"]


async def test_a_stream_that_is_refused_for_good_raises(service: WireService, client: DispatchClient) -> None:
    service.faults = [404]
    with pytest.raises(ApiError):
        async for _ in client.events("r_1"):
            pass


async def test_a_stream_that_cannot_be_opened_is_given_up(service: WireService) -> None:
    service.faults = [503] * 1000
    short = Retry(deadline_s=0.3, backoff=Backoff(0.01, 0.05))
    async with DispatchClient(service.url, "token", retry=short) as client:
        with pytest.raises(GaveUp):
            async for _ in client.events("r_1"):
                pass


# A driver's socket


class Heard:
    """A listener that writes down."""

    def __init__(self) -> None:
        self.welcomes: list[schema.WelcomeFrame] = []
        self.rides: list[schema.RideOut] = []
        self.offers: list[tuple[str, float]] = []
        self.withdrawn: list[tuple[str, str]] = []
        self.statuses: list[tuple[str, str | None]] = []
        self.queues: list[schema.QueueFrame] = []
        self.lost: list[str] = []

    def on_welcome(self, welcome: schema.WelcomeFrame) -> None:
        self.welcomes.append(welcome)

    def on_ride(self, ride: schema.RideOut) -> None:
        self.rides.append(ride)

    def on_offer(self, ride: schema.RideOut, expires_in_s: float) -> None:
        self.offers.append((ride.id, expires_in_s))

    def on_offer_withdrawn(self, ride: schema.RideOut, code: str) -> None:
        self.withdrawn.append((ride.id, code))

    def on_status(self, status: str, code: str | None) -> None:
        self.statuses.append((status, code))

    def on_queue(self, queue: schema.QueueFrame) -> None:
        self.queues.append(queue)

    def on_lost(self, why: str) -> None:
        self.lost.append(why)


OPTIONS = DriverOptions(connect_s=2.0, close_s=0.5, command_s=5.0, answer_s=0.5, backoff=Backoff(0.01, 0.05))


@asynccontextmanager
async def driving(
    service: WireService, options: DriverOptions = OPTIONS
) -> AsyncIterator[tuple[DriverClient, Heard, asyncio.Task[None]]]:
    heard = Heard()
    async with new_session() as session:
        driver = DriverClient(session, service.url, "d1", "token", heard, options=options)
        run = asyncio.create_task(driver.run())
        try:
            yield driver, heard, run
        finally:
            await driver.close()
            async with asyncio.timeout(5.0):
                await asyncio.gather(run, return_exceptions=True)


async def test_positions_are_numbered_sent_and_counted_as_acknowledged(service: WireService) -> None:
    async with driving(service) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        for n in range(5):
            assert await driver.position(40.0 + n / 100, -73.0)
        await until(lambda: driver.positions.acked == 5)
        assert [frame.seq for frame in service.frames if isinstance(frame, schema.PositionFrame)] == [1, 2, 3, 4, 5]
        assert driver.positions.sent == 5
        assert heard.welcomes[0].epoch == 1


async def test_while_the_socket_is_away_only_the_newest_position_is_kept(service: WireService) -> None:
    """P10. It is sent right after the next welcome, with the age it has by then."""
    async with driving(service) as (driver, _, _):
        assert not await driver.position(1.0, 1.0)
        assert not await driver.position(2.0, 2.0)
        await until(lambda: bool(service.frames))
        await asyncio.sleep(0.05)
        assert [(frame.lat, frame.seq) for frame in service.frames if isinstance(frame, schema.PositionFrame)] == [
            (2.0, 1)
        ]


async def test_a_lost_socket_is_replaced_and_what_was_not_acknowledged_on_it_never_counts(service: WireService) -> None:
    async def ignore(_: web.WebSocketResponse, __: schema.UpFrame) -> None:
        return None

    async with driving(service) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        service.on_frame = ignore
        await driver.position(1.0, 1.0)
        await until(lambda: len(service.frames) == 1)
        service.on_frame = service.acknowledge
        await service.sockets[0].close(code=1011)
        await until(lambda: len(heard.welcomes) == 2 and driver.positions.acked == 1)
        assert driver.positions.sent == 2  # the newest again, on the new socket
        assert [frame.seq for frame in service.frames if isinstance(frame, schema.PositionFrame)] == [1, 2]


async def test_going_away_is_followed_by_another_socket_within_the_jitter_told(service: WireService) -> None:
    async with driving(service) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        await service.sockets[0].close(code=1001)
        await until(lambda: len(heard.welcomes) == 2)
        assert heard.lost == ["closed with 1001"]


async def test_a_superseded_app_stays_away(service: WireService) -> None:
    """P7: two apps of one driver would otherwise throw each other out for ever."""
    async with driving(service) as (driver, _, run):
        await until(lambda: driver.is_connected)
        await service.sockets[0].close(code=4000)
        async with asyncio.timeout(3.0):
            await run
        assert driver.superseded
        assert len(service.sockets) == 1


async def test_an_app_thrown_out_by_its_own_late_attempt_comes_back_once(service: WireService) -> None:
    """An attempt given up by the client may sign on at the service after the next one did."""
    service.welcome_after_s = [10.0, 0.0, 0.0]
    async with driving(service, DriverOptions(connect_s=0.3, close_s=0.5, backoff=Backoff(0.01, 0.05))) as parts:
        driver, heard, run = parts
        await until(lambda: driver.is_connected)
        await service.sockets[1].close(code=4000)
        await until(lambda: len(heard.welcomes) == 2)
        await service.sockets[2].close(code=4000)  # nothing was given up since: this is another app
        async with asyncio.timeout(3.0):
            await run
        assert driver.superseded


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refused_driver_stops_with_the_reason(service: WireService, status: int) -> None:
    service.refuse_sockets = status
    async with driving(service) as (_, _, run):
        async with asyncio.timeout(3.0):
            await asyncio.wait([run])
        error = run.exception()
        assert isinstance(error, ApiError)
        assert error.status == status


async def test_an_overloaded_service_is_tried_again(service: WireService) -> None:
    service.refuse_sockets = 503
    async with driving(service) as (driver, heard, _):
        await until(lambda: len(heard.lost) >= 2)
        service.refuse_sockets = None
        await until(lambda: driver.is_connected)


async def test_a_command_without_an_answer_is_sent_again_on_the_next_socket_under_the_same_ref(
    service: WireService,
) -> None:
    """P3: the service answers the repetition as it did the first."""

    async def cut(socket: web.WebSocketResponse, _: schema.UpFrame) -> None:
        service.on_frame = service.acknowledge
        await socket.close(code=1011)

    async with driving(service) as (driver, _, _):
        await until(lambda: driver.is_connected)
        service.on_frame = cut
        answered = await driver.command("arrive", "t_1")
        assert answered is not None
        refs = [frame.ref for frame in service.frames if isinstance(frame, schema.ArriveFrame)]
        assert len(refs) >= 2
        assert len(set(refs)) == 1


async def test_a_command_is_repeated_while_the_database_is_away_and_refused_for_good_once(service: WireService) -> None:
    answers = ["store-unavailable", "store-unavailable", "not-allowed"]

    async def refuse(socket: web.WebSocketResponse, frame: schema.UpFrame) -> None:
        assert isinstance(frame, schema.TripFrame)
        await service.send(socket, schema.ErrorFrame(answers.pop(0), "no", ref=frame.ref, allowed=["complete"]))

    async with driving(service) as (driver, _, _):
        await until(lambda: driver.is_connected)
        service.on_frame = refuse
        with pytest.raises(CommandRefused) as refused:
            await driver.command("start", "t_1")
        assert refused.value.error.code == "not-allowed"
        assert refused.value.error.allowed == ["complete"]


async def test_a_command_that_is_never_answered_is_given_up_as_unknown(service: WireService) -> None:
    async def ignore(_: web.WebSocketResponse, __: schema.UpFrame) -> None:
        return None

    service.on_frame = ignore
    options = DriverOptions(command_s=0.4, answer_s=0.1, close_s=0.5, backoff=Backoff(0.01, 0.05))
    async with driving(service, options) as (driver, _, _):
        await until(lambda: driver.is_connected)
        with pytest.raises(GaveUp) as given_up:
            await driver.command("complete", "t_1")
        assert given_up.value.may_have_happened


async def test_closing_ends_commands_under_way_and_the_run(service: WireService) -> None:
    async def ignore(_: web.WebSocketResponse, __: schema.UpFrame) -> None:
        return None

    service.on_frame = ignore
    async with driving(service) as (driver, _, run):
        await until(lambda: driver.is_connected)
        command = asyncio.create_task(driver.command("arrive", "t_1"))
        await until(lambda: bool(service.frames))
        await driver.close()
        async with asyncio.timeout(3.0):
            with pytest.raises(GaveUp):
                await command
            await run


async def test_a_socket_that_falls_silent_is_dropped_and_replaced(service: WireService) -> None:
    async def ignore(_: web.WebSocketResponse, __: schema.UpFrame) -> None:
        return None

    service.on_frame = ignore
    options = DriverOptions(silent_s=0.2, close_s=0.5, backoff=Backoff(0.01, 0.05))
    async with driving(service, options) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        async with asyncio.timeout(5.0):
            while len(heard.welcomes) < 2:
                await driver.position(1.0, 1.0)
                await asyncio.sleep(0.02)


async def test_a_ping_is_answered_and_a_trip_is_told(service: WireService) -> None:
    async with driving(service) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        await service.sockets[0].ping()
        await service.send(service.sockets[0], schema.TripChangedFrame(ride(state="assigned", version=2, driver="d1")))
        await until(lambda: bool(heard.rides) and service.pings == 1)
        assert heard.rides[0].trip is not None


async def test_offers_status_and_queue_are_told(service: WireService) -> None:
    offered = ride(state="offered", version=2, driver="d1")
    frames: list[schema.DownFrame] = [
        schema.OfferFrame(offered, OFFER_ENDS_AT, 12.5, "now"),
        schema.OfferWithdrawnFrame(offered, "rider_cancelled"),
        schema.StatusChangedFrame("on_break", "missed_offers"),
        schema.QueueFrame("airport", 3, 9),
    ]
    async with driving(service) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        for frame in frames:
            await service.send(service.sockets[0], frame)
        await until(lambda: bool(heard.queues))
        assert (heard.offers, heard.withdrawn) == ([("r_1", 12.5)], [("r_1", "rider_cancelled")])
        assert heard.statuses == [("on_break", "missed_offers")]
        assert heard.queues == [schema.QueueFrame("airport", 3, 9)]
        assert heard.rides == []


async def test_an_offer_that_stands_and_a_place_in_a_queue_are_told_with_the_welcome(service: WireService) -> None:
    """What is left of the offer's time is reckoned by the service's clock, not by the phone's."""
    service.welcome_rides = [ride("r_0", state="assigned", driver="d1"), ride(state="offered", driver="d1")]
    service.welcome_queue = schema.QueueFrame("airport", 1, 1)
    async with driving(service) as (_, heard, _):
        await until(lambda: bool(heard.queues))
        assert heard.offers == [("r_1", 30.0)]
        assert [each.id for each in heard.welcomes[0].rides] == ["r_0", "r_1"]


@pytest.mark.parametrize(
    ("verb", "kind"),
    [("accept", schema.AcceptFrame), ("decline", schema.DeclineFrame), ("no_show", schema.NoShowFrame)],
)
async def test_a_driver_answers_an_offer_and_reports_a_no_show(
    service: WireService, verb: str, kind: type[schema.TripFrame]
) -> None:
    async with driving(service) as (driver, _, _):
        await until(lambda: driver.is_connected)
        assert await driver.command(verb, "t_1") is not None
        assert [frame.trip_id for frame in service.frames if isinstance(frame, kind)] == ["t_1"]


async def test_a_driver_that_signed_off_is_not_put_online_by_a_reconnect(service: WireService) -> None:
    async with driving(service) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        assert await driver.set_status("offline")
        await service.sockets[0].close(code=1011)
        await until(lambda: len(heard.welcomes) == 2)
        assert [request.query.get("online") for request in service.requests] == [None, "false"]


async def test_a_frame_that_only_a_newer_service_knows_is_passed_over(service: WireService) -> None:
    async with driving(service) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        await service.sockets[0].send_bytes(msgspec.msgpack.encode({"type": "fireworks", "colour": "blue"}))
        await service.send(service.sockets[0], schema.QueueFrame())
        await until(lambda: bool(heard.queues))
        assert len(heard.welcomes) == 1


async def test_a_frame_that_is_none_costs_the_socket_and_not_the_app(service: WireService) -> None:
    async with driving(service) as (driver, heard, _):
        await until(lambda: driver.is_connected)
        await service.sockets[0].send_bytes(b"\xc1 no msgpack")
        await until(lambda: len(heard.welcomes) == 2)


async def test_a_session_of_another_kind_is_a_programmer_s_error(service: WireService) -> None:
    async with aiohttp.ClientSession() as session:
        driver = DriverClient(session, service.url, "d1", "token", Heard(), options=OPTIONS)
        with pytest.raises(TypeError, match="new_session"):
            async with asyncio.timeout(5.0):
                await driver.run()
