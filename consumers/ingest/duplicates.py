"""Duplicates: queries that a producer sent twice, recognised by their ``event_id`` and their content.

Rules:
* A *duplicate* has the same event id, the same input and the same prediction, byte for byte (`Decoded.contents`). The id alone proves
  nothing: a gateway may take it from a header that the client sends.
* The window of a client holds 64-bit keyed hashes of the last events that counted: at most `KEPT`, none older than `SPAN_MS` of event
  time before the newest. An event that the window holds is a duplicate and changes nothing. A query without an id is never a duplicate.
* The age of an event is that of its stated time. An event ahead of the log time counts earlier than stated; it is held until the log has
  passed the stated time, because its repetition states the same.
* A false match needs two equal hashes of 64 bits: at most 1.4e-17 per query.
* A duplicate depends on the client's earlier queries alone, never on how polls cut them: rows are processed one by one.
* The window belongs to one shard: the same event in two partitions is not noticed (producers key by client).
* A stored window is field ``e`` of the profile: newest event time, then hashes and times, oldest first. A window that cannot be read is
  started again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.kernels import hash_texts
from detector.row_pool import RowPool

FIELD = "e"
KEPT = 256
SPAN_MS = 600_000
_HEAD = struct.Struct("<BxHxxxxq")  # version, entries, newest event time in ms
_VERSION = 2


def event_hashes(texts: bytearray, ends: NDArray[np.int64], key: bytes) -> NDArray[np.uint64]:
    """(n,) keyed hashes of n events (their ids and contents, as texts that lie end to end); 0 for an empty one, which has no id."""
    out = np.zeros(len(ends), np.uint64)
    if texts:
        k0, k1 = np.frombuffer(key, "<u8", 2)
        hash_texts(np.frombuffer(texts, np.uint8), ends, k0, k1, out)
    return out


@nb.njit(cache=True, nogil=True)
def _unseen(slots, hashes, time_ms, stated_ms, kept_hash, kept_ms, count, newest, fresh):  # type: ignore[no-untyped-def]
    """fresh[i]: row i is no duplicate. The windows take up what is fresh, with the times that it states."""
    for i in range(slots.shape[0]):
        fresh[i] = True
        h = hashes[i]
        if h == np.uint64(0):
            continue
        c = slots[i]
        n = count[c]
        now = max(newest[c], time_ms[i])
        for j in range(n):
            if kept_hash[c, j] == h and now - kept_ms[c, j] <= SPAN_MS:
                fresh[i] = False
                break
        if not fresh[i]:
            continue
        newest[c] = now
        kept = 0
        for j in range(n):  # drop what is too old, close the ranks
            if now - kept_ms[c, j] <= SPAN_MS:
                if kept != j:
                    kept_hash[c, kept] = kept_hash[c, j]
                    kept_ms[c, kept] = kept_ms[c, j]
                kept += 1
        if now - stated_ms[i] <= SPAN_MS:
            if kept == KEPT:
                for j in range(1, KEPT):
                    kept_hash[c, j - 1] = kept_hash[c, j]
                    kept_ms[c, j - 1] = kept_ms[c, j]
                kept = KEPT - 1
            kept_hash[c, kept] = h
            kept_ms[c, kept] = stated_ms[i]
            kept += 1
        count[c] = kept


class Windows:
    """The windows of many clients in flat arrays, one row each; `rows` names them. An unknown client starts empty."""

    def __init__(self, capacity: int = 64) -> None:
        self.rows: dict[object, int] = {}
        self._kept = RowPool(
            {
                "hash": ((KEPT,), np.uint64),
                "ms": ((KEPT,), np.int64),
                "count": ((), np.int64),
                "newest": ((), np.int64),
            },
            capacity,
        )

    def unseen(
        self,
        keys: Sequence[object],
        who: NDArray[np.int32],
        hashes: NDArray[np.uint64],
        time_ms: NDArray[np.int64],
        stated_ms: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Which rows (n,) are no duplicates. The windows remember them.

        keys       (g,) what `who` points into
        time_ms    (n,) when the rows count; stated_ms: what their records state
        """
        fresh = np.ones(len(who), np.bool_)
        slots = np.array([self._row(key) for key in keys], np.int64)[who]
        kept = self._kept.arrays
        _unseen(slots, hashes, time_ms, stated_ms, kept["hash"], kept["ms"], kept["count"], kept["newest"], fresh)
        return fresh

    def put(self, key: object, blob: bytes | None) -> None:
        """Take over a stored window; none, or a damaged one, begins anew."""
        self.drop(key)
        row = self._row(key)
        if blob is None or len(blob) < _HEAD.size:
            return
        version, count, newest = _HEAD.unpack_from(blob)
        if version != _VERSION or count > KEPT or len(blob) != _HEAD.size + 16 * count:
            return
        kept = self._kept.arrays
        kept["hash"][row, :count] = np.frombuffer(blob, "<u8", count, _HEAD.size)
        kept["ms"][row, :count] = np.frombuffer(blob, "<i8", count, _HEAD.size + 8 * count)
        kept["count"][row], kept["newest"][row] = count, newest

    def blob(self, key: object) -> bytes | None:
        """The window as it is stored; None while it never held anything."""
        row = self.rows.get(key)
        kept = self._kept.arrays
        if row is None or not kept["count"][row]:
            return None
        count, newest = int(kept["count"][row]), int(kept["newest"][row])
        stated = kept["ms"][row, :count].astype("<i8")
        return _HEAD.pack(_VERSION, count, newest) + kept["hash"][row, :count].tobytes() + stated.tobytes()

    def drop(self, key: object) -> None:
        row = self.rows.pop(key, None)
        if row is not None:
            self._kept.give_back(row)

    def _row(self, key: object) -> int:
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = self._kept.take()
        return row
