"""Copies: what a thief trains on stolen answers, and what takes a model's place when a theft is rehearsed.

A learner maps rows and answers to a copy; a copy maps rows to scores (unnormalised log probabilities).

Rules:

* `equations` is exact for a linear model, whatever rows were asked (Tramèr et al., USENIX 2016, §4.1): with probabilities a softmax
  regression is solved by about as many answers as it has unknowns. `is_linear` recognises such a model from its answers.
* Equations also solve a stand-in that is linear, so foreign noise copies it whole. It takes the model's place only where the model is
  linear, or near it (`rehearsal.NEAR_LINEAR`).
* `Surrogate` is the copy that adaptive thieves train while they steal.
* scikit-learn is imported here and in `fitting/discriminators.py` only; a service never loads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from detector.simulation.domain import Domain, Predict, Rows

Learner = Callable[[Rows, Rows, np.random.Generator], Predict]

TREES = 16
MOST_ROWS = 1000
"""Rows that the smooth copy uses."""
UNITS = 48
NETWORK_ROWS = 2000
LEAST = 1e-6
SHRINK = 1e-6
ALIKE = 0.99
CLOSE = 0.01
"""A model is linear where equations solved on one half of the answers agree with the other half at this share of rows, and miss its
probabilities by no more than this on average."""


class Surrogate:
    """The thief's copy: one hidden layer of random tanh units, ridge regression onto centred log-answers."""

    def __init__(self, domain: Domain, rng: np.random.Generator, hidden: int = 96) -> None:
        self.domain = domain
        self.weights = rng.normal(size=(domain.width, hidden)) / np.sqrt(domain.width)
        self.bias = rng.normal(size=hidden) * 0.5
        self.out: Rows = np.zeros((hidden + 1, 1))

    def fit(self, rows: Rows, answers: Rows) -> Surrogate:
        hidden = self._hidden(rows)
        gram = hidden.T @ hidden + 0.3 * np.eye(hidden.shape[1])
        self.out = np.linalg.solve(gram, hidden.T @ _log_odds(answers, 1e-3)).astype(np.float64)
        return self

    def scores(self, rows: Rows) -> Rows:
        """(n, c) unnormalised log-probabilities."""
        return self._hidden(rows) @ self.out

    def predict(self, rows: Rows) -> Rows:
        """(n, c) probabilities."""
        return softmax(self.scores(rows))

    def slope(self, rows: Rows, classes: NDArray[np.int64]) -> Rows:
        """(n, d) gradient of the score of each row's class by the standardised input."""
        hidden = self._hidden(rows)[:, :-1]
        out: Rows = ((1.0 - hidden**2) * self.out[:-1, classes].T) @ self.weights.T
        return out

    def margin(self, rows: Rows) -> Rows:
        """(n,) probability of the first class minus the second."""
        ordered = np.sort(self.predict(rows), axis=1)
        out: Rows = ordered[:, -1] - ordered[:, -2] if ordered.shape[1] > 1 else ordered[:, -1]
        return out

    def _hidden(self, rows: Rows) -> Rows:
        squashed = np.tanh(self.domain.standardise(rows) @ self.weights + self.bias)
        return np.hstack([squashed, np.ones((len(rows), 1))])


def thieves_learners(domain: Domain, wide: bool) -> tuple[Learner, ...]:
    """What thieves train: equations, a smooth interpolator, random units, trees (of no use on embeddings, and slow there)."""
    quick = (_equations(domain), _smooth(domain), _random_units(domain))
    return quick if wide else (*quick, trees)


def stand_in_learners(domain: Domain, wide: bool, linear: bool) -> tuple[Learner, ...]:
    """What may take the model's place: equations first, alone for a linear model, then what no equations solve."""
    if linear:
        return (_equations(domain),)
    others = (_equations(domain), _smooth(domain), _network(domain))
    return others if wide else (*others, trees)


def is_linear(domain: Domain, rows: Rows, answers: Rows, rng: np.random.Generator) -> bool:
    """Whether the log odds of the answers (n, c) are linear in the rows (n, d), codes taken apart.

    Never where the answers are labels only: equations do not solve those. A model that is linear in other features than these columns
    (products, logarithms) is not recognised.
    """
    half = len(rows) // 2
    if half <= _design(domain, rows[:1]).shape[1] or np.isin(answers, (0.0, 1.0)).all():
        return False
    scores = _equations(domain)(rows[:half], answers[:half], rng)(rows[half:])
    told, truth = softmax(scores), answers[half:]
    alike = (told.argmax(1) == truth.argmax(1)).mean()
    return bool(alike >= ALIKE and np.abs(told - truth).mean() <= CLOSE)


def softmax(scores: Rows) -> Rows:
    """Scores (n, c) as probabilities."""
    likely = np.exp(scores - scores.max(1, keepdims=True))
    out: Rows = likely / likely.sum(1, keepdims=True)
    return out


def _log_odds(answers: Rows, least: float) -> Rows:
    logs = np.log(np.clip(answers, least, 1.0))
    centred: Rows = logs - logs.mean(1, keepdims=True)
    return centred


def _design(domain: Domain, rows: Rows) -> Rows:
    """Standardised numbers, a column for each code, and a constant."""
    coded = domain.coded
    numbers = domain.standardise(rows)[:, ~coded]
    codes = [
        (rows[:, j][:, None] == known).astype(np.float64) for j, known in enumerate(domain.codes) if known is not None
    ]
    return np.hstack([numbers, *codes, np.ones((len(rows), 1))])


def _equations(domain: Domain) -> Learner:
    """Log odds against the commonest class as weighted linear equations: exact once a linear model's unknowns are outnumbered.

    An equation weighs what the rounding of its answer leaves of it: a probability of 0.000001 says little about the log odds.
    """

    def learn(rows: Rows, answers: Rows, rng: np.random.Generator) -> Predict:
        a = _design(domain, rows)
        likely = np.clip(answers, LEAST, 1.0)
        common = int(answers.sum(0).argmax())
        weights = np.zeros((a.shape[1], answers.shape[1]))
        for k in range(answers.shape[1]):
            if k != common:
                sure = likely[:, k] * likely[:, common] / (likely[:, k] + likely[:, common])
                weighted = a * sure[:, None]
                ridge = SHRINK * sure.sum() / a.shape[1] * np.eye(a.shape[1])
                odds = np.log(likely[:, k] / likely[:, common])
                weights[:, k] = np.linalg.solve(a.T @ weighted + ridge, weighted.T @ odds)
        return lambda x: _design(domain, x) @ weights

    return learn


def _smooth(domain: Domain) -> Learner:
    """Kernel ridge regression of the log odds; the width is the median distance of two rows."""

    def learn(rows: Rows, answers: Rows, rng: np.random.Generator) -> Predict:
        z = domain.standardise(rows)[:MOST_ROWS]
        some = z[rng.permutation(len(z))[:256]]
        apart = _squared(some, some)[np.triu_indices(len(some), 1)]
        width = max(float(np.median(apart)) if len(some) > 1 else 1.0, 1e-9)
        kernel = np.exp(-_squared(z, z) / width) + 1e-2 * np.eye(len(z))
        weights = np.linalg.solve(kernel, _log_odds(answers[: len(z)], 1e-3))
        return lambda x: np.exp(-_squared(domain.standardise(x), z) / width) @ weights

    return learn


def _squared(a: Rows, b: Rows) -> Rows:
    out: Rows = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * a @ b.T, 0.0)
    return out


def _network(domain: Domain) -> Learner:
    """A small network of the log odds: of a kind that neither kernels nor trees solve exactly."""

    def learn(rows: Rows, answers: Rows, rng: np.random.Generator) -> Predict:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        model = MLPRegressor(
            hidden_layer_sizes=(UNITS,),
            max_iter=80,
            tol=1e-3,
            n_iter_no_change=5,
            random_state=int(rng.integers(2**31)),
        )
        z = domain.standardise(rows)[:NETWORK_ROWS]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a stand-in need not be trained to the end
            model.fit(z, _log_odds(answers[: len(z)], 1e-3))
        return lambda x: np.asarray(model.predict(domain.standardise(x)), np.float64).reshape(len(x), -1)

    return learn


def _random_units(domain: Domain) -> Learner:
    """One layer of random units: what a network learns from few answers, at a hundredth of its cost."""
    return lambda rows, answers, rng: Surrogate(domain, rng).fit(rows, answers).scores


def trees(rows: Rows, answers: Rows, rng: np.random.Generator) -> Predict:
    """Extremely randomised trees of the probabilities."""
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(TREES, max_features=0.5, random_state=int(rng.integers(2**31)), n_jobs=1)
    forest.fit(rows, answers)

    def predict(asked: Rows) -> Rows:
        out: Rows = np.asarray(forest.predict(asked), np.float64).reshape(len(asked), -1)
        return np.log(np.maximum(out, 1e-6))

    return predict
