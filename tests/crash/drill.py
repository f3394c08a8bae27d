"""One drill from start to verdict: workers under load, faults, drain, judgement. Every crash test is one of these.

The faults end, the producer ends, everything is healed; then the workers have `DRAIN_S` to catch up, and are told to stop (exit status 0).
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis
from crash import oracle
from crash.chaos import Chaos
from crash.cluster import Cluster
from crash.ledger import Ledger
from servers import wait_until

from consumers.store.redis import connect

DRAIN_S = 60.0
CALM_S = (0.5, 1.5)


@dataclass
class Drill:
    """What happened."""

    chaos: Chaos
    ledger: Ledger
    counted: Counter[str]
    drained_s: float
    unplanned: list[str]

    @property
    def faults(self) -> int:
        """Faults that were played; remarks are in parentheses."""
        return sum(n for kind, n in self.chaos.faults.items() if not kind.startswith("("))

    def summary(self) -> str:
        chaos, counted = self.chaos, self.counted
        commits = {k[8:]: n for k, n in sorted(counted.items()) if k.startswith("commits")}
        recovered = ", ".join(f"{s:.1f}" for s in chaos.recovered_s)
        return (
            f"{self.ledger.sent:,} events, {self.faults} faults {dict(sorted(chaos.faults.items()))}; acknowledged and lost by Redis: "
            f"{chaos.lost_bytes} bytes; recovered in [{recovered}] s; drained in {self.drained_s:.1f} s; "
            f"commits {commits}; webhook {dict(self.chaos.cluster.webhook.answers)}; "
            f"ends that nobody ordered: {self.unplanned or 'none'}"
        )


def run_drill(
    cluster: Cluster,
    lines: Iterator[tuple[bytes, bytes]],
    rate: float,
    plan: Mapping[str, Sequence[str]],
    seed: int,
    calm_s: tuple[float, float] = CALM_S,
    faults: Callable[[Chaos, Ledger], None] | None = None,
    repeat: bool = False,
) -> Drill:
    """Start the workers, play `plan` while the ledger is sent (or call `faults`, and send until it returns), wait until all is drained,
    stop the workers.

    repeat  deal the plan out again until everything is sent, instead of once
    """
    ledger = Ledger(cluster.folder / "ledger.jsonl", cluster.kafka.bootstrap, cluster.topic, lines, rate, seed)
    chaos = Chaos(cluster, seed)
    cluster.start_workers()
    ledger.start()
    wait_until(lambda: cluster.progress() > 0, 90, "the first commit")
    if faults is not None:
        faults(chaos, ledger)
        ledger.enough.set()
    else:
        chaos.run(plan, lambda: repeat and not ledger.done, calm_s)
    ledger.join()
    ended_s = time.monotonic()
    drain(cluster, ledger)
    drained_s = time.monotonic() - ended_s
    for worker in cluster.workers:
        cluster.scrape(worker)
    statuses = {worker.name: worker.end(signal.SIGTERM, 20) for worker in cluster.workers}
    assert set(statuses.values()) == {0}, statuses
    return Drill(chaos, ledger, cluster.counted(), drained_s, cluster.unplanned())


def drain(cluster: Cluster, ledger: Ledger, within_s: float = DRAIN_S) -> None:
    """Until every record is counted, every client's decision reflects all its queries, and the outbox is empty."""
    try:
        wait_until(lambda: _produced(cluster) >= ledger.sent, within_s, "every record counted")
    except AssertionError as error:
        error.add_note(f"{_produced(cluster)} of {ledger.sent}: {cluster.metas()}")
        raise
    wait_until(lambda: _judged(cluster) >= ledger.good.total(), within_s, "decisions on everything")
    wait_until(lambda: not _unsent(cluster), within_s, "an empty outbox")


def _produced(cluster: Cluster) -> int:
    try:
        return sum(int(meta.get("n:produced", 0)) for meta in cluster.metas().values())
    except (redis.exceptions.RedisError, OSError):
        return -1


def _judged(cluster: Cluster) -> int:
    settings = cluster.settings() | {"QUERYWARDEN_STORE__URL": f"redis://127.0.0.1:{cluster.store.port}/0"}
    time.sleep(0.3)
    return sum(row["queries"] for row in oracle.called("clients", "--json", settings=settings))


def _unsent(cluster: Cluster) -> bool:
    store = connect(f"redis://127.0.0.1:{cluster.store.port}/0")
    try:
        uids = {alert.uid for alert in store.alerts()}
    finally:
        store.close()
    return not uids <= set(oracle.delivered(Path(cluster.alerts_file))) or not uids <= cluster.webhook.taken.keys()
