"""Attack code that we did not write: the Adversarial Robustness Toolbox (Nicolae et al. 2018) steals from a victim of ours.

Rules:

* The toolbox drives; what it asks passes the victim's domain, as an API would have it, and is written down in its order.
* The thief's copy is the one that our own thieves train: the toolbox brings the attack, not a model.
* Its bandit divides by a variance of 0 when it adds up all three rewards, so it is given the loss alone.
* Its functionally equivalent extraction (Jagielski et al. 2020) does not run here: it needs unrounded logits of a
  two-layer network at inputs of any size, and an API gives rounded probabilities inside bounds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from detector.simulation.attacks import AttackerKnowledge
from detector.simulation.copies import Surrogate
from detector.simulation.domain import Domain, Predict, Rows

# At its import the toolbox writes a settings file into the home folder; of two processes that do so at once, one reads half of it.
with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, HOME=home):
    from art.attacks.extraction import CopycatCNN, KnockoffNets
    from art.estimators.classification import BlackBoxClassifier

GROUPS = 8
REFIT_EVERY = 32


class Oracle(BlackBoxClassifier):  # type: ignore[misc]
    """The victim as the toolbox sees it; `asked` are the rows as accepted, in order."""

    def __init__(self, domain: Domain, predict: Predict, classes: int) -> None:
        self.asked: list[Rows] = []

        def answer(x: Any) -> Any:
            rows = domain.emit(np.asarray(x, np.float64))
            self.asked.append(rows)
            return predict(rows)

        super().__init__(answer, input_shape=(domain.width,), nb_classes=classes)


class Copy(BlackBoxClassifier):  # type: ignore[misc]
    """The thief's own model; it learns from all that it was ever fitted on."""

    def __init__(self, domain: Domain, classes: int, rng: np.random.Generator) -> None:
        self.copy, self.rows, self.answers = Surrogate(domain, rng), np.empty((0, domain.width)), np.empty((0, classes))
        self.calls, self.fitted = 0, False
        super().__init__(self._answer, input_shape=(domain.width,), nb_classes=classes)

    def fit(self, x: Any, y: Any, **how: Any) -> None:
        self.rows, self.answers = np.vstack([self.rows, x]), np.vstack([self.answers, y])
        if self.calls % REFIT_EVERY == 0 or len(x) > 1:
            self.copy.fit(self.rows[-2000:], self.answers[-2000:])
            self.fitted = True
        self.calls += 1

    def _answer(self, x: Any) -> Any:
        rows = np.asarray(x, np.float64)
        return self.copy.predict(rows) if self.fitted else np.full((len(rows), self.nb_classes), 1 / self.nb_classes)


def _knockoff(strategy: str) -> Callable[[Oracle, Copy, Rows, int], None]:
    def run(oracle: Oracle, copy: Copy, rows: Rows, n: int) -> None:
        spots = rows[np.linspace(0, len(rows) - 1, GROUPS).astype(int)]
        spread = np.maximum(rows.std(0), 1e-9)
        group = np.square((rows[:, None] - spots) / spread).sum(2).argmin(1)
        group = np.unique(group, return_inverse=True)[1]
        attack = KnockoffNets(
            oracle, nb_epochs=1, nb_stolen=n, sampling_strategy=strategy, reward="loss", verbose=False
        )
        attack.extract(rows, np.eye(group.max() + 1)[group], thieved_classifier=copy)

    return run


def _copycat(oracle: Oracle, copy: Copy, rows: Rows, n: int) -> None:
    CopycatCNN(oracle, nb_epochs=1, nb_stolen=n).extract(rows, thieved_classifier=copy)


RUNS: dict[str, Callable[[Oracle, Copy, Rows, int], None]] = {
    "art_knockoff_random": _knockoff("random"),
    "art_knockoff_adaptive": _knockoff("adaptive"),
    "art_copycat": _copycat,
}
"""Family of `FOREIGN` → its run."""


def steal(family: str, knowledge: AttackerKnowledge, predict: Predict, n: int, rng: np.random.Generator) -> Rows:
    """(m, d) rows as the toolbox sends them, m ≤ n: no more than there are foreign rows where it draws without replacement."""
    classes = np.asarray(predict(knowledge.own[:1])).shape[1]
    oracle, copy = Oracle(knowledge.domain, predict, classes), Copy(knowledge.domain, classes, rng)
    state = np.random.get_state()  # noqa: NPY002 – the toolbox draws from the global generator
    np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002
    try:
        RUNS[family](oracle, copy, knowledge.foreign, min(n, len(knowledge.foreign)))
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return np.vstack(oracle.asked)[:n]
