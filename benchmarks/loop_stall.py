"""How long an event loop is held up while batches are decided in its process and solved beside it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import uvloop

from api.worker import GC_THRESHOLDS
from geo.area import Circle
from geo.feed import pack
from geo.index import DriverIndex
from geo.model import DriverId, Fix, LatLng, MarketId
from matcher.batch import build, demand_of
from matcher.decision import Travel, decide
from matcher.ids import new_trip_id
from matcher.model import ClientId, Ride, RideId, RideState
from matcher.outcomes import Waiting
from matcher.plan import plan_parts
from matcher.policy import Market
from matcher.problem import Problem
from matcher.recording import input_of
from matcher.solver import SolverChild

#: How often the loop is looked at; a thousandth of the looks is what is judged.
TICK_S = 0.002
RESOLUTION, NOW_MS = 8, 1_000_000


def loop_stall(problem: Problem, seconds: float) -> dict[str, Any]:
    """p99.9 of the delay of a timer, idle and while this batch is decided over and over; ms."""
    gc.set_threshold(*GC_THRESHOLDS)  # as the service's processes have it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measured(problem, seconds))


async def _measured(problem: Problem, seconds: float) -> dict[str, Any]:
    index, waiting = _city(problem)
    market = Market(
        MarketId("bench"),
        Circle(LatLng(40.75, -73.98), 200_000.0),
        max_pickup_m=float(problem.reach_m.max()),
        solve_s_max=30.0,
        rides_per_batch_max=100_000,
    )
    solver = SolverChild()
    await solver.start()
    try:
        batches = [0]
        stopping = asyncio.Event()
        idle = await _delays_ms(seconds)
        busy_task = asyncio.create_task(_decide_until(stopping, waiting, market, index, solver, batches))
        busy = await _delays_ms(seconds)
        stopping.set()
        await busy_task
    finally:
        await solver.close()
    idle_ms, busy_ms = (float(np.quantile(each, 0.999)) for each in (idle, busy))
    return {
        "idle_p999_ms": round(idle_ms, 3),
        "busy_p999_ms": round(busy_ms, 3),
        "busy_max_ms": round(float(max(busy)), 3),
        "stall_ms": round(busy_ms - idle_ms, 3),
        "batches": batches[0],
        "looks": len(busy),
    }


async def _delays_ms(seconds: float) -> list[float]:
    """How much later than asked for each look came."""
    delays, until_s = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < until_s:
        await asyncio.sleep(TICK_S)
        delays.append((time.perf_counter() - began - TICK_S) * 1000.0)
    return delays


async def _decide_until(
    stopping: asyncio.Event,
    waiting: Waiting,
    market: Market,
    index: DriverIndex,
    solver: SolverChild,
    batches: list[int],
) -> None:
    """What the dispatcher does with a batch, the database aside."""
    now_ms: Callable[[], int] = lambda: NOW_MS  # noqa: E731 - the clock stands still here
    while not stopping.is_set():
        decided = await decide(build(demand_of(waiting, market), index, NOW_MS), solver, Travel())
        for _ in plan_parts(decided, index, now_ms, batch_id="b_bench", new_trip_id=new_trip_id):
            await asyncio.sleep(0)
        input_of(decided, "b_bench")
        batches[0] += 1


def _city(problem: Problem) -> tuple[DriverIndex, Waiting]:
    """The same batch as an index of drivers and waiting rides."""
    index = DriverIndex(resolution=RESOLUTION, stale_after_ms=30_000, capacity=problem.n_drivers)
    places = zip(problem.driver_lat.tolist(), problem.driver_lon.tolist(), strict=True)
    fixes = [
        Fix(DriverId(f"driver-{number:06}"), lat, lon, 1, 1, 1, 0, "standard", 4)
        for number, (lat, lon) in enumerate(places)
    ]
    index.apply(pack(fixes, RESOLUTION, NOW_MS))
    pickups = zip(problem.ride_lat.tolist(), problem.ride_lon.tolist(), problem.price_s.tolist(), strict=True)
    rides = [
        _ride(number, LatLng(lat, lon), waited_s=price_s - problem.price_s.min())
        for number, (lat, lon, price_s) in enumerate(pickups)
    ]
    return index, Waiting(NOW_MS, rides, frozenset(), {})


def _ride(number: int, pickup: LatLng, *, waited_s: float) -> Ride:
    return Ride(
        ride_id=RideId(f"r_{number:026}"),
        client_id=ClientId("bench"),
        market=MarketId("bench"),
        state=RideState.SEARCHING,
        version=1,
        pickup=pickup,
        dropoff=None,
        seats=1,
        vehicle_class="standard",
        metadata={},
        requested_at_ms=NOW_MS - round(waited_s * 1000),
        deadline_at_ms=NOW_MS + 600_000,
        ended_at_ms=None,
        end_reason=None,
        trip=None,
    )
