"""A gateway's end of a fleet socket, for tests."""

from __future__ import annotations

from typing import Any

from api.auth import Role
from tests.e2e.running import LAT, LON, MSGPACK, Running, Wheel, token

FLEET = ("d*",)


class Rig(Wheel):
    """A gateway whose token names the drivers d…"""

    async def sign_on(self, *names: str, **named: Any) -> dict[str, dict[str, Any]]:
        """Signs these on; the answers by driver."""
        drivers = [{"driver_id": name} | named for name in names]
        await self.send(type="sign_on", drivers=drivers, ref="on")
        found: dict[str, dict[str, Any]] = {}
        while True:
            frame = await self.next("signed_on")
            found |= {each["driver_id"]: each for each in frame["drivers"]}
            if frame.get("is_last", True):
                return found

    async def sign_off(self, *names: str, **named: Any) -> dict[str, dict[str, Any]]:
        await self.send(**({"type": "sign_off", "drivers": names, "ref": "off"} | named))
        while (frame := await self.next("signed_off")).get("ref") != "off":
            self.passed.append(frame)
        return {each["driver_id"]: each for each in frame["drivers"]}

    async def stand(self, *names: str, lat: float = LAT, lon: float = LON, seq: int | None = None) -> None:
        """Sends a position of each and waits until all are published."""
        self._seq += 1
        number = self._seq if seq is None else seq
        items = [{"driver_id": name, "seq": number, "lat": lat, "lon": lon} for name in names]
        await self.send(type="positions", seq=number, items=items)
        while (await self.next("ack"))["seq"] < number:
            pass

    async def command(self, verb: str, driver: str, **named: Any) -> dict[str, Any]:
        """The answer to a command of this driver."""
        await self.send(**({"type": verb, "driver_id": driver, "ref": f"{verb} {driver}"} | named))
        while (frame := await self.next("done", "error")).get("ref") != f"{verb} {driver}":
            self.passed.append(frame)
        return frame


async def gateway(
    run: Running, *, protocol: str = MSGPACK, drivers: tuple[str, ...] = FLEET, query: str = "", ttl_s: float = 600.0
) -> Rig:
    """Connected and welcomed; closed with the service."""
    ws = await run.http.ws_connect(
        f"{run.base_url}/v1/fleet/stream{query}",
        headers={"Authorization": f"Bearer {token(Role.FLEET, 'cabs', drivers=drivers, ttl_s=ttl_s)}"},
        protocols=(protocol,),
        max_msg_size=1 << 20,
    )
    rig = Rig(ws, protocol == MSGPACK)
    run.sockets.append(rig)
    rig.welcome = await rig.next("welcome")
    return rig
