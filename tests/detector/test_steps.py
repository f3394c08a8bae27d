"""Whether one magnitude explains a move: equal to the slow twin, and the quick bound never rules out what the twin calls a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive

from detector.steps import (
    STEP_BITS,
    STEP_SHARE,
    Moves,
    StepColumns,
    begin_moves,
    is_one_step,
    list_moves,
    may_be_one_step,
    moved_by_one_step,
    room_for_moves,
)

MISSING = 65535


def listed(child: list[float], codes: list[int], of: naive.Columns) -> tuple[StepColumns, Moves]:
    columns = StepColumns(
        MISSING, np.array(of.code_low), np.array(of.code_step), np.array(of.lattice), np.array(of.grain), np.array(of.low),
        np.array(of.high), np.array(of.units), 1.0 / np.array(of.units),
    )  # fmt: skip
    moves = room_for_moves(len(child))
    begin_moves(np.array(child), columns, moves)
    list_moves(np.array(child), np.array(codes), columns, moves)
    return columns, moves


def stepped(child: list[float], codes: list[int], of: naive.Columns) -> tuple[float, float]:
    explained, share = moved_by_one_step(*listed(child, codes, of))
    return float(explained), float(share)


def convinces(result: tuple[float, float]) -> bool:
    return result[0] >= STEP_BITS and result[1] >= STEP_SHARE


@dataclass(frozen=True)
class Case:
    child: list[float]
    codes: list[int]
    of: naive.Columns


def a_case(rng: np.random.Generator, w: int, size: float, share_free: float) -> Case:
    """A parent, and a child that moved by one size in some columns and freely in others; lattices, bounds and missing values too."""
    lattice = rng.choice([0.0, 1.0, 0.25], w)
    low, high = np.full(w, -10.0), np.full(w, 10.0)
    of = naive.Columns(
        code_low=low.tolist(),
        code_step=[20 / 65534] * w if rng.random() < 0.5 else [20 / 254] * w,
        lattice=lattice.tolist(),
        grain=np.where(lattice > 0, lattice, 1e-3).tolist(),
        low=low.tolist(),
        high=np.where(rng.random(w) < 0.1, -np.inf, high).tolist(),
        units=[[1.0] * w, rng.uniform(0.5, 2, w).tolist()],
    )
    parent = np.where(lattice > 0, np.rint(rng.uniform(-9, 9, w)), rng.uniform(-9, 9, w))
    free = rng.random(w) < share_free
    moved = rng.choice([-1.0, 0.0, 1.0], w, p=[0.45, 0.1, 0.45]) * np.where(free, rng.uniform(0, 4, w), size)
    child = np.clip(parent + moved * rng.choice([np.ones(w), np.array(of.units[1])]), low, high)
    parent[rng.random(w) < 0.05] = np.nan
    child[rng.random(w) < 0.05] = np.nan
    return Case(child.tolist(), naive.encode(parent.tolist(), of.code_low, of.code_step, MISSING - 1), of)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_description_lengths_equal_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = a_case(rng, int(rng.integers(1, 12)), float(rng.choice([0.5, 1.0, 2.0])), float(rng.choice([0.0, 0.3])))
    assert stepped(case.child, case.codes, case.of) == pytest.approx(
        naive.one_step(case.child, case.codes, MISSING, case.of), rel=1e-9, abs=1e-9
    )


def test_the_bound_rules_out_no_step_and_much_of_what_is_none() -> None:
    """From moves of one size only to moves of any size: what the twin calls a step is never ruled out."""
    rng = np.random.default_rng(7)
    steps = ruled_out = free = 0
    for _ in range(1500):
        share_free = float(rng.choice([0.0, 0.2, 0.35, 0.45, 1.0]))
        case = a_case(rng, int(rng.integers(3, 65)), float(rng.choice([0.5, 1.0, 2.0])), share_free)
        columns, moves = listed(case.child, case.codes, case.of)
        maybe = may_be_one_step(columns, moves)
        assert not moves.mass.any(), "the room is left as it was found"
        if convinces(naive.one_step(case.child, case.codes, MISSING, case.of)):
            steps += 1
            assert maybe
        elif share_free == 1.0:
            free += 1
            ruled_out += not maybe
    assert steps > 300
    assert ruled_out > 0.3 * free > 0


def test_the_room_of_one_pair_does_not_colour_the_next() -> None:
    rng = np.random.default_rng(8)
    cases = [a_case(rng, 20, 1.0, float(rng.choice([0.0, 1.0]))) for _ in range(40)]
    columns, moves = listed(cases[0].child, cases[0].codes, plain(20))
    for case in cases:
        begin_moves(np.array(case.child), columns, moves)
        fresh = room_for_moves(20)
        begin_moves(np.array(case.child), columns, fresh)
        codes = np.array(case.codes)
        assert is_one_step(np.array(case.child), codes, columns, moves) == is_one_step(
            np.array(case.child), codes, columns, fresh
        )


def plain(w: int) -> naive.Columns:
    """Continuous columns in [−10, 10] remembered in 65,535 steps."""
    return naive.Columns([-10.0] * w, [20 / 65534] * w, [0.0] * w, [1e-3] * w, [-10.0] * w, [10.0] * w, [[1.0] * w])


def test_one_magnitude_in_ten_columns_is_a_step_and_ten_magnitudes_are_none() -> None:
    of = plain(10)
    codes = naive.encode([0.0] * 10, of.code_low, of.code_step, 65535)
    alike = stepped([0.5, -0.5] * 5, codes, of)
    mixed = stepped([0.1 * 1.5**k for k in range(10)], codes, of)
    assert alike[0] > 30
    assert alike[1] == pytest.approx(1.0)
    assert mixed[0] < 12
    assert mixed[1] < 0.6


def test_moves_to_a_bound_or_of_fewer_than_three_columns_explain_nothing() -> None:
    of = plain(4)
    codes = naive.encode([9.5, 9.5, 9.5, 0.0], of.code_low, of.code_step, 65535)
    assert stepped([10.0, 10.0, 10.0, 0.5], codes, of) == (0.0, 0.0)
    assert stepped([9.0, 9.0, 9.5, 0.0], codes, of) == (0.0, 0.0)
    assert stepped([9.0, 9.0, 9.0, 0.0], codes, of)[0] > 0
