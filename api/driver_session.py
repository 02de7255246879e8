"""One driver's session on one socket: frames in, frames out, one market, one epoch.

`Session` decides synchronously what a frame means; what needs the store goes
through one bounded worker, in the order sent, so that positions never wait for
a database. It reads and writes nothing itself: see session_socket. Positions
are acknowledged once in `ack_interval_s`, or with whatever leaves earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from aiohttp import WSMsgType

from api.beat import HasBeat
from api.outbox import Outbox
from api.positions import PositionFlusher, Track, Verdict
from api.schema import (
    AcceptFrame,
    ArriveFrame,
    CancelFrame,
    CompleteFrame,
    DeclineFrame,
    DoneFrame,
    DownFrame,
    ErrorFrame,
    NoShowFrame,
    PositionFrame,
    PositionItem,
    PositionsFrame,
    StartFrame,
    StatusChangedFrame,
    StatusFrame,
    TripFrame,
    UpFrame,
    WelcomeFrame,
    rfc3339_or_none,
    ride_out,
)
from api.tags import Tags
from api.telemetry import Metrics
from api.trip_meter import TripMeter, meter_after
from geo.model import DriverId
from matcher.errors import StoreUnavailable
from matcher.listeners import DriverListener
from matcher.model import Code, Driver, DriverStatus, Move, Ride, TripId
from matcher.outcomes import (
    CommandOutcome,
    Done,
    NotAllowed,
    NotFound,
    NotYours,
    SignedOn,
    StatusSet,
    Superseded,
)
from matcher.rides import Overloaded
from matcher.store_paths import PathPart

CLOSE_GOING_AWAY = 1001
CLOSE_WRONG_TYPE = 1003
CLOSE_POLICY = 1008
CLOSE_SUPERSEDED = 4000
CLOSE_TOKEN_EXPIRED = 4001
CLOSE_SIGNED_OUT = 4002

BAD_FRAMES_MAX = 10
COMMANDS_MAX = 16
SEND_S_MAX = 10.0
CLOSE_S_MAX = 2.0
SETTLE_S_MAX = 3.0
#: A socket that says nothing for so long is asked whether it is there, and dropped PONG_S after that.
HEARTBEAT_S = 20.0
PONG_S = 10.0

_TAKEN = Verdict.TAKEN

log = structlog.stdlib.get_logger(__name__)

MOVES: dict[type[TripFrame], Move] = {
    AcceptFrame: Move.ACCEPT,
    DeclineFrame: Move.DECLINE,
    ArriveFrame: Move.ARRIVE,
    StartFrame: Move.START,
    CompleteFrame: Move.COMPLETE,
    CancelFrame: Move.DRIVER_CANCEL,
    NoShowFrame: Move.RIDER_NO_SHOW,
}
#: What the service's own changes of a status mean, for a person.
_STATUS_REASONS = {Code.MISSED_OFFERS.value: "too many offers in a row ran out without an answer"}

MoveTrip = Callable[..., Awaitable[CommandOutcome]]
SetStatus = Callable[..., Awaitable[StatusSet | None]]


class Format:
    """One of the two subprotocols: how frames are decoded and encoded, and in which kind of message."""

    def __init__(self, subprotocol: str) -> None:
        self.is_binary = subprotocol.endswith("msgpack")
        self.message_type = WSMsgType.BINARY if self.is_binary else WSMsgType.TEXT
        codec: Any = msgspec.msgpack if self.is_binary else msgspec.json
        self.decode: Callable[[bytes], UpFrame] = codec.Decoder(UpFrame).decode
        self.encode: Callable[[DownFrame], bytes] = codec.Encoder().encode


class Session:
    """Made before the handshake, so that no change of a trip is missed; `signed_on` completes it."""

    # A process holds some ten thousand of these.
    __slots__ = (
        "__weakref__",
        "_ack_interval_s",
        "_ahead_ms",
        "_bad_in_a_row",
        "_commands",
        "_decode",
        "_early_row",
        "_flusher",
        "_is_deaf",
        "_keep_path",
        "_listener",
        "_meter",
        "_move_trip",
        "_row",
        "_set_status",
        "_tags",
        "_touch",
        "_verdicts",
        "_worker",
        "clock",
        "closing",
        "driver_id",
        "epoch",
        "form",
        "is_heard",
        "metrics",
        "outbox",
        "socket",
        "track",
    )

    def __init__(
        self,
        driver_id: DriverId,
        form: Format,
        *,
        move_trip: MoveTrip,
        set_status: SetStatus,
        flusher: PositionFlusher,
        keep_path: Callable[[PathPart], None],
        tags: Tags,
        metrics: Metrics,
        clock: Callable[[], float],
        ack_interval_s: float = 0.0,
    ) -> None:
        self.driver_id = driver_id
        self.epoch = 0
        self.closing: tuple[int, str] | None = None
        self.outbox = Outbox(form.encode, self._now_ms)
        self.form = form
        self._decode = form.decode
        self._move_trip = move_trip
        self._set_status = set_status
        self._flusher = flusher
        self._touch = flusher.touch
        self._keep_path = keep_path
        self._meter: TripMeter | None = None  # of the present trip, as far as is known
        self._tags = tags
        self.metrics = metrics
        self._verdicts = metrics.fixes.counts
        self.clock = clock
        self._bad_in_a_row = 0
        self._ack_interval_s = ack_interval_s
        self.socket: HasBeat | None = None  # while there is one
        self.is_heard = True  # since the socket's last beat
        self._is_deaf = False  # offline or closing: positions are not taken
        self._commands: list[StatusFrame | TripFrame] = []  # in the order sent
        self._worker: asyncio.Task[None] | None = None
        self._ahead_ms = 0  # how far the database's clock is ahead of ours
        self._row: Driver | None = None  # as far as is known; None before signed_on
        self._early_row: Driver | None = None  # heard of before signed_on
        self.track: Track  # these two are set by signed_on; nothing is received before
        self._listener: DriverListener

    def signed_on(self, track: Track, signed: SignedOn, welcome: WelcomeFrame, listener: DriverListener) -> None:
        """`listener` is told what the driver learns otherwise than by the announcer."""
        self.track = track
        self._listener = listener
        self.epoch = track.epoch
        self._ahead_ms = signed.now_ms - int(self.clock() * 1000)
        track.ack_interval_s = self._ack_interval_s
        track.on_published = self.outbox.ack
        track.on_outdated = self.supersede
        self._flusher.join(track)
        for ride in signed.rides:
            self._tell(ride)
        self._keep_row(signed.driver)
        self._is_deaf = self._is_off(signed.driver.status)
        self.outbox.welcome(welcome)
        if self._early_row is not None:
            self.on_row(self._early_row)

    def _now_ms(self) -> int:
        """The database's time, in which offers end."""
        return int(self.clock() * 1000) + self._ahead_ms

    def _tell(self, ride: Ride) -> None:
        """The driver learns of this state by an answer or the welcome."""
        if self._listener.told(ride):  # else it is late: something newer was told
            self._measure(ride)
            self.outbox.told(ride)

    def _keep_row(self, driver: Driver) -> None:
        self._row = driver
        self._listener.told_row(driver)

    def close(self, code: int, reason: str) -> None:
        """Asks the writer to close the socket; the first reason stands."""
        if self.closing is None:
            self.closing = (code, reason)
            self._is_deaf = True
            self.metrics.sockets_closed.add(str(code))
            self.outbox.wake.set()

    def supersede(self) -> None:
        self.close(CLOSE_SUPERSEDED, "a newer session has taken over")

    # Frames in: synchronous

    def on_frame(self, data: bytes) -> None:
        """One message of the right type. Positions are nearly all there is: they take the shortest way."""
        self.is_heard = True
        try:
            frame = self._decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            code = "invalid-frame" if isinstance(error, msgspec.ValidationError) else "malformed-frame"
            self._bad_frame(code, str(error))
            return
        self._bad_in_a_row = 0
        if type(frame) is PositionFrame:
            self._take(frame)
        elif isinstance(frame, PositionsFrame):
            for item in sorted(frame.items, key=lambda each: each.seq):
                self._take(item)
        elif isinstance(frame, StatusFrame | TripFrame):
            self._enqueue(frame)

    def _take(self, item: PositionItem) -> None:
        if self._is_deaf:
            self._ignore()
            return
        now_s = self.clock()
        verdict = self.track.take(item, now_s)
        if verdict is _TAKEN:
            self._touch(self.track)  # which counts it, once a flush
            if self._meter is not None and self._meter.add(item.lat, item.lon, now_s):
                self._hand_over_path()
        else:
            self._refuse(verdict)

    def _measure(self, ride: Ride) -> None:
        """Keeps the meter in step with the driver's trips."""
        self._hand_over_path()
        self._meter = meter_after(self._meter, ride, self.driver_id)

    def _hand_over_path(self) -> None:
        """What the meter has gathered goes to be written."""
        meter = self._meter
        if meter is not None and (part := meter.take()) is not None:
            self._keep_path(PathPart(meter.trip_id, self.epoch, part.number, part.distance_m, part.points))

    def _ignore(self) -> None:
        if self.closing is None:  # a session that is over writes nothing, and has been told why
            self.outbox.error(ErrorFrame("offline", "the driver is offline: its positions are not taken"))

    def _refuse(self, verdict: Verdict) -> None:
        self._verdicts[(verdict.value,)] += 1
        if verdict is Verdict.OUTSIDE:
            self.outbox.error(ErrorFrame(verdict.value, "the position is outside the session's market"))
        elif verdict is Verdict.NULL_ISLAND:
            self.outbox.error(ErrorFrame(verdict.value, "the position (0, 0) is not plausible"))

    def _bad_frame(self, code: str, detail: str) -> None:
        self.metrics.bad_frames.add(code)
        self._bad_in_a_row += 1
        self.outbox.error(ErrorFrame(code, detail[:200]))
        if self._bad_in_a_row > BAD_FRAMES_MAX:
            self.close(CLOSE_POLICY, "too many bad frames")

    # Commands: one at a time, in the order sent

    def _enqueue(self, frame: StatusFrame | TripFrame) -> None:
        if self.closing is not None:
            return
        if len(self._commands) >= COMMANDS_MAX:
            self._answer(ErrorFrame("overloaded", "too many commands wait for their answers", ref=frame.ref))
            return
        self._commands.append(frame)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._commands:
            frame = self._commands.pop(0)
            try:
                await (self._on_status(frame) if isinstance(frame, StatusFrame) else self._on_trip(frame))
            except StoreUnavailable as error:
                self._answer(ErrorFrame("store-unavailable", error.reason, ref=frame.ref))
            except Overloaded as error:
                self._answer(ErrorFrame("overloaded", error.reason, ref=frame.ref))
            except Exception:  # a defect of ours: the driver hears of it, and later commands still run
                log.exception("a driver's command failed", command=type(frame).__name__)
                self._answer(ErrorFrame("internal-error", "the service has failed", ref=frame.ref))

    async def _on_trip(self, frame: TripFrame) -> None:
        outcome = await self._move_trip(
            TripId(frame.trip_id),
            MOVES[type(frame)],
            driver_id=self.driver_id,
            epoch=self.epoch,
            reason=frame.reason,
        )
        if isinstance(outcome, Superseded):
            self.supersede()
        else:
            if isinstance(outcome, Done):
                self._tell(outcome.ride)
            self._answer(answer_to(outcome, frame.ref))
            self._sign_off_if_finished()

    async def _on_status(self, frame: StatusFrame) -> None:
        outcome = await self._set_status(self.driver_id, DriverStatus(frame.status), epoch=self.epoch)
        if outcome is None:
            self.supersede()
            return
        driver = outcome.driver
        if driver.status is DriverStatus.SUSPENDED:
            self._answer(ErrorFrame("driver-suspended", "the driver is suspended", ref=frame.ref))
            self.suspend()
            return
        if self._row is None or driver.version >= self._row.version:  # else somebody has changed it since
            self._keep_row(driver)
            self._apply(driver.status)
            self.outbox.told_status()
        present = self._row or driver
        self._answer(DoneFrame(status=present.status.value, ref=frame.ref, finishing_trip_id=outcome.finishing))

    # The driver's status

    def _is_off(self, status: DriverStatus) -> bool:
        """Signed off. A driver that still finishes a trip is seen until it has."""
        return status is DriverStatus.OFFLINE and not self._listener.has_trip

    def _apply(self, status: DriverStatus) -> None:
        is_off = self._is_off(status)
        self._is_deaf = is_off or self.closing is not None
        if is_off:
            self._flusher.remove(self.track)
        self.track.set_available(status is DriverStatus.ONLINE)
        if self.track.fix is not None:
            self._flusher.touch(self.track)
            self._flusher.hurry()

    def on_ride(self, ride: Ride) -> None:
        """A ride of this driver changed otherwise than by a command of this session."""
        self._measure(ride)
        self.outbox.trip(ride)
        self._sign_off_if_finished()

    def _sign_off_if_finished(self) -> None:
        """A driver that went offline during a trip leaves the feed at that trip's end."""
        if self._row is not None and not self._is_deaf and self._is_off(self._row.status):
            self._apply(self._row.status)

    def beat(self, now_s: float) -> None:
        """A look at the session every now and then: an acknowledgement may be due, and is anybody there?"""
        if self.socket is None:
            return
        track = self.track
        if track.published > self.outbox.acked and track.ack_at_s <= now_s:
            track.ack_at_s = now_s + track.ack_interval_s
            self.outbox.ack(track.published)
        self.socket.beat(now_s)

    def on_row(self, driver: Driver) -> None:
        """The driver's row was written: what somebody else has changed takes effect on this session (P7)."""
        known = self._row
        if known is None:
            self._early_row = driver
        elif driver.epoch > self.epoch:
            self.supersede()
        elif driver.version > known.version:
            self._take_over(known, driver)

    def _take_over(self, known: Driver, driver: Driver) -> None:
        self._keep_row(driver)
        if driver.status is DriverStatus.SUSPENDED:
            self.suspend()
            return
        self.track.drives(driver.vehicle_class, driver.seats, self._tags.mask(driver.tags))
        self._apply(driver.status)
        if driver.status is not known.status:
            code = driver.status_code
            self.outbox.status(StatusChangedFrame(driver.status.value, code, _STATUS_REASONS.get(code or "")))

    def suspend(self) -> None:
        """The operator took the driver off the road: no more positions, and the session ends."""
        self._flusher.remove(self.track)
        self.close(CLOSE_POLICY, "the driver is suspended")

    def _answer(self, frame: DownFrame) -> None:
        self.outbox.answer(frame)

    async def finish(self, within_s: float) -> None:
        """The socket is gone: its last fix stands until it is stale, and commands that were received end."""
        self._flusher.leave(self.track)
        self._hand_over_path()
        await self.settle(within_s)

    async def settle(self, within_s: float) -> None:
        """Waits until every command that was received has its answer."""
        if self._worker is not None and not self._worker.done():
            await asyncio.wait([self._worker], timeout=within_s)


def answer_to(outcome: CommandOutcome, ref: str | int | None) -> DownFrame:
    """The frame that answers a trip command."""
    match outcome:
        case Done(ride=ride):
            return DoneFrame(ride_out(ride), ref=ref)
        case NotAllowed(ride=ride, allowed=allowed, allowed_at_ms=at_ms):
            detail = f"the trip is {ride.trip.state.value if ride.trip else 'over'}"
            moves = [each.value for each in allowed]
            return ErrorFrame("not-allowed", detail, ref, ride_out(ride), moves, rfc3339_or_none(at_ms))
        case NotFound():
            return ErrorFrame("trip-unknown", "there is no such trip", ref)
        case NotYours():
            return ErrorFrame("not-your-trip", "the trip belongs to another driver", ref)
        case Superseded():
            return ErrorFrame("superseded", "a newer session has taken over", ref)
