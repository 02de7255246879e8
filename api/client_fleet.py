"""A fleet's gateway as a client: one WebSocket for many drivers, which comes back by itself.

What is to hold is kept here: which drivers are signed on, with which status,
and the newest position of each. After every reconnect the drivers are signed on
again, a frame at a time, and their newest positions sent. Commands wait for the
next socket and are sent again under the same `ref` until they are answered,
which is safe because a repeated command answers as the first did (P3).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgspec

from api import schema
from api import schema_fleet as fleet
from api.client_driver import (
    CLOSE_GOING_AWAY,
    FRAME_BYTES_MAX,
    MSGPACK,
    RETRIED_CODES,
    CommandRefused,
    DriverOptions,
    DriverSocket,
    seconds_between,
)
from api.client_http import RETRIED_STATUSES, ApiError, GaveUp, refusal_of

#: A driver whose sign-on was refused with one of these is signed on again after a while.
RETRIED_SIGN_ONS = RETRIED_CODES | {"internal-error"}
#: What the service takes as an age; such a position is stale anyway.
AGE_MS_MAX = 86_400_000
#: How long the answer to one frame of sign-ons may take.
SIGN_ON_S_MAX = 30.0

_decoder = msgspec.msgpack.Decoder(fleet.FleetDownFrame)
_encoder = msgspec.msgpack.Encoder()


class FleetListener(Protocol):
    """Who wants to hear from the socket; called from its reader, so it decides and does not wait."""

    def on_signed_on(self, driver: fleet.SignedOnItem) -> None:
        """The driver's present state, after each sign-on: what is not among its rides has ended. Its offers are told
        by `on_offer` too, right after this."""

    def on_signed_off(self, driver_id: str, code: str) -> None:
        """The driver is not signed on here any more, or was refused for good, and is not signed on again by itself."""

    def on_ride(self, driver_id: str, ride: schema.RideOut) -> None: ...

    def on_offer(self, driver_id: str, ride: schema.RideOut, expires_in_s: float) -> None: ...

    def on_offer_withdrawn(self, driver_id: str, ride: schema.RideOut, code: str) -> None: ...

    def on_status(self, driver_id: str, status: str, code: str | None) -> None:
        """The driver's status is this now, and not by a command of this gateway."""

    def on_queue(self, driver_id: str, queue: schema.QueueFrame) -> None: ...

    def on_refused(self, error: fleet.FleetError) -> None:
        """Some positions were not taken; `error.driver_ids` names some of their drivers."""

    def on_lost(self, why: str) -> None: ...


@dataclass(slots=True)
class _Driver:
    """`seq` goes on over reconnects; `taken_at_s` is when `position` was true."""

    status: str | None
    is_signed_on: bool = False
    seq: int = 0
    position: fleet.FleetPosition | None = None
    taken_at_s: float = 0.0
    retry_at_s: float = 0.0
    may_be_a_ghost: bool = False  # a sign-on of ours on a lost socket may still supersede this one


class FleetClient:
    """One run of a gateway. The session comes from `client.new_session`; `token` may be a function."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        token: str | Callable[[], str],
        listener: FleetListener,
        *,
        market: str | None = None,
        options: DriverOptions | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.connects = 0
        self.acked = -1  # the newest frame of positions of this socket that is known to be published
        self.limits: fleet.LimitsOut | None = None
        self._session = session
        self._url = f"{base_url.rstrip('/')}/v1/fleet/stream"
        self._token = token if callable(token) else lambda: token
        self._listener = listener
        self._options = options or DriverOptions()
        self._rng = rng or random.Random()
        self._params = {"market": market} if market else {}
        self._drivers: dict[str, _Driver] = {}
        self._socket: DriverSocket | None = None
        self._closing = False
        self._changed = asyncio.Event()  # there are drivers to sign on
        self._signing: dict[int, asyncio.Future[None]] = {}
        self._commands: dict[int, tuple[bytes, asyncio.Future[fleet.FleetDone | fleet.FleetError]]] = {}
        self._ref = 0
        self._seq = 0
        self._jitter_s = 1.0

    # What is to hold

    def add(self, *driver_ids: str, status: str | None = None) -> None:
        """These are to be signed on, now and after every reconnect; with a status where it matters."""
        for driver_id in driver_ids:
            known = self._drivers.setdefault(driver_id, _Driver(status))
            known.status = status or known.status
        self._changed.set()

    def signed_on(self) -> list[str]:
        """The drivers that are signed on now."""
        return [driver_id for driver_id, each in self._drivers.items() if each.is_signed_on]

    async def remove(self, *driver_ids: str, offline: bool = True) -> None:
        """These sign off, and are not signed on again."""
        gone = [driver_id for driver_id in driver_ids if self._drivers.pop(driver_id, None) is not None]
        for some in _chunks(gone, self._most(fleet.SIGN_ON_MAX)):
            await self._write(_encoder.encode(fleet.SignOffFrame(some, offline=offline)))

    async def positions(self, fixes: Iterable[tuple[str, float, float]]) -> int:
        """Positions (driver, latitude, longitude) of this moment; how many were sent now. The newest of those that
        were not are sent once their drivers are signed on."""
        now_s = time.monotonic()
        ready: list[str] = []
        for driver_id, lat, lon in fixes:
            driver = self._drivers.get(driver_id)
            if driver is None:
                continue
            driver.position = fleet.FleetPosition(driver_id=driver_id, seq=0, lat=lat, lon=lon)
            driver.taken_at_s = now_s
            if driver.is_signed_on:
                ready.append(driver_id)
        return await self._send_positions(ready)

    async def _send_positions(self, driver_ids: Iterable[str]) -> int:
        sent = 0
        for some in _chunks(list(driver_ids), self._most(fleet.POSITIONS_MAX)):
            if self._socket is None or not self._socket.takes_more:
                break
            items = [item for driver_id in some if (item := self._to_send(driver_id)) is not None]
            self._seq += 1
            if items and await self._write(_encoder.encode(fleet.FleetPositions(items, self._seq))):
                sent += len(items)
        return sent

    def _to_send(self, driver_id: str) -> fleet.FleetPosition | None:
        driver = self._drivers.get(driver_id)
        if driver is None or driver.position is None:
            return None
        driver.seq += 1
        driver.position.seq = driver.seq
        driver.position.age_ms = min(AGE_MS_MAX, int((time.monotonic() - driver.taken_at_s) * 1000))
        return driver.position

    def _most(self, ours: int) -> int:
        """No more of a frame than either side takes."""
        if self.limits is None:
            return ours
        theirs = self.limits.positions_max if ours == fleet.POSITIONS_MAX else self.limits.sign_on_max
        return min(ours, theirs)

    async def set_status(self, driver_id: str, status: str) -> None:
        """`online`, `on_break` or `offline`; kept for later reconnects. Raises CommandRefused or GaveUp."""
        self._drivers[driver_id].status = status
        await self._command(fleet.FleetStatusFrame, status=status, driver_id=driver_id)

    async def command(
        self, verb: str, driver_id: str, trip_id: str, *, reason: str | None = None
    ) -> schema.RideOut | None:
        """`verb`: accept, decline, arrive, start, complete, cancel or no_show; answers with the ride after it.

        Raises CommandRefused, or GaveUp when the outcome stayed unknown.
        """
        done = await self._command(fleet.COMMANDS[verb], driver_id=driver_id, trip_id=trip_id, reason=reason)
        return done.ride

    async def _command(self, kind: Callable[..., msgspec.Struct], **named: Any) -> fleet.FleetDone:
        self._ref += 1
        ref, tries = self._ref, 0
        frame = _encoder.encode(kind(ref=ref, **named))
        try:
            async with asyncio.timeout(self._options.command_s):
                while True:
                    answer = await self._asked(ref, frame)
                    if isinstance(answer, fleet.FleetDone):
                        return answer
                    if answer is not None and not self._is_retried(answer):
                        raise CommandRefused(answer)
                    await asyncio.sleep(self._options.backoff.wait_s(tries, self._rng))
                    tries += 1
        except (TimeoutError, ConnectionResetError) as error:
            raise GaveUp(f"a command of {named['driver_id']}", error, may_have_happened=True) from error
        finally:
            self._commands.pop(ref, None)

    def _is_retried(self, answer: fleet.FleetError) -> bool:
        """Also what came too early, before its driver was signed on again."""
        is_early = answer.code == "not-signed-on" and answer.driver_id in self._drivers
        return is_early or answer.code in RETRIED_CODES

    async def _asked(self, ref: int, frame: bytes) -> fleet.FleetDone | fleet.FleetError | None:
        if self._closing:
            raise ConnectionResetError("the gateway was closed")
        answer = asyncio.get_running_loop().create_future()
        self._commands[ref] = (frame, answer)
        await self._write(frame)
        done, _ = await asyncio.wait([answer], timeout=self._options.answer_s)
        return answer.result() if done else None

    # The socket

    async def run(self) -> None:
        """Connects, signs on, reads and reconnects until `close`. Raises ApiError when it is refused for good."""
        tries = 0
        while not self._closing:
            wait_s = self._options.backoff.wait_s(tries, self._rng)
            tries += 1
            try:
                async with asyncio.timeout(self._options.connect_s):
                    socket, welcome = await self._connect()
            except ApiError as refusal:
                if refusal.status not in RETRIED_STATUSES:
                    raise
                self._listener.on_lost(str(refusal))
                wait_s += self._rng.uniform(1.0, 2.0) * refusal.retry_after_s
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self._listener.on_lost(f"{type(error).__name__}: {error}")
            else:
                tries = 0
                wait_s = await self._session_of(socket, welcome)
            if not self._closing:
                await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Says goodbye; `run` ends. Commands without an answer raise GaveUp."""
        self._closing = True
        for _, answer in self._commands.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("the gateway was closed"))
        if self._socket is not None:
            await self._socket.close()

    async def _connect(self) -> tuple[DriverSocket, fleet.FleetWelcome]:
        try:
            socket = await self._session.ws_connect(
                self._url,
                params=self._params,
                protocols=(MSGPACK,),
                headers={"Authorization": f"Bearer {self._token()}"},
                timeout=aiohttp.ClientWSTimeout(ws_close=self._options.close_s),
                max_msg_size=FRAME_BYTES_MAX,
                compress=0,
                heartbeat=self._options.silent_s,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise refusal_of(error.status, error.headers or {}, error.message.encode()) from error
        if not isinstance(socket, DriverSocket):
            raise TypeError("the session must come from client.new_session")
        message = await socket.receive()
        welcome = _decoder.decode(message.data) if message.type is aiohttp.WSMsgType.BINARY else None
        if not isinstance(welcome, fleet.FleetWelcome):
            socket.drop()
            raise ValueError(f"no welcome but {message.type.name} {message.data!r:.100}")
        return socket, welcome

    async def _session_of(self, socket: DriverSocket, welcome: fleet.FleetWelcome) -> float:
        """From the welcome to the end of the socket; returns how long to wait before the next."""
        self.connects += 1
        self._seq, self.acked = 0, -1
        self.limits, self._jitter_s, self._socket = welcome.limits, welcome.reconnect_jitter_s, socket
        signer = asyncio.create_task(self._keep_signed_on())
        try:
            for frame, _ in list(self._commands.values()):
                await self._write(frame)
            while (message := await socket.receive()).type is aiohttp.WSMsgType.BINARY:
                self._take_data(message.data)
        except (aiohttp.ClientError, OSError, ValueError):
            socket.drop()
        finally:
            self._socket = None
            signer.cancel()
            await asyncio.wait([signer])
            for driver in self._drivers.values():
                driver.may_be_a_ghost = True
                driver.is_signed_on, driver.retry_at_s = False, 0.0
        await socket.close()
        if not self._closing:
            self._listener.on_lost(f"closed with {socket.close_code}")
        if socket.close_code == CLOSE_GOING_AWAY:  # everybody was sent away at once: do not come back at once
            return self._rng.uniform(0.0, self._jitter_s)
        return self._options.backoff.wait_s(0, self._rng)

    async def _keep_signed_on(self) -> None:
        """Signs on whoever is to be and is not, one frame after another."""
        while True:
            self._changed.clear()
            now_s = time.monotonic()
            absent = {name: each for name, each in self._drivers.items() if not each.is_signed_on}
            due = [name for name, each in absent.items() if each.retry_at_s <= now_s]
            for some in _chunks(due, self._most(fleet.SIGN_ON_MAX)):
                await self._sign_on(some)
            if not due:
                next_s = min((each.retry_at_s for each in absent.values()), default=None)
                try:
                    async with asyncio.timeout(None if next_s is None else max(0.0, next_s - now_s)):
                        await self._changed.wait()
                except TimeoutError:
                    pass  # somebody's turn has come again

    async def _sign_on(self, driver_ids: list[str]) -> None:
        self._ref += 1
        ref = self._ref
        told = self._signing[ref] = asyncio.get_running_loop().create_future()
        drivers = [fleet.SignOnItem(each, self._status_of(each)) for each in driver_ids if each in self._drivers]
        try:
            if drivers and await self._write(_encoder.encode(fleet.SignOnFrame(drivers, ref))):
                await asyncio.wait([told], timeout=SIGN_ON_S_MAX)
        finally:
            del self._signing[ref]
        retry_at_s = time.monotonic() + self._options.backoff.wait_s(3, self._rng)
        for driver in [self._drivers[each] for each in driver_ids if each in self._drivers]:
            if not driver.is_signed_on:
                driver.retry_at_s = max(driver.retry_at_s, retry_at_s)
        await self._send_positions([each for each in driver_ids if self._is_signed_on(each)])

    def _is_signed_on(self, driver_id: str) -> bool:
        driver = self._drivers.get(driver_id)
        return driver is not None and driver.is_signed_on

    def _status_of(self, driver_id: str) -> Any:
        return self._drivers[driver_id].status

    def _take_data(self, data: bytes) -> None:
        """Raises ValueError for what is no frame; one that only a newer service knows is passed over."""
        try:
            frame = _decoder.decode(data)
        except msgspec.ValidationError:
            return
        self._take(frame)

    def _take(self, frame: fleet.FleetDownFrame) -> None:
        listener = self._listener
        if isinstance(frame, schema.AckFrame):
            self.acked = max(self.acked, frame.seq)
        elif isinstance(frame, fleet.SignedOnFrame):
            self._take_signed_on(frame)
        elif isinstance(frame, fleet.SignedOffFrame):
            self._take_signed_off(frame)
        elif isinstance(frame, fleet.FleetTripChanged):
            listener.on_ride(frame.driver_id, frame.ride)
        elif isinstance(frame, fleet.FleetOffer):
            listener.on_offer(frame.driver_id, frame.ride, frame.expires_in_s)
        elif isinstance(frame, fleet.FleetOfferWithdrawn):
            listener.on_offer_withdrawn(frame.driver_id, frame.ride, frame.code)
        elif isinstance(frame, fleet.FleetStatusChanged):
            listener.on_status(frame.driver_id, frame.status, frame.code)
        elif isinstance(frame, fleet.FleetQueue):
            listener.on_queue(frame.driver_id, frame)
        elif isinstance(frame, fleet.FleetDone | fleet.FleetError):
            self._take_answer(frame)

    def _take_answer(self, frame: fleet.FleetDone | fleet.FleetError) -> None:
        _, answer = self._commands.get(frame.ref, (b"", None)) if isinstance(frame.ref, int) else (b"", None)
        if answer is not None and not answer.done():
            answer.set_result(frame)
        elif isinstance(frame, fleet.FleetError) and frame.ref is None:
            self._listener.on_refused(frame)

    def _take_signed_on(self, frame: fleet.SignedOnFrame) -> None:
        for item in frame.drivers:
            driver = self._drivers.get(item.driver_id)
            if driver is None:
                continue
            if item.code is None:
                driver.is_signed_on, driver.seq = True, 0
                self._tell_signed_on(item, frame.now)
            elif item.code in RETRIED_SIGN_ONS:
                wait_s = self._rng.uniform(1.0, 2.0) * (item.retry_after_s or 1.0)
                driver.retry_at_s = time.monotonic() + wait_s
            else:
                del self._drivers[item.driver_id]
                self._listener.on_signed_off(item.driver_id, item.code)
        told = self._signing.get(frame.ref) if isinstance(frame.ref, int) else None
        if frame.is_last and told is not None and not told.done():
            told.set_result(None)

    def _tell_signed_on(self, item: fleet.SignedOnItem, now: str | None) -> None:
        self._listener.on_signed_on(item)
        for ride in item.rides:
            if ride.trip is not None and ride.trip.expires_at is not None:
                self._listener.on_offer(item.driver_id, ride, seconds_between(now, ride.trip.expires_at))

    def _take_signed_off(self, frame: fleet.SignedOffFrame) -> None:
        """Of drivers that were removed here nothing is told: it was so wished."""
        for item in frame.drivers:
            driver = self._drivers.get(item.driver_id)
            if driver is None or not driver.is_signed_on or item.code == "signed-off":
                continue
            driver.is_signed_on = False
            if item.code == "superseded" and driver.may_be_a_ghost:
                driver.may_be_a_ghost = False
                self._changed.set()
            else:
                del self._drivers[item.driver_id]
                self._listener.on_signed_off(item.driver_id, item.code)

    async def _write(self, frame: bytes) -> bool:
        socket = self._socket
        if socket is None:
            return False
        try:
            await socket.send_bytes(frame)
        except (aiohttp.ClientError, ConnectionResetError):
            return False  # the reader finds the same and reconnects
        return True


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]
