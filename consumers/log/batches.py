"""Record batches of Kafka, read in bounded memory; no batch can stop a partition.

Takes the place of kafka-python's own reader inside one consumer (`read_bounded`, an explicit call; importing changes
nothing). `kafka_patches.py` says for which version. The stock reader decompresses without a limit, and raises the same
error for ever at a batch it cannot read.

Rules:

* A batch that decompresses to more than `BATCH_BYTES`, or whose records are not well-formed, is given as ONE record
  that carries the reason; reading goes on at the next batch.
* A batch that fails its checksum is fetched once more, the damage may be the network's; then it is quarantined too.
* Control batches and aborted transactions stay invisible.
* Records are given in blocks of columns, a block a batch or the rest of one: a compiled walk (`batch_walk.py`) finds where the values lie
  in the decompressed batch, and no Python object is made for any. A value is cut to `MAX_RECORD_BYTES` + 1 bytes; a tombstone, Kafka's
  null, is not an empty value. Key and headers are read, record by record, only for who asks for them.
* A record's time is the batch's newest with ``LogAppendTime``, its own otherwise; -1 when it is unknown or outside `TIMES_MS`.
"""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import kafka
import numpy as np
import zstandard
from kafka import codec as codecs
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from numpy.typing import NDArray

from consumers.log import MAX_RECORD_BYTES, Beside
from consumers.log.batch_walk import walk_records
from consumers.log.kafka_patches import check_library
from consumers.log.payloads import Payloads
from consumers.log.poll_size import PollSize
from detector.query import TIMES_MS, UNKNOWN_MS

BATCH_BYTES = 16 << 20
KEPT_BYTES = MAX_RECORD_BYTES + 1
INT_SHIFT, LONG_SHIFT = 28, 63
"""Of the last byte of a number of 32 and of 64 bits."""
HEADER_BYTES = 61
MAX_BATCH_RECORDS = 1 << 20
XERIAL = b"\x82SNAPPY\x00"
BOMB = "decompression_limit"
CORRUPT = "corrupt_batch"


class RawRecord(NamedTuple):
    """One record of a block. value: None is a tombstone; refused, beside: as of `RecordBlock`."""

    offset: int
    value: bytes | None
    refused: tuple[str, str] | None
    broker_ms: int = UNKNOWN_MS
    beside: Beside | None = None


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """n ≥ 1 consecutive records of one partition.

    values     their values; a tombstone's ends before it starts
    offsets    (n,) int64
    broker_ms  (n,) int64, the log's own time for each; -1 where it is unknown
    end        offset at which reading goes on after them
    refused    (reason, detail) when the values could not be had: n is 1, and the record stands for all up to `end`
    beside     keys and headers, where they were asked for and could be read
    """

    values: Payloads
    offsets: NDArray[np.int64]
    broker_ms: NDArray[np.int64]
    end: int
    refused: tuple[str, str] | None = None
    beside: Sequence[Beside] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def filled(self) -> NDArray[np.bool_]:
        """(n,) which records are no tombstones."""
        return self.values.ends >= self.values.starts

    def part(self, first: int, last: int) -> RecordBlock:
        """Those from the `first` up to the `last`, which is not among them; reading goes on at the next."""
        if first == 0 and last >= len(self):
            return self
        rows = slice(first, last)
        return replace(
            self,
            values=self.values[rows],
            offsets=self.offsets[rows],
            broker_ms=self.broker_ms[rows],
            end=self.end if last >= len(self) else int(self.offsets[last - 1]) + 1,
            beside=None if self.beside is None else self.beside[rows],
        )

    def records(self) -> Iterator[RawRecord]:
        """One by one, for tests and for people."""
        for i, filled in enumerate(self.filled.tolist()):
            beside = None if self.beside is None else self.beside[i]
            yield RawRecord(
                int(self.offsets[i]), self.values[i] if filled else None, self.refused, int(self.broker_ms[i]), beside
            )


class TakenBlocks:
    """Blocks that the library carries to the caller of `poll`: their length is in records, and one gets the blocks from them.

    full  nothing more fits into the poll: to the library they are as many as it asked for, so that it asks for no more
    """

    def __init__(self) -> None:
        self._blocks: list[RecordBlock] = []
        self._records = 0
        self.full: int | None = None

    def add(self, block: RecordBlock) -> None:
        self._blocks.append(block)
        self._records += len(block)

    def __len__(self) -> int:
        return self._records if self.full is None else self.full

    def __iter__(self) -> Iterator[RecordBlock]:
        return iter(self._blocks)


class _UnreadableBatch(Exception):
    """(reason, detail) of a batch."""


def read_bounded(consumer: kafka.KafkaConsumer, size: PollSize, headers: bool = False) -> None:
    """Make `consumer` read through this module; its `poll` then returns lists of `RecordBlock`, with keys and headers if `headers`.

    size  how much the poll at hand may hold yet. Raises Refused with an unknown kafka-python.
    """
    check_library(consumer, "_fetcher")
    reader = _BoundedRecordsBeside if headers else _BoundedRecords
    consumer._fetcher.PartitionRecords = functools.partial(reader, size, set())


class _BoundedRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # untyped library
    def __init__(self, size: PollSize, suspects: set[tuple[Any, int]], *arguments: Any, **named: Any) -> None:
        self._size = size
        self._suspects = suspects  # (partition, base offset) of batches that failed their checksum once
        self._rest: RecordBlock | None = None  # of a block that was taken in part
        super().__init__(*arguments, **named)

    def take(self, n: int | None = None) -> TakenBlocks:
        """The next records, at most n, and no more batches than fit into the poll.

        What is raised after some of them is raised by the next call.
        """
        self._maybe_raise_next_inline_exception()
        taken = TakenBlocks()
        try:
            while n is None or len(taken) < n:
                block = self._rest or next(self.record_iterator or iter(()), None)
                if block is None:
                    break
                self._size.left -= 0 if self._rest else len(block.values.text)
                most = len(block) if n is None else n - len(taken)
                part, self._rest = block.part(0, most), block.part(most, len(block)) if most < len(block) else None
                self.next_fetch_offset = part.end
                taken.add(part)
                if self._size.left <= 0:
                    taken.full = n
                    break
        except Exception as error:
            if not len(taken):
                raise
            self._next_inline_exception = error
        return taken

    def _maybe_skip_record(self, block: RecordBlock) -> bool:
        """Nothing: `_wanted` leaves out what lies before the offset that was asked for."""
        return False

    def _wanted(self, block: RecordBlock) -> Iterator[RecordBlock]:
        """Fetching starts at the batch that holds the offset, so its first records may lie before it."""
        first = int(np.searchsorted(block.offsets, int(self.fetch_offset)))
        if first < len(block):
            yield block.part(first, len(block))
        self.next_fetch_offset = block.end

    def _unpack_records(self, tp: Any, records: Any, *_: Any) -> Iterator[RecordBlock]:
        batch = records.next_batch()
        while batch is not None:
            self.bytes_read += batch.size_in_bytes
            following = None
            if not batch.validate_crc():
                suspect = (tp, batch.base_offset)
                if suspect not in self._suspects:
                    self._suspects.add(suspect)
                    break  # fetch it again
                self._suspects.discard(suspect)
                following = records.next_batch()
                yield from self._quarantined(_after_damage(batch, following), CORRUPT, "fails its checksum")
            elif batch.magic < 2:
                yield from self._old_format(batch)
            elif not self._invisible(batch):
                self.leader_epoch = batch.leader_epoch
                yield from self._records_of(batch)
            else:
                self.next_fetch_offset = batch.next_offset
            batch = following or records.next_batch()
        self.drain()

    def _invisible(self, batch: Any) -> bool:
        """Control batches, and batches of a transaction that was aborted."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)

    def _records_of(self, batch: Any) -> Iterator[RecordBlock]:
        base, end = int(batch.base_offset), int(batch.next_offset)
        try:
            body = _body(batch)
        except _UnreadableBatch as unreadable:
            if self.next_fetch_offset < end:
                yield from self._quarantined(end, *unreadable.args)
            self.next_fetch_offset = end
            return
        found, whole = walk_records(
            body, batch.records_count, batch.last_offset_delta, batch.first_timestamp, KEPT_BYTES
        )
        time_ms = found.time_ms
        if batch.timestamp_type == DefaultRecordBatch.LOG_APPEND_TIME:
            time_ms = np.full(len(time_ms), _known(batch.max_timestamp))
        if len(time_ms):
            offsets = base + found.deltas
            after = end if whole else int(offsets[-1]) + 1
            values = Payloads(body, found.starts, found.ends)
            yield from self._wanted(
                RecordBlock(values, offsets, time_ms, after, beside=self._beside(body, len(offsets)))
            )
        if not whole and self.next_fetch_offset < end:  # else only the batch's count was wrong
            yield from self._quarantined(end, CORRUPT, "records are not well-formed")
        self.next_fetch_offset = end

    def _beside(self, body: NDArray[np.uint8], count: int) -> Sequence[Beside] | None:
        """Keys and headers of the records, if somebody asked for them."""
        return None

    def _old_format(self, batch: Any) -> Iterator[RecordBlock]:
        """Formats 0 and 1, written by clients older than 2017."""
        if batch.compression_type:
            yield from self._quarantined(batch.base_offset + 1, CORRUPT, "compressed in a format older than Kafka 0.11")
            return
        for record in batch:
            value = record.value
            values = Payloads.of([b"" if value is None else value[:KEPT_BYTES]])
            if value is None:
                values = Payloads(values.text, values.starts, values.ends - 1)
            offsets, time_ms = np.array([record.offset], np.int64), np.array([_known(record.timestamp)], np.int64)
            yield from self._wanted(RecordBlock(values, offsets, time_ms, record.offset + 1))

    def _quarantined(self, end: int, reason: str, detail: str) -> Iterator[RecordBlock]:
        """One record for everything from where we are up to `end`."""
        start = max(int(self.next_fetch_offset), int(self.fetch_offset))
        end = max(end, start + 1)
        refused = reason, f"offsets {start} to {end - 1}: {detail}"
        offsets, time_ms = np.array([start], np.int64), np.array([UNKNOWN_MS], np.int64)
        yield RecordBlock(Payloads.of([b""]), offsets, time_ms, end, refused)


class _BoundedRecordsBeside(_BoundedRecords):
    """Keys and headers too, in a pass of their own: who does not ask for them does not pay for them. Formats 0 and 1 give none."""

    def _beside(self, body: NDArray[np.uint8], count: int) -> Sequence[Beside] | None:
        return list(_beside(body.tobytes(), count))  # what could be read once can be read again


def _body(batch: Any) -> NDArray[np.uint8]:
    """The records of a batch, decompressed. Raises _UnreadableBatch."""
    packed = np.frombuffer(batch._buffer, np.uint8)[HEADER_BYTES:]
    if not batch.compression_type:
        return packed
    return np.frombuffer(_decompressed(packed.tobytes(), batch.compression_type), np.uint8)


def _after_damage(batch: Any, following: Any) -> int:
    """Where the batch after a damaged one begins. The damaged header is believed only when nothing better is known."""
    if following is not None:
        return int(following.base_offset)
    if batch.magic >= 2 and 0 <= batch.last_offset_delta < MAX_BATCH_RECORDS:
        return int(batch.next_offset)
    return int(batch.base_offset) + 1


def _known(ms: int | None) -> int:
    """A time of `TIMES_MS`; any other is unknown."""
    return ms if ms is not None and ms in TIMES_MS else UNKNOWN_MS


def _beside(body: bytes, count: int) -> Iterator[Beside]:
    """Key and headers of the records in a batch, none of a record whose headers are not well-formed."""
    at = 0
    for _ in range(count):
        length, at = _varint(body, at)
        end = at + length
        _, at = _varint(body, at + 1, LONG_SHIFT)
        _, at = _varint(body, at)
        key_bytes, at = _varint(body, at)
        key_end = at + max(key_bytes, 0)
        key = body[at:key_end] if key_bytes >= 0 else None
        value_bytes, at = _varint(body, key_end)
        yield Beside(key, _headers(body[at + max(value_bytes, 0) : end]))
        at = end


def _headers(block: bytes) -> tuple[tuple[str, bytes], ...]:
    """Names and values of one record's headers; a null value is empty."""
    found = []
    try:
        count, at = _varint(block, 0)
        for _ in range(count):
            name_bytes, at = _varint(block, at)
            name, at = block[at : at + name_bytes], at + max(name_bytes, 0)
            value_bytes, at = _varint(block, at)
            value, at = block[at : at + max(value_bytes, 0)], at + max(value_bytes, 0)
            if at > len(block):
                return ()
            found.append((name.decode("utf-8", "replace"), value))
    except (IndexError, _UnreadableBatch):
        return ()
    return tuple(found)


def _varint(body: bytes, at: int, last_shift: int = INT_SHIFT) -> tuple[int, int]:
    """A zig-zag number of at most 5 bytes (with `LONG_SHIFT` 10), and where it ends."""
    byte = body[at]
    at += 1
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), at
    number, shift = byte & 0x7F, 7
    while True:
        byte = body[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
        if shift > last_shift:
            raise _UnreadableBatch(CORRUPT, "records are not well-formed")


def _decompressed(body: bytes, codec: int) -> bytes:
    if not codec:
        return body
    name, inflate = CODECS.get(codec, (f"codec {codec}", _unknown))
    try:
        inflated = inflate(body)
    except (
        zlib.error,
        zstandard.ZstdError,
        RuntimeError,
        ValueError,
        EOFError,
        codecs.snappy.UncompressError,
    ) as error:
        raise _UnreadableBatch(CORRUPT, f"does not decompress as {name} ({error})") from error
    if len(inflated) > BATCH_BYTES:
        raise _bomb(name)
    return inflated


def _bomb(name: str) -> _UnreadableBatch:
    return _UnreadableBatch(BOMB, f"{name} batch decompresses to more than {BATCH_BYTES >> 20} MiB")


def _gunzip(body: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(body, BATCH_BYTES + 1)


def _unsnappy(body: bytes) -> bytes:
    """Blocks as Java clients frame them, or one bare block. What a block announces is checked before it is believed."""
    if not body.startswith(XERIAL):
        return _snappy_block(body, BATCH_BYTES)
    out = bytearray()
    at = 16
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        out += _snappy_block(body[at + 4 : at + 4 + size], BATCH_BYTES - len(out))
        at += 4 + size
    return bytes(out)


def _snappy_block(block: bytes, limit: int) -> bytes:
    announced = shift = 0
    for byte in block[:5]:
        announced |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if announced > limit:
        raise _bomb("snappy")
    return bytes(codecs.snappy.uncompress(block))


def _unlz4(body: bytes) -> bytes:
    """`codecs.lz4` is lz4.frame."""
    return bytes(codecs.lz4.LZ4FrameDecompressor().decompress(body, max_length=BATCH_BYTES + 1))


def _unzstd(body: bytes) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=BATCH_BYTES).stream_reader(io.BytesIO(body)) as reader:
        return bytes(reader.read(BATCH_BYTES + 1))


def _unknown(body: bytes) -> bytes:
    raise ValueError("unknown")


CODECS: dict[int, tuple[str, Callable[[bytes], bytes]]] = {
    1: ("gzip", _gunzip),
    2: ("snappy", _unsnappy),
    3: ("lz4", _unlz4),
    4: ("zstd", _unzstd),
}
