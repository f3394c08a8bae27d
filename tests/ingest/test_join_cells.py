"""Halves of queries in several topics, keyed differently, that meet in the store: through real processes, Kafka, Redis and SQLite."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer
from support import loans

from consumers import cli, config
from consumers.fit import write_baseline
from consumers.log.halves import JOINED
from consumers.telemetry.metrics import Metrics
from consumers.wiring import adapters, processes
from detector.baseline import Baseline

MAPPING = """
name = "gateway-and-model"
[join]
id = ["x-request-id"]
response_id = ["request_id"]
request = { have = ["x-request-id"] }
response = { have = ["request_id"] }
input = "response"
through = "THROUGH"
cells = CELLS
[client]
paths = [{ path = "x-tenant-id" }]
[time]
paths = ["start_time"]
[id]
paths = ["x-request-id"]
[model]
constant = "MODEL"
[status]
paths = ["response_code"]
[input]
paths = ["inputs"]
form = "row"
[answer]
paths = ["output"]
label = ["label"]
probabilities = ["probabilities"]
"""
Pair = tuple[bytes, bytes, bytes]
"""Client, the gateway's record, the model server's."""


@pytest.fixture(scope="module")
def baseline_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apart")
    honest = [e for k in range(24) for e in loans.life(f"h-{k}", loans.person, 20, np.random.default_rng(k))]
    baseline: Baseline = loans.fitted(folder, honest)
    write_baseline(baseline, folder / "loans.baseline")
    return folder / "loans.baseline"


def pairs(clients: int, each: int, first: int = 0) -> list[Pair]:
    """The same queries as a gateway and a model server log them."""
    events = loans.in_order(
        [
            e
            for k in range(clients)
            for e in loans.life(f"c-{first + k}", loans.person, each, np.random.default_rng(first + k))
        ]
    )
    found = []
    for number, event in enumerate(events):
        name = f"r-{first}-{number}"
        gateway = {
            "x-request-id": name,
            "x-tenant-id": event["client_id"],
            "start_time": event["timestamp"],
            "response_code": 200,
        }
        model = {"request_id": name, "inputs": event["features"], "output": event["prediction"]}
        found.append((event["client_id"].encode(), json.dumps(gateway).encode(), json.dumps(model).encode()))
    return found


def produce(bootstrap: str, topic: str, made: list[tuple[bytes | None, bytes]]) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for key, value in made:
        producer.send(topic, value, key=key)
    producer.flush()
    producer.close()


def produced(
    bootstrap: str, topics: tuple[str, str], made: list[Pair], gateways: bool = True, models: bool = True
) -> None:
    """The gateway keys by client, the model server by nothing that both have."""
    if gateways:
        produce(bootstrap, topics[0], [(client, gateway) for client, gateway, _ in made])
    if models:
        produce(bootstrap, topics[1], [(b"pod-%d" % (i % 5), model) for i, (_, _, model) in enumerate(made)])


def settings_of(
    folder: Path, bootstrap: str, topics: tuple[str, str], baseline: Path, monkeypatch: pytest.MonkeyPatch, store: str = "",
    through: str = "store", cells: int = 1,
) -> config.Settings:  # fmt: skip
    mapping = MAPPING.replace("THROUGH", through).replace("CELLS", str(cells)).replace("MODEL", loans.MODEL)
    (folder / "mapping.toml").write_text(mapping)
    for name, value in {
        "STATE_DIR": str(folder / "state"), "STORE__URL": store or f"sqlite:///{folder}/store.sqlite", "BASELINES": str(baseline),
        "KAFKA__BOOTSTRAP_SERVERS": bootstrap, "KAFKA__TOPICS": ",".join(topics), "KAFKA__GROUP_ID": f"{topics[0]}-{through}",
        "KAFKA__SESSION_TIMEOUT_MS": "6000", "KAFKA__DEAD_LETTER_TOPIC": f"{topics[0]}.dead", "METRICS__BIND": "",
        "KAFKA__ALERTS_TOPIC": f"{topics[0]}.alerts", "LOG__MAPPING": json.dumps(dict.fromkeys(topics, str(folder / "mapping.toml"))),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"QUERYWARDEN_{name}", value)
    return config.load()


def ingest(settings: config.Settings) -> Metrics:
    metrics = Metrics()
    with contextlib.ExitStack() as stack:
        processes.run_ingest(settings, stack, lambda: False, True, metrics)
    return metrics


def counters(settings: config.Settings) -> Counter[str]:
    with adapters.open_store(settings) as store:
        found: Counter[str] = Counter()
        for cell in store.cells():
            found += Counter(store.claim(cell, "0" * 32, "alive").counters)
        return found


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_halves_find_each_other_across_topics_partitions_and_processes(
    kind: str, cells: int, kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path,
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    topics = (topic(partitions=3), topic(partitions=2))
    store = request.getfixturevalue("redis_url") if kind == "redis" else ""
    settings = settings_of(tmp_path, kafka_bootstrap, topics, baseline_file, monkeypatch, store, cells=cells)
    first, second = pairs(3, 8), pairs(3, 8, 10)
    seen = []
    for some, gateways, models in (
        (first, True, False),
        ([], True, True),
        (second, False, True),
        (first, False, True),
        (second, True, False),
    ):
        produced(kafka_bootstrap, topics, some, gateways, models)
        metrics = ingest(settings)
        counts = counters(settings)
        # a process that finds nothing to read may end before it owns a cell whose halves it would count
        waiting = metrics.value("querywarden_halves_waiting") if some else None
        seen.append((counts["queries"], counts["joined"], waiting))
    counts = counters(settings)
    assert seen == [(0, 0, 24), (0, 0, None), (0, 0, 48), (24, 24, 24), (48, 48, 0)]
    assert {name: counts[name] for name in ("dead", "duplicate", "lone_requests", "lone_responses")} == dict.fromkeys(
        ("dead", "duplicate", "lone_requests", "lone_responses"), 0
    )
    with adapters.open_store(settings) as opened:
        assert sorted(opened.cells()) == [f"{JOINED}gateway-and-model:{n}" for n in range(cells)]
        assert [opened.arrivals(cell, 0, 10)[0] for cell in opened.cells()] == [[]] * cells, (
            "nothing is kept that waits for nobody"
        )


def test_in_their_partitions_most_of_them_do_not(
    kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same log, with halves that meet in partitions."""
    topics = (topic(partitions=3), topic(partitions=2))
    settings = settings_of(tmp_path, kafka_bootstrap, topics, baseline_file, monkeypatch, through="partition")
    produced(kafka_bootstrap, topics, pairs(3, 8))
    ingest(settings)
    assert counters(settings)["queries"] == 0


def test_what_waits_in_the_store_is_sealed(
    kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = (topic(partitions=1), topic(partitions=1))
    settings = settings_of(tmp_path, kafka_bootstrap, topics, baseline_file, monkeypatch)
    made = [(client, gateway.replace(b"c-0", b"canary-client"), model) for client, gateway, model in pairs(1, 5)]
    produced(kafka_bootstrap, topics, made, models=False)
    ingest(settings)
    with adapters.open_store(settings) as store:
        assert len(store.arrivals(f"{JOINED}gateway-and-model:0", 0, 10)[0]) == 5
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("store.sqlite*"))
    assert b"gateway-and-model" in stored
    assert b"canary-client" not in stored
    assert b"x-request-id" not in stored


def test_records_that_cannot_be_read_are_dead_letters_once(
    kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = (topic(partitions=2), topic(partitions=2))
    settings = settings_of(tmp_path, kafka_bootstrap, topics, baseline_file, monkeypatch, cells=2)
    hostile = (b"garbage", b"[" * 9000, b'{"a": 1', b"\xff\x00", b'[{"request_id": "r-0-0"}, 7]')
    produce(kafka_bootstrap, topics[1], [(None, value) for value in hostile])
    produced(kafka_bootstrap, topics, pairs(2, 6))
    ingest(settings)
    counts = counters(settings)
    assert counts["dead"] == len(hostile)
    assert counts["joined"] >= 11


def test_another_number_of_join_cells_needs_a_rebuild(
    kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    topics = (topic(partitions=2), topic(partitions=2))
    produced(kafka_bootstrap, topics, pairs(2, 6))
    ingest(settings_of(tmp_path, kafka_bootstrap, topics, baseline_file, monkeypatch))
    more = settings_of(tmp_path, kafka_bootstrap, topics, baseline_file, monkeypatch, cells=2)
    with pytest.raises(Exception, match=r"log\.mapping"):
        ingest(more)
    with pytest.raises(SystemExit) as refused:
        cli.main(["rebuild", "--from", "2", "--yes"])
    assert refused.value.code == 2
    assert "earliest" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["rebuild", "--from", "earliest", "--yes"])
    assert ended.value.code == 0
    ingest(more)
    assert counters(more)["queries"] == 12
    wide = settings_of(tmp_path, kafka_bootstrap, topics, baseline_file, monkeypatch, cells=3)
    with pytest.raises(Exception, match="2 partitions"):
        ingest(wide)


def test_a_process_that_is_killed_loses_no_half_and_joins_none_twice(
    kafka_bootstrap: str,
    topic: Any,
    tmp_path: Path,
    baseline_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    redis_url: str,
) -> None:
    topics = (topic(partitions=3), topic(partitions=2))
    monkeypatch.setenv("QUERYWARDEN_KAFKA__MAX_POLL_RECORDS", "20")
    settings = settings_of(tmp_path, kafka_bootstrap, topics, baseline_file, monkeypatch, redis_url)
    made = pairs(6, 60)
    killed = 0
    for part in range(3):
        some = made[part * 120 : part * 120 + 120]
        produced(kafka_bootstrap, topics, some)
        command = [sys.executable, "-m", "consumers", "ingest"]
        with subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and counters_beside(settings)["joined"] <= part * 120:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    ingest(settings)
    counts = counters(settings)
    assert killed == 3
    assert (counts["joined"], counts["queries"]) == (360, 360)
    assert {name: counts[name] for name in ("duplicate", "dead", "lone_requests", "lone_responses")} == dict.fromkeys(
        ("duplicate", "dead", "lone_requests", "lone_responses"), 0
    )


def counters_beside(settings: config.Settings) -> Counter[str]:
    """As `counters`, without disturbing the owner."""
    import redis

    from consumers.store.layout import profile_prefix

    server = redis.Redis.from_url(settings.store_url)
    try:
        stored: dict[bytes, bytes] = server.hgetall(f"{profile_prefix(f'{JOINED}gateway-and-model:0')}meta")  # type: ignore[assignment]
    finally:
        server.close()
    return Counter({name[2:].decode(): int(n) for name, n in stored.items() if name.startswith(b"n:")})
