"""P6 in one run: real workers, a log of which one record in a hundred is spoilt, three bombs, and a batch that rots on the broker's disk.

No partition stops, every healthy record is folded once, and everything else is a dead letter: the oracle of the chaos says so.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from crash import oracle
from crash.chaos import Chaos
from crash.cluster import Cluster, Worker
from crash.drill import run_drill
from crash.ledger import Ledger, repeated
from support.decompression_bombs import produce_bomb
from support.kafka_producer import produce
from support.servers import wait_until

EVENTS = 100_000
RATE = 2_500.0
BOMBS = ("gzip", "lz4", "zstd")
BOMB_BYTES = 64 << 20
ROTTEN = b"this batch will rot"


@pytest.mark.soak
def test_poison_of_every_kind_in_one_run_stops_no_partition(
    cluster: Cluster, log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faults(chaos: Chaos, ledger: Ledger) -> None:
        for codec in BOMBS:
            chaos.under_load()
            produce_bomb(cluster.kafka.bootstrap, cluster.topic, codec, BOMB_BYTES, monkeypatch)
        rot(cluster)
        wait_until(lambda: ledger.done, 600, "the ledger's end")
        ledger.bad += len(BOMBS) + 1

    drill = run_drill(cluster, repeated(log, EVENTS), RATE, {}, 17, faults=faults)
    with capsys.disabled():
        sys.stdout.write(f"\n{drill.summary()}\n")
    verdict = oracle.judge(cluster, drill.ledger)
    with capsys.disabled():
        sys.stdout.write(f"{drill.ledger.bad:,} dead letters; lost {verdict.lost}, doubled {verdict.doubled}\n")
    assert drill.ledger.sent >= EVENTS
    assert drill.ledger.bad >= 0.009 * EVENTS
    reasons = {worker.name: worker.count() for worker in cluster.of("ingest")}
    assert sum(counts["records dead"] for counts in reasons.values()) >= drill.ledger.bad
    assert drill.unplanned == []


def rot(cluster: Cluster) -> None:
    """One batch changes on the broker's disk before anybody has read it: the workers are stopped meanwhile."""
    workers = cluster.of("ingest")
    told(workers, signal.SIGSTOP)
    try:
        produce(cluster.kafka.bootstrap, cluster.topic, [ROTTEN])
        cluster.kafka.stop()
        changed = 0
        for segment in cluster.kafka.folder.glob(f"data/{cluster.topic}-*/*.log"):
            whole = segment.read_bytes()
            if ROTTEN in whole:
                segment.write_bytes(whole.replace(ROTTEN, ROTTEN[::-1]))
                changed += 1
        assert changed == 1
        cluster.start(cluster.kafka)
    finally:
        told(workers, signal.SIGCONT)


def told(workers: Sequence[Worker], which: signal.Signals) -> None:
    for worker in workers:
        worker.send(which)
