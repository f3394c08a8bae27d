"""Erasing a client: nothing of it is left in store, snapshot or file, and neither a replay nor a rebuild brings it back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support import victims
from support.servers import NewServer, Redis, started, wait_until

from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.operators import erasure
from consumers.operators.audited_write import Actor, Subject
from consumers.operators.campaign_decisions import CampaignSubject
from consumers.operators.operate import Operations
from consumers.records.decision import stored_decision
from consumers.records.operator_entries import campaign_decision
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, Store, Tombstones, decision_cell, snapshot
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import connect
from detector.baseline import Baseline
from detector.policy import Policy
from detector.query import ClientKey

TENANT = "default"
MODEL = victims.MODEL


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Honest clients, a thief, and a refused record that shows the thief's id."""
    path = tmp_path_factory.mktemp("erasure") / "log.jsonl"
    attacks = [("noise_uniform", "plain")]
    victims.log_of(path, victims.streams(6, attacks, seed=5, kinds=["regular", "light"], queries=(300, 500)))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:50], f'"{thief_of(path)}" where no redaction expects it', *lines[50:]]) + "\n")
    return path


def thief_of(log: Path) -> str:
    streams = victims.streams(6, [("noise_uniform", "plain")], seed=5, kinds=["regular", "light"], queries=(300, 500))
    (name,) = {s.client for s in streams if s.role == "attack"}
    assert name in log.read_text()
    return name


class Life:
    def __init__(self, log: Path, baseline: Baseline, secrets: Secrets) -> None:
        self.log, self.baselines, self.secrets = log, {MODEL: baseline}, secrets
        self.thief = thief_of(log)
        self.key = ClientKey(TENANT, MODEL, secrets.client_hash(TENANT, self.thief))

    def live(self, store: Store) -> None:
        store.prepare(self.secrets.key_id)
        reading = ingest.IngestLoop(FileLog([self.log]), store, Ingest(self.baselines, self.secrets))
        ingest.run(reading, lambda: False, until_end=True, poll_timeout_s=0.0)
        judging = Detect(self.baselines, self.secrets, Policy(0.01, "block"))
        once: Any = {"now_s": lambda: None, "sleep": lambda s: None}
        detect.run(detect.Runner(store, judging, **once), lambda: False, until_idle=True)

    def operate(self, store: Store) -> None:
        """What operators write about the thief, without the rows of the audit log: those stay."""
        desk = Operations(_WithoutAudit(store), self.secrets)
        actor, subject = Actor("ann", "operator", TENANT), Subject(self.key.client, MODEL, self.thief)
        desk.decide(actor, subject, "block", reason="stole", once="a key")
        desk.allow(actor, Subject(self.key.client, "*", self.thief))
        desk.note(actor, self.key, "seen before")
        desk.withdraw(actor, subject)
        desk.decide(actor, Subject("0" * 32, MODEL, "somebody else"), "block")
        desk.decide_campaign(actor, CampaignSubject("c-1", MODEL, (self.key.client, "0" * 32)), "block")

    def rows(self, store: Store) -> dict[str, int]:
        found = (stored_decision(row, self.secrets, TENANT) for _, row in store.decisions(TENANT))
        return {row.client_id: row.assessment.queries for row in found}

    def subject(self, **more: Any) -> erasure.DataSubject:
        return erasure.DataSubject(TENANT, self.key.client, self.thief, (MODEL,), **more)


class _WithoutAudit:
    def __init__(self, store: Store) -> None:
        self._store = store

    def operate(self, revision: int, operation: Any) -> int:
        operation.audit.clear()
        return self._store.operate(revision, operation)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def life(log: Path, baseline: Baseline, secrets: Secrets) -> Life:
    return Life(log, baseline, secrets)


@pytest.fixture
def aof(new_server: NewServer) -> Iterator[Redis]:
    """A Redis that writes an append-only file."""
    with started(new_server(Redis, options=("--appendonly", "yes", "--appendfsync", "always"))) as server:
        yield server


def contents(folder: Path, pattern: str) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob(pattern)) if path.is_file())


def traces(life: Life) -> list[bytes]:
    """Everything that would give the thief away: id, hash, and the id sealed."""
    sealed = life.secrets.seal(life.thief, TENANT)
    return [life.thief.encode(), life.key.client.encode(), sealed]


def check_erasing(life: Life, store: Store, on_disk: Callable[[], bytes], folder: Path) -> None:
    life.live(store)
    life.operate(store)
    before, others = life.rows(store), {a.uid for a in store.alerts()}
    assert life.thief in before
    assert others
    content = on_disk()
    # the id in clear is nowhere: a refused record is redacted before it is stored
    assert [trace in content for trace in traces(life)] == [False, True, True]
    cell = decision_cell(life.key, DECISION_CELLS)
    positions, _ = store.restrictions()

    done = erasure.erase(store, life.secrets, life.subject())
    assert (done.profiles, done.decisions, done.letters, done.scrubbed) == (1, 1, 0, True)
    assert done.alerts >= 1
    assert done.entries == 4  # allow, note, the remembered answer, the decision about its campaign
    (campaign,) = store.operator_entries("campaign", TENANT)[1]
    assert campaign_decision(campaign).accounts == ("0" * 32,), "it stays in force for the others"
    wait_until(lambda: not any(trace in on_disk() for trace in traces(life)), what="the files without the client")

    gone = {name: queries for name, queries in before.items() if name != life.thief}
    assert life.rows(store) == gone
    assert store.changes({cell: positions[cell]}, 10) is None
    assert [e.key for e in store.operator_entries("decision")[1]] == [f"{MODEL}|{'0' * 32}"]
    # Read again by detect, by a rebuild, from a snapshot: it does not come back.
    life.live(store)
    (profile_cell,) = store.cells()
    store.reset(profile_cell, None)
    life.live(store)
    assert life.rows(store) == gone
    assert life.thief not in str(life.rows(store))
    assert store.claim(profile_cell, "look").counters["erased"] > 0
    snapshot.write(folder / "a.snapshot", store.export(), life.secrets)
    copy = EmbeddedStore(folder / "copy.sqlite")
    with snapshot.opened(folder / "a.snapshot", life.secrets) as (_, items):
        copy.restore(items)
    copy.reset(profile_cell, None)
    life.live(copy)
    assert life.rows(copy) == gone
    copy.close()


def test_nothing_is_left_in_sqlite(life: Life, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "s.sqlite")
    check_erasing(life, store, lambda: contents(tmp_path, "s.sqlite*"), tmp_path)
    store.close()


def test_nothing_is_left_in_redis(life: Life, tmp_path: Path, aof: Redis) -> None:
    store = connect(aof.url, timeout_s=20)

    def on_disk() -> bytes:
        with redis.Redis.from_url(aof.url) as raw:
            wait_until(lambda: raw.info("persistence")["aof_rewrite_in_progress"] == 0)
        return contents(aof.folder, "appendonlydir/*")

    check_erasing(life, store, on_disk, tmp_path)
    store.close()


def test_a_store_that_is_not_scrubbed_still_shows_it(
    life: Life, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: without the last step the file holds what was overwritten before."""
    store = EmbeddedStore(tmp_path / "s.sqlite")
    life.live(store)
    monkeypatch.setattr(store, "scrub", lambda: False)
    done = erasure.erase(store, life.secrets, life.subject())
    assert not done.scrubbed
    content = contents(tmp_path, "s.sqlite*")
    assert any(trace in content for trace in traces(life))
    store.close()


def test_the_document_tells_everything(life: Life, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "s.sqlite")
    life.live(store)
    life.operate(store)
    found = erasure.document(store, life.secrets, life.subject())
    json.dumps(found)
    assert (found["client_id"], found["client_key"], found["tenant"]) == (life.thief, life.key.client, TENANT)
    (model,) = found["models"]
    assert model["model_id"] == MODEL
    assert model["decision"]["client_id"] == life.thief
    (shard,) = model["profiles"]
    assert "h" in shard["fields"]
    assert {alert["client_id"] for alert in found["alerts"]} == {life.thief}
    assert sorted(one["kind"] for one in found["operators"]) == ["allow", "campaign", "idempotency", "note"]
    assert found["refused_records"] == []
    erasure.erase(store, life.secrets, life.subject())
    empty = erasure.document(store, life.secrets, life.subject())
    assert [empty[name] for name in ("models", "alerts", "operators", "refused_records")] == [[], [], [], []]
    store.close()


def test_a_client_is_named_by_its_id_or_its_hash(life: Life, tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "s.sqlite")
    life.live(store)
    assert erasure.models_of(store, TENANT) == {MODEL}
    by_id = erasure.subject_of(store, life.secrets, TENANT, life.thief, [MODEL], hashed=False)
    by_hash = erasure.subject_of(store, life.secrets, TENANT, life.key.client, [MODEL], hashed=True)
    assert by_id == by_hash == life.subject()
    unknown = erasure.subject_of(store, life.secrets, TENANT, "0" * 32, [MODEL], hashed=True)
    assert unknown.client_id == ""
    store.close()


def test_a_tombstone_shows_nobody(life: Life) -> None:
    mark = Tombstones.mark(life.key)
    assert len(mark) == 32
    assert life.key.client not in mark
    assert mark != Tombstones.mark(life.key._replace(model="other"))
