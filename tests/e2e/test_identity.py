"""Who may do what: every role on every action (P11)."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from aiohttp import web

from api.auth import Role
from api.service import build_service
from config.settings import Settings
from tests.e2e.running import LAT, LON, Running, settings_for

PLACE = {"lat": LAT, "lon": LON}
OWN, OTHER = "own", "other"

# who -> action -> status. Ann made the ride, d1 drives it; the fleet speaks for d1 and x-*.
WHO = {
    "ann": "client:ann",
    "bob": "client:bob",
    "d1": "driver:d1",
    "d2": "driver:d2",
    "fleet": "fleet:f=d1,x-*",
    "fleet2": "fleet:g=d10,d",
    "admin": "admin:root",
    "nobody": None,
}
ACTIONS: dict[str, tuple[str, str, object]] = {
    "request": ("POST", "/v1/rides", {"pickup": PLACE}),
    "list": ("GET", "/v1/rides", None),
    "get": ("GET", "/v1/rides/{ride}", None),
    "events": ("GET", "/v1/rides/{ride}/events?last_event_id=999", None),
    "cancel": ("POST", "/v1/rides/{ride}/cancel", {"reason": "a test"}),
    "nearby": ("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}", None),
    "nearby many": ("POST", "/v1/drivers/nearby", {"points": [PLACE]}),
    "put d1": ("PUT", "/v1/drivers/d1", {"seats": 4}),
    "get d1": ("GET", "/v1/drivers/d1", None),
    "stream d1": ("GET", "/v1/drivers/d1/stream", None),
    "arrive": ("POST", "/v1/trips/{trip}/arrive", None),
    "cancel trip": ("POST", "/v1/trips/{trip}/cancel", None),
    "explanation": ("GET", "/v1/rides/{ride}/explanation", None),
    "batches": ("GET", "/v1/batches", None),
    "batch input": ("GET", "/v1/batches/b_00000000000000000000000000/input", None),
    "destination": ("POST", "/v1/rides/{ride}/destination", PLACE),
}
#: The ride is completed when the actions run, so that "allowed" is 204, 409 or 426 where it would change something,
#: and 200 where it had been done.
EXPECTED = {
    "ann": [201, 200, 200, 204, 409, 200, 200, 403, 403, 403, 403, 403, 200, 200, 403, 409],
    "bob": [201, 200, 404, 404, 404, 200, 200, 403, 403, 403, 403, 403, 404, 200, 403, 404],
    "d1": [403, 403, 403, 403, 403, 403, 403, 200, 200, 426, 200, 409, 403, 403, 403, 403],
    "d2": [403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403],
    "fleet": [403, 403, 403, 403, 403, 200, 200, 200, 200, 426, 200, 409, 403, 403, 403, 403],
    "fleet2": [403, 403, 403, 403, 403, 200, 200, 403, 403, 403, 403, 403, 403, 403, 403, 403],
    "admin": [201, 200, 200, 204, 409, 200, 200, 200, 200, 426, 200, 409, 200, 200, 404, 409],
    "nobody": [401] * len(ACTIONS),
}
#: What every token may do.
EVERYONES_ACTIONS: dict[str, tuple[str, str, object, int]] = {
    "markets": ("GET", "/v1/markets", None, 200),
    "zones": ("GET", "/v1/markets/new-york/zones", None, 200),
}
#: What clients do for themselves, and admins too.
CLIENTS_ACTIONS: dict[str, tuple[str, str, object, int]] = {
    "match": ("POST", "/v1/match", {}, 422),
    "put webhook": ("PUT", "/v1/webhook", {"url": ""}, 422),
    "get webhook": ("GET", "/v1/webhook", None, 404),
    "delete webhook": ("DELETE", "/v1/webhook", None, 204),
    "deliveries": ("GET", "/v1/webhook/deliveries", None, 200),
    "retry": ("POST", "/v1/webhook/deliveries/retry", None, 200),
}
#: What a fleet's gateway does.
FLEETS_ACTIONS: dict[str, tuple[str, str, object, int]] = {
    "fleet stream": ("GET", "/v1/fleet/stream", None, 426),
}
WHY = {"reason": "a test"}
#: What only an admin may do, and what it is answered then.
ADMINS_ACTIONS: dict[str, tuple[str, str, object, int]] = {
    "assign": ("POST", "/v1/rides/{ride}/assign", WHY | {"driver_id": "d1"}, 409),
    "release": ("POST", "/v1/rides/{ride}/release", WHY, 409),
    "complete": ("POST", "/v1/rides/{ride}/complete", WHY, 200),
    "pause": ("POST", "/v1/markets/new-york/pause", WHY | {"new_rides": "queue"}, 200),
    "resume": ("POST", "/v1/markets/new-york/resume", None, 200),
    "suspend": ("POST", "/v1/drivers/d1/suspend", WHY, 200),
    "unsuspend": ("POST", "/v1/drivers/d1/unsuspend", None, 200),
}


async def completed_ride(run: Running) -> dict[str, str]:
    wheel = await run.drive("d1")
    await wheel.stands()
    ride = await run.ride()
    trip = (await wheel.next("trip"))["ride"]["trip"]["id"]
    for verb in ("arrive", "start", "complete"):
        await wheel.send(type=verb, trip_id=trip)
        await wheel.next("done")
    return {"ride": ride["id"], "trip": trip}


@pytest.mark.parametrize("who", WHO)
async def test_each_identity_may_do_exactly_what_is_its_own(embedded: Running, who: str) -> None:
    ids = await completed_ride(embedded)
    statuses = {}
    for name, (method, path, body) in ACTIONS.items():
        answer = await embedded.call(method, path.format(**ids), WHO[who], body=body)
        statuses[name] = answer.status
    assert statuses == dict(zip(ACTIONS, EXPECTED[who], strict=True))


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(
    ("actions", "roles"),
    [
        (EVERYONES_ACTIONS, set(Role)),
        (CLIENTS_ACTIONS, {Role.CLIENT, Role.ADMIN}),
        (FLEETS_ACTIONS, {Role.FLEET, Role.ADMIN}),
        (ADMINS_ACTIONS, {Role.ADMIN}),
    ],
    ids=["everyone's", "clients'", "fleets'", "admins'"],
)
async def test_each_role_may_do_exactly_what_is_for_it(
    embedded: Running, who: str, actions: dict[str, tuple[str, str, object, int]], roles: set[Role]
) -> None:
    ids = await completed_ride(embedded)
    statuses = {}
    for name, (method, path, body, _) in actions.items():
        answer = await embedded.call(method, path.format(**ids), WHO[who], body=body)
        statuses[name] = answer.status
    if WHO[who] is None:
        assert statuses == dict.fromkeys(actions, 401)
    elif str(WHO[who]).partition(":")[0] in roles:
        assert statuses == {name: status for name, (*_, status) in actions.items()}
    else:
        assert statuses == dict.fromkeys(actions, 403)


def test_every_route_is_tried_by_every_role(tmp_path: Path) -> None:
    """A route that is added has to be added above."""
    tried = [(method, path) for method, path, _ in ACTIONS.values()]
    tables = (EVERYONES_ACTIONS, CLIENTS_ACTIONS, FLEETS_ACTIONS, ADMINS_ACTIONS)
    tried += [each[:2] for table in tables for each in table.values()]
    paths = {(method, path.partition("?")[0]) for method, path in tried}
    untried = [
        f"{route.method} {route.resource.canonical}"
        for route in routes_of(settings_for(tmp_path))
        if route.resource is not None
        and route.resource.canonical.startswith("/v1/")
        and route.method != "HEAD"
        and not any(is_of(route, method, path) for method, path in paths)
    ]
    assert untried == []


def routes_of(settings: Settings) -> list[web.AbstractRoute]:
    async def made() -> list[web.AbstractRoute]:
        service = await build_service(settings, "api")
        try:
            return list(service.make_app().router.routes())
        finally:
            await service.stop()

    return asyncio.run(made())


def is_of(route: web.AbstractRoute, method: str, path: str) -> bool:
    """Whether a request of this method for this path goes to the route; `{ride}` and `{trip}` stand for some id."""
    if route.method != method or route.resource is None:
        return False
    pattern = re.sub(r"\{[^{}]+\}", "[^/]+", route.resource.canonical)
    return re.fullmatch(pattern, path) is not None


@pytest.mark.parametrize("who", ["client:ann", "driver:d1", "fleet:f=d1"])
async def test_a_command_that_is_refused_to_its_sender_changes_nothing(embedded: Running, who: str) -> None:
    ride = await embedded.ride()
    for method, path, body, _ in ADMINS_ACTIONS.values():
        await embedded.call(method, path.format(ride=ride["id"]), who, body=body)
    shown = (await embedded.call("GET", f"/v1/rides/{ride['id']}", "client:ann")).body
    assert (shown["state"], shown["version"]) == ("searching", 1)
    (market,) = (await embedded.call("GET", "/v1/markets", who)).body["items"]
    assert not market["paused"]


async def test_a_client_lists_only_its_own_rides_and_an_admin_all(embedded: Running) -> None:
    mine, theirs = await embedded.ride(), await embedded.ride("client:bob")
    listed = (await embedded.call("GET", "/v1/rides", "client:ann")).body["items"]
    assert [ride["id"] for ride in listed] == [mine["id"]]
    everything = (await embedded.call("GET", "/v1/rides", "admin:root")).body["items"]
    assert {ride["id"] for ride in everything} == {mine["id"], theirs["id"]}


async def test_a_foreign_ride_and_one_that_never_was_look_alike(embedded: Running) -> None:
    ride = await embedded.ride()
    foreign = await embedded.call("GET", f"/v1/rides/{ride['id']}", "client:bob")
    nothing = await embedded.call("GET", f"/v1/rides/r_{'0' * 26}", "client:bob")
    assert (foreign.status, foreign.body) == (nothing.status, nothing.body)


async def test_a_driver_does_not_suspend_itself_or_lift_it(embedded: Running) -> None:
    answer = await embedded.call("PUT", "/v1/drivers/d1", "driver:d1", body={"seats": 4, "status": "suspended"})
    assert (answer.status, answer.code) == (403, "forbidden")


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer x.y.z", "bearer " + "a" * 9000, "Bearer \x80"],
)
async def test_a_header_that_holds_no_token_is_401(embedded: Running, header: str) -> None:
    answer = await embedded.call("GET", "/v1/rides", headers={"Authorization": header})
    assert answer.status in (400, 401)
    if answer.status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
