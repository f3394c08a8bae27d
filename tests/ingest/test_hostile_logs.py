"""Ingest under what logs and producers do to it: duplicates, erasure, records that kill, balance, alarms, other times."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support import victims

from consumers.errors import Unavailable
from consumers.ingest import loop as ingest
from consumers.ingest.cell import Cell
from consumers.ingest.dead_letters import KEPT, WAITING
from consumers.ingest.health import Runtime
from consumers.ingest.loop import IngestLoop
from consumers.ingest.recovery import SINGLY_AFTER
from consumers.ingest.step import Ingest
from consumers.log import Poll, Records
from consumers.log.files import FileLog
from consumers.log.formats import Decoded
from consumers.records.ledger import COUNTERS, MARKS, imbalance, processed
from consumers.secrets import Secrets
from consumers.store import Checkpoint, DeadLetter
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.alarms import Alarms, Watch
from consumers.telemetry.metrics import Metrics
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]


@pytest.fixture
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({victims.MODEL: baseline}, secrets)


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    rows = victims.items(400, np.random.default_rng(3))
    return [
        victims.line(
            row,
            client_id=f"acct-{i % 7}",
            event_id=f"e-{i}",
            timestamp=f"2026-03-10T00:{i // 60:02d}:{i % 60:02d}Z",
        )
        for i, row in enumerate(rows)
    ]


def runtime(clock: Callable[[], float] = time.monotonic) -> Runtime:
    return Runtime(clock, sleep=lambda s: None, rng=random.Random(0))


def runner(path: Path, store: Any, reading: Ingest, **more: Any) -> IngestLoop:
    options: dict[str, Any] = {"runtime": runtime(), "max_poll_records": 90}
    return IngestLoop(FileLog([path]), store, reading, **options | more)


def through(one: IngestLoop) -> IngestLoop:
    ingest.run(one, lambda: False, until_end=True, poll_timeout_s=0.0)
    off = {cell.name: imbalance(cell.counters) for cell in one.ownership.cells.values()}
    assert not any(off.values()), off
    return one


def keys(reading: Ingest, count: int = 7) -> list[ClientKey]:
    hashed = [reading.secrets.client_hash("default", f"acct-{i}") for i in range(count)]
    return [ClientKey("default", victims.MODEL, h) for h in hashed]


def contents(store: EmbeddedStore, reading: Ingest) -> dict[ClientKey, Mapping[str, bytes]]:
    (cell,) = store.cells()
    return {k: f for k, f in store.shards(cell, keys(reading)).fields.items() if f}


def counters(one: IngestLoop) -> Mapping[str, int]:
    (cell,) = one.ownership.cells.values()
    return cell.counters


# -------------------------------------------------------------------------------------------------------- balance


def test_every_kind_of_record_is_counted_once(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    row = victims.items(1, np.random.default_rng(0))[0]
    mixed = [
        *lines[:50],
        *lines[:5],
        b"{",
        victims.line(row, status=429, prediction=None),
        victims.line(row, status=500, prediction=None),
        victims.line(row, client_id=None),
        victims.line(row, timestamp=None),
    ]
    one = through(runner(victims.write_lines(tmp_path / "log.jsonl", mixed), new_store(), reading))
    found = counters(one)
    expected = {
        "produced": 60, "queries": 51, "duplicate": 5, "dead": 3, "dead_counted": 1, "denied": 1, "failed": 1,
    }  # fmt: skip
    assert {name: n for name, n in found.items() if n and name in COUNTERS} == expected
    assert processed(found) == 53
    text = one.reporter.metrics.text().decode()
    assert "querywarden_duplicate_events_total 5.0" in text
    assert 'querywarden_records_total{outcome="duplicate"} 5.0' in text


@pytest.mark.parametrize("poll", [7, 90])
@pytest.mark.parametrize("died", [0, 3])
def test_tombstones_are_counted_apart_and_are_no_dead_letters(
    poll: int, died: int, tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    class Compacted(FileLog):
        """Every line ``null`` stands for a Kafka record without a value."""

        def poll(self, timeout_s: float, max_records: int) -> Poll:
            found = super().poll(timeout_s, max_records)
            for i, batch in enumerate(found.batches):
                filled = [j for j, value in enumerate(batch.values) if value != b"null"]
                nulls = np.setdiff1d(batch.offsets, batch.offsets[filled])
                values = [batch.values[j] for j in filled]
                found.batches[i] = Records(batch.cell, values, batch.offsets[filled], batch.next_offset, nulls=nulls)
            return found

    mixed = [line for i, one in enumerate(lines[:200]) for line in ([b"null", one] if i % 5 == 0 else [one])]
    log, store = victims.write_lines(tmp_path / "log.jsonl", [*mixed, b"null"]), new_store()
    for i in range(died):  # so that records are tried, a part at a time
        store.claim(FileLog([log]).cell, f"{i:032x}")
    one = IngestLoop(Compacted([log]), store, reading, runtime=runtime(), max_poll_records=poll)
    found = counters(through(one))
    assert {name: n for name, n in found.items() if n and name not in MARKS} == {
        "produced": 241,
        "queries": 200,
        "tombstones": 41,
    }
    assert 'querywarden_records_total{outcome="tombstone"} 41.0' in one.reporter.metrics.text().decode()


@pytest.mark.parametrize(
    "name",
    [
        "produced",
        "queries",
        "denied",
        "failed",
        "unmodelled",
        "dead",
        "dead_counted",
        "duplicate",
        "erased",
        "tombstones",
    ],
)
def test_a_record_that_is_nowhere_or_twice_is_seen(name: str) -> None:
    whole = {
        "produced": 34,
        "queries": 1,
        "denied": 2,
        "failed": 3,
        "unmodelled": 4,
        "dead": 5,
        "dead_counted": 2,
        "duplicate": 6,
        "erased": 7,
        "tombstones": 8,
    }
    assert imbalance(whole) == 0
    assert imbalance(whole | {name: whole[name] + 1}) == (1 if name in ("produced", "dead_counted") else -1)


# ----------------------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize("poll", [1, 7, 90, 5000])
def test_events_sent_twice_change_nothing_whatever_the_polls(
    poll: int, tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    once, twice = new_store(), new_store()
    through(runner(victims.write_lines(tmp_path / "once.jsonl", lines), once, reading))
    rng = random.Random(4)
    repeated: list[bytes] = []
    for i, one in enumerate(lines):
        repeated.append(one)
        if rng.random() < 0.3:
            repeated.append(lines[rng.randrange(max(0, i - 200), i + 1)])
    after = through(
        runner(victims.write_lines(tmp_path / "twice.jsonl", repeated), twice, reading, max_poll_records=poll)
    )
    assert counters(after)["duplicate"] == len(repeated) - len(lines) > 80
    assert contents(twice, reading) == contents(once, reading)


def test_events_without_an_id_are_never_duplicates(tmp_path: Path, new_store: NewStore, reading: Ingest) -> None:
    row = victims.items(1, np.random.default_rng(0))[0]
    same = [victims.line(row), victims.line(row, event_id=""), victims.line(row, event_id=None)] * 3
    one = through(runner(victims.write_lines(tmp_path / "log.jsonl", same), store := new_store(), reading))
    assert (counters(one)["queries"], counters(one)["duplicate"]) == (9, 0)
    (cell,) = store.cells()
    key = ClientKey("default", victims.MODEL, reading.secrets.client_hash("default", "acct-1"))
    assert "e" not in store.shards(cell, [key]).fields[key]


# -------------------------------------------------------------------------------------------------------- erasure


def test_what_was_erased_stays_erased_when_the_log_is_read_again(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    path = victims.write_lines(tmp_path / "log.jsonl", lines)
    store = new_store()
    through(runner(path, store, reading))
    (cell,) = store.cells()
    before, gone = contents(store, reading), keys(reading)[2]
    store.erase(cell, [gone])
    store.reset(cell, None)
    one = through(runner(path, store, reading))
    assert contents(store, reading) == {k: f for k, f in before.items() if k != gone}
    erased = sum(b'"acct-2"' in line for line in lines)
    assert (counters(one)["erased"], counters(one)["queries"]) == (erased, len(lines) - erased)


# --------------------------------------------------------------------------------------------- records that kill

CHILD = """
import os, signal, sys
from pathlib import Path
from support import victims
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.baseline_file import read_baseline

class Killed(Ingest):
    "Stands for a library that crashes on some input."
    def decode(self, cell, records):
        for value, why in zip(records.values, range(len(records.values))):
            if b"KILLER" in value and why not in records.refused:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(cell, records)

    def step(self, cell, decoded, keys, next_offset):
        if any("FOLDED" in client for batch in decoded.batches.values() for client in batch.clients):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(cell, decoded, keys, next_offset)

log, store, baseline, cautious_after = sys.argv[1:]
reading = Killed({victims.MODEL: read_baseline(Path(baseline).read_bytes())}, Secrets(b"s" * 16, b"p" * 32, b"k" * 32))
one = ingest.IngestLoop(FileLog([log]), EmbeddedStore(store), reading, max_poll_records=90, cautious_after=int(cautious_after))
ingest.run(one, lambda: False, until_end=True, poll_timeout_s=0.0)
"""


def lives(log: Path, store: EmbeddedStore, blob: Path, cautious_after: int = 1, at_most: int = 8) -> int:
    """How often a real process had to be started until one came to the end of the log; -1: none did."""
    for life in range(at_most):
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(log), str(store.path), str(blob), str(cautious_after)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join((os.getcwd(), os.path.join(os.getcwd(), "tests")))},
            check=False,
            timeout=120,
        )
        if child.returncode == 0:
            return life
        assert child.returncode == -signal.SIGKILL
    return -1


@pytest.fixture
def blob(tmp_path: Path, baseline: Baseline) -> Path:
    path = tmp_path / "victim.baseline"
    path.write_bytes(pack_baseline(baseline))
    return path


SOAK = pytest.mark.soak


@pytest.mark.parametrize(
    ("at", "how"),
    [(137, "KILLER"), (137, "FOLDED"), *(pytest.param(at, "KILLER", marks=SOAK) for at in (90, 0))],
)
def test_a_record_that_kills_the_worker_is_quarantined_after_two_restarts(
    at: int, how: str, tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes], blob: Path
) -> None:
    killer = victims.line(victims.items(1, np.random.default_rng(0))[0], client_id=f"acct-{how}")
    store, clean = new_store(), new_store()
    through(runner(victims.write_lines(tmp_path / "clean.jsonl", lines[:250]), clean, reading))
    log = victims.write_lines(tmp_path / "log.jsonl", [*lines[:at], killer, *lines[at:250]])
    assert lives(log, store, blob) == (2 if at else 1)
    (cell,) = store.cells()
    ((_, letter),) = store.dead_letters(cell, 10)
    assert (letter.reason, letter.offset) == ("poison", at)
    found = store.claim(cell, "t" * 32).counters
    assert (found["produced"], found["queries"], found["dead"], imbalance(found)) == (251, 250, 1, 0)
    assert contents(store, reading) == contents(clean, reading), "nobody else lost anything"


@pytest.mark.soak
def test_without_cautious_mode_the_record_stops_its_cell_for_good(
    tmp_path: Path, new_store: NewStore, lines: list[bytes], blob: Path
) -> None:
    """The control: the record does kill, and only cautious mode gets past it."""
    log = victims.write_lines(tmp_path / "log.jsonl", [*lines[:5], b"KILLER", *lines[5:9]])
    assert lives(log, new_store(), blob, cautious_after=99, at_most=3) == -1


@pytest.mark.parametrize("died", [1, 3, 40])
def test_processes_that_end_for_other_reasons_quarantine_no_healthy_record(
    died: int, tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    """Killed, paused and fenced owners, and a store that is away: what the store knows of them looks the same as a poison record."""
    store = new_store()
    log = victims.write_lines(tmp_path / "log.jsonl", lines[:200])
    probe = FileLog([log]).cell
    for i in range(died):
        store.claim(probe, f"{i:032x}")

    class Away:
        ends: ClassVar[list[int]] = []

        def __getattr__(self, name: str) -> Any:
            there = getattr(store, name)
            if name != "commit":
                return there

            def commit(token: str, checkpoint: Checkpoint) -> None:
                Away.ends.append(checkpoint.next_offset)
                if len(Away.ends) % 3 == 0:
                    raise Unavailable("no route")
                there(token, checkpoint)

            return commit

    one = through(runner(log, Away(), reading))
    assert len(Away.ends) > 3
    assert Away.ends[0] == (1 if died >= SINGLY_AFTER else 90)
    assert (counters(one)["queries"], counters(one)["dead"]) == (200, 0)


def test_a_record_whose_commit_no_store_takes_is_found(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It folds without harm, so only a look at what would be committed finds it."""
    step = Ingest.step

    def spoilt(self: Ingest, cell: Cell, decoded: Decoded, *rest: Any) -> Checkpoint:
        checkpoint = step(self, cell, decoded, *rest)
        if any(137 in batch.offsets for batch in decoded.batches.values()):
            checkpoint.counters["clock0"] = -1
        return checkpoint

    monkeypatch.setattr(Ingest, "step", spoilt)
    log, store = victims.write_lines(tmp_path / "log.jsonl", lines[:200]), new_store()
    with pytest.raises(ValueError, match="counter clock0 cannot be -1"):
        through(runner(log, store, reading))
    for i in range(3):
        store.claim(store.cells()[0], f"{i:032x}")
    one = through(runner(log, store, reading))
    ((_, letter),) = store.dead_letters(store.cells()[0], 10)
    assert (letter.reason, letter.offset, counters(one)["queries"]) == ("poison", 137, 199)


class Refusing:
    """A store that takes small writes and refuses commits: full, read-only, or its answers are lost."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        raise Unavailable("redis: OOM command not allowed when used memory > 'maxmemory'")


def outage(log: Path, store: EmbeddedStore, reading: Ingest, processes: int) -> None:
    """So many processes, one after another, find that the store refuses commits, try again and again, and are killed."""
    for _ in range(processes):
        one = runner(log, Refusing(store), reading)
        for _ in range(9):
            one.turn(0.0)
        assert (one.reporter.metrics.value("querywarden_commits_total", outcome="unavailable") or 0) >= 3


@pytest.mark.parametrize("read_before", [0, 90])
def test_an_outage_of_the_store_is_no_death_however_many_processes_meet_it(
    read_before: int, tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    store, log = new_store(), victims.write_lines(tmp_path / "log.jsonl", lines)
    if read_before:
        first = runner(log, store, reading)
        while not sum(cell.offset or 0 for cell in first.ownership.cells.values()):
            first.turn(0.0)
    outage(log, store, reading, processes=6)
    one = runner(log, store, reading)
    steps: list[int] = []
    one.committer.on_commit = lambda checkpoint, decoded: steps.append(
        checkpoint.next_offset - (checkpoint.expected_offset or 0)
    )
    through(one)
    assert steps[:2] == [90, 90], "polls are committed whole at once"
    assert counters(one)["queries"] == len(lines)


def test_a_poison_record_is_found_after_an_outage_too(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes], blob: Path
) -> None:
    log = victims.write_lines(tmp_path / "log.jsonl", [*lines[:137], b"KILLER", *lines[137:200]])
    store = new_store()
    outage(log, store, reading, processes=6)
    assert lives(log, store, blob) == 2
    ((_, letter),) = store.dead_letters(store.cells()[0], 10)
    assert (letter.reason, letter.offset) == ("poison", 137)


def test_claims_of_a_process_that_lives_do_not_make_it_cautious(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    store = new_store()
    one = runner(victims.write_lines(tmp_path / "log.jsonl", lines[:20]), store, reading)
    one.turn(0.0)
    (cell,) = one.ownership.cells.values()
    for _ in range(6):
        one.recovery.lost(cell, "unavailable")
        one.ownership.claim(cell.name)
    assert not one.ownership.cells[cell.name].cautious


# ------------------------------------------------------------------------------------------------- dead letters


def test_dead_letters_wait_in_bounded_room_and_are_all_counted(
    tmp_path: Path, new_store: NewStore, reading: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.ingest.dead_letters.WAITING", 50)

    class Gone:
        def ship(self, letters: list[DeadLetter]) -> list[bool]:
            return [False] * len(letters)

    log = victims.write_lines(tmp_path / "log.jsonl", [b"no"] * 400)
    one = through(runner(log, store := new_store(), reading, dead_letters=Gone()))
    (cell,) = store.cells()
    waiting = len(store.dead_letters(cell, 1000))
    assert 50 <= waiting <= 50 + 90, "one poll may be on its way when the topic turns out to be away"
    assert (counters(one)["dead"], "letters_wait" in one.reporter.watch.alarms.raised) == (400, True)
    assert f"querywarden_letters_dropped_total {400.0 - waiting}" in one.reporter.metrics.text().decode()
    assert KEPT < WAITING


def test_letters_that_the_topic_took_make_room_for_others(tmp_path: Path, new_store: NewStore, reading: Ingest) -> None:
    class Slow:
        """Takes nothing at first, later the first ten of each turn."""

        most = 0

        def ship(self, letters: list[DeadLetter]) -> list[bool]:
            return [i < self.most for i in range(len(letters))]

    log = victims.write_lines(tmp_path / "log.jsonl", [b"no"] * 60)
    one = through(runner(log, store := new_store(), reading, dead_letters=(topic := Slow())))
    (cell,) = store.cells()
    topic.most = 10
    for left in (50, 40, 30):
        one.turn(0.0)
        assert len(store.dead_letters(cell, 100)) == left
        assert one.shipper.room(cell) == WAITING - left


# --------------------------------------------------------------------------------------------------------- alarms


def watch() -> Watch:
    return Watch(Alarms(Metrics()))


@pytest.mark.parametrize(("dead", "raised"), [(5, False), (6, True)])
def test_more_than_one_record_in_twenty_refused_is_an_alarm_that_ends(dead: int, raised: bool) -> None:
    one = watch()
    one.counted(100.0, {"produced": 100, "dead": dead}, ())
    one.look(101.0, 0, True)
    assert ("dead_letters" in one.alarms.raised) is raised
    one.counted(170.0, {"produced": 100}, ())
    one.look(171.0, 0, True)
    assert "dead_letters" not in one.alarms.raised


@pytest.mark.parametrize(("tombstones", "dead", "raised"), [(900, 0, False), (900, 6, True)])
def test_tombstones_neither_raise_nor_hide_the_alarm_of_refused_records(
    tombstones: int, dead: int, raised: bool
) -> None:
    one = watch()
    one.counted(100.0, {"produced": 100 + tombstones, "dead": dead, "tombstones": tombstones}, ())
    one.look(101.0, 0, True)
    assert ("dead_letters" in one.alarms.raised) is raised


def test_a_few_bad_records_of_few_are_no_alarm() -> None:
    one = watch()
    one.counted(100.0, {"produced": 99, "dead": 99}, ())
    one.look(101.0, 0, True)
    assert one.alarms.raised == set()


@pytest.mark.parametrize(("minutes", "answered", "raised"), [(40, True, True), (20, True, False), (40, False, False)])
def test_a_model_that_goes_quiet_is_an_alarm(minutes: int, answered: bool, raised: bool) -> None:
    one = watch()
    for minute in range(minutes):
        one.counted(minute * 60.0, {"produced": 1}, ["loans"])
    last = (minutes - 1) * 60.0
    one.look(last + 599, 0, answered)
    assert one.alarms.raised == set()
    one.look(last + 606, 0, answered)
    assert ("silent_tap" in one.alarms.raised) is raised
    one.counted(last + 620, {"produced": 1}, ["loans"])
    one.look(last + 621, 0, True)
    assert "silent_tap" not in one.alarms.raised


def test_lag_gaps_and_duplicates_are_alarms() -> None:
    one = watch()
    one.gap(10.0)
    one.counted(10.0, {"produced": 200, "queries": 150, "duplicate": 50}, ())
    one.look(10.0, 20_001, True)
    assert one.alarms.raised == {"data_gap", "duplicates"}
    one.look(311.0, 20_001, True)
    assert one.alarms.raised == {"data_gap", "lag"}
    one.look(700.0, 20_000, True)
    assert one.alarms.raised == set()


# ----------------------------------------------------------------------------------------------- other logs, times


def test_a_log_of_the_same_name_that_was_made_anew_needs_an_operator(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    class Topic(FileLog):
        number = 11

        def topic_id(self, cell: str) -> int:
            return self.number

    path = victims.write_lines(tmp_path / "log.jsonl", lines)
    store = new_store()
    first = IngestLoop(Topic([path]), store, reading, runtime=Runtime(sleep=lambda s: None), max_poll_records=90)
    first.turn(0.0)
    first.turn(0.0)
    assert counters(first)["log_id"] == 11
    Topic.number = 0  # brokers that cannot tell
    second = IngestLoop(Topic([path]), store, reading, runtime=Runtime(sleep=lambda s: None), max_poll_records=90)
    second.turn(0.0)
    second.turn(0.0)
    assert counters(second)["log_id"] == 11
    Topic.number = 12
    third = IngestLoop(Topic([path]), store, reading, runtime=Runtime(sleep=lambda s: None))
    for one in (third, second):  # noticed at the start, and while running
        one.turn(0.0)
        ((cell, stop),) = one.ownership.stops.found.items()
        assert (stop.reason, "created again" in stop.why) == ("log_recreated", True)
        assert (one.ownership.cells, one.log.poll(0.0, 90).batches) == ({}, [])
        assert cell == store.cells()[0]


@pytest.mark.parametrize("shift_s", [-31 * 86_400.0, 31 * 86_400.0])
def test_a_clock_that_is_a_month_off_changes_no_profile(
    shift_s: float, tmp_path: Path, secrets: Secrets, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    path = victims.write_lines(tmp_path / "log.jsonl", lines)
    right = new_store()
    through(runner(path, right, reading))
    off = EmbeddedStore(tmp_path / "off.sqlite", now_s=lambda: 1.8e9 + shift_s)
    off.prepare(secrets.key_id)
    through(runner(path, off, reading, runtime=runtime(lambda: 5.0 + shift_s)))
    assert contents(off, reading) == contents(right, reading)
    off.close()
