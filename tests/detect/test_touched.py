"""What a turn reads for several decision cells at a time: fewer calls, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import victims

from consumers.detect import loop as detect
from consumers.detect.loop import Runner
from consumers.detect.step import Detect
from consumers.detect.touched import find_touched
from consumers.errors import CorruptState, Fenced
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.records.damaged import UnreadableCells
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, DecisionRow, OutboxAlert, Outcome, Shards, Touched, decision_cell
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.policy import Policy
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]
Written = tuple[dict[ClientKey, DecisionRow], list[OutboxAlert]]


class CallCounter:
    """A store that counts calls, and loses one decision cell when it is about to be written."""

    def __init__(self, store: EmbeddedStore, lost: int = -1) -> None:
        self._store, self._lost, self.calls = store, lost, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        self.calls["shards"] += 1
        return self._store.shards(cell, clients)

    def record(self, token: str, revision: int, outcome: Outcome, *more: Any) -> int:
        self.calls["record"] += 1
        if outcome.cell == self._lost:
            raise Fenced("another process owns this cell")
        return self._store.record(token, revision, outcome, *more)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 honest clients and a thief."""
    path = tmp_path_factory.mktemp("touched") / "log.jsonl"
    attacks = [("noise_uniform", "plain")]
    victims.log_of(path, victims.streams(18, attacks, seed=5, kinds=["regular", "light"], queries=(200, 400)))
    return path


@pytest.fixture
def filled(new_store: NewStore, log: Path, baseline: Baseline, secrets: Secrets) -> Callable[[], EmbeddedStore]:
    def made() -> EmbeddedStore:
        store = new_store()
        reading = ingest.IngestLoop(FileLog([log]), store, Ingest({victims.MODEL: baseline}, secrets))
        ingest.run(reading, lambda: False, until_end=True, poll_timeout_s=0.0)
        return store

    return made


def turned(store: Any, baseline: Baseline, secrets: Secrets, stop: Callable[[], bool] = lambda: False) -> Runner:
    one = Runner(store, Detect({victims.MODEL: baseline}, secrets, Policy(0.01, "block")), now_s=lambda: None)
    one.turn(stop)
    return one


def written(store: EmbeddedStore) -> Written:
    return dict(store.decisions("default")), store.alerts()


def test_a_profile_cell_is_asked_for_shards_once_and_what_is_written_is_the_same(
    filled: Callable[[], EmbeddedStore], baseline: Baseline, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Written] = []
    calls: list[int] = []
    for at_once in (256, 4, 1):
        monkeypatch.setattr(detect, "AT_ONCE", at_once)
        store = filled()
        counting = CallCounter(store)
        turned(counting, baseline, secrets)
        found.append(written(store))
        calls.append(counting.calls["shards"])
    cells = {decision_cell(key, DECISION_CELLS) for key in found[0][0]}
    assert calls[0] < calls[1] < calls[2], "a cell at a time is the control"
    assert calls[2] - calls[0] == len(cells) - 1
    assert len(found[0][0]) == 19
    assert found[0][1]
    assert found[0] == found[1] == found[2]


def test_a_decision_cell_that_is_lost_loses_its_own_rows_only(
    filled: Callable[[], EmbeddedStore], baseline: Baseline, secrets: Secrets
) -> None:
    whole, store = filled(), filled()
    turned(whole, baseline, secrets)
    rows, _ = written(whole)
    cells = [decision_cell(key, store.decision_cells) for key in rows]
    one = turned(CallCounter(store, lost=cells[0]), baseline, secrets)
    assert cells[0] not in one.cells.held
    kept = {key: row for (key, row), cell in zip(rows.items(), cells, strict=True) if cell != cells[0]}
    assert written(store)[0] == kept != rows


class Damaged:
    """A store one of whose reads of a profile cell fails while `broken` names it. rebuilt: another generation than the cursors'."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store, self.broken, self.asked, self.rebuilt = store, "", 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        if self.broken == "shards":
            raise CorruptState("profile cell: damaged")
        return self._store.shards(cell, clients)

    def touched(self, cell: str, cursors: Any, limit: int) -> dict[int, Touched]:
        again = set(cursors.values()) == {-1} and len(cursors) == 1
        if self.broken == "touched" or (self.broken == "touched again" and again):
            raise CorruptState("profile cell: damaged")
        found = self._store.touched(cell, cursors, limit)
        return {c: replace(one, generation="new") for c, one in found.items()} if self.rebuilt else found


@pytest.mark.parametrize("broken", ["shards", "touched"])
def test_a_cell_that_is_repaired_and_breaks_again_is_said_again(
    filled: Callable[[], EmbeddedStore],
    baseline: Baseline,
    secrets: Secrets,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    store = Damaged(filled())
    one = Runner(store, Detect({victims.MODEL: baseline}, secrets), now_s=lambda: None)
    said = []
    for state in (broken, broken, "", broken, broken):
        store.broken = state
        for held in one.cells.held.values():
            held.cursors.clear()  # so that all is read in every turn
        one.turn()
        said.append(sum(r.getMessage() == "profile cell cannot be read" for r in caplog.records))
    assert said == [1, 1, 1, 2, 2]


def test_a_rebuilt_cell_that_cannot_be_read_is_left_out(
    filled: Callable[[], EmbeddedStore], baseline: Baseline, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    store = Damaged(filled())
    one = turned(store, baseline, secrets)
    rows = written(store._store)
    store.rebuilt, store.broken = True, "touched again"
    assert one.turn() == 0
    assert "profile cell cannot be read" in caplog.messages
    assert written(store._store) == rows
    store.broken = ""
    pending = find_touched(store, one.cells.held, store.cells(), UnreadableCells())
    assert sum(len(clients) for cells in pending.values() for _, clients in cells.values()) == len(rows[0])


def test_a_stop_is_heard_between_two_cells(
    filled: Callable[[], EmbeddedStore], baseline: Baseline, secrets: Secrets
) -> None:
    counting = CallCounter(filled())
    turned(counting, baseline, secrets, stop=lambda: counting.calls["record"] >= 3)
    assert counting.calls["record"] == 3
