"""DriverIndex: a market's drivers as of now, and who of them is nearest (P5, P6, P8).

A replica of the feed in columns: `table` keeps what is known of each driver, `tree`
where it is, `kinds` what drivers have in common; `forward` takes records over and
`search` finds the nearest, both compiled. This module puts them together: newest stamp
wins, stale drivers are never returned, answers are ordered by (distance, driver id) and
do not depend on the order in which positions arrived. It knows no clock, socket or loop;
times are whole ms of the feed's clock and given by the caller. Not safe for several
threads at once. `geo.warm` has everything compiled before somebody waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo.answers import Candidates, Found, hundredths, listed, nearby, no_candidates, nobody_found
from geo.area import Bbox, in_box
from geo.compiled import read_only
from geo.forward import DONE, NEEDS_KIND, NO_KIND, forward, take_out
from geo.kinds import DESCRIBED, KIND_AT, Kinds
from geo.layout import RANK, ROW
from geo.model import MAX_EXACT_INT, DriverId, Fix, LatLng, Nearby, Removal, Stamp, Where
from geo.records import AS_NUMBERS, RECORD, PositionBatch, Records
from geo.search import UNDECIDED, nearest, nearest_of_each
from geo.supply import Kind, Supply
from geo.table import Bools, DriverTable
from geo.tree import Tree

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

EVERYONE: Final = Where()
_PACKED_MIN: Final = 512
__all__ = ["Candidates", "DriverIndex", "Found"]


class DriverIndex:
    """The drivers of one market. `stale_after_ms`: an older fix is never returned.

    `resolution` is that of the cells which records name. The index does not depend on cells: a record may name any.
    """

    def __init__(self, *, resolution: int, stale_after_ms: int, capacity: int = 1024) -> None:
        self.resolution = resolution
        self._stale_after_ms = stale_after_ms
        self._table = DriverTable(max(capacity, 1))
        self._tree = Tree()
        self._kinds = Kinds()
        self._packed = _PACKED_MIN  # how many drivers there were when the tree was last made anew

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, driver_id: object) -> bool:
        return isinstance(driver_id, str) and self._table.slot_of(DriverId(driver_id)) is not None

    # Writing

    def apply(self, batch: PositionBatch) -> int:
        """Takes over what is newer than what is held, then removals. Returns how many drivers moved forward.

        Records that are no place on earth, or whose date or stamp is no number, are left out.
        """
        moved = self._forward(*_sound(batch), loose=False)
        self._remove(batch.removals)
        if len(self._table) > 2 * self._packed:
            self._pack()
        return moved

    def reset(self, snapshot: PositionBatch) -> None:
        """Replaces everything by the snapshot."""
        self._table.clear(len(snapshot.ids))
        self._tree.clear()
        self._kinds = Kinds()
        self._forward(*_sound(snapshot), loose=True)
        self._pack()
        self._remove(snapshot.removals)
        self._table.ordered()

    def _pack(self) -> None:
        """A tree made at once is better than one that grew: while drivers double in number, it is made anew."""
        self._tree.pack(self._table.where, len(self._table))
        self._packed = max(len(self._table), _PACKED_MIN)

    def _forward(self, ids: Sequence[DriverId], records: Records, *, loose: bool) -> int:
        table, tree, known = self._table, self._tree, self._kinds
        known.tidy()
        slots, kinds = table.slots_of(ids), np.full(len(ids), NO_KIND, dtype=np.int32)
        raw = records.tobytes()
        for place in np.flatnonzero(slots < 0).tolist():
            slots[place] = table.enter(ids[place])
            kinds[place] = known.number(_kind_of(raw, place))
        read, done, moved, why = read_only(records).view(AS_NUMBERS), 0, 0, NEEDS_KIND
        while why != DONE:
            why, done, more = forward(
                tree.node, tree.block, tree.told, table.stamp, table.motion, table.where, known.described,
                known.drivers, read, slots, kinds, done, loose,
            )  # fmt: skip
            moved += more
            if why == NEEDS_KIND:
                kinds[done] = known.number(_kind_of(raw, done))
            elif why != DONE:
                tree.grow()
        return moved

    def _remove(self, removals: Sequence[Removal]) -> None:
        gone: dict[DriverId, int] = {}
        for removal in removals:
            slot = self._table.slot_of(removal.driver_id)
            if slot is not None and self._stamp_at(slot) <= removal.stamp:
                gone[removal.driver_id] = slot
        if gone:
            tree, slots = self._tree, np.array(list(gone.values()), dtype=np.int32)
            take_out(tree.node, tree.block, tree.told, self._table.where, self._kinds.drivers, slots)
            self._table.leave(gone)

    def _stamp_at(self, slot: int) -> Stamp:
        epoch, instance, seq = self._table.stamp[slot].tolist()
        return Stamp(int(epoch), int(instance), int(seq))

    # Asking for the nearest

    def nearest(
        self, point: LatLng, k: int, *, limit_m: float = math.inf, where: Where = EVERYONE, now_ms: int
    ) -> list[Nearby]:
        """The k nearest fresh drivers that meet `where`, ordered by (distance, driver id).

        `limit_m` is inclusive. Raises ValueError for a negative k or a limit that is no number.
        """
        return nearby(self.nearest_columns(point, k, limit_m=limit_m, where=where, now_ms=now_ms))

    def nearest_columns(
        self, point: LatLng, k: int, *, limit_m: float = math.inf, where: Where = EVERYONE, now_ms: int
    ) -> Found:
        """The same in columns, for who makes something else of them than objects."""
        _check(k, limit_m)
        table, tree, suits = self._table, self._tree, self._kinds.suits(where)
        k = min(k, len(table))
        if not k or not len(suits):
            return nobody_found()
        barred, oldest_ms = table.barred(where.exclude), now_ms - self._stale_after_ms
        while True:
            found, floats, whole = nearest(
                tree.node, tree.block, tree.told, tree.ahead, table.motion, table.where, float(point.lat),
                float(point.lon), k, float(limit_m), float(oldest_ms), float(now_ms), suits, barred,
            )  # fmt: skip
            if found != UNDECIDED:
                return Found(floats, whole, table.ids, self._kinds.told)
            table.ordered()  # drivers are equally far of whom some came after ids were last put in order

    def candidates(
        self,
        lats: npt.ArrayLike,
        lons: npt.ArrayLike,
        k: int,
        *,
        limit_m: float = math.inf,
        where: Where = EVERYONE,
        now_ms: int,
    ) -> Candidates:
        """The k nearest of many points at once, each exactly as `nearest` finds them.

        `lats` and `lons` are degrees, shape (points,). Raises ValueError for coordinates out of range.
        """
        _check(k, limit_m)
        lats, lons = np.asarray(lats, dtype=np.float64), np.asarray(lons, dtype=np.float64)
        if lats.shape != lons.shape or lats.ndim != 1 or not _on_earth(lats, lons).all():
            raise ValueError("points are two columns of equal length, in [-90, 90] and [-180, 180]")
        table, tree, suits = self._table, self._tree, self._kinds.suits(where)
        if not len(lats) or not len(table) or not len(suits):
            return no_candidates(len(lats))
        order, k = table.ordered(), min(k, len(table))
        # One more than k is looked for: the nearest that is not listed bounds all of these.
        point, ranks, distances, beyond_m = nearest_of_each(
            tree.node, tree.block, tree.told, tree.ahead, table.where, read_only(lats), read_only(lons), k + 1,
            min(k + 1, len(table)), float(limit_m), float(now_ms - self._stale_after_ms), suits,
            table.barred(where.exclude),
        )  # fmt: skip
        driver_ids, driver = listed(ranks, order, table.ids)
        return Candidates(point, driver, distances, driver_ids, beyond_m)

    # Asking for one driver, or for all

    def held(self, driver_id: DriverId, now_ms: int | None = None) -> Fix | None:
        """The driver's newest fix, stale or not. Its `age_ms` is that at `now_ms`, or 0 where none is given."""
        table, slot = self._table, self._table.slot_of(driver_id)
        if slot is None:
            return None
        row, stamp = int(table.where[slot, ROW]), self._stamp_at(slot)
        (lat, lon), (heading, speed) = self._tree.points[row].tolist(), table.motion[slot].tolist()
        vehicle_class, seats, available, tags = self._kinds.told[self._tree.kinds[row]]
        return Fix(
            driver_id=driver_id,
            lat=lat,
            lon=lon,
            epoch=stamp.epoch,
            instance=stamp.instance,
            seq=stamp.seq,
            age_ms=0 if now_ms is None else max(now_ms - int(self._tree.dates_ms[row]), 0),
            vehicle_class=vehicle_class,
            seats=seats,
            available=available,
            heading_deg=hundredths(heading),
            speed_mps=hundredths(speed),
            tags=tags,
        )

    def records_of(self, driver_ids: Sequence[DriverId]) -> Records:
        """The newest records of these, in their order; without their cells, which the index does not keep (0).

        Raises KeyError for a driver that is not held.
        """
        slots = self._table.slots_of(driver_ids)
        if (slots < 0).any():
            raise KeyError(driver_ids[int(np.argmin(slots))])
        rows, records = self._table.where[slots, ROW], np.zeros(len(slots), dtype=RECORD)
        read = records.view(AS_NUMBERS)
        read["lat"], read["lon"] = self._tree.points[rows].T
        read["fix_ms"] = self._tree.dates_ms[rows]
        read["epoch"], read["instance"], read["seq"] = self._table.stamp[slots].T
        read["heading"], read["speed"] = self._table.motion[slots].T
        described = self._kinds.described[self._tree.kinds[rows]]
        for name in DESCRIBED.names or ():
            read[name] = described[name]
        return records

    def age_ms(self, driver_id: DriverId, now_ms: int) -> int | None:
        """How old the driver's newest fix is; a fix from the future counts as new."""
        slot = self._table.slot_of(driver_id)
        if slot is None:
            return None
        return max(now_ms - int(self._tree.dates_ms[self._table.where[slot, ROW]]), 0)

    def fresh(self, driver_ids: Sequence[DriverId], now_ms: int) -> list[bool]:
        """Of each, whether it is held and not stale (P5)."""
        slots = self._table.slots_of(driver_ids)
        rows = self._table.where[np.maximum(slots, 0), ROW]
        is_fresh = (slots >= 0) & (self._tree.dates_ms[rows] >= now_ms - self._stale_after_ms)
        return [bool(each) for each in is_fresh]

    def fresh_count(self, now_ms: int) -> int:
        return int(np.count_nonzero(self._tree.dates_ms >= now_ms - self._stale_after_ms))

    def supply(self, now_ms: int, exclude: Collection[DriverId] = ()) -> Supply:
        """Everyone fresh and available but these, by id."""
        table, tree, order = self._table, self._tree, self._table.ordered()
        rows = table.where[order, ROW]
        kind, dates = tree.kinds[rows], tree.dates_ms[rows]
        chosen = self._available()[kind]
        chosen[table.where[table.known_slots(exclude), RANK]] = False
        is_fresh = dates >= now_ms - self._stale_after_ms
        fresh, stale = order[chosen & is_fresh], tree.points[rows[chosen & ~is_fresh]]
        points = tree.points[rows[chosen & is_fresh]]
        kind, kinds = self._kinds_in(kind[chosen & is_fresh])
        return Supply(
            driver_ids=list(map(table.ids.__getitem__, fresh.tolist())),
            lat=points[:, 0].copy(),
            lon=points[:, 1].copy(),
            kind=kind,
            kinds=kinds,
            stale_lat=stale[:, 0].copy(),
            stale_lon=stale[:, 1].copy(),
        )

    def _kinds_in(self, kind: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], list[Kind]]:
        """The kinds that occur, and numbers of them."""
        told = self._kinds.told
        occurs = np.bincount(kind, minlength=len(told)) > 0
        number = np.cumsum(occurs, dtype=np.int32) - 1
        kinds = [Kind(told[each][0], told[each][1], told[each][3]) for each in np.flatnonzero(occurs).tolist()]
        return number[kind].astype(np.int32), kinds

    def _available(self) -> Bools:
        """Of each kind, whether its drivers want work."""
        return np.array([available for _, _, available, _ in self._kinds.told], dtype=np.bool_)

    def available_in(self, box: Bbox, now_ms: int) -> tuple[list[DriverId], Floats, Floats]:
        """Everyone fresh and available within the box, in any order, with latitudes and longitudes."""
        tree = self._tree
        rows = np.flatnonzero(tree.dates_ms >= now_ms - self._stale_after_ms)
        rows = rows[self._available()[tree.kinds[rows]]]
        rows = rows[in_box(box, *tree.points[rows].T)]
        return [self._table.ids[slot] for slot in tree.slots[rows].tolist()], *tree.points[rows].T

    def expire(self, now_ms: int, after_ms: int, *, limit: int = 1000) -> list[Removal]:
        """Removals to publish for drivers whose fix is older than `after_ms`, the oldest `limit` of them.

        Nobody is removed here: the feed's removal does that, everywhere.
        """
        dates = self._tree.dates_ms
        rows = np.flatnonzero((dates < now_ms - after_ms) & (dates > -np.inf))
        slots = self._tree.slots[rows]
        slots = slots[np.lexsort((slots, dates[rows]))[:limit]]
        return [Removal(self._table.id_at(slot), self._stamp_at(slot)) for slot in slots.tolist()]


def _kind_of(raw: bytes, place: int) -> bytes:
    """The bytes of a record that say its kind."""
    return raw[place * RECORD.itemsize + KIND_AT : (place + 1) * RECORD.itemsize]


def _check(k: int, limit_m: float) -> None:
    if k < 0:
        raise ValueError(f"k is {k}, not a number of drivers")
    if math.isnan(limit_m):
        raise ValueError("limit_m is not a number")


def _on_earth(lats: Array, lons: Array) -> Bools:
    """NaN compares false, so it is not on earth."""
    return (np.abs(lats) <= 90.0) & (np.abs(lons) <= 180.0)


def _sound(batch: PositionBatch) -> tuple[Sequence[DriverId], Records]:
    """The batch without records that are no place on earth or have no proper date or stamp."""
    ids, records = batch.ids, batch.records
    if len(records) != len(ids):
        raise ValueError(f"{len(ids)} ids for {len(records)} records")
    sound = _on_earth(records["lat"], records["lon"]) & np.isfinite(records["fix_ms"])
    for name in ("epoch", "instance", "seq"):
        sound &= np.abs(records[name]) <= MAX_EXACT_INT
    if sound.all():
        return ids, records
    return [ids[place] for place in np.flatnonzero(sound).tolist()], records[sound]
