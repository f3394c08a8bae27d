"""The fold: adds the queries of one poll to the state of their clients, in order. Compiled.

Rules:

* `fold_rows` walks the rows of one poll once. What it does to a client depends on that client's rows alone, in their order, never on how
  polls cut them: folding 1, 7 or 2,000 rows at a time gives the same bytes (tests/detector/test_profile.py).
* Arrays come in named groups (`fold_arrays.py`). Each kernel has one job, reads and writes the groups that it is given, and owns no
  memory.
* A repeated query (same content hash, still remembered) counts as a query and adds nothing else.
* An unreadable input (no region) has no place in the input space: it enters the sets by its content hash, derives from nothing and is not
  remembered. A missing value has a code of its own: it agrees with nothing and is part of no step and no line.
* What left the horizon counts with its faded weight (`archive.py`), added to the counts of the long span. The first row of a window
  weighs everything anew, because weights have changed then.
* The memory is scratch and never merges: a ring buffer of the last rows, and a *reservoir* of earlier rows, sampled by content hash.
* A kernel that takes groups is inlined, and the walk borrows its arrays (`borrowed.py`): a reference of each array of a group, for every
  row, cost a third of the fold.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from detector.archive import seen_again
from detector.borrowed import lent
from detector.bottom_k import sample_query, update_maxima, update_sets
from detector.order import order_bits, raw_code, room_for_rows


@nb.njit(inline="always")
def count_query(rows, i, spans, r):  # type: ignore[no-untyped-def]
    """Add row i to the linear sum of span r: every query counts, a repeat too."""
    time_ms = rows.time_ms[i]
    if spans.queries[r] == 0:
        spans.first_ms[r] = time_ms
        spans.last_ms[r] = time_ms
    spans.queries[r] += 1
    spans.first_ms[r] = min(spans.first_ms[r], time_ms)
    spans.last_ms[r] = max(spans.last_ms[r], time_ms)
    if rows.labels[i] >= 0:
        spans.classes[r, min(rows.labels[i], spans.classes.shape[1] - 1)] += 1
    if rows.regions[i] >= 0:
        spans.region_counts[r, rows.regions[i]] += 1
        spans.distance_counts[r, rows.distance_bins[i]] += 1


@nb.njit(inline="always")
def is_remembered(memory, s, h):  # type: ignore[no-untyped-def]
    """Whether the memory of client s holds a query of this content."""
    ring, reservoir = (
        memory.ring_hash,
        memory.reservoir_hash,
    )  # taken once: an attribute of a group costs a reference each time
    seen = False
    for a in range(min(memory.ring_n[s], ring.shape[1])):
        if ring[s, a] == h:
            seen = True
    for a in range(memory.reservoir_n[s]):
        if reservoir[s, a] == h:
            seen = True
    return seen


@nb.njit(inline="always")
def enter_reservoir(memory, s, at):  # type: ignore[no-untyped-def]
    """Keep what leaves the ring buffer, its place `at`, if its content hash is among the smallest."""
    size = memory.reservoir_hash.shape[1]
    place = memory.reservoir_n[s]
    if place < size:
        memory.reservoir_n[s] = place + 1
    else:
        place = 0
        for a in range(1, size):
            if memory.reservoir_hash[s, a] > memory.reservoir_hash[s, place]:
                place = a
        if memory.ring_hash[s, at] >= memory.reservoir_hash[s, place]:
            return
    memory.reservoir_hash[s, place] = memory.ring_hash[s, at]
    memory.reservoir_label[s, place] = memory.ring_label[s, at]
    for j in range(memory.ring_codes.shape[2]):
        memory.reservoir_codes[s, place, j] = memory.ring_codes[s, at, j]


@nb.njit(inline="always")
def remember(rows, i, fmap, memory, s):  # type: ignore[no-untyped-def]
    """Put row i into the ring buffer of client s; the oldest row leaves it."""
    size = memory.ring_hash.shape[1]
    at = memory.ring_n[s] % size
    if memory.ring_n[s] >= size:
        enter_reservoir(memory, s, at)
    memory.ring_hash[s, at] = rows.hashes[i]
    memory.ring_label[s, at] = rows.labels[i]
    for j in range(memory.ring_codes.shape[2]):
        memory.ring_codes[s, at, j] = rows.codes[i, j]
    if fmap.wide:
        at = memory.ring_n[s] % memory.raw_ring.shape[1]
        for j in range(rows.raw.shape[1]):
            memory.raw_ring[s, at, j] = raw_code(rows.raw[i, j], fmap.low[j], fmap.raw_step[j])
    memory.ring_n[s] += 1


@nb.njit(cache=True, nogil=True)
def fold_rows(rows, fmap, table, clients, spans, memory, archives, decay):  # type: ignore[no-untyped-def]
    """Fold the rows of one poll, in log order, into the state of their clients, in place.

    Parameters
    ----------
    rows : PollRows
    fmap : MapArrays
    table : SignalTable
    clients : ClientArrays
        Names the rows of `spans` and `archives` that belong to each client.
    spans : SpanArrays
    memory : Memory
        One row a client, as `clients`.
    archives : ArchiveArrays
    decay : float
        What a query beyond the horizon keeps of its weight over a window; 0: there are no archives.
    """
    scratch = room_for_rows(fmap, memory)
    nothing = np.zeros(max(table.need.shape[0], 2))
    _fold(rows, fmap, table, clients, spans, memory, archives, decay, scratch, nothing)


@nb.njit(cache=True, nogil=True)
def _fold(rows, fmap, table, clients, spans, memory, archives, decay, scratch, nothing):  # type: ignore[no-untyped-def]
    """`fold_rows`, which owns the arrays, lends them to this one with room for the work on a row."""
    rows, fmap, table, clients = lent(rows), lent(fmap), lent(table), lent(clients)
    spans, memory, archives, scratch, nothing = lent(spans), lent(memory), lent(archives), lent(scratch), lent(nothing)
    for i in range(rows.slot.shape[0]):
        s = rows.slot[i]
        at = clients.archive[s]
        for v in range(2):
            if clients.span[s, v] >= 0:
                count_query(rows, i, spans, clients.span[s, v])
        if at >= 0 and clients.turned[s]:
            clients.turned[s] = False
            update_maxima(
                spans, clients.span[s, 0], rows.time_ms[i], table, archives.carry[at], archives.carry_base[at]
            )
        if is_remembered(memory, s, rows.hashes[i]):
            continue
        bits, novel = order_bits(rows, i, fmap, memory, s, scratch)
        if at >= 0:
            seen_again(rows.hashes[i], bits, archives, at, clients.window[s], decay, table)
        for v in range(2):
            r = clients.span[s, v]
            if r < 0:
                continue
            sample_query(spans, r, rows.hashes[i], novel, rows.misfit[i])
            if update_sets(spans, r, rows.hashes[i], bits, table):
                if at >= 0 and v == 0:
                    update_maxima(spans, r, rows.time_ms[i], table, archives.carry[at], archives.carry_base[at])
                else:
                    update_maxima(spans, r, rows.time_ms[i], table, nothing, nothing)
        if rows.regions[i] >= 0:
            remember(rows, i, fmap, memory, s)
