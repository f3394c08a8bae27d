"""The search of a client's memory for the rows from which a query derives. Compiled.

Two answers: the nearest remembered rows (parents), and whether the query shares improbable values with any of them. Every remembered row
is looked at for every query, so this is where a full memory costs. A first look at all rows is in float32, in whatever order the machine
adds fastest; its error is bounded. Rows that it cannot rule out are computed again in float64, column by column.

Rules:

* What is decided never depends on the first look: a row is ruled out only where the exact number would rule it out too.
* A missing value agrees with nothing; a value and a missing one are one unit apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.fold_arrays import PARENTS

SLACK = 1e-4
"""Relative error that the first look is granted; a float32 sum of w terms ≥ 0 errs by less than (w + 4)·2⁻²⁴, w at most some hundred."""
_ANY_ORDER = {"reassoc", "contract", "nsz"}
_ONE = np.float32(1.0)


class MemorySearch(NamedTuple):
    """Room for the search of one memory of r places.

    surprise              (d,) bits of an agreement in each column
    code, apart, differs  (w,) of the query: its codes, and the weight of a squared difference and of any difference
    sums                  (r,) what the first look found
    """

    surprise: NDArray[np.float32]
    code: NDArray[np.float32]
    apart: NDArray[np.float32]
    differs: NDArray[np.float32]
    sums: NDArray[np.float32]


class Parents(NamedTuple):
    """The nearest remembered rows of a query: places in the memory, (PARENTS,), and squared distances."""

    place: NDArray[np.int64]
    squares: NDArray[np.float64]


@nb.njit(cache=True, nogil=True)
def room_for_search(d, width, places):  # type: ignore[no-untyped-def]
    """`MemorySearch` for d columns, codes of a width, and that many remembered rows."""
    return MemorySearch(
        np.zeros(d, np.float32), np.zeros(width, np.float32), np.zeros(width, np.float32), np.zeros(width, np.float32),
        np.zeros(places, np.float32),
    )  # fmt: skip


@nb.njit(cache=True, nogil=True)
def code_distance(a, b, missing, weight, category):  # type: ignore[no-untyped-def]
    """Squared standardised distance of two remembered rows; a value and a missing one are one unit apart."""
    total = 0.0
    for j in range(a.shape[0]):
        delta = float(a[j]) - float(b[j])
        if a[j] == missing or b[j] == missing:
            if delta != 0.0:
                total += 1.0
        elif category[j] == 1:
            if delta != 0.0:
                total += weight[j]
        else:
            total += weight[j] * delta * delta
    return total


@nb.njit(cache=True, nogil=True)
def agreement(a, b, surprise):  # type: ignore[no-untyped-def]
    """Bits of exact agreement of two rows: the surprise, (d,), of each column in which they are equal."""
    total = 0.0
    for j in range(a.shape[0]):
        if a[j] == b[j]:
            total += surprise[j]
    return total


@nb.njit(cache=True, nogil=True)
def begin_search(codes, missing, weight, category, search):  # type: ignore[no-untyped-def]
    """Write the query's codes, (w,), with the weights that its columns have for it; return whether all of them are numbers."""
    code, apart, differs = search.code, search.apart, search.differs
    others = 0
    for j in range(codes.shape[0]):
        lacks, named = codes[j] == missing, category[j] == 1
        code[j] = codes[j]
        apart[j] = 0.0 if lacks or named else weight[j]
        differs[j] = 1.0 if lacks else (weight[j] if named else 0.0)
        others += int(lacks or named)
    return others == 0


@nb.njit(cache=True, nogil=True)
def lacks_values(rows, count, missing):  # type: ignore[no-untyped-def]
    """Whether any of the first `count` rows (r, w) lacks a value; the code of a missing value is the largest of its type."""
    flat = rows.reshape(rows.size)
    most = flat[0]
    for k in range(count * rows.shape[1]):
        most = max(most, flat[k])
    return count > 0 and most == missing


@nb.njit(cache=True, nogil=True, fastmath=_ANY_ORDER)
def look_at_distances_of_numbers(search, rows, count, missing, out):  # type: ignore[no-untyped-def]
    """As `look_at_distances`, where the query has a number in every column: nothing counts only because it differs."""
    code, apart = search.code, search.apart
    for a in range(count):
        total = np.float32(0.0)
        for j in range(code.shape[0]):
            delta = code[j] - np.float32(rows[a, j])
            total += apart[j] * (delta * delta)
        out[a] = total


@nb.njit(cache=True, nogil=True, fastmath=_ANY_ORDER)
def look_at_distances(search, rows, count, missing, out):  # type: ignore[no-untyped-def]
    """Write the squared distance of the query to each of the first `count` rows (r, w), about, (r,); of the rows none lacks a value."""
    code, apart, differs = search.code, search.apart, search.differs
    for a in range(count):
        total = np.float32(0.0)
        for j in range(code.shape[0]):
            delta = code[j] - np.float32(rows[a, j])
            square = delta * delta
            total += apart[j] * square + differs[j] * min(square, _ONE)
        out[a] = total


@nb.njit(cache=True, nogil=True, fastmath=_ANY_ORDER)
def look_at_distances_to_gaps(search, rows, count, missing, out):  # type: ignore[no-untyped-def]
    """As `look_at_distances`, where rows lack values."""
    code, apart, differs = search.code, search.apart, search.differs
    gap = np.float32(missing)
    for a in range(count):
        total = np.float32(0.0)
        for j in range(code.shape[0]):
            other = np.float32(rows[a, j])
            delta = code[j] - other
            square = delta * delta
            different = min(square, _ONE)
            total += different if other == gap else apart[j] * square + differs[j] * different
        out[a] = total


@nb.njit(cache=True, nogil=True, fastmath=_ANY_ORDER)
def look_at_agreement(mine, surprise, rows, count, out):  # type: ignore[no-untyped-def]
    """Write the bits in which the first `count` rows (r, d) agree with mine (d,), about, (r,); surprise (d,) of each column."""
    for a in range(count):
        total = np.float32(0.0)
        for j in range(mine.shape[0]):
            total += surprise[j] if mine[j] == rows[a, j] else np.float32(0.0)
        out[a] = total


@nb.njit(cache=True, nogil=True)
def farthest_of_interest(squares, count, reach2):  # type: ignore[no-untyped-def]
    """Squared distance, as first looked at, up to which a row may be the nearest, or one of the nearest within reach."""
    first, second, third = np.inf, np.inf, np.inf
    for a in range(count):
        square = np.float64(squares[a])
        if square < third:
            if square < second:
                third = second
                if square < first:
                    second = first
                    first = square
                else:
                    second = square
            else:
                third = square
    return max(first, min(third, reach2)) * (1.0 + SLACK)


@nb.njit(cache=True, nogil=True)
def insert_parent(places, nearest, place, square):  # type: ignore[no-untyped-def]
    """Put a remembered row among the nearest, where it belongs; of two equally near the earlier one comes first."""
    p = PARENTS - 1
    if not square < nearest[p]:
        return
    while p > 0 and square < nearest[p - 1]:
        nearest[p] = nearest[p - 1]
        places[p] = places[p - 1]
        p -= 1
    nearest[p] = square
    places[p] = place


@nb.njit(inline="always")
def at_place(ring, reservoir, s, place):  # type: ignore[no-untyped-def]
    """What the two arrays of a memory, one for the ring buffer and one for the reservoir, hold of client s in a place."""
    return ring[s, place] if place < ring.shape[1] else reservoir[s, place - ring.shape[1]]


@nb.njit(inline="always")
def find_parents(codes, fmap, memory, s, reach2, search, parents):  # type: ignore[no-untyped-def]
    """Write the nearest remembered rows of client s, the nearest first, place −1 where there are fewer.

    codes (w,) of the query; reach2: squared distance up to which more than the nearest one is wanted. A place is counted in the ring buffer
    from 0, in the reservoir from the ring's size.
    """
    places, nearest, squares = parents.place, parents.squares, search.sums
    ring, reservoir = memory.ring_codes, memory.reservoir_codes
    missing, weight, category = fmap.missing, fmap.code_weight, fmap.code_category
    ring_size = ring.shape[1]
    in_ring, kept = min(memory.ring_n[s], ring_size), memory.reservoir_n[s]
    for p in range(PARENTS):
        places[p] = -1
        nearest[p] = np.inf
    numbers = begin_search(codes, missing, weight, category, search)
    if lacks_values(ring[s], in_ring, missing) or lacks_values(reservoir[s], kept, missing):
        look_at_distances_to_gaps(search, ring[s], in_ring, missing, squares)
        look_at_distances_to_gaps(search, reservoir[s], kept, missing, squares[in_ring:])
    elif numbers:
        look_at_distances_of_numbers(search, ring[s], in_ring, missing, squares)
        look_at_distances_of_numbers(search, reservoir[s], kept, missing, squares[in_ring:])
    else:
        look_at_distances(search, ring[s], in_ring, missing, squares)
        look_at_distances(search, reservoir[s], kept, missing, squares[in_ring:])
    limit = farthest_of_interest(squares, in_ring + kept, reach2)
    for a in range(in_ring + kept):
        if squares[a] <= limit:
            place = a if a < in_ring else ring_size + a - in_ring
            square = code_distance(codes, at_place(ring, reservoir, s, place), missing, weight, category)
            insert_parent(places, nearest, place, square)


@nb.njit(cache=True, nogil=True)
def agrees_with_any(mine, surprise, level, rows, count, search):  # type: ignore[no-untyped-def]
    """Whether one of the first `count` rows (r, d) agrees with mine (d,) in more bits than `level`; surprise (d,) of each column."""
    most = 0.0
    for j in range(surprise.shape[0]):
        most += surprise[j]
        search.surprise[j] = surprise[j]
    if most <= level:
        return False
    look_at_agreement(mine, search.surprise, rows, count, search.sums)
    agrees = False
    for a in range(count):
        if not (agrees or search.sums[a] * (1.0 + SLACK) <= level):
            agrees = not agreement(mine, rows[a], surprise) <= level
    return agrees
