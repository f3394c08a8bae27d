"""P1, P5, P18: with everything failing around them, the workers count each query exactly once, and a naive worker does not.

short   `make test`: one run of all faults; it needs both cores to itself, so it runs when the other tests are through
long    `make soak`: 30 minutes (QUERYWARDEN_TEST_CHAOS_S for another length), and the naive control
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from crash import chaos, naive_ingest, oracle
from crash.cluster import Cluster
from crash.drill import run_drill
from crash.ledger import Ledger, repeated, varied
from crash.oracle import called
from kafka import KafkaAdminClient
from support.servers import wait_until

from detector.query import ClientKey

SEED = 7
SHORT_EVENTS = 62_000
SHORT_S = 34.0
NAIVE_EVENTS = 60_000  # at most: the ledger ends with the last fault
NAIVE_RATE = 600.0
START_S = END_S = 180.0
LONG_EVENTS = 2_050_000
LONG_S = 1800.0
LONG_CALM_S = (2.0, 5.0)


@pytest.mark.alone
def test_every_query_counts_exactly_once(cluster: Cluster, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drill = run_drill(cluster, repeated(log, SHORT_EVENTS), SHORT_EVENTS / SHORT_S, chaos.SHORT, SEED)
    with capsys.disabled():
        sys.stdout.write(f"\n{drill.summary()}\n")
    assert not oracle.judge(cluster, drill.ledger).late
    assert drill.ledger.sent >= 60_000
    assert drill.faults >= 15
    assert drill.ledger.bad >= 500, "spoilt records"
    assert cluster.webhook.answers.total() > cluster.webhook.answers["take"], "the webhook was well all the time"
    assert max(drill.chaos.lost_bytes) > 0, "no fail-over lost anything: they prove nothing"
    assert [end for end in drill.unplanned if not at_start(end)] == []


def at_start(end: str) -> bool:
    """A worker that can't reach its servers when it starts ends in one line; its supervisor tries again. Later, none may end."""
    servers = ("querywarden: redis:", "querywarden: Kafka:", "querywarden: Kafka topic ")
    return "ended with 1:" in end and any(server in end for server in servers)


@pytest.mark.soak
def test_a_naive_worker_loses_and_doubles_queries(
    cluster: Cluster, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: same harness, same oracle, fewer faults. Positions kept apart from profiles go wrong, in both directions: a killed
    worker's last seconds are counted again, what a fail-over lost is never read again."""
    ledger = Ledger(
        cluster.folder / "ledger.jsonl", cluster.kafka.bootstrap, cluster.topic, repeated(log, NAIVE_EVENTS),
        NAIVE_RATE, SEED, bad_share=0,
    )  # fmt: skip
    secrets = cluster.secrets
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
    wait_until(lambda: len(naive(cluster)) > 0, START_S, "the first write")
    doing, rng = chaos.Chaos(cluster, SEED), random.Random(SEED)
    doing.progress = lambda: naively_written(cluster)
    for kind in ("failover", "kill:naive", "failover", "kill:naive", "kill:naive"):
        doing.under_load()
        doing.do(kind, rng)
    ledger.enough.set()
    ledger.join()
    wait_until(lambda: naively_committed(cluster) == ledger.sent, END_S, "the end of the log")
    now = naive(cluster)
    expected = oracle.replayed(cluster.folder, ledger.path, cluster.baseline, cluster.settings())
    verdict = oracle.compare(expected.profiles, now, oracle.shape_of(cluster.baseline))
    with capsys.disabled():
        sys.stdout.write(
            f"\nnaive control: {ledger.sent:,} events, {dict(doing.faults)}: {verdict.lost} lost, {verdict.doubled} doubled, "
            f"{len(verdict.wrong)} of {len(expected.profiles)} clients wrong\n"
        )
    assert verdict.lost + verdict.doubled > 0, (
        "which of the two is chance here; test_naive_ingest.py shows each without"
    )
    assert verdict.wrong


def naive(cluster: Cluster) -> dict[ClientKey, oracle.Spans]:
    return oracle.stored(f"redis://127.0.0.1:{cluster.store.port}/0", f"{naive_ingest.PREFIX}*")


def naively_written(cluster: Cluster) -> int:
    try:
        with cluster.store.client() as client:
            found: Any = client.get(naive_ingest.WRITTEN)
    except (redis.exceptions.RedisError, OSError):
        return -1
    return int(found or 0)


def naively_committed(cluster: Cluster) -> int:
    """Sum of the positions that Kafka keeps for the naive workers: what is below was read, folded and written."""
    admin = KafkaAdminClient(bootstrap_servers=cluster.kafka.bootstrap)
    try:
        groups: Any = admin.list_group_offsets([naive_ingest.GROUP])
    finally:
        admin.close()
    return sum(max(0, at.offset) for at in groups[naive_ingest.GROUP].values())


@pytest.mark.soak
def test_who_comes_while_the_memory_is_full_is_counted_once_too(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then new clients are counted together: the only fault of the long form that a clean replay does not know."""
    drill = run_drill(
        cluster,
        varied(cluster.folder, 60_000, clients=20),
        1200.0,
        {"store": ["tight_memory", "full_memory"] * 3},
        SEED + 2,
    )
    verdict = oracle.judge(cluster, drill.ledger)
    with capsys.disabled():
        sys.stdout.write(f"\n{verdict.pooled} queries of {len(verdict.late)} clients were counted together\n")
    assert 0 < len(verdict.late) <= 0.5 * len(drill.ledger.good)
    assert drill.unplanned == []


@pytest.mark.soak
def test_every_query_counts_exactly_once_for_half_an_hour(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """All that was sent is judged first; whether it was enough for the figures, then."""
    seconds = float(os.environ.get("QUERYWARDEN_TEST_CHAOS_S", LONG_S))
    cluster.extra["QUERYWARDEN_BREAKER__MOST"] = "100000"  # eight thieves a minute are on purpose
    events = varied(cluster.folder, LONG_EVENTS)
    drill = run_drill(
        cluster, events, LONG_EVENTS / seconds, chaos.LONG, SEED + 1, LONG_CALM_S, repeat=True, at_most_s=seconds * 2
    )
    with capsys.disabled():
        sys.stdout.write(f"\n{drill.summary()}\n")
        sys.stdout.flush()
    verdict = oracle.judge(cluster, drill.ledger)
    with capsys.disabled():
        sys.stdout.write(
            f"lost {verdict.lost}, doubled {verdict.doubled}, clients wrong {len(verdict.wrong)}; {verdict.pooled} queries of "
            f"{len(verdict.late)} of {len(drill.ledger.good):,} clients were counted together while the memory was full\n"
        )
    assert len(verdict.late) <= 0.1 * len(drill.ledger.good), "too many clients were judged by their counts only"
    assert [end for end in drill.unplanned if not at_start(end)] == []
    assert drill.ledger.sent >= 2_000_000
    assert drill.faults >= 300
    assert sum(lost > 0 for lost in drill.chaos.lost_bytes) >= 20, "fail-overs that lost something"
