"""How a replica follows a market's numbered batches, and notices what it missed.

Pure: it is shown batches, heads and snapshots, and says what they mean; who
fetches them is not its business. Applying is idempotent, as the index ignores
what is not newer by its stamp, so a replica may read the cells *after* it noted
its place in the stream: whatever changed meanwhile comes once more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from geo.index import DriverIndex
from geo.model import DriverId
from geo.records import RECORD, PositionBatch


@dataclass(frozen=True, slots=True)
class Head:
    """A place in a market's chain of batches: the generation, and the last batch's number and token."""

    generation: str
    n: int
    token: str


#: Where no generation stands: nothing was ever published, or all was flushed.
NOTHING = Head("", 0, "")


@dataclass(frozen=True, slots=True)
class SequencedBatch:
    """A batch as it stands in the stream: its place, and the token of the batch before it."""

    head: Head
    previous: str
    batch: PositionBatch


class Verdict(Enum):
    """What a replica makes of what it is shown. The first two are well; the others ask for a new bootstrap."""

    TAKEN = "the next batch"
    KNOWN = "not ahead of what the replica holds"
    HOLE = "batches are missing"
    FORKED = "the feed went back to an older state"
    NEW_GENERATION = "the feed began anew"
    CLOCK_SET_BACK = "the feed's clock was set back"

    @property
    def is_well(self) -> bool:
        return self in (Verdict.TAKEN, Verdict.KNOWN)


#: Bytes before a record's stamp: fix_ms, cell, lat, lon. Its three fields stand side by side.
_STAMP_AT, _STAMP = 32, struct.Struct("<ddd")


class Snapshot:
    """Drivers read cell by cell while they move: one seen in two cells counts where its stamp is newest (P6)."""

    def __init__(self) -> None:
        self._newest: dict[DriverId, bytes] = {}

    def add(self, ids: Sequence[DriverId], records: bytes) -> None:
        """Takes drivers and their packed records, side by side. Raises ValueError when they are not as many."""
        size = RECORD.itemsize
        if len(records) != len(ids) * size:
            raise ValueError(f"{len(ids)} ids came with {len(records)} bytes of records")
        for at, driver_id in enumerate(ids):
            record = records[at * size : (at + 1) * size]
            held = self._newest.setdefault(driver_id, record)
            if held is not record and _stamp_of(record) > _stamp_of(held):
                self._newest[driver_id] = record

    def batch(self) -> PositionBatch:
        return PositionBatch(list(self._newest), np.frombuffer(b"".join(self._newest.values()), RECORD))

    def __len__(self) -> int:
        return len(self._newest)


def _stamp_of(record: bytes) -> tuple[float, float, float]:
    epoch, instance, seq = _STAMP.unpack_from(record, _STAMP_AT)
    return epoch, instance, seq


def merged(batches: Sequence[PositionBatch]) -> PositionBatch:
    """Several batches as one, as an index has a price for each: a driver's newest record, and all removals.

    The order between a record and a removal of different batches does not
    matter, as stamps settle it.
    """
    if len(batches) == 1:
        return batches[0]
    ids = [driver_id for batch in batches for driver_id in batch.ids]
    records = np.concatenate([batch.records for batch in batches])
    removals = [removal for batch in batches for removal in batch.removals]
    last = {driver_id: at for at, driver_id in enumerate(ids)}  # later in the chain is newer by its stamp
    if len(last) < len(ids):
        ids, records = list(last), records[list(last.values())]
    return PositionBatch(ids, records, removals)


class Replica:
    """An index, and how far in the chain of batches it has come. Pure: it is shown batches and heads."""

    def __init__(self, index: DriverIndex) -> None:
        self.index = index
        self.head = NOTHING
        self._promised_n = 0

    def start(self, head: Head, snapshot: PositionBatch, now_ms: int) -> None:
        """Begins anew from what the cells held at or after `head`.

        A fix dated after now was dated by another clock (Redis came back on
        another machine, or its clock was set back). Its age is unknown, so it
        counts as oldest of all: never returned (P5), swept soon, and put right
        by the driver's next fix.
        """
        records = snapshot.records
        if (records["fix_ms"] > now_ms).any():
            records = records.copy()
            records["fix_ms"][records["fix_ms"] > now_ms] = 0.0
        self.index.reset(PositionBatch(snapshot.ids, records, snapshot.removals))
        self.head, self._promised_n = head, head.n

    def take(self, sequenced: Sequence[SequencedBatch]) -> Verdict:
        """Applies what follows on, all at once, up to the first batch that does not; the verdict is on that one."""
        verdict, next_ones = Verdict.KNOWN, list[PositionBatch]()
        for shown in sequenced:
            verdict = self._judge(shown)
            if verdict is Verdict.TAKEN:
                self.head = shown.head
                next_ones.append(shown.batch)
            elif not verdict.is_well:
                break
        if next_ones:
            self.index.apply(merged(next_ones))
        return verdict

    def _judge(self, sequenced: SequencedBatch) -> Verdict:
        shown, held = sequenced.head, self.head
        if shown.generation != held.generation:
            return Verdict.NEW_GENERATION
        if shown.n <= held.n:
            return Verdict.KNOWN if shown.n < held.n or shown.token == held.token else Verdict.FORKED
        if shown.n > held.n + 1:
            return Verdict.HOLE
        return Verdict.TAKEN if sequenced.previous == held.token else Verdict.FORKED

    def check(self, head: Head) -> Verdict:
        """Judges the feed's present head, so that a flush or a fail-over is seen even where no batch follows."""
        held = self.head
        if head.generation != held.generation:
            return Verdict.NEW_GENERATION
        if head.n < held.n or (head.n == held.n and head.token != held.token):
            return Verdict.FORKED
        self._promised_n = head.n
        return Verdict.KNOWN

    def at_end(self) -> Verdict:
        """Judges that the stream has nothing further: a hole where a head seen earlier had promised more."""
        return Verdict.HOLE if self.head.n < self._promised_n else Verdict.KNOWN
