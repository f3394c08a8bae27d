"""Logs of other tools on Kafka, through the real process: `ingest --mapping`, its counters, its dead letters, a rebuild."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer
from support import foreign_logs, loans

from consumers import cli, config
from consumers.fit import write_baseline
from consumers.log.halves import ROW_BITS
from consumers.log.mappings.identity import UNATTRIBUTED
from consumers.log.mappings.mapping import NATIVE, PRESETS, ReadSpec, preset
from consumers.log.mappings.written import as_toml
from consumers.store import DECISION_CELLS
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import Metrics
from consumers.wiring import adapters, processes
from detector.baseline import Baseline

Headers = list[tuple[str, bytes]]
Made = list[tuple[bytes, Headers, int | None]]


def records(lines: list[bytes], kcat: bool) -> Made:
    """(value, headers, time) of each; what `kcat -J` wrote becomes the record that it was."""
    if not kcat:
        return [(line, [], None) for line in lines]
    found = []
    for line in lines:
        record = json.loads(line)
        names, texts = record["headers"][::2], record["headers"][1::2]
        headers = [(name, text.encode()) for name, text in zip(names, texts, strict=True)]
        found.append((record["payload"].encode(), headers, record["ts"]))
    return found


def produce_all(bootstrap: str, topic: str, made: Made) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for value, headers, time_ms in made:
        producer.send(topic, value, headers=headers, timestamp_ms=time_ms)
    producer.flush()
    producer.close()


@pytest.fixture(scope="module")
def baseline_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapped")
    baseline: Baseline = loans.fitted(
        folder, [e for k in range(24) for e in loans.life(f"h-{k}", loans.person, 20, np.random.default_rng(k))]
    )
    path = folder / "loans.baseline"
    write_baseline(baseline, path)
    return path


def settings_of(
    folder: Path, bootstrap: str, topic: str, baseline: Path, mapping: str, monkeypatch: pytest.MonkeyPatch
) -> config.Settings:
    for name, value in {
        "STATE_DIR": str(folder / "state"), "STORE__URL": f"sqlite:///{folder}/store.sqlite", "BASELINES": str(baseline),
        "KAFKA__BOOTSTRAP_SERVERS": bootstrap, "KAFKA__TOPIC": topic, "KAFKA__GROUP_ID": topic, "KAFKA__SESSION_TIMEOUT_MS": "6000",
        "KAFKA__DEAD_LETTER_TOPIC": f"{topic}.dead", "KAFKA__ALERTS_TOPIC": f"{topic}.alerts", "LOG__MAPPING": mapping,
    }.items():  # fmt: skip
        monkeypatch.setenv(f"QUERYWARDEN_{name}", value)
    return config.load()


def ingest(settings: config.Settings) -> Metrics:
    metrics = Metrics()
    with contextlib.ExitStack() as stack:
        processes.run_ingest(settings, stack, lambda: False, True, metrics)
    return metrics


def counters(folder: Path, topic: str = "") -> Counter[str]:
    """Of all cells, or of those of a topic."""
    store = EmbeddedStore(folder / "store.sqlite")
    try:
        found: Counter[str] = Counter()
        for cell in store.cells():
            if topic and not cell.startswith(f"{topic}:"):
                continue
            found += Counter(store.claim(cell, "0" * 32, "alive").counters)
        return found
    finally:
        store.close()


@pytest.mark.parametrize("name", [*sorted(set(foreign_logs.TABLES) - {"csv"}), "litellm"])
def test_a_topic_of_another_tool_is_ingested_and_what_is_hostile_is_a_dead_letter(
    name: str, kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = loans.in_order(
        [e for k in range(3) for e in loans.life(f"c-{k}", loans.person, 8, np.random.default_rng(k))]
    )
    lines = foreign_logs.TABLES[name](events) if name in foreign_logs.TABLES else foreign_logs.litellm(24)
    if name == "litellm":  # of a model that has a baseline
        lines = [line.replace(b'"model_group": "chat"', f'"model_group": "{loans.MODEL}"'.encode()) for line in lines]
    hostile: Made = [(value, [], None) for value in (b"garbage", b"[" * 9000, b'{"a": 1', b"\xff\x00")]
    where = topic(partitions=1)
    produce_all(kafka_bootstrap, where, records(lines, name == "seldon") + hostile)
    settings = settings_of(tmp_path, kafka_bootstrap, where, baseline_file, name, monkeypatch)
    metrics = ingest(settings)
    found = counters(tmp_path)
    assert found["queries"] == 24
    assert found["dead"] - found["dead_counted"] == len(hostile)
    assert metrics.value("querywarden_mapped_total", outcome="events") == 24
    unattributed = metrics.value("querywarden_mapped_total", outcome="unattributed") or 0
    assert unattributed == (24 if name in foreign_logs.WITHOUT_CALLER else 0)


def test_halves_that_wait_find_each_other_in_the_next_process(
    kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process reads on where the store says, and the halves that waited there are read again from the topic."""
    lines = foreign_logs.kserve(loans.in_order(loans.life("c-0", loans.person, 8, np.random.default_rng(1))))
    requests, responses = lines[::2], lines[1::2]
    where = topic(partitions=1)
    settings = settings_of(tmp_path, kafka_bootstrap, where, baseline_file, "kserve", monkeypatch)
    seen = []
    for some in (requests[:5], [], responses[3:] + requests[5:], responses[:3], [responses[7]]):
        produce_all(kafka_bootstrap, where, records(some, False))
        metrics = ingest(settings)
        counts = counters(tmp_path)
        seen.append((counts["queries"], counts["joined"], metrics.value("querywarden_halves_waiting")))
    assert seen == [(0, 0, 5), (0, 0, 5), (5, 5, 3), (8, 8, 0), (8, 8, 1)]


def declared_table(folder: Path) -> str:
    """A mapping for CSV on a topic, where no first line names the columns."""
    columns = ["api_key", "timestamp", "age", "tenure", "income", "ratio", "country", "prediction"]
    mapping = msgspec.structs.replace(preset("csv"), read=ReadSpec(format="csv", columns=tuple(columns)))
    (folder / "table.toml").write_text(as_toml(mapping))
    return str(folder / "table.toml")


def test_logs_of_texts_and_tables_without_a_first_line_are_ingested(
    kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The presets that the test above leaves out. A text is a query of its client for a model of tables too; it does not fit."""
    expected = {"hiddenlayer": 6, "envoy-ai": 6, "otel-genai": 6, "openinference": 12, "csv": 6}
    made = {name: foreign_logs.TEXTS[name](6) for name in expected if name != "csv"}
    events = loans.in_order(loans.life("c-0", loans.person, 6, np.random.default_rng(1)))
    made["csv"] = foreign_logs.csv_table(events)[1:]
    topics = {name: topic(partitions=1) for name in expected}
    for name, lines in made.items():
        ours = [re.sub(rb'"(chat|embed)"', f'"{loans.MODEL}"'.encode(), line) for line in lines]
        produce_all(kafka_bootstrap, topics[name], records(ours, False))
    formats = {where: declared_table(tmp_path) if name == "csv" else name for name, where in topics.items()}
    monkeypatch.setenv("QUERYWARDEN_KAFKA__TOPICS", ",".join(topics.values()))
    ingest(settings_of(tmp_path, kafka_bootstrap, topics["csv"], baseline_file, json.dumps(formats), monkeypatch))
    assert {name: counters(tmp_path, where)["queries"] for name, where in topics.items()} == expected


def test_a_mapping_on_a_topic_that_was_read_without_one_stops_until_a_rebuild(
    kafka_bootstrap: str,
    topic: Any,
    tmp_path: Path,
    baseline_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    events = loans.in_order(loans.life("c-0", loans.person, 6, np.random.default_rng(1)))
    where = topic(partitions=1)
    produce_all(kafka_bootstrap, where, records(foreign_logs.databricks(events), False))
    ingest(settings_of(tmp_path, kafka_bootstrap, where, baseline_file, "native", monkeypatch))
    assert counters(tmp_path)["queries"] == 0
    mapped = settings_of(tmp_path, kafka_bootstrap, where, baseline_file, "databricks", monkeypatch)
    with pytest.raises(Exception, match=r"log\.mapping"):
        ingest(mapped)
    with pytest.raises(SystemExit) as ended:
        cli.main(["rebuild", "--from", "2", "--yes"])
    assert ended.value.code == 0
    assert f"offset {2 << ROW_BITS:,}" in capsys.readouterr().out
    ingest(mapped)
    assert counters(tmp_path)["queries"] == 4
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", f"kafka:{where}", "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["format"], said["queries"]) == ("databricks", 6)
    assert UNATTRIBUTED not in json.dumps(said["fields"])


def test_one_process_reads_topics_of_several_formats(
    kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A native topic beside two that are mapped: every query is counted for its client, and a restart doubles none."""
    lives = [loans.life(f"c-{k}", loans.person, 6, np.random.default_rng(k)) for k in range(3)]
    native, databricks, azure = topic(partitions=2), topic(partitions=1), topic(partitions=1)
    produce_all(kafka_bootstrap, native, [(json.dumps(event).encode(), [], None) for event in lives[0]])
    produce_all(kafka_bootstrap, databricks, records(foreign_logs.databricks(lives[1]), False))
    produce_all(
        kafka_bootstrap, azure, [*records(foreign_logs.TABLES["azureml"](lives[2]), False), (b"garbage", [], None)]
    )
    monkeypatch.setenv("QUERYWARDEN_KAFKA__TOPICS", f"{native}, {databricks},{azure}")
    formats = json.dumps({databricks: "databricks", azure: "azureml"})
    settings = settings_of(tmp_path, kafka_bootstrap, native, baseline_file, formats, monkeypatch)
    ingest(settings)
    first = counters(tmp_path)
    assert (first["queries"], first["dead"]) == (18, 1)
    more = loans.life("c-9", loans.person, 4, np.random.default_rng(9))
    produce_all(kafka_bootstrap, databricks, records(foreign_logs.databricks(more), False))
    ingest(settings)
    assert counters(tmp_path)["queries"] == 22
    assert {cell.rpartition(":")[0] for cell in EmbeddedStore(tmp_path / "store.sqlite").cells()} == {
        native,
        databricks,
        azure,
    }


def fields_of(settings: config.Settings) -> dict[str, dict[str, bytes]]:
    """What is stored of each client, whatever its cell."""
    with adapters.open_store(settings) as store:
        found: dict[str, dict[str, bytes]] = {}
        for cell in store.cells():
            everyone = store.touched(cell, dict.fromkeys(range(DECISION_CELLS), 0), 1000)
            clients = [client for touched in everyone.values() for client in touched.clients]
            found |= {client.client: fields for client, fields in store.shards(cell, clients).fields.items()}
        return found


def test_canary_events_leave_the_same_profiles_as_their_truthful_answers(
    kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same queries with and without `canary`, from a topic and from a file; control: a marked answer in the log is another profile."""
    events = loans.in_order(
        [e for k in range(4) for e in loans.life(f"c-{k}", loans.person, 30, np.random.default_rng(k))]
    )
    flagged = [e | {"canary": True} if i % 3 == 0 else e for i, e in enumerate(events)]
    labels = sorted({e["prediction"]["label"] for e in events})
    turned = dict(zip(labels, labels[1:] + labels[:1], strict=True))
    marked = [e | {"prediction": {"label": turned[e["prediction"]["label"]]}} if "canary" in e else e for e in flagged]
    kept: dict[str, dict[str, dict[str, bytes]]] = {}
    for name, log in (("plain", events), ("flagged", flagged), ("marked", marked)):
        where = topic(partitions=1)
        produce_all(kafka_bootstrap, where, [(line, [], None) for line in loans.lines_of(log)])
        settings = settings_of(tmp_path, kafka_bootstrap, where, baseline_file, "native", monkeypatch)
        monkeypatch.setenv("QUERYWARDEN_STORE__URL", f"sqlite:///{tmp_path}/{name}.sqlite")
        settings = config.load()
        metrics = ingest(settings)
        assert metrics.value("querywarden_canaries_total") == (0 if name == "plain" else 40)
        kept[name] = fields_of(settings)
    path = tmp_path / "flagged.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in loans.lines_of(flagged)))
    with pytest.raises(SystemExit) as ended:
        cli.main(["replay", str(path), "--baseline", str(baseline_file), "--store", str(tmp_path / "replay.sqlite")])
    assert ended.value.code == 0
    monkeypatch.setenv("QUERYWARDEN_STORE__URL", f"sqlite:///{tmp_path}/replay.sqlite")
    kept["replayed"] = fields_of(config.load())
    assert len(kept["plain"]) == 4
    assert kept["flagged"] == kept["plain"]
    assert kept["replayed"] == kept["plain"]
    assert kept["marked"] != kept["plain"]


# --- credentials


def canary(name: str) -> str:
    """The key that clients of a preset send. Its last letters are those of no other."""
    return f"sk-canary-{name}-5f2e9c71"


def with_credential(name: str, line: bytes) -> bytes:
    """A record whose client is known by a raw key alone, or that holds one where the preset looks for none."""
    key = canary(name)
    headers = {"x-api-key": key, "apikey": key, "authorization": f"Bearer {key}"}
    record = json.loads(line)
    for entry in record if isinstance(record, list) else [record]:
        match name:
            case "kserve":
                entry["metadata"] = json.dumps({header: [value] for header, value in headers.items()})
            case "seldon":
                entry["headers"] += [text for pair in headers.items() for text in pair]
            case "apisix" | "kong":
                entry["consumer"] = {}
                entry["request"]["headers"] |= headers
            case "litellm":
                entry["metadata"] = {"user_api_key_hash": key}
            case "envoy-ai":
                del entry["x-tenant-id"]
                entry |= headers
            case _:
                entry |= {"api_key": key, "headers": headers}
    return json.dumps(record).encode()


def lines_with_credentials(name: str) -> list[bytes]:
    """Records of a preset, and as many ways to break one as dead letters know."""
    events = loans.in_order(loans.life("c-0", loans.person, 6, np.random.default_rng(4)))
    if name == "csv":
        rows = foreign_logs.csv_table(events)[1:]
        good = [canary(name).encode() + row[row.index(b",") :] for row in rows]
        return [*good, good[0][:-20], good[0] + b',"' + canary(name).encode(), canary(name).encode()]
    made = foreign_logs.TABLES[name](events) if name in foreign_logs.TABLES else foreign_logs.TEXTS[name](6)
    good = [with_credential(name, line) for line in made]
    if name == "seldon":
        return good
    bare = canary(name).encode()
    broken = [good[0][: len(good[0]) * part // 4] for part in (1, 2, 3)] + [good[0] + b"}"]
    broken += [
        b'{"authorization": "' + bare + b'", "x": ' + b"[" * 9000,
        bare,
        b'"' + bare + b'"',
        b'["' + bare + b'"]',
    ]
    broken.append(b'{"x-api-key": "' + bare + b'", "model": 1}')
    return good + broken


def letters_of(bootstrap: str, topic: str) -> list[bytes]:
    consumer = KafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=3000)
    try:
        return [record.value for record in consumer]
    finally:
        consumer.close()


def test_the_raw_key_of_a_client_is_nowhere_whatever_the_preset(
    kafka_bootstrap: str,
    topic: Any,
    tmp_path: Path,
    baseline_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = [name for name in PRESETS if name != NATIVE]
    topics, formats, sent = list[str](), dict[str, str](), b""
    for name in names:
        where = topic(partitions=1)
        topics.append(where)
        formats[where] = declared_table(tmp_path) if name == "csv" else name
        lines = lines_with_credentials(name)
        sent += b"".join(lines)
        produce_all(kafka_bootstrap, where, records(lines, name == "seldon"))
    monkeypatch.setenv("QUERYWARDEN_KAFKA__TOPICS", ",".join(topics))
    settings = settings_of(tmp_path, kafka_bootstrap, topics[0], baseline_file, json.dumps(formats), monkeypatch)
    ingest(settings)
    with pytest.raises(SystemExit):
        cli.main(["status"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", f"kafka:{topics[0]}.dead"])
    assert ended.value.code == 0
    letters = letters_of(kafka_bootstrap, f"{topics[0]}.dead")
    assert len(letters) > 10 * len(topics) / 2
    places = {f"file {path.relative_to(tmp_path)}": path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    places["dead-letter topic"] = b"".join(letters) + b"".join(
        base64.b64decode(json.loads(letter)["head"]) for letter in letters
    )
    shown = capfd.readouterr()
    assert "dead-letters" in shown.out
    places["output"] = (shown.out + shown.err).encode()
    told = {
        (name, where)
        for name in names
        for where, text in places.items()
        if any(form in text for form in (canary(name).encode(), base64.b64encode(canary(name).encode())[:-4]))
    }
    assert all(canary(name).encode() in sent for name in names)
    assert told == set()
    assert counters(tmp_path)["queries"] > 6 * 8
