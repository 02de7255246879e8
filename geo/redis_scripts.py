"""The feed's keys and scripts in Redis: this module alone knows their names and layouts.

Every key begins `hexhail:{<market>}:<layout>:`. The market is the hash tag, so
a market is one slot of a Redis Cluster and one script may touch all of it. The
layout names the record's version and the H3 resolution: processes that pack
positions otherwise do not read each other's during a deploy. What an older
layout leaves behind is removed by FLUSHALL, which is harmless at any time (P9).

| key           | type   | holds                                                                    |
|---------------|--------|--------------------------------------------------------------------------|
| `meta`        | hash   | `generation`, `n` (number of the last batch), `token` (of the last batch) |
| `cell:<h3>`   | hash   | driver id -> RECORD (geo/records.py); a driver stands in one cell (P6)    |
| `where`       | hash   | driver id -> stamp (3 doubles) + cell (8 bytes): live; stamp alone: removed |
| `gone`        | zset   | removed drivers by the time of removal: tombstones, forgotten after a while |
| `cells`       | set    | names of the cells that are not empty                                    |
| `stream`      | stream | the batches, entry `<n>-1`, of bounded length                            |

A batch in the stream carries (`chain`) its generation, its own random token and
the token of the batch before it; `ids` (msgpack) and `records`, side by side;
and where drivers were removed, `removed` and `stamps`. So a replica notices a flush (another generation), a
hole (n skips) and a fail-over to an older state that went on differently (the
chain of tokens breaks, or n falls back).

The scripts are `publish_positions.lua` (atomic; the only writer) and
`read_cells.lua`. They make the cells' keys themselves from a prefix with the
market's tag: Redis asks that a script's keys be declared, and in a cluster
insists that they share a slot; the second holds here, the first cannot, as only
the script knows which cell a driver leaves. Redis should not evict
(`maxmemory-policy noeviction`): an evicted `meta` is healed as a new generation,
an evicted `where` or `cells` by a flush only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from geo.model import DriverId, MarketId, Removal, Stamp
from geo.records import RECORD, PositionBatch
from geo.redis_link import Script
from geo.replica import NOTHING, Head, SequencedBatch

#: Raised with every change of RECORD or of what the keys hold.
LAYOUT_VERSION = 2
_IDS = msgspec.msgpack.Decoder(list[DriverId])
_STAMP = np.dtype([("epoch", "<f8"), ("instance", "<f8"), ("seq", "<f8")])


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of one market's keys."""

    meta: bytes
    where: bytes
    gone: bytes
    cells: bytes
    stream: bytes
    cell_prefix: bytes

    @classmethod
    def of(cls, market: MarketId, resolution: int) -> Keys:
        """Raises ValueError for a market whose name cannot be a hash tag."""
        if not market or "{" in market or "}" in market:
            raise ValueError(f"market {market!r} cannot be a Redis hash tag: empty, or with a brace")
        base = f"hexhail:{{{market}}}:v{LAYOUT_VERSION}r{resolution}:".encode()
        names = (base + name for name in (b"meta", b"where", b"gone", b"cells", b"stream", b"cell:"))
        return cls(*names)


@dataclass(frozen=True, slots=True)
class Scripts:
    publish: Script
    read_cells: Script

    @classmethod
    def load(cls) -> Scripts:
        return cls(Script.load("geo", "publish_positions.lua"), Script.load("geo", "read_cells.lua"))


def publish_call(
    keys: Keys,
    batch: PositionBatch,
    *,
    new_generation: str,
    token: str,
    sent_ms: int | None,
    stream_length_max: int,
    tombstone_ms: int,
) -> tuple[list[bytes], list[bytes | int]]:
    """Keys and arguments of `publish_positions.lua`; `batch` is packed for time 0, so that fix_ms is minus the age."""
    removals = batch.removals
    return [keys.meta, keys.where, keys.gone, keys.cells, keys.stream], [
        keys.cell_prefix,
        new_generation.encode(),
        token.encode(),
        b"" if sent_ms is None else sent_ms,
        stream_length_max,
        tombstone_ms,
        _pack_ids(batch.ids),
        batch.records.tobytes(),
        _pack_ids([removal.driver_id for removal in removals]),
        _pack_stamps([removal.stamp for removal in removals]),
    ]


@dataclass(frozen=True, slots=True)
class PublishReply:
    now_ms: int
    applied: int
    outdated: tuple[DriverId, ...]


def read_publish_reply(reply: Any, part: PositionBatch) -> PublishReply:
    _generation, _n, now_ms, applied, outdated = reply
    many = len(part.ids)
    ids = (part.ids[i] if i < many else part.removals[i - many].driver_id for i in outdated)
    return PublishReply(int(now_ms), int(applied), tuple(dict.fromkeys(ids)))


def read_head(fields: Sequence[bytes | None]) -> Head:
    """The head from HMGET meta generation n token; NOTHING where there is none."""
    generation, n, token = fields
    if generation is None or n is None or token is None:
        return NOTHING
    return Head(generation.decode(), int(n), token.decode())


def read_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> SequencedBatch:
    """One entry of the stream: its place in the chain, and what it says. Raises KeyError, ValueError for another's."""
    generation, token, previous = fields[b"chain"].decode().split(" ")
    head = Head(generation, int(entry_id.partition(b"-")[0]), token)
    removals = _read_removals(fields[b"removed"], fields[b"stamps"]) if b"removed" in fields else []
    batch = PositionBatch(unpack_ids(fields[b"ids"]), np.frombuffer(fields[b"records"], RECORD), removals)
    if len(batch.ids) != len(batch.records):
        raise ValueError(f"{len(batch.ids)} ids came with {len(batch.records)} records")
    return SequencedBatch(head, previous, batch)


def _read_removals(ids: bytes, stamps: bytes) -> list[Removal]:
    each = zip(unpack_ids(ids), np.frombuffer(stamps, _STAMP).tolist(), strict=True)
    return [Removal(driver_id, Stamp(int(e), int(i), int(s))) for driver_id, (e, i, s) in each]


def unpack_ids(packed: bytes) -> list[DriverId]:
    """Raises ValueError for anything but a msgpack array of strings."""
    try:
        return _IDS.decode(packed)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a list of ids: {error}") from error


def _pack_ids(ids: Sequence[DriverId]) -> bytes:
    return msgspec.msgpack.encode(ids)


def _pack_stamps(stamps: Sequence[Stamp]) -> bytes:
    return np.array([(s.epoch, s.instance, s.seq) for s in stamps], _STAMP).tobytes()
