"""When a frame of many drivers' positions counts as published."""

from __future__ import annotations

import random

from api.fleet_acks import FRAMES_MAX, Acks, Owed


class Case:
    def __init__(self) -> None:
        self.told: list[int] = []
        self.acks = Acks(self.told.append)
        self.owed: dict[str, Owed] = {}
        self.count = 0

    def frame(self, seq: int | None, *names: str) -> int:
        """A frame with a position of each of these; its number of all of them."""
        self.count += 1
        frame = self.acks.open(seq)
        for name in names:
            self.acks.owe(self.owed.setdefault(name, Owed()), self.count, frame)
        self.acks.close(frame)
        return self.count

    def published(self, name: str, seq: int) -> None:
        self.acks.published(self.owed[name], seq)


def test_a_frame_is_acknowledged_when_the_last_of_its_positions_stands() -> None:
    case = Case()
    seq = case.frame(7, "ann", "bob")
    case.published("ann", seq)
    assert case.told == []
    case.published("bob", seq)
    assert case.told == [7]


def test_a_frame_of_which_nothing_was_taken_is_acknowledged_at_once() -> None:
    case = Case()
    case.frame(3)
    assert case.told == [3]


def test_a_later_frame_waits_for_the_ones_before_it() -> None:
    case = Case()
    first = case.frame(1, "ann")
    second = case.frame(2, "bob")
    case.published("bob", second)
    assert case.told == []
    case.published("ann", first)
    assert case.told == [2]


def test_a_newer_position_of_the_driver_settles_the_older_ones() -> None:
    case = Case()
    case.frame(1, "ann")
    case.frame(2, "ann")
    case.published("ann", case.frame(3, "ann"))
    assert case.told == [3]


def test_what_came_during_a_flush_is_acknowledged_by_the_next_one() -> None:
    case = Case()
    in_hand = case.frame(1, "ann")
    case.frame(2, "ann")
    newest = case.frame(3, "ann")
    case.published("ann", in_hand)
    assert case.told == [1]
    case.published("ann", newest)
    assert case.told == [1, 3]


def test_a_driver_that_is_gone_holds_no_frame_up() -> None:
    case = Case()
    case.frame(1, "ann")
    case.acks.forget(case.owed["ann"])
    assert case.told == [1]
    case.published("ann", 1)
    assert case.told == [1]


def test_a_frame_without_a_number_is_never_told_of() -> None:
    case = Case()
    case.published("ann", case.frame(None, "ann"))
    assert case.told == []
    case.published("ann", case.frame(0, "ann"))
    assert case.told == [0]


def test_frames_beyond_the_limit_are_acknowledged_together() -> None:
    """P10"""
    case = Case()
    first = case.frame(0, "ann")
    newest = 0
    for seq in range(1, FRAMES_MAX + 100):
        newest = case.frame(seq, "bob")
    case.published("bob", newest)
    case.published("ann", first)
    assert case.told == [FRAMES_MAX + 99]


def test_nothing_is_acknowledged_before_each_of_its_positions_or_a_newer_one_stands() -> None:
    """Against a model that remembers everything, over random floods and flushes."""
    rng = random.Random(5)
    names = [f"d{n}" for n in range(6)]
    for _ in range(200):
        case = Case()
        sent: list[tuple[int, dict[str, int]]] = []
        newest: dict[str, int] = {}
        standing = dict.fromkeys(names, 0)
        for number in range(30):
            some = rng.sample(names, rng.randrange(len(names) + 1))
            seq = case.frame(2 * number, *some)
            newest |= dict.fromkeys(some, seq)
            sent.append((2 * number, dict.fromkeys(some, seq)))
            in_hand = {name: newest[name] for name in rng.sample(list(newest), rng.randrange(len(newest) + 1))}
            if rng.random() < 0.5:  # something comes while the flush is under way
                late = case.frame(2 * number + 1, *names[:2])
                newest |= dict.fromkeys(names[:2], late)
                sent.append((2 * number + 1, dict.fromkeys(names[:2], late)))
            for name, seq in in_hand.items():
                case.published(name, seq)
                standing[name] = max(standing[name], seq)
            acked = case.told[-1] if case.told else -1
            assert all(standing[name] >= seq for n, some in sent if n <= acked for name, seq in some.items())
        for name, seq in newest.items():
            case.published(name, seq)
        assert case.told[-1] == sent[-1][0]
