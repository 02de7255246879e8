"""Frames of a fleet gateway's socket: many drivers on one, each named by its `driver_id`.

What concerns one driver looks as on the driver's own socket (see api.schema),
with the driver's id beside it. Unknown fields are let through: gateways in the
field are older and newer than the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from api import schema
from api.schema import Count, PositionItem, QueueFrame, Reason, Ref, RideOut, WireId

#: Positions of one frame.
POSITIONS_MAX = 2048
#: Drivers that one frame signs on or off.
SIGN_ON_MAX = 500
#: Drivers whom an error names; of the others it tells the number.
NAMED_MAX = 32

# Frames up


class FleetPosition(PositionItem, kw_only=True, gc=False):
    """`seq` counts the driver's own positions and grows."""

    driver_id: WireId


class FleetPositions(Struct, tag="positions", tag_field="type"):
    """`seq` counts the frames that want an acknowledgement and grows; without one there is none."""

    items: Annotated[list[FleetPosition], Meta(min_length=1, max_length=POSITIONS_MAX)]
    seq: Count | None = None


class LoosePositions(Struct, tag="positions", tag_field="type"):
    """The same with items that are not looked at yet, for a frame in which one is not valid."""

    items: Annotated[list[Raw], Meta(min_length=1, max_length=POSITIONS_MAX)]
    seq: Count | None = None


class SignOnItem(Struct):
    """Without a status the driver is online, unless it is on a break."""

    driver_id: WireId
    status: Literal["online", "on_break", "offline"] | None = None


class SignOnFrame(Struct, tag="sign_on", tag_field="type"):
    drivers: Annotated[list[SignOnItem], Meta(min_length=1, max_length=SIGN_ON_MAX)]
    ref: Ref | None = None


class SignOffFrame(Struct, tag="sign_off", tag_field="type"):
    """The drivers are offline then; with `offline` false as if their sockets were lost, to come back elsewhere."""

    drivers: Annotated[list[WireId], Meta(min_length=1, max_length=SIGN_ON_MAX)]
    offline: bool = True
    ref: Ref | None = None


class FleetStatusFrame(schema.StatusFrame, tag="status", tag_field="type", kw_only=True):
    driver_id: WireId


class FleetTripFrame(Struct, kw_only=True):
    """A driver's trip command; its tag is the move's name."""

    driver_id: WireId
    trip_id: WireId
    reason: Reason | None = None
    ref: Ref | None = None


class FleetAcceptFrame(FleetTripFrame, tag="accept", tag_field="type"):
    pass


class FleetDeclineFrame(FleetTripFrame, tag="decline", tag_field="type"):
    pass


class FleetArriveFrame(FleetTripFrame, tag="arrive", tag_field="type"):
    pass


class FleetStartFrame(FleetTripFrame, tag="start", tag_field="type"):
    pass


class FleetCompleteFrame(FleetTripFrame, tag="complete", tag_field="type"):
    pass


class FleetCancelFrame(FleetTripFrame, tag="cancel", tag_field="type"):
    pass


class FleetNoShowFrame(FleetTripFrame, tag="no_show", tag_field="type"):
    pass


FleetUpFrame = (
    FleetPositions
    | SignOnFrame
    | SignOffFrame
    | FleetStatusFrame
    | FleetAcceptFrame
    | FleetDeclineFrame
    | FleetArriveFrame
    | FleetStartFrame
    | FleetCompleteFrame
    | FleetCancelFrame
    | FleetNoShowFrame
)
FleetCommand = FleetStatusFrame | FleetTripFrame
#: The frame of a driver's own socket that says the same.
_COMMANDS: Mapping[type[FleetTripFrame], type[schema.TripFrame]] = {
    FleetAcceptFrame: schema.AcceptFrame,
    FleetDeclineFrame: schema.DeclineFrame,
    FleetArriveFrame: schema.ArriveFrame,
    FleetStartFrame: schema.StartFrame,
    FleetCompleteFrame: schema.CompleteFrame,
    FleetCancelFrame: schema.CancelFrame,
    FleetNoShowFrame: schema.NoShowFrame,
}
COMMANDS: Mapping[str, type[FleetTripFrame]] = {str(kind.__struct_config__.tag): kind for kind in _COMMANDS}


def own_command(frame: FleetCommand) -> schema.StatusFrame | schema.TripFrame:
    """The command as the driver's own socket would bring it."""
    if isinstance(frame, FleetStatusFrame):
        return schema.StatusFrame(frame.status, frame.ref)
    return _COMMANDS[type(frame)](trip_id=frame.trip_id, reason=frame.reason, ref=frame.ref)


# Frames down


class LimitsOut(Struct, frozen=True):
    """Of one socket: drivers at a time, positions and sign-ons a frame, commands without an answer, bytes a frame."""

    drivers_max: int
    positions_max: int
    sign_on_max: int
    commands_max: int
    frame_bytes_max: int


class FleetWelcome(Struct, tag="welcome", tag_field="type"):
    market: str
    limits: LimitsOut
    position_interval_s: float
    reconnect_jitter_s: float


class SignedOnItem(Struct, omit_defaults=True):
    """A driver's present state, as in its own welcome; with a `code` it was refused, and nothing else is told."""

    driver_id: str
    epoch: int | None = None
    status: str | None = None
    status_code: str | None = None
    rides: list[RideOut] = field(default_factory=list)
    queue: QueueFrame | None = None
    code: str | None = None
    detail: str | None = None
    retry_after_s: float | None = None


class SignedOnFrame(Struct, tag="signed_on", tag_field="type", omit_defaults=True):
    """Answers a `sign_on`, perhaps in several frames; `now` is the service's time, `is_last` says that it was all."""

    drivers: list[SignedOnItem]
    now: str | None = None
    ref: str | int | None = None
    is_last: bool = True


class SignedOffItem(Struct, omit_defaults=True):
    """`code` is why: `signed-off`, `superseded`, `driver-suspended`, or why a `sign_off` was refused."""

    driver_id: str
    code: str
    finishing_trip_id: str | None = None


class SignedOffFrame(Struct, tag="signed_off", tag_field="type", omit_defaults=True):
    """These drivers are signed on here no more: the answer to a `sign_off`, or without one the service's word."""

    drivers: list[SignedOffItem]
    ref: str | int | None = None


class FleetTripChanged(schema.TripChangedFrame, tag="trip", tag_field="type", kw_only=True):
    driver_id: str


class FleetOffer(schema.OfferFrame, tag="offer", tag_field="type", kw_only=True):
    driver_id: str


class FleetOfferWithdrawn(schema.OfferWithdrawnFrame, tag="offer_withdrawn", tag_field="type", kw_only=True):
    driver_id: str


class FleetStatusChanged(schema.StatusChangedFrame, tag="status", tag_field="type", kw_only=True):
    driver_id: str


class FleetQueue(schema.QueueFrame, tag="queue", tag_field="type", kw_only=True):
    driver_id: str


class FleetDone(schema.DoneFrame, tag="done", tag_field="type", omit_defaults=True, kw_only=True):
    driver_id: str


class FleetError(schema.ErrorFrame, tag="error", tag_field="type", omit_defaults=True, kw_only=True):
    """Of a command: with its `driver_id` and `ref`. Of positions: `driver_ids` names some of the drivers concerned,
    `count` tells how many positions were not taken."""

    driver_id: str | None = None
    driver_ids: list[str] | None = None
    count: int | None = None


FleetDownFrame = (
    FleetWelcome
    | SignedOnFrame
    | SignedOffFrame
    | schema.AckFrame
    | FleetTripChanged
    | FleetOffer
    | FleetOfferWithdrawn
    | FleetStatusChanged
    | FleetQueue
    | FleetDone
    | FleetError
)
_OF_DRIVER: Mapping[type[Any], type[Any]] = {
    schema.TripChangedFrame: FleetTripChanged,
    schema.OfferFrame: FleetOffer,
    schema.OfferWithdrawnFrame: FleetOfferWithdrawn,
    schema.StatusChangedFrame: FleetStatusChanged,
    schema.QueueFrame: FleetQueue,
    schema.DoneFrame: FleetDone,
    schema.ErrorFrame: FleetError,
}


def of_driver(driver_id: str, frame: schema.DownFrame) -> FleetDownFrame:
    """A frame of a driver's own socket, with the driver's id beside it."""
    fields = {name: getattr(frame, name) for name in frame.__struct_fields__}
    made: FleetDownFrame = _OF_DRIVER[type(frame)](driver_id=driver_id, **fields)
    return made
