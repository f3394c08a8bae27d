"""The ladder: fixed levels of the fused score, so that the moment at which a client reached one does not depend on when it was looked at.

Rules: a step is `fold_arrays.LADDER_GROWTH` times the one before. A score counts as the highest step that it has reached.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detector.fold_arrays import LADDER_FIRST, LADDER_GROWTH, LADDER_STEPS


def ladder(fused: float) -> int:
    """Return the number of ladder steps at or below a fused score. Raises ValueError for NaN.

    >>> ladder(0.0)
    0
    """
    return int(ladders(np.array([fused]))[0])


def ladders(fused: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of ladder steps at or below each of (n,) fused scores. Raises ValueError for NaN."""
    if np.isnan(fused).any():
        raise ValueError("a fused score is not a number")
    steps = np.zeros(len(fused), np.int64)
    on = fused >= LADDER_FIRST
    above = np.floor(np.log(fused[on] / LADDER_FIRST) / np.log(LADDER_GROWTH))
    steps[on] = np.minimum(above, LADDER_STEPS - 1).astype(np.int64) + 1
    return steps


def rung(steps: int) -> float:
    """Return the fused score of a ladder step, from 1 on.

    >>> ladder(rung(9) * 1.001)
    9
    """
    return LADDER_FIRST * LADDER_GROWTH ** (steps - 1)
