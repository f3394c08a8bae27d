"""One drill from start to verdict: workers under load, faults, drain, judgement. Every crash test is one of these.

The faults end, the producer ends, everything is healed; then the workers must catch up, and are told to stop (exit status 0). They may take
as long as they need, but never `STALL_S` (`ALERTS_STALL_S` for alerts) without getting any further.
"""

from __future__ import annotations

import math
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
from support.servers import wait_until

from consumers.store.redis import connect

START_S = 180.0
STALL_S = 60.0
ALERTS_STALL_S = 150.0
"""After seven posts that failed in a row the next one is made 64 s later."""
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
            f"{chaos.lost_bytes} bytes; append-only files repaired: {chaos.cluster.repaired}; "
            f"recovered in [{recovered}] s; drained in {self.drained_s:.1f} s; "
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
    at_most_s: float = math.inf,
) -> Drill:
    """Start the workers, play `plan` while the ledger is sent (or call `faults`, and send until it returns), wait until all is drained,
    stop the workers.

    repeat     deal the plan out again until everything is sent, instead of once; the ledger waits for workers that are far behind
    at_most_s  with `repeat`: then no more is sent
    """
    ledger = Ledger(
        cluster.folder / "ledger.jsonl", cluster.kafka.bootstrap, cluster.topic, lines, rate, seed,
        taken=cluster.progress if repeat else None,
    )  # fmt: skip
    chaos = Chaos(cluster, seed)
    cluster.start_workers()
    ledger.start()
    wait_until(lambda: cluster.progress() > 0, START_S, "the first commit")
    if faults is not None:
        faults(chaos, ledger)
        ledger.enough.set()
    else:
        until_s = time.monotonic() + at_most_s
        chaos.run(plan, lambda: repeat and not ledger.done and time.monotonic() < until_s, calm_s)
        if repeat:
            ledger.enough.set()
    ledger.join()
    cluster.webhook.well = True  # or what is asked for is luck: each post that fails doubles the time to the next
    ended_s = time.monotonic()
    drain(cluster, ledger)
    drained_s = time.monotonic() - ended_s
    for worker in cluster.workers:
        cluster.scrape(worker)
    statuses = {worker.name: worker.end(signal.SIGTERM, STALL_S) for worker in cluster.workers}
    assert set(statuses.values()) == {0}, statuses
    return Drill(chaos, ledger, cluster.counted(), drained_s, cluster.unplanned())


def drain(cluster: Cluster, ledger: Ledger) -> None:
    """Until every record is counted, every client's decision reflects all its queries, and the outbox is empty."""
    try:
        _reached(lambda: _produced(cluster), ledger.sent, STALL_S, "records counted")
    except AssertionError as error:
        error.add_note(str(cluster.metas()))
        raise
    _reached(lambda: _judged(cluster), ledger.good.total(), STALL_S, "queries that decisions reflect")
    _reached(lambda: -_unsent(cluster), 0, ALERTS_STALL_S, "alerts (below 0: not sent)")


def _reached(now: Callable[[], int], wanted: int, stall_s: float, what: str) -> None:
    best, moved_s = now(), time.monotonic()
    while best < wanted:
        time.sleep(0.1)
        if (found := now()) > best:
            best, moved_s = found, time.monotonic()
        assert time.monotonic() - moved_s < stall_s, f"{what}: stood at {best:,} of {wanted:,} for {stall_s:.0f} s"


def _produced(cluster: Cluster) -> int:
    try:
        return sum(int(meta.get("n:produced", 0)) for meta in cluster.metas().values())
    except (redis.exceptions.RedisError, OSError):
        return -1


def _judged(cluster: Cluster) -> int:
    settings = cluster.settings() | {"QUERYWARDEN_STORE__URL": f"redis://127.0.0.1:{cluster.store.port}/0"}
    time.sleep(0.3)
    return sum(row["queries"] for row in oracle.called("clients", "--json", settings=settings))


def _unsent(cluster: Cluster) -> int:
    store = connect(f"redis://127.0.0.1:{cluster.store.port}/0")
    try:
        uids = {alert.uid for alert in store.alerts()}
    finally:
        store.close()
    return len(uids - set(oracle.delivered(Path(cluster.alerts_file)))) + len(uids - cluster.webhook.taken.keys())
