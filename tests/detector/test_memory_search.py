"""The search of a memory: the quick look at all rows errs within its bound, and never rules out a row that the slow twin would take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import naive

from detector.memory_search import (
    SLACK,
    agreement,
    agrees_with_any,
    begin_search,
    code_distance,
    farthest_of_interest,
    lacks_values,
    look_at_agreement,
    look_at_distances,
    look_at_distances_of_numbers,
    look_at_distances_to_gaps,
    room_for_search,
)

SEEDS = st.integers(0, 2**32)


def a_memory(rng: np.random.Generator, gaps: float) -> tuple[NDArray[np.uint16], NDArray[np.uint16], int]:
    """Codes of a query (w,), of remembered rows (r, w) near and far, and the code of a missing value."""
    kind = np.uint8 if rng.random() < 0.5 else np.uint16
    missing = int(np.iinfo(kind).max)
    w, r = int(rng.integers(1, 65)), int(rng.integers(1, 60))
    mine = rng.integers(0, missing, w)
    near = np.clip(mine + rng.integers(-2, 3, (r, w)), 0, missing - 1)
    rows = np.where(rng.random((r, 1)) < 0.3, near, rng.integers(0, missing, (r, w)))
    rows[rng.random((r, w)) < gaps] = missing
    mine[rng.random(w) < gaps] = missing
    return mine.astype(kind), rows.astype(kind), missing


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.1]), st.booleans())
def test_distances_at_first_look_err_within_the_slack(seed: int, gaps: float, named: bool) -> None:
    rng = np.random.default_rng(seed)
    mine, rows, missing = a_memory(rng, gaps)
    weight, category = rng.uniform(1e-9, 1, len(mine)), rng.integers(0, 2 if named else 1, len(mine))
    search = room_for_search(len(mine), len(mine), len(rows))
    numbers = begin_search(mine, missing, weight, category, search)
    assert numbers == (not category.any() and not (mine == missing).any())
    exact = [
        naive.code_distance(mine.tolist(), row, missing, weight.tolist(), category.tolist()) for row in rows.tolist()
    ]
    look = look_at_distances_of_numbers if numbers else look_at_distances
    look = look_at_distances_to_gaps if lacks_values(rows, len(rows), missing) else look
    assert lacks_values(rows, len(rows), missing) == bool((rows == missing).any())
    look(search, rows, len(rows), missing, search.sums)
    assert search.sums.tolist() == pytest.approx(exact, rel=SLACK / 4)
    twins = [code_distance(mine, row, missing, weight, category) for row in rows]
    assert twins == pytest.approx(exact, rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 9))
def test_of_interest_are_the_nearest_and_the_three_nearest_within_reach(squares: list[int], reach2: int) -> None:
    limit = farthest_of_interest(np.array(squares, np.float32), len(squares), float(reach2))
    ordered = sorted(squares)
    wanted = ordered[:1] + [square for square in ordered[:3] if square <= reach2]
    assert all(square <= limit for square in wanted)
    if len(squares) >= 3:
        assert limit <= max(ordered[0], min(ordered[2], reach2)) * (1 + 2 * SLACK)


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_agreement_with_any_row_equals_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mine, rows, _ = a_memory(rng, 0.0)
    surprise = rng.uniform(0, 9, len(mine)) * (rng.random(len(mine)) < 0.8)
    exact = [sum(s for a, b, s in zip(mine, row, surprise.tolist(), strict=True) if a == b) for row in rows]
    assert [agreement(mine, row, surprise) for row in rows] == exact
    search = room_for_search(len(mine), len(mine), len(rows))
    look_at_agreement(mine, surprise.astype(np.float32), rows, len(rows), search.sums)
    assert search.sums.tolist() == pytest.approx(exact, rel=SLACK / 4)
    for level in (0.0, max(exact), float(np.nextafter(max(exact), 0)), 1e9):
        derives = agrees_with_any(mine, surprise, level, rows, len(rows), search)
        assert derives == any(bits > level for bits in exact)
