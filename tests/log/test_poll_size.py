"""How large polls are: in records, and in bytes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from consumers.log import poll_size
from consumers.log.files import FileLog
from consumers.log.payloads import Payloads
from consumers.log.poll_size import FIRST, POLL_BYTES, PollSize


def test_a_poll_holds_what_was_asked_for_or_what_fits() -> None:
    size = PollSize()
    assert (size.at_most(100), size.at_most(1_000_000)) == (100, FIRST)
    size.note([Payloads.of([b"x" * 1000] * 3), Payloads.of([b"y" * 3000])])
    assert size.at_most(10**9) == POLL_BYTES * 4 // 6000
    size.note([])
    assert size.at_most(10**9) == POLL_BYTES * 4 // 6000, "an empty poll says nothing about sizes"
    size.note([Payloads.of([b""])])
    assert size.at_most(10**9) == POLL_BYTES, "and an empty record divides by nothing"
    size.note([Payloads.of([b"z" * (POLL_BYTES + 1)])])
    assert size.at_most(10**9) == 1, "a record that fits nowhere is read alone"


def test_large_lines_make_small_polls_and_none_is_lost(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("consumers.log.files.POLL_BYTES", 10_000)
    monkeypatch.setattr("consumers.log.lines.BLOCK_BYTES", 4_000)
    lines = [b"%04d" % i + b"x" * 996 for i in range(100)]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    log = FileLog([tmp_path / "log.jsonl"])
    (cell,) = log.poll(0, 1).assigned
    log.seek(cell, None)
    polls = []
    while not log.finished:
        polls += [list(batch.values) for batch in log.poll(0, 10**6).batches]
    assert [value for poll in polls for value in poll] == lines
    assert max(map(len, polls)) <= 14 < poll_size.FIRST, "a poll exceeds its bytes by less than a block"


@pytest.mark.parametrize("between", [b"\n", b" ", b"\r\n"])
def test_white_space_between_lines_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: bytes) -> None:
    monkeypatch.setattr("consumers.log.lines.BLOCK_BYTES", 10_000)
    gap = between * (10_000 // len(between)) + b"\n"
    (tmp_path / "log.jsonl").write_bytes(b"".join(b'{"n": %d}\n' % i + gap for i in range(400)) + gap * 100)
    log = FileLog([tmp_path / "log.jsonl"])
    (cell,) = log.poll(0, 1).assigned
    log.seek(cell, None)
    tracemalloc.start()
    try:
        (batch,) = log.poll(0, 10**6).batches
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert list(batch.values) == [b'{"n": %d}' % i for i in range(400)]
    assert batch.next_offset == (tmp_path / "log.jsonl").read_bytes().count(b"\n")
    assert batch.place(399).endswith(f":{int(batch.offsets[399]) + 1}")
    assert peak < 1_500_000, "of 5 MB"
