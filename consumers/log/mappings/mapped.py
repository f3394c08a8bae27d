"""A query log that is read through a mapping: its records come in, native events go out. Ports `QueryLog` and `FileQueryLog`.

Rules:
* A record may give many events, and a commit may end between two of them. So an event's offset is the record's offset times `ROWS`, plus
  the row. The store holds this number; only this file and `rebuild` convert it back.
* `topic_id` differs from that of the log without a mapping: a store that was filled without one is refused, not misread.
* A poll gives at most `max_records` events. Of a cell whose records gave more, nothing is fetched until they are delivered. The log is
  polled all the same, so that the process stays a member of the consumer group.
* Of a join, the halves that waited where a cell is resumed are read again first: the log goes back to the oldest of them, and takes from
  there only those that waited. A half that the log holds no longer is given up.
* A file is translated from its beginning, also when it is resumed, so that a join and the header of a CSV file are complete.
* The reason why a record could not be translated is in `Records.refused`. The value is the record itself, so that its dead letter has the
  hash of the bytes in the log.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from consumers.errors import BadRecord, Fenced, LogTruncated, Refused
from consumers.log import FileQueryLog, Poll, QueryLog, Records
from consumers.log.halves import GIVEN_UP, NOTHING_WAITS, ROW_BITS, HalfChange, Role, WaitingHalves, as_array
from consumers.log.mappings.records import Translator
from consumers.log.mappings.sources import FOLLOWED, source_of
from consumers.log.prefix import prints_of

ROWS = 1 << ROW_BITS
"""Offsets that one record has; its rows beyond are refused, with one dead letter."""
MAPPED_LOG = 0x5155_4552_5947
"""Set apart from any id of a topic, which has 48 bits too."""
MAPPED = "mapped-"
SMOOTHING = 0.2

Report = Callable[[Counter[str]], None]


@dataclass(slots=True)
class _Reading:
    """Records of one cell that are being translated.

    at     index of the next record
    row    of the record at hand, the next one
    rows   events of the record at hand; None between two records
    ahead  the next event, looked up to know whether there is one
    nulls  tombstones that were delivered
    """

    records: Records
    at: int = 0
    row: int = 0
    rows: Iterator[bytes] | None = None
    ahead: tuple[bytes, tuple[str, str] | None] | None = None
    nulls: int = 0

    @property
    def done(self) -> bool:
        return self.rows is None and self.at >= len(self.records.offsets)

    @property
    def arrival(self) -> tuple[int, str] | None:
        """The last record that was read, of a log whose records lie in the store."""
        last = self.at if self.rows is not None else self.at - 1
        return (
            (int(self.records.offsets[last]), self.records.proofs[last]) if self.records.proofs and last >= 0 else None
        )

    @property
    def next_offset(self) -> int:
        if self.done:
            return self.records.next_offset << ROW_BITS
        return (int(self.records.offsets[self.at]) << ROW_BITS) + (self.row if self.rows is not None else 0)


@dataclass(slots=True)
class _Restoring:
    """A cell whose waiting halves are read again.

    until      record at which its own reading begins
    wanted     places not found yet
    newest_ms  see `WaitingHalves`
    """

    until: int
    wanted: dict[int, Role]
    newest_ms: int


@dataclass(slots=True)
class _Events:
    """Events of one delivery."""

    values: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    broker_ms: list[int] = field(default_factory=list)
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)


class MappedLog:
    """Port QueryLog: another log, read through a mapping.

    report  is told after every poll what `Translator.counts` grew by
    """

    def __init__(self, log: QueryLog, translator: Translator, report: Report = lambda counts: None) -> None:
        self._log = log
        self.translator = translator
        self._report = report
        self._told: Counter[str] = Counter()
        self._queues: dict[str, deque[_Reading]] = {}
        self._held: dict[str, int] = {}  # cells that are not fetched from until their queue is empty → where to go on
        self._skip: dict[str, int] = {}  # events below are not delivered again
        self._positions: dict[str, int] = {}
        self._restoring: dict[str, _Restoring] = {}
        self._changes: dict[str, list[HalfChange]] = {}  # of halves, that take effect behind what was delivered
        self._rows_a_record = 1.0

    @property
    def waits(self) -> bool:
        """Whether events of records that were read wait to be delivered."""
        return any(self._queues.values()) or bool(getattr(self._log, "waits", False))

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        found = Poll()
        self._release(found)
        waits = self.waits
        wanted = max(1, min(max_records, int(max_records / max(self._rows_a_record, 1.0))))
        inner = self._log.poll(0.0 if waits else timeout_s, wanted)
        for cell in inner.revoked:
            self._forget(cell)
        for records in map(self._restored, inner.batches):
            if records is not None:
                self._queues.setdefault(records.cell, deque()).append(_Reading(records))
        found.assigned = [_outer(cell) for cell in inner.assigned]
        found.revoked = [_outer(cell) for cell in inner.revoked]
        for cell, first, last in inner.gaps:
            first = max(first, self._restoring[cell].until if cell in self._restoring else first)
            if first <= last:
                found.gaps.append((_outer(cell), first, last))
        found.stopped += [(_outer(cell), why) for cell, why in inner.stopped]
        for cell, queue in self._queues.items():
            if queue:
                found.batches += self._deliver(cell, queue, max_records)
                self._hold(cell, queue)
        self._tell()
        return found

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        inner = _inner(cell)
        self._forget(inner)
        at = self._log.seek(inner, None if offset is None else offset >> ROW_BITS)
        if offset is not None and waiting.roles:
            self._restoring[inner] = _Restoring(at, dict(waiting.roles), waiting.newest_ms)
            if self.translator.joins:
                self.translator.resume(inner, waiting.newest_ms)
                self._go_back(inner, min(waiting.roles) >> ROW_BITS)
        self._skip[inner] = offset or 0
        self._positions[inner] = at << ROW_BITS if offset is None else offset
        return self._positions[inner]

    def _go_back(self, cell: str, record: int) -> None:
        """Read from an earlier record on. Where that fails, nothing of the cell may be delivered: its halves are not there yet."""
        try:
            self._log.seek(cell, record)
        except BaseException:
            self._forget(cell)
            with contextlib.suppress(Fenced):
                self._log.pause(cell)
            raise

    def pause(self, cell: str) -> None:
        self._forget(_inner(cell))
        self._log.pause(_inner(cell))

    def owns(self, cell: str) -> bool:
        return self._log.owns(_inner(cell))

    def position(self, cell: str) -> int:
        inner = _inner(cell)
        if inner not in self._positions:
            raise Fenced(f"{cell}: `seek` was not called")
        return self._positions[inner]

    def ends(self) -> dict[str, int]:
        return {_outer(cell): end << ROW_BITS for cell, end in self._log.ends().items()}

    def is_member(self) -> bool:
        return self._log.is_member()

    def topic_id(self, cell: str) -> int:
        return self._log.topic_id(_inner(cell)) ^ MAPPED_LOG

    def lag(self) -> int:
        waiting = sum(len(one.records.offsets) - one.at for queue in self._queues.values() for one in queue)
        return self._log.lag() + waiting

    def commit(self, offsets: Mapping[str, int]) -> None:
        self._log.commit({_inner(cell): offset >> ROW_BITS for cell, offset in offsets.items()})

    def close(self) -> None:
        self._log.close()

    # ------------------------------------------------------------------------------------------------------ cells

    def _forget(self, cell: str) -> None:
        """Drop what was read of a cell and not delivered."""
        self._queues.pop(cell, None)
        self._held.pop(cell, None)
        self._positions.pop(cell, None)
        self._restoring.pop(cell, None)
        self._changes.pop(cell, None)
        self.translator.forget(cell)

    def _restored(self, records: Records) -> Records | None:
        """The records at which a cell's own reading begins; what is before them gives back the halves that waited."""
        restoring = self._restoring.get(records.cell)
        if restoring is None:
            return records
        for i in range(int(np.searchsorted(records.offsets, restoring.until)) if self.translator.joins else 0):
            if i not in records.refused:
                for place in self.translator.restore(records.values[i], source_of(records, i), restoring.wanted):
                    del restoring.wanted[place]
        if records.next_offset < restoring.until:
            return None
        del self._restoring[records.cell]
        # told where the next record ends, so that the commit that moves the offset writes it
        told = (restoring.until + 1) << ROW_BITS
        self._changes[records.cell] = [
            HalfChange(told, place, GIVEN_UP[role], restoring.newest_ms) for place, role in restoring.wanted.items()
        ]
        return records.from_offset(restoring.until) if records.next_offset > restoring.until else None

    def _hold(self, cell: str, queue: deque[_Reading]) -> None:
        """Fetch nothing more of a cell that has events left."""
        if queue and cell not in self._held:
            with contextlib.suppress(Fenced):  # revoked since: the next poll says so
                self._log.pause(cell)
                self._held[cell] = queue[-1].records.next_offset

    def _release(self, found: Poll) -> None:
        """Fetch again of cells whose events were all delivered."""
        for cell in [cell for cell in self._held if not self._queues.get(cell)]:
            try:
                self._log.seek(cell, self._held[cell])
            except Fenced:
                pass  # revoked since: the next poll says so
            except LogTruncated as error:
                found.stopped.append((_outer(cell), str(error)))
            del self._held[cell]

    # ----------------------------------------------------------------------------------------------------- events

    def _deliver(self, cell: str, queue: deque[_Reading], most: int) -> list[Records]:
        """Events of a cell, at most so many, in one batch; none when they all were delivered before."""
        while queue:
            reading = queue[0]
            events = self._translated(cell, reading, most)
            if reading.done:
                queue.popleft()
            if events.values or reading.next_offset > self._skip.get(cell, 0):
                self._positions[cell] = reading.next_offset
                return [self._records(cell, reading, events)]
        return []

    def _translated(self, cell: str, reading: _Reading, most: int) -> _Events:
        events = _Events()
        skip = self._skip.get(cell, 0)
        while len(events.values) < most and not reading.done:
            i = reading.at
            if reading.rows is None:
                reading.rows, reading.row = self._rows_of(reading.records, i), 0
            value, why = reading.ahead or self._next(reading)
            reading.ahead = None
            if value is None:
                self._finish(reading)
                continue
            offset = (int(reading.records.offsets[i]) << ROW_BITS) + reading.row
            reading.row += 1
            if offset < skip:
                continue
            if why is not None:
                events.refused[len(events.values)] = why
            place = reading.records.place(i)
            events.values.append(value)
            events.offsets.append(offset)
            events.places.append(f"{place}#{reading.row - 1}" if reading.row > 1 else place)
            if reading.records.broker_ms is not None:
                events.broker_ms.append(int(reading.records.broker_ms[i]))
        if (
            reading.rows is not None and reading.ahead is None
        ):  # a record that is through ends here, not with a delivery of nothing
            value, why = self._next(reading)
            if value is None:
                self._finish(reading)
            else:
                reading.ahead = value, why
        return events

    def _finish(self, reading: _Reading) -> None:
        """Go on to the next record."""
        reading.rows, reading.at = None, reading.at + 1
        self._rows_a_record += SMOOTHING * (reading.row - self._rows_a_record)

    def _next(self, reading: _Reading) -> tuple[bytes | None, tuple[str, str] | None]:
        """The next event, or the record and why it is refused; None: there is no more of this record."""
        rows, record = reading.rows, reading.records.values[reading.at]
        refused = reading.records.refused.get(reading.at)
        if refused is not None:
            return (record, refused) if reading.row == 0 else (None, None)
        try:
            value = next(rows, None) if rows is not None and reading.row < ROWS else None
            if value is not None and reading.row == ROWS - 1:
                reading.rows = iter(())
                return record, ("too_large", f"more than {ROWS - 1:,} rows; the others do not count")
        except BadRecord as error:
            reading.rows = iter(())
            return record, (error.reason, error.detail)
        return value, None

    def _rows_of(self, records: Records, i: int) -> Iterator[bytes]:
        return self.translator.events(records.values[i], source_of(records, i))

    def _records(self, cell: str, reading: _Reading, events: _Events) -> Records:
        records = reading.records
        nulls = None
        if records.nulls is not None:
            passed = records.nulls << ROW_BITS
            until = len(passed) if reading.done else int(np.searchsorted(passed, reading.next_offset))
            nulls, reading.nulls = passed[reading.nulls : until], until
        offsets = np.array(events.offsets, np.int64)
        return Records(
            _outer(cell), events.values, offsets, reading.next_offset, events.places, events.refused,
            broker_ms=None if records.broker_ms is None else np.array(events.broker_ms, np.int64), nulls=nulls,
            prints=None if records.prints is None else prints_of(events.values, events.offsets), marks=records.marks,
            halves=self._halves_until(cell, reading.next_offset), arrival=reading.arrival,
        )  # fmt: skip

    def _halves_until(self, cell: str, offset: int) -> NDArray[np.int64] | None:
        """What changed about the halves of a cell up to an offset; the rest is told with what comes next."""
        changes = self._changes.pop(cell, []) + self.translator.changes(cell)
        told = [change for change in changes if change.offset <= offset]
        if len(told) < len(changes):
            self._changes[cell] = changes[len(told) :]
        return as_array(told) if told else None

    def _tell(self) -> None:
        counts = self.translator.counts.copy()
        if counts != self._told:
            self._report(counts - self._told)
            self._told = counts


class MappedFiles(MappedLog):
    """Port FileQueryLog: files read through a mapping."""

    def __init__(self, log: FileQueryLog, translator: Translator) -> None:
        super().__init__(log, translator)
        self._files = log

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        """Read on from an event. Raises LogTruncated when the files end before it."""
        if not offset:
            return super().seek(cell, offset)
        self._log.seek(cell, offset >> ROW_BITS)
        super().seek(cell, 0)
        self.translator.begin()
        self._skip[cell] = self._positions[cell] = offset
        return offset

    @property
    def cell(self) -> str:
        return self._files.cell

    @property
    def resumable(self) -> bool:
        return self._files.resumable

    @property
    def partial(self) -> bool:
        return self._files.partial

    @property
    def finished(self) -> bool:
        return self._files.finished and not any(self._queues.values())

    @property
    def marks(self) -> Mapping[str, int]:
        return self._files.marks

    def resume(self, cell: str) -> None:
        self._files.resume(cell)

    def fraction_read(self) -> float | None:
        return self._files.fraction_read()

    def line_of(self, offset: int) -> int:
        return self._files.line_of(offset >> ROW_BITS)

    def again(self) -> MappedFiles:
        """The same files, read anew."""
        fields = self.translator.fields
        return MappedFiles(
            self._files.again(), Translator(self.translator.mapping, fields.hashed, fields.default_model)
        )

    def scan(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64], int]]:
        """Hash all events in a pass of its own: offsets and prints of some, and the offset after them."""
        reader = self.again()
        try:
            while not reader.finished:
                poll = reader.poll(0.0, 4096)
                for cell in poll.assigned:
                    reader.seek(cell, None)
                for records in poll.batches:
                    if records.prints is not None:
                        yield records.offsets, records.prints, records.next_offset
        except Refused:
            pass  # `poll` will say so, when it gets there
        finally:
            reader.close()


def _outer(cell: str) -> str:
    """The name of a cell of this log. A followed file has no id, so its name says that it is read through a mapping."""
    return FOLLOWED + MAPPED + cell.removeprefix(FOLLOWED) if cell.startswith(FOLLOWED) else cell


def _inner(cell: str) -> str:
    """The name that the log itself has for a cell."""
    prefix = FOLLOWED + MAPPED
    return FOLLOWED + cell.removeprefix(prefix) if cell.startswith(prefix) else cell
