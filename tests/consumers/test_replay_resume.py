"""`replay --store`: a log that grew is resumed where it was, one that changed is refused, and no query is counted twice."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support import victims

from consumers import replay as replaying
from consumers.detect.step import Detect
from consumers.errors import Refused
from consumers.ingest.step import Ingest
from consumers.log import prefix
from consumers.log.files import FileLog
from consumers.replay import Replayed
from consumers.secrets import Secrets
from consumers.store import Checkpoint
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.policy import Policy

Replay = Callable[..., Replayed]
Write = Callable[[list[bytes]], bytes]


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    rows = victims.items(900, np.random.default_rng(11))
    return [
        victims.line(row, client_id=f"acct-{i % 9}", timestamp=f"2026-03-10T{i // 60:02d}:{i % 60:02d}:00Z") + b"\n"
        for i, row in enumerate(rows)
    ]


@pytest.fixture
def replay(baseline: Baseline, secrets: Secrets, tmp_path: Path) -> Replay:
    """Replay files into the store of this test."""

    def run(*paths: Path, wrapped: Callable[[EmbeddedStore], Any] = lambda store: store, poll: int = 90) -> Replayed:
        store = EmbeddedStore(tmp_path / "kept.sqlite")
        store.prepare(secrets.key_id)
        log = FileLog(list(paths), resumable=True)
        models = {victims.MODEL: baseline}
        judging = Detect(models, secrets, Policy(0.01, "observe"))
        try:
            return replaying.replay(log, wrapped(store), Ingest(models, secrets), judging, max_poll_records=poll)
        finally:
            log.close()
            store.close()

    return run


def counted(found: Replayed) -> int:
    """Queries of all clients in the store."""
    return sum(row.assessment.queries for row in found.scores.values())


def parquet(path: Path, lines: list[bytes]) -> None:
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), path, row_group_size=64)


PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def packed(suffix: str, path: Path, lines: list[bytes]) -> None:
    content = b"".join(lines)
    if suffix == ".parquet":
        parquet(path, lines)
    else:
        path.write_bytes(PACKS[suffix](content))


@pytest.mark.parametrize("suffix", [".jsonl", ".gz", ".zst", ".parquet"])
def test_a_log_that_grew_counts_each_query_once(
    suffix: str, replay: Replay, lines: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"log{suffix}"
    for count, before in ((500, None), (700, 500), (700, 700), (900, 700)):
        packed(suffix, path, lines[:count])
        found = replay(path)
        assert (counted(found), found.counters["queries"], found.resumed) == (count, count, before)
    moved = tmp_path / f"copied-elsewhere{suffix}"
    path.rename(moved)
    assert counted(replay(moved)) == 900


def test_a_gzip_log_grows_by_members_too(replay: Replay, lines: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    for at in (0, 300, 600):
        with path.open("ab") as out:
            out.write(gzip.compress(b"".join(lines[at : at + 300])))
        assert counted(replay(path)) == at + 300


def test_files_that_are_added_at_the_end_are_growth(replay: Replay, lines: list[bytes], tmp_path: Path) -> None:
    parts = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for i, part in enumerate(parts):
        part.write_bytes(b"".join(lines[300 * i : 300 * (i + 1)]))
        assert counted(replay(*parts[: i + 1])) == 300 * (i + 1)
    with pytest.raises(Refused):
        replay(parts[1])


def test_another_log_is_counted_beside_it(replay: Replay, lines: list[bytes], tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    for path, some in ((one, lines[:100]), (two, lines[500:600]), (one, lines[:200]), (two, lines[500:700])):
        path.write_bytes(b"".join(some))
        replay(path)
    assert counted(replay(one)) == 400


def changed_in(lines: list[bytes], i: int) -> list[bytes]:
    return [*lines[:i], lines[i].replace(b'"acct-', b'"ACCT-'), *lines[i + 1 :]]


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "the first line": lambda lines: changed_in(lines, 0),
    "a line in the middle": lambda lines: changed_in(lines, 250),
    "the last line that was read": lambda lines: changed_in(lines, 499),
    "everything": lambda lines: [changed_in(lines, i)[i] for i in range(len(lines))],
    "a line fewer": lambda lines: lines[:499],
    "the head was cut": lambda lines: lines[100:],
    "a line before": lambda lines: [changed_in(lines, 7)[7], *lines],
}


UNTOLD = ("everything", "the head was cut", "a line before")
"""Under another name nothing tells such a log from another one."""


@pytest.mark.parametrize(
    ("what", "renamed"),
    [*((what, False) for what in CHANGES), *((what, True) for what in CHANGES if what not in UNTOLD)],
)
def test_a_log_whose_beginning_changed_is_refused_whole(
    what: str, renamed: bool, replay: Replay, lines: list[bytes], tmp_path: Path
) -> None:
    path, again = tmp_path / "log.jsonl", tmp_path / ("other.jsonl" if renamed else "log.jsonl")
    path.write_bytes(b"".join(lines[:500]))
    replay(path)
    again.write_bytes(b"".join(CHANGES[what](lines[:500])))
    with pytest.raises(Refused, match="does not begin with the 500 lines") as refused:
        replay(again)
    assert "\n" not in str(refused.value)
    path.write_bytes(b"".join(lines[:500]))
    assert counted(replay(path)) == 500


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_last_line_that_is_not_complete_waits_for_the_next_replay(
    cut: int, replay: Replay, lines: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    whole = b"".join(lines[:301])
    path.write_bytes(whole[:-cut])
    found = replay(path)
    assert (counted(found), found.counters["dead"]) == (301 if cut == 1 else 300, 0), "without its newline it is whole"
    path.write_bytes(whole + lines[301])
    found = replay(path)
    assert (counted(found), found.counters["dead"]) == (302, 0)


class Killed(BaseException):
    pass


class Killing:
    """A store at whose n-th commit the process ends, before or after it took effect."""

    def __init__(self, store: EmbeddedStore, at: int, after: bool) -> None:
        self._store, self._left, self._after = store, at, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        self._left -= 1
        if self._left or self._after:
            self._store.commit(token, checkpoint)
        if not self._left:
            raise Killed


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 3])
def test_the_fingerprint_of_a_log_is_stored_together_with_its_offset(
    at: int, after: bool, replay: Replay, lines: list[bytes], tmp_path: Path
) -> None:
    path, store = tmp_path / "log.jsonl", tmp_path / "kept.sqlite"
    path.write_bytes(b"".join(lines[:500]))
    for _ in range(2):
        with pytest.raises(Killed):
            replay(path, wrapped=lambda store: Killing(store, at, after), poll=70)
    path.write_bytes(b"".join(lines[:700]))
    assert counted(replay(path, poll=41)) == 700
    kept = marks(store)
    assert len(kept) <= 12, "few numbers, however long the log"
    store.unlink()
    replay(path)
    assert marks(store) == kept, "the same as of a replay that nothing disturbed"


def marks(path: Path) -> dict[str, int]:
    store = EmbeddedStore(path)
    found = [store.claim(cell, "t" * 32).counters for cell in store.cells()]
    store.close()
    return {name: value for counters in found for name, value in counters.items() if prefix.carried(name)}
