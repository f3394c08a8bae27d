"""The producer: every form of a request, what is refused and why, what is in the log when the answer leaves."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import KafkaConsumer, TopicPartition
from support import victims
from support.seeded_api import FOREIGN, OURS, SECRETS, World, world

from consumers.http import producer
from consumers.http.producer import MOST_RECORDS, LogProducer, Unreadable, records
from consumers.ingest import loop as ingesting
from consumers.ingest.step import Ingest
from consumers.log.formats import InputReader, NativeFormat
from consumers.log.kafka import KafkaLog, connection
from consumers.log.writers import FileWriter, KafkaWriter
from consumers.store.embedded import EmbeddedStore
from detector.query import ClientKey

Topics = Callable[..., str]
EVENT = {
    "timestamp": "2026-03-02T09:00:00Z",
    "client_id": "acct-1",
    "model_id": "m",
    "features": [1, 2],
    "prediction": {"label": 1},
}
CLOUD = {"specversion": "1.0", "id": "ce-1", "source": "/s", "type": "query", "time": "2026-03-02T10:00:00Z"}


def text(event: object) -> bytes:
    return json.dumps(event).encode()


def without(*names: str) -> dict[str, Any]:
    return {k: v for k, v in EVENT.items() if k not in names}


FORMS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "ndjson": ("application/x-ndjson", b"\n" + text(EVENT) + b"\r\n\n" + text(EVENT), {}),
    "ndjson with a charset": ("application/x-ndjson; charset=utf-8", text(EVENT) + b"\n" + text(EVENT) + b"\n", {}),
    "array": ("application/json", json.dumps([EVENT, EVENT], indent=2).encode(), {}),
    "one object": ("application/json", json.dumps(EVENT, indent=2).encode(), {}),
    "binary": ("application/json", text(without("timestamp")), {"ce-specversion": "1.0", "ce-id": "ce-1", "ce-time": CLOUD["time"]}),
    "structured": ("application/cloudevents+json", text(CLOUD | {"data": without("timestamp")}), {}),
    "base64": (
        "application/cloudevents+json", text(CLOUD | {"data_base64": base64.b64encode(text(without("timestamp"))).decode()}), {},
    ),
    "batch": ("application/cloudevents-batch+json", text([CLOUD | {"data": EVENT}, CLOUD | {"id": "ce-2", "data": EVENT}]), {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reaches_the_log(served: World, form: str) -> None:
    kind, body, headers = FORMS[form]
    answer = served.client("ingest").post("/v1/queries", content=body, headers={"content-type": kind} | headers)
    assert answer.status_code == 200, answer.text
    lines = served.written.read_bytes().splitlines()
    assert answer.json() == {"accepted": len(lines), "rejected": []}
    for line in lines:
        event = json.loads(line)
        assert {k: event[k] for k in without("timestamp")} == without("timestamp")
        if form in ("binary", "structured", "base64"):
            assert (event["event_id"], event["timestamp"]) == ("ce-1", CLOUD["time"])
        else:
            assert event["timestamp"] == EVENT["timestamp"], "an event's own time wins"
    assert len(lines) == (2 if form in ("ndjson", "ndjson with a charset", "array", "batch") else 1)


REFUSED: dict[str, tuple[str, bytes, int]] = {
    "nothing": ("application/x-ndjson", b"\n \n", 400),
    "half an array": ("application/json", b"[{", 400),
    "text": ("text/plain", b"x", 415),
    "no type": ("", b"{}", 415),
    "no CloudEvent": ("application/cloudevents+json", b"{}", 400),
    "another version": ("application/cloudevents+json", text(CLOUD | {"specversion": "0.3", "data": EVENT}), 400),
    "no data": ("application/cloudevents+json", text(CLOUD), 400),
    "bad base64": ("application/cloudevents+json", text(CLOUD | {"data_base64": "!"}), 400),
    "deep": ("application/json", b"[" * 100_000, 400),
    "too many": ("application/x-ndjson", b"{}\n" * (MOST_RECORDS + 1), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_as_a_whole_writes_nothing(served: World, name: str) -> None:
    kind, body, status = REFUSED[name]
    answer = served.client("ingest").post("/v1/queries", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert not served.written.exists()


def test_records_are_judged_one_by_one(tmp_path: Path) -> None:
    """By the rules of ingest: same reasons, and only what it would take is written."""
    baseline = victims.baseline()
    format = NativeFormat({victims.MODEL: InputReader(baseline.map.schema)})
    good = victims.encoded(victims.event(victims.reference_rows()[0]))
    untimed = good.replace(b"20", b"x", 1)  # a dead letter that counts for its client: ingest must see it
    values = [good, b"{", good.replace(victims.MODEL.encode(), b"nobody"), b'{"client_id":"\\u0000"}', untimed]
    with world(tmp_path, format=format) as served:
        answer = served.client("ingest").post(
            "/v1/queries", content=b"\n".join(values), headers={"content-type": "application/x-ndjson"}
        ).json()  # fmt: skip
    assert answer["accepted"] == 2
    assert [(r["index"], r["reason"]) for r in answer["rejected"]] == [
        (1, "not_json"),
        (2, "unknown_model"),
        (3, "malformed_client"),
    ]
    assert served.written.read_bytes() == good + b"\n" + untimed + b"\n"


def test_the_log_of_another_tenant_is_not_written(served: World) -> None:
    answer = served.client("ingest", FOREIGN).post("/v1/queries", json=[EVENT])
    assert answer.status_code == 403
    assert not served.written.exists()


def test_what_was_not_written_is_named(tmp_path: Path) -> None:
    def second_fails(events: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        return [i != 1 for i in range(len(events))]

    with world(tmp_path, write=second_fails) as served:
        body = b"[]\n".join([text(EVENT) + b"\n"] * 3)
        answer = served.client("ingest").post(
            "/v1/queries", content=body, headers={"content-type": "application/x-ndjson"}
        )
    assert answer.status_code == 503
    assert answer.json()["errors"] == [{"where": "record 2", "what": "not written"}], "counted as the caller counts"
    assert "retry-after" in answer.headers


JSON = st.recursive(
    st.none() | st.text() | st.floats(allow_nan=False), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
)
KINDS = ("application/json", "application/x-ndjson", producer.CLOUD_EVENT, producer.CLOUD_BATCH)


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(KINDS), body=st.binary(max_size=200) | JSON.map(text))
def test_no_body_breaks_it(kind: str, body: bytes) -> None:
    written: list[bytes] = []

    def write(events: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        written.extend(value for _, value in events)
        return [True] * len(events)

    try:
        values = records(kind, {}, body)
    except Unreadable:
        return
    receipt = LogProducer(NativeFormat({}, True), write).take(values)
    assert receipt.accepted + len(receipt.rejected) == len(values)
    assert not any(b"\n" in value for value in written)


# ---------------------------------------------------------------------------------------------------- the files


def test_writers_at_once_tear_no_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = text(EVENT | {"pad": "x" * 20_000})

    def work() -> None:
        writer = FileWriter(path)
        for _ in range(20):
            assert writer.write([(b"", line)] * 3) == [True] * 3

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes().splitlines() == [line] * 240
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_left_unfinished_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"half')
    FileWriter(path).write([(b"", b"{}")])
    assert path.read_bytes() == b'{"half\n{}\n'


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    FileWriter(path).write([(b"", b"{}")])
    real, calls = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:3])

    monkeypatch.setattr("consumers.log.writers.os.write", full)
    assert FileWriter(path).write([(b"", b'{"a":1}')] * 2) == [False, False]
    assert path.read_bytes() == b"{}\n"
    assert FileWriter(tmp_path / "no" / "folder").write([(b"", b"{}")]) == [False]


# -------------------------------------------------------------------------------------------------------- Kafka


def test_from_http_over_kafka_into_profiles(kafka_bootstrap: str, topic: Topics, tmp_path: Path) -> None:
    """The real way: request → broker, acknowledged by all → ingest → a profile in the store, with the offset."""
    name = topic(partitions=3)
    brokers = connection(kafka_bootstrap)
    baseline = victims.baseline()
    events = [victims.event(row, client_id=f"acct-{i % 5}") for i, row in enumerate(victims.reference_rows()[:60])]
    writer = KafkaWriter(brokers, name)
    format = NativeFormat({victims.MODEL: InputReader(baseline.map.schema)})
    try:
        with world(tmp_path, write=writer.write, format=format) as served:
            answer = served.client("ingest").post("/v1/queries", json=events)
            assert answer.json() == {"accepted": 60, "rejected": []}
    finally:
        writer.close()
    consumer = KafkaConsumer(bootstrap_servers=kafka_bootstrap)
    partitions = [TopicPartition(name, p) for p in range(3)]
    assert sum(consumer.end_offsets(partitions).values()) == 60, "in the log when the answer leaves"
    consumer.close()

    store = EmbeddedStore(tmp_path / "ingest.sqlite")
    store.prepare(SECRETS.key_id)
    query_log = KafkaLog(brokers, topics=[name], group_id=f"g-{name}")
    runner = ingesting.IngestLoop(query_log, store, Ingest({victims.MODEL: baseline}, SECRETS, OURS))
    ingesting.run(runner, lambda: False, until_end=True)
    query_log.close()
    keys = [ClientKey(OURS, victims.MODEL, SECRETS.client_hash(OURS, f"acct-{i}")) for i in range(5)]
    found = [[cell for cell in store.cells() if store.shards(cell, [key]).fields.get(key)] for key in keys]
    assert [len(cells) for cells in found] == [1] * 5, "keyed by client: one partition each"
    store.close()


def test_a_broker_that_is_away(tmp_path: Path) -> None:
    writer = KafkaWriter(connection("127.0.0.1:1"), "topic", timeout_s=0.5)
    with world(tmp_path, write=writer.write) as served:
        answer = served.client("ingest").post("/v1/queries", json=[EVENT])
    assert answer.status_code == 503
    assert answer.json()["errors"] == [{"where": "record 0", "what": "not written"}]
    writer.close()
