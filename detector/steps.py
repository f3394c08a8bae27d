"""Whether one magnitude explains the move from a remembered row to a query (``stepped``). Compiled.

Jacobian-based augmentation moves many features of a row by one size. How much of a move one size explains is a description length in bits:
`moved_by_one_step` computes it, with a sort. Most moves are nowhere near, and `may_be_one_step` shows that without a logarithm or a sort.

Rules:

* `may_be_one_step` never says no where `moved_by_one_step` would convince: it bounds what any magnitude explains from above. So what is
  decided does not depend on it.
* A missing value is part of no step.
* The bits of a positive float32, read as an integer, are its logarithm: a quarter of an octave is 2²¹ of them, and reading them as a
  fraction of 2²³ gives log2 less at most 0.0861.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.borrowed import lent

STEP_BITS = 12.0
STEP_SHARE = 0.6
_QUARTER_OCTAVE = 21
_BINS = 1 << (32 - _QUARTER_OCTAVE - 1)
_OCTAVE = 1.0 / (1 << 23)
_BIAS = 127.0
_LOG_ERROR = 0.087
"""With room for the rounding of sums of float32."""
_SHARE_BOUND = np.float32(STEP_SHARE * 0.9999)
_PRECISE = 2.0
"""Worth from which a move's tolerance is at most an eighth of its size: all of them that one magnitude explains lie in three bins."""
_HALF_OCTAVES = 12
"""How far below the largest move `an_octave_may_hold` looks; beyond, it says that one may."""
_ROUNDING = 1e-4
"""By how much of all worth two sums of float32 may differ."""


class StepColumns(NamedTuple):
    """What a step needs to know of each of d columns. Codes are those in which the parent is remembered.

    missing         code of a missing value
    code_low, code_step, lattice, grain, low, high  (d,) as in `fold_arrays.MapArrays`
    unit, per_unit  (u, d) scales in which a step may be constant, and their reciprocals
    """

    missing: int
    code_low: NDArray[np.float64]
    code_step: NDArray[np.float64]
    lattice: NDArray[np.float64]
    grain: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    unit: NDArray[np.float64]
    per_unit: NDArray[np.float64]


class Moves(NamedTuple):
    """A move parent → child, column by column, (d,).

    rounding  half of the child's own rounding; infinite where the child can't be part of a step (at a bound, missing, a category)
    size      what the column moved by
    slack     tolerance of that
    ratio     size over twice the slack, 0 for no move; its log2 is what the move is worth in bits, if that is positive
    short, short_bits  the ratio, then the scaled size, as float32, and the same memory as integers
    worth     lower bound of the worth in bits
    mass      (bins,) worth by size, all zero between calls
    """

    rounding: NDArray[np.float64]
    size: NDArray[np.float64]
    slack: NDArray[np.float64]
    ratio: NDArray[np.float64]
    short: NDArray[np.float32]
    short_bits: NDArray[np.int32]
    worth: NDArray[np.float32]
    mass: NDArray[np.float32]


@nb.njit(cache=True, nogil=True)
def room_for_moves(d):  # type: ignore[no-untyped-def]
    """`Moves` of d columns, not yet written."""
    short = np.zeros(d, np.float32)
    return Moves(
        np.zeros(d), np.zeros(d), np.zeros(d), np.zeros(d), short, short.view(np.int32), np.zeros(d, np.float32),
        np.zeros(_BINS + 2, np.float32),
    )  # fmt: skip


@nb.njit(cache=True, nogil=True, error_model="numpy")
def begin_moves(child, columns, moves):  # type: ignore[no-untyped-def]
    """Write what all moves to one child, raw values (d,), have in common."""
    lattice, grain, low, high, rounding = columns.lattice, columns.grain, columns.low, columns.high, moves.rounding
    for j in range(child.shape[0]):
        steps = child[j] / lattice[j]
        on_lattice = lattice[j] > 0.0 and abs(steps - np.rint(steps)) <= 1e-3
        inside = child[j] > low[j] and child[j] < high[j]  # a missing value is not
        rounding[j] = 0.5 * (lattice[j] if on_lattice else grain[j]) if inside else np.inf


@nb.njit(cache=True, nogil=True, error_model="numpy")
def list_moves(child, parent_codes, columns, moves):  # type: ignore[no-untyped-def]
    """Write size, slack and ratio of each column's move, parent_codes (d,) → child (d,), after `begin_moves`."""
    columns, moves = lent(columns), lent(moves)
    code_low, code_step, lattice, grain = columns.code_low, columns.code_step, columns.lattice, columns.grain
    missing, rounding, size, slack, ratio = columns.missing, moves.rounding, moves.size, moves.slack, moves.ratio
    for j in range(child.shape[0]):
        near = code_low[j] + float(parent_codes[j]) * code_step[j]
        half = 0.5 * code_step[j]
        snapped = np.rint(near / lattice[j]) * lattice[j]
        # the parent's value is known exactly where only one point of the lattice can be it
        exact = lattice[j] > 0.0 and abs(snapped - near) <= half
        before = snapped if exact else near
        fuzz = 0.0 if exact else half
        delta = abs(child[j] - before)
        tolerance = 0.01 * delta + fuzz + rounding[j]
        moved = delta > max(fuzz, grain[j]) and parent_codes[j] != missing
        size[j] = delta
        slack[j] = tolerance
        ratio[j] = delta / (2.0 * tolerance) if moved else 0.0


@nb.njit(inline="always")
def _bin(bits):  # type: ignore[no-untyped-def]
    return (bits >> _QUARTER_OCTAVE) & (_BINS - 1)


@nb.njit(cache=True, nogil=True, fastmath={"reassoc"})
def weigh_moves(moves):  # type: ignore[no-untyped-def]
    """Write a lower bound of what each move is worth, 0 for a vague one; return how many there are, their worth, and that of vague ones."""
    short, bits, worth, ratio = moves.short, moves.short_bits, moves.worth, moves.ratio
    for j in range(ratio.shape[0]):
        short[j] = ratio[j]
    zero = np.float32(0.0)
    count, total, vague = zero, zero, zero
    for j in range(worth.shape[0]):
        least = max(zero, np.float32(bits[j]) * np.float32(_OCTAVE) - np.float32(_BIAS))
        count += np.float32(1.0) if short[j] > np.float32(1.0) else zero
        precise = least >= np.float32(_PRECISE)
        total += least
        vague += zero if precise else least
        worth[j] = least if precise else zero
    return count, total, vague


@nb.njit(cache=True, nogil=True, fastmath={"reassoc"})
def worth_below(bits, worth, limit):  # type: ignore[no-untyped-def]
    """What the moves, worth (d,), are worth together whose sizes have smaller bits (d,) than `limit`."""
    total = np.float32(0.0)
    for j in range(worth.shape[0]):
        total += worth[j] if bits[j] < limit else np.float32(0.0)
    return total


@nb.njit(cache=True, nogil=True)
def an_octave_may_hold(need, precise, bits, worth):  # type: ignore[no-untyped-def]
    """Whether moves within an octave may be worth `need` of the `precise` bits that all, worth (d,), are worth; bits (d,) of their sizes.

    Three neighbouring quarters lie in an octave that begins at every other quarter. Octaves are tried from the largest move down, until
    what is left is too little.
    """
    need -= np.float32(_ROUNDING) * precise
    top = np.int32(0)
    for j in range(worth.shape[0]):
        top = max(top, bits[j] if worth[j] > np.float32(0.0) else np.int32(0))
    end = np.int64(_bin(top)) + 1
    before, last = precise, precise
    for half in range(1, _HALF_OCTAVES):
        below = worth_below(bits, worth, np.int32(max(np.int64(0), end - 2 * half) << _QUARTER_OCTAVE))
        if before - below >= need:
            return True
        if last < need:  # all that the octaves further down can hold
            return False
        before = last
        last = below
    return True


@nb.njit(cache=True, nogil=True)
def most_in_three_bins(moves):  # type: ignore[no-untyped-def]
    """What the moves in three neighbouring quarters of an octave are worth at most."""
    bits, worth, mass = moves.short_bits, moves.worth, moves.mass
    for j in range(worth.shape[0]):
        mass[_bin(bits[j])] += worth[j]
    most = np.float32(0.0)
    for j in range(worth.shape[0]):
        b = _bin(bits[j])
        most = max(most, mass[b] + mass[b + 1] + mass[b + 2])
    for j in range(worth.shape[0]):
        mass[_bin(bits[j])] = np.float32(0.0)
    return most


@nb.njit(cache=True, nogil=True)
def may_be_one_step(columns, moves):  # type: ignore[no-untyped-def]
    """Whether some magnitude might explain `STEP_BITS` and `STEP_SHARE` of the moves that `list_moves` wrote; no only where none can.

    A move that is worth `_PRECISE` bits is explained by magnitudes within an eighth of its size. So those that one magnitude explains lie
    in three neighbouring quarters of an octave. The others count as explained.
    """
    columns, moves = lent(columns), lent(moves)
    count, total, vague = weigh_moves(moves)
    unseen = vague + np.float32(_LOG_ERROR) * count
    if count < 3 or total + np.float32(_LOG_ERROR) * count < STEP_BITS:
        return False
    need = max(np.float32(STEP_BITS), _SHARE_BOUND * total) - unseen
    short, size, per_unit = moves.short, moves.size, columns.per_unit
    for u in range(per_unit.shape[0]):
        for j in range(short.shape[0]):
            short[j] = size[j] * per_unit[u, j]
        if an_octave_may_hold(need, total - vague, moves.short_bits, moves.worth) and most_in_three_bins(moves) >= need:
            return True
    return False


@nb.njit(inline="always")
def weighted_median(values, weights, total):  # type: ignore[no-untyped-def]
    """The smallest value at or below which half of the total weight lies."""
    order = np.argsort(values)
    half = 0.0
    for a in order:
        half += weights[a]
        if half >= 0.5 * total:
            return values[a]
    return values[order[0]]


@nb.njit(cache=True, nogil=True)
def moved_by_one_step(columns, moves):  # type: ignore[no-untyped-def]
    """Description length that one magnitude explains in the moves that `list_moves` wrote (detection notes §3b).

    A changed feature whose child value is not at a bound is worth max(0, log2(size / 2 slack)) bits. The magnitude is the weighted median:
    whatever explains more than half of the worth holds it. Returns the worth explained less its largest term, and the worth explained over
    all worth.
    """
    size, slack, ratio, unit = moves.size, moves.slack, moves.ratio, columns.unit
    column = np.flatnonzero(ratio > 1.0)
    best, share = 0.0, 0.0
    if column.shape[0] < 3:
        return best, share
    worth = np.empty(column.shape[0])
    total = 0.0
    for a, j in enumerate(column):
        worth[a] = np.log2(ratio[j])
        total += worth[a]
    scaled = np.empty(column.shape[0])
    for u in range(unit.shape[0]):
        for a, j in enumerate(column):
            scaled[a] = size[j] / unit[u, j]
        middle = weighted_median(scaled, worth, total)
        explained = 0.0
        largest = 0.0
        for a, j in enumerate(column):
            if abs(scaled[a] - middle) <= slack[j] / unit[u, j]:
                explained += worth[a]
                largest = max(largest, worth[a])
        if explained - largest > best:
            best = explained - largest
            share = explained / total
    return best, share


@nb.njit(cache=True, nogil=True)
def is_one_step(child, parent_codes, columns, moves):  # type: ignore[no-untyped-def]
    """Whether one magnitude explains the move parent_codes (d,) → child (d,), after `begin_moves`."""
    list_moves(child, parent_codes, columns, moves)
    if not may_be_one_step(columns, moves):
        return False
    explained, share = moved_by_one_step(columns, moves)
    return explained >= STEP_BITS and share >= STEP_SHARE
