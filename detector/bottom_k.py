"""Bottom-k sets and running maxima: how one query changes the evidence of a span. Compiled.

Rules:

* The *odd set*, the *sequence set* and the *sample* are bottom-k sets by keyed hash (Cohen & Kaplan, PODC 2007): exact below k queries,
  unbiased above.
* A span keeps the running maximum of each signal's excess, because an excess can fall: the share that honest clients are granted grows
  with every query. So a result never depends on when a client was assessed.
* First passages say when the fused maximum first reached each level of a fixed geometric ladder.
* Numba's cache knows a kernel by its own file only, and `fold.py` holds these kernels inlined. After a change here, remove
  `detector/__pycache__/*.nb*`; otherwise the fold runs the old code.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from detector.features import BITS, ODD, SEQUENCE
from detector.fold_arrays import LADDER_FIRST, LADDER_GROWTH, LADDER_STEPS, ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT
from detector.kernels import HASH_SPAN
from detector.signal_table import Form

_NOVEL = BITS["novel"]
_DISTANT = BITS["distant"]
_TIMES_SHARE = int(Form.EXCESS_TIMES_SHARE)


@nb.njit(cache=True, nogil=True)
def kept_estimate(count, largest, kept):  # type: ignore[no-untyped-def]
    """Distinct elements behind a bottom-k set: exact below k, else (k − 1) / largest normalised hash."""
    if count < kept:
        return float(count)
    return (kept - 1.0) / ((float(largest) + 1.0) / HASH_SPAN)


@nb.njit(cache=True, nogil=True)
def find_sorted(hashes, count, h):  # type: ignore[no-untyped-def]
    """First position whose hash is ≥ h."""
    low, high = 0, count
    while low < high:
        mid = (low + high) // 2
        if hashes[mid] < h:
            low = mid + 1
        else:
            high = mid
    return low


@nb.njit(cache=True, nogil=True)
def keep_marked(hashes, bits, count, kept, h, b, need, mine, counts):  # type: ignore[no-untyped-def]
    """Put a marked query into a bottom-k set and keep the signals' counts. Returns the set's new size, 0 if nothing changed.

    A member seen again gains bits; it stays novel, and distant, only while it always was. mine (s,): signals counted in this set.
    """
    at = find_sorted(hashes, count, h)
    if at < count and hashes[at] == h:
        old = bits[at]
        sticky = np.uint32(_NOVEL | _DISTANT)
        new = ((old | b) & ~sticky) | (old & b & sticky)
        if new == old:
            return 0
        for q in range(need.shape[0]):
            if mine[q]:
                counts[q] += int((new & need[q]) == need[q]) - int((old & need[q]) == need[q])
        bits[at] = new
        return count
    if count == kept and h > hashes[count - 1]:
        return 0
    last = count
    if count == kept:
        last = kept - 1
        gone = bits[last]
        for q in range(need.shape[0]):
            if mine[q] and (gone & need[q]) == need[q]:
                counts[q] -= 1
    for a in range(last, at, -1):
        hashes[a] = hashes[a - 1]
        bits[a] = bits[a - 1]
    hashes[at] = h
    bits[at] = b
    for q in range(need.shape[0]):
        if mine[q] and (b & need[q]) == need[q]:
            counts[q] += 1
    return last + 1


@nb.njit(cache=True, nogil=True)
def mass_of(form, count, base, allowance):  # type: ignore[no-untyped-def]
    """Excess of odd distinct queries over what honest clients are allowed; `EXCESS_TIMES_SHARE` weighs it by its share (long *and* odd)."""
    excess = count - allowance * base
    if excess <= 0.0:
        return 0.0
    if form == _TIMES_SHARE:
        return excess * excess / max(base, 1.0)
    return excess


@nb.njit(cache=True, nogil=True)
def update_maxima(spans, r, time_ms, table, carry, carry_base):  # type: ignore[no-untyped-def]
    """Take the signals' masses of span r as they are now into its running maxima, and new levels into its first-passage times.

    carry (s,), carry_base (2,): what the client's archive adds to the counts, to the distinct queries and to the novel ones
    """
    odd_factor = set_factor(spans.odd_hash[r], spans.odd_n[r], ODD_KEPT)
    sequence_factor = set_factor(spans.sequence_hash[r], spans.sequence_n[r], SEQUENCE_KEPT)
    distinct, novel = sample_estimates(spans, r)
    distinct += carry_base[0]
    novel += carry_base[1]
    fade = min(1.0, table.horizon_distinct / max(distinct, 1.0))
    sequence, novel_base, form, allowance, scale = (
        table.sequence,
        table.novel_base,
        table.form,
        table.allowance,
        table.fusing_scale,
    )
    counts, maxima = spans.odd_counts, spans.maxima
    fused = 0.0
    for q in range(sequence.shape[0]):
        base = novel if novel_base[q] else distinct
        count = min(base, (sequence_factor if sequence[q] else odd_factor) * counts[r, q] + carry[q])
        mass = fade * mass_of(form[q], count, base, allowance[q])
        if mass > maxima[r, q]:
            maxima[r, q] = mass
        if scale[q] > 0.0:
            fused = max(fused, maxima[r, q] / scale[q])
    if fused >= LADDER_FIRST:
        reached = min(LADDER_STEPS, 1 + int(np.floor(np.log(fused / LADDER_FIRST) / np.log(LADDER_GROWTH))))
        for step in range(spans.passage_n[r], reached):
            spans.passage_ms[r, step] = time_ms
            spans.passage_query[r, step] = spans.queries[r]
        spans.passage_n[r] = max(spans.passage_n[r], reached)


@nb.njit(inline="always")
def set_factor(hashes, count, kept):  # type: ignore[no-untyped-def]
    """How many queries one member of a bottom-k set stands for; 0 for an empty set."""
    return kept_estimate(count, hashes[count - 1], kept) / count if count > 0 else 0.0


@nb.njit(inline="always")
def sample_estimates(spans, r):  # type: ignore[no-untyped-def]
    """Distinct queries of span r, and how many of them were novel, by its sample."""
    n = spans.sample_n[r]
    if n == 0:
        return 0.0, 0.0
    distinct = min(kept_estimate(n, spans.sample_hash[r, n - 1], SAMPLE_KEPT), float(spans.queries[r]))
    flags = spans.sample_novel
    novel = 0
    for a in range(n):
        novel += int(flags[r, a])
    return distinct, distinct * novel / n


@nb.njit(inline="always")
def sample_query(spans, r, h, novel, misfit):  # type: ignore[no-untyped-def]
    """Put a query into the sample of distinct queries of span r. It stays novel while it always was, and a misfit once it was one."""
    count = spans.sample_n[r]
    if count == SAMPLE_KEPT and h > spans.sample_hash[r, count - 1]:
        return
    at = find_sorted(spans.sample_hash[r], count, h)
    if at < count and spans.sample_hash[r, at] == h:
        spans.sample_novel[r, at] = spans.sample_novel[r, at] and novel
        spans.sample_misfit[r, at] = spans.sample_misfit[r, at] or misfit
        return
    last = count if count < SAMPLE_KEPT else SAMPLE_KEPT - 1
    for a in range(last, at, -1):
        spans.sample_hash[r, a] = spans.sample_hash[r, a - 1]
        spans.sample_novel[r, a] = spans.sample_novel[r, a - 1]
        spans.sample_misfit[r, a] = spans.sample_misfit[r, a - 1]
    spans.sample_hash[r, at] = h
    spans.sample_novel[r, at] = novel
    spans.sample_misfit[r, at] = misfit
    spans.sample_n[r] = last + 1


@nb.njit(inline="always")
def update_sets(spans, r, h, bits, table):  # type: ignore[no-untyped-def]
    """Put a query into the odd set and the sequence set of span r, as its bits ask for; return whether one changed."""
    changed = False
    if bits & np.uint32(ODD):
        size = keep_marked(
            spans.odd_hash[r],
            spans.odd_bits[r],
            spans.odd_n[r],
            ODD_KEPT,
            h,
            bits,
            table.need,
            ~table.sequence,
            spans.odd_counts[r],
        )
        if size > 0:
            spans.odd_n[r] = size
            changed = True
    if bits & np.uint32(SEQUENCE):
        size = keep_marked(
            spans.sequence_hash[r], spans.sequence_bits[r], spans.sequence_n[r], SEQUENCE_KEPT, h, bits, table.need, table.sequence,
            spans.odd_counts[r],
        )  # fmt: skip
        if size > 0:
            spans.sequence_n[r] = size
            changed = True
    return changed
