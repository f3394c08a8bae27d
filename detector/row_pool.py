"""Rows of flat arrays, handed out and taken back.

Rules:

* A row that is handed out is all zeros. Memory of which no row was handed
  out is never touched, so it costs addresses only. Arrays grow by a quarter: a sudden rise in clients must not leave twice the memory
  that it needs. Growing replaces the arrays, so read them again from `arrays` after every `take`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class RowPool:
    """Rows of flat arrays. `arrays` are (capacity, *shape) each, by the names of the layout (name → shape of a row and type)."""

    def __init__(self, layout: Mapping[str, tuple[tuple[int, ...], DTypeLike]], capacity: int = 64) -> None:
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in layout.items()
        }
        self.capacity = capacity
        self._given = 0  # rows from here on were never given out
        self._free: list[int] = []

    def take(self) -> int:
        """A row of zeros."""
        if self._free:
            row = self._free.pop()
            self.clear(row)
            return row
        if self._given == self.capacity:
            self._grow()
        self._given += 1
        return self._given - 1

    def take_many(self, count: int) -> NDArray[np.int64]:
        """Rows of zeros, `count` of them: every array is cleared once for all of them."""
        again = [self._free.pop() for _ in range(min(count, len(self._free)))]
        if again:
            self.clear(again)
        new = count - len(again)
        while self._given + new > self.capacity:
            self._grow()
        self._given += new
        return np.concatenate([np.array(again, np.int64), np.arange(self._given - new, self._given)])

    def give_back(self, row: int) -> None:
        self._free.append(row)

    def clear(self, rows: int | Sequence[int]) -> None:
        for array in self.arrays.values():
            array[rows] = 0

    def _grow(self) -> None:
        self.capacity += max(64, self.capacity // 4)
        for name, array in self.arrays.items():
            larger = np.zeros((self.capacity, *array.shape[1:]), array.dtype)
            larger[: len(array)] = array
            self.arrays[name] = larger
