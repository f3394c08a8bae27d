"""Plays a native query log on a Kafka topic as if it ended now: what `make up TRAFFIC=1` shows on the dashboard.

    python -m examples.traffic LOG BROKERS TOPIC [QUERIES_A_SECOND]

The events keep their order and distances; all are moved so that the last one is asked now. Keyed by client.
"""

from __future__ import annotations

import datetime as dt
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from kafka import KafkaProducer

from consumers.wiring.adapters import file_lines

RATE_S = 1000.0


def main(path: str, brokers: str, topic: str, rate: str = str(RATE_S)) -> None:
    events = [json.loads(line) for line in file_lines(Path(path))]
    times = [dt.datetime.fromisoformat(event["timestamp"]) for event in events]
    later = dt.datetime.now(dt.UTC) - max(times)
    producer = KafkaProducer(bootstrap_servers=brokers, acks="all", enable_idempotence=True, linger_ms=20)
    began = time.monotonic()
    for sent, (event, asked) in enumerate(zip(events, times, strict=True)):
        event["timestamp"] = (asked + later).isoformat(timespec="milliseconds")
        producer.send(topic, json.dumps(event).encode(), key=event["client_id"].encode())
        ahead = sent / float(rate) - (time.monotonic() - began)
        if ahead > 0.05:
            time.sleep(ahead)
    producer.close()
    print(f"{len(events):,} queries of {len({e['client_id'] for e in events})} clients sent", flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    if not 4 <= len(sys.argv) <= 5:
        sys.exit("usage: python -m examples.traffic LOG BROKERS TOPIC [QUERIES_A_SECOND]")
    main(*sys.argv[1:])
