"""What else one would find the nearest drivers with: Redis, Tile38, PostGIS; numpy and scipy for orientation.

Each answers a list of places with the ids of the drivers that it finds, nearest first. Servers are spoken to over one
connection with sixteen questions in flight at least, encoded beforehand, and while they are timed their answers are
only counted, so that none is slowed down by a client in Python.
"""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nearest_fleet import Fleet, Queries
from benchmarks.servers import ServerMissing, die_with_session, free_port, wait_until
from benchmarks.service_child import NotStarted
from geo.distance import sphere_points_m

IN_FLIGHT = 16
RADIUS_KM = 3
ANSWER_S_MAX = 120.0
START_S_MAX = 30.0
KEY = "fleet"
_LOADED_AT_ONCE = 500
_MARK = b"*2\r\n$4\r\nECHO\r\n$7\r\nthe-end\r\n"
_MARKED = b"$7\r\nthe-end\r\n"


def command(*words: str) -> bytes:
    """A command in RESP, the protocol of Redis and Tile38."""
    parts = [word.encode() for word in words]
    return b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)])


class Incomplete(Exception):
    """More bytes are needed."""


def reply_at(data: bytes, at: int) -> tuple[Any, int]:
    """The RESP2 reply that begins there, and where it ends. Raises Incomplete; ValueError for an error's reply."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, head, after = data[at : at + 1], data[at + 1 : end], end + 2
    if kind == b"$":
        return _text_at(data, int(head), after)
    if kind == b"*":
        return _list_at(data, int(head), after)
    if kind == b":":
        return int(head), after
    if kind == b"+":
        return head.decode(), after
    raise ValueError((head if kind == b"-" else data[at : end + 2]).decode(errors="replace"))


def _text_at(data: bytes, size: int, at: int) -> tuple[str | None, int]:
    if size < 0:
        return None, at
    if len(data) < at + size + 2:
        raise Incomplete
    return data[at : at + size].decode(), at + size + 2


def _list_at(data: bytes, size: int, at: int) -> tuple[list[Any], int]:
    found = []
    for _ in range(size):
        each, at = reply_at(data, at)
        found.append(each)
    return found, at


class Wire:
    """One connection to a server that speaks RESP."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=ANSWER_S_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def replies(self, commands: Sequence[bytes]) -> list[Any]:
        """All replies, IN_FLIGHT commands at a time. Raises ValueError for an error's reply."""
        found: list[Any] = []
        for some in _groups(commands, IN_FLIGHT):
            self._socket.sendall(b"".join(some))
            data, wanted = b"", len(found) + len(some)
            at = 0
            while len(found) < wanted:
                try:
                    each, at = reply_at(data, at)
                    found.append(each)
                except Incomplete:
                    data += self._received()
        return found

    def wall_s(self, groups: Sequence[bytes]) -> float:
        """Until all of these groups of commands are answered; each ends with the mark.

        The next group is sent before the one ahead of it is answered: the server never waits for this client.
        """
        began_s = time.perf_counter()
        sent = answered = 0
        tail = b""
        while answered < len(groups):
            for group in groups[sent : answered + 2]:
                self._socket.sendall(group)
                sent += 1
            data = tail + self._received()
            answered += data.count(_MARKED)
            tail = data[-(len(_MARKED) - 1) :]
        return time.perf_counter() - began_s

    def _received(self) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


def marked_groups(commands: Sequence[bytes], mark: bytes = _MARK) -> list[bytes]:
    """IN_FLIGHT commands each, ready to be sent, with the mark that tells that all before it are answered."""
    return [b"".join(some) + mark for some in _groups(commands, IN_FLIGHT)]


def _groups(commands: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for begin in range(0, len(commands), size):
        yield commands[begin : begin + size]


# Redis


def redis_load(fleet: Fleet) -> list[bytes]:
    rows = list(zip(fleet.ids, fleet.lat.tolist(), fleet.lon.tolist(), strict=True))
    return [
        command("GEOADD", KEY, *(word for name, lat, lon in some for word in (repr(lon), repr(lat), name)))
        for some in (rows[begin : begin + _LOADED_AT_ONCE] for begin in range(0, len(rows), _LOADED_AT_ONCE))
    ]


def redis_questions(queries: Queries, k: int) -> list[bytes]:
    return [
        command(
            *("GEOSEARCH", KEY, "FROMLONLAT", repr(each.lon), repr(each.lat)),
            *("BYRADIUS", str(RADIUS_KM), "km", "ASC", "COUNT", str(k)),
        )
        for each in queries.points
    ]


# Tile38


def tile38_load(fleet: Fleet) -> list[bytes]:
    places = zip(fleet.ids, fleet.lat.tolist(), fleet.lon.tolist(), strict=True)
    return [command("SET", KEY, name, "POINT", repr(lat), repr(lon)) for name, lat, lon in places]


def tile38_questions(queries: Queries, k: int) -> list[bytes]:
    """Ids alone: the shortest answer that it can give."""
    return [
        command("NEARBY", KEY, "LIMIT", str(k), "IDS", "POINT", repr(each.lat), repr(each.lon))
        for each in queries.points
    ]


def tile38_ids(reply: Any) -> list[str]:
    """Of a reply to NEARBY ... IDS: a cursor and the ids. Raises ValueError for another form."""
    if not (isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], list)):
        raise ValueError(f"not an answer to NEARBY: {reply!r:.200}")
    return [str(each) for each in reply[1]]


class Tile38:
    """`tile38-server` of the PATH, in a temporary folder; or one that runs already, at "host:port"."""

    def __init__(self, address: str | None) -> None:
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if address is not None:
            host, _, port = address.rpartition(":")
            if not port.isdigit():
                raise NotStarted(f"--tile38 is HOST:PORT, not {address}")
            self.host, self.port = host or "127.0.0.1", int(port)
            if not self._answers():
                raise NotStarted(f"no Tile38 answers at {self.host}:{self.port}")
            return
        program = shutil.which("tile38-server")
        if program is None:
            raise ServerMissing("tile38-server is not on the PATH")
        self.host, self.port, self._folder = "127.0.0.1", free_port(), Path(tempfile.mkdtemp(prefix="hexhail-tile38-"))
        words = [program, "-h", self.host, "-p", str(self.port), "-d", str(self._folder), "--appendonly", "no"]
        self._process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_session()
        )
        try:
            wait_until(self._answers, within_s=START_S_MAX, what="tile38-server answers")
        except BaseException as error:
            self.stop()
            if isinstance(error, TimeoutError):
                raise NotStarted(str(error)) from None
            raise

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _answers(self) -> bool:
        try:
            wire = Wire(self.host, self.port)
        except OSError:
            return False
        wire.close()
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


# PostGIS


class PostGis:
    """A temporary table of geographies with a GiST index, asked over one connection, one question after another."""

    def __init__(self, dsn: str, fleet: Fleet) -> None:
        try:
            psycopg = importlib.import_module("psycopg")
        except ModuleNotFoundError:
            raise ServerMissing("--postgis needs the package psycopg: pip install 'psycopg[binary]'") from None
        try:
            self._connection: Any = psycopg.connect(dsn, autocommit=True)
        except psycopg.Error as error:
            raise NotStarted(f"no PostgreSQL: {error}") from None
        self._connection.execute("CREATE TEMP TABLE hexhail_fleet (id text, at geography(Point, 4326))")
        with self._connection.cursor().copy("COPY hexhail_fleet (id, at) FROM STDIN") as copy:
            for name, lat, lon in zip(fleet.ids, fleet.lat.tolist(), fleet.lon.tolist(), strict=True):
                copy.write_row((name, f"SRID=4326;POINT({lon!r} {lat!r})"))
        self._connection.execute("CREATE INDEX ON hexhail_fleet USING gist (at)")
        self._connection.execute("ANALYZE hexhail_fleet")

    def ids(self, queries: Queries, k: int) -> list[list[str]]:
        ask = "SELECT id FROM hexhail_fleet ORDER BY at <-> ST_MakePoint(%s, %s)::geography LIMIT %s"
        execute: Callable[..., Any] = self._connection.execute
        return [
            [row[0] for row in execute(ask, (each.lon, each.lat, k), prepare=True).fetchall()]
            for each in queries.points
        ]

    def close(self) -> None:
        self._connection.close()


# In this process, without ids that change, updates, freshness or kinds


class BruteForce:
    """All distances of each place, in numpy."""

    def __init__(self, fleet: Fleet, may: Any = None) -> None:
        self._numbers = np.arange(len(fleet)) if may is None else np.flatnonzero(may)
        self._places = sphere_points_m(fleet.lat[self._numbers], fleet.lon[self._numbers])

    def numbers(self, queries: Queries, k: int) -> list[list[int]]:
        found = []
        for place in sphere_points_m(queries.lat, queries.lon):
            squared = np.square(self._places - place).sum(axis=1)
            near = (
                np.argpartition(squared, min(k, len(squared) - 1))[:k] if len(squared) > k else np.arange(len(squared))
            )
            found.append(self._numbers[near[np.argsort(squared[near])]].tolist())
        return found


class Tree:
    """scipy's k-d tree over places on the sphere, built once."""

    def __init__(self, fleet: Fleet) -> None:
        from scipy.spatial import cKDTree

        self._tree = cKDTree(sphere_points_m(fleet.lat, fleet.lon))

    def numbers(self, queries: Queries, k: int) -> list[list[int]]:
        _, found = self._tree.query(sphere_points_m(queries.lat, queries.lon), k)
        numbers: list[list[int]] = np.asarray(found).tolist()
        return numbers

    def ask_all(self, places: Any, k: int) -> None:
        self._tree.query(places, k)

    def ask_each(self, places: Any, k: int) -> None:
        for place in places:
            self._tree.query(place, k)
