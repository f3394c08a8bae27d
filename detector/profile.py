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

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from detector.archive import NOTHING, OFF, Archive, ArchiveArrays, Faded
from detector.archive import layout as archive_layout
from detector.bottom_k import kept_estimate
from detector.errors import IncompatibleProfile
from detector.features import BITS, DISTANCE_BINS, REGIONS
from detector.fold_arrays import ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT, Memory, SpanArrays
from detector.older_profiles import OLDER_FORMATS, read_older
from detector.profile_format import read_head
from detector.profile_reader import read_profile
from detector.profile_shape import Shape, empty_memory, rows_of, span_layout
from detector.profile_writer import PackJob, pack_profiles
from detector.signal_table import SignalTable

FILLED = {
    "sample": ("sample_hash", "sample_novel", "sample_misfit"),
    "odd": ("odd_hash", "odd_bits"),
    "sequence": ("sequence_hash", "sequence_bits"),
    "passage": ("passage_ms", "passage_query"),
}
"""Fields of which a profile holds what is filled, by what counts them."""
_STICKY = np.uint32(BITS["novel"] | BITS["distant"])
_NOVEL = BITS["novel"]


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
        """Compact little-endian form with a checksum (`profile_format.py`); grows with what the client has done, to a bound."""
        shape = Shape(len(self.classes), len(self.maxima), 1, 1, 1, "<u2", 0)  # of rows that it does not remember
        held = rows_of(span_layout(shape))
        for name in ("queries", "first_ms", "last_ms", "classes", "region_counts", "distance_counts", "maxima"):
            held[name][0] = getattr(self, name)
        for kind, names in FILLED.items():
            count = len(getattr(self, names[0]))
            held[f"{kind}_n"][0] = count
            for name in names:
                held[name][0, :count] = getattr(self, name)
        memory = self.memory or empty_memory(shape)
        job = PackJob(
            *(np.array([at], np.int64) for at in (
                0, 0 if self.memory else -1, 0 if self.archive else -1, self.window, self.archive.window,
            ))
        )  # fmt: skip
        return pack_profiles(
            job,
            SpanArrays(**held),
            _one_row(memory),
            self.archive.arrays(len(self.maxima)),
            self.map_id,
            self.calibration_version,
            self.decay,
        )[0]

    @classmethod
    def from_bytes(cls, blob: bytes, shape: Shape) -> Profile:
        """Read what `to_bytes` of this format, or of one of `OLDER_FORMATS`, wrote; raises IncompatibleProfile for anything else."""
        head = read_head(blob, OLDER_FORMATS)
        if head is None:
            return cls(*read_older(blob, shape))
        spans, memory = SpanArrays(**rows_of(span_layout(shape))), empty_memory(shape)
        archived = ArchiveArrays(**rows_of(archive_layout(shape.signals)))
        window = read_profile(blob, head, spans, _one_row(memory), archived)
        n_sample, n_odd, n_sequence, n_passage = head.n_sample, head.n_odd, head.n_sequence, head.n_passage
        return cls(
            head.map_id, head.calibration_version, head.window, head.queries, head.first_ms, head.last_ms,
            spans.classes[0], spans.region_counts[0], spans.distance_counts[0],
            spans.sample_hash[0, :n_sample].copy(), spans.sample_novel[0, :n_sample].copy(), spans.sample_misfit[0, :n_sample].copy(),
            spans.odd_hash[0, :n_odd].copy(), spans.odd_bits[0, :n_odd].copy(),
            spans.sequence_hash[0, :n_sequence].copy(), spans.sequence_bits[0, :n_sequence].copy(),
            spans.maxima[0], spans.passage_ms[0, :n_passage].copy(), spans.passage_query[0, :n_passage].copy(),
            memory if head.has_memory else None, 1, head.decay, Archive.of(archived, 0, window) if head.has_archive else NOTHING,
        )  # fmt: skip


def _one_row(memory: Memory) -> Memory:
    """The memory of one client as that of a table of one row, in the same places."""
    return Memory(**{name: np.asarray(values)[None] for name, values in memory._asdict().items()})


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
