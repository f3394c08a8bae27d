"""The registry: chained, bounded, shared by processes, and silent about inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.marked_model import CLIENT, MODEL, OTHER

from consumers.errors import CorruptState, Refused
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import Flip
from consumers.watermark.registry import REPEATS_EVERY_S, Registry, Sealed, forget, lines_of, unsealed

KEY = WatermarkKey(bytes(range(32)))
ROOT = Path(__file__).resolve().parents[2]


def sealed(n: int) -> Sealed:
    return Sealed([n, 0.5], [Flip(1, 1, 0)])


def filled(path: Path, n: int = 6) -> Registry:
    registry = Registry(path, KEY)
    for i in range(n):
        assert registry.register(CLIENT if i % 3 else OTHER, MODEL, f"{i:032x}", sealed(i), treated=i % 2 == 0)
    return registry


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    filled(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    lines = list(lines_of(path))
    assert [line.n for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line.kind for line in lines] == ["canary", "control"] * 3
    assert [unsealed(line, KEY) for line in lines] == [sealed(n) for n in range(6)]
    assert unsealed(lines[0], WatermarkKey.draw()) is None


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    filled(path, 2).close()
    content = path.read_bytes()
    for i in range(len(content)):
        for flip in (0x01, 0x20):
            spoilt = bytearray(content)
            spoilt[i] ^= flip
            path.write_bytes(spoilt)
            try:
                lines = list(lines_of(path))
                assert len(lines) < 2, f"byte {i}: a newline at the very end is a line that was cut off"
                assert i == len(content) - 1
            except CorruptState:
                continue


def test_a_line_that_is_taken_out_or_moved_is_found(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    filled(path).close()
    lines = path.read_bytes().splitlines(keepends=True)
    for spoilt in (lines[1:], lines[:2] + lines[3:], [lines[1], lines[0], *lines[2:]]):
        path.write_bytes(b"".join(spoilt))
        with pytest.raises(CorruptState):
            list(lines_of(path))


def test_a_line_that_a_crash_cut_off_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    filled(path, 3).close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    registry = Registry(path, KEY)
    registry.register(CLIENT, MODEL, "a" * 32, sealed(9), treated=True)
    registry.close()
    assert [line.n for line in lines_of(path)] == [1, 2, 3, 4]


def test_what_is_no_registry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    path.write_text("hello\n")
    with pytest.raises(Refused, match="line 1"):
        Registry(path, KEY)
    with pytest.raises(Refused):
        Registry(tmp_path, KEY)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Refused):
        Registry(tmp_path / "fifo", KEY)


def test_repeated_answers_are_counted_in_batches(tmp_path: Path) -> None:
    path, now = tmp_path / "canaries.jsonl", [1000.0]
    registry = Registry(path, KEY, clock=lambda: now[0])
    for _ in range(500):
        registry.register(CLIENT, MODEL, "a" * 32, sealed(1), treated=True)
    registry.register(CLIENT, MODEL, "b" * 32, sealed(2), treated=False)
    for _ in range(500):
        registry.register(CLIENT, MODEL, "b" * 32, sealed(2), treated=False)
    assert [(line.kind, line.count) for line in lines_of(path)] == [("canary", 0), ("again", 499), ("control", 0)]
    for step in range(20):
        now[0] += REPEATS_EVERY_S / 10
        registry.register(CLIENT, MODEL, "a" * 32, sealed(1), treated=True)
        assert step < 12 or len(list(lines_of(path))) >= 4
    registry.close()
    assert sum(line.count for line in lines_of(path)) == 499 + 20


def test_the_bounds_hold_and_what_was_marked_stays_so(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "canaries.jsonl", KEY, most=3, most_of_client=2)
    assert registry.register(CLIENT, MODEL, "a" * 32, sealed(1), treated=True)
    assert registry.register(CLIENT, MODEL, "b" * 32, sealed(2), treated=True)
    assert not registry.register(CLIENT, MODEL, "c" * 32, sealed(3), treated=True)
    assert registry.register(CLIENT, MODEL, "a" * 32, sealed(1), treated=True)
    assert registry.register(OTHER, MODEL, "c" * 32, sealed(3), treated=True)
    assert not registry.register(OTHER, MODEL, "d" * 32, sealed(4), treated=True)
    assert registry.register(OTHER, MODEL, "a" * 32, sealed(1), treated=True), "another client was given this mark"
    long = Sealed(["x" * 100_000], [Flip(1, 1, 0)])
    assert not Registry(tmp_path / "other.jsonl", KEY).register(CLIENT, MODEL, "e" * 32, long, treated=True)


WRITER = """
import sys
from pathlib import Path
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import Flip
from consumers.watermark.registry import Registry, Sealed
registry = Registry(Path(sys.argv[1]), WatermarkKey(bytes(range(32))))
for i in range(200):
    registry.register(sys.argv[2] * 32, "m", sys.argv[2] + f"{i:031x}", Sealed([i], [Flip(1, 1, 0)]), treated=True)
registry.close()
"""


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), who], cwd=ROOT) for who in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert [line.n for line in lines_of(path)] == list(range(1, 601))


def test_a_forgotten_client_leaves_a_chain_that_a_running_writer_continues(tmp_path: Path) -> None:
    path = tmp_path / "canaries.jsonl"
    running = filled(path)
    size, kept = path.stat().st_size, [line.sealed for line in lines_of(path) if line.client == CLIENT]
    assert forget(path, CLIENT, {"another model"}) == 0
    assert forget(path, CLIENT) == 4
    assert path.stat().st_size == size
    assert not [sealed for sealed in kept if sealed.encode() in path.read_bytes()]
    lines = list(lines_of(path))
    assert [unsealed(line, KEY) is None for line in lines] == [line.client == CLIENT for line in lines]
    running.register(OTHER, MODEL, "f" * 32, sealed(1), treated=True)
    running.close()
    registry = Registry(path, KEY)
    assert registry.register(CLIENT, MODEL, f"{4:032x}", sealed(4), treated=True), "its marked answers stay marked"
    registry.close()
    assert [line.kind for line in lines_of(path)][6:] == ["canary", "again"]
    assert forget(path, CLIENT) == 0
