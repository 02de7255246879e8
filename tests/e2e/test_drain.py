"""Shutting down: readiness off, sockets told, nothing acknowledged lost."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from api.service import build_service
from tests.e2e.running import LAT, Running, running, settings_for, until


async def test_while_draining_probes_say_so_and_new_requests_are_sent_elsewhere(embedded: Running) -> None:
    embedded.service.draining.set()
    ready = await embedded.call("GET", "/readyz")
    assert (ready.status, ready.body["status"]) == (503, "draining")
    answer = await embedded.call("POST", "/v1/rides", "client:ann", body={})
    assert (answer.status, answer.code) == (503, "draining")
    assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
    assert (await embedded.call("GET", "/healthz")).status == 200


async def test_sockets_are_closed_with_1001_and_event_streams_end(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path)) as run:
        wheels = [
            await run.drive(f"d{number}", protocol=each)
            for number, each in enumerate(("hexhail.v1.msgpack", "hexhail.v1.json"))
        ]
        ride = await run.ride()
        headers = {"Authorization": f"Bearer {run.token_of('client:ann')}"}
        async with run.http.get(f"{run.base_url}/v1/rides/{ride['id']}/events", headers=headers) as stream:
            while b"requested" not in await stream.content.readline():
                pass
            stopping = asyncio.create_task(run.service.stop())
            assert [await wheel.closed() for wheel in wheels] == [1001, 1001]
            async with asyncio.timeout(5):
                await stream.read()
        await stopping


async def test_a_driver_whose_sign_on_is_under_way_when_the_drain_begins_is_sent_away_too(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path), "api") as run:
        await run.put_driver("d1")

        async def is_signing_on() -> bool:
            return run.service.sign_on_desk.waiting == 1

        with closing(sqlite3.connect(tmp_path / "hexhail.db", isolation_level=None)) as another:
            another.execute("BEGIN IMMEDIATE")
            signing_on = asyncio.create_task(run.drive("d1", put=False))
            await until(is_signing_on, what="the sign-on waits for the file")
            stopping = asyncio.create_task(run.service.stop())
            await asyncio.sleep(0)
            assert run.service.draining.is_set()
        assert await (await signing_on).closed(within_s=4.0) == 1001
        await stopping


async def test_an_event_stream_that_opens_while_the_others_are_ended_ends_too(embedded: Running) -> None:
    """Its request was let in before the drain began, and the ride has been read since."""
    ride = await embedded.ride()
    assert embedded.service._events is not None
    embedded.service._events.close_all()
    headers = {"Authorization": f"Bearer {embedded.token_of('client:ann')}"}
    async with embedded.http.get(f"{embedded.base_url}/v1/rides/{ride['id']}/events", headers=headers) as stream:
        async with asyncio.timeout(5):
            await stream.read()


async def test_every_ride_that_was_acknowledged_during_the_drain_is_in_the_database(tmp_path: Path) -> None:
    """P2: each request is either answered 201 and kept, or refused."""
    settings = settings_for(tmp_path)
    acknowledged: list[str] = []
    statuses: list[int] = []

    async def ask(run: Running) -> None:
        body = {"pickup": {"lat": LAT, "lon": -73.98}}
        answer = await run.call("POST", "/v1/rides", "client:ann", body=body)
        statuses.append(answer.status)
        if answer.status == 201:
            acknowledged.append(answer.body["id"])

    async with running(settings) as run:
        asking = [asyncio.create_task(ask(run)) for _ in range(60)]
        while not acknowledged:
            await asyncio.sleep(0)
        await run.service.stop()
        await asyncio.wait_for(asyncio.gather(*asking), 10)
    assert set(statuses) <= {201, 503}
    again = await build_service(settings, "all")
    kept = [await again.store.ride(each) for each in acknowledged]  # type: ignore[arg-type]
    await again.store.close()
    assert kept
    assert None not in kept


async def test_the_last_positions_are_published_before_the_end(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path, flush_ms=5000)) as run:
        wheel = await run.drive("d1")
        await wheel.at(LAT + 0.001)
        plane = next(iter(run.service.planes.values()))
        async with asyncio.timeout(5):
            while not len(plane.flusher):
                await asyncio.sleep(0.01)
        await run.service.stop()
        held = plane.index.held("d1")  # type: ignore[arg-type]
        assert held is not None
        assert held.lat == LAT + 0.001


async def test_a_command_under_way_is_answered_before_the_socket_closes(tmp_path: Path) -> None:
    async with running(settings_for(tmp_path)) as run:
        wheel = await run.drive("d1")
        await wheel.stands()
        ride = await run.ride()
        trip = (await wheel.next("trip"))["ride"]["trip"]["id"]
        await wheel.send(type="arrive", trip_id=trip, ref=1)
        (session,) = run.service.sessions
        async with asyncio.timeout(5):
            while session._worker is None:
                await asyncio.sleep(0)
        stopping = asyncio.create_task(run.service.stop())
        assert (await wheel.next("done"))["ride"]["state"] == "arrived"
        assert await wheel.closed() == 1001
        await stopping
    again = await build_service(settings_for(tmp_path), "all")
    kept = await again.store.ride(ride["id"])
    await again.store.close()
    assert kept is not None
    assert kept.state == "arrived"


async def test_a_successor_takes_over_at_once(tmp_path: Path) -> None:
    """The lease and the file are given back, rather than left to run out."""
    async with running(settings_for(tmp_path, lease_s=60.0)) as run:
        await run.ride()
        await leads(run)
    async with running(settings_for(tmp_path, lease_s=60.0)) as run:
        await leads(run)


async def leads(run: Running) -> None:
    async with asyncio.timeout(10):
        while not run.service.dispatchers[0].stats.leading:
            await asyncio.sleep(0.02)


async def test_a_drain_keeps_within_its_limit_when_a_client_never_closes(tmp_path: Path) -> None:
    """P10"""
    async with running(settings_for(tmp_path, drain_s=1.0)) as run:
        await run.put_driver("d1")
        reader, writer = await asyncio.open_connection("127.0.0.1", run.port)
        head = (
            "GET /v1/drivers/d1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Protocol: hexhail.v1.json\r\nAuthorization: Bearer {run.token_of('driver:d1')}\r\n\r\n"
        )
        writer.write(head.encode())
        assert b" 101 " in await reader.readline()
        async with asyncio.timeout(8):
            await run.service.stop()
        writer.close()


async def test_a_failed_background_task_is_noticed(embedded: Running) -> None:
    async def fails() -> None:
        raise RuntimeError("a defect")

    embedded.service.background.run("broken", fails())
    async with asyncio.timeout(5):
        await embedded.service.background.failed.wait()
