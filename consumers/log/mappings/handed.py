"""A log whose records lie in the store: readers of other logs hand them in, so that halves of queries meet wherever they were logged.

The members of a consumer group read the partitions of all topics of a join, and hand each record in to a *join cell* of the store, the one
of its halves' ids (`Translator.cells_of`). A join cell is a cell of this log: its owner reads what arrived there, in the order of arrival,
joins it as it would join a partition (`mapped.py`), and commits profiles, offset and what waits in one step. Port `QueryLog`.

Rules:
* A record is handed in once: the cell keeps up to where it has each partition, and takes records only from there on. Whoever reads a
  partition asks the cells where to begin, and asks again when one refuses, and now and then: a store may have lost its newest writes.
* A join cell belongs to the member that has the partition of its number of the first topic.
* Halves wait by the log's time, so no partition gets far ahead of another one that this member reads: its records are held up while they
  are more than half of `join.within_s` younger than what another one has next. One from which nothing comes for `IDLE_S` holds nobody up.
* A cell takes in no more than its owner keeps up with: a full one holds up the partitions whose records it does not take.
* What is handed in is sealed with the tenant's key, always: it is a raw query.
* A store that does not answer holds up everything and loses nothing; nothing is raised out of `poll` for it. Whether it took in what it was
  given last, the cells say when they are asked again.
* Tombstones are passed over, and not counted.
"""

from __future__ import annotations

import hashlib
import secrets as entropy
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from consumers.errors import CorruptState, Fenced, LogTruncated, Rewound, Unavailable
from consumers.log import Beside, Poll, QueryLog, Records
from consumers.log.halves import JOINED, NOTHING_WAITS, WaitingHalves
from consumers.log.mappings.records import Translator
from consumers.log.mappings.sources import source_of
from consumers.store import Arrival, HandIn, JoinStore
from detector.query import UNKNOWN_MS

CHECK_S = 5.0
"""How often the cells are asked whether they still have what a source was handed in up to."""
RETRY_S = 0.5
IDLE_S = 1.0
MOST_AT_ONCE = 500
MOST_BYTES_AT_ONCE = 2 << 20
LOST = ("foreign_format", "what the store kept of the record cannot be read")


class HandedRecord(msgspec.Struct, array_like=True):
    """A record as it is handed in. place, time_ms, key, headers: as `Source` has them; refused: why the log could not give it."""

    place: str
    time_ms: int
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    value: bytes
    refused: tuple[str, str] | None = None


class Meeting(NamedTuple):
    """Where a log's records are handed in. seal, unseal: bytes of a record ↔ as they are stored; unseal raises CorruptState."""

    store: JoinStore
    seal: Callable[[bytes], bytes]
    unseal: Callable[[bytes], bytes]
    clock: Callable[[], float] = time.monotonic
    nonce: Callable[[], str] = lambda: entropy.token_hex(8)


class _Call(NamedTuple):
    """Records for one call, up to where the cell has the partition then, and the log's time of the first."""

    contents: list[bytes]
    after: int
    time_ms: int


@dataclass(slots=True)
class _Source:
    """A partition that this member reads.

    marks    up to where each join cell has it; unsent: what each has not taken
    heard_s  when records of it last came; newest_ms: the log's time of the newest
    held     it is not read on until all was taken
    """

    marks: list[int | None]
    unsent: list[deque[_Call]]
    next_offset: int
    checked_s: float
    heard_s: float
    newest_ms: int = UNKNOWN_MS
    held: bool = False

    def next_ms(self, now_s: float) -> int:
        """The log's time of what comes next of it, as far as it is known, 0 at first; `UNKNOWN_MS`: nobody need wait for it."""
        if any(self.unsent):
            return min(calls[0].time_ms for calls in self.unsent if calls)
        return max(self.newest_ms, 0) if now_s - self.heard_s < IDLE_S else UNKNOWN_MS


@dataclass(slots=True)
class _JoinCell:
    """A join cell that is ours. position: of the next arrival; None: nobody sought; behind: arrivals that were not read yet."""

    position: int | None = None
    behind: int = 0


@dataclass(slots=True)
class _State:
    sources: dict[str, _Source] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    readings: dict[str, _JoinCell] = field(default_factory=dict)
    wanted: dict[str, int] | None = None
    retry_s: float = 0.0


class HandedLog:
    """Port QueryLog over the join cells of one mapping.

    log         the topics of the join, and nothing else
    topics      their names; the first, in the order of the alphabet, says who owns which join cell
    """

    def __init__(self, log: QueryLog, meeting: Meeting, translator: Translator, topics: Sequence[str]) -> None:
        join = translator.mapping.join
        assert join is not None, "only halves meet"
        self._log, self._meeting, self._translator = log, meeting, translator
        self._topics = sorted(topics)
        self._most = join.most + 10_000
        self._ahead_ms = join.within_s * 500
        translator.cells = join.cells
        self.cells = [f"{JOINED}{translator.mapping.name}:{number}" for number in range(join.cells)]
        self._state = _State()
        self._pack, self._unpack = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(HandedRecord)

    @property
    def waits(self) -> bool:
        """Whether there is more to read or to hand in without asking the log."""
        return any(one.behind for one in self._state.readings.values())

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        state, found = self._state, Poll()
        inner = self._log.poll(0.0 if self.waits else timeout_s, max_records)
        self._follow(inner, found)
        for records in inner.batches:
            if (source := state.sources.get(records.cell)) is not None:
                self._prepare(records, source)
        if self._meeting.clock() >= state.retry_s:
            try:
                self._hand_in(found)
                for cell, reading in state.readings.items():
                    if reading.position is not None:
                        found.batches += self._read(cell, reading, reading.position, max_records)
            except Unavailable:
                state.retry_s = self._meeting.clock() + RETRY_S
                for name in list(state.sources):  # what was read must not pile up meanwhile
                    self._again(name)
        return found

    def _follow(self, inner: Poll, found: Poll) -> None:
        """The assignment of partitions, and of the join cells that go with them."""
        state = self._state
        for source in inner.revoked:
            state.sources.pop(source, None)
            state.waiting.discard(source)
            if (cell := self._cell_with(source)) is not None:
                state.readings.pop(cell, None)
                found.revoked.append(cell)
        for source in inner.assigned:
            state.waiting.add(source)
            if (cell := self._cell_with(source)) is not None:
                state.readings[cell] = _JoinCell()
                found.assigned.append(cell)
        found.gaps += inner.gaps
        found.stopped += inner.stopped
        for source, _ in inner.stopped:
            state.sources.pop(source, None)

    # ------------------------------------------------------------------------------------------------ handing in

    def _prepare(self, records: Records, source: _Source) -> None:
        """Pack the records of a partition for the join cells that they belong to."""
        parts: list[list[tuple[int, int, bytes]]] = [[] for _ in self.cells]
        for i, value in enumerate(records.values):
            where, refused = source_of(records, i), records.refused.get(i)
            beside = records.beside[i] if records.beside is not None else Beside()
            record = HandedRecord(where.place, where.time_ms, beside.key, beside.headers, bytes(value), refused)
            content = self._meeting.seal(self._pack.encode(record))
            for number in {0} if refused is not None else self._translator.cells_of(bytes(value), where):
                parts[number].append((int(records.offsets[i]), where.time_ms, content))
            source.newest_ms = max(source.newest_ms, where.time_ms)
        source.next_offset, source.heard_s = records.next_offset, self._meeting.clock()
        for number, part in enumerate(parts):
            mark = source.marks[number]
            if mark is None or records.next_offset > mark:
                kept = [one for one in part if mark is None or one[0] >= mark]
                source.unsent[number].extend(_calls(kept, records.next_offset, source.newest_ms))

    def _hand_in(self, found: Poll) -> None:
        """Begin with the partitions that are new or in doubt, and hand in what is read. Raises Unavailable."""
        state = self._state
        for name in sorted(state.waiting):
            self._begin(name, found)
        due_s = self._meeting.clock() - CHECK_S
        if any(one.checked_s <= due_s for one in state.sources.values()):
            self._check()
        now_s = self._meeting.clock()
        times = [time_ms for one in state.sources.values() if (time_ms := one.next_ms(now_s)) != UNKNOWN_MS]
        until_ms = min(times, default=0) + self._ahead_ms
        for name, source in list(state.sources.items()):
            try:
                self._send(name, source, until_ms)
            except Rewound:
                self._again(name)

    def _begin(self, name: str, found: Poll) -> None:
        """Ask the join cells up to where they have a partition, and read on from there."""
        marks = [self._meeting.store.sources(cell).get(name) for cell in self.cells]
        known = [mark for mark in marks if mark is not None]
        try:
            first = self._log.seek(name, min(known) if len(known) == len(marks) else None)
        except Fenced:  # not ours any more: the next poll says so
            self._state.waiting.discard(name)
            return
        except LogTruncated as error:
            self._state.waiting.discard(name)
            found.stopped.append((name, str(error)))
            return
        unsent: list[deque[_Call]] = [deque() for _ in self.cells]
        for number, mark in enumerate(marks):
            if mark is None:  # where a source begins is settled before anything of it is handed in
                unsent[number].append(_Call([], first, UNKNOWN_MS))
        now_s = self._meeting.clock()
        self._state.sources[name] = _Source(marks, unsent, first, now_s, now_s)
        self._state.waiting.discard(name)

    def _check(self) -> None:
        """Find out whether a cell lost what it had of a partition."""
        there = [self._meeting.store.sources(cell) for cell in self.cells]
        for name, source in list(self._state.sources.items()):
            source.checked_s = self._meeting.clock()
            if [marks.get(name) for marks in there] != source.marks:
                self._again(name)

    def _send(self, name: str, source: _Source, until_ms: int) -> None:
        """Hand in what can be, and is not younger than this. Raises Rewound, Unavailable."""
        for number, calls in enumerate(source.unsent):
            while calls and calls[0].time_ms <= until_ms:
                cell, expected, call = self.cells[number], source.marks[number], calls[0]
                records = HandIn(cell, name, expected, call.after, call.contents, self._meeting.nonce(), self._most)
                if not self._meeting.store.hand_in(records):
                    break
                source.marks[number] = call.after
                calls.popleft()
        full = any(source.unsent)
        try:
            if full and not source.held:
                self._log.pause(name)
            elif source.held and not full:
                self._log.seek(name, source.next_offset)
        except (Fenced, LogTruncated):
            pass  # the next poll says so
        source.held = full

    def _again(self, name: str) -> None:
        """A join cell is not where we thought, or did not answer: begin this partition again."""
        self._state.sources.pop(name, None)
        try:
            self._log.pause(name)
        except Fenced:
            return  # the next poll says so
        self._state.waiting.add(name)

    # -------------------------------------------------------------------------------------------------- reading

    def _read(self, cell: str, reading: _JoinCell, position: int, most: int) -> list[Records]:
        """Arrivals from a position on. Raises Unavailable."""
        arrivals, numbered = self._meeting.store.arrivals(cell, position, min(most, MOST_AT_ONCE))
        reading.behind = max(0, numbered - (arrivals[-1].number + 1 if arrivals else position))
        if not arrivals:
            return []
        handed = [self._opened(arrival) for arrival in arrivals]
        reading.position = arrivals[-1].number + 1
        return [
            Records(
                cell, [one.value for one in handed], np.array([one.number for one in arrivals], np.int64), reading.position,
                [one.place for one in handed], {i: one.refused for i, one in enumerate(handed) if one.refused is not None},
                broker_ms=np.array([one.time_ms for one in handed], np.int64),
                beside=[Beside(one.key, one.headers) for one in handed], proofs=[one.proof for one in arrivals],
            )
        ]  # fmt: skip

    def _opened(self, arrival: Arrival) -> HandedRecord:
        try:
            return self._unpack.decode(self._meeting.unseal(arrival.content))
        except (CorruptState, msgspec.DecodeError, UnicodeDecodeError):
            return HandedRecord("", -1, None, (), b"", LOST)

    # ------------------------------------------------------------------------------------------- the rest of the port

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        self._mine(cell).position = offset or 0
        return offset or 0

    def pause(self, cell: str) -> None:
        if cell in self.cells:
            self._mine(cell).position = None
        else:  # a partition that stopped
            self._log.pause(cell)

    def owns(self, cell: str) -> bool:
        self._mine(cell)
        return self._log.owns(f"{self._topics[0]}:{self.cells.index(cell)}")

    def position(self, cell: str) -> int:
        position = self._mine(cell).position
        if position is None:
            raise Fenced(f"{cell}: `seek` was not called")
        return position

    def ends(self) -> dict[str, int]:
        """Raises Unavailable until everything that the topics held when this was first asked was handed in."""
        state = self._state
        if state.wanted is None:
            state.wanted = {
                cell: end for cell, end in self._log.ends().items() if cell.rpartition(":")[0] in self._topics
            }
        found = {}
        for cell in self.cells:
            marks = self._meeting.store.sources(cell)
            if any(marks.get(source, 0) < end for source, end in state.wanted.items()):
                raise Unavailable(f"{cell}: records of its topics have not been handed in yet")
            found[cell] = self._meeting.store.arrivals(cell, 0, 1)[1]
        return {cell: end for cell, end in found.items() if end}

    def is_member(self) -> bool:
        return self._log.is_member()

    def topic_id(self, cell: str) -> int:
        """By what decides which halves meet where: with another number of cells, what waits would wait in vain."""
        join = self._translator.mapping.join
        text = repr((len(self.cells), join and join.id, join and join.response_id))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=5, person=b"qw-join").digest(), "big") or 1

    def lag(self) -> int:
        return self._log.lag() + sum(one.behind for one in self._state.readings.values())

    def commit(self, offsets: Mapping[str, int]) -> None:
        """Advisory: up to where all join cells have each partition."""
        marks = {name: [m for m in source.marks if m is not None] for name, source in self._state.sources.items()}
        self._log.commit({name: min(some) for name, some in marks.items() if some})

    def close(self) -> None:
        self._log.close()

    def _mine(self, cell: str) -> _JoinCell:
        reading = self._state.readings.get(cell)
        if reading is None:
            raise Fenced(f"{cell}: not ours")
        return reading

    def _cell_with(self, source: str) -> str | None:
        """The join cell that goes with a partition."""
        topic, _, partition = source.rpartition(":")
        return self.cells[int(partition)] if topic == self._topics[0] and int(partition) < len(self.cells) else None


def _calls(part: Sequence[tuple[int, int, bytes]], end: int, newest_ms: int) -> list[_Call]:
    """Records (offset, time, content) in as many calls as their number and bytes ask for; the last one goes up to `end`."""
    calls, size = list[_Call](), 0
    for offset, time_ms, content in part:
        if not calls or len(calls[-1].contents) >= MOST_AT_ONCE or size + len(content) > MOST_BYTES_AT_ONCE:
            calls.append(_Call([], offset + 1, time_ms))
            size = 0
        calls[-1].contents.append(content)
        calls[-1] = calls[-1]._replace(after=offset + 1)
        size += len(content)
    if not calls:
        return [_Call([], end, newest_ms)]
    calls[-1] = calls[-1]._replace(after=end)
    return calls
