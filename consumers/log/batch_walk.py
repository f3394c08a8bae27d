"""A compiled walk over the records of a Kafka batch of format 2, decompressed: where each value lies, its offset and its time.

The layout is that of the protocol (kafka.apache.org/documentation/#recordbatch): a record is its length, a byte of attributes, and zig-zag
numbers of variable length for time and offset (both relative to the batch), key, value and headers.

Rules:

* Nothing is believed: every length is compared with the end of the batch before it is used, and offsets must rise.
* The walk stops at the first record that is not well-formed. What came before it counts; the caller says what becomes of the rest.
* `tests/log/test_batches.py` compares it with the same walk in Python, on batches of random bytes too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from consumers.log.words import byte_at
from detector.query import TIMES_MS, UNKNOWN_MS

LEAST_RECORD_BYTES = 6
LATEST_MS = (1 << 63) - 1
_INT_SHIFT, _LONG_SHIFT = 28, 63
"""Of the last byte of a number of 32 and of 64 bits."""
_BAD = -1
_END_MS = TIMES_MS.stop


class WalkedRecords(NamedTuple):
    """n records of a batch.

    starts, ends  (n,) int64: where their values lie in the body; a tombstone's ends before it starts
    deltas        (n,) int64: their offsets, relative to the batch's
    time_ms       (n,) int64: their own times; -1 where that is none of `TIMES_MS`
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    deltas: NDArray[np.int64]
    time_ms: NDArray[np.int64]


@nb.njit(inline="always")
def _varint(body, at, size, last_shift):  # type: ignore[no-untyped-def]
    """A zig-zag number and where it ends, `_BAD` for none. What 64 bits do not hold is the largest or smallest that they do."""
    number, shift = np.uint64(0), 0
    more: Any = True
    over: Any = False
    while more:
        if at >= size or shift > last_shift:
            return np.int64(0), np.int64(_BAD)
        byte = np.uint64(byte_at(body, at))
        at += 1
        number |= (byte & np.uint64(0x7F)) << np.uint64(shift)
        over = shift == 63 and byte & np.uint64(0x7E) != np.uint64(0)
        more = byte >= np.uint64(0x80)
        shift += 7
    if over:
        return (np.int64(-LATEST_MS) if number & np.uint64(1) else np.int64(LATEST_MS)), at
    return np.int64(number >> np.uint64(1)) ^ -np.int64(number & np.uint64(1)), at


@nb.njit(inline="always")
def _known(first_ms, later_ms):  # type: ignore[no-untyped-def]
    """The sum of two times; unknown outside `TIMES_MS`."""
    if (later_ms > 0 and first_ms > LATEST_MS - later_ms) or (later_ms < 0 and first_ms < 0):
        return np.int64(UNKNOWN_MS)  # 64 bits do not hold it
    time_ms = first_ms + later_ms
    return time_ms if 0 <= time_ms < _END_MS else np.int64(UNKNOWN_MS)


@nb.njit(cache=True, nogil=True)
def _walk(text, count, last_delta, first_ms, kept, starts, ends, deltas, time_ms):  # type: ignore[no-untyped-def]
    """Fill in the records; return how many are well-formed."""
    body, size = text.ctypes.data, np.int64(text.shape[0])
    at, previous = np.int64(0), np.int64(-1)
    for i in range(count):
        length, at = _varint(body, at, size, _INT_SHIFT)
        if at < 0:
            return i
        end = at + length
        later_ms, at = _varint(body, at + 1, size, _LONG_SHIFT)  # after the attributes
        if at < 0:
            return i
        delta, at = _varint(body, at, size, _INT_SHIFT)
        if at < 0:
            return i
        key_bytes, at = _varint(body, at, size, _INT_SHIFT)
        if at < 0:
            return i
        value_bytes, at = _varint(body, at + max(key_bytes, 0), size, _INT_SHIFT)
        if at < 0 or not (previous < delta <= last_delta and at + max(value_bytes, 0) <= end <= size):
            return i
        previous = delta
        starts[i], deltas[i] = at, delta
        ends[i] = at + min(value_bytes, kept) if value_bytes >= 0 else at - 1
        time_ms[i] = _known(first_ms, later_ms)
        at = end
    return count


def walk_records(
    body: NDArray[np.uint8], count: int, last_delta: int, first_ms: int, kept_bytes: int
) -> tuple[WalkedRecords, bool]:
    """Find the records of a batch.

    Parameters
    ----------
    body
        (b,) uint8, the decompressed records.
    count
        How many the batch says it has; it may lie.
    last_delta
        The last offset that the batch says it has, relative to its first.
    first_ms
        The time that the records' own are relative to.
    kept_bytes
        A longer value is cut to this number of bytes.

    Returns
    -------
    records
        Those before the first that is not well-formed.
    whole
        Whether these are as many as the batch said.
    """
    most = min(max(count, 0), len(body) // LEAST_RECORD_BYTES + 1)
    columns = np.empty((4, most), np.int64)
    found = _walk(body, most, last_delta, first_ms, kept_bytes, *columns)
    return WalkedRecords(*columns[:, :found]), found == count or count < 0
