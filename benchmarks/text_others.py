"""Methods of the literature on rows of texts: kNN, Mahalanobis and MMD, under the calibration and the lifetime budget that ours has.

Rules of the file:

* A client's value is the largest over its looks, so far as it has any; a client without a full window of `WINDOW` queries cannot be
  judged by MMD.
* Levels of single rows come from the calibration clients, thresholds of values from their maxima, by the tail that our own score gets.
* On sentence embeddings (`OthersOnEmbeddings`) rows stay as they are, of length 1, and MMD is the published one: unbiased, the mean of four
  Gaussian kernels around the median distance (arXiv 2606.05725).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf

from detector.calibration import Tail, scale_of
from detector.simulation.text_population import TextStream

WINDOW = 1500
"""Queries of a window of MMD, as published (arXiv 2606.05725)."""
WIDTHS = (0.5, 1.0, 2.0, 4.0)
"""Widths of the kernels of the published MMD, in median distances."""
FEWEST = 50
ALLOWED = 0.01

Rows = NDArray[np.float64]


@dataclass(slots=True)
class Client:
    """A client of the benchmark: its stream, and the rows of its texts."""

    stream: TextStream
    rows: Rows


def beyond(maxima: NDArray[np.float64], values: NDArray[np.float64], budget: float) -> list[bool]:
    """Whether each value of a statistic is beyond what the calibration clients ever had, by the tail that our own score gets."""
    maxima, values = np.maximum(maxima, 0.0)[:, None], np.maximum(values, 0.0)
    scale = float(scale_of(maxima, np.array([1e-9]))[0])
    tail = Tail.fit(maxima[:, 0] / scale)
    return [tail.p(value / scale) <= budget for value in values.tolist()]


class Others:
    """Three statistics of the literature on standardised rows: a client's value is the largest over its looks, so far as it has any."""

    def __init__(self, reference: Rows, calibration: Sequence[Client]) -> None:
        self.mean, self.scale = reference.mean(0), np.maximum(reference.std(0), 1e-6)
        self.reference = self._standard(reference)
        self.inverse = self._precision()
        apart = _squared(self.reference[:300], self.reference[300:600])
        self.width = float(np.median(apart))
        self.inner = float(np.exp(-_squared(self.reference, self.reference) / self.width).mean())
        honest = np.vstack([c.rows[:100] for c in calibration])
        self.levels = {m: float(np.quantile(getattr(self, m)(honest), 1 - ALLOWED)) for m in ("knn", "mahalanobis")}

    def _standard(self, rows: Rows) -> Rows:
        out: Rows = np.clip((rows - self.mean) / self.scale, -8, 8)
        return out

    def _precision(self) -> Rows:
        covariance = np.cov(self.reference, rowvar=False)
        return np.asarray(np.linalg.pinv(covariance + 1e-3 * np.eye(len(covariance))), np.float64)

    def knn(self, rows: Rows) -> Rows:
        parts = np.array_split(self._standard(rows), max(1, len(rows) // 2000))
        return np.concatenate([np.sqrt(_squared(part, self.reference).min(1)) for part in parts])

    def mahalanobis(self, rows: Rows) -> Rows:
        z = self._standard(rows)
        out: Rows = np.sqrt(np.maximum(((z @ self.inverse) * z).sum(1), 0.0))
        return out

    def share(self, measure: str, client: Client) -> float:
        """Largest share of rows beyond the honest 99 %, of looks at every doubling from `FEWEST` on."""
        odd = getattr(self, measure)(client.rows) > self.levels[measure]
        ends = [n for n in (FEWEST * 2**k for k in range(12)) if n < len(odd)] + [len(odd)]
        return max((float(odd[:n].mean()) for n in ends if n >= FEWEST), default=-np.inf)

    def mmd(self, client: Client) -> float:
        """Largest squared maximum mean discrepancy of full windows; a client without a full window cannot be judged."""
        found = [-np.inf]
        for start in range(0, len(client.rows) - WINDOW + 1, WINDOW):
            rows = self._standard(client.rows[start : start + WINDOW])
            cross = np.exp(-_squared(rows, self.reference) / self.width).mean()
            found.append(float(np.exp(-_squared(rows, rows) / self.width).mean() - 2 * cross + self.inner))
        return max(found)


class OthersOnEmbeddings(Others):
    """The same on sentence embeddings, by distances between them as they are, and MMD as published."""

    def _standard(self, rows: Rows) -> Rows:
        out: Rows = rows - self.mean
        return out

    def _precision(self) -> Rows:
        """Of hundreds of columns and hundreds of rows: shrunk as Ledoit and Wolf (2004) say."""
        found: Rows = LedoitWolf(assume_centered=True).fit(self.reference).precision_
        return found

    def mmd(self, client: Client) -> float:
        found = [-np.inf]
        for start in range(0, len(client.rows) - WINDOW + 1, WINDOW):
            rows = self._standard(client.rows[start : start + WINDOW])
            inner, cross = self._kernel(rows, rows), self._kernel(rows, self.reference)
            known = self._kernel(self.reference, self.reference)
            found.append(_without_own(inner) + _without_own(known) - 2.0 * float(cross.mean()))
        return max(found)

    def _kernel(self, a: Rows, b: Rows) -> Rows:
        apart = _squared(a, b)
        out: Rows = np.mean([np.exp(-apart / (2.0 * width**2 * self.width)) for width in WIDTHS], axis=0)
        return out


def _without_own(kernel: Rows) -> float:
    """Mean of a kernel between different rows."""
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))


def _squared(a: Rows, b: Rows) -> Rows:
    out: Rows = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * a @ b.T, 0.0)
    return out
