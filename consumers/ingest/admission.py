"""Admission: limits the number of new clients that a log cell accepts, so that invented client ids cannot fill the store.

Rules:
* A known client (one with stored statistics) is never affected.
* Of the new clients in one hour of event time, the first `Limits.new_an_hour` get statistics at once. Each further client gets none
  before its first `Limits.queries_first` queries in that hour; as many clients again may be admitted in this way. A count-min sketch
  counts the queries (Cormode & Muthukrishnan 2005), less the noise of the other ids (Deng & Rafiei 2007). At most `Limits.clients` are
  admitted within two half-horizon windows, the time for which a client is kept.
* Queries of clients without statistics are pooled: one *overflow client* for each model takes them. It is profiled and scored like any
  other client, so that a flood of ids that steals a model is noticed there.
* Admission is a function of the stored cell and of the records: a redo decides alike, however polls cut them. One input is not: `full`,
  which says that the store has no room. Then no new client is admitted.
* The hour moves forward with event time. A row more than a day before it begins its own hour (a log that is read again).
* Stored as `Checkpoint.sketch`: 64 bytes, or `SKETCH_BYTES` in an hour with more newcomers than the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

DEPTH = 4
WIDTH = 32_760
HEAD_BYTES = 64
SKETCH_BYTES = HEAD_BYTES + DEPTH * WIDTH * 2
"""256 KiB."""
FULL_SHARE = 0.85
"""Share of the store's memory beyond which nobody new is taken up."""

_HOUR, _NEW, _LATE, _TOTAL, _WINDOW, _THIS, _BEFORE, _VERSION = range(8)
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Of one cell. new_an_hour: clients taken up at once in an hour of event time; clients: within a horizon."""

    new_an_hour: int = 5_000
    clients: int = 100_000
    queries_first: int = 20


@nb.njit(cache=True, nogil=True)
def _admit(who, places, known, hours, windows, state, counts, new_an_hour, clients, first, full, pooled):  # type: ignore[no-untyped-def]
    """pooled[i]: row i goes to the overflow client. known (g,) is written: who has state after the last row."""
    for i in range(who.shape[0]):
        c = who[i]
        pooled[i] = False
        if known[c]:
            continue
        hour = hours[i]
        if hour > state[0] or hour < state[0] - 24:
            state[0] = hour
            state[1] = 0
            state[2] = 0
            if state[3] > 0:
                counts[:] = 0
                state[3] = 0
        window = windows[i]
        if window > state[4]:
            state[6] = state[5] if window == state[4] + 1 else 0
            state[5] = 0
            state[4] = window
        if full or state[5] + state[6] >= clients:
            pooled[i] = True
            continue
        if state[1] < new_an_hour:
            state[1] += 1
        else:
            state[3] += 1
            least = np.int64(1 << 62)
            for r in range(counts.shape[0]):
                at = places[c, r]
                if counts[r, at] < 65535:
                    counts[r, at] += 1
                least = min(least, np.int64(counts[r, at]))
            if least - (state[3] - least) // (counts.shape[1] - 1) < first or state[2] >= new_an_hour:
                pooled[i] = True
                continue
            state[2] += 1
        state[5] += 1
        known[c] = True


class Admission:
    """What a cell knows about newcomers. Raises nothing: a stored state that cannot be read begins anew."""

    def __init__(self, blob: bytes = b"") -> None:
        self._state = np.zeros(8, np.int64)
        self._counts = np.zeros((DEPTH, WIDTH), np.uint16)
        self.changed = False
        """Something happened since `to_bytes`."""
        whole = len(blob) in (HEAD_BYTES, SKETCH_BYTES)
        if whole and np.frombuffer(blob, "<i8", 1, 8 * _VERSION)[0] == _FORMAT:
            self._state[:] = np.frombuffer(blob, "<i8", 8)
            if len(blob) > HEAD_BYTES:
                self._counts[:] = np.frombuffer(blob, "<u2", DEPTH * WIDTH, HEAD_BYTES).reshape(DEPTH, WIDTH)
            else:
                self._state[_TOTAL] = 0

    def to_bytes(self) -> bytes:
        self.changed = False
        self._state[_VERSION] = _FORMAT
        head = self._state.astype("<i8").tobytes()
        return head + self._counts.astype("<u2").tobytes() if self._state[_TOTAL] else head

    def tight(self, newcomers: int, limits: AdmissionLimits, full: bool) -> bool:
        """Whether so many newcomers could be too many: the overflow clients may be needed."""
        alive = int(self._state[_THIS] + self._state[_BEFORE])
        return full or self._state[_NEW] + newcomers > limits.new_an_hour or alive + newcomers > limits.clients

    def pooled(
        self,
        keys: Sequence[str],
        known: NDArray[np.bool_],
        who: NDArray[np.int32],
        time_ms: NDArray[np.int64],
        half_horizon_ms: int,
        limits: AdmissionLimits,
        full: bool = False,
    ) -> NDArray[np.bool_]:
        """Which rows (n,) go to the overflow client.

        keys (g,) keyed hashes of the clients, 32 hex digits; known (g,) which of them have state, updated; who (n,) points into both
        """
        places = np.zeros((len(keys), DEPTH), np.int64)
        unknown = np.flatnonzero(~known)
        drawn = np.array([int(keys[i][:15], 16) for i in unknown.tolist()], np.int64)
        for r in range(DEPTH):
            places[unknown, r] = ((drawn >> (15 * r)) & 0x7FFF) % WIDTH
        out = np.zeros(len(who), np.bool_)
        before = self._state.copy()
        _admit(
            who, places, known, time_ms // 3_600_000, time_ms // half_horizon_ms, self._state, self._counts,
            limits.new_an_hour, limits.clients, limits.queries_first, full, out,
        )  # fmt: skip
        self.changed |= not np.array_equal(before, self._state)
        return out
