"""What a process knows of the cells that it holds, after a claim, a commit and a refusal: each step by itself."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims

from consumers.errors import CorruptState, Fenced, LogTruncated, Rewound, Unavailable
from consumers.ingest.cell import Cell
from consumers.ingest.health import Runtime
from consumers.ingest.loop import IngestLoop
from consumers.ingest.recovery import RECHECK_S
from consumers.ingest.step import Ingest
from consumers.log import Records
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store import Checkpoint
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline

NewStore = Callable[[], EmbeddedStore]


class Told:
    """A store that raises what a test sets for a call, every time, and remembers the calls' arguments."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self.raises: dict[str, Exception] = {}
        self.asked: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        there = getattr(self._store, name)

        def call(*arguments: Any) -> Any:
            self.asked.append((name, arguments))
            if name in self.raises:
                raise self.raises[name]
            return there(*arguments)

        return call


class World:
    """A loop over a log of some queries, of which the first six records are no JSON."""

    def __init__(self, folder: Path, store: EmbeddedStore, reading: Ingest, **more: Any) -> None:
        rows = victims.items(40, np.random.default_rng(3))
        lines = [b"no JSON"] * 6 + [
            victims.line(row, client_id=f"acct-{i % 5}", timestamp=f"2026-03-10T00:{i:02d}:00Z")
            for i, row in enumerate(rows)
        ]
        self.store, self.now_s = Told(store), 100.0
        self.committed: list[Checkpoint] = []
        self.loop = IngestLoop(
            FileLog([victims.write_lines(folder / "log.jsonl", lines)]), self.store, reading, max_poll_records=20,
            runtime=Runtime(sleep=lambda s: None, rng=random.Random(0), clock=lambda: self.now_s),
            on_commit=lambda checkpoint, decoded: self.committed.append(checkpoint), **more,
        )  # fmt: skip
        self.ownership, self.recovery = self.loop.ownership, self.loop.recovery

    def held(self) -> Any:
        """The one cell, claimed, after its first commit."""
        for _ in range(10):
            self.loop.turn(0.0)
            if self.ownership.cells and self.committed:
                break
        (cell,) = self.ownership.cells.values()
        return cell


@pytest.fixture
def world(tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets) -> World:
    return World(tmp_path, new_store(), Ingest({victims.MODEL: baseline}, secrets))


def test_a_commit_says_what_was_written_and_forgets_what_was_proved(world: World) -> None:
    cell = world.held()
    assert world.committed[0].cell == cell.name
    assert world.committed[0].next_offset == 20
    assert world.ownership.crashes.proof(cell.name) == "none", "nobody has tried what comes next"


@pytest.mark.parametrize(
    ("call", "error", "proof"),
    [
        ("commit", Unavailable("away"), "folded"),
        ("commit", Fenced("another"), "folded"),
        ("commit", Rewound("elsewhere", 3), "alive"),
        ("load", Unavailable("away"), "alive"),
    ],
)
def test_only_a_fold_that_was_refused_proves_that_the_records_end_no_process(
    world: World, call: str, error: Exception, proof: str
) -> None:
    world.store.raises[call] = error
    for _ in range(3):
        world.loop.turn(0.0)
    (name,) = world.ownership.crashes.proofs
    assert world.ownership.crashes.proof(name) == proof
    assert not world.committed
    del world.store.raises[call]
    world.now_s += 100
    for _ in range(5):
        world.now_s += 100
        world.loop.turn(0.0)
    assert [arguments[2] for name, arguments in world.store.asked if name == "claim"][1] == proof, (
        "the next claim says it"
    )
    assert world.committed[-1].next_offset == 46


def test_a_commit_that_was_refused_is_told_as_one(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets
) -> None:
    polled: list[Records] = []

    def parts(cell: Cell, records: Records) -> tuple[Records, ...]:
        polled.append(records)
        return (records,)

    world = World(tmp_path, new_store(), Ingest({victims.MODEL: baseline}, secrets), parts=parts)
    cell = world.held()
    assert world.loop.committer.commit(cell, polled[0]), (
        "the control: there is nothing new in it, and the store takes it"
    )
    world.store.raises["commit"] = Unavailable("away")
    assert not world.loop.committer.commit(cell, polled[0])
    assert cell.name in world.ownership.waiting


@pytest.mark.parametrize(("room", "kept"), [(2, 2), (6, 6), (9, 6)])
def test_dead_letters_beyond_the_room_are_dropped_from_the_end_and_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, room: int, kept: int
) -> None:
    monkeypatch.setattr(type(world.loop.shipper), "room", lambda self, cell: room)
    world.held()
    assert [letter.offset for letter in world.committed[0].dead] == list(range(kept))
    assert (world.loop.reporter.metrics.value("querywarden_letters_dropped_total") or 0) == 6 - kept


def test_a_claim_without_an_answer_is_remembered_for_its_cell(world: World) -> None:
    world.store.raises["claim"] = Unavailable("away")
    world.loop.turn(0.0)
    assert list(world.ownership.crashes.proofs.values()) == ["alive"]
    assert set(world.ownership.crashes.proofs) == world.ownership.waiting
    assert None not in world.ownership.crashes.proofs


def test_a_cell_at_which_processes_ended_is_read_with_caution(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    store, reading = new_store(), Ingest({victims.MODEL: baseline}, secrets)
    name = ""
    for number in range(3):
        one = World(tmp_path, store, reading, find_poison=lambda n, attempt: [0])
        one.store.raises["commit"] = Unavailable("this process ends here")
        one.ownership.follow(one.loop.log.poll(0.0, 20))
        (name,) = one.ownership.waiting
        with caplog.at_level(logging.INFO, "querywarden.ingest"):
            assert one.ownership.claim(name)
        cell = one.ownership.cells[name]
        assert (cell.crashes, cell.cautious) == (number, number >= 1)
    warned = [record for record in caplog.records if record.message == "records are tried before they are folded"]
    assert [vars(record)["cell"] for record in warned] == [name, name]
    claimed = [record for record in caplog.records if record.message == "cell claimed"]
    assert [(vars(record)["cell"], vars(record)["offset"]) for record in claimed] == [(name, 0)] * 3


def test_a_stopped_cell_is_in_no_other_list_and_keeps_the_generation_that_it_had(world: World) -> None:
    cell = world.held()
    world.ownership.unconfirmed[cell.name] = 1.0
    cell.generation = "as it was claimed"
    world.ownership.stop(cell.name, LogTruncated("shorter than the store says"))
    assert not world.ownership.cells
    assert not world.ownership.unconfirmed
    assert cell.name not in world.ownership.waiting
    assert world.ownership.stops.found[cell.name].generation == "as it was claimed"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(Fenced("another"), "fenced"), (Rewound("elsewhere", 3), "rewound"), (Unavailable("away"), "unavailable")],
)
def test_an_idle_cell_that_the_store_knows_otherwise_is_claimed_again(
    world: World, error: Exception, outcome: str
) -> None:
    cell = world.held()
    world.store.raises["load"] = error
    world.recovery.check(cell)
    assert cell.name not in world.ownership.cells
    assert cell.name in world.ownership.waiting
    assert (world.ownership.health.error is error) == (outcome == "unavailable")


def test_an_idle_cell_in_step_is_noted_and_a_corrupt_one_stops(world: World) -> None:
    cell = world.held()
    world.now_s += 50
    world.recovery.check(cell)
    assert cell.checked_s == world.now_s
    assert world.ownership.health.answered_s == world.now_s
    world.store.raises["load"] = CorruptState("of another kind")
    world.recovery.check(cell)
    assert world.ownership.stops.found[cell.name].reason == "cell_corrupt"


def test_a_cell_that_the_group_denies_waits_until_it_is_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cell, asked, ours = world.held(), list[str](), [False]

    def owns(name: str) -> bool:
        asked.append(name)
        return ours[0]

    monkeypatch.setattr(world.loop.log, "owns", owns)
    world.recovery.refused(cell, Fenced("another"))
    assert cell.name not in world.ownership.waiting, "not claimed before the group says so"
    assert world.ownership.unconfirmed == {cell.name: world.now_s}
    world.recovery.recheck_ownership()
    assert asked == [cell.name], "not before its time"
    for answer, waiting in ((False, set()), (True, {cell.name})):
        ours[0] = answer
        world.now_s += RECHECK_S
        world.recovery.recheck_ownership()
        assert world.ownership.waiting == waiting
    assert asked == [cell.name] * 3
    assert not world.ownership.unconfirmed
    with caplog.at_level(logging.WARNING, "querywarden.ingest"):
        world.recovery.refused(cell, Rewound("elsewhere", 3))
    (told,) = (record for record in caplog.records if record.message == "store is elsewhere")
    assert (vars(told)["cell"], vars(told)["offset"]) == (cell.name, 3)
