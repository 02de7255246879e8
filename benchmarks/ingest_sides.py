"""A server as the load of drivers sees it: its sockets, its frames, and what came back.

A line is what positions travel by: of the ordinary sides one driver's socket, of a gateway a hundred drivers of the
one socket that it has. Runs in the load's process.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial

import msgspec

from api import schema, schema_fleet
from api.auth import Role, make_token
from benchmarks.ingest_plan import fix_of
from benchmarks.wire import JSON, MSGPACK, Wire, frame_of, text_frame_of

HOST = "127.0.0.1"
CONNECTING_MAX = 64
WELCOME_S_MAX = 30.0
TOKEN_S = 3600.0
#: Drivers whose positions a gateway puts into one frame.
DRIVERS_A_FRAME = 100
_to_msgpack = msgspec.msgpack.Encoder().encode
_to_json = msgspec.json.Encoder().encode
_signed_on = msgspec.msgpack.Decoder(schema_fleet.SignedOnFrame)


def driver_name(number: int) -> str:
    return f"driver-{number}"


class Side:
    """A socket a driver. `secret` signs the tokens; the bare peer wants none, and welcomes nobody."""

    def __init__(self, port: int, drivers: int, secret: str | None, subprotocol: str = MSGPACK) -> None:
        self.port = port
        self.drivers = drivers
        self.lines = drivers
        self.wires: list[Wire | None] = [None] * drivers
        self.base = [0] * drivers  # how far a line was when its session began
        self.told: Counter[str] = Counter()
        self._secret = secret
        self._subprotocol = subprotocol
        self._welcomed = [asyncio.Event() for _ in range(drivers)]

    def members(self, line: int) -> Sequence[int]:
        return (line,)

    async def open(self) -> None:
        """All sockets, a few at a time. Raises OSError, TimeoutError."""
        gate = asyncio.Semaphore(CONNECTING_MAX)

        async def connect(line: int) -> None:
            async with gate:
                await self.connect(line)

        await asyncio.gather(*(connect(line) for line in range(self.lines)))

    async def connect(self, line: int) -> None:
        """Opens a socket and waits for its welcome. Raises OSError (wire.Refused), TimeoutError."""
        self._welcomed[line].clear()
        name = driver_name(line)
        self.wires[line] = await self._wire(f"/v1/drivers/{name}/stream", name, Role.DRIVER, partial(self._heard, line))
        if self._secret is not None:
            async with asyncio.timeout(WELCOME_S_MAX):
                await self._welcomed[line].wait()

    async def _wire(self, path: str, name: str, role: Role, on_frame: partial[None]) -> Wire:
        token, drivers = None, ("*",) if role is Role.FLEET else ()
        if self._secret is not None:
            token = make_token(self._secret.encode(), name, role, ttl_s=TOKEN_S, drivers=drivers)
        elif role is Role.FLEET:
            path = "/socket?frames=fleet"
        else:
            path = "/socket"
        return await Wire.connect(
            HOST, self.port, path, token=token, on_frame=on_frame, on_lost=self._lost, subprotocol=self._subprotocol
        )

    def _heard(self, line: int, data: bytes) -> None:
        if b"welcome" in data[:32]:
            self.told["welcome"] += 1
            self._welcomed[line].set()
        else:
            self._count(data)

    def _count(self, data: bytes) -> None:
        """Acknowledgements by their number, anything else by its words."""
        is_ack = b"\xa3ack" in data[:16] or b'"ack"' in data[:16]
        self.told["ack" if is_ack else data[:120].decode(errors="replace")] += 1

    def _lost(self, why: str) -> None:
        self.told[f"lost: {why}"] += 1

    def frame(self, line: int, first: int, count: int) -> bytes:
        """So many positions of one line, from number `first` on, as they go over the wire."""
        items = [fix_of(line, number) for number in range(first, first + count)]
        one: schema.PositionFrame | schema.PositionsFrame = items[0]
        if count > 1:
            one = schema.PositionsFrame([schema.PositionItem(*msgspec.structs.astuple(each)) for each in items])
        return text_frame_of(_to_json(one)) if self._subprotocol == JSON else frame_of(_to_msgpack(one))

    def close(self) -> None:
        for wire in dict.fromkeys(self.wires):
            if wire is not None:
                wire.close()


class Gateway(Side):
    """All drivers on one socket, as a fleet's gateway has them."""

    def __init__(self, port: int, drivers: int, secret: str | None) -> None:
        super().__init__(port, drivers, secret)
        self.lines = -(-drivers // DRIVERS_A_FRAME)
        self.wires = [None] * self.lines
        self.base = [0] * self.lines
        self._signed_on = 0
        self._all_signed_on = asyncio.Event()

    def members(self, line: int) -> Sequence[int]:
        return range(line * DRIVERS_A_FRAME, min((line + 1) * DRIVERS_A_FRAME, self.drivers))

    async def open(self) -> None:
        """Opens the socket and signs everybody on. Raises OSError (wire.Refused), TimeoutError."""
        wire = await self._wire("/v1/fleet/stream", "gateway", Role.FLEET, partial(self._heard, 0))
        self.wires = [wire] * self.lines
        if self._secret is None:
            return
        for first in range(0, self.drivers, schema_fleet.SIGN_ON_MAX):
            some = range(first, min(first + schema_fleet.SIGN_ON_MAX, self.drivers))
            items = [schema_fleet.SignOnItem(driver_name(each), "online") for each in some]
            wire.send(_to_msgpack(schema_fleet.SignOnFrame(items)))
        async with asyncio.timeout(WELCOME_S_MAX):
            await self._all_signed_on.wait()

    def _heard(self, line: int, data: bytes) -> None:
        if b"signed_on" not in data[:32]:
            super()._heard(line, data)
            return
        for each in _signed_on.decode(data).drivers:
            self._signed_on += each.code is None
            self.told[f"sign-on {each.code or 'done'}"] += 1
        if self._signed_on == self.drivers:
            self._all_signed_on.set()

    def frame(self, line: int, first: int, count: int) -> bytes:
        items = [
            schema_fleet.FleetPosition(*msgspec.structs.astuple(fix_of(driver, number)), driver_id=driver_name(driver))
            for number in range(first, first + count)
            for driver in self.members(line)
        ]
        return frame_of(_to_msgpack(schema_fleet.FleetPositions(items)))
