"""Reads profiles into rows of the table's arrays, from `profile_format.py`'s format.

Rules:

* Nothing that is read is believed: each length is compared with the end of the bytes, each count with what the arrays hold. What is wrong
  is a number of `FAULTS`, and the rows then hold anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.archive import ALL, KEPT, ODD_SET, SAMPLE_SET, SEQUENCE_SET, ArchiveArrays, add_up
from detector.bottom_k import find_sorted
from detector.errors import IncompatibleProfile
from detector.fold_arrays import Memory, SpanArrays
from detector.profile_format import (
    AGO_BYTES,
    BIT_BYTES,
    BY_COLUMN,
    CHECKSUM_BYTES,
    HAS_ARCHIVE,
    HAS_MEMORY,
    HASH_BYTES,
    HEAD,
    LABEL_BYTES,
    LIMIT_BYTES,
    SAMPLE_REMEMBERED,
    ProfileHead,
)
from detector.signal_table import SignalTable

HEAD_BYTES: Final = HEAD.size
FAULTS: Final = (
    "", "profile ends too early", "profile counts of unknown type", "profile counts outside the map", "profile maxima outside the table",
    "profile archives more than it may hold", "profile has trailing bytes", "profile holds codes of unknown width",
    "profile's sample is not what it remembers",
    "profile holds more than this map's profiles do",
)  # fmt: skip
_OK, _SHORT, _COUNT_TYPE, _COUNT_PLACE, _MAXIMA, _ARCHIVED, _TRAILING, _WIDTH, _SAMPLE, _TOO_MUCH = range(10)


@nb.njit(inline="always")
def _get(blob, at, size):  # type: ignore[no-untyped-def]
    """A number of `size` bytes."""
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(blob[at + i]) << np.uint64(8 * i)
    return value


@nb.njit(cache=True, nogil=True)
def _get_counts(blob, at, stop, counts):  # type: ignore[no-untyped-def]
    """(next place, fault)."""
    width = counts.shape[0]
    counts[:] = 0
    if at >= stop:
        return at, _SHORT
    code = np.int64(blob[at])
    at += 1
    size = code & 15
    if code > 31 or not (size == 1 or size == 2 or size == 4 or size == 8):
        return at, _COUNT_TYPE
    if code < 16:
        if at + width * size > stop:
            return at, _SHORT
        for i in range(width):
            counts[i] = np.int64(_get(blob, at, size))
            at += size
        return at, _OK
    if at >= stop:
        return at, _SHORT
    used = np.int64(blob[at])
    index = at + 1
    at = index + used
    if at + used * size > stop:
        return at, _SHORT
    for i in range(used):
        if blob[index + i] >= width:
            return at, _COUNT_PLACE
        counts[blob[index + i]] = np.int64(_get(blob, at, size))
        at += size
    return at, _OK


@nb.njit(cache=True, nogil=True)
def _get_hashes(blob, at, n, hashes):  # type: ignore[no-untyped-def]
    for i in range(n):
        hashes[i] = _get(blob, at, HASH_BYTES)
        at += HASH_BYTES
    return at


@nb.njit(cache=True, nogil=True)
def _get_bits(blob, at, n, bits):  # type: ignore[no-untyped-def]
    for i in range(n):
        bits[i] = np.uint32(_get(blob, at, BIT_BYTES))
        at += BIT_BYTES
    return at


@nb.njit(cache=True, nogil=True)
def _get_flags(blob, at, n, flags):  # type: ignore[no-untyped-def]
    for i in range(n):
        flags[i] = (blob[at + i // 8] >> (7 - i % 8)) & 1 != 0
    return at + (n + 7) // 8


@nb.njit(cache=True, nogil=True)
def _get_column(blob, at, stop, rows, size, signed, values):  # type: ignore[no-untyped-def]
    """(next place, fault). size: bytes of the least value."""
    if at + 1 + size > stop:
        return at, _SHORT
    bits = np.int64(blob[at])
    least = np.int64(_get(blob, at + 1, size))
    if signed and least >= 1 << (8 * size - 1):
        least -= 1 << (8 * size)
    at += 1 + size
    if bits > 32:
        return at, _WIDTH
    if at + (bits * rows + 7) // 8 > stop:
        return at, _SHORT
    word, filled = np.uint64(0), np.int64(0)
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    for i in range(rows):
        while filled < bits:
            word |= np.uint64(blob[at]) << np.uint64(filled)
            at += 1
            filled += 8
        values[i] = least + np.int64(word & mask)
        word >>= np.uint64(bits)
        filled -= bits
    return at, _OK


@nb.njit(cache=True, nogil=True)
def _get_memory(blob, at, stop, rows, by_column, hashes, labels, codes):  # type: ignore[no-untyped-def]
    """(next place, fault)."""
    if rows == 0:
        return at, _OK
    if at + rows * HASH_BYTES > stop:
        return at, _SHORT
    at = _get_hashes(blob, at, rows, hashes)
    at, fault = _get_column(blob, at, stop, rows, LABEL_BYTES, True, labels)
    if fault != _OK:
        return at, fault
    if by_column:
        for j in range(codes.shape[1]):
            at, fault = _get_column(blob, at, stop, rows, codes.itemsize, False, codes[:, j])
            if fault != _OK:
                return at, fault
        return at, _OK
    size = codes.itemsize
    if at + rows * codes.shape[1] * size > stop:
        return at, _SHORT
    for i in range(rows):
        for j in range(codes.shape[1]):
            codes[i, j] = (
                np.uint16(blob[at]) | (np.uint16(blob[at + 1]) << np.uint16(8)) if size == 2 else np.uint16(blob[at])
            )
            at += size
    return at, _OK


@nb.njit(cache=True, nogil=True)
def _get_archive(blob, at, stop, archives):  # type: ignore[no-untyped-def]
    """(next place, fault, window) of an archive into row 0."""
    if at + 7 > stop:
        return at, _SHORT, np.int64(0)
    window = np.int64(np.int32(_get(blob, at, 4)))
    sizes, at = at + 4, at + 7
    for s in range(3):
        n, kept = np.int64(blob[sizes + s]), KEPT[s]
        if n > kept:
            return at, _ARCHIVED, window
        if at + LIMIT_BYTES + n * (HASH_BYTES + BIT_BYTES + AGO_BYTES) > stop:
            return at, _SHORT, window
        limit = np.int64(_get(blob, at, LIMIT_BYTES))
        hashes = archives.hashes[0, s]
        at = _get_hashes(blob, at + LIMIT_BYTES, n, hashes)
        at = _get_bits(blob, at, n, archives.bits[0, s])
        for i in range(n):
            archives.seen[0, s, i] = window - np.int64(_get(blob, at, AGO_BYTES))
            at += AGO_BYTES
            if np.int64(hashes[i]) >= limit:
                return at, _ARCHIVED, window
        if not 0 < limit <= ALL:
            return at, _ARCHIVED, window
        archives.n[0, s], archives.limit[0, s] = n, limit
    return at, _OK, window


@nb.njit(cache=True, nogil=True)
def _get_sample(memory, c, ring_rows, reservoir_n, n, sample):  # type: ignore[no-untyped-def]
    """The sample from the remembered rows; whether it is as many as the head says."""
    both = np.concatenate((memory.ring_hash[c, :ring_rows], memory.reservoir_hash[c, :reservoir_n]))
    both.sort()
    place = 0
    for i in range(len(both)):
        if i > 0 and both[i] == both[i - 1]:
            continue
        if place == n:
            return False
        sample[place] = both[i]
        place += 1
    return place == n


@nb.njit(cache=True, nogil=True)
def _get_maxima(blob, at, stop, bits):  # type: ignore[no-untyped-def]
    """(next place, fault). bits: the values as words."""
    bits[:] = np.uint64(0)
    if at >= stop:
        return at, _SHORT
    used = np.int64(blob[at])
    index, at = at + 1, at + 1 + used
    if at + 8 * used > stop:
        return at, _SHORT
    for j in range(used):
        if blob[index + j] >= bits.shape[0]:
            return at, _MAXIMA
        bits[blob[index + j]] = _get(blob, at, 8)
        at += 8
    return at, _OK


@nb.njit(cache=True, nogil=True)
def _get_sums(blob, at, stop, spans, s):  # type: ignore[no-untyped-def]
    """(next place, fault)."""
    at, fault = _get_counts(blob, at, stop, spans.classes[s])
    if fault == _OK:
        at, fault = _get_counts(blob, at, stop, spans.region_counts[s])
    if fault == _OK:
        at, fault = _get_counts(blob, at, stop, spans.distance_counts[s])
    return at, fault


@nb.njit(cache=True, nogil=True)
def _get_sets(blob, at, stop, sizes, sample_remembered, spans, s):  # type: ignore[no-untyped-def]
    """(next place, fault). sizes: of sample, odd set, sequence set and first passages."""
    n_sample, n_odd, n_sequence, n_passage = sizes
    needed = 0 if sample_remembered else n_sample * HASH_BYTES
    if at + needed + 2 * ((n_sample + 7) // 8) + (n_odd + n_sequence) * (HASH_BYTES + BIT_BYTES) > stop:
        return at, _SHORT
    if not sample_remembered:
        at = _get_hashes(blob, at, n_sample, spans.sample_hash[s])
    at = _get_flags(blob, at, n_sample, spans.sample_novel[s])
    at = _get_flags(blob, at, n_sample, spans.sample_misfit[s])
    at = _get_hashes(blob, at, n_odd, spans.odd_hash[s])
    at = _get_bits(blob, at, n_odd, spans.odd_bits[s])
    at = _get_hashes(blob, at, n_sequence, spans.sequence_hash[s])
    at = _get_bits(blob, at, n_sequence, spans.sequence_bits[s])
    spans.sample_n[s], spans.odd_n[s], spans.sequence_n[s], spans.passage_n[s] = n_sample, n_odd, n_sequence, n_passage
    at, fault = _get_maxima(blob, at, stop, spans.maxima[s].view(np.uint64))
    if fault == _OK and at + 12 * n_passage > stop:
        fault = _SHORT
    if fault != _OK:
        return at, fault
    for j in range(n_passage):
        spans.passage_ms[s, j] = np.int64(_get(blob, at + 8 * j, 8))
        spans.passage_query[s, j] = np.int64(_get(blob, at + 8 * n_passage + 4 * j, 4))
    return at + 12 * n_passage, _OK


@nb.njit(cache=True, nogil=True)
def _get_remembered(blob, at, stop, ring_n, reservoir_n, by_column, memory, c):  # type: ignore[no-untyped-def]
    """(next place, fault)."""
    rows, raw = min(ring_n, memory.ring_hash.shape[1]), memory.raw_ring[c]
    at, fault = _get_memory(
        blob, at, stop, rows, by_column, memory.ring_hash[c], memory.ring_label[c], memory.ring_codes[c]
    )
    if fault == _OK:
        at, fault = _get_memory(
            blob, at, stop, reservoir_n, by_column, memory.reservoir_hash[c], memory.reservoir_label[c], memory.reservoir_codes[c]
        )  # fmt: skip
    if fault == _OK and at + 2 * min(ring_n, raw.shape[0]) * raw.shape[1] > stop:
        fault = _SHORT
    if fault != _OK:
        return at, fault
    for r in range(min(ring_n, raw.shape[0])):
        for j in range(raw.shape[1]):
            raw[r, j] = np.uint16(_get(blob, at, 2))
            at += 2
    memory.ring_n[c], memory.reservoir_n[c] = ring_n, reservoir_n
    return at, _OK


@nb.njit(cache=True, nogil=True)
def _read(blob, at, stop, head, spans, s, memory, c, archives):  # type: ignore[no-untyped-def]
    """(fault, window of the archive). head: a row of `_numbers`."""
    window, sizes = np.int64(0), (head[0], head[1], head[2], head[3])
    ring_n, reservoir_n, has = head[4], head[5], head[6]
    if reservoir_n > memory.reservoir_hash.shape[1]:
        return _TOO_MUCH, window
    remembered = has & SAMPLE_REMEMBERED != 0
    at, fault = _get_sums(blob, at, stop, spans, s)
    if fault == _OK:
        at, fault = _get_sets(blob, at, stop, sizes, remembered, spans, s)
    if fault == _OK and has & HAS_MEMORY:
        at, fault = _get_remembered(blob, at, stop, ring_n, reservoir_n, has & BY_COLUMN != 0, memory, c)
    if fault == _OK and remembered:
        rows = min(ring_n, memory.ring_hash.shape[1])
        if not has & HAS_MEMORY or not _get_sample(memory, c, rows, reservoir_n, sizes[0], spans.sample_hash[s]):
            fault = _SAMPLE
    if fault == _OK and has & HAS_ARCHIVE:
        at, fault, window = _get_archive(blob, at, stop, archives)
    if fault == _OK and at != stop:
        fault = _TRAILING
    return fault, window


@nb.njit(cache=True, nogil=True)
def _count_odd(spans, s, table):  # type: ignore[no-untyped-def]
    """Count the members of a span's sets that carry all bits of each signal."""
    counts, need, sequence = spans.odd_counts[s], table.need, table.sequence
    counts[:] = 0
    for of_sequence, bits, n in (
        (False, spans.odd_bits[s], spans.odd_n[s]),
        (True, spans.sequence_bits[s], spans.sequence_n[s]),
    ):
        for i in range(n):
            for q in range(need.shape[0]):
                if sequence[q] == of_sequence and bits[i] & need[q] == need[q]:
                    counts[q] += 1


@nb.njit(cache=True, nogil=True)
def _leave_out(archives, k, hashes, n):  # type: ignore[no-untyped-def]
    """Take the n members of a set within the horizon out of set k of the archive in row 0."""
    kept = 0
    for a in range(archives.n[0, k]):
        h = archives.hashes[0, k, a]
        place = find_sorted(hashes, n, h)
        if place < n and hashes[place] == h:
            continue
        archives.hashes[0, k, kept], archives.bits[0, k, kept] = h, archives.bits[0, k, a]
        archives.seen[0, k, kept] = archives.seen[0, k, a]
        kept += 1
    archives.n[0, k] = kept


@nb.njit(cache=True, nogil=True)
def _carry(archives, spans, s, window, decay, table, faded):  # type: ignore[no-untyped-def]
    """Write down what the archive in row 0 adds to the span in row s, as `profile.Profile.carry` says. faded: (signals + 2,)."""
    if archives.n[0, ODD_SET] == 0 and archives.n[0, SEQUENCE_SET] == 0:
        return
    _leave_out(archives, ODD_SET, spans.odd_hash[s], spans.odd_n[s])
    _leave_out(archives, SEQUENCE_SET, spans.sequence_hash[s], spans.sequence_n[s])
    _leave_out(archives, SAMPLE_SET, spans.sample_hash[s], spans.sample_n[s])
    add_up(archives, 0, window, decay, table)
    faded[:-2] = archives.carry[0]
    faded[-2:] = archives.carry_base[0]


@nb.njit(cache=True, nogil=True)
def _read_all(blobs, ends, heads, decays, at, clients, spans, memory, archives, table, faded, faults):  # type: ignore[no-untyped-def]
    start = 0
    for i in range(ends.shape[0]):
        faults[i], archived = _read(
            blobs, start + HEAD_BYTES, ends[i] - CHECKSUM_BYTES, heads[i], spans, at[i], memory, clients[i], archives
        )  # fmt: skip
        start = ends[i]
        if faults[i] != _OK:
            continue
        _count_odd(spans, at[i], table)
        if heads[i, 6] & HAS_ARCHIVE:
            _carry(archives, spans, at[i], max(heads[i, 7], archived), decays[i], table, faded[i])


def _numbers(head: ProfileHead) -> tuple[int, ...]:
    counts = head.n_sample, head.n_odd, head.n_sequence, head.n_passage, head.ring_n, head.reservoir_n
    return *counts, head.has, head.window


def read_profile(blob: bytes, head: ProfileHead, spans: SpanArrays, memory: Memory, archives: ArchiveArrays) -> int:
    """Read a profile into the first rows of arrays that hold zeros.

    Parameters
    ----------
    blob, head
        The bytes, and what `read_head` returned for them.
    spans
        Takes the span.
    memory
        Takes the remembered rows, if there are any.
    archives
        Takes the archive, if there is one.

    Returns
    -------
    window
        The one that the archive's ages are counted from; 0 without an archive.

    Raises
    ------
    IncompatibleProfile
        The bytes end too early, or hold what nobody packed. The rows then hold anything.
    """
    numbers, stop = np.array(_numbers(head), np.int64), len(blob) - CHECKSUM_BYTES
    fault, window = _read(np.frombuffer(blob, np.uint8), HEAD_BYTES, stop, numbers, spans, 0, memory, 0, archives)
    if fault != _OK:
        raise IncompatibleProfile(FAULTS[fault])
    spans.queries[0], spans.first_ms[0], spans.last_ms[0] = head.queries, head.first_ms, head.last_ms
    return int(window)


class ReadProfiles(NamedTuple):
    """What `read_profiles` found beside the rows that it filled.

    faults             why each of n profiles was not read; empty for those that were
    faded, faded_base  (n, s) and (n, 2): what the archive of each adds, as `profile.Profile.carry` says
    """

    faults: list[str]
    faded: NDArray[np.float64]
    faded_base: NDArray[np.float64]


def read_profiles(
    blobs: Sequence[bytes],
    heads: Sequence[ProfileHead],
    at: NDArray[np.int64],
    clients: NDArray[np.int64],
    spans: SpanArrays,
    memory: Memory,
    archives: ArchiveArrays,
    table: SignalTable,
) -> ReadProfiles:
    """Read n profiles into rows that hold zeros, with one compiled call.

    Parameters
    ----------
    blobs, heads
        The bytes of each, and what `read_head` returned for them.
    at, clients
        (n,) the row of `spans` that takes each, and the row of `memory` that takes its remembered rows, if there are any.
    spans, memory
        The arrays.
    archives
        Of one row at least: the first takes the archives, one after the other.
    table
        The signals that `spans.odd_counts` counts for.

    Returns
    -------
    ReadProfiles
        The rows of a profile that was not read hold anything.
    """
    ends = np.cumsum([len(blob) for blob in blobs])
    text = np.frombuffer(b"".join(blobs), np.uint8)
    numbers, decays = np.array([_numbers(head) for head in heads], np.int64), np.array([head.decay for head in heads])
    faded, faults = np.zeros((len(blobs), len(table.need) + 2)), np.empty(len(blobs), np.int64)
    _read_all(text, ends, numbers, decays, at, clients, spans, memory, archives, table, faded, faults)
    for name in ("queries", "first_ms", "last_ms"):
        getattr(spans, name)[at] = [getattr(head, name) for head in heads]
    return ReadProfiles([FAULTS[fault] for fault in faults.tolist()], faded[:, :-2], faded[:, -2:])
