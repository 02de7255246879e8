"""One driver of a fleet's gateway: a driver's session whose frames share the gateway's socket.

It is a session like any other: its own epoch, one in the process, superseded by
a newer one wherever that is (P7). What differs is the end: it is told in a
frame, and the socket stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from api.driver_session import (
    CLOSE_GOING_AWAY,
    CLOSE_POLICY,
    CLOSE_SUPERSEDED,
    Format,
    MoveTrip,
    Session,
    SetStatus,
    answer_to,
)
from api.errors import problem_of
from api.fleet_acks import Acks, Frame, Owed
from api.fleet_outbox import DriverOutbox, FleetOutbox
from api.positions import PositionFlusher, Track
from api.schema import (
    DownFrame,
    ErrorFrame,
    PositionItem,
    QueueFrame,
    StatusFrame,
    TripFrame,
    WelcomeFrame,
    ride_out,
)
from api.schema_fleet import FleetDownFrame, FleetPosition, FleetUpFrame, LoosePositions, SignedOnItem
from api.tags import Tags
from api.telemetry import Metrics
from geo.model import DriverId
from matcher.errors import StoreUnavailable
from matcher.listeners import DriverListener
from matcher.model import Driver, DriverStatus, Hint, Ride
from matcher.outcomes import SignedOn, StatusSet, Superseded
from matcher.policy import Market
from matcher.rides import Overloaded
from matcher.store_paths import PathPart

#: Commands of one gateway without an answer.
COMMANDS_MAX = 1000
#: What a driver's end is called.
ENDS = {CLOSE_SUPERSEDED: "superseded", CLOSE_POLICY: "driver-suspended"}


class Sessions(Protocol):
    """The sessions of this process, one a driver at most (see api.driver_stream.Sessions)."""

    def add(self, session: Session) -> None: ...
    def discard(self, session: Session) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the sessions of a gateway need of the service; `market` is that of all its drivers."""

    market: Market
    sign_on: Callable[[DriverId, bool], Awaitable[SignedOn]]
    track: Callable[[SignedOn], Track]
    listen: Callable[
        [DriverId, Callable[[Ride], None], Callable[[Driver], None]], AbstractContextManager[DriverListener]
    ]
    announce: Callable[[Sequence[Hint]], None]
    move_trip: MoveTrip
    set_status: SetStatus
    note_lost: Callable[[Mapping[DriverId, int]], Awaitable[None]]
    queue_of: Callable[[Session], QueueFrame | None]
    flusher: PositionFlusher
    keep_path: Callable[[PathPart], None]
    sessions: Sessions
    tags: Tags
    metrics: Metrics
    clock: Callable[[], float]
    drivers_max: int  # of one gateway
    has_room: Callable[[], bool]  # the process, for one driver more


class FleetFormat(Format):
    """One of the two subprotocols, as a gateway speaks it."""

    def __init__(self, subprotocol: str) -> None:
        super().__init__(subprotocol)
        codec: Any = msgspec.msgpack if self.is_binary else msgspec.json
        self.decode_fleet: Callable[[bytes], FleetUpFrame] = codec.Decoder(FleetUpFrame).decode
        self.decode_loose: Callable[[bytes], LoosePositions] = codec.Decoder(LoosePositions).decode
        self.decode_position: Callable[[msgspec.Raw], FleetPosition] = codec.Decoder(FleetPosition).decode
        self.encode_fleet: Callable[[FleetDownFrame], bytes] = codec.Encoder().encode


class HasDrivers(Protocol):
    """A gateway, as its drivers know it."""

    around: Surroundings
    form: FleetFormat
    outbox: FleetOutbox
    acks: Acks
    commands: int  # without an answer, of all its drivers

    def close(self, code: int, reason: str) -> None:
        """Asks for the whole socket to be closed."""

    def end(self, driver: FleetDriver, code: str) -> None:
        """The service has ended this driver's session."""


class FleetDriver(Session):
    """One driver of a gateway: a driver's session whose frames share the gateway's socket."""

    outbox: DriverOutbox

    def __init__(self, driver_id: DriverId, gateway: HasDrivers) -> None:
        around = gateway.around
        super().__init__(
            driver_id,
            gateway.form,
            move_trip=around.move_trip,
            set_status=around.set_status,
            flusher=around.flusher,
            keep_path=around.keep_path,
            tags=around.tags,
            metrics=around.metrics,
            clock=around.clock,
        )
        self._gateway = gateway
        self._owed = Owed()
        self._answers = 0
        self.now_ms = 0  # the database's time of the sign-on
        self.outbox = DriverOutbox(driver_id, gateway.outbox, self._now_ms, self._published)
        self._listening = around.listen(driver_id, self.on_ride, self.on_row)

    async def sign_on(self, online: bool) -> SignedOnItem:
        """Raises Problem, Overloaded and StoreUnavailable; then nothing is left of it."""
        listener = self._listening.__enter__()
        try:
            around = self._gateway.around
            signed = await around.sign_on(self.driver_id, online)
            welcome = self._welcome(signed)
            track = around.track(signed)
            track.on_dropped = self._forget
            self.signed_on(track, signed, welcome, listener)
            self.now_ms = signed.now_ms
        except BaseException:
            self._listening.__exit__(None, None, None)
            raise
        around.announce([signed.hint])  # so that an older session hears of its end, wherever it is
        return SignedOnItem(
            self.driver_id,
            epoch=self.epoch,
            status=welcome.status,
            status_code=welcome.status_code,
            rides=welcome.rides,
            queue=welcome.queue,
        )

    def _welcome(self, signed: SignedOn) -> WelcomeFrame:
        driver, around = signed.driver, self._gateway.around
        return WelcomeFrame(
            driver_id=driver.driver_id,
            market=around.market.id,
            epoch=driver.epoch,
            status=driver.status.value,
            rides=[ride_out(each) for each in signed.rides],
            position_interval_s=0.0,  # these two stand in the gateway's own welcome
            reconnect_jitter_s=0.0,
            status_code=driver.status_code,
            queue=around.queue_of(self),
        )

    @property
    def status(self) -> DriverStatus | None:
        """As far as is known; None before it is signed on."""
        return None if self._row is None else self._row.status

    def take(self, item: PositionItem, frame: Frame) -> None:
        """A position from the gateway's frame."""
        self._take(item)
        if self.track.fix is item:
            self._gateway.acks.owe(self._owed, item.seq, frame)

    def _published(self, seq: int) -> None:
        self._gateway.acks.published(self._owed, seq)

    def _forget(self) -> None:
        """What of it was not published will not be."""
        self._gateway.acks.forget(self._owed)

    def command(self, frame: StatusFrame | TripFrame) -> None:
        self._enqueue(frame)

    def _enqueue(self, frame: StatusFrame | TripFrame) -> None:
        if self._gateway.commands >= COMMANDS_MAX:
            self._answer(ErrorFrame("overloaded", "too many commands wait for their answers", ref=frame.ref))
            return
        before = len(self._commands)
        super()._enqueue(frame)
        self._gateway.commands += len(self._commands) - before

    async def _on_trip(self, frame: TripFrame) -> None:
        await self._answered(super()._on_trip(frame), frame.ref)

    async def _on_status(self, frame: StatusFrame) -> None:
        await self._answered(super()._on_status(frame), frame.ref)

    async def _answered(self, work: Awaitable[None], ref: str | int | None) -> None:
        """A command whose driver turns out to be superseded has its answer too, since the socket stays."""
        before = self._answers
        try:
            await work
        finally:
            self._gateway.commands -= 1
        if self._answers == before:
            self._answer(answer_to(Superseded(), ref))

    def _answer(self, frame: DownFrame) -> None:
        self._answers += 1
        super()._answer(frame)

    async def be(self, status: DriverStatus) -> StatusSet | str:
        """Sets the status for the gateway; a code where that was not to be done."""
        try:
            outcome = await self._set_status(self.driver_id, status, epoch=self.epoch)
        except (StoreUnavailable, Overloaded) as error:
            return code_of(error)
        if outcome is None:
            self.supersede()
            return "superseded"
        if outcome.driver.status is DriverStatus.SUSPENDED:
            self.suspend()
            return "driver-suspended"
        if self._row is None or outcome.driver.version >= self._row.version:
            self._keep_row(outcome.driver)
            self._apply(outcome.driver.status)
        return outcome

    def _apply(self, status: DriverStatus) -> None:
        super()._apply(status)
        if self._is_deaf:
            self._forget()

    def close(self, code: int, reason: str) -> None:
        """The driver's session is over; the gateway hears of it, and goes on."""
        if code == CLOSE_GOING_AWAY:
            self._gateway.close(code, reason)
        elif self.closing is None:
            self.closing = (code, reason)
            self._is_deaf = True
            self._gateway.end(self, ENDS.get(code, reason))
        else:
            self._forget()  # it was signed off, and has been superseded since

    def is_missed(self, *, was_told: bool) -> bool:
        """Whether an offer, made or still to come, would wait for an answer that cannot be given here.

        `was_told`: the service has sent the gateway away, which thus comes back.
        """
        asks = self._gateway.around.market.life.offer_ttl_ms is not None
        return self._listener.has_offer or (asks and not was_told and self.track.available)

    def part(self) -> None:
        """Its last fix stands until it is stale, and commands that were received end."""
        self._flusher.leave(self.track)
        self._hand_over_path()
        if self.closing is None or self.closing[0] != CLOSE_GOING_AWAY:  # else that fix may still have to be published
            self._forget()
        self._listening.__exit__(None, None, None)

    @property
    def is_working(self) -> bool:
        """Whether commands of it are under way."""
        return self._worker is not None and not self._worker.done()


def code_of(error: Exception) -> str:
    """The stable code of an exception that a client is told of."""
    problem = problem_of(error)
    return "internal-error" if problem is None else problem.code
