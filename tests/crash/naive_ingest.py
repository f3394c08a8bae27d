"""A naive worker: what everybody writes first. The control of the crash tests; it must be seen to lose and to double queries.

It folds with the production code, but its position is Kafka's own, committed by the client library every five seconds as it does by
default, apart from the profiles; there is no token and no check, and a write whose outcome is unknown is sent again. It reads a profile,
folds and writes it back, each time: a cache that outlives a batch would write what a fail-over lost once more, and hide it.
`WRITTEN` counts the records that went through. Run as a program: ``naive_ingest.py BOOTSTRAP TOPIC REDIS_URL BASELINE SECRETS``.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import redis
from kafka import KafkaConsumer
from kafka.errors import KafkaError

from consumers.ingest.cell import Cell
from consumers.ingest.step import Ingest
from consumers.log import Records
from consumers.secrets import Secrets
from consumers.store import Checkpoint
from consumers.store.layout import client_text
from detector.baseline_file import read_baseline
from detector.query import ClientKey

PREFIX = "naive:p:"
WRITTEN = "naive:written"
GROUP = "naive"
T = TypeVar("T")


def main(bootstrap: str, topic: str, url: str, baseline: str, secrets: str) -> None:
    read = read_baseline(Path(baseline).read_bytes())
    reading = Ingest({read.model_id: read}, Secrets.load(Path(secrets), create=True))
    consumer = KafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=GROUP, auto_offset_reset="earliest", enable_auto_commit=True,
        auto_commit_interval_ms=5000, session_timeout_ms=3000, heartbeat_interval_ms=500, max_poll_interval_ms=10_000,
        max_poll_records=500, reconnect_backoff_max_ms=500,
    )  # fmt: skip
    client = redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=5.0)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    while not stopped:
        try:
            polled = consumer.poll(200)
        except KafkaError:
            continue
        for tp, records in polled.items():
            cell = Cell(f"{topic}:{tp.partition}", "", None, Counter())
            batch = Records(
                cell.name,
                [r.value for r in records],
                np.array([r.offset for r in records], np.int64),
                records[-1].offset + 1,
            )
            folded(reading, client, cell, batch)
    consumer.close()


def folded(reading: Ingest, client: redis.Redis, cell: Cell, batch: Records) -> None:
    """Load what is missing, fold, write back."""
    decoded, keys = reading.decode(cell, batch)
    wanted = reading.missing(cell, keys)
    loaded = insisted(lambda: fields_of(client, wanted))
    reading.take(cell, loaded, wanted)
    checkpoint = reading.step(cell, decoded, keys, batch.next_offset)
    insisted(lambda: written(client, checkpoint, len(batch.offsets)))


def fields_of(client: redis.Redis, wanted: Sequence[ClientKey]) -> dict[ClientKey, dict[str, bytes]]:
    with client.pipeline(transaction=False) as pipe:
        for key in wanted:
            pipe.hgetall(PREFIX + client_text(key))
        answers: Any = pipe.execute()
    return {key: {n.decode(): v for n, v in values.items()} for key, values in zip(wanted, answers, strict=True)}


def written(client: redis.Redis, checkpoint: Checkpoint, records: int) -> None:
    with client.pipeline(transaction=False) as pipe:
        for key, fields in checkpoint.profiles.items():
            pipe.hset(PREFIX + client_text(key), mapping={n: v for n, v in fields.items() if v is not None})
        pipe.incrby(WRITTEN, records)
        pipe.execute()


def insisted(call: Callable[[], T]) -> T:
    """Try until it works."""
    while True:
        try:
            return call()
        except redis.exceptions.RedisError:
            time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
