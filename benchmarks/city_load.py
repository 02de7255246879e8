"""The load of a measured city, in a process of its own: python -m benchmarks.city_load

It is told what to do in lines of JSON on standard input (first the options, then one command a line) and answers each
with a line. One tick of a clock drives everything: positions in turn, requests at their times, commands that are due.
When the tick comes late, all that was due is done at once and counts from when it was due; how late it came is
reported as the generator's own lag, so that a late generator is not taken for a late server.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from api.auth import Role, make_token
from api.limits import raise_open_files
from benchmarks.city_agenda import Agenda
from benchmarks.city_driver import Driver
from benchmarks.city_fleet import TIMED_EVERY, Fleet
from benchmarks.city_ledger import Seen, packed
from benchmarks.city_options import CLIENT, CityOptions, Step
from benchmarks.city_places import in_turn, places_of
from benchmarks.city_riders import Riders
from benchmarks.city_tally import Tally
from benchmarks.city_watch import FeedWatch

TICK_S = 0.004
TOKEN_TTL_S = 3600.0
#: Open files beside the sockets of drivers.
FILES_BESIDE = 2000
#: Of all rides of a stretch that may be late before it has missed its 99th percentile.
LATE_SHARE_MAX = 0.01
LOOK_EVERY_S = 0.25
#: After a stretch: so long it is waited for its trips to end.
SETTLE_BESIDE_S = 6.0
#: Longer ones are hurried at the end.
SHORT_TRIP_S_MAX = 10.0
HURRY_S = 10.0
#: The service acknowledges a driver's positions every few seconds only.
ACKED_S_MAX = 8.0


def driver_id_of(number: int) -> str:
    return f"d{number:05d}"


class Load:
    """The whole of it: drivers, riders, the clock."""

    def __init__(self, options: CityOptions) -> None:
        places = places_of(options.seed, options.drivers, options.rides_file)
        drivers = [
            Driver(driver_id_of(number), at.lat, at.lon, is_timed=number % TIMED_EVERY == 0)
            for number, at in enumerate(places.starts)
        ]
        self.options = options
        self.seen = Seen()
        self.agenda = Agenda()
        self._secret = options.secret.encode()
        token = make_token(self._secret, CLIENT, Role.CLIENT, ttl_s=TOKEN_TTL_S)
        self.riders = Riders(options, token, in_turn(places.wishes), self.seen)
        self.fleet = Fleet(options, drivers, self.agenda, self.seen, self.riders.on_offer)
        timed = [each for each in drivers if each.awaited is not None]
        self.watch = FeedWatch(options.redis_url, timed, self.fleet.applied)
        self._rng = random.Random(f"{options.seed}/times")
        self._positions = _Positions(self.fleet)
        self._steps = 0
        self._asking: _Asking | None = None

    async def sign_on(self) -> dict[str, Any]:
        began_s = time.monotonic()
        self.watch.start()
        await self.riders.open()
        await self.fleet.sign_on(lambda driver_id: make_token(self._secret, driver_id, Role.DRIVER, ttl_s=TOKEN_TTL_S))
        return {"signed_on": self.fleet.signed_on, "seconds": time.monotonic() - began_s}

    async def tick(self) -> None:
        """For ever: what is due is done."""
        while True:
            now_s = time.monotonic()
            self._positions.say(now_s)
            if self._asking is not None:
                self._asking.ask(now_s)
            self.agenda.run(now_s)
            await asyncio.sleep(TICK_S)

    async def run(self, step: Step, say: Callable[[str], None]) -> dict[str, Any]:
        """One stretch; says `began` with its first ride, when positions are at their rate, and `over` with its last."""
        self.fleet.trip_s = step.trip_s
        self._positions.rate(self.options.positions_per_s * step.factor, time.monotonic())
        await asyncio.sleep(step.warm_s)
        tally = self._begin(step)
        cpu_s, sent = time.process_time(), self._positions.sent
        say("began")
        is_late = await self._until_over(tally, gives_up=step.gives_up)
        wall_s = time.monotonic() - tally.started_s
        cpu_s, sent = time.process_time() - cpu_s, self._positions.sent - sent
        say("over")
        self._asking = None
        self._positions.lags = None
        result = {
            "wall_s": wall_s,
            "given_up": is_late,
            "positions_per_s": sent / wall_s,
            "rides_per_s": tally.counts["asked"] / wall_s,
            "cpu_share": cpu_s / wall_s,
        }
        await self._settle(tally, step.trip_s[1])
        return result | tally.as_json()

    def _begin(self, step: Step) -> Tally:
        rides = max(1, round(self.options.rides_per_s * step.factor * step.seconds))
        tally = Tally(step.factor, time.monotonic(), step.seconds, rides, self.options.limit_s)
        self.fleet.tally = tally
        self._steps += 1
        self._positions.lags = tally
        self._asking = _Asking(self.riders, tally, self._steps, self._rng)
        return tally

    async def _until_over(self, tally: Tally, *, gives_up: bool) -> bool:
        """Until its last ride is asked for; True, and earlier, where too many offers are certain to be late."""
        end_s = tally.started_s + tally.seconds
        while (left_s := end_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, LOOK_EVERY_S))
            if gives_up and self._late(tally) > LATE_SHARE_MAX * tally.rides + 1:
                return True
        return False

    def _late(self, tally: Tally) -> int:
        late_since_s = time.monotonic() - tally.limit_s
        late = tally.late
        for ask in self.riders.waiting():
            if ask.due_s > late_since_s:
                break
            late += not ask.is_offered
        return late

    async def _settle(self, tally: Tally, trip_s: float) -> None:
        """Until nobody waits for a driver any more and, where trips are short, all have ended."""
        stop_at = time.monotonic() + self.options.limit_s + SETTLE_BESIDE_S
        await _until(lambda: not self.riders.unanswered and not self.riders.waiting(), stop_at)
        for ask in self.riders.waiting():
            if not ask.is_offered:
                ask.tally.never_offered(ask.due_s)
        self.riders.outstanding.clear()
        if trip_s <= SHORT_TRIP_S_MAX:
            await _until(lambda: not self.fleet.busy, time.monotonic() + trip_s + SETTLE_BESIDE_S)
        self.fleet.tally = None

    async def finish(self, path: str) -> dict[str, Any]:
        """Lets the trips under way run out quickly, signs everybody off and writes down what was seen."""
        # No positions any more: a trip cut short would move its driver faster than the service believes.
        self._positions.rate(0.0, time.monotonic())
        self.fleet.hurry(HURRY_S)
        stop_at = time.monotonic() + HURRY_S + SETTLE_BESIDE_S
        await _until(lambda: not self.fleet.busy, stop_at)
        await _until(lambda: not self.fleet.unacked, time.monotonic() + ACKED_S_MAX)
        unacked, unapplied, busy = self.fleet.unacked, self.watch.unapplied, self.fleet.busy
        await self.watch.stop()
        self.riders.close()
        await asyncio.to_thread(Path(path).write_bytes, packed(self.seen))
        return {
            "unacked": unacked,
            "unapplied": unapplied,
            "busy": busy,
            "errors": self.seen.errors,
            "lost_sockets": self.seen.lost_sockets,
        }


class _Positions:
    """So many a second, from when the rate was last set. `lags` is the tally that hears how late they were."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._rate = 0.0
        self._since_s = 0.0
        self._said = 0
        self.sent = 0
        self.lags: Tally | None = None

    def rate(self, per_s: float, now_s: float) -> None:
        self._rate, self._since_s, self._said = per_s, now_s, 0

    def due_s(self, number: int) -> float:
        return self._since_s + number / self._rate

    def say(self, now_s: float) -> None:
        if not self._rate:
            return
        due = int((now_s - self._since_s) * self._rate) + 1
        if due > self._said:
            if self.lags is not None:
                self.lags.latency("generator_lag").add(now_s - self.due_s(self._said))
            self.sent += self._fleet.say_positions(due, self.due_s, self._said, now_s)
            self._said = due


class _Asking:
    """The rides of one stretch, each due at an even random moment of its own turn."""

    def __init__(self, riders: Riders, tally: Tally, step: int, rng: random.Random) -> None:
        self._riders, self._tally, self._step, self._rng = riders, tally, step, rng
        self._ahead_s = time.time() - time.monotonic()
        self._gap_s = tally.seconds / tally.rides
        self._asked = 0
        self._due_s = self._next()

    def _next(self) -> float:
        return self._tally.started_s + (self._asked + self._rng.random()) * self._gap_s

    def ask(self, now_s: float) -> None:
        while self._due_s <= now_s and self._asked < self._tally.rides:
            self._riders.ask(self._due_s, (self._due_s + self._ahead_s) * 1000.0, self._step, self._tally)
            self._asked += 1
            self._due_s = self._next()


async def _until(holds: Callable[[], bool], stop_at: float) -> None:
    """Looks now and then; at most until that time."""
    while not holds() and (left_s := stop_at - time.monotonic()) > 0:  # noqa: ASYNC110 - many things make it hold
        await asyncio.sleep(min(left_s, LOOK_EVERY_S))


async def _commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _answer(what: Mapping[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def _serve() -> None:
    """Until standard input ends, as it also does when whoever measures dies."""
    lines = await _commands()
    said = json.loads(await lines.readline())
    options = CityOptions(**{**said, "trip_s": tuple(said["trip_s"]), "think_s": tuple(said["think_s"])})
    raise_open_files(options.drivers + FILES_BESIDE)
    load = Load(options)
    ticking = asyncio.create_task(load.tick())
    ticking.add_done_callback(_must_not_end)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    while line := await lines.readline():
        command: dict[str, Any] = json.loads(line)
        match command.pop("do"):
            case "sign_on":
                _answer(await load.sign_on())
            case "run":
                step = Step(**{**command, "trip_s": tuple(command["trip_s"])})
                _answer(await load.run(step, lambda word: _answer({"said": word})))
            case "finish":
                _answer(await load.finish(command["path"]))


def _must_not_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (fault := task.exception()) is not None:
        asyncio.get_running_loop().call_exception_handler({"message": "the clock stopped", "exception": fault})
        raise SystemExit(1)


def main() -> None:
    with contextlib.suppress(ImportError):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve())
        return
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
