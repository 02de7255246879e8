"""DriverIndex: a market's drivers as of now, and who of them is nearest (P5, P6, P8).

A replica of the feed in columns: `table` keeps what is known of each driver,
`buckets` where it is, `search` finds the nearest, and this module puts them
together: newest stamp wins, stale drivers are never returned, answers are
ordered by (distance, driver id) and do not depend on the order in which
positions arrived. It knows no clock, socket or loop; times are whole ms of the
feed's clock and given by the caller. Not safe for several threads at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo.answers import Candidates, candidates_of, fix_of, nearby_of, nearest_pairs, no_candidates
from geo.area import Bbox, in_box
from geo.buckets import Buckets
from geo.cells import cell_of
from geo.distance import distance_m, sphere_point_m, sphere_points_m
from geo.model import MAX_EXACT_INT, DriverId, Fix, LatLng, Nearby, Removal, Stamp, Where
from geo.records import PositionBatch, Records
from geo.scan import Eligible, Scan
from geo.search import near_all, near_one
from geo.supply import Supply
from geo.table import Bools, DriverTable, Slots

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

EVERYONE: Final = Where()
AVAILABLE: Final = Where(seats_min=0)
EXTRA_FOR_EXCLUDED: Final = 8

__all__ = ["Candidates", "DriverIndex"]


class DriverIndex:
    """The drivers of one market. `stale_after_ms`: an older fix is never returned."""

    def __init__(self, *, resolution: int, stale_after_ms: int, capacity: int = 1024) -> None:
        self._resolution = resolution
        self._stale_after_ms = stale_after_ms
        self._table = DriverTable(max(capacity, 1))
        self._buckets = Buckets(resolution)
        self._buckets.reserve_slots(len(self._table.held))

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, driver_id: object) -> bool:
        return isinstance(driver_id, str) and self._table.slot_of(DriverId(driver_id)) is not None

    # Writing

    def apply(self, batch: PositionBatch) -> int:
        """Takes over what is newer than what is held, then removals. Returns how many drivers moved forward.

        Records that are no place on earth, or whose date or stamp is no number, are left out.
        """
        moved = sum(self._forward(ids, records) for ids, records in _once_each(*_sound(batch)))
        self._remove(batch.removals)
        return moved

    def reset(self, snapshot: PositionBatch) -> None:
        """Replaces everything by the snapshot."""
        self._table.clear(len(snapshot.ids))
        self._buckets.clear(len(self._table.held), 0)
        self.apply(snapshot)

    def _forward(self, ids: Sequence[DriverId], records: Records) -> int:
        slots = self._table.slots_of(ids)
        new = slots < 0
        forward = new | _is_newer(records, self._table.held.take(np.maximum(slots, 0)))
        if not forward.all():
            ids, records = _chosen(ids, records, np.flatnonzero(forward))
            slots, new = slots[forward], new[forward]
        moved = ~new
        moved[moved] = self._table.held["cell"][slots[moved]] != records["cell"][moved]
        self._buckets.remove(slots[moved])
        if new.any():
            slots[new] = self._table.enter([ids[position] for position in np.flatnonzero(new).tolist()])
            self._buckets.reserve_slots(len(self._table.held))
        self._place(slots, records, new | moved)
        return len(ids)

    def _place(self, slots: Slots, records: Records, elsewhere: Bools) -> None:
        kinds = self._table.write(slots, records)
        points = sphere_points_m(records["lat"], records["lon"])
        fix_ms = records["fix_ms"]
        here = ~elsewhere
        self._buckets.update(slots[here], points[here], fix_ms[here], kinds[here])
        self._buckets.add(
            slots[elsewhere], records["cell"][elsewhere], points[elsewhere], fix_ms[elsewhere], kinds[elsewhere]
        )

    def _remove(self, removals: Sequence[Removal]) -> None:
        gone: dict[DriverId, None] = {}
        for removal in removals:
            slot = self._table.slot_of(removal.driver_id)
            if slot is not None and self._stamp_at(slot) <= removal.stamp:
                gone[removal.driver_id] = None
        if gone:
            self._buckets.remove(self._table.leave(list(gone)))

    def _stamp_at(self, slot: int) -> Stamp:
        held = self._table.held[slot]
        return Stamp(int(held["epoch"]), int(held["instance"]), int(held["seq"]))

    # Asking for the nearest

    def nearest(
        self, point: LatLng, k: int, *, limit_m: float = math.inf, where: Where = EVERYONE, now_ms: int
    ) -> list[Nearby]:
        """The k nearest fresh drivers that meet `where`, ordered by (distance, driver id).

        `limit_m` is inclusive. Raises ValueError for a negative k or a limit that is no number.
        """
        _check(k, limit_m)
        if not k or not len(self):
            return []
        # A few more than k make up for the excluded; where that is not enough, these are barred beforehand.
        asked = k + min(len(where.exclude), k + EXTRA_FOR_EXCLUDED)
        found = self._nearest(point, asked, limit_m, self._eligible(where, now_ms, barring=False))
        kept = [each for each in found if each[1] not in where.exclude]
        if len(kept) < k and len(found) == asked:
            kept = self._nearest(point, k, limit_m, self._eligible(where, now_ms, barring=True))
        rows = self._table.held.take([slot for _, _, slot in kept[:k]]).tolist()
        return [
            nearby_of(driver_id, row, away_m, now_ms) for (away_m, driver_id, _), row in zip(kept, rows, strict=False)
        ]

    def _nearest(self, point: LatLng, k: int, limit_m: float, eligible: Eligible) -> list[tuple[float, DriverId, int]]:
        """(distance, driver id, slot) of the k nearest, in that order."""
        guess_m = self._buckets.guess_m(cell_of(point.lat, point.lon, self._resolution), k)
        slots = near_one(self._scan(k, limit_m, eligible), sphere_point_m(point), guess_m)
        held = self._table.held.take(slots)
        distances = distance_m(point.lat, point.lon, held["lat"], held["lon"]).tolist()
        numbers = slots.tolist()
        found = zip(distances, self._table.ids_at(numbers), numbers, strict=True)
        return sorted(each for each in found if each[0] <= limit_m)[:k]

    def _scan(self, k: int, limit_m: float, eligible: Eligible) -> Scan:
        return Scan(self._buckets, min(k, len(self)), limit_m, eligible, self._table.thin)

    def _eligible(self, where: Where, now_ms: int, *, barring: bool) -> Eligible:
        barred = None
        if barring and where.exclude:
            barred = np.zeros(len(self._table.held), dtype=np.bool_)
            barred[self._table.known_slots(where.exclude)] = True
        return Eligible(now_ms - self._stale_after_ms, self._table.suitable(where), barred)

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
        if not len(lats) or not len(self):
            return no_candidates(len(lats))
        # One more than k is looked for: the nearest that is not listed bounds all of these.
        scan = self._scan(k + 1, limit_m, self._eligible(where, now_ms, barring=True))
        point, slots = near_all(scan, sphere_points_m(lats, lons))
        held = self._table.held
        distances = distance_m(lats[point], lons[point], held["lat"][slots], held["lon"][slots])
        near = nearest_pairs(point, distances, k + 1, limit_m)
        driver_ids, rank = self._by_id(slots[near])
        return candidates_of(point[near], rank, distances[near], driver_ids, len(lats), k)

    def _by_id(self, slots: Slots) -> tuple[list[DriverId], Array]:
        """The ids of these slots, sorted and once each, and each slot's place among them."""
        unique, inverse = np.unique(slots, return_inverse=True)
        numbers = unique.tolist()
        ids = self._table.ids_at(numbers)
        order = sorted(range(len(ids)), key=ids.__getitem__)
        rank = np.empty(len(ids), dtype=np.int32)
        rank[order] = np.arange(len(ids), dtype=np.int32)
        return [ids[position] for position in order], rank[inverse]

    # Asking for one driver, or for all

    def held(self, driver_id: DriverId, now_ms: int | None = None) -> Fix | None:
        """The driver's newest fix, stale or not. Its `age_ms` is that at `now_ms`, or 0 where none is given."""
        slot = self._table.slot_of(driver_id)
        if slot is None:
            return None
        row = self._table.held[slot].tolist()
        return fix_of(driver_id, row, 0 if now_ms is None else max(now_ms - int(row[0]), 0))

    def age_ms(self, driver_id: DriverId, now_ms: int) -> int | None:
        """How old the driver's newest fix is; a fix from the future counts as new."""
        slot = self._table.slot_of(driver_id)
        return None if slot is None else max(now_ms - int(self._table.held["fix_ms"][slot]), 0)

    def fresh(self, driver_ids: Sequence[DriverId], now_ms: int) -> list[bool]:
        """Of each, whether it is held and not stale (P5)."""
        slots = self._table.slots_of(driver_ids)
        dates = self._table.held["fix_ms"][np.maximum(slots, 0)]
        is_fresh = (slots >= 0) & (dates >= now_ms - self._stale_after_ms)
        return [bool(each) for each in is_fresh]

    def fresh_count(self, now_ms: int) -> int:
        return int(np.count_nonzero(self._table.held["fix_ms"] >= now_ms - self._stale_after_ms))

    def supply(self, now_ms: int, exclude: Collection[DriverId] = ()) -> Supply:
        """Everyone fresh and available but these, by id."""
        table, dates = self._table, self._table.held["fix_ms"]
        kinds = table.kinds()
        wanted = np.zeros(len(kinds) + 1, dtype=np.bool_)  # the last one stands for "no kind", -1
        wanted[[number for number, (_, available) in enumerate(kinds) if available]] = True
        chosen = wanted[table.kind] & (dates > -np.inf)
        chosen[table.known_slots(exclude)] = False
        fresh = dates >= now_ms - self._stale_after_ms
        slots, stale = np.flatnonzero(chosen & fresh), table.held[np.flatnonzero(chosen & ~fresh)]
        ids = table.ids_at(slots.tolist())
        order = sorted(range(len(ids)), key=ids.__getitem__)
        held = table.held.take(slots[order])
        return Supply(
            driver_ids=[ids[place] for place in order],
            lat=held["lat"].copy(),
            lon=held["lon"].copy(),
            kind=table.kind.take(slots[order]),
            kinds=[kind for kind, _ in kinds],
            stale_lat=stale["lat"].copy(),
            stale_lon=stale["lon"].copy(),
        )

    def available_in(self, box: Bbox, now_ms: int) -> tuple[list[DriverId], Floats, Floats]:
        """Everyone fresh and available within the box, in any order, with latitudes and longitudes."""
        if not len(self):
            return [], np.empty(0), np.empty(0)
        held, kind = self._table.held, self._table.kind
        chosen = (held["fix_ms"] >= now_ms - self._stale_after_ms) & in_box(box, held["lat"], held["lon"])
        slots = np.flatnonzero(chosen)
        slots = slots[self._table.suitable(AVAILABLE)[kind[slots]]]
        return self._table.ids_at(slots.tolist()), held["lat"][slots], held["lon"][slots]

    def expire(self, now_ms: int, after_ms: int, *, limit: int = 1000) -> list[Removal]:
        """Removals to publish for drivers whose fix is older than `after_ms`, the oldest `limit` of them.

        Nobody is removed here: the feed's removal does that, everywhere.
        """
        dates = self._table.held["fix_ms"]
        slots = np.flatnonzero((dates < now_ms - after_ms) & (dates > -np.inf))
        slots = slots[np.argsort(dates[slots], kind="stable")[:limit]]
        return [Removal(self._table.id_at(slot), self._stamp_at(slot)) for slot in slots.tolist()]


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
    return (ids, records) if sound.all() else _chosen(ids, records, np.flatnonzero(sound))


def _chosen(ids: Sequence[DriverId], records: Records, positions: Array) -> tuple[list[DriverId], Records]:
    return [ids[position] for position in positions.tolist()], records[positions]


def _once_each(ids: Sequence[DriverId], records: Records) -> Iterator[tuple[Sequence[DriverId], Records]]:
    """The batch in parts in which no driver stands twice: one part, unless a publisher erred."""
    if len(set(ids)) == len(ids):
        yield ids, records
        return
    for position in range(len(ids)):
        yield ids[position : position + 1], records[position : position + 1]


def _is_newer(records: Records, held: Records) -> Bools:
    """Stamps compare as (epoch, instance, seq)."""
    newer = records["seq"] > held["seq"]
    for name in ("instance", "epoch"):
        ours, theirs = records[name], held[name]
        newer = (ours > theirs) | ((ours == theirs) & newer)
    return newer
