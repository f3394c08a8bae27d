"""A log cell that cannot go on stops alone: the others are read, a restart finds the same, an operator begins it anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import redis
from support import victims

from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.errors import CorruptState, Fenced, LogTruncated, StoppedCells
from consumers.ingest import loop as ingest
from consumers.ingest.health import KEEPALIVE_S, Runtime
from consumers.ingest.loop import IngestLoop
from consumers.ingest.step import Ingest
from consumers.ingest.stopped_cells import METRIC
from consumers.log import Poll, Records
from consumers.log.halves import NOTHING_WAITS, WaitingHalves
from consumers.readers.queries import Reader
from consumers.records.decision import stored_decision
from consumers.records.heartbeat import Heartbeat, HeartbeatPublisher, stopped_elsewhere
from consumers.secrets import Secrets
from consumers.store import Checkpoint, Claim, Proof
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import connect
from detector.baseline import Baseline
from detector.policy import Policy

NewStore = Callable[[], EmbeddedStore]
CELLS = ("t:0", "t:1", "t:2")


class Partitions:
    """A log of several cells in memory. `numbers`: id of the topic that a cell belongs to; `cut`: cut back while it is read."""

    def __init__(self, records: Mapping[str, list[bytes]]) -> None:
        self.records = {cell: list(values) for cell, values in records.items()}
        self.numbers = dict.fromkeys(records, 1)
        self.cut: set[str] = set()
        self._assigned = False
        self._positions: dict[str, int] = {}

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        if not self._assigned:
            self._assigned = True
            return Poll(assigned=list(self.records))
        poll = Poll()
        for cell, at in list(self._positions.items()):
            if cell in self.cut:
                del self._positions[cell]
                poll.stopped.append((cell, f"{cell}: the log no longer reaches offset {at}"))
            elif values := self.records[cell][at : at + max_records]:
                offsets = np.arange(at, at + len(values))
                self._positions[cell] = at + len(values)
                poll.batches.append(Records(cell, values, offsets, at + len(values)))
        return poll

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        if (offset or 0) > len(self.records[cell]):
            raise LogTruncated(f"{cell}: the log ends at offset {len(self.records[cell])}, the store is at {offset}")
        self._positions[cell] = offset or 0
        return offset or 0

    def pause(self, cell: str) -> None:
        self._positions.pop(cell, None)

    def position(self, cell: str) -> int:
        if cell not in self._positions:
            raise Fenced(cell)
        return self._positions[cell]

    def ends(self) -> dict[str, int]:
        return {cell: len(values) for cell, values in self.records.items()}

    def owns(self, cell: str) -> bool:
        return True

    def is_member(self) -> bool:
        return True

    def topic_id(self, cell: str) -> int:
        return self.numbers[cell]

    def lag(self) -> int:
        return 0

    def commit(self, offsets: Mapping[str, int]) -> None: ...

    def close(self) -> None: ...


class Corrupt:
    """A store of which one cell can't be read, from the call on that is named."""

    def __init__(self, store: EmbeddedStore, call: str) -> None:
        self._store, self._call = store, call
        self.cell = ""

    def __getattr__(self, name: str) -> object:
        there = getattr(self._store, name)
        if name != self._call:
            return there

        def refusing(first: str, *more: object) -> object:
            cell = more[0].cell if more and isinstance(more[0], Checkpoint) else first
            if cell == self.cell:
                raise CorruptState("redis: WRONGTYPE Operation against a key holding the wrong kind of value")
            return there(first, *more)

        return refusing


@pytest.fixture
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({victims.MODEL: baseline}, secrets)


@pytest.fixture(scope="module")
def records() -> dict[str, list[bytes]]:
    rows = victims.items(180, np.random.default_rng(5))
    values = [
        victims.line(row, client_id=f"acct-{i % 3}", timestamp="2026-03-10T00:00:00Z") for i, row in enumerate(rows)
    ]
    return {cell: values[i::3] for i, cell in enumerate(CELLS)}


class World:
    """A process over a log and a store, with a clock that goes on by itself."""

    def __init__(self, log: Partitions, store: object, reading: Ingest) -> None:
        self.now_s = 0.0
        self.runner = IngestLoop(
            log,
            store,  # type: ignore[arg-type]
            reading,
            runtime=Runtime(sleep=lambda s: None, clock=self._clock),
            max_poll_records=20,
        )

    def _clock(self) -> float:
        self.now_s += KEEPALIVE_S / 50
        return self.now_s

    def turns(self, count: int = 12) -> IngestLoop:
        for _ in range(count):
            self.runner.turn(0.0)
        return self.runner

    def queries(self) -> dict[str, int]:
        return {name: cell.counters["queries"] for name, cell in sorted(self.runner.ownership.cells.items())}


def until_end(log: Partitions, store: Any, reading: Ingest) -> None:
    runner = World(log, store, reading).runner
    ingest.run(
        runner, lambda: False, until_end=True, poll_timeout_s=0.0, stopped_elsewhere=lambda: stopped_elsewhere(store)
    )


def spoilt(how: str, log: Partitions, store: EmbeddedStore, reading: Ingest) -> tuple[Partitions, object]:
    """The second cell of a log that was read up to 20 records a cell can't go on; log and store as the next process finds them."""
    World(log, store, reading).turns(2)
    if how == "log_truncated":
        log.records["t:1"] = log.records["t:1"][:7]
    elif how == "log_recreated":
        log.numbers["t:1"] = 2
    corrupt = Corrupt(store, "load" if how == "cell_corrupt" else "")
    corrupt.cell = "t:1"
    return Partitions(log.records) if how != "log_recreated" else _renumbered(log), corrupt


def _renumbered(log: Partitions) -> Partitions:
    again = Partitions(log.records)
    again.numbers = dict(log.numbers)
    return again


@pytest.mark.parametrize("how", ["log_truncated", "log_recreated", "cell_corrupt"])
def test_the_other_cells_are_read_to_their_end_and_a_restart_behaves_the_same(
    how: str, new_store: NewStore, reading: Ingest, records: dict[str, list[bytes]]
) -> None:
    store = new_store()
    log, faulty = spoilt(how, Partitions(records), store, reading)
    for _ in range(3):
        again = _renumbered(log)
        world = World(again, faulty, reading)
        one = world.turns()
        assert world.queries() == {"t:0": 60, "t:2": 60}
        assert {cell: stop.reason for cell, stop in one.ownership.stops.found.items()} == {"t:1": how}
        assert one.reporter.metrics.value(METRIC, cell="t:1", reason=how) == 1.0
        assert "cell_stopped" in one.reporter.watch.alarms.raised
        assert one.ready
    assert store.shards("t:1", []).offset == 20, "nothing of the stopped cell was touched"
    with pytest.raises(StoppedCells, match=rf"t:1 \({how}: ") as named:
        until_end(_renumbered(log), faulty, reading)
    assert "\n" not in str(named.value)


@pytest.mark.parametrize("how", ["cut", "recreated", "corrupt"])
def test_a_cell_stops_alone_while_it_is_being_read(
    how: str, new_store: NewStore, reading: Ingest, records: dict[str, list[bytes]]
) -> None:
    log, store = Partitions(records), Corrupt(new_store(), "commit")
    world = World(log, store, reading)
    world.turns(2)
    if how == "cut":
        log.cut.add("t:1")
    elif how == "recreated":
        log.numbers["t:1"] = 2
    else:
        store.cell = "t:1"
    one = world.turns()
    assert list(one.ownership.stops.found) == ["t:1"]
    assert world.queries() == {"t:0": 60, "t:2": 60}


def test_an_operator_restarts_a_stopped_cell_while_the_process_runs(
    new_store: NewStore, reading: Ingest, records: dict[str, list[bytes]]
) -> None:
    store = new_store()
    log, _ = spoilt("log_recreated", Partitions(records), store, reading)
    world = World(log, store, reading)
    one = world.turns()
    assert list(one.ownership.stops.found) == ["t:1"]
    store.reset("t:1", 0)  # querywarden rebuild --from earliest --cell t:1
    world.turns(60)
    assert world.queries() == dict.fromkeys(CELLS, 60)
    assert one.ownership.stops.found == {}
    assert one.reporter.metrics.value(METRIC, cell="t:1", reason="log_recreated") == 0.0
    assert "cell_stopped" not in one.reporter.watch.alarms.raised
    assert not any(cell.cautious for cell in one.ownership.cells.values())


def test_a_stopped_cell_is_not_claimed_again_and_again(
    new_store: NewStore, reading: Ingest, records: dict[str, list[bytes]]
) -> None:
    claimed: list[str] = []

    class Counting:
        def __init__(self, store: EmbeddedStore) -> None:
            self._store = store

        def __getattr__(self, name: str) -> object:
            return getattr(self._store, name)

        def claim(self, cell: str, token: str, proof: Proof) -> Claim:
            claimed.append(cell)
            return self._store.claim(cell, token, proof)

    store = new_store()
    log, _ = spoilt("log_truncated", Partitions(records), store, reading)
    World(log, Counting(store), reading).turns(200)
    assert sorted(claimed) == sorted(CELLS)


def test_a_cell_that_another_process_stopped_holds_up_no_run_until_end(
    new_store: NewStore, reading: Ingest, records: dict[str, list[bytes]]
) -> None:
    store, log = new_store(), Partitions(records)
    store.claim("t:9", "t" * 32)
    log.records["t:9"] = records["t:0"]  # another member of the group has it: it is never assigned here
    log.poll = _without("t:9", log.poll)  # type: ignore[method-assign,assignment]
    beat = Heartbeat("ingest@b/1", "ingest", stopped={"t:9": "log_recreated: the topic was deleted and created again"})
    assert HeartbeatPublisher(store, lambda: beat).once()
    until_end(log, store, reading)
    assert stopped_elsewhere(store) == beat.stopped


def _without(cell: str, poll: Callable[[float, int], Poll]) -> Callable[[float, int], Poll]:
    def some(timeout_s: float, max_records: int) -> Poll:
        found = poll(timeout_s, max_records)
        found.assigned = [name for name in found.assigned if name != cell]
        return found

    return some


def test_the_health_of_the_whole_names_the_cell_and_the_reason(new_store: NewStore, secrets: Secrets) -> None:
    store = new_store()
    assert Reader(store, secrets, "default").health().stopped is None, "nobody says so"
    words = {"t:1": "cell_corrupt: redis: WRONGTYPE"}
    assert HeartbeatPublisher(
        store, lambda: Heartbeat("ingest@a/1", "ingest", alarms=["cell_stopped"], stopped=words)
    ).once()
    assert Reader(store, secrets, "default").health().stopped == words


@pytest.mark.parametrize("key", ["meta", "erased", "touched", "dead"])
def test_a_cell_whose_keys_are_of_another_kind_stops_alone_and_is_begun_anew(
    key: str, redis_url: str, reading: Ingest, secrets: Secrets, records: dict[str, list[bytes]]
) -> None:
    """On a real Redis, where somebody wrote to one key: ingest reads the other cells, detect assesses them, a rebuild mends it."""
    store = connect(redis_url)
    store.prepare(secrets.key_id)
    log = Partitions(records)
    World(log, store, reading).turns(2)
    judging = detect.Runner(store, Detect(reading.baselines, secrets, Policy(0.01, "observe")), now_s=lambda: 0)
    judging.turn()
    with redis.Redis.from_url(redis_url) as raw:
        (name,) = list(raw.scan_iter("*t:1*:meta"))
        prefix = name.decode().removesuffix("meta")
        for spoilt in raw.scan_iter(f"{prefix}touched:*") if key == "touched" else [f"{prefix}{key}"]:
            raw.delete(spoilt)
            raw.set(spoilt, "not ours")
        log = Partitions(records)
        world = World(log, store, reading)
        world.turns()
        assert list(world.runner.ownership.stops.found) == ["t:1"]
        assert world.queries() == {"t:0": 60, "t:2": 60}
        while judging.turn():
            pass
        store.reset("t:1", None)
        world.turns(60)
        assert world.queries() == dict.fromkeys(CELLS, 60)
        while judging.turn():
            pass
        assert (
            sum(stored_decision(row, secrets, "default").assessment.queries for _, row in store.decisions("default"))
            == 180
        )
    store.close()
