"""P3, P4, P10, P11: a rolling restart, a zombie and two lossy fail-overs, under load and with nothing else going wrong; then the store is
rebuilt from the log, and lost altogether."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from crash import oracle
from crash.chaos import Chaos
from crash.cluster import SESSION_MS, Cluster
from crash.drill import run_drill
from crash.ledger import Ledger, repeated
from support.servers import wait_until

EVENTS = 200_000  # at most: the ledger ends with the last fault
RATE = 800.0
REFUSED = ("commits fenced", "commits rewound", "commits unavailable")


def refused(counts: Counter[str]) -> int:
    return sum(counts[name] for name in REFUSED)


@pytest.mark.soak  # needs both cores to itself: docs/guarantees.md
def test_restarts_zombies_and_failovers(cluster: Cluster, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, float] = {}

    def faults(chaos: Chaos, ledger: Ledger) -> None:
        workers = cluster.of("ingest")
        wait_until(lambda: all(w.count()["commits committed"] for w in workers), 180, "commits of every worker")

        before = refused(cluster.counted())
        for worker in workers:
            assert worker.end(signal.SIGTERM, 60) == 0
            cluster.run(worker)
            chaos.under_load()
        seen["redone after SIGTERM"] = refused(cluster.counted()) - before

        zombie = workers[0]
        wait_until(
            lambda: zombie.count()["commits committed"] > 0 and zombie.counts.get(zombie.lives) is not None, 30, "it"
        )
        zombie.send(signal.SIGSTOP)
        time.sleep(SESSION_MS / 1000 * 1.5)
        chaos.under_load()
        fenced = zombie.count()["commits fenced"]
        zombie.send(signal.SIGCONT)
        chaos.under_load()
        time.sleep(3.0)
        seen["fences of the zombie"] = zombie.count()["commits fenced"] - fenced

        for _ in range(2):
            chaos.under_load()
            chaos.do("failover", chaos.rng)

    drill = run_drill(cluster, repeated(log, EVENTS), RATE, {}, 11, faults=faults)
    with capsys.disabled():
        sys.stdout.write(f"\n{seen}; {drill.summary()}\n")
    oracle.judge(cluster, drill.ledger)
    rebuilt(cluster)
    assert seen["redone after SIGTERM"] == 0
    assert seen["fences of the zombie"] <= 2 * 6  # two a cell that it had
    assert drill.ledger.sent < EVENTS, "the last faults met no load"
    assert len(drill.chaos.recovered_s) == 2
    assert drill.unplanned == []


def rebuilt(cluster: Cluster) -> None:
    """The same profiles come out when the log is read again, by order or because the store is empty."""
    url = f"redis://127.0.0.1:{cluster.store.port}/0"
    settings = cluster.settings() | {"QUERYWARDEN_STORE__URL": url}
    before, shape = oracle.stored(url, secrets=cluster.secrets), oracle.shape_of(cluster.baseline)
    for lose in (
        lambda: oracle.called("rebuild", "--from", "earliest", "--yes", settings=settings),
        lambda: flushed(cluster),
    ):
        lose()
        assert oracle.stored(url, secrets=cluster.secrets) == {}
        oracle.called("ingest", "--until-end", settings=settings)
        verdict = oracle.compare(before, oracle.stored(url, secrets=cluster.secrets), shape)
        assert (verdict.lost, verdict.doubled, verdict.wrong) == (0, 0, [])


def flushed(cluster: Cluster) -> None:
    with cluster.store.client() as client:
        client.flushall()
