"""A fault that lasts is said now and then, another one at once."""

from __future__ import annotations

from matcher.said import TEXTS_MAX, Said


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_same_is_said_again_after_a_while_only() -> None:
    clock = Clock()
    said = Said(60.0, clock)
    assert [said.is_news("the database is away") for _ in range(3)] == [True, False, False]
    clock.now_s += 59.0
    assert not said.is_news("the database is away")
    clock.now_s += 1.0
    assert said.is_news("the database is away")


def test_another_is_said_at_once_and_the_first_is_not_forgotten_by_it() -> None:
    said = Said(60.0, Clock())
    assert [said.is_news(text) for text in ("a", "b", "a", "b")] == [True, True, False, False]


def test_what_is_remembered_is_bounded() -> None:
    """P10"""
    said = Said(60.0, Clock())
    assert all(said.is_news(str(number)) for number in range(10 * TEXTS_MAX))
    assert said.is_news("0")
    assert not said.is_news(str(10 * TEXTS_MAX - 1))
