"""The ride desk: who shares a transaction, who gets which answer, and what is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from geo.model import DriverId, LatLng, MarketId
from matcher.errors import StoreUnavailable
from matcher.model import ClientId, Hint, Move, NewRide, Ride, RideId, RideState, TripId
from matcher.outcomes import CommandOutcome, Done, KeyReused, NotFound, Requested, RequestOutcome
from matcher.rides import Overloaded, RideDesk
from matcher.store_moves import OnMove
from matcher.store_trips import TripMove

NYC = MarketId("nyc")


def new_ride(name: str, *, client: str = "c", key: str | None = None, body: str = "") -> NewRide:
    return NewRide(
        ride_id=RideId(f"r_{name}"),
        client_id=ClientId(client),
        market=NYC,
        pickup=LatLng(40.7, -74.0),
        dropoff=None,
        seats=1,
        vehicle_class="standard",
        deadline_ms=60_000,
        metadata={},
        idempotency_key=key,
        body_hash=(body or name).encode().ljust(32),
    )


def ride_of(new: NewRide) -> Ride:
    return Ride(
        ride_id=new.ride_id,
        client_id=new.client_id,
        market=new.market,
        state=RideState.SEARCHING,
        version=1,
        pickup=new.pickup,
        dropoff=None,
        seats=1,
        vehicle_class="standard",
        metadata={},
        requested_at_ms=0,
        deadline_at_ms=60_000,
        ended_at_ms=None,
        end_reason=None,
        trip=None,
    )


class Ledger:
    """A store in memory that answers as the contract says, once its gate is open; it keeps what it was asked."""

    def __init__(self) -> None:
        self.groups: list[list[NewRide]] = []
        self.kept: dict[tuple[str, str], NewRide] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.slow: str | None = None
        self.slow_gate = asyncio.Event()
        self.fault: Exception | None = None
        self.commands: list[str] = []
        self.moves: list[list[TripMove]] = []
        self.held: set[DriverId | None] = set()  # their rows are held by another until `let_go`
        self.let_go = asyncio.Event()

    async def request_rides(
        self, new: Sequence[NewRide], *, on_outcome: Callable[[int, RequestOutcome], None] | None = None
    ) -> list[RequestOutcome]:
        self.groups.append(list(new))
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        outcomes = []
        for position, ride in enumerate(new):
            if ride.ride_id == self.slow:
                await self.slow_gate.wait()
            outcomes.append(self._outcome_of(ride))
            if on_outcome is not None:
                on_outcome(position, outcomes[-1])
        return outcomes

    def _outcome_of(self, new: NewRide) -> RequestOutcome:
        if new.idempotency_key is not None:
            first = self.kept.setdefault((new.client_id, new.idempotency_key), new)
            if first.body_hash != new.body_hash:
                return KeyReused(new.idempotency_key)
            if first is not new:
                return Requested(ride_of(first), None, repeated=True)
        return Requested(ride_of(new), Hint(new.ride_id, 1, NYC, None), repeated=False)

    async def cancel_ride(self, ride_id: RideId, *, client_id: ClientId | None, reason: str) -> CommandOutcome:
        await self.gate.wait()
        self.commands.append(f"cancel {ride_id} {client_id} {reason}")
        return Done(ride_of(new_ride("x")), (Hint(ride_id, 2, NYC, None),))

    async def move_trip(
        self,
        trip_id: TripId,
        move: Move,
        *,
        driver_id: DriverId | None,
        epoch: int | None = None,
        reason: str | None = None,
    ) -> CommandOutcome:
        self.commands.append(f"{move} {trip_id} {driver_id} {epoch} {reason}")
        return NotFound()

    async def move_trips(self, asked: Sequence[TripMove], on_outcome: OnMove) -> None:
        self.moves.append(list(asked))
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        for position, each in enumerate(asked):
            if each.driver_id in self.held:
                await self.let_go.wait()
            ride = ride_of(new_ride(each.trip_id))
            on_outcome(position, Done(ride, (Hint(ride.ride_id, 2, NYC, each.driver_id),)))


class Announced:
    def __init__(self) -> None:
        self.hints: list[Hint] = []

    def announce(self, hints: Sequence[Hint]) -> None:
        self.hints.extend(hints)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def announced() -> Announced:
    return Announced()


@pytest.fixture
def make_desk(ledger: Ledger, announced: Announced) -> Callable[..., RideDesk]:
    return lambda **options: RideDesk(ledger, announced, **options)


async def inside(desk: RideDesk, *requests: NewRide) -> list[asyncio.Task[Any]]:
    """Starts these requests and lets them come as far as they can without the store."""
    tasks = [asyncio.create_task(desk.request(new)) for new in requests]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_requests_that_arrive_together_share_a_transaction_in_the_order_of_their_keys(
    make_desk: Callable[..., RideDesk], ledger: Ledger, announced: Announced
) -> None:
    desk = make_desk()
    asked = [
        new_ride("3", client="b", key="k1"),
        new_ride("2", client="a", key="k2"),
        new_ride("1", client="a", key="k1"),
    ]
    answers = await asyncio.gather(*(desk.request(new) for new in asked))
    assert [[ride.ride_id for ride in group] for group in ledger.groups] == [["r_1", "r_2", "r_3"]]
    assert [a.ride.ride_id for a in answers if isinstance(a, Requested)] == ["r_3", "r_2", "r_1"]
    assert sorted(hint.ride_id for hint in announced.hints) == ["r_1", "r_2", "r_3"]


async def test_whatever_arrives_during_a_commit_rides_in_the_next(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk(groups_max=1)
    ledger.gate.clear()
    first = await inside(desk, new_ride("0"))
    await until(lambda: len(ledger.groups) == 1)
    later: list[asyncio.Task[Any]] = []
    for number in range(1, 6):
        later += await inside(desk, new_ride(str(number)))
        await asyncio.sleep(0.005)
    assert len(ledger.groups) == 1
    ledger.gate.set()
    await asyncio.gather(*first, *later)
    assert [len(group) for group in ledger.groups] == [1, 5]


async def test_no_group_exceeds_its_limit(make_desk: Callable[..., RideDesk], ledger: Ledger) -> None:
    desk = make_desk(group_max=4)
    await asyncio.gather(*(desk.request(new_ride(str(number))) for number in range(10)))
    assert sorted(len(group) for group in ledger.groups) == [2, 4, 4]


async def test_the_same_key_in_flight_is_folded_and_gets_the_first_answer(
    make_desk: Callable[..., RideDesk], ledger: Ledger, announced: Announced
) -> None:
    desk = make_desk()
    first, again = await asyncio.gather(
        desk.request(new_ride("1", key="k", body="same")), desk.request(new_ride("2", key="k", body="same"))
    )
    assert isinstance(first, Requested)
    assert isinstance(again, Requested)
    assert (first.repeated, again.repeated) == (False, True)
    assert again.ride == first.ride
    assert [len(group) for group in ledger.groups] == [1]
    assert len(announced.hints) == 1


async def test_the_same_key_with_another_body_is_judged_by_the_store_after_the_first(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk()
    first, other = await asyncio.gather(
        desk.request(new_ride("1", key="k", body="one")), desk.request(new_ride("2", key="k", body="two"))
    )
    assert isinstance(first, Requested)
    assert other == KeyReused("k")
    assert [len(group) for group in ledger.groups] == [1, 1]


async def test_the_same_key_of_another_client_is_another_ride(make_desk: Callable[..., RideDesk]) -> None:
    desk = make_desk()
    one, two = await asyncio.gather(
        desk.request(new_ride("1", client="a", key="k")), desk.request(new_ride("2", client="b", key="k"))
    )
    assert isinstance(one, Requested)
    assert isinstance(two, Requested)
    assert one.ride.ride_id != two.ride.ride_id


async def test_a_caller_that_goes_away_does_not_hurt_its_group(
    make_desk: Callable[..., RideDesk], ledger: Ledger, announced: Announced
) -> None:
    desk = make_desk()
    ledger.gate.clear()
    gone, stays = await inside(desk, new_ride("1", key="k"), new_ride("2"))
    await until(lambda: len(ledger.groups) == 1)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    ledger.gate.set()
    assert isinstance(await stays, Requested)
    assert {hint.ride_id for hint in announced.hints} == {"r_1", "r_2"}
    again = await desk.request(new_ride("1", key="k"))
    assert isinstance(again, Requested)
    assert again.repeated


async def test_beyond_the_limit_the_caller_is_sent_away_with_a_time(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk(waiting_max=3, retry_after_s=2.5)
    ledger.gate.clear()
    waiting = await inside(desk, *(new_ride(str(number)) for number in range(3)))
    with pytest.raises(Overloaded) as refused:
        await desk.request(new_ride("4"))
    assert refused.value.retry_after_s == 2.5
    with pytest.raises(Overloaded):
        await desk.cancel(RideId("r_1"), client_id=None, reason="changed mind")
    ledger.gate.set()
    await asyncio.gather(*waiting)
    assert isinstance(await desk.request(new_ride("4")), Requested)


async def test_work_whose_callers_have_gone_still_counts(make_desk: Callable[..., RideDesk], ledger: Ledger) -> None:
    desk = make_desk(waiting_max=3, groups_max=1)
    ledger.gate.clear()
    await inside(desk, new_ride("0"))
    await until(lambda: len(ledger.groups) == 1)
    for number in range(1, 4):
        (task,) = await inside(desk, new_ride(str(number)))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(Overloaded):
        await desk.request(new_ride("9"))
    ledger.gate.set()
    await desk.close()
    assert sum(len(group) for group in ledger.groups) == 4


async def test_a_database_that_is_down_is_said_to_everybody_in_the_group(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk()
    ledger.fault = StoreUnavailable("the database is down")
    answers = await asyncio.gather(*(desk.request(new_ride(n)) for n in "12"), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["the database is down"] * 2
    ledger.fault = None
    assert isinstance(await desk.request(new_ride("1")), Requested)


async def test_one_refused_row_is_answered_alone(make_desk: Callable[..., RideDesk], ledger: Ledger) -> None:
    desk = make_desk()
    ledger.kept[("c", "k")] = new_ride("0", key="k", body="before")
    fine, reused = await asyncio.gather(desk.request(new_ride("1")), desk.request(new_ride("2", key="k")))
    assert isinstance(fine, Requested)
    assert reused == KeyReused("k")


async def test_a_row_that_takes_long_delays_no_neighbour(
    make_desk: Callable[..., RideDesk], ledger: Ledger, announced: Announced
) -> None:
    desk = make_desk()
    ledger.slow = "r_2"
    quick, slow = await inside(desk, new_ride("1"), new_ride("2"))
    assert isinstance(await quick, Requested)
    assert [hint.ride_id for hint in announced.hints] == ["r_1"]
    assert not slow.done()
    ledger.slow_gate.set()
    assert isinstance(await slow, Requested)


async def test_a_fault_of_ours_reaches_the_callers_and_leaves_the_desk_working(
    make_desk: Callable[..., RideDesk], ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    desk = make_desk()
    ledger.fault = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        await desk.request(new_ride("1", key="k"))
    assert "a command failed" in caplog.text
    ledger.fault = None
    assert isinstance(await desk.request(new_ride("1", key="k")), Requested)


async def test_closing_finishes_what_was_taken_in_and_takes_no_more(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk(group_max=1, groups_max=1)
    ledger.gate.clear()
    waiting = await inside(desk, *(new_ride(str(number)) for number in range(3)))
    closing = asyncio.create_task(desk.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    with pytest.raises(Overloaded, match="stopping"):
        await desk.request(new_ride("9"))
    ledger.gate.set()
    await closing
    assert all(isinstance(task.result(), Requested) for task in waiting)


async def test_commands_pass_through_and_their_changes_are_announced(
    make_desk: Callable[..., RideDesk], ledger: Ledger, announced: Announced
) -> None:
    desk = make_desk()
    done = await desk.cancel(RideId("r_7"), client_id=ClientId("c"), reason="late")
    assert isinstance(done, Done)
    outcome = await desk.move_trip(TripId("t_1"), Move.ARRIVE, driver_id=None)
    assert isinstance(outcome, NotFound)
    assert ledger.commands == ["cancel r_7 c late", "arrive t_1 None None None"]
    assert [hint.ride_id for hint in announced.hints] == ["r_7"]


def moves(desk: RideDesk, *of_drivers: tuple[str, Move]) -> list[asyncio.Task[CommandOutcome]]:
    """Commands on each driver's own trip, in this order."""
    return [
        asyncio.create_task(desk.move_trip(TripId(f"t_{name}"), move, driver_id=DriverId(name), epoch=3))
        for name, move in of_drivers
    ]


async def test_commands_of_different_drivers_share_a_transaction_and_each_is_answered_and_announced(
    make_desk: Callable[..., RideDesk], ledger: Ledger, announced: Announced
) -> None:
    desk = make_desk()
    tasks = moves(desk, ("a", Move.ARRIVE), ("b", Move.COMPLETE))
    outcomes = await asyncio.gather(*tasks)
    arrive, complete = (
        TripMove(TripId("t_a"), Move.ARRIVE, DriverId("a"), 3),
        TripMove(TripId("t_b"), Move.COMPLETE, DriverId("b"), 3),
    )
    assert ledger.moves == [[arrive, complete]]
    assert [outcome.ride.ride_id for outcome in outcomes if isinstance(outcome, Done)] == ["r_t_a", "r_t_b"]
    assert [hint.driver_id for hint in announced.hints] == ["a", "b"]


async def test_two_commands_of_one_driver_are_written_one_after_the_other(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk()
    await asyncio.gather(*moves(desk, ("a", Move.ARRIVE), ("a", Move.START), ("b", Move.ARRIVE)))
    assert [[each.move for each in group] for group in ledger.moves] == [[Move.ARRIVE, Move.ARRIVE], [Move.START]]


async def test_a_drivers_second_command_waits_for_its_first_and_delays_no_other_driver(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk()
    ledger.gate.clear()
    first = moves(desk, ("a", Move.ARRIVE), ("a", Move.START))
    await until(lambda: len(ledger.moves) == 1)
    other = moves(desk, ("b", Move.ARRIVE))
    await until(lambda: len(ledger.moves) == 2)
    assert [[each.driver_id for each in group] for group in ledger.moves] == [["a"], ["b"]]
    ledger.gate.set()
    await asyncio.gather(*first, *other)
    assert [[each.move for each in group] for group in ledger.moves[2:]] == [[Move.START]]


async def test_commands_whose_rows_are_held_keep_no_later_group_waiting(
    make_desk: Callable[..., RideDesk], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matcher.turns.TURN_S_MAX", 0.01)
    desk = make_desk()
    ledger.held = {DriverId("a"), DriverId("b")}
    held = moves(desk, ("a", Move.ARRIVE))
    await until(lambda: len(ledger.moves) == 1)
    held += moves(desk, ("b", Move.ARRIVE))
    await until(lambda: len(ledger.moves) == 2)
    [free] = moves(desk, ("c", Move.ARRIVE))
    async with asyncio.timeout(5):
        assert isinstance(await free, Done)
    assert not any(task.done() for task in held)
    ledger.let_go.set()
    await asyncio.gather(*held)


async def test_a_driver_whose_command_is_settled_waits_for_no_neighbour_with_its_next(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk()
    ledger.held = {DriverId("b")}
    first, held = moves(desk, ("a", Move.ARRIVE), ("b", Move.ARRIVE))
    await first
    [second] = moves(desk, ("a", Move.START))
    async with asyncio.timeout(5):
        assert isinstance(await second, Done)
    assert not held.done()
    ledger.let_go.set()
    await held


async def test_a_group_of_commands_that_the_store_cannot_do_fails_each_of_its_callers(
    make_desk: Callable[..., RideDesk], ledger: Ledger
) -> None:
    desk = make_desk()
    ledger.fault = StoreUnavailable("gone")
    outcomes = await asyncio.gather(*moves(desk, ("a", Move.ARRIVE), ("b", Move.ARRIVE)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["gone", "gone"]
    assert outcomes[0] is not outcomes[1]
    await desk.close()


async def test_a_driver_command_counts_as_waiting_and_is_finished_when_its_caller_goes_away(
    make_desk: Callable[..., RideDesk], ledger: Ledger, announced: Announced
) -> None:
    """P10"""
    desk = make_desk(waiting_max=1)
    ledger.gate.clear()
    [task] = moves(desk, ("a", Move.ARRIVE))
    while not ledger.moves:
        await asyncio.sleep(0.001)
    with pytest.raises(Overloaded):
        await asyncio.gather(*moves(desk, ("b", Move.ARRIVE)))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    ledger.gate.set()
    await desk.close()
    assert [hint.driver_id for hint in announced.hints] == ["a"]


async def test_a_command_whose_caller_goes_away_is_finished_and_announced(
    make_desk: Callable[..., RideDesk], ledger: Ledger, announced: Announced
) -> None:
    desk = make_desk()
    ledger.gate.clear()
    task = asyncio.create_task(desk.cancel(RideId("r_7"), client_id=None, reason="late"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    ledger.gate.set()
    await desk.close()
    assert [hint.ride_id for hint in announced.hints] == ["r_7"]
