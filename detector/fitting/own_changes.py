"""Honest clients' own changes, counted while they are folded: the null of `detector.own_change`.

Rules: a life is cut at the first query after its middle. Counts are those that the fold would make of the two parts; no row is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detector.features import DISTANCE_BINS, REGIONS, Measured
from detector.own_change import LifePart, changes
from detector.query import QueryBatch


class HalvedLives:
    """Counts of the two halves of each client's life, filled poll by poll.

    queries : QueryBatch
        The whole log; says where each life is cut.
    classes : int
        Of the model.
    """

    def __init__(self, queries: QueryBatch, classes: int) -> None:
        g = len(queries.clients)
        never = np.iinfo(np.int64).max
        first, last = np.full(g, never), np.zeros(g, np.int64)
        np.minimum.at(first, queries.who, queries.time_ms)
        np.maximum.at(last, queries.who, queries.time_ms)
        self._middle = first + np.maximum(last - first, 0) // 2
        self._first, self._last = first, last
        self._late = np.full(g, never)
        self._n = np.zeros((2, g), np.int64)
        self._regions = np.zeros((2, g, REGIONS), np.int64)
        self._distances = np.zeros((2, g, DISTANCE_BINS), np.int64)
        self._classes = np.zeros((2, g, classes), np.int64)

    def note(self, poll: QueryBatch, measured: Measured) -> None:
        """Count the rows of a poll."""
        late = poll.time_ms > self._middle[poll.who]
        half = late.astype(np.int64)
        np.minimum.at(self._late, poll.who[late], poll.time_ms[late])
        np.add.at(self._n, (half, poll.who), 1)
        read = measured.regions >= 0
        np.add.at(self._regions, (half[read], poll.who[read], measured.regions[read]), 1)
        np.add.at(self._distances, (half[read], poll.who[read], measured.distance_bins[read]), 1)
        if (most := self._classes.shape[2]) > 0:
            told = poll.labels >= 0
            np.add.at(self._classes, (half[told], poll.who[told], np.minimum(poll.labels[told], most - 1)), 1)

    def changes(self) -> NDArray[np.float64]:
        """Own change of each client by kind, (g, 4)."""
        cut = np.minimum(self._late, self._last)
        lengths = (np.maximum(cut - self._first, 0), np.maximum(self._last - cut, 0))
        earlier, present = (
            LifePart(self._n[i], lengths[i], self._regions[i], self._distances[i], self._classes[i]) for i in (0, 1)
        )
        return changes(earlier, present)
