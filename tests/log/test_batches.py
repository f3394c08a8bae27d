"""Record batches that are damaged or hostile, without a broker: every mutation is survived, and reading goes on."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import kafka
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords, MemoryRecordsBuilder
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import calc_crc32c

from consumers.errors import Refused
from consumers.log import Beside
from consumers.log.batch_walk import walk_records
from consumers.log.batches import (
    BATCH_BYTES,
    CORRUPT,
    LONG_SHIFT,
    RawRecord,
    _BoundedRecords,
    _BoundedRecordsBeside,
    _headers,
    _UnreadableBatch,
    _varint,
)
from consumers.log.kafka_patches import CHECKED, PARKED, check_library
from consumers.log.payloads import Payloads
from consumers.log.poll_size import POLL_BYTES, PollSize
from detector.query import TIMES_MS

TP = TopicPartition("t", 0)
CRC_AT = struct.calcsize(">qiib")
ATTRIBUTES_AT = struct.calcsize(">qiibI")
FIRST_MS = 1_700_000_000_000
MAX_MS_AT = struct.calcsize(">qiibIhiq")


def batch(base: int, values: list[bytes | None], compression: int = 0) -> bytes:
    """A batch as a broker stores it, starting at offset `base`."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=compression, batch_size=1 << 20)
    for i, value in enumerate(values):
        builder.append(timestamp=FIRST_MS + 1000 * i, key=b"k" * (i % 3) or None, value=value, headers=[("h", b"v")])
    builder.close()
    return struct.pack(">q", base) + bytes(builder.buffer())[8:]


def resealed(raw: bytearray) -> bytes:
    """With the checksum of what it holds now: damage that a checksum does not see."""
    struct.pack_into(">I", raw, CRC_AT, calc_crc32c(memoryview(raw)[ATTRIBUTES_AT:]))
    return bytes(raw)


class Partition:
    """Fetches from stored batches as the broker and the fetcher do: from the batch that holds the offset on."""

    def __init__(self, *batches: bytes) -> None:
        self.batches = batches
        self.suspects: set[tuple[TopicPartition, int]] = set()
        self.position = 0
        self.fetches = 0

    def end(self) -> int:
        return int(DefaultRecordBatch(self.batches[-1]).next_offset)

    def fetch(self) -> Iterator[RawRecord]:
        self.fetches += 1
        wanted = [raw for raw in self.batches if DefaultRecordBatch(raw).next_offset > self.position]
        part = _BoundedRecords(
            PollSize(),
            self.suspects,
            self.position,
            TP,
            MemoryRecords(b"".join(wanted)),
            isolation_level=IsolationLevel.READ_COMMITTED,
        )
        while part.record_iterator is not None:
            for block in part.take(2):
                yield from block.records()
            self.position = part.next_fetch_offset

    def read(self, end: int, fetches: int = 20) -> list[RawRecord]:
        records: list[RawRecord] = []
        while self.position < end:
            records += self.fetch()
            assert self.fetches <= fetches, "no progress"
        return records


VALUES: list[bytes | None] = [b"a" * 200, b"", b"b" * 3000, None, b"c"]
GIVEN = VALUES


@pytest.mark.parametrize("compression", range(5))
def test_what_was_written_is_read(compression: int) -> None:
    log = Partition(batch(0, VALUES, compression), batch(5, VALUES, compression))
    records = log.read(10)
    assert [record.offset for record in records] == list(range(10))
    assert [record.value for record in records] == GIVEN * 2
    assert all(record.refused is None for record in records)


def test_a_record_has_its_own_time_or_with_log_append_time_the_broker_s() -> None:
    appended = bytearray(batch(5, VALUES))
    appended[ATTRIBUTES_AT + 1] |= 8
    struct.pack_into(">q", appended, MAX_MS_AT, FIRST_MS + 77)
    records = Partition(batch(0, VALUES), resealed(appended)).read(10)
    own = [FIRST_MS + 1000 * i for i in range(len(VALUES))]
    assert [record.broker_ms for record in records] == [*own, *[FIRST_MS + 77] * len(VALUES)]


NANOSECONDS = FIRST_MS * 10**6
LAST_MS = TIMES_MS.stop - 1
NO_TIMES = [-1, -(1 << 63), (1 << 63) - 1, NANOSECONDS, LAST_MS + 1]


@pytest.mark.parametrize(("base_ms", "expected"), [*((ms, -1) for ms in NO_TIMES), (LAST_MS, LAST_MS)])
def test_a_time_that_is_none_is_unknown(base_ms: int, expected: int) -> None:
    raw = bytearray(batch(0, VALUES[:1]))
    struct.pack_into(">q", raw, MAX_MS_AT - 8, base_ms)
    assert [record.broker_ms for record in Partition(resealed(raw)).read(1)] == [expected]


@pytest.mark.parametrize("start", range(5))
def test_reading_starts_in_the_middle_of_a_batch(start: int) -> None:
    log = Partition(batch(0, VALUES, 4))
    log.position = start
    assert [record.value for record in log.read(5)] == GIVEN[start:]


def test_a_checksum_that_fails_once_is_fetched_again() -> None:
    good = batch(5, VALUES)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    log = Partition(batch(0, VALUES), bad, batch(10, VALUES))
    first = list(log.fetch())
    assert [record.offset for record in first] == [0, 1, 2, 3, 4]
    log.batches = (log.batches[0], good, log.batches[2])  # it was the network
    assert [record.value for record in log.read(15)] == GIVEN * 2


def test_a_checksum_that_fails_twice_is_one_refused_record() -> None:
    good = batch(5, VALUES)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    log = Partition(batch(0, VALUES), bad, batch(10, VALUES))
    records = log.read(15)
    assert [record.offset for record in records] == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14]
    assert records[5].refused == (CORRUPT, "offsets 5 to 9: fails its checksum")
    assert log.fetches == 2


def test_a_damaged_header_does_not_decide_how_far_to_skip() -> None:
    bad = bytearray(batch(5, VALUES))
    struct.pack_into(">i", bad, struct.calcsize(">qiibIh"), 1_000_000)  # last offset delta, checksum no longer right
    log = Partition(bytes(bad), batch(10, VALUES))
    log.batches = (bytes(bad), batch(10, VALUES))
    assert [record.offset for record in log.read(15)] == [0, 10, 11, 12, 13, 14]


@pytest.mark.parametrize("compression", range(5))
def test_any_mutation_is_survived_and_what_follows_is_read(compression: int) -> None:
    """300 mutations under a right checksum: never an exception, no offset twice, and the next batch is untouched."""
    rng = random.Random(compression)
    for _ in range(300):
        raw = bytearray(batch(0, VALUES, compression))
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(61, len(raw))] = rng.randrange(256)
        log = Partition(resealed(raw), batch(5, [b"intact"]))
        records = log.read(6)
        offsets = [record.offset for record in records]
        assert offsets == sorted(set(offsets))
        assert records[-1] == RawRecord(5, b"intact", None, FIRST_MS)
        refused = [record for record in records if record.refused is not None]
        assert len(refused) <= 1
        assert len(records) == 6 or refused, "a record may be missing only when something was refused"


def test_a_count_that_lies_changes_nothing() -> None:
    raw = bytearray(batch(0, VALUES))
    struct.pack_into(">i", raw, 57, 2_000_000_000)
    log = Partition(resealed(raw), batch(5, [b"intact"]))
    records = log.read(6)
    assert [record.value for record in records] == [*GIVEN, b"intact"], (
        "after the last record there is nothing to refuse"
    )


def test_snappy_blocks_that_announce_too_much_are_not_believed() -> None:
    huge = BATCH_BYTES * 8
    preamble = bytearray()
    while huge >= 0x80:
        preamble.append(huge & 0x7F | 0x80)
        huge >>= 7
    preamble.append(huge)
    raw = bytearray(batch(0, [b"x" * 500] * 5, compression=2))
    raw[61:] = bytes(preamble) + bytes(20)
    struct.pack_into(">i", raw, 8, len(raw) - 12)
    log = Partition(resealed(raw), batch(5, [b"intact"]))
    records = log.read(6)
    assert records[0].refused is not None
    assert records[0].refused[0] == "decompression_limit"
    assert records[-1].value == b"intact"


def test_a_library_whose_inside_is_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = Fetcher.__new__(Fetcher)
    with pytest.raises(Refused, match="needs 3.0.x"):
        check_library(fetcher, *PARKED)
    for name in PARKED:
        setattr(fetcher, name, {})
    check_library(fetcher, *PARKED)
    monkeypatch.setattr(kafka, "__version__", "3.1.0")
    with pytest.raises(Refused, match="3.1.0"):
        check_library(fetcher, *PARKED)


def test_the_patches_were_checked_against_the_installed_library() -> None:
    """Another version: follow the header of consumers/log/kafka_patches.py, then change `CHECKED`."""
    assert kafka.__version__ == CHECKED


@pytest.mark.parametrize("compression", range(5))
def test_keys_and_headers_are_given_to_who_asks_for_them(compression: int) -> None:
    records = MemoryRecords(batch(0, VALUES, compression))
    part = _BoundedRecordsBeside(PollSize(), set(), 0, TP, records, isolation_level=IsolationLevel.READ_COMMITTED)
    found = [record for block in part.take(10) for record in block.records()]
    assert [record.value for record in found] == VALUES
    assert [record.beside for record in found] == [
        Beside(key, (("h", b"v"),)) for key in (None, b"k", b"kk", None, b"k")
    ]
    assert {record.beside for record in Partition(batch(0, VALUES, compression)).read(5)} == {None}


def test_a_poll_of_records_that_grew_at_once_is_full_when_its_bytes_are() -> None:
    """Large texts of one character, in a batch each, are small on the wire."""
    large = b"".join(batch(i, [b"a" * (1 << 20)], 1) for i in range(40))
    size = PollSize()
    size.note([Payloads.of([b"x" * 200] * 100)])

    def partition() -> _BoundedRecords:
        return _BoundedRecords(size, set(), 0, TP, MemoryRecords(large), isolation_level=IsolationLevel.READ_COMMITTED)

    one, other = partition(), partition()
    asked = size.at_most(10_000)
    first = one.take(asked)
    assert asked == len(first) == 10_000, "the library asks for no more"
    assert sum(map(len, first)) == POLL_BYTES >> 20
    offsets = [record.offset for block in first for record in block.records()]
    while one.next_fetch_offset < 40:
        some = one.take(size.at_most(10_000))
        assert 0 < sum(map(len, some)) <= POLL_BYTES >> 20
        offsets += [record.offset for block in some for record in block.records()]
    assert offsets == list(range(40)), "and what was left comes with the next polls"
    size.at_most(10_000)
    size.left >>= 1
    assert sum(map(len, other.take(10_000))) == POLL_BYTES >> 21, "partitions share the bytes of a poll"


@given(st.binary(max_size=60))
def test_headers_that_are_not_well_formed_are_none(block: bytes) -> None:
    assert all(isinstance(name, str) for name, _ in _headers(block))


def walked_in_python(
    body: bytes, count: int, last_delta: int, first_ms: int, kept: int
) -> tuple[list[tuple[int, bytes | None, int]], bool]:
    """The slow twin of `walk_records`: (offset, value, time) of the records before the first that is not well-formed."""
    found: list[tuple[int, bytes | None, int]] = []
    at, previous = 0, -1
    for _ in range(count):
        try:
            length, at = _varint(body, at)
            end = at + length
            later_ms, at = _varint(body, at + 1, LONG_SHIFT)
            delta, at = _varint(body, at)
            key_bytes, at = _varint(body, at)
            value_bytes, at = _varint(body, at + max(key_bytes, 0))
        except (IndexError, _UnreadableBatch):
            return found, False
        if not (previous < delta <= last_delta and at + max(value_bytes, 0) <= end <= len(body)):
            return found, False
        previous = delta
        value = body[at : at + min(value_bytes, kept)] if value_bytes >= 0 else None
        at_ms = first_ms + later_ms
        found.append((delta, value, at_ms if at_ms in TIMES_MS else -1))
        at = end
    return found, True


def zigzag(number: int, width: int = 1) -> bytes:
    """A number as the protocol writes it, in at least `width` bytes."""
    number = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while number >= 0x80 or len(out) + 1 < width:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


BYTES = st.none() | st.binary(max_size=8)
RECORD = st.tuples(
    st.integers(-(1 << 70), 1 << 70) | st.integers(-5, 5000), st.integers(-1, 3), BYTES, BYTES, st.integers(1, 6)
)


@given(
    st.lists(RECORD, max_size=6),
    st.integers(-1, 8),
    st.sampled_from([0, -1, 1_700_000_000_000, (1 << 63) - 1, -(1 << 63)]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2),
    st.integers(0, 9),
)
def test_the_compiled_walk_finds_what_the_walk_in_python_finds(
    records: list[tuple[int, int, bytes | None, bytes | None, int]],
    count: int,
    first_ms: int,
    damage: list[tuple[int, int]],
    kept: int,
) -> None:
    body, delta = bytearray(), -1
    for later_ms, step, key, value, width in records:
        delta += step
        inner = b"\0" + zigzag(later_ms) + zigzag(delta, width)
        for part in (key, value):
            inner += zigzag(-1) if part is None else zigzag(len(part)) + part
        body += zigzag(len(inner) + 1) + inner + b"\0"
    for at, byte in damage:
        if at < len(body):
            body[at] = byte
    found, whole = walk_records(np.frombuffer(bytes(body), np.uint8), count, 9, first_ms, kept)
    rows = zip(*(column.tolist() for column in found), strict=True)
    values = [(d, bytes(body[s:e]) if e >= s else None, ms) for s, e, d, ms in rows]
    assert (values, whole) == walked_in_python(bytes(body), count, 9, first_ms, kept)
