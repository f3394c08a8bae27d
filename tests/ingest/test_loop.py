"""Ingest against the embedded store: what is committed, what a restart finds, and what each error makes it do."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims

from consumers import keyring
from consumers.errors import Fenced, Rewound, StoppedCells, Unavailable
from consumers.ingest import loop as ingest
from consumers.ingest.dead_letters import KEPT
from consumers.ingest.health import BACK_OFF_S, KEEPALIVE_S, Runtime
from consumers.ingest.loop import IngestLoop
from consumers.ingest.recovery import RECHECK_S
from consumers.ingest.step import MAX_CACHED, Ingest, shape_of
from consumers.keyring import Keyring
from consumers.log import Poll
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store import Checkpoint, Claim, DeadLetter, Proof
from consumers.store.embedded import EmbeddedStore
from consumers.store.sealed import UNREADABLE, key_id_of, sealed_store
from detector.baseline import Baseline
from detector.profile import Profile
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]
DAY_MS = 86_400_000


class Faulty:
    """A store that raises what it is told to, once each, before the call or after it took effect."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self.faults: list[tuple[str, bool, Exception]] = []
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        there = getattr(self._store, name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            fault = next((f for f in self.faults if f[0] == name), None)
            if fault is None:
                return there(*arguments)
            self.faults.remove(fault)
            if fault[1]:
                there(*arguments)
            raise fault[2]

        return call


class FakeDeadLetterTopic:
    """A dead-letter topic that can be away."""

    def __init__(self) -> None:
        self.there = True
        self.taken: list[DeadLetter] = []

    def ship(self, letters: list[DeadLetter]) -> list[bool]:
        if self.there:
            self.taken += letters
        return [self.there] * len(letters)


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """1,500 queries of 30 clients, in time order."""
    rng = np.random.default_rng(3)
    rows = victims.items(1500, rng)
    return [
        victims.line(row, client_id=f"acct-{i * 7 % 30}", timestamp=f"2026-03-10T{i // 60:02d}:{i % 60:02d}:00Z")
        for i, row in enumerate(rows[:1200])
    ] + [
        victims.line(row, client_id=f"acct-{i % 30}", timestamp="2026-03-12T00:00:00Z")
        for i, row in enumerate(rows[1200:])
    ]


@pytest.fixture
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({victims.MODEL: baseline}, secrets)


def runner(path: Path, store: Any, reading: Ingest, **more: Any) -> IngestLoop:
    return IngestLoop(
        FileLog([path]),
        store,
        reading,
        runtime=Runtime(sleep=lambda s: None, rng=random.Random(0)),
        **{"max_poll_records": 200} | more,
    )


def through(one: IngestLoop) -> IngestLoop:
    ingest.run(one, lambda: False, until_end=True, poll_timeout_s=0.0)
    return one


def contents(store: Any, reading: Ingest, clients: Sequence[str]) -> dict[str, Mapping[str, bytes]]:
    """Stored profile fields of the clients, from the only cell."""
    (cell,) = store.cells()
    keys = {key_of(reading, c): c for c in clients}
    return {keys[k]: fields for k, fields in store.shards(cell, list(keys)).fields.items() if fields}


def key_of(reading: Ingest, client: str) -> ClientKey:
    return ClientKey("default", victims.MODEL, reading.secrets.client_hash("default", client))


CLIENTS = [f"acct-{i}" for i in range(30)]


@pytest.fixture
def whole(tmp_path: Path, lines: list[bytes], new_store: NewStore, reading: Ingest) -> dict[str, Mapping[str, bytes]]:
    """What the store holds after an undisturbed run."""
    store = new_store()
    one = through(runner(victims.write_lines(tmp_path / "log.jsonl", lines), store, reading))
    (cell,) = one.ownership.cells.values()
    assert (cell.offset, cell.counters["produced"], cell.counters["queries"]) == (1500, 1500, 1500)
    found = contents(store, reading, CLIENTS)
    assert len(found) == 30
    return found


def log_path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.mark.parametrize("poll", [7, 199, 5000])
def test_the_size_of_a_poll_changes_no_profile(
    poll: int, tmp_path: Path, new_store: NewStore, reading: Ingest, whole: dict[str, Mapping[str, bytes]]
) -> None:
    store = new_store()
    through(runner(log_path(tmp_path), store, reading, max_poll_records=poll))
    assert contents(store, reading, CLIENTS) == whole


def test_a_poll_of_more_clients_than_memory_is_meant_for_is_several_commits(
    tmp_path: Path,
    new_store: NewStore,
    reading: Ingest,
    whole: dict[str, Mapping[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commits: list[int] = []
    for limit in (30, 8):
        monkeypatch.setattr("consumers.ingest.committer.MAX_CACHED", limit)
        store = new_store()
        commits.clear()
        one = runner(
            log_path(tmp_path),
            store,
            reading,
            max_poll_records=5000,
            on_commit=lambda checkpoint, _: commits.append(len(checkpoint.profiles)),
        )
        through(one)
        (cell,) = one.ownership.cells.values()
        assert (cell.offset, cell.counters["produced"], cell.counters["queries"]) == (1500, 1500, 1500)
        assert contents(store, reading, CLIENTS) == whole
    assert len(commits) > 10, "of 8 clients each"
    assert max(commits) <= 8 + 1, "and the record of what the model's clients share"


def test_a_poll_that_begins_before_the_store_s_offset_is_divided_from_there(
    tmp_path: Path,
    new_store: NewStore,
    reading: Ingest,
    whole: dict[str, Mapping[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a rebalance: another process went on while the records were on their way."""
    monkeypatch.setattr("consumers.ingest.committer.MAX_CACHED", 8)
    store = new_store()
    one = runner(log_path(tmp_path), store, reading, max_poll_records=700)
    while one.turn(0.0) == 0 or not one.ownership.cells:
        pass
    (cell,) = one.ownership.cells.values()
    assert cell.offset == 700
    log = FileLog([log_path(tmp_path)])
    log.poll(0.0, 1)
    log.seek(cell.name, None)
    (records,) = log.poll(0.0, 1500).batches
    assert one.committer.commit(cell, records)
    assert (cell.offset, cell.counters["produced"], cell.counters["queries"]) == (1500, 1500, 1500)
    assert contents(store, reading, CLIENTS) == whole


def test_a_restart_resumes_where_the_store_is(
    tmp_path: Path, new_store: NewStore, reading: Ingest, whole: dict[str, Mapping[str, bytes]]
) -> None:
    store = new_store()
    first = runner(log_path(tmp_path), store, reading)
    while first.turn(0.0) == 0 or first.ownership.cells[store.cells()[0]].offset != 600:
        pass
    second = runner(log_path(tmp_path), store, reading)
    assert second.turn(0.0) == 0
    (cell,) = second.ownership.cells.values()
    assert (cell.offset, cell.counters["queries"]) == (600, 600)
    through(second)
    assert contents(store, reading, CLIENTS) == whole
    assert cell.counters["queries"] == 1500


@pytest.mark.parametrize(
    ("call", "after", "error"),
    [
        ("claim", False, Unavailable("no route")),
        ("claim", True, Unavailable("answer lost")),
        ("load", False, Unavailable("no route")),
        ("load", False, Fenced("another process")),
        ("commit", False, Unavailable("no route")),
        ("commit", True, Unavailable("answer lost")),
        ("commit", False, Fenced("another process")),
        ("commit", False, Rewound("cell", 200)),
        ("dead_letters", False, Unavailable("no route")),
    ],
)
def test_a_fault_loses_and_doubles_nothing(
    call: str,
    after: bool,
    error: Exception,
    tmp_path: Path,
    new_store: NewStore,
    reading: Ingest,
    whole: dict[str, Mapping[str, bytes]],
) -> None:
    store = new_store()
    faulty = Faulty(store)
    one = runner(log_path(tmp_path), faulty, reading)
    faulty.faults = [(call, after, error)]
    tokens: list[str] = []
    fresh = Runtime().new_token

    def noted() -> str:
        tokens.append(fresh())
        return tokens[-1]

    one.health.runtime.new_token = noted
    through(one)
    assert faulty.faults == []
    assert contents(store, reading, CLIENTS) == whole
    (cell,) = one.ownership.cells.values()
    assert cell.counters["queries"] == 1500
    assert len(set(tokens)) == len(tokens), "every claim brings a fresh token"
    commits = faulty.calls.count("commit")
    assert commits == 8 + (call == "commit" and not after), "a commit of unknown outcome is never sent again as it was"


def test_a_cell_that_another_process_took_is_dropped_and_its_work_is_not_lost(
    tmp_path: Path, new_store: NewStore, reading: Ingest, whole: dict[str, Mapping[str, bytes]]
) -> None:
    store = new_store()
    one, other = (runner(log_path(tmp_path), store, reading) for _ in range(2))
    for _ in range(40):  # both believe that the cell is theirs, and fence each other in turn
        one.turn(0.0)
        other.turn(0.0)
    fenced = one.reporter.metrics._labelled("querywarden_commits_total", {"outcome": "fenced"})._value.get()
    assert fenced > 0
    through(one)
    assert contents(store, reading, CLIENTS) == whole


def test_a_store_that_was_rolled_back_gets_the_tail_again(
    tmp_path: Path, new_store: NewStore, reading: Ingest, whole: dict[str, Mapping[str, bytes]], lines: list[bytes]
) -> None:
    """The store is replaced by an older copy of itself while the process lives."""
    old, new = new_store(), new_store()
    first = runner(log_path(tmp_path), old, reading)
    while first.turn(0.0) == 0 or first.ownership.cells[old.cells()[0]].offset != 400:
        pass

    class Replaced:
        there = new

        def __getattr__(self, name: str) -> Any:
            return getattr(self.there, name)

    replaced = Replaced()
    one = runner(log_path(tmp_path), replaced, reading)
    while one.turn(0.0) == 0 or one.ownership.cells[new.cells()[0]].offset != 1000:
        pass
    replaced.there = old
    through(one)
    assert contents(old, reading, CLIENTS) == whole


def test_a_log_that_ends_before_the_store_needs_an_operator(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    store = new_store()
    one = runner(victims.write_lines(tmp_path / "log.jsonl", lines[:10]), store, reading)
    cell = one.log.poll(0.0, 1).assigned[0]
    store.claim(cell, "t" * 32)
    store.commit("t" * 32, Checkpoint(cell, None, 99))
    with pytest.raises(StoppedCells, match="log_truncated: .* ends after line 10"):
        through(runner(tmp_path / "log.jsonl", store, reading))


def test_many_cells_of_a_silent_store_do_not_hold_up_the_poll(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    class ManyCells(FileLog):
        def poll(self, timeout_s: float, max_records: int) -> Poll:
            return Poll(assigned=[f"t:{i}" for i in range(64)])

    class Away(EmbeddedStore):
        def claim(self, cell: str, token: str, proof: Proof = "none") -> Claim:
            raise Unavailable("no route")

    slept: list[float] = []
    path = victims.write_lines(tmp_path / "log.jsonl", [b"{}"])
    store = Away(tmp_path / "away.sqlite")
    one = IngestLoop(ManyCells([path]), store, reading, runtime=Runtime(sleep=slept.append, rng=random.Random(0)))
    for _ in range(12):
        one.turn(0.0)
    assert len(slept) == 12
    assert max(slept) <= BACK_OFF_S[1]
    assert len(one.ownership.waiting) == 64
    assert not one.ready
    store.close()


def test_a_cell_kept_through_a_rebalance_is_claimed_again(
    tmp_path: Path, new_store: NewStore, reading: Ingest, whole: dict[str, Mapping[str, bytes]]
) -> None:
    """A cooperative rebalance tells a member nothing about the partitions that it keeps."""

    class Doubts(FileLog):
        asked = 0

        def owns(self, cell: str) -> bool:
            self.asked += 1
            return self.asked > 2

    store, clock = new_store(), [0.0]
    source = Doubts([log_path(tmp_path)])
    faulty = Faulty(store)
    faulty.faults = [("commit", False, Fenced("another process"))]
    one = IngestLoop(source, faulty, reading, runtime=Runtime(sleep=lambda s: None, clock=lambda: clock[0]))
    for _ in range(40):
        clock[0] += RECHECK_S
        one.turn(0.0)
    assert source.asked == 3
    assert contents(store, reading, CLIENTS) == whole


def test_ready_means_joined_and_answered_not_owning_a_cell(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    class NoCells(FileLog):
        here = False

        def poll(self, timeout_s: float, max_records: int) -> Poll:
            return Poll()

        def is_member(self) -> bool:
            return self.here

    log = NoCells([victims.write_lines(tmp_path / "log.jsonl", [b"{}"])])
    faulty, clock = Faulty(new_store()), [0.0]
    one = IngestLoop(log, faulty, reading, runtime=Runtime(sleep=lambda s: None, clock=lambda: clock[0]))
    one.turn(0.0)
    seen = [one.ready]
    log.here = True
    one.turn(0.0)
    seen.append(one.ready)
    faulty.faults = [("cells", False, Unavailable("no route"))]
    clock[0] += KEEPALIVE_S
    for _ in range(2):
        one.turn(0.0)
        seen.append(one.ready)
    assert seen == [False, True, False, True]


def test_until_end_waits_for_brokers_that_are_away_at_the_start(
    tmp_path: Path, new_store: NewStore, reading: Ingest, whole: dict[str, Mapping[str, bytes]]
) -> None:
    class Away(FileLog):
        silent = 3

        def ends(self) -> dict[str, int]:
            if self.silent:
                self.silent -= 1
                raise Unavailable("no brokers")
            return super().ends()

    store = new_store()
    slept: list[float] = []
    one = IngestLoop(Away([log_path(tmp_path)]), store, reading, runtime=Runtime(sleep=slept.append))
    through(one)
    assert len(slept) == 3
    assert contents(store, reading, CLIENTS) == whole


# ------------------------------------------------------------------------------------------------ refused records


def test_refused_records_are_dead_letters_with_their_place(
    tmp_path: Path, lines: list[bytes], new_store: NewStore, reading: Ingest, whole: dict[str, Mapping[str, bytes]]
) -> None:
    spoilt = [*lines[:100], b"{", *lines[100:900], victims.line([1.0] * 10, model_id="another"), b"", *lines[900:]]
    store, letters = new_store(), FakeDeadLetterTopic()
    one = through(runner(victims.write_lines(tmp_path / "spoilt.jsonl", spoilt), store, reading, dead_letters=letters))
    assert [(d.place, d.offset, d.reason) for d in letters.taken] == [
        ("spoilt.jsonl:101", 100, "not_json"),
        ("spoilt.jsonl:902", 901, "unknown_model"),
    ]
    assert contents(store, reading, CLIENTS) == whole
    assert store.dead_letter_counts() == {"not_json": 1, "unknown_model": 1}
    (cell,) = one.ownership.cells.values()
    assert (cell.counters["produced"], cell.counters["dead"], cell.counters["queries"]) == (1502, 2, 1500)
    text = one.reporter.metrics.text().decode()
    assert 'querywarden_records_total{outcome="query"} 1500.0' in text
    assert 'querywarden_records_total{outcome="dead"} 2.0' in text
    assert 'querywarden_dead_letters_total{reason="unknown_model"} 1.0' in text
    assert 'querywarden_commits_total{outcome="committed"} 8.0' in text
    assert "acct-" not in text


def test_dead_letters_wait_for_their_topic_and_all_arrive(tmp_path: Path, new_store: NewStore, reading: Ingest) -> None:
    path = victims.write_lines(tmp_path / "log.jsonl", [f"line {i}".encode() for i in range(2500)])
    store, letters = new_store(), FakeDeadLetterTopic()
    letters.there = False
    one = runner(path, store, reading, dead_letters=letters, max_poll_records=2500)
    through(one)
    assert letters.taken == []
    letters.there = True
    one.turn(0.0)  # nothing new was refused: what waits is handed on all the same
    assert [d.offset for d in letters.taken] == list(range(2500))
    assert store.dead_letters(store.cells()[0], 10) == []


def test_dead_letters_that_an_earlier_process_left_are_handed_on(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    path = victims.write_lines(tmp_path / "log.jsonl", [b"no", b"JSON"])
    store, letters = new_store(), FakeDeadLetterTopic()
    letters.there = False
    through(runner(path, store, reading, dead_letters=letters))
    letters.there = True
    through(runner(path, store, reading, dead_letters=letters))
    assert [d.offset for d in letters.taken] == [0, 1]


def test_without_a_topic_the_first_dead_letters_stay_and_all_are_counted(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    path = victims.write_lines(tmp_path / "log.jsonl", [f"line {i}".encode() for i in range(3000)])
    store = new_store()
    through(runner(path, store, reading))
    kept = store.dead_letters(store.cells()[0], 10_000)
    assert [letter.offset for _, letter in kept] == list(range(KEPT))
    assert store.dead_letter_counts() == {"not_json": 3000}


# ------------------------------------------------------------------------------------------------ cache, windows


def test_a_trimmed_cache_gives_the_same_profiles(
    tmp_path: Path,
    new_store: NewStore,
    reading: Ingest,
    whole: dict[str, Mapping[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("consumers.ingest.step.MAX_CACHED", 5)
    store = new_store()
    faulty = Faulty(store)
    one = runner(log_path(tmp_path), faulty, reading, max_poll_records=11)
    through(one)
    assert faulty.calls.count("load") > 50
    (cell,) = one.ownership.cells.values()
    assert len(cell.profiles[victims.MODEL]) <= 11
    assert contents(store, reading, CLIENTS) == whole


def test_cells_share_the_cache(tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]) -> None:
    """Of what a process may keep, each of many cells keeps its share only."""
    one = through(runner(victims.write_lines(tmp_path / "log.jsonl", lines), new_store(), reading))
    (cell,) = one.ownership.cells.values()
    held = len(cell.profiles[victims.MODEL])
    assert held > 2
    reading.trim(cell, {}, MAX_CACHED // held)
    assert len(cell.profiles[victims.MODEL]) == held
    reading.trim(cell, {}, MAX_CACHED // held + 1)
    left = MAX_CACHED // (MAX_CACHED // held + 1)
    assert len(cell.profiles[victims.MODEL]) == left < held


def test_models_share_the_cache_and_the_fullest_gives_first(
    tmp_path: Path,
    new_store: NewStore,
    baseline: Baseline,
    secrets: Secrets,
    lines: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Ingest({victims.MODEL: baseline, "another": baseline}, secrets)
    few = [json.dumps(json.loads(one) | {"model_id": "another", "client_id": "acct-1"}).encode() for one in lines[:40]]
    one = through(runner(victims.write_lines(tmp_path / "log.jsonl", [*few, *lines]), new_store(), reading))
    (cell,) = one.ownership.cells.values()
    monkeypatch.setattr("consumers.ingest.step.MAX_CACHED", 12)
    reading.trim(cell, {})
    assert (len(cell.profiles["another"]), len(cell.profiles[victims.MODEL])) == (1, 11)


def test_who_came_first_is_forgotten_first_and_nobody_of_the_poll(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = through(runner(victims.write_lines(tmp_path / "log.jsonl", lines), new_store(), reading))
    (cell,) = one.ownership.cells.values()
    known = list(cell.stored)
    assert known == list(cell.profiles[victims.MODEL].rows)
    monkeypatch.setattr("consumers.ingest.step.MAX_CACHED", len(known) - 2)
    reading.trim(cell, {victims.MODEL: known[1:2]})
    assert list(cell.profiles[victims.MODEL].rows) == [known[1], *known[3:]]
    assert not {known[0], known[2]} & cell.stored.keys()


def at_day(day: float, client: str, seed: int) -> bytes:
    """A query `day` days after the start of a half-horizon window (15 days, counted from the epoch)."""
    start_ms = 1368 * 15 * DAY_MS
    stamp = np.datetime_as_string(np.datetime64(start_ms + round(day * DAY_MS), "ms"), unit="ms", timezone="UTC")
    return victims.line(victims.items(1, np.random.default_rng(seed))[0], client_id=client, timestamp=str(stamp))


def windows(store: EmbeddedStore, reading: Ingest, client: str) -> dict[int, Profile]:
    shape = shape_of(reading.baselines[victims.MODEL])
    fields = contents(store, reading, [client])[client]
    return {int(n[2:]): Profile.from_bytes(b, shape) for n, b in fields.items() if n.startswith("w:")}


@pytest.mark.parametrize("poll", [1, 2, 100])
def test_the_last_two_half_horizons_are_kept_and_the_older_is_forgotten(
    poll: int, tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    days = [0, 1, 14.9, 15.1, 16, 29, 31, 32, 33]
    store = new_store()
    path = victims.write_lines(tmp_path / "log.jsonl", [at_day(day, "acct-1", i) for i, day in enumerate(days)])
    through(runner(path, store, reading, max_poll_records=poll))
    assert {w - 1368: p.queries for w, p in windows(store, reading, "acct-1").items()} == {1: 6, 2: 3}


def test_a_client_that_comes_back_after_the_horizon_begins_anew(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    store = new_store()
    path = victims.write_lines(tmp_path / "log.jsonl", [at_day(day, "acct-1", i) for i, day in enumerate([0, 1, 61])])
    through(runner(path, store, reading, max_poll_records=1))
    assert {w - 1368: p.queries for w, p in windows(store, reading, "acct-1").items()} == {4: 1}


def test_a_late_query_counts_in_the_newest_window(tmp_path: Path, new_store: NewStore, reading: Ingest) -> None:
    store = new_store()
    path = victims.write_lines(tmp_path / "log.jsonl", [at_day(day, "acct-1", i) for i, day in enumerate([0, 16, 2])])
    through(runner(path, store, reading))
    assert {w - 1368: p.queries for w, p in windows(store, reading, "acct-1").items()} == {0: 3, 1: 2}


def _flip(blob: bytes) -> bytes:
    return blob[:40] + bytes([blob[40] ^ 1]) + blob[41:]


@pytest.mark.parametrize(
    "damage", [_flip, lambda blob: blob[: len(blob) // 2], lambda blob: b"", lambda blob: b"\x00" * 4096]
)
def test_a_damaged_profile_is_set_aside_and_begun_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    store = new_store()
    path = victims.write_lines(tmp_path / "log.jsonl", lines)
    one = runner(path, store, reading)
    while one.turn(0.0) == 0 or one.ownership.cells[store.cells()[0]].offset != 600:
        pass
    (name,) = store.cells()
    key = key_of(reading, "acct-7")
    (window,) = [f for f in store.shards(name, [key]).fields[key] if f.startswith("w:")]
    token = "d" * 32
    claim = store.claim(name, token)
    blob = store.shards(name, [key]).fields[key][window]
    store.commit(
        token, Checkpoint(name, claim.next_offset, 601, {key: {window: damage(blob)}}, [], dict(claim.counters))
    )
    through(runner(path, store, reading))
    profile = windows(store, reading, "acct-7")[int(window[2:])]
    assert profile.queries == sum(b'"acct-7"' in line for line in lines[601:])
    assert windows(store, reading, "acct-8")[int(window[2:])].queries == 50


def test_a_key_that_changes_in_between_changes_no_profile(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes], whole: dict[str, Mapping[str, bytes]]
) -> None:
    file = tmp_path / "secrets.json"
    Secrets.create(file)
    raw, ticks = new_store(), itertools.count()
    store = sealed_store(raw, Keyring(file, clock=lambda: float(next(ticks))), "auto")
    one = runner(log_path(tmp_path), store, reading)
    while one.turn(0.0) == 0 or one.ownership.cells[store.cells()[0]].offset != 600:
        pass
    new = keyring.rotate(file, "default", int(time.time()))
    through(one)
    assert contents(store, reading, CLIENTS) == whole
    sealed = contents(raw, reading, CLIENTS)
    assert {key_id_of(blob) for fields in sealed.values() for blob in fields.values()} == {new.id}


def test_a_damaged_header_is_written_anew_with_the_next_query(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes], whole: dict[str, Mapping[str, bytes]]
) -> None:
    store = new_store()
    one = runner(log_path(tmp_path), store, reading)
    while one.turn(0.0) == 0 or one.ownership.cells[store.cells()[0]].offset != 600:
        pass
    (name,), key, token = store.cells(), key_of(reading, "acct-7"), "d" * 32
    claim = store.claim(name, token)
    store.commit(token, Checkpoint(name, 600, 601, {key: {"h": UNREADABLE}}, [], dict(claim.counters)))
    through(runner(log_path(tmp_path), store, reading))
    assert contents(store, reading, ["acct-7"])["acct-7"]["h"] == whole["acct-7"]["h"]


def test_a_profile_of_another_map_is_set_aside(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes], secrets: Secrets
) -> None:
    """A baseline was fitted anew, with other columns: what the old one wrote can't be read."""
    store = new_store()
    path = victims.write_lines(tmp_path / "log.jsonl", lines)
    through(runner(path, store, reading))
    older = Ingest({victims.MODEL: victims.narrow_baseline()}, secrets)
    later = victims.write_lines(
        tmp_path / "later.jsonl",
        [
            victims.line(row, client_id="acct-7", features=[float(v) for v in row[:4]])
            for row in victims.items(5, np.random.default_rng(1))
        ],
    )
    name = store.cells()[0]
    key = key_of(reading, "acct-7")
    fields = store.shards(name, [key]).fields[key]
    one = runner(later, store, older)
    one.turn(0.0)
    (cell,) = one.ownership.cells.values()
    older.take(cell, {key: fields}, [key])
    assert older.of_model(cell, victims.MODEL).profile(key).queries == 0
    through(one)


# ------------------------------------------------------------------------------------------------------- privacy


def test_no_client_id_is_stored_in_clear(
    tmp_path: Path, new_store: NewStore, reading: Ingest, lines: list[bytes]
) -> None:
    store = new_store()
    path = victims.write_lines(tmp_path / "log.jsonl", [*lines[:300], lines[300][:-1], b"\xff" + lines[301]])
    through(runner(path, store, reading))
    assert store.dead_letter_counts() == {"not_json": 2}
    store.close()
    for file in tmp_path.glob("store0.sqlite*"):
        assert b"acct-" not in file.read_bytes()


def test_unknown_models_are_refused_or_counted(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets
) -> None:
    path = victims.write_lines(tmp_path / "log.jsonl", [victims.line([0.0] * 10, model_id="other")])
    for admit, counter in ((False, "dead"), (True, "unmodelled")):
        one = runner(path, new_store(), Ingest({victims.MODEL: baseline}, secrets, admit_unknown=admit))
        through(one)
        (cell,) = one.ownership.cells.values()
        assert cell.counters[counter] == 1
