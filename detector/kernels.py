"""Compiled row kernels: each computes something about one row, and gives the same result in whatever batch the row arrives.

Rules:

* A threshold decides whether a query is odd, so nothing here may depend on the batch: every kernel walks rows one by one in float64
  (float32 only inside the neighbour scan, again row by row). No BLAS, no parallel loop, no `fastmath` on any number that meets a
  threshold.
* Kernels own no memory: inputs and outputs are arrays of the caller.
* Every kernel has a slow, obvious twin in ``tests/support/naive.py``.
* Numba compiles each kernel once and caches it on disk (docs/decisions/0001-compiled-row-kernels.md).
"""

from __future__ import annotations

import numba as nb
import numpy as np

HASH_BITS = 48
HASH_SPAN = float(1 << HASH_BITS)
ROWS_AT_ONCE = 64
"""Rows whose trees are scored together; each row's score is its own."""
LEAF_FACTOR = 0x09AF

_V0 = np.uint64(0x736F6D6570736575)
_V1 = np.uint64(0x646F72616E646F6D)
_V2 = np.uint64(0x6C7967656E657261)
_V3 = np.uint64(0x7465646279746573)
_FF = np.uint64(0xFF)
_MISSING = np.uint64(0x7FF8000000000000)
_LARGEST_STEPS = 2.0**62
_INFINITE = 0x7F800000
"""The bits of an infinite float32."""


@nb.njit(inline="always")
def _rotl(x, b):  # type: ignore[no-untyped-def]
    return (x << np.uint64(b)) | (x >> np.uint64(64 - b))


@nb.njit(inline="always")
def _sip_round(v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    v0 = v0 + v1
    v1 = _rotl(v1, 13) ^ v0
    v0 = _rotl(v0, 32)
    v2 = v2 + v3
    v3 = _rotl(v3, 16) ^ v2
    v0 = v0 + v3
    v3 = _rotl(v3, 21) ^ v0
    v2 = v2 + v1
    v1 = _rotl(v1, 17) ^ v2
    v2 = _rotl(v2, 32)
    return v0, v1, v2, v3


@nb.njit(cache=True, nogil=True)
def hash_rows(x, grain, salt, k0, k1, out):  # type: ignore[no-untyped-def]
    """SipHash-1-3 (Aumasson & Bernstein 2012) of each row's canonical codes ``rint(x / grain)`` as little-endian int64.

    A missing value (NaN) has a word of its own; a number that int64 can't hold in units of the grain is hashed by its own bits.
    x (n, d) float64, C order; grain (d,) float64; salt (n,) uint64, one more word where it is not 0; k0, k1 the 128-bit key;
    out (n,) uint64, the upper 48 bits of the hash.
    """
    n, d = x.shape
    own_bits = x.view(np.uint64)
    length = np.uint64((8 * d) & 0xFF) << np.uint64(56)
    for i in range(n):
        v0 = _V0 ^ k0
        v1 = _V1 ^ k1
        v2 = _V2 ^ k0
        v3 = _V3 ^ k1
        for j in range(d):
            steps = np.rint(x[i, j] / grain[j])
            word = _MISSING if np.isnan(steps) else own_bits[i, j]
            if abs(steps) < _LARGEST_STEPS:
                word = np.uint64(np.int64(steps))
            v3 ^= word
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
            v0 ^= word
        if salt[i] != np.uint64(0):
            v3 ^= salt[i]
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
            v0 ^= salt[i]
        v3 ^= length
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        v0 ^= length
        v2 ^= _FF
        for _ in range(3):
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        out[i] = (v0 ^ v1 ^ v2 ^ v3) >> np.uint64(64 - HASH_BITS)


@nb.njit(cache=True, nogil=True)
def project_rows(x, center, scale, start, category_counts, basis, spread, out_z, out_residual):  # type: ignore[no-untyped-def]
    """Whitened principal coordinates of each row and the length of what lies outside them.

    A number is standardised and clipped to ±8; a category (``category_counts[j] > 0``) is a one-hot block of height ``1 / scale[j]``,
    an unknown category the zero block. Column j begins at ``start[j]`` of the e expanded columns.
    basis (e, m) orthonormal; spread (m,) standard deviations; out_z (n, m) float64; out_residual (n,) float64.
    """
    n, d = x.shape
    m = basis.shape[1]
    acc = np.zeros(m)
    for i in range(n):
        acc[:] = 0.0
        norm = 0.0
        for j in range(d):
            e = start[j]
            if category_counts[j] == 0:
                v = min(8.0, max(-8.0, (x[i, j] - center[j]) / scale[j]))
            else:
                code = int(x[i, j])
                if code < 0 or code >= category_counts[j]:
                    continue
                e += code
                v = 1.0 / scale[j]
            norm += v * v
            for k in range(m):
                acc[k] += v * basis[e, k]
        inside = 0.0
        for k in range(m):
            inside += acc[k] * acc[k]
            out_z[i, k] = acc[k] / spread[k]
        out_residual[i] = np.sqrt(max(0.0, norm - inside))


@nb.njit(cache=True, nogil=True)
def nearest_rows(z, reference, skip, out_distance, out_index):  # type: ignore[no-untyped-def]
    """Distance to, and index of, the nearest reference row.

    z (n, m) float64; reference (m, r) float32, transposed so that the scan runs along memory;
    skip (n,) int64: index of a reference row to leave out (the row itself), −1 for none.
    """
    n, m = z.shape
    squares = np.empty(reference.shape[1], np.float32)
    in_order = squares.view(
        np.int32
    )  # of numbers ≥ 0 the bits have the order of the numbers, and a compiler finds their least at once
    for i in range(n):
        squares[:] = np.float32(0.0)
        k = 0
        while k + 4 <= m:
            add_four_axes(z[i, k : k + 4], reference[k : k + 4], squares)
            k += 4
        while k < m:
            add_axis(np.float32(z[i, k]), reference[k], squares)
            k += 1
        if skip[i] >= 0:
            squares[skip[i]] = np.inf
        best = least_of(in_order)
        at = 0
        while in_order[at] != best and at < squares.shape[0] - 1:
            at += 1
        out_distance[i] = np.sqrt(np.float64(squares[at]))
        out_index[i] = at if best < _INFINITE else -1


@nb.njit(cache=True, nogil=True)
def add_axis(q, row, squares):  # type: ignore[no-untyped-def]
    """Add the squared differences of one axis, row (r,), to the sums (r,)."""
    for a in range(squares.shape[0]):
        delta = row[a] - q
        squares[a] += delta * delta


@nb.njit(cache=True, nogil=True)
def add_four_axes(z, rows, squares):  # type: ignore[no-untyped-def]
    """As `add_axis` for four axes, z (4,) and rows (4, r), one after the other: a sum is loaded and stored once."""
    q0, q1, q2, q3 = np.float32(z[0]), np.float32(z[1]), np.float32(z[2]), np.float32(z[3])
    r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
    for a in range(squares.shape[0]):
        total = squares[a]
        delta = r0[a] - q0
        total += delta * delta
        delta = r1[a] - q1
        total += delta * delta
        delta = r2[a] - q2
        total += delta * delta
        delta = r3[a] - q3
        total += delta * delta
        squares[a] = total


@nb.njit(cache=True, nogil=True)
def least_of(values):  # type: ignore[no-untyped-def]
    """The least of whole numbers ≥ 0; at most the bits of an infinite float32."""
    least = np.int32(_INFINITE)
    for a in range(values.shape[0]):
        least = min(least, values[a])
    return least


@nb.njit(cache=True, nogil=True)
def mark_levels(odd, unknown, levels, bit, bits):  # type: ignore[no-untyped-def]
    """Set `bit` of each row that is above the first of two levels, and the next bit above the second; odd, unknown, bits (n,)."""
    for i in range(odd.shape[0]):
        if unknown[i]:
            continue
        if odd[i] > levels[0]:
            bits[i] |= bit
        if odd[i] > levels[1]:
            bits[i] |= np.uint32(bit << np.uint32(1))


@nb.njit(cache=True, nogil=True)
def score_forest(x, feature, threshold, tree, kept, value, first, bias, out):  # type: ignore[no-untyped-def]
    """Sum of leaf values of each of k additive tree models, without a branch: QuickScorer (Lucchese et al., SIGIR 2015), many rows at once.

    All leaves of a tree are possible at first. An inner node whose condition, value ≤ threshold, does not hold takes away those on its
    left; the first that remains is the one that a walk would reach. A row's values are added in the order of the trees.
    x (n, d) float64; node arrays, value (t, 16) and first (k + 1,) as in `trees.Forest`; bias (k,); out (k, n) float64.
    """
    n = x.shape[0]
    every = np.uint16(0xFFFF)
    possible = np.empty((value.shape[0], ROWS_AT_ONCE), np.uint16)
    column = np.zeros(ROWS_AT_ONCE)
    total = np.empty(ROWS_AT_ONCE)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = min(ROWS_AT_ONCE, n - start)
        possible[:] = every
        of = -1
        for q in range(feature.shape[0]):
            if feature[q] != of:
                of = feature[q]
                for r in range(rows):
                    column[r] = x[start + r, of]
            leaves, at_most, right = possible[tree[q]], threshold[q], kept[q]
            for r in range(rows):
                leaves[r] &= every if column[r] <= at_most else right
        for k in range(bias.shape[0]):
            total[:] = bias[k]
            for t in range(first[k], first[k + 1]):
                leaves, values = possible[t], value[t]
                for r in range(rows):
                    total[r] += values[leaf_slot(leaves[r])]
            for r in range(rows):
                out[k, start + r] = total[r]


@nb.njit(inline="always")
def leaf_slot(leaves):  # type: ignore[no-untyped-def]
    """Where the value of the first of a set of leaves is: a number below 16 for each lowest bit (de Bruijn multiplication)."""
    wide = np.uint32(leaves)
    lowest = wide & (~wide + np.uint32(1))
    return np.int64(((lowest * np.uint32(LEAF_FACTOR)) & np.uint32(0xFFFF)) >> np.uint32(12))


@nb.njit(cache=True, nogil=True)
def encode_rows(x, low, step, top, out):  # type: ignore[no-untyped-def]
    """Remembered codes: ``rint((x - low) / step)`` clipped to 0..top, and top + 1 for a missing value.

    x (n, w) float64, out (n, w) uint8 or uint16.
    """
    n, w = x.shape
    for i in range(n):
        for j in range(w):
            if np.isnan(x[i, j]):
                out[i, j] = top + 1
                continue
            c = np.rint((x[i, j] - low[j]) / step[j])
            out[i, j] = int(min(float(top), max(0.0, c)))


@nb.njit(cache=True, nogil=True)
def off_lattice(x, lattice, out):  # type: ignore[no-untyped-def]
    """Share of the columns with a lattice (``lattice[j] > 0``) whose value is not a multiple of it; 0 where no column has one."""
    n, d = x.shape
    for i in range(n):
        have = 0
        off = 0
        for j in range(d):
            if lattice[j] > 0.0:
                have += 1
                q = x[i, j] / lattice[j]
                if abs(q - np.rint(q)) > 1e-3:
                    off += 1
        out[i] = off / have if have > 0 else 0.0


@nb.njit(cache=True, nogil=True)
def any_misfit(x, category_counts):  # type: ignore[no-untyped-def]
    """Whether a value of x (n, d) is missing, infinite or an unseen category; category_counts (d,), 0: a number."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            if not np.isfinite(x[i, j]) or (category_counts[j] > 0 and x[i, j] >= category_counts[j]):
                return True
    return False


@nb.njit(cache=True, nogil=True)
def complete_rows(x, donors, weight, category_counts, largest, out):  # type: ignore[no-untyped-def]
    """Each row with the values of its nearest donor where it has none.

    x (n, d) float64; donors (r, d) complete rows, the first of the nearest gives; weight (d,) of a squared difference of numbers, a
    category that differs counts as one; category_counts (d,); largest: what an infinite value becomes; out (n, d) float64.
    """
    n, d = x.shape
    there = np.empty(d, np.bool_)
    for i in range(n):
        lacking = 0
        for j in range(d):
            v = x[i, j]
            there[j] = not (np.isnan(v) or (category_counts[j] > 0 and v >= category_counts[j]))
            lacking += int(not there[j])
            out[i, j] = min(largest, max(-largest, v)) if there[j] else 0.0
        if lacking == 0:
            continue
        best = np.inf
        at = 0
        for a in range(donors.shape[0]):
            total = 0.0
            for j in range(d):
                if there[j]:
                    delta = out[i, j] - donors[a, j]
                    if category_counts[j] > 0:
                        total += 1.0 if delta != 0.0 else 0.0
                    else:
                        total += min(
                            64.0, weight[j] * delta * delta
                        )  # as far as the projection looks, ±8 standard deviations
            if total < best:
                best = total
                at = a
        for j in range(d):
            if not there[j]:
                out[i, j] = donors[at, j]


@nb.njit(cache=True, nogil=True)
def misfit_rows(x, misfit, category_counts, column_bits, kind_bits, out):  # type: ignore[no-untyped-def]
    """Surprise of each row's misfits in bits; an unreadable row has that of its kind alone.

    x (n, d) float64 with codes for what does not fit; misfit (n,) uint8 flags; category_counts (d,), 0: a number;
    column_bits (3, d) of missing, unseen, out of range; kind_bits (3,) of retyped, unreadable, answer; out (n,) float64.
    """
    n, d = x.shape
    for i in range(n):
        total = 0.0
        if misfit[i] & 8:
            total += kind_bits[0]
        if misfit[i] & 32:
            total += kind_bits[2]
        if misfit[i] & 16:
            out[i] = total + kind_bits[1]
            continue
        for j in range(d):
            v = x[i, j]
            if np.isnan(v):
                total += column_bits[0, j]
            elif category_counts[j] > 0:
                if v >= category_counts[j]:
                    total += column_bits[1, j]
            elif np.isinf(v):
                total += column_bits[2, j]
        out[i] = total


@nb.njit(cache=True, nogil=True)
def hash_texts(texts, ends, k0, k1, out):  # type: ignore[no-untyped-def]
    """SipHash-1-3 of each of n byte strings that lie end to end, 64 bits; never 0 but for an empty string.

    texts (b,) uint8; ends (n,) int64, where each string ends; k0, k1 the 128-bit key; out (n,) uint64.
    """
    start = 0
    for i in range(ends.shape[0]):
        end = ends[i]
        length = end - start
        if length == 0:
            out[i] = np.uint64(0)
            continue
        v0 = _V0 ^ k0
        v1 = _V1 ^ k1
        v2 = _V2 ^ k0
        v3 = _V3 ^ k1
        at = start
        while at + 8 <= end:
            word = np.uint64(0)
            for b in range(8):
                word |= np.uint64(texts[at + b]) << np.uint64(8 * b)
            v3 ^= word
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
            v0 ^= word
            at += 8
        word = np.uint64(length & 0xFF) << np.uint64(56)
        for b in range(end - at):
            word |= np.uint64(texts[at + b]) << np.uint64(8 * b)
        v3 ^= word
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        v0 ^= word
        v2 ^= _FF
        for _ in range(3):
            v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
        hashed = v0 ^ v1 ^ v2 ^ v3
        out[i] = hashed if hashed != np.uint64(0) else np.uint64(1)
        start = end
