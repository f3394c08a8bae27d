"""What an assessment needs of many profiles, in columns: one row a profile, however the profile was stored.

Rules:

* Bytes of the present format are read by one compiled call for all of them (`profile_reader.py`). Any other profile comes as a `Profile`,
  and its row holds the same numbers: who assesses does not know the difference.
* Remembered rows of a client are read over. Nothing here is written back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from detector.archive import ArchiveArrays
from detector.archive import layout as archive_layout
from detector.fold_arrays import LADDER_STEPS, ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT, Memory, SpanArrays
from detector.kernels import HASH_SPAN
from detector.profile import Profile
from detector.profile_format import ProfileHead
from detector.profile_reader import read_profiles
from detector.profile_shape import Shape, memory_layout, rows_of, span_layout
from detector.signal_table import SignalTable


class Life(NamedTuple):
    """What is told of a client's life: its queries, the event times of the first and the last, and its first passages, as in `Profile`."""

    queries: int
    first_ms: int
    last_ms: int
    region_counts: NDArray[np.int64]
    passage_ms: NDArray[np.int64]
    passage_query: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ProfileColumns:
    """n profiles. Names and units are those of `Profile`.

    queries, first_ms, last_ms              (n,) int64
    distinct, novel, misfit                 (n,) distinct queries, estimated
    classes, region_counts, distance_counts (n, …) int64
    odd         (n, s) distinct queries that carry all bits of each signal, estimated
    faded       (n, s) what left the horizon adds to them; faded_base (n, 2): to the distinct queries and the novel ones
    maxima      (n, s) running maxima
    merged      (n,) bool, whether several profiles were merged
    passage_n   (n,) first passages; passage_ms, passage_query (n, LADDER_STEPS)
    """

    queries: NDArray[np.int64]
    first_ms: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    distinct: NDArray[np.float64]
    novel: NDArray[np.float64]
    misfit: NDArray[np.float64]
    classes: NDArray[np.int64]
    region_counts: NDArray[np.int64]
    distance_counts: NDArray[np.int64]
    odd: NDArray[np.float64]
    faded: NDArray[np.float64]
    faded_base: NDArray[np.float64]
    maxima: NDArray[np.float64]
    merged: NDArray[np.bool_]
    passage_n: NDArray[np.int64]
    passage_ms: NDArray[np.int64]
    passage_query: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.queries)

    @classmethod
    def of(cls, profiles: Sequence[Profile], table: SignalTable) -> ProfileColumns:
        """The columns of n ≥ 1 profiles."""
        carried = [profile.carry(table) for profile in profiles]
        passages = np.zeros((2, len(profiles), LADDER_STEPS), np.int64)
        for i, profile in enumerate(profiles):
            passages[:, i, : len(profile.passage_ms)] = profile.passage_ms, profile.passage_query

        def column(name: str, kind: DTypeLike) -> NDArray[Any]:
            return np.array([getattr(profile, name) for profile in profiles], kind)

        return cls(
            queries=column("queries", np.int64),
            first_ms=column("first_ms", np.int64),
            last_ms=column("last_ms", np.int64),
            distinct=column("distinct", np.float64),
            novel=column("novel", np.float64),
            misfit=column("misfit", np.float64),
            classes=column("classes", np.int64),
            region_counts=column("region_counts", np.int64),
            distance_counts=column("distance_counts", np.int64),
            odd=np.stack([profile.odd_counts(table) for profile in profiles]),
            faded=np.stack([of_signals for of_signals, _ in carried]),
            faded_base=np.stack([base for _, base in carried]),
            maxima=column("maxima", np.float64),
            merged=column("parts", np.int64) != 1,
            passage_n=np.array([len(profile.passage_ms) for profile in profiles], np.int64),
            passage_ms=passages[0],
            passage_query=passages[1],
        )

    @classmethod
    def read(
        cls, blobs: Sequence[bytes], heads: Sequence[ProfileHead], shape: Shape, table: SignalTable
    ) -> tuple[ProfileColumns, list[str]]:
        """Read n profiles, none of which was merged.

        Parameters
        ----------
        blobs, heads
            The bytes of each, and what `read_head` returned for them.
        shape, table
            Of the baseline under whose map they were folded.

        Returns
        -------
        (columns, faults)
            Why each was not read, empty for those that were. The row of one that was not holds anything.
        """
        n = len(blobs)
        spans = SpanArrays(**rows_of(span_layout(shape), n))
        scratch = Memory(**rows_of(memory_layout(shape)))
        archives = ArchiveArrays(**rows_of(archive_layout(shape.signals)))
        # the remembered rows of each client in the place of those before
        found = read_profiles(blobs, heads, np.arange(n), np.zeros(n, np.int64), spans, scratch, archives, table)
        held = spans.sample_n
        distinct = np.minimum(_kept(spans.sample_hash, held, SAMPLE_KEPT), spans.queries)
        whole = np.maximum(held, 1)
        odd, sequence = (
            (_kept(hashes, count, kept) / np.maximum(count, 1))[:, None] * spans.odd_counts
            for hashes, count, kept in (
                (spans.odd_hash, spans.odd_n, ODD_KEPT),
                (spans.sequence_hash, spans.sequence_n, SEQUENCE_KEPT),
            )
        )
        columns = cls(
            queries=spans.queries,
            first_ms=spans.first_ms,
            last_ms=spans.last_ms,
            distinct=distinct,
            novel=distinct * spans.sample_novel.sum(1) / whole,
            misfit=distinct * spans.sample_misfit.sum(1) / whole,
            classes=spans.classes,
            region_counts=spans.region_counts,
            distance_counts=spans.distance_counts,
            odd=np.where(table.sequence, sequence, odd),
            faded=found.faded,
            faded_base=found.faded_base,
            maxima=spans.maxima,
            merged=np.zeros(n, np.bool_),
            passage_n=spans.passage_n,
            passage_ms=spans.passage_ms,
            passage_query=spans.passage_query,
        )
        return columns, found.faults

    def with_more(self, other: ProfileColumns) -> ProfileColumns:
        """These rows, and the others after them."""
        return ProfileColumns(
            **{f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        )

    def rows(self, rows: Sequence[int]) -> ProfileColumns:
        """Some of these rows."""
        return ProfileColumns(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def lives(self) -> list[Life]:
        """What is told of each client's life; the arrays are views of these."""
        numbers = (column.tolist() for column in (self.queries, self.first_ms, self.last_ms, self.passage_n))
        rows = zip(*numbers, self.region_counts, self.passage_ms, self.passage_query, strict=True)
        return [
            Life(queries, first_ms, last_ms, regions, reached_ms[:reached], query[:reached])
            for queries, first_ms, last_ms, reached, regions, reached_ms, query in rows
        ]


def _kept(hashes: NDArray[np.uint64], count: NDArray[np.int64], kept: int) -> NDArray[np.float64]:
    """`bottom_k.kept_estimate` of each of n sets: hashes (n, k) ascending, of which `count` are filled."""
    largest = hashes[np.arange(len(count)), count - 1].astype(np.float64)
    return np.where(count < kept, count, (kept - 1.0) / ((largest + 1.0) / HASH_SPAN))
