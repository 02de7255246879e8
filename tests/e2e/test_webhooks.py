"""Events sent to a client's own server: in order per ride, signed, again until they are taken, and never too far."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from api import webhook_sender
from api.client import ApiError, DispatchClient, verify_signature
from tests.e2e.receiver import Got, Receiver, ok, receiving, says
from tests.e2e.running import Running, running, settings_for, until
from tests.servers import RedisServer
from tests.stores import StoreCase, migrated

SECRET = "correct-horse-battery"


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest_asyncio.fixture
async def run(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, webhook_private_hosts=True)) as run:
        yield run


async def hook(run: Running, url: str, who: str = "client:ann") -> dict[str, Any]:
    answer = await run.call("PUT", "/v1/webhook", who, body={"url": url, "secret": SECRET})
    assert answer.status == 200, answer.body
    return dict(answer.body)


async def listed(run: Running, state: str, who: str = "client:ann") -> list[dict[str, Any]]:
    answer = await run.call("GET", f"/v1/webhook/deliveries?state={state}", who)
    assert answer.status == 200, answer.body
    return list(answer.body["items"])


async def given_up(run: Running, count: int) -> list[dict[str, Any]]:
    """The list once it has as many."""

    async def look() -> bool:
        return len(await listed(run, "given_up")) >= count

    await until(look, what=f"{count} given up")
    return await listed(run, "given_up")


async def cancelled(run: Running, who: str = "client:ann") -> str:
    """A ride of two events."""
    ride_id = str((await run.ride(who))["id"])
    assert (await run.call("POST", f"/v1/rides/{ride_id}/cancel", who)).status == 200
    return ride_id


class TestDelivery:
    async def test_a_rides_events_arrive_in_order_and_signed_however_often_each_fails_at_first(
        self, run: Running, receiver: Receiver
    ) -> None:
        async def fails_once(got: Got) -> web.Response:
            return web.Response(status=500 if got.attempt == 1 else 200, text="x" * 100_000)

        receiver.answer = fails_once
        await hook(run, receiver.url)
        ride = await run.ride()
        await (wheel := await run.drive("d1")).stands()
        trip = (await wheel.next("trip"))["ride"]["trip"]["id"]
        for verb in ("arrive", "start", "complete"):
            await wheel.send(type=verb, trip_id=trip)
            await wheel.next("done")
        await receiver.has_taken(5)
        assert [each.id for each in receiver.taken] == [f"{ride['id']}.{version}" for version in range(1, 6)]
        assert [each.body["type"] for each in receiver.taken] == [
            "ride.requested",
            "ride.assigned",
            "ride.arrived",
            "ride.started",
            "ride.completed",
        ]
        assert receiver.taken[1].body["event"]["driver_id"] == "d1"
        assert [each.attempt for each in receiver.taken] == [2] * 5
        for got in receiver.got:
            assert verify_signature(SECRET, got.headers["Hexhail-Signature"], got.raw, time.time())
            assert got.headers["Hexhail-Delivery"] == got.id
            assert (got.headers["Content-Type"], got.headers["User-Agent"]) == ("application/json", "hexhail")
        assert {got.raw for got in receiver.got if got.id == receiver.got[0].id} == {receiver.got[0].raw}

    async def test_only_the_clients_own_rides_are_told_of(self, run: Running, receiver: Receiver) -> None:
        """P11"""
        await hook(run, receiver.url)
        await cancelled(run, "client:bob")
        mine = await cancelled(run)
        await receiver.has_taken(2)
        assert {each.body["event"]["ride_id"] for each in receiver.got} == {mine}

    async def test_what_is_given_up_is_listed_and_delivered_when_it_is_retried(
        self, tmp_path: Path, receiver: Receiver
    ) -> None:
        receiver.answer = says(500)
        async with running(settings_for(tmp_path, webhook_private_hosts=True, webhook_attempts_max=2)) as run:
            await hook(run, receiver.url)
            ride_id = await cancelled(run)
            rows = await given_up(run, 2)
            assert [row["id"] for row in rows] == [f"{ride_id}.2", f"{ride_id}.1"]
            assert {(row["attempts"], row["last_error"], row["next_attempt_at"]) for row in rows} == {
                (2, "answered 500", None)
            }
            receiver.answer = ok
            retry = "/v1/webhook/deliveries/retry"
            one = await run.call("POST", retry, "client:ann", body={"ids": [f"{ride_id}.1"]})
            assert one.body == {"retried": 1}
            await receiver.has_taken(1)
            assert [row["id"] for row in await listed(run, "given_up")] == [f"{ride_id}.2"]
            assert (await run.call("POST", retry, "client:ann")).body == {"retried": 1}
            await receiver.has_taken(2)
            assert [each.id for each in receiver.taken] == [f"{ride_id}.1", f"{ride_id}.2"]
            scraped = (await run.call("GET", "/metrics")).body.decode()
            assert 'hexhail_webhook_attempts_total{outcome="delivered"} 2.0' in scraped
            assert 'hexhail_webhook_attempts_total{outcome="given_up"} 2.0' in scraped
            assert "hexhail_webhook_overdue_seconds" in scraped

    async def test_a_service_that_was_stopped_and_started_again_delivers_everything_in_order(
        self, tmp_path: Path, receiver: Receiver
    ) -> None:
        settings = settings_for(tmp_path, webhook_private_hosts=True)
        receiver.answer = says(503)
        async with running(settings) as run:
            await hook(run, receiver.url)
            rides = [await cancelled(run) for _ in range(5)]
        receiver.answer = ok
        async with running(settings) as run:
            await receiver.has_taken(10)
            taken = [each.id for each in receiver.taken]
            assert sorted(taken) == sorted(f"{ride_id}.{version}" for ride_id in rides for version in (1, 2))
            assert all(taken.index(f"{ride_id}.1") < taken.index(f"{ride_id}.2") for ride_id in rides)

    async def test_what_is_on_its_way_when_the_service_stops_arrives_and_is_not_sent_again(
        self, tmp_path: Path, receiver: Receiver
    ) -> None:
        settings = settings_for(tmp_path, webhook_private_hosts=True)
        arrived, answered = asyncio.Event(), asyncio.Event()

        async def waits(_got: Got) -> web.Response:
            arrived.set()
            await answered.wait()
            return web.Response()

        receiver.answer = waits
        async with running(settings) as run:
            await hook(run, receiver.url)
            await run.ride()
            await arrived.wait()
            stopping = asyncio.create_task(run.service.stop())
            while not run.service.draining.is_set():
                await asyncio.sleep(0)
            answered.set()
            await stopping
        async with running(settings) as run:
            assert await listed(run, "waiting") == []
        assert len(receiver.got) == 1

    async def test_a_receiver_that_hangs_delays_no_other_client(self, run: Running, receiver: Receiver) -> None:
        leave = asyncio.Event()

        async def hangs(_got: Got) -> web.Response:
            await leave.wait()
            return web.Response()

        async with receiving() as hanging:
            hanging.answer = hangs
            await hook(run, hanging.url)
            await hook(run, receiver.url, "client:bob")
            for _ in range(30):
                await run.ride()

            async def hangs_on() -> bool:
                return len(hanging.got) >= 4

            await until(hangs_on, what="deliveries that hang")
            for _ in range(5):
                await cancelled(run, "client:bob")
            await receiver.has_taken(10)
            assert len(hanging.got) == 4  # and they still do
            leave.set()
            await hanging.has_taken(30)

    async def test_who_lets_the_time_run_out_is_told_so_and_gets_one_at_a_time(
        self, run: Running, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """P10"""
        monkeypatch.setattr(webhook_sender, "DELIVERY_S_MAX", 0.3)
        sender = run.service.webhooks
        assert sender is not None
        at_once: list[int] = []

        async def hangs(_got: Got) -> web.Response:
            at_once.append(sender.sending)
            await asyncio.sleep(3600)
            return web.Response()

        receiver.answer = hangs
        await hook(run, receiver.url)
        for _ in range(8):
            await run.ride()

        async def tried() -> bool:
            return len(at_once) >= 7

        await until(tried, what="attempts one by one")
        assert max(at_once) <= 4
        assert at_once[-3:] == [1, 1, 1]
        assert "no answer within 0.3 s" in {row["last_error"] for row in await listed(run, "waiting")}

    async def test_an_answers_status_counts_though_its_body_never_ends(
        self, run: Running, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(webhook_sender, "DELIVERY_S_MAX", 0.3)

        async def never_ends(got: Got) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(got.request)
            await asyncio.sleep(3600)
            return response

        receiver.answer = never_ends
        await hook(run, receiver.url)
        await cancelled(run)

        async def all_delivered() -> bool:
            return len(receiver.got) == 2 and await listed(run, "waiting") == []

        await until(all_delivered, what="both taken")

    async def test_gone_gives_an_event_up_at_once_and_a_redirection_is_not_followed(
        self, run: Running, receiver: Receiver
    ) -> None:
        async with receiving() as elsewhere:
            receiver.answer = says(307, Location=elsewhere.url)
            await hook(run, receiver.url)
            ride_id = (await run.ride())["id"]

            async def was_told_twice() -> bool:
                return len(receiver.got) >= 2

            await until(was_told_twice, what="another attempt")
            [waiting] = await listed(run, "waiting")
            assert (waiting["id"], waiting["last_error"]) == (f"{ride_id}.1", "answered 307")
            assert waiting["next_attempt_at"] is not None
            receiver.answer = says(410)
            [row] = await given_up(run, 1)
            assert row["last_error"] == "answered 410"
            assert elsewhere.got == []

    async def test_nobody_there_is_a_failure_that_the_list_tells_of(self, run: Running) -> None:
        async with receiving() as receiver:
            url = receiver.url
        await hook(run, url)
        await run.ride()

        async def failed() -> bool:
            rows = await listed(run, "waiting")
            return bool(rows) and "Cannot connect" in (rows[0]["last_error"] or "")

        await until(failed, what="a failed attempt")


class TestProcesses:
    async def test_events_of_one_process_are_sent_by_another_and_outlive_its_death(
        self, tmp_path: Path, clean_redis_url: str, mysql_database: str, receiver: Receiver
    ) -> None:
        """The matcher has no HTTP side and sends nothing; an API process that dies leaves what it had claimed."""
        await asyncio.to_thread(migrated, mysql_database)
        shared = {"redis_url": clean_redis_url, "database_url": mysql_database, "pool_size": 4}
        settings = settings_for(tmp_path, webhook_private_hosts=True, **shared)

        async def matched(run: Running) -> str:
            ride_id = str((await run.ride())["id"])
            await run.ride_in("assigned", ride_id)
            return ride_id

        async with running(settings, "matcher") as matcher:
            assert matcher.service.webhooks is None
            async with running(settings, "api") as first, running(settings, "api") as second:
                await hook(first, receiver.url)
                for name in ("d1", "d2"):
                    await (await first.drive(name)).stands()
                one = await matched(first)
                await receiver.has_taken(2)
                assert [each.id for each in receiver.got] == [f"{one}.1", f"{one}.2"]

                arrived = asyncio.Event()

                async def says_nothing(_got: Got) -> web.Response:
                    arrived.set()
                    await asyncio.sleep(3600)
                    return web.Response()

                receiver.answer = says_nothing
                two = await matched(second)
                await arrived.wait()
                receiver.answer = ok
                for run in (first, second):
                    assert run.service.webhooks is not None
                    for task in run.service.webhooks._sending:
                        task.cancel()  # as if its process had died: nothing is written down
                case = StoreCase(first.service.store, mysql_database)
                case.sql("UPDATE webhook_deliveries SET due_at_ms = due_at_ms - 60000")
                await receiver.has_taken(4)
        assert [each.id for each in receiver.taken][2:] == [f"{two}.1", f"{two}.2"]

    async def test_they_do_not_wait_for_redis_to_come_back(
        self, tmp_path: Path, redis_server: RedisServer, receiver: Receiver
    ) -> None:
        """P9"""
        settings = settings_for(tmp_path, webhook_private_hosts=True, redis_url=redis_server.url, redis_timeout_s=0.2)
        async with running(settings, "api") as run:
            await hook(run, receiver.url)
            redis_server.kill()
            ride_id = await cancelled(run)
            await receiver.has_taken(2, within_s=60.0)
        assert [each.id for each in receiver.taken] == [f"{ride_id}.1", f"{ride_id}.2"]


class TestPrivateHosts:
    async def test_by_default_nothing_is_sent_into_private_networks(self, tmp_path: Path, receiver: Receiver) -> None:
        async with running(settings_for(tmp_path, webhook_attempts_max=1)) as run:
            refused = await run.call("PUT", "/v1/webhook", "client:ann", body={"url": receiver.url})
            assert (refused.status, refused.body["errors"][0]["pointer"]) == (422, "/url")
            for name in ("localhost", "2130706433", "0x7f.1"):
                await hook(run, receiver.url.replace("127.0.0.1", name))
                await run.ride()
                [row] = await given_up(run, 1)
                assert "no address of the public internet" in row["last_error"] or "canonical" in row["last_error"]
                assert (await run.call("DELETE", "/v1/webhook", "client:ann")).status == 204
            assert receiver.got == []


class TestRoutes:
    async def test_a_webhook_is_put_shown_without_its_secret_and_deleted(self, run: Running) -> None:
        assert (await run.call("GET", "/v1/webhook", "client:ann")).code == "webhook-unknown"
        made = await run.call("PUT", "/v1/webhook", "client:ann", body={"url": "https://a.example/x"})
        assert (made.status, made.body["url"]) == (200, "https://a.example/x")
        assert len(made.body["secret"]) >= 32
        again = await run.call("PUT", "/v1/webhook", "client:ann", body={"url": "https://b.example/", "secret": SECRET})
        assert again.body == {"url": "https://b.example/", "secret": SECRET, "created_at": made.body["created_at"]}
        shown = await run.call("GET", "/v1/webhook", "client:ann")
        assert shown.body == {"url": "https://b.example/", "created_at": made.body["created_at"]}
        for _ in range(2):
            assert (await run.call("DELETE", "/v1/webhook", "client:ann")).status == 204
        assert (await run.call("GET", "/v1/webhook", "client:ann")).status == 404

    async def test_a_client_has_its_own_alone_and_an_admin_names_whose(self, run: Running, receiver: Receiver) -> None:
        """P11"""
        await hook(run, receiver.url)
        for method, path in (
            ("GET", "/v1/webhook"),
            ("PUT", "/v1/webhook"),
            ("DELETE", "/v1/webhook"),
            ("GET", "/v1/webhook/deliveries"),
            ("POST", "/v1/webhook/deliveries/retry"),
        ):
            body = {"url": "https://eve.example/"} if method == "PUT" else None
            for who in ("client:eve", "driver:d1", "fleet:f=*"):
                answer = await run.call(method, f"{path}?client=ann", who, body=body)
                assert (answer.status, answer.code) == (403, "forbidden")
        assert (await run.call("GET", "/v1/webhook", "driver:ann")).status == 403
        assert (await run.call("GET", "/v1/webhook?client=ann", "admin:root")).body["url"] == receiver.url
        assert (await run.call("GET", "/v1/webhook?client=ann", "client:ann")).status == 200
        assert (await run.call("GET", "/v1/webhook?client=a%20b", "admin:root")).status == 422

    @pytest.mark.parametrize(
        "body", [{}, {"url": "ftp://a/"}, {"url": "http://u:p@a.example/"}, {"url": "http://a/", "secret": "short"}]
    )
    async def test_what_cannot_be_a_webhook_is_refused(self, run: Running, body: dict[str, Any]) -> None:
        answer = await run.call("PUT", "/v1/webhook", "client:ann", body=body)
        assert (answer.status, answer.code) == (422, "invalid")

    async def test_deliveries_come_in_pages(self, tmp_path: Path, receiver: Receiver) -> None:
        receiver.answer = says(410)
        async with running(settings_for(tmp_path, webhook_private_hosts=True)) as run:
            await hook(run, receiver.url)
            rides = [await cancelled(run) for _ in range(3)]
            await given_up(run, 6)
            seen: list[str] = []
            path: str | None = "/v1/webhook/deliveries?limit=2"
            while path is not None:
                page = (await run.call("GET", path, "client:ann")).body
                seen += [row["id"] for row in page["items"]]
                path = page["next"] and f"/v1/webhook/deliveries?limit=2&cursor={page['next']}"
            assert sorted(seen) == sorted(f"{ride_id}.{version}" for ride_id in rides for version in (1, 2))
            for query in ("cursor=x", "state=lost", "limit=0"):
                assert (await run.call("GET", f"/v1/webhook/deliveries?{query}", "client:ann")).status == 422


async def test_the_typed_client_does_all_of_it(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = says(410)
    async with (
        running(settings_for(tmp_path, webhook_private_hosts=True)) as run,
        DispatchClient(run.base_url, run.token_of("client:ann")) as client,
    ):
        made = await client.put_webhook(receiver.url)
        assert (await client.webhook()).created_at == made.created_at
        ride_id = await cancelled(run)
        await given_up(run, 2)
        page = await client.deliveries(state="given_up", limit=1)
        assert [row.id for row in page.items] == [f"{ride_id}.2"]
        assert [row.id for row in (await client.deliveries(cursor=page.next)).items] == [f"{ride_id}.1"]
        receiver.answer = ok
        assert await client.retry_deliveries([f"{ride_id}.1"]) == 1
        assert await client.retry_deliveries() == 1
        await receiver.has_taken(2)
        got = receiver.taken[0]
        assert verify_signature(made.secret, got.headers["Hexhail-Signature"], got.raw, time.time())
        await client.delete_webhook()
        with pytest.raises(ApiError) as refused:
            await client.webhook()
        assert refused.value.problem.code == "webhook-unknown"
