"""Reads recorded cities: CSV files of rides, drivers and tracks, gzipped or not.

A row that cannot be used is counted with its reason and never stops a run; a
file that lacks a column, or is no file at all, raises RecordsError. Times are
ISO 8601 (without a zone: taken as UTC, only differences matter) or unix
seconds; they come back as unix seconds until `rebase` puts them on a city's
clock.
"""

from __future__ import annotations

import csv
import gzip
import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TypeVar

from benchmarks.cities import Start, Track, Wish
from geo.model import DriverId, LatLng

RIDE_COLUMNS = ("requested_at", "pickup_lat", "pickup_lon", "dropoff_lat", "dropoff_lon", "seats")
DRIVER_COLUMNS = ("seen_at", "lat", "lon", "driver_id", "seats")
POSITION_COLUMNS = ("at", "driver_id", "lat", "lon")
#: Kept with its line and reason; the rest are only counted.
EXAMPLES_MAX = 20
SEATS_MAX = 64
_TRUE = frozenset({"1", "true", "t", "yes", "y"})
_FALSE = frozenset({"0", "false", "f", "no", "n", ""})

T = TypeVar("T")


class RecordsError(Exception):
    """The file as a whole cannot be read; the text says why and what it should look like."""


class BadRow(Exception):
    """This row cannot be used; the text is the reason, the same for rows of the same kind."""


@dataclass(slots=True)
class Rejects:
    """How many rows were left out, why, and the first few by file and line."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, path: Path, line: int, reason: str) -> None:
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{path.name}:{line}: {reason}")

    @property
    def total(self) -> int:
        return self.reasons.total()


def read_rides(path: Path, rejects: Rejects) -> list[Wish]:
    """All usable rides in the order of their times (unix seconds)."""
    wishes = list(_rows(path, RIDE_COLUMNS, _wish, rejects))
    return sorted(wishes, key=lambda wish: wish.at_s)


def read_drivers(path: Path, rejects: Rejects) -> list[Start]:
    """All usable drivers in the order of their times; a driver's later rows are rejected."""
    seen: set[DriverId] = set()

    def start(row: Mapping[str, str]) -> Start:
        made = _start(row)
        if made.driver_id in seen:
            raise BadRow("driver_id stands in an earlier row")
        seen.add(made.driver_id)
        return made

    return sorted(_rows(path, DRIVER_COLUMNS, start, rejects), key=lambda item: item.at_s)


def read_positions(path: Path, rejects: Rejects) -> list[Track]:
    """One track a driver, each in the order of its times; a second point of one time is rejected."""
    points: dict[DriverId, dict[float, tuple[float, float, bool]]] = {}

    def point(row: Mapping[str, str]) -> None:
        at_s, driver_id = _time(row, "at"), _driver_id(row)
        place = _place(row, "lat", "lon")
        track = points.setdefault(driver_id, {})
        if at_s in track:
            raise BadRow("the driver's second point of the same time")
        track[at_s] = (place.lat, place.lon, _flag(row, "occupied"))

    for _ in _rows(path, POSITION_COLUMNS, point, rejects):
        pass
    return [_track(driver_id, points[driver_id]) for driver_id in sorted(points)]


def spread_minutes(at_s: Iterable[float], rng: random.Random) -> list[float]:
    """Times on a full minute moved to an even random second of it; all others as they are.

    Meters round to the minute, and a whole minute's rides at one instant would
    be a burst that nobody ever saw.
    """
    return [at + rng.uniform(0.0, 60.0) if at % 60.0 == 0.0 else at for at in at_s]


def spread_wishes(wishes: list[Wish], rng: random.Random) -> list[Wish]:
    spread = spread_minutes((wish.at_s for wish in wishes), rng)
    moved = (replace(wish, at_s=at_s) for wish, at_s in zip(wishes, spread, strict=True))
    return sorted(moved, key=lambda wish: wish.at_s)


def spread_starts(starts: list[Start], rng: random.Random) -> list[Start]:
    spread = spread_minutes((start.at_s for start in starts), rng)
    moved = (replace(start, at_s=at_s) for start, at_s in zip(starts, spread, strict=True))
    return sorted(moved, key=lambda start: start.at_s)


def rebase_wishes(wishes: list[Wish], zero_s: float) -> list[Wish]:
    return [replace(wish, at_s=wish.at_s - zero_s) for wish in wishes]


def rebase_starts(starts: list[Start], zero_s: float) -> list[Start]:
    """Who appeared before `zero_s` is there from the start."""
    return [replace(start, at_s=max(0.0, start.at_s - zero_s)) for start in starts]


def rebase_tracks(tracks: list[Track], zero_s: float) -> list[Track]:
    """Times from `zero_s`; what lies before it stays negative, for the driver's place at the start."""
    return [replace(track, at_s=[at - zero_s for at in track.at_s]) for track in tracks]


def _rows(
    path: Path, columns: tuple[str, ...], make: Callable[[Mapping[str, str]], T], rejects: Rejects
) -> Iterator[T]:
    with _open(path) as file:
        reader = csv.reader(file)
        header = _header(path, reader, columns)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                rejects.add(path, reader.line_num, f"no CSV row: {error}")
                continue
            except (EOFError, OSError, zlib.error) as error:
                rejects.add(path, reader.line_num + 1, f"the file breaks off: {error}")
                return
            if not cells:
                continue
            try:
                made = make(dict(zip(header, cells, strict=False)))
            except BadRow as bad:
                rejects.add(path, reader.line_num, str(bad))
                continue
            yield made


def _open(path: Path) -> IO[str]:
    """Told apart by gzip's first two bytes, not by name."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        if zipped:
            return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
        return path.open("r", encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise RecordsError(f"cannot read {path}: {error.strerror}") from error


def _header(path: Path, reader: Iterator[list[str]], columns: tuple[str, ...]) -> list[str]:
    try:
        header = [name.strip().lower() for name in next(reader, [])]
    except (csv.Error, EOFError, OSError, zlib.error) as error:
        raise RecordsError(f"cannot read {path}: {error}") from error
    missing = [name for name in columns if name not in header]
    if missing:
        raise RecordsError(f"{path} has no column {', '.join(missing)}; its first line must name {', '.join(columns)}")
    return header


def _wish(row: Mapping[str, str]) -> Wish:
    return Wish(
        at_s=_time(row, "requested_at"),
        pickup=_place(row, "pickup_lat", "pickup_lon"),
        dropoff=_place(row, "dropoff_lat", "dropoff_lon"),
        seats=_seats(row),
    )


def _start(row: Mapping[str, str]) -> Start:
    return Start(_time(row, "seen_at"), _driver_id(row), _place(row, "lat", "lon"), _seats(row))


def _track(driver_id: DriverId, points: Mapping[float, tuple[float, float, bool]]) -> Track:
    times = sorted(points)
    rows = [points[at] for at in times]
    return Track(driver_id, times, [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])


def _text(row: Mapping[str, str], name: str) -> str:
    text = row.get(name, "").strip()
    if not text:
        raise BadRow(f"{name} is empty")
    return text


def _number(row: Mapping[str, str], name: str) -> float:
    try:
        value = float(_text(row, name))
    except ValueError:
        raise BadRow(f"{name} is not a number") from None
    if not math.isfinite(value):
        raise BadRow(f"{name} is not finite")
    return value


def _time(row: Mapping[str, str], name: str) -> float:
    text = _text(row, name)
    try:
        return _unix_seconds(text)
    except (ValueError, OverflowError):
        raise BadRow(f"{name} is neither an ISO 8601 time nor unix seconds") from None


def _unix_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not (math.isfinite(value) and 0 <= value < 1e11):  # beyond it stand milliseconds
        raise ValueError(text)
    return value


def _place(row: Mapping[str, str], lat_name: str, lon_name: str) -> LatLng:
    lat, lon = _number(row, lat_name), _number(row, lon_name)
    if lat == 0.0 and lon == 0.0:
        raise BadRow(f"{lat_name}, {lon_name} are 0, 0: a device without a fix")
    if not -90.0 <= lat <= 90.0:
        raise BadRow(f"{lat_name} is not within [-90, 90]")
    if not -180.0 <= lon <= 180.0:
        raise BadRow(f"{lon_name} is not within [-180, 180]")
    return LatLng(lat, lon)


def _seats(row: Mapping[str, str]) -> int:
    value = _number(row, "seats")
    if value != int(value) or not 1 <= value <= SEATS_MAX:
        raise BadRow(f"seats is not a whole number from 1 to {SEATS_MAX}")
    return int(value)


def _driver_id(row: Mapping[str, str]) -> DriverId:
    text = _text(row, "driver_id")
    if len(text) > 48 or not all(char.isascii() and (char.isalnum() or char in "-_.") for char in text):
        raise BadRow("driver_id is not of at most 48 letters, digits, '-', '_' and '.'")
    return DriverId(text)


def _flag(row: Mapping[str, str], name: str) -> bool:
    text = row.get(name, "").strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise BadRow(f"{name} is neither true nor false")
