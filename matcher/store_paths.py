"""Where trips went: the parts of their paths, as the sessions of their drivers wrote them.

A part's key is (trip, epoch of the session, number), so that writing it again changes nothing, and a session that was
superseded may still say where it drove (P7 needs no check here: nobody else writes under its epoch). Paths are
telemetry: a lost part costs the bends of its way, for its ends are joined by a straight line. Rows are kept for good,
and hold up to 5 KB each.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import sqlalchemy as sa

from geo.distance import between_m
from geo.model import LatLng
from matcher.database import Database
from matcher.model import TripId
from matcher.sessions import Conflict, Session, Unstorable, rows_of
from matcher.statement import Params, Row, Statement
from matcher.store_rides import NOW
from matcher.store_rows import can_be_id
from matcher.tables import trip_paths

#: Parts in one transaction.
CHUNK = 500
#: Parts that are read of a trip; a trip of four hours has some 250.
PARTS_MAX = 1000
#: Points of a whole path.
POINTS_MAX = 2000
#: A shorter gap between two parts is no way that was driven.
GAP_M = 10.0
_ID_BYTES_MAX = 32

Point = tuple[float, float]

INSERT_PART = Statement(trip_paths.insert())
READ_PARTS = Statement(
    sa.select(trip_paths.c.distance_m, trip_paths.c.points)
    .where(trip_paths.c.trip_id == sa.bindparam("trip_id"))
    .order_by(trip_paths.c.epoch, trip_paths.c.part)
    .limit(PARTS_MAX)
)


@dataclass(frozen=True, slots=True)
class PathPart:
    """One part of a trip's path; `points` are (lat, lon) in order, at least one."""

    trip_id: TripId
    epoch: int
    part: int
    distance_m: float
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class TripPath:
    """What was driven of a trip so far; `points` are (lat, lon) in order, POINTS_MAX of them at most."""

    distance_m: float
    points: Sequence[Point]


async def put(database: Database, parts: Sequence[PathPart]) -> int:
    """Writes them, those left out that stand already; how many no database could hold.

    Raises StoreUnavailable, and then some may have been written: all of them may be put again.
    """
    refused = 0
    for start in range(0, len(parts), CHUNK):
        chunk = parts[start : start + CHUNK]
        try:
            await database.write(partial(_insert, parts=chunk))
        except (Conflict, Unstorable):
            refused += await _one_by_one(database, chunk)
    return refused


async def _one_by_one(database: Database, parts: Sequence[PathPart]) -> int:
    refused = 0
    for part in parts:
        try:
            await database.write(partial(_insert, parts=[part]))
        except Conflict:
            pass  # it stands: the answer to an earlier attempt was lost
        except Unstorable:
            refused += 1
    return refused


async def _insert(session: Session, parts: Sequence[PathPart]) -> None:
    at_ms = (await rows_of(session, NOW()))[0][0]
    await session.insert(INSERT_PART, [_row(part, at_ms) for part in parts])


def _row(part: PathPart, at_ms: int) -> Params:
    if not can_be_id(part.trip_id, _ID_BYTES_MAX):
        raise Unstorable(f"{part.trip_id[:20]!r} is no trip's id")
    try:
        points = json.dumps(part.points, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise Unstorable(f"points: {error}") from error
    return {
        "trip_id": part.trip_id,
        "epoch": part.epoch,
        "part": part.part,
        "distance_m": part.distance_m,
        "points": points,
        "at_ms": at_ms,
    }


async def read(database: Database, trip_id: TripId) -> TripPath | None:
    """None while nothing was written of it."""
    if not can_be_id(trip_id):
        return None
    rows = await database.read(lambda session: rows_of(session, READ_PARTS(trip_id=trip_id)))
    # In a thread, for the longest path is megabytes of JSON.
    return await asyncio.to_thread(joined, rows) if rows else None


def joined(rows: Sequence[Row]) -> TripPath:
    """Parts (distance_m, points as JSON) in their order as one path; at least one."""
    distance_m = 0.0
    points: list[Point] = []
    for part_m, text in rows:
        part: list[Point] = [(lat, lon) for lat, lon in json.loads(text)]
        distance_m += part_m + (_gap_m(points[-1], part[0]) if points else 0.0)
        points += part[1:] if points and points[-1] == part[0] else part
    return TripPath(distance_m, evenly(points, POINTS_MAX))


def _gap_m(end: Point, start: Point) -> float:
    """The way between two parts: none within a session, else what was driven while the driver had no socket."""
    gap_m = 0.0 if end == start else between_m(LatLng(*end), LatLng(*start))
    return gap_m if gap_m >= GAP_M else 0.0


def evenly(points: Sequence[Point], most: int) -> Sequence[Point]:
    """At most that many (two or more) of the points: the first, the last, and evenly from those between."""
    if len(points) <= most:
        return points
    step = (len(points) - 1) / (most - 1)
    return [points[round(i * step)] for i in range(most)]
