"""The archive: what is left of a client's odd queries when they leave the horizon. It fades instead of falling off.

Rules of this file
* Three bottom-k sets by content hash: the odd queries, those that are odd by what came before them, and a sample of all distinct ones.
  Of each query the bits and the half-horizon window in which it was last seen. A client without odd queries has no archive.
* A set holds every archived query whose hash is below its limit and no other, so a count over it, divided by the limit's share of all
  hashes, is unbiased (Cohen & Kaplan, PODC 2007). Union keeps that: the lower limit, the later window, bits as in the profile's sets.
* The weight of a query halves with each quarter of the memory; below `LEAST`, which is a whole memory after it left the horizon, it is
  dropped. Weights change when a window begins and never in between: the sum over an archive, its *carry*, is one number a signal.
* A query is in the horizon or in the archive, never in both: what is seen again leaves the archive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.features import BITS, PATH
from detector.kernels import HASH_SPAN

ODD_SET, PATH_SET, SAMPLE_SET = range(3)
KEPT = (128, 64, 96)
"""Of the odd set, the path set and the sample."""
WIDEST = max(KEPT)
ALL = int(HASH_SPAN)
"""The limit of a set that holds everything."""
LEAST = 0.0625
OFF = 0.0
"""The decay where nothing is kept beyond the horizon."""
ROOT = BITS["root"]
_STICKY = np.uint32(BITS["root"] | BITS["far"])


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
    """window: the newest of the client, which ages are counted from; sets: `ODD_SET`, `PATH_SET`, `SAMPLE_SET`."""

    window: int = 0
    sets: tuple[Faded, Faded, Faded] = (NONE, NONE, NONE)

    def __bool__(self) -> bool:
        return bool(len(self.sets[ODD_SET]) or len(self.sets[PATH_SET]))

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

    def without(self, odd: NDArray[np.uint64], path: NDArray[np.uint64], sample: NDArray[np.uint64]) -> Archive:
        """Without what is within the horizon, by the profile's own sets."""
        a, b, c = (s.only(~np.isin(s.hashes, hashes)) for s, hashes in zip(self.sets, (odd, path, sample), strict=True))
        return Archive(self.window, (a, b, c))

    def carry(
        self, window: int, decay: float, need: NDArray[np.uint32], path: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Faded queries that carry all bits of each signal, (s,), and faded distinct queries and roots, (2,)."""
        counts, base = np.zeros(len(need)), np.zeros(2)
        _, bits, seen, n, limit = self.arrays()
        add_up(bits, seen, n, limit, window, decay, need, path, counts, base)
        return counts, base

    def arrays(
        self,
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The sets side by side, as the kernels take them: hashes, bits, seen (3, k); sizes and limits (3,)."""
        hashes, bits = np.zeros((3, WIDEST), np.uint64), np.zeros((3, WIDEST), np.uint32)
        seen = np.zeros((3, WIDEST), np.int64)
        for k, s in enumerate(self.sets):
            hashes[k, : len(s)], bits[k, : len(s)], seen[k, : len(s)] = s.hashes, s.bits, s.seen
        return hashes, bits, seen, np.array([len(s) for s in self.sets]), np.array([s.limit for s in self.sets])


NOTHING = Archive()
"""Nothing is archived."""

LAYOUT: dict[str, tuple[str, tuple[int, ...]]] = {
    "hashes": ("<u8", (3, WIDEST)),
    "bits": ("<u4", (3, WIDEST)),
    "seen": ("<i8", (3, WIDEST)),
    "n": ("<i8", (3,)),
    "limit": ("<i8", (3,)),
}
"""One archive in flat arrays. The order is that of `Archive.arrays` and of the kernels' arguments; the carry follows them there."""


@nb.njit(cache=True, nogil=True)
def add_up(bits, seen, n, limit, window, decay, need, path, counts, base):  # type: ignore[no-untyped-def]
    """Write the carry of one archive: counts (s,), base (2,) distinct queries and roots."""
    counts[:] = 0.0
    base[:] = 0.0
    for k in range(3):
        share = float(limit[k]) / HASH_SPAN
        for a in range(n[k]):
            weight = decay ** max(window - 2 - seen[k, a], 0)
            if weight < LEAST * (1.0 - 1e-9):
                continue
            weight = weight / share
            b = bits[k, a]
            if k == SAMPLE_SET:
                base[0] += weight
                if b & np.uint32(ROOT):
                    base[1] += weight
                continue
            for q in range(need.shape[0]):
                if path[q] == (k == PATH_SET) and (b & need[q]) == need[q]:
                    counts[q] += weight


@nb.njit(cache=True, nogil=True)
def seen_again(h, b, hashes, bits, seen, n, limit, window, decay, need, path, counts, base):  # type: ignore[no-untyped-def]
    """Take a query out of an archive, and its weight out of the carry, which is added up anew: never a matter of rounding."""
    changed = False
    for k in range(3):
        if k == PATH_SET and not b & np.uint32(PATH):
            continue  # it is not odd by what came before it this time
        at = np.searchsorted(hashes[k, : n[k]], h)
        if at == n[k] or hashes[k, at] != h:
            continue
        changed = True
        for a in range(at, n[k] - 1):
            hashes[k, a] = hashes[k, a + 1]
            bits[k, a] = bits[k, a + 1]
            seen[k, a] = seen[k, a + 1]
        n[k] -= 1
    if changed:
        if n[ODD_SET] == 0 and n[PATH_SET] == 0:
            n[SAMPLE_SET] = 0
        add_up(bits, seen, n, limit, window, decay, need, path, counts, base)
