"""Fitting what rows take from sentence embeddings: axes, and weights of a second domain discriminator.

Rules:

* The axes are those in which the embeddings of the domain's texts vary most. All folds share them, because rows of different axes cannot
  be compared; with `MOST_EMBEDDED` texts for `AXES` of them they hardly know a single text.
* The discriminator is a logistic regression on the embeddings, fold by fold, of the same texts as that on n-grams.
* Of each group of texts `MOST_EMBEDDED` take part at most: an embedding costs a thousand times what a row costs.

It does not work where foreign texts mean the same as those of the domain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detector.fitting.discriminators import train_dense
from detector.text import AXES, Embedder, Meaning

MOST_EMBEDDED = 3000


def fit_meanings(
    embedder: Embedder,
    own: tuple[Sequence[str], NDArray[np.int64]],
    foreign: tuple[Sequence[str], NDArray[np.int64]],
    folds: int,
    rng: np.random.Generator,
) -> list[Meaning]:
    """Learn from texts of the domain and foreign ones, each with its fold: one without each fold, and last one that saw all."""
    embedded: list[NDArray[np.float64]] = []
    fold: list[NDArray[np.int64]] = []
    label: list[NDArray[np.int64]] = []
    for texts, of in (own, foreign):
        chosen = np.sort(rng.permutation(len(texts))[:MOST_EMBEDDED])
        embedded.append(np.array([embedder.embed(texts[i]) for i in chosen.tolist()], np.float64))
        fold.append(of[chosen])
        label.append(np.full(len(chosen), len(label), np.int64))
    center = embedded[0].mean(0)
    axes = np.linalg.svd(embedded[0] - center, full_matrices=False)[2][: AXES - 1].T
    axes = np.pad(axes, ((0, 0), (0, AXES - 1 - axes.shape[1])))
    rows, of_row, labels = np.concatenate(embedded), np.concatenate(fold), np.concatenate(label)
    found = []
    for k in (*range(folds), -1):
        weights, bias = train_dense(rows[of_row != k], labels[of_row != k])
        found.append(
            Meaning(
                embedder,
                center.astype(np.float32),
                np.ascontiguousarray(axes, np.float32),
                weights.astype(np.float32),
                bias,
            )
        )
    return found
