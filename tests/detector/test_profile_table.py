"""Rows of flat arrays, given out and taken back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.row_pool import RowPool

LAYOUT = {"count": ((), np.int64), "hash": ((3,), np.uint64)}


@given(st.lists(st.integers(0, 4), max_size=200), st.integers(1, 5))
def test_rows_are_zero_when_given_out_and_keep_what_is_written(steps: list[int], capacity: int) -> None:
    """Against a dictionary: a step takes one row, or several at once, and writes its number into them; 0 gives the oldest one back."""
    rows = RowPool(LAYOUT, capacity)
    held: dict[int, int] = {}
    for number, take in enumerate(steps, start=1):
        for row in [rows.take()] if take == 1 else rows.take_many(take).tolist():
            assert row not in held
            assert rows.arrays["count"][row] == 0
            assert not rows.arrays["hash"][row].any()
            rows.arrays["count"][row], rows.arrays["hash"][row], held[row] = number, number, number
        if not take and held:
            row = next(iter(held))
            del held[row]
            rows.give_back(row)
        for row, value in held.items():
            assert rows.arrays["count"][row] == value
            assert (rows.arrays["hash"][row] == value).all()


def test_it_grows_by_a_quarter_and_no_more() -> None:
    rows = RowPool(LAYOUT, 8)
    for _ in range(10_000):
        rows.take()
    assert 10_000 <= rows.capacity <= 12_500 + 64
    assert list(rows.arrays) == list(LAYOUT)
    assert all(len(array) == rows.capacity for array in rows.arrays.values())
