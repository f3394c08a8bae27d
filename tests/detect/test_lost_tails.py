"""Workers whose store lost a tail while they were idle: they notice, and decide nothing on what is half back."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims

from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.detect.touched import CellWork
from consumers.ingest import loop as ingest
from consumers.ingest.health import KEEPALIVE_S, Runtime
from consumers.ingest.recovery import Recovery
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, Shards, decision_cell
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.policy import Policy
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]
CLIENTS = [f"acct-{i}" for i in range(5)]


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    rows = victims.items(300, np.random.default_rng(3))
    return [
        victims.line(row, client_id=CLIENTS[i % 5], timestamp=f"2026-03-10T{i // 60:02d}:{i % 60:02d}:00Z")
        for i, row in enumerate(rows)
    ]


@pytest.fixture
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({victims.MODEL: baseline}, secrets)


def keys(secrets: Secrets) -> list[ClientKey]:
    return [ClientKey("default", victims.MODEL, secrets.client_hash("default", client)) for client in CLIENTS]


def contents(store: EmbeddedStore, secrets: Secrets) -> list[Mapping[ClientKey, Mapping[str, bytes]]]:
    return [store.shards(cell, keys(secrets)).fields for cell in store.cells()]


@pytest.mark.parametrize("asked", [True, False])
def test_an_idle_cell_reads_again_what_its_store_lost(
    asked: bool,
    tmp_path: Path,
    new_store: NewStore,
    reading: Ingest,
    lines: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`asked` False is the control: a cell that nobody asks about stays as short as it became."""
    if not asked:
        monkeypatch.setattr(Recovery, "check", lambda self, cell: None)
    store, now = new_store(), [0.0]
    log = FileLog([victims.write_lines(tmp_path / "log.jsonl", lines)])
    one = ingest.IngestLoop(
        log,
        store,
        reading,
        runtime=Runtime(clock=lambda: now[0], sleep=lambda s: None, rng=random.Random(0)),
        max_poll_records=100,
    )
    kept = sqlite3.connect(":memory:")
    while not any(cell.offset == 300 for cell in one.ownership.cells.values()):
        one.turn(0.0)
        if any(cell.offset == 200 for cell in one.ownership.cells.values()):
            with contextlib.closing(sqlite3.connect(store.path)) as db:
                db.backup(kept)
    before = contents(store, reading.secrets)
    with contextlib.closing(sqlite3.connect(store.path)) as db:
        kept.backup(db)
    assert contents(store, reading.secrets) != before
    for _ in range(3):
        now[0] += KEEPALIVE_S / 3 + 0.1
        one.turn(0.0)
    for _ in range(5):
        one.turn(0.0)
    assert (contents(store, reading.secrets) == before) is asked


def read(path: Path, lines: list[bytes], store: EmbeddedStore, reading: Ingest) -> str:
    """The cell of a log that was written and read to its end."""
    log = FileLog([victims.write_lines(path, lines)])
    ingest.run(ingest.IngestLoop(log, store, reading), lambda: False, until_end=True, poll_timeout_s=0.0)
    return log.cell


class Behind:
    """A store with one cell that lost everything and is being read again."""

    def __init__(self, store: EmbeddedStore, cell: str) -> None:
        self._store, self._cell, self.back = store, cell, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        found = self._store.shards(cell, clients)
        return found if self.back or cell != self._cell else dataclasses.replace(found, offset=1, fields={})


@pytest.mark.parametrize("careful", [True, False])
def test_a_decision_that_rests_on_a_rolled_back_cell_waits_for_it(
    careful: bool,
    tmp_path: Path,
    new_store: NewStore,
    reading: Ingest,
    baseline: Baseline,
    lines: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the other cell was touched. `careful` False is the control: cursors are forgotten, the row forgets the lost queries."""
    secrets, store = reading.secrets, new_store()

    lost = read(tmp_path / "a.jsonl", lines[:150], store, reading)
    judging = Detect({victims.MODEL: baseline}, secrets, Policy(0.01, "observe"))
    behind = Behind(store, lost)
    behind.back = True
    one = detect.Runner(behind, judging, [], now_s=lambda: None, sleep=lambda s: None)
    detect.run(one, lambda: False, until_idle=True)
    assert queries(store, secrets) == dict.fromkeys(CLIENTS, 30)
    behind.back = False
    if not careful:
        whole = CellWork.put_together

        def forgetful(self: CellWork, answers: Mapping[str, Shards | None], secrets: Secrets) -> bool:
            held, self.held = self.held, dataclasses.replace(self.held, cursors={})
            try:
                return whole(self, answers, secrets)
            finally:
                self.held = held

        monkeypatch.setattr(CellWork, "put_together", forgetful)
    other = read(tmp_path / "b.jsonl", lines[150:], store, reading)
    for _ in range(4):
        one.turn()
    told = queries(store, secrets)
    assert told == dict.fromkeys(CLIENTS, 30)
    assert (cursor_of(one, other) == 0) is careful, "a decision on half of the profiles was made, or was not"
    behind.back = True
    for _ in range(4):
        one.turn()
    assert (queries(store, secrets) == dict.fromkeys(CLIENTS, 60)) is careful, "or it would never be right again"


def test_a_client_without_a_row_waits_for_a_rolled_back_cell_too(
    tmp_path: Path, new_store: NewStore, reading: Ingest, baseline: Baseline, lines: list[bytes]
) -> None:
    """Its row was erased: nothing says that the cell that is behind holds a part of it, and what comes back is no news to the cursor."""
    secrets, store = reading.secrets, new_store()

    lost = read(tmp_path / "a.jsonl", lines[:150], store, reading)
    behind = Behind(store, lost)
    behind.back = True
    judging = Detect({victims.MODEL: baseline}, secrets, Policy(0.01, "observe"))
    one = detect.Runner(behind, judging, [], now_s=lambda: None, sleep=lambda s: None)
    while one.turn():
        pass
    for v in range(DECISION_CELLS):
        store.erase_decisions(v, [key for key in keys(secrets) if decision_cell(key, DECISION_CELLS) == v], [])
    behind.back = False
    read(tmp_path / "b.jsonl", lines[150:], store, reading)
    for _ in range(4):
        one.turn()
    assert queries(store, secrets) == {}
    behind.back = True
    for _ in range(4):
        one.turn()
    assert queries(store, secrets) == dict.fromkeys(CLIENTS, 60)


def cursor_of(one: detect.Runner, cell: str) -> int:
    """How far the detector has come in a profile cell."""
    return max((held.cursors[cell].offset for held in one.cells.held.values() if cell in held.cursors), default=0)


def queries(store: EmbeddedStore, secrets: Secrets) -> dict[str, int]:
    from consumers.records.decision import stored_decision

    rows = (stored_decision(row, secrets, key.tenant) for key, row in store.decisions("default"))
    return {row.client_id: row.assessment.queries for row in rows}
