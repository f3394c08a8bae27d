"""A second baseline beside the live one, promoted and rolled back while ingest and detect run, on real Kafka and Redis.

The switch comes in the middle of the stream, and in between another ingest process takes over. Nothing may be lost or doubled:
at the end the live profiles equal those of a run that never knew a second baseline, and the shadow's those of a run that began with it.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import redis
from support import victims
from support.kafka_producer import produce

from consumers.detect import loop as detecting
from consumers.detect.step import Detect
from consumers.errors import Conflict
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.log.followed import FollowedFile
from consumers.log.kafka import KafkaLog, connection
from consumers.operators.audited_write import Actor
from consumers.operators.baseline_switch import BaselineSwitch
from consumers.readers.baseline_comparison import compare
from consumers.records import baselines_in_force
from consumers.records.baselines_in_force import BaselinesInForce
from consumers.records.decision import StoredDecision, stored_decision
from consumers.records.spans import fields_of, spans_in_force, together
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import RedisStore
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline
from detector.policy import FLAGGED, Policy
from detector.query import ClientKey

ADMIN = Actor("ops", "admin", "default")
PARTS = (0.0, 0.55, 0.7, 0.85, 1.0)
"""Shares of the log at which something is switched; by the first the thief is flagged."""


@pytest.fixture(scope="module")
def shadow(baseline: Baseline) -> Baseline:
    """Another feature map of the same columns: less is odd to it."""
    return replace(baseline, map=replace(baseline.map, levels=baseline.map.levels * 1.1))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    # within a day, so that no partition takes a query for one ahead of its log
    kinds = ("regular", "light", "monitor")
    who = victims.streams(5, [("noise_uniform", "plain")], seed=15, kinds=kinds, queries=(200, 300), days=0.9)
    victims.log_of(log, who)
    return log.read_bytes().splitlines()


@dataclass
class Service:
    """Ingest processes as threads, and a detector, on one store."""

    store: RedisStore
    baseline: Baseline
    secrets: Secrets
    bootstrap: str
    topic: str
    sent: int = 0
    threads: dict[str, tuple[threading.Thread, threading.Event]] = field(default_factory=dict)
    failed: list[BaseException] = field(default_factory=list)

    def start(self, name: str) -> None:
        step = Ingest({victims.MODEL: self.baseline}, self.secrets)
        in_force = BaselinesInForce(step.baselines, dict(step.baselines), self.secrets, "default")
        stop = threading.Event()

        def work() -> None:
            log = KafkaLog(
                connection(self.bootstrap), topics=[self.topic], group_id=self.topic, session_timeout_ms=30_000,
                heartbeat_interval_ms=500,
            )  # fmt: skip
            try:
                loop = ingest.IngestLoop(
                    log, self.store, step, max_poll_records=100, follow=lambda: in_force.changed(self.store)
                )
                ingest.run(loop, stop.is_set, poll_timeout_s=0.05)
            except BaseException as error:
                self.failed.append(error)
            finally:
                log.close()

        thread = threading.Thread(target=work, name=name)
        self.threads[name] = thread, stop
        thread.start()

    def end(self, name: str) -> None:
        thread, stop = self.threads.pop(name)
        stop.set()
        thread.join(30)
        assert not thread.is_alive()

    def send(self, lines: list[bytes]) -> None:
        keys = [json.loads(line)["client_id"].encode() for line in lines]
        self.sent += produce(self.bootstrap, self.topic, lines, keys)

    def read(self) -> int:
        return sum(self.store.shards(cell, []).offset for cell in self.store.cells())

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not done():
            assert not self.failed, self.failed
            assert time.monotonic() < end, "waited for a minute"
            time.sleep(0.02)

    def until_read(self) -> None:
        self.until(lambda: self.read() == self.sent)


@pytest.fixture
def service(
    topic: Callable[..., str], kafka_bootstrap: str, redis_url: str, baseline: Baseline, secrets: Secrets,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Service]:  # fmt: skip
    monkeypatch.setattr(baselines_in_force, "FOLLOW_S", 0.02)
    store = RedisStore(redis.Redis.from_url(redis_url, socket_timeout=20))
    store.prepare(secrets.key_id)
    one = Service(store, baseline, secrets, kafka_bootstrap, topic(partitions=2))
    yield one
    for name in list(one.threads):
        one.end(name)
    store.close()


def profiles(store: EmbeddedStore | RedisStore, keys: list[ClientKey], baseline: Baseline) -> Mapping[str, bytes]:
    """Client → merged profile, as bytes."""
    found = {key: together(spans_in_force(fields, baseline)) for key, fields in fields_of(store, keys).items()}
    return {key.client: one.to_bytes() for key, one in found.items() if one is not None}


def alone(path: Path, lines: list[bytes], baseline: Baseline, secrets: Secrets) -> EmbeddedStore:
    """What a process leaves that knows this baseline only."""
    store = EmbeddedStore(path.with_suffix(".sqlite"))
    store.prepare(secrets.key_id)
    log = FileLog([victims.write_lines(path, lines)])
    step = Ingest({victims.MODEL: baseline}, secrets)
    ingest.run(ingest.IngestLoop(log, store, step), lambda: False, until_end=True, poll_timeout_s=0.0)
    return store


def test_promotion_and_rollback_lose_and_double_nothing_and_decisions_stay(
    service: Service, shadow: Baseline, lines: list[bytes], tmp_path: Path
) -> None:
    live, secrets, store = service.baseline, service.secrets, service.store
    switch = BaselineSwitch(store, secrets)
    cut = [int(len(lines) * share) for share in PARTS]
    parts = [lines[a:b] for a, b in itertools.pairwise(cut)]
    decided = Detect({victims.MODEL: live}, secrets, Policy(0.2, "block"))
    in_force = BaselinesInForce(decided.baselines, dict(decided.baselines), secrets, "default")
    decided.baselines = in_force.live
    detector = detecting.Runner(store, decided, balanced=False, follow=lambda: in_force.changed(store))

    def assessed_on() -> dict[str, str]:
        return {row.client_id: row.baseline for row in rows()}

    def rows() -> list[StoredDecision]:
        while detector.turn():
            pass
        return [stored_decision(row, secrets, key.tenant) for key, row in store.decisions("default")]

    def flagged() -> set[str]:
        return {row.client_id for row in rows() if row.decision.state in FLAGGED}

    def last(part: int) -> str:
        return str(json.loads(parts[part][-1])["client_id"])

    service.start("a")
    service.send(parts[0])
    service.until_read()
    before = flagged()
    assert before
    assert set(assessed_on().values()) == {live.id}
    switch.shadow(ADMIN, (live, pack_baseline(live)), (shadow, pack_baseline(shadow)))
    time.sleep(0.5)  # all processes have looked
    service.send(parts[1])
    service.until(lambda: service.read() > service.sent - len(parts[1]) // 2)
    service.until(lambda: all(c.whole for c in switch.cells("default", stored(switch))))
    made = switch.promote(ADMIN, victims.MODEL)
    assert (made.live, made.beside) == (shadow.id, live.id)
    service.send(parts[2])
    service.until(lambda: service.read() > service.sent - len(parts[2]) // 2)
    service.end("a")  # another process takes over in the middle
    service.start("b")
    service.until_read()
    assert before <= flagged(), "decisions stay"
    assert assessed_on()[last(2)] == shadow.id
    switch.roll_back(ADMIN, victims.MODEL)
    service.send(parts[3])
    service.until_read()
    assert before <= flagged()
    assert assessed_on()[last(3)] == live.id
    cells = switch.cells("default", stored(switch))
    assert all(cell.whole and cell.missed == 0 for cell in cells)
    assert len(cells) == 2

    uids = [alert.uid for alert in store.alerts()]
    assert len(uids) == len(set(uids))
    keys = [key for key, _ in store.decisions("default", victims.MODEL)]
    for baseline, read in ((live, lines), (shadow, lines[cut[1] :])):
        reference = alone(tmp_path / f"{baseline.id}.jsonl", read, baseline, secrets)
        assert profiles(store, keys, baseline) == profiles(reference, keys, baseline)
        reference.close()
    compared = compare(store, secrets, "default", live, shadow, Policy(0.05))
    assert compared.compared + compared.older == len(keys)


def stored(switch: BaselineSwitch) -> baselines_in_force.StoredBaselines:
    found = switch.of("default", victims.MODEL)
    assert found is not None
    return found


def test_a_process_that_does_not_follow_is_seen_and_nothing_is_promoted(
    tmp_path: Path, new_store: Callable[[], EmbeddedStore], baseline: Baseline, shadow: Baseline, secrets: Secrets, lines: list[bytes]
) -> None:  # fmt: skip
    """The control: somebody who does not know of the shadow folds a part of the log, and the shadow lacks it."""
    store = new_store()
    switch = BaselineSwitch(store, secrets)
    path = tmp_path / "log.jsonl"

    def fold(these: list[bytes], *, follows: bool) -> None:
        victims.write_lines(path, these)
        step = Ingest({victims.MODEL: baseline}, secrets)
        in_force = BaselinesInForce(step.baselines, dict(step.baselines), secrets, "default")
        if follows and in_force.refresh(store):
            step.use(in_force.live, in_force.beside)
        one = ingest.IngestLoop(FollowedFile(path, poll_interval_s=0.01), store, step)
        ingest.run(one, lambda: False, until_end=True, poll_timeout_s=0.0)

    fold(lines[:200], follows=True)
    switch.shadow(ADMIN, (baseline, pack_baseline(baseline)), (shadow, pack_baseline(shadow)))
    fold(lines[:400], follows=False)
    with pytest.raises(Conflict, match="does not follow"):
        switch.promote(ADMIN, victims.MODEL)
    fold(lines[:500], follows=True)
    (cell,) = switch.cells("default", stored(switch))
    assert (cell.whole, cell.missed) == (True, sum(len(line) + 1 for line in lines[200:400]))
    switch.promote(ADMIN, victims.MODEL)
    fold(lines[:600], follows=True)
    dropped = switch.drop(ADMIN, victims.MODEL, baseline.id)
    assert (dropped.live, dropped.beside) == (shadow.id, "")
    with pytest.raises(Conflict, match="put the live one's file there"):
        switch.drop(ADMIN, victims.MODEL, baseline.id)
    switch.drop(ADMIN, victims.MODEL, shadow.id)
    assert switch.of("default", victims.MODEL) is None
