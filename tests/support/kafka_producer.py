"""Streams for tests: put lines on a topic, fast."""

from __future__ import annotations

from collections.abc import Iterable

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import TopicAlreadyExistsError


def produce(
    bootstrap: str,
    topic: str,
    lines: Iterable[bytes],
    keys: Iterable[bytes] | None = None,
    partitions: int | None = None,
    compression: str | None = None,
) -> int:
    """Write `lines` to `topic` and wait for all acknowledgements; returns how many.

    keys        one a line: equal keys go to one partition, in order; None: un-keyed, spread round robin
    partitions  create the topic with so many partitions first, if it does not exist
    """
    if partitions is not None:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            options = {"num_partitions": partitions, "replication_factor": 1}
            admin.create_topics({topic: options}, wait_for_metadata=True)
        except TopicAlreadyExistsError:
            pass
        finally:
            admin.close()
    producer = KafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=20, batch_size=256 * 1024,
        max_request_size=4 * 1024 * 1024, compression_type=compression, reconnect_backoff_max_ms=500,
    )  # fmt: skip
    try:
        if keys is None:
            spread = sorted(producer.partitions_for(topic))
            sent = [producer.send(topic, line, partition=spread[i % len(spread)]) for i, line in enumerate(lines)]
        else:
            sent = [producer.send(topic, line, key=key) for line, key in zip(lines, keys, strict=True)]
        producer.flush()
        for future in sent:
            future.get(timeout=30)
        return len(sent)
    finally:
        producer.close()
