"""What every store promises of drivers' commands that are written together: each is answered as if it were alone."""

from __future__ import annotations

import asyncio

from geo.model import DriverId
from matcher.model import Move, RideState, Slot, Trip, TripId
from matcher.outcomes import Done, NotAllowed, NotFound, NotYours, Superseded
from matcher.store_moves import MoveOutcome
from matcher.store_trips import TripMove
from tests.stores import MARKET, StoreCase


def of(trip: Trip, move: Move, *, epoch: int | None = 1) -> TripMove:
    """The command of the trip's own driver."""
    return TripMove(trip.trip_id, move, trip.driver_id, epoch)


async def together(case: StoreCase, *asked: TripMove) -> list[MoveOutcome]:
    settled: dict[int, MoveOutcome] = {}

    def hear(position: int, outcome: MoveOutcome) -> None:
        assert position not in settled
        settled[position] = outcome

    await case.store.move_trips(asked, hear)
    return [settled[position] for position in range(len(asked))]


async def test_each_command_of_a_group_takes_effect_with_its_own_event_and_hints(case: StoreCase) -> None:
    _, first = await case.matched()
    _, second = await case.matched()
    await case.move(second, Move.ARRIVE)
    _, third = await case.under_way()
    _, fourth = await case.offered()
    asked = [of(first, Move.ARRIVE), of(second, Move.START), of(third, Move.COMPLETE), of(fourth, Move.ACCEPT)]
    outcomes = await together(case, *asked)
    states = [RideState.ARRIVED, RideState.IN_PROGRESS, RideState.COMPLETED, RideState.ASSIGNED]
    assert [(await case.done(outcome)).state for outcome in outcomes] == states
    for trip, outcome in zip((first, second, third, fourth), outcomes, strict=True):
        assert isinstance(outcome, Done)
        assert [(hint.ride_id, hint.version) for hint in outcome.hints] == [(trip.ride_id, outcome.ride.version)]
        assert (await case.newest_event(trip.ride_id)).trip_id == trip.trip_id
    assert (await case.store.audit()).holds


async def test_a_completion_in_a_group_promotes_its_own_drivers_next_trip(case: StoreCase) -> None:
    _, now = await case.under_way()
    next_ride, after = await case.matched(now.driver_id, slot=Slot.NEXT)
    _, other = await case.under_way()
    completed, beside = await together(case, of(now, Move.COMPLETE), of(other, Move.COMPLETE))
    assert isinstance(completed, Done)
    assert isinstance(beside, Done)
    assert [hint.ride_id for hint in completed.hints] == [now.ride_id, next_ride.ride_id]
    assert [hint.ride_id for hint in beside.hints] == [other.ride_id]
    assert await case.slots(now.driver_id) == {after.trip_id: Slot.NOW}
    assert await case.slots(other.driver_id) == {}


async def test_what_is_refused_in_a_group_fails_none_of_its_neighbours(case: StoreCase) -> None:
    """P7, P11: another's trip, no trip at all, one too early, one of an older session, one that stands already."""
    trips = [(await case.matched())[1] for _ in range(5)]
    await case.store.sign_on(trips[3].driver_id, MARKET)
    await case.move(trips[4], Move.ARRIVE)
    outcomes = await together(
        case,
        of(trips[0], Move.ARRIVE),
        TripMove(trips[1].trip_id, Move.ARRIVE, DriverId("mallory"), 1),
        TripMove(TripId("t_0"), Move.ARRIVE, DriverId("bob")),
        TripMove(TripId("t_\ud800"), Move.ARRIVE, DriverId("carol")),
        of(trips[2], Move.COMPLETE),
        of(trips[3], Move.ARRIVE),
        of(trips[4], Move.ARRIVE),
    )
    assert (await case.done(outcomes[0])).state is RideState.ARRIVED
    assert outcomes[1:4] == [NotYours(), NotFound(), NotFound()]
    assert isinstance(outcomes[4], NotAllowed)
    assert outcomes[5:] == [Superseded(), Done(await case.now(trips[4].ride_id), ())]


async def test_a_superseded_session_beside_others_is_found_out_alone(case: StoreCase) -> None:
    """P7: what is only seen when it is written takes the group apart, and no neighbour with it."""
    _, good = await case.matched()
    _, old = await case.matched()
    before = await case.now(old.ride_id)
    await case.store.sign_on(old.driver_id, MARKET)
    done, superseded = await together(case, of(good, Move.ARRIVE), of(old, Move.ARRIVE))
    assert (await case.done(done)).state is RideState.ARRIVED
    assert superseded == Superseded()
    assert await case.now(old.ride_id) == before


async def test_groups_with_the_same_commands_at_once_make_each_change_once(case: StoreCase) -> None:
    trips = [(await case.matched())[1] for _ in range(6)]
    asked = [of(trip, Move.ARRIVE) for trip in trips]
    groups = await asyncio.gather(*(together(case, *some) for some in (asked, asked[::-1], asked)))
    for outcome in [outcome for group in groups for outcome in group]:
        assert (await case.done(outcome)).state is RideState.ARRIVED
    for trip in trips:
        assert await case.events(trip.ride_id) == ["requested", "assigned", "arrived"]


async def test_a_group_in_which_nothing_is_to_be_written_writes_nothing(case: StoreCase) -> None:
    _, trip = await case.matched()
    ride = await case.move(trip, Move.ARRIVE)
    assert await together(case, of(trip, Move.ARRIVE), TripMove(trip.trip_id, Move.START, DriverId("bob"))) == [
        Done(ride, ()),
        NotYours(),
    ]
    assert await case.now(ride.ride_id) == ride
