"""What goes over the wire of /v1/webhook, and what is sent to a client's URL."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from api.schema import EventOut, event_out, rfc3339, rfc3339_or_none
from matcher.model import RideEvent, RideId
from matcher.store_webhooks import Key, Place, Undelivered, Webhook

URL_CHARS_MAX = 2000
SECRET_CHARS_MIN = 16
SECRET_CHARS_MAX = 200
#: Deliveries that one request may name.
IDS_MAX = 1000

_RIDE_ID = r"r_[0-9A-HJKMNP-TV-Z]{26}"
_VERSION = r"[1-9][0-9]{0,8}"
DeliveryId = Annotated[str, Meta(pattern=rf"^{_RIDE_ID}\.{_VERSION}$")]
_CURSOR = re.compile(rf"([0-9]{{1,15}})\.({_RIDE_ID})\.({_VERSION})", re.ASCII)

# Requests


class WebhookRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """`secret` signs the deliveries; without one the service makes one, and another with every request."""

    url: Annotated[str, Meta(min_length=1, max_length=URL_CHARS_MAX)]
    secret: (
        Annotated[str, Meta(min_length=SECRET_CHARS_MIN, max_length=SECRET_CHARS_MAX, pattern=r"^[\x21-\x7e]+$")] | None
    ) = None


class RetryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The given-up deliveries to try again; without `ids` all of them."""

    ids: Annotated[list[DeliveryId], Meta(max_length=IDS_MAX)] | None = None


# Answers


class WebhookOut(Struct, frozen=True):
    url: str
    created_at: str


class WebhookSetOut(Struct, frozen=True):
    """The one answer that shows the secret."""

    url: str
    secret: str
    created_at: str


class DeliveryOut(Struct, frozen=True):
    """A delivery that waits or was given up. `attempts` that began; `next_attempt_at`: no earlier than that."""

    id: str
    ride_id: str
    version: int
    state: str
    attempts: int
    last_error: str | None
    created_at: str
    next_attempt_at: str | None


class DeliveryPage(Struct, frozen=True):
    items: list[DeliveryOut]
    next: str | None


class RetriedOut(Struct, frozen=True):
    """How many deliveries were put back."""

    retried: int


# What is sent


class Notice(Struct, frozen=True):
    """The body of a delivery. A repetition has the same `id`, and the same bytes."""

    id: str
    type: str
    event: EventOut


def delivery_id(ride_id: str, version: int) -> str:
    return f"{ride_id}.{version}"


def notice(event: RideEvent) -> Notice:
    return Notice(delivery_id(event.ride_id, event.version), f"ride.{event.type}", event_out(event))


def webhook_out(hook: Webhook) -> WebhookOut:
    return WebhookOut(hook.url, rfc3339(hook.created_at_ms))


def delivery_out(row: Undelivered) -> DeliveryOut:
    return DeliveryOut(
        id=delivery_id(row.ride_id, row.version),
        ride_id=row.ride_id,
        version=row.version,
        state=row.state.value,
        attempts=row.attempts,
        last_error=row.last_error,
        created_at=rfc3339(row.created_at_ms),
        next_attempt_at=rfc3339_or_none(row.due_at_ms),
    )


def key_of(delivery: str) -> Key:
    """Of an id that was checked to be one."""
    ride_id, _, version = delivery.partition(".")
    return RideId(ride_id), int(version)


def cursor_of(row: Undelivered) -> str:
    return f"{row.created_at_ms}.{delivery_id(row.ride_id, row.version)}"


def place_of(cursor: str) -> Place | None:
    """Where the page after this cursor begins; None for what no page gave."""
    found = _CURSOR.fullmatch(cursor)
    return None if found is None else Place(int(found[1]), RideId(found[2]), int(found[3]))
