"""What goes over the wire between an operator and the service: commands on rides and markets, with their reasons."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from api.schema import Reason, WireId


class AssignRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`ask`: the driver is offered the ride and may decline it, rather than assigned at once."""

    driver_id: WireId
    reason: Reason
    ask: bool = False


class BecauseRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of an operator's command that says nothing but why."""

    reason: Reason


class ReleaseRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`trip_id`: only that trip is meant, so that the command may be repeated when the ride has another one by now."""

    reason: Reason
    trip_id: WireId | None = None


class PauseRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`new_rides`: those that are asked for while nobody is matched are refused, or taken and wait."""

    new_rides: Literal["refuse", "queue"]
    reason: Reason


class MarketOut(Struct, frozen=True):
    """`assign`: "auto" where drivers are assigned at once, "offer" where each is asked.

    `new_rides` says what becomes of them during a pause; `reason` and `since` are of the last pause, or of its end.
    """

    id: str
    classes: list[str]
    tags: list[str]
    assign: str
    paused: bool
    new_rides: str | None
    reason: str | None
    since: str | None


class MarketPage(Struct, frozen=True):
    items: list[MarketOut]
