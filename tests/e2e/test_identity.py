"""Who may do what: every role on every action (P11)."""

from __future__ import annotations

import pytest

from tests.e2e.running import LAT, LON, Running

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
    "cancel": ("POST", "/v1/rides/{ride}/cancel", None),
    "nearby": ("GET", f"/v1/drivers/nearby?lat={LAT}&lon={LON}", None),
    "put d1": ("PUT", "/v1/drivers/d1", {"seats": 4}),
    "get d1": ("GET", "/v1/drivers/d1", None),
    "stream d1": ("GET", "/v1/drivers/d1/stream", None),
    "arrive": ("POST", "/v1/trips/{trip}/arrive", None),
    "cancel trip": ("POST", "/v1/trips/{trip}/cancel", None),
    "explanation": ("GET", "/v1/rides/{ride}/explanation", None),
    "batches": ("GET", "/v1/batches", None),
    "batch input": ("GET", "/v1/batches/b_00000000000000000000000000/input", None),
}
#: The ride is completed when the actions run, so that "allowed" is 204, 409 or 426 where it would change something.
EXPECTED = {
    "ann": [201, 200, 200, 204, 409, 200, 403, 403, 403, 403, 403, 200, 200, 403],
    "bob": [201, 200, 404, 404, 404, 200, 403, 403, 403, 403, 403, 404, 200, 403],
    "d1": [403, 403, 403, 403, 403, 403, 200, 200, 426, 409, 409, 403, 403, 403],
    "d2": [403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403],
    "fleet": [403, 403, 403, 403, 403, 200, 200, 200, 426, 409, 409, 403, 403, 403],
    "fleet2": [403, 403, 403, 403, 403, 200, 403, 403, 403, 403, 403, 403, 403, 403],
    "admin": [201, 200, 200, 204, 409, 200, 200, 200, 426, 409, 409, 200, 200, 404],
    "nobody": [401] * len(ACTIONS),
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
