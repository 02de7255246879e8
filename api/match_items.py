"""Reading a request for a plan: the body as a whole, which must be right, and its items, each of which may be wrong.

What is wrong with an item is noted with its pointer, and the item is left out. This module knows both forms
of the request by their fields alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from msgspec import UNSET

from api.codec import BodyDecoder
from api.errors import Problem, invalid
from api.schema_match import ItemErrorOut, MatchRequest

_REQUEST: Final = BodyDecoder(MatchRequest)
_POINTS_FIELDS: Final = ("rides", "drivers", "market", "limits")
_MATRIX_FIELDS: Final = ("costs", "unmatched", "ride_ids", "driver_ids")
#: What Python and others write for a number that is none, though it is no JSON.
_NO_NUMBERS: Final = (b"NaN", b"Infinity")
#: These, and strings, which are passed over; one that never ends goes to the end, so that nothing is read twice.
#: It begins with a set of bytes, which is what makes the search quick.
_STRING_OR_NO_NUMBER: Final = re.compile(
    rb'["NI](?:(?<=")[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|(?<=N)aN|(?<=I)nfinity)', re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may ask for, and how many there may be in a process at once (P10)."""

    rides_max: int
    drivers_max: int
    cells_max: int
    body_bytes_max: int
    solve_s_max: float
    at_once: int

    def check_rides(self, count: int, pointer: str) -> None:
        """Raises Problem 422."""
        _check_count(count, self.rides_max, pointer, "rides", "match_rides_max")

    def check_drivers(self, count: int, pointer: str) -> None:
        """Raises Problem 422."""
        _check_count(count, self.drivers_max, pointer, "drivers", "match_drivers_max")

    def check_cells(self, rides: int, drivers: int) -> None:
        """Raises Problem 422."""
        _check_count(rides * drivers, self.cells_max, "/costs", "cells", "match_cells_max")


def _check_count(count: int, most: int, pointer: str, what: str, setting: str) -> None:
    if count > most:
        raise invalid(pointer, f"at most {most} {what} are taken at once ({setting}); these are {count}")


@dataclass(slots=True)
class Refusals:
    """What is wrong with items, in the order in which it was found."""

    found: list[ItemErrorOut] = field(default_factory=list)

    def add(self, pointer: str, problem: Problem) -> None:
        """Notes a problem of the item at `pointer`; the problem's own pointers go on from there."""
        for each in problem.errors:
            self.found.append(ItemErrorOut(pointer + each.pointer, problem.code, each.detail))
        if not problem.errors:
            self.found.append(ItemErrorOut(pointer, problem.code, problem.detail))


def read_request(data: bytes, *, is_msgpack: bool) -> MatchRequest:
    """The request, its items still raw. Raises Problem 400 or 422."""
    try:
        request = _REQUEST.decode(data, is_msgpack=is_msgpack)
    except Problem as problem:
        if is_msgpack or problem.code != "malformed-body" or not any(word in data for word in _NO_NUMBERS):
            raise
        request = _REQUEST.decode(_as_json(data), is_msgpack=False)
    _check_form(request)
    return request


def _as_json(data: bytes) -> bytes:
    """The same body with numbers beyond any range where it says NaN or Infinity: their items are refused for them."""
    return _STRING_OR_NO_NUMBER.sub(lambda found: found[0] if found[0].startswith(b'"') else b"1e999", data)


def _check_form(request: MatchRequest) -> None:
    said = {name for name in MatchRequest.__struct_fields__ if getattr(request, name) not in (UNSET, None)}
    mine, others = (_MATRIX_FIELDS, _POINTS_FIELDS) if request.is_matrix else (_POINTS_FIELDS, _MATRIX_FIELDS)
    for name in mine[:2]:
        if name not in said:
            raise invalid(f"/{name}", "is missing: send rides and drivers, or costs and unmatched")
    for name in others:
        if name in said:
            raise invalid(f"/{name}", f"does not go with {mine[0]}: rides and drivers, or costs and unmatched")
