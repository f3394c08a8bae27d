"""The profile: what is stored about one client. Sums, sets, running maxima, an archive and a memory.

* **Sum**: linear counts. Merge is ``+``.
* **Sets**: the *sample* of distinct queries, the *odd set* (odd by themselves) and the *sequence set* (odd by what came before them),
  bottom-k by keyed content hash. Merge is union, keep k.
* **Maxima and first passages**: the *running maximum* of each signal's excess, and when the fused maximum first reached each level. Merge
  is maximum and earliest. They belong to one table of signals and one calibration (`calibration_version`).
* **Archive**: odd queries that left the horizon, with fading weight (`archive.py`). Merge is union.
* **Memory**: remembered rows of one shard, scratch. `merge` drops it.

Rules:

* Merge of (sum, sets, maxima, first passages, archive) is associative and commutative, and the empty profile is its zero. On the sum and
  the sets it equals the profile of the unsplit stream (float sums within 1e-9).
* A `Profile` is the state of a single client, for storage, merging and assessment; `profile_table.py` holds many of them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import DTypeLike, NDArray

from detector.archive import ALL, KEPT, NONE, NOTHING, OFF, Archive, Faded
from detector.bottom_k import kept_estimate
from detector.errors import IncompatibleProfile
from detector.features import BITS, DISTANCE_BINS, RAW_KEPT, REGIONS, FeatureMap
from detector.fold_arrays import LADDER_STEPS, MEMORY_BYTES, ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT, Memory
from detector.packing import PackedReader, pack_bits, pack_counts, pack_hashes, pack_sparse
from detector.signal_table import SignalTable

FORMAT = 5
"""Version of a profile's bytes. 5 lacks three sums that nothing read: volume, counts by margin, moments."""
OLDER_FORMATS = (4,)
"""Versions that are read too: the sums that format 5 lacks are passed over."""
_HEAD = struct.Struct("<2sB8s8siqqqHHHBIHBd")
_HEAD_4 = struct.Struct("<2sB8s8siqdqqHHHBIHBd")
_VOLUME_4 = 6
_MARGIN_BINS_4 = 8
_MOMENTS_4 = 8
_ARCHIVE_HEAD = struct.Struct("<iBBB")
_LONGEST_AGO = 0xFFFF
_STICKY = np.uint32(BITS["novel"] | BITS["distant"])
_NOVEL = BITS["novel"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that a feature map gives its profiles: classes, signals, rows of ring buffer and reservoir, code width and type, raw width."""

    classes: int
    signals: int
    ring: int
    reservoir: int
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
            reservoir=rows - 2 * rows // 3,
            width=width,
            code=code.str,
            raw=feature_map.schema.width if feature_map.wide else 0,
        )


Layout = dict[str, tuple[tuple[int, ...], DTypeLike]]
"""Shape and type of one row of each array of a group, by name."""


def span_layout(shape: Shape) -> Layout:
    """One span of a client, as in `fold.SpanArrays`."""
    number: tuple[tuple[int, ...], DTypeLike] = ((), np.int64)
    return {
        # sum
        "queries": number,
        "first_ms": number,
        "last_ms": number,
        "classes": ((shape.classes,), np.int64),
        "region_counts": ((REGIONS,), np.int64),
        "distance_counts": ((DISTANCE_BINS,), np.int64),
        # sets
        "sample_hash": ((SAMPLE_KEPT,), np.uint64),
        "sample_novel": ((SAMPLE_KEPT,), np.bool_),
        "sample_misfit": ((SAMPLE_KEPT,), np.bool_),
        "sample_n": number,
        "odd_hash": ((ODD_KEPT,), np.uint64),
        "odd_bits": ((ODD_KEPT,), np.uint32),
        "odd_n": number,
        "sequence_hash": ((SEQUENCE_KEPT,), np.uint64),
        "sequence_bits": ((SEQUENCE_KEPT,), np.uint32),
        "sequence_n": number,
        "odd_counts": ((shape.signals,), np.int64),
        # running maxima and first-passage times
        "maxima": ((shape.signals,), np.float64),
        "passage_ms": ((LADDER_STEPS,), np.int64),
        "passage_query": ((LADDER_STEPS,), np.int64),
        "passage_n": number,
    }


def memory_layout(shape: Shape) -> Layout:
    """The remembered rows of a client, as in `fold.Memory`."""
    return {
        "ring_hash": ((shape.ring,), np.uint64),
        "ring_label": ((shape.ring,), np.int32),
        "ring_codes": ((shape.ring, shape.width), np.dtype(shape.code)),
        "ring_n": ((), np.int64),
        "reservoir_hash": ((shape.reservoir,), np.uint64),
        "reservoir_label": ((shape.reservoir,), np.int32),
        "reservoir_codes": ((shape.reservoir, shape.width), np.dtype(shape.code)),
        "reservoir_n": ((), np.int64),
        "raw_ring": ((RAW_KEPT if shape.raw else 1, shape.raw), np.uint16),
    }


@dataclass(slots=True)
class Profile:
    """One client's state, trimmed: sets hold only what is filled.

    window  the half-horizon window in which its span began
    memory  remembered rows, None once merged and for the short span
    parts   how many profiles were merged
    decay   what a query beyond the horizon keeps of its weight over a window, 0 where nothing is kept; archive: those queries
    """

    map_id: str
    calibration_version: str
    window: int
    queries: int
    first_ms: int
    last_ms: int
    classes: NDArray[np.int64]
    region_counts: NDArray[np.int64]
    distance_counts: NDArray[np.int64]
    sample_hash: NDArray[np.uint64]
    sample_novel: NDArray[np.bool_]
    sample_misfit: NDArray[np.bool_]
    odd_hash: NDArray[np.uint64]
    odd_bits: NDArray[np.uint32]
    sequence_hash: NDArray[np.uint64]
    sequence_bits: NDArray[np.uint32]
    maxima: NDArray[np.float64]
    passage_ms: NDArray[np.int64]
    passage_query: NDArray[np.int64]
    memory: Memory | None = field(default=None, repr=False)
    parts: int = 1
    decay: float = OFF
    archive: Archive = NOTHING

    @classmethod
    def empty(cls, map_id: str, calibration_version: str, classes: int, signals: int) -> Profile:
        return cls(
            map_id, calibration_version, 0, 0, 0, 0,
            np.zeros(classes, np.int64), np.zeros(REGIONS, np.int64), np.zeros(DISTANCE_BINS, np.int64),
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
    def novel(self) -> float:
        """Distinct queries that were distant from everything remembered of the client, and shared no improbable values with it."""
        m = len(self.sample_hash)
        return self.distinct * int(self.sample_novel.sum()) / m if m else 0.0

    @property
    def misfit(self) -> float:
        """Distinct queries that did not fit the schema."""
        m = len(self.sample_hash)
        return self.distinct * int(self.sample_misfit.sum()) / m if m else 0.0

    def odd_counts(self, table: SignalTable) -> NDArray[np.float64]:
        """Distinct queries that carry all bits of each signal, (s,)."""
        out = np.zeros(len(table.need))
        for hashes, bits, kept, mine in (
            (self.odd_hash, self.odd_bits, ODD_KEPT, ~table.sequence),
            (self.sequence_hash, self.sequence_bits, SEQUENCE_KEPT, table.sequence),
        ):
            if len(hashes):
                factor = float(kept_estimate(len(hashes), hashes[-1], kept)) / len(hashes)
                out += np.where(mine, factor * ((bits[:, None] & table.need) == table.need).sum(0), 0.0)
        return out

    @property
    def fades(self) -> bool:
        """Whether something of it stays beyond the horizon."""
        return self.decay > OFF and bool(len(self.odd_hash) or len(self.sequence_hash) or self.archive)

    def carry(self, table: SignalTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What left the horizon adds to the count of each signal, (s,), and to the distinct queries and the novel ones, (2,)."""
        if not self.archive:
            return np.zeros(len(table.need)), np.zeros(2)
        beyond = self.archive.without(self.odd_hash, self.sequence_hash, self.sample_hash)
        return beyond.carry(max(self.window, beyond.window), self.decay, table)

    def archived(self, after: Profile | None = None) -> Archive:
        """All its queries, as they leave the horizon; without those that are still in it, in the profile `after`."""
        mine = (
            Faded.of(self.odd_hash, self.odd_bits, self.window, ODD_KEPT),
            Faded.of(self.sequence_hash, self.sequence_bits, self.window, SEQUENCE_KEPT),
            Faded.of(
                self.sample_hash, np.where(self.sample_novel, _NOVEL, 0).astype(np.uint32), self.window, SAMPLE_KEPT
            ),
        )
        archive = Archive(self.window, mine)
        if after is not None:
            archive = archive.without(after.odd_hash, after.sequence_hash, after.sample_hash)
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
        none = Profile.empty(self.map_id, self.calibration_version, len(self.classes), len(self.maxima))
        return replace(none, window=window, archive=left, decay=self.decay)

    # ------------------------------------------------------------------ algebra

    def merge(self, other: Profile) -> Profile:
        """Return the profile of both streams together.

        Associative and commutative, with the empty profile as zero (docs/theory.md). The memory is dropped: what depends on earlier queries
        is known inside one shard only. Of two calibrations, the running maxima of the newer profile are kept.

        Raises
        ------
        IncompatibleProfile
            The profiles belong to different feature maps.

        Examples
        --------
        >>> zero = Profile.empty("00" * 8, "11" * 8, classes=2, signals=3)
        >>> zero.merge(zero).queries
        0
        >>> zero.merge(Profile.empty("22" * 8, "11" * 8, classes=2, signals=3))
        Traceback (most recent call last):
            ...
        detector.errors.IncompatibleProfile: profiles of maps 0000000000000000 and 2222222222222222 do not merge
        """
        if self.map_id != other.map_id:
            raise IncompatibleProfile(f"profiles of maps {self.map_id} and {other.map_id} do not merge")
        archive, decay = self.archive.union(other.archive), max(self.decay, other.decay)
        if not self.queries or not other.queries:
            full, none = (other, self) if other.queries else (self, other)
            parts = full.parts + (none.parts if none.archive else 0)
            window = max(self.window, other.window) if none.archive else full.window
            return replace(full, memory=None, archive=archive, decay=decay, parts=parts, window=window)
        sample_hash, sample_novel, sample_misfit = _union_sample(self, other)
        odd_hash, odd_bits = _union_marked(ODD_KEPT, (self.odd_hash, self.odd_bits), (other.odd_hash, other.odd_bits))
        sequence_hash, sequence_bits = _union_marked(
            SEQUENCE_KEPT, (self.sequence_hash, self.sequence_bits), (other.sequence_hash, other.sequence_bits)
        )
        same = self.calibration_version == other.calibration_version
        newer = max(self, other, key=lambda p: (p.last_ms, p.calibration_version))
        trail = _earliest(self, other) if same else (newer.passage_ms, newer.passage_query)
        return Profile(
            map_id=self.map_id,
            calibration_version=newer.calibration_version,
            window=max(self.window, other.window),
            queries=self.queries + other.queries,
            first_ms=min(self.first_ms, other.first_ms),
            last_ms=max(self.last_ms, other.last_ms),
            classes=self.classes + other.classes,
            region_counts=self.region_counts + other.region_counts,
            distance_counts=self.distance_counts + other.distance_counts,
            sample_hash=sample_hash,
            sample_novel=sample_novel,
            sample_misfit=sample_misfit,
            odd_hash=odd_hash,
            odd_bits=odd_bits,
            sequence_hash=sequence_hash,
            sequence_bits=sequence_bits,
            maxima=np.maximum(self.maxima, other.maxima) if same else newer.maxima,
            passage_ms=trail[0],
            passage_query=trail[1],
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
            b"QP", FORMAT, bytes.fromhex(self.map_id), bytes.fromhex(self.calibration_version), self.window, self.queries,
            self.first_ms, self.last_ms, len(self.sample_hash), len(self.odd_hash), len(self.sequence_hash), len(self.passage_ms),
            int(memory.ring_n) if memory else 0, int(memory.reservoir_n) if memory else 0,
            (1 if memory else 0) + (2 if self.archive else 0), self.decay,
        )  # fmt: skip
        parts = [
            head,
            *(pack_counts(c) for c in (self.classes, self.region_counts, self.distance_counts)),
            pack_hashes(self.sample_hash),
            *(np.packbits(m).tobytes() for m in (self.sample_novel, self.sample_misfit)),
            pack_hashes(self.odd_hash),
            pack_bits(self.odd_bits),
            pack_hashes(self.sequence_hash),
            pack_bits(self.sequence_bits),
            pack_sparse(self.maxima),
            self.passage_ms.astype("<i8").tobytes(),
            self.passage_query.astype("<u4").tobytes(),
        ]
        if memory:
            parts += _pack_memory(memory)
        if self.archive:
            parts += _pack_archive(self.archive)
        body = b"".join(parts)
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, blob: bytes, shape: Shape) -> Profile:
        """Read what `to_bytes` of this format, or of one of `OLDER_FORMATS`, wrote; raises IncompatibleProfile for anything else."""
        if len(blob) < 7 or blob[:2] != b"QP" or zlib.crc32(blob[:-4]) != int.from_bytes(blob[-4:], "little"):
            raise IncompatibleProfile("not a profile, or damaged")
        version = blob[2]
        if version != FORMAT and version not in OLDER_FORMATS:
            raise IncompatibleProfile(f"profile format {version}, this version reads {FORMAT}")
        form = _HEAD if version == FORMAT else _HEAD_4
        if len(blob) < form.size + 4:
            raise IncompatibleProfile("not a profile, or damaged")
        head = list(form.unpack(blob[: form.size]))
        if version != FORMAT:
            del head[_VOLUME_4]
        (
            _,
            _,
            map_id,
            calibration,
            window,
            queries,
            first,
            last,
            n_sample,
            n_odd,
            n_sequence,
            n_passage,
            ring_n,
            reservoir_n,
            has,
            decay,
        ) = head
        if (
            n_sample > SAMPLE_KEPT
            or n_odd > ODD_KEPT
            or n_sequence > SEQUENCE_KEPT
            or n_passage > LADDER_STEPS
            or reservoir_n > shape.reservoir
            or not 0.0 <= decay < 1.0
        ):
            raise IncompatibleProfile("profile holds more than this map's profiles do")
        at = PackedReader(blob, form.size)
        classes, regions, distances = at.counts(shape.classes), at.counts(REGIONS), at.counts(DISTANCE_BINS)
        if version != FORMAT:
            at.counts(_MARGIN_BINS_4)
            at.array("<f8", ((2 if queries > 1 else 1) * _MOMENTS_4,))
        sample_hash = at.hashes(n_sample)
        sample_novel, sample_misfit = at.flags(n_sample), at.flags(n_sample)
        odd_hash, odd_bits = at.marked(n_odd)
        sequence_hash, sequence_bits = at.marked(n_sequence)
        maxima = at.sparse(shape.signals)
        passage_ms = at.array("<i8", (n_passage,)).astype(np.int64)
        passage_query = at.array("<u4", (n_passage,)).astype(np.int64)
        memory = _read_memory(at, shape, ring_n, reservoir_n) if has & 1 else None
        archive = _read_archive(at) if has & 2 else NOTHING
        at.end()
        return cls(
            map_id.hex(), calibration.hex(), window, queries, first, last, classes, regions, distances,
            sample_hash, sample_novel, sample_misfit, odd_hash, odd_bits, sequence_hash, sequence_bits,
            maxima, passage_ms, passage_query, memory, 1, decay, archive,
        )  # fmt: skip


def _union_sample(one: Profile, two: Profile) -> tuple[NDArray[np.uint64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The smallest `SAMPLE_KEPT` hashes of both samples: a root where both say so, a misfit where either does."""
    smallest, at = np.unique(np.concatenate([one.sample_hash, two.sample_hash]), return_inverse=True)
    root, misfit = np.ones(len(smallest), bool), np.zeros(len(smallest), bool)
    np.logical_and.at(root, at, np.concatenate([one.sample_novel, two.sample_novel]))
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
    """Level by level, the earlier of two first passages."""
    long, short = (one, two) if len(one.passage_ms) >= len(two.passage_ms) else (two, one)
    ms, query = long.passage_ms.copy(), long.passage_query.copy()
    k = len(short.passage_ms)
    first = (short.passage_ms < ms[:k]) | ((short.passage_ms == ms[:k]) & (short.passage_query < query[:k]))
    ms[:k] = np.where(first, short.passage_ms, ms[:k])
    query[:k] = np.where(first, short.passage_query, query[:k])
    return ms, query


def _pack_memory(memory: Memory) -> list[bytes]:
    """Of the ring buffer and the reservoir what is filled: hashes, answers, codes; then the last rows column by column."""
    rows, kept = min(int(memory.ring_n), len(memory.ring_hash)), int(memory.reservoir_n)
    raw = memory.raw_ring
    return [
        pack_hashes(memory.ring_hash[:rows]),
        memory.ring_label[:rows].astype("<i2").tobytes(),
        memory.ring_codes[:rows].tobytes(),
        pack_hashes(memory.reservoir_hash[:kept]),
        memory.reservoir_label[:kept].astype("<i2").tobytes(),
        memory.reservoir_codes[:kept].tobytes(),
        raw[: min(int(memory.ring_n), len(raw))].tobytes() if raw.shape[-1] else b"",
    ]


def _read_memory(at: PackedReader, shape: Shape, ring_n: int, reservoir_n: int) -> Memory:
    arrays = {name: np.zeros(size, kind) for name, (size, kind) in memory_layout(shape).items()}
    arrays["ring_n"], arrays["reservoir_n"] = np.array(ring_n), np.array(reservoir_n)
    for kind, count in (("ring", min(ring_n, shape.ring)), ("reservoir", reservoir_n)):
        arrays[f"{kind}_hash"][:count] = at.hashes(count)
        arrays[f"{kind}_label"][:count] = at.array("<i2", (count,))
        arrays[f"{kind}_codes"][:count] = at.array(shape.code, (count, shape.width))
    if shape.raw:
        kept = min(ring_n, RAW_KEPT)
        arrays["raw_ring"][:kept] = at.array("<u2", (kept, shape.raw))
    return Memory(**arrays)


def _pack_archive(archive: Archive) -> list[bytes]:
    """The window and, of each set, its limit and for each query hash, bits and how many windows ago it was seen."""
    parts = [_ARCHIVE_HEAD.pack(archive.window, *(len(s) for s in archive.sets))]
    for s in archive.sets:
        ago = np.clip(archive.window - s.seen, 0, _LONGEST_AGO).astype("<u2")
        parts += [s.limit.to_bytes(7, "little"), pack_hashes(s.hashes), pack_bits(s.bits), ago.tobytes()]
    return parts


def _read_archive(at: PackedReader) -> Archive:
    window, *sizes = _ARCHIVE_HEAD.unpack(at.array("u1", (_ARCHIVE_HEAD.size,)).tobytes())
    sets = []
    for size, kept in zip(sizes, KEPT, strict=True):
        limit = int.from_bytes(at.array("u1", (7,)).tobytes(), "little")
        hashes, bits = at.marked(size)
        ago = at.array("<u2", (size,)).astype(np.int64)
        if size > kept or not 0 < limit <= ALL or (size and int(hashes.max()) >= limit):
            raise IncompatibleProfile("profile archives more than it may hold")
        sets.append(Faded(hashes, bits, window - ago, limit) if size or limit < ALL else NONE)
    return Archive(window, (sets[0], sets[1], sets[2]))
