"""The contract of the port QueryLog, run on every implementation: Kafka, files of each format, a followed file, and through a mapping.

Each case writes the same lines to a log of ONE cell and reads it back.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from support.kafka_producer import produce

from consumers.errors import Fenced, LogTruncated
from consumers.log import MAX_RECORD_BYTES, Poll, QueryLog, Records
from consumers.log.files import FileLog
from consumers.log.followed import FollowedFile
from consumers.log.kafka import KafkaLog, connection
from consumers.log.mappings.mapped import MappedFiles, MappedLog
from consumers.log.mappings.mapping import LogMapping
from consumers.log.mappings.records import Translator
from consumers.log.mappings.sources import Source
from consumers.log.mappings.topics import MappedTopics

Open = Callable[[], QueryLog]
Write = Callable[[Sequence[bytes]], Open]

LINES = [json.dumps({"i": i}).encode() for i in range(100)]
BINARY = [b"\x00\xff\xfe", b"not json", b'{"x": 1e999}']


def _files(suffix: str, pack: Callable[[bytes], bytes]) -> Callable[[pytest.FixtureRequest], Write]:
    def prepare(request: pytest.FixtureRequest) -> Write:
        folder: Path = request.getfixturevalue("tmp_path")

        def write(lines: Sequence[bytes]) -> Open:
            half = len(lines) // 2
            for name, part in (("a", lines[:half]), ("b", lines[half:])):
                (folder / f"{name}{suffix}").write_bytes(pack(b"".join(line + b"\n" for line in part)))
            return lambda: FileLog([folder / f"a{suffix}", folder / f"b{suffix}"])

        return write

    return prepare


def _followed(request: pytest.FixtureRequest) -> Write:
    path: Path = request.getfixturevalue("tmp_path") / "grows.jsonl"

    def write(lines: Sequence[bytes]) -> Open:
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return lambda: FollowedFile(path, poll_interval_s=0.01)

    return write


def _kafka(request: pytest.FixtureRequest) -> Write:
    bootstrap: str = request.getfixturevalue("kafka_bootstrap")
    name: str = request.getfixturevalue("topic")(partitions=1, **{"max.message.bytes": "4194304"})

    def write(lines: Sequence[bytes]) -> Open:
        produce(bootstrap, name, lines)
        return lambda: KafkaLog(connection(bootstrap), topics=[name], group_id=name, session_timeout_ms=6000)

    return write


class SameBytes(Translator):
    """Gives every record as it is, so that what is read can be compared with what was written."""

    def events(self, value: bytes, source: Source) -> Iterator[bytes]:
        yield value


def _mapped(prepare: Callable[[pytest.FixtureRequest], Write]) -> Callable[[pytest.FixtureRequest], Write]:
    """The same log, read through a mapping."""

    def prepared(request: pytest.FixtureRequest) -> Write:
        write = prepare(request)

        def mapped(lines: Sequence[bytes]) -> Open:
            make = write(lines)

            def opened() -> QueryLog:
                log, translator = make(), SameBytes(LogMapping(name="same"), lambda credential: "")
                if isinstance(log, KafkaLog):
                    return MappedTopics(log, dict.fromkeys(log.topics, translator))
                return MappedFiles(log, translator) if isinstance(log, FileLog) else MappedLog(log, translator)

            return opened

        return mapped

    return prepared


KINDS = {
    "jsonl": _files(".jsonl", bytes),
    "gzip": _files(".jsonl.gz", gzip.compress),
    "zstd": _files(".jsonl.zst", zstandard.ZstdCompressor().compress),
    "followed": _followed,
    "kafka": _kafka,
    "mapped jsonl": _mapped(_files(".jsonl", bytes)),
    "mapped followed": _mapped(_followed),
    "mapped kafka": _mapped(_kafka),
}


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.kafka) if "kafka" in kind else kind for kind in KINDS])
def write(request: pytest.FixtureRequest) -> Write:
    return KINDS[request.param](request)


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Callable[[Open], QueryLog]:
    """Opens logs and closes them at the end, however the test went."""

    def open_log(make: Open) -> QueryLog:
        log = make()
        request.addfinalizer(log.close)
        return log

    return open_log


Opened = Callable[[Open], QueryLog]


def until(log: QueryLog, wanted: Callable[[Poll], bool], polls: int = 400) -> Poll:
    """The first poll that is as wanted."""
    for _ in range(polls):
        poll = log.poll(0.2, 1000)
        if wanted(poll):
            return poll
    raise AssertionError("no such poll")


def cell_of(log: QueryLog) -> str:
    (cell,) = until(log, lambda poll: bool(poll.assigned)).assigned
    return cell


def read(log: QueryLog, cell: str, count: int, max_records: int = 1000) -> list[Records]:
    """Batches of the cell until `count` records came; not one more may come."""
    batches: list[Records] = []
    for _ in range(200):
        poll = log.poll(0.2, max_records)
        assert not poll.revoked
        assert not poll.gaps
        batches += poll.batches
        got = sum(len(batch.values) for batch in batches)
        if got >= count and log.position(cell) >= log.ends()[cell]:
            break
    assert sum(len(batch.values) for batch in batches) == count
    return batches


def values_of(batches: Sequence[Records]) -> list[bytes]:
    return [value for batch in batches for value in batch.values]


def test_a_new_cell_delivers_nothing_until_it_was_sought(write: Write, opened: Opened) -> None:
    log = opened(write(LINES))
    cell = cell_of(log)
    for _ in range(3):
        poll = log.poll(0.1, 1000)
        assert (poll.batches, poll.assigned, poll.revoked) == ([], [], [])
    assert log.seek(cell, None) == 0
    assert values_of(read(log, cell, 100)) == LINES


def test_records_come_in_order_and_the_offsets_agree(write: Write, opened: Opened) -> None:
    log = opened(write(LINES))
    cell = cell_of(log)
    position = log.seek(cell, None)
    for batch in read(log, cell, 100, max_records=7):
        assert batch.cell == cell
        assert len(batch.values) == len(batch.offsets) <= 7
        assert all(a < b for a, b in zip(batch.offsets, batch.offsets[1:], strict=False))
        assert position <= int(batch.offsets[0])
        assert int(batch.offsets[-1]) < batch.next_offset
        position = batch.next_offset
        assert batch.refused == {}
    assert log.position(cell) == position == log.ends()[cell]


def test_each_record_has_the_broker_s_time_and_a_file_s_has_none(write: Write, opened: Opened) -> None:
    before_ms = time.time() * 1000
    log = opened(write(LINES))
    cell = cell_of(log)
    log.seek(cell, None)
    batches = read(log, cell, 100, max_records=7)
    if not isinstance(getattr(log, "_log", log), KafkaLog):
        assert {batch.broker_ms for batch in batches} == {None}
        return
    times_ms = [ms for batch in batches for ms in (batch.broker_ms if batch.broker_ms is not None else [])]
    assert len(times_ms) == 100
    assert all(before_ms - 1 <= ms <= time.time() * 1000 for ms in times_ms)


def test_reading_resumes_wherever_a_batch_ended(write: Write, opened: Opened) -> None:
    make = write(LINES)
    log = opened(make)
    cell = cell_of(log)
    log.seek(cell, None)
    batches = read(log, cell, 100, max_records=30)
    log.close()
    again = opened(make)
    assert cell_of(again) == cell, "the same log has the same cell"
    for k in range(len(batches)):
        rest = values_of(batches[k + 1 :])
        assert again.seek(cell, batches[k].next_offset) == batches[k].next_offset
        if rest:
            assert values_of(read(again, cell, len(rest))) == rest
    assert again.poll(0.1, 1000).batches == []


def test_reading_again_gives_the_same_records(write: Write, opened: Opened) -> None:
    log = opened(write(LINES))
    cell = cell_of(log)
    log.seek(cell, None)
    once = read(log, cell, 100)
    log.seek(cell, 0)
    twice = read(log, cell, 100, max_records=13)
    assert values_of(once) == values_of(twice) == LINES
    assert [int(o) for b in once for o in b.offsets] == [int(o) for b in twice for o in b.offsets]
    assert [b.place(i) for b in once for i in range(len(b.values))] == [
        b.place(i) for b in twice for i in range(len(b.values))
    ]


def test_a_pause_lasts_until_the_next_seek(write: Write, opened: Opened) -> None:
    log = opened(write(LINES))
    cell = cell_of(log)
    log.seek(cell, None)
    first = until(log, lambda poll: bool(poll.batches)).batches[0]
    log.pause(cell)
    assert all(log.poll(0.1, 1000).batches == [] for _ in range(3))
    log.seek(cell, int(first.offsets[0]))
    assert until(log, lambda poll: bool(poll.batches)).batches[0].values[0] == first.values[0]


def test_an_oversize_record_is_cut_and_hurts_nobody(write: Write, opened: Opened) -> None:
    huge = b"x" * (2 << 20)
    log = opened(write([b"before", huge, b"after"]))
    cell = cell_of(log)
    log.seek(cell, None)
    assert values_of(read(log, cell, 3)) == [b"before", huge[: MAX_RECORD_BYTES + 1], b"after"]


def test_content_is_not_looked_at(write: Write, opened: Opened) -> None:
    log = opened(write(BINARY))
    cell = cell_of(log)
    log.seek(cell, None)
    assert values_of(read(log, cell, len(BINARY))) == BINARY


def test_a_log_that_ends_before_the_stored_offset_is_truncated(write: Write, opened: Opened) -> None:
    log = opened(write(LINES))
    cell = cell_of(log)
    with pytest.raises(LogTruncated, match="the store is at"):
        log.seek(cell, 1 << 40)  # beyond the last record, also where a record has many offsets


@pytest.mark.parametrize("cell", ["elsewhere:7", "files:0000000000000000", "x"])
def test_a_foreign_cell_is_fenced(write: Write, opened: Opened, cell: str) -> None:
    log = opened(write(LINES[:4]))
    cell_of(log)
    for use in (log.position, log.pause, lambda c: log.seek(c, 0)):
        with pytest.raises(Fenced):
            use(cell)


def test_an_advisory_commit_never_fails_and_is_never_used(write: Write, opened: Opened) -> None:
    make = write(LINES)
    log = opened(make)
    cell = cell_of(log)
    log.seek(cell, None)
    read(log, cell, 100)
    log.commit({cell: 50, "unknown:3": 1})
    assert log.owns(cell)
    log.close()
    again = opened(make)
    assert again.seek(cell_of(again), None) == 0


def test_parquet_rows_are_native_events(tmp_path: Path, opened: Opened) -> None:
    table = pyarrow.table({"i": list(range(100))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=17)
    log = opened(lambda: FileLog([tmp_path / "a.parquet"]))
    cell = cell_of(log)
    log.seek(cell, None)
    batches = read(log, cell, 100, max_records=30)
    assert [json.loads(value)["i"] for value in values_of(batches)] == list(range(100))
    assert batches[0].place(2) == "a.parquet:3"
