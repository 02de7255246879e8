"""What happens to a driver's record: the newer stamp wins, and the tree has the driver at its new place. Compiled."""

from __future__ import annotations

from typing import Any, Final

from geo.branches import driver_at, has_room, insert, lay, move, remove
from geo.compiled import compiled
from geo.layout import ENTRIES, ROW, WHAT

#: Why records are left to do: the columns are full, or the next one's kind has no number yet.
DONE, NEEDS_ROOM, NEEDS_KIND = 0, 1, 2
NO_KIND: Final = -1


@compiled
def forward(
    node: Any, block: Any, told: Any, stamp: Any, motion: Any, where: Any, described: Any,
    drivers: Any, records: Any, slots: Any, kinds: Any, begin: int, loose: bool,
) -> Any:  # fmt: skip
    """Takes over the records from `begin` on that are newer than what is held of their drivers, `slots`.

    `kinds` may be NO_KIND where a driver's has not changed. In a `loose` tree, which is made anew right after,
    newcomers are laid anywhere. Returns (why it ended, the record it did not take, how many drivers moved forward).
    """
    moved = 0
    for i in range(begin, len(slots)):
        slot = slots[i]
        record = records[i]
        row = where[slot, ROW]
        if row >= 0 and not _is_newer(record, stamp, slot):
            continue
        if not has_room(node):
            return NEEDS_ROOM, i, moved
        number, before = kinds[i], NO_KIND
        if row >= 0:
            before = block[row // ENTRIES, row % ENTRIES, WHAT]
            if number == NO_KIND and _is_of(record, described, before):
                number = before
        if number == NO_KIND:
            return NEEDS_KIND, i, moved
        if number != before:
            drivers[number] += 1
            if before != NO_KIND:
                drivers[before] -= 1
        stamp[slot, 0], stamp[slot, 1], stamp[slot, 2] = record["epoch"], record["instance"], record["seq"]
        motion[slot, 0], motion[slot, 1] = record["heading"], record["speed"]
        driver = driver_at(slot, number, record["lat"], record["lon"], record["fix_ms"])
        if row >= 0:
            move(node, block, told, where, driver)
        elif loose:
            lay(node, block, told, where, driver)
        else:
            insert(node, block, told, where, driver)
        moved += 1
    return DONE, len(slots), moved


@compiled
def _is_newer(record: Any, stamp: Any, slot: int) -> bool:
    """Stamps compare as (epoch, instance, seq)."""
    if record["epoch"] != stamp[slot, 0]:
        newer = record["epoch"] > stamp[slot, 0]
    elif record["instance"] != stamp[slot, 1]:
        newer = record["instance"] > stamp[slot, 1]
    else:
        newer = record["seq"] > stamp[slot, 2]
    return newer


@compiled
def _is_of(record: Any, described: Any, number: int) -> bool:
    """Whether a record is of this kind."""
    kind = described[number]
    return (
        record["seats"] == kind["seats"]
        and record["flags"] == kind["flags"]
        and record["class_a"] == kind["class_a"]
        and record["class_b"] == kind["class_b"]
        and record["tags"] == kind["tags"]
    )


@compiled
def take_out(node: Any, block: Any, told: Any, where: Any, drivers: Any, slots: Any) -> None:
    """Takes drivers that are somewhere out of the tree, and out of their kinds."""
    for i in range(len(slots)):
        row = where[slots[i], ROW]
        drivers[block[row // ENTRIES, row % ENTRIES, WHAT]] -= 1
        remove(node, block, told, where, slots[i])
