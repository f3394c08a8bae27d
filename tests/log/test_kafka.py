"""What only a Kafka log has: members, transactions, retention, codecs, hostile batches. Against a real broker."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from support.decompression_bombs import produce_bomb
from support.kafka_producer import produce
from support.servers import Kafka, NewServer, free_port

from consumers.errors import LogTruncated, Refused, Unavailable, WrongUse
from consumers.log import Poll
from consumers.log.batches import BATCH_BYTES
from consumers.log.kafka import KafkaLog, connection
from consumers.log.topics import ensure_topics

Topic = Callable[..., str]
NewLog = Callable[..., KafkaLog]


@pytest.fixture
def new_log(kafka_bootstrap: str, request: pytest.FixtureRequest) -> NewLog:
    def make(topic: str, group_id: str | None = None, **settings: object) -> KafkaLog:
        settings = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 300} | settings
        log = KafkaLog(connection(kafka_bootstrap), topics=[topic], group_id=group_id or topic, **settings)  # type: ignore[arg-type]
        request.addfinalizer(log.close)
        return log

    return make


@pytest.fixture
def admin(kafka_bootstrap: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    yield client
    client.close()


class Member:
    """A member of the group that seeks whatever it is assigned, as ingest does, and remembers what it read."""

    def __init__(self, log: KafkaLog, stored: dict[str, int]) -> None:
        self.log, self.stored = log, stored
        self.cells: set[str] = set()
        self.values: list[bytes] = []
        self.gaps: list[tuple[str, int, int]] = []
        self.refused: list[tuple[str, str, str]] = []

    def step(self, timeout_s: float = 0.2) -> Poll:
        poll = self.log.poll(timeout_s, 500)
        self.cells -= set(poll.revoked)
        for cell in poll.assigned:
            self.cells.add(cell)
            self.log.seek(cell, self.stored.get(cell))
        self.gaps += poll.gaps
        for batch in poll.batches:
            assert batch.cell in self.cells
            for i, (reason, detail) in batch.refused.items():
                self.refused.append((reason, detail, batch.place(i)))
            self.values += [value for i, value in enumerate(batch.values) if i not in batch.refused]
            self.stored[batch.cell] = batch.next_offset
        return poll

    def until(self, condition: Callable[[], bool], within_s: float = 30, timeout_s: float = 0.2) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "did not come true"
            self.step(timeout_s)

    def at_end(self) -> bool:
        return all(self.stored.get(cell, 0) >= end for cell, end in self.log.ends().items())


def lines(n: int, start: int = 0) -> list[bytes]:
    return [json.dumps({"i": i}).encode() for i in range(start, start + n)]


@pytest.mark.parametrize("dropped", [True, False], ids=["as shipped", "control"])
def test_a_paused_partition_is_read_again_beside_a_busy_one(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog, monkeypatch: pytest.MonkeyPatch, dropped: bool
) -> None:
    """The library parks what it had of a paused partition and, while another one delivers, never takes it up again."""
    if not dropped:
        monkeypatch.setattr("consumers.log.kafka.drop_parked", lambda consumer, tp: None)
    name = topic(partitions=2)
    produce(kafka_bootstrap, name, lines(4000), keys=[b"%d" % i for i in range(4000)])
    log = new_log(name)
    reached: dict[str, int] = {}

    def read(polls: int) -> None:
        for _ in range(polls):
            poll = log.poll(0.1, 50)
            for cell in poll.assigned:
                log.seek(cell, None)
            reached.update({batch.cell: batch.next_offset for batch in poll.batches})

    while not reached:
        read(1)
    (paused,) = reached  # its other records are in line
    log.pause(paused)
    read(5)
    assert len(reached) == 2, "the other one is read meanwhile"
    log.seek(paused, reached[paused])
    before, ends = dict(reached), log.ends()
    for _ in range(140):
        if all(reached[cell] == end for cell, end in ends.items()):
            break
        read(1)
    assert [cell for cell, end in ends.items() if reached[cell] < end] == ([] if dropped else [paused])
    assert (reached[paused] > before[paused]) is dropped


@pytest.mark.parametrize("completed", [True, False], ids=["as shipped", "control"])
def test_a_join_that_outlasts_its_poll_is_completed(
    topic: Topic, new_log: NewLog, admin: KafkaAdminClient, completed: bool
) -> None:
    """A new partition makes the leader join again; the library forgets a join that the poll did not wait for."""
    name = topic(partitions=1)
    one = Member(new_log(name), {})
    one.until(lambda: len(one.cells) == 1)  # patched in the control too: a slow broker outlasts any poll
    if not completed:
        coordinator = one.log._consumer._coordinator
        del coordinator.join_group_async, coordinator.need_rejoin  # the library's own again
    admin.create_partitions({name: 2})
    for _ in range(600 if completed else 120):  # the new partition is noticed within 5 s
        if len(one.cells) == 2:
            break
        one.step(0.0)  # too short for any answer of the broker
        time.sleep(0.1)
    assert (len(one.cells) == 2) is completed


@pytest.mark.parametrize("polled_s", [0.2, 0.0])
def test_a_group_that_consumers_of_another_protocol_hold_is_refused(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog, polled_s: float
) -> None:
    name = topic(partitions=2)
    other = KafkaConsumer(name, bootstrap_servers=kafka_bootstrap, group_id=name)  # range and others, not ours
    ended = threading.Event()
    joined = threading.Event()

    def hold() -> None:
        while not ended.is_set():
            other.poll(200)
            if other.assignment():
                joined.set()

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        assert joined.wait(30)
        reader = Member(new_log(name), {})
        with pytest.raises(Refused, match=f"kafka.group_id: .*{name}"):
            reader.until(lambda: False, timeout_s=polled_s)
    finally:
        ended.set()
        holding.join()
        other.close()


def test_two_members_share_and_hand_over(kafka_bootstrap: str, topic: Topic, new_log: NewLog) -> None:
    name = topic(partitions=4)
    produce(kafka_bootstrap, name, lines(200), keys=[b"%d" % i for i in range(200)])
    stored: dict[str, int] = {}
    one = Member(new_log(name), stored)
    one.until(one.at_end)
    assert len(one.cells) == 4

    two = Member(new_log(name), stored)
    deadline = time.monotonic() + 30
    while not (len(one.cells) == len(two.cells) == 2):
        assert time.monotonic() < deadline
        one.step()
        two.step()
    assert one.cells | two.cells == {f"{name}:{p}" for p in range(4)}
    assert all(two.log.owns(cell) for cell in two.cells)

    produce(kafka_bootstrap, name, lines(200, start=200), keys=[b"%d" % i for i in range(200)])
    while not one.at_end():
        assert time.monotonic() < deadline
        one.step()
        two.step()
    assert two.values, "the second member reads its share"
    assert sorted(one.values + two.values) == sorted(lines(400)), "every record once"

    one.log.close()
    two.until(lambda: len(two.cells) == 4)
    produce(kafka_bootstrap, name, lines(8, start=400))
    two.until(two.at_end)
    assert sorted(one.values + two.values) == sorted(lines(408))


def test_a_member_that_was_thrown_out_learns_it(kafka_bootstrap: str, topic: Topic, new_log: NewLog) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, lines(5))
    stored: dict[str, int] = {}
    zombie = Member(new_log(name, max_poll_interval_ms=1500, session_timeout_ms=1500), stored)
    zombie.until(zombie.at_end)
    (cell,) = zombie.cells
    heir = Member(new_log(name), stored)
    heir.until(lambda: heir.cells == {cell})  # meanwhile the other one does not poll
    assert not zombie.log.owns(cell)
    zombie.until(lambda: not zombie.cells)
    assert heir.log.owns(cell)


def test_transactions_are_seen_when_committed_and_never_when_aborted(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog
) -> None:
    name = topic(partitions=1)
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=f"{name}-t")
    producer.init_transactions()
    for k, finish in enumerate([producer.commit_transaction, producer.abort_transaction, producer.commit_transaction]):
        producer.begin_transaction()
        for line in lines(3, start=10 * k):
            producer.send(name, line)
        producer.flush()
        finish()
    producer.begin_transaction()
    producer.send(name, b"aborted, and nothing after it")
    producer.flush()
    producer.abort_transaction()
    producer.close()
    reader = Member(new_log(name), {})
    reader.until(reader.at_end)
    assert reader.values == lines(3) + lines(3, start=20)
    end = reader.log.ends()[f"{name}:0"]
    assert end == 3 * 4 + 2, "three times three records and a marker, one record and a marker"
    assert reader.log.position(f"{name}:0") == end, "markers at the end move the offset"


def test_a_tombstone_is_no_record_but_moves_the_offset(kafka_bootstrap: str, topic: Topic, new_log: NewLog) -> None:
    name = topic(partitions=1)
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap)
    for value in (None, b"a", None, b"", b"b", None):
        producer.send(name, value, key=b"c")
    producer.close()
    reader = Member(new_log(name), {})
    nulls: list[int] = []
    while not reader.at_end():
        for batch in reader.step().batches:
            nulls += [] if batch.nulls is None else batch.nulls.tolist()
            assert len(batch.values) == len(batch.offsets)
    assert (reader.values, nulls, reader.stored[f"{name}:0"]) == ([b"a", b"", b"b"], [0, 2, 5], 6)


def test_what_retention_dropped_is_reported_as_a_gap(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog, admin: KafkaAdminClient
) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, lines(50))
    cell = f"{name}:0"
    admin.delete_records({TopicPartition(name, 0): 30})
    reader = Member(new_log(name), {cell: 10})
    reader.until(lambda: reader.stored[cell] == 50)
    assert reader.gaps == [(cell, 10, 29)]
    assert reader.values == lines(20, start=30)


def test_a_gap_at_the_very_end_moves_the_offset(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog, admin: KafkaAdminClient
) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, lines(50))
    cell = f"{name}:0"
    admin.delete_records({TopicPartition(name, 0): 50})
    reader = Member(new_log(name), {cell: 10})
    reader.until(lambda: reader.stored[cell] == 50)
    assert (reader.gaps, reader.values) == ([(cell, 10, 49)], [])


def test_a_topic_made_anew_is_truncated(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog, admin: KafkaAdminClient
) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, lines(5))
    reader = Member(new_log(name), {f"{name}:0": 40})
    with pytest.raises(LogTruncated, match="ends at offset 5, the store is at 40"):
        reader.until(lambda: False)


STARTS = {"earliest": 6, "latest": 0, "2100-01-01T00:00:00Z": 0, "2020-01-01T00:00:00Z": 6}


@pytest.mark.parametrize(("start", "expected"), STARTS.items())
def test_where_an_unknown_cell_starts(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog, start: str, expected: int
) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, lines(6))
    reader = Member(new_log(name, start=start), {})
    reader.until(lambda: bool(reader.cells))
    produce(kafka_bootstrap, name, [b"later"])
    reader.until(reader.at_end)
    assert reader.values == [*lines(expected), b"later"]


def test_a_start_that_is_no_time_is_refused() -> None:
    with pytest.raises(WrongUse, match="yesterday"):
        KafkaLog(connection("127.0.0.1:1"), start="yesterday")


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_codecs(kafka_bootstrap: str, topic: Topic, new_log: NewLog, codec: str) -> None:
    name = topic(partitions=2)
    produce(kafka_bootstrap, name, lines(2000), keys=[b"%d" % (i % 10) for i in range(2000)], compression=codec)
    reader = Member(new_log(name), {})
    reader.until(reader.at_end)
    assert sorted(reader.values) == sorted(lines(2000))
    assert reader.refused == []


BOMBS = {"gzip": 64 << 20, "zstd": 64 << 20, "lz4": 64 << 20, "snappy": 20 << 20}


@pytest.mark.parametrize("codec", BOMBS)
def test_a_bomb_is_one_refused_record_and_the_next_is_read(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic(partitions=1, **{"max.message.bytes": "4194304"})
    produce(kafka_bootstrap, name, lines(3))
    produce_bomb(kafka_bootstrap, name, codec, BOMBS[codec], monkeypatch)
    produce(kafka_bootstrap, name, lines(3, start=3))
    reader = Member(new_log(name), {})
    reader.until(reader.at_end)
    assert reader.values == lines(6)
    ((reason, detail, place),) = reader.refused
    assert reason == "decompression_limit"
    assert f"{codec} batch decompresses to more than {BATCH_BYTES >> 20} MiB" in detail
    assert place == f"{name}:0@3"


READ_ALL = """
import resource, sys
from consumers.log.kafka import KafkaLog, connection

log = KafkaLog(connection(sys.argv[1]), topics=[sys.argv[2]], group_id=sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
records = refused = 0
while records < 3:
    poll = log.poll(0.2, 1000)
    for cell in poll.assigned:
        log.seek(cell, None)
    for batch in poll.batches:
        records += len(batch.values)
        refused += len(batch.refused)
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
log.close()
"""


def test_a_bomb_of_512_mib_costs_less_than_64(
    kafka_bootstrap: str, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, lines(1))
    assert produce_bomb(kafka_bootstrap, name, "zstd", 512 << 20, monkeypatch) < 100_000
    produce(kafka_bootstrap, name, lines(1))
    answer = subprocess.run(
        [sys.executable, "-c", READ_ALL, kafka_bootstrap, name], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    refused, growth_kib = map(int, answer.split())
    assert refused == 1
    assert growth_kib < 64 << 10


def test_a_broker_restarts_and_a_batch_rots_on_its_disk(request: pytest.FixtureRequest, new_server: NewServer) -> None:
    """The reader goes on by itself, refuses the rotten batch, and reads what follows it."""
    broker = new_server(Kafka)
    request.addfinalizer(broker.remove)
    broker.start()
    for i in range(3):
        produce(broker.bootstrap, "rots", [b"batch %d" % i], partitions=1)
    log = KafkaLog(connection(broker.bootstrap), topics=["rots"], group_id="g", session_timeout_ms=6000)
    request.addfinalizer(log.close)
    reader = Member(log, {})
    reader.until(reader.at_end)
    assert reader.values == [b"batch 0", b"batch 1", b"batch 2"]
    broker.stop()
    (segment,) = broker.folder.glob("data/rots-0/*.log")
    segment.write_bytes(segment.read_bytes().replace(b"batch 1", b"batch X"))
    broker.start()
    again = KafkaLog(connection(broker.bootstrap), topics=["rots"], group_id="h", session_timeout_ms=6000)
    request.addfinalizer(again.close)
    second = Member(again, {})
    second.until(second.at_end)
    assert second.values == [b"batch 0", b"batch 2"]
    assert second.refused == [("corrupt_batch", "offsets 1 to 1: fails its checksum", "rots:0@1")]
    produce(broker.bootstrap, "rots", [b"batch 3"])
    reader.until(lambda: reader.values[-1] == b"batch 3", within_s=60)


def test_brokers_that_are_not_there_are_unavailable() -> None:
    brokers = connection(f"127.0.0.1:{free_port()}") | {"bootstrap_timeout_ms": 300}
    with pytest.raises(Unavailable):
        KafkaLog(brokers, topics=["t"])
    with pytest.raises(Unavailable):
        ensure_topics(brokers, ["t"])


def test_a_protocol_must_be_stated_beyond_loopback() -> None:
    with pytest.raises(Refused, match="security_protocol must be set for broker.example:9092"):
        connection("127.0.0.1:9092,broker.example:9092")
    stated = connection("broker.example:9092", security_protocol="SASL_SSL", sasl_username="u", sasl_password="p")
    assert stated["sasl_mechanism"] == "SCRAM-SHA-512"
    assert connection("localhost:9092, [::1]:9092")["security_protocol"] == "PLAINTEXT"
    assert connection("localhost:9092")["reconnect_backoff_max_ms"] <= 500


def test_missing_topics_are_created_once(kafka_bootstrap: str, topic: Topic, admin: KafkaAdminClient) -> None:
    there = topic(partitions=1)
    missing = f"{there}.dead-letter"
    brokers = connection(kafka_bootstrap)
    try:
        assert ensure_topics(brokers, [there, missing], partitions=2) == [missing]
        assert ensure_topics(brokers, [there, missing]) == []
        (described,) = admin.describe_topics([missing])
        assert len(described["partitions"]) == 2
    finally:
        admin.delete_topics([missing])


def test_reading_creates_no_topic(kafka_bootstrap: str, topic: Topic, new_log: NewLog, admin: KafkaAdminClient) -> None:
    absent = f"{topic(partitions=1)}-absent"
    reader = Member(new_log(absent), {})
    for _ in range(5):
        reader.step()
    assert absent not in admin.list_topics()
    assert reader.log.ends() == {}


def test_the_group_s_committed_offset_follows_for_lag_dashboards(
    kafka_bootstrap: str, topic: Topic, new_log: NewLog, admin: KafkaAdminClient
) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, lines(9))
    reader = Member(new_log(name), {})
    reader.until(reader.at_end)
    reader.log.commit(reader.stored)
    reader.log.close()
    committed = admin.list_group_offsets([name])[name] if hasattr(admin, "list_group_offsets") else {}
    assert [offset.offset for offset in committed.values()] == [9]


def test_without_crc32c_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.log.kafka.crc32c_c", None)
    with pytest.raises(Refused, match="crc32c"):
        KafkaLog(connection("127.0.0.1:1"))
