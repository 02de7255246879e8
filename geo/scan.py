"""What a search computes: which rows are eligible, how far they are, and bounds on both.

Distances are chords, straight lines through the earth, in metres; squared ones
are single precision: |u|² - 2u·w + |w|² for a row at u and a point at w, both
relative to an origin nearby. Stored values are off by at most 2^-24 of
themselves and four products are added up: within 11 · 2^-24 · (|u| + |w|)² of the
truth. Moving rows of another group to the origin, L away at most, rounds each of
their coordinates twice more: another 8 · 2^-24 · (L + |w|)². ROUNDING =
32 · 2^-24 is used, on lengths PAD_M longer, which covers double precision on the
earth's scale. Every bound here is widened, or lowered, by so much: it holds for
the true distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from geo.buckets import PAD_M, ROUNDING, Buckets, Floats, Ints, spans
from geo.distance import EARTH_RADIUS_M, chord_m

Bools = npt.NDArray[np.bool_]
Singles = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
#: Positions of points in the question, and slots: pairs of which each may belong to the answer.
Pairs = tuple[Ints, Array]

#: Pairs of points and rows computed at once: what stays in a core's cache, and below where BLAS starts threads
#: (which then spin on cores that others need).
PAIRS_MAX: Final = 60_000
_BLOCK: Final = 16


@dataclass(frozen=True, slots=True)
class Eligible:
    """Which rows may be returned: by date, by kind of driver and, where not None, by slot."""

    oldest_ms: float
    kinds: Bools
    barred: Bools | None


class Scan:
    """One question: the `k` nearest eligible rows within `limit_m`, of whichever points are then shown.

    `thin` says which of many slots to keep so that of each crowd on one spot k remain.
    """

    def __init__(
        self, buckets: Buckets, k: int, limit_m: float, eligible: Eligible, thin: Callable[[Array, int], Bools]
    ) -> None:
        self.buckets = buckets
        self.k = k
        self.limit_m2 = (chord_m(limit_m) + PAD_M) ** 2
        self._eligible = eligible
        self.thin = thin

    def rows(self, members: Ints) -> tuple[Ints, Bools]:
        """The eligible rows of these buckets, in that order; and of all of their rows, which these are."""
        buckets, only = self.buckets, self._eligible
        starts, counts = buckets.start.take(members), buckets.count.take(members)
        rows = np.arange(starts[0], starts[0] + counts[0]) if len(members) == 1 else spans(starts, counts)
        passed = only.kinds.take(buckets.kind.take(rows))
        passed &= buckets.fix_ms.take(rows) >= only.oldest_ms
        if only.barred is not None:
            passed &= ~only.barred.take(buckets.slot.take(rows))
        return rows.compress(passed), passed


class Lens:
    """Some points as rows are compared with them that are relative to an origin and within `reach_m` of it."""

    __slots__ = ("_left", "_lengths2", "slack")

    def __init__(self, points: Floats, origin: Floats, reach_m: float) -> None:
        offsets = points - origin
        lengths2 = np.einsum("ij,ij->i", offsets, offsets)[:, None]
        self._left = np.empty((len(points), 4), dtype=np.float32)
        self._left[:, :3] = offsets
        self._left[:, 3] = 1.0
        self._lengths2 = lengths2.astype(np.float32)
        #: How much each point's squared distances may err, (m, 1). 2(|u|² + |w|²) is no less than (|u| + |w|)².
        self.slack: Floats = lengths2 * (2.0 * ROUNDING)
        self.slack += 2.0 * ROUNDING * (reach_m + PAD_M) ** 2

    def squared(self, places: Singles) -> Singles:
        """Squared distances, (m, rows)."""
        squared: Singles = self._left @ places.T
        squared += self._lengths2
        return squared


def gaps(points: Floats, centres: Floats, radii: Floats) -> Floats:
    """Lower bounds on the distances of points to balls, (m, balls): negative inside, infinite for empty ones.

    Both lie on the sphere, so |q - c|² = 2R² - 2 q·c, which errs by less than 0.2 m²: PAD_M covers its root.
    """
    squared = points @ centres.T
    squared *= -2.0
    squared += 2.0 * EARTH_RADIUS_M**2
    np.maximum(squared, 0.0, out=squared)
    np.sqrt(squared, out=squared)
    squared -= radii + PAD_M
    return squared


def touched(point: Floats, reach_m: float, centres: Floats, radii: Floats) -> Ints:
    """Which balls come within `reach_m` of one point, by the same bound without its roots."""
    limits = radii + (reach_m + PAD_M)
    limits *= np.abs(limits)  # an empty ball's stays minus infinity
    limits *= -0.5
    limits += EARTH_RADIUS_M**2
    return (centres @ point >= limits).nonzero()[0]


def kth(values: Array, k: int) -> Array:
    """Per line of at least k values an upper bound on its k-th smallest.

    Of long lines the k-th smallest of the minima of blocks: k blocks have k values at or below it.
    """
    width = values.shape[1] // _BLOCK
    if width >= 2 * k:
        values = values[:, : width * _BLOCK].reshape(len(values), _BLOCK, width).min(axis=1)
    return np.partition(values, k - 1, axis=1)[:, k - 1]


def joined(parts: list[Pairs]) -> Pairs:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
    return np.concatenate([point for point, _ in parts]), np.concatenate([slot for _, slot in parts])
