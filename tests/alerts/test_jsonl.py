"""Alert sinks and the dead-letter topic: what arrives, what a failure leaves behind. Kafka is a real broker."""

from __future__ import annotations

import base64
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition
from support.servers import Kafka, free_port

from consumers.alerts import AlertSink
from consumers.alerts.jsonl import JsonLinesSink
from consumers.alerts.kafka import KafkaSink
from consumers.errors import Refused, Unavailable
from consumers.log.dead_letter_topic import DeadLetterTopic
from consumers.log.kafka import connection
from consumers.store import DeadLetter, OutboxAlert

Topic = Callable[..., str]


def alerts(n: int, updates: int = 1) -> list[OutboxAlert]:
    return [
        OutboxAlert(f"id{i}/{u}", 1_700_000_000_000 + i, json.dumps({"alert_id": f"id{i}", "update": u}).encode())
        for i in range(n)
        for u in range(updates)
    ]


def messages(bootstrap: str, topic: str, partitions: int) -> list[tuple[int, bytes, bytes]]:
    """(partition, key, value) of everything in the topic, in the order of each partition."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    tps = [TopicPartition(topic, p) for p in range(partitions)]
    consumer.assign(tps)
    ends = consumer.end_offsets(tps)
    found: list[tuple[int, bytes, bytes]] = []
    while any(consumer.position(tp) < ends[tp] for tp in tps):
        for tp, records in consumer.poll(timeout_ms=1000).items():
            found += [(tp.partition, record.key, record.value) for record in records]
    consumer.close()
    return found


# --- the contract, on both sinks


class Receiver:
    """A sink and a way to see what it took."""

    def __init__(self, make: Callable[[], AlertSink], taken: Callable[[], list[bytes]]) -> None:
        self.make, self.taken = make, taken


@pytest.fixture(params=["jsonl", pytest.param("kafka", marks=pytest.mark.kafka)])
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Receiver:
    if request.param == "jsonl":
        path = tmp_path / "new folder" / "alerts.jsonl"
        return Receiver(lambda: JsonLinesSink(path), lambda: path.read_bytes().splitlines())
    bootstrap: str = request.getfixturevalue("kafka_bootstrap")
    topic: str = request.getfixturevalue("topic")(partitions=1)
    return Receiver(
        lambda: KafkaSink(connection(bootstrap), topic),
        lambda: [value for _, _, value in messages(bootstrap, topic, 1)],
    )


def test_alerts_arrive_whole_and_in_order(receiver: Receiver) -> None:
    sent = alerts(50, updates=2)
    sink = receiver.make()
    assert sink.send(sent) == [True] * 100
    assert sink.send([]) == []
    sink.close()
    assert receiver.taken() == [alert.body for alert in sent]


def test_a_sink_goes_on_where_it_was(receiver: Receiver) -> None:
    names = set()
    for part in (alerts(3), alerts(2)):
        sink = receiver.make()
        names.add(sink.name)
        assert all(sink.send(part))
        sink.close()
        sink.close()
    assert receiver.taken() == [alert.body for alert in alerts(3) + alerts(2)]
    assert len(names) == 1, "the ledger of what was sent knows the sink by its name"


# --- the file


APPEND = """
import sys
from consumers.alerts.jsonl import JsonLinesSink
from consumers.store import OutboxAlert
sink = JsonLinesSink(sys.argv[1])
for i in range(200):
    assert sink.send([OutboxAlert(f"{i}/0", 0, sys.argv[2].encode() * 500)]) == [True]
"""


def test_two_processes_write_whole_lines_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), letter]) for letter in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == ["a" * 500] * 200 + ["b" * 500] * 200


def test_a_full_disk_leaves_no_torn_line_and_the_alert_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "alerts.jsonl"
    sink = JsonLinesSink(path)
    write = os.write
    room = [100, 5, 0]

    def full(file: int, line: bytes) -> int:
        left = room.pop(0) if room else 1 << 20
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, line[:left])

    monkeypatch.setattr("consumers.alerts.jsonl.os.write", full)
    one, two, three = alerts(3)
    assert sink.send([one, two, three]) == [True, False, False]
    assert sink.send([two, three]) == [True, True]
    sink.close()
    assert path.read_bytes().splitlines() == [one.body, two.body, three.body]


def test_a_torn_line_of_another_writer_is_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    path.write_bytes(b'{"torn')
    sink = JsonLinesSink(path)
    (alert,) = alerts(1)
    assert sink.send([alert]) == [True]
    sink.close()
    assert path.read_bytes() == b'{"torn\n' + alert.body + b"\n"


def test_an_alert_with_line_breaks_stays_one_line(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "alerts.jsonl")
    assert sink.send([OutboxAlert("a/0", 0, b'{\n"a":\n1}')]) == [True]
    sink.close()
    assert [json.loads(line) for line in (tmp_path / "alerts.jsonl").open()] == [{"a": 1}]


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="alerts to "):
        JsonLinesSink(tmp_path)


# --- the topics


def test_the_updates_of_an_alert_share_a_partition_and_keep_their_order(kafka_bootstrap: str, topic: Topic) -> None:
    name = topic(partitions=4)
    sink = KafkaSink(connection(kafka_bootstrap), name)
    assert all(sink.send(alerts(40, updates=3)))
    assert sink.failures == 0
    sink.close()
    where: dict[bytes, set[int]] = {}
    updates: dict[bytes, list[int]] = {}
    for partition, key, value in messages(kafka_bootstrap, name, 4):
        where.setdefault(key, set()).add(partition)
        updates.setdefault(key, []).append(json.loads(value)["update"])
    assert set(where) == {b"id%d" % i for i in range(40)}
    assert all(len(partitions) == 1 for partitions in where.values())
    assert all(order == [0, 1, 2] for order in updates.values())
    assert len(set.union(*where.values())) > 1


def letters(n: int) -> Sequence[DeadLetter]:
    return [DeadLetter(f"t:0@{i}", i, "not_json", "it's ü", "ab" * 32, b"\x00\xff{" * i) for i in range(n)]


def test_dead_letters_say_where_and_why(kafka_bootstrap: str, topic: Topic) -> None:
    name = topic(partitions=2)
    dead = DeadLetterTopic(connection(kafka_bootstrap), name)
    assert dead.ship(letters(5)) == [True] * 5
    dead.close()
    arrived = {key: json.loads(value) for _, key, value in messages(kafka_bootstrap, name, 2)}
    assert arrived[b"t:0@3"] == {
        "place": "t:0@3",
        "offset": 3,
        "reason": "not_json",
        "detail": "it's ü",
        "sha256": "ab" * 32,
        "head": base64.b64encode(b"\x00\xff{" * 3).decode(),
    }
    assert len(arrived) == 5


def test_a_topic_that_is_missing_takes_nothing(kafka_bootstrap: str) -> None:
    sink = KafkaSink(connection(kafka_bootstrap), "qw-test-never-created", timeout_s=0.5)
    assert sink.send(alerts(3)) == [False] * 3
    assert sink.failures == 3
    sink.close()


def test_brokers_that_are_not_there_are_unavailable() -> None:
    with pytest.raises(Unavailable, match="extraction-alerts"):
        KafkaSink(connection(f"127.0.0.1:{free_port()}") | {"bootstrap_timeout_ms": 300})


def test_alerts_wait_for_a_broker_that_hangs(kafka_broker: Kafka, topic: Topic, request: pytest.FixtureRequest) -> None:
    name = topic(partitions=1)
    sink = KafkaSink(connection(kafka_broker.bootstrap), name, timeout_s=1.5)
    first, second = alerts(2)
    assert sink.send([first]) == [True]
    request.addfinalizer(kafka_broker.resume)
    kafka_broker.pause()
    assert sink.send([second]) == [False]
    kafka_broker.resume()
    while sink.send([second]) != [True]:
        assert sink.failures < 20
    sink.close()
    bodies = [value for _, _, value in messages(kafka_broker.bootstrap, name, 1)]
    assert bodies[0] == first.body
    assert set(bodies[1:]) == {second.body}, "at least once"
