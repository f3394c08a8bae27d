"""Writes profiles from rows of the table's arrays, in `profile_format.py`'s format.

Rules:

* One call writes the profiles of a whole poll; no Python object is made for any of their arrays.
* `tests/detector/test_profile_bytes.py` has the slow twin.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.archive import WIDEST, ArchiveArrays
from detector.fold_arrays import LADDER_STEPS, ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT, Memory, SpanArrays
from detector.profile_format import (
    AGO_BYTES,
    BIT_BYTES,
    BY_COLUMN,
    CHECKSUM_BYTES,
    FORMAT,
    HAS_ARCHIVE,
    HAS_MEMORY,
    HASH_BYTES,
    HEAD,
    LABEL_BYTES,
    LIMIT_BYTES,
    LONGEST_AGO,
    MAGIC,
    SAMPLE_REMEMBERED,
)  # fmt: skip


class PackJob(NamedTuple):
    """What to write, one entry a profile: (n,) each.

    span     its row in `SpanArrays`
    memory   its client's row in `Memory`; −1: without remembered rows
    archive  its row in `ArchiveArrays`; −1: without an archive
    window   the window in which the span began
    reached  the window that the archive's ages are counted from
    """

    span: NDArray[np.int64]
    memory: NDArray[np.int64]
    archive: NDArray[np.int64]
    window: NDArray[np.int64]
    reached: NDArray[np.int64]


@nb.njit(inline="always")
def _put(out, at, value, size):  # type: ignore[no-untyped-def]
    """Write the lowest bytes of a number; return the next place."""
    for i in range(size):
        out[at + i] = np.uint8((value >> np.uint64(8 * i)) & np.uint64(0xFF))
    return at + size


@nb.njit(cache=True, nogil=True)
def _put_counts(counts, out, at):  # type: ignore[no-untyped-def]
    """Type code, then values; sparse (index, value) when that is shorter. Type 1, 2, 4, 8 bytes; +16 for sparse."""
    width, top, used = counts.shape[0], np.int64(0), 0
    for i in range(width):
        top = max(top, counts[i])
        used += counts[i] != 0
    size = 1 if top < 1 << 8 else 2 if top < 1 << 16 else 4 if top < 1 << 32 else 8
    if 1 + used * (1 + size) < width * size and used < 256:
        out[at], out[at + 1] = 16 + size, used
        index, at = at + 2, at + 2 + used
        for i in range(width):
            if counts[i] != 0:
                out[index] = i
                index += 1
                at = _put(out, at, np.uint64(counts[i]), size)
        return at
    out[at] = size
    at += 1
    for i in range(width):
        at = _put(out, at, np.uint64(counts[i]), size)
    return at


@nb.njit(cache=True, nogil=True)
def _put_hashes(hashes, n, out, at):  # type: ignore[no-untyped-def]
    for i in range(n):
        at = _put(out, at, hashes[i], HASH_BYTES)
    return at


@nb.njit(cache=True, nogil=True)
def _put_bits(bits, n, out, at):  # type: ignore[no-untyped-def]
    for i in range(n):
        at = _put(out, at, np.uint64(bits[i]), BIT_BYTES)
    return at


@nb.njit(cache=True, nogil=True)
def _put_flags(flags, n, out, at):  # type: ignore[no-untyped-def]
    """Eight flags a byte, the first in the highest bit."""
    for i in range(0, n, 8):
        byte = 0
        for j in range(i, min(i + 8, n)):
            byte |= (128 >> (j - i)) if flags[j] else 0
        out[at] = byte
        at += 1
    return at


@nb.njit(inline="always")
def _width_of(least, most):  # type: ignore[no-untyped-def]
    """Bits that hold the numbers from `least` to `most`, as differences from `least`."""
    bits, left = 0, most - least
    while left > 0:
        bits += 1
        left >>= 1
    return bits


@nb.njit(cache=True, nogil=True)
def _put_column(values, rows, size, out, at):  # type: ignore[no-untyped-def]
    """Bits a value, the least of the values in `size` bytes, then each value's difference from it, the first in the lowest bits."""
    least, most = np.int64(values[0]), np.int64(values[0])
    for i in range(1, rows):
        least, most = min(least, np.int64(values[i])), max(most, np.int64(values[i]))
    bits = _width_of(least, most)
    out[at] = bits
    at = _put(out, at + 1, np.uint64(least & 0xFFFFFFFF), size)
    word, filled = np.uint64(0), 0
    for i in range(rows):
        word |= np.uint64(np.int64(values[i]) - least) << np.uint64(filled)
        filled += bits
        while filled >= 8:
            out[at] = np.uint8(word & np.uint64(0xFF))
            at += 1
            word >>= np.uint64(8)
            filled -= 8
    if filled:
        out[at] = np.uint8(word & np.uint64(0xFF))
        at += 1
    return at


@nb.njit(cache=True, nogil=True)
def _bytes_by_column(codes, rows):  # type: ignore[no-untyped-def]
    """Bytes that the codes take column by column."""
    least, most = codes[0].astype(np.int64), codes[0].astype(np.int64)
    for i in range(1, rows):
        for j in range(codes.shape[1]):
            value = np.int64(codes[i, j])
            least[j], most[j] = min(least[j], value), max(most[j], value)
    total = 0
    for j in range(codes.shape[1]):
        total += 1 + codes.itemsize + (_width_of(least[j], most[j]) * rows + 7) // 8
    return total


@nb.njit(cache=True, nogil=True)
def _is_remembered(sample, n, ring, ring_n, reservoir, reservoir_n):  # type: ignore[no-untyped-def]
    """Whether a sample is exactly the hashes of the remembered rows."""
    if n > ring_n + reservoir_n or n == 0:
        return False
    both = np.concatenate((ring[:ring_n], reservoir[:reservoir_n]))
    both.sort()
    place = 0
    for i in range(len(both)):
        if i > 0 and both[i] == both[i - 1]:
            continue
        if place == n or both[i] != sample[place]:
            return False
        place += 1
    return place == n


@nb.njit(cache=True, nogil=True)
def _put_memory(hashes, labels, codes, rows, by_column, out, at):  # type: ignore[no-untyped-def]
    if rows == 0:
        return at
    at = _put_hashes(hashes, rows, out, at)
    at = _put_column(labels, rows, LABEL_BYTES, out, at)
    if by_column:
        for j in range(codes.shape[1]):
            at = _put_column(codes[:, j], rows, codes.itemsize, out, at)
        return at
    size = codes.itemsize
    for i in range(rows):
        for j in range(codes.shape[1]):
            code = np.uint64(codes[i, j])
            out[at] = np.uint8(code & np.uint64(0xFF))
            if size == 2:
                out[at + 1] = np.uint8(code >> np.uint64(8))
            at += size
    return at


@nb.njit(cache=True, nogil=True)
def _put_archive(archives, k, reached, out, at):  # type: ignore[no-untyped-def]
    """The window and, of each set, its limit and for each query hash, bits and how many windows ago it was seen."""
    n, limit, hashes, bits, seen = (
        archives.n[k],
        archives.limit[k],
        archives.hashes[k],
        archives.bits[k],
        archives.seen[k],
    )
    at = _put(out, at, np.uint64(reached & 0xFFFFFFFF), 4)
    for s in range(3):
        out[at] = n[s]
        at += 1
    for s in range(3):
        at = _put(out, at, np.uint64(limit[s]), LIMIT_BYTES)
        at = _put_hashes(hashes[s], n[s], out, at)
        at = _put_bits(bits[s], n[s], out, at)
        for i in range(n[s]):
            at = _put(out, at, np.uint64(min(max(reached - seen[s, i], 0), LONGEST_AGO)), AGO_BYTES)
    return at


@nb.njit(cache=True, nogil=True)
def _put_maxima(maxima, bits, out, at):  # type: ignore[no-untyped-def]
    """How many values are not 0, their indices, their values. bits: the same values as words."""
    used = 0
    for j in range(maxima.shape[0]):
        if maxima[j] != 0.0:
            used += 1
            out[at + used] = j
    out[at] = used
    at += 1 + used
    for j in range(maxima.shape[0]):
        if maxima[j] != 0.0:
            at = _put(out, at, bits[j], 8)
    return at


@nb.njit(cache=True, nogil=True)
def _put_numbers(values, n, size, out, at):  # type: ignore[no-untyped-def]
    """The first n numbers, `size` bytes each."""
    for i in range(n):
        at = _put(out, at, np.uint64(values[i]), size)
    return at


@nb.njit(cache=True, nogil=True)
def _how_remembered(memory, c, sample, n_sample):  # type: ignore[no-untyped-def]
    """Bits of the head for a client's remembered rows."""
    has, reservoir_n = HAS_MEMORY, memory.reservoir_n[c]
    rows = min(memory.ring_n[c], memory.ring_hash.shape[1])
    if _is_remembered(sample, n_sample, memory.ring_hash[c], rows, memory.reservoir_hash[c], reservoir_n):
        has |= SAMPLE_REMEMBERED
    if rows > 0:
        codes = memory.ring_codes[c]
        packed = _bytes_by_column(codes, rows)
        if reservoir_n > 0:
            packed += _bytes_by_column(memory.reservoir_codes[c], reservoir_n)
        if packed < (rows + reservoir_n) * codes.shape[1] * codes.itemsize:
            has |= BY_COLUMN
    return has


@nb.njit(cache=True, nogil=True)
def _put_remembered(memory, c, by_column, out, at):  # type: ignore[no-untyped-def]
    """Ring buffer and reservoir, then the last rows column by column, where inputs are wide."""
    rows = min(memory.ring_n[c], memory.ring_hash.shape[1])
    at = _put_memory(memory.ring_hash[c], memory.ring_label[c], memory.ring_codes[c], rows, by_column, out, at)
    at = _put_memory(
        memory.reservoir_hash[c], memory.reservoir_label[c], memory.reservoir_codes[c], memory.reservoir_n[c], by_column, out, at
    )  # fmt: skip
    raw = memory.raw_ring[c]
    for r in range(min(memory.ring_n[c], raw.shape[0])):
        at = _put_numbers(raw[r], raw.shape[1], 2, out, at)
    return at


@nb.njit(cache=True, nogil=True)
def _put_sums_and_sets(spans, s, sample_remembered, out, at):  # type: ignore[no-untyped-def]
    n_sample, n_odd, n_sequence, n_passage = spans.sample_n[s], spans.odd_n[s], spans.sequence_n[s], spans.passage_n[s]
    at = _put_counts(spans.classes[s], out, at)
    at = _put_counts(spans.region_counts[s], out, at)
    at = _put_counts(spans.distance_counts[s], out, at)
    if not sample_remembered:
        at = _put_hashes(spans.sample_hash[s], n_sample, out, at)
    at = _put_flags(spans.sample_novel[s], n_sample, out, at)
    at = _put_flags(spans.sample_misfit[s], n_sample, out, at)
    at = _put_hashes(spans.odd_hash[s], n_odd, out, at)
    at = _put_bits(spans.odd_bits[s], n_odd, out, at)
    at = _put_hashes(spans.sequence_hash[s], n_sequence, out, at)
    at = _put_bits(spans.sequence_bits[s], n_sequence, out, at)
    at = _put_maxima(spans.maxima[s], spans.maxima[s].view(np.uint64), out, at)
    at = _put_numbers(spans.passage_ms[s], n_passage, 8, out, at)
    return _put_numbers(spans.passage_query[s], n_passage, 4, out, at)


@nb.njit(cache=True, nogil=True)
def _pack(job, spans, memory, archives, head, decay_bits, out, ends):  # type: ignore[no-untyped-def]
    """Write the profiles end to end, with room for a checksum after each. head: magic, version, map, calibration."""
    at = 0
    for i in range(job.span.shape[0]):
        s, c, k = job.span[i], job.memory[i], job.archive[i]
        ring_n, reservoir_n, has = np.int64(0), np.int64(0), np.int64(0)
        if c >= 0:
            ring_n, reservoir_n = memory.ring_n[c], memory.reservoir_n[c]
            has = np.int64(_how_remembered(memory, c, spans.sample_hash[s], spans.sample_n[s]))
        if k >= 0:
            has |= HAS_ARCHIVE
        for j in range(head.shape[0]):
            out[at + j] = head[j]
        at = _put(out, at + head.shape[0], np.uint64(job.window[i] & 0xFFFFFFFF), 4)
        at = _put(out, at, np.uint64(spans.queries[s]), 8)
        at = _put(out, at, np.uint64(spans.first_ms[s]), 8)
        at = _put(out, at, np.uint64(spans.last_ms[s]), 8)
        at = _put(out, at, np.uint64(spans.sample_n[s]), 2)
        at = _put(out, at, np.uint64(spans.odd_n[s]), 2)
        at = _put(out, at, np.uint64(spans.sequence_n[s]), 2)
        at = _put(out, at, np.uint64(spans.passage_n[s]), 1)
        at = _put(out, at, np.uint64(ring_n), 4)
        at = _put(out, at, np.uint64(reservoir_n), 2)
        at = _put(out, at, np.uint64(has), 1)
        at = _put(out, at, decay_bits, 8)
        at = _put_sums_and_sets(spans, s, has & SAMPLE_REMEMBERED, out, at)
        if c >= 0:
            at = _put_remembered(memory, c, has & BY_COLUMN, out, at)
        if k >= 0:
            at = _put_archive(archives, k, job.reached[i], out, at)
        at += CHECKSUM_BYTES
        ends[i] = at


def most_bytes(spans: SpanArrays, memory: Memory) -> int:
    """Bytes that no profile of these arrays exceeds."""
    rows = memory.ring_hash.shape[1] + memory.reservoir_hash.shape[1]
    width, size = memory.ring_codes.shape[2], memory.ring_codes.itemsize
    sums = sum(3 + 9 * counts.shape[1] for counts in (spans.classes, spans.region_counts, spans.distance_counts))
    sets = (SAMPLE_KEPT + 2) * 7 + (ODD_KEPT + SEQUENCE_KEPT) * (HASH_BYTES + BIT_BYTES)
    maxima = 1 + 9 * spans.maxima.shape[1] + 12 * LADDER_STEPS
    remembered = (
        rows * (HASH_BYTES + 4 + width * size) + 2 * (1 + LABEL_BYTES) * (1 + width) + 2 * memory.raw_ring[0].size
    )
    archived = 7 + 3 * (LIMIT_BYTES + WIDEST * (HASH_BYTES + BIT_BYTES + AGO_BYTES))
    return int(HEAD.size + sums + sets + maxima + remembered + archived + CHECKSUM_BYTES)


def pack_profiles(
    job: PackJob,
    spans: SpanArrays,
    memory: Memory,
    archives: ArchiveArrays,
    map_id: str,
    calibration_version: str,
    decay: float,
) -> list[bytes]:
    """Return the bytes of n profiles.

    Parameters
    ----------
    job
        Which rows of the arrays make up each profile.
    spans, memory, archives
        Arrays with one row a span, client and archive.
    map_id, calibration_version
        16 hex digits each.
    decay
        What a query beyond the horizon keeps of its weight over a window.
    """
    head = np.frombuffer(MAGIC + bytes([FORMAT]) + bytes.fromhex(map_id + calibration_version), np.uint8)
    decay_bits = np.float64(decay).view(np.uint64)
    out = np.empty(len(job.span) * most_bytes(spans, memory), np.uint8)
    ends = np.empty(len(job.span), np.int64)
    _pack(job, spans, memory, archives, head, decay_bits, out, ends)
    written, begin, blobs = out.data, 0, []
    for end in ends.tolist():
        checksum = zlib.crc32(written[begin : end - CHECKSUM_BYTES]).to_bytes(CHECKSUM_BYTES, "little")
        written[end - CHECKSUM_BYTES : end] = checksum
        blobs.append(bytes(written[begin:end]))
        begin = end
    return blobs
