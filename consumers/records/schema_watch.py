"""Schema watch: how many of a day's clients send the same misfit in the same column.

One client that sends missing values in a column is odd. If hundreds of clients begin to do so on one day, the cause is a roll-out or a
broken integration, and the evidence against them is held back until an operator decides (detect/schema_holds.py).

Rules:
* A misfit is watched if fewer than `USUAL_SHARE` of the honest queries of the calibration had it in this column. Misfits that honest
  clients send all day are not watched.
* Clients are counted once per day of the log's own time, by their keyed hash: exactly up to `KEPT` of them, estimated beyond (k minimum
  values; Bar-Yossef et al. 2002). The counts of several log cells merge without counting a client twice.
* The state is stored as a field of a client that no query can name, so it is committed with the profiles that it describes, and
  erased, saved and restored like them. It holds no client id. It is written from the first watched misfit of a day on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from detector.bottom_k import kept_estimate
from detector.clock import DAY_MS
from detector.features import FeatureMap
from detector.misfit import KINDS, STATES, states
from detector.query import Misfit, QueryBatch

IDENTITY = "\x00schema"
"""No client id can hold a control character, so this client's key belongs to nobody."""
FIELD = "s"
USUAL_SHARE = 0.02
KEPT = 128
MOST_COLUMNS = 64
WHOLE = {Misfit.RETYPED: "(type)", Misfit.UNREADABLE: "(input)", Misfit.ANSWER: "(answer)"}
"""Misfits of a whole query, named where a column would be."""

Hashes = NDArray[np.uint64]


@dataclass(slots=True)
class Distinct:
    """Distinct clients: the smallest hashes of those seen, sorted."""

    smallest: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, hashes: Hashes) -> bool:
        """Take up clients; whether anything changed."""
        joined = np.unique(np.concatenate([self.smallest, hashes]))[:KEPT]
        changed = not np.array_equal(joined, self.smallest)
        self.smallest = joined
        return changed

    def estimate(self) -> float:
        """How many there are: exact below `KEPT`."""
        kept = self.smallest
        return float(kept_estimate(len(kept), kept[-1], KEPT)) if len(kept) else 0.0


class _StoredWatch(msgspec.Struct, array_like=True):
    day: int
    clients: bytes
    columns: dict[str, bytes]


@dataclass(slots=True)
class SchemaWatch:
    """One model in one log cell, on one day: all clients, and those that sent a watched misfit, by column."""

    day: int = -1
    clients: Distinct = field(default_factory=Distinct)
    columns: dict[str, Distinct] = field(default_factory=dict)

    def add(self, batch: QueryBatch, hashes: Sequence[str], feature_map: FeatureMap) -> bool:
        """Take up the queries of one poll; whether there is something to store.

        hashes  (g,) keyed hashes of the batch's clients, hex digits
        """
        day = int(batch.time_ms.max()) // DAY_MS
        if day > self.day:
            self.day, self.clients, self.columns = day, Distinct(), {}
        today = batch.time_ms // DAY_MS == self.day  # what a poll brings of earlier days belongs to none that is kept
        keys = np.array([int(h[:12], 16) for h in hashes], np.uint64)
        changed = self.clients.add(keys[np.unique(batch.who[today])])
        rows = np.flatnonzero(today & (batch.misfit != 0))
        for name, asking in watched(batch.take(rows), feature_map) if len(rows) else ():
            if name in self.columns or len(self.columns) < MOST_COLUMNS:
                changed |= self.columns.setdefault(name, Distinct()).add(keys[asking])
        return changed and bool(self.columns)

    def merge(self, other: SchemaWatch) -> SchemaWatch:
        """Both together; only the later day's where the days differ."""
        if other.day != self.day:
            return max(self, other, key=lambda watch: watch.day)
        new = SchemaWatch(self.day, Distinct(self.clients.smallest), {})
        new.clients.add(other.clients.smallest)
        for name in self.columns.keys() | other.columns.keys():
            one = new.columns.setdefault(name, Distinct())
            for watch in (self, other):
                if name in watch.columns:
                    one.add(watch.columns[name].smallest)
        return new

    def to_bytes(self) -> bytes:
        columns = {name: one.smallest.astype("<u8").tobytes() for name, one in sorted(self.columns.items())}
        return msgspec.msgpack.encode(_StoredWatch(self.day, self.clients.smallest.astype("<u8").tobytes(), columns))

    @classmethod
    def from_bytes(cls, blob: bytes | None) -> SchemaWatch:
        """A stored state; one that cannot be read begins anew."""
        try:
            stored = msgspec.msgpack.decode(blob or b"", type=_StoredWatch)
            columns = {name: Distinct(_hashes(kept)) for name, kept in stored.columns.items()}
            return cls(stored.day, Distinct(_hashes(stored.clients)), columns)
        except (msgspec.DecodeError, ValueError):
            return cls()


def _hashes(blob: bytes) -> Hashes:
    return np.unique(np.frombuffer(blob, "<u8").astype(np.uint64))[:KEPT]


def watched(batch: QueryBatch, feature_map: FeatureMap) -> Iterable[tuple[str, NDArray[np.int32]]]:
    """Column → clients (indices into `batch.clients`) that sent a misfit there that honest clients hardly send."""
    least = -np.log2(USUAL_SHARE)
    readable = (batch.misfit & Misfit.UNREADABLE) == 0
    found = states(batch.inputs, feature_map.category_counts) & readable[None, :, None]
    for i in range(len(STATES)):
        for j in np.flatnonzero(found[i].any(0) & (feature_map.misfit_bits[i] >= least)).tolist():
            yield feature_map.schema.columns[j].name, np.unique(batch.who[found[i][:, j]])
    for i, kind in enumerate(KINDS):
        sent = (batch.misfit & kind) != 0
        if sent.any() and feature_map.misfit_kinds[i] >= least:
            yield WHOLE[kind], np.unique(batch.who[sent])
