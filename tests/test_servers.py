"""The servers of the tests are the real ones, and what the fixtures promise holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from kafka import KafkaConsumer, TopicPartition
from support.kafka_producer import produce
from support.servers import KAFKA_VERSION, PORTS, Kafka, MissingServer, NewServer, Redis, free_port


@pytest.mark.parametrize(
    "server", [pytest.param("redis_url", marks=pytest.mark.redis), pytest.param("valkey_url", marks=pytest.mark.valkey)]
)
def test_each_test_has_an_empty_database(server: str, request: pytest.FixtureRequest) -> None:
    with redis.Redis.from_url(request.getfixturevalue(server)) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")
        assert client.dbsize() == 1


def test_valkey_is_valkey(valkey_url: str) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        assert client.info("server").get("server_name") == "valkey"


def test_keyed_lines_keep_their_order_on_one_partition(kafka_bootstrap: str, topic: Callable[..., str]) -> None:
    name = topic(partitions=3)
    lines = [b"%d" % i for i in range(300)]
    assert produce(kafka_bootstrap, name, lines, keys=[b"k%d" % (i % 7) for i in range(300)]) == 300
    consumer = KafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(name, p) for p in range(3)])
    where: dict[int, set[int]] = {}
    seen: dict[int, list[int]] = {}
    while sum(map(len, seen.values())) < 300:
        for tp, records in consumer.poll(timeout_ms=5000).items():
            for record in records:
                key = int(record.value) % 7
                where.setdefault(key, set()).add(tp.partition)
                seen.setdefault(key, []).append(int(record.value))
    consumer.close()
    assert all(len(partitions) == 1 for partitions in where.values())
    assert all(values == sorted(values) for values in seen.values())


def test_unkeyed_lines_are_spread(kafka_bootstrap: str, topic: Callable[..., str]) -> None:
    name = topic(partitions=2)
    produce(kafka_bootstrap, name, [b"x"] * 10)
    consumer = KafkaConsumer(bootstrap_servers=kafka_bootstrap)
    ends = consumer.end_offsets([TopicPartition(name, p) for p in range(2)])
    consumer.close()
    assert sorted(ends.values()) == [5, 5]


def test_a_redis_can_be_killed_and_started_again(new_server: NewServer) -> None:
    server = new_server(Redis)
    try:
        server.start()
        server.kill()
        assert not server.probe()
        server.start()
        assert server.probe()
    finally:
        server.remove()
    assert not server.folder.exists()


def test_ports_are_below_the_ephemeral_range() -> None:
    assert free_port() in PORTS


def test_a_missing_broker_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("QUERYWARDEN_CACHE", str(tmp_path))
    with pytest.raises(MissingServer, match=f"{KAFKA_VERSION}.*install-servers.sh"):
        Kafka()
