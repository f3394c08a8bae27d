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
from detector.memory_search import (
    MemorySearch,
    Parents,
    agrees_with_any,
    at_place,
    find_parents,
    room_for_search,
)
from detector.steps import Moves, StepColumns, begin_moves, is_one_step, room_for_moves

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


class Scratch(NamedTuple):
    """What the kernels of one row share: the columns as steps see them, and room.

    weights    (d,) bits of an agreement in each column
    raw_codes  (d,) codes column by column of a wide input
    """

    columns: StepColumns
    search: MemorySearch
    parents: Parents
    moves: Moves
    weights: NDArray[np.float64]
    raw_codes: NDArray[np.uint16]


@nb.njit(inline="always")
def room_for_rows(fmap, memory):  # type: ignore[no-untyped-def]
    """`Scratch` for the rows of a poll."""
    d = fmap.low.shape[0]
    missing, low, step = fmap.missing, fmap.code_low, fmap.code_step
    if fmap.wide:
        missing, low, step = RAW_MISSING, fmap.low, fmap.raw_step
    places = memory.ring_hash.shape[1] + memory.reservoir_hash.shape[1]
    return Scratch(
        StepColumns(missing, low, step, fmap.lattice, fmap.grain, fmap.low, fmap.high, fmap.unit, 1.0 / fmap.unit),
        room_for_search(d, memory.ring_codes.shape[2], places),
        Parents(np.empty(PARENTS, np.int64), np.empty(PARENTS)),
        room_for_moves(d),
        np.zeros(d),
        np.zeros(d, np.uint16),
    )


@nb.njit(inline="always")
def raw_code(value, low, step):  # type: ignore[no-untyped-def]
    if np.isnan(value):
        return np.uint16(RAW_MISSING)
    return np.uint16(min(65535.0, max(0.0, np.rint((value - low) / step))))


@nb.njit(inline="always")
def is_distant(codes, fmap, memory, s, parents):  # type: ignore[no-untyped-def]
    """Whether the nearest remembered row is far, or there is none; parents as `find_parents` wrote them."""
    if parents.place[0] < 0:
        return True
    if parents.squares[0] <= fmap.near2:
        return False
    other = at_place(memory.ring_codes, memory.reservoir_codes, s, parents.place[0])
    changed = 0
    for j in range(codes.shape[0]):
        if codes[j] != other[j]:
            changed += 1
    return fmap.wide or changed > VARIED_SHARE * codes.shape[0]


@nb.njit(inline="always")
def is_flipped(label, memory, s, parents):  # type: ignore[no-untyped-def]
    """Whether the nearest remembered row was answered otherwise."""
    before = at_place(memory.ring_label, memory.reservoir_label, s, parents.place[0])
    return label >= 0 and before >= 0 and before != label


@nb.njit(cache=True, nogil=True)
def weigh_agreement(raw, common, bits, low, top, out):  # type: ignore[no-untyped-def]
    """Write how many bits an exact agreement in each column of a row, raw (d,), is worth: none at a bound or where a value is missing."""
    for j in range(raw.shape[0]):
        other = 0 if raw[j] == common[j] else 1
        within = raw[j] > low[j] and raw[j] < top[j]  # a missing value is not
        out[j] = bits[other, j] if within else 0.0


@nb.njit(inline="always")
def is_derived(raw, codes, fmap, memory, s, scratch):  # type: ignore[no-untyped-def]
    """Whether the row shares improbable values with a remembered one, exactly (agreement weights, Fellegi & Sunter 1969)."""
    weights, level, search = scratch.weights, fmap.agreement_level, scratch.search
    weigh_agreement(raw, fmap.common_value, fmap.agreement_bits, fmap.low, fmap.top, weights)
    if fmap.wide:
        mine, low, step, raw_ring = scratch.raw_codes, fmap.low, fmap.raw_step, memory.raw_ring
        for j in range(raw.shape[0]):
            mine[j] = raw_code(raw[j], low[j], step[j])
        return agrees_with_any(mine, weights, level, raw_ring[s], min(memory.ring_n[s], raw_ring.shape[1]), search)
    ring, reservoir = memory.ring_codes, memory.reservoir_codes
    return agrees_with_any(
        codes, weights, level, ring[s], min(memory.ring_n[s], ring.shape[1]), search
    ) or agrees_with_any(codes, weights, level, reservoir[s], memory.reservoir_n[s], search)


@nb.njit(inline="always")
def is_stepped(raw, fmap, memory, s, scratch):  # type: ignore[no-untyped-def]
    """Whether the row is a near parent with its features moved by one magnitude; parents as `find_parents` wrote them."""
    ring_size = memory.ring_hash.shape[1]
    parents, columns, moves = scratch.parents, scratch.columns, scratch.moves
    begun = False
    for p in range(PARENTS):
        place = parents.place[p]
        if place < 0 or parents.squares[p] > STEP_REACH * STEP_REACH * fmap.near2:
            continue
        age = (memory.ring_n[s] - 1 - place) % ring_size
        kept = memory.raw_ring.shape[1]
        if fmap.wide and (place >= ring_size or age >= kept):
            continue  # columns of wide inputs are remembered for the last rows only
        if not begun:
            begin_moves(raw, columns, moves)
            begun = True
        if fmap.wide:
            stepped = is_one_step(raw, memory.raw_ring[s, (memory.ring_n[s] - 1 - age) % kept], columns, moves)
        else:
            stepped = is_one_step(raw, at_place(memory.ring_codes, memory.reservoir_codes, s, place), columns, moves)
        if stepped:
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
    find_parents(codes, fmap, memory, s, STEP_REACH * STEP_REACH * fmap.near2, scratch.search, parents)
    distant = is_distant(codes, fmap, memory, s, parents)
    novel = distant and not is_derived(rows.raw[i], codes, fmap, memory, s, scratch)
    if distant:
        bits |= np.uint32(_DISTANT)
    elif is_flipped(rows.labels[i], memory, s, parents):
        bits |= np.uint32(_FLIPPED)
    if novel:
        bits |= np.uint32(_NOVEL)
    if is_stepped(rows.raw[i], fmap, memory, s, scratch):
        bits |= np.uint32(_STEPPED)
    if is_collinear(codes, fmap, memory, s):
        bits |= np.uint32(_COLLINEAR)
    return np.uint32(bits), novel
