"""A fleet gateway's session: many drivers on one socket, each with a session and an epoch of its own (P7).

`Gateway` decides what a frame means. Positions are taken at once; commands go
through each driver's own worker, as on a driver's socket; sign-ons and
sign-offs through one worker, frame after frame, so that their order is the
order sent. Which drivers it may speak for says its token, and each that it may
not is refused by name (P11).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import msgspec
import structlog

from api.driver_session import BAD_FRAMES_MAX, CLOSE_GOING_AWAY, CLOSE_POLICY, CLOSE_SUPERSEDED
from api.errors import Problem, problem_of, retry_later
from api.fleet_acks import Acks
from api.fleet_driver import ENDS, FleetDriver, FleetFormat, Surroundings
from api.fleet_outbox import FleetOutbox
from api.schema import rfc3339
from api.schema_fleet import (
    FleetCommand,
    FleetError,
    FleetPosition,
    FleetPositions,
    SignedOffFrame,
    SignedOffItem,
    SignedOnFrame,
    SignedOnItem,
    SignOffFrame,
    SignOnFrame,
    SignOnItem,
    own_command,
)
from geo.model import DriverId
from matcher.errors import StoreUnavailable
from matcher.model import DriverStatus

#: Frames of sign-ons and sign-offs that wait for their turn.
SIGN_FRAMES_MAX = 32
#: Sign-offs of one frame under way.
SIGN_OFFS_AT_ONCE = 16
#: When a gateway may ask again for room in a process that is full.
ROOM_S = 10.0
#: How long a driver's commands are waited for before it is signed off.
SETTLE_S_MAX = 5.0
#: Drivers that one frame tells of as signed on.
SIGNED_ON_MAX = 50

#: Every way in which a frame, or a part of it, cannot be decoded; text that is no UTF-8 is found where it is decoded.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

NOT_SIGNED_ON = "not-signed-on"
_DETAILS = {
    NOT_SIGNED_ON: "the driver is not signed on here",
    "forbidden": "the token does not speak for this driver",
}

log = structlog.stdlib.get_logger(__name__)


class Gateway:
    """The drivers of one socket. `may_drive` is the token's word."""

    def __init__(self, form: FleetFormat, around: Surroundings, may_drive: Callable[[str], bool]) -> None:
        self.form = form
        self.around = around
        self.closing: tuple[int, str] | None = None
        self.outbox = FleetOutbox(form.encode_fleet)
        self.acks = Acks(self.outbox.ack)
        self.commands = 0  # without an answer
        self.drivers: dict[str, FleetDriver] = {}
        self._may_drive = may_drive
        self._bad_in_a_row = 0
        self._signing = 0
        self._signs: deque[SignOnFrame | SignOffFrame] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._now_ms = 0
        self._is_over = False

    def close(self, code: int, reason: str) -> None:
        """Asks for the socket to be closed; the first reason stands."""
        if self.closing is None:
            self.closing = (code, reason)
            self.around.metrics.sockets_closed.add(str(code))
            self.outbox.wake.set()

    # Frames in: synchronous

    def on_frame(self, data: bytes) -> None:
        """One message of the right type."""
        if self.closing is not None:
            return
        try:
            frame = self.form.decode_fleet(data)
        except msgspec.ValidationError as error:
            self._on_invalid(data, str(error))
            return
        except UNREADABLE as error:
            self._bad_frame("malformed-frame", str(error))
            return
        self._bad_in_a_row = 0
        if type(frame) is FleetPositions:
            self._on_positions(frame.items, frame.seq)
        elif isinstance(frame, SignOnFrame | SignOffFrame):
            self._on_sign(frame)
        elif not isinstance(frame, FleetPositions):
            self._on_command(frame)

    def _on_positions(self, items: Iterable[FleetPosition], seq: int | None) -> None:
        frame = self.acks.open(seq)
        drivers = self.drivers
        for item in items:
            driver = drivers.get(item.driver_id)
            if driver is None:
                self._refuse_position(item.driver_id)
            else:
                driver.take(item, frame)
        self.acks.close(frame)

    def _refuse_position(self, driver_id: str) -> None:
        if self._may_drive(driver_id):
            self.outbox.complain(NOT_SIGNED_ON, "these drivers are not signed on here", driver_id)
        else:
            self.outbox.complain("forbidden", "the token does not speak for these drivers", driver_id)

    def _on_invalid(self, data: bytes, detail: str) -> None:
        """One bad position does not keep the others of its frame back."""
        try:
            frame = self.form.decode_loose(data)
        except UNREADABLE:
            self._bad_frame("invalid-frame", detail)
            return
        good: list[FleetPosition] = []
        for raw in frame.items:
            try:
                good.append(self.form.decode_position(raw))
            except UNREADABLE as error:
                self.around.metrics.bad_frames.add("invalid-position")
                self.outbox.complain("invalid-position", str(error)[:200], None)
        self._bad_in_a_row = 0 if good else self._bad_in_a_row
        self._on_positions(good, frame.seq)
        if not good:
            self._count_bad()

    def _bad_frame(self, code: str, detail: str) -> None:
        self.around.metrics.bad_frames.add(code)
        self.outbox.complain(code, detail[:200], None)
        self._count_bad()

    def _count_bad(self) -> None:
        self._bad_in_a_row += 1
        if self._bad_in_a_row > BAD_FRAMES_MAX:
            self.close(CLOSE_POLICY, "too many bad frames")

    def _on_command(self, frame: FleetCommand) -> None:
        driver = self.drivers.get(frame.driver_id)
        if driver is not None:
            driver.command(own_command(frame))
            return
        code = NOT_SIGNED_ON if self._may_drive(frame.driver_id) else "forbidden"
        self.outbox.answer(FleetError(code, _DETAILS[code], ref=frame.ref, driver_id=frame.driver_id))

    # Sign-ons and sign-offs: a frame at a time, in the order sent

    def _on_sign(self, frame: SignOnFrame | SignOffFrame) -> None:
        if self.closing is not None:
            return
        if len(self._signs) >= SIGN_FRAMES_MAX:
            self.outbox.answer(FleetError("overloaded", "too many frames wait for their answers", ref=frame.ref))
            return
        self._signs.append(frame)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._signs and self.closing is None:
            frame = self._signs.popleft()
            try:
                await (self._sign_on(frame) if isinstance(frame, SignOnFrame) else self._sign_off(frame))
            except Exception:  # a defect of ours: the gateway hears of it, and later frames still run
                log.exception("a gateway's frame failed", frame=type(frame).__name__)
                self.outbox.answer(FleetError("internal-error", "the service has failed", ref=frame.ref))

    async def _sign_on(self, frame: SignOnFrame) -> None:
        """Tells of those who are through, while others wait for theirs."""
        wanted = {item.driver_id: item for item in frame.drivers}
        pending = {asyncio.create_task(self._sign_on_one(item)) for item in wanted.values()}
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            items = [each.result() for each in done]
            for start in range(0, len(items), SIGNED_ON_MAX):
                some = items[start : start + SIGNED_ON_MAX]
                is_last = not pending and start + SIGNED_ON_MAX >= len(items)
                self.outbox.answer(SignedOnFrame(some, self._now(), frame.ref, is_last))
            for item in items:
                if item.code is None and (driver := self.drivers.get(item.driver_id)) is not None:
                    driver.outbox.release()

    def _now(self) -> str | None:
        """The service's time, as far as a sign-on has told it."""
        return rfc3339(self._now_ms) if self._now_ms else None

    async def _sign_on_one(self, item: SignOnItem) -> SignedOnItem:
        refusal = self._why_not(item.driver_id)
        if refusal is not None:
            return _refused(item.driver_id, refusal)
        driver = FleetDriver(DriverId(item.driver_id), self)
        self._signing += 1
        try:
            told = await driver.sign_on(online=item.status in (None, "online"))
        except Exception as error:  # noqa: BLE001 - each driver has its own answer, whatever became of the others
            return _refused(item.driver_id, error)
        finally:
            self._signing -= 1
        await self._add(driver)
        if item.status is not None and told.status != item.status and driver.closing is None:
            await driver.be(DriverStatus(item.status))
        if driver.closing is not None:
            return SignedOnItem(item.driver_id, code=ENDS.get(driver.closing[0], NOT_SIGNED_ON), detail="over again")
        told.status = (driver.status or DriverStatus.OFFLINE).value
        return told

    def _why_not(self, driver_id: str) -> Problem | None:
        if not self._may_drive(driver_id):
            return Problem("forbidden", _DETAILS["forbidden"])
        limit = self.around.drivers_max
        if driver_id not in self.drivers and len(self.drivers) + self._signing >= limit:
            return Problem("overloaded", f"there are already {limit} drivers on this socket")
        if not self.around.has_room():
            return retry_later("overloaded", "too many drivers are signed on to this process", ROOM_S)
        return None

    async def _add(self, driver: FleetDriver) -> None:
        """From now on this is the driver's session, here and in this process."""
        self._now_ms = max(self._now_ms, driver.now_ms)
        if driver.closing is not None:  # superseded before it began
            return
        if self._is_over:
            driver.closing = (CLOSE_GOING_AWAY, "the gateway is gone")
            self._remove(driver)
            await self._note_lost({driver.driver_id: driver.epoch})
            return
        before = self.drivers.pop(driver.driver_id, None)
        if before is not None:  # signed on again on the same socket: nothing to tell of
            before.closing = (CLOSE_SUPERSEDED, "signed on again")
            self._remove(before)
        self.outbox.begun(driver.driver_id)
        self.drivers[driver.driver_id] = driver
        self.around.sessions.add(driver)

    def end(self, driver: FleetDriver, code: str) -> None:
        """The service has ended this driver's session."""
        if self.drivers.get(driver.driver_id) is driver:
            del self.drivers[driver.driver_id]
        self._remove(driver)
        self.outbox.ended(SignedOffItem(driver.driver_id, code))

    def _remove(self, driver: FleetDriver) -> None:
        self.around.sessions.discard(driver)
        self.outbox.forget(driver.outbox)
        driver.part()

    async def _sign_off(self, frame: SignOffFrame) -> None:
        turns = asyncio.Semaphore(SIGN_OFFS_AT_ONCE)
        lost: dict[DriverId, int] = {}

        async def one(driver_id: str) -> SignedOffItem:
            async with turns:
                return await self._sign_off_one(driver_id, lost, offline=frame.offline)

        items = await asyncio.gather(*[one(driver_id) for driver_id in dict.fromkeys(frame.drivers)])
        await self._note_lost(lost)
        self.outbox.answer(SignedOffFrame(list(items), frame.ref))

    async def _sign_off_one(self, driver_id: str, lost: dict[DriverId, int], *, offline: bool) -> SignedOffItem:
        driver = self.drivers.get(driver_id)
        if driver is None:
            return SignedOffItem(driver_id, NOT_SIGNED_ON if self._may_drive(driver_id) else "forbidden")
        await driver.settle(SETTLE_S_MAX)
        finishing = None
        if offline:
            outcome = await driver.be(DriverStatus.OFFLINE)
            if isinstance(outcome, str):
                return SignedOffItem(driver_id, outcome)
            finishing = outcome.finishing
        elif driver.is_missed(was_told=False):
            lost[driver.driver_id] = driver.epoch
        if driver.closing is None:
            driver.closing = (CLOSE_GOING_AWAY, "signed off")
            del self.drivers[driver_id]
            self._remove(driver)
        return SignedOffItem(driver_id, "signed-off", finishing)

    # The end

    async def settle(self, within_s: float) -> None:
        """Waits until all that was received has its answer, the sign-ons that have not begun excepted."""
        try:
            async with asyncio.timeout(within_s):
                if self._worker is not None:
                    await asyncio.wait([self._worker])
                for driver in [each for each in self.drivers.values() if each.is_working]:
                    await driver.settle(within_s)
        except TimeoutError:
            log.info("a gateway's commands take long")

    async def finish(self, within_s: float) -> None:
        """The socket is gone: as if each of its drivers had lost a socket of its own."""
        was_told = self.closing is not None
        self.closing = self.closing or (CLOSE_GOING_AWAY, "the gateway is gone")
        await self.settle(within_s)
        self._is_over = True
        drivers = list(self.drivers.values())
        lost = {each.driver_id: each.epoch for each in drivers if each.is_missed(was_told=was_told)}
        self.drivers.clear()
        for driver in drivers:
            driver.closing = driver.closing or self.closing
            self._remove(driver)
        await self._note_lost(lost)

    async def _note_lost(self, lost: Mapping[DriverId, int]) -> None:
        if not lost:
            return
        try:
            await self.around.note_lost(lost)
        except StoreUnavailable as fault:
            log.info("lost drivers could not be noted: their offers end at their own time", reason=fault.reason)


def _refused(driver_id: str, error: Exception) -> SignedOnItem:
    problem = problem_of(error)
    if problem is None:
        log.error("a sign-on failed", exc_info=error)
        return SignedOnItem(driver_id, code="internal-error", detail="the service has failed")
    after = problem.headers.get("Retry-After")
    return SignedOnItem(
        driver_id, code=problem.code, detail=problem.detail, retry_after_s=None if after is None else float(after)
    )
