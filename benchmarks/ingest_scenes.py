"""What positions look like beside the steady rate: floods, backlogs, storms of reconnects, other ways to send them."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks import ingest_round
from benchmarks.ingest_round import Round
from benchmarks.ingest_sides import driver_name
from benchmarks.ingest_stage import Stage
from benchmarks.load_child import LoadFailed
from benchmarks.rounds import rounded
from benchmarks.wire import JSON, MSGPACK

WATCHED_MAX = 20
BACKLOG = 10
FLOOD_MEAN_PER_S, FLOOD_PER_S, FLOOD_SHARE = 5.0, 400.0, 0.1
STORM_S = 2.0
WARM_UP_S = 1.0
#: Longer than a send itself takes a watch: frames are made first, and what comes last is to be seen, too.
WATCH_BESIDE_S = 1.0


class Scenes:
    """Each scene opens the sockets that it needs, and returns its figures."""

    def __init__(self, stage: Stage, drivers: int, rate_per_s: float, seconds: float, seed: int) -> None:
        self._stage = stage
        self._drivers = drivers
        self._rate_per_s = rate_per_s
        self._seconds = seconds
        self._seed = seed
        self._way: str | None = None  # in which the sockets that are open speak

    async def latency(self) -> dict[str, Any]:
        """From when a position was due until a replica holds it, of some drivers, looked at every two milliseconds."""
        await self.open("msgpack")
        watched = _spread(self._drivers)
        names = [driver_name(each) for each in watched]
        seen, said = await asyncio.gather(
            self._stage.replica.call("watch", ids=names, seconds=self._seconds + self._stage.settle_s + WATCH_BESIDE_S),
            self._stage.load.call("send", side="ours", rate_per_s=self._rate_per_s, seconds=self._seconds),
        )
        await ingest_round.check_replica(self._stage, "ours")
        return {"applied": await self._delays(watched, seen), "generator_lag": said["lag"]}

    async def backlog(self) -> dict[str, Any]:
        """Ten positions of a driver in each frame: only the newest matters."""
        await self.open("msgpack")
        return await self._pair(a_frame=BACKLOG)

    async def flood(self) -> dict[str, Any]:
        """A tenth of the drivers sends eighty times what it should, for a second. How are the others served?"""
        await self.open("msgpack")
        watched = [self._drivers - 1 - each for each in _spread(self._drivers // 2)]
        stage, names = self._stage, [driver_name(each) for each in watched]
        counted, used = await stage.counted(), await stage.used()
        seen, said = await asyncio.gather(
            stage.replica.call("watch", ids=names, seconds=3.0 + stage.settle_s + WATCH_BESIDE_S),
            stage.load.call(
                "flood", side="ours", mean_per_s=FLOOD_MEAN_PER_S, flood_per_s=FLOOD_PER_S, share=FLOOD_SHARE
            ),
        )
        used = (await stage.used()).since(used)
        await ingest_round.check_replica(stage, "ours")
        return {
            "sent": said["positions"],
            "published": (await stage.counted()).since(counted).published,
            "others_applied": await self._delays(watched, seen),
            "api_cpu_us_a_position_sent": rounded(used.api_s / said["positions"] * 1e6),
            "generator_lag": said["lag"],
        }

    async def storm(self) -> dict[str, Any]:
        """All sockets are cut; everybody comes back within two seconds."""
        await self.open("msgpack")
        stage = self._stage
        used = await stage.used()
        said: dict[str, Any] = await stage.load.call(
            "storm", side="ours", within_s=min(STORM_S, self._seconds), seed=self._seed
        )
        used = (await stage.used()).since(used)
        return said | {
            "drivers": self._drivers,
            "api_cpu_ms_a_sign_on": rounded(used.api_s / self._drivers * 1e3),
            "maria_cpu_ms_a_sign_on": rounded(used.maria_s / self._drivers * 1e3),
        }

    async def json(self) -> dict[str, Any]:
        """The other subprotocol, on both sides."""
        await self.open("json")
        return await self._pair()

    async def fleet(self) -> dict[str, Any]:
        """All drivers on one gateway's socket, a hundred positions a frame."""
        try:
            await self.open("fleet")
        except LoadFailed as error:
            if "refused with 404" not in str(error):
                raise
            return {"not_measured": "the service has no stream for fleets"}
        return await self._pair()

    async def workers(self) -> dict[str, Any]:
        """Two API processes on one port, for the same load."""
        await self.open(None)
        await self._stage.serve(workers=2)
        await self.open("msgpack")
        spread = self._stage.sockets_by_process()
        await ingest_round.ours(self._stage, "ours", self._rate_per_s, WARM_UP_S, is_judged=False)
        two = await ingest_round.ours(self._stage, "ours", self._rate_per_s, self._seconds, is_judged=False)
        return {"cpu_us_a_position": rounded(two.cpu_us(two.used.api_s)), "sockets": spread}

    async def _pair(self, a_frame: int = 1) -> dict[str, Any]:
        on, rate_per_s, is_judged = self._stage, self._rate_per_s, a_frame == 1
        mine = await ingest_round.ours(on, "ours", rate_per_s, self._seconds, a_frame, is_judged=is_judged)
        return pair_figures(mine, await ingest_round.bare(on, "peer", rate_per_s, self._seconds, a_frame))

    async def _delays(self, watched: list[int], seen: list[Any]) -> dict[str, Any]:
        line_of = {driver_name(each): each for each in watched}
        rows = [(line_of[name], count, at_s) for name, count, at_s in seen]
        found: dict[str, Any] = await self._stage.load.call("delays", seen=rows, watched=watched)
        return found

    async def open(self, way: str | None) -> None:
        """Opens the sockets of both sides for msgpack, json or fleet, in place of those that are open; None: none."""
        load, stage = self._stage.load, self._stage
        if way == self._way:
            return
        if self._way is not None:
            self._way = None
            for side in ("ours", "peer"):
                await load.call("close", side=side)
        if way is not None:
            how: dict[str, Any] = {
                "drivers": self._drivers,
                "subprotocol": JSON if way == "json" else MSGPACK,
                "is_fleet": way == "fleet",
            }
            await load.call("open", side="ours", port=stage.port, secret=stage.secret, **how)
            await load.call("open", side="peer", port=stage.peer.port, **how)
            self._way = way


def pair_figures(mine: Round, other: Round) -> dict[str, Any]:
    ours_us, bare_us = mine.cpu_us(mine.used.api_s), other.cpu_us(other.used.peer_s)
    return {
        "cpu_us_a_position": rounded(ours_us),
        "bare_cpu_us_a_position": rounded(bare_us),
        "vs_bare_aiohttp": rounded(bare_us / ours_us),
        "frame_bytes": mine.load["frame_bytes"],
    }


def _spread(drivers: int) -> list[int]:
    """Some of so many, evenly."""
    count = min(WATCHED_MAX, drivers)
    return [number * drivers // count for number in range(count)]
