"""What every store promises of webhooks: each event owed once, a ride's in order, nothing lost with a sender."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from matcher.model import ClientId, Hint, Move, RideId
from matcher.store_webhooks import Delivery, Key, Place, State, Undelivered, shared_out
from tests.stores import HOUR_MS, MARKET, StoreCase

ANN, BOB = ClientId("ann"), ClientId("bob")
URL = "https://ann.example/hooks?a=1&b=ü"
SECRET = "correct horse battery"
CLAIM_MS = 30_000


@pytest.fixture
async def hooked(case: StoreCase) -> StoreCase:
    await case.store.webhooks.put(ANN, url=URL, secret=SECRET)
    return case


async def announce(case: StoreCase) -> None:
    await case.store.mark_announced(await case.store.unannounced(None, older_than_ms=0, limit=1000))


async def owed(case: StoreCase, client: str = ANN, state: State | None = None) -> list[Undelivered]:
    """Newest first."""
    return await case.store.webhooks.undelivered(ClientId(client), state=state, after=None, limit=1000)


async def claim(case: StoreCase, limit: int = 16, share: int = 16, **rooms: int) -> list[Delivery]:
    by_client = {ClientId(name): room for name, room in rooms.items()}
    return await case.store.webhooks.claim(limit=limit, claim_ms=CLAIM_MS, share=share, rooms=by_client)


def claims_run_out(case: StoreCase) -> None:
    case.sql("UPDATE webhook_deliveries SET due_at_ms = due_at_ms - ? WHERE due_at_ms IS NOT NULL", HOUR_MS)


def keys_of(deliveries: Sequence[Delivery]) -> list[Key]:
    return [(each.event.ride_id, each.event.version) for each in deliveries]


async def rides_of(case: StoreCase, count: int, client: str = ANN) -> list[RideId]:
    """Rides of the client, announced, each owed one event."""
    made = [(await case.ride(client)).ride_id for _ in range(count)]
    await announce(case)
    return made


class TestRegistration:
    async def test_a_webhook_is_read_back_as_it_was_put(self, hooked: StoreCase) -> None:
        hook = await hooked.store.webhooks.get(ANN)
        assert hook is not None
        assert (hook.client_id, hook.url) == (ANN, URL)
        assert abs(hook.created_at_ms - await hooked.store.now_ms()) < HOUR_MS
        assert await hooked.store.webhooks.get(BOB) is None

    async def test_putting_it_again_changes_it_and_keeps_its_age(self, hooked: StoreCase) -> None:
        first = await hooked.store.webhooks.get(ANN)
        for _ in range(2):
            again = await hooked.store.webhooks.put(ANN, url="http://new.example/", secret="another secret")
        assert first is not None
        assert (again.url, again.created_at_ms) == ("http://new.example/", first.created_at_ms)
        await rides_of(hooked, 1)
        [delivery] = await claim(hooked)
        assert (delivery.url, delivery.secret) == ("http://new.example/", "another secret")

    async def test_deleting_it_drops_what_was_owed_and_may_be_done_twice(self, hooked: StoreCase) -> None:
        await hooked.store.webhooks.put(BOB, url=URL, secret=SECRET)
        await rides_of(hooked, 3)
        await rides_of(hooked, 1, BOB)
        for _ in range(2):
            await hooked.store.webhooks.delete(ANN)
        assert await hooked.store.webhooks.get(ANN) is None
        assert await owed(hooked) == []
        assert len(await owed(hooked, BOB)) == 1


class TestOutbox:
    async def test_each_announced_event_is_owed_once_to_the_client_of_the_ride(self, hooked: StoreCase) -> None:
        ride = await hooked.ride(ANN)
        await hooked.match(ride, await hooked.driver())
        await hooked.ride("nobody")
        assert await owed(hooked) == []
        hints = await hooked.store.unannounced(None, older_than_ms=0, limit=10)
        await hooked.store.mark_announced(hints)
        await hooked.store.mark_announced(hints)
        assert [(each.ride_id, each.version) for each in await owed(hooked)] == [(ride.ride_id, 2), (ride.ride_id, 1)]
        assert hooked.sql("SELECT COUNT(*) FROM webhook_deliveries")[0][0] == 2

    async def test_a_hint_owes_every_version_up_to_its_own_and_none_after(self, hooked: StoreCase) -> None:
        ride = await hooked.ride(ANN)
        await hooked.match(ride, await hooked.driver())
        await hooked.store.mark_announced([Hint(ride.ride_id, 1, MARKET, None)])
        assert [each.version for each in await owed(hooked)] == [1]
        await hooked.store.mark_announced([Hint(ride.ride_id, 2, MARKET, None)])
        assert [each.version for each in await owed(hooked)] == [2, 1]

    async def test_what_was_announced_before_the_webhook_was_put_is_not_owed(self, case: StoreCase) -> None:
        await rides_of(case, 2)
        await case.store.webhooks.put(ANN, url=URL, secret=SECRET)
        [ride_id] = await rides_of(case, 1)
        assert [each.ride_id for each in await owed(case)] == [ride_id]

    async def test_an_event_announced_anew_by_hand_is_still_owed_once(self, hooked: StoreCase) -> None:
        await rides_of(hooked, 1)
        hooked.sql("UPDATE ride_events SET pending = 1")
        await announce(hooked)
        assert len(await owed(hooked)) == 1
        assert await hooked.store.unannounced(None, older_than_ms=0, limit=10) == []

    async def test_hundreds_are_owed_at_once(self, hooked: StoreCase) -> None:
        for _ in range(6):
            ride = await hooked.ride(ANN)
            await hooked.match(ride, await hooked.driver())
        ghosts = [Hint(RideId(f"r_{n}"), 1 + n % 3, MARKET, None) for n in range(1200)]
        await hooked.store.mark_announced(await hooked.store.unannounced(None, older_than_ms=0, limit=100) + ghosts)
        assert len(await owed(hooked)) == 12


class TestClaims:
    async def test_a_claim_tells_the_event_the_way_and_which_attempt_it_is(self, hooked: StoreCase) -> None:
        ride = await hooked.ride(ANN)
        await announce(hooked)
        assert await hooked.store.webhooks.overdue_ms() is not None
        [delivery] = await claim(hooked)
        assert (delivery.client_id, delivery.url, delivery.secret, delivery.attempts) == (ANN, URL, SECRET, 1)
        assert [delivery.event] == await hooked.store.events_after({ride.ride_id: 0}, limit=9)
        assert await hooked.store.webhooks.overdue_ms() is None

    async def test_nobody_else_gets_what_is_claimed_until_the_claim_runs_out(self, hooked: StoreCase) -> None:
        """A sender that dies gives back what it had by itself."""
        await rides_of(hooked, 2)
        first = await claim(hooked)
        assert len(first) == 2
        assert await claim(hooked) == []
        claims_run_out(hooked)
        second = await claim(hooked)
        assert sorted(keys_of(second)) == sorted(keys_of(first))
        assert {each.attempts for each in second} == {2}

    async def test_a_rides_next_event_waits_until_the_one_before_is_delivered(self, hooked: StoreCase) -> None:
        ride = await hooked.ride(ANN)
        await hooked.match(ride, await hooked.driver())
        await announce(hooked)
        [first] = await claim(hooked)
        assert await claim(hooked) == []
        await hooked.store.webhooks.delivered(first)
        [second] = await claim(hooked)
        assert [first.event.version, second.event.version] == [1, 2]
        await hooked.store.webhooks.delivered(second)
        assert await owed(hooked) == []

    async def test_it_waits_for_every_attempt_of_the_one_before_and_goes_on_once_that_is_given_up(
        self, hooked: StoreCase
    ) -> None:
        ride = await hooked.ride(ANN)
        await hooked.match(ride, await hooked.driver())
        await announce(hooked)
        [first] = await claim(hooked)
        await hooked.store.webhooks.failed(first, "answered 500", again_ms=HOUR_MS)
        assert await claim(hooked) == []
        assert await hooked.store.webhooks.overdue_ms() is None  # nor is the second looked at meanwhile
        claims_run_out(hooked)
        [again] = await claim(hooked)
        assert (again.event.version, again.attempts) == (1, 2)
        await hooked.store.webhooks.failed(again, "answered 500", again_ms=None)
        [second] = await claim(hooked)
        assert second.event.version == 2
        [given_up] = await owed(hooked, state=State.GIVEN_UP)
        assert (given_up.version, given_up.attempts, given_up.last_error) == (1, 2, "answered 500")

    async def test_a_late_answer_of_an_old_claim_changes_nothing(self, hooked: StoreCase) -> None:
        await rides_of(hooked, 1)
        [old] = await claim(hooked)
        claims_run_out(hooked)
        [new] = await claim(hooked)
        await hooked.store.webhooks.delivered(old)
        await hooked.store.webhooks.failed(old, "late", again_ms=0)
        await hooked.store.webhooks.failed(old, "late", again_ms=None)
        [row] = await owed(hooked)
        assert (row.state, row.attempts, row.last_error) == (State.WAITING, 2, None)
        await hooked.store.webhooks.delivered(new)
        assert await owed(hooked) == []

    async def test_of_a_client_no_more_is_claimed_than_its_share_and_of_a_full_one_nothing(
        self, hooked: StoreCase
    ) -> None:
        await hooked.store.webhooks.put(BOB, url=URL, secret=SECRET)
        await rides_of(hooked, 70)
        await rides_of(hooked, 3, BOB)
        assert [each.client_id for each in await claim(hooked, share=4)] == [ANN] * 4
        assert [each.client_id for each in await claim(hooked, share=4, ann=0)] == [BOB] * 3
        assert len(await claim(hooked, share=4, ann=1)) == 1
        assert len(await claim(hooked, limit=2)) == 2

    async def test_rows_whose_webhook_is_gone_are_dropped_when_they_are_found(self, hooked: StoreCase) -> None:
        await rides_of(hooked, 2)
        hooked.sql("DELETE FROM webhooks")
        assert await claim(hooked) == []
        assert await owed(hooked) == []

    async def test_an_error_longer_than_its_column_is_cut(self, hooked: StoreCase) -> None:
        await rides_of(hooked, 1)
        [delivery] = await claim(hooked)
        await hooked.store.webhooks.failed(delivery, "ü" * 1000, again_ms=None)
        assert (await owed(hooked))[0].last_error == "ü" * 255


class TestGivenUp:
    async def given_up(self, case: StoreCase, count: int) -> list[RideId]:
        made = await rides_of(case, count)
        for delivery in await claim(case, limit=count, share=count):
            await case.store.webhooks.failed(delivery, "answered 500", again_ms=None)
        return made

    async def test_retried_it_is_due_at_once_and_counts_anew(self, hooked: StoreCase) -> None:
        await self.given_up(hooked, 3)
        assert await claim(hooked) == []
        assert await hooked.store.webhooks.retry(ANN) == 3
        assert await hooked.store.webhooks.retry(ANN) == 0
        assert [each.attempts for each in await claim(hooked)] == [1, 1, 1]

    async def test_only_those_named_are_retried_and_of_ones_own_alone(self, hooked: StoreCase) -> None:
        """P11"""
        rides = await self.given_up(hooked, 3)
        waiting = await rides_of(hooked, 1)
        keys = [(rides[0], 1), (rides[1], 1), (rides[1], 7), (waiting[0], 1), (RideId("r_none"), 1)]
        assert await hooked.store.webhooks.retry(BOB) == 0
        assert await hooked.store.webhooks.retry(BOB, keys) == 0
        assert await hooked.store.webhooks.retry(ANN, []) == 0
        assert await hooked.store.webhooks.retry(ANN, keys) == 2
        assert [each.ride_id for each in await owed(hooked, state=State.GIVEN_UP)] == [rides[2]]

    async def test_the_list_is_newest_first_in_pages_by_state_and_of_ones_own_alone(self, hooked: StoreCase) -> None:
        """P11"""
        given_up = await self.given_up(hooked, 3)
        waiting = await rides_of(hooked, 2)
        hooked.sql("UPDATE webhook_deliveries SET created_at_ms = 5 WHERE ride_id <> ?", given_up[0])
        newest = [given_up[0], *sorted([*given_up[1:], *waiting], reverse=True)]
        assert [each.ride_id for each in await owed(hooked)] == newest
        assert {each.ride_id for each in await owed(hooked, state=State.WAITING)} == set(waiting)
        assert {each.ride_id for each in await owed(hooked, state=State.GIVEN_UP)} == set(given_up)
        assert await owed(hooked, BOB) == []
        seen: list[RideId] = []
        after: Place | None = None
        for _ in newest:
            [row] = await hooked.store.webhooks.undelivered(ANN, state=None, after=after, limit=1)
            seen.append(row.ride_id)
            after = Place(row.created_at_ms, row.ride_id, row.version)
        assert seen == newest
        assert await hooked.store.webhooks.undelivered(ANN, state=None, after=after, limit=1) == []

    async def test_the_versions_of_a_ride_are_listed_newest_first(self, hooked: StoreCase) -> None:
        ride = await hooked.ride(ANN)
        trip = await hooked.match(ride, await hooked.driver())
        await hooked.move(trip, Move.ARRIVE)
        await announce(hooked)
        rows = await owed(hooked)
        assert [each.version for each in rows] == [3, 2, 1]
        after = Place(rows[0].created_at_ms, ride.ride_id, 3)
        page = await hooked.store.webhooks.undelivered(ANN, state=None, after=after, limit=9)
        assert [each.version for each in page] == [2, 1]

    async def test_what_is_kept_is_bounded_by_age_and_number_and_a_backlog_is_given_up(self, hooked: StoreCase) -> None:
        """P10"""
        given_up = await self.given_up(hooked, 4)
        waiting = await rides_of(hooked, 3)
        hooked.sql("UPDATE webhook_deliveries SET created_at_ms = created_at_ms - 1000 WHERE due_at_ms IS NULL")
        hooked.sql("UPDATE webhook_deliveries SET created_at_ms = 5 WHERE ride_id IN (?, ?)", given_up[0], waiting[0])
        tidy = hooked.store.webhooks.tidy
        assert await tidy(backlog_max=3, given_up_max=10, keep_ms=HOUR_MS) == 1
        assert {each.ride_id for each in await owed(hooked)} == {*given_up[1:], *waiting}
        assert await tidy(backlog_max=3, given_up_max=2, keep_ms=HOUR_MS) == 1
        assert len(await owed(hooked, state=State.GIVEN_UP)) == 2
        assert await tidy(backlog_max=2, given_up_max=10, keep_ms=HOUR_MS) == 1
        [oldest] = [each for each in await owed(hooked, state=State.GIVEN_UP) if each.ride_id == waiting[0]]
        assert oldest.last_error == "more than 2 waited"
        assert await tidy(backlog_max=2, given_up_max=10, keep_ms=HOUR_MS) == 1  # that one is old
        assert await tidy(backlog_max=2, given_up_max=10, keep_ms=HOUR_MS) == 0


def test_a_share_is_taken_in_order_and_a_clients_own_room_goes_before_it() -> None:
    rows = [((RideId(f"r{n}"), 1), name) for n, name in enumerate([ANN, ANN, ANN, BOB, ANN, BOB])]
    assert [key[0] for key in shared_out(rows, 9, 2, {})] == ["r0", "r1", "r3", "r5"]
    assert [key[0] for key in shared_out(rows, 9, 2, {ANN: 1, BOB: 0})] == ["r0"]
    assert [key[0] for key in shared_out(rows, 3, 2, {})] == ["r0", "r1", "r3"]
