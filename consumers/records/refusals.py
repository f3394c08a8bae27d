"""Refusals: how many of a client's queries did not fit the schema, by reason and by column.

Rules:
* Only queries that count for the client are counted: a query once under each reason of its notes, whatever the number of columns, and under
  each column once for each reason. Repetitions and erased queries are not counted.
* The first `MOST_COLUMNS` columns that a client got wrong are counted separately, further ones together as `OTHERS`. No value of a query is
  stored.
* Stored as field ``r`` of the profile (msgpack). A field that cannot be read is started again. The counts of several log cells are added
  up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from consumers.log.reasons import MisfitNote
from detector.query import ClientKey, QueryBatch

FIELD = "r"
MOST_COLUMNS = 64
MOST_NAME = 64
"""Characters that are kept of a column's name."""
OTHERS = "(others)"

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Refusals:
    """reasons: reason → queries; columns: column → reason → queries."""

    reasons: Counts = field(default_factory=dict)
    columns: dict[str, Counts] = field(default_factory=dict)

    def plus(self, other: Refusals) -> Refusals:
        """Both together."""
        whole = self.copy()
        for reason, n in other.reasons.items():
            whole.reasons[reason] = whole.reasons.get(reason, 0) + n
        for column, counts in other.columns.items():
            for reason, n in counts.items():
                whole.count(column, reason, n)
        return whole

    def copy(self) -> Refusals:
        return Refusals(dict(self.reasons), {column: dict(counts) for column, counts in self.columns.items()})

    def add(self, notes: Iterable[MisfitNote]) -> None:
        """Count one query, in place."""
        for reason in dict.fromkeys(note.reason for note in notes):
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        for note in dict.fromkeys(notes):
            if note.column:
                self.count(note.column, note.reason, 1)

    def count(self, column: str, reason: str, n: int) -> None:
        """Count `n` queries in a column, in place."""
        name = column[:MOST_NAME]
        if name not in self.columns and len(self.columns) >= MOST_COLUMNS:
            name = OTHERS
        mine = self.columns.setdefault(name, {})
        mine[reason] = mine.get(reason, 0) + n


class _StoredRefusals(msgspec.Struct, array_like=True):
    reasons: Counts
    columns: dict[str, Counts]


_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(_StoredRefusals)


def seen(
    known: Mapping[ClientKey, Refusals],
    keys: Sequence[ClientKey],
    batch: QueryBatch,
    notes: Mapping[int, tuple[MisfitNote, ...]],
) -> dict[ClientKey, Refusals]:
    """Clients of whose queries some did not fit, with their counts then.

    known  counts so far
    keys   (g,) what `batch.who` points into
    notes  offset → what about the query does not fit
    """
    changed: dict[ClientKey, Refusals] = {}
    if not notes:
        return changed
    for offset, who in zip(batch.offsets.tolist(), batch.who.tolist(), strict=True):
        mine = notes.get(offset)
        if not mine:
            continue
        key = keys[who]
        counts = changed.get(key)
        if counts is None:
            counts = changed[key] = known.get(key, Refusals()).copy()
        counts.add(mine)
    return changed


def packed(counts: Refusals) -> bytes:
    return _pack.encode(_StoredRefusals(counts.reasons, counts.columns))


def unpacked(blob: bytes | None) -> Refusals:
    """Counts as stored; none for a field that is missing or damaged."""
    if not blob:
        return Refusals()
    try:
        stored = _unpack.decode(blob)
    except (msgspec.DecodeError, ValueError):
        return Refusals()
    return Refusals(stored.reasons, stored.columns)


def together(blobs: Iterable[bytes | None]) -> Refusals:
    """Counts of one client from all its profile cells."""
    whole = Refusals()
    for blob in filter(None, blobs):
        whole = whole.plus(unpacked(blob))
    return whole
