"""Measures that depend on order: how a query relates to the earlier queries in its client's memory. Compiled.

A query is ``distant`` if its nearest remembered row is far, ``novel`` if it also agrees with no remembered row in values that independent
rows rarely share, ``flipped`` if a near row was answered otherwise, ``stepped`` if it is a near row with many features moved by one size,
``collinear`` if it continues the line through the two rows before it.

Rules:

* A missing value agrees with nothing and is part of no step and no line.
* Only what the memory of one shard still holds is seen; `signals.py` says which signals a client of several shards keeps.
* Numba's cache knows a kernel by its own file only, and `fold.py` holds these kernels inlined. After a change here, remove
  `detector/__pycache__/*.nb*`; otherwise the fold runs the old code.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.features import BITS
from detector.fold_arrays import PARENTS

STEP_BITS = 12.0
STEP_SHARE = 0.6
STEP_REACH = 4.0
VARIED_SHARE = 0.05
COLLINEAR = 0.98
RETURN = 0.1
RAW_MISSING = 65535
"""Code of a missing value where wide rows are remembered column by column."""

_NOVEL = BITS["novel"]
_STEPPED = BITS["stepped"]
_FLIPPED = BITS["flipped"]
_COLLINEAR = BITS["collinear"]
_DISTANT = BITS["distant"]


class Moves(NamedTuple):
    """The columns that moved between two rows, as `list_moves` leaves them: size, tolerance, worth in bits and column of each, (w,)."""

    size: NDArray[np.float64]
    slack: NDArray[np.float64]
    worth: NDArray[np.float64]
    column: NDArray[np.int64]


@nb.njit(inline="always")
def _is_multiple(value, of):  # type: ignore[no-untyped-def]
    return abs(value / of - np.rint(value / of)) <= 1e-3


@nb.njit(inline="always")
def list_moves(child, parent_codes, missing, code_low, code_step, lattice, grain, low, high, moves):  # type: ignore[no-untyped-def]
    """Write the moves parent → child that are worth something; return how many, and their worth together in bits."""
    size, slack, worth, column = moves.size, moves.slack, moves.worth, moves.column
    count = 0
    total = 0.0
    for j in range(child.shape[0]):
        if parent_codes[j] == missing or not np.isfinite(child[j]):
            continue
        before = code_low[j] + float(parent_codes[j]) * code_step[j]
        fuzz = 0.5 * code_step[j]
        on_lattice = False
        if lattice[j] > 0.0:
            on_lattice = _is_multiple(child[j], lattice[j])
            snapped = np.rint(before / lattice[j]) * lattice[j]
            if abs(snapped - before) <= fuzz:
                before = snapped
                fuzz = 0.0
        delta = abs(child[j] - before)
        if delta <= max(fuzz, grain[j]) or child[j] <= low[j] or child[j] >= high[j]:
            continue
        tolerance = 0.01 * delta + fuzz + 0.5 * (lattice[j] if on_lattice else grain[j])
        value = np.log2(delta / (2.0 * tolerance))
        if value <= 0.0:
            continue
        size[count] = delta
        slack[count] = tolerance
        worth[count] = value
        column[count] = j
        total += value
        count += 1
    return count, total


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
def moved_by_one_step(child, parent_codes, missing, code_low, code_step, lattice, grain, low, high, unit, bits_out):  # type: ignore[no-untyped-def]
    """Description length that one magnitude explains in the move parent → child (detection notes §3b).

    child (w,) raw values, NaN where one is missing; parent_codes (w,) remembered codes; missing: the code of a missing value;
    unit (u, w): scales in which the step may be constant.
    A changed feature whose child value is not at a bound is worth max(0, log2(abs(delta) / 2 tolerance)) bits. The magnitude is the
    weighted median: whatever explains more than half of the worth holds it. bits_out[0]: worth explained less its largest term;
    bits_out[1]: worth explained over all worth.
    """
    w = child.shape[0]
    moves = Moves(np.empty(w), np.empty(w), np.empty(w), np.empty(w, np.int64))
    count, total = list_moves(child, parent_codes, missing, code_low, code_step, lattice, grain, low, high, moves)
    bits_out[0] = 0.0
    bits_out[1] = 0.0
    if count < 3:
        return
    size, slack, worth, column = moves.size, moves.slack, moves.worth, moves.column
    scaled = np.empty(count)
    for u in range(unit.shape[0]):
        for a in range(count):
            scaled[a] = size[a] / unit[u, column[a]]
        middle = weighted_median(scaled, worth, total)
        explained = 0.0
        largest = 0.0
        for a in range(count):
            if abs(scaled[a] - middle) <= slack[a] / unit[u, column[a]]:
                explained += worth[a]
                largest = max(largest, worth[a])
        if explained - largest > bits_out[0]:
            bits_out[0] = explained - largest
            bits_out[1] = explained / total


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


@nb.njit(inline="always")
def raw_code(value, low, step):  # type: ignore[no-untyped-def]
    if np.isnan(value):
        return np.uint16(RAW_MISSING)
    return np.uint16(min(65535.0, max(0.0, np.rint((value - low) / step))))


@nb.njit(cache=True, nogil=True)
def agreement(a, b, surprise):  # type: ignore[no-untyped-def]
    """Bits of exact agreement of two rows: the surprise, (d,), of each column in which they are equal."""
    total = 0.0
    for j in range(a.shape[0]):
        if a[j] == b[j]:
            total += surprise[j]
    return total


@nb.njit(inline="always")
def _place(a, in_ring, ring_size):  # type: ignore[no-untyped-def]
    """Where the a-th remembered row is: in the ring buffer from 0, in the reservoir from the ring's size."""
    return a if a < in_ring else ring_size + a - in_ring


@nb.njit(inline="always")
def _at_place(ring, reservoir, s, place):  # type: ignore[no-untyped-def]
    """What the two arrays of a memory, one for the ring buffer and one for the reservoir, hold of client s in a place."""
    return ring[s, place] if place < ring.shape[1] else reservoir[s, place - ring.shape[1]]


@nb.njit(inline="always")
def find_parents(codes, fmap, memory, s, parents):  # type: ignore[no-untyped-def]
    """Write the nearest remembered rows of client s, the nearest first; place −1 where there are fewer. codes (w,) of the row."""
    places, nearest = parents.place, parents.squares
    ring, reservoir, ring_size = memory.ring_codes, memory.reservoir_codes, memory.ring_codes.shape[1]
    missing, weight, category = fmap.missing, fmap.code_weight, fmap.code_category
    in_ring = min(memory.ring_n[s], ring_size)
    for p in range(PARENTS):
        places[p] = -1
        nearest[p] = np.inf
    for a in range(in_ring + memory.reservoir_n[s]):
        place = _place(a, in_ring, ring_size)
        squares = code_distance(codes, _at_place(ring, reservoir, s, place), missing, weight, category)
        if squares < nearest[PARENTS - 1]:
            p = PARENTS - 1
            while p > 0 and squares < nearest[p - 1]:
                nearest[p] = nearest[p - 1]
                places[p] = places[p - 1]
                p -= 1
            nearest[p] = squares
            places[p] = place


@nb.njit(inline="always")
def is_distant(codes, fmap, memory, s, parents):  # type: ignore[no-untyped-def]
    """Whether the nearest remembered row is far, or there is none; parents as `find_parents` wrote them."""
    if parents.place[0] < 0:
        return True
    if parents.squares[0] <= fmap.near2:
        return False
    other = _at_place(memory.ring_codes, memory.reservoir_codes, s, parents.place[0])
    changed = 0
    for j in range(codes.shape[0]):
        if codes[j] != other[j]:
            changed += 1
    return fmap.wide or changed > VARIED_SHARE * codes.shape[0]


@nb.njit(inline="always")
def is_flipped(label, memory, s, parents):  # type: ignore[no-untyped-def]
    """Whether the nearest remembered row was answered otherwise."""
    before = _at_place(memory.ring_label, memory.reservoir_label, s, parents.place[0])
    return label >= 0 and before >= 0 and before != label


@nb.njit(cache=True, nogil=True)
def weigh_agreement(raw, fmap, out):  # type: ignore[no-untyped-def]
    """Write how many bits an exact agreement in each column of a row, raw (d,), is worth: none at a bound or where a value is missing."""
    common, bits, low, top = fmap.common_value, fmap.agreement_bits, fmap.low, fmap.top
    for j in range(raw.shape[0]):
        other = 0 if raw[j] == common[j] else 1
        within = raw[j] > low[j] and raw[j] < top[j]  # a missing value is not
        out[j] = bits[other, j] if within else 0.0


@nb.njit(inline="always")
def is_derived(raw, codes, fmap, memory, s, scratch):  # type: ignore[no-untyped-def]
    """Whether the row shares improbable values with a remembered one, exactly (agreement weights, Fellegi & Sunter 1969)."""
    weights, level = scratch.weights, fmap.agreement_level
    weigh_agreement(raw, fmap, weights)
    if fmap.wide:
        mine, low, step = scratch.raw_codes, fmap.low, fmap.raw_step
        for j in range(raw.shape[0]):
            mine[j] = raw_code(raw[j], low[j], step[j])
        raw_ring = memory.raw_ring
        derived = False
        for a in range(min(memory.ring_n[s], raw_ring.shape[1])):
            derived = derived or not agreement(mine, raw_ring[s, a], weights) <= level
        return derived
    ring, reservoir, ring_size = memory.ring_codes, memory.reservoir_codes, memory.ring_codes.shape[1]
    in_ring = min(memory.ring_n[s], ring_size)
    derived = False
    for a in range(in_ring + memory.reservoir_n[s]):
        other = _at_place(ring, reservoir, s, _place(a, in_ring, ring_size))
        derived = derived or not agreement(codes, other, weights) <= level
    return derived


@nb.njit(inline="always")
def is_stepped(raw, fmap, memory, s, parents, result):  # type: ignore[no-untyped-def]
    """Whether the row is a near parent with its features moved by one magnitude; result (2,) is scratch."""
    ring_size = memory.ring_hash.shape[1]
    for p in range(PARENTS):
        place = parents.place[p]
        if place < 0 or parents.squares[p] > STEP_REACH * STEP_REACH * fmap.near2:
            continue
        if fmap.wide:
            # columns of wide inputs are remembered for the last rows only
            kept = memory.raw_ring.shape[1]
            age = (memory.ring_n[s] - 1 - place) % ring_size
            if place >= ring_size or age >= kept:
                continue
            moved_by_one_step(
                raw, memory.raw_ring[s, (memory.ring_n[s] - 1 - age) % kept], RAW_MISSING, fmap.low, fmap.raw_step,
                fmap.lattice, fmap.grain, fmap.low, fmap.high, fmap.unit, result,
            )  # fmt: skip
        else:
            moved_by_one_step(
                raw, _at_place(memory.ring_codes, memory.reservoir_codes, s, place), fmap.missing, fmap.code_low, fmap.code_step,
                fmap.lattice, fmap.grain, fmap.low, fmap.high, fmap.unit, result,
            )  # fmt: skip
        if result[0] >= STEP_BITS and result[1] >= STEP_SHARE:
            return True
    return False


@nb.njit(inline="always")
def is_collinear(codes, fmap, memory, s):  # type: ignore[no-untyped-def]
    """Whether the row continues along the line of the two before it.

    A sweep of one feature is what honest what-if tools do; and a return to where the client was before is two entities that take turns,
    not a search along a line.
    """
    ring_size = memory.ring_hash.shape[1]
    if memory.ring_n[s] < 2:
        return False
    last = memory.ring_codes[s, (memory.ring_n[s] - 1) % ring_size]
    before = memory.ring_codes[s, (memory.ring_n[s] - 2) % ring_size]
    missing, weight, category = fmap.missing, fmap.code_weight, fmap.code_category
    dot = 0.0
    n1 = 0.0
    n2 = 0.0
    moved = 0
    for j in range(codes.shape[0]):
        moved += int(codes[j] != last[j])
        if category[j] == 1:
            continue  # the order of its codes means nothing
        if codes[j] == missing or last[j] == missing or before[j] == missing:
            continue
        d1 = float(codes[j]) - float(last[j])
        d2 = float(last[j]) - float(before[j])
        dot += weight[j] * d1 * d2
        n1 += weight[j] * d1 * d1
        n2 += weight[j] * d2 * d2
    returned = n1 + n2 + 2.0 * dot < RETURN * n1
    return moved >= 2 and n1 > 0.0 and n2 > 0.0 and not returned and abs(dot) > COLLINEAR * np.sqrt(n1 * n2)


@nb.njit(inline="always")
def order_bits(rows, i, fmap, memory, s, scratch):  # type: ignore[no-untyped-def]
    """All oddness bits of row i, those by what came before it too, and whether it is novel.

    An unreadable row has no place: it is distant and novel, and derives from nothing.
    """
    readable = rows.regions[i] >= 0
    bits = np.uint32(rows.bits[i])
    if not readable:
        return np.uint32(bits | np.uint32(_DISTANT) | np.uint32(_NOVEL)), True
    codes = rows.codes[i]
    parents = scratch.parents
    find_parents(codes, fmap, memory, s, parents)
    distant = is_distant(codes, fmap, memory, s, parents)
    novel = distant and not is_derived(rows.raw[i], codes, fmap, memory, s, scratch)
    if distant:
        bits |= np.uint32(_DISTANT)
    elif is_flipped(rows.labels[i], memory, s, parents):
        bits |= np.uint32(_FLIPPED)
    if novel:
        bits |= np.uint32(_NOVEL)
    if is_stepped(rows.raw[i], fmap, memory, s, parents, scratch.step):
        bits |= np.uint32(_STEPPED)
    if is_collinear(codes, fmap, memory, s):
        bits |= np.uint32(_COLLINEAR)
    return np.uint32(bits), novel
