"""The query log: reads records from Kafka or files, and decodes them into columns.

Port `QueryLog` has two implementations, Kafka (`kafka.py`) and files (`files.py`, and `followed.py` for a growing one);
`tests/log/test_contract.py` runs on all.

Rules:

* A *cell* names one ordered sequence of records: ``topic:partition`` on Kafka, ``files:<content hash>`` for files.
* An offset is the position of a record in its cell. The store decides where to resume, so a newly assigned cell delivers nothing until
  `seek` was called for it.
* `poll` parses nothing, never calls the store and never raises for bad content. Content is decoded by `formats.py`.
* `next_offset` is where to resume after this batch. Offsets may have gaps (transactions, compaction, empty lines). A batch may hold no
  records at all and only move the offset: transaction markers and empty lines count as read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from consumers.log.halves import NOTHING_WAITS, WaitingHalves

MAX_RECORD_BYTES = 1 << 20


class Beside(NamedTuple):
    """What stands beside the value of a Kafka record. key: None when it has none; headers: names and values, in order."""

    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class Records:
    """Consecutive records of one cell, in order.

    values       n raw payloads, a list or `payloads.Payloads`; an oversize record is given as its first 1 MiB + 1 bytes, so that it is
                 refused by size
    offsets      (n,) int64
    next_offset  where to resume after them
    places       for people: what the dead letter shows ("file.jsonl:12"); empty means ``cell@offset``
    refused      index → (reason, detail) of values that the log itself could not give (a decompression bomb, a corrupt
                 batch): one for the whole unreadable stretch, its value is empty; goes to the dead letter unparsed
    broker_ms    (n,) int64: the time that the log itself has for each record, in ms since the epoch; -1 where it has none.
                 On Kafka the record's timestamp (its producer's, or the broker's with ``LogAppendTime``). None: a file has none
    nulls        (m,) int64: offsets of tombstones, records without a value (Kafka's null). They move the offset and are counted;
                 they are not among the n and never reach a decoder. None: there is none
    prints       (n,) uint64: hashes of the lines, of a log in files that may be resumed (prefix.py); marks: what else is stored with them
    beside       key and headers of each record, for a log that is read through a mapping; None: nobody asked for them
    halves       (m, 4) int64: what changed in these records about the halves of queries that wait (halves.py); None: nothing
    proofs       of each record, in a log whose records lie in the store (mappings/handed.py); empty: they do not
    arrival      number and proof of the last record of such a log that was read for these
    """

    cell: str
    values: Sequence[bytes]
    offsets: NDArray[np.int64]
    next_offset: int
    places: Sequence[str] = ()
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    broker_ms: NDArray[np.int64] | None = None
    nulls: NDArray[np.int64] | None = None
    prints: NDArray[np.uint64] | None = None
    marks: Mapping[str, int] = field(default_factory=dict)
    beside: list[Beside] | None = None
    halves: NDArray[np.int64] | None = None
    proofs: Sequence[str] = ()
    arrival: tuple[int, str] | None = None

    @property
    def tombstones(self) -> int:
        """Count the records without a value."""
        return 0 if self.nulls is None else len(self.nulls)

    def place(self, i: int) -> str:
        return self.places[i] if self.places else f"{self.cell}@{int(self.offsets[i])}"

    def part(self, first: int, last: int) -> Records:
        """Those from the `first` up to the `last`, which is not among them; they end where the next one begins."""
        after = int(self.offsets[last]) if last < len(self.offsets) else self.next_offset
        begin = int(self.offsets[first]) if 0 < first < len(self.offsets) else 0 if first == 0 else after
        return Records(
            self.cell, self.values[first:last], self.offsets[first:last], after, self.places[first:last],
            {i - first: why for i, why in self.refused.items() if first <= i < last},
            None if self.broker_ms is None else self.broker_ms[first:last], self._nulls_within(begin, after),
            None if self.prints is None else self.prints[first:last], self.marks,
            None if self.beside is None else self.beside[first:last], self._halves_within(begin, after),
            self.proofs[first:last], self.arrival,
        )  # fmt: skip

    def from_offset(self, offset: int) -> Records:
        """Give the records at or above an offset."""
        first = int(np.searchsorted(self.offsets, offset))
        rest = self.part(first, len(self.offsets)) if first else self
        if self.nulls is None and self.halves is None:
            return rest
        nulls, halves = self._nulls_within(offset, self.next_offset), self._halves_within(offset, self.next_offset)
        return replace(rest, nulls=nulls, halves=halves)

    def _nulls_within(self, begin: int, end: int) -> NDArray[np.int64] | None:
        return None if self.nulls is None else self.nulls[(self.nulls >= begin) & (self.nulls < end)]

    def _halves_within(self, begin: int, end: int) -> NDArray[np.int64] | None:
        if self.halves is None:
            return None
        return self.halves[(self.halves[:, 0] > begin) & (self.halves[:, 0] <= end)]


@dataclass(slots=True)
class Poll:
    """One poll: first what changed in the assignment (`revoked` before `assigned`), then the records.

    assigned  cells that are ours now and wait for `seek`
    revoked   cells that are no longer ours (revoked or lost): forget their cache and token
    gaps      (cell, first missing, last missing): retention dropped them before we read them
    stopped   (cell, why): the log cannot go on where we are in it (`LogTruncated`); it is paused until `seek`, the others go on
    """

    batches: list[Records] = field(default_factory=list)
    assigned: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    gaps: list[tuple[str, int, int]] = field(default_factory=list)
    stopped: list[tuple[str, str]] = field(default_factory=list)


class QueryLog(Protocol):
    def poll(self, timeout_s: float, max_records: int) -> Poll:
        """Next records of the assigned cells that were sought; waits at most `timeout_s`."""

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        """Read `cell` from `offset` on (None: where the ``start`` setting says); returns that offset.

        waiting: halves of queries that wait at this offset, as an earlier owner left them; a log of whole queries has none
        """

    def pause(self, cell: str) -> None:
        """Deliver nothing more of the cell until `seek`: for a store that does not answer. Keep polling."""

    def owns(self, cell: str) -> bool:
        """Ask after `Fenced` whether the group still gives the cell to this process. True: claim again; False: await `revoked`."""

    def position(self, cell: str) -> int:
        """Offset of the next record that `poll` would return for the cell."""

    def ends(self) -> dict[str, int]:
        """For every cell of the whole log (assigned here or not) that holds a record: the offset after its last one."""

    def is_member(self) -> bool:
        """Tell whether this process is a member of the group, even one that no cell was left for."""

    def topic_id(self, cell: str) -> int:
        """Give the log that the cell's offsets belong to: another number once a topic was deleted and created again; 0: unknown."""

    def lag(self) -> int:
        """Count the records that are known to wait in this process's cells, without asking anybody."""

    def commit(self, offsets: Mapping[str, int]) -> None:
        """Say where reading is, for lag dashboards; never used to resume. A failure is ignored: the next commit says more."""

    def close(self) -> None: ...


class FileQueryLog(QueryLog, Protocol):
    """A log in files that is read to its end, and may be resumed.

    cell       its only cell
    resumable  records carry the hashes of their lines; marks: what else is stored with them
    partial    the last line was left for the next run
    finished   everything was delivered
    """

    @property
    def cell(self) -> str: ...

    @property
    def resumable(self) -> bool: ...

    @property
    def partial(self) -> bool: ...

    @property
    def finished(self) -> bool: ...

    @property
    def marks(self) -> Mapping[str, int]: ...

    def resume(self, cell: str) -> None:
        """Read on in a cell that an earlier version of this log has; before the first `poll`."""

    def scan(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64], int]]:
        """Hash the whole log in a pass of its own: offsets and prints of some records, and the offset after them."""

    def fraction_read(self) -> float | None:
        """Share of the bytes that was read, for progress bars; None when nobody knows."""

    def line_of(self, offset: int) -> int:
        """Lines before an offset, for people."""

    def again(self) -> FileQueryLog:
        """The same files, to be read anew."""
