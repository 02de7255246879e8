"""Travel times between pairs of places: straight lines, or the tables of an OSRM or Valhalla server.

A provider that is slow, wrong or gone is an expected thing here: its pairs get
straight lines in place of its answer, marked as estimated and with the reason,
and a circuit breaker leaves it alone for a while. Everything that could grow has
a bound (P10). The formats are those of OSRM's
table service (v1) and of Valhalla's sources_to_targets. Who is assigned to
whom, and what a second costs, is not known here.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol
from urllib.parse import quote, urlsplit

import aiohttp
import numpy as np

from geo.breaker import BreakerState, CircuitBreaker
from geo.distance import distance_m
from geo.legs import Floats, Ints, Legs, Table, TableLimits, Times, tables_of

__all__ = [
    "Bounds",
    "BreakerState",
    "CircuitBreaker",
    "Legs",
    "Osrm",
    "StraightLine",
    "Times",
    "TravelTimes",
    "Valhalla",
]

#: Digits of a degree that are sent: six are 11 cm.
DEGREE_DECIMALS: Final = 6
#: How many different reasons a fallback names.
_REASONS_MAX: Final = 3


class TravelTimes(Protocol):
    """Where travel times come from. `times` never raises for a provider that fails."""

    name: str

    async def times(self, legs: Legs) -> Times: ...

    async def close(self) -> None: ...


class StraightLine:
    """The great circle at an even pace of `s_per_m`. Raises ValueError for a pace that is not a positive number."""

    name = "straight_line"

    def __init__(self, s_per_m: float) -> None:
        if not (math.isfinite(s_per_m) and s_per_m > 0.0):
            raise ValueError(f"s_per_m is {s_per_m!r}, not a positive number of seconds a metre")
        self._s_per_m = s_per_m

    def seconds(self, legs: Legs) -> Floats:
        origin, target = legs.origin, legs.target
        return self._s_per_m * distance_m(
            legs.origin_lat[origin], legs.origin_lon[origin], legs.target_lat[target], legs.target_lon[target]
        )

    async def times(self, legs: Legs) -> Times:
        return Times(self.seconds(legs), np.zeros(len(legs), dtype=np.bool_), None)

    async def close(self) -> None:
        pass


# Asking a server


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how much a client asks.

    `timeout_s` bounds a table from connecting to its last byte, `connect_timeout_s` its connecting alone. After
    `call_s_max` a call sends nothing more, so that it ends within `call_s_max + timeout_s`. `concurrency` tables
    are under way at once, over all calls; of a call at most `pairs_max` pairs are asked for.
    """

    timeout_s: float = 2.0
    connect_timeout_s: float = 0.5
    call_s_max: float = 5.0
    concurrency: int = 8
    answer_bytes_max: int = 8 * 2**20
    pairs_max: int = 50_000

    def __post_init__(self) -> None:
        limits = (self.timeout_s, self.connect_timeout_s, self.call_s_max, self.concurrency, self.answer_bytes_max)
        if not all(limit > 0 for limit in limits) or self.pairs_max < 0:
            raise ValueError("a time-out, a limit or the concurrency is not positive")


class _Fault(Exception):
    """A table without answer: which kind of failure, and why in words that name no address."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


#: The kind of failure that is about the question: the provider is well and says so in its own format.
_REFUSED: Final = "refused"

#: Method, URL, and the JSON to send if any.
_Question = tuple[str, str, object]
_Degrees = list[tuple[float, float]]


class _TableClient(ABC):
    """What OSRM and Valhalla have in common: tables over HTTP, within bounds, with straight lines to fall back on.

    Counts what it did: pairs asked for by callers, of these answered by the provider and estimated, and failed
    tables by kind (timeout, connect, cut, http, refused, oversize, malformed). Close it in the loop that used it.
    """

    name: str
    #: Codes of errors that say that none of the table's pairs has a way.
    _no_way_codes: frozenset[str]

    def __init__(
        self,
        base_url: str,
        *,
        straight: StraightLine,
        limits: TableLimits,
        bounds: Bounds,
        breaker: CircuitBreaker | None,
        now_s: Callable[[], float],
    ) -> None:
        self._base_url = _checked_url(base_url)
        self._straight = straight
        self._limits = limits
        self._bounds = bounds
        self._breaker = breaker or CircuitBreaker()
        self._now_s = now_s
        self._slots = asyncio.Semaphore(bounds.concurrency)
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False
        self._last_failure = ""
        self.asked_pairs = 0
        self.answered_pairs = 0
        self.estimated_pairs = 0
        self.failures: Counter[str] = Counter()

    @property
    def state(self) -> BreakerState:
        return self._breaker.state(self._now_s())

    async def times(self, legs: Legs) -> Times:
        """The provider's times, and straight lines where it gave none."""
        seconds, estimated = self._straight.seconds(legs), np.ones(len(legs), dtype=np.bool_)
        most = self._bounds.pairs_max
        reasons: Counter[str] = Counter()
        if len(legs) > most:
            reasons[f"a call asks for at most {most} pairs"] = len(legs) - most
        tables = tables_of(legs.origin[:most], legs.target[:most], self._limits)
        for table, answer in zip(tables, await self._ask_all(legs, tables), strict=True):
            if isinstance(answer, str):
                reasons[answer] += len(table.pair)
            else:
                seconds[table.pair], estimated[table.pair] = answer, False
        self.asked_pairs += len(legs)
        self.estimated_pairs += int(estimated.sum())
        self.answered_pairs += len(legs) - int(estimated.sum())
        return Times(seconds, estimated, self._in_words(reasons))

    async def close(self) -> None:
        """Ends what is under way; whoever asks later gets straight lines."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    def _in_words(self, reasons: Counter[str]) -> str | None:
        parts = [f"{reason} ({pairs} pairs)" for reason, pairs in reasons.most_common(_REASONS_MAX)]
        if len(reasons) > _REASONS_MAX:
            parts.append("and other reasons")
        return f"{self.name}: {'; '.join(parts)}" if parts else None

    async def _ask_all(self, legs: Legs, tables: list[Table]) -> list[Floats | str]:
        ends_at_s = asyncio.get_running_loop().time() + self._bounds.call_s_max
        # One goes ahead where it is to be the probe: if the provider is well again, the others need not miss it.
        ahead = 0 if self.state is BreakerState.CLOSED else 1
        answers = [await self._ask(legs, table, ends_at_s) for table in tables[:ahead]]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask(legs, table, ends_at_s)) for table in tables[ahead:]]
        return [*answers, *(task.result() for task in tasks)]

    async def _ask(self, legs: Legs, table: Table, ends_at_s: float) -> Floats | str:
        """The seconds of the table's pairs, or why there are none."""
        async with self._slots:
            if self._is_closed:
                return "not asked: closed"
            if asyncio.get_running_loop().time() > ends_at_s:
                return f"not asked: the call took longer than {self._bounds.call_s_max:g} s"
            round_ = self._breaker.admit(self._now_s())
            if round_ is None:
                return f"not asked after several failures, the last: {self._last_failure}"
            try:
                seconds = await self._exchange(legs, table)
            except _Fault as fault:
                self._note(fault, round_)
                return str(fault)
            except BaseException:
                self._breaker.withdrawn(round_)
                raise
            self._breaker.succeeded(round_)
            return seconds

    def _note(self, fault: _Fault, round_: int) -> None:
        self.failures[fault.kind] += 1
        if fault.kind == _REFUSED:
            # One place that cannot be snapped must not cost every other table its answer.
            self._breaker.succeeded(round_)
        else:
            self._last_failure = str(fault)
            self._breaker.failed(round_, self._now_s())

    async def _exchange(self, legs: Legs, table: Table) -> Floats:
        """Sends the table and reads its answer. Raises _Fault."""
        origins = _degrees(legs.origin_lat, legs.origin_lon, table.origins)
        targets = _degrees(legs.target_lat, legs.target_lon, table.targets)
        try:
            status, body = await self._fetch(*self._question(origins, targets))
        except aiohttp.ConnectionTimeoutError:
            raise _Fault("timeout", f"no connection within {self._bounds.connect_timeout_s:g} s") from None
        except TimeoutError:  # before ClientError: some of aiohttp's time-outs are both
            raise _Fault("timeout", f"no answer within {self._bounds.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _fault_of(error) from error
        answer = _decoded(body)
        if status == 200:
            return _matrix(self._rows(answer), len(origins), len(targets))[table.row, table.column]
        code = self._error_code(answer) if status == 400 else None
        if code in self._no_way_codes:
            return np.full(len(table.pair), np.inf)
        raise _Fault("http", f"HTTP {status}") if code is None else _Fault(_REFUSED, f"refused: {code}")

    async def _fetch(self, method: str, url: str, sent: object) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._bounds.concurrency),
                timeout=aiohttp.ClientTimeout(total=self._bounds.timeout_s, connect=self._bounds.connect_timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            )
        async with self._session.request(method, url, json=sent, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self._bounds.answer_bytes_max:
                    response.close()
                    raise _Fault("oversize", f"an answer of more than {self._bounds.answer_bytes_max} bytes")
            return response.status, bytes(body)

    @abstractmethod
    def _question(self, origins: _Degrees, targets: _Degrees) -> _Question:
        """What to send for a table of these places (latitude, longitude)."""

    @abstractmethod
    def _rows(self, answer: object) -> object:
        """Seconds (or None) by origin and target in an answer of status 200, not yet checked. Raises _Fault."""

    @abstractmethod
    def _error_code(self, answer: object) -> str | None:
        """The provider's own code in an answer of status 400; None where that is not its format."""


class Osrm(_TableClient):
    """OSRM's table service. `coordinates_max` is the server's `--max-table-size`, 100 unless set there.

    Raises ValueError for a base URL that is none and for limits that allow nothing.
    """

    name = "osrm"
    _no_way_codes = frozenset({"NoTable"})

    def __init__(
        self,
        base_url: str,
        profile: str = "driving",
        *,
        straight: StraightLine,
        coordinates_max: int = 100,
        bounds: Bounds = Bounds(),
        breaker: CircuitBreaker | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = TableLimits(coordinates_max, coordinates_max**2)
        super().__init__(base_url, straight=straight, limits=limits, bounds=bounds, breaker=breaker, now_s=now_s)
        self._service_url = f"{self._base_url}/table/v1/{quote(profile, safe='')}"

    def _question(self, origins: _Degrees, targets: _Degrees) -> _Question:
        # OSRM puts the longitude first.
        places = ";".join(f"{lon:.{DEGREE_DECIMALS}f},{lat:.{DEGREE_DECIMALS}f}" for lat, lon in (*origins, *targets))
        sources = ";".join(map(str, range(len(origins))))
        destinations = ";".join(map(str, range(len(origins), len(origins) + len(targets))))
        query = f"sources={sources}&destinations={destinations}&annotations=duration"
        return "GET", f"{self._service_url}/{places}?{query}", None

    def _rows(self, answer: object) -> object:
        if not isinstance(answer, dict) or answer.get("code") != "Ok":
            raise _Fault("malformed", "an answer that is not OSRM's")
        return answer.get("durations")

    def _error_code(self, answer: object) -> str | None:
        code = answer.get("code") if isinstance(answer, dict) else None
        return code[:40] if isinstance(code, str) else None


class Valhalla(_TableClient):
    """Valhalla's sources_to_targets.

    `location_pairs_max` is the server's `service_limits.<costing>.max_matrix_location_pairs`, 2500 unless set
    there. It bounds no places by themselves; older servers do (`max_matrix_locations`), which `locations_max`
    (sources and targets together) can respect. Raises ValueError as Osrm does.
    """

    name = "valhalla"
    _no_way_codes = frozenset({"442"})

    def __init__(
        self,
        base_url: str,
        costing: str = "auto",
        *,
        straight: StraightLine,
        location_pairs_max: int = 2_500,
        locations_max: int = 2_501,
        bounds: Bounds = Bounds(),
        breaker: CircuitBreaker | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = TableLimits(locations_max, location_pairs_max)
        super().__init__(base_url, straight=straight, limits=limits, bounds=bounds, breaker=breaker, now_s=now_s)
        self._costing = costing

    def _question(self, origins: _Degrees, targets: _Degrees) -> _Question:
        sources, targets_ = ([{"lat": lat, "lon": lon} for lat, lon in places] for places in (origins, targets))
        # Servers that don't know `verbose: false` answer at length; both are read.
        sent = {"sources": sources, "targets": targets_, "costing": self._costing, "verbose": False}
        return "POST", f"{self._base_url}/sources_to_targets", sent

    def _rows(self, answer: object) -> object:
        match answer:
            case {"sources_to_targets": {"durations": rows}}:
                return rows
            case {"sources_to_targets": [*rows]}:
                try:
                    return [[cell["time"] for cell in row] for row in rows]
                except (TypeError, KeyError, IndexError):
                    raise _Fault("malformed", "a table without times") from None
        raise _Fault("malformed", "an answer that is not Valhalla's")

    def _error_code(self, answer: object) -> str | None:
        code = answer.get("error_code") if isinstance(answer, dict) else None
        return str(code) if type(code) is int and 0 <= code < 10_000 else None


def _checked_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    is_port = parts.port is None or parts.port > 0  # reading it raises ValueError where it is no number
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_port or parts.query or parts.fragment:
        raise ValueError("base_url is not of the form http://host:port/path")
    return base_url.rstrip("/")


def _degrees(lat: Floats, lon: Floats, places: Ints) -> _Degrees:
    columns = (np.round(column[places], DEGREE_DECIMALS).tolist() for column in (lat, lon))
    return list(zip(*columns, strict=True))


def _fault_of(error: aiohttp.ClientError | OSError) -> _Fault:
    """In words of our own: the library's name the address, which may hold credentials."""
    if isinstance(error, aiohttp.ClientConnectorError):
        errno = getattr(getattr(error, "os_error", None), "errno", None)  # a bad certificate has no os_error
        why = os.strerror(errno) if isinstance(errno, int) and errno > 0 else type(error).__name__
        return _Fault("connect", f"cannot connect: {why}")
    if isinstance(error, aiohttp.ClientResponseError):
        return _Fault("malformed", "an answer that is not HTTP")
    return _Fault("cut", f"the connection broke: {type(error).__name__}")


def _decoded(body: bytes) -> object:
    """The JSON value, or None where it is none; NaN and infinities, which Python would read, are none."""
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _matrix(rows: object, origins: int, targets: int) -> Floats:
    """Seconds as (origins, targets), inf where the provider knows no way. Raises _Fault for anything else."""
    wrong = _Fault("malformed", f"not a table of {origins} x {targets} times")
    if not isinstance(rows, list) or len(rows) != origins:
        raise wrong
    if not all(isinstance(row, list) and len(row) == targets for row in rows):
        raise wrong
    if not all(type(cell) in (int, float, type(None)) for row in rows for cell in row):
        raise wrong
    try:
        seconds = np.array(rows, dtype=np.float64)  # None, no way, becomes NaN
    except OverflowError:
        raise wrong from None
    if np.isinf(seconds).any() or (seconds < 0.0).any():
        raise wrong
    return np.where(np.isnan(seconds), np.inf, seconds)
