"""Tree models as plain arrays: what a trained corruption discriminator is once it is stored.

Rules:

* A score depends on its row alone, never on the batch.
* Compiled kernels trust the indices of a tree and check nothing, so `Trees.check` refuses every tree from a file that does not end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.errors import CorruptBaseline
from detector.kernels import score_trees

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trees:
    """An additive tree model as arrays; a node is a leaf when ``left < 0``; children come after their parent.

    roots (t,) int32; feature, left, right (q,) int32; threshold, value (q,) float64.
    """

    bias: float
    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]

    def score(self, x: Rows) -> NDArray[np.float64]:
        """Log odds of "corrupted", (n,); independent of the batch."""
        out = np.empty(len(x))
        score_trees(x, self.roots, self.bias, self.feature, self.threshold, self.left, self.right, self.value, out)
        return out

    def check(self, columns: int) -> None:
        """Raise CorruptBaseline unless every walk ends: child > parent, child < q, feature < columns."""
        q = len(self.left)
        inner = self.left >= 0
        at = np.arange(q)
        sizes = {len(a) for a in (self.feature, self.threshold, self.left, self.right, self.value)}
        whole = (self.roots, self.feature, self.left, self.right)
        ok = (
            sizes == {q}
            and all(a.ndim == 1 and a.dtype == np.int32 for a in whole)
            and all(a.ndim == 1 and a.dtype == np.float64 for a in (self.threshold, self.value))
            and bool(np.isfinite(self.bias))
            and bool(np.all((self.roots >= 0) & (self.roots < q)))
            and bool(np.all(self.left[inner] > at[inner]))
            and bool(np.all(self.right[inner] > at[inner]))
            and bool(np.all(self.left[inner] < q))
            and bool(np.all(self.right[inner] < q))
            and bool(np.all((self.feature[inner] >= 0) & (self.feature[inner] < columns)))
            and bool(np.isfinite(self.value).all())
        )
        if not ok:
            raise CorruptBaseline("a tree of the baseline does not end or points outside itself")
