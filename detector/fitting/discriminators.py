"""Corruption discriminators: small classifiers that separate reference rows from rows that were corrupted on purpose.

A thief without data of the victim's kind must make its queries up, and invented rows break something: the dependence between features
(``part``), the spread around the data (``mix``), the values that features take (``step``, ``jitter``). `fit` applies each corruption to
the reference and trains a gradient-boosted tree model to recognise it. Of texts the words are corrupted, before they become rows
(``jitter``, `fitting/texts.py`).

Rules:

* A query is odd when its score is above the level of the reference's own out-of-fold scores.
* scikit-learn trains the models here and in `simulation/rehearsal.py` only. They are stored and evaluated as plain arrays (`trees.py`).

Cost: 48 trees of at most 12 leaves for each corruption, about 0.3 µs for each row and corruption at 64 features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detector.trees import Rows, Trees

ROUNDS = 48
LEAVES = 12
FOLDS = 3
COPIES = 2
REGULARISATION = 10.0
DENSE_REGULARISATION = 10.0
"""Inverse strength of the penalty of the linear discriminator."""
NEAR_COPIES = 0.5
"""Log odds that are added to held-out scores of texts: logs hold near copies of a text, so none is as new as those of a new client."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a column may hold, for corruption: bounds, lattice (0: continuous), spread, and whether it is a category. All (d,)."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    lattice: NDArray[np.float64]
    spread: NDArray[np.float64]
    category: NDArray[np.bool_]

    def admit(self, rows: Rows) -> Rows:
        """Rows as an API would accept them: clipped to the bounds, rounded to the lattice."""
        rows = np.clip(rows, self.low, self.high)
        grid = np.where(self.lattice > 0, self.lattice, 1.0)
        return np.where(self.lattice > 0, np.rint(rows / grid) * grid, rows)


def corrupt_part(rows: Rows, bounds: Bounds, rng: np.random.Generator) -> Rows:
    """Half of the columns from another row: marginals stay, dependence breaks."""
    other = rows[rng.permutation(len(rows))]
    return np.where(rng.random(rows.shape) < 0.5, other, rows)


def corrupt_mix(rows: Rows, bounds: Bounds, rng: np.random.Generator) -> Rows:
    """Convex combinations of two rows (categories from either)."""
    other = rows[rng.permutation(len(rows))]
    weight = rng.uniform(0.25, 0.75, (len(rows), 1))
    mixed = weight * rows + (1 - weight) * other
    return bounds.admit(np.where(bounds.category, np.where(rng.random(rows.shape) < weight, rows, other), mixed))


def corrupt_step(rows: Rows, bounds: Bounds, rng: np.random.Generator) -> Rows:
    """Every changed feature moves by one magnitude, as Jacobian-based augmentation does (Papernot et al. 2017, §4)."""
    unit = np.where(rng.random((len(rows), 1)) < 0.5, bounds.spread, (bounds.high - bounds.low) / 4)
    size = rng.uniform(0.15, 0.8, (len(rows), 1))
    sign = rng.choice([-1.0, 1.0], rows.shape) * (rng.random(rows.shape) < rng.uniform(0.5, 1.0, (len(rows), 1)))
    return bounds.admit(np.where(bounds.category, rows, rows + sign * size * unit))


def corrupt_jitter(rows: Rows, bounds: Bounds, rng: np.random.Generator) -> Rows:
    """Gaussian noise of .1 to .7 standard deviations on every number."""
    noise = rng.normal(size=rows.shape) * bounds.spread * rng.uniform(0.1, 0.7, (len(rows), 1))
    return bounds.admit(np.where(bounds.category, rows, rows + noise))


CORRUPTIONS: dict[str, Callable[[Rows, Bounds, np.random.Generator], Rows]] = {
    "part": corrupt_part,
    "mix": corrupt_mix,
    "step": corrupt_step,
    "jitter": corrupt_jitter,
}


def train(rows: Rows, bounds: Bounds, corruption: str, rng: np.random.Generator) -> tuple[Trees, NDArray[np.float64]]:
    """Fit one discriminator on the reference.

    Returns the model fitted on all rows, and the out-of-fold scores of the reference rows, (n,).
    """
    make = CORRUPTIONS[corruption]
    held_out = np.empty(len(rows))
    fold = rng.permutation(len(rows)) % FOLDS
    for f in range(FOLDS):
        inside, outside = rows[fold != f], rows[fold == f]
        held_out[fold == f] = _boost(inside, make, bounds, rng).score(outside)
    return _boost(rows, make, bounds, rng), held_out


@dataclass(frozen=True, slots=True)
class RewordedRows:
    """Rows of texts as they are and of texts with words exchanged, each by an encoder that did not learn from its fold.

    rows            (n, d); changed (n,) bool: foreign words were put in; fold (n,) int64
    reference_fold  (r,) int64, of the rows of the reference
    first           first column that the trees look at: what is before it are axes, which say what a text is about
    """

    rows: Rows
    changed: NDArray[np.bool_]
    fold: NDArray[np.int64]
    reference_fold: NDArray[np.int64]
    first: int


def train_reworded(known: RewordedRows, reference: Rows, rng: np.random.Generator) -> tuple[Trees, NDArray[np.float64]]:
    """Fit trees that tell texts with foreign words put in from all others.

    Returns the model fitted on all rows, and scores of the reference rows, (r,), by models that were trained without their fold.
    """

    def fitted(chosen: NDArray[np.bool_]) -> Trees:
        model = _boosted(known.rows[chosen, known.first :], known.changed[chosen].astype(int), rng)
        return replace(model, feature=(model.feature + known.first).astype(np.int32))

    held_out = np.empty(len(reference))
    for f in np.unique(known.reference_fold).tolist():
        mine = known.reference_fold == f
        held_out[mine] = fitted(known.fold != f).score(reference[mine]) + NEAR_COPIES
    return fitted(np.ones(len(known.rows), np.bool_)), held_out


def _boost(
    rows: Rows,
    make: Callable[[Rows, Bounds, np.random.Generator], Rows],
    bounds: Bounds,
    rng: np.random.Generator,
) -> Trees:
    fakes = [make(rows, bounds, rng) for _ in range(COPIES)]
    return _boosted(np.concatenate([*([rows] * COPIES), *fakes]), np.repeat([0, 1], len(rows) * COPIES), rng)


def _boosted(x: Rows, y: NDArray[np.int64], rng: np.random.Generator) -> Trees:
    """Trees that tell rows of class 1 from rows of class 0."""
    from sklearn.ensemble import HistGradientBoostingClassifier  # only fit pays for this import
    from threadpoolctl import threadpool_limits

    # one thread: on a busy machine, threads that wait for each other cost ten times what they save
    with threadpool_limits(1):
        model = HistGradientBoostingClassifier(
            max_iter=ROUNDS,
            max_leaf_nodes=LEAVES,
            learning_rate=0.15,
            min_samples_leaf=max(5, min(20, len(x) // (80 * COPIES))),
            l2_regularization=1.0,
            max_features=1.0 if x.shape[1] <= 64 else 64 / x.shape[1],
            early_stopping=False,
            random_state=int(rng.integers(2**31)),
        ).fit(x, y)
    return _as_arrays(model)


def _as_arrays(model: object) -> Trees:
    roots, feature, threshold, left, right, value = [], [], [], [], [], []
    total = 0
    for (predictor,) in model._predictors:  # type: ignore[attr-defined]
        nodes = predictor.nodes
        leaf = nodes["is_leaf"].astype(bool)
        roots.append(total)
        feature.append(np.where(leaf, 0, nodes["feature_idx"]))
        threshold.append(np.where(leaf, 0.0, nodes["num_threshold"]))
        left.append(np.where(leaf, -1, nodes["left"].astype(np.int64) + total))
        right.append(np.where(leaf, -1, nodes["right"].astype(np.int64) + total))
        value.append(np.where(leaf, nodes["value"], 0.0))
        total += len(nodes)
    return Trees(
        bias=float(np.ravel(model._baseline_prediction)[0]),  # type: ignore[attr-defined]
        roots=np.asarray(roots, np.int32),
        feature=np.concatenate(feature).astype(np.int32),
        threshold=np.concatenate(threshold).astype(np.float64),
        left=np.concatenate(left).astype(np.int32),
        right=np.concatenate(right).astype(np.int32),
        value=np.concatenate(value).astype(np.float64),
    )


def train_linear(
    features: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], width: int
) -> tuple[NDArray[np.float64], float]:
    """Logistic regression of labels 0 and 1 on sets of features, each scaled by 1 / √size; both classes weigh the same.

    Parameters
    ----------
    features : sequence of (m,) int64
        Which of `width` features each of n examples has.
    labels : (n,) int64

    Returns
    -------
    (width,) float64
        Weights, and the bias.
    """
    from scipy.sparse import csr_matrix  # only fit pays for these imports
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    sizes = np.array([len(one) for one in features])
    values = np.repeat(1.0 / np.sqrt(np.maximum(sizes, 1)), sizes)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_matrix((values, np.concatenate(features), ends), shape=(len(features), width))
    with threadpool_limits(1):
        model = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=60, tol=1e-3).fit(matrix, labels)
    return np.asarray(model.coef_[0], np.float64), float(model.intercept_[0])


def train_dense(rows: Rows, labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """Logistic regression of labels 0 and 1 on rows (n, d); both classes weigh the same. Returns weights (d,), and the bias."""
    from sklearn.linear_model import LogisticRegression  # only fit pays for these imports
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        model = LogisticRegression(C=DENSE_REGULARISATION, class_weight="balanced", max_iter=300).fit(rows, labels)
    return np.asarray(model.coef_[0], np.float64), float(model.intercept_[0])
