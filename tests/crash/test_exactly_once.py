"""P1, P5, P18: with everything failing around them, the workers count each query exactly once, and a naive worker does not.

short   in `make test`: one run of all faults, then the naive control on the same cluster
long    `make soak`: 30 minutes (QUERYWARDEN_TEST_CHAOS_S for another length)
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest
from crash import chaos, oracle
from crash.cluster import Cluster
from crash.drill import run_drill
from crash.ledger import Ledger, repeated
from crash.oracle import called
from servers import wait_until

from detector.query import ClientKey

SEED = 7
SHORT_EVENTS = 62_000
SHORT_S = 34.0
NAIVE_EVENTS = 16_000
NAIVE_S = 14.0
LONG_EVENTS = 2_050_000
LONG_S = 1800.0


@pytest.mark.soak  # until it has been seen green three times in a row: docs/guarantees.md
def test_every_query_counts_exactly_once(cluster: Cluster, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drill = run_drill(cluster, repeated(log, SHORT_EVENTS), SHORT_EVENTS / SHORT_S, chaos.SHORT, SEED)
    with capsys.disabled():
        sys.stdout.write(f"\n{drill.summary()}\n")
    oracle.judge(cluster, drill.ledger)
    assert drill.ledger.sent >= 60_000
    assert drill.faults >= 15
    assert drill.ledger.bad >= 500, "spoilt records"
    assert cluster.webhook.answers.total() > cluster.webhook.answers["take"], "the webhook was well all the time"
    assert max(drill.chaos.lost_bytes) > 0, "no fail-over lost anything: they prove nothing"
    assert [end for end in drill.unplanned if not at_start(end)] == []


def at_start(end: str) -> bool:
    """A worker that can't reach its servers when it starts ends in one line; its supervisor tries again. Later, none may end."""
    return "ended with 1:" in end and ("querywarden: redis:" in end or "querywarden: Kafka:" in end)


@pytest.mark.soak  # until it has been seen green three times in a row: docs/guarantees.md
def test_a_naive_worker_loses_and_doubles_queries(
    cluster: Cluster, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: in the same harness, with fewer faults, positions kept apart from profiles go wrong."""
    ledger = Ledger(
        cluster.folder / "ledger.jsonl", cluster.kafka.bootstrap, cluster.topic, repeated(log, NAIVE_EVENTS),
        NAIVE_EVENTS / NAIVE_S, SEED, bad_share=0,
    )  # fmt: skip
    secrets = cluster.folder / "state" / "secrets.json"
    called(
        "clients",
        "--json",
        settings=cluster.settings() | {"QUERYWARDEN_STORE__URL": "sqlite:///" + str(log.with_suffix(".db"))},
    )
    for i in range(3):
        command = [
            sys.executable,
            str(Path(__file__).with_name("naive_ingest.py")),
            f"127.0.0.1:{cluster.kafka_proxy_port}",
        ]
        cluster.run(
            cluster.add(
                f"naive{i}", [*command, cluster.topic, cluster.store_url, str(cluster.baseline), str(secrets)], False
            )
        )
    cluster.supervise()
    ledger.start()
    wait_until(lambda: len(naive(cluster)) > 0, 60, "the first write")
    doing, rng = chaos.Chaos(cluster, SEED), random.Random(SEED)
    for kind in ("kill:naive", "failover", "kill:naive", "zombie:naive", "failover"):
        time.sleep(1.0)
        doing.do(kind, rng)
    ledger.join()
    before: dict[ClientKey, oracle.Spans] = {}
    while (now := naive(cluster)) != before:
        before = now
        time.sleep(5.0)
    expected = oracle.replayed(cluster.folder, ledger.path, cluster.baseline, cluster.settings())
    verdict = oracle.compare(expected.profiles, now, oracle.shape_of(cluster.baseline))
    with capsys.disabled():
        sys.stdout.write(
            f"\nnaive control: {ledger.sent:,} events, {dict(doing.faults)}: {verdict.lost} lost, {verdict.doubled} doubled, "
            f"{len(verdict.wrong)} of {len(expected.profiles)} clients wrong\n"
        )
    assert verdict.lost + verdict.doubled > 0
    assert verdict.wrong


def naive(cluster: Cluster) -> dict[ClientKey, oracle.Spans]:
    return oracle.stored(f"redis://127.0.0.1:{cluster.store.port}/0", "naive:p:*")


@pytest.mark.soak
def test_every_query_counts_exactly_once_for_half_an_hour(
    cluster: Cluster, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = float(os.environ.get("QUERYWARDEN_TEST_CHAOS_S", LONG_S))
    events = round(LONG_EVENTS * seconds / LONG_S)
    drill = run_drill(cluster, repeated(log, events), events / seconds, chaos.LONG, SEED + 1, repeat=True)
    with capsys.disabled():
        sys.stdout.write(f"\n{drill.summary()}\n")
    oracle.judge(cluster, drill.ledger)
    assert drill.faults >= 300 * seconds / LONG_S
    assert drill.chaos.faults["failover"] >= 20 * seconds / LONG_S
    assert [end for end in drill.unplanned if not at_start(end)] == []
