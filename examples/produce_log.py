"""Puts a native query log on a Kafka topic, keyed by client: what your prediction service would do (docs/quickstart.md).

    python examples/produce_log.py LOG.jsonl [BROKERS [TOPIC]]

The key is the client id, so that all queries of a client are in one partition, in order.
"""

from __future__ import annotations

import json
import sys

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import TopicAlreadyExistsError

PARTITIONS = 4


def main(path: str, brokers: str = "127.0.0.1:9092", topic: str = "prediction-queries") -> None:
    admin = KafkaAdminClient(bootstrap_servers=brokers)
    try:
        admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        pass
    finally:
        admin.close()
    producer = KafkaProducer(
        bootstrap_servers=brokers,
        acks="all",
        enable_idempotence=True,  # a retry is no second query
        linger_ms=20,
        reconnect_backoff_max_ms=500,
    )
    sent = 0
    with open(path, "rb") as log:
        for line in log:
            producer.send(topic, line.rstrip(b"\n"), key=json.loads(line)["client_id"].encode())
            sent += 1
    producer.flush()
    producer.close()
    print(f"{sent:,} queries on {topic}")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit("usage: python examples/produce_log.py LOG.jsonl [BROKERS [TOPIC]]")
    main(*sys.argv[1:])
