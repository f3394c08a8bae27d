"""Answers of a model in a rehearsal: what a thief learns from, and when a copy agrees with the model.

Learners (`copies.py`) know one form: probabilities of c classes. A regression is put into it: the log odds of two classes are its value, in
units of the range that holds nine of ten of its answers. So a linear regression is linear for them as well, and equations solve it.

Rules:

* A classifier and its copy agree at a row if they give it the same label; two regressions if their values are no further apart than
  `TOLERANCE` of that range. Fidelity is the share of honest rows at which they agree.
* Values further than some thirteen ranges from the middle are taken for the end of these: log odds have one (`copies.LEAST`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detector.query import QueryBatch
from detector.simulation.copies import LEAST, softmax
from detector.simulation.domain import Rows, decimals_kept

TOLERANCE = 0.1
"""Of the range that holds nine of ten answers of a regression: how far apart two values agree."""
HELD = (0.05, 0.95)
FARTHEST = -float(np.log(LEAST))
"""Largest log odds that learners tell apart."""


class AnswerKind(Protocol):
    """How the answers of one model are learned from and compared."""

    def of(self, batches: Sequence[QueryBatch]) -> Rows:
        """The answers of n queries in all as probabilities, (n, c); NaN where there is none that can be used."""

    def shown(self, answers: Rows) -> Callable[[Rows], Rows]:
        """What a model that gave these answers shows of its scores (n, c): as many decimals, or labels only."""

    def agreement(self, scores: Rows, truth: Rows) -> float:
        """Fidelity: the share of rows at which a copy's scores (n, c) agree with the model's probabilities (n, c)."""


@dataclass(frozen=True, slots=True)
class ClassAnswers:
    """Answers of a classifier of `count` classes."""

    count: int

    def of(self, batches: Sequence[QueryBatch]) -> Rows:
        labels = np.concatenate([batch.labels for batch in batches])
        answers = np.zeros((len(labels), self.count))
        answers[np.arange(len(labels)), np.clip(labels, 0, self.count - 1)] = 1.0
        if all(batch.probabilities.shape[1] == self.count for batch in batches):
            likely = np.vstack([batch.probabilities for batch in batches]).astype(np.float64)
            told = np.isfinite(likely).all(1)
            answers[told] = likely[told]
        answers[(labels < 0) | (labels >= self.count)] = np.nan
        return answers

    def shown(self, answers: Rows) -> Callable[[Rows], Rows]:
        places = decimals_of(answers)

        def show(scores: Rows) -> Rows:
            likely = softmax(scores)
            return likely.round(places) if places else np.eye(self.count)[likely.argmax(1)]

        return show

    def agreement(self, scores: Rows, truth: Rows) -> float:
        return float((scores.argmax(1) == truth.argmax(1)).mean())


@dataclass(frozen=True, slots=True)
class ValueAnswers:
    """Answers of a regression. middle: their median; unit: the range that holds nine of ten."""

    middle: float
    unit: float

    @classmethod
    def among(cls, batches: Sequence[QueryBatch]) -> ValueAnswers | None:
        """Those of the model that answered the batches; None where its answers hardly differ."""
        known = np.concatenate([batch.values for batch in batches])
        known = known[np.isfinite(known)]
        if not len(known):
            return None
        low, high = np.quantile(known, HELD).tolist()
        return cls(float(np.median(known)), high - low) if high > low else None

    def of(self, batches: Sequence[QueryBatch]) -> Rows:
        values = np.concatenate([batch.values for batch in batches])
        odds = (np.where(np.isfinite(values), values, np.nan) - self.middle) / self.unit
        return softmax(np.column_stack([np.zeros(len(odds)), _held(odds)]))

    def shown(self, answers: Rows) -> Callable[[Rows], Rows]:
        return softmax

    def agreement(self, scores: Rows, truth: Rows) -> float:
        told = np.maximum(truth, np.finfo(float).tiny)
        odds = _held(np.log(told[:, 1]) - np.log(told[:, 0]))
        return float((np.abs(_held(scores[:, 1] - scores[:, 0]) - odds) <= TOLERANCE).mean())


def _held(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(odds, -FARTHEST, FARTHEST)


def answers_of(task: str, classes: int, batches: Sequence[QueryBatch]) -> AnswerKind | None:
    """How the answers of a model are learned from; None for a task that has no copies here."""
    if task == "classification":
        return ClassAnswers(max(2, classes))
    return ValueAnswers.among(batches) if task == "regression" else None


def decimals_of(answers: Rows) -> int:
    """Decimals of a model's probabilities (n, c), at most 6; 0 where the answers are labels only.

    >>> decimals_of(np.array([[0.25, 0.75], [0.5, 0.5]])), decimals_of(np.eye(2))
    (2, 0)
    """
    return max(decimals_kept(column) for column in answers.T)
