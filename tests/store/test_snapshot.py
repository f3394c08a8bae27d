"""Snapshots: the file against damage, and the restore drill: snapshot, lose the store, restore, read the tail, same scores."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support import victims
from support.servers import wait_until

from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.errors import Refused
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.records.alert import stored_alert, subject_key
from consumers.records.decision import stored_decision
from consumers.secrets import Secrets
from consumers.store import Exported, Store, snapshot
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import connect
from consumers.store.renumbering import renumbered
from consumers.store.snapshot import FORMAT, MAGIC
from detector.baseline import Baseline
from detector.policy import Policy

OURS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
THEIRS = Secrets(b"s" * 16, b"q" * 32, b"k" * 32)
ITEMS = [Exported("profile", f"queries:{i}", random.Random(i).randbytes(500 * i)) for i in range(40)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.snapshot"
    snapshot.write(path, ITEMS, OURS, "1.2.3")
    return path


def read(path: Path) -> list[Exported]:
    with snapshot.opened(path, OURS) as (_, items):
        return list(items)


# --- the file


def test_a_file_gives_back_what_was_written(file: Path) -> None:
    with snapshot.opened(file, OURS) as (header, items):
        assert (header.secrets, header.version) == (OURS.key_id, "1.2.3")
        assert list(items) == ITEMS
    assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_an_empty_store_has_a_snapshot_too(tmp_path: Path) -> None:
    summary = snapshot.write(tmp_path / "a", [], OURS)
    assert (read(tmp_path / "a"), summary.records.total()) == ([], 0)
    assert summary.size == (tmp_path / "a").stat().st_size


def test_another_file_is_never_replaced(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(Refused, match="exists"):
        snapshot.write(file, ITEMS[:1], OURS)
    assert file.read_bytes() == before


def test_a_snapshot_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Exported]:
        yield ITEMS[3]
        raise RuntimeError("the store is gone")

    with pytest.raises(RuntimeError, match="gone"):
        snapshot.write(tmp_path / "a", broken(), OURS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(Refused, match="No such file"):
        snapshot.write(tmp_path / "nowhere" / "a", ITEMS, OURS)


def test_damage_is_refused_in_one_line_before_the_first_record(file: Path) -> None:
    whole = file.read_bytes()
    rng = random.Random(5)
    places = [*range(60), *rng.sample(range(60, len(whole)), 60), *range(len(whole) - 33, len(whole))]
    broken = [whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :] for at in places]
    broken += [whole[:cut] for cut in (0, 1, 11, 12, 16, 40, len(whole) // 2, len(whole) - 32, len(whole) - 1)]
    broken += [whole + b"x", b"", b"not a snapshot", bytes(100)]
    for content in broken:
        file.write_bytes(content)
        with pytest.raises(Refused) as refusal, snapshot.opened(file, OURS):
            pytest.fail("a damaged file was opened")
        assert "\n" not in str(refusal.value)


def test_other_formats_and_schemas_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="No such file"), snapshot.opened(file.with_name("missing"), OURS):
        pass
    monkeypatch.setattr(snapshot, "SCHEMA_VERSION", 99)
    with pytest.raises(Refused, match="schema 2, this version reads schema 99"), snapshot.opened(file, OURS):
        pass
    file.write_bytes(MAGIC + bytes([FORMAT + 1]) + bytes(100))
    with pytest.raises(Refused, match=f"format {FORMAT + 1}"), snapshot.opened(file, OURS):
        pass


def test_a_snapshot_that_somebody_changed_is_refused(file: Path) -> None:
    """Without the secrets nobody can write one that is taken: not with a checksum made anew, not under our secrets' name."""
    whole = file.read_bytes()
    with pytest.raises(Refused, match="sealed with the secrets"), snapshot.opened(file, THEIRS):
        pass
    forged = file.with_name("forged")
    snapshot.write(forged, ITEMS[:-1], THEIRS)
    changed = forged.read_bytes().replace(THEIRS.key_id.encode(), OURS.key_id.encode())
    for content in (changed, changed[:-32] + hashlib.sha256(changed[:-32]).digest(), whole[:-32] + bytes(32)):
        file.write_bytes(content)
        with pytest.raises(Refused, match="the seal is wrong"), snapshot.opened(file, OURS):
            pass
    file.write_bytes(whole)
    assert read(file) == ITEMS


ENDLESS = """
import itertools, sys, pathlib
from consumers.secrets import Secrets
from consumers.store import Exported, snapshot
items = (Exported("profile", f"c:{i}", bytes(1000)) for i in itertools.count())
snapshot.write(pathlib.Path(sys.argv[1]), items, Secrets.draw())
"""


def test_the_draft_of_a_killed_snapshot_goes_with_the_next(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path / "one.qws")])
    wait_until(lambda: bool(list(tmp_path.iterdir())), 60, "the draft")
    killed.kill()
    killed.wait()
    (draft,) = tmp_path.iterdir()
    assert draft.stat().st_mode & 0o777 == 0o600
    living = tmp_path / f".two.qws.{os.getpid()}.0123abcd.draft"
    other = tmp_path / ".three.qws.swp"
    for path in (living, other):
        path.touch()
    snapshot.write(tmp_path / "young.qws", ITEMS, OURS)
    assert draft.exists(), "another host's process may be writing it"
    for path in (draft, living, other):
        os.utime(path, (0, 0))
    snapshot.write(tmp_path / "next.qws", ITEMS, OURS)
    assert {p.name for p in tmp_path.iterdir()} == {living.name, other.name, "young.qws", "next.qws"}


# --- the drill


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drill") / "log.jsonl"
    attacks = [("noise_uniform", "plain")]
    victims.log_of(path, victims.streams(8, attacks, seed=5, kinds=["regular", "light"], queries=(300, 500)))
    return path


@pytest.fixture
def life(log: Path, baseline: Baseline, secrets: Secrets) -> Life:
    return Life(log, baseline, secrets)


class Life:
    """What ingest and detect do to a store, and what comes out."""

    def __init__(self, log: Path, baseline: Baseline, secrets: Secrets) -> None:
        self.log, self.baselines, self.secrets = log, {victims.MODEL: baseline}, secrets

    def reading(self, store: Store) -> ingest.IngestLoop:
        return ingest.IngestLoop(FileLog([self.log]), store, Ingest(self.baselines, self.secrets), max_poll_records=500)

    def part(self, store: Store, turns: int) -> None:
        reading = self.reading(store)
        for _ in range(turns):
            reading.turn(0.0)
        self.assess(store)

    def rest(self, store: Store) -> None:
        ingest.run(self.reading(store), lambda: False, until_end=True, poll_timeout_s=0.0)
        self.assess(store)

    def assess(self, store: Store) -> None:
        judging = Detect(self.baselines, self.secrets, Policy(0.01, "observe"))
        once: Any = {"now_s": lambda: None, "sleep": lambda s: None}
        detect.run(detect.Runner(store, judging, **once), lambda: False, until_idle=True)

    def scores(self, store: Store) -> dict[str, dict[str, Any]]:
        found = {key: stored_decision(row, self.secrets, key.tenant) for key, row in store.decisions("default")}
        return {row.client_id: row.score(key.model) for key, row in found.items()}


@pytest.mark.parametrize("way", ["sqlite to redis", "redis to sqlite", "sqlite to sqlite", "redis to redis of 5 cells"])
def test_a_restored_store_reads_the_tail_and_ends_where_it_would_have(
    way: str, life: Life, tmp_path: Path, redis_url: str
) -> None:
    stores: dict[str, Callable[[str], Store]] = {
        "sqlite": lambda name: EmbeddedStore(tmp_path / f"{name}.sqlite"),
        "redis": lambda name: connect(redis_url, timeout_s=20),
        "redis of 5 cells": lambda name: connect(redis_url, timeout_s=20, decision_cells=5),
    }
    origin, destination = (stores[kind] for kind in way.split(" to "))
    store = origin("lost")
    store.prepare(life.secrets.key_id)
    life.part(store, turns=2)
    (cell,) = store.cells()
    at = store.shards(cell, []).offset
    assert at > 0
    made = snapshot.write(tmp_path / "a.snapshot", store.export(), life.secrets)
    assert made.records["profile"] > 3
    life.rest(store)  # what happens after the snapshot
    wanted = life.scores(store)
    assert len(wanted) == 9
    assert store.shards(cell, []).offset > at
    store.close()
    with redis.Redis.from_url(redis_url) as raw:
        raw.flushdb()

    copy = destination("new")
    with snapshot.opened(tmp_path / "a.snapshot", life.secrets) as (_, items):
        copy.restore(
            renumbered(items, copy.decision_cells, lambda a: subject_key(stored_alert(a, life.secrets), life.secrets))
        )
    copy.prepare(life.secrets.key_id)
    assert copy.shards(cell, []).offset == at
    assert life.scores(copy) != wanted
    life.rest(copy)
    assert life.scores(copy) == wanted
    assert len({a.uid for a in copy.alerts()}) == len(copy.alerts()) > 0
    copy.close()


def test_a_cell_that_was_reset_ends_where_it_was(life: Life, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "s.sqlite")
    store.prepare(life.secrets.key_id)
    life.rest(store)
    wanted = life.scores(store)
    (cell,) = store.cells()
    counters = store.claim(cell, "look").counters
    store.reset(cell, None)
    assert store.claim(cell, "look").counters == {}
    life.rest(store)
    assert life.scores(store) == wanted
    again = store.claim(cell, "look").counters
    assert again == counters
    assert len({a.uid for a in store.alerts()}) == len(store.alerts())
    store.close()
