"""The archive: the part of a client's odd queries that has left the horizon. Its weight fades with time.

Rules:

* Three bottom-k sets by content hash: the odd queries, the queries that are odd by what came before them, and a sample of all distinct
  queries. Of each query it keeps the bits and the window in which it was last seen. A client without odd queries has no archive.
* A set holds every archived query whose hash is below its limit, and no other. So a count over it, divided by the limit's share of all
  hashes, is unbiased (Cohen & Kaplan, PODC 2007). A union keeps this: it takes the lower limit and the later window, and merges bits as
  the profile's sets do.
* The weight of a query halves with each quarter of the memory. Below `LEAST`, which it reaches one whole memory after it left the
  horizon, the query is dropped. Weights change only when a window begins, so the weighted count of an archive is one number for each
  signal.
* A query is in the horizon or in the archive, never in both: a query that is seen again leaves the archive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import DTypeLike, NDArray

from detector.features import BITS, SEQUENCE
from detector.kernels import HASH_SPAN
from detector.signal_table import SignalTable

ODD_SET, SEQUENCE_SET, SAMPLE_SET = range(3)
KEPT = (128, 64, 96)
"""Of the odd set, the sequence set and the sample."""
WIDEST = max(KEPT)
ALL = int(HASH_SPAN)
"""The limit of a set that holds everything."""
LEAST = 0.0625
OFF = 0.0
"""The decay where nothing is kept beyond the horizon."""
NOVEL = BITS["novel"]
_STICKY = np.uint32(BITS["novel"] | BITS["distant"])


def decay_of(half_horizon_ms: float, memory_ms: float) -> float:
    """Share of its weight that a query keeps over one window."""
    return float(2.0 ** (-4.0 * half_horizon_ms / memory_ms)) if memory_ms > 0 else OFF


def lasting(decay: float) -> int:
    """Windows after which a query that left the horizon is dropped."""
    return int(np.log2(LEAST) / np.log2(decay) + 1e-9) if 0.0 < decay < 1.0 else 0


@dataclass(frozen=True, slots=True)
class Faded:
    """One set: hashes (n,) ascending, bits (n,), seen (n,) windows; it holds what was archived with a hash below `limit`."""

    hashes: NDArray[np.uint64]
    bits: NDArray[np.uint32]
    seen: NDArray[np.int64]
    limit: int = ALL

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, hashes: NDArray[np.uint64], bits: NDArray[np.uint32], window: int, kept: int) -> Faded:
        """A bottom-k set of a profile, last seen in a window: complete below its largest hash where it is full."""
        full = len(hashes) == kept
        rows = slice(0, len(hashes) - full)
        seen = np.full(len(hashes) - full, window, np.int64)
        return cls(hashes[rows], bits[rows], seen, int(hashes[-1]) if full else ALL)

    def only(self, rows: NDArray[np.bool_]) -> Faded:
        if rows.all():
            return self
        return Faded(self.hashes[rows], self.bits[rows], self.seen[rows], self.limit)

    def cut(self, kept: int) -> Faded:
        """The smallest `kept` hashes."""
        if len(self) <= kept:
            return self
        return Faded(self.hashes[:kept], self.bits[:kept], self.seen[:kept], min(self.limit, int(self.hashes[kept])))

    def union(self, other: Faded, kept: int) -> Faded:
        limit = min(self.limit, other.limit)
        hashes, at = np.unique(np.concatenate([self.hashes, other.hashes]), return_inverse=True)
        bits = np.concatenate([self.bits, other.bits])
        some, every = np.zeros(len(hashes), np.uint32), np.full(len(hashes), 0xFFFFFFFF, np.uint32)
        np.bitwise_or.at(some, at, bits)
        np.bitwise_and.at(every, at, bits)
        seen = np.full(len(hashes), np.iinfo(np.int64).min)
        np.maximum.at(seen, at, np.concatenate([self.seen, other.seen]))
        if len(hashes) > kept:
            limit = min(limit, int(hashes[kept]))
        n = int(np.searchsorted(hashes, np.uint64(limit)))
        return Faded(hashes[:n], ((some & ~_STICKY) | (every & _STICKY))[:n].astype(np.uint32), seen[:n], limit)


NONE = Faded(np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True)
class Archive:
    """window: the newest of the client, which ages are counted from; sets: `ODD_SET`, `SEQUENCE_SET`, `SAMPLE_SET`."""

    window: int = 0
    sets: tuple[Faded, Faded, Faded] = (NONE, NONE, NONE)

    @classmethod
    def of(cls, arrays: ArchiveArrays, at: int, window: int) -> Archive:
        """A copy of the archive in a row of the arrays; `NOTHING` where it holds no odd query."""
        hashes, bits, seen = arrays.hashes[at], arrays.bits[at], arrays.seen[at]
        n, limit = arrays.n[at].tolist(), arrays.limit[at].tolist()
        a, b, c = (
            Faded(hashes[k, : n[k]].copy(), bits[k, : n[k]].copy(), seen[k, : n[k]].copy(), limit[k])
            for k in range(len(KEPT))
        )
        archive = cls(window, (a, b, c))
        return archive or NOTHING

    def __bool__(self) -> bool:
        return bool(len(self.sets[ODD_SET]) or len(self.sets[SEQUENCE_SET]))

    def union(self, other: Archive) -> Archive:
        """Associative, commutative, idempotent, with the empty archive as zero."""
        if self is NOTHING or other is NOTHING:
            return other if self is NOTHING else self
        a, b, c = (x.union(y, kept) for x, y, kept in zip(self.sets, other.sets, KEPT, strict=True))
        return Archive(max(self.window, other.window), (a, b, c))

    def at(self, window: int, decay: float) -> Archive:
        """As of a later window: without what has faded below `LEAST`."""
        window = max(window, self.window)
        oldest = window - 2 - lasting(decay)
        a, b, c = (s.only(s.seen >= oldest) for s in self.sets)
        a, b, c = (s if len(s) else NONE for s in (a, b, c))
        aged = Archive(window, (a, b, c))
        return aged if aged and decay > OFF else NOTHING

    def cut(self) -> Archive:
        """Within its bounds."""
        a, b, c = (s.cut(kept) for s, kept in zip(self.sets, KEPT, strict=True))
        return Archive(self.window, (a, b, c))

    def without(self, odd: NDArray[np.uint64], sequence: NDArray[np.uint64], sample: NDArray[np.uint64]) -> Archive:
        """Without what is within the horizon, by the profile's own sets."""
        a, b, c = (
            s.only(~np.isin(s.hashes, hashes)) for s, hashes in zip(self.sets, (odd, sequence, sample), strict=True)
        )
        return Archive(self.window, (a, b, c))

    def carry(self, window: int, decay: float, table: SignalTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Faded queries that carry all bits of each signal, (s,), and faded distinct queries and novel ones, (2,)."""
        arrays = self.arrays(len(table.need))
        add_up(arrays, 0, window, decay, table)
        return arrays.carry[0], arrays.carry_base[0]

    def arrays(self, signals: int) -> ArchiveArrays:
        """The sets side by side, as the kernels take them: one row, its carry not added up yet."""
        out = ArchiveArrays(**{name: np.zeros((1, *shape), kind) for name, (shape, kind) in layout(signals).items()})
        for k, s in enumerate(self.sets):
            out.hashes[0, k, : len(s)], out.bits[0, k, : len(s)], out.seen[0, k, : len(s)] = s.hashes, s.bits, s.seen
            out.n[0, k], out.limit[0, k] = len(s), s.limit
        return out


NOTHING = Archive()
"""Nothing is archived."""


class ArchiveArrays(NamedTuple):
    """One row an archive.

    hashes, bits, seen  (…, 3, k) of each query of its sets: content hash ascending, bits, window; n, limit (…, 3): of each set
    carry       (…, s) what the archive adds to the count of each signal
    carry_base  (…, 2) what it adds to the distinct queries and to the novel ones
    """

    hashes: NDArray[np.uint64]
    bits: NDArray[np.uint32]
    seen: NDArray[np.int64]
    n: NDArray[np.int64]
    limit: NDArray[np.int64]
    carry: NDArray[np.float64]
    carry_base: NDArray[np.float64]


def layout(signals: int) -> dict[str, tuple[tuple[int, ...], DTypeLike]]:
    """Shape and type of one row of each of `ArchiveArrays`, by name."""
    return {
        "hashes": ((3, WIDEST), np.uint64),
        "bits": ((3, WIDEST), np.uint32),
        "seen": ((3, WIDEST), np.int64),
        "n": ((3,), np.int64),
        "limit": ((3,), np.int64),
        "carry": ((signals,), np.float64),
        "carry_base": ((2,), np.float64),
    }


@nb.njit(cache=True, nogil=True)
def add_up(archives, at, window, decay, table):  # type: ignore[no-untyped-def]
    """Write the carry of the archive in row `at`, as of a window: what its queries weigh now."""
    counts, base = archives.carry[at], archives.carry_base[at]
    counts[:] = 0.0
    base[:] = 0.0
    for k in range(3):
        share = float(archives.limit[at, k]) / HASH_SPAN
        for a in range(archives.n[at, k]):
            weight = decay ** max(window - 2 - archives.seen[at, k, a], 0)
            if weight < LEAST * (1.0 - 1e-9):
                continue
            weight = weight / share
            b = archives.bits[at, k, a]
            if k == SAMPLE_SET:
                base[0] += weight
                if b & np.uint32(NOVEL):
                    base[1] += weight
                continue
            for q in range(table.need.shape[0]):
                if table.sequence[q] == (k == SEQUENCE_SET) and (b & table.need[q]) == table.need[q]:
                    counts[q] += weight


@nb.njit(cache=True, nogil=True)
def seen_again(h, b, archives, at, window, decay, table):  # type: ignore[no-untyped-def]
    """Take a query out of the archive in row `at`, and its weight out of the carry, which is added up anew: never a matter of rounding."""
    hashes, bits, seen, n = archives.hashes[at], archives.bits[at], archives.seen[at], archives.n[at]
    changed = False
    for k in range(3):
        if k == SEQUENCE_SET and not b & np.uint32(SEQUENCE):
            continue  # it is not odd by what came before it this time
        place = np.searchsorted(hashes[k, : n[k]], h)
        if place == n[k] or hashes[k, place] != h:
            continue
        changed = True
        for a in range(place, n[k] - 1):
            hashes[k, a] = hashes[k, a + 1]
            bits[k, a] = bits[k, a + 1]
            seen[k, a] = seen[k, a + 1]
        n[k] -= 1
    if changed:
        if n[ODD_SET] == 0 and n[SEQUENCE_SET] == 0:
            n[SAMPLE_SET] = 0
        add_up(archives, at, window, decay, table)
