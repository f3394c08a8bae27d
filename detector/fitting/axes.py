"""Axes of the reference: rows as expanded numbers, their principal axes, and centres that lie far apart.

Rules: used only when a feature map is fitted. `kernels.project_rows` does the same row by row for queries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_AXES = 24


def expand(
    x: NDArray[np.float64],
    center: NDArray[np.float64],
    scale: NDArray[np.float64],
    start: NDArray[np.int64],
    category_counts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Complete rows (n, d) as standardised numbers and one-hot categories, (n, e); an unseen category is all zeros."""
    out = np.zeros((len(x), int(start[-1] + max(1, category_counts[-1]))))
    for j in range(x.shape[1]):
        if category_counts[j] == 0:
            out[:, start[j]] = np.clip((x[:, j] - center[j]) / scale[j], -8, 8)
        else:
            known = np.flatnonzero(x[:, j] < category_counts[j])
            out[known, start[j] + x[known, j].astype(int)] = 1 / scale[j]
    return out


def principal_axes(expanded: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal axes for 99 % of the variance, at most `MAX_AXES`."""
    values, vectors = np.linalg.eigh(np.cov(expanded, rowvar=False).reshape(expanded.shape[1], -1))
    order = np.argsort(values)[::-1]
    values, vectors = np.maximum(values[order], 0), vectors[:, order]
    wanted = int(np.searchsorted(np.cumsum(values) / max(values.sum(), 1e-12), 0.99)) + 1
    m = max(2, min(MAX_AXES, wanted, expanded.shape[1]))
    return np.ascontiguousarray(vectors[:, :m]), np.maximum(np.sqrt(values[:m]), 1e-6)


def spread_out(rows: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """k centres by farthest-first traversal (Gonzalez 1985), then three Lloyd steps."""
    centers = [0]
    best = ((rows - rows[0]) ** 2).sum(1)
    while len(centers) < min(k, len(rows)):
        centers.append(int(np.argmax(best)))
        best = np.minimum(best, ((rows - rows[centers[-1]]) ** 2).sum(1))
    at = rows[centers]
    for _ in range(3):
        owner = np.argmin(((rows[:, None] - at[None]) ** 2).sum(-1), 1)
        at = np.array([rows[owner == c].mean(0) if np.any(owner == c) else at[c] for c in range(len(at))])
    return np.asarray(at, np.float64)
