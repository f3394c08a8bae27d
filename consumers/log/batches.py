"""Record batches of Kafka, read in bounded memory; no batch can stop a partition.

Takes the place of kafka-python's own reader inside one consumer (`read_bounded`, an explicit call; importing changes
nothing). `kafka_patches.py` says for which version. The stock reader decompresses without a limit, and raises the same
error for ever at a batch it cannot read.

* A batch that decompresses to more than `BATCH_BYTES`, or whose records are not well-formed, is given as ONE record
  that carries the reason; reading goes on at the next batch.
* A batch that fails its checksum is fetched once more, the damage may be the network's; then it is quarantined too.
* Control batches and aborted transactions stay invisible.
* Records are tuples (offset, value, refused, broker_ms, beside); a value is cut to `MAX_RECORD_BYTES` + 1 bytes; None is
  a tombstone, Kafka's null, which is not an empty value. Key and headers are read only for who asks for them.
* A record's time is the batch's newest with ``LogAppendTime``, its own otherwise; -1 when it is unknown, or before 1970.
"""

from __future__ import annotations

import functools
import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import kafka
import zstandard
from kafka import codec as codecs
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch

from consumers.log import MAX_RECORD_BYTES, Beside
from consumers.log.kafka_patches import check_library
from detector.query import UNKNOWN_MS

BATCH_BYTES = 16 << 20
KEPT_BYTES = MAX_RECORD_BYTES + 1
INT_SHIFT, LONG_SHIFT = 28, 63  # of the last byte of a number of 32 and of 64 bits
HEADER_BYTES = 61
MAX_BATCH_RECORDS = 1 << 20
XERIAL = b"\x82SNAPPY\x00"
BOMB = "decompression_limit"
CORRUPT = "corrupt_batch"
LATEST_MS = (1 << 63) - 1


class RawRecord(NamedTuple):
    """refused: (reason, detail) when the value could not be had; it then stands for a whole batch. beside: key and headers, if wanted."""

    offset: int
    value: bytes | None
    refused: tuple[str, str] | None
    broker_ms: int = UNKNOWN_MS
    beside: Beside | None = None


class _UnreadableBatch(Exception):
    """(reason, detail) of a batch."""


def read_bounded(consumer: kafka.KafkaConsumer, headers: bool = False) -> None:
    """Make `consumer` read through this module; its `poll` then returns `RawRecord` lists, with keys and headers if `headers`.

    Raises Refused with an unknown kafka-python.
    """
    check_library(consumer, "_fetcher")
    reader = _BoundedRecordsBeside if headers else _BoundedRecords
    consumer._fetcher.PartitionRecords = functools.partial(reader, set())


class _BoundedRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # untyped library
    def __init__(self, suspects: set[tuple[Any, int]], *arguments: Any, **named: Any) -> None:
        self._suspects = suspects  # (partition, base offset) of batches that failed their checksum once
        super().__init__(*arguments, **named)

    def _maybe_skip_record(self, record: RawRecord) -> bool:
        """Fetching starts at the batch that holds the offset, so its first records may lie before it."""
        return record.offset < int(self.fetch_offset)

    def _unpack_records(self, tp: Any, records: Any, *_: Any) -> Iterator[RawRecord]:
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

    def _records_of(self, batch: Any) -> Iterator[RawRecord]:
        base, end = batch.base_offset, batch.next_offset
        first_ms = batch.first_timestamp
        appended_ms = batch.max_timestamp if batch.timestamp_type == DefaultRecordBatch.LOG_APPEND_TIME else None
        try:
            body = _decompressed(bytes(memoryview(batch._buffer)[HEADER_BYTES:]), batch.compression_type)
            for delta, value, later_ms in _walk(body, batch.records_count, batch.last_offset_delta):
                self.next_fetch_offset = base + delta + 1
                at_ms = first_ms + later_ms if appended_ms is None else appended_ms
                yield RawRecord(base + delta, value, None, _known(at_ms))
        except _UnreadableBatch as unreadable:
            if self.next_fetch_offset < end:  # else only the batch's count was wrong
                yield from self._quarantined(end, *unreadable.args)
        self.next_fetch_offset = end

    def _old_format(self, batch: Any) -> Iterator[RawRecord]:
        """Formats 0 and 1, written by clients older than 2017."""
        if batch.compression_type:
            yield from self._quarantined(batch.base_offset + 1, CORRUPT, "compressed in a format older than Kafka 0.11")
            return
        for record in batch:
            self.next_fetch_offset = record.offset + 1
            yield RawRecord(record.offset, _kept(record.value), None, _known(record.timestamp))

    def _quarantined(self, end: int, reason: str, detail: str) -> Iterator[RawRecord]:
        """One record for everything from where we are up to `end`."""
        start = max(int(self.next_fetch_offset), int(self.fetch_offset))
        end = max(end, start + 1)
        self.next_fetch_offset = end
        yield RawRecord(start, b"", (reason, f"offsets {start} to {end - 1}: {detail}"))


class _BoundedRecordsBeside(_BoundedRecords):
    """Keys and headers too, in a pass of their own: who does not ask for them does not pay for them. Formats 0 and 1 give none."""

    def _records_of(self, batch: Any) -> Iterator[RawRecord]:
        found: Iterator[Beside] | None = None
        for record in super()._records_of(batch):
            if record.refused is None:
                if found is None:  # what could be read once can be read again
                    body = _decompressed(bytes(memoryview(batch._buffer)[HEADER_BYTES:]), batch.compression_type)
                    found = _beside(body, batch.records_count)
                record = record._replace(beside=next(found))
            yield record


def _after_damage(batch: Any, following: Any) -> int:
    """Where the batch after a damaged one begins. The damaged header is believed only when nothing better is known."""
    if following is not None:
        return int(following.base_offset)
    if batch.magic >= 2 and 0 <= batch.last_offset_delta < MAX_BATCH_RECORDS:
        return int(batch.next_offset)
    return int(batch.base_offset) + 1


def _known(ms: int | None) -> int:
    """A time that 64 bits hold; whatever is no time is unknown."""
    return UNKNOWN_MS if ms is None or ms < 0 else min(ms, LATEST_MS)


def _kept(value: bytes | None) -> bytes | None:
    return None if value is None else value[:KEPT_BYTES]


def _walk(body: bytes, count: int, last_delta: int) -> Iterator[tuple[int, bytes | None, int]]:
    """(offset delta, value, time delta in ms) of the records in a batch; attributes, keys and headers are skipped."""
    at, previous = 0, -1
    try:
        for _ in range(count):
            length, at = _varint(body, at)
            end = at + length
            later_ms, at = _varint(body, at + 1, LONG_SHIFT)  # after the attributes
            delta, at = _varint(body, at)
            key_bytes, at = _varint(body, at)
            value_bytes, at = _varint(body, at + key_bytes if key_bytes > 0 else at)
            if not (previous < delta <= last_delta and at + max(value_bytes, 0) <= end <= len(body)):
                raise _UnreadableBatch(CORRUPT, "records are not well-formed")
            previous = delta
            value = body[at : at + min(value_bytes, KEPT_BYTES)] if value_bytes >= 0 else None
            yield delta, value, later_ms
            at = end
    except IndexError:
        raise _UnreadableBatch(CORRUPT, "records are not well-formed") from None


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
