"""A running service and what is wrong around it: misspelt settings end it in one line, a cell that cannot go on stops alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from support import victims
from support.forked_command import COLUMNS, querywarden
from support.kafka_producer import produce
from support.servers import wait_until

from consumers.store import Checkpoint
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.alarms import ALARMS
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline

Topic = Callable[..., str]


@pytest.fixture
def settings(tmp_path: Path, baseline: Baseline) -> dict[str, str]:
    (tmp_path / "loans.baseline").write_bytes(pack_baseline(baseline))
    mine = {name: value for name, value in os.environ.items() if not name.startswith("QUERYWARDEN_")}
    ours = {
        "STATE_DIR": tmp_path,
        "BASELINES": tmp_path / "loans.baseline",
        "HTTP__BIND": "127.0.0.1:0",
        "KAFKA__SESSION_TIMEOUT_MS": 6000,
        "KAFKA__HEARTBEAT_INTERVAL_MS": 500,
    }
    return (
        mine
        | {"OMP_NUM_THREADS": "1", "COLUMNS": COLUMNS}
        | {f"QUERYWARDEN_{name}": str(value) for name, value in ours.items()}
    )


def on_kafka(bootstrap: str, topic: str) -> dict[str, str]:
    names = {
        "BOOTSTRAP_SERVERS": bootstrap,
        "TOPIC": topic,
        "GROUP_ID": topic,
        "DEAD_LETTER_TOPIC": f"{topic}.dead",
        "ALERTS_TOPIC": f"{topic}.alerts",
    }
    return {f"QUERYWARDEN_KAFKA__{name}": value for name, value in names.items()}


def ended(settings: dict[str, str], *arguments: str) -> tuple[int, list[str]]:
    """Status, and what was said on standard error that is no line of the log."""
    done = subprocess.run(
        [querywarden(), *arguments], env=settings, capture_output=True, text=True, timeout=90, check=False
    )
    return done.returncode, [line for line in done.stderr.splitlines() if not line.startswith("{")]


def lines(count: int, client: str = "acct-1") -> list[bytes]:
    rows = victims.items(count, np.random.default_rng(7))
    return [
        victims.line(row, client_id=client, timestamp=f"2026-03-10T{i // 60:02d}:{i % 60:02d}:00Z")
        for i, row in enumerate(rows)
    ]


@pytest.fixture
def topics(kafka_bootstrap: str) -> Iterator[Callable[[], set[str]]]:
    """Which topics there are."""
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    yield lambda: set(admin.list_topics())
    admin.close()


# ----------------------------------------------------------------------------------------------- misspelt settings


@pytest.mark.parametrize("command", [("ingest", "--until-end"), ("run",)])
def test_a_query_topic_that_does_not_exist_is_refused_and_nothing_is_created(
    command: tuple[str, ...],
    settings: dict[str, str],
    kafka_bootstrap: str,
    topic: Topic,
    topics: Callable[[], set[str]],
) -> None:
    misspelt = f"{topic(partitions=1)}s"
    status, said = ended(settings | on_kafka(kafka_bootstrap, misspelt), *command)
    assert (status, len(said)) == (1, 1), said
    assert re.search(f"kafka.topic: there is no topic '{misspelt}'", said[0])
    assert not {name for name in topics() if name.startswith(misspelt)} - {f"{misspelt}.alerts"}


def test_a_setting_allows_to_wait_for_the_query_topic(
    settings: dict[str, str], kafka_bootstrap: str, topic: Topic, topics: Callable[[], set[str]]
) -> None:
    later = f"{topic(partitions=1)}-later"
    more = on_kafka(kafka_bootstrap, later) | {"QUERYWARDEN_KAFKA__WAIT_FOR_TOPIC": "true"}
    assert ended(settings | more, "ingest", "--until-end") == (0, [])
    assert {later, f"{later}.dead"} & topics() == {f"{later}.dead"}, "only what we write to is created"


@contextmanager
def held(bootstrap: str, topic: str) -> Iterator[None]:
    """A consumer with the library's own assignors is the only member of the group."""
    other = KafkaConsumer(topic, bootstrap_servers=bootstrap, group_id=topic)
    over, joined = threading.Event(), threading.Event()

    def poll() -> None:
        while not over.is_set():
            other.poll(200)
            if other.assignment():
                joined.set()

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        assert joined.wait(30)
        yield
    finally:
        over.set()
        thread.join()
        other.close()


@pytest.mark.parametrize("command", [("ingest",), ("run", "--until-end")])
def test_a_group_that_is_held_by_another_protocol_is_refused(
    command: tuple[str, ...], settings: dict[str, str], kafka_bootstrap: str, topic: Topic
) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, lines(3))
    with held(kafka_bootstrap, name):
        status, said = ended(settings | on_kafka(kafka_bootstrap, name), *command)
    ours = [line for line in said if line.startswith("querywarden:")]
    assert (status, len(ours)) == (1, 1), said
    assert "kafka.group_id" in ours[0]
    assert name in ours[0]


@pytest.mark.parametrize(("path", "status"), [("900", 1), ("x", 2), ("99999999999999999999", 2)])
def test_a_redis_database_that_the_server_does_not_have_is_refused(
    path: str, status: int, settings: dict[str, str], redis_server: str
) -> None:
    found, said = ended(settings | {"QUERYWARDEN_STORE__URL": f"{redis_server}/{path}"}, "ingest", "--until-end")
    assert (found, len(said)) == (status, 1), said
    assert "store.url" in said[0]


# ------------------------------------------------------------------------------------------------- one stopped cell


class Service:
    """A service process; what it says on standard error is read as it comes."""

    def __init__(self, settings: dict[str, str], *arguments: str) -> None:
        self.process = subprocess.Popen([querywarden(), *arguments], env=settings, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(json.loads(line) for line in self.process.stderr)

    def says(self, event: str, **fields: str) -> dict[str, Any]:
        """Wait for a line of its log, in whatever order its threads write; each line is found once."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines if line["event"] == event and fields.items() <= line.items()]

        wait_until(lambda: bool(found()), 60, event)
        line = found()[0]
        self.lines.remove(line)
        return line

    def end(self) -> int:
        self.process.terminate()
        status = self.process.wait(30)
        self.reader.join(5)
        return status


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=5) as answer:
        return str(answer.read().decode())


def fill(bootstrap: str, topic: str, partition: int, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for value in values:
        producer.send(topic, value, partition=partition)
    producer.close()


def moved(path: Path, cell: str, offset: int) -> None:
    """The store believes to have read further than the log reaches: the log was cut back."""
    store = EmbeddedStore(path)
    claim = store.claim(cell, "t" * 32)
    store.commit("t" * 32, Checkpoint(cell, claim.next_offset, offset, counters=dict(claim.counters)))
    store.close()


@pytest.fixture
def cut_back(
    settings: dict[str, str], tmp_path: Path, kafka_bootstrap: str, topic: Topic
) -> tuple[str, dict[str, str]]:
    """A topic of two partitions, and settings whose store is behind the end of the first one."""
    name = topic(partitions=2)
    settings |= on_kafka(kafka_bootstrap, name)
    for partition in (0, 1):
        fill(kafka_bootstrap, name, partition, lines(5, f"acct-{partition}"))
    assert ended(settings, "ingest", "--until-end") == (0, [])
    moved(tmp_path / "querywarden.sqlite", f"{name}:0", 99)
    fill(kafka_bootstrap, name, 1, lines(9, "acct-1")[5:])
    return name, settings


@pytest.mark.parametrize("command", ["ingest", "run"])
def test_until_end_reads_the_other_cells_and_then_names_the_stopped_one(
    command: str, cut_back: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    name, settings = cut_back
    for _ in range(2):  # a restart behaves the same
        status, said = ended(settings, command, "--until-end")
        assert (status, len(said)) == (1, 1), said
        assert f"{name}:0 (log_truncated: " in said[0]
    store = EmbeddedStore(tmp_path / "querywarden.sqlite")
    assert store.shards(f"{name}:1", []).offset == 9
    assert len(list(store.decisions("default"))) == (0 if command == "ingest" else 2), "what was read was assessed"
    store.close()


def test_a_service_with_a_stopped_cell_answers_reads_on_and_resumes_when_told(
    cut_back: tuple[str, dict[str, str]], kafka_bootstrap: str
) -> None:
    name, settings = cut_back
    service = Service(settings | {"QUERYWARDEN_METRICS__BIND": "127.0.0.1:0"}, "run")
    try:
        bind = service.says("serve started")["bind"]
        assert service.says("cell stopped")["cell"] == f"{name}:0"
        service.says("alarm: " + ALARMS["cell_stopped"])
        assert get(f"http://{bind}/healthz")
        wait_until(lambda: bool(json.loads(get(f"http://{bind}/v1/health"))["stopped"]), 40, "the heartbeat")
        assert f"{name}:0" in json.loads(get(f"http://{bind}/v1/health"))["stopped"]
        assert "stopped" in get(f"http://{bind}/health")
        found = subprocess.run(
            [querywarden(), "doctor", "--json"], env=settings, capture_output=True, text=True, check=False
        ).stdout
        checks = {row["check"]: row for row in map(json.loads, found.splitlines())}
        assert checks["log cells"]["state"] == "look"
        assert f"{name}:0 is stopped" in checks["log cells"]["finding"]
        assert ended(settings, "rebuild", "--yes", "--from", "earliest", "--cell", f"{name}:0") == (0, [])
        service.says("cell claimed", cell=f"{name}:0")
        service.says("alarm ended", alarm="cell_stopped")
        assert service.end() == 0
    finally:
        service.process.kill()
        service.process.wait()
    assert ended(settings, "ingest", "--until-end") == (0, [])
