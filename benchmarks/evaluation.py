"""Evaluation: figures about a detector from what it did to clients whose truth is known.

Rules of the file:

* The unit is the client: a false alarm is an honest client that is *ever* flagged. A rate never comes without its interval.
* Lives that were tested several times (under several calibrations) count once: the flagged share is the mean over the times, the
  interval that of the number of distinct lives.
* A threshold for somebody else's statistic is the conformal one, on the same honest clients as ours.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

CONFIDENCE = 0.95


def clopper_pearson(hits: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact two-sided interval of a share (Clopper & Pearson 1934); hits may be a mean of repeated counts.

    Raises ValueError unless 0 ≤ hits ≤ trials.

    >>> [round(end, 4) for end in clopper_pearson(0, 300)]
    [0.0, 0.0122]
    """
    if not 0 <= hits <= trials:
        raise ValueError(f"{hits} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    half = (1.0 - confidence) / 2
    low = float(beta.ppf(half, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1.0 - half, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


@dataclass(frozen=True, slots=True)
class Rate:
    """hits of trials, a Clopper–Pearson interval around it; both may be fractions where lives were tested several times."""

    hits: float
    trials: float

    @property
    def share(self) -> float:
        """NaN where nothing was tried."""
        return self.hits / self.trials if self.trials else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return clopper_pearson(self.hits, self.trials)

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.hits + other.hits, self.trials + other.trials)


def rates(outcomes: Iterable[tuple[Hashable, bool]], repeats: float = 1.0) -> dict[Hashable, Rate]:
    """(group, flagged) of each tested life → the rate of each group; every life is among the outcomes `repeats` times."""
    found: dict[Hashable, Rate] = {}
    for group, flagged in outcomes:
        found[group] = found.get(group, Rate(0.0, 0.0)) + Rate(float(flagged) / repeats, 1.0 / repeats)
    return found


def lifetime_level(maxima: NDArray[np.float64], budget: float) -> float:
    """The value that a client must exceed to be flagged: its conformal p-value among honest maxima (g,) is then ≤ budget.

    Infinite where g clients can't support the budget: g + 1 < 1 / budget.

    >>> lifetime_level(np.arange(199.0), 0.01)
    197.0
    """
    allowed = int(np.floor(budget * (len(maxima) + 1) * (1 + 1e-12))) - 1
    if allowed < 0:
        return float("inf")
    return float(np.sort(maxima)[::-1][allowed]) if allowed < len(maxima) else float("-inf")


def first_alarm(looks: Sequence[int] | NDArray[np.int64], values: NDArray[np.float64], level: float) -> int | None:
    """Queries seen at the first look whose value exceeds the level; None if there is none."""
    over = np.flatnonzero(np.asarray(values) > level)
    return int(looks[int(over[0])]) if len(over) else None


def median_or_none(values: Iterable[float]) -> float | None:
    """The median; None of nothing."""
    known = list(values)
    return float(np.median(known)) if known else None
