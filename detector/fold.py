"""The fold: one client's queries, in order, into its state. Compiled; order within a client is the only order that matters.

Rules of this file
* `fold_rows` walks the rows of one poll once. What it does to a client depends on that client's rows alone, one after the other,
  never on how polls cut them: folding 1, 7 or 2,000 rows at a time gives the same bytes (tests/detector/test_profile.py).
* A repeated query (same content hash, still remembered) adds to volume and to nothing else.
* An unreadable input (no coverage cell) has no place in the input space: it enters the sets by its content hash, derives from nothing
  and is not remembered. A missing value has a code of its own: it agrees with nothing and is part of no step and no line.
* The *odd set*, the *path set* and the *sample* are bottom-k sets by keyed hash (Cohen & Kaplan, PODC 2007): exact below k, unbiased above.
* Marks are the running maxima of each signal's mass, so a result never depends on when somebody looked (a mass falls
  when its allowance grows). The trail says when the fused maximum first reached each level of a fixed geometric ladder.
* What left the horizon counts with its faded weight (`archive.py`): its carry adds to the long span's counts. The first row of a window
  weighs anew, for then weights have changed.
* The memory (last rows and a content-sampled set of earlier ones) is scratch: it never merges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.archive import seen_again
from detector.features import BITS, ODD, PATH
from detector.kernels import HASH_SPAN

ODD_KEPT = 512
PATH_KEPT = 128
SAMPLE_KEPT = 192
MEMORY_BYTES = 6144
TRAIL_LEVELS = 72
TRAIL_FIRST = 0.15
TRAIL_GROWTH = 1.08
MOMENT_AXES = 8

STEP_BITS = 12.0
STEP_SHARE = 0.6
STEP_REACH = 4.0
VARIED_SHARE = 0.05
COLLINEAR = 0.98
RETURN = 0.1
PARENTS = 3
RAW_MISSING = 65535
"""Code of a missing value where wide rows are remembered column by column."""

ROOT = BITS["root"]
STEPPED = BITS["stepped"]
FLIPPED = BITS["flipped"]
ALONG = BITS["collinear"]
FAR = BITS["far"]
_ODD = ODD
_PATH = PATH


@dataclass(frozen=True, slots=True)
class Masses:
    """The table of signals as arrays, (s,) each.

    need         bits that a query must all carry to be counted
    path         counted in the path set instead of the odd set
    roots_base   count among roots instead of all distinct queries
    form         0: excess, 1: excess × share
    allowance    honest share
    fusing_scale honest scale of the signal, 0 where it is not part of the fused score
    horizon_distinct  distinct queries that calibration covers; beyond them masses fade, so that a constant honest
                      odd rate does not become an alarm by living long
    """

    need: NDArray[np.uint32]
    path: NDArray[np.bool_]
    roots_base: NDArray[np.bool_]
    form: NDArray[np.int64]
    allowance: NDArray[np.float64]
    fusing_scale: NDArray[np.float64]
    horizon_distinct: float


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
def moved_by_one_step(child, parent_codes, missing, code_low, code_step, lattice, grain, low, high, unit, bits_out):  # type: ignore[no-untyped-def]
    """Description length that one magnitude explains in the move parent → child (detection notes §3b).

    child (w,) raw values, NaN where one is missing; parent_codes (w,) remembered codes; missing: the code of a missing value;
    unit (u, w): scales in which the step may be constant.
    A changed feature whose child value is not at a bound is worth max(0, log2(abs(delta) / 2 tolerance)) bits. The magnitude is the
    weighted median: whatever explains more than half of the worth holds it. bits_out[0]: worth explained less its largest term;
    bits_out[1]: worth explained over all worth.
    """
    w = child.shape[0]
    size = np.empty(w)
    slack = np.empty(w)
    worth = np.empty(w)
    column = np.empty(w, np.int64)
    count = 0
    total = 0.0
    for j in range(w):
        if parent_codes[j] == missing or not np.isfinite(child[j]):
            continue
        before = code_low[j] + float(parent_codes[j]) * code_step[j]
        fuzz = 0.5 * code_step[j]
        on_lattice = False
        if lattice[j] > 0.0:
            q = child[j] / lattice[j]
            on_lattice = abs(q - np.rint(q)) <= 1e-3
            snapped = np.rint(before / lattice[j]) * lattice[j]
            if abs(snapped - before) <= fuzz:
                before = snapped
                fuzz = 0.0
        delta = abs(child[j] - before)
        if delta <= max(fuzz, grain[j]):
            continue
        if child[j] <= low[j] or child[j] >= high[j]:
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
    bits_out[0] = 0.0
    bits_out[1] = 0.0
    if count < 3:
        return
    scaled = np.empty(count)
    for u in range(unit.shape[0]):
        for a in range(count):
            scaled[a] = size[a] / unit[u, column[a]]
        order = np.argsort(scaled)
        half = 0.0
        middle = scaled[order[0]]
        for a in order:
            half += worth[a]
            if half >= 0.5 * total:
                middle = scaled[a]
                break
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


@nb.njit(cache=True, nogil=True)
def keep_marked(hashes, bits, count, kept, h, b, need, mine, counts):  # type: ignore[no-untyped-def]
    """Put a marked query into a bottom-k set and keep the signals' counts. Returns the set's new size, 0 if nothing changed.

    A member seen again gains bits; it stays a root, and far, only while it always was. mine (s,): signals counted in this set.
    """
    at = find_sorted(hashes, count, h)
    if at < count and hashes[at] == h:
        old = bits[at]
        sticky = np.uint32(ROOT | FAR)
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


@nb.njit(cache=True, nogil=True)
def mass_of(form, count, base, allowance):  # type: ignore[no-untyped-def]
    """Excess of odd distinct queries over what honest clients are allowed; form 1 weighs it by its share (long *and* odd)."""
    excess = count - allowance * base
    if excess <= 0.0:
        return 0.0
    if form == 1:
        return excess * excess / max(base, 1.0)
    return excess


@nb.njit(cache=True, nogil=True)
def weigh(  # type: ignore[no-untyped-def]
    r, time_ms, need, path, roots_base, form, allowance, fusing_scale, horizon_distinct,
    queries, sample_hash, sample_root, sample_n, odd_hash, odd_n, path_hash, path_n, odd_counts,
    marks, trail_ms, trail_query, trail_n, carry, carry_base,
):  # fmt: skip
    """Masses of one span as they are now into its marks, and into its trail if the fused one reached a level.

    carry (s,), carry_base (2,): what the client's archive adds to the counts, to the distinct queries and to the roots
    """
    odd_factor = 0.0
    if odd_n[r] > 0:
        odd_factor = kept_estimate(odd_n[r], odd_hash[r, odd_n[r] - 1], ODD_KEPT) / odd_n[r]
    path_factor = 0.0
    if path_n[r] > 0:
        path_factor = kept_estimate(path_n[r], path_hash[r, path_n[r] - 1], PATH_KEPT) / path_n[r]
    m = sample_n[r]
    distinct = 0.0
    roots = 0.0
    if m > 0:
        distinct = min(kept_estimate(m, sample_hash[r, m - 1], SAMPLE_KEPT), float(queries[r]))
        rooted = 0
        for a in range(m):
            rooted += int(sample_root[r, a])
        roots = distinct * rooted / m
    distinct += carry_base[0]
    roots += carry_base[1]
    fade = min(1.0, horizon_distinct / max(distinct, 1.0))
    fused = 0.0
    for q in range(need.shape[0]):
        base = roots if roots_base[q] else distinct
        seen_odd = min(base, (path_factor if path[q] else odd_factor) * odd_counts[r, q] + carry[q])
        mass = fade * mass_of(form[q], seen_odd, base, allowance[q])
        if mass > marks[r, q]:
            marks[r, q] = mass
        if fusing_scale[q] > 0.0:
            fused = max(fused, marks[r, q] / fusing_scale[q])
    if fused >= TRAIL_FIRST:
        reached = min(TRAIL_LEVELS, 1 + int(np.floor(np.log(fused / TRAIL_FIRST) / np.log(TRAIL_GROWTH))))
        for g in range(trail_n[r], reached):
            trail_ms[r, g] = time_ms
            trail_query[r, g] = queries[r]
        trail_n[r] = max(trail_n[r], reached)


@nb.njit(cache=True, nogil=True)
def fold_rows(  # type: ignore[no-untyped-def]
    # the rows, in log order
    slot, hashes, bits, misfit, cells, distance_bins, margin_bins, labels, weight, time_ms, z, codes, raw,
    # the map
    missing, code_low, code_step, code_weight, code_category, link_mode, link_bits, link_level, near2,
    lattice, grain, low, high, top, raw_step, unit, wide,
    # the signals
    need, path, roots_base, form, allowance, fusing_scale, horizon_distinct,
    # rows of the spans of each client: the long one, and the short one that will follow it (-1: none yet); their state
    span, queries, volume, first_ms, last_ms, classes, cell_counts, distance_counts, margin_counts, moments,
    sample_hash, sample_root, sample_misfit, sample_n, odd_hash, odd_bits, odd_n, path_hash, path_bits, path_n, odd_counts,
    marks, trail_ms, trail_query, trail_n,
    # the memory, one row a client
    ring_hash, ring_label, ring_codes, ring_n, low_hash, low_label, low_codes, low_n, raw_ring,
    # where each client's archive is (-1: it has none), whether its weights are new, its window; the archives and what they add
    archive, turned, window, decay,
    archive_hash, archive_bits, archive_seen, archive_n, archive_limit, carry, carry_base,
):  # fmt: skip
    n_signals = need.shape[0]
    ring_size = ring_hash.shape[1]
    low_size = low_hash.shape[1]
    width = code_low.shape[0]
    step_result = np.zeros(2)
    raw_codes = np.zeros(raw.shape[1], np.uint16)
    surprise = np.zeros(raw.shape[1])
    parent_at = np.empty(PARENTS, np.int64)
    parent_d2 = np.empty(PARENTS)
    nothing = np.zeros(max(n_signals, 2))
    for i in range(slot.shape[0]):
        s = slot[i]
        h = hashes[i]
        # ---- volume: every query
        for v in range(2):
            r = span[s, v]
            if r < 0:
                continue
            if queries[r] == 0:
                first_ms[r] = time_ms[i]
                last_ms[r] = time_ms[i]
            queries[r] += 1
            volume[r] += weight[i]
            first_ms[r] = min(first_ms[r], time_ms[i])
            last_ms[r] = max(last_ms[r], time_ms[i])
            if labels[i] >= 0:
                classes[r, min(labels[i], classes.shape[1] - 1)] += 1
            if cells[i] >= 0:
                cell_counts[r, cells[i]] += 1
                distance_counts[r, distance_bins[i]] += 1
            if margin_bins[i] != 255:
                margin_counts[r, margin_bins[i]] += 1
            for k in range(min(MOMENT_AXES, z.shape[1]) if cells[i] >= 0 else 0):
                moments[r, 0, k] += z[i, k]
                moments[r, 1, k] += z[i, k] * z[i, k]
        # ---- what left the horizon has new weights
        kept = archive[s]
        if kept >= 0 and turned[s]:
            turned[s] = False
            weigh(
                span[s, 0], time_ms[i], need, path, roots_base, form, allowance, fusing_scale, horizon_distinct,
                queries, sample_hash, sample_root, sample_n, odd_hash, odd_n, path_hash, path_n, odd_counts,
                marks, trail_ms, trail_query, trail_n, carry[kept], carry_base[kept],
            )  # fmt: skip
        # ---- a repeat that is still remembered adds nothing more
        in_ring = min(ring_n[s], ring_size)
        seen = False
        for a in range(in_ring):
            if ring_hash[s, a] == h:
                seen = True
        for a in range(low_n[s]):
            if low_hash[s, a] == h:
                seen = True
        if seen:
            continue
        # ---- parents: the nearest remembered rows
        for p in range(PARENTS):
            parent_at[p] = -1
            parent_d2[p] = np.inf
        readable = cells[i] >= 0
        for a in range(in_ring + low_n[s] if readable else 0):
            other = ring_codes[s, a] if a < in_ring else low_codes[s, a - in_ring]
            d2 = code_distance(codes[i], other, missing, code_weight, code_category)
            if d2 < parent_d2[PARENTS - 1]:
                p = PARENTS - 1
                while p > 0 and d2 < parent_d2[p - 1]:
                    parent_d2[p] = parent_d2[p - 1]
                    parent_at[p] = parent_at[p - 1]
                    p -= 1
                parent_d2[p] = d2
                parent_at[p] = a if a < in_ring else ring_size + a - in_ring
        far = True
        flipped = False
        if parent_at[0] >= 0:
            a = parent_at[0]
            other = ring_codes[s, a] if a < ring_size else low_codes[s, a - ring_size]
            changed = 0
            for j in range(width):
                if codes[i, j] != other[j]:
                    changed += 1
            far = parent_d2[0] > near2 and (wide or changed > VARIED_SHARE * width)
            before = ring_label[s, a] if a < ring_size else low_label[s, a - ring_size]
            flipped = (not far) and labels[i] >= 0 and before >= 0 and before != labels[i]
        # ---- a root is far from everything remembered and shares no improbable values with it either
        root = far
        if far and readable:
            for j in range(raw.shape[1]):
                usual = 0 if raw[i, j] == link_mode[j] else 1
                within = raw[i, j] > low[j] and raw[i, j] < top[j]  # a missing value is not
                surprise[j] = link_bits[usual, j] if within else 0.0
        if far and wide and readable:
            for j in range(raw.shape[1]):
                raw_codes[j] = raw_code(raw[i, j], low[j], raw_step[j])
            for a in range(min(ring_n[s], raw_ring.shape[1])):
                root = root and agreement(raw_codes, raw_ring[s, a], surprise) <= link_level
        elif far and readable:
            for a in range(in_ring + low_n[s]):
                if root:
                    other = ring_codes[s, a] if a < in_ring else low_codes[s, a - in_ring]
                    root = agreement(codes[i], other, surprise) <= link_level
        # ---- order-aware bits
        b = np.uint32(bits[i])
        if far:
            b |= np.uint32(FAR)
        if root:
            b |= np.uint32(ROOT)
        if flipped:
            b |= np.uint32(FLIPPED)
        stepped = False
        for p in range(PARENTS):
            a = parent_at[p]
            if stepped or a < 0 or parent_d2[p] > STEP_REACH * STEP_REACH * near2:
                continue
            if wide:
                # columns of wide inputs are remembered for the last rows only
                age = (ring_n[s] - 1 - a) % ring_size
                if a >= ring_size or age >= raw_ring.shape[1]:
                    continue
                other_raw = raw_ring[s, (ring_n[s] - 1 - age) % raw_ring.shape[1]]
                moved_by_one_step(
                    raw[i], other_raw, RAW_MISSING, low, raw_step, lattice, grain, low, high, unit, step_result
                )
            else:
                other = ring_codes[s, a] if a < ring_size else low_codes[s, a - ring_size]
                moved_by_one_step(
                    raw[i], other, missing, code_low, code_step, lattice, grain, low, high, unit, step_result
                )
            stepped = step_result[0] >= STEP_BITS and step_result[1] >= STEP_SHARE
        if stepped:
            b |= np.uint32(STEPPED)
        if ring_n[s] >= 2 and readable:
            one = ring_codes[s, (ring_n[s] - 1) % ring_size]
            two = ring_codes[s, (ring_n[s] - 2) % ring_size]
            dot = 0.0
            n1 = 0.0
            n2 = 0.0
            moved = 0
            for j in range(width):
                moved += int(codes[i, j] != one[j])
                if code_category[j] == 1:
                    continue  # the order of its codes means nothing
                if codes[i, j] == missing or one[j] == missing or two[j] == missing:
                    continue
                d1 = float(codes[i, j]) - float(one[j])
                d2_ = float(one[j]) - float(two[j])
                dot += code_weight[j] * d1 * d2_
                n1 += code_weight[j] * d1 * d1
                n2 += code_weight[j] * d2_ * d2_
            # a sweep of one feature is what honest what-if tools do; and a return to where the client was before is two entities
            # that take turns, not a search along a line
            returned = n1 + n2 + 2.0 * dot < RETURN * n1
            if moved >= 2 and n1 > 0.0 and n2 > 0.0 and not returned and abs(dot) > COLLINEAR * np.sqrt(n1 * n2):
                b |= np.uint32(ALONG)
        if kept >= 0:
            seen_again(
                h, b, archive_hash[kept], archive_bits[kept], archive_seen[kept], archive_n[kept], archive_limit[kept],
                window[s], decay, need, path, carry[kept], carry_base[kept],
            )  # fmt: skip
        for v in range(2):
            r = span[s, v]
            if r < 0:
                continue
            # ---- the sample of distinct queries
            count = sample_n[r]
            if count < SAMPLE_KEPT or h <= sample_hash[r, count - 1]:
                at = find_sorted(sample_hash[r], count, h)
                if at < count and sample_hash[r, at] == h:
                    sample_root[r, at] = sample_root[r, at] and root
                    sample_misfit[r, at] = sample_misfit[r, at] or misfit[i]
                else:
                    last = count if count < SAMPLE_KEPT else SAMPLE_KEPT - 1
                    for a in range(last, at, -1):
                        sample_hash[r, a] = sample_hash[r, a - 1]
                        sample_root[r, a] = sample_root[r, a - 1]
                        sample_misfit[r, a] = sample_misfit[r, a - 1]
                    sample_hash[r, at] = h
                    sample_root[r, at] = root
                    sample_misfit[r, at] = misfit[i]
                    sample_n[r] = last + 1
            # ---- the marked sets, and the masses when one grew
            if b & np.uint32(_ODD | _PATH):
                grew = False
                if b & np.uint32(_ODD):
                    size = keep_marked(odd_hash[r], odd_bits[r], odd_n[r], ODD_KEPT, h, b, need, ~path, odd_counts[r])
                    if size > 0:
                        odd_n[r] = size
                        grew = True
                if b & np.uint32(_PATH):
                    size = keep_marked(
                        path_hash[r], path_bits[r], path_n[r], PATH_KEPT, h, b, need, path, odd_counts[r]
                    )
                    if size > 0:
                        path_n[r] = size
                        grew = True
                if grew:
                    weigh(
                        r, time_ms[i], need, path, roots_base, form, allowance, fusing_scale, horizon_distinct,
                        queries, sample_hash, sample_root, sample_n, odd_hash, odd_n, path_hash, path_n, odd_counts,
                        marks, trail_ms, trail_query, trail_n,
                        carry[kept] if kept >= 0 and v == 0 else nothing,
                        carry_base[kept] if kept >= 0 and v == 0 else nothing,
                    )  # fmt: skip
        # ---- remember the row; what leaves the ring may stay by content hash
        if not readable:
            continue
        at = ring_n[s] % ring_size
        if ring_n[s] >= ring_size:
            old_hash = ring_hash[s, at]
            count = low_n[s]
            keep = True
            if count < low_size:
                low_n[s] = count + 1
            else:
                worst = 0
                for a in range(1, low_size):
                    if low_hash[s, a] > low_hash[s, worst]:
                        worst = a
                keep = old_hash < low_hash[s, worst]
                count = worst
            if keep:
                low_hash[s, count] = old_hash
                low_label[s, count] = ring_label[s, at]
                for j in range(width):
                    low_codes[s, count, j] = ring_codes[s, at, j]
        ring_hash[s, at] = h
        ring_label[s, at] = labels[i]
        for j in range(width):
            ring_codes[s, at, j] = codes[i, j]
        if wide:
            at = ring_n[s] % raw_ring.shape[1]
            for j in range(raw.shape[1]):
                raw_ring[s, at, j] = raw_code(raw[i, j], low[j], raw_step[j])
        ring_n[s] += 1
