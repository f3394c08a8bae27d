"""Profiles: what is kept of a client. A sum, sets, marks and a memory.

* **Sum**: linear counts and moments; merge is ``+``.
* **Sets**: the *sample* of distinct queries, the *odd set* (odd by themselves) and the *path set* (odd by what came before them),
  bottom-k by keyed content hash; merge is union, keep k.
* **Marks and trail**: running maxima of the signals' masses and when the fused one first reached each level; merge is
  maximum and earliest. They belong to one table of signals and one set of nulls (`nulls_version`).
* **Archive**: what of the odd queries left the horizon, with fading weight (`archive.py`); merge is union.
* **Memory**: remembered rows of one shard, scratch; `merge` drops it.

Merge of (sum, sets, marks, trail, archive) is associative, commutative, has the empty profile as zero, and on the sum and the sets
equals the profile of the unsplit stream (float sums within 1e-9). `Profile` is one client's state by itself, for storage, merging and
assessment.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.archive import ALL, KEPT, NONE, NOTHING, OFF, Archive, Faded
from detector.errors import IncompatibleProfile
from detector.features import BITS, CELLS, DISTANCE_BINS, MARGIN_BINS, RAW_KEPT, FeatureMap
from detector.fold import (
    MEMORY_BYTES,
    MOMENT_AXES,
    ODD_KEPT,
    PATH_KEPT,
    SAMPLE_KEPT,
    TRAIL_LEVELS,
    Masses,
    kept_estimate,
)

FORMAT = 4
_HEAD = struct.Struct("<2sB8s8siqdqqHHHBIHBd")
_ARCHIVE_HEAD = struct.Struct("<iBBB")
_LONGEST_AGO = 0xFFFF
_STICKY = np.uint32(BITS["root"] | BITS["far"])
ROOT = BITS["root"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that a feature map gives its profiles: classes, signals, memory rows (ring and low), code width and type, raw width."""

    classes: int
    signals: int
    ring: int
    low: int
    width: int
    code: str
    raw: int

    @classmethod
    def of(cls, feature_map: FeatureMap, signals: int) -> Shape:
        width = len(feature_map.code_low)
        code = np.dtype(feature_map.code_dtype)
        rows = int(np.clip(MEMORY_BYTES // (width * code.itemsize + 8), 48, 256))
        return cls(
            classes=feature_map.classes,
            signals=signals,
            ring=2 * rows // 3,
            low=rows - 2 * rows // 3,
            width=width,
            code=code.str,
            raw=feature_map.schema.width if feature_map.wide else 0,
        )


LAYOUT: dict[str, tuple[str, Callable[[Shape], tuple[int, ...]]]] = {
    # sum
    "queries": ("<i8", lambda s: ()),
    "volume": ("<f8", lambda s: ()),
    "first_ms": ("<i8", lambda s: ()),
    "last_ms": ("<i8", lambda s: ()),
    "classes": ("<i8", lambda s: (s.classes,)),
    "cell_counts": ("<i8", lambda s: (CELLS,)),
    "distance_counts": ("<i8", lambda s: (DISTANCE_BINS,)),
    "margin_counts": ("<i8", lambda s: (MARGIN_BINS,)),
    "moments": ("<f8", lambda s: (2, MOMENT_AXES)),
    # sets
    "sample_hash": ("<u8", lambda s: (SAMPLE_KEPT,)),
    "sample_root": ("|b1", lambda s: (SAMPLE_KEPT,)),
    "sample_misfit": ("|b1", lambda s: (SAMPLE_KEPT,)),
    "sample_n": ("<i8", lambda s: ()),
    "odd_hash": ("<u8", lambda s: (ODD_KEPT,)),
    "odd_bits": ("<u4", lambda s: (ODD_KEPT,)),
    "odd_n": ("<i8", lambda s: ()),
    "path_hash": ("<u8", lambda s: (PATH_KEPT,)),
    "path_bits": ("<u4", lambda s: (PATH_KEPT,)),
    "path_n": ("<i8", lambda s: ()),
    "odd_counts": ("<i8", lambda s: (s.signals,)),
    # marks
    "marks": ("<f8", lambda s: (s.signals,)),
    "trail_ms": ("<i8", lambda s: (TRAIL_LEVELS,)),
    "trail_query": ("<i8", lambda s: (TRAIL_LEVELS,)),
    "trail_n": ("<i8", lambda s: ()),
    # memory
    "ring_hash": ("<u8", lambda s: (s.ring,)),
    "ring_label": ("<i4", lambda s: (s.ring,)),
    "ring_codes": ("code", lambda s: (s.ring, s.width)),
    "ring_n": ("<i8", lambda s: ()),
    "low_hash": ("<u8", lambda s: (s.low,)),
    "low_label": ("<i4", lambda s: (s.low,)),
    "low_codes": ("code", lambda s: (s.low, s.width)),
    "low_n": ("<i8", lambda s: ()),
    "raw_ring": ("<u2", lambda s: (RAW_KEPT if s.raw else 1, s.raw)),
}
"""The state of one client: name → type and shape. The order is that of `fold_rows`' arguments."""

MEMORY = ("ring_hash", "ring_label", "ring_codes", "ring_n", "low_hash", "low_label", "low_codes", "low_n", "raw_ring")


@dataclass(slots=True)
class Profile:
    """One client's state, trimmed: sets hold only what is filled.

    window  the half-horizon window in which its span began
    memory  remembered rows, None once merged and for the short span
    parts   how many profiles were merged
    decay   what a query beyond the horizon keeps of its weight over a window, 0 where nothing is kept; archive: those queries
    """

    map_id: str
    nulls_version: str
    window: int
    queries: int
    volume: float
    first_ms: int
    last_ms: int
    classes: NDArray[np.int64]
    cell_counts: NDArray[np.int64]
    distance_counts: NDArray[np.int64]
    margin_counts: NDArray[np.int64]
    moments: NDArray[np.float64]
    sample_hash: NDArray[np.uint64]
    sample_root: NDArray[np.bool_]
    sample_misfit: NDArray[np.bool_]
    odd_hash: NDArray[np.uint64]
    odd_bits: NDArray[np.uint32]
    path_hash: NDArray[np.uint64]
    path_bits: NDArray[np.uint32]
    marks: NDArray[np.float64]
    trail_ms: NDArray[np.int64]
    trail_query: NDArray[np.int64]
    memory: dict[str, Array] | None = field(default=None, repr=False)
    parts: int = 1
    decay: float = OFF
    archive: Archive = NOTHING

    @classmethod
    def empty(cls, map_id: str, nulls_version: str, classes: int, signals: int) -> Profile:
        return cls(
            map_id, nulls_version, 0, 0, 0.0, 0, 0,
            np.zeros(classes, np.int64), np.zeros(CELLS, np.int64), np.zeros(DISTANCE_BINS, np.int64),
            np.zeros(MARGIN_BINS, np.int64), np.zeros((2, MOMENT_AXES)),
            np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros(0, bool), np.zeros(0, np.uint64), np.zeros(0, np.uint32),
            np.zeros(0, np.uint64), np.zeros(0, np.uint32),
            np.zeros(signals), np.zeros(0, np.int64), np.zeros(0, np.int64),
        )  # fmt: skip

    # ------------------------------------------------------------------ what it knows

    @property
    def distinct(self) -> float:
        """Distinct queries: exact below `SAMPLE_KEPT`, unbiased above."""
        m = len(self.sample_hash)
        return min(float(kept_estimate(m, self.sample_hash[-1], SAMPLE_KEPT)), float(self.queries)) if m else 0.0

    @property
    def roots(self) -> float:
        """Distinct queries that were far from everything remembered of the client when they came."""
        m = len(self.sample_hash)
        return self.distinct * int(self.sample_root.sum()) / m if m else 0.0

    @property
    def misfit(self) -> float:
        """Distinct queries that did not fit the schema."""
        m = len(self.sample_hash)
        return self.distinct * int(self.sample_misfit.sum()) / m if m else 0.0

    def odd_counts(self, table: Masses) -> NDArray[np.float64]:
        """Distinct queries that carry all bits of each signal, (s,)."""
        out = np.zeros(len(table.need))
        for hashes, bits, kept, mine in (
            (self.odd_hash, self.odd_bits, ODD_KEPT, ~table.path),
            (self.path_hash, self.path_bits, PATH_KEPT, table.path),
        ):
            if len(hashes):
                factor = float(kept_estimate(len(hashes), hashes[-1], kept)) / len(hashes)
                out += np.where(mine, factor * ((bits[:, None] & table.need) == table.need).sum(0), 0.0)
        return out

    @property
    def fades(self) -> bool:
        """Whether something of it stays beyond the horizon."""
        return self.decay > OFF and bool(len(self.odd_hash) or len(self.path_hash) or self.archive)

    def carry(self, table: Masses) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What left the horizon adds to the count of each signal, (s,), and to the distinct queries and the roots, (2,)."""
        if not self.archive:
            return np.zeros(len(table.need)), np.zeros(2)
        beyond = self.archive.without(self.odd_hash, self.path_hash, self.sample_hash)
        return beyond.carry(max(self.window, beyond.window), self.decay, table.need, table.path)

    def archived(self, after: Profile | None = None) -> Archive:
        """All its queries, as they leave the horizon; without those that are still in it, in the profile `after`."""
        mine = (
            Faded.of(self.odd_hash, self.odd_bits, self.window, ODD_KEPT),
            Faded.of(self.path_hash, self.path_bits, self.window, PATH_KEPT),
            Faded.of(self.sample_hash, np.where(self.sample_root, ROOT, 0).astype(np.uint32), self.window, SAMPLE_KEPT),
        )
        archive = Archive(self.window, mine)
        if after is not None:
            archive = archive.without(after.odd_hash, after.path_hash, after.sample_hash)
        return archive.cut()

    def left_behind(self, after: Profile | None, window: int) -> Profile:
        """This long span, and the short one `after` it, as they count where the client has reached a later window elsewhere."""
        if self.window >= window - 1:
            return self
        within = after is not None and after.window >= window - 1
        archive = self.archive.union(self.archived(after if within else None))
        if after is not None and not within:
            archive = archive.union(after.archived())
        left = archive.at(window, self.decay)
        if within and after is not None:
            return replace(after, archive=left, decay=self.decay)
        none = Profile.empty(self.map_id, self.nulls_version, len(self.classes), len(self.marks))
        return replace(none, window=window, archive=left, decay=self.decay)

    # ------------------------------------------------------------------ algebra

    def merge(self, other: Profile) -> Profile:
        """The profile of both streams together; raises IncompatibleProfile across maps."""
        if self.map_id != other.map_id:
            raise IncompatibleProfile(f"profiles of maps {self.map_id} and {other.map_id} do not merge")
        archive, decay = self.archive.union(other.archive), max(self.decay, other.decay)
        if not self.queries or not other.queries:
            full, none = (other, self) if other.queries else (self, other)
            parts = full.parts + (none.parts if none.archive else 0)
            window = max(self.window, other.window) if none.archive else full.window
            return replace(full, memory=None, archive=archive, decay=decay, parts=parts, window=window)
        sample_hash, sample_root, sample_misfit = _union_sample(self, other)
        odd_hash, odd_bits = _union_marked(ODD_KEPT, (self.odd_hash, self.odd_bits), (other.odd_hash, other.odd_bits))
        path_hash, path_bits = _union_marked(
            PATH_KEPT, (self.path_hash, self.path_bits), (other.path_hash, other.path_bits)
        )
        same = self.nulls_version == other.nulls_version
        newer = max(self, other, key=lambda p: (p.last_ms, p.nulls_version))
        trail = _earliest(self, other) if same else (newer.trail_ms, newer.trail_query)
        return Profile(
            map_id=self.map_id,
            nulls_version=newer.nulls_version,
            window=max(self.window, other.window),
            queries=self.queries + other.queries,
            volume=self.volume + other.volume,
            first_ms=min(self.first_ms, other.first_ms),
            last_ms=max(self.last_ms, other.last_ms),
            classes=self.classes + other.classes,
            cell_counts=self.cell_counts + other.cell_counts,
            distance_counts=self.distance_counts + other.distance_counts,
            margin_counts=self.margin_counts + other.margin_counts,
            moments=self.moments + other.moments,
            sample_hash=sample_hash,
            sample_root=sample_root,
            sample_misfit=sample_misfit,
            odd_hash=odd_hash,
            odd_bits=odd_bits,
            path_hash=path_hash,
            path_bits=path_bits,
            marks=np.maximum(self.marks, other.marks) if same else newer.marks,
            trail_ms=trail[0],
            trail_query=trail[1],
            memory=None,
            parts=self.parts + other.parts,
            decay=decay,
            archive=archive,
        )

    # ------------------------------------------------------------------ bytes

    def to_bytes(self) -> bytes:
        """Compact little-endian form with a checksum; grows with what the client has done, to a bound."""
        memory = self.memory
        head = _HEAD.pack(
            b"QP", FORMAT, bytes.fromhex(self.map_id), bytes.fromhex(self.nulls_version), self.window, self.queries, self.volume,
            self.first_ms, self.last_ms, len(self.sample_hash), len(self.odd_hash), len(self.path_hash), len(self.trail_ms),
            int(memory["ring_n"]) if memory else 0, int(memory["low_n"]) if memory else 0,
            (1 if memory else 0) + (2 if self.archive else 0), self.decay,
        )  # fmt: skip
        parts = [head]
        parts += [_pack_counts(c) for c in (self.classes, self.cell_counts, self.distance_counts, self.margin_counts)]
        parts.append(
            self.moments.astype("<f8").tobytes() if self.queries > 1 else self.moments[0].astype("<f8").tobytes()
        )
        parts += [
            _pack_hashes(self.sample_hash),
            *(np.packbits(m).tobytes() for m in (self.sample_root, self.sample_misfit)),
        ]
        for hashes, bits in ((self.odd_hash, self.odd_bits), (self.path_hash, self.path_bits)):
            parts += [_pack_hashes(hashes), bits.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()]
        parts += [
            _pack_sparse(self.marks),
            self.trail_ms.astype("<i8").tobytes(),
            self.trail_query.astype("<u4").tobytes(),
        ]
        if memory:
            rows = min(int(memory["ring_n"]), len(memory["ring_hash"]))
            low = int(memory["low_n"])
            parts += [_pack_hashes(memory["ring_hash"][:rows]), memory["ring_label"][:rows].astype("<i2").tobytes()]
            parts += [memory["ring_codes"][:rows].tobytes()]
            parts += [_pack_hashes(memory["low_hash"][:low]), memory["low_label"][:low].astype("<i2").tobytes()]
            parts += [memory["low_codes"][:low].tobytes()]
            raw = memory["raw_ring"]
            parts += [raw[: min(int(memory["ring_n"]), len(raw))].tobytes() if raw.shape[-1] else b""]
        if self.archive:
            parts += _pack_archive(self.archive)
        body = b"".join(parts)
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, blob: bytes, shape: Shape) -> Profile:
        """Raises IncompatibleProfile for anything that `to_bytes` of this format did not write."""
        if (
            len(blob) < _HEAD.size + 4
            or blob[:2] != b"QP"
            or zlib.crc32(blob[:-4]) != int.from_bytes(blob[-4:], "little")
        ):
            raise IncompatibleProfile("not a profile, or damaged")
        if blob[2] != FORMAT:
            raise IncompatibleProfile(f"profile format {blob[2]}, this version reads {FORMAT}")
        (
            _,
            _,
            map_id,
            nulls,
            window,
            queries,
            volume,
            first,
            last,
            n_sample,
            n_odd,
            n_path,
            n_trail,
            ring_n,
            low_n,
            has,
            decay,
        ) = _HEAD.unpack(blob[: _HEAD.size])
        if (
            n_sample > SAMPLE_KEPT
            or n_odd > ODD_KEPT
            or n_path > PATH_KEPT
            or n_trail > TRAIL_LEVELS
            or low_n > shape.low
            or not 0.0 <= decay < 1.0
        ):
            raise IncompatibleProfile("profile holds more than this map's profiles do")
        at = _Reader(blob, _HEAD.size)
        classes, cells = at.counts(shape.classes), at.counts(CELLS)
        distances, margin_counts = at.counts(DISTANCE_BINS), at.counts(MARGIN_BINS)
        moments = np.zeros((2, MOMENT_AXES))
        if queries > 1:
            moments[:] = at.array("<f8", (2, MOMENT_AXES))
        else:
            moments[0] = at.array("<f8", (MOMENT_AXES,))
            moments[1] = moments[0] ** 2
        sample_hash = at.hashes(n_sample)
        sample_root, sample_misfit = at.flags(n_sample), at.flags(n_sample)
        odd_hash, odd_bits = at.marked(n_odd)
        path_hash, path_bits = at.marked(n_path)
        marks = at.sparse(shape.signals)
        trail_ms = at.array("<i8", (n_trail,)).astype(np.int64)
        trail_query = at.array("<u4", (n_trail,)).astype(np.int64)
        memory = None
        if has & 1:
            memory = {name: np.zeros(LAYOUT[name][1](shape), dtype_of(name, shape)) for name in MEMORY}
            rows = min(ring_n, shape.ring)
            memory["ring_n"] = np.array(ring_n)
            memory["low_n"] = np.array(low_n)
            for kind, count in (("ring", rows), ("low", low_n)):
                memory[f"{kind}_hash"][:count] = at.hashes(count)
                memory[f"{kind}_label"][:count] = at.array("<i2", (count,))
                memory[f"{kind}_codes"][:count] = at.array(shape.code, (count, shape.width))
            if shape.raw:
                kept = min(ring_n, RAW_KEPT)
                memory["raw_ring"][:kept] = at.array("<u2", (kept, shape.raw))
        archive = at.archive() if has & 2 else NOTHING
        at.end()
        return cls(
            map_id.hex(), nulls.hex(), window, queries, volume, first, last,
            classes, cells, distances, margin_counts, moments,
            sample_hash, sample_root, sample_misfit, odd_hash, odd_bits, path_hash, path_bits, marks, trail_ms, trail_query, memory,
            1, decay, archive,
        )  # fmt: skip


def dtype_of(name: str, shape: Shape) -> np.dtype[np.generic]:
    kind = LAYOUT[name][0]
    return np.dtype(shape.code if kind == "code" else kind)


def _union_sample(one: Profile, two: Profile) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The smallest `SAMPLE_KEPT` hashes of both samples: a root where both say so, a misfit where either does."""
    smallest, at = np.unique(np.concatenate([one.sample_hash, two.sample_hash]), return_inverse=True)
    root, misfit = np.ones(len(smallest), bool), np.zeros(len(smallest), bool)
    np.logical_and.at(root, at, np.concatenate([one.sample_root, two.sample_root]))
    np.logical_or.at(misfit, at, np.concatenate([one.sample_misfit, two.sample_misfit]))
    return smallest[:SAMPLE_KEPT], root[:SAMPLE_KEPT], misfit[:SAMPLE_KEPT]


def _union_marked(
    kept: int, one: tuple[NDArray[np.uint64], NDArray[np.uint32]], two: tuple[NDArray[np.uint64], NDArray[np.uint32]]
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """The smallest `kept` hashes of both sets; bits are OR-ed, those for root and far AND-ed."""
    smallest, at = np.unique(np.concatenate([one[0], two[0]]), return_inverse=True)
    bits = np.concatenate([one[1], two[1]])
    some = np.zeros(len(smallest), np.uint32)
    every = np.full(len(smallest), np.iinfo(np.uint32).max, np.uint32)
    np.bitwise_or.at(some, at, bits)
    np.bitwise_and.at(every, at, bits)
    return smallest[:kept], ((some & ~_STICKY) | (every & _STICKY))[:kept].astype(np.uint32)


def _earliest(one: Profile, two: Profile) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Level by level, the earlier of two trails."""
    long, short = (one, two) if len(one.trail_ms) >= len(two.trail_ms) else (two, one)
    ms, query = long.trail_ms.copy(), long.trail_query.copy()
    k = len(short.trail_ms)
    first = (short.trail_ms < ms[:k]) | ((short.trail_ms == ms[:k]) & (short.trail_query < query[:k]))
    ms[:k] = np.where(first, short.trail_ms, ms[:k])
    query[:k] = np.where(first, short.trail_query, query[:k])
    return ms, query


def _pack_hashes(hashes: Array) -> bytes:
    return hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :6].tobytes()


def _pack_archive(archive: Archive) -> list[bytes]:
    """The window and, of each set, its limit and for each query hash, bits and how many windows ago it was seen."""
    parts = [_ARCHIVE_HEAD.pack(archive.window, *(len(s) for s in archive.sets))]
    for s in archive.sets:
        ago = np.clip(archive.window - s.seen, 0, _LONGEST_AGO).astype("<u2")
        parts += [s.limit.to_bytes(7, "little"), _pack_hashes(s.hashes)]
        parts += [s.bits.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes(), ago.tobytes()]
    return parts


def _pack_counts(counts: NDArray[np.int64]) -> bytes:
    """Type code, then values; sparse (index, value) when that is shorter. Type 1, 2, 4, 8 bytes; +16 for sparse."""
    top = int(counts.max(initial=0))
    size = 1 if top < 1 << 8 else 2 if top < 1 << 16 else 4 if top < 1 << 32 else 8
    used = np.flatnonzero(counts)
    if 1 + len(used) * (1 + size) < len(counts) * size and len(used) < 256:
        return bytes([16 + size, len(used)]) + used.astype("u1").tobytes() + counts[used].astype(f"<u{size}").tobytes()
    return bytes([size]) + counts.astype(f"<u{size}").tobytes()


def _pack_sparse(values: NDArray[np.float64]) -> bytes:
    used = np.flatnonzero(values)
    return bytes([len(used)]) + used.astype("u1").tobytes() + values[used].astype("<f8").tobytes()


class _Reader:
    """Cursor over a profile's bytes; every read is checked against the end."""

    def __init__(self, blob: bytes, start: int) -> None:
        self.blob = blob
        self.at = start
        self.stop = len(blob) - 4

    def array(self, dtype: str, shape: tuple[int, ...]) -> Array:
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        if self.at + size > self.stop:
            raise IncompatibleProfile("profile ends too early")
        out = np.frombuffer(self.blob, dtype, count, self.at).reshape(shape)
        self.at += size
        return out

    def flags(self, count: int) -> NDArray[np.bool_]:
        return np.unpackbits(self.array("u1", ((count + 7) // 8,)), count=count).astype(bool)

    def hashes(self, count: int) -> NDArray[np.uint64]:
        out = np.zeros((count, 8), np.uint8)
        out[:, :6] = self.array("u1", (count, 6))
        return out.reshape(-1).view("<u8").astype(np.uint64)

    def marked(self, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        hashes = self.hashes(count)
        return hashes, self.array("u1", (count, 3)).astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)

    def archive(self) -> Archive:
        window, *sizes = _ARCHIVE_HEAD.unpack(self.array("u1", (_ARCHIVE_HEAD.size,)).tobytes())
        sets = []
        for size, kept in zip(sizes, KEPT, strict=True):
            limit = int.from_bytes(self.array("u1", (7,)).tobytes(), "little")
            hashes, bits = self.marked(size)
            ago = self.array("<u2", (size,)).astype(np.int64)
            if size > kept or not 0 < limit <= ALL or (size and int(hashes.max()) >= limit):
                raise IncompatibleProfile("profile archives more than it may hold")
            sets.append(Faded(hashes, bits, window - ago, limit) if size or limit < ALL else NONE)
        return Archive(window, (sets[0], sets[1], sets[2]))

    def counts(self, width: int) -> NDArray[np.int64]:
        (code,) = self.array("u1", (1,)).tolist()
        size = code & 15
        if size not in (1, 2, 4, 8):
            raise IncompatibleProfile("profile counts of unknown type")
        if code < 16:
            return self.array(f"<u{size}", (width,)).astype(np.int64)
        (used,) = self.array("u1", (1,)).tolist()
        index = self.array("u1", (used,)).astype(np.int64)
        out = np.zeros(width, np.int64)
        if used and index.max() >= width:
            raise IncompatibleProfile("profile counts outside the map")
        out[index] = self.array(f"<u{size}", (used,)).astype(np.int64)
        return out

    def sparse(self, width: int) -> NDArray[np.float64]:
        (used,) = self.array("u1", (1,)).tolist()
        index = self.array("u1", (used,)).astype(np.int64)
        out = np.zeros(width)
        if used and index.max() >= width:
            raise IncompatibleProfile("profile marks outside the table")
        out[index] = self.array("<f8", (used,))
        return out

    def end(self) -> None:
        if self.at != self.stop:
            raise IncompatibleProfile("profile has trailing bytes")
