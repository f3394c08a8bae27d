"""What only file logs have: formats, damage, bounded memory, pipes, progress, a file that grows."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from consumers.errors import LogTruncated, Refused, WrongUse
from consumers.log import MAX_RECORD_BYTES, Poll, QueryLog
from consumers.log.files import UNKNOWN_END, FileLog
from consumers.log.followed import FollowedFile

LINES = [json.dumps({"i": i}).encode() for i in range(500)]
TEXT = b"".join(line + b"\n" for line in LINES)
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.ZstdCompressor().compress,
}


class Read:
    """Everything a log gives, and how it ended."""

    def __init__(self, log: QueryLog, max_records: int = 100, offset: int | None = None, polls: int = 100_000) -> None:
        self.values: list[bytes] = []
        self.places: list[str] = []
        self.offsets: list[int] = []
        self.error: Refused | None = None
        (cell,) = log.poll(0, 1).assigned
        self.next_offset = log.seek(cell, offset)
        try:
            for _ in range(polls):
                poll = log.poll(0, max_records)
                for batch in poll.batches:
                    self.values += batch.values
                    self.offsets += batch.offsets.tolist()
                    self.places += [batch.place(i) for i in range(len(batch.values))]
                    self.next_offset = batch.next_offset
                if not poll.batches:
                    break
        except Refused as error:
            self.error = error


def test_files_are_one_cell_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n2\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"3\n4"))
    (tmp_path / "c.jsonl.zst").write_bytes(PACK[".jsonl.zst"](b"5\n"))
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst")]
    log = FileLog(paths)
    read = Read(log)
    assert read.values == [b"1", b"2", b"3", b"4", b"5"]
    assert read.offsets == [0, 1, 2, 3, 4]
    assert read.places == ["a.jsonl:1", "a.jsonl:2", "b.jsonl.gz:1", "b.jsonl.gz:2", "c.jsonl.zst:1"]
    assert log.ends() == {log.cell: 5}
    assert log.finished
    assert FileLog(paths).cell == log.cell
    assert FileLog(paths[::-1]).cell != log.cell
    (tmp_path / "a.jsonl").write_bytes(b"1\n3\n")
    assert FileLog(paths).cell != log.cell


def test_empty_lines_count_and_are_not_delivered(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n\n1\n  \n\r\n2\n\n")
    log = FileLog([tmp_path / "a.jsonl"])
    read = Read(log, max_records=2)
    assert (read.values, read.offsets, read.next_offset) == ([b"1", b"2"], [2, 5], 7)
    assert read.places == ["a.jsonl:3", "a.jsonl:6"]
    assert log.ends() == {log.cell: 7}


def test_an_empty_file_is_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    log = FileLog([tmp_path / "a.jsonl"])
    assert Read(log).values == []
    assert log.finished
    assert log.fraction_read() == 1.0


def test_a_byte_order_mark_is_not_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf{}\n{}\n")
    assert Read(FileLog([tmp_path / "a.jsonl"])).values == [b"{}", b"{}"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_compressed_streams_in_one_file(tmp_path: Path, suffix: str) -> None:
    pack = PACK[f".jsonl{suffix}"]
    skippable = b"" if suffix == ".gz" else b"\x53\x2a\x4d\x18\x05\0\0\0hello"
    (tmp_path / f"a{suffix}").write_bytes(pack(b"1\n2") + skippable + pack(b"") + pack(b"3\n4\n"))
    assert Read(FileLog([tmp_path / f"a{suffix}"])).values == [b"1", b"23", b"4"]


def test_zeros_after_gzip_are_padding(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"1\n") + bytes(1000))
    read = Read(FileLog([tmp_path / "a.gz"]))
    assert (read.values, read.error) == ([b"1"], None)


@pytest.mark.parametrize("options", [{"write_checksum": True}, {"write_content_size": False}, {"level": 19}])
def test_zstd_in_its_variants(tmp_path: Path, options: dict[str, int]) -> None:
    text = TEXT * 40
    (tmp_path / "a.zst").write_bytes(zstandard.ZstdCompressor(**options).compress(text))  # type: ignore[arg-type]
    assert Read(FileLog([tmp_path / "a.zst"]), max_records=5000).values == LINES * 40


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_truncated_stream_gives_what_it_has_and_one_clear_error(tmp_path: Path, suffix: str, kept: float) -> None:
    text = os.urandom(300_000).hex().encode()
    text = b"".join(text[i : i + 99] + b"\n" for i in range(0, len(text), 99))
    packed = PACK[f".jsonl{suffix}"](text)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed[: int(len(packed) * kept)])
    log = FileLog([path])
    read = Read(log)
    assert read.error is not None
    assert str(read.error) == f"a{suffix}: the {'gzip' if suffix == '.gz' else 'zstd'} stream ends too early"
    assert read.values == text.split(b"\n")[: len(read.values)], "whole lines only"
    assert read.next_offset == len(read.values) == log.ends()[log.cell]
    assert not log.finished
    with pytest.raises(Refused):
        log.poll(0, 10)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_stream_is_refused(tmp_path: Path, suffix: str) -> None:
    packed = bytearray(PACK[f".jsonl{suffix}"](os.urandom(500_000).hex().encode()))
    packed[len(packed) // 2 : len(packed) // 2 + 200] = bytes(200)
    (tmp_path / f"a{suffix}").write_bytes(packed)
    read = Read(FileLog([tmp_path / f"a{suffix}"]))
    assert read.error is not None
    assert f"a{suffix}: " in str(read.error)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".parquet"])
def test_content_that_is_neither_what_its_name_says_nor_lines_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"\x00\x01" + TEXT)
    read = Read(FileLog([tmp_path / f"a{suffix}"]))
    assert isinstance(read.error, Refused)
    assert f"a{suffix}: " in str(read.error)


@pytest.mark.parametrize("suffix", [".jsonl", ".gz", ".zst", ".parquet", ""])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_the_first_bytes_tell_what_a_file_is_not_its_name(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    lines = b'{"a": 1}\n{"a": 2}\n'
    (tmp_path / f"a{suffix}").write_bytes(pack(lines))
    assert Read(FileLog([tmp_path / f"a{suffix}"])).values == lines.splitlines()


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_without_a_suffix_the_content_tells(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / "log").write_bytes(pack(TEXT))
    assert Read(FileLog([tmp_path / "log"])).values == LINES


def test_calls_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="no such log file: .*gone"):
        FileLog([tmp_path / "gone.jsonl"])
    with pytest.raises(WrongUse, match="is a folder"):
        FileLog([tmp_path])
    with pytest.raises(WrongUse, match="no log file"):
        FileLog([])
    with pytest.raises(WrongUse, match="only once"):
        FileLog(["-", "-"])


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(TEXT * 1000)
    log = FileLog([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    (cell,) = log.poll(0, 1).assigned
    log.seek(cell, None)
    assert log.fraction_read() == 0.0
    fractions = []
    while log.poll(0, 10_000).batches:
        fractions.append(log.fraction_read() or 0.0)
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < 0.2
    assert fractions[-1] == 1.0


def test_standard_input_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"0\n")
    log = FileLog([tmp_path / "a.jsonl", "-"], stdin=io.BytesIO(TEXT))
    assert log.ends() == {log.cell: UNKNOWN_END}
    assert log.fraction_read() is None
    read = Read(log)
    assert read.values == [b"0", *LINES]
    assert read.places[1] == "stdin:1"
    assert log.ends() == {log.cell: 501}
    assert FileLog(["-"], stdin=io.BytesIO(TEXT)).cell != FileLog(["-"], stdin=io.BytesIO(TEXT)).cell
    with pytest.raises(LogTruncated, match="can't be read again"):
        log.seek(log.cell, 3)


def test_compressed_standard_input() -> None:
    packed = io.BufferedReader(io.BytesIO(gzip.compress(TEXT)))
    assert Read(FileLog(["-"], stdin=packed)).values == LINES


def test_a_pipe_gives_what_it_has_and_waits_no_longer_than_told() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin, os.fdopen(writer, "wb", buffering=0) as pipe:
        log = FileLog(["-"], stdin=stdin)
        (cell,) = log.poll(0, 1).assigned
        log.seek(cell, None)
        pipe.write(b"1\n2\n")
        assert list(log.poll(5, 100).batches[0].values) == [b"1", b"2"]
        assert log.poll(0.05, 100) == Poll()
        assert not log.finished
        pipe.write(b"3")
        pipe.close()
        assert list(log.poll(5, 100).batches[0].values) == [b"3"]
        assert log.poll(5, 100) == Poll()
        assert log.finished


def test_a_named_pipe_is_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(TEXT))
    writer.start()
    log = FileLog([path])
    read = Read(log, polls=1)
    while not log.finished:
        read.values += [value for batch in log.poll(1, 1000).batches for value in batch.values]
    writer.join()
    assert read.values == LINES


MEASURE = """
import resource, sys
from consumers.log.files import FileLog
log = FileLog([sys.argv[1]])
(cell,) = log.poll(0, 1).assigned
log.seek(cell, None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sizes = []
while batches := log.poll(0, 1000).batches:
    sizes += [len(value) for value in batches[0].values]
print(*sizes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".gz", ".zst"])
def test_a_line_of_256_mib_is_not_held(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    block = b"x" * (1 << 20)
    if suffix == ".jsonl":
        with path.open("wb") as out:
            out.write(b"1\n")
            out.truncate((256 << 20) + 2)  # a hole: zeros that take no room
            out.seek(0, os.SEEK_END)
            out.write(b"\n22\n")
    else:
        with (
            gzip.open(path, "wb", compresslevel=1)
            if suffix == ".gz"
            else zstandard.ZstdCompressor().stream_writer(path.open("wb"))
        ) as out:
            out.write(b"1\n")
            for _ in range(256):
                out.write(block)
            out.write(b"\n22\n")
    command = [sys.executable, "-c", MEASURE, str(path)]
    *sizes, growth_kib = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert sizes == [1, MAX_RECORD_BYTES + 1, 2]
    assert growth_kib < 64 << 10


def test_parquet_rows_become_native_events(tmp_path: Path) -> None:
    moment = datetime(2026, 3, 2, 9, 0, 0, 123000, tzinfo=UTC).replace(tzinfo=None)  # a column without a zone is UTC
    client = {"timestamp": moment, "client_id": "acct-1", "model_id": "fraud-v3"}
    prediction = {"label": 1, "probabilities": [0.2, 0.8], "text": None}
    rows = [
        {**client, "features": [0.1, 2.0, 3.5], "prediction": prediction, "status": None},
        {**client, "features": [1.0, float("nan"), 2.0], "prediction": prediction, "status": 200},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = Read(FileLog([tmp_path / "a.parquet"]))
    assert json.loads(read.values[0]) == {
        "timestamp": "2026-03-02T09:00:00.123000+00:00",
        "client_id": "acct-1",
        "model_id": "fraud-v3",
        "features": [0.1, 2.0, 3.5],
        "prediction": {"label": 1, "probabilities": [0.2, 0.8]},
    }
    assert b"NaN" in read.values[1], "the decoder must see it, to refuse it by its name"
    assert read.places == ["a.parquet:1", "a.parquet:2"]


def test_parquet_nanoseconds_zones_and_maps(tmp_path: Path) -> None:
    moment = datetime(2026, 3, 2, 9, 0, 0, 5, tzinfo=UTC)
    nanoseconds = pa.array([int(moment.timestamp()) * 10**9 + 5007], pa.int64())
    table = pa.table(
        {
            "timestamp": nanoseconds.cast(pa.timestamp("ns", "Asia/Tokyo")),
            "features": pa.array([[("amount", 1.5), ("age", 30.0)]], pa.map_(pa.string(), pa.float64())),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (value,) = Read(FileLog([tmp_path / "a.parquet"])).values
    event = json.loads(value)
    assert event["features"] == {"amount": 1.5, "age": 30.0}
    assert datetime.fromisoformat(event["timestamp"]) == moment
    assert event["timestamp"].endswith("+00:00")


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": list(range(1000))}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    read = Read(FileLog([tmp_path / "a.parquet"]))
    assert "a.parquet: not a readable Parquet file" in str(read.error)


# --- a file that grows


def followed(path: Path) -> FollowedFile:
    return FollowedFile(path, poll_interval_s=0.01)


def values(poll: Poll) -> list[bytes]:
    return [value for batch in poll.batches for value in batch.values]


def test_a_growing_file_waits_for_the_end_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    log = followed(path)
    assert log.poll(0.05, 10) == Poll(), "it is not there yet"
    with path.open("ab", buffering=0) as out:
        out.write(b'{"a"')
        assert log.poll(0.05, 10) == Poll(), "nothing to name it by yet"
        out.write(b": 1}\n")
        (cell,) = log.poll(1, 10).assigned
        assert log.seek(cell, None) == 0
        poll = log.poll(1, 10)
        assert values(poll) == [b'{"a": 1}']
        assert poll.batches[0].place(0) == "x.jsonl@0"
        out.write(b"2\n3")
        assert values(log.poll(1, 10)) == [b"2"]
        assert log.poll(0.05, 10) == Poll()
        assert log.position(cell) == log.ends()[cell] == 11
        out.write(b"3\n")
        poll = log.poll(1, 10)
        assert (values(poll), poll.batches[0].next_offset) == ([b"33"], 14)
    log.close()
    again = followed(path)
    assert again.poll(1, 10).assigned == [cell], "a restarted process finds its cell"
    again.seek(cell, 9)
    assert values(again.poll(1, 10)) == [b"2", b"33"]
    again.close()


def test_a_rotated_file_is_read_to_its_end_and_the_new_one_is_a_new_cell(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"old 1\n")
    log = followed(path)
    (old,) = log.poll(1, 10).assigned
    log.seek(old, None)
    assert values(log.poll(1, 10)) == [b"old 1"]
    writer = path.open("ab", buffering=0)
    path.rename(tmp_path / "x.jsonl.1")
    writer.write(b"old 2\n")
    assert values(log.poll(1, 10)) == [b"old 2"]
    assert log.poll(0.05, 10) == Poll(), "no successor yet"
    writer.write(b"old 3, without an end")
    writer.close()
    path.write_bytes(b"new 1\n")
    assert values(log.poll(1, 10)) == [b"old 3, without an end"]
    assert log.poll(1, 10).revoked == [old]
    (new,) = log.poll(1, 10).assigned
    assert new != old
    log.seek(new, None)
    assert values(log.poll(1, 10)) == [b"new 1"]
    log.close()


def test_a_file_cut_back_in_place_is_a_new_cell(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"first line\nsecond\n")
    log = followed(path)
    (old,) = log.poll(1, 10).assigned
    log.seek(old, None)
    assert len(values(log.poll(1, 10))) == 2
    path.write_bytes(b"other\n")
    assert log.poll(1, 10).revoked == [old]
    (new,) = log.poll(1, 10).assigned
    log.seek(new, None)
    assert values(log.poll(1, 10)) == [b"other"]
    log.close()


def test_a_long_line_in_a_growing_file_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"x" * (5 << 20))
    log = followed(path)
    (cell,) = log.poll(1, 10).assigned
    log.seek(cell, None)
    assert log.poll(0.1, 10) == Poll()
    with path.open("ab") as out:
        out.write(b"\nnext\n")
    poll = log.poll(1, 10)
    assert [len(value) for value in values(poll)] == [MAX_RECORD_BYTES + 1, 4]
    assert log.position(cell) == path.stat().st_size
    log.close()
