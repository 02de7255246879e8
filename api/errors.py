"""Errors as RFC 9457 problems: the one table of codes, and the one mapping of our exceptions to it.

A `code` is a promise to clients; its status and title are fixed here and
nowhere else. What is merely expected (NotAllowed, NotFound) is turned into a
problem by the handlers, with the same table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from geo.feed import FeedUnavailable
from matcher.errors import StoreUnavailable
from matcher.rides import Overloaded

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:hexhail:problem:"

#: code -> (status, title)
CODES: Mapping[str, tuple[int, str]] = {
    "malformed-body": (400, "The body cannot be decoded"),
    "malformed-request": (400, "The request is malformed"),
    "subprotocol-required": (400, "A WebSocket subprotocol must be offered"),
    "upgrade-required": (426, "This address speaks WebSocket"),
    "unauthenticated": (401, "A valid bearer token is needed"),
    "token-expired": (401, "The token has expired"),
    "forbidden": (403, "The token does not allow this"),
    "not-your-trip": (403, "The trip belongs to another driver"),
    "driver-suspended": (403, "The driver is suspended"),
    "not-found": (404, "There is nothing here"),
    "ride-unknown": (404, "There is no such ride"),
    "trip-unknown": (404, "There is no such trip"),
    "driver-unknown": (404, "There is no such driver"),
    "market-unknown": (404, "There is no such market"),
    "webhook-unknown": (404, "The client has no webhook"),
    "batch-unknown": (404, "There is no such batch"),
    "input-not-kept": (404, "The batch's input is not kept"),
    "method-not-allowed": (405, "The method is not allowed here"),
    "body-timeout": (408, "The body took too long to arrive"),
    "not-allowed": (409, "The present state does not allow this"),
    "driver-unavailable": (409, "The driver cannot take the ride"),
    "market-paused": (409, "The market takes no rides for now"),
    "superseded": (409, "A newer session of the driver has taken over"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The media type is not supported"),
    "invalid": (422, "A field is not valid"),
    "null-island": (422, "The position (0, 0) is not plausible"),
    "duplicate-id": (422, "The id stands twice in the request"),
    "no-market": (422, "No market serves this place"),
    "idempotency-key-reused": (422, "The idempotency key was used with another body"),
    "internal-error": (500, "The service has failed"),
    "store-unavailable": (503, "The database is not available"),
    "positions-unavailable": (503, "Live positions are not available"),
    "overloaded": (503, "The service is overloaded"),
    "draining": (503, "The service is shutting down"),
    "starting": (503, "The service is starting"),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """`pointer` is an RFC 6901 JSON Pointer into the body, or `?name` for a query parameter."""

    pointer: str
    detail: str


class Problem(Exception):
    """An answer other than success. `members` are further members of the problem's object."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status, self.title = CODES[code]
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def to_dict(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.errors:
            body["errors"] = [{"pointer": each.pointer, "detail": each.detail} for each in self.errors]
        return body | self.members

    def to_response(self) -> web.Response:
        body = msgspec.json.encode(self.to_dict())
        return web.Response(status=self.status, body=body, content_type=MEDIA_TYPE, headers=self.headers)


def invalid(pointer: str, detail: str, *, code: str = "invalid") -> Problem:
    """One field is wrong: its pointer and why."""
    return Problem(code, f"{pointer}: {detail}", errors=[FieldError(pointer, detail)])


def retry_later(code: str, detail: str, after_s: float = 1.0) -> Problem:
    """A 429 or 503 that says when to come again, in whole seconds as the header wants them."""
    return Problem(code, detail, headers={"Retry-After": str(max(1, int(after_s + 0.999)))})


_AT = re.compile(r" - at `(?:key` in `)?\$?(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>[^\]]*)\]")
_FIELD = re.compile(r"(?:unknown|missing required) field `(?P<name>[^`]*)`")


def from_validation(error: msgspec.ValidationError) -> Problem:
    """msgspec says "why - at `$.pickup.lat`": the pointer is /pickup/lat."""
    text = str(error)
    at = _AT.search(text)
    why = text[: at.start()] if at else text
    steps = [step["name"] or step["index"] for step in _STEP.finditer(at["path"])] if at else []
    named = _FIELD.search(why)
    if named:
        steps.append(named["name"])
    return invalid("".join("/" + _escaped(step) for step in steps), why)


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")


def problem_of(error: BaseException) -> Problem | None:
    """The problem that tells a client of this exception, or None where it is our own defect."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, StoreUnavailable):
        return retry_later("store-unavailable", error.reason)
    if isinstance(error, FeedUnavailable):
        return retry_later("positions-unavailable", str(error))
    if isinstance(error, Overloaded):
        return retry_later("overloaded", error.reason, error.retry_after_s)
    if isinstance(error, web.HTTPException):
        return _of_http(error)
    return None


_HTTP_CODES = {
    404: "not-found",
    405: "method-not-allowed",
    408: "body-timeout",
    413: "body-too-large",
    415: "unsupported-media-type",
}


def _of_http(error: web.HTTPException) -> Problem:
    """aiohttp's own refusals: unknown routes, wrong methods, broken handshakes."""
    if error.status >= 500:
        return Problem("internal-error", "the service has failed")
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    code = _HTTP_CODES.get(error.status, "malformed-request")
    detail = (error.text or error.reason) if code == "malformed-request" else CODES[code][1]
    return Problem(code, detail[:200], headers=headers)
