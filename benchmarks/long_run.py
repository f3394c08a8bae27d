"""A long run of ingest: millions of events, and memory that stays flat.

    python -m benchmarks.long_run [--events N]

Rules of the file:

* The real path, Kafka to Redis. Events are made and produced in rounds, and read in the same process; the broker keeps a bounded part of
  the log, so the run takes no more disk the longer it is.
* Each event is another query: its first value and its time differ, and clients come and go as the log-normal population draws them. Event
  time goes on, so spans of profiles begin and end.
* Memory is what the system counts as resident, read after each round. The first third warms up: kernels, caches, the clients that fit.
  After it, the straight line through the readings may rise by at most `MOST_RISE` of their mean; otherwise the run ends with an error.
* `leaks` is the control, for the tests: readings that rise are told from those that waver.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.throughput import redis_url
from benchmarks.traffic import DEAD_TOPIC, MODEL, START_S, Traffic, ingesting
from consumers.ingest.step import Ingest
from consumers.log.kafka import connection
from consumers.log.topics import ensure_topics
from consumers.secrets import Secrets
from consumers.store.redis import connect
from examples.servers import Kafka

ROUND = 50_000
PARTITIONS = 4
MOST_RISE = 0.05
TOPIC = "long"
SEGMENT_BYTES = 64 << 20
_VALUE = re.compile(rb'("features":\[)[-0-9.e]+')
_TIME = re.compile(rb'("timestamp":")[^"]+')


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def leaks(readings: Sequence[float]) -> float:
    """How much the line through the readings rises from its first to its last, as a share of their mean."""
    at = np.arange(len(readings))
    slope = np.polyfit(at, np.asarray(readings, np.float64), 1)[0]
    return float(slope * (len(readings) - 1) / np.mean(readings))


def round_of(lines: Sequence[bytes], start: int, rng: np.random.Generator) -> list[bytes]:
    """The same events with another first value each, at later times."""
    values = np.round(rng.normal(size=len(lines)), 6).tolist()
    found = []
    for i, (line, value) in enumerate(zip(lines, values, strict=True)):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START_S + (start + i) * 2)).encode()
        found.append(
            _VALUE.sub(rb"\g<1>%b" % repr(value).encode(), _TIME.sub(rb"\g<1>" + stamp, line, count=1), count=1)
        )
    return found


def run(events: int) -> int:
    from support.kafka_producer import produce

    traffic = Traffic(clients=20_000)
    baseline = traffic.baseline()
    lines, keys = traffic.lines(max(1000, min(ROUND, events // 12)))
    rng = np.random.default_rng(4)
    broker = Kafka()
    readings: list[float] = []
    try:
        broker.start()
        ensure_topics(connection(broker.bootstrap, security_protocol="PLAINTEXT"), [DEAD_TOPIC], 1)
        bounded = {"retention.bytes": str(2 * SEGMENT_BYTES), "segment.bytes": str(SEGMENT_BYTES)}
        _create(broker.bootstrap, bounded)
        with tempfile.TemporaryDirectory(prefix="querywarden-long-") as name, redis_url() as url:
            secrets = Secrets.load(Path(name) / "secrets.json", create=True)
            store = connect(f"{url}/0", timeout_s=60)
            store.prepare(secrets.key_id)
            reading = Ingest(baselines={MODEL: baseline}, secrets=secrets)
            with ingesting(broker.bootstrap, TOPIC, "long", store, reading) as (runner, _):
                done = 0
                while done < events:
                    produce(broker.bootstrap, TOPIC, round_of(lines, done, rng), keys=keys)
                    goal = done + len(lines)
                    while done < goal:
                        done += runner.turn(0.2)
                    readings.append(resident_mb())
                    used = f"{readings[-1]:7.1f} MB, {time.process_time():8.1f} s of processor"
                    print(f"{done:11,} events, {used}", flush=True)
    finally:
        broker.remove()
    rise = leaks(readings[len(readings) // 3 :])
    print(f"after the first third: {rise:+.1%} of its mean, {MOST_RISE:.0%} allowed")
    return 1 if rise > MOST_RISE else 0


def _create(bootstrap: str, configs: dict[str, str]) -> None:
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    topic = {"num_partitions": PARTITIONS, "replication_factor": 1, "configs": configs}
    admin.create_topics({TOPIC: topic}, wait_for_metadata=True)
    admin.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=5_000_000)
    options = parser.parse_args(argv)
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return run(options.events)


if __name__ == "__main__":
    sys.exit(main())
