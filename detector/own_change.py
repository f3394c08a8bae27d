"""A client's change against its own earlier life: of what it asks, of the answers that it gets, of its pace.

An account that is handed to somebody else, or whose key was stolen, may ask other things than before. So may an honest client with a new
project. So this is an *observation* (own_life.py): shown and never counted.

Rules:

* A life is cut once: in the service where the short span of the profile began, at fit at the first query after the middle of a client's
  life. What came before is the long span less the short one: counts, which subtract exactly. Nothing more is stored.
* The change of counts is the triangular discrimination of the two mixtures (Topsøe 2000), in [0, 2]: by region, by distance to the
  reference, by class of the answers. The change of pace is the logarithm of the ratio of the two rates. Of each is subtracted what chance
  alone would do: its mean and `SPREADS` standard deviations. So a few queries show a great change only.
* Calibrated on honest clients' own changes: each kind in units of the four largest of them, and the largest of the kinds by its rank.
* Parts with fewer than `FEWEST` queries, or shorter than a day, are not compared, and neither are clients seen in several cells.

It does not work where the new user asks what the old one did, where the change came long before or after the cut, and where all clients
change together: a new version of the model, or a new season, names many of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.calibration import CHANGE_KINDS, UNKNOWN_CHANGE, Tail, scale_of
from detector.profile_columns import ProfileColumns

FEWEST = 40
DAY_MS = 86_400_000
SPREADS = 3.0
FLOOR = np.array([0.05, 0.05, 0.05, 0.7])
"""Least unit of each kind: smaller changes mean nothing, however steady the honest clients of the calibration were."""
LEVEL = 0.01
FEWEST_CLIENTS = 20
"""Honest clients whose own change is known, below which there is no observation."""


class LifePart(NamedTuple):
    """One part of the lives of n clients. queries, length_ms (n,); regions, distances, classes (n, …) counts."""

    queries: NDArray[np.int64]
    length_ms: NDArray[np.int64]
    regions: NDArray[np.int64]
    distances: NDArray[np.int64]
    classes: NDArray[np.int64]


def parts(long: ProfileColumns, short: ProfileColumns) -> tuple[LifePart, LifePart]:
    """Return the earlier and the present part of n lives, from the long spans and the short ones that began later."""
    earlier = LifePart(
        long.queries - short.queries,
        short.first_ms - long.first_ms,
        long.region_counts - short.region_counts,
        long.distance_counts - short.distance_counts,
        long.classes - short.classes,
    )
    present = LifePart(
        short.queries, short.last_ms - short.first_ms, short.region_counts, short.distance_counts, short.classes
    )
    return earlier, present


def changes(earlier: LifePart, present: LifePart) -> NDArray[np.float64]:
    """Return how much n clients changed, beyond chance.

    Returns
    -------
    (n, 4) float64
        By kind (`CHANGE_KINDS`), at least 0; `UNKNOWN_CHANGE` in all kinds where a part is too small.
    """
    n = np.minimum(earlier.queries, present.queries)
    known = (n >= FEWEST) & (np.minimum(earlier.length_ms, present.length_ms) >= DAY_MS)
    out = np.full((len(n), len(CHANGE_KINDS)), UNKNOWN_CHANGE)
    for column, name in enumerate(CHANGE_KINDS[:-1]):
        out[:, column] = _mixture(getattr(earlier, name), getattr(present, name))
    rates = [np.maximum(part.queries, 1) / np.maximum(part.length_ms, 1) for part in (earlier, present)]
    noise = SPREADS * np.sqrt(1 / np.maximum(earlier.queries, 1) + 1 / np.maximum(present.queries, 1))
    out[:, -1] = np.maximum(np.abs(np.log(rates[1] / rates[0])) - noise, 0.0)
    out[~known] = UNKNOWN_CHANGE
    return out


def _mixture(before: NDArray[np.int64], after: NDArray[np.int64]) -> NDArray[np.float64]:
    """Triangular discrimination of the mixtures of n pairs of counts (n, k), less what chance does."""
    a, b = before.sum(1), after.sum(1)
    p, q = before / np.maximum(a, 1)[:, None], after / np.maximum(b, 1)[:, None]
    both = p + q
    found = np.divide((p - q) ** 2, both, out=np.zeros_like(both), where=both > 0).sum(1)
    free = np.maximum((both > 0).sum(1) - 1, 0)
    chance = (1 / np.maximum(a, 1) + 1 / np.maximum(b, 1)) / 2
    result: NDArray[np.float64] = np.maximum(found - chance * (free + SPREADS * np.sqrt(2.0 * free)), 0.0)
    return np.where((a > 0) & (b > 0), result, 0.0)


class OwnChange:
    """What honest clients' own changes are like. honest: (g, 4) of `changes`."""

    def __init__(self, honest: NDArray[np.floating]) -> None:
        known = honest[(honest != UNKNOWN_CHANGE).all(1)].astype(np.float64)
        self.clients = len(known)
        self._scale = scale_of(known, FLOOR)
        self._tail = Tail.fit((known / self._scale).max(1, initial=0.0))

    def beyond(self, found: NDArray[np.float64]) -> list[tuple[str, float] | None]:
        """For n clients: the kind in which each changed most and its p-value, where that is at most `LEVEL`; None for the others."""
        if self.clients < FEWEST_CLIENTS:
            return [None] * len(found)
        sizes = found / self._scale
        p = [self._tail.p(float(size)) for size in sizes.max(1)]
        return [
            (CHANGE_KINDS[kind], one) if one <= LEVEL else None
            for kind, one in zip(sizes.argmax(1).tolist(), p, strict=True)
        ]
