"""Records that are handed in to join cells: what holds them up, what begins anew, what a cell is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from consumers.errors import CorruptState, Fenced, Unavailable
from consumers.log import Poll, Records
from consumers.log.halves import JOINED, NOTHING_WAITS, ROW_BITS, WaitingHalves
from consumers.log.mappings import handed
from consumers.log.mappings.handed import HandedLog, Meeting
from consumers.log.mappings.mapped import MappedLog
from consumers.log.mappings.mapping import mapping_of
from consumers.log.mappings.records import Translator, cell_of
from consumers.store import Checkpoint, HandIn, Taken
from consumers.store.embedded import EmbeddedStore

HALVES = mapping_of(
    {
        "name": "halves",
        "join": {
            "id": ["id"], "through": "store", "request": {"have": ["who"]}, "response": {"have": ["answer"]}, "most": 10,
        },
        "input": {"paths": ["row"], "form": "row"},
    },
    "halves",
)  # fmt: skip


class ListLog:
    """A log of partitions in memory, all of them ours."""

    def __init__(self, partitions: dict[str, list[bytes]]) -> None:
        self.partitions = partitions
        self.positions: dict[str, int] = {}
        self.assigned: list[str] = list(partitions)
        self.polled = 0

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        found, self.assigned = Poll(assigned=self.assigned), []
        for cell, at in self.positions.items():
            values = self.partitions[cell][at : at + max_records]
            if values:
                self.polled += len(values)
                self.positions[cell] = at + len(values)
                found.batches.append(Records(cell, values, np.arange(at, at + len(values)), at + len(values)))
        return found

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        self.positions[cell] = offset or 0
        return offset or 0

    def pause(self, cell: str) -> None:
        self.positions.pop(cell, None)

    def owns(self, cell: str) -> bool:
        return True

    def ends(self) -> dict[str, int]:
        return {cell: len(values) for cell, values in self.partitions.items()} | {"of another topic:0": 5}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class TimedLog(ListLog):
    """A record a minute in each partition, the first of which is read first, as a client library may do it."""

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        found = super().poll(timeout_s, max_records)
        for records in found.batches[1:]:
            self.positions[records.cell] = int(records.offsets[0])
        found.batches = [
            replace(records, broker_ms=records.offsets * 60_000 + 1_000_000) for records in found.batches[:1]
        ]
        return found


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path / "store.sqlite")
    yield opened
    opened.close()


def half(number: int) -> bytes:
    return json.dumps({"id": f"r{number}", "who": f"c{number}", "row": [1]}).encode()


def made(log: ListLog, store: Any, clock: Clock, cells: int = 1, unseal: Any = bytes) -> HandedLog:
    assert HALVES.join is not None
    mapping = msgspec.structs.replace(HALVES, join=msgspec.structs.replace(HALVES.join, cells=cells))
    return HandedLog(log, Meeting(store, bytes, unseal, clock), Translator(mapping, str), ["gateway", "models"])


def read(log: HandedLog, polls: int = 1, most: int = 100) -> list[Records]:
    found = []
    for _ in range(polls):
        poll = log.poll(0.0, most)
        for cell in poll.assigned:
            log.seek(cell, None)
        found += poll.batches
    return found


def test_a_full_cell_holds_up_its_partitions_and_nothing_is_lost(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handed, "MOST_AT_ONCE", 5)
    source = ListLog({"gateway:0": [half(i) for i in range(40)]})
    log = made(source, store, Clock())
    log._most = 15
    log.poll(0.0, 10)
    log.poll(0.0, 10)
    cell = log.cells[0]
    for _ in range(20):
        log.poll(0.0, 10)
    assert store.arrivals(cell, 0, 1)[1] == 15, "the cell's owner does not read"
    assert source.polled == 20, "a partition that is held up is not read on"
    store.claim(cell, "t")
    at = 0
    while at < 40:
        arrivals, _ = store.arrivals(cell, at, 5)
        after = arrivals[-1].number + 1
        taken = Taken(arrivals[-1].number, arrivals[-1].proof, tuple(range(at, after)))
        store.commit("t", Checkpoint(cell, at << 16 or None, after << 16, taken=taken))
        at = after
        log.poll(0.0, 10)
        log.poll(0.0, 10)
    assert (store.arrivals(cell, 0, 1)[1], store.sources(cell)) == (40, {"gateway:0": 40})


def test_a_cell_that_lost_what_it_had_is_given_it_again(store: EmbeddedStore) -> None:
    source, clock = ListLog({"gateway:0": [half(i) for i in range(6)]}), Clock()
    log = made(source, store, clock)
    read(log, 3)
    cell = log.cells[0]
    assert store.sources(cell) == {"gateway:0": 6}
    store.reset(cell, None)
    read(log, 3)
    assert store.sources(cell) == {}, "nobody asked yet"
    clock.now_s += handed.CHECK_S
    read(log, 3)
    assert store.sources(cell) == {"gateway:0": 6}
    assert [one.number for one in store.arrivals(cell, 0, 10)[0]] == list(range(6))


def test_what_another_reader_handed_in_is_not_handed_in_again(store: EmbeddedStore) -> None:
    partitions = {"gateway:0": [half(i) for i in range(20)]}
    first, second = (made(ListLog(partitions), store, Clock()) for _ in range(2))
    for _ in range(8):  # neither knows of the other
        read(first, most=3)
        read(second, most=5)
    arrivals, numbered = store.arrivals(first.cells[0], 0, 100)
    places = [msgspec.msgpack.decode(one.content, type=handed.HandedRecord).place for one in arrivals]
    assert places == [f"gateway:0@{i}" for i in range(20)]
    assert numbered == 20


def test_a_store_that_does_not_answer_is_asked_again_later(store: EmbeddedStore) -> None:
    class Away:
        away = True
        asked = 0

        def __getattr__(self, name: str) -> Any:
            self.asked += 1
            if self.away:
                raise Unavailable("away")
            return getattr(store, name)

    source, clock, port = ListLog({"gateway:0": [half(i) for i in range(6)]}), Clock(), Away()
    log = made(source, port, clock)
    assert read(log, 5) == []
    assert port.asked == 1
    port.away = False
    clock.now_s += handed.RETRY_S
    assert [list(one.values) for one in read(log, 3)] == [[half(i) for i in range(6)]]


def test_records_go_to_the_cells_of_their_halves(store: EmbeddedStore) -> None:
    ids = [f"r{i}" for i in range(12)]
    several = b"[" + b", ".join(half(i) for i in range(12)) + b"]"
    log = made(ListLog({"gateway:0": [half(0), several, b"garbage"], "gateway:1": []}), store, Clock(), cells=2)
    read(log, 3)
    held = [
        [msgspec.msgpack.decode(one.content, type=handed.HandedRecord).value for one in store.arrivals(cell, 0, 100)[0]]
        for cell in log.cells
    ]
    assert {cell_of((name,), 2) for name in ids} == {0, 1}
    mine = cell_of(("r0",), 2)
    assert several in held[0]
    assert several in held[1]
    assert (half(0) in held[mine], half(0) in held[1 - mine]) == (True, False)
    assert (b"garbage" in held[0], b"garbage" in held[1]) == (True, False)


def test_a_record_that_the_store_lost_is_refused_and_the_others_go_on(store: EmbeddedStore) -> None:
    def unseal(content: bytes) -> bytes:
        if b"c1" in content:
            raise CorruptState("damaged")
        return content

    log = made(ListLog({"gateway:0": [half(i) for i in range(3)]}), store, Clock(), unseal=unseal)
    (records,) = read(log, 3)
    assert records.refused == {1: handed.LOST}
    assert len(records.proofs) == 3


def test_the_owner_of_a_join_cell_has_the_partition_of_its_number(store: EmbeddedStore) -> None:
    log = made(ListLog({"gateway:1": [], "models:0": []}), store, Clock(), cells=2)
    assert log.poll(0.0, 10).assigned == [f"{JOINED}halves:1"]
    with pytest.raises(Fenced):
        log.seek(f"{JOINED}halves:0", None)


def test_ends_are_known_when_everything_was_handed_in(store: EmbeddedStore) -> None:
    log = made(ListLog({"gateway:0": [half(i) for i in range(6)], "models:0": []}), store, Clock())
    with pytest.raises(Unavailable):
        log.ends()
    read(log, 3)
    assert log.ends() == {f"{JOINED}halves:0": 6}


def test_a_call_holds_so_many_records_and_bytes() -> None:
    part = [(i * 2, i, b"x" * 1000) for i in range(1200)]
    calls = handed._calls(part, 5000, 9)
    assert [(len(call.contents), call.after, call.time_ms) for call in calls] == [
        (500, 999, 0),
        (500, 1999, 500),
        (200, 5000, 1000),
    ]
    assert handed._calls([], 7, 9) == [([], 7, 9)]
    assert [len(call.contents) for call in handed._calls([(0, 0, b"x" * (3 << 20)), (1, 0, b"y")], 2, 9)] == [1, 1]


@pytest.mark.parametrize(("ahead_s", "joined"), [(300, 200), (10**9, 0)], ids=["aligned", "control"])
def test_no_partition_gets_far_ahead_of_another(ahead_s: int, joined: int, store: EmbeddedStore) -> None:
    """Two hundred minutes of both topics wait when the process starts, and a half waits for ten minutes of the log's time at most."""
    answers = [json.dumps({"id": f"r{i}", "answer": 1}).encode() for i in range(200)]
    source, clock = TimedLog({"gateway:0": [half(i) for i in range(200)], "models:0": answers}), Clock()
    log = made(source, store, clock)
    log._ahead_ms = ahead_s * 1000
    whole = MappedLog(log, log._translator)
    for _ in range(2000):
        poll = whole.poll(0.0, 3)
        for cell in poll.assigned:
            whole.seek(cell, None)
        clock.now_s += 0.01
        if poll.batches and poll.batches[-1].next_offset == 400 << ROW_BITS:
            break
    else:
        pytest.fail("it did not come to its end")
    (waiting,) = log._translator._waiting.values()
    assert waiting.joined >= joined
    assert waiting.joined == 200 if joined else waiting.joined < 200


def test_the_cell_refuses_a_reader_that_is_behind(store: EmbeddedStore) -> None:
    """Between the question where to begin and the first call another one handed in."""
    source = ListLog({"gateway:0": [half(i) for i in range(4)]})
    log = made(source, store, Clock())
    log.poll(0.0, 10)
    store.hand_in(HandIn(log.cells[0], "gateway:0", 0, 3, (b"a", b"b", b"c")))
    read(log, 4)
    assert store.sources(log.cells[0]) == {"gateway:0": 4}
    assert store.arrivals(log.cells[0], 0, 10)[1] == 4
