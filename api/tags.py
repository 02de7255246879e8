"""What a vehicle offers and a ride asks for: names outside, bits in the live index.

A tag's bit is its place in the settings, the same in all processes. This module
checks the names that come over the wire, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from api.errors import invalid

#: Combinations whose names are remembered.
MASKS_KNOWN_MAX = 1024


class Tags:
    """The deployment's tags, in the order of the settings."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._names_of: dict[int, list[str]] = {}
        self.bits: Mapping[str, int] = {name: 1 << place for place, name in enumerate(self.names)}

    def mask(self, names: Iterable[str]) -> int:
        """The bits of these. A name that the settings do not know (any more) has none: nobody can ask for it."""
        bits = 0
        for name in names:
            bits |= self.bits.get(name, 0)
        return bits

    def of_mask(self, mask: int) -> list[str]:
        """The names of these bits, sorted; a bit without a name is another deployment's. Not to be changed."""
        names = self._names_of.get(mask)
        if names is None:
            if len(self._names_of) >= MASKS_KNOWN_MAX:
                self._names_of.clear()
            names = self._names_of[mask] = sorted(name for name, bit in self.bits.items() if mask & bit)
        return names


def known_tags(asked: Sequence[str], known: Sequence[str], pointer: str) -> tuple[str, ...]:
    """What was asked for, sorted and each once. Raises Problem 422 at the first that is not among the known.

    `pointer` is that of the list in a body; its `?name` for a query parameter.
    """
    for place, name in enumerate(asked):
        if name not in known:
            at = pointer if pointer.startswith("?") else f"{pointer}/{place}"
            there_are = f"there are: {', '.join(known)}" if known else "there are none"
            raise invalid(at, f"{name[:40]!r} is no tag here; {there_are}")
    return tuple(sorted(set(asked)))
