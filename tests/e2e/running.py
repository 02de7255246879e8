"""A whole service in the test's own process, reached over real sockets, and clients to use it with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from pydantic import SecretStr

from api.auth import Role, make_token
from api.listener import Listener
from api.service import Service, build_service
from config.markets import MarketSettings
from config.settings import Role as ProcessRole
from config.settings import Settings

SECRET = "0123456789abcdef0123456789abcdef"
LAT, LON = 40.75, -73.98
MSGPACK, JSON = "hexhail.v1.msgpack", "hexhail.v1.json"


def market(name: str = "new-york", lat: float = LAT, lon: float = LON, **named: Any) -> MarketSettings:
    given = {"window_s": 0.05, "classes": ("standard", "large")} | named
    return MarketSettings(id=name, center_lat=lat, center_lon=lon, radius_m=30_000, **given)


def settings_for(folder: Path, **named: Any) -> Settings:
    given: dict[str, Any] = {
        "data_dir": folder,
        "token_secret": SecretStr(SECRET),
        "port": 0,
        "markets": (market(),),
        "flush_ms": 10,
        "ack_interval_s": 0.1,
        "drain_s": 5.0,
    }
    return Settings(**(given | named))


def token(role: Role, name: str, *, ttl_s: float = 600.0, drivers: tuple[str, ...] = ()) -> str:
    return make_token(SECRET.encode(), name, role, ttl_s=ttl_s, drivers=drivers)


@dataclass(slots=True)
class Answer:
    status: int
    headers: Any
    body: Any

    @property
    def code(self) -> str:
        return str(self.body["code"])


@dataclass(slots=True)
class Running:
    """A service that listens, and a session to ask it with."""

    service: Service
    base_url: str
    http: aiohttp.ClientSession
    listener: Listener
    sockets: list[Wheel] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.base_url.rsplit(":", 1)[1])

    async def call(
        self,
        method: str,
        path: str,
        who: str | None = None,
        *,
        body: Any = None,
        data: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """`who` is "role:name"; `body` goes as JSON, `data` as it is."""
        sent = dict(headers or {})
        if who is not None:
            sent["Authorization"] = f"Bearer {self.token_of(who)}"
        if body is not None:
            data = msgspec.json.encode(body)
            sent.setdefault("Content-Type", "application/json")
        async with self.http.request(method, self.base_url + path, data=data, headers=sent) as response:
            raw = await response.read()
            kind = response.content_type
            if kind.endswith("json"):
                return Answer(response.status, response.headers, msgspec.json.decode(raw))
            decoded = msgspec.msgpack.decode(raw) if kind.endswith("msgpack") else raw
            return Answer(response.status, response.headers, decoded)

    @staticmethod
    def token_of(who: str) -> str:
        role, _, name = who.partition(":")
        name, _, drivers = name.partition("=")
        return token(Role(role), name, drivers=tuple(drivers.split(",")) if drivers else ())

    async def ride(self, who: str = "client:ann", *, key: str | None = None, **named: Any) -> dict[str, Any]:
        headers = {} if key is None else {"Idempotency-Key": key}
        body = {"pickup": {"lat": LAT, "lon": LON}} | named
        answer = await self.call("POST", "/v1/rides", who, body=body, headers=headers)
        assert answer.status == 201, answer.body
        return dict(answer.body)

    async def ride_in(self, state: str, ride_id: str, who: str = "client:ann") -> dict[str, Any]:
        """The ride once it is in this state."""
        last: dict[str, Any] = {}

        async def looks() -> bool:
            nonlocal last
            last = (await self.call("GET", f"/v1/rides/{ride_id}", who)).body
            return bool(last["state"] == state)

        await until(looks, what=f"ride {state}")
        return last

    async def put_driver(self, name: str, **named: Any) -> None:
        body = {"seats": 4, "class": "standard"} | named
        answer = await self.call("PUT", f"/v1/drivers/{name}", "admin:root", body=body)
        assert answer.status == 200, answer.body

    async def drive(self, name: str, *, protocol: str = MSGPACK, put: bool = True, query: str = "") -> Wheel:
        """A driver's socket, signed on and welcomed; closed with the service."""
        if put:
            await self.put_driver(name)
        ws = await self.http.ws_connect(
            f"{self.base_url}/v1/drivers/{name}/stream{query}",
            headers={"Authorization": f"Bearer {token(Role.DRIVER, name)}"},
            protocols=(protocol,),
            autoping=True,
        )
        wheel = Wheel(ws, protocol == MSGPACK)
        self.sockets.append(wheel)
        wheel.welcome = await wheel.next("welcome")
        return wheel


class Wheel:
    """A driver's end of a socket."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, is_msgpack: bool) -> None:
        self.ws = ws
        self.is_msgpack = is_msgpack
        self.welcome: dict[str, Any] = {}
        self.passed: list[dict[str, Any]] = []  # frames that `next` skipped
        self._seq = 0

    async def send(self, **frame: Any) -> None:
        if self.is_msgpack:
            await self.ws.send_bytes(msgspec.msgpack.encode(frame))
        else:
            await self.ws.send_str(msgspec.json.encode(frame).decode())

    async def at(self, lat: float = LAT, lon: float = LON, **named: Any) -> int:
        """Sends a position; returns its sequence number."""
        self._seq += 1
        await self.send(**({"type": "position", "seq": self._seq, "lat": lat, "lon": lon} | named))
        return self._seq

    async def stands(self, lat: float = LAT, lon: float = LON, **named: Any) -> None:
        """Sends a position and waits until it is published."""
        seq = await self.at(lat, lon, **named)
        while (await self.next("ack"))["seq"] < seq:
            pass

    async def next(self, *kinds: str, within_s: float = 10.0) -> dict[str, Any]:
        """The next frame of one of these types."""
        async with asyncio.timeout(within_s):
            while True:
                message = await self.ws.receive()
                if message.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                    raise ConnectionError(f"the socket ended with {self.ws.close_code} before {kinds} came")
                decode = msgspec.msgpack.decode if self.is_msgpack else msgspec.json.decode
                frame: dict[str, Any] = decode(message.data)
                if frame["type"] in kinds:
                    return frame
                self.passed.append(frame)

    async def closed(self, within_s: float = 10.0) -> int | None:
        """Reads to the end; returns the close code."""
        async with asyncio.timeout(within_s):
            while not self.ws.closed:
                await self.ws.receive()
        return self.ws.close_code


async def until(condition: Callable[[], Awaitable[bool]], *, what: str, within_s: float = 15.0) -> None:
    """Asks until it holds; TimeoutError names `what` did not come."""
    deadline_s = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not within {within_s:g} s")
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running(settings: Settings, role: ProcessRole = "all") -> AsyncIterator[Running]:
    """The service, started and listening; drained at the end."""
    service = await build_service(settings, role)
    await service.start()
    listener = await service.listen("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession() as http:
            run = Running(service, f"http://127.0.0.1:{listener.port}", http, listener)
            yield run
            for wheel in run.sockets:
                await wheel.ws.close()
    finally:
        await service.stop()
        await listener.close()
