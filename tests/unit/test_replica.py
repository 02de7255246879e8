"""How a replica judges what it is shown: no feed, no clock."""

from __future__ import annotations

import pytest

from geo.feed import pack
from geo.model import DriverId, Fix, LatLng, Removal, Stamp
from geo.records import PositionBatch
from geo.replica import NOTHING, Head, Replica, SequencedBatch, Snapshot, Verdict, merged
from tests.feeds import FAR, HERE, RESOLUTION, drivers_near, fix, index

NOW = 1_000_000


def packed(*fixes: Fix, removals: tuple[Removal, ...] = ()) -> PositionBatch:
    batch = pack(fixes, RESOLUTION, NOW)
    batch.removals = removals
    return batch


def shown(n: int, *fixes: Fix, generation: str = "g", previous: str | None = None, token: str = "") -> SequencedBatch:
    before = f"t{n - 1}" if previous is None else previous
    return SequencedBatch(Head(generation, n, token or f"t{n}"), before, packed(*fixes))


@pytest.fixture
def replica() -> Replica:
    replica = Replica(index())
    replica.start(Head("g", 4, "t4"), packed(fix("d", 1)), NOW)
    return replica


class TestBatches:
    def test_the_next_batch_is_taken(self, replica: Replica) -> None:
        assert replica.take([shown(5, fix("e", 1))]) is Verdict.TAKEN
        assert replica.head == Head("g", 5, "t5")
        assert "e" in replica.index

    def test_several_are_taken_at_once_and_the_newest_position_counts(self, replica: Replica) -> None:
        batches = [shown(5, fix("d", 2, at=FAR)), shown(6, fix("d", 3, at=HERE)), shown(7, fix("e", 1))]
        assert replica.take(batches) is Verdict.TAKEN
        assert drivers_near(replica.index, HERE, NOW) == ["d", "e"]
        assert drivers_near(replica.index, FAR, NOW) == []

    def test_a_batch_seen_before_is_known(self, replica: Replica) -> None:
        assert replica.take([shown(4), shown(3)]) is Verdict.KNOWN
        assert replica.head.n == 4

    @pytest.mark.parametrize(
        ("batch", "verdict"),
        [
            (shown(6), Verdict.HOLE),
            (shown(5, previous="another"), Verdict.FORKED),
            (shown(4, token="another"), Verdict.FORKED),
            (shown(5, generation="h"), Verdict.NEW_GENERATION),
            (shown(1, generation="h", previous=""), Verdict.NEW_GENERATION),
        ],
    )
    def test_what_does_not_follow_on_is_told_by_its_kind(
        self, replica: Replica, batch: SequencedBatch, verdict: Verdict
    ) -> None:
        assert replica.take([batch]) is verdict
        assert not verdict.is_well
        assert replica.head == Head("g", 4, "t4")

    def test_what_came_before_a_hole_is_kept(self, replica: Replica) -> None:
        assert replica.take([shown(5, fix("e", 1)), shown(7, fix("f", 1))]) is Verdict.HOLE
        assert "e" in replica.index
        assert "f" not in replica.index
        assert replica.head.n == 5


class TestHeads:
    @pytest.mark.parametrize(
        ("head", "verdict"),
        [
            (Head("g", 4, "t4"), Verdict.KNOWN),
            (Head("g", 9, "t9"), Verdict.KNOWN),
            (Head("g", 3, "t3"), Verdict.FORKED),
            (Head("g", 4, "another"), Verdict.FORKED),
            (Head("h", 4, "t4"), Verdict.NEW_GENERATION),
            (NOTHING, Verdict.NEW_GENERATION),
        ],
    )
    def test_a_head_tells_whether_it_is_still_the_same_chain(
        self, replica: Replica, head: Head, verdict: Verdict
    ) -> None:
        assert replica.check(head) is verdict

    def test_an_end_before_the_promised_batch_is_a_hole(self, replica: Replica) -> None:
        assert replica.at_end() is Verdict.KNOWN
        replica.check(Head("g", 5, "t5"))
        assert replica.at_end() is Verdict.HOLE
        replica.take([shown(5)])
        assert replica.at_end() is Verdict.KNOWN


class TestStart:
    def test_a_fix_dated_by_another_clock_is_never_fresh(self) -> None:
        """P5: after Redis came back with an earlier clock, the ages of old records are unknown."""
        replica = Replica(index())
        batch = packed(fix("known", age_ms=10), fix("future"))
        records = batch.records.copy()
        records["fix_ms"][1] = NOW + 600_000
        replica.start(Head("g", 1, "t1"), PositionBatch(batch.ids, records), NOW)
        assert drivers_near(replica.index, HERE, NOW) == ["known"]
        assert drivers_near(replica.index, HERE, NOW + 600_000) == []
        assert [removal.driver_id for removal in replica.index.expire(NOW, 120_000)] == ["future"]

    def test_the_driver_s_next_fix_puts_it_right(self) -> None:
        replica = Replica(index())
        batch = packed(fix("d", 1))
        records = batch.records.copy()
        records["fix_ms"] = NOW + 600_000
        replica.start(Head("g", 1, "t1"), PositionBatch(batch.ids, records), NOW)
        replica.take([shown(2, fix("d", 2))])
        assert drivers_near(replica.index, HERE, NOW) == ["d"]


class TestSnapshot:
    def test_a_driver_seen_in_two_cells_counts_where_its_stamp_is_newest(self) -> None:
        """P6: it moved while the cells were read."""
        snapshot = Snapshot()
        for fixes in ([fix("d", 7, at=HERE), fix("e", 1)], [fix("d", 6, at=FAR)], [fix("d", 7, at=HERE)]):
            batch = packed(*fixes)
            snapshot.add(batch.ids, batch.records.tobytes())
        assert len(snapshot) == 2
        held = index()
        held.reset(snapshot.batch())
        assert drivers_near(held, HERE, NOW) == ["d", "e"]
        assert drivers_near(held, FAR, NOW) == []

    def test_ids_and_records_that_do_not_match_are_refused(self) -> None:
        with pytest.raises(ValueError):
            Snapshot().add([DriverId("d")], b"short")

    def test_nobody_is_a_snapshot_too(self) -> None:
        assert len(Snapshot().batch().records) == 0


def test_merged_batches_say_what_they_say_one_by_one() -> None:
    gone = Removal(DriverId("gone"), Stamp(1, 1, 2))
    batches = [
        packed(fix("d", 1, at=HERE), fix("gone", 2)),
        packed(fix("d", 2, at=FAR), removals=(gone,)),
        packed(fix("back", 1), fix("e", 1, at=LatLng(40.75, -73.981))),
        packed(fix("back", 3), removals=(Removal(DriverId("back"), Stamp(1, 1, 2)),)),
    ]
    one_by_one, at_once = index(), index()
    for batch in batches:
        one_by_one.apply(batch)
    at_once.apply(merged(batches))
    assert drivers_near(at_once, HERE, NOW) == drivers_near(one_by_one, HERE, NOW) == ["back", "e"]
    assert drivers_near(at_once, FAR, NOW) == drivers_near(one_by_one, FAR, NOW) == ["d"]
    assert len(at_once) == len(one_by_one)
