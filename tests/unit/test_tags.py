"""Tags: their bits, and which names are taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import Problem
from api.tags import Tags, known_tags

NAMES = tuple(f"tag{n}" for n in range(32))


def test_a_tags_bit_is_its_place_in_the_settings() -> None:
    tags = Tags(["wheelchair", "pets"])
    assert [tags.mask([name]) for name in tags.names] == [1, 2]
    assert tags.mask(["pets", "wheelchair", "pets"]) == 3
    assert tags.bits == {"wheelchair": 1, "pets": 2}


def test_a_name_that_is_no_longer_known_has_no_bit() -> None:
    assert Tags(["wheelchair"]).mask(["wheelchair", "rickshaw"]) == 1
    assert Tags(["wheelchair"]).of_mask(7) == ["wheelchair"]


@given(chosen=st.sets(st.sampled_from(NAMES)))
def test_names_survive_as_bits(chosen: set[str]) -> None:
    tags = Tags(NAMES)
    mask = tags.mask(chosen)
    assert mask < 2**32
    assert tags.of_mask(mask) == sorted(chosen)


def test_what_is_asked_for_counts_once_in_one_order() -> None:
    assert known_tags(["pets", "ev", "pets"], ["ev", "pets", "ads"], "/tags") == ("ev", "pets")
    assert known_tags([], [], "/tags") == ()


@pytest.mark.parametrize(
    ("pointer", "known", "at", "words"),
    [
        ("/tags", ["ev"], "/tags/1", "'pets' is no tag here; there are: ev"),
        ("?tags", ["ev", "tv"], "?tags", "there are: ev, tv"),
        ("/tags", [], "/tags/0", "there are none"),
    ],
)
def test_an_unknown_name_is_refused_with_its_place(pointer: str, known: list[str], at: str, words: str) -> None:
    with pytest.raises(Problem) as caught:
        known_tags(["ev", "pets"], known, pointer)
    assert caught.value.errors[0].pointer == at
    assert words in caught.value.detail
    assert caught.value.status == 422
