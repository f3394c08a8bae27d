"""Topics with schemas in a registry, through the real process: JSON, Avro, Protocol Buffers; headers, null keys, tombstones."""

from __future__ import annotations

import contextlib
import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from kafka import KafkaProducer
from support import loans

from consumers import config
from consumers.fit import write_baseline
from consumers.log.mappings.identity import UNATTRIBUTED
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import Metrics
from consumers.wiring import processes
from detector.baseline import Baseline

START_MS = int(loans.START.timestamp() * 1000)
NUMBERS = ("age", "tenure", "income", "ratio")
FRAME = b"\x00\x00\x00\x00\x07"
MAPPING = """
name = "registered"
[read]
format = "FORMAT"
framing = "schema-registry"
SCHEMAS
[client]
paths = [{ path = "$header.x-tenant" }, { path = "$key" }]
[time]
paths = ["$time"]
[model]
constant = "MODEL"
[status]
constant = 200
[input]
paths = ["inputs"]
form = "row"
[answer]
paths = ["said"]
"""

F = descriptor_pb2.FieldDescriptorProto
FILE = descriptor_pb2.FileDescriptorProto(name="loans.proto", package="own", syntax="proto3")
INPUTS, QUERY = FILE.message_type.add(name="Inputs"), FILE.message_type.add(name="Query")
for number, column in enumerate((*NUMBERS, "country"), 1):
    kind = F.TYPE_DOUBLE if column in NUMBERS else F.TYPE_STRING
    INPUTS.field.add(name=column, number=number, type=kind, label=F.LABEL_OPTIONAL)
QUERY.field.add(name="inputs", number=1, type=F.TYPE_MESSAGE, label=F.LABEL_OPTIONAL, type_name=".own.Inputs")
QUERY.field.add(name="said", number=2, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
POOL = descriptor_pool.DescriptorPool()
POOL.Add(FILE)
Message: Any = message_factory.GetMessageClass(POOL.FindMessageTypeByName("own.Query"))
AVRO = {
    "type": "record", "name": "Query", "fields": [
        {"name": "inputs", "type": {"type": "record", "name": "Inputs", "fields": [
            *({"name": name, "type": "double"} for name in NUMBERS), {"name": "country", "type": "string"}]}},
        {"name": "said", "type": "string"},
    ],
}  # fmt: skip


def as_json(event: dict[str, Any]) -> bytes:
    return FRAME + json.dumps({"inputs": event["features"], "said": event["prediction"]["label"]}).encode()


def as_avro(event: dict[str, Any]) -> bytes:
    row, said = event["features"], event["prediction"]["label"]
    texts = [bytes([2 * len(text)]) + text.encode() for text in (row["country"], said)]
    return FRAME + b"".join(struct.pack("<d", row[name]) for name in NUMBERS) + b"".join(texts)


def as_protobuf(event: dict[str, Any]) -> bytes:
    row = event["features"]
    inputs = {name: float(row[name]) for name in NUMBERS} | {"country": row["country"]}
    found: bytes = Message(inputs=inputs, said=event["prediction"]["label"]).SerializeToString()
    return FRAME + b"\x02\x02" + found  # the second message of the file


WRITERS: dict[str, Callable[[dict[str, Any]], bytes]] = {"json": as_json, "avro": as_avro, "protobuf": as_protobuf}


@pytest.fixture(scope="module")
def baseline_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered")
    honest = [e for k in range(24) for e in loans.life(f"h-{k}", loans.person, 20, np.random.default_rng(k))]
    baseline: Baseline = loans.fitted(folder, honest)
    write_baseline(baseline, folder / "loans.baseline")
    return folder / "loans.baseline"


def mapping_file(folder: Path, form: str) -> Path:
    (folder / "schemas").mkdir()
    (folder / "schemas" / "7.avsc").write_text(json.dumps(AVRO))
    (folder / "schemas" / "7.desc").write_bytes(descriptor_pb2.FileDescriptorSet(file=[FILE]).SerializeToString())
    schemas = "" if form == "json" else 'schemas = "schemas"'
    text = MAPPING.replace("FORMAT", form).replace("SCHEMAS", schemas).replace("MODEL", loans.MODEL)
    (folder / "mapping.toml").write_text(text)
    return folder / "mapping.toml"


@pytest.mark.parametrize("form", WRITERS)
def test_a_topic_with_schemas_is_ingested_and_what_is_hostile_is_a_dead_letter(
    form: str, kafka_bootstrap: str, topic: Any, tmp_path: Path, baseline_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, write = topic(partitions=1), WRITERS[form]
    events = loans.life("c-0", loans.person, 9, np.random.default_rng(1))
    good = write(events[0])
    hostile = [b"{}", b"\x01" + good[1:], good[:5], good[: len(good) // 2], b"\x00\xff", good[5:]]
    if form != "json":
        hostile.append(b"\x00\x00\x00\x00\x08" + good[5:])
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap)
    for i, event in enumerate(events):
        headers = [("X-Tenant", b"in-a-header"), ("x-tenant", b"twice")] if i < 4 else []
        producer.send(
            where, write(event), key=b"in-the-key" if i < 7 else None, headers=headers, timestamp_ms=START_MS + i
        )
        producer.send(where, None, key=b"in-the-key", headers=headers)
    for value in hostile:
        producer.send(where, value, key=b"in-the-key")
    producer.flush()
    producer.close()
    for name, value in {
        "STATE_DIR": str(tmp_path / "state"), "STORE__URL": f"sqlite:///{tmp_path}/store.sqlite", "BASELINES": str(baseline_file),
        "KAFKA__BOOTSTRAP_SERVERS": kafka_bootstrap, "KAFKA__TOPIC": where, "KAFKA__GROUP_ID": where, "KAFKA__SESSION_TIMEOUT_MS": "6000",
        "KAFKA__DEAD_LETTER_TOPIC": f"{where}.dead", "KAFKA__ALERTS_TOPIC": f"{where}.alerts",
        "LOG__MAPPING": str(mapping_file(tmp_path, form)),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"QUERYWARDEN_{name}", value)
    settings = config.load()
    metrics = Metrics()
    with contextlib.ExitStack() as stack:
        processes.run_ingest(settings, stack, lambda: False, True, metrics)
    store = EmbeddedStore(tmp_path / "store.sqlite")
    counts = Counter(store.claim(f"{where}:0", "0" * 32, "alive").counters)
    reasons = store.dead_letter_counts()
    everyone = store.touched(f"{where}:0", dict.fromkeys(range(DECISION_CELLS), 0), 100)
    clients = {client.client for touched in everyone.values() for client in touched.clients}
    store.close()
    assert {name: counts[name] for name in ("queries", "dead", "dead_counted", "tombstones")} == {
        "queries": 9, "dead": len(hostile), "dead_counted": 0, "tombstones": 9,
    }  # fmt: skip
    assert set(reasons) <= {"framed", "not_json", "wrong_type"}
    secrets = Secrets.load(settings.secrets_path)
    for name in ("in-a-header", "in-the-key", UNATTRIBUTED):
        assert secrets.client_hash("default", name) in clients
    assert secrets.client_hash("default", "twice") not in clients
