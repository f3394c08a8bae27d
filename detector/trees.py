"""Tree models as plain arrays: what a trained corruption discriminator is once it is stored, and how many of them are scored.

Rules:

* A score depends on its row alone, never on the batch.
* Compiled kernels trust the indices of a tree and check nothing, so `Trees.check` refuses every tree from a file that does not end.
* A tree has at most `MOST_LEAVES` leaves: the leaves that a row may still reach are the bits of one small number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.errors import CorruptBaseline
from detector.kernels import LEAF_FACTOR, score_forest

Rows = NDArray[np.float64]

MOST_LEAVES = 16
_EVERY = (1 << MOST_LEAVES) - 1
_SLOTS = tuple(((1 << i) * LEAF_FACTOR & 0xFFFF) >> 12 for i in range(MOST_LEAVES))
"""`kernels.leaf_slot` of the first leaf that is possible, for each leaf."""


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
        scores: NDArray[np.float64] = Forest.of([self]).score(x)[0]
        return scores

    def check(self, columns: int) -> None:
        """Raise CorruptBaseline unless every walk ends: child > parent, child < q, feature < columns, at most `MOST_LEAVES` leaves."""
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
        Forest.of([self])


@dataclass(frozen=True, slots=True)
class Forest:
    """The inner nodes of k tree models with t trees in the order of their features, as `kernels.score_forest` goes through them.

    models                    those that it was made of
    feature, threshold, tree  (q,) of each inner node
    kept                      (q,) leaves of its tree that remain possible where a value is above the threshold, a bit each from the left
    value                     (t, 16) of each leaf, in its `kernels.leaf_slot`
    first                     (k + 1,) first tree of each model
    bias                      (k,)
    """

    models: tuple[Trees, ...]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    tree: NDArray[np.int64]
    kept: NDArray[np.uint16]
    value: NDArray[np.float64]
    first: NDArray[np.int64]
    bias: NDArray[np.float64]

    @classmethod
    def of(cls, models: Iterable[Trees]) -> Forest:
        """The models side by side; raises CorruptBaseline for a tree with more than `MOST_LEAVES` leaves."""
        models = tuple(models)
        nodes: list[tuple[int, float, int, int]] = []
        values: list[NDArray[np.float64]] = []
        for model in models:
            feature, threshold = model.feature.tolist(), model.threshold.tolist()
            for root in model.roots.tolist():
                inner, leaves = _taken_apart(model.left.tolist(), model.right.tolist(), root)
                nodes += [(feature[node], threshold[node], len(values), _EVERY & ~left) for node, left in inner]
                by_slot = np.zeros(MOST_LEAVES)
                for i, leaf in enumerate(leaves):
                    by_slot[_SLOTS[i]] = model.value[leaf]
                values.append(by_slot)
        nodes.sort(key=lambda node: node[0])
        columns = list(zip(*nodes, strict=True)) or [(), (), (), ()]
        return cls(
            models=models,
            feature=np.array(columns[0], np.int64),
            threshold=np.array(columns[1], np.float64),
            tree=np.array(columns[2], np.int64),
            kept=np.array(columns[3], np.uint16),
            value=np.array(values, np.float64).reshape(-1, MOST_LEAVES),
            first=np.cumsum([0, *(len(model.roots) for model in models)]),
            bias=np.array([model.bias for model in models], np.float64),
        )

    def is_of(self, models: Iterable[Trees]) -> bool:
        """Whether it was made of these very models."""
        models = tuple(models)
        return len(models) == len(self.models) and all(a is b for a, b in zip(models, self.models, strict=True))

    def score(self, x: Rows) -> NDArray[np.float64]:
        """Log odds of "corrupted" by each model, (k, n), of rows (n, d); independent of the batch."""
        out = np.empty((len(self.bias), len(x)))
        score_forest(x, self.feature, self.threshold, self.tree, self.kept, self.value, self.first, self.bias, out)
        return out


def _taken_apart(left: list[int], right: list[int], root: int) -> tuple[list[tuple[int, int]], list[int]]:
    """The inner nodes of a tree, each with the leaves on its left, a bit each; and its leaves from left to right."""
    inner: list[tuple[int, int]] = []
    leaves: list[int] = []

    def below(node: int, depth: int) -> int:
        if len(leaves) >= MOST_LEAVES or depth >= MOST_LEAVES:
            raise CorruptBaseline(f"a tree of the baseline has more than {MOST_LEAVES} leaves")
        if left[node] < 0:
            leaves.append(node)
            return 1 << (len(leaves) - 1)
        on_left = below(left[node], depth + 1)
        inner.append((node, on_left))
        return on_left | below(right[node], depth + 1)

    below(root, 0)
    return inner, leaves
